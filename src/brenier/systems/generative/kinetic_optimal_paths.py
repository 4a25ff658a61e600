r"""Kinetic-optimal probability paths: which schedule moves your data at the least energy.

Flow matching and diffusion train on x_t = a_t x1 + m_t x0, noise x0 to data x1. How much kinetic energy the flow spends
depends on the data through one function only, the data separation

.. math:: \lambda(s) = \tfrac1d\, \mathbb E\,\lVert \mathbb E[x_1 | y]\rVert^2, \qquad y = x_1 + x_0 / s,

where 1 - lambda is the least mean squared error of estimating x1 from y, a coordinate. In polar coordinates
(a, m) = r (sin theta, cos theta), so that s = tan theta, the energy of a coordinate is

.. math:: \int_0^1 \dot r^2 + \gamma(\theta)\, r^2 \dot\theta^2\,dt, \qquad
    \gamma(\theta) = 1 - \frac{1 - \lambda(\tan\theta)}{\cos^2\theta} \in [0, 1]

and the angle phi of d phi = sqrt(gamma) d theta makes the plane flat: the best schedule is a straight line in it.

Data are centred and divided by one number, so that a coordinate has variance 1 on average.

Reference: Shaul, Chen, Nickel, Le & Lipman (2023), On kinetic optimal probability paths for generative models, ICML
2023, arXiv 2306.06626.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.integrate import cumulative_simpson
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ..._inputs import check_finite, float_tensor, is_count, is_real, same_place
from ...errors import refuse
from ...flows import GaussianPath
from ...geometry import PointCloud

__all__ = [
    "DataSeparation",
    "KineticOptimalPath",
    "Scaling",
    "conditional_energy",
    "empirical_velocity",
    "kinetic_energy",
    "kinetic_optimal_path",
]

_RIGHT = math.pi / 2
_FINE = 4001  # nodes of quadratures
_NEAR = 1e-4  # from the right angle, where a limit is read off
_ROUNDING = 1e-9  # that a lambda may exceed its bounds by

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""E[x1 | y], of y = x1 + x0 / s (k, *shape) and s (k,)."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """How data were made to have mean 0 and, on average, variance 1 in a coordinate.

    Attributes:
        mean: (*shape), or () for none.
        scale: the root of the mean variance, one number for all coordinates.
    """

    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    scale: float = 1.0

    @classmethod
    def of(cls, x: Tensor) -> Scaling:
        """That of data (n, *shape).

        Raises:
            InvalidInput: fewer than two points, NaN or infinity, or no variance.
        """
        if x.dim() < 1 or len(x) < 2 or not x.numel():
            refuse("x", "at least two data points (n, *shape)", f"shape {tuple(x.shape)}")
        check_finite(x, "x", "finite data", "Drop or impute those rows.")
        mean = x.double().mean(0)
        scale = float((x.double() - mean).square().mean().sqrt())
        if not scale > 0:
            refuse("x", "data that vary", "one point, repeated")
        return cls(mean, scale)

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / scale, for data (n, *shape)."""
        return (x - self.mean.to(x)) / self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Back from normalised samples (n, *shape) to the units of the data."""
        return x * self.scale + self.mean.to(x)


@dataclass(frozen=True, eq=False)
class DataSeparation:
    r"""The data separation, as gamma on a grid of angles; what the best schedule depends on.

    With theta from 0 to pi / 2 and s = tan(theta): gamma is 0 everywhere for standard Gaussian data, which need no
    energy, and 1 everywhere for data that are told apart at once, where the straight schedule is best. Make one by
    `estimate`, `gaussian` or `from_callable`.

    Args:
        theta: (k,) strictly increasing angles from 0 to pi / 2.
        gamma: (k,) in [0, 1].
        scaling: of the data it was estimated on.

    Raises:
        InvalidInput: angles that do not increase from 0 to pi / 2, a gamma outside [0, 1], different lengths.
    """

    theta: Tensor
    gamma: Tensor
    scaling: Scaling = field(default_factory=Scaling)

    def __post_init__(self) -> None:
        for name in ("theta", "gamma"):
            values = float_tensor(getattr(self, name), name).detach().cpu().double()
            if values.dim() != 1 or len(values) < 2:
                refuse(name, "at least two values, (k,)", f"shape {tuple(values.shape)}")
            check_finite(values, name, "finite values")
            object.__setattr__(self, name, values)
        theta, gamma = self.theta, self.gamma
        if len(theta) != len(gamma):
            refuse("theta and gamma", "as many values", f"{len(theta)} and {len(gamma)}")
        ends = abs(float(theta[0])) < 1e-6 and abs(float(theta[-1]) - _RIGHT) < 1e-6
        if not ends or not bool((theta.diff() > 0).all()):
            refuse("theta", "strictly increasing angles from 0 to pi / 2", "others")
        if bool((gamma < 0).any()) or bool((gamma > 1).any()):
            refuse("gamma", "values in [0, 1]", f"{float(gamma.min()):.6g} to {float(gamma.max()):.6g}")

    @property
    def mmse(self) -> Tensor:
        """1 - lambda: the least mean squared error of a coordinate at each angle, (k,)."""
        return (1 - self.gamma) * self.theta.cos().square()

    @property
    def lam(self) -> Tensor:
        """Lambda at each angle, (k,)."""
        return 1 - self.mmse

    def gamma_at(self, theta: Tensor) -> Tensor:
        """Gamma at angles of any shape, by monotone cubic interpolation; float64."""
        values = self._curve(theta.detach().cpu().double().numpy())
        return torch.as_tensor(np.clip(values, 0, 1)).to(theta.device)

    def deficit(self) -> float:
        r"""The integral of 1 - lambda over all s, which is at most 3 n / sqrt(d) for n data points.

        .. math:: \int_0^\infty (1 - \lambda(s))\,ds = \int_0^{\pi/2} (1 - \gamma(\theta))\,d\theta
        """
        return _RIGHT - float(self._curve.integrate(0.0, _RIGHT))

    @cached_property
    def _curve(self) -> Any:
        return PchipInterpolator(self.theta.numpy(), self.gamma.numpy())

    def save(self, path: str | Path) -> None:
        """Write it to a file of torch, which `load` reads."""
        scaling = self.scaling
        torch.save({"theta": self.theta, "gamma": self.gamma, "mean": scaling.mean, "scale": scaling.scale}, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; the file is not trusted with anything but numbers."""
        state = torch.load(path, weights_only=True)
        return cls(state["theta"], state["gamma"], Scaling(state["mean"], state["scale"]))

    @classmethod
    def estimate(
        cls,
        x: ArrayLike | Tensor,  # (n, *shape)
        n_theta: int = 49,
        n_queries: int = 1000,
        held_out: ArrayLike | Tensor | None = None,  # (m, *shape)
        denoiser: Denoiser | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        r"""Estimate it on data, by the error of the best guess of a noisy data point.

        .. math:: 1 - \hat\lambda(s) = \frac1d\, \mathrm{mean}_i\, \lVert x_i - \hat x(y_i)\rVert^2, \qquad
            \hat x(y) = \sum_j \operatorname{softmax}_j\bigl(-s^2 \lVert y - x_j\rVert^2 / 2\bigr)\, x_j

        The same points and noise serve every angle. The error of the best linear guess, whose mean is known, is a
        control variate. Angles are uniform; at 0 and pi / 2 gamma is known.

        Args:
            x: data, normalised here.
            n_theta: angles.
            n_queries: how many data points are made noisy, at most n.
            held_out: other data of the same law to make noisy. In sample, lambda goes to 1 because the point itself is
                among the x_j: that measures memorised data; held-out data measure what generalises.
            denoiser: a trained estimate of E[x1 | y] for normalised data, `denoiser(y, s)` with y (k, *shape) and
                s (k,), instead of the mean over the data.
            generator: draws points and noise.

        Raises:
            InvalidInput: fewer than two points, points without variance, NaN, held-out data of another shape, fewer
                than three angles, no queries.

        Complexity: O(n_theta n_queries n d) time, O((n + n_queries) d) memory.

        Example:
            >>> import torch
            >>> generator = torch.Generator().manual_seed(0)
            >>> x = torch.randn(2000, 2, generator=generator)
            >>> separation = DataSeparation.estimate(x, n_theta=9, generator=generator)
            >>> bool((separation.lam - separation.theta.sin() ** 2).abs().max() < 0.03)  # standard Gaussian data
            True
        """
        if not is_count(n_theta) or n_theta < 3:
            refuse("n_theta", "at least 3 angles", repr(n_theta))
        if not is_count(n_queries) or n_queries < 2:
            refuse("n_queries", "at least 2 queries", repr(n_queries))
        data = float_tensor(x, "x").detach()
        scaling = Scaling.of(data)
        asked = data
        if held_out is not None:
            asked = float_tensor(held_out, "held_out").detach()
            same_place(data, "x", asked, "held_out")
            if asked.dim() < 1 or len(asked) < 2 or asked.shape[1:] != data.shape[1:]:
                refuse("held_out", f"at least two points (m, *{tuple(data.shape[1:])})", f"shape {tuple(asked.shape)}")
            check_finite(asked, "held_out", "finite data")
        shape = data.shape[1:]
        data, asked = (scaling.normalize(part).reshape(len(part), -1) for part in (data, asked))
        device = data.device if generator is None else generator.device
        chosen = torch.randperm(len(asked), generator=generator, device=device)[:n_queries].to(data.device)
        x1 = asked[chosen]
        x0 = torch.randn(x1.shape, generator=generator, device=device, dtype=data.dtype).to(data.device)
        posterior = _Posterior(data)
        theta = torch.linspace(0, _RIGHT, n_theta, dtype=torch.float64)
        gamma = torch.zeros_like(theta)
        for k, angle in enumerate(theta[1:-1].tolist(), start=1):
            sin, cos = math.sin(angle), math.cos(angle)
            s = x1.new_full((len(x1),), sin / cos)
            z = s.unsqueeze(1) * x1 + x0
            if denoiser is None:
                best = posterior(z, s)
            else:
                best = denoiser((z / s.unsqueeze(1)).reshape(-1, *shape), s).detach().reshape(x1.shape)
            error = (x1 - best).double().square().mean(1)
            linear = (x1 - sin * cos * z).double().square().mean(1)
            mean = _controlled(error, linear, cos**2)
            gamma[k] = 1 - min(max(mean / cos**2, 0.0), 1.0)
        # data points are told apart in the end; other points need not be among them
        gamma[-1] = 1.0 if held_out is None and denoiser is None else gamma[-2]
        return cls(theta, gamma, scaling)

    @classmethod
    def gaussian(cls, eigenvalues: ArrayLike | Tensor, n_theta: int = 401) -> Self:
        r"""That of Gaussian data with these eigenvalues of the covariance, divided by their mean.

        .. math:: \lambda(s) = \frac1d \sum_i \frac{s^2 \sigma_i^4}{1 + s^2 \sigma_i^2}

        Args:
            eigenvalues: (d,), nonnegative.
            n_theta: angles.

        Raises:
            InvalidInput: eigenvalues that are negative, not finite, or all zero.
        """
        sigma = float_tensor(eigenvalues, "eigenvalues").detach().double().flatten()
        check_finite(sigma, "eigenvalues", "finite eigenvalues")
        if not sigma.numel() or bool((sigma < 0).any()) or not float(sigma.sum()) > 0:
            refuse("eigenvalues", "nonnegative eigenvalues, not all zero", "others")
        sigma = sigma / sigma.mean()
        theta = torch.linspace(0, _RIGHT, n_theta, dtype=torch.float64)
        weight = theta.sin().square().unsqueeze(1)
        left = sigma / ((1 - weight) + weight * sigma).clamp(min=torch.finfo(torch.float64).tiny)
        return cls(theta, (1 - left.mean(1)).clamp(0, 1))

    @classmethod
    def from_callable(cls, lam: Callable[[Tensor], Any], n_theta: int = 401) -> Self:
        """That of a known lambda(s), vectorised over s (k,); gamma is clamped to [0, 1].

        Raises:
            InvalidInput: values outside [0, 1], or not one for each s.

        Example:
            >>> gaussian = DataSeparation.from_callable(lambda s: s**2 / (1 + s**2))
            >>> bool(gaussian.gamma.max() < 1e-6)
            True
        """
        theta = torch.linspace(0, _RIGHT, n_theta, dtype=torch.float64)
        near = theta.clamp(max=_RIGHT - _NEAR)  # the last one stands for its limit
        values = float_tensor(lam(near.tan()), "lam").detach().cpu().double()
        if values.shape != theta.shape:
            refuse("lam", f"{n_theta} values, one for each s", f"shape {tuple(values.shape)}")
        check_finite(values, "lam", "finite values")
        if bool((values < -_ROUNDING).any()) or bool((values > 1 + _ROUNDING).any()):
            refuse("lam", "values in [0, 1]", f"{float(values.min()):.6g} to {float(values.max()):.6g}")
        return cls(theta, (1 - (1 - values) / near.cos().square()).clamp(0, 1))


class _Posterior:
    """E[x1 | s x1 + x0 = z], where x1 is uniform on data points."""

    def __init__(self, data: Tensor) -> None:  # (n, d)
        self._keys = torch.cat([data, data.square().sum(1, keepdim=True)], 1)
        self._values = torch.cat([data, data.new_ones(len(data), 1)], 1)

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:  # (k, d), (k,)
        # -||z - s x_j||^2 / 2 but for a term of the row: an inner product, in which every row has its own s
        s = s.unsqueeze(1)
        cloud = PointCloud(torch.cat([s * z, -s.square() / 2], 1), self._keys, "dot")
        g = z.new_zeros(len(self._keys))
        sums = cloud.apply(cloud.softmin(g, 1.0), g, 1.0, self._values)
        return sums[:, :-1] / sums[:, -1:]  # of total 1 but for the rounding of large exponents


def _controlled(values: Tensor, control: Tensor, expected: float) -> float:
    """The mean of values, corrected by a control whose expectation is known."""
    deviation = control - control.mean()
    variance = float(deviation.square().sum())
    slope = float((deviation * values).sum()) / variance if variance > 0 else 0.0
    return float(values.mean()) - min(max(slope, 0.0), 1.0) * (float(control.mean()) - expected)


@dataclass(frozen=True, eq=False)
class KineticOptimalPath(GaussianPath):
    r"""The schedule of least kinetic energy for some data, made by `kinetic_optimal_path`.

    .. math:: a_t = r_t \sin\theta_t, \quad m_t = r_t \cos\theta_t, \qquad r_t^2 = 1 - b t + b t^2, \quad
        b = 2 (1 - \cos\Phi)

    Train on normalised data, `path.scaling.normalize(x)`, and hand samples through `path.scaling.denormalize`. Sample
    over `span`, `sample_ode(model, x0, times=torch.linspace(*path.span, steps + 1))`: at t = 0 itself the floor
    of gamma has stopped the velocity from turning, and a long step from there is lost.

    Attributes:
        times, theta, dtheta: (k,) the angle and its derivative, between which a cubic interpolates.
        Phi: the whole angle in the flat plane, in (0, pi / 2]; pi / 2 is the straight schedule.
        energy: what the schedule spends, a coordinate.
        gamma_min: the floor of gamma that it was solved with.
        scaling: of the data.
        span: from the time at which gamma reaches its floor, where x_t is still noise, to 1.
    """

    times: Tensor
    theta: Tensor
    dtheta: Tensor
    Phi: float
    energy: float
    gamma_min: float
    scaling: Scaling = field(default_factory=Scaling)
    span: tuple[float, float] = (0.0, 1.0)

    def a(self, t: Tensor) -> Tensor:
        r, theta, _, _ = self._polar(t)
        return (r * theta.sin()).to(t)

    def m(self, t: Tensor) -> Tensor:
        r, theta, _, _ = self._polar(t)
        return (r * (_RIGHT - theta).sin()).to(t)  # zero at t = 1, which the cosine misses

    def da(self, t: Tensor) -> Tensor:
        r, theta, dr, dtheta = self._polar(t)
        return (dr * theta.sin() + r * dtheta * theta.cos()).to(t)

    def dm(self, t: Tensor) -> Tensor:
        r, theta, dr, dtheta = self._polar(t)
        return (dr * theta.cos() - r * dtheta * theta.sin()).to(t)

    def _polar(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Radius, angle, and their derivatives."""
        u = t.double().contiguous()
        times, theta, slope = (part.to(t.device) for part in (self.times, self.theta, self.dtheta))
        right = torch.searchsorted(times, u).clamp(1, len(times) - 1)
        left = right - 1
        h = times[right] - times[left]
        w = (u - times[left]) / h
        jump, p, q = theta[right] - theta[left], h * slope[left], h * slope[right]
        # Hermite's cubic from the left end
        angle = theta[left] + w * (p + w * (3 * jump - 2 * p - q + w * (p + q - 2 * jump)))
        turn = (p + w * (2 * (3 * jump - 2 * p - q) + 3 * w * (p + q - 2 * jump))) / h
        angle = torch.where(u == times[right], theta[right], angle)
        b = 2 * (1 - math.cos(self.Phi))
        r = (1 - b * u * (1 - u)).sqrt()
        return r, angle, -b / 2 * (1 - 2 * u) / r, turn

    def __repr__(self) -> str:
        return f"KineticOptimalPath(Phi={self.Phi:.4f}, energy={self.energy:.4f}, gamma_min={self.gamma_min:g})"


def kinetic_optimal_path(
    separation: DataSeparation, gamma_min: float = 1e-2, solver: str = "quadrature"
) -> KineticOptimalPath:
    r"""Find the schedule of least kinetic energy among all Gaussian paths.

    .. math:: \phi(\theta) = \int_0^\theta \sqrt\gamma, \quad \Phi = \phi(\pi/2), \quad
        \phi(\theta_t) = \operatorname{atan2}\bigl(t \sin\Phi,\ (1 - t) + t \cos\Phi\bigr), \quad
        r_t^2 = 1 - b t + b t^2

    with b = 2 (1 - cos Phi), which is also the energy. Near t = 0, where gamma goes to 0, the derivative of a would be
    unbounded; the floor of gamma bounds it, at the price of a little energy. The path's `span` begins where the floor
    ends.

    Args:
        separation: of the data.
        gamma_min: floor of gamma, in (0, 1]; at most 0.1 is advised.
        solver: "quadrature", the formulas above, or "gradient", the paper's own numerics, for comparison: descent on
            the energy over b and ten weights of a monotone theta.

    Raises:
        InvalidInput: another solver, or a floor outside (0, 1].

    Complexity: O(1), milliseconds; "gradient" takes seconds.

    Example:
        >>> import torch
        >>> path = kinetic_optimal_path(DataSeparation.from_callable(lambda s: torch.ones_like(s)))
        >>> t = torch.linspace(0, 1, 5)
        >>> bool((path.a(t) - t).abs().max() < 1e-6), round(path.energy, 6)  # data told apart: the straight schedule
        (True, 2.0)
    """
    if not is_real(gamma_min) or not 0 < gamma_min <= 1:
        refuse("gamma_min", "a floor in (0, 1]", repr(gamma_min))
    if solver not in ("quadrature", "gradient"):
        refuse("solver", "'quadrature' or 'gradient'", repr(solver))
    theta = torch.linspace(0, _RIGHT, _FINE, dtype=torch.float64)
    gamma = separation.gamma_at(theta)
    begin = int((gamma >= gamma_min).int().argmax())  # 0 where it never does
    root = gamma.clamp(min=gamma_min).sqrt()
    if solver == "gradient":
        path = _descended(separation, root.square(), float(gamma_min))
        first = int((path.theta >= theta[begin]).int().argmax())
        return replace(path, span=(float(path.times[first]), 1.0))
    phi = torch.from_numpy(cumulative_simpson(root.numpy(), x=theta.numpy(), initial=0.0))
    Phi = min(float(phi[-1]), _RIGHT)
    phi = phi.clamp(max=Phi)
    # the time of each angle on the straight line, by the law of sines
    times = phi.sin() / (phi.sin() + (Phi - phi).sin())
    b = 2 * (1 - math.cos(Phi))
    slope = math.sin(Phi) / ((1 - b * times * (1 - times)) * root)
    span = float(times[begin]), 1.0
    return KineticOptimalPath(times, theta, slope, Phi, b, float(gamma_min), separation.scaling, span)


def _descended(separation: DataSeparation, gamma: Tensor, gamma_min: float) -> KineticOptimalPath:
    """The paper's numerics: the energy as a function of b and of a monotone theta, a mixture of ten logistic steps."""
    step = torch.linspace(0, 1, 10, dtype=torch.float64)
    centres, width = step.square(), 0.01 + 0.15 * step  # fine at the start, which is steep

    def angle(t: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid((t.unsqueeze(-1) - centres) / width)
        low, high = torch.sigmoid(-centres / width), torch.sigmoid((1 - centres) / width)
        weights = _RIGHT * torch.softmax(logits, 0) / (high - low)
        return (share - low) @ weights, (share * (1 - share) / width) @ weights

    def energy(raw: Tensor, t: Tensor) -> Tensor:
        b = 2 * torch.sigmoid(raw[0])
        theta, dtheta = angle(t, raw[1:])
        place = (theta / _RIGHT * (len(gamma) - 1)).clamp(0, len(gamma) - 1.001)
        left = place.detach().long()
        here = torch.lerp(gamma[left], gamma[left + 1], place - left)
        r2 = 1 - b * t * (1 - t)
        return ((b / 2 * (1 - 2 * t)).square() / r2 + here * r2 * dtheta.square()).mean()

    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    raw = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> float:
        with torch.enable_grad():
            optimizer.zero_grad()
            value = energy(raw, t)
            value.backward()
        return float(value.detach())

    optimizer.step(closure)
    with torch.no_grad():
        times = torch.linspace(0, 1, _FINE, dtype=torch.float64)
        theta, slope = angle(times, raw[1:])
        theta[0], theta[-1] = 0.0, _RIGHT
        Phi = math.acos(1 - float(torch.sigmoid(raw[0])))
        found = float(energy(raw, t))
    return KineticOptimalPath(times, theta, slope, Phi, found, gamma_min, separation.scaling)


def kinetic_energy(path: GaussianPath, separation: DataSeparation, n_grid: int = 4000) -> float:
    r"""Compute the kinetic energy of a path for some data, a coordinate.

    .. math:: \int \tfrac1d\, \mathbb E\,\lVert u_t(x_t)\rVert^2\,dt = \int \dot a^2 + \dot m^2\,dt
        - \int \Bigl(\dot a - a \frac{\dot m}{m}\Bigr)^2 \bigl(1 - \lambda(a / m)\bigr)\,dt

    from t = 0 to the end of the path's `span`, in polar coordinates, where nothing cancels. (The energy of `VP` grows
    like a logarithm as its span nears 1.)

    Args:
        path: any Gaussian path, with a and m nonnegative.
        separation: of the data.
        n_grid: nodes.

    Raises:
        InvalidInput: nodes that are no count.
    """
    t, weight = _nodes(path, n_grid)
    a, m, da, dm = path.a(t), path.m(t), path.da(t), path.dm(t)
    r2 = a.square() + m.square()
    radial = (a * da + m * dm).square() / r2
    angular = (m * da - a * dm).square() / r2
    gamma = separation.gamma_at(torch.atan2(a, m))
    return float(((radial + gamma * angular) * weight).sum())


def conditional_energy(path: GaussianPath, n_grid: int = 4000) -> float:
    r"""Compute the energy of the conditional paths, a coordinate: what the flow spends for data told apart at once.

    .. math:: \int \dot a^2 + \dot m^2\,dt

    Args:
        path: any Gaussian path.
        n_grid: nodes.

    Raises:
        InvalidInput: nodes that are no count.

    Example:
        >>> from brenier.flows import CondOT
        >>> round(conditional_energy(CondOT()), 6)
        2.0
    """
    t, weight = _nodes(path, n_grid)
    return float(((path.da(t).square() + path.dm(t).square()) * weight).sum())


def _nodes(path: GaussianPath, n_grid: int) -> tuple[Tensor, Tensor]:
    """Midpoints of an integral to the end of the span of a path, dense at both ends, and their weights."""
    if not is_count(n_grid):
        refuse("n_grid", "a positive number of nodes", repr(n_grid))
    end = path.span[1]
    w = (torch.arange(n_grid, dtype=torch.float64) + 0.5) / n_grid
    t = end * (w - (2 * math.pi * w).sin() / (2 * math.pi))
    return t, end * (1 - (2 * math.pi * w).cos()) / n_grid


def empirical_velocity(
    x: Tensor,  # (B, *shape)
    t: Tensor,  # (B,)
    data: Tensor,  # (n, *shape)
    path: GaussianPath,
) -> Tensor:  # (B, *shape)
    r"""Compute the exact velocity of a path whose data are a finite set, without a network.

    .. math:: v(x, t) = \dot a_t\, \hat x + \dot m_t\, \frac{x - a_t \hat x}{m_t}, \qquad
        \hat x = \sum_j \operatorname{softmax}_j\Bigl(-\frac{\lVert x - a_t x_j\rVert^2}{2 m_t^2}\Bigr)\, x_j

    Flow matching on these data has this field as its minimiser: it ends in the data themselves.

    Args:
        x: points.
        t: times in [0, 1), one for each point.
        data: the data, normalised for a `KineticOptimalPath`.
        path: any Gaussian path.

    Raises:
        InvalidInput: points and data of different shape, dtype or device, NaN, or a time at which m is zero.

    Complexity: O(B n d) time, O((B + n) d) memory.

    Example:
        >>> import torch
        >>> from brenier.flows import CondOT
        >>> data = torch.tensor([[2.0, 0.0]])
        >>> empirical_velocity(torch.zeros(1, 2), torch.tensor([0.5]), data, CondOT())  # what is left, in what is left
        tensor([[4., 0.]])
    """
    if x.dim() < 1 or data.dim() < 1 or not len(data) or x.shape[1:] != data.shape[1:]:
        refuse("x and data", "points of one shape", f"{tuple(x.shape[1:])} and {tuple(data.shape[1:])}")
    same_place(x, "x", data, "data")
    if t.shape != (len(x),):
        refuse("t", f"times of shape ({len(x)},), one for each point", f"shape {tuple(t.shape)}")
    a, m = path.a(t), path.m(t)
    if bool((m <= 0).any()):
        refuse("t", "times at which some noise is left, m > 0", "a later one", "Use times below 1.")
    best = _Posterior(data.reshape(len(data), -1))(x.reshape(len(x), -1) / m.unsqueeze(1), a / m)
    return path.denoiser_to_velocity(best.reshape(x.shape), x, t)
