"""Conditional gradients: exact linear problems, one after the other, with an exact line search between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import CostMatrix, Geometry
from ...kernels.build import warn_without_native
from ...kernels.simplex import network_simplices
from ...marginals import Exact, Free, Partial
from ...plan import Plan, SparsePlan
from ...problem import Problem
from ...solution import Status
from ...structure import Form, Linear, Moments, inner
from ..base import Outcome, Solver, check_number, run, time_is_up
from ..exact.assignment import Assignment, permutes
from ..exact.simplex import NetworkSimplex
from .common import begin, check_plan, quadratic, sparse, where

__all__ = ["ConditionalGradient", "GradientState", "Vertex", "least"]

# Points up to which a permutation is found faster by augmenting paths than by the network simplex.
_PATHS = 1_400


class GradientState(NamedTuple):
    """A plan and what the form of the problem makes of it, with the potentials of the last linear problem."""

    plan: Plan | None  # in factors only, where the moments do not tell the entries; None for a ⊗ b
    moments: Moments
    half: Linear
    f: Tensor
    g: Tensor
    tree: Tensor  # (*batch, n + m) of the last linear problem, as in `network_simplices`
    error: Tensor  # (*batch,)


class Vertex(NamedTuple):
    """The answer to a linear problem."""

    plan: SparsePlan
    f: Tensor  # (*batch, n)
    g: Tensor  # (*batch, m)
    tree: Tensor | None = None  # (*batch, n + m), where a simplex has left one


@dataclass(frozen=True)
class ConditionalGradient(Solver[GradientState]):
    r"""Frank-Wolfe: move towards the vertex that the gradient points to, as far as the objective falls.

        V = argmin <grad E(P), V>,    P <- P + t (V - P),    t = argmin E(P + t (V - P)) in [0, 1],

    for problems without epsilon. The linear problems are exact: `Assignment` for permutations, the network simplex for
    other masses and for `Partial(mass)` on both sides, from the tree or the potentials of the one before, and a minimum
    in each row for (Exact(), Free()). The gap <grad E(P), P - V> bounds the first-order gain, and is zero at stationary
    points only; it is the error. Where E is concave along plans, as for squared Euclidean distances, t = 1, the plans
    are vertices, and a few iterations end it; otherwise the gap may fall slowly. One product of structures an
    iteration.

    A batch takes its steps together, each item with a line search of its own, until its gap is small; its linear
    problems are one call, but for `Partial(mass)`: one simplex after the other.

    Args:
        tol: gap to stop at, relative to the objective of a ⊗ b.
        max_iter: linear problems.
        start: a plan to begin with; a ⊗ b when None.

    Reference:
        Vayer, Chapel, Flamary, Tavenard & Courty (2019), Optimal transport for structured data; Chapel, Alaya & Gasso
        (2020), Partial optimal transport with applications on positive-unlabeled learning; Vincent-Cuaz et al. (2022),
        Semi-relaxed Gromov-Wasserstein divergence.
    """

    name: ClassVar[str] = "conditional-gradient"
    quadratic: ClassVar[bool] = True
    tol: float = 1e-7
    max_iter: int = 1000
    start: Plan | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tol", self.tol)

    def check(self, problem: Problem) -> None:
        if problem.epsilon is not None:
            refuse(self.name, "no epsilon", f"epsilon={problem.epsilon.tolist()}", "Use Mirror().")
        kinds = tuple(type(p) for p in problem.marginals)
        if kinds not in ((Exact, Exact), (Exact, Free), (Free, Exact), (Partial, Partial)):
            expected = "exact marginals, an exact and a free one, or Partial(mass) on both sides"
            refuse(self.name, expected, str(problem.marginals), "Give an epsilon for others.")
        check_plan("start", self.start, problem)

    def init(self, problem: Problem) -> GradientState:
        form, plan, moments, half, _ = begin(problem, self.start)
        if kind_of_partial(problem) and self.start is None:
            share = _part(problem).to(form.a) / form.a.sum(-1)
            moments = form.product(form.a * share.unsqueeze(-1), form.b)
            half = form.half(moments)
        f, g = torch.zeros_like(form.a), torch.zeros_like(form.b)
        tree = torch.cat([f, g], -1).to(torch.int32).fill_(-1)
        return GradientState(plan, moments, half, f, g, tree, f.new_full(f.shape[:-1], torch.inf))

    def step(self, problem: Problem, state: GradientState) -> GradientState:
        given = quadratic(problem)
        form, ended = given.form, self.done(problem, state)
        gradient = form.gradient(state.half)
        geometry = form.geometry(gradient)
        vertex, f, g, tree = least(replace(given, a=form.a, b=form.b), geometry, state.f, state.g, state.tree)
        moments = form.moments(vertex)
        gap = (inner(gradient, state.moments) - inner(gradient, moments)).clamp(min=0)
        error = gap / form.scale.clamp(min=torch.finfo(gap.dtype).tiny)
        seen = state._replace(f=f, g=g, tree=state.tree if tree is None else tree, error=error)
        state = where(ended, state, seen)
        done = self.done(problem, state)
        return state if bool(done.all()) else self._moved(problem, state, vertex, moments, gap, done)

    def _moved(
        self, problem: Problem, state: GradientState, vertex: SparsePlan, moments: Moments, gap: Tensor, done: Tensor
    ) -> GradientState:
        """The state after a line search towards a vertex; the items that are done stay where they are."""
        form = quadratic(problem).form
        half = form.half_of(vertex, moments)
        turn = half.plus(state.half, -1)
        curvature = form.alpha * (inner(turn, moments) - inner(turn, state.moments))
        # E(P + t D) = E(P) - gap t + curvature t^2
        t = torch.where(curvature > 0, (gap / (2 * curvature)).clamp(max=1), 1)
        if form.factored and not isinstance(state.plan, SparsePlan):
            t = torch.ones_like(t)  # the entries of a ⊗ b, or of another full plan, are too many to be kept
        t = t.masked_fill(done, 0)
        if bool((t == 1).all()):
            return state._replace(plan=vertex, moments=moments, half=half)
        plan = _between(problem, state.plan, vertex, float(t)) if form.factored else None
        return state._replace(plan=plan, moments=state.moments.lerp(moments, t), half=state.half.lerp(half, t))

    def done(self, problem: Problem, state: GradientState) -> Tensor:
        return state.error <= self.tol

    def terminate(self, problem: Problem, state: GradientState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state) if bool(self.done(problem, state).all()) else None

    def verdict(self, problem: Problem, state: GradientState) -> tuple[Status, ...]:
        met = self.done(problem, state).reshape(-1).tolist()
        return tuple(Status.CONVERGED if each else Status.MAX_ITER for each in met)

    def error(self, state: GradientState) -> float:
        return float(state.error.max())

    def finish(self, problem: Problem, state: GradientState) -> Outcome:
        form = quadratic(problem).form
        plan = state.plan if form.factored and state.plan is not None else None
        found = sparse(state.moments.body, problem) if plan is None else plan
        assert isinstance(found, SparsePlan)
        geometry = form.geometry(form.gradient(state.half)).to(problem.a.dtype)
        found = SparsePlan(geometry, found.rows, found.cols, found.mass)
        return Outcome(found, state.f, state.g, {"stationarity": self.error(state), "linear_geometry": _told(form)})


def _told(form: Form) -> str:
    return "factored" if form.factored else "dense"


def _part(problem: Problem) -> Tensor:
    """The mass of the plans of a partial problem, (*batch,)."""
    mass = problem.marginals[0].total(problem.sides[0])
    assert mass is not None
    return mass


def kind_of_partial(problem: Problem) -> bool:
    """Whether both sides are `Partial`."""
    return all(isinstance(p, Partial) for p in problem.marginals)


def least(problem: Problem, geometry: Geometry, f: Tensor, g: Tensor, tree: Tensor | None = None) -> Vertex:
    """The vertex of least linear cost among the plans of a problem, and its potentials.

    Args:
        problem: with masses in float64; its own cost is not looked at.
        geometry: the linear cost.
        f, g: potentials to start from, (*batch, n) and (*batch, m).
        tree: that of the last vertex, for the same masses; of use for a matrix.
    """
    left, right = problem.marginals
    if isinstance(right, Free):
        f, cols = geometry.cmin(torch.zeros_like(problem.b))
        rows = torch.arange(cols.shape[-1], device=cols.device).expand(cols.shape)
        return Vertex(SparsePlan(geometry, rows, cols, problem.a), f, torch.zeros_like(problem.b))
    if isinstance(left, Free):
        plan, g, f, _ = least(replace(problem, a=problem.b, b=problem.a, marginals=(right, left)), geometry.T, g, f)
        return Vertex(SparsePlan(geometry, plan.cols, plan.rows, plan.mass), f, g)
    linear = Problem(geometry, problem.a, problem.b, problem.marginals)
    solver: Solver[Any] = NetworkSimplex(f=f, g=g)
    if problem.balanced and problem.a.shape[-1] <= _PATHS and permutes(linear):
        solver = Assignment(g=g)
    elif problem.balanced and isinstance(geometry, CostMatrix) and (problem.batch_shape or tree is not None):
        return _replanted(linear, g, tree)
    solution = run(linear, solver, warn=False)
    vertex = solution.plan
    assert isinstance(vertex, SparsePlan)
    return Vertex(vertex, solution.f, solution.g)


def _replanted(linear: Problem, g: Tensor, tree: Tensor | None) -> Vertex:
    """The vertices of all problems of a batch by one call, which goes on from their last trees."""
    warn_without_native()
    batch, (n, m), geometry = linear.batch_shape, linear.shape, linear.geometry
    cost = geometry.tile().expand(*batch, n, m).reshape(-1, n, m).contiguous().cpu().numpy()
    a, b, start = (t.reshape(-1, t.shape[-1]).contiguous().cpu().numpy() for t in (linear.a, linear.b, g))
    old = None if tree is None else tree.reshape(-1, n + m).contiguous().cpu().numpy()
    found = network_simplices(cost, a, b, g=start, tree=old, interrupt=time_is_up)
    rows, cols, mass, f, g, tree = (torch.from_numpy(t).reshape(*batch, -1).to(g.device) for t in found[:6])
    return Vertex(SparsePlan(geometry, rows, cols, mass), f, g, tree)


def _between(problem: Problem, old: Plan | None, new: SparsePlan, t: float) -> SparsePlan:
    """(1 - t) old + t new, by its entries."""
    assert isinstance(old, SparsePlan)
    m = problem.shape[1]
    keys = torch.cat([old.rows * m + old.cols, new.rows * m + new.cols])
    mass = torch.cat([(1 - t) * old.mass.double(), t * new.mass.double()])
    keys, index = keys.unique(return_inverse=True)
    total = mass.new_zeros(len(keys)).index_add_(0, index, mass)
    return SparsePlan(problem.geometry, keys // m, keys % m, total)
