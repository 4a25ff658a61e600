"""Transport between two Gaussians under ||x - y||^2: exact, entropic, debiased and unbalanced, by formulas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..._inputs import float_tensor, is_real, same_place
from ...errors import refuse
from ...geometry.pointcloud import read_cloud
from .gaussian import DENSE_LIMIT, Gaussian, Shared, shared
from .matrices import overlap, overlap_of_factors, plan_matrix, root

__all__ = ["GaussianPlan", "gaussian_cost", "gaussian_geodesic", "gaussian_transport"]


def gaussian_cost(p: Gaussian, q: Gaussian, *, epsilon: Any = None, debiased: bool = False) -> Tensor:
    r"""The transport cost between Gaussians under ||x - y||^2, (*batch,), by its formula.

    .. math:: W_2^2 = \lVert m - n\rVert^2 + \operatorname{tr} S + \operatorname{tr} T
        - 2 \operatorname{tr}(S^{1/2} T S^{1/2})^{1/2}

    and with an epsilon min <P, C> + eps KL(P | p ⊗ q), where 2 sqrt(t) becomes d - e - e log((d + e) / 2e) with
    e = eps / 2 and d = sqrt(4 t + e^2), for each eigenvalue t of S T. Debiased it is
    OT(p, q) - OT(p, p) / 2 - OT(q, q) / 2, a divergence that is zero for p = q.

    Differentiable in means, covariances, factors, diagonals and epsilon, once; at equal arguments the gradient is zero,
    and where a covariance has not full rank it is that of least norm.

    Args:
        p, q: Gaussians of one dimension; batch axes broadcast.
        epsilon: in cost units, a positive number or (*batch,); None is exact transport, W_2^2.
        debiased: with an epsilon only.

    Raises:
        InvalidInput: Gaussians that do not fit together, an epsilon that is not positive, debiased without one; two
            low-rank forms beyond 4096 dimensions of which a diagonal is neither zero, nor constant, nor positive.

    Complexity: O(d^3); for low-rank forms with one number on the diagonal O(d r^2), and with positive diagonals some
    300 times that, without a d x d matrix. All are exact to rounding.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, gaussian_cost
        >>> p, q = Gaussian(torch.zeros(1), torch.eye(1)), Gaussian(torch.ones(1), torch.eye(1))
        >>> float(gaussian_cost(p, q)), round(float(gaussian_cost(p, q, epsilon=1e6)), 3)  # 1 + 1 + 1 of p ⊗ q
        (1.0, 3.0)

    Source: Dowson & Landau (1982), The Fréchet distance between multivariate normal distributions; Janati, Muzellec,
    Peyré & Cuturi (2020), Entropic optimal transport between unbalanced Gaussian measures has a closed form.
    """
    p, q, e = _read(p, q, epsilon)
    dtype, p, q = p.dtype, p.to(torch.float64), q.to(torch.float64)
    if debiased and epsilon is None:
        refuse("debiased", "an epsilon beside it", "None", "Without one, nothing is biased.")
    apart = (p.mean - q.mean).square().sum(-1)
    if debiased:
        alone = (_overlap(p, p, e) + _overlap(q, q, e)) / 2
        return (apart + (alone - _overlap(p, q, e)).clamp(min=0)).to(dtype)
    return (apart + (p.trace() + q.trace() - _overlap(p, q, e)).clamp(min=0)).to(dtype)


@dataclass(frozen=True)
class GaussianPlan:
    """An optimal plan between Gaussians, itself a Gaussian times its mass; exact by formula.

    Attributes:
        value: what was minimised, (*batch,).
        linear_value: <P, C>, (*batch,).
        mass: of the plan, (*batch,).
        source, target: the marginals of the plan; p and q themselves, unless they may be missed.
        epsilon, rho: of the problem.
    """

    value: Tensor
    linear_value: Tensor
    mass: Tensor
    source: Gaussian
    target: Gaussian
    epsilon: Tensor | None
    rho: Tensor | None
    _parts: Shared
    _core: Tensor  # of the matrix A of the conditional mean
    _rest: Tensor

    def map(self, x: Any) -> Tensor:
        """Send points (*batch, k, d) to the mean of where their mass goes: n + A (x - m).

        At epsilon None this is the optimal map, where the covariance of the source has full rank.
        """
        points = read_cloud(x, "x").to(self.source.mean)
        if points.shape[-1] != self.source.d:
            refuse("x", f"points of dimension {self.source.d}", f"dimension {points.shape[-1]}")
        centred = points - self.source.mean.unsqueeze(-2)
        return self.target.mean.unsqueeze(-2) + self._parts.spread(self._core, self._rest, centred.mT).mT

    @property
    def matrix(self) -> Tensor:
        """A, (*batch, d, d): up to 4096 dimensions."""
        if self._parts.basis is None:
            return self._core
        if self.source.d > DENSE_LIMIT:
            refuse("matrix", f"at most {DENSE_LIMIT} dimensions", f"d = {self.source.d}", "Use map(x).")
        return self._parts.spread(self._core, self._rest, torch.eye(self.source.d).to(self._core))

    @property
    def cross_covariance(self) -> Tensor:
        """Cov(x, y) under the plan, (*batch, d, d): up to 4096 dimensions."""
        return self.source.covariance @ self.matrix.mT


def gaussian_transport(
    p: Gaussian, q: Gaussian, *, epsilon: Any = None, rho: Any = None, masses: Any = (1.0, 1.0)
) -> GaussianPlan:
    r"""The optimal plan between two Gaussians under ||x - y||^2, with its map and its value.

    Minimises  <P, C> + eps KL(P | p ⊗ q),  with P1 = p and P^T 1 = q, or, with a rho,
    + rho KL(P1 | p) + rho KL(P^T 1 | q) instead of these. The plan is Gaussian in every case.

    Args:
        p, q: Gaussians of one dimension; batch axes broadcast.
        epsilon: in cost units; None is exact transport.
        rho: the price of violated marginals, in cost units, for both sides; needs an epsilon.
        masses: with a rho, those of p and q, each a number or (*batch,).

    Raises:
        InvalidInput: Gaussians that do not fit together, numbers that are not positive, a rho without epsilon, low-rank
            forms beyond 4096 dimensions with a rho or a diagonal that varies.

    Complexity: O(d^3), or O(d r^2) for low-rank forms with one number on the diagonal.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, gaussian_transport
        >>> p, q = Gaussian(torch.zeros(1), torch.eye(1)), Gaussian(torch.ones(1), 4 * torch.eye(1))
        >>> gaussian_transport(p, q).map(torch.tensor([[2.0]])).tolist()
        [[5.0]]
        >>> soft = gaussian_transport(p, q, epsilon=0.1, rho=1.0)
        >>> bool(soft.mass < 1) and bool(soft.source.mean > 0)
        True

    Source: Janati, Muzellec, Peyré & Cuturi (2020), Entropic optimal transport between unbalanced Gaussian measures has
    a closed form.
    """
    source, target, e = _read(p, q, epsilon)
    dtype, p, q = source.dtype, source.to(torch.float64), target.to(torch.float64)
    if rho is not None:
        if epsilon is None:
            refuse("rho", "an epsilon beside it", "none", "Give a small one.")
        plan = _unbalanced(p, q, 2 * e, _positive(rho, "rho", p), [_positive(m, "masses", p) for m in masses])
        return _cast(plan, dtype)
    parts = shared(p, q)
    S, T = parts.cores
    core = plan_matrix(S, T, e)
    # outside of the basis the covariances are multiples of the identity
    rest = plan_matrix(parts.rest[0][..., None, None], parts.rest[1][..., None, None], e)[..., 0, 0]
    apart = (p.mean - q.mean).square().sum(-1)
    cross = (S * core).sum((-2, -1)) + parts.missing * parts.rest[0] * rest
    linear = apart + (p.trace() + q.trace() - 2 * cross).clamp(min=0)
    value = gaussian_cost(p, q, epsilon=epsilon)
    eps = None if epsilon is None else 2 * e
    return _cast(
        GaussianPlan(value, linear, torch.ones_like(value), source, target, eps, None, parts, core, rest), dtype
    )


def gaussian_geodesic(p: Gaussian, q: Gaussian, t: Any) -> Gaussian:
    r"""The Gaussian at time t on the shortest path from p to q: the law of (1 - t) x + t y under the optimal plan.

    .. math:: m_t = (1 - t) m + t n, \qquad S_t = (1 - t)^2 S + t^2 T + t (1 - t)(S A + A S)

    Right for covariances of any rank.

    Args:
        p, q: Gaussians of one dimension; batch axes broadcast.
        t: in [0, 1], a number or (*batch,).

    Raises:
        InvalidInput: a t outside of [0, 1]; low-rank forms with a diagonal beyond 4096 dimensions.

    Complexity: O(d^3), or O(d r^2) for low-rank forms without a diagonal, whose paths keep the form.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, gaussian_geodesic
        >>> p, q = Gaussian(torch.zeros(1), torch.eye(1)), Gaussian(torch.ones(1), 9 * torch.eye(1))
        >>> middle = gaussian_geodesic(p, q, 0.5)
        >>> middle.mean.tolist(), middle.covariance.tolist()
        ([0.5], [[4.0]])

    Source: McCann (1997), A convexity principle for interacting gases; Takatsu (2011), Wasserstein geometry of Gaussian
    measures.
    """
    p, q, e = _read(p, q, None)
    dtype, p, q = p.dtype, p.to(torch.float64), q.to(torch.float64)
    time = torch.as_tensor(t, dtype=p.dtype, device=p.mean.device)
    if not bool(((time >= 0) & (time <= 1)).all()):
        refuse("t", "numbers in [0, 1]", repr(t))
    time = time.expand(p.batch_shape)
    mean = torch.lerp(p.mean, q.mean, time.unsqueeze(-1))
    t = time[..., None, None]
    if p.plain and q.plain:
        assert p.factor is not None
        assert q.factor is not None
        # couple the standard normals behind the factors, as many as the larger has
        U, _, Vh = torch.linalg.svd(p.factor.mT @ q.factor)
        left, right = p.factor @ U, q.factor @ Vh.mT
        size = max(left.shape[-1], right.shape[-1])
        left, right = (torch.nn.functional.pad(F, (0, size - F.shape[-1])) for F in (left, right))
        return Gaussian.low_rank(mean, torch.lerp(left, right, t)).to(dtype)
    S, T = p.covariance, q.covariance
    cross = S @ plan_matrix(S, T, e)
    return Gaussian.of(mean, (1 - t) ** 2 * S + t**2 * T + t * (1 - t) * (cross + cross.mT)).to(dtype)


# -- parts -------------------------------------------------------------------------------------------------------


def _read(p: Gaussian, q: Gaussian, epsilon: Any) -> tuple[Gaussian, Gaussian, Tensor]:
    """Both with one batch shape, and e = eps / 2 (*batch,), zero without an epsilon."""
    for g, name in ((p, "p"), (q, "q")):
        if not isinstance(g, Gaussian):
            refuse(name, "a Gaussian", type(g).__name__, "Use Gaussian(mean, covariance) or Gaussian.fit(x).")
    same_place(p.mean, "p", q.mean, "q")
    if p.d != q.d:
        refuse("p and q", "Gaussians of one dimension", f"{p.d} and {q.d}")
    try:
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        refuse("p and q", "batch axes that broadcast", f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}")
    p, q = p.expand(batch), q.expand(batch)
    if epsilon is None:
        return p, q, p.mean.new_zeros(batch, dtype=torch.float64)
    return p, q, _positive(epsilon, "epsilon", p) / 2


def _positive(value: Any, name: str, p: Gaussian) -> Tensor:
    """A positive finite number or (*batch,) as (*batch,)."""
    if not (is_real(value) or isinstance(value, Tensor)):
        refuse(name, "a positive number or a tensor", repr(value))
    out = float_tensor(value, name).to(p.mean.device, torch.float64)
    if not bool(((out > 0) & torch.isfinite(out)).all()):
        refuse(name, "positive finite numbers", f"a minimum of {float(out.detach().min()):g}")
    if out.dim() and out.shape != p.batch_shape:
        refuse(name, f"one number or shape {tuple(p.batch_shape)}", f"shape {tuple(out.shape)}")
    return out.expand(p.batch_shape)


def _cast(plan: GaussianPlan, dtype: torch.dtype) -> GaussianPlan:
    """A plan that was found in float64, in the precision of the input."""
    parts = plan._parts
    basis = None if parts.basis is None else parts.basis.to(dtype)
    return replace(
        plan,
        value=plan.value.to(dtype),
        linear_value=plan.linear_value.to(dtype),
        mass=plan.mass.to(dtype),
        source=plan.source.to(dtype),
        target=plan.target.to(dtype),
        _parts=Shared(basis, [S.to(dtype) for S in parts.cores], [r.to(dtype) for r in parts.rest], parts.missing),
        _core=plan._core.to(dtype),
        _rest=plan._rest.to(dtype),
    )


def _overlap(p: Gaussian, q: Gaussian, e: Tensor) -> Tensor:
    """Sum of phi over the eigenvalues of S T, (*batch,), by the cheapest way that is exact."""
    if p.factor is not None and q.factor is not None:
        assert p.diagonal is not None
        assert q.diagonal is not None
        for one, other in ((p, q), (q, p)):
            if one.plain:
                assert one.factor is not None
                small = one.factor.mT @ other.apply(one.factor)
                return overlap(torch.eye(small.shape[-1]).to(small).expand_as(small), small, e)
        varies = any(bool((D[..., :1] != D).any()) for D in (p.diagonal, q.diagonal))
        positive = all(bool((D > 0).all()) for D in (p.diagonal, q.diagonal))
        if varies and positive and 4 * (p.factor.shape[-1] + q.factor.shape[-1]) < p.d:
            return overlap_of_factors(p.factor, p.diagonal, q.factor, q.diagonal, e)
    parts = shared(p, q)
    S, T = parts.cores
    total = overlap(S, T, e)
    if parts.missing:
        total = total + parts.missing * overlap(parts.rest[0][..., None, None], parts.rest[1][..., None, None], e)
    return total


def _unbalanced(p: Gaussian, q: Gaussian, epsilon: Tensor, rho: Tensor, masses: list[Tensor]) -> GaussianPlan:
    r"""The plan with KL marginals.

    With k = 2 / eps and t = rho / (rho + eps), the fixed point of the quadratic potentials is that of a balanced
    problem between (S^-1 + (1 - t) k)^-1 and the like of T, at k sqrt(t): its matrices M, M' give all the rest.
    """
    A, B, eye = p.covariance, q.covariance, torch.eye(p.d).to(p.covariance)
    t = rho / (rho + epsilon)
    k = 2 / epsilon
    column = lambda v: v[..., None, None]  # noqa: E731
    soft = (1 - t) * k
    less_a, less_b = (_less(S, soft, eye) for S in (A, B))
    e = epsilon / t.sqrt() / 2
    forth, back = plan_matrix(less_a, less_b, e), plan_matrix(less_b, less_a, e)  # M: source to target, and M'
    # linear terms of the potentials
    delta = (p.mean - q.mean).unsqueeze(-1)
    st = column(t.sqrt())
    right = (1 - column(t)) * (delta + st * (forth @ delta))
    s = torch.linalg.solve(eye - column(t) * (forth @ back), right)
    r = (1 - column(t)) * delta + st * (back @ s)
    # marginals: N(m, S) times the exponential of a quadratic form
    pull = column((1 - t) / t * k)
    mean_a, cov_a, kl_a = _tilted(A, column(soft) * (eye - forth / st), -pull * (delta - s), eye)
    mean_b, cov_b, kl_b = _tilted(B, column(soft) * (eye - back / st), -pull * (r - delta), eye)
    core = forth / st  # conditional mean: A (x - mean), with A = k Y^-1 = M / sqrt(t)
    cross = cov_a @ core.mT
    information = -torch.linalg.slogdet(eye - core @ back / st)[1] / 2
    source, target = Gaussian.of(p.mean + mean_a.squeeze(-1), cov_a), Gaussian.of(q.mean + mean_b.squeeze(-1), cov_b)
    unit = (source.mean - target.mean).square().sum(-1) + source.trace() + target.trace()
    unit = unit - 2 * cross.diagonal(dim1=-2, dim2=-1).sum(-1)
    total = unit + epsilon * (kl_a + kl_b + information) + rho * (kl_a + kl_b)
    one, other = masses
    mass = (((epsilon + rho) * (one.log() + other.log()) - total) / (epsilon + 2 * rho)).exp()
    value = rho * (one + other) + epsilon * one * other - (2 * rho + epsilon) * mass
    parts = Shared(None, [A, B], [torch.zeros_like(mass)] * 2, 0)
    return GaussianPlan(value, mass * unit, mass, source, target, epsilon, rho, parts, core, torch.zeros_like(mass))


def _less(S: Tensor, k: Tensor, eye: Tensor) -> Tensor:
    """(S^-1 + k)^-1, of a covariance of any rank."""
    out = torch.linalg.solve(eye + k[..., None, None] * S, S)
    return (out + out.mT) / 2


def _tilted(S: Tensor, N: Tensor, h: Tensor, eye: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of N(0, S) times exp(-x^T N x / 2 + h^T x), normalised, and its KL to N(0, S)."""
    R = root(S)
    inner = R @ ((N + N.mT) / 2) @ R + eye
    half = torch.linalg.solve(inner, R)
    covariance = R @ half
    covariance = (covariance + covariance.mT) / 2
    white = torch.linalg.solve(inner, R @ h)  # R^-1 mean
    values = torch.linalg.eigvalsh(inner)
    kl = ((1 / values - 1 + values.log()).sum(-1) + white.square().sum((-2, -1))) / 2
    return R @ white, covariance, kl
