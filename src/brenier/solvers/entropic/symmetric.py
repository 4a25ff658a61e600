"""Sinkhorn's algorithm for a measure against itself: one potential, one pass an iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...costs import Cosine, Cost, Dot, Geodesic, Lp, Mahalanobis, SqEuclidean
from ...errors import refuse
from ...geometry import CostMatrix, Geometry, Grid, PointCloud, Ragged
from ...marginals import Marginal
from ...problem import Problem
from .relaxation import Anderson, Relaxation
from .schedule import Fixed, Schedule
from .sinkhorn import Sinkhorn, SinkhornState, towards
from .start import Given, Start

__all__ = ["SymmetricSinkhorn", "is_positive", "is_symmetric"]

_STEP = 2 / 3


@dataclass(frozen=True)
class SymmetricSinkhorn(Sinkhorn):
    r"""Damped soft c-transforms of the one potential f = g of a symmetric problem.

        f <- f + 2/3 (T f - f),    T f = prox_a(softmin(f + eps log a)).

    For x = y, a = b, one kind of marginal and a symmetric cost, such as the two debiasing terms of a Sinkhorn
    divergence. Where exp(-c / eps) is a positive definite kernel, as for squared Euclidean costs and Euclidean norms,
    the derivative of T has its eigenvalues in [-1, 0], and those of the iteration lie in [-1/3, 1/3] at any epsilon: a
    handful of iterations of half the price gives six digits, where the alternating ones need ever more as epsilon
    falls. T does not expand in the supremum norm, so the damped iteration converges for every symmetric cost.

    The answer has g = T f, which meets the column marginal; f and g differ by eps times the error at most, in the mean.
    O(n^2 d) time for an iteration, O(n) memory.

    Args:
        tol, max_iter, start, f, g: as for `Sinkhorn`; it starts from the mean of f and g.
        schedule: the way down to the problem's epsilon, for costs without a positive definite kernel.
        relaxation: only what mixes iterates (`Anderson`) has an effect; `Plain()` switches it off.

    Raises:
        InvalidInput: a problem that is not symmetric.

    Example:
        >>> import torch, brenier
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> solution = brenier.solve(x, x, epsilon=brenier.Relative(0.001), solver="symmetric-sinkhorn")
        >>> solution.status.ok, solution.stats["n_iter"] < 15
        (True, True)

    Reference:
        Feydy, Séjourné, Vialard, Amari, Trouvé & Peyré (2019), Interpolating between optimal transport and MMD using
        Sinkhorn divergences (with the factor 1/2); Krasnoselskii (1955), Ishikawa (1976) (damped iterations of maps
        that do not expand).
    """

    name: ClassVar[str] = "symmetric-sinkhorn"
    schedule: Schedule = Fixed()
    relaxation: Relaxation[Any] = Anderson(below=math.inf)

    @property
    def beginning(self) -> Start:
        f, g = self.f, self.g
        return Given(g if f is None else f, f if g is None else g) if self._given else self.start

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not is_symmetric(problem):
            cure = "Use solver='sinkhorn'."
            refuse(self.name, "one measure on both sides, one marginal and a symmetric cost", "two that differ", cure)

    def init(self, problem: Problem) -> SinkhornState:
        state = super().init(problem)
        f = (state.f + state.g) / 2
        return state._replace(f=f, g=f, closing=torch.ones_like(state.closing))

    def step(self, problem: Problem, state: SinkhornState) -> SinkhornState:
        assert problem.epsilon is not None
        eps, f = state.epsilon, state.f
        best, error, after = self._updated(problem, f, f, eps)
        settled = (state.level == problem.epsilon) & (eps == problem.epsilon)
        error = torch.where(settled, error, torch.inf)
        step = torch.full_like(error, _STEP).unsqueeze(-1)
        relaxation = self.relaxation.next(state.relaxation, error)
        mixed, relaxation = self.relaxation.mixed(relaxation, f, towards(f, best, step), after, error)
        met = error <= self._tol(problem)
        f = torch.where(met.unsqueeze(-1), f, mixed)
        schedule = self.schedule.next(eps, problem.epsilon)
        return SinkhornState(f, best, schedule, eps, error, relaxation, met, state.closing)


def is_symmetric(problem: Problem) -> bool:
    """Whether source and target, with all that belongs to them, can be exchanged."""
    n, m = problem.shape
    same = n == m and torch.equal(problem.a, problem.b) and _same_marginal(*problem.marginals)
    return same and _is_symmetric(problem.geometry.detach())


def is_positive(geometry: Geometry) -> bool:
    """Whether exp(-c / eps) is known to be a positive definite kernel at every eps, where x = y."""
    if isinstance(geometry, Grid):
        return geometry.p <= 2
    if isinstance(geometry, Ragged):
        geometry = geometry.item((0,))
    ground = geometry.ground if isinstance(geometry, PointCloud) else None
    if isinstance(ground, Lp):
        return ground.p <= 2 and ground.power <= ground.p
    if isinstance(ground, Geodesic):
        return ground.power <= 1
    return type(ground) in (SqEuclidean, Mahalanobis, Cosine, Dot)


def _same_marginal(left: Marginal, right: Marginal) -> bool:
    if type(left) is not type(right):
        return False
    values = ([torch.as_tensor(getattr(p, f.name)) for f in fields(p)] for p in (left, right))  # type: ignore[arg-type]
    return all(u.shape == v.shape and bool((u == v).all()) for u, v in zip(*values))


def _is_symmetric(geometry: Geometry) -> bool:
    if isinstance(geometry, CostMatrix):
        C = geometry.cost
        return bool(((C - C.mT).abs() <= 8 * torch.finfo(C.dtype).eps * C.abs().amax()).all())
    if isinstance(geometry, PointCloud):
        return torch.equal(geometry.x, geometry.y) and _exchangeable(geometry.ground, geometry.x)
    if isinstance(geometry, Ragged):
        sizes = geometry.sizes
        return torch.equal(sizes[0], sizes[1]) and torch.equal(geometry.x, geometry.y)
    return isinstance(geometry, Grid)


def _exchangeable(ground: Cost, x: Tensor) -> bool:
    """Whether c(x_i, x_j) = c(x_j, x_i), for neighbours in the order of the points."""
    z = x.roll(1, -2)
    return torch.allclose(ground(x, z), ground(z, x))
