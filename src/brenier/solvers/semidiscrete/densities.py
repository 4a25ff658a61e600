"""Densities whose integrals over power cells are known in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._inputs import check_finite, float_tensor
from ...errors import refuse

__all__ = ["Density", "Pieces", "PixelDensity", "UniformBox", "UniformPolygon"]

Array = NDArray[np.float64]


class Pieces(NamedTuple):
    """A density that is constant on the boxes of a regular grid, and zero outside of a convex domain."""

    values: Array  # (n_1, .., n_d), mass per volume
    low: Array  # (d,)
    high: Array  # (d,)
    corners: Array  # (k, d) of the domain; in the plane in counter-clockwise order


class Density(ABC):
    """A probability density of bounded support; a source of `semidiscrete_transport` with exact cells for d <= 3."""

    @property
    @abstractmethod
    def d(self) -> int:
        """The dimension."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, (n, d), in float64 on the CPU."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(d,)."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """(d, d)."""

    @abstractmethod
    def pieces(self) -> Pieces:
        """The density as boxes inside a convex domain."""


class UniformBox(Density):
    """The uniform law on a box [low_1, high_1] x ... x [low_d, high_d].

    Args:
        low, high: corners, (d,); numbers on the line.

    Raises:
        InvalidInput: corners of different shapes, or low >= high.

    Example:
        >>> from brenier.solvers import UniformBox
        >>> UniformBox([0.0, 0.0], [2.0, 1.0]).mean.tolist()
        [1.0, 0.5]
    """

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = _corners(low, high)

    @property
    def d(self) -> int:
        return len(self.low)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        unit = torch.rand(n, self.d, generator=generator, dtype=torch.float64)
        return self.low + (self.high - self.low) * unit

    @property
    def mean(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def covariance(self) -> Tensor:
        return torch.diag((self.high - self.low).square() / 12)

    def pieces(self) -> Pieces:
        low, high = self.low.numpy(), self.high.numpy()
        values = np.full((1,) * self.d, 1 / np.prod(high - low))
        return Pieces(values, low, high, _box_corners(low, high))

    def __repr__(self) -> str:
        return f"UniformBox(low={self.low.tolist()}, high={self.high.tolist()})"


class UniformPolygon(Density):
    """The uniform law on a convex polygon of the plane.

    Args:
        vertices: (k, 2), k >= 3, in the order of the boundary, either way round.

    Raises:
        InvalidInput: fewer than three vertices, no area, or a polygon that is not convex.

    Example:
        >>> from brenier.solvers import UniformPolygon
        >>> UniformPolygon([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]).mean.tolist()
        [1.0, 1.0]
    """

    def __init__(self, vertices: Any) -> None:
        points = float_tensor(vertices, "vertices").detach().cpu().double()
        if points.dim() != 2 or points.shape[0] < 3 or points.shape[1] != 2:
            refuse("vertices", "shape (k, 2), k >= 3", f"shape {tuple(points.shape)}")
        check_finite(points, "vertices", "finite coordinates")
        sides = points.roll(-1, 0) - points
        after = sides.roll(-1, 0)
        turns = sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0]
        area = _cross(points - points[0], points.roll(-1, 0) - points[0]).sum() / 2
        flat = 1e-12 * float(sides.square().sum())
        if float(area.abs()) <= flat:
            refuse("vertices", "a polygon with an area", "points on a line")
        if bool((turns * area.sign() < -flat).any()) or float(_winding(sides)) > 1.5:
            refuse("vertices", "a convex polygon, in the order of its boundary", "one that is not")
        self.vertices = points if float(area) > 0 else points.flip(0)
        corner = self.vertices[0]
        self._fans = torch.stack([self.vertices[1:-1] - corner, self.vertices[2:] - corner], 1)  # (k - 2, 2, 2)
        self._areas = _cross(self._fans[:, 0], self._fans[:, 1]).clamp(min=0) / 2

    @property
    def d(self) -> int:
        return 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        which = torch.multinomial(self._areas, n, replacement=True, generator=generator)
        u = torch.rand(n, 2, 1, generator=generator, dtype=torch.float64)
        u = torch.where(u.sum(1, keepdim=True) > 1, 1 - u, u)  # the parallelogram folded onto the triangle
        return self.vertices[0] + (u * self._fans[which]).sum(1)

    @property
    def mean(self) -> Tensor:
        share = self._areas / self._areas.sum()
        return self.vertices[0] + (share.unsqueeze(-1) * self._fans.sum(1) / 3).sum(0)

    @property
    def covariance(self) -> Tensor:
        share = self._areas / self._areas.sum()
        total = self._fans.sum(1)
        # of a triangle with a corner at zero: E x x^T = (u u^T + v v^T + (u + v)(u + v)^T) / 12
        square = torch.einsum("kai,kaj->kij", self._fans, self._fans) + total.unsqueeze(-1) * total.unsqueeze(-2)
        mean = self.mean - self.vertices[0]
        return (share[:, None, None] * square / 12).sum(0) - torch.outer(mean, mean)

    def pieces(self) -> Pieces:
        low, high = self.vertices.amin(0).numpy(), self.vertices.amax(0).numpy()
        return Pieces(np.full((1, 1), 1 / float(self._areas.sum())), low, high, self.vertices.numpy())

    def __repr__(self) -> str:
        return f"UniformPolygon(vertices={self.vertices.tolist()})"


class PixelDensity(Density):
    """A density that is constant on each box of a regular grid: a histogram on the line, an image in the plane.

    Args:
        values: (n,) or (n, m) nonnegative, normalised here; values[i, j] belongs to the i-th step along the first
            coordinate and the j-th along the second, as in `Grid`.
        low, high: corners of the grid, (d,); the unit box when None.

    Raises:
        InvalidInput: other shapes, negative values, NaN or infinity, no mass at all.

    Example:
        >>> from brenier.solvers import PixelDensity
        >>> PixelDensity([[0.0, 1.0], [0.0, 1.0]]).mean.tolist()
        [0.5, 0.75]
    """

    def __init__(self, values: Any, low: Any = None, high: Any = None) -> None:
        values = float_tensor(values, "values").detach().cpu().double()
        if values.dim() not in (1, 2) or not values.numel():
            refuse("values", "shape (n,) or (n, m)", f"shape {tuple(values.shape)}")
        check_finite(values, "values", "finite numbers")
        if bool((values < 0).any()) or not float(values.sum()) > 0:
            refuse("values", "nonnegative numbers, not all zero", f"a minimum of {float(values.min()):.3g}")
        d = values.dim()
        self.low, self.high = _corners([0.0] * d if low is None else low, [1.0] * d if high is None else high)
        if len(self.low) != d:
            refuse("low and high", f"corners in {d} dimensions", f"{len(self.low)}")
        self.values = values / values.sum()  # masses

    @property
    def d(self) -> int:
        return self.values.dim()

    @property
    def _step(self) -> Tensor:
        return (self.high - self.low) / torch.tensor(self.values.shape, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        total = self.values.flatten().cumsum(0)
        u = torch.rand(n, generator=generator, dtype=torch.float64) * total[-1]
        which = torch.searchsorted(total, u, right=True).clamp(max=len(total) - 1)
        index = torch.stack(torch.unravel_index(which, self.values.shape), -1)
        return self.low + (index + torch.rand(n, self.d, generator=generator, dtype=torch.float64)) * self._step

    def _centres(self) -> Tensor:
        axes = [
            low + (torch.arange(k, dtype=torch.float64) + 0.5) * step
            for low, k, step in zip(self.low, self.values.shape, self._step)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, self.d)

    @property
    def mean(self) -> Tensor:
        return self.values.flatten() @ self._centres()

    @property
    def covariance(self) -> Tensor:
        apart = self._centres() - self.mean
        return (self.values.flatten().unsqueeze(-1) * apart).mT @ apart + torch.diag(self._step.square() / 12)

    def pieces(self) -> Pieces:
        low, high = self.low.numpy(), self.high.numpy()
        return Pieces((self.values / self._step.prod()).numpy(), low, high, _box_corners(low, high))

    def __repr__(self) -> str:
        return f"PixelDensity({tuple(self.values.shape)}, low={self.low.tolist()}, high={self.high.tolist()})"


def _corners(low: Any, high: Any) -> tuple[Tensor, Tensor]:
    ends = [float_tensor(t, name).detach().cpu().double() for t, name in ((low, "low"), (high, "high"))]
    low, high = (t.reshape(1) if t.dim() == 0 else t for t in ends)
    if low.dim() != 1 or low.shape != high.shape or not len(low):
        refuse("low and high", "two corners of shape (d,)", f"shapes {tuple(low.shape)} and {tuple(high.shape)}")
    for t, name in ((low, "low"), (high, "high")):
        check_finite(t, name, "finite coordinates")
    if not bool((low < high).all()):
        refuse("low and high", "low < high", f"{low.tolist()} and {high.tolist()}")
    return low, high


def _box_corners(low: Array, high: Array) -> Array:
    """All corners of a box; in the plane in counter-clockwise order."""
    if len(low) == 2:
        return np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    choice = np.indices((2,) * len(low)).reshape(len(low), -1).T
    return np.where(choice == 0, low, high)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _winding(sides: Tensor) -> Tensor:
    """How many times the direction of the boundary turns round."""
    after = sides.roll(-1, 0)
    angle = torch.atan2(_cross(sides, after), (sides * after).sum(-1))
    return (angle.sum() / (2 * torch.pi)).abs()
