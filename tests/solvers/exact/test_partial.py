"""Partial and unbalanced transport on the line: by hand, against the simplex, along the path, in its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import brenier
from brenier import TV, Exact, Free, InvalidInput, Marginal, Partial, PointCloud, Slack
from brenier.costs import Arc, CallableCost, Lp, Mahalanobis
from brenier.losses import line_cost, partial_line_cost, partial_line_path, partial_wasserstein
from brenier.solvers import NetworkSimplex, PartialMonotone
from brenier.solvers.exact.partial import native
from problems import array, assert_close, check_feasible, cloud, rng, weights

ENGINES = [PartialMonotone(engine="reference")]
if native is not None:
    ENGINES += [PartialMonotone(engine="native")]
each_engine = pytest.mark.parametrize("solver", ENGINES, ids=lambda s: s.engine)
Pair = Marginal | tuple[Marginal, Marginal]


def line(kind: str, n: int, seed: int, *batch: int) -> Tensor:
    if kind == "ties":
        return torch.from_numpy(rng(seed).integers(0, 5, (*batch, n, 1)).astype(float))
    x = cloud(n, 1, seed, *batch)
    if kind == "clusters":  # so far apart that what is between must not cost the small ones their digits
        x = x + 1e4 * torch.from_numpy(rng(seed + 99).integers(-1, 2, (*batch, n, 1)).astype(float))
    return x


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def pairs(n: int, m: int, seed: int) -> list[Pair]:
    """What the marginals may be between n and m units, at random."""
    few, r = min(n, m), rng(seed)
    rho, delta, other = r.uniform(0.05, 2.0, 3)
    mass = float(r.integers(1, few + 1))
    out: list[Pair] = [TV(rho), Slack(delta), (Slack(delta), Slack(other)), (Slack(-0.1), Slack(other))]
    out += [Partial(mass), Partial(float(r.uniform(0.1, few))), (Partial(mass), Slack(delta))]
    out += [(Slack(delta), Partial(mass)), (TV(rho), Slack(rho / 2)), Partial(float(few))]
    if n <= m:
        out += [(Exact(), Slack(delta)), (Exact(), Partial(float(n)))]
    return out


# -- by hand


@each_engine
def test_partial_takes_the_cheapest_pairs(solver: PartialMonotone) -> None:
    x = torch.tensor([[0.0], [10.0], [20.0]], dtype=torch.float64)
    y = x + torch.tensor([[3.0], [1.0], [2.0]], dtype=torch.float64)
    for k, value in ((0.5, 0.5), (1, 1.0), (1.5, 2.0), (2, 3.0), (2.25, 3.75), (3, 6.0)):
        solution = brenier.solve(x, y, cost="euclidean", marginals=Partial(k / 3), solver=solver)
        assert_close(solution.value, value / 3, 1e-14)
        assert_close(solution.plan.row_sums().sum(), k / 3, 1e-15)


@each_engine
def test_a_new_pair_moves_those_between(solver: PartialMonotone) -> None:
    """Two x at 0 and 1, two y at 1 and 2: first 1 stays where it is, then both move by one."""
    x, y = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[2.0], [1.0]]).double()
    one = brenier.solve(x, y, a=ones(2), b=ones(2), marginals=Partial(1.0), solver=solver)
    two = brenier.solve(x, y, a=ones(2), b=ones(2), marginals=Partial(2.0), solver=solver)
    half = brenier.solve(x, y, a=ones(2), b=ones(2), marginals=Partial(1.5), solver=solver)
    assert one.plan.dense().tolist() == [[0, 0], [0, 1]]
    assert two.plan.dense().tolist() == [[0, 1], [1, 0]]
    assert half.plan.dense().tolist() == [[0, 0.5], [0.5, 0.5]]
    assert [float(s.value) for s in (one, half, two)] == [0.0, 1.0, 2.0]


# -- against the simplex


@pytest.mark.parametrize("kind", ["normal", "ties", "clusters"])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", Lp(2, 1.5), Mahalanobis(torch.tensor([[2.5]]))], ids=str)
def test_against_the_simplex(kind: str, cost: Any) -> None:
    """Some thousand instances, in batches of ten: values, feasible plans and potentials, and both bounds."""
    for seed, (n, m) in enumerate([(4, 4), (3, 6)] if kind == "normal" else [(5, 3), (6, 6)]):
        x, y, a, b = line(kind, n, seed, 10), line(kind, m, seed + 50, 10), ones(n), ones(m)
        dense = array(PointCloud(x, y, cost).tile())
        for pair in pairs(n, m, seed):
            problem: dict[str, Any] = {"a": a, "b": b, "cost": cost, "marginals": pair}
            truth = brenier.solve(x, y, **problem, solver=NetworkSimplex(pairs="dense")).value
            for solver in ENGINES:
                what = f"{n} {m} {pair} {solver.engine}"
                found = brenier.solve(x, y, **problem, solver=solver)
                assert_close(found.value, truth, 1e-10, 1e-10, what)
                assert_close(found.dual_value, truth, 1e-10, 1e-10, what)
                proof = found.certificate
                assert bool((proof.gap <= 1e-10 * proof.scale.clamp(min=1)).all()), what
                assert all(float(error.max()) <= 1e-12 for error in proof.marginal_errors), what
                check_feasible(found.f, found.g, dense, 1e-12)
                P = array(found.plan.dense())
                assert (P >= 0).all(), what
                assert max(P.sum(-1).max(), P.sum(-2).max()) <= 1 + 1e-12, what


@each_engine
def test_the_path_is_convex(solver: PartialMonotone) -> None:
    x, y = cloud(12, 1, 0), cloud(9, 1, 1)
    path = partial_line_path(x.squeeze(-1), y.squeeze(-1))
    assert bool((path.prices.diff() >= -1e-14).all())
    for k in range(1, 10):
        solution = brenier.solve(x, y, a=ones(12), b=ones(9), marginals=Partial(float(k)), solver=solver)
        assert_close(path.costs[k - 1], solution.value, 1e-12)
        assert torch.equal(path.step_x <= k, solution.plan.row_sums() > 0)
        assert torch.equal(path.step_y <= k, solution.plan.col_sums() > 0)
    for rho in (0.01, 0.1, 1.0, 10.0):  # the point of the path where the price passes that of two points
        k = int((path.prices < 2 * rho).sum())
        solution = brenier.solve(x, y, a=ones(12), b=ones(9), marginals=TV(rho), solver=solver)
        assert float(solution.plan.row_sums().sum()) == k
        assert_close(solution.value, float(path.costs[k - 1]) + rho * (12 + 9 - 2 * k), 1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_against_pot(p: int) -> None:
    x, y = cloud(40, 1, 0).squeeze(-1), cloud(30, 1, 1).squeeze(-1)
    path = partial_line_path(x, y, cost=p)
    _, _, prices = ot.partial.partial_wasserstein_1d(array(x), array(y), p=p)
    assert_close(path.prices, np.array(prices), 1e-10)
    plan = ot.partial.partial_wasserstein(np.ones(40), np.ones(30), abs(array(x)[:, None] - array(y)) ** p, m=17)
    assert_close(path.costs[16], (plan * abs(array(x)[:, None] - array(y)) ** p).sum(), 1e-10)


# -- limits


@each_engine
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_large_prices_and_full_masses_are_balanced(solver: PartialMonotone, cost: str) -> None:
    x, y = cloud(20, 1, 0), cloud(20, 1, 1)
    balanced = brenier.solve(x, y, cost=cost)
    assert balanced.stats["solver"] == "monotone"
    for pair in (TV(1e3), TV(1e12), Slack(1e3), Partial(1.0), (Exact(), Partial(1.0)), (Slack(1.0), Exact())):
        solution = brenier.solve(x, y, cost=cost, marginals=pair, solver=solver)
        assert_close(solution.value, balanced.value, 1e-12, what=str(pair))
        assert_close(solution.dual_value, balanced.value, 1e-11, what=str(pair))
        assert float(solution.certificate.relative_gap) <= 1e-11, pair
        assert bool((solution.plan.row_sums() > 0).all())


@each_engine
def test_prices_of_nothing_move_nothing(solver: PartialMonotone) -> None:
    x, y = cloud(5, 1, 0), cloud(5, 1, 1)
    nothing: list[tuple[Pair, float]] = [(Slack(0.0), 0.0), (TV(1e-9), 2e-9), ((Slack(-1.0), Slack(0.5)), -0.5)]
    for pair, value in nothing:
        solution = brenier.solve(x, y, marginals=pair, solver=solver)
        assert float(solution.plan.row_sums().sum()) == 0
        assert_close(solution.value, value, 1e-12)
        assert_close(solution.dual_value, value, 1e-12)
        assert float(solution.certificate.gap) <= 1e-15
    same = brenier.solve(x, x, marginals=Slack(0.0), solver=solver)  # a pair that is worth nothing is left
    assert float(same.plan.row_sums().sum()) == 0


# -- what else comes back


@each_engine
def test_a_batch_is_a_loop(solver: PartialMonotone) -> None:
    x, y = cloud(7, 1, 0, 2, 3), cloud(5, 1, 1, 3)
    rho = torch.from_numpy(rng(2).uniform(0.02, 0.5, size=(2, 3, 1)))
    mass = torch.from_numpy(rng(3).uniform(0.5, 5.0, size=(2, 3)))
    scale = torch.from_numpy(rng(4).uniform(0.5, 2.0, size=(2, 3, 1)))
    a, b = scale.expand(2, 3, 7), scale.expand(2, 3, 5)
    for make in (lambda i: TV(rho[i]), lambda i: (Slack(0.1), Slack(rho[i])), lambda i: Partial(mass[i] / 2)):
        together = brenier.solve(x, y, a=a, b=b, marginals=make(...), solver=solver)
        assert bool((together.certificate.gap <= 1e-12).all())
        for i in np.ndindex(2, 3):
            alone = brenier.solve(x[i], y[i[1]], a=a[i], b=b[i], marginals=make(i), solver=solver)
            assert_close(together.value[i], alone.value, 1e-12)
            assert_close(together.f[i], alone.f, 1e-12, 1e-12)
            assert_close(together.g[i], alone.g, 1e-12, 1e-12)
            assert_close(together.plan.dense()[i], alone.plan.dense(), 1e-14)


@each_engine
def test_dtypes_and_scales(solver: PartialMonotone) -> None:
    x, y = cloud(30, 1, 0), cloud(30, 1, 1)
    double = brenier.solve(x, y, marginals=TV(0.02), solver=solver)
    single = brenier.solve(x.float(), y.float(), marginals=TV(0.02), solver=solver)
    assert single.value.dtype == torch.float32
    assert_close(single.value, double.value, 1e-5)
    assert float(single.certificate.relative_gap) <= 1e-12
    part = brenier.solve(x.float(), y.float(), marginals=Partial(0.5), solver=solver)
    assert_close(part.plan.row_sums().sum(), 0.5, 1e-12)  # also where weights are rounded
    assert float(part.certificate.relative_gap) <= 1e-9
    tiny = brenier.solve(1e-90 * x, 1e-90 * y, marginals=TV(0.02e-180), solver=solver)
    assert_close(1e180 * tiny.value, double.value, 1e-12)
    light = brenier.solve(x, y, a=1e-200 * ones(30), b=1e-200 * ones(30), marginals=TV(0.02), solver=solver)
    assert_close(1e200 / 30 * light.value, double.value, 1e-12)


@each_engine
def test_many_points_are_proved(solver: PartialMonotone) -> None:
    x, y = cloud(1500, 1, 0), cloud(1500, 1, 1) + 0.5
    for cost in ("sqeuclidean", "euclidean"):
        for pair in (TV(0.05), Partial(0.61803)):
            solution = brenier.solve(x, y, cost=cost, marginals=pair, solver=solver)
            assert float(solution.certificate.relative_gap) <= 1e-12
            assert solution.stats["engine"] == solver.engine


@each_engine
def test_new_points_know_the_prices(solver: PartialMonotone) -> None:
    x, y = cloud(12, 1, 0), cloud(12, 1, 1)
    for pair in (TV(0.4), Slack(0.3)):
        solution = brenier.solve(x, y, marginals=pair, solver=solver)
        f, _ = solution.potentials
        assert torch.allclose(solution.potentials(x), f, atol=1e-12)


# -- gradients


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("make", [Partial, TV, Slack])
def test_gradients(make: Callable[[Any], Marginal], p: float) -> None:
    x, y = (cloud(n, 1, k).squeeze(-1).requires_grad_() for n, k in ((7, 0), (5, 1)))
    price = torch.tensor(0.3 if make is not Partial else 2.4, dtype=torch.float64, requires_grad=make is not Partial)

    def loss(x: Tensor, y: Tensor, price: Tensor) -> Tensor:
        return partial_line_cost(x, y, ones(7), ones(5), cost=p, marginals=make(price))

    def solved(x: Tensor, y: Tensor, price: Tensor) -> Tensor:
        value: Tensor = brenier.solve(x, y, a=ones(7), b=ones(5), cost=Lp(2, p), marginals=make(price)).value
        return value

    assert brenier.solve(x, y, a=ones(7), b=ones(5), marginals=make(price)).stats["solver"] == "partial-monotone"
    assert gradcheck(loss, (x, y, price))
    assert gradcheck(solved, (x, y, price.detach().requires_grad_()))


def test_the_function_is_the_solver() -> None:
    x, y = cloud(9, 1, 0, 2, 3), cloud(6, 1, 1, 3)
    for p, cost in ((1.0, "euclidean"), (2.0, "sqeuclidean"), (1.5, Lp(2, 1.5))):
        for pair in (*pairs(9, 6, 0), TV(torch.tensor([[[0.1], [0.2], [0.3]]]).double())):
            solution = brenier.solve(x, y, a=ones(9), b=ones(6), cost=cost, marginals=pair)
            assert solution.stats["solver"] == "partial-monotone", pair
            value = partial_line_cost(x.squeeze(-1), y.squeeze(-1), ones(9), ones(6), cost=p, marginals=pair)
            assert_close(value, solution.value, 1e-12)
    assert partial_line_cost(x[..., 0].float(), x[..., 0].float(), marginals=TV(1.0)).dtype == torch.float32
    assert_close(partial_line_cost(x[..., 0], x[..., 0] + 1, marginals=Exact()), line_cost(x[..., 0], x[..., 0] + 1))


def test_the_partial_loss_takes_it() -> None:
    x, y = cloud(40, 1, 0), cloud(40, 1, 1)
    value = partial_line_cost(x.squeeze(-1), y.squeeze(-1), marginals=Partial(0.7))
    assert_close(partial_wasserstein(x, y, mass=0.7), value, 1e-12)


# -- what is taken


def test_auto_takes_it_and_says_why() -> None:
    x, y = cloud(6, 1, 0), cloud(6, 1, 1)
    solution = brenier.solve(x, y, marginals=TV(1.0))
    assert solution.stats["solver"] == "partial-monotone"
    assert "grows pair by pair" in solution.stats["reason"]

    def solver(x: Tensor, y: Tensor, **options: Any) -> str:
        name: str = brenier.solve(x, y, **options).stats["solver"]
        return name

    uneven = torch.tensor([0.5, 1.0, 1.5, 1.0, 1.0, 1.0]).double()
    for other in (
        {"a": weights(6, 2), "marginals": TV(1.0)},
        {"a": 2 * ones(6), "b": ones(6), "marginals": Partial(1.0)},
        {"marginals": (TV(1.0), TV(2.0))},
        {"marginals": TV(uneven)},
        {"marginals": (TV(1.0), Slack(2.0))},  # mass that appears for 1 may serve what would stay for 2
        {"marginals": (Exact(), TV(1.0))},
        {"marginals": (Free(), Slack(1.0))},
        {"marginals": Partial(0.5), "cost": "dot"},
        {"marginals": Partial(0.5), "cost": CallableCost(lambda u, v: (u - v - 1).square().sum(-1), True)},
        {"marginals": Partial(0.5), "cost": Lp(2, 0.5)},
        {"marginals": Partial(0.5), "cost": Arc()},
    ):
        assert solver(x, y, **other) == "network-simplex", other
    assert solver(x, y[:5], marginals=Partial(0.5)) == "network-simplex"
    assert solver(cloud(6, 2, 0), cloud(6, 2, 1), marginals=TV(1.0)) == "network-simplex"


def test_bad_input() -> None:
    x, y, solver = cloud(6, 1, 0), cloud(5, 1, 1), PartialMonotone()
    flat = x.squeeze(-1)
    for call, message in (
        (lambda: PartialMonotone(engine="gpu"), "engine: expected"),
        (lambda: brenier.solve(x, x, epsilon=1.0, marginals=TV(1.0), solver=solver), "expected epsilon=None"),
        (lambda: brenier.solve(cloud(6, 2, 0), cloud(6, 2, 0), marginals=TV(1.0), solver=solver), "points on a line"),
        (lambda: brenier.solve(x, y, marginals=TV(1.0), solver=solver), "points of one mass, the same on both sides"),
        (lambda: brenier.solve(x, x, marginals=Free(), solver=solver), "expected Partial, or TV or Slack with one"),
        (lambda: brenier.solve(x, x, cost="dot", marginals=TV(1.0), solver=solver), "with p >= 1, got"),
        (lambda: brenier.solve(1e200 * x, x, marginals=Partial(0.5), solver=solver), "cost: expected finite values"),
        (lambda: partial_line_cost(flat, flat, cost=0.5, marginals=TV(1.0)), "with p >= 1, got"),
        (lambda: partial_line_cost(flat, flat, marginals=Partial(2.0)), "Partial mass: expected at most the total"),
        (lambda: partial_line_cost(torch.tensor(1.0), flat, marginals=TV(1.0)), "x: expected positions of shape"),
        (lambda: partial_line_path(flat, flat, cost="dot"), "cost: expected a power >= 1"),
        (lambda: partial_line_path(flat, flat.float()), "expected one dtype"),
    ):
        with pytest.raises(InvalidInput, match=message):
            call()
