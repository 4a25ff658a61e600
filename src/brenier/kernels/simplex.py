"""Exact transport between two discrete measures: the network simplex, native or in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import simplex_reference
from .build import native

__all__ = ["SimplexResult", "integer_masses", "network_simplex", "true_masses"]

_BLOCK = 1 << 20  # entries of cost per temporary
_UNLIMITED = np.iinfo(np.int64).max


class SimplexResult(NamedTuple):
    """An exact plan in coordinates, and the duals that prove it."""

    rows: NDArray[np.integer]  # (k,) k <= n + m - 1
    cols: NDArray[np.integer]  # (k,)
    mass: NDArray[np.float64]  # (k,) positive
    f: NDArray[np.float64]  # (n,) f_i + g_j <= cost_ij
    g: NDArray[np.float64]  # (m,)
    n_iter: int  # pivots
    optimal: bool  # False when stopped by max_iter or interrupt; the plan and the duals are feasible all the same


def network_simplex(
    cost: NDArray[np.float64],  # (n, m)
    a: NDArray[np.float64],  # (n,)
    b: NDArray[np.float64],  # (m,)
    *,
    f: NDArray[np.float64] | None = None,  # (n,)
    g: NDArray[np.float64] | None = None,  # (m,)
    max_iter: int | None = None,
    interrupt: Callable[[], bool] | None = None,
    engine: str = "auto",
) -> SimplexResult:
    """Solve min ⟨P, cost⟩ over P ≥ 0, P 1 = a, Pᵀ 1 = b exactly.

    The dual is max ⟨f, a⟩ + ⟨g, b⟩ over f_i + g_j ≤ cost_ij.

    Args:
        cost: Finite costs of either sign, C-contiguous; never copied.
        a: Masses of the rows, nonnegative.
        b: Masses of the columns, nonnegative, of the same sum but for rounding.
        f: Duals to start from; not used when ``g`` is given.
        g: Duals to start from. Near optimal duals save most pivots.
        max_iter: Largest number of pivots.
        interrupt: Polled every few milliseconds; stops the solve once it returns true.
        engine: ``"native"``, ``"reference"``, or ``"auto"``: native where it was built.

    Returns:
        The plan, the duals and how they were reached.

    Raises:
        ValueError: The sums of ``a`` and ``b`` differ by more than rounding, the shapes do not fit, a given
            dual is not finite, or the engine is unknown.
        ImportError: The native engine was asked for and is not built.

    Time grows a little faster than n m in practice. Memory beyond the cost is O(n + m), up to some kilobytes
    per line, and for a while a sixteenth of the cost, for the smaller problem that finds the first duals.
    """
    if engine not in ("auto", "native", "reference"):
        raise ValueError(f"expected engine 'auto', 'native' or 'reference', got {engine!r}")
    if engine == "native" and native is None:
        raise ImportError("the native engine is not built; reinstall with a C++20 compiler, or use engine='reference'")
    if cost.shape != (len(a), len(b)):
        raise ValueError(f"expected a cost of shape {(len(a), len(b))}, got {cost.shape}")
    if not all(dual is None or np.isfinite(dual).all() for dual in (f, g)):
        raise ValueError("expected finite duals f and g to start from, got NaN or infinity; leave them out")
    solve = simplex_reference.solve if native is None or engine == "reference" else native.network_simplex

    supply, demand, unit = integer_masses(a, b)
    if not supply.any():
        f, g = cost.min(axis=1, initial=np.inf), np.zeros(len(b))
        empty = np.empty(0, np.int64)
        return SimplexResult(empty, empty, np.empty(0), f, g, 0, True)
    rows, cols, flow, f, g, n_iter, optimal = solve(
        cost, supply, demand, f, g, _UNLIMITED if max_iter is None else max_iter, interrupt
    )
    used = flow > 0
    rows, cols, flow = rows[used], cols[used], flow[used]
    mass = true_masses(rows, cols, flow, supply, demand, unit, a, b)
    _complete_duals(cost, f, g)
    return SimplexResult(rows, cols, mass, f, g, n_iter, optimal)


def integer_masses(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Masses as integers of equal sums, and their unit: 2⁻⁶¹ of the total, or 1 / lcm for equal masses."""
    total, other = float(a.sum()), float(b.sum())
    if not abs(total - other) <= 1e-6 * max(total, other):
        raise ValueError(f"expected equal sums of a and b, got {total} and {other}; rescale one of them")
    rows, cols = np.flatnonzero(a), np.flatnonzero(b)
    supply, demand = np.zeros(len(a), np.int64), np.zeros(len(b), np.int64)
    if total == 0:
        return supply, demand, 1.0
    if np.ptp(a[rows]) == 0 and np.ptp(b[cols]) == 0:
        common = gcd(len(rows), len(cols))
        supply[rows], demand[cols] = len(cols) // common, len(rows) // common
        return supply, demand, total / (len(rows) * len(cols) // common)
    exponent = 61 - int(np.frexp(max(total, other))[1])
    supply[rows] = np.maximum(np.rint(np.ldexp(a[rows], exponent)), 1)
    demand[cols] = np.maximum(np.rint(np.ldexp(b[cols], exponent)), 1)
    # The heaviest line of the lighter side absorbs the rest.
    rest = int(supply.sum()) - int(demand.sum())
    lighter = demand if rest > 0 else supply
    lighter[lighter.argmax()] += abs(rest)
    return supply, demand, float(np.ldexp(1.0, -exponent))


def true_masses(
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
    flow: NDArray[np.int64],
    supply: NDArray[np.int64],
    demand: NDArray[np.int64],
    unit: float,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The masses of flows in units; a line that ships all its mass along one arc ships exactly its mass."""
    return np.where(
        flow == supply[rows], a[rows], np.where(flow == demand[cols], b[cols], flow.astype(np.float64) * unit)
    )


def _complete_duals(cost: NDArray[np.float64], f: NDArray[np.float64], g: NDArray[np.float64]) -> None:
    """Give lines without mass, marked by -inf, their greatest feasible duals."""
    rows, cols = np.flatnonzero(np.isneginf(f)), np.flatnonzero(np.isneginf(g))
    known = np.flatnonzero(np.isfinite(g))
    step = max(1, _BLOCK // max(1, len(g)))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        f[block] = (cost[np.ix_(block, known)] - g[known]).min(axis=1)
    if len(cols):
        g[cols] = np.inf
        for start in range(0, len(f), step):
            part = slice(start, start + step)
            g[cols] = np.minimum(g[cols], (cost[part, cols] - f[part, None]).min(axis=0))
