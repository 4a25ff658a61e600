"""Soft transforms whose sums are in float32, for the iterations of a float64 problem that are far from its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import engine as kernels
from ..kernels.reference import Pairs

if TYPE_CHECKING:
    from .base import PairGeometry

__all__ = ["LEAST", "SingleSums"]

LEAST = 2**20  # pairs from which half the time of a pass is worth a second copy of the points


class SingleSums:
    """The soft transforms of a float64 geometry, from its points in float32: half the time, seven digits.

    Potentials and the rank-one terms of the costs are summed up in float64 before and after.
    """

    def __init__(self, geometry: PairGeometry) -> None:
        self._sides = tuple(_rounded(*side._pairs()) for side in (geometry, geometry.T))

    @property
    def finite(self) -> bool:
        """Whether all points are within the range of float32."""
        pairs = self._sides[0][0]
        return all(bool(torch.isfinite(t).all()) for t in (*pairs.rows, *pairs.cols))

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        """See `Geometry.softmin`."""
        pairs, r, c = self._sides[1 - dim % 2]
        return r + kernels.softmin(pairs, (h - c).float(), _single(epsilon)).double()

    def apply(self, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor, dim: int = 1) -> Tensor:
        """See `Geometry.apply`; of vectors (*batch, m, k) in float32, as the answer is."""
        pairs, r, c = self._sides[1 - dim % 2]
        f, g = (f, g) if dim % 2 else (g, f)
        return kernels.apply(pairs, (f - r).float(), (g - c).float(), _single(epsilon), v)


def _single(epsilon: float | Tensor) -> float | Tensor:
    return epsilon.float() if isinstance(epsilon, Tensor) else epsilon


def _rounded(pairs: Pairs, r: Tensor, c: Tensor) -> tuple[Pairs, Tensor, Tensor]:
    rows, cols = (tuple(t.float() for t in side) for side in (pairs.rows, pairs.cols))
    return pairs._replace(rows=rows, cols=cols), r, c
