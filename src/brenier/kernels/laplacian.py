"""Linear systems with the Laplacian of a weighted bipartite graph, native or by SciPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .build import native

__all__ = ["Laplacian", "LaplacianSolution"]

_GROUND = 1e-14  # of the diagonal, where the reference has to factorise a singular matrix


class LaplacianSolution(NamedTuple):
    """Where a solve ended."""

    x: NDArray[np.float64]  # (n + m,)
    residual: float  # sqrt(sum r^2 / degree), relative to that of the right-hand side
    n_iter: int  # conjugate gradients


class Laplacian:
    r"""The system [[diag(r), -W], [-W^T, diag(c)]] x = rhs, for W >= 0, r = W1 + ground and c = W^T 1 + ground.

    It is the Laplacian of a graph whose edges are the entries of W, and of edges to a vertex where x = 0, the ground.
    On components without such an edge x is known up to a constant, and the right-hand side sums to zero.

    The native engine runs conjugate gradients with an approximate Cholesky factor, sampled edge by edge: near linear
    time in the number of entries, and few iterations whatever the graph: six to fifteen for the plans that it was made
    for, some dozens for a chain of weights over twelve orders of magnitude. SciPy's sparse LU is the reference.

    Args:
        starts, columns, weights: W as a CSR matrix.
        ground: weights of the edges to the ground, (n + m,), rows first.
        seed: of the sample.
        engine: "native", "reference", or "auto".

    Reference:
        Kyng & Sachdeva (2016), Approximate Gaussian elimination for Laplacians; Gao, Kyng & Spielman (2023), Robust and
        practical solution of Laplacian equations by approximate elimination.
    """

    def __init__(
        self,
        starts: NDArray[np.int64],
        columns: NDArray[np.int32],
        weights: NDArray[np.float64],
        ground: NDArray[np.float64],
        *,
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        self._native: Any = None
        if native is not None and engine != "reference":
            self._native = native.Laplacian(starts, columns, weights, ground, seed)
        else:
            self._factor = _Factor(starts, columns, weights, ground)

    def solve(self, rhs: NDArray[np.float64], rtol: float = 1e-8, max_iter: int = 500) -> LaplacianSolution:
        """The solution, to a relative residual or as far as so many iterations bring it."""
        if self._native is None:
            return self._factor.solve(rhs)
        return LaplacianSolution(*self._native.solve(rhs, rtol, max_iter))


class _Factor:
    """The reference: LU of the scaled matrix with a little more on its diagonal, and a step of refinement."""

    def __init__(
        self,
        starts: NDArray[np.int64],
        columns: NDArray[np.int32],
        weights: NDArray[np.float64],
        ground: NDArray[np.float64],
    ) -> None:
        from scipy.sparse import block_array, csr_array, diags_array
        from scipy.sparse.linalg import splu

        n = len(starts) - 1
        m = len(ground) - n
        W = csr_array((weights, columns, starts), shape=(n, m))
        edges = block_array([[None, W], [W.T, None]], format="csr")
        degrees = edges.sum(1) + ground
        self._scale = np.where(degrees > 0, 1 / np.sqrt(np.where(degrees > 0, degrees, 1)), 0)
        scale = diags_array(self._scale)
        self._matrix = (diags_array(np.ones(n + m)) - scale @ edges @ scale).tocsr()
        self._lu = splu((self._matrix + _GROUND * diags_array(np.ones(n + m))).tocsc())

    def solve(self, rhs: NDArray[np.float64]) -> LaplacianSolution:
        b = self._scale * rhs
        x = self._lu.solve(b)
        x += self._lu.solve(b - self._matrix @ x)
        whole = float(np.linalg.norm(b))
        residual = float(np.linalg.norm(b - self._matrix @ x)) / whole if whole else 0.0
        return LaplacianSolution(self._scale * x, residual, 1)
