"""Soft transforms whose sums are in float32."""

import pytest
import torch

from brenier import CostMatrix, PointCloud, Ragged
from brenier.geometry.single import LEAST
from problems import cloud

EPS = torch.tensor(0.5, dtype=torch.float64)
SIDE = 2100  # squared, more pairs than a kernel is kept for


def sums(geometry):
    return geometry.remembering(EPS).single


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
def test_seven_digits(cost: str) -> None:
    x, y = cloud(SIDE, 3, 0) + 1e4 * (cost != "cosine"), cloud(SIDE + 50, 3, 1) + 1e4 * (cost != "cosine")
    geometry = PointCloud(x, y, cost)
    single = sums(geometry)
    for dim, points in ((1, y), (0, x)):
        h = cloud(len(points), 1, 2).squeeze(-1)
        h[3] = -torch.inf
        exact, rough = geometry.softmin(h, EPS, dim), single.softmin(h, EPS, dim)
        assert rough.dtype == torch.float64
        assert float((rough - exact).abs().max()) < 2e-5
        assert not torch.equal(rough, exact)


def test_the_plan_times_vectors() -> None:
    x, y = cloud(SIDE, 3, 0) + 1e4, cloud(SIDE + 50, 3, 1) + 1e4
    geometry = PointCloud(x, y)
    single = sums(geometry)
    f, g = (cloud(size, 1, seed).squeeze(-1) for size, seed in ((SIDE, 2), (SIDE + 50, 3)))
    for dim, size in ((1, SIDE + 50), (0, SIDE)):
        v = torch.rand(size, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        exact, rough = geometry.apply(f, g, EPS, v, dim), single.apply(f, g, EPS, v.float(), dim)
        assert rough.dtype == torch.float32
        assert float((rough / exact - 1).abs().max()) < 5e-5


def test_of_many_problems() -> None:
    x, y = ([cloud(n, 2, n + k) for n in sizes] for k, sizes in enumerate([(900, 3, 700), (800, 5, 900)]))
    geometry = Ragged.from_list(x, y)
    single = sums(geometry)
    h = geometry.pad([cloud(len(p), 1, 9).squeeze(-1) for p in y])
    for eps in (EPS, torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)):
        torch.testing.assert_close(single.softmin(h, eps), geometry.softmin(h, eps), atol=2e-5, rtol=0)
    h = geometry.pad([cloud(len(p), 1, 9).squeeze(-1) for p in x])
    torch.testing.assert_close(single.softmin(h, EPS, 0), geometry.softmin(h, EPS, 0), atol=2e-5, rtol=0)


def test_where_it_is_of_no_use() -> None:
    x, y = cloud(SIDE, 2, 0), cloud(SIDE, 2, 1)
    assert sums(PointCloud(x, y)) is not None
    assert sums(PointCloud(x.float(), y.float())) is None
    assert sums(PointCloud(x[:100], y[:100])) is None
    assert sums(PointCloud(1e200 * x, y)) is None  # beyond float32
    assert sums(PointCloud(x, y, lambda u, v: (u - v).abs().sum(-1))) is None  # no kernel of its own
    assert sums(CostMatrix(torch.zeros(SIDE, SIDE, dtype=torch.float64))) is None
    assert LEAST > 900 * 700
    assert sums(Ragged.from_list([x[:900]], [y[:700]])) is None
