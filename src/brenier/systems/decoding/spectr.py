"""SpecTr: several drafts at each step, and the rule that transport makes of them.

K continuations of L tokens are drawn from the draft model, the target scores all in one call, and K-SEQ selects token
by token: each draft is accepted with probability min(1, p/(rho q)), with the smallest division factor rho that leaves
a residual to draw from. What is written has the law of the target. The rule is `selectors.KSeqSelector`, the loop
`generation.Decoder`; this is their common setting under the names of the paper.

Reference: Sun, Suresh, Ro, Beirami, Jain & Yu (2023), SpecTr: fast speculative decoding via optimal transport,
NeurIPS 2023, arXiv 2310.15141.
"""

from __future__ import annotations

from typing import Any

from ..._inputs import is_count
from ...errors import refuse
from .generation import Decoder
from .models import LanguageModel
from .tree import delayed

__all__ = ["speculative_sampler"]


def speculative_sampler(
    target: LanguageModel,
    draft: LanguageModel,
    num_drafts: int = 8,
    draft_length: int = 8,
    **options: Any,
) -> Decoder:
    """A decoder that draws `num_drafts` paths of `draft_length` tokens a step and selects by K-SEQ.

    One draft is ordinary speculative sampling. A step writes between 1 and draft_length + 1 tokens.

    Args:
        target: the model whose law the text has.
        draft: a cheaper model over the same vocabulary.
        num_drafts: K.
        draft_length: L.
        **options: of `Decoder`: temperature, top_k, top_p, eos_token_id, another method, ...

    Raises:
        InvalidInput: K < 1, L < 1, models of different vocabularies, or an option out of its range.

    Complexity: a step calls the draft L times with at most K contexts, and the target once with at most K L + 1.

    Example:
        >>> import torch
        >>> from brenier.systems.decoding.models import NGramLM
        >>> text = [[0, 1, 2, 1] * 30]
        >>> sampler = speculative_sampler(NGramLM(text, 3, order=3), NGramLM(text, 3, order=1), num_drafts=4)
        >>> out = sampler.generate(torch.tensor([0]), 30, generator=torch.Generator().manual_seed(0))
        >>> len(out.tokens[0]), out.target_calls < 30
        (30, True)
    """
    for name, value in (("num_drafts", num_drafts), ("draft_length", draft_length)):
        if not is_count(value):
            refuse(name, "a positive integer", repr(value))
    return Decoder(target, draft, **{"branching": delayed(num_drafts, 0, draft_length), **options})
