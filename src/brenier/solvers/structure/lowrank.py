"""Gromov-Wasserstein plans of low rank, in linear time: soft clusters on both sides that keep the distances between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import CostMatrix, PointCloud
from ...problem import Problem
from ...solution import Status
from ...structure import Form, Linear, Moments, Quadratic
from ..base import Outcome, Solver, check_count, check_number, run
from ..entropic.subsample import coarse_potentials
from ..lowrank import Clusters, coupled, descended, k_means, sharpened, softened
from .common import begin, quadratic
from .gradient import ConditionalGradient
from .solution import GromovSolution
from .starts import MultiStart

__all__ = ["LowRankGromov", "LowRankGromovState"]

_SOFT = 0.3  # share of a point's mass that starts spread over all clusters
_FLAT = 2  # rounds in a row below the tolerance
_ANCHORS = 64  # clusters of each side that are matched before they are grouped, at least


class LowRankGromovState(NamedTuple):
    """A plan of low rank, and what the form makes of it."""

    form: Form
    clusters: Clusters | None  # None: a start is due
    moments: Moments
    half: Linear
    energy: float
    best: Clusters | None  # of the starts that have ended
    least: float  # its energy
    scale: float  # of the step
    size: float  # of the objective, for tolerances
    gain: float  # of the last round, relative
    flat: int
    values: tuple[float, ...]  # of the starts that have ended


@dataclass(frozen=True)
class LowRankGromov(Solver[LowRankGromovState]):
    r"""Gromov-Wasserstein plans of nonnegative rank r between clouds, in time linear in the number of points.

    Minimises the objective over the plans of `LowRank`, P = Q diag(1/p) T diag(1/q) R^T. Each round takes the linear
    cost that the gradient at P is, which has factors, and moves the clusters and the transport between them downhill on
    it; for squared Euclidean distances, inner products and the like the objective is concave along plans with given
    marginals, so that it falls at least as far. A start matches clusters by k-means on each side: between clusters the
    problem is a small one between the mean structures. Every other start has more clusters than the rank, and groups
    the pairs that were matched, so that both sides are clustered alike.

    For clouds with an inner-product cost and the square loss (as told in `gromov_wasserstein`), exact marginals, no
    epsilon. The plan is a `FactoredPlan`, feasible to rounding; its objective is an upper bound. O((n + m) r (d^2 + r))
    time a round, O((n + m) (r + d)) memory.

    Args:
        rank: columns of the factors.
        tol: relative gain of a round, twice in a row, below which a start ends.
        max_iter: rounds of all starts together.
        steps: of mirror descent for each gradient.
        starts: clusterings.
        matchings: starts of the small problem between clusters.
        sample: points of each side from which the potentials of the certificate come.
        generator: of clusterings, and of random matchings; seed 0 when None.

    Raises:
        InvalidInput: an epsilon, marginals that are not exact, structures without factors.

    Reference:
        Scetbon, Peyré & Cuturi (2022), Linear-time Gromov Wasserstein distances using low rank couplings and costs;
        Halmos, Liu, Gold & Raphael (2024), Low-rank optimal transport through factor relaxation with latent coupling.
    """

    name: ClassVar[str] = "low-rank"
    quadratic: ClassVar[bool] = True
    rank: int = 20
    tol: float = 1e-5
    max_iter: int = field(default=500, kw_only=True)
    steps: int = 5
    starts: int = 4
    matchings: int = 5
    sample: int = 1000
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tol", self.tol)
        for name in ("rank", "steps", "starts", "matchings", "sample"):
            check_count(f"LowRankGromov {name}", getattr(self, name))

    def check(self, problem: Problem) -> None:
        if not problem.balanced or problem.epsilon is not None:
            got = f"{problem.marginals} and epsilon={problem.epsilon}"
            refuse(self.name, "exact marginals and no epsilon", got, "Use Mirror().")
        given = quadratic(problem)
        if not (isinstance(given.x, PointCloud) and isinstance(given.y, PointCloud)):
            self._refuse_structures()

    @staticmethod
    def _refuse_structures() -> None:
        expected = "clouds with an inner-product cost, and the square loss"
        refuse("low-rank", expected, "structures without factors", "Use Quantized() or ConditionalGradient().")

    def init(self, problem: Problem) -> LowRankGromovState:
        form, _, moments, half, size = begin(problem, None)
        if not form.factored:
            self._refuse_structures()
        if float(form.A[2, 2] * form.B[2, 2]) < 0:  # the coefficients of <x, x'> and of <y, y'>
            got = "a distance and a product, which turn the objective convex"
            refuse("low-rank", "two distances, or two inner products", got, "Use ConditionalGradient().")
        far = float("inf")
        return LowRankGromovState(form, None, moments, half, far, None, far, 1.0, size, far, 0, ())

    def step(self, problem: Problem, state: LowRankGromovState) -> LowRankGromovState:
        form = state.form
        if state.clusters is None:
            clusters = self._start(quadratic(problem), form, len(state.values))
            moments, half, energy = self._seen(form, clusters)
            return state._replace(
                clusters=clusters, moments=moments, half=half, energy=energy, scale=1.0, gain=float("inf"), flat=0
            )
        linear = self._linear(form, state.half)
        c, scale = state.clusters, state.scale
        c = coupled(linear, c.log_x, c.log_y)
        for _ in range(self.steps):
            c, scale = descended(linear, c, scale)
        moments, half, energy = self._seen(form, c)
        gain = max(state.energy - energy, 0.0) / state.size
        if energy > state.energy:  # by rounding, or where the form is not concave: the last plan stays
            return self._ended(state)
        flat = state.flat + 1 if gain <= self.tol else 0
        state = state._replace(clusters=c, moments=moments, half=half, energy=energy, scale=scale, gain=gain, flat=flat)
        return self._ended(state) if flat >= _FLAT else state

    @staticmethod
    def _linear(form: Form, half: Linear) -> Problem:
        """The linear problem that the gradient at a plan makes."""
        return Problem(form.geometry(form.gradient(half)), form.a, form.b)

    @staticmethod
    def _seen(form: Form, clusters: Clusters) -> tuple[Moments, Linear, float]:
        """What the form makes of a plan; its geometry does not matter."""
        n, m = len(form.a), len(form.b)
        nothing = PointCloud(form.a.new_zeros(n, 1), form.a.new_zeros(m, 1))
        moments = form.moments(clusters.plan(nothing, form.a, form.b))
        half = form.half(moments)
        return moments, half, float(form.energy(moments, half))

    def _start(self, problem: Quadratic, form: Form, number: int) -> Clusters:
        """Clusters by k-means, matched by the problem between them, perhaps grouped by that, and softened."""
        generator = torch.Generator().manual_seed(number) if self.generator is None else self.generator
        grouped = number % 2 == 1
        count = max(_ANCHORS, 2 * self.rank) if grouped else self.rank
        shares = []
        for side, weights in ((problem.x, form.a), (problem.y, form.b)):
            assert isinstance(side, PointCloud)
            rank = min(count, len(weights))
            label = k_means(side.x.detach().double(), weights, rank, generator)
            shares.append(torch.nn.functional.one_hot(label, rank).to(form.a))
        hard = [(w.unsqueeze(-1) * s, s) for w, s in zip((form.a, form.b), shares)]
        masses = [Q.sum(0) for Q, _ in hard]
        alive = [p > 0 for p in masses]
        assert form.phi is not None
        assert form.psi is not None
        means = [(Q[:, k] / p[k]).mT @ t for (Q, _), p, k, t in zip(hard, masses, alive, (form.phi, form.psi))]
        # half(P) = row + col - phi A (phi^T P psi) B psi^T, and B is twice the structure of y
        small = Quadratic.between(
            CostMatrix(means[0] @ form.A @ means[0].mT),
            CostMatrix(means[1] @ form.B @ means[1].mT / 2),
            masses[0][alive[0]],
            masses[1][alive[1]],
            features=None if form.features is None else CostMatrix(self._between(form, hard, masses, alive)),
            alpha=problem.alpha,
        )
        several = MultiStart(max_iter=self.matchings, solver=ConditionalGradient(), generator=generator)
        plan = run(small, several, warn=False, answer=GromovSolution).plan
        # the plan of hard clusters, from which the first gradient comes
        left, right = (Q[:, k] / p[k] for (Q, _), p, k in zip(hard, masses, alive))
        T = torch.as_tensor(plan.dense()).to(left)
        body = (form.phi.mT @ left) @ T @ (right.mT @ form.psi)
        half = form.half(Moments(form.a, form.b, body))
        if grouped:
            members = self._members(T, means, generator)
            shares = [s[:, k] @ m for s, k, m in zip(shares, alive, members)]
        return coupled(self._linear(form, half), *(softened(s, _SOFT) for s in shares))

    def _members(self, T: Tensor, means: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """The shares of the anchors of each side in groups of the pairs that T matches, by k-means of both ends."""
        pairs = T.nonzero().unbind(1)
        mass = T[pairs]
        ends = []
        for mean, index in zip(means, pairs):
            end = mean[index] - (mass @ mean[index]) / mass.sum()
            ends.append(end / (mass @ end.square()).sum().sqrt().clamp_min(1e-300))
        label = k_means(torch.cat(ends, 1), mass, self.rank, generator)
        members = []
        for mean, index in zip(means, pairs):
            member = mass.new_zeros(len(mean), self.rank)
            member.index_put_((index, label), mass, accumulate=True)
            members.append(member / member.sum(1, keepdim=True))
        return members

    @staticmethod
    def _between(form: Form, hard: list[tuple[Tensor, Tensor]], masses: list[Tensor], alive: list[Tensor]) -> Tensor:
        """The mean costs between the features of clusters."""
        assert form.features is not None
        row, col, core = form.features
        assert form.phi is not None
        assert form.psi is not None
        left, right = ((Q[:, k] / p[k]).mT for (Q, _), p, k in zip(hard, masses, alive))
        return (left @ row).unsqueeze(1) + right @ col - (left @ form.phi) @ core @ (right @ form.psi).mT

    def _ended(self, state: LowRankGromovState) -> LowRankGromovState:
        """The start that has ended, with each point in one cluster where that costs no more, and the best of all."""
        c, form = state.clusters, state.form
        assert c is not None
        sharp = sharpened(self._linear(form, state.half), c)
        energy = self._seen(form, sharp)[2]
        if energy <= state.energy:
            c = sharp
        energy = min(energy, state.energy)
        better = state.best is None or energy < state.least
        best, least = (c, energy) if better else (state.best, state.least)
        return state._replace(clusters=None, best=best, least=least, values=(*state.values, energy))

    def terminate(self, problem: Problem, state: LowRankGromovState) -> tuple[Status, ...] | None:
        return (Status.CONVERGED,) if len(state.values) >= self.starts else None

    def error(self, state: LowRankGromovState) -> float:
        return state.gain

    def finish(self, problem: Problem, state: LowRankGromovState) -> Outcome:
        form, c = state.form, state.best
        if c is None or (state.clusters is not None and state.energy < state.least):
            c = state.clusters
        assert c is not None
        half = self._seen(form, c)[1]
        linear = self._linear(form, half)
        stats: dict[str, Any] = {"rank": len(c.p), "values": [*state.values], "linear_geometry": "factored"}
        plan = c.plan(linear.geometry.to(problem.a.dtype), form.a, form.b)
        return Outcome(plan, *coarse_potentials(linear, self.sample), stats)
