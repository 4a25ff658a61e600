"""Language models as decoding sees them: logits of the next token, after contexts or at the nodes of a draft tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..._inputs import is_count
from ...errors import refuse
from .tree import DraftTree

__all__ = ["LanguageModel", "NGramLM", "TorchLM", "TreeScorer", "tree_logits"]


class LanguageModel(Protocol):
    """Anything that knows what comes next."""

    @property
    def vocab_size(self) -> int:
        """The number V of tokens."""
        ...

    def logits(
        self,
        contexts: Sequence[Tensor],  # n tensors (length,)
    ) -> Tensor:  # (n, V)
        """Logits of the token after each context; logarithms of probabilities will do."""
        ...


@runtime_checkable
class TreeScorer(Protocol):
    """A language model with a faster way to score the nodes of a tree than one context for each."""

    def tree_logits(
        self,
        contexts: Sequence[Tensor],  # B tensors (length,), one for each prompt
        tree: DraftTree,
        nodes: Tensor,  # (n,)
    ) -> Tensor:  # (n, V)
        """Logits of the token after each of these nodes."""
        ...


def tree_logits(
    model: LanguageModel,
    contexts: Sequence[Tensor],  # B tensors (length,), one for each prompt
    tree: DraftTree,
    nodes: Tensor,  # (n,)
) -> Tensor:  # (n, V)
    """Logits after some nodes of a tree, by the model's own way if it has one, else context by context."""
    if isinstance(model, TreeScorer):
        return model.tree_logits(contexts, tree, nodes)
    return model.logits(_rows(contexts, tree, nodes))


def _rows(contexts: Sequence[Tensor], tree: DraftTree, nodes: Tensor) -> list[Tensor]:
    """The prompt and the path of each node, as one context."""
    prompts, depths, paths = tree.prompt[nodes].tolist(), tree.depth[nodes].tolist(), tree.paths[nodes]
    return [torch.cat([contexts[b], path[:d]]) for b, d, path in zip(prompts, depths, paths)]


class NGramLM:
    r"""An interpolated n-gram model with the smoothing of Witten and Bell.

        P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h)),

    where c counts, t(h) is the number of different tokens seen after h, and h' is h without its oldest token; before
    the empty history comes the uniform law. Histories that were never seen are shortened. Every token has positive
    probability, the empty context is allowed, and histories do not reach over the beginning of a document.

    Args:
        documents: tensors or lists of tokens.
        vocab_size: V.
        order: n, tokens that a prediction sees and makes; 1 ignores the context.

    Raises:
        InvalidInput: no tokens, tokens outside 0..V-1, or order < 1.

    Complexity: sorts of all tokens, one for each order; memory O(order x tokens). A prediction costs O(order V).

    Reference: Witten & Bell (1991), The zero-frequency problem: estimating the probabilities of novel events in
    adaptive text compression.

    Example:
        >>> import torch
        >>> model = NGramLM([[0, 1, 0, 1, 0, 2]], vocab_size=3, order=2)
        >>> model.logits([torch.tensor([1]), torch.tensor([], dtype=torch.long)]).exp().round(decimals=3)
        tensor([[0.8150, 0.1110, 0.0740],
                [0.4440, 0.3330, 0.2220]], dtype=torch.float64)
    """

    def __init__(self, documents: Iterable[Sequence[int] | Tensor], vocab_size: int, order: int) -> None:
        for name, value in (("vocab_size", vocab_size), ("order", order)):
            if not is_count(value):
                refuse(name, "a positive integer", repr(value))
        texts = [torch.as_tensor(document, dtype=torch.long) for document in documents]
        tokens = torch.cat(texts) if texts else torch.zeros(0, dtype=torch.long)
        if not len(tokens) or not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            got = f"{int(tokens.min())}..{int(tokens.max())}" if len(tokens) else "none"
            refuse("documents", f"tokens 0..{vocab_size - 1}", got)
        self.vocab_size, self.order = vocab_size, order
        place = torch.cat([torch.arange(len(text)) for text in texts])
        history = torch.zeros_like(tokens)
        self._keys: list[Tensor] = []  # of each order: (shorter history, older token) of each history, sorted
        self._starts: list[Tensor] = []  # of each order: where a history's continuations begin
        self._next: list[tuple[Tensor, Tensor]] = []  # of each order: continuations and their counts, by history
        for m in range(order):
            if m:
                long_enough = place >= m
                older = tokens.roll(m)[long_enough]
                keys, ids = (history[long_enough] * vocab_size + older).unique(return_inverse=True)
                self._keys.append(keys)
                history = torch.full_like(tokens, -1).masked_scatter(long_enough, ids)
            seen = history >= 0
            pairs, counts = (history[seen] * vocab_size + tokens[seen]).unique(return_counts=True)
            n_histories = len(self._keys[-1]) if m else 1
            bounds = torch.arange(n_histories + 1) * vocab_size
            self._starts.append(torch.searchsorted(pairs, bounds))
            self._next.append((pairs % vocab_size, counts))

    def logits(
        self,
        contexts: Sequence[Tensor],  # n tensors (length,)
    ) -> Tensor:  # (n, V), float64
        """Logarithms of the laws of the next token."""
        recent = torch.full((len(contexts), max(self.order - 1, 1)), -1)  # the newest token first
        for row, context in zip(recent, contexts):
            newest = context[-(self.order - 1) :].flip(0) if self.order > 1 else context[:0]
            row[: len(newest)] = newest
        law = torch.full((len(contexts), self.vocab_size), 1 / self.vocab_size, dtype=torch.float64)
        history = torch.zeros(len(contexts), dtype=torch.long)
        for m in range(self.order):
            if m:
                history = self._lengthened(history, recent[:, m - 1], self._keys[m - 1])
            rows = (history >= 0).nonzero().squeeze(1)
            law[rows] = self._interpolated(law[rows], history[rows], m)
        return law.log()

    def _lengthened(self, history: Tensor, older: Tensor, keys: Tensor) -> Tensor:
        """The ids of histories with one more token; -1 for those that were never seen."""
        if not len(keys):
            return torch.full_like(history, -1)
        key = history * self.vocab_size + older
        at = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        return torch.where((history >= 0) & (older >= 0) & (keys[at] == key), at, -1)

    def _interpolated(self, law: Tensor, history: Tensor, m: int) -> Tensor:
        starts, (following, counts) = self._starts[m], self._next[m]
        begin, kinds = starts[history], starts[history + 1] - starts[history]
        row = torch.arange(len(history)).repeat_interleave(kinds)
        entry = torch.arange(len(row)) - (kinds.cumsum(0) - kinds - begin).repeat_interleave(kinds)
        found = torch.zeros_like(law)
        found[row, following[entry]] = counts[entry].to(law.dtype)
        types = kinds.unsqueeze(1)
        return (found + types * law) / (found.sum(1, keepdim=True) + types)


class TorchLM:
    """A causal `torch` module as a language model.

    Contexts of different lengths are padded at the end, which a causal module does not see. A tree is scored by one
    batch with a row for each leaf.

    Args:
        module: from tokens (B, T) to logits (B, T, V), or to an object with `logits`; position t may depend on tokens
            up to t only. It is used as it is: call `.eval()` first.
        vocab_size: V.
        max_length: contexts are cut to their last `max_length` tokens; None for no limit. A tree is then scored one
            context a node.

    Raises:
        InvalidInput: an empty context, a size that is no positive integer, logits of another shape.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> module = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
        >>> TorchLM(module, 5).logits([torch.tensor([1, 2]), torch.tensor([3])]).shape
        torch.Size([2, 5])
    """

    def __init__(self, module: nn.Module, vocab_size: int, max_length: int | None = None) -> None:
        for name, value in (("vocab_size", vocab_size), ("max_length", 1 if max_length is None else max_length)):
            if not is_count(value):
                refuse(name, "a positive integer", repr(value))
        self.module, self.vocab_size, self.max_length = module, vocab_size, max_length

    def logits(
        self,
        contexts: Sequence[Tensor],  # n tensors (length,)
    ) -> Tensor:  # (n, V)
        """Logits of the token after each context."""
        cut = [context if self.max_length is None else context[-self.max_length :] for context in contexts]
        out = self._forward(cut)
        last = torch.tensor([len(context) - 1 for context in cut], device=out.device)
        return out[torch.arange(len(cut), device=out.device), last]

    def tree_logits(
        self,
        contexts: Sequence[Tensor],  # B tensors (length,), one for each prompt
        tree: DraftTree,
        nodes: Tensor,  # (n,)
    ) -> Tensor:  # (n, V)
        """Logits after nodes of a tree, from the rows of those of them that no other one goes through."""
        if self.max_length is not None:
            return self.logits(_rows(contexts, tree, nodes))
        above = tree.ancestors[nodes][:, nodes]  # whether the second is on the way to the first
        ends = above.sum(0) == 1  # nobody's way but its own
        out = self._forward(_rows(contexts, tree, nodes[ends]))
        row = above[ends].int().argmax(0)  # a row that goes through each node
        lengths = torch.tensor([len(context) for context in contexts], device=nodes.device)
        return out[row, lengths[tree.prompt[nodes]] + tree.depth[nodes] - 1]

    def _forward(self, rows: Sequence[Tensor]) -> Tensor:
        if not rows or min(map(len, rows)) == 0:
            refuse("contexts", "at least one token each", "an empty one", "Begin with the token that starts a text.")
        tokens = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        parameter: Any = next(self.module.parameters(), None)
        with torch.no_grad():
            out = self.module(tokens if parameter is None else tokens.to(parameter.device))
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        if logits.shape != (*tokens.shape, self.vocab_size):
            refuse("module", f"logits of shape {(*tokens.shape, self.vocab_size)}", f"shape {tuple(logits.shape)}")
        return logits.to(tokens.device)
