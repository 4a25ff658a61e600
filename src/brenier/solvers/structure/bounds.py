"""Lower bounds of Gromov-Wasserstein problems: what no plan can beat, whatever a local solver finds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...certificate import certify
from ...geometry import CostMatrix, PointCloud
from ...plan import SparsePlan
from ...problem import Problem
from ...structure import Form, Quadratic
from ..base import run
from ..exact.monotone import Monotone
from .gradient import least

__all__ = ["Bound", "first_lower_bound", "lower_bound", "third_lower_bound"]

_BINS = 256  # of the distributions of distances, where they are not compared point by point
_EXACT = 1024  # points up to which they are
_THIRD = 4_000**2  # pairs up to which the third lower bound is computed unasked


class Bound(NamedTuple):
    """A proved lower bound, its name, and the plan it comes with, a good one to start from."""

    value: float
    name: str
    plan: SparsePlan | None


def lower_bound(problem: Quadratic) -> Bound:
    """The best bound that the size of the problem allows; zero, where the marginals are not exact."""
    if not problem.balanced:
        least_feature = 0.0
        if problem.alpha != 1:
            geometry = problem.geometry.detach().to(torch.float64)
            least_feature = min(0.0, float(geometry.cmin(geometry.tensors[0].new_zeros(problem.shape[1]))[0].min()))
            least_feature *= float(torch.minimum(problem.a.sum(), problem.b.sum()))
        return Bound((1 - problem.alpha) * least_feature, "the loss is not negative", None)
    n, m = problem.shape
    if n * m <= _THIRD:
        return third_lower_bound(problem)
    return first_lower_bound(problem)


def third_lower_bound(problem: Quadratic) -> Bound:
    r"""The linear problem between the points by their distributions of distances (TLB).

    .. math:: \min_P \sum_{ij} P_{ij} \bigl((1 - \alpha) M_{ij} + \alpha\, W_L(C_{i\cdot}, D_{j\cdot})\bigr)

    W_L is transport on the line, the part that point i to point j takes in the objective of any plan, at least. Where
    there are too many distances, or masses that differ, means of 256 parts of each distribution are compared, which by
    Jensen's inequality can only lower the bound. Square loss or KL, exact marginals.

    O(n m (n + m)) time and O(n m + (n + m) n) memory, and an exact linear problem.

    Source: Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching.
    """
    with torch.no_grad():
        problem = problem.detach()
        n, m = problem.shape
        a, b = problem.a.double(), problem.b.double()
        mass = a.sum()
        b = b * (mass / b.sum())
        even = n == m and n <= _EXACT and bool((a == a[0]).all()) and bool((b == b[0]).all())
        bins = n if even else _BINS
        u, v = (
            _quantiles(side.to(torch.float64).tile(), w / mass, bins) for side, w in ((problem.x, a), (problem.y, b))
        )
        if problem.loss == "square":
            cost = torch.cdist(u, v).square() / bins
        else:
            rows = (torch.special.xlogy(u, u) - u).mean(1)
            cost = rows.unsqueeze(1) + v.mean(1) - u @ v.log().mT / bins
        cost = problem.alpha * mass * cost
        if problem.alpha != 1:
            cost = cost + (1 - problem.alpha) * problem.geometry.to(torch.float64).tile()
        linear = Problem(CostMatrix(cost), a, b)
        plan, f, g = least(linear, linear.geometry, torch.zeros_like(a), torch.zeros_like(b))
        return Bound(float(certify(linear, plan, f, g).dual), "third lower bound", plan)


def first_lower_bound(problem: Quadratic) -> Bound:
    r"""Transport on the line between root mean square distances, the eccentricities (FLB).

    .. math:: \alpha\, \min_P \sum_{ij} P_{ij} (s_i - t_j)^2, \qquad s_i^2 = \sum_{i'} a_{i'} C_{ii'}^2

    Square loss, exact marginals. Features add the cost of the nearest for each point. O(n log n) time on clouds with an
    inner-product cost, and O(n^2) otherwise.

    Source: Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching.
    """
    with torch.no_grad():
        problem = problem.detach()
        form = Form(problem)
        mass = form.a.sum()
        half = form.half(form.product(form.a, form.b))
        s, t = ((r / mass).clamp(min=0).sqrt().unsqueeze(1) for r in (half.row, half.col))
        line = Problem(PointCloud(s, t), form.a, form.b)
        solution = run(line, Monotone())
        value = problem.alpha * float(mass) * float(solution.certificate.dual)
        if problem.alpha != 1:
            geometry = problem.geometry.to(torch.float64)
            nearest = geometry.cmin(torch.zeros_like(form.b))[0]
            value += (1 - problem.alpha) * float((form.a * nearest).sum())
        plan = solution.plan
        assert isinstance(plan, SparsePlan)
        return Bound(value, "first lower bound", plan)


def _quantiles(values: Tensor, weights: Tensor, bins: int) -> Tensor:
    """Means of the quantile functions of rows (n, k) with weights (k,) of sum 1 on equal parts of [0, 1]: (n, bins)."""
    ordered, order = values.sort(1)
    if bins == values.shape[1] and bool((weights == weights[0]).all()):
        return ordered
    steps = weights[order]
    share = steps.cumsum(1)
    whole = (steps * ordered).cumsum(1)
    share, whole = (torch.cat([torch.zeros_like(t[:, :1]), t], 1) for t in (share / share[:, -1:], whole))
    cuts = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device).expand(len(values), -1).contiguous()
    index = (torch.searchsorted(share.contiguous(), cuts, right=True) - 1).clamp(max=values.shape[1] - 1)
    at = whole.gather(1, index) + (cuts - share.gather(1, index)) * ordered.gather(1, index)
    return at.diff(dim=1) * bins
