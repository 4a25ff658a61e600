"""Over-relaxation and Anderson mixing: parts that are handed to Sinkhorn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._inputs import is_count, is_real
from ...errors import refuse
from ...kernels.device import waits

__all__ = ["Anderson", "AndersonState", "OverRelaxation", "Plain", "Relaxation", "RelaxationState", "size"]


class RelaxationState(NamedTuple):
    """The factor in use, its ceiling, and where the running window of errors began; each (*batch,) or ()."""

    omega: Tensor
    ceiling: Tensor
    start_error: Tensor
    steps: int | Tensor  # () where a look at the errors would wait for a device


class AndersonState(NamedTuple):
    """The last iterates of each problem, as differences, and what the safeguard has to know."""

    omega: Tensor  # (*batch,) that of the early part, and 1 once mixing has begun
    early: RelaxationState
    mixing: Tensor  # (*batch,) whether it has
    ready: Tensor  # (*batch,) whether it had a step before, from where on f -> new f is the plain iteration
    image: Tensor  # (*batch, n) of the last iterate under one iteration
    residual: Tensor  # (*batch, n) that image minus the iterate
    d_images: Tensor  # (*batch, depth, n) from one iterate to the next, the last one at the end; zero where cleared
    d_residuals: Tensor  # likewise, times the roots of the shares that the points had of the mass
    gram: Tensor  # (*batch, depth, depth) products of these, in float64
    known: Tensor  # (*batch,) whether there is a last iterate
    best: Tensor  # (*batch,) the smallest error so far
    refuge: Tensor  # (*batch, n) the image of the iterate that had it
    mark: Tensor  # (*batch,) the smallest error when the running window began
    age: Tensor  # (*batch,) iterations in this window
    spent: Tensor  # (*batch,) whether mixing has ended for good


State = TypeVar("State", RelaxationState, AndersonState)


class Relaxation(ABC, Generic[State]):
    """Tells where to go from the plain update of a potential."""

    @abstractmethod
    def init(self, f: Tensor) -> State:
        """The state before the first step, from f (*batch, n)."""

    @abstractmethod
    def next(self, state: State, error: Tensor) -> State:
        """The state after a step whose error was seen (inf while epsilon still moves).

        Its omega, (*batch,), is how far both potentials go beyond their updates: f <- f + omega (update - f).
        """

    def mixed(self, state: State, old: Tensor, new: Tensor, weights: Tensor, error: Tensor) -> tuple[Tensor, State]:
        """The f to go on with, from the last one (*batch, n), its image under an iteration, and masses to measure by.

        g is then the best one for this f.
        """
        return new, state


@dataclass(frozen=True)
class Plain(Relaxation[RelaxationState]):
    """No relaxation: omega = 1."""

    def init(self, f: Tensor) -> RelaxationState:
        one = torch.ones_like(f[..., 0])
        return RelaxationState(one, one, torch.full_like(one, torch.inf), 0)

    def next(self, state: RelaxationState, error: Tensor) -> RelaxationState:
        return state


@dataclass(frozen=True)
class OverRelaxation(Relaxation[RelaxationState]):
    r"""Successive over-relaxation with the factor taken from the observed rate of convergence.

    Near the solution Sinkhorn contracts by a factor eta an iteration and the relaxed iteration is linear too, so
    Young's relation (rho + omega - 1)^2 = rho omega^2 eta links the observed rate rho to eta, and the best factor is
    omega = 2 / (1 + sqrt(1 - eta)), with rate omega - 1: the square root of the number of iterations. The rate is
    measured over windows. A window without progress lowers the ceiling of omega, and one in which the error grew sets
    omega back to 1, so the iteration keeps the convergence of the plain one.

    Args:
        window: iterations between two estimates.
        ceiling: largest omega, below 2.

    Reference:
        Lehmann, von Renesse, Sambale & Uschmajew (2022), A note on overrelaxation in the Sinkhorn algorithm;
        Thibault, Chizat, Dossal & Papadakis (2021), Overrelaxed Sinkhorn-Knopp.
    """

    window: int = 10
    ceiling: float = 1.98

    def __post_init__(self) -> None:
        if not (isinstance(self.window, int) and self.window >= 2):
            refuse("OverRelaxation window", "an integer >= 2", repr(self.window))
        if not 1 <= self.ceiling < 2:
            refuse("OverRelaxation ceiling", "a number in [1, 2)", repr(self.ceiling))

    def init(self, f: Tensor) -> RelaxationState:
        one = torch.ones_like(f[..., 0])
        steps = one.new_zeros((), dtype=torch.int64) if waits(one) else 0
        return RelaxationState(one, self.ceiling * one, torch.full_like(one, torch.inf), steps)

    def next(self, state: RelaxationState, error: Tensor) -> RelaxationState:
        if isinstance(state.steps, Tensor):
            return self._next_unseen(state, state.steps, error)
        if not bool(torch.isfinite(error).all()):  # epsilon still moves
            return state._replace(steps=0)
        steps = state.steps + 1
        if steps < self.window:  # a change of omega makes the error jump: let that settle
            return state._replace(steps=steps)
        if steps == self.window:
            return state._replace(start_error=error, steps=steps)
        if steps < 2 * self.window:
            return state._replace(steps=steps)
        omega, ceiling = self._judged(state, error)
        changed = bool((omega != state.omega).any())
        return RelaxationState(omega, ceiling, error, 0 if changed else self.window)

    def _next_unseen(self, state: RelaxationState, steps: Tensor, error: Tensor) -> RelaxationState:
        """`next` without a look at a number: all is computed, and taken where it is due."""
        steps = torch.where(torch.isfinite(error).all(), steps + 1, 0)
        due = steps >= 2 * self.window
        omega, ceiling = self._judged(state, error)
        omega, ceiling = torch.where(due, omega, state.omega), torch.where(due, ceiling, state.ceiling)
        start = torch.where(due | (steps == self.window), error, state.start_error)
        changed = (omega != state.omega).any()
        return RelaxationState(omega, ceiling, start, torch.where(due, torch.where(changed, 0, self.window), steps))

    def _judged(self, state: RelaxationState, error: Tensor) -> tuple[Tensor, Tensor]:
        """The factor and its ceiling after a window that ends with this error."""
        omega = state.omega
        rate = (error / state.start_error).pow(1 / self.window).nan_to_num(nan=0.0)
        grew = error > 2 * state.start_error
        eta = ((rate + omega - 1).square() / (rate * omega.square()).clamp(min=1e-12)).clamp(0, 1)
        best = torch.minimum(2 / (1 + (1 - eta).sqrt()), state.ceiling)
        # a rate below omega - 1 belongs to no eta: the fast transient is not over, or omega is high enough
        raised = (rate > omega - 1) & (best - omega > 0.1 * (2 - omega))
        # no progress at all: the floor of the precision, which relaxation lifts by 1 / (2 - omega)
        stalled = (error >= state.start_error) & (omega > 1)
        ceiling = torch.where(stalled, 1 + 0.9 * (omega - 1), state.ceiling)
        omega = torch.where(stalled, ceiling, torch.where(raised, best, omega))
        return torch.where(grew, torch.ones_like(omega), omega), ceiling


_WINDOW = 50  # iterations in which mixing must pay
_PROGRESS = 0.98  # of the smallest error, in a window
_RIDGE = 1e-10  # of the largest square of a difference


@dataclass(frozen=True)
class Anderson(Relaxation[AndersonState]):
    r"""Anderson mixing of the potential f: the combination of the last images whose residual is smallest.

    One iteration maps f to T f, with residual r = T f - f. From the differences dF, dR of the last `depth` images and
    residuals,

        f <- T f - gamma dF,   gamma = argmin sum_i p_i (r - gamma dR)_i^2,

    by normal equations in float64 with a small ridge; p is the row marginal. Near the solution this is GMRES on the
    linearised iteration. The error may rise in between: an iterate is dropped, and the history with it, when its error
    is above `growth` times the smallest so far, and the iteration goes on from the image of the best. A window of
    iterations that leaves nearly all of the smallest error, as at the floor of the precision, ends mixing for good.
    So either the error falls window by window, or the iteration is over-relaxed in the end, and converges where the
    plain one does.
    While it mixes, g is the best one for f, so that the column marginal is exact.

    Far from the solution at small epsilon the iteration is not linear, and over-relaxation is the better guide: mixing
    begins where the error is below `below`.

    O(depth n) time for an iteration and O(depth n) memory, beside what it accelerates. Each problem of a batch has
    its own combination.

    Args:
        depth: differences that are kept.
        growth: of the error over the smallest so far, above which an iterate is dropped.
        below: the error, relative to the mass, at which mixing begins; inf begins at once.
        early: what serves before, and after.

    Reference:
        Anderson (1965), Iterative procedures for nonlinear integral equations; Walker & Ni (2011), Anderson
        acceleration for fixed-point iterations (type II). The safeguard is ours.
    """

    depth: int = 5
    growth: float = 5.0
    below: float = 0.01
    early: OverRelaxation | Plain = OverRelaxation()

    def __post_init__(self) -> None:
        if not is_count(self.depth):
            refuse("Anderson depth", "a positive integer", repr(self.depth))
        if not (is_real(self.growth) and 1 <= self.growth < float("inf")):
            refuse("Anderson growth", "a finite number >= 1", repr(self.growth))
        if not (is_real(self.below) and self.below > 0):
            refuse("Anderson below", "a positive number", repr(self.below))
        if not isinstance(self.early, OverRelaxation | Plain):
            refuse("Anderson early", "OverRelaxation() or Plain()", repr(self.early))

    def init(self, f: Tensor) -> AndersonState:
        one = torch.ones_like(f[..., 0])
        zero, infinite = torch.zeros_like(f), torch.full_like(one, torch.inf)
        history = zero.unsqueeze(-2).expand(*f.shape[:-1], self.depth, f.shape[-1])
        gram = f.new_zeros((*f.shape[:-1], self.depth, self.depth), dtype=torch.float64)
        count = torch.zeros_like(one, dtype=torch.int64)
        never = torch.zeros_like(one, dtype=torch.bool)
        return AndersonState(
            one, self.early.init(f), never, never, zero, zero, history, history, gram, never, infinite, zero, infinite,
            count, never,
        )  # fmt: skip

    def next(self, state: AndersonState, error: Tensor) -> AndersonState:
        early, before = self.early.next(state.early, error), state.early
        # what it sees of mixed iterates says nothing about its own
        early = early._replace(
            omega=torch.where(state.mixing, before.omega, early.omega),
            ceiling=torch.where(state.mixing, before.ceiling, early.ceiling),
        )
        mixing = (state.mixing | (error <= self.below)) & ~state.spent
        omega = torch.where(mixing, 1, early.omega)
        return state._replace(omega=omega, early=early, mixing=mixing, ready=state.mixing & mixing)

    def mixed(
        self, state: AndersonState, old: Tensor, new: Tensor, weights: Tensor, error: Tensor
    ) -> tuple[Tensor, AndersonState]:
        ready = state.ready
        if not waits(ready) and not bool(ready.any()):
            return new, state
        # the best so far, and whether this iterate or its window is too far from it
        better = ready & (error < state.best)
        best = torch.where(better, error, state.best)
        refuge = torch.where(better.unsqueeze(-1), new, state.refuge)
        dropped = state.known & ~(error <= self.growth * best)
        age = state.age + 1
        ended = ready & (age >= _WINDOW)
        slow = ended & (best > _PROGRESS * state.mark)
        mark = torch.where(ended, best, state.mark)
        cleared = dropped | slow | ~ready
        # the history with this iterate; each difference with the masses by which it is measured
        mass = weights.double()
        scale = (mass / mass.sum(-1, keepdim=True)).sqrt_().to(new)
        residual = (new - old).nan_to_num_(0, 0, 0)
        there = (state.known & ~cleared)[..., None, None]
        d_images, d_residuals = (
            torch.cat([past[..., 1:, :], step.unsqueeze(-2)], -2)
            for past, step in (
                (state.d_images, (new - state.image).nan_to_num_(0, 0, 0)),
                (state.d_residuals, (residual - state.residual).mul_(scale).nan_to_num_(0, 0, 0)),
            )
        )
        if waits(there) or not bool(there.all()):
            d_images, d_residuals = d_images.mul_(there), d_residuals.mul_(there)
        last, right = _dots(d_residuals, d_residuals[..., -1, :]), _dots(d_residuals, residual * scale)
        gram = torch.where(there, state.gram.roll((-1, -1), (-2, -1)), 0)
        gram[..., -1, :] = gram[..., -1] = last
        # differences that are all rounding say nothing
        noise = (torch.finfo(new.dtype).eps * size(new).double()).square()
        largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        ridge = torch.where(largest > 0, torch.maximum(_RIDGE * largest, noise), 1)[..., None, None]
        ridged, right = gram + ridge * torch.eye(self.depth, dtype=gram.dtype, device=gram.device), right.unsqueeze(-1)
        gamma = _eliminated(ridged, right) if waits(gram) else torch.linalg.solve_ex(ridged, right).result
        f = new - (gamma * d_images).sum(-2).to(new).nan_to_num_(0, 0, 0)
        f = torch.where((dropped | slow).unsqueeze(-1), refuge, f)
        after = state._replace(
            image=new, residual=residual, d_images=d_images, d_residuals=d_residuals, gram=gram,
            known=ready & ~(dropped | slow), best=best, refuge=refuge, mark=mark,
            age=torch.where(ended | ~ready, 0, age), spent=state.spent | slow,
        )  # fmt: skip
        return f, after


def size(f: Tensor) -> Tensor:
    """The largest finite |f|, (*batch,)."""
    return f.nan_to_num(0, 0, 0).abs_().amax(-1)


def _dots(rows: Tensor, row: Tensor) -> Tensor:
    """Products (*batch, k) of rows (*batch, k, n) and a row (*batch, n), in float64.

    As sums, since the products of such thin matrices may wait for threads.
    """
    return (rows.double() * row.double().unsqueeze(-2)).sum(-1)


def _eliminated(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution x (*batch, k, 1) of positive definite systems (*batch, k, k) by elimination, in nothing but sums.

    What libraries do on a GPU for so small a system may wait, or refuse to be captured.
    """
    system = torch.cat([matrix, right], -1)
    place = torch.arange(matrix.shape[-1], device=matrix.device).unsqueeze(-1)
    for k in range(matrix.shape[-1]):
        row = system[..., k : k + 1, :] / system[..., k : k + 1, k : k + 1]
        system = torch.where(place == k, row, system - system[..., k : k + 1] * row)
    return system[..., -1:]
