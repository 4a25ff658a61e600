"""The Monge gap: how much dearer a map is than the cheapest way to the same image, as a function and as a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adjoint import Adjoint, Envelope
from ..api import solve
from ..errors import refuse
from ..geometry import PointCloud
from ..problem import Relative
from ..solution import Solution
from ..solvers import Solver
from .clouds import Ground, between, untraced
from .divergence import _lower

__all__ = ["Gap", "MongeGap", "monge_gap"]

# What the value is shifted by, in units of epsilon times the entropy of the masses, and what it cannot fall below.
_SHIFT = {"kl": 0.0, "entropy": 2.0, "exact": 0.0}
_FLOOR = {"kl": -1.0, "entropy": 1.0, "exact": 0.0}


class Gap(NamedTuple):
    """A Monge gap and what it was made of.

    Attributes:
        value: (*batch,); differentiable.
        displacement: the mean cost of the map, (*batch,); differentiable.
        floor: what the value of an optimal map may come down to, (*batch,): -eps H(a) for "kl", eps H(a) for "entropy",
            0 for "exact", with H(a) = -sum a log a, which is log n for uniform masses. `value - floor` is nonnegative.
        solution: the transport between the points and their images.
    """

    value: Tensor
    displacement: Tensor
    floor: Tensor
    solution: Solution


def monge_gap(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, n, d)
    a: Any = None,  # (*batch, n)
    *,
    cost: Ground = "sqeuclidean",
    epsilon: float | Relative | Tensor | None = Relative(0.01),
    convention: str = "kl",
    solver: str | Solver[Any] = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    adjoint: Adjoint = Envelope(),
    throw: bool = False,
) -> Tensor:  # (*batch,)
    r"""Compute the Monge gap of a map, from points x_i and their images y_i = T(x_i).

    .. math:: M(T) = \sum_i a_i\, c(x_i, T(x_i)) - W_c(\rho, T_\#\rho), \qquad \rho = \sum_i a_i \delta_{x_i}

    It is nonnegative, and zero where T is an optimal map from rho to its own image: as a term of a loss it makes any
    network learn an optimal map, for any cost. W is one of three, by convention:

    - "kl": min <P, C> + eps KL(P | a ⊗ a), as everywhere here. M is at least -eps H(a), and not positive at an
      optimal map.
    - "entropy": min <P, C> + eps sum P log P, which adds 2 eps H(a) to M. It is at least eps H(a), and about that at an
      optimal map; OTT has this one.
    - "exact": no entropy. It is what to report.

    H(a) is log n for uniform masses. The first two have one gradient; compare their values at one n and epsilon only.
    W is told by its dual value, a lower bound, so that iterations that were stopped early do not make a gap too small.
    Differentiable in x, y, a and epsilon at the optimal plan, held fixed; a cost that has a kink at x = y, as a norm,
    counts with its zero subgradient.

    Args:
        x: points; batch axes broadcast.
        y: their images, in the same order.
        a: masses; uniform with total 1 when None.
        cost: as for `solve`.
        epsilon: in cost units, or `Relative(0.01)` of the mean cost between x and y, which is held constant. The exact
            gap has none, whatever is given.
        convention: "kl", "entropy" or "exact".
        solver, tol, max_iter, adjoint, throw: as for `solve`.

    Raises:
        InvalidInput: x and y of different sizes, another convention, no epsilon, and what `solve` refuses.
        NotConverged: with `throw=True`.

    Complexity: one entropic or exact problem; O(n) memory, and n^2 for the exact one.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> abs(float(monge_gap(x, 2 * x, convention="exact"))) < 1e-6  # the gradient of a convex function
        True
        >>> turned = torch.stack([-x[:, 1], x[:, 0]], 1)
        >>> round(float(monge_gap(x, turned, convention="exact")), 4)  # by a right angle
        1.3333

    Source: Uscidda & Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, ICML 2023.
    """
    options = {"solver": solver, "tol": tol, "max_iter": max_iter, "adjoint": adjoint, "throw": throw}
    return untraced(_gap)(x, y, a, cost, epsilon, convention, options).value


def _gap(x: Any, y: Any, a: Any, cost: Ground, epsilon: Any, convention: str, options: dict[str, Any]) -> Gap:
    if not isinstance(convention, str) or convention not in _SHIFT:
        refuse("convention", "one of " + ", ".join(map(repr, _SHIFT)), repr(convention))
    if convention == "exact":
        epsilon = None
    elif epsilon is None:
        refuse("epsilon", "a positive number or Relative(fraction)", "None", "Without one: convention='exact'.")
    geometry = between(x, y, cost)
    if not isinstance(geometry, PointCloud):
        refuse("x and y", "points and their images, as tensors", type(x).__name__, "Call it for each cloud of a list.")
    n, m = geometry.shape
    if n != m:
        refuse("y", f"{n} points, the images of those of x", f"{m}")
    a, _ = geometry.masses(a, None)
    displacement = (a * geometry.ground(geometry.x, geometry.y)).sum(-1)
    solution = solve(geometry, a=a, b=a, epsilon=epsilon, **options)
    if convention == "exact":
        return Gap(displacement - solution.value, displacement, torch.zeros_like(displacement.detach()), solution)
    eps = solution.problem.epsilon
    assert eps is not None
    unit = eps * torch.special.entr(a).sum(-1)
    value = displacement - _lower(solution) + _SHIFT[convention] * unit
    return Gap(value, displacement, (_FLOOR[convention] * unit).detach().expand_as(value), solution)


class MongeGap(nn.Module):
    r"""The Monge gap as a loss: M(T) = mean c(x, T(x)) - W_c(x, T(x)), (*batch,).

    See `monge_gap` for the formula, the conventions and limits.

    Args:
        cost, epsilon, convention, solver, tol, max_iter, adjoint: as for `monge_gap`.

    Example:
        >>> import torch
        >>> loss = MongeGap(cost="euclidean")
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> moved = (-x).requires_grad_()
        >>> gap = loss.measure(x, moved)
        >>> gap.value.backward()
        >>> bool(gap.value > 0), bool(gap.displacement > gap.value), moved.grad.shape
        (True, True, torch.Size([50, 2]))
    """

    def __init__(
        self,
        *,
        cost: Ground = "sqeuclidean",
        epsilon: float | Relative | Tensor | None = Relative(0.01),
        convention: str = "kl",
        solver: str | Solver[Any] = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
        adjoint: Adjoint = Envelope(),
    ) -> None:
        super().__init__()
        self.cost, self.epsilon, self.convention = cost, epsilon, convention
        self.solver, self.tol, self.max_iter, self.adjoint = solver, tol, max_iter, adjoint

    def forward(self, x: Any, y: Any, a: Any = None) -> Tensor:
        """The gaps of maps that send x to y, (*batch,)."""
        return self.measure(x, y, a).value

    def measure(self, x: Any, y: Any, a: Any = None) -> Gap:
        """The gaps with what they were made of."""
        options = {"solver": self.solver, "tol": self.tol, "max_iter": self.max_iter, "adjoint": self.adjoint}
        return untraced(_gap)(x, y, a, self.cost, self.epsilon, self.convention, options)

    def extra_repr(self) -> str:
        return f"cost={self.cost!r}, epsilon={self.epsilon}, convention={self.convention!r}"
