"""Soft marginals of plans of low rank: which mass of each point is moved, for given clusters of the other side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...geometry.base import PairGeometry
from ...marginals import KL, TV, Exact, Free, Marginal
from ...problem import Problem
from .clusters import Clusters, coupled, positive, sharpened
from .narrow import narrow_transport

__all__ = ["Weighted", "between", "check_marginals", "hardened", "offered", "refitted", "weighted", "whole"]

_MEMBER = 1e-12  # share of a cluster from which on a point has a say in how far it may grow


class Weighted(NamedTuple):
    """Clusters of points that have the masses which a plan moves, and what the marginals charge for these."""

    a: Tensor  # (n,)
    b: Tensor  # (m,)
    clusters: Clusters
    penalty: float
    prices: tuple[Tensor | None, Tensor | None] = (None, None)  # (r,) potentials of the clusters in the last turns

    @property
    def value(self) -> float:
        """The cost of the plan with what its marginals charge."""
        return self.clusters.value + self.penalty


def check_marginals(name: str, problem: Problem) -> None:
    """Refuse marginals for which there is no best factor at hand, and gradients in their parameters."""
    kinds = [isinstance(p, KL) for p in problem.marginals]
    for marginal, side in zip(problem.marginals, problem.sides):
        if any(t.dim() for t in marginal.parameters):
            refuse(name, "marginals with one parameter for all points", repr(marginal), "Use solver='sinkhorn'.")
        if torch.is_grad_enabled() and any(t.requires_grad for t in marginal.parameters):
            cure = "Detach it; gradients go to the points and the cost."
            refuse(name, "marginals whose parameters need no gradient", repr(marginal), cure)
        known = isinstance(marginal, KL | Exact | Free) if any(kinds) else marginal.prices(side) is not None
        if not known:
            expected = "KL with KL, Exact or Free, or marginals with piecewise linear penalties on both sides"
            refuse(name, expected, str(problem.marginals), "Use solver='sinkhorn' with an epsilon.")


def between(problem: Problem, a: Tensor, b: Tensor) -> Problem:
    """The balanced problem of points of given masses."""
    return problem if problem.balanced else Problem(problem.geometry, a, b)


def weighted(problem: Problem, a: Tensor, b: Tensor, log_x: Tensor, log_y: Tensor) -> Weighted:
    """The best plan between given clusters of points of given masses; those of an exact side are its own."""
    left, right = problem.marginals
    a, b = (problem.a if isinstance(left, Exact) else a), (problem.b if isinstance(right, Exact) else b)
    side_a, side_b = problem.sides_at(None)
    clusters = coupled(between(problem, a, b), log_x, log_y)
    return Weighted(a, b, clusters, float(left.penalty(a, side_a) + right.penalty(b, side_b)))


def offered(problem: Problem, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The masses of points whose clusters, of shares x (n, r) and y (m, r), move what is best for them as they are.

    Between clusters of all the mass there is, at their mean cost, that is a small problem with the same marginals.
    """
    assert isinstance(problem.geometry, PairGeometry)
    Q, R = problem.a.unsqueeze(-1) * x, problem.b.unsqueeze(-1) * y
    rows, cols = ((t.sum(0) > 0).nonzero().squeeze(-1) for t in (Q, R))
    Q, R = Q[:, rows], R[:, cols]
    left, right = problem.marginals
    mean = (Q / Q.sum(0)).mT @ problem.geometry.product(R / R.sum(0))
    weights = _pooled(left, problem.a, problem.a, Q), _pooled(right, problem.b, problem.b, R)
    T, _ = narrow_transport(mean, *weights, problem.marginals)
    return (Q / Q.sum(0)) @ T.sum(1), (R / R.sum(0)) @ T.sum(0)


def whole(problem: Problem, rank: int) -> Weighted:
    """The best plan of all, where the rank is no bound: a cluster for each column."""
    plan, _ = narrow_transport(problem.geometry.tile(), problem.a, problem.b, problem.marginals)
    a, b = plan.sum(1), plan.sum(0)
    n, m = problem.shape
    shares = torch.zeros(n, rank).to(plan)
    shares[:, :m] = torch.where(a.unsqueeze(-1) > 0, plan / positive(a).unsqueeze(-1), 1 / m)
    return weighted(problem, a, b, shares.log(), torch.eye(m, rank).to(plan).log())


def refitted(problem: Problem, s: Weighted) -> Weighted:
    """The best memberships and masses of one side for the clusters of the other, on both sides in turn, if they gain.

    For the laws v_l of the points in the clusters of y, a plan is W V^T with W (n, r): transport from points to
    clusters at their mean cost, C V, with the marginal of x as it is and that of y on clusters (`_pooled`). Neither
    turn raises the cost.
    """
    assert isinstance(problem.geometry, PairGeometry)
    found = _turned(problem, s.clusters.image, s.b, s.clusters.log_y, s.prices[1])
    if found is not None:
        (a, log_x), (b, log_y), g = found
        after = weighted(problem, a, b, log_x, log_y)
        s = (after if after.value < s.value else s)._replace(prices=(s.prices[0], g))
    image = problem.geometry.T.product(s.a.unsqueeze(-1) * s.clusters.log_x.exp() / positive(s.clusters.p))
    found = _turned(problem.T, image, s.a, s.clusters.log_x, s.prices[0])
    if found is not None:
        (b, log_y), (a, log_x), f = found
        after = weighted(problem, a, b, log_x, log_y)
        s = (after if after.value < s.value else s)._replace(prices=(f, s.prices[1]))
    return s


def hardened(problem: Problem, s: Weighted) -> Weighted:
    """Each point in the one cluster that it belongs to most, where that costs no more."""
    sharp = sharpened(between(problem, s.a, s.b), s.clusters)
    return s._replace(clusters=sharp) if sharp.value <= s.clusters.value else s


def _turned(
    problem: Problem, image: Tensor, b: Tensor, log_y: Tensor, prices: Tensor | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor] | None:
    """Masses and log memberships of x and of y after the turn of x, and the potentials of the clusters of y, if any.

    Points that move nothing are members of the cluster nearest to them.
    """
    R = b.unsqueeze(-1) * log_y.exp()
    cols = (R.sum(0) > 0).nonzero().squeeze(-1)
    if not len(cols):
        return None
    left, right = problem.marginals
    weights = _pooled(right, problem.b, b, R[:, cols])
    W = torch.zeros_like(image)
    before = None if prices is None else prices[cols]
    W[:, cols], found = narrow_transport(image[:, cols], problem.a, weights, (left, right), before)
    prices = torch.zeros_like(R[0]).index_put((cols,), found)
    nearest = torch.zeros_like(image)
    nearest[torch.arange(len(image), device=image.device), cols[image[:, cols].argmin(1)]] = 1
    p = W.sum(0)
    return _grown(W, p, nearest.log()), _grown(R, p, log_y), prices


def _grown(Q: Tensor, p: Tensor, log_x: Tensor) -> tuple[Tensor, Tensor]:
    """Masses and log memberships of points after clusters Q (n, r) were scaled to masses p; the old ones without."""
    Q = Q * (p / positive(Q.sum(0)))
    a = Q.sum(1)
    return a, torch.where(a.unsqueeze(-1) > 0, (Q / positive(a).unsqueeze(-1)).log(), log_x)


def _pooled(marginal: Marginal, weights: Tensor, mass: Tensor, Q: Tensor) -> Tensor:
    r"""The weights (r,) at which a marginal of the points is one of their clusters, but for a constant.

    Q (n, r) is how the masses that are moved now are divided among clusters, which may be scaled to masses p'. On
    clusters with these weights the marginal charges at least what it charges on points, and just that at the present
    p = Q^T 1; everywhere, where clusters share no points, for KL and for points that are all used alike. So what lowers
    the one lowers the other. For KL the weights are

        p_k exp(-sum_i Q_ik log(mass_i / weights_i) / p_k).

    A penalty with prices falls, and rises, at most as fast as the masses do: p_k itself will do, and more where all
    members have room.
    """
    p = Q.sum(0)
    if isinstance(marginal, Exact | Free):
        return p
    used = mass > 0
    if isinstance(marginal, KL):
        excess = torch.where(used, torch.where(used, mass / positive(weights), 1).log(), 0)
        return p * torch.exp(-(Q * excess.unsqueeze(-1)).sum(0) / p)
    room = torch.where(used, weights / torch.where(used, mass, 1), 1).unsqueeze(-1)
    members = Q / p > _MEMBER
    least, most = torch.where(members, room, torch.inf).amin(0), torch.where(members, room, 0).amax(0)
    if isinstance(marginal, TV):
        return p * torch.where(least >= 1, least, torch.where(most <= 1, most, 1))
    return p * least
