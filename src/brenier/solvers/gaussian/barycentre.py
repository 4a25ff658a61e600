"""The Wasserstein barycentre of Gaussians, a Gaussian, by its fixed point, with a proved gap."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import NotConvergedWarning, refuse
from ..barycentres.inputs import barycentre_weights
from ..base import check_count, check_number
from .gaussian import Gaussian, shared
from .matrices import overlap, plan_matrix, root

__all__ = ["GaussianBarycentre", "gaussian_barycentre"]

_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}
_TOL_LOW = 1e-5  # without full rank the fixed point is approached slowly


@dataclass(frozen=True)
class GaussianBarycentre:
    """The barycentre of Gaussians, and how near it is.

    Attributes:
        gaussian: the barycentre.
        value: sum_k w_k W_2^2 to the measures, (*batch,).
        dual: a lower bound of the least value, (*batch,); NaN where a covariance has not full rank.
        residual: of the fixed point: the length of the last move over the standard deviation, (*batch,).
        n_iter: iterations.
    """

    gaussian: Gaussian
    value: Tensor
    dual: Tensor
    residual: Tensor
    n_iter: int

    @property
    def gap(self) -> Tensor:
        """Value - dual, not below zero: how far from least the value is, at most, but for rounding."""
        return (self.value - self.dual).clamp(min=0)


def gaussian_barycentre(
    gaussians: Sequence[Gaussian] | Gaussian, weights: Any = None, *, tol: float | None = None, max_iter: int = 500
) -> GaussianBarycentre:
    r"""The Gaussian that is nearest to several, in the mean of squared Wasserstein distances.

    .. math:: \min_q \sum_k w_k W_2^2(p_k, q), \qquad S \leftarrow \bar A S \bar A, \quad
        \bar A = \sum_k w_k A_{S \to S_k}

    Each step lowers the value, and the fixed point is the barycentre where a covariance has full rank. The lower bound
    takes the matrices A_k of the maps, made to add up to the identity, for quadratic potentials.

    Args:
        gaussians: a list, whose batch axes broadcast, or one batch whose first axis is that of the measures.
        weights: nonnegative, of total 1; equal when None.
        tol: residual to stop at; 1e-10 in float64 when None, 1e-5 in float32 and for low-rank forms without a
            diagonal, whose fixed point is approached slowly.
        max_iter: iterations.

    Raises:
        InvalidInput: no Gaussian, different dimensions, weights that do not fit; low-rank forms with a diagonal beyond
            4096 dimensions.

    Warns:
        NotConvergedWarning: the tolerance was not met.

    Complexity: O(K d^3) an iteration, or of d = the total rank for low-rank forms without a diagonal. Without
    gradients.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, gaussian_barycentre
        >>> ends = [Gaussian(torch.zeros(1), torch.eye(1)), Gaussian(torch.ones(1), 9 * torch.eye(1))]
        >>> found = gaussian_barycentre(ends)
        >>> found.gaussian.mean.tolist(), round(float(found.gaussian.covariance), 4)
        ([0.5], 4.0)

    Source: Álvarez-Esteban, del Barrio, Cuesta-Albertos & Matrán (2016), A fixed-point approach to barycenters in
    Wasserstein space; Agueh & Carlier (2011), Barycenters in the Wasserstein space (duality).
    """
    if isinstance(gaussians, Gaussian):
        if not gaussians.batch_shape:
            refuse("gaussians", "a list, or a batch of Gaussians", repr(gaussians))
        gaussians = [gaussians.item(k) for k in range(gaussians.batch_shape[0])]
    if len(gaussians) == 0:
        refuse("gaussians", "at least one", "none")
    if len({g.d for g in gaussians}) > 1:
        refuse("gaussians", "one dimension", ", ".join(str(g.d) for g in gaussians))
    check_count("max_iter", max_iter)
    first = gaussians[0].mean
    w = barycentre_weights(weights, len(gaussians), first)
    if tol is None:
        tol = _TOL_LOW if all(g.plain for g in gaussians) else _TOL[first.dtype]
    check_number("tol", tol)
    with torch.no_grad():
        return _fixed_point(list(gaussians), w, tol, max_iter)


def _fixed_point(gaussians: list[Gaussian], w: Tensor, tol: float, max_iter: int) -> GaussianBarycentre:
    batch = torch.broadcast_shapes(*(g.batch_shape for g in gaussians))
    means = torch.stack([g.mean.expand(*batch, -1) for g in gaussians])
    mean = torch.tensordot(w, means, 1)
    plain = all(g.plain for g in gaussians)
    parts = shared(*gaussians) if plain else None
    basis = None if parts is None else parts.basis
    cores = [g.covariance.expand(*batch, -1, -1) for g in gaussians] if parts is None else parts.cores
    covariances = torch.stack([S.expand(*batch, *S.shape[-2:]) for S in cores])  # (K, *batch, r, r)
    zero = means.new_zeros(covariances.shape[:-2])
    S = torch.tensordot(w, covariances, 1)
    eye = torch.eye(S.shape[-1]).to(S)
    n_iter, residual = 0, torch.full(batch, torch.inf, dtype=S.dtype, device=S.device)
    while n_iter < max_iter:
        n_iter += 1
        maps = plan_matrix(S.expand_as(covariances), covariances, zero)
        bar = torch.tensordot(w, maps, 1)
        step = bar - eye
        moved = (step * (S @ step)).sum((-2, -1)).clamp(min=0)
        size = S.diagonal(dim1=-2, dim2=-1).sum(-1)
        residual = torch.where(size > 0, moved / torch.where(size > 0, size, 1), 0).sqrt()
        if bool((residual <= tol).all()):
            break
        S = bar @ S @ bar
        S = (S + S.mT) / 2
    else:
        warnings.warn(
            f"gaussian_barycentre: a residual of {float(residual.max()):.3g} after {max_iter} iterations, above "
            f"tol={tol:g}. Raise max_iter or tol.",
            NotConvergedWarning,
            stacklevel=3,
        )
    trace = lambda A: A.diagonal(dim1=-2, dim2=-1).sum(-1)  # noqa: E731
    apart = (means - mean).square().sum(-1)
    costs = trace(S) + trace(covariances) - overlap(S.expand_as(covariances), covariances, zero)
    value = torch.tensordot(w, apart + costs.clamp(min=0), 1)
    dual = torch.tensordot(w, apart, 1) + _dual(S, covariances, w, zero)
    out = Gaussian.of(mean, S) if basis is None else Gaussian.low_rank(mean, basis @ root(S))
    return GaussianBarycentre(out, value, dual, residual, n_iter)


def _dual(S: Tensor, covariances: Tensor, w: Tensor, zero: Tensor) -> Tensor:
    """Sum of w_k tr S_k (I - A_k^-1) for matrices A_k of the maps from S, turned so that sum w_k A_k = I."""
    values = torch.linalg.eigvalsh(covariances)
    full = (values[..., 0] > S.shape[-1] * torch.finfo(S.dtype).eps * values[..., -1]).all(0)
    same = S.expand_as(covariances)
    bar = torch.tensordot(w, plan_matrix(same, covariances, zero), 1)
    half = root(bar)
    inverse = half @ plan_matrix(covariances, same, zero) @ half  # A_k = bar^-1/2 (map) bar^-1/2
    total = covariances.diagonal(dim1=-2, dim2=-1).sum(-1) - (covariances * inverse).sum((-2, -1))
    return torch.where(full, torch.tensordot(w, total, 1), torch.nan)
