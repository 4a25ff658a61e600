"""How gradients are made: an argument of the front door, not a flag inside solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import GibbsPlan, Plan, SparsePlan
from .problem import Problem

__all__ = ["Adjoint", "Envelope"]


class Adjoint(ABC):
    """Says which outputs it makes differentiable, and correct."""

    @abstractmethod
    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        """The value, with gradients towards the tensors of the problem."""


@dataclass(frozen=True)
class Envelope(Adjoint):
    r"""Gradients of `solution.value` by the envelope theorem, in x, y, a, b, C, epsilon and rho.

    The value is a maximum over potentials, so its gradient is that of the dual function at the optimal potentials,
    held fixed. Exact at the optimum, and off by O(marginal error) before. Plans and potentials carry no gradient.
    Gradients in a and b are the potentials, fixed up to a constant: use them along directions that keep the mass.

    One differentiable pass over the pairs for an entropic problem, O(n + m) work for an exact one.
    """

    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        left, right = problem.marginals
        epsilon = problem.epsilon
        tensors = (*problem.geometry.tensors, problem.a, problem.b, *left.parameters, *right.parameters)
        moving = any(t.requires_grad for t in tensors) or (epsilon is not None and epsilon.requires_grad)
        if not (torch.is_grad_enabled() and moving):
            return value
        side_a, side_b = problem.sides
        f, g = left.clip(f.detach().to(problem.a)), right.clip(g.detach().to(problem.b))
        surrogate = left.dual(f, side_a) + right.dual(g, side_b)
        if isinstance(plan, GibbsPlan):
            assert epsilon is not None
            assert side_a.epsilon is not None
            # finite, as eps x -inf has no derivative
            geometry = plan.geometry.with_tensors(*problem.geometry.tensors)  # over the plan's pairs
            soft = geometry.softmin(g + side_b.absorbed().clamp(min=-1e30), epsilon)
            mass = (side_a.reference * ((f - soft) / side_a.epsilon).exp()).sum(-1)
            surrogate = surrogate - epsilon * (mass - problem.reference_mass)
        elif isinstance(plan, SparsePlan):
            cost = problem.geometry.cost_at(plan.rows, plan.cols)
            surrogate = surrogate + (plan.mass.to(cost.dtype) * cost).sum(-1)
        return value + (surrogate - surrogate.detach())
