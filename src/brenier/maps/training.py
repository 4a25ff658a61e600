"""How maps that are networks are trained, measured, interrupted, written and read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .. import costs
from .._files import write_whole
from .._inputs import check_finite, float_tensor, is_count, is_real
from ..costs import Cost, as_cost
from ..errors import need, refuse
from ..losses import mmd, monge_gap, sinkhorn_divergence
from ..problem import Relative
from ..solvers.base import _progress
from .base import Array, CloudMap

_validation = need("sklearn.utils.validation", "learn", "A learned map")

__all__ = ["BANDWIDTHS", "Data", "NeuralMap", "Samples", "cosine", "map_quality"]

Points = ArrayLike | Callable[[int, torch.Generator], Tensor]
"""A cloud (n, d), or a function of a number of points and a generator that draws so many."""

_HELD_OUT_POINTS = 512  # of each side, for the loss that early stopping looks at
_EXACT_POINTS = 2048  # of each side, for the exact gap
_ROWS = 65536  # that go through a network at once
_GAMMAS = (2.0, 1.0, 0.5, 0.1, 0.01, 0.005)  # of exp(-gamma ||x - y||^2)

BANDWIDTHS = tuple((2 * gamma) ** -0.5 for gamma in _GAMMAS)
"""Of the Gaussian kernels of the mean discrepancy, for standardised points."""


# -- how good a map is ---------------------------------------------------------------------------------------


def map_quality(
    x: ArrayLike,  # (n, d)
    moved: ArrayLike,  # (n, d)
    y: ArrayLike,  # (m, d)
    *,
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    epsilon: float | Relative = Relative(0.05),
    bandwidth: float | Sequence[float] = BANDWIDTHS,
) -> dict[str, float]:
    r"""Measure how well points x, sent to `moved`, fit a target y, and how near to optimal the map is.

    Args:
        x, moved: points that the map has not seen, and their images.
        y: points of the target that it has not seen.
        cost: of the map.
        epsilon: of the Sinkhorn divergence.
        bandwidth: of the Gaussian kernels of the mean discrepancy, whose mean is taken; in units of the points, the
            default is for standardised ones.

    Returns:
        "sinkhorn_divergence" and "mmd" (the squared discrepancy) between `moved` and y, "exact_gap" and
        "displacement", the mean cost, of the map. The gap is that of the first 2,048 points.

    Raises:
        InvalidInput: clouds that do not fit together.

    Complexity: some dozen passes over the pairs, and one exact assignment.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> found = map_quality(x, x + 1, x + 1)
        >>> round(found["displacement"], 6), abs(found["exact_gap"]) < 1e-9, abs(found["mmd"]) < 1e-9
        (2.0, True, True)
    """
    with torch.no_grad():
        u, v, w = (float_tensor(t, name).double() for t, name in ((x, "x"), (moved, "moved"), (y, "y")))
        if u.shape != v.shape:
            refuse("moved", f"shape {tuple(u.shape)}, as x has", f"{tuple(v.shape)}")
        ground = as_cost(cost)
        gap = monge_gap(u[:_EXACT_POINTS], v[:_EXACT_POINTS], cost=ground, convention="exact")
        return {
            "sinkhorn_divergence": float(sinkhorn_divergence(v, w, epsilon=epsilon).value),
            "mmd": float(mmd(v, w, bandwidth=bandwidth)),
            "exact_gap": float(gap),
            "displacement": float(ground(u, v).mean()),
        }


# -- training ------------------------------------------------------------------------------------------------


class Samples:
    """One side of the data in float32: a cloud of which batches are drawn, or a function that draws them."""

    def __init__(
        self, given: Array | Callable[[int, torch.Generator], Tensor], name: str, device: torch.device
    ) -> None:
        self.name, self.device = name, device
        self.sampler = given if callable(given) else None
        self.points = None if callable(given) else torch.from_numpy(np.array(given, dtype=np.float32)).to(device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """So many points; of a cloud without repetition, and not more than it has."""
        if self.sampler is not None:
            drawn = float_tensor(self.sampler(n, generator), self.name)
            if drawn.dim() != 2 or len(drawn) != n:
                refuse(self.name, f"a function that draws points of shape ({n}, d)", f"shape {tuple(drawn.shape)}")
            check_finite(drawn, self.name, "finite coordinates")
            return drawn.to(device=self.device, dtype=torch.float32)
        assert self.points is not None
        size = len(self.points)
        if n >= size:
            return self.points
        if n * 16 > size:
            index = torch.randperm(size, generator=generator)[:n]
        else:  # repetitions are rare then, and shuffling all is dear
            index = torch.randint(0, size, (n,), generator=generator)
        return self.points[index.to(self.device)]

    def split(self, fraction: float, batch: int, generator: torch.Generator) -> Tensor:
        """Points that are held out; those of a cloud are no longer drawn."""
        if self.points is None:
            return self.draw(min(batch, _HELD_OUT_POINTS), generator)
        size = len(self.points)
        count = max(1, round(fraction * size))
        if count >= size:
            refuse(self.name, "points enough to hold some out", f"{size}", "Use early_stopping=False.")
        order = torch.randperm(size, generator=generator).to(self.device)
        held_out, self.points = self.points[order[:count]], self.points[order[count:]]
        return held_out[:_HELD_OUT_POINTS]


class Data(NamedTuple):
    """What a training loop draws from: a source and its target, or several targets, each with a context."""

    source: Samples
    targets: Sequence[Samples]
    generator: torch.Generator
    batch: int
    contexts: Sequence[Tensor] = ()  # one for each target, or none

    def draw(self) -> tuple[Tensor, ...]:
        """A batch of either side, (n, d) and (m, d); of several targets that of one, drawn evenly, and its context."""
        if not self.contexts:
            return self.source.draw(self.batch, self.generator), self.targets[0].draw(self.batch, self.generator)
        k = int(torch.randint(len(self.targets), (), generator=self.generator))
        return (
            self.source.draw(self.batch, self.generator),
            self.targets[k].draw(self.batch, self.generator),
            self.contexts[k],
        )

    def some(self, n: int) -> tuple[Tensor, Tensor]:
        """About n points of the source, and as many of all targets together, in equal shares."""
        share = -(-n // len(self.targets))
        x = self.source.draw(n, self.generator)
        return x, torch.cat([target.draw(share, self.generator) for target in self.targets])

    def hold_out(self, fraction: float) -> list[tuple[Tensor, ...]]:
        """Points that are no longer drawn: for each target those of the source, its own and its context."""
        x = self.source.split(fraction, self.batch, self.generator)
        sides = [target.split(fraction, self.batch, self.generator) for target in self.targets]
        return [(x, y, *self.contexts[k : k + 1]) for k, y in enumerate(sides)] or [(x,)]


def cosine(iteration: int, max_iter: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """What a step length is multiplied by: it grows to 1 in the first iterations, then falls along a cosine.

    Args:
        iteration, max_iter: which of how many.
        warmup: iterations until it is 1.
        floor: where it ends.
    """
    if iteration < warmup:
        return (iteration + 1) / warmup
    share = min((iteration - warmup) / max(max_iter - warmup, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class _State:
    """Where the training is."""

    iteration: int = 0
    best: float = math.inf  # held-out loss
    stale: int = 0  # looks at it since then
    weights: dict[str, Tensor] | None = None  # of the best network
    history: dict[str, list[float]] = field(default_factory=dict)

    def note(self, measured: dict[str, float]) -> None:
        for name, value in measured.items():
            self.history.setdefault(name, []).append(value)


class _Shown:
    """What the progress bar asks a solver for."""

    def __init__(self, name: str, max_iter: int) -> None:
        self.name, self.max_iter = name, max_iter

    def error(self, loss: float) -> float:
        return loss


class NeuralMap(CloudMap):
    r"""Learn a map from a source to a target with networks, on batches: the base of the estimators of this kind.

    Subclasses say which networks there are (`_build`), what an iteration does (`_iterate`), and where points go
    (`_moved`). This class draws batches, stops early, writes checkpoints and goes on from them, shows progress, and
    reads and writes files. Networks are trained in float32 and applied in the precision of the data.

    Attributes:
        network_: the trained networks, a module; the map itself for maps that are one network.
        history_: numbers of each iteration, by name; "held_out" has one for each look at the held-out points. Not
            written to files.
        n_iter_: iterations that were made.
        n_features_in_: d.
    """

    hidden: Sequence[int]
    max_iter: int
    batch_size: int
    lr: float
    early_stopping: bool
    validation_fraction: float
    patience: int
    check_every: int
    checkpoint: str | Path | None
    timeout: float | None
    progress: bool
    device: str
    seed: int

    _fitted: tuple[str, ...] = ()  # what files keep beside the network: numbers, texts and sequences of them
    # what may differ when a fit is resumed
    _not_of_the_fit: tuple[str, ...] = ("max_iter", "checkpoint", "timeout", "progress", "device")

    @abstractmethod
    def _build(self, d: int) -> nn.Module:
        """The networks, at their start."""

    @abstractmethod
    def _optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """What moves their parameters."""

    @abstractmethod
    def _iterate(
        self, network: nn.Module, optimizers: list[torch.optim.Optimizer], data: Data, iteration: int
    ) -> dict[str, float]:
        """One iteration; numbers for the history, the first of which is the loss."""

    @abstractmethod
    def _moved(self, network: nn.Module, x: Tensor) -> Tensor:
        """Where points (n, d) go, without a gradient."""

    def _prepare(self, data: Data) -> None:
        """Whatever must be known of the data before the first iteration."""

    def _held_out(self, network: nn.Module, *held: Tensor) -> float:
        """The loss on what `Data.draw` gives, of points that were held out."""
        return float(
            sinkhorn_divergence(self._moved(network, held[0]), held[1], epsilon=Relative(0.05), tol=1e-3).value
        )

    # -- fit -------------------------------------------------------------------------------------------------

    def fit(self, X: Points, Y: Points | None = None) -> Self:
        """Learn the map from X to Y.

        Args:
            X, Y: clouds (n, d) and (m, d) of any sizes; or functions of a number of points and a `torch.Generator`
                that draw so many, as tensors (k, d).

        Raises:
            InvalidInput: no target, clouds of different dimensions, a parameter that breaks a rule, a checkpoint of
                another fit, or a loss that is no longer finite.
            ValueError: what scikit-learn refuses.
        """
        self._check()
        generator = torch.Generator().manual_seed(self.seed)
        x = self._clouds(X)
        if Y is None:
            refuse("Y", "a target cloud", "None", "Call fit(X, Y).")
        y = Y if callable(Y) else self._target(Y, np.float32 if callable(x) else x.dtype)
        device = torch.device(self.device)
        source, target = Samples(x, "X", device), Samples(y, "Y", device)
        for samples in (source, target):
            d = samples.draw(1, generator).shape[1] if samples.points is None else samples.points.shape[1]
            if d != self.n_features_in_:
                refuse(samples.name, f"points of dimension {self.n_features_in_}", f"dimension {d}")
        self._train(Data(source, (target,), generator, self.batch_size), self._fingerprint(x, y))
        self.network_.to(torch.float32 if callable(x) else float_tensor(x[:1], "X").dtype)
        return self

    def _clouds(self, X: Points) -> Any:
        if not callable(X):
            return self._read(X, reset=True, least=2)
        drawn = float_tensor(X(2, torch.Generator().manual_seed(self.seed)), "X")
        if drawn.dim() != 2:
            refuse("X", "a function that draws points of shape (n, d)", f"shape {tuple(drawn.shape)}")
        self.n_features_in_ = int(drawn.shape[1])
        return X

    def _target(self, Y: ArrayLike, dtype: Any) -> Array:
        y: Array = _validation.check_array(Y, dtype=dtype, ensure_min_samples=2)
        return y

    def _check(self) -> None:
        for name in ("max_iter", "batch_size", "patience", "check_every"):
            if not is_count(getattr(self, name)):
                refuse(name, "a positive integer", repr(getattr(self, name)))
        if not (is_real(self.lr) and 0 < self.lr < math.inf):
            refuse("lr", "a positive finite number", repr(self.lr))
        if self.early_stopping and not (is_real(self.validation_fraction) and 0 < self.validation_fraction < 1):
            refuse("validation_fraction", "a number in (0, 1)", repr(self.validation_fraction))
        if self.timeout is not None and not (is_real(self.timeout) and self.timeout > 0):
            refuse("timeout", "a positive number of seconds or None", repr(self.timeout))

    def _train(self, data: Data, fingerprint: str) -> None:
        device, generator = data.source.device, data.generator
        held_out = data.hold_out(self.validation_fraction) if self.early_stopping else None
        self._prepare(data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._build(self.n_features_in_).to(device=device, dtype=torch.float32)
        optimizers = self._optimizers(network)
        state = _State()
        path = None if self.checkpoint is None else Path(self.checkpoint)
        if path is not None and path.exists():
            state = self._resume(path, fingerprint, network, optimizers, generator)
        begin = time.perf_counter()
        network.train()
        with _progress(_Shown(type(self).__name__, self.max_iter), self.progress) as report:  # type: ignore[arg-type]
            while state.iteration < self.max_iter and state.stale < self.patience:
                measured = self._iterate(network, optimizers, data, state.iteration)
                loss = next(iter(measured.values()))
                if not math.isfinite(loss):
                    refuse("training", "a finite loss", f"{loss} at iteration {state.iteration}",
                           "Lower lr, raise epsilon, or standardise the data.")  # fmt: skip
                state.note(measured)
                state.iteration += 1
                report(state.iteration, loss)
                late = self.timeout is not None and time.perf_counter() - begin >= self.timeout
                due = state.iteration % self.check_every == 0
                if due and held_out is not None:
                    self._look(network, held_out, state)
                if path is not None and (due or late or state.iteration == self.max_iter):
                    self._write(path, fingerprint, network, optimizers, generator, state)
                if late:
                    break
        # no part of the checkpoint, as a longer fit does not look here
        if held_out is not None and state.iteration % self.check_every:
            self._look(network, held_out, state)
        if state.weights is not None:
            network.load_state_dict(state.weights)
        self.network_ = network.eval()
        self.history_ = state.history
        self.n_iter_ = state.iteration

    def _look(self, network: nn.Module, held_out: list[tuple[Tensor, ...]], state: _State) -> None:
        """Compare the network with the best so far."""
        network.eval()
        loss = sum(self._held_out(network, *held) for held in held_out) / len(held_out)
        network.train()
        state.note({"held_out": loss})
        state.stale += 1
        if loss < state.best:
            state.best, state.stale = loss, 0
            state.weights = {k: t.detach().clone() for k, t in network.state_dict().items()}

    # -- checkpoints -----------------------------------------------------------------------------------------

    def _fingerprint(self, *sides: Any) -> str:
        """What a fit is told by: its parameters and its data; of a function, what it draws first."""
        given = {k: v for k, v in self.get_params(deep=False).items() if k not in self._not_of_the_fit}
        digest = hashlib.sha256(json.dumps({k: _encoded(v)[1] for k, v in given.items()}, sort_keys=True).encode())
        for side in sides:
            if callable(side):
                side = float_tensor(side(2, torch.Generator().manual_seed(self.seed)), "points").cpu().numpy()
            digest.update(np.ascontiguousarray(side).tobytes())
        return digest.hexdigest()

    def _write(
        self,
        path: Path,
        fingerprint: str,
        network: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        generator: torch.Generator,
        state: _State,
    ) -> None:
        content = {
            "fit": fingerprint,
            "network": network.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers],
            "generator": generator.get_state(),
            "progress": {f.name: getattr(state, f.name) for f in fields(state)},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(path, buffer.getvalue())

    def _resume(
        self,
        path: Path,
        fingerprint: str,
        network: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        generator: torch.Generator,
    ) -> _State:
        content = torch.load(path, map_location=self.device, weights_only=True)
        if content.get("fit") != fingerprint:
            refuse("checkpoint", "the file of this fit", f"one of other data or parameters at {path}",
                   "Give another path, or delete the file.")  # fmt: skip
        network.load_state_dict(content["network"])
        for optimizer, saved in zip(optimizers, content["optimizers"]):
            optimizer.load_state_dict(saved)
        generator.set_state(content["generator"].cpu())
        return _State(**content["progress"])

    # -- use -------------------------------------------------------------------------------------------------

    def transform(self, X: ArrayLike) -> Array:
        """Send points (k, d) of the source to the target."""
        _validation.check_is_fitted(self)
        return self._applied(self._read(X), self._moved)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Refuse: a network that maps forth has no way back.

        Raises:
            InvalidInput: always, but for estimators that learn both ways.
        """
        refuse(f"{type(self).__name__}.inverse_transform", "a map that was learned both ways", "one way only",
               "Fit another one with the clouds exchanged.")  # fmt: skip

    def _applied(self, X: Array, moved: Callable[[nn.Module, Tensor], Tensor]) -> Array:
        first = next(self.network_.parameters())
        points = torch.from_numpy(np.array(X)).to(first)
        parts = [moved(self.network_, rows) for rows in points.split(_ROWS)]
        out: Array = torch.cat(parts).cpu().numpy().astype(X.dtype)
        return out

    def evaluate(self, X: ArrayLike, Y: ArrayLike) -> dict[str, float]:
        """Measure fit and optimality on points that the map has not seen; see `map_quality`."""
        x = self._read(X)
        ground = getattr(self, "cost", "sqeuclidean")
        return map_quality(x, self.transform(X), self._target(Y, x.dtype), cost=ground)

    def score(self, X: ArrayLike, Y: ArrayLike) -> float:
        """Minus the Sinkhorn divergence between the mapped X and Y."""
        return -self.evaluate(X, Y)["sinkhorn_divergence"]

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write weights and parameters to a file of safetensors, which `load` reads.

        Functions and networks that were given as parameters are not in it.
        """
        _validation.check_is_fitted(self)
        safetensors = need("safetensors.torch", "learn", "Writing a map to a file")
        encoded = {k: _encoded(v) for k, v in self.get_params(deep=False).items()}
        header = {
            "parameters": {k: value for k, (known, value) in encoded.items() if known},
            "features": self.n_features_in_,
            "names": list(map(str, getattr(self, "feature_names_in_", []))),
            "fitted": {name: _encoded(getattr(self, name))[1] for name in ("n_iter_", *self._fitted)},
            "dtype": str(next(self.network_.parameters()).dtype).removeprefix("torch."),
        }
        weights = {k: t.detach().cpu().contiguous() for k, t in self.network_.state_dict().items()}
        write_whole(Path(path), safetensors.save(weights, metadata={"brenier": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path, **parameters: Any) -> Self:
        """Read what `save` wrote.

        Args:
            path: of the file.
            parameters: that take the place of those in the file; a map with a network of its own needs it here.
        """
        safetensors = need("safetensors", "learn", "Reading a map from a file")
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("brenier", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if "parameters" not in header:
            refuse("path", "a file that a map has written", str(path))
        out = cls(**{**{k: _decoded(v) for k, v in header["parameters"].items()}, **parameters})
        out.n_features_in_ = header["features"]
        for name, value in header["fitted"].items():
            setattr(out, name, _decoded(value))
        network = out._build(out.n_features_in_).to(getattr(torch, header["dtype"]))
        network.load_state_dict(weights)
        out.network_ = network.to(out.device).eval()
        if header["names"]:
            out.feature_names_in_ = np.asarray(header["names"], dtype=object)
        return out


def _encoded(value: Any) -> tuple[bool, Any]:
    """Whether a parameter can be read back from text, and what JSON holds of it."""
    if isinstance(value, Relative):
        return True, {"Relative": value.fraction}
    if isinstance(value, Cost) and type(value).__name__ in costs.__all__ and hasattr(value, "__dataclass_fields__"):
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}  # type: ignore[arg-type]
        given = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in given.items()}
        if not any(map(callable, given.values())):
            return True, {"cost": type(value).__name__, "fields": given}
    if isinstance(value, list | tuple):
        return True, {"sequence": [_encoded(v)[1] for v in value]}
    if isinstance(value, Path):
        return True, str(value)
    if value is None or isinstance(value, str | bool):
        return True, value
    if is_real(value):
        return True, value.item() if isinstance(value, np.generic) else value
    return False, getattr(value, "__qualname__", type(value).__qualname__)


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "Relative" in value:
        return Relative(value["Relative"])
    if "cost" in value:
        given = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v
                 for k, v in value["fields"].items()}  # fmt: skip
        return getattr(costs, value["cost"])(**given)
    return tuple(_decoded(v) for v in value["sequence"])
