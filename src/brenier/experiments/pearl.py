"""PEARL: labels carried between robot tasks, rewards fitted to them, and a policy, against plain ways to do each.

Parts: (A) accuracy of transferred labels on six pairs of Meta-World tasks, against transport on shared observations and
the nearest source trajectory; (B) whether confidence knows; (C) rewards from transferred labels, flipped to three
degrees, against cross-entropy and true labels; (D) a policy of implicit Q-learning, in the full preset. Trajectories
are made by scripted experts that are disturbed, which decides return and geometry alike: that makes alignment easier
than with people's data, and a variant of (A) has experts that err in their goal instead. The human data of the paper's
Robomimic tasks cannot be had. The smoke preset runs on generated point masses, which need no simulator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import data
from ..costs import Euclidean
from ..data import Episodes
from ..systems.control.pearl import (
    CrossTaskPreferenceAlignment,
    GaussianRewardModel,
    draw_queries,
    iql,
    normalised_rewards,
    preference_accuracy,
    preferences,
    train_reward,
    transfer_pairwise,
    transitions,
)
from .report import Claim, Report
from .runner import Config, Run

__all__ = ["PRESETS", "PearlConfig", "run"]

Array = NDArray[np.float64]
_SOURCES = ("button-press", "faucet-close")
_TARGETS = ("window-open", "door-close", "drawer-open")
_FLIPS = (0.0, 0.2, 0.4)
_SHARED = 18  # coordinates of hand, gripper and objects, which all tasks have; then come those of the goal


@dataclass(frozen=True)
class PearlConfig(Config):
    """Sizes of the parts.

    Attributes:
        simulator: "metaworld", or "point-mass" for generated episodes.
        episodes: of each task.
        data_seeds: how many of the seeds make episodes of their own; the others share them.
        horizon, stride: steps of an episode, and every which of them is looked at.
        restarts: of the alignment.
        draws: queries of four trajectories a task in (A), for each pair.
        wrong_goal: whether (A) has the variant.
        reward_targets: targets of (C).
        held_out: target trajectories that (C) judges rewards on.
        reward_steps, hidden: of the training of a reward.
        policy_steps: of IQL in (D); 0 leaves it out.
        policy_seeds: how many of the seeds (D) runs on.
        rollouts, rollout_steps: episodes that judge a policy, and their length.
    """

    simulator: str = "metaworld"
    episodes: int = 64
    data_seeds: int = 1
    horizon: int = 100
    stride: int = 5
    restarts: int = 5
    draws: int = 50
    wrong_goal: bool = True
    reward_targets: tuple[str, ...] = _TARGETS
    held_out: int = 16
    reward_steps: int = 300
    hidden: int = 128
    policy_steps: int = 0
    policy_seeds: int = 3
    rollouts: int = 20
    rollout_steps: int = 200


PRESETS = {
    "smoke": PearlConfig(
        "smoke", (100,), simulator="point-mass", episodes=16, horizon=40, restarts=2, draws=1, wrong_goal=False,
        reward_targets=_TARGETS[:1], held_out=4, reward_steps=60, hidden=32, policy_steps=20, rollouts=0,
    ),
    "quick": PearlConfig("quick", (100, 101), draws=4, wrong_goal=False, reward_targets=_TARGETS[2:]),
    "full": PearlConfig("full", tuple(range(100, 110)), data_seeds=3, policy_steps=3_000),
}  # fmt: skip

_Run = Run[PearlConfig]
_Pair = tuple[str, str]


def run(config: PearlConfig, log: Callable[[str], None] = lambda line: None) -> Report:
    """Run all parts."""
    report = Report("pearl", "PEARL: preferences carried between robot tasks", config.preset, list(config.seeds))
    if config.simulator == "metaworld":
        info = data.info("metaworld-episodes")
        report.data.append(f"{info.slug}: {info.source}; {info.licence}")
    else:
        report.data.append("generated: a point that fetches another one, each task a rotation of the same physics")
        report.notes.append("This preset runs on generated point masses: its numbers say nothing about robots.")
    report.notes.append(
        "Disturbance decides the return and the geometry of an episode alike, so alignment is easier here than with "
        "people's data."
    )
    parts = _Run(config, report, log)
    aligned = _alignment(parts)
    _confidence(parts, aligned)
    _rewards(parts)
    if config.policy_steps:
        _policy(parts)
    return report


def _episodes(config: PearlConfig, task: str, seed: int, error: str = "noise") -> Episodes:
    if config.simulator == "metaworld":
        return data.metaworld_episodes(task, config.episodes, horizon=config.horizon, error=error, seed=seed)
    world = (*_SOURCES, *_TARGETS).index(task)
    return data.point_mass_episodes(config.episodes, horizon=config.horizon, world=world, seed=seed)


def _states(episodes: Episodes) -> Array:
    """What trajectories are aligned by: the coordinates that all tasks have, without the goal."""
    return episodes.observations[..., :_SHARED]


def _cpa(config: PearlConfig, seed: int, **options: Any) -> CrossTaskPreferenceAlignment:
    return CrossTaskPreferenceAlignment(stride=config.stride, n_restarts=config.restarts, seed=seed, **options)


# -- (A) accuracy of transferred labels ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Aligned:
    """One transfer: labels of all pairs of targets, and what is true."""

    labels: Array
    returns: Array


def _alignment(parts: _Run) -> list[_Aligned]:
    config, report = parts.config, parts.report
    table = report.table(
        f"(A) Accuracy of the labels of all pairs of {config.episodes} target trajectories",
        ("GW", "exact GW", "transport, shared observations", "nearest source", "GW, 4 of each"),
    )
    columns: dict[_Pair, list[list[float]]] = {}
    same: dict[str, list[list[float]]] = {}
    aligned = []
    for seed in config.seeds[: config.data_seeds]:
        episodes = {task: _episodes_logged(parts, task, seed) for task in (*_SOURCES, *_TARGETS)}
        for pair in itertools.product(_SOURCES, _TARGETS):
            parts.log(f"(A) seed {seed}: {' to '.join(pair)}")
            source, target = (episodes[task] for task in pair)
            labels = preferences(source.returns)
            fitted = _cpa(config, seed).fit(_states(source), _states(target))
            aligned.append(_Aligned(fitted.transfer(labels), target.returns))
            others = [
                _cpa(config, seed, solver="conditional-gradient").fit(_states(source), _states(target)),
                _cpa(config, seed, solver="conditional-gradient", alpha=0.0).fit(_states(source), _states(target)),
            ]
            made = [aligned[-1].labels, *(a.transfer(labels) for a in others), _nearest(source, target, labels)]
            row = columns.setdefault(pair, [[] for _ in table.columns])
            for column, carried in zip(row, made):
                column.append(preference_accuracy(carried, target.returns))
            row[-1].append(_four(parts, source, target, seed))
        for task, own in episodes.items():
            parts.log(f"(A) seed {seed}: {task} to itself")
            for column, solver in zip(same.setdefault(task, [[], []]), ("mirror", "conditional-gradient")):
                again = _cpa(config, seed, solver=solver).fit(_states(own), _states(own))
                column.append(preference_accuracy(again.transfer(preferences(own.returns)), own.returns))
    for pair, row in columns.items():
        table.add(" to ".join(pair), *row)
    means = [float(np.mean([np.mean(row[c]) for row in columns.values()])) for c in range(len(table.columns))]
    table.add("mean", *means)
    worst = min(float(np.mean(row[0])) for row in columns.values())
    itself = report.table("(A) From a task to itself, the same trajectories", ("GW", "exact GW"))
    for task, found in same.items():
        itself.add(task, *found)
    blurred, exact = (min(min(found[k]) for found in same.values()) for k in range(2))
    report.claims += [
        Claim.at_least("(A) accuracy of transferred labels, mean over six pairs of tasks", means[0], 0.8),
        Claim.at_least("(A) accuracy minus that of transport on shared observations", means[0] - means[2], 0.15),
        Claim.at_least("(A) accuracy minus that of the nearest source trajectory", means[0] - means[3], 0.2),
        Claim.at_least("(A) accuracy on the worst pair of tasks", worst, 0.65),
        Claim.at_least("(A) accuracy from a task to itself, at least", blurred, 1.0),
        Claim.at_least("(A) accuracy from a task to itself, exact GW, at least", exact, 1.0),
    ]
    if config.wrong_goal:
        _wrong_goal(parts)
    _draw(parts, columns)
    return aligned


def _episodes_logged(parts: _Run, task: str, seed: int, error: str = "noise") -> Episodes:
    parts.log(f"episodes of {task}, seed {seed}")
    return _episodes(parts.config, task, seed, error)


def _nearest(source: Episodes, target: Episodes, labels: Array) -> Array:
    """Labels copied from the most similar source trajectories, the paper's PT + Sim: a plan that is a minimum."""
    x, y = (torch.from_numpy(_states(e).reshape(len(e.rewards), -1)) for e in (source, target))
    distance = Euclidean().block(x, y)
    plan = torch.zeros_like(distance).scatter_(0, distance.argmin(0, keepdim=True), 1.0)
    return np.asarray(transfer_pairwise(plan.numpy(), labels))


def _four(parts: _Run, source: Episodes, target: Episodes, seed: int) -> float:
    """Mean accuracy with four trajectories of each task, drawn evenly from two clusters, as in the paper."""
    config = parts.config
    right: list[float] = []
    for draw in range(config.draws):
        chosen = [draw_queries(_states(e), 4, seed=1000 * seed + draw) for e in (source, target)]
        some = [(_states(e)[i], e.returns[i]) for e, i in zip((source, target), chosen)]
        fitted = _cpa(config, seed).fit(some[0][0], some[1][0])
        right.append(preference_accuracy(fitted.transfer(preferences(some[0][1])), some[1][1]))
    return float(np.mean(right))


def _wrong_goal(parts: _Run) -> None:
    config, report = parts.config, parts.report
    table = report.table(
        "(A) The same where all actions have equal noise and experts err in their goal", ("GW", "nearest source")
    )
    for pair in itertools.product(_SOURCES, _TARGETS):
        measured: list[list[float]] = [[], []]
        for seed in config.seeds[: config.data_seeds]:
            source, target = (_episodes_logged(parts, task, seed, "goal") for task in pair)
            labels = preferences(source.returns)
            made = _cpa(config, seed).fit(_states(source), _states(target)).transfer(labels)
            measured[0].append(preference_accuracy(made, target.returns))
            measured[1].append(preference_accuracy(_nearest(source, target, labels), target.returns))
        table.add(" to ".join(pair), *measured)


def _draw(parts: _Run, columns: dict[_Pair, list[list[float]]]) -> None:
    figure, ax = plt.subplots(figsize=(7, 3.5))
    ways = (("GW", 0, "#2b6cb0"), ("transport, shared observations", 2, "#dd6b20"), ("nearest source", 3, "#a0aec0"))
    for k, (name, column, colour) in enumerate(ways):
        heights = [float(np.mean(row[column])) for row in columns.values()]
        ax.bar(np.arange(len(columns)) + 0.27 * (k - 1), heights, 0.25, label=name, color=colour)
    ax.axhline(0.5, color="#718096", linewidth=0.8)
    ax.set(ylabel="accuracy", ylim=(0, 1), xticks=np.arange(len(columns)))
    ax.set_xticklabels([f"{s}\nto {t}" for s, t in columns], fontsize=7)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    parts.report.figure("accuracy", "Accuracy of transferred labels, for each pair of tasks.", figure)


# -- (B) confidence ------------------------------------------------------------------------------------------------


def _confidence(parts: _Run, aligned: list[_Aligned]) -> None:
    """Accuracy on the surer half of the pairs and on the other, for each transfer."""
    sure: list[float] = []
    unsure: list[float] = []
    for made in aligned:
        pairs = np.stack(np.triu_indices(len(made.returns), 1), 1)
        pairs = pairs[made.returns[pairs[:, 0]] != made.returns[pairs[:, 1]]]
        order = np.argsort(-np.abs(made.labels[pairs[:, 0], pairs[:, 1]] - 0.5), kind="stable")
        half = len(order) // 2
        for column, part in ((sure, order[:half]), (unsure, order[half:])):
            column.append(preference_accuracy(made.labels, made.returns, pairs[part]))
    table = parts.report.table("(B) Accuracy of transferred labels by their confidence", ("accuracy",))
    table.add("the half with larger |Z - 1/2|", sure)
    table.add("the other half", unsure)
    gain = float(np.mean(sure) - np.mean(unsure))
    parts.report.claims.append(Claim.at_least("(B) accuracy on the surer half minus that on the other", gain, 0.05))


# -- (C) rewards ---------------------------------------------------------------------------------------------------


def _tensors(episodes: Episodes, stride: int) -> tuple[Tensor, Tensor]:
    obs, act = (torch.from_numpy(t[:, ::stride]).float() for t in (episodes.observations, episodes.actions))
    return obs, act


def _fitted(
    config: PearlConfig, obs: Tensor, act: Tensor, labels: Tensor, pairs: Tensor, robust: bool, seed: int
) -> GaussianRewardModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        samples = 5 if robust else 0
        model = GaussianRewardModel(obs.shape[2], act.shape[2], n_samples=samples, hidden=config.hidden)
    train_reward(model, obs, act, pairs, labels, steps=config.reward_steps, lam=0.01 if robust else 0.0, seed=seed)
    return model


@torch.no_grad()
def _mean_rewards(model: GaussianRewardModel, obs: Tensor, act: Tensor) -> Tensor:
    return model(obs, act)[0].double()


def _rewards(parts: _Run) -> None:
    config, report = parts.config, parts.report
    rows = ["true labels", *(f"transferred labels, {flip:.0%} flipped" for flip in _FLIPS)]
    measured: dict[tuple[str, bool], list[float]] = {(row, robust): [] for row in rows for robust in (False, True)}
    gains: dict[str, list[float]] = {row: [] for row in rows}
    for index, seed in enumerate(config.seeds):
        data_seed = config.seeds[index % config.data_seeds]
        for target_task in config.reward_targets:
            parts.log(f"(C) seed {seed}: rewards of {target_task}")
            source = _episodes(config, _SOURCES[index % len(_SOURCES)], data_seed)
            target = _episodes(config, target_task, data_seed)
            rng = np.random.default_rng(seed)
            order = rng.permutation(len(target.rewards))
            test, train = order[: config.held_out], order[config.held_out :]
            obs, act = _tensors(target, config.stride)
            fitted = _cpa(config, seed).fit(_states(source), _states(target)[train])
            carried = torch.from_numpy(fitted.transfer(preferences(source.returns)))
            true = torch.from_numpy(preferences(target.returns[train]))
            pairs = torch.triu_indices(len(train), len(train), 1).T
            uniform = torch.from_numpy(rng.uniform(size=len(pairs)))
            for row, labels, flip in zip(rows, (true, *[carried] * len(_FLIPS)), (0.0, *_FLIPS)):
                values = labels[pairs[:, 0], pairs[:, 1]]
                values = torch.where(uniform < flip, 1 - values, values)
                pair_of: dict[bool, float] = {}
                for robust in (False, True):
                    model = _fitted(config, obs[train], act[train], values, pairs, robust, seed)
                    score = _mean_rewards(model, obs[test], act[test]).sum(1)
                    pair_of[robust] = preference_accuracy(preferences(score), target.returns[test])
                    measured[row, robust].append(pair_of[robust])
                gains[row].append(pair_of[True] - pair_of[False])
    table = report.table(
        f"(C) Ranking of {config.held_out} held-out trajectories by the sum of learned rewards: accuracy of pairs",
        ("cross-entropy", "RRL", "RRL minus cross-entropy"),
    )
    for row in rows:
        table.add(row, measured[row, False], measured[row, True], gains[row])
    oracle, carried_over = (float(np.mean(measured[row, True])) for row in rows[:2])
    least = min(float(np.mean(gains[row])) for row in rows)
    report.claims += [
        Claim.at_least("(C) accuracy of RRL with transferred labels over true ones", carried_over / oracle, 0.9),
        Claim.at_least("(C) RRL minus cross-entropy, at least", least, -0.02),
    ]
    report.claims += [
        Claim.at_least(f"(C) RRL minus cross-entropy at {flip:.0%} flipped labels", float(np.mean(gains[row])), 0.0)
        for flip, row in zip(_FLIPS[1:], rows[2:])
    ]


# -- (D) a policy --------------------------------------------------------------------------------------------------


def _policy(parts: _Run) -> None:
    """IQL on the target data with three sources of labels; without a simulator its training alone is run."""
    config, report = parts.config, parts.report
    target_task, source_task = _TARGETS[-1], _SOURCES[0]
    names = ("true labels", "transferred labels", "shuffled labels")
    success: dict[str, list[float]] = {name: [] for name in names}
    for index, seed in enumerate(config.seeds[: config.policy_seeds]):
        data_seed = config.seeds[index % config.data_seeds]
        source, target = (_episodes(config, task, data_seed) for task in (source_task, target_task))
        true = preferences(target.returns)
        fitted = _cpa(config, seed).fit(_states(source), _states(target))
        order = np.random.default_rng(seed).permutation(len(true))
        labels = (true, fitted.transfer(preferences(source.returns)), preferences(target.returns[order]))
        pairs = torch.triu_indices(len(true), len(true), 1).T
        thinned, whole = _tensors(target, config.stride), _tensors(target, 1)
        for name, Z in zip(names, labels):
            parts.log(f"(D) seed {seed}: a policy for {target_task} from {name}")
            values = torch.from_numpy(Z)[pairs[:, 0], pairs[:, 1]]
            model = _fitted(config, *thinned, values, pairs, True, seed)
            rewards = normalised_rewards(_mean_rewards(model, *whole))
            policy = iql(transitions(*whole, rewards), steps=config.policy_steps, seed=seed)
            if config.rollouts and config.simulator == "metaworld":
                # other places of object and goal than those of the data
                judged = data.metaworld_rollouts(
                    target_task, policy.act, config.rollouts, horizon=config.rollout_steps, seed=seed + 10_000
                )
                success[name].append(float(judged.success.mean()))
    if not success[names[0]]:
        report.notes.append("(D) trained policies and judged none, as there is no simulator in this preset.")
        return
    table = report.table(
        f"(D) {target_task}: success of IQL in {config.rollouts} episodes of {config.rollout_steps} steps",
        ("success rate",),
    )
    for name in names:
        table.add(name, success[name])
    oracle, carried, shuffled = (float(np.mean(success[name])) for name in names)
    report.claims += [
        Claim.at_least("(D) success with transferred labels minus that with shuffled ones", carried - shuffled, 0.2),
        Claim.at_least("(D) success with transferred labels minus 0.7 x with true ones", carried - 0.7 * oracle, 0.0),
    ]
