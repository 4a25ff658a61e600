r"""Sinkhorn scaling of many small matrices: P = diag(u) exp(S / epsilon) diag(v) with given sums, and its gradients.

One iteration fits the rows, then the columns, starting from v = 1:

    u_i = r_i / sum_j K_ij v_j,   v_j = c_j / sum_i K_ij u_i,   K = exp(S / epsilon).

Three engines: the reference in plain torch works in the log domain on any device; the native one (`src/native/
tiny_sinkhorn*`) solves 4 to 16 matrices side by side in the lanes of a vector; on a GPU, and in Triton's interpreter
where that was asked for, `triton_tiny` solves some in the registers of each program, with implicit gradients only.
The latter two are `torch.library` operators.

| operator | result | derivatives |
|---|---|---|
| `brenier::tiny_sinkhorn` | P, its marginal error, iterations | twice, in S, epsilon, r and c |
| `brenier::tiny_sinkhorn_gradient` | what reaches S, r and c | once, by the reference |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import native as _pairwise
from .build import chosen, triton_runs
from .build import native as _native

__all__ = ["ADJOINTS", "MAX_SIZE", "scale"]

ADJOINTS = ("implicit", "unrolled")
MAX_SIZE = 128
"""The longest side that the native engine takes: sixteen matrices of it fill a megabyte."""

_FORWARD, _IMPLICIT, _UNROLLED = range(3)
_NONE = -torch.inf


def scale(
    scores: Tensor,  # (*batch, n, m)
    epsilon: Tensor,  # broadcasts to (*batch,)
    r: Tensor | None = None,  # broadcasts to (*batch, n)
    c: Tensor | None = None,  # broadcasts to (*batch, m)
    *,
    n_iter: int,
    tol: float = 0.0,
    adjoint: str = "implicit",
) -> tuple[Tensor, Tensor, Tensor]:  # (*batch, n, m), (*batch,), (*batch,)
    """Scale small matrices to the row sums r and the column sums c.

    Args:
        scores: -inf forbids an entry. A matrix with NaN or +inf becomes NaN, and no other.
        epsilon: positive.
        r, c: masses of equal totals, both or none; by default 1 for each row that has a score, and the same total in
            equal parts for the columns that have one.
        n_iter: iterations, or the most of them.
        tol: if positive, a matrix is left alone from where its row sums are this close.
        adjoint: "implicit", the gradient of the fixed point, or "unrolled", that of the iterations.

    Returns:
        P, the largest difference of a sum from its mass, and the iterations taken. Only P has gradients.

    Time per matrix: n_iter n m; the implicit gradient adds n m min(n, m), the unrolled one 4 n_iter n m. The native
    engine keeps nothing but its arguments and P for the gradients.
    """
    if not _serves(adjoint, scores, epsilon, r, c):
        if adjoint == "implicit":
            return _Implicit.apply(scores, epsilon, r, c, n_iter, tol)
        return _iterate(scores, epsilon, r, c, n_iter, tol)
    batch, (n, m) = scores.shape[:-2], scores.shape[-2:]
    count = batch.numel()
    if epsilon.dim():
        epsilon = epsilon.expand(batch).reshape(count)
    if r is not None and c is not None:
        r, c = r.expand(*batch, n).reshape(count, n), c.expand(*batch, m).reshape(count, m)
    out = tiny_sinkhorn(scores.reshape(count, n, m), epsilon, r, c, n_iter, tol, adjoint)
    return out[0].reshape(scores.shape), out[1].reshape(batch), out[2].reshape(batch)


_GPU_SIZE = 64
"""The longest side that Triton's kernels take: a larger matrix does not fit the registers of a program."""


def _serves(adjoint: str, scores: Tensor, *others: Tensor | None) -> bool:
    """Whether a fused engine takes this call."""
    name = chosen()
    if name == "reference":
        return False
    tensors = [scores, *(t for t in others if t is not None)]
    by_triton = name == "triton" or (name == "auto" and scores.is_cuda)
    size = _GPU_SIZE if by_triton else MAX_SIZE
    if by_triton:
        here = triton_runs(scores) and (adjoint == "implicit" or not _recorded(*tensors))
    else:
        here = scores.is_cpu and _pairwise.available()
    serves = (
        here
        and scores.dtype in _pairwise.DTYPES
        and max(scores.shape[-2:]) <= size
        and all(t.dtype == scores.dtype and t.device == scores.device for t in tensors)
    )
    if name in ("native", "triton") and not serves:
        where = (
            "Triton, tensors on a GPU (or on a CPU, with TRITON_INTERPRET=1), implicit gradients"
            if by_triton
            else "a compiled extension, tensors on a CPU"
        )
        raise RuntimeError(
            f"use_engine({name!r}): expected {where}, float32 or float64 and sides up to {size}, got {scores.dtype} of "
            f"shape {tuple(scores.shape)} on {scores.device}, {adjoint} gradients. Use 'auto'."
        )
    return serves


def _recorded(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


# The reference


def _masses(scores: Tensor, r: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor]:
    if r is not None and c is not None:
        return r, c
    hidden = scores == _NONE
    r, c = (~hidden.all(-1)).to(scores), (~hidden.all(-2)).to(scores)
    total, columns = r.sum(-1, keepdim=True), c.sum(-1, keepdim=True)
    return r, c * (total / columns.clamp(min=1))


def _wide(t: Tensor) -> torch.dtype:
    return torch.float32 if t.device.type == "mps" else torch.float64  # which has no float64


def _log(mass: Tensor) -> Tensor:
    positive = mass > 0
    return torch.where(positive, torch.where(positive, mass, 1).log(), _NONE)


def _fit(log_mass: Tensor, z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The potential that gives each line its mass, and the logarithms of the sums; lines without entries get none."""
    empty = (z == _NONE).all(dim)
    sums = torch.logsumexp(torch.where(empty.unsqueeze(dim), 0, z), dim)
    return torch.where(empty | (log_mass == _NONE), _NONE, log_mass - sums), torch.where(empty, _NONE, sums)


def _iterate(
    scores: Tensor, epsilon: Tensor, r: Tensor | None, c: Tensor | None, n_iter: int, tol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The iterations in the log domain and in float64; autograd through them is the unrolled gradient."""
    dtype, wide = scores.dtype, _wide(scores)
    scores, epsilon = scores.to(wide), epsilon.to(wide)
    r, c = _masses(scores, r, c)
    r, c = r.to(wide), c.to(wide)
    hidden = scores == _NONE
    x = torch.where(hidden, _NONE, torch.where(hidden, 0, scores) / epsilon[..., None, None])
    x = torch.where(x == torch.inf, torch.nan, x)
    log_r, log_c = _log(r), _log(c)
    f, g = x.new_zeros(x.shape[:-1]), x.new_zeros((*x.shape[:-2], x.shape[-1]))
    done = torch.zeros(x.shape[:-2], dtype=torch.bool, device=x.device)
    iterations = torch.zeros(x.shape[:-2], dtype=torch.int64, device=x.device)
    for k in range(n_iter):
        new, sums = _fit(log_r, x + g.unsqueeze(-2), -1)
        if tol > 0 and k > 0:
            done = ~(((f + sums).exp() - r).abs().amax(-1) > tol)  # NaN stays what it is
            if not torch.compiler.is_compiling() and bool(done.all()):
                break
        f = torch.where(done.unsqueeze(-1), f, new)
        g = torch.where(done.unsqueeze(-1), g, _fit(log_c, x + f.unsqueeze(-1), -2)[0])
        iterations = iterations + ~done
    plan = (f.unsqueeze(-1) + x + g.unsqueeze(-2)).exp()
    with torch.no_grad():
        error = torch.maximum((plan.sum(-1) - r).abs().amax(-1), (plan.sum(-2) - c).abs().amax(-1))
    return plan.to(dtype), error.to(dtype), iterations


def _implicit(plan: Tensor, grad: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a gradient towards the plan becomes towards scores, r and c.

    The multipliers solve R lambda + P mu = (P o G) 1 and P^T lambda + C mu = (P o G)^T 1, with R and C the sums of P,
    and P o (G - lambda - mu) / epsilon reaches the scores. They are fixed up to lambda + t, mu - t: the smallest are
    taken.
    """
    wide = _wide(plan)
    P, G = plan.to(wide), grad.to(wide)
    rows, cols = P.sum(-1), P.sum(-2)
    over = torch.where(rows == 0, 0, 1 / torch.where(rows == 0, 1, rows)).unsqueeze(-1)
    mean = (P * G).sum(-1, keepdim=True) * over
    H = G - mean
    # The Schur complement is singular along 1, and along each component of the support. `b` has nothing there: what is
    # added only makes the matrix regular.
    present = (cols != 0).to(wide)
    size = cols.mean(-1, keepdim=True)
    added = size.unsqueeze(-1) * present.unsqueeze(-1) * present.unsqueeze(-2) / cols.shape[-1]
    diagonal = torch.where(cols == 0, 1, cols * (1 + 30 * torch.finfo(wide).eps))
    schur = torch.diag_embed(diagonal) - P.mT @ (over * P) + added
    mu = torch.linalg.solve_ex(schur, (P * H).sum(-2)).result
    shift = (P @ mu.unsqueeze(-1)) * over
    d_scores = P * (H + shift - mu.unsqueeze(-2)) / epsilon.to(wide)[..., None, None]
    d_r, d_c = _centred((mean - shift).squeeze(-1), mu)
    return d_scores.to(plan), d_r.to(plan), d_c.to(plan)


def _centred(d_r: Tensor, d_c: Tensor) -> tuple[Tensor, Tensor]:
    t = (d_c.sum(-1, keepdim=True) - d_r.sum(-1, keepdim=True)) / (d_r.shape[-1] + d_c.shape[-1])
    return d_r + t, d_c - t


def _epsilon_gradient(scores: Tensor, d_scores: Tensor, epsilon: Tensor, adjoint: str) -> Tensor:
    """P depends on S / epsilon: what reaches epsilon follows from what reaches S."""
    finite = torch.where(scores == _NONE, 0, scores)
    # What is the same along a row cancels (of fixed points, also along a column); left out, it costs no digits.
    for dim in (-1, -2) if adjoint == "implicit" else (-1,):
        best = torch.where(scores == _NONE, _NONE, finite).detach().amax(dim, keepdim=True)
        finite = finite - torch.where(best == _NONE, 0, best)
    return (-(d_scores * finite).sum((-1, -2)) / epsilon).sum_to_size(epsilon.shape)


def _fold(gradient: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else gradient.sum_to_size(like.shape)


class _Implicit(torch.autograd.Function):
    """The iterations of the reference, with the gradient of their fixed point."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, epsilon: Tensor, r: Tensor | None, c: Tensor | None, n_iter: int, tol: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan, error, iterations = _iterate(scores, epsilon, r, c, n_iter, tol)
        ctx.save_for_backward(scores, epsilon, r, c, plan)
        ctx.mark_non_differentiable(error, iterations)
        return plan, error, iterations

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scores, epsilon, r, c, plan = ctx.saved_tensors
        d_scores, d_r, d_c = _implicit(plan, grads[0], epsilon)
        d_epsilon = _epsilon_gradient(scores, d_scores, epsilon, "implicit") if ctx.needs_input_grad[1] else None
        return d_scores, d_epsilon, _fold(d_r, r), _fold(d_c, c), None, None


# The native operators: (count, n, m), epsilon () or (count,), r (count, n) and c (count, m) or none

_library = torch.library.Library("brenier", "FRAGMENT")
_P = "Tensor scores, Tensor epsilon, Tensor? r, Tensor? c, "
_library.define(f"tiny_sinkhorn({_P}int n_iter, float tol, str adjoint) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"tiny_sinkhorn_gradient({_P}Tensor plan, Tensor grad, int n_iter, str adjoint) -> (Tensor, Tensor, Tensor)"
)


def _dense(t: Tensor | None) -> tuple[Tensor | None, int]:
    """Rows one after the other and the step between them; one row and step 0 when all are the same."""
    if t is None or t.dim() == 0:
        return t, 0
    if t.shape[0] == 1 or t.stride(0) == 0:
        return t[0].contiguous(), 0
    return t.contiguous(), t[0].numel()


def _run(
    op: int,
    scores: Tensor,
    epsilon: Tensor,
    r: Tensor | None,
    c: Tensor | None,
    n_iter: int,
    tol: float,
    plan: Tensor | None,
    grad: Tensor | None,
    outputs: tuple[Tensor, ...],
) -> None:
    count, n, m = scores.shape
    if (r is None) != (c is None):
        raise ValueError("tiny_sinkhorn: expected both r and c, or none")
    if (r is not None and r.shape != (count, n)) or (c is not None and c.shape != (count, m)):
        raise ValueError("tiny_sinkhorn: expected r and c of the lengths of rows and columns")
    if epsilon.dim() and epsilon.shape != (count,):
        raise ValueError("tiny_sinkhorn: expected one epsilon, or one for each matrix")
    inputs = (scores, epsilon, r, c, plan, grad)
    for t in inputs:
        if t is not None and (t.dtype != scores.dtype or t.device != scores.device):
            raise TypeError(f"tiny_sinkhorn: expected {scores.dtype} on {scores.device}, got {t.dtype} on {t.device}")
    if not count:
        return
    packed = [_dense(t) for t in (epsilon, r, c)]
    whole = [None if t is None else t.contiguous() for t in (scores, plan, grad)]
    steps = [step for _, step in packed]
    if scores.is_cuda or chosen() == "triton":
        from . import triton_tiny  # which imports Triton

        dense, (epsilon_, r_, c_) = [t for t in whole if t is not None], [t for t, _ in packed]
        assert epsilon_ is not None
        if op == _FORWARD:
            triton_tiny.scale(dense[0], epsilon_, r_, c_, steps, n_iter, tol, outputs)
        elif op == _IMPLICIT:
            triton_tiny.gradient(dense[1], dense[2], epsilon_, steps[0], r is not None, outputs)
        else:
            raise ValueError("tiny_sinkhorn: expected implicit gradients on a GPU, got unrolled ones")
        return
    arrays = (whole[0], *(t for t, _ in packed), *whole[1:], *outputs)  # kept alive until the call is over
    addresses = [0 if t is None or not t.numel() else t.data_ptr() for t in arrays]
    assert _native is not None
    wide = scores.dtype == torch.float64
    _native.tiny_sinkhorn(op, wide, [count, n, m, n_iter], tol, addresses, steps, torch.get_num_threads())


def _forward_fake(
    scores: Tensor, epsilon: Tensor, r: Tensor | None, c: Tensor | None, n_iter: int, tol: float, adjoint: str
) -> tuple[Tensor, Tensor, Tensor]:
    count = scores.shape[0]
    return scores.new_empty(scores.shape), scores.new_empty(count), scores.new_empty(count, dtype=torch.int64)


def _gradient_fake(
    scores: Tensor,
    epsilon: Tensor,
    r: Tensor | None,
    c: Tensor | None,
    plan: Tensor,
    grad: Tensor,
    n_iter: int,
    adjoint: str,
) -> tuple[Tensor, Tensor, Tensor]:
    d_r, d_c = (scores.new_empty(0 if t is None else t.shape) for t in (r, c))
    return scores.new_empty(scores.shape), d_r, d_c


def _forward_call(
    scores: Tensor, epsilon: Tensor, r: Tensor | None, c: Tensor | None, n_iter: int, tol: float, adjoint: str
) -> tuple[Tensor, Tensor, Tensor]:
    out = _forward_fake(scores, epsilon, r, c, n_iter, tol, adjoint)
    _run(_FORWARD, scores, epsilon, r, c, n_iter, tol, None, None, out)
    return out


def _gradient_call(
    scores: Tensor,
    epsilon: Tensor,
    r: Tensor | None,
    c: Tensor | None,
    plan: Tensor,
    grad: Tensor,
    n_iter: int,
    adjoint: str,
) -> tuple[Tensor, Tensor, Tensor]:
    out = _gradient_fake(scores, epsilon, r, c, plan, grad, n_iter, adjoint)
    if adjoint == "unrolled":
        _run(_UNROLLED, scores, epsilon, r, c, n_iter, 0.0, None, grad, out)
        return out
    _run(_IMPLICIT, scores, epsilon, r, c, n_iter, 0.0, plan, grad, out)
    return out if r is None else (out[0], *_centred(out[1], out[2]))


for _name, _call, _fake in (
    ("tiny_sinkhorn", _forward_call, _forward_fake),
    ("tiny_sinkhorn_gradient", _gradient_call, _gradient_fake),
):
    _library.impl(_name, _call, "CPU")
    _library.impl(_name, _call, "CUDA")
    torch.library.register_fake(f"brenier::{_name}", _fake, lib=_library)

tiny_sinkhorn = torch.ops.brenier.tiny_sinkhorn.default
tiny_sinkhorn_gradient = torch.ops.brenier.tiny_sinkhorn_gradient.default


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.n_iter, _, ctx.adjoint = inputs
    ctx.save_for_backward(*tensors, output[0])
    ctx.mark_non_differentiable(*output[1:])


def _forward_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scores, epsilon, r, c, plan = ctx.saved_tensors
    d_scores, d_r, d_c = tiny_sinkhorn_gradient(scores, epsilon, r, c, plan, grad, ctx.n_iter, ctx.adjoint)
    d_epsilon = _epsilon_gradient(scores, d_scores, epsilon, ctx.adjoint) if ctx.needs_input_grad[1] else None
    return d_scores, d_epsilon, None if r is None else d_r, None if c is None else d_c, None, None, None


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.n_iter, ctx.adjoint = inputs
    ctx.save_for_backward(*tensors)


def _gradient_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    # A second derivative: by the reference, and no third.
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        scores, epsilon, r, c, plan, grad = leaves
        assert all(t is not None for t in (scores, epsilon, plan, grad))
        if ctx.adjoint == "implicit":
            out: tuple[Tensor, ...] = _implicit(plan, grad, epsilon)
        else:
            unrolled = _iterate(scores, epsilon, r, c, ctx.n_iter, 0.0)[0]
            wanted = [t for t in (scores, r, c) if t is not None]
            out = torch.autograd.grad(unrolled, wanted, grad, create_graph=True)
        used = [t for t in leaves if t is not None]
        weights = [g.detach() for g in grads[: len(out) if r is not None else 1]]
        found = iter(torch.autograd.grad(out[: len(weights)], used, weights, allow_unused=True))
    return *(None if t is None else next(found) for t in leaves), None, None


torch.library.register_autograd("brenier::tiny_sinkhorn", _forward_backward, setup_context=_save_forward, lib=_library)
torch.library.register_autograd(
    "brenier::tiny_sinkhorn_gradient", _gradient_backward, setup_context=_save_gradient, lib=_library
)
