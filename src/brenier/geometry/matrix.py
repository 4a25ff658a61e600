"""A cost given as a matrix."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from .._inputs import check_finite, float_tensor, matrix_kind
from ..errors import refuse
from ..kernels.reference import Pairs
from .base import Lines, PairGeometry

__all__ = ["CostMatrix"]


def _block(rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]) -> Tensor:
    return rows[0]


class CostMatrix(PairGeometry):
    """A cost given in full, c_ij = C[i, j]; it may have any sign.

    Args:
        cost: (*batch, n, m), finite.

    Raises:
        InvalidInput: fewer than two axes, an empty axis, NaN or infinite entries.

    Example:
        >>> import torch, brenier
        >>> C = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
        >>> float(brenier.solve(brenier.CostMatrix(C)).value)
        0.0
    """

    _stored = True

    def __init__(self, cost: Any) -> None:
        self.kind = matrix_kind(cost)
        cost = float_tensor(cost, "cost matrix")
        if cost.dim() < 2:
            refuse("cost matrix", "shape (*batch, n, m)", f"shape {tuple(cost.shape)}")
        if 0 in cost.shape:
            refuse("cost matrix", "at least one row and one column", f"shape {tuple(cost.shape)}")
        check_finite(cost, "cost matrix", "finite entries", "Replace forbidden pairs by a large finite cost.")
        self._set(cost)

    def _set(self, cost: Tensor) -> None:
        self.cost = cost
        self.shape = (cost.shape[-2], cost.shape[-1])
        self.batch_shape = cost.shape[:-2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.cost,)

    def with_tensors(self, *tensors: Tensor) -> Self:
        out = object.__new__(type(self))
        out._set(*tensors)
        return out

    @property
    def T(self) -> CostMatrix:
        return self.with_tensors(self.cost.mT)

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        n, m = self.shape
        zero = self.cost.detach().new_zeros(())
        return (
            Pairs((self.cost,), (), _block, self.shape, "matrix"),
            zero.expand(*self.batch_shape, n),
            zero.expand(*self.batch_shape, m),
        )

    def part(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> CostMatrix:
        return self.with_tensors(self.tile(rows, cols)).detach()

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        if not self.batch_shape:
            return self.cost[rows, cols]
        flat = self.cost.reshape(*self.batch_shape, -1).expand(*rows.shape[:-1], -1)
        return flat.gather(-1, rows * self.shape[1] + cols)

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        return self.cost[..., rows, :][..., cols]

    def __repr__(self) -> str:
        return f"CostMatrix(shape={tuple(self.cost.shape)}, dtype={self.dtype})"
