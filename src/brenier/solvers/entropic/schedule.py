"""Epsilon schedules: a part that is handed to an entropic solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._inputs import is_real
from ...errors import refuse
from ...problem import Problem

__all__ = ["Fixed", "Halving", "Schedule"]


class Schedule(ABC):
    """Tells which epsilon an iteration works at; the last one is the problem's own."""

    @abstractmethod
    def start(self, problem: Problem) -> Tensor:
        """The first epsilon, (*batch,) or ()."""

    @abstractmethod
    def next(self, epsilon: Tensor, target: Tensor) -> Tensor:
        """The epsilon after this one, never below the target."""


@dataclass(frozen=True)
class Fixed(Schedule):
    """The problem's epsilon from the first iteration."""

    def start(self, problem: Problem) -> Tensor:
        assert problem.epsilon is not None
        return problem.epsilon

    def next(self, epsilon: Tensor, target: Tensor) -> Tensor:
        return target


@dataclass(frozen=True)
class Halving(Schedule):
    """Start at the range of the costs and shrink geometrically, one iteration at each level.

    Small epsilon then costs log(range / epsilon) cheap iterations first instead of range / epsilon slow ones.

    Args:
        factor: of one step, in (0, 1).
    """

    factor: float = 0.5

    def __post_init__(self) -> None:
        if not (is_real(self.factor) and 0 < self.factor < 1):
            refuse("Halving factor", "a number in (0, 1)", repr(self.factor))

    def start(self, problem: Problem) -> Tensor:
        assert problem.epsilon is not None
        return torch.maximum(problem.geometry.range_estimate().to(problem.epsilon), problem.epsilon)

    def next(self, epsilon: Tensor, target: Tensor) -> Tensor:
        return torch.maximum(epsilon * self.factor, target)
