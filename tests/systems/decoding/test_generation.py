"""The loop: what is written has the law of the processed target, ends where it should, and is counted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from worlds import Markov, fit

from brenier import InvalidInput
from brenier.systems.decoding.generation import Decoder
from brenier.systems.decoding.laws import Processing
from brenier.systems.decoding.models import NGramLM
from brenier.systems.decoding.selectors import ExactSelector
from brenier.systems.decoding.verification import _METHODS


def law_of_texts(table, start, length):
    texts = torch.tensor(list(itertools.product(range(len(table)), repeat=length)))
    before = torch.cat([torch.full((len(texts), 1), start), texts[:, :-1]], 1)
    return texts, table[before, texts].prod(1)


@pytest.mark.parametrize("method", [*_METHODS, "exact"])
def test_texts_have_the_law_of_the_target(method):
    target, draft = Markov(0), Markov(1)
    if method == "exact":
        rule, branching = ExactSelector(), (2, 1)
    else:
        rule, branching = method, (1, 1) if method == "block" else (2, 1)
    decoder = Decoder(target, draft, rule, branching)
    n, length = 1500, 3
    out = decoder.generate([torch.tensor([1])] * n, length, generator=torch.Generator().manual_seed(hash_of(method)))
    texts, law = law_of_texts(target.table.exp(), 1, length)
    written = torch.stack(out.tokens)
    counts = (written.unsqueeze(1) == texts).all(-1).sum(0)
    assert fit(counts, law) > 1e-3
    assert out.target_calls < length * 2
    assert out.block_efficiency > 1


def hash_of(method):
    return sum(map(ord, method))  # the same on every machine


def test_the_law_is_that_of_the_processed_target():
    """Temperature and top-k on the target, others on the draft."""
    target, draft = Markov(2, 4), Markov(3, 4)
    decoder = Decoder(
        target, draft, "spectr", (3, 1), temperature=0.7, top_k=3, top_p=0.95, draft_processing=Processing(1.3)
    )
    out = decoder.generate([torch.tensor([0])] * 3000, 3, generator=torch.Generator().manual_seed(0))
    texts, law = law_of_texts(Processing(0.7, 3, 0.95)(target.table), 0, 3)
    counts = (torch.stack(out.tokens).unsqueeze(1) == texts).all(-1).sum(0)
    assert counts[law == 0].sum() == 0
    assert fit(counts, law) > 1e-3


def test_a_long_text_has_the_transitions_of_the_target(generator):
    target, draft = Markov(4, 5), Markov(5, 5)
    out = Decoder(target, draft, "traversal", (3, 1, 1)).generate([torch.tensor([0])] * 20, 300, generator=generator)
    pairs = torch.cat([5 * torch.cat([torch.tensor([0]), text[:-1]]) + text for text in out.tokens])
    counts = torch.bincount(pairs, minlength=25).reshape(5, 5)
    for row, law in zip(counts, target.table.exp()):
        assert fit(row, law) > 1e-4


def test_without_temperature_the_text_is_the_best_one_whatever_the_method():
    target, draft = Markov(6, 6), Markov(7, 6)
    start = torch.tensor([2])
    plain = Decoder(target, temperature=0).generate(start, 12)
    assert plain.target_calls == 12
    assert plain.draft_calls == 0
    assert math.isclose(plain.block_efficiency, 1)
    for method in ("spectr", "traversal", "specinfer", "greedy"):
        out = Decoder(target, draft, method, (2, 2), temperature=0, draft_processing=Processing()).generate(start, 12)
        assert out.tokens[0].tolist() == plain.tokens[0].tolist()


def test_a_draft_that_is_the_target_is_always_right(generator):
    model = Markov(0)
    out = Decoder(model, model, "spectr", (1, 1, 1)).generate([torch.tensor([0])] * 3, 16, generator=generator)
    assert out.target_calls == 4
    assert out.draft_calls == 12
    assert out.block_efficiency == 4
    assert out.acceptance_by_depth == [1, 1, 1]
    assert [len(text) for text in out.tokens] == [16] * 3
    assert out.finish_reasons == ["length"] * 3


def test_ends(generator):
    # 0 1 2 3 0 1 2 3 ... for sure
    model = NGramLM([[0, 1, 2, 3] * 3000], 4, order=2)
    start = torch.tensor([3])
    options = {"target": model, "draft": model, "method": "specinfer", "branching": (2, 1, 1, 1, 1), "top_k": 1}
    out = Decoder(**options, eos_token_id=2).generate(start, 20, generator=generator)
    assert (out.tokens[0].tolist(), out.finish_reasons) == ([0, 1, 2], ["eos"])
    assert out.blocks[-1].shortened
    assert math.isnan(out.block_efficiency)
    out = Decoder(**options, eos_token_id=[9, 1]).generate(start, 20)
    assert out.tokens[0].tolist() == [0, 1]
    decode = lambda tokens: "".join("abcd"[t] for t in tokens)  # noqa: E731
    out = Decoder(**options, stop_strings="da", decode=decode).generate([start, start[:1]], 20)
    assert [decode(text.tolist()) for text in out.tokens] == ["abcda"] * 2
    assert out.finish_reasons == ["stop"] * 2
    assert [len(text) for text in Decoder(**options).generate(start, 1).tokens] == [1]
    assert Decoder(**options).generate(start, 7).tokens[0].tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_stream_and_streamer_give_what_generate_returns():
    target, draft = Markov(8), Markov(9)
    decoder = Decoder(target, draft, branching=(3, 1, 1))
    prompts = [torch.tensor([0, 1]), torch.tensor([2])]
    heard = []
    out = decoder.generate(prompts, 15, generator=torch.Generator().manual_seed(3), streamer=heard.append)
    blocks = list(decoder.stream(prompts, 15, generator=torch.Generator().manual_seed(3)))
    for event, again, block in zip(heard, out.blocks, blocks, strict=True):
        assert event is again
        assert again.tokens.tolist() == block.tokens.tolist()
    assert [torch.cat([b.tokens for b in blocks if b.prompt == i]).tolist() for i in (0, 1)] == [
        text.tolist() for text in out.tokens
    ]
    for block in blocks:
        assert len(block.tokens) == block.accepted + 1 or block.shortened
        assert block.accepted <= block.drafted <= block.nodes or block.drafted == 0


def test_a_policy_chooses_for_each_text(generator):
    seen = []

    def policy(texts):
        seen.append([len(text) for text in texts])
        return [(2, 1) if len(text) % 2 else (1,) for text in texts]

    prompts = [torch.tensor([0]), torch.tensor([0, 1])]
    out = Decoder(Markov(0), Markov(1), branching=policy).generate(prompts, 9, generator=generator)
    assert seen[0] == [1, 2]
    assert [block.drafted for block in out.blocks[:2]] == [2, 1]
    with pytest.raises(InvalidInput, match="a choice for each of 2 texts, got 1"):
        Decoder(Markov(0), Markov(1), branching=lambda texts: [(1,)]).generate(prompts, 9)


def test_refusals():
    model = Markov(0)
    for options, match in [
        ({"draft": Markov(0, 4)}, "draft: expected a model over the target's 3 tokens, got one over 4"),
        ({"method": "fastest"}, "method: expected one of"),
        ({"temperature": -1}, "temperature"),
        ({"branching": (0,)}, "branching"),
        ({"stop_strings": "x"}, "decode: expected a function"),
        ({"stop_strings": [""], "decode": str}, "texts that are not empty"),
    ]:
        with pytest.raises(InvalidInput, match=match):
            Decoder(model, **options)
    decoder = Decoder(model, model)
    for prompts, match in [
        ([], "at least one prompt, got none"),
        (torch.tensor([3]), r"prompts: expected tokens 0\.\.2, got 3\.\.3"),
        (torch.tensor([0.5]), "tensors of integers"),
        ([[0, 1]], "got list"),
    ]:
        with pytest.raises(InvalidInput, match=match):
            decoder.generate(prompts)
    with pytest.raises(InvalidInput, match="max_new_tokens"):
        decoder.generate(torch.tensor([0]), 0)
