"""A bijection of many points in nearly linear time: matched halves down to small blocks, then exact sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._inputs import Kind
from ..errors import refuse
from ..geometry import PointCloud
from ..geometry.clusters import Clusters, sorted_within
from ..plan import SparsePlan
from ..problem import Problem
from ..solution import Status
from .base import Outcome, Solver, check_count, check_number, time_is_up
from .entropic.subsample import coarse_potentials
from .exact.assignment import match, permutes
from .lowrank import check_sides, features

__all__ = ["Hierarchical", "HierarchicalState"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_POWER = 4  # iterations towards the widest direction of a block, to begin with
_TURNS = 8  # of the two normals of a split, at most
_AXES = 8  # random directions that the pairs are cut along in a sweep
_SETTLED = 1e-12  # of the gain of a split: rounding
_CHUNK = 1 << 18  # coordinates or costs of blocks that are formed at once, few enough for a cache
_QUIET = 2  # sweeps in a row that gain less than the tolerance


class HierarchicalState(NamedTuple):
    """The permutation so far, and what the last sweeps gained."""

    cols: Index | None  # (n,) the partner of each point; None before the first step
    value: float  # its cost
    gain: float  # of the last sweep, relative
    quiet: int  # sweeps in a row that gained less than the tolerance
    generator: torch.Generator


@dataclass(frozen=True)
class Hierarchical(Solver[HierarchicalState]):
    r"""A bijection between n points and n points, by matched splits, small assignments and exact sweeps over blocks.

    Minimises sum_i c(x_i, y_s(i)) over permutations s, approximately, and never raises the cost:

    1. *Refine.* A pair of subsets of equal size is split in two pairs by transport of rank two: maximise
       <u1 - u2, v1 - v2> over halves of the two sides, u and v the means of the halves (for squared costs, what
       transport between the halves gains). Given the halves of one side the best of the other are those on either side
       of the median along that difference; the sides take turns for as long as it gains. Splits are exact halves, up
       to one point where the size is odd, so any n will do. Blocks of at most `size` points are assigned exactly.
    2. *Sweep.* The matched pairs (x_i, y_s(i)) are cut into blocks anew, at medians along random directions of
       x_i + y_s(i), and each block is assigned exactly. Pairs that had better swap partners are near each other in
       that sum: for squared costs a swap gains -2 <dx, dy>, and |dx + dy|^2 = |dx|^2 + |dy|^2 + 2 <dx, dy>.

    The first step refines, each further one is a sweep. The plan is a permutation, `plan.argmax()`, and its cost an
    upper bound. The potentials are a guess from a sample of the matched pairs, from which `certificate` proves a lower
    bound over all pairs, at a few passes over them.

    Takes a `PointCloud` of any cost with n = m and equal masses, without batch axes. Splits and cuts go by the
    factors u and v of an inner-product cost, and by coordinates for others; assignments by the cost itself.
    O(n log(n / size) (d + log n)) time for the splits and O(n size d) for a sweep, beside the assignments, which grow a
    little faster in `size`; O(n d) memory.

    Args:
        tol: relative gain of a sweep, twice in a row, at which to stop.
        max_iter: the first step and sweeps.
        size: points of a block; larger ones cost more time and leave less to gain.
        sample: pairs from which the potentials of the lower bound come.
        generator: for the directions; seed 0 when None.

    Raises:
        InvalidInput: an epsilon, unequal sides or masses, soft marginals, batches, another geometry, weights with a
            gradient.

    Example:
        >>> import torch, brenier
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 1000, 2, generator=generator, dtype=torch.float64)
        >>> solution = brenier.solve(x, y + 1, solver="hierarchical")
        >>> int(solution.plan.argmax().unique().numel()), float(solution.certificate.relative_gap) < 0.05
        (1000, True)

    Reference:
        Halmos, Gold, Liu & Raphael (2025), Hierarchical refinement: optimal transport to infinity and beyond (splits of
        matched pairs of subsets by low-rank transport). Minty (1962), Monotone (nonlinear) operators in Hilbert space
        (x + y as a coordinate of a monotone graph).
    """

    name: ClassVar[str] = "hierarchical"
    coarse: ClassVar[bool] = True
    tol: float = 1e-4
    max_iter: int = 200
    size: int = 256
    sample: int = 2000
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tol", self.tol)
        for name in ("size", "sample"):
            check_count(f"Hierarchical {name}", getattr(self, name))

    def check(self, problem: Problem) -> None:
        check_sides(self.name, problem)
        if not isinstance(problem.geometry, PointCloud):
            cure = "Use solver='assignment' for a matrix."
            refuse(self.name, "a PointCloud", type(problem.geometry).__name__, cure)
        if not permutes(problem):
            n, m = problem.shape
            got = f"{n} and {m}" if n != m else "unequal masses"
            cure = "Use LowRank(rank=...) for other masses, or solver='network-simplex'."
            refuse(self.name, "as many sources as targets, of equal masses", got, cure)

    # -- the contract of a solver ----------------------------------------------------------------------------

    def init(self, problem: Problem) -> HierarchicalState:
        generator = torch.Generator().manual_seed(0) if self.generator is None else self.generator
        return HierarchicalState(None, float("inf"), float("inf"), 0, generator)

    def step(self, problem: Problem, state: HierarchicalState) -> HierarchicalState:
        u, v = (Kind.array_numpy(t.double()) for t in features(problem))
        if state.cols is None:
            rows, cols, starts = _refined(u, v, self.size, state.generator)
            found = np.empty_like(cols)
            found[rows] = cols
        else:
            rows, starts = _cut(u + v[state.cols], self.size, state.generator)
            found, cols = state.cols.copy(), state.cols[rows]
        cloud = problem.geometry
        assert isinstance(cloud, PointCloud)
        for block in _blocks(starts, self.size * cloud.x.shape[-1]):
            found[rows[block]] = _assigned(cloud, rows[block], cols[block])
            if state.cols is not None and time_is_up():
                break
        value = _cost(problem, found)
        if not value < state.value and state.cols is not None:  # equal but for rounding
            return state._replace(gain=0.0, quiet=state.quiet + 1)
        gain = (state.value - value) / abs(state.value) if state.cols is not None else float("inf")
        quiet = state.quiet + 1 if gain <= self.tol else 0
        return HierarchicalState(found, value, gain, quiet, state.generator)

    def terminate(self, problem: Problem, state: HierarchicalState) -> tuple[Status, ...] | None:
        whole = problem.shape[0] <= self.size  # one block: its assignment is optimal
        return (Status.CONVERGED,) if whole or state.quiet >= _QUIET else None

    def error(self, state: HierarchicalState) -> float:
        return state.gain

    def finish(self, problem: Problem, state: HierarchicalState) -> Outcome:
        assert state.cols is not None
        n, device = problem.shape[0], problem.geometry.device
        cols = torch.from_numpy(state.cols).to(device)
        plan = SparsePlan(problem.geometry, torch.arange(n, device=device), cols, problem.a.double())
        stats: dict[str, Any] = {"gain": state.gain}
        return Outcome(plan, *coarse_potentials(problem.double(), self.sample, cols), stats)


def _cost(problem: Problem, cols: Index) -> float:
    rows = torch.arange(len(cols), device=problem.geometry.device)
    cost = problem.geometry.cost_at(rows, torch.from_numpy(cols).to(rows.device))
    return float((problem.a.double() * cost.double()).sum())


# -- splits ----------------------------------------------------------------------------------------------------------


def _refined(u: Array, v: Array, size: int, generator: torch.Generator) -> tuple[Index, Index, Index]:
    """Orders of both sides (n,) whose runs between `starts` are matched blocks of at most `size` points."""
    n = len(u)
    rows, cols = np.arange(n), np.arange(n)
    depth = 0
    while n > size << depth:
        starts, middles = _starts(n, depth), _starts(n, depth + 1)[1::2]
        first, second = _split(u[rows], v[cols], starts, middles, generator)
        rows, cols = rows[first], cols[second]
        depth += 1
    return rows, cols, _starts(n, depth)


def _starts(n: int, depth: int) -> Index:
    """Where 2^depth runs of equal length begin, up to one point, and n."""
    return np.arange((1 << depth) + 1) * n >> depth


def _split(u: Array, v: Array, starts: Index, middles: Index, generator: torch.Generator) -> tuple[Index, Index]:
    """Orders of the rows of u and of v that put the two halves of each block one after the other."""
    sizes = np.diff(starts)
    upper = np.repeat(middles, sizes) <= np.arange(len(u))  # places of the second halves
    # second halves minus first halves, as means
    sign = np.where(upper, 1 / np.repeat(starts[1:] - middles, sizes), -1 / np.repeat(middles - starts[:-1], sizes))

    def ordered(points: Array, normal: Array) -> tuple[Index, Array]:
        order = sorted_within(np.einsum("ij,ij->i", points, np.repeat(normal, sizes, 0)), starts)
        weight = np.empty(len(points))
        weight[order] = sign
        return order, np.add.reduceat(points * weight[:, None], starts[:-1])

    u, v = (t - np.repeat(np.add.reduceat(t, starts[:-1]) / sizes[:, None], sizes, 0) for t in (u, v))
    normal = _widest(u, v, starts, generator)
    best = np.full(len(sizes), -np.inf)
    for _ in range(_TURNS):
        first, across = ordered(u, normal)
        second, normal = ordered(v, across)
        gain = (across * normal).sum(1)
        if not (gain > best * (1 + _SETTLED)).any():
            break
        best = gain
    return first, second


def _widest(u: Array, v: Array, starts: Index, generator: torch.Generator) -> Array:
    """The direction (blocks, k) along which both sides of each block are widest, by a few power iterations."""
    sizes = np.diff(starts)
    normal = torch.randn(len(sizes), u.shape[1], generator=generator, dtype=torch.float64).numpy()
    for _ in range(_POWER):
        spread = np.repeat(normal, sizes, 0)
        along = (np.einsum("ij,ij->i", t, spread)[:, None] for t in (u, v))
        first, second = (np.add.reduceat(t * w, starts[:-1]) for t, w in zip((u, v), along))
        normal = first + second
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        normal = np.divide(normal, length, out=np.ones_like(normal), where=length > 0)
    return normal


def _cut(pairs: Array, size: int, generator: torch.Generator) -> tuple[Index, Index]:
    """An order (n,) of the pairs whose runs between `starts` are near each other, at most `size` of them."""
    k = pairs.shape[1]
    turn = torch.linalg.qr(torch.randn(k, min(k, _AXES), generator=generator, dtype=torch.float64)).Q.numpy()
    tree = Clusters.of(pairs @ turn, max(1, size // 2))
    assert tree.order is not None
    return tree.order, tree.starts(tree.depth_of(size))


# -- blocks ----------------------------------------------------------------------------------------------------------


def _blocks(starts: Index, width: int) -> Iterator[Index]:
    """Places (blocks, length) of runs of one length, a bounded number of blocks at a time."""
    sizes = np.diff(starts)
    for length in np.unique(sizes):
        begins = starts[:-1][sizes == length]
        some = max(1, _CHUNK // max(width, length * length))
        for k in range(0, len(begins), some):
            yield begins[k : k + some, None] + np.arange(length)


def _assigned(cloud: PointCloud, rows: Index, cols: Index) -> Index:
    """The best partners among the columns of each block, (blocks, length)."""
    first, second = (torch.from_numpy(t).to(cloud.device) for t in (rows, cols))
    x, y = cloud.tensors
    best = match(cloud.with_tensors(x[first], y[second])).columns
    return np.take_along_axis(cols, Kind.array_numpy(best), -1)
