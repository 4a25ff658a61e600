"""A small transformer over characters and a draft head on its last hidden state, trained here, for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from ..systems.decoding.tree import DraftTree

__all__ = ["CharacterTransformer", "HiddenStates", "RootHead", "StaleDraft", "train_head", "train_transformer"]


class _Block(nn.Module):
    """Causal attention and a perceptron, each normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        n, length, width = x.shape
        parts = self.read(self.norms[0](x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.write(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.perceptron(self.norms[1](x))


class CharacterTransformer(nn.Module):
    """A causal transformer for texts of up to `length` tokens."""

    def __init__(self, vocab_size: int, width: int = 96, layers: int = 3, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self.width = width
        self.embed, self.place = nn.Embedding(vocab_size, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size)

    def states(self, tokens: Tensor) -> Tensor:  # (B, T), (B, T, width)
        """The last hidden states."""
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        out: Tensor = self.norm(self.blocks(x))
        return out

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T), (B, T, V)
        """Logits of the next token at each place."""
        out: Tensor = self.head(self.states(tokens))
        return out


class HiddenStates:
    """The last hidden state of a transformer after each text.

    Args:
        module: the transformer.
        back: tokens to leave out at the end; 1 for the state at the token before.
    """

    def __init__(self, module: CharacterTransformer, back: int = 0) -> None:
        self.module, self.back = module, back

    def __call__(self, texts: Sequence[Tensor]) -> Tensor:  # (B, width)
        """The states."""
        cut = [text[: len(text) - self.back] for text in texts]
        with torch.no_grad():
            states = self.module.states(nn.utils.rnn.pad_sequence(cut, batch_first=True))
        return states[torch.arange(len(cut)), torch.tensor([len(text) - 1 for text in cut])]


class RootHead(nn.Module):
    """A recurrent draft that sees the target's last hidden state at the root, and its own tokens after that."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.start, self.embed = nn.Linear(width, width), nn.Embedding(vocab_size, width)
        self.cell, self.head = nn.GRU(width, width, batch_first=True), nn.Linear(width, vocab_size)

    def forward(self, root: Tensor, tokens: Tensor) -> Tensor:  # (B, width), (B, T), (B, T + 1, V)
        """Logits after the root and after each token."""
        start = self.start(root).tanh()
        states = start.unsqueeze(1)
        if tokens.shape[1]:
            after, _ = self.cell(self.embed(tokens), start.unsqueeze(0))
            states = torch.cat([states, after], 1)
        out: Tensor = self.head(states)
        return out


class StaleDraft:
    """A `RootHead` as a language model, whose root is the end of a context."""

    def __init__(self, target: CharacterTransformer, head: RootHead, vocab_size: int) -> None:
        self.head, self.vocab_size = head, vocab_size
        self._states = HiddenStates(target)
        self._last: tuple[Any, Tensor] | None = None  # the roots of the tree that is being drawn

    def logits(self, contexts: Sequence[Tensor]) -> Tensor:  # (n, V)
        """Logits after each context."""
        with torch.no_grad():
            root = self._states(contexts)
            out: Tensor = self.head(root, torch.zeros(len(root), 0, dtype=torch.long))[:, 0]
        return out

    def tree_logits(self, contexts: Sequence[Tensor], tree: DraftTree, nodes: Tensor) -> Tensor:  # (n, V)
        """Logits after nodes of a tree."""
        if self._last is None or self._last[0] is not contexts:  # each level of a tree asks for the same roots
            self._last = contexts, self._states(contexts)
        depth = tree.depth[nodes]
        deepest = int(depth.max()) if len(depth) else 0
        tokens = tree.paths[nodes][:, :deepest].clamp(min=0)
        with torch.no_grad():
            out: Tensor = self.head(self._last[1][tree.prompt[nodes]], tokens)
        return out[torch.arange(len(nodes)), depth]


def _windows(text: Tensor, length: int, n: int, generator: torch.Generator) -> Tensor:  # (n, length)
    begins = torch.randint(len(text) - length + 1, (n, 1), generator=generator)
    return text[begins + torch.arange(length)]


def train_transformer(
    text: Tensor,  # (length,)
    vocab_size: int,
    steps: int,
    generator: torch.Generator,
    *,
    length: int = 48,
    batch_size: int = 32,
    lr: float = 2e-3,
) -> CharacterTransformer:
    """Train a transformer to predict the next token of windows of a text."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn from the global state
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        model = CharacterTransformer(vocab_size)
    _optimise(
        model,
        lambda: _windows(text, length + 1, batch_size, generator),
        lambda batch: cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()),
        steps,
        lr,
    )
    return model


def train_head(
    target: CharacterTransformer,
    text: Tensor,  # (length,)
    vocab_size: int,
    steps: int,
    generator: torch.Generator,
    *,
    context: int = 32,
    depth: int = 8,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> RootHead:
    """Train a head to have the target's laws at up to `depth` tokens from its root, by their cross-entropy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        head = RootHead(vocab_size, target.width)

    def loss(batch: Tensor) -> Tensor:
        with torch.no_grad():
            states = target.states(batch)[:, context - 1 :]
            wanted = target.head(states).softmax(-1)
        logits = head(states[:, 0], batch[:, context:])
        return -(wanted * logits.log_softmax(-1)).sum(-1).mean()

    _optimise(head, lambda: _windows(text, context + depth, batch_size, generator), loss, steps, lr)
    return head


def _optimise(module: nn.Module, batch: Any, loss: Any, steps: int, lr: float) -> None:
    """AdamW with a rate that falls along a cosine."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = loss(batch())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    module.eval()
