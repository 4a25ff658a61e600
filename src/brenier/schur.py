"""The Hessian of the entropic dual on the entries of the plan that matter: sparse matrices, and their factorisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .geometry import Geometry
from .marginals import FLOOR

__all__ = ["SupportInverse", "largest_entries", "support_inverse"]

_MOST_LINES = 10_000  # of the shorter side: beyond, a factorisation may not fit
_MOST_ENTRIES = 100_000  # over the lines of the shorter side, and at most 100: how many entries of a line are kept
_ROUNDING = 1e-14  # entries P_ij / sqrt(r_i c_j) below say nothing in float64
_JITTER = 1e-15  # of the diagonal: parts that no entry connects make the matrix singular


def largest_entries(geometry: Geometry, F: Tensor, G: Tensor, epsilon: Tensor, k: int, least: float = 0.0) -> Any:
    """The k largest of exp((F_i + G_j - c_ij) / eps) above `least`, a SciPy sparse array (n, m)."""
    from scipy.sparse import csr_array  # slow to import

    rows, cols, reduced = geometry.smallest(F, G, k)
    values = (-reduced / epsilon).exp()
    keep = values > least
    index = tuple(t[keep].cpu().numpy() for t in (rows, cols))
    return csr_array((values[keep].cpu().numpy(), index), shape=geometry.shape)


class SupportInverse(NamedTuple):
    """An approximate inverse, and what it cannot see."""

    solve: Callable[[Tensor], Tensor]  # of a vector (n,)
    parts: Tensor | None  # (n,) labels of the parts of the plan that exchange nothing; None where entries were left out


def support_inverse(
    geometry: Geometry, F: Tensor, G: Tensor, epsilon: Tensor, r: Tensor, c: Tensor
) -> SupportInverse | None:
    """An approximate inverse of diag(r) - P diag(1/c) P^T, where P = exp((F + G - C) / eps) has the sums r and c.

    Of P the largest P_ij / sqrt(r_i c_j) are kept and the matrix [[diag(r), -P], [-P^T, diag(c)]] is factorised; with
    all entries that float64 can tell, its diagonal is that of a graph Laplacian, so that shifts of parts of the plan
    that hardly exchange mass keep their tiny curvature. At small epsilon that is the inverse up to rounding.

    Returns:
        the inverse; None where it would take too much memory, or cannot be factorised.
    """
    n, m = geometry.shape
    lines = min(n, m)
    if lines > _MOST_LINES:
        return None
    from scipy.sparse import block_array, diags_array
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import splu

    most = min(n * m, min(100, _MOST_ENTRIES // lines) * max(n, m))
    F, G = (torch.where(w > 0, h - epsilon / 2 * torch.where(w > 0, w, 1).log(), FLOOR) for h, w in ((F, r), (G, c)))
    K = largest_entries(geometry, F, G, epsilon, most, _ROUNDING)
    roots = [np.sqrt(w.cpu().numpy()) for w in (r, c)]
    diagonals, parts = [np.ones_like(s) for s in roots], None
    if K.nnz < most:  # all that matter: the Laplacian of their graph
        sums = (K @ roots[1], K.T @ roots[0])
        diagonals = [np.where(s > 0, t / np.where(s > 0, s, 1), 1.0) for s, t in zip(roots, sums)]
        labels = connected_components(block_array([[None, K], [K.T, None]]), directed=False)[1]
        parts = torch.from_numpy(labels[:n]).to(r.device, torch.int64)
    left, right = (diags_array(d * (1 + _JITTER)) for d in diagonals)
    matrix = block_array([[left, -K], [-K.T, right]]).tocsc()
    try:
        factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError:  # exactly singular
        return None
    scale, padding = np.where(roots[0] > 0, 1 / np.where(roots[0] > 0, roots[0], 1), 0), np.zeros(m)

    def inverse(v: Tensor) -> Tensor:
        out = factor.solve(np.concatenate([scale * v.cpu().numpy(), padding]))[:n]
        return torch.from_numpy(scale * out).to(v)

    return SupportInverse(inverse, parts)
