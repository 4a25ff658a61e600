"""Exact transport on the line: sort both sides and match from left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import PointCloud
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver

__all__ = ["Monotone", "MonotoneState"]


class MonotoneState(NamedTuple):
    """Entries of the plan and potentials, in float64."""

    rows: Tensor
    cols: Tensor
    mass: Tensor
    f: Tensor
    g: Tensor


@dataclass(frozen=True)
class Monotone(Solver[Any]):
    """The closed form in one dimension, for costs h(x - y) with h convex.

    The sorted (quantile) coupling is optimal; it has at most n + m - 1 entries. Potentials follow from the sorted
    cells: f grows from x_i to the next by c(x', y) - c(x, y), with y the target at which the mass of x_i ends.
    O((n + m) log(n + m)) time, O(n + m) memory, any weights, batched.
    """

    name: ClassVar[str] = "monotone"

    def check(self, problem: Problem) -> None:
        geometry = problem.geometry
        if not isinstance(geometry, PointCloud) or geometry.x.shape[-1] != 1:
            refuse("monotone", "points on a line (d = 1)", repr(geometry), "Use solver='network-simplex'.")
        if not geometry.ground.monotone_on_line():
            refuse(
                "monotone",
                "a cost that is convex in x - y",
                repr(geometry.ground),
                "Use solver='network-simplex', or CallableCost(function, convex_on_line=True).",
            )
        if problem.epsilon is not None:
            refuse("monotone", "epsilon=None", f"epsilon={problem.epsilon.tolist()}", "Use solver='sinkhorn'.")
        if not problem.balanced:
            refuse("monotone", "exact marginals", str(problem.marginals), "Give an epsilon for soft ones.")

    def init(self, problem: Problem) -> Any:
        return None

    def step(self, problem: Problem, state: Any) -> MonotoneState:
        geometry = problem.geometry
        assert isinstance(geometry, PointCloud)
        batch, (n, m) = problem.batch_shape, problem.shape
        x = geometry.x.double().squeeze(-1).expand(*batch, n)
        y = geometry.y.double().squeeze(-1).expand(*batch, m)
        x, order_x = x.sort(stable=True, dim=-1)
        y, order_y = y.sort(stable=True, dim=-1)
        a = problem.a.double().gather(-1, order_x)
        b = problem.b.double().gather(-1, order_y)
        ends_a, ends_b = a.cumsum(-1), b.cumsum(-1)
        # both staircases must end at the same height, whatever the rounding
        top = torch.maximum(ends_a[..., -1:], ends_b[..., -1:])
        ends_a, ends_b = (torch.cat([e[..., :-1].minimum(top), top], -1) for e in (ends_a, ends_b))

        ends = torch.cat([ends_a, ends_b], -1).sort(-1).values
        mass = torch.diff(ends, dim=-1, prepend=ends.new_zeros((*batch, 1)))
        middle = ends - mass / 2
        i = torch.searchsorted(ends_a.contiguous(), middle.contiguous()).clamp(max=n - 1)
        j = torch.searchsorted(ends_b.contiguous(), middle.contiguous()).clamp(max=m - 1)
        # an interval without mass sits on a boundary: park it at the origin, as padding
        empty = mass <= 0
        rows = torch.where(empty, 0, order_x.gather(-1, i))
        cols = torch.where(empty, 0, order_y.gather(-1, j))

        f, g = self._potentials(geometry.ground, x, y, ends_a, ends_b)
        if not (torch.isfinite(f).all() and torch.isfinite(g).all()):
            refuse(
                "cost", "finite values between all pairs", "NaN or infinity", "Rescale the points, or mend the cost."
            )
        return MonotoneState(rows, cols, mass, f.gather(-1, order_x.argsort(-1)), g.gather(-1, order_y.argsort(-1)))

    @staticmethod
    def _potentials(cost: Any, x: Tensor, y: Tensor, ends_a: Tensor, ends_b: Tensor) -> tuple[Tensor, Tensor]:
        """Walk along the staircase of basic cells, one row or one column at a time."""
        n, m = x.shape[-1], y.shape[-1]

        def c(u: Tensor, v: Tensor) -> Tensor:
            out: Tensor = cost(u.unsqueeze(-1), v.unsqueeze(-1))
            return out

        # on a tie the column moves first, so the row that ends at the same height already faces the next column
        at_row = torch.searchsorted(ends_b.contiguous(), ends_a[..., :-1].contiguous(), right=True).clamp(max=m - 1)
        at_col = torch.searchsorted(ends_a.contiguous(), ends_b[..., :-1].contiguous()).clamp(max=n - 1)
        y_then, x_then = y.gather(-1, at_row), x.gather(-1, at_col)
        df = c(x[..., 1:], y_then) - c(x[..., :-1], y_then)
        dg = c(x_then, y[..., 1:]) - c(x_then, y[..., :-1])
        zero = x.new_zeros((*x.shape[:-1], 1))
        f = torch.cat([zero, df.cumsum(-1)], -1)
        g = torch.cat([zero, dg.cumsum(-1)], -1) + c(x[..., :1], y[..., :1])
        return f, g

    def terminate(self, problem: Problem, state: MonotoneState) -> tuple[Status, ...] | None:
        return (Status.OPTIMAL,) * max(1, problem.batch_shape.numel())

    def error(self, state: MonotoneState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: MonotoneState) -> Outcome:
        plan = SparsePlan(problem.geometry, state.rows, state.cols, state.mass)
        return Outcome(plan, state.f, state.g, {})
