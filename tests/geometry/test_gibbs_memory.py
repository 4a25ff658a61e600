"""Soft transforms from a kernel that is kept: the same numbers, at the epsilon asked for and at others."""

import pytest
import torch

import brenier
from brenier.kernels import engine


def geometries():
    gen = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 60, 3, generator=gen, dtype=torch.float64), torch.randn(2, 50, 3, generator=gen).double()
    yield brenier.PointCloud(x, y)
    yield brenier.PointCloud(x[0], y[0], "euclidean")
    yield brenier.PointCloud(x[0], y[0]).T
    yield brenier.CostMatrix(torch.rand(40, 70, generator=gen))
    yield brenier.CostMatrix(torch.rand(3, 40, 70, generator=gen).double().mT)


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("geometry", list(geometries()), ids=str)
def test_same_transforms(geometry, name):
    gen = torch.Generator().manual_seed(4)
    n, m = geometry.shape
    epsilon = torch.tensor(0.2, dtype=geometry.dtype)
    if geometry.batch_shape:
        epsilon = epsilon * torch.arange(1, 1 + geometry.batch_shape[0], dtype=geometry.dtype)
    before = geometry.tile().clone()
    with engine.use_engine(name):
        kept = geometry.remembering(epsilon)
        for turn in range(6):
            for dim, size in ((1, m), (0, n)):
                h = torch.randn(*geometry.batch_shape, size, generator=gen, dtype=torch.float64).to(geometry.dtype)
                if turn % 2:
                    h[..., ::7] = -torch.inf
                for eps in (epsilon, epsilon * 3):
                    out, exact = kept.softmin(h, eps, dim), geometry.softmin(h, eps, dim)
                    assert torch.allclose(out, exact, rtol=1e-5 if out.dtype == torch.float32 else 1e-12, atol=1e-6)
    assert torch.equal(geometry.tile(), before)


def test_potentials_that_move_far():
    gen = torch.Generator().manual_seed(5)
    geometry = brenier.CostMatrix(torch.rand(30, 30, generator=gen, dtype=torch.float64))
    epsilon = torch.tensor(1e-3, dtype=torch.float64)
    kept = geometry.remembering(epsilon)
    for scale in (0, 0.1, 1, 10, 0.1, 3, 5, 7, 1):  # the kernel is made anew, until that is not worth it
        h = scale * torch.randn(30, generator=gen, dtype=torch.float64)
        assert torch.allclose(kept.softmin(h, epsilon), geometry.softmin(h, epsilon), rtol=1e-12, atol=1e-15)
        assert torch.allclose(kept.softmin(h, epsilon, 0), geometry.softmin(h, epsilon, 0), rtol=1e-12, atol=1e-15)


def test_first_kernel_with_points_without_mass():
    gen = torch.Generator().manual_seed(6)
    geometry = brenier.CostMatrix(torch.rand(20, 30, generator=gen, dtype=torch.float64))
    epsilon = torch.tensor(0.01, dtype=torch.float64)
    for dim, size, other in ((1, 30, 20), (0, 20, 30)):
        kept = geometry.remembering(epsilon)
        h = torch.where(torch.arange(size) % 3 == 0, -torch.inf, torch.zeros(size, dtype=torch.float64))
        for _ in range(3):
            assert torch.allclose(kept.softmin(h, epsilon, dim), geometry.softmin(h, epsilon, dim), rtol=1e-13)
        back = torch.zeros(other, dtype=torch.float64)
        assert torch.allclose(kept.softmin(back, epsilon, 1 - dim), geometry.softmin(back, epsilon, 1 - dim))


def test_large_ones_and_grids_keep_nothing(monkeypatch):
    monkeypatch.setattr("brenier.geometry.base.LIMIT", 10)
    cloud = brenier.PointCloud(torch.rand(4, 2), torch.rand(3, 2))
    grid = brenier.Grid(3, 4)
    for geometry in (cloud, grid):
        assert geometry.remembering(torch.tensor(1.0)) is geometry


def test_many_problems_on_one_cloud_keep_no_kernels_beyond_the_limit(monkeypatch):
    gen = torch.Generator().manual_seed(8)
    cloud = brenier.PointCloud(torch.rand(40, 2, generator=gen), torch.rand(30, 2, generator=gen))
    epsilon = torch.tensor(0.1)
    for count in (2, 3):
        kept = cloud.remembering(epsilon)
        monkeypatch.setattr("brenier.geometry.memory.LIMIT", 2 * 40 * 30)
        h = torch.randn(count, 30, generator=gen)
        for _ in range(2):
            assert torch.allclose(kept.softmin(h, epsilon), cloud.softmin(h, epsilon), rtol=1e-5, atol=1e-6)
        assert (kept.memory._kept is None) == (count == 3)


def test_a_solve_leaves_no_kernel_behind():
    cloud = brenier.PointCloud(torch.rand(30, 2), torch.rand(30, 2))
    solution = brenier.solve(cloud, epsilon=0.1)
    assert cloud.memory is None
    assert solution.plan.geometry.memory is None


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_beside_a_matrix_the_kernel_is_rounded(monkeypatch, name):
    monkeypatch.setattr("brenier.geometry.base.LIMIT", 10)
    gen = torch.Generator().manual_seed(7)
    cost = torch.rand(50, 40, generator=gen, dtype=torch.float64)
    epsilon = torch.tensor(0.03, dtype=torch.float64)
    assert brenier.CostMatrix(cost).remembering(epsilon, 1e-9).memory is None
    assert brenier.CostMatrix(cost.float()).remembering(epsilon.float(), 1e-4).memory is None
    assert brenier.PointCloud(cost, cost).remembering(epsilon, 1e-6).memory is None
    with engine.use_engine(name):
        for geometry in (brenier.CostMatrix(cost), brenier.CostMatrix(cost.mT.contiguous().mT)):
            kept = geometry.remembering(epsilon, 1e-6)
            assert kept.memory is not None
            assert kept.memory.narrow
            for _ in range(3):
                for dim, size in ((1, 40), (0, 50)):
                    h = 0.01 * torch.randn(size, generator=gen, dtype=torch.float64)
                    out, exact = kept.softmin(h, epsilon, dim), geometry.softmin(h, epsilon, dim)
                    assert (out - exact).abs().max() < 1e-7 * epsilon * 10
            solution = brenier.solve(geometry, epsilon=epsilon)
            assert solution.status.ok
            errors = solution.certificate.marginal_errors
            assert errors[0] < 2e-6
            assert errors[1] < 1e-13
