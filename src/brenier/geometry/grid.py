"""A regular grid with a separable cost: every operation works along one axis at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Self

import torch
from torch import Tensor

from .._inputs import check_finite, float_tensor, is_real, same_place
from ..errors import refuse
from ..kernels import engine as kernels
from ..kernels.reference import Pairs
from .base import Geometry, Lines, Support
from .pointcloud import PointCloud

__all__ = ["Grid"]


class Grid(Geometry):
    r"""All pairs of nodes of a regular grid, under c(x, y) = sum_k |x_k - y_k|^p.

    With N = N_1 ... N_D nodes, an operation costs O(N (N_1 + ... + N_D)) time instead of O(N^2), and O(N max N_k)
    memory. Weights and potentials are flat, (*batch, N), in row-major order: `image.flatten()`.

    Args:
        *axes: for each axis, its number of nodes (placed at 0, 1, 2, ...) or their coordinates (N_k,).
        p: the exponent, >= 1; 2 is the squared Euclidean cost, 1 the city-block cost.
        dtype, device: of the coordinates when they are given as numbers of nodes.

    Raises:
        InvalidInput: no axes, an empty axis, p < 1.

    Example:
        >>> import torch, brenier
        >>> a, b = torch.zeros(2, 64, dtype=torch.float64)
        >>> a[0], b[9] = 1, 1  # from corner (0, 0) to (1, 1) of an 8 x 8 image
        >>> round(float(brenier.solve(brenier.Grid(8, 8), a=a, b=b, epsilon=0.1).linear_value), 6)
        2.0
    """

    def __init__(
        self,
        *axes: int | Tensor | Sequence[float],
        p: float = 2.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if not axes:
            refuse("Grid axes", "at least one axis", "none")
        if not (is_real(p) and 1 <= p < math.inf):
            refuse("Grid p", "a finite number >= 1", repr(p))
        if dtype not in (torch.float32, torch.float64):
            refuse("Grid dtype", "torch.float32 or torch.float64", dtype)
        coordinates: list[Tensor] = []
        for k, axis in enumerate(axes):
            if isinstance(axis, Integral) and not isinstance(axis, bool):
                if axis < 1:
                    refuse(f"Grid axis {k}", "at least one node", axis)
                coordinates.append(torch.arange(int(axis), dtype=dtype, device=device))
            else:
                values = float_tensor(axis, f"Grid axis {k}")
                if values.dim() != 1 or values.numel() == 0:
                    refuse(f"Grid axis {k}", "a number of nodes or coordinates (N_k,)", f"shape {tuple(values.shape)}")
                check_finite(values, f"Grid axis {k}", "finite coordinates")
                coordinates.append(values)
            same_place(coordinates[0], "Grid axis 0", coordinates[k], f"Grid axis {k}")
        self.p = float(p)
        self._set(*coordinates)

    def _set(self, *axes: Tensor) -> None:
        self.axes = axes
        self.sizes = tuple(len(t) for t in axes)
        nodes = int(torch.Size(self.sizes).numel())
        self.shape = (nodes, nodes)
        self.batch_shape = torch.Size()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.axes

    def with_tensors(self, *tensors: Tensor) -> Self:
        out = object.__new__(type(self))
        out.p = self.p
        out._set(*tensors)
        return out

    @property
    def T(self) -> Grid:
        return self  # |x - y|^p is symmetric and both sides have the same nodes

    @property
    def points(self) -> Tensor:
        """The nodes, (N, D)."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), -1).reshape(self.shape[0], -1)

    def cloud(self) -> PointCloud:
        """The same pairs and the same cost as clouds of points, which are not separable but have parts."""
        p = self.p
        ground = {1.0: "cityblock", 2.0: "sqeuclidean"}.get(p, lambda x, y: (x - y).abs().pow(p).sum(-1))
        return PointCloud(self.points, cost=ground)

    def part(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> PointCloud:
        return self.detach().cloud().part(rows, cols)

    @property
    def fused(self) -> bool:
        return self.p in (1.0, 2.0)

    @property
    def replayable(self) -> bool:
        return True

    def _axis_costs(self) -> list[Tensor]:
        return [(t[:, None] - t[None, :]).abs().pow(self.p) for t in self.axes]

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        self._along(dim)
        self._check_potential(h, self.shape[1])
        self._check_epsilon(epsilon)
        return self._separable_softmin(h, epsilon, self._axis_costs())

    def _separable_softmin(self, h: Tensor, epsilon: float | Tensor, costs: list[Tensor]) -> Tensor:
        """One axis after the other; a cost is (N_k, N_k), or (*batch, N_k, N_k)."""
        batch = h.shape[:-1]
        eps = torch.as_tensor(epsilon, dtype=h.dtype, device=h.device)
        per_problem = eps.expand(batch).reshape(-1, 1) if eps.dim() else eps
        h = h.reshape(-1, *self.sizes)
        for k, c in enumerate(costs):
            lines = h.movedim(1 + k, -1)  # every grid line along axis k is one row of potentials
            flat = lines.reshape(len(h), -1, self.sizes[k])
            out = kernels.softmin(_lines(c, flat.shape[:2]), flat, per_problem)
            h = -out.reshape(lines.shape).movedim(-1, 1 + k)
        return -h.reshape(*batch, -1)

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        self._along(dim)
        self._check_potential(h, self.shape[1])
        h = h.reshape(*h.shape[:-1], *self.sizes)
        index = torch.arange(self.shape[0], device=h.device).reshape(self.sizes).expand(h.shape)
        return _separable_cmin(h, index, self._axis_costs())

    def minima(self, h: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Hard c-transforms (N,) over about `count` interleaved parts of the columns, each in turn, and where."""
        strides = [min(size, max(1, round(count ** (1 / len(self.sizes))))) for size in self.sizes]
        index = torch.arange(self.shape[0], device=h.device).reshape(self.sizes)
        for first in itertools.product(*map(range, strides)):
            lines = tuple(slice(start, None, step) for start, step in zip(first, strides))
            costs = [c[:, part] for c, part in zip(self._axis_costs(), lines)]
            yield _separable_cmin(h.reshape(self.sizes)[lines], index[lines], costs)

    def blocks(self, side: int, shift: int = 0) -> Tensor:
        """The number (N,) of the block of each node: `side` nodes along each axis, the first `shift` fewer."""
        number = torch.zeros(self.sizes, dtype=torch.long, device=self.device)
        for k, size in enumerate(self.sizes):
            along = (torch.arange(size, device=self.device) + shift) // side
            number = number * ((size - 1 + shift) // side + 1) + along.reshape(-1, *[1] * (len(self.sizes) - k - 1))
        return number.flatten()

    def coarser(self, *weights: Tensor) -> tuple[Grid, list[Tensor]]:
        """The grid of the means of neighbours, two along each axis, and the sums (M,) of weights (N,) over them.

        Its nodes are the blocks of two, in the same order.
        """
        pairs = [torch.arange(size, device=self.device) // 2 for size in self.sizes]
        axes = []
        for axis, pair in zip(self.axes, pairs):
            sums = axis.new_zeros((len(axis) + 1) // 2)
            axes.append(sums.index_add(0, pair, axis) / sums.index_add(0, pair, torch.ones_like(axis)))
        pooled = [w.reshape(self.sizes) for w in weights]
        for k, (axis, pair) in enumerate(zip(axes, pairs)):
            pooled = [w.new_zeros(*w.shape[:k], len(axis), *w.shape[k + 1 :]).index_add(k, pair, w) for w in pooled]
        return self.with_tensors(*axes), [w.flatten() for w in pooled]

    def cmin_from(self, other: Grid, h: Tensor) -> Tensor:
        """The hard c-transform (N,) of a potential (M,) on the nodes of another grid."""
        costs = [(s[:, None] - t[None, :]).abs().pow(self.p) for s, t in zip(self.axes, other.axes)]
        h = h.reshape(other.sizes)
        return _separable_cmin(h, torch.zeros_like(h, dtype=torch.long), costs)[0]

    def apply(self, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor, dim: int = 1) -> Tensor:
        if self._along(dim) == 0:
            f, g = g, f
        if vector := v.dim() == f.dim():
            v = v.unsqueeze(-1)
        eps = torch.as_tensor(epsilon, dtype=f.dtype, device=f.device)
        per_line = eps.unsqueeze(-1) if eps.dim() else eps
        columns = []
        for k in range(v.shape[-1]):  # signed vectors in the log domain: positive minus negative part
            column = v[..., k]
            total = torch.zeros_like(f)
            for sign in (1, -1):
                part = sign * column
                if bool((part > 0).any()):
                    # far below every other entry, yet finite: -inf would make the derivatives NaN
                    log = torch.where(part > 0, torch.where(part > 0, part, 1).log(), -1e30)
                    soft = self.softmin(g + per_line * log, eps)
                    total = total + sign * ((f - soft) / per_line).exp()
            columns.append(total)
        out = torch.stack(columns, -1)
        return out.squeeze(-1) if vector else out

    def moments(self, f: Tensor, g: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.as_tensor(epsilon, dtype=f.dtype, device=f.device)
        per_line = eps.unsqueeze(-1) if eps.dim() else eps
        mass = ((f - self.softmin(g, eps)) / per_line).exp()
        cost = torch.zeros_like(f)
        axis_costs = self._axis_costs()
        for k, c in enumerate(axis_costs):
            # c exp(-c / eps) = exp(-(c - eps log c) / eps): the cost joins the kernel of its own axis
            weighted = [*axis_costs]
            weighted[k] = c - (eps[..., None, None] if eps.dim() else eps) * c.log()
            cost = cost + ((f - self._separable_softmin(g, eps, weighted)) / per_line).exp()
        return mass, cost

    def _dense_pairs(self) -> Pairs:
        points, p = self.points, self.p

        def block(rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]) -> Tensor:
            return (rows[0].unsqueeze(-2) - cols[0].unsqueeze(-3)).abs().pow(p).sum(-1)

        return Pairs((points,), (points,), block, self.shape)

    def support(self, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None = None) -> Support:
        return Support(*kernels.support(self._dense_pairs(), f, g, threshold, max_per_row))

    def smallest(self, f: Tensor, g: Tensor, k: int) -> Support:
        return Support(*kernels.smallest(self._dense_pairs(), f, g, k))

    def cost_between(self, u: Tensor, v: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(u.shape[:-1], v.shape[:-1])
        u, v = u.expand(*batch, -1), v.expand(*batch, -1)
        grid_u, grid_v = u.reshape(*batch, *self.sizes), v.reshape(*batch, *self.sizes)
        total = u.new_zeros(batch)
        axes = range(len(batch), len(batch) + len(self.sizes))
        for k, c in enumerate(self._axis_costs()):
            others = [d for i, d in enumerate(axes) if i != k]
            # the cost of an axis only sees the marginals on that axis
            mu, mv = (t.sum(others) if others else t for t in (grid_u, grid_v))
            total = total + ((mu @ c) * mv).sum(-1)
        return total

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        points = self.points
        return (points[rows] - points[cols]).abs().pow(self.p).sum(-1)

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        points = self.points
        return (points[rows].unsqueeze(-2) - points[cols].unsqueeze(-3)).abs().pow(self.p).sum(-1)

    def __repr__(self) -> str:
        return f"Grid({', '.join(map(str, self.sizes))}, p={self.p:g})"


def _separable_cmin(h: Tensor, index: Tensor, costs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The hard c-transform of h (*batch, M_1, ...) under costs (N_k, M_k), flat, and the index where it is taken."""
    batch = h.dim() - len(costs)
    for k, c in enumerate(costs):
        lines = h.movedim(batch + k, -1)
        flat = lines.reshape(1, -1, c.shape[1])
        values, best = kernels.cmin(_lines(c, flat.shape[:2]), flat)
        shape = (*lines.shape[:-1], c.shape[0])
        index = index.movedim(batch + k, -1).gather(-1, best.reshape(shape)).movedim(-1, batch + k)
        h = -values.reshape(shape).movedim(-1, batch + k)
    return -h.flatten(batch), index.flatten(batch)


def _lines(c: Tensor, count: torch.Size) -> Pairs:
    """The cost along one axis, shared by the grid lines (problems, lines) of each problem, without copies."""
    shape = (c.shape[-2], c.shape[-1])
    shared = c.reshape(-1, 1, *shape).expand(*count, *shape)
    return Pairs((shared,), (), lambda rows, cols: rows[0], shape, "matrix")
