r"""Delayed tree expansion: draft one path first, and branch where draft and target begin to differ.

A tree of K paths from the root spends its budget where the draft is still good. An *action* (K, L1, L2) draws a trunk
of L1 tokens and K paths of L2 from its end. What an action is worth at a context is the expected length of its block
over its time,

    T(l, a) = sum_{j<L1} t_q(l + j) + sum_{j<L2} t_q(l + L1 + jK) + t_p(l + L1 + K L2),

with t_q and t_p the times of draft and target at a length. The expected length is estimated from sampled trees without
drawing an outcome: given a tree, `Verification.block_efficiency` is exact.

Reference: Thomas, Kitanovski, Goldblum & Pal (2026), Dynamic delayed tree expansion for improved multi-path speculative
decoding, arXiv 2602.16994.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._inputs import is_count
from ...errors import refuse
from .generation import scored_tree
from .laws import Processing
from .models import LanguageModel
from .selectors import TokenSelector
from .tree import branching_matrix, delayed
from .verification import Verification, find_verification

__all__ = [
    "Action",
    "DelayAndBranchSelector",
    "TimeModel",
    "all_actions",
    "best_action",
    "block_efficiencies",
    "context_scalars",
    "throughput_loss",
    "train_selector",
]

_FLOOR = 1e-12  # of probabilities in a divergence, which truncated laws would make infinite


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


# -- the learned choice --------------------------------------------------------------------------------------


def context_scalars(
    p_before: Tensor,  # (B, V)
    q_before: Tensor,  # (B, V)
    q_root: Tensor,  # (B, V)
    lengths: Tensor,  # (B,)
    processing: Processing,
    time: TimeModel,
) -> Tensor:  # (B, 11), float32
    """What the choice of an action may depend on before anything is drafted.

    Entropies of target and draft at the token before and of the draft at the root, KL(p | q), KL(q | p) and the L1
    distance at the token before, context length, temperature, top_p, and the times of a target and a draft call.
    """
    p, q, root = (t.double().clamp(min=_FLOOR) for t in (p_before, q_before, q_root))
    sizes = lengths.tolist()
    columns = [
        *(-(law * law.log()).sum(-1) for law in (p, q, root)),
        (p * (p / q).log()).sum(-1),
        (q * (q / p).log()).sum(-1),
        (p - q).abs().sum(-1),
        lengths.double(),
        torch.full_like(p[:, 0], processing.temperature),
        torch.full_like(p[:, 0], processing.top_p),
        p.new_tensor([time.target(n) for n in sizes]),
        p.new_tensor([time.draft(n) for n in sizes]),
    ]
    return torch.stack(columns, -1).float()


class DelayAndBranchSelector(nn.Module):
    """A small network that chooses the action for a context.

    Hidden states of target and draft, if there are any, are mapped to 128 features each and normalised; with the
    standardised scalars they go through layers of 512 and 32 units to one logit for each action. Before training the
    base action has half of the probability.

    Args:
        actions: what there is to choose from, none twice.
        base: the place of the action that a static choice would take.
        n_scalars: scalars of a context, see `context_scalars`.
        hidden_dims: sizes of the hidden states, in the order in which `forward` takes them.
        dropout: after both layers.

    Raises:
        InvalidInput: no actions, two names of one, or a base that is none of them.

    Example:
        >>> import torch
        >>> actions = all_actions(2, 1, 2)
        >>> selector = DelayAndBranchSelector(actions, base=3)
        >>> selector.select(torch.zeros(1, 11)) == [actions[3]]
        True
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        actions: Sequence[Action],
        base: int,
        n_scalars: int = 11,
        hidden_dims: Sequence[int] = (),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not actions or len({action.canonical for action in actions}) < len(actions):
            refuse("actions", "actions that draw different trees", f"{len(actions)}, some of them the same")
        if not 0 <= base < len(actions):
            refuse("base", f"the place of an action, 0..{len(actions) - 1}", repr(base))
        self.actions, self.base = tuple(actions), base
        self.maps = nn.ModuleList(nn.Sequential(nn.Linear(d, 128), nn.LayerNorm(128)) for d in hidden_dims)
        last = nn.Linear(32, len(actions))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.bias[base] = math.log(max(len(actions) - 1, 1))
        self.layers = nn.Sequential(
            nn.Linear(128 * len(hidden_dims) + n_scalars, 512),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(512, 32),
            nn.GELU(),
            nn.Dropout(dropout),
            last,
        )
        self.register_buffer("mean", torch.zeros(n_scalars))
        self.register_buffer("scale", torch.ones(n_scalars))

    def standardise(
        self,
        scalars: Tensor,  # (B, n_scalars)
    ) -> None:
        """Take mean and scale of the scalars from training contexts; constant ones are only centred."""
        spread = scalars.std(0, correction=0)
        self.mean.copy_(scalars.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1))

    def forward(
        self,
        scalars: Tensor,  # (B, n_scalars)
        *hidden: Tensor,  # (B, hidden_dims[i])
    ) -> Tensor:  # (B, A)
        """Logits of the actions."""
        if len(hidden) != len(self.maps):
            refuse("hidden", f"{len(self.maps)} tensors of hidden states", f"{len(hidden)}")
        states = [layer(h) for layer, h in zip(self.maps, hidden)]
        logits: Tensor = self.layers(torch.cat([*states, (scalars - self.mean) / self.scale], -1))
        return logits

    @torch.no_grad()
    def select(
        self,
        scalars: Tensor,  # (B, n_scalars)
        *hidden: Tensor,  # (B, hidden_dims[i])
    ) -> list[Action]:
        """The most probable action for each context."""
        training = self.training
        self.eval()
        chosen = self(scalars, *hidden).argmax(-1).tolist()
        self.train(training)
        return [self.actions[a] for a in chosen]


def throughput_loss(
    logits: Tensor,  # (B, A)
    efficiencies: Tensor,  # (B, A)
    seconds: Tensor,  # (B, A)
    base: int,
    *,
    tail_weight: float = 1.0,
    tail: float = 0.1,
) -> Tensor:  # ()
    r"""The loss of a choice of actions: its throughput beside that of a static choice, with a price on bad losers.

    mean(-log R) + tail_weight * mean over the worst share `tail` of the batch of (1 - R)_+^2,
    R = (sum_a pi_a E_a / sum_a pi_a T_a) / (E_base / T_base),   pi = softmax(logits).
    """
    pi = logits.softmax(-1)
    ratio = (pi * efficiencies).sum(-1) / (pi * seconds).sum(-1) * seconds[:, base] / efficiencies[:, base]
    worst = max(1, round(tail * len(ratio)))
    return -ratio.log().mean() + tail_weight * (1 - ratio).clamp(min=0).square().topk(worst).values.mean()


def train_selector(
    selector: DelayAndBranchSelector,
    scalars: Tensor,  # (B, n_scalars)
    efficiencies: Tensor,  # (B, A)
    seconds: Tensor,  # (B, A)
    *,
    hidden: Sequence[Tensor] = (),  # (B, hidden_dims[i])
    epochs: int = 100,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    tail_weight: float = 1.0,
    tail: float = 0.1,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Train a selector on estimated block efficiencies of all actions, with AdamW.

    Efficiencies are estimates: judge the selector on other contexts, with trees of their own.

    Returns:
        the mean loss of each epoch.

    Raises:
        InvalidInput: tensors that do not have one row for each context and one column for each action.
    """
    shape = (len(scalars), len(selector.actions))
    if efficiencies.shape != shape or seconds.shape != shape:
        got = f"{tuple(efficiencies.shape)} and {tuple(seconds.shape)}"
        refuse("efficiencies and seconds", f"shape {shape}, contexts by actions", got)
    efficiencies, seconds = efficiencies.to(scalars.dtype), seconds.to(scalars.dtype)
    selector.standardise(scalars)
    selector.train()
    optimizer = torch.optim.AdamW(selector.parameters(), lr=lr, weight_decay=weight_decay)
    losses = []
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global state
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        for _ in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(scalars)).split(batch_size):
                logits = selector(scalars[rows], *(h[rows] for h in hidden))
                loss = throughput_loss(
                    logits, efficiencies[rows], seconds[rows], selector.base, tail_weight=tail_weight, tail=tail
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(scalars))
    selector.eval()
    return losses
