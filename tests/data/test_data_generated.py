"""Images that are drawn: their laws, and that a generator decides them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gamma, kv

from brenier.data import DataUnavailable, dotmark
from brenier.data import _generated as generated


@pytest.mark.parametrize("kind", generated.DOTMARK)
@pytest.mark.parametrize("size", [2, 33])
def test_every_class_is_a_measure_that_its_generator_decides(kind: str, size: int) -> None:
    try:
        images = [dotmark(kind, size, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    except DataUnavailable as error:
        pytest.skip(str(error))
    assert all(image.shape == (size, size) and image.dtype == np.float64 for image in images)
    assert all((image >= 0).all() and abs(image.sum() - 1) <= 1e-12 for image in images)
    np.testing.assert_array_equal(images[0], images[1])
    assert size == 2 or (images[0] != images[2]).any()


@pytest.mark.parametrize("kind", generated._FIELDS)
def test_fields_have_the_covariance_of_matern(kind: str) -> None:
    variance, nu, scale = generated._FIELDS[kind]
    random = np.random.default_rng(0)
    z = np.stack([generated._matern(16, random, variance, nu, scale) for _ in range(400)])
    r = 2 / 16 / scale
    near = variance * 2 ** (1 - nu) / gamma(nu) * r**nu * kv(nu, r)
    assert z.var() == pytest.approx(variance, rel=0.15)
    for product in (z[:, :, 2:] * z[:, :, :-2], z[:, 2:] * z[:, :-2]):
        assert product.mean() == pytest.approx(near, abs=0.15 * variance)


def test_white_noise_is_uniform() -> None:
    image = dotmark("white-noise", 100)
    assert np.quantile(image / image.max(), [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


def test_shapes_are_black_and_white() -> None:
    for seed in range(5):
        assert len(np.unique(dotmark("shapes", 64, generator=np.random.default_rng(seed)))) == 2


def test_crops_of_photographs_keep_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.arange(36, dtype=np.uint8).reshape(6, 6)
    monkeypatch.setattr(generated, "photographs", lambda: {"one": picture})
    np.testing.assert_allclose(
        dotmark("classic-images", 3), (t := picture.reshape(3, 2, 3, 2).mean((1, 3)) - 3.5) / t.sum(), atol=1e-12
    )
    np.testing.assert_allclose(dotmark("classic-images", 6), picture / picture.sum(), atol=1e-12)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of 'white-noise'.*got 'noise'"):
        dotmark("noise")
    with pytest.raises(ValueError, match="at least 2 pixels"):
        dotmark("shapes", 1)
