"""Second derivatives of every loss: right to rounding, or an error; never a part of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from brenier import KL, Implicit, InvalidInput
from brenier.losses import (
    SamplesLoss,
    doubly_stochastic,
    energy_distance,
    energy_sliced_wasserstein,
    exact_wasserstein,
    gaussian_wasserstein,
    gromov_loss,
    labelled_wasserstein,
    mmd,
    monge_gap,
    order_preserving_wasserstein,
    partial_wasserstein,
    sinkhorn_divergence,
    sliced_wasserstein,
)
from problems import cloud

LABELS = torch.arange(4) % 2
IMPLICIT = {"adjoint": Implicit(), "tol": 1e-12}
DIRECTIONS = torch.nn.functional.normalize(cloud(6, 2, 5), dim=-1)
Loss = Callable[[Tensor, Tensor], Tensor]

TWICE: dict[str, Loss] = {
    "sinkhorn": lambda x, y: sinkhorn_divergence(x, y, epsilon=0.8, **IMPLICIT).value,
    "sinkhorn, KL": lambda x, y: sinkhorn_divergence(x, y, epsilon=0.8, marginals=KL(1.0), **IMPLICIT).value,
    "samples": SamplesLoss(blur=0.7, adjoint=Implicit()),
    "exact": exact_wasserstein,
    "exact, p = 1": lambda x, y: exact_wasserstein(x, y, p=1),
    "partial": lambda x, y: partial_wasserstein(x, y, mass=0.55),
    "gaussian": gaussian_wasserstein,
    "gaussian, epsilon": lambda x, y: gaussian_wasserstein(x, y, epsilon=0.5, shrinkage=0.1),
    "gap": lambda x, y: monge_gap(x, y, epsilon=0.8, **IMPLICIT),
    "mmd": mmd,
    "energy": energy_distance,
    "sequence": lambda x, y: order_preserving_wasserstein(x, y, epsilon=0.8, order=2.0, **IMPLICIT),
    "labels": lambda x, y: labelled_wasserstein(x, LABELS, y, LABELS),
    "labels, epsilon": lambda x, y: labelled_wasserstein(x, LABELS, y, LABELS, epsilon=0.8, adjoint=Implicit()),
    "sliced": lambda x, y: sliced_wasserstein(x, y, directions=DIRECTIONS).value,
    "energy-sliced": lambda x, y: energy_sliced_wasserstein(x, y, directions=DIRECTIONS).value,
    "scaling": lambda x, y: doubly_stochastic(x @ y.mT, n_iter=500, tol=1e-14)[0].square().sum(),
}
ONCE: dict[str, Loss] = {
    "sinkhorn": lambda x, y: sinkhorn_divergence(x, y, epsilon=0.8).value,
    "samples": SamplesLoss(blur=0.7),
    "partial, epsilon": lambda x, y: partial_wasserstein(x, y, mass=0.5, epsilon=0.8),
    "gap": lambda x, y: monge_gap(x, y, epsilon=0.8),
    "sequence": lambda x, y: order_preserving_wasserstein(x, y, epsilon=0.8, order=2.0),
    "labels, epsilon": lambda x, y: labelled_wasserstein(x, LABELS, y, LABELS, epsilon=0.8),
    "gromov": gromov_loss,
    "gromov, epsilon": lambda x, y: gromov_loss(x, y, epsilon=0.8),
}


def leaves() -> tuple[Tensor, Tensor]:
    return cloud(4, 2, 1).requires_grad_(), cloud(4, 2, 2).requires_grad_()


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives(name: str) -> None:
    loss, points = TWICE[name], leaves()
    assert gradcheck(loss, points, atol=1e-6)
    assert gradgradcheck(loss, points, atol=1e-5)


@pytest.mark.parametrize("name", ONCE)
def test_second_derivatives_that_are_not_there_are_refused(name: str) -> None:
    points = leaves()
    gradient = torch.autograd.grad(ONCE[name](*points).sum(), points, create_graph=True)
    plain = torch.autograd.grad(ONCE[name](*points).sum(), points)
    torch.testing.assert_close([g.detach() for g in gradient], list(plain), rtol=1e-9, atol=1e-12)
    for direction in points:
        with pytest.raises(InvalidInput, match="derivative: expected first derivatives only"):
            torch.autograd.grad(gradient[0].square().sum(), direction, retain_graph=True)


def test_points_and_masses_of_an_exact_loss() -> None:
    x, y = leaves()
    logits = cloud(4, 1, 3).flatten().requires_grad_()
    gradient = torch.autograd.grad(exact_wasserstein(x, y, logits.softmax(-1)), x, create_graph=True)[0]
    with pytest.raises(InvalidInput, match="second one of a value with adjoint=Envelope"):
        torch.autograd.grad(gradient.square().sum(), logits)


def test_a_gaussian_cost_in_epsilon_only_once() -> None:
    x, y = leaves()
    epsilon = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(gaussian_wasserstein(x, y, epsilon=epsilon), epsilon, create_graph=True)[0]
    with pytest.raises(InvalidInput, match="a Gaussian cost in epsilon"):
        gradient.backward()
