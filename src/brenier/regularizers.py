"""Regularizers of transport plans other than entropy, told by their conjugates.

A regularizer acts on one column t of the plan at a time; solvers that climb the dual see it through two conjugates,
one over t >= 0 and one over t >= 0 with sum t = b. Columns lie along the last axis here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import refuse
from .projections import check_k, project_descending

__all__ = ["Conjugate", "Regularizer", "SquaredNorm"]


class Conjugate(NamedTuple):
    """The conjugate of each column, and the column that attains it, by its k entries."""

    value: Tensor  # (*batch, m)
    rows: Tensor  # (*batch, m, k), of the entries
    mass: Tensor  # (*batch, m, k), nonnegative, in no particular order
    level: Tensor  # (*batch, m), the multiplier of sum t = b; zero where there is no such constraint


class Regularizer(ABC):
    """A term Omega(t) for each column t of the plan (each row, where `axis` says so)."""

    axis: str = "columns"

    @property
    def extreme(self) -> bool:
        """Whether Omega_b*(s) is b max(s) and a constant: the semi-dual is then that of unregularised transport."""
        return False

    @property
    @abstractmethod
    def T(self) -> Regularizer:
        """The same regularizer for the transposed plan."""

    @abstractmethod
    def of_entries(self, mass: Tensor) -> Tensor:
        """The sum of Omega over all columns of a plan with these entries (*batch, entries): (*batch,)."""

    @abstractmethod
    def conjugate(self, s: Tensor) -> Conjugate:
        """Sup <s, t> - Omega(t) over t >= 0, for each column of s (*batch, m, n)."""

    @abstractmethod
    def conjugate_on_simplex(self, s: Tensor, b: Tensor) -> Conjugate:
        """Sup <s, t> - Omega(t) over t >= 0 with sum t = b, for each column of s (*batch, m, n), b (*batch, m)."""

    def relaxations(self, n: int) -> tuple[Regularizer, ...]:
        """Regularizers of columns of length n with smoother conjugates, the smoothest first, that lead to this one."""
        return ()

    @abstractmethod
    def ties(self, s: Tensor, b: Tensor, tol: float) -> Tensor:
        """Columns whose maximiser on the simplex is not unique, up to gaps of `tol` in s: bool (*batch, m)."""


@dataclass(frozen=True)
class SquaredNorm(Regularizer):
    r"""gamma/2 ||t||^2 for each column t, and at most k non-zeros in each where k is given.

        Omega+*(s)  = sum over the k largest s_i of [s_i]_+^2 / (2 gamma),     t = [s]_+ / gamma on them
        Omega_b*(s) = <s, t> - gamma/2 ||t||^2,     t = the k largest s_i / gamma, projected on the simplex of mass b

    Without k this is quadratically regularised transport: plans are sparse, and unique. With k the primal is not
    convex, but both conjugates are (suprema of affine functions): their ascent solves the convex envelope of the
    problem. Where the k-th and the (k+1)-th largest entry of a column are equal at the optimum, the maximiser is not
    unique, and the k-sparse plan that is read off need not have the right row sums.

    Args:
        gamma: strength, in cost units per unit of mass.
        k: non-zeros allowed in each column; no bound when None.
        axis: "columns" or "rows", whichever k counts along.

    Reference:
        Blondel, Seguy & Rolet (2018), Smooth and sparse optimal transport; Liu, Puigcerver & Blondel (2023),
        Sparsity-constrained optimal transport.

    Example:
        >>> import torch, brenier
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> solution = brenier.solve(brenier.CostMatrix(C), regularizer=SquaredNorm(1.0, k=1))
        >>> float(solution.value), solution.plan.dense().tolist()
        (0.25, [[0.5, 0.0], [0.0, 0.5]])
    """

    gamma: float = 1.0
    k: int | None = None
    axis: str = "columns"

    def __post_init__(self) -> None:
        number = isinstance(self.gamma, int | float) and not isinstance(self.gamma, bool)
        if not (number and 0 < self.gamma < math.inf):
            refuse("gamma", "a positive finite number", repr(self.gamma), "For gamma = 0 leave the regularizer out.")
        if self.k is not None:
            check_k(self.k)
        if self.axis not in ("columns", "rows"):
            refuse("axis", "'columns' or 'rows'", repr(self.axis))

    @property
    def extreme(self) -> bool:
        return self.k == 1

    @property
    def T(self) -> SquaredNorm:
        return replace(self, axis="rows" if self.axis == "columns" else "columns")

    def of_entries(self, mass: Tensor) -> Tensor:
        return self.gamma / 2 * mass.square().sum(-1)

    def relaxations(self, n: int) -> tuple[SquaredNorm, ...]:
        if self.k is None:
            return ()
        larger = []
        k = 4 * self.k
        while k < n:
            larger.append(replace(self, k=k))
            k *= 4
        return (*([replace(self, k=None)] if self.k < n else []), *reversed(larger))

    def _largest(self, s: Tensor, more: int = 0) -> tuple[Tensor, Tensor]:
        n = s.shape[-1]
        k = n if self.k is None else min(self.k + more, n)
        return s.topk(k, -1)

    def conjugate(self, s: Tensor) -> Conjugate:
        values, index = self._largest(s)
        mass = values.clamp(min=0) / self.gamma
        return Conjugate(self.of_entries(mass), index, mass, torch.zeros_like(s[..., 0]))

    def conjugate_on_simplex(self, s: Tensor, b: Tensor) -> Conjugate:
        values, index = self._largest(s)
        mass, threshold = project_descending(values / self.gamma, b)
        # <s, t> - gamma/2 ||t||^2 from the largest entry down, which loses nothing to a common shift
        first = values[..., :1]
        value = first.squeeze(-1) * b + ((values - first) * mass).sum(-1) - self.of_entries(mass)
        return Conjugate(value, index, mass, self.gamma * threshold)

    def ties(self, s: Tensor, b: Tensor, tol: float) -> Tensor:
        if self.k is None or self.k >= s.shape[-1]:
            return torch.zeros_like(b, dtype=torch.bool)
        values, _ = self._largest(s, 1)
        mass = project_descending(values[..., :-1] / self.gamma, b).point
        return (values[..., -2] - values[..., -1] <= tol) & (mass[..., -1] > 0)
