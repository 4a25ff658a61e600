"""Draft trees: merged nodes, the mask of attention, the order and number of draws."""

from __future__ import annotations

import pytest
import torch
from worlds import World, fit

from brenier import InvalidInput
from brenier.systems.decoding.tree import branching_matrix, delayed, draft_tree


def grow(world, branching, n_prompts=1, scheme="with_replacement", seed=0):
    rows = branching if branching and isinstance(branching[0], tuple) else [branching] * n_prompts
    generator = torch.Generator().manual_seed(seed)
    return draft_tree(world.law, branching_matrix(rows), world.vocab_size, scheme=scheme, generator=generator)


def test_every_part_of_a_tree_fits_the_others():
    tree = grow(World(0, vocab_size=4, length=3), (3, 2, 1), n_prompts=5)
    assert len(tree.q) == len(tree) == len(tree.drafts)
    assert tree.tokens[:5].tolist() == tree.parent[:5].tolist() == [-1] * 5
    for node in range(5, len(tree)):
        parent = int(tree.parent[node])
        assert parent < node
        assert tree.depth[node] == tree.depth[parent] + 1
        assert tree.prompt[node] == tree.prompt[parent]
        assert tree.paths[node].tolist()[: tree.depth[node]] == [
            *tree.paths[parent].tolist()[: tree.depth[parent]],
            int(tree.tokens[node]),
        ]
        drawn = tree.drafts[parent] == tree.tokens[node]
        assert bool((tree.children[parent][drawn] == node).all())
        assert int(drawn.sum()) == tree.multiplicity[node]
        above = {node, *torch.nonzero(tree.ancestors[parent]).flatten().tolist()}
        assert set(torch.nonzero(tree.ancestors[node]).flatten().tolist()) == above
    siblings = [(int(p), int(t)) for p, t in zip(tree.parent[5:], tree.tokens[5:])]
    assert len(set(siblings)) == len(siblings)
    # 3, 6 and 6 draws for each prompt, however many nodes they share
    for nodes, draws in zip(tree.levels[1:], (3, 6, 6)):
        assert tree.multiplicity[nodes].sum() == 5 * draws
    assert bool(((tree.drafts >= 0) == (tree.children >= 0)).all())
    assert bool((tree.is_leaf == (tree.depth == 3)).all())
    assert bool((tree.q[tree.is_leaf] == 0).all())
    torch.testing.assert_close(tree.q[~tree.is_leaf].sum(-1), torch.ones(int((~tree.is_leaf).sum())).double())


def test_prompts_of_different_branching_and_none():
    tree = grow(World(1, length=3), [(2, 1), (), (1, 1, 1)])
    assert torch.bincount(tree.prompt[tree.depth == 3], minlength=3).tolist() == [0, 0, 1]
    assert torch.bincount(tree.prompt, minlength=3)[1] == 1
    empty = grow(World(1), (), n_prompts=2)
    assert len(empty) == 2
    assert empty.q.shape == (2, 3)
    assert empty.paths.shape == (2, 0)
    assert empty.drafts.shape == (2, 0)


def test_paths_follow_the_draft_model():
    world = World(2, vocab_size=2, length=2)
    tree = grow(world, (2, 1), n_prompts=8000)
    # what the second path of each prompt begins with
    first = tree.children[:8000, 1]
    counts = torch.bincount(2 * tree.tokens[first] + tree.drafts[first, 0], minlength=4)
    root = world.q[0]
    after = world.q[world.code(torch.tensor([[0, -1], [1, -1]]))]
    assert fit(counts, (root.unsqueeze(1) * after).flatten()) > 1e-3


@pytest.mark.parametrize("scheme", ["without_replacement", "greedy"])
def test_drafts_of_a_node_differ(scheme):
    tree = grow(World(3, vocab_size=4), (3, 2), n_prompts=20, scheme=scheme)
    assert len(tree) == 20 * (1 + 3 + 6)
    assert bool((tree.multiplicity == 1).all())


def test_a_delayed_tree_is_a_trunk_and_branches():
    tree = grow(World(4, vocab_size=6, length=4), delayed(3, 2, 2))
    assert [len(nodes) for nodes in tree.levels][:3] == [1, 1, 1]
    assert int(tree.multiplicity[tree.levels[3]].sum()) == 3
    assert delayed(4, 0, 2) == (4, 1)
    assert delayed(4, 3, 0) == (1, 1, 1)
    assert delayed(1, 0, 0) == ()


def test_refusals():
    with pytest.raises(InvalidInput, match="branching: expected positive integers"):
        branching_matrix([(2, 0)])
    with pytest.raises(InvalidInput, match="num_drafts, trunk_length, branch_length"):
        delayed(0, 1, 1)
    with pytest.raises(InvalidInput, match="num_drafts, trunk_length, branch_length"):
        delayed(2, -1, 1)
    tree = grow(World(0), (2, 1))
    with pytest.raises(InvalidInput, match="p: expected one law for each node"):
        tree.scored(torch.ones(1, 3))
