"""The linear map as an estimator: what it learns, and what scikit-learn asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest

pytest.importorskip("sklearn")
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from brenier import InvalidInput
from brenier.maps.linear import LinearMap


def clouds(n: int = 200, d: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X, A = rng.normal(size=(n, d)), rng.normal(size=(d, d))
    A = A @ A.T + np.eye(d)
    return X, X @ A + 5, A


def test_it_finds_a_symmetric_map() -> None:
    X, Y, A = clouds()
    found = LinearMap().fit(X, Y)
    np.testing.assert_allclose(found.matrix_, A, atol=1e-8)
    np.testing.assert_allclose(found.transform(X), Y, atol=1e-7)
    np.testing.assert_allclose(found.inverse_transform(Y), X, atol=1e-7)


def test_as_pot() -> None:
    X, _, _ = clouds()
    Y = np.random.default_rng(1).normal(size=(150, 3)) * 2
    theirs = ot.da.LinearTransport(reg=1e-12).fit(Xs=X, Xt=Y).transform(Xs=X)
    np.testing.assert_allclose(LinearMap().fit(X, Y).transform(X), theirs, atol=1e-2)  # it divides by n - 1
    moved = LinearMap().fit(X, Y).transform(X)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(Y.T) * 149 / 150 * 200 / 199, atol=1e-8)


def test_without_a_target_it_whitens() -> None:
    Y = clouds()[1]
    white = LinearMap().fit_transform(Y)
    np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(3), atol=1e-8)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-10)


def test_masses_and_parameters() -> None:
    X, Y, _ = clouds()
    half = np.r_[np.ones(100), np.zeros(100)]
    np.testing.assert_allclose(
        LinearMap().fit(X, Y, sample_weight=half).transform(X), LinearMap().fit(X[:100], Y).transform(X), atol=1e-9
    )
    assert np.linalg.norm(LinearMap(epsilon=5.0).fit(X, Y).matrix_) < np.linalg.norm(LinearMap().fit(X, Y).matrix_)
    assert LinearMap(shrinkage="oas").fit(X.astype(np.float32), Y).transform(X.astype(np.float32)).dtype == np.float32
    with pytest.raises(InvalidInput, match="dimension"):
        LinearMap().fit(X, Y[:, :2])


def test_names_frames_pipelines_files(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    X, Y, _ = clouds()
    frame = pd.DataFrame(X, columns=["u", "v", "w"])
    found = LinearMap().set_output(transform="pandas").fit(frame, Y)
    assert list(found.get_feature_names_out()) == ["u", "v", "w"]
    assert list(found.transform(frame).columns) == ["u", "v", "w"]
    assert make_pipeline(StandardScaler(), LinearMap()).fit_transform(X).shape == X.shape
    found.save(tmp_path / "map.pt")
    again = LinearMap.load(tmp_path / "map.pt")
    np.testing.assert_array_equal(again.transform(frame), found.transform(frame).to_numpy())
    assert list(again.feature_names_in_) == ["u", "v", "w"]


class Whitening(LinearMap):
    """The map without a target: labels, which the checks pass, are none."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Whitening:  # type: ignore[override]
        return super().fit(X, sample_weight=sample_weight)


@parametrize_with_checks([Whitening()])
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)
