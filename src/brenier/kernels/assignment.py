"""The assignment problem on dense cost matrices, many at once: native, or by SciPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .build import native

__all__ = ["AssignmentResult", "assignment"]

_SAMPLED = 512  # rows from which the duals of a sample are worth their time
_SMALLEST = 128  # rows of the smallest sample that is sampled again


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

    O(n² m) time at worst, n the shorter side, and a few scans of the matrix at best. The native engine reads float64
    in place where it can; what it must turn or pad it lays out anew, one problem for each thread. Large problems of
    equal sides start from the duals of half of the rows and columns, solved in the same way, which takes 3 n² more
    bytes.

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
        if g is None and n == m == pairs and n >= _SAMPLED and price == np.inf and cost.dtype == np.float64:
            starts = [start for one in cost if (start := _sampled_duals(one)) is not None]
            g = np.stack(starts) if len(starts) == count else None
        cols, f, v, level, found = native.assignment(cost, g, pairs, price, torch.get_num_threads())
        return AssignmentResult(cols.reshape(count, n), f.reshape(count, n), v.reshape(count, m), level, found)
    cols, f, v = np.empty((count, n), np.int64), np.empty((count, n)), np.empty((count, m))
    level = np.empty(count)
    for k in range(count):
        cols[k], f[k], v[k], level[k] = _solve(cost[k].astype(np.float64), pairs, price)
    return AssignmentResult(cols, f, v, level, (cols >= 0).sum(-1))


def _sampled_duals(cost: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Duals g near the optimum, from those of half of the rows and columns; None where too much is forbidden."""
    assert native is not None
    n = len(cost)
    rows, cols = (np.sort(np.random.default_rng(side).permutation(n)[: n // 2]) for side in range(2))
    part = cost[np.ix_(rows, cols)]
    start = _sampled_duals(part) if len(part) >= _SMALLEST else None
    *_, sampled, _, found = native.assignment(part[None], None if start is None else start[None], n // 2, np.inf, 1)
    if found[0] < n // 2:
        return None
    g, ones = np.full(n, -np.inf), np.ones(n, np.int64)
    g[cols] = sampled
    g = native.smoothed_duals(cost, ones, ones, g)
    return g if np.isfinite(g).all() else None


# The reference: every problem becomes one in which each row has a pair


def _solve(
    cost: NDArray[np.float64], pairs: int, price: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], float]:
    n, m = cost.shape
    dear = np.minimum(cost, price)  # staying unmatched at a price is a pair at that price
    level, cols = price, np.full(n, -1)
    try:
        if pairs < min(n, m):  # spare columns take the rows without a pair, spare rows the columns without one
            wide = np.full((n + m - pairs, n + m - pairs), np.inf)
            wide[:n, :m], wide[:n, m:], wide[n:, :m] = dear, 0, 0
            cols, v = _matched(wide)
            cols, g = np.where(cols[:n] < m, cols[:n], -1), v[:m] - v[:m].max()
            level = float(v[:m].max() - v[m:].max())
        elif n <= m:
            cols, g = _matched(dear)
        else:
            rows, f = _matched(dear.T)
            cols[rows], g = np.arange(m), (dear.T - f).min(axis=1)
            if price < np.inf:
                g = g - price
            else:
                level = 0.0
    except ValueError:  # too much is forbidden
        return cols, np.zeros(n), np.zeros(m), 0.0
    given = np.flatnonzero(cols >= 0)
    cols[given[cost[given, cols[given]] > price]] = -1
    f = np.minimum((cost - g).min(axis=1), level)
    return cols, f, g, level if level < np.inf else 0.0


def _matched(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A column for each of n <= m rows, and duals g <= 0 of the columns, zero for those without a pair.

    With the pairs known the duals are distances: the greatest g <= 0 with g_j <= c_ij - c_ik + g_k, k the column of i.
    """
    from scipy.optimize import linear_sum_assignment  # which is slow to import

    rows, cols = linear_sum_assignment(cost)
    change, g = cost - cost[rows, cols][:, None], np.zeros(cost.shape[1])
    for _ in range(len(rows)):
        shorter = np.minimum(g, (change + g[cols][:, None]).min(axis=0))
        if np.array_equal(shorter, g):
            break
        g = shorter
    return cols, g
