"""A near-optimal plan for a grid: that of a coarser grid, split among the nodes of its cells, mended block by block.

All flows are integers, so every plan here meets its masses exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...geometry import Geometry, Grid, PointCloud
from ...geometry.clusters import Clusters
from ...kernels.build import native
from ..base import time_is_up

__all__ = ["Flows", "LiveGrid", "distinct", "mended", "split"]

_UNLIMITED = np.iinfo(np.int64).max
_LARGE, _LOW = 2**8, 8  # lines above which, and dimensions up to which points are put in order
_LARGEST = 2**22  # pairs of a block that is solved

_Int = NDArray[np.int64]


class Flows(NamedTuple):
    """A plan: units of mass, positive, along arcs."""

    rows: _Int  # (k,)
    cols: _Int  # (k,)
    flow: _Int  # (k,)


class LiveGrid:
    """Some nodes of a grid as rows, some as columns: what `LazyTransport` asks of a geometry, in separable passes."""

    def __init__(self, grid: Grid, rows: Tensor, cols: Tensor) -> None:
        self._grid, self._rows, self._cols = grid, rows.to(grid.device), cols.to(grid.device)
        self._place = torch.full((grid.shape[1],), -1, device=grid.device)
        self._place[self._cols] = torch.arange(len(cols), device=grid.device)
        self.shape, self.device, self.tensors = (len(rows), len(cols)), grid.device, grid.tensors

    @property
    def T(self) -> LiveGrid:
        return LiveGrid(self._grid, self._cols, self._rows)

    def cmin(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self._chosen(*self._grid.cmin(self._spread(h)))

    def minima(self, h: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from (self._chosen(*found) for found in self._grid.minima(self._spread(h), count))

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        return self._grid.cost_at(self._rows[rows], self._cols[cols])

    def part(self, rows: Tensor | slice = slice(None), cols: Tensor | slice = slice(None)) -> PointCloud:
        return self._grid.part(self._rows[rows], self._cols[cols])

    def _spread(self, h: Tensor) -> Tensor:
        """A potential of the columns on the whole grid: no minimum is taken elsewhere."""
        return h.new_full((self._grid.shape[1],), -torch.inf).index_put((self._cols,), h)

    def _chosen(self, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        place = self._place[index[self._rows]]
        return values[self._rows].masked_fill(place < 0, torch.inf), place


def neighbourly(geometry: Geometry) -> tuple[_Int, _Int] | None:
    """Orders of rows and of columns in which near ones follow each other, where the cost is one of few dimensions.

    A systematic sample of the lines is then spread evenly, which saves up to two thirds of the pivots, and trees of
    many nodes stay in the cache.
    """
    if isinstance(geometry, Grid):
        levels = range(1, max(geometry.sizes).bit_length())
        order = np.lexsort([geometry.blocks(2**k).cpu().numpy() for k in levels] or [np.zeros(1)])
        return order, order
    if isinstance(geometry, PointCloud) and min(geometry.shape) > _LARGE and geometry.x.shape[-1] <= _LOW:
        return _tree_order(geometry.x), _tree_order(geometry.y)
    return None


def _tree_order(points: Tensor) -> _Int:
    return np.asarray(Clusters.of(points.detach().cpu().numpy()).order)


def split(coarse: Flows, row_cells: _Int, supply: _Int, col_cells: _Int, demand: _Int) -> Flows:
    """The plan of cells as one of lines, whose masses add up to those of their cells, row_cells (n,), col_cells (m,).

    The lines of a cell take the flows of its arcs in order.
    """
    rows, cols, flow = coarse
    order = np.lexsort((cols, rows))
    lines = np.argsort(row_cells, kind="stable")
    line, arc, flow = _merged(supply[lines], flow[order])
    row, arc = lines[line], order[arc]
    order = np.lexsort((row, rows[arc], cols[arc]))
    lines = np.argsort(col_cells, kind="stable")
    piece, line, flow = _merged(flow[order], demand[lines])
    return _summed(row[order[piece]], lines[line], flow, len(demand))


def mended(geometry: Geometry, plan: Flows, blocks: _Int) -> Flows:
    """The plan where each block of rows (n,) sends its mass to the columns that it had, in the best way."""
    order = np.argsort(blocks[plan.rows], kind="stable")
    rows, cols, flow = (t[order] for t in plan)
    ends = np.flatnonzero(np.diff(blocks[rows])) + 1
    done: list[Flows] = []
    for part in map(Flows, *(np.split(t, ends) for t in (rows, cols, flow))):
        done.append(part if time_is_up() else _solved(geometry, part))
    return Flows(*map(np.concatenate, zip(*done)))


def _solved(geometry: Geometry, part: Flows) -> Flows:
    """The best plan between the rows and the columns of a small one."""
    assert native is not None
    rows, row = np.unique(part.rows, return_inverse=True)
    cols, col = np.unique(part.cols, return_inverse=True)
    if min(len(rows), len(cols)) == 1 or len(rows) * len(cols) > _LARGEST:
        return part
    supply, demand = np.zeros(len(rows), np.int64), np.zeros(len(cols), np.int64)
    np.add.at(supply, row, part.flow)
    np.add.at(demand, col, part.flow)
    cost = geometry.part(*map(torch.from_numpy, (rows, cols))).tile().contiguous().cpu().numpy()
    row, col, flow, *_ = native.network_simplex(cost, supply, demand, None, None, _UNLIMITED, time_is_up)
    used = flow > 0
    return Flows(rows[row[used]], cols[col[used]], flow[used])


def _merged(p: _Int, q: _Int) -> tuple[_Int, _Int, _Int]:
    """The pieces into which two sequences of masses of one total cut each other: their places in both, and masses."""
    before, after = np.cumsum(p), np.cumsum(q)
    cuts = distinct(np.concatenate([before, after]))
    return np.searchsorted(before, cuts), np.searchsorted(after, cuts), np.diff(cuts, prepend=0)


def _summed(rows: _Int, cols: _Int, flow: _Int, m: int) -> Flows:
    """One entry for each pair."""
    pairs = rows * m + cols
    keys = distinct(pairs)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, np.searchsorted(keys, pairs), flow)
    return Flows(keys // m, keys % m, total)


def distinct(values: _Int) -> _Int:
    """The values in order, each once: several times as fast as `numpy.unique`, which hashes."""
    values = np.sort(values)
    return values[np.flatnonzero(np.diff(values, prepend=values[0] - 1))] if len(values) else values
