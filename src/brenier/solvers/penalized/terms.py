"""Terms in the plan: what is asked of it beside its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..._inputs import is_real
from ...errors import refuse

__all__ = ["ClassNorm", "ClassPower", "Smoothness", "Term"]


class Term(ABC):
    """A function Omega(P) >= 0 of a dense plan (n, m) in float64; convex, unless it says otherwise."""

    concave: ClassVar[bool] = False

    @abstractmethod
    def check(self, shape: tuple[int, int]) -> None:
        """Raise `InvalidInput` if the term does not fit plans of this shape."""

    @abstractmethod
    def value(self, P: Tensor) -> Tensor:
        """Omega(P), (); differentiable by torch along lines."""

    @abstractmethod
    def gradient(self, P: Tensor) -> Tensor:
        """Its gradient, (n, m); a subgradient at corners."""


def _check_labels(name: str, labels: Tensor, n: int) -> None:
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or labels.shape != (n,) or int(labels.min()) < 0:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        refuse(name, f"{n} classes 0, 1, ..., one for each row", got)


def _by_class(values: Tensor, labels: Tensor) -> Tensor:
    """The sums of rows (n, m) over each class, (k, m)."""
    return values.new_zeros(int(labels.max()) + 1, values.shape[1]).index_add(0, labels, values)


@dataclass(frozen=True)
class ClassNorm(Term):
    r"""The group lasso: sum_j sum_c ||P_{c j}||_2, over columns j and classes c of the rows.

    Convex, and of the unit of mass. It is smallest where each column takes its mass from one class.

    Args:
        labels: the class of each row, (n,) integers from 0 on.

    Reference:
        Courty, Flamary, Tuia & Rakotomamonjy (2017), Optimal transport for domain adaptation.
    """

    labels: Tensor

    def check(self, shape: tuple[int, int]) -> None:
        _check_labels("ClassNorm labels", self.labels, shape[0])

    def _norms(self, P: Tensor) -> Tensor:
        squares = _by_class(P.square(), self.labels)
        some = squares > 0
        return torch.where(some, torch.where(some, squares, 1).sqrt(), 0)  # the root has no derivative at zero

    def value(self, P: Tensor) -> Tensor:
        return self._norms(P).sum()

    def gradient(self, P: Tensor) -> Tensor:
        norms = self._norms(P)[self.labels]
        return torch.where(norms > 0, P / torch.where(norms > 0, norms, 1), 0)


@dataclass(frozen=True)
class ClassPower(Term):
    r"""The l_p-l_1 group term: sum_j sum_c (||P_{c j}||_1 + offset)^p - offset^p, for 0 < p < 1.

    Concave: its linearisation lies above it, and conditional gradients with unit steps are its majorisation by
    minimisation. It asks for one class a column more strongly than `ClassNorm`, and has many local minima.

    Args:
        labels: the class of each row, (n,) integers from 0 on.
        p: the power.
        offset: rounds the corner at zero, in units of mass.

    Reference:
        Courty, Flamary & Tuia (2014), Domain adaptation with regularized optimal transport.
    """

    concave: ClassVar[bool] = True
    labels: Tensor
    p: float = 0.5
    offset: float = 1e-3

    def __post_init__(self) -> None:
        if not (is_real(self.p) and 0 < self.p < 1):
            refuse("ClassPower p", "a number between 0 and 1", repr(self.p))
        if not (is_real(self.offset) and 0 < self.offset < float("inf")):
            refuse("ClassPower offset", "a positive finite mass", repr(self.offset))

    def check(self, shape: tuple[int, int]) -> None:
        _check_labels("ClassPower labels", self.labels, shape[0])

    def value(self, P: Tensor) -> Tensor:
        return ((_by_class(P, self.labels) + self.offset) ** self.p - self.offset**self.p).sum()

    def gradient(self, P: Tensor) -> Tensor:
        return (self.p * (_by_class(P, self.labels) + self.offset) ** (self.p - 1))[self.labels]


@dataclass(frozen=True)
class Smoothness(Term):
    r"""Neighbours go to neighbours: the Laplacian of a graph on the sources, and of one on the targets.

        Omega(P) = sum_{i ~ k} a_i a_k s_ik ||T_i - T_k||^2,    T = diag(1 / a) P y

    over the edges of a graph, weighted by `share`, plus the same for the targets under the transposed plan, weighted by
    1 - share. Quadratic and convex. With `displacement` it is T - x that varies little, so that shifts are free.

    Args:
        x, y: (n, d) and (m, d).
        a, b: masses, (n,) and (m,), which the plan has as its marginals.
        edges_x, edges_y: heads (k,), tails (k,) and weights s (k,) of the edges, each edge once; None for no edges.
        share: of the sources, in [0, 1].
        displacement: whether displacements are compared in the place of positions.

    Reference:
        Ferradans, Papadakis, Peyré & Aujol (2014), Regularized discrete optimal transport; Flamary, Courty, Tuia &
        Rakotomamonjy (2014), Optimal transport with Laplacian regularization.
    """

    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    edges_x: tuple[Tensor, Tensor, Tensor] | None = None
    edges_y: tuple[Tensor, Tensor, Tensor] | None = None
    share: float = 0.5
    displacement: bool = False

    def __post_init__(self) -> None:
        if not (is_real(self.share) and 0 <= self.share <= 1):
            refuse("Smoothness share", "a number in [0, 1]", repr(self.share))

    def check(self, shape: tuple[int, int]) -> None:
        if (len(self.x), len(self.y)) != shape or (len(self.a), len(self.b)) != shape:
            refuse("Smoothness", f"points and masses of {shape[0]} rows and {shape[1]} columns",
                   f"{len(self.x)} and {len(self.y)}")  # fmt: skip

    @property
    def T(self) -> Smoothness:
        """The same term of the transposed plan."""
        return replace(self, x=self.y, y=self.x, a=self.b, b=self.a, edges_x=self.edges_y, edges_y=self.edges_x,
                       share=1 - self.share)  # fmt: skip

    def _inverse(self) -> Tensor:
        return torch.where(self.a > 0, 1 / torch.where(self.a > 0, self.a, 1), 0).unsqueeze(-1)

    def _differences(self, P: Tensor) -> tuple[Tensor, Tensor]:
        """T_i - T_k, and a_i a_k s_ik, over the edges of the sources."""
        assert self.edges_x is not None
        heads, tails, weights = self.edges_x
        moved = self._inverse() * (P @ self.y)
        if self.displacement:
            moved = moved - self.x
        return moved[heads] - moved[tails], (weights * self.a[heads] * self.a[tails]).unsqueeze(-1)

    def _rows(self, P: Tensor) -> Tensor:
        if self.edges_x is None or not self.share:
            return P.new_zeros(())
        difference, weights = self._differences(P)
        return self.share * (weights * difference.square()).sum()

    def _rows_gradient(self, P: Tensor) -> Tensor:
        if self.edges_x is None or not self.share:
            return torch.zeros_like(P)
        difference, weights = self._differences(P)
        heads, tails, _ = self.edges_x
        flow = 2 * self.share * weights * difference
        moved = torch.zeros_like(self.x).index_add(0, heads, flow).index_add(0, tails, -flow)
        return (self._inverse() * moved) @ self.y.mT

    def value(self, P: Tensor) -> Tensor:
        return self._rows(P) + self.T._rows(P.mT)

    def gradient(self, P: Tensor) -> Tensor:
        return self._rows_gradient(P) + self.T._rows_gradient(P.mT).mT
