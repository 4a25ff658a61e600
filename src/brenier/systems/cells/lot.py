"""Linearised optimal transport (LOT): a cohort of point clouds as vectors.

Each patient, culture or utterance is a cloud of points. LOT transports one fixed reference onto every cloud and keeps
where each reference point goes: one vector per cloud, whose Euclidean geometry approximates Wasserstein-2. Linear
classifiers, principal components and averages then apply, and what they find maps back to markers, regions and cells.

Reference: Wang, Ke, Bhaskar, Krishnaswamy & Cloninger (2025), arXiv 2510.22033; Wang, Slepcev, Basu, Ozolek & Rohde
(2013), A linear optimal transportation framework for quantifying and visualizing variations in sets of images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..._inputs import float_tensor
from ...api import solve
from ...costs import Euclidean
from ...errors import need, refuse
from ...plan import Plan
from ...problem import Relative

_base = need("sklearn.base", "cells", "Linearised optimal transport")

__all__ = [
    "Importance",
    "LOTEmbedding",
    "cell_scores",
    "combine",
    "feature_importance",
    "lot_barycenter",
    "sample_within_class",
]

Array = NDArray[np.float64]


class Importance(NamedTuple):
    """How much a linear classifier uses each marker and each region."""

    marker: Array  # (d,)
    region: Array  # (m,), one for each reference point


class LOTEmbedding(_base.TransformerMixin, _base.BaseEstimator):  # type: ignore[misc, name-defined]
    r"""Embed clouds as the barycentric projections of optimal plans from one reference (or one per class).

    With the reference R (m, d), weights w, and P_i the optimal plan from (R, w) to cloud i under the squared Euclidean
    cost, row j of T_i = diag(1/w) P_i X_i is the mean position to which reference point j is sent. The feature vector
    is sqrt(w_j) (T_i - R)_j, row by row, so that Euclidean distance is the LOT distance

        d(i, k)^2 = sum_j w_j ||T_i(j) - T_k(j)||^2,

    which equals W2^2 when all clouds are shifts or scalings of the reference, and bounds it from above otherwise up to
    the error of the projection. Row j means the same region in every cloud: differences are registered.

    Args:
        n_reference: number m of reference points; between 20 and a few hundred.
        reference: "gaussian" (a sample of N(mean, covariance) of the pooled points), "subset" (random pooled points),
            "barycenter" (start from a Gaussian sample and replace it `n_refine` times by the mean of all T_i, a fixed
            point of which is a free-support W2 barycentre), "class_barycenters" (one such barycentre for each class in
            y; features are concatenated), or an array (m, d).
        solver: "exact" (network simplex) or "sinkhorn" (faster for thousands of cells, biased toward the mean).
        epsilon: for "sinkhorn", in cost units or `Relative`; Relative(0.01) when None.
        center: subtract the reference.
        weight: scale rows by sqrt(w_j); without it `distances` still weighs, but plain Euclidean distance does not.
        n_refine: iterations of the barycentre references.
        seed: of the reference sample.
        keep_plans: keep the plans of the clouds last transformed, needed by `cell_scores`.
        n_jobs: threads; solves release the interpreter lock.

    Attributes:
        references_: (k, m, d), k = 1 or the number of classes; w is uniform.
        classes_: the classes of the references, for "class_barycenters".
        mean_, std_: (k m, d) mean and standard deviation of T over the training clouds, in data units.
        plans_: with `keep_plans`, for each cloud its plans, one for each reference.
        n_features_in_: the number d of coordinates.

    Raises:
        InvalidInput: no clouds, an empty cloud, different dimensions, NaN, negative or zero-sum weights, an unknown
            option, "class_barycenters" without y.

    Complexity: one solve a cloud and reference; exact ones typically cost O((m + n_i)^2 log(m + n_i)) or a little more,
    and m n_i memory. The fit transforms the training clouds once more for each refinement.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> clouds = [rng.normal(shift, 1, size=(30, 2)) for shift in (0, 0, 3, 3)]
        >>> embedding = LOTEmbedding(n_reference=20)
        >>> Z = embedding.fit_transform(clouds)
        >>> Z.shape, bool(embedding.distances(Z)[0, 1] < embedding.distances(Z)[0, 2])
        ((4, 40), True)
    """

    def __init__(
        self,
        n_reference: int = 200,
        reference: str | ArrayLike = "gaussian",
        solver: str = "exact",
        epsilon: float | Relative | None = None,
        center: bool = True,
        weight: bool = True,
        n_refine: int = 1,
        seed: int = 0,
        keep_plans: bool = False,
        n_jobs: int = 1,
    ) -> None:
        self.n_reference = n_reference
        self.reference = reference
        self.solver = solver
        self.epsilon = epsilon
        self.center = center
        self.weight = weight
        self.n_refine = n_refine
        self.seed = seed
        self.keep_plans = keep_plans
        self.n_jobs = n_jobs

    # -- scikit-learn's three verbs --------------------------------------------------------------------------

    def fit(self, clouds: Sequence[ArrayLike], y: ArrayLike | None = None, weights: Any = None) -> Self:
        """Choose the reference from training clouds.

        Args:
            clouds: N arrays (n_i, d).
            y: classes (N,), for "class_barycenters".
            weights: N arrays (n_i,) of masses, normalised here; uniform when None.
        """
        self.fit_transform(clouds, y, weights=weights)
        return self

    def fit_transform(self, clouds: Sequence[ArrayLike], y: Any = None, weights: Any = None) -> Array:  # type: ignore[override]
        """Choose the reference from training clouds and return their features, (N, k m d)."""
        self._check_options()
        points, masses = _cohort(clouds, weights)
        self.n_features_in_ = points[0].shape[1]
        self.references_ = self._choose_references(points, masses, y)
        T = self._project(points, masses)
        self.mean_, self.std_ = T.mean(0), T.std(0)
        return self._features(T)

    def transform(self, clouds: Sequence[ArrayLike], weights: Any = None) -> Array:
        """Features of clouds, (N, k m d)."""
        self._check_fitted()
        points, masses = _cohort(clouds, weights)
        if points[0].shape[1] != self.n_features_in_:
            refuse("clouds", f"points of dimension {self.n_features_in_}, as in fit", f"dimension {points[0].shape[1]}")
        return self._features(self._project(points, masses))

    def inverse_transform(self, Z: ArrayLike) -> Array:
        """Decode features into clouds of k m points with equal weights, (N, k m, d)."""
        self._check_fitted()
        k, m, d = self.references_.shape
        Z = np.asarray(Z, dtype=np.float64)
        if Z.ndim != 2 or Z.shape[1] != k * m * d:
            refuse("Z", f"features of shape (N, {k * m * d})", f"shape {Z.shape}")
        T = Z.reshape(-1, k * m, d)
        if self.weight:
            T = T / self._row_scale()
        return T + self.references_.reshape(k * m, d) if self.center else T

    # -- geometry --------------------------------------------------------------------------------------------

    def distances(self, Z: ArrayLike, other: ArrayLike | None = None) -> Array:
        """LOT distances between the rows of Z (and of `other`), (N, N'): an approximation of W2."""
        left = self.inverse_transform(Z).reshape(len(np.asarray(Z)), -1)
        right = left if other is None else self.inverse_transform(other).reshape(len(np.asarray(other)), -1)
        return Euclidean().block(torch.from_numpy(left), torch.from_numpy(right)).numpy() * self._row_scale()

    def displacement(self, z_from: ArrayLike, z_to: ArrayLike) -> Array:
        """How each region moves between two clouds, T_to(j) - T_from(j), (k m, d)."""
        (start,), (end,) = (self.inverse_transform(np.atleast_2d(np.asarray(z))) for z in (z_from, z_to))
        return end - start

    def set_output(self, *, transform: str | None = None) -> Self:
        """Refuse frames: features have no names of their own."""
        if transform not in (None, "default"):
            refuse("set_output transform", "'default'", repr(transform))
        return self

    # -- how it is done --------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        for name, least in (("n_reference", 1), ("n_refine", 0), ("seed", 0), ("n_jobs", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                refuse(name, f"an integer >= {least}", repr(value))
        if self.solver not in ("exact", "sinkhorn"):
            refuse("solver", "'exact' or 'sinkhorn'", repr(self.solver))
        names = ("gaussian", "subset", "barycenter", "class_barycenters")
        if isinstance(self.reference, str) and self.reference not in names:
            refuse("reference", "one of " + ", ".join(map(repr, names)) + " or an array (m, d)", repr(self.reference))

    def _check_fitted(self) -> None:
        need("sklearn.utils.validation", "cells", "Linearised optimal transport").check_is_fitted(self, "references_")

    def _choose_references(self, points: list[Array], masses: list[Array], y: Any) -> Array:
        self.__dict__.pop("classes_", None)
        if not isinstance(self.reference, str):
            given = _array(self.reference, "reference")
            if given.ndim != 2 or given.shape[1] != self.n_features_in_ or len(given) == 0:
                refuse("reference", f"an array (m, {self.n_features_in_}), m >= 1", f"shape {given.shape}")
            if not np.isfinite(given).all():
                refuse("reference", "finite coordinates", "NaN or infinity")
            return given[None]
        if self.reference == "class_barycenters":
            if y is None:
                refuse("y", "classes, for reference='class_barycenters'", "None")
            labels = np.asarray(y)
            if labels.shape != (len(points),):
                refuse("y", f"one class for each of the {len(points)} clouds", f"shape {labels.shape}")
            self.classes_ = np.unique(labels)
            chosen = [np.flatnonzero(labels == c) for c in self.classes_]
            return np.stack([self._barycenter([points[i] for i in c], [masses[i] for i in c]) for c in chosen])
        if self.reference == "barycenter":
            return self._barycenter(points, masses)[None]
        return self._sample(points, masses)[None]

    def _sample(self, points: list[Array], masses: list[Array]) -> Array:
        rng = np.random.default_rng(self.seed)
        pooled, weight = np.concatenate(points), np.concatenate(masses) / len(points)
        m = self.n_reference
        if self.reference == "subset":
            count = np.count_nonzero(weight)
            if count < m:
                refuse("n_reference", f"at most the {count} pooled points", m)
            return pooled[rng.choice(len(pooled), m, replace=False, p=weight)]
        mean = weight @ pooled
        covariance = np.atleast_2d(np.cov(pooled.T, aweights=weight, ddof=0))
        return rng.multivariate_normal(mean, covariance, size=m, method="eigh")

    def _barycenter(self, points: list[Array], masses: list[Array]) -> Array:
        reference = self._sample(points, masses)
        for _ in range(self.n_refine):
            reference = np.mean([t for t, _ in self._map_all(reference, points, masses)], axis=0)
        return reference

    def _project(self, points: list[Array], masses: list[Array]) -> Array:
        """T of each cloud over all references, (N, k m, d)."""
        per_reference = [self._map_all(r, points, masses) for r in self.references_]
        self.__dict__.pop("plans_", None)
        if self.keep_plans:
            self.plans_ = [[plan for _, plan in of_cloud] for of_cloud in zip(*per_reference)]
        return np.stack([np.concatenate([t for t, _ in of_cloud]) for of_cloud in zip(*per_reference)])

    def _map_all(self, reference: Array, points: list[Array], masses: list[Array]) -> list[tuple[Array, Plan]]:
        start = torch.from_numpy(reference)
        soft = Relative(0.01) if self.epsilon is None else self.epsilon

        def one(x: Array, b: Array) -> tuple[Array, Plan]:
            epsilon = None if self.solver == "exact" else soft
            solver = "network-simplex" if self.solver == "exact" else "sinkhorn"
            # mass-preserving and of the same size as w: sums to one
            plan = solve(start, torch.from_numpy(x), b=torch.from_numpy(b), epsilon=epsilon, solver=solver).plan
            return plan.barycentric().numpy(), plan

        if self.n_jobs == 1:
            return [one(x, b) for x, b in zip(points, masses)]
        with ThreadPoolExecutor(self.n_jobs) as pool:
            return list(pool.map(one, points, masses))

    def _row_scale(self) -> float:
        k, m, _ = self.references_.shape
        return float(np.sqrt(1 / (k * m)))  # sqrt(w_j), averaged over the references

    def _features(self, T: Array) -> Array:
        if self.center:
            T = T - self.references_.reshape(-1, T.shape[-1])
        if self.weight:
            T = T * self._row_scale()
        return T.reshape(len(T), -1)


def _array(values: Any, name: str) -> Array:
    return np.asarray(float_tensor(values, name).detach().double().cpu())


def _cohort(clouds: Sequence[ArrayLike], weights: Any) -> tuple[list[Array], list[Array]]:
    """Check clouds and masses; masses are normalised."""
    if isinstance(clouds, np.ndarray) and clouds.ndim == 2:
        refuse("clouds", "a list of clouds (n_i, d)", f"one array of shape {clouds.shape}", "Wrap it in a list.")
    for name, given in (("clouds", clouds), ("weights", weights)):
        if given is None and name == "weights":
            continue
        if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            refuse(name, "a list of arrays", type(given).__name__)
    if len(clouds) == 0:
        refuse("clouds", "at least one cloud", "none")
    points = [_array(c, f"cloud {i}") for i, c in enumerate(clouds)]
    dims = {p.shape[1] if p.ndim == 2 else None for p in points}
    if None in dims or 0 in dims or len(dims) != 1:
        shapes = sorted({p.shape[1:] for p in points})
        refuse("clouds", "arrays (n_i, d) of one dimension d", f"trailing shapes {shapes}")
    for i, p in enumerate(points):
        if len(p) == 0:
            refuse(f"cloud {i}", "at least one point", "none", "Leave it out.")
        if not np.isfinite(p).all():
            refuse(f"cloud {i}", "finite coordinates", "NaN or infinity", "Drop or impute those points.")
    if weights is None:
        return points, [np.full(len(p), 1 / len(p)) for p in points]
    if len(weights) != len(points):
        refuse("weights", f"one array for each of the {len(points)} clouds", len(weights))
    masses = [_array(w, f"weights {i}") for i, w in enumerate(weights)]
    for i, (p, w) in enumerate(zip(points, masses)):
        if w.shape != (len(p),):
            refuse(f"weights {i}", f"shape ({len(p)},), one mass for each point", f"shape {w.shape}")
        if not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
            refuse(
                f"weights {i}", "finite, nonnegative masses that do not all vanish", f"minimum {w.min()}, sum {w.sum()}"
            )
    return points, [w / w.sum() for w in masses]


def lot_barycenter(
    Z: ArrayLike,  # (N, p)
    lambdas: ArrayLike,  # (N,) or (K, N)
) -> Array:  # (p,) or (K, p)
    """Weighted averages sum_i lambda_i Z_i of embeddings; `inverse_transform` decodes them into clouds.

    Args:
        Z: features of N clouds.
        lambdas: weights that sum to one, one row for each average. Negative ones extrapolate, with a warning.

    Raises:
        InvalidInput: shapes that do not fit, or weights that do not sum to one.
    """
    Z, lambdas = np.asarray(Z, dtype=np.float64), np.asarray(lambdas, dtype=np.float64)
    if Z.ndim != 2 or lambdas.shape[-1:] != (len(Z),):
        refuse("lambdas", f"{len(Z)} weights, one for each embedding", f"shape {lambdas.shape}")
    sums = np.atleast_1d(lambdas.sum(-1))
    if not np.allclose(sums, 1, atol=1e-8):
        worst = float(sums.flat[np.argmax(np.abs(sums - 1))])  # NaN counts as largest
        refuse("lambdas", "weights that sum to 1", f"a sum of {worst:.6g}", "Divide by the sum.")
    if (lambdas < 0).any():
        warnings.warn("negative weights extrapolate: the decoded cloud may be implausible", UserWarning, stacklevel=2)
    return lambdas @ Z


def sample_within_class(
    Z: ArrayLike, y: ArrayLike, n: int, seed: int = 0, *, n_parents: int | None = 3
) -> tuple[Array, NDArray[Any]]:
    """Draw n synthetic embeddings per class, Dirichlet(1, ..., 1) averages of embeddings of that class.

    Args:
        Z: (N, p) embeddings.
        y: (N,) classes.
        n: number of synthetic samples for each class.
        seed: of the draw.
        n_parents: how many random members each sample averages; all when None, which stays close to the class mean.

    Returns:
        (n_classes n, p) embeddings and their classes.

    Raises:
        InvalidInput: shapes that do not fit, or counts below 1.
    """
    for name, count in (("n", n), ("n_parents", 1 if n_parents is None else n_parents)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            refuse(name, "an integer >= 1", repr(count))
    Z, y = np.asarray(Z, dtype=np.float64), np.asarray(y)
    if Z.ndim != 2 or y.shape != (len(Z),):
        refuse("Z and y", "shapes (N, p) and (N,)", f"{Z.shape} and {y.shape}")
    rng = np.random.default_rng(seed)
    samples, labels = [], []
    for c in np.unique(y):
        members = np.flatnonzero(y == c)
        size = len(members) if n_parents is None else min(n_parents, len(members))
        for _ in range(n):
            chosen = rng.choice(members, size, replace=False)
            samples.append(rng.dirichlet(np.ones(size)) @ Z[chosen])
            labels.append(c)
    return np.array(samples), np.array(labels)


def combine(Z_a: ArrayLike, Z_b: ArrayLike, Z_control: ArrayLike | None = None) -> Array:
    """Predict a combined condition: the average (A + B) / 2, or A + B - control when a control is given.

    The second form adds two effects on top of a control. It leaves the range of the observed clouds, so a warning
    says so; each argument is an embedding (p,) or embeddings (N, p), averaged first. Embeddings of different lengths
    raise `InvalidInput`.
    """
    given = [z for z in (Z_a, Z_b, Z_control) if z is not None]
    a, b, *control = (np.atleast_2d(np.asarray(z, dtype=np.float64)).mean(0) for z in given)
    if len({z.shape for z in (a, b, *control)}) > 1:
        lengths = ", ".join(str(z.size) for z in (a, b, *control))
        refuse("Z_a, Z_b and Z_control", "embeddings of one length", lengths)
    if not control:
        return (a + b) / 2
    warnings.warn("A + B - control extrapolates: the decoded cloud may be implausible", UserWarning, stacklevel=2)
    return a + b - control[0]


def _weights_in_data_units(coef: ArrayLike, embedding: LOTEmbedding) -> Array:
    """Classifier weights as (classes, k m, d), acting on T itself."""
    embedding._check_fitted()
    k, m, d = embedding.references_.shape
    B = np.atleast_2d(np.asarray(coef, dtype=np.float64))
    if B.shape[-1] != k * m * d:
        refuse("coef", f"{k * m * d} weights for each class, as the features of the embedding", f"shape {B.shape}")
    B = B.reshape(-1, k * m, d)
    return B * embedding._row_scale() if embedding.weight else B


def feature_importance(coef: ArrayLike, embedding: LOTEmbedding) -> Importance:
    r"""Importance of markers and regions for a linear classifier on the features.

    With B the weights as (m, d): marker I_q = sum_j w_j |B_jq| sd(T(j)_q), region J_j = ||B_j||. Several classes are
    averaged. Both are in units of the decision function.

    Args:
        coef: (p,) or (n_classes, p), acting on the features as `transform` returns them; after a StandardScaler,
            pass `classifier.coef_ / scaler.scale_`.
        embedding: fitted.
    """
    B = _weights_in_data_units(coef, embedding)
    w = 1 / B.shape[1]
    marker = w * (np.abs(B) * embedding.std_).sum(1).mean(0)
    region = np.linalg.norm(B, axis=-1).mean(0)
    return Importance(marker, region)


def cell_scores(embedding: LOTEmbedding, i: int, coef: ArrayLike) -> Array:
    r"""How much each cell of cloud i contributes to a decision, (n_i,).

    score(x) = sum_j P_i(j, x) <B_j, T_i(j) - mean_k T_k(j)> / sum_j P_i(j, x): a cell inherits the scores of the
    reference points it is coupled to. The sign tells which side of the decision it argues for; the mean is over the
    training clouds. Cells without mass have no score: NaN.

    Args:
        embedding: fitted with `keep_plans=True`; its plans are those of the clouds last transformed.
        i: index among those clouds.
        coef: (p,), one class against the rest, acting on the features.

    Raises:
        InvalidInput: no plans were kept, no such cloud, or several classes.
    """
    B = _weights_in_data_units(coef, embedding)
    if len(B) != 1:
        refuse("coef", "the weights of one class", f"{len(B)} classes", "Pass one row.")
    if not hasattr(embedding, "plans_"):
        refuse("embedding", "plans", "none", "Fit it with keep_plans=True.")
    if not isinstance(i, int | np.integer) or not 0 <= i < len(embedding.plans_):
        refuse("i", f"an index in 0..{len(embedding.plans_) - 1}", i)
    _k, m, _d = embedding.references_.shape
    plans = embedding.plans_[i]
    total = mass = np.zeros(plans[0].shape[1])
    for r, plan in enumerate(plans):
        rows = slice(r * m, (r + 1) * m)
        T = plan.barycentric().numpy()
        inherited = (B[0, rows] * (T - embedding.mean_[rows])).sum(-1)
        total = total + (plan.T @ torch.from_numpy(inherited)).numpy()
        mass = mass + plan.T.row_sums().numpy()
    return np.divide(total, mass, out=np.full(len(mass), np.nan), where=mass > 0)
