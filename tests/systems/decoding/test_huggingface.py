"""Hugging Face models: cached logits of trees, greedy texts, laws by enumeration, ends, streams, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from worlds import World, every_tree, output_law

transformers = pytest.importorskip("transformers")

from tiny_models import Fed, gpt2, letters, llama  # noqa: E402

from brenier import InvalidInput, MissingExtra  # noqa: E402
from brenier.systems.decoding import huggingface  # noqa: E402
from brenier.systems.decoding.generation import Decoder  # noqa: E402
from brenier.systems.decoding.huggingface import HuggingFaceLM, early_exit, generate, same_tokens  # noqa: E402
from brenier.systems.decoding.laws import Processing, draft_tuples  # noqa: E402
from brenier.systems.decoding.models import NGramLM, TorchLM, TreeScorer  # noqa: E402
from brenier.systems.decoding.selectors import KSeqSelector  # noqa: E402
from brenier.systems.decoding.tree import branching_matrix, draft_tree  # noqa: E402
from brenier.systems.decoding.verification import _METHODS, find_verification  # noqa: E402


def texts_of(generator, *lengths, vocab_size=13):
    return [torch.randint(1, vocab_size, (n,), generator=generator) for n in lengths]


def some_tree(generator, branching, vocab_size=13):
    law = lambda tree, nodes: torch.full((len(nodes), vocab_size), 1 / vocab_size, dtype=torch.float64)  # noqa: E731
    return draft_tree(law, branching_matrix(branching), vocab_size, generator=generator)


def plainly(model, contexts, tree, nodes):
    """A forward pass of its own for each node."""
    rows = [torch.cat([contexts[tree.prompt[c]], tree.paths[c, : tree.depth[c]]]) for c in nodes]
    with torch.no_grad():
        return torch.stack([model(row.unsqueeze(0)).logits[0, -1] for row in rows])


# -- the adapter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_logits_of_trees_are_those_of_plain_passes(make, dtype, tol, attention, generator):
    plain = make(dtype=dtype, attn_implementation=attention)
    module = make(dtype=dtype, attn_implementation=attention)
    tol = 1e-5 if attention == "eager" else tol  # its softmax is in float32
    model = HuggingFaceLM(module)
    assert isinstance(model, TreeScorer)
    contexts = texts_of(generator, 7, 1, 4)
    for _ in range(4):  # a tree, and on from somewhere in it
        tree = some_tree(generator, [(3, 2, 1), (1, 1), (2,)])
        for nodes in (torch.arange(len(tree)), torch.tensor([5, 0, 8, 2])):
            got = model.tree_logits(contexts, tree, nodes)
            assert got.dtype == dtype
            assert not got.requires_grad
            torch.testing.assert_close(got, plainly(plain, contexts, tree, nodes), rtol=tol, atol=tol)
        ends = [int(torch.randint(len(tree), (1,), generator=generator)) for _ in contexts]
        ends = [c if int(tree.prompt[c]) == b else b for b, c in enumerate(ends)]
        contexts = [
            torch.cat([text, tree.paths[c, : tree.depth[c]], torch.tensor([5])]) for text, c in zip(contexts, ends)
        ]
    got = model.logits(contexts[::-1])
    expected = torch.stack([plain(text.unsqueeze(0)).logits[0, -1] for text in contexts[::-1]])
    torch.testing.assert_close(got, expected.detach(), rtol=tol, atol=tol)


def test_trees_that_grow_level_by_level_as_drafts_do(generator):
    module = llama()
    model = HuggingFaceLM(module)
    contexts = texts_of(generator, 5, 3)
    asked = []

    def law(tree, nodes):
        logits = model.tree_logits(contexts, tree, nodes)
        torch.testing.assert_close(logits, plainly(module, contexts, tree, nodes), rtol=1e-10, atol=1e-10)
        asked.append(len(nodes))
        return Processing()(logits)

    fed = Fed(module)
    for _ in range(2):
        fed.shapes.clear()
        tree = draft_tree(law, branching_matrix([(3, 2, 1), (2, 1)]), 13, generator=generator)
        assert len(tree) > 6
        seen = [shape for shape in fed.shapes if shape[0] == 2]  # the others are the plain passes
        assert len(seen) == 3
        # each level is fed once: the most new nodes of a prompt
        for level, shape in zip(tree.levels[1:-1], seen[1:]):
            assert shape[1] == int(torch.bincount(tree.prompt[level]).max())
    assert seen[0][1] == 1  # of texts that were seen, the last token again


def test_a_step_is_one_call_and_feeds_what_is_new(generator):
    module, other = llama(), llama(1)
    target = HuggingFaceLM(module)
    decoder = Decoder(target, HuggingFaceLM(other), "spectr", (2, 1))
    fed = Fed(module)
    prompts = texts_of(generator, 9, 4, 6)
    out = decoder.generate(prompts, 12, generator=generator)
    assert len(fed.shapes) == out.target_calls
    sizes = [shape[1] for shape in fed.shapes]
    assert sizes[0] <= 9 + 4
    # a token that was added, and the tree: at most four nodes of two levels below the root
    assert max(sizes[1:]) <= 1 + 4
    assert {shape[0] for shape in fed.shapes} <= {1, 2, 3}
    held = target._cache.layers[0].keys.shape[2]
    assert held <= 9 + 12 + 5  # nothing piles up


def test_the_cache_recognises_texts_in_any_order(generator):
    module = gpt2()
    model = HuggingFaceLM(module)
    a, b, c = texts_of(generator, 8, 6, 5)
    model.logits([a, b, c])
    fed = Fed(module)
    more = [torch.cat([c, b[:2]]), torch.cat([a, a[:1]]), a[:6], torch.tensor([1, 2])]
    got = model.logits(more)
    assert fed.shapes == [(4, 2)]
    expected = torch.stack([module(text.unsqueeze(0)).logits[0, -1] for text in more]).detach()
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    model.reset()
    fed.shapes.clear()
    torch.testing.assert_close(model.logits(more), expected, rtol=1e-10, atol=1e-10)
    assert fed.shapes == [(4, 9)]


def test_equal_prompts_and_prompts_that_end(generator):
    """The caches of some texts leave, those of others stay."""
    module = llama()
    model = HuggingFaceLM(module)
    text = texts_of(generator, 5)[0]
    model.logits([text] * 4)
    longer = [torch.cat([text, torch.tensor([t])]) for t in (1, 2, 3)]
    expected = torch.stack([module(x.unsqueeze(0)).logits[0, -1] for x in longer]).detach()
    torch.testing.assert_close(model.logits(longer), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.logits(longer[1:]), expected[1:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.logits(longer[:1] * 2), expected[[0, 0]], rtol=1e-10, atol=1e-10)


def test_prompts_without_drafts_and_a_model_that_drafts_for_itself(generator):
    module = llama()
    model = HuggingFaceLM(module)
    contexts = texts_of(generator, 5, 3, 4)
    law = lambda tree, nodes: Processing()(model.tree_logits(contexts, tree, nodes))  # noqa: E731
    tree = draft_tree(law, branching_matrix([(2, 1), (), (1,)]), 13, generator=generator)
    every = torch.arange(len(tree))
    torch.testing.assert_close(
        model.tree_logits(contexts, tree, every), plainly(module, contexts, tree, every), rtol=1e-10, atol=1e-10
    )
    policy = lambda texts: [(2, 1) if len(text) % 2 else () for text in texts]  # noqa: E731
    written = []
    for lm in (model, TorchLM(module, 13)):
        decoder = Decoder(lm, lm, "traversal", policy, temperature=0.9)
        out = decoder.generate(contexts, 11, generator=torch.Generator().manual_seed(2))
        written.append([text.tolist() for text in out.tokens])
    assert written[0] == written[1]


def test_long_prompts_are_fed_in_parts(generator, monkeypatch):
    module = llama()
    contexts = texts_of(generator, 30, 3, 17)
    tree = some_tree(generator, [(2, 1)] * 3)
    every = torch.arange(len(tree))
    monkeypatch.setattr(huggingface, "_CHUNK", 8)
    model = HuggingFaceLM(module)
    fed = Fed(module)
    got = model.tree_logits(contexts, tree, every)
    assert [shape[1] for shape in fed.shapes][:3] == [8, 8, 8]
    assert len(fed.shapes) == 4
    torch.testing.assert_close(got, plainly(module, contexts, tree, every), rtol=1e-10, atol=1e-10)


def test_a_failure_leaves_no_half_filled_cache(generator, monkeypatch):
    module = llama()
    model = HuggingFaceLM(module)
    contexts = texts_of(generator, 4, 6)
    model.logits(contexts)
    layer = module.model.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.logits([torch.cat([text, text[:1]]) for text in contexts])
    expected = torch.stack([module(text.unsqueeze(0)).logits[0, -1] for text in contexts]).detach()
    torch.testing.assert_close(model.logits(contexts), expected, rtol=1e-10, atol=1e-10)


# -- laws ----------------------------------------------------------------------------------------------------


class Models(World):
    """Target and draft models after one prompt, in place of tables."""

    def __init__(self, target, draft, prompt, length):
        self.target, self.draft, self.prompt = target, draft, prompt
        self.vocab_size, self.length = target.vocab_size, length
        self.p = torch.full(((self.vocab_size + 1) ** length, self.vocab_size), math.nan, dtype=torch.float64)
        for n in range(length + 1):
            for text in itertools.product(range(self.vocab_size), repeat=n):
                padded = torch.tensor([*text, *[-1] * (length - n)], dtype=torch.long)
                row = torch.cat([prompt, torch.tensor(text, dtype=torch.long)]).unsqueeze(0)
                with torch.no_grad():
                    self.p[self.code(padded)] = target.model(row).logits[0, -1].double().softmax(-1)

    def law(self, tree, nodes):
        return Processing()(self.draft.tree_logits([self.prompt] * tree.n_prompts, tree, nodes))

    def scored(self, tree):
        every = torch.arange(len(tree))
        return tree.scored(Processing()(self.target.tree_logits([self.prompt] * tree.n_prompts, tree, every)))


@pytest.mark.parametrize("method", ["spectr", "specinfer", "specinfer-without-replacement", "traversal", "naive"])
def test_the_law_of_the_output_is_that_of_the_model_by_enumeration(method, monkeypatch):
    world = Models(HuggingFaceLM(llama(0, 3)), HuggingFaceLM(gpt2(1, 3)), torch.tensor([1, 0, 2]), 2)
    verification = find_verification(method)
    tree, chance = every_tree(world, (2, 1), verification.scheme, monkeypatch)
    written, law = output_law(world, tree, chance, verification.outcomes(tree))
    assert float((written - law).abs().max()) < 1e-10
    assert float(written.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", list(_METHODS))
def test_with_a_seed_texts_are_those_of_models_without_a_cache(method, generator):
    """The same draws from the same laws, over prompts of different lengths that end at different times."""
    target, draft = llama(0), llama(1, num_hidden_layers=1)
    branching = (1, 1, 1) if method == "block" else (2, 2)
    prompts = texts_of(generator, 6, 2, 9, 4)
    written = []
    for adapter in (HuggingFaceLM, lambda model: TorchLM(model, 13)):
        decoder = Decoder(adapter(target), adapter(draft), method, branching, eos_token_id=[3, 7], temperature=1.3)
        out = decoder.generate(prompts, 15, generator=torch.Generator().manual_seed(5))
        written.append([text.tolist() for text in out.tokens])
    assert written[0] == written[1]
    assert len({len(text) for text in written[0]}) > 1


# -- under the names of transformers -------------------------------------------------------------------------


def left_padded(texts, filling=0):
    ids = pad_sequence([text.flip(0) for text in texts], batch_first=True, padding_value=filling).flip(1)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return ids, mask.flip(1)


@pytest.mark.parametrize("method", ["spectr", "traversal", "greedy", "block"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_greedy_texts_are_those_of_model_generate(make, method, generator):
    model = make()
    ids, mask = left_padded(texts_of(generator, 6, 1, 9))
    theirs = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=17, pad_token_id=0)
    ours = generate(
        model,
        input_ids=ids,
        attention_mask=mask,
        assistant_model=early_exit(model, 1),
        method=method,
        do_sample=False,
        max_new_tokens=17,
        pad_token_id=0,
    )
    assert ours.tolist() == theirs.tolist()


def test_greedy_texts_that_end(generator):
    """Each row ends at its own place, with the token that ends it, and is filled."""
    model = llama(3)
    ids, mask = left_padded(texts_of(generator, 6, 1, 9, 3))
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    free = model.generate(input_ids=ids, **options)
    for eos in sorted(set(free[:, 9:].flatten().tolist()))[:4]:
        theirs = model.generate(input_ids=ids, eos_token_id=eos, **options)
        ours = generate(model, ids, eos_token_id=eos, assistant_model=llama(4), **options)
        assert ours.tolist() == theirs.tolist()
    one = generate(model, ids, assistant_model=llama(4), **{**options, "max_new_tokens": 1})
    assert one.tolist() == free[:, :10].tolist()


def test_padding_is_recognised_and_defaults_come_from_the_model(generator):
    model = llama(3)
    texts = texts_of(generator, 6, 2)
    ids, mask = left_padded(texts)
    expected = generate(model, ids, attention_mask=mask, max_new_tokens=6, pad_token_id=0)
    assert generate(model, ids, max_new_tokens=6, pad_token_id=0).tolist() == expected.tolist()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = int(expected[0, 7])
    assert generate(model, ids, max_new_tokens=6)[0, -1] == 0
    assert generate(model, ids, max_new_tokens=6, eos_token_id=[]).tolist() == expected.tolist()
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    assert generate(model, ids, max_new_tokens=6, eos_token_id=[]).tolist() == expected.tolist()


def test_seeds_generators_and_results(generator):
    model, draft = llama(0), llama(1)
    ids = texts_of(generator, 5)[0].unsqueeze(0)
    options = {"assistant_model": draft, "do_sample": True, "max_new_tokens": 20}
    once, again, other = (generate(model, ids, seed=seed, **options) for seed in (1, 1, 2))
    assert once.tolist() == again.tolist() != other.tolist()
    given = generate(model, ids, generator=torch.Generator().manual_seed(1), **options)
    assert given.tolist() == once.tolist()
    torch.manual_seed(1)
    first = generate(model, ids, **options)
    torch.manual_seed(1)
    assert generate(model, ids, **options).tolist() == first.tolist()
    whole = generate(model, ids, seed=1, return_dict_in_generate=True, **options)
    assert whole.sequences.tolist() == once.tolist()
    assert whole.result.tokens[0].tolist() == once[0, 5:].tolist()
    assert whole.result.target_calls < 20
    kept = HuggingFaceLM(model)
    assert generate(kept, ids, seed=1, **options).tolist() == once.tolist()
    n_gram = NGramLM([ids[0]], 13, 2)
    assert generate(kept, ids, seed=1, **{**options, "assistant_model": n_gram}).shape == (1, 25)
    assert generate(kept, ids, seed=1, **{**options, "assistant_model": None}).shape == (1, 25)


def test_stop_strings_and_streamers(generator):
    model, tokenizer = llama(2), letters()
    ids = tokenizer("abcab", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[1, 2, 3, 1, 2]]
    options = {"assistant_model": llama(5), "do_sample": True, "seed": 3, "tokenizer": tokenizer}
    free = generate(model, ids, max_new_tokens=30, **options)
    text = tokenizer.decode(free[0, 5:])
    assert len(text) >= 8
    stop = text[3:5]
    out = generate(model, ids, max_new_tokens=30, stop_strings=["nowhere", stop], **options)
    ended = tokenizer.decode(out[0, 5:])
    parts = (tokenizer.decode(free[0, 5:n]) for n in range(6, 36))
    assert ended == next(part for part in parts if stop in part)

    class Listener:
        def __init__(self):
            self.heard, self.ended = [], 0

        def put(self, value):
            self.heard += value.flatten().tolist()

        def end(self):
            self.ended += 1

    listener = Listener()
    out = generate(model, ids, max_new_tokens=9, streamer=listener, **options)
    assert listener.heard == out[0].tolist()
    assert listener.ended == 1
    blocks = []
    generate(model, ids.repeat(2, 1), max_new_tokens=9, streamer=blocks.append, **options)
    assert {block.prompt for block in blocks} == {0, 1}
    with pytest.raises(InvalidInput, match="streamer: expected a function of each block, for several prompts"):
        generate(model, ids.repeat(2, 1), streamer=listener, **options)


def test_a_streamer_of_transformers(generator, capsys):
    model, tokenizer = llama(2), letters()
    ids = torch.tensor([[1, 2, 3]])
    streamer = transformers.TextStreamer(tokenizer)
    out = generate(model, ids, max_new_tokens=12, eos_token_id=[], tokenizer=tokenizer, streamer=streamer)
    assert capsys.readouterr().out.strip() == tokenizer.decode(out[0])


# -- pairs of models -----------------------------------------------------------------------------------------


def test_an_early_exit_shares_weights_and_leaves_the_model_alone(generator):
    model = llama(0, num_hidden_layers=3)
    ids = texts_of(generator, 6)[0].unsqueeze(0)
    before = model(ids).logits.detach()
    draft = early_exit(model, 1)
    fed = Fed(model)
    assert {id(p) for p in draft.parameters()} < {id(p) for p in model.parameters()}
    with torch.no_grad():
        hidden = model.model(ids, output_hidden_states=True).hidden_states[1]
        expected = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(draft(ids).logits, expected)
    passes = len(fed.shapes)
    draft(ids)
    assert len(fed.shapes) == passes  # hooks are apart too
    draft.register_forward_pre_hook(lambda module, args: 1 / 0)
    torch.testing.assert_close(model(ids).logits, before)
    assert model.config.num_hidden_layers == 3
    for n in (0, 3, 1.5):
        with pytest.raises(InvalidInput, match=r"n_layers: expected an integer 1\.\.2"):
            early_exit(model, n)


def test_an_exit_that_is_fitted_is_the_least_squares_map(generator):
    model = llama(0, num_hidden_layers=3)
    texts = texts_of(generator, 60, 80)
    draft = early_exit(model, 1, texts, ridge=0.0)
    lens = draft.model.norm[0].weight
    x, y = [], []
    with torch.no_grad():
        for text in texts:
            states = []
            hook = model.model.norm.register_forward_pre_hook(lambda _, args, to=states: to.append(args[0]))
            hidden = model.model(text.unsqueeze(0), output_hidden_states=True).hidden_states[1]
            hook.remove()
            x.append(hidden[0] / hidden[0].norm(dim=-1, keepdim=True))
            y.append(states[0][0] / states[0][0].norm(dim=-1, keepdim=True))
    x, y = torch.cat(x), torch.cat(y)
    expected = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(lens.detach(), expected, rtol=1e-8, atol=1e-8)
    assert isinstance(model.model.norm, torch.nn.Module)
    assert not isinstance(model.model.norm, torch.nn.Sequential)
    assert HuggingFaceLM(draft).logits(texts).shape == (2, 13)
    stronger = early_exit(model, 1, texts, ridge=100.0).model.norm[0].weight
    assert stronger.norm() < 0.1 * lens.norm()


def test_vocabularies_that_are_padded_differently(generator):
    """The law is the target's over all of its tokens, whichever of the two is larger."""
    target = llama(0, 13)
    tokenizer, ids = letters(), torch.tensor([[1, 2, 3]])
    for size in (10, 16):
        draft = llama(1, size)
        cut = HuggingFaceLM(draft, 13)
        logits = cut.logits([ids[0]])
        assert logits.shape == (1, 13)
        plain = draft(ids).logits[:, -1].detach()
        torch.testing.assert_close(logits[:, :10], plain[:, :10])
        assert size > 13 or bool((logits[:, 10:] == -math.inf).all())
        # tokens that the draft does not know may come in its context
        assert torch.isfinite(cut.logits([torch.tensor([12, 11, 10])])[0, :10]).all()
        p, q = (Processing()(m.logits([ids[0]])) for m in (HuggingFaceLM(target), cut))
        assert q.shape == p.shape
        tuples, weights = draft_tuples(q, 2)
        drawn = weights[0] > 0
        law = KSeqSelector().branching(p, q, tuples[drawn].unsqueeze(1))[:, 0]
        torch.testing.assert_close(weights[:, drawn] @ law, p, rtol=0, atol=1e-12)
        options = {"assistant_model": draft, "do_sample": True, "seed": 0, "max_new_tokens": 10}
        with pytest.raises(InvalidInput, match=f"assistant_model: expected .* 13 tokens, got one over {size}"):
            generate(target, ids, **options)
        assert generate(target, ids, tokenizer=tokenizer, assistant_tokenizer=letters(), **options).shape == (1, 13)
        with pytest.raises(InvalidInput, match="assistant_tokenizer: expected the same tokens"):
            generate(target, ids, tokenizer=tokenizer, assistant_tokenizer=letters("lkjihgfedcba"), **options)


def test_same_tokens():
    assert same_tokens(letters(), letters("abcdefghijklmn"))
    assert not same_tokens(letters(), letters("bacdefghijkl"))


# -- refusals ------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_cached_so_are_refused():
    with pytest.raises(InvalidInput, match=r"model: expected a causal language model of transformers, got Linear"):
        HuggingFaceLM(torch.nn.Linear(1, 1))
    with pytest.raises(InvalidInput, match=r"one in training mode\. Call \.eval\(\) first"):
        HuggingFaceLM(llama().train())
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InvalidInput, match="Load it with attn_implementation='sdpa'"):
        HuggingFaceLM(model)
    bloom = transformers.BloomConfig(vocab_size=13, hidden_size=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    with pytest.raises(InvalidInput, match=r"masks of four dimensions, .* TorchLM\(model, vocab_size\) takes any"):
        HuggingFaceLM(transformers.BloomForCausalLM(bloom).eval())
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        alibi = transformers.MptForCausalLM(transformers.MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4))
        with pytest.raises(InvalidInput, match="logits of a tree that are off by"):
            HuggingFaceLM(alibi.to(dtype).eval())
    with pytest.raises(InvalidInput, match="vocab_size: expected a positive integer or None, got 0"):
        HuggingFaceLM(llama(), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_half_precision(make, dtype, generator):
    model = HuggingFaceLM(make(dtype=dtype))
    logits = model.logits(texts_of(generator, 7, 3))
    assert logits.dtype == dtype
    assert bool(torch.isfinite(logits).all())


def test_a_model_that_ignores_the_mask_is_found_out():
    class Deaf(torch.nn.Module):
        """Drops masks on its way."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, attention_mask=None, **options):
            return self.inner(input_ids, **options)

    with pytest.raises(InvalidInput, match="logits of a tree that are off by"):
        HuggingFaceLM(Deaf(llama()).eval())


def test_texts_that_are_empty_or_too_long(generator):
    model = HuggingFaceLM(llama(max_position_embeddings=16))
    with pytest.raises(InvalidInput, match="contexts: expected at least one token each"):
        model.logits([torch.tensor([1]), torch.tensor([], dtype=torch.long)])
    model.logits(texts_of(generator, 16))
    with pytest.raises(InvalidInput, match="contexts: expected at most 16 tokens with their drafts"):
        model.logits(texts_of(generator, 17))
    windowed = transformers.MistralConfig(
        vocab_size=13, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    windowed = HuggingFaceLM(transformers.MistralForCausalLM(windowed).eval())
    windowed.logits(texts_of(generator, 8))
    with pytest.raises(InvalidInput, match="at most 8 tokens"):
        windowed.logits(texts_of(generator, 9))
    local = transformers.GPTNeoConfig(
        vocab_size=13, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64, window_size=16,
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="at most 16 tokens"):
        HuggingFaceLM(transformers.GPTNeoForCausalLM(local).eval()).logits(texts_of(generator, 17))


def test_refusals_of_generate(generator):
    model, ids = llama(), torch.tensor([[1, 2]])
    for options, match in [
        ({}, "inputs, input_ids: expected one of the two, got none"),
        ({"inputs": ids, "input_ids": ids}, "got both"),
        ({"inputs": ids[0]}, r"input_ids: expected a tensor \(prompts, tokens\), got shape \(2,\)"),
        ({"inputs": [[1, 2]]}, "got list"),
        ({"inputs": ids, "attention_mask": ids[:, :1]}, r"attention_mask: expected shape \(1, 2\)"),
        ({"inputs": ids, "attention_mask": 0 * ids}, "at least one token each"),
        ({"inputs": ids, "seed": 1, "generator": generator}, "seed, generator"),
        ({"inputs": ids, "stop_strings": "x"}, "decode: expected a function"),
        ({"inputs": ids, "max_new_tokens": 0}, "max_new_tokens"),
        ({"inputs": ids, "method": "fastest"}, "method"),
        ({"inputs": ids, "assistant_model": NGramLM([[0]], 5, 1)}, "the target's 13 tokens, got one over 5"),
    ]:
        with pytest.raises(InvalidInput, match=match):
            generate(model, **options)
    model.generation_config.repetition_penalty = 1.2
    with pytest.raises(InvalidInput, match=r"model\.generation_config\.repetition_penalty: expected a setting"):
        generate(model, ids)


def test_without_transformers_the_install_line_is_given(monkeypatch):
    model = llama()
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"HuggingFaceLM needs the package 'transformers'.*brenier\[language\]"):
        HuggingFaceLM(model)
