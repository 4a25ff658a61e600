"""Maps by input-convex networks: the neural dual of the squared Euclidean cost, a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .._inputs import is_count
from ..errors import need, refuse
from .base import Array
from .training import Data, NeuralMap

_validation = need("sklearn.utils.validation", "learn", "A learned map")

__all__ = ["ICNN", "ICNNMap"]


class ICNN(nn.Module):
    r"""A convex function of its input, with its gradient.

    .. math:: z_{k+1} = \sigma(W_k z_k + A_k x + b_k), \qquad
        \varphi(x) = w^\top z_K + a^\top x + \tfrac12 \lVert q \odot x\rVert^2

    with W_k, w >= 0 and sigma (softplus) convex and increasing. It begins near ||x||^2 / 2, whose gradient is the
    identity. `project` puts weights that an optimiser has made negative back to zero.

    Args:
        dim: d.
        hidden: sizes of the layers.

    Raises:
        InvalidInput: no layers, or sizes that are not positive integers.

    Example:
        >>> import torch
        >>> f, x = ICNN(3), torch.randn(5, 3)
        >>> f(x).shape, f.gradient(x).shape
        (torch.Size([5]), torch.Size([5, 3]))

    Source: Amos, Xu & Kolter (2017), Input convex neural networks.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64, 64, 64)) -> None:
        super().__init__()
        if not hidden:
            refuse("hidden", "at least one layer", repr(tuple(hidden)))
        for size in (dim, *hidden):
            if not is_count(size):
                refuse("dim and hidden", "positive integers", repr(size))
        inputs = [nn.Linear(dim, size) for size in (*hidden, 1)]
        self.inputs = nn.ModuleList(inputs)
        self.positive = nn.ModuleList(
            nn.Linear(before, after, bias=False) for before, after in zip(hidden, (*hidden[1:], 1))
        )
        self.scale = nn.Parameter(torch.full((dim,), 1.0))
        with torch.no_grad():
            for layer in self._layers:
                layer.weight.abs_().div_(layer.in_features**0.5)
            inputs[-1].weight.mul_(0.1)

    @property
    def _layers(self) -> list[nn.Linear]:
        return [layer for layer in self.positive if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """The function at points (..., d): (...)."""
        z = nn.functional.softplus(self.inputs[0](x))
        last = len(self.positive) - 1
        for k, layer in enumerate(self._layers):
            z = layer(z) + self.inputs[k + 1](x)
            z = z if k == last else nn.functional.softplus(z)
        return z.squeeze(-1) + (self.scale * x).square().sum(-1) / 2

    def gradient(self, x: Tensor, *, create_graph: bool = False) -> Tensor:
        """Its gradient at points (..., d): (..., d)."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (out,) = torch.autograd.grad(self(x).sum(), x, create_graph=create_graph)
        return out

    @torch.no_grad()
    def project(self) -> None:
        """Make the function convex again, after a step of its weights."""
        for layer in self._layers:
            layer.weight.clamp_(min=0)


class ICNNMap(NeuralMap):
    r"""Learn the optimal map of the squared Euclidean cost as the gradient of a convex network.

    .. math:: \min_f \max_g\; \mathbb E_\nu f(y)
        + \mathbb E_\mu \big[\langle x, \nabla g(x)\rangle - f(\nabla g(x))\big]

    Both are input-convex; the maximum over g is the convex conjugate of f, and there the gradient of g is that of the
    conjugate: T = grad g sends mu to nu, and grad f sends nu back. Each iteration takes `inner_iter` steps of g and one
    of f, on batches. It is the baseline that `MongeGapEstimator` is compared with: one cost, one family of networks,
    and a saddle point instead of a minimum, but maps that are gradients of convex functions by construction, and a
    way back.

    Args:
        hidden: sizes of the layers of both.
        inner_iter: steps of g for one of f.
        max_iter: steps of f.
        batch_size, checkpoint, timeout, progress, device, seed: as for `MongeGapEstimator`.
        early_stopping, validation_fraction, patience, check_every: as there; looks at a Sinkhorn divergence.
        lr: step length of Adam, whose first moment has the memory 0.5.

    Attributes:
        network_: a module with the functions `f` and `g`.
        history_: "loss", the dual objective, of each iteration, and "held_out".
        n_iter_, n_features_in_: iterations, d.

    Raises:
        InvalidInput: clouds or parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: an iteration is inner_iter + 1 second-order passes through the networks. O(n d) for a new point.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(500, 2))
        >>> found = ICNNMap(hidden=(16, 16), max_iter=60, inner_iter=3, lr=1e-2).fit(X, X + [1, 0])
        >>> bool(np.abs(found.transform(X) - X - [1, 0]).mean() < 0.5)
        True

    Source: Makkuva, Taghvaei, Oh & Lee (2020), Optimal transport mapping via input convex neural networks.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64, 64, 64),
        inner_iter: int = 10,
        max_iter: int = 1000,
        batch_size: int = 256,
        lr: float = 1e-3,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        check_every: int = 100,
        checkpoint: str | Path | None = None,
        timeout: float | None = None,
        progress: bool = False,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.inner_iter = inner_iter
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.lr = lr
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.check_every = check_every
        self.checkpoint = checkpoint
        self.timeout = timeout
        self.progress = progress
        self.device = device
        self.seed = seed

    def _check(self) -> None:
        super()._check()
        if not is_count(self.inner_iter):
            refuse("inner_iter", "a positive integer", repr(self.inner_iter))

    def _build(self, d: int) -> nn.Module:
        return nn.ModuleDict({"f": ICNN(d, self.hidden), "g": ICNN(d, self.hidden)})

    def _optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        f, g = _pair(network)
        return [torch.optim.Adam(part.parameters(), lr=self.lr, betas=(0.5, 0.9)) for part in (f, g)]

    def _iterate(
        self, network: nn.Module, optimizers: list[torch.optim.Optimizer], data: Data, iteration: int
    ) -> dict[str, float]:
        f, g = _pair(network)
        of_f, of_g = optimizers
        f.requires_grad_(False)  # constants of the inner steps, but for the gradient in the points
        for _ in range(self.inner_iter):
            x = data.source.draw(data.batch, data.generator)
            moved = g.gradient(x, create_graph=True)
            loss = (f(moved) - (x * moved).sum(-1)).mean()
            of_g.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            of_g.step()
            g.project()
        f.requires_grad_(True)
        x, y = data.draw()
        moved = g.gradient(x).detach()
        objective = f(y).mean() - f(moved).mean()
        of_f.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        of_f.step()
        f.project()
        return {"loss": float(objective.detach() + (x * moved).sum(-1).mean())}

    def _moved(self, network: nn.Module, x: Tensor) -> Tensor:
        return _pair(network)[1].gradient(x).detach()

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Send points (k, d) of the target back to the source."""
        _validation.check_is_fitted(self)
        return self._applied(self._read(X), lambda network, x: _pair(network)[0].gradient(x).detach())


def _pair(network: nn.Module) -> tuple[ICNN, ICNN]:
    assert isinstance(network, nn.ModuleDict)
    f, g = network["f"], network["g"]
    assert isinstance(f, ICNN)
    assert isinstance(g, ICNN)
    return f, g
