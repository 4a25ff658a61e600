"""One map for all conditions: its networks, contexts and metrics, what it learns, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.decomposition import PCA

from brenier import InvalidInput, Relative, solve
from brenier.losses import mmd
from brenier.maps.training import BANDWIDTHS, cosine
from brenier.systems.cells.conditional_monge_gap import (
    Autoencoder,
    CMonge,
    ConditionalMongeMap,
    ConditionEncoder,
    dose_context,
    mmd_floor,
    moa_embedding,
    populations,
    rdkit_descriptors,
    response_metrics,
)

DOSES = (0.0, 0.5, 1.0)


def cells(n: int = 200) -> tuple[np.ndarray, dict[Any, np.ndarray], dict[Any, list[float]]]:
    """Controls, and cells that a dose shifts along the first axis and squeezes along the second."""
    rng = np.random.default_rng(0)
    control = rng.normal(size=(n, 2))
    treated = {s: rng.normal(size=(n, 2)) * [1, 1 - 0.4 * s] + [2 * s, 0] for s in DOSES}
    return control, treated, {s: [s] for s in DOSES}


def small(**parameters: Any) -> CMonge:
    return CMonge(**{"hidden": (16,), "sizes": 4, "max_iter": 6, "batch_size": 48, "lr": 1e-2, **parameters})


# -- networks ------------------------------------------------------------------------------------------------


def test_slices_go_through_layers_of_their_own() -> None:
    torch.manual_seed(0)
    encoder = ConditionEncoder(5, [(0, 4), (4, 5)], (3, 1))
    c = torch.randn(5)
    first, second = (torch.nn.functional.gelu(layer(part)) for layer, part in zip(encoder.layers, (c[:4], c[4:])))
    assert torch.allclose(encoder(c), torch.cat([first, second]))
    assert encoder.width == 4
    other = c.clone()
    other[4] = 9.0  # the dose does not reach what the drug says
    assert torch.equal(encoder(other)[:3], encoder(c)[:3])
    assert ConditionEncoder(5, [(0, 4), (0, 5)], 2).width == 4  # slices may overlap


def test_sets_have_no_order_and_any_size() -> None:
    torch.manual_seed(0)
    encoder = ConditionEncoder(3, mode="set", sizes=6)
    drugs = torch.randn(4, 3)
    assert torch.equal(encoder(drugs[:2]), encoder(drugs[:2].flip(0)))
    assert torch.allclose(encoder(drugs), encoder(drugs[[2, 0, 3, 1]]), atol=1e-6)
    assert torch.allclose(encoder(drugs[0]), encoder(drugs[:1]))
    assert encoder(drugs.expand(7, 4, 3)).shape == (7, 6)


@pytest.mark.parametrize("mode", ["slices", "set"])
def test_the_map_under_one_context_or_one_for_each_point(mode: str) -> None:
    torch.manual_seed(0)
    T = ConditionalMongeMap(2, ConditionEncoder(3, mode=mode), (8,), layer_norm=True)
    x, c = torch.randn(5, 2), torch.randn(3)
    one = T(x, c)
    each = c.expand(5, 3) if mode == "slices" else c.expand(5, 1, 3)
    assert torch.allclose(T(x, each), one, atol=1e-6)
    plain = ConditionalMongeMap(2, ConditionEncoder(3, mode=mode), (8,), layer_norm=True, residual=False)
    plain.load_state_dict(T.state_dict())
    assert torch.allclose(plain(x, c), one - x, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "dim"),
        ((3, [(0, 4)]), {}, "within a context of 3"),
        ((3, [(2, 2)]), {}, "within a context of 3"),
        ((3, []), {}, "within a context of 3"),
        ((3, [(0, 2), (2, 3)], (5,)), {}, "for each of 2 slices"),
        ((3, None, 0), {}, "for each of 1 slices"),
        ((3,), {"mode": "mean"}, "'slices' or 'set'"),
    ],
)
def test_encoders_that_are_refused(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ConditionEncoder(*arguments, **options)


def test_networks_refuse() -> None:
    with pytest.raises(InvalidInput, match="positive integers"):
        ConditionalMongeMap(2, ConditionEncoder(1), (0,))
    with pytest.raises(InvalidInput, match="3 numbers"):
        ConditionEncoder(3)(torch.zeros(2))


# -- contexts ------------------------------------------------------------------------------------------------


def test_contexts_of_doses() -> None:
    assert dose_context(0.1).tolist() == [-1.0]
    for dose in (0.0, -1.0, np.inf, "high"):
        with pytest.raises(InvalidInput, match="a positive number"):
            dose_context(dose)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="one row"):
        dose_context(1.0, np.zeros((2, 2)))


def test_effects_that_are_near_are_embedded_near() -> None:
    rng = np.random.default_rng(0)
    samples = {s: rng.normal(size=(80, 3)) + s for s in (0.0, 1.0, 2.0, 8.0)}
    found = moa_embedding(samples, dim=2, batches=2)
    points = np.stack(list(found.values()))
    assert points.shape == (4, 2)
    assert (points.min(), points.max()) == (0, 1)
    along = np.linalg.norm(points - points[0], axis=1)
    assert (np.diff(along) > 0).all()  # in the order of the shifts
    again = moa_embedding(samples, dim=2, batches=2)
    assert all(np.array_equal(again[key], found[key]) for key in samples)
    assert all(
        np.array_equal(v, np.zeros(3)) for v in moa_embedding({0: np.ones((5, 2)), 1: np.ones((5, 2))}, 3).values()
    )


def test_embeddings_that_are_refused() -> None:
    some = np.zeros((4, 2))
    for samples, message in (({"a": some}, "at least two"), ({"a": some, "b": np.zeros((4, 3))}, "one dimension")):
        with pytest.raises(InvalidInput, match=message):
            moa_embedding(samples)
    with pytest.raises(InvalidInput, match="batches"):
        moa_embedding({"a": some, "b": some}, batches=0)


def test_structures_of_drugs() -> None:
    pytest.importorskip("rdkit")
    smiles = {"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ethanol": "CCO", "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C"}
    found = rdkit_descriptors(smiles)
    table = np.stack(list(found.values()))
    assert list(found) == list(smiles)
    assert table.shape[1] > 80
    np.testing.assert_allclose(table.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(table.std(0), 1)
    for text in ("not a drug", "", None):
        with pytest.raises(InvalidInput, match="a structure in SMILES"):
            rdkit_descriptors({**smiles, "unknown": text})  # type: ignore[dict-item]
    with pytest.raises(InvalidInput, match="at least two drugs"):
        rdkit_descriptors({"ethanol": "CCO"})


# -- metrics -------------------------------------------------------------------------------------------------


def test_metrics_of_known_clouds() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = x + np.array([3.0, 0.0, 4.0])
    found = response_metrics(x, y)
    assert found["signature"] == pytest.approx(5)
    exact = float(solve(x, y, cost="euclidean").value)
    assert exact <= found["wasserstein"] < exact + 0.3
    assert 4 < found["sinkhorn_divergence"] < 5
    assert found["mmd"] == pytest.approx(float(mmd(x, y, bandwidth=BANDWIDTHS)))
    means = x.mean(0), y.mean(0)
    assert found["r2"] == pytest.approx(np.corrcoef(*means)[0, 1] ** 2)
    same = response_metrics(x, x)
    assert (same["signature"], same["r2"]) == (0, pytest.approx(1))
    assert abs(same["mmd"]) < 1e-12
    assert np.isnan(response_metrics(x[:, :1], x[:, :1])["r2"])


def test_the_floor_is_what_two_samples_show() -> None:
    rng = np.random.default_rng(0)
    drawn = [float(mmd(*rng.normal(size=(2, 120, 2))[:, :100], bandwidth=BANDWIDTHS)) for _ in range(30)]
    floors = [mmd_floor(rng.normal(size=(100, 2)), 100) for _ in range(10)]
    assert np.mean(floors) == pytest.approx(np.mean(drawn), rel=0.15)
    y = rng.normal(size=(100, 2))
    assert mmd_floor(y, 50) == pytest.approx(1.5 * mmd_floor(y, 100))
    with pytest.raises(InvalidInput, match="four cells"):
        mmd_floor(y[:3], 10)
    with pytest.raises(InvalidInput, match="splits"):
        mmd_floor(y, 10, splits=0)


def test_the_step_length() -> None:
    assert [cosine(k, 100, warmup=10) for k in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert cosine(55, 100, warmup=10) == pytest.approx(0.5)
    assert cosine(100, 100, floor=0.01) == pytest.approx(0.01)


# -- what is learned -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False])
def test_a_dose_between_two_others(residual: bool) -> None:
    control, treated, contexts = cells()
    found = small(max_iter=120, residual=residual, sizes=8).fit(control, treated, contexts)
    moved = found.predict(control, [0.75])
    assert moved.mean(0) == pytest.approx([1.5, 0], abs=0.3)
    frame = found.evaluate(control, {0.75: control * [1, 0.7] + [1.5, 0]}, {0.75: [0.75]})
    row = frame.loc[0.75]
    assert row["mmd"] < 0.2 * row["mmd_identity"]
    assert row["exact_gap"] < 0.05 * row["displacement"]
    assert found.n_cells_ == (200, 200, 200)
    assert set(found.history_) == {"loss", "fit", "gap"}


def test_an_unseen_pair_of_drugs() -> None:
    rng = np.random.default_rng(0)
    control = rng.normal(size=(200, 2))
    drugs = {"a": np.array([1.5, 0.0]), "b": np.array([0.0, 1.5]), "c": np.array([-1.5, 0.0])}
    sets = [("a",), ("b",), ("c",), ("a", "b"), ("b", "c")]
    contexts = {s: np.stack([drugs[d] for d in s]) for s in sets}
    treated = {s: rng.normal(size=(200, 2)) + contexts[s].sum(0) for s in sets}
    found = small(mode="set", sizes=16, max_iter=60).fit(control, treated, contexts)
    pair = np.stack([drugs["a"], drugs["c"]])
    one, other = found.predict(control, pair), found.predict(control, pair[::-1].copy())
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_array_equal(found.predict(control, ("a", "b")), found.predict(control, contexts["a", "b"]))
    np.testing.assert_array_equal(found.predict(control, drugs["a"]), found.predict(control, ("a",)))


def test_conditions_by_name_and_by_numbers() -> None:
    control, treated, contexts = cells()
    found = small().fit(control, treated, contexts)
    np.testing.assert_array_equal(found.predict(control, 0.5), found.predict(control, [0.5]))
    np.testing.assert_array_equal(found.transform(control, 0.5), found.predict(control, 0.5))
    assert {k: v.tolist() for k, v in found.contexts_.items()} == contexts
    named = small().fit(control, {"low": treated[0.0], "high": treated[1.0]}, {"low": [0.0], "high": [1.0]})
    with pytest.raises(InvalidInput, match="Did you mean high"):
        named.predict(control, "hgh")
    with pytest.raises(InvalidInput, match="1 numbers, as in the training"):
        named.predict(control, [0.1, 0.2])
    with pytest.raises(InvalidInput, match="context"):
        named.transform(control)


def test_gradients_of_several_conditions() -> None:
    control, treated, contexts = cells()
    one, many = (small(accumulate=k).fit(control, treated, contexts) for k in (1, 3))
    assert len(many.history_["loss"]) == len(one.history_["loss"]) == 6
    assert np.abs(one.predict(control, 1.0) - many.predict(control, 1.0)).max() > 1e-6


def test_measures_by_condition() -> None:
    pd = pytest.importorskip("pandas")
    control, treated, contexts = cells()
    found = small(epsilon=Relative(0.01), epsilon_fit=Relative(0.2)).fit(control, treated, contexts)
    frame = found.evaluate(control, treated)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == list(DOSES)
    assert (frame["n_control"] == 200).all()
    assert frame.notna().all().all()
    assert found.score(control, treated) == pytest.approx(-frame["sinkhorn_divergence"].mean())
    few = found.evaluate(control, treated, features={key: [0] for key in treated}, max_cells=50)
    assert (few["n_treated"] == 50).all()
    pairs = found.evaluate(control, {("a", 1): treated[0.0]}, {("a", 1): [0.0]})
    assert list(pairs.index) == [("a", 1)]
    assert found.evaluate(control, treated).equals(frame)
    with pytest.raises(InvalidInput, match="max_cells"):
        found.evaluate(control, treated, max_cells=0)


# -- reducers ------------------------------------------------------------------------------------------------


def wide(n: int = 120) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, list[float]]]:
    control, treated, _ = cells(n)
    basis = np.random.default_rng(1).normal(size=(2, 12))
    return control @ basis, {"a": treated[0.5] @ basis, "b": treated[1.0] @ basis}, {"a": [0.5], "b": [1.0]}


@pytest.mark.parametrize("reducer", [PCA(2), Autoencoder(2, (8,), max_iter=20, lr=1e-2)], ids=["pca", "autoencoder"])
def test_cells_are_moved_in_the_space_of_the_reducer(reducer: Any, tmp_path: Path) -> None:
    control, treated, contexts = wide()
    found = small(reducer=reducer).fit(control, treated, contexts)
    assert found.n_components_ == 2
    assert found.network_.encoder.width == 4
    moved = found.predict(control, "b")
    assert moved.shape == control.shape
    if isinstance(reducer, PCA):  # what it leaves out is nothing here
        np.testing.assert_allclose(
            found.reducer_.inverse_transform(found.reducer_.transform(control)), control, atol=1e-6
        )
    assert found.evaluate(control, treated).shape[0] == 2
    pytest.importorskip("safetensors")
    found.save(tmp_path / "map.safetensors")
    again = CMonge.load(tmp_path / "map.safetensors", reducer=found.reducer_)
    np.testing.assert_array_equal(again.predict(control, "b"), moved)


def test_the_autoencoder(tmp_path: Path) -> None:
    X = np.tanh(wide(200)[0])
    options: dict[str, Any] = {"hidden": (32,), "lr": 5e-3, "warmup": 10, "batch_size": 64}
    found = Autoencoder(2, max_iter=200, **options).fit(X)
    assert found.transform(X).shape == (200, 2)
    start = Autoencoder(2, max_iter=1, **options).fit(X)
    assert found.evaluate(X)["mse"] < 0.3 * start.evaluate(X)["mse"]
    assert found.score(X) == -found.evaluate(X)["mse"]
    assert 0.5 < found.evaluate(X)["r2"] <= 1
    np.testing.assert_array_equal(clone(found).fit(X).transform(X), found.transform(X))
    stopped = Autoencoder(2, max_iter=40, early_stopping=True, check_every=10, **options).fit(X)
    assert len(stopped.history_["held_out"]) == 4
    assert list(found.get_feature_names_out()) == ["autoencoder0", "autoencoder1"]
    with pytest.raises(InvalidInput, match="2 components"):
        found.inverse_transform(X)
    for wrong, message in (({"n_components": 0}, "positive integers"), ({"warmup": -1}, "warmup")):
        with pytest.raises(InvalidInput, match=message):
            Autoencoder(**{"n_components": 2, **wrong}).fit(X)
    pytest.importorskip("safetensors")
    found.save(tmp_path / "reducer.safetensors")
    again = Autoencoder.load(tmp_path / "reducer.safetensors")
    np.testing.assert_array_equal(
        again.inverse_transform(again.transform(X)), found.inverse_transform(found.transform(X))
    )


# -- training and files --------------------------------------------------------------------------------------


def test_a_fit_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    control, treated, contexts = cells()
    options = {"early_stopping": True, "check_every": 2, "patience": 50, "max_iter": 8}
    path = tmp_path / "fit.pt"
    whole = small(**options).fit(control, treated, contexts)
    part = small(checkpoint=path, timeout=1e-9, **options).fit(control, treated, contexts)
    assert part.n_iter_ == 1
    resumed = small(checkpoint=path, **options).fit(control, treated, contexts)
    assert resumed.history_ == whole.history_
    np.testing.assert_array_equal(resumed.predict(control, 1.0), whole.predict(control, 1.0))
    for other in ({"max_iter": 9}, {"seed": 1}):  # the cosine ends elsewhere, or another fit
        with pytest.raises(InvalidInput, match="the file of this fit"):
            small(**{"checkpoint": path, **options, **other}).fit(control, treated, contexts)
    with pytest.raises(InvalidInput, match="the file of this fit"):
        small(checkpoint=path, **options).fit(control, treated, {**contexts, 1.0: [2.0]})


def test_files(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    control, treated, _ = cells()
    keys: list[Any] = ["a", ("b", 10.0), 3]
    contexts = {key: [float(k), 1.0] for k, key in enumerate(keys)}
    found = small(slices=[(0, 1), (1, 2)], sizes=(3, 2), layer_norm=True)
    found.fit(control.astype(np.float32), dict(zip(keys, treated.values())), contexts)
    found.save(tmp_path / "map.safetensors")
    again = CMonge.load(tmp_path / "map.safetensors")
    for key in (*keys, [0.3, 0.7]):
        np.testing.assert_array_equal(again.predict(control, key), found.predict(control, key))
    assert again.n_cells_ == found.n_cells_
    assert again.epsilon_ == 0.01
    assert clone(again).sizes == (3, 2)


def test_a_seed_makes_it_the_same() -> None:
    one, two, other = (small(seed=s).fit(*cells()).predict(cells()[0], 1.0) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-4


# -- AnnData -------------------------------------------------------------------------------------------------


def annotated() -> Any:
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    n = 40
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(np.repeat(["none", "a", "a", "b", "b"], n)),
            "nM": np.repeat([0.0, 10.0, 100.0, 10.0, 100.0], n),
        },
        index=[f"cell{k}" for k in range(5 * n)],
    )
    X = rng.normal(size=(5 * n, 3)) + np.log10(obs["nM"].to_numpy() + 1)[:, None]
    return anndata.AnnData(X, obs=obs, obsm={"X_pca": X[:, :2].copy()})


def test_anndata_in_and_out() -> None:
    adata = annotated()
    drugs = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    found = populations(adata, "drug", "none", contexts=drugs, dose="nM")
    assert list(found.treated) == [("a", 10.0), ("a", 100.0), ("b", 10.0), ("b", 100.0)]
    assert found.contexts["b", 100.0].tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_array_equal(found.control, adata.X[:40])
    estimator = small().fit_anndata(adata, "drug", "none", contexts=drugs, dose="nM")
    np.testing.assert_array_equal(estimator.predict(found.control, ("a", 10.0)),
                                  small().fit(*found).predict(found.control, ("a", 10.0)))  # fmt: skip
    controls = adata[adata.obs["drug"] == "none"]
    out = estimator.predict_anndata(controls, dose_context(30.0, drugs["a"]))
    assert list(out.obs_names) == list(controls.obs_names)
    np.testing.assert_array_equal(out.X, estimator.predict(found.control, [1.0, 0.0, np.log10(30.0)]))
    latent = small().fit_anndata(adata, "drug", "none", contexts=drugs, use_rep="X_pca")
    out = latent.predict_anndata(controls, "a", use_rep="X_pca")
    assert out.obsm["X_pca"].shape == (40, 2)
    assert np.abs(out.obsm["X_pca"] - controls.obsm["X_pca"]).max() > 0
    np.testing.assert_array_equal(out.X, controls.X)
    assert len(estimator.evaluate(*found)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "perturbation"}, "a column 'perturbation' in obs"),
        ({"control": "DMSO"}, "the label of some cells"),
        ({"dose": "uM"}, "a column 'uM' in obs"),
        ({"dose": None}, "numbers for each of 2 conditions"),
        ({"contexts": {"a": [1.0]}}, "an entry for 'b'"),
        ({"use_rep": "X_umap"}, "one of obsm: X_pca"),
    ],
)
def test_anndata_that_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"condition": "drug", "control": "none", "dose": "nM", **options}
    with pytest.raises(InvalidInput, match=message):
        populations(annotated(), **given)


def test_doses_of_zero_are_refused() -> None:
    adata = annotated()
    adata.obs["nM"] = 0.0
    with pytest.raises(InvalidInput, match="Controls have no context"):
        populations(adata, "drug", "none", contexts={"a": [1.0], "b": [2.0]}, dose="nM")


# -- what it refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"mode": "mean"}, "'slices' or 'set'"),
        ({"slices": [(0, 2)]}, "within a context of 1"),
        ({"reducer": 5}, "a transformer with inverse_transform"),
        ({"hidden": (0,)}, "positive integers"),
        ({"epsilon": -1.0}, "epsilon"),
    ],
)
def test_parameters_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        small(**options).fit(*cells(40))


def test_cells_and_contexts_that_are_refused() -> None:
    control, treated, contexts = cells(40)
    for arguments, message in (
        ((control,), "a mapping of conditions to their cells"),
        ((control, {}, contexts), "an empty one"),
        ((control, treated), "a mapping of conditions to numbers"),
        ((control, treated, {0.0: [1.0]}), "an entry for 0.5"),
        ((control, {**treated, 1.0: treated[1.0][:31]}, contexts), "at least 32 cells, got 31"),
        ((control[:31], treated, contexts), "at least 32 cells, got 31"),
        ((control, treated, {**contexts, 1.0: [1.0, 2.0]}), "one length"),
        ((control, treated, {**contexts, 1.0: [np.nan]}), "finite numbers"),
        ((control, treated, {**contexts, 1.0: [[1.0]]}), r"numbers \(c,\)"),
        ((control, {None: control}, {None: [1.0]}), "texts, numbers or tuples"),
    ):
        with pytest.raises(InvalidInput, match=message):
            small().fit(*arguments)
    with pytest.raises(ValueError, match="features"):
        small().fit(control, {0.0: treated[0.0][:, :1]}, contexts)
