"""Sinkhorn scaling of many small matrices as Triton kernels: each program scales some of them, in registers.

Imported on the first call that needs it. Exponentials are taken once, as long as the scalings stay within bounds:
where one of a program's strays, its potentials are fitted by logarithms of sums, and the kernel is built anew. The
implicit gradient eliminates the Laplacian of a graph on the columns, on its weights alone, so that nothing is
subtracted (Grassmann, Taksar and Heyman 1985). The operators and their other derivatives are those of `tiny`.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["KERNELS", "gradient", "options", "scale"]


_NONE = tl.constexpr(float("-inf"))
_TINY = tl.constexpr(1e-290)


@triton.jit
def _log2(mass):
    """Base 2, -inf without mass."""
    return tl.where(mass > 0.0, tl.log2(tl.where(mass > 0.0, mass, 1.0)), _NONE)


@triton.jit
def _sums(z, AXIS: tl.constexpr):
    """log2 sum 2^z along an axis of (programs' matrices, rows, columns); -inf where all are."""
    top = tl.max(z, AXIS)
    base = tl.where(top == _NONE, 0.0, top)
    total = tl.sum(tl.exp2(z - tl.expand_dims(base, AXIS)), AXIS)
    return base + _log2_or_nan(total)


@triton.jit
def _log2_or_nan(total):
    """Base 2; -inf for 0, NaN for NaN."""
    none = total == 0.0
    return tl.where(none, _NONE, tl.log2(tl.where(none, 1.0, total)))


@triton.jit
def _fitted(log_mass, sums):
    """The potentials that give lines their masses; -inf for lines without mass or entries."""
    none = (sums == _NONE) | (log_mass == _NONE)
    return tl.where(none, _NONE, log_mass - tl.where(none, 0.0, sums))


@triton.jit
def _absorbed(potential, scaling):
    """The potential with a scaling in it."""
    none = (potential == _NONE) | (scaling == 0.0)
    return tl.where(none, _NONE, tl.where(none, 0.0, potential) + tl.log2(tl.where(none, 1.0, scaling)))


@triton.jit
def _divided(mass, sums):
    """The mass over the sums, 0 without mass; infinite where a mass has no sum."""
    return tl.where(mass > 0.0, mass / tl.where(mass > 0.0, sums, 1.0), 0.0)


@triton.jit
def _strays(scaling, mass, BOUND: tl.constexpr):
    """Whether a scaling is out of bounds where there is mass (NaN is), as a number."""
    good = (scaling < BOUND) & (scaling * BOUND > 1.0)
    return tl.max(tl.max(tl.where(good | (mass == 0.0), 0, 1), 1), 0)


@triton.jit(do_not_specialize=["n_iter", "count"])
def _scale(
    scores, epsilon, r, c, plan, error, iterations, count, n, m, epsilon_step, r_step, c_step, n_iter, tol,
    GIVEN: tl.constexpr, MATS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BOUND: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    which = (tl.program_id(0) * MATS + tl.arange(0, MATS)).to(tl.int64)
    i = tl.arange(0, BR)
    j = tl.arange(0, BC)
    here = which < count
    inside = here[:, None, None] & (i < n)[None, :, None] & (j < m)[None, None, :]
    where = (which[:, None, None] * n + i[None, :, None]) * m + j[None, None, :]
    score = tl.load(scores + where, mask=inside, other=float("-inf")).to(REAL)
    e = tl.load(epsilon + which * epsilon_step, mask=here, other=1.0).to(REAL)
    hidden = score == _NONE
    x = tl.where(hidden, _NONE, tl.where(hidden, 0.0, score) * (1.4426950408889634 / e)[:, None, None])
    x = tl.where(x == float("inf"), float("nan"), x)
    filled_rows = tl.max(tl.where(hidden, 0, 1), 2) > 0
    filled_cols = tl.max(tl.where(hidden, 0, 1), 1) > 0
    if GIVEN:
        row_mass = tl.load(
            r + which[:, None] * r_step + i[None, :], mask=here[:, None] & (i < n)[None, :], other=0.0
        ).to(REAL)
        col_mass = tl.load(
            c + which[:, None] * c_step + j[None, :], mask=here[:, None] & (j < m)[None, :], other=0.0
        ).to(REAL)
    else:
        row_mass = tl.where(filled_rows, 1.0, 0.0).to(REAL)
        one = tl.where(filled_cols, 1.0, 0.0).to(REAL)
        share = tl.sum(row_mass, 1) / tl.maximum(tl.sum(one, 1), 1.0)
        col_mass = one * share[:, None]
    # what can be fitted: lines with mass and entries
    row_fit = tl.where(filled_rows, row_mass, 0.0)
    col_fit = tl.where(filled_cols, col_mass, 0.0)
    log_r = _log2(row_fit)
    log_c = _log2(col_fit)
    f = _fitted(log_r, _sums(x, 2))  # the first half of the first iteration
    g = tl.zeros((MATS, BC), REAL)
    kernel = tl.exp2(x + f[:, :, None])
    u = tl.where(row_fit > 0.0, 1.0, 0.0).to(REAL)
    v = tl.full((MATS, BC), 1.0, REAL)
    done = which >= count
    steps = tl.zeros((MATS,), tl.int64)
    k = 0
    going = n_iter > 0
    while going:
        if k > 0:
            sums = tl.sum(kernel * v[:, None, :], 2)
            if tol > 0.0:
                off = tl.max(tl.abs(u * sums - row_mass), 1)
                done = done | ~(off > tol)
            new = _divided(row_fit, sums)
            if _strays(tl.where(done[:, None], 1.0, new), row_fit, BOUND) > 0:
                g = _absorbed(g, v)
                f = tl.where(done[:, None], _absorbed(f, u), _fitted(log_r, _sums(x + g[:, None, :], 2)))
                kernel = tl.exp2((x + f[:, :, None]) + g[:, None, :])
                u = tl.where(row_fit > 0.0, 1.0, 0.0).to(REAL)
                v = tl.where(col_fit > 0.0, 1.0, 0.0).to(REAL)
            else:
                u = tl.where(done[:, None], u, new)
        col_sums = tl.sum(kernel * u[:, :, None], 1)
        scaling = _divided(col_fit, col_sums)
        if _strays(tl.where(done[:, None], 1.0, scaling), col_fit, BOUND) > 0:
            f = _absorbed(f, u)
            g = tl.where(done[:, None], _absorbed(g, v), _fitted(log_c, _sums(x + f[:, :, None], 1)))
            kernel = tl.exp2((x + f[:, :, None]) + g[:, None, :])
            u = tl.where(row_fit > 0.0, 1.0, 0.0).to(REAL)
            v = tl.where(col_fit > 0.0, 1.0, 0.0).to(REAL)
        else:
            v = tl.where(done[:, None], v, scaling)
        steps += tl.where(done, 0, 1)
        k += 1
        going = (k < n_iter) & (tl.min(tl.where(done, 1, 0), 0) == 0)
    scaled = u[:, :, None] * kernel * v[:, None, :]
    tl.store(plan + where, scaled.to(plan.dtype.element_ty), mask=inside)
    rows_off = tl.max(tl.abs(tl.sum(scaled, 2) - row_mass), 1)
    cols_off = tl.max(tl.abs(tl.sum(scaled, 1) - col_mass), 1)
    bad = tl.sum(tl.sum(scaled, 2), 1)  # NaN where there is one, which a maximum may drop
    worst = tl.where(bad == bad, tl.maximum(rows_off, cols_off), float("nan"))
    tl.store(error + which, worst.to(error.dtype.element_ty), mask=here)
    tl.store(iterations + which, steps, mask=here)


@triton.jit
def _gradient(
    plan, grad, epsilon, d_scores, d_r, d_c, count, n, m, epsilon_step,
    GIVEN: tl.constexpr, MATS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    which = (tl.program_id(0) * MATS + tl.arange(0, MATS)).to(tl.int64)
    i = tl.arange(0, BR)
    j = tl.arange(0, BC)
    here = which < count
    inside = here[:, None, None] & (i < n)[None, :, None] & (j < m)[None, None, :]
    where = (which[:, None, None] * n + i[None, :, None]) * m + j[None, None, :]
    p = tl.load(plan + where, mask=inside, other=0.0).to(tl.float64)
    e = tl.load(epsilon + which * epsilon_step, mask=here, other=1.0).to(tl.float64)
    rows = tl.sum(p, 2)
    over = tl.where(rows == 0.0, 0.0, 1.0 / tl.where(rows == 0.0, 1.0, rows))
    weight = tl.load(grad + where, mask=inside, other=0.0).to(tl.float64)
    mean = tl.sum(p * weight, 2) * over
    # Columns j and l are joined by w = sum_i p_ij p_il / rows_i; the diagonal follows from these and is not needed. The
    # right side is sum_l of w times a difference of gradients: kept as flows between columns, which never cancel to
    # less than their own digits, however far apart the weights are.
    links = tl.zeros((MATS, BC, BC), tl.float64)
    flows = tl.zeros((MATS, BC, BC), tl.float64)
    for row in range(0, n):
        chosen = (i == row)[None, :, None]
        line = tl.sum(tl.where(chosen, p, 0.0), 1)
        share = tl.sum(tl.where((i == row)[None, :], over, 0.0), 1)
        pairs = line[:, :, None] * (line * share[:, None])[:, None, :]
        links += pairs
        toward = tl.sum(tl.where(chosen, weight, 0.0), 1)
        flows += pairs * (toward[:, :, None] - toward[:, None, :])
    apart = j[:, None] != j[None, :]
    links = tl.where(apart[None, :, :], links, 0.0)
    # Column after column is eliminated: those that are left inherit its links and flows.
    for column in range(0, m):
        here_too = (j == column)[None, :]
        later = (j > column)[None, :]
        own = tl.where(later, tl.sum(tl.where(here_too[:, :, None], links, 0.0), 1), 0.0)
        degree = tl.sum(own, 1)
        part = own * tl.where(degree > _TINY, 1.0 / tl.where(degree > _TINY, degree, 1.0), 0.0)[:, None]
        flow = tl.where(later, tl.sum(tl.where(here_too[:, :, None], flows, 0.0), 1), 0.0)
        left = (later[:, :, None] & later[:, None, :]) & apart[None, :, :]
        links += tl.where(left, own[:, :, None] * part[:, None, :], 0.0)
        flows += tl.where(left, part[:, :, None] * flow[:, None, :] - flow[:, :, None] * part[:, None, :], 0.0)
    mu = tl.zeros((MATS, BC), tl.float64)
    for back in range(0, m):
        column = m - 1 - back
        here_too = (j == column)[None, :]
        later = (j > column)[None, :]
        own = tl.where(later, tl.sum(tl.where(here_too[:, :, None], links, 0.0), 1), 0.0)
        degree = tl.sum(own, 1)
        flow = tl.where(later, tl.sum(tl.where(here_too[:, :, None], flows, 0.0), 1), 0.0)
        right = tl.sum(flow + own * mu, 1)
        value = tl.where(degree > _TINY, right / tl.where(degree > _TINY, degree, 1.0), 0.0)
        mu = tl.where(here_too, value[:, None], mu)
    shift = tl.sum(p * mu[:, None, :], 2) * over
    out = p * ((weight - mean[:, :, None]) + (shift[:, :, None] - mu[:, None, :])) / e[:, None, None]
    tl.store(d_scores + where, out.to(d_scores.dtype.element_ty), mask=inside)
    if GIVEN:
        row_at = which[:, None] * n + i[None, :]
        tl.store(d_r + row_at, (mean - shift).to(d_r.dtype.element_ty), mask=here[:, None] & (i < n)[None, :])
        col_at = which[:, None] * m + j[None, :]
        tl.store(d_c + col_at, mu.to(d_c.dtype.element_ty), mask=here[:, None] & (j < m)[None, :])


KERNELS = {"tiny_sinkhorn": _scale, "tiny_sinkhorn_gradient": _gradient}
"""All kernels by name, for `benchmarks/gpu_resources.py`."""

_ENTRIES = {"tiny_sinkhorn": 512, "tiny_sinkhorn_gradient": 256}  # of the matrices of one program


def options(name: str, n: int, m: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a kernel for matrices of n x m."""
    rows, cols = (max(4, triton.next_power_of_2(size)) for size in (n, m))
    side = rows * cols if name == "tiny_sinkhorn" else cols * max(rows, cols)
    out = {"MATS": max(1, _ENTRIES[name] // side), "BR": rows, "BC": cols}
    out["num_warps"] = 1 if side <= _ENTRIES[name] else 4 if side <= 1024 else 8 if name == "tiny_sinkhorn" else 16
    out["enable_fp_fusion"] = True  # which Triton asks to be told
    if name == "tiny_sinkhorn":
        out["BOUND"] = 2.0**15 if dtype == torch.float32 else 2.0**150
        out["REAL"] = tl.float32 if dtype == torch.float32 else tl.float64
    return out


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def scale(
    scores: Tensor,
    epsilon: Tensor,
    r: Tensor | None,
    c: Tensor | None,
    steps: list[int],  # between the epsilons, the r and the c of two matrices
    n_iter: int,
    tol: float,
    outputs: tuple[Tensor, ...],
) -> None:
    """Fill plan, error and iterations."""
    count, n, m = scores.shape
    how = options("tiny_sinkhorn", n, m, scores.dtype)
    with _on(scores.device):
        _scale[(triton.cdiv(count, how["MATS"]),)](
            scores, epsilon, r, c, *outputs, count, n, m, *steps, n_iter, tol, GIVEN=r is not None, **how
        )


def gradient(plan: Tensor, grad: Tensor, epsilon: Tensor, step: int, given: bool, outputs: tuple[Tensor, ...]) -> None:
    """Fill what reaches the scores, r and c from `grad` by the fixed point."""
    count, n, m = plan.shape
    how = options("tiny_sinkhorn_gradient", n, m, plan.dtype)
    with _on(plan.device):
        _gradient[(triton.cdiv(count, how["MATS"]),)](
            plan, grad, epsilon, *outputs, count, n, m, step, GIVEN=given, **how
        )
