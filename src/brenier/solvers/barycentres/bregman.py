"""Barycentres on a given support with an epsilon, by iterative Bregman projections in the log domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import Geometry
from ...geometry.base import PairGeometry
from ...geometry.single import SingleSums
from ...kernels.elementwise import exp, log
from ...marginals import KL, Exact, Free, Side
from ...plan import GibbsPlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_number
from ..entropic.relaxation import Anderson, AndersonState, Plain, Relaxation, RelaxationState
from ..entropic.schedule import Halving, Schedule
from ..entropic.sinkhorn import DEFAULT_TOL, rough_steps, smoother, towards
from .problem import self_geometry

__all__ = ["Bregman", "BregmanState"]

_TOGETHER = 4  # measures from which one pass over shared costs serves several
_FEW = 2  # groups for which passes in float32 take no longer than one in float64
# Sums in one pass, for potentials that are far from each other: the logarithm of a factor of the kernel and of its
# vectors, so that numbers far above one are used as those below are; the least of a sum that is told from what those
# too small for numbers might add; and how far potentials may be from each other, in eps.
_LIFT = {torch.float32: 32.0, torch.float64: 320.0}
_LEAST = {torch.float32: 1e-14, torch.float64: 1e-145}
_REACH = {torch.float32: 90.0, torch.float64: 950.0}
_SOFT_BELOW = 0.01  # the error from which on KL marginals are mixed


class BregmanState(NamedTuple):
    """Potentials of the measures and of the support, and the barycentre."""

    f: Tensor  # (K, n)
    g: Tensor  # (K, m)
    level: Tensor  # (m,) eps log of the barycentre over the uniform measure
    bias: Tensor  # (m,) eps log of the correction; zero where nothing is corrected
    moved: Tensor  # debiased, how far the barycentre moved in the last step; zero elsewhere
    epsilon: Tensor  # of the next step
    settled: Tensor  # whether the last step was at the epsilon of the problem
    error: Tensor
    relaxation: RelaxationState | AndersonState
    tight: Tensor  # whether the last update of g was a plain one, which makes the columns equal
    closing: Tensor  # whether those were that `error` speaks of
    centres: Tensor  # (K,) measures beside which others are taken in one pass
    against: Geometry | None  # the costs of the support against itself, where debiased
    rough: int = 0  # steps to come, at most, whose sums are in float32; -1 after the last of them


@dataclass(frozen=True)
class Bregman(Solver[BregmanState]):
    r"""Alternate the rows of all plans, and their common columns.

    Minimises  sum_k w_k min <P_k, C_k> + eps KL(P_k | a_k ⊗ u)  over plans with P_k 1 = a_k and one common
    P_k^T 1 = b, u uniform. With S_k the soft c-transform of f_k,

        f_k <- softmin(g_k),    eps log(b / u) = d - sum_k w_k S_k,    g_k <- eps log(b / u) + S_k,

    where d = 0, or, debiased, the potential of b against itself, which takes away the blur of the entropy. Between
    KL(rho) marginals both steps are damped, and b is a power mean instead.

    The columns of the plans are b at all times. The error is what the next update of all f changes in the rows, in the
    mean over the measures and in shares of their mass; debiased, it is no less than what the last one changed in b. The
    value is that of the dual, below the least one by the order of the square of the error.

    An iteration is two soft c-transforms for all measures. Where they share their costs, one pass over the costs serves
    those whose potentials are within some 950 epsilon of one of them (90 in float32): O(n m) exponentials and O(K n m)
    products if all are, O(K n m) exponentials if none. Of clouds in float64, two groups at most are summed up in
    float32, in half the time, until the error is 3e-5 or twice their rounding.

    Debiased iterations slow down on their way, as the correction falls without end where there is no mass.

    Args:
        weights: (K,), of total 1.
        debiased: for exact marginals, and a cost that is defined between points of the support.
        tol: error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: iterations, those of the schedule included.
        schedule: the way down to the problem's epsilon.
        relaxation: where to go from the plain updates; with KL marginals only mixing, from an error of 0.01 on, and
            debiased nothing.

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
    schedule: Schedule = Halving(0.1)
    relaxation: Relaxation[Any] = Anderson(below=0.1)

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

    def prepared(self, problem: Problem) -> Problem:
        assert problem.epsilon is not None
        geometry, count = problem.geometry, len(problem.a)
        if _together(geometry, count):
            return replace(problem, geometry=geometry.with_single(count * geometry.shape[0] * geometry.shape[1]))
        return replace(problem, geometry=geometry.remembering(problem.epsilon))

    def init(self, problem: Problem) -> BregmanState:
        assert problem.epsilon is not None
        f, g = torch.zeros_like(problem.a), torch.zeros_like(problem.b)
        zero = torch.zeros_like(g[0])
        start = self.schedule.start(problem).amax()
        never = torch.zeros((), dtype=torch.bool, device=g.device)
        error = torch.full_like(zero[0], torch.inf)
        relaxation = self._rule(problem).init(f.flatten())
        against = self_geometry(problem.geometry).remembering(problem.epsilon) if self.debiased else None
        centres = torch.zeros(len(f), dtype=torch.int64, device=f.device)
        together = _together(problem.geometry, len(f)) and problem.geometry.single is not None
        rough = rough_steps(self._tol(problem)) if together else 0
        return BregmanState(
            f, g, zero, zero, torch.zeros_like(error), start, never, error, relaxation, never, never, centres, against,
            rough,
        )  # fmt: skip

    def step(self, problem: Problem, state: BregmanState) -> BregmanState:
        assert problem.epsilon is not None
        eps, geometry = state.epsilon, problem.geometry
        left, (side_a, side_b) = problem.marginals[0], problem.sides_at(eps)
        w, rule = self._shares(problem), self._rule(problem)
        G = state.g + side_b.absorbed()
        single, centres = geometry.single if state.rough > 0 else None, state.centres
        if single is not None:
            centres = _centres(G, _REACH[torch.float32] * eps, centres)
            if len(set(centres.tolist())) > _FEW:
                single, centres = None, torch.zeros_like(centres)
        if single is None and _together(geometry, len(G)):
            centres = _centres(G, _REACH[G.dtype] * eps, centres)
        soft = _softmins(geometry, G, eps, 1, state.f, G, centres, single)
        best = left.prox(soft, side_a)
        log_a = side_a.log_reference()
        before = exp((state.f - soft).div_(eps).add_(log_a))  # the rows of the plans with the old f, and the new
        after = problem.a if isinstance(left, Exact) else exp(log_a + (best - soft) / eps)
        error = torch.maximum((before.sub_(after).abs_() * w).sum(), state.moved)
        error = torch.where(state.settled & (eps == problem.epsilon), error / (w * problem.a).sum(), torch.inf)
        relaxation = rule.next(state.relaxation, error)
        # close with a plain step, so that the columns are equal
        met = bool(error <= self._tol(problem))
        masses = (w * after).flatten()
        mixed, relaxation = rule.mixed(relaxation, state.f.flatten(), best.flatten(), masses, error)
        tight, omega = (relaxation.omega == 1) | met, relaxation.omega
        plain = bool(tight)
        f = best if met else mixed.view_as(best)
        if not plain:
            f = towards(state.f, f, omega)
        soft = _softmins(geometry, f + side_a.absorbed(), eps, 0, state.f, G, centres, single)
        level, g = self._columns(problem, soft, eps, state.bias, w)
        if not plain:  # sums to zero under the weights, as both ends do
            g = towards(state.g, g, omega)
        bias, moved = state.bias, state.moved
        if state.against is not None:
            u = problem.b[0]
            bias = (bias + level + state.against.softmin(bias + eps * u.log(), eps)) / 2
            moved = (u * (exp(level / eps) - exp(state.level / eps))).abs().sum()
        lower = self.schedule.next(eps, problem.epsilon)
        closing = state.tight & (state.rough == 0)  # an error that float32 has told, or of its columns, ends nothing
        rough = 0 if single is None else smoother(state.rough, error, f, eps)
        return BregmanState(
            f, g, level, bias, moved, lower, eps == problem.epsilon, error, relaxation, tight, closing, centres,
            state.against, rough,
        )  # fmt: skip

    def _shares(self, problem: Problem) -> Tensor:
        count = len(problem.a)
        w = torch.full((count,), 1 / count) if self.weights is None else self.weights
        return w.to(problem.a).unsqueeze(-1)

    def _rule(self, problem: Problem) -> Relaxation[Any]:
        rule = self.relaxation
        if isinstance(problem.marginals[0], Exact):
            return Plain() if self.debiased else rule
        if not isinstance(rule, Anderson):
            return Plain()
        # soft masses may have far to go, where mixing overshoots
        return replace(rule, early=Plain(), below=min(rule.below, _SOFT_BELOW))

    def _columns(self, problem: Problem, soft: Tensor, eps: Tensor, bias: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Eps log(b / u), and the potentials of the support."""
        left = problem.marginals[0]
        if isinstance(left, KL):
            rho = torch.as_tensor(left.rho, dtype=soft.dtype, device=soft.device)
            power = eps / (rho + eps)
            level = (rho + eps) * torch.logsumexp(w.log() - soft / (rho + eps), 0)
            return level, (1 - power) * (level + soft)
        level = bias - (w * soft).sum(0)
        return level, level + soft

    def terminate(self, problem: Problem, state: BregmanState) -> tuple[Status, ...] | None:
        if bool(state.closing & (state.error <= self._tol(problem))):
            return (Status.CONVERGED,) * len(problem.a)
        if bool(torch.isnan(state.f.amax()) | torch.isnan(state.g.amax())):
            return (Status.DIVERGED,) * len(problem.a)
        return None

    def _tol(self, problem: Problem) -> float:
        return self.tol if self.tol is not None else DEFAULT_TOL[problem.a.dtype]

    def error(self, state: BregmanState) -> float:
        return float(state.error)

    def finish(self, problem: Problem, state: BregmanState) -> Outcome:
        assert problem.epsilon is not None
        error = state.error
        if state.rough or not bool(state.settled & state.tight):  # on the way down, or beyond the last update
            plain = replace(self, relaxation=Plain())
            relaxation = plain.relaxation.init(state.f.flatten())
            state = plain.step(problem, state._replace(epsilon=problem.epsilon, relaxation=relaxation, rough=0))
        side_a, side_b = problem.sides
        plan = GibbsPlan(problem.geometry, state.f + side_a.absorbed(), state.g + side_b.absorbed(), problem.epsilon)
        b = problem.b[0] * (state.level / problem.epsilon).exp()
        stats = {"b": b, "value": self._value(problem, state, b), "error": float(error)}
        return Outcome(plan, state.f, state.g, stats)

    def _value(self, problem: Problem, state: BregmanState, b: Tensor) -> Tensor:
        """The dual value, in float64."""
        assert problem.epsilon is not None
        left, w = problem.marginals[0], self._shares(problem).double().squeeze(-1)
        a, b, f, g = (t.double() for t in (problem.a, b, state.f, state.g))
        columns = b * (-g / left.rho).exp() if isinstance(left, KL) else b.expand_as(g)
        each = left.dual(f, Side(a, a)) - problem.epsilon * (columns.sum(-1) - problem.reference_mass)
        if isinstance(left, Exact):  # zero but for a correction
            each = each + (b * g).sum(-1)
        return (w * each).sum()


def _together(geometry: Geometry, count: int) -> TypeGuard[PairGeometry]:
    """Whether a pass over the costs serves several measures."""
    return not geometry.batch_shape and isinstance(geometry, PairGeometry) and count >= _TOGETHER


def _centres(h: Tensor, reach: Tensor, centres: Tensor) -> Tensor:
    """For each of the potentials (K, m) one of them, as indices (K,), from which it varies by no more than `reach`.

    The given ones, if they are that; else as few as a greedy choice finds. O(K m) time, and O(K^2 m) for a choice.
    """
    if not bool((_variation(h - h[centres]) > reach).any()):
        return centres
    near = torch.stack([_variation(h - one) for one in h]) <= 0.9 * reach  # with room to move
    near.fill_diagonal_(True)
    out, left = torch.empty_like(centres), torch.ones_like(near[0])
    while bool(left.any()):
        best = (near & left).sum(-1).argmax()
        out[near[best] & left] = best
        left &= ~near[best]
    return out


def _variation(h: Tensor) -> Tensor:
    return h.amax(-1) - h.amin(-1)


def _softmins(
    geometry: Geometry,
    h: Tensor,
    eps: Tensor,
    dim: int,
    f: Tensor,
    g: Tensor,
    centres: Tensor,
    single: SingleSums | None = None,
) -> Tensor:
    r"""Soft c-transforms of all h, (K, m) for dim=1: one by one, or together where they share their costs.

    Those with one centre are taken in one pass: with any potentials p and q,

        softmin(h)_i = p_i - eps log sum_j exp((p_i + q_j - c_ij) / eps) exp((h_j - q_j) / eps),

    where the exponentials of the pairs serve all h that are near q.

    Args:
        f, g: (K, n) and (K, m), of which the centres are p and q.
        centres: (K,), an index for each h.
        single: what sums in float32 where that is enough.
    """
    if not _together(geometry, len(h)):
        return geometry.softmin(h, eps, dim)
    costs, dtype = (geometry, h.dtype) if single is None else (single, torch.float32)
    lift = _LIFT[dtype]
    out = torch.empty_like(f if dim == 1 else g)
    alone: list[int] = []
    chosen = centres.tolist()
    for centre in set(chosen):
        near = [k for k, other in enumerate(chosen) if other == centre]
        if len(near) == 1:
            alone += near
            continue
        some = near if len(near) < len(h) else slice(None)
        p, q = (f[centre], g[centre]) if dim == 1 else (g[centre], f[centre])
        share = (h[some] - q).div_(eps)
        top = share.amax(-1, keepdim=True)
        top -= lift
        share = exp(share.sub_(top).to(dtype)).mT.contiguous()
        sums = costs.apply(f[centre] + lift * eps, g[centre], eps, share, dim).mT.contiguous()
        out[some] = log(sums).to(h).add_(top - lift).mul_(-eps).add_(p)
        # a sum whose terms were too small for numbers might lack some that count
        sound = (sums.amin(-1) >= _LEAST[dtype]) & (sums.amax(-1) < torch.inf)
        alone += [k for k, good in zip(near, sound.tolist()) if not good]
    if alone:
        out[alone] = costs.softmin(h[alone], eps, dim)
    return out
