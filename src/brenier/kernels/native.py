r"""The fused engines: sums and minima over all pairs in O(n + m) memory, as `torch.library` operators.

On a CPU they are the compiled extension, the native engine; on a GPU, and in Triton's interpreter where that was asked
for, the kernels of `triton_pairs`.

A cost is named by its kind: "dot" is c_ij = -<u_i, v_j>, which every inner-product cost becomes, and "l1", "l2" and
"linf" are norms of differences. P_ij = exp((f_i + g_j - c_ij) / epsilon) throughout.

| operator | result | derivatives |
|---|---|---|
| `brenier::softmin` | -eps log sum_j exp((h_j - c_ij) / eps) | three times for "dot", once for norms |
| `brenier::cmin` | min_j (c_ij - h_j) and its first index | any order |
| `brenier::apply` | sum_j P_ij v_j | twice for "dot", once for norms |
| `brenier::weighted_apply` | sum_j P_ij <left_i, right_j> v_j | once, for "dot" |
| `brenier::slope` | sum_j P_ij <left_i, right_j> dc_ij/dx_i, for norms | none |
| `brenier::row_moments` | sum_j P_ij and sum_j P_ij (c_ij + t_j) | none: `engine.row_moments` writes it with `apply` |
| `brenier::matvec` | sum_j c_ij v_j | none: for "dot" it is two small products |

`listed` gives the entries of small reduced cost, `support` and `smallest`; it is no operator, as it has no derivatives.

The gradient of one operator is made of others: no n x m memory in any pass. Further derivatives for norms are those of
the reference.

The last two arguments of all say which pairs there are (`reference.Blocks.packed`), seen from the rows and from the
columns; then there are no batch axes, and epsilon is one number, or one for each row block where no gradient is wanted.
With them softmin differentiates twice, apply once and weighted_apply never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import refuse
from . import reference
from .build import chosen
from .build import native as _native

__all__ = ["DTYPES", "GPU_DTYPES", "KINDS", "available"]

KINDS = ("dot", "l1", "l2", "linf")
DTYPES = (torch.float32, torch.float64)
GPU_DTYPES = (*DTYPES, torch.bfloat16)

_SOFTMIN, _CMIN, _APPLY, _MOMENTS, _MATVEC, _SLOPE = range(6)


def available() -> bool:
    """Whether the compiled extension was found."""
    return _native is not None


def _dense(t: Tensor, batch: torch.Size, event_dims: int) -> tuple[Tensor, int]:
    """Dense problems one after the other and the step between them; one problem and step 0 when all share it."""
    lead = t.dim() - event_dims
    if all(size == 1 or stride == 0 for size, stride in zip(t.shape[:lead], t.stride())):
        return t[(0,) * lead].contiguous(), 0
    t = t.expand(*batch, *t.shape[lead:]).contiguous()
    return t, t.shape[lead:].numel()


# Axes of one problem in the arguments of `_run`, and the axis that has the length of the rows (0) or columns (1).
_AXES = (("rows", 2, 0), ("cols", 2, 1), ("f", 1, 0), ("g", 1, 1), ("vectors", 2, 1), ("left", 2, 0), ("right", 2, 1),
         ("term", 1, 1), ("epsilon", 0, 0))  # fmt: skip


def _aligned(inputs: tuple[Tensor | None, ...], listed: _Blocks) -> tuple[torch.Size, list[Tensor | None], list[int]]:
    """The batch that arguments in the order of `_AXES` make, each laid out densely, and the steps between problems."""
    rows, cols, left, right, epsilon = (inputs[i] for i in (0, 1, 5, 6, 8))
    assert rows is not None
    assert cols is not None
    lengths, d = (rows.shape[-2], cols.shape[-2]), rows.shape[-1]
    alone = True
    for t, (name, dims, side) in zip(inputs, _AXES):
        if t is None:
            continue
        if t.dtype != rows.dtype or t.device != rows.device:
            raise TypeError(
                f"fused kernels: expected {name} of {rows.dtype} on {rows.device}, got {t.dtype} on {t.device}"
            )
        if dims and t.shape[-dims] != lengths[side]:
            raise ValueError(f"fused kernels: expected {name} of length {lengths[side]}, got shape {tuple(t.shape)}")
        alone = alone and t.dim() == dims
    if cols.shape[-1] != d or (left is not None and right is not None and left.shape[-1] != right.shape[-1]):
        raise ValueError("fused kernels: expected the same number of coordinates on both sides")
    if listed is not None and any(t.dim() > max(dims, 1) for t, (_, dims, _) in zip(inputs, _AXES) if t is not None):
        raise ValueError("fused kernels: expected no batch axes with blocks")
    if listed is not None and epsilon is not None and epsilon.dim() and epsilon.numel() != int(listed[0]):
        raise ValueError(f"fused kernels: expected {int(listed[0])} numbers epsilon, got {epsilon.numel()}")
    shapes = [t.shape[: t.dim() - dims] for t, (_, dims, _) in zip(inputs, _AXES) if t is not None and not alone]
    batch = torch.broadcast_shapes(*shapes) if shapes and listed is None else torch.Size()
    arrays: list[Tensor | None] = []
    steps = []
    for t, (_, dims, _) in zip(inputs, _AXES):
        step = 0
        if t is not None:
            t, step = (t.contiguous(), t.dim() - dims) if alone or listed is not None else _dense(t, batch, dims)
        arrays.append(t)
        steps.append(step)
    return batch, arrays, steps


def _run(
    op: int,
    kind: str,
    rows: Tensor,  # (*batch, n, d)
    cols: Tensor,  # (*batch, m, d)
    f: Tensor | None = None,  # (*batch, n)
    g: Tensor | None = None,  # (*batch, m)
    vectors: Tensor | None = None,  # (*batch, m, k)
    left: Tensor | None = None,  # (*batch, n, r)
    right: Tensor | None = None,  # (*batch, m, r)
    term: Tensor | None = None,  # (*batch, m)
    epsilon: Tensor | None = None,  # (*batch,)
    blocks: tuple[_Blocks, ...] = (),  # `reference.Blocks.packed`; then no batch, and epsilon may be (row blocks,)
) -> tuple[Tensor, ...]:
    """Call the extension, or Triton's kernels; batch axes broadcast."""
    inputs = (rows, cols, f, g, vectors, left, right, term, epsilon)
    packed = blocks[0] if blocks else None
    batch, arrays, steps = _aligned(inputs, packed)
    n, m = rows.shape[-2], cols.shape[-2]
    k = 0 if vectors is None else vectors.shape[-1]
    r = 0 if left is None else left.shape[-1]
    trailing = {_APPLY: (k,), _SLOPE: (rows.shape[-1],)}.get(op, ())
    out = rows.new_empty((*batch, n, *trailing))
    second = None  # the cost, or the index
    if op in (_CMIN, _MOMENTS):
        second = rows.new_empty((*batch, n), dtype=rows.dtype if op == _MOMENTS else torch.int64)
    if not (out.numel() and m):  # an empty minimum or sum
        out.fill_(torch.inf if op in (_SOFTMIN, _CMIN) else 0)
        if second is not None:
            second.zero_()
    elif rows.is_cuda or chosen() == "triton":
        from . import triton_pairs  # which imports Triton

        triton_pairs.run(op, kind, arrays, steps, batch.numel(), packed, out, second)
    else:
        sizes = [batch.numel(), n, m, rows.shape[-1], k, r, 0 if packed is None else packed.numel()]
        addresses = [0 if t is None else t.data_ptr() for t in (*arrays, out, second, packed)]
        threads = torch.get_num_threads()
        assert _native is not None
        _native.pairwise(op, KINDS.index(kind), rows.dtype == torch.float64, sizes, addresses, steps, threads)
    return (out,) if second is None else (out, second)


def listed(
    kind: str | None,  # None: over a matrix, (n, m), or (m, n) if `across`
    tensors: tuple[Tensor, Tensor | None, Tensor, Tensor],  # rows or the matrix, columns, f, g: contiguous
    shape: tuple[int, int],
    most: int,
    limit: float = torch.inf,
    *,
    whole: bool = False,
    across: bool = False,
    blocks: _Blocks = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and values of the entries c_ij - f_i - g_j <= limit.

    Args:
        most: only so many smallest of each row, or of all if `whole`, which then are ascending.

    Returns:
        As `reference.support`, or `reference.smallest`; ties by row and column. O(n m d) time, O(n + m) memory
        and that of the result, up to twice.
    """
    rows, cols, f, g = tensors
    if most < 0:
        refuse("the number of entries", "at least 0", str(most))
    n, m = shape
    expected = [("f", f, (n,)), ("g", g, (m,)), ("rows", rows, (m, n) if across else (n, rows.shape[-1]))]
    if cols is not None:
        expected.append(("cols", cols, (m, rows.shape[-1])))
    for name, t, wanted in expected:
        if t.dtype != rows.dtype or not t.is_cpu or t.shape != wanted:
            raise ValueError(
                f"native kernels: expected {name} {wanted} of {rows.dtype}, got {tuple(t.shape)}, {t.dtype}"
            )
    limit = float(torch.tensor(limit, dtype=torch.float64).to(rows.dtype))  # what a comparison with a tensor does
    given = (*tensors, blocks)
    sizes = [n, m, rows.shape[-1], most, 0 if blocks is None else blocks.numel()]
    addresses = [0 if t is None else t.data_ptr() for t in given]
    assert _native is not None
    number, double = -1 if kind is None else KINDS.index(kind), rows.dtype == torch.float64
    found = _native.entries(whole, number, across, double, sizes, addresses, limit, torch.get_num_threads())
    i, j = (torch.empty(found.count, dtype=torch.int64) for _ in range(2))
    values = torch.empty(found.count, dtype=rows.dtype)
    found.take(i.data_ptr(), j.data_ptr(), values.data_ptr())
    return i, j, values


# The operators. `Library.define` rather than `custom_op`: a call costs a third, which counts for small problems.

_library = torch.library.Library("brenier", "DEF")
_P = "Tensor rows, Tensor cols, "
_K = "str kind, Tensor? blocks=None, Tensor? back=None"  # which pairs there are, seen from the rows and the columns
_library.define(f"softmin({_P}Tensor h, Tensor epsilon, {_K}) -> Tensor")
_library.define(f"cmin({_P}Tensor h, {_K}) -> (Tensor, Tensor)")
_library.define(f"apply({_P}Tensor f, Tensor g, Tensor epsilon, Tensor v, {_K}) -> Tensor")
_library.define(
    f"weighted_apply({_P}Tensor f, Tensor g, Tensor epsilon, Tensor left, Tensor right, Tensor v, {_K}) -> Tensor"
)
_library.define(f"slope({_P}Tensor f, Tensor g, Tensor epsilon, Tensor? left, Tensor? right, {_K}) -> Tensor")
_library.define(f"row_moments({_P}Tensor f, Tensor g, Tensor epsilon, Tensor term, {_K}) -> (Tensor, Tensor)")
_library.define(f"matvec({_P}Tensor v, {_K}) -> Tensor")

_Blocks = Tensor | None  # the last two arguments, which need not be there


def _softmin_call(rows: Tensor, cols: Tensor, h: Tensor, epsilon: Tensor, kind: str, *blocks: _Blocks) -> Tensor:
    return _run(_SOFTMIN, kind, rows, cols, g=h, epsilon=epsilon, blocks=blocks)[0]


def _cmin_call(rows: Tensor, cols: Tensor, h: Tensor, kind: str, *blocks: _Blocks) -> tuple[Tensor, ...]:
    return _run(_CMIN, kind, rows, cols, g=h, blocks=blocks)


def _apply_call(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, v: Tensor, kind: str, *blocks: _Blocks
) -> Tensor:
    return _run(_APPLY, kind, rows, cols, f=f, g=g, epsilon=epsilon, vectors=v, blocks=blocks)[0]


def _weighted_apply_call(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, left: Tensor, right: Tensor, v: Tensor,
    kind: str, *blocks: _Blocks,
) -> Tensor:  # fmt: skip
    out = _run(_APPLY, kind, rows, cols, f=f, g=g, epsilon=epsilon, left=left, right=right, vectors=v, blocks=blocks)
    return out[0]


def _slope_call(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, left: Tensor | None, right: Tensor | None,
    kind: str, *blocks: _Blocks,
) -> Tensor:  # fmt: skip
    if kind == "dot":
        raise ValueError("native kernels: expected the kind of a norm for slope, got 'dot', whose slopes `apply` gives")
    return _run(_SLOPE, kind, rows, cols, f=f, g=g, epsilon=epsilon, left=left, right=right, blocks=blocks)[0]


def _row_moments_call(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, term: Tensor, kind: str, *blocks: _Blocks
) -> tuple[Tensor, ...]:
    return _run(_MOMENTS, kind, rows, cols, f=f, g=g, epsilon=epsilon, term=term, blocks=blocks)


def _matvec_call(rows: Tensor, cols: Tensor, v: Tensor, kind: str, *blocks: _Blocks) -> Tensor:
    return _run(_MATVEC, kind, rows, cols, vectors=v.unsqueeze(-1), blocks=blocks)[0]


for _name, _function in (
    ("softmin", _softmin_call),
    ("cmin", _cmin_call),
    ("apply", _apply_call),
    ("weighted_apply", _weighted_apply_call),
    ("slope", _slope_call),
    ("row_moments", _row_moments_call),
    ("matvec", _matvec_call),
):
    _library.impl(_name, _function, "CPU")
    _library.impl(_name, _function, "CUDA")

softmin = torch.ops.brenier.softmin.default
cmin = torch.ops.brenier.cmin.default
apply = torch.ops.brenier.apply.default
weighted_apply = torch.ops.brenier.weighted_apply.default
slope = torch.ops.brenier.slope.default
row_moments = torch.ops.brenier.row_moments.default
matvec = torch.ops.brenier.matvec.default


# Shapes without data


def _row_shape(rows: Tensor, cols: Tensor, *others: tuple[Tensor, int]) -> tuple[int, ...]:
    batches = [rows.shape[:-2], cols.shape[:-2], *(t.shape[: t.dim() - dims] for t, dims in others)]
    return (*torch.broadcast_shapes(*batches), rows.shape[-2])


def _problems(epsilon: Tensor, blocks: tuple[_Blocks, ...]) -> tuple[tuple[Tensor, int], ...]:
    """Epsilon as it counts for the batch: with blocks it may be one for each, which is no batch."""
    return () if blocks and blocks[0] is not None else ((epsilon, 0),)


def _softmin_fake(rows: Tensor, cols: Tensor, h: Tensor, epsilon: Tensor, kind: str, *blocks: _Blocks) -> Tensor:
    return rows.new_empty(_row_shape(rows, cols, (h, 1), *_problems(epsilon, blocks)))


def _cmin_fake(rows: Tensor, cols: Tensor, h: Tensor, kind: str, *blocks: _Blocks) -> tuple[Tensor, Tensor]:
    shape = _row_shape(rows, cols, (h, 1))
    return rows.new_empty(shape), rows.new_empty(shape, dtype=torch.int64)


def _apply_fake(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, v: Tensor, kind: str, *blocks: _Blocks
) -> Tensor:
    return rows.new_empty((*_row_shape(rows, cols, (f, 1), (g, 1), *_problems(epsilon, blocks), (v, 2)), v.shape[-1]))


def _weighted_apply_fake(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, left: Tensor, right: Tensor, v: Tensor,
    kind: str, *blocks: _Blocks,
) -> Tensor:  # fmt: skip
    shape = _row_shape(rows, cols, (f, 1), (g, 1), *_problems(epsilon, blocks), (left, 2), (right, 2), (v, 2))
    return rows.new_empty((*shape, v.shape[-1]))


def _slope_fake(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, left: Tensor | None, right: Tensor | None,
    kind: str, *blocks: _Blocks,
) -> Tensor:  # fmt: skip
    weights = [(t, 2) for t in (left, right) if t is not None]
    shape = _row_shape(rows, cols, (f, 1), (g, 1), *_problems(epsilon, blocks), *weights)
    return rows.new_empty((*shape, rows.shape[-1]))


def _row_moments_fake(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, term: Tensor, kind: str, *blocks: _Blocks
) -> tuple[Tensor, Tensor]:
    shape = _row_shape(rows, cols, (f, 1), (g, 1), *_problems(epsilon, blocks), (term, 1))
    return rows.new_empty(shape), rows.new_empty(shape)


def _matvec_fake(rows: Tensor, cols: Tensor, v: Tensor, kind: str, *blocks: _Blocks) -> Tensor:
    return rows.new_empty(_row_shape(rows, cols, (v, 1)))


for _name, _fake in (
    ("softmin", _softmin_fake),
    ("cmin", _cmin_fake),
    ("apply", _apply_fake),
    ("weighted_apply", _weighted_apply_fake),
    ("slope", _slope_fake),
    ("row_moments", _row_moments_fake),
    ("matvec", _matvec_fake),
):
    torch.library.register_fake(f"brenier::{_name}", _fake, lib=_library)


# Derivatives: with z_ij = (f_i + g_j - c_ij) / epsilon, P = exp(z)


def _further(ctx: Any) -> bool:
    """Whether a derivative of the derivative will be wanted, of a norm: the reference has all orders."""
    return ctx.kind != "dot" and torch.is_grad_enabled()


def _by_reference(
    ctx: Any, operation: Callable[..., Tensor], grad: Tensor, rows: Tensor, cols: Tensor, *others: Tensor
) -> tuple[Tensor | None, ...]:
    packed = ctx.pattern[0]
    order = {"l1": 1.0, "l2": 2.0, "linf": torch.inf}[ctx.kind]

    def block(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Tensor:
        delta = x[0].unsqueeze(-2) - y[0].unsqueeze(-3)
        if order != 2:
            return torch.linalg.vector_norm(delta, ord=order, dim=-1)
        square = delta.square().sum(-1)  # the norm of torch has no second derivative at zero, where ours are zero
        apart = square > 0
        return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)

    blocks = None if packed is None else reference.Blocks.unpack(packed)
    pairs = reference.Pairs((rows,), (cols,), block, (rows.shape[-2], cols.shape[-2]), ctx.kind, blocks)
    out = operation(pairs, *others)
    inputs = (rows, cols, *others)
    wanted = [t for t in inputs if t.requires_grad]
    got = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True))
    return *(next(got) if t.requires_grad else None for t in inputs), None, None, None


def _slopes(kind: str, delta: Tensor) -> Tensor:
    """Derivative of the norm of delta (..., d), one of the subgradients where there are several."""
    if kind == "l1":
        return delta.sign()
    if kind == "l2":
        norm = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
        return delta / torch.where(norm > 0, norm, 1)
    largest = delta.abs() == delta.abs().amax(-1, keepdim=True)
    return torch.where(largest, delta.sign(), 0) / largest.sum(-1, keepdim=True)


def _seen(ctx: Any) -> tuple[str, _Blocks, _Blocks]:
    """The last arguments of an operator that sees the pairs as this one."""
    blocks, back = ctx.pattern
    return ctx.kind, blocks, back


def _seen_back(ctx: Any) -> tuple[str, _Blocks, _Blocks]:
    """The last arguments of an operator whose rows are the columns of this one."""
    blocks, back = ctx.pattern
    return ctx.kind, back, blocks


def _finite(t: Tensor) -> Tensor:
    """Entries without mass count for nothing, where 0 * -inf would be NaN."""
    return torch.where(torch.isfinite(t), t, 0)


def _fit(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    """Sum a gradient over the batch axes that were broadcast."""
    return None if gradient is None else gradient.sum_to_size(like.shape)


def _save_softmin(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.kind, blocks, back = inputs
    ctx.pattern = blocks, back  # not saved tensors: a checkpoint unpacks these once, and helpers read the pattern
    ctx.save_for_backward(*tensors, output)


def _softmin_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, cols, h, epsilon, out = ctx.saved_tensors
    if _further(ctx):
        return _by_reference(ctx, reference.softmin, grad, rows, cols, h, epsilon)
    f = torch.where(torch.isfinite(out), out, -torch.inf)  # now P is a row-stochastic matrix; rows without mass are 0
    need_rows, need_cols, need_h, need_epsilon, *_ = ctx.needs_input_grad
    d_rows = d_cols = d_h = d_epsilon = None
    weight = grad.unsqueeze(-1)
    if ctx.kind != "dot":
        if need_rows:
            d_rows = weight * slope(rows, cols, f, h, epsilon, None, None, *_seen(ctx))
        if need_cols:
            ones = cols.new_ones((cols.shape[-2], 1))
            d_cols = slope(cols, rows, h, f, epsilon, ones, weight, *_seen_back(ctx))
        if need_h:
            d_h = -apply(cols, rows, h, f, epsilon, weight, *_seen_back(ctx))[..., 0]
        if need_epsilon:
            _, cost = row_moments(rows, cols, f, h, epsilon, -_finite(h), *_seen(ctx))
            d_epsilon = (grad * (_finite(out) - cost)).sum(-1) / epsilon
        return _fit(d_rows, rows), _fit(d_cols, cols), _fit(d_h, h), _fit(d_epsilon, epsilon), None, None, None
    if need_cols:
        back = apply(cols, rows, h, f, epsilon, torch.cat([weight, weight * rows], -1), *_seen_back(ctx))
        d_h, d_cols = -back[..., 0], -back[..., 1:]
    elif need_h:
        d_h = -apply(cols, rows, h, f, epsilon, weight, *_seen_back(ctx))[..., 0]
    if need_rows or need_epsilon:
        values = torch.cat([cols, _finite(h).unsqueeze(-1).expand(*_lead(h, cols, 1, 2), -1, 1)], -1)
        mean = apply(rows, cols, f, h, epsilon, values, *_seen(ctx))
        d_rows = -weight * mean[..., :-1]
        if need_epsilon:
            energy = _finite(out) + mean[..., -1] + (rows * mean[..., :-1]).sum(-1)
            d_epsilon = (grad * energy).sum(-1) / epsilon
    return _fit(d_rows, rows), _fit(d_cols, cols), _fit(d_h, h), _fit(d_epsilon, epsilon), None, None, None


def _lead(a: Tensor, b: Tensor, a_dims: int, b_dims: int) -> torch.Size:
    return torch.broadcast_shapes(a.shape[: a.dim() - a_dims], b.shape[: b.dim() - b_dims])


def _save_cmin(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.kind, blocks, back = inputs
    ctx.pattern = blocks, back  # not saved tensors: a checkpoint unpacks these once, and helpers read the pattern
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _cmin_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    rows, cols, h, values, index = ctx.saved_tensors
    grad = torch.where(torch.isfinite(values), grad, 0)  # a row that meets nothing depends on nothing
    batch, (m, d) = index.shape[:-1], cols.shape[-2:]
    where = index.unsqueeze(-1).expand(*index.shape, d)
    nearest = cols.expand(*batch, m, d).gather(-2, where)
    slopes = _slopes(ctx.kind, rows - nearest) if ctx.kind != "dot" else None
    d_rows = grad.unsqueeze(-1) * (-nearest if slopes is None else slopes)
    d_cols = rows.new_zeros((*batch, m, d)).scatter_add(
        -2, where, -grad.unsqueeze(-1) * (rows if slopes is None else slopes)
    )
    d_h = rows.new_zeros((*batch, m)).scatter_add(-1, index, -grad)
    return _fit(d_rows, rows), _fit(d_cols, cols), _fit(d_h, h), None, None, None


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, cols, f, g, epsilon, v, out = ctx.saved_tensors
    if _further(ctx):
        return _by_reference(ctx, reference.apply, grad, rows, cols, f, g, epsilon, v)
    scale = epsilon.unsqueeze(-1)  # for (*batch, n)
    back = apply(cols, rows, g, f, epsilon, grad, *_seen_back(ctx))  # P^T grad, (*batch, m, k)
    d_f = (grad * out).sum(-1) / scale
    d_g = (v * back).sum(-1) / scale
    need_rows, need_cols, _, _, need_epsilon, *_ = ctx.needs_input_grad
    d_rows = d_cols = d_epsilon = None
    norm = ctx.kind != "dot"
    if norm and (need_rows or need_epsilon):
        d_rows = -slope(rows, cols, f, g, epsilon, grad, v, *_seen(ctx)) / scale.unsqueeze(-1)
    if norm and (need_cols or need_epsilon):
        d_cols = -slope(cols, rows, g, f, epsilon, v, grad, *_seen_back(ctx)) / scale.unsqueeze(-1)
    if not norm and (need_rows or need_epsilon):
        d_rows = _weighted(rows, cols, f, g, epsilon, grad, v, cols, *_seen(ctx)) / scale.unsqueeze(-1)
    if not norm and need_cols:
        d_cols = _weighted(cols, rows, g, f, epsilon, v, grad, rows, *_seen_back(ctx)) / scale.unsqueeze(-1)
    if need_epsilon:
        assert d_rows is not None
        terms = (_finite(f) * d_f).sum(-1) + (_finite(g) * d_g).sum(-1) + (rows * d_rows).sum((-1, -2))
        if norm:  # c = <x - y, dc/dx>, by Euler's theorem
            assert d_cols is not None
            terms = terms + (cols * d_cols).sum((-1, -2))
        d_epsilon = -terms / epsilon
    pairs = ((d_rows, rows), (d_cols, cols), (d_f, f), (d_g, g), (d_epsilon, epsilon), (back, v))
    return *(_fit(a, b) for a, b in pairs), None, None, None


def _weighted(
    rows: Tensor, cols: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, left: Tensor, right: Tensor, v: Tensor, *how: Any
) -> Tensor:
    if left.shape[-1] == 1:  # the weight is a product, and `apply` has all derivatives
        return left * apply(rows, cols, f, g, epsilon, right * v, *how)
    return weighted_apply(rows, cols, f, g, epsilon, left, right, v, *how)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.kind, blocks, back = inputs
    ctx.pattern = blocks, back  # not saved tensors: a checkpoint unpacks these once, and helpers read the pattern
    ctx.save_for_backward(*tensors, output)


def _weighted_apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # A third derivative: plain tiles, and no fourth.
    if ctx.pattern[0] is not None:
        raise NotImplementedError(
            "native kernels: softmin has two derivatives with blocks, apply one. Use the reference."
        )
    inputs = ctx.saved_tensors[:-1]
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        rows, cols, f, g, epsilon, left, right, v = leaves
        pairs = reference.Pairs((rows,), (cols,), lambda r, c: -(r[0] @ c[0].mT), (rows.shape[-2], cols.shape[-2]))

        def one(c: Tensor, f: Tensor, rest: Tensor, g: Tensor, right: Tensor, v: Tensor, eps: Tensor) -> Any:
            e = eps[..., None, None] if eps.dim() else eps
            p = torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - c) / e)
            return ((p * (rest.mT @ right.mT)) @ v,)

        # row arguments are cut along their last axis
        parts = reference._tiled(pairs, grad.shape[:-2].numel(), one, (f, left.mT), (g, right, v, epsilon))
        out = reference._join(parts, dim=-2)
        gradients = torch.autograd.grad(out, leaves, grad.detach(), allow_unused=True)
    return *gradients, None, None, None


torch.library.register_autograd("brenier::softmin", _softmin_backward, setup_context=_save_softmin, lib=_library)
torch.library.register_autograd("brenier::cmin", _cmin_backward, setup_context=_save_cmin, lib=_library)
torch.library.register_autograd("brenier::apply", _apply_backward, setup_context=_save, lib=_library)
torch.library.register_autograd("brenier::weighted_apply", _weighted_apply_backward, setup_context=_save, lib=_library)
