"""Generalised conditional gradients: the term is linearised, and all else stays in the linear problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...plan import Plan
from ...problem import Problem
from ...solution import Status
from ...structure import dense
from ..base import Outcome, Solver, check_count, check_number, run
from ..entropic.hybrid import SinkhornNewton
from ..entropic.items import takes_newton
from ..entropic.schedule import Fixed, Halving
from ..entropic.sinkhorn import Sinkhorn
from ..entropic.start import Given, Zeros
from ..structure.common import sparse
from ..structure.gradient import least
from .problem import Penalized

__all__ = ["GeneralizedGradient", "GeneralizedState"]

_STEPS = 40  # of a line search
_FLAT = 1e-3  # slope to end it at, relative to that at its start


class GeneralizedState(NamedTuple):
    """A plan, its value, and what the last linear problem proved."""

    P: Tensor  # (n, m)
    f: Tensor
    g: Tensor
    value: float
    lower: float  # bound of the minimum
    scale: float  # of the value, for tolerances
    error: float


class _Least(NamedTuple):
    """The solution of a linear problem."""

    P: Tensor
    f: Tensor
    g: Tensor
    dual: float


@dataclass(frozen=True)
class GeneralizedGradient(Solver[GeneralizedState]):
    r"""Conditional gradients for a `Penalized` problem: linearise the term, solve what is left, move towards it.

        V = argmin <C + eta grad Omega(P), V> + R(V),    P <- P + t (V - P),    t = argmin F(P + t (V - P)) in [0, 1]

    with R the entropy and the penalties of the marginals. The start is the plan without the term. For a convex term the
    gap <C + eta grad Omega(P), P - V> + R(P) - R(V) bounds how far F(P) is from the minimum; it is the error. Concave
    terms take t = 1: each step minimises a majorant, so that F never rises, and the gap is zero at stationary points.

    With an epsilon the linear problems are solved by Sinkhorn from the last potentials, and convergence is fast;
    without, by the network simplex, and the gap falls like 1 / k where the minimum lies inside a face.

    Args:
        tol: gap to stop at, relative to the value of the plan without the term.
        max_iter: linear problems after the first.
        start: a plan to begin with, which a first linear problem then is not solved for.
        inner_tol: relative marginal error of entropic linear problems.
        inner_max_iter: iterations of Sinkhorn for each.

    Complexity: a linear problem and some ten values of F an iteration, O(n m) each; n x m memory.

    Reference:
        Bredies, Lorenz & Maass (2009), A generalized conditional gradient method and its connection to an iterative
        shrinkage method; Courty, Flamary, Tuia & Rakotomamonjy (2017), Optimal transport for domain adaptation.
    """

    name: ClassVar[str] = "generalized-gradient"
    penalized: ClassVar[bool] = True
    tol: float = 1e-5
    max_iter: int = 200
    start: Plan | None = None
    inner_tol: float = 1e-9
    inner_max_iter: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tol", self.tol)
        check_number("inner_tol", self.inner_tol)
        check_count("inner_max_iter", self.inner_max_iter)

    def check(self, problem: Problem) -> None:
        if self.start is not None and self.start.shape != problem.shape:
            refuse("start", f"a plan of shape {problem.shape}", f"shape {self.start.shape}")

    def init(self, problem: Problem) -> GeneralizedState:
        given = _penalized(problem)
        linear = given.linear()
        zero = torch.zeros_like(linear.a), torch.zeros_like(linear.b)
        if self.start is None:
            first = self._solve(linear, None)
        else:
            P = torch.as_tensor(self.start.dense(), dtype=torch.float64, device=linear.a.device)
            first = _Least(P, *zero, float("-inf"))
        value, far = float(given.total(first.P)), float("inf")
        scale = max(abs(float(given.total(first.P, term=False))), torch.finfo(torch.float64).tiny)
        return GeneralizedState(first.P, first.f, first.g, value, first.dual, scale, far)

    def step(self, problem: Problem, state: GeneralizedState) -> GeneralizedState:
        given, P = _penalized(problem), state.P
        gradient = given.term.gradient(P)
        best = self._solve(given.linear(gradient), state)
        # F(Q) >= <C + eta grad, Q> + R(Q) + eta (Omega(P) - <grad, P>) for a convex term
        linear = state.value + given.eta * float((gradient * P).sum() - given.term.value(P))
        gap = max(linear - best.dual, 0.0)
        lower = state.lower if given.term.concave else max(state.lower, state.value - gap)
        state = state._replace(f=best.f, g=best.g, lower=lower, error=gap / state.scale)
        if state.error <= self.tol:
            return state
        t = 1.0 if given.term.concave else _line_search(given, P, best.P - P)
        P = best.P if t == 1 else P + t * (best.P - P)
        return state._replace(P=P, value=float(given.total(P)))

    def _solve(self, linear: Problem, last: GeneralizedState | None) -> _Least:
        """The best plan of a linear problem, from the potentials of the last one."""
        if linear.epsilon is None:
            zero = torch.zeros_like(linear.a), torch.zeros_like(linear.b)
            plan, f, g, _ = least(linear, linear.geometry, *(zero if last is None else (last.f, last.g)))
            duals = (p.dual(h, side) for p, h, side in zip(linear.marginals, (f, g), linear.sides))
            return _Least(dense(plan), f, g, float(sum(duals)))
        start, schedule = (Zeros(), Halving()) if last is None else (Given(last.f, last.g), Fixed())
        first = Sinkhorn(tol=self.inner_tol, max_iter=self.inner_max_iter, schedule=schedule, start=start)
        solver: Solver[Any] = first
        if takes_newton(linear) and bool((linear.a > 0).all() & (linear.b > 0).all()):
            solver = SinkhornNewton(tol=self.inner_tol, max_iter=self.inner_max_iter, sinkhorn=first)
        solution = run(linear, solver, warn=False)
        return _Least(dense(solution.plan), solution.f, solution.g, float(solution.dual_value))

    def terminate(self, problem: Problem, state: GeneralizedState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state) if state.error <= self.tol else None

    def verdict(self, problem: Problem, state: GeneralizedState) -> tuple[Status, ...]:
        return (Status.CONVERGED if state.error <= self.tol else Status.MAX_ITER,)

    def error(self, state: GeneralizedState) -> float:
        return state.error

    def finish(self, problem: Problem, state: GeneralizedState) -> Outcome:
        return Outcome(sparse(state.P, problem), state.f, state.g, {"gap": state.error, "lower": state.lower})


def _penalized(problem: Problem) -> Penalized:
    """The problem, as the driver has checked that it is."""
    assert isinstance(problem, Penalized)
    return problem


def _line_search(problem: Penalized, P: Tensor, move: Tensor) -> float:
    """The t in [0, 1] of the smallest F(P + t move), for a convex F: the root of its slope, by false position.

    The slope of a quadratic is a line, whose root the first guess finds.
    """

    def slope(at: float) -> float:
        with torch.enable_grad():
            t = torch.tensor(at, dtype=P.dtype, device=P.device, requires_grad=True)
            (derivative,) = torch.autograd.grad(problem.total(P + t * move), t)
        return float(derivative)

    low, high, down, up = 0.0, 1.0, slope(0.0), slope(1.0)
    if up <= 0:
        return 1.0
    if down >= 0:  # as far as rounding can tell
        return 0.0
    flat, t = _FLAT * -down, 0.0
    for _ in range(_STEPS):
        t = high - up * (high - low) / (up - down)
        here = slope(t)
        if abs(here) <= flat or high - low <= torch.finfo(P.dtype).eps:
            break
        # Illinois: halve the slope of an end that stays, so that both ends move
        if here < 0:
            low, down, up = t, here, up / 2
        else:
            high, up, down = t, here, down / 2
    return t
