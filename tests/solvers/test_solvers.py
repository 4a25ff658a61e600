"""The driver (statuses, warnings, callbacks), and what each solver promises."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import brenier
from brenier import (
    KL,
    TV,
    CostMatrix,
    NotConverged,
    NotConvergedWarning,
    PerformanceWarning,
    PointCloud,
    Solution,
    Status,
    api,
)
from brenier.kernels import build
from brenier.solvers import Fixed, Halving, Monotone, NetworkSimplex, Sinkhorn, base
from brenier.solvers.base import Forecast
from problems import array, assert_close, check_encloses, check_feasible, cloud, entropic, entropic_value, weights

X, Y = cloud(6, 2, 1), cloud(7, 2, 2)
C = cdist(X, Y, "sqeuclidean")
A, B = np.full(6, 1 / 6), np.full(7, 1 / 7)


# -- the driver --------------------------------------------------------------------------------------------------


def test_not_converged_raises_with_the_best_so_far() -> None:
    with pytest.raises(NotConverged) as caught:
        brenier.solve(X, Y, epsilon=0.01, max_iter=9, throw=True)
    solution = caught.value.solution
    assert solution.status is Status.MAX_ITER
    assert Status.MAX_ITER.value in str(caught.value)
    assert "(after 9 iterations, error " in str(caught.value)
    check_encloses(solution.certificate, float(brenier.solve(X, Y).value), 1e-9, C.max())


def test_not_converged_warns_once_with_our_class() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = brenier.solve(X, Y, epsilon=0.01, max_iter=3)
    assert [w.category for w in caught] == [NotConvergedWarning]
    assert caught[0].filename == __file__, "the warning does not point at the caller"
    assert (solution.status, solution.stats["n_iter"]) == (Status.MAX_ITER, 3)
    assert not solution.status.ok


@pytest.mark.parametrize("max_iter", [1, 2, 3, 4, 8, 20])
@pytest.mark.parametrize("soft", [False, True])
def test_a_stopped_solve_is_consistent(max_iter: int, soft: bool) -> None:
    """Stopped anywhere, also on the way down to its epsilon, `value` is that of the plan it returns."""
    rho = 2.0 if soft else None
    marginals = KL(2.0) if soft else brenier.Exact()
    with pytest.warns(NotConvergedWarning):
        solution = brenier.solve(X, Y, epsilon=0.05, max_iter=max_iter, tol=1e-14, marginals=marginals)
    plan = array(solution.plan.dense())
    value = entropic_value(C, plan, A, B, 0.05, (rho, rho))
    assert_close(solution.value, value, 1e-9)
    assert_close(solution.linear_value, (plan * C).sum(), 1e-9)
    optimum = entropic(C, A, B, 0.05, (rho, rho)).value
    assert float(solution.dual_value) <= optimum + 1e-9
    if not soft:
        assert_close(plan.sum(0), B, 1e-9)


def test_callback_sees_every_iteration_and_stops() -> None:
    seen: list[tuple[int, float]] = []

    def callback(iteration: int, state: Any) -> bool:
        seen.append((iteration, float(state.error)))
        return iteration == 4

    with pytest.warns(NotConvergedWarning, match="stopped by the callback"):
        solution = brenier.solve(X, Y, epsilon=0.05, callback=callback)
    assert [i for i, _ in seen] == [1, 2, 3, 4]
    assert solution.status is Status.INTERRUPTED
    with pytest.raises(NotConverged, match="stopped by the callback"):
        brenier.solve(X, Y, epsilon=0.05, callback=callback, throw=True)


EVERY_SOLVER: dict[str, dict[str, Any]] = {
    "sinkhorn": {"epsilon": 0.01, "tol": 1e-300},
    "sinkhorn-newton": {"epsilon": 0.01, "tol": 1e-300},
    "multiscale": {"epsilon": 0.01, "tol": 1e-10},
    "sns": {"epsilon": 0.01, "tol": 1e-300},
    "newton": {"epsilon": 0.01, "tol": 1e-300},
    "annealing": {"gap": 1e-9},
    "dual-ascent": {"regularizer": brenier.SquaredNorm(1.0), "tol": 1e-300},
}


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_a_timeout_stops_every_solver_with_bounds_that_hold(solver: str) -> None:
    with pytest.warns(NotConvergedWarning, match="stopped at the timeout"):
        solution = brenier.solve(X, Y, solver=solver, timeout=1e-9, **EVERY_SOLVER[solver])
    assert solution.status is Status.TIME_OUT
    assert not solution.status.ok
    check_encloses(solution.certificate, float(brenier.solve(X, Y).value), 1e-9, C.max())


def test_a_long_timeout_changes_nothing() -> None:
    assert_close(brenier.solve(X, Y, epsilon=0.5, timeout=1e9).value, brenier.solve(X, Y, epsilon=0.5).value, 1e-15)
    assert brenier.solve(X, Y, timeout=1e9).status is Status.OPTIMAL


def test_the_time_of_a_solve_inside_another_is_no_longer_than_its_own() -> None:
    def callback(iteration: int, state: Any) -> None:
        with pytest.warns(NotConvergedWarning, match="stopped at the timeout"):
            brenier.solve(X, Y, epsilon=0.01, tol=1e-300, timeout=1e9)

    with pytest.warns(NotConvergedWarning, match="stopped at the timeout"):
        brenier.solve(X, Y, epsilon=0.01, tol=1e-300, timeout=1e-9, callback=callback)
    assert not base.time_is_up()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), "soon"])
def test_a_timeout_is_a_positive_number(timeout: Any) -> None:
    with pytest.raises(brenier.InvalidInput, match="timeout"):
        brenier.solve(X, Y, timeout=timeout)


def test_a_quiet_callback_changes_nothing() -> None:
    quiet = brenier.solve(X, Y, epsilon=0.5, callback=lambda iteration, state: None)
    assert quiet.status is Status.CONVERGED
    assert_close(quiet.value, brenier.solve(X, Y, epsilon=0.5).value, 1e-12)


def test_one_status_for_each_problem() -> None:
    x = torch.stack([X, 30 * X])  # the second is far harder at the same epsilon
    with pytest.warns(NotConvergedWarning, match=r"1 of 2 problems"):
        solution = brenier.solve(x, Y, epsilon=1.0, max_iter=20)
    assert solution.statuses == (Status.CONVERGED, Status.MAX_ITER)
    assert solution.status is Status.MAX_ITER
    assert_close(solution.value[0], entropic(C, A, B, 1.0).value, 1e-5)


def test_divergence_is_told() -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).sum(-1).log()  # NaN where negative

    with pytest.warns(NotConvergedWarning, match="floating-point range"):
        solution = brenier.solve(X, Y, cost=broken, epsilon=1.0)
    assert solution.status is Status.DIVERGED
    assert solution.stats["n_iter"] == 1


def test_the_forecast_of_an_exact_solve() -> None:
    def forecast(n: int, d: int, pairs: str) -> Forecast:
        x = torch.zeros(n, d)
        found = NetworkSimplex(pairs=pairs).forecast(brenier.Problem.make(brenier.PointCloud(x, x)))
        assert found is not None
        return found

    assert forecast(4000, 2, "dense").memory >= 8 * 4000**2 > 5 * forecast(4000, 2, "lazy").memory
    assert forecast(4000, 2, "dense").seconds > forecast(1000, 2, "dense").seconds
    assert forecast(4000, 60, "lazy").seconds > forecast(4000, 2, "lazy").seconds
    assert str(Forecast(50.4, 4.4e8)) == "50 s and 0.44 GB"
    assert str(Forecast(600, 4.4e9)) == "10 min and 4.4 GB"


def test_progress_writes_nothing_but_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with_bar = brenier.solve(X, Y, epsilon=0.5, progress=True)
    assert "Error" not in capsys.readouterr().err
    assert_close(with_bar.value, brenier.solve(X, Y, epsilon=0.5).value, 1e-12)
    brenier.solve(X, Y, epsilon=0.5)
    assert capsys.readouterr() == ("", "")


def test_the_choice_for_large_clouds() -> None:
    def chosen(d: int, cost: str = "sqeuclidean", epsilon: float = 0.005, **more: Any) -> str:
        x = torch.zeros(11_000, d)
        problem = brenier.Problem.make(PointCloud(x, x + 1, cost), epsilon=epsilon, **more)
        return api._choose("auto", problem, None)[0].name

    assert chosen(3) == chosen(2, "euclidean") == chosen(1, marginals=KL(1.0)) == "multiscale"
    assert chosen(1, epsilon=0.02) == "sinkhorn"  # so many pairs of clusters matter that their list would be long
    assert chosen(4) == chosen(3, "cosine") == "sinkhorn"
    assert chosen(2, reference="counting") == chosen(2, marginals=TV(1.0)) == "sinkhorn"


def test_the_choice_of_solver_and_its_reason() -> None:
    def stats(*args: Any, **options: Any) -> tuple[str, str]:
        out = brenier.solve(*args, **options).stats
        assert out["seconds"] >= 0
        return out["solver"], out["reason"]

    assert stats(X, Y) == ("network-simplex", "exact, and the 6 x 7 cost matrix fits in memory")
    assert stats(X, Y, epsilon=1.0) == ("sinkhorn-newton", "an epsilon was given")
    line = ("monotone", "points on a line and a convex cost: sorting is exact")
    assert stats(X[:, :1], Y[:, :1]) == line
    assert stats(X[:, :1], Y[:, :1], cost="cosine")[0] == "network-simplex"
    assert stats(X, Y, solver="network-simplex") == ("network-simplex", "asked for")
    assert stats(X, Y, solver=Sinkhorn(tol=1e-3), epsilon=1.0) == ("sinkhorn", "asked for")


def test_repr_and_status_text() -> None:
    solution = brenier.solve(X, Y)
    assert repr(solution).startswith("Solution(value=")
    assert "status=OPTIMAL" in repr(solution)
    assert "relative gap" in str(solution.certificate)
    assert "worst relative gap" in str(brenier.solve(X[None], Y).certificate)
    assert all(len(s.value) > 10 for s in Status)


# -- Sinkhorn ----------------------------------------------------------------------------------------------------


def _sinkhorn(solver: Sinkhorn, epsilon: float = 0.2) -> Solution:
    return brenier.solve(X, Y, epsilon=epsilon, solver=solver)


def test_schedules_end_at_the_same_place() -> None:
    slow = _sinkhorn(Sinkhorn(tol=1e-11, schedule=Fixed()))
    for schedule in (Halving(), Halving(0.8), Halving(0.1)):
        fast = _sinkhorn(Sinkhorn(tol=1e-11, schedule=schedule))
        assert_close(fast.value, slow.value)
        assert_close(fast.plan.dense(), slow.plan.dense(), atol=1e-9)
    assert_close(slow.value, entropic(C, A, B, 0.2).value)


def test_warm_start_is_fast() -> None:
    cold = _sinkhorn(Sinkhorn(tol=1e-10))
    warm = _sinkhorn(Sinkhorn(tol=1e-9, f=cold.f, g=cold.g))
    assert warm.stats["n_iter"] <= 2 < cold.stats["n_iter"]
    assert_close(warm.value, cold.value)


def test_tolerance_is_the_marginal_error() -> None:
    for tol in (1e-2, 1e-5):
        solution = _sinkhorn(Sinkhorn(tol=tol))
        rows, columns = solution.certificate.marginal_errors
        assert float(rows) <= tol
        assert float(columns) <= 1e-12
        assert solution.stats["marginal_error"] <= tol


def test_potentials_extend_the_solution() -> None:
    solution = _sinkhorn(Sinkhorn(tol=1e-12))
    f, g = solution.potentials
    assert_close(solution.potentials(X), f, atol=1e-8)
    assert_close(solution.potentials.target(Y), g, atol=1e-8)
    assert_close(solution.map(X), solution.plan.barycentric(), 1e-8)
    soft = brenier.solve(X, Y, epsilon=0.5, marginals=KL(1.5), tol=1e-12)
    assert_close(soft.potentials(X), soft.potentials.f, atol=1e-8)
    assert_close(soft.potentials.target(Y), soft.potentials.g, atol=1e-8)
    assert_close(soft.map(X), soft.plan.barycentric(), 1e-8)


# -- network simplex: the contract, whatever stands behind it ----------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (30, 30), (25, 40)], ids=str)
def test_simplex_contract(shape: tuple[int, int]) -> None:
    n, m = shape
    x, y, a, b = cloud(n, 3, 1), cloud(m, 3, 2), weights(n, 3), weights(m, 4)
    solution = brenier.solve(x, y, a=a, b=b, solver="network-simplex")
    assert solution.status is Status.OPTIMAL
    assert float(solution.certificate.relative_gap) <= 1e-9
    rows, cols, mass = solution.plan.entries()
    assert len(mass) <= n + m - 1
    assert len({*zip(rows.tolist(), cols.tolist())}) == len(mass)
    cost = cdist(x, y, "sqeuclidean")
    f, g = solution.potentials
    check_feasible(f, g, cost, 1e-12)
    assert_close((f[rows] + g[cols]), cost[array(rows), array(cols)], atol=1e-12 * cost.max())
    assert_close(solution.dual_value, solution.value, 1e-12)


def test_simplex_gives_a_permutation() -> None:
    x, y = cloud(40, 5, 1), cloud(40, 5, 2)
    rows, cols, mass = brenier.solve(x, y).plan.entries()
    assert sorted(rows.tolist()) == sorted(cols.tolist()) == list(range(40))
    assert_close(mass, np.full(40, 1 / 40), 1e-12)


def test_simplex_starts_from_potentials() -> None:
    cold = brenier.solve(X, Y)
    warm = brenier.solve(X, Y, solver=NetworkSimplex(f=cold.f, g=cold.g))
    assert warm.status is Status.OPTIMAL
    assert_close(warm.value, cold.value, 1e-12)


def test_missing_native_engine_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "native", None)
    monkeypatch.setattr(build, "_warned", False)
    with pytest.warns(PerformanceWarning, match="without its native engine.*Install a C"):
        brenier.solve(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brenier.solve(X, Y)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9])
def test_simplex_at_any_scale_of_the_masses(scale: float) -> None:
    a, b = weights(len(X), 1, zeros=2), weights(len(Y), 2)
    small = brenier.solve(X, Y, a=a * scale, b=b * scale)
    assert_close(small.value / scale, brenier.solve(X, Y, a=a, b=b).value, 1e-12)


# -- on the line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "dot"])
def test_monotone_contract(cost: str) -> None:
    x, y, a, b = cloud(30, 1, 1), cloud(20, 1, 2), weights(30, 3, zeros=4), weights(20, 4, zeros=1)
    line = brenier.solve(x, y, a=a, b=b, cost=cost)
    assert line.stats["solver"] == "monotone"
    assert_close(line.value, brenier.solve(x, y, a=a, b=b, cost=cost, solver="network-simplex").value, 1e-12)
    assert float(line.certificate.relative_gap) <= 1e-9
    rows, cols, mass = line.plan.entries()
    assert len(mass) <= 30 + 20 - 1
    order = x[rows, 0].argsort(stable=True)
    assert (y[cols, 0][order].diff()[x[rows, 0][order].diff() > 0] >= 0).all(), "mass crosses"


def test_monotone_is_batched() -> None:
    x, y = cloud(8, 1, 1, 3), cloud(5, 1, 2)
    batch = brenier.solve(x, y, solver=Monotone())
    for k in range(3):
        assert_close(batch.value[k], brenier.solve(x[k], y).value, 1e-12)
    assert batch.statuses == (Status.OPTIMAL,) * 3


# -- float32 -----------------------------------------------------------------------------------------------------


def test_float32_entries_carry_mass() -> None:
    """exp underflows in float32 long before float64: what it rounds to zero is no entry."""
    solution = brenier.solve(5 * X.float(), 5 * Y.float(), epsilon=0.2, max_iter=50_000)
    mass = solution.plan.entries().mass
    assert (mass > 0).all()
    assert len(mass) < X.shape[0] * Y.shape[0]


def test_a_geometry_serves_a_batch_of_weights() -> None:
    a = weights(6, 1, 4)
    for geometry in (PointCloud(X, Y), CostMatrix(C)):
        for epsilon in (None, 0.5):
            batch = brenier.solve(geometry, a=a, epsilon=epsilon)
            assert batch.value.shape == (4,)
            assert_close(batch.value[2], brenier.solve(geometry, a=a[2], epsilon=epsilon).value, 1e-6)
