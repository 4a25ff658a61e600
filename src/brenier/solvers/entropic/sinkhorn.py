"""Sinkhorn's algorithm in the log domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import Geometry
from ...geometry.single import SingleSums
from ...kernels.device import waits
from ...kernels.elementwise import exp
from ...marginals import Exact, Partial, translation
from ...plan import GibbsPlan
from ...problem import Problem
from ...solution import Status
from ..base import Core, Outcome, Solver, check_number
from .live import live_core
from .relaxation import Anderson, AndersonState, Relaxation, RelaxationState, size
from .schedule import Halving, Schedule
from .start import Given, Start, Zeros

__all__ = ["DEFAULT_TOL", "Sinkhorn", "SinkhornState", "rough_steps", "smoother", "towards"]

# Error down to which the sums of float32 will do: twice their rounding, within these bounds.
_FINE, _ROUGH = 3e-5, 3e-4
_ROUGH_STEPS = 60  # after which they are given up all the same
_STRIDE = 10  # steps between two looks at the error, where a look waits for a device
_DOUBTFUL = 0.1  # rounding of the plan's entries, in tolerances, from which float32 is not believed
_Soft = Geometry | SingleSums
DEFAULT_TOL = {torch.float32: 1e-4, torch.float64: 1e-6}


class SinkhornState(NamedTuple):
    """Potentials, the epsilon they belong to, and the error of the pair before the last update."""

    f: Tensor  # (*batch, n)
    g: Tensor  # (*batch, m)
    epsilon: Tensor  # of the next step
    level: Tensor  # of the last step
    error: Tensor  # (*batch,) relative to the mass; inf while epsilon still moves
    relaxation: RelaxationState | AndersonState
    tight: Tensor  # (*batch,), whether the last update of g was a plain one, which makes the column marginal exact
    closing: Tensor  # (*batch,), whether the pair that `error` speaks of was tight
    rough: int = 0  # steps to come, at most, whose sums are in float32; -1 after the last of them


@dataclass(frozen=True)
class Sinkhorn(Solver[SinkhornState]):
    r"""Alternate soft c-transforms until the row marginal is met.

        f <- prox_a(softmin(g + eps log b)),   g <- prox_b(softmin(f + eps log a))

    which maximises the dual of min <P, C> + eps KL(P | a ⊗ b) + phi_a(P1) + phi_b(P^T 1) one block at a time. The
    error is what the next update of f changes in the row sums, sum_i |P1 - P'1|_i over the mass of a; with an exact
    marginal P'1 = a. It costs nothing. Two KL marginals share a translation f + t, g - t that is solved for in each
    iteration. O(n m d) time for an iteration, O(n + m) memory.

    On a GPU only every tenth iteration is followed by a look at the error, and the ten are replayed as a CUDA graph.

    Args:
        tol: relative marginal error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: iterations, those of the schedule included.
        schedule: the way down to the problem's epsilon.
        relaxation: how far each update goes beyond the plain one; `Plain()` switches it off.
        start: the potentials to begin with; all but `Zeros()` begin at epsilon itself.
        f, g: short for `start=Given(f, g)`.

    Reference:
        Cuturi (2013), Sinkhorn distances; Chizat et al. (2018), Scaling algorithms for unbalanced problems; Séjourné,
        Vialard & Peyré (2022), Faster unbalanced optimal transport (the translation).
    """

    name: ClassVar[str] = "sinkhorn"
    tol: float | None = None
    max_iter: int = 5000
    schedule: Schedule = Halving()
    relaxation: Relaxation[Any] = Anderson()
    f: Tensor | None = None
    g: Tensor | None = None
    start: Start = Zeros()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tol is not None:
            check_number("tol", self.tol)
        if not isinstance(self.schedule, Schedule):
            refuse("schedule", "a Schedule such as Halving() or Fixed()", repr(self.schedule))
        if not isinstance(self.start, Start):
            refuse("start", "a Start such as Zeros() or GaussianStart()", repr(self.start))
        if self._given and not isinstance(self.start, Zeros):
            refuse("start", "none beside the potentials f and g", repr(self.start))

    @property
    def _given(self) -> bool:
        return self.f is not None or self.g is not None

    @property
    def beginning(self) -> Start:
        """The start in use, which is that of `f` and `g` where they were given."""
        return Given(self.f, self.g) if self._given else self.start

    def check(self, problem: Problem) -> None:
        if problem.epsilon is None:
            refuse("sinkhorn", "an epsilon", "None", "Give epsilon=Relative(0.05), or solver='network-simplex'.")
        self.beginning.check(problem)

    def core(self, problem: Problem) -> Core | None:
        return None if isinstance(self.beginning, Given) else live_core(problem)

    def prepared(self, problem: Problem) -> Problem:
        assert problem.epsilon is not None
        return replace(problem, geometry=problem.geometry.remembering(problem.epsilon, self._tol(problem)))

    def init(self, problem: Problem) -> SinkhornState:
        assert problem.epsilon is not None
        begin = self.beginning
        f, g = begin.potentials(problem)
        epsilon = begin.epsilon(problem, self.schedule)
        error = torch.full_like(f[..., 0], torch.inf)
        level = torch.full_like(epsilon, torch.inf)
        never = torch.zeros_like(error, dtype=torch.bool)
        # the last digits come from float64, the first ones need not
        coarse = isinstance(begin, Zeros) and problem.geometry.single is not None
        rough = rough_steps(self._tol(problem)) if coarse else 0
        return SinkhornState(f, g, epsilon, level, error, self.relaxation.init(f), never, never, rough)

    def step(self, problem: Problem, state: SinkhornState) -> SinkhornState:
        assert problem.epsilon is not None
        eps = state.epsilon
        shift = translation(problem.marginals, problem.sides_at(eps), state.f, state.g)
        old_f, old_g = (state.f, state.g) if shift is None else (state.f + shift, state.g - shift)
        single = problem.geometry.single if state.rough > 0 else None
        costs: _Soft = single or problem.geometry
        f, error, after = self._updated(problem, old_f, old_g, eps, costs)
        settled = (state.level == problem.epsilon) & (eps == problem.epsilon)
        error = torch.where(settled, error, torch.inf)
        relaxation = self.relaxation.next(state.relaxation, error)
        # close with a plain step, so that the answer's column marginal is exact
        met = error <= self._tol(problem)
        mixed, relaxation = self.relaxation.mixed(relaxation, old_f, f, after, error)
        f = torch.where(met.unsqueeze(-1), f, mixed)
        omega = torch.where(met, 1, relaxation.omega)
        tight = omega == 1
        plain, omega = not waits(tight) and bool(tight.all()), omega.unsqueeze(-1)
        if not plain:
            f = towards(old_f, f, omega)
        g = self._columns(problem, f, eps, costs)
        if not plain:
            g = towards(old_g, g, omega)
        schedule = self.schedule.next(eps, problem.epsilon)
        rough = smoother(state.rough, error, f, eps)
        closing = state.tight & (state.rough <= 0)  # an error that float32 has told ends nothing
        return SinkhornState(f, g, schedule, eps, error, relaxation, tight, closing, rough)

    @staticmethod
    def _updated(
        problem: Problem, f: Tensor, g: Tensor, eps: Tensor, costs: _Soft | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best f for this g, what it changes in the row sums, relative to the mass, and those it has."""
        line = eps.unsqueeze(-1) if eps.dim() else eps
        left, (side_a, side_b) = problem.marginals[0], problem.sides_at(eps)
        soft = (costs or problem.geometry).softmin(g + side_b.absorbed(), eps)
        best = left.prox(soft + side_a.rise() if side_a.counting else soft, side_a)
        log_a = side_a.log_reference()
        before = exp(log_a + (f - soft) / line)  # the row sums of the plan with the old f, and with the new
        after = problem.a if isinstance(left, Exact) else exp(log_a + (best - soft) / line)
        return best, (before - after).abs().sum(-1) / problem.a.sum(-1), after

    @staticmethod
    def _columns(problem: Problem, f: Tensor, eps: Tensor, costs: _Soft | None = None) -> Tensor:
        """The best g for this f."""
        side_a, side_b = problem.sides_at(eps)
        soft = (costs or problem.geometry).softmin(f + side_a.absorbed(), eps, dim=0)
        return problem.marginals[1].prox(soft + side_b.rise() if side_b.counting else soft, side_b)

    def stride(self, problem: Problem, state: SinkhornState) -> int:
        looks = any(isinstance(p, Partial) and p.entropic for p in problem.marginals)  # for its level
        return _STRIDE if waits(state.f) and problem.geometry.replayable and not looks else 1

    def done(self, problem: Problem, state: SinkhornState) -> Tensor:
        return state.closing & (state.error <= self._tol(problem))

    def terminate(self, problem: Problem, state: SinkhornState) -> tuple[Status, ...] | None:
        if bool(self.done(problem, state).all()):
            return self.verdict(problem, state)
        if bool(torch.isnan(state.f).any() | torch.isnan(state.g).any()):
            bad = torch.isnan(state.f).any(-1).reshape(-1)
            return tuple(Status.DIVERGED if b else s for b, s in zip(bad, self.verdict(problem, state)))
        return None

    def verdict(self, problem: Problem, state: SinkhornState) -> tuple[Status, ...]:
        tol = self._tol(problem)
        # potentials that cannot be told apart at the scale of epsilon: their plan, and so the error, means nothing
        largest = torch.maximum(size(state.f), size(state.g))
        rounding = torch.finfo(largest.dtype).eps * largest / state.level
        lost = rounding > 1
        if state.f.dtype == torch.float32 and bool(((state.error <= tol) & (rounding > _DOUBTFUL * tol)).any()):
            lost |= (state.error <= tol) & ~(self._wide_error(problem, state) <= 2 * tol)
        return tuple(
            Status.DIVERGED if r else Status.CONVERGED if e <= tol else Status.MAX_ITER
            for e, r in zip(state.error.reshape(-1).tolist(), lost.reshape(-1).tolist())
        )

    def _wide_error(self, problem: Problem, state: SinkhornState) -> Tensor:
        """The larger of the two marginal errors, measured in float64 where float32 would round it away."""
        p = problem.double()
        assert p.epsilon is not None
        eps, f, g = p.epsilon, state.f.double(), state.g.double()
        errors = []
        for q, h, other in ((p, f, g), (p.T, g, f)):
            side, marginal = q.sides[0], q.marginals[0]
            assert side.epsilon is not None
            soft = q.geometry.softmin(other + q.sides[1].absorbed(), eps)
            best = marginal.prox(soft + side.rise() if side.counting else soft, side)
            log_mass = side.log_reference() - soft / side.epsilon
            now, then = (exp(log_mass + each / side.epsilon) for each in (h, best))
            errors.append((now - then).abs().sum(-1) / side.weights.sum(-1))
        return torch.maximum(*errors)

    def _tol(self, problem: Problem) -> float:
        return self.tol if self.tol is not None else DEFAULT_TOL[problem.a.dtype]

    def error(self, state: SinkhornState) -> float:
        return float(state.error.max())

    def finish(self, problem: Problem, state: SinkhornState) -> Outcome:
        assert problem.epsilon is not None
        eps = problem.epsilon
        g = state.g
        memory = self.prepared(problem).geometry.memory
        rounded = state.rough != 0 or (memory is not None and memory.narrow)
        if rounded or not bool((state.tight & (state.level == eps)).all()):
            # stopped between two plain steps, or on the way down: the columns are owed an update at this epsilon
            g = self._columns(problem, state.f, eps)
        side_a, side_b = problem.sides
        F, G = state.f + side_a.absorbed(), g + side_b.absorbed()
        stats: dict[str, Any] = {"marginal_error": float(state.error.max())}
        return Outcome(GibbsPlan(problem.geometry, F, G, eps), state.f, g, stats)


def towards(old: Tensor, new: Tensor, omega: Tensor) -> Tensor:
    """Old + omega (new - old), and -inf where there can be no mass."""
    return torch.where(torch.isfinite(new - old), torch.lerp(old, new, omega), new)


def rough_steps(tol: float) -> int:
    """How many steps may take the sums of float32 on the way to that error."""
    return _ROUGH_STEPS if tol < _ROUGH / 3 else 0


def smoother(rough: int, error: Tensor, f: Tensor, eps: Tensor) -> int:
    """The steps in float32 that are left after one with this error: none near the answer, or where digits are few."""
    if rough <= 0:
        return 0
    noise = torch.finfo(torch.float32).eps * size(f) / eps
    near = ~(noise <= _ROUGH / 2) | (error <= (2 * noise).clamp(min=_FINE))
    looks = not waits(near) or rough % _STRIDE == 1
    return -1 if rough == 1 or (looks and bool(near.all())) else rough - 1
