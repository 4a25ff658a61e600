"""A cost of low rank, up to one term for each row and each column."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from ..errors import refuse
from ..kernels.reference import Pairs
from .base import Lines, PairGeometry
from .pointcloud import _negative_product, _pick

__all__ = ["Factored"]


class Factored(PairGeometry):
    """The cost c_ij = h_i + k_j - <u_i, v_j>, never formed: O((n + m) r) memory.

    Args:
        h: (*batch, n).
        k: (*batch, m).
        u: (*batch, n, r).
        v: (*batch, m, r).

    Raises:
        InvalidInput: shapes that do not fit.

    Example:
        >>> import torch
        >>> from brenier.geometry import Factored
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> Factored(x[:, 0] ** 2, x[:, 0] ** 2, 2 * x, x).tile().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    def __init__(self, h: Tensor, k: Tensor, u: Tensor, v: Tensor) -> None:
        if u.shape[:-1] != h.shape or v.shape[:-1] != k.shape or u.shape[-1] != v.shape[-1]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (h, k, u, v))
            refuse("factors", "h (*batch, n), k (*batch, m), u (*batch, n, r) and v (*batch, m, r)", shapes)
        self._set(h, k, u, v)

    def _set(self, h: Tensor, k: Tensor, u: Tensor, v: Tensor) -> None:
        self.h, self.k, self.u, self.v = h, k, u, v
        self.shape = (u.shape[-2], v.shape[-2])
        self.batch_shape = u.shape[:-2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.h, self.k, self.u, self.v)

    def with_tensors(self, *tensors: Tensor) -> Self:
        out = object.__new__(type(self))
        out._set(*tensors)
        return out

    @property
    def T(self) -> Factored:
        return self.with_tensors(self.k, self.h, self.v, self.u)

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        return Pairs((self.u,), (self.v,), _negative_product, self.shape, "dot"), self.h, self.k

    def part(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Factored:
        h, k, u, v = self.tensors
        return self.with_tensors(h[..., rows], k[..., cols], u[..., rows, :], v[..., cols, :]).detach()

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        inner = (_pick(self.u, rows) * _pick(self.v, cols)).sum(-1)
        return _pick(self.h.unsqueeze(-1), rows).squeeze(-1) + _pick(self.k.unsqueeze(-1), cols).squeeze(-1) - inner

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        offsets = self.h[..., rows].unsqueeze(-1) + self.k[..., cols].unsqueeze(-2)
        return offsets - self.u[..., rows, :] @ self.v[..., cols, :].mT

    def __repr__(self) -> str:
        return f"Factored(shape={(*self.batch_shape, *self.shape)}, rank={self.u.shape[-1]}, dtype={self.dtype})"
