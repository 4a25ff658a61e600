"""Point clouds whose sums over pairs skip pairs of clusters that carry next to no mass, with a bound on the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..costs import Cost, Lp, Mahalanobis, SqEuclidean
from ..errors import refuse
from ..kernels.reference import Blocks, Pairs
from .base import Lines, PairGeometry, Support
from .clusters import Array, Clusters
from .pointcloud import PointCloud

__all__ = ["BlockSparse", "ClusteredCloud"]

# Clusters on each side where the search for heavy pairs begins with all pairs.
_TOP_DEPTH = 7
# Pairs of clusters whose bounds are computed at once: the temporaries stay in cache.
_CHUNK = 2**16
# Bins of the histogram by which pairs are dropped, for one unit of log mass.
_BINS = 8
# Rounding that a bound on a float64 cost may suffer, relative to the largest potential.
_ROUNDING = 1e-12


class ClusteredCloud:
    """A point cloud with a tree of clusters on each side: the search for the pairs of clusters that matter.

    Args:
        cloud: without batch axes, with a cost that can be bounded between boxes: "sqeuclidean", `Mahalanobis`, or a
            norm (`Lp` of power 1).
        size: points of a cluster at most.

    Raises:
        InvalidInput: another cost, or a batch.
    """

    def __init__(self, cloud: PointCloud, size: int) -> None:
        check_cloud(cloud)
        x, y = _coordinates(cloud)
        self._set(cloud, Clusters.of(x), Clusters.of(y), size)

    @classmethod
    def _of(cls, cloud: PointCloud, rows: Clusters, cols: Clusters, size: int) -> ClusteredCloud:
        out = object.__new__(cls)
        out._set(cloud, rows, cols, size)
        return out

    def _set(self, cloud: PointCloud, rows: Clusters, cols: Clusters, size: int) -> None:
        self.cloud, self.rows, self.cols, self.size = cloud, rows, cols, size
        self.depths = rows.depth_of(size), cols.depth_of(size)

    @cached_property
    def orders(self) -> tuple[Tensor | None, Tensor | None]:
        """The points of each side in tree order; None where they are in it already."""
        device = self.cloud.device
        return (
            None if self.rows.order is None else torch.from_numpy(self.rows.order).to(device),
            None if self.cols.order is None else torch.from_numpy(self.cols.order).to(device),
        )

    @cached_property
    def sorted(self) -> PointCloud:
        """The cloud in tree order."""
        x, y = (t if i is None else t[i] for t, i in zip(self.cloud.tensors, self.orders))
        return self.cloud.with_tensors(x, y)

    @cached_property
    def T(self) -> ClusteredCloud:
        out = self._of(self.cloud.T, self.cols, self.rows, self.size)
        out.T = self
        return out

    def with_tensors(self, *tensors: Tensor) -> ClusteredCloud:
        """The same trees over the cloud on other tensors (a cast, a detached copy)."""
        return self._of(self.cloud.with_tensors(*tensors), self.rows, self.cols, self.size)

    def in_order(self, h: Tensor, side: int) -> Array:
        """A vector of one side as float64 numbers in tree order."""
        order = self.orders[side]
        out: Array = (h if order is None else h[order]).detach().double().cpu().numpy()
        return out

    def coarse(self, depths: tuple[int | None, int | None], a: Tensor, b: Tensor) -> tuple[ClusteredCloud, float]:
        """The clusters at a depth of each tree as points, and the mean cost from a point to what stands for it.

        Args:
            depths: None keeps the points of a side, in tree order.
            a, b: masses (n,) and (m,); the point of a cluster is its mean under them, the plain mean without mass.
        """
        points, losses = [], []
        for side, (tree, depth, weight) in enumerate(zip((self.rows, self.cols), depths, (a, b))):
            own = self.sorted.tensors[side]
            if depth is None:
                points.append(own)
                continue
            mass = self.in_order(weight, side)
            empty = tree.spread(tree.sums(mass, depth) == 0, depth)
            share = np.where(empty, 1.0, mass)
            mean = tree.sums(own.double().cpu().numpy() * share[:, None], depth) / tree.sums(share, depth)[:, None]
            points.append(torch.from_numpy(mean).to(own))
            loss = self.cloud.ground(own, torch.from_numpy(tree.spread(mean, depth)).to(own)).double().cpu().numpy()
            losses.append(float(loss @ mass / mass.sum()))
        cloud = PointCloud(points[0], points[1], self.cloud.ground)
        x, y = _coordinates(cloud)
        bottom = (t.deepest if d is None else d for t, d in zip((self.rows, self.cols), depths))
        rows, cols = (Clusters(p, None, d) for p, d in zip((x, y), bottom))
        return self._of(cloud, rows, cols, self.size), max(losses, default=0.0)

    def sums(self, depths: tuple[int | None, int | None], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The masses of the points of `coarse`."""
        out = []
        for side, (tree, depth, weight) in enumerate(zip((self.rows, self.cols), depths, (a, b))):
            mass = self.in_order(weight, side)
            out.append(torch.from_numpy(mass if depth is None else tree.sums(mass, depth)).to(weight))
        return out[0], out[1]

    def onto(self, fine: ClusteredCloud, kept: Blocks | None) -> PairGeometry:
        """The rows of this coarse copy against the columns of the cloud below, over the pairs kept here."""
        cloud = PointCloud(self.cloud.x, fine.cloud.y, self.cloud.ground)
        if kept is None:
            return cloud
        mixed = self._of(cloud, self.rows, fine.cols, self.size)
        return BlockSparse(mixed, replace(kept, col_starts=torch.from_numpy(fine.cols.starts(self.depths[1]))))

    def heavy(
        self,
        f: Tensor,  # (n,)
        g: Tensor,  # (m,)
        epsilon: float,
        a: Tensor,  # (n,)
        b: Tensor,  # (m,)
        budget: float,
    ) -> BlockSparse:
        r"""Keep pairs of clusters, so that a_i b_j exp((f_i + g_j - c_ij) / eps) has at most the mass `budget` outside.

        In a cluster with centre x_I let f_i = <p_I, u_i> + r_i, with u_i = x_i - x_I and p_I the slope of the best
        affine fit; likewise g_j = <q_J, v_j> + s_j. The mass of the pair (I, J) is at most

          sum_i a_i exp(r_i / eps) sum_j b_j exp(s_j / eps) exp(max (<p_I, u> + <q_J, v> - c(x_I + u, y_J + v)) / eps),

        and the maximum over u and v in boxes has a simple bound (`_separable`, `_norm`). The search goes down both
        trees and looks at the children of pairs that were kept, and no others. The best pair of each cluster is kept
        whatever its mass, so that no potential is lost. One pass over the points, and O(k) time for k kept pairs.

        Args:
            f, g: potentials, in the order of the cloud.
            epsilon: in cost units.
            a, b: masses.
            budget: > 0.
        """
        F = self.in_order(f, 0), _log(self.in_order(a, 0))
        G = self.in_order(g, 1), _log(self.in_order(b, 1))
        return self._search(F, G, epsilon, math.log(budget) if budget > 0 else -math.inf)

    def touching(self, f: Tensor, g: Tensor) -> BlockSparse:
        """Keep the pairs of clusters in which f_i + g_j >= c_ij may hold somewhere."""
        F, G = self.in_order(f, 0), self.in_order(g, 1)
        return self._search((F, np.where(np.isneginf(F), F, 0)), (G, np.where(np.isneginf(G), G, 0)), 0.0, 0.0)

    def _search(self, F: tuple[Array, Array], G: tuple[Array, Array], epsilon: float, log_budget: float) -> BlockSparse:
        bound = _bound_of(self.cloud.ground)
        steps = max(0, max(self.depths) - _TOP_DEPTH)
        path = [tuple(max(0, d - steps + t) for d in self.depths) for t in range(steps + 1)]
        rows = _faces(self.rows, *F, epsilon, self.depths[0], path[0][0])
        cols = _faces(self.cols, *G, epsilon, self.depths[1], path[0][1])
        size = max(_largest(F[0]), _largest(G[0]))
        i = torch.arange(2 ** path[0][0]).repeat_interleave(2 ** path[0][1])
        j = torch.arange(2 ** path[0][1]).repeat(2 ** path[0][0])
        dropped = []
        for t, (p, q) in enumerate(path):
            if t:
                i, j = _children(i, j, p > path[t - 1][0], q > path[t - 1][1])
            values = _evaluate(bound, rows[p], cols[q], i, j)
            if epsilon > 0:
                values /= epsilon
                # half of the budget for the last depth, the rest in equal parts for those above
                share = 1.0 if steps == 0 else 0.5 if t == steps else 0.5 / steps
                keep = _heaviest(values, log_budget + math.log(share))
            else:
                keep = values >= -_ROUNDING * size
            keep |= _best(values, i, 2**p) | _best(values, j, 2**q)
            if epsilon > 0:
                mass = torch.where(keep, 0, values.exp())
                dropped.append(Dropped(*(mass.new_zeros(2**d).index_add(0, e, mass) for d, e in ((p, i), (q, j)))))
            i, j = i[keep], j[keep]
        blocks = self._blocks(i, j)
        return BlockSparse(self, blocks, tuple(dropped))

    def _blocks(self, i: Tensor, j: Tensor) -> Blocks:
        n_rows, n_cols = (2**d for d in self.depths)
        key = torch.from_numpy(np.sort((i * n_cols + j).numpy()))
        counts = torch.bincount(key // n_cols, minlength=n_rows)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        rows, cols = (torch.from_numpy(t.starts(d)) for t, d in zip((self.rows, self.cols), self.depths))
        return Blocks(rows, cols, indptr, key % n_cols)


class Dropped(NamedTuple):
    """Bounds on the mass that was dropped from each cluster at one depth."""

    rows: Tensor  # (2^k,)
    cols: Tensor  # (2^l,)


class BlockSparse(PairGeometry):
    """A point cloud whose sums over pairs run over the kept pairs of clusters only.

    `softmin`, `apply`, `moments`, `support` and `smallest` skip what was dropped; the cost itself is whole: `cmin` is
    exact (a pruned search), and so are `tile`, `cost_at` and `cost_between`. Everything is in the order of the cloud.
    Made by `ClusteredCloud.heavy`.

    Attributes:
        clustered: the cloud and its trees.
        blocks: the kept pairs of clusters, in tree order.
    """

    def __init__(self, clustered: ClusteredCloud, blocks: Blocks, dropped: tuple[Dropped, ...] = ()) -> None:
        self.clustered, self.blocks, self._dropped = clustered, blocks, dropped
        self.cloud = clustered.cloud
        self.shape, self.batch_shape = self.cloud.shape, self.cloud.batch_shape

    @property
    def kept_share(self) -> float:
        """The share of all pairs that is kept."""
        return self.blocks.pairs / (self.shape[0] * self.shape[1])

    @property
    def dropped(self) -> float:
        """A bound on the mass outside the kept pairs, for the potentials that the pairs were chosen by."""
        return sum(float(d.rows.sum()) for d in self._dropped)

    def dropped_after(self, f_rise: Tensor, g_rise: Tensor, epsilon: float) -> float:
        """The bound when the potentials have risen by f_rise (n,) and g_rise (m,).

        A pair of clusters may gain the factor exp((s + t) / eps) for the largest rises s and t in the two, which is at
        most the mean of exp(2 s / eps) and exp(2 t / eps): it takes no list of the dropped pairs.
        """
        shift = float(f_rise.median())  # constants that move from f to g change nothing
        sides = (self.clustered.rows, f_rise - shift, 0), (self.clustered.cols, g_rise + shift, 1)
        total = 0.0
        for tree, rise, side in sides:
            depth = self.clustered.depths[side]
            top = np.maximum.reduceat(self.clustered.in_order(rise, side), tree.starts(depth)[:-1])
            for record in reversed(self._dropped):
                mass = record[side].numpy()
                while len(top) > len(mass):
                    top = np.maximum(top[::2], top[1::2])
                with np.errstate(over="ignore"):
                    total += 0.5 * float(np.where(mass > 0, mass * np.exp(2 * top / epsilon), 0).sum())
        return total

    @property
    def x(self) -> Tensor:
        return self.cloud.x

    @property
    def y(self) -> Tensor:
        return self.cloud.y

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.cloud.tensors

    def with_tensors(self, *tensors: Tensor) -> Self:
        return type(self)(self.clustered.with_tensors(*tensors), self.blocks, self._dropped)

    @cached_property
    def T(self) -> BlockSparse:
        out = BlockSparse(self.clustered.T, self.blocks.T, tuple(Dropped(d.cols, d.rows) for d in self._dropped))
        out.T = self
        return out

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        pairs, r, c = self.clustered.sorted._pairs()
        return pairs._replace(blocks=self.blocks), r, c

    # The operations of `PairGeometry` in tree order, with the order of the cloud outside

    def _sorted(self, h: Tensor, side: int, dim: int = -1) -> Tensor:
        order = self.clustered.orders[side]
        return h if order is None else h.index_select(dim, order)

    def _unsorted(self, h: Tensor, side: int, dim: int = -1) -> Tensor:
        order = self.clustered.orders[side]
        return h if order is None else torch.empty_like(h).index_copy(dim, order, h)

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        if self._along(dim) == 0:
            return self.T.softmin(h, epsilon)
        return self._unsorted(super().softmin(self._sorted(h, 1), epsilon), 0)

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        """Hard c-transform over all pairs, pruned: only clusters that may hold a minimum are visited."""
        if self._along(dim) == 0:
            return self.T.cmin(h)
        first, _ = super().cmin(self._sorted(h, 1))
        near = self.clustered.touching(self._unsorted(first, 0), h)
        values, index = PairGeometry.cmin(near, self._sorted(h, 1))
        order = self.clustered.orders[1]
        return self._unsorted(values, 0), self._unsorted(index if order is None else order[index], 0)

    def apply(self, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor, dim: int = 1) -> Tensor:
        if self._along(dim) == 0:
            return self.T.apply(g, f, epsilon, v)
        axis = -1 if v.dim() == 1 else -2
        out = super().apply(self._sorted(f, 0), self._sorted(g, 1), epsilon, self._sorted(v, 1, axis))
        return self._unsorted(out, 0, axis)

    def moments(self, f: Tensor, g: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
        mass, cost = super().moments(self._sorted(f, 0), self._sorted(g, 1), epsilon)
        return self._unsorted(mass, 0), self._unsorted(cost, 0)

    def support(self, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None = None) -> Support:
        return self._named(super().support(self._sorted(f, 0), self._sorted(g, 1), threshold, max_per_row), by_row=True)

    def smallest(self, f: Tensor, g: Tensor, k: int) -> Support:
        return self._named(super().smallest(self._sorted(f, 0), self._sorted(g, 1), k), by_row=False)

    def _named(self, entries: Support, *, by_row: bool) -> Support:
        rows, cols = (k if o is None else o[k] for k, o in zip(entries[:2], self.clustered.orders))
        if not by_row:
            return Support(rows, cols, entries.reduced)
        place = rows.argsort(stable=True)
        return Support(rows[place], cols[place], entries.reduced[place])

    # The cost, whole

    def cost_between(self, u: Tensor, v: Tensor) -> Tensor:
        return self.cloud.cost_between(u, v)

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        return self.cloud.cost_at(rows, cols)

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        return self.cloud.tile(rows, cols)

    def __repr__(self) -> str:
        return f"BlockSparse({self.cloud!r}, kept_share={self.kept_share:.3g})"


def check_cloud(geometry: object) -> PointCloud:
    """Refuse what has no bound between boxes."""
    if not isinstance(geometry, PointCloud):
        refuse("multiscale", "a PointCloud", type(geometry).__name__, "Use solver='sinkhorn'.")
    if geometry.batch_shape:
        refuse("multiscale", "one problem", f"batch {tuple(geometry.batch_shape)}", "Solve the problems one by one.")
    ground = geometry.ground
    if not (isinstance(ground, SqEuclidean | Mahalanobis) or (isinstance(ground, Lp) and ground.power == 1)):
        refuse(
            "multiscale",
            "a cost that grows with distance: 'sqeuclidean', Mahalanobis, or a norm (Lp with power 1)",
            repr(ground),
            "Use solver='sinkhorn'.",
        )
    return geometry


def _coordinates(cloud: PointCloud) -> tuple[Array, Array]:
    """Both clouds in float64 coordinates in which the cost is a function of their difference alone."""
    ground = cloud.ground
    points = cloud.detach().to(torch.float64)._centred()
    x, y = (ground._map(t) if isinstance(ground, Mahalanobis) else t for t in points)
    return x.cpu().numpy(), y.cpu().numpy()


class _Face(NamedTuple):
    """What a bound needs of the clusters at one depth, coordinate by coordinate."""

    centre: Tensor  # (d, k)
    half: Tensor  # (d, k)
    slope: Tensor  # (d, k), of the affine fit
    level: Tensor  # (k,), eps log sum_i a_i exp(r_i / eps); max_i r_i at eps = 0


def _faces(tree: Clusters, h: Array, log_weight: Array, epsilon: float, depth: int, top: int) -> dict[int, _Face]:
    """The faces at the depths top .. depth: levels by one pass at the lowest, by the triangle inequality above."""
    massive = ~np.isneginf(log_weight) & np.isfinite(h)
    if not massive.all():  # fill the gaps for the fit
        fill = h[massive].mean() if massive.any() else 0.0
        log_weight = np.where(massive, log_weight, -np.inf)
        h = np.where(massive, h, fill)
    slopes = tree.slopes(h, depth, top)
    starts, sizes = tree.starts(depth)[:-1], np.diff(tree.starts(depth))
    boxes = tree.boxes(depth)
    rest = h - ((tree.points - np.repeat(boxes.centre, sizes, 0)) * np.repeat(slopes[depth], sizes, 0)).sum(1)
    level = _gather(rest + epsilon * log_weight if epsilon > 0 else rest + log_weight, starts, epsilon)
    out = {depth: _face(boxes.centre, boxes.half, slopes[depth], level)}
    for k in range(depth - 1, top - 1, -1):
        lower, boxes = boxes, tree.boxes(k)
        centre, slope = np.repeat(boxes.centre, 2, 0), np.repeat(slopes[k], 2, 0)
        turn = (np.abs(slopes[k + 1] - slope) * lower.half).sum(1) - (slope * (lower.centre - centre)).sum(1)
        level = _gather(level + turn, np.arange(0, 2 ** (k + 1), 2), epsilon)
        out[k] = _face(boxes.centre, boxes.half, slopes[k], level)
    return out


def _face(centre: Array, half: Array, slope: Array, level: Array) -> _Face:
    x, s, p = (torch.from_numpy(np.ascontiguousarray(t.T)) for t in (centre, half, slope))
    return _Face(x, s, p, torch.from_numpy(level))


def _gather(values: Array, starts: NDArray[np.int64], epsilon: float) -> Array:
    """Return eps log sum exp(values / eps) of each run; its maximum at eps = 0."""
    top = np.maximum.reduceat(values, starts)
    if epsilon == 0:
        return np.asarray(top)
    safe = np.where(np.isneginf(top), 0.0, top)
    sizes = np.diff(starts, append=len(values))
    total = np.add.reduceat(np.exp((values - np.repeat(safe, sizes)) / epsilon), starts)
    with np.errstate(divide="ignore"):
        return np.asarray(safe + epsilon * np.log(total))


def _children(i: Tensor, j: Tensor, rows: bool, cols: bool) -> tuple[Tensor, Tensor]:
    if rows:
        i, j = torch.stack([2 * i, 2 * i + 1], 1).flatten(), j.repeat_interleave(2)
    if cols:
        i, j = i.repeat_interleave(2), torch.stack([2 * j, 2 * j + 1], 1).flatten()
    return i, j


def _evaluate(bound: Callable[..., Tensor], rows: _Face, cols: _Face, i: Tensor, j: Tensor) -> Tensor:
    out = rows.level.new_empty(len(i))
    for s in range(0, len(i), _CHUNK):
        p, q = i[s : s + _CHUNK], j[s : s + _CHUNK]
        gap = bound(rows, cols, p, q)
        torch.add(gap, rows.level[p] + cols.level[q], out=out[s : s + _CHUNK])
    return out


def _heaviest(log_mass: Tensor, log_budget: float) -> Tensor:
    """Which pairs to keep so that the others have at most the budget together."""
    if log_budget == -math.inf:
        return torch.ones_like(log_mass, dtype=torch.bool)
    below = (_BINS * (log_budget - log_mass)).clamp(min=-1, max=100 * _BINS).floor().long() + 1  # 0: above the budget
    heaps = torch.bincount(below, (log_mass - log_budget).clamp(max=0).exp(), minlength=100 * _BINS + 2)
    heaps[0] = torch.inf
    outside = heaps.flip(0).cumsum(0).flip(0)  # of each bin and all lighter ones
    return below < int((outside > 1).sum())


def _best(values: Tensor, line: Tensor, count: int) -> Tensor:
    """The entries that attain the maximum of their line."""
    top = values.new_full((count,), -torch.inf).scatter_reduce(0, line, values, "amax")
    return values >= top[line]


# Bounds on max of <p, u> + <q, v> - c(x + u, y + v) over boxes |u| <= s, |v| <= t, with D = x - y. With w = u - v,
# <p, u> + <q, v> = <(p - q) / 2, w> + <(p + q) / 2, u + v>: the second part is near zero for clusters that are matched,
# whose slopes are opposite, and the first is taken together with the cost.


def _separable(rows: _Face, cols: _Face, i: Tensor, j: Tensor) -> Tensor:
    """For |x - y|^2: a concave parabola in each coordinate of w, whose maximum is known."""
    total = torch.zeros((), dtype=torch.float64)
    for x, s, p, y, t, q in zip(*rows[:3], *cols[:3]):
        p, q, s = p[i], q[j], s[i] + t[j]
        d, r = x[i] - y[j], (p - q) / 2
        w = torch.minimum(torch.maximum(r / 2 - d, -s), s)
        total = total + r * w - (d + w).square() + (p + q).abs() * (s / 2)
    return total


def _norm(order: float) -> Callable[..., Tensor]:
    """For a norm: the lesser of the bound by a tangent at D and of that by the distance of the boxes."""

    def bound(rows: _Face, cols: _Face, i: Tensor, j: Tensor) -> Tensor:
        p, q, s = rows.slope[:, i], cols.slope[:, j], rows.half[:, i] + cols.half[:, j]
        d, r = rows.centre[:, i] - cols.centre[:, j], (p - q) / 2
        turned = ((p + q).abs() * (s / 2)).sum(0)
        length = torch.linalg.vector_norm(d, ord=order, dim=0)
        tangent = (_normal(d, length, order) - r).abs()
        apart = torch.linalg.vector_norm((d.abs() - s).clamp(min=0), ord=order, dim=0)
        return turned + torch.minimum((tangent * s).sum(0) - length, (r.abs() * s).sum(0) - apart)

    return bound


def _normal(d: Tensor, length: Tensor, order: float) -> Tensor:
    """A subgradient of the norm at d, whose dual norm is at most one."""
    if order == 1:
        return d.sign()
    if order == math.inf:
        return d.sign() * torch.nn.functional.one_hot(d.abs().argmax(0), len(d)).to(d).T
    return torch.where(length > 0, d.sign() * (d.abs() / length.clamp(min=1e-300)).pow(order - 1), 0)


def _bound_of(ground: Cost) -> Callable[..., Tensor]:
    return _norm(ground.p) if isinstance(ground, Lp) else _separable


def _log(a: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(a))


def _largest(h: Array) -> float:
    finite = h[np.isfinite(h)]
    return float(np.abs(finite).max()) if len(finite) else 0.0
