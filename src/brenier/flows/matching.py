"""Flow matching: regress a velocity on the way from source to data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .._inputs import is_real
from ..errors import refuse
from .couplings import Coupling
from .paths import CondOT, GaussianPath
from .sampling import Field

__all__ = ["FlowMatching", "effective_fraction"]

_COLLAPSED = 0.05  # share of a batch that counts, below which training hangs on a handful of pairs


def effective_fraction(
    log_weight: Tensor,  # (B,)
) -> Tensor:  # ()
    r"""Compute Kish's effective share of a weighted sample, :math:`(\sum w)^2 / (B \sum w^2)`, from log-weights.

    1 for equal weights, 1 / B where one pair has all of it.

    Example:
        >>> import torch
        >>> round(float(effective_fraction(torch.tensor([0.0, 0.0, -100.0, -100.0]))), 6)
        0.5

    Source: Kish (1965), Survey sampling.
    """
    w = log_weight.detach().double()
    return (2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp() / len(w)


class FlowMatching(nn.Module):
    r"""The loss of conditional flow matching, with any path, coupling and weights.

    .. math:: \mathbb E_{t, (x_0, x_1)}\; w(x_0, x_1)\, \tfrac1d \lVert v(x_t, t) - u_t\rVert^2

    for points x_t and velocities u_t of the path. Its minimum is the velocity of a flow from the law of x_0 to that of
    x_1, both weighted; which flow depends on how x_0 and x_1 are paired.

    By the names of papers:

        I-CFM, rectified flow    `FlowMatching()`
        OT-CFM                   `FlowMatching(coupling=ExactCoupling())`
        W-CFM                    `WeightedCFM(epsilon)`, or `FlowMatching(coupling=GibbsWeights(epsilon))`

    Pairs of a `CouplingLoader` need no coupling here: hand its `log_weight` in, if there is one.

    Args:
        path: between source and data.
        coupling: pairs each minibatch anew; None takes it as it comes.
        labels: the name of the condition that the coupling shall respect.
        sigma: standard deviation of Gaussian noise added to x_t.
        normalize: what weights are divided by: "batch", their mean in the batch (a self-normalised estimate, with a
            bias of order 1/B); "running", a moving average of that mean over batches; "none", nothing: then weights of
            images are 1e-6 and less, and the epsilon of Adam counts.
        momentum: of the moving average.
        generator: of times, noise and the coupling; that of torch when None.

    Raises:
        InvalidInput: arguments that break a rule.

    Complexity: one evaluation of the model, and that of the coupling.

    Example:
        >>> import torch
        >>> loss = FlowMatching(generator=torch.Generator().manual_seed(0))
        >>> x0 = torch.zeros(8, 2)
        >>> value, info = loss(lambda z, t: torch.ones_like(z), x0, x0 + 1)  # the right velocity
        >>> float(value), float(info["displacement"])
        (0.0, 2.0)

    Source: Lipman, Chen, Ben-Hamu, Nickel & Le (2023), Flow matching for generative modeling; Tong et al. (2024),
    Improving and generalizing flow-based generative models with minibatch optimal transport.
    """

    log_scale: Tensor

    def __init__(
        self,
        path: GaussianPath = CondOT(),
        coupling: Coupling | None = None,
        *,
        labels: str | None = None,
        sigma: float = 0.0,
        normalize: str = "batch",
        momentum: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(path, GaussianPath):
            refuse("path", "a GaussianPath, such as CondOT()", repr(path))
        if coupling is not None and not isinstance(coupling, Coupling):
            refuse("coupling", "a Coupling, such as ExactCoupling(), or None", repr(coupling))
        if labels is not None and (not isinstance(labels, str) or coupling is None):
            refuse("labels", "the name of a condition, beside a coupling", repr(labels))
        if not (is_real(sigma) and 0 <= sigma < math.inf):
            refuse("sigma", "a finite number >= 0", repr(sigma))
        if normalize not in ("batch", "running", "none"):
            refuse("normalize", "'batch', 'running' or 'none'", repr(normalize))
        if not (is_real(momentum) and 0 <= momentum < 1):
            refuse("momentum", "a number from 0 to below 1", repr(momentum))
        if generator is not None and not isinstance(generator, torch.Generator):
            refuse("generator", "a torch.Generator or None", type(generator).__name__)
        self.path, self.coupling, self.labels = path, coupling, labels
        self.sigma, self.normalize, self.momentum = float(sigma), normalize, float(momentum)
        self.generator = generator
        self.register_buffer("log_scale", torch.tensor(math.nan, dtype=torch.float64))
        self._warned = False

    def forward(
        self,
        model: Field,
        x0: Tensor,  # (B, *shape)
        x1: Tensor,  # (B, *shape)
        t: Tensor | None = None,  # (B,)
        *,
        log_weight: Tensor | None = None,  # (B,)
        **cond: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, as by `loss`."""
        return self.loss(model, x0, x1, t, log_weight=log_weight, **cond)

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
        """Compute the loss of a model on source samples and data.

        Args:
            model: `model(x_t, t, **cond)`, shaped as x_t.
            x0, x1: source samples and data.
            t: times; uniform in the span of the path when None.
            log_weight: logarithms of weights of the data (of the pairs, without a coupling), up to a constant; they
                multiply those of the coupling.
            **cond: handed to the model. Tensors with B rows belong to the data, and go with them where the coupling
                leads.

        Returns:
            The loss (), and what it was made of, without gradients: "mse", the squared error without weights; "ess",
            the share of the batch that counts; "displacement" and "unweighted_displacement", the mean squared distance
            of the pairs with and without weights. "ess" below 0.05 warns, once.

        Raises:
            InvalidInput: samples, times or weights that do not fit together; a model of another shape; a single pair
                with normalize="batch", whose weight would always be 1.
        """
        _check_samples(x0, x1)
        log_weight = self._read_weight(log_weight, x1)
        if self.coupling is not None:
            x0, x1, log_weight, cond = self._coupled(self.coupling, x0, x1, log_weight, cond)
        count = len(x0)
        if t is None:
            low, high = self.path.span
            t = (low + (high - low) * self._random(torch.rand, (count,), torch.float64, x0.device)).to(x0.dtype)
        elif not isinstance(t, Tensor) or tuple(t.shape) != (count,):
            refuse("t", f"times of shape ({count},)", f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t))
        x_t, u_t = self.path.sample(x0, x1, t)
        if self.sigma:
            x_t = x_t + self.sigma * self._random(torch.randn, x_t.shape, x_t.dtype, x_t.device)
        velocity = model(x_t, t, **cond)
        if velocity.shape != x_t.shape:
            refuse("model", f"velocities of shape {tuple(x_t.shape)}, as the points", f"shape {tuple(velocity.shape)}")
        error = (velocity - u_t).square().reshape(count, -1).mean(1)
        far = (x1 - x0).detach().square().reshape(count, -1).sum(1)
        info = {"mse": error.detach().mean(), "unweighted_displacement": far.mean()}
        if log_weight is None:
            return error.mean(), {**info, "ess": torch.ones_like(info["mse"]), "displacement": far.mean()}
        info["ess"] = effective_fraction(log_weight).to(error.dtype)
        info["displacement"] = (log_weight.softmax(0).to(far.dtype) * far).sum()
        self._warn(float(info["ess"]))
        return (self._weights(log_weight).to(error.dtype) * error).mean(), info

    def _coupled(
        self, coupling: Coupling, x0: Tensor, x1: Tensor, log_weight: Tensor | None, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
        if self.labels is not None and self.labels not in cond:
            refuse("labels", f"a condition {self.labels!r}", ", ".join(cond) or "none")
        labels = None if self.labels is None else cond[self.labels]
        pairs = coupling(x0, x1, labels1=labels, generator=self.generator)
        moved = {k for k, v in cond.items() if isinstance(v, Tensor) and v.shape[:1] == (len(x1),)}
        if moved or log_weight is not None:
            if pairs.cols is None or coupling.own_data:
                got = ", ".join([*sorted(moved), *(["log_weight"] if log_weight is not None else [])])
                refuse("conditions", "none with a coupling whose partners are not samples of the batch", got)
            cond = {k: v[pairs.cols.to(v.device)] if k in moved else v for k, v in cond.items()}
            log_weight = None if log_weight is None else log_weight[pairs.cols]
        if pairs.log_weight is not None:
            own = pairs.log_weight.double()
            log_weight = own if log_weight is None else log_weight + own
        return pairs.x0, pairs.x1, log_weight, cond

    def _weights(self, log_weight: Tensor) -> Tensor:
        """The weights, normalised, (B,)."""
        if self.normalize == "none":
            return log_weight.exp()
        count = len(log_weight)
        log_mean = log_weight.logsumexp(0) - math.log(count)
        if self.normalize == "batch":
            if count == 1:
                cure = "Use larger batches, or normalize='running'."
                refuse(
                    "batch", "at least two pairs with normalize='batch'", "one, whose weight would always be 1", cure
                )
            return (log_weight - log_mean).exp()
        if self.training:
            fresh = bool(self.log_scale.isnan())
            old, new = self.log_scale.to(log_mean), log_mean
            share = math.log1p(-self.momentum), math.log(self.momentum) if self.momentum else -math.inf
            self.log_scale.copy_(new if fresh else torch.logaddexp(old + share[1], new + share[0]))
        scale = self.log_scale.to(log_mean)
        return (log_weight - torch.where(scale.isnan(), log_mean, scale)).exp()

    def _read_weight(self, log_weight: Any, x1: Tensor) -> Tensor | None:
        if log_weight is None:
            return None
        if not isinstance(log_weight, Tensor) or tuple(log_weight.shape) != (len(x1),):
            got = f"shape {tuple(log_weight.shape)}" if isinstance(log_weight, Tensor) else type(log_weight).__name__
            refuse("log_weight", f"a tensor of shape ({len(x1)},)", got)
        if not bool(log_weight.isfinite().all()):
            refuse("log_weight", "finite logarithms of weights", "NaN or infinity")
        return log_weight.detach().to(x1.device, torch.float64)

    def _random(self, draw: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        home = device if self.generator is None else self.generator.device
        numbers: Tensor = draw(shape, generator=self.generator, dtype=dtype, device=home)
        return numbers.to(device)

    def _warn(self, ess: float) -> None:
        if ess < _COLLAPSED and not self._warned:
            self._warned = True
            warnings.warn(
                f"Weights have collapsed: {ess:.1%} of the batch count, so training hangs on a handful of pairs. "
                "Raise epsilon, or calibrate it.",
                stacklevel=4,
            )


def _check_samples(x0: Any, x1: Any) -> None:
    for x, name in ((x0, "x0"), (x1, "x1")):
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1 or not x.numel():
            got = f"{x.dtype}, shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            refuse(name, "a floating tensor (B, *shape)", got)
    if x0.shape != x1.shape or x0.dtype != x1.dtype or x0.device != x1.device:
        expected = "samples of one shape, dtype and device"
        refuse("x0 and x1", expected, f"{_told(x0)} and {_told(x1)}")


def _told(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"
