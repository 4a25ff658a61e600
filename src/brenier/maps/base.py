"""What the maps share: the clouds that they read, and the plan that a fitted one carries."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._inputs import float_tensor, weights_tensor
from ..costs import Cost
from ..errors import need, refuse
from ..geometry import PointCloud
from ..plan import Plan
from ..solution import Solution

_base = need("sklearn.base", "learn", "A map as an estimator")
_validation = need("sklearn.utils.validation", "learn", "A map as an estimator")

__all__ = ["CloudMap", "PlanMap"]

Array = NDArray[Any]


class CloudMap(_base.OneToOneFeatureMixin, _base.TransformerMixin, _base.BaseEstimator):  # type: ignore[misc, name-defined]
    """An estimator that moves points of a cloud within their space."""

    def _read(self, X: ArrayLike, *, reset: bool = False, least: int = 1) -> Array:
        """Points (n, d) of float64 or float32, with the features that were fitted."""
        checked = {"dtype": [np.float64, np.float32], "ensure_min_samples": least}
        if hasattr(_validation, "validate_data"):
            read: Array = _validation.validate_data(self, X, reset=reset, **checked)
        else:  # scikit-learn before 1.6
            read = self._validate_data(X, reset=reset, **checked)
        return read


class PlanMap(CloudMap):
    r"""Adapt a source cloud to a target cloud along a transport plan: the base of the maps below.

    Training points go to the barycentres of the plan, T(x_i) = sum_j P_ij y_j / sum_j P_ij. A new point goes where the
    nearest training point with mass goes, by the same displacement: T(x) = x + T(x_i) - x_i.

    Attributes:
        plan_: the transport plan, an operator: `plan_ @ v`, `plan_.sparse()`, `plan_.dense()`.
        source_, target_: the clouds, (n, d) and (m, d).
        value_: what was minimised.
        n_iter_: iterations of the solver.
        n_features_in_: d.

    Reference:
        Courty, Flamary, Tuia & Rakotomamonjy (2017), Optimal transport for domain adaptation; Ferradans, Papadakis,
        Peyré & Aujol (2014), Regularized discrete optimal transport (new points).
    """

    cost: str | Cost

    @abstractmethod
    def _solve(self, x: Array, y: Array, a: Array, b: Array, ys: ArrayLike | None) -> Solution:
        """Solve for the plan between two clouds with masses of total 1."""

    def fit(
        self,
        Xs: ArrayLike,  # (n, d)
        ys: ArrayLike | None = None,  # (n,)
        Xt: ArrayLike | None = None,  # (m, d)
        sample_weight: ArrayLike | None = None,  # (n,)
        target_weight: ArrayLike | None = None,  # (m,)
    ) -> Self:
        """Find the plan from the source Xs to the target Xt.

        Args:
            Xs, Xt: clouds of any sizes, with the same features.
            ys: classes of the source, for maps that look at them.
            sample_weight, target_weight: masses, normalised here; uniform when None.

        Raises:
            InvalidInput: no target, or masses or parameters that break a rule.
            ValueError: what scikit-learn refuses.
        """
        x = self._read(Xs, reset=True)
        if Xt is None:
            refuse("Xt", "a target cloud", "None", "Call fit(Xs, ys, Xt), or fit(Xs, Xt=Xt) without classes.")
        y = self._read(Xt).astype(x.dtype, copy=False)
        a, b = self._masses(sample_weight, x, "sample_weight"), self._masses(target_weight, y, "target_weight")
        # float32 is for what goes in and out
        solution = self._solve(x.astype(np.float64), y.astype(np.float64), a, b, ys)
        self.source_, self.target_ = x, y
        self.plan_: Plan = solution.plan
        self.value_ = float(solution.value)
        self.n_iter_ = int(solution.stats["n_iter"])
        self._keep(solution, a, b)
        return self

    def _keep(self, solution: Solution, a: Array, b: Array) -> None:
        """Whatever else of the solution new points need."""

    def transform(self, X: ArrayLike) -> Array:
        """Send points (k, d) of the source to the target."""
        _validation.check_is_fitted(self)
        return self._sent(self._read(X), back=False)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Send points (k, d) of the target back to the source."""
        _validation.check_is_fitted(self)
        return self._sent(self._read(X), back=True)

    def transform_labels(self, ys: ArrayLike) -> Array:
        """Classes of the target, as shares: where the mass of each target point comes from.

        Args:
            ys: classes of the source, (n,).

        Returns:
            (m, k), one column for each class of `np.unique(ys)`; rows add up to one, and are zero without mass.
        """
        _validation.check_is_fitted(self)
        return self._shares(ys, "ys", self.plan_.T)

    def inverse_transform_labels(self, yt: ArrayLike) -> Array:
        """Classes of the source, as shares (n, k), from those of the target, (m,)."""
        _validation.check_is_fitted(self)
        return self._shares(yt, "yt", self.plan_)

    def _sent(self, X: Array, *, back: bool) -> Array:
        here, there, plan = self.source_, self.target_, self.plan_
        if back:
            here, there, plan = there, here, plan.T
        moved = self._extension(torch.from_numpy(X.astype(np.float64)), _double(here), _double(there), plan, back)
        out: Array = moved.numpy().astype(X.dtype)
        return out

    def _extension(self, new: Tensor, here: Tensor, there: Tensor, plan: Plan, back: bool) -> Tensor:
        """Where new points go: along the displacement of the nearest training point that has mass."""
        image = torch.as_tensor(plan.barycentric(there)).double()
        live = torch.as_tensor(plan.row_sums()) > 0
        if not bool(live.any()):
            refuse("the plan", "some mass to follow", "none", "Raise rho.")
        here, image = here[live], image[live]
        nearest = PointCloud(new, here).cmin(here.new_zeros(len(here)))[1]
        return new + (image - here)[nearest]

    def _shares(self, labels: ArrayLike, name: str, plan: Plan) -> Array:
        classes, index = read_classes(labels, name, plan.shape[1])
        one = np.eye(len(classes))[index]
        mass: Array = np.asarray(plan @ one)
        total = mass.sum(1, keepdims=True)
        out: Array = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0).astype(self.source_.dtype)
        return out

    @staticmethod
    def _masses(weights: ArrayLike | None, X: Array, name: str) -> Array:
        read = weights_tensor(weights, len(X), name, torch.empty(0, dtype=torch.float64))
        if read.dim() != 1:
            refuse(name, f"shape ({len(X)},)", f"shape {tuple(read.shape)}")
        out: Array = (read / read.sum()).numpy()
        return out


def _double(X: Array) -> Tensor:
    return float_tensor(X, "points").double()


def read_classes(labels: ArrayLike | None, name: str, n: int) -> tuple[Array, Array]:
    """The sorted classes (k,) of labels (n,), and the index of each label among them."""
    if labels is None:
        refuse(name, f"{n} classes, one for each point", "None")
    read: Array = _validation.column_or_1d(labels)
    if len(read) != n:
        refuse(name, f"{n} classes, one for each point", f"{len(read)}")
    classes, index = np.unique(read, return_inverse=True)
    return classes, index
