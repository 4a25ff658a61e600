"""The problem sets: two weighted clouds with a named cost, or a cost matrix, in float64; seeds from 100 on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
Parts = tuple[Array | None, Array | None, Array | None, Array | None]  # x, y, a, b


@dataclass(frozen=True)
class Set:
    """One problem. Clouds are None where only the matrix exists."""

    name: str
    cost: str
    C: Array  # (n, m)
    a: Array  # (n,), of sum 1
    b: Array  # (m,), of sum 1
    x: Array | None = None
    y: Array | None = None

    @property
    def mean_cost(self) -> float:
        return float(self.a @ self.C @ self.b)

    def where_mass(self) -> Set:
        """The same problem without the points of zero mass."""
        i, j = self.a > 0, self.b > 0
        x, y = (None if t is None else t[k] for t, k in ((self.x, i), (self.y, j)))
        return Set(self.name, self.cost, np.ascontiguousarray(self.C[i][:, j]), self.a[i], self.b[j], x, y)


def _rng(name: str, n: int) -> np.random.Generator:
    return np.random.default_rng([100 + list(SETS).index(name), n])


def _uniform(d: int) -> Callable[[np.random.Generator, int], Parts]:
    return lambda r, n: (r.uniform(size=(n, d)), r.uniform(size=(n, d)), None, None)


def _mixture(d: int) -> Callable[[np.random.Generator, int], Parts]:
    def parts(r: np.random.Generator, n: int) -> Parts:
        clouds = []
        for _ in range(2):
            centres, which = 3 * r.normal(size=(8, d)), r.integers(8, size=n)
            clouds.append(centres[which] + r.uniform(0.2, 1, size=(8, 1))[which] * r.normal(size=(n, d)))
        return clouds[0], clouds[1], None, None

    return parts


def _dirichlet(d: int, alpha: float) -> Callable[[np.random.Generator, int], Parts]:
    def parts(r: np.random.Generator, n: int) -> Parts:
        x, y = r.normal(size=(n, d)), r.normal(size=(n, d)) + 0.5
        return x, y, r.dirichlet(np.full(n, alpha)), r.dirichlet(np.full(n, alpha))

    return parts


def _zero_masses(r: np.random.Generator, n: int) -> Parts:
    x, y, _, _ = _uniform(3)(r, n)
    a, b = r.dirichlet(np.ones(n)), r.dirichlet(np.ones(n))
    a[r.permutation(n)[: n // 4]] = 0
    b[r.permutation(n)[: n // 4]] = 0
    return x, y, a / a.sum(), b / b.sum()


def _rectangular(r: np.random.Generator, n: int) -> Parts:
    return r.uniform(size=(n, 2)), r.uniform(size=(n // 2, 2)), None, r.dirichlet(np.ones(n // 2))


def _grid(side: int) -> Array:
    axis = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def _square(image: NDArray, side: int) -> Array:
    """An image as masses on a square grid of `side` pixels: its central square, averaged or interpolated."""
    size = min(image.shape)
    top, left = ((s - size) // 2 for s in image.shape)
    image = image[top : top + size, left : left + size].astype(np.float64)
    if size >= side:
        cut = size // side * side
        k = cut // side
        image = image[:cut, :cut].reshape(side, k, side, k).mean((1, 3))
    else:
        image = zoom(image, side / size, order=1)
    return image.ravel() / image.sum()


@cache
def _photographs() -> dict[str, NDArray]:
    """Photographs, or handwritten digits side by side where they cannot be had."""
    from brenier import data

    try:
        return data.photographs()
    except (ImportError, data.DataUnavailable):
        pages = data.digits().images[:1536].reshape(6, 16, 16, 8, 8).transpose(0, 1, 3, 2, 4).reshape(6, 128, 128)
        return dict(zip(("brick", "camera", "coins", "grass", "gravel", "moon"), pages))


def _pictures(first: str, second: str) -> Callable[[np.random.Generator, int], Parts]:
    def parts(r: np.random.Generator, n: int) -> Parts:
        side, pictures = round(n**0.5), _photographs()
        return _grid(side), _grid(side), _square(pictures[first], side), _square(pictures[second], side)

    return parts


def _garments(r: np.random.Generator, n: int) -> Parts:
    """Two pictures with an empty background: Fashion-MNIST, or digits where it cannot be had."""
    from brenier import data

    try:
        images = data.fashion_mnist().test
    except (ImportError, data.DataUnavailable):
        images = data.digits().images
    side = round(n**0.5)
    first, second = r.integers(len(images), size=2)
    return _grid(side), _grid(side), _square(images[first], side), _square(images[second], side)


def _digits(r: np.random.Generator, n: int) -> Parts:
    """Vectors of 64 pixels: the digits and their shifts by one pixel, drawn without repetition."""
    from brenier import data

    images = data.digits().images
    moves = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    rows = np.concatenate([np.roll(images, move, (1, 2)) for move in moves]).reshape(-1, 64)
    chosen = r.permutation(len(rows))[: 2 * n]
    return rows[chosen[:n]], rows[chosen[n:]], None, None


def _patches(r: np.random.Generator, n: int) -> Parts:
    """Patches of 8 x 8 pixels from two photographs, of mean zero."""
    pictures = _photographs()
    clouds = []
    for name in ("camera", "coins"):
        windows = np.lib.stride_tricks.sliding_window_view(pictures[name].astype(np.float64), (8, 8)).reshape(-1, 64)
        some = windows[r.permutation(len(windows))[:n]]
        clouds.append(some - some.mean(1, keepdims=True) + 0.1 * r.normal(size=some.shape))
    return clouds[0], clouds[1], None, None


def _random_matrix(r: np.random.Generator, n: int) -> Array:
    return r.uniform(size=(n, n))


# name: (cost, how the clouds are made); "matrix" for a cost without clouds
SETS: dict[str, tuple[str, Callable[..., Parts] | None]] = {
    "assignment": ("matrix", None),
    "assignment, Dirichlet": ("matrix", _dirichlet(1, 1.0)),
    "uniform 2-D, sq": ("sqeuclidean", _uniform(2)),
    "uniform 2-D, l2": ("euclidean", _uniform(2)),
    "uniform 3-D, sq": ("sqeuclidean", _uniform(3)),
    "uniform 3-D, l2": ("euclidean", _uniform(3)),
    "uniform 64-D, sq": ("sqeuclidean", _uniform(64)),
    "uniform 64-D, l2": ("euclidean", _uniform(64)),
    "mixture 2-D, sq": ("sqeuclidean", _mixture(2)),
    "mixture 2-D, l2": ("euclidean", _mixture(2)),
    "mixture 3-D, sq": ("sqeuclidean", _mixture(3)),
    "mixture 3-D, l2": ("euclidean", _mixture(3)),
    "mixture 64-D, sq": ("sqeuclidean", _mixture(64)),
    "mixture 64-D, l2": ("euclidean", _mixture(64)),
    "camera to moon, l1": ("cityblock", _pictures("camera", "moon")),
    "camera to moon, l2": ("euclidean", _pictures("camera", "moon")),
    "camera to moon, sq": ("sqeuclidean", _pictures("camera", "moon")),
    "coins to gravel, l1": ("cityblock", _pictures("coins", "gravel")),
    "coins to gravel, l2": ("euclidean", _pictures("coins", "gravel")),
    "garments, l1": ("cityblock", _garments),
    "garments, l2": ("euclidean", _garments),
    "digits, cosine": ("cosine", _digits),
    "digits, sq": ("sqeuclidean", _digits),
    "patches, cosine": ("cosine", _patches),
    "Dirichlet 2-D, sq": ("sqeuclidean", _dirichlet(2, 1.0)),
    "Dirichlet 64-D, cosine": ("cosine", _dirichlet(64, 0.3)),
    "zero masses 3-D, sq": ("sqeuclidean", _zero_masses),
    "n and n/2 points, l2": ("euclidean", _rectangular),
}
QUICK = ("assignment", "uniform 2-D, sq", "digits, cosine")


def make(name: str, n: int) -> Set:
    """A problem with n (or about n) points on each side."""
    cost, parts = SETS[name]
    r = _rng(name, n)
    x, y, a, b = parts(r, n) if parts is not None else (None, None, None, None)
    if cost == "matrix":
        x = y = None
        C = _random_matrix(r, n)
    else:
        C = cdist(x, y, cost)
    a, b = (np.full(k, 1 / k) if w is None else w for w, k in ((a, C.shape[0]), (b, C.shape[1])))
    return Set(name, cost, C, a, b, x, y)
