"""Rules of selection: every one is valid, none accepts more than the best, and rates are what branching laws say."""

from __future__ import annotations

import pytest
import torch
from worlds import fit, random_laws

from brenier import InvalidInput
from brenier.systems.decoding.laws import draft_tuples, member, sample_drafts, without
from brenier.systems.decoding.optimal_mdsd import otm_acceptance
from brenier.systems.decoding.selectors import (
    ExactSelector,
    GreedySelector,
    KSeqSelector,
    NaiveSelector,
    NSSSelector,
    SpecInferSelector,
    TournamentSelector,
    kseq_division_factor,
)

RULES = [
    NSSSelector(),
    NaiveSelector(),
    KSeqSelector(),
    SpecInferSelector(),
    SpecInferSelector(replacement=False),
    GreedySelector(),
    TournamentSelector(),
    TournamentSelector(size=2),
    ExactSelector(),
    ExactSelector(replacement=False),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def all_drafts(q, k, scheme):
    """Tuples and their probabilities, of one law q (V,); for greedy drafts too."""
    if scheme != "greedy":
        return draft_tuples(q, k, scheme)
    top = q.topk(k - 1).indices
    rest = without(q, top)
    last = (rest > 0).nonzero()
    return torch.cat([top.expand(len(last), -1), last], 1), rest[last.squeeze(1)]


def averaged(rule, p, q, k):
    """The law of the emitted token, and the acceptance rate, by enumeration of all drafts."""
    tuples, weights = all_drafts(q, k, rule.scheme)
    tuples, weights = tuples[weights > 0], weights[weights > 0]
    law = rule.branching(p.expand(len(tuples), -1), q.expand(len(tuples), -1), tuples)
    torch.testing.assert_close(law.sum(-1), torch.ones(len(law)).double(), rtol=0, atol=1e-12)
    assert float(law.min()) >= 0
    accepted = (law * member(tuples, len(p))).sum(-1)
    return weights @ law, float(weights @ accepted)


@each_rule
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_emitted_token_has_the_law_of_the_target(rule, k, generator):
    for zeros in (False, True):
        ps = random_laws(generator, 6, 4, zeros=zeros)
        qs = random_laws(generator, 6, 4, zeros=zeros and rule.scheme == "with_replacement")
        for p, q in zip(ps, qs):
            law, rate = averaged(rule, p, q, k)
            torch.testing.assert_close(law, p, rtol=0, atol=1e-10)
            assert float(rule.acceptance_rate(p, q, k)) == pytest.approx(rate, abs=1e-9)
            assert rate <= float(otm_acceptance(p, q, k, rule.scheme)) + 1e-9


@each_rule
@pytest.mark.parametrize("peak", [5, 30, 60])
def test_laws_with_all_their_mass_on_one_token_and_laws_that_nearly_agree(rule, peak, generator):
    qs = random_laws(generator, 3, 5, peak=peak)
    nearly = qs * (1 + 1e-9 * torch.randn(3, 5, dtype=torch.float64, generator=generator))
    for ps in (random_laws(generator, 3, 5, peak=peak), nearly / nearly.sum(-1, keepdim=True)):
        for p, q in zip(ps, qs):
            law, rate = averaged(rule, p, q, 3)
            torch.testing.assert_close(law, p, rtol=0, atol=1e-13)
            assert float(rule.acceptance_rate(p, q, 3)) == pytest.approx(rate, abs=1e-13)
            assert rate <= float(otm_acceptance(p, q, 3, rule.scheme)) + 1e-13


@each_rule
def test_equal_and_disjoint_laws(rule, generator):
    p = random_laws(generator, 5)
    law, rate = averaged(rule, p, p, 2)
    torch.testing.assert_close(law, p, rtol=0, atol=1e-12)
    if not isinstance(rule, NSSSelector):
        assert rate == pytest.approx(1, abs=1e-12)
    left, right = torch.tensor([[0.4, 0.6, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
    law, rate = averaged(rule, left, right, 2)
    torch.testing.assert_close(law, left, rtol=0, atol=1e-12)
    assert rate == pytest.approx(0, abs=1e-12)


@each_rule
def test_nodes_of_different_numbers_of_drafts_are_one_batch(rule, generator):
    p, q = random_laws(generator, 12, 4), random_laws(generator, 12, 4)
    k = torch.tensor([0, 1, 2, 3] * 3)
    drafts = sample_drafts(q, k, rule.scheme, generator)
    batch = rule.branching(p, q, drafts)
    for row in range(12):
        alone = rule.branching(p[row], q[row], drafts[row, : k[row]])
        torch.testing.assert_close(batch[row], alone, rtol=0, atol=1e-14)
    torch.testing.assert_close(batch[k == 0], p[k == 0])
    torch.testing.assert_close(
        rule.branching(p.reshape(3, 4, 4), q.reshape(3, 4, 4), drafts.reshape(3, 4, 3)).reshape(12, 4), batch
    )
    assert rule.branching(p.float(), q.float(), drafts).dtype == torch.float32


@each_rule
def test_samples_follow_the_branching_law(rule, generator):
    p, q = random_laws(generator, 4), random_laws(generator, 4)
    drafts = sample_drafts(q, 2, rule.scheme, generator)
    law = rule.branching(p, q, drafts)
    n = 20_000 if not isinstance(rule, ExactSelector) else 2_000
    token, index = rule.sample(p.expand(n, -1), q.expand(n, -1), drafts.expand(n, -1), generator)
    counts = torch.bincount(token, minlength=4)
    assert fit(counts, law) > 1e-3
    found = (token.unsqueeze(1) == drafts).any(1)
    assert bool(((index >= 0) == found).all())
    assert bool((drafts[index[found]] == token[found]).all())


def test_one_draft_is_the_maximal_coupling(generator):
    p, q = random_laws(generator, 30, 20), random_laws(generator, 30, 20)
    drafts = sample_drafts(q, 1, generator=generator)
    law = NaiveSelector().branching(p, q, drafts)
    for rule in (KSeqSelector(), SpecInferSelector(), SpecInferSelector(replacement=False), GreedySelector()):
        torch.testing.assert_close(rule.branching(p, q, drafts), law, rtol=0, atol=1e-14)
        torch.testing.assert_close(rule.acceptance_rate(p, q, 1), torch.minimum(p, q).sum(-1), rtol=0, atol=1e-12)
    assert kseq_division_factor(p, q, 1).tolist() == [1.0] * 30


@pytest.mark.parametrize("k", [2, 3, 4])
def test_guarantee_of_kseq(k, generator):
    """p_acc >= (1 - (1 - 1/k)^k) of the best, on 500 random pairs; more drafts never hurt."""
    p, q = random_laws(generator, 500, 5, peak=2.0), random_laws(generator, 500, 5, peak=2.0)
    rho = kseq_division_factor(p, q, k)
    beta = torch.minimum(p / rho.unsqueeze(-1), q).sum(-1)
    accepted = 1 - (1 - beta) ** k
    best = otm_acceptance(p, q, k)
    assert bool((accepted >= (1 - (1 - 1 / k) ** k) * best - 1e-9).all())
    rate = KSeqSelector().acceptance_rate(p, q, k)
    assert bool((rate <= best + 1e-9).all())
    assert bool((rate >= KSeqSelector().acceptance_rate(p, q, k - 1) - 1e-9).all())
    # the division factor is the root, from above
    gap = accepted - rho * beta
    assert float(gap.max()) <= 1e-12
    assert float(gap.min()) >= -1e-8


def test_no_rule_is_above_its_bound_on_a_large_vocabulary(generator):
    p, q = random_laws(generator, 6, 2000, peak=3.0), random_laws(generator, 6, 2000, peak=3.0)
    for k in (2, 4):
        best = otm_acceptance(p, q, k)
        for rule in (NSSSelector(), NaiveSelector(), KSeqSelector(), SpecInferSelector()):
            assert bool((rule.acceptance_rate(p, q, k) <= best + 1e-9).all())


@pytest.mark.parametrize("vocab_size", [3, 6])
def test_two_drafts_of_a_whole_tournament_are_accepted_as_often_as_can_be(vocab_size, generator):
    rule = TournamentSelector(size=vocab_size)
    for peak in (0.5, 2.0):
        p, q = (random_laws(generator, 40, vocab_size, peak=peak, zeros=zeros) for zeros in (True, False))
        rate = rule.acceptance_rate(p, q, 2)
        torch.testing.assert_close(rate, otm_acceptance(p, q, 2), rtol=0, atol=1e-9)
        for k in (3, 4):
            more = rule.acceptance_rate(p, q, k)
            assert bool((more <= otm_acceptance(p, q, k) + 1e-9).all())
            assert bool((more >= rate - 1e-9).all())


def test_a_tournament_of_a_large_vocabulary_is_at_least_one_draft(generator):
    p, q = random_laws(generator, 3, 500, peak=2.0), random_laws(generator, 3, 500, peak=2.0)
    drafts = sample_drafts(q.repeat(300, 1), 4, generator=generator).reshape(300, 3, 4)
    for size in (1, 5, 12):
        accepted = TournamentSelector(size).acceptance(p, q, drafts)
        deviation = accepted.std(0) / 300**0.5
        mean = accepted.mean(0)
        assert bool((mean >= torch.minimum(p, q).sum(-1) - 4 * deviation).all())
        assert bool((mean <= otm_acceptance(p, q, 4) + 4 * deviation).all())
    with pytest.raises(InvalidInput, match="size: expected a positive integer, got 0"):
        TournamentSelector(0)


def test_averaged_rates_are_near_the_closed_forms(generator):
    p, q = random_laws(generator, 4, 30), random_laws(generator, 4, 30)
    rule = SpecInferSelector(replacement=False)
    assert float((rule.acceptance_rate(p, q, 1) - torch.minimum(p, q).sum(-1)).abs().max()) < 1e-12
    rate = rule.acceptance_rate(p, q, 4, draws=400, generator=generator)
    assert bool((rate <= otm_acceptance(p, q, 4, "without_replacement") + 0.05).all())
    assert bool((rate >= SpecInferSelector().acceptance_rate(p, q, 4) - 0.05).all())


def test_greedy_drafts_where_nothing_is_left(generator):
    """q on fewer tokens than drafts: all are known, and what is emitted still has the law p."""
    p = random_laws(generator, 4)
    q = torch.tensor([0.0, 0.7, 0.3, 0.0], dtype=torch.float64)
    drafts = sample_drafts(q, 4, "greedy", generator)
    assert drafts.tolist() == [1, 2, -1, -1]
    torch.testing.assert_close(GreedySelector().branching(p, q, drafts), p, rtol=0, atol=1e-14)
    assert float(GreedySelector().acceptance_rate(p, q, 4)) == pytest.approx(float(p[1] + p[2]), abs=1e-14)


def test_refusals(generator):
    p = torch.tensor([0.5, 0.5, 0.0])
    with pytest.raises(InvalidInput, match=r"drafts: expected tokens that q can draw, got one with q = 0.*top-p"):
        KSeqSelector().branching(p, p, torch.tensor([0, 2]))
    with pytest.raises(InvalidInput, match=r"drafts: expected tokens 0\.\.2, or -1 for none, got 0\.\.3"):
        KSeqSelector().sample(p, p, torch.tensor([0, 3]))
    with pytest.raises(InvalidInput, match="drafts: expected integers"):
        KSeqSelector().sample(p, p, torch.tensor([0.0]))
    with pytest.raises(InvalidInput, match="Turn logits into laws"):
        NaiveSelector().acceptance_rate(p, 3 * p, 2)
    with pytest.raises(InvalidInput, match="k: expected a positive integer, got 0"):
        NaiveSelector().acceptance_rate(p, p, 0)
    with pytest.raises(InvalidInput, match="tol"):
        kseq_division_factor(p, p, 2, tol=0)
    with pytest.raises(InvalidInput, match="k: expected positive integers, got a minimum of 0"):
        kseq_division_factor(p, p, torch.tensor(0))
    big = random_laws(generator, 100)
    with pytest.raises(InvalidInput, match="at most 200000 tuples"):
        ExactSelector().branching(big, big, torch.tensor([1, 2, 3]))
