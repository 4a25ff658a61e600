"""`SamplesLoss`: the conversions of its arguments, against the formulas in dense float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import brenier
from brenier import InvalidInput
from brenier.losses import SamplesLoss, energy_distance, mmd
from problems import assert_close, cloud, entropic, weights

X, Y = cloud(6, 2, 1), cloud(7, 2, 2) + 0.3
A, B = weights(6, 3), weights(7, 4)


def divergence(cost: Any, epsilon: float, rho: float | None, a: Any, b: Any) -> float:
    """S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 + eps (m_a - m_b)^2 / 2 by the dense oracle."""
    x, y, a, b = (t.numpy() for t in (X, Y, a, b))

    def transport(u: Any, v: Any, p: Any, q: Any) -> float:
        return entropic(cost(u, v), p, q, epsilon, (rho, rho)).value

    parts = transport(x, y, a, b) - transport(x, x, a, a) / 2 - transport(y, y, b, b) / 2
    return parts + epsilon / 2 * (a.sum() - b.sum()) ** 2


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, 1.2])
def test_sinkhorn(p: int, reach: float | None) -> None:
    a, b = (A, B) if reach is None else (1.5 * A, B)
    rho = None if reach is None else reach**p
    expected = divergence(lambda u, v: cdist(u, v) ** p / p, 0.7**p, rho, a, b)
    assert_close(SamplesLoss("sinkhorn", p=p, blur=0.7, reach=reach)(a, X, b, Y), expected, rtol=1e-6)


def test_without_debiasing() -> None:
    expected = entropic(cdist(X, Y, "sqeuclidean") / 2, A.numpy(), B.numpy(), 0.49).value
    assert_close(SamplesLoss(blur=0.7, debias=False)(A, X, B, Y), expected, rtol=1e-6)


def test_kernel_norms_are_halves() -> None:
    assert_close(SamplesLoss("energy")(A, X, B, Y), energy_distance(X, Y, A, B) / 2, rtol=1e-12)
    gaussian = mmd(X, Y, A, B, bandwidth=0.4) / 2
    assert_close(SamplesLoss("gaussian", blur=0.4)(A, X, B, Y), gaussian, rtol=1e-12)
    laplacian = mmd(X, Y, A, B, kernel="laplacian", bandwidth=0.4) / 2
    assert_close(SamplesLoss("laplacian", blur=0.4)(A, X, B, Y), laplacian, rtol=1e-12)


def test_shapes() -> None:
    loss = SamplesLoss(blur=0.5)
    assert loss(X, Y).shape == ()
    assert loss(X[None], Y[None]).shape == (1,)
    batched = loss(A.expand(3, -1), X.expand(3, -1, -1), B.expand(3, -1), Y.expand(3, -1, -1))
    assert_close(batched, [float(loss(A, X, B, Y))] * 3, rtol=1e-9)
    assert_close(loss(A[:, None], X, B[:, None], Y), loss(A, X, B, Y), rtol=1e-12)


def test_potentials_are_differences_of_potentials() -> None:
    f, g = SamplesLoss(blur=0.7, potentials=True)(A, X, B, Y)
    assert f.shape == A.shape
    assert g.shape == B.shape
    # <a, f> + <b, g> is the divergence
    assert_close(A @ f + B @ g, SamplesLoss(blur=0.7)(A, X, B, Y), rtol=1e-5)


def test_other_costs() -> None:
    def blocks(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.dim() == y.dim() == 3
        return (x.unsqueeze(2) - y.unsqueeze(1)).abs().sum(-1)

    x = X.clone().requires_grad_()
    found = SamplesLoss(blur=0.6, cost=blocks)(A, x, B, Y)
    assert_close(found.detach(), divergence(lambda u, v: cdist(u, v, "cityblock"), 0.36, None, A, B), rtol=1e-6)
    named = SamplesLoss(blur=0.6, cost="cityblock")(A, x, B, Y)
    gradients = [torch.autograd.grad(t, x)[0] for t in (found, named)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_arguments_without_effect_are_accepted() -> None:
    plain = SamplesLoss("sinkhorn", p=2, blur=0.5)
    other = SamplesLoss("sinkhorn", p=2, blur=0.5, diameter=3.0, scaling=0.9, truncate=None, backend="online")
    assert_close(other(X, Y), plain(X, Y), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hausdorff"}, "loss: expected one of"),
        ({"p": 3}, "p: expected 1 or 2"),
        ({"blur": 0.0}, "blur: expected"),
        ({"reach": -1.0}, "reach: expected"),
        ({"kernel": len}, "kernel: expected None"),
        ({"cost": "(SqDist(X,Y) / IntCst(2))"}, "cost: expected"),
        ({"loss": "energy", "potentials": True}, "potentials: expected False"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        SamplesLoss(**arguments)


def test_labels_are_refused() -> None:
    with pytest.raises(brenier.InvalidInput, match=r"expected \(x, y\) or \(a, x, b, y\)"):
        SamplesLoss()(A, A, X, B, B, Y)
