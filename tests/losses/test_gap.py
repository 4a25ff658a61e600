"""The Monge gap: gaps that are known, its conventions, its gradients, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import brenier
from brenier import InvalidInput, Relative
from brenier.costs import Geodesic, Lp
from brenier.losses import MongeGap, monge_gap
from brenier.solvers import GaussianStart, Sinkhorn
from problems import assert_close, cloud, entropic, weights

N = 8
X, Y = cloud(N, 2, 1), cloud(N, 2, 2) + 0.3
A = weights(N, 3)
COSTS = ["sqeuclidean", "euclidean", Lp(2.0, 1.5), Lp(1.5, 1.5), Geodesic(), lambda x, y: (x - y).pow(4).sum(-1)]
EPSILONS = torch.tensor([0.3, 0.5, 1.0], dtype=torch.float64)
NAMES = ["sqeuclidean", "euclidean", "power", "lp", "geodesic", "callable"]


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def exact(x: Tensor, y: Tensor, a: Tensor | None = None, cost: Any = "sqeuclidean") -> float:
    return float(monge_gap(x, y, a, cost=cost, convention="exact"))


# -- known answers -----------------------------------------------------------------------------------------------


def test_optimal_maps_have_no_gap() -> None:
    x, y = cloud(60, 3, 5), cloud(60, 3, 6) + 1
    root = cloud(3, 3, 7)
    order = torch.as_tensor(brenier.solve(x, y).plan.argmax())
    for moved in (x, x @ (root @ root.mT + 0.1 * torch.eye(3)), y[order], x + torch.ones(3)):
        assert abs(exact(x, moved)) < 1e-10


@pytest.mark.parametrize("cost", COSTS, ids=NAMES)
def test_the_exact_assignment_has_none_for_its_cost(cost: Any) -> None:
    y = Y[torch.as_tensor(brenier.solve(X, Y, cost=cost).plan.argmax())]
    assert abs(exact(X, y, cost=cost)) < 1e-10
    assert exact(X, y.flip(0), cost=cost) > 1e-3


def test_of_a_turn_by_a_right_angle() -> None:
    turned = torch.stack([-X[:, 1], X[:, 0]], 1)
    assert exact(X, turned) > 0.1
    # two points that change places
    pair = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert_close(exact(pair, pair.flip(0)), 1.0)
    a = torch.tensor([0.25, 0.75], dtype=torch.float64)
    # the image has 3/4 at 0 and 1/4 at 1, so that half of the mass goes
    assert_close(exact(pair, pair.flip(0), a), 0.5)


@pytest.mark.parametrize("masses", [None, A], ids=["uniform", "masses"])
def test_conventions_differ_by_the_entropy_of_the_masses(masses: Tensor | None) -> None:
    a = torch.full((N,), 1 / N, dtype=torch.float64) if masses is None else masses
    entropy = float(-(a * a.log()).sum())
    eps, cost = 0.3, torch.cdist(X, Y).square().numpy()
    options: dict[str, Any] = {"epsilon": eps, "tol": 1e-11}
    kl, ent = (monge_gap(X, Y, masses, convention=c, **options) for c in ("kl", "entropy"))
    displacement = float((a * (X - Y).square().sum(-1)).sum())
    assert_close(kl, displacement - entropic(cost, a.numpy(), a.numpy(), eps).value, rtol=1e-8)
    assert_close(ent - kl, 2 * eps * entropy, rtol=1e-9)
    for convention, floor in (("kl", -eps * entropy), ("entropy", eps * entropy), ("exact", 0.0)):
        gap = MongeGap(convention=convention, **options).measure(X, Y, masses)
        assert_close(gap.floor, floor)
        assert gap.value >= gap.floor
        assert_close(gap.displacement, displacement)


def test_at_an_optimal_map_the_entropic_gap_is_near_its_floor() -> None:
    x = cloud(100, 2, 0)
    gap = MongeGap(epsilon=1e-3, convention="entropy").measure(x, x + 3)
    assert_close(gap.floor, 1e-3 * math.log(100))
    assert 0 <= float(gap.value - gap.floor) < 0.2 * float(gap.floor)
    assert float(monge_gap(x, x + 3, epsilon=1e-3)) < 0


def test_it_tends_to_the_exact_gap() -> None:
    assert_close(monge_gap(X, Y, epsilon=1e-4), exact(X, Y), rtol=1e-2)


def test_stopped_early_it_is_too_large_and_never_too_small() -> None:
    x, y = cloud(200, 2, 0), cloud(200, 2, 1)
    truth = float(monge_gap(x, y, epsilon=0.05, tol=1e-10))
    for tol in (0.3, 0.03, 0.003):
        assert float(monge_gap(x, y, epsilon=0.05, tol=tol)) >= truth - 1e-9


def test_batches() -> None:
    x, y = cloud(6, 2, 0, 3), cloud(6, 2, 1, 3)
    for options in ({"convention": "exact"}, {"epsilon": 0.5, "tol": 1e-10}, {"epsilon": EPSILONS}):
        together = monge_gap(x, y, **options)
        assert together.shape == (3,)
        for k in range(3):
            eps = options.get("epsilon")
            alone = {**options, "epsilon": eps[k]} if isinstance(eps, Tensor) else options
            assert_close(together[k], monge_gap(x[k], y[k], **alone), rtol=1e-6)
    assert monge_gap(x, y[0]).shape == (3,)


@pytest.mark.parametrize(
    "solver", ["sinkhorn", Sinkhorn(start=GaussianStart()), "newton-path"], ids=lambda s: str(s)[:9]
)
def test_solvers(solver: Any) -> None:
    options = {"epsilon": 0.3, "tol": 1e-9}
    assert_close(monge_gap(X, Y, solver=solver, **options), monge_gap(X, Y, **options), rtol=1e-6)


def test_it_keeps_the_dtype(dtype: torch.dtype) -> None:
    for convention in ("kl", "entropy", "exact"):
        assert monge_gap(X.to(dtype), Y.to(dtype), convention=convention).dtype == dtype


# -- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS, ids=NAMES)
def test_gradient_in_points_and_images(cost: Any) -> None:
    def gap(x: Tensor, y: Tensor) -> Tensor:
        return monge_gap(x, y, cost=cost, epsilon=0.5, tol=1e-11)

    assert gradcheck(gap, (leaf(X), leaf(Y)), atol=1e-6)


@pytest.mark.parametrize("convention", ["kl", "entropy"])
def test_gradient_in_epsilon(convention: str) -> None:
    eps = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda e: monge_gap(X, Y, epsilon=e, convention=convention, tol=1e-11), (eps,), atol=1e-6)


def test_gradient_of_the_exact_gap() -> None:
    assert gradcheck(lambda x, y: monge_gap(x, y, convention="exact"), (leaf(X), leaf(Y)), atol=1e-6)


def test_both_entropic_conventions_have_one_gradient() -> None:
    y = leaf(Y)
    kl, ent = (torch.autograd.grad(monge_gap(X, y, epsilon=0.2, convention=c), y)[0] for c in ("kl", "entropy"))
    assert torch.equal(kl, ent)


@pytest.mark.parametrize("convention", ["kl", "exact"])
@pytest.mark.parametrize("cost", ["euclidean", Lp(2.0, 0.5), Lp(1.0), Geodesic(), Geodesic(0.5)], ids=str)
def test_points_that_stay_have_a_finite_gradient(cost: Any, convention: str, dtype: torch.dtype) -> None:
    y = X.clone()
    y[3:] += 0.5
    y = leaf(y.to(dtype))
    value = monge_gap(X.to(dtype), y, cost=cost, convention=convention)
    (gradient,) = torch.autograd.grad(value, y)
    assert torch.isfinite(gradient).all()
    same = leaf(X.to(dtype))
    (gradient,) = torch.autograd.grad(monge_gap(X.to(dtype), same, cost=cost, convention=convention), same)
    assert torch.isfinite(gradient).all()


def test_descent_along_it_makes_a_map_optimal() -> None:
    x = cloud(40, 2, 0)
    angle = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([angle], lr=0.05)

    def turned() -> Tensor:
        c, s = angle.cos(), angle.sin()
        return x @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])

    before = exact(x, turned().detach())
    for _ in range(60):
        gap = monge_gap(x, turned(), epsilon=0.05)
        optimizer.zero_grad()
        gap.backward()
        optimizer.step()
    # on so few points it is zero for small angles too
    assert exact(x, turned().detach()) < 1e-3 * before


# -- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:-1]), {}, "y: expected 8 points, the images of those of x, got 7"),
        ((X, Y[:, :1]), {}, "points of one dimension"),
        ((X, Y * math.nan), {}, "finite coordinates"),
        ((X[:0], Y[:0]), {}, "at least one point"),
        ((X, Y), {"epsilon": 0.0}, "epsilon"),
        ((X, Y), {"epsilon": -1.0}, "epsilon"),
        ((X, Y), {"epsilon": None}, "Without one: convention='exact'"),
        ((X, Y), {"convention": "l2"}, "one of 'kl', 'entropy', 'exact'"),
        (([X, X], [Y, Y]), {}, "Call it for each cloud of a list"),
        ((X, Y), {"cost": "nearness"}, "cost"),
    ],
)
def test_bad_input(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        monge_gap(*arguments, **options)


def test_the_module() -> None:
    loss = MongeGap(cost="euclidean", epsilon=Relative(0.05), convention="entropy")
    assert_close(loss(X, Y), monge_gap(X, Y, cost="euclidean", epsilon=Relative(0.05), convention="entropy"))
    assert "convention='entropy'" in repr(loss)
    assert not list(loss.parameters())
