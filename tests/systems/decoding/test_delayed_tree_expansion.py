"""Actions, their time, and estimates of what they bring."""

from __future__ import annotations

import pytest
import torch
from test_generation import Markov

from brenier import InvalidInput
from brenier.systems.decoding.delayed_tree_expansion import (
    Action,
    TimeModel,
    all_actions,
    best_action,
    block_efficiencies,
)
from brenier.systems.decoding.generation import Decoder


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
    estimate = block_efficiencies(target, draft, contexts, [action, Action(1, 0, 0)], method=method, generator=generator)
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


def test_refusals():
    with pytest.raises(InvalidInput, match="contexts: expected at least one context"):
        block_efficiencies(Markov(0), Markov(1), [], all_actions())
    with pytest.raises(InvalidInput, match="trees: expected a positive integer"):
        block_efficiencies(Markov(0), Markov(1), [torch.tensor([0])], all_actions(), trees=0)
    with pytest.raises(InvalidInput, match=r"shape \(B, 1\)"):
        best_action(torch.ones(2, 2), [Action(1, 0, 0)], TimeModel(lambda n: 1, lambda n: 1))
