"""Robust reward learning: rewards as Gaussians, fitted to comparisons that may be wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ...._inputs import is_count, is_real
from ....errors import refuse

__all__ = ["GaussianRewardModel", "robust_preference_loss", "train_reward"]

Segment = tuple[Tensor, Tensor]  # observations (B, H, o) and actions (B, H, a)

_BACKBONES = ("mlp", "transformer")
_LOG_STD = (-5.0, 3.0)  # the range that log sigma is clamped to
_FIRST_LOG_STD = -1.0
_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a standard normal


class Heads(NamedTuple):
    """Rewards of the steps of segments, and what each step counts."""

    mean: Tensor  # (B, H)
    log_std: Tensor  # (B, H)
    weight: Tensor  # (B, H)

    def scores(self, n_samples: int) -> Tensor:
        """Draws of the weighted sum of rewards, (n_samples, B); (1, B) of the means for no draws."""
        if not n_samples:
            return (self.weight * self.mean).sum(-1).unsqueeze(0)
        noise = torch.randn(n_samples, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        return (self.weight * (self.mean + self.log_std.exp() * noise)).sum(-1)


class GaussianRewardModel(nn.Module):
    r"""Rewards r_t ~ N(mu_t, sigma_t^2) of the steps of a trajectory, and what they say about comparisons.

    .. math:: \Pr(x^0 \succ x^1) = \mathbb E\; \mathrm{sigmoid}\Big(\sum_t w^0_t r^0_t - \sum_t w^1_t r^1_t\Big),
        \qquad r_t = \mu_t + \sigma_t \xi_t

    a mean over draws of xi. With the backbone "mlp" a step sees its own observation and action, and all weights are
    one. With "transformer" it sees those before it too, and the weights of a segment sum to one: they are how much
    attention its steps receive in one bidirectional layer (the preference transformer).

    Args:
        obs_dim, act_dim: numbers of coordinates.
        backbone: "mlp", two hidden layers, or "transformer", one causal layer with four heads over states and actions.
        n_samples: draws of the noise; 0 takes the means alone, which is the model of Bradley and Terry.
        hidden: width.
        dropout: of the transformer.
        max_length: steps that the transformer can take.

    Raises:
        InvalidInput: sizes that are no positive integers, a width that the heads do not divide, another backbone.

    Example:
        >>> import torch
        >>> model = GaussianRewardModel(3, 2)
        >>> mean, std = model(torch.zeros(4, 10, 3), torch.zeros(4, 10, 2))
        >>> mean.shape, bool((std > 0).all())
        (torch.Size([4, 10]), True)
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        backbone: str = "mlp",
        n_samples: int = 5,
        *,
        hidden: int = 256,
        dropout: float = 0.1,
        max_length: int = 500,
    ) -> None:
        super().__init__()
        sizes = {"obs_dim": obs_dim, "act_dim": act_dim, "hidden": hidden, "max_length": max_length}
        for name, value in sizes.items():
            if not is_count(value):
                refuse(name, "a positive integer", repr(value))
        if n_samples != 0 and not is_count(n_samples):
            refuse("n_samples", "an integer >= 0", repr(n_samples))
        if backbone not in _BACKBONES:
            refuse("backbone", "one of " + ", ".join(map(repr, _BACKBONES)), repr(backbone))
        if backbone == "transformer" and hidden % _Causal.heads:
            refuse("hidden", f"a multiple of {_Causal.heads} for the transformer", hidden)
        self.obs_dim, self.act_dim, self.backbone, self.n_samples = obs_dim, act_dim, backbone, n_samples
        self.register_buffer("shift", torch.zeros(obs_dim + act_dim))
        self.register_buffer("scale", torch.ones(obs_dim + act_dim))
        self.body: nn.Module
        self.attention: nn.Module | None = None
        if backbone == "mlp":
            self.body = nn.Sequential(
                nn.Linear(obs_dim + act_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
            )
        else:
            self.body = _Causal(obs_dim, hidden, act_dim, dropout, max_length)
            self.attention = nn.Linear(hidden, 2 * hidden)  # queries and keys
        self.head = nn.Linear(hidden, 2)
        with torch.no_grad():
            self.head.bias[1] = _FIRST_LOG_STD

    def standardise(
        self,
        obs: Tensor,  # (..., o)
        act: Tensor,  # (..., a)
    ) -> None:
        """Take mean and scale of observations and actions from data; constant coordinates are only centred."""
        both = torch.cat([obs, act], -1).flatten(0, -2)
        spread = both.std(0, correction=0)
        self.shift.copy_(both.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1))

    def forward(
        self,
        obs: Tensor,  # (B, H, o)
        act: Tensor,  # (B, H, a)
    ) -> tuple[Tensor, Tensor]:  # (B, H), (B, H)
        """Mean and standard deviation of the reward of each step."""
        heads = self.heads(obs, act)
        return heads.mean, heads.log_std.exp()

    def heads(
        self,
        obs: Tensor,  # (B, H, o)
        act: Tensor,  # (B, H, a)
    ) -> Heads:
        """Mean and logarithm of the standard deviation of each reward, and the weight of each step."""
        if obs.dim() != 3 or act.shape != (*obs.shape[:2], self.act_dim) or obs.shape[2] != self.obs_dim:
            expected = f"shapes (B, H, {self.obs_dim}) and (B, H, {self.act_dim})"
            refuse("obs and act", expected, f"{tuple(obs.shape)} and {tuple(act.shape)}")
        features = self.body((torch.cat([obs, act], -1) - self.shift) / self.scale)
        mean, log_std = self.head(features).unbind(-1)
        if self.attention is None:
            weight = torch.ones_like(mean)
        else:
            query, key = self.attention(features).chunk(2, -1)
            weight = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1).mean(1)
        return Heads(mean, log_std.clamp(*_LOG_STD), weight)

    def preference(
        self,
        seg0: Segment,
        seg1: Segment,
    ) -> Tensor:  # (B,)
        """The probability that the first segment of each pair is preferred; it draws from the global random state."""
        return self.log_preference(self.heads(*seg0), self.heads(*seg1))[0].exp()

    def log_preference(self, heads0: Heads, heads1: Heads) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities of both answers, (B,) each, without cancellation."""
        margin = heads0.scores(self.n_samples) - heads1.scores(self.n_samples)
        draws = math.log(len(margin))
        return logsigmoid(margin).logsumexp(0) - draws, logsigmoid(-margin).logsumexp(0) - draws


class _Causal(nn.Module):
    """A transformer over s_1, a_1, s_2, a_2, ...; the features of a step are those at its action."""

    heads = 4

    def __init__(self, obs_dim: int, hidden: int, act_dim: int, dropout: float, max_length: int) -> None:
        super().__init__()
        self.obs_dim, self.max_length = obs_dim, max_length
        self.states, self.actions = nn.Linear(obs_dim, hidden), nn.Linear(act_dim, hidden)
        self.places = nn.Embedding(max_length, hidden)
        layer = nn.TransformerEncoderLayer(
            hidden, self.heads, 4 * hidden, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(hidden), enable_nested_tensor=False)

    def forward(self, steps: Tensor) -> Tensor:
        """Features (B, H, hidden) of steps (B, H, o + a)."""
        length = steps.shape[1]
        if length > self.max_length:
            refuse("segment", f"at most max_length={self.max_length} steps", length)
        place = self.places.weight[:length]
        states = self.states(steps[..., : self.obs_dim]) + place
        actions = self.actions(steps[..., self.obs_dim :]) + place
        tokens = torch.stack([states, actions], 2).flatten(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(2 * length, device=tokens.device, dtype=tokens.dtype)
        out: Tensor = self.layers(tokens, mask=mask, is_causal=True)
        return out[:, 1::2]


def robust_preference_loss(
    model: GaussianRewardModel,
    seg0: Segment,
    seg1: Segment,
    label: Tensor,  # (B,)
    lam: float = 0.01,
    eta: float = 0.0,
) -> Tensor:  # ()
    r"""Cross-entropy of comparisons under Gaussian rewards, and a hinge on their entropy.

    .. math:: -\big(z \log P + (1 - z) \log(1 - P)\big) + \lambda\, \mathrm{mean}_t\, (\eta - h_t)_+,
        \qquad h_t = \tfrac12 \log(2 \pi e\, \sigma_t^2)

    The hinge keeps the spread from collapsing, where the rest would be plain cross-entropy.

    Args:
        model: of the rewards.
        seg0, seg1: observations (B, H, o) and actions (B, H, a) of both segments of each pair.
        label: z in [0, 1], 1 where the first is preferred.
        lam: weight of the hinge.
        eta: entropy, in nats, below which it acts: 0 is a standard deviation of 0.24.

    Raises:
        InvalidInput: shapes that do not fit, or a negative weight.
    """
    if not (is_real(lam) and 0 <= lam < math.inf and is_real(eta)):
        refuse("lam and eta", "a number >= 0 and a number", f"{lam!r} and {eta!r}")
    heads0, heads1 = model.heads(*seg0), model.heads(*seg1)
    yes, no = model.log_preference(heads0, heads1)
    if label.shape != yes.shape:
        refuse("label", f"shape {tuple(yes.shape)}, one for each pair", f"shape {tuple(label.shape)}")
    entropy = _ENTROPY + torch.cat([heads0.log_std.flatten(), heads1.log_std.flatten()])
    return -(label * yes + (1 - label) * no).mean() + lam * (eta - entropy).clamp(min=0).mean()


def train_reward(
    model: GaussianRewardModel,
    obs: Tensor,  # (N, H, o)
    act: Tensor,  # (N, H, a)
    pairs: Tensor,  # (P, 2)
    labels: Tensor,  # (P,)
    *,
    segment: int | None = None,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    lam: float = 0.01,
    eta: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Fit a reward model to comparisons of whole trajectories, with AdamW.

    Args:
        model: is standardised on these trajectories, trained in place, and left in evaluation mode.
        obs, act: the trajectories.
        pairs: indices of the trajectories that were compared.
        labels: in [0, 1], 1 where the first of the pair is preferred.
        segment: cut pairs to windows of so many steps, at the same random time in both; None for whole ones.
        steps: of the optimiser.
        batch_size: pairs of a step, drawn with replacement.
        lr, weight_decay: of AdamW.
        lam, eta: of `robust_preference_loss`.
        seed: of batches, windows, noise and dropout; the global random state is left as it was.

    Returns:
        the loss of each step.

    Raises:
        InvalidInput: no pairs, shapes that do not fit, a segment longer than the trajectories.
    """
    if pairs.dim() != 2 or pairs.shape[1] != 2 or not len(pairs) or labels.shape != pairs.shape[:1]:
        got = f"{tuple(pairs.shape)} and {tuple(labels.shape)}"
        refuse("pairs and labels", "shapes (P, 2) and (P,), P >= 1", got)
    length = obs.shape[1] if segment is None else segment
    if not is_count(length) or length > obs.shape[1]:
        refuse("segment", f"an integer from 1 to {obs.shape[1]}, the steps of a trajectory", repr(segment))
    model.standardise(obs, act)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    labels = labels.to(obs)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):  # noise and dropout draw from the global state
        torch.manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(pairs), (min(batch_size, len(pairs)),))
            begin = torch.randint(obs.shape[1] - length + 1, (len(chosen), 1))
            window = begin + torch.arange(length)
            first, second = ((obs[i.unsqueeze(1), window], act[i.unsqueeze(1), window]) for i in pairs[chosen].T)
            loss = robust_preference_loss(model, first, second, labels[chosen], lam, eta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    model.eval()
    return losses
