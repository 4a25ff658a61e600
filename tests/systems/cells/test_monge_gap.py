"""A perturbation of cells: the split, what is measured, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from brenier import InvalidInput
from brenier.systems.cells.monge_gap import learn_perturbation


def cells(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    control = rng.normal(size=(n, 3))
    return control, rng.normal(size=(n + 20, 3)) * [1, 0.6, 1] + [1.5, 0, 0]


@pytest.mark.slow
def test_it_learns_and_measures_on_other_cells() -> None:
    control, treated = cells()
    found = learn_perturbation(control, treated, hidden=(32,), max_iter=80, lr=2e-2, batch_size=100)
    assert (len(found.control), len(found.treated)) == (90, 96)
    seen = {tuple(row) for row in control} - {tuple(row) for row in found.control}
    assert len(seen) == 210
    assert found.quality["mmd"] < 0.2 * found.identity["mmd"]
    assert found.floor < found.quality["mmd"]
    assert found.identity["displacement"] == found.identity["exact_gap"] == 0
    assert found.quality["exact_gap"] < 0.05 * found.quality["displacement"]
    assert found.predict(control[:4]).shape == (4, 3)
    assert "untreated" in repr(found)


def test_anndata_and_seeds() -> None:
    anndata = pytest.importorskip("anndata")
    control, treated = cells(40)
    options: dict[str, Any] = {"hidden": (4,), "max_iter": 2}
    one = learn_perturbation(anndata.AnnData(control), anndata.AnnData(treated), **options)
    two = learn_perturbation(control, treated, **options)
    np.testing.assert_array_equal(one.control, two.control)
    other = learn_perturbation(control, treated, seed=1, **options)
    assert other.estimator.seed == 1
    assert not np.array_equal(other.control, two.control)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, None])
def test_fractions_that_are_refused(fraction: Any) -> None:
    with pytest.raises(InvalidInput, match="test_fraction"):
        learn_perturbation(*cells(20), test_fraction=fraction)


def test_too_few_cells_are_refused() -> None:
    control, treated = cells(20)
    with pytest.raises(InvalidInput, match="two cells on either side"):
        learn_perturbation(control[:5], treated, test_fraction=0.1)
