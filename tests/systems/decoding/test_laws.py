"""Logits become laws as the field does it; draws follow them."""

from __future__ import annotations

import math

import pytest
import torch
from worlds import fit, random_laws

from brenier import InvalidInput
from brenier.systems.decoding.laws import Processing, draft_tuples, draw, member, read_laws, sample_drafts, without


def test_temperature_top_k_and_top_p_one_after_another():
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]], dtype=torch.float64)
    logits = p.log() + 3  # any constant
    torch.testing.assert_close(Processing()(logits), p)
    torch.testing.assert_close(Processing(temperature=0.5)(logits), p**2 / (p**2).sum(-1, keepdim=True))
    torch.testing.assert_close(Processing(top_k=2)(logits)[0], torch.tensor([4, 3, 0, 0]).double() / 7)
    # 0.4 and 0.3 hold 0.7 of the mass, which is short of 0.75
    torch.testing.assert_close(Processing(top_p=0.75)(logits)[0], torch.tensor([4, 3, 2, 0]).double() / 9)
    torch.testing.assert_close(Processing(top_p=0.65)(logits)[0], torch.tensor([4, 3, 0, 0]).double() / 7)
    # after top-k the shares are 4/7 and 3/7
    torch.testing.assert_close(Processing(top_k=2, top_p=0.5)(logits)[0], torch.tensor([1, 0, 0, 0]).double())
    assert Processing(temperature=0)(logits).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert Processing(top_k=1)(logits).tolist() == Processing(top_p=1e-9)(logits).tolist()
    assert Processing(top_k=99)(logits).tolist() == Processing()(logits).tolist()


def test_masked_and_extreme_logits():
    logits = torch.tensor([-math.inf, 0.0, 1e4])
    assert Processing()(logits).tolist() == [0, 0, 1]
    assert Processing(temperature=1e-3)(logits / 1e4)[0] == 0
    assert Processing()(logits.half()).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -1}, "temperature: expected a number >= 0, got -1"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k: expected a positive integer or None, got 0"),
        ({"top_p": 0}, r"top_p: expected a number in \(0, 1\], got 0"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(InvalidInput, match=match):
        Processing(**options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_none(bad):
    with pytest.raises(InvalidInput, match="logits: expected numbers below infinity"):
        Processing()(torch.tensor([0.0, bad]))
    with pytest.raises(InvalidInput, match="a row of -inf"):
        Processing()(torch.full((2, 3), -math.inf))


def test_laws_are_read_in_float64_and_normalised():
    p, q = read_laws(torch.tensor([0.5, 0.50004]), torch.ones(3, 2) / 2)
    assert p.shape == q.shape == (3, 2)
    assert p.dtype == torch.float64
    assert float((p.sum(-1) - 1).abs().max()) < 1e-15
    half = torch.ones(2) / 2
    for bad, match in [
        (half * 1.1, "p: expected probabilities with sum 1, got a sum off by 0.1"),
        (torch.tensor([1.5, -0.5]), "a minimum of -0.5"),
        (torch.tensor([math.nan, 1]), "p: expected finite probabilities"),
        (torch.ones(3) / 3, "laws over one vocabulary"),
        (torch.ones(5, 2) / 2, "batch axes that broadcast"),
    ]:
        with pytest.raises(InvalidInput, match=match):
            read_laws(bad, half.expand(3, 2))


def test_draws_follow_the_law_and_never_leave_its_support(generator):
    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    tokens = draw(p.expand(2, -1), 20_000, generator)
    counts = torch.bincount(tokens.flatten(), minlength=6)
    assert counts[p == 0].sum() == 0
    assert fit(counts, p) > 1e-3
    alone = torch.tensor([0, 1e-300, 0], dtype=torch.float64)
    assert set(draw(alone, 1000, generator).tolist()) == {1}


@pytest.mark.parametrize("scheme", ["with_replacement", "without_replacement"])
def test_tuples_of_drafts_follow_their_law(scheme, generator):
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    drafts = sample_drafts(q.expand(30_000, 3), 2, scheme, generator)
    tuples, weights = draft_tuples(q, 2, scheme)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    counts = (drafts.unsqueeze(1) == tuples).all(-1).sum(0)
    assert fit(counts, weights) > 1e-3


def test_greedy_drafts_and_rows_of_different_numbers(generator):
    q = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    drafts = sample_drafts(q, torch.tensor([3, 2, 1]), "greedy", generator)
    assert drafts[0, :2].tolist() == [1, 3]
    assert int(drafts[0, 2]) in (0, 2)
    assert drafts[1].tolist() == [1, -1, -1]  # nothing is left for the second
    assert drafts[2, 1:].tolist() == [-1, -1]
    fewer = sample_drafts(q, torch.tensor([4, 2, 0]), "without_replacement", generator)
    assert sorted(fewer[0].tolist()) == [0, 1, 2, 3]
    assert fewer[1].tolist() == [1, -1, -1, -1]
    assert fewer[2].tolist() == [-1] * 4
    assert sample_drafts(q, 0, generator=generator).shape == (3, 0)


def test_members_and_what_is_left():
    tokens = torch.tensor([[0, 2, -1], [-1, -1, -1]])
    assert member(tokens, 3).tolist() == [[True, False, True], [False] * 3]
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(without(q.expand(2, 3), tokens), torch.stack([torch.tensor([0, 1, 0]).double(), q]))
    assert without(q, torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]


def test_tuples_are_counted_before_they_are_made(generator):
    q = random_laws(generator, 100)
    with pytest.raises(InvalidInput, match=r"at most 200000 tuples of drafts, got 100\^3"):
        draft_tuples(q, 3)
    with pytest.raises(InvalidInput, match="'greedy', whose tuples differ"):
        draft_tuples(q, 1, "greedy")
    with pytest.raises(InvalidInput, match="2 drafts of 1 tokens"):
        draft_tuples(torch.tensor([0.0, 1.0]).double(), 2, "without_replacement")
    with pytest.raises(InvalidInput, match="scheme: expected one of 'with_replacement'"):
        sample_drafts(q, 2, "both")
