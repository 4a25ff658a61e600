"""Language models by name, and text as it is written, for `brenier decode`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..errors import need, refuse
from ..systems.decoding.generation import BlockEvent, Decoder
from ..systems.decoding.huggingface import HuggingFaceLM, early_exit, same_tokens
from ..systems.decoding.models import LanguageModel, NGramLM
from ..systems.decoding.tree import delayed

__all__ = ["Setting", "write"]


class Setting(NamedTuple):
    """What `brenier decode` is asked for."""

    prompt: str
    target: str
    draft: str
    method: str
    drafts: int
    trunk: int
    length: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    stop: tuple[str, ...]
    chat: bool


def write(setting: Setting, say: Callable[[str], Any]) -> dict[str, Any]:
    """Continue a prompt, say the text piece by piece, and tell what it cost."""
    model, tokenizer = _load(setting.target, "--target")
    target = HuggingFaceLM(model)
    tokens = _read(setting.prompt, tokenizer, setting.chat)
    decoder = Decoder(
        target,
        _draft(setting.draft, target, tokenizer, tokens),
        setting.method,
        delayed(setting.drafts, setting.trunk, setting.length),
        temperature=setting.temperature,
        top_k=setting.top_k,
        top_p=setting.top_p,
        eos_token_id=getattr(model.generation_config, "eos_token_id", None),
        stop_strings=setting.stop,
        decode=tokenizer.decode,
    )
    written: list[int] = []
    said = ""

    def hear(block: BlockEvent) -> None:
        nonlocal said
        written.extend(block.tokens.tolist())
        text = tokenizer.decode(written, skip_special_tokens=True)
        if block.finish_reason is None and text.endswith("�"):
            return  # a character whose other bytes are still to come
        say(text[len(said) :])
        said = text

    start = time.perf_counter()
    result = decoder.generate(
        tokens, setting.max_new_tokens, generator=torch.Generator().manual_seed(setting.seed), streamer=hear
    )
    seconds = time.perf_counter() - start
    return {
        "text": said,
        "finish_reason": result.finish_reasons[0],
        "tokens": len(written),
        "target_calls": result.target_calls,
        "draft_calls": result.draft_calls,
        "block_efficiency": result.block_efficiency,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(len(written) / seconds, 2),
    }


def _load(name: str, option: str) -> tuple[Any, Any]:
    """A model and its tokenizer: smollm2, or whatever transformers finds by that name."""
    if name == "smollm2":
        from .. import data

        return data.smollm2()
    transformers = need("transformers", "language", option)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        refuse(option, "smollm2, or the folder or id of a causal Hugging Face model", f"{name!r}: {_first_line(error)}")
    return model, tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read(prompt: str, tokenizer: Any, chat: bool) -> torch.Tensor:
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            refuse("--chat", "a tokenizer with a chat template", "one without", "Leave --chat out.")
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    if not tokens:
        refuse("--prompt", "a text of at least one token", repr(prompt))
    return torch.tensor(tokens)


def _draft(name: str, target: HuggingFaceLM, tokenizer: Any, prompt: torch.Tensor) -> LanguageModel | None:
    """The draft model of a name, over the tokens of the target."""
    kind, colon, number = name.partition(":")
    if name == "none":
        return None
    if kind in ("exit", "ngram") and colon:
        if not number.isdecimal():
            refuse("--draft", f"{kind}: and a number", repr(name))
        if kind == "exit":
            return HuggingFaceLM(early_exit(target.model, int(number)))
        from .. import data

        texts = tokenizer(list(data.python_topics().values()), add_special_tokens=False)["input_ids"]
        return NGramLM([prompt, *texts], target.vocab_size, int(number))
    model, its = _load(name, "--draft")
    if not same_tokens(tokenizer, its):
        refuse("--draft", "a model with the tokens of the target", "one that numbers them otherwise")
    return HuggingFaceLM(model, target.vocab_size)
