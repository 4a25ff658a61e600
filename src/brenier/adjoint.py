"""How gradients are made: an argument of the front door, not a flag inside solvers."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._inputs import is_count, is_real
from ._once import first_order, walled
from .errors import NotConvergedWarning, refuse
from .marginals import FLOOR, Exact, Side
from .plan import FactoredPlan, GibbsPlan, Plan, SparsePlan
from .problem import Problem
from .schur import SupportInverse, support_inverse

__all__ = ["Adjoint", "Envelope", "Implicit", "Unrolled", "absorbed", "gibbs_marginals", "gibbs_plan"]

_DEFAULT_TOL = {torch.float32: 1e-6, torch.float64: 1e-10}
_PATIENCE = 50  # conjugate gradients before a factorisation is worth it
# Of the numbers that went in: what may be left out of a system that float64 cannot tell from a singular one.
_ROUNDING = 1e-10

_Inverses = dict[tuple[int, ...], SupportInverse]


class Adjoint(ABC):
    """Says which outputs it makes differentiable, and correct."""

    def check(self, problem: Problem) -> None:  # noqa: B027 - most take any problem
        """Raise `InvalidInput` if this adjoint cannot take the problem."""

    def potentials(self, problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
        """The potentials that plan, map and values are made of; None where those of the solver serve, as constants.

        Args:
            problem: with its gradient history.
            f, g: of the solver, (*batch, n) and (*batch, m), without history.
        """
        return None

    @abstractmethod
    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        """The value, with gradients towards the tensors of the problem."""


@dataclass(frozen=True)
class Envelope(Adjoint):
    r"""Gradients of `solution.value` by the envelope theorem, in x, y, a, b, C, epsilon and rho.

    The value is a maximum over potentials, so its gradient is that of the dual function at the optimal potentials,
    held fixed. Exact at the optimum, and off by O(marginal error) before. Plans and potentials carry no gradient.
    Gradients in a and b are the potentials, fixed up to a constant: use them along directions that keep the mass.
    Second derivatives are right where the plan does not move, in points or costs of an exact problem; elsewhere asking
    for them is an error.

    One differentiable pass over the pairs for an entropic problem, O(n + m) work for an exact one.
    """

    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        value = self._first(value, problem, plan, f, g)
        if _constant(problem, plan):
            return value
        cure = "Use adjoint=Implicit()." if problem.epsilon is not None else ""
        return first_order(value, problem.tensors, f"a value with adjoint={self!r}", cure)

    def _first(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        """The value with the gradients of the dual function at fixed potentials."""
        if not _moves(problem):
            return value
        if isinstance(plan, GibbsPlan):  # over the plan's pairs, which need not be all
            problem = replace(problem, geometry=plan.geometry.with_tensors(*problem.geometry.tensors))
        surrogate = _dual(problem, f.detach().to(problem.a), g.detach().to(problem.b))
        if isinstance(plan, SparsePlan):
            reduced = problem.geometry.cost_at(plan.rows, plan.cols)
            for potential, lines, marginal in zip((f, g), (plan.rows, plan.cols), problem.marginals):
                if marginal.parameters:  # which may bound it, so that it moves with them
                    bounded = marginal.clip(potential.detach().to(problem.a)).expand(*plan.batch_shape, -1)
                    reduced = reduced - bounded.gather(-1, lines)
            surrogate = surrogate + (plan.mass.to(reduced.dtype) * reduced).sum(-1)
        elif isinstance(plan, FactoredPlan):
            geometry = plan.geometry.with_tensors(*problem.geometry.tensors)
            surrogate = surrogate + FactoredPlan(geometry, plan.Q, plan.g, plan.R).cost().to(surrogate)
        elif isinstance(plan, GibbsPlan) and problem.epsilon is None:  # <P, C> of a plan that is held fixed
            F, G, epsilon = (t.detach().to(problem.a) for t in (plan.F, plan.G, plan.epsilon))
            soft = problem.geometry.softmin(G.clamp(min=FLOOR), epsilon)
            surrogate = surrogate - epsilon * ((F - soft) / epsilon).exp().sum(-1)
        return value + (surrogate - surrogate.detach())


@dataclass(frozen=True)
class Implicit(Envelope):
    r"""Gradients of plan, potentials, map and value of an entropic problem, by the implicit function theorem.

    The potentials solve f = A(g, theta), g = B(f, theta), where A and B are the two half-steps of Sinkhorn. So

        df = A_g dg + A_theta dtheta,    dg = B_f df + B_theta dtheta,

    and a backward pass through f and g solves the transposed system. Without g it reads (I - B_f^T A_g^T) lambda = u.
    That operator is symmetric in the inner product of the marginal's own curvature, whatever the marginals, and
    conjugate gradients solve it on the `apply` of the geometry; where fifty iterations are not enough and both
    marginals are exact, with a sparse factorisation of the system on the largest entries of the plan. Plan, map and
    `linear_value` are ordinary differentiable functions of the potentials; the value has the envelope gradient, and a
    right second derivative.

    Gradients flow to x, y, a, b, C, epsilon and the tensors among the parameters of the marginals. Where the
    potentials are free up to a shift (f + t, g - t), those of f and g are for the gauge in which the mean of f under
    a equals that of g under b; plan, map and values do not depend on it. Right at the fixed point, and off by the
    order of the marginal error, over one minus the contraction of Sinkhorn, before: solve to a small tol.

    Args:
        tol: relative residual of the linear system; 1e-10 for problems in float64 and 1e-6 in float32 when None.
        max_iter: of conjugate gradients; a `NotConvergedWarning` tells where they did not suffice.

    Raises:
        InvalidInput: the problem has no epsilon.

    Complexity: two passes over the pairs when an output is first asked for; in a backward pass two for each iteration
    of conjugate gradients, in float64, and a handful more. O(n + m) memory.

    Example:
        >>> import torch, brenier
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True)
        >>> y = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
        >>> moved = brenier.solve(x, y, epsilon=1.0, tol=1e-12, adjoint=brenier.Implicit()).map()
        >>> (gradient,) = torch.autograd.grad(moved[0, 0], x)
        >>> [round(t, 6) for t in gradient.flatten().tolist()]
        [0.419974, -0.419974]

    Reference:
        Luise, Rudi, Pontil & Ciliberto (2018), Differential properties of Sinkhorn approximation for learning with
        Wasserstein distance; Eisenberger et al. (2022), A unified framework for implicit Sinkhorn differentiation.
    """

    tol: float | None = None
    max_iter: int = 1000

    def __post_init__(self) -> None:
        if self.tol is not None and not (is_real(self.tol) and 0 < self.tol < math.inf):
            refuse("Implicit tol", "a positive finite number", repr(self.tol))
        if not is_count(self.max_iter):
            refuse("Implicit max_iter", "a positive integer", repr(self.max_iter))

    def check(self, problem: Problem) -> None:
        _need_epsilon("Implicit()", problem)

    def potentials(self, problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
        if not _moves(problem):
            return None
        # float64 throughout: the system is as ill-conditioned as Sinkhorn is slow
        double = problem.with_tensors(*(t.double() for t in problem.tensors))
        f64, g64 = f.double(), g.double()
        soft_f, new_f = _half_step(double, g64)
        soft_g, new_g = _half_step(double.T, f64)
        tol = _DEFAULT_TOL[problem.a.dtype] if self.tol is None else self.tol
        system = _System(double.detach(), f64, g64, soft_f.detach(), soft_g.detach(), tol, self.max_iter)
        moving: tuple[Tensor, Tensor] = _FixedPoint.apply(new_f, new_g, system)
        shift = torch.where(system.flat, _shift(double, *moving), 0)
        shift = shift - shift.detach()
        return (moving[0] - shift).to(f), (moving[1] + shift).to(g)

    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        value = self._first(value, problem, plan, f, g)
        if not (torch.is_grad_enabled() and f.requires_grad):
            return value
        # f and g go inside a tuple: a first backward pass must not reach them
        second: Tensor = _Curvature.apply((problem, f.to(problem.a), g.to(problem.b)), *problem.tensors)
        return value + second


@dataclass(frozen=True)
class Unrolled(Adjoint):
    r"""Gradients of every output by differentiating k iterations of Sinkhorn.

        f <- prox_a(softmin(g + eps log b)),   g <- prox_b(softmin(f + eps log a)),   k times,

    plain: no schedule, no relaxation, no translation. They start from the solved potentials, where the gradient is
    right up to contraction^k, or from g = 0, where outputs and gradients are exactly those of k iterations, converged
    or not. Potentials, plan, map and values are those of the last iterate; the gradient of `value` is that of
    <P, C> + eps KL + penalties at its plan.

    Args:
        k: iterations.
        from_start: begin at zero, as recipes with a fixed number of iterations do. With solver="auto" the solver is
            then `Sinkhorn` with k plain iterations, and `status` says, without a warning, whether they were enough.

    Raises:
        InvalidInput: the problem has no epsilon.

    Complexity: 2 k passes over the pairs when an output is first asked for, about three times as many in a backward
    pass. O(k (n + m)) memory: each iteration is computed again in the backward pass.

    Example:
        >>> import torch, brenier
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
        >>> layer = brenier.Unrolled(20, from_start=True)
        >>> plan = brenier.solve(brenier.CostMatrix(C), epsilon=0.5, adjoint=layer).plan.dense()
        >>> (gradient,) = torch.autograd.grad(plan[0, 0], C)
        >>> round(float(gradient[0, 0]), 4)
        -0.0525

    Reference:
        Adams & Zemel (2011), Ranking via Sinkhorn propagation; Genevay, Peyré & Cuturi (2018), Learning generative
        models with Sinkhorn divergences.
    """

    k: int
    from_start: bool = False

    def __post_init__(self) -> None:
        if not is_count(self.k):
            refuse("Unrolled k", "a positive integer", repr(self.k))
        if not isinstance(self.from_start, bool):
            refuse("Unrolled from_start", "True or False", repr(self.from_start))

    def check(self, problem: Problem) -> None:
        _need_epsilon(f"{self}", problem)

    def potentials(self, problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
        moves = _moves(problem)
        if not (moves or self.from_start):
            return None
        if self.from_start:
            g = torch.zeros_like(problem.b.detach())
        problem = problem.with_tensors(*(t.to(g.dtype) for t in problem.tensors))

        def iteration(g: Tensor) -> tuple[Tensor, Tensor]:
            _, f = _half_step(problem, g)
            return f, _half_step(problem.T, f)[1]

        for _ in range(self.k):
            if moves:
                f, g = checkpoint(iteration, g, use_reentrant=False, preserve_rng_state=False)
            else:
                f, g = iteration(g)
        return f, g

    def attach(self, value: Tensor, problem: Problem, plan: Plan, f: Tensor, g: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and f.requires_grad):
            return value
        problem = problem.with_tensors(*(t.to(f.dtype) for t in problem.tensors))
        surrogate = problem.objective(*gibbs_marginals(problem, plan), f, g).to(value.dtype)
        return value + (surrogate - surrogate.detach())


# -- plans and dual values from potentials -----------------------------------------------------------------------


def absorbed(potential: Tensor, side: Side) -> Tensor:
    """The potential of the plan, F = f + eps log reference; very low instead of -inf, for derivatives in epsilon."""
    return (potential + side.absorbed()).clamp(min=FLOOR)


def gibbs_plan(problem: Problem, f: Tensor, g: Tensor) -> GibbsPlan:
    """The plan of two potentials, differentiable in these and in the problem."""
    assert problem.epsilon is not None
    exact = problem.with_tensors(*(t.to(f.dtype) for t in problem.tensors))
    side_a, side_b = exact.sides
    return GibbsPlan(problem.geometry, absorbed(f, side_a), absorbed(g, side_b), problem.epsilon.to(f.dtype))


def gibbs_marginals(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    """Row and column sums of a plan, from one pass where the last update, that of g, has fixed the columns."""
    r = plan.row_sums()
    if isinstance(plan, GibbsPlan) and isinstance(problem.marginals[1], Exact):
        return r, problem.b
    return r, plan.col_sums()


def _dual(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """The dual function (without the conjugate of a regularizer), (*batch,), differentiable in everything."""
    (left, right), (side_a, side_b) = problem.marginals, problem.sides
    f, g = left.clip(f.clamp(min=FLOOR)), right.clip(g.clamp(min=FLOOR))
    value = left.dual(f, side_a) + right.dual(g, side_b)
    if problem.epsilon is None:
        return value
    assert side_a.epsilon is not None
    soft = problem.geometry.softmin(absorbed(g, side_b), problem.epsilon)
    mass = (side_a.reference * ((f - soft) / side_a.epsilon).exp()).sum(-1)
    return value - problem.epsilon * (mass - problem.reference_mass)


def _half_step(problem: Problem, g: Tensor) -> tuple[Tensor, Tensor]:
    """The soft c-transform of g, and the potential f that is best against g."""
    assert problem.epsilon is not None
    side_a, side_b = problem.sides
    soft = problem.geometry.softmin(absorbed(g, side_b), problem.epsilon)
    return soft, problem.marginals[0].prox(_raised(soft, side_a), side_a)


def _raised(soft: Tensor, side: Side) -> Tensor:
    """What a marginal takes for s: the soft c-transform plus eps log(a / reference)."""
    return soft + side.rise().clamp(min=FLOOR) if side.counting else soft


def _moves(problem: Problem) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in problem.tensors)


def _constant(problem: Problem, plan: Plan) -> bool:
    """Whether the derivatives that are asked for hold what stays: the plan of a linear problem, or its potentials."""
    linear = all(m.prices(side) is not None for m, side in zip(problem.marginals, problem.sides))
    if not (linear and problem.epsilon is None and problem.regularizer is None and isinstance(plan, SparsePlan)):
        return False
    costs = len(problem.geometry.tensors)
    moves = [t.requires_grad for t in problem.tensors]
    return not (any(moves[:costs]) and any(moves[costs:]))


def _need_epsilon(name: str, problem: Problem) -> None:
    if problem.epsilon is None:
        got = "none" if problem.regularizer is None else f"{problem.regularizer!r} instead"
        refuse(f"adjoint={name}", "an epsilon", got, "Use Envelope(), for gradients of the value, or give an epsilon.")


def _mean(f: Tensor, weights: Tensor) -> Tensor:
    """The mean of a potential under the weights, (*batch, 1)."""
    f = torch.where((weights > 0) & torch.isfinite(f), f, 0)
    return (weights * f).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)


def _shift(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """The t for which f - t and g + t have one mean, (*batch, 1)."""
    return (_mean(f, problem.a) - _mean(g, problem.b)) / 2


# -- the implicit function theorem -------------------------------------------------------------------------------


class _Half:
    """The derivative of a half-step f = prox(softmin(g)), transposed: -Pi^T D^T.

    Pi is the Gibbs plan with rows that sum to one, D the derivative of the marginal's prox.
    """

    def __init__(self, problem: Problem, f: Tensor, g: Tensor, soft: Tensor) -> None:
        self._problem, self._soft = problem, soft
        side_a, side_b = problem.sides
        self._g = absorbed(g, side_b)
        with torch.enable_grad():
            self._s = _raised(soft, side_a).detach().requires_grad_()
            self._out = problem.marginals[0].prox(self._s, side_a)
        assert side_a.epsilon is not None
        self.mass = ((absorbed(f, side_a) - soft) / side_a.epsilon).exp()  # the row sums of the plan, r
        known = problem.marginals[0].total(side_a) is not None
        # D 1 = 1, or D^T r = r, as D / r is symmetric: the half-step turns a shift of g into one of f
        same = (self.damp(self.mass) - self.mass).abs() <= 1e-9 * self.mass
        self.flat = torch.full_like(same[..., :1], True) if known else same.all(-1, keepdim=True)

    def damp(self, v: Tensor) -> Tensor:
        """D^T v."""
        if not self._out.requires_grad:  # a free marginal
            return torch.zeros_like(v)
        (out,) = torch.autograd.grad(self._out, self._s, v, retain_graph=True)
        return out

    def spread(self, v: Tensor) -> Tensor:
        """Pi^T v."""
        assert self._problem.epsilon is not None
        return self._problem.geometry.apply(self._soft, self._g, self._problem.epsilon, v, dim=0)

    def __call__(self, v: Tensor) -> Tensor:
        """Pi^T D^T v."""
        return self.spread(self.damp(v))


class _System:
    """The linearised fixed point of the two half-steps, transposed, and its solution."""

    def __init__(
        self, problem: Problem, f: Tensor, g: Tensor, soft_f: Tensor, soft_g: Tensor, tol: float, max_iter: int
    ) -> None:
        self._problem, self.f, self.g, self._tol, self._max_iter = problem, f, g, tol, max_iter
        self._left, self._right = _Half(problem, f, g, soft_f), _Half(problem.T, g, f, soft_g)
        # with both sides flat the potentials are free up to a shift, and r is in the kernel
        self.flat = self._left.flat & self._right.flat

    def solve(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The lambda, mu with lambda = u - Pi_b^T D_b^T mu and mu = v - Pi_a^T D_a^T lambda."""
        u, v = torch.where(torch.isfinite(self.f), u, 0), torch.where(torch.isfinite(self.g), v, 0)
        u = u - self._right(v)
        # the part of u that decays within one round trip goes first: the rest is a plan's rows, at the scale of r;
        # and a round trip at the end adds what the inner product cannot see
        first = self._round(u)
        lam = u + first + self._round(self._cg(first, _ROUNDING**2 * self._square(u)))
        return lam, v - self._left(lam)

    def _round(self, v: Tensor) -> Tensor:
        return self._right(self._left(v))

    def _cg(self, w: Tensor, rounding: Tensor) -> Tensor:
        """The x with x - round(x) = w; where conjugate gradients are slow, on a factorisation of what matters.

        Args:
            w: (*batch, n).
            rounding: (*batch, 1) the square of what is nothing beside the numbers that w was made of.
        """
        w = self._projected(w)
        first = self._square(w)
        balanced = self._problem.balanced
        x, residual = self._gradients(w, first, min(_PATIENCE, self._max_iter) if balanced else self._max_iter)
        slow = self._square(residual) > self._tol**2 * first
        if balanced and self._max_iter > _PATIENCE and bool(slow.any()):
            inverses = self._inverses(slow.squeeze(-1))
            # parts of the plan that exchange nothing can shift: w has nothing there but rounding, or no solution
            lost = w - self._projected(w, inverses)
            if bool((self._square(lost) <= rounding).all()):
                w = w - lost
            else:
                inverses = {index: inverse._replace(parts=None) for index, inverse in inverses.items()}
            again = self._gradients(w, first, self._max_iter - _PATIENCE, inverses)
            x, residual = (torch.where(slow, new, old) for new, old in zip(again, (x, residual)))
        self._report(self._square(residual), first)
        return x

    def _gradients(
        self, w: Tensor, first: Tensor, count: int, inverses: _Inverses | None = None
    ) -> tuple[Tensor, Tensor]:
        """Conjugate gradients from zero in the inner product <x, D_a^T x / r>: x and its residual."""

        def turned(v: Tensor) -> Tensor:
            if not inverses:
                return v
            v = v.clone()
            for index, inverse in inverses.items():
                v[index] = self._left.mass[index] * inverse.solve(v[index])
            return v

        x, residual = torch.zeros_like(w), w
        step = turned(residual)
        step_damped = self._left.damp(step)
        product = self._inner(residual, step_damped)
        for _ in range(count):
            square = self._square(residual)
            if not bool((square > self._tol**2 * first).any()):
                break
            image = step - self._right(self._left.spread(step_damped))
            curvature = self._inner(image, step_damped)
            alpha = torch.where((curvature > 0) & (square > 0), product / torch.where(curvature > 0, curvature, 1), 0)
            x = x + alpha * step
            residual = self._projected(residual - alpha * image, inverses)
            new = turned(residual)
            damped = self._left.damp(new)
            before, product = product, self._inner(residual, damped)
            beta = torch.where(before > 0, product / torch.where(before > 0, before, 1), 0)
            step, step_damped = new + beta * step, damped + beta * step_damped
        return x, residual

    def _inner(self, u: Tensor, v: Tensor) -> Tensor:
        """The inner product <u, v / r>, (*batch, 1)."""
        r = self._left.mass
        return (u * v * torch.where(r > 0, 1 / torch.where(r > 0, r, 1), 0)).sum(-1, keepdim=True)

    def _square(self, v: Tensor) -> Tensor:
        return self._inner(v, self._left.damp(v))

    def _inverses(self, slow: Tensor) -> _Inverses:
        """Approximate inverses for the slow items of a batch, by their index."""
        problem = self._problem
        assert problem.epsilon is not None
        side_a, side_b = problem.sides
        F, G, r, c = absorbed(self.f, side_a), absorbed(self.g, side_b), self._left.mass, self._right.mass
        epsilon = problem.epsilon.expand(problem.batch_shape)
        out: _Inverses = {}
        for index in np.ndindex(*slow.shape):
            if slow[index]:
                geometry = problem.geometry.item(index)
                inverse = support_inverse(geometry, F[index], G[index], epsilon[index], r[index], c[index])
                if inverse is not None:
                    out[index] = inverse
        return out

    def _projected(self, v: Tensor, inverses: _Inverses | None = None) -> Tensor:
        """Without the part along r where that is in the kernel, or along its parts that are: rounding puts it there."""
        r = self._left.mass
        v = torch.where(self.flat, v - r * (v.sum(-1, keepdim=True) / r.sum(-1, keepdim=True)), v)
        for index, inverse in (inverses or {}).items():
            if inverse.parts is not None:
                sums = (torch.zeros_like(t[index]).index_add(0, inverse.parts, t[index]) for t in (v, r))
                share = next(sums) / next(sums)
                v[index] = v[index] - r[index] * share[inverse.parts]
        return v

    def _report(self, square: Tensor, first: Tensor) -> None:
        worst = float((square / torch.where(first > 0, first, 1)).max().clamp(min=0).sqrt())
        if not worst <= self._tol:
            warnings.warn(
                f"Implicit(): the linear system of the gradient has a relative residual of {worst:.3g} after "
                f"{self._max_iter} iterations, above tol={self._tol:g}. Raise max_iter, tol or epsilon of the problem.",
                NotConvergedWarning,
                stacklevel=2,
            )


class _FixedPoint(torch.autograd.Function):
    """The potentials of a system; their gradients go to the half-steps at these potentials."""

    @staticmethod
    def forward(ctx: Any, new_f: Tensor, new_g: Tensor, system: _System) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.system = system
        ctx.save_for_backward(new_f, new_g)
        return system.f.clone(), system.g.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.no_grad():
            found = ctx.system.solve(u, v)
        return *walled(found, (u, v, *ctx.saved_tensors), "plan, potentials or map with Implicit()"), None


class _Curvature(torch.autograd.Function):
    """Zero, with zero gradients, whose own gradients are what moving potentials add to the second derivative.

    The envelope gradient is D_theta(f, g, theta); its derivative is D_theta_theta + D_theta_f f' + D_theta_g g'. The
    first term is that of the envelope with fixed potentials. This adds the others, where a graph is asked for.
    """

    @staticmethod
    def forward(ctx: Any, point: tuple[Problem, Tensor, Tensor], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.point = point
        problem = point[0]
        return problem.a.new_zeros(problem.batch_shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        problem, f, g = ctx.point
        wanted = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *(None for _ in wanted)
        leaves = [t.detach().requires_grad_(need) for t, need in zip(problem.tensors, wanted)]
        dual = _dual(problem.with_tensors(*leaves), f, g)
        moving = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(dual, moving, grad.detach(), create_graph=True, allow_unused=True))
        gradients = ((next(found) if need else None) for need in wanted)
        return None, *(None if q is None else q - q.detach() for q in gradients)
