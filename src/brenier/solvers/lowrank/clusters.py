"""Soft clusters of points on both sides, and the best transport between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import refuse
from ...geometry import CostMatrix, Geometry, PointCloud
from ...geometry.base import PairGeometry
from ...kernels.simplex import network_simplex
from ...plan import FactoredPlan
from ...problem import Problem

__all__ = [
    "Clusters",
    "check_sides",
    "coupled",
    "descended",
    "features",
    "k_means",
    "positive",
    "sharpened",
    "softened",
]

_LEAST = -80.0  # log of the smallest membership: a cluster may come back from there
_STEP = 10.0  # how far memberships may move at first, in logs
_FASTER, _SLOWER, _TRIALS = 1.5, 0.5, 12
_FAINT = 1e-9  # of the largest mass of a point: those of less do not say how long steps are
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


def check_sides(name: str, problem: Problem, *, soft: bool = False) -> None:
    """Refuse what solvers cannot take that bound transport without epsilon from above, and give no gradient in a, b."""
    if problem.epsilon is not None:
        refuse(name, "epsilon=None", f"epsilon={problem.epsilon.tolist()}", "Use solver='sinkhorn'.")
    if not soft and not problem.balanced:
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
    image = problem.geometry.product(R / positive(q))
    mean = (Q / positive(p)).mT @ image
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


def positive(mass: Tensor) -> Tensor:
    """Masses, or the smallest number where there is none: what to divide by."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny)


def _shares(T: Tensor, reduced: Tensor) -> Tensor:
    """Where each row sends its mass; one without any, where it would send the first grain of it."""
    total = T.sum(-1, keepdim=True)
    cheapest = torch.nn.functional.one_hot(reduced.argmin(-1), T.shape[-1]).to(T)
    return torch.where(total > 0, T / positive(total), cheapest)


def descended(problem: Problem, c: Clusters, scale: float) -> tuple[Clusters, float]:
    """One step of mirror descent that does not raise the cost, if there is one, and the scale for the next."""
    assert isinstance(problem.geometry, PairGeometry)
    Q = problem.a.unsqueeze(-1) * c.log_x.exp()
    image = problem.geometry.T.product(Q / positive(c.p))
    gradients = (c.image - c.g) @ c.onward.mT, (image - c.f) @ c.back.mT
    slopes = [_slope(t, mass) for t, mass in zip(gradients, (problem.a, problem.b))]
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


def _slope(gradient: Tensor, mass: Tensor) -> Tensor:
    """The gradient of each point above its least entry; zero for points of next to no mass, however far they are."""
    slope = gradient - gradient.amin(-1, keepdim=True)
    return torch.where((mass > _FAINT * mass.max()).unsqueeze(-1), slope, 0)


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
        centres = torch.where((mass > 0).unsqueeze(-1), sums / positive(mass).unsqueeze(-1), centres)
    return label
