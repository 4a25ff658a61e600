"""Plans of low rank, in linear time: soft clusters on both sides, and the best transport between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import CostMatrix, PointCloud
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_count, check_number
from ..entropic.subsample import coarse_potentials
from .clusters import check_sides, descended, features, k_means, softened
from .masses import Weighted, between, check_marginals, hardened, offered, refitted, weighted, whole

__all__ = ["LowRank", "LowRankState"]

_SOFT = 0.9  # share of a point's mass that starts spread over all clusters
_MELTED = 0.6  # and that is spread again when a plan is melted
_FINE = 100  # clusters a side, at least, between which soft marginals are tried first
_FLAT = 2  # steps in a row below the tolerance
_TURNS = 20  # most turns of the sides in a descent: at a large rho they gain little each, and melting more


class LowRankState(NamedTuple):
    """The plan in work and the best one so far."""

    current: Weighted | None  # None: a start is due
    best: Weighted | None
    scale: float  # of the step
    flat: int  # steps in a row that gained less than the tolerance
    descents: int  # that have ended
    gain: float  # of the last step, relative
    turns: int | None  # of the sides of soft marginals, once clusters are settled; None before

    @property
    def value(self) -> float:
        """The least objective so far."""
        return min(s.value for s in (self.current, self.best) if s is not None)


@dataclass(frozen=True)
class LowRank(Solver[LowRankState]):
    r"""Least cost among plans of nonnegative rank r, in time linear in the number of points.

    Minimises <P, C> over P = Q diag(1/p) T diag(1/q) R^T with Q 1 = a, R 1 = b, p = Q^T 1, q = R^T 1 and T a plan
    between p and q: soft clusters on both sides, and transport between clusters at their mean cost. For given clusters
    the best T is an exact transport problem of r x r, whose duals (alpha, beta) make the gradients in Q and R,

        (C R diag(1/q) - 1 beta^T) W^T,   W = diag(1/p) T,

    and likewise for R. Each step multiplies the memberships by exponentials of these (mirror descent on simplices), at
    a step size that grows until the cost would not fall, and shrinks until it does. The problem is not convex: it is
    solved from several starts by k-means, then the best plan is melted (most of each point's mass is spread over
    all clusters) and solved again, several times, and the least is returned. Points end in one cluster each where that
    costs no more.

    Soft marginals add phi_a(P1) + phi_b(P^T 1). A start takes the masses that transport between a hundred clusters a
    side moves, with the same marginals; the descent keeps them. Then the sides take turns: for given clusters of y,
    P = W V^T with W (n, r) and the laws V (m, r) of the points in each, the best W is transport from points to
    clusters, solved as such with the marginal of x and that of y on clusters: masses and memberships of x at once. No
    turn raises the objective.

    The plan is a `FactoredPlan`, whose exact marginals are met to rounding, and so its objective is an upper bound on
    the optimum. The potentials are a guess from a sample of the points, from which `certificate` proves a lower bound
    on the optimum of *all* plans; the gap so holds both what the rank costs and what that guess misses.

    Takes a `PointCloud` or a `CostMatrix`, and `Exact`, `TV`, `Partial`, `Slack` and `Free` marginals in any pair, or
    `KL` with `KL`, `Exact` or `Free`. A step takes O((n + m) r (d + r)) time where the cost is an inner-product cost
    (squared Euclidean, Mahalanobis, dot, cosine), and O(n m r) for others, in tiles; all need O((n + m) r) memory.
    With soft marginals the start takes as much for 100 clusters as for r, and a turn what the network simplex does on
    n x r, a little more than linear; with KL some fifty products of n x r and r x r.

    Args:
        rank: columns of the factors. From max(n, m) on, the answer is exact; with KL, to about 1e-5 of the costs.
        tol: relative gain of a step, twice in a row, below which a descent ends.
        max_iter: steps of all descents together.
        starts: descents from k-means.
        melts: descents from the best plan so far, melted.
        sample: points of each side from which the potentials of the lower bound come.
        generator: for k-means; seed 0 when None.

    Raises:
        InvalidInput: an epsilon, KL beside a penalty with prices, a parameter of a marginal for each point, batches,
            another geometry, weights or parameters of marginals with a gradient.

    Example:
        >>> import torch, brenier
        >>> from brenier.solvers import LowRank
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.float64)
        >>> solution = brenier.solve(x, x + 1, solver=LowRank(rank=2))
        >>> solution.plan.rank, round(float(solution.value), 3)
        (2, 1.005)
        >>> y = torch.tensor([[1.0], [1.1], [6.0], [60.0]], dtype=torch.float64)  # the last one is no match
        >>> solution = brenier.solve(x, y, marginals=brenier.TV(2.0), solver=LowRank(rank=2))
        >>> solution.plan.col_sums().tolist()
        [0.25, 0.25, 0.25, 0.0]

    Reference:
        Scetbon, Cuturi & Peyré (2021), Low-rank Sinkhorn factorization; Scetbon & Cuturi (2022), Low-rank optimal
        transport: approximation, statistics and debiasing; Scetbon, Klein, Palla & Cuturi (2023), Unbalanced low-rank
        optimal transport solvers (the problem with soft marginals; not its method); Halmos, Liu, Gold & Raphael (2024),
        Low-rank optimal transport through factor relaxation with latent coupling (the plan T between clusters).
    """

    name: ClassVar[str] = "low-rank"
    coarse: ClassVar[bool] = True
    rank: int = 10
    tol: float = 1e-5
    max_iter: int = field(default=2000, kw_only=True)
    starts: int = 2
    melts: int = 4
    sample: int = 1000
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tol", self.tol)
        for name in ("rank", "starts", "sample"):
            check_count(f"LowRank {name}", getattr(self, name))
        if self.melts != 0:
            check_count("LowRank melts", self.melts)

    def check(self, problem: Problem) -> None:
        check_sides(self.name, problem, soft=True)
        check_marginals(self.name, problem)
        if not isinstance(problem.geometry, PointCloud | CostMatrix):
            cure = "Give its points to PointCloud."
            refuse(self.name, "a PointCloud or a CostMatrix", type(problem.geometry).__name__, cure)

    # -- the contract of a solver ----------------------------------------------------------------------------

    def init(self, problem: Problem) -> LowRankState:
        return LowRankState(None, None, 1.0, 0, 0, float("inf"), None)

    def step(self, problem: Problem, state: LowRankState) -> LowRankState:
        problem = problem.double()
        if state.current is None:
            current = self._start(problem, state) if state.best is None else self._next(problem, state, state.best)
            return state._replace(current=current, scale=1.0, flat=0, gain=float("inf"), turns=None)
        before, scale = state.current, state.scale
        turns = state.turns
        if turns is not None:
            turns += 1
            after = refitted(problem, before)
        else:
            clusters, scale = descended(between(problem, before.a, before.b), before.clusters, scale)
            after = before._replace(clusters=clusters)
        gain = (before.value - after.value) / abs(before.value) if after.value < before.value else 0.0
        flat = state.flat + 1 if gain <= self.tol else 0
        state = state._replace(current=after, scale=scale, flat=flat, gain=gain, turns=turns)
        if flat < _FLAT and gain > 0 and turns != _TURNS:
            return state
        if turns is not None or problem.balanced:
            return _ended(problem, state, after)
        return state._replace(current=hardened(problem, after), flat=0, turns=0)

    def terminate(self, problem: Problem, state: LowRankState) -> tuple[Status, ...] | None:
        rank = self._rank(problem)
        once = rank == max(problem.shape) or (rank == 1 and problem.balanced)  # all descents are one
        return (Status.CONVERGED,) if state.descents >= (1 if once else self.starts + self.melts) else None

    def error(self, state: LowRankState) -> float:
        return state.gain

    def finish(self, problem: Problem, state: LowRankState) -> Outcome:
        s = min((s for s in (state.current, state.best) if s is not None), key=lambda s: s.value)
        stats: dict[str, Any] = {"rank": self._rank(problem), "descents": state.descents}
        plan = s.clusters.plan(problem.geometry, s.a, s.b)
        moved = None if problem.balanced else (s.a, s.b)
        return Outcome(plan, *coarse_potentials(problem.double(), self.sample, moved=moved), stats)

    def _rank(self, problem: Problem) -> int:
        return min(self.rank, max(problem.shape))

    def _start(self, problem: Problem, state: LowRankState) -> Weighted:
        """Clusters by k-means on each side, softened."""
        rank = self._rank(problem)
        if rank == max(problem.shape):
            if problem.balanced:  # a cluster for each point: exact transport
                eyes = (torch.eye(n, rank).to(problem.a).log() for n in problem.shape)
                return weighted(problem, problem.a, problem.b, *eyes)
            return whole(problem, rank)
        masses, generator = self._masses(problem, state), self._generator(state)
        labels = [k_means(points, mass, rank, generator) for points, mass in zip(features(problem), masses)]
        shares = tuple(torch.nn.functional.one_hot(label, rank).to(problem.a) for label in labels)
        return _softened(problem, masses, shares, _SOFT)

    def _next(self, problem: Problem, state: LowRankState, best: Weighted) -> Weighted:
        """The next start from k-means, or the best plan so far, melted, with its masses or others in turn."""
        if state.descents < self.starts:
            return self._start(problem, state)
        shares = best.clusters.log_x.exp(), best.clusters.log_y.exp()
        anew = (state.descents - self.starts) % 2 == 0
        masses = self._masses(problem, state) if anew else (best.a, best.b)
        return _softened(problem, masses, shares, _MELTED)

    def _generator(self, state: LowRankState) -> torch.Generator:
        return torch.Generator().manual_seed(state.descents) if self.generator is None else self.generator

    def _masses(self, problem: Problem, state: LowRankState) -> tuple[Tensor, Tensor]:
        """Masses to begin with: those that transport between many small clusters takes."""
        if problem.balanced:
            return problem.a, problem.b
        shares, generator = [], self._generator(state)
        for points, weights in zip(features(problem), (problem.a, problem.b)):
            count = min(len(weights), max(_FINE, self.rank))
            label = k_means(points, weights, count, generator)
            shares.append(torch.nn.functional.one_hot(label, count).to(weights))
        a, b = offered(problem, *shares)
        if float(a.sum()) > 0:
            return a, b
        fixed = [t for t in (p.total(side) for p, side in zip(problem.marginals, problem.sides)) if t is not None]
        totals = problem.a.sum(), problem.b.sum()
        mass = fixed[0] if fixed else torch.minimum(*totals)
        return problem.a * (mass / totals[0]), problem.b * (mass / totals[1])


def _softened(problem: Problem, masses: Sequence[Tensor], shares: Sequence[Tensor], soft: float) -> Weighted:
    """The plan of clusters of which a part of each point is spread over all."""
    return weighted(problem, *masses, *(softened(s, soft) for s in shares))


def _ended(problem: Problem, state: LowRankState, s: Weighted) -> LowRankState:
    """The descent that has ended, with each point in one cluster where that costs no more, and the best of all."""
    s = hardened(problem, s)
    best = s if state.best is None or s.value < state.best.value else state.best
    return state._replace(current=None, best=best, descents=state.descents + 1)
