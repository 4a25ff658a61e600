"""The smoke preset of LOT measures every claim of its spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brenier.data import DataUnavailable
from brenier.experiments import Report, start
from brenier.experiments.site import write_site

# the numbers that the spec asks for, by part
CLAIMS = [
    ("(A) LOT accuracy minus that of mean vectors", 0.02),
    ("(A) LOT accuracy minus that of mean + covariance", 0.005),
    ("(A) LOT accuracy, barycentre reference", 0.985),
    ("(A) Spearman correlation of LOT and W2", 0.95),
    ("(B) worst of", 0.9),
    ("(C) share of cohorts in which the moved marker ranks first", 0.9),
    ("(C) AUC of cell scores", 0.75),
    ("(C) LOT accuracy minus that of mean vectors", 0.1),
    ("(D) accuracy with class barycentres minus that with a Gaussian reference", 0.0),
    ("(E) time of all exact distances over that of LOT", 20.0),
]


@pytest.fixture(scope="module")
def smoke() -> Report:
    try:
        return start("lot", "smoke")
    except DataUnavailable as error:
        pytest.skip(" ".join(str(error).split()))


@pytest.mark.slow
def test_smoke_measures_every_claim(smoke: Report) -> None:
    assert [c.threshold for c in smoke.claims] == [threshold for _, threshold in CLAIMS]
    for claim, (beginning, _) in zip(smoke.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
        below = claim.sentence.startswith("(B)")
        assert claim.held == (claim.value <= claim.threshold if below else claim.value >= claim.threshold)
    assert (smoke.slug, smoke.preset, smoke.seeds) == ("lot", "smoke", [100])
    assert {t.title[:3] for t in smoke.tables} == {"(A)", "(B)", "(C)", "(D)", "(E)"}
    assert all(t.rows for t in smoke.tables)
    assert len(smoke.data) == 3


@pytest.mark.slow
def test_smoke_is_saved_and_shown(smoke: Report, tmp_path: Path) -> None:
    held = json.loads(smoke.save(tmp_path).read_text(encoding="utf-8"))
    assert Report.from_json(held).to_json() == held
    page = (write_site(tmp_path, tmp_path).parent / "lot.html").read_text(encoding="utf-8")
    for figure in smoke.figures:
        assert figure["file"] in page
        assert (tmp_path / figure["file"]).stat().st_size > 1000
