"""Projections onto simplices, batched, along any axis, with a bound on the number of non-zeros if wanted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import refuse

__all__ = ["Projected", "project_descending", "simplex_projection", "topk_simplex_projection"]


class Projected(NamedTuple):
    """Projections of sorted vectors, and the thresholds that made them: point = max(u - threshold, 0)."""

    point: Tensor  # (*batch, k)
    threshold: Tensor  # (*batch,)


def project_descending(
    u: Tensor,  # (*batch, k), each vector in decreasing order
    z: Tensor,  # broadcasts to (*batch,), nonnegative
) -> Projected:
    """Project vectors that are sorted already onto {p >= 0, sum p = z}; for z = 0 the threshold is the largest entry.

    Differentiable in u and z with the support held fixed, which is the derivative wherever there is one.
    """
    z = z.expand(u.shape[:-1]).unsqueeze(-1)
    with torch.no_grad():
        count = torch.arange(1, u.shape[-1] + 1, dtype=u.dtype, device=u.device)
        low = u - u[..., :1]  # sums of differences lose less than sums of large numbers
        size = (count * low > low.cumsum(-1) - z).sum(-1, keepdim=True).clamp(min=1)
        inside = count <= size
    first = u[..., :1]
    low = u - first
    shift = (torch.where(inside, low, 0).sum(-1, keepdim=True) - z) / size
    return Projected(torch.where(inside, low - shift, 0).clamp(min=0), (first + shift).squeeze(-1))


def simplex_projection(
    V: Tensor,  # (...), any shape
    z: float | Tensor = 1.0,
    dim: int = -1,
) -> Tensor:  # the shape of V
    """Project onto the simplex of mass z: the p >= 0 along `dim` with sum z that is nearest to V.

    Args:
        V: any real tensor.
        z: the masses, nonnegative: one number, or a tensor that broadcasts to the shape of V without `dim`.
        dim: the axis of the vectors.

    Raises:
        InvalidInput: NaN or infinite entries, no entry along `dim`, negative masses or masses of another shape.

    Complexity: one sort a vector.

    Example:
        >>> import torch
        >>> simplex_projection(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    return _project(V, None, z, dim)


def topk_simplex_projection(
    V: Tensor,  # (...), any shape
    k: int,
    z: float | Tensor = 1.0,
    dim: int = -1,
) -> Tensor:  # the shape of V
    r"""Project onto the vectors of a simplex that have at most k non-zeros.

    A nearest point of {p >= 0, sum p = z, at most k non-zeros} along `dim`: the k largest entries are projected onto
    the simplex of mass z and put back, all others are zero (Kyrillidis, Becker, Cevher & Koch 2013). Where the k-th and
    the (k+1)-th largest entry are equal there are several nearest points, and one of them is returned. From k = n on it
    is the plain projection.

    Gradients in V and z hold the support fixed: (I - 11^T/|S|) dV + 1 dz/|S| on the support S.

    Args:
        V: any real tensor.
        k: non-zeros allowed, an integer >= 1.
        z: the masses, nonnegative: one number, or a tensor that broadcasts to the shape of V without `dim`.
        dim: the axis of the vectors.

    Raises:
        InvalidInput: k < 1 or no integer, NaN or infinite entries, no entry along `dim`, negative masses or masses of
            another shape.

    Complexity: a partial sort of each vector: O(n log k).

    Example:
        >>> import torch
        >>> topk_simplex_projection(torch.tensor([0.5, 0.4, 0.3]), k=2)
        tensor([0.5500, 0.4500, 0.0000])
    """
    return _project(V, k, z, dim)


def check_k(k: object) -> None:
    """Refuse a number of non-zeros that is not a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        refuse("k", "an integer >= 1, the non-zeros allowed in each vector", repr(k))


def _project(V: Tensor, k: int | None, z: float | Tensor, dim: int) -> Tensor:
    if k is not None:
        check_k(k)
    if not isinstance(V, Tensor) or not V.is_floating_point():
        refuse("V", "a tensor of real numbers", f"{V.dtype if isinstance(V, Tensor) else type(V).__name__}")
    if V.dim() == 0 or not -V.dim() <= dim < V.dim():
        refuse("dim", f"an axis of V, which has {V.dim()}", repr(dim))
    if V.shape[dim] == 0:
        refuse("V", "at least one entry along dim", f"shape {tuple(V.shape)}")
    if not torch.isfinite(V.detach()).all():
        refuse("V", "finite entries", "NaN or infinity")
    moved = V.movedim(dim, -1)
    masses = _masses(z, moved)
    values, index = moved.topk(min(k or V.shape[dim], V.shape[dim]), -1)
    point = project_descending(values, masses).point
    return torch.zeros_like(moved).scatter(-1, index, point).movedim(-1, dim)


def _masses(z: float | Tensor, like: Tensor) -> Tensor:
    shape = like.shape[:-1]
    masses = torch.as_tensor(z, dtype=like.dtype, device=like.device)
    low = float(masses.detach().min()) if masses.numel() else 0.0
    if not (low >= 0 and math.isfinite(float(masses.detach().sum()))):
        refuse("z", "nonnegative finite masses", f"a minimum of {low:g}")
    try:
        fits = torch.broadcast_shapes(masses.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        refuse("z", f"one mass, or masses that broadcast to {tuple(shape)}", f"shape {tuple(masses.shape)}")
    return masses.expand(shape)
