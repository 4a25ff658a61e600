"""The geodesic cost of the sphere, powers at zero, and gradients of conjugates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import brenier
from brenier import InvalidInput
from brenier.costs import Arc, CallableCost, Euclidean, Geodesic, Lp, Mahalanobis, SqEuclidean
from problems import assert_close, cloud

X, Y = cloud(9, 3, 1), cloud(7, 3, 2)


# -- the sphere --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
def test_it_is_the_angle(power: float) -> None:
    u, v = (t / t.norm(dim=-1, keepdim=True) for t in (X, Y))
    expected = np.arccos((u @ v.mT).numpy()) ** power
    assert_close(Geodesic(power).block(3 * X, Y), expected, rtol=1e-9)
    assert_close(Geodesic(power)(X[:7], Y), expected.diagonal(), rtol=1e-9)


def test_small_and_large_angles_are_accurate(dtype: torch.dtype) -> None:
    north = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    for angle in (1e-6, 1e-3, math.pi / 2, math.pi - 1e-3):
        other = torch.tensor([math.sin(angle), 0.0, math.cos(angle)], dtype=dtype)
        assert_close(Geodesic()(north, other), angle, rtol=1e-6)
    assert float(Geodesic()(north, north)) == 0
    assert_close(Geodesic()(north, -north), math.pi, rtol=1e-6)


def test_it_has_finite_gradients_everywhere() -> None:
    north = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    nothing = 0 * north
    for pair in ((north, north), (north, -north), (north, nothing), (nothing, nothing), (north, north + 1)):
        for power in (0.5, 1.0, 2.0):
            x, y = (t.clone().requires_grad_() for t in pair)
            Geodesic(power)(x, y).sum().backward()
            assert torch.isfinite(x.grad).all()
            assert torch.isfinite(y.grad).all()
    x, y = (t[:4].clone().requires_grad_() for t in (X, Y))
    assert gradcheck(Geodesic(), (x, y))
    assert gradcheck(Geodesic().block, (x, y))


def test_transport_on_the_sphere() -> None:
    u, v = (t[:7] / t[:7].norm(dim=-1, keepdim=True) for t in (X, Y))
    exact = brenier.solve(u, v, cost=Geodesic())
    assert_close(exact.certificate.relative_gap, 0.0, atol=1e-9)
    assert_close(brenier.solve(u, v, cost=Geodesic(), epsilon=1e-3).linear_value, exact.value, rtol=1e-2)
    assert brenier.solve(u, u, cost=Geodesic(), epsilon=0.1).stats["solver"] == "symmetric-sinkhorn"


# -- powers at zero ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [Lp(2.0, 0.5), Lp(1.0, 0.5), Arc(power=0.5)], ids=str)
def test_powers_below_one_have_the_zero_subgradient(cost: Any) -> None:
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    cost.block(x, y).sum().backward()
    assert_close(x.grad, [[-0.5 * 2**-0.5]])
    assert_close(cost.block(x.detach(), y), [[0.0, 2**0.5]])


# -- conjugates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cost",
    [
        SqEuclidean(),
        Lp(2.0, 2.0),
        Lp(2.0, 1.5),
        Lp(3.0, 3.0),
        Lp(1.5, 2.0),
        Mahalanobis(torch.diag(torch.arange(1.0, 4.0))),
    ],
    ids=lambda c: type(c).__name__ + str(getattr(c, "p", "")),
)
def test_gradients_of_conjugates_invert_those_of_costs(cost: Any) -> None:
    z = X.clone().requires_grad_()
    (w,) = torch.autograd.grad(cost(z, torch.zeros_like(z)).sum(), z)
    assert_close(cost.conjugate_gradient(w), X, rtol=1e-8)
    w = torch.zeros(2, 3, dtype=torch.float64)
    w[1] = torch.tensor([0.0, 1.0, -2.0])  # zeros are no trouble
    w.requires_grad_()
    out = cost.conjugate_gradient(w)
    assert not out[0].any()
    out.sum().backward()
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize(
    "cost",
    [Euclidean(), Lp(1.0), Lp(math.inf, 2.0), Geodesic(), CallableCost(lambda x, y: (x - y).abs().sum(-1)),
     Mahalanobis(torch.diag(torch.tensor([1.0, 0.0])))],
    ids=lambda c: type(c).__name__,
)  # fmt: skip
def test_other_costs_have_none(cost: Any) -> None:
    with pytest.raises(InvalidInput, match="strictly convex"):
        cost.conjugate_gradient(torch.zeros(1, 2))


def test_a_geodesic_power_is_positive() -> None:
    for power in (0.0, -1.0, math.inf, "one"):
        with pytest.raises(InvalidInput, match="Geodesic power"):
            Geodesic(power)  # type: ignore[arg-type]
