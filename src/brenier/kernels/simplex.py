"""Exact transport between two discrete measures, or many pairs at once: the network simplex, native or in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import simplex_reference
from .build import native

__all__ = ["SimplexResult", "SimplexResults", "integer_masses", "network_simplex", "network_simplices", "true_masses"]

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


class SimplexResults(NamedTuple):
    """Exact plans of many problems of one shape, padded by entries without mass, and the duals that prove them."""

    rows: NDArray[np.int64]  # (count, n + m - 1)
    cols: NDArray[np.int64]  # (count, n + m - 1)
    mass: NDArray[np.float64]  # (count, n + m - 1)
    f: NDArray[np.float64]  # (count, n) f_i + g_j <= cost_ij
    g: NDArray[np.float64]  # (count, m)
    tree: NDArray[np.int32]  # (count, n + m) the parent of each row, then of each column; -1 for none
    n_iter: NDArray[np.int64]  # (count,) pivots
    optimal: NDArray[np.bool_]  # (count,) False when stopped by interrupt; plan and duals are feasible all the same


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
    swift = _native_serves(engine)
    if cost.shape != (len(a), len(b)):
        raise ValueError(f"expected a cost of shape {(len(a), len(b))}, got {cost.shape}")
    if not all(dual is None or np.isfinite(dual).all() for dual in (f, g)):
        raise ValueError("expected finite duals f and g to start from, got NaN or infinity; leave them out")
    solve = native.network_simplex if native is not None and swift else simplex_reference.solve

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


def network_simplices(
    cost: NDArray[np.float64],  # (count, n, m)
    a: NDArray[np.float64],  # (count, n)
    b: NDArray[np.float64],  # (count, m)
    *,
    g: NDArray[np.float64] | None = None,  # (count, m)
    tree: NDArray[np.int32] | None = None,  # (count, n + m)
    interrupt: Callable[[], bool] | None = None,
    engine: str = "auto",
) -> SimplexResults:
    """Solve many problems as `network_simplex` does, of one shape: padded by points without mass, where need be.

    Args:
        cost: Finite costs of either sign, C-contiguous; never copied.
        a: Masses of the rows, nonnegative.
        b: Masses of the columns, nonnegative, of the same sums but for rounding.
        g: Duals to start from, of the reference engine.
        tree: That of the last solve for the same masses, to start the native engine from; -1 throughout for none.
            After a small change of the costs it saves most pivots, and all that it takes to grow a tree.
        interrupt: As for `network_simplex`, polled by the calling thread.
        engine: ``"native"``, ``"reference"``, or ``"auto"``: native where it was built.

    Returns:
        The plans, the duals and how they were reached.

    Raises:
        ValueError: As for `network_simplex`.
        ImportError: The native engine was asked for and is not built.

    Time as of so many calls, spread over torch's threads.
    """
    swift = _native_serves(engine)
    count, n, m = cost.shape
    shapes = [None if t is None else t.shape for t in (a, b, g, tree)]
    if any(s not in (None, (count, k)) for s, k in zip(shapes, (n, m, m, n + m))):
        raise ValueError(f"expected a, b, g and tree for costs of shape {cost.shape}, got shapes {shapes}")
    if g is not None and not np.isfinite(g).all():
        raise ValueError("expected finite duals g to start from, got NaN or infinity; leave them out")
    if native is None or not swift:
        return _looped(cost, a, b, g, tree, interrupt)
    supply, demand, unit = integer_masses(a, b)
    *entries, f, g, tree, n_iter, optimal = native.network_simplices(
        cost, supply, demand, tree, torch.get_num_threads(), interrupt
    )
    rows, cols, flow = (t.reshape(count, n + m - 1) for t in entries)
    # the lines of all problems, one after the other
    lines = np.arange(count)[:, None]
    masses = true_masses(
        rows + n * lines, cols + m * lines, flow, supply.ravel(), demand.ravel(), unit, a.ravel(), b.ravel()
    )
    f, g, tree = f.reshape(count, n), g.reshape(count, m), tree.reshape(count, n + m)
    return SimplexResults(rows, cols, masses, f, g, tree, n_iter, optimal.astype(bool))


def _looped(
    cost: NDArray[np.float64],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    g: NDArray[np.float64] | None,
    tree: NDArray[np.int32] | None,
    interrupt: Callable[[], bool] | None,
) -> SimplexResults:
    """The reference for many problems: one after the other."""
    count, n, m = cost.shape
    rows, cols = np.zeros((2, count, n + m - 1), np.int64)
    mass, f, g_new = np.zeros((count, n + m - 1)), np.zeros((count, n)), np.zeros((count, m))
    n_iter, optimal = np.zeros(count, np.int64), np.zeros(count, bool)
    for k in range(count):
        start = None if g is None else g[k]
        found = network_simplex(cost[k], a[k], b[k], g=start, interrupt=interrupt, engine="reference")
        size = len(found.mass)
        rows[k, :size], cols[k, :size], mass[k, :size] = found.rows, found.cols, found.mass
        f[k], g_new[k], n_iter[k], optimal[k] = found.f, found.g, found.n_iter, found.optimal
    tree = np.full((count, n + m), -1, np.int32) if tree is None else tree
    return SimplexResults(rows, cols, mass, f, g_new, tree, n_iter, optimal)


def _native_serves(engine: str) -> bool:
    """Whether the engine that was asked for is the native one."""
    if engine not in ("auto", "native", "reference"):
        raise ValueError(f"expected engine 'auto', 'native' or 'reference', got {engine!r}")
    if engine == "native" and native is None:
        raise ImportError("the native engine is not built; reinstall with a C++20 compiler, or use engine='reference'")
    return native is not None and engine != "reference"


def integer_masses(
    a: NDArray[np.float64],  # (*batch, n)
    b: NDArray[np.float64],  # (*batch, m)
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Masses as integers of equal sums, and their unit (*batch, 1): 2⁻⁶¹ of the total, or 1 / lcm for equal masses."""
    (total, a_live, a_count, a_equal), (other, b_live, b_count, b_equal) = map(_told, (a, b))
    wrong = ~(np.abs(total - other) <= 1e-6 * np.maximum(total, other))
    if wrong.any():
        got = f"{total[wrong][0]} and {other[wrong][0]}"
        raise ValueError(f"expected equal sums of a and b, got {got}; rescale one of them")
    common, equal = np.gcd(a_count, b_count), a_equal & b_equal
    exponent = 61 - np.frexp(np.maximum(total, other))[1]

    def units(weights: NDArray[np.float64], each: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(equal, each, np.maximum(np.rint(np.ldexp(weights, exponent)), 1)).astype(np.int64)

    supply, demand = a_live * units(a, b_count // common), b_live * units(b, a_count // common)
    # The heaviest line of the lighter side absorbs the rest.
    rest = supply.sum(-1, keepdims=True) - demand.sum(-1, keepdims=True)
    for side, lack in ((supply, -rest), (demand, rest)) if rest.any() else ():
        heaviest = side.argmax(-1)[..., None]
        lacking = np.take_along_axis(side, heaviest, -1) + np.maximum(lack, 0)
        np.put_along_axis(side, heaviest, lacking, -1)
    return supply, demand, np.where(equal, total / (a_count * b_count // common), np.ldexp(1.0, -exponent))


def _told(
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """The sum of weights, which are positive, how many, at least one, and whether these are equal; (*batch, 1) each."""
    live = weights > 0
    total, heaviest = weights.sum(-1, keepdims=True), weights.max(-1, keepdims=True, initial=0)
    equal = (live <= (weights == heaviest)).all(-1, keepdims=True)
    return total, live, np.maximum(live.sum(-1, keepdims=True), 1), equal


def true_masses(
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
    flow: NDArray[np.int64],
    supply: NDArray[np.int64],
    demand: NDArray[np.int64],
    unit: NDArray[np.float64],
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
