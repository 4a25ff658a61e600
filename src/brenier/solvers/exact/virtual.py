"""Soft and partial marginals with linear prices, as balanced transport with a few virtual rows and columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import refuse
from ...geometry import Geometry
from ...geometry.bordered import Bordered
from ...kernels.simplex import SimplexResult
from ...marginals import Prices
from .lazy import refuse_cost

__all__ = ["Demand", "VirtualTransport"]

_ROUNDING = 1e-12

_Float = NDArray[np.float64]


class Demand(NamedTuple):
    """One side of one problem: its weights, and what its marginal asks of them."""

    weights: Tensor  # (n,) in float64
    prices: Prices
    total: Tensor | None  # () the mass that the marginal fixes while it chooses where; None where it does not

    @property
    def live(self) -> Tensor:
        """The lines whose weights matter, (k,): those with mass, unless the marginal is free."""
        short, over = self.prices
        if short is not None and over is not None and not bool((short + over > 0).any()):
            return torch.empty(0, dtype=torch.long, device=self.weights.device)
        return self.weights.nonzero().squeeze(-1)


class _Line(NamedTuple):
    """A virtual column, as the rows see it, or a virtual row, as the columns do."""

    cost: Tensor  # (k,) from each live line of the other side
    stays: Tensor  # (k,) whether the mass stays where it is, or goes beyond the weight of its nearest counterpart
    firm: bool  # whether its mass is fixed, so that nothing may idle between it and the other virtual lines


class VirtualTransport:
    """min <P, C> + phi_a(P1) + phi_b(P^T 1) for one pair of clouds, as balanced transport on a bordered cost.

    Mass that stays at row i goes to a virtual column, at the price short_i. So does mass by which a column exceeds its
    weight: from row i it takes the cheapest column, min_j c_ij + over_j. The same from a virtual row to the columns.
    What neither needs idles between the two for nothing. A marginal that fixes the mass which it transports has a
    virtual line of its own, from which nothing idles. Lines without mass, and those of a free side, stay out.

    Args:
        geometry: in float64, without batch axes.
        left, right: what the rows and the columns must do.

    Attributes:
        geometry, a, b: the balanced problem, (n', m'), (n',) and (m',).

    Raises:
        InvalidInput: a price or a cost that is not finite; a cost that pays for any amount of mass.

    Complexity: up to four passes over the pairs beside the solve; O(n + m) memory.
    """

    def __init__(self, geometry: Geometry, left: Demand, right: Demand) -> None:
        self._whole, self._sides = geometry, (left, right)
        for price in (*left.prices, *right.prices):
            if price is not None and not bool(torch.isfinite(price).all()):
                refuse("marginals", "finite prices without an epsilon", "infinity", "Use Exact() or a large price.")
        rows, cols = self._live = (left.live, right.live)
        # where mass beyond the weights would go, from each row and to each column
        beyond_col, self._exit = self._beyond(geometry, right)
        beyond_row, self._entry = self._beyond(geometry.T, left)
        self._check_bounded(left, beyond_col)
        columns = _virtual(left, rows, beyond_col)
        lines = _virtual(right, cols, beyond_row)
        self._columns, self._rows = columns, lines
        a, b = left.weights[rows], right.weights[cols]
        full = len(rows) == geometry.shape[0] and len(cols) == geometry.shape[1]
        inner = geometry if full else geometry.part(rows, cols) if len(rows) and len(cols) else None
        right_edge = _stack([column.cost for column in columns], a).T
        below = _stack([line.cost for line in lines], b)
        if not (bool(torch.isfinite(right_edge).all()) and bool(torch.isfinite(below).all())):
            refuse_cost()
        corner = a.new_zeros(len(lines), len(columns))
        if len(lines) and len(columns) and any(line.firm for line in (*lines, *columns)):
            forbidden = a.new_tensor([[u.firm or v.firm for v in columns] for u in lines], dtype=torch.bool)
            assert inner is not None
            corner[forbidden] = self._forbidding(inner, right_edge, below)
        supply, demand = self._masses(a, b)
        self.geometry = Bordered(inner, below, right_edge, corner) if lines or columns or inner is None else inner
        self.a: _Float = torch.cat([a, supply]).cpu().numpy()
        self.b: _Float = torch.cat([b, demand]).cpu().numpy()
        if abs(self.a.sum() - self.b.sum()) > _ROUNDING * self.a.sum():  # masses that were equal in float32
            self.b *= self.a.sum() / self.b.sum()

    # ------------------------------------------------------------------------------------------- construction

    @staticmethod
    def _beyond(geometry: Geometry, other: Demand) -> tuple[Tensor | None, Tensor | None]:
        """Cost and place of mass that exceeds the weight of a column, for each row; None where it may not."""
        over = other.prices.over
        if over is None:
            return None, None
        return geometry.cmin(-over.expand(geometry.shape[1]).contiguous())

    @staticmethod
    def _check_bounded(left: Demand, beyond: Tensor | None) -> None:
        over = left.prices.over
        if over is None or beyond is None:
            return
        least = float((beyond + over).min())
        if least < -_ROUNDING * float(beyond.abs().max()):
            refuse(
                "marginals",
                "costs that do not pay for more and more mass: c + rho_a + rho_b >= 0 for all pairs",
                f"{least:.6g} for one",
                "Raise rho, or fix a side or its mass.",
            )

    @staticmethod
    def _forbidding(inner: Geometry, right: Tensor, below: Tensor) -> Tensor:
        """A cost between virtual lines at which nothing is sent: more than a unit of transport can save."""
        least = inner.cmin(right.new_zeros(inner.shape[1]))[0]
        line = inner.tile(rows=slice(0, 1))
        prices = right.amax().clamp(min=0) + below.amax().clamp(min=0)
        scale = torch.stack([t.abs().amax() for t in (least, line, right, below)]).amax()
        return prices - least.amin() + torch.where(scale > 0, scale, 1)

    def _masses(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The masses of the virtual rows and columns."""
        left, right = self._sides
        more, less = a.sum(), b.sum()
        supply, demand = a.new_zeros(len(self._rows)), a.new_zeros(len(self._columns))
        for side, whole, lines, mass in ((left, more, self._columns, demand), (right, less, self._rows, supply)):
            for k, line in enumerate(lines):
                if line.firm:
                    assert side.total is not None
                    mass[k] = (whole - side.total).clamp(min=0)
        difference = (less + demand.sum()) - (more + supply.sum())
        open_rows, open_cols = (
            [k for k, line in enumerate(lines) if not line.firm] for lines in (self._rows, self._columns)
        )
        if open_rows and open_cols:  # what all could send or take
            demand[open_cols[0]] = more - demand.sum()
            supply[open_rows[0]] = less - supply.sum()
        elif open_rows:
            supply[open_rows[0]] = difference.clamp(min=0)
        elif open_cols:
            demand[open_cols[0]] = (-difference).clamp(min=0)
        elif len(demand) and not len(supply):  # firm, against an exact side
            demand[0] = (more - less).clamp(min=0)
        elif len(supply) and not len(demand):
            supply[0] = (less - more).clamp(min=0)
        return supply, demand

    # ----------------------------------------------------------------------------------------------- the way in

    def start(self, f: Tensor | None, g: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Potentials (n,) and (m,) to start from, for the balanced problem."""

        def extended(h: Tensor | None, live: Tensor, size: int) -> Tensor | None:
            return None if h is None else torch.cat([h[live], h.new_zeros(size - len(live))])

        return extended(f, self._live[0], len(self.a)), extended(g, self._live[1], len(self.b))

    # ---------------------------------------------------------------------------------------------- the way out

    def result(self, solved: SimplexResult) -> SimplexResult:
        """The plan and the potentials of the problem itself, from those of the balanced one."""
        device = self._whole.device
        i, j = (torch.as_tensor(t, device=device).long() for t in (solved.rows, solved.cols))
        mass = torch.as_tensor(solved.mass, device=device)
        (rows, cols), (n, m) = self._live, (len(t) for t in self._live)
        real = (i < n) & (j < m)
        parts = [(rows[i[real]], cols[j[real]], mass[real])]
        f, g = (torch.as_tensor(t, device=device) for t in (solved.f, solved.g))
        # an open virtual line has the potential zero
        left, right = self._shifts(f, g)
        F, G = f[:n] + left, g[:m] + right
        over_rows, over_cols = i.new_empty(0), i.new_empty(0)
        for k, column in enumerate(self._columns):
            used = (j == m + k) & (i < n)
            at, stays = i[used], column.stays[i[used]]
            if solved.optimal:  # then the bound is met, and is so to the last bit
                F[at[stays]] = column.cost[at[stays]] - (g[m + k] - left if column.firm else 0)
            if self._exit is not None and not column.firm:
                over_cols = self._exit[rows[at[~stays]]]
                parts.append((rows[at[~stays]], over_cols, mass[used][~stays]))
        for k, line in enumerate(self._rows):
            used = (i == n + k) & (j < m)
            at, stays = j[used], line.stays[j[used]]
            if solved.optimal:
                G[at[stays]] = line.cost[at[stays]] - (f[n + k] - right if line.firm else 0)
            if self._entry is not None and not line.firm:
                over_rows = self._entry[cols[at[~stays]]]
                parts.append((over_rows, cols[at[~stays]], mass[used][~stays]))
        none = i.new_empty(0)
        F, G = self._completed(F, G, *((over_rows, over_cols) if solved.optimal else (none, none)))
        # each pair once, with all its mass
        ends = torch.cat([u for u, _, _ in parts]) * len(G) + torch.cat([v for _, v, _ in parts])
        keys, place = torch.unique(ends, return_inverse=True)
        merged = mass.new_zeros(len(keys)).index_add(0, place, torch.cat([w for _, _, w in parts]))
        i, j, merged, F, G = (t.cpu() for t in (keys // len(G), keys % len(G), merged, F, G))
        return solved._replace(rows=i.numpy(), cols=j.numpy(), mass=merged.numpy(), f=F.numpy(), g=G.numpy())

    def _shifts(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to f and to g, so that open virtual lines have the potential zero."""
        n, m = (len(t) for t in self._live)
        columns = [g[m + k] for k, column in enumerate(self._columns) if not column.firm]
        lines = [f[n + k] for k, line in enumerate(self._rows) if not line.firm]
        zero = f.new_zeros(())
        left = columns[0] if columns else -lines[0] if lines else zero
        right = lines[0] if lines else -columns[0] if columns else zero
        return left, right

    def _completed(self, F: Tensor, G: Tensor, over_rows: Tensor, over_cols: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials of all lines within their bounds: at these where mass stays or exceeds, greatest without mass."""
        left, right = self._sides
        (rows, cols), (n, m) = self._live, self._whole.shape
        short_f, over_f = _bounds(left, n)
        short_g, over_g = _bounds(right, m)
        f = torch.full_like(over_f, torch.nan).index_put((rows,), F)
        g = over_g.index_put((cols,), G)
        if len(rows) < n:
            f = torch.where(torch.isnan(f), self._whole.cmin(g)[0], f)
        f = torch.maximum(torch.minimum(f, short_f), over_f)
        f[over_rows] = over_f[over_rows]
        if len(cols) < m:
            g = self._whole.cmin(f, dim=0)[0].index_put((cols,), G)
        g = torch.maximum(torch.minimum(g, short_g), over_g)
        g[over_cols] = over_g[over_cols]
        return f, g


def _virtual(side: Demand, live: Tensor, beyond: Tensor | None) -> list[_Line]:
    """The virtual lines that the live lines of a side may send mass to."""
    if not len(live):
        return []
    size, short = len(side.weights), side.prices.short
    found = []
    stay = None if short is None else short.expand(size)[live]
    if side.total is not None and stay is not None:
        found.append(_Line(stay, torch.ones_like(live, dtype=torch.bool), True))
        stay = None
    if stay is not None and beyond is not None:
        go = beyond[live]
        found.append(_Line(torch.minimum(stay, go), stay <= go, False))
    elif stay is not None:
        found.append(_Line(stay, torch.ones_like(live, dtype=torch.bool), False))
    elif beyond is not None:
        found.append(_Line(beyond[live], torch.zeros_like(live, dtype=torch.bool), False))
    return found


def _stack(costs: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(costs) if costs else like.new_empty(0, len(like))


def _bounds(side: Demand, size: int) -> tuple[Tensor, Tensor]:
    """The greatest and the least potential of each line: the price of what is short, minus that of what is over."""
    short, over = side.prices
    none = torch.full((size,), torch.inf, dtype=torch.float64, device=side.weights.device)
    most = none if short is None or side.total is not None else short.expand(size)
    return most, -none if over is None else -over.expand(size)
