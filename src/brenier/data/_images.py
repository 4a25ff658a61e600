"""Small images, as arrays and as weighted clouds in the plane."""

from __future__ import annotations

import gzip
import hashlib
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import need
from ._fetch import DataUnavailable, first_of, from_debian, from_pypi, from_url
from ._registry import dataset


class Images(NamedTuple):
    """Grey images with their classes."""

    images: NDArray[np.float64]  # (n, height, width)
    labels: NDArray[np.int64]  # (n,)


class SplitImages(NamedTuple):
    """Grey images with their classes, in a training and a test part, as stored (bytes)."""

    train: NDArray[np.uint8]  # (n, height, width)
    train_labels: NDArray[np.int64]  # (n,)
    test: NDArray[np.uint8]  # (m, height, width)
    test_labels: NDArray[np.int64]  # (m,)


class ColourPhotographs(NamedTuple):
    """Colour photographs, as stored (bytes)."""

    astronaut: NDArray[np.uint8]  # (512, 512, 3)
    chelsea: NDArray[np.uint8]  # (300, 451, 3)
    coffee: NDArray[np.uint8]  # (400, 600, 3)


class WeightedClouds(NamedTuple):
    """Discrete probability measures in the plane, one an image, with the classes of the images."""

    points: list[NDArray[np.float64]]  # n arrays (k_i, 2), in the unit square
    weights: list[NDArray[np.float64]]  # n arrays (k_i,), positive, each of sum 1
    labels: NDArray[np.int64]  # (n,)


def image_clouds(
    images: ArrayLike,  # (n, height, width)
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Turn grey images into probability measures: a point for each non-zero pixel, its weight the intensity.

    Points are pixel centres ((column + ½) / s, (height - row - ½) / s) with s = max(height, width), so that
    the picture stands upright in the unit square. Weights are divided by their sum.

    Args:
        images: (n, height, width), non-negative.

    Returns:
        n arrays (k_i, 2) of points and n arrays (k_i,) of weights, k_i the number of non-zero pixels.

    Raises:
        ValueError: for another number of dimensions, a negative or non-finite intensity, or an image that is
            zero everywhere.
    """
    stack = np.asarray(images, dtype=np.float64)
    if stack.ndim != 3:
        raise ValueError(f"expected images of shape (n, height, width), got {stack.shape}")
    if not np.isfinite(stack).all() or (stack < 0).any():
        raise ValueError("expected finite, non-negative intensities")
    height = stack.shape[1]
    size = max(stack.shape[1:])
    points: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    for index, image in enumerate(stack):
        rows, columns = np.nonzero(image)
        if not rows.size:
            raise ValueError(f"image {index} is zero everywhere: it has no mass to be a measure; leave it out")
        points.append(np.stack([columns + 0.5, height - rows - 0.5], axis=1) / size)
        mass = image[rows, columns]
        weights.append(mass / mass.sum())
    return points, weights


@dataset(
    "digits",
    source="scikit-learn (load_digits), part of the UCI set 'Optical Recognition of Handwritten Digits'",
    licence="BSD-3-Clause (scikit-learn); CC BY 4.0 (UCI)",
    size="nothing fetched: 58 kB inside scikit-learn",
)
def digits() -> Images:
    """1,797 handwritten digits of 8 x 8 pixels, intensities 0 to 16.

    Source: the file inside scikit-learn (BSD-3-Clause), a copy of the UCI set (CC BY 4.0). Nothing is
    fetched.

    Returns:
        images (1797, 8, 8) and labels (1797,), 0 to 9.

    Raises:
        ImportError: when scikit-learn is not installed.
    """
    bunch = need("sklearn.datasets", "data", "This data set").load_digits()
    return Images(np.asarray(bunch.images, np.float64), np.asarray(bunch.target, np.int64))


@dataset(
    "digit-clouds",
    source="scikit-learn (load_digits), part of the UCI set 'Optical Recognition of Handwritten Digits'",
    licence="BSD-3-Clause (scikit-learn); CC BY 4.0 (UCI)",
    size="nothing fetched: 58 kB inside scikit-learn",
)
def digit_clouds() -> WeightedClouds:
    """1,797 handwritten digits as weighted clouds in the unit square: pixel centres, weighted by intensity.

    The images of `digits` through `image_clouds`; pixels of intensity zero are left out. Source: the file
    inside scikit-learn (BSD-3-Clause), a copy of the UCI set (CC BY 4.0). Nothing is fetched.

    Returns:
        1,797 clouds (k_i, 2) with weights (k_i,) of sum 1, and labels (1797,), 0 to 9.

    Raises:
        ImportError: when scikit-learn is not installed.
    """
    images, labels = digits()
    return WeightedClouds(*image_clouds(images), labels)


def read_idx(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes in the IDX format of MNIST, gzipped where its name ends in `.gz`.

    Raises:
        ValueError: when it is no IDX file of bytes, or its length is not that of its header.
    """
    return _parse_idx(_read_bytes(Path(path)), str(path))


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def _parse_idx(raw: bytes, name: str) -> NDArray[np.uint8]:
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{name}: expected an IDX file of unsigned bytes (00 00 08), got {raw[:3].hex(' ')!r}")
    start = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:start], dtype=">u4").tolist())
    data = np.frombuffer(raw, dtype=np.uint8, offset=min(start, len(raw)))
    if len(shape) != raw[3] or data.size != int(np.prod(shape)):
        raise ValueError(f"{name}: its header says shape {shape}, but {data.size} values follow")
    return data.reshape(shape).copy()  # a view of bytes could not be written to


_FASHION_MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION = {  # name: (md5 of the publisher's .gz, sha256 of what is inside)
    "train-images-idx3-ubyte.gz": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


@dataset(
    "fashion-mnist",
    source="Debian dataset-fashion-mnist, else the publisher's public address",
    licence="MIT (Expat)",
    size="30.9 MB fetched and kept",
)
def fashion_mnist() -> SplitImages:
    """70,000 images of clothing, 28 x 28 pixels, ten classes, in 60,000 for training and 10,000 for tests.

    Source: the Debian package `dataset-fashion-mnist` (installed, or unpacked into the cache without root),
    else the publisher's address; both hold the same bytes, which are checked. Licence: MIT. 30.9 MB fetched
    and kept. Images are returned as stored, bytes 0 to 255 (55 MB; as float64 they would take 440 MB):
    convert what you use.

    Returns:
        train (60000, 28, 28), train_labels (60000,), test (10000, 28, 28), test_labels (10000,).

    Raises:
        DataUnavailable: when neither source can be had, or a file is not the published one.

    References:
        H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms. arXiv 1708.07747, 2017.
    """

    def debian() -> dict[str, Path]:
        package = "dataset-fashion-mnist"
        paths = from_debian(package, [f"usr/share/datasets/fashion-mnist/{name}" for name in _FASHION])
        return {PurePosixPath(member).name: path for member, path in paths.items()}

    def publisher() -> dict[str, Path]:
        hashes = {name: f"md5:{md5}" for name, (md5, _) in _FASHION.items()}
        return {n: from_url(_FASHION_MIRROR + n, known, folder="fashion-mnist") for n, known in hashes.items()}

    paths = first_of("Fashion-MNIST", {"Debian package": debian, "public address": publisher})
    parts: list[NDArray[np.uint8]] = []
    for name, (_, sha256) in _FASHION.items():
        raw = _read_bytes(paths[name])
        found = hashlib.sha256(raw).hexdigest()
        if found != sha256:
            tried = [f"{paths[name]}: expected sha256 {sha256} of its content, got {found}"]
            raise DataUnavailable("Fashion-MNIST", tried, "remove that file and try again")
        parts.append(_parse_idx(raw, name))
    train, train_labels, test, test_labels = parts
    return SplitImages(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64))


_PHOTOGRAPHS = ("brick", "camera", "coins", "grass", "gravel", "moon")
_PHOTOGRAPHS_WHEEL = "scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
_PHOTOGRAPHS_SHA256 = "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641"
_COLOUR_PHOTOGRAPHS = [f"skimage/data/{name}.png" for name in ColourPhotographs._fields]


@dataset(
    "photographs",
    source="PyPI scikit-image 0.25.2 (wheel)",
    licence="BSD-3-Clause (scikit-image); the pictures are CC0 or in the public domain",
    size="14.8 MB fetched, 0.8 MB kept",
)
def photographs() -> dict[str, NDArray[np.uint8]]:
    """Six grey photographs: brick, camera, coins, grass, gravel, moon.

    Source: the wheel of scikit-image 0.25.2 (BSD-3-Clause), or an installed copy of that version; the pictures are
    CC0 or in the public domain. 14.8 MB fetched, 0.8 MB kept.

    Returns:
        name to picture (height, width), bytes: 512 x 512, but coins 303 x 384.

    Raises:
        DataUnavailable: when the wheel cannot be had.
        ImportError: when Pillow is not installed.
    """
    members = {name: f"skimage/data/{name}.png" for name in _PHOTOGRAPHS}
    paths = from_pypi(
        "scikit-image",
        "0.25.2",
        filename=_PHOTOGRAPHS_WHEEL,
        sha256=_PHOTOGRAPHS_SHA256,
        members=list(members.values()),
    )
    image = need("PIL.Image", "data", "Reading photographs")
    out = {}
    for name, member in members.items():
        with image.open(paths[member]) as picture:
            out[name] = np.asarray(picture.convert("L"))
    return out


@dataset(
    "colour-photographs",
    source="PyPI scikit-image 0.25.2 (wheel)",
    licence="CC0 (chelsea, coffee); public domain (astronaut: NASA); BSD-3-Clause (scikit-image)",
    size="14.8 MB fetched, 1.5 MB kept",
)
def colour_photographs() -> ColourPhotographs:
    """Three colour photographs: an astronaut, the cat Chelsea, a cup of coffee.

    Source: the wheel of scikit-image 0.25.2 (`skimage.data`): a portrait of Eileen Collins by NASA (public domain),
    Chelsea by Stefan van der Walt (CC0), coffee by Rachel Michetti (CC0); scikit-image itself is BSD-3-Clause. 14.8 MB
    fetched, 1.5 MB kept.

    Returns:
        astronaut (512, 512, 3), chelsea (300, 451, 3) and coffee (400, 600, 3), red, green and blue in bytes.

    Raises:
        DataUnavailable: when the wheel cannot be had.
        ImportError: when Pillow is not installed.
    """
    image = need("PIL.Image", "data", "This data set")
    paths = from_pypi(
        "scikit-image",
        "0.25.2",
        filename=_PHOTOGRAPHS_WHEEL,
        sha256=_PHOTOGRAPHS_SHA256,
        members=_COLOUR_PHOTOGRAPHS,
    )
    pictures = []
    for member in _COLOUR_PHOTOGRAPHS:
        with image.open(paths[member]) as picture:
            pictures.append(np.array(picture.convert("RGB"), dtype=np.uint8))
    return ColourPhotographs(*pictures)
