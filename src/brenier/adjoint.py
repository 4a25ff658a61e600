"""How gradients are made: an argument of the front door, not a flag inside solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import GibbsPlan, Plan, SparsePlan
from .problem import Problem

__all__ = ["Adjoint", "Envelope", "log_weights"]


class Adjoint(ABC):
    """Says which outputs it makes differentiable, and correct."""

    @abstractmethod
    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        """The value, with gradients towards the tensors of the problem."""


@dataclass(frozen=True)
class Envelope(Adjoint):
    r"""Gradients of `solution.value` by the envelope theorem, in x, y, a, b, C and epsilon.

    The value is a maximum over potentials, so its gradient is that of the dual function at the optimal potentials,
    held fixed. Exact at the optimum, and off by O(marginal error) before. Plans and potentials carry no gradient.
    Gradients in a and b are the potentials, fixed up to a constant: use them along directions that keep the mass.

    One differentiable pass over the pairs for an entropic problem, O(n + m) work for an exact one.
    """

    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        tensors = (*problem.geometry.tensors, problem.a, problem.b)
        epsilon = problem.epsilon
        moving = any(t.requires_grad for t in tensors) or (epsilon is not None and epsilon.requires_grad)
        if not (torch.is_grad_enabled() and moving):
            return value
        f, g = f.detach().to(problem.a), g.detach().to(problem.b)
        left, right = problem.marginals
        surrogate = left.dual(f, problem.a) + right.dual(g, problem.b)
        if isinstance(plan, GibbsPlan):
            assert epsilon is not None
            per_line = epsilon.unsqueeze(-1) if epsilon.dim() else epsilon
            log_b = log_weights(problem.b).clamp(min=-1e30)  # finite, as eps x -inf has no derivative
            soft = problem.geometry.softmin(g + per_line * log_b, epsilon)
            mass = (problem.a * ((f - soft) / per_line).exp()).sum(-1)
            surrogate = surrogate - epsilon * (mass - problem.a.sum(-1) * problem.b.sum(-1))
        elif isinstance(plan, SparsePlan):
            cost = problem.geometry.cost_at(plan.rows, plan.cols)
            surrogate = surrogate + (plan.mass.to(cost.dtype) * cost).sum(-1)
        return value + (surrogate - surrogate.detach())


def log_weights(a: Tensor) -> Tensor:
    """Log a, with -inf and a zero gradient where a = 0."""
    positive = a > 0
    return torch.where(positive, torch.where(positive, a, 1).log(), -torch.inf)
