r"""Power cells of atoms, exactly: masses, moments, and the mass that crosses the facets between them.

The cell of y_j under potentials g is {x : |x - y_j|^2 - g_j is least}. Which cells meet is read off the lower convex
hull of the points (y_j, |y_j|^2 - g_j), by Qhull. On the line and in the plane each cell is the domain cut by its
neighbours' half-spaces, all cells at a time; integrals of a density that is constant on boxes run along the boundary
of the cells, by Green's formula. In space the box is closed by mirror images of the atoms, and integrals run over the
cones from an atom to the faces of its cell.

Source: Aurenhammer (1987), Power diagrams: properties, algorithms and applications; Mérigot (2011), A multiscale
approach to optimal transport.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .densities import Pieces

__all__ = ["Diagram", "PowerCells"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_ALL_PAIRS = 16  # atoms up to which all are neighbours of all
_MIRROR_ALL = 300  # atoms in space up to which every one is mirrored in every face
_FLAT = 1e-10  # singular values, relative to the largest, of atoms in fewer dimensions
_INSIDE = 0.95  # how far towards the box's faces atoms may lie when they are mirrored
_GAUSS = (0.5 - 0.5 / np.sqrt(3), 0.5 + 0.5 / np.sqrt(3))  # exact for cubics


class Diagram(NamedTuple):
    """The cells of one vector of potentials. Moments are in coordinates centred on the domain."""

    masses: Array  # (n,)
    first: Array  # (n, d), the integral of x
    second: Array  # (n,), of |x|^2
    rows: Index  # (e,) pairs of cells that meet, each way once
    cols: Index
    weights: Array  # (e,) d mass_rows / d g_cols, but for its sign
    polygons: tuple[Array, Index, Index] | None = None  # vertices (n, k, 2), neighbour across each side, counts (n,)


class PowerCells:
    """Power cells of atoms y (n, d) in a density, d <= 3; called with potentials g (n,)."""

    def __init__(self, pieces: Pieces, y: Array) -> None:
        self.pieces = pieces
        self.centre = (pieces.low + pieces.high) / 2
        self.y = y - self.centre
        self.low, self.high = pieces.low - self.centre, pieces.high - self.centre
        self.corners = pieces.corners - self.centre
        self.n, self.d = y.shape
        self.size = float(np.square(self.corners).sum(1).max() + np.square(self.y).sum(1).max())  # of squared distances
        shape = pieces.values.shape
        self._step = (self.high - self.low) / shape
        self._values = pieces.values.reshape(shape[0], -1)
        self._lines = self.low[0] + self._step[0] * np.arange(shape[0] + 1)
        rows = [self._values * np.diff(self._lines**k)[:, None] / k for k in (1, 2, 3)]
        self._sums = [np.concatenate([np.zeros((1, r.shape[1])), r.cumsum(0)[:-1]]) for r in rows]

    def blended(self, t: float) -> PowerCells:
        """The same atoms in (1 - t) density + t uniform."""
        values = self.pieces.values
        flat = values.mean()  # a grid fills its box
        return PowerCells(self.pieces._replace(values=(1 - t) * values + t * flat), self.y + self.centre)

    def __call__(self, g: Array) -> Diagram:
        z = np.square(self.y).sum(1) - g
        if self.d == 1:
            return self._intervals(z)
        return self._polygons(z) if self.d == 2 else self._solids(z)

    def costs(self, diagram: Diagram) -> Array:
        """The integral of |x - y_j|^2 over each cell, (n,)."""
        costs = diagram.second - 2 * (self.y * diagram.first).sum(1) + np.square(self.y).sum(1) * diagram.masses
        return costs.clip(min=0)

    # -- the line --------------------------------------------------------------------------------------------

    def _intervals(self, z: Array) -> Diagram:
        y = self.y[:, 0]
        rows, cols, met = _chain(y, z)
        ends = (z[cols] - z[rows]) / (2 * (y[cols] - y[rows]))
        right = y[cols] > y[rows]
        low, high = np.full(self.n, self.low[0]), np.full(self.n, self.high[0])
        np.minimum.at(high, rows[right], ends[right])
        np.maximum.at(low, rows[~right], ends[~right])
        low, high = (t.clip(self.low[0], self.high[0]) for t in (low, high))
        high = np.where(met, np.maximum(low, high), low)
        masses, first, second = (b - a for a, b in zip(self._prefix(low), self._prefix(high)))
        inside = (ends > self.low[0]) & (ends < self.high[0]) & (masses[rows] > 0) & (masses[cols] > 0)
        rows, cols, ends = rows[inside], cols[inside], ends[inside]
        pixel = self._pixel(ends, 0)
        weights = self._values[pixel, 0] / (2 * np.abs(y[cols] - y[rows]))
        return Diagram(masses, first[:, None], second, rows, cols, weights)

    def _pixel(self, x: Array, axis: int) -> Index:
        """In which step of an axis coordinates lie."""
        count = self.pieces.values.shape[axis]
        return ((x - self.low[axis]) / self._step[axis]).astype(np.int64).clip(0, count - 1)

    def _prefix(self, x: Array, i: Index | None = None, j: Index | int = 0) -> tuple[Array, Array, Array]:
        """The integrals of density s^k ds, k = 0, 1, 2, from the low end to x along the first axis."""
        i = self._pixel(x, 0) if i is None else i
        density, start = self._values[i, j], self._lines[i]
        p, q, r = (total[i, j] + density * (x**k - start**k) / k for k, total in zip((1, 2, 3), self._sums))
        return p, q, r

    # -- the plane -------------------------------------------------------------------------------------------

    def _polygons(self, z: Array) -> Diagram:
        n = self.n
        vertices, tags, count = self._cut(z)
        valid = np.arange(vertices.shape[1]) < count[:, None]
        after = np.take_along_axis(vertices, _following(count, vertices.shape[1])[..., None], 1)
        owner, tag = np.nonzero(valid)[0], tags[valid]
        p, q = vertices[valid], after[valid]
        masses, first_x, first_y, second = np.zeros((4, n))
        piece, start, end = self._split(p, q)
        a, side = p[piece], (q - p)[piece]
        middle = a + ((start + end) / 2)[:, None] * side
        i, j = self._pixel(middle[:, 0], 0), self._pixel(middle[:, 1], 1)
        height = side[:, 1] * (end - start) / 2  # by two Gauss points of weight one half
        cell = owner[piece]
        for node in _GAUSS:
            at = a + (start + node * (end - start))[:, None] * side
            mass, moment, square = (t * height for t in self._prefix(at[:, 0], i, j))
            masses += np.bincount(cell, mass, n)
            first_x += np.bincount(cell, moment, n)
            first_y += np.bincount(cell, mass * at[:, 1], n)
            second += np.bincount(cell, square + mass * at[:, 1] ** 2, n)
        length = (end - start) * np.hypot(side[:, 0], side[:, 1])
        crossed = np.bincount(piece, self._values[i, j] * length, len(p)).astype(np.float64)
        inner = (tag >= 0) & (crossed > 0)
        rows, cols = owner[inner], tag[inner]
        weights = crossed[inner] / (2 * np.linalg.norm(self.y[cols] - self.y[rows], axis=1))
        masses = np.where(count > 0, masses, 0).clip(min=0)
        first = np.stack([first_x, first_y], 1)
        return Diagram(masses, first, second, rows, cols, weights, (vertices, tags, count))

    def _cut(self, z: Array) -> tuple[Array, Index, Index]:
        """The domain cut down to each cell, vertices counter-clockwise, with what is across each side: -1 nothing."""
        n, k = self.n, len(self.corners)
        vertices = np.tile(self.corners, (n, 1, 1))
        tags = np.full((n, k), -1)
        rows, cols, met = _neighbours(self.y, z)
        count = np.where(met, k, 0)
        degree = np.bincount(rows, minlength=n)
        starts = np.concatenate([[0], degree.cumsum()[:-1]])
        for rank in range(int(degree.max(initial=0))):
            cell = np.flatnonzero((degree > rank) & (count > 0))
            other = cols[starts[cell] + rank]
            normal, offset = 2 * (self.y[other] - self.y[cell]), z[other] - z[cell]
            width = int(count[cell].max(initial=0))
            inside = offset[:, None] - np.einsum("cki,ci->ck", vertices[cell, :width], normal)
            hit = ((inside < 0) & (np.arange(width) < count[cell, None])).any(1)
            cell, other = cell[hit], other[hit]
            if not len(cell):
                continue
            cut = _clip(vertices[cell, :width], tags[cell, :width], count[cell], inside[hit], other)
            more = cut[0].shape[1] - vertices.shape[1]
            if more > 0:
                vertices = np.pad(vertices, ((0, 0), (0, more), (0, 0)))
                tags = np.pad(tags, ((0, 0), (0, more)), constant_values=-1)
            width = cut[0].shape[1]
            vertices[cell, :width], tags[cell, :width], count[cell] = cut
        return vertices, tags, count

    def _split(self, p: Array, q: Array) -> tuple[Index, Array, Array]:
        """Sides from p to q (s, 2) in pieces that stay in one pixel: the side, and where on it, from 0 to 1."""
        sides = np.arange(len(p))
        if self.pieces.values.size == 1:
            return sides, np.zeros(len(p)), np.ones(len(p))
        which, where = [sides], [np.zeros(len(p))]
        for axis in (0, 1):
            a, b = ((t[:, axis] - self.low[axis]) / self._step[axis] for t in (p, q))
            least = np.floor(np.minimum(a, b)).astype(np.int64) + 1
            number = (np.ceil(np.maximum(a, b)).astype(np.int64) - least).clip(min=0)
            side = np.repeat(sides, number)
            line = least[side] + np.arange(len(side)) - np.repeat(number.cumsum() - number, number)
            which.append(side)
            where.append(((line - a[side]) / (b - a)[side]).clip(0, 1))
        piece, start = np.concatenate(which), np.concatenate(where)
        order = np.lexsort((start, piece))
        piece, start = piece[order], start[order]
        end = np.append(start[1:], 1.0)
        end[np.append(piece[1:] != piece[:-1], True)] = 1
        return piece, start, end

    # -- space -----------------------------------------------------------------------------------------------

    def _solids(self, z: Array) -> Diagram:
        n = self.n
        # a common scale and shift of the atoms, with z scaled along, leaves all cells as they are
        middle = (self.y.min(0) + self.y.max(0)) / 2
        reach = np.abs(self.y - middle).max(0)
        room = np.divide(_INSIDE * self.high, reach, out=np.full(3, np.inf), where=reach > 0).min()
        scale = float(room) if np.isfinite(room) else 1.0
        atoms = scale * (self.y - middle)
        power = np.square(atoms).sum(1) - scale * z
        points, owner = self._mirrored(atoms, power)
        lift = np.square(points).sum(1) - power[owner]
        facets, centres = _lower_hull(points, lift)
        a, b, before, after = _flags(points, facets, centres)
        mine = (a < n) | (b < n)
        a, b, before, after = a[mine], b[mine], before[mine], after[mine]
        apart = points[b] - points[a]
        length = np.linalg.norm(apart, axis=1)
        normal = apart / length[:, None]
        height = (lift[b] - lift[a]) / (2 * length) - (points[a] * normal).sum(1)
        foot = points[a] + height[:, None] * normal
        area = (np.cross(before - foot, after - foot) * normal).sum(1) / 2
        masses, second, first = np.zeros(n), np.zeros(n), np.zeros((n, 3))
        density = float(self.pieces.values.ravel()[0])
        for apex, h in ((a, height), (b, length - height)):
            own = apex < n
            cell, weight = apex[own], density * (area * h)[own] / 3
            corners = np.stack([points[cell], foot[own], before[own], after[own]])
            total = corners.sum(0)
            masses += np.bincount(cell, weight, n)
            second += np.bincount(cell, weight * (np.square(corners).sum((0, 2)) + np.square(total).sum(1)) / 20, n)
            for axis in range(3):
                first[:, axis] += np.bincount(cell, weight * total[:, axis] / 4, n)
        both = (a < n) & (b < n)
        key, index = np.unique(a[both] * n + b[both], return_inverse=True)
        crossed = density * np.bincount(index, area[both], len(key))
        rows, cols = key // n, key % n
        weights = (crossed / (2 * np.linalg.norm(self.y[cols] - self.y[rows], axis=1))).clip(min=0)
        rows, cols, weights = np.append(rows, cols), np.append(cols, rows), np.tile(weights, 2)
        return Diagram(masses.clip(min=0), first, second, rows, cols, weights)

    def _mirrored(self, atoms: Array, power: Array) -> tuple[Array, Index]:
        """Atoms, then their images in the faces of the box that their cells may reach; and whose images they are."""
        n = self.n
        reaches = np.ones((n, 6), dtype=bool)
        if n > _MIRROR_ALL and _rank(atoms)[0] == 3:
            facets, centres = _lower_hull(atoms, np.square(atoms).sum(1) - power)
            outside = np.concatenate([centres < self.low, centres > self.high], 1)
            reaches[:] = False
            for corner in facets.T:
                np.logical_or.at(reaches, corner, outside)
            triangles, _, twice = _triangles(facets)
            reaches[triangles[~twice].ravel()] = True  # unbounded cells
        images, owners = [atoms], [np.arange(n)]
        for face in range(6):
            axis, bound = face % 3, (self.low, self.high)[face // 3]
            who = np.flatnonzero(reaches[:, face])
            image = atoms[who]
            image[:, axis] = 2 * bound[axis] - image[:, axis]
            images.append(image)
            owners.append(who)
        return np.concatenate(images), np.concatenate(owners)


def _following(count: Index, width: int) -> Index:
    """The vertex after each, round the polygon."""
    after = np.arange(1, width + 1)
    return np.where(after < count[:, None], after, 0)


def _clip(
    vertices: Array,  # (c, k, 2)
    tags: Index,  # (c, k)
    count: Index,  # (c,)
    inside: Array,  # (c, k), nonnegative on the side that stays
    tag: Index,  # (c,) of the new side
) -> tuple[Array, Index, Index]:
    """Cut convex polygons by a half-plane each."""
    width = vertices.shape[1]
    valid = np.arange(width) < count[:, None]
    after = _following(count, width)
    inside_after = np.take_along_axis(inside, after, 1)
    stays = valid & (inside >= 0)
    crosses = valid & ((inside >= 0) != (inside_after >= 0))
    emitted = stays.astype(np.int64) + crosses
    slot = emitted.cumsum(1) - emitted
    total = emitted.sum(1)
    out = np.zeros((len(count), max(1, int(total.max(initial=0))), 2))
    out_tags = np.full(out.shape[:2], -1)
    r, k = np.nonzero(stays)
    out[r, slot[r, k]], out_tags[r, slot[r, k]] = vertices[r, k], tags[r, k]
    r, k = np.nonzero(crosses)
    t = inside[r, k] / (inside[r, k] - inside_after[r, k])
    place = slot[r, k] + stays[r, k]
    out[r, place] = vertices[r, k] + t[:, None] * (vertices[r, after[r, k]] - vertices[r, k])
    out_tags[r, place] = np.where(stays[r, k], tag[r], tags[r, k])  # where the polygon leaves, the new side begins
    return out, out_tags, np.where(total < 3, 0, total)


def _rank(y: Array) -> tuple[int, Array]:
    """In how many dimensions points lie, and their coordinates there."""
    centred = y - y.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    rank = int((sizes > _FLAT * sizes[0]).sum()) if sizes[0] > 0 else 0
    return rank, centred @ axes[:rank].T


def _chain(y: Array, z: Array) -> tuple[Index, Index, NDArray[np.bool_]]:
    """The same as `_neighbours` on the line, where points above a chord of others are dropped until none is."""
    chain = y.argsort()
    while len(chain) > 2:
        slopes = np.diff(z[chain]) / np.diff(y[chain])
        keep = np.concatenate([[True], slopes[:-1] <= slopes[1:], [True]])
        if keep.all():
            break
        chain = chain[keep]
    met = np.zeros(len(y), dtype=bool)
    met[chain] = True
    return np.append(chain[:-1], chain[1:]), np.append(chain[1:], chain[:-1]), met


def _neighbours(y: Array, z: Array) -> tuple[Index, Index, NDArray[np.bool_]]:
    """Pairs of atoms whose cells may meet, each way once, sorted; and which atoms can have a cell at all."""
    n, d = y.shape
    if n <= _ALL_PAIRS:
        rows, cols = np.nonzero(~np.eye(n, dtype=bool))
        return rows, cols, np.ones(n, dtype=bool)
    rank, coordinates = _rank(y)
    facets, _ = _lower_hull(coordinates if rank < d else y, z)
    first, second = np.triu_indices(facets.shape[1], 1)
    i, j = facets[:, first].ravel(), facets[:, second].ravel()
    key = np.unique(np.concatenate([i * n + j, j * n + i]))
    met = np.zeros(n, dtype=bool)
    met[facets] = True
    return key // n, key % n, met


def _lower_hull(y: Array, z: Array) -> tuple[Index, Array]:
    """Facets (f, d + 1) of the lower convex hull of (y, z), z a function on y; and half of their slopes (f, d)."""
    from scipy.spatial import ConvexHull

    n, d = y.shape
    middle = y.mean(0)
    size = float(np.abs(y - middle).max()) or 1.0
    u = (y - middle) / size
    # an affine function more or less leaves the facets as they are, and what remains is small and accurate
    design = np.column_stack([u, np.ones(n)])
    affine = np.linalg.lstsq(design, z, rcond=None)[0]
    rest = z - design @ affine
    unit = float(np.abs(rest).max()) or 1.0
    # a point far above sees every other facet, and keeps the hull from being flat
    lifted = np.column_stack([np.vstack([u, np.zeros(d)]), np.append(rest / unit, 3.0)])
    hull: Any = ConvexHull(lifted)
    lower = (hull.simplices != n).all(1) & (hull.equations[:, d] < -1e-12)
    equations = hull.equations[lower]
    slopes = -equations[:, :d] / equations[:, d, None] * unit + affine[:d]
    return hull.simplices[lower].astype(np.int64), slopes / (2 * size)


def _triangles(facets: Index) -> tuple[Index, Index, NDArray[np.bool_]]:
    """The triangles of tetrahedra (f, 4): corners (t, 3), their two tetrahedra (t, 2), and whether there are two."""
    facets = np.sort(facets, 1)
    corners = np.concatenate([np.delete(facets, k, 1) for k in range(4)])
    owner = np.tile(np.arange(len(facets)), 4)
    order = np.lexsort(corners.T[::-1])
    corners, owner = corners[order], owner[order]
    new = np.append(True, (corners[1:] != corners[:-1]).any(1))
    start = np.flatnonzero(new)
    twice = np.diff(np.append(start, len(corners))) == 2
    second = np.minimum(start + 1, len(corners) - 1)
    return corners[start], np.stack([owner[start], owner[second]], 1), twice


def _flags(points: Array, facets: Index, centres: Array) -> tuple[Index, Index, Array, Array]:
    """For each edge (a, b) of each triangle (a, b, c): the side, dual to the triangle, of the face between a and b.

    The sides go round the face counter-clockwise, seen from b: the centre on the side of (b - a) x (c - a) comes
    second.
    """
    corners, owners, twice = _triangles(facets)
    corners, owners = corners[twice], owners[twice]
    one, two = centres[owners[:, 0]], centres[owners[:, 1]]
    parts = []
    for k, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        a, b, c = corners[:, i], corners[:, j], corners[:, k]
        upwards = np.cross(points[b] - points[a], points[c] - points[a])
        swap = (((two - one) * upwards).sum(1) < 0)[:, None]
        parts.append((a, b, np.where(swap, two, one), np.where(swap, one, two)))
    a, b, before, after = (np.concatenate(t) for t in zip(*parts))
    return a, b, before, after
