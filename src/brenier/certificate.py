"""How good a solution is, proved: a feasible plan above, a feasible pair of potentials below, both in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import Plan
from .problem import Exact, Problem

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
        marginal_errors: sum_i |P1 - a|_i and sum_j |P^T 1 - b|_j of the plan *before* rounding, each (*batch,);
            zero for a soft marginal, which has nothing to meet.
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

    The plan is rounded onto its exact marginals by scaling rows and columns down and adding a rank-one plan for the
    missing mass (Altschuler, Weed & Rigollet 2017). The potentials become feasible by two hard c-transforms. Works
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
        lower, scale = _dual(problem, f.detach().double(), g.detach().double())
        return Certificate(upper, lower, errors, torch.maximum(scale, upper.abs()))


def _primal(problem: Problem, plan: Plan) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    a, b = problem.a, problem.b
    hard_a, hard_b = (isinstance(p, Exact) for p in problem.marginals)
    r, c = plan.row_sums(), plan.col_sums()
    zero = a.new_zeros(a.shape[:-1])
    errors = (
        (r - a).abs().sum(-1) if hard_a else zero,
        (c - b).abs().sum(-1) if hard_b else zero,
    )
    one_sided = hard_a != hard_b
    if hard_a:
        plan = plan.scaled(u=_ratio(a, r, grow=one_sided))
    if hard_b:
        plan = plan.scaled(v=_ratio(b, plan.col_sums() if hard_a else c, grow=one_sided))
    c = plan.col_sums()
    r, cost = plan.moments()
    total = cost.sum(-1)
    if hard_a or hard_b:
        lack_a, lack_b = (a - r).clamp(min=0), (b - c).clamp(min=0)
        if one_sided:  # the soft side takes what is missing in proportion to its weights
            lack_a = lack_a if hard_a else a / a.sum(-1, keepdim=True) * lack_b.sum(-1, keepdim=True)
            lack_b = lack_b if hard_b else b / b.sum(-1, keepdim=True) * lack_a.sum(-1, keepdim=True)
        missing = lack_a.sum(-1)
        if (missing > _ROUNDING_MASS * a.sum(-1)).any():
            safe = torch.where(missing > 0, missing, 1)
            total = total + problem.geometry.cost_between(lack_a, lack_b / safe.unsqueeze(-1))
            r, c = r + lack_a, c + lack_b
    for marginal, mass, weight in zip(problem.marginals, (r, c), (a, b)):
        total = total + marginal.penalty(mass, weight)
    return total, errors


def _ratio(target: Tensor, mass: Tensor, *, grow: bool) -> Tensor:
    ratio = torch.where(mass > 0, target / mass, 1)
    return ratio if grow else ratio.clamp(max=1)


def _dual(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    a, b = problem.a, problem.b
    g = torch.where(b > 0, g, -torch.inf)  # targets without mass must not hold the sources down
    f = problem.geometry.cmin(g)[0]
    g = problem.geometry.cmin(torch.where(a > 0, f, -torch.inf), dim=0)[0]
    left, right = problem.marginals
    return left.dual(f, a) + right.dual(g, b), (a * f.abs()).sum(-1) + (b * g.abs()).sum(-1)
