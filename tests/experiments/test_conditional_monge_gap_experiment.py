"""The smoke preset of CMonge measures every claim of its spec."""

from __future__ import annotations

import numpy as np
import pytest

from brenier import MissingExtra
from brenier.data import DataUnavailable
from brenier.experiments import Report, start
from brenier.experiments.conditional_monge_gap import between, discrepancy, drug_effects, halves, w2

# the upper bounds that the spec asks for, by part
CLAIMS = [
    ("(A) held-out doses: MMD^2 over that of one map", 0.5),
    ("(A) held-out doses: MMD^2 over that of no map", 0.2),
    ("(A) held-out doses: MMD^2 over that of maps of one dose", 1.6),
    ("(B) held-out cells of training doses", 1.3),
    ("(A), (B) largest exact gap", 0.05),
    ("(C) unseen pairs", 0.6),
    ("(C) largest change when the drugs of a pair are swapped", 1e-6),
    ("(C) largest exact gap", 0.05),
    ("(D) 48 h: W2 over that of no map", 1.0),
    ("(D) 48 h: W2 over that of one map", 1.0),
    ("(D) largest exact gap", 0.05),
]


def test_halfway_along_a_plan() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    step = np.array([4.0, 0.0])
    path, masses = between(x, x + step, 0.25)
    assert masses.sum() == pytest.approx(1)
    assert w2(path, x + step / 4, masses) < 1e-6
    assert abs(discrepancy(path, x + step / 4, masses)) < 1e-9


def test_drugs_add_up() -> None:
    rng = np.random.default_rng(0)
    descriptors, treat = drug_effects(6, rng)
    x = rng.normal(size=(10, 6))
    assert descriptors.shape == (12, 5)
    shift = {drugs: treat(x, drugs) - x for drugs in ((0,), (1,), (0, 1), (1, 0))}
    np.testing.assert_allclose(shift[0, 1], shift[0,] + shift[1,])
    np.testing.assert_allclose(shift[0, 1], shift[1, 0])
    assert shift[0,].std(0).max() > 0.01  # it changes with the cell


def test_halves_share_no_cell() -> None:
    one, two = halves(np.arange(10), np.random.default_rng(0))
    assert sorted([*one, *two]) == list(range(10))
    assert len(two) == 3


@pytest.mark.slow
def test_smoke_measures_every_claim() -> None:
    try:
        smoke: Report = start("conditional-monge-gap", "smoke")
    except (DataUnavailable, MissingExtra) as error:
        pytest.skip(" ".join(str(error).split()))
    assert [c.threshold for c in smoke.claims] == [threshold for _, threshold in CLAIMS]
    for claim, (beginning, _) in zip(smoke.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
        assert claim.held == (claim.value <= claim.threshold)
    assert {t.title[:3] for t in smoke.tables} == {"(A)", "(B)", "(C)", "(D)"}
    assert all(t.rows for t in smoke.tables)
    assert smoke.claims[6].held
    assert len(smoke.figures) == 1
