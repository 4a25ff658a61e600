"""Laws over a vocabulary: how logits become one, and how tokens and drafts are drawn from one.

Everything is batched over leading axes and done in float64: a float32 sum over 50,000 tokens is off by 1e-4, which is
as much as the probability of most of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..._inputs import check_finite, float_tensor, is_count, is_real
from ...errors import refuse

__all__ = [
    "Processing",
    "check_scheme",
    "descending",
    "draft_tuples",
    "draw",
    "member",
    "read_laws",
    "sample_drafts",
    "without",
]

Scheme = Literal["with_replacement", "without_replacement", "greedy"]

_SUM_TOL = 1e-4  # what half precision and a softmax over a large vocabulary may be off by


@dataclass(frozen=True)
class Processing:
    """Turn logits into the law that tokens are drawn from: temperature, then top-k, then top-p.

        p ∝ exp(logits / temperature), then the top_k most probable tokens, then the fewest of these that hold a share
        of at least top_p; what is left is normalised.

    Of equally probable tokens the first are kept. Draft and target may be processed differently: the output has the
    law of the processed target.

    Args:
        temperature: positive; 0 puts all mass on the most probable token.
        top_k: tokens to keep; all when None.
        top_p: share of the mass to keep, in (0, 1].

    Raises:
        InvalidInput: a value out of its range; when called, NaN, +inf, or a row of -inf.

    Complexity: O(V), and one sort of the vocabulary with top_k or top_p.

    Example:
        >>> import torch
        >>> Processing(top_k=2)(torch.tensor([3.0, 1.0, 1.0, 0.0]).log())
        tensor([0.7500, 0.2500, 0.0000, 0.0000], dtype=torch.float64)
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not is_real(self.temperature) or not 0 <= self.temperature < math.inf:
            refuse("temperature", "a number >= 0", repr(self.temperature))
        if self.top_k is not None and not is_count(self.top_k):
            refuse("top_k", "a positive integer or None", repr(self.top_k))
        if not is_real(self.top_p) or not 0 < self.top_p <= 1:
            refuse("top_p", "a number in (0, 1]", repr(self.top_p))

    def __call__(
        self,
        logits: Tensor,  # (*batch, V)
    ) -> Tensor:  # (*batch, V), float64
        """The law that these logits (or logarithms of probabilities) stand for."""
        z = logits.double()
        highest = z.amax(-1, keepdim=True)
        if not bool(torch.isfinite(highest).all()):  # NaN spreads to the maximum
            refuse("logits", "numbers below infinity, one of them finite in each row", "NaN, +inf, or a row of -inf")
        if self.temperature == 0:
            return torch.zeros_like(z).scatter(-1, z.argmax(-1, keepdim=True), 1)
        p = ((z - highest) / self.temperature).softmax(-1)
        if (self.top_k is None or self.top_k >= p.shape[-1]) and self.top_p == 1:
            return p
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[..., self.top_k :] = 0
        if self.top_p < 1:
            share = ordered / ordered.sum(-1, keepdim=True)
            ordered = torch.where(share.cumsum(-1) - share < self.top_p, ordered, 0)
        p = torch.zeros_like(p).scatter(-1, order, ordered)
        return p / p.sum(-1, keepdim=True)


def read_laws(
    p: Tensor,  # (*batch, V)
    q: Tensor,  # (*batch, V)
) -> tuple[Tensor, Tensor]:
    """Target and draft laws in float64, of one shape, each row with sum 1.

    Raises:
        InvalidInput: different vocabularies or devices, negative or infinite entries, or sums off 1 by more than 1e-4.
    """
    p, q = float_tensor(p, "p"), float_tensor(q, "q")
    if p.dim() == 0 or q.dim() == 0 or p.shape[-1] != q.shape[-1] or p.shape[-1] == 0:
        refuse("p and q", "laws over one vocabulary", f"shapes {tuple(p.shape)} and {tuple(q.shape)}")
    if p.device != q.device:
        refuse("p and q", "tensors on one device", f"{p.device} and {q.device}")
    try:
        shape = torch.broadcast_shapes(p.shape, q.shape)
    except RuntimeError:
        refuse("p and q", "batch axes that broadcast", f"shapes {tuple(p.shape)} and {tuple(q.shape)}")
    return _normalised(p.double(), "p").expand(shape), _normalised(q.double(), "q").expand(shape)


def _normalised(p: Tensor, name: str) -> Tensor:
    total = p.sum(-1, keepdim=True)
    check_finite(total, name, "finite probabilities")  # as their sum is
    off = float((total - 1).abs().max()) if total.numel() else 0.0
    lowest = float(p.min()) if p.numel() else 0.0
    if off > _SUM_TOL or lowest < 0:
        got = f"a sum off by {off:.3g}" if off > _SUM_TOL else f"a minimum of {lowest:.3g}"
        refuse(name, "probabilities with sum 1", got, "Turn logits into laws with Processing().")
    return p / total


# -- draws ---------------------------------------------------------------------------------------------------


def draw(
    p: Tensor,  # (*batch, V), float64, sums need not be 1
    size: int,
    generator: torch.Generator | None = None,
) -> Tensor:  # (*batch, size)
    """Independent tokens from each law, by inversion; a token without mass is never drawn.

    Complexity: O(V + size log V) a row.
    """
    cdf = p.contiguous().cumsum(-1)
    total = cdf[..., -1:]
    u = torch.rand(*p.shape[:-1], size, dtype=p.dtype, device=p.device, generator=generator) * total
    u = torch.minimum(u, torch.nextafter(total, torch.zeros_like(total)))  # the product may round up to the total
    return torch.searchsorted(cdf, u.contiguous(), right=True)


def check_scheme(scheme: str) -> None:
    """Refuse an unknown way to draw drafts."""
    if scheme not in get_args(Scheme):
        refuse("scheme", "one of " + ", ".join(map(repr, get_args(Scheme))), repr(scheme))


def sample_drafts(
    q: Tensor,  # (*batch, V), float64
    k: int | Tensor,  # drafts, one number or (*batch,)
    scheme: Scheme = "with_replacement",
    generator: torch.Generator | None = None,
) -> Tensor:  # (*batch, max k), padded with -1
    """Draw k drafts from each law.

    "with_replacement": independent. "without_replacement": each from what the ones before have left. "greedy": the
    k - 1 most probable tokens, then one drawn from the rest (Hu et al. 2025). Where fewer tokens have mass than k, the
    last two schemes draw fewer.

    Example:
        >>> import torch
        >>> q = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
        >>> sample_drafts(q, 3, "without_replacement", torch.Generator().manual_seed(0)).sort().values
        tensor([-1,  0,  2])
    """
    check_scheme(scheme)
    counts = torch.as_tensor(k, device=q.device).expand(q.shape[:-1]).unsqueeze(-1)
    width = int(counts.max()) if counts.numel() else 0
    slots = torch.arange(width, device=q.device)
    if scheme == "with_replacement":
        drafts = draw(q, width, generator)
    elif scheme == "without_replacement":
        # the order of arrival of independent exponential clocks with rates q
        clocks = torch.empty_like(q).exponential_(generator=generator) / q
        drafts = _first(clocks, width, largest=False)
    else:
        top = _first(q, width, largest=True)
        fixed = torch.where(slots < counts - 1, top, -1)
        rest = without(q, fixed)
        some = rest.sum(-1, keepdim=True) > 0
        last = torch.where(some, draw(torch.where(some, rest, 1.0), 1, generator), -1)
        drafts = torch.where(slots == counts - 1, last, fixed)
    return torch.where(slots < counts, drafts, -1)


def _first(score: Tensor, width: int, largest: bool) -> Tensor:
    """The tokens with the best scores, in order; -1 where the score (0 or infinite) says that a token has no mass."""
    values, tokens = score.topk(min(width, score.shape[-1]), -1, largest=largest)
    tokens = torch.where((values > 0) & (values < math.inf), tokens, -1)
    return pad(tokens, (0, width - tokens.shape[-1]), value=-1)


def descending(
    scores: Tensor,  # (*batch, V)
) -> Tensor:  # (*batch, V)
    """The tokens by decreasing score; those of equal score in any order."""
    if scores.device.type == "cpu":  # NumPy sorts with vector instructions, several times as fast
        return torch.from_numpy(np.argsort(-scores.detach().numpy(), axis=-1))
    return scores.argsort(dim=-1, descending=True)


def member(
    tokens: Tensor,  # (*batch, k), padded with -1
    vocab_size: int,
) -> Tensor:  # (*batch, V)
    """Which tokens of the vocabulary are among these."""
    hit = torch.zeros(*tokens.shape[:-1], vocab_size + 1, dtype=torch.bool, device=tokens.device)
    return hit.scatter(-1, torch.where(tokens < 0, vocab_size, tokens), True)[..., :-1]


def without(
    q: Tensor,  # (*batch, V)
    tokens: Tensor,  # (*batch, k), padded with -1
) -> Tensor:  # (*batch, V)
    """The law given that none of these tokens is drawn; zero where nothing is left."""
    rest = torch.where(member(tokens, q.shape[-1]), 0, q)
    total = rest.sum(-1, keepdim=True)
    return rest / torch.where(total > 0, total, 1)


def draft_tuples(
    q: Tensor,  # (*batch, V), float64
    k: int,
    scheme: Scheme = "with_replacement",
    max_states: int = 200_000,
) -> tuple[Tensor, Tensor]:  # (S, k), (*batch, S)
    """All tuples of k drafts, and the probability of each.

    Raises:
        InvalidInput: more than `max_states` tuples, "greedy", or k drafts without replacement from fewer tokens.
    """
    vocab_size = q.shape[-1]
    if scheme == "greedy":
        refuse("scheme", "'with_replacement' or 'without_replacement'", "'greedy', whose tuples differ from row to row")
    if vocab_size**k > max_states:
        refuse(
            "k",
            f"at most {max_states} tuples of drafts",
            f"{vocab_size}^{k}",
            "Truncate the vocabulary, or use the dual.",
        )
    tuples = torch.cartesian_prod(*[torch.arange(vocab_size, device=q.device)] * k).reshape(-1, k)
    if scheme == "with_replacement":
        return tuples, q[..., tuples].prod(-1)
    check_support(q, k)
    tuples = tuples[(tuples.sort(-1).values.diff(dim=-1) > 0).all(-1)]
    weights = torch.ones_like(q[..., tuples[:, 0]])
    for j in range(k):
        # summed, as 1 less what was drawn would lose the digits of small probabilities
        left = torch.where(member(tuples[:, :j], vocab_size), 0, q.unsqueeze(-2)).sum(-1)
        each = q[..., tuples[:, j]]
        weights = weights * torch.where(each > 0, each / left, 0)
    return tuples, weights


def check_support(q: Tensor, k: int) -> None:
    """Refuse more drafts without replacement than there are tokens with mass."""
    support = int((q > 0).sum(-1).min()) if q.numel() else k
    if support < k:
        refuse("k", "at most the number of tokens that q can draw", f"{k} drafts of {support} tokens")
