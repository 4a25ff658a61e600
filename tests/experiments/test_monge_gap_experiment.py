"""The smoke preset of the Monge gap measures every claim of its spec."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brenier.data import DataUnavailable
from brenier.experiments import Report, start
from brenier.experiments.monge_gap import crossings, moon, s_curve

# the numbers that the spec asks for, by part, and whether they are upper bounds
CLAIMS = [
    ("(A) d = 2, plain net: UVP with the gap over that without", 0.25, True),
    ("(A) d = 8, plain net: UVP with the gap over that without", 0.5, True),
    ("(A) d = 2, plain net: UVP with the gap, %", 2.0, True),
    ("(A) d = 2, plain net: exact gap over W2^2", 0.01, True),
    ("(A) d = 8, plain net: exact gap over W2^2", 0.01, True),
    ("(A) d = 8, residual net: UVP over that of convex networks", 1.0, True),
    ("(B) plain net: exact gap with lambda = 1", 0.05, True),
    ("(B) plain net: held-out MMD^2 with lambda = 1", 1.1, True),
    ("(B) plain net, lambda = 1: held-out MMD^2", 0.15, True),
    ("(C) Euclidean cost, plain net: crossings", 1 / 3, True),
    ("(C) Euclidean cost, residual net: crossings", 1 / 3, True),
    ("(C) sphere, with the gap", 0.05, True),
    ("(C) sphere, without", 0.15, False),
    ("(D) largest gap of optimal maps", 1e-6, True),
    ("(D) least gap of a rotation", 1e-3, False),
]


def test_crossings_are_counted() -> None:
    x = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0], [0.5, -1.0]])
    y = np.array([[1.0, 1.0], [1.0, 0.0], [6.0, 5.0], [0.4, 2.0]])
    assert crossings(x, y) == 3  # of the first two and of the last with both
    assert crossings(x, x + 1) == 0


def test_the_toys_are_drawn_by_the_generator() -> None:
    for draw in (moon, s_curve):
        one, two = (draw(50, torch.Generator().manual_seed(3)) for _ in range(2))
        assert one.shape == (50, 2)
        assert torch.equal(one, two)


@pytest.mark.slow
def test_smoke_measures_every_claim() -> None:
    try:
        smoke: Report = start("monge-gap", "smoke")
    except DataUnavailable as error:
        pytest.skip(" ".join(str(error).split()))
    assert [c.threshold for c in smoke.claims] == [threshold for _, threshold, _ in CLAIMS]
    for claim, (beginning, _, upper) in zip(smoke.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
        assert claim.held == (claim.value <= claim.threshold if upper else claim.value >= claim.threshold)
    assert {t.title[:3] for t in smoke.tables} == {"(A)", "(B)", "(C)", "(D)"}
    assert all(t.rows for t in smoke.tables)
    assert all(c.held for c in smoke.claims if c.sentence.startswith("(D)"))
    assert len(smoke.figures) == 3
