"""Language models as decoding sees them: logits of the next token, after contexts or at the nodes of a draft tree."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..._inputs import is_count
from ...errors import refuse
from .tree import DraftTree

__all__ = ["ByDepth", "LanguageModel", "NGramLM", "TorchLM", "TreeScorer", "tree_logits"]

_KEPT = 2**21  # probabilities of one order that an n-gram model keeps in a table


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

    Complexity: sorts of all tokens, one for each order; memory O(order x tokens), and a table of at most 16 MB for each
    low order. A prediction costs O(V) for each order beyond these.

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
        # the laws of short histories are few, and kept
        uniform = torch.full((1, vocab_size), 1 / vocab_size, dtype=torch.float64)
        self._laws = [self._interpolated(uniform, torch.tensor([0]), 0)]
        for m, keys in enumerate(self._keys, start=1):
            if len(keys) * vocab_size > _KEPT:
                break
            self._laws.append(self._interpolated(self._laws[-1][keys // vocab_size], torch.arange(len(keys)), m))

    def shortened(self, order: int) -> NGramLM:
        """The model of a lower order from the same counts, which are shared.

        Raises:
            InvalidInput: an order that is none, or above the model's own.
        """
        if not is_count(order) or order > self.order:
            refuse("order", f"an integer 1..{self.order}", repr(order))
        model = copy.copy(self)
        model.order = order
        return model

    def logits(
        self,
        contexts: Sequence[Tensor],  # n tensors (length,)
    ) -> Tensor:  # (n, V), float64
        """Logarithms of the laws of the next token."""
        return self._law(self._newest(contexts)).log()

    def tree_logits(
        self,
        contexts: Sequence[Tensor],  # B tensors (length,), one for each prompt
        tree: DraftTree,
        nodes: Tensor,  # (n,)
    ) -> Tensor:  # (n, V), float64
        """Logarithms of the laws after nodes of a tree, whose histories are read on the way up, all at once."""
        before = self._newest(contexts)
        recent = before.new_empty(len(nodes), before.shape[1])
        at, beyond = nodes, torch.zeros_like(nodes)  # the node to read, and tokens of the prompt that were read
        for j in range(recent.shape[1]):
            inside = tree.depth[at] > 0
            recent[:, j] = torch.where(inside, tree.tokens[at], before[tree.prompt[at], beyond])
            beyond = beyond + ~inside
            at = torch.where(inside, tree.parent[at], at)
        return self._law(recent).log()

    def _newest(self, contexts: Sequence[Tensor]) -> Tensor:  # (n, order - 1), and one column at least
        """What a prediction sees of each context, the newest token first, padded with -1."""
        tails = [context[max(len(context) - self.order + 1, 0) :] for context in contexts]
        lengths = torch.tensor([len(tail) for tail in tails], dtype=torch.long).unsqueeze(1)
        tokens = torch.cat([*tails, torch.zeros(1, dtype=torch.long)])
        back = torch.arange(max(self.order - 1, 1))
        inside = back < lengths
        return torch.where(inside, tokens[torch.where(inside, lengths.cumsum(0) - 1 - back, 0)], -1)

    def _law(self, recent: Tensor) -> Tensor:  # (n, V)
        histories = [torch.zeros(len(recent), dtype=torch.long)]  # of each length, -1 if it was never seen
        for m in range(1, self.order):
            histories.append(self._lengthened(histories[-1], recent[:, m - 1], self._keys[m - 1]))
        law = torch.empty(len(recent), self.vocab_size, dtype=torch.float64)
        known = min(self.order, len(self._laws))
        for m in range(known):
            last = histories[m] >= 0
            if m + 1 < known:
                last &= histories[m + 1] < 0
            law[last] = self._laws[m][histories[m][last]]
        for m in range(known, self.order):
            rows = (histories[m] >= 0).nonzero().squeeze(1)
            law[rows] = self._interpolated(law[rows], histories[m][rows], m)
        return law

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


class ByDepth:
    """A draft model with one model for each depth of the tree, the last of them from there on.

    This is how a draft is made that knows less the further it is from the text that was verified, as heads on the
    target's last state do: depth 0 is the law after the text itself.

    Args:
        models: language models over one vocabulary.

    Raises:
        InvalidInput: no models, or different vocabularies.

    Example:
        >>> import torch
        >>> model = NGramLM([[0, 1, 2, 0, 1, 2]], vocab_size=3, order=3)
        >>> ByDepth([model, model.shortened(1)]).logits([torch.tensor([0, 1])]).argmax()
        tensor(2)
    """

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        sizes = {model.vocab_size for model in models}
        if len(sizes) != 1:
            refuse("models", "at least one, over one vocabulary", f"vocabularies of {sorted(sizes)} tokens")
        self.models, self.vocab_size = tuple(models), sizes.pop()

    def logits(
        self,
        contexts: Sequence[Tensor],  # n tensors (length,)
    ) -> Tensor:  # (n, V)
        """Logits of the token after each context, by the first model."""
        return self.models[0].logits(contexts)

    def tree_logits(
        self,
        contexts: Sequence[Tensor],  # B tensors (length,), one for each prompt
        tree: DraftTree,
        nodes: Tensor,  # (n,)
    ) -> Tensor:  # (n, V), float64
        """Logits after nodes of a tree, each by the model of its depth."""
        which = tree.depth[nodes].clamp(max=len(self.models) - 1)
        out = torch.zeros(len(nodes), self.vocab_size, dtype=torch.float64, device=nodes.device)
        for i in which.unique().tolist():
            out[which == i] = tree_logits(self.models[i], contexts, tree, nodes[which == i]).double()
        return out


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
        chosen = torch.zeros(len(tree), dtype=torch.bool, device=nodes.device)
        chosen[nodes] = True
        end = torch.full_like(tree.depth, -1)  # for each node a last one of these nodes below it, or itself
        for level in reversed(tree.levels):
            own = level[chosen[level] & (end[level] < 0)]
            end[own] = own
            inner = level[(tree.depth[level] > 0) & (end[level] >= 0)]
            end[tree.parent[inner]] = end[inner]
        ends, row = end[nodes].unique(return_inverse=True)
        out = self._forward(_rows(contexts, tree, ends))
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
