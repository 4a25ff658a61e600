"""Transport plans as operators: nothing n x m unless asked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._inputs import Kind, float_tensor, is_count, is_real
from .errors import refuse
from .geometry import Geometry
from .geometry.base import PairGeometry, Support

__all__ = ["Entries", "FactoredPlan", "GibbsPlan", "Plan", "SparsePlan"]

_TILE = 1 << 22  # entries of a factored plan that are formed at once in a search


class Entries(NamedTuple):
    """Entries of a plan: rows (k,), columns (k,) and masses (k,)."""

    rows: Any
    cols: Any
    mass: Any


class Plan(ABC):
    """A transport plan P (*batch, n, m), as an operator.

    `plan @ v` and `plan.T @ u` never form the matrix; `plan.dense()` does, when asked.
    Outputs are of the user's kind (torch, NumPy or pandas).
    """

    geometry: Geometry
    shape: tuple[int, int]
    batch_shape: torch.Size
    kind: Kind = Kind()

    # What a subclass must know; tensors in, tensors out

    @abstractmethod
    def _matmul(self, v: Tensor) -> Tensor:
        """P v for v (*batch, m, k): (*batch, n, k)."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Row sums (*batch, n) and <P, C> per row (*batch, n)."""

    @abstractmethod
    def scaled(self, u: Tensor | None = None, v: Tensor | None = None) -> Plan:
        """diag(u) P diag(v)."""

    @abstractmethod
    def _transpose(self) -> Plan: ...

    @abstractmethod
    def _entries(self, max_per_row: int | None, threshold: float) -> Entries:
        """The entries with more mass than `threshold`, the largest `max_per_row` of each row (no batch)."""

    @abstractmethod
    def _topk(self, k: int) -> Entries: ...

    @abstractmethod
    def _argmax(self) -> Tensor: ...

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Plan:
        """The plan in another floating-point precision."""

    # What users call

    @property
    def T(self) -> Plan:
        """The transposed plan, an operator from rows to columns."""
        out = self._transpose()
        out.kind = self.kind.swapped()
        return out

    def __matmul__(self, v: Any) -> Any:
        """P v for v (*batch, m) or (*batch, m, k), without forming P."""
        v = float_tensor(v, "v").to(self._like())
        lead = len(self.batch_shape)
        vector = v.dim() == lead + 1
        if v.dim() - lead not in (1, 2) or v.shape[: lead + 1] != (*self.batch_shape, self.shape[1]):
            sizes = ", ".join(map(str, (*self.batch_shape, self.shape[1])))
            refuse("plan @ v", f"v of shape ({sizes}) or ({sizes}, k)", f"shape {tuple(v.shape)}")
        out = self._matmul(v.unsqueeze(-1) if vector else v)
        return self.kind.per_row(out.squeeze(-1)) if vector else self.kind.array(out)

    def _like(self) -> Tensor:
        return self.geometry.tensors[0]

    def row_sums(self) -> Tensor:
        """P 1, (*batch, n)."""
        ones = self._like().new_ones((*self.batch_shape, self.shape[1], 1))
        return self._matmul(ones).squeeze(-1)

    def col_sums(self) -> Tensor:
        """P^T 1, (*batch, m)."""
        return self._transpose().row_sums()

    def cost(self) -> Tensor:
        """<P, C>, (*batch,)."""
        return self.moments()[1].sum(-1)

    def dense(self) -> Any:
        """The whole matrix, (*batch, n, m): n x m memory."""
        eye = torch.eye(self.shape[1], dtype=self._like().dtype, device=self._like().device)
        return self.kind.matrix(self._matmul(eye.expand(*self.batch_shape, -1, -1)))

    def topk(self, k: int) -> Entries:
        """The k entries of most mass, in decreasing order (not for batches)."""
        self._no_batch("topk")
        _check_count("topk k", k)
        return self._out(self._topk(min(k, self.shape[0] * self.shape[1])))

    def entries(self, *, max_per_row: int | None = None, threshold: float = 0.0) -> Entries:
        """The entries with more mass than `threshold`; at most `max_per_row`, the largest, of each row."""
        self._no_batch("entries")
        return self._out(self._heavier(max_per_row, threshold))

    def _heavier(self, max_per_row: int | None, threshold: float) -> Entries:
        if max_per_row is not None:
            _check_count("max_per_row", max_per_row)
        if not (is_real(threshold) and 0 <= threshold < math.inf):
            refuse("threshold", "a finite mass >= 0", repr(threshold))
        return self._entries(max_per_row, float(threshold))

    def sparse(self, *, max_per_row: int | None = None, threshold: float = 0.0) -> Any:
        """The plan as a sparse matrix: a torch COO tensor, or a SciPy COO array for NumPy and pandas users.

        Args:
            max_per_row: keep only so many entries, the largest, of each row.
            threshold: keep only entries with more mass than this.
        """
        self._no_batch("sparse")
        rows, cols, mass = self._heavier(max_per_row, threshold)
        mass = mass.to(self.geometry.dtype)
        if self.kind.name == "torch":
            with torch.sparse.check_sparse_tensor_invariants(False):
                return torch.sparse_coo_tensor(torch.stack([rows, cols]), mass, self.shape).coalesce()
        from scipy.sparse import coo_array

        index = (Kind.array_numpy(rows), Kind.array_numpy(cols))
        return coo_array((Kind.array_numpy(mass), index), shape=self.shape)

    def argmax(self) -> Any:
        """For each source, the target that gets most of its mass, (*batch, n)."""
        return self.kind.per_row(self._argmax())

    def barycentric(self, y: Any = None) -> Any:
        """Send each source to the mean of where its mass goes: (P y) / (P 1), (*batch, n, k).

        Args:
            y: (*batch, m, k) positions or features of the targets; the target cloud when None.

        Sources without mass give NaN.
        """
        if y is None:
            y = getattr(self.geometry, "y", None)
            if y is None:
                y = getattr(self.geometry, "points", None)
            if y is None:
                refuse("barycentric y", "target positions (the geometry holds none)", "None", "Pass y=...")
        y = float_tensor(y, "y").to(self._like())
        if y.dim() < 2 or y.shape[-2] != self.shape[1]:
            refuse(
                "barycentric y",
                f"shape (*batch, {self.shape[1]}, k), one row for each target",
                f"shape {tuple(y.shape)}",
            )
        ones = y.new_ones((*y.shape[:-1], 1))
        both = self._matmul(torch.cat([y, ones], -1).expand(*self.batch_shape, -1, -1))
        return self.kind.points(both[..., :-1] / both[..., -1:], self.kind.rows_x)

    def _no_batch(self, what: str) -> None:
        if self.batch_shape:
            refuse(
                f"plan.{what}",
                "a plan without batch axes",
                f"batch {tuple(self.batch_shape)}",
                "Use plan.dense().",
            )

    def _out(self, entries: Entries) -> Entries:
        rows, cols, mass = entries
        return Entries(*(self.kind.array(t) for t in (rows, cols, mass.to(self.geometry.dtype))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={(*self.batch_shape, *self.shape)})"


def _check_count(name: str, value: Any) -> None:
    if not is_count(value):
        refuse(name, "a positive integer", repr(value))


class GibbsPlan(Plan):
    """P_ij = exp((F_i + G_j - c_ij) / eps), with the marginals absorbed: F = f + eps log a.

    F, G and epsilon may be kept in float64 under a float32 geometry; what users receive has the geometry's dtype. Where
    the cost itself is known better than in that dtype, it is `exact`.
    """

    def __init__(
        self, geometry: Geometry, F: Tensor, G: Tensor, epsilon: Tensor, exact: Geometry | None = None
    ) -> None:
        self.geometry, self.F, self.G, self.epsilon = geometry, F, G, epsilon
        exact = geometry if exact is None else exact
        self._exact = exact if exact.dtype == F.dtype else exact.to(F.dtype)
        self.shape = geometry.shape
        self.batch_shape = F.shape[:-1]

    def _per_line(self) -> Tensor:
        return self.epsilon.unsqueeze(-1) if self.epsilon.dim() else self.epsilon

    def _matmul(self, v: Tensor) -> Tensor:
        return self._exact.apply(self.F, self.G, self.epsilon, v.to(self.F)).to(v)

    def row_sums(self) -> Tensor:
        # through softmin: exact where the direct sum would overflow
        return ((self.F - self._exact.softmin(self.G, self.epsilon)) / self._per_line()).exp()

    def moments(self) -> tuple[Tensor, Tensor]:
        return self._exact.moments(self.F, self.G, self.epsilon)

    def scaled(self, u: Tensor | None = None, v: Tensor | None = None) -> GibbsPlan:
        F = self.F if u is None else self.F + self._per_line() * u.log()
        G = self.G if v is None else self.G + self._per_line() * v.log()
        return GibbsPlan(self.geometry, F, G, self.epsilon, self._exact)

    def _transpose(self) -> GibbsPlan:
        return GibbsPlan(self.geometry.T, self.G, self.F, self.epsilon, self._exact.T)

    def to(self, dtype: torch.dtype) -> GibbsPlan:
        F, G, epsilon = (t.to(dtype) for t in (self.F, self.G, self.epsilon))
        return GibbsPlan(self.geometry.to(dtype), F, G, epsilon, self._exact.to(dtype))

    def _entries(self, max_per_row: int | None, threshold: float) -> Entries:
        epsilon = float(self.epsilon.detach())
        # exp(-r / eps) > threshold; without one, keep what float64 can tell from zero
        reach = epsilon * (-torch.tensor(threshold or 1e-300, dtype=torch.float64).log().item())
        with torch.no_grad():
            found = self._exact.support(self.F, self.G, reach, max_per_row)
        rows, cols, mass = self._masses(found)
        keep = mass.to(self.geometry.dtype) > threshold  # what is handed out, and float32 underflows earlier
        return Entries(rows[keep], cols[keep], mass[keep])

    def _topk(self, k: int) -> Entries:
        with torch.no_grad():
            found = self._exact.smallest(self.F, self.G, k)
        return self._masses(found)

    def _masses(self, found: Support) -> Entries:
        """The masses of entries that were searched for as constants; with gradients where the plan has any."""
        rows, cols, reduced = found
        parts = (self.F, self.G, self.epsilon, *self._exact.tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in parts):
            reduced = self._exact.cost_at(rows, cols) - self.F[rows] - self.G[cols]
        return Entries(rows, cols, (-reduced / self.epsilon).exp())

    def _argmax(self) -> Tensor:
        with torch.no_grad():
            return self._exact.cmin(self.G)[1]


class SparsePlan(Plan):
    """A plan given by its entries; batches are padded with entries of zero mass at (0, 0).

    Masses may be kept in float64 under a float32 geometry; what users receive has the geometry's dtype.
    """

    def __init__(self, geometry: Geometry, rows: Tensor, cols: Tensor, mass: Tensor) -> None:
        self.geometry, self.rows, self.cols, self.mass = geometry, rows, cols, mass
        self.shape = geometry.shape
        self.batch_shape = mass.shape[:-1]

    def _sum_rows(self, values: Tensor) -> Tensor:
        out = values.new_zeros((*self.batch_shape, self.shape[0]))
        return out.scatter_add(-1, self.rows, values)

    def _matmul(self, v: Tensor) -> Tensor:
        k = v.shape[-1]
        wide = (*self.batch_shape, self.rows.shape[-1], k)
        v = v.expand(*self.batch_shape, *v.shape[-2:])
        picked = v.gather(-2, self.cols.unsqueeze(-1).expand(wide)) * self.mass.to(v.dtype).unsqueeze(-1)
        out = v.new_zeros((*self.batch_shape, self.shape[0], k))
        return out.scatter_add(-2, self.rows.unsqueeze(-1).expand(wide), picked)

    def row_sums(self) -> Tensor:
        return self._sum_rows(self.mass)

    def col_sums(self) -> Tensor:
        return self._transpose().row_sums()

    def moments(self) -> tuple[Tensor, Tensor]:
        cost = self.mass * self.geometry.cost_at(self.rows, self.cols).to(self.mass.dtype)
        return self.row_sums(), self._sum_rows(cost)

    def dense(self) -> Any:
        flat = self.mass.new_zeros((*self.batch_shape, self.shape[0] * self.shape[1]))
        flat = flat.scatter_add(-1, self.rows * self.shape[1] + self.cols, self.mass)
        return self.kind.matrix(flat.reshape(*self.batch_shape, *self.shape).to(self.geometry.dtype))

    def scaled(self, u: Tensor | None = None, v: Tensor | None = None) -> SparsePlan:
        mass = self.mass
        if u is not None:
            mass = mass * u.gather(-1, self.rows)
        if v is not None:
            mass = mass * v.gather(-1, self.cols)
        return SparsePlan(self.geometry, self.rows, self.cols, mass)

    def _transpose(self) -> SparsePlan:
        return SparsePlan(self.geometry.T, self.cols, self.rows, self.mass)

    def to(self, dtype: torch.dtype) -> SparsePlan:
        return SparsePlan(self.geometry.to(dtype), self.rows, self.cols, self.mass.to(dtype))

    def _entries(self, max_per_row: int | None, threshold: float) -> Entries:
        keep = self.mass > threshold
        rows, cols, mass = self.rows[keep], self.cols[keep], self.mass[keep]
        order = mass.argsort(descending=True, stable=True)
        order = order[rows[order].argsort(stable=True)]  # by row, heaviest first
        rows, cols, mass = rows[order], cols[order], mass[order]
        if max_per_row is not None and len(rows):
            _, counts = rows.unique_consecutive(return_counts=True)
            starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
            keep = torch.arange(len(rows), device=rows.device) - starts < max_per_row
            rows, cols, mass = rows[keep], cols[keep], mass[keep]
        return Entries(rows, cols, mass)

    def _topk(self, k: int) -> Entries:
        mass, best = self.mass.topk(min(k, self.mass.shape[-1]))
        keep = mass > 0
        best = best[keep]
        return Entries(self.rows[best], self.cols[best], mass[keep])

    def _argmax(self) -> Tensor:
        # ties and empty rows fall to column 0 of the scan; heaviest entry wins by being written last
        order = self.mass.argsort(dim=-1, stable=True)
        rows, cols = self.rows.gather(-1, order), self.cols.gather(-1, order)
        best = torch.full((*self.batch_shape, self.shape[0]), -1, dtype=torch.long, device=rows.device)
        rank = torch.arange(rows.shape[-1], device=rows.device).expand(rows.shape)
        last = best.scatter_reduce(-1, rows, rank, "amax")
        return torch.where(last >= 0, cols.gather(-1, last.clamp(min=0)), 0)


class FactoredPlan(Plan):
    """P = Q diag(1 / g) R^T of rank r, for Q (n, r), R (m, r) and g (r,), all nonnegative; no batch axes.

    Products take O((n + m) r) time; searches for entries go over all pairs, in tiles. Factors may be kept in float64
    under a float32 geometry; what users receive has the geometry's dtype.
    """

    geometry: PairGeometry

    def __init__(self, geometry: PairGeometry, Q: Tensor, g: Tensor, R: Tensor) -> None:
        self.geometry, self.Q, self.g, self.R = geometry, Q, g, R
        self._exact = geometry if geometry.dtype == Q.dtype else geometry.to(Q.dtype)
        self.shape = geometry.shape
        self.batch_shape = torch.Size()

    @property
    def rank(self) -> int:
        """Columns of the factors, at least the rank of P."""
        return int(self.Q.shape[-1])

    @property
    def _left(self) -> Tensor:
        """Q diag(1 / g), where a cluster without mass has none of either side."""
        return torch.where(self.g > 0, self.Q / torch.where(self.g > 0, self.g, 1), 0)

    def _matmul(self, v: Tensor) -> Tensor:
        return (self._left @ (self.R.mT @ v.to(self.R))).to(v)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.row_sums(), (self._left * self._exact.product(self.R)).sum(-1)

    def row_sums(self) -> Tensor:
        return self._left @ self.R.sum(0)

    def dense(self) -> Any:
        return self.kind.matrix((self._left @ self.R.mT).to(self.geometry.dtype))

    def scaled(self, u: Tensor | None = None, v: Tensor | None = None) -> FactoredPlan:
        Q = self.Q if u is None else self.Q * u.unsqueeze(-1)
        R = self.R if v is None else self.R * v.unsqueeze(-1)
        return FactoredPlan(self.geometry, Q, self.g, R)

    def _transpose(self) -> FactoredPlan:
        return FactoredPlan(self.geometry.T, self.R, self.g, self.Q)

    def to(self, dtype: torch.dtype) -> FactoredPlan:
        return FactoredPlan(self.geometry.to(dtype), self.Q.to(dtype), self.g.to(dtype), self.R.to(dtype))

    def _tiles(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of rows of P, each with the number of its first."""
        step, left = max(1, _TILE // self.shape[1]), self._left
        for start in range(0, self.shape[0], step):
            yield start, left[start : start + step] @ self.R.mT

    def _entries(self, max_per_row: int | None, threshold: float) -> Entries:
        found = []
        for start, tile in self._tiles():
            mass, cols = tile.topk(min(max_per_row or self.shape[1], self.shape[1]), -1)
            rows = torch.arange(start, start + len(tile), device=tile.device).unsqueeze(-1).expand_as(cols)
            keep = mass > threshold
            found.append((rows[keep], cols[keep], mass[keep]))
        return Entries(*(torch.cat(parts) for parts in zip(*found)))

    def _topk(self, k: int) -> Entries:
        best, index = self._left.new_zeros(0), torch.zeros(0, dtype=torch.long, device=self.Q.device)
        for start, tile in self._tiles():
            mass, place = tile.flatten().topk(min(k, tile.numel()))
            best, index = torch.cat([best, mass]), torch.cat([index, place + start * self.shape[1]])
            best, order = best.topk(min(k, len(best)))
            index = index[order]
        keep = best > 0
        best, index = best[keep], index[keep]
        return Entries(index // self.shape[1], index % self.shape[1], best)

    def _argmax(self) -> Tensor:
        return torch.cat([tile.argmax(-1) for _, tile in self._tiles()])
