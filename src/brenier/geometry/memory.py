"""The Gibbs kernel of a small problem, kept from iteration to iteration."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..kernels import engine as kernels

__all__ = ["LIMIT", "NARROW_ACCURACY", "NARROW_LIMIT", "GibbsMemory"]

# Entries of the kernel up to which it is kept: it stays in the caches there, so that reading it is several times
# faster than computing it, and it is small beside anything that grows with the problem.
LIMIT = 2**22
# And up to which beside a matrix of costs: in float32 it is half of that to read, as reading is what takes the time.
NARROW_LIMIT = 2**25
NARROW_ACCURACY = 1e-6  # of the masses; rounding the kernel makes them wrong by 6e-8 at most
_TRIES = 4  # kernels that are made before the potentials are taken to move too far


class _Costs(Protocol):
    """What is asked of the geometry."""

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor: ...

    def tile(self) -> Tensor: ...


class GibbsMemory:
    r"""Soft c-transforms at one epsilon as products with a kernel K_ij = exp((p_i + q_j - c_ij) / eps) that is kept.

        softmin(h)_i = p_i - eps log sum_j K_ij exp((h_j - q_j) / eps)

    p and q are the potentials of the first call. Entries that were too small for K might matter when the potentials
    have moved far: `kernels.rescaled` looks at a bound, and where that does not hold the answer comes from the costs,
    and the kernel is made anew. O(n m) memory, so for small problems only.

    Args:
        costs: the geometry.
        epsilon: the one that is served, (*batch,) or ().
        narrow: keep it in float32.
        fresh: `costs.tile()` makes a matrix of its own each time, in whose place the kernel may lie.
    """

    def __init__(self, costs: _Costs, epsilon: Tensor, narrow: bool = False, fresh: bool = False) -> None:
        self._costs, self._epsilon, self.narrow, self._fresh = costs, epsilon, narrow, fresh
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None  # p, q and K
        self._tries = 0

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int) -> Tensor:
        """See `Geometry.softmin`."""
        mine = isinstance(epsilon, Tensor) and (epsilon is self._epsilon or torch.equal(epsilon, self._epsilon))
        if mine and self._kept is not None:
            p, q, kernel = self._kept if dim == 1 else (self._kept[1], self._kept[0], self._kept[2].mT)
            out = kernels.rescaled(kernel, p, h - q, self._epsilon)
            if bool(torch.isfinite(out).all()):
                return out
        out = self._costs.softmin(h, epsilon, dim)
        if mine and self._tries < _TRIES:
            self._keep(h, out, dim)
        return out

    def _keep(self, h: Tensor, out: Tensor, dim: int) -> None:
        self._tries += 1
        if out.numel() * h.shape[-1] > (NARROW_LIMIT if self.narrow else LIMIT):  # many problems that share their costs
            return
        cost = self._costs.tile()
        if bool(torch.isinf(h).any()):  # without mass there is no potential; the largest that leaves entries below one
            h = torch.where(torch.isinf(h), (cost - out.unsqueeze(dim - 2)).amin(-1 - dim), h)
        p, q = (out, h) if dim == 1 else (h, out)
        batch = torch.broadcast_shapes(cost.shape[:-2], p.shape[:-1], q.shape[:-1])
        p, q = p.expand(*batch, -1), q.expand(*batch, -1)
        self._kept = p, q, kernels.gibbs(cost, p, q, self._epsilon, self.narrow, self._fresh)
