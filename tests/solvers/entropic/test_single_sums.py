"""Sinkhorn's first digits from float32, and its last ones from float64."""

from dataclasses import replace

import pytest
import torch

import brenier
from brenier import KL, Exact, PointCloud, Ragged, Status
from brenier.problem import Problem
from brenier.solvers import Sinkhorn
from brenier.solvers.base import run
from problems import cloud

SIDE = 2100


def problem(epsilon: float = 0.3, marginal: brenier.Marginal = Exact(), shift: float = 0.0) -> Problem:
    x, y = cloud(SIDE, 2, 0) + shift, cloud(SIDE, 2, 1) + shift
    a = torch.full((SIDE,), 1 / SIDE, dtype=torch.float64)
    return Problem(PointCloud(x, y), a, a, (marginal, marginal), torch.tensor(epsilon, dtype=torch.float64))


def followed(p: Problem, solver: Sinkhorn) -> list[tuple[int, float]]:
    """How many steps in float32 were left before each step, and the error after it."""
    prepared = solver.prepared(p)
    state, seen = solver.init(prepared), []
    while solver.terminate(prepared, state) is None and len(seen) < 300:
        before = max(state.rough, 0)
        state = solver.step(prepared, state)
        seen.append((before, float(state.error)))
    return seen


@pytest.mark.parametrize("marginal", [Exact(), KL(1.0)], ids=str)
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_it_changes_over_and_ends_in_float64(marginal: brenier.Marginal, shift: float) -> None:
    p = problem(marginal=marginal, shift=shift)
    seen = followed(p, Sinkhorn(tol=1e-10))
    steps = [before for before, _ in seen]
    assert steps[0] > 0
    assert steps[-1] == 0
    assert sorted(steps, reverse=True) == steps  # once and for all
    assert seen[-1][1] <= 1e-10
    solution = run(p, Sinkhorn(tol=1e-10))
    assert solution.status is Status.CONVERGED
    plain = run(p, Sinkhorn(tol=1e-10, g=torch.zeros(SIDE)))  # a given start has float64 only
    assert float((solution.value - plain.value).abs()) < 1e-10


def test_not_where_digits_or_time_would_be_lost() -> None:
    assert not any(before for before, _ in followed(problem(), Sinkhorn(tol=1e-3)))
    assert not any(before for before, _ in followed(problem(), Sinkhorn(tol=1e-6, f=torch.zeros(SIDE))))
    # only on the way down, where float32 has no digit of the potentials below epsilon
    steps = [before for before, _ in followed(problem(epsilon=1e-5), Sinkhorn(tol=1e-6, max_iter=300))]
    assert 0 < sum(map(bool, steps)) < 20


def test_stopped_early_the_columns_are_still_right() -> None:
    p = problem(epsilon=0.05)
    last = [before for before, _ in followed(p, Sinkhorn(tol=1e-9))].index(0)  # the steps in float32
    for steps in (4, last):
        with pytest.warns(brenier.NotConvergedWarning):
            solution = run(p, Sinkhorn(tol=1e-9, max_iter=steps))
        assert float((solution.plan.col_sums() - p.b).abs().sum()) < 1e-11


def test_many_problems() -> None:
    x, y = ([cloud(n, 2, n + k) for n in sizes] for k, sizes in enumerate([(900, 3, 700, 40), (800, 5, 900, 2)]))
    together = brenier.solve(Ragged.from_list(x, y), epsilon=0.2, tol=1e-8)
    assert all(s is Status.CONVERGED for s in together.statuses)
    for k, (u, v) in enumerate(zip(x, y)):
        alone = brenier.solve(u, v, epsilon=0.2, tol=1e-8)
        assert float(together.value[k]) == pytest.approx(float(alone.value), rel=1e-7)


def test_no_problem_of_a_batch_ends_by_float32() -> None:
    """One is solved long before the others are near."""
    x, y = ([cloud(n, 2, n + k) for n in sizes] for k, sizes in enumerate([(1200, 40), (1100, 30)]))
    p = Problem(Ragged.from_list(x, [y[0], 0.01 * y[1]]), *Ragged.from_list(x, y).masses(None, None))
    p = replace(p, epsilon=torch.tensor(0.1, dtype=torch.float64))
    solver = Sinkhorn(tol=1e-6)
    prepared = solver.prepared(p)
    state = solver.init(prepared)
    seen = 0
    while state.rough > 0:
        state = solver.step(prepared, state)
        seen += int(bool((state.error <= 1e-6).any()))
        assert not bool(solver.done(prepared, state).any())
    assert seen
