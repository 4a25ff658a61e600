"""Mixtures of Gaussians: costs, maps, paths, barycentres."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from test_gaussian import normal, spd

from brenier import InvalidInput
from brenier.solvers import (
    Gaussian,
    GaussianMixture,
    gaussian_cost,
    gaussian_transport,
    mixture_barycentre,
    mixture_geodesic,
    mixture_transport,
)
from problems import assert_close

D = torch.float64


def mixture(k: int, d: int, seed: int) -> GaussianMixture:
    a = normal(seed, k).square() + 0.1
    return GaussianMixture(a, Gaussian(3 * normal(seed + 1, k, d), spd(d, seed, k)))


def test_single_components_are_gaussians() -> None:
    p, q = mixture(1, 3, 0), mixture(1, 3, 1)
    plan = mixture_transport(p, q)
    assert_close(plan.value, gaussian_cost(p.gaussians.item(0), q.gaussians.item(0)), 1e-12)
    x = normal(5, 4, 3)
    assert_close(plan.map(x), gaussian_transport(p.gaussians.item(0), q.gaussians.item(0)).map(x), 1e-10)


def test_as_pot() -> None:
    p, q = mixture(4, 2, 0), mixture(3, 2, 1)
    plan = mixture_transport(p, q)
    theirs = ot.gmm.gmm_ot_loss(
        p.gaussians.mean, q.gaussians.mean, p.gaussians.covariance, q.gaussians.covariance, p.a, q.a
    )
    assert_close(plan.value, theirs, 1e-8)
    assert float(plan.certificate.relative_gap) < 1e-9
    assert len(plan.pairs()[0]) <= 4 + 3 - 1
    # their map
    x = normal(9, 5, 2)
    parts = (p.gaussians.mean, q.gaussians.mean, p.gaussians.covariance, q.gaussians.covariance, p.a, q.a)
    moved = ot.gmm.gmm_ot_apply_map(x, *parts, method="bary")
    assert_close(plan.map(x), moved, 1e-6)


def test_geodesic_and_barycentre() -> None:
    p, q = mixture(3, 2, 0), mixture(2, 2, 1)
    whole = mixture_transport(p, q).value.sqrt()
    middle = mixture_geodesic(p, q, 0.25)
    assert float(mixture_transport(p, middle).value.sqrt()) == pytest.approx(0.25 * float(whole), rel=1e-6)
    found = mixture_barycentre([p, q], [0.75, 0.25])
    assert float(mixture_transport(found, middle).value) < 1e-6
    same = mixture_barycentre([p, p, p])
    assert float(mixture_transport(same, p).value) < 1e-6


def test_gradients_reach_the_parameters() -> None:
    p, q = mixture(3, 2, 0), mixture(2, 2, 1)
    means = p.gaussians.mean.clone().requires_grad_()

    def value(means: torch.Tensor) -> torch.Tensor:
        return mixture_transport(GaussianMixture(p.a, Gaussian(means, p.gaussians.covariance)), q).value

    assert torch.autograd.gradcheck(value, (means,))


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_from_scikit_learn(kind: str) -> None:
    sklearn = pytest.importorskip("sklearn.mixture")
    x = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0, 0.0], [5.0, 5.0]], 100, axis=0)
    model = sklearn.GaussianMixture(2, covariance_type=kind, random_state=0).fit(x)
    read = GaussianMixture.from_sklearn(model)
    points = torch.from_numpy(x[:10])
    assert_close(read.log_responsibilities(points).exp(), torch.from_numpy(model.predict_proba(x[:10])), 1e-8)
    assert read.sample(50).shape == (50, 2)
    with pytest.raises(InvalidInput, match="fit"):
        GaussianMixture.from_sklearn(sklearn.GaussianMixture(2))


def test_refusals() -> None:
    p = mixture(2, 2, 0)
    with pytest.raises(InvalidInput):
        GaussianMixture(None, p.gaussians.item(0))
    with pytest.raises(InvalidInput):
        mixture_transport(p, p.gaussians)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="tuples"):
        mixture_barycentre([p] * 10, limit=100)
