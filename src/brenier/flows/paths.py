"""Probability paths: how data turn into noise, and what a velocity says about score and denoiser on the way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .._inputs import is_real
from ..errors import refuse

__all__ = ["VP", "CondOT", "GaussianPath", "Trigonometric"]


class GaussianPath(ABC):
    r"""A path from a source x0 at t = 0 to data x1 at t = 1, affine in both.

    .. math:: x_t = a_t\,x_1 + m_t\,x_0, \qquad u_t = \dot a_t\,x_1 + \dot m_t\,x_0

    A flow learns the velocity v(x, t) = E[u_t | x_t = x]. Where x0 is standard Gaussian and independent of x1,
    velocity, denoiser D = E[x1 | x_t = x] and score s, the gradient of log p_t, are affine functions of one another.
    With w = m da - a dm, positive while a / m grows:

        v = (dm x + w D) / m        D = (m v - dm x) / w
        s = (a D - x) / m^2         D = (x + m^2 s) / a
        v = (da x + m w s) / a      s = (a v - da x) / (m w)

    Each formula holds where it divides by no zero: those by m not at t = 1, those by a not at t = 0 (where the score
    says nothing about the data). There the answers are infinite or NaN. D and v need independence only.

    A subclass gives four functions of t, of any shape: `a`, `m`, and their derivatives `da`, `dm`.

    Attributes:
        span: the times between which the velocity stays finite: where to draw t, and where to sample.

    Source: Albergo & Vanden-Eijnden (2023), Building normalizing flows with stochastic interpolants; Lipman, Chen,
    Ben-Hamu, Nickel & Le (2023), Flow matching for generative modeling.
    """

    span: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def a(self, t: Tensor) -> Tensor:
        """The share of the data, shaped as t."""

    @abstractmethod
    def m(self, t: Tensor) -> Tensor:
        """The share of the source, shaped as t."""

    @abstractmethod
    def da(self, t: Tensor) -> Tensor:
        """The derivative of a."""

    @abstractmethod
    def dm(self, t: Tensor) -> Tensor:
        """The derivative of m."""

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The points x_t and their velocities u_t.

        Args:
            x0: source points (B, *shape).
            x1: data (B, *shape).
            t: times (B,), in [0, 1].

        Returns:
            x_t and u_t, (B, *shape).

        Raises:
            InvalidInput: shapes that differ, or times that are not one for each point.

        Example:
            >>> import torch
            >>> x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)
            >>> x_t, u_t = CondOT().sample(x0, x1, torch.tensor([0.25, 0.5]))
            >>> x_t[:, 0].tolist(), u_t[:, 0].tolist()
            ([0.25, 0.5], [1.0, 1.0])
        """
        if x0.shape != x1.shape:
            refuse("x0 and x1", "points of one shape", f"{tuple(x0.shape)} and {tuple(x1.shape)}")
        a, m, da, dm = self._shares(x1, t)
        return a * x1 + m * x0, da * x1 + dm * x0

    def velocity_to_denoiser(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t = x] (B, *shape), of the velocity at points x (B, *shape) and times t (B,)."""
        a, m, da, dm = self._shares(x, t)
        return (m * velocity - dm * x) / (m * da - a * dm)

    def denoiser_to_velocity(self, denoiser: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, *shape), of E[x1 | x_t = x] at points x (B, *shape) and times t (B,) < 1."""
        a, m, da, dm = self._shares(x, t)
        return (dm * x + (m * da - a * dm) * denoiser) / m

    def velocity_to_score(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t (B, *shape), of the velocity at points x (B, *shape) and times t (B,) < 1."""
        a, m, da, dm = self._shares(x, t)
        return (a * velocity - da * x) / (m * (m * da - a * dm))

    def score_to_velocity(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, *shape), of the gradient of log p_t at points x (B, *shape) and times t (B,) > 0."""
        a, m, da, dm = self._shares(x, t)
        return (da * x + m * (m * da - a * dm) * score) / a

    def score_to_denoiser(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t = x] (B, *shape) by Tweedie's formula, at points x (B, *shape) and times t (B,) > 0."""
        a, m, _, _ = self._shares(x, t)
        return (x + m.square() * score) / a

    def denoiser_to_score(self, denoiser: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t (B, *shape), of E[x1 | x_t = x] at points x (B, *shape) and times t (B,) < 1."""
        a, m, _, _ = self._shares(x, t)
        return (a * denoiser - x) / m.square()

    def _shares(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, m, da and dm at the times of the points, with axes to broadcast against them."""
        if t.dim() != 1 or x.dim() == 0 or len(t) != len(x):
            refuse(
                "t",
                f"times of shape ({len(x) if x.dim() else 'B'},), one for each point",
                f"shape {tuple(t.shape)}",
                "One time for all is t.expand(len(x)).",
            )
        t = t.reshape(-1, *[1] * (x.dim() - 1))
        return self.a(t), self.m(t), self.da(t), self.dm(t)


@dataclass(frozen=True)
class CondOT(GaussianPath):
    r"""The straight path at constant speed, :math:`a_t = t`, :math:`m_t = 1 - t`.

    Its points lie between x0 and x1 as those of an optimal displacement, hence conditional optimal transport; rectified
    flows and most flow matching use it.

    Source: Liu, Gong & Liu (2023), Flow straight and fast; Lipman, Chen, Ben-Hamu, Nickel & Le (2023), Flow matching
    for generative modeling.
    """

    def a(self, t: Tensor) -> Tensor:
        return t

    def m(self, t: Tensor) -> Tensor:
        return 1 - t

    def da(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def dm(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


@dataclass(frozen=True)
class Trigonometric(GaussianPath):
    r"""The path along a circle, :math:`a_t = \sin(\pi t / 2)`, :math:`m_t = \cos(\pi t / 2)`: of constant variance.

    Source: Albergo & Vanden-Eijnden (2023), Building normalizing flows with stochastic interpolants.
    """

    def a(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def m(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # zero at t = 1, which the cosine misses

    def da(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.m(t)

    def dm(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.a(t)


@dataclass(frozen=True)
class VP(GaussianPath):
    r"""The variance-preserving diffusion path with a linear noise rate, of DDPM in continuous time.

    .. math:: a_t = \exp\bigl(-\tfrac14 (1 - t)^2 (\beta_1 - \beta_0) - \tfrac12 (1 - t)\,\beta_0\bigr), \qquad
        m_t = \sqrt{1 - a_t^2}

    It starts near the source, not at it: a_0 = exp(-(beta0 + beta1) / 4). The derivative of m grows without bound
    towards t = 1, as (1 - t)^(-1/2), so `span` ends at 1 - 1e-5.

    Args:
        beta0: the rate of noise at the data, > 0.
        beta1: the rate of noise at the source, at least beta0.

    Raises:
        InvalidInput: rates that are not positive and finite, or that fall.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), Score-based generative modeling through
    stochastic differential equations (rates and the cut); Ho, Jain & Abbeel (2020), Denoising diffusion probabilistic
    models.
    """

    beta0: float = 0.1
    beta1: float = 20.0

    span = (0.0, 1 - 1e-5)

    def __post_init__(self) -> None:
        for name, rate in (("beta0", self.beta0), ("beta1", self.beta1)):
            if not is_real(rate) or not 0 < rate < math.inf:
                refuse(name, "a positive finite rate", repr(rate))
        if self.beta1 < self.beta0:
            refuse("beta1", f"a rate of at least beta0 = {self.beta0:g}", f"{self.beta1:g}")

    def _log_a(self, t: Tensor) -> Tensor:
        back = 1 - t
        return -back.square() * (self.beta1 - self.beta0) / 4 - back * self.beta0 / 2

    def a(self, t: Tensor) -> Tensor:
        return self._log_a(t).exp()

    def m(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_a(t))).sqrt()

    def da(self, t: Tensor) -> Tensor:
        return self.a(t) * ((1 - t) * (self.beta1 - self.beta0) + self.beta0) / 2

    def dm(self, t: Tensor) -> Tensor:
        return -self.a(t) * self.da(t) / self.m(t)
