"""The loop of speculative decoding: draft a tree, score it with one call of the target, verify, write, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._inputs import is_count
from ...errors import refuse
from .laws import Processing, Scheme
from .models import LanguageModel, tree_logits
from .selectors import TokenSelector
from .tree import DraftTree, branching_matrix, delayed, draft_tree
from .verification import Block, Verification, find_verification

__all__ = ["BlockEvent", "Decoder", "GenerationResult", "scored_tree"]

Branching = Sequence[int] | Callable[[Sequence[Tensor]], Sequence[Sequence[int]]]


class BlockEvent(NamedTuple):
    """A block that was written.

    Attributes:
        round: the round it was written in, from 0; each is one call of the target for the whole batch.
        prompt: which prompt it continues.
        tokens: (n,) what was written.
        accepted: drafts that the verification kept.
        drafted: depth of the draft tree.
        nodes: drafts that the target scored, equal ones once.
        finish_reason: "eos", "stop" or "length" if the prompt is finished, else None.
        shortened: whether the end of the text made the tree or the block shorter.
    """

    round: int
    prompt: int
    tokens: Tensor
    accepted: int
    drafted: int
    nodes: int
    finish_reason: str | None
    shortened: bool


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """What a decoder wrote, and what it cost.

    Attributes:
        tokens: for each prompt the new tokens, without the prompt.
        finish_reasons: for each prompt "eos", "stop" or "length".
        blocks: all blocks, in the order of writing.
    """

    tokens: list[Tensor]
    finish_reasons: list[str]
    blocks: list[BlockEvent]

    @property
    def target_calls(self) -> int:
        """Calls of the target; each serves all prompts that are not finished."""
        return max((block.round + 1 for block in self.blocks), default=0)

    @property
    def draft_calls(self) -> int:
        """Calls of the draft model: in each round one for each level of the tree."""
        deepest = [0] * self.target_calls
        for block in self.blocks:
            deepest[block.round] = max(deepest[block.round], block.drafted)
        return sum(deepest)

    @cached_property
    def block_lengths(self) -> Tensor:
        """Tokens of each block that the end of a text did not shorten, (n_blocks,)."""
        return torch.tensor([len(block.tokens) for block in self.blocks if not block.shortened])

    @property
    def block_efficiency(self) -> float:
        """Mean tokens for a prompt and a call of the target, the added one included; NaN if all are shortened."""
        return float(self.block_lengths.double().mean()) if len(self.block_lengths) else float("nan")

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Where d drafts were kept and the tree is deeper, how often draft d + 1 was kept too; for d = 0, 1, ..."""
        shares = []
        for d in range(max((block.drafted for block in self.blocks), default=0)):
            tried = [block for block in self.blocks if block.accepted >= d and block.drafted > d]
            if not tried:
                break
            shares.append(sum(block.accepted > d for block in tried) / len(tried))
        return shares


@dataclass(frozen=True, eq=False)
class Decoder:
    """Continue prompts with the law of a target model, in fewer calls of it.

    In each round the draft model proposes a tree of continuations, the target scores all its nodes in one call, and the
    verification keeps a path and adds a token. For every method, draft and branching the text has exactly the law that
    sampling from the processed target token by token gives; only the cost differs. A seed makes it reproducible, but
    another method, or another batch, writes another text.

    Args:
        target: the model whose law the text has.
        draft: a cheaper model over the same vocabulary; None samples from the target, one token a call.
        method: "spectr", "specinfer", "specinfer-without-replacement", "greedy", "tournament",
            "traversal", "traversal-without-replacement", "block", "naive" or "nss"; or a verification, or a selector.
        branching: drafts that each draw of a level makes on the next, see `delayed`; or a function from the texts so
            far to one such tuple for each. When None, 8 paths of 8 tokens; 1 path for "block", and where the drafts of
            a node differ, which multiplies the nodes of each level, 3, 2, 1 and 1 a node.
        temperature, top_k, top_p: how the target's logits become a law, see `Processing`.
        draft_processing: the same for the draft's; as the target's when None.
        eos_token_id: a token that finishes a prompt, or several; it is written.
        stop_strings: a text that finishes a prompt, or several; what completes it is written. Needs `decode`.
        decode: from new tokens to text.

    Raises:
        InvalidInput: models of different vocabularies, or an option out of its range.

    Example:
        >>> import torch
        >>> from brenier.systems.decoding.models import NGramLM
        >>> text = [[0, 1, 2, 3] * 20]
        >>> decoder = Decoder(NGramLM(text, 4, order=3), NGramLM(text, 4, order=2))
        >>> out = decoder.generate(torch.tensor([0, 1]), 20, generator=torch.Generator().manual_seed(0))
        >>> len(out.tokens[0]), out.target_calls < 10
        (20, True)
    """

    target: LanguageModel
    draft: LanguageModel | None = None
    method: str | Verification | TokenSelector = "spectr"
    branching: Branching | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    draft_processing: Processing | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    decode: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.draft is not None and self.draft.vocab_size != self.target.vocab_size:
            got = f"one over {self.draft.vocab_size}"
            refuse("draft", f"a model over the target's {self.target.vocab_size} tokens", got)
        if self.stop_strings and self.decode is None:
            refuse("decode", "a function from tokens to text, as there are stop_strings", "None")
        if "" in self._stop_strings:
            refuse("stop_strings", "texts that are not empty", "''")
        if self.branching is not None and not callable(self.branching):
            branching_matrix([self.branching])
        _ = self._processing, self._verification

    def generate(
        self,
        prompts: Sequence[Tensor] | Tensor,  # B tensors (length,), or one
        max_new_tokens: int = 128,
        *,
        generator: torch.Generator | None = None,
        streamer: Callable[[BlockEvent], Any] | None = None,
    ) -> GenerationResult:
        """Continue prompts to their end.

        Args:
            prompts: tokens, as integers.
            max_new_tokens: tokens after which a prompt is finished.
            generator: of all draws.
            streamer: called with each block as soon as it is written.

        Raises:
            InvalidInput: no prompts, tokens that are none, or max_new_tokens < 1.
        """
        blocks: list[BlockEvent] = []
        parts: dict[int, list[Tensor]] = {}
        reasons: dict[int, str] = {}
        for block in self.stream(prompts, max_new_tokens, generator=generator):
            blocks.append(block)
            parts.setdefault(block.prompt, []).append(block.tokens)
            if block.finish_reason is not None:
                reasons[block.prompt] = block.finish_reason
            if streamer is not None:
                streamer(block)
        prompt_order = range(len(parts))
        return GenerationResult([torch.cat(parts[b]) for b in prompt_order], [reasons[b] for b in prompt_order], blocks)

    def stream(
        self,
        prompts: Sequence[Tensor] | Tensor,  # B tensors (length,), or one
        max_new_tokens: int = 128,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[BlockEvent]:
        """Continue prompts, and yield each block when it is written; arguments as for `generate`."""
        texts = _read_prompts(prompts, self.target.vocab_size)
        if not is_count(max_new_tokens):
            refuse("max_new_tokens", "a positive integer", repr(max_new_tokens))
        written: list[list[int]] = [[] for _ in texts]
        going = list(range(len(texts)))
        round = 0
        while going:
            now = [texts[b] for b in going]
            wanted = self._levels(now)
            # the last token is never a draft
            room = max_new_tokens - 1 - min(len(written[b]) for b in going)
            tree = scored_tree(
                self.target,
                self.draft,
                now,
                wanted[:, :room],
                scheme=self._verification.scheme,
                processing=self._processing,
                draft_processing=self.draft_processing,
                generator=generator,
            )
            outcome = self._verification.verify(tree, generator)
            paths, tokens = tree.paths[outcome.node].tolist(), outcome.token.tolist()
            accepted = tree.depth[outcome.node].tolist()
            drafted = (tree.branching > 0).sum(1).tolist()
            nodes = (tree.per_prompt(torch.ones_like(tree.tokens)) - 1).tolist()
            still = []
            for row, b in enumerate(going):
                block = [*paths[row][: accepted[row]], tokens[row]]
                kept, reason = self._cut(written[b], block, max_new_tokens)
                shortened = kept < len(block) or room < wanted.shape[1]
                new = texts[b].new_tensor(block[:kept])
                written[b] += block[:kept]
                texts[b] = torch.cat([texts[b], new])
                if reason is None:
                    still.append(b)
                yield BlockEvent(round, b, new, accepted[row], drafted[row], nodes[row], reason, shortened)
            going = still
            round += 1

    # -- how it is done --------------------------------------------------------------------------------------

    @cached_property
    def _processing(self) -> Processing:
        return Processing(self.temperature, self.top_k, self.top_p)

    @cached_property
    def _verification(self) -> Verification:
        return find_verification(self.method)

    @cached_property
    def _eos(self) -> set[int]:
        return {self.eos_token_id} if isinstance(self.eos_token_id, int) else set(self.eos_token_id or ())

    @cached_property
    def _stop_strings(self) -> tuple[str, ...]:
        return (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings or ())

    def _levels(self, texts: Sequence[Tensor]) -> Tensor:  # (B, L)
        """The branching of this round."""
        device = texts[0].device
        if self.draft is None:
            return branching_matrix([()] * len(texts)).to(device)
        if callable(self.branching):
            chosen = branching_matrix(self.branching(texts)).to(device)
            if len(chosen) != len(texts):
                refuse("branching", f"a choice for each of {len(texts)} texts", f"{len(chosen)}")
            return chosen
        if self.branching is not None:
            levels: Sequence[int] = self.branching
        elif self._verification.scheme != "with_replacement":
            levels = (3, 2, 1, 1)
        else:
            levels = delayed(1 if isinstance(self._verification, Block) else 8, 0, 8)
        return branching_matrix([levels] * len(texts)).to(device)

    def _cut(self, written: list[int], block: list[int], max_new_tokens: int) -> tuple[int, str | None]:
        """How many tokens of a block are written, and why the text ends with it, if it does."""
        for i, token in enumerate(block, start=1):
            if token in self._eos:
                return i, "eos"
            if self.decode is not None and self._stop_strings:
                text = self.decode(written + block[:i])
                if any(string in text for string in self._stop_strings):
                    return i, "stop"
            if len(written) + i >= max_new_tokens:
                return i, "length"
        return len(block), None


def scored_tree(
    target: LanguageModel,
    draft: LanguageModel | None,
    texts: Sequence[Tensor],  # B tensors (length,)
    branching: Tensor,  # (B, L)
    *,
    scheme: Scheme = "with_replacement",
    processing: Processing = Processing(),
    draft_processing: Processing | None = None,
    generator: torch.Generator | None = None,
) -> DraftTree:
    """Draw one tree below each text, and score all of its nodes in one call of the target.

    Args:
        target, draft: models over one vocabulary; the draft may be None where no drafts are wanted.
        texts: tokens so far.
        branching: see `branching_matrix`.
        scheme: how drafts are drawn, that of the verification.
        processing: how the target's logits become a law.
        draft_processing: the same for the draft's; as the target's when None.
        generator: of the draws.
    """

    def law(tree: DraftTree, nodes: Tensor) -> Tensor:
        assert draft is not None
        return (draft_processing or processing)(tree_logits(draft, texts, tree, nodes))

    tree = draft_tree(law, branching, target.vocab_size, scheme=scheme, generator=generator)
    every = torch.arange(len(tree), device=branching.device)
    return tree.scored(processing(tree_logits(target, texts, tree, every)))


def _read_prompts(prompts: Sequence[Tensor] | Tensor, vocab_size: int) -> list[Tensor]:
    batch = [prompts] if isinstance(prompts, Tensor) and prompts.dim() == 1 else list(prompts)
    if not batch:
        refuse("prompts", "at least one prompt", "none")
    for prompt in batch:
        integers = isinstance(prompt, Tensor) and not prompt.is_floating_point() and prompt.dtype != torch.bool
        if not integers or prompt.dim() != 1:
            got = f"{prompt.dtype} {tuple(prompt.shape)}" if isinstance(prompt, Tensor) else type(prompt).__name__
            refuse("prompts", "tensors of integers (length,)", got)
        if len(prompt) and not 0 <= int(prompt.min()) <= int(prompt.max()) < vocab_size:
            refuse("prompts", f"tokens 0..{vocab_size - 1}", f"{int(prompt.min())}..{int(prompt.max())}")
    return [prompt.long() for prompt in batch]
