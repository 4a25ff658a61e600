"""Laws of optimal transport that hold whatever the data, on examples drawn by Hypothesis."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import brenier
from brenier import CostMatrix, Solution
from problems import array, assert_close, check_encloses, check_feasible, lp_value, rng

seeds = st.integers(0, 2**16)
sizes = st.integers(1, 7)
epsilons = st.sampled_from([None, 0.3, 3.0])
costs = st.sampled_from(["sqeuclidean", "euclidean", "cityblock"])


def _draw(seed: int, n: int, m: int, d: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clouds on a coarse lattice (so that ties and duplicates are common), with some zero weights."""
    r = rng(seed)
    x, y = (torch.from_numpy(r.integers(-4, 5, size=(k, d)) / 4) for k in (n, m))
    a, b = (r.integers(0, 4, size=k).astype(float) for k in (n, m))
    a[0] += 1
    b[-1] += 1
    return x, y, torch.from_numpy(a / a.sum()), torch.from_numpy(b / b.sum())


def _solve(x: Any, y: Any = None, **options: Any) -> Solution:
    if options.get("epsilon") is not None:
        options |= {"tol": 1e-9, "max_iter": 100_000}
    return brenier.solve(x, y, **options)


@given(seeds, sizes, sizes, epsilons, costs)
def test_swapping_the_measures(seed: int, n: int, m: int, epsilon: float | None, cost: str) -> None:
    x, y, a, b = _draw(seed, n, m)
    there = _solve(x, y, a=a, b=b, epsilon=epsilon, cost=cost)
    back = _solve(y, x, a=b, b=a, epsilon=epsilon, cost=cost)
    assert_close(there.value, back.value, 1e-7, 1e-7)
    assert_close(there.problem.T.geometry.tile(), back.problem.geometry.tile(), atol=1e-12)
    if epsilon is not None:  # the exact plan need not be unique
        assert_close(there.plan.dense(), back.plan.T.dense(), atol=1e-6)


@given(seeds, sizes, sizes, epsilons, costs)
def test_moving_both_clouds(seed: int, n: int, m: int, epsilon: float | None, cost: str) -> None:
    x, y, a, b = _draw(seed, n, m)
    t = torch.from_numpy(100 * rng(seed).normal(size=2))
    here, there = (_solve(x + s, y + s, a=a, b=b, epsilon=epsilon, cost=cost) for s in (0 * t, t))
    assert_close(there.value, here.value, 1e-7, 1e-7)


@given(seeds, sizes, sizes)
def test_translating_one_cloud(seed: int, n: int, m: int) -> None:
    """W(x + t, y) = W(x, y) + |t|^2 + 2 <t, mean x - mean y> for the squared Euclidean cost."""
    x, y, a, b = _draw(seed, n, m)
    t = torch.from_numpy(rng(seed).normal(size=2))
    shift = t @ t + 2 * t @ (a @ x - b @ y)
    assert_close(_solve(x + t, y, a=a, b=b).value, _solve(x, y, a=a, b=b).value + shift, 1e-9, 1e-9)


@given(seeds, sizes, sizes, epsilons, st.floats(1e-3, 1e3))
def test_scaling_the_cost(seed: int, n: int, m: int, epsilon: float | None, scale: float) -> None:
    """Cost and epsilon times s: the value times s, the plan unchanged."""
    x, y, a, b = _draw(seed, n, m)
    C = torch.cdist(x, y)
    one = _solve(CostMatrix(C), a=a, b=b, epsilon=epsilon)
    scaled = _solve(CostMatrix(scale * C), a=a, b=b, epsilon=None if epsilon is None else scale * epsilon)
    assert_close(scaled.value, scale * one.value, 1e-7, 1e-7 * scale)
    if epsilon is not None:
        assert_close(scaled.plan.dense(), one.plan.dense(), atol=1e-6)


@given(seeds, sizes, sizes)
def test_relative_epsilon_follows_the_scale(seed: int, n: int, m: int) -> None:
    x, y, a, b = _draw(seed, n, m)
    y = y + 10  # a positive mean cost
    options = {"a": a, "b": b, "epsilon": brenier.Relative(0.3)}
    one, scaled = _solve(x, y, **options), _solve(7 * x, 7 * y, **options)
    assert_close(scaled.stats["epsilon"], 49 * one.stats["epsilon"])
    assert_close(scaled.value, 49 * one.value, 1e-7)


@given(seeds, sizes, sizes)
def test_more_epsilon_costs_more(seed: int, n: int, m: int) -> None:
    x, y, a, b = _draw(seed, n, m)
    solutions = [_solve(x, y, a=a, b=b, epsilon=e) for e in (None, 0.5, 2.0, 8.0)]
    for name in ("value", "linear_value"):
        values = np.array([float(getattr(s, name)) for s in solutions])
        assert (np.diff(values) >= -1e-7 * (1 + values[-1])).all(), name
    product = (a @ torch.cdist(x, y).square() @ b).item()
    assert values[-1] <= product + 1e-7


@given(seeds, sizes, sizes, epsilons, costs, st.integers(1, 40))
def test_the_certificate_encloses_the_optimum(
    seed: int, n: int, m: int, epsilon: float | None, cost: str, max_iter: int
) -> None:
    """Also of a solve that stops long before it has converged."""
    x, y, a, b = _draw(seed, n, m)
    C = brenier.PointCloud(x, y, cost).tile().numpy()
    optimum = lp_value(C, a.numpy(), b.numpy())
    if epsilon is None:
        solution = _solve(x, y, a=a, b=b, cost=cost)
        assert solution.certificate.relative_gap <= 1e-9
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", brenier.NotConvergedWarning)
            solution = brenier.solve(x, y, a=a, b=b, cost=cost, epsilon=epsilon, max_iter=max_iter, tol=1e-12)
    check_encloses(solution.certificate, optimum, 1e-9, C.max())


@given(seeds, sizes, sizes, costs)
def test_exact_potentials_are_feasible_and_tight(seed: int, n: int, m: int, cost: str) -> None:
    x, y, a, b = _draw(seed, n, m)
    solution = _solve(x, y, a=a, b=b, cost=cost)
    f, g = solution.potentials
    C = solution.problem.geometry.tile().numpy()
    some = np.ix_(a.numpy() > 0, b.numpy() > 0)  # points without mass constrain nothing
    check_feasible(f[a > 0], g[b > 0], C[some], 1e-9)
    rows, cols, _ = solution.plan.entries()
    assert_close(f[rows] + g[cols], C[array(rows), array(cols)], atol=1e-9 * (1 + C.max()))


@given(seeds, sizes, sizes, epsilons)
def test_permuting_the_points_permutes_the_plan(seed: int, n: int, m: int, epsilon: float | None) -> None:
    r = rng(seed)
    x, y = torch.from_numpy(r.normal(size=(n, 2))), torch.from_numpy(r.normal(size=(m, 2)))  # generic: one optimum
    a, b = (torch.from_numpy(r.dirichlet(np.ones(k))) for k in (n, m))
    p, q = torch.from_numpy(r.permutation(n)), torch.from_numpy(r.permutation(m))
    one = _solve(x, y, a=a, b=b, epsilon=epsilon)
    other = _solve(x[p], y[q], a=a[p], b=b[q], epsilon=epsilon)
    assert_close(other.value, one.value, 1e-8, 1e-9)
    assert_close(other.plan.dense(), one.plan.dense()[p][:, q], atol=1e-7)


@given(seeds, sizes, sizes, epsilons)
def test_splitting_a_point_changes_nothing(seed: int, n: int, m: int, epsilon: float | None) -> None:
    x, y, a, b = _draw(seed, n, m)
    twice, halves = torch.cat([x, x[:1]]), torch.cat([a[:1] / 2, a[1:], a[:1] / 2])
    one = _solve(x, y, a=a, b=b, epsilon=epsilon)
    assert_close(_solve(twice, y, a=halves, b=b, epsilon=epsilon).value, one.value, 1e-7, 1e-7)


@given(seeds, sizes, sizes, costs)
def test_on_the_line_sorting_is_the_simplex(seed: int, n: int, m: int, cost: str) -> None:
    x, y, a, b = _draw(seed, n, m, d=1)
    line = _solve(x, y, a=a, b=b, cost=cost)
    assert line.stats["solver"] == "monotone"
    assert line.certificate.relative_gap <= 1e-9
    assert_close(line.value, _solve(x, y, a=a, b=b, cost=cost, solver="network-simplex").value, 1e-9, 1e-12)
