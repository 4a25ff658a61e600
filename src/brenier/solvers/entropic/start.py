"""Where an entropic solver begins: a part that is handed to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...costs import SqEuclidean
from ...errors import refuse
from ...geometry import PointCloud
from ...marginals import Exact
from ...problem import Problem
from ..base import check_start
from ..exact.monotone import Monotone
from ..gaussian.matrices import moments, plan_matrix
from .schedule import Schedule

__all__ = ["GaussianStart", "Given", "SortingStart", "Start", "Zeros"]


class Start(ABC):
    """Tells which potentials an entropic solver begins with, and at which epsilon: the problem's own, but for zeros."""

    def check(self, problem: Problem) -> None:  # noqa: B027 - some take any problem
        """Raise `InvalidInput` if there is no such start for this problem."""

    @abstractmethod
    def potentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """F (*batch, n) and g (*batch, m), in the dtype of the problem."""

    def epsilon(self, problem: Problem, schedule: Schedule) -> Tensor:
        """The epsilon to begin at, (*batch,) or (): potentials that know the problem need no way down."""
        assert problem.epsilon is not None
        return problem.epsilon


@dataclass(frozen=True)
class Zeros(Start):
    """Potentials of zero, at the start of the schedule."""

    def potentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(problem.a), torch.zeros_like(problem.b)

    def epsilon(self, problem: Problem, schedule: Schedule) -> Tensor:
        return schedule.start(problem)


@dataclass(frozen=True)
class Given(Start):
    """Potentials that are there, e.g. those of a nearby problem; zero where None.

    Args:
        f: (*batch, n) or (n,).
        g: (*batch, m) or (m,). The iteration begins with a new f, so that g is what counts.
    """

    f: Tensor | None = None
    g: Tensor | None = None

    def check(self, problem: Problem) -> None:
        check_start("sinkhorn start f", self.f, problem.shape[0])
        check_start("sinkhorn start g", self.g, problem.shape[1])

    def potentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        f, g = (
            torch.zeros_like(w) if h is None else h.to(w).expand(w.shape)
            for h, w in ((self.f, problem.a), (self.g, problem.b))
        )
        return f, g


@dataclass(frozen=True)
class GaussianStart(Start):
    r"""The potentials of entropic transport between two Gaussians with the moments of the clouds: quadratic.

    For c(x, y) = h(x) + k(y) - <u, v>, with means m, covariances S of u and v, and W(t) = 1 / (sqrt(t + e^2) + e) at
    e = eps / 2,

        f = h(x) - <u, m_v> - <u - m_u, A (u - m_u)> / 2,    A = S_v^1/2 W(S_v^1/2 S_u S_v^1/2) S_v^1/2,

    and g likewise. At eps = 0, A is the matrix of the Bures map. The solution itself where both sides are Gaussian,
    and nothing is inverted. For a `PointCloud` with an inner-product cost: squared Euclidean, dot, Mahalanobis, cosine.
    O((n + m) d^2 + d^3) time, O((n + m) d) memory, batched.

    Reference:
        Thornton & Cuturi (2023), Rethinking initialization of the Sinkhorn algorithm (with the Bures map); Janati,
        Muzellec, Peyré & Cuturi (2020), Entropic optimal transport between unbalanced Gaussian measures has a closed
        form.
    """

    def check(self, problem: Problem) -> None:
        geometry = problem.geometry
        if not isinstance(geometry, PointCloud) or geometry.detach().factors() is None:
            cure = "Use SubsampleStart(), which takes any cost."
            refuse("GaussianStart", "clouds of points and an inner-product cost", repr(geometry), cure)

    def potentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        assert isinstance(problem.geometry, PointCloud)
        assert problem.epsilon is not None
        parts = problem.geometry.detach().to(torch.float64).factors()
        assert parts is not None
        (mean_u, S_u), (mean_v, S_v) = moments(parts.u, problem.a.double()), moments(parts.v, problem.b.double())
        epsilon = problem.epsilon.double()

        def potential(
            offset: Tensor, u: Tensor, mean: Tensor, S: Tensor, mean_other: Tensor, S_other: Tensor
        ) -> Tensor:
            A = plan_matrix(S, S_other, epsilon)
            centred = u - mean
            return offset - (u * mean_other).sum(-1) - ((centred @ A) * centred).sum(-1) / 2

        f = potential(parts.h, parts.u, mean_u, S_u, mean_v, S_v)
        g = potential(parts.k, parts.v, mean_v, S_v, mean_u, S_u) + (mean_u * mean_v).sum(-1)
        return _referred(problem, f, g)


@dataclass(frozen=True)
class SortingStart(Start):
    r"""The potentials of exact transport along each coordinate, added up.

    In one dimension sorting gives the potentials; where c is the sum of its costs along the coordinates, the sum of
    theirs is feasible for the whole problem, and optimal where the optimal map moves the coordinates independently. Of
    the potentials that are optimal on a line, those halfway between the extremes are taken. For a `PointCloud` on a
    line with a cost that is convex in x - y, or in any dimension with the squared Euclidean one; any weights and sizes.
    O(d (n + m) log(n + m)) time, O(n + m) memory, batched.

    Reference:
        Thornton & Cuturi (2023), Rethinking initialization of the Sinkhorn algorithm (of one coordinate, by another
        algorithm).
    """

    def check(self, problem: Problem) -> None:
        geometry = problem.geometry
        good = isinstance(geometry, PointCloud) and (
            isinstance(geometry.ground, SqEuclidean)
            or (geometry.x.shape[-1] == 1 and geometry.ground.monotone_on_line())
        )
        if not good:
            cure = "Use SubsampleStart(), which takes any cost."
            refuse(
                "SortingStart", "clouds of points that sorting can match along each coordinate", repr(geometry), cure
            )

    def potentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        cloud = problem.geometry
        assert isinstance(cloud, PointCloud)
        a, b = (w / w.sum(-1, keepdim=True) for w in (problem.a.double(), problem.b.double()))
        total_f, total_g = torch.zeros_like(a), torch.zeros_like(b)
        for k in range(cloud.x.shape[-1]):
            line = cloud.with_tensors(*(t.detach()[..., k : k + 1] for t in cloud.tensors))
            flat = replace(problem, geometry=line, a=a, b=b, marginals=(Exact(), Exact()), epsilon=None)
            first, last = Monotone().step(flat, None), Monotone().step(flat.T, None)
            total_f, total_g = total_f + (first.f + last.g) / 2, total_g + (first.g + last.f) / 2
        return _referred(problem, total_f, total_g)


def _referred(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials for the product reference as those for that of the problem, in its dtype."""
    side_a, side_b = problem.sides
    return f.to(problem.a) + side_a.rise(), g.to(problem.b) + side_b.rise()
