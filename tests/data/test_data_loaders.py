"""Readers on tiny files written by hand, and the real sets where they can be had."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brenier import data
from brenier.data import DataUnavailable, _images, _text

Load = Callable[..., Any]


# -- readers ------------------------------------------------------------------------------------------------


def test_read_ts(tmp_path: Path) -> None:
    path = tmp_path / "toy.ts"
    lines = ["# 1,2:3,4:x", "@dimensions 2", "", "@DATA", "1,2,3:4,5,6:b", "", "# skipped", "-1e-3:2:a"]
    path.write_text("\n".join(lines))
    series, labels = data.read_ts(path)
    assert labels == ["b", "a"]
    assert [s.dtype for s in series] == [np.float64, np.float64]
    assert all(s.flags.c_contiguous for s in series)
    np.testing.assert_array_equal(series[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(series[1], [[-1e-3, 2]])


@pytest.mark.parametrize("line", ["1,2:3:a", "1,?:3,4:a"])
def test_read_ts_refuses_bad_series(line: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.ts"
    path.write_text(f"@data\n1:2:a\n{line}\n")
    with pytest.raises(ValueError, match=r"toy\.ts, line 3: expected dimensions of one length"):
        data.read_ts(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_read_idx(zipped: bool, tmp_path: Path) -> None:
    raw = b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 1, 3) + bytes(range(6))
    path = tmp_path / ("toy-idx3-ubyte" + (".gz" if zipped else ""))
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    array = data.read_idx(path)
    np.testing.assert_array_equal(array, np.arange(6, dtype=np.uint8).reshape(2, 1, 3))
    assert array.dtype == np.uint8
    assert array.flags.writeable  # torch.from_numpy warns about arrays that are not


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "expected an IDX file"),
        (b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + bytes(4), "expected an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x01" + struct.pack(">I", 5) + bytes(4), r"shape \(5,\), but 4 values follow"),
        (b"\x00\x00\x08\x03" + struct.pack(">I", 5), "0 values follow"),
    ],
)
def test_read_idx_refuses_other_files(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "toy"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=said):
        data.read_idx(path)


def test_read_fcs(tmp_path: Path) -> None:
    flowio = pytest.importorskip("flowio")
    events = np.array([[1.5, -2.0, 3.0], [4.0, 5.25, 6.0]])
    path = tmp_path / "toy.fcs"
    with path.open("wb") as stream:
        flowio.create_fcs(stream, events.ravel().tolist(), ["FSC-A", "GFP", "Time"])
    cells, channels = data.read_fcs(path)
    assert channels == ("FSC-A", "GFP", "Time")
    np.testing.assert_array_equal(cells, events)  # these values are exact in float32


def test_missing_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "flowio", None)
    with pytest.raises(ImportError, match=r"needs the package 'flowio'.* pip install 'brenier\[data\]'"):
        data.read_fcs(tmp_path / "toy.fcs")
    with pytest.raises(ImportError, match="needs the package 'flowio'"):
        data.yeast_dose_response()  # before anything is fetched


# -- transformations ----------------------------------------------------------------------------------------


def test_preprocess_cytometry_gates_and_scales() -> None:
    rng = np.random.default_rng(100)
    clouds = [150 * np.sinh(rng.normal(m, 2.0, size=(500, 3))) for m in (0.0, 1.0)]
    clouds[0][0, 1] = 1e12  # one absurd cell
    out = data.preprocess_cytometry(clouds)
    pooled = np.concatenate(out)
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(pooled.std(axis=0), 1, rtol=1e-12)
    bent = np.arcsinh(np.concatenate(clouds) / 150)
    low, high = np.quantile(bent, [0.005, 0.995], axis=0)
    inside = ((bent >= low) & (bent <= high)).all(axis=1)
    assert not inside[0]
    assert sum(map(len, out)) == inside.sum()
    expected = (bent[inside] - bent[inside].mean(axis=0)) / bent[inside].std(axis=0)
    np.testing.assert_allclose(pooled, expected, rtol=1e-12, atol=1e-12)


def test_preprocess_cytometry_fitted_on_some_clouds_ignores_the_others() -> None:
    rng = np.random.default_rng(101)
    first, second = rng.normal(size=(2, 400, 2)) * 100
    alone = data.preprocess_cytometry([first])
    both = data.preprocess_cytometry([first, second + 30], fit_on=[0])
    np.testing.assert_array_equal(both[0], alone[0])
    with pytest.raises(ValueError, match="at least one cloud"):
        data.preprocess_cytometry([first], fit_on=[])


def test_preprocess_cytometry_with_a_constant_channel() -> None:
    cloud = np.stack([np.arange(50.0), np.full(50, 7.0)], axis=1)
    (out,) = data.preprocess_cytometry([cloud], quantiles=(0.0, 1.0))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 1], 0, atol=1e-12)


def test_image_clouds_by_hand() -> None:
    image = np.zeros((1, 2, 4))
    image[0, 0, 1] = 3.0  # top row, second column
    image[0, 1, 3] = 1.0  # bottom row, last column
    (points,), (weights,) = data.image_clouds(image)
    np.testing.assert_allclose(points, [[0.375, 0.375], [0.875, 0.125]])
    np.testing.assert_allclose(weights, [0.75, 0.25])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.ones((2, 2)), "shape"),
        (-np.ones((1, 2, 2)), "non-negative"),
        (np.full((1, 2, 2), np.nan), "finite"),
        (np.stack([np.ones((2, 2)), np.zeros((2, 2))]), "image 1 is zero everywhere"),
    ],
)
def test_image_clouds_refuses_what_is_no_measure(images: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data.image_clouds(images)


# -- real sets ----------------------------------------------------------------------------------------------


def test_japanese_vowels(load_or_skip: Load) -> None:
    got = load_or_skip(data.japanese_vowels)
    assert (len(got.train), len(got.test)) == (270, 370)
    np.testing.assert_array_equal(np.bincount(got.train_speakers)[1:], [30] * 9)
    np.testing.assert_array_equal(np.bincount(got.test_speakers)[1:], [31, 35, 88, 44, 29, 24, 40, 50, 29])
    clouds = got.train + got.test
    assert {c.shape[1] for c in clouds} == {12}
    assert {c.dtype for c in clouds} == {np.dtype(np.float64)}
    lengths = [len(c) for c in clouds]
    assert (min(lengths), max(lengths), sum(lengths)) == (7, 29, 9961)
    np.testing.assert_allclose(got.train[0][0, :3], [1.860936, -0.207383, 0.261557])
    np.testing.assert_allclose(
        np.concatenate(got.train).mean(axis=0)[:3], [0.8691055, -0.55450144, 0.24610909], rtol=1e-6
    )


def test_yeast_dose_response_raw(load_or_skip: Load) -> None:
    pytest.importorskip("flowio")
    got = load_or_skip(data.yeast_dose_response, preprocess=False)
    assert got.wells == (*(f"B{i}" for i in range(1, 13)), *(f"C{i}" for i in range(1, 10)))
    assert got.doses.shape == (21,)
    assert (got.doses[0], got.doses[-1]) == (5.0, 0.0159)
    ratios = got.doses[:-1] / got.doses[1:]
    np.testing.assert_allclose(ratios, 4 / 3, rtol=0.01)  # a dilution series
    assert got.channels[:2] == ("FSC-A", "FSC-H")
    assert got.channels[6:] == ("FITC-A", "PerCP-Cy5-5-A", "Time")
    assert {c.shape for c in got.clouds} == {(1000, 9)}
    green = [c[:, 6].mean() for c in got.clouds[::5]]
    np.testing.assert_allclose(green, [2794.0983, 2966.4360, 2010.4372, 545.1991, 143.3331], rtol=1e-6)


def test_yeast_dose_response_preprocessed(load_or_skip: Load) -> None:
    pytest.importorskip("flowio")
    got = load_or_skip(data.yeast_dose_response)
    assert got.channels[-1] == "PerCP-Cy5-5-A"
    assert {c.shape[1] for c in got.clouds} == {8}
    assert sum(map(len, got.clouds)) == 20042
    assert min(map(len, got.clouds)) == 911
    pooled = np.concatenate(got.clouds)
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(pooled.std(axis=0), 1, rtol=1e-10)
    np.testing.assert_allclose(got.clouds[-1][:, 6].mean(), -1.54537226, rtol=1e-6)
    held_out = load_or_skip(data.yeast_dose_response, fit_on=["B1", "C9"])
    fitted = np.concatenate([held_out.clouds[0], held_out.clouds[-1]])
    np.testing.assert_allclose(fitted.mean(axis=0), 0, atol=1e-10)
    assert abs(np.concatenate(held_out.clouds).mean()) > 1e-3


def test_yeast_dose_response_checks_fit_on() -> None:
    with pytest.raises(ValueError, match=r"expected wells among B1.*got C10"):
        data.yeast_dose_response(fit_on=["B1", "C10"])
    with pytest.raises(ValueError, match="preprocess is False"):
        data.yeast_dose_response(preprocess=False, fit_on=["B1"])


def test_flow_cytometry_wells(load_or_skip: Load) -> None:
    pytest.importorskip("flowio")
    got = load_or_skip(data.flow_cytometry_wells)
    assert len(got.wells) == len(got.clouds) == 11
    assert {c.shape for c in got.clouds} == {(10000, 16)}
    assert got.channels[:2] == ("HDR-T", "FSC-A")
    assert got.channels[10] == "Y2-A"
    red = {well: np.median(cloud[:, 10]) for well, cloud in zip(got.wells, got.clouds, strict=True)}
    np.testing.assert_allclose(red["RFP-B3"], 1625.6535644)
    np.testing.assert_allclose(red["CFP-A4"], 28.8257170)


def test_untagged() -> None:
    lines = "\n\n\tThe/at fee/nn is/bez 1/2/cd ``/`` net/jj ''/'' ./.\n\n\tYes/rb ./.\n"
    assert _text.untagged(lines) == "The fee is 1/2 `` net '' .\nYes ."


def test_brown_corpus(load_or_skip: Load) -> None:
    got = load_or_skip(data.brown_corpus)
    assert list(got) == sorted(got)
    assert len(got) == 500
    assert got["ca01"].startswith("The Fulton County Grand Jury said Friday an investigation of Atlanta's recent")
    assert 1_150_000 < sum(len(text.split()) for text in got.values()) < 1_170_000


def test_python_topics() -> None:
    got = data.python_topics()
    assert list(got) == sorted(got)
    assert 60 <= len(got) <= 120
    assert 300_000 < sum(map(len, got.values())) < 900_000
    assert "lambda" in got


def test_digits() -> None:
    pytest.importorskip("sklearn")
    got = data.digits()
    assert got.images.shape == (1797, 8, 8)
    assert (got.images.dtype, got.labels.dtype) == (np.float64, np.int64)
    assert (got.images.min(), got.images.max()) == (0, 16)
    np.testing.assert_array_equal(np.bincount(got.labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_digit_clouds() -> None:
    pytest.importorskip("sklearn")
    images, labels = data.digits()
    got = data.digit_clouds()
    np.testing.assert_array_equal(got.labels, labels)
    sizes = [len(points) for points in got.points]
    assert (min(sizes), max(sizes), sum(sizes)) == (16, 42, np.count_nonzero(images))
    for index in (0, 1, 1796):
        points, weights = got.points[index], got.weights[index]
        assert (weights > 0).all()
        np.testing.assert_allclose(weights.sum(), 1)
        rebuilt = np.zeros((8, 8))  # the cloud holds the whole picture
        rebuilt[(8 - 8 * points[:, 1]).astype(int), (8 * points[:, 0]).astype(int)] = weights
        np.testing.assert_allclose(rebuilt, images[index] / images[index].sum())


def test_pbmc68k_reduced(load_or_skip: Load) -> None:
    pytest.importorskip("anndata")
    got = load_or_skip(data.pbmc68k_reduced)
    assert (got.components.shape, got.expression.shape) == ((700, 50), (700, 765))
    assert (got.components.dtype, got.expression.dtype) == (np.float64, np.float64)
    assert (len(got.genes), len(set(got.genes))) == (765, 765)
    assert len(set(got.types)) == 10
    assert (np.diff(got.components.var(0)) < 0).mean() > 0.9  # principal components, nearly in order


def test_hsmm(load_or_skip: Load) -> None:
    pytest.importorskip("rdata")
    got = load_or_skip(data.hsmm)
    assert got.expression.shape == (271, 47192)
    assert len(got.genes) == 47192
    assert got.expression.min() == 0
    hours, counts = np.unique(got.hours, return_counts=True)
    assert hours.tolist() == [0, 24, 48, 72]
    assert counts.tolist() == [69, 74, 79, 49]


def test_colour_photographs(load_or_skip: Load) -> None:
    pytest.importorskip("PIL")
    got = load_or_skip(data.colour_photographs)
    assert [p.shape for p in got] == [(512, 512, 3), (300, 451, 3), (400, 600, 3)]
    assert {p.dtype for p in got} == {np.dtype(np.uint8)}
    np.testing.assert_allclose([p.mean() for p in got], [114.59900410, 115.30514167, 98.61595417], rtol=1e-8)


def test_fashion_mnist(load_or_skip: Load) -> None:
    got = load_or_skip(data.fashion_mnist)
    assert (got.train.shape, got.test.shape) == ((60000, 28, 28), (10000, 28, 28))
    np.testing.assert_array_equal(np.bincount(got.train_labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(got.test_labels), [1000] * 10)
    np.testing.assert_array_equal(got.train_labels[:5], [9, 0, 0, 3, 0])
    np.testing.assert_allclose(got.train.mean() / 255, 0.2860406, rtol=1e-6)


def test_fashion_mnist_falls_back_and_checks_content(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_debian(package: str, members: list[str]) -> dict[str, Path]:
        raise DataUnavailable("it", ["apt-get is not on this machine"], "install Debian")

    def wrong(url: str, known_hash: str, *, folder: str) -> Path:
        path = tmp_path / Path(url).name
        path.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 1) + b"\x07"))
        return path

    monkeypatch.setattr(_images, "from_debian", no_debian)
    monkeypatch.setattr(_images, "from_url", wrong)
    with pytest.raises(DataUnavailable, match=r"expected sha256 c59f468a.* of its content"):
        data.fashion_mnist()


@pytest.mark.slow
def test_smollm2(load_or_skip: Load) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    got = load_or_skip(data.smollm2)
    assert got.model.config.num_hidden_layers == 30
    assert got.model.dtype == torch.float32
    assert not got.model.training
    assert len(got.tokenizer) == got.model.config.vocab_size == 49_152
    assert got.tokenizer.pad_token is not None
    tokens = got.tokenizer("The capital of France is", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert tokens.shape == (1, 5)
    with torch.no_grad():
        best = got.model(tokens).logits[0, -1].argmax()
    assert got.tokenizer.decode([int(best)]) == " Paris"
