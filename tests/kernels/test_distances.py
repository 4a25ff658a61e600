"""All distances of two clouds: known answers, then SciPy, on every shape that the native loop tells apart."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from brenier.kernels.distances import distances, rough_costs, squared_distances


def test_distances_of_known_points():
    x, y = torch.zeros(2, 16, dtype=torch.float64), torch.ones(3, 16, dtype=torch.float64)
    x[1] = 1
    assert distances(x, y, 1).tolist() == [[16.0] * 3, [0.0] * 3]
    assert distances(x, y, 2).tolist() == [[4.0] * 3, [0.0] * 3]


@pytest.mark.parametrize(("p", "name"), [(1, "cityblock"), (2, "euclidean")])
@pytest.mark.parametrize(("n", "m", "d"), [(0, 3, 16), (3, 0, 16), (1, 1, 16), (17, 5, 33), (40, 130, 784), (5, 6, 3)])
def test_distances_agree_with_scipy(n, m, d, p, name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    ours = distances(torch.from_numpy(x), torch.from_numpy(y), p)
    np.testing.assert_allclose(ours, cdist(x, y, name), rtol=1e-13)


def test_distances_of_strided_batched_and_float32_clouds():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(20, 7))).mT, torch.from_numpy(rng.normal(size=(9, 40)))[:, ::2]
    np.testing.assert_allclose(distances(x, y, 1), cdist(x, y, "cityblock"), rtol=1e-13)
    batch = distances(torch.stack([x, x + 1]), torch.stack([y, y + 1]), 2)
    np.testing.assert_allclose(batch[1], cdist(x, y), rtol=1e-12)
    assert distances(x.float(), y.float(), 2).dtype == torch.float32


def test_distances_pass_nan_and_infinity_on():
    x, y = torch.zeros(2, 16, dtype=torch.float64), torch.zeros(5, 16, dtype=torch.float64)
    x[0, 3], x[1, 4] = torch.nan, torch.inf
    for p in (1, 2):
        assert distances(x, y, p)[0].isnan().all()
        assert distances(x, y, p)[1].isinf().all()


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_near_points_among_far_ones_in_many_dimensions(shift):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 300)) + shift
    y = np.concatenate([x[:20], x[20:40] + 1e-7 * rng.normal(size=(20, 300)), rng.normal(size=(50, 300))])
    ours = distances(torch.from_numpy(x), torch.from_numpy(y), 2)
    np.testing.assert_allclose(ours, cdist(x, y), rtol=1e-13)
    assert not ours[range(20), range(20)].any()


def test_clouds_of_near_points_alone():
    x = 5 + 1e-6 * np.random.default_rng(0).normal(size=(30, 300))
    np.testing.assert_allclose(distances(*(torch.from_numpy(x),) * 2, 2), cdist(x, x), rtol=1e-13)


@pytest.mark.parametrize(
    "shape", [((0, 20), (3, 20)), ((7, 20), (5, 20)), ((2, 7, 20), (5, 20)), ((2, 7, 20), (2, 5, 20))]
)
def test_squared_distances(shape):
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=s)) for s in shape)
    expected = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    torch.testing.assert_close(squared_distances(x, y), expected, rtol=1e-13, atol=1e-13)


def test_squared_distances_in_several_blocks_of_rows(monkeypatch):
    monkeypatch.setattr("brenier.kernels.distances._CACHED", 20)
    x, y = (torch.from_numpy(np.random.default_rng(k).normal(size=(11, 300))) for k in range(2))
    np.testing.assert_allclose(squared_distances(x, y), cdist(x, y, "sqeuclidean"), rtol=1e-13)
    np.testing.assert_allclose(distances(x, y, 2), cdist(x, y), rtol=1e-13)


# ------------------------------------------------------------------------------------------- costs by float32


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("n", "m", "d"), [(3, 4, 1), (60, 70, 300), (40, 2000, 784)])
def test_rough_costs_are_off_by_no_more_than_they_say(n, m, d, scale, root):
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(scale * rng.normal(size=(k, d))) for k in (n, m))
    y[0] = x[0]  # the root of what is left of nothing
    found = rough_costs(x.square().sum(-1), y.square().sum(-1), 2 * x, y, root=root)
    assert found is not None
    cost, bound = found
    exact = torch.from_numpy(cdist(x, y, "euclidean" if root else "sqeuclidean"))
    assert ((cost - exact).abs() <= bound[:, None]).all()
    assert (cost[1:] - exact[1:]).abs().max() > 0
    top = float(exact.max())
    assert float(bound[1:].max()) < 1e-3 * top  # the root of an error where two points are one
    assert float(bound[0]) < (2e-2 if root else 1e-3) * top


def test_rough_costs_refuse_what_float32_cannot_do():
    rng = np.random.default_rng(2)
    h, k, (u, v) = torch.zeros(5), torch.zeros(5), torch.from_numpy(rng.normal(size=(2, 5, 8)))
    h, k = h.double(), k.double()
    assert rough_costs(h, k, u, v) is not None
    for factor in (0.0, 1e-20, 1e20):
        assert rough_costs(h, k, factor * u, v) is None
