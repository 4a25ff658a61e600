"""Over-relaxation and Anderson mixing: parts that are handed to Sinkhorn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._inputs import is_count, is_real
from ...errors import refuse

__all__ = ["Anderson", "AndersonState", "OverRelaxation", "Plain", "Relaxation", "RelaxationState"]


class RelaxationState(NamedTuple):
    """The factor in use, its ceiling, and where the running window of errors began; each (*batch,) or ()."""

    omega: Tensor
    ceiling: Tensor
    start_error: Tensor
    steps: int


class AndersonState(NamedTuple):
    """The last iterates of each problem, as differences, and what the safeguard has to know."""

    omega: Tensor  # (*batch,) ones: the updates themselves are plain
    image: Tensor  # (*batch, n) of the last iterate under one iteration
    residual: Tensor  # (*batch, n) that image minus the iterate
    d_images: Tensor  # (*batch, depth, n) from one iterate to the next, the last one at the end; zero where cleared
    d_residuals: Tensor  # likewise
    known: Tensor  # (*batch,) whether there is a last iterate
    best: Tensor  # (*batch,) the smallest error so far
    refuge: Tensor  # (*batch, n) the image of the iterate that had it
    mark: Tensor  # (*batch,) the smallest error when the running window began
    age: Tensor  # (*batch,) iterations in this window
    rest: Tensor  # (*batch,) plain iterations still to go
    pause: Tensor  # (*batch,) how many it will be the next time


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
        return RelaxationState(one, self.ceiling * one, torch.full_like(one, torch.inf), 0)

    def next(self, state: RelaxationState, error: Tensor) -> RelaxationState:
        if not bool(torch.isfinite(error).all()):  # epsilon still moves
            return state._replace(steps=0)
        steps = state.steps + 1
        if steps < self.window:  # a change of omega makes the error jump: let that settle
            return state._replace(steps=steps)
        if steps == self.window:
            return state._replace(start_error=error, steps=steps)
        if steps < 2 * self.window:
            return state._replace(steps=steps)
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
        omega = torch.where(grew, torch.ones_like(omega), omega)
        changed = bool((omega != state.omega).any())
        return RelaxationState(omega, ceiling, error, 0 if changed else self.window)


_WINDOW = 20  # iterations in which mixing must pay
_PROGRESS = 0.9  # of the smallest error, in a window
_PAUSE = 10  # plain iterations after the first window that did not
_RIDGE = 1e-10  # of the largest square of a difference


@dataclass(frozen=True)
class Anderson(Relaxation[AndersonState]):
    r"""Anderson mixing of the potential f: the combination of the last images whose residual is smallest.

    One iteration maps f to T f, with residual r = T f - f. From the differences dF, dR of the last `depth` images and
    residuals,

        f <- T f - gamma dF,   gamma = argmin sum_i p_i (r - gamma dR)_i^2,

    by normal equations in float64 with a small ridge; p is the row marginal. Near the solution this is GMRES on the
    linearised iteration. The error may rise in between: an iterate is dropped, and the history with it, when its error is
    above `growth` times the smallest so far, and the iteration goes on from the image of the best. A window of iterations
    that leaves more than nine tenths of the smallest error is followed by plain ones, from the best again, and twice as
    many the next time: so either the error falls window by window, or the iteration is the plain one in the end, and
    converges where that does. g stays the best one for f, so that the column marginal is exact throughout.

    O(depth^2 n) time for an iteration and O(depth n) memory, beside what it accelerates. Each problem of a batch has its
    own combination.

    Args:
        depth: differences that are kept.
        growth: of the error over the smallest so far, above which an iterate is dropped.

    Reference:
        Anderson (1965), Iterative procedures for nonlinear integral equations; Walker & Ni (2011), Anderson acceleration
        for fixed-point iterations (type II). The safeguard is ours.
    """

    depth: int = 5
    growth: float = 5.0

    def __post_init__(self) -> None:
        if not is_count(self.depth):
            refuse("Anderson depth", "a positive integer", repr(self.depth))
        if not (is_real(self.growth) and 1 <= self.growth < float("inf")):
            refuse("Anderson growth", "a finite number >= 1", repr(self.growth))

    def init(self, f: Tensor) -> AndersonState:
        one = torch.ones_like(f[..., 0])
        zero, infinite = torch.zeros_like(f), torch.full_like(one, torch.inf)
        history = zero.unsqueeze(-2).expand(*f.shape[:-1], self.depth, f.shape[-1])
        count = torch.zeros_like(one, dtype=torch.int64)
        known = torch.zeros_like(one, dtype=torch.bool)
        return AndersonState(
            one, zero, zero, history, history, known, infinite, zero, infinite, count, count, count + _PAUSE
        )

    def next(self, state: AndersonState, error: Tensor) -> AndersonState:
        return state

    def mixed(
        self, state: AndersonState, old: Tensor, new: Tensor, weights: Tensor, error: Tensor
    ) -> tuple[Tensor, AndersonState]:
        settled = torch.isfinite(error)
        if not bool(settled.any()):  # epsilon still moves
            return new, state
        # the best so far, and whether this iterate or its window is too far from it
        better = error < state.best
        best = torch.where(better, error, state.best)
        refuge = torch.where(better.unsqueeze(-1), new, state.refuge)
        dropped = state.known & (state.rest == 0) & ~(error <= self.growth * best)
        age = torch.where(state.rest > 0, 0, state.age + 1)
        ended = age >= _WINDOW
        slow = ended & (best > _PROGRESS * state.mark)
        mark = torch.where(ended | (state.rest > 0), best, state.mark)
        rest = torch.where(slow, state.pause, (state.rest - 1).clamp(min=0))
        pause = torch.where(slow, 2 * state.pause, state.pause)
        cleared = dropped | slow | ~settled
        # the history with this iterate
        residual = torch.where(torch.isfinite(new), new - old, 0)
        there = (state.known & ~cleared)[..., None, None]
        d_images, d_residuals = (
            torch.where(there, torch.cat([past[..., 1:, :], torch.where(torch.isfinite(step), step, 0).unsqueeze(-2)], -2), 0)
            for past, step in ((state.d_images, new - state.image), (state.d_residuals, residual - state.residual))
        )
        wide = d_residuals.double()
        weighted = wide * weights.double().unsqueeze(-2)
        gram, right = weighted @ wide.mT, weighted @ residual.double().unsqueeze(-1)
        largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
        ridge = torch.where(largest > 0, _RIDGE * largest, 1) * torch.eye(self.depth, dtype=gram.dtype, device=gram.device)
        gamma = torch.linalg.solve_ex(gram + ridge, right).result
        mix = (gamma.mT @ d_images.double()).squeeze(-2).to(new)
        f = new - torch.where((rest > 0).unsqueeze(-1) | ~torch.isfinite(mix), 0, mix)
        f = torch.where((dropped | slow).unsqueeze(-1), refuge, f)
        after = AndersonState(
            state.omega, new, residual, d_images, d_residuals, settled & ~(dropped | slow), best, refuge, mark,
            torch.where(ended | ~settled, 0, age), rest, pause,
        )  # fmt: skip
        return f, after
