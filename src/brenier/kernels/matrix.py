"""The native engine over a cost matrix that is there: one read of it for each call, no temporary of its size.

Same functions as `reference`, for a cost (*batch, n, m) of float32 or float64 on a CPU, without derivatives. A
transposed matrix is read as it lies; nothing is copied unless the batch is neither dense nor shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .build import native as _native

__all__ = ["apply", "cmin", "gibbs", "listed", "rescaled", "row_moments", "softmin"]

_SOFTMIN, _CMIN, _APPLY, _MOMENTS = range(4)
_GIBBS, _RESCALED = 8, 9


def _laid_out(cost: Tensor) -> tuple[Tensor, bool, bool]:
    """The cost as the kernels read it; whether its columns lie one after the other; whether all problems share it."""
    n, m = cost.shape[-2:]
    shared = all(size == 1 or stride == 0 for size, stride in zip(cost.shape[:-2], cost.stride()))
    if shared:
        cost = cost[(0,) * (cost.dim() - 2)]
    across = cost.stride(-2) == 1 and cost.stride(-1) == n and m > 1 and n > 1
    lying = cost.mT if across else cost
    return lying.contiguous(), across, shared


def _run(
    op: int,
    cost: Tensor,  # (*batch, n, m)
    f: Tensor | None,  # (*batch, n)
    g: Tensor,  # (*batch, m)
    epsilon: Tensor | None,  # (*batch,)
    vectors: Tensor | None = None,  # (*batch, m, k)
    narrow: bool = False,  # `gibbs` in float32
    over: bool = False,  # `gibbs` in the place of the cost
) -> tuple[Tensor, ...]:
    inputs = ((cost, 2), (f, 1), (g, 1), (vectors, 2), (epsilon, 0))
    leads = {t.shape[: t.dim() - dims] for t, dims in inputs if t is not None}
    batch = leads.pop() if len(leads) == 1 else torch.broadcast_shapes(*leads)  # which is slow beside small problems
    n, m = cost.shape[-2:]
    lying, across, shared = _laid_out(cost if cost.dim() == 2 else cost.expand(*batch, n, m))
    if op == _GIBBS and across:
        lying, across = cost.contiguous(), False
    kept = [
        None if t is None else t.expand((*batch, *t.shape[t.dim() - dims :])).contiguous() for t, dims in inputs[1:]
    ]
    k = 0 if vectors is None else vectors.shape[-1]
    dtype = torch.float32 if narrow else g.dtype
    shape = (*batch, n, *{_APPLY: (k,), _GIBBS: (m,)}.get(op, ()))
    if over and not narrow and lying.data_ptr() == cost.data_ptr() and lying.shape == shape:
        out = lying  # an entry is read before its place is written
    else:
        out = torch.empty(shape, dtype=dtype)
    second = None  # the cost, or the index
    if op in (_CMIN, _MOMENTS):
        second = torch.empty((*batch, n), dtype=cost.dtype if op == _MOMENTS else torch.int64)
    addresses = [0 if t is None else t.data_ptr() for t in (lying, *kept, out, second)]
    if narrow or cost.dtype != g.dtype:  # a kernel in float32, written or read
        addresses[-1] = (out if narrow else lying).data_ptr()
    sizes = [batch.numel(), n, m, k]
    assert _native is not None
    if out.numel():
        double = g.dtype == torch.float64
        _native.over_matrix(op, across, shared, double, sizes, addresses, torch.get_num_threads())
    return (out,) if second is None else (out, second)


def softmin(cost: Tensor, h: Tensor, epsilon: Tensor) -> Tensor:
    """See `reference.softmin`."""
    return _run(_SOFTMIN, cost, None, h, epsilon)[0]


def cmin(cost: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.cmin`."""
    values, index = _run(_CMIN, cost, None, h, None)
    return values, index


def apply(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, v: Tensor) -> Tensor:
    """See `reference.apply`."""
    return _run(_APPLY, cost, f, g, epsilon, v)[0]


def row_moments(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, col_term: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.row_moments`."""
    mass, total = _run(_MOMENTS, cost, f, g, epsilon)
    if bool(col_term.any()):
        batch = mass.shape[:-1]
        total = total + apply(cost, f, g, epsilon, col_term.expand(*batch, -1).unsqueeze(-1)).squeeze(-1)
    return mass, total


def gibbs(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, narrow: bool = False, over: bool = False) -> Tensor:
    """See `reference.gibbs`."""
    return _run(_GIBBS, cost, f, g, epsilon, narrow=narrow and cost.dtype == torch.float64, over=over)[0]


def rescaled(kernel: Tensor, f: Tensor, g: Tensor, epsilon: Tensor) -> Tensor:
    """See `reference.rescaled`."""
    return _run(_RESCALED, kernel, f, g, epsilon)[0]


def listed(
    cost: Tensor, f: Tensor, g: Tensor, most: int, limit: float, *, whole: bool, blocks: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `native.listed`; the cost has no batch axes."""
    n, m = cost.shape
    lying, across, _ = _laid_out(cost)
    tensors = lying, None, f.contiguous(), g.contiguous()
    return native.listed(None, tensors, (n, m), most, limit, whole=whole, across=across, blocks=blocks)
