"""Linearised OT: its mathematics against exact transport and POT, its manners against scikit-learn's."""

from __future__ import annotations

import pickle
import re
from itertools import pairwise
from typing import Any

import numpy as np
import ot
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from brenier import InvalidInput, MissingExtra, Relative, solve
from brenier.systems.cells.lot import (
    LOTEmbedding,
    cell_scores,
    combine,
    feature_importance,
    lot_barycenter,
    sample_within_class,
)

Array = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def w2(x: Array, y: Array, a: Array | None = None, b: Array | None = None) -> float:
    return float(np.sqrt(max(float(solve(x, y, a=a, b=b).value), 0.0)))


def compatible(template: Array, scales: list[float], shifts: Array, seed: int = 1) -> list[Array]:
    """Scaled and shifted copies of a template, each with its points in another order."""
    rng = np.random.default_rng(seed)
    return [c * rng.permutation(template) + t for c, t in zip(scales, shifts)]


def cohort(n: int = 12, d: int = 3, seed: int = 0) -> tuple[list[Array], NDArray[np.int64]]:
    """Clouds of different sizes; those of class 1 are shifted."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return [rng.normal(2.0 * k, 1 + 0.2 * k, size=(int(rng.integers(15, 30)), d)) for k in labels], labels


def masses(clouds: list[Array], seed: int = 5) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 2, len(c)) for c in clouds]


# -- the embedding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_distance_is_w2_for_shifts_and_scalings_of_the_reference(d: int, weight: bool, center: bool) -> None:
    reference = normal(25, d)
    clouds = compatible(reference, [1.0, 0.3, 2.5, 1.7], 3 * normal(4, d, seed=2))
    embedding = LOTEmbedding(reference=reference, weight=weight, center=center)
    distances = embedding.distances(embedding.fit_transform(clouds))
    for i in range(4):
        for k in range(4):
            assert distances[i, k] == pytest.approx(w2(clouds[i], clouds[k]), rel=1e-9, abs=1e-9)


def test_distance_bounds_w2_of_the_projections_from_above() -> None:
    clouds, _ = cohort()
    embedding = LOTEmbedding(20)
    Z = embedding.fit_transform(clouds)
    decoded, distances = embedding.inverse_transform(Z), embedding.distances(Z)
    for i in range(4):
        for k in range(i):
            assert w2(decoded[i], decoded[k]) <= distances[i, k] * (1 + 1e-12)


def test_plain_euclidean_distance_of_features_is_the_lot_distance() -> None:
    clouds, _ = cohort()
    embedding = LOTEmbedding(20)
    Z = embedding.fit_transform(clouds)
    T = embedding.inverse_transform(Z)
    formula = np.sqrt(((T[:, None] - T[None]) ** 2).sum(-1).mean(-1))  # sum_j w_j ||T_i(j) - T_k(j)||^2, w = 1 / m
    np.testing.assert_allclose(embedding.distances(Z), formula, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(Z[:, None] - Z[None], axis=-1), formula, atol=1e-12)
    np.testing.assert_allclose(embedding.distances(Z[:3], Z[3:]), formula[:3, 3:], atol=1e-12)
    unweighted = LOTEmbedding(20, weight=False)
    Z = unweighted.fit_transform(clouds)
    np.testing.assert_allclose(unweighted.distances(Z), formula, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(Z[0] - Z[1]), formula[0, 1] * np.sqrt(20), atol=1e-12)


def test_norm_of_centred_features_is_the_distance_to_the_reference() -> None:
    reference = normal(30, 2)
    (cloud,) = compatible(reference, [0.5], normal(1, 2, seed=3))
    Z = LOTEmbedding(reference=reference).fit_transform([cloud])
    assert np.linalg.norm(Z[0]) == pytest.approx(w2(reference, cloud), rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_the_barycentric_projection_of_pot(weighted: bool) -> None:
    clouds, _ = cohort()
    weights = masses(clouds) if weighted else None
    embedding = LOTEmbedding(17, keep_plans=True)
    T = embedding.inverse_transform(embedding.fit_transform(clouds, weights=weights))
    reference = embedding.references_[0]
    for i, cloud in enumerate(clouds):
        b = np.full(len(cloud), 1 / len(cloud)) if weights is None else weights[i] / weights[i].sum()
        plan = ot.emd(np.full(17, 1 / 17), b, ot.dist(reference, cloud))
        np.testing.assert_allclose(T[i], 17 * plan @ cloud, atol=1e-9)
        np.testing.assert_allclose(embedding.plans_[i][0].dense().numpy(), plan, atol=1e-12)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("reference", ["gaussian", "subset", "barycenter", "class_barycenters"])
def test_decoding_inverts_encoding(reference: str, center: bool, weight: bool) -> None:
    clouds, y = cohort(6)
    embedding = LOTEmbedding(11, reference, center=center, weight=weight)
    Z = embedding.fit_transform(clouds, y)
    k = 2 if reference == "class_barycenters" else 1
    assert embedding.references_.shape == (k, 11, 3)
    assert Z.shape == (6, k * 11 * 3)
    T = embedding.inverse_transform(Z)
    np.testing.assert_allclose(T.reshape(6, -1).mean(0), embedding.mean_.ravel(), atol=1e-12)
    np.testing.assert_allclose(T.std(0), embedding.std_, atol=1e-12)
    # a decoded cloud is the image of the reference: it embeds to itself against each reference alone
    for r in range(k):
        part = slice(r * 11, (r + 1) * 11)
        alone = LOTEmbedding(reference=embedding.references_[r], center=center, weight=weight).fit(clouds)
        again = alone.inverse_transform(alone.transform(list(T[:, part])))
        np.testing.assert_allclose(again, T[:, part], atol=1e-9)


def test_weighted_points_equal_duplicated_points() -> None:
    clouds, _ = cohort(5)
    rng = np.random.default_rng(3)
    counts = [rng.integers(1, 4, size=len(c)) for c in clouds]
    duplicated = [np.repeat(c, k, axis=0) for c, k in zip(clouds, counts)]
    for reference in (normal(13, 3), "gaussian", "barycenter"):
        embedding = LOTEmbedding(13, reference)
        Z = embedding.fit_transform(clouds, weights=counts)
        np.testing.assert_allclose(embedding.fit_transform(duplicated), Z, atol=1e-9)
        np.testing.assert_allclose(embedding.transform(clouds, weights=[7.5 * k for k in counts]), Z, atol=1e-9)


def test_points_without_mass_do_not_matter() -> None:
    clouds, _ = cohort(4)
    extended = [np.concatenate([c, [[50.0, 50.0, 50.0]]]) for c in clouds]
    weights = [np.concatenate([np.ones(len(c)), [0.0]]) for c in clouds]
    for reference in ("gaussian", "subset", "barycenter"):
        embedding = LOTEmbedding(10, reference)
        Z = embedding.fit_transform(extended, weights=weights)
        assert np.abs(embedding.inverse_transform(Z)).max() < 20
        if reference != "subset":  # whose draw depends on how many points there are
            np.testing.assert_allclose(embedding.fit_transform(clouds), Z, atol=1e-9)


def test_containers_and_dtypes_do_not_matter() -> None:
    clouds = [np.round(4 * c) for c in cohort(4)[0]]
    expected = LOTEmbedding(9).fit_transform(clouds)
    for convert in (lambda c: c.astype(int), torch.from_numpy, np.asfortranarray, np.ndarray.tolist):
        np.testing.assert_allclose(LOTEmbedding(9).fit_transform([convert(c) for c in clouds]), expected, atol=1e-12)
    learnt = [torch.tensor(c, requires_grad=True) for c in clouds]
    np.testing.assert_allclose(LOTEmbedding(9).fit_transform(learnt), expected, atol=1e-12)
    assert LOTEmbedding(9).fit_transform([c.astype(np.float32) for c in clouds]).dtype == np.float64
    assert LOTEmbedding(9).fit_transform(np.stack([c[:15] for c in clouds])).shape == (4, 27)


def test_one_point_and_equal_clouds() -> None:
    points = normal(8, 2)
    embedding = LOTEmbedding(6, "barycenter")
    Z = embedding.fit_transform([points, points, points[:1]])
    np.testing.assert_array_equal(Z[0], Z[1])
    np.testing.assert_allclose(embedding.inverse_transform(Z)[2], np.tile(points[:1], (6, 1)), atol=1e-12)
    assert embedding.distances(Z)[0, 1] == 0


def test_far_from_the_origin() -> None:
    clouds, _ = cohort(4)
    near, far = LOTEmbedding(10, "subset"), LOTEmbedding(10, "subset")
    Z = near.fit_transform(clouds)
    np.testing.assert_allclose(far.fit_transform([c + 1e6 for c in clouds]), Z, atol=1e-7)


def test_displacement_is_registered() -> None:
    clouds, _ = cohort(4)
    embedding = LOTEmbedding(10).fit(clouds)
    start, end = embedding.transform([clouds[0], clouds[0] + [1.0, -2.0, 0.5]])
    np.testing.assert_allclose(embedding.displacement(start, end), np.tile([1.0, -2.0, 0.5], (10, 1)), atol=1e-9)


# -- references ----------------------------------------------------------------------------------------------


def test_gaussian_reference_has_the_moments_of_the_pool() -> None:
    rng = np.random.default_rng(0)
    clouds = [rng.multivariate_normal([5, -3], [[2, 1.2], [1.2, 1]], size=50) for _ in range(3)]
    (reference,) = LOTEmbedding(4000).fit(clouds).references_
    pooled = np.concatenate(clouds)
    np.testing.assert_allclose(reference.mean(0), pooled.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(reference.T), np.cov(pooled.T), atol=0.2)


def test_every_cloud_counts_the_same_in_the_pool() -> None:
    few, many = np.zeros((2, 1)), np.ones((200, 1))
    (reference,) = LOTEmbedding(4000).fit([few, many]).references_
    assert reference.mean() == pytest.approx(0.5, abs=0.05)


def test_subset_reference_is_made_of_points_with_mass() -> None:
    clouds, _ = cohort(4)
    weights = [np.where(c[:, 0] > np.median(c[:, 0]), 1.0, 0.0) for c in clouds]
    allowed = {tuple(p) for c, w in zip(clouds, weights) for p, mass in zip(c, w) if mass}
    chosen = [tuple(p) for p in LOTEmbedding(20, "subset").fit(clouds, weights=weights).references_[0]]
    assert len(set(chosen)) == 20
    assert set(chosen) <= allowed


def test_given_reference_is_used_as_it_is() -> None:
    clouds, _ = cohort(4)
    given = normal(7, 3, seed=9)
    for reference in (given, given.tolist(), torch.from_numpy(given)):
        np.testing.assert_array_equal(LOTEmbedding(reference=reference).fit(clouds).references_, given[None])


def test_barycentre_of_scaled_copies_is_found_at_once_and_stays() -> None:
    template, scales, shifts = normal(18, 2), [0.5, 1.0, 3.0], normal(3, 2, seed=4)
    clouds = compatible(template, scales, shifts)
    truth = np.mean(scales) * template + shifts.mean(0)  # the W2 barycentre of compatible clouds
    for n_refine in (1, 3):
        (reference,) = LOTEmbedding(18, "barycenter", n_refine=n_refine).fit(clouds).references_
        assert w2(reference, truth) < 1e-9
    at_it = LOTEmbedding(reference=truth).fit(clouds)  # one more refinement would be the mean of all T_i
    np.testing.assert_allclose(at_it.mean_, truth, atol=1e-9)


def test_refinement_lowers_the_mean_squared_distance() -> None:
    clouds, _ = cohort()

    def objective(reference: Array) -> float:
        return float(np.mean([w2(reference, c) ** 2 for c in clouds]))

    values = [objective(LOTEmbedding(15, "barycenter", n_refine=k).fit(clouds).references_[0]) for k in range(4)]
    assert values[1] < values[0]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(values))
    np.testing.assert_array_equal(
        LOTEmbedding(15, "barycenter", n_refine=0).fit(clouds).references_, LOTEmbedding(15).fit(clouds).references_
    )


def test_class_barycentres_use_only_the_clouds_of_their_class() -> None:
    clouds, _ = cohort(9)
    y = np.array(list("bacabcabc"))
    embedding = LOTEmbedding(8, "class_barycenters").fit(clouds, y)
    assert embedding.classes_.tolist() == ["a", "b", "c"]
    for k, c in enumerate("abc"):
        own = LOTEmbedding(8, "barycenter").fit([x for x, label in zip(clouds, y) if label == c])
        np.testing.assert_array_equal(embedding.references_[k], own.references_[0])
    other = [x if label == "a" else 10 * x + 3 for x, label in zip(clouds, y)]
    changed = LOTEmbedding(8, "class_barycenters").fit(other, y)
    np.testing.assert_array_equal(changed.references_[0], embedding.references_[0])
    assert not np.allclose(changed.references_[1], embedding.references_[1])
    # features are those of the references one by one, and distances average their squares
    Z = embedding.transform(clouds)
    alone = [LOTEmbedding(reference=r).fit(clouds) for r in embedding.references_]
    squares = [e.distances(e.transform(clouds)) ** 2 for e in alone]
    np.testing.assert_allclose(embedding.distances(Z) ** 2, np.mean(squares, 0), atol=1e-9)
    np.testing.assert_allclose(np.hstack([e.transform(clouds) for e in alone]) / np.sqrt(3), Z, atol=1e-12)


def test_transform_does_not_look_at_other_clouds_or_refit() -> None:
    clouds, _ = cohort()
    embedding = LOTEmbedding(10, "barycenter").fit(clouds[:6])
    before = embedding.references_.copy(), embedding.mean_.copy()
    together = embedding.transform(clouds[6:])
    one_by_one = np.concatenate([embedding.transform([c]) for c in clouds[6:]])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(embedding.references_, before[0])
    np.testing.assert_array_equal(embedding.mean_, before[1])


def test_inputs_are_left_alone() -> None:
    clouds, y = cohort(6)
    weights = masses(clouds)
    copies = [c.copy() for c in clouds], [w.copy() for w in weights]
    LOTEmbedding(8, "class_barycenters", keep_plans=True).fit_transform(clouds, y, weights=weights)
    for now, before in zip((*clouds, *weights), (*copies[0], *copies[1])):
        np.testing.assert_array_equal(now, before)


# -- solvers, threads, seeds ---------------------------------------------------------------------------------


# near a permutation Sinkhorn's tail is slow; the projection is what matters here
@pytest.mark.filterwarnings("ignore:sinkhorn. stopped at max_iter")
def test_sinkhorn_comes_close_to_exact_at_small_epsilon() -> None:
    reference = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1).reshape(-1, 2)
    clouds = [c + 0.1 * normal(12, 2, seed=3) for c in compatible(reference, [1.0, 2.0, 1.5], normal(3, 2))]
    exact = LOTEmbedding(reference=reference).fit_transform(clouds)
    errors = [
        np.abs(LOTEmbedding(reference=reference, solver="sinkhorn", epsilon=e).fit_transform(clouds) - exact).max()
        for e in (Relative(0.3), Relative(0.1), Relative(0.03))
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 < errors[0]


def test_sinkhorn_default_is_one_hundredth_of_the_mean_cost() -> None:
    clouds, _ = cohort(3)
    options: dict[str, Any] = {"n_reference": 10, "solver": "sinkhorn"}
    given = LOTEmbedding(epsilon=Relative(0.01), **options).fit_transform(clouds)
    np.testing.assert_array_equal(LOTEmbedding(**options).fit_transform(clouds), given)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_threads_change_nothing(solver: str) -> None:
    clouds, y = cohort(6)
    options: dict[str, Any] = {"n_reference": 10, "reference": "class_barycenters", "solver": solver}
    options["epsilon"] = Relative(0.1)
    one = LOTEmbedding(n_jobs=1, **options).fit_transform(clouds, y)
    np.testing.assert_array_equal(LOTEmbedding(n_jobs=2, **options).fit_transform(clouds, y), one)


@pytest.mark.parametrize("reference", ["gaussian", "subset", "barycenter"])
def test_seeds_decide_and_global_state_is_left_alone(reference: str) -> None:
    clouds, y = cohort(6)
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    Z = LOTEmbedding(10, reference, seed=3).fit_transform(clouds)
    np.testing.assert_array_equal(LOTEmbedding(10, reference, seed=3).fit_transform(clouds), Z)
    assert not np.array_equal(LOTEmbedding(10, reference, seed=4).fit_transform(clouds), Z)
    sample_within_class(Z, y, 5)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


# -- averages and synthetic samples --------------------------------------------------------------------------


def test_barycentre_of_translates_is_the_translate_of_the_mean() -> None:
    cloud, shifts = normal(20, 2), 4 * normal(5, 2, seed=6)
    lambdas = np.random.default_rng(0).dirichlet(np.ones(5))
    embedding = LOTEmbedding(reference=normal(14, 2, seed=7)).fit([cloud])
    Z = embedding.transform([cloud + t for t in shifts])
    middle = embedding.inverse_transform(lot_barycenter(Z, lambdas)[None])
    expected = embedding.inverse_transform(embedding.transform([cloud + lambdas @ shifts]))
    np.testing.assert_allclose(middle, expected, atol=1e-9)


def test_barycentre_of_compatible_clouds_is_on_the_geodesic() -> None:
    reference = normal(15, 2)
    ends = compatible(reference, [0.5, 2.0], 2 * normal(2, 2, seed=3))
    embedding = LOTEmbedding(reference=reference)
    Z = embedding.fit_transform(ends)
    (middle,) = embedding.inverse_transform(lot_barycenter(Z, [[0.3, 0.7]]))
    full = w2(*ends)
    assert w2(ends[0], middle) == pytest.approx(0.7 * full, rel=1e-9)
    assert w2(middle, ends[1]) == pytest.approx(0.3 * full, rel=1e-9)


def test_barycentre_shapes_and_corners() -> None:
    Z = normal(3, 4)
    assert lot_barycenter(Z, [1 / 3] * 3).shape == (4,)
    np.testing.assert_array_equal(lot_barycenter(Z, np.eye(3)), Z)
    with pytest.warns(UserWarning, match=r"^negative weights extrapolate: the decoded cloud may be implausible$"):
        np.testing.assert_allclose(lot_barycenter(Z, [2.0, -1.0, 0.0]), 2 * Z[0] - Z[1])


def test_combine() -> None:
    a, b, control = normal(3, 4), normal(2, 4, seed=1), normal(5, 4, seed=2)
    np.testing.assert_allclose(combine(a, b), (a.mean(0) + b.mean(0)) / 2)
    np.testing.assert_allclose(combine(a[0], b[0]), (a[0] + b[0]) / 2)
    with pytest.warns(UserWarning, match=r"^A \+ B - control extrapolates: the decoded cloud may be implausible$"):
        np.testing.assert_allclose(combine(a, b, control), a.mean(0) + b.mean(0) - control.mean(0))


def test_two_shifts_add_on_top_of_a_control() -> None:
    control = normal(30, 2)
    embedding = LOTEmbedding(12).fit([control])
    z, za, zb, zab = embedding.transform([control + np.array(t) for t in ([0, 0], [3, 0], [0, 2], [3, 2])])
    with pytest.warns(UserWarning, match="extrapolates"):
        np.testing.assert_allclose(combine(za, zb, z), zab, atol=1e-9)


@pytest.mark.parametrize("n_parents", [1, 3, None, 99])
def test_synthetic_samples_are_convex_averages_within_their_class(n_parents: int | None) -> None:
    y = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    Z = np.eye(8)  # coordinates of a sample are its weights
    samples, labels = sample_within_class(Z, y, 6, seed=1, n_parents=n_parents)
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    np.testing.assert_allclose(samples.sum(1), 1)
    assert (samples >= 0).all()
    assert (samples[labels[:, None] != y] == 0).all()
    sizes = [min(n_parents or 99, int((y == c).sum())) for c in labels]
    assert (samples > 0).sum(1).tolist() == sizes
    again, _ = sample_within_class(Z, y, 6, seed=1, n_parents=n_parents)
    np.testing.assert_array_equal(again, samples)
    if n_parents == 3:
        assert not np.array_equal(sample_within_class(Z, y, 6, seed=2)[0], samples)


# -- reading a classifier ------------------------------------------------------------------------------------


def planted(n: int = 24, seed: int = 0) -> tuple[list[Array], list[NDArray[np.bool_]], NDArray[np.int64]]:
    """Two groups of cells far apart along marker 0; in cases marker 2 of the right-hand group moves."""
    rng = np.random.default_rng(seed)
    clouds, moved, y = [], [], np.arange(n) % 2
    for case in y:
        size = int(rng.integers(40, 60))
        right = np.arange(size) < round(0.3 * size)
        cells = rng.normal(0, 0.5, size=(size, 4))
        cells[:, 0] += np.where(right, 5.0, -5.0)
        cells[right, 2] += 1.5 * case
        order = rng.permutation(size)
        clouds.append(cells[order])
        moved.append(right[order])
    return clouds, moved, y


@pytest.mark.parametrize("weight", [True, False])
def test_a_planted_shift_is_found(weight: bool) -> None:
    clouds, moved, y = planted()
    embedding = LOTEmbedding(20, "barycenter", weight=weight, keep_plans=True)
    Z = embedding.fit_transform(clouds, y)
    classifier = LogisticRegression(C=10.0, max_iter=2000).fit(Z, y)
    assert classifier.score(Z, y) == 1
    marker, region = feature_importance(classifier.coef_, embedding)
    assert marker.shape == (4,)
    assert region.shape == (20,)
    assert marker.argmax() == 2
    right = embedding.references_[0, :, 0] > 0
    assert region[right].mean() > 3 * region[~right].mean()
    for i in range(len(clouds)):
        scores = cell_scores(embedding, i, classifier.coef_[0])
        assert scores.shape == (len(clouds[i]),)
        inside, outside = scores[moved[i]], scores[~moved[i]]
        assert np.abs(inside).mean() > 3 * np.abs(outside).mean()
        assert inside.mean() > outside.mean() if y[i] else inside.mean() < outside.mean()  # the side it argues for


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("reference", ["gaussian", "class_barycenters"])
def test_cell_scores_share_out_the_decision(reference: str, weight: bool, weighted: bool) -> None:
    """sum_x b(x) score(x) = sum_j w_j <B_j, T_i(j) - mean(j)>, the decision above its mean, by k m.

    The columns of P_r sum to b and its rows to w = 1/m, so with scores s_rj = <B_rj, T_i(rj) - mean(rj)> and
    score(x) = sum_rj P_r(j, x) s_rj / (k b(x)), the sum over cells is sum_rj s_rj / (k m); and sum_rj s_rj is
    <coef, z_i - mean z>.
    """
    clouds, y = cohort(8)
    weights = masses(clouds) if weighted else None
    embedding = LOTEmbedding(9, reference, weight=weight, keep_plans=True)
    Z = embedding.fit_transform(clouds, y, weights=weights)
    coef = normal(Z.shape[1], seed=3)
    for i, cloud in enumerate(clouds):
        b = np.full(len(cloud), 1 / len(cloud)) if weights is None else weights[i] / weights[i].sum()
        total = b @ cell_scores(embedding, i, coef)
        rows = Z.shape[1] // 3
        assert total == pytest.approx(coef @ (Z[i] - Z.mean(0)) / rows, rel=1e-9, abs=1e-12)


def test_cell_scores_follow_the_formula() -> None:
    clouds, _ = cohort(5)
    embedding = LOTEmbedding(9, keep_plans=True)
    Z = embedding.fit_transform(clouds)
    T, B = embedding.inverse_transform(Z), normal(9, 3, seed=2)
    coef = B.ravel() * 3  # weights act on sqrt(w_j) T, and sqrt(w_j) = 1/3 here
    for i in range(5):
        P = embedding.plans_[i][0].dense().numpy()
        expected = P.T @ (B * (T[i] - T.mean(0))).sum(1) / P.sum(0)
        np.testing.assert_allclose(cell_scores(embedding, i, coef), expected, atol=1e-12)


def test_cells_without_mass_have_no_score() -> None:
    clouds, _ = cohort(3)
    embedding = LOTEmbedding(9, keep_plans=True)
    embedding.fit(clouds, weights=[np.r_[0.0, np.ones(len(c) - 1)] for c in clouds])
    assert np.flatnonzero(np.isnan(cell_scores(embedding, 0, normal(27)))).tolist() == [0]


def test_importance_follows_the_formula_and_averages_classes() -> None:
    clouds, _ = cohort(5)
    embedding = LOTEmbedding(9)
    T = embedding.inverse_transform(embedding.fit_transform(clouds))
    B = normal(2, 9, 3, seed=2)
    marker, region = feature_importance(3 * B.reshape(2, -1), embedding)
    np.testing.assert_allclose(marker, (np.abs(B) * T.std(0)).mean(1).mean(0), atol=1e-12)
    np.testing.assert_allclose(region, np.linalg.norm(B, axis=-1).mean(0), atol=1e-12)


def test_importance_does_not_depend_on_how_features_are_scaled() -> None:
    clouds, _ = cohort(5)
    plain, scaled = LOTEmbedding(9, weight=False), LOTEmbedding(9, weight=True)
    coef = normal(27, seed=1)
    decisions = [plain.fit_transform(clouds) @ coef, scaled.fit_transform(clouds) @ (3 * coef)]
    np.testing.assert_allclose(*decisions, atol=1e-12)
    for one, other in zip(feature_importance(coef, plain), feature_importance(3 * coef, scaled)):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_plans_are_those_of_the_clouds_last_transformed() -> None:
    clouds, _ = cohort(6)
    embedding = LOTEmbedding(9, keep_plans=True).fit(clouds)
    assert len(embedding.plans_) == 6
    embedding.transform(clouds[:2])
    assert [plans[0].shape for plans in embedding.plans_] == [(9, len(c)) for c in clouds[:2]]


def test_a_new_fit_forgets_the_last_one() -> None:
    clouds, y = cohort(6)
    embedding = LOTEmbedding(9, "class_barycenters", keep_plans=True).fit(clouds, y)
    embedding.set_params(reference="gaussian", keep_plans=False).fit(clouds)
    assert not hasattr(embedding, "classes_")
    with pytest.raises(InvalidInput, match="expected plans, got none"):
        cell_scores(embedding, 0, normal(27))


# -- scikit-learn --------------------------------------------------------------------------------------------


def test_parameters_are_those_of_scikit_learn() -> None:
    embedding = LOTEmbedding(30, "subset", center=False, seed=7)
    copy = clone(embedding)
    assert copy is not embedding
    assert copy.get_params() == embedding.get_params()
    assert copy.set_params(n_reference=5, weight=False).get_params()["n_reference"] == 5
    assert repr(LOTEmbedding(5, weight=False)) == "LOTEmbedding(n_reference=5, weight=False)"
    array = clone(LOTEmbedding(reference=normal(4, 2)))
    np.testing.assert_array_equal(array.reference, normal(4, 2))
    with pytest.raises(ValueError, match="Invalid parameter 'size'"):
        embedding.set_params(size=3)


def test_fit_returns_self_and_fit_transform_is_fit_then_transform() -> None:
    clouds, y = cohort(6)
    for reference in ("gaussian", "class_barycenters"):
        embedding = LOTEmbedding(10, reference)
        assert embedding.fit(clouds, y) is embedding
        assert embedding.n_features_in_ == 3
        np.testing.assert_array_equal(embedding.transform(clouds), LOTEmbedding(10, reference).fit_transform(clouds, y))


def test_pipeline_and_cross_validation() -> None:
    clouds, y = cohort(16)
    model = Pipeline(
        [
            ("embed", LOTEmbedding(12, "class_barycenters")),
            ("scale", StandardScaler()),
            ("classify", LogisticRegression()),
        ]
    )
    assert model.fit(clouds, y).score(clouds, y) == 1
    scores = cross_val_score(model, clouds, y, cv=StratifiedKFold(4), error_score="raise")
    assert scores.tolist() == [1, 1, 1, 1]
    model.set_params(embed__n_reference=5).fit(clouds, y)
    assert model[0].references_.shape == (2, 5, 3)
    assert make_pipeline(LOTEmbedding(5), StandardScaler()).fit_transform(clouds).shape == (16, 15)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_pickling(solver: str) -> None:
    clouds, y = cohort(4)
    embedding = LOTEmbedding(6, "class_barycenters", solver, Relative(0.1), keep_plans=True)
    embedding.fit(clouds, y)
    copy = pickle.loads(pickle.dumps(embedding))
    coef = normal(36)
    np.testing.assert_array_equal(cell_scores(copy, 1, coef), cell_scores(embedding, 1, coef))
    np.testing.assert_array_equal(copy.transform(clouds), embedding.transform(clouds))


@pytest.mark.parametrize(
    "use",
    [
        lambda e: e.transform([normal(5, 2)]),
        lambda e: e.inverse_transform(normal(1, 4)),
        lambda e: e.distances(normal(2, 4)),
        lambda e: feature_importance(normal(4), e),
        lambda e: cell_scores(e, 0, normal(4)),
    ],
)
def test_not_fitted(use: Any) -> None:
    with pytest.raises(NotFittedError, match="This LOTEmbedding instance is not fitted yet"):
        use(LOTEmbedding())


def test_features_have_no_frames() -> None:
    embedding = LOTEmbedding(5)
    assert embedding.set_output(transform="default") is embedding
    with pytest.raises(InvalidInput, match=r"^set_output transform: expected 'default', got 'pandas'\.$"):
        make_pipeline(embedding, StandardScaler()).set_output(transform="pandas")


# -- bad input -----------------------------------------------------------------------------------------------

GOOD = [normal(12, 2), normal(15, 2, seed=1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_reference": 0}, "n_reference: expected an integer >= 1, got 0."),
        ({"n_reference": 2.0}, "n_reference: expected an integer >= 1, got 2.0."),
        ({"n_reference": True}, "n_reference: expected an integer >= 1, got True."),
        ({"n_refine": -1}, "n_refine: expected an integer >= 0, got -1."),
        ({"n_jobs": 0}, "n_jobs: expected an integer >= 1, got 0."),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1."),
        ({"seed": None}, "seed: expected an integer >= 0, got None."),
        (
            {"solver": "sinkhorn", "epsilon": 0.0},
            "epsilon: expected a positive finite number in cost units, got 0. Use epsilon=None for the exact problem.",
        ),
        ({"solver": "emd"}, "solver: expected 'exact' or 'sinkhorn', got 'emd'."),
        (
            {"reference": "kmeans"},
            "reference: expected one of 'gaussian', 'subset', 'barycenter', 'class_barycenters' or an array (m, d), "
            "got 'kmeans'.",
        ),
        ({"reference": normal(4, 3)}, "reference: expected an array (m, 2), m >= 1, got shape (4, 3)."),
        ({"reference": normal(4)}, "reference: expected an array (m, 2), m >= 1, got shape (4,)."),
        ({"reference": normal(0, 2)}, "reference: expected an array (m, 2), m >= 1, got shape (0, 2)."),
        ({"reference": [[0.0, np.nan]]}, "reference: expected finite coordinates, got NaN or infinity."),
        ({"reference": [["a", "b"]]}, "reference: expected an array of real numbers, got dtype <U1."),
        ({"reference": None}, "reference: expected an array of real numbers, got dtype object."),
        ({"reference": "class_barycenters"}, "y: expected classes, for reference='class_barycenters', got None."),
        ({"reference": "subset", "n_reference": 28}, "n_reference: expected at most the 27 pooled points, got 28."),
        (
            {"solver": "sinkhorn", "epsilon": -1.0},
            "epsilon: expected a positive finite number in cost units, got -1. Use epsilon=None for the exact problem.",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(message)}$"):
        LOTEmbedding(**options).fit(GOOD)


def test_wrong_number_of_classes() -> None:
    with pytest.raises(InvalidInput, match=r"^y: expected one class for each of the 2 clouds, got shape \(3,\)\.$"):
        LOTEmbedding(5, "class_barycenters").fit(GOOD, [0, 1, 1])


@pytest.mark.parametrize(
    ("clouds", "weights", "message"),
    [
        ([], None, "clouds: expected at least one cloud, got none."),
        (None, None, "clouds: expected a list of arrays, got NoneType."),
        (iter(GOOD), None, "clouds: expected a list of arrays, got list_iterator."),
        (GOOD, 3.0, "weights: expected a list of arrays, got float."),
        ([normal(3, 0)], None, "clouds: expected arrays (n_i, d) of one dimension d, got trailing shapes [(0,)]."),
        (
            normal(5, 2),
            None,
            "clouds: expected a list of clouds (n_i, d), got one array of shape (5, 2). Wrap it in a list.",
        ),
        ([normal(5, 2), normal(0, 2)], None, "cloud 1: expected at least one point, got none. Leave it out."),
        (
            [normal(5, 2), normal(5, 3)],
            None,
            "clouds: expected arrays (n_i, d) of one dimension d, got trailing shapes [(2,), (3,)].",
        ),
        ([normal(5)], None, "clouds: expected arrays (n_i, d) of one dimension d, got trailing shapes [()]."),
        (
            [normal(5, 2), np.array([[0.0, np.nan]])],
            None,
            "cloud 1: expected finite coordinates, got NaN or infinity. Drop or impute those points.",
        ),
        (
            [np.array([[np.inf, 0.0]])],
            None,
            "cloud 0: expected finite coordinates, got NaN or infinity. Drop or impute those points.",
        ),
        ([[["a", "b"]]], None, "cloud 0: expected an array of real numbers, got dtype <U1."),
        (
            [[[1.0, 2.0], [3.0]]],
            None,
            "cloud 0: expected a rectangular array of numbers, got rows of different lengths.",
        ),
        ([np.ones((3, 2), complex)], None, "cloud 0: expected an array of real numbers, got dtype complex128."),
        (GOOD, [np.ones(12)], "weights: expected one array for each of the 2 clouds, got 1."),
        (
            GOOD,
            [np.ones(12), np.ones(12)],
            "weights 1: expected shape (15,), one mass for each point, got shape (12,).",
        ),
        (
            GOOD,
            [np.ones(12), np.r_[-1.0, np.ones(14)]],
            "weights 1: expected finite, nonnegative masses that do not all vanish, got minimum -1.0, sum 13.0.",
        ),
        (
            GOOD,
            [np.zeros(12), np.ones(15)],
            "weights 0: expected finite, nonnegative masses that do not all vanish, got minimum 0.0, sum 0.0.",
        ),
        (
            GOOD,
            [np.full(12, np.nan), np.ones(15)],
            "weights 0: expected finite, nonnegative masses that do not all vanish, got minimum nan, sum nan.",
        ),
    ],
)
def test_bad_clouds_and_weights(clouds: Any, weights: Any, message: str) -> None:
    fitted = LOTEmbedding(4).fit(GOOD)
    for use in (LOTEmbedding(4).fit, LOTEmbedding(4).fit_transform, fitted.transform):
        with pytest.raises(InvalidInput, match=f"^{re.escape(message)}$"):
            use(clouds, weights=weights)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda e: e.transform([normal(5, 3)]),
            "clouds: expected points of dimension 2, as in fit, got dimension 3.",
        ),
        (lambda e: e.inverse_transform(normal(2, 7)), "Z: expected features of shape (N, 8), got shape (2, 7)."),
        (lambda e: e.inverse_transform(normal(8)), "Z: expected features of shape (N, 8), got shape (8,)."),
        (lambda e: e.distances(normal(2, 8), normal(2, 4)), "Z: expected features of shape (N, 8), got shape (2, 4)."),
        (
            lambda e: feature_importance(normal(7), e),
            "coef: expected 8 weights for each class, as the features of the embedding, got shape (1, 7).",
        ),
        (
            lambda e: cell_scores(e, 0, normal(3, 8)),
            "coef: expected the weights of one class, got 3 classes. Pass one row.",
        ),
        (
            lambda e: cell_scores(e, 0, normal(8)),
            "embedding: expected plans, got none. Fit it with keep_plans=True.",
        ),
        (
            lambda e: cell_scores(e.set_params(keep_plans=True).fit(GOOD), 2, normal(8)),
            "i: expected an index in 0..1, got 2.",
        ),
        (
            lambda e: cell_scores(e.set_params(keep_plans=True).fit(GOOD), -1, normal(8)),
            "i: expected an index in 0..1, got -1.",
        ),
        (
            lambda e: lot_barycenter(normal(3, 8), [0.5, 0.5]),
            "lambdas: expected 3 weights, one for each embedding, got shape (2,).",
        ),
        (
            lambda e: lot_barycenter(normal(8), np.full(8, 1 / 8)),
            "lambdas: expected 8 weights, one for each embedding, got shape (8,).",
        ),
        (
            lambda e: lot_barycenter(normal(3, 8), [0.5, 0.5, 0.5]),
            "lambdas: expected weights that sum to 1, got a sum of 1.5. Divide by the sum.",
        ),
        (
            lambda e: lot_barycenter(normal(2, 8), [[0.5, 0.5], [0.2, 0.2]]),
            "lambdas: expected weights that sum to 1, got a sum of 0.4. Divide by the sum.",
        ),
        (
            lambda e: lot_barycenter(normal(2, 8), [0.5, np.nan]),
            "lambdas: expected weights that sum to 1, got a sum of nan. Divide by the sum.",
        ),
        (
            lambda e: sample_within_class(normal(3, 8), [0, 1], 2),
            "Z and y: expected shapes (N, p) and (N,), got (3, 8) and (2,).",
        ),
        (lambda e: sample_within_class(normal(3, 8), [0, 1, 1], 0), "n: expected an integer >= 1, got 0."),
        (
            lambda e: sample_within_class(normal(3, 8), [0, 1, 1], 2, n_parents=0),
            "n_parents: expected an integer >= 1, got 0.",
        ),
        (
            lambda e: combine(normal(8), normal(2, 4)),
            "Z_a, Z_b and Z_control: expected embeddings of one length, got 8, 4.",
        ),
        (
            lambda e: e.displacement(normal(8), normal(7)),
            "Z: expected features of shape (N, 8), got shape (1, 7).",
        ),
        (
            lambda e: cell_scores(e.set_params(keep_plans=True).fit(GOOD), 0.0, normal(8)),
            "i: expected an index in 0..1, got 0.0.",
        ),
    ],
)
def test_bad_calls(use: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(message)}$"):
        use(LOTEmbedding(4).fit(GOOD))


def test_scikit_learn_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    for name in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "brenier.systems.cells.lot")
    message = (
        "Linearised optimal transport needs the package 'sklearn', which is not installed. "
        "Install it with: pip install 'brenier[cells]'"
    )
    with pytest.raises(MissingExtra, match=f"^{re.escape(message)}$"):
        importlib.import_module("brenier.systems.cells.lot")
