"""The best acceptance rate of multi-draft speculative decoding, by duality, at any size of vocabulary.

At a node of a draft tree, k drafts X are drawn from the draft's law q, and a token Y with the target's law p is
written. The drafts are of use when Y is among them. How often that can be is a transport problem between the law of X
and p with the cost 1{y not among x}; its dual is a minimum cut,

    alpha = 1 + min over sets H of tokens of p(H) - Pr(all drafts lie in H),

and for drafts with or without replacement the best H is a prefix of the tokens in the order of decreasing q/p. No rule
of selection accepts more often: the gap of a rule is what is left to gain.

Reference: Hu, Zheng, Viswanathan, Chen, Rossi, Wu, Manocha & Huang (2025), Towards optimal multi-draft speculative
decoding, ICLR 2025, arXiv 2502.18779.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..._inputs import is_count
from ...api import solve
from ...errors import refuse
from ...geometry import CostMatrix
from .laws import Scheme, check_scheme, check_support, descending, draft_tuples, member, read_laws, without

__all__ = ["MembershipOT", "draft_sets", "membership_ot", "otm_acceptance"]

# the integral over arrival times, by the trapezoid rule in s = log t
_STEP, _FROM, _LATE = 0.2, -16.0, 100.0  # up to the time at which e^-100 is left
_RACE_BLOCK = 2**21  # entries of (tokens, times) held at once

# buckets of ratios q/p, 64 an octave from 2^24 down to 2^-8: the bits of a float64 are ordered as the numbers are
_BUCKETS = 2048
_DROPPED = 52 - 6
_FIRST = (1023 + 24) << 6


class MembershipOT(NamedTuple):
    """An optimal plan between sets of drafts and emitted tokens.

    `acceptance` is the mass on tokens that are in their set; the cut p(H) - Pr(set inside H) + 1 of `dual_set` H
    equals it.
    """

    plan: Tensor  # (*batch, S, V)
    acceptance: Tensor  # (*batch,)
    dual_set: Tensor  # (*batch, V), truth values


def membership_ot(
    p: Tensor,  # (*batch, V)
    sets: Tensor,  # (S, V), truth values
    weights: Tensor,  # (*batch, S)
) -> MembershipOT:
    r"""Solve the transport problem between sets of drafts and emitted tokens exactly, for tiny vocabularies.

        max sum_{s, y in s} P_sy   over P >= 0 with P1 = weights and P^T 1 = p.

    Args:
        p: law of the emitted token.
        sets: which tokens each set holds. Drafts matter only through their set, so duplicates are merged before.
        weights: the probability of each set.

    Raises:
        InvalidInput: shapes that do not fit, or masses that `brenier.solve` refuses.

    Complexity: the network simplex on S V pairs for each item of the batch.

    Example:
        >>> import torch
        >>> sets = torch.tensor([[True, False], [True, True], [False, True]])  # of two drafts with q = (1/2, 1/2)
        >>> result = membership_ot(torch.tensor([0.9, 0.1]), sets, torch.tensor([0.25, 0.5, 0.25]))
        >>> round(float(result.acceptance), 6)
        0.85
    """
    if (
        sets.dim() != 2
        or sets.dtype != torch.bool
        or weights.shape[-1:] != sets.shape[:1]
        or p.shape[-1:] != sets.shape[1:]
    ):
        refuse(
            "sets",
            "truth values (S, V) for weights (*batch, S) and p (*batch, V)",
            f"{sets.dtype} {tuple(sets.shape)}, {tuple(weights.shape)} and {tuple(p.shape)}",
        )
    p, weights = p.double(), weights.double()
    p, weights = p / p.sum(-1, keepdim=True), weights / weights.sum(-1, keepdim=True)
    solution = solve(CostMatrix((~sets).double()), a=weights, b=p)
    g = torch.as_tensor(solution.potentials.g)
    plan = solution.plan.dense()
    return MembershipOT(plan, (plan * sets).sum((-2, -1)), g.amax(-1, keepdim=True) - g > 0.5)


def draft_sets(
    q: Tensor,  # (*batch, V)
    k: int,
    scheme: Scheme = "with_replacement",
    max_states: int = 200_000,
) -> tuple[Tensor, Tensor]:  # (S, V), (*batch, S)
    """The sets of tokens that k drafts can form, and the probability of each, by enumeration.

    Raises:
        InvalidInput: more than `max_states` tuples of drafts, or "greedy" drafts, whose best rule needs no solver.
    """
    tuples, probability = draft_tuples(q.double(), k, scheme, max_states)
    sets, which = member(tuples, q.shape[-1]).unique(dim=0, return_inverse=True)
    weights = probability.new_zeros(*probability.shape[:-1], len(sets))
    return sets, weights.index_add(-1, which, probability)


@overload
def otm_acceptance(
    p: Tensor, q: Tensor, k: int, scheme: Scheme = ..., *, method: str = ..., return_set: Literal[False] = ...
) -> Tensor: ...
@overload
def otm_acceptance(
    p: Tensor, q: Tensor, k: int, scheme: Scheme = ..., *, method: str = ..., return_set: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def otm_acceptance(
    p: Tensor,  # (*batch, V)
    q: Tensor,  # (*batch, V)
    k: int,
    scheme: Scheme = "with_replacement",
    *,
    method: str = "dual",
    return_set: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # (*batch,), (*batch, V)
    r"""The largest acceptance rate that any rule of selection can reach with k drafts.

        alpha = max Pr(Y in {X_1..X_k}) = 1 + min_H p(H) - Pr(X_1..X_k in H),   X drawn from q, Y with law p.

    One draft gives 1 - TV(p, q). More drafts never lower it, and drafts without replacement reach at least what drafts
    with replacement do.

    Args:
        p, q: target and draft law, after all processing; any floating dtype, computed in float64.
        k: number of drafts, at least 1.
        scheme: how drafts are drawn, see `sample_drafts`.
        method: "dual", or "lp": the transport problem itself, for tiny vocabularies.
        return_set: return a minimising set H as well, as truth values.

    Raises:
        InvalidInput: laws that are none, k < 1, an unknown option, without replacement k larger than the support of q.

    Complexity: O(V) a row with replacement, greedily, and without replacement for k = 2 (O(V log V) where nearly all
    tokens have one q/p); without replacement for larger k O(k^2 V) for each of some 100 arrival times, in blocks. There
    Pr(X in H) is an integral over the time t at which the first token outside H would arrive if tokens arrived by
    independent exponential clocks with rates q,

        Pr(X in H) = 1 - int_0^inf q(H^c) e^{-t} sum_{m<k} e_m((e^{q_i t} - 1)_{i in H}) dt,

    with e_m the elementary symmetric polynomials, which for all prefixes are cumulative sums. The error is about 1e-13.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        >>> [round(float(otm_acceptance(p, q, k)), 4) for k in (1, 2, 3)]
        [0.6, 0.76, 0.888]
    """
    check_scheme(scheme)
    if not is_count(k):
        refuse("k", "a positive integer", repr(k))
    if method not in ("dual", "lp"):
        refuse("method", "'dual' or 'lp'", repr(method))
    dtype = p.dtype
    p, q = read_laws(p, q)
    if scheme == "greedy":
        alpha, inside = _greedy(p, q, k)
    elif method == "lp":
        sets, weights = draft_sets(q, k, scheme)
        _, alpha, inside = membership_ot(p, sets, weights)
    else:
        alpha, inside = _cut(p, q, k, scheme)
    alpha = alpha.clamp(0, 1).to(dtype)
    return (alpha, inside) if return_set else alpha


def _greedy(p: Tensor, q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """p(T) + sum min(p, q') with T the k - 1 most probable tokens and q' the law of the last draft."""
    top = q.topk(min(k - 1, q.shape[-1]), -1).indices
    fixed = member(top, q.shape[-1]) & (q > 0)
    rest = without(q, torch.where(q.gather(-1, top) > 0, top, -1))
    return torch.where(fixed, p, torch.minimum(p, rest)).sum(-1), fixed | (p < rest)


def _cut(p: Tensor, q: Tensor, k: int, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The minimum over prefixes in the order of decreasing q/p."""
    ratio = torch.where(q > 0, q / p, 0)
    distinct = scheme == "without_replacement" and k > 1
    if distinct:
        check_support(q, k)
    terms = [p, q, _odds(q)] if distinct and k == 2 else [p, q]
    place = ratio
    if q.shape[-1] > 4 * _BUCKETS and not (distinct and k > 2):
        place, terms = _merged(ratio, terms, k)
    order = descending(place)
    p, q, *odds = (t.gather(-1, order) for t in terms)
    if odds:
        all_in = _two_distinct(q.cumsum(-1), _after(q), odds[0].cumsum(-1))
    else:
        all_in = _race(q, _after(q), k) if distinct else q.cumsum(-1) ** k
    value, last = (p.cumsum(-1) - all_in).min(-1, keepdim=True)
    # the cut is submodular: it is least with all tokens of one ratio, or with none; the empty set gives 0
    chosen = (ratio >= place.gather(-1, order.gather(-1, last))) & (value < 0)
    return 1 + value.squeeze(-1).clamp(max=0), chosen


def _merged(ratio: Tensor, terms: list[Tensor], k: int) -> tuple[Tensor, list[Tensor]]:
    """Tokens of nearly the same q/p as one, wherever no prefix that ends among them can be the best.

    Buckets are the leading bits of the ratio. Inside one, p(H) is a convex function of q(H) whose slopes the edges
    bound, so that it is above two lines; along each the cut is concave, and least where they meet or at an end.
    """
    batch, vocab_size = ratio.shape[:-1], ratio.shape[-1]
    ratio, terms = ratio.reshape(-1, vocab_size), [t.reshape(-1, vocab_size) for t in terms]
    bucket = (_FIRST - (ratio.view(torch.int64) >> _DROPPED)).clamp_(0, _BUCKETS - 1)
    lowest = ((_FIRST - torch.arange(_BUCKETS, device=ratio.device)) << _DROPPED).view(ratio.dtype)
    lowest[-1] = 0
    sums = [ratio.new_zeros(len(ratio), _BUCKETS).scatter_add_(-1, bucket, t) for t in terms]
    before = [pad(t.cumsum(-1)[:, :-1], (1, 0)) for t in sums]

    def cut(dp: Tensor | int, dq: Tensor | int) -> Tensor:
        """That of the prefixes before, grown by some p and q; a lower bound, as odds grow by q at least."""
        p, inside, *odds = before[0] + dp, *(t + dq for t in before[1:])
        return p - (_two_distinct(inside, 1 - inside, odds[0]) if odds else inside**k)

    flat, steep = pad(1 / lowest[:-1], (1, 0)), 1 / lowest
    dp, dq = sums[:2]
    meet = torch.where(lowest > 0, (steep * dq - dp) / (steep - flat), dq).clamp(min=0).minimum(dq)
    best = cut(0, 0).amin(-1, keepdim=True)
    apart = (cut(flat * meet, meet) < best) | (cut(dp, dq) < best)
    row, token = apart.gather(-1, bucket).nonzero().unbind(-1)
    counts = torch.bincount(row, minlength=len(ratio))
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max()) if len(counts) else 0

    def items(together: Tensor, each: Tensor) -> Tensor:
        alone = each.new_zeros(len(each), width)
        alone[row, slot] = each[row, token]
        return torch.cat([together, alone], -1).reshape(*batch, -1)

    together = [torch.where(apart, 0, t) for t in sums]
    return items(lowest.expand_as(bucket[:, :_BUCKETS]), ratio), [items(*pair) for pair in zip(together, terms)]


def _after(q: Tensor) -> Tensor:
    """The mass behind each token, summed from the end, so that small masses keep their digits."""
    return pad(q.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))


def _odds(q: Tensor) -> Tensor:
    """q/(1 - q) for each token."""
    rest = 1 - q
    top = q.max(-1, keepdim=True)
    if bool((top.values > 0.5).any()):  # 1 - q loses digits where q is near 1
        rest.scatter_(-1, top.indices, q.scatter(-1, top.indices, 0).sum(-1, keepdim=True))
    return q / rest


def _two_distinct(inside: Tensor, outside: Tensor, odds: Tensor) -> Tensor:
    """Pr(both drafts in H): sum_i q_i (q(H) - q_i)/(1 - q_i) = q(H) - q(H^c) sum_{i in H} q_i/(1 - q_i)."""
    return inside - outside * odds


def _race(q: Tensor, outside: Tensor, k: int) -> Tensor:
    """Pr(all k drafts in the prefix), for every prefix, through arrival times.

    The k - 1 heaviest tokens are counted in probabilities, the light ones by their odds: no term of the integral
    matters once light tokens must have arrived, so nothing overflows and only positive numbers are added.
    """
    heavy = q.topk(k - 1, -1).indices
    light = q.scatter(-1, heavy, 0)
    mass = light.sum(-1)[..., None, None]
    position = torch.arange(q.shape[-1], device=q.device)
    until = math.log(_LATE / float(mass.min())) + _STEP
    times = torch.arange(_FROM, until, _STEP, dtype=q.dtype, device=q.device)
    lost = torch.zeros_like(q)
    for s in times.split(max(1, _RACE_BLOCK // q.numel())):
        t = s.exp().unsqueeze(-1)
        odds = torch.expm1((light.unsqueeze(-2) * t).clamp(max=_LATE))  # (*batch, times, V)
        polynomial = torch.ones_like(odds)
        few = [polynomial]
        for m in range(1, k):
            # e_m of a prefix adds, token by token, its odds times e_{m-1} of what is before
            before = pad(polynomial[..., :-1], (1, 0), value=1.0 if m == 1 else 0.0)
            polynomial = (odds * before).cumsum(-1)
            few.append(polynomial)
        none = torch.zeros_like(t)
        arrived = [torch.ones_like(t)]
        for h in heavy.unbind(-1):
            a = -torch.expm1(-q.gather(-1, h.unsqueeze(-1)).unsqueeze(-2) * t)  # (*batch, times, 1)
            b = a * (position >= h.unsqueeze(-1)).unsqueeze(-2)
            arrived = [(1 - a) * now + b * fewer for now, fewer in zip([*arrived, none], [none, *arrived])]
        total = torch.zeros_like(odds)
        for light_ones, heavy_ones in zip(few, reversed(list(accumulate(arrived)))):  # together at most k - 1
            total = total + light_ones * heavy_ones
        lost += torch.where(t * mass > _LATE, 0, total * torch.exp(-t * mass) * t).sum(-2)
    # what the rule leaves out before its first point, where nothing has arrived yet
    lost = _STEP * (lost + math.exp(_FROM) / math.expm1(_STEP))
    return 1 - outside * lost
