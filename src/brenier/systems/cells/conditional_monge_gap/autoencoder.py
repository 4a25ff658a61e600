"""Raw expression in some dozen numbers and back: the space in which the map moves cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...._inputs import is_count, is_real
from ....errors import need, refuse
from ....maps.base import Array
from ....maps.neural import mlp
from ....maps.training import Data, NeuralMap, Samples, cosine

_validation = need("sklearn.utils.validation", "cells", "An autoencoder")

__all__ = ["Autoencoder"]


class Autoencoder(NeuralMap):
    r"""Compress cells by a perceptron, and put them back by its mirror image: a reducer for `CMonge`.

    .. math:: \min_{E, D}\; \mathbb E \lVert x - D(E(x))\rVert^2 / p

    AdamW, whose step grows over the first `warmup` iterations, and falls along a cosine to a tenth.

    Args:
        n_components: numbers that a cell becomes.
        hidden: sizes of the layers of E; D has them the other way round.
        max_iter: iterations.
        batch_size: cells in one.
        lr, weight_decay: of AdamW.
        warmup: iterations until the step length is lr.
        early_stopping, validation_fraction, patience, check_every, checkpoint, timeout, progress, device, seed: as for
            `MongeGapEstimator`; a checkpoint belongs to one `max_iter`.

    Attributes:
        network_: a module with the parts "encoder" and "decoder".
        history_: "loss" of each iteration, and "held_out".
        n_iter_, n_features_in_: iterations, p.

    Raises:
        InvalidInput: parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: one pass forth and back through the networks for each batch.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> cells = np.tanh(rng.normal(size=(300, 2)) @ rng.normal(size=(2, 20)))
        >>> found = Autoencoder(2, hidden=(32,), max_iter=200, lr=5e-3, warmup=20).fit(cells)
        >>> found.transform(cells).shape, found.evaluate(cells)["mse"] < 0.1
        ((300, 2), True)

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025), for its shape and training.
    """

    _not_of_the_fit = ("checkpoint", "timeout", "progress", "device")

    def __init__(
        self,
        n_components: int = 50,
        hidden: Sequence[int] = (512, 512),
        max_iter: int = 5000,
        batch_size: int = 512,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        warmup: int = 100,
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
        self.n_components = n_components
        self.hidden = hidden
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
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
        for size in (self.n_components, *self.hidden):
            if not is_count(size):
                refuse("n_components and hidden", "positive integers", repr(size))
        for name in ("weight_decay", "warmup"):
            value = getattr(self, name)
            if not (is_real(value) and 0 <= value < float("inf")):
                refuse(name, "a finite number >= 0", repr(value))

    def fit(self, X: Any, Y: Any = None) -> Self:
        """Learn from cells (n, p); Y is not looked at."""
        self._check()
        x = self._read(X, reset=True, least=2)
        generator = torch.Generator().manual_seed(self.seed)
        data = Data(Samples(x, "X", torch.device(self.device)), (), generator, self.batch_size)
        self._train(data, self._fingerprint(x))
        self.network_.to(torch.from_numpy(x[:1]).dtype)
        return self

    def _build(self, d: int) -> nn.Module:
        sizes = (d, *self.hidden, self.n_components)
        return nn.ModuleDict({"encoder": mlp(sizes), "decoder": mlp(sizes[::-1])})

    def _optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)]

    def _iterate(
        self, network: nn.Module, optimizers: list[torch.optim.Optimizer], data: Data, iteration: int
    ) -> dict[str, float]:
        (optimizer,) = optimizers
        for group in optimizer.param_groups:
            group["lr"] = self.lr * cosine(iteration, self.max_iter, warmup=self.warmup, floor=0.1)
        x = data.source.draw(data.batch, data.generator)
        loss = nn.functional.mse_loss(_through(network, x), x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"loss": float(loss.detach())}

    @torch.no_grad()
    def _moved(self, network: nn.Module, x: Tensor) -> Tensor:
        return _through(network, x)

    def _held_out(self, network: nn.Module, *held: Tensor) -> float:
        return float(nn.functional.mse_loss(self._moved(network, held[0]), held[0]))

    def transform(self, X: ArrayLike) -> Array:
        """Compress cells (k, p) to (k, n_components)."""
        _validation.check_is_fitted(self)
        return self._applied(self._read(X), lambda network, x: _part(network, "encoder", x).detach())

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Put compressed cells (k, n_components) back to (k, p)."""
        _validation.check_is_fitted(self)
        z: Array = _validation.check_array(X, dtype=[np.float64, np.float32])
        if z.shape[1] != self.n_components:
            refuse("X", f"{self.n_components} components", f"{z.shape[1]}")
        return self._applied(z, lambda network, rows: _part(network, "decoder", rows).detach())

    def evaluate(self, X: ArrayLike, Y: Any = None) -> dict[str, float]:
        """What is lost on the way: "mse", and "r2", the share of the variance that is kept; Y is not looked at."""
        x = self._read(X)
        lost = np.square(self._applied(x, self._moved) - x).mean()
        return {"mse": float(lost), "r2": float(1 - lost / x.var(0).mean())}

    def score(self, X: ArrayLike, Y: Any = None) -> float:
        """Minus the mean squared error."""
        return -self.evaluate(X)["mse"]

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """The components are "autoencoder0", "autoencoder1", ..."""
        return np.asarray([f"autoencoder{k}" for k in range(self.n_components)], dtype=object)


def _part(network: nn.Module, name: str, x: Tensor) -> Tensor:
    assert isinstance(network, nn.ModuleDict)
    out: Tensor = network[name](x)
    return out


def _through(network: nn.Module, x: Tensor) -> Tensor:
    return _part(network, "decoder", _part(network, "encoder", x))
