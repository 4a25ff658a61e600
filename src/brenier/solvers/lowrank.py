"""Plans of low rank, in linear time: soft clusters on both sides, and the best transport between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import refuse
from ..geometry import CostMatrix, Geometry, PointCloud
from ..geometry.base import PairGeometry
from ..kernels.simplex import network_simplex
from ..plan import FactoredPlan
from ..problem import Problem
from ..solution import Status
from .base import Outcome, Solver, check_count, check_number
from .entropic.subsample import coarse_potentials

__all__ = [
    "Clusters",
    "LowRank",
    "LowRankState",
    "check_sides",
    "coupled",
    "descended",
    "features",
    "k_means",
    "sharpened",
    "softened",
]

_SOFT = 0.9  # share of a point's mass that starts spread over all clusters
_MELTED = 0.6  # and that is spread again when a plan is melted
_LEAST = -80.0  # log of the smallest membership: a cluster may come back from there
_STEP = 10.0  # how far memberships may move at first, in logs
_FASTER, _SLOWER, _TRIALS = 1.5, 0.5, 12
_FLAT = 2  # steps in a row below the tolerance
_LLOYD = 10  # iterations of k-means: a start need not be better


class Clusters(NamedTuple):
    """A plan of rank r: log memberships, the clusters' masses, the plan between them and its duals."""

    log_x: Tensor  # (n, r), rows are logs of shares
    log_y: Tensor  # (m, r)
    p: Tensor  # (r,) masses of the clusters of x
    q: Tensor  # (r,) and of y
    onward: Tensor  # (r, r) shares of each cluster of x that go to each cluster of y
    back: Tensor  # (r, r) shares of each cluster of y that come from each cluster of x
    f: Tensor  # (r,) duals of the plan between clusters
    g: Tensor  # (r,)
    image: Tensor  # (n, r) mean cost from each point to each cluster of y
    value: float

    def plan(self, geometry: Geometry, a: Tensor, b: Tensor) -> FactoredPlan:
        """The plan between points of masses a and b."""
        assert isinstance(geometry, PairGeometry)
        Q, R = a.unsqueeze(-1) * self.log_x.exp(), b.unsqueeze(-1) * self.log_y.exp()
        return FactoredPlan(geometry, Q @ self.onward, self.q, R)


class LowRankState(NamedTuple):
    """The plan in work and the best one so far."""

    current: Clusters | None  # None: a start is due
    best: Clusters | None
    scale: float  # of the step
    flat: int  # steps in a row that gained less than the tolerance
    descents: int  # that have ended
    gain: float  # of the last step, relative

    @property
    def value(self) -> float:
        """The least cost so far."""
        return min(c.value for c in (self.current, self.best) if c is not None)


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

    The plan is a `FactoredPlan`, whose marginals are exact to rounding, and so its cost is an upper bound on the
    optimum. The potentials are a guess from a sample of the points, from which `certificate` proves a lower bound on
    the optimum of *all* plans; the gap so holds both what the rank costs and what that guess misses.

    Takes a `PointCloud` or a `CostMatrix` and exact marginals. A step takes O((n + m) r (d + r)) time where the cost is
    an inner-product cost (squared Euclidean, Mahalanobis, dot, cosine), and O(n m r) for others, in tiles; all need
    O((n + m) r) memory.

    Args:
        rank: columns of the factors. From max(n, m) on, the answer is exact.
        tol: relative gain of a step, twice in a row, below which a descent ends.
        max_iter: steps of all descents together.
        starts: descents from k-means.
        melts: descents from the best plan so far, melted.
        sample: points of each side from which the potentials of the lower bound come.
        generator: for k-means; seed 0 when None.

    Raises:
        InvalidInput: an epsilon, marginals that are not exact, batches, another geometry, weights with a gradient.

    Example:
        >>> import torch, brenier
        >>> from brenier.solvers import LowRank
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.float64)
        >>> solution = brenier.solve(x, x + 1, solver=LowRank(rank=2))
        >>> solution.plan.rank, round(float(solution.value), 3)
        (2, 1.005)

    Reference:
        Scetbon, Cuturi & Peyré (2021), Low-rank Sinkhorn factorization; Scetbon & Cuturi (2022), Low-rank optimal
        transport: approximation, statistics and debiasing; Halmos, Liu, Gold & Raphael (2024), Low-rank optimal
        transport through factor relaxation with latent coupling (the plan T between clusters).
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
        check_sides(self.name, problem)
        if not isinstance(problem.geometry, PointCloud | CostMatrix):
            cure = "Give its points to PointCloud."
            refuse(self.name, "a PointCloud or a CostMatrix", type(problem.geometry).__name__, cure)

    # -- the contract of a solver ----------------------------------------------------------------------------

    def init(self, problem: Problem) -> LowRankState:
        return LowRankState(None, None, 1.0, 0, 0, float("inf"))

    def step(self, problem: Problem, state: LowRankState) -> LowRankState:
        problem = problem.double()
        if state.current is None:
            current = self._start(problem, state) if state.descents < self.starts else _melted(problem, state.best)
            return state._replace(current=current, scale=1.0, flat=0, gain=float("inf"))
        after, scale = descended(problem, state.current, state.scale)
        gain = 1 - after.value / state.current.value if after.value < state.current.value else 0.0
        flat = state.flat + 1 if gain <= self.tol else 0
        state = state._replace(current=after, scale=scale, flat=flat, gain=gain)
        return state if flat < _FLAT and gain > 0 else _ended(problem, state)

    def terminate(self, problem: Problem, state: LowRankState) -> tuple[Status, ...] | None:
        enough = 1 if self._rank(problem) in (1, max(problem.shape)) else self.starts + self.melts  # all are one
        return (Status.CONVERGED,) if state.descents >= enough else None

    def error(self, state: LowRankState) -> float:
        return state.gain

    def finish(self, problem: Problem, state: LowRankState) -> Outcome:
        c = min((c for c in (state.current, state.best) if c is not None), key=lambda c: c.value)
        double = problem.double()
        stats: dict[str, Any] = {"rank": self._rank(problem), "descents": state.descents}
        plan = c.plan(problem.geometry, double.a, double.b)
        return Outcome(plan, *coarse_potentials(double, self.sample), stats)

    def _rank(self, problem: Problem) -> int:
        return min(self.rank, max(problem.shape))

    def _start(self, problem: Problem, state: LowRankState) -> Clusters:
        """Clusters by k-means on each side, softened."""
        generator = torch.Generator().manual_seed(state.descents) if self.generator is None else self.generator
        rank, logs = self._rank(problem), []
        if rank == max(problem.shape):  # a cluster for each point: exact transport
            return coupled(problem, *(torch.eye(n, rank).to(problem.a).log() for n in problem.shape))
        for points, weights in zip(features(problem), (problem.a, problem.b)):
            label = k_means(points, weights, rank, generator)
            logs.append(softened(torch.nn.functional.one_hot(label, rank).to(points), _SOFT))
        return coupled(problem, *logs)


def check_sides(name: str, problem: Problem) -> None:
    """Refuse what solvers cannot take that bound transport without epsilon from above, and give no gradient in a, b."""
    if problem.epsilon is not None:
        refuse(name, "epsilon=None", f"epsilon={problem.epsilon.tolist()}", "Use solver='sinkhorn'.")
    if not problem.balanced:
        refuse(name, "exact marginals", str(problem.marginals), "Use solver='sinkhorn' with an epsilon.")
    if problem.batch_shape:
        refuse(name, "one problem", f"batch {tuple(problem.batch_shape)}", "Solve them one by one.")
    if torch.is_grad_enabled() and (problem.a.requires_grad or problem.b.requires_grad):
        cure = "Detach them; gradients go to the points and the cost."
        refuse(name, "weights that need no gradient", "a or b with requires_grad", cure)


def features(problem: Problem) -> tuple[Tensor, Tensor]:
    r"""Vectors u_i (n, k) and v_j (m, k) that tell where points lie for the cost, in equal scales.

    Of an inner-product cost h_i + k_j - <u_i, v_j> these two; of any other between points their coordinates; of a
    matrix its rows and columns.
    """
    geometry = problem.geometry
    if isinstance(geometry, CostMatrix):
        return geometry.cost, geometry.cost.mT
    assert isinstance(geometry, PointCloud)
    parts = geometry.factors()
    u, v = (geometry.x, geometry.y) if parts is None else (parts.u, parts.v)
    size_u, size_v = (float(torch.linalg.matrix_norm(t)) / len(t) ** 0.5 for t in (u, v))
    ratio = (size_v / size_u) ** 0.5 if size_u > 0 and size_v > 0 and parts is not None else 1.0
    return u * ratio, v / ratio


# -- steps -----------------------------------------------------------------------------------------------------------


def coupled(problem: Problem, log_x: Tensor, log_y: Tensor) -> Clusters:
    """The best plan between given clusters."""
    assert isinstance(problem.geometry, PairGeometry)
    Q, R = problem.a.unsqueeze(-1) * log_x.exp(), problem.b.unsqueeze(-1) * log_y.exp()
    p, q = Q.sum(0), R.sum(0)
    image = problem.geometry.product(R / _positive(q))
    mean = (Q / _positive(p)).mT @ image
    result = network_simplex(np.ascontiguousarray(mean.cpu().numpy()), p.cpu().numpy(), q.cpu().numpy())
    T = torch.zeros_like(mean)
    rows, cols, mass = (torch.from_numpy(t).to(T.device) for t in (result.rows, result.cols, result.mass))
    T[rows.long(), cols.long()] = mass
    f, g = (torch.from_numpy(t).to(T) for t in (result.f, result.g))
    reduced = mean - f.unsqueeze(-1) - g
    onward, back = _shares(T, reduced), _shares(T.mT, reduced.mT)
    return Clusters(log_x, log_y, p, q, onward, back, f, g, image, float((T * mean).sum()))


def softened(shares: Tensor, soft: float) -> Tensor:
    """The logs of shares (n, r) of which a part is spread over all clusters."""
    return ((1 - soft) * shares + soft / shares.shape[-1]).log()


def _melted(problem: Problem, c: Clusters | None) -> Clusters:
    assert c is not None
    return coupled(problem, softened(c.log_x.exp(), _MELTED), softened(c.log_y.exp(), _MELTED))


def _positive(mass: Tensor) -> Tensor:
    return mass.clamp(min=torch.finfo(mass.dtype).tiny)


def _shares(T: Tensor, reduced: Tensor) -> Tensor:
    """Where each row sends its mass; one without any, where it would send the first grain of it."""
    total = T.sum(-1, keepdim=True)
    cheapest = torch.nn.functional.one_hot(reduced.argmin(-1), T.shape[-1]).to(T)
    return torch.where(total > 0, T / _positive(total), cheapest)


def descended(problem: Problem, c: Clusters, scale: float) -> tuple[Clusters, float]:
    """One step of mirror descent that does not raise the cost, if there is one, and the scale for the next."""
    assert isinstance(problem.geometry, PairGeometry)
    Q = problem.a.unsqueeze(-1) * c.log_x.exp()
    image = problem.geometry.T.product(Q / _positive(c.p))
    gradients = (c.image - c.g) @ c.onward.mT, (image - c.f) @ c.back.mT
    slopes = [t - t.amin(-1, keepdim=True) for t in gradients]
    steepest = max(float(s.max()) for s in slopes)
    if steepest <= 0:
        return c, scale
    for _ in range(_TRIALS):
        logs = (
            torch.log_softmax(h - scale * _STEP / steepest * s, -1).clamp(min=_LEAST)
            for h, s in zip((c.log_x, c.log_y), slopes)
        )
        after = coupled(problem, *(torch.log_softmax(h, -1) for h in logs))
        if after.value <= c.value:
            return after, scale * _FASTER
        scale *= _SLOWER
    return c, scale


def _ended(problem: Problem, state: LowRankState) -> LowRankState:
    """The descent that has ended, with each point in one cluster where that costs no more, and the best of all."""
    c = state.current
    assert c is not None
    sharp = sharpened(problem, c)
    c = sharp if sharp.value <= c.value else c
    best = c if state.best is None or c.value < state.best.value else state.best
    return state._replace(current=None, best=best, descents=state.descents + 1)


def sharpened(problem: Problem, c: Clusters) -> Clusters:
    """Each point in the one cluster that it belongs to most."""
    hard = (
        torch.where(torch.nn.functional.one_hot(h.argmax(-1), h.shape[-1]) > 0, 0, -torch.inf).to(h)
        for h in (c.log_x, c.log_y)
    )
    return coupled(problem, *hard)


def k_means(points: Tensor, weights: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The cluster of each point, (n,), by Lloyd's iterations from distant points drawn at random (k-means++)."""
    distance: Tensor | None = None
    chosen: list[int] = []
    for _ in range(k):
        chance = weights if distance is None else weights * distance
        if distance is not None and not float(chance.sum()) > 0:
            break  # no more distinct points
        chosen.append(int(torch.multinomial(chance.cpu(), 1, generator=generator)))
        new = (points - points[chosen[-1]]).square().sum(-1)
        distance = new if distance is None else torch.minimum(distance, new)
    centres = points[chosen]
    label = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for _ in range(_LLOYD):
        before, label = label, (centres.square().sum(-1) - 2 * points @ centres.mT).argmin(-1)
        if bool((label == before).all()):
            break
        mass = torch.zeros_like(centres[:, 0]).index_add(0, label, weights)
        sums = torch.zeros_like(centres).index_add(0, label, weights.unsqueeze(-1) * points)
        centres = torch.where((mass > 0).unsqueeze(-1), sums / _positive(mass).unsqueeze(-1), centres)
    return label
