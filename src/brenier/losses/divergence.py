"""The Sinkhorn divergence: entropic transport without its bias, as a function and as a module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adjoint import Adjoint, Envelope
from ..api import solve
from ..errors import refuse
from ..geometry import Geometry, Grid, PointCloud
from ..marginals import KL, TV, Exact, Marginal
from ..problem import Problem, Relative
from ..solution import Solution
from ..solvers import Fixed, Halving, Sinkhorn, SinkhornNewton, Solver, SymmetricSinkhorn
from ..solvers.entropic.symmetric import is_positive
from .clouds import Ground, between, detached, equal, untraced

__all__ = ["Divergence", "SinkhornDivergence", "Warm", "sinkhorn_divergence"]

# Marginal error of the potentials of each side with itself up to which the problem between both begins with these.
_NEAR = 0.1


class Warm(NamedTuple):
    """Potentials to begin with: of the problem between both sides, and of each side with itself."""

    f: Tensor  # (*batch, n)
    g: Tensor  # (*batch, m)
    own_x: Tensor | None = None  # (*batch, n)
    own_y: Tensor | None = None  # (*batch, m)


@dataclass(frozen=True)
class Divergence:
    """A Sinkhorn divergence and the solutions that it was made of.

    Attributes:
        value: (*batch,); differentiable.
        cross: the solution between both sides.
        own: the solutions of each side with itself; None without debiasing.
    """

    value: Tensor
    cross: Solution
    own: tuple[Solution, Solution] | None

    @property
    def ok(self) -> bool:
        """Whether all solves met their tolerance."""
        return all(s.status.ok for s in (self.cross, *(self.own or ())))

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """The debiased potentials f_xy - f_xx (*batch, n) and g_xy - g_yy (*batch, m), without a gradient.

        With exact marginals they are the derivative of the value towards the masses, up to constants.
        """
        like = self.cross.problem.a
        f, g = self.cross.f.detach(), self.cross.g.detach()
        if self.own is not None:
            f, g = f - self.own[0].f.detach(), g - self.own[1].f.detach()
        return f.to(like.dtype), g.to(like.dtype)

    @property
    def warm(self) -> Warm:
        """The potentials, for the `start` of a problem nearby."""
        own = () if self.own is None else (s.f.detach() for s in self.own)
        return Warm(self.cross.f.detach(), self.cross.g.detach(), *own)


def sinkhorn_divergence(
    x: Any,  # (*batch, n, d)
    y: Any = None,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    epsilon: float | Relative | Tensor,
    cost: Ground = "sqeuclidean",
    marginals: Marginal = Exact(),
    debiased: bool = True,
    tol: float | None = None,
    max_iter: int | None = None,
    adjoint: Adjoint = Envelope(),
    start: Warm | None = None,
    throw: bool = False,
) -> Divergence:
    r"""Compute the Sinkhorn divergence between two measures.

    .. math:: S(\alpha, \beta) = \mathrm{OT}(\alpha, \beta) - \tfrac12 \mathrm{OT}(\alpha, \alpha)
        - \tfrac12 \mathrm{OT}(\beta, \beta) + \tfrac\varepsilon2 (m_\alpha - m_\beta)^2,

    where OT is the value of `solve`, min <P, C> + eps KL(P | a ⊗ b) + penalties, and m are the masses. For a cost with
    a positive kernel exp(-c / eps), as squared Euclidean ones and Euclidean norms, it is nonnegative, zero only for
    equal measures, and convex in each of them. It goes from transport (epsilon to 0) to a kernel norm (to infinity).

    Each OT is told by its dual value, whose error is of second order in the marginal error, and OT(x, y) by no less
    than the potentials of each side with itself prove, so that nothing but rounding falls below zero. Where both sides
    have the same points and masses in the same order, value and gradient are zero to the last bit.

    Args:
        x, y: clouds, batch axes broadcast; or lists of clouds of different sizes; or a `Grid` and no y, for images.
        a, b: masses; uniform with total 1 when None. A list of masses for a list of clouds.
        epsilon: in cost units, or `Relative(0.05)` of the mean cost between x and y, which is held constant.
        cost: symmetric, as for `solve`.
        marginals: of both sides: `Exact()`, `KL(rho)` or `TV(rho)`, the last two for measures of any masses.
        debiased: False leaves OT(x, y) alone.
        tol, max_iter: as for `solve`. The gradient is off by the order of the marginal error, 1e-6 by default in
            float64 and 1e-4 in float32.
        adjoint: `Envelope()` for first derivatives, in points, masses, epsilon and rho; `Implicit()` for second ones.
        start: potentials to begin with, the `warm` of an earlier answer; left out where the sizes differ.
        throw: raise `NotConverged` when a tolerance is not met; otherwise warn, and say so in `ok`.

    Returns:
        A `Divergence`: value, the three solutions with their certificates, potentials.

    Raises:
        InvalidInput: other marginals, a rho for each point, a cost that is not symmetric, and what `solve` refuses.
        NotConverged: with `throw=True`.

    Complexity: three entropic problems, of which those of one side with itself take some ten passes over the pairs; a
    backward pass of one pass for each. O(n + m) memory.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> round(float(sinkhorn_divergence(x, x + 1, epsilon=0.1).value), 6)  # of a translation, |t|^2
        2.0
        >>> float(sinkhorn_divergence(x, x, epsilon=0.1).value)
        0.0

    Source: Genevay, Peyré & Cuturi (2018), Learning generative models with Sinkhorn divergences; Feydy, Séjourné,
    Vialard, Amari, Trouvé & Peyré (2019), Interpolating between optimal transport and MMD using Sinkhorn divergences;
    Séjourné, Feydy, Vialard, Trouvé & Peyré (2019), Sinkhorn divergences for unbalanced optimal transport.
    """
    options = {"tol": tol, "max_iter": max_iter, "adjoint": adjoint, "throw": throw}
    return untraced(_divergence)(x, y, a, b, epsilon, cost, marginals, debiased, start, options)


def _divergence(
    x: Any,
    y: Any,
    a: Any,
    b: Any,
    epsilon: Any,
    cost: Ground,
    marginals: Marginal,
    debiased: bool,
    start: Warm | None,
    options: dict[str, Any],
) -> Divergence:
    if epsilon is None:
        refuse("epsilon", "a positive number or Relative(fraction)", "None", "Without one: exact_wasserstein.")
    if not isinstance(marginals, Exact | KL | TV):
        refuse("marginals", "Exact(), KL(rho) or TV(rho), for both sides", repr(marginals))
    if not marginals.extends:
        refuse(f"{type(marginals).__name__} rho", "one number for all points of both sides", "a tensor with axes")
    if start is not None and not isinstance(start, Warm):
        refuse("start", "the `warm` of a Divergence, or None", type(start).__name__)
    problem = Problem.make(between(x, y, cost), a, b, marginals=marginals, epsilon=epsilon)
    geometry, eps, batch = problem.geometry, problem.epsilon, problem.batch_shape
    assert eps is not None
    a, b = geometry.masses(a, b)
    if start is not None and (start.f.shape, start.g.shape) != (problem.a.shape, problem.b.shape):
        start = None

    def across(begin: Warm | None) -> Solution:
        solver = _cross_solver(marginals, begin)
        return solve(geometry, a=a, b=b, epsilon=eps, marginals=marginals, solver=solver, **options)

    if not debiased:
        cross = across(start)
        return Divergence(_lower(cross), cross, None)
    own_a, own_b = a, b
    if eps.dim():  # one for each problem, which a cloud that they share must then be as well
        own_a, own_b = problem.a, problem.b
        if isinstance(geometry, PointCloud):
            x, y = geometry.x, geometry.y
    begin_x, begin_y = (None, None) if start is None else (start.own_x, start.own_y)
    own = (
        _with_itself(x, own_a, cost, eps, marginals, begin_x, options),
        _with_itself(x if y is None else y, own_b, cost, eps, marginals, begin_y, options),
    )
    # two measures that are near have nearly the potentials of each with itself
    mine, other = (s.f.detach().expand(*batch, -1) for s in own)
    bound, error = _bound(problem, mine, other)
    near = bool((error < _NEAR).all())
    cross = across(Warm(mine, other) if start is None and near else start)
    value = _lower(cross)
    value = value + (bound - value.detach()).clamp(min=0)
    first = type(options["adjoint"]) is Envelope
    for s in own:
        value = value - _half(s, one_sided=first)
    if not isinstance(marginals, Exact):
        apart = problem.a.sum(-1) - problem.b.sum(-1)
        value = value + eps * apart.square() / 2
    if first:  # second derivatives are not zero there
        value = torch.where(equal(geometry.detach(), problem.a, problem.b), 0, value)
    return Divergence(value, cross, own)


def _cross_solver(marginals: Marginal, start: Warm | None) -> str | Solver[Any]:
    if start is None:
        return "auto"
    sinkhorn = Sinkhorn(f=start.f, g=start.g)
    return SinkhornNewton(sinkhorn=sinkhorn) if isinstance(marginals, Exact) else sinkhorn


def _bound(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The dual value of g with its best f, a lower bound of the transport, and the marginal error of f and g.

    With the potentials of each side with itself the divergence of the bound is a square, so not negative.
    """
    with torch.no_grad():
        p = problem.detach().double()
        assert p.epsilon is not None
        (left, right), (side_a, side_b) = p.marginals, p.sides
        assert side_a.epsilon is not None
        f, g = f.double(), g.double()
        soft = p.geometry.softmin(g + side_b.absorbed(), p.epsilon)
        best = left.prox(soft, side_a)
        old, new = (p.a * ((h - soft) / side_a.epsilon).exp() for h in (f, best))
        value = left.dual(best, side_a) + right.dual(g, side_b) - p.epsilon * (new.sum(-1) - p.reference_mass)
        return value.to(problem.a.dtype), (old - new).abs().sum(-1) / p.a.sum(-1)


def _with_itself(
    x: Any, a: Tensor, cost: Ground, epsilon: Tensor, marginal: Marginal, start: Tensor | None, options: dict[str, Any]
) -> Solution:
    """The transport of a measure to itself.

    Half of a function of two equal arguments, symmetric in these, has its derivative in the first alone. So the second
    side is constant where first derivatives are all that is wanted, and what both share counts half.
    """
    if type(options["adjoint"]) is not Envelope:
        geometry, b, other = between(x, None if isinstance(x, Grid) else x, cost), a, marginal
    else:
        geometry = _constant_side(x, cost)
        b, other, epsilon = a.detach(), marginal.map(Tensor.detach), _halved(epsilon)
    solver = SymmetricSinkhorn(f=start, schedule=Fixed() if is_positive(geometry) else Halving())
    return solve(geometry, a=a, b=b, epsilon=epsilon, marginals=(marginal, other), solver=solver, **options)


def _constant_side(x: Any, cost: Ground) -> Geometry:
    if isinstance(x, Grid):
        return x.with_tensors(*map(_halved, x.tensors))
    return between(x, detached(x), cost)


def _halved(t: Tensor) -> Tensor:
    """The same number with half the gradient."""
    return (t + t.detach()) / 2


def _lower(s: Solution) -> Tensor:
    """The dual value, with the gradient of the value."""
    value: Tensor = s.value
    lower: Tensor = s.dual_value
    return lower + (value - value.detach())


def _half(s: Solution, *, one_sided: bool) -> Tensor:
    """Half the dual value of a measure with itself, with its gradient."""
    lower = _lower(s)
    return lower - lower.detach() / 2 if one_sided else lower / 2


class SinkhornDivergence(nn.Module):
    r"""The Sinkhorn divergence as a loss: S(x, y) = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2, (*batch,).

    See `sinkhorn_divergence` for the formula, shapes and limits.

    Args:
        epsilon, cost, marginals, debiased, tol, max_iter, adjoint: as for `sinkhorn_divergence`.
        warm_start: begin each call with the potentials of the last one, where sizes are equal: for clouds that move
            little from step to step and keep the order of their points. They are no part of the state of the module.

    Example:
        >>> import torch
        >>> loss = SinkhornDivergence(epsilon=0.1)
        >>> x = torch.zeros(8, 20, 2, requires_grad=True)
        >>> values = loss(x, torch.ones(8, 30, 2))
        >>> values.mean().backward()
        >>> [round(v, 4) for v in values.tolist()[:2]], [round(v, 4) for v in (160 * x.grad[0, 0]).tolist()]
        ([2.0, 2.0], [-2.0, -2.0])
    """

    def __init__(
        self,
        *,
        epsilon: float | Relative | Tensor,
        cost: Ground = "sqeuclidean",
        marginals: Marginal = Exact(),
        debiased: bool = True,
        tol: float | None = None,
        max_iter: int | None = None,
        adjoint: Adjoint = Envelope(),
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        self.epsilon, self.cost, self.marginals, self.debiased = epsilon, cost, marginals, debiased
        self.tol, self.max_iter, self.adjoint, self.warm_start = tol, max_iter, adjoint, warm_start
        self._last: Warm | None = None

    def forward(self, x: Any, y: Any = None, a: Any = None, b: Any = None) -> Tensor:
        """The values, (*batch,)."""
        return self.measure(x, y, a, b).value

    def measure(self, x: Any, y: Any = None, a: Any = None, b: Any = None) -> Divergence:
        """The values with the solutions that they were made of."""
        found = sinkhorn_divergence(
            x,
            y,
            a,
            b,
            epsilon=self.epsilon,
            cost=self.cost,
            marginals=self.marginals,
            debiased=self.debiased,
            tol=self.tol,
            max_iter=self.max_iter,
            adjoint=self.adjoint,
            start=self._last,
        )
        if self.warm_start:
            self._last = found.warm
        return found

    def extra_repr(self) -> str:
        parts = f"epsilon={self.epsilon}, cost={self.cost!r}, marginals={self.marginals!r}"
        return f"{parts}, debiased={self.debiased}, warm_start={self.warm_start}"
