"""From comparisons of one task to a data set with rewards of another, in one estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...._inputs import float_tensor, is_count, is_real
from ....errors import refuse
from .alignment import CrossTaskPreferenceAlignment, draw_queries
from .policy import Transitions, normalised_rewards, transitions
from .rewards import GaussianRewardModel, train_reward

__all__ = ["PearlPipeline"]


class PearlPipeline:
    """Carry comparisons from a source task to a target task, fit robust rewards to them, relabel the target data.

    Trajectories are aligned by their observations; the reward sees actions too.

    Args:
        alignment: how the tasks are matched; the defaults of `CrossTaskPreferenceAlignment` when None.
        queries: compare only so many trajectories of the source and of the target, drawn evenly from two clusters of
            each (`draw_queries`); all when None.
        min_confidence: leave out pairs with |Z - 1/2| below it.
        backbone, n_samples, hidden: of `GaussianRewardModel`.
        options: of `train_reward`: segment, steps, batch_size, lr, weight_decay, lam, eta.
        seed: of queries, networks and training.

    Attributes:
        queries_: indices of the source trajectories and of the target trajectories that were matched.
        labels_: transferred labels of the pairs of queried targets, (n, n) float64.
        pairs_, targets_: indices of target trajectories, (P, 2), and their labels, (P,), that the reward was fitted to.
        reward_: the reward model.
        losses_: of each step of its training.

    Raises:
        InvalidInput: an option out of its range, and what the parts refuse.

    Example:
        >>> from brenier.data import point_mass_episodes
        >>> from brenier.systems.control.pearl import preferences
        >>> source, target = point_mass_episodes(12, world=0), point_mass_episodes(12, world=1)
        >>> pearl = PearlPipeline(hidden=32, options={"steps": 50})
        >>> _ = pearl.fit(source.observations, preferences(source.returns), target.observations, target.actions)
        >>> pearl.relabel(target.observations, target.actions).shape
        torch.Size([12, 40])
    """

    queries_: tuple[Any, Any]
    labels_: Tensor
    pairs_: Tensor
    targets_: Tensor
    reward_: GaussianRewardModel
    losses_: list[float]

    def __init__(
        self,
        alignment: CrossTaskPreferenceAlignment | None = None,
        *,
        queries: tuple[int, int] | None = None,
        min_confidence: float = 0.0,
        backbone: str = "mlp",
        n_samples: int = 5,
        hidden: int = 256,
        options: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if queries is not None and not (len(queries) == 2 and all(is_count(n) and n >= 2 for n in queries)):
            refuse("queries", "two integers >= 2, of the source and of the target", repr(queries))
        if not (is_real(min_confidence) and 0 <= min_confidence <= 0.5):
            refuse("min_confidence", "a number in [0, 1/2]", repr(min_confidence))
        self.alignment = CrossTaskPreferenceAlignment(seed=seed) if alignment is None else alignment
        self.queries = queries
        self.min_confidence = min_confidence
        self.backbone = backbone
        self.n_samples = n_samples
        self.hidden = hidden
        self.options = dict(options or {})
        self.seed = seed

    def fit(
        self,
        source: Any,  # (M, H, d)
        labels: Any,  # (M, M)
        obs: Any,  # (N, K, o)
        act: Any,  # (N, K, a)
        *,
        few: tuple[Any, Any] | None = None,  # (P, 2) and (P,)
    ) -> Self:
        """Match the tasks, transfer the labels and fit the reward.

        Args:
            source: observations of the source trajectories.
            labels: their comparisons, see `preferences`.
            obs, act: the target trajectories, without any labels.
            few: pairs of target trajectories and their true labels, where there are some: they replace what was
                transferred to these pairs.
        """
        given, o, a = float_tensor(source, "source"), _steps(obs, "obs"), _steps(act, "act")
        if given.dim() != 3 or a.shape[:2] != o.shape[:2]:
            got = ", ".join(str(tuple(t.shape)) for t in (given, o, a))
            refuse("source, obs and act", "shapes (M, H, d), (N, K, o) and (N, K, a)", got)
        Z = float_tensor(labels, "labels").double()
        if Z.shape != (len(given), len(given)):
            refuse("labels", f"shape {(len(given), len(given))}", f"shape {tuple(Z.shape)}")
        if self.queries is None:
            rows, cols = np.arange(len(given)), np.arange(len(o))
        else:
            pools = zip((given, o), self.queries)
            rows, cols = (draw_queries(pool, n, seed=self.seed) for pool, n in pools)
        self.queries_ = rows, cols
        i, j = torch.from_numpy(rows), torch.from_numpy(cols)
        self.alignment.fit(given[i], float_tensor(obs, "obs")[j])
        self.labels_ = self.alignment.transfer(Z[i][:, i])
        self.pairs_, self.targets_ = self._pairs(j, few, len(o))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = GaussianRewardModel(
                o.shape[2], a.shape[2], self.backbone, self.n_samples, hidden=self.hidden, max_length=o.shape[1]
            )
        self.reward_ = model
        self.losses_ = train_reward(model, o, a, self.pairs_, self.targets_, seed=self.seed, **self.options)
        return self

    def _pairs(self, queried: Tensor, few: tuple[Any, Any] | None, n: int) -> tuple[Tensor, Tensor]:
        """Pairs that are sure enough, and those whose labels are known."""
        first, second = torch.triu_indices(len(queried), len(queried), 1)
        values = self.labels_[first, second]
        sure = (values - 0.5).abs() >= self.min_confidence
        pairs, values = torch.stack([queried[first], queried[second]], 1)[sure], values[sure]
        if few is not None:
            known, true = torch.as_tensor(few[0], dtype=torch.long), float_tensor(few[1], "few labels").double()
            if known.dim() != 2 or known.shape[1] != 2 or true.shape != known.shape[:1]:
                refuse("few", "pairs (P, 2) and labels (P,)", f"shapes {tuple(known.shape)} and {tuple(true.shape)}")
            if bool((known < 0).any()) or bool((known >= n).any()) or bool((known[:, 0] == known[:, 1]).any()):
                refuse("few", f"pairs of two of the {n} target trajectories", "other indices")
            keys = pairs.amin(1) * n + pairs.amax(1)
            free = ~torch.isin(keys, known.amin(1) * n + known.amax(1))
            pairs, values = torch.cat([pairs[free], known]), torch.cat([values[free], true])
        if not len(pairs):
            refuse("min_confidence", "a bound that some pairs reach", f"{self.min_confidence:g}")
        return pairs, values

    @torch.no_grad()
    def relabel(
        self,
        obs: Any,  # (N, K, o)
        act: Any,  # (N, K, a)
    ) -> Tensor:  # (N, K)
        """Mean rewards of the steps of trajectories, on the scale of `normalised_rewards`."""
        if not hasattr(self, "reward_"):
            refuse("relabel", "a reward model", "none", "Call fit first.")
        mean, _ = self.reward_(_steps(obs, "obs"), _steps(act, "act"))
        return normalised_rewards(mean)

    def dataset(
        self,
        obs: Any,  # (N, K, o)
        act: Any,  # (N, K, a)
    ) -> Transitions:
        """Transitions of trajectories with their mean rewards, as `iql` takes them."""
        return transitions(obs, act, self.relabel(obs, act))


def _steps(values: Any, name: str) -> Tensor:
    out = float_tensor(values, name).detach().float()
    if out.dim() != 3:
        refuse(name, "trajectories (N, H, d)", f"shape {tuple(out.shape)}")
    return out
