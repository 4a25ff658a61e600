"""Exact solves with soft or partial marginals: by hand, against linear programming and POT, and in their limits."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import ot
import pytest
import torch

import brenier
from brenier import KL, TV, CostMatrix, Exact, Free, Grid, InvalidInput, Marginal, Partial, PointCloud, Slack, Status
from brenier.geometry.bordered import Bordered
from brenier.solvers import NetworkSimplex, PartialMonotone
from brenier.solvers.exact import simplex
from problems import array, assert_close, check_feasible, cloud, rng, weights

ENGINES = [NetworkSimplex(pairs="dense", engine="reference")]
if simplex.native is not None:
    ENGINES += [NetworkSimplex(pairs="dense"), NetworkSimplex(pairs="lazy")]
each_engine = pytest.mark.parametrize("solver", ENGINES, ids=lambda s: f"{s.pairs} {s.engine}")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "fuzz_exact.py"


# -- by hand


@pytest.mark.parametrize("solver", [*ENGINES, PartialMonotone(), PartialMonotone(engine="reference")], ids=repr)
@pytest.mark.parametrize("distance", [0.5, 1.9, 2.1, 7.0])
def test_move_or_pay(solver: NetworkSimplex | PartialMonotone, distance: float) -> None:
    """One point each: the mass moves where that costs less than to give up both ends."""
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), distance, dtype=torch.float64)
    for marginal in (TV(1.0), Slack(1.0)):
        solution = brenier.solve(x, y, cost="euclidean", marginals=marginal, solver=solver)
        assert float(solution.value) == min(distance, 2.0)
        assert float(solution.dual_value) == min(distance, 2.0)
        assert float(solution.plan.row_sums()) == float(distance < 2)
        assert float(solution.certificate.gap) == 0
        assert solution.status is Status.OPTIMAL


@each_engine
def test_mass_may_appear_only_where_the_price_is_for_both_ways(solver: NetworkSimplex) -> None:
    """A heavy source and a light target: TV doubles the target or gives up half of the source, a dustbin the latter."""
    a, b = (torch.tensor([t], dtype=torch.float64) for t in (2.0, 1.0))
    C = torch.tensor([[0.25]], dtype=torch.float64)
    for pair, value, mass in [
        ((TV(3.0), TV(1.0)), 2 * 0.25 + 1.0, 2.0),
        ((TV(1.0), TV(3.0)), 0.25 + 1.0, 1.0),
        ((Exact(), TV(3.0)), 0.5 + 3.0, 2.0),
        ((Slack(3.0), Slack(1.0)), 0.25 + 3.0, 1.0),
        ((Slack(-3.0), Slack(1.0)), -6.0 + 1.0, 0.0),
        ((Partial(0.5), Partial(0.5)), 0.125, 0.5),
        ((Free(), Exact()), 0.25, 1.0),
        ((Free(), Free()), 0.0, 0.0),
    ]:
        solution = brenier.solve(CostMatrix(C), a=a, b=b, marginals=pair, solver=solver)
        assert_close(solution.value, value, 1e-15, what=str(pair))
        assert_close(solution.dual_value, value, 1e-15, what=str(pair))
        assert_close(solution.plan.row_sums(), [mass], 1e-15, what=str(pair))


@each_engine
def test_partial_takes_the_cheapest_pairs(solver: NetworkSimplex) -> None:
    x = torch.tensor([[0.0], [10.0], [20.0]], dtype=torch.float64)
    y = x + torch.tensor([[3.0], [1.0], [2.0]], dtype=torch.float64)
    for k, value in ((1, 1.0), (2, 3.0), (3, 6.0)):
        solution = brenier.solve(x, y, cost="euclidean", marginals=Partial(k / 3), solver=solver)
        assert_close(solution.value, value / 3, 1e-14)
        assert_close(solution.plan.row_sums().sum(), k / 3, 1e-15)


@each_engine
def test_a_free_side_sends_each_row_to_its_nearest(solver: NetworkSimplex) -> None:
    x, y, a = cloud(9, 2, 0), cloud(5, 2, 1), weights(9, 2, zeros=2)
    least, nearest = PointCloud(x, y).cmin(torch.zeros(5, dtype=torch.float64))
    solution = brenier.solve(x, y, a=a, marginals=(Exact(), Free()), solver=solver)
    assert_close(solution.value, (a * least).sum(), 1e-14)
    assert torch.equal(solution.plan.argmax()[:-2], nearest[:-2])
    assert bool((solution.g == 0).all())


# -- limits


@each_engine
def test_large_prices_and_full_masses_are_balanced(solver: NetworkSimplex) -> None:
    x, y, a, b = cloud(20, 2, 0), cloud(15, 2, 1), weights(20, 2), weights(15, 3)
    balanced = brenier.solve(x, y, a=a, b=b)
    for pair in (TV(1e3), Slack(1e3), Partial(1.0), (Exact(), TV(1e3)), (Partial(1.0), Exact()), (Slack(1.0), Exact())):
        solution = brenier.solve(x, y, a=a, b=b, marginals=pair, solver=solver)
        assert_close(solution.value, balanced.value, 1e-12, what=str(pair))
        assert torch.allclose(solution.plan.dense(), balanced.plan.dense(), atol=1e-12)
        assert float(solution.certificate.relative_gap) <= 1e-12


@each_engine
def test_the_value_is_convex_and_monotone_in_the_mass(solver: NetworkSimplex) -> None:
    x, y = cloud(12, 2, 0), cloud(12, 2, 1)
    values = [float(brenier.solve(x, y, marginals=Partial(k / 12), solver=solver).value) for k in range(1, 13)]
    slopes = np.diff(values)
    assert (slopes >= -1e-14).all()
    assert (np.diff(slopes) >= -1e-14).all()


@each_engine
def test_ties_do_not_move_more_than_the_mass(solver: NetworkSimplex) -> None:
    """Equal clouds: more mass would cost nothing more."""
    x = cloud(10, 2, 0)
    for pair in (Partial(0.3), (Partial(0.3), Slack(0.0)), (TV(1e-3), Partial(0.3))):
        solution = brenier.solve(x, x, marginals=pair, solver=solver)
        assert_close(solution.plan.row_sums().sum(), 0.3, 1e-14, what=str(pair))
    solution = brenier.solve(CostMatrix(torch.zeros(3, 3, dtype=torch.float64)), marginals=Partial(0.5), solver=solver)
    assert_close(solution.plan.row_sums().sum(), 0.5, 1e-14)


# -- other programs


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not in this checkout")
    spec = importlib.util.spec_from_file_location("fuzz_exact", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_exact"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("block", range(3))
def test_random_awkward_problems(block: int, fuzz: ModuleType) -> None:
    for number in range(block * 50, (block + 1) * 50):
        instance, wrong = fuzz.check_soft(number, most=12)
        assert not wrong, "\n".join([f"{number}: {instance.name}", *wrong])


KINDS: list[Marginal] = [Exact(), TV(0.4), Slack(0.3), Partial(0.6), Free()]


@each_engine
def test_every_pair_against_linear_programming(solver: NetworkSimplex, fuzz: ModuleType) -> None:
    cost = rng(0).uniform(size=(8, 6))
    a, b = array(weights(8, 1, zeros=1)), array(weights(6, 2, zeros=2))
    for pair in itertools.product(KINDS, KINDS):
        if {type(p) for p in pair} == {Exact, Partial}:
            pair = tuple(Partial(1.0) if isinstance(p, Partial) else p for p in pair)
        instance = fuzz.Instance(str(pair), CostMatrix(torch.from_numpy(cost)), cost, a, b, False)
        marginals = (pair[0], pair[1])
        solution = brenier.solve(
            instance.geometry, a=torch.from_numpy(a), b=torch.from_numpy(b), marginals=marginals, solver=solver
        )
        found = fuzz.soft_faults(instance, marginals, solution, fuzz.soft_optimum(instance, marginals))
        assert not found, f"{pair}: {found}"


@each_engine
@pytest.mark.parametrize("mass", [0.2, 0.75])
def test_partial_agrees_with_pot(solver: NetworkSimplex, mass: float) -> None:
    x, y, a, b = cloud(14, 2, 0), cloud(11, 2, 1), weights(14, 2), weights(11, 3)
    cost = ot.dist(array(x), array(y))
    reference = ot.partial.partial_wasserstein(array(a), array(b), cost, m=mass)
    solution = brenier.solve(x, y, a=a, b=b, marginals=Partial(mass), solver=solver)
    assert_close(solution.value, (reference * cost).sum(), 1e-9)


@each_engine
def test_a_dustbin_agrees_with_pot(solver: NetworkSimplex) -> None:
    """What POT calls the Lagrangian: each unit that moves earns reg_m."""
    x, y, a, b = cloud(14, 2, 0), cloud(11, 2, 1), weights(14, 2), weights(11, 3)
    cost = ot.dist(array(x), array(y))
    for price in (0.5, 2.0, 6.0):
        reference = ot.partial.partial_wasserstein_lagrange(array(a), array(b), cost, reg_m=price)
        value = (reference * cost).sum() + price * (1 - reference.sum())
        solution = brenier.solve(x, y, a=a, b=b, marginals=Slack(price / 2), solver=solver)
        assert_close(solution.value, value, 1e-9)


@pytest.mark.filterwarnings("ignore:.*disp:DeprecationWarning")
def test_no_worse_than_the_descent_of_pot() -> None:
    """POT's total variation is by L-BFGS on a kinked objective, which ends above the optimum."""
    x, y = cloud(12, 2, 0), cloud(9, 2, 1)
    a, b = np.full(12, 1 / 12), np.full(9, 1 / 9)
    cost = ot.dist(array(x), array(y))
    for rho in (0.2, 1.0):
        P = ot.unbalanced.lbfgsb_unbalanced(a, b, cost, 0.0, rho, regm_div="tv")
        value = (P * cost).sum() + rho * (abs(P.sum(1) - a).sum() + abs(P.sum(0) - b).sum())
        ours = float(brenier.solve(x, y, marginals=TV(rho)).value)
        assert 0.85 * value <= ours <= value + 1e-9


# -- what else comes back


@each_engine
def test_batches_kinds_and_scales(solver: NetworkSimplex) -> None:
    costs = torch.from_numpy(rng(0).uniform(size=(2, 3, 6, 5)))
    a, b = weights(6, 1, 2, 3), 1.5 * weights(5, 2, 3)
    rho = torch.from_numpy(rng(3).uniform(0.1, 0.5, size=(2, 3, 1)))
    mass = torch.from_numpy(rng(4).uniform(0.1, 0.9, size=(2, 3)))
    for make in (lambda i: (TV(rho[i]), Slack(0.3)), lambda i: (Partial(mass[i]), TV(0.2))):
        together = brenier.solve(CostMatrix(costs), a=a, b=b, marginals=make(...), solver=solver)
        for i in np.ndindex(2, 3):
            alone = brenier.solve(CostMatrix(costs[i]), a=a[i], b=b[i[1]], marginals=make(i), solver=solver)
            assert_close(together.value[i], alone.value, 1e-12)
            assert_close(together.f[i], alone.f, 1e-12, 1e-12)
    single = brenier.solve(CostMatrix(costs.float()), a=a.float(), b=b.float(), marginals=TV(0.2), solver=solver)
    double = brenier.solve(CostMatrix(costs), a=a, b=b, marginals=TV(0.2), solver=solver)
    assert single.value.dtype == torch.float32
    assert_close(single.value, double.value, 1e-5)
    tiny = brenier.solve(CostMatrix(costs), a=1e-200 * a, b=1e-200 * b, marginals=TV(0.2), solver=solver)
    assert_close(1e200 * tiny.value, double.value, 1e-12)


@each_engine
def test_new_points_know_the_prices(solver: NetworkSimplex) -> None:
    x, y = cloud(12, 2, 0), cloud(9, 2, 1)
    for pair in (TV(0.4), Slack(0.3), (Exact(), Free())):
        solution = brenier.solve(x, y, marginals=pair, solver=solver)
        f, _ = solution.potentials
        assert torch.allclose(solution.potentials(x), f, atol=1e-12)
    with pytest.raises(InvalidInput, match="potentials at new points"):
        brenier.solve(x, y, marginals=Partial(0.5), solver=solver).potentials(x)


def test_auto_takes_the_simplex_and_says_why() -> None:
    x, y = cloud(6, 2, 0), cloud(5, 2, 1)
    solution = brenier.solve(x, y, marginals=TV(1.0))
    assert solution.stats["solver"] == "network-simplex"
    assert "virtual" in solution.stats["reason"]
    with pytest.raises(InvalidInput, match="not piecewise linear"):
        brenier.solve(x, y, marginals=(TV(1.0), KL(1.0)))


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
@pytest.mark.parametrize("pair", [TV(0.02), Partial(0.7), Slack(0.01), (Partial(0.5), TV(0.02))], ids=str)
def test_lazy_and_dense_agree_on_many_points(pair: Any) -> None:
    x, y, a, b = cloud(700, 2, 0), cloud(600, 2, 1), weights(700, 2, zeros=5), 1.2 * weights(600, 3)
    dense, lazy = (brenier.solve(x, y, a=a, b=b, marginals=pair, solver=NetworkSimplex(pairs=p))
                   for p in ("dense", "lazy"))  # fmt: skip
    assert lazy.stats["pairs"] == "lazy"
    assert_close(lazy.value, dense.value, 1e-12)
    assert_close(lazy.plan.row_sums().sum(), dense.plan.row_sums().sum(), 1e-9)
    for solution in (dense, lazy):
        assert float(solution.certificate.relative_gap) <= 1e-12
        check_feasible(solution.f, solution.g, array(PointCloud(x, y).tile()), 1e-12)


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
def test_images_lazily() -> None:
    a, b = (torch.from_numpy(rng(k).uniform(size=144)) for k in range(2))
    a, b = a / a.sum(), b / b.sum()
    lazy = brenier.solve(Grid(12, 12), a=a, b=b, marginals=Partial(0.6), solver=NetworkSimplex(pairs="lazy"))
    dense = brenier.solve(CostMatrix(Grid(12, 12).tile()), a=a, b=b, marginals=Partial(0.6))
    assert_close(lazy.value, dense.value, 1e-12)


def test_a_stopped_solve_has_a_plan_and_a_true_gap() -> None:
    x, y = cloud(300, 2, 0), cloud(300, 2, 1)
    best = float(brenier.solve(x, y, marginals=TV(0.5)).value)
    for solver in ENGINES[1:]:
        with pytest.warns(brenier.NotConvergedWarning):
            solution = brenier.solve(x, y, marginals=TV(0.5), solver=solver, max_iter=3)
        c = solution.certificate
        assert float(c.dual) <= best + 1e-12
        assert float(c.primal) >= best - 1e-12
        assert torch.isfinite(c.dual)


# -- gradients


GRADIENTS: list[tuple[Any, torch.Tensor]] = [
    (lambda t: (TV(t), TV(0.3)), torch.tensor(0.2)),
    (lambda t: (TV(t), Exact()), torch.linspace(0.1, 0.4, 6)),
    (lambda t: (Slack(t), Slack(0.1)), torch.tensor(0.15)),
    (lambda t: (Slack(t), Free()), torch.linspace(0.1, 0.4, 6)),
    (lambda t: (Partial(t), Partial(t)), torch.tensor(0.437)),
    (lambda t: (Partial(t), TV(0.4)), torch.tensor(0.437)),
    (lambda t: (Exact(), TV(t)), torch.tensor(0.31)),
]


@each_engine
@pytest.mark.parametrize(("make", "start"), GRADIENTS)
def test_gradients(make: Any, start: torch.Tensor, solver: NetworkSimplex) -> None:
    """The value is piecewise linear in masses, costs and prices: differences are exact within a piece."""
    C, a, b = torch.from_numpy(rng(0).uniform(size=(6, 5))), weights(6, 1), 1.1 * weights(5, 2)

    def value(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return brenier.solve(CostMatrix(C), a=a, b=b, marginals=make(t), solver=solver).value

    leaves = [t.double().clone().requires_grad_() for t in (C, a, b, start)]
    gradients = torch.autograd.grad(value(*leaves), leaves, materialize_grads=True)
    for k, (leaf, gradient) in enumerate(zip(leaves, gradients)):
        step = 1e-6 * torch.from_numpy(np.asarray(rng(k + 9).normal(size=tuple(leaf.shape))))
        ends = []
        for sign in (1, -1):
            moved = [t.detach() for t in leaves]
            moved[k] = moved[k] + sign * step
            ends.append(float(value(*moved)))
        assert float((gradient * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, abs=1e-13)


# -- the bordered cost


def test_a_bordered_cost_is_its_matrix() -> None:
    x, y, r = cloud(7, 2, 0), cloud(5, 2, 1), rng(2)
    below, right, corner = (torch.from_numpy(r.normal(size=s)) for s in ((2, 5), (7, 1), (2, 1)))
    geometry = Bordered(PointCloud(x, y), below, right, corner)
    C = torch.cat([torch.cat([PointCloud(x, y).tile(), right], 1), torch.cat([below, corner], 1)])
    rows, cols = torch.from_numpy(r.permutation(9)[:6]), torch.from_numpy(r.permutation(6)[:4])
    views = [
        (geometry, C),
        (geometry.T, C.T),
        (geometry.part(rows, cols), C[rows][:, cols]),
        (geometry.part(rows, cols).T, C[rows][:, cols].T),
        (geometry.part(slice(1, 3), slice(0, 4)), C[1:3, :4]),
        (geometry.part(torch.tensor([8, 7]), cols), C[[8, 7]][:, cols]),
        (geometry.part(rows, torch.tensor([5])), C[rows][:, [5]]),
    ]
    for part, matrix in views:
        assert tuple(part.shape) == tuple(matrix.shape)
        assert torch.allclose(part.tile(), matrix, atol=1e-14)
        for dim in (0, 1):
            h = torch.from_numpy(r.normal(size=matrix.shape[dim]))
            values, index = part.cmin(h, dim)
            expected, at = (matrix - (h if dim else h.unsqueeze(-1))).min(dim)
            assert torch.allclose(values, expected, atol=1e-14)
            assert torch.equal(index, at)
        i, j = (torch.from_numpy(r.integers(0, k, 20)) for k in matrix.shape)
        assert torch.allclose(part.cost_at(i, j), matrix[i, j], atol=1e-14)
        assert torch.allclose(part.softmin(torch.zeros(matrix.shape[1], dtype=torch.float64), 0.5),
                              -0.5 * torch.logsumexp(-matrix / 0.5, 1), atol=1e-12)  # fmt: skip


@pytest.mark.parametrize("swapped", [False, True])
def test_rounding_of_the_costs_does_not_cost_the_bound_where_all_potentials_are_zero(swapped: bool) -> None:
    turn = 2 * torch.pi * torch.arange(27, dtype=torch.float64) / 27
    x = torch.stack([turn.cos(), turn.sin()], 1)  # distances to themselves are rounded to -2e-16
    pair = (Free(), TV(0.4)) if swapped else (TV(0.4), Free())
    solution = brenier.solve(x, x.clone(), a=weights(27, 0), b=weights(27, 1), marginals=pair)
    assert float(solution.certificate.primal) == 0
    assert abs(float(solution.certificate.dual)) < 1e-15
