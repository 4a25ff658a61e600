"""A regular grid of cells and what lives on it: numbers in cells, flows through faces, and Poisson's equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..._inputs import is_count, is_real
from ...errors import refuse

__all__ = ["Cells"]

BOUNDARIES = ("neumann", "periodic")


@dataclass(frozen=True)
class Cells:
    """Boxes of one size. Numbers in cells are (*batch, *sizes); flows are (*batch, d, *sizes).

    Entry i of component k of a flow belongs to the face between cell i and the next one along axis k. With a closed
    border ("neumann") the last cell has no such face, and that entry is zero; a periodic axis has n faces.

    Attributes:
        sizes: cells along each axis.
        spacing: edge lengths of a cell.
        boundaries: "neumann" or "periodic", for each axis.
    """

    sizes: tuple[int, ...]
    spacing: tuple[float, ...]
    boundaries: tuple[str, ...]

    @classmethod
    def of(cls, field: Tensor, d: Any, spacing: float | Sequence[float], boundary: str | Sequence[str]) -> Cells:
        """The grid of a field whose last d axes are space.

        Raises:
            InvalidInput: fewer axes than d, an empty axis, spacings that are not positive, an unknown boundary.
        """
        if not is_count(d) or field.dim() < d:
            refuse("d", f"a number of axes from 1 to {field.dim()}", repr(d))
        sizes = tuple(field.shape[field.dim() - d :])
        if 0 in sizes:
            refuse("grid", "at least one cell along each axis", f"sizes {sizes}")
        steps = tuple(float(h) if is_real(h) else math.nan for h in _each(spacing, d, "spacing"))
        if not all(0 < h < math.inf for h in steps):
            refuse("spacing", "positive finite lengths", repr(spacing))
        kinds = tuple(_each(boundary, d, "boundary"))
        if not all(kind in BOUNDARIES for kind in kinds):
            refuse("boundary", "'neumann' or 'periodic'", repr(boundary))
        return cls(sizes, steps, kinds)

    @property
    def d(self) -> int:
        """The number of axes."""
        return len(self.sizes)

    def _axis(self, k: int) -> int:
        return k - self.d

    def _faces(self, k: int, t: Tensor) -> Tensor:
        """Zero on what is not a face: the last entries along a closed axis."""
        if self.boundaries[k] == "periodic":
            return t
        inside = torch.ones(self.sizes[k], dtype=t.dtype, device=t.device)
        inside[-1] = 0
        return t * inside.reshape(-1, *(1,) * (self.d - k - 1))

    def inner_faces(self, flow: Tensor) -> Tensor:
        """A flow (*batch, d, *sizes) with zeros where there is no face."""
        return self._stacked(lambda k: self._faces(k, self._component(flow, k)))

    def _component(self, flow: Tensor, k: int) -> Tensor:
        return flow.select(flow.dim() - self.d - 1, k)

    def _stacked(self, part: Any) -> Tensor:
        return torch.stack([part(k) for k in range(self.d)], -self.d - 1)

    def gradient(self, phi: Tensor) -> Tensor:
        """Differences of neighbours over their distance, (*batch, d, *sizes)."""
        return self._stacked(lambda k: self._faces(k, (phi.roll(-1, self._axis(k)) - phi) / self.spacing[k]))

    def divergence(self, flow: Tensor) -> Tensor:
        """What leaves a cell less what enters it, over its edge, (*batch, *sizes): minus the gradient's adjoint."""
        total = None
        for k in range(self.d):
            part = self._faces(k, self._component(flow, k)) / self.spacing[k]
            part = part - part.roll(1, self._axis(k))
            total = part if total is None else total + part
        assert total is not None
        return total

    def to_faces(self, parts: Tensor) -> Tensor:
        """Means over the two cells of a face, of vectors (*batch, d, *sizes) in cells."""
        return self._stacked(lambda k: self._faces(k, _mean(self._component(parts, k), -1, self._axis(k))))

    def to_cells(self, flow: Tensor) -> Tensor:
        """Means over the two faces of a cell, (*batch, d, *sizes), zero on a closed border; adjoint to `to_faces`."""
        return self._stacked(lambda k: _mean(self._faces(k, self._component(flow, k)), 1, self._axis(k)))

    def spread(self, rho: Tensor) -> Tensor:
        """A density in cells (*batch, *sizes) on the faces of every axis, (*batch, d, *sizes)."""
        return self.to_faces(
            rho.unsqueeze(-self.d - 1).expand(*rho.shape[: rho.dim() - self.d], *(self.d, *self.sizes))
        )

    # -- Poisson's equation ----------------------------------------------------------------------------------

    def _spectrum(self) -> Tensor:
        """The eigenvalues of minus the Laplacian, in float64."""
        total = torch.zeros(self.sizes, dtype=torch.float64)
        for k, (n, h, kind) in enumerate(zip(self.sizes, self.spacing, self.boundaries)):
            angle = torch.arange(n, dtype=torch.float64) * (math.pi / n) * (1 if kind == "neumann" else 2)
            values = (2 * (angle / 2).sin() / h) ** 2  # 1 - cos would lose the digits of small angles
            total = total + values.reshape(-1, *(1,) * (self.d - k - 1))
        return total

    def poisson(self, rhs: Tensor, screen: float = 0.0) -> Tensor:
        """The phi (*batch, *sizes) with (-laplacian + screen) phi = rhs, by fast cosine and Fourier transforms.

        Without a screen phi has mean zero, and the mean of the right-hand side is left out. Differentiable in it.
        """
        inverse = _inverse(self, float(screen), rhs.dtype, rhs.device)
        closed, open_ = ([self._axis(k) for k in range(self.d) if self.boundaries[k] == kind] for kind in BOUNDARIES)
        t = rhs
        for axis in closed:
            t = _dct(t, axis)
        spectrum = torch.fft.fftn(t, dim=open_) if open_ else t
        spectrum = spectrum * inverse
        t = torch.fft.ifftn(spectrum, dim=open_).real if open_ else spectrum
        for axis in closed:
            t = _idct(t, axis)
        return t


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must serve with gradients, too
def _inverse(cells: Cells, screen: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One over the eigenvalues of -laplacian + screen; zero for the constants where there is no screen."""
    values = cells._spectrum() + screen
    return torch.where(values > 0, 1 / torch.where(values > 0, values, 1), 0).to(device, dtype)


def _each(value: Any, d: int, name: str) -> Sequence[Any]:
    """One value for each axis."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * d
    if len(value) != d:
        refuse(name, f"one value or {d} of them", repr(value))
    return value


def _mean(t: Tensor, shift: int, axis: int) -> Tensor:
    return (t + t.roll(shift, axis)) / 2


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve with gradients, too
def _tables(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """exp(-i pi k / 2n), and what makes the cosine transform orthonormal, for k < n."""
    angle = -torch.arange(n, dtype=torch.float64) * (math.pi / (2 * n))
    turn = torch.polar(torch.ones_like(angle), angle)
    scale = torch.full((n,), math.sqrt(1 / (2 * n)), dtype=torch.float64)
    scale[0] = math.sqrt(1 / (4 * n))
    wide = dtype == torch.float64
    return turn.to(device, torch.complex128 if wide else torch.complex64), scale.to(device, dtype)


def _dct(t: Tensor, axis: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) along an axis, by one Fourier transform of the same length."""
    t = t.movedim(axis, -1)
    n = t.shape[-1]
    folded = torch.cat([t[..., ::2], t[..., 1::2].flip(-1)], -1)  # Makhoul (1980)
    turn, scale = _tables(n, t.dtype, t.device)
    out = 2 * (torch.fft.fft(folded) * turn).real * scale
    return out.movedim(-1, axis)


def _idct(t: Tensor, axis: int) -> Tensor:
    """Its inverse, the DCT-III."""
    t = t.movedim(axis, -1)
    n = t.shape[-1]
    turn, scale = _tables(n, t.dtype, t.device)
    t = t / scale
    mirrored = torch.cat([torch.zeros_like(t[..., :1]), t[..., 1:].flip(-1)], -1)
    folded = torch.fft.ifft(torch.complex(t, -mirrored) / 2 * turn.conj()).real
    half = (n + 1) // 2
    out = torch.empty_like(folded)
    out[..., ::2] = folded[..., :half]
    out[..., 1::2] = folded[..., half:].flip(-1)
    return out.movedim(-1, axis)
