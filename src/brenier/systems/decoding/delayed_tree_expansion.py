r"""Delayed tree expansion: draft one path first, and branch where draft and target begin to differ.

A tree of K paths from the root spends its budget where the draft is still good. An *action* (K, L1, L2) draws a trunk
of L1 tokens and K paths of L2 from its end. What an action is worth at a context is the expected length of its block
over its time,

    T(l, a) = sum_{j<L1} t_q(l + j) + sum_{j<L2} t_q(l + L1 + jK) + t_p(l + L1 + K L2),

with t_q and t_p the times of draft and target at a length. The expected length is estimated from sampled trees without
drawing an outcome: given a tree, `Verification.block_efficiency` is exact, and one tree serves all actions with its
trunk. `best_action` is the best choice for all contexts; `delay_selector` learns to choose for each.

Reference: Thomas, Kitanovski, Goldblum & Pal (2026), Dynamic delayed tree expansion for improved multi-path speculative
decoding, arXiv 2602.16994.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._inputs import is_count
from ...errors import refuse
from .generation import Decoder, scored_tree
from .laws import Processing
from .models import LanguageModel
from .selectors import TokenSelector
from .tree import branching_matrix, delayed
from .verification import Verification, find_verification

__all__ = [
    "Action",
    "TimeModel",
    "all_actions",
    "best_action",
    "block_efficiencies",
    "delayed_tree_decoder",
    "measured_time",
]


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
        >>> all_actions(2, 1, 1)[-1], len(all_actions())
        (Action(num_drafts=2, trunk_length=1, branch_length=1), 233)
    """
    grid = (
        Action(k, trunk, branch)
        for k in range(1, max_drafts + 1)
        for trunk in range(max_trunk + 1)
        for branch in range(max_branch + 1)
    )
    return sorted({action.canonical for action in grid})


# -- time ----------------------------------------------------------------------------------------------------


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

    def table(
        self,
        actions: Sequence[Action],
        lengths: Tensor,  # (B,)
    ) -> Tensor:  # (B, A), float64
        """The time of each action at contexts of these lengths."""
        some, which = lengths.unique(return_inverse=True)
        rows = [[self.seconds(action, n) for action in actions] for n in some.tolist()]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(some), len(actions))[which]

    def calls(
        self,
        lengths: Tensor,  # (B,)
    ) -> Tensor:  # (B, 2), float32
        """The times of a call of the target and of the draft at contexts of these lengths."""
        some, which = lengths.unique(return_inverse=True)
        rows = [[self.target(n), self.draft(n)] for n in some.tolist()]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(some), 2)[which]


def measured_time(
    model: LanguageModel,
    text: Tensor,  # (length,)
    *,
    points: int = 4,
    repeats: int = 3,
) -> Callable[[int], float]:
    """The seconds of a call on this machine, by the number of tokens that it sees, as a part of a `TimeModel`.

    The least of some calls at some lengths, with straight lines between them; constant beyond the text.

    Args:
        model: a language model.
        text: as long as the longest context with its tree.
        points: lengths to measure.
        repeats: calls of each.

    Raises:
        InvalidInput: an empty text, or no points or repeats.
    """
    for name, value in (("text", len(text)), ("points", points), ("repeats", repeats)):
        if not is_count(value):
            refuse(name, "at least one", repr(value))
    lengths = np.unique(np.linspace(1, len(text), points).round().astype(int))
    seconds = []
    for n in lengths.tolist():
        model.logits([text[:n]])
        least = math.inf
        for _ in range(repeats):
            begin = clock.perf_counter()
            model.logits([text[:n]])
            least = min(least, clock.perf_counter() - begin)
        seconds.append(least)
    return lambda n: float(np.interp(n, lengths, seconds))


# -- what actions bring --------------------------------------------------------------------------------------


def block_efficiencies(
    target: LanguageModel,
    draft: LanguageModel,
    contexts: Sequence[Tensor],  # B tensors (length,)
    actions: Sequence[Action],
    *,
    method: str | Verification | TokenSelector = "spectr",
    processing: Processing = Processing(),
    draft_processing: Processing | None = None,
    trees: int = 4,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:  # (B, A)
    """Unbiased estimates of the block efficiency of each action at each context.

    Each is the mean over some trees of the exact expectation given the tree. Actions with the same trunk share their
    trees, which are parts of the largest one, so that differences of actions have less noise than they would have
    alone. Choose an action by these estimates on other contexts than those it is judged on: the largest of many noisy
    numbers is too large.

    Args:
        target, draft: models over one vocabulary.
        contexts: texts so far.
        actions: what to estimate.
        method: as for `Decoder`.
        processing: how the target's logits become a law.
        draft_processing: the same for the draft's; as the target's when None.
        trees: sampled for each context and trunk.
        batch_size: contexts whose trees are held at once.
        generator: of the draws.

    Raises:
        InvalidInput: no context, no action, or trees or batch_size < 1.

    Complexity: for each context and tree the models see one tree of the most drafts for each trunk length: for all 233
    actions some 300 nodes in place of 3,500. Top-down methods verify each once a number of drafts; others once a
    number of drafts and a depth.
    """
    if not contexts or not actions:
        missing = "actions" if contexts else "contexts"
        refuse(missing, f"at least one {missing[:-1]}", "none")
    for name, value in (("trees", trees), ("batch_size", batch_size)):
        if not is_count(value):
            refuse(name, "a positive integer", repr(value))
    verification = find_verification(method)
    names = [action.canonical for action in actions]
    # single paths share one tree; others with their trunk
    trunks = sorted({-1 if name.num_drafts == 1 else name.trunk_length for name in names})
    place = torch.tensor([trunks.index(-1 if name.num_drafts == 1 else name.trunk_length) for name in names])
    depth = torch.tensor([name.trunk_length + name.branch_length for name in names])
    drafts = torch.tensor([name.num_drafts for name in names])
    largest = []
    for i, trunk in enumerate(trunks):
        here = place == i
        k, levels = int(drafts[here].max()), int(depth[here].max())
        largest.append(Action(k, trunk, levels - trunk) if k > 1 else Action(1, levels, 0))
    out = torch.zeros(len(contexts), len(actions), dtype=torch.float64)
    for begin in range(0, len(contexts), batch_size):
        batch = contexts[begin : begin + batch_size]
        # one prompt for each context and trunk
        texts = [text for text in batch for _ in trunks]
        matrix = branching_matrix([action.branching for action in largest] * len(batch))
        for _ in range(trees):
            tree = None
            for k in drafts.unique(sorted=True).flip(0).tolist():
                fewer = matrix.clamp(max=k)
                if tree is None or verification.scheme == "greedy":
                    tree = scored_tree(
                        target,
                        draft,
                        texts,
                        fewer,
                        scheme=verification.scheme,
                        processing=processing,
                        draft_processing=draft_processing,
                        generator=generator,
                    )
                else:
                    tree = tree.part(fewer)
                lengths = verification.efficiency_by_depth(tree).reshape(len(batch), len(trunks), -1)
                these = drafts == k
                out[begin : begin + len(batch), these] += lengths[:, place[these], depth[these]] / trees
    return out


def best_action(
    efficiencies: Tensor,  # (B, A)
    actions: Sequence[Action],
    time: TimeModel,
    lengths: Tensor | None = None,  # (B,)
) -> tuple[Action, float]:
    """The static action of largest throughput, and this, in tokens for a unit of time.

    Throughput is total tokens over total time, not the mean of ratios.

    Args:
        efficiencies: of each context and action.
        actions: one for each column.
        time: how long they take.
        lengths: of the contexts; 0 when None.

    Raises:
        InvalidInput: other than one column for each action.
    """
    if efficiencies.dim() != 2 or efficiencies.shape[1] != len(actions) or not len(actions):
        refuse("efficiencies", f"shape (B, {len(actions)}), one column for each action", f"{tuple(efficiencies.shape)}")
    if lengths is None:
        lengths = torch.zeros(len(efficiencies), dtype=torch.long)
    throughput = efficiencies.double().sum(0) / time.table(actions, lengths).sum(0)
    best = int(throughput.argmax())
    return actions[best], float(throughput[best])


def delayed_tree_decoder(
    target: LanguageModel,
    draft: LanguageModel,
    policy: Action | Callable[[Sequence[Tensor]], Sequence[Sequence[int]]],
    method: str | Verification | TokenSelector = "specinfer",
    **options: Any,
) -> Decoder:
    """A decoder that draws delayed trees, of one action or as a policy chooses for each text.

    Args:
        target: the model whose law the text has.
        draft: a cheaper model over the same vocabulary.
        policy: an action, a `DelayPolicy`, or any function from texts to a branching for each.
        method: as for `Decoder`; what the policy was trained for.
        **options: of `Decoder`: temperature, top_p, eos_token_id, ...

    Raises:
        InvalidInput: K < 1, a negative length, models of different vocabularies, or an option out of its range.

    Example:
        >>> import torch
        >>> from brenier.systems.decoding.models import NGramLM
        >>> text = [[0, 1, 2, 1] * 30]
        >>> decoder = delayed_tree_decoder(NGramLM(text, 3, order=3), NGramLM(text, 3, order=1), Action(3, 1, 2))
        >>> out = decoder.generate(torch.tensor([0]), 30, generator=torch.Generator().manual_seed(0))
        >>> len(out.tokens[0]), out.target_calls < 30
        (30, True)
    """
    branching = policy.branching if isinstance(policy, Action) else policy
    return Decoder(target, draft, method, branching, **options)
