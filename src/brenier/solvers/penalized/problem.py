"""Transport with a further term in the plan, and the answer to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..._inputs import is_real
from ...certificate import Certificate
from ...errors import refuse
from ...geometry import CostMatrix, Geometry
from ...problem import Problem, Relative
from ...solution import Solution
from ...structure import dense
from .terms import Term

__all__ = ["Penalized", "PenalizedSolution"]


@dataclass(frozen=True)
class Penalized(Problem):
    r"""Minimise <P, C> + eps KL(P | a ⊗ b) + phi_a(P1) + phi_b(P^T 1) + eta Omega(P) over P >= 0.

    Build it with `Penalized.of`, which checks. The plan is dense: n x m memory.

    Attributes:
        term: Omega, such as `ClassNorm(labels)`.
        eta: its strength.
    """

    term: Term = field(kw_only=True)
    eta: float = field(kw_only=True)

    @classmethod
    def of(cls, problem: Problem, term: Term, eta: float | Relative) -> Penalized:
        """Put a term on top of a problem.

        Args:
            problem: without batch axes and regularizer, with the product reference.
            term: Omega.
            eta: nonnegative; in cost units for terms of the unit of mass, where `Relative(t)` is t x mean cost.

        Raises:
            InvalidInput: another problem, a term that does not fit it, an eta that is negative or not finite.
        """
        if problem.batch_shape:
            refuse("problem", "no batch axes", f"batch {tuple(problem.batch_shape)}", "Loop over them.")
        if problem.regularizer is not None or problem.reference != "product":
            refuse("problem", "no regularizer, and the product reference",
                   f"{problem.regularizer!r} and {problem.reference!r}")  # fmt: skip
        if not isinstance(term, Term):
            refuse("term", "a Term such as ClassNorm(labels)", type(term).__name__)
        term.check(problem.shape)
        if isinstance(eta, Relative):
            eta = eta.fraction * float(problem.detach().geometry.mean_cost(problem.a.detach(), problem.b.detach()))
        if not (is_real(eta) and 0 <= eta < float("inf")):
            refuse("eta", "a finite number >= 0, or Relative(fraction)", repr(eta))
        return cls(
            problem.geometry, problem.a, problem.b, problem.marginals, problem.epsilon, term=term, eta=float(eta)
        )

    @property
    def T(self) -> NoReturn:
        refuse("the transposed problem", "a problem without a term", repr(self.term))

    @cached_property
    def exact(self) -> Penalized:
        """The problem as constants in float64."""
        return self.detach().double()

    @cached_property
    def _cost(self) -> Tensor:
        return self.exact.geometry.tile()

    def linear(self, gradient: Tensor | None = None) -> Problem:
        """The problem without its term, in float64; with a gradient (n, m) of the term in the cost."""
        p = self.exact
        cost = self._cost if gradient is None else self._cost + self.eta * gradient
        return Problem(CostMatrix(cost), p.a, p.b, p.marginals, p.epsilon)

    def total(self, P: Tensor, *, term: bool = True) -> Tensor:
        """What is minimised, (), with or without the term, of a dense plan in float64; differentiable in it."""
        p = self.exact
        value = (P * self._cost).sum()
        for marginal, side, dim in zip(p.marginals, p.sides, (1, 0)):
            value = value + marginal.penalty(P.sum(dim), side)
        if p.epsilon is not None:
            whole = p.a.unsqueeze(-1) * p.b
            some = (P > 0) & (whole > 0)  # x log x has no derivative at zero
            ratio = torch.where(some, P, 1).log() - torch.where(some, whole, 1).log()
            value = value + p.epsilon * ((torch.where(some, P, 0) * ratio).sum() - P.sum() + whole.sum())
        return value + self.eta * self.term.value(P) if term else value


class PenalizedSolution(Solution):
    """The answer to a `Penalized` problem: a `Solution` whose value has the term in it.

    f and g are the potentials of the last linearised problem, so there is no extension to new points. The value carries
    no gradients. `certificate` bounds the problem without term and entropy, as everywhere.
    """

    problem: Penalized

    @cached_property
    def _value(self) -> Tensor:
        with torch.no_grad():
            return self.problem.total(dense(self._solved[0]))

    @property
    def value(self) -> Any:
        """What was minimised, with entropy, penalties and the term; not differentiable."""
        return self.kind.array(self._value.to(self.problem.a.dtype))

    @cached_property
    def dual_value(self) -> Any:
        """A lower bound of the minimum, from the linearised problems; for concave terms from that without the term."""
        return self.kind.array(self.problem.a.new_tensor(self.stats["lower"]))

    def certify(self) -> Certificate:
        """Bounds of the problem without term and entropy, in float64."""
        plain = Solution(
            Problem(self.problem.geometry, self.problem.a, self.problem.b, self.problem.marginals),
            *self._solved,
            statuses=self.statuses,
            stats=self.stats,
        )
        return plain.certify()

    def _new_cloud(self, points: Any, geometry: Geometry) -> NoReturn:
        refuse("new points", "a solution of a problem without a term", f"one with {type(self.problem.term).__name__}",
               "Use the estimators in brenier.maps, or solution.plan.barycentric().")  # fmt: skip

    def __repr__(self) -> str:
        return "Penalized" + super().__repr__()
