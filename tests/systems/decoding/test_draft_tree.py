"""Draft trees: merged nodes, the mask of attention, the order and number of draws."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2_contingency
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


def test_a_part_of_a_tree_has_its_first_drafts():
    world = World(5, vocab_size=4, length=3)
    tree = world.scored(grow(world, [(4, 1, 1), (2, 2), (1, 1, 1)] * 10))
    fewer = branching_matrix([(2, 1), (1, 2), (1, 1)] * 10)
    part = tree.part(fewer)
    assert part.branching is fewer
    assert part.scheme == tree.scheme
    # the draws that are left, by level
    assert [int(part.multiplicity[nodes].sum()) for nodes in part.levels] == [30, 40, 50]
    texts = [(int(b), *path.tolist()) for b, path in zip(tree.prompt, tree.paths[:, :2])]
    where = {text: node for node, text in enumerate(texts) if tree.depth[node] <= 2}
    for node in range(len(part)):
        old = where[(int(part.prompt[node]), *part.paths[node].tolist())]
        n = int((part.drafts[node] >= 0).sum())
        assert part.drafts[node, :n].tolist() == tree.drafts[old, :n].tolist()
        for token, child in zip(part.drafts[node, :n], part.children[node, :n]):
            assert (part.tokens[child], part.parent[child]) == (token, node)
        assert torch.equal(part.p[node], tree.p[old])
        assert torch.equal(part.q[node], tree.q[old] if n else torch.zeros(4).double())
    whole = tree.part(tree.branching)
    for name in ("tokens", "parent", "depth", "prompt", "drafts", "children", "q", "p"):
        assert torch.equal(getattr(whole, name), getattr(tree, name))
    bare = tree.part(fewer[:, :0])
    assert len(bare) == 30
    assert bare.drafts.shape == (30, 0)


@pytest.mark.parametrize("scheme", ["with_replacement", "without_replacement"])
def test_a_part_has_the_law_of_a_smaller_tree(scheme):
    """The law of the second draft after the first path's first token, and of the tree's shape."""
    world, n = World(6, vocab_size=3, length=2), 6000
    part = grow(world, (3, 2), n_prompts=n, scheme=scheme).part(branching_matrix([(2, 1)] * n))
    tree = grow(world, (2, 1), n_prompts=n, scheme=scheme, seed=1)

    def shape(tree):
        first = tree.children[:n, 0]
        words = [tree.drafts[:n, 0], tree.drafts[:n, 1], tree.drafts[first, 0]]
        if scheme == "with_replacement":
            words.append(tree.drafts[tree.children[:n, 1], 0])
        return sum(word * 3**i for i, word in enumerate(words))

    counts = torch.stack([torch.bincount(shape(t), minlength=81) for t in (part, tree)])
    counts = counts[:, counts.sum(0) >= 20]
    assert chi2_contingency(counts.numpy()).pvalue > 1e-3


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
    tree = grow(World(0), (2, 1))
    for fewer, got in [([(3,)], r"\(1, 1\), with more drafts"), ([(1, 1, 1)], r"\(1, 3\)"), ([(1,)] * 2, r"\(2, 1\)")]:
        with pytest.raises(InvalidInput, match=rf"branching: expected at most that of the tree.* got shape {got}"):
            tree.part(branching_matrix(fewer))
    with pytest.raises(InvalidInput, match="got 'greedy' ones"):
        grow(World(0), (2,), scheme="greedy").part(branching_matrix([(1,)]))
