"""The learned part of delayed tree expansion: which tree to draft at a context, chosen from what is known before.

Offline, `collect_traces` reads the features of roots and estimates what every action would bring there, and
`train_selector` fits a small network to them; online, a `DelayPolicy` chooses for a decoder.

Reference: Thomas, Kitanovski, Goldblum & Pal (2026), Dynamic delayed tree expansion for improved multi-path speculative
decoding, arXiv 2602.16994.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..._inputs import is_count
from ...errors import refuse
from .delayed_tree_expansion import Action, TimeModel, best_action, block_efficiencies
from .laws import Processing
from .models import LanguageModel
from .selectors import TokenSelector
from .verification import Verification

__all__ = [
    "ContextFeatures",
    "DelayAndBranchSelector",
    "DelayPolicy",
    "Features",
    "LastTokens",
    "Traces",
    "collect_traces",
    "context_scalars",
    "roots",
    "throughput_loss",
    "train_selector",
]

_FLOOR = 1e-12  # of probabilities in a divergence, which truncated laws would make infinite


# -- what is known before drafting ---------------------------------------------------------------------------


def context_scalars(
    p_before: Tensor,  # (B, V)
    q_before: Tensor,  # (B, V)
    q_root: Tensor,  # (B, V)
    lengths: Tensor,  # (B,)
    processing: Processing,
) -> Tensor:  # (B, 9), float32
    """What the choice of an action may depend on before anything is drafted, without the times.

    Entropies of target and draft at the token before and of the draft at the root, KL(p | q), KL(q | p) and the L1
    distance at the token before, context length, temperature and top_p.
    """
    p, q, root = (t.double().clamp(min=_FLOOR) for t in (p_before, q_before, q_root))
    columns = [
        *(-(law * law.log()).sum(-1) for law in (p, q, root)),
        (p * (p / q).log()).sum(-1),
        (q * (q / p).log()).sum(-1),
        (p - q).abs().sum(-1),
        lengths.double(),
        torch.full_like(p[:, 0], processing.temperature),
        torch.full_like(p[:, 0], processing.top_p),
    ]
    return torch.stack(columns, -1).float()


class Features(NamedTuple):
    """What is known of contexts before drafting.

    Attributes:
        scalars: (B, 9) see `context_scalars`.
        hidden: hidden states, each (B, d).
        lengths: (B,) tokens of the contexts.
    """

    scalars: Tensor
    hidden: tuple[Tensor, ...]
    lengths: Tensor

    def rows(self, index: Tensor) -> Features:
        """Of some of the contexts."""
        return Features(self.scalars[index], tuple(h[index] for h in self.hidden), self.lengths[index])

    def timed(self, time: TimeModel) -> Tensor:  # (B, 11)
        """The scalars, and the times of a target and a draft call."""
        return torch.cat([self.scalars, time.calls(self.lengths)], -1)


@dataclass(frozen=True)
class LastTokens:
    """The last tokens of each text as indicators, in place of hidden states for models that have none.

    A linear map of them is a sum of embeddings, one table for each place.

    Args:
        n: tokens to look back.
        vocab_size: V.

    Example:
        >>> import torch
        >>> LastTokens(2, 3)([torch.tensor([0, 1, 2]), torch.tensor([1])])
        tensor([[0., 1., 0., 0., 0., 1.],
                [0., 0., 0., 0., 1., 0.]])
    """

    n: int
    vocab_size: int

    def __call__(
        self,
        texts: Sequence[Tensor],  # B tensors (length,)
    ) -> Tensor:  # (B, n V), float32
        """The indicators; zero for places before the text."""
        recent = torch.zeros(len(texts), self.n, dtype=torch.long)
        for row, text in zip(recent, texts):
            last = text[-self.n :]
            row[self.n - len(last) :] = last + 1
        return one_hot(recent, self.vocab_size + 1)[..., 1:].flatten(1).float()


@dataclass(frozen=True, eq=False)
class ContextFeatures:
    """Read the features of contexts from the models.

    The laws at the token before and at the root are what a serving engine has at hand from the last round; here they
    are asked for again, with one call of the target and two of the draft for all texts.

    Args:
        target, draft: models over one vocabulary.
        processing: how the target's logits become a law.
        draft_processing: the same for the draft's; as the target's when None.
        states: functions from texts to hidden states (B, d): of the target at the token before, of the draft there and
            at the root, or `LastTokens`; none will do.
    """

    target: LanguageModel
    draft: LanguageModel
    processing: Processing = Processing()
    draft_processing: Processing | None = None
    states: Sequence[Callable[[Sequence[Tensor]], Tensor]] = ()

    def __call__(
        self,
        texts: Sequence[Tensor],  # B tensors (length,)
    ) -> Features:
        """The features of each text."""
        own = self.draft_processing or self.processing
        before = [text[:-1] for text in texts]
        lengths = torch.tensor([len(text) for text in texts])
        p, q, root = (
            self.processing(self.target.logits(before)),
            own(self.draft.logits(before)),
            own(self.draft.logits(texts)),
        )
        scalars = context_scalars(p, q, root, lengths, self.processing)
        return Features(scalars, tuple(state(texts).float() for state in self.states), lengths)


# -- the learned choice --------------------------------------------------------------------------------------


class DelayAndBranchSelector(nn.Module):
    """A small network that chooses the action for a context.

    Hidden states of target and draft, if there are any, are mapped to 128 features each and normalised; with the
    standardised scalars they go through layers of 512 and 32 units to one logit for each action. Before training the
    base action has half of the probability.

    Args:
        actions: what there is to choose from, none twice.
        base: the place of the action that a static choice would take.
        n_scalars: scalars of a context, see `Features.timed`.
        hidden_dims: sizes of the hidden states, in the order in which `forward` takes them.
        dropout: after both layers.

    Raises:
        InvalidInput: no actions, two names of one, or a base that is none of them.

    Example:
        >>> import torch
        >>> from brenier.systems.decoding.delayed_tree_expansion import all_actions
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
    def choose(
        self,
        scalars: Tensor,  # (B, n_scalars)
        *hidden: Tensor,  # (B, hidden_dims[i])
    ) -> Tensor:  # (B,)
        """The place of the most probable action for each context."""
        training = self.training
        self.eval()
        chosen: Tensor = self(scalars, *hidden).argmax(-1)
        self.train(training)
        return chosen

    def select(
        self,
        scalars: Tensor,  # (B, n_scalars)
        *hidden: Tensor,  # (B, hidden_dims[i])
    ) -> list[Action]:
        """The most probable action for each context."""
        return [self.actions[a] for a in self.choose(scalars, *hidden).tolist()]


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


@dataclass(frozen=True, eq=False)
class Traces:
    """Roots with what was known there and what each action would have brought.

    Attributes:
        actions: what there is to choose from.
        features: of the roots.
        efficiencies: (B, A) estimated block efficiencies.
    """

    actions: tuple[Action, ...]
    features: Features
    efficiencies: Tensor

    def __len__(self) -> int:
        return len(self.efficiencies)

    def rows(self, index: Tensor) -> Traces:
        """Some of the roots."""
        return Traces(self.actions, self.features.rows(index), self.efficiencies[index])


def roots(
    texts: Sequence[Tensor],  # tensors (length,)
    every: int = 16,
    context_length: int | None = None,
) -> list[Tensor]:
    """Contexts along texts, one every some tokens.

    Args:
        texts: what the target writes, or is to read.
        every: tokens from one root to the next.
        context_length: tokens to keep of each context, and before the first root; when None the whole text so far, and
            `every` tokens before the first.

    Raises:
        InvalidInput: every < 1 or context_length < 1.

    Example:
        >>> import torch
        >>> [root.tolist() for root in roots([torch.arange(6)], every=2, context_length=3)]
        [[0, 1, 2], [2, 3, 4]]
    """
    for name, value in (("every", every), ("context_length", 1 if context_length is None else context_length)):
        if not is_count(value):
            refuse(name, "a positive integer", repr(value))
    first = context_length or every
    places = [(text, end) for text in texts for end in range(first, len(text), every)]
    return [text[0 if context_length is None else end - context_length : end] for text, end in places]


def collect_traces(
    features: ContextFeatures,
    contexts: Sequence[Tensor],  # B tensors (length,)
    actions: Sequence[Action],
    *,
    method: str | Verification | TokenSelector = "specinfer",
    trees: int = 4,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Traces:
    """Features of roots, and estimates of the block efficiency of every action there.

    Args:
        features: reads them, and holds the models and the processing of their logits.
        contexts: the roots, see `roots`.
        actions: what there is to choose from.
        method: what trees are verified with; a selector is trained for one.
        trees, batch_size, generator: as for `block_efficiencies`.

    Raises:
        InvalidInput: as for `block_efficiencies`.
    """
    efficiencies = block_efficiencies(
        features.target,
        features.draft,
        contexts,
        actions,
        method=method,
        processing=features.processing,
        draft_processing=features.draft_processing,
        trees=trees,
        batch_size=batch_size,
        generator=generator,
    )
    return Traces(tuple(actions), features(contexts), efficiencies)


def train_selector(
    traces: Traces,
    time: TimeModel,
    *,
    base: Action | None = None,
    epochs: int = 100,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    dropout: float = 0.1,
    tail_weight: float = 1.0,
    tail: float = 0.1,
    held_back: float = 0.2,
    generator: torch.Generator | None = None,
) -> tuple[DelayAndBranchSelector, list[float]]:
    """Train a selector on traces with AdamW and `throughput_loss`.

    A share of the roots is held back, and the weights are those of the epoch, the untrained one among them, with the
    best throughput there. Efficiencies are estimates: judge the selector on other contexts, with trees of their own.

    Args:
        traces: roots, their features and what actions bring.
        time: how long actions take.
        base: the action of the loss's comparison and of the untrained selector; the best static one when None.
        epochs, batch_size, lr, weight_decay, dropout: of the training.
        tail_weight, tail: of the loss.
        held_back: the share of roots that chooses the epoch; with 0 the last one is taken.
        generator: of weights, dropout and batches.

    Returns:
        the selector, and the mean loss of each epoch.

    Raises:
        InvalidInput: a base that is none of the actions, or a share that leaves no roots to train on.
    """
    seconds = time.table(traces.actions, traces.features.lengths)
    if base is None:
        base, _ = best_action(traces.efficiencies, traces.actions, time, traces.features.lengths)
    if base not in traces.actions:
        refuse("base", "one of the actions", repr(base))
    n_back = round(held_back * len(traces))
    if not 0 <= held_back < 1 or n_back >= len(traces):
        refuse("held_back", "a share in [0, 1) that leaves roots to train on", f"{held_back} of {len(traces)}")
    scalars = traces.features.timed(time)
    efficiencies, times = traces.efficiencies.float(), seconds.float()
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):  # weights and dropout are drawn from the global state
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        selector = DelayAndBranchSelector(
            traces.actions,
            traces.actions.index(base),
            scalars.shape[1],
            [h.shape[1] for h in traces.features.hidden],
            dropout,
        )
        back, train = torch.randperm(len(traces)).split([n_back, len(traces) - n_back])
        selector.standardise(scalars[train])
        optimizer = torch.optim.AdamW(selector.parameters(), lr=lr, weight_decay=weight_decay)
        best, state = _chosen_throughput(selector, scalars, traces, seconds, back), copy.deepcopy(selector.state_dict())
        for _ in range(epochs):
            selector.train()
            total = 0.0
            for rows in train[torch.randperm(len(train))].split(batch_size):
                logits = selector(scalars[rows], *(h[rows] for h in traces.features.hidden))
                loss = throughput_loss(
                    logits, efficiencies[rows], times[rows], selector.base, tail_weight=tail_weight, tail=tail
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(train))
            now = _chosen_throughput(selector, scalars, traces, seconds, back)
            if now > best or not n_back:
                best, state = now, copy.deepcopy(selector.state_dict())
    selector.load_state_dict(state)
    selector.eval()
    return selector, losses


def _chosen_throughput(
    selector: DelayAndBranchSelector, scalars: Tensor, traces: Traces, seconds: Tensor, rows: Tensor
) -> float:
    """Tokens over time of what a selector chooses at some roots; 0 without roots."""
    if not len(rows):
        return 0.0
    chosen = selector.choose(scalars[rows], *(h[rows] for h in traces.features.hidden))
    return float(traces.efficiencies[rows, chosen].sum() / seconds[rows, chosen].sum())


@dataclass(frozen=True, eq=False)
class DelayPolicy:
    """A selector as a decoder uses it: from texts to the branching of each.

    Args:
        selector: trained on traces of `features`.
        features: reads what it looks at.
        time: the times that it was trained with.
    """

    selector: DelayAndBranchSelector
    features: ContextFeatures
    time: TimeModel

    def choose(self, features: Features) -> list[Action]:
        """The action for each context of which these features are known."""
        return self.selector.select(features.timed(self.time), *features.hidden)

    def __call__(
        self,
        texts: Sequence[Tensor],  # B tensors (length,)
    ) -> list[tuple[int, ...]]:
        """The branching for each text."""
        return [action.branching for action in self.choose(self.features(texts))]
