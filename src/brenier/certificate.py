"""How good a solution is, proved: a feasible plan above, a feasible pair of potentials below, both in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .marginals import Marginal, Side, translation
from .plan import Plan
from .problem import Problem

__all__ = ["Certificate", "certify"]

# Mass that a plan misses by rounding alone is not worth a pass over all pairs.
_ROUNDING_MASS = 1e-14


@dataclass(frozen=True)
class Certificate:
    """Bounds on the optimal value of the *unregularised* problem, computed in float64.

    `dual <= optimum <= primal` holds for every cost and every epsilon, whether the solver converged or not.

    Attributes:
        primal: the cost of a feasible plan, the solver's plan rounded onto its marginals, (*batch,).
        dual: the value of feasible potentials, the solver's after hard c-transforms, (*batch,).
        marginal_errors: sum_i |P1 - a|_i and sum_j |P^T 1 - b|_j of the plan *before* rounding, each (*batch,); for
            other marginals the mass by which they are broken, zero for a soft one, which has nothing to meet.
        scale: the size of the numbers that were added up, the mean absolute value of the two bounds' parts.
    """

    primal: Tensor
    dual: Tensor
    marginal_errors: tuple[Tensor, Tensor]
    scale: Tensor

    @property
    def gap(self) -> Tensor:
        """Primal - dual, not below zero: an upper bound on how far from optimal the rounded plan is."""
        return (self.primal - self.dual).clamp(min=0)

    @property
    def relative_gap(self) -> Tensor:
        """Gap / |primal|; where the optimum is zero to rounding, relative to the size of its parts instead."""
        floor = 1e-12 * self.scale
        denominator = torch.maximum(self.primal.abs(), floor)
        ratio = self.gap / denominator.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(self.gap == 0, 0, ratio)  # NaN stays NaN

    def __str__(self) -> str:
        if self.primal.dim():
            return f"Certificate(worst relative gap {float(self.relative_gap.max()):.3g} of {self.primal.numel()})"
        return (
            f"optimum in [{float(self.dual):.10g}, {float(self.primal):.10g}], relative gap "
            f"{float(self.relative_gap):.3g}, marginal errors {float(self.marginal_errors[0]):.3g} and "
            f"{float(self.marginal_errors[1]):.3g}"
        )


def certify(problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Certificate:
    r"""Bound the optimum of min <P, C> + phi_a(P1) + phi_b(P^T 1) from both sides.

    The plan is rounded onto what its marginals demand by scaling rows and columns down and adding a rank-one plan for
    the missing mass (Altschuler, Weed & Rigollet 2017). The potentials become feasible by two hard c-transforms. Works
    through the operations of the geometry only: O(n + m) memory, about six passes over the pairs.

    Args:
        problem: with or without epsilon, which plays no part here.
        plan: any plan >= 0.
        f, g: any potentials, (*batch, n) and (*batch, m); only g is used where b > 0.
    """
    with torch.no_grad():
        problem = problem.detach().double()
        plan = plan.to(torch.float64)
        upper, errors = _primal(problem, plan)
        # the same cost, perhaps with a faster hard c-transform
        lower, scale = _dual(replace(problem, geometry=plan.geometry), f.detach().double(), g.detach().double())
        return Certificate(upper, lower, errors, torch.maximum(scale, upper.abs()))


def _primal(problem: Problem, plan: Plan) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    (left, right), (side_a, side_b) = problem.marginals, problem.sides_at(None)
    r, c = plan.row_sums(), plan.col_sums()
    errors = (left.violation(r, side_a), right.violation(c, side_b))
    hard_a, hard_b = left.hard(side_a), right.hard(side_b)
    capped_a, capped_b = left.capped(side_a), right.capped(side_b)
    # nothing above its cap; what must be met may grow too, where the other side does not mind
    if bool(capped_a.any()):
        plan = plan.scaled(u=_ratio(problem.a, r, capped_a, hard_a & (not bool(capped_b.any()))))
        c = plan.col_sums() if bool(capped_b.any()) else c
    if bool(capped_b.any()):
        plan = plan.scaled(v=_ratio(problem.b, c, capped_b, hard_b & (not bool(capped_a.any()))))
    c = plan.col_sums()
    r, cost = plan.moments()
    value, mass = cost.sum(-1), r.sum(-1)
    total = left.total(side_a) if left.total(side_a) is not None else right.total(side_b)
    if total is not None:
        shrink = torch.where(mass > total, total / mass, 1)
        value, mass = value * shrink, mass * shrink
        r, c = r * shrink.unsqueeze(-1), c * shrink.unsqueeze(-1)
    # what is missing goes in as a product plan
    need_a = torch.where(hard_a, problem.a - r, 0).clamp(min=0)
    need_b = torch.where(hard_b, problem.b - c, 0).clamp(min=0)
    missing = torch.maximum(need_a.sum(-1), need_b.sum(-1))
    if total is not None:
        missing = torch.maximum(missing, total - mass)
    if bool((missing > _ROUNDING_MASS * problem.a.sum(-1)).any()):
        more_a = _filled(need_a, missing, problem.a, r, hard_a, capped_a)
        more_b = _filled(need_b, missing, problem.b, c, hard_b, capped_b)
        safe = torch.where(missing > 0, missing, 1)
        value = value + problem.geometry.cost_between(more_a, more_b / safe.unsqueeze(-1))
        r, c = r + more_a, c + more_b
    return value + left.penalty(r, side_a) + right.penalty(c, side_b), errors


def _ratio(target: Tensor, mass: Tensor, capped: Tensor, grow: Tensor) -> Tensor:
    ratio = torch.where(capped & (mass > 0), target / mass, 1)
    return torch.where(grow, ratio, ratio.clamp(max=1))


def _filled(need: Tensor, missing: Tensor, weights: Tensor, mass: Tensor, hard: Tensor, capped: Tensor) -> Tensor:
    """The mass to add on one side: what is needed, and the rest of `missing` where there is room."""
    room = torch.where(hard, 0, torch.where(capped, (weights - mass).clamp(min=0), weights))
    space = room.sum(-1)
    rest = torch.where(space > 0, (missing - need.sum(-1)).clamp(min=0) / space, 0)
    return need + room * rest.unsqueeze(-1)


def _dual(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    (left, right), (side_a, side_b) = problem.marginals, problem.sides_at(None)
    geometry = problem.geometry
    live_a, live_b = (_live(problem, p, s) for p, s in zip(problem.marginals, (side_a, side_b)))
    # points that cannot have mass must not hold the others down; the others must stay where the dual is finite
    least_a, least_b = left.least(side_a), right.least(side_b)
    g = torch.where(live_b, right.trimmed(g if least_b is None else torch.maximum(g, least_b), side_b), -torch.inf)
    if least_a is not None:
        g = torch.minimum(g, geometry.cmin(torch.where(live_a, least_a, -torch.inf), dim=0)[0])
    f = left.trimmed(geometry.cmin(g)[0], side_a)
    g = geometry.cmin(torch.where(live_a, f, -torch.inf), dim=0)[0]
    scale = torch.maximum(_largest(f), _largest(g))  # either is rounded as the costs are,
    if least_a is not None or least_b is not None:  # of which there are large ones where all potentials are zero
        scale = torch.maximum(scale, _largest(geometry.tile(slice(0, 1)).squeeze(-2)))
    f, g = _lifted(f, least_a, live_a, scale), _lifted(g, least_b, live_b, scale)
    shift = translation(problem.marginals, (side_a, side_b), f, g)  # keeps f + g <= c
    if shift is not None:
        f, g = f + shift, g - shift
    size = (problem.a * f.abs()).sum(-1) + (problem.b * g.abs()).sum(-1)
    return left.dual(f, side_a) + right.dual(g, side_b), size


def _live(problem: Problem, marginal: Marginal, side: Side) -> Tensor:
    """The points that may have mass: without entropy also those without weight, where the marginal lets them."""
    if marginal.dead_without_weight:
        return side.weights > 0
    return torch.ones_like(side.weights > 0) if problem.epsilon is None else side.reference > 0


def _largest(f: Tensor) -> Tensor:
    """The largest finite size of a potential, (*batch, 1)."""
    return torch.where(torch.isfinite(f), f.abs(), 0).amax(-1, keepdim=True)


def _lifted(f: Tensor, least: Tensor | None, live: Tensor, scale: Tensor) -> Tensor:
    """Potentials that fell below their bound by rounding, back on it; those that count for nothing, too."""
    if least is None:
        return f
    low = (f < least) & ((f > least - 1e-13 * (scale + least.abs())) | ~live)
    return torch.where(low, least, f)
