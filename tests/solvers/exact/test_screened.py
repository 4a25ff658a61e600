"""Exact transport on costs of float32 and bounds on what these are off by: the same answers as on costs of float64."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import brenier
from brenier import PointCloud, Status
from brenier.costs import Mahalanobis
from brenier.kernels import simplex
from brenier.kernels.build import native
from brenier.solvers import NetworkSimplex
from brenier.solvers.exact import screened as module
from brenier.solvers.exact.screened import screened

pytestmark = pytest.mark.skipif(native is None, reason="native engine not built")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(module, "_DIMENSIONS", 1)
    monkeypatch.setattr(module, "_PAIRS", 1)


def problem(kind, n, m, d, seed):
    rng = np.random.default_rng(seed)
    if kind == "grid":  # ties
        x, y = rng.integers(0, 4, (n, d)).astype(float), rng.integers(0, 4, (m, d)).astype(float)
    else:
        x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    if kind == "twins":
        y[: min(n, m) // 2] = x[: min(n, m) // 2]
    if kind == "far":
        x, y = x + 1e5, y + 1e5
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    if kind == "zeros":
        a[: n // 3], b[: m // 4] = 0, 0
        a, b = a / a.sum(), b / b.sum()
    if kind == "equal":
        a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    return torch.from_numpy(x), torch.from_numpy(y), a, b


def check(geometry, a, b, result):
    """The marginals, and the duals over all pairs of the costs themselves: a proof of optimality."""
    cost = geometry.cost_at(*torch.meshgrid(*map(torch.arange, geometry.shape), indexing="ij")).numpy()
    atol = 1e-12 * max(1.0, np.abs(cost).max())
    assert (result.mass > 0).all()
    for ends, mass in ((result.rows, a), (result.cols, b)):
        np.testing.assert_allclose(np.bincount(ends, result.mass, len(mass)), mass, rtol=0, atol=1e-14)
    slack = cost - result.f[:, None] - result.g
    assert slack.min() >= -atol
    assert np.abs(slack[result.rows, result.cols]).max() <= atol
    return float(cost[result.rows, result.cols] @ result.mass)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "dot", Mahalanobis(2 * torch.eye(12).double())])
@pytest.mark.parametrize("kind", ["normal", "grid", "twins", "far", "zeros", "equal"])
def test_the_plan_is_proved_on_the_costs_themselves(kind, cost):
    for seed, (n, m) in enumerate([(30, 30), (7, 45), (60, 20), (1, 5)]):
        x, y, a, b = problem(kind, n, m, 12, seed)
        geometry = PointCloud(x, y, cost)
        result = screened(geometry, a, b)
        if kind == "far" and result is None:  # inner products of points far from zero have no digits to spare
            assert cost in ("dot", "cosine")
            continue
        assert result is not None
        assert result.optimal
        value = check(geometry, a, b, result)
        plain = simplex.network_simplex(geometry.tile().contiguous().numpy(), a, b)
        assert value == pytest.approx(float(plain.f @ a + plain.g @ b), rel=1e-12, abs=1e-12)


def test_duals_that_move_far_are_looked_at_again():
    """Points 10,000 times as far out as the others, on a line: errors of their costs are as large as others."""
    for seed in range(500):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 1)), rng.normal(size=(25, 1))
        x[rng.integers(2)] *= 1e4
        y[rng.integers(25)] *= 1e4
        a, b = rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(25))
        geometry = PointCloud(*map(torch.from_numpy, (x, y)), "euclidean")
        result = screened(geometry, a, b)
        if result is not None:
            check(geometry, a, b, result)


def test_a_permutation():
    x, y, *_ = problem("equal", 200, 200, 40, 3)
    solution = brenier.solve(x, y, solver=NetworkSimplex())
    cost = PointCloud(x, y).tile().numpy()
    assert solution.status is Status.OPTIMAL
    assert float(solution.value) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-13)
    assert solution.certificate.gap <= 1e-13


def test_few_costs_are_taken_anew(monkeypatch):
    """A few for each point, and hardly any pivots after the first solve."""
    taken, solves = [], []
    exactly, solve = module.costs_of_pairs, simplex.network_simplices
    monkeypatch.setattr(module, "costs_of_pairs", lambda *args: taken.append(len(args[1])) or exactly(*args))
    monkeypatch.setattr(simplex, "network_simplices", lambda *a, **k: solves.append(solve(*a, **k)) or solves[-1])
    x, y, a, b = problem("normal", 600, 500, 300, 4)
    result = screened(PointCloud(x, y), a, b)
    assert sum(taken) < 5 * (600 + 500)
    assert 2 <= len(solves) <= 4
    assert int(sum(s.n_iter[0] for s in solves[1:])) < 0.05 * int(solves[0].n_iter[0])
    assert result.n_iter == int(sum(s.n_iter[0] for s in solves))


def test_where_float32_tells_too_little():
    """Differences of 1e-4 between points of size 1e3: all reduced costs are within the bounds."""
    rng = np.random.default_rng(5)
    x, y = (torch.from_numpy(rng.choice([-1e3, 1e3], (300, 1)) + 1e-4 * rng.normal(size=(300, 64))) for _ in range(2))
    a, b = rng.dirichlet(np.ones(300)), rng.dirichlet(np.ones(300))
    assert screened(PointCloud(x, y), a, b) is None
    solution = brenier.solve(x, y, a=a, b=b, solver=NetworkSimplex())
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.gap <= 1e-12 * solution.value


def test_a_stopped_solve_has_feasible_duals(monkeypatch):
    """In the first solve, at once, and in the second, on costs of which only some are in float64."""
    x, y, a, b = problem("normal", 300, 300, 12, 6)
    geometry, solves, solve = PointCloud(x, y), [], simplex.network_simplices
    monkeypatch.setattr(simplex, "network_simplices", lambda *a, **k: solves.append(1) or solve(*a, **k))
    for last in (1, 2):
        solves.clear()
        monkeypatch.setattr(module, "time_is_up", lambda last=last: len(solves) == last)
        result = screened(geometry, a, b)
        assert len(solves) == last
        assert not result.optimal
        slack = geometry.cost_at(*torch.meshgrid(*map(torch.arange, geometry.shape), indexing="ij")).numpy()
        slack = slack - result.f[:, None] - result.g
        assert -1e-12 <= slack.min() < 1e-4
        np.testing.assert_allclose(np.bincount(result.rows, result.mass, 300), a, rtol=0, atol=1e-14)


def test_it_serves_clouds_of_many_dimensions_only(monkeypatch):
    monkeypatch.undo()
    x, y, a, b = problem("normal", 40, 40, 300, 7)
    assert screened(PointCloud(x, y), a, b) is None  # few pairs
    monkeypatch.setattr(module, "_PAIRS", 1)
    assert screened(PointCloud(x, y), a, b) is not None
    assert screened(PointCloud(x[:, :255], y[:, :255]), a, b) is None
    assert screened(PointCloud(x, y, "cityblock"), a, b) is None
    assert screened(brenier.CostMatrix(PointCloud(x, y).tile()), a, b) is None
