"""Verification is lossless: the law of what is written, by enumeration of every tree and outcome, is the target's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worlds import World, every_tree, fit, output_law, same_trees

from brenier import InvalidInput
from brenier.systems.decoding.selectors import ExactSelector, KSeqSelector, NaiveSelector
from brenier.systems.decoding.tree import branching_matrix, delayed, draft_tree
from brenier.systems.decoding.verification import (
    Block,
    TopDown,
    Traversal,
    Verification,
    block_efficiency_bound,
    find_verification,
)

TREES = {"rollouts": delayed(2, 0, 2), "delayed": delayed(2, 1, 1), "bushy": (2, 2), "path": delayed(1, 0, 2)}
INDEPENDENT = ["nss", "naive", "spectr", "specinfer", "traversal"]
DIFFERENT = ["specinfer-without-replacement", "greedy", "traversal-without-replacement"]
CASES = [
    *((method, shape) for method in INDEPENDENT for shape in TREES),
    ("block", "path"),
    *((method, shape) for method in DIFFERENT for shape in ("delayed", "bushy", "path")),
]


@pytest.mark.parametrize(("method", "shape"), CASES)
def test_lossless(method, shape, monkeypatch):
    verification = find_verification(method)
    for seed in range(3):
        world = World(seed)
        tree, chance = every_tree(world, TREES[shape], verification.scheme, monkeypatch)
        assert float(chance.sum()) == pytest.approx(1, abs=1e-12)
        written, wanted = output_law(world, tree, chance, verification.outcomes(tree))
        torch.testing.assert_close(written, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_lossless_on_twenty_worlds(seed, monkeypatch):
    world = World(seed, zeros=seed % 2 == 1)
    tree, chance = every_tree(world, (2, 1), "with_replacement", monkeypatch)
    for verification in (TopDown(), Traversal()):
        written, wanted = output_law(world, tree, chance, verification.outcomes(tree))
        torch.testing.assert_close(written, wanted, rtol=0, atol=1e-10)


def test_lossless_with_the_exact_rule(monkeypatch):
    world = World(5)
    for replacement in (True, False):
        verification = TopDown(ExactSelector(replacement))
        tree, chance = every_tree(world, (2, 2), verification.scheme, monkeypatch)
        written, wanted = output_law(world, tree, chance, verification.outcomes(tree))
        torch.testing.assert_close(written, wanted, rtol=0, atol=1e-10)


def test_the_check_of_losslessness_can_fail(monkeypatch):
    """Merged drafts in another order than that of drawing, and a wrong weight, are found out."""
    world = World(0)
    tree, chance = every_tree(world, (3, 1), "with_replacement", monkeypatch)
    tree.drafts.copy_(tree.drafts.sort(-1, descending=True).values)
    written, wanted = output_law(world, tree, chance, TopDown(KSeqSelector()).outcomes(tree))
    assert float((written - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "method", ["spectr", "specinfer", "naive", "traversal", "traversal-without-replacement", "greedy"]
)
def test_verify_draws_the_outcomes(method, generator, monkeypatch):
    """One tree many times over."""
    n = 4000
    verification = find_verification(method)
    tree, own = same_trees(World(7), (2, 2), verification.scheme, n, monkeypatch)
    law = verification.outcomes(tree)[tree.prompt == 0].flatten()
    outcome = verification.verify(tree, generator)
    assert bool((tree.prompt[outcome.node] == torch.arange(n)).all())
    counts = torch.bincount(own[outcome.node] * 3 + outcome.token, minlength=len(law))
    assert counts[law < 1e-14].sum() == 0
    assert fit(counts, law) > 1e-3


def test_outcomes_are_laws_and_end_where_they_may(generator):
    world = World(3, vocab_size=4, length=3)
    rows = branching_matrix([(3, 2, 1)] * 30 + [()] * 2 + [(1, 1)] * 3)
    for method in INDEPENDENT:
        verification = find_verification(method)
        tree = world.scored(draft_tree(world.law, rows, 4, generator=generator))
        outcomes = verification.outcomes(tree)
        assert float(outcomes.min()) >= 0
        torch.testing.assert_close(tree.per_prompt(outcomes.sum(-1)), torch.ones(35).double(), rtol=0, atol=1e-12)
        length = verification.block_efficiency(tree)
        torch.testing.assert_close(length[30:32], torch.ones(2).double(), rtol=0, atol=1e-12)
        assert bool((length >= 1 - 1e-12).all())
        assert bool((length <= 4 + 1e-12).all())
        if method != "traversal":
            # a block that ended with a draft of its node would have gone on
            at = (tree.drafts >= 0).nonzero(as_tuple=True)
            assert float(outcomes[at[0], tree.drafts[at]].max()) == 0


@pytest.mark.parametrize("method", [*INDEPENDENT, *DIFFERENT])
def test_efficiency_by_depth_is_that_of_shorter_trees(method, generator):
    world = World(8, vocab_size=4, length=3)
    verification = find_verification(method)
    rows = branching_matrix([(3, 2, 1)] * 10 + [(1, 1)] * 3)
    tree = world.scored(draft_tree(world.law, rows, 4, scheme=verification.scheme, generator=generator))
    found = verification.efficiency_by_depth(tree)
    assert found.shape == (13, 4)
    torch.testing.assert_close(found[:, 3], verification.block_efficiency(tree), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 0], torch.ones(13).double(), rtol=0, atol=1e-12)
    if method != "greedy":
        # the definition: trees whose lower levels were left out
        torch.testing.assert_close(found, Verification.efficiency_by_depth(verification, tree), rtol=0, atol=1e-12)
        return
    for depth in (1, 2):
        inner = (tree.depth < depth).unsqueeze(1)
        drafts, children = (torch.where(inner, t, -1) for t in (tree.drafts, tree.children))
        outcomes = verification.outcomes(replace(tree, drafts=drafts, children=children))
        lengths = tree.per_prompt(torch.where(tree.depth <= depth, outcomes.sum(-1) * (tree.depth + 1), 0))
        torch.testing.assert_close(found[:, depth], lengths, rtol=0, atol=1e-12)


def test_one_path_traversal_is_block_verification(generator, monkeypatch):
    """Against the weights of block verification: w_i = min(1, w_{i-1} p/q), from the last draft to the first."""
    world = World(11, length=2)
    tree, chance = every_tree(world, (1, 1), "with_replacement", monkeypatch)
    torch.testing.assert_close(Block().outcomes(tree), Traversal().outcomes(tree), rtol=0, atol=0)
    for prompt in range(tree.n_prompts):
        path = (tree.prompt == prompt).nonzero().flatten().tolist()
        w, ends = [1.0], []
        for node in path[1:]:
            parent, x = int(tree.parent[node]), int(tree.tokens[node])
            w.append(min(1.0, w[-1] * float(tree.p[parent, x] / tree.q[parent, x])))
        alive = 1.0
        for depth in reversed(range(len(path))):
            rest = float((w[depth] * tree.p[path[depth]] - tree.q[path[depth]]).clamp(min=0).sum())
            accept = w[depth] if depth == len(path) - 1 else rest / (rest + 1 - w[depth])
            ends.append((depth, alive * accept))
            alive *= 1 - accept
        for depth, mass in ends:
            assert float(Block().outcomes(tree)[path[depth]].sum()) == pytest.approx(mass, abs=1e-12)
    # and no worse than sampling token by token, on average
    gain = (Block().block_efficiency(tree) - TopDown(NaiveSelector()).block_efficiency(tree)) @ chance
    assert float(gain) >= -1e-12


@pytest.mark.parametrize("shape", ["rollouts", "delayed", "bushy", "path"])
def test_bound_of_the_block_efficiency(shape, monkeypatch):
    """Its mean is 1 + sum over texts of min(p(y), Pr(y in tree)), and nothing is above it."""
    for seed in range(3):
        world = World(seed)
        tree, chance = every_tree(world, TREES[shape], "with_replacement", monkeypatch)
        bound = float(block_efficiency_bound(tree) @ chance)
        direct = 1.0
        seen = [(tree.paths == text).all(1) for text in tree.paths.unique(dim=0)[1:]]
        for nodes in seen:
            found = chance[tree.prompt[nodes]].sum()
            written = tree.product_along(tree.along(tree.p))[nodes][0]
            direct += float(torch.minimum(found, written))
        assert bound == pytest.approx(direct, abs=1e-12)
        lengths = {m: float(find_verification(m).block_efficiency(tree) @ chance) for m in INDEPENDENT}
        assert max(lengths.values()) <= bound + 1e-12
        assert lengths["nss"] <= lengths["traversal"] + 1e-12
    world = World(0)
    with pytest.raises(InvalidInput, match="the target's laws"):
        block_efficiency_bound(draft_tree(world.law, branching_matrix([(2,)]), 3))


def test_refusals():
    world = World(0)
    tree = draft_tree(world.law, branching_matrix([(2,)]), 3)
    with pytest.raises(InvalidInput, match="tree: expected a tree that the target has scored"):
        TopDown().outcomes(tree)
    with pytest.raises(InvalidInput, match=r"drafts drawn 'greedy', as TopDown.* needs, got 'with_replacement'"):
        find_verification("greedy").verify(world.scored(tree))
    with pytest.raises(InvalidInput, match="single paths, got 2 drafts at a node"):
        Block().outcomes(world.scored(tree))
    with pytest.raises(InvalidInput, match="method: expected one of 'naive', 'nss'"):
        find_verification("best")
    assert find_verification(KSeqSelector()) == TopDown(KSeqSelector())
