"""A start from the solution of a subsample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..._inputs import is_count
from ...errors import refuse
from ...geometry import Ragged
from ...problem import Problem
from ..base import check_number, run
from .sinkhorn import Sinkhorn
from .start import Start

__all__ = ["SubsampleStart", "coarse_potentials"]

# Of the mean cost: the epsilon whose potentials go best from a part to the whole, for parts drawn apart and for pairs.
_APART, _PAIRED = 0.03, 0.01


@dataclass(frozen=True)
class SubsampleStart(Start):
    """The potentials of a random part of the points at the same epsilon, extended to all by soft c-transforms.

    The part is the same for all items of a batch, drawn without replacement and in proportion to the weights; masses
    in it are scaled to the totals. For every cost and batch but `Ragged`. O(k^2 d) time for an iteration on k points
    of each side, and O((n + m) k d) once.

    Args:
        size: points of each side, at most.
        tol: marginal error at which the solve of the part ends; that it is a part costs about 1 / sqrt(size).
        max_iter: iterations after which it ends anyway.
        seed: of the draw.

    Reference:
        Thornton & Cuturi (2023), Rethinking initialization of the Sinkhorn algorithm.
    """

    size: int = 500
    tol: float = 1e-2
    max_iter: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "max_iter"):
            if not is_count(getattr(self, name)):
                refuse(f"SubsampleStart {name}", "a positive integer", repr(getattr(self, name)))
        check_number("SubsampleStart tol", self.tol)

    def check(self, problem: Problem) -> None:
        if isinstance(problem.geometry, Ragged):
            refuse("SubsampleStart", "problems of one size", "a Ragged geometry", "Start from Zeros().")
        if not all(p.extends for p in problem.marginals):
            expected = "marginals whose parameters are the same for all points"
            refuse("SubsampleStart", expected, repr(problem.marginals), "Start from Zeros().")

    def potentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        assert problem.epsilon is not None
        generator = torch.Generator().manual_seed(self.seed)
        rows, cols = (self._drawn(w, generator) for w in (problem.a, problem.b))
        return self._extended(problem, rows, cols)

    def _extended(self, problem: Problem, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        """The potentials of a part, for all points."""
        assert problem.epsilon is not None
        geometry, a, b = problem.geometry, _scaled(problem.a, rows), _scaled(problem.b, cols)
        small = replace(problem, geometry=geometry.part(rows, cols), a=a, b=b)
        inner = run(small, Sinkhorn(tol=self.tol, max_iter=self.max_iter), warn=False)
        above = replace(problem, geometry=geometry.part(rows), a=a)
        beside = replace(problem, geometry=geometry.part(cols=cols), b=b)
        g = Sinkhorn._columns(above, inner.f, problem.epsilon)
        return Sinkhorn._columns(beside.T, inner.g, problem.epsilon), g

    def _drawn(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of points, (k,), by their weights in all items of a batch."""
        share = (weights / weights.sum(-1, keepdim=True)).reshape(-1, weights.shape[-1]).mean(0).cpu()
        count = min(self.size, int((share > 0).sum()))
        return torch.multinomial(share, count, generator=generator).sort().values.to(weights.device)


def coarse_potentials(
    problem: Problem, size: int, partner: Tensor | None = None, moved: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Potentials for a lower bound on a problem without epsilon: those of an entropic one, from a part of the points.

    They are near feasible only; two hard c-transforms over all pairs (`certify`) make them a proof. O((n + m) k d) time
    for k = `size` points of each side.

    Args:
        problem: without batch axes.
        size: points of each side, at most.
        partner: (n,) of a nearly optimal permutation. The part is made of its pairs then: potentials of the whole are
            among those of such a part, where the two sides of others do not even fit.
        moved: the masses (n,) and (m,) that a good plan moves, where marginals are soft. Points far away that it leaves
            behind do not tell the scale of the costs then.
    """
    start = SubsampleStart(size=size)
    generator = torch.Generator().manual_seed(start.seed)
    rows = start._drawn(problem.a, generator)
    cols = start._drawn(problem.b, generator) if partner is None else partner[rows]
    masses = (None, None) if moved is None else (moved[0][rows], moved[1][cols])
    scale = problem.geometry.part(rows, cols).mean_cost(*masses).abs()
    epsilon = torch.where(scale > 0, (_APART if partner is None else _PAIRED) * scale, 1)
    return start._extended(replace(problem, epsilon=epsilon), rows, cols)


def _scaled(weights: Tensor, index: Tensor) -> Tensor:
    """The weights of a part, scaled to the total; uniform where the part has none."""
    part = weights[..., index]
    part = torch.where((part > 0).any(-1, keepdim=True), part, 1)
    return part * (weights.sum(-1, keepdim=True) / part.sum(-1, keepdim=True))
