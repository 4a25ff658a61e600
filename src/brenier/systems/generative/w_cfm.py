r"""W-CFM: flow matching on random pairs, each weighted by a Gibbs kernel. Straighter flows, and no solver.

    E w(x, y) |v(z_t, t) - (y - x)|^2,    w = exp(-c(x, y) / eps),    z_t = (1 - t) x + t y

over independent x of the source and y of the data. That is flow matching with the coupling P_w proportional to w times
the product of the two laws. P_w is the entropic plan at the same epsilon, but between its own marginals, which have
densities proportional to the tilts

    tau(x) = E_y w(x, y),    tau(y) = E_x w(x, y)

with respect to source and data. Where both are constant (a group acts transitively and leaves the cost alone, as on a
sphere) P_w is the entropic plan itself. Small epsilon straightens the flow and tilts the marginals; large epsilon is
plain flow matching. `WeightedCFM.calibrate` chooses the smallest that leaves the tilts flat. At sampling time x comes
from the source, not from its tilted version, so that a visible tilt of the source adds an error of its own.

There is no official code. An unofficial repository trains CIFAR-10 with epsilon 1000, in the place of the paper's 5,
and with further terms in the loss; we follow the paper.

Reference: Calvo-Ordoñez, Meunier, Cartea, Reisinger, Gal & Hernández-Lobato (2025), Weighted conditional flow matching,
arXiv 2507.22270.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._inputs import is_real
from ...costs import as_cost
from ...errors import refuse
from ...flows import CondOT, FlowMatching, GaussianPath, gibbs_log_weight
from ...flows.couplings import Ground
from ...flows.sampling import Field
from ...geometry import PointCloud

__all__ = ["Calibration", "WeightedCFM", "gibbs_log_weight", "marginal_tilt"]

_KAPPAS = tuple(10 ** (k / 8) for k in range(-16, 17))  # 0.01 to 100


@dataclass(frozen=True, repr=False)
class Calibration:
    """What was found along a grid of epsilon = kappa sqrt(d).

    Attributes:
        epsilon: the choice, in cost units.
        kappa: the choice, epsilon / sqrt(d).
        kappas: (k,) the grid, rising.
        relative_variance: (k, 2) of the tilts of source and data, Var(tau) / (E tau)^2.
        ess: (k,) the effective share of random pairs, (E w)^2 / E w^2.
        rule: by which it was chosen.
    """

    epsilon: float
    kappa: float
    kappas: Tensor
    relative_variance: Tensor
    ess: Tensor
    rule: str

    def __repr__(self) -> str:
        chosen = int((self.kappas - self.kappa).abs().argmin())
        source, data = self.relative_variance[chosen].tolist()
        return (
            f"Calibration(epsilon={self.epsilon:.4g}, kappa={self.kappa:.4g}, relative variance {source:.2g} of the "
            f"source and {data:.2g} of the data, {float(self.ess[chosen]):.1%} of pairs count)"
        )


def marginal_tilt(
    x: Tensor,  # (n, *shape)
    y: Tensor,  # (m, *shape)
    epsilon: float,
    *,
    cost: Ground = "euclidean",
    log: bool = False,
) -> Tensor:  # (n,)
    r"""Compute how weights tilt the law of x: the mean weight of each sample.

    .. math:: \tau(x_i) = \frac1m \sum_j e^{-c(x_i, y_j) / \varepsilon}

    Args:
        x: samples of the one side.
        y: samples of the other.
        epsilon: in cost units, > 0.
        cost: as for `solve`.
        log: its logarithm, which does not underflow.

    Raises:
        InvalidInput: samples that do not fit together, an epsilon that is not positive and finite.

    Complexity: O(n m d) time, O(n + m) memory.

    Example:
        >>> import torch
        >>> angle = 2 * math.pi * torch.arange(50, dtype=torch.float64) / 50
        >>> circle = torch.stack([angle.cos(), angle.sin()], 1)
        >>> tilt = marginal_tilt(circle, circle, 0.5)
        >>> bool((tilt - tilt[0]).abs().max() < 1e-12)  # all points of a circle are alike
        True
    """
    tilt = _log_tilt(_cloud(x, y, cost), _positive(epsilon))
    return (tilt if log else tilt.exp()).to(x.dtype)


class WeightedCFM(FlowMatching):
    r"""The loss of weighted conditional flow matching: that of plain flow matching, on pairs with Gibbs weights.

    .. math:: \mathbb E_{t, x, y}\; e^{-c(x, y) / \varepsilon}\, \tfrac1d \lVert v(z_t, t) - u_t\rVert^2

    Args:
        epsilon: in cost units, or "auto": kappa sqrt(d), of `kappa` or of `calibrate`.
        kappa: epsilon / sqrt(d), d being the coordinates of a sample; for "auto".
        cost: as for `solve`; the paper's is the distance, not its square.
        path, sigma, normalize, momentum, generator: as for `FlowMatching`.

    Attributes:
        epsilon: in cost units; None as long as it is not known.

    Raises:
        InvalidInput: an epsilon or kappa that is not positive and finite, or both.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x0, x1 = torch.randn(64, 8, generator=generator), torch.randn(64, 8, generator=generator) + 1
        >>> loss = WeightedCFM(kappa=1.0, generator=generator)
        >>> value, info = loss(lambda z, t: torch.zeros_like(z), x0, x1)
        >>> round(loss.epsilon, 4), bool(info["displacement"] < info["unweighted_displacement"])
        (2.8284, True)

    Source: Calvo-Ordoñez et al. (2025), Weighted conditional flow matching.
    """

    def __init__(
        self,
        epsilon: float | str = "auto",
        kappa: float | None = None,
        *,
        cost: Ground = "euclidean",
        path: GaussianPath = CondOT(),
        sigma: float = 0.0,
        normalize: str = "batch",
        momentum: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(path, None, sigma=sigma, normalize=normalize, momentum=momentum, generator=generator)
        if isinstance(epsilon, str) and epsilon != "auto":
            refuse("epsilon", "a positive finite number in cost units, or 'auto'", repr(epsilon))
        if kappa is not None and not (is_real(kappa) and 0 < kappa < math.inf):
            refuse("kappa", "a positive finite number", repr(kappa))
        if kappa is not None and epsilon != "auto":
            refuse("kappa", "None beside an epsilon", repr(kappa))
        as_cost(cost)
        self.cost, self.kappa = cost, kappa
        self.epsilon: float | None = None if isinstance(epsilon, str) else _positive(epsilon)

    def loss(
        self,
        model: Field,
        x0: Tensor,  # (B, *shape)
        x1: Tensor,  # (B, *shape)
        t: Tensor | None = None,  # (B,)
        *,
        log_weight: Tensor | None = None,  # (B,)
        **cond: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a model on independent source samples and data; see `FlowMatching.loss`.

        Raises:
            InvalidInput: as there; an epsilon that is not known.
        """
        if self.epsilon is None:
            if self.kappa is None:
                cure = "Call calibrate(source_samples, data_samples), or give epsilon or kappa."
                refuse("epsilon", "a number", "'auto', without kappa and before calibration", cure)
            self.epsilon = self.kappa * math.sqrt(math.prod(x0.shape[1:]))
        own, given = gibbs_log_weight(x0, x1, self.epsilon, cost=self.cost).double(), self._read_weight(log_weight, x1)
        own = own if given is None else own + given
        return super().loss(model, x0, x1, t, log_weight=own, **cond)

    def calibrate(
        self,
        source_samples: Tensor,  # (n, *shape)
        data_samples: Tensor,  # (m, *shape)
        kappas: Sequence[float] | None = None,
        max_relative_variance: float = 0.05,
        *,
        rule: str = "threshold",
    ) -> Calibration:
        r"""Choose epsilon = kappa sqrt(d) by how flat the tilts are, and use it from now on.

        .. math:: \mathrm{RV}(\varepsilon) = \max\Bigl(\frac{\operatorname{Var} \tau(x)}{(\mathbb E \tau(x))^2},
            \frac{\operatorname{Var} \tau(y)}{(\mathbb E \tau(y))^2}\Bigr)

        Samples are to be preprocessed as in training; 2,000 to 5,000 of each side will do.

        Args:
            source_samples, data_samples: of the two laws.
            kappas: a grid; 33 values from 0.01 to 100, evenly in the logarithm, when None.
            max_relative_variance: the threshold.
            rule: "threshold", the smallest kappa from which on RV stays below the threshold; or "kink", where RV over
                log kappa bends most: the point that is farthest below the line between its ends.

        Returns:
            A `Calibration` with the curves.

        Raises:
            InvalidInput: samples that do not fit together, fewer than two of a side, a grid that does not rise, a
                threshold that no kappa meets.

        Complexity: three passes over the n m pairs for each kappa, O(n + m) memory.
        """
        values = torch.tensor(_KAPPAS if kappas is None else [float(k) for k in kappas], dtype=torch.float64)
        rising = values.dim() == 1 and len(values) >= 1 and bool((values.diff() > 0).all())
        if not rising or not bool(values.isfinite().all()) or not bool(values[0] > 0):
            refuse("kappas", "positive finite numbers that rise", repr(kappas))
        if not (is_real(max_relative_variance) and 0 < max_relative_variance < math.inf):
            refuse("max_relative_variance", "a positive finite number", repr(max_relative_variance))
        if rule not in ("threshold", "kink"):
            refuse("rule", "'threshold' or 'kink'", repr(rule))
        if rule == "kink" and len(values) < 3:
            refuse("kappas", "at least three for rule='kink'", f"{len(values)}")
        cloud = _cloud(source_samples, data_samples, self.cost)
        if min(cloud.shape) < 2:
            refuse("samples", "at least two of each side", f"{cloud.shape[0]} and {cloud.shape[1]}")
        root = math.sqrt(cloud.x.shape[1])
        variances, effective = [], []
        for kappa in values.tolist():
            source, data = _log_tilt(cloud, kappa * root), _log_tilt(cloud.T, kappa * root)
            variances.append([_relative_variance(source), _relative_variance(data)])
            square = _log_mean(_log_tilt(cloud, kappa * root / 2))  # of w^2
            effective.append(math.exp(min(2 * _log_mean(source) - square, 0.0)))
        curve = torch.tensor(variances, dtype=torch.float64)
        worst = curve.max(1).values
        kappa = float(values[_kink(values, worst) if rule == "kink" else _first_flat(worst, max_relative_variance)])
        self.epsilon = kappa * root
        ess = torch.tensor(effective, dtype=torch.float64)
        return Calibration(kappa * root, kappa, values, curve, ess, rule)

    def extra_repr(self) -> str:
        """What is shown of it."""
        return f"epsilon={self.epsilon}, cost={self.cost!r}, normalize={self.normalize!r}"


def _positive(epsilon: Any) -> float:
    if not (is_real(epsilon) and 0 < epsilon < math.inf):
        refuse("epsilon", "a positive finite number in cost units", repr(epsilon))
    return float(epsilon)


def _cloud(x: Any, y: Any, cost: Ground) -> PointCloud:
    """Samples (n, *shape) and (m, *shape) as points, in float64."""
    for t, name in ((x, "x"), (y, "y")):
        if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() < 1 or not t.numel():
            refuse(name, "a floating tensor of samples (n, *shape)", f"{type(t).__name__}")
    if x.shape[1:] != y.shape[1:]:
        refuse("x and y", "samples of one shape", f"{tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    first, second = (t.detach().double().reshape(len(t), -1) for t in (x, y))
    return PointCloud(first, second, cost)


def _log_tilt(cloud: PointCloud, epsilon: float) -> Tensor:
    m = cloud.shape[1]
    return -cloud.softmin(cloud.y.new_zeros(m), epsilon) / epsilon - math.log(m)


def _log_mean(values: Tensor) -> float:
    return float(values.logsumexp(0)) - math.log(len(values))


def _relative_variance(log_tilt: Tensor) -> float:
    tilt = (log_tilt - log_tilt.max()).exp()
    return float(tilt.var() / tilt.mean().square())


def _first_flat(worst: Tensor, threshold: float) -> int:
    """The first place from which on the curve stays below a threshold."""
    above = (worst > threshold).nonzero()
    first = int(above[-1]) + 1 if len(above) else 0
    if first == len(worst):
        got = f"{float(worst[-1]):.3g} at the largest kappa"
        refuse("max_relative_variance", "a threshold that the largest kappa meets", got, "Extend kappas, or raise it.")
    return first


def _kink(kappas: Tensor, worst: Tensor) -> int:
    """The place farthest below the line between the ends."""
    along = kappas.log()
    share = (along - along[0]) / (along[-1] - along[0])
    return int((worst[0] + share * (worst[-1] - worst[0]) - worst).argmax())
