"""The best acceptance rate: its dual against linear programs, and what is known of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from worlds import random_laws

from brenier import InvalidInput
from brenier.experiments import start
from brenier.systems.catalogue import find
from brenier.systems.decoding.laws import draft_tuples
from brenier.systems.decoding.optimal_mdsd import (
    _after,
    _odds,
    _race,
    _two_distinct,
    draft_sets,
    membership_ot,
    otm_acceptance,
)

SCHEMES = ["with_replacement", "without_replacement"]


def by_linear_program(p, q, k, scheme):
    """max sum S over S(i, x) >= 0, i in x, with sums at most p_i and d(x): on tuples, not on sets."""
    tuples, weights = draft_tuples(q, k, scheme)
    pairs = [(x, i) for x, row in enumerate(tuples.tolist()) for i in sorted(set(row))]
    A = np.zeros((len(tuples) + len(p), len(pairs)))
    for column, (x, i) in enumerate(pairs):
        A[x, column] = A[len(tuples) + i, column] = 1
    solved = linprog(-np.ones(len(pairs)), A_ub=A, b_ub=np.concatenate([weights, p]), method="highs")
    assert solved.status == 0
    return -solved.fun


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("vocab_size", "k"), [(2, 2), (3, 2), (5, 2), (4, 3), (5, 1)])
def test_dual_is_the_linear_program(vocab_size, k, scheme, generator):
    p, q = random_laws(generator, 8, vocab_size, zeros=True), random_laws(generator, 8, vocab_size)
    dual, inside = otm_acceptance(p, q, k, scheme, return_set=True)
    for row in range(8):
        assert float(dual[row]) == pytest.approx(by_linear_program(p[row], q[row], k, scheme), abs=1e-9)
    # the cut is what the set says it is
    tuples, weights = draft_tuples(q, k, scheme)
    within = (weights * inside[:, tuples].all(-1)).sum(-1)
    torch.testing.assert_close(1 + torch.where(inside, p, 0).sum(-1) - within, dual, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transport_solver_agrees_and_its_plan_is_one(scheme, generator):
    p, q = random_laws(generator, 6, 4, zeros=True), random_laws(generator, 6, 4)
    sets, weights = draft_sets(q, 3, scheme)
    assert len(sets) == (14 if scheme == "with_replacement" else 4)
    result = membership_ot(p, sets, weights)
    torch.testing.assert_close(result.plan.sum(-1), weights, rtol=0, atol=1e-14)
    torch.testing.assert_close(result.plan.sum(-2), p, rtol=0, atol=1e-14)
    torch.testing.assert_close(result.acceptance, otm_acceptance(p, q, 3, scheme), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.acceptance, otm_acceptance(p, q, 3, scheme, method="lp"), rtol=0, atol=1e-12)
    H = result.dual_set
    within = (weights * (~sets | H.unsqueeze(1)).all(-1)).sum(-1)
    torch.testing.assert_close(1 + torch.where(H, p, 0).sum(-1) - within, result.acceptance, rtol=0, atol=1e-12)


def test_no_set_is_better_than_a_prefix(generator):
    p, q = random_laws(generator, 6), random_laws(generator, 6)
    for scheme, k in itertools.product(SCHEMES, (2, 3)):
        tuples, weights = draft_tuples(q, k, scheme)
        sets = torch.tensor(list(itertools.product([False, True], repeat=6)))
        cuts = 1 + (sets * p).sum(-1) - (weights * sets[:, tuples].all(-1)).sum(-1)
        assert float(otm_acceptance(p, q, k, scheme)) == pytest.approx(float(cuts.min()), abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("peak", [1.0, 8.0, 20.0])
def test_arrival_times_against_enumeration(k, peak, generator):
    q = random_laws(generator, 5, 6, peak=peak)
    tuples, weights = draft_tuples(q, k, "without_replacement")
    exact = torch.stack([(weights * (tuples <= r).all(-1)).sum(-1) for r in range(6)], -1)
    torch.testing.assert_close(_race(q, _after(q), k), exact, rtol=0, atol=1e-12)
    if k == 2:
        torch.testing.assert_close(
            _two_distinct(q.cumsum(-1), _after(q), _odds(q).cumsum(-1)), exact, rtol=0, atol=1e-12
        )


def test_arrival_times_where_few_tokens_have_all_the_mass():
    """All but 1e-10 on two tokens: which others come third and fourth is decided late."""
    small = 1e-10 * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.cat([torch.tensor([0.7, 0.3 - 1e-10], dtype=torch.float64), small])
    # the first two drafts are the two heavy tokens but for 1e-9 of the time, then the others race
    got = _race(q, _after(q), 4)
    assert float(got[1]) == pytest.approx(0, abs=1e-9)
    assert float(got[3]) == pytest.approx(0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7, abs=1e-8)
    assert float(got[4]) == pytest.approx(1, abs=1e-12)


def test_race_and_closed_form_agree_on_a_large_vocabulary(generator):
    q = random_laws(generator, 2, 2000, peak=4.0)
    torch.testing.assert_close(
        _race(q, _after(q), 2), _two_distinct(q.cumsum(-1), _after(q), _odds(q).cumsum(-1)), rtol=0, atol=1e-12
    )


def test_known_values_and_order(generator):
    p, q = random_laws(generator, 20, 50, peak=2.0), random_laws(generator, 20, 50, peak=2.0)
    single = torch.minimum(p, q).sum(-1)
    for scheme in (*SCHEMES, "greedy"):
        torch.testing.assert_close(otm_acceptance(p, q, 1, scheme), single, rtol=0, atol=1e-12)
        rates = torch.stack([otm_acceptance(p, q, k, scheme) for k in (1, 2, 3, 5)])
        if scheme != "greedy":
            assert bool((rates.diff(dim=0) >= -1e-12).all())
    for k in (2, 3, 5):
        best = otm_acceptance(p, q, k)
        assert bool((otm_acceptance(p, q, k, "without_replacement") >= best - 1e-12).all())
        assert bool((best <= torch.minimum(p, 1 - (1 - q) ** k).sum(-1) + 1e-12).all())
    torch.testing.assert_close(otm_acceptance(p, p, 3), torch.ones(20).double())
    apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(otm_acceptance(*apart, 4)) == 0
    assert otm_acceptance(*apart, 4).dtype == torch.float32


def test_greedy_rate_is_the_best_for_greedy_drafts(generator):
    """By the linear program on the drafts' own law: T and one more token."""
    p, q = random_laws(generator, 10, 6), random_laws(generator, 10, 6)
    rates, inside = otm_acceptance(p, q, 3, "greedy", return_set=True)
    for row in range(10):
        top = q[row].topk(2).indices
        rest = q[row].clone()
        rest[top] = 0
        rest = rest / rest.sum()
        sets = torch.zeros(6, 6, dtype=torch.bool)
        sets[:, top] = True
        sets |= torch.eye(6, dtype=torch.bool)
        kept = rest > 0
        result = membership_ot(p[row], sets[kept], rest[kept])
        assert float(rates[row]) == pytest.approx(float(result.acceptance), abs=1e-12)
        assert bool(inside[row, top].all())


def test_large_vocabulary_in_blocks(generator, monkeypatch):
    """Blocks of arrival times change nothing, and a batch is its rows."""
    p, q = random_laws(generator, 2, 3000, peak=3.0), random_laws(generator, 2, 3000, peak=3.0)
    whole = otm_acceptance(p, q, 4, "without_replacement")
    monkeypatch.setattr("brenier.systems.decoding.optimal_mdsd._RACE_BLOCK", 3 * 3000)
    rows = torch.stack([otm_acceptance(a, b, 4, "without_replacement") for a, b in zip(p, q)])
    torch.testing.assert_close(whole, rows, rtol=0, atol=1e-12)


def test_refusals():
    p = torch.tensor([0.5, 0.5, 0.0])
    for k in (0, 1.5, True):
        with pytest.raises(InvalidInput, match="k: expected a positive integer"):
            otm_acceptance(p, p, k)
    with pytest.raises(InvalidInput, match="method: expected 'dual' or 'lp'"):
        otm_acceptance(p, p, 2, method="primal")
    with pytest.raises(InvalidInput, match="3 drafts of 2 tokens"):
        otm_acceptance(p, p, 3, "without_replacement")
    with pytest.raises(InvalidInput, match="scheme"):
        otm_acceptance(p, p, 3, "sorted")
    with pytest.raises(InvalidInput, match=r"sets: expected truth values \(S, V\)"):
        membership_ot(p, torch.ones(2, 2, dtype=torch.bool), torch.ones(2) / 2)


def test_on_the_shelf():
    assert find("optimal-mdsd").on_shelf


@pytest.mark.slow
def test_smoke_measures_every_claim():
    report = start("optimal-mdsd", "smoke")
    assert [claim.sentence[:3] for claim in report.claims] == ["(A)"] * 5 + ["(B)"] * 8 + ["(C)"] * 2 + ["(D)"]
    assert all(table.rows for table in report.tables)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0, 6.0])
@pytest.mark.parametrize("peak", [0.5, 5.0, 20.0])
def test_merging_tokens_of_nearly_one_ratio_changes_nothing(peak, noise, generator):
    logits = peak * torch.randn(3, 9000, dtype=torch.float64, generator=generator)
    other = logits + noise * torch.randn(3, 9000, dtype=torch.float64, generator=generator)
    logits[0, :50] = -torch.inf
    other[1, 25:100] = -torch.inf
    p, q = logits.softmax(-1), other.softmax(-1)
    order = torch.where(q > 0, q / p, 0).argsort(dim=-1, descending=True)
    sorted_p, sorted_q = p.gather(-1, order), q.gather(-1, order)
    for k, scheme in [(1, SCHEMES[0]), (4, SCHEMES[0]), (2, SCHEMES[1])]:
        inside = sorted_q.cumsum(-1)
        odds = _odds(sorted_q).cumsum(-1)
        all_in = inside**k if scheme == SCHEMES[0] else _two_distinct(inside, _after(sorted_q), odds)
        cuts = (sorted_p.cumsum(-1) - all_in).amin(-1)
        got, H = otm_acceptance(p, q, k, scheme, return_set=True)
        torch.testing.assert_close(got, 1 + cuts.clamp(max=0), rtol=0, atol=1e-12)
        within = (q * H).sum(-1) ** k
        if scheme == SCHEMES[1]:
            within = _two_distinct((q * H).sum(-1), (q * ~H).sum(-1), (_odds(q) * H).sum(-1))
        torch.testing.assert_close(got, 1 + (p * H).sum(-1) - within, rtol=0, atol=1e-12)
