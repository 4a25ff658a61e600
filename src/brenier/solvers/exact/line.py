"""The quantile coupling on the line and on the circle: staircases, potentials, and costs as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._inputs import check_finite, float_tensor, is_real, same_place, weights_tensor
from ...costs import Arc, CallableCost, Cost
from ...errors import refuse
from ...geometry.line import LineCost, ordered, ordered_values
from ...problem import equal_masses

__all__ = [
    "Rotation",
    "Staircase",
    "circle_cost",
    "heights",
    "line_cost",
    "potentials",
    "rotate",
    "settled",
    "staircase",
]


_TIE = 1e-15  # heights that differ by less, relatively, are equal but for rounding


class Staircase(NamedTuple):
    """Cells of the quantile coupling from left to right: ranks of rows and columns, and masses, (*batch, n + m)."""

    rows: Tensor
    cols: Tensor
    mass: Tensor


def heights(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Running totals of two lists of masses, in float64, that end at the same height whatever the rounding."""

    def total(t: Tensor) -> Tensor:
        t = t.double()
        s = t.cumsum(-1)
        return s + (t - torch.diff(s, dim=-1, prepend=torch.zeros_like(s[..., :1]))).cumsum(-1)  # its rounding

    ends_a, ends_b = total(a), total(b)
    ends_b = ends_b * (ends_a[..., -1:] / ends_b[..., -1:])  # totals that are equal in float32 only
    top = torch.maximum(ends_a[..., -1:], ends_b[..., -1:])
    ends_a, ends_b = (torch.cat([e[..., :-1].minimum(top), top], -1) for e in (ends_a, ends_b))
    return ends_a, ends_b


def staircase(
    ends_a: Tensor,  # (*batch, n), ascending
    ends_b: Tensor,  # (*batch, m), ascending
) -> Staircase:
    """Merge two lists of heights: a cell lies between each height and the next, O((n + m) log(n + m))."""
    n, m = ends_a.shape[-1], ends_b.shape[-1]
    ends, order = ordered(torch.cat([ends_a, ends_b], -1))  # a vectorised sort, faster than a search for each height
    ends_row = (order < n).long()
    rows = ends_row.cumsum(-1) - ends_row
    cols = (torch.arange(n + m, device=rows.device) - rows).clamp_(max=m - 1)
    rows = rows.clamp_(max=n - 1)
    return Staircase(rows, cols, torch.diff(ends, dim=-1, prepend=ends.new_zeros((*ends.shape[:-1], 1))))


def settled(cells: Staircase, a: Tensor, b: Tensor, steps: Tensor | None = None, first: Tensor | None = None) -> Tensor:
    """The masses of the cells once more, with sums that are right to their own rounding instead of that of the total.

    What rows and columns miss is added up from left to right like the masses themselves.

    Args:
        cells: of a staircase.
        a, b: masses by rank, (*batch, n) and (*batch, m).
        steps, first: on a circle: how many columns have ended before each cell, and the rank of the first column.
    """
    rows, cols, mass = cells
    m = b.shape[-1]
    height = mass.cumsum(-1) if steps is None else mass.sum(-1, keepdim=True)
    mass = torch.where(mass > _TIE * height, mass, 0)
    miss_a, miss_b = (t - torch.zeros_like(t).scatter_add(-1, k, mass) for t, k in ((a, rows), (b, cols)))
    skew = miss_a.sum(-1, keepdim=True) - miss_b.sum(-1, keepdim=True)  # totals differ by rounding, too
    if steps is None or first is None:
        steps = cols
    else:  # what the first column misses is found where it comes again, at the end
        miss_b = miss_b.gather(-1, (first + torch.arange(m, device=b.device)) % m)
        miss_b[..., 0] = 0
    # on a tie both end, and the row decides
    n = a.shape[-1]
    later = torch.nn.functional.pad(torch.where(mass > 0, rows, n)[..., 1:], (0, 1), value=n)
    next_row = later.flip(-1).cummin(-1).values.flip(-1)
    drift_a = miss_a.cumsum(-1).gather(-1, (next_row - 1).clamp(min=0))
    drift_b = miss_b.cumsum(-1).gather(-1, steps.clamp(max=m - 1))
    drift_b = drift_b + skew * mass.cumsum(-1) / mass.sum(-1, keepdim=True)
    if first is not None:  # where the circle is cut open is free to the last digit: ties stay ties
        tie = (mass > 0) & torch.nn.functional.pad(mass[..., 1:] <= 0, (0, 1))
        where = tie.to(torch.uint8).argmax(-1, keepdim=True)
        drift_b = drift_b + torch.where(tie.any(-1, keepdim=True), (drift_a - drift_b).gather(-1, where), 0)
    drift = torch.where(next_row > rows, drift_a, drift_b)
    # empty cells stay empty
    cell = torch.arange(1, mass.shape[-1] + 1, device=mass.device)
    last = torch.where(mass > 0, cell, 0).cummax(-1).values
    drift = torch.cat([torch.zeros_like(drift[..., :1]), drift], -1).gather(-1, last)
    drift = torch.diff(drift, dim=-1, prepend=torch.zeros_like(drift[..., :1]))
    return torch.where(mass > 0, (mass + drift).clamp(min=0), 0)


def potentials(cost: LineCost, x: Tensor, y: Tensor, ends_a: Tensor, ends_b: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials of sorted points (*batch, n) and (*batch, m): a walk along the staircase of basic cells.

    f grows from x_i to the next by c(x', y) - c(x, y), with y the target at which the mass of x_i ends; g likewise.
    """
    n, m = x.shape[-1], y.shape[-1]
    # on a tie the column moves first, so the row that ends at the same height already faces the next column
    at_row = torch.searchsorted(ends_b.contiguous(), ends_a[..., :-1].contiguous(), right=True).clamp(max=m - 1)
    at_col = torch.searchsorted(ends_a.contiguous(), ends_b[..., :-1].contiguous()).clamp(max=n - 1)
    y_then, x_then = y.gather(-1, at_row), x.gather(-1, at_col)
    df = cost(x[..., 1:], y_then) - cost(x[..., :-1], y_then)
    dg = cost(x_then, y[..., 1:]) - cost(x_then, y[..., :-1])
    zero = x.new_zeros((*x.shape[:-1], 1))
    f = torch.cat([zero, df.cumsum(-1)], -1)
    g = torch.cat([zero, dg.cumsum(-1)], -1) + cost(x[..., :1], y[..., :1])
    return f, g


# -- the circle --------------------------------------------------------------------------------------------------


class Rotation(NamedTuple):
    """The optimal coupling of a circle, cut open and unrolled: one turn of the rows, and columns in any turn."""

    cells: Staircase  # ranks
    turns: Tensor  # (batch, n + m) the column of a cell lies so many periods further on
    f: Tensor  # (batch, n) optimal potentials, in sorted order
    g: Tensor  # (batch, m)
    gap: Tensor  # (batch,) between the cost and the value of the potentials
    optimal: Tensor  # (batch,) whether that is rounding
    n_iter: int


class _Turned(NamedTuple):
    """The columns on the line, from the one in force at height 0 on."""

    ranks: Tensor  # (batch, m + 1)
    turns: Tensor  # (batch, m + 1)
    y: Tensor  # (batch, m + 1) positions
    ends: Tensor  # (batch, m) heights at which the first m end


def _turned(theta: Tensor, y: Tensor, ends_b: Tensor, period: float) -> _Turned:
    """Shift the mass of the columns upwards by theta (batch, 1), on a line where it repeats with the period."""
    m, top = y.shape[-1], ends_b[..., -1:]
    whole = (-theta / top).floor()
    start = -theta - whole * top
    first = torch.searchsorted(ends_b, start, right=True)
    step = first + torch.arange(m + 1, device=y.device)
    index, turns = step % m, whole + torch.div(step, m, rounding_mode="floor")
    ends = (ends_b.gather(-1, index[..., :m]) - start) + top * (turns[..., :m] - whole)
    return _Turned(index, turns, y.gather(-1, index) + turns * period, ends.minimum(top))


class _Tangent(NamedTuple):
    """The cost of a rotation and its slope there, and the potentials that prove both."""

    theta: Tensor  # (batch, 1)
    value: Tensor
    slope: Tensor
    f: Tensor  # (batch, n), sorted
    g: Tensor  # (batch, m)


def _tangent(
    theta: Tensor, cost: LineCost, x: Tensor, y: Tensor, ends_a: Tensor, ends_b: Tensor, period: float
) -> _Tangent:
    n, m = x.shape[-1], y.shape[-1]
    turned = _turned(theta, y, ends_b, period)
    cells = staircase(ends_a, turned.ends)
    value = (cells.mass * cost(x.gather(-1, cells.rows), turned.y.gather(-1, _reached(cells, m)))).sum(-1, keepdim=True)
    # on a tie the row moves first
    at_col = torch.searchsorted(ends_a, turned.ends, right=True)
    x_then = x.gather(-1, at_col % n) + (at_col // n) * period
    at_row = torch.searchsorted(turned.ends, ends_a[..., :-1].contiguous())
    y_then = turned.y.gather(-1, at_row)
    df = cost(x[..., 1:], y_then) - cost(x[..., :-1], y_then)
    dg = cost(x_then, turned.y[..., 1:]) - cost(x_then, turned.y[..., :-1])
    slope = -dg.sum(-1, keepdim=True)
    zero = torch.zeros_like(slope)
    f = torch.cat([zero, df.cumsum(-1)], -1)
    g = torch.cat([zero, dg[..., :-1].cumsum(-1)], -1) + cost(x[..., :1], turned.y[..., :1])
    g = torch.empty_like(y).scatter(-1, turned.ranks[..., :m], g + slope * turned.turns[..., :m])
    return _Tangent(theta, value, slope, f, g)


def _reached(cells: Staircase, m: int) -> Tensor:
    """How many of m columns have ended before each cell, also all of them."""
    steps = torch.arange(cells.mass.shape[-1], device=cells.mass.device)
    return (steps - cells.rows).clamp(max=m)


def rotate(
    cost: LineCost,  # h(|x - y|), h convex and increasing
    x: Tensor,  # (batch, n) in [0, period), ascending
    y: Tensor,  # (batch, m)
    a: Tensor,  # masses in the same order
    b: Tensor,
    period: float,
) -> Rotation:
    """Find the best place to cut a circle open, at which the quantile coupling is optimal.

    Repeated without end, the masses form a line, and a shift theta of the columns' heights gives every coupling that
    is monotone around the circle. The cost is convex in theta, with corners (Delon, Salomon & Sobolevskii 2010), and
    theta lies within one turn. Its tangents are duals: where the slope is zero the potentials are periodic, and so
    are mixtures of two potentials whose slopes cancel. Cutting planes and halving take turns until the tangents prove
    the best cost to rounding: each step O(n + m) and two searches.
    """
    ends_a, ends_b = heights(a, b)
    top = ends_a[..., -1:]

    def at(theta: Tensor) -> _Tangent:
        return _tangent(theta, cost, x, y, ends_a, ends_b, period)

    def pick(where: Tensor, one: _Tangent, other: _Tangent) -> _Tangent:
        return _Tangent(*(torch.where(where, s, t) for s, t in zip(one, other)))

    left, right = at(-top), at(top)
    best = pick(left.value <= right.value, left, right)
    n_iter = 2
    while True:
        share = _share(left, right)
        lower = share * (left.value - left.slope * left.theta) + (1 - share) * (right.value - right.slope * right.theta)
        gap = (best.value - lower).clamp(min=0)
        rounding = 4e-16 * (left.value.abs() + right.value.abs() + top * cost(x.new_zeros(()), x.new_tensor(period)))
        halfway = (left.theta + right.theta) / 2
        open_ = (gap > rounding) & (left.theta < halfway) & (halfway < right.theta)
        if n_iter >= _MOST_STEPS or not bool(open_.any()):
            break
        run = (left.value - left.slope * left.theta) - (right.value - right.slope * right.theta)
        rise = right.slope - left.slope
        corner = torch.where(rise > 0, run / torch.where(rise > 0, rise, 1), halfway)
        inside = (corner > left.theta) & (corner < right.theta)
        new = at(torch.where(inside & (n_iter % 3 != 0), corner, halfway))
        best = pick(new.value < best.value, new, best)
        left, right = pick(open_ & (new.slope <= 0), new, left), pick(open_ & (new.slope >= 0), new, right)
        n_iter += 1
    turned = _turned(best.theta, y, ends_b, period)
    cells = staircase(ends_a, turned.ends)
    reached = _reached(cells, y.shape[-1])
    cells = Staircase(cells.rows, turned.ranks.gather(-1, reached), cells.mass)
    cells = cells._replace(mass=settled(cells, a, b, reached, turned.ranks[..., :1]))
    f, g = (share * s + (1 - share) * t for s, t in ((left.f, right.f), (left.g, right.g)))
    return Rotation(
        cells, turned.turns.gather(-1, reached), f, g, gap.squeeze(-1), (gap <= 1e3 * rounding).squeeze(-1), n_iter
    )


_MOST_STEPS = 200


def _share(left: _Tangent, right: _Tangent) -> Tensor:
    """The share of the left tangent in the mixture whose slope is zero."""
    rise = right.slope - left.slope
    flat = rise <= 0  # both are minima
    return torch.where(flat, 1.0, (right.slope / torch.where(flat, 1, rise)).clamp(0, 1))


# -- costs as functions ------------------------------------------------------------------------------------------


def line_cost(
    x: Any,  # (*batch, n)
    y: Any,  # (*batch, m)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    cost: float | Cost | Callable[[Tensor, Tensor], Tensor] = 2.0,
) -> Tensor:  # (*batch)
    r"""Transport costs of many pairs of weighted samples on the line, differentiable.

    .. math:: \int_0^1 h\bigl(F^{-1}(t) - G^{-1}(t)\bigr)\,\mathrm dt, \qquad h \text{ convex}; \quad
        h(u) = |u|^p \text{ gives } W_p^p

    Nothing but the number is computed; `solve` gives plan, potentials and certificate. Gradients in positions hold
    the coupling fixed; those in masses are the potentials, fixed up to a constant, as totals must stay equal.

    Args:
        x, y: positions; batch axes broadcast.
        a, b: masses of equal totals; uniform with total 1 when None.
        cost: a power p >= 1, or a `Cost` with `monotone_on_line()`; for functions see `CallableCost`.

    Raises:
        InvalidInput: NaN or infinite positions, negative masses, unequal totals, a cost that is not convex in x - y.

    Complexity: O((n + m) log(n + m)) time and O(n + m) memory for each item; fastest for n = m without masses.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
        >>> line_cost(x, x + 2, cost=1)
        tensor([2., 2.])

    Source: Santambrogio (2015), Optimal Transport for Applied Mathematicians, chapter 2.
    """
    h = line_function(cost)
    x, y, a, b = _read(x, y, a, b)
    n, m = x.shape[-1], y.shape[-1]
    if a is None and b is None and n == m:
        return h(ordered_values(x), ordered_values(y)).mean(-1)
    if a is None and b is None:  # one staircase for all
        xs, ys = ordered_values(x), ordered_values(y)
        count = x.new_ones((), dtype=torch.float64)
        rows, cols, mass = staircase(*heights(count.expand(n) / n, count.expand(m) / m))
        rows, cols, mass = (t[mass > 0] for t in (rows, cols, mass))
        return (mass.to(x) * h(xs[..., rows], ys[..., cols])).sum(-1)
    a, b = _masses(a, b, x, y)
    (_, order_x), (_, order_y) = ordered(x), ordered(y)
    xs, ys = x.gather(-1, order_x), y.gather(-1, order_y)
    batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1], a.shape[:-1], b.shape[:-1])
    xs, ys, order_x, order_y, a, b = (t.expand(*batch, -1) for t in (xs, ys, order_x, order_y, a, b))
    ends_a, ends_b = heights(a.detach().gather(-1, order_x), b.detach().gather(-1, order_y))
    rows, cols, mass = staircase(ends_a, ends_b)
    value = (mass.to(x) * h(xs.gather(-1, rows), ys.gather(-1, cols))).sum(-1)
    if not _recorded(a, b):
        return value
    with torch.no_grad():
        f, g = potentials(h, xs.double(), ys.double(), ends_a, ends_b)
    return value + _envelope(a.gather(-1, order_x), b.gather(-1, order_y), f, g)


def circle_cost(
    x: Any,  # (*batch, n)
    y: Any,  # (*batch, m)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    cost: Arc = Arc(),
) -> Tensor:  # (*batch)
    r"""Transport costs of many pairs of weighted samples on a circle, differentiable.

    .. math:: \min_P \langle P, C\rangle, \qquad C_{ij} = \min_k |x_i - y_j + k \cdot \text{period}|^{\text{power}}

    Args:
        x, y: angles, any real numbers; batch axes broadcast.
        a, b: masses of equal totals; uniform with total 1 when None.
        cost: `Arc(period, power)` with power >= 1.

    Raises:
        InvalidInput: NaN or infinite angles, negative masses, unequal totals, a power below 1.

    Complexity: O((n + m) log(n + m)) to sort, then some dozens of steps of O(n + m) and a search, as `Circle`.

    Example:
        >>> import torch
        >>> from brenier.costs import Arc
        >>> x = torch.tensor([0.0, 6.0, 12.0], dtype=torch.float64)
        >>> round(float(circle_cost(x, x + 23, cost=Arc(period=24.0))), 12)  # an hour back
        1.0

    Source: Delon, Salomon & Sobolevskii (2010), Fast transport optimization for Monge costs on the circle.
    """
    check_arc("circle_cost", cost)
    x, y, a, b = _read(x, y, a, b)
    a, b = _masses(a, b, x, y)
    batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1], a.shape[:-1], b.shape[:-1])
    x, y, a, b = (t.expand(*batch, -1).reshape(-1, t.shape[-1]) for t in (x, y, a, b))
    x, y = x.remainder(cost.period), y.remainder(cost.period)
    (_, order_x), (_, order_y) = ordered(x), ordered(y)
    xs, ys = x.gather(-1, order_x), y.gather(-1, order_y)
    h = arc_on_line(cost)
    with torch.no_grad():
        sides = a.gather(-1, order_x).double(), b.gather(-1, order_y).double()
        (rows, cols, mass), turns, f, g, *_ = rotate(h, xs.double(), ys.double(), *sides, cost.period)
    there = ys.gather(-1, cols) + (turns * cost.period).to(ys)
    value = (mass.to(x) * h(xs.gather(-1, rows), there)).sum(-1)
    if _recorded(a, b):
        value = value + _envelope(a.gather(-1, order_x), b.gather(-1, order_y), f, g)
    return value.reshape(batch)


def check_arc(name: str, cost: Any) -> None:
    """Refuse a cost that is not a convex one of the arc."""
    if not isinstance(cost, Arc) or cost.power < 1:
        refuse(name, "the cost Arc(period, power) with power >= 1", repr(cost), "Use solver='network-simplex'.")


def arc_on_line(cost: Arc) -> LineCost:
    """The cost of arcs that are unrolled already."""
    return lambda u, v: cost.of_length((u - v).abs())


def line_function(cost: float | Cost | Callable[[Tensor, Tensor], Tensor]) -> LineCost:
    """A power or a cost that is convex in x - y, elementwise on positions."""
    if is_real(cost):
        p = float(cost)  # type: ignore[arg-type]
        if not 1 <= p < float("inf"):
            refuse(
                "cost", "a power >= 1", f"{p:g}", "Costs that are not convex in x - y need solver='network-simplex'."
            )
        return arc_on_line(Arc(power=p))
    ground = cost if isinstance(cost, Cost) else CallableCost(cost) if callable(cost) else None
    if ground is None or not ground.monotone_on_line():
        refuse("cost", "a power >= 1 or a cost that is convex in x - y", repr(cost),
               "For a function: CallableCost(function, convex_on_line=True).")  # fmt: skip
    return lambda u, v: ground(u.unsqueeze(-1), v.unsqueeze(-1))


def _read(x: Any, y: Any, a: Any, b: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, y = float_tensor(x, "x"), float_tensor(y, "y")
    same_place(x, "x", y, "y")
    for t, name in ((x, "x"), (y, "y")):
        if t.dim() == 0 or not t.numel():
            refuse(name, "positions of shape (*batch, n)", f"shape {tuple(t.shape)}")
        check_finite(t, name, "finite positions")
    a = None if a is None else weights_tensor(a, x.shape[-1], "a", x)
    b = None if b is None else weights_tensor(b, y.shape[-1], "b", x)
    return x, y, a, b


def _masses(a: Tensor | None, b: Tensor | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = weights_tensor(a, x.shape[-1], "a", x), weights_tensor(b, y.shape[-1], "b", x)
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    a, b = a.expand(*batch, -1), b.expand(*batch, -1)
    return a, equal_masses(a, b)


def _recorded(a: Tensor, b: Tensor) -> bool:
    return torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)


def _envelope(a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Zero, with the potentials as gradients in the masses."""
    dual = (a * f.to(a)).sum(-1) + (b * g.to(b)).sum(-1)
    return dual - dual.detach()
