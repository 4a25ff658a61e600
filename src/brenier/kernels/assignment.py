"""The assignment problem on dense cost matrices, many at once: native, or by SciPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .build import native

__all__ = ["AssignmentResult", "assignment"]


class AssignmentResult(NamedTuple):
    """Pairs of rows and columns, and the duals that prove them, for each problem of a batch."""

    cols: NDArray[np.int64]  # (count, n) the column of each row, -1 where it has none
    f: NDArray[np.float64]  # (count, n) f_i + g_j <= cost_ij and f_i <= level
    g: NDArray[np.float64]  # (count, m) at most 0 where columns may stay unmatched
    level: NDArray[np.float64]  # (count,) f of unmatched rows; 0 where either side is matched in full
    found: NDArray[np.int64]  # (count,) pairs


def assignment(
    cost: NDArray[np.floating],  # (count, n, m)
    *,
    pairs: int | None = None,
    price: float = np.inf,
    g: NDArray[np.float64] | None = None,  # (count, m)
    engine: str = "auto",
) -> AssignmentResult:
    """Match rows and columns at least cost: min Σ cost_ij over the pairs, no row and no column in two.

    The dual is max Σ f + Σ g - (n - k) level over f_i + g_j ≤ cost_ij, f ≤ level and g ≤ 0, for k pairs; a side that is
    matched in full has no such bound.

    Args:
        cost: float32 or float64, C-contiguous, of either sign; infinity forbids a pair.
        pairs: How many to match; min(n, m), the default, is all that can be.
        price: Pairs that cost more stay unmatched; the sum of cost - price is then least, over at most ``pairs`` pairs.
        g: Duals of the columns to start from, for n = m, all pairs and no price.
        engine: ``"native"``, ``"reference"`` (SciPy), or ``"auto"``: native where it was built.

    Returns:
        Columns, duals and the number of pairs. Fewer than ``pairs`` without a price: the others are forbidden.

    Raises:
        ValueError: An unknown engine, ``pairs`` out of range, or a start where there can be none.
        ImportError: The native engine was asked for and is not built.

    O(n² m) time at worst (min and max of the sides) and a scan of the matrix at best. float64 matrices above 2¹⁶ entries
    are read in place, unless n > m; the others are laid out anew, one for each thread.
    Reference: Jonker & Volgenant (1987), Computing 38; Crouse (2016), IEEE TAES 52(4).
    """
    count, n, m = cost.shape
    pairs = min(n, m) if pairs is None else pairs
    if engine not in ("auto", "native", "reference"):
        raise ValueError(f"expected engine 'auto', 'native' or 'reference', got {engine!r}")
    if engine == "native" and native is None:
        raise ImportError("the native engine is not built; reinstall with a C++20 compiler, or use engine='reference'")
    if not 1 <= pairs <= min(n, m):
        raise ValueError(f"expected from 1 to {min(n, m)} pairs, got {pairs}")
    if g is not None and not (n == m == pairs and price == np.inf and g.shape == (count, m) and np.isfinite(g).all()):
        raise ValueError("expected finite duals g (count, m) only for n = m, all pairs and no price")
    if native is not None and engine != "reference":
        return AssignmentResult(*_shaped(native.assignment(cost, g, pairs, price, torch.get_num_threads()), cost.shape))
    solved = [_solve(c.astype(np.float64), pairs, price) for c in cost]
    cols = np.stack([k for k, _, _ in solved])
    duals, level = np.stack([v for _, v, _ in solved]), np.array([t for _, _, t in solved])
    f = np.stack([_rows_dual(c, v, t) for c, v, t in zip(cost, duals, level)])
    return AssignmentResult(cols, f, duals, np.where(np.isfinite(level), level, 0.0), (cols >= 0).sum(-1))


def _shaped(
    parts: tuple[NDArray[np.generic], ...], shape: tuple[int, int, int]
) -> tuple[NDArray[np.generic], ...]:
    cols, f, g, level, found = parts
    count, n, m = shape
    return cols.reshape(count, n), f.reshape(count, n), g.reshape(count, m), level, found


# The reference: every problem becomes one whose rows are all matched


def _solve(cost: NDArray[np.float64], pairs: int, price: float) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Columns, duals of the columns, and the level, infinite where there is none."""
    n, m = cost.shape
    dear = np.minimum(cost, price)  # what a row without a pair costs may as well be the cost of its pair
    cols = np.full(n, -1)
    if pairs == min(n, m):
        if n <= m:
            every, g = _matched(dear)
            level = price
        else:
            turned, f = _matched(dear.T)
            every, g = np.full(n, -1), _rows_dual(dear.T, f, np.inf)
            kept = turned >= 0
            every[turned[kept]] = np.flatnonzero(kept)
            level = price if price < np.inf else 0.0
            g = g - (max(g.max(), 0.0) if price < np.inf else 0.0)
        if price < np.inf and n <= m:
            level = price
            g = g - max(g.max(), 0.0) if n == m else g
    else:
        # a row that takes one of n - pairs spare columns has no pair; spare rows take the columns that are left
        wide = np.full((n + m - pairs, n + m - pairs), np.inf)
        wide[:n, :m], wide[:n, m:], wide[n:, :m] = dear, 0, 0
        every, v = _matched(wide)
        u = _rows_dual(wide, v, np.inf)
        spare_row = u[n:].max() if pairs < m else -v[:m].max()
        g = v[:m] + spare_row
        level = -v[m:].max() - spare_row if pairs < n else float((u[:n] - spare_row).max())
        every = np.where(every[:n] < m, every[:n], -1)
    found = every >= 0
    rows = np.flatnonzero(found)
    rows = rows[(cost[rows, every[rows]] <= price) & (cost[rows, every[rows]] < np.inf)]
    cols[rows] = every[rows]
    return cols, g, level


def _matched(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A column for each of n <= m rows, and duals of the columns by Bellman and Ford's relaxations."""
    raise NotImplementedError


def _rows_dual(cost: NDArray[np.floating], g: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The greatest f with f_i + g_j <= cost_ij and f <= level."""
    return np.minimum((cost - g).min(axis=1), level)
