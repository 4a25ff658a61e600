"""Images that are drawn, not fetched: the random classes of a benchmark of transport between images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.special import expit, gamma, kv

from ._images import photographs

_Float = NDArray[np.float64]

# variance, smoothness nu and scale of the Matérn fields on the unit square
_FIELDS = {
    "grf-rough": (1.0, 0.25, 0.05),
    "grf-moderate": (1.0, 1.0, 0.15),
    "grf-smooth": (1.0, 2.5, 0.3),
    "log-grf": (1.0, 0.5, 0.4),
    "logit-grf": (4.0, 4.5, 0.1),
}
DOTMARK = ("white-noise", *_FIELDS, "cauchy-density", "shapes", "classic-images")
"""The classes of `dotmark`."""


def dotmark(kind: str, size: int = 64, *, generator: np.random.Generator | None = None) -> _Float:
    r"""An image of one of the classes of the DOTmark collection, drawn by its definition.

    White noise is uniform in each pixel. The fields are Gaussian with the Matérn covariance

        sigma^2 2^{1 - nu} / Gamma(nu) (r / s)^nu K_nu(r / s)

    on the unit square: as they are, their exponential, or their logistic function. The Cauchy density is
    (1 + (x - m)^T S^{-1} (x - m))^{-3/2} with a random centre m and a random ellipse S. Shapes are black and white
    ellipses, boxes and rings. Classic images are random square crops of `photographs`. Fields and photographs are
    mapped to [0, 1] linearly; the collection itself has ten fixed images a class, these are others of the same law. Its
    tenth class is of micrographs and is not here.

    Args:
        kind: "white-noise", "grf-rough", "grf-moderate", "grf-smooth", "log-grf", "logit-grf", "cauchy-density",
            "shapes" or "classic-images".
        size: pixels along each side.
        generator: of NumPy; that of seed 0 when None.

    Returns:
        The image (size, size), non-negative, of sum 1.

    Raises:
        ValueError: for another class, or fewer than two pixels along a side.
        DataUnavailable: for classic images, when the photographs cannot be had.

    O(size^2 log size) time and memory.

    References:
        J. Schrieber, D. Schuhmacher, C. Gottschlich. DOTmark: a benchmark for discrete optimal transport. IEEE Access
        5, 2017.

    Example:
        >>> from brenier.data import dotmark
        >>> image = dotmark("grf-smooth", 32)
        >>> image.shape, float(image.min()), round(float(image.sum()), 12)
        ((32, 32), 0.0, 1.0)
    """
    if kind not in DOTMARK:
        raise ValueError(f"expected one of {', '.join(map(repr, DOTMARK))}, got {kind!r}")
    if size < 2:
        raise ValueError(f"expected at least 2 pixels along each side, got {size}")
    random = np.random.default_rng(0) if generator is None else generator
    image = _field(kind, size, random) if kind in _FIELDS else _OTHERS[kind](size, random)
    return image / image.sum()


def _unit(image: _Float) -> _Float:
    """Values mapped to [0, 1] linearly."""
    return np.asarray((image - image.min()) / (image.max() - image.min()))


def _field(kind: str, size: int, random: np.random.Generator) -> _Float:
    values = _matern(size, random, *_FIELDS[kind])
    if kind == "log-grf":
        return np.exp(values)
    return expit(values) if kind == "logit-grf" else _unit(values)


def _matern(size: int, random: np.random.Generator, variance: float, nu: float, scale: float) -> _Float:
    """A stationary Gaussian field on a torus eight times as wide, where distances inside the square are true."""
    wide = 8 * size
    steps = np.arange(wide // 2 + 1) / size
    r = np.hypot(steps[:, None], steps) / scale
    r[0, 0] = 1.0
    covariance = variance * 2 ** (1 - nu) / gamma(nu) * r**nu * kv(nu, r)
    covariance[0, 0] = variance
    mirror = np.minimum(np.arange(wide), wide - np.arange(wide))
    # negative to rounding, and by the little that is left of the covariance half way around
    spectrum = np.maximum(rfft2(covariance[np.ix_(mirror, mirror)]).real, 0)
    noise = rfft2(random.standard_normal((wide, wide)))
    return np.asarray(irfft2(noise * np.sqrt(spectrum), s=(wide, wide))[:size, :size])


def _pixels(size: int) -> tuple[_Float, _Float]:
    centres = (np.arange(size) + 0.5) / size
    return centres[:, None], centres[None, :]


def _inside(size: int, random: np.random.Generator) -> tuple[_Float, _Float]:
    """The pixels in the axes of a random ellipse, where it is the unit circle."""
    (u, v), centre, angle = _pixels(size), random.uniform(0.2, 0.8, 2), random.uniform(0, np.pi)
    u, v = u - centre[0], v - centre[1]
    long, short = random.uniform(0.15, 0.35), random.uniform(0.05, 0.15)
    return (u * np.cos(angle) + v * np.sin(angle)) / long, (v * np.cos(angle) - u * np.sin(angle)) / short


def _cauchy_density(size: int, random: np.random.Generator) -> _Float:
    u, v = _inside(size, random)
    return (1 + u**2 + v**2) ** -1.5


def _shapes(size: int, random: np.random.Generator) -> _Float:
    image = np.zeros((size, size))
    while not image.any():
        for _ in range(int(random.integers(1, 4))):
            u, v = _inside(size, random)
            shape = random.integers(3)
            radius = np.maximum(np.abs(u), np.abs(v)) if shape == 1 else np.hypot(u, v)
            image[(radius <= 1) & ((shape < 2) | (radius >= 0.6))] = 1
    return image


def _classic_images(size: int, random: np.random.Generator) -> _Float:
    pictures = photographs()
    picture = pictures[sorted(pictures)[random.integers(len(pictures))]].astype(np.float64)
    side = min(picture.shape)
    top, left = (int(random.integers(length - side + 1)) for length in picture.shape)
    # the mean over equal areas: fractions of pixels along each axis
    edges = np.linspace(0, side, size + 1)
    for axis, start in enumerate((top, left)):
        sums = np.insert(np.cumsum(np.take(picture, range(start, start + side), axis), axis), 0, 0.0, axis)
        low = np.minimum(edges.astype(int), side - 1)
        share = np.expand_dims(edges - low, 1 - axis)
        at_edges = np.take(sums, low, axis) * (1 - share) + np.take(sums, low + 1, axis) * share
        picture = np.diff(at_edges, axis=axis)
    return _unit(picture)


_OTHERS: dict[str, Callable[[int, np.random.Generator], _Float]] = {
    "white-noise": lambda size, random: random.random((size, size)),
    "cauchy-density": _cauchy_density,
    "shapes": _shapes,
    "classic-images": _classic_images,
}
