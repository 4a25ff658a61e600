"""Exact transport on the line and on the circle: sort both sides and match from left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...costs import Arc
from ...errors import refuse
from ...geometry import CircleCloud, LineCloud, PointCloud
from ...geometry.line import ordered
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver
from .line import arc_on_line, check_arc, heights, potentials, rotate, settled, staircase

__all__ = ["Circle", "LineState", "Monotone"]


class LineState(NamedTuple):
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
    cells. O((n + m) log(n + m)) time, O(n + m) memory, any weights, batched. The certificate costs no more: a convex
    cost is Monge, so the hard c-transforms of any potentials have minima that move to the right (`LineCloud`).
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
        check_exact("monotone", problem)

    def init(self, problem: Problem) -> Any:
        return None

    def step(self, problem: Problem, state: Any) -> LineState:
        geometry = problem.geometry
        assert isinstance(geometry, PointCloud)
        batch, (n, m) = problem.batch_shape, problem.shape
        x = geometry.x.double().squeeze(-1).expand(*batch, n)
        y = geometry.y.double().squeeze(-1).expand(*batch, m)
        (x, order_x), (y, order_y) = ordered(x), ordered(y)
        a = problem.a.double().gather(-1, order_x)
        b = problem.b.double().gather(-1, order_y)
        ends_a, ends_b = heights(a, b)
        cells = staircase(ends_a, ends_b)
        cells = cells._replace(mass=settled(cells, a, b))
        ground = geometry.ground
        f, g = potentials(lambda u, v: ground(u.unsqueeze(-1), v.unsqueeze(-1)), x, y, ends_a, ends_b)
        return unsorted(LineState(*cells, f, g), order_x, order_y)

    def terminate(self, problem: Problem, state: LineState) -> tuple[Status, ...] | None:
        return (Status.OPTIMAL,) * max(1, problem.batch_shape.numel())

    def error(self, state: LineState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: LineState) -> Outcome:
        return outcome(problem, state, LineCloud)


class CircleState(NamedTuple):
    """The answer, and how it was found."""

    line: LineState
    gap: Tensor
    optimal: Tensor
    n_iter: int


@dataclass(frozen=True)
class Circle(Solver[Any]):
    r"""Exact transport on a circle, for the costs `Arc(period, power)` with power >= 1.

    Cut open at the right place, the circle is a line. The shift of the quantile functions against each other is the
    minimiser of a convex function with corners, found by its tangents; these are duals, and give potentials. At most
    n + m entries. O((n + m) log(n + m)) time to sort, then some dozens of steps of O(n + m) and a search; O(n + m)
    memory, any weights, batched. The certificate is O((n + m) log(n + m)) (`CircleCloud`).

    Example:
        >>> import torch, brenier
        >>> from brenier.costs import Arc
        >>> night, morning = torch.tensor([22.0, 23.0]), torch.tensor([1.0, 2.0])
        >>> float(brenier.solve(night, morning, cost=Arc(period=24.0)).value)
        3.0

    Reference:
        Delon, Salomon & Sobolevskii (2010), Fast transport optimization for Monge costs on the circle; Rabin, Delon &
        Gousseau (2011), Transportation distances on the circle.
    """

    name: ClassVar[str] = "circle"

    def check(self, problem: Problem) -> None:
        geometry = problem.geometry
        if not isinstance(geometry, PointCloud):
            refuse("circle", "angles of shape (n,) or (n, 1)", repr(geometry), "Use solver='network-simplex'.")
        check_arc("circle", geometry.ground)
        check_exact("circle", problem)

    def init(self, problem: Problem) -> Any:
        return None

    def step(self, problem: Problem, state: Any) -> CircleState:
        geometry = problem.geometry
        assert isinstance(geometry, PointCloud)
        assert isinstance(geometry.ground, Arc)
        batch, period = problem.batch_shape, geometry.ground.period
        parts = (geometry.x.squeeze(-1), geometry.y.squeeze(-1), problem.a, problem.b)
        x, y, a, b = (t.double().expand(*batch, -1).reshape(-1, t.shape[-1]) for t in parts)
        (x, order_x), (y, order_y) = ordered(x.remainder(period)), ordered(y.remainder(period))
        a, b = a.gather(-1, order_x), b.gather(-1, order_y)
        found = rotate(arc_on_line(geometry.ground), x, y, a, b, period)
        line = unsorted(LineState(*found.cells, found.f, found.g), order_x, order_y)
        return CircleState(LineState(*(t.reshape(*batch, -1) for t in line)), found.gap, found.optimal, found.n_iter)

    def terminate(self, problem: Problem, state: CircleState) -> tuple[Status, ...] | None:
        return tuple(Status.OPTIMAL if optimal else Status.MAX_ITER for optimal in state.optimal.tolist())

    def error(self, state: CircleState) -> float:
        return float(state.gap.max())

    def finish(self, problem: Problem, state: CircleState) -> Outcome:
        plan, f, g, _ = outcome(problem, state.line, CircleCloud)
        return Outcome(plan, f, g, {"n_iter": state.n_iter})


def check_exact(name: str, problem: Problem) -> None:
    """Refuse an epsilon and soft marginals."""
    if problem.epsilon is not None:
        refuse(name, "epsilon=None", f"epsilon={problem.epsilon.tolist()}", "Use solver='sinkhorn'.")
    if not problem.balanced:
        refuse(name, "exact marginals", str(problem.marginals), "Give an epsilon for soft ones.")


def unsorted(state: LineState, order_x: Tensor, order_y: Tensor) -> LineState:
    """Ranks and sorted potentials in terms of the points as they came."""
    rows, cols, mass, f, g = state
    if not (torch.isfinite(f).all() and torch.isfinite(g).all()):
        refuse("cost", "finite values between all pairs", "NaN or infinity", "Rescale the points, or mend the cost.")
    # a cell without mass is parked at the origin, as padding
    empty = mass <= 0
    rows, cols = (torch.where(empty, 0, o.gather(-1, k)) for o, k in ((order_x, rows), (order_y, cols)))
    f, g = (torch.empty_like(t).scatter(-1, o, t) for t, o in ((f, order_x), (g, order_y)))
    return LineState(rows, cols, mass, f, g)


def outcome(problem: Problem, state: LineState, cloud: type[LineCloud]) -> Outcome:
    """The plan, over a cloud that knows how to search."""
    geometry = problem.geometry
    assert isinstance(geometry, PointCloud)
    plan = SparsePlan(cloud(geometry.x, geometry.y, geometry.ground), state.rows, state.cols, state.mass)
    return Outcome(plan, state.f, state.g, {})
