"""Densities: moments against samples and closed forms, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from brenier import InvalidInput
from brenier.solvers import Density, PixelDensity, UniformBox, UniformPolygon
from problems import assert_close

IMAGE = [[0.0, 3.0, 1.0], [2.0, 0.0, 5.0]]

DENSITIES: list[Density] = [
    UniformBox(-1.0, 2.0),
    UniformBox([0.0, 1.0, -1.0], [1.0, 3.0, 4.0]),
    UniformPolygon([[0.0, 0.0], [2.0, 0.0], [3.0, 1.0], [0.0, 2.0]]),
    UniformPolygon([[0.0, 2.0], [3.0, 1.0], [2.0, 0.0], [0.0, 0.0]]),  # the same, the other way round
    PixelDensity([1.0, 0.0, 2.0], -1.0, 2.0),
    PixelDensity(IMAGE, [1.0, 0.0], [2.0, 4.0]),
]


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_samples_have_the_moments(density: Density, generator: torch.Generator) -> None:
    x = density.sample(200_000, generator)
    assert x.shape == (200_000, density.d)
    scale = float(density.covariance.diagonal().max())
    assert_close(x.mean(0), density.mean, 0, 0.01 * scale**0.5)
    assert_close(torch.cov(x.mT).reshape(density.d, density.d), density.covariance, 0, 0.02 * scale)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_pieces_have_mass_one(density: Density) -> None:
    pieces = density.pieces()
    if not isinstance(density, UniformPolygon):
        volume = ((pieces.high - pieces.low) / pieces.values.shape).prod()
        assert pieces.values.sum() * volume == pytest.approx(1)


def test_a_triangle() -> None:
    triangle = UniformPolygon([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    assert triangle.mean.tolist() == pytest.approx([1, 1])
    assert_close(triangle.covariance, torch.tensor([[0.5, -0.25], [-0.25, 0.5]], dtype=torch.float64), 1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UniformBox([0.0, 1.0], [1.0, 1.0]), "low < high"),
        (lambda: UniformBox([0.0], [1.0, 1.0]), "shape"),
        (lambda: UniformBox(0.0, float("inf")), "finite"),
        (lambda: UniformPolygon([[0.0, 0.0], [1.0, 0.0]]), "k >= 3"),
        (lambda: UniformPolygon([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), "area"),
        (lambda: UniformPolygon([[0.0, 0.0], [2.0, 0.0], [1.0, 0.2], [1.0, 2.0]]), "convex"),
        (lambda: PixelDensity([[1.0, -1.0]]), "nonnegative"),
        (lambda: PixelDensity([[0.0, 0.0]]), "not all zero"),
        (lambda: PixelDensity([[1.0]], [0.0], [1.0]), "corners in 2 dimensions"),
        (lambda: PixelDensity(torch.ones(2, 2, 2)), "shape"),
    ],
)
def test_bad_input(make: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        make()


def test_a_star_is_refused() -> None:
    angle = torch.arange(5, dtype=torch.float64) * 4 * torch.pi / 5  # a pentagram turns twice
    with pytest.raises(InvalidInput, match="convex"):
        UniformPolygon(torch.stack([angle.cos(), angle.sin()], 1))
