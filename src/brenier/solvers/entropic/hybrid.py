"""Sinkhorn while it is fast, Newton when it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...problem import Problem
from ...solution import Status
from ..base import Core, Outcome, Solver, check_number, time_is_up
from .items import check_newton, unbatched
from .path import NewtonPath, PathState
from .schedule import Fixed
from .sinkhorn import DEFAULT_TOL, Sinkhorn, SinkhornState
from .start import Zeros

__all__ = ["HybridState", "SinkhornNewton"]

_SMALL = 2e-3  # epsilon over the mean cost from which on Sinkhorn is not even tried for one problem
_LARGE = 5e-3  # and from which on a schedule saves nothing, and costs its levels
_GLANCE = 20  # iterations at the problem's epsilon after which Newton's method must be near for one problem
_FIRST_LOOK = 40  # iterations before the first forecast
_WINDOW = 10  # iterations between two forecasts
_PATIENCE = 40  # iterations still to go that Newton's method is taken to beat
_KEPT_PATIENCE = 120  # the same where they are cheap, as the Gibbs kernel is kept
_BATCH_PATIENCE = 1000  # the same in a batch, whose items share their iterations
_NEAR = 0.05  # error from which Newton's method can start at the problem's own epsilon


class HybridState(NamedTuple):
    """Where the solve is: in Sinkhorn's iteration, or in Newton's."""

    sinkhorn: SinkhornState
    path: PathState | None  # for one problem
    steps: int  # of Sinkhorn at the problem's epsilon
    mark: Tensor  # (*batch,) its error when the running window began
    tried: Tensor  # (*batch,) items of a batch that Newton's method has had
    newton_steps: int = 0  # that it took for these

    @property
    def f(self) -> Tensor:
        """The potential of the sources so far, (*batch, n)."""
        return self.sinkhorn.f if self.path is None else self.path.items[0].f

    @property
    def g(self) -> Tensor:
        """The potential of the targets so far, (*batch, m)."""
        return self.sinkhorn.g if self.path is None else self.path.items[0].g

    @property
    def error(self) -> float:
        """The largest marginal error, relative to the mass."""
        if self.path is not None:
            return max(i.error for i in self.path.items)
        return float(self.sinkhorn.error.max())


@dataclass(frozen=True)
class SinkhornNewton(Solver[HybridState]):
    r"""Sinkhorn with a forecast: when its rate says that too many iterations are left, sparse Newton takes over.

    Sinkhorn contracts by a factor that is close to one when epsilon is small; Newton does not care, but a step costs
    as much as some iterations. The factor is seen in the errors, so the choice needs no knowledge of the problem and
    costs at most what Sinkhorn did before it was dismissed; below 0.002 x mean cost, where the choice is known, one
    problem goes to `NewtonPath` at once. Of a batch, the items that are hopeless for Sinkhorn go to Newton one by one,
    inside one iteration; it takes many more to be worth that there, as the others share theirs.

    Args:
        tol: relative marginal error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: iterations of both together.
        sinkhorn: the first solver; its `tol` is not used.
        path: the second one; its `tol` and start are not used.
    """

    name: ClassVar[str] = "sinkhorn-newton"
    tol: float | None = None
    max_iter: int = 5000
    sinkhorn: Sinkhorn = Sinkhorn()
    path: NewtonPath = NewtonPath()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tol is not None:
            check_number("tol", self.tol)

    def _goal(self, problem: Problem) -> float:
        return self.tol if self.tol is not None else DEFAULT_TOL[problem.a.dtype]

    def _first(self, problem: Problem) -> Sinkhorn:
        return replace(self.sinkhorn, tol=self._goal(problem))

    def _second(self, problem: Problem, f: Tensor | None = None, g: Tensor | None = None) -> NewtonPath:
        return replace(self.path, tol=self._goal(problem), f=f, g=g)

    def check(self, problem: Problem) -> None:
        check_newton(self.name, problem)
        self.sinkhorn.beginning.check(problem)

    def core(self, problem: Problem) -> Core | None:
        return self.sinkhorn.core(problem)

    def prepared(self, problem: Problem) -> Problem:
        return self._first(problem).prepared(problem)

    def init(self, problem: Problem) -> HybridState:
        assert problem.epsilon is not None
        first, cold = self._first(problem), isinstance(self.sinkhorn.beginning, Zeros)
        mean = problem.geometry.detach().mean_cost() if cold else problem.epsilon
        if bool((problem.epsilon >= _LARGE * mean).all()):
            first = replace(first, schedule=Fixed())
        sinkhorn = first.init(problem)
        state = HybridState(sinkhorn, None, 0, sinkhorn.error, torch.zeros_like(sinkhorn.error, dtype=torch.bool))
        if cold and not problem.batch_shape and bool(problem.epsilon <= _SMALL * mean):
            return state._replace(path=self._second(problem).init(problem))
        return state

    def step(self, problem: Problem, state: HybridState) -> HybridState:
        if state.path is not None:
            return state._replace(path=self._second(problem).step(problem, state.path))
        first = self._first(problem)
        sinkhorn = first.step(problem, state.sinkhorn)
        state = state._replace(sinkhorn=sinkhorn)
        alone, error = not problem.batch_shape, sinkhorn.error
        if alone and bool(first.done(problem, sinkhorn)) and not first.verdict(problem, sinkhorn)[0].ok:
            return self._handed_over(problem, state)  # float32 is not enough
        if not bool(torch.isfinite(error).all()):
            return state
        state = state._replace(steps=state.steps + 1)
        if state.steps % _WINDOW:
            return state
        if alone and state.steps == _GLANCE and bool(error > 2 * _NEAR):
            return self._handed_over(problem, state)
        slow = self._slow(problem, state)
        if state.steps >= _FIRST_LOOK and bool(slow.any()):
            return self._handed_over(problem, state) if alone else self._polished(problem, state, slow)
        return state._replace(mark=error)

    def _slow(self, problem: Problem, state: HybridState) -> Tensor:
        """Where the rate of the last window leaves more iterations than Newton's method would cost, (*batch,)."""
        error, goal = state.sinkhorn.error, self._goal(problem)
        rate = (error / state.mark).pow(1 / _WINDOW)
        left = torch.where(rate < 1, (goal / error).log() / rate.log(), torch.inf)
        memory = problem.geometry.memory
        kept = memory is not None and not memory.narrow
        patience = _BATCH_PATIENCE if problem.batch_shape else _KEPT_PATIENCE if kept else _PATIENCE
        return (left > patience) & (error > goal) & ~state.tried

    def _handed_over(self, problem: Problem, state: HybridState) -> HybridState:
        s = state.sinkhorn
        near = bool(s.error <= _NEAR)
        second = self._second(problem, s.f, s.g) if near else self._second(problem)
        return state._replace(path=second.init(problem))

    def _polished(self, problem: Problem, state: HybridState, slow: Tensor) -> HybridState:
        """Newton's method for some items of a batch, to its end."""
        sinkhorn = state.sinkhorn
        f, g, error, ended = (t.clone() for t in (sinkhorn.f, sinkhorn.g, sinkhorn.error, sinkhorn.closing))
        total = state.newton_steps
        for index, item in zip(np.ndindex(*slow.shape), unbatched(problem)):
            if not slow[index] or time_is_up():
                continue
            near = bool(error[index] <= _NEAR)
            path = self._second(item, f[index], g[index]) if near else self._second(item)
            current, rounds = path.init(item), 0
            while path.terminate(item, current) is None and rounds < path.max_iter and not time_is_up():
                current, rounds = path.step(item, current), rounds + 1
            outcome = path.finish(item, current)
            total += outcome.stats["n_newton"]
            if path.error(current) < error[index]:
                f[index], g[index] = outcome.f.to(f), outcome.g.to(g)
                error[index], ended[index] = path.error(current), True
        after = sinkhorn._replace(f=f, g=g, error=error, tight=sinkhorn.tight | ended, closing=ended)
        return state._replace(sinkhorn=after, mark=error, tried=state.tried | slow, newton_steps=total)

    def done(self, problem: Problem, state: HybridState) -> Tensor | None:
        return None if state.path is not None else self._first(problem).done(problem, state.sinkhorn)

    def terminate(self, problem: Problem, state: HybridState) -> tuple[Status, ...] | None:
        if state.path is None:
            return self._first(problem).terminate(problem, state.sinkhorn)
        return self._second(problem).terminate(problem, state.path)

    def verdict(self, problem: Problem, state: HybridState) -> tuple[Status, ...]:
        if state.path is None:
            return self._first(problem).verdict(problem, state.sinkhorn)
        return self._second(problem).verdict(problem, state.path)

    def error(self, state: HybridState) -> float:
        return state.error

    def finish(self, problem: Problem, state: HybridState) -> Outcome:
        if state.path is None:
            outcome = self._first(problem).finish(problem, state.sinkhorn)
            return outcome._replace(stats={**outcome.stats, "n_newton": state.newton_steps})
        outcome = self._second(problem).finish(problem, state.path)
        return outcome._replace(stats={**outcome.stats, "n_sinkhorn": state.steps + outcome.stats["n_sinkhorn"]})
