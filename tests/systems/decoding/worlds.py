"""Pairs of random language models over a few tokens, and every draft tree that they can grow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from scipy.stats import chisquare
from torch import Tensor

from brenier.systems.decoding import tree as trees
from brenier.systems.decoding.laws import sample_drafts, without
from brenier.systems.decoding.tree import DraftTree, branching_matrix, draft_tree


def random_laws(generator: torch.Generator, *shape: int, peak: float = 1.5, zeros: bool = False) -> Tensor:
    """Random laws, some of them peaked, some with tokens that are never drawn."""
    p = (peak * torch.randn(*shape, dtype=torch.float64, generator=generator)).softmax(-1)
    if zeros:
        lost = (torch.rand(*shape, generator=generator) < 0.3) & (p < p.amax(-1, keepdim=True))
        p = torch.where(lost, 0, p)
    return p / p.sum(-1, keepdim=True)


class World:
    """Target and draft laws after every text of up to L tokens; with `zeros` the target never writes some."""

    def __init__(self, seed: int, vocab_size: int = 3, length: int = 2, zeros: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size, self.length = vocab_size, length
        n = (vocab_size + 1) ** length
        self.p = random_laws(generator, n, vocab_size, zeros=zeros)
        self.q = random_laws(generator, n, vocab_size)

    def code(self, paths: Tensor) -> Tensor:
        """The row of each text, which is padded with -1."""
        code = torch.zeros_like(paths[..., 0]) if paths.shape[-1] else torch.zeros(paths.shape[:-1], dtype=torch.long)
        for token in paths.unbind(-1):
            code = code * (self.vocab_size + 1) + token + 1
        return code * (self.vocab_size + 1) ** (self.length - paths.shape[-1])

    def law(self, tree: DraftTree, nodes: Tensor) -> Tensor:
        """The draft's laws at nodes of a tree."""
        return self.q[self.code(tree.paths[nodes])]

    def scored(self, tree: DraftTree) -> DraftTree:
        """The tree with the target's laws."""
        return tree.scored(self.p[self.code(tree.paths)])

    def probability(self, texts: Tensor) -> Tensor:
        """The target's probability of texts (n, length)."""
        out = torch.ones(len(texts), dtype=torch.float64)
        for j in range(texts.shape[1]):
            before = torch.full((len(texts), self.length), -1)
            before[:, :j] = texts[:, :j]
            out *= self.p[self.code(before), texts[:, j]]
        return out


class Markov:
    """A language model whose next token depends on the last one."""

    def __init__(self, seed: int, vocab_size: int = 3, peak: float = 1.5) -> None:
        self.vocab_size = vocab_size
        self.table = random_laws(torch.Generator().manual_seed(seed), vocab_size, vocab_size, peak=peak).log()

    def logits(self, contexts: Sequence[Tensor]) -> Tensor:
        """Logits after contexts."""
        return self.table[torch.stack([context[-1] for context in contexts])]

    def tree_logits(self, contexts: Sequence[Tensor], tree: DraftTree, nodes: Tensor) -> Tensor:
        """Logits after nodes of a tree."""
        last = torch.stack([context[-1] for context in contexts])
        tokens = tree.tokens[nodes]
        return self.table[torch.where(tokens < 0, last[tree.prompt[nodes]], tokens)]


def every_tree(world: World, branching: Sequence[int], scheme: str, monkeypatch) -> tuple[DraftTree, Tensor]:
    """A forest with one prompt for every outcome of the draws, and the probability of each."""
    if scheme == "with_replacement":
        lengths = list(itertools.accumulate(branching, lambda x, y: x * y))
        choices = [list(itertools.product(range(world.vocab_size), repeat=n)) for n in lengths]
    else:
        choices, nodes = [], 1
        for k in branching:
            one = list(itertools.permutations(range(world.vocab_size), k))
            choices.append([sum(some, ()) for some in itertools.product(one, repeat=nodes)])
            nodes *= k
    scripts = list(itertools.product(*choices))
    levels = [torch.tensor([script[j] for script in scripts]).flatten() for j in range(len(branching))]
    left = iter(levels)

    def scripted(q, k, scheme, generator):
        drafts = torch.full((len(q), int(k.max())), -1)
        drafts[torch.arange(drafts.shape[1]) < k.unsqueeze(1)] = next(left)
        return drafts

    with monkeypatch.context() as patch:
        patch.setattr(trees, "sample_drafts", scripted)
        matrix = branching_matrix([branching] * len(scripts))
        forest = draft_tree(world.law, matrix, world.vocab_size, scheme=scheme)
    return world.scored(forest), forest.per_prompt(_log_probability(forest)).exp()


def same_trees(world: World, branching: Sequence[int], scheme: str, n: int, monkeypatch) -> tuple[DraftTree, Tensor]:
    """One tree for each of n prompts, and the place that each node has in its own tree."""

    def repeated(q, k, scheme, generator):
        rows = len(q) // n
        return sample_drafts(q[:rows], k[:rows], scheme, generator).repeat(n, 1)

    with monkeypatch.context() as patch:
        patch.setattr(trees, "sample_drafts", repeated)
        generator = torch.Generator().manual_seed(1)
        matrix = branching_matrix([branching] * n)
        tree = draft_tree(world.law, matrix, world.vocab_size, scheme=scheme, generator=generator)
    own, begin = [], 0
    for nodes in tree.levels:
        size = len(nodes) // n
        own.append(begin + torch.arange(size).repeat(n))
        begin += size
    return world.scored(tree), torch.cat(own)


def _log_probability(tree: DraftTree) -> Tensor:
    """The logarithm of the probability of the drafts of each node."""
    out = torch.zeros(len(tree), dtype=torch.float64)
    q = tree.q.clone()
    k = (tree.drafts >= 0).sum(1)
    for j in range(tree.drafts.shape[1]):
        x = tree.drafts[:, j : j + 1]
        on = x.squeeze(1) >= 0
        chance = q.gather(1, x.clamp(min=0)).squeeze(1)
        if tree.scheme == "greedy":
            top = (q.argmax(1) == x.squeeze(1)).double()
            chance = torch.where(j < k - 1, top, chance)
        out += torch.where(on, chance.log(), 0)
        if tree.scheme != "with_replacement":
            q = torch.where(on.unsqueeze(1), without(q, x), q)
    return out


def output_law(world: World, tree: DraftTree, chance: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
    """The law of the first L + 1 tokens, when a block is followed by tokens of the target; and the target's."""
    length = world.length + 1
    texts = torch.tensor(list(itertools.product(range(world.vocab_size), repeat=length)))
    weights = outcomes * chance[tree.prompt].unsqueeze(1)
    weights = torch.where(chance[tree.prompt].unsqueeze(1) > 0, weights, 0)
    written = torch.zeros(len(texts), dtype=torch.float64)
    paths = torch.nn.functional.pad(tree.paths, (0, length - tree.paths.shape[1]), value=-1)
    for row, text in enumerate(texts):
        on_the_way = ((paths == text) | (paths < 0)).all(1)
        following = world.probability(text.unsqueeze(0))
        for depth in range(length):
            nodes = on_the_way & (tree.depth == depth)
            rest = following / world.probability(text[: depth + 1].unsqueeze(0))
            mass = weights[nodes, text[depth]].sum()
            written[row] += torch.where(mass > 0, mass * rest, 0).squeeze()
    return written, world.probability(texts)


def fit(counts: Tensor, law: Tensor) -> float:
    """The p-value of the chi-square test that counts follow a law; rare outcomes are counted together."""
    total = counts.sum()
    often = total * law > 4
    pairs = [counts[often].double(), counts[~often].sum().double().unsqueeze(0)]
    means = [total * law[often], total * law[~often].sum().unsqueeze(0)]
    observed, expected = torch.cat(pairs), torch.cat(means)
    some = expected > 1e-9
    assert observed[~some].sum() == 0
    observed, expected = observed[some], expected[some]
    return chisquare(observed, expected * observed.sum() / expected.sum()).pvalue if len(observed) > 1 else 1.0


__all__ = ["Markov", "World", "every_tree", "fit", "output_law", "random_laws", "same_trees"]
