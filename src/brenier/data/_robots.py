"""Episodes of robots that are simulated here, by experts that are disturbed to known degrees."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._files import write_whole
from ..errors import need, refuse
from ._fetch import cache_dir
from ._registry import dataset

_Float = NDArray[np.float64]

_ERRORS = ("noise", "goal")
_GOALS = 50  # that a task of Meta-World has
_NOISE = 0.3  # of actions, where the goal is wrong
_MISS = 0.3  # metres by which the worst expert errs


class Episodes(NamedTuple):
    """Episodes of one task and one length, with the rewards of the environment."""

    observations: _Float  # (n, H, o), before each action
    actions: _Float  # (n, H, a), in [-1, 1]
    rewards: _Float  # (n, H)
    success: NDArray[np.bool_]  # (n,), at any time
    levels: _Float  # (n,), how much the expert was disturbed, 0 to 1

    @property
    def returns(self) -> _Float:
        """The sum of the rewards of each episode, (n,)."""
        return np.asarray(self.rewards.sum(1))


# -- Meta-World ---------------------------------------------------------------------------------------------------


@dataset(
    "metaworld-episodes",
    source="simulated with PyPI metaworld 3.1.1 and mujoco 3.3.0, by the scripted experts that it ships",
    licence="MIT (metaworld)",
    size="nothing fetched: the package has 37 MB; about 0.6 MB kept for 64 episodes",
)
def metaworld_episodes(
    task: str = "drawer-open",
    n: int = 64,
    *,
    horizon: int = 100,
    levels: Sequence[float] = (0.0, 0.3, 0.6, 1.0),
    error: str = "noise",
    seed: int = 0,
) -> Episodes:
    """Episodes of a robot arm in a task of Meta-World, by its scripted expert, disturbed to four degrees.

    Episode k has the level q = levels[k mod 4]. With error="noise" its actions are (1 - q) x expert + q x uniform noise
    in [-1, 1]; with "goal" the noise is 0.3 for all, and the expert believes that object and goal are q x 0.3 m away
    from where they are, in a random horizontal direction. Object and goal are at one of 50 places in each episode.

    Source: simulated here with `metaworld` 3.1.1 (MIT) on mujoco 3.3.0, without rendering, and kept in the cache.
    Machines may differ in the last digits, which contacts enlarge.

    Args:
        task: a name of Meta-World without its version: "button-press", "faucet-close", "window-open", "door-close", ...
        n: episodes.
        horizon: steps of each.
        levels: degrees of disturbance, in turn.
        error: "noise" or "goal".
        seed: of places and disturbances.

    Returns:
        observations (n, horizon, 21): hand (3), gripper (1), objects (14, padded with zeros), goal (3), in metres;
        actions (n, horizon, 4): motion of the hand and force of the gripper; rewards of 0 to 10; success; levels.

    Raises:
        InvalidInput: no such task or kind of error, or levels outside [0, 1].
        MissingExtra: the episodes are not in the cache and metaworld is not installed.
    """
    _check(n, horizon, levels)
    if error not in _ERRORS:
        refuse("error", "one of " + ", ".join(map(repr, _ERRORS)), repr(error))
    degrees = "_".join(f"{q:g}" for q in levels)
    path = cache_dir() / "metaworld-3.1.1" / f"{task}-{n}x{horizon}-{error}-{degrees}-{seed}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return Episodes(*(kept[field] for field in Episodes._fields))
    env, goals = _environment(task, seed)
    policies = need("metaworld.policies", "pearl", "Robot episodes")
    expert = policies.ENV_POLICY_MAP[f"{task}-v3"]()
    episodes = []
    for k in range(n):
        rng = np.random.default_rng([seed, zlib.crc32(task.encode()), k])
        q = float(levels[k % len(levels)])
        noise, miss = (q, 0.0) if error == "noise" else (_NOISE, q * _MISS)
        angle = rng.uniform(0, 2 * np.pi)
        shift = miss * np.array([np.cos(angle), np.sin(angle), 0.0])
        act = _disturbed(expert.get_action, noise, shift, rng)
        episodes.append(_rollout(env, goals[k % len(goals)], act, horizon))
    out = _stacked(episodes, [float(levels[k % len(levels)]) for k in range(n)])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **out._asdict())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    return out


def metaworld_rollouts(
    task: str,
    policy: Callable[[_Float], Any],
    n: int = 20,
    *,
    horizon: int = 100,
    seed: int = 0,
) -> Episodes:
    """Episodes of a policy in a task of Meta-World, to see how often it succeeds; nothing is kept.

    Args:
        task: as for `metaworld_episodes`.
        policy: from an observation (21,) to an action (4,), which is clipped to [-1, 1].
        n: episodes, at most 50 of which differ.
        horizon: steps of each.
        seed: of the places of object and goal.

    Raises:
        InvalidInput: no such task.
        MissingExtra: metaworld is not installed.
    """
    _check(n, horizon, (0.0,))
    env, goals = _environment(task, seed)
    act = lambda obs: policy(_state(obs))  # noqa: E731
    return _stacked([_rollout(env, goals[k % len(goals)], act, horizon) for k in range(n)], [0.0] * n)


def _environment(task: str, seed: int) -> tuple[Any, list[Any]]:
    """One environment, and the places of object and goal."""
    metaworld = need("metaworld", "pearl", "Robot episodes")
    name = f"{task}-v3"
    if name not in metaworld.MT1.ENV_NAMES:
        refuse("task", "a task of Meta-World, such as 'drawer-open'", repr(task))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gymnasium, about itself
        bench = metaworld.MT1(name, seed=seed)
        return bench.train_classes[name](), list(bench.train_tasks)[:_GOALS]


def _disturbed(
    expert: Callable[[_Float], Any], noise: float, shift: _Float, rng: np.random.Generator
) -> Callable[[_Float], Any]:
    def act(obs: _Float) -> _Float:
        seen = obs.copy()  # some experts write into what they are given
        seen[4:7] += shift
        seen[36:39] += shift
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts ask for more than can be done, and say so at each step
            wanted = np.clip(np.asarray(expert(seen), dtype=np.float64), -1, 1)
        return np.asarray((1 - noise) * wanted + noise * rng.uniform(-1, 1, wanted.shape))

    return act


def _state(obs: _Float) -> _Float:
    """The present and the goal; in between are the coordinates of one step before."""
    return np.concatenate([obs[:18], obs[36:39]])


def _rollout(env: Any, goal: Any, act: Callable[[_Float], Any], horizon: int) -> tuple[list[Any], ...]:
    """States, actions, rewards and successes of one episode."""
    env.set_task(goal)
    obs, _ = env.reset()
    rows: tuple[list[Any], ...] = ([], [], [], [])
    for _ in range(horizon):
        action = np.clip(np.asarray(act(obs), dtype=np.float64), -1, 1)
        following, reward, _, _, info = env.step(action.astype(np.float32))
        for row, value in zip(rows, (_state(obs), action, float(reward), bool(info["success"]))):
            row.append(value)
        obs = following
    return rows


def _stacked(episodes: Sequence[tuple[list[Any], ...]], levels: Sequence[float]) -> Episodes:
    obs, act, rewards, success = (np.array(part) for part in zip(*episodes))
    return Episodes(obs, act, rewards, np.asarray(success.any(1)), np.array(levels))


def _check(n: int, horizon: int, levels: Sequence[float]) -> None:
    for name, value in (("n", n), ("horizon", horizon)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            refuse(name, "a positive integer", repr(value))
    if not len(levels) or not all(0 <= q <= 1 for q in levels):
        refuse("levels", "numbers in [0, 1]", repr(levels))


# -- a task that needs no simulator -------------------------------------------------------------------------------


def point_mass_episodes(
    n: int = 16,
    *,
    horizon: int = 40,
    levels: Sequence[float] = (0.0, 0.3, 0.6, 1.0),
    world: int = 0,
    obs_dim: int = 6,
    seed: int = 0,
) -> Episodes:
    """Episodes of a point in the plane that fetches another one, by an expert disturbed to four degrees; generated.

    Each step moves the hand h by a tenth of the action. Once nearer than 0.1 to the object p, the object goes with it.
    The reward is exp(-||h - p||) + 2 exp(-||p - g||) for a goal g, and success is an object within 0.1 of its goal. The
    expert goes to the object and then to the goal; action = (1 - q) x expert + q x uniform noise. A world is a rotation
    or reflection of the whole and of its coordinates: worlds share their physics and no axes.

    Args:
        n: episodes; episode k has the level q = levels[k mod 4].
        horizon: steps of each.
        levels: degrees of disturbance, in turn.
        world: 0 is the plane itself.
        obs_dim: coordinates of an observation, 6 or more, into which hand, object and goal are rotated.
        seed: of places and noise; worlds draw their own.

    Returns:
        observations (n, horizon, obs_dim), actions (n, horizon, 2), rewards, success, levels.

    Raises:
        InvalidInput: fewer than six coordinates, a count below 1, or levels outside [0, 1].

    Example:
        >>> from brenier.data import point_mass_episodes
        >>> episodes = point_mass_episodes(8)
        >>> episodes.observations.shape, episodes.success[episodes.levels == 0].tolist()
        ((8, 40, 6), [True, True])
    """
    _check(n, horizon, levels)
    for name, value, least in (("obs_dim", obs_dim, 6), ("world", world, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            refuse(name, f"an integer >= {least}", repr(value))
    turn, lift = np.eye(2), np.eye(6, obs_dim)
    if world:
        frame = np.random.default_rng([world])
        turn = np.linalg.qr(frame.normal(size=(2, 2)))[0]
        lift = np.linalg.qr(frame.normal(size=(obs_dim, 6)))[0].T
    rng = np.random.default_rng([seed, world])
    q = np.array([float(levels[k % len(levels)]) for k in range(n)])
    hand = rng.normal(0, 0.05, (n, 2)) @ turn
    thing = (np.array([1.0, 0.0]) + rng.normal(0, 0.1, (n, 2))) @ turn
    goal = thing + np.array([0.0, 0.8]) @ turn
    rows: tuple[list[_Float], ...] = ([], [], [], [])
    for _ in range(horizon):
        held = np.linalg.norm(hand - thing, axis=1, keepdims=True) < 0.1
        wanted = np.where(held, goal, thing) - hand
        wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 0.1)
        action = (1 - q[:, None]) * wanted + q[:, None] * rng.uniform(-1, 1, (n, 2))
        rows[0].append(np.concatenate([hand, thing, goal], 1) @ lift)
        rows[1].append(action)
        hand = hand + 0.1 * action
        thing = np.where(held, hand, thing)
        apart, left = np.linalg.norm(hand - thing, axis=1), np.linalg.norm(thing - goal, axis=1)
        rows[2].append(np.exp(-apart) + 2 * np.exp(-left))
        rows[3].append(left < 0.1)
    obs, act, rewards, success = (np.stack(row, 1) for row in rows)
    return Episodes(obs, act, rewards, np.asarray(success.any(1)), q)
