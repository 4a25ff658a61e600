"""All distances of two clouds, from differences or from a matrix product, with no memory beyond the result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .build import native
from .device import products_in_full

__all__ = ["DIRECT", "distances", "rough_costs", "squared_distances"]

_PRODUCT = 256  # dimensions from which a matrix product, and again what is near, beat differences
DIRECT = 16  # dimensions up to which squares always come from differences; in more, what a product loses does no harm
_NEAR = 1 / 64  # of the squared norms: a square below it has lost digits to them
_RANGE = 2.0**30  # of norms whose products float32 takes: what it cannot tell from zero does not count beside them
_CACHED = 1 << 20  # entries of a block of rows, so that all that is done to it stays in the cache


def distances(
    x: Tensor,  # (*batch, n, d)
    y: Tensor,  # (*batch, m, d)
    p: float,
) -> Tensor:
    """The matrix of ‖x_i - y_j‖_p, (*batch, n, m), to some 13 digits in float64 however near two points are.

    Not differentiable. For p = 1 and 2 in float64 on the CPU, without batch axes, a native loop sums differences, 32
    columns at a time; for p = 2 in many dimensions it serves only those pairs that a matrix product does not tell well.
    Everything else is `torch.cdist`. O(n m d) time; no memory beyond the result.
    """
    if p not in (1, 2) or not _plain(x, y):
        return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")
    x, y = x.detach(), y.detach()
    if p == 1 or x.shape[-1] < _PRODUCT:
        return _summed(x, y, int(p), root=p == 2)
    out = _products(x, y)
    h, k = _norms(x, y)
    for rows in _blocks(out):
        part = out[rows]
        near = part < _NEAR * (h[rows] + k)
        part.sqrt_()
        if near.any():
            _again(part, near, x[rows], y)
    return out


def squared_distances(
    x: Tensor,  # (*batch, n, d)
    y: Tensor,  # (*batch, m, d)
) -> Tensor:
    """The matrix of ‖x_i - y_j‖^2, (*batch, n, m); not differentiable.

    From differences in up to 16 dimensions, or wherever the native loop serves (see `distances`); else as
    ‖x_i‖^2 + ‖y_j‖^2 - 2 <x_i, y_j>, with an error of rounding beside these norms. O(n m d) time; no memory beyond the
    result.
    """
    x, y = x.detach(), y.detach()
    if x.shape[-1] < _PRODUCT and _plain(x, y):
        return _summed(x, y, 2, root=False)
    if x.shape[-1] > DIRECT:
        return _products(x, y)
    out = x.new_zeros(*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2])
    for rows in _blocks(out):
        for k in range(x.shape[-1]):
            apart = x[..., rows, None, k] - y[..., None, :, k]
            out[..., rows, :].addcmul_(apart, apart)
    return out


def rough_costs(
    h: Tensor,  # (n,)
    k: Tensor,  # (m,)
    u: Tensor,  # (n, r)
    v: Tensor,  # (m, r)
    *,
    root: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """The costs h_i + k_j - <u_i, v_j>, or their roots, (n, m), and what each row is off by at most, (n,).

    For float64 on the CPU, from a product in float32, which takes half the time. None where the numbers are beyond the
    range of float32, or where PyTorch was told to round products further. In any order of summation, with e = 2^-24,

        |error of <u_i, v_j>| <= (r + 4) e / (1 - (r + 4) e) ‖u_i‖ ‖v_j‖,

    and the error of a root is at most the root of that of its square, and at most the latter over the rounded root.
    O(n m r) time; no memory beyond the result.
    """
    rounding = (u.shape[-1] + 4) * 2.0**-24
    norms = u.square().sum(-1).sqrt_()
    longest = float(v.square().sum(-1).amax().sqrt())
    largest = float(norms.amax())
    if not (all(1 / _RANGE < t < _RANGE for t in (longest, largest)) and rounding < 0.1 and products_in_full(u)):
        return None
    sums = float(h.abs().amax() + k.abs().amax()) + largest * longest  # of which float64 rounds away some 1e-16
    bound = norms.mul_(rounding / (1 - rounding) * longest).add_(1e-14 * sums)
    u, v = u.float().neg_(), v.float()
    out = h.new_empty(len(u), len(v))
    for rows in _blocks(out):
        part = out[rows].copy_(u[rows] @ v.mT).add_(k).add_(h[rows, None])
        if root:
            least = part.clamp_(min=0).sqrt_().amin(-1)
            bound[rows] = torch.minimum(bound[rows].sqrt(), bound[rows] / least)
    return out, bound


def _norms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.square().sum(-1, keepdim=True), y.square().sum(-1).unsqueeze(-2)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Squares from a product."""
    h, k = _norms(x, y)
    if x.dim() > 2 or y.dim() > 2:
        return (h + k - 2 * x @ y.mT).clamp_(min=0)
    out = x.new_empty(len(x), len(y))
    for rows in _blocks(out):
        torch.addmm(k, x[rows], y.mT, alpha=-2, out=out[rows]).add_(h[rows]).clamp_(min=0)
    return out


def _blocks(out: Tensor) -> Iterator[slice]:
    """Blocks of rows (*batch, n, m) that fit in the cache; all rows at once where there is none to speak of."""
    n = out.shape[-2]
    step = max(1, n * _CACHED // max(1, out.numel())) if out.device.type == "cpu" else max(1, n)
    return (slice(start, start + step) for start in range(0, n, step))


def _again(part: Tensor, near: Tensor, x: Tensor, y: Tensor) -> None:
    """Replace what two near points have lost."""
    if 16 * int(near.sum()) > near.numel():
        part.copy_(_summed(x, y, 2, root=True))
        return
    for i, j in zip(*(index.split(_CACHED // x.shape[-1] + 1) for index in near.nonzero(as_tuple=True))):
        part[i, j] = torch.linalg.vector_norm(x[i] - y[j], dim=-1)


def _summed(x: Tensor, y: Tensor, power: int, *, root: bool) -> Tensor:
    assert native is not None
    out = np.empty((len(x), len(y)))
    rows, columns = (t.detach().contiguous().numpy() for t in (x, y))
    native.distances(rows, columns, power, root, torch.get_num_threads(), out)
    return torch.from_numpy(out)


def _plain(x: Tensor, y: Tensor) -> bool:
    """Whether the native loop takes them."""
    return native is not None and all(
        type(t) is Tensor and t.ndim == 2 and t.dtype == torch.float64 and t.device.type == "cpu" for t in (x, y)
    )
