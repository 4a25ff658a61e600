"""Exact transport by the network simplex."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._inputs import all_finite
from ...errors import refuse
from ...geometry import CostMatrix, Geometry, PointCloud
from ...kernels import simplex
from ...kernels.build import native, warn_without_native
from ...marginals import Exact, Free, Prices
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Status
from ..base import Forecast, Outcome, Solver, check_count, check_number, check_start, time_is_up
from .lazy import LazyTransport, refuse_cost
from .refinement import neighbourly
from .screened import screened
from .virtual import Demand, VirtualTransport

__all__ = ["NetworkSimplex", "SimplexState"]

# Pairs of the largest cost matrix that is formed unasked: 20,000 x 20,000, 3.2 GB.
DENSE_LIMIT = 20_000**2
# Where the native engine knows the cost, the pairs above which a solve without the matrix is faster, or not much slower
# at a tenth of the memory, in up to so many dimensions: the more, the longer it takes to price all pairs again.
_LAZY_ABOVE = ((11, 3_000**2), (64, 10_000**2))
# For forecasts: seconds of 10,000 x 10,000 pairs and how they grow, and bytes a line; see benchmarks/exact_lazy.py.
_DENSE_SECONDS, _DENSE_POWER = 4.0, 2.1
_LAZY_SECONDS, _LAZY_POWER, _LAZY_DIMENSION, _LINE_BYTES = 0.8, 1.8, 15, 2200


class SimplexState(NamedTuple):
    """One result per batch item once their matrices are solved, or the lazy solves, which a step moves on in place.

    Where a marginal is not exact, the balanced problems that are solved in the place of the given ones come first.
    """

    results: tuple[simplex.SimplexResult, ...] = ()
    lazy: tuple[LazyTransport, ...] = ()
    virtual: tuple[VirtualTransport, ...] = ()


class _Item(NamedTuple):
    """One balanced problem of a batch, and potentials to start from."""

    geometry: Geometry
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    f: Tensor | None
    g: Tensor | None


@dataclass(frozen=True)
class NetworkSimplex(Solver[SimplexState]):
    """Pivot on spanning trees until the potentials prove that the plan is optimal.

    Solves min <P, C> over P >= 0 with P1 = a and P^T 1 = b, in float64, for any cost and any masses. The plan has
    at most n + m - 1 entries, and is a permutation when n = m and all masses are equal.

    Marginals whose penalties are piecewise linear (`TV`, `Partial`, `Slack`, `Free`, and pairs of them with `Exact`)
    are virtual rows and columns beside the real ones; the proof is the same.

    With pairs="dense" it holds the cost matrix once: 8 n m bytes; typically O((n + m) n m) time or better. Between
    clouds of 256 dimensions and more, where costs are inner products or roots of them, the matrix comes from a product
    in float32, with a bound on its errors, and pairs that these might make better or worse get their costs in float64:
    the proof is the same.

    With pairs="lazy" it pivots on a list of some dozen arcs per point, O(n + m) memory, and prices all pairs tile by
    tile until none violates c_ij >= f_i + g_j, so the certificate is the same. A step is then one round of pivots and
    pricing: callbacks and progress (the relative gap so far) work between rounds, and every round has a feasible plan.
    Without potentials to start from, those of a third of the points serve, solved in the same way; on a large grid the
    plan of a coarser grid, split among the nodes of its cells and mended block by block, is the first plan.

    A timeout ends pivots and pricing in their midst, of either way, with a feasible plan; the gap is then that to the
    best duals so far. What cannot be cut short is the first feasible pair: a few passes over the pairs.

    Args:
        max_pivots: stop after so many pivots with the best plan so far, which is always feasible; no limit if None.
        f, g: potentials to start from; near-optimal ones save most of the pivots.
        engine: "native" (C++), "reference" (NumPy), or "auto".
        pairs: "dense", "lazy" (native engine only), or "auto": dense for a cost that is given as a matrix; for clouds
            of up to 64 dimensions with a cost that the native engine knows, up to 3,000 x 3,000 pairs; otherwise up to
            20,000 x 20,000.
        gap: for pairs="lazy": stop as soon as this relative gap is proved.
        max_iter: rounds, for pairs="lazy".

    Reference:
        Bonneel et al. (2011), Displacement interpolation using Lagrangian mass transport (the network simplex);
        Schmitzer (2016), A sparse multiscale algorithm for dense optimal transport (sparse solves, certified by the
        duals).
    """

    name: ClassVar[str] = "network-simplex"
    max_iter: int = 1000
    max_pivots: int | None = None
    f: Tensor | None = None
    g: Tensor | None = None
    engine: str = "auto"
    pairs: str = "auto"
    gap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap is not None:
            check_number("gap", self.gap)
        if self.max_pivots is not None:
            check_count("max_pivots", self.max_pivots)
        if self.engine not in ("auto", "native", "reference"):
            refuse("engine", "'auto', 'native' or 'reference'", repr(self.engine))
        if self.pairs not in ("auto", "dense", "lazy"):
            refuse("pairs", "'auto', 'dense' or 'lazy'", repr(self.pairs))

    def check(self, problem: Problem) -> None:
        if problem.epsilon is not None:
            refuse(
                "network-simplex",
                "epsilon=None",
                f"epsilon={problem.epsilon.tolist()}",
                "Use solver='sinkhorn'.",
            )
        for marginal, side in zip(problem.marginals, problem.sides):
            if marginal.prices(side) is None:
                refuse(
                    "network-simplex",
                    "marginals with piecewise linear penalties",
                    repr(marginal),
                    "Give an epsilon, or use TV(rho).",
                )
        check_start("network-simplex start f", self.f, problem.shape[0])
        check_start("network-simplex start g", self.g, problem.shape[1])

        if self.lazy(problem) and (native is None or self.engine == "reference"):
            n, m = problem.shape
            refuse(
                "network-simplex without a cost matrix",
                "the native engine",
                "engine='reference'" if self.engine == "reference" else "an installation without it",
                f"Reinstall brenier with a C++20 compiler, ask for pairs='dense' and {8e-9 * n * m:.1f} GB, or give "
                "epsilon=Relative(0.01), which needs no matrix.",
            )

    def lazy(self, problem: Problem) -> bool:
        """Whether a problem is solved without its cost matrix."""
        if any(isinstance(p, Free) for p in problem.marginals):
            return False  # there are no pairs left: each line goes to its nearest
        if self.pairs != "auto":
            return self.pairs == "lazy"
        geometry, (n, m) = problem.geometry, problem.shape
        if isinstance(geometry, CostMatrix):
            return False
        limit = DENSE_LIMIT
        if native is not None and self.engine != "reference" and geometry.fused and geometry.device.type == "cpu":
            d = geometry.x.shape[-1] if isinstance(geometry, PointCloud) else 0
            limit = next((pairs for widest, pairs in _LAZY_ABOVE if d <= widest), limit)
        return n * m > limit

    def forecast(self, problem: Problem) -> Forecast | None:
        (n, m), items = problem.shape, problem.batch_shape.numel()
        d = getattr(getattr(problem.geometry, "x", None), "shape", (1,))[-1]
        lines = (n + m) / 2
        if self.lazy(problem):
            seconds = _LAZY_SECONDS * (lines / 1e4) ** _LAZY_POWER * (1 + d / _LAZY_DIMENSION)
            return Forecast(items * seconds, _LINE_BYTES * (n + m))
        return Forecast(items * _DENSE_SECONDS * (lines / 1e4) ** _DENSE_POWER, 3 * 8 * n * m)

    def init(self, problem: Problem) -> SimplexState:
        virtual = () if problem.balanced else tuple(self._virtual(problem))
        if not self.lazy(problem):
            return SimplexState(virtual=virtual)
        lazy = (LazyTransport(i.geometry, i.a, i.b, f=i.f, g=i.g) for i in self._items(problem, virtual))
        return SimplexState(lazy=tuple(lazy), virtual=virtual)

    def _virtual(self, problem: Problem) -> Iterator[VirtualTransport]:
        """The balanced problem of each item of the batch."""
        problem = problem.double()
        a, b, exponents = self._masses(problem)
        lines = [a.shape[-1], b.shape[-1]]
        batch = problem.batch_shape

        def price(p: Tensor | None, size: int, k: int) -> Tensor | None:
            return None if p is None else p.expand(*batch, size).reshape(-1, size)[k]

        for k, index in enumerate(np.ndindex(*batch)):
            demands = []
            for marginal, side, weights, size in zip(problem.marginals, problem.sides, (a, b), lines):
                prices = marginal.prices(side)
                assert prices is not None
                total = None if isinstance(marginal, Exact) else marginal.total(side)
                total = None if total is None else torch.ldexp(total.reshape(-1)[k], -exponents[k, 0])
                demands.append(Demand(weights[k], Prices(*(price(p, size, k) for p in prices)), total))
            yield VirtualTransport(problem.geometry.item(index), *demands)

    def _items(self, problem: Problem, virtual: tuple[VirtualTransport, ...]) -> Iterator[_Item]:
        """The balanced problems to solve."""
        f, g = self._start(problem)
        starts = [(None if f is None else f[k], None if g is None else g[k])
                  for k in range(problem.batch_shape.numel())]  # fmt: skip
        if virtual:
            yield from (_Item(v.geometry, v.a, v.b, *v.start(*start)) for v, start in zip(virtual, starts))
            return
        a, b, _ = self._masses(problem)
        geometry = problem.geometry.to(torch.float64)
        for k, index in enumerate(np.ndindex(*problem.batch_shape)):
            yield _Item(geometry.item(index), a[k].cpu().numpy(), b[k].cpu().numpy(), *starts[k])

    def _masses(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """Masses (batch, n) and (batch, m) near one, and the exponents of the powers of two that they were cut by."""
        a, b = (t.double().reshape(-1, t.shape[-1]) for t in (problem.a, problem.b))
        if problem.balanced:
            b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
        # the scale of the masses must not matter, however small; powers of two cost no rounding
        exponent = torch.frexp(torch.maximum(a.sum(-1, keepdim=True), b.sum(-1, keepdim=True))).exponent
        return torch.ldexp(a, -exponent), torch.ldexp(b, -exponent), exponent

    def _start(self, problem: Problem) -> tuple[Tensor | None, Tensor | None]:
        """Potentials to start from, (batch, n) and (batch, m)."""
        batch = problem.batch_shape
        f, g = (None if t is None else t.double().expand(*batch, -1).reshape(-1, t.shape[-1]) for t in (self.f, self.g))
        return f, g

    def step(self, problem: Problem, state: SimplexState) -> SimplexState:
        if self.engine == "auto":
            warn_without_native()
        if state.lazy:
            for item in state.lazy:
                if not self._ended(item):
                    item.round(self.max_pivots, self.gap or 0.0)
            return state
        results = tuple(map(self._solved, self._items(problem, state.virtual)))
        return state._replace(results=results)

    def _solved(self, item: _Item) -> simplex.SimplexResult:
        """The solution of one item on its cost matrix, whose lines are put in order where that helps."""
        geometry, a, b, *start = item
        f, g = (None if t is None else t.cpu().numpy() for t in start)
        plain = self.engine != "reference" and self.max_pivots is None and f is None and g is None
        if plain and (found := screened(geometry, a, b)) is not None:
            return found
        orders = neighbourly(geometry)
        if orders is not None:
            rows, cols = orders
            geometry, a, b = geometry.part(*map(torch.from_numpy, orders)), a[rows], b[cols]
            f, g = None if f is None else f[rows], None if g is None else g[cols]
        result = simplex.network_simplex(
            self._cost(geometry),
            a,
            b,
            f=f,
            g=g,
            max_iter=self.max_pivots,
            interrupt=time_is_up,
            engine=self.engine,
        )
        if orders is None:
            return result
        f, g = np.empty_like(result.f), np.empty_like(result.g)
        f[rows], g[cols] = result.f, result.g
        return result._replace(rows=rows[result.rows], cols=cols[result.cols], f=f, g=g)

    @staticmethod
    def _cost(geometry: Geometry) -> NDArray[np.float64]:
        """The cost matrix of one item of the batch."""
        cost = geometry.tile()
        if not all_finite(cost):
            refuse_cost()
        return cost.contiguous().cpu().numpy()

    def _ended(self, item: LazyTransport) -> bool:
        return item.optimal or self._near(item) or (self.max_pivots is not None and item.n_pivots >= self.max_pivots)

    def _near(self, item: LazyTransport) -> bool:
        return self.gap is not None and item.gap <= self.gap

    def terminate(self, problem: Problem, state: SimplexState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state) if all(map(self._ended, state.lazy)) else None

    def verdict(self, problem: Problem, state: SimplexState) -> tuple[Status, ...]:
        if not state.lazy:
            return tuple(
                Status.OPTIMAL if r.optimal else Status.MAX_ITER if r.n_iter == self.max_pivots else Status.TIME_OUT
                for r in state.results
            )
        return tuple(
            Status.OPTIMAL if item.optimal else Status.CONVERGED if self._near(item) else Status.MAX_ITER
            for item in state.lazy
        )

    def error(self, state: SimplexState) -> float:
        return max((item.gap for item in state.lazy), default=float("nan"))

    def finish(self, problem: Problem, state: SimplexState) -> Outcome:
        batch, device = problem.batch_shape, problem.geometry.device

        def stack(arrays: list[Tensor]) -> Tensor:
            padded = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True)
            return padded.reshape(*batch, -1).to(device)

        r = tuple(item.result() for item in state.lazy) or state.results
        if state.virtual:
            r = tuple(v.result(k) for v, k in zip(state.virtual, r))
        scales = self._masses(problem)[-1].flatten().tolist()
        plan = SparsePlan(
            problem.geometry,
            stack([torch.as_tensor(k.rows, dtype=torch.long) for k in r]),
            stack([torch.as_tensor(k.cols, dtype=torch.long) for k in r]),
            stack([torch.as_tensor(np.ldexp(k.mass, e)) for k, e in zip(r, scales)]),
        )
        f, g = stack([torch.as_tensor(k.f) for k in r]), stack([torch.as_tensor(k.g) for k in r])
        engine = "native" if self.engine != "reference" and native is not None else "reference"
        stats = {"n_iter": sum(k.n_iter for k in r), "engine": engine, "pairs": "lazy" if state.lazy else "dense"}
        for name in state.lazy[0].stats if state.lazy else ():
            stats[name] = sum(item.stats[name] for item in state.lazy)
        return Outcome(plan, f, g, stats)
