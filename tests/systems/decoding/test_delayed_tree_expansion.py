"""Actions, their time, and estimates of what they bring."""

from __future__ import annotations

import pytest
import torch
from worlds import Markov

from brenier import InvalidInput
from brenier.systems.catalogue import find
from brenier.systems.decoding.delayed_tree_expansion import (
    Action,
    TimeModel,
    all_actions,
    best_action,
    block_efficiencies,
    delayed_tree_decoder,
    measured_time,
)
from brenier.systems.decoding.generation import Decoder, scored_tree
from brenier.systems.decoding.models import ByDepth
from brenier.systems.decoding.tree import branching_matrix
from brenier.systems.decoding.verification import find_verification


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
    actions = [Action(3, 2, 2), Action(1, 0, 0)]
    table = time.table(actions, torch.tensor([10, 3, 10]))
    assert table.tolist() == [[time.seconds(action, n) for action in actions] for n in (10, 3, 10)]
    assert time.calls(torch.tensor([5, 2])).tolist() == [[5000, 5], [2000, 2]]


def test_measured_times_are_seconds_by_length():
    text = torch.tensor([0, 1, 2, 0, 1, 2])
    seconds = measured_time(Markov(0), text, points=3, repeats=2)
    assert all(seconds(n) > 0 for n in (1, 4, 6))
    assert seconds(100) == seconds(6)
    assert TimeModel(seconds, seconds).seconds(Action(2, 1, 1), 2) > 0
    for options in ({"text": text[:0]}, {"points": 0}, {"repeats": 0}):
        with pytest.raises(InvalidInput, match=f"{next(iter(options))}: expected at least one"):
            measured_time(Markov(0), **{"text": text, **options})


@pytest.mark.parametrize("method", ["spectr", "traversal"])
def test_estimates_are_what_a_decoder_measures(method, generator):
    target, draft = Markov(0), Markov(1)
    action = Action(3, 1, 2)
    contexts = [torch.tensor([0])] * 400
    estimate = block_efficiencies(
        target, draft, contexts, [action, Action(1, 0, 0)], method=method, generator=generator
    )
    torch.testing.assert_close(estimate[:, 1], torch.ones(400).double(), rtol=0, atol=1e-12)
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


@pytest.mark.parametrize("method", ["nss", "specinfer", "traversal", "specinfer-without-replacement", "greedy"])
def test_estimates_of_all_actions_are_those_of_each_alone(method, generator):
    """Shared trees against trees of each action's own, over many contexts."""
    target, draft, n = Markov(0, 4), ByDepth([Markov(1, 4), Markov(2, 4)]), 300
    contexts = [torch.tensor([i % 4]) for i in range(n)]
    actions = [Action(2, 0, 2), Action(3, 0, 1), Action(3, 1, 1), Action(2, 1, 2), Action(1, 3, 0), Action(4, 2, 0)]
    shared = block_efficiencies(
        target, draft, contexts, actions, method=method, trees=1, batch_size=77, generator=generator
    )
    verification = find_verification(method)
    for a, action in enumerate(actions):
        matrix = branching_matrix([action.branching] * n)
        tree = scored_tree(target, draft, contexts, matrix, scheme=verification.scheme, generator=generator)
        alone = verification.block_efficiency(tree)
        error = ((alone.var() + shared[:, a].var()) / n).sqrt()
        assert float((alone.mean() - shared[:, a].mean()).abs()) < 4 * float(error)


def test_the_best_action_has_the_most_tokens_for_its_time():
    actions = [Action(1, 0, 0), Action(2, 0, 1), Action(4, 0, 4)]
    efficiencies = torch.tensor([[1.0, 1.5, 3.0], [1.0, 1.7, 3.2]])
    cheap = TimeModel(lambda n: 0.01, lambda n: 1)
    action, throughput = best_action(efficiencies, actions, cheap)
    assert action == actions[2]
    assert throughput == pytest.approx(3.1 / 1.04)
    dear = TimeModel(lambda n: 10, lambda n: 1)
    assert best_action(efficiencies, actions, dear)[0] == actions[0]
    # total tokens over total time, at contexts of different lengths
    growing = TimeModel(lambda n: 0, lambda n: 1 + n)
    action, throughput = best_action(efficiencies, actions, growing, torch.tensor([0, 9]))
    assert action == actions[1]
    assert throughput == pytest.approx(3.2 / (3 + 12))


def test_decoders_of_an_action_and_of_a_policy(generator):
    prompts = [torch.tensor([0])] * 3
    decoder = delayed_tree_decoder(Markov(0), Markov(1), Action(3, 1, 2), top_k=2)
    assert (decoder.branching, decoder.method, decoder.top_k) == ((1, 3, 1), "specinfer", 2)
    assert [len(text) for text in decoder.generate(prompts, 9, generator=generator).tokens] == [9] * 3
    decoder = delayed_tree_decoder(Markov(0), Markov(1), lambda texts: [(1, 2)] * len(texts), "traversal")
    out = decoder.generate(prompts, 9, generator=generator)
    assert {block.drafted for block in out.blocks if not block.shortened} == {2}
    with pytest.raises(InvalidInput, match="num_drafts, trunk_length, branch_length"):
        delayed_tree_decoder(Markov(0), Markov(1), Action(0, 1, 2))


def test_on_the_shelf():
    assert find("delayed-tree-expansion").on_shelf


def test_refusals():
    context = [torch.tensor([0])]
    with pytest.raises(InvalidInput, match="contexts: expected at least one context"):
        block_efficiencies(Markov(0), Markov(1), [], all_actions())
    with pytest.raises(InvalidInput, match="actions: expected at least one action"):
        block_efficiencies(Markov(0), Markov(1), context, [])
    for option in ("trees", "batch_size"):
        with pytest.raises(InvalidInput, match=f"{option}: expected a positive integer"):
            block_efficiencies(Markov(0), Markov(1), context, all_actions(), **{option: 0})
    with pytest.raises(InvalidInput, match="single paths, got 3 drafts at a node"):
        block_efficiencies(Markov(0), Markov(1), context, [Action(3, 0, 1)], method="block")
    with pytest.raises(InvalidInput, match=r"shape \(B, 1\)"):
        best_action(torch.ones(2, 2), [Action(1, 0, 0)], TimeModel(lambda n: 1, lambda n: 1))
