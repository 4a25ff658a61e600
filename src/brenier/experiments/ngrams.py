"""Pairs of n-gram models on real text, as target and draft of the decoding experiments."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import data
from ..systems.decoding.models import ByDepth, LanguageModel, NGramLM

__all__ = ["Pair", "character_texts", "characters", "numbered", "source", "stale", "words"]

_TOPICS = "python-topics"


@dataclass(frozen=True)
class Pair:
    """A target, a draft, and held-out documents."""

    name: str
    target: NGramLM
    draft: LanguageModel
    held_out: list[Tensor]
    context: int  # tokens of a prompt

    def prompts(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Contexts from held-out documents, at random places."""
        long = [text for text in self.held_out if len(text) > self.context]
        sizes = torch.tensor([len(text) - self.context for text in long], dtype=torch.float64)
        chosen = torch.multinomial(sizes, n, replacement=True, generator=generator).tolist()
        begins = [int(torch.randint(int(sizes[i]), (1,), generator=generator)) for i in chosen]
        return [long[i][begin : begin + self.context] for i, begin in zip(chosen, begins)]


def source(corpus: str = _TOPICS) -> str:
    """Where the text comes from, in one line."""
    info = data.info(corpus)
    return f"{info.slug}: {info.source}; {info.licence}"


def numbered(documents: Sequence[Sequence[str]], vocab_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Training and held-out documents as tokens: the most frequent symbols, and one for all others.

    Every twentieth document is held out.
    """
    held_out = documents[::20]
    train = [document for i, document in enumerate(documents) if i % 20]
    counts = Counter(symbol for document in train for symbol in document)
    index = {symbol: i for i, (symbol, _) in enumerate(counts.most_common(vocab_size - 1))}

    def read(document: Sequence[str]) -> Tensor:
        return torch.tensor([index.get(symbol, vocab_size - 1) for symbol in document], dtype=torch.long)

    return [read(document) for document in train], [read(document) for document in held_out]


def _pair(name: str, documents: Sequence[Sequence[str]], vocab_size: int, orders: tuple[int, int]) -> Pair:
    texts, held_out = numbered(documents, vocab_size)
    target = NGramLM(texts, vocab_size, orders[0])
    return Pair(name, target, target.shortened(orders[1]), held_out, 12)


def character_texts(corpus: str = _TOPICS) -> list[str]:
    """The documents of a corpus in lower case, with single spaces."""
    return [re.sub(r"\s+", " ", text.lower()) for text in data.get(corpus).values()]


def characters(corpus: str = _TOPICS) -> Pair:
    """60 characters; a target that sees six of them, a draft that sees three."""
    return _pair("characters, 7-gram and 4-gram", character_texts(corpus), 60, (7, 4))


def words(corpus: str = _TOPICS) -> Pair:
    """3,000 words; a target that sees three of them, a draft that sees one."""
    texts = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in data.get(corpus).values()]
    return _pair("words, 4-gram and bigram", texts, 3000, (4, 2))


def stale(pair: Pair, first: int = 6, last: int = 3) -> Pair:
    """The same target, with a draft that knows less at each depth of the tree: orders `first`, ..., `last`."""
    orders = range(first, last - 1, -1)
    draft = ByDepth([pair.target.shortened(order) for order in orders])
    name = f"{pair.name.partition(',')[0]}, {pair.target.order}-gram and {first}- to {last}-gram by depth"
    return replace(pair, name=name, draft=draft)
