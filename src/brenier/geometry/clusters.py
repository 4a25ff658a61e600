"""A balanced tree of clusters over a cloud of points, for pruning and for coarse copies of the cloud."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Boxes", "Clusters", "sorted_within"]

Array = NDArray[np.float64]

_SMALLEST = 4  # points of a cluster at the bottom of the tree


class Boxes(NamedTuple):
    """Bounding boxes of the clusters at one depth: x_i = centre + u with |u| <= half in each coordinate."""

    centre: Array  # (k, d)
    half: Array  # (k, d)


class Clusters:
    """A binary tree by median splits: 2^depth clusters at each depth, each a run of the points in tree order.

    Cluster i at depth k holds the points floor(i n / 2^k) .. floor((i + 1) n / 2^k) - 1, so that sizes differ by one at
    most, the children of i are 2 i and 2 i + 1, and no offsets are stored.

    Args:
        points: (n, d) in tree order.
        order: (n,) what the i-th point in tree order is called outside; None for its own number.
        deepest: the last depth, at most log2(n).
    """

    def __init__(self, points: Array, order: NDArray[np.int64] | None, deepest: int) -> None:
        self.points, self.order, self.deepest = points, order, deepest
        self._boxes: dict[int, Boxes] = {}
        self._moments: tuple[int, dict[int, Array], dict[int, Array]] | None = None

    @classmethod
    def of(cls, points: Array, smallest: int = _SMALLEST) -> Clusters:
        """Split each cluster at the median of its widest coordinate, down to 4 to 8 points: O(n log^2 n) time.

        Args:
            points: (n, d) in any order.
            smallest: points of a cluster at the bottom, instead of 4; fewer than twice as many, in any case.
        """
        n = len(points)
        deepest = max(0, int(math.log2(n / smallest))) if n >= smallest else 0
        order = np.arange(n)
        points = np.ascontiguousarray(points, dtype=np.float64)
        for depth in range(deepest):
            starts = _starts(n, depth)
            low, high = np.minimum.reduceat(points, starts[:-1]), np.maximum.reduceat(points, starts[:-1])
            wide = (high - low).argmax(1)
            flat = np.arange(n) * points.shape[1] + np.repeat(wide, np.diff(starts))
            split = sorted_within(points.ravel()[flat], starts)
            order, points = order[split], points[split]
        return cls(points, order, deepest)

    def __len__(self) -> int:
        return len(self.points)

    def starts(self, depth: int) -> NDArray[np.int64]:
        """Where each cluster begins, and n at the end: (2^depth + 1,)."""
        return _starts(len(self), depth)

    def depth_of(self, size: int) -> int:
        """The depth at which clusters hold at most `size` points, or the deepest."""
        return min(self.deepest, max(0, math.ceil(math.log2(len(self) / size))))

    def boxes(self, depth: int) -> Boxes:
        """Bounding boxes at a depth."""
        if depth not in self._boxes:
            begins = self.starts(depth)[:-1]
            low, high = np.minimum.reduceat(self.points, begins), np.maximum.reduceat(self.points, begins)
            centre = (low + high) / 2
            # the half width from the rounded centre, so that no point is left outside
            self._boxes[depth] = Boxes(centre, np.maximum(high - centre, centre - low))
        return self._boxes[depth]

    def sums(self, values: Array, depth: int) -> Array:
        """Sums of values (n,) or (n, k), in tree order, over the clusters at a depth: (2^depth,) or (2^depth, k)."""
        begins = self.starts(depth)[:-1]
        if values.ndim == 1:
            return np.asarray(np.add.reduceat(values, begins))
        return np.stack([np.add.reduceat(v, begins) for v in values.T], 1)

    def spread(self, values: Array, depth: int) -> Array:
        """Values of the clusters at a depth, handed to their points: (2^depth, ...) to (n, ...)."""
        return np.repeat(values, np.diff(self.starts(depth)), 0)

    def slopes(self, h: Array, depth: int, top: int) -> dict[int, Array]:
        """Gradients of the affine functions nearest to h (n,) in each cluster: (2^k, d) for each k = top .. depth.

        One pass over the points at the lowest depth; above it, moments of clusters are put together from their halves.
        """
        starts, means, inverses = self._spreads(depth)
        sizes = np.diff(starts)
        mean_h = np.add.reduceat(h, starts[:-1]) / sizes
        rest = h - np.repeat(mean_h, sizes)
        offsets = self.points - np.repeat(means[depth], sizes, 0)
        mixed = np.stack([np.add.reduceat(u * rest, starts[:-1]) for u in offsets.T], 1) / sizes[:, None]
        out = {depth: np.matmul(inverses[depth], mixed[:, :, None])[:, :, 0]}
        for k in range(depth - 1, top - 1, -1):
            left, right = self._shares(k)
            gap, gap_h = means[k + 1][1::2] - means[k + 1][::2], (mean_h[1::2] - mean_h[::2])[:, None]
            mixed = left * mixed[::2] + right * mixed[1::2] + left * right * gap * gap_h
            mean_h = left[:, 0] * mean_h[::2] + right[:, 0] * mean_h[1::2]
            out[k] = np.matmul(inverses[k], mixed[:, :, None])[:, :, 0]
        return out

    def _spreads(self, depth: int) -> tuple[NDArray[np.int64], dict[int, Array], dict[int, Array]]:
        """Means (2^k, d) and inverse covariances (2^k, d, d) of the points of each cluster at the depths k <= depth."""
        if self._moments is None or self._moments[0] != depth:
            starts, d = self.starts(depth), self.points.shape[1]
            sizes = np.diff(starts)
            mean = np.stack([np.add.reduceat(u, starts[:-1]) for u in self.points.T], 1) / sizes[:, None]
            offsets = (self.points - np.repeat(mean, sizes, 0)).T
            spread = np.empty((len(sizes), d, d))
            for i in range(d):
                for j in range(i + 1):
                    spread[:, i, j] = spread[:, j, i] = np.add.reduceat(offsets[i] * offsets[j], starts[:-1]) / sizes
            means, inverses = {depth: mean}, {depth: _inverse(spread)}
            for k in range(depth - 1, -1, -1):
                left, right = self._shares(k)
                gap = mean[1::2] - mean[::2]
                outer = (left * right)[:, :, None] * gap[:, :, None] * gap[:, None, :]
                spread = left[:, :, None] * spread[::2] + right[:, :, None] * spread[1::2] + outer
                mean = left * mean[::2] + right * mean[1::2]
                means[k], inverses[k] = mean, _inverse(spread)
            self._moments = depth, means, inverses
        return self.starts(depth), self._moments[1], self._moments[2]

    def _shares(self, depth: int) -> tuple[Array, Array]:
        """The shares of each cluster's points that its left and its right half hold, (2^depth, 1)."""
        sizes = np.diff(self.starts(depth + 1))
        left = (sizes[::2] / (sizes[::2] + sizes[1::2]))[:, None]
        return left, 1 - left


def sorted_within(values: Array, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order (n,) that sorts values (n,) inside each run starts[i] .. starts[i + 1] - 1."""
    sizes = np.diff(starts)
    low, high = np.minimum.reduceat(values, starts[:-1]), np.maximum.reduceat(values, starts[:-1])
    # the integer part of the key is the run, the fraction the place in it
    scale = np.divide(1 - 1e-9, high - low, out=np.zeros_like(low), where=high > low)
    key = (values - np.repeat(low, sizes)) * np.repeat(scale, sizes)
    key += np.repeat(np.arange(len(sizes)), sizes)
    return key.argsort()


def _inverse(spread: Array) -> Array:
    """The inverse of covariances; a direction without spread gets a slope near zero."""
    d = spread.shape[-1]
    ridge = 1e-6 * np.trace(spread, axis1=1, axis2=2) + np.finfo(np.float64).tiny ** 0.5
    return np.asarray(np.linalg.inv(spread + ridge[:, None, None] * np.eye(d)))


def _starts(n: int, depth: int) -> NDArray[np.int64]:
    return np.arange(2**depth + 1) * n >> depth
