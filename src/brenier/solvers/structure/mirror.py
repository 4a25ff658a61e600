"""Mirror descent: entropic linear problems, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...marginals import KL, Exact, Marginal, log_weights
from ...plan import GibbsPlan, Plan
from ...problem import Problem
from ...solution import Status
from ...structure import Form, Linear, Moments, Quadratic, along, inner, logarithmic, quadratic_kl
from ..base import Outcome, Solver, check_number, run
from ..entropic.hybrid import SinkhornNewton
from ..entropic.schedule import Fixed, Halving
from ..entropic.sinkhorn import Sinkhorn
from ..entropic.start import Given, Zeros
from .common import begin, check_plan, quadratic, where

__all__ = ["Mirror", "MirrorState", "Proximal", "objective"]

_LOOSE = 1e-2  # relative marginal error of the first linear problems
_SHARE = 0.1  # of the last change of the plan that the next linear problem may leave as marginal error
_ROUNDS = 30  # iterations of Sinkhorn for the first linear problems of a batch, whose items share them
_NEAR = 1e-2  # change of the plan from which on linear problems look ahead
_REACH = 2.5  # how far, in units of the last step
_SAME = 0.8  # cosine between two steps that go the same way
_FAILURES = 3  # of looks ahead, after which there are no more
_BLUR = 1e-2  # of the change of the plan that rounding of the gradient to float32 may make
_RISE = 100  # marginal errors, times the objective, from which on a rise counts as one


class Look(NamedTuple):
    """How the looks ahead fare, each (*batch,) but for `step`.

    Close to rest the plans approach their limit along the slowest mode, step by step in the same direction. Where two
    steps agree in it, the next linear problem takes the gradient further on, and the one after it that of its own plan.
    """

    ahead: Tensor  # whether the last linear problem looked ahead
    step: Tensor  # (*batch, n), of f, the last
    turn: Tensor  # cosine between it and the one before
    change: Tensor  # of the plan, in the last step that did not look ahead
    value: Tensor  # after it
    failures: Tensor  # pairs of steps, one that looked ahead and one that did not, that brought nothing

    @classmethod
    def none(cls, weights: Tensor) -> Look:
        zero = weights.new_zeros(weights.shape[:-1])
        return cls(zero > 0, torch.zeros_like(weights), zero, zero + torch.inf, zero + torch.inf, zero)

    def pays(self) -> Tensor:
        return (self.change < _NEAR) & (self.turn > _SAME) & (self.failures < _FAILURES) & ~self.ahead

    def after(self, ahead: Tensor, step: Tensor, weights: Tensor, change: Tensor, value: Tensor) -> Look:
        """What a step of f and a change of the plan add, where it looked ahead and where it did not."""
        step = step - (weights * step).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
        failed = self.ahead & (change > self.change) & (value >= self.value)
        last, level = (torch.where(ahead, s, t) for s, t in ((self.change, change), (self.value, value)))
        turn = torch.cosine_similarity(step, self.step, -1)
        return Look(ahead, step, turn, last, level, self.failures + failed)


class MirrorState(NamedTuple):
    """A plan, what the form of the problem makes of it, and how it got there; numbers are (*batch,)."""

    cost: Linear  # of the last linear problem
    F: Tensor  # its plan, as that of `GibbsPlan`
    G: Tensor
    epsilon: Tensor
    moments: Moments
    half: Linear
    before: Linear  # half of the plan before
    ratio: Linear  # -log(P / (a ⊗ b))
    f: Tensor
    g: Tensor
    value: Tensor
    damping: Tensor  # weight of KL(P | last P)
    change: Tensor  # of the plan in the last step, relative; NaN where it left the floating-point range
    drift: Tensor  # sum of these since `half` was last made in float64
    look: Look
    loosest: Tensor  # tolerance of the linear problems from here on
    settled: Tensor  # whether the last one was solved to the last digit that counts
    rounds: int  # iterations of Sinkhorn for the next linear problem
    cold: bool  # before the first step


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

    def _damping(self, problem: Problem, scale: Tensor) -> Tensor:
        return torch.zeros_like(scale)

    def init(self, problem: Problem) -> MirrorState:
        form, _, moments, half, _ = begin(problem, self.start)
        nothing, none = half.times(0), torch.zeros_like(form.scale)
        F, G = log_weights(form.a), log_weights(form.b / form.b.sum(-1, keepdim=True))  # a ⊗ b
        return MirrorState(
            cost=nothing,
            F=F,
            G=G,
            epsilon=none + 1,
            moments=moments,
            half=half,
            before=half,
            ratio=nothing,
            f=torch.zeros_like(form.a),
            g=torch.zeros_like(form.b),
            value=none + torch.inf,
            damping=self._damping(problem, form.scale),
            change=none + torch.inf,
            drift=none,
            look=Look.none(form.a),
            loosest=none + _LOOSE,
            settled=none > 0,
            rounds=min(_ROUNDS, self.inner_max_iter) if problem.batch_shape else self.inner_max_iter,
            cold=True,
        )

    def step(self, problem: Problem, state: MirrorState) -> MirrorState:
        given, ended = quadratic(problem), self.done(problem, state)
        form, soft = given.form, given.soft
        base = torch.zeros_like(state.damping) if given.epsilon is None else given.epsilon.double()
        half, ahead = state.half, state.look.pays() & (state.damping == 0) & ~ended & (not soft)
        if bool(ahead.any()):
            half = state.before.lerp(half, 1 + _REACH * ahead.double())
        cost, unit = form.gradient(half), torch.ones_like(state.damping)
        if soft:  # the best plan against the last one, of a form that is linear in both
            cost = state.half.times(form.alpha)
            cost = cost._replace(row=cost.row + self._constant(given, state).unsqueeze(-1))
            unit = state.moments.p.sum(-1)  # by which the penalties of that form grow, and the entropy
        if bool((state.damping > 0).any()):
            cost = cost.plus(state.ratio, state.damping)
        if bool(ended.any()):  # the others of a batch need not wait for it
            cost, unit = where(ended, cost.times(0), cost), where(ended, torch.ones_like(unit), unit)
        strength = base + state.damping
        least = _SHARE * self.tol
        wanted = torch.minimum(state.loosest, _SHARE * state.change).clamp(min=least)
        tol = float(wanted[~ended].min())
        scaled = cost.times(1 / unit) if soft else cost
        linear = Problem(form.geometry(scaled), form.a, form.b, _wide(given.marginals), strength)
        f, g = (where(ended, torch.zeros_like(h), h / along(unit, h)) for h in (state.f, state.g))
        solver: Solver[Any] = Sinkhorn(
            tol=tol,
            max_iter=state.rounds,
            schedule=Halving() if state.cold else Fixed(),
            start=Zeros() if state.cold else Given(f, g),
        )
        if linear.balanced:
            solver = SinkhornNewton(tol=tol, max_iter=state.rounds, sinkhorn=solver)  # type: ignore[arg-type]
        solution = run(linear, solver, warn=False)
        plan = solution.plan
        assert isinstance(plan, GibbsPlan)
        moments, epsilon = form.moments(plan), strength * unit
        F, G, f, g = (h * along(unit, h) for h in (plan.F, plan.G, solution.f, solution.g))
        if soft and not any(isinstance(p, Exact) for p in given.marginals):
            grown = (unit / moments.p.sum(-1)).sqrt()
            moments, lift = moments.times(grown), (epsilon * grown.log()).unsqueeze(-1)
            F, f = F + lift, f + lift
        move = (moments.body - state.moments.body).abs().sum((-2, -1))
        mass = moments.body.abs().sum((-2, -1))
        change = move / mass
        drift = state.drift + change
        if form.narrow(drift * mass, _BLUR * change * epsilon, ~ended):
            half = form.half_after(moments, state.moments, state.half)
        else:
            half, drift = form.half(moments), torch.zeros_like(drift)
        ratio = Linear(cost.row - _finite(f), cost.col - _finite(g), cost.core).times(1 / epsilon)
        value = objective(given, form, moments, half, ratio)
        solved = torch.tensor([s.ok for s in solution.statuses], device=value.device).reshape(value.shape)
        settled = solved if tol <= least else torch.zeros_like(solved)
        # the few items that need more go on from what they have; once they are many, all wait for them
        few = int((~solved & ~ended).sum()) * 2 < int((~ended).sum())
        rounds = state.rounds if few else min(2 * state.rounds, self.inner_max_iter)
        rise = (value > state.value + _RISE * least * form.scale) & (not soft)
        again = rise & state.settled & settled
        loosest = torch.where(rise, _SHARE * wanted, state.loosest)  # or the plans missed their marginals
        look = state.look.after(ahead, _finite(f - state.f), form.a, change, value)
        new = MirrorState(cost, F, G, epsilon, moments, half, state.half, ratio, f, g, value, state.damping, change,
                          drift, look, loosest, settled, rounds, cold=False)  # fmt: skip
        # a step too long for a form that is not concave: shorter ones from here on
        damping = torch.where(ahead, state.damping, torch.maximum(2 * state.damping, base))
        look = state.look._replace(turn=torch.where(ahead, 0, state.look.turn))
        shorter = state._replace(damping=damping, look=look, rounds=rounds, cold=False)
        lost = state._replace(change=torch.full_like(change, torch.nan), rounds=rounds, cold=False)
        new = where(torch.isnan(change), lost, where(again, shorter, new))
        return where(ended, state, new)

    @staticmethod
    def _constant(problem: Quadratic, state: MirrorState) -> Tensor:
        """The part of the quadratic penalties and entropy that is linear in the mass of the other plan."""
        assert problem.epsilon is not None
        form, (p, q, _) = problem.form, state.moments
        total = torch.zeros_like(state.damping)
        for marginal, sums, weights in zip(problem.marginals, (p, q), (form.a, form.b)):
            if isinstance(marginal, KL):
                total = total + float(marginal.rho) * logarithmic(sums, weights)
        return total - problem.epsilon.double() * inner(state.ratio, state.moments)

    def done(self, problem: Problem, state: MirrorState) -> Tensor:
        return self._met(state) | torch.isnan(state.change)

    def _met(self, state: MirrorState) -> Tensor:
        return state.settled & (state.change <= self.tol) & ~state.look.ahead

    def terminate(self, problem: Problem, state: MirrorState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state) if bool(self.done(problem, state).all()) else None

    def verdict(self, problem: Problem, state: MirrorState) -> tuple[Status, ...]:
        met, lost = (t.reshape(-1).tolist() for t in (self._met(state), torch.isnan(state.change)))
        return tuple(
            Status.DIVERGED if nan else Status.CONVERGED if ok else Status.MAX_ITER for ok, nan in zip(met, lost)
        )

    def error(self, state: MirrorState) -> float:
        return float(state.change.max())

    def finish(self, problem: Problem, state: MirrorState) -> Outcome:
        exact = quadratic(problem).form.geometry(state.cost)
        plan = GibbsPlan(exact.to(problem.a.dtype), state.F, state.G, state.epsilon, exact)
        stats = {"change": self.error(state), "damping": float(state.damping.max())}
        return Outcome(plan, state.f, state.g, stats)


@dataclass(frozen=True)
class Mirror(_Descent):
    r"""Mirror descent for problems with an epsilon: linearise, solve by Sinkhorn, repeat.

        P <- argmin <grad E(P_k), P> + eps KL(P | a ⊗ b) + lambda KL(P | P_k) + penalties

    starting with lambda = 0, the projected gradient step of length 1 / eps. The objective falls where it is concave but
    for the entropy, as for squared Euclidean distances; where a step would raise it, lambda grows and makes the steps
    shorter. Each linear problem starts from the potentials of the last, and is solved only as well as the plan still
    changes; close to rest, where the steps go on in one direction, every other one takes the gradient further on. While
    the plan moves, the products of large structures with its steps are made in float32, with errors of a hundredth of
    the next step. Any pair of marginals; `KL(rho)` is quadratic, and the iteration alternates between two plans of
    equal mass that are the same in the limit. Where rho is small against the loss, the best plan may have no mass at
    all: the status is then `DIVERGED`, and a larger rho the cure. The linear problems of a batch are solved together,
    each from its own potentials; items that have converged stay as they are, and the few whose linear problem takes
    long go on from what they have, until it is met: at small epsilon they may end at another stationary point than
    alone.

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

    def _damping(self, problem: Problem, scale: Tensor) -> Tensor:
        return self.strength * scale

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.epsilon is not None:
            refuse(self.name, "no epsilon", f"epsilon={problem.epsilon.tolist()}", "Use Mirror().")
        if quadratic(problem).soft:
            refuse(self.name, "marginals other than KL(rho)", str(problem.marginals), "Give an epsilon.")


def objective(problem: Quadratic, form: Form, moments: Moments, half: Linear, ratio: Linear | None) -> Tensor:
    """What is minimised, (*batch,), at a plan with P = a ⊗ b exp(-ratio): energy, entropy and penalties."""
    value = form.energy(moments, half)
    mass = moments.p.sum(-1)
    if problem.epsilon is not None and ratio is not None:
        whole = form.a.sum(-1) * form.b.sum(-1)
        entropy = -inner(ratio, moments)
        entropy = 2 * mass * entropy - mass**2 + whole**2 if problem.soft else entropy - mass + whole
        value = value + problem.epsilon.double() * entropy
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


def _finite(f: Tensor) -> Tensor:
    return torch.where(torch.isfinite(f), f, 0)
