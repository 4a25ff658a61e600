"""The order in which points on the line join partial transport as its mass grows: native, or in NumPy."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .build import native

__all__ = ["PathResult", "partial_paths"]


class PathResult(NamedTuple):
    """For each problem of a batch, with which pair a point came in, and what the pairs cost."""

    step_x: NDArray[np.int64]  # (count, n) from 1 on; min(n, m) + 1 for points that stayed out
    step_y: NDArray[np.int64]  # (count, m)
    prices: NDArray[np.float64]  # (count, min(n, m)) what each pair adds to the cost; infinite for those not made


def partial_paths(
    x: NDArray[np.float64],  # (count, n), ascending
    y: NDArray[np.float64],  # (count, m), ascending
    p: float,
    *,
    pairs: NDArray[np.int64],  # (count,)
    price: NDArray[np.float64],  # (count,)
    engine: str = "auto",
) -> PathResult:
    """Grow the best matching of points on the line pair by pair, at the cost |x - y|^p.

    Points that are matched once stay so, and those of the first k pairs are matched from left to right. The points
    between two neighbours of those left out are matched among themselves, as an arc over a point that is left out
    could end there. So the next pair to come in are two neighbours among those left out, an x and a y, and the points
    between them all move by one place: a heap holds what that costs.

    Args:
        x, y: C-contiguous.
        p: at least 1.
        pairs: where each path ends, at most min(n, m).
        price: or where the next pair would cost as much.
        engine: ``"native"``, ``"reference"`` (NumPy), or ``"auto"``: native where it was built.

    Raises:
        ValueError: An unknown engine.
        ImportError: The native engine was asked for and is not built.

    At p = 1 the native engine takes O((n + m) log(n + m)) time: what a move costs follows from the moves inside it.
    Otherwise each candidate is a sum over the points between: O((n + m) log(n + m)) in all for clouds that are mixed,
    O(n m) at worst, for clouds that lie side by side. O(n + m) memory.

    Reference: Chapel & Tavenard (2025), One for all and all for one: efficient computation of partial Wasserstein
    distances on the line; Bai, Schmitzer, Thorpe & Kolouri (2023), Sliced optimal partial transport.
    """
    if engine not in ("auto", "native", "reference"):
        raise ValueError(f"expected engine 'auto', 'native' or 'reference', got {engine!r}")
    if engine == "native" and native is None:
        raise ImportError("the native engine is not built; reinstall with a C++20 compiler, or use engine='reference'")
    (count, n), m = x.shape, y.shape[1]
    if native is not None and engine != "reference":
        step_x, step_y, prices = native.partial_paths(x, y, p, pairs, price, torch.get_num_threads())
        return PathResult(step_x.reshape(count, n), step_y.reshape(count, m), prices.reshape(count, min(n, m)))
    most = min(n, m)
    steps = np.full((count, n + m), most + 1)
    prices = np.full((count, most), np.inf)
    for k in range(count):
        _grow(x[k], y[k], p, int(pairs[k]), float(price[k]), steps[k], prices[k])
    return PathResult(steps[:, :n], steps[:, n:], prices)


def _grow(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    p: float,
    pairs: int,
    price: float,
    steps: NDArray[np.int64],  # (n + m,) of x, then of y
    prices: NDArray[np.float64],
) -> None:
    """One path, written to `steps` and `prices`."""
    n, size = len(x), len(x) + len(y)
    order = np.argsort(np.concatenate([x, y]), kind="stable")  # on a tie, x first
    of_x = order < n
    is_x, rank = of_x.tolist(), order.tolist()
    before: list[int] = (np.cumsum(of_x) - of_x).tolist()
    prev, after = list(range(-1, size - 1)), list(range(1, size + 1))  # neighbours among those left out

    def rise(left: int, right: int) -> float:
        """By how much the cost rises if two neighbours come in."""
        i, j, count = before[left], left - before[left], (right - left + 1) // 2
        now = np.abs(x[i : i + count] - y[j : j + count]) ** p
        i, j = (i + 1, j) if is_x[left] else (i, j + 1)
        was = np.abs(x[i : i + count - 1] - y[j : j + count - 1]) ** p
        return float((now[:-1] - was).sum() + now[-1])

    heap = [(rise(t, t + 1), t, t + 1) for t in np.flatnonzero(of_x[:-1] != of_x[1:]).tolist()]
    heapify(heap)
    made = 0
    while made < pairs and heap:
        cost, left, right = heappop(heap)
        if after[left] != right:  # one of them has come in since
            continue
        if not cost < price:
            break
        prices[made] = cost
        made += 1
        steps[rank[left]] = steps[rank[right]] = made
        first, last = prev[left], after[right]
        after[left] = after[right] = -1
        if first >= 0:
            after[first] = last
        if last < size:
            prev[last] = first
        if first >= 0 and last < size and is_x[first] != is_x[last]:
            heappush(heap, (rise(first, last), first, last))
