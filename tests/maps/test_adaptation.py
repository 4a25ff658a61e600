"""The maps of transport plans: known maps, adaptation that helps, POT at equal settings, and scikit-learn's checks."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import ot
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph
from sklearn.utils.estimator_checks import parametrize_with_checks

from brenier import InvalidInput, NotConvergedWarning, Relative
from brenier.maps.base import PlanMap
from brenier.maps.penalized import ClassMap, LaplacianMap
from brenier.maps.plain import EntropicMap, ExactMap

MAPS = [
    ExactMap(),
    EntropicMap(0.5),
    ClassMap(0.5, eta=0.5),
    LaplacianMap(eta=0.05, tol=1e-2),
]
NAMES = [type(m).__name__ for m in MAPS]


def blobs(n: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three blobs, and the same three under a rotation by 40 degrees and a shift, from another sample."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]])
    labels = np.repeat([0, 1, 2], n)
    x, y = (centres[labels] + rng.normal(scale=0.3, size=(3 * n, 2)) for _ in range(2))
    angle = np.deg2rad(40)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return x, labels, y @ turn.T + 1.0


def accuracy(x: np.ndarray, labels: np.ndarray, y: np.ndarray) -> float:
    return float(KNeighborsClassifier(1).fit(x, labels).score(y, labels))


# -- known maps ----------------------------------------------------------------------------------------------


def test_a_shift() -> None:
    x = blobs()[0]
    shift = np.array([0.3, -0.2])
    new = x[:5] + 0.01
    fitted = ExactMap().fit(x, Xt=(x + shift)[::-1])
    np.testing.assert_allclose(fitted.transform(x), x + shift, atol=1e-12)
    np.testing.assert_allclose(fitted.transform(new), new + shift, atol=1e-12)
    np.testing.assert_allclose(fitted.inverse_transform(x + shift), x, atol=1e-12)
    assert fitted.value_ == pytest.approx(float(shift @ shift))
    # entropic: the map between equal clouds, then the shift
    near = EntropicMap(1e-3).fit(x, Xt=x + shift)
    np.testing.assert_allclose(near.transform(x), x + shift, atol=2e-2)
    np.testing.assert_allclose(near.inverse_transform(x + shift), x, atol=2e-2)


@pytest.mark.parametrize("extension", ["entropic", "nearest"])
def test_training_points_go_to_barycentres(extension: str) -> None:
    x, _, y = blobs()
    fitted = EntropicMap(0.3, extension=extension, tol=1e-10).fit(x, Xt=y)
    np.testing.assert_allclose(fitted.transform(x), fitted.plan_.barycentric(), atol=1e-8)
    np.testing.assert_allclose(fitted.inverse_transform(y), fitted.plan_.T.barycentric(x), atol=1e-8)


def test_weights_count() -> None:
    x, _, y = blobs()
    w = np.r_[np.ones(30), np.zeros(30)]
    for model in (ExactMap(), EntropicMap(0.5, tol=1e-10)):
        whole = clone(model).fit(x, Xt=y, sample_weight=w)
        part = clone(model).fit(x[:30], Xt=y)
        np.testing.assert_allclose(whole.transform(x), part.transform(x), atol=1e-7)
    twice = np.r_[y, y]
    np.testing.assert_allclose(
        EntropicMap(0.5, tol=1e-10).fit(x, Xt=twice).transform(x),
        EntropicMap(0.5, tol=1e-10).fit(x, Xt=y).transform(x),
        atol=1e-7,
    )


def test_what_is_far_does_not_pull() -> None:
    x = blobs()[0]
    y = np.r_[x + 0.1, np.full((6, 2), 60.0)]
    fitted = ExactMap(rho=2.0).fit(x, Xt=y)
    assert np.abs(fitted.transform(x) - x).max() < 2
    assert np.isfinite(fitted.inverse_transform(y)).all()
    soft = EntropicMap(0.05, rho=(None, 1.0)).fit(x, Xt=y)
    assert float(soft.plan_.T.row_sums()[-6:].sum()) < 1e-6
    assert np.abs(soft.transform(x) - x).max() < 2


# -- adaptation helps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MAPS, ids=NAMES)
def test_labels_cross_a_rotation(model: PlanMap) -> None:
    x, labels, y = blobs()
    before = accuracy(x, labels, y)
    fitted = clone(model).fit(x, labels, y)
    after = accuracy(fitted.transform(x), labels, y)
    assert before < 0.9 < 0.95 <= after
    shares = fitted.transform_labels(labels)
    assert shares.shape == (60, 3)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert (shares.argmax(1) == labels).mean() >= 0.95
    assert (fitted.inverse_transform_labels(labels).argmax(1) == labels).mean() >= 0.95


@pytest.mark.parametrize("norm", ["l2", "lp"])
def test_classes_separate(norm: str) -> None:
    x, labels, y = blobs()
    plain = EntropicMap(2.0).fit(x, Xt=y).transform_labels(labels).max(1).mean()
    fitted = ClassMap(2.0, eta=2.0, norm=norm, max_iter=1000).fit(x, labels, y)
    assert fitted.transform_labels(labels).max(1).mean() > plain + 0.002
    assert list(fitted.classes_) == [0, 1, 2]
    assert fitted.lower_ <= fitted.value_ + 1e-9


# -- limits and POT ------------------------------------------------------------------------------------------


def test_no_strength_is_the_plain_map() -> None:
    x, labels, y = blobs()
    exact = ExactMap().fit(x, Xt=y).transform(x)
    np.testing.assert_allclose(LaplacianMap(eta=0.0).fit(x, Xt=y).transform(x), exact, atol=1e-10)
    soft = EntropicMap(0.5, tol=1e-10).fit(x, Xt=y).transform(x)
    for norm in ("l2", "lp"):
        fitted = ClassMap(0.5, eta=0.0, norm=norm).fit(x, labels, y)
        np.testing.assert_allclose(fitted.transform(x), soft, atol=1e-6)


def test_plain_maps_as_pot() -> None:
    x, _, y = blobs()
    new = x[:7] + 0.05
    exact, theirs = ExactMap().fit(x, Xt=y), ot.da.EMDTransport().fit(Xs=x, Xt=y)
    for a, b in ((x, theirs.transform(Xs=x)), (new, theirs.transform(Xs=new))):
        np.testing.assert_allclose(exact.transform(a), b, atol=1e-10)
    assert exact.value_ == pytest.approx(float((theirs.coupling_ * theirs.cost_).sum()), rel=1e-8)
    for extension, name in (("nearest", "ferradans"), ("entropic", "continuous")):
        soft = EntropicMap(0.5, extension=extension, tol=1e-10).fit(x, Xt=y)
        other = ot.da.SinkhornTransport(
            reg_e=0.5, method="sinkhorn_log", out_of_sample_map=name, tol=1e-11, max_iter=10000
        ).fit(Xs=x, Xt=y)
        np.testing.assert_allclose(soft.plan_.dense(), other.coupling_, atol=1e-7)
        np.testing.assert_allclose(soft.transform(new), other.transform(Xs=new), atol=1e-5)
        np.testing.assert_allclose(
            soft.inverse_transform(y[:3] + 0.1), other.inverse_transform(Xt=y[:3] + 0.1), atol=1e-5
        )


def test_classes_as_pot() -> None:
    x, labels, y = blobs(10)
    settings: dict[str, Any] = {"reg_e": 1.0, "reg_cl": 0.2, "max_inner_iter": 20000, "tol": 1e-11}
    theirs = ot.da.SinkhornLpl1Transport(max_iter=10, **settings).fit(Xs=x, ys=labels, Xt=y)
    ours = ClassMap(1.0, eta=0.2, norm="lp", tol=1e-16, max_iter=9)
    with pytest.warns(NotConvergedWarning):
        ours.fit(x, labels, y)
    np.testing.assert_allclose(ours.plan_.dense(), theirs.coupling_, atol=1e-7)
    np.testing.assert_allclose(ours.transform_labels(labels), theirs.transform_labels(labels), atol=1e-5)
    group = ot.da.SinkhornL1l2Transport(max_iter=300, **settings).fit(Xs=x, ys=labels, Xt=y)
    convex = ClassMap(1.0, eta=0.2, tol=1e-10, max_iter=1000).fit(x, labels, y)
    np.testing.assert_allclose(convex.plan_.dense(), group.coupling_, atol=1e-5)


@pytest.mark.parametrize("displacement", [False, True])
def test_neighbours_as_pot(displacement: bool) -> None:
    x, _, y = blobs(8)
    theirs = ot.da.EMDLaplaceTransport(
        reg_type="disp" if displacement else "pos", reg_lap=2.0, reg_src=0.3, max_iter=3000, tol=1e-13, inner_tol=1e-13
    ).fit(Xs=x, Xt=y)
    # theirs sums over edges, of both clouds by one factor; ours takes means
    sums = [float(kneighbors_graph(z, 3).sum()) / 2 / 24**2 for z in (x, y)]
    eta, alpha = 2.0 * (0.3 * sums[0] + 0.7 * sums[1]), 0.3 * sums[0] / (0.3 * sums[0] + 0.7 * sums[1])
    ours = LaplacianMap(eta, alpha=alpha, displacement=displacement, tol=1e-3, max_iter=3000).fit(x, Xt=y)

    def theirs_objective(P: np.ndarray) -> float:
        graphs = [kneighbors_graph(z, 3).toarray() for z in (x, y)]
        similar = [(graph + graph.T) / 2 for graph in graphs]
        moved = (P @ y - x / 24 * displacement, P.T @ x - y / 24 * displacement)
        parts = [float(((t[:, None] - t) ** 2).sum(-1).ravel() @ s.ravel()) / 2 for t, s in zip(moved, similar)]
        return float((P * ot.dist(x, y)).sum()) + 2.0 * (0.3 * parts[0] + 0.7 * parts[1])

    def objective(P: np.ndarray) -> float:
        return float((P * ot.dist(x, y)).sum() + eta * ours.term(x, y).value(torch.from_numpy(P)))

    assert ours.value_ == pytest.approx(objective(ours.plan_.dense()), rel=1e-9)
    assert objective(theirs.coupling_) == pytest.approx(theirs_objective(theirs.coupling_), rel=1e-9)
    # both are within their gap of one minimum
    scale = ours.value_ - ours.lower_
    assert ours.value_ <= objective(theirs.coupling_) + scale + 1e-9
    assert ours.lower_ <= objective(theirs.coupling_) + 1e-9
    assert scale <= 1e-3 * ours.value_ * 1.001


# -- kinds, files, bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MAPS, ids=NAMES)
def test_float32_and_pickles(model: PlanMap) -> None:
    x, labels, y = (t.astype(np.float32) if t.dtype == np.float64 else t for t in blobs(8))
    fitted = clone(model).fit(x, labels, y)
    assert fitted.transform(x).dtype == fitted.inverse_transform(y).dtype == np.float32
    assert fitted.transform_labels(labels).dtype == np.float32
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(x), fitted.transform(x))


def test_costs_that_are_functions_of_pairs_pickle() -> None:
    x, _, y = blobs(5)
    fitted = EntropicMap(Relative(0.1), cost="euclidean").fit(x, Xt=y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).plan_.dense(), fitted.plan_.dense())


def test_frames() -> None:
    pd = pytest.importorskip("pandas")
    x, labels, y = blobs(6)
    source, target = (pd.DataFrame(z, columns=["u", "v"]) for z in (x, y))
    fitted = ExactMap().set_output(transform="pandas").fit(source, labels, target)
    assert list(fitted.get_feature_names_out()) == ["u", "v"]
    moved = fitted.transform(source)
    assert list(moved.columns) == ["u", "v"]
    np.testing.assert_allclose(moved.to_numpy(), ExactMap().fit(x, Xt=y).transform(x))
    with pytest.raises(ValueError, match="feature names"):
        ExactMap().fit(source, Xt=target[["v", "u"]])


def test_refusals() -> None:
    x, labels, y = blobs(4)
    with pytest.raises(InvalidInput, match="Xt"):
        ExactMap().fit(x)
    with pytest.raises(ValueError, match="features"):
        ExactMap().fit(x, Xt=y[:, :1])
    with pytest.raises(InvalidInput, match="ys"):
        ClassMap().fit(x, Xt=y)
    with pytest.raises(InvalidInput, match="ys"):
        ClassMap().fit(x, labels[:3], y)
    with pytest.raises(InvalidInput, match="norm"):
        ClassMap(norm="l1").fit(x, labels, y)
    with pytest.raises(InvalidInput, match="extension"):
        EntropicMap(extension="linear").fit(x, Xt=y)
    with pytest.raises(InvalidInput, match="n_neighbors"):
        LaplacianMap(n_neighbors=0).fit(x, Xt=y)
    with pytest.raises(InvalidInput, match="rho"):
        ExactMap(rho="many").fit(x, Xt=y)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="sample_weight"):
        ExactMap().fit(x, Xt=y, sample_weight=np.ones(3))
    with pytest.raises(InvalidInput, match="ys"):
        ExactMap().fit(x, Xt=y).transform_labels(labels[:3])


# -- scikit-learn's own checks -------------------------------------------------------------------------------


class _ToAShift:
    """The target is the source, moved: labels, which the checks pass, are none."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        moved = self._read(X, reset=True) + 1  # type: ignore[attr-defined]
        if hasattr(X, "columns"):
            moved = type(X)(moved, columns=list(X.columns))
        return super().fit(X, Xt=moved, sample_weight=sample_weight, target_weight=sample_weight)  # type: ignore[misc]


class ShiftedExact(_ToAShift, ExactMap):
    """Checked."""


class ShiftedEntropic(_ToAShift, EntropicMap):
    """Checked."""


class ShiftedLaplacian(_ToAShift, LaplacianMap):
    """Checked."""


@parametrize_with_checks([ShiftedExact(), ShiftedEntropic(tol=1e-11), ShiftedLaplacian(displacement=True)])
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)
