"""Sinkhorn with a forecast: it stays where Sinkhorn is fast, and hands over where it is not."""

from __future__ import annotations

import pytest
import torch

import brenier
from brenier import KL, CostMatrix, InvalidInput, PointCloud, Relative
from brenier.solvers import Fixed, Sinkhorn, SinkhornNewton
from problems import cloud, weights


def test_stays_with_sinkhorn_where_that_is_fast() -> None:
    geometry = PointCloud(cloud(60, 3, 0), cloud(70, 3, 1))
    hybrid = brenier.solve(geometry, epsilon=Relative(0.1))
    sinkhorn = brenier.solve(geometry, epsilon=Relative(0.1), solver=Sinkhorn(schedule=Fixed()))
    assert hybrid.stats["solver"] == "sinkhorn-newton"
    assert hybrid.stats["n_newton"] == 0
    assert hybrid.stats["n_iter"] == sinkhorn.stats["n_iter"]
    assert torch.equal(hybrid.f, sinkhorn.f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hands_over_to_newton_where_it_is_not(dtype: torch.dtype) -> None:
    """A random assignment at small epsilon: Sinkhorn alone does not end within its limit."""
    C = torch.rand(80, 80, generator=torch.Generator().manual_seed(0), dtype=dtype)
    a, b = weights(80, 1, zeros=3, dtype=dtype), weights(80, 2, dtype=dtype)
    solution = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=1e-3, tol=1e-6)
    assert solution.status.ok
    assert solution.stats["n_newton"] > 0
    assert solution.stats["n_iter"] < 300
    assert max(float(e) for e in solution.certificate.marginal_errors) < 2e-6
    slow = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=1e-3, tol=1e-6, solver="sns")
    assert float(solution.value) == pytest.approx(float(slow.value), rel=1e-6)


def test_starts_and_stops_like_any_solver() -> None:
    geometry = PointCloud(cloud(40, 2, 0), cloud(40, 2, 1))
    full = brenier.solve(geometry, epsilon=0.05, tol=1e-9)
    warm = brenier.solve(geometry, epsilon=0.05, tol=1e-9, solver=SinkhornNewton(sinkhorn=Sinkhorn(f=full.f, g=full.g)))
    assert warm.stats["n_iter"] <= 3
    with pytest.warns(brenier.NotConvergedWarning):
        assert brenier.solve(geometry, epsilon=1e-4, max_iter=3).status is brenier.Status.MAX_ITER


def test_the_default_knows_its_limits() -> None:
    x, y = cloud(20, 2, 0), cloud(20, 2, 1)
    assert brenier.solve(x, y, epsilon=0.1, marginals=KL(1.0)).stats["solver"] == "sinkhorn"
    assert brenier.solve(x, y, epsilon=1.0, reference="counting").stats["solver"] == "sinkhorn"
    for bad in ({"marginals": KL(1.0)}, {"reference": "counting"}):
        with pytest.raises(InvalidInput, match="sinkhorn-newton: expected exact marginals and the product reference"):
            brenier.solve(x, y, epsilon=0.1, solver="sinkhorn-newton", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hopeless_items_of_a_batch_go_to_newton(dtype: torch.dtype) -> None:
    """Near-permutations at small epsilon: Sinkhorn alone is not there after as many iterations."""
    x, y = cloud(30, 2, 1, 6, dtype=dtype), cloud(30, 2, 2, 6, dtype=dtype)
    x[0] /= 10  # an easy one among them
    y[0] /= 10
    together = brenier.solve(x, y, epsilon=0.003, tol=1e-4)
    assert together.status.ok
    assert together.stats["n_newton"] > 0
    assert together.stats["n_iter"] < 200
    with pytest.warns(brenier.NotConvergedWarning):
        brenier.solve(x, y, epsilon=0.003, tol=1e-4, solver="sinkhorn", max_iter=200)
    for k in range(6):
        alone = brenier.solve(x[k], y[k], epsilon=0.003, tol=1e-4)
        assert float(together.value[k]) == pytest.approx(float(alone.value), rel=1e-3)
    assert float(together.certificate.marginal_errors[0].max()) < 2e-4
