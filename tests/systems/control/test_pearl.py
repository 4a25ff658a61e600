"""PEARL: labels that survive an alignment, distances, losses at their limits, and the pipeline on point masses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from brenier import InvalidInput
from brenier.data import point_mass_episodes
from brenier.systems.control.pearl import (
    CrossTaskPreferenceAlignment,
    GaussianRewardModel,
    PearlPipeline,
    Transitions,
    draw_queries,
    iql,
    normalised_rewards,
    preference_accuracy,
    preferences,
    robust_preference_loss,
    train_reward,
    trajectory_distance,
    transfer_pairwise,
    transitions,
)
from brenier.systems.control.pearl import rewards as rewards_module

Array = NDArray[np.float64]


def trajectories(n: int = 8, length: int = 12, d: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, length, d)).cumsum(1)


def turned(trajs: Array, order: Array, seed: int = 1) -> Array:
    """The same trajectories under a rotation, a shift and another order."""
    d = trajs.shape[-1]
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return (trajs @ rotation + 2)[order]


# -- distances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dtw"])
def test_distances_are_symmetric_and_zero_on_the_diagonal(metric: str, dtype: torch.dtype) -> None:
    distance = trajectory_distance(torch.from_numpy(trajectories()).to(dtype), metric, stride=2)
    assert distance.dtype == dtype
    assert distance.shape == (8, 8)
    assert torch.equal(distance, distance.mT)
    assert torch.equal(distance.diagonal(), torch.zeros(8, dtype=dtype))
    assert bool((distance[~torch.eye(8, dtype=torch.bool)] > 0).all())


def test_the_euclidean_distance_is_that_of_flattened_trajectories() -> None:
    trajs = trajectories()
    expected = np.linalg.norm(trajs[:, None, ::3] - trajs[None, :, ::3], axis=(2, 3))
    np.testing.assert_allclose(trajectory_distance(trajs, stride=3), expected, atol=1e-10)


def test_a_large_constant_does_not_decide_the_cosine() -> None:
    trajs = trajectories()
    with_constant = np.concatenate([trajs, np.full((8, 12, 1), 1e3)], -1)
    np.testing.assert_allclose(
        trajectory_distance(with_constant, "cosine"), trajectory_distance(trajs, "cosine"), atol=1e-10
    )


def warping(x: Array, y: Array) -> float:
    """By its recursion."""
    total = np.full((len(x) + 1, len(y) + 1), np.inf)
    total[0, 0] = 0
    for i, j in np.ndindex(len(x), len(y)):
        total[i + 1, j + 1] = np.linalg.norm(x[i] - y[j]) + min(total[i, j + 1], total[i + 1, j], total[i, j])
    return float(total[-1, -1])


def test_time_warping_of_trajectories_of_different_lengths() -> None:
    trajs = [trajectories(1, length, 2, seed=length)[0] for length in (5, 9, 7, 1)]
    expected = [[warping(x, y) for y in trajs] for x in trajs]
    np.testing.assert_allclose(trajectory_distance(trajs, "dtw"), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("trajs", "options", "message"),
    [
        (np.zeros((1, 3, 2)), {}, "at least two"),
        (np.zeros((3, 2)), {}, r"\(N, H, d\)"),
        ([np.zeros((3, 2)), np.zeros((3, 1))], {}, "one width"),
        ([np.zeros((3, 2)), np.zeros((4, 2))], {}, "one length"),
        (np.full((2, 3, 2), np.nan), {}, "NaN"),
        (np.zeros((2, 3, 2)), {"metric": "manhattan"}, "metric"),
        (np.zeros((2, 3, 2)), {"stride": 0}, "stride"),
    ],
)
def test_distances_refuse(trajs: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        trajectory_distance(trajs, **options)


# -- labels ------------------------------------------------------------------------------------------------------


def test_preferences_and_accuracy() -> None:
    returns = np.array([3.0, 1.0, 1.0, 2.0])
    labels = preferences(returns)
    assert labels.tolist() == [[0.5, 1, 1, 1], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 1, 1, 0.5]]
    assert preference_accuracy(labels, returns) == 1
    assert preference_accuracy(1 - labels, returns) == 0
    assert preference_accuracy(np.full((4, 4), 0.5), returns) == 0.5
    assert preference_accuracy(labels, -returns, [[0, 1], [1, 2]]) == 0  # the tie is left out
    with pytest.raises(InvalidInput, match="ties only"):
        preference_accuracy(labels, np.ones(4))


def test_transfer_through_a_permutation_gives_the_labels_themselves() -> None:
    labels, order = preferences(np.arange(5.0)), np.array([3, 0, 4, 1, 2])
    plan = np.zeros((5, 5))
    plan[order, np.arange(5)] = 1 / 5
    np.testing.assert_allclose(transfer_pairwise(plan, labels), labels[np.ix_(order, order)], atol=1e-15)


def test_transferred_labels_are_complementary_and_in_range() -> None:
    rng = np.random.default_rng(0)
    upper = np.triu(rng.uniform(size=(6, 6)), 1)
    soft = upper + np.tril(1 - upper.T, -1) + np.eye(6) / 2
    carried = transfer_pairwise(rng.uniform(size=(6, 9)), soft)
    assert carried.shape == (9, 9)
    np.testing.assert_allclose(carried + carried.T, 1, atol=1e-12)
    assert carried.min() >= 0
    assert carried.max() <= 1


@pytest.mark.parametrize(
    ("plan", "labels", "message"),
    [
        (np.ones((2, 3)), np.full((2, 2), 0.6), r"Z \+ Z\^T = 1"),
        (np.ones((2, 3)), np.array([[0.5, 1.5], [-0.5, 0.5]]), r"\[0, 1\]"),
        (np.ones((2, 3)), np.full((2, 2), np.nan), "NaN"),
        (np.ones((2, 3)), np.full((2, 3), 0.5), "square"),
        (np.ones((3, 3)), np.full((2, 2), 0.5), "plan"),
        (np.eye(2, 3), np.full((2, 2), 0.5), "mass in each column"),
    ],
)
def test_transfer_refuses(plan: Array, labels: Array, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        transfer_pairwise(plan, labels)


def test_queries_come_evenly_from_the_clusters() -> None:
    pytest.importorskip("sklearn")
    trajs = np.concatenate([trajectories(9), trajectories(3) + 50])
    chosen = draw_queries(trajs, 4, seed=3)
    assert len(set(chosen.tolist())) == 4
    assert (chosen < 9).sum() == 2
    assert len(draw_queries(trajs, 10)) == 10  # the small cluster has three
    with pytest.raises(InvalidInput, match="the 12 trajectories"):
        draw_queries(trajs, 13)


# -- the alignment -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["mirror", "conditional-gradient"])
@pytest.mark.parametrize("metric", ["euclidean", "dtw"])
def test_a_turned_and_shuffled_copy_has_the_same_labels(solver: str, metric: str) -> None:
    source, order = trajectories(), np.random.default_rng(5).permutation(8)
    labels = preferences(np.random.default_rng(6).normal(size=8))
    fitted = CrossTaskPreferenceAlignment(1e-3, metric, solver=solver).fit(source, turned(source, order))
    assert isinstance(fitted.plan_, np.ndarray)
    expected = np.zeros((8, 8))
    expected[order, np.arange(8)] = 1 / 8
    np.testing.assert_allclose(fitted.plan_, expected, atol=1e-2 if solver == "mirror" else 1e-9)
    carried = fitted.transfer(labels)
    true = labels[np.ix_(order, order)]
    off = ~np.eye(8, dtype=bool)
    assert ((carried > 0.5) == (true > 0.5))[off].all()
    np.testing.assert_allclose(fitted.confidence(), np.abs(carried - 0.5))


def test_a_task_against_itself_keeps_its_labels() -> None:
    source = torch.from_numpy(trajectories(10, seed=2))
    labels = preferences(torch.arange(10.0))
    fitted = CrossTaskPreferenceAlignment(solver="conditional-gradient").fit(source, source)
    assert abs(fitted.gw_) < 1e-12
    carried = fitted.transfer(labels)
    assert carried.dtype == torch.float32
    assert torch.allclose(carried, labels, atol=1e-6)


def test_numbers_of_trajectories_lengths_and_widths_may_differ() -> None:
    source, target = trajectories(6, 10, 3), trajectories(9, 14, 5, seed=1)
    fitted = CrossTaskPreferenceAlignment(0.05, n_restarts=2).fit(source, target)
    np.testing.assert_allclose(fitted.plan_.sum(0), 1 / 9, atol=1e-6)
    np.testing.assert_allclose(fitted.plan_.sum(1), 1 / 6, atol=1e-6)
    carried = fitted.transfer(preferences(np.arange(6.0)))
    np.testing.assert_allclose(carried + carried.T, 1, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 0.02])
def test_the_value_is_that_of_pot_from_the_same_start(epsilon: float) -> None:
    source, target = trajectories(7, seed=3), trajectories(9, seed=4)
    C, D = (d / d.max() for d in map(trajectory_distance, (source, target)))
    _, log = ot.gromov.entropic_gromov_wasserstein(
        C, D, ot.unif(7), ot.unif(9), "square_loss", epsilon=epsilon, max_iter=2000, tol=1e-10, log=True,
        solver="PGD",
    )  # fmt: skip
    fitted = CrossTaskPreferenceAlignment(epsilon, n_restarts=1).fit(source, target)
    assert fitted.gw_ == pytest.approx(float(log["gw_dist"]), abs=1e-4)


def test_restarts_keep_the_best() -> None:
    source, target = trajectories(7, seed=3), trajectories(9, seed=4)
    few, many = (CrossTaskPreferenceAlignment(0.01, n_restarts=k).fit(source, target) for k in (1, 6))
    assert float(many.solution_.value) <= float(few.solution_.value) + 1e-12
    assert len(many.solution_.stats["values"]) == 6


def test_alpha_zero_is_transport_between_shared_observations() -> None:
    source = trajectories(6, seed=1)
    order = np.array([2, 0, 5, 4, 1, 3])
    target = source[order] + 0.01
    fitted = CrossTaskPreferenceAlignment(solver="conditional-gradient", alpha=0.0).fit(source, target)
    assert fitted.plan_.argmax(0).tolist() == order.tolist()
    fused = CrossTaskPreferenceAlignment(1e-3, alpha=0.5).fit(source, target)
    assert fused.plan_.argmax(0).tolist() == order.tolist()
    with pytest.raises(InvalidInput, match="shared observations"):
        CrossTaskPreferenceAlignment(alpha=0.5).fit(source, trajectories(6, d=4))


def test_alignment_refuses() -> None:
    with pytest.raises(InvalidInput, match="that differ"):
        CrossTaskPreferenceAlignment().fit(trajectories(), np.ones((4, 5, 2)))
    for options in ({"epsilon": 0.0}, {"n_restarts": 0}, {"solver": "pgd"}, {"alpha": 2.0}):
        with pytest.raises(InvalidInput, match=next(iter(options))):
            CrossTaskPreferenceAlignment(**options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="fit first"):
        CrossTaskPreferenceAlignment().transfer(np.full((2, 2), 0.5))
    with pytest.raises(InvalidInput, match="transfer first"):
        CrossTaskPreferenceAlignment(0.1, n_restarts=1).fit(trajectories(4), trajectories(4)).confidence()


# -- rewards -----------------------------------------------------------------------------------------------------


def segments(n: int = 16, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, 3, generator=generator), torch.randn(n, length, 2, generator=generator)


@pytest.mark.parametrize("backbone", ["mlp", "transformer"])
def test_the_model_gives_a_mean_and_a_spread_for_each_step(backbone: str) -> None:
    model = GaussianRewardModel(3, 2, backbone, hidden=16).eval()
    obs, act = segments()
    mean, std = model(obs, act)
    assert mean.shape == std.shape == (16, 6)
    assert bool((std > 0).all())
    probability = model.preference((obs, act), (obs.flip(0), act.flip(0)))
    assert probability.shape == (16,)
    assert bool(((probability > 0) & (probability < 1)).all())
    weight = model.heads(obs, act).weight
    assert torch.allclose(weight.sum(1), torch.full((16,), 6.0 if backbone == "mlp" else 1.0), atol=1e-5)


def test_the_transformer_looks_back_only() -> None:
    model = GaussianRewardModel(3, 2, "transformer", hidden=16).eval()
    obs, act = segments(2)
    changed = obs.clone()
    changed[:, 4:] += 1
    before, after = model(obs, act)[0], model(changed, act)[0]
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def cross_entropy(model: GaussianRewardModel, seg0: Any, seg1: Any, label: Tensor) -> Tensor:
    margin = model(*seg0)[0].sum(1) - model(*seg1)[0].sum(1)
    return torch.nn.functional.binary_cross_entropy_with_logits(margin, label)


def test_without_spread_the_loss_is_the_cross_entropy_of_bradley_and_terry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_module, "_LOG_STD", (-30.0, 3.0))
    model = GaussianRewardModel(3, 2, hidden=16)
    with torch.no_grad():
        model.head.weight[1] = 0
        model.head.bias[1] = -30
    seg0, seg1, label = segments(seed=1), segments(seed=2), torch.rand(16)
    for of in (model, GaussianRewardModel(3, 2, n_samples=0, hidden=16)):
        loss = robust_preference_loss(of, seg0, seg1, label, lam=0.0)
        torch.testing.assert_close(loss, cross_entropy(of, seg0, seg1, label), atol=1e-6, rtol=0)


def test_the_hinge_is_zero_where_every_entropy_is_above_eta() -> None:
    model = GaussianRewardModel(3, 2, n_samples=0, hidden=16)
    seg0, seg1, label = segments(seed=1), segments(seed=2), torch.ones(16)
    plain = robust_preference_loss(model, seg0, seg1, label, lam=0.0)
    with torch.no_grad():
        spreads = torch.cat([model(*seg)[1].flatten() for seg in (seg0, seg1)])
    entropy = 0.5 * (2 * math.pi * math.e * spreads.square()).log()
    below, above = float(entropy.min()) - 1e-3, float(entropy.max()) + 1
    assert torch.equal(robust_preference_loss(model, seg0, seg1, label, 0.5, below), plain)
    hinge = robust_preference_loss(model, seg0, seg1, label, 0.5, above) - plain
    assert float(hinge.detach()) == pytest.approx(0.5 * float((above - entropy).mean()), abs=1e-5)


def test_a_sure_and_wrong_model_has_a_finite_loss_and_a_gradient() -> None:
    model = GaussianRewardModel(3, 2, hidden=16)
    with torch.no_grad():
        model.head.weight[0] *= 1e4
    seg0, seg1 = segments(seed=1), segments(seed=2)
    wrong = (model(*seg0)[0].sum(1) < model(*seg1)[0].sum(1)).float()
    loss = robust_preference_loss(model, seg0, seg1, wrong)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert float(model.head.weight.grad[0].abs().sum()) > 0  # type: ignore[index]


@pytest.mark.parametrize("backbone", ["mlp", "transformer"])
def test_training_finds_which_trajectories_are_better(backbone: str) -> None:
    obs, act = segments(40, 8)
    returns = obs[..., 0].sum(1)
    pairs = torch.triu_indices(30, 30, 1).T
    labels = preferences(returns)[pairs[:, 0], pairs[:, 1]]
    torch.manual_seed(0)
    model = GaussianRewardModel(3, 2, backbone, hidden=32)
    state = torch.get_rng_state()
    losses = train_reward(model, obs, act, pairs, labels, steps=150, segment=8 if backbone == "mlp" else 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert not model.training
    with torch.no_grad():
        found = preferences(model(obs[30:], act[30:])[0].sum(1))
    assert preference_accuracy(found, returns[30:]) > 0.8


def test_rewards_refuse() -> None:
    with pytest.raises(InvalidInput, match="backbone"):
        GaussianRewardModel(3, 2, "lstm")
    with pytest.raises(InvalidInput, match="multiple of 4"):
        GaussianRewardModel(3, 2, "transformer", hidden=10)
    model, (obs, act) = GaussianRewardModel(3, 2, "transformer", hidden=8, max_length=5), segments(2)
    with pytest.raises(InvalidInput, match="max_length=5"):
        model(obs, act)
    with pytest.raises(InvalidInput, match="obs and act"):
        model(act, obs)
    with pytest.raises(InvalidInput, match="one for each pair"):
        robust_preference_loss(GaussianRewardModel(3, 2), (obs, act), (obs, act), torch.ones(3))
    with pytest.raises(InvalidInput, match="segment"):
        train_reward(GaussianRewardModel(3, 2), obs, act, torch.tensor([[0, 1]]), torch.ones(1), segment=7)


# -- policies ----------------------------------------------------------------------------------------------------


def test_transitions_and_their_scale() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    scaled = normalised_rewards(rewards)
    returns = scaled.sum(1)
    assert float(returns.max() - returns.min()) == pytest.approx(3)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-6)
    obs, act = torch.arange(12.0).reshape(2, 3, 2), torch.zeros(2, 3, 1)
    steps = transitions(obs, act, rewards)
    assert steps.observations.tolist() == [[0, 1], [2, 3], [6, 7], [8, 9]]
    assert steps.next_observations.tolist() == [[2, 3], [4, 5], [8, 9], [10, 11]]
    assert steps.rewards.tolist() == [1, 2, 0, 0]
    with pytest.raises(InvalidInput, match="that differ"):
        normalised_rewards(torch.ones(2, 3))


def test_iql_prefers_the_rewarded_action() -> None:
    """One state, actions on both sides, and reward for one of them: cloning is in the middle, IQL is not."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.where(torch.rand(512, 1, generator=generator) < 0.5, 0.8, -0.8)
    obs = torch.randn(512, 2, generator=generator)
    data = Transitions(obs, actions, actions.squeeze(1), obs)
    options: dict[str, Any] = {"steps": 300, "hidden": 32, "lr": 3e-3, "gamma": 0.0, "rate": 0.05}
    state = torch.get_rng_state()
    policy, clone = iql(data, **options), iql(data, temperature=0.0, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(policy(obs).detach().mean()) > 0.5
    assert abs(float(clone(obs).detach().mean())) < 0.2
    assert policy.act(np.zeros(2)).shape == (1,)
    with pytest.raises(InvalidInput, match="expectile"):
        iql(data, expectile=1.5)


# -- the whole ---------------------------------------------------------------------------------------------------


def test_pipeline_on_point_masses() -> None:
    """No label of the target is seen, and its axes are others, but its good trajectories are found."""
    source, target = point_mass_episodes(16, world=0), point_mass_episodes(20, world=1, obs_dim=8)
    pearl = PearlPipeline(hidden=32, options={"steps": 150, "segment": 30})
    pearl.fit(source.observations, preferences(source.returns), target.observations, target.actions)
    assert pearl.labels_.shape == (20, 20)
    assert preference_accuracy(pearl.labels_, target.returns) > 0.8
    relabelled = pearl.relabel(target.observations, target.actions)
    assert preference_accuracy(preferences(relabelled.sum(1)), target.returns) > 0.75
    assert len(pearl.dataset(target.observations, target.actions).rewards) == 20 * 39


def test_pipeline_with_queries_confidence_and_a_few_true_labels() -> None:
    pytest.importorskip("sklearn")
    source, target = point_mass_episodes(16, world=0), point_mass_episodes(20, world=1)
    few = torch.tensor([[0, 3], [7, 2]]), torch.tensor([1.0, 0.0])
    pearl = PearlPipeline(queries=(8, 6), min_confidence=0.3, hidden=16, options={"steps": 5})
    pearl.fit(source.observations, preferences(source.returns), target.observations, target.actions, few=few)
    assert tuple(map(len, pearl.queries_)) == (8, 6)
    assert pearl.labels_.shape == (6, 6)
    assert pearl.pairs_[-2:].tolist() == [[0, 3], [7, 2]]
    assert pearl.targets_[-2:].tolist() == [1, 0]
    assert bool(((pearl.targets_[:-2] - 0.5).abs() >= 0.3).all())
    keys = [tuple(sorted(p)) for p in pearl.pairs_.tolist()]
    assert len(set(keys)) == len(keys)
    with pytest.raises(InvalidInput, match="few"):
        pearl.fit(
            source.observations, preferences(source.returns), target.observations, target.actions,
            few=(torch.tensor([[0, 20]]), torch.ones(1)),
        )  # fmt: skip
    with pytest.raises(InvalidInput, match="fit first"):
        PearlPipeline().relabel(target.observations, target.actions)
