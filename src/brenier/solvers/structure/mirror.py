"""Mirror descent: entropic linear problems, one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...marginals import KL, Exact, Marginal
from ...plan import GibbsPlan, Plan
from ...problem import Problem
from ...solution import Status
from ...structure import Form, Linear, Moments, inner, logarithmic, quadratic_kl
from ..base import Outcome, Solver, check_number, run
from ..entropic.hybrid import SinkhornNewton
from ..entropic.schedule import Fixed, Halving
from ..entropic.sinkhorn import Sinkhorn
from ..entropic.start import Given, Zeros
from .common import begin, check_plan, quadratic

__all__ = ["Mirror", "MirrorState", "Proximal", "objective"]

_LOOSE = 1e-2  # relative marginal error of the first linear problems
_SHARE = 0.1  # of the last change of the plan that the next linear problem may leave as marginal error
_RISE = 100  # marginal errors, times the objective, from which on a rise counts as one


class MirrorState(NamedTuple):
    """A plan, what the form makes of it, and how it got there."""

    form: Form
    plan: GibbsPlan | None  # None before the first step
    moments: Moments
    half: Linear
    ratio: Linear  # -log(P / (a ⊗ b))
    f: Tensor
    g: Tensor
    value: float
    scale: float
    damping: float  # weight of KL(P | last P)
    change: float  # of the plan in the last step, relative
    loosest: float  # tolerance of the linear problems from here on
    settled: bool  # whether the last one was solved to the last digit that counts


@dataclass(frozen=True)
class _Descent(Solver[MirrorState]):
    """P <- argmin <grad E(P_k), P> + eps KL(P | a ⊗ b) + lambda KL(P | P_k), each step one entropic problem."""

    quadratic: ClassVar[bool] = True
    tol: float = 1e-6
    max_iter: int = 1000
    start: Plan | None = None
    inner_max_iter: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tol", self.tol)

    def check(self, problem: Problem) -> None:
        check_plan("start", self.start, problem)

    def _damping(self, problem: Problem, scale: float) -> float:
        return 0.0

    def init(self, problem: Problem) -> MirrorState:
        form, _, moments, half, scale = begin(problem, self.start)
        ratio = Linear(*(torch.zeros_like(t) for t in half))
        f, g = torch.zeros_like(form.a), torch.zeros_like(form.b)
        damping, far = self._damping(problem, scale), float("inf")
        return MirrorState(form, None, moments, half, ratio, f, g, far, scale, damping, far, _LOOSE, False)

    def step(self, problem: Problem, state: MirrorState) -> MirrorState:
        form, given = state.form, quadratic(problem)
        base = 0.0 if given.epsilon is None else float(given.epsilon)
        cost, strength, marginals = form.gradient(state.half), base + state.damping, _wide(given.marginals)
        mass = float(state.moments.p.sum())
        if given.soft:  # the best plan against the last one, of a form that is linear in both
            cost = Linear(*(t * form.alpha for t in state.half))
            cost = cost._replace(row=cost.row + self._constant(given, state))
            strength, marginals = base * mass, _scaled(marginals, mass)
        if state.damping:
            cost = cost.plus(state.ratio, state.damping)
        epsilon = torch.tensor(strength, dtype=torch.float64, device=form.a.device)
        linear = Problem(form.geometry(cost), form.a, form.b, marginals, epsilon)
        least = _SHARE * self.tol
        tol = max(least, min(state.loosest, _SHARE * state.change))
        cold = state.plan is None
        start = Zeros() if cold else Given(state.f, state.g)
        schedule = Halving() if cold else Fixed()
        solver: Solver[Any] = Sinkhorn(tol=tol, max_iter=self.inner_max_iter, schedule=schedule, start=start)
        if linear.balanced and bool((form.a > 0).all() & (form.b > 0).all()):
            solver = SinkhornNewton(tol=tol, max_iter=self.inner_max_iter, sinkhorn=solver)  # type: ignore[arg-type]
        solution = run(linear, solver, warn=False)
        plan, f, g = solution.plan, solution.f, solution.g
        assert isinstance(plan, GibbsPlan)
        moments = form.moments(plan)
        if given.soft and not any(isinstance(p, Exact) for p in given.marginals):
            grown = (mass / moments.p.sum()).sqrt()
            plan, moments = plan.scaled(u=grown.expand(len(f))), Moments(*(grown * t for t in moments))
            f = f + epsilon * grown.log()
        half = form.half(moments)
        shifted = Linear(cost.row - _finite(f), cost.col - _finite(g), cost.core)
        ratio = Linear(*(t / epsilon for t in shifted))
        value = float(objective(form, moments, half, ratio))
        settled = tol <= least and solution.status.ok
        change = float((moments.body - state.moments.body).abs().sum() / moments.body.abs().sum())
        loosest, damping = state.loosest, state.damping
        if value > state.value + _RISE * least * state.scale and not given.soft:
            if state.settled and settled:  # a step too long for a form that is not concave: shorter ones from here on
                return state._replace(damping=max(2 * damping, base))
            loosest = _SHARE * tol  # or the values were those of plans that miss their marginals
        return MirrorState(
            form, plan, moments, half, ratio, f, g, value, state.scale, damping, change, loosest, settled
        )

    @staticmethod
    def _constant(problem: Any, state: MirrorState) -> Tensor:
        """The part of the quadratic penalties and entropy that is linear in the mass of the other plan."""
        form, (p, q, _) = state.form, state.moments
        total = p.new_zeros(())
        for marginal, sums, weights in zip(problem.marginals, (p, q), (form.a, form.b)):
            if isinstance(marginal, KL):
                total = total + float(marginal.rho) * logarithmic(sums, weights)
        return total - problem.epsilon.double() * inner(state.ratio, state.moments)

    def terminate(self, problem: Problem, state: MirrorState) -> tuple[Status, ...] | None:
        if math.isnan(state.change):
            return (Status.DIVERGED,)
        return self.verdict(problem, state) if self._done(state) else None

    def _done(self, state: MirrorState) -> bool:
        return state.settled and state.change <= self.tol

    def verdict(self, problem: Problem, state: MirrorState) -> tuple[Status, ...]:
        return (Status.CONVERGED if self._done(state) else Status.MAX_ITER,)

    def error(self, state: MirrorState) -> float:
        return state.change

    def finish(self, problem: Problem, state: MirrorState) -> Outcome:
        assert state.plan is not None
        p = state.plan
        plan = GibbsPlan(p.geometry.to(problem.a.dtype), p.F, p.G, p.epsilon, p.geometry)
        return Outcome(plan, state.f, state.g, {"change": state.change, "damping": state.damping})


@dataclass(frozen=True)
class Mirror(_Descent):
    r"""Mirror descent for problems with an epsilon: linearise, solve by Sinkhorn, repeat.

        P <- argmin <grad E(P_k), P> + eps KL(P | a ⊗ b) + lambda KL(P | P_k) + penalties

    starting with lambda = 0, the projected gradient step of length 1 / eps. The objective falls where it is concave but
    for the entropy, as for squared Euclidean distances; where a step would raise it, lambda grows and makes the steps
    shorter. Each linear problem starts from the potentials of the last, and is solved only as well as the plan still
    changes. Any pair of marginals; `KL(rho)` is quadratic, and the iteration alternates between two plans of equal
    mass that are the same in the limit. Where rho is small against the loss, the best plan may have no mass at all: the
    status is then `DIVERGED`, and a larger rho the cure.

    Args:
        tol: relative change of the plan in a step to stop at: sum |P - P_k| over the mass, or that of the moments.
        max_iter: linear problems.
        start: a plan to begin with; a ⊗ b when None.
        inner_max_iter: iterations of Sinkhorn for each.

    Reference:
        Peyré, Cuturi & Solomon (2016), Gromov-Wasserstein averaging of kernel and distance matrices; Séjourné, Vialard
        & Peyré (2021), The unbalanced Gromov Wasserstein distance: conic formulation and relaxation.
    """

    name: ClassVar[str] = "mirror"

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.epsilon is None:
            refuse(self.name, "an epsilon", "None", "Give epsilon=Relative(0.01), or use Proximal().")
        if quadratic(problem).soft:
            for marginal in problem.marginals:
                if isinstance(marginal, KL) and torch.as_tensor(marginal.rho).dim():
                    refuse("KL rho", "one number for all points", f"shape {tuple(torch.as_tensor(marginal.rho).shape)}")


@dataclass(frozen=True)
class Proximal(_Descent):
    r"""Proximal points for problems without epsilon: entropy against the last plan, which fades away.

        P <- argmin <grad E(P_k), P> + lambda KL(P | P_k)

    The fixed points are those of the problem itself, reached through dense plans: less often a poor vertex than
    conditional gradients, and slower. A step that would raise the objective makes lambda grow.

    Args:
        strength: lambda, relative to the objective of a ⊗ b.
        tol, max_iter, start, inner_max_iter: as for `Mirror`.

    Reference:
        Xu, Luo, Zha & Carin (2019), Gromov-Wasserstein learning for graph matching and node embedding.
    """

    name: ClassVar[str] = "proximal"
    strength: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength)

    def _damping(self, problem: Problem, scale: float) -> float:
        return self.strength * scale

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.epsilon is not None:
            refuse(self.name, "no epsilon", f"epsilon={problem.epsilon.tolist()}", "Use Mirror().")
        if quadratic(problem).soft:
            refuse(self.name, "marginals other than KL(rho)", str(problem.marginals), "Give an epsilon.")


def objective(form: Form, moments: Moments, half: Linear, ratio: Linear | None) -> Tensor:
    """What is minimised, at a plan with P = a ⊗ b exp(-ratio): energy, entropy and penalties."""
    problem = form.problem
    value = form.energy(moments, half)
    epsilon = 0.0 if problem.epsilon is None else problem.epsilon.double()
    whole = form.a.sum() * form.b.sum()
    mass = moments.p.sum()
    if problem.epsilon is not None and ratio is not None:
        entropy = -inner(ratio, moments)
        entropy = 2 * mass * entropy - mass**2 + whole**2 if problem.soft else entropy - mass + whole
        value = value + epsilon * entropy
    sides = problem.double().sides
    for marginal, sums, weights, side in zip(_wide(problem.marginals), moments[:2], (form.a, form.b), sides):
        if isinstance(marginal, KL):
            value = value + torch.as_tensor(marginal.rho).to(value) * quadratic_kl(sums, weights)
        else:
            value = value + marginal.penalty(sums, side)
    return value


def _wide(marginals: tuple[Marginal, Marginal]) -> tuple[Marginal, Marginal]:
    left, right = (p.map(lambda t: t.double()) for p in marginals)
    return left, right


def _scaled(marginals: tuple[Marginal, Marginal], mass: float) -> tuple[Marginal, Marginal]:
    left, right = (KL(p.rho * mass) if isinstance(p, KL) else p for p in marginals)
    return left, right


def _finite(f: Tensor) -> Tensor:
    return torch.where(torch.isfinite(f), f, 0)
