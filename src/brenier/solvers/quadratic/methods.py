"""Ways to climb a concave function, batched: parts that a dual solver is handed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ..base import check_number

__all__ = ["LBFGS", "Adam", "Method", "Point"]


class Point(NamedTuple):
    """Where a climb is: positions, values and (super)gradients of B functions."""

    x: Tensor  # (B, d)
    value: Tensor  # (B,)
    grad: Tensor  # (B, d)


Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Values (B,) and gradients (B, d) at x (B, d)."""


class Method(ABC):
    """One step at a time towards the maximum of B concave functions."""

    @abstractmethod
    def init(self, point: Point) -> Any:
        """What the method remembers before the first step."""

    @abstractmethod
    def step(self, function: Function, point: Point, memory: Any, active: Tensor) -> tuple[Point, Any, Tensor]:
        """The next point, the memory, and which functions (B,) could not be climbed any further.

        Args:
            function: to climb.
            point: where we are.
            memory: of this method.
            active: (B,); the others stay where they are.
        """


class _Pairs(NamedTuple):
    """The last steps s and changes of gradient y (newest last), with 1 / <s, y>, which is zero for unusable ones."""

    s: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    rho: tuple[Tensor, ...]


@dataclass(frozen=True)
class LBFGS(Method):
    """Limited-memory BFGS with the weak Wolfe line search by bisection of Lewis & Overton.

    That line search needs no smoothness: it ends wherever a concave function has a gradient along the ray. Near the
    maximum, where rises drown in rounding, steps are judged by slopes alone (Hager & Zhang).

    Args:
        memory: pairs to remember.
        max_trials: evaluations in one line search.
    """

    memory: int = 30
    max_trials: int = 30

    def __post_init__(self) -> None:
        check_number("memory", self.memory)
        check_number("max_trials", self.max_trials)

    def init(self, point: Point) -> _Pairs:
        return _Pairs((), (), ())

    def step(self, function: Function, point: Point, memory: _Pairs, active: Tensor) -> tuple[Point, _Pairs, Tensor]:
        direction = self._direction(point.grad, memory)
        slope = (direction * point.grad).sum(-1)
        flat = ~(slope > 0)  # a direction that does not rise: start over from the gradient
        direction = torch.where(flat.unsqueeze(-1), point.grad, direction)
        slope = (direction * point.grad).sum(-1)
        first = len(memory.s) == 0
        length = torch.ones_like(slope)
        if first:
            length = 1 / point.grad.abs().sum(-1).clamp(min=torch.finfo(slope.dtype).tiny)
        new, moved = self._search(function, point, direction, slope, length, active & (slope > 0))
        s, y = new.x - point.x, point.grad - new.grad
        sy, yy = (s * y).sum(-1), (y * y).sum(-1)
        usable = sy > 1e-14 * (s.norm(dim=-1) * yy.sqrt())
        rho = torch.where(usable, 1 / torch.where(usable, sy, 1), 0)
        stuck = active & ~moved
        if bool(stuck.any()):  # forget what misled the line search; a climb that is stuck without memory has ended
            known = torch.stack(memory.rho).abs().sum(0) > 0 if memory.rho else torch.zeros_like(stuck)
            forget = torch.where(stuck, 0, 1).to(rho)
            memory = memory._replace(rho=tuple(r * forget for r in memory.rho))
            stuck = stuck & ~known
        keep = slice(max(0, len(memory.s) + 1 - self.memory), None)
        memory = _Pairs(
            (*memory.s, s)[keep],
            (*memory.y, y)[keep],
            (*memory.rho, rho)[keep],
        )
        return new, memory, stuck

    @staticmethod
    def _direction(q: Tensor, pairs: _Pairs) -> Tensor:
        alphas = []
        scale = torch.ones_like(q[..., :1])
        for s, y, rho in zip(reversed(pairs.s), reversed(pairs.y), reversed(pairs.rho)):
            alpha = rho * (s * q).sum(-1)
            q = q - alpha.unsqueeze(-1) * y
            alphas.append(alpha)
        for y, rho in zip(pairs.y, pairs.rho):  # the newest usable pair decides
            curvature = (rho * (y * y).sum(-1)).unsqueeze(-1)
            scale = torch.where(curvature > 0, 1 / torch.where(curvature > 0, curvature, 1), scale)
        r = q * scale
        for s, y, rho, alpha in zip(pairs.s, pairs.y, pairs.rho, reversed(alphas)):
            r = r + (alpha - rho * (y * r).sum(-1)).unsqueeze(-1) * s
        return r

    def _search(
        self, function: Function, start: Point, direction: Tensor, slope: Tensor, length: Tensor, open_: Tensor
    ) -> tuple[Point, Tensor]:
        """Go along the ray until the weak Wolfe conditions hold; says which functions have moved."""
        rise, keep = 1e-4, 0.9
        slack = 1e4 * torch.finfo(slope.dtype).eps * start.value.abs()
        low, high = torch.zeros_like(length), torch.full_like(length, math.inf)
        best, moved = start, torch.zeros_like(open_)
        for _ in range(self.max_trials):
            x = torch.where(open_.unsqueeze(-1), start.x + length.unsqueeze(-1) * direction, best.x)
            value, grad = function(x)
            along = (grad * direction).sum(-1)
            gain = value - start.value
            level = (gain >= -slack) & (along >= -0.8 * slope)
            enough = (gain >= rise * length * slope) | level
            take = open_ & enough
            wide = take.unsqueeze(-1)
            best = Point(
                torch.where(wide, x, best.x),
                torch.where(take, value, best.value),
                torch.where(wide, grad, best.grad),
            )
            moved = moved | take
            short = take & (along > keep * slope)
            low = torch.where(short, length, low)
            high = torch.where(open_ & ~enough, length, high)
            open_ = open_ & (short | ~enough)
            if not bool(open_.any()):
                break
            length = torch.where(torch.isinf(high), 2 * length, (low + high.nan_to_num(posinf=0)) / 2)
        return best, moved


class _Moments(NamedTuple):
    first: Tensor
    second: Tensor
    steps: int


@dataclass(frozen=True)
class Adam(Method):
    """Adam with a constant rate: cheap steps for warm starts and few iterations, e.g. inside a network.

    Args:
        lr: rate, in cost units a step.
        betas: memory of the first and of the second moment.
    """

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_number("lr", self.lr)
        if not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)):
            refuse("betas", "two numbers in [0, 1)", repr(self.betas))

    def init(self, point: Point) -> _Moments:
        return _Moments(torch.zeros_like(point.x), torch.zeros_like(point.x), 0)

    def step(
        self, function: Function, point: Point, memory: _Moments, active: Tensor
    ) -> tuple[Point, _Moments, Tensor]:
        first, second = self.betas
        m = first * memory.first + (1 - first) * point.grad
        v = second * memory.second + (1 - second) * point.grad.square()
        t = memory.steps + 1
        change = self.lr * (m / (1 - first**t)) / ((v / (1 - second**t)).sqrt() + 1e-8)
        x = torch.where(active.unsqueeze(-1), point.x + change, point.x)
        return Point(x, *function(x)), _Moments(m, v, t), torch.zeros_like(active)
