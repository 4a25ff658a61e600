"""Over-relaxation: a part that is handed to Sinkhorn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import refuse

__all__ = ["OverRelaxation", "Plain", "Relaxation", "RelaxationState"]


class RelaxationState(NamedTuple):
    """The factor in use, its ceiling, and where the running window of errors began; each (*batch,) or ()."""

    omega: Tensor
    ceiling: Tensor
    start_error: Tensor
    steps: int


class Relaxation(ABC):
    """Tells how far beyond the plain update to go: f <- f + omega (update - f)."""

    @abstractmethod
    def init(self, like: Tensor) -> RelaxationState:
        """The state before the first step; `like` has one entry a problem."""

    @abstractmethod
    def next(self, state: RelaxationState, error: Tensor) -> RelaxationState:
        """The state after a step whose error was seen (inf while epsilon still moves)."""


@dataclass(frozen=True)
class Plain(Relaxation):
    """No relaxation: omega = 1."""

    def init(self, like: Tensor) -> RelaxationState:
        one = torch.ones_like(like)
        return RelaxationState(one, one, torch.full_like(like, torch.inf), 0)

    def next(self, state: RelaxationState, error: Tensor) -> RelaxationState:
        return state


@dataclass(frozen=True)
class OverRelaxation(Relaxation):
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

    def init(self, like: Tensor) -> RelaxationState:
        one = torch.ones_like(like)
        return RelaxationState(one, self.ceiling * one, torch.full_like(like, torch.inf), 0)

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
