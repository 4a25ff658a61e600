"""Exact city-block transport on a grid, as a flow between neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import refuse
from ...geometry import Grid
from ...kernels.build import native
from ...kernels.simplex import integer_masses, true_masses
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_count, time_is_up
from .monotone import check_exact

__all__ = ["FlowState", "GridFlow", "flows_on"]

_COARSEST = 16  # nodes of a grid that is not made coarser
_UNLIMITED = np.iinfo(np.int64).max

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]


class _Result(NamedTuple):
    rows: Tensor
    cols: Tensor
    mass: Tensor
    potential: Tensor  # of the spanning tree, (n,)
    n_iter: int
    optimal: bool


class FlowState(NamedTuple):
    """One result for each item of the batch."""

    results: tuple[_Result, ...] = ()


@dataclass(frozen=True)
class GridFlow(Solver[FlowState]):
    r"""Send mass from node to node of the grid, for the cost sum_k |x_k - y_k|: the distance of shortest paths.

    Minimises  sum over neighbours u, v of |x_u - x_v| |flow_uv|  over flows with the divergence a - b: on a grid of D
    dimensions D n edges stand for n^2 pairs. The dual is one potential, f = p and g = -p, no steeper than the cost
    between neighbours and so between all pairs. What a and b share stays; the rest is cut into paths, which make the
    plan.

    By the network simplex on the graph; spanning trees of coarser grids, solved first, are the start. A timeout ends
    the pivots with a feasible plan.

    Args:
        max_pivots: stop after so many pivots on the finest grid; no limit if None.

    Complexity: O(D n) memory beside the plan, of some n entries. Pivots grow about as n, and with the distance that
    mass travels in nodes what each costs.

    Reference:
        Ling & Okada (2007), An efficient earth mover's distance algorithm for robust histogram comparison.
    """

    name: ClassVar[str] = "flow"
    max_pivots: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_pivots is not None:
            check_count("max_pivots", self.max_pivots)

    def check(self, problem: Problem) -> None:
        geometry = problem.geometry
        if not flows_on(geometry):
            refuse("flow", "a Grid with p=1", repr(geometry), "Use solver='network-simplex'.")
        check_exact("flow", problem)
        if native is None:
            refuse(
                "flow",
                "the native engine",
                "an installation without it",
                "Reinstall brenier with a C++20 compiler, or use solver='network-simplex'.",
            )

    def init(self, problem: Problem) -> FlowState:
        return FlowState()

    def step(self, problem: Problem, state: FlowState) -> FlowState:
        a, b = (t.double().reshape(-1, t.shape[-1]) for t in (problem.a, problem.b))
        b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
        geometry = problem.geometry
        assert isinstance(geometry, Grid)
        axes = [t.double().cpu().numpy() for t in geometry.axes]
        return FlowState(tuple(self._solved(axes, *(t.cpu().numpy() for t in pair)) for pair in zip(a, b)))

    def _solved(self, axes: list[_Float], a: _Float, b: _Float) -> _Result:
        assert native is not None
        supply, demand, unit = integer_masses(a, b)
        orders = [axis.argsort(kind="stable") for axis in axes]
        sizes = tuple(len(axis) for axis in axes)
        place = np.arange(len(a)).reshape(sizes)[np.ix_(*orders)].ravel()  # of each node of the sorted grid
        excess = (supply - demand)[place]
        levels = [_Level(tuple(axis[order] for axis, order in zip(axes, orders)), excess)]
        while levels[-1].nodes > _COARSEST:
            levels.append(levels[-1].coarser())
        tree = levels[-1].comb()
        for k, level in reversed([*enumerate(levels)]):
            limit = _UNLIMITED if k or self.max_pivots is None else self.max_pivots
            flow, potential, tree, n_iter, optimal = native.graph_flow(
                *level.edges, level.excess, tree, limit, time_is_up
            )
            if k:
                tree = levels[k - 1].lifted(level, tree)
        rows, cols, moved = native.shipments(*levels[0].edges, excess, flow)
        stays = np.minimum(supply, demand)
        still = np.flatnonzero(stays)
        rows, cols = np.concatenate([still, place[rows]]), np.concatenate([still, place[cols]])
        mass = true_masses(rows, cols, np.concatenate([stays[still], moved]), supply, demand, unit, a, b)
        p = np.empty_like(potential)
        p[place] = potential - (potential.min() + np.ptp(potential) / 2)
        i, j, w, f = map(torch.from_numpy, (rows, cols, mass, p))
        return _Result(i, j, w, f, n_iter, optimal)

    def terminate(self, problem: Problem, state: FlowState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state)

    def verdict(self, problem: Problem, state: FlowState) -> tuple[Status, ...]:
        return tuple(
            Status.OPTIMAL if r.optimal else Status.MAX_ITER if r.n_iter == self.max_pivots else Status.TIME_OUT
            for r in state.results
        )

    def error(self, state: FlowState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: FlowState) -> Outcome:
        batch, device, r = problem.batch_shape, problem.geometry.device, state.results
        rows, cols, mass, f = (
            torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True).reshape(*batch, -1).to(device)
            for parts in list(zip(*(k[:4] for k in r)))
        )
        if not all(k.optimal for k in r):  # the greatest potential below that is no steeper than the cost
            f = problem.geometry.to(torch.float64).cmin(-f)[0]
        plan = SparsePlan(problem.geometry, rows, cols, mass)
        stats: dict[str, Any] = {"n_iter": sum(k.n_iter for k in r), "engine": "native"}
        return Outcome(plan, f, -f, stats)


def flows_on(geometry: object) -> bool:
    """Whether the cost is the length of shortest paths on a grid."""
    return isinstance(geometry, Grid) and geometry.p == 1


class _Level:
    """A grid with sorted axes as a graph, and the mass that each node must send."""

    def __init__(self, axes: tuple[_Float, ...], excess: _Int) -> None:
        self.axes, self.excess = axes, excess
        self.sizes = tuple(len(axis) for axis in axes)
        self.nodes = len(excess)
        index = np.arange(self.nodes, dtype=np.int32).reshape(self.sizes)
        parts: tuple[list[NDArray[Any]], ...] = ([], [], [])
        self.starts = [0]  # of the edges along each axis
        for k, axis in enumerate(axes):
            lines = np.moveaxis(index, k, -1)
            step = np.broadcast_to(np.diff(axis), lines[..., 1:].shape)
            ends: tuple[NDArray[Any], ...] = (lines[..., :-1], lines[..., 1:])
            for part, values in zip(parts, (*ends, step)):
                part.append(np.moveaxis(values, -1, k).ravel())
            self.starts.append(self.starts[-1] + step.size)
        self.edges = tuple(map(np.concatenate, parts))  # tails, heads and costs

    def _numbers(self, k: int, *at: _Int) -> NDArray[np.int32]:
        """The edges along axis k that leave the nodes at these places for the next."""
        sizes = [size - (i == k) for i, size in enumerate(self.sizes)]
        return (self.starts[k] + np.ravel_multi_index(at, sizes)).astype(np.int32)

    def _places(self, k: int, edges: NDArray[np.integer[Any]]) -> tuple[_Int, ...]:
        sizes = [size - (i == k) for i, size in enumerate(self.sizes)]
        return np.unravel_index(edges - self.starts[k], sizes)

    def _joined(self, step: int) -> Iterator[NDArray[np.int32]]:
        """A tree in each block of 2 x 2 x ... nodes (step 2), or on the whole grid (step 1)."""
        for k in range(len(self.sizes)):
            # along axis k, in the first line of the block as the later axes go
            spans = [np.arange(size) if i < k else np.arange(0, size - 1, step) if i == k
                     else np.arange(0, size, 2) if step == 2 else np.arange(1)
                     for i, size in enumerate(self.sizes)]  # fmt: skip
            yield self._numbers(k, *(t.ravel() for t in np.meshgrid(*spans, indexing="ij")))

    def comb(self) -> NDArray[np.int32]:
        """A spanning tree."""
        return np.concatenate([*self._joined(1)])

    def coarser(self) -> _Level:
        """The grid of blocks of 2 x 2 x ... nodes."""
        excess = self.excess.reshape(self.sizes)
        axes = []
        for k, axis in enumerate(self.axes):
            first = np.arange(0, len(axis), 2)
            excess = np.add.reduceat(excess, first, axis=k)
            axes.append(np.add.reduceat(axis / 2, first) * np.where(first + 1 < len(axis), 1, 2))
        return _Level(tuple(axes), excess.ravel())

    def lifted(self, coarse: _Level, tree: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """A spanning tree on this grid from one on its blocks: a tree in each block, and an edge for each edge."""
        parts = [*self._joined(2)]
        for k in range(len(self.sizes)):
            chosen = tree[(tree >= coarse.starts[k]) & (tree < coarse.starts[k + 1])]
            at = [2 * place + (i == k) for i, place in enumerate(coarse._places(k, chosen))]
            parts.append(self._numbers(k, *at))
        return np.concatenate(parts)
