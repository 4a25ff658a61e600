"""What is known before drafting, and the network that chooses by it."""

from __future__ import annotations

import math

import pytest
import torch
from worlds import Markov

from brenier import InvalidInput
from brenier.systems.decoding.delay_selector import (
    ContextFeatures,
    DelayAndBranchSelector,
    DelayPolicy,
    Features,
    LastTokens,
    Traces,
    collect_traces,
    context_scalars,
    roots,
    throughput_loss,
    train_selector,
)
from brenier.systems.decoding.delayed_tree_expansion import Action, TimeModel, all_actions, delayed_tree_decoder
from brenier.systems.decoding.laws import Processing


def test_scalars_are_what_they_are_called():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    scalars = context_scalars(p, q, p, torch.tensor([7, 9]), Processing(0.5, top_p=0.9))
    assert scalars.shape == (2, 9)
    first, second = scalars.tolist()
    assert (first[0], first[2]) == pytest.approx((math.log(2), math.log(2)), abs=1e-6)
    assert first[3] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert first[5] == pytest.approx(0.5)
    assert first[6:] == pytest.approx([7, 0.5, 0.9])
    assert max(map(abs, second[:6])) < 1e-6
    time = TimeModel(lambda n: 0.1, lambda n: 1 + n)
    timed = Features(scalars, (), torch.tensor([7, 9])).timed(time)
    assert timed[:, 9:].flatten().tolist() == pytest.approx([8, 0.1, 10, 0.1])


def test_features_are_read_from_the_models():
    target, draft = Markov(0), Markov(1)
    texts = [torch.tensor([0, 1, 2]), torch.tensor([2, 1])]
    processing, own = Processing(0.7), Processing(1.3)
    features = ContextFeatures(target, draft, processing, own, states=(LastTokens(1, 3),))
    found = features(texts)
    before, last = torch.tensor([1, 2]), torch.tensor([2, 1])
    laws = processing(target.table[before]), own(draft.table[before]), own(draft.table[last])
    expected = context_scalars(*laws, torch.tensor([3, 2]), processing)
    torch.testing.assert_close(found.scalars, expected)
    assert found.hidden[0].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert found.lengths.tolist() == [3, 2]
    assert found.rows(torch.tensor([1])).lengths.tolist() == [2]


def test_a_loss_of_the_base_is_nothing_and_of_the_best_less(generator):
    efficiencies = 1 + torch.rand(6, 3, generator=generator)
    seconds = torch.ones(6, 3)
    sure = torch.full((6, 3), -50.0)
    base = sure.clone()
    base[:, 1] = 50
    assert float(throughput_loss(base, efficiencies, seconds, 1)) == pytest.approx(0, abs=1e-6)
    best = sure.scatter(1, efficiencies.argmax(1, keepdim=True), 50.0)
    gain = efficiencies.max(1).values / efficiencies[:, 1]
    assert float(throughput_loss(best, efficiencies, seconds, 1)) == pytest.approx(-float(gain.log().mean()), abs=1e-5)
    worst = sure.scatter(1, efficiencies.argmin(1, keepdim=True), 50.0)
    assert throughput_loss(worst, efficiencies, seconds, 1) > throughput_loss(
        worst, efficiencies, seconds, 1, tail_weight=0
    )


def test_roots_along_texts():
    text = torch.arange(40)
    assert [len(root) for root in roots([text, text[:17]])] == [16, 32, 16]
    found = roots([text], every=10, context_length=4)
    assert [root[-1].item() for root in found] == [3, 13, 23, 33]
    assert {len(root) for root in found} == {4}
    assert roots([text[:4]], context_length=4) == []
    for options in ({"every": 0}, {"context_length": 0}):
        with pytest.raises(InvalidInput, match="expected a positive integer"):
            roots([text], **options)


def two_kinds(n, generator):
    """Traces of contexts of two kinds, which need different actions; a scalar and a state tell them apart."""
    actions = (Action(1, 1, 0), Action(2, 0, 2), Action(2, 2, 2))
    kind = torch.randint(0, 2, (n,), generator=generator)
    scalars = torch.ones(n, 9)
    scalars[:, 0] = kind * 3.0 + torch.randn(n, generator=generator) * 0.3
    state = torch.randn(n, 4, generator=generator)
    efficiencies = torch.stack([torch.full((n,), 1.5), 1.2 + kind, 2.2 - kind], 1).double()
    return Traces(actions, Features(scalars, (state,), torch.full((n,), 5)), efficiencies), kind


def test_a_selector_learns_which_contexts_need_which_action(generator):
    traces, kind = two_kinds(250, generator)
    time = TimeModel(lambda n: 0, lambda n: 1)
    before = torch.random.get_rng_state()
    untrained, losses = train_selector(traces, time, base=traces.actions[0], epochs=0, generator=generator)
    scalars = traces.features.timed(time)
    assert losses == []
    assert untrained.select(scalars, *traces.features.hidden) == [traces.actions[0]] * 250
    selector, losses = train_selector(
        traces, time, base=traces.actions[0], epochs=40, batch_size=64, generator=generator
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[-1] < losses[0]
    chosen = selector.select(scalars, *traces.features.hidden)
    assert sum(a == traces.actions[2 - int(c)] for a, c in zip(chosen, kind)) >= 235
    assert not selector.training
    # of a seed there is one selector, and without roots held back the last epoch is taken
    again = [
        train_selector(traces, time, epochs=3, held_back=0.0, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert again[0][1] == again[1][1]
    assert torch.equal(again[0][0](scalars, *traces.features.hidden), again[1][0](scalars, *traces.features.hidden))


def test_a_selector_that_finds_nothing_keeps_to_the_base(generator):
    """Where every action is as good as the best, on average, noise is not learned."""
    traces, _ = two_kinds(200, generator)
    equal = Traces(traces.actions, traces.features, torch.tensor([[2.0, 1.0, 1.0]]).double().expand(200, -1))
    selector, _ = train_selector(equal, TimeModel(lambda n: 0, lambda n: 1), epochs=5, generator=generator)
    assert selector.base == 0
    chosen = selector.choose(equal.features.timed(TimeModel(lambda n: 0, lambda n: 1)), *equal.features.hidden)
    assert chosen.tolist() == [0] * 200


def test_from_traces_to_decoding(generator):
    """The whole pipeline on two small models."""
    target, draft = Markov(0), Markov(1)
    features = ContextFeatures(target, draft, states=(LastTokens(2, 3),))
    texts = [torch.randint(0, 3, (200,), generator=generator) for _ in range(3)]
    time = TimeModel(lambda n: 0.1, lambda n: 1)
    actions = all_actions(2, 1, 2)
    contexts = roots(texts, every=8, context_length=4)
    traces = collect_traces(features, contexts, actions, method="specinfer", trees=1, generator=generator)
    assert len(traces) == len(contexts) == 75
    assert traces.efficiencies.shape == (75, len(actions))
    assert len(traces.rows(torch.arange(5))) == 5
    selector, _ = train_selector(traces, time, epochs=5, generator=generator)
    policy = DelayPolicy(selector, features, time)
    chosen = policy.choose(traces.features)
    assert policy(contexts[:7]) == [action.branching for action in chosen[:7]]
    decoder = delayed_tree_decoder(target, draft, policy)
    out = decoder.generate(contexts[:4], 12, generator=generator)
    assert [len(text) for text in out.tokens] == [12] * 4


def test_refusals():
    with pytest.raises(InvalidInput, match="actions that draw different trees"):
        DelayAndBranchSelector([Action(1, 1, 0), Action(1, 0, 1)], base=0)
    with pytest.raises(InvalidInput, match="base: expected the place of an action"):
        DelayAndBranchSelector([Action(1, 1, 0)], base=1)
    selector = DelayAndBranchSelector([Action(1, 1, 0)], base=0, n_scalars=1)
    with pytest.raises(InvalidInput, match="hidden: expected 0 tensors"):
        selector(torch.zeros(1, 1), torch.zeros(1, 3))
    traces, _ = two_kinds(4, torch.Generator())
    time = TimeModel(lambda n: 0, lambda n: 1)
    with pytest.raises(InvalidInput, match="base: expected one of the actions"):
        train_selector(traces, time, base=Action(4, 4, 4))
    with pytest.raises(InvalidInput, match="held_back: expected a share"):
        train_selector(traces, time, held_back=1.0)
