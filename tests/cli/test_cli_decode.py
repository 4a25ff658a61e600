"""`brenier decode` on a tiny model in a folder."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_outcome import Ran

from brenier.data import DataUnavailable

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

Cli = Callable[..., Ran]


def save(folder: Path, letters: str, seed: int = 0) -> Path:
    """A Llama over letters."""
    numbers = {"<eos>": 0, **{letter: i for i, letter in enumerate(letters, start=1)}}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<eos>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(numbers), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "letters", "abcdefgh .,")


@pytest.mark.parametrize("draft", ["exit:1", "ngram:2", "none", "itself"])
def test_text_is_said_and_cost_is_told(draft: str, folder: Path, brenier: Cli) -> None:
    draft = str(folder) if draft == "itself" else draft
    arguments = ("decode", "--target", folder, "--draft", draft, "--prompt", "abc ab", "--max-new-tokens", 12)
    ran = brenier(*arguments, "--json")
    assert ran.code == 0, ran.err
    record = ran.record
    assert record["tokens"] == 12
    assert record["finish_reason"] == "length"
    assert 1 <= record["target_calls"] <= 12
    assert (record["draft_calls"] == 0) == (draft == "none")
    assert record["tokens_per_second"] > 0
    if draft == str(folder):
        assert record["target_calls"] <= 4  # the same model is always right
    spoken = brenier(*arguments)
    assert spoken.code == 0
    assert spoken.out.startswith(record["text"])
    for heading in ("block efficiency", "target calls", "draft calls", "speed", "ended by"):
        assert heading in spoken.out
    other = brenier(*arguments, "--json", "--seed", 1).record
    assert other["text"] != record["text"]


def test_options_reach_the_decoder(folder: Path, brenier: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ("decode", "--target", folder, "--draft", "exit:1", "--json", "--max-new-tokens", 20)
    monkeypatch.setattr(sys, "stdin", io.StringIO("abcd"))
    greedy = brenier(*base, "--prompt", "-", "--temperature", 0).record
    other = ("--top-k", 1, "--method", "traversal", "--drafts", 2, "--trunk", 1)
    again = brenier(*base, "--prompt", "abcd", *other).record
    assert again["text"] == greedy["text"]
    stop = greedy["text"][2:4]
    ended = brenier(*base, "--prompt", "abcd", "--temperature", 0, "--stop", "nowhere", "--stop", stop).record
    assert ended["finish_reason"] == "stop"
    assert ended["text"] == greedy["text"][: greedy["text"].index(stop) + 2]
    assert brenier(*base, "--prompt", "abcd", "--method", "block").code == 0


def test_refusals(folder: Path, brenier: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def complaint(*arguments: Any) -> str:
        ran = brenier("decode", "--prompt", "ab", *arguments)
        assert ran.code == 2
        return ran.err

    other = save(tmp_path / "other", "hgfedcba .,")
    for arguments, said in [
        (("--target", folder, "--draft", "exit:x"), "--draft: expected exit: and a number, got 'exit:x'."),
        (("--target", folder, "--draft", "exit:2"), "n_layers: expected an integer 1..1, got 2."),
        (("--target", folder, "--draft", other), "--draft: expected a model with the tokens of the target"),
        (("--target", tmp_path), "--target: expected smollm2, or the folder or id of a causal Hugging Face model"),
        (("--target", folder, "--method", "best"), "method: expected one of"),
        (("--target", folder, "--chat"), "--chat: expected a tokenizer with a chat template"),
        (("--target", folder, "--drafts", 0), "num_drafts"),
    ]:
        assert said in complaint(*arguments)
    assert "--prompt: expected a text of at least one token" in complaint("--target", folder, "--prompt", "")

    def unavailable() -> Any:
        raise DataUnavailable("the model", ["an index: no connection"], "Connect.")

    monkeypatch.setattr("brenier.data.smollm2", unavailable)
    assert complaint().startswith("could not get the model.")
