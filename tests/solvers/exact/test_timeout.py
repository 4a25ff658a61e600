"""Exact solves that run out of time or are interrupted: a feasible plan and its gap, or a clean end."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

import brenier
from brenier import CostMatrix, NotConvergedWarning, PointCloud, Status
from brenier.solvers import NetworkSimplex, base
from brenier.solvers.exact import lazy, simplex
from problems import array, assert_close, check_encloses, check_feasible, check_marginals, cloud, weights

needs_native = pytest.mark.skipif(simplex.native is None, reason="native engine not built")
WAYS = [pytest.param("lazy", marks=needs_native), "dense"]


class Clock:
    """Stands for the clock: the time is up, or Ctrl-C comes, at the k-th look."""

    def __init__(self, looks: int, error: type[BaseException] | None = None) -> None:
        self.looks, self.error, self.seen = looks, error, 0

    def __call__(self) -> bool:
        self.seen += 1
        if self.error is not None and self.seen == self.looks:
            raise self.error
        return self.seen >= self.looks


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    def put(looks: int, error: type[BaseException] | None = None) -> Clock:
        clock = Clock(looks, error)
        for module in (base, lazy, simplex):
            monkeypatch.setattr(module, "time_is_up", clock)
        return clock

    return put


def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rounds, many pieces, samples solved lazily too."""
    for name, value in {"_FIRST": 2, "_EXTRA": 1, "_ALL": 6, "_DENSE": 500, "_PATIENCE": 1, "_PIECE": 5000}.items():
        monkeypatch.setattr(lazy, name, value)


@pytest.mark.parametrize("pairs", WAYS)
@pytest.mark.parametrize("looks", [1, 2, 3, 5, 8, 12, 20, 40, 80, 150, 300, 10**9])
def test_a_stop_at_any_look_gives_a_feasible_plan_and_its_gap(
    pairs: str, looks: int, set_clock: Callable[..., Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lists(monkeypatch)
    x, y, a, b = cloud(330, 2, 0), cloud(290, 2, 1), weights(330, 2, zeros=3), weights(290, 3, zeros=2)
    C = array(PointCloud(x, y).tile())
    optimum = float(brenier.solve(CostMatrix(C), a=a, b=b).value)
    clock = set_clock(looks)
    solver = NetworkSimplex(pairs=pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        solution = brenier.solve(x, y, a=a, b=b, solver=solver)
    stopped = clock.seen >= looks
    assert stopped or looks == 10**9 or pairs == "dense"  # the native engine looks by the clock
    assert solution.status is (Status.TIME_OUT if stopped else Status.OPTIMAL)
    check_marginals(solution.plan.dense(), a, b, 1e-12)
    check_feasible(solution.f, solution.g, C, 1e-12)
    check_encloses(solution.certificate, optimum, 1e-9, C.max())
    dual = float(solution.f @ a + solution.g @ b)
    assert dual <= optimum + 1e-12 * C.max()
    if not stopped:
        assert_close(dual, optimum, 1e-12)


@needs_native
def test_the_gap_that_a_lazy_solve_tells_is_that_of_what_it_returns(
    set_clock: Callable[..., Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lists(monkeypatch)
    x, y = cloud(300, 2, 0), cloud(300, 2, 1) + 3
    a = b = np.full(300, 1 / 300)
    C = array(PointCloud(x, y).tile())
    for looks in (1, 30, 100, 200):
        set_clock(looks)
        item = lazy.LazyTransport(PointCloud(x, y), a, b)
        for _ in range(3):
            item.round()
        result = item.result()
        primal, dual = C[result.rows, result.cols] @ result.mass, result.f @ a + result.g @ b
        assert not result.optimal
        assert_close(item.gap, (primal - dual) / primal, 1e-9)


@pytest.mark.parametrize(
    ("pairs", "looks"), [("dense", 1), *(pytest.param("lazy", k, marks=needs_native) for k in (1, 2, 9, 25, 100))]
)
def test_ctrl_c_is_not_swallowed_and_the_next_solve_is_sound(
    pairs: str, looks: int, set_clock: Callable[..., Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lists(monkeypatch)
    x, y = cloud(300, 2, 0), cloud(280, 2, 1)
    solver = NetworkSimplex(pairs=pairs)
    clock = set_clock(looks, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        brenier.solve(x, y, solver=solver)
    assert clock.seen == clock.looks
    set_clock(10**9)
    assert brenier.solve(x, y, solver=solver).status is Status.OPTIMAL


@pytest.mark.parametrize("pairs", WAYS)
def test_max_pivots_is_not_called_a_timeout(pairs: str) -> None:
    with pytest.warns(NotConvergedWarning, match="stopped at max_iter"):
        solution = brenier.solve(cloud(90, 2, 0), cloud(80, 2, 1), solver=NetworkSimplex(pairs=pairs, max_pivots=3))
    assert solution.status is Status.MAX_ITER


@pytest.mark.parametrize("pairs", WAYS)
def test_a_batch_that_runs_out_of_time_has_a_plan_for_each(pairs: str) -> None:
    x, y = cloud(300, 2, 0, 3), cloud(300, 2, 1)
    with pytest.warns(NotConvergedWarning, match="3 of 3 problems"):
        solution = brenier.solve(x, y, solver=NetworkSimplex(pairs=pairs), timeout=1e-9)
    assert solution.statuses == (Status.TIME_OUT,) * 3
    for k in range(3):
        check_marginals(solution.plan.dense()[k], torch.full((300,), 1 / 300), torch.full((300,), 1 / 300), 1e-7)
