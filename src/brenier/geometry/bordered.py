"""A cost with a few more rows and columns whose costs are given: virtual points beside the real ones."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ..kernels.reference import Pairs
from .base import Geometry, Lines, PairGeometry

__all__ = ["Bordered"]

_BLOCK = 2**24  # entries of a tile that are formed at once beside the whole


class Bordered(PairGeometry):
    """The cost of a geometry and that of virtual rows and columns, which come last: [[C, right], [below, corner]].

    Without batch axes, and without gradients. Hard c-transforms cost those of the geometry and O(n + m) more.

    Args:
        inner: the cost between real points, n x m; None where n or m is zero.
        below: (k, m), of virtual rows and real columns.
        right: (n, l), of real rows and virtual columns.
        corner: (k, l).
    """

    def __init__(self, inner: Geometry | None, below: Tensor, right: Tensor, corner: Tensor) -> None:
        n, m, k, l = len(right), below.shape[1], len(below), right.shape[1]  # noqa: E741
        rows, cols = (torch.arange(s + v, device=right.device) < s for s, v in ((n, k), (m, l)))
        self._set(inner, torch.cat([below, corner], 1), right, rows, cols)

    def _set(self, inner: Geometry | None, below: Tensor, right: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Take `below` with all columns in their order, and the masks of the real lines."""
        self._inner, self._below, self._right, self._rows, self._cols = inner, below, right, rows, cols
        self.shape = (len(rows), len(cols))
        self.batch_shape = torch.Size()

    @staticmethod
    def _places(real: Tensor) -> Tensor:
        """The place of each line among those of its kind."""
        return torch.where(real, real.cumsum(0), (~real).cumsum(0)) - 1

    @property
    def T(self) -> Bordered:
        right = self._below.new_empty(self._right.shape[1], self.shape[0])
        right[:, self._rows] = self._right.T
        right[:, ~self._rows] = self._below[:, ~self._cols].T
        out = object.__new__(type(self))
        inner = None if self._inner is None else self._inner.T
        out._set(inner, right, self._below[:, self._cols].T, self._cols, self._rows)
        return out

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._below, self._right)

    def with_tensors(self, *tensors: Tensor) -> Self:
        below, right = tensors
        inner = None if self._inner is None else self._inner.detach().to(below.dtype)
        out = object.__new__(type(self))
        out._set(inner, below, right, self._rows, self._cols)
        return out

    def part(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Geometry:
        chosen, places = [], []
        for lines, real in ((rows, self._rows), (cols, self._cols)):
            index = torch.arange(len(real), device=real.device)[lines]
            chosen.append(index)
            places.append(self._places(real)[index])
        real_rows, real_cols = self._rows[chosen[0]], self._cols[chosen[1]]
        inner = None
        if self._inner is not None and bool(real_rows.any()) and bool(real_cols.any()):
            inner = self._inner.part(places[0][real_rows], places[1][real_cols])
            if bool(real_rows.all()) and bool(real_cols.all()):
                return inner
        out = object.__new__(type(self))
        below = self._below[places[0][~real_rows]][:, chosen[1]]
        right = self._right[places[0][real_rows]][:, places[1][~real_cols]]
        out._set(inner, below, right, real_rows, real_cols)
        return out

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        if self._along(dim) == 0:
            return self.T.cmin(h)
        self._check_potential(h, self.shape[1])
        values = h.new_full((self.shape[0],), torch.inf)
        index = torch.zeros_like(values, dtype=torch.long)
        if len(self._below):
            values[~self._rows], index[~self._rows] = (self._below - h).min(1)
        if not len(self._right):
            return values, index
        least, best = values[self._rows], index[self._rows]
        if self._inner is not None:
            least, best = self._inner.cmin(h[self._cols])
            best = self._cols.nonzero().squeeze(-1)[best]
        for k, j in enumerate((~self._cols).nonzero().squeeze(-1)):
            virtual = self._right[:, k] - h[j]
            best = torch.where(virtual < least, j, best)
            least = torch.minimum(least, virtual)
        values[self._rows], index[self._rows] = least, best
        return values, index

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        real_row, real_col = self._rows[rows], self._cols[cols]
        i, j = self._places(self._rows)[rows], self._places(self._cols)[cols]
        out = self._below.new_empty(rows.shape)
        both, edge = real_row & real_col, real_row & ~real_col
        if self._inner is not None and bool(both.any()):
            out[both] = self._inner.cost_at(i[both], j[both]).to(out)
        out[edge] = self._right[i[edge], j[edge]]
        out[~real_row] = self._below[i[~real_row], cols[~real_row]]
        return out

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        part = self if rows == slice(None) and cols == slice(None) else self.part(rows, cols)
        if not isinstance(part, Bordered):
            return part.tile()
        out = part._below.new_empty(part.shape)
        out[~part._rows] = part._below
        real_rows, real_cols = (t.nonzero().squeeze(-1) for t in (part._rows, part._cols))
        out[real_rows.unsqueeze(-1), (~part._cols).nonzero().squeeze(-1)] = part._right
        if part._inner is not None:
            step = max(1, _BLOCK // len(real_cols))
            for start in range(0, len(real_rows), step):
                block = slice(start, start + step)
                out[real_rows[block].unsqueeze(-1), real_cols] = part._inner.tile(rows=block).to(out)
        return out

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        def block(rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]) -> Tensor:
            return self.tile(rows[0].squeeze(-1), cols[0].squeeze(-1))

        lines = (torch.arange(k, device=self.device).unsqueeze(-1) for k in self.shape)
        zero = self._below.new_zeros(())
        n, m = self.shape
        return Pairs((next(lines),), (next(lines),), block, self.shape), zero.expand(n), zero.expand(m)
