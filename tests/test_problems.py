"""The shared oracles and comparisons: they hold when they should, and fail when they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import brenier
from brenier.plan import Entries, SparsePlan
from problems import (
    COSTS,
    KNOWN,
    Known,
    array,
    assert_close,
    check_encloses,
    check_feasible,
    check_marginals,
    check_plan_operators,
    entropic,
    entropic_value,
    lp_value,
    soft_optimum,
    tiny_lp,
    weights,
)

# -- comparisons that must fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1.0 + 1e-6, 1.0),
        ([1.0, 2.0], [1.0, 2.1]),
        ([1.0], [[1.0]]),
        (np.nan, 1.0),
        ([np.nan, 1.0], [1.0, 1.0]),
        (np.inf, 1.0),
        (1.0, np.inf),
        (-np.inf, np.inf),
        (torch.tensor(0.0), torch.tensor(1e-300, dtype=torch.float64)),
    ],
)
def test_assert_close_fails(actual: object, expected: object) -> None:
    with pytest.raises(AssertionError):
        assert_close(actual, expected)


def test_assert_close_holds() -> None:
    assert_close(torch.tensor([1.0, np.inf]), np.array([1.0, np.inf]))
    assert_close(1.0 + 1e-12, 1.0)
    assert_close(1e-3, 0.0, atol=1e-2)
    assert_close(torch.ones(0), torch.zeros(0))


def test_check_marginals_fails() -> None:
    a, b = weights(3).numpy(), weights(4).numpy()
    good = np.outer(a, b)
    check_marginals(good, a, b, 1e-12)
    rows, columns, negative = good.copy(), good.copy(), good.copy()
    rows[0, 0] += 1e-3
    rows[1, 0] -= 1e-3  # the columns still hold
    columns[0, 0] += 1e-3
    columns[0, 1] -= 1e-3
    negative[[0, 0, 1, 1], [0, 1, 0, 1]] += np.array([1, -1, -1, 1])
    for bad in (rows, columns, negative, good * np.nan):
        with pytest.raises(AssertionError):
            check_marginals(bad, a, b, 1e-6)
    with pytest.raises(AssertionError):
        check_marginals(good, b, a, 1e-6)


def test_check_encloses_fails() -> None:
    certificate = brenier.solve(torch.randn(5, 2).double(), torch.randn(6, 2).double(), epsilon=1.0).certificate
    low, high = float(certificate.dual), float(certificate.primal)
    check_encloses(certificate, (low + high) / 2, 1e-12)
    for optimum in (low - 0.01, high + 0.01, np.nan):
        with pytest.raises(AssertionError):
            check_encloses(certificate, optimum, 1e-6)


def test_check_feasible_fails() -> None:
    cost = np.array([[1.0, 2.0], [3.0, 0.0]])
    check_feasible([0.5, 0.0], [0.5, 0.0], cost, 1e-12)
    with pytest.raises(AssertionError):
        check_feasible([0.5, 0.0], [0.6, 0.0], cost, 1e-3)


class _Lying(SparsePlan):
    """A sparse plan one of whose answers is wrong."""

    def __init__(self, plan: SparsePlan, lie: str) -> None:
        super().__init__(plan.geometry, plan.rows, plan.cols, plan.mass)
        self._lie = lie

    def _matmul(self, v: torch.Tensor) -> torch.Tensor:
        return super()._matmul(v) * (1.001 if self._lie == "_matmul" else 1)

    def row_sums(self) -> torch.Tensor:
        return super().row_sums() * (1.001 if self._lie == "row_sums" else 1)

    def _topk(self, k: int) -> Entries:
        return super()._topk(k + 1 if self._lie == "topk is long" else k - (self._lie == "topk is short"))

    def _entries(self, max_per_row: int | None, threshold: float) -> Entries:
        out = super()._entries(max_per_row, 0.0 if self._lie == "threshold" else threshold)
        if self._lie == "_entries":
            return Entries(out.rows, out.cols, out.mass * 1.001)
        return Entries(*(t[1:] for t in out)) if self._lie == "an entry lost" else out

    def _argmax(self) -> torch.Tensor:
        return super()._argmax().roll(1) if self._lie == "_argmax" else super()._argmax()

    def barycentric(self, y: object = None) -> object:
        return 1.001 * super().barycentric(y) if self._lie == "barycentric" else super().barycentric(y)


LIES = (
    *("_matmul", "row_sums", "topk is long", "topk is short", "threshold"),
    *("_entries", "an entry lost", "_argmax", "barycentric"),
)


@pytest.mark.parametrize("lie", ["none", *LIES])
def test_check_plan_operators_fails(lie: str) -> None:
    solution = brenier.solve(torch.randn(5, 2).double(), torch.randn(6, 2).double(), a=weights(5), b=weights(6))
    assert isinstance(solution.plan, SparsePlan)
    solution.plan = _Lying(solution.plan, lie)  # cached: an ordinary attribute
    if lie == "none":
        check_plan_operators(solution, 1e-12)
    else:
        with pytest.raises(AssertionError):
            check_plan_operators(solution, 1e-12)


# -- oracles agree with each other -------------------------------------------------------------------------------


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_known_answers_are_the_assignment_optimum(known: Known) -> None:
    cost = cdist(known.x, known.y, "sqeuclidean")
    i, j = linear_sum_assignment(cost)
    assert_close(cost[i, j].mean(), known.value, atol=1e-12)
    assert_close(known.y[torch.from_numpy(j)], known.moved)
    with pytest.raises(AssertionError):
        assert_close(cost[i, j].mean(), replace(known, value=known.value + 1e-3).value)


@pytest.mark.parametrize("seed", range(6))
def test_the_dual_oracle_agrees_with_highs(seed: int) -> None:
    lp = tiny_lp(seed, 5, 6)
    scale = np.abs(lp.cost).max() * lp.a.sum()
    assert_close(soft_optimum(lp.cost, lp.a, lp.b, (None, None)), lp.value, atol=1e-8 * scale)
    assert soft_optimum(lp.cost, lp.a, lp.b, (scale, scale)) < lp.value


def test_the_lp_oracle_agrees_with_the_assignment() -> None:
    cost = np.random.default_rng(0).normal(size=(6, 6))
    i, j = linear_sum_assignment(cost)
    uniform = np.full(6, 1 / 6)
    assert_close(lp_value(cost, uniform, uniform), cost[i, j].mean())


def test_the_entropic_oracle_is_a_minimum() -> None:
    """Moving the plan around a cycle keeps its marginals and never lowers the value."""
    lp = tiny_lp(3, 5, 5)
    cost, a, b = lp.cost / np.abs(lp.cost).max(), lp.a / lp.a.sum(), lp.b / lp.b.sum()
    for rho in ((None, None), (0.7, 0.7), (0.7, None), (None, 0.7)):
        best = entropic(cost, a, b, 0.2, rho)
        assert_close(best.value, entropic_value(cost, best.plan, a, b, 0.2, rho))
        for step in (1e-3, -1e-3):
            plan = best.plan.copy()
            plan[[0, 0, 1, 1], [0, 1, 0, 1]] += step * np.array([1, -1, -1, 1]) * plan[:2, :2].min()
            assert entropic_value(cost, plan, a, b, 0.2, rho) > best.value
        if rho[0] is not None and rho[1] is not None:
            assert entropic_value(cost, 1.01 * best.plan, a, b, 0.2, rho) > best.value
            assert entropic_value(cost, 0.99 * best.plan, a, b, 0.2, rho) > best.value


@pytest.mark.parametrize("case", COSTS, ids=str)
def test_costs_have_the_shape_of_their_points(case: object) -> None:
    x, y = case.points(4, 2, 0), case.points(5, 2, 1)  # type: ignore[attr-defined]
    dense = case.dense(array(x), array(y))  # type: ignore[attr-defined]
    assert dense.shape == (4, 5)
    assert np.isfinite(dense).all()
