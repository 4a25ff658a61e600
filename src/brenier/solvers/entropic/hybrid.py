"""Sinkhorn while it is fast, Newton when it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from ...errors import refuse
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_number, check_start
from .newton import NewtonState, SparseNewton
from .schedule import Fixed
from .sinkhorn import DEFAULT_TOL, Sinkhorn, SinkhornState

__all__ = ["HybridState", "SinkhornNewton", "takes_newton"]

_FIRST_LOOK = 50  # iterations at the problem's epsilon before the first forecast: over-relaxation needs two windows
_SECOND_LOOK = 80
_WINDOW = 10  # iterations between two forecasts
_HOPELESS = 1000  # iterations still to go that end the matter at once
_PATIENCE = 200  # iterations still to go that Newton's method is taken to beat, from the second look on


class HybridState(NamedTuple):
    """Where the solve is: in Sinkhorn's iteration, or in Newton's from where Sinkhorn stood."""

    sinkhorn: SinkhornState
    newton: NewtonState | None
    steps: int  # of Sinkhorn at the problem's epsilon
    mark: float  # its error when the running window began


def takes_newton(problem: Problem) -> bool:
    """Whether the Newton solvers can take this problem."""
    return problem.balanced and problem.reference == "product"


@dataclass(frozen=True)
class SinkhornNewton(Solver[HybridState]):
    r"""Sinkhorn with a forecast: when its rate says that too many iterations are left, sparse Newton takes over.

    Sinkhorn contracts by a factor that is close to one when epsilon is small; Newton does not care, but a step costs
    as much as tens of iterations. The factor is seen in the errors, so the choice needs no knowledge of the problem
    and costs at most what Sinkhorn did before it was dismissed. One problem at a time: batches stay with Sinkhorn,
    as do soft marginals.

    Args:
        tol: relative marginal error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: iterations of both together.
        sinkhorn: the first solver; its `tol` is not used.
        newton: the second one; its `tol` and start are not used.
    """

    name: ClassVar[str] = "sinkhorn-newton"
    tol: float | None = None
    max_iter: int = 5000
    sinkhorn: Sinkhorn = Sinkhorn()
    newton: SparseNewton = SparseNewton()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tol is not None:
            check_number("tol", self.tol)

    def _goal(self, problem: Problem) -> float:
        return self.tol if self.tol is not None else DEFAULT_TOL[problem.a.dtype]

    def _first(self, problem: Problem) -> Sinkhorn:
        return replace(self.sinkhorn, tol=self._goal(problem))

    def _second(self, problem: Problem, state: HybridState | None = None) -> SparseNewton:
        newton = replace(self.newton, tol=self._goal(problem), schedule=Fixed())
        return newton if state is None else replace(newton, f=state.sinkhorn.f, g=state.sinkhorn.g)

    def check(self, problem: Problem) -> None:
        if problem.epsilon is None:
            refuse(self.name, "an epsilon", "None", "Give epsilon=Relative(0.01), or solver='network-simplex'.")
        if problem.batch_shape:
            refuse(self.name, "one problem", f"batch {tuple(problem.batch_shape)}", "Use solver='sinkhorn'.")
        if not takes_newton(problem):
            got = f"{problem.marginals!r} and reference={problem.reference!r}"
            refuse(self.name, "exact marginals and the product reference", got, "Use solver='sinkhorn'.")
        check_start(f"{self.name} start f", self.sinkhorn.f, problem.shape[0])
        check_start(f"{self.name} start g", self.sinkhorn.g, problem.shape[1])

    def init(self, problem: Problem) -> HybridState:
        return HybridState(self._first(problem).init(problem), None, 0, math.inf)

    def step(self, problem: Problem, state: HybridState) -> HybridState:
        if state.newton is not None:
            return state._replace(newton=self._second(problem).step(problem, state.newton))
        sinkhorn = self._first(problem).step(problem, state.sinkhorn)
        state = state._replace(sinkhorn=sinkhorn)
        first = self._first(problem)
        if bool(first.done(problem, sinkhorn)) and not first.verdict(problem, sinkhorn)[0].ok:  # float32 is not enough
            return state._replace(newton=self._second(problem, state).init(problem))
        error = float(sinkhorn.error)
        if not math.isfinite(error):
            return state
        state = state._replace(steps=state.steps + 1)
        if state.steps % _WINDOW or sinkhorn.closing:
            return state
        if state.steps >= _FIRST_LOOK and self._slow(problem, state, error):
            newton = self._second(problem, state)
            return state._replace(newton=newton.init(problem))
        return state._replace(mark=error)

    def _slow(self, problem: Problem, state: HybridState, error: float) -> bool:
        """Whether the rate of the last window leaves more iterations than Newton's method would cost."""
        goal = self._goal(problem)
        if error <= goal:
            return False
        rate = (error / state.mark) ** (1 / _WINDOW) if 0 < state.mark < math.inf else 1.0
        left = math.inf if rate >= 1 else math.log(goal / error) / math.log(rate)
        return left > (_HOPELESS if state.steps < _SECOND_LOOK else _PATIENCE)

    def terminate(self, problem: Problem, state: HybridState) -> tuple[Status, ...] | None:
        if state.newton is None:
            return self._first(problem).terminate(problem, state.sinkhorn)
        return self._second(problem).terminate(problem, state.newton)

    def verdict(self, problem: Problem, state: HybridState) -> tuple[Status, ...]:
        if state.newton is None:
            return self._first(problem).verdict(problem, state.sinkhorn)
        return self._second(problem).verdict(problem, state.newton)

    def error(self, state: HybridState) -> float:
        return float(state.sinkhorn.error) if state.newton is None else self.newton.error(state.newton)

    def finish(self, problem: Problem, state: HybridState) -> Outcome:
        if state.newton is None:
            outcome = self._first(problem).finish(problem, state.sinkhorn)
            return outcome._replace(stats={**outcome.stats, "n_newton": 0})
        outcome = self._second(problem).finish(problem, state.newton)
        return outcome._replace(stats={**outcome.stats, "n_sinkhorn": state.steps + outcome.stats["n_sinkhorn"]})
