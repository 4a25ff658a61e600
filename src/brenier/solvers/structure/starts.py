"""Many starts, and the best of what comes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import CostMatrix, Geometry, PointCloud
from ...plan import GibbsPlan, Plan, SparsePlan
from ...problem import Problem
from ...solution import Solution, Status
from ..base import Outcome, Solver, run
from ..exact.monotone import Monotone
from .bounds import Bound, third_lower_bound
from .common import check_plan, quadratic, where
from .solution import GromovSolution

__all__ = ["MultiStart", "MultiStartState", "random_vertex"]


class Best(NamedTuple):
    """The best answer so far, of each item of a batch."""

    plan: Plan
    f: Tensor
    g: Tensor
    value: Tensor  # (*batch,)
    statuses: tuple[Status, ...]
    stats: dict[str, Any]


class MultiStartState(NamedTuple):
    """The best so far, and the values of all starts."""

    best: Best | None
    values: tuple[Tensor, ...]  # (*batch,) of each start
    bound: Bound | None
    iterations: int


@dataclass(frozen=True)
class MultiStart(Solver[MultiStartState]):
    """Run a local solver from several plans and keep the best: an iteration is one start.

    The starts are, in this order, those given, a ⊗ b, the plan of the third lower bound (exact marginals only), and
    vertices that match the points in a random order of each side. A batch is started together, and each item keeps the
    best of its own.

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
        best = found = _read(solution)
        if state.best is not None:
            old = state.best.value
            best = _mixed((found.value < old) | torch.isnan(old), found, state.best)
        iterations = state.iterations + solution.stats["n_iter"]
        return MultiStartState(best, (*state.values, found.value), bound, iterations)

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
        values = [value.tolist() for value in state.values]
        stats |= {"n_iter": state.iterations, "values": values, "bound": state.bound}
        return Outcome(best.plan, best.f, best.g, stats)


def _read(solution: Solution) -> Best:
    value: Tensor = solution.value
    return Best(solution.plan, solution.f, solution.g, value.detach(), solution.statuses, solution.stats)


def _mixed(chosen: Tensor, first: Best, second: Best) -> Best:
    """The first answer for the chosen items, and the second for the others; of statistics the largest."""
    if bool(chosen.all()) or not bool(chosen.any()):
        return first if bool(chosen.all()) else second
    return Best(
        _mixed_plan(chosen, first.plan, second.plan),
        where(chosen, first.f, second.f),
        where(chosen, first.g, second.g),
        where(chosen, first.value, second.value),
        tuple(s if c else t for c, s, t in zip(chosen.reshape(-1).tolist(), first.statuses, second.statuses)),
        {k: max(v, second.stats[k]) if isinstance(v, float) else v for k, v in first.stats.items()},
    )


def _mixed_plan(chosen: Tensor, first: Plan, second: Plan) -> Plan:
    def cost(one: Geometry, other: Geometry) -> CostMatrix:
        assert isinstance(one, CostMatrix)
        assert isinstance(other, CostMatrix)
        return one.with_tensors(where(chosen, one.cost, other.cost))

    geometry = cost(first.geometry, second.geometry)
    if isinstance(first, GibbsPlan) and isinstance(second, GibbsPlan):
        F, G = where(chosen, first.F, second.F), where(chosen, first.G, second.G)
        epsilon = where(chosen, first.epsilon, second.epsilon)
        return GibbsPlan(geometry, F, G, epsilon, cost(first._exact, second._exact))
    assert isinstance(first, SparsePlan)
    assert isinstance(second, SparsePlan)
    width = max(first.mass.shape[-1], second.mass.shape[-1])
    entries = (
        [torch.nn.functional.pad(t, (0, width - t.shape[-1])) for t in (p.rows, p.cols, p.mass)]
        for p in (first, second)
    )
    return SparsePlan(geometry, *(where(chosen, s, t) for s, t in zip(*entries)))


def random_vertex(problem: Problem, generator: torch.Generator | None = None) -> SparsePlan:
    """The plan that matches the points of both sides in random orders; a permutation for equal masses."""
    a, b = problem.a.detach().double(), problem.b.detach().double()
    b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
    x, y = (
        torch.rand(*w.shape, 1, generator=generator, dtype=torch.float64).to(w.device) for w in (a, b)
    )  # the order of points on a line
    plan = run(Problem(PointCloud(x, y), a, b), Monotone()).plan
    assert isinstance(plan, SparsePlan)
    return plan
