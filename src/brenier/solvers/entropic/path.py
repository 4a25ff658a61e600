"""Newton's method along the path of epsilon, on the entries of the plan that matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._inputs import Kind
from ...errors import refuse
from ...kernels.elementwise import exp
from ...marginals import log_weights
from ...problem import Problem
from ...solution import Status
from ..base import Core, Outcome, Solver, check_number, check_start
from .items import check_newton, column, gibbs, item_of, unbatched
from .live import live_core
from .scaling import SparseScaling
from .schedule import Halving, Schedule
from .sinkhorn import DEFAULT_TOL, Sinkhorn, SinkhornState

__all__ = ["NewtonPath", "PathState"]

_numpy = Kind.array_numpy

_START = 0.03  # epsilon over the mean cost at which the path begins
_SWEEPS = 60  # most iterations of Sinkhorn there
_LEVEL_TOL = 1e-3  # marginal error at which a level of epsilon is left
_DROPPED = math.log(1e4)  # at first, entries below exp(-this) sqrt(row mass x column mass) are left out
_WIDEST = 500.0  # where that ends
_PER_ROW = 256  # most entries of a row, at first
_MOST = 2**22  # entries up to which that grows
_LOST = 0.2  # error at which a prediction has failed, and a smaller step is taken
_NEAR = 0.99  # the smallest step
_POOR = 0.1  # share of an error that a good round leaves at most
_WIDEN = 1.7  # what a poor round multiplies the threshold's logarithm by
_STALLED = 0.9  # share of an error that a round must not leave
_IMPATIENCE = 3  # such rounds in a row before it goes back to where the path was last known, or begins it
_PATIENCE = 8  # before the solver gives up


class _Record(NamedTuple):
    """What happened to one problem."""

    sweeps: int = 0  # of Sinkhorn
    passes: int = 0  # over all pairs
    newton: int = 0
    cg: int = 0
    errors: tuple[float, ...] = ()  # at the beginning of each round
    levels: tuple[float, ...] = ()  # its epsilon
    entries: tuple[int, ...] = ()  # that it kept


class _Level(NamedTuple):
    """Where the path was, and where it went."""

    epsilon: Tensor
    f: Tensor  # (n,)
    slope: Tensor  # df/deps

    def at(self, epsilon: Tensor) -> Tensor:
        """The potential that is predicted for another epsilon."""
        return self.f + (epsilon - self.epsilon) * self.slope


class _Item(NamedTuple):
    """One problem of a batch, in float64 and without batch axes."""

    problem: Problem
    epsilon: Tensor  # of the level, ()
    f: Tensor  # (n,)
    g: Tensor  # (m,) the soft c-transform of f once `rows` is known
    rows: Tensor  # P1, (n,)
    error: float  # sum_i |P1 - a|_i over the mass; inf before it is measured
    stalls: int  # rounds in a row that left nearly all of it
    wide: float  # entries down to exp(-this) sqrt(row mass x column mass) are kept
    per_row: int  # and at most so many of a row
    cold: bool  # whether the path was begun at its beginning
    scaling: SparseScaling | None  # of the last round at this level
    last: _Level | None  # the level before, once there is one
    record: _Record

    @property
    def settled(self) -> bool:
        """Whether the level is that of the problem."""
        return bool(self.epsilon <= _target(self))


class PathState(NamedTuple):
    """The problems of a batch, one after the other."""

    items: tuple[_Item, ...]


@dataclass(frozen=True)
class NewtonPath(Solver[PathState]):
    r"""Follow the path of epsilon downwards: predict along its tangent, correct by Newton steps on a sparse plan.

    A round at one level of epsilon: two passes over all pairs make the columns exact and measure the rows; a third one
    lists the entries with P_ij >= 1e-4 sqrt(r_i c_j), and more after a round that left more than a tenth of the error;
    Newton's method scales them (`SparseScaling`), the others growing with their row and their column. Once a level is
    met to 1e-3,

        f(eps') = f(eps) + (eps' - eps) df/deps,   sum_j P_ij (df_i + dg_j - log(P_ij / a_i b_j)) = 0,  and over i,

    begins the next one; where that leaves an error above 0.2, the step in epsilon was too long, and is made shorter.
    Newton systems are those of graph Laplacians, which an approximate Cholesky factor solves in nearly linear time,
    whatever their condition; so a small epsilon, where plans are sparse, is cheap: a few dozen Newton steps to
    a thousandth of the mean cost and below, up to some hundred to a hundred-thousandth.

    Computes in float64 whatever the input; potentials and plan keep that inside, and hand out the dtype of the input.
    The items of a batch are solved one by one. Rows and columns without mass take no part. The sparse part runs on the
    CPU.

    Args:
        tol: relative marginal error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: rounds.
        schedule: the way down to the problem's epsilon, from 0.03 x mean cost; from Sinkhorn's iterations there.
        f, g: potentials to start from, at the problem's epsilon itself.

    O(n m d) time for a round, and nearly linear in the kept entries for a Newton step; O(n + m) memory.

    Reference:
        The continuation is classical (Allgower & Georg, 1990, Numerical continuation methods); sparse Newton steps are
        those of Tang et al. (2024), arXiv 2401.12253; the solver of the systems is that of Gao, Kyng & Spielman (2023).
    """

    name: ClassVar[str] = "newton-path"
    tol: float | None = None
    max_iter: int = 200
    schedule: Schedule = Halving()
    f: Tensor | None = None
    g: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tol is not None:
            check_number("tol", self.tol)
        if not isinstance(self.schedule, Schedule):
            refuse("schedule", "a Schedule such as Halving() or Fixed()", repr(self.schedule))

    # -- the contract of a solver ----------------------------------------------------------------------------

    def check(self, problem: Problem) -> None:
        check_newton(self.name, problem)
        check_start(f"{self.name} start f", self.f, problem.shape[0])
        check_start(f"{self.name} start g", self.g, problem.shape[1])

    def core(self, problem: Problem) -> Core | None:
        return live_core(problem) if self.f is None and self.g is None else None

    def init(self, problem: Problem) -> PathState:
        return PathState(tuple(self._start(p, i) for i, p in enumerate(unbatched(problem.double()))))

    def _start(self, problem: Problem, index: int) -> _Item:
        if self.f is None and self.g is None:
            return self._begun(problem, _Record())
        sinkhorn = Sinkhorn(f=item_of(self.f, index), g=item_of(self.g, index))
        state = sinkhorn.init(problem)
        return _item(problem, _epsilon(problem), state, False, _Record())

    def _begun(self, problem: Problem, record: _Record) -> _Item:
        """At the beginning of the path, by Sinkhorn."""
        sinkhorn = Sinkhorn(tol=_LEVEL_TOL, schedule=self.schedule)
        first = torch.maximum(_epsilon(problem), _START * problem.geometry.mean_cost())
        level = sinkhorn.prepared(replace(problem, epsilon=first))
        state = sinkhorn.init(level)
        count = 0
        while count < _SWEEPS or state.level > first:
            state = sinkhorn.step(level, state)
            count += 1
            if bool(sinkhorn.done(level, state)):
                break
        record = record._replace(sweeps=record.sweeps + count, passes=record.passes + 2 * count)
        return _item(problem, first, state, True, record)

    def step(self, problem: Problem, state: PathState) -> PathState:
        goal = self._goal(problem)
        return PathState(tuple(i if self._ended(i, goal) else self._round(i, goal) for i in state.items))

    def terminate(self, problem: Problem, state: PathState) -> tuple[Status, ...] | None:
        goal = self._goal(problem)
        return self.verdict(problem, state) if all(self._ended(i, goal) for i in state.items) else None

    def verdict(self, problem: Problem, state: PathState) -> tuple[Status, ...]:
        return tuple(self._status(i, self._goal(problem)) for i in state.items)

    def error(self, state: PathState) -> float:
        return max(i.error for i in state.items)

    def finish(self, problem: Problem, state: PathState) -> Outcome:
        # stopped on the way: the columns are owed an update at the problem's epsilon
        goal = self._goal(problem)
        items = [
            i if i.settled and self._ended(i, goal) else _measured(i._replace(epsilon=_target(i))) for i in state.items
        ]
        return Outcome(*gibbs(problem, [i.f for i in items], [i.g for i in items]), _stats(problem, items))

    def _goal(self, problem: Problem) -> float:
        return self.tol if self.tol is not None else DEFAULT_TOL[problem.a.dtype]

    @staticmethod
    def _ended(item: _Item, goal: float) -> bool:
        return (item.settled and item.error <= goal) or item.stalls >= _PATIENCE

    @staticmethod
    def _status(item: _Item, goal: float) -> Status:
        # potentials that cannot be told apart at the scale of epsilon: their plan, and so the error, means nothing
        size = torch.maximum(item.f.abs().max(), item.g.abs().max())
        if not bool(torch.finfo(size.dtype).eps * size <= item.epsilon):
            return Status.DIVERGED
        return Status.CONVERGED if item.settled and item.error <= goal else Status.MAX_ITER

    # -- one round -------------------------------------------------------------------------------------------

    def _round(self, item: _Item, goal: float) -> _Item:
        item = _measured(item)
        if self._ended(item, goal):
            return item
        eps, last = item.epsilon, item.last
        lost = item.stalls >= _IMPATIENCE or not item.error <= _LOST
        if lost and not item.cold:
            return self._begun(item.problem, item.record)
        if lost and last is not None and eps < _NEAR * last.epsilon:
            between = (eps * last.epsilon).sqrt()
            return item._replace(epsilon=between, f=last.at(between), error=math.inf, stalls=0, scaling=None)
        if not item.settled and item.error <= _LEVEL_TOL and item.scaling is not None:
            return self._predicted(item, item.scaling)
        item, scaling = _sparse(item)
        newton, cg = scaling.solve(0.1 * (goal if item.settled else max(goal, _LEVEL_TOL)))
        record = item.record._replace(newton=item.record.newton + newton, cg=item.record.cg + cg)
        f = item.f + eps * torch.from_numpy(scaling.u).to(item.f)
        item = item._replace(f=f, scaling=scaling, record=record)
        # where the level was met before the round, there is no need to look again
        return item if item.settled or item.error > _LEVEL_TOL else self._predicted(item, scaling)

    def _predicted(self, item: _Item, scaling: SparseScaling) -> _Item:
        """The next level of epsilon, from the tangent at this one."""
        problem, eps = item.problem, item.epsilon
        slope, cg = scaling.tangent(_numpy(problem.a), _numpy(problem.b))
        last = _Level(eps, item.f, torch.from_numpy(slope).to(item.f))
        after = self.schedule.next(eps, _target(item))
        record = item.record._replace(cg=item.record.cg + cg)
        return item._replace(
            epsilon=after, f=last.at(after), error=math.inf, stalls=0, scaling=None, last=last, record=record
        )


# -- how it is done ------------------------------------------------------------------------------------------


def _measured(item: _Item) -> _Item:
    """Exact columns, and the error of the rows; f of rows without mass becomes the soft c-transform of g."""
    problem, eps = item.problem, item.epsilon
    a, b = problem.a, problem.b
    g = problem.geometry.softmin(item.f + eps * log_weights(a), eps, dim=0)
    soft = problem.geometry.softmin(g + eps * log_weights(b), eps)
    f = torch.where(a > 0, item.f, soft)
    rows = a * exp((f - soft) / eps)
    error = float((rows - a).abs().sum() / a.sum())
    old = item.record
    record = old._replace(passes=old.passes + 2, errors=(*old.errors, error), levels=(*old.levels, float(eps)))
    poor = error > _POOR * item.error
    stalls = item.stalls + 1 if error > _STALLED * item.error else 0
    wide, per_row = item.wide, item.per_row
    if poor:
        wide = min(_WIDEN * wide, _WIDEST)
        if item.scaling is not None and item.scaling.entries > per_row * len(a) / 2:
            per_row = min(2 * per_row, max(_PER_ROW, _MOST // len(a)))
    if math.isnan(error):
        error = math.inf
    return item._replace(f=f, g=g, rows=rows, error=error, stalls=stalls, wide=wide, per_row=per_row, record=record)


def _sparse(item: _Item) -> tuple[_Item, SparseScaling]:
    """What is to be scaled: the entries that matter, and the sums that they have to reach beside the others."""
    problem, eps, r = item.problem, item.epsilon, item.rows
    a, b = problem.a, problem.b
    # P_ij / sqrt(r_i c_j) = exp((F_i + G_j - C_ij) / eps)
    F = torch.where(r > 0, item.f + eps * (log_weights(a) - log_weights(r) / 2), -torch.inf)
    G = item.g + eps / 2 * log_weights(b)
    found = problem.geometry.support(F, G, float(eps) * item.wide, item.per_row)
    rows, cols, reduced = (_numpy(t) for t in found)
    sums = _numpy(r), _numpy(b)
    values = np.exp(-reduced / float(eps)) * np.sqrt(sums[0][rows] * sums[1][cols])
    others = (np.maximum(s - np.bincount(index, values, len(s)), 0) for index, s in zip((rows, cols), sums))
    old = item.record
    record = old._replace(passes=old.passes + 1, entries=(*old.entries, len(rows)))
    return item._replace(record=record), SparseScaling(rows, cols, values, _numpy(a), sums[1], *others)


def _item(problem: Problem, epsilon: Tensor, state: SinkhornState, cold: bool, record: _Record) -> _Item:
    """A problem before its first round, at the potentials of Sinkhorn."""
    return _Item(
        problem, epsilon, state.f, state.g, problem.a, math.inf, 0, _DROPPED, _PER_ROW, cold, None, None, record
    )  # fmt: skip


def _epsilon(problem: Problem) -> Tensor:
    assert problem.epsilon is not None
    return problem.epsilon


def _target(item: _Item) -> Tensor:
    return _epsilon(item.problem)


def _stats(problem: Problem, items: list[_Item]) -> dict[str, Any]:
    records = [i.record for i in items]
    parts: dict[str, Callable[[_Record], Any]] = {
        "n_sinkhorn": lambda r: r.sweeps,
        "n_newton": lambda r: r.newton,
        "kernel_evaluations": lambda r: r.passes,
        "cg_iterations": lambda r: r.cg,
        "errors": lambda r: list(r.errors),
        "levels": lambda r: list(r.levels),
        "entries": lambda r: list(r.entries),
    }
    return {"marginal_error": max(i.error for i in items)} | {k: column(problem, records, v) for k, v in parts.items()}
