r"""Matrix functions behind Gaussian transport, stable for covariances without full rank, differentiable, batched.

For covariances S, T and e >= 0 the plan of the cost ||x - y||^2 with epsilon = 2 e sends x to M x in the mean, where

    M = T^1/2 W(T^1/2 S T^1/2) T^1/2,    W(t) = 2 / (sqrt(4 t + e^2) + e),

and the value is tr S + tr T - sum_i phi(t_i) over the eigenvalues t of S T, where phi' = W, phi(0) = 0:

    phi(t) = d - e - e log((d + e) / (2 e)),    d = sqrt(4 t + e^2).

At e = 0, phi(t) = 2 sqrt(t) and M is the matrix of the Bures map. Everything follows from the singular values of
S^1/2 T^1/2, which are accurate where the eigenvalues of a product are not.

Source: Janati, Muzellec, Peyré & Cuturi (2020), Entropic optimal transport between unbalanced Gaussian measures has a
closed form; Bhatia, Jain & Lim (2019), On the Bures-Wasserstein distance between positive definite matrices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..._once import walled

__all__ = ["moments", "overlap", "overlap_of_factors", "plan_matrix", "root"]

_STEP = 0.5  # of the trapezoidal rule, whose error is exp(-2 pi^2 / step)
_TAIL = 76.0  # the integrand falls as exp(-|u| / 2)
_NODES = 16  # of the rule that are held at once


def moments(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (*batch, 1, d) and covariance (*batch, d, d) of points (*batch, n, d) under masses (*batch, n)."""
    share = (a / a.sum(-1, keepdim=True)).unsqueeze(-1)
    mean = (share * x).sum(-2, keepdim=True)
    centred = x - mean
    return mean, (share * centred).mT @ centred


def _line(e: Tensor) -> Tensor:
    """(*batch,) beside (*batch, r)."""
    return e.unsqueeze(-1)


def _phi(t: Tensor, e: Tensor) -> Tensor:
    d = (4 * t + e * e).sqrt()
    soft = e > 0
    safe = torch.where(soft, e, 1)
    return d - e - torch.where(soft, e * torch.log1p((d - e).clamp(min=0) / (2 * safe)), 0)


def _slope(t: Tensor, e: Tensor) -> Tensor:
    """W(t); zero where it would be infinite."""
    total = (4 * t + e * e).sqrt() + e
    return torch.where(total > 0, 2 / torch.where(total > 0, total, 1), 0)


def _floor(values: Tensor) -> Tensor:
    """What is nothing beside the largest of the eigenvalues or singular values (*batch, r)."""
    return values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)


class _Root(torch.autograd.Function):
    """The square root R, with derivatives of any order: dR solves R dR + dR R = dS."""

    @staticmethod
    def forward(ctx: Any, S: Tensor) -> Tensor:  # type: ignore[override]
        values, vectors = torch.linalg.eigh((S + S.mT) / 2)
        values = torch.where(values > _floor(values.abs()), values, 0).sqrt()
        R = (vectors * values.unsqueeze(-2)) @ vectors.mT
        ctx.save_for_backward(R, values, vectors)
        return R

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = _Sylvester.apply(*ctx.saved_tensors, (grad + grad.mT) / 2)
        return out


class _Sylvester(torch.autograd.Function):
    """The X with R X + X R = G for symmetric R and G, with zero where both eigenvalues of R are."""

    @staticmethod
    def forward(ctx: Any, R: Tensor, values: Tensor, vectors: Tensor, G: Tensor) -> Tensor:  # type: ignore[override]
        total = values.unsqueeze(-1) + values.unsqueeze(-2)
        weight = torch.where(total > 0, 1 / torch.where(total > 0, total, 1), 0)
        X = vectors @ (weight * (vectors.mT @ G @ vectors)) @ vectors.mT
        ctx.save_for_backward(R, values, vectors, X)
        return X

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        R, values, vectors, X = ctx.saved_tensors
        Z = _Sylvester.apply(R, values, vectors, (grad + grad.mT) / 2)
        return -(X @ Z + Z @ X), None, None, Z


def root(S: Tensor) -> Tensor:  # (*batch, d, d)
    """The square root of a positive semidefinite matrix; eigenvalues below rounding are zero."""
    out: Tensor = _Root.apply(S)
    return out


def _singular(L: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values of L^T R, those below rounding zero, and L U, R V."""
    U, s, Vh = torch.linalg.svd(L.mT @ R, full_matrices=False)
    return torch.where(s > _floor(s), s, 0), L @ U, R @ Vh.mT


class _Overlap(torch.autograd.Function):
    """Sum of phi over the eigenvalues of S T; the gradients are the matrices of the plan."""

    @staticmethod
    def forward(ctx: Any, S: Tensor, T: Tensor, e: Tensor) -> Tensor:  # type: ignore[override]
        s, left, right = _singular(root(S), root(T))
        ctx.save_for_backward(s, left, right, S, T, e)
        return _phi(s.square(), _line(e)).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        s, left, right, S, T, e = ctx.saved_tensors
        if torch.is_grad_enabled():  # the same matrices, with derivatives
            plans = plan_matrix(S, T, e), plan_matrix(T, S, e)
        else:
            w = _slope(s.square(), _line(e)).unsqueeze(-2)
            plans = (right * w) @ right.mT, (left * w) @ left.mT
        of_s, of_t = (plan * grad[..., None, None] for plan in plans)
        if not ctx.needs_input_grad[2]:
            return of_s, of_t, None
        d = (4 * s.square() + _line(e * e)).sqrt()
        safe = torch.where(e > 0, e, 1)
        of_e = -grad * torch.where(e > 0, torch.log1p((d - _line(e)) / _line(2 * safe)).sum(-1), 0)
        return of_s, of_t, *walled((of_e,), (grad, S, T, e), "a Gaussian cost in epsilon")


def overlap(S: Tensor, T: Tensor, e: Tensor) -> Tensor:
    """Sum of phi over the eigenvalues of S T, (*batch,), for S, T (*batch, d, d) and e (*batch,), of one batch shape.

    Gradients are those of least norm where a covariance has not full rank. Second derivatives in S and T only.
    """
    out: Tensor = _Overlap.apply(S, T, e)
    return out


class _PlanMatrix(torch.autograd.Function):
    """R W(R S R) R for a symmetric R, with W of e."""

    @staticmethod
    def forward(ctx: Any, S: Tensor, R: Tensor, e: Tensor) -> Tensor:  # type: ignore[override]
        _, s, Vh = torch.linalg.svd(root(S) @ R)
        s = torch.where(s > _floor(s), s, 0)
        ctx.save_for_backward(s, Vh, S, R, e)
        right = R @ Vh.mT
        return (right * _slope(s.square(), _line(e)).unsqueeze(-2)) @ right.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        s, Vh, S, R, e = ctx.saved_tensors
        with torch.no_grad():
            *found, of_e = _plan_gradients(s, Vh, S, R, _line(e), (grad + grad.mT) / 2)
        wanted = (*found, of_e if ctx.needs_input_grad[2] else None)
        return walled(wanted, (grad, S, R, e), "the matrix of a Gaussian plan")


def _plan_gradients(
    s: Tensor, Vh: Tensor, S: Tensor, R: Tensor, e: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <grad, R W(R S R) R> in S, R and e, for R S R = Vh^T diag(s^2) Vh."""
    w, d = _slope(s.square(), e), (4 * s.square() + e * e).sqrt()
    W = (Vh.mT * w.unsqueeze(-2)) @ Vh
    inner = R @ grad @ R
    # (W_i - W_j) / (t_i - t_j) = -2 W_i W_j / (d_i + d_j)
    total = d.unsqueeze(-1) + d.unsqueeze(-2)
    ratio = -2 * w.unsqueeze(-1) * w.unsqueeze(-2) / torch.where(total > 0, total, 1)
    of_t = Vh.mT @ (torch.where(total > 0, ratio, 0) * (Vh @ inner @ Vh.mT)) @ Vh
    of_r = 2 * (grad @ R @ W + of_t @ R @ S)
    slope = torch.where(d > 0, -w / torch.where(d > 0, d, 1), 0)  # dW / de = -W / d
    of_e = (slope * ((Vh @ inner) * Vh).sum(-1)).sum(-1)
    return R @ of_t @ R, (of_r + of_r.mT) / 2, of_e


def plan_matrix(S: Tensor, T: Tensor, e: Tensor) -> Tensor:
    """The matrix M of the plan from S to T, (*batch, d, d), for e (*batch,); with first derivatives."""
    out: Tensor = _PlanMatrix.apply(S, root(T), e)
    return out


def overlap_of_factors(F: Tensor, D: Tensor, G: Tensor, H: Tensor, e: Tensor) -> Tensor:
    r"""Sum of phi over the eigenvalues of (F F^T + diag D)(G G^T + diag H), (*batch,), without a d x d matrix.

    phi(t) = \int w(s) log(1 + t / s) ds over s > e^2 / 4, with w(s) = sqrt(4 s - e^2) / (2 pi s). The product is
    diag(D H) plus a matrix of rank r1 + r2, so that the sum of log(1 + t / s) is that of the diagonal and a small
    determinant. The trapezoidal rule in log(s - e^2 / 4) converges geometrically: it is exact to rounding for positive
    D and H.

    Args:
        F, G: (*batch, d, r1) and (*batch, d, r2).
        D, H: (*batch, d), positive.
        e: (*batch,).

    Complexity: some 300 times O(d (r1 + r2)^2); O(d (r1 + r2)) memory, for gradients too.

    Source: Hale, Higham & Trefethen (2008), Computing A^alpha, log(A) and related matrix functions by contour integrals
    (the idea of quadrature by exponentially convergent rules).
    """
    diagonal = D * H
    U = torch.cat([D.unsqueeze(-1) * G, F], -1)
    V = torch.cat([G, H.unsqueeze(-1) * F + G @ (G.mT @ F)], -1)
    with torch.no_grad():  # a bound of the largest eigenvalue, where the integrand turns
        top = (D.amax(-1) + F.square().sum((-2, -1))) * (H.amax(-1) + G.square().sum((-2, -1)))
        top = top.log()

    def some(u: Tensor, U: Tensor, V: Tensor, diagonal: Tensor, e: Tensor) -> Tensor:
        total = torch.zeros_like(e)
        for k in range(len(u)):
            v = (u[k] + top).exp()
            s = v + e * e / 4
            small = V.mT @ (U / (diagonal + _line(s)).unsqueeze(-1))
            total = total + v.sqrt() * v / s * _log_det(small)
        return total

    u = torch.arange(-_TAIL, _TAIL + _STEP, _STEP, dtype=U.dtype, device=U.device)
    parts = (checkpoint(some, part, U, V, diagonal, e, use_reentrant=False, preserve_rng_state=False)
             for part in u.split(_NODES))  # fmt: skip
    rest = torch.stack(list(parts)).sum(0) * (_STEP / math.pi)
    return _phi(diagonal, _line(e)).sum(-1) + rest


def _log_det(X: Tensor) -> Tensor:
    """Log det(I + X) (*batch,), relatively accurate for small X too."""
    if bool((X.detach().square().sum((-2, -1)) > 1e-6).any()):
        return torch.linalg.slogdet(X + torch.eye(X.shape[-1], dtype=X.dtype, device=X.device))[1]
    total, power = torch.zeros_like(X[..., 0, 0]), X
    for k in range(1, 6):
        total = total + (-1) ** (k + 1) / k * power.diagonal(dim1=-2, dim2=-1).sum(-1)
        power = power @ X
    return total
