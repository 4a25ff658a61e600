"""The smoke preset of delayed tree expansion measures every claim of its spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from brenier.experiments import Report, start

# the numbers that the spec asks for, by part
CLAIMS = [
    ("(A) law of the text", 1e-10),
    ("(A) sums of branching laws", 1e-9),
    ("(A) Traversal with one path", 1e-10),
    ("(B) K = 4: Traversal over the best rule", 1.02),
    ("(B) K = 4: NaiveTree less NSS", 0.0),
    ("(B) K = 4: specinfer less NaiveTree", 0.0),
    ("(B) K = 4: spectr less NaiveTree", 0.0),
    ("(B) K = 1: block over token by token", 1.05),
    ("(B) negative control, tau = 0.1, kappa = 0.02", 1.0),
    ("(B) negative control, tau = 0.2, kappa = 0.02", 1.0),
    *((f"(C) stale drafter, {solver}", -0.9) for solver in ("NSS", "NaiveTree", "SpecInfer", "SpecTr")),
    *(
        (f"(D) tau = {tau}, kappa = 0.02: {pair}", threshold)
        for tau in (0.1, 0.2)
        for pair, threshold in (
            ("delayed tree over root tree", 1.01),
            ("selector over root tree", 1.015),
            ("selector over delayed tree", 0.995),
            ("selector over root tree, Traversal", 0.985),
        )
    ),
    ("(E) transformer, SpecInfer", -0.9),
]


@pytest.fixture(scope="module")
def smoke() -> Report:
    return start("delayed-tree-expansion", "smoke")


@pytest.mark.slow
def test_smoke_measures_every_claim(smoke: Report) -> None:
    assert [c.threshold for c in smoke.claims] == [threshold for _, threshold in CLAIMS]
    for claim, (beginning, _) in zip(smoke.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
    assert all(claim.held for claim in smoke.claims[:3])
    assert {t.title[:3] for t in smoke.tables} == {"(A)", "(B)", "(C)", "(D)", "(E)"}
    assert all(t.rows for t in smoke.tables)


@pytest.mark.slow
def test_smoke_is_saved(smoke: Report, tmp_path: Path) -> None:
    smoke.save(tmp_path)
    assert [figure["file"] for figure in smoke.figures] == [
        f"delayed-tree-expansion-{name}.svg" for name in ("depth", "policies", "choices")
    ]
    assert all((tmp_path / figure["file"]).stat().st_size > 1000 for figure in smoke.figures)
