"""The linear optimal map between two clouds, as a scikit-learn estimator."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import need, refuse
from ..solvers.gaussian.gaussian import Gaussian
from ..solvers.gaussian.transport import gaussian_transport
from .base import Array, CloudMap

_validation = need("sklearn.utils.validation", "learn", "A linear map")

__all__ = ["LinearMap"]

_STATE = ("source_mean_", "target_mean_", "matrix_", "inverse_matrix_", "cost_")


class LinearMap(CloudMap):
    r"""Move a cloud onto another one by the linear map that is optimal between Gaussians with their moments.

    .. math:: T(x) = n + A (x - m), \qquad A = S_Y^{1/2} (S_Y^{1/2} S_X S_Y^{1/2})^{-1/2} S_Y^{1/2}

    with means m, n and covariances S_X, S_Y. It is the optimal map wherever Y is X under a symmetric positive
    definite matrix and a shift, for any law of X. Without a target cloud the target is N(0, I), and the map whitens.

    Args:
        shrinkage: of both covariances, as in `Gaussian.fit`; None is none.
        epsilon: entropic strength in units of the squared distance, which shrinks the map; None is the map itself.

    Attributes:
        source_mean_, target_mean_: m, n, (d,).
        matrix_, inverse_matrix_: A and the matrix of the way back, (d, d).
        cost_: of the optimal plan between the Gaussians: W_2^2, with its entropic term if any; a lower bound of that
            between the clouds without epsilon and shrinkage.
        n_features_in_: d.

    Raises:
        InvalidInput: clouds of different dimensions, masses or parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: O((n + m) d^2 + d^3) for a fit, O(d^2) for a point.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(100, 2))
        >>> Y = X @ np.array([[2.0, 0.5], [0.5, 1.0]]) + 3
        >>> bool(np.allclose(LinearMap().fit(X, Y).transform(X), Y))
        True

    Source: Flamary, Lounici & Ferrari (2020), Concentration bounds for linear Monge mapping estimation and optimal
    transport domain adaptation.
    """

    def __init__(self, shrinkage: float | str | None = None, epsilon: float | None = None) -> None:
        self.shrinkage = shrinkage
        self.epsilon = epsilon

    def fit(
        self,
        X: ArrayLike,  # (n, d)
        Y: ArrayLike | None = None,  # (m, d)
        sample_weight: ArrayLike | None = None,  # (n,)
        target_weight: ArrayLike | None = None,  # (m,)
    ) -> Self:
        """Estimate the map from X to Y; to N(0, I) when Y is None.

        Args:
            X, Y: clouds of any sizes.
            sample_weight, target_weight: masses, normalised here; uniform when None.
        """
        x = self._read(X, reset=True, least=2)
        p = self._gaussian(x, sample_weight)
        if Y is None:
            q = Gaussian.of(torch.zeros_like(p.mean), torch.eye(p.d, dtype=p.dtype))
        else:
            y: Array = _validation.check_array(Y, dtype=x.dtype, ensure_min_samples=2)
            if y.shape[1] != x.shape[1]:
                refuse("Y", f"points of dimension {x.shape[1]}, as X has", f"dimension {y.shape[1]}")
            q = self._gaussian(y, target_weight)
        plan = gaussian_transport(p, q, epsilon=self.epsilon)
        back = gaussian_transport(q, p, epsilon=self.epsilon)
        found = (p.mean, q.mean, plan.matrix, back.matrix, plan.value)
        for name, value in zip(_STATE, found):
            setattr(self, name, value.numpy()[()])
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Send points (k, d) of the source to the target."""
        _validation.check_is_fitted(self)
        out: Array = self.target_mean_ + (self._read(X) - self.source_mean_) @ self.matrix_
        return out

    def inverse_transform(self, Y: ArrayLike) -> Array:
        """Send points (k, d) of the target back to the source."""
        _validation.check_is_fitted(self)
        y: Array = _validation.check_array(Y, dtype=[np.float64, np.float32])
        if y.shape[1] != self.n_features_in_:
            refuse("Y", f"points of dimension {self.n_features_in_}", f"dimension {y.shape[1]}")
        out: Array = self.source_mean_ + (y - self.target_mean_) @ self.inverse_matrix_
        return out

    def save(self, path: str | Path) -> None:
        """Write parameters and fitted arrays to a file of torch, which `load` reads."""
        _validation.check_is_fitted(self)
        fitted = {name: torch.as_tensor(getattr(self, name)) for name in _STATE}
        names = list(map(str, getattr(self, "feature_names_in_", [])))
        torch.save({"parameters": self.get_params(), "fitted": fitted, "names": names}, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; the file is not trusted with anything but numbers and text."""
        state = torch.load(path, weights_only=True)
        out = cls(**state["parameters"])
        for name in _STATE:
            setattr(out, name, state["fitted"][name].numpy()[()])
        out.n_features_in_ = len(out.source_mean_)
        if state["names"]:
            out.feature_names_in_ = np.asarray(state["names"], dtype=object)
        return out

    def _gaussian(self, X: Array, weights: ArrayLike | None) -> Gaussian:
        return Gaussian.fit(X, weights, shrinkage=self.shrinkage)
