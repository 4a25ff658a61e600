r"""Delayed tree expansion: draft one path first, and branch where draft and target begin to differ.

A tree of K paths from the root spends its budget where the draft is still good. An *action* (K, L1, L2) draws a trunk of
L1 tokens and K paths of L2 from its end. What an action is worth at a context is the expected length of its block over
its time,

    T(l, a) = sum_{j<L1} t_q(l + j) + sum_{j<L2} t_q(l + L1 + jK) + t_p(l + L1 + K L2),

with t_q and t_p the times of draft and target at a length. The expected length is estimated from sampled trees without
drawing an outcome: given a tree, `Verification.block_efficiency` is exact.

Reference: Thomas, Kitanovski, Goldblum & Pal (2026), Dynamic delayed tree expansion for improved multi-path speculative
decoding, arXiv 2602.16994.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._inputs import is_count
from ...errors import refuse
from .generation import scored_tree
from .laws import Processing
from .models import LanguageModel
from .selectors import TokenSelector
from .tree import branching_matrix, delayed
from .verification import Verification, find_verification

__all__ = ["Action", "TimeModel", "all_actions", "best_action", "block_efficiencies"]


class Action(NamedTuple):
    """One path of `trunk_length`, then `num_drafts` paths of `branch_length`."""

    num_drafts: int
    trunk_length: int
    branch_length: int

    @property
    def branching(self) -> tuple[int, ...]:
        """As trees are told it."""
        return delayed(*self)

    @property
    def canonical(self) -> Action:
        """The one name of actions that draw the same trees: without branches or with one draft, a trunk is all."""
        if self.branch_length == 0 or self.num_drafts == 1:
            return Action(1, self.trunk_length + self.branch_length, 0)
        return self


def all_actions(max_drafts: int = 4, max_trunk: int = 8, max_branch: int = 8) -> list[Action]:
    """The different actions within these bounds.

    Example:
        >>> all_actions(2, 1, 1)[:2], len(all_actions())
        ([Action(num_drafts=1, trunk_length=0, branch_length=0), Action(num_drafts=1, trunk_length=1, branch_length=0)], 233)
    """
    grid = (
        Action(k, trunk, branch)
        for k in range(1, max_drafts + 1)
        for trunk in range(max_trunk + 1)
        for branch in range(max_branch + 1)
    )
    return sorted({action.canonical for action in grid})


@dataclass(frozen=True)
class TimeModel:
    """How long an action takes.

    Args:
        draft: the time of a call of the draft model, from the number of tokens it sees.
        target: the same of the target.

    Example:
        >>> TimeModel(lambda n: 0.1, lambda n: 1 + 0.02 * n).seconds(Action(4, 2, 3))
        1.78
    """

    draft: Callable[[int], float]
    target: Callable[[int], float]

    def seconds(self, action: Action, context_length: int = 0) -> float:
        """The time of drafting and scoring one tree."""
        k, trunk, branch = action
        begin = context_length + trunk
        drafting = sum(self.draft(context_length + j) for j in range(trunk))
        drafting += sum(self.draft(begin + j * k) for j in range(branch))
        return drafting + self.target(begin + k * branch)


def block_efficiencies(
    target: LanguageModel,
    draft: LanguageModel,
    contexts: Sequence[Tensor],  # B tensors (length,)
    actions: Sequence[Action],
    *,
    method: str | Verification | TokenSelector = "spectr",
    processing: Processing = Processing(),
    trees: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:  # (B, A)
    """Unbiased estimates of the block efficiency of each action at each context.

    Each is the mean over some trees of the exact expectation given the tree. Choose an action by these estimates on
    other contexts than those it is judged on: the largest of many noisy numbers is too large.

    Raises:
        InvalidInput: no context, or trees < 1.
    """
    if not contexts:
        refuse("contexts", "at least one context", "none")
    if not is_count(trees):
        refuse("trees", "a positive integer", repr(trees))
    verification = find_verification(method)
    out = torch.zeros(len(contexts), len(actions), dtype=torch.float64)
    for a, action in enumerate(actions):
        matrix = branching_matrix([action.branching] * len(contexts))
        for _ in range(trees):
            tree = scored_tree(
                target, draft, contexts, matrix, scheme=verification.scheme, processing=processing, generator=generator
            )
            out[:, a] += verification.block_efficiency(tree) / trees
    return out


def best_action(
    efficiencies: Tensor,  # (B, A)
    actions: Sequence[Action],
    time: TimeModel,
) -> tuple[Action, float]:
    """The static action of largest throughput, and this, in tokens for a unit of time.

    Throughput is total tokens over total time, not the mean of ratios.

    Raises:
        InvalidInput: other than one column for each action.
    """
    if efficiencies.dim() != 2 or efficiencies.shape[1] != len(actions) or not len(actions):
        refuse("efficiencies", f"shape (B, {len(actions)}), one column for each action", f"{tuple(efficiencies.shape)}")
    seconds = torch.tensor([time.seconds(action) for action in actions], dtype=efficiencies.dtype)
    throughput = efficiencies.mean(0) / seconds
    best = int(throughput.argmax())
    return actions[best], float(throughput[best])
