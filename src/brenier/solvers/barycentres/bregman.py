"""Barycentres on a given support with an epsilon, by iterative Bregman projections in the log domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import Geometry
from ...geometry.base import PairGeometry
from ...marginals import KL, Exact, Free
from ...plan import GibbsPlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_number
from ..entropic.relaxation import OverRelaxation, Plain, RelaxationState
from ..entropic.schedule import Halving, Schedule
from ..entropic.sinkhorn import DEFAULT_TOL, towards
from .problem import self_geometry

__all__ = ["Bregman", "BregmanState"]

_SHARED = 4  # measures from which one pass over shared costs serves them all
_LEAST = {torch.float32: 1e-30, torch.float64: 1e-280}  # of a sum that is told from nothing


class BregmanState(NamedTuple):
    """Potentials of the measures and of the support, and the barycentre."""

    f: Tensor  # (K, n)
    g: Tensor  # (K, m)
    level: Tensor  # (m,) eps log of the barycentre over the uniform measure
    bias: Tensor  # (m,) eps log of the correction; zero where nothing is corrected
    epsilon: Tensor  # of the next step
    settled: Tensor  # whether the last step was at the epsilon of the problem
    error: Tensor
    relaxation: RelaxationState


@dataclass(frozen=True)
class Bregman(Solver[BregmanState]):
    r"""Alternate the rows of all plans, and their common columns.

    Minimises  sum_k w_k min <P_k, C_k> + eps KL(P_k | a_k ⊗ u)  over plans with P_k 1 = a_k and one common
    P_k^T 1 = b, u uniform. With S_k the soft c-transform of f_k,

        f_k <- softmin(g_k),    eps log(b / u) = d - sum_k w_k S_k,    g_k <- eps log(b / u) + S_k,

    where d = 0, or, debiased, the potential of b against itself, which takes away the blur of the entropy. Between
    KL(rho) marginals both steps are damped, and b is a power mean instead.

    Debiased iterations slow down on their way: beyond an error of some 1e-7 they take thousands.

    The error is how far the columns of the plans are from b, and b from the one before, in shares of its mass. An
    iteration is two soft c-transforms for all measures; where they share their costs, one pass over the costs serves
    all of them: O(n m) exponentials and O(K n m) products.

    Args:
        weights: (K,), of total 1.
        debiased: for exact marginals, and a cost that is defined between points of the support.
        tol: error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: iterations, those of the schedule included.
        schedule: the way down to the problem's epsilon.
        relaxation: how far the potentials go beyond their updates, between exact marginals; not where debiased.

    Reference:
        Benamou, Carlier, Cuturi, Nenna & Peyré (2015), Iterative Bregman projections for regularized transportation
        problems; Janati, Cuturi & Gramfort (2020), Debiased Sinkhorn barycenters; Chizat, Peyré, Schmitzer & Vialard
        (2018), Scaling algorithms for unbalanced optimal transport problems.
    """

    name: ClassVar[str] = "bregman"
    weights: Tensor | None = None
    debiased: bool = False
    tol: float | None = None
    max_iter: int = 5000
    schedule: Schedule = Halving()
    relaxation: OverRelaxation | Plain = OverRelaxation()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tol is not None:
            check_number("tol", self.tol)

    def check(self, problem: Problem) -> None:
        if problem.epsilon is None:
            refuse("bregman", "an epsilon", "None", "Give epsilon=Relative(0.01), or method='linear-program'.")
        left, right = problem.marginals
        if not isinstance(left, Exact | KL) or not isinstance(right, Free):
            refuse("bregman", "marginals (Exact() or KL(rho), Free())", repr(problem.marginals))
        if self.debiased:
            if isinstance(left, KL):
                refuse("debiased", "exact marginals", repr(left))
            self_geometry(problem.geometry)

    def init(self, problem: Problem) -> BregmanState:
        assert problem.epsilon is not None
        f, g = torch.zeros_like(problem.a), torch.zeros_like(problem.b)
        zero = torch.zeros_like(g[0])
        start = self.schedule.start(problem).amax()
        never = torch.zeros((), dtype=torch.bool, device=g.device)
        error = torch.full_like(g[0, 0], torch.inf)
        return BregmanState(f, g, zero, zero, start, never, error, self.relaxation.init(zero))

    def step(self, problem: Problem, state: BregmanState) -> BregmanState:
        assert problem.epsilon is not None
        eps, geometry = state.epsilon, problem.geometry
        side_a, side_b = problem.sides_at(eps)
        w = self._shares(problem)
        f = problem.marginals[0].prox(_softmins(geometry, state.g + side_b.absorbed(), eps), side_a)
        relaxation = state.relaxation
        if isinstance(problem.marginals[0], Exact) and not self.debiased:
            relaxation = self.relaxation.next(relaxation, state.error)
        beyond = bool(relaxation.omega != 1)
        if beyond:
            f = towards(state.f, f, relaxation.omega)
        soft = _softmins(geometry, f + side_a.absorbed(), eps, dim=0)
        level, g, bias = self._columns(problem, soft, eps, state.bias, w)
        u = problem.b[0]
        b = u * (level / eps).exp()
        before = u * (state.level / eps).exp()
        error = (b - before).abs().sum()
        if isinstance(problem.marginals[0], Exact):
            columns = problem.b * ((state.g - soft) / eps).exp()
            error = torch.maximum(error, (w * (columns - b).abs()).sum())
        if beyond:  # sums to zero under the weights, as both ends do
            g = towards(state.g, g, relaxation.omega)
        settled = state.settled & (eps == problem.epsilon)
        error = torch.where(settled, error / b.sum(), torch.inf)
        after = self.schedule.next(eps, problem.epsilon)
        return BregmanState(f, g, level, bias, after, eps == problem.epsilon, error, relaxation)

    def _shares(self, problem: Problem) -> Tensor:
        count = len(problem.a)
        w = torch.full((count,), 1 / count) if self.weights is None else self.weights
        return w.to(problem.a).unsqueeze(-1)

    def _columns(
        self, problem: Problem, soft: Tensor, eps: Tensor, bias: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eps log(b / u), the potentials of the support, and the correction."""
        left = problem.marginals[0]
        if isinstance(left, KL):
            rho = torch.as_tensor(left.rho, dtype=soft.dtype, device=soft.device)
            power = eps / (rho + eps)
            level = (rho + eps) * torch.logsumexp(w.log() - soft / (rho + eps), 0)
            return level, (1 - power) * (level + soft), bias
        level = bias - (w * soft).sum(0)
        if self.debiased:
            u = problem.b[0]
            against = self_geometry(problem.geometry).softmin(bias + eps * u.log(), eps)
            bias = (bias + level + against) / 2
        return level, level + soft, bias

    def terminate(self, problem: Problem, state: BregmanState) -> tuple[Status, ...] | None:
        if bool(state.error <= self._tol(problem)):
            return (Status.CONVERGED,) * len(problem.a)
        if bool(torch.isnan(state.error)):
            return (Status.DIVERGED,) * len(problem.a)
        return None

    def _tol(self, problem: Problem) -> float:
        return self.tol if self.tol is not None else DEFAULT_TOL[problem.a.dtype]

    def error(self, state: BregmanState) -> float:
        return float(state.error)

    def finish(self, problem: Problem, state: BregmanState) -> Outcome:
        assert problem.epsilon is not None
        error = state.error
        if not bool(state.settled & (state.relaxation.omega == 1)):  # on the way down, or beyond the last update
            plain = replace(self, relaxation=Plain())
            state = plain.step(
                problem, state._replace(epsilon=problem.epsilon, relaxation=plain.relaxation.init(state.level))
            )
        side_a, side_b = problem.sides
        plan = GibbsPlan(problem.geometry, state.f + side_a.absorbed(), state.g + side_b.absorbed(), problem.epsilon)
        b = problem.b[0] * (state.level / problem.epsilon).exp()
        return Outcome(plan, state.f, state.g, {"b": b, "error": float(error)})


def _softmins(geometry: Geometry, h: Tensor, eps: Tensor, dim: int = 1) -> Tensor:
    """Soft c-transforms of all h (K, m): one by one, or together where they share their costs."""
    if geometry.batch_shape or not isinstance(geometry, PairGeometry) or len(h) < _SHARED:
        return geometry.softmin(h, eps, dim)
    top = h.amax(0)
    share = torch.where(torch.isfinite(top), ((h - top) / eps).exp(), 0).mT.contiguous()
    base = geometry.softmin(top, eps, dim)
    f, g = (base, top) if dim == 1 else (top, base)
    mass = geometry.apply(f, g, eps, share, dim).mT  # (K, n), not above one
    out = base - eps * mass.log()
    lost = (mass < _LEAST[h.dtype]).any(-1)
    if bool(lost.any()):  # too far below the others for a sum beside them
        out[lost] = geometry.softmin(h[lost], eps, dim)
    return out
