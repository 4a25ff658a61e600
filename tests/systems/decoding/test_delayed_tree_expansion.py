"""Actions, their time, and estimates of what they bring."""

from __future__ import annotations

import math

import pytest
import torch
from worlds import Markov

from brenier import InvalidInput
from brenier.systems.decoding.delayed_tree_expansion import (
    Action,
    DelayAndBranchSelector,
    TimeModel,
    all_actions,
    best_action,
    block_efficiencies,
    context_scalars,
    throughput_loss,
    train_selector,
)
from brenier.systems.decoding.generation import Decoder
from brenier.systems.decoding.laws import Processing


def test_actions_have_one_name_each():
    actions = all_actions()
    assert len(actions) == len({action.branching for action in actions}) == 17 + 3 * 9 * 8
    assert Action(3, 2, 0).canonical == Action(1, 0, 2).canonical == Action(1, 2, 0)
    assert Action(3, 2, 1).canonical == Action(3, 2, 1)
    assert Action(3, 2, 2).branching == (1, 1, 3, 1)


def test_time_is_that_of_every_call():
    time = TimeModel(lambda n: n, lambda n: 1000 * n)
    # trunk at lengths 10, 11; branches at 12 and 12 + 3; target sees 12 + 6
    assert time.seconds(Action(3, 2, 2), 10) == 10 + 11 + 12 + 15 + 18_000
    assert time.seconds(Action(1, 4, 0), 10) == 10 + 11 + 12 + 13 + 14_000
    assert time.seconds(Action(1, 0, 0), 10) == 10_000


@pytest.mark.parametrize("method", ["spectr", "traversal"])
def test_estimates_are_what_a_decoder_measures(method, generator):
    target, draft = Markov(0), Markov(1)
    action = Action(3, 1, 2)
    contexts = [torch.tensor([0])] * 400
    estimate = block_efficiencies(
        target, draft, contexts, [action, Action(1, 0, 0)], method=method, generator=generator
    )
    assert bool((estimate[:, 1] == 1).all())
    # the first block of each of as many prompts
    decoder = Decoder(target, draft, method, action.branching)
    blocks = []
    for block in decoder.stream(contexts * 10, 50, generator=generator):
        if block.round:
            break
        blocks.append(len(block.tokens))
    measured = torch.tensor(blocks).double()
    error = (measured.var() / len(blocks) + estimate[:, 0].var() / 400).sqrt()
    assert float((measured.mean() - estimate[:, 0].mean()).abs() / error) < 4


def test_the_best_action_has_the_most_tokens_for_its_time():
    actions = [Action(1, 0, 0), Action(2, 0, 1), Action(4, 0, 4)]
    efficiencies = torch.tensor([[1.0, 1.5, 3.0], [1.0, 1.7, 3.2]])
    cheap = TimeModel(lambda n: 0.01, lambda n: 1)
    action, throughput = best_action(efficiencies, actions, cheap)
    assert action == actions[2]
    assert throughput == pytest.approx(3.1 / 1.04)
    dear = TimeModel(lambda n: 10, lambda n: 1)
    assert best_action(efficiencies, actions, dear)[0] == actions[0]


def test_scalars_are_what_they_are_called():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    time = TimeModel(lambda n: 0.1, lambda n: 1 + n)
    scalars = context_scalars(p, q, p, torch.tensor([7, 9]), Processing(0.5, top_p=0.9), time)
    assert scalars.shape == (2, 11)
    first, second = scalars.tolist()
    assert (first[0], first[2]) == pytest.approx((math.log(2), math.log(2)), abs=1e-6)
    assert first[3] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert first[5] == pytest.approx(0.5)
    assert first[6:] == pytest.approx([7, 0.5, 0.9, 8, 0.1])
    assert max(map(abs, second[:6])) < 1e-6


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


def test_a_selector_learns_which_contexts_need_which_action(generator):
    actions = [Action(1, 1, 0), Action(2, 0, 2), Action(2, 2, 2)]
    kind = torch.randint(0, 2, (200,), generator=generator)
    scalars = torch.stack([kind * 3.0 + torch.randn(200, generator=generator) * 0.3, torch.ones(200)], 1)
    state = torch.randn(200, 4, generator=generator)
    efficiencies = torch.stack([torch.full((200,), 1.5), 1.2 + kind, 2.2 - kind], 1)
    before = torch.random.get_rng_state()
    selector = DelayAndBranchSelector(actions, base=0, n_scalars=2, hidden_dims=(4,))
    torch.random.set_rng_state(before)
    assert selector.select(scalars, state) == [actions[0]] * 200
    losses = train_selector(
        selector,
        scalars,
        efficiencies,
        torch.ones(200, 3),
        hidden=(state,),
        epochs=40,
        batch_size=64,
        generator=generator,
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[-1] < losses[0]
    right = [a == actions[2 - int(c)] for a, c in zip(selector.select(scalars, state), kind)]
    assert sum(right) >= 190
    assert not selector.training


def test_refusals():
    with pytest.raises(InvalidInput, match="actions that draw different trees"):
        DelayAndBranchSelector([Action(1, 1, 0), Action(1, 0, 1)], base=0)
    with pytest.raises(InvalidInput, match="base: expected the place of an action"):
        DelayAndBranchSelector([Action(1, 1, 0)], base=1)
    selector = DelayAndBranchSelector([Action(1, 1, 0)], base=0, n_scalars=1)
    with pytest.raises(InvalidInput, match="hidden: expected 0 tensors"):
        selector(torch.zeros(1, 1), torch.zeros(1, 3))
    with pytest.raises(InvalidInput, match="contexts by actions"):
        train_selector(selector, torch.zeros(2, 1), torch.ones(3, 1), torch.ones(3, 1))
    with pytest.raises(InvalidInput, match="contexts: expected at least one context"):
        block_efficiencies(Markov(0), Markov(1), [], all_actions())
    with pytest.raises(InvalidInput, match="trees: expected a positive integer"):
        block_efficiencies(Markov(0), Markov(1), [torch.tensor([0])], all_actions(), trees=0)
    with pytest.raises(InvalidInput, match=r"shape \(B, 1\)"):
        best_action(torch.ones(2, 2), [Action(1, 0, 0)], TimeModel(lambda n: 1, lambda n: 1))
