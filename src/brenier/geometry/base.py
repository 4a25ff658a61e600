"""The contract of a geometry, and its implementation for every cost that can be told by blocks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .._inputs import Kind, weights_tensor
from ..errors import refuse
from ..kernels import engine as kernels
from ..kernels.device import waits
from ..kernels.reference import Pairs
from .memory import LIMIT, NARROW_ACCURACY, NARROW_LIMIT, GibbsMemory
from .single import LEAST, SingleSums

__all__ = ["Geometry", "Lines", "PairGeometry", "Support"]

Lines = slice | Tensor
"""A selection of rows or columns."""


class Support(NamedTuple):
    """Entries of the cost: rows (k,), columns (k,) and reduced costs c - f - g (k,)."""

    rows: Tensor
    cols: Tensor
    reduced: Tensor


class Geometry(ABC):
    """A cost between n rows and m columns, with leading batch dimensions, that is never formed unasked.

    `dim` names the axis that an operation reduces: 1 (or -1) sums over the columns and returns something per row,
    0 (or -2) sums over the rows and returns something per column.
    """

    shape: tuple[int, int]  # (n, m)
    batch_shape: torch.Size
    kind: Kind = Kind()  # of what the user handed in
    memory: GibbsMemory | None = None
    single: SingleSums | None = None

    # What a subclass must know

    @property
    @abstractmethod
    def T(self) -> Geometry:
        """The same cost with rows and columns exchanged."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that define the cost; gradients flow to them."""

    @abstractmethod
    def with_tensors(self, *tensors: Tensor) -> Self:
        """The same geometry on other tensors (a cast, a detached copy)."""

    @abstractmethod
    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        """Soft c-transform: -eps log sum_j exp((h_j - c_ij) / eps) for dim=1.

        Args:
            h: (*batch, m) for dim=1, (*batch, n) for dim=0; -inf where there is no mass.
            epsilon: in cost units, a number or (*batch,).
            dim: the axis to reduce.
        """

    @abstractmethod
    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        """Hard c-transform: min_j (c_ij - h_j) and the minimising j, for dim=1."""

    @abstractmethod
    def apply(self, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor, dim: int = 1) -> Tensor:
        """The Gibbs plan exp((f_i + g_j - c_ij) / eps) times v (*batch, m) or (*batch, m, k), without the plan."""

    @abstractmethod
    def moments(self, f: Tensor, g: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
        """Row sums of the Gibbs plan (*batch, n) and its cost per row (*batch, n), in one pass."""

    @abstractmethod
    def support(self, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None = None) -> Support:
        """The entries with c_ij - f_i - g_j <= threshold, at most `max_per_row` smallest of each row (no batch)."""

    @abstractmethod
    def smallest(self, f: Tensor, g: Tensor, k: int) -> Support:
        """The k entries of smallest c_ij - f_i - g_j, ascending (no batch)."""

    @abstractmethod
    def cost_between(self, u: Tensor, v: Tensor) -> Tensor:
        """u^T C v for u (*batch, n), v (*batch, m): the cost of the product plan, (*batch,)."""

    @abstractmethod
    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        """C at index pairs (*batch, k): (*batch, k), by the definition of the cost; differentiable."""

    @abstractmethod
    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        """A block of the cost, (*batch, r, s); the whole matrix when called without arguments."""

    # What follows from it

    def part(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Geometry:
        """The same cost between some of the rows and some of the columns, as lazy as the whole; without gradients."""
        return _Part(self.detach(), rows, cols)

    @property
    def fused(self) -> bool:
        """Whether the native engine knows the cost by name, and can spare the tiles."""
        return False

    @property
    def replayable(self) -> bool:
        """Whether soft transforms on a GPU look at no number and copy none there, so that they can be captured."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def to(self, dtype: torch.dtype) -> Self:
        """The same geometry in another floating-point precision."""
        return self.with_tensors(*(t.to(dtype) for t in self.tensors))

    def detach(self) -> Self:
        """The same geometry without gradient history."""
        return self.with_tensors(*(t.detach() for t in self.tensors))

    def remembering(self, epsilon: Tensor, accuracy: float = 0.0) -> Geometry:
        """The same geometry for many soft transforms at one epsilon: with its kernel in `memory`, or `single` sums.

        For a loop without gradients; what is kept goes with the object that this returns. O(1) memory, as a few million
        entries at most are kept; but beside a cost matrix a copy of half its size, rounded to float32, where that
        accuracy, relative to the masses, is enough. Clouds in float64 that are too large for that are copied to
        float32. On a GPU no kernel is kept, as each transform would wait to learn whether it still serves.
        """
        return self

    def item(self, index: tuple[int, ...]) -> Geometry:
        """The geometry of one item of a batch, whose axes may be more than those of the geometry; no batch axes."""
        lead = self.batch_shape
        own = tuple(0 if size == 1 else i for size, i in zip(lead, index[len(index) - len(lead) :]))
        return self.with_tensors(*(t[own] for t in self.tensors)) if lead else self

    def select(self, index: Tensor) -> Geometry:
        """The items (k,) of a batch of one axis; a geometry without batch axes belongs to every item."""
        if not self.batch_shape:
            return self
        shared = (t.stride(0) == 0 or t.shape[0] == 1 for t in self.tensors)
        return self.with_tensors(
            *(t[:1].expand(len(index), *t.shape[1:]) if s else t[index] for t, s in zip(self.tensors, shared))
        )

    def masses(self, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        """Read the weights of the rows (*batch, n) and the columns (*batch, m); uniform with total mass 1 when None."""
        n, m = self.shape
        like = self.tensors[0]
        return weights_tensor(a, n, "a", like), weights_tensor(b, m, "b", like)

    def mean_cost(self, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """Mean of the cost under a ⊗ b (uniform by default), (*batch,): the scale that `Relative` multiplies."""
        n, m = self.shape
        one = self.tensors[0].detach().new_ones
        u = one((*self.batch_shape, n)) if a is None else a
        v = one((*self.batch_shape, m)) if b is None else b
        return self.detach().cost_between(u / u.sum(-1, keepdim=True), v / v.sum(-1, keepdim=True))

    def range_estimate(self) -> Tensor:
        """Mean minus minimum of the cost, (*batch,): a shift-invariant scale to start an epsilon schedule at."""
        geometry = self.detach()
        smallest = geometry.cmin(geometry.tensors[0].new_zeros((*self.batch_shape, self.shape[1])))[0]
        return (geometry.mean_cost() - smallest.min(-1).values).clamp(min=0)

    @staticmethod
    def _along(dim: int) -> int:
        if dim not in (1, -1, 0, -2):
            refuse("dim", "1 (reduce the columns) or 0 (reduce the rows)", dim)
        return dim % 2

    def _check_potential(self, h: Tensor, size: int, name: str = "h") -> None:
        if not isinstance(h, Tensor):
            refuse(name, "a tensor", type(h).__name__, "Use torch.as_tensor.")
        if h.dim() == 0 or h.shape[-1] != size:
            refuse(name, f"last axis of length {size}", f"shape {tuple(h.shape)}")

    @staticmethod
    def _check_epsilon(epsilon: float | Tensor) -> None:
        if not isinstance(epsilon, Tensor) and not 0 < epsilon < math.inf:  # tensors unread, to spare a sync
            refuse("epsilon", "a positive finite number in cost units", repr(epsilon))


class PairGeometry(Geometry):
    """A geometry whose cost is row_term_i + col_term_j + block(rows, cols)_ij.

    The two rank-one terms never enter a tile: they are absorbed by the potentials.
    """

    _stored = False  # whether the costs are in memory anyway

    @abstractmethod
    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        """The blocks, row term (*batch, n) and column term (*batch, m)."""

    @property
    @abstractmethod
    def T(self) -> PairGeometry: ...

    @property
    def fused(self) -> bool:
        return bool(self.detach()._pairs()[0].kind)

    @property
    def replayable(self) -> bool:
        return self.fused

    def remembering(self, epsilon: Tensor, accuracy: float = 0.0) -> Geometry:
        n, m = self.shape
        pairs = max(self.batch_shape.numel(), epsilon.numel()) * n * m
        narrow = pairs > LIMIT
        wide = narrow and not (
            self._stored and self.dtype == torch.float64 and accuracy >= NARROW_ACCURACY and pairs <= NARROW_LIMIT
        )
        if wide or waits(self.tensors[0]):
            return self.with_single(pairs)
        out, costs = self.detach(), self.detach()
        out.memory = GibbsMemory(costs, epsilon.detach(), narrow, fresh=self.fused and not self._stored)
        return out

    def with_single(self, pairs: int) -> Geometry:
        """The same geometry, with `single` sums where so many pairs in a pass make them worth their copy."""
        if self._stored or self.dtype != torch.float64 or pairs < LEAST or not self.fused:
            return self
        out = self.detach()
        single = SingleSums(out)
        out.single = single if single.finite else None
        return out

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        along = self._along(dim)
        if self.memory is not None:
            return self.memory.softmin(h, epsilon, along)
        if along == 0:
            return self.T.softmin(h, epsilon)
        self._check_potential(h, self.shape[1])
        self._check_epsilon(epsilon)
        pairs, r, c = self._pairs()
        return r + kernels.softmin(pairs, h - c, epsilon)

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        if self._along(dim) == 0:
            return self.T.cmin(h)
        self._check_potential(h, self.shape[1])
        pairs, r, c = self._pairs()
        values, index = kernels.cmin(pairs, h - c)
        return r + values, index

    def apply(self, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor, dim: int = 1) -> Tensor:
        if self._along(dim) == 0:
            return self.T.apply(g, f, epsilon, v)
        self._check_potential(f, self.shape[0], "f")
        self._check_potential(g, self.shape[1], "g")
        self._check_epsilon(epsilon)
        pairs, r, c = self._pairs()
        if vector := v.dim() == f.dim():
            v = v.unsqueeze(-1)
        out = kernels.apply(pairs, f - r, g - c, epsilon, v)
        return out.squeeze(-1) if vector else out

    def moments(self, f: Tensor, g: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
        pairs, r, c = self._pairs()
        mass, cost = kernels.row_moments(pairs, f - r, g - c, epsilon, c)
        return mass, cost + r * mass

    def support(self, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None = None) -> Support:
        pairs, r, c = self._pairs()
        return Support(*kernels.support(pairs, f - r, g - c, threshold, max_per_row))

    def smallest(self, f: Tensor, g: Tensor, k: int) -> Support:
        pairs, r, c = self._pairs()
        return Support(*kernels.smallest(pairs, f - r, g - c, k))

    def cost_between(self, u: Tensor, v: Tensor) -> Tensor:
        pairs, r, c = self._pairs()
        body = (u * kernels.matvec(pairs, v)).sum(-1)
        return body + (r * u).sum(-1) * v.sum(-1) + (c * v).sum(-1) * u.sum(-1)

    def product(self, v: Tensor) -> Tensor:
        """C v for v (m, k), without C (no batch): (n, k); differentiable in the cost.

        O((n + m) d k) time for an inner-product cost of d columns, O(n m) tiles for others.
        """
        pairs, r, c = self._pairs()
        body = kernels.matvec(pairs, v.mT.contiguous()).mT  # each column is an item of a batch
        return body + r.unsqueeze(-1) * v.sum(-2) + c @ v


class _Part(PairGeometry):
    """Some rows and columns of any geometry, by its tiles."""

    def __init__(self, whole: Geometry, rows: Lines, cols: Lines) -> None:
        self._whole = whole
        n, m = whole.shape
        self._rows, self._cols = (torch.arange(k, device=whole.device)[i] for k, i in ((n, rows), (m, cols)))
        self.shape = (len(self._rows), len(self._cols))
        self.batch_shape = whole.batch_shape

    @property
    def T(self) -> PairGeometry:
        return _Part(self._whole.T, self._cols, self._rows)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._whole.tensors

    def with_tensors(self, *tensors: Tensor) -> Self:
        return type(self)(self._whole.with_tensors(*tensors), self._rows, self._cols)

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        def block(rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]) -> Tensor:
            return self._whole.tile(rows[0].squeeze(-1), cols[0].squeeze(-1))

        lines = ((self._rows.unsqueeze(-1),), (self._cols.unsqueeze(-1),))
        zero = self.tensors[0].new_zeros(())
        n, m = ((*self.batch_shape, k) for k in self.shape)
        return Pairs(*lines, block, self.shape), zero.expand(n), zero.expand(m)

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        return self._whole.cost_at(self._rows[rows], self._cols[cols])

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        return self._whole.tile(self._rows[rows], self._cols[cols])
