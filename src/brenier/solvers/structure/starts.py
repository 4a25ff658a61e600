"""Many starts, and the best of what comes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from ...errors import refuse
from ...geometry import PointCloud
from ...plan import Plan, SparsePlan
from ...problem import Problem
from ...solution import Solution, Status
from ..base import Outcome, Solver, run
from ..exact.monotone import Monotone
from .bounds import Bound, third_lower_bound
from .common import check_plan, quadratic
from .solution import GromovSolution

__all__ = ["MultiStart", "MultiStartState", "random_vertex"]


class MultiStartState(NamedTuple):
    """The best solution so far, and the values of all."""

    best: Solution | None
    values: tuple[float, ...]
    bound: Bound | None
    iterations: int


@dataclass(frozen=True)
class MultiStart(Solver[MultiStartState]):
    """Run a local solver from several plans and keep the best: an iteration is one start.

    The starts are, in this order, those given, a ⊗ b, the plan of the third lower bound (exact marginals only), and
    vertices that match the points in a random order of each side.

    Args:
        solver: `Mirror()`, `Proximal()` or `ConditionalGradient()`; its own start is not used.
        max_iter: how many starts.
        plans: to begin with.
        third: whether the plan of the third lower bound is among the starts.
        generator: of the random orders, on the CPU.
    """

    name: ClassVar[str] = "multi-start"
    quadratic: ClassVar[bool] = True
    max_iter: int = 2
    solver: Solver[Any] | None = None
    plans: tuple[Plan, ...] = ()
    third: bool = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver is None or not self.solver.quadratic or isinstance(self.solver, MultiStart):
            refuse("MultiStart solver", "Mirror(), Proximal() or ConditionalGradient()", repr(self.solver))

    def check(self, problem: Problem) -> None:
        assert self.solver is not None
        self.solver.check(problem)
        for plan in self.plans:
            check_plan("starts", plan, problem)

    def init(self, problem: Problem) -> MultiStartState:
        return MultiStartState(None, (), None, 0)

    def step(self, problem: Problem, state: MultiStartState) -> MultiStartState:
        assert self.solver is not None
        number, bound = len(state.values) - len(self.plans), state.bound
        plan: Plan | None = None
        third = self.third and problem.balanced
        if number < 0:
            plan = self.plans[len(state.values)]
        elif number == 1 and third:
            bound = third_lower_bound(quadratic(problem))
            plan = bound.plan
        elif number >= 1:
            plan = random_vertex(problem, self.generator)
        local: Any = self.solver
        solution = run(problem, replace(local, start=plan), warn=False, answer=GromovSolution)
        values = (*state.values, float(solution.value))
        iterations = state.iterations + solution.stats["n_iter"]
        best = solution
        if state.best is not None and not values[-1] < min(state.values):
            best = state.best
        return MultiStartState(best, values, bound, iterations)

    def terminate(self, problem: Problem, state: MultiStartState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state) if len(state.values) >= self.max_iter else None

    def verdict(self, problem: Problem, state: MultiStartState) -> tuple[Status, ...]:
        assert state.best is not None
        return state.best.statuses

    def error(self, state: MultiStartState) -> float:
        assert state.best is not None
        stats = state.best.stats
        return float(stats.get("stationarity", stats.get("change", float("nan"))))

    def finish(self, problem: Problem, state: MultiStartState) -> Outcome:
        best = state.best
        assert best is not None
        stats = {k: v for k, v in best.stats.items() if k not in ("reason", "seconds", "epsilon", "n_iter")}
        stats |= {"n_iter": state.iterations, "values": list(state.values), "bound": state.bound}
        return Outcome(best.plan, best.f, best.g, stats)


def random_vertex(problem: Problem, generator: torch.Generator | None = None) -> SparsePlan:
    """The plan that matches the points of both sides in random orders; a permutation for equal masses."""
    a, b = problem.a.detach().double(), problem.b.detach().double()
    b = b * (a.sum() / b.sum())
    x, y = (torch.rand(len(w), 1, generator=generator, dtype=torch.float64).to(w.device) for w in (a, b))
    plan = run(Problem(PointCloud(x, y), a, b), Monotone()).plan
    assert isinstance(plan, SparsePlan)
    return plan
