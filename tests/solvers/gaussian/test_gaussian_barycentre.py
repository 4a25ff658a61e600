"""Barycentres of Gaussians: known answers, the proved gap, ranks."""

from __future__ import annotations

import pytest
import torch
from test_gaussian import gaussian, normal, spd

from brenier import InvalidInput
from brenier.errors import NotConvergedWarning
from brenier.solvers import Gaussian, gaussian_barycentre, gaussian_cost, gaussian_geodesic
from problems import assert_close

D = torch.float64


def test_commuting_covariances() -> None:
    Q = torch.linalg.qr(normal(0, 4, 4))[0]
    s, w = normal(1, 3, 4).square(), [0.2, 0.3, 0.5]
    found = gaussian_barycentre([Gaussian(normal(k, 4), Q * s[k] @ Q.mT) for k in range(3)], w)
    weights = torch.tensor(w, dtype=D)
    assert_close(found.gaussian.covariance, Q * (weights @ s.sqrt()).square() @ Q.mT, 1e-9)
    assert_close(found.gaussian.mean, weights @ torch.stack([normal(k, 4) for k in range(3)]), 1e-12)


def test_two_are_joined_by_the_geodesic() -> None:
    p, q = gaussian(3, 0), gaussian(3, 1)
    found = gaussian_barycentre([p, q], [0.3, 0.7])
    assert_close(found.gaussian.covariance, gaussian_geodesic(p, q, 0.7).covariance, 1e-8)


def test_the_gap_is_proved_before_the_end() -> None:
    measures = [gaussian(4, k) for k in range(5)]
    best = gaussian_barycentre(measures)
    assert float(best.gap) <= 1e-9 * float(best.value)
    for steps in (1, 2, 3):
        with pytest.warns(NotConvergedWarning, match="residual"):
            early = gaussian_barycentre(measures, max_iter=steps)
        assert float(early.dual) <= float(best.value) * (1 + 1e-12)
        assert float(best.value) <= float(early.value) * (1 + 1e-12)
    spread = torch.stack([gaussian_cost(g, best.gaussian) for g in measures]).mean()
    assert_close(best.value, spread, 1e-9)


def test_one_weight_gives_back_that_measure() -> None:
    p, q = gaussian(3, 0), gaussian(3, 1)
    found = gaussian_barycentre([p, q], [1.0, 0.0])
    assert_close(found.gaussian.covariance, p.covariance, 1e-9)


def test_batches_and_ranks(dtype: torch.dtype) -> None:
    stack = Gaussian(normal(0, 3, 5, 2).to(dtype), spd(2, 0, 3, 5).to(dtype))
    found = gaussian_barycentre(stack)
    assert found.gaussian.mean.shape == (5, 2)
    assert found.gaussian.dtype == dtype
    one = gaussian_barycentre([stack.item((k, 2)) for k in range(3)])
    assert_close(found.gaussian.covariance[2], one.gaussian.covariance, 1e-4)
    low = [Gaussian.low_rank(normal(k, 30), normal(k, 30, 2)) for k in range(3)]
    thin = gaussian_barycentre(low, tol=1e-7)
    assert thin.gaussian.factor is not None
    thick = gaussian_barycentre([Gaussian(g.mean, g.covariance) for g in low], tol=1e-7)
    assert_close(thin.value, thick.value, 1e-5)
    assert bool(thin.dual.isnan())
    points = gaussian_barycentre([Gaussian.low_rank(normal(k, 3), torch.zeros(3, 1, dtype=D)) for k in range(3)])
    assert float(points.gaussian.trace()) == 0


def test_refusals() -> None:
    p = gaussian(2, 0)
    for arguments in (([],), (p,), ([p, gaussian(3, 0)],), ([p, p], [0.5, 0.6]), ([p, p], [1.5, -0.5])):
        with pytest.raises(InvalidInput):
            gaussian_barycentre(*arguments)
