"""Episodes: a task without a simulator, and those of Meta-World where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brenier import InvalidInput, MissingExtra, data
from brenier.data import Episodes


def distances(episodes: Episodes) -> np.ndarray:
    x = episodes.observations.reshape(len(episodes.rewards), -1)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def test_point_masses_are_fetched_by_experts_and_not_by_noise() -> None:
    episodes = data.point_mass_episodes(40, seed=1)
    assert episodes.observations.shape == (40, 40, 6)
    assert episodes.actions.shape == (40, 40, 2)
    assert np.abs(episodes.actions).max() <= 1
    assert episodes.success[episodes.levels == 0].all()
    assert not episodes.success[episodes.levels == 1].any()
    means = [episodes.returns[episodes.levels == q].mean() for q in (0.0, 0.3, 0.6, 1.0)]
    assert sorted(means, reverse=True) == means
    again = data.point_mass_episodes(40, seed=1)
    assert all(np.array_equal(*parts) for parts in zip(episodes, again))


def test_worlds_share_their_physics_and_no_axes() -> None:
    """The steps of the hand are those of the actions in every world, as lengths."""
    for world in (0, 3):
        episodes = data.point_mass_episodes(6, world=world, obs_dim=9, levels=(0.0,))
        assert episodes.observations.shape[2] == 9
        moved = np.linalg.norm(np.diff(episodes.observations[:, :5], axis=1), axis=-1)
        np.testing.assert_allclose(moved, 0.1 * np.linalg.norm(episodes.actions[:, :4], axis=-1), atol=1e-12)


@pytest.mark.parametrize("options", [{"n": 0}, {"levels": (0.0, 2.0)}, {"obs_dim": 5}, {"world": -1}])
def test_point_masses_refuse(options: Any) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        data.point_mass_episodes(**options)


def test_metaworld_needs_its_extra_unless_the_episodes_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(MissingExtra, match=r"brenier\[pearl\]"):
        data.metaworld_episodes(n=2, horizon=3)
    kept = data.point_mass_episodes(2, horizon=3)
    folder = cache / "metaworld-3.1.1"
    folder.mkdir(parents=True)
    np.savez(folder / "drawer-open-2x3-noise-0_0.3_0.6_1-0.npz", **kept._asdict())
    found = data.metaworld_episodes(n=2, horizon=3)
    assert all(np.array_equal(*parts) for parts in zip(kept, found))


@pytest.mark.slow
@pytest.mark.parametrize("error", ["noise", "goal"])
def test_metaworld_episodes(error: str, cache: Path) -> None:
    pytest.importorskip("metaworld")
    episodes = data.metaworld_episodes("drawer-open", 4, horizon=12, error=error, seed=3)
    assert episodes.observations.shape == (4, 12, 21)
    assert episodes.actions.shape == (4, 12, 4)
    assert np.abs(episodes.actions).max() <= 1
    assert np.isfinite(episodes.observations).all()
    assert bool(((episodes.rewards >= 0) & (episodes.rewards <= 10)).all())
    assert episodes.levels.tolist() == [0.0, 0.3, 0.6, 1.0]
    (path,) = cache.rglob("*.npz")
    again = data.metaworld_episodes("drawer-open", 4, horizon=12, error=error, seed=3)
    assert all(np.array_equal(*parts) for parts in zip(episodes, again))
    path.unlink()
    once_more = data.metaworld_episodes("drawer-open", 4, horizon=12, error=error, seed=3)
    assert all(np.allclose(*parts) for parts in zip(episodes, once_more))
    with pytest.raises(InvalidInput, match="drawer"):
        data.metaworld_episodes("drawer-opened", 1)


@pytest.mark.slow
def test_metaworld_rollouts() -> None:
    pytest.importorskip("metaworld")
    still = data.metaworld_rollouts("drawer-open", lambda obs: np.zeros(4), 2, horizon=5)
    assert still.actions.shape == (2, 5, 4)
    assert not still.success.any()
