"""Picks the engine for each call: native where it can, the reference elsewhere. Same functions as `reference`.

Native serves tensors on a CPU in float32 or float64 whose cost has a kind it knows (`Pairs.kind`), when the extension
was built. Where a gradient is wanted it serves the kind "dot"; the other kinds go to the reference then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from . import native, reference
from .reference import Pairs, memory_budget, smallest, support

__all__ = [
    "Pairs",
    "apply",
    "cmin",
    "matvec",
    "memory_budget",
    "row_moments",
    "smallest",
    "softmin",
    "support",
    "use_engine",
]

_choice: ContextVar[str] = ContextVar("brenier_engine", default="auto")


@contextlib.contextmanager
def use_engine(name: str) -> Iterator[None]:
    """Choose the engine inside a `with` block.

    Args:
        name: "auto", "reference", or "native", which raises where the native engine cannot serve.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ("auto", "reference", "native"):
        raise ValueError(f"use_engine: expected 'auto', 'reference' or 'native', got {name!r}")
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


def _chosen() -> str:
    # torch.compile cannot trace a ContextVar: what it compiles is "auto"
    return "auto" if torch.compiler.is_compiling() else _choice.get()


def _native(pairs: Pairs, *others: Tensor | float, grad: bool = True) -> bool:
    """Whether the native engine takes this call. `grad`: it has derivatives for the kind "dot"."""
    choice = _chosen()
    if choice == "reference":
        return False
    tensors = [*pairs.rows, *pairs.cols, *(t for t in others if isinstance(t, Tensor))]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    first = tensors[0]
    serves = (
        native.available()
        and pairs.kind in native.KINDS
        and first.dtype in native.DTYPES
        and all(t.dtype == first.dtype and t.is_cpu for t in tensors)
        and (not wanted or (grad and pairs.kind == "dot"))
    )
    if choice == "native" and not serves:
        raise RuntimeError(
            f"use_engine('native'): expected a compiled extension, float32 or float64 tensors on a CPU and a kind of "
            f"{native.KINDS} ('dot' for gradients), got kind {pairs.kind!r}, {first.dtype} on {first.device}, "
            f"{'with' if wanted else 'without'} gradients. Use 'auto'."
        )
    return serves


def _epsilon(epsilon: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(epsilon, dtype=like.dtype, device=like.device)


def softmin(pairs: Pairs, h: Tensor, epsilon: float | Tensor) -> Tensor:
    """See `reference.softmin`."""
    epsilon = _epsilon(epsilon, h)
    if not _native(pairs, h, epsilon):
        return reference.softmin(pairs, h, epsilon)
    return native.softmin(pairs.rows[0], pairs.cols[0], h, epsilon, pairs.kind)


def cmin(pairs: Pairs, h: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.cmin`."""
    if not _native(pairs, h):
        return reference.cmin(pairs, h)
    return native.cmin(pairs.rows[0], pairs.cols[0], h, pairs.kind)


def apply(pairs: Pairs, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor) -> Tensor:
    """See `reference.apply`."""
    epsilon = _epsilon(epsilon, f)
    if not _native(pairs, f, g, epsilon, v):
        return reference.apply(pairs, f, g, epsilon, v)
    return native.apply(pairs.rows[0], pairs.cols[0], f, g, epsilon, v, pairs.kind)


def row_moments(pairs: Pairs, f: Tensor, g: Tensor, epsilon: float | Tensor, col_term: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.row_moments`."""
    epsilon = _epsilon(epsilon, f)
    if not _native(pairs, f, g, epsilon, col_term):
        return reference.row_moments(pairs, f, g, epsilon, col_term)
    rows, cols = pairs.rows[0], pairs.cols[0]
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (rows, cols, f, g, epsilon, col_term))):
        return native.row_moments(rows, cols, f, g, epsilon, col_term, pairs.kind)
    batch = torch.broadcast_shapes(cols.shape[:-2], col_term.shape[:-1])
    term = col_term.expand(*batch, -1).unsqueeze(-1)
    vectors = torch.cat([torch.ones_like(term), term, cols.expand(*batch, *cols.shape[-2:])], -1)
    sums = native.apply(rows, cols, f, g, epsilon, vectors, pairs.kind)
    return sums[..., 0], sums[..., 1] - (rows * sums[..., 2:]).sum(-1)


def matvec(pairs: Pairs, v: Tensor) -> Tensor:
    """See `reference.matvec`. For the kind "dot" it is two small products, on any device."""
    if pairs.kind == "dot" and _chosen() != "reference":
        rows, cols, v64 = pairs.rows[0], pairs.cols[0], v.to(torch.float64)
        moment = cols.to(torch.float64).mT @ v64.unsqueeze(-1)
        return -(rows.to(torch.float64) @ moment).squeeze(-1).to(v.dtype)
    if not _native(pairs, v, grad=False):
        return reference.matvec(pairs, v)
    return native.matvec(pairs.rows[0], pairs.cols[0], v, pairs.kind)
