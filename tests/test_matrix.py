"""Every solver x cost x marginal x dtype x kind of geometry, against dense float64 oracles.

What cannot be is in `GAPS`, with its reason; a gap that the library must refuse is tested to be refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import brenier
from brenier import KL, CostMatrix, Exact, Grid, InvalidInput, Marginal, PointCloud, Solution, Status
from brenier.costs import CallableCost
from brenier.kernels.build import native
from problems import (
    COST,
    COSTS,
    array,
    assert_close,
    check_encloses,
    check_marginals,
    check_plan_operators,
    entropic,
    lp_value,
    soft_optimum,
    weights,
)

ENTROPIC = ("sinkhorn", "multiscale", "sns", "newton")
_BOUNDED = ("sqeuclidean", "euclidean", "cityblock", "chebyshev", "Lp(1.5)", "Mahalanobis")  # between boxes
SOLVERS = (*ENTROPIC, "network-simplex", "monotone", *(["flow"] if native is not None else []))
MARGINALS = ("Exact", "KL", "KL, Exact")
DTYPES = (torch.float64, torch.float32)
KINDS = ("PointCloud", "CostMatrix", "Grid", "batched")
_AXES = ([0.0, 0.5, 1.75, 2.0], [0.0, 1.0, 3.0])
_GRID_P = {"sqeuclidean": 2.0, "cityblock": 1.0}


class Combination(NamedTuple):
    solver: str
    cost: str
    marginal: str
    dtype: torch.dtype
    kind: str

    def __str__(self) -> str:
        return "-".join((self.solver, self.cost, self.marginal, str(self.dtype).removeprefix("torch."), self.kind))


# (reason, whether `solve` must refuse it, which combinations); the first that applies is the reason.
GAPS: list[tuple[str, bool, Callable[[Combination], bool]]] = [
    ("a grid has the cost sum |x - y|^p and no other", False, lambda c: c.kind == "Grid" and c.cost not in _GRID_P),
    ("node indices have no batch", True, lambda c: c.kind == "batched" and c.cost == "GraphGeodesic"),
    (
        "only Sinkhorn, on all pairs or on some, takes KL marginals",
        True,
        lambda c: c.solver not in ("sinkhorn", "multiscale") and c.marginal != "Exact",
    ),
    (
        "scales need one cloud and bounds between boxes",
        True,
        lambda c: c.solver == "multiscale" and (c.kind != "PointCloud" or c.cost not in _BOUNDED),
    ),
    (
        "flows run between the neighbours of a grid, for the city-block cost",
        True,
        lambda c: c.solver == "flow" and (c.kind != "Grid" or c.cost != "cityblock"),
    ),
    ("sorting needs points", True, lambda c: c.solver == "monotone" and c.kind in ("CostMatrix", "Grid")),
    ("sorting needs a convex cost", True, lambda c: c.solver == "monotone" and not COST[c.cost].on_line),
    (
        "a graph cost is a float64 matrix, whatever the dtype of the node indices",
        False,
        lambda c: c.cost == "GraphGeodesic" and c.dtype == torch.float32 and c.kind == "PointCloud",
    ),
]


def gap(c: Combination) -> tuple[str, bool] | None:
    return next(((reason, refused) for reason, refused, applies in GAPS if applies(c)), None)


if "flow" not in SOLVERS:
    GAPS = [g for g in GAPS if not g[0].startswith("flows")]
EVERYTHING = [Combination(*c) for c in itertools.product(SOLVERS, [str(c) for c in COSTS], MARGINALS, DTYPES, KINDS)]
RUN = [c for c in EVERYTHING if gap(c) is None]
REFUSED = [c for c in EVERYTHING if (g := gap(c)) is not None and g[1]]


class Case(NamedTuple):
    """One problem: what goes into `solve`, and the same in dense float64 (with a leading batch axis)."""

    inputs: dict[str, Any]
    costs: np.ndarray  # (batch, n, m)
    a: np.ndarray  # (batch, n)
    b: np.ndarray  # (batch, m)
    scale: float


@cache
def case(c: Combination) -> Case:
    cost, n, m = COST[c.cost], 7, 9
    d = 1 if c.solver == "monotone" else 2
    if c.kind == "Grid":
        n = m = 12
    batch = (2,) if c.kind == "batched" else ()
    a = weights(n, 3, *batch, zeros=1, dtype=c.dtype)
    b = weights(m, 4, *batch, zeros=1, dtype=c.dtype)
    inputs: dict[str, Any] = {"a": a, "b": b}
    if c.kind == "Grid":
        p = _GRID_P[c.cost]
        inputs["x"] = Grid(*(torch.tensor(t, dtype=c.dtype) for t in _AXES), p=p)
        points = np.stack(np.meshgrid(*_AXES, indexing="ij"), -1).reshape(n, -1)
        costs = (abs(points[:, None] - points) ** p).sum(-1)[None]
    else:
        x, y = cost.points(n, d, 1, *batch).to(c.dtype), cost.points(m, d, 2, *batch).to(c.dtype)
        pairs = zip(x.reshape(-1, *x.shape[-2:]).double().numpy(), y.reshape(-1, *y.shape[-2:]).double().numpy())
        costs = np.stack([cost.dense(u, v) for u, v in pairs])
        if c.kind == "CostMatrix":
            matrix = torch.from_numpy(costs[0]).to(c.dtype)
            inputs["x"], costs = CostMatrix(matrix), matrix.double().numpy()[None]
        else:
            inputs |= {"x": x, "y": y, "cost": cost.given(d)}
    return Case(
        inputs, costs, a.double().numpy().reshape(-1, n), b.double().numpy().reshape(-1, m), np.abs(costs).max()
    )


def run(c: Combination, **more: Any) -> tuple[Solution, Case, float | None, tuple[float | None, float | None]]:
    k = case(c)
    scale = float(k.scale)
    rho: tuple[float | None, float | None] = {"Exact": (None, None), "KL": (scale, scale), "KL, Exact": (scale, None)}[
        c.marginal
    ]
    marginals: tuple[Marginal, Marginal] = tuple(Exact() if r is None else KL(r) for r in rho)  # type: ignore[assignment]
    epsilon = 0.1 * scale if c.solver in ENTROPIC else None
    tol = {} if epsilon is None else {"tol": 1e-11 if c.dtype == torch.float64 else 1e-5}
    solution = brenier.solve(**k.inputs, solver=c.solver, marginals=marginals, epsilon=epsilon, **tol, **more)
    return solution, k, epsilon, rho


def test_the_matrix_is_whole() -> None:
    assert len(EVERYTHING) == len(SOLVERS) * 11 * 3 * 2 * 4
    assert len(RUN) + sum(gap(c) is not None for c in EVERYTHING) == len(EVERYTHING)
    assert {c.solver for c in RUN} == set(SOLVERS)
    assert {c.cost for c in RUN} == {str(c) for c in COSTS}
    for reason, _, applies in GAPS:
        assert any(applies(c) for c in EVERYTHING), f"nothing is left in the gap: {reason}"


@pytest.mark.parametrize("c", [c for c in REFUSED if c.dtype == torch.float64], ids=str)
def test_refused(c: Combination) -> None:
    with pytest.raises(InvalidInput, match=r"expected .*, got "):
        run(c)


@pytest.mark.parametrize("c", RUN, ids=str)
def test_solve(c: Combination) -> None:
    solution, k, epsilon, rho = run(c)
    double = c.dtype == torch.float64
    tol = 1e-9 if double else 2e-5
    batch = solution.problem.batch_shape
    assert solution.status is (Status.CONVERGED if epsilon else Status.OPTIMAL)
    assert solution.stats["solver"] == c.solver

    # dtypes and shapes
    for value in (solution.value, solution.linear_value, solution.dual_value):
        assert value.dtype == c.dtype
        assert value.shape == batch
    n, m = solution.problem.shape
    f, g = solution.potentials
    assert (f.dtype, g.dtype, solution.plan.dense().dtype) == (c.dtype,) * 3
    assert (f.shape, g.shape) == ((*batch, n), (*batch, m))

    # values, plan and marginals
    dense = array(solution.plan.dense()).reshape(-1, n, m)
    scale = k.scale * k.a.sum(-1).max()
    if epsilon is None:
        optimum = np.array([lp_value(*problem) for problem in zip(k.costs, k.a, k.b)])
        values = optimum
        assert_close(solution.linear_value, solution.value, tol, what="linear value")
        assert_close(solution.dual_value.reshape(-1), optimum, atol=tol * scale, what="dual value")
        assert (solution.certificate.relative_gap <= (1e-9 if double else 1e-5)).all()
        for p in dense:
            assert (p > 0).sum() <= n + m - 1
    else:
        oracle = [entropic(*problem, epsilon, rho) for problem in zip(k.costs, k.a, k.b)]
        optimum = np.array([soft_optimum(*problem, rho) for problem in zip(k.costs, k.a, k.b)])
        values = np.array([o.value for o in oracle])
        assert_close(dense, np.stack([o.plan for o in oracle]), 100 * tol, what="plan")
        linear = [o.linear_value for o in oracle]
        assert_close(solution.linear_value.reshape(-1), np.array(linear), atol=20 * tol * scale, what="linear value")
        assert_close(solution.dual_value.reshape(-1), values, atol=tol * scale, what="dual value")
    assert_close(solution.value.reshape(-1), values, atol=tol * scale, what="value")
    if rho == (None, None):
        check_marginals(dense, k.a, k.b, 100 * tol if epsilon else tol)

    # the certificate holds the unregularised optimum between its bounds
    check_encloses(solution.certificate, optimum.reshape(batch), 1e-8 if double else 2e-6, scale)
    check_encloses(solution.certify(), optimum.reshape(batch), 1e-8 if double else 2e-6, scale)
    check_plan_operators(solution, 1e-11 if double else 1e-5)


def test_a_callable_that_promises_convexity_may_be_sorted() -> None:
    power = COST["callable"].given(1)
    assert callable(power)
    x, y = torch.randn(7, 1).double(), torch.randn(9, 1).double()
    b = weights(9)
    sorted_ = brenier.solve(x, y, b=b, cost=CallableCost(power, convex_on_line=True))
    assert sorted_.stats["solver"] == "monotone"
    assert_close(sorted_.value, brenier.solve(x, y, b=b, cost=power).value)


def test_point_clouds_and_their_matrix_agree() -> None:
    def both(x: Tensor, y: Tensor) -> None:
        geometry = PointCloud(x, y)
        lazy, dense = (brenier.solve(g, epsilon=0.5, tol=1e-10) for g in (geometry, CostMatrix(geometry.tile())))
        assert_close(lazy.value, dense.value)
        assert_close(lazy.plan.dense(), dense.plan.dense())

    both(torch.randn(5, 30).double(), torch.randn(6, 30).double())  # many coordinates: tiles are matrix products
    both(torch.randn(5, 2).double(), torch.randn(6, 2).double())
