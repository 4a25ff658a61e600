"""Picks the engine for each call: a fused one where it can, the reference elsewhere. Same functions as `reference`.

Native serves tensors on a CPU in float32 or float64 whose cost has a kind it knows (`Pairs.kind`), when the extension
was built. Where a gradient is wanted it serves all kinds but for `matvec` and, of norms, `row_moments`. It takes
`Pairs.blocks` too, in tensors without batch axes. The kind "matrix" has kernels of its own, without gradients.
`support` and `smallest` are native without gradients, for a matrix with blocks too.

Triton's kernels serve the same calls, in bfloat16 too, for tensors on a GPU where Triton is installed, and in its
interpreter (TRITON_INTERPRET=1) for tensors on a CPU where the engine was asked for by name. A cost matrix on a GPU is
the reference's, and so are entries (`support`, `smallest`) of which very many tie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import need
from . import matrix, native, reference
from .build import accuracy, choice, chosen, triton_runs
from .reference import Blocks, Pairs, memory_budget

__all__ = [
    "Blocks",
    "Pairs",
    "apply",
    "cmin",
    "gibbs",
    "matvec",
    "memory_budget",
    "rescaled",
    "row_moments",
    "smallest",
    "softmin",
    "support",
    "use_accuracy",
    "use_engine",
]

ENGINES = ("auto", "reference", "native", "triton")
ACCURACIES = ("ieee", "tf32x3", "tf32")


@contextlib.contextmanager
def use_engine(name: str) -> Iterator[None]:
    """Choose the engine inside a `with` block.

    Args:
        name: "auto", "reference", or "native" or "triton", which raise where that engine cannot serve.

    Raises:
        ValueError: an unknown name.
        MissingExtra: "triton" where it is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"use_engine: expected one of {ENGINES}, got {name!r}")
    if name == "triton":
        need("triton", "gpu", "The engine 'triton'")
    token = choice.set(name)
    try:
        yield
    finally:
        choice.reset(token)


@contextlib.contextmanager
def use_accuracy(name: str) -> Iterator[None]:
    """Choose how Triton's kernels multiply float32 matrices on a GPU, inside a `with` block.

    Backward passes that run outside the block, or on a thread of their own as on a GPU, keep "ieee".

    Args:
        name: "ieee" (the default), the products of float32; "tf32x3", three products on the tensor cores, nearly as
            accurate; or "tf32", one, with three digits.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ACCURACIES:
        raise ValueError(f"use_accuracy: expected one of {ACCURACIES}, got {name!r}")
    token = accuracy.set(name)
    try:
        yield
    finally:
        accuracy.reset(token)


def _recorded(pairs: Pairs, *others: Tensor) -> bool:
    """Whether a gradient is wanted."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*pairs.rows, *pairs.cols, *others))


def _fused(pairs: Pairs, *others: Tensor, grad: bool = True) -> bool:
    """Whether a fused engine takes this call. `grad`: it has derivatives."""
    name = chosen()
    if name == "reference":
        return False
    tensors = [*pairs.rows, *pairs.cols, *others]
    wanted = _recorded(pairs, *others)
    first = tensors[0]
    by_triton = name == "triton" or (name == "auto" and first.is_cuda)
    here = triton_runs(first) if by_triton else first.is_cpu and native.available()
    serves = (
        here
        and pairs.kind in native.KINDS
        and first.dtype in (native.GPU_DTYPES if by_triton else native.DTYPES)
        and all(t.dtype == first.dtype and t.device == first.device for t in tensors)
        and (not wanted or (grad and first.dtype in native.DTYPES))
    )
    if name in ("native", "triton") and not serves:
        where = (
            "Triton, float32, float64 or bfloat16 tensors on a GPU (or on a CPU, with TRITON_INTERPRET=1)"
            if by_triton
            else "a compiled extension, float32 or float64 tensors on a CPU"
        )
        raise RuntimeError(
            f"use_engine({name!r}): expected {where} and a kind of {native.KINDS}, got kind {pairs.kind!r}, "
            f"{first.dtype} on {first.device}, {'with' if wanted else 'without'} gradients. Use 'auto'."
        )
    return serves


def _given(pairs: Pairs, *others: Tensor, blocks: bool = False) -> bool:
    """Whether the native engine takes this call over a cost matrix that is there. `blocks`: some of its entries too."""
    if pairs.kind != "matrix":
        return False
    if pairs.blocks is not None and not blocks:
        return False
    return _over_matrix(pairs.rows[0], *others)


def _over_matrix(cost: Tensor, *others: Tensor) -> bool:
    """Whether the native engine takes a call over this matrix."""
    tensors = cost, *others
    return (
        chosen() in ("auto", "native")
        and native.available()
        and cost.dtype in native.DTYPES
        and all(t.dtype == cost.dtype and t.is_cpu for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.compiler.is_compiling()
    )


def _epsilon(epsilon: float | Tensor, like: Tensor) -> Tensor:
    return epsilon.to(like) if isinstance(epsilon, Tensor) else like.new_full((), epsilon)  # no copy from the host


def _how(pairs: Pairs) -> tuple[str, Tensor | None, Tensor | None]:
    """The last arguments of a native operator."""
    blocks = pairs.blocks
    return (pairs.kind, None, None) if blocks is None else (pairs.kind, blocks.packed, blocks.T.packed)


def _has_gradient(pairs: Pairs, epsilon: Tensor) -> bool:
    """False where the columns of one block meet rows of several epsilons."""
    return pairs.blocks is None or epsilon.dim() == 0 or pairs.blocks.is_diagonal


def _apart(pairs: Pairs, epsilon: Tensor, *others: Tensor) -> bool:
    """Whether a gradient is wanted where each row block, of a diagonal, has an epsilon of its own."""
    return pairs.blocks is not None and epsilon.dim() == 1 and _recorded(pairs, epsilon, *others)


class _Divided:
    """Many problems divided each by its epsilon, so that all have epsilon 1: the operators differentiate for one."""

    def __init__(self, pairs: Pairs, epsilon: Tensor) -> None:
        blocks = pairs.blocks
        assert blocks is not None
        self.per_row, self.per_col = (
            epsilon.repeat_interleave(starts.diff().to(epsilon.device))
            for starts in (blocks.row_starts, blocks.col_starts)
        )
        rows, cols = pairs.rows[0] / self.per_row.unsqueeze(-1), pairs.cols[0]
        if pairs.kind != "dot":  # a norm is homogeneous in both
            cols = cols / self.per_col.unsqueeze(-1)
        self.pairs = pairs._replace(rows=(rows,), cols=(cols,))

    @staticmethod
    def potential(h: Tensor, per_line: Tensor) -> Tensor:
        finite = torch.isfinite(h)  # -inf stays, without a derivative in epsilon
        return torch.where(finite, torch.where(finite, h, 0) / per_line, h)


def softmin(pairs: Pairs, h: Tensor, epsilon: float | Tensor) -> Tensor:
    """See `reference.softmin`."""
    epsilon = _epsilon(epsilon, h)
    if _given(pairs, h, epsilon):
        return matrix.softmin(pairs.rows[0], h, epsilon)
    if not _fused(pairs, h, epsilon, grad=_has_gradient(pairs, epsilon)):
        return reference.softmin(pairs, h, epsilon)
    if _apart(pairs, epsilon, h):
        one = _Divided(pairs, epsilon)
        return one.per_row * softmin(one.pairs, one.potential(h, one.per_col), 1.0)
    return native.softmin(pairs.rows[0], pairs.cols[0], h, epsilon, *_how(pairs))


def cmin(pairs: Pairs, h: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.cmin`."""
    if _given(pairs, h):
        return matrix.cmin(pairs.rows[0], h)
    if not _fused(pairs, h):
        return reference.cmin(pairs, h)
    return native.cmin(pairs.rows[0], pairs.cols[0], h, *_how(pairs))


def apply(pairs: Pairs, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor) -> Tensor:
    """See `reference.apply`."""
    epsilon = _epsilon(epsilon, f)
    if _given(pairs, f, g, epsilon, v):
        return matrix.apply(pairs.rows[0], f, g, epsilon, v)
    if not _fused(pairs, f, g, epsilon, v, grad=_has_gradient(pairs, epsilon)):
        return reference.apply(pairs, f, g, epsilon, v)
    if _apart(pairs, epsilon, f, g, v):
        one = _Divided(pairs, epsilon)
        return apply(one.pairs, one.potential(f, one.per_row), one.potential(g, one.per_col), 1.0, v)
    return native.apply(pairs.rows[0], pairs.cols[0], f, g, epsilon, v, *_how(pairs))


def row_moments(pairs: Pairs, f: Tensor, g: Tensor, epsilon: float | Tensor, col_term: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.row_moments`."""
    epsilon = _epsilon(epsilon, f)
    if _given(pairs, f, g, epsilon, col_term):
        return matrix.row_moments(pairs.rows[0], f, g, epsilon, col_term)
    if not _fused(pairs, f, g, epsilon, col_term, grad=pairs.kind == "dot" and _has_gradient(pairs, epsilon)):
        return reference.row_moments(pairs, f, g, epsilon, col_term)
    rows, cols = pairs.rows[0], pairs.cols[0]
    if not _recorded(pairs, f, g, epsilon, col_term):
        return native.row_moments(rows, cols, f, g, epsilon, col_term, *_how(pairs))
    batch = torch.broadcast_shapes(cols.shape[:-2], col_term.shape[:-1])
    term = col_term.expand(*batch, -1).unsqueeze(-1)
    vectors = torch.cat([torch.ones_like(term), term, cols.expand(*batch, *cols.shape[-2:])], -1)
    sums = apply(pairs, f, g, epsilon, vectors)
    return sums[..., 0], sums[..., 1] - (rows * sums[..., 2:]).sum(-1)


def matvec(pairs: Pairs, v: Tensor) -> Tensor:
    """See `reference.matvec`. For the kind "dot" it is two small products, on any device."""
    if pairs.kind == "dot" and pairs.blocks is None and chosen() != "reference":
        rows, cols, v64 = pairs.rows[0], pairs.cols[0], v.to(torch.float64)
        moment = cols.to(torch.float64).mT @ v64.unsqueeze(-1)
        return -(rows.to(torch.float64) @ moment).squeeze(-1).to(v.dtype)
    if pairs.kind == "matrix" and pairs.blocks is None and chosen() != "reference":
        return (pairs.rows[0] @ v.unsqueeze(-1)).squeeze(-1)
    if not _fused(pairs, v, grad=False):
        return reference.matvec(pairs, v)
    return native.matvec(pairs.rows[0], pairs.cols[0], v, *_how(pairs))


def _entries(
    pairs: Pairs, f: Tensor, g: Tensor, most: int | None, limit: float = torch.inf, *, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What a fused engine lists, or None where the reference serves."""
    if torch.compiler.is_compiling():
        return None
    packed = None if pairs.blocks is None else pairs.blocks.packed
    most = pairs.shape[1] if most is None else most
    if _given(pairs, f, g, blocks=True):
        return matrix.listed(pairs.rows[0], f, g, most, limit, whole=whole, blocks=packed)
    if not _fused(pairs, f, g, grad=False):
        return None
    tensors = pairs.rows[0].contiguous(), pairs.cols[0].contiguous(), f.contiguous(), g.contiguous()
    if pairs.rows[0].is_cuda or chosen() == "triton":
        from . import triton_pairs  # which imports Triton

        return triton_pairs.listed(pairs.kind, tensors, pairs.shape, most, limit, whole=whole, blocks=packed)
    return native.listed(pairs.kind, tensors, pairs.shape, most, limit, whole=whole, blocks=packed)


def support(
    pairs: Pairs, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.support`."""
    found = _entries(pairs, f, g, max_per_row, threshold)
    return reference.support(pairs, f, g, threshold, max_per_row) if found is None else found


def smallest(pairs: Pairs, f: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.smallest`."""
    found = _entries(pairs, f, g, k, whole=True)
    return reference.smallest(pairs, f, g, k) if found is None else found


def gibbs(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, narrow: bool = False, over: bool = False) -> Tensor:
    """See `reference.gibbs`."""
    how = matrix if _over_matrix(cost, f, g, epsilon) else reference
    return how.gibbs(cost, f, g, epsilon, narrow, over)


def rescaled(kernel: Tensor, f: Tensor, g: Tensor, epsilon: Tensor) -> Tensor:
    """See `reference.rescaled`."""
    narrow = kernel.dtype == torch.float32 and g.dtype == torch.float64
    how = matrix if _over_matrix(g if narrow else kernel, f, g, epsilon) and kernel.is_cpu else reference
    return how.rescaled(kernel, f, g, epsilon)
