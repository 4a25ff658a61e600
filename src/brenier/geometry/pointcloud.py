"""Two clouds of points and a ground cost, evaluated tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from .._inputs import check_finite, float_tensor, kind_of, same_place
from ..costs import Cost, Factors, InnerProductCost, Lp, as_cost
from ..errors import refuse
from ..kernels.reference import Pairs
from .base import Lines, PairGeometry

__all__ = ["PointCloud", "read_cloud"]


def _negative_product(rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]) -> Tensor:
    return -(rows[0] @ cols[0].mT)


_NORMS = {1.0: "l1", 2.0: "l2", math.inf: "linf"}


def _kind(ground: Cost) -> str:
    """The name by which fast engines know a pointwise cost, or nothing."""
    return _NORMS.get(ground.p, "") if isinstance(ground, Lp) and ground.power == 1 else ""


def _pick(points: Tensor, index: Tensor) -> Tensor:
    """Points (*batch, n, d) at index (*batch, k), whose batch may be larger: (*batch, k, d)."""
    if points.dim() == 2:
        return points.index_select(0, index) if index.dim() == 1 else points[index]
    d = points.shape[-1]
    points = points.expand(*index.shape[:-1], *points.shape[-2:])
    return points.gather(-2, index.unsqueeze(-1).expand(*index.shape, d))


def read_cloud(points: Any, name: str) -> Tensor:
    """Read points (*batch, n, d); (n,) is (n, 1)."""
    out = float_tensor(points, name)
    if out.dim() == 1:
        out = out.unsqueeze(-1)
    if out.dim() < 2:
        refuse(name, "points of shape (*batch, n, d)", f"shape {tuple(out.shape)}")
    if 0 in out.shape:
        refuse(name, "at least one point and one coordinate", f"shape {tuple(out.shape)}")
    return out


class PointCloud(PairGeometry):
    """The cost c(x_i, y_j) between two clouds, never formed: O(n + m) memory, tiles on the fly.

    Clouds are centred together first when the cost allows it, so that a far origin costs no accuracy.

    Args:
        x: (*batch, n, d) source points; (n,) is read as (n, 1).
        y: (*batch, m, d) target points; `x` itself when None. Batch axes broadcast.
        cost: a name ("sqeuclidean", "euclidean", "cityblock", "chebyshev", "cosine", "dot"), a `Cost`, or a function
            of two broadcasting tensors.

    Raises:
        InvalidInput: empty clouds, different dimensions, dtypes or devices, NaN or infinity, unknown cost.

    Example:
        >>> import torch
        >>> from brenier import PointCloud
        >>> geometry = PointCloud(torch.zeros(3, 2), torch.ones(4, 2))
        >>> geometry.shape, float(geometry.mean_cost())
        ((3, 4), 2.0)
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    ) -> None:
        self.ground = as_cost(cost)
        self.kind = kind_of(x, y)
        x = read_cloud(x, "x")
        y = x if y is None else read_cloud(y, "y")
        same_place(x, "x", y, "y")
        for points, name in ((x, "x"), (y, "y")):
            check_finite(points, name, "finite coordinates", "Drop or impute those rows.")
        if x.shape[-1] != y.shape[-1]:
            refuse(
                "x and y",
                "points of one dimension",
                f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}",
                "Give both clouds the same columns.",
            )
        try:
            batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        except RuntimeError:
            refuse(
                "x and y",
                "batch axes that broadcast",
                f"{tuple(x.shape[:-2])} and {tuple(y.shape[:-2])}",
            )
        self.ground.check(x.shape[-1])
        self._set(x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:]))

    def _set(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.shape = (x.shape[-2], y.shape[-2])
        self.batch_shape = x.shape[:-2]
        self._cache: tuple[Pairs, Tensor, Tensor] | None = None
        self._mean: Tensor | None = None  # of both clouds

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x, self.y)

    def with_tensors(self, *tensors: Tensor) -> Self:
        out = object.__new__(type(self))
        out.ground = self.ground
        out._set(*tensors)
        return out

    def detach(self) -> Self:
        out = super().detach()
        out._mean = self._mean
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}  # functions do not pickle, and it is cheap to make anew

    def extend(self, x: Tensor | None = None, y: Tensor | None = None) -> PointCloud:
        """The same cost from other source or target points, for evaluation out of sample."""
        return PointCloud(self.x if x is None else x, self.y if y is None else y, self.ground)

    def part(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> PointCloud:
        return self.with_tensors(self.x[..., rows, :], self.y[..., cols, :]).detach()

    @property
    def T(self) -> PointCloud:
        return _Transposed(self)

    def _centred(self) -> tuple[Tensor, Tensor]:
        if not self.ground.translation_invariant:
            return self.x, self.y
        if self._mean is None:
            with torch.no_grad():
                mean = (self.x.double().mean(-2, keepdim=True) + self.y.double().mean(-2, keepdim=True)) / 2
                self._mean = mean.to(self.dtype)
        return self.x - self._mean, self.y - self._mean

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        record = torch.is_grad_enabled() and (self.x.requires_grad or self.y.requires_grad)
        if self._cache is not None and not record:
            return self._cache
        x, y = self._centred()
        if isinstance(self.ground, InnerProductCost):
            h, k, u, v = self.ground.factors(x, y)
            out = Pairs((u,), (v,), _negative_product, self.shape, "dot"), h, k
        else:
            ground = self.ground
            out = (
                Pairs((x,), (y,), lambda rows, cols: ground.block(rows[0], cols[0]), self.shape, _kind(ground)),
                x.detach().new_zeros(x.shape[:-1]),
                y.detach().new_zeros(y.shape[:-1]),
            )
        if not record:
            self._cache = out
        return out

    @property
    def fused(self) -> bool:
        return isinstance(self.ground, InnerProductCost) or bool(_kind(self.ground))

    def factors(self) -> Factors | None:
        """The cost as h_i + k_j - <u_i, v_j>, of the centred clouds; None where it is not of that form."""
        pairs, h, k = self._pairs()
        return Factors(h, k, pairs.rows[0], pairs.cols[0]) if pairs.kind == "dot" else None

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        return self.ground(_pick(self.x, rows), _pick(self.y, cols))

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        x, y = self._centred()
        return self.ground.block(x[..., rows, :], y[..., cols, :])

    def __repr__(self) -> str:
        x, y = tuple(self.x.shape), tuple(self.y.shape)
        return f"PointCloud(x={x}, y={y}, cost={self.ground!r}, dtype={self.dtype})"


class _Transposed(PointCloud):
    """Rows and columns exchanged; keeps the argument order of an asymmetric ground cost."""

    def __init__(self, original: PointCloud) -> None:
        self.ground = original.ground
        self._original = original
        self._set(original.y, original.x)

    @property
    def T(self) -> PointCloud:
        return self._original

    def with_tensors(self, *tensors: Tensor) -> Self:
        return type(self)(self._original.with_tensors(*reversed(tensors)))

    def extend(self, x: Tensor | None = None, y: Tensor | None = None) -> PointCloud:
        return self._original.extend(y, x).T

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        pairs, r, c = self._original._pairs()
        block = pairs.block

        def swapped(rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]) -> Tensor:
            return block(cols, rows).mT

        swap = _negative_product if block is _negative_product else swapped
        blocks = None if pairs.blocks is None else pairs.blocks.T
        return Pairs(pairs.cols, pairs.rows, swap, self.shape, pairs.kind, blocks), c, r

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        return self._original.cost_at(cols, rows)

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        return self._original.tile(cols, rows).mT
