"""Scaling of a sparse nonnegative matrix to given row and column sums by Newton's method."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...kernels.laplacian import Laplacian

__all__ = ["ScalingSteps", "SparseScaling"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_MOST_STEPS = 50
_RTOL = 1e-3  # of a direction
_LEAST = 1e-13  # share of a row or column that is taken to lie elsewhere
_ARMIJO = 1e-4
_SMALLEST = 1e-4  # step
_ROUNDING = 1e-13  # of the dual value, relative to its terms


class ScalingSteps(NamedTuple):
    """What a scaling took."""

    newton: int
    cg: int


class SparseScaling:
    r"""Find u and v such that the matrix P_ij exp(u_i + v_j) has row sums a and column sums b.

    P is a large matrix of which the entries that matter are given, and the sums of all others: R of the rows, Q of the
    columns. These are taken to grow as R exp(u) and Q exp(v), so that every pair of sums can be reached. Then u and v
    maximise the concave dual

        a·u + b·v - sum_ij P_ij exp(u_i + v_j) - R·exp(u) - Q·exp(v).

    v is eliminated: it makes the columns exact at all times. The Newton direction solves a system with the Laplacian of
    the graph of P exp(u + v), in which the others are edges to the ground. Where the entries that join two parts of the
    graph have to grow a lot, the direction d is as long as the ratio that they have to grow by; log(1 + |d|) is then
    the step that an exponential needs, and is tried first. A line search on the dual guards both.

    Time and memory of a step are nearly linear in the number of entries.

    Args:
        rows, cols, values: entries of P, ascending by row.
        a, b: (n,) and (m,) sums that are asked for.
        other_rows, other_cols: R and Q.
    """

    def __init__(
        self, rows: Index, cols: Index, values: Array, a: Array, b: Array, other_rows: Array, other_cols: Array
    ) -> None:
        n = len(a)
        self._rows, self._cols, self._values = rows, cols, values
        self._starts = np.searchsorted(rows, np.arange(n + 1)).astype(np.int64)
        self._narrow = cols.astype(np.int32)
        self._mass = float(a.sum()) or 1.0
        self.a, self.b = a, b
        self._other_rows, self._other_cols = np.maximum(other_rows, _LEAST * a), np.maximum(other_cols, _LEAST * b)
        self.u = np.zeros(n)
        self.v, self._scaled, self._sums = self._columns(self.u)

    @property
    def entries(self) -> int:
        """How many entries of P are known one by one."""
        return len(self._values)

    def _columns(self, u: Array) -> tuple[Array, Array, Array]:
        """V that makes the columns exact, the matrix scaled by both, and all row sums."""
        growth = np.exp(u)
        partly = self._values * growth[self._rows]
        sums = np.bincount(self._cols, partly, len(self.b)) + self._other_cols
        factor = np.where(self.b > 0, self.b, 1) / np.where(self.b > 0, sums, 1)
        scaled = partly * factor[self._cols]
        return np.log(factor), scaled, np.bincount(self._rows, scaled, len(u)) + self._other_rows * growth

    def _system(self, rows: Array, cols: Array, ground: Array, rtol: float) -> tuple[Array, int]:
        """The rows of the solution of a Laplacian system, and the conjugate gradients."""
        solution = Laplacian(self._starts, self._narrow, self._scaled, ground).solve(np.append(rows, cols), rtol)
        return solution.x[: len(rows)], solution.n_iter

    def solve(self, tol: float) -> ScalingSteps:
        """Newton steps until the rows are met to `tol`, an L1 error relative to the mass, or steps do not help."""
        steps = cg = 0
        live = self.a > 0
        while steps < _MOST_STEPS:
            gradient = np.where(live, self.a - self._sums, 0)
            error = float(np.abs(gradient).sum()) / self._mass
            if not error > tol:
                break
            # rows that lack mass are held back by it, which keeps a first step short
            ground = np.append(
                self._other_rows * np.exp(self.u) + np.maximum(gradient, 0), self._other_cols * np.exp(self.v)
            )
            d, count = self._system(gradient, np.zeros(len(self.b)), ground, min(_RTOL, error))
            cg += count
            if not self._searched(np.where(live, d, 0), gradient, live):
                break
            steps += 1
        return ScalingSteps(steps, cg)

    def _searched(self, d: Array, gradient: Array, live: NDArray[np.bool_]) -> bool:
        """Go along a direction as far as the dual allows; whether it was any use."""
        terms = np.append(self.a[live] * self.u[live], self.b * self.v)
        value, noise = terms.sum() - self._other_rows @ np.exp(self.u), _ROUNDING * np.abs(terms).sum()
        before = np.abs(gradient).sum()
        bent = np.sign(d) * np.log1p(np.abs(d))
        alpha, trials = 1.0, [bent, d] if np.abs(d).max() > 1 else [d]
        while alpha >= _SMALLEST:
            step = trials.pop(0) if trials else alpha * d
            u = self.u + step
            slope = float(gradient @ step)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                v, scaled, sums = self._columns(u)
                gain = float(self.a[live] @ u[live] + self.b @ v - self._other_rows @ np.exp(u)) - value
            if slope > noise:
                good = gain >= _ARMIJO * slope
            else:  # the value cannot tell any more
                good = np.abs(np.where(live, self.a - sums, 0)).sum() < before
            if good and np.isfinite(sums).all():
                self.u, self.v, self._scaled, self._sums = u, v, scaled, sums
                return True
            if not trials:
                alpha /= 4
        return False

    def tangent(self, a: Array, b: Array) -> tuple[Array, int]:
        r"""The x of the solution of sum_j P_ij (x_i + y_j - log(P_ij / a_i b_j)) = 0, and over i, for the scaled P.

        It is the derivative in epsilon of the potential f of the plan P. Also the conjugate gradients it took.
        """
        live = self._scaled > 0
        reference = a[self._rows] * b[self._cols]
        flow = self._scaled * np.log(np.where(live, self._scaled, 1) / np.where(live, reference, 1))
        rows = np.bincount(self._rows, flow, len(a)).astype(np.float64)
        cols = np.bincount(self._cols, flow, len(b)).astype(np.float64)
        return self._system(rows, -cols, _LEAST * np.append(a, b), _RTOL)
