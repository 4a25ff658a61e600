"""Exact transport that is a permutation, and matchings in part: the assignment problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._inputs import all_finite
from ...errors import refuse
from ...geometry import CostMatrix, Geometry, Ragged
from ...kernels.assignment import AssignmentResult, assignment
from ...kernels.build import native, warn_without_native
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_start

__all__ = ["Assignment", "AssignmentState", "Matching", "match", "permutes"]

_BLOCK = 1 << 24  # entries of the cost that are formed at once, of clouds


class AssignmentState(NamedTuple):
    """Columns (count, n) and duals (count, n), (count, m), (count,) of all problems, once they are solved."""

    cols: Tensor | None = None
    f: Tensor | None = None
    g: Tensor | None = None
    level: Tensor | None = None
    found: Tensor | None = None


class Matching(NamedTuple):
    """Pairs of rows and columns of least cost, and their proof; arrays in the kind and the dtype of the input."""

    columns: Any  # (*batch, n) the column of each row, -1 where it has none
    matched: Any  # (*batch, n) whether it has one
    value: Any  # (*batch,) sum of the costs of the pairs; differentiable in the input
    f: Any  # (*batch, n) f_i + g_j <= c_ij and f_i <= level
    g: Any  # (*batch, m) <= 0 where columns may stay unmatched
    level: Any  # (*batch,) f of rows without a pair; 0 where either side is matched in full
    gap: Any  # (*batch,) value - (sum f + sum g - level * rows without a pair): zero but for rounding

    def __repr__(self) -> str:
        shape = (*self.columns.shape, self.g.shape[-1])
        return f"Matching({int(self.matched.sum())} pairs, shape={shape}, largest gap {float(self.gap.max()):.2g})"


def permutes(problem: Problem) -> bool:
    """Whether a problem without epsilon is solved by a permutation: n = m, and equal masses on each side."""
    if problem.shape[0] != problem.shape[1] or isinstance(problem.geometry, Ragged):
        return False
    return all(bool((t == t[..., :1]).all()) for t in (problem.a.detach(), problem.b.detach()))


@dataclass(frozen=True)
class Assignment(Solver[AssignmentState]):
    """Shortest augmenting paths: the optimal permutation of n points onto n points of equal masses.

    Solves min <P, C> over P >= 0 with P1 = a and P^T 1 = b, in float64, for any cost and a, b constant. The plan is
    a permutation, `plan.argmax()`. Batches are one call, spread over the threads of torch.

    Holds the cost matrix: 8 n^2 bytes. O(n^3) time at worst; usually some dozen passes over the matrix. Up to about
    a thousand points it is faster than `NetworkSimplex`, which takes any masses.

    Args:
        f, g: potentials to start from, such as those of an entropic solve; g is enough.
        engine: "native" (C++), "reference" (SciPy), or "auto".

    Reference:
        Jonker & Volgenant (1987), A shortest augmenting path algorithm for dense and sparse linear assignment problems.
    """

    name: ClassVar[str] = "assignment"
    f: Tensor | None = None
    g: Tensor | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ("auto", "native", "reference"):
            refuse("engine", "'auto', 'native' or 'reference'", repr(self.engine))

    def check(self, problem: Problem) -> None:
        if problem.epsilon is not None:
            refuse("assignment", "epsilon=None", f"epsilon={problem.epsilon.tolist()}", "Use solver='sinkhorn'.")
        if not problem.balanced:
            refuse(
                "assignment",
                "exact marginals",
                str(problem.marginals),
                "Use assign(x, y, price=...) to leave points unmatched.",
            )
        if not permutes(problem):
            n, m = problem.shape
            refuse(
                "assignment",
                "as many sources as targets, of equal masses",
                f"{n} and {m}" if n != m else "unequal masses",
                "Use solver='network-simplex', or assign(x, y) for pairs of unequal sides.",
            )
        check_start("assignment start f", self.f, problem.shape[0])
        check_start("assignment start g", self.g, problem.shape[1])

    def init(self, problem: Problem) -> AssignmentState:
        return AssignmentState()

    def step(self, problem: Problem, state: AssignmentState) -> AssignmentState:
        geometry, g = problem.geometry.to(torch.float64), self.g
        if g is None and self.f is not None:
            g = geometry.cmin(self.f.to(geometry.tensors[0]).expand(*problem.batch_shape, -1), dim=0)[0]
        return _solved(geometry, problem.batch_shape, engine=self.engine, g=g)

    def terminate(self, problem: Problem, state: AssignmentState) -> tuple[Status, ...] | None:
        return (Status.OPTIMAL,) * max(1, problem.batch_shape.numel())

    def error(self, state: AssignmentState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: AssignmentState) -> Outcome:
        assert state.cols is not None
        assert state.f is not None
        assert state.g is not None
        batch, (n, m), device = problem.batch_shape, problem.shape, problem.geometry.device
        rows = torch.arange(n, device=device).expand(*batch, n)
        plan = SparsePlan(problem.geometry, rows, state.cols.reshape(*batch, n).to(device), problem.a.double())
        f, g = state.f.reshape(*batch, n).to(device), state.g.reshape(*batch, m).to(device)
        return Outcome(plan, f, g, {"engine": _engine(self.engine)})


def _engine(asked: str) -> str:
    return "native" if asked != "reference" and native is not None else "reference"


def match(geometry: Geometry, *, max_pairs: int | None = None, price: float | None = None) -> Matching:
    """Match rows and columns of a geometry at least cost; see `brenier.assign`."""
    n, m = geometry.shape
    batch, kind, device = geometry.batch_shape, geometry.kind, geometry.device
    pairs = min(n, m) if max_pairs is None else max_pairs
    # a matrix stays as it is: the kernel reads float32 too
    exact = geometry if isinstance(geometry, CostMatrix) else geometry.to(torch.float64)
    with torch.no_grad():
        state = _solved(exact.detach(), batch, pairs=pairs, price=torch.inf if price is None else price)
    cols, f, g, level, found = (t.to(device) for t in state if t is not None)
    if price is None and bool((found < pairs).any()):
        refuse(
            "cost",
            f"finite costs for {pairs} pairs",
            "forbidden pairs (infinite costs) that leave room for fewer",
            "Ask for fewer (max_pairs), or name the price of a pair (price=...).",
        )
    cols, f, g, level = cols.reshape(*batch, n), f.reshape(*batch, n), g.reshape(*batch, m), level.reshape(batch)
    matched = cols >= 0
    rows = torch.arange(n, device=device).expand(*batch, n)
    cost = torch.where(matched, exact.cost_at(rows, cols.clamp(min=0)).double(), 0)
    value = cost.sum(-1)
    gap = value.detach() - (f.sum(-1) + g.sum(-1) - level * (~matched).sum(-1))
    dtype = geometry.dtype
    return Matching(
        kind.per_row(cols),
        kind.per_row(matched),
        kind.array(value.to(dtype)),
        kind.per_row(f.to(dtype)),
        kind.per_column(g.to(dtype)),
        kind.array(level.to(dtype)),
        kind.array(gap.to(dtype)),
    )


def _solved(
    geometry: Geometry,
    batch: torch.Size,
    *,
    pairs: int | None = None,
    price: float = torch.inf,
    g: Tensor | None = None,
    engine: str = "auto",
) -> AssignmentState:
    """Solve all problems of a batch, whose axes may be more than those of the geometry."""
    if engine == "auto":
        warn_without_native()
    count, m = max(1, batch.numel()), geometry.shape[1]
    start = None if g is None else g.double().expand(*batch, m).reshape(count, m).cpu().numpy()
    done, results = 0, list[AssignmentResult]()
    for cost in _costs(geometry, batch, _BLOCK):
        part = None if start is None else start[done : done + len(cost)]
        results.append(assignment(cost.cpu().numpy(), pairs=pairs, price=price, g=part, engine=engine))
        done += len(cost)
    return AssignmentState(*(torch.from_numpy(np.concatenate(parts)) for parts in zip(*results)))


def _costs(geometry: Geometry, batch: torch.Size, block: int) -> Iterator[Tensor]:
    """The cost matrices of a batch, (some, n, m) at a time; those of clouds a block of entries at a time."""
    (n, m), count = geometry.shape, max(1, batch.numel())
    if isinstance(geometry, CostMatrix) or count * n * m <= block:
        parts: Iterator[Tensor] = iter([geometry.tile().expand(*batch, n, m).reshape(count, n, m)])
    elif len(batch) == 1:
        some = torch.arange(count, device=geometry.device).split(max(1, block // (n * m)))
        parts = (geometry.select(index).tile().expand(len(index), n, m) for index in some)
    else:
        parts = (geometry.item(index).tile().unsqueeze(0) for index in np.ndindex(*batch))
    for cost in parts:
        if not isinstance(geometry, CostMatrix) and not all_finite(cost):  # a matrix has been checked
            refuse(
                "cost", "finite values between all pairs", "NaN or infinity", "Rescale the points, or mend the cost."
            )
        yield cost.contiguous()
