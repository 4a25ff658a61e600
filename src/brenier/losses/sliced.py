"""Sliced transport: many directions, the line in each, and how sure the mean over them is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._inputs import check_finite, is_count, is_real
from ..costs import Arc
from ..errors import refuse
from ..geometry import PointCloud
from ..geometry.pointcloud import read_cloud
from ..marginals import Exact, Marginal
from ..solvers.barycentres.inputs import barycentre_weights, clouds_of, drawn
from ..solvers.exact.line import circle_cost, line_cost
from ..solvers.exact.partial import partial_line_cost

__all__ = [
    "Circular",
    "MaxSliced",
    "Polynomial",
    "SlicedEstimate",
    "chosen_directions",
    "energy_sliced_wasserstein",
    "max_sliced_wasserstein",
    "random_directions",
    "sliced_barycentre",
    "sliced_wasserstein",
    "spherical_sliced_wasserstein",
]

Projection = Callable[[Tensor, Tensor], Tensor]
"""Points (*batch, n, d) and parameters (k, q) to positions on k lines, (*batch, k, n)."""

_ENTRIES = 2**24  # positions on lines that are held at once
_REPLICATES = 16  # independent groups of directions at least, where there are enough


@dataclass(frozen=True)
class SlicedEstimate:
    """A mean of W_p^p, or of a partial or unbalanced cost, over random directions, and how sure it is.

    Attributes:
        value: the estimate, (*batch,); differentiable.
        standard_error: of the value, (*batch,); NaN where a single group of directions leaves nothing to compare.
        per_direction: the cost in each direction, (*batch, k).
        directions: (k, q), what the projection takes.
        replicates: independent groups of directions whose means were compared.
        p: the power.
    """

    value: Tensor
    standard_error: Tensor
    per_direction: Tensor
    directions: Tensor
    replicates: int
    p: float

    @property
    def distance(self) -> Tensor:
        """The p-th root of the value, in units of the points."""
        return self.value.clamp(min=0).pow(1 / self.p)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends of a confidence interval for the mean over all directions, by Student's t over the groups.

        Raises:
            InvalidInput: a level that is not between 0 and 1.
        """
        if not (is_real(level) and 0 < level < 1):
            refuse("level", "a number between 0 and 1", repr(level))
        reach = float(stdtrit(max(1, self.replicates - 1), (1 + level) / 2)) * self.standard_error
        value = self.value.detach()
        low = value - reach
        return torch.where((self.per_direction < 0).any(-1), low, low.clamp(min=0)), value + reach


# -- directions and projections ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Polynomial:
    """Projections by homogeneous polynomials of odd degree: <theta, all monomials of x of that degree>.

    Source: Kolouri et al. (2019), Generalized sliced Wasserstein distances.
    """

    degree: int = 3

    def __post_init__(self) -> None:
        if not is_count(self.degree) or self.degree % 2 == 0:
            refuse("Polynomial degree", "an odd positive integer", repr(self.degree))

    def size(self, d: int) -> int:
        """How many parameters a projection of points of dimension d has."""
        return math.comb(d + self.degree - 1, self.degree)

    def __call__(self, x: Tensor, directions: Tensor) -> Tensor:
        index = torch.tensor(list(combinations_with_replacement(range(x.shape[-1]), self.degree)), device=x.device)
        return directions @ x[..., index].prod(-1).mT


@dataclass(frozen=True)
class Circular:
    """Projections by distance from a point on the sphere of a radius: ||x - radius theta||.

    Source: Kolouri et al. (2019), Generalized sliced Wasserstein distances.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        if not (is_real(self.radius) and 0 < self.radius < math.inf):
            refuse("Circular radius", "a positive finite number", repr(self.radius))

    def __call__(self, x: Tensor, directions: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x.unsqueeze(-3) - self.radius * directions[:, None, :], dim=-1)


def _linear(x: Tensor, directions: Tensor) -> Tensor:
    return directions @ x.mT


def random_directions(
    count: int,
    d: int,
    *,
    sampler: str = "orthogonal",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """Draw unit vectors in independent groups, each vector uniform on the sphere.

    Args:
        count: how many, at least; rounded up to whole groups.
        d: dimension.
        sampler: "gaussian": each by itself. "orthogonal": orthonormal within a group, of up to d, at least 16 groups
            from 16 vectors on. "quasi": 16 independently randomised sets, each evenly spread: equal angles for d = 2,
            scrambled Sobol points otherwise.
        generator: of random numbers, on the CPU.
        dtype, device: of the result.

    Returns:
        Directions (k, d), group by group, and the number of groups.

    Raises:
        InvalidInput: an unknown sampler, a count that is not positive.

    Example:
        >>> import torch
        >>> directions, groups = random_directions(64, 3, generator=torch.Generator().manual_seed(0))
        >>> directions.shape, groups
        (torch.Size([66, 3]), 22)

    Source: Rowland et al. (2019), Orthogonal estimation of Wasserstein distances; Nguyen, Bariletto & Ho (2024),
    Quasi-Monte Carlo for 3D sliced Wasserstein; Owen (1997), scrambled net variance (replicates).
    """
    for name, value in (("directions", count), ("d", d)):
        if not is_count(value):
            refuse(name, "a positive integer", repr(value))
    if sampler not in ("orthogonal", "gaussian", "quasi"):
        refuse("sampler", "'orthogonal', 'gaussian' or 'quasi'", repr(sampler))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = 1
    if sampler == "orthogonal":
        size = min(d, max(1, count // _REPLICATES))
    elif sampler == "quasi":
        size = max(1, -(-count // _REPLICATES))
    groups = -(-count // size)
    if sampler != "quasi":
        out, r = torch.linalg.qr(normal(groups, d, size))
        out = (out * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT  # else not uniform
    elif d == 2:
        start = torch.rand(groups, 1, generator=generator, dtype=torch.float64)
        angle = math.pi * (torch.arange(size) + start) / size  # opposite directions are one
        out = torch.stack([angle.cos(), angle.sin()], -1)
    else:
        seeds = torch.randint(2**31 - 1, (groups,), generator=generator).tolist()
        engines = (torch.quasirandom.SobolEngine(d, scramble=True, seed=seed) for seed in seeds)
        points = torch.stack([e.draw(size, dtype=torch.float64) for e in engines])
        out = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12))
        out = out / torch.linalg.vector_norm(out, dim=-1, keepdim=True)
    return out.reshape(-1, d).to(dtype=dtype, device=device), groups


# -- values ------------------------------------------------------------------------------------------------------


def sliced_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    p: float = 2.0,
    marginals: Marginal | tuple[Marginal, Marginal] = Exact(),
    directions: int | Tensor = 128,
    sampler: str = "orthogonal",
    projection: Projection | None = None,
    generator: torch.Generator | None = None,
) -> SlicedEstimate:
    r"""Estimate the sliced transport cost, with its standard error.

    .. math:: \mathrm{SW}_p^p = \mathbb E_\theta\, W_p^p(\theta_\# \mu, \theta_\# \nu), \qquad
        \theta \text{ uniform on the sphere}

    Differentiable in points, masses and directions. `value` is the mean of W_p^p; `distance` is its root.

    With other `marginals` than exact ones only a part of the mass moves in each direction, or what is too dear to move
    stays and pays: sliced partial and sliced unbalanced transport. Each direction leaves its own points behind. Then
    all points have one mass, and there are no gradients in masses.

    Args:
        x, y: point clouds; batch axes broadcast.
        a, b: masses of equal totals; uniform with total 1 when None.
        p: at least 1.
        marginals: `Partial(mass)`, `TV(rho)`, `Slack(delta)`, or a pair of them, in every direction; see
            `partial_line_cost`. For n != m give ones as a and b.
        directions: how many, rounded up to whole groups; or your own, (k, q), taken for independent draws.
        sampler: see `random_directions`.
        projection: to lines by other means than <theta, x>: `Polynomial`, `Circular`, or any function of points
            (*batch, n, d) and directions (k, q) with values (*batch, k, n), a network among them; for q other than d
            give the directions.
        generator: of the directions.

    Raises:
        InvalidInput: clouds that do not fit together, p < 1, unequal totals, masses that differ beside marginals that
            are not exact, an unknown sampler.

    Complexity: O(k ((n + m) d + (n + m) log(n + m))) time (for other marginals see `PartialMonotone`); at most some
    2^24 positions are held at once, also for a backward pass, which computes the others again.

    Example:
        >>> import torch, brenier
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> shift = torch.tensor([3.0, 0.0, 0.0])
        >>> generator = torch.Generator().manual_seed(1)
        >>> estimate = sliced_wasserstein(x, x + shift, sampler="gaussian", generator=generator)
        >>> low, high = estimate.interval()
        >>> bool(low < 3.0) and bool(3.0 < high)  # |shift|^2 / d
        True
        >>> y = torch.cat([x[:400], x[400:] + 50.0])  # a fifth are outliers
        >>> float(sliced_wasserstein(x, y, marginals=brenier.Partial(0.8), generator=generator).value) < 1e-12
        True

    Source: Rabin et al. (2011), Wasserstein barycenter and its application to texture mixing; Bonneel et al. (2015),
    Sliced and Radon Wasserstein barycenters of measures; Kolouri et al. (2019); Bai, Schmitzer, Thorpe & Kolouri
    (2023), Sliced optimal partial transport.
    """
    x, y = _clouds(x, y)
    project = _linear if projection is None else projection
    pair = marginals if isinstance(marginals, tuple) else (marginals, marginals)
    balanced = len(pair) == 2 and all(isinstance(marginal, Exact) for marginal in pair)
    d = x.shape[-1]
    size = projection.size(d) if isinstance(projection, Polynomial) else d
    if isinstance(directions, Tensor) and not isinstance(projection, Polynomial | Circular | None):
        size = directions.shape[-1]  # what it takes is for the function to say
    theta, groups = chosen_directions(directions, size, sampler, generator, x)

    def on_line(u: Tensor, v: Tensor, a: Any, b: Any) -> Tensor:
        if balanced:
            return line_cost(u, v, a, b, cost=p)
        return partial_line_cost(u, v, a, b, cost=p, marginals=marginals)

    values = _per_direction(x, y, a, b, theta, project, on_line)
    return _estimate(values, theta, groups, p)


def spherical_sliced_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    p: float = 2.0,
    circles: int = 128,
    generator: torch.Generator | None = None,
) -> SlicedEstimate:
    r"""Estimate the spherical sliced transport cost, in radians to the power p.

    .. math:: \mathrm{SSW}_p^p = \mathbb E_U\, W_p^p(P^U_\# \mu, P^U_\# \nu), \qquad
        P^U(x) = U^\top x / \lVert U^\top x\rVert,

    over planes U uniform on the Stiefel manifold; the cost on each great circle is the arc to the power p.

    Args:
        x, y: points on the unit sphere, d >= 2; they are not normalised again, as only directions matter.
        a, b: masses of equal totals; uniform with total 1 when None.
        p: at least 1.
        circles: how many great circles.
        generator: of the circles.

    Raises:
        InvalidInput: clouds that do not fit together, d < 2, p < 1, unequal totals.

    Complexity: as `circle_cost`, for each circle.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> float(spherical_sliced_wasserstein(x, x).value)
        0.0

    Source: Bonet et al. (2023), Spherical sliced-Wasserstein.
    """
    x, y = _clouds(x, y)
    d = x.shape[-1]
    if d < 2:
        refuse("x", "points on a sphere, d >= 2", f"d = {d}")
    if not is_count(circles):
        refuse("circles", "a positive integer", repr(circles))
    cost = Arc(power=p)
    planes, _ = torch.linalg.qr(torch.randn(circles, d, 2, generator=generator, dtype=torch.float64))
    planes = planes.mT.reshape(circles, 2 * d).to(x)

    def angles(points: Tensor, planes: Tensor) -> Tensor:
        u, v = planes.unflatten(-1, (2, d)).unbind(-2)
        return torch.atan2(v @ points.mT, u @ points.mT)

    values = _per_direction(x, y, a, b, planes, angles, lambda u, v, a, b: circle_cost(u, v, a, b, cost=cost))
    return _estimate(values, planes, circles, p)


def energy_sliced_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    p: float = 2.0,
    directions: int | Tensor = 128,
    sampler: str = "orthogonal",
    generator: torch.Generator | None = None,
) -> SlicedEstimate:
    r"""Estimate the sliced transport cost over directions that are drawn the likelier, the more they tell apart.

    .. math:: \mathbb E_{\theta \sim q}\, W_p^p(\theta_\#\mu, \theta_\#\nu), \qquad
        q(\theta) \propto \exp W_p^p(\theta_\#\mu, \theta_\#\nu),

    by importance sampling from the sphere with weights that are normalised, so with a bias of order 1/k. Between the
    sliced and the max-sliced cost. Arguments and errors as `sliced_wasserstein`. The exponent has units: scale the
    points so that costs are near one.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> y = x + torch.tensor([1.0, 0.0, 0.0])
        >>> theta, _ = random_directions(64, 3, dtype=x.dtype)
        >>> plain = sliced_wasserstein(x, y, directions=theta)
        >>> bool(energy_sliced_wasserstein(x, y, directions=theta).value > plain.value)
        True

    Source: Nguyen & Ho (2023), Energy-based sliced Wasserstein distance.
    """
    plain = sliced_wasserstein(x, y, a, b, p=p, directions=directions, sampler=sampler, generator=generator)
    values = plain.per_direction
    share = torch.softmax(values, -1)
    value = (share * values).sum(-1)
    with torch.no_grad():  # the ratio of two means, to first order
        parts = (share * (values - value.unsqueeze(-1))).unflatten(-1, (plain.replicates, -1)).sum(-1)
        r = plain.replicates
        error = (parts.square().sum(-1) * r / (r - 1)).sqrt() if r > 1 else torch.full_like(value, torch.nan)
    return SlicedEstimate(value, error, values, plain.directions, r, p)


@dataclass(frozen=True)
class MaxSliced:
    """The largest W_p^p over directions that was found, (*batch,), and its direction (*batch, d)."""

    value: Tensor
    direction: Tensor


def max_sliced_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    p: float = 2.0,
    starts: int = 16,
    max_iter: int = 50,
    generator: torch.Generator | None = None,
) -> MaxSliced:
    r"""Climb to a direction in which two clouds differ most.

    .. math:: \max_{\lVert\theta\rVert = 1} W_p^p(\theta_\# \mu, \theta_\# \nu)

    Ascent on the sphere from several starts at once: a step along the gradient is taken where it rises, and halved
    where not. The problem is not concave: the value is that of the direction found, a lower bound of the maximum and,
    for the cost ||x - y||^p, of W_p^p. Differentiable in points and masses, with the direction held fixed.

    Args:
        x, y, a, b, p: as `sliced_wasserstein`.
        starts: random directions to start from, beside the difference of the means.
        max_iter: steps.
        generator: of the starts.

    Complexity: (starts + 1) max_iter times the line, with gradients.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = max_sliced_wasserstein(x, x + torch.tensor([0.0, 2.0, 0.0]))
        >>> round(float(found.value), 6)  # |shift|^2
        4.0

    Source: Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs.
    """
    x, y = _clouds(x, y)
    for name, count in (("starts", starts), ("max_iter", max_iter)):
        if not is_count(count):
            refuse(name, "a positive integer", repr(count))
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    fixed = [t if t is None else torch.as_tensor(t).detach() for t in (x, y, a, b)]
    u, v, c, d = fixed
    c, d = (t if t is None else t.unsqueeze(-2) for t in (c, d))
    assert u is not None
    assert v is not None

    def at(theta: Tensor) -> Tensor:
        return line_cost(theta @ u.mT, theta @ v.mT, c, d, cost=p)

    with torch.enable_grad():
        theta, _ = random_directions(starts, x.shape[-1], sampler="gaussian", generator=generator)
        mean = (u.mean(-2) - v.mean(-2)).unsqueeze(-2)
        theta = torch.cat([_unit(mean.expand(*batch, 1, -1)), theta.to(u).expand(*batch, -1, -1)], -2)
        step = theta.new_ones((*theta.shape[:-1], 1))
        value, slope = _climb(at, theta)
        for _ in range(max_iter):
            size = torch.linalg.vector_norm(slope, dim=-1, keepdim=True)
            trial = _unit(theta + step * slope / torch.where(size > 0, size, 1))
            new, new_slope = _climb(at, trial)
            up = (new > value).unsqueeze(-1)
            theta, slope = torch.where(up, trial, theta), torch.where(up, new_slope, slope)
            value = torch.maximum(new, value)
            step = torch.where(up, 2 * step, step / 4)
    best = value.argmax(-1)
    direction = theta.gather(-2, best[..., None, None].expand(*best.shape, 1, theta.shape[-1]))
    c, d = (t if t is None else torch.as_tensor(t).unsqueeze(-2) for t in (a, b))
    out = line_cost(direction @ x.mT, direction @ y.mT, c, d, cost=p)
    return MaxSliced(out.squeeze(-1), direction.squeeze(-2))


def _climb(at: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and gradients along the sphere."""
    theta = theta.detach().requires_grad_()
    value = at(theta)
    (slope,) = torch.autograd.grad(value.sum(), theta)
    theta = theta.detach()
    return value.detach(), slope - (slope * theta).sum(-1, keepdim=True) * theta


def _unit(t: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    first = torch.zeros_like(t)
    first[..., 0] = 1
    return torch.where(size > 0, t / torch.where(size > 0, size, 1), first)


# -- barycentres -------------------------------------------------------------------------------------------------


def sliced_barycentre(
    clouds: list[Any],  # each (m_k, d)
    weights: Any = None,  # (len(clouds),)
    *,
    n: int | None = None,
    start: Any = None,  # (n, d)
    directions: int = 64,
    max_iter: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:  # (n, d)
    r"""Points that are nearest to several clouds, by stochastic descent with fresh directions in every step.

    .. math:: \min_x \sum_k w_k\, \mathrm{SW}_2^2(x, y_k)

    A step moves each point by d/2 times the mean gradient: for a single cloud and as many orthogonal directions as
    dimensions this is the move to its targets. Steps shrink as 1 / sqrt(t) over the second half.

    Args:
        clouds: at least one, of any sizes.
        weights: nonnegative, of total 1; equal when None.
        n: points of the barycentre; those of the first cloud when None.
        start: where to begin; by default points drawn from all clouds.
        directions: in each step.
        max_iter: steps.
        generator: of start and directions.

    Raises:
        InvalidInput: no cloud, clouds of different dimensions, weights that do not fit.

    Complexity: max_iter times `sliced_wasserstein` to each cloud, with gradients.

    Example:
        >>> import torch
        >>> y = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> middle = sliced_barycentre([y, y + 2], generator=torch.Generator().manual_seed(1))
        >>> bool((middle.mean(0) - (y.mean(0) + 1)).norm() < 1e-2)
        True

    Source: Rabin et al. (2011), Wasserstein barycenter and its application to texture mixing; Bonneel et al. (2015).
    """
    ys = clouds_of(clouds, "clouds")
    d = ys[0].shape[-1]
    w = barycentre_weights(weights, len(ys), ys[0].double()).tolist()
    if start is None:
        x = drawn(ys, n or len(ys[0]), generator)
    else:
        x = read_cloud(start, "start").detach().to(ys[0]).clone()
    for t in range(max_iter):
        theta, _ = random_directions(directions, d, generator=generator, dtype=x.dtype)
        x.requires_grad_()
        with torch.enable_grad():
            loss = sum(share * sliced_wasserstein(x, y, directions=theta).value for share, y in zip(w, ys))
            (gradient,) = torch.autograd.grad(loss, x)
        rate = min(1.0, (max_iter / 2 / (t + 1)) ** 0.5)
        x = x.detach() - rate * d / 2 * len(x) * gradient
    return x


# -- parts -------------------------------------------------------------------------------------------------------


def _clouds(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    cloud = PointCloud(x, y)  # reads and checks
    return cloud.x, cloud.y


def chosen_directions(
    directions: Any, size: int, sampler: str, generator: torch.Generator | None, like: Tensor
) -> tuple[Tensor, int]:
    """Those that were given, or so many, and the number of independent groups."""
    if isinstance(directions, Tensor):
        if directions.dim() != 2 or directions.shape[1] != size or not len(directions):
            refuse("directions", f"a number or a tensor (k, {size})", f"shape {tuple(directions.shape)}")
        check_finite(directions, "directions", "finite numbers")
        return directions.to(like), len(directions)
    return random_directions(
        directions, size, sampler=sampler, generator=generator, dtype=like.dtype, device=like.device
    )


def _per_direction(
    x: Tensor, y: Tensor, a: Any, b: Any, theta: Tensor, project: Projection, on_line: Callable[..., Tensor]
) -> Tensor:  # (*batch, k)
    """The cost in each direction, some directions at a time."""
    a, b = (t if t is None else torch.as_tensor(t).unsqueeze(-2) for t in (a, b))
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    chunk = max(1, _ENTRIES // (max(1, batch.numel()) * (x.shape[-2] + y.shape[-2])))

    def some(theta: Tensor) -> Tensor:
        return on_line(project(x, theta), project(y, theta), a, b)

    parts = theta.split(chunk)
    if len(parts) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(some, part, use_reentrant=False, preserve_rng_state=False) for part in parts], -1)
    return torch.cat([some(part) for part in parts], -1)


def _estimate(values: Tensor, theta: Tensor, groups: int, p: float) -> SlicedEstimate:
    with torch.no_grad():
        means = values.unflatten(-1, (groups, -1)).mean(-1)
        error = means.std(-1) / groups**0.5 if groups > 1 else torch.full_like(means[..., 0], torch.nan)
    return SlicedEstimate(values.mean(-1), error, values, theta, groups, p)
