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
from .laws import Scheme, check_scheme, check_support, draft_tuples, member, read_laws, without

__all__ = ["MembershipOT", "draft_sets", "membership_ot", "otm_acceptance"]

# the integral over arrival times, by the trapezoid rule in s = log t
_STEP, _FROM, _LATE = 0.2, -16.0, 100.0  # up to the time at which e^-100 is left
_RACE_BLOCK = 2**21  # entries of (tokens, times) held at once


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

    Complexity: O(V log V) a row with replacement, greedily, and without replacement for k = 2; without replacement for
    larger k O(k^2 V) for each of some 100 arrival times, in blocks. There Pr(X in H) is an integral over the time t
    at which the first token outside H would arrive if tokens arrived by independent exponential clocks with rates q,

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
    ratio = torch.where(q > 0, q.log() - p.log(), -math.inf)
    order = ratio.argsort(dim=-1, descending=True, stable=True)
    p, q = p.gather(-1, order), q.gather(-1, order)
    inside = q.cumsum(-1)
    if scheme == "with_replacement" or k == 1:
        all_in = inside**k
    else:
        check_support(q, k)
        outside = _after(q)
        all_in = _two_distinct(q, inside, outside) if k == 2 else _race(q, outside, k)
    value, last = (p.cumsum(-1) - all_in).min(-1)
    chosen = torch.zeros_like(p, dtype=torch.bool)
    size = torch.where(value < 0, last + 1, 0).unsqueeze(-1)  # the empty set gives 0
    chosen.scatter_(-1, order, torch.arange(p.shape[-1], device=p.device) < size)
    return 1 + value.clamp(max=0), chosen


def _after(q: Tensor) -> Tensor:
    """The mass behind each token, summed from the end, so that small masses keep their digits."""
    return pad(q.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))


def _two_distinct(q: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Pr(both drafts in the prefix): sum_i q_i (q(H) - q_i)/(1 - q_i) = q(H) - q(H^c) sum_{i in H} q_i/(1 - q_i)."""
    top = q.argmax(-1, keepdim=True)
    # 1 - q_i loses digits where q_i is near 1
    rest = (1 - q).scatter(-1, top, q.scatter(-1, top, 0).sum(-1, keepdim=True))
    return inside - outside * (q / rest).cumsum(-1)


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
