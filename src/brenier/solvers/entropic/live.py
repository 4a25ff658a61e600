"""Problems without the points that have no mass, where these are many."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...geometry.base import PairGeometry
from ...marginals import log_weights
from ...plan import GibbsPlan
from ...problem import Problem
from ..base import Core, Outcome
from .items import takes_newton

__all__ = ["live_core"]

_MANY = 0.05  # of the points of a side, without mass


def live_core(problem: Problem) -> Core | None:
    """The problem between the points with mass; None where nearly all have some, or the geometry is not one of pairs.

    The potential of a point without mass is the soft c-transform of the others, as it is in the whole problem.
    """
    if problem.batch_shape or problem.epsilon is None or not takes_newton(problem):
        return None
    if not isinstance(problem.geometry, PairGeometry):
        return None
    live = tuple((weights > 0).nonzero().squeeze(-1) for weights in (problem.a, problem.b))
    if all(len(some) > (1 - _MANY) * size for some, size in zip(live, problem.shape)):
        return None
    rows, cols = live
    a, b = problem.a[rows], problem.b[cols]
    small = replace(problem, geometry=problem.geometry.part(rows, cols), a=a, b=b)

    def restored(outcome: Outcome) -> Outcome:
        plan = outcome.plan
        assert isinstance(plan, GibbsPlan)
        exact = problem.geometry.to(outcome.f.dtype)
        eps = plan.epsilon.to(outcome.f)
        G, F = outcome.g + eps * log_weights(b.to(outcome.g)), outcome.f + eps * log_weights(a.to(outcome.f))
        f = exact.part(cols=cols).softmin(G, eps).index_put((rows,), outcome.f)
        g = exact.part(rows=rows).softmin(F, eps, dim=0).index_put((cols,), outcome.g)
        whole = GibbsPlan(problem.geometry, _spread(plan.F, rows, len(f)), _spread(plan.G, cols, len(g)), plan.epsilon)
        return outcome._replace(plan=whole, f=f, g=g)

    return Core(small, restored)


def _spread(potential: Tensor, places: Tensor, size: int) -> Tensor:
    """Potentials of a plan with no mass elsewhere."""
    return potential.new_full((size,), -torch.inf).index_put((places,), potential)
