"""Quantised Gromov-Wasserstein: match anchors, then the points around them by their distance to the anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import Geometry, PointCloud
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Solution, Status
from ...structure import Quadratic
from ..base import Outcome, Solver, check_count, run
from ..exact.monotone import Monotone
from .common import quadratic
from .gradient import ConditionalGradient
from .solution import GromovSolution
from .starts import MultiStart

__all__ = ["Quantized", "QuantizedState", "choose_anchors"]

# Entries of the plan between anchors below this share of the mean entry of a vertex carry no mass that matters.
_FAINT = 1e-6


class QuantizedState(NamedTuple):
    """The plan between all points, and the solution between the anchors that it came from."""

    plan: SparsePlan | None = None
    coarse: Solution | None = None


@dataclass(frozen=True)
class Quantized(Solver[QuantizedState]):
    r"""Match k anchors of each space, then the points of matched cells on the line, by their distance to the anchor.

        P = sum_pq Q_pq P_pq,    Q between anchors,    P_pq the monotone plan between the cells of p and q

    which meets the masses a and b exactly, and so is a feasible plan and an upper bound; it is no stationary point, and
    its certificate says by how much. For structures that are distances, or increasing functions of them, exact
    marginals and no epsilon; features count between anchors. Clouds with an inner-product cost never form more than
    n x k distances, one column at a time; others n x n. O(n k d) time for the cells, O(k^3) for the anchors, and
    O((n + m) log(n + m)) for the rest.

    Args:
        anchors: k, at most the number of points of each space.
        solver: of the problem between anchors: `ConditionalGradient()`, `Proximal()`.
        starts: of that problem.
        sampling: "farthest": each anchor as far from the others as can be; or "random", by mass.
        generator: of random anchors, the first of the farthest ones among them, and random starts; on the CPU.

    Reference:
        Chowdhury, Miller & Needham (2021), Quantized Gromov-Wasserstein.
    """

    name: ClassVar[str] = "quantized"
    quadratic: ClassVar[bool] = True
    anchors: int = 500
    solver: Solver[Any] = ConditionalGradient()
    starts: int = 2
    sampling: str = "farthest"
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("anchors", self.anchors)
        check_count("starts", self.starts)
        if self.sampling not in ("farthest", "random"):
            refuse("sampling", "'farthest' or 'random'", repr(self.sampling))
        if not (isinstance(self.solver, Solver) and self.solver.quadratic):
            refuse("Quantized solver", "ConditionalGradient() or Proximal()", repr(self.solver))

    def check(self, problem: Problem) -> None:
        if not problem.balanced or problem.epsilon is not None:
            got = f"{problem.marginals} and epsilon={problem.epsilon}"
            refuse(self.name, "exact marginals and no epsilon", got, "Use Mirror().")

    def init(self, problem: Problem) -> QuantizedState:
        return QuantizedState()

    def step(self, problem: Problem, state: QuantizedState) -> QuantizedState:
        whole = quadratic(problem)
        a, b = whole.a.double(), whole.b.double()
        b = b * (a.sum() / b.sum())
        rows = choose_anchors(whole.x, a, self.anchors, self.sampling, self.generator)
        cols = choose_anchors(whole.y, b, self.anchors, self.sampling, self.generator)
        (cell_x, radius_x, mass_x), (cell_y, radius_y, mass_y) = _cells(whole.x, rows, a), _cells(whole.y, cols, b)
        small = Quadratic.between(
            whole.x.part(rows, rows).to(torch.float64),
            whole.y.part(cols, cols).to(torch.float64),
            mass_x,
            mass_y * (mass_x.sum() / mass_y.sum()),
            features=None if whole.alpha == 1 else whole.geometry.part(rows, cols).to(torch.float64),
            alpha=whole.alpha,
            loss=whole.loss,
        )
        several = MultiStart(max_iter=self.starts, solver=self.solver, generator=self.generator)
        coarse = run(small, several, warn=False, answer=GromovSolution)
        entries = coarse.plan.entries(threshold=_FAINT / (len(rows) + len(cols)) * float(a.sum()))
        p, q, mass = (t if isinstance(t, Tensor) else torch.as_tensor(t) for t in entries)
        return QuantizedState(_lifted(whole, (cell_x, radius_x, a), (cell_y, radius_y, b), (p, q, mass)), coarse)

    def terminate(self, problem: Problem, state: QuantizedState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state)

    def verdict(self, problem: Problem, state: QuantizedState) -> tuple[Status, ...]:
        assert state.coarse is not None
        return state.coarse.statuses

    def error(self, state: QuantizedState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: QuantizedState) -> Outcome:
        assert state.plan is not None
        assert state.coarse is not None
        f, g = torch.zeros_like(problem.a, dtype=torch.float64), torch.zeros_like(problem.b, dtype=torch.float64)
        stats = {"coarse_value": float(state.coarse.value), "values": state.coarse.stats["values"]}
        return Outcome(state.plan, f, g, stats)


def choose_anchors(
    structure: Geometry, weights: Tensor, count: int, sampling: str, generator: torch.Generator | None = None
) -> Tensor:
    """Indices (k,) of anchors among the points with mass, at most `count`.

    Args:
        structure: distances, n x n.
        weights: (n,).
        count: how many.
        sampling: "farthest" or "random".
        generator: on the CPU.
    """
    alive = (weights > 0).nonzero().squeeze(1)
    count = min(count, len(alive))
    first = torch.multinomial(weights.cpu(), 1 if sampling == "farthest" else count, generator=generator)
    if sampling == "random":
        return first.to(weights.device).sort().values
    structure = structure.detach()
    chosen = [int(first)]
    distance = torch.where(weights > 0, structure.tile(cols=first.to(weights.device)).squeeze(1), -torch.inf)
    while len(chosen) < count:
        farthest = distance.argmax()
        if not float(distance[farthest]) > 0:  # all that is left are duplicates
            break
        chosen.append(int(farthest))
        distance = torch.minimum(distance, structure.tile(cols=farthest.reshape(1)).squeeze(1))
    return torch.tensor(sorted(chosen), device=weights.device)


def _cells(structure: Geometry, anchors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each point the number of its anchor and the distance to it, and the mass of each cell."""
    near = structure.part(cols=anchors)
    radius, cell = near.cmin(near.tensors[0].new_zeros(len(anchors)))
    return cell, radius, weights.new_zeros(len(anchors)).index_add_(0, cell, weights)


Side = tuple[Tensor, Tensor, Tensor]


def _lifted(problem: Quadratic, left: Side, right: Side, coarse: Side) -> SparsePlan:
    """All the monotone plans between matched cells, which are one monotone plan between the cells in a row."""
    p, q, mass = coarse
    rows, mass_x = _spread(left, p, mass)
    cols, mass_y = _spread(right, q, mass)
    # what was cut off between anchors is made up for in the same cells, so that the masses of all points are met
    x, y = (torch.arange(len(t), dtype=torch.float64, device=mass.device).unsqueeze(1) for t in (rows, cols))
    linear = Problem(PointCloud(x, y), mass_x, mass_y * (mass_x.sum() / mass_y.sum()))
    plan = run(linear, Monotone()).plan
    assert isinstance(plan, SparsePlan)
    keep = plan.mass > 0
    return SparsePlan(problem.geometry, rows[plan.rows[keep]], cols[plan.cols[keep]], plan.mass[keep])


def _spread(side: Side, cells: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The points of the cells (k,) one cell after the other, by radius, with the share of each in a mass (k,)."""
    cell, radius, weights = side
    order = radius.argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    count = torch.bincount(cell, minlength=int(cells.max()) + 1)
    begin = count.cumsum(0) - count
    total = mass.new_zeros(len(count)).index_add_(0, cells, mass)
    whole = weights.new_zeros(len(count)).index_add_(0, cell, weights)
    each = count[cells]
    pair = torch.arange(len(cells), device=mass.device).repeat_interleave(each)
    offset = torch.arange(len(pair), device=mass.device) - (each.cumsum(0) - each)[pair]
    points = order[begin[cells][pair] + offset]
    return points, weights[points] / whole[cells][pair] * (mass * whole[cells] / total[cells])[pair]
