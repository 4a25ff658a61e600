"""Exact transport without the cost matrix: a network simplex on a list of arcs, and pricing by hard c-transforms.

A round pivots until the list is optimal, then prices all pairs. What violates the duals joins the list. When nothing
does, the duals are feasible for all pairs, and prove the plan optimal.

All pairs are seen through `Geometry.cmin` alone. To find several arcs of a row in one pass, the columns are split into
classes at random, and each class gives its best: the same number of pairs as one c-transform of the whole. The classes
of a grid are interleaved grids, whose c-transforms are separable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._inputs import all_finite
from ...errors import refuse
from ...geometry import Geometry, Grid, PointCloud
from ...kernels import simplex
from ...kernels.build import native
from ..base import time_is_up
from .refinement import Flows, LiveGrid, distinct, mended, neighbourly, split

__all__ = ["LazyTransport", "costs_of_pairs", "refuse_cost"]

_FIRST = 32  # arcs per line on the first list
_EXTRA = 16  # violators per row that one pricing may add
_SHARE = 3  # lines of the problem per line of its sample
_DENSE = 2**23  # pairs of a sample that is solved on its cost matrix
_SMALL_GRID = 2**13  # lines above which the start is a coarser grid
_SEPARABLE = 2**10  # pairs per node above which some lines of a grid are priced as the whole of it
_BLOCK_ROWS = 2**8  # rows of a block in which the plan of a coarser grid is mended
_SWEEPS, _STALL = 16, 2e-3  # over all blocks, at most, and while they lower the cost by more than this share
_ALL = 2**16  # pairs between leftovers below which all are listed
_SLOW = 0.75  # share of the leftovers that a phase may leave before any arcs will do
_PIECE = 2**25  # pairs that are priced between two looks at the clock, and for Ctrl-C
_BLOCK, _COPIED = 2**16, 2**20  # arcs whose costs are computed at once, and coordinates of either end, which are copied
_PATIENCE = 8  # pivots per line in the first round; each has twice those of the one before

_ROUNDING = 64 * np.finfo(np.float64).eps  # of the largest dual: reduced costs up to this count as zero

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


class _Arcs(NamedTuple):
    rows: Tensor  # (k,)
    cols: Tensor  # (k,)


class LazyTransport:
    """One transport problem that is solved round by round in O(n + m) memory.

    When the time of the solve is up, start and rounds end early: the plan and the duals of `result` are feasible
    from the start on, and `gap` is theirs.

    Args:
        geometry: in float64, without batch axes.
        a, b: masses (n,) and (m,), nonnegative, of equal sums but for rounding.
        f, g: duals to start from; f is not used when g is given. Those of a random sample, or of a coarser grid, when
            both are None.
        units: the masses as integers of equal sums, and their unit; those of `integer_masses` when None.

    Attributes:
        optimal: whether the duals prove the plan.
        gap: cost of the plan minus value of the best feasible duals, relative to the cost.
        stats: rounds, arcs on the list, pivots, and seconds spent on the start, on pivots and on pricing.
    """

    def __init__(
        self,
        geometry: Geometry,
        a: _Float,
        b: _Float,
        *,
        f: Tensor | None = None,
        g: Tensor | None = None,
        units: tuple[_Int, _Int, _Float] | None = None,
    ) -> None:
        assert native is not None
        start = time.perf_counter()
        self._whole, self._a, self._b = geometry, a, b
        orders = neighbourly(geometry) or map(np.arange, geometry.shape)
        self._rows, self._cols = (order[w[order] > 0] for order, w in zip(orders, (a, b)))
        self.optimal, self.gap = not len(self._rows), 0.0 if not len(self._rows) else float("inf")
        self.stats: dict[str, Any] = {"rounds": 0, "arcs": 0, "n_iter": 0}
        self.stats |= {"seconds_start": 0.0, "seconds_pivots": 0.0, "seconds_pricing": 0.0}
        self._best = -np.inf
        self._generator = torch.Generator().manual_seed(0)
        if self.optimal:
            return
        rows, cols = torch.from_numpy(self._rows), torch.from_numpy(self._cols)
        self._live = _with_mass(geometry, rows, cols)
        self._plan: Flows | None = None
        supply, demand, self._unit = units or simplex.integer_masses(a, b)
        self._supply, self._demand = supply[self._rows], demand[self._cols]
        if g is not None:
            g = g[cols]
        elif f is not None:
            g = _transformed(self._live.T, f[rows])
        else:
            g = self._sample_duals()
        self._f = _transformed(self._live, g)
        self._g = g if time_is_up() else _transformed(self._live.T, self._f)
        if not (torch.isfinite(self._f).all() and torch.isfinite(self._g).all()):
            refuse_cost()
        self._simplex = native.ListedTransport(self._supply, self._demand)
        self._plant()
        self._best = self._dual(self._f, self._g)
        self.gap = self._gap()
        if self._matched():
            self.optimal, self.gap = True, 0.0
        self.stats["arcs"] = self._simplex.size
        self.stats["seconds_start"] = time.perf_counter() - start

    # ------------------------------------------------------------------------------------------------ start

    def _sample_duals(self) -> Tensor:
        """The duals g of the problem on a sample of rows and columns, extended by c-transforms."""
        lines = sum(self._live.shape)
        if isinstance(self._whole, Grid) and lines > _SMALL_GRID:
            return self._coarse_start(self._whole)
        count = lines // (2 * _SHARE)
        if lines < 512:
            return self._live.tensors[0].new_zeros(self._live.shape[1])
        rows, supply = _sample(self._supply, count)
        cols, demand = _sample(self._demand, count)
        part = self._live.part(torch.from_numpy(rows), torch.from_numpy(cols))
        if len(rows) * len(cols) <= _DENSE:
            cost = part.tile().contiguous().cpu().numpy()
            result = simplex.network_simplex(cost, supply, demand, interrupt=time_is_up, engine="native")
            self.stats["n_iter"] += result.n_iter
            g = torch.from_numpy(result.g)
        else:
            sample = LazyTransport(part, supply, demand)
            while not (sample.optimal or time_is_up()):
                sample.round()
            self.stats["n_iter"] += sample.stats["n_iter"]
            g = torch.as_tensor(sample.result().g, device=part.device)
        f = _transformed(self._live.part(cols=torch.from_numpy(cols)), g)
        return _transformed(self._live.T, f)

    def _coarse_start(self, grid: Grid) -> Tensor:
        """The duals g of the problem on a coarser grid, extended by c-transforms; its plan, refined, is kept."""
        units = np.zeros(grid.shape[0], np.int64), np.zeros(grid.shape[1], np.int64)
        units[0][self._rows], units[1][self._cols] = self._supply, self._demand
        coarse, pooled = grid.coarser(*(torch.from_numpy(w).to(grid.device) for w in (self._a, self._b, *units)))
        a, b, supply, demand = (w.cpu().numpy() for w in pooled)
        item = LazyTransport(coarse, a, b, units=(supply, demand, self._unit))
        while not (item.optimal or time_is_up()):
            item.round()
        self.stats["n_iter"] += item.stats["n_iter"]
        self._plan = self._refined(grid, item)
        f = grid.cmin_from(coarse, torch.as_tensor(item.result().g, device=grid.device))
        return _transformed(self._live.T, f[torch.from_numpy(self._rows).to(f.device)])

    def _refined(self, grid: Grid, coarse: LazyTransport) -> Flows:
        """The plan of a coarser grid on this one, with all mass moved between near arcs that it pays to."""
        rows, cols, flow, *_ = coarse._basis()
        used = flow > 0
        ends = coarse._rows[rows.numpy()[used]], coarse._cols[cols.numpy()[used]]
        cells = grid.blocks(2).cpu().numpy()
        plan = split(Flows(*ends, flow[used]), cells[self._rows], self._supply, cells[self._cols], self._demand)
        side = max(2, round(_BLOCK_ROWS ** (1 / len(grid.sizes))))
        blocks = [grid.blocks(side, shift).cpu().numpy()[self._rows] for shift in (0, side // 2)]
        geometry = grid.part(torch.from_numpy(self._rows), torch.from_numpy(self._cols))
        value, before = self._cost(plan), float("inf")
        for sweep in range(_SWEEPS):
            if before - value <= _STALL * abs(value) or time_is_up():
                break
            plan = mended(geometry, plan, blocks[sweep % 2])
            before, value = value, self._cost(plan)
        return plan

    def _cost(self, plan: Flows) -> float:
        return float(self._priced(_Arcs(*map(torch.from_numpy, plan[:2])))[2] @ (plan.flow * self._unit))

    def _plant(self) -> None:
        """The first list and the first tree, greedy for the reduced costs; leftovers meet among themselves."""
        f, g = self._f, self._g
        before = sum(self._live.shape)
        arcs = _band(*map(torch.arange, self._live.shape)) if time_is_up() else self._best_of_lines(self._live, f, g)
        flow = None
        if self._plan is not None:
            arcs, flow = _united(arcs, self._plan, self._live.shape[1])
            self._plan = None
        while not self._simplex.plant(*self._priced(arcs), f.cpu().numpy(), g.cpu().numpy(), flow):
            flow = None
            rows, cols = (torch.from_numpy(left).long() for left in self._simplex.leftovers())
            lines = len(rows) + len(cols)
            if len(rows) * len(cols) <= _ALL:
                arcs = _Arcs(rows.repeat_interleave(len(cols)), cols.repeat(len(rows)))
            elif lines > _SLOW * before or time_is_up():  # ties: all lines want the same few
                arcs = _band(rows, cols)
            else:
                found = self._best_of_lines(self._live.part(rows, cols), f[rows], g[cols])
                arcs = _Arcs(rows[found.rows], cols[found.cols])
            before = lines

    def _matched(self) -> bool:
        """Whether the first plan lives on tight arcs of the first duals: they may have been optimal."""
        rows, cols, flow, *_ = self._basis()
        used = torch.from_numpy(flow > 0)
        arcs = _Arcs(rows[used], cols[used])
        f, g = self._f.cpu(), self._g.cpu()
        slack = torch.from_numpy(self._priced(arcs)[2]) - f[arcs.rows] - g[arcs.cols]
        scale = torch.maximum(f.abs().max(), g.abs().max())
        return bool(slack.max() <= _ROUNDING * scale)

    def _best_of_lines(self, geometry: Geometry | LiveGrid, f: Tensor, g: Tensor) -> _Arcs:
        """About `_FIRST` arcs of small reduced cost for each row and for each column."""
        m = geometry.shape[1]
        by_row, _ = self._search(geometry, f, g, _FIRST)
        by_col, _ = self._search(geometry.T, g, f, _FIRST)
        keys = torch.unique(torch.cat([by_row.rows * m + by_row.cols, by_col.cols * m + by_col.rows]))
        return _Arcs(keys // m, keys % m)

    def _search(
        self, geometry: Geometry | LiveGrid, f: Tensor, g: Tensor, width: int, limit: float = float("inf")
    ) -> tuple[_Arcs, Tensor | None]:
        """The best arc of each row in each of `width` classes of columns, if below the limit, and the best costs.

        When the time is up: the arcs found until then, and None.
        """
        least = torch.full_like(f, torch.inf)
        rows, cols, late = [], [], False
        for piece, values, index in self._classes(geometry, g, width):
            values -= f[piece]
            torch.minimum(least[piece], values, out=least[piece])
            found = (values < limit).nonzero().squeeze(-1)
            rows.append(found + piece.start)
            cols.append(index[found])
            if late := time_is_up():
                break
        return _Arcs(torch.cat(rows).cpu(), torch.cat(cols).cpu()), None if late else least

    def _classes(self, geometry: Geometry | LiveGrid, g: Tensor, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The c-transforms of g over classes of columns, a piece of the rows at a time, and where they are taken."""
        n, m = geometry.shape
        if isinstance(geometry, Grid | LiveGrid):
            yield from ((slice(0, n), *found) for found in geometry.minima(g, width))
            return
        order = torch.randperm(m, generator=self._generator).to(g.device)
        for k in range(min(width, m)):
            chosen = order[k::width]
            part = geometry.part(cols=chosen)
            pieces = _pieces(n, len(chosen))
            for piece in pieces:
                values, index = (part if len(pieces) == 1 else part.part(rows=piece)).cmin(g[chosen])
                yield piece, values, chosen[index]

    def _priced(self, arcs: _Arcs) -> tuple[_Int, _Int, _Float]:
        rows, cols = arcs
        device = self._live.device
        cost = costs_of_pairs(self._live, rows.to(device), cols.to(device)).cpu()
        if not all_finite(cost):
            refuse_cost()
        return rows.numpy(), cols.numpy(), cost.numpy()

    # ----------------------------------------------------------------------------------------------- rounds

    def round(self, max_iter: int | None = None, gap: float = 0.0) -> None:
        """Pivot on the list, for a bounded while, then price all pairs; at most `max_iter` pivots over all rounds.

        It ends in between where the best duals so far prove the gap.
        """
        start = time.perf_counter()
        before = self._basis()[-1]
        limit = before + (_PATIENCE << min(self.stats["rounds"], 16)) * sum(self._live.shape)
        if max_iter is not None:
            limit = min(limit, max(before, max_iter))
        done = self._pivoted(before, limit, gap)
        *_, f, g, n_iter = self._basis()
        middle = time.perf_counter()
        self.gap = self._gap()
        if not (time_is_up() or 0 < self.gap <= gap):
            self._price(f, g, done)
            self.gap = self._gap()
        self.stats["rounds"] += 1
        self.stats["n_iter"] += n_iter - before
        self.stats["arcs"] = self._simplex.size
        self.stats["seconds_pivots"] += middle - start
        self.stats["seconds_pricing"] += time.perf_counter() - middle

    def _pivoted(self, pivots: int, limit: int, gap: float) -> bool:
        """Whether no arc of the list is worth a pivot any more; looks at the gap once in a pivot for each line."""
        step, done = sum(self._live.shape) if gap > 0 else limit, False
        while pivots < limit and not done and not time_is_up():
            pivots = min(limit, pivots + step)
            done = self._simplex.pivot(pivots, time_is_up)
            if gap > 0 and self._gap() <= gap:
                break
        return done

    def _price(self, f: Tensor, g: Tensor, done: bool) -> None:
        """List what violates the duals over all pairs, and keep them, made feasible, if they are the best so far."""
        violators, least = self._search(self._live, f, g, _EXTRA, -self._simplex.tolerance)
        if least is None:
            return
        # kernels may round a cost otherwise than its definition does: what counts is the latter
        self.optimal = self._simplex.add(*self._priced(violators)) == 0 and done
        f = f + least.clamp(max=0)
        dual = self._dual(f, g)
        if dual > self._best or self.optimal:
            self._best, self._f, self._g = dual, f, g

    def _dual(self, f: Tensor, g: Tensor) -> float:
        return float(f.cpu().numpy() @ self._a[self._rows] + g.cpu().numpy() @ self._b[self._cols])

    def _gap(self) -> float:
        rows, cols, flow, *_ = self._basis()
        primal = float(self._priced(_Arcs(rows, cols))[2] @ self._mass(rows, cols, flow))
        scale = self._dual(self._f.abs(), self._g.abs())  # an optimum of zero is zero to the rounding of these
        return max(0.0, primal - self._best) / max(abs(primal), 1e-12 * scale, np.finfo(np.float64).tiny)

    def _basis(self) -> tuple[Tensor, Tensor, _Int, Tensor, Tensor, int]:
        rows, cols, flow, f, g, n_iter = self._simplex.basis()
        device = self._live.device
        ends = (torch.from_numpy(t).long() for t in (rows, cols))
        duals = (torch.from_numpy(t).to(device) for t in (f, g))
        return *ends, flow, *duals, n_iter  # type: ignore[return-value]

    def _mass(self, rows: Tensor, cols: Tensor, flow: _Int) -> _Float:
        a, b = self._a[self._rows], self._b[self._cols]
        return simplex.true_masses(rows.numpy(), cols.numpy(), flow, self._supply, self._demand, self._unit, a, b)

    # ----------------------------------------------------------------------------------------------- result

    @property
    def n_pivots(self) -> int:
        """Pivots on the whole problem, without those of its samples."""
        return 0 if not len(self._rows) else int(self._basis()[-1])

    def result(self) -> simplex.SimplexResult:
        """The best plan and the best duals so far, both feasible."""
        n_iter = self.stats["n_iter"]
        n, m = self._whole.shape
        device = self._whole.device
        if not len(self._rows):
            g = torch.zeros(m, dtype=torch.float64, device=device)
            f = _transformed(self._whole, g)
            empty = np.empty(0, np.int64)
            return simplex.SimplexResult(empty, empty, np.empty(0), f.cpu().numpy(), g.cpu().numpy(), 0, True)
        rows, cols, flow, *_ = self._basis()
        used = flow > 0
        rows, cols, flow = rows[used], cols[used], flow[used]
        live_rows, live_cols = ((torch.from_numpy(t).to(device),) for t in (self._rows, self._cols))
        f, g = (torch.full((size,), -torch.inf, dtype=torch.float64, device=device) for size in (n, m))
        f, g = f.index_put(live_rows, self._f), g.index_put(live_cols, self._g)
        if len(self._f) < n or len(self._g) < m:  # lines without mass get their greatest feasible duals
            f = _transformed(self._whole, g).index_put(live_rows, self._f)
            g = _transformed(self._whole.T, f).index_put(live_cols, self._g)
        mass = self._mass(rows, cols, flow)
        ends = self._rows[rows.numpy()], self._cols[cols.numpy()]
        return simplex.SimplexResult(*ends, mass, f.cpu().numpy(), g.cpu().numpy(), n_iter, self.optimal)


def _with_mass(geometry: Geometry, rows: Tensor, cols: Tensor) -> Geometry | LiveGrid:
    """The pairs of these rows and columns, in this order."""
    n, m = geometry.shape
    if isinstance(geometry, Grid) and (not geometry.fused or len(rows) * len(cols) > _SEPARABLE * (n + m)):
        return LiveGrid(geometry, rows, cols)
    same = all(len(t) == k and bool((t.diff() > 0).all()) for t, k in ((rows, n), (cols, m)))
    return geometry if same else geometry.part(rows, cols)


def costs_of_pairs(geometry: Geometry | LiveGrid, rows: Tensor, cols: Tensor) -> Tensor:
    """The costs of given pairs, (k,), as `cost_at`, with bounded memory beside them."""
    width = geometry.x.shape[-1] if isinstance(geometry, PointCloud) else 1
    step = min(_BLOCK, max(1, _COPIED // width))
    return torch.cat([geometry.cost_at(i, j) for i, j in zip(rows.split(step), cols.split(step))])


def _united(arcs: _Arcs, plan: Flows, m: int) -> tuple[_Arcs, _Int]:
    """The arcs and those of a plan, and the flow on each."""
    used = plan.rows * m + plan.cols
    keys = distinct(np.concatenate([used, (arcs.rows * m + arcs.cols).numpy()]))
    flow = np.zeros(len(keys), np.int64)
    flow[np.searchsorted(keys, used)] = plan.flow
    return _Arcs(torch.from_numpy(keys // m), torch.from_numpy(keys % m)), flow


def _sample(units: _Int, count: int) -> tuple[_Int, _Float]:
    """Systematic sampling: a unit of mass falls on a line whenever the running total passes a multiple of the step."""
    passed = np.cumsum(units.astype(np.float64))
    due = np.minimum(count, (passed / passed[-1] * count + 0.5).astype(np.int64))
    due[-1] = count
    taken = np.diff(due, prepend=0)
    chosen = np.flatnonzero(taken)
    return chosen, taken[chosen].astype(np.float64)


def _pieces(n: int, m: int) -> list[slice]:
    """The rows of n x m pairs, in slices of bounded work."""
    step = max(1, _PIECE // m)
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def _transformed(geometry: Geometry | LiveGrid, h: Tensor) -> Tensor:
    """The hard c-transform of h, piece by piece, so that Ctrl-C is heard; a grid needs none."""
    pieces = _pieces(*geometry.shape)
    if len(pieces) == 1 or isinstance(geometry, Grid | LiveGrid):
        return geometry.cmin(h)[0]
    return torch.cat([geometry.part(rows=piece).cmin(h)[0] for piece in pieces])


def _band(rows: Tensor, cols: Tensor) -> _Arcs:
    """Each row and each column with a counterpart."""
    n, m = len(rows), len(cols)
    i, j = torch.arange(n), torch.arange(m)
    keys = torch.unique(torch.cat([i * m + i * m // n, j * n // m * m + j]))
    return _Arcs(rows[keys // m], cols[keys % m])


def refuse_cost() -> None:
    """Refuse a cost with entries that are not finite."""
    refuse("cost", "finite values between all pairs", "NaN or infinity", "Rescale the points, or mend the cost.")
