"""The contract of a solver, and the one driver that runs them all."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .._inputs import Kind, is_count, is_real
from ..adjoint import Adjoint, Envelope
from ..errors import NotConverged, NotConvergedWarning, refuse
from ..kernels.device import Replayed
from ..plan import Plan
from ..problem import Problem
from ..solution import Solution, Status
from ..structure import Quadratic
from .penalized.problem import Penalized

__all__ = ["Core", "Forecast", "Outcome", "Solver", "run", "time_is_up", "tuned"]

State = TypeVar("State")

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


def time_is_up() -> bool:
    """Whether the solve under way has used up its time.

    The driver looks after each step. A step that may take long looks as well, and ends early with the best it has.
    """
    return time.perf_counter() >= _deadline.get()


@contextmanager
def _limited(seconds: float | None) -> Iterator[None]:
    """Set the time for what is solved inside; a solve inside another has no more than is left to that one."""
    token = _deadline.set(min(_deadline.get(), math.inf if seconds is None else time.perf_counter() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


class Outcome(NamedTuple):
    """What a solver hands over when the loop has ended."""

    plan: Plan
    f: Tensor
    g: Tensor
    stats: dict[str, Any]


class Core(NamedTuple):
    """A smaller problem that is solved in the place of another, and the way back."""

    problem: Problem
    restored: Callable[[Outcome], Outcome]


class Forecast(NamedTuple):
    """What a solve is likely to take, by what others took on a core of an AMD EPYC with AVX-512."""

    seconds: float
    memory: float  # bytes

    def __str__(self) -> str:
        time = f"{self.seconds:.2g} s" if self.seconds < 100 else f"{self.seconds / 60:.2g} min"
        return f"{time} and {self.memory / 1e9:.2g} GB"


@dataclass(frozen=True)
class Solver(ABC, Generic[State]):
    """A recipe: tolerances and strategy, no data. It never counts, times, prints or warns; the driver does.

    Subclasses are frozen dataclasses with the fields `tol` and `max_iter` where these have a meaning.
    """

    name: ClassVar[str]
    regularized: ClassVar[bool] = False  # whether it takes a problem with a regularizer, and only such
    quadratic: ClassVar[bool] = False  # whether it takes a `Quadratic`, and only such
    penalized: ClassVar[bool] = False  # whether it takes a `Penalized`, and only such
    coarse: ClassVar[bool] = False  # whether its potentials are a guess that c-transforms have yet to make feasible
    max_iter: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_count("max_iter", self.max_iter)

    @abstractmethod
    def check(self, problem: Problem) -> None:
        """Raise `InvalidInput` if this solver cannot take the problem."""

    def core(self, problem: Problem) -> Core | None:
        """A smaller problem that says it all, of which the states are; None where there is none."""
        return None

    def prepared(self, problem: Problem) -> Problem:
        """The problem as the steps of this solver like it; equal to the given one."""
        return problem

    def forecast(self, problem: Problem) -> Forecast | None:
        """What a solve is likely to take, for the progress bar; None where nobody can tell."""
        return None

    @abstractmethod
    def init(self, problem: Problem) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(self, problem: Problem, state: State) -> State:
        """One iteration."""

    @abstractmethod
    def terminate(self, problem: Problem, state: State) -> tuple[Status, ...] | None:
        """One status per batch item when all have ended, None to go on."""

    def stride(self, problem: Problem, state: State) -> int:
        """How many steps the driver may make before anyone looks at the state.

        Where that is more than one, no step looks at a number on the device, and what a step keeps beside the state the
        first one has made, so that steps can be captured.
        """
        return 1

    def done(self, problem: Problem, state: State) -> Tensor | None:
        """Which items of the batch need no more steps, (*batch,); None where only `terminate` can tell.

        The driver leaves them out of the steps to come. The state is then a named tuple whose tensors with axes have
        those of the batch first.
        """
        return None

    def verdict(self, problem: Problem, state: State) -> tuple[Status, ...]:
        """One status per batch item when the iterations or the time have run out, or the callback has stopped them."""
        return (Status.MAX_ITER,) * max(1, problem.batch_shape.numel())

    @abstractmethod
    def error(self, state: State) -> float:
        """The number that falls to the tolerance, for progress and messages; NaN when unknown."""

    @abstractmethod
    def finish(self, problem: Problem, state: State) -> Outcome:
        """The plan and the potentials of a state."""


def run(
    problem: Problem,
    solver: Solver[Any],
    *,
    adjoint: Adjoint = Envelope(),
    kind: Kind = Kind(),
    reason: str = "asked for",
    throw: bool = False,
    warn: bool = True,
    progress: bool = False,
    callback: Callable[[int, Any], bool | None] | None = None,
    timeout: float | None = None,
    answer: type[Solution] = Solution,
) -> Solution:
    """Run a solver on a problem and put the answer together.

    Args:
        problem: what to solve.
        solver: how.
        adjoint: which gradients the solution carries.
        kind: the container of the user.
        reason: why this solver, for `stats`.
        throw: raise `NotConverged` instead of warning.
        warn: off for callers that report the status in words of their own.
        progress: show a progress bar.
        callback: called as `callback(iteration, state)` after each step; a true answer stops the solve.
        timeout: seconds of wall time after which the solve ends with the best so far; at least one step is made.
        answer: the kind of solution to return.

    Raises:
        InvalidInput: the solver cannot take the problem, or the timeout is not positive.
        NotConverged: with `throw=True`, when an item of the batch did not end well.
    """
    if timeout is not None:
        check_number("timeout", timeout)
    _check_terms(problem, solver)
    solver.check(problem)
    adjoint.check(problem)
    start = time.perf_counter()
    fixed = problem.detach()
    core = solver.core(fixed)
    if core is not None:
        fixed = core.problem
    statuses: tuple[Status, ...] | None = None
    iteration = 0
    forecast = solver.forecast(fixed) if progress else None
    with torch.no_grad(), _limited(timeout), _progress(solver, progress, forecast) as report:
        part = _Part(solver, fixed)
        while iteration < solver.max_iter:
            iteration += part.advance(1 if callback is not None else solver.max_iter - iteration)
            report(iteration, part.state)
            if solver.terminate(part.problem, part.state) is not None:
                statuses = solver.terminate(fixed, part.whole())
                break
            if callback is not None and callback(iteration, part.whole()):
                statuses = _stopped(solver.verdict(fixed, part.whole()), Status.INTERRUPTED)
                break
            if time_is_up():
                statuses = _stopped(solver.verdict(fixed, part.whole()), Status.TIME_OUT)
                break
        state = part.whole()
        if statuses is None:
            statuses = solver.verdict(fixed, state)
        outcome = solver.finish(fixed, state)
        plan, f, g, stats = outcome if core is None else core.restored(outcome)
    stats = {
        "solver": solver.name,
        "reason": reason,
        "n_iter": iteration,
        "seconds": time.perf_counter() - start,
        "epsilon": None if fixed.epsilon is None else _number(fixed.epsilon),
        **stats,
    }
    solution = answer(
        problem, plan, f, g, statuses=statuses, stats=stats, adjoint=adjoint, kind=kind, coarse=solver.coarse
    )
    if not solution.status.ok:
        failed = sum(not s.ok for s in statuses)
        message = f"{solver.name}: {solution.status.value} (after {stats['n_iter']} iterations"
        error = solver.error(state)
        message += "" if math.isnan(error) else f", error {error:.3g}"
        message += f", {failed} of {len(statuses)} problems)." if len(statuses) > 1 else ")."
        if throw:
            raise NotConverged(message, solution)
        if warn:
            warnings.warn(message, NotConvergedWarning, stacklevel=3)
    return solution


def _stopped(verdict: tuple[Status, ...], why: Status) -> tuple[Status, ...]:
    """Of the items that were stopped, why; the others keep their status."""
    return tuple(s if s.ok else why for s in verdict)


class _Part:
    """The items of a batch that are still being solved; the others are left out once half of them are done."""

    def __init__(self, solver: Solver[Any], problem: Problem) -> None:
        self.solver, self.all = solver, problem
        self.problem = solver.prepared(problem)
        self.state = solver.init(self.problem)
        self.index: Tensor | None = None  # of the items; None for all of them
        self.saved: Any = None  # the state of all items when the last were left out
        self.replayed: dict[int, Replayed[Any]] = {}  # by the number of steps

    def advance(self, most: int) -> int:
        """Make as many steps as may follow one another, at most so many; how many that were."""
        done = self.solver.done(self.problem, self.state) if len(self.all.batch_shape) == 1 else None
        if done is not None and int(done.sum()) * 2 >= done.numel() > 1 and not bool(done.all()):
            self.saved = self.whole()
            left = (~done).nonzero().squeeze(-1)
            self.index = left if self.index is None else self.index[left]
            self.problem = self.solver.prepared(self.all.select(self.index))
            self.state = _map(lambda t: t[left], self.state)
            self.replayed.clear()
        count = min(most, self.solver.stride(self.problem, self.state))
        if count == 1:
            self.state = self.solver.step(self.problem, self.state)
        else:
            self.state = self.replayed.setdefault(count, Replayed(self._steps(count)))(self.state)
        return count

    def _steps(self, count: int) -> Callable[[Any], Any]:
        solver, problem = self.solver, self.problem  # not itself, as a cycle would keep a graph and its memory

        def steps(state: Any) -> Any:
            for _ in range(count):
                state = solver.step(problem, state)
            return state

        return steps

    def whole(self) -> Any:
        """The state of all items."""
        index = self.index
        if index is None:
            return self.state
        return _map(lambda old, new: old.index_copy(0, index, new), self.saved, self.state)


def _map(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Apply a function to the tensors with axes in states of one form; what else there is comes from the last."""
    if isinstance(first, tuple):
        return type(first)(*(_map(function, *parts) for parts in zip(first, *others)))  # type: ignore[call-arg]
    last = (first, *others)[-1]
    return function(first, *others) if isinstance(first, Tensor) and first.dim() else last


def _check_terms(problem: Problem, solver: Solver[Any]) -> None:
    if solver.quadratic != isinstance(problem, Quadratic):
        kinds = ("a linear problem", "a Quadratic")
        cure = "Use Mirror(), Proximal() or ConditionalGradient()." if not solver.quadratic else "Use solve(...)."
        refuse(solver.name, kinds[solver.quadratic], kinds[not solver.quadratic], cure)
    if solver.penalized != isinstance(problem, Penalized):
        kinds = ("a problem without a term", "a Penalized")
        cure = "Use GeneralizedGradient()." if not solver.penalized else "Use solve(...)."
        refuse(solver.name, kinds[solver.penalized], kinds[not solver.penalized], cure)
    given = problem.regularizer
    if solver.regularized and given is None:
        refuse(solver.name, "a problem with a regularizer", "none", "Give regularizer=SquaredNorm(gamma, k).")
    if given is not None and not solver.regularized:
        refuse(solver.name, "a problem without a regularizer", repr(given), "Use solver='dual-ascent'.")


def _number(t: Tensor) -> float | list[float]:
    values: float | list[float] = t.tolist()
    return values


def tuned(
    solver: Solver[Any], tol: float | None, max_iter: int | None, gap: float | None, generator: torch.Generator | None
) -> Solver[Any]:
    """A solver with what the user of a front door has said, where it has such a field; the rest is checked too."""
    if gap is not None and not (is_real(gap) and 0 < gap < float("inf")):
        refuse("gap", "a positive finite number", repr(gap))
    names = {f.name for f in fields(solver)}
    changes: dict[str, Any] = {}
    if tol is not None and "tol" in names:  # exact solvers end at rounding level, below any tolerance
        changes["tol"] = tol
    if gap is not None and "gap" in names:  # an exact solver ends below any gap
        changes["gap"] = gap
    if generator is not None and "generator" in names:
        changes["generator"] = generator
    if max_iter is not None:
        if isinstance(max_iter, bool) or not isinstance(max_iter, int) or max_iter < 1:
            refuse("max_iter", "a positive integer", repr(max_iter))
        changes["max_pivots" if "max_pivots" in names else "max_iter"] = max_iter
    if tol is not None and not (isinstance(tol, int | float) and 0 < tol < float("inf")):
        refuse("tol", "a positive finite number", repr(tol))
    return replace(solver, **changes)


class _progress:
    """A rich progress bar, or nothing at all."""

    def __init__(self, solver: Solver[Any], show: bool, forecast: Forecast | None = None) -> None:
        self.solver, self.show = solver, show
        self.title = solver.name if forecast is None else f"{solver.name}, about {forecast}"

    def __enter__(self) -> Callable[[int, Any], None]:
        if not self.show:
            return lambda iteration, state: None
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("error {task.fields[error]:.2e}"),
            TimeElapsedColumn(),
            transient=True,
        )
        self.bar.start()
        task = self.bar.add_task(self.title, total=self.solver.max_iter, error=math.nan)
        return lambda iteration, state: self.bar.update(task, completed=iteration, error=self.solver.error(state))

    def __exit__(self, *exc: object) -> None:
        if self.show:
            self.bar.stop()


def check_count(name: str, value: int) -> None:
    """Refuse a number of iterations that is not a positive integer."""
    if not is_count(value):
        refuse(name, "a positive integer", repr(value))


def check_start(name: str, potential: Any, size: int) -> None:
    """Refuse potentials to start from that are not a tensor with one value for each point."""
    if potential is None:
        return
    if not isinstance(potential, Tensor):
        refuse(name, "a tensor", type(potential).__name__, "Use torch.as_tensor.")
    if potential.dim() == 0 or potential.shape[-1] != size:
        refuse(name, f"last axis of length {size}", f"shape {tuple(potential.shape)}")


def check_number(name: str, value: float, *, above: float = 0.0) -> None:
    """Refuse a tolerance or count that is not a finite number above a bound."""
    if not (is_real(value) and above < value < math.inf):
        refuse(name, f"a finite number > {above:g}", repr(value))
