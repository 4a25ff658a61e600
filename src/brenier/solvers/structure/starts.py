"""Many starts, and the best of what comes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import CostMatrix, PointCloud
from ...plan import GibbsPlan, Plan, SparsePlan
from ...problem import Problem
from ...solution import Solution, Status
from ..base import Outcome, Solver, run
from ..exact.monotone import Monotone
from .bounds import Bound, third_lower_bound
from .common import check_plan, quadratic, where
from .solution import GromovSolution

__all__ = ["MultiStart", "MultiStartState", "random_vertex"]

_ENTRIES = 2**20  # of the plans of a batch that are worked on at once: many items share the calls, in bounded memory


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
    vertices that match the points in a random order of each side. The items of a batch are solved together, a million
    entries of their plans at a time, and each keeps the best of its own starts.

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
        best = found = self._found(problem, plan)
        if state.best is not None:
            old = state.best.value
            best = _mixed((found.value < old) | torch.isnan(old), found, state.best)
        iterations = state.iterations + found.stats["n_iter"]
        return MultiStartState(best, (*state.values, found.value), bound, iterations)

    def _found(self, problem: Problem, plan: Plan | None) -> Best:
        """What the local solver makes of a start."""
        parts = _parts(problem)
        if parts:
            return _joined([self._found(problem.select(k), _selected(plan, k)) for k in parts])
        local: Any = self.solver
        return _read(run(problem, replace(local, start=plan), warn=False, answer=GromovSolution))

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


def _parts(problem: Problem) -> tuple[Tensor, ...]:
    """The items of a batch that are solved at once; nothing, where that is all."""
    if len(problem.batch_shape) != 1:
        return ()
    each = max(problem.shape) ** 2
    parts = torch.arange(problem.batch_shape[0], device=problem.a.device).split(max(1, _ENTRIES // each))
    return parts if len(parts) > 1 else ()


def _selected(plan: Plan | None, index: Tensor) -> Plan | None:
    """The plans of some items (k,) of a batch of one axis."""
    if plan is None:
        return None
    geometry = plan.geometry.select(index)
    if isinstance(plan, GibbsPlan):
        epsilon = plan.epsilon[index] if plan.epsilon.dim() else plan.epsilon
        return GibbsPlan(geometry, plan.F[index], plan.G[index], epsilon, plan._exact.select(index))
    assert isinstance(plan, SparsePlan)
    return SparsePlan(geometry, plan.rows[index], plan.cols[index], plan.mass[index])


def _joined(bests: list[Best]) -> Best:
    """The answers to the parts of a batch as one; of statistics the largest."""
    f, g, value = (torch.cat([getattr(best, name) for best in bests]) for name in ("f", "g", "value"))
    plan = _rebuilt(tuple(map(torch.cat, zip(*_tensors([best.plan for best in bests])))))
    statuses = tuple(status for best in bests for status in best.statuses)
    return Best(plan, f, g, value, statuses, _largest([best.stats for best in bests]))


def _mixed(chosen: Tensor, first: Best, second: Best) -> Best:
    """The first answer for the chosen items, and the second for the others; of statistics the largest."""
    if bool(chosen.all()) or not bool(chosen.any()):
        return first if bool(chosen.all()) else second
    f, g, value = (where(chosen, getattr(first, name), getattr(second, name)) for name in ("f", "g", "value"))
    plan = _rebuilt(tuple(where(chosen, s, t) for s, t in zip(*_tensors([first.plan, second.plan]))))
    pairs = zip(chosen.reshape(-1).tolist(), first.statuses, second.statuses)
    statuses = tuple(s if better else t for better, s, t in pairs)
    return Best(plan, f, g, value, statuses, _largest([first.stats, second.stats]))


def _largest(stats: list[dict[str, Any]]) -> dict[str, Any]:
    return {k: max(s[k] for s in stats) if isinstance(v, int | float) else v for k, v in stats[0].items()}


def _tensors(plans: list[Plan]) -> list[tuple[Tensor, ...]]:
    """What plans of one kind over cost matrices are made of, lists of entries padded to the longest."""
    out: list[tuple[Tensor, ...]] = []
    for plan in plans:
        assert isinstance(plan.geometry, CostMatrix)
        if isinstance(plan, GibbsPlan):
            assert isinstance(plan._exact, CostMatrix)
            out.append((plan.geometry.cost, plan.F, plan.G, plan.epsilon, plan._exact.cost))
        else:
            assert isinstance(plan, SparsePlan)
            width = max(p.mass.shape[-1] for p in plans if isinstance(p, SparsePlan)) - plan.mass.shape[-1]
            entries = (torch.nn.functional.pad(t, (0, width)) for t in (plan.rows, plan.cols, plan.mass))
            out.append((plan.geometry.cost, *entries))
    return out


def _rebuilt(tensors: tuple[Tensor, ...]) -> Plan:
    cost, *rest = tensors
    if len(rest) == 3:
        return SparsePlan(CostMatrix(cost), *rest)
    F, G, epsilon, exact = rest
    return GibbsPlan(CostMatrix(cost), F, G, epsilon, CostMatrix(exact))


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
