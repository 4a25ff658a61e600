"""A small offline trainer: implicit Q-learning on trajectories with rewards."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...._inputs import check_finite, float_tensor, is_count, is_real
from ....errors import refuse

__all__ = ["GaussianPolicy", "Transitions", "iql", "normalised_rewards", "transitions"]

_LOG_STD = (-5.0, 2.0)


class Transitions(NamedTuple):
    """Steps of trajectories, without the last of each, of which the next observation is not known."""

    observations: Tensor  # (n, o)
    actions: Tensor  # (n, a), in [-1, 1]
    rewards: Tensor  # (n,)
    next_observations: Tensor  # (n, o)


def transitions(
    obs: Any,  # (N, H, o)
    act: Any,  # (N, H, a)
    rewards: Any,  # (N, H)
) -> Transitions:
    """The N (H - 1) transitions of trajectories, in float32; none of them ends an episode.

    Raises:
        InvalidInput: shapes that do not fit, fewer than two steps, or NaN.
    """
    o, a, r = (float_tensor(t, name).float() for t, name in ((obs, "obs"), (act, "act"), (rewards, "rewards")))
    if o.dim() != 3 or a.dim() != 3 or a.shape[:2] != o.shape[:2] or r.shape != o.shape[:2] or o.shape[1] < 2:
        got = ", ".join(str(tuple(t.shape)) for t in (o, a, r))
        refuse("obs, act and rewards", "shapes (N, H, o), (N, H, a) and (N, H), H >= 2", got)
    for t, name in ((o, "obs"), (a, "act"), (r, "rewards")):
        check_finite(t, name, "finite numbers")
    parts = (o[:, :-1], a[:, :-1], r[:, :-1], o[:, 1:])
    return Transitions(*(t.flatten(0, 1) for t in parts))


def normalised_rewards(
    rewards: Tensor,  # (N, H)
) -> Tensor:  # (N, H)
    """Rewards of mean zero, on a scale where the returns of the trajectories differ by H at most.

    A comparison fixes rewards up to a constant for each step only, so the mean carries nothing. For a thousand steps
    the scale is that of offline RL, a thousand over the range of the returns.

    Raises:
        InvalidInput: returns that are all the same.
    """
    returns = rewards.sum(1)
    spread = float(returns.max() - returns.min())
    if not 0 < spread < math.inf:
        refuse("rewards", "finite returns that differ", f"a range of {spread:g}")
    return (rewards - rewards.mean()) * (rewards.shape[1] / spread)


class GaussianPolicy(nn.Module):
    """Actions in [-1, 1] from observations: the tanh of a network, with one spread for each coordinate.

    Args:
        obs_dim, act_dim: numbers of coordinates.
        hidden: width of the two hidden layers.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, obs_dim: int, act_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(obs_dim))
        self.register_buffer("scale", torch.ones(obs_dim))
        self.layers = _network(obs_dim, act_dim, hidden)
        self.log_std = nn.Parameter(torch.zeros(act_dim))

    def forward(
        self,
        obs: Tensor,  # (..., o)
    ) -> Tensor:  # (..., a)
        """The mean action."""
        out: Tensor = self.layers((obs - self.shift) / self.scale).tanh()
        return out

    def log_prob(
        self,
        obs: Tensor,  # (..., o)
        actions: Tensor,  # (..., a)
    ) -> Tensor:  # (...,)
        """The logarithm of the density of actions."""
        spread = self.log_std.clamp(*_LOG_STD).exp()
        return torch.distributions.Normal(self(obs), spread, validate_args=False).log_prob(actions).sum(-1)

    @torch.no_grad()
    def act(
        self,
        obs: ArrayLike,  # (o,)
    ) -> Any:  # (a,)
        """The mean action at one observation, as an array: what an environment is stepped with."""
        return self(torch.as_tensor(obs, dtype=torch.float32, device=self.shift.device)).cpu().numpy()


def _network(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def iql(
    dataset: Transitions,
    *,
    steps: int = 10_000,
    batch_size: int = 256,
    gamma: float = 0.99,
    expectile: float = 0.7,
    temperature: float = 3.0,
    max_weight: float = 100.0,
    rate: float = 0.005,
    lr: float = 3e-4,
    hidden: int = 256,
    seed: int = 0,
) -> GaussianPolicy:
    r"""Train a policy on a fixed set of transitions by implicit Q-learning.

    V is an expectile of Q over the actions of the data, Q the reward and the discounted V of what follows (the lesser
    of two networks, slowly averaged), and the policy a regression on the actions that weighs by the advantage:

    .. math:: \min_V |\tau - 1_{Q < V}| (Q - V)^2, \qquad \min_Q (r + \gamma V' - Q)^2, \qquad
        \max_\pi \min(e^{\beta (Q - V)}, w)\, \log \pi(a \mid s)

    Args:
        dataset: the transitions, with rewards on the scale of `normalised_rewards`.
        steps, batch_size, lr: of Adam, for all networks.
        gamma: discount.
        expectile: tau in (0, 1); above 1/2 V leans to the better actions.
        temperature: beta >= 0; 0 is behaviour cloning.
        max_weight: w, where weights are clipped.
        rate: at which the averaged Q follows.
        hidden: width of the two hidden layers of each network.
        seed: of networks and batches; the global random state is left as it was.

    Returns:
        the policy, in evaluation mode; `policy.act(observation)` steps an environment.

    Raises:
        InvalidInput: an option out of its range.

    Complexity: each step takes some fourteen passes of a batch through a network.

    Source: Kostrikov, Nair & Levine (2022), Offline reinforcement learning with implicit Q-learning.
    """
    for name, count in (("steps", steps), ("batch_size", batch_size), ("hidden", hidden)):
        if not is_count(count):
            refuse(name, "a positive integer", repr(count))
    for name, value, least, most in (
        ("gamma", gamma, 0, 1), ("expectile", expectile, 0, 1), ("rate", rate, 0, 1),
        ("temperature", temperature, 0, math.inf), ("max_weight", max_weight, 0, math.inf), ("lr", lr, 0, math.inf),
    ):  # fmt: skip
        if not (is_real(value) and least <= value <= most and value < math.inf):
            refuse(name, f"a finite number from {least} to {most}", repr(value))
    obs, act, rewards, following = dataset
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = GaussianPolicy(obs.shape[1], act.shape[1], hidden).to(obs.device)
        spread = obs.std(0, correction=0)
        policy.shift.copy_(obs.mean(0))
        policy.scale.copy_(torch.where(spread > 1e-6, spread, 1))
        z, following = ((t - policy.shift) / policy.scale for t in (obs, following))
        critics = nn.ModuleList(_network(obs.shape[1] + act.shape[1], 1, hidden) for _ in range(2)).to(obs.device)
        slow = deepcopy(critics).requires_grad_(False)
        value_net = _network(obs.shape[1], 1, hidden).to(obs.device)
        nets = (policy, critics, value_net)
        optimizers = [torch.optim.Adam(net.parameters(), lr=lr) for net in nets]
        for _ in range(steps):
            rows = torch.randint(len(obs), (min(batch_size, len(obs)),)).to(obs.device)
            o, a, r, n = z[rows], act[rows], rewards[rows], following[rows]
            both = torch.cat([o, a], -1)
            with torch.no_grad():
                target = torch.minimum(*(q(both).squeeze(-1) for q in slow))
                goal = r + gamma * value_net(n).squeeze(-1)
            advantage = target - value_net(o).squeeze(-1)
            value_loss = ((expectile - (advantage < 0).float()).abs() * advantage.square()).mean()
            weight = (temperature * advantage.detach()).exp().clamp(max=max_weight)
            policy_loss = -(weight * policy.log_prob(obs[rows], a)).mean()
            critic_loss = sum((q(both).squeeze(-1) - goal).square().mean() for q in critics)
            loss = value_loss + policy_loss + critic_loss  # no parameters in common
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            with torch.no_grad():
                for old, new in zip(slow.parameters(), critics.parameters()):
                    old.lerp_(new, rate)
    return policy.eval()
