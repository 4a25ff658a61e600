r"""Rules that select the token to emit at a node of a draft tree, given the drafts that were drawn there.

p is the target's law at the node, q the draft's, X = (X_1..X_k) the drafts. A rule is a coupling of X and the emitted
token Y, and what defines it is its *branching law* Pr(Y = t | X): it is valid when, averaged over X, that is p. All
rules here are valid for every p and q, so that no choice of rule, drafts or tree changes what is written; they differ
in how often Y is one of the drafts, the acceptance rate.

Every rule is batched over nodes with different numbers of drafts, computes in float64, and costs O(k V) a node. A node
without drafts emits a token with law p.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..._inputs import is_count
from ...errors import refuse
from .laws import Scheme, descending, draft_tuples, draw, member, read_laws, sample_drafts, without
from .optimal_mdsd import draft_sets, membership_ot, otm_acceptance

__all__ = [
    "ExactSelector",
    "GreedySelector",
    "KSeqSelector",
    "NSSSelector",
    "NaiveSelector",
    "Selection",
    "SpecInferSelector",
    "TokenSelector",
    "TournamentSelector",
    "kseq_division_factor",
]

_NOTHING = 1e-14  # a residual of less mass is rounding, and what led to it accepts surely
_ENUMERATED = 4096  # tuples of drafts up to which rates are sums and not averages


class Selection(NamedTuple):
    """Emitted tokens, and which draft each one equals."""

    token: Tensor  # (*batch,)
    index: Tensor  # type: ignore[assignment]  # (*batch,), position of the first draft that is this token; -1 if none is


class TokenSelector(ABC):
    """A rule of selection; subclasses define `_branching` in float64, and `_rate` where the rate has a closed form."""

    @property
    def scheme(self) -> Scheme:
        """How the drafts must be drawn for the rule to be valid, see `sample_drafts`."""
        return "with_replacement"

    @abstractmethod
    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        """The branching law for laws that were checked."""

    def branching(
        self,
        p: Tensor,  # (*batch, V)
        q: Tensor,  # (*batch, V)
        drafts: Tensor,  # (*batch, k), padded with -1 at the end
    ) -> Tensor:  # (*batch, V)
        """Pr(Y = t | drafts), exactly.

        Raises:
            InvalidInput: laws that are none, drafts that are no tokens, or that q cannot draw.
        """
        return self._branching(*_read(p, q, drafts)).to(p.dtype)

    def sample(
        self,
        p: Tensor,  # (*batch, V)
        q: Tensor,  # (*batch, V)
        drafts: Tensor,  # (*batch, k), padded with -1 at the end
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Draw the token to emit from the branching law.

        Raises:
            InvalidInput: as `branching`.
        """
        p, q, drafts = _read(p, q, drafts)
        token = draw(self._branching(p, q, drafts), 1, generator)
        equal = drafts == token
        found = equal.any(-1)
        if not drafts.shape[-1]:
            return Selection(token.squeeze(-1), torch.full_like(token.squeeze(-1), -1))
        return Selection(token.squeeze(-1), torch.where(found, equal.int().argmax(-1), -1))

    def acceptance(
        self,
        p: Tensor,  # (*batch, V)
        q: Tensor,  # (*batch, V)
        drafts: Tensor,  # (*batch, k), padded with -1 at the end
    ) -> Tensor:  # (*batch,)
        """Pr(Y is among the drafts | drafts)."""
        dtype = p.dtype
        p, q, drafts = _read(p, q, drafts)
        return (self._branching(p, q, drafts) * member(drafts, p.shape[-1])).sum(-1).to(dtype)

    def acceptance_rate(
        self,
        p: Tensor,  # (*batch, V)
        q: Tensor,  # (*batch, V)
        k: int,
        *,
        draws: int = 1000,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # (*batch,)
        """Pr(Y is among k drafts), over the drafts too.

        A closed form where the rule has one. Otherwise the sum over all tuples of drafts of a tiny vocabulary, or the
        average of `acceptance` over `draws` tuples, whose standard error is at most 1/(2 sqrt(draws)).

        Raises:
            InvalidInput: laws that are none, or k < 1.
        """
        if not is_count(k):
            refuse("k", "a positive integer", repr(k))
        dtype = p.dtype
        p, q = read_laws(p, q)
        rate = self._rate(p, q, k)
        if rate is None and p.shape[-1] ** k <= _ENUMERATED and self.scheme != "greedy":
            tuples, weights = draft_tuples(q, k, self.scheme)
            shape = (*p.shape[:-1], len(tuples))
            tuples = tuples.expand(*shape, k)
            rows = p.unsqueeze(-2).expand(*shape, -1), q.unsqueeze(-2).expand(*shape, -1)
            law = self._branching(*rows, tuples)
            rate = (weights * (law * member(tuples, p.shape[-1])).sum(-1)).sum(-1)
        elif rate is None:
            rate = torch.zeros_like(p[..., 0])
            for _ in range(draws):
                drafts = sample_drafts(q, k, self.scheme, generator)
                rate += (self._branching(p, q, drafts) * member(drafts, p.shape[-1])).sum(-1) / draws
        return rate.clamp(0, 1).to(dtype)

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor | None:
        """The closed form of the acceptance rate."""
        return None


# -- what rules are made of ----------------------------------------------------------------------------------


def _read(p: Tensor, q: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, q = read_laws(p, q)
    vocab_size = p.shape[-1]
    if drafts.is_floating_point() or drafts.dtype == torch.bool or drafts.dim() == 0:
        refuse("drafts", "integers (*batch, k)", f"{drafts.dtype} {tuple(drafts.shape)}")
    shape = torch.broadcast_shapes(p.shape[:-1], drafts.shape[:-1])
    p, q = (t.expand(*shape, vocab_size) for t in (p, q))
    drafts = drafts.long().expand(*shape, drafts.shape[-1])
    if drafts.numel() and not -1 <= int(drafts.min()) <= int(drafts.max()) < vocab_size:
        refuse("drafts", f"tokens 0..{vocab_size - 1}, or -1 for none", f"{int(drafts.min())}..{int(drafts.max())}")
    if bool(((drafts >= 0) & (_at(q, drafts) <= 0)).any()):
        refuse(
            "drafts",
            "tokens that q can draw",
            "one with q = 0",
            "Give the law that they were drawn from, after temperature, top-k and top-p.",
        )
    width = int((drafts >= 0).sum(-1).max()) if drafts.numel() else 0  # in a tree few nodes have many drafts
    return p, q, drafts[..., :width]


def _at(p: Tensor, drafts: Tensor) -> Tensor:
    return p.gather(-1, drafts.clamp(min=0))


def _ratio(p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
    """min(1, p/q) at each draft; 0 where there is none."""
    ratio = (_at(p, drafts) / _at(q, drafts)).clamp(max=1)
    return torch.where(drafts >= 0, ratio.nan_to_num(0), 0)


def _residual(r: Tensor, otherwise: Tensor) -> Tensor:
    """The positive part of r as a law, or another law where it is nothing."""
    r = r.clamp(min=0)
    total = r.sum(-1, keepdim=True)
    some = total > _NOTHING
    return torch.where(some, r / torch.where(some, total, 1), otherwise)


def _in_order(drafts: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    """The law when drafts are tried in order, accepted with these probabilities, and else the residual is drawn."""
    left = pad((1 - accept).cumprod(-1), (1, 0), value=1.0)
    return (residual * left[..., -1:]).scatter_add(-1, drafts.clamp(min=0), accept * left[..., :-1])


def _hit(q: Tensor, k: int | Tensor) -> Tensor:
    """Pr(a token is among k independent draws), for each token: 1 - (1 - q)^k without loss of digits."""
    k = torch.as_tensor(k, dtype=q.dtype, device=q.device)
    return torch.where(k > 0, -torch.expm1(k * torch.log1p(-q.clamp(max=1))), 0)


# -- rules ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NSSSelector(TokenSelector):
    """Naive speculative sampling: draw Y from p, and see whether it is among the drafts.

    Its rate is sum_t p_t (1 - (1 - q_t)^k). Valid for drafts drawn in any way.

    Example:
        >>> import torch
        >>> p = torch.tensor([0.5, 0.5])
        >>> float(NSSSelector().acceptance_rate(p, p, 2))
        0.75
    """

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        return p

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor:
        return (p * _hit(q, k)).sum(-1)


@dataclass(frozen=True)
class NaiveSelector(TokenSelector):
    r"""Single-draft speculative sampling: accept X_1 with probability min(1, p/q), else draw from r ∝ (p - q)_+.

    For k = 1 it is the maximal coupling, with rate 1 - TV(p, q). With more drafts the residual token may be one of the
    others, and the rate is sum min(p, q) + sum (p - q)_+ (1 - (1 - q)^(k-1)).

    Reference: Leviathan, Kalman & Matias (2023), Fast inference from transformers via speculative decoding; Chen et
    al. (2023), Accelerating large language model decoding with speculative sampling.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
        >>> NaiveSelector().branching(p, q, torch.tensor([1]))
        tensor([0.8000, 0.2000])
    """

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        first = drafts[..., :1]
        residual = _residual(p - q, p)
        some = (first >= 0).any(-1, keepdim=True)
        return _in_order(first, _ratio(p, q, first), torch.where(some, residual, p))

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor:
        return (torch.minimum(p, q) + (p - q).clamp(min=0) * _hit(q, k - 1)).sum(-1)


def kseq_division_factor(
    p: Tensor,  # (*batch, V)
    q: Tensor,  # (*batch, V)
    k: int | Tensor,  # (*batch,)
    tol: float = 1e-9,
) -> Tensor:  # (*batch,)
    """The smallest division factor rho with which K-SEQ is valid, from above by at most tol.

    With beta(rho) = sum min(p/rho, q) it is the root in [1, k] of 1 - (1 - beta)^k = rho beta, by bisection.

    Complexity: O(V log(k/tol)) a row.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        >>> round(float(kseq_division_factor(p, q, 2)), 4)
        1.5403
    """
    if not 0 < tol < 1:
        refuse("tol", "a number between 0 and 1", repr(tol))
    dtype = p.dtype
    p, q = read_laws(p, q)
    counts = torch.as_tensor(k, device=p.device)
    if counts.numel() and bool((counts < 1).any()):
        refuse("k", "positive integers", f"a minimum of {int(counts.min())}")
    return _division_factor(p, q, counts.expand(p.shape[:-1]), tol).to(dtype)


def _division_factor(p: Tensor, q: Tensor, k: Tensor, tol: float) -> Tensor:
    several = k > 1
    if not bool(several.all()):  # of one draft it is 1, and in a tree most nodes have one
        rho = torch.ones_like(k, dtype=p.dtype)
        rho[several] = _division_factor(p[several], q[several], k[several], tol)
        return rho
    k = k.to(p.dtype)
    low, high = torch.ones_like(k), k.clone()
    halvings = math.ceil(math.log2(max(float(k.max()) - 1, tol) / tol)) if k.numel() else 0
    for _ in range(halvings):
        rho = (low + high) / 2
        beta = torch.minimum(p / rho.unsqueeze(-1), q).sum(-1)
        valid = _hit(beta, k) <= rho * beta
        wide = high - low > tol  # a row does not depend on the others
        low, high = torch.where(wide & ~valid, rho, low), torch.where(wide & valid, rho, high)
    return high  # the side on which the residual is nonnegative; exactly 1 for k = 1


@dataclass(frozen=True)
class KSeqSelector(TokenSelector):
    r"""K-SEQ, the rule of SpecTr: accept each draft in turn with probability min(1, p/(rho q)).

    rho is the smallest division factor that leaves a nonnegative residual p - gamma min(p/rho, q), with
    gamma = (1 - (1 - beta)^k)/beta and beta = sum min(p/rho, q); the residual is drawn from when no draft is accepted.
    Accepts with a probability of at least 1 - (1 - 1/k)^k > 1 - 1/e times the best of any rule.

    Args:
        tol: of the division factor, which is rounded up.

    Reference: Sun, Suresh, Ro, Beirami, Jain & Yu (2023), SpecTr: fast speculative decoding via optimal transport.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        >>> round(float(KSeqSelector().acceptance_rate(p, q, 2)), 4)
        0.7081
    """

    tol: float = 1e-9

    def _parts(self, p: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The division factor, the probability that a draft is accepted, and the residual."""
        rho = _division_factor(p, q, k, self.tol).unsqueeze(-1)
        shared = torch.minimum(p / rho, q)
        beta = shared.sum(-1, keepdim=True)
        accepted = _hit(beta, k.unsqueeze(-1))
        gamma = torch.where(beta > 0, accepted / torch.where(beta > 0, beta, 1), 0)
        return rho, accepted, _residual(p - gamma * shared, p)

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        rho, _, residual = self._parts(p, q, (drafts >= 0).sum(-1))
        return _in_order(drafts, _ratio(p / rho, q, drafts), residual)

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor:
        rho, accepted, residual = self._parts(p, q, torch.full_like(p[..., 0], k, dtype=torch.long))
        # the law of a draft that was not accepted
        refused = _residual(q - p / rho, torch.zeros_like(q))
        return (accepted + (1 - accepted) * (residual * _hit(refused, k)).sum(-1, keepdim=True)).squeeze(-1)


@dataclass(frozen=True)
class SpecInferSelector(TokenSelector):
    r"""Recursive rejection sampling, the rule of SpecInfer: each refused draft turns p into the residual (p - q)_+.

    p_0 = p; draft j is accepted with probability min(1, p_{j-1}/q), else p_j ∝ (p_{j-1} - q)_+; at the end Y is drawn
    from p_k. Without replacement q_j is q_{j-1} given that it does not draw X_j. Drafts are tried in the order in which
    they were drawn, which is as valid as the random order of the paper, since they are exchangeable or drawn in turn.

    Args:
        replacement: whether the drafts are drawn with replacement.

    Reference: Miao et al. (2024), SpecInfer: accelerating large language model serving with tree-based speculative
    inference and verification; Jeon et al. (2024), Recursive speculative decoding.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        >>> [round(float(SpecInferSelector(r).acceptance_rate(p, q, 2)), 4) for r in (True, False)]
        [0.68, 0.76]
    """

    replacement: bool = True

    @property
    def scheme(self) -> Scheme:
        """How the drafts must be drawn."""
        return "with_replacement" if self.replacement else "without_replacement"

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        p, q, accept = p.clone(), q if self.replacement else q.clone(), torch.zeros_like(drafts, dtype=p.dtype)
        for j in range(drafts.shape[-1]):
            on = drafts[..., j] >= 0
            x, target, draft = drafts[..., j][on].unsqueeze(-1), p[on], q[on]
            accept[..., j][on] = _ratio(target, draft, x).squeeze(-1)
            p[on] = _residual(target - draft, target)
            if not self.replacement:
                q[on] = without(draft, x)
        return _in_order(drafts, accept, p)

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor | None:
        if not self.replacement and k > 1:
            return None
        refused = torch.ones_like(p[..., :1])
        missed = torch.ones_like(p)  # Pr(a token is none of the drafts | all were refused)
        for _ in range(k):
            rejection = (q - p).clamp(min=0)
            share = rejection.sum(-1, keepdim=True)
            some = share > _NOTHING
            missed = missed * (1 - torch.where(some, rejection / torch.where(some, share, 1), 0))
            refused = torch.where(some, refused * share, 0)
            p = _residual(p - q, p)
        return (1 - refused + refused * (p * (1 - missed)).sum(-1, keepdim=True)).squeeze(-1)


@dataclass(frozen=True)
class GreedySelector(TokenSelector):
    r"""The optimal rule for greedy drafts: the k - 1 most probable tokens T of q, and one drawn from the rest.

    With q' the law of the last draft, q given that it is not in T, the last draft is accepted with probability
    min(1, p/q'), else Y is drawn from the residual (p - q')_+, which on T is p. Its rate is
    p(T) + sum over the rest of min(p, q'), which no rule exceeds.

    Reference: Hu et al. (2025), Towards optimal multi-draft speculative decoding.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.5, 0.3, 0.2])
        >>> round(float(GreedySelector().acceptance_rate(p, q, 2)), 4)
        1.0
    """

    @property
    def scheme(self) -> Scheme:
        """How the drafts must be drawn."""
        return "greedy"

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        k = (drafts >= 0).sum(-1, keepdim=True)
        slots = torch.arange(drafts.shape[-1], device=drafts.device)
        rest = without(q, torch.where(slots < k - 1, drafts, -1))
        last = torch.where(slots == k - 1, drafts, -1)
        residual = torch.where(k > 0, _residual(p - rest, p), p)
        return _in_order(last, _ratio(p, rest, last), residual)

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor:
        return otm_acceptance(p, q, k, "greedy")


@dataclass(frozen=True)
class TournamentSelector(TokenSelector):
    r"""A tournament of the drafts by importance sampling, and single-draft sampling with its winner.

    The winner so far, with law h, meets the next draft, with law q; of two tokens i wins with probability w_ij, so that

        h'_i = h_i q_i + sum over j != i of w_ij (h_i q_j + q_i h_j),   w_ij + w_ji = 1,

    is the law of the new winner. In the order of decreasing p - h q a token wins against those behind it, but among the
    first `size` the w_ij are those with the largest sum of min(p, h'), by a transport problem; where the winner so far
    alone is better it stays. The last winner is accepted with probability min(1, p/h), else Y is drawn from the
    residual (p - h)_+. Two drafts are accepted as often as by any rule if `size` is V; where much of the mass is on
    other tokens than the first, K-SEQ may accept more.

    Args:
        size: tokens whose weights are optimised.

    Raises:
        InvalidInput: a size that is no positive integer.

    Complexity: for each draft after the first, one sort of the vocabulary and a problem of size^2/2 x size masses.

    Reference: Khisti, Ebrahimi, Dbouk, Behboodi, Memisevic & Louizos (2025), Multi-draft speculative sampling:
    canonical decomposition and theoretical limits, ICLR 2025, arXiv 2410.18234.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        >>> round(float(TournamentSelector().acceptance_rate(p, q, 2)), 4)
        0.76
    """

    size: int = 5

    def __post_init__(self) -> None:
        if not is_count(self.size):
            refuse("size", "a positive integer", repr(self.size))

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        law = q
        wins = (torch.arange(drafts.shape[-1], device=q.device) == 0).to(q.dtype).expand(drafts.shape)
        for j in range(1, drafts.shape[-1]):
            there = drafts[..., j : j + 1] >= 0
            rank, weights, new = self._match(p, law, q)
            size = weights.shape[-1]
            places = rank.gather(-1, drafts[..., : j + 1].clamp(min=0))
            mine, its = places[..., :j], places[..., j:]
            cell = mine.clamp(max=size - 1) * size + its.clamp(max=size - 1)
            inside = (mine < size) & (its < size)
            stays = torch.where(inside, weights.flatten(-2).gather(-1, cell), (mine < its).to(q.dtype))
            better = torch.minimum(p, new).sum(-1, keepdim=True) > torch.minimum(p, law).sum(-1, keepdim=True)
            stays = torch.where(there & better, stays, 1)
            law = torch.where(there & better, new, law)
            before = wins[..., :j]
            lost = (before * (1 - stays)).sum(-1, keepdim=True)
            wins = torch.cat([before * stays, lost, wins[..., j + 1 :]], -1)
        accept = wins * _ratio(p, law, drafts)
        some = (drafts >= 0).any(-1, keepdim=True)
        residual = torch.where(some, _residual(p - law, p), p)
        return (residual * (1 - accept.sum(-1, keepdim=True))).scatter_add(-1, drafts.clamp(min=0), accept)

    def _match(self, p: Tensor, h: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The place of each token in the order, the weights among the first, and the law of the new winner."""
        order = descending(p - h * q)
        every = torch.arange(order.shape[-1], device=q.device)
        rank = torch.empty_like(order).scatter_(-1, order, every.expand_as(order))
        p, h, q = (t.gather(-1, order) for t in (p, h, q))
        behind_h, behind_q = (pad(t.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1)) for t in (h, q))
        law = h * q + h * behind_q + q * behind_h
        first = slice(0, min(self.size, order.shape[-1]))
        last = slice(first.stop - 1, first.stop)
        surely = h[..., first] * (q[..., first] + behind_q[..., last]) + q[..., first] * behind_h[..., last]
        meet = h[..., first].unsqueeze(-1) * q[..., first].unsqueeze(-2)
        meet = meet + meet.mT
        weights = _best_weights((p[..., first] - surely).clamp(min=0), meet)
        law = torch.cat([surely + (weights * meet).sum(-1), law[..., first.stop :]], -1)
        return rank, weights, law.gather(-1, rank)


def _best_weights(room: Tensor, meet: Tensor) -> Tensor:  # (*batch, s), (*batch, s, s) -> (*batch, s, s)
    """How often each token wins against each other, so that most of their mass fits into the room of the winners."""
    size = room.shape[-1]
    i, j = torch.triu_indices(size, size, 1, device=room.device)
    weights = torch.zeros_like(meet)
    if not len(i) or not room.numel():
        return weights
    # many nodes may share their laws, and one problem serves them all
    numbers = torch.cat([room, meet[..., i, j]], -1).reshape(-1, size + len(i))
    problems, node = numbers.unique(dim=0, return_inverse=True)
    room, pairs = problems[:, :size], problems[:, size:]
    total = torch.stack([room.sum(-1), pairs.sum(-1)]).amax(0)
    upper = torch.full_like(pairs, 0.5)
    some = pairs.sum(-1) > _NOTHING
    if bool(some.any()):
        # what does not fit goes to a token of its own, what stays empty is filled by a set of its own
        capacity = pad(room, (0, 1))[some]
        mass = pad(pairs, (0, 1))[some]
        spare = capacity.sum(-1) - mass.sum(-1)
        capacity[:, -1], mass[:, -1] = (-spare).clamp(min=0), spare.clamp(min=0)
        sets = torch.zeros(len(i) + 1, size + 1, dtype=torch.bool, device=room.device)
        each = torch.arange(len(i), device=room.device)
        sets[each, i] = sets[each, j] = True
        plan = membership_ot(capacity, sets, mass).plan * total[some, None, None]
        shared = pairs[some]
        # the mass that fits nowhere is halved
        lead = torch.where(shared > 0, (plan[:, each, i] - plan[:, each, j]) / torch.where(shared > 0, shared, 1), 0)
        upper[some] = ((1 + lead) / 2).clamp(0, 1)
    upper = upper[node].reshape(*weights.shape[:-2], len(i))
    weights[..., i, j], weights[..., j, i] = upper, 1 - upper
    return weights


@dataclass(frozen=True)
class ExactSelector(TokenSelector):
    """The best rule of all for independent drafts, by solving the transport problem; for tiny vocabularies.

    Args:
        replacement: whether the drafts are drawn with replacement.
        max_states: tuples of drafts up to which the problem is solved.

    Raises:
        InvalidInput: more than `max_states` tuples.

    Complexity: the network simplex on the pairs of a set of drafts and a token, for each node.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        >>> round(float(ExactSelector().acceptance_rate(p, q, 2)), 4)
        0.76
    """

    replacement: bool = True
    max_states: int = 200_000

    @property
    def scheme(self) -> Scheme:
        """How the drafts must be drawn."""
        return "with_replacement" if self.replacement else "without_replacement"

    def _branching(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        law = p.clone()
        counts = (drafts >= 0).sum(-1)
        for k in counts.unique().tolist():
            if k:
                rows = counts == k
                law[rows] = self._solved(p[rows], q[rows], drafts[rows][:, :k])
        return law

    def _solved(self, p: Tensor, q: Tensor, drafts: Tensor) -> Tensor:
        # many nodes may share their laws, and one problem serves them all
        laws, node = torch.cat([p, q], -1).unique(dim=0, return_inverse=True)
        p, q = laws.chunk(2, -1)
        sets, weights = draft_sets(q, drafts.shape[-1], self.scheme, self.max_states)
        plan = membership_ot(p, sets, weights).plan
        which = (sets == member(drafts, p.shape[-1]).unsqueeze(1)).all(-1).int().argmax(-1)
        mass = plan[node, which]
        return mass / mass.sum(-1, keepdim=True)

    def _rate(self, p: Tensor, q: Tensor, k: int) -> Tensor:
        return otm_acceptance(p, q, k, self.scheme)
