"""Maps that are networks: their forms, what they learn, and how their training is interrupted, written and read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from brenier import InvalidInput, Relative
from brenier.costs import Geodesic, Lp, Mahalanobis
from brenier.losses import energy_distance, monge_gap
from brenier.maps.icnn import ICNN, ICNNMap
from brenier.maps.neural import MongeGapEstimator, MongeMap, conservative_penalty
from brenier.maps.training import map_quality
from problems import assert_close, cloud


def clouds(n: int = 400, d: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) * 0.7 + 1.5


def small(**parameters: Any) -> MongeGapEstimator:
    return MongeGapEstimator(**{"hidden": (32, 32), "max_iter": 6, "batch_size": 64, **parameters})


# -- forms of a map ----------------------------------------------------------------------------------------------


def test_forms() -> None:
    x = cloud(5, 3).float()
    plain, residual = (MongeMap(3, residual=r) for r in (False, True))
    residual.load_state_dict(plain.state_dict())
    assert torch.allclose(residual(x) - x, plain(x))
    assert torch.allclose(plain(x), plain.field(x))
    structured = MongeMap(3, structured="sqeuclidean")
    assert torch.allclose(structured(x), x - structured.field(x) / 2)
    assert torch.allclose(MongeMap(3, sphere=True)(x).norm(dim=-1), torch.ones(5))
    assert MongeMap(3, (7,))(x[None]).shape == (1, 5, 3)


def test_a_structured_map_of_a_potential_is_optimal() -> None:
    x, cost = cloud(60, 2), Lp(2.0, 1.5)
    # f = c-transform of one target point and its neighbours: the gradient of a smooth c-concave function
    w = torch.tensor([0.3, -0.2], dtype=torch.float64)
    moved = x - cost.conjugate_gradient(0.05 * x + w)
    assert abs(float(monge_gap(x, moved, cost=cost, convention="exact"))) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "positive integers"),
        ((2, (3, 0)), {}, "positive integers"),
        ((2,), {"structured": "euclidean"}, "strictly convex"),
        ((2,), {"structured": Geodesic()}, "strictly convex"),
        ((2,), {"structured": Mahalanobis(torch.eye(3))}, r"shape \(2, 2\)"),
    ],
)
def test_forms_that_are_refused(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        MongeMap(*arguments, **options)


# -- the conservative penalty ------------------------------------------------------------------------------------


def test_the_penalty_of_a_linear_field(generator: torch.Generator) -> None:
    J, x = cloud(3, 3, 5), cloud(4, 3)
    expected = (J - J.T).square().sum()
    found = torch.stack([conservative_penalty(lambda z: z @ J.T, x, generator=generator).detach() for _ in range(400)])
    assert_close(found.mean(), expected, rtol=0.1)
    again = conservative_penalty(lambda z: z @ J.T, x, probes=400, generator=generator).detach()
    assert_close(again, expected, rtol=0.1)
    assert float(conservative_penalty(lambda z: z @ (J + J.T), x).detach()) < 1e-20


def test_the_penalty_of_a_gradient_is_zero_and_it_can_be_learned() -> None:
    torch.manual_seed(0)
    x = cloud(32, 2).float()
    f = ICNN(2, (8, 8))
    assert float(conservative_penalty(lambda z: f.gradient(z, create_graph=True), x).detach()) < 1e-9
    field = MongeMap(2, (16,), residual=False)
    before = float(conservative_penalty(field, x, probes=8).detach())
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        conservative_penalty(field, x).backward()
        optimizer.step()
    assert float(conservative_penalty(field, x, probes=8).detach()) < 0.1 * before


def test_the_penalty_refuses() -> None:
    with pytest.raises(InvalidInput, match="probes"):
        conservative_penalty(lambda z: z, cloud(2, 2), probes=0)
    with pytest.raises(InvalidInput, match="images of shape"):
        conservative_penalty(lambda z: z[:, :1], cloud(2, 2))


# -- what is learned ---------------------------------------------------------------------------------------------


def test_quality_of_known_maps() -> None:
    x, y = clouds(200)
    best = map_quality(x, x + 2, x + 2)
    assert_close(best["displacement"], 8.0)
    for name in ("sinkhorn_divergence", "mmd", "exact_gap"):
        assert abs(best[name]) < 1e-9
    turned = map_quality(x, np.stack([-x[:, 1], x[:, 0]], 1), y)
    assert turned["exact_gap"] > 1
    assert turned["mmd"] > 0.1
    with pytest.raises(InvalidInput, match="as x has"):
        map_quality(x, x[:-1], y)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"residual": False}, {"structured": True, "lam_cons": 0.01}], ids=str)
def test_it_learns_the_optimal_map(options: dict[str, Any]) -> None:
    (X, x), (Y, y) = (np.split(c, 2) for c in clouds(800))
    found = small(max_iter=100, batch_size=100, lr=8e-3, **options).fit(X, Y)
    quality, start = found.evaluate(x, y), map_quality(x, x, y)
    assert quality["mmd"] < 0.05 * start["mmd"]
    assert quality["exact_gap"] < 0.02 * quality["displacement"]
    assert found.score(x, y) == -quality["sinkhorn_divergence"]
    truth = 0.7 * x + 1.5
    assert np.square(found.transform(x) - truth).sum(1).mean() < 0.15
    assert len(found.history_["loss"]) == len(found.history_["gap"]) == found.n_iter_ == 100


@pytest.mark.slow
def test_without_the_gap_a_plain_net_learns_some_map() -> None:
    X, Y = clouds()
    gaps = [
        small(max_iter=50, lr=1e-2, residual=False, lam=lam, seed=1).fit(X, Y).evaluate(X, Y)["exact_gap"]
        for lam in (0.0, 1.0)
    ]
    assert gaps[0] > 10 * max(gaps[1], 1e-4)


def test_on_the_sphere() -> None:
    rng = np.random.default_rng(0)

    def around(centre: list[float]) -> np.ndarray:
        z = np.array(centre) + 0.3 * rng.normal(size=(200, 3))
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    X, Y = around([0, 0, 1]), around([1, 0, 0])
    found = small(cost=Geodesic(), sphere=True, max_iter=60, lr=1e-2).fit(X, Y)
    moved = found.transform(X)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1)
    assert np.abs(moved.mean(0) - Y.mean(0)).max() < 0.15


def test_other_losses_networks_and_schedules() -> None:
    X, Y = clouds(100)
    weights = []

    def lam(iteration: int) -> float:
        weights.append(iteration)
        return float(iteration > 2)

    network = nn.Linear(2, 2)
    before = network.weight.detach().clone()
    found = small(loss=energy_distance, network=network, lam=lam, cost="euclidean").fit(X, Y)
    assert weights == list(range(6))
    assert [math.isnan(g) for g in found.history_["gap"]] == [True] * 3 + [False] * 3
    assert torch.equal(network.weight, before)  # a copy was trained
    assert not torch.equal(found.network_.weight.float(), before)


def test_functions_that_draw() -> None:
    def source(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 3, generator=generator)

    found = small(early_stopping=True).fit(source, lambda n, g: source(n, g) + 1)
    assert found.n_features_in_ == 3
    assert found.transform(np.zeros((2, 3))).dtype == np.float64
    with pytest.raises(InvalidInput, match="dimension 3"):
        small().fit(np.zeros((5, 2)) + np.arange(5)[:, None], source)
    with pytest.raises(InvalidInput, match="a function that draws points"):
        small().fit(lambda n, g: torch.zeros(n), source)


# -- how it is trained -------------------------------------------------------------------------------------------


def test_a_seed_makes_it_the_same() -> None:
    X, Y = clouds()
    one, two, other = (small(seed=s).fit(X, Y).transform(X) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    "kind", [small, lambda **p: ICNNMap((8, 8), 2, **{"batch_size": 64, **p})], ids=["gap", "icnn"]
)
def test_a_fit_goes_on_from_its_checkpoint(kind: Any, tmp_path: Path) -> None:
    X, Y = clouds()
    options = {"early_stopping": True, "check_every": 2, "patience": 50}
    path = tmp_path / "fit.pt"
    whole = kind(max_iter=8, **options).fit(X, Y)
    kind(max_iter=5, checkpoint=path, **options).fit(X, Y)
    resumed = kind(max_iter=8, checkpoint=path, **options).fit(X, Y)
    assert resumed.history_ == whole.history_ or str(resumed.history_) == str(whole.history_)
    np.testing.assert_array_equal(resumed.transform(X), whole.transform(X))
    done = kind(max_iter=8, checkpoint=path, **options).fit(X, Y)  # nothing is left to do
    np.testing.assert_array_equal(done.transform(X), whole.transform(X))
    with pytest.raises(InvalidInput, match="the file of this fit"):
        kind(max_iter=8, checkpoint=path, **options).fit(X, Y + 1)
    with pytest.raises(InvalidInput, match="the file of this fit"):
        kind(max_iter=8, checkpoint=path, seed=1, **options).fit(X, Y)


def test_early_stopping_keeps_the_best() -> None:
    X, Y = clouds()
    found = small(max_iter=400, lr=0.1, early_stopping=True, check_every=2, patience=3).fit(X, Y)
    looks = found.history_["held_out"]
    assert found.n_iter_ < 400
    assert len(looks) == found.n_iter_ // 2
    assert min(looks) == looks[-4]


def test_a_timeout_ends_it() -> None:
    X, Y = clouds()
    found = small(max_iter=10**6, timeout=0.05).fit(X, Y)
    assert 1 <= found.n_iter_ < 10**6


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    small(progress=True).fit(*clouds())  # the bar vanishes at the end
    small().fit(*clouds())


def test_a_loss_that_is_not_finite_is_told() -> None:
    X, Y = clouds()
    with pytest.raises(InvalidInput, match="training: expected a finite loss"):
        small(loss=lambda u, v: (u.mean() - v.mean()) * math.nan, lam=0.0).fit(X, Y)


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"cost": Lp(2.0, 1.5), "epsilon": Relative(0.02), "structured": True, "lam_cons": 0.1},
        {"cost": Mahalanobis(torch.tensor([[2.0, 0.5], [0.5, 1.0]])), "hidden": (5,)},
        {"cost": "euclidean", "loss": energy_distance, "epsilon": 0.1},
    ],
    ids=["structured", "matrix", "function"],
)
def test_files(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    X, Y = clouds()
    found = small(**options).fit(X.astype(np.float32), Y)
    found.save(tmp_path / "map.safetensors")
    again = MongeGapEstimator.load(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(again.transform(X[:9]), found.transform(X[:9]))
    assert again.epsilon_ == found.epsilon_
    assert again.n_iter_ == 6
    for name, value in found.get_params().items():
        if name == "loss":
            assert again.loss is None  # functions are not in a file
        elif isinstance(value, Mahalanobis):
            assert torch.equal(again.cost.precision, value.precision)
        else:
            assert getattr(again, name) == value
    assert MongeGapEstimator.load(tmp_path / "map.safetensors", seed=7).seed == 7


def test_files_of_other_networks_and_of_others(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    X, Y = clouds()
    found = small(network=nn.Linear(2, 2)).fit(X, Y)
    found.save(tmp_path / "map.safetensors")
    again = MongeGapEstimator.load(tmp_path / "map.safetensors", network=nn.Linear(2, 2))
    np.testing.assert_array_equal(again.transform(X), found.transform(X))
    safetensors.save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidInput, match="a file that a map has written"):
        MongeGapEstimator.load(tmp_path / "other.safetensors")


def test_frames_keep_their_names(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("safetensors")
    X, Y = clouds()
    frame = pd.DataFrame(X, columns=["u", "v"])
    found = small().set_output(transform="pandas").fit(frame, Y)
    assert list(found.transform(frame).columns) == ["u", "v"]
    found.save(tmp_path / "map.safetensors")
    assert list(MongeGapEstimator.load(tmp_path / "map.safetensors").feature_names_in_) == ["u", "v"]


# -- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": 0}, "max_iter"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lam": -1.0}, "lam"),
        ({"lam_cons": 1.0}, "Use structured=True"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon_fit": "small"}, "epsilon_fit"),
        ({"timeout": 0}, "timeout"),
        ({"early_stopping": True, "validation_fraction": 1.0}, "validation_fraction"),
        ({"cost": "nearness"}, "cost"),
        ({"cost": "euclidean", "structured": True}, "strictly convex"),
    ],
)
def test_parameters_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        small(**options).fit(*clouds(20))


def test_clouds_that_are_refused() -> None:
    X, Y = clouds(20)
    with pytest.raises(InvalidInput, match="a target cloud"):
        small().fit(X)
    with pytest.raises(InvalidInput, match="dimension 2, got dimension 1"):
        small().fit(X, Y[:, :1])
    with pytest.raises(InvalidInput, match="one way only"):
        small().fit(X, Y).inverse_transform(Y)
    with pytest.raises(InvalidInput, match="Give epsilon as a number"):
        small().fit(np.ones((5, 2)), np.ones((5, 2)))


# -- the convex baseline -----------------------------------------------------------------------------------------


def test_it_is_convex_and_its_gradient_is_one() -> None:
    torch.manual_seed(0)
    f = ICNN(2, (8, 8)).double()
    with torch.no_grad():
        for layer in f.positive:
            layer.weight.sub_(0.1)
    f.project()
    u, v, t = cloud(50, 2, 1), cloud(50, 2, 2), torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    assert (f(t * u + (1 - t) * v) <= t[:, 0] * f(u) + (1 - t[:, 0]) * f(v) + 1e-12).all()
    x = u.clone().requires_grad_()
    assert torch.equal(f.gradient(u), torch.autograd.grad(f(x).sum(), x)[0])
    with pytest.raises(InvalidInput, match="at least one layer"):
        ICNN(2, ())


def test_the_dual_learns_both_ways(tmp_path: Path) -> None:
    X, Y = clouds()
    found = ICNNMap((16, 16), 4, max_iter=120, batch_size=128, lr=5e-3).fit(X, Y)
    assert np.square(found.transform(X) - (0.7 * X + 1.5)).sum(1).mean() < 0.2
    assert np.square(found.inverse_transform(Y) - (Y - 1.5) / 0.7).sum(1).mean() < 0.4
    assert abs(found.evaluate(X, Y)["exact_gap"]) < 0.02
    pytest.importorskip("safetensors")
    found.save(tmp_path / "map.safetensors")
    again = ICNNMap.load(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(again.inverse_transform(Y), found.inverse_transform(Y))


# -- as scikit-learn has it --------------------------------------------------------------------------------------


class ToItself(MongeGapEstimator):
    """The map of a cloud to itself: labels, which the checks pass, are none."""

    def __init__(self, hidden: tuple[int, ...] = (8,), max_iter: int = 2, seed: int = 0) -> None:
        super().__init__(hidden=hidden, max_iter=max_iter, seed=seed)

    def fit(self, X: Any, y: Any = None) -> ToItself:  # type: ignore[override]
        return super().fit(X, X)

    def score(self, X: Any, y: Any = None) -> float:
        return super().score(X, X)


@parametrize_with_checks([ToItself()])
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_it_is_cloned() -> None:
    found = clone(small(cost=Geodesic(), epsilon=Relative(0.1), network=nn.Linear(2, 2)))
    assert found.cost == Geodesic()
    assert found.epsilon == Relative(0.1)
