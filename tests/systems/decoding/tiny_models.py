"""Small models and a tokenizer of `transformers`, made on the spot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")


def llama(seed: int = 0, vocab_size: int = 13, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A Llama with two layers, grouped heads, and weights large enough for attention to matter."""
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        **options,
    }
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=vocab_size, **settings)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def gpt2(seed: int = 0, vocab_size: int = 13, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A GPT-2 with two layers and learned positions."""
    settings: dict[str, Any] = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        **options,
    }
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=vocab_size, **settings)
    return transformers.GPT2LMHeadModel(config).to(dtype).eval()


def letters(text: str = "abcdefghijkl", **options: Any) -> Any:
    """A tokenizer with a number for each letter; 0 is <eos>."""
    tokenizers = pytest.importorskip("tokenizers")
    numbers = {"<eos>": 0, **{letter: i for i, letter in enumerate(text, start=1)}}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<eos>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", clean_up_tokenization_spaces=False, **options
    )


class Fed:
    """How many tokens each forward pass of a model was given, (texts, tokens)."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.shapes.append(tuple(ids.shape))
