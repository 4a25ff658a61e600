"""Language models: n-grams against the formula, torch modules, trees scored one way and another."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from worlds import World

from brenier import InvalidInput
from brenier.systems.decoding.models import ByDepth, NGramLM, TorchLM, TreeScorer, tree_logits
from brenier.systems.decoding.tree import branching_matrix, draft_tree


def witten_bell(documents, vocab_size, order, context):
    """The law of the next token, written out."""
    law = [1 / vocab_size] * vocab_size
    for m in range(order):
        if m > len(context):
            break
        history = tuple(context[len(context) - m :])
        counts = [0] * vocab_size
        for document in documents:
            for i in range(m, len(document)):
                if tuple(document[i - m : i]) == history:
                    counts[document[i]] += 1
        total, types = sum(counts), sum(c > 0 for c in counts)
        if not total:
            break
        law = [(c + types * before) / (total + types) for c, before in zip(counts, law)]
    return law


@pytest.mark.parametrize("order", [1, 2, 4])
def test_n_grams_are_the_formula(order, generator):
    documents = [torch.randint(0, 4, (n,), generator=generator).tolist() for n in (60, 3, 0, 25)]
    model = NGramLM(documents, 4, order)
    contexts = [torch.randint(0, 4, (n,), generator=generator) for n in (0, 1, 2, 3, 7, 9, 2, 3)]
    laws = model.logits(contexts).exp()
    assert laws.dtype == torch.float64
    for law, context in zip(laws, contexts):
        expected = torch.tensor(witten_bell(documents, 4, order, context.tolist())).double()
        torch.testing.assert_close(law, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(laws.sum(-1), torch.ones(8).double())


def test_histories_do_not_reach_over_documents():
    model = NGramLM([[0, 1], [2, 0]], 3, order=2)
    after = model.logits([torch.tensor([1])]).exp()[0]  # 1 ends its document, nothing was seen after it
    torch.testing.assert_close(after, model.logits([torch.tensor([], dtype=torch.long)]).exp()[0])
    short = NGramLM([[0]], 2, order=3)
    assert float(short.logits([torch.tensor([0, 0])]).exp().sum()) == pytest.approx(1)


def test_n_grams_score_trees_as_they_score_contexts(generator):
    documents = [torch.randint(0, 4, (200,), generator=generator)]
    contexts = [torch.randint(0, 4, (n,), generator=generator) for n in (0, 1, 2, 9)]
    world = World(0, vocab_size=4, length=3)
    tree = draft_tree(world.law, branching_matrix([(3, 2, 1), (2, 1), (), (1, 1, 1)]), 4, generator=generator)
    for order in (1, 2, 3, 5):
        model = NGramLM(documents, 4, order)
        assert isinstance(model, TreeScorer)
        for nodes in (torch.arange(len(tree)), torch.tensor([7, 0, 5])):
            rows = [torch.cat([contexts[tree.prompt[c]], tree.paths[c, : tree.depth[c]]]) for c in nodes]
            assert torch.equal(tree_logits(model, contexts, tree, nodes), model.logits(rows))


def test_shortened_n_grams_are_those_of_a_lower_order(generator):
    documents = [torch.randint(0, 4, (60,), generator=generator)]
    contexts = [torch.randint(0, 4, (n,), generator=generator) for n in (0, 2, 7)]
    model = NGramLM(documents, 4, 4)
    for order in (1, 2, 4):
        assert torch.equal(model.shortened(order).logits(contexts), NGramLM(documents, 4, order).logits(contexts))
    assert model.order == 4
    for order in (0, 5):
        with pytest.raises(InvalidInput, match=r"order: expected an integer 1\.\.4"):
            model.shortened(order)


def test_models_by_depth(generator):
    documents = [torch.randint(0, 3, (90,), generator=generator)]
    model = NGramLM(documents, 3, 3)
    draft = ByDepth([model, model.shortened(1)])
    contexts = [torch.tensor([0, 1]), torch.tensor([2])]
    assert torch.equal(draft.logits(contexts), model.logits(contexts))
    world = World(0, length=3)
    tree = draft_tree(world.law, branching_matrix([(2, 1, 1), (1, 1)]), 3, generator=generator)
    every = torch.arange(len(tree))
    laws = tree_logits(draft, contexts, tree, every)
    for i, models in enumerate([model, model.shortened(1), model.shortened(1), model.shortened(1)]):
        nodes = tree.levels[i] if i < len(tree.levels) else every[:0]
        assert torch.equal(laws[nodes], tree_logits(models, contexts, tree, nodes))
    with pytest.raises(InvalidInput, match=r"models: expected at least one, over one vocabulary, got .*\[2, 3\]"):
        ByDepth([model, NGramLM([[0]], 2, 1)])
    with pytest.raises(InvalidInput, match="models: expected at least one"):
        ByDepth([])


def test_refusals_of_n_grams():
    with pytest.raises(InvalidInput, match=r"documents: expected tokens 0\.\.2, got 0\.\.3"):
        NGramLM([[0, 3]], 3, 2)
    with pytest.raises(InvalidInput, match="got none"):
        NGramLM([], 3, 2)
    with pytest.raises(InvalidInput, match="order: expected a positive integer"):
        NGramLM([[0]], 3, 0)


class Causal(nn.Module):
    """A running mean of embeddings: position t sees tokens up to t."""

    def __init__(self, vocab_size=5):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, 7), nn.Linear(7, vocab_size)

    def forward(self, tokens):
        x = self.embed(tokens).cumsum(1)
        return self.head(x / torch.arange(1, tokens.shape[1] + 1).unsqueeze(1))


def test_torch_modules_score_contexts_and_trees_alike():
    torch.manual_seed(0)
    module = Causal()
    model = TorchLM(module, 5)
    contexts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    logits = model.logits(contexts)
    for row, context in zip(logits, contexts):
        torch.testing.assert_close(row, module(context.unsqueeze(0))[0, -1])
    assert not logits.requires_grad
    assert isinstance(model, TreeScorer)
    world = World(0, vocab_size=5, length=3)
    tree = draft_tree(world.law, branching_matrix([(3, 2, 1), (2, 1)]), 5)
    for nodes in (torch.arange(len(tree)), torch.tensor([4, 0, 2, 9, 1])):
        plain = [torch.cat([contexts[tree.prompt[c]], tree.paths[c, : tree.depth[c]]]) for c in nodes]
        torch.testing.assert_close(tree_logits(model, contexts, tree, nodes), model.logits(plain))
    cut = TorchLM(module, 5, max_length=2)
    torch.testing.assert_close(cut.logits(contexts)[0], module(torch.tensor([[2, 3]]))[0, -1])
    short = [torch.cat([contexts[tree.prompt[c]], tree.paths[c, : tree.depth[c]]])[-2:] for c in range(len(tree))]
    torch.testing.assert_close(tree_logits(cut, contexts, tree, torch.arange(len(tree))), model.logits(short))


def test_outputs_with_logits_and_refusals():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(Causal):
        def forward(self, tokens):
            return Output(super().forward(tokens))

    torch.manual_seed(0)
    assert TorchLM(Wrapped(), 5).logits([torch.tensor([1])]).shape == (1, 5)
    with pytest.raises(InvalidInput, match="module: expected logits of shape"):
        TorchLM(Causal(), 6).logits([torch.tensor([1])])
    with pytest.raises(InvalidInput, match="contexts: expected at least one token each"):
        TorchLM(Causal(), 5).logits([torch.tensor([], dtype=torch.long)])
    with pytest.raises(InvalidInput, match="max_length"):
        TorchLM(Causal(), 5, max_length=0)
