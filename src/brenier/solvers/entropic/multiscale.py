"""Sinkhorn from coarse to fine through trees of clusters, over sparse kernels with a bound on what they drop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..._inputs import is_count
from ...errors import refuse
from ...geometry import BlockSparse, ClusteredCloud, Geometry
from ...geometry.blocksparse import check_cloud
from ...marginals import KL, Exact
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_number
from .relaxation import AndersonState, OverRelaxation, Relaxation, RelaxationState
from .schedule import Halving
from .sinkhorn import Sinkhorn, SinkhornState

__all__ = ["Multiscale", "MultiscaleState"]

_BRANCHING = 3  # halvings between two scales: clusters of eight points become points
_TRUNCATION = 0.01  # the share of the tolerance that dropped pairs may cost
_SLACK = 3.0  # how far potentials may rise, in epsilon, before the dropped mass is bounded anew
_AGE = 5  # iterations for which pairs may serve without a bound, as long as the error is above the tolerance
_DENSE_SHARE = 0.5  # a larger share of kept pairs is no gain over all pairs
_COARSE_ITERATIONS = 100  # at the last epsilon of a coarse scale
_PLAIN_ITERATIONS = 10  # for what is new at a scale, before it goes on with the relaxation of the one above


class _Scale(NamedTuple):
    """The problem at one scale: clusters as points, their masses added up."""

    problem: Problem  # its epsilon is not below the mean cost from a point to what stands for it
    weights: tuple[Tensor, Tensor]  # a and b, with an average mass where there is none
    clustered: ClusteredCloud | None  # None: all pairs


class MultiscaleState(NamedTuple):
    """The scales, the one in work, and the state of its Sinkhorn iteration."""

    scales: tuple[_Scale, ...]  # the cloud itself first
    at: int
    inner: SinkhornState
    geometry: Geometry  # with all pairs or with those kept
    dropped: float  # a bound on the mass outside them, for the potentials as they are
    reference: tuple[Tensor, Tensor, Tensor]  # f, g and epsilon that the pairs were chosen by
    relaxation: RelaxationState | AndersonState  # that of the scale above at its end
    age: int  # iterations since the pairs were chosen
    settled: int  # iterations at the last epsilon of this scale
    iterations: tuple[int, ...]  # at each scale so far
    searches: int  # for pairs, at the finest scale


@dataclass(frozen=True)
class Multiscale(Solver[MultiscaleState]):
    r"""Sinkhorn's algorithm from coarse to fine, for clouds of few dimensions and small epsilon.

    Both clouds are cut into clusters by median splits. Eight points become one from scale to scale; epsilon falls
    together with the size of the clusters, and potentials go down a scale by soft c-transforms. At each scale only
    pairs of clusters are visited that may carry mass: affine bounds of f and g on each cluster give an M_IJ with

        sum_{i in I, j in J} a_i b_j exp((f_i + g_j - c_ij) / eps) <= M_IJ,

    and the lightest pairs are dropped so that their M_IJ add up to less than `tol` / 100 of the mass. A marginal of the
    whole plan differs from that of the kept part by what was dropped, so the error that is tested and reported,
    |P1 - a| of the kept part plus twice the bound, is proved for the plan with all n m pairs, up to rounding.

    Takes a `PointCloud` without batch axes, with squared Euclidean or Mahalanobis cost or a norm, and marginals
    `Exact()` or `KL(rho)`. `stats` holds `marginal_error` (proved as above), `truncation_bound` (twice the bound, over
    the mass), `kept_share` of all pairs, `searches` for pairs at the finest scale, and `iterations` at each scale, the
    coarsest first. The plan of the solution is the kept part.

    O(n log^2 n) time for the trees, and O(n k) for an iteration, where k points lie within some sqrt(epsilon) of each
    other; O(n) memory and the list of kept pairs of clusters.

    Args:
        tol: relative marginal error to stop at; 1e-6 in float64 and 1e-4 in float32 when None.
        max_iter: iterations at all scales together.
        size: points of a cluster whose pairs are kept or dropped together.
        coarsest: points of the coarsest scale at most, which works on all pairs.
        relaxation: as for `Sinkhorn`.

    Raises:
        InvalidInput: another geometry, cost, marginal or reference measure.

    Example:
        >>> import torch
        >>> from brenier import Relative, solve
        >>> x = torch.linspace(0, 1, 4000).unsqueeze(-1)
        >>> solution = solve(x, x + 0.1, epsilon=Relative(0.001), tol=1e-3, solver="multiscale")
        >>> solution.status.name, solution.stats["kept_share"] < 0.2
        ('CONVERGED', True)

    Reference:
        Schmitzer (2019), Stabilized sparse scaling algorithms for entropy regularized transport problems; Feydy (2020),
        Geometric data analysis, beyond convolutions, chapter 3.
    """

    name: ClassVar[str] = "multiscale"
    tol: float | None = None
    max_iter: int = 5000
    size: int = 32
    coarsest: int = 2048
    relaxation: Relaxation[Any] = OverRelaxation()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tol is not None:
            check_number("tol", self.tol)
        for name in ("size", "coarsest"):
            if not is_count(getattr(self, name)):
                refuse(f"Multiscale {name}", "a positive integer", repr(getattr(self, name)))

    def check(self, problem: Problem) -> None:
        if problem.epsilon is None:
            refuse(self.name, "an epsilon", "None", "Give epsilon=Relative(0.01), or solver='network-simplex'.")
        check_cloud(problem.geometry)
        if problem.batch_shape:
            refuse(self.name, "one problem", f"batch {tuple(problem.batch_shape)}", "Use solver='sinkhorn'.")
        plain = (type(p) is Exact or (type(p) is KL and torch.as_tensor(p.rho).dim() == 0) for p in problem.marginals)
        if not all(plain):
            refuse(
                self.name, "marginals Exact() or KL(rho) with one rho", str(problem.marginals), "Use solver='sinkhorn'."
            )
        if problem.reference != "product":
            refuse(self.name, "reference='product'", repr(problem.reference), "Use solver='sinkhorn'.")

    # -- the contract of a solver ----------------------------------------------------------------------------

    def init(self, problem: Problem) -> MultiscaleState:
        scales = tuple(self._scales(problem))
        last = scales[-1]
        inner = self._sinkhorn(last.problem).init(last.problem)
        start = inner.f, inner.g, inner.epsilon
        return MultiscaleState(
            scales, len(scales) - 1, inner, last.problem.geometry, 0.0, start, inner.relaxation, 0, 0, (0,), 0
        )

    def step(self, problem: Problem, state: MultiscaleState) -> MultiscaleState:
        if state.at > 0 and self._done(state):
            state = self._finer(state)
        if self._stale(state) and (state.age >= _AGE or self._moving(state) or self._met(state)):
            state = self._searched(state)
        above = state.relaxation
        lower = bool(state.inner.relaxation.omega < above.omega)
        if state.settled == _PLAIN_ITERATIONS and isinstance(above, RelaxationState) and lower:
            state = state._replace(inner=state.inner._replace(relaxation=above._replace(steps=0)))
        whole = state.scales[state.at].problem
        inner = self._sinkhorn(whole).step(replace(whole, geometry=state.geometry), state.inner)
        return self._measured(
            state._replace(
                inner=inner,
                age=state.age + 1,
                settled=state.settled + int(bool(torch.isfinite(inner.error))),
                iterations=(*state.iterations[:-1], state.iterations[-1] + 1),
            )
        )

    def terminate(self, problem: Problem, state: MultiscaleState) -> tuple[Status, ...] | None:
        statuses = self._sinkhorn(problem).terminate(state.scales[state.at].problem, state.inner)
        if statuses is None or all(s is Status.DIVERGED for s in statuses):
            return statuses
        return statuses if state.at == 0 and not self._stale(state) else None

    def verdict(self, problem: Problem, state: MultiscaleState) -> tuple[Status, ...]:
        if state.at > 0:
            return (Status.MAX_ITER,)
        return self._sinkhorn(problem).verdict(problem, state.inner)

    def error(self, state: MultiscaleState) -> float:
        if state.at > 0:
            return math.inf
        return float(state.inner.error) + self._truncation(state)

    def finish(self, problem: Problem, state: MultiscaleState) -> Outcome:
        while state.at > 0:  # stopped early: the potentials go down all the same
            state = self._finer(state)
        assert problem.epsilon is not None
        state = state._replace(inner=state.inner._replace(epsilon=problem.epsilon))
        if self._stale(state):
            state = self._searched(state)
        part = replace(problem, geometry=state.geometry)
        plan, f, g, _ = self._sinkhorn(problem).finish(part, state.inner)
        state = self._measured(state._replace(inner=state.inner._replace(f=f, g=g)))
        kept = state.geometry.kept_share if isinstance(state.geometry, BlockSparse) else 1.0
        stats: dict[str, Any] = {
            "marginal_error": self.error(state),
            "truncation_bound": self._truncation(state),
            "kept_share": kept,
            "searches": state.searches,
            "iterations": list(state.iterations),
        }
        return Outcome(plan, f, g, stats)

    def _sinkhorn(self, problem: Problem) -> Sinkhorn:
        """The iteration at one scale; what is left of the tolerance is for the pairs that are dropped."""
        return Sinkhorn(tol=self._tol(problem), max_iter=self.max_iter, relaxation=self.relaxation)

    def _tol(self, problem: Problem) -> float:
        """What the truncation leaves of the tolerance."""
        return (1 - 2 * _TRUNCATION) * Sinkhorn(tol=self.tol)._tol(problem)

    # -- scales ----------------------------------------------------------------------------------------------

    def _scales(self, problem: Problem) -> list[_Scale]:
        """The problem itself and its coarse copies, finest first."""
        assert problem.epsilon is not None
        weights = _padded(problem.a), _padded(problem.b)
        if max(problem.shape) <= self.coarsest:
            return [_Scale(problem, weights, None)]
        whole = ClusteredCloud(check_cloud(problem.geometry), self.size)
        out = [_Scale(problem, weights, whole)]
        depths: list[int | None] = [None, None]  # a side that is small enough keeps its points
        while max(out[-1].problem.shape) > self.coarsest:
            for side, tree in enumerate((whole.rows, whole.cols)):
                if out[-1].problem.shape[side] > self.coarsest:
                    last = depths[side]
                    depths[side] = tree.deepest if last is None else max(0, last - _BRANCHING)
            here = depths[0], depths[1]
            coarse, loss = whole.coarse(here, problem.a, problem.b)
            a, b = whole.sums(here, problem.a, problem.b)
            small = replace(problem, geometry=coarse.cloud, a=a, b=b, epsilon=problem.epsilon.clamp(min=loss))
            out.append(_Scale(small, whole.sums(here, *weights), coarse))
        return out

    def _done(self, state: MultiscaleState) -> bool:
        """Whether a coarse scale has given what it can."""
        return state.settled >= _COARSE_ITERATIONS or self._met(state)

    def _finer(self, state: MultiscaleState) -> MultiscaleState:
        """Potentials one scale down, by soft c-transforms of those of the clusters."""
        coarse, fine = state.scales[state.at], state.scales[state.at - 1]
        assert coarse.clustered is not None
        assert fine.clustered is not None
        eps = state.inner.level
        kept = state.geometry.blocks if isinstance(state.geometry, BlockSparse) else None
        across = coarse.clustered.onto(fine.clustered, kept)
        back = coarse.clustered.T.onto(fine.clustered.T, None if kept is None else kept.T)
        g = Sinkhorn._columns(replace(coarse.problem, geometry=across, b=fine.problem.b), state.inner.f, eps)
        f = Sinkhorn._columns(replace(coarse.problem.T, geometry=back, b=fine.problem.a), state.inner.g, eps)
        inner = replace(self._sinkhorn(fine.problem), f=f, g=g).init(fine.problem)
        assert fine.problem.epsilon is not None
        inner = inner._replace(epsilon=Halving().next(eps, fine.problem.epsilon), level=eps)
        return self._searched(
            state._replace(
                at=state.at - 1,
                inner=inner,
                relaxation=state.inner.relaxation,
                settled=0,
                iterations=(*state.iterations, 0),
                searches=0,
            )
        )

    # -- pairs -----------------------------------------------------------------------------------------------

    def _budget(self, scale: _Scale) -> float:
        """The mass that dropped pairs may have."""
        return _TRUNCATION * Sinkhorn(tol=self.tol)._tol(scale.problem) * float(scale.problem.a.sum())

    def _searched(self, state: MultiscaleState) -> MultiscaleState:
        """Choose the pairs by the potentials as they are, with room for them to rise."""
        scale, inner = state.scales[state.at], state.inner
        geometry: Geometry = scale.problem.geometry
        dropped = 0.0
        if max(scale.problem.shape) > self.coarsest:
            assert scale.clustered is not None
            budget = math.exp(-_SLACK) * self._budget(scale)
            sparse = scale.clustered.heavy(inner.f, inner.g, float(inner.epsilon), *scale.weights, budget)
            if sparse.kept_share <= _DENSE_SHARE:
                geometry, dropped = sparse, sparse.dropped
        return state._replace(
            geometry=geometry,
            dropped=dropped,
            reference=(inner.f, inner.g, inner.epsilon),
            age=0,
            searches=state.searches + 1,
        )

    def _measured(self, state: MultiscaleState) -> MultiscaleState:
        """Bound the dropped mass for the potentials as they are."""
        if not isinstance(state.geometry, BlockSparse):
            return state
        f, g, epsilon = state.reference
        rises = state.inner.f - f, state.inner.g - g
        return state._replace(dropped=state.geometry.dropped_after(*rises, float(epsilon)))

    def _moving(self, state: MultiscaleState) -> bool:
        """Whether the next step is at another epsilon than the one that the pairs were chosen for."""
        return bool(state.inner.epsilon != state.reference[2])

    def _met(self, state: MultiscaleState) -> bool:
        """Whether the error of the kept part is below the tolerance."""
        return float(state.inner.error) <= self._tol(state.scales[0].problem)

    def _stale(self, state: MultiscaleState) -> bool:
        """Whether the bound no longer holds."""
        scale = state.scales[state.at]
        if scale.clustered is None:
            return False
        return self._moving(state) or state.dropped > self._budget(scale)

    def _truncation(self, state: MultiscaleState) -> float:
        """What dropped pairs can add to the marginal error."""
        return 2 * state.dropped / float(state.scales[state.at].problem.a.sum())


def _padded(a: Tensor) -> Tensor:
    """The masses, with an average one where there is none, so that potentials there come out right as well."""
    massive = a > 0
    return torch.where(massive, a, a.sum() / massive.sum())
