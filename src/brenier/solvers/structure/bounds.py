"""Lower bounds of Gromov-Wasserstein problems: what no plan can beat, whatever a local solver finds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...certificate import certify
from ...geometry import CostMatrix, PointCloud
from ...geometry.line import ordered, ordered_values
from ...plan import SparsePlan
from ...problem import Problem
from ...structure import Quadratic, along, matrices
from ..base import run
from ..exact.line import heights, staircase
from ..exact.monotone import Monotone
from .gradient import least

__all__ = ["Bound", "first_lower_bound", "lower_bound", "third_lower_bound"]

_BINS = 256  # of the distributions of distances, where they are not compared point by point
_EXACT = 1024  # points up to which they are
_THIRD = 4_000**2  # pairs up to which the third lower bound is computed unasked


class Bound(NamedTuple):
    """A proved lower bound, its name, and the plan it comes with, a good one to start from."""

    value: Tensor  # (*batch,)
    name: str
    plan: SparsePlan | None


def lower_bound(problem: Quadratic) -> Bound:
    """The best bound that the size of the problem allows; zero, where the marginals are not exact."""
    if not problem.balanced:
        most = torch.minimum(problem.a.detach().double().sum(-1), problem.b.detach().double().sum(-1))
        value = torch.zeros_like(most)
        if problem.alpha != 1:
            geometry = problem.geometry.detach().to(torch.float64)
            nearest = geometry.cmin(torch.zeros_like(problem.b, dtype=torch.float64))[0]
            value = (1 - problem.alpha) * nearest.amin(-1).clamp(max=0) * most
        return Bound(value, "the loss is not negative", None)
    n, m = problem.shape
    if n * m <= _THIRD:
        return third_lower_bound(problem)
    return first_lower_bound(problem)


def third_lower_bound(problem: Quadratic) -> Bound:
    r"""The linear problem between the points by their distributions of distances (TLB).

    .. math:: \min_P \sum_{ij} P_{ij} \bigl((1 - \alpha) M_{ij} + \alpha\, W_L(C_{i\cdot}, D_{j\cdot})\bigr)

    W_L is transport on the line, the part that point i to point j takes in the objective of any plan, at least. Where
    there are more than 1,024 distances, or masses that differ within a side, means of 256 parts of each distribution
    are compared, which by Jensen's inequality can only lower the bound. Square loss or KL, exact marginals; batches.

    O(n m (n + m)) time and O(n m + (n + m)^2) memory, and an exact linear problem.

    Source: Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching.
    """
    with torch.no_grad():
        problem = problem.detach()
        a, b = problem.a.double(), problem.b.double()
        mass = a.sum(-1)
        b = b * (mass / b.sum(-1)).unsqueeze(-1)
        u, v, share = _profiles(problem, a, b)
        if problem.loss == "square":
            root = share.sqrt().unsqueeze(-2)
            cost = torch.cdist(u * root, v * root).square()
        else:
            share = share.unsqueeze(-2)
            rows = ((torch.special.xlogy(u, u) - u) * share).sum(-1)
            cost = rows.unsqueeze(-1) + (v * share).sum(-1).unsqueeze(-2) - (u * share) @ v.log().mT
        cost = problem.alpha * along(mass, cost) * cost
        if problem.alpha != 1:
            cost = cost + (1 - problem.alpha) * problem.geometry.to(torch.float64).tile()
        linear = Problem(CostMatrix(cost), a, b)
        plan, f, g, _ = least(linear, linear.geometry, torch.zeros_like(a), torch.zeros_like(b))
        return Bound(certify(linear, plan, f, g).dual, "third lower bound", plan)


def first_lower_bound(problem: Quadratic) -> Bound:
    r"""Transport on the line between root mean square distances, the eccentricities (FLB).

    .. math:: \alpha\, \min_P \sum_{ij} P_{ij} (s_i - t_j)^2, \qquad s_i^2 = \sum_{i'} a_{i'} C_{ii'}^2

    Square loss, exact marginals; batches. Features add the cost of the nearest for each point. O(n log n) time on
    clouds with an inner-product cost, and O(n^2) otherwise.

    Source: Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching.
    """
    with torch.no_grad():
        problem = problem.detach()
        form = problem.form
        mass = form.a.sum(-1)
        half = form.independent()[1]
        s, t = ((r / mass.unsqueeze(-1)).clamp(min=0).sqrt().unsqueeze(-1) for r in (half.row, half.col))
        line = Problem(PointCloud(s, t), form.a, form.b)
        solution = run(line, Monotone())
        value = problem.alpha * mass * solution.certificate.dual
        if problem.alpha != 1:
            geometry = problem.geometry.to(torch.float64)
            nearest = geometry.cmin(torch.zeros_like(form.b))[0]
            value = value + (1 - problem.alpha) * (form.a * nearest).sum(-1)
        plan = solution.plan
        assert isinstance(plan, SparsePlan)
        return Bound(value, "first lower bound", plan)


def _profiles(problem: Quadratic, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The quantiles of the distances from each point, (*batch, n, k) and (*batch, m, k), and the share of each, (k,).

    Shares are (*batch, k) where the points that have mass have equal masses, whose quantiles fall together.
    """
    (C, D), (n, m) = matrices(problem), problem.shape
    if max(n, m) > _EXACT or not (_even(a) and _even(b)):
        u, v = (_quantiles(S, w / w.sum(-1, keepdim=True), _BINS) for S, w in ((C, a), (D, b)))
        return u, v, u.new_full((_BINS,), 1 / _BINS)
    u, v = _ordered(C, a), _ordered(D, b)
    full = bool((a > 0).all() & (b > 0).all())
    if n == m and full:
        return u, v, u.new_full((n,), 1 / n)
    ranks = (w.sort(-1, descending=True).values for w in (a, b))
    rows, cols, mass = staircase(*heights(*ranks))
    u, v = (t.gather(-1, k.unsqueeze(-2).expand(*t.shape[:-1], -1)) for t, k in ((u, rows), (v, cols)))
    return u, v, mass.clamp(min=0) / mass.sum(-1, keepdim=True)


def _even(weights: Tensor) -> bool:
    """Whether the points with mass of each item have equal masses."""
    largest = weights.amax(-1, keepdim=True)
    return bool(((weights == largest) | (weights == 0)).all())


def _ordered(values: Tensor, weights: Tensor) -> Tensor:
    """The entries of each row of (*batch, n, n) in order, those of points without mass as ones at the end."""
    dead = (weights == 0).unsqueeze(-2)
    values = values.expand(*weights.shape[:-1], *values.shape[-2:])
    if not bool(dead.any()):
        return ordered_values(values)
    last = ordered_values(values.masked_fill(dead, torch.inf))
    return last.masked_fill(torch.isinf(last), 1)


def _quantiles(values: Tensor, weights: Tensor, bins: int) -> Tensor:
    """Means of the quantile functions of rows on equal parts of [0, 1].

    Args:
        values: (*batch, n, k).
        weights: (*batch, k) of sum 1.
        bins: how many parts.

    Returns:
        (*batch, n, bins).
    """
    values = values.expand(*weights.shape[:-1], *values.shape[-2:])
    inorder, order = ordered(values)
    steps = weights.unsqueeze(-2).expand(values.shape).gather(-1, order)
    share = steps.cumsum(-1)
    whole = (steps * inorder).cumsum(-1)
    share, whole = (torch.cat([torch.zeros_like(t[..., :1]), t], -1) for t in (share / share[..., -1:], whole))
    cuts = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device)
    cuts = cuts.expand(*values.shape[:-1], -1).contiguous()
    index = (torch.searchsorted(share.contiguous(), cuts, right=True) - 1).clamp(max=values.shape[-1] - 1)
    at = whole.gather(-1, index) + (cuts - share.gather(-1, index)) * inorder.gather(-1, index)
    return at.diff(dim=-1) * bins
