"""Clouds on the line and on the circle, whose hard c-transforms need no look at all pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..costs import Arc
from .pointcloud import PointCloud

__all__ = ["CircleCloud", "LineCloud", "monge_min", "ordered", "ordered_values"]

LineCost = Callable[[Tensor, Tensor], Tensor]
"""The cost of points on the line, elementwise and broadcasting: (...), (...) -> (...)."""


def ordered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sort x (*batch, n) along the last axis: the values and where they were, as constants."""
    x = x.detach()
    if x.device.type != "cpu":
        return tuple(x.sort(-1))  # type: ignore[return-value]
    order = torch.from_numpy(np.argsort(x.numpy(), -1))  # vectorised, several times as fast as torch's own
    return x.gather(-1, order), order


def ordered_values(x: Tensor) -> Tensor:
    """Sort x (*batch, n) along the last axis; differentiable."""
    if x.requires_grad and torch.is_grad_enabled():
        return x.gather(-1, ordered(x)[1])
    return torch.from_numpy(np.sort(x.detach().numpy(), -1)) if x.device.type == "cpu" else x.detach().sort(-1).values


def monge_min(
    cost: LineCost,
    x: Tensor,  # (batch, n), ascending
    y: Tensor,  # (batch, m), ascending
    h: Tensor,  # (batch, m)
) -> tuple[Tensor, Tensor]:
    r"""Row minima of c(x_i, y_j) - h_j and where they are, for a cost that is Monge on the line.

    Monge means c(x, y) + c(x', y') <= c(x, y') + c(x', y) for x <= x', y <= y', as for h(x - y) with h convex. Taking
    h_j off a column keeps that, whatever h, and then the leftmost minima move to the right from row to row. So every
    other row need only look between the minima of its two neighbours, level by level (Aggarwal et al. 1987, without
    their last factor of a logarithm). O((n + m) log n) evaluations of the cost, O(n + m) memory.

    Returns:
        Values (batch, n) and columns (batch, n).
    """
    batch, n, m = *x.shape, y.shape[-1]
    best, low = torch.zeros_like(x, dtype=torch.long), torch.empty_like(x)
    row_start = torch.arange(batch, device=x.device).unsqueeze(-1)
    flat_x, flat_y, flat_h = x.reshape(-1), y.reshape(-1), h.reshape(-1)
    stride = 1 << (n.bit_length() - 1)
    while stride:
        rows = torch.arange(stride - 1, n, 2 * stride, device=x.device)
        begin = best[:, rows - stride] if stride <= n else best[:, rows]
        begin = torch.where(rows >= stride, begin, 0)
        end = torch.where(rows + stride < n, best[:, (rows + stride).clamp(max=n - 1)], m - 1)
        counts = (end - begin + 1).flatten()
        stops = counts.cumsum(0)
        line = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts)
        first = (begin + row_start * m).flatten() - (stops - counts)
        at = torch.arange(len(line), device=x.device) + first[line]
        values = cost(flat_x[(row_start * n + rows).flatten()][line], flat_y[at]) - flat_h[at]
        least = torch.segment_reduce(values, "min", lengths=counts)
        hits = (values <= least[line]).nonzero().squeeze(-1).flip(0)  # the leftmost is written last
        where = torch.zeros_like(counts)
        where[line[hits]] = at[hits]
        low[:, rows] = least.reshape(batch, -1)
        best[:, rows] = where.reshape(batch, -1) - row_start * m
        stride //= 2
    return low, best


class LineCloud(PointCloud):
    """Points on the line under a cost that is convex in x - y: hard c-transforms in O((n + m) log(n + m)) time."""

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        along = self._along(dim)
        self._check_potential(h, self.shape[along])
        rows, cols = (t.squeeze(-1) for t in (self.tensors if along else reversed(self.tensors)))
        batch = torch.broadcast_shapes(self.batch_shape, h.shape[:-1])
        rows, cols, h = (t.detach().expand(*batch, -1).reshape(-1, t.shape[-1]) for t in (rows, cols, h))
        x, order_x = ordered(rows)
        values, index = self._search(x, cols, h, self._cost if along else lambda u, v: self._cost(v, u))
        back = order_x.argsort(-1)
        return tuple(t.gather(-1, back).reshape(*batch, -1) for t in (values, index))  # type: ignore[return-value]

    def _cost(self, u: Tensor, v: Tensor) -> Tensor:
        return self.ground(u.unsqueeze(-1), v.unsqueeze(-1))

    def _search(self, x: Tensor, cols: Tensor, h: Tensor, cost: LineCost) -> tuple[Tensor, Tensor]:
        """Minima of the sorted rows x over columns in any order."""
        y, order = ordered(cols)
        values, index = monge_min(cost, x, y, h.gather(-1, order))
        return values, order.gather(-1, index)


class CircleCloud(LineCloud):
    """Points on a circle under a convex cost of the arc: one turn of the rows on the line, three of the columns."""

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        assert isinstance(self.ground, Arc)
        turned = (t.remainder(self.ground.period) for t in self.tensors)
        return super(CircleCloud, self.with_tensors(*turned)).cmin(h, dim)

    def _cost(self, u: Tensor, v: Tensor) -> Tensor:
        assert isinstance(self.ground, Arc)
        return self.ground.of_length((u - v).abs())

    def _search(self, x: Tensor, cols: Tensor, h: Tensor, cost: LineCost) -> tuple[Tensor, Tensor]:
        assert isinstance(self.ground, Arc)
        turns = torch.cat([cols - self.ground.period, cols, cols + self.ground.period], -1)
        values, index = super()._search(x, turns, h.repeat(1, 3), cost)
        return values, index % cols.shape[-1]
