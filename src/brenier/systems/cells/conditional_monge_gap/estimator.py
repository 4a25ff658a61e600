"""The estimator, and its readers of AnnData."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...._inputs import float_tensor, is_count, is_real, plain
from ....api import solve
from ....costs import Cost, as_cost
from ....errors import need, refuse
from ....losses import mmd, monge_gap
from ....maps.base import Array
from ....maps.neural import MongeGapEstimator, Schedule
from ....maps.training import BANDWIDTHS, Data, Samples, cosine
from ....problem import Relative
from .contexts import dose_context
from .metrics import mmd_floor, response_metrics
from .networks import ConditionalMongeMap, ConditionEncoder

_base = need("sklearn.base", "cells", "Learning perturbations")
_validation = need("sklearn.utils.validation", "cells", "Learning perturbations")

__all__ = ["CMonge", "Populations", "populations"]

_LEAST_CELLS = 32  # of a condition: fewer would be the same ones in every batch
_FLOOR = 0.01  # the part of the step length that is left in the end
_EPSILON = 0.1  # of the distances that are measured, in their unit


class Populations(NamedTuple):
    """The cells of an experiment by condition, in the order of the arguments of `CMonge.fit` and `CMonge.evaluate`.

    Attributes:
        control: untreated cells, (n, d).
        treated: condition to its cells (n_k, d).
        contexts: condition to its numbers.
    """

    control: Array
    treated: dict[Any, Array]
    contexts: dict[Any, Array]


def populations(
    adata: Any,
    condition: str = "condition",
    control: str = "control",
    *,
    contexts: Mapping[Any, ArrayLike] | None = None,
    dose: str | None = None,
    use_rep: str | None = None,
) -> Populations:
    """Read an AnnData: which cells are controls, which belong to which condition, and its context.

    Args:
        adata: cells with their labels in `obs`.
        condition: the column of the conditions, such as drugs.
        control: the label of the controls.
        contexts: numbers of each label; those of `dose` are appended. None where there is one label beside the control,
            and the dose is all.
        dose: the column of doses, positive for all cells but controls. A condition is then a pair of label and dose.
        use_rep: a representation in `obsm`, such as "X_pca"; X when None.

    Raises:
        InvalidInput: no such column, label or representation, doses that are not positive, or no contexts.

    Complexity: linear in the number of cells.

    Example:
        >>> import anndata, numpy as np, pandas as pd
        >>> obs = pd.DataFrame({"drug": ["none", "a", "a", "none"], "nM": [0.0, 10.0, 100.0, 0.0]}, index=list("wxyz"))
        >>> adata = anndata.AnnData(np.eye(4), obs=obs)
        >>> found = populations(adata, "drug", "none", dose="nM")
        >>> found.control.shape, {key: c.tolist() for key, c in found.contexts.items()}
        ((2, 4), {('a', 10.0): [1.0], ('a', 100.0): [2.0]})
    """
    for column in filter(None, (condition, dose)):
        if column not in adata.obs.columns:
            refuse("adata", f"a column {column!r} in obs", ", ".join(map(str, adata.obs.columns)) or "none")
    cells = _representation(adata, use_rep)
    labels = np.asarray(adata.obs[condition].astype(str))
    untreated = labels == control
    if not untreated.any() or untreated.all():
        refuse("control", f"the label of some cells in obs[{condition!r}], and not of all", repr(control))
    names = sorted(set(labels[~untreated]))
    if contexts is None and (dose is None or len(names) > 1):
        refuse("contexts", f"numbers for each of {len(names)} conditions", "None", "A dose alone does for one drug.")
    doses = None if dose is None else np.asarray(adata.obs[dose], dtype=np.float64)
    treated: dict[Any, Array] = {}
    found: dict[Any, Array] = {}
    for name in names:
        drug = () if contexts is None else _entry(contexts, name, "contexts")
        here = labels == name
        if doses is None:
            treated[name], found[name] = cells[here], np.asarray(drug, dtype=np.float64)
            continue
        for value in map(float, np.unique(doses[here])):
            key = name, value
            treated[key], found[key] = cells[here & (doses == value)], dose_context(value, drug)
    return Populations(cells[untreated], treated, found)


def _representation(adata: Any, use_rep: str | None) -> Array:
    if use_rep is None:
        return np.asarray(plain(adata, "adata"))
    if use_rep not in adata.obsm:
        refuse("use_rep", f"one of obsm: {', '.join(adata.obsm) or 'none'}", repr(use_rep))
    return np.asarray(plain(adata.obsm[use_rep], "use_rep"))


def _entry(mapping: Mapping[Any, Any], key: Any, name: str) -> Any:
    if key not in mapping:
        near = difflib.get_close_matches(str(key), list(map(str, mapping)), n=3)
        cure = f"Did you mean {' or '.join(near)}?" if near else ""
        refuse(name, f"an entry for {key!r}", f"{len(mapping)} others", cure)
    return mapping[key]


class CMonge(MongeGapEstimator):
    r"""Learn one map for all conditions: from control cells and a context to treated cells.

    .. math:: \min_\theta\; \mathbb E_c \Big[ S_{\varepsilon_{\text{fit}}}\big(T_\theta(\cdot, c)_\# \mu, \nu_c\big)
        + \lambda\, M_\varepsilon\big(T_\theta(\cdot, c)\big) \Big]

    Each iteration draws a condition, all with equal chance whatever their numbers of cells, a batch of its cells and
    one of controls. S is the Sinkhorn divergence and M the Monge gap, both of the distance; the step of AdamW falls
    along a cosine to a hundredth. Where a reducer is given, cells are moved in its space, and predictions are put back.

    Cells should be on one scale (standardise them with training cells), and so should the numbers of the contexts.

    Args:
        cost: of both terms, as for `solve`; symmetric.
        lam: the weight of the gap, or a function of the iteration.
        epsilon, epsilon_fit: of the gap and of the divergence, in cost units, or `Relative(fraction)` of the mean cost.
        mode: "slices", or "set" for contexts that are sets of drugs, (r, c) each.
        slices, sizes: of `ConditionEncoder`.
        hidden, residual, layer_norm: of `ConditionalMongeMap`.
        reducer: a transformer of scikit-learn with a way back, such as `PCA(50)` or `Autoencoder()`; a copy is fitted
            to all training cells.
        max_iter: iterations.
        batch_size: cells of either side in one; all where a condition has fewer.
        accumulate: how many conditions an iteration draws, whose gradients are averaged.
        lr, weight_decay: of AdamW.
        tol: marginal error of the solves.
        early_stopping, validation_fraction, patience, check_every, checkpoint, timeout, progress, device, seed: as for
            `MongeGapEstimator`; the held-out loss is the mean over conditions, and a checkpoint belongs to one
            `max_iter`, as the cosine does.

    Attributes:
        network_: the map, a module of points and a context.
        reducer_: the fitted reducer, if any. Not written to files: hand it to `load`.
        conditions_: (condition, context) of the training, in order; `contexts_` has them as a dictionary.
        n_cells_: of each condition.
        history_: "loss", "fit" and "gap" of each iteration, and "held_out".
        epsilon_, epsilon_fit_: in cost units.
        n_components_: dimension of the space in which cells are moved.
        n_iter_, n_features_in_: iterations, d.

    Raises:
        InvalidInput: cells, contexts or parameters that break a rule.
        ValueError: what scikit-learn refuses.
        NotConvergedWarning: where a solve of an iteration did not reach `tol`.

    Complexity: an iteration is `accumulate` times four entropic problems of batch_size points. O(n d) for new cells.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> control = rng.normal(size=(300, 2))
        >>> treated = {dose: rng.normal(size=(300, 2)) + [2 * dose, 0] for dose in (0.0, 0.5, 1.0)}
        >>> found = CMonge(hidden=(32,), sizes=4, max_iter=150, batch_size=64, lr=1e-2)
        >>> found = found.fit(control, treated, {dose: [dose] for dose in treated})
        >>> moved = found.predict(control, [0.75])  # a dose that was never seen
        >>> bool(abs((moved - control).mean(0)[0] - 1.5) < 0.4)
        True

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025), Towards generalizable single-cell perturbation modeling via
    the conditional Monge gap; Uscidda & Cuturi (2023), The Monge gap.
    """

    _fitted = ("epsilon_", "epsilon_fit_", "n_components_", "conditions_", "n_cells_")
    _not_of_the_fit = ("checkpoint", "timeout", "progress", "device")

    # what the loss of one map has beside
    loss = None
    network = None
    lam_cons = 0.0
    structured = False
    sphere = False

    def __init__(
        self,
        cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "euclidean",
        lam: Schedule = 1.0,
        epsilon: float | Relative = 0.01,
        epsilon_fit: float | Relative = 1.0,
        mode: str = "slices",
        slices: Sequence[Sequence[int]] | None = None,
        sizes: int | Sequence[int] = 50,
        hidden: Sequence[int] = (64, 64, 64, 64),
        residual: bool = True,
        layer_norm: bool = False,
        reducer: Any = None,
        max_iter: int = 10_000,
        batch_size: int = 512,
        accumulate: int = 1,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        tol: float = 1e-3,
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
        self.cost = cost
        self.lam = lam
        self.epsilon = epsilon
        self.epsilon_fit = epsilon_fit
        self.mode = mode
        self.slices = slices
        self.sizes = sizes
        self.hidden = hidden
        self.residual = residual
        self.layer_norm = layer_norm
        self.reducer = reducer
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.lr = lr
        self.weight_decay = weight_decay
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.check_every = check_every
        self.checkpoint = checkpoint
        self.timeout = timeout
        self.progress = progress
        self.device = device
        self.seed = seed

    # -- training --------------------------------------------------------------------------------------------

    def fit(  # type: ignore[override]
        self,
        X: Any,  # (n, d)
        Y: Mapping[Any, Any] | None = None,
        contexts: Mapping[Any, ArrayLike] | None = None,
    ) -> Self:
        """Learn the map.

        Args:
            X: control cells: an array, a frame or an AnnData (its X).
            Y: each training condition's cells, (n_k, d); at least 32. Conditions are texts, numbers, or tuples of them.
            contexts: numbers of each of these conditions, (c,), or (r, c) for a set of r drugs.

        Raises:
            InvalidInput: no conditions, too few cells, conditions without a context, contexts of different lengths, a
                parameter that breaks a rule, a checkpoint of another fit, or a loss that is no longer finite.
            ValueError: what scikit-learn refuses.
        """
        self._check()
        control = self._cells(X, reset=True)
        if not isinstance(Y, Mapping) or not Y:
            refuse(
                "Y",
                "a mapping of conditions to their cells",
                "an empty one" if isinstance(Y, Mapping) else type(Y).__name__,
            )
        if not isinstance(contexts, Mapping):
            refuse("contexts", "a mapping of conditions to numbers", type(contexts).__name__)
        treated = [self._cells(cloud).astype(control.dtype, copy=False) for cloud in Y.values()]
        for key, cells in [("X", control), *((f"Y[{key!r}]", cells) for key, cells in zip(Y, treated))]:
            if len(cells) < _LEAST_CELLS:
                refuse(key, f"at least {_LEAST_CELLS} cells", f"{len(cells)}", "Pool replicates, or leave it out.")
        vectors = [self._numbers(_entry(contexts, key, "contexts"), f"contexts[{key!r}]") for key in Y]
        lengths = sorted({v.shape[-1] for v in vectors})
        if len(lengths) > 1:
            refuse("contexts", "one length", " and ".join(map(str, lengths)))
        self.conditions_ = tuple((_key(key), _nested(v)) for key, v in zip(Y, vectors))
        self.n_cells_ = tuple(map(len, treated))
        if self.reducer is not None:
            self.reducer_ = _base.clone(self.reducer).fit(np.concatenate([control, *treated]))
        latent = [self._reduced(cells) for cells in (control, *treated)]
        self.n_components_ = int(latent[0].shape[1])
        device = torch.device(self.device)
        source, *targets = (Samples(cells, "cells", device) for cells in latent)
        told = [torch.tensor(v, dtype=torch.float32, device=device) for v in vectors]
        data = Data(source, targets, torch.Generator().manual_seed(self.seed), self.batch_size, told)
        self._train(data, self._fingerprint(*latent, *vectors))
        self.network_.to(float_tensor(control[:1], "X").dtype)
        return self

    def fit_anndata(self, adata: Any, condition: str = "condition", control: str = "control", **options: Any) -> Self:
        """Learn the map from an AnnData; arguments and options as for `populations`."""
        return self.fit(*populations(adata, condition, control, **options))

    def _check(self) -> None:
        super()._check()
        if not is_count(self.accumulate):
            refuse("accumulate", "a positive integer", repr(self.accumulate))
        if not (is_real(self.weight_decay) and 0 <= self.weight_decay < math.inf):
            refuse("weight_decay", "a finite number >= 0", repr(self.weight_decay))
        if self.mode not in ("slices", "set"):
            refuse("mode", "'slices' or 'set'", repr(self.mode))
        if self.reducer is not None and not hasattr(self.reducer, "inverse_transform"):
            refuse("reducer", "a transformer with inverse_transform, or None", repr(self.reducer))

    def _cells(self, X: Any, *, reset: bool = False) -> Array:
        return self._read(X if hasattr(X, "columns") else plain(X, "cells"), reset=reset)

    def _numbers(self, value: ArrayLike, name: str) -> Array:
        """A context as numbers, (c,), or (r, c) for a set."""
        out: Array = float_tensor(value, name).double().cpu().numpy()
        if self.mode == "set" and out.ndim == 1:
            out = out[None]
        if out.ndim != 1 + (self.mode == "set") or not out.size:
            refuse(
                name, "numbers (r, c), one row a drug" if self.mode == "set" else "numbers (c,)", f"shape {out.shape}"
            )
        if not np.isfinite(out).all():
            refuse(name, "finite numbers", "NaN or infinity")
        return out

    def _reduced(self, X: Array) -> Array:
        return X if self.reducer is None else np.asarray(self._the_reducer().transform(X), dtype=X.dtype)

    def _the_reducer(self) -> Any:
        return getattr(self, "reducer_", self.reducer)  # a map from a file has the one that it was given

    def _build(self, d: int) -> nn.Module:
        length = np.asarray(self.conditions_[0][1]).shape[-1]
        encoder = ConditionEncoder(length, self.slices, self.sizes, mode=self.mode)
        return ConditionalMongeMap(
            self.n_components_, encoder, self.hidden, residual=self.residual, layer_norm=self.layer_norm
        )

    def _optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)]

    def _cost_fit(self) -> str | Cost | Callable[[Tensor, Tensor], Tensor]:
        return self.cost

    def _iterate(
        self, network: nn.Module, optimizers: list[torch.optim.Optimizer], data: Data, iteration: int
    ) -> dict[str, float]:
        (optimizer,) = optimizers
        for group in optimizer.param_groups:
            group["lr"] = self.lr * cosine(iteration, self.max_iter, floor=_FLOOR)
        optimizer.zero_grad(set_to_none=True)
        parts = [self._descend(network, data, iteration, 1 / self.accumulate) for _ in range(self.accumulate)]
        optimizer.step()
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    # -- use -------------------------------------------------------------------------------------------------

    @property
    def contexts_(self) -> dict[Any, Array]:
        """The contexts of the training conditions."""
        return {key: np.asarray(numbers) for key, numbers in self.conditions_}

    def predict(self, X: Any, context: Any) -> Array:
        """Say what becomes of control cells (k, d) under a condition.

        Args:
            X: cells.
            context: a training condition, or the numbers of any other.

        Raises:
            InvalidInput: a name that is no training condition, or numbers of another length.
        """
        _validation.check_is_fitted(self)
        x = self._cells(X)
        moved = self._sent(self._reduced(x), context)
        return (
            moved if self.reducer is None else np.asarray(self._the_reducer().inverse_transform(moved), dtype=x.dtype)
        )

    def transform(self, X: ArrayLike, context: Any = None) -> Array:
        """The same as `predict`, by the name that transformers have."""
        if context is None:
            refuse("context", "a training condition, or the numbers of another", "None")
        return self.predict(X, context)

    def predict_anndata(self, adata: Any, context: Any, *, use_rep: str | None = None) -> Any:
        """Say what becomes of the cells of an AnnData: a copy, with what is predicted in X, or in `obsm[use_rep]`."""
        moved = self.predict(_representation(adata, use_rep), context)
        out = adata.copy()
        if use_rep is None:
            out.X = moved
        else:
            out.obsm[use_rep] = moved
        return out

    def _sent(self, latent: Array, context: Any) -> Array:
        """Where cells in the space of the reducer go."""
        told = torch.from_numpy(self._told(context)).to(next(self.network_.parameters()))
        return self._applied(latent, lambda network, rows: self._moved(network, rows, told))

    def _told(self, context: Any) -> Array:
        known = self.contexts_
        named = isinstance(context, str) or (isinstance(context, tuple) and any(isinstance(c, str) for c in context))
        try:
            if named or context in known:
                return _entry(known, context, "context")  # type: ignore[no-any-return]
        except TypeError:  # not hashable: numbers
            pass
        numbers = self._numbers(context, "context")
        length = np.asarray(self.conditions_[0][1]).shape[-1]
        if numbers.shape[-1] != length:
            refuse("context", f"{length} numbers, as in the training", f"{numbers.shape[-1]}")
        return numbers

    def evaluate(  # type: ignore[override]
        self,
        X: Any,  # (n, d)
        Y: Mapping[Any, Any],
        contexts: Mapping[Any, ArrayLike] | None = None,
        *,
        features: Any = None,
        max_cells: int = 2048,
    ) -> Any:
        """Measure predictions on cells that were not trained on, a row for each condition.

        Args:
            X: control cells.
            Y: conditions to their cells (n_k, d); any conditions, seen or not.
            contexts: their numbers; None for training conditions.
            features: indices of the features to measure on, such as marker genes; or a mapping of conditions to them.
            max_cells: of either side; more are drawn from.

        Returns:
            A pandas frame with the columns of `response_metrics`, then "exact_gap" and "displacement" of the map, in
            units of the cost and in the space of the reducer; "mmd_identity" of controls that are left as they are;
            "mmd_floor", what a perfect prediction would show; "wasserstein_floor", between halves of the real cells;
            and "n_control" and "n_treated".

        Raises:
            InvalidInput: a condition without a context, or too few cells.

        Complexity: for each condition, some dozen passes over the pairs, and one exact assignment of the controls.
        """
        pandas = need("pandas", "cells", "A table of metrics")
        _validation.check_is_fitted(self)
        if not is_count(max_cells):
            refuse("max_cells", "a positive integer", repr(max_cells))
        rng = np.random.default_rng(self.seed)
        x = _some(self._cells(X), max_cells, rng)
        latent = self._reduced(x)
        rows = []
        for key, cloud in Y.items():
            y = _some(self._cells(cloud), max_cells, rng)
            context = key if contexts is None else _entry(contexts, key, "contexts")
            sent = self._sent(latent, context)
            moved = sent if self.reducer is None else np.asarray(self._the_reducer().inverse_transform(sent))
            columns = features[key] if isinstance(features, Mapping) else slice(None) if features is None else features
            u, v, w = (cells[:, columns] for cells in (moved, y, x))
            near = solve(v[: len(v) // 2], v[len(v) // 2 :], cost="euclidean", epsilon=_EPSILON)
            begin, end = (torch.from_numpy(cells).double() for cells in (latent, sent))
            rows.append(
                {
                    **response_metrics(u, v, epsilon=_EPSILON),
                    "exact_gap": float(monge_gap(begin, end, cost=self.cost, convention="exact")),
                    "displacement": float(as_cost(self.cost)(begin, end).mean()),
                    "mmd_identity": float(mmd(w, v, bandwidth=BANDWIDTHS)),
                    "mmd_floor": mmd_floor(v, len(u), seed=self.seed),
                    "wasserstein_floor": float(near.linear_value),
                    "n_control": len(x),
                    "n_treated": len(y),
                }
            )
        return pandas.DataFrame(rows, index=pandas.Index(list(Y), name="condition", tupleize_cols=False))

    def score(self, X: Any, Y: Mapping[Any, Any], contexts: Mapping[Any, ArrayLike] | None = None) -> float:  # type: ignore[override]
        """Minus the mean over conditions of the Sinkhorn divergence between predicted and real cells."""
        return -float(self.evaluate(X, Y, contexts)["sinkhorn_divergence"].mean())


def _some(cells: Array, limit: int, rng: np.random.Generator) -> Array:
    """So many cells, in random order: halves of them are random halves."""
    return cells[rng.permutation(len(cells))[:limit]]


def _key(key: Any) -> Any:
    """A condition as files can keep it."""
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    if isinstance(key, np.generic):
        key = key.item()
    if not (isinstance(key, str) or is_real(key)):
        refuse("Y", "conditions that are texts, numbers or tuples of them", repr(key))
    return key


def _nested(numbers: Array) -> tuple[Any, ...]:
    return tuple(map(_nested, numbers)) if numbers.ndim > 1 else tuple(map(float, numbers))
