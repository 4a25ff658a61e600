"""Pairs of n-gram models on real text, as target and draft of the decoding experiments."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import data
from ..systems.decoding.models import NGramLM

__all__ = ["Pair", "characters", "source", "words"]


@dataclass(frozen=True)
class Pair:
    """A target, a draft, and held-out documents."""

    name: str
    target: NGramLM
    draft: NGramLM
    held_out: list[Tensor]
    context: int  # tokens of a prompt

    def prompts(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Contexts from held-out documents, at random places."""
        long = [text for text in self.held_out if len(text) > self.context]
        sizes = torch.tensor([len(text) - self.context for text in long], dtype=torch.float64)
        chosen = torch.multinomial(sizes, n, replacement=True, generator=generator).tolist()
        begins = [int(torch.randint(int(sizes[i]), (1,), generator=generator)) for i in chosen]
        return [long[i][begin : begin + self.context] for i, begin in zip(chosen, begins)]


def source() -> str:
    """Where the text comes from, in one line."""
    info = data.info("python-topics")
    return f"{info.slug}: {info.source}; {info.licence}"


def _pair(name: str, documents: Sequence[Sequence[str]], vocab_size: int, orders: tuple[int, int]) -> Pair:
    """Models of the most frequent symbols; the others are one symbol. Every twentieth document is held out."""
    held_out = documents[::20]
    train = [document for i, document in enumerate(documents) if i % 20]
    counts = Counter(symbol for document in train for symbol in document)
    index = {symbol: i for i, (symbol, _) in enumerate(counts.most_common(vocab_size - 1))}

    def read(document: Sequence[str]) -> Tensor:
        return torch.tensor([index.get(symbol, vocab_size - 1) for symbol in document], dtype=torch.long)

    texts = [read(document) for document in train]
    target, draft = (NGramLM(texts, vocab_size, order) for order in orders)
    return Pair(name, target, draft, [read(document) for document in held_out], 12)


def characters() -> Pair:
    """60 characters; a target that sees six of them, a draft that sees three."""
    texts = [re.sub(r"\s+", " ", text.lower()) for text in data.python_topics().values()]
    return _pair("characters, 7-gram and 4-gram", texts, 60, (7, 4))


def words() -> Pair:
    """3,000 words; a target that sees three of them, a draft that sees one."""
    texts = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in data.python_topics().values()]
    return _pair("words, 4-gram and bigram", texts, 3000, (4, 2))
