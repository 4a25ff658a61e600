"""What is to be solved: a geometry, two marginals, what each marginal must do, and the entropic strength."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ._inputs import float_tensor, is_real
from .errors import InvalidInput, refuse
from .geometry import Geometry, Ragged
from .kernels.elementwise import log
from .marginals import ROUNDING, Exact, Marginal, Side
from .regularizers import Regularizer

__all__ = ["Problem", "Relative", "equal_masses"]


@dataclass(frozen=True)
class Relative:
    """An epsilon told as a multiple of the mean cost under a ⊗ b: `Relative(0.05)` is 0.05 x mean cost.

    Raises:
        InvalidInput: the fraction is not a positive finite number.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not (is_real(self.fraction) and 0 < self.fraction < math.inf):
            refuse("Relative", "a positive finite fraction of the mean cost", repr(self.fraction))


@dataclass(frozen=True)
class Problem:
    """Minimise <P, C> + eps KL(P | R) + phi_a(P1) + phi_b(P^T 1) over P >= 0; or Omega(P) instead of eps KL.

    Build it with `Problem.make`, which checks; the fields are then consistent.

    Attributes:
        geometry: the cost, n x m.
        a, b: (*batch, n) and (*batch, m), nonnegative masses.
        marginals: what the row and the column marginal must do.
        epsilon: in cost units, (*batch,) or (); None for the unregularised problem.
        regularizer: Omega, such as `SquaredNorm(gamma, k)`, for exact marginals and no epsilon.
        reference: the measure R of the entropy. "product" is a ⊗ b; "counting" is all ones, where the term reads
            eps sum P (log P - 1) and weights of zero leave room for mass if the marginal allows it.
    """

    geometry: Geometry
    a: Tensor
    b: Tensor
    marginals: tuple[Marginal, Marginal] = (Exact(), Exact())
    epsilon: Tensor | None = None
    regularizer: Regularizer | None = None
    reference: str = "product"

    @classmethod
    def make(
        cls,
        geometry: Geometry,
        a: Any = None,
        b: Any = None,
        *,
        marginals: Marginal | tuple[Marginal, Marginal] = (Exact(), Exact()),
        epsilon: float | Relative | Tensor | None = None,
        regularizer: Regularizer | None = None,
        reference: str = "product",
    ) -> Problem:
        """Check the parts and put them together.

        Raises:
            InvalidInput: weights of the wrong shape, negative, not finite, without mass; totals that the marginals
                cannot reconcile; an epsilon that is not positive; another type of marginal; a regularizer together
                with an epsilon or a soft marginal; an unknown reference.
        """
        n, m = geometry.shape
        a, b = geometry.masses(a, b)
        try:
            batch = torch.broadcast_shapes(geometry.batch_shape, a.shape[:-1], b.shape[:-1])
        except RuntimeError:
            refuse(
                "a, b and the geometry",
                "batch axes that broadcast",
                f"{tuple(a.shape[:-1])}, {tuple(b.shape[:-1])} and {tuple(geometry.batch_shape)}",
            )
        a, b = a.expand(*batch, n), b.expand(*batch, m)
        pair = marginals if isinstance(marginals, tuple) else (marginals, marginals)
        if len(pair) != 2 or not all(isinstance(p, Marginal) for p in pair):
            refuse("marginals", "a Marginal such as Exact() or KL(rho), or a pair of them", repr(marginals))
        if reference not in ("product", "counting"):
            refuse("reference", "'product' or 'counting'", repr(reference))
        if reference == "counting" and isinstance(geometry, Ragged):
            refuse("reference", "'product' for a Ragged geometry", repr(reference), "Its padding would count.")
        pair = (pair[0].map(lambda t: t.to(a)), pair[1].map(lambda t: t.to(b)))
        if isinstance(pair[0], Exact) and isinstance(pair[1], Exact):
            b = equal_masses(a, b)
        problem = cls(geometry, a, b, pair, reference=reference)
        for marginal, side, name in zip(pair, problem.sides, "ab"):
            marginal.check(side, name)
        _check_totals(problem)
        if regularizer is not None:
            _check_regularizer(regularizer, problem, epsilon)
        return replace(problem, epsilon=_epsilon(epsilon, problem), regularizer=regularizer)

    @property
    def shape(self) -> tuple[int, int]:
        return self.geometry.shape

    @property
    def batch_shape(self) -> torch.Size:
        return self.a.shape[:-1]

    @property
    def sides(self) -> tuple[Side, Side]:
        """Weights, reference and epsilon of each side, as marginals take them."""
        return self.sides_at(self.epsilon)

    def sides_at(self, epsilon: Tensor | None) -> tuple[Side, Side]:
        """The sides at another epsilon, (*batch,) or ()."""
        line = epsilon.unsqueeze(-1) if epsilon is not None and epsilon.dim() else epsilon
        log_a, log_b = self._logs
        if self.reference == "product":
            return Side(self.a, self.a, line, log_a), Side(self.b, self.b, line, log_b)
        return Side(self.a, torch.ones_like(self.a), line), Side(self.b, torch.ones_like(self.b), line)

    @cached_property
    def _logs(self) -> tuple[Tensor | None, Tensor | None]:
        """Logarithms of weights that are positive and constant, which each iteration asks for."""
        log_a, log_b = (None if t.requires_grad or bool((t <= 0).any()) else log(t) for t in (self.a, self.b))
        return log_a, log_b

    @property
    def reference_mass(self) -> Tensor:
        """The mass of R in eps KL(P | R), (*batch,); zero for the counting measure, whose term leaves it out."""
        if self.reference == "product":
            return self.a.sum(-1) * self.b.sum(-1)
        return torch.zeros_like(self.a.sum(-1))

    @property
    def T(self) -> Problem:
        """The problem with source and target exchanged."""
        regularizer = None if self.regularizer is None else self.regularizer.T
        return replace(
            self,
            geometry=self.geometry.T,
            a=self.b,
            b=self.a,
            marginals=self.marginals[::-1],
            regularizer=regularizer,
        )

    def select(self, index: Tensor) -> Problem:
        """The items (k,) of a batch of one axis."""
        epsilon = self.epsilon if self.epsilon is None or not self.epsilon.dim() else self.epsilon[index]
        left, right = (marginal.select(index) for marginal in self.marginals)
        geometry, a, b = self.geometry.select(index), self.a[index], self.b[index]
        return replace(self, geometry=geometry, a=a, b=b, marginals=(left, right), epsilon=epsilon)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that define the problem; gradients flow to them."""
        left, right = self.marginals
        parts = (*self.geometry.tensors, self.a, self.b, *left.parameters, *right.parameters)
        return parts if self.epsilon is None else (*parts, self.epsilon)

    def with_tensors(self, *tensors: Tensor) -> Self:
        """The same problem on other tensors (a cast, a detached copy)."""
        left, right = self.marginals
        rest = iter(tensors)
        return replace(
            self,
            geometry=self.geometry.with_tensors(*(next(rest) for _ in self.geometry.tensors)),
            a=next(rest),
            b=next(rest),
            marginals=(left.map(lambda _: next(rest)), right.map(lambda _: next(rest))),
            epsilon=None if self.epsilon is None else next(rest),
        )

    def detach(self) -> Self:
        """The same problem without gradient history."""
        return self.with_tensors(*(t.detach() for t in self.tensors))

    def double(self) -> Self:
        """The same problem in float64."""
        out = self.with_tensors(*(t.double() for t in self.tensors))
        if self.balanced:
            out = replace(out, b=out.b * (out.a.sum(-1, keepdim=True) / out.b.sum(-1, keepdim=True)))
        return out

    def objective(self, r: Tensor, c: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """<P, C> + eps KL(P | R) + penalties, (*batch,), of the Gibbs plan of f and g, whose marginals are r and c."""
        assert self.epsilon is not None
        (left, right), (side_a, side_b) = self.marginals, self.sides
        # log(P / R) = (f + g - C) / eps
        total = (r * torch.where(r > 0, f, 0)).sum(-1) + (c * torch.where(c > 0, g, 0)).sum(-1)
        total = total - self.epsilon * (r.sum(-1) - self.reference_mass)
        return total + left.penalty(r, side_a) + right.penalty(c, side_b)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are exact."""
        return all(isinstance(p, Exact) for p in self.marginals)


def equal_masses(a: Tensor, b: Tensor) -> Tensor:
    """The masses b (*batch, m) with the totals of a (*batch, n), which may differ by rounding only."""
    with torch.no_grad():
        mass_a, mass_b = a.double().sum(-1), b.double().sum(-1)
        difference = (mass_a - mass_b).abs() / mass_a
    if (difference > ROUNDING[a.dtype]).any():
        worst = int(difference.argmax())
        raise InvalidInput(
            f"a and b: expected equal total masses for exact marginals, got {float(mass_a.flatten()[worst]):.9g} and "
            f"{float(mass_b.flatten()[worst]):.9g}. Normalise both (a / a.sum(), b / b.sum()), or let the masses "
            f"differ with marginals=KL(rho)."
        )
    return b * (mass_a / mass_b).to(b.dtype).unsqueeze(-1)


def _check_totals(problem: Problem) -> None:
    """The masses that one side can take and those of the other must have one in common."""
    with torch.no_grad():
        (low_a, high_a), (low_b, high_b) = (p.masses(side) for p, side in zip(problem.marginals, problem.sides))
        room = 1 + ROUNDING[low_a.dtype]
        bad = (low_a > high_b * room) | (low_b > high_a * room)
        if bool(bad.any()):
            worst = int(bad.to(torch.uint8).argmax())
            ranges = [f"[{float(u.flatten()[worst]):.9g}, {float(v.flatten()[worst]):.9g}]"
                      for u, v in ((low_a, high_a), (low_b, high_b))]  # fmt: skip
            left, right = problem.marginals
            raise InvalidInput(
                f"marginals: expected a mass that both sides can take, got {left!r} with {ranges[0]} for a and "
                f"{right!r} with {ranges[1]} for b. Change the masses, or soften a side with KL(rho)."
            )


def _check_regularizer(regularizer: Regularizer, problem: Problem, epsilon: object) -> None:
    if not isinstance(regularizer, Regularizer):
        refuse("regularizer", "a Regularizer such as SquaredNorm(1.0, k=4), or None", repr(regularizer))
    if epsilon is not None:
        refuse("regularizer", "epsilon=None, since epsilon is the strength of the entropy", f"epsilon={epsilon}")
    if not problem.balanced:
        refuse("regularizer", "exact marginals", str(problem.marginals))


def _epsilon(epsilon: float | Relative | Tensor | None, problem: Problem) -> Tensor | None:
    if epsilon is None:
        return None
    like = problem.a
    if isinstance(epsilon, Relative):
        mean = problem.detach().geometry.mean_cost(problem.a.detach(), problem.b.detach())
        if not ((mean > 0) & torch.isfinite(mean)).all():
            refuse(
                "epsilon=Relative(...)",
                "a positive finite mean cost",
                f"{float(mean.min()):.6g}",
                "Give epsilon as a number in cost units.",
            )
        return epsilon.fraction * mean.to(like.dtype)
    if not (is_real(epsilon) or isinstance(epsilon, Tensor | np.ndarray)):
        refuse("epsilon", "a positive number, Relative(fraction) or None", repr(epsilon))
    value = float_tensor(epsilon, "epsilon").to(like)
    if value.dim() and value.shape != problem.batch_shape:
        refuse("epsilon", f"one number or shape {tuple(problem.batch_shape)}", f"shape {tuple(value.shape)}")
    if not ((value > 0) & torch.isfinite(value)).all():
        refuse(
            "epsilon",
            "a positive finite number in cost units",
            f"{float(value.detach().min()):g}",
            "Use epsilon=None for the exact problem.",
        )
    return value
