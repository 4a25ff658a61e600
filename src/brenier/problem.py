"""What is to be solved: a geometry, two marginals, what each marginal must do, and the entropic strength."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._inputs import float_tensor, is_real
from .errors import InvalidInput, refuse
from .geometry import Geometry
from .regularizers import Regularizer

__all__ = ["KL", "Exact", "Marginal", "Problem", "Relative"]


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


class Marginal(ABC):
    """What one marginal of the plan must do: a convex penalty phi(P1 | a), seen through three operations."""

    @abstractmethod
    def prox(self, f: Tensor, epsilon: float | Tensor) -> Tensor:
        """The best potential, given the soft c-transform f that an exact marginal would take."""

    @abstractmethod
    def target(self, f: Tensor, a: Tensor) -> Tensor:
        """The marginal that the plan must have when f is optimal."""

    @abstractmethod
    def penalty(self, r: Tensor, a: Tensor) -> Tensor:
        """phi(r | a) in the primal value, (*batch,)."""

    @abstractmethod
    def dual(self, f: Tensor, a: Tensor) -> Tensor:
        """The term of f in the dual value, (*batch,)."""


@dataclass(frozen=True)
class Exact(Marginal):
    """The marginal is met exactly: P1 = a."""

    def prox(self, f: Tensor, epsilon: float | Tensor) -> Tensor:
        return f

    def target(self, f: Tensor, a: Tensor) -> Tensor:
        return a

    def penalty(self, r: Tensor, a: Tensor) -> Tensor:
        return torch.zeros_like(a.sum(-1))

    def dual(self, f: Tensor, a: Tensor) -> Tensor:
        return torch.where(a > 0, a * f, 0).sum(-1)


@dataclass(frozen=True)
class KL(Marginal):
    """A soft marginal: rho KL(P1 | a), with KL(r | a) = sum r log(r / a) - r + a.

    Args:
        rho: > 0, in cost units; large means nearly exact.
    """

    rho: float

    def __post_init__(self) -> None:
        if not (is_real(self.rho) and 0 < self.rho < math.inf):
            refuse(
                "KL rho",
                "a positive finite number in cost units",
                repr(self.rho),
                "Use Exact() for a hard one.",
            )

    def prox(self, f: Tensor, epsilon: float | Tensor) -> Tensor:
        if isinstance(epsilon, Tensor) and epsilon.dim():
            epsilon = epsilon.unsqueeze(-1)
        return f * (self.rho / (self.rho + epsilon))

    def target(self, f: Tensor, a: Tensor) -> Tensor:
        return a * (-f / self.rho).exp()

    def penalty(self, r: Tensor, a: Tensor) -> Tensor:
        return self.rho * (torch.special.xlogy(r, r) - torch.special.xlogy(r, a) - r + a).sum(-1)

    def dual(self, f: Tensor, a: Tensor) -> Tensor:
        return -self.rho * (a * torch.expm1(-f / self.rho)).sum(-1)


# Masses that differ by rounding only are made equal; more is an error of the caller.
_MASS_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(frozen=True)
class Problem:
    """Minimise <P, C> + eps KL(P | a ⊗ b) + phi_a(P1) + phi_b(P^T 1) over P >= 0; or Omega(P) instead of eps KL.

    Build it with `Problem.make`, which checks; the fields are then consistent.

    Attributes:
        geometry: the cost, n x m.
        a, b: (*batch, n) and (*batch, m), nonnegative masses.
        marginals: what the row and the column marginal must do.
        epsilon: in cost units, (*batch,) or (); None for the unregularised problem.
        regularizer: Omega, such as `SquaredNorm(gamma, k)`, for exact marginals and no epsilon.
    """

    geometry: Geometry
    a: Tensor
    b: Tensor
    marginals: tuple[Marginal, Marginal] = (Exact(), Exact())
    epsilon: Tensor | None = None
    regularizer: Regularizer | None = None

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
    ) -> Problem:
        """Check the parts and put them together.

        Raises:
            InvalidInput: weights of the wrong shape, negative, not finite, without mass, or of unequal total where
                a marginal is exact; an epsilon that is not positive; another type of marginal; a regularizer together
                with an epsilon or a soft marginal.
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
            refuse("marginals", "Exact(), KL(rho), or a pair of them", repr(marginals))
        if isinstance(pair[0], Exact) and isinstance(pair[1], Exact):
            b = _equal_masses(a, b)
        problem = cls(geometry, a, b, pair)
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
    def T(self) -> Problem:
        """The problem with source and target exchanged."""
        regularizer = None if self.regularizer is None else self.regularizer.T
        return Problem(self.geometry.T, self.b, self.a, self.marginals[::-1], self.epsilon, regularizer)

    def detach(self) -> Problem:
        """The same problem without gradient history."""
        epsilon = None if self.epsilon is None else self.epsilon.detach()
        fixed = self.geometry.detach()
        return replace(self, geometry=fixed, a=self.a.detach(), b=self.b.detach(), epsilon=epsilon)

    def double(self) -> Problem:
        """The same problem in float64."""
        epsilon = None if self.epsilon is None else self.epsilon.double()
        a, b = self.a.double(), self.b.double()
        if self.balanced:
            b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
        return replace(self, geometry=self.geometry.to(torch.float64), a=a, b=b, epsilon=epsilon)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are exact."""
        return all(isinstance(p, Exact) for p in self.marginals)


def _equal_masses(a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        mass_a, mass_b = a.double().sum(-1), b.double().sum(-1)
        difference = (mass_a - mass_b).abs() / mass_a
    if (difference > _MASS_TOLERANCE[a.dtype]).any():
        worst = int(difference.argmax())
        raise InvalidInput(
            f"a and b: expected equal total masses for exact marginals, got {float(mass_a.flatten()[worst]):.9g} and "
            f"{float(mass_b.flatten()[worst]):.9g}. Normalise both (a / a.sum(), b / b.sum()), or let the masses "
            f"differ with marginals=KL(rho)."
        )
    return b * (mass_a / mass_b).to(b.dtype).unsqueeze(-1)


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
