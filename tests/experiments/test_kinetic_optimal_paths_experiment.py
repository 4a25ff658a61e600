"""The smoke preset of kinetic-optimal paths measures every claim of its spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brenier.experiments import Report, start
from brenier.experiments.site import write_site

# the numbers that the spec asks for, by part
CLAIMS = [
    ("(A1) N(0, I), 300 points in the plane: largest error of lambda", 0.02),
    ("(A1) N(0, I): energy of KO over that of Cond-OT", 0.02),
    ("(A2) N(0, S)", 0.02),
    ("(A3) lambda = 1: largest difference", 1e-6),
    ("(A3) lambda = 1: difference of the energy", 1e-6),
    ("(A4) 10 points in 10,000 dimensions", 0.3),
    ("(A5) a Gaussian of rank d / 4", 0.01),
    ("(A5) the same", 0.02),
    ("(B) share of sizes", 1.0),
    ("(B) share of steps in size at which Cond-OT - KO falls", 1.0),
    ("(B) share of steps in size at which max |a - t| falls", 1.0),
    ("(B) largest relative difference", 0.02),
    ("(C) checkerboard", 0.6),
    ("(C) Fashion-MNIST, 4 x 4", 0.6),
    ("(D) mean energy distance", 0.9),
]


@pytest.fixture(scope="module")
def smoke() -> Report:
    report = start("kinetic-optimal-paths", "smoke")
    left_out = [note for note in report.notes if "left out" in note]
    if left_out:
        pytest.skip(left_out[0])
    return report


@pytest.mark.slow
def test_smoke_measures_every_claim(smoke: Report) -> None:
    assert [c.threshold for c in smoke.claims] == [threshold for _, threshold in CLAIMS]
    for claim, (beginning, _) in zip(smoke.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
    assert (smoke.slug, smoke.preset, smoke.seeds) == ("kinetic-optimal-paths", "smoke", [100])
    assert {t.title[:3] for t in smoke.tables} == {"(A)", "(B)", "(C)", "(D)"}
    assert all(t.rows for t in smoke.tables)


@pytest.mark.slow
def test_smoke_is_saved_and_shown(smoke: Report, tmp_path: Path) -> None:
    held = json.loads(smoke.save(tmp_path).read_text(encoding="utf-8"))
    assert Report.from_json(held).to_json() == held
    page = (write_site(tmp_path, tmp_path).parent / "kinetic-optimal-paths.html").read_text(encoding="utf-8")
    for figure in smoke.figures:
        assert figure["file"] in page
        assert (tmp_path / figure["file"]).stat().st_size > 1000
