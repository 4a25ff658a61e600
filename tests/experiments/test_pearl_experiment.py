"""The smoke preset of PEARL needs no simulator and measures every claim that needs none."""

from __future__ import annotations

import pytest

from brenier.experiments import start
from brenier.experiments.pearl import PRESETS

CLAIMS = [
    ("(A) accuracy of transferred labels, mean over six pairs of tasks", 0.8),
    ("(A) accuracy minus that of transport on shared observations", 0.15),
    ("(A) accuracy minus that of the nearest source trajectory", 0.2),
    ("(A) accuracy on the worst pair of tasks", 0.65),
    ("(A) accuracy from a task to itself, at least", 1.0),
    ("(A) accuracy from a task to itself, exact GW", 1.0),
    ("(B) accuracy on the surer half minus that on the other", 0.05),
    ("(C) accuracy of RRL with transferred labels over true ones", 0.9),
    ("(C) RRL minus cross-entropy, at least", -0.02),
    ("(C) RRL minus cross-entropy at 20% flipped labels", 0.0),
    ("(C) RRL minus cross-entropy at 40% flipped labels", 0.0),
]


@pytest.mark.slow
def test_smoke_measures_every_claim() -> None:
    report = start("pearl", "smoke")
    assert [c.threshold for c in report.claims] == [threshold for _, threshold in CLAIMS]
    for claim, (beginning, _) in zip(report.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
        assert claim.held == (claim.value >= claim.threshold)
    assert {t.title[:3] for t in report.tables} == {"(A)", "(B)", "(C)"}
    assert all(t.rows for t in report.tables)
    assert "generated" in report.data[0]
    assert any("point masses" in note for note in report.notes)


def test_other_presets_are_on_the_robot() -> None:
    assert {name for name, config in PRESETS.items() if config.simulator == "metaworld"} == {"quick", "full"}
    assert all(seed >= 100 for config in PRESETS.values() for seed in config.seeds)
