"""The operations of every geometry against dense float64, in one piece and in many tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from brenier import CostMatrix, Geometry, Grid, PointCloud
from brenier.geometry import Factored
from brenier.geometry.base import PairGeometry
from brenier.kernels.reference import memory_budget
from problems import COSTS, array, assert_close, cloud, rng


class Case(NamedTuple):
    geometry: Geometry
    dense: np.ndarray  # (*batch, n, m)


def _grid(axes: tuple[list[float], ...], p: float) -> Case:
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    return Case(Grid(*(torch.tensor(t).double() for t in axes), p=p), (abs(points[:, None] - points) ** p).sum(-1))


def _cases() -> dict[str, Case]:
    out: dict[str, Case] = {}
    for cost in COSTS:
        x, y = cost.points(5, 2, 1), cost.points(6, 2, 2)
        out[f"PointCloud {cost}"] = Case(PointCloud(x, y, cost.given(2)), cost.dense(array(x), array(y)))
    x, y = cloud(5, 20, 3), cloud(6, 20, 4)
    out["PointCloud of 20 coordinates"] = Case(PointCloud(x, y), COSTS[0].dense(array(x), array(y)))
    x, y = cloud(5, 2, 5, 2, 3), cloud(6, 2, 6)
    pairs = np.stack([[COSTS[1].dense(array(u), array(y)) for u in row] for row in x])
    out["PointCloud, batch broadcast"] = Case(PointCloud(x, y, "euclidean"), pairs)
    x, y = cloud(5, 2, 7, 2), cloud(6, 2, 8, 2)
    out["PointCloud, batch"] = Case(PointCloud(x, y), np.stack([COSTS[0].dense(*map(array, t)) for t in zip(x, y)]))
    asymmetric = lambda x, y: (x[..., 0] - 2 * y[..., 1]).abs()  # noqa: E731
    x, y = cloud(5, 2, 9), cloud(6, 2, 10)
    out["PointCloud, asymmetric cost"] = Case(
        PointCloud(x, y, asymmetric), abs(array(x)[:, None, 0] - 2 * array(y)[None, :, 1])
    )
    far = PointCloud(x + 1e7, y + 1e7)
    out["PointCloud far away"] = Case(far, COSTS[0].dense(array(x + 1e7 - 1e7), array(y + 1e7 - 1e7)))
    C = rng(11).normal(size=(5, 6))
    out["CostMatrix"] = Case(CostMatrix(C), C)
    C = rng(12).normal(size=(2, 5, 6))
    out["CostMatrix, batch"] = Case(CostMatrix(C), C)
    out["CostMatrix, one row"] = Case(CostMatrix(C[0, :1]), C[0, :1])
    h, k, u, v = cloud(5, 1, 13, 2)[..., 0], cloud(6, 1, 14, 2)[..., 0], cloud(5, 3, 15, 2), cloud(6, 3, 16, 2)
    low_rank = array(h)[..., :, None] + array(k)[..., None, :] - array(u) @ array(v).swapaxes(-1, -2)
    out["Factored, batch"] = Case(Factored(h, k, u, v), low_rank)
    out["Factored"] = Case(Factored(h[0], k[0], u[0], v[0]), low_rank[0])
    out["Grid, one axis"] = _grid(([0.0, 0.5, 2.0],), 2.0)
    out["Grid, two axes"] = _grid(([0.0, 0.5, 2.0], [0.0, 1.0]), 2.0)
    out["Grid, three axes, p = 1"] = _grid(([0.0, 0.5], [0.0], [3.0, 1.0, 2.0]), 1.0)
    out["Grid, p = 1.5"] = _grid(([0.0, 0.5, 2.0], [0.0, 1.0]), 1.5)
    return out


CASES = _cases()
CASES |= {f"{name}, transposed": Case(c.geometry.T, np.swapaxes(c.dense, -1, -2)) for name, c in [*CASES.items()]}
UNBATCHED = [name for name, case in CASES.items() if case.dense.ndim == 2]


@pytest.fixture(params=[None, 13, 1], ids=["one tile", "tiles of 13", "tiles of a row"])
def _budget(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param is None:
        yield
    else:
        with memory_budget(request.param):
            yield


def _potentials(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    *batch, n, m = case.dense.shape
    f, g = rng(seed).normal(size=(*batch, n)), rng(seed + 1).normal(size=(*batch, m))
    return torch.from_numpy(f), torch.from_numpy(g), f, g


EPS = 0.7
RTOL = 1e-10


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("name", CASES)
def test_operations(name: str) -> None:
    case = CASES[name]
    geometry, C = case
    n, m = C.shape[-2:]
    batch = C.shape[:-2]
    assert (geometry.shape, tuple(geometry.batch_shape)) == ((n, m), batch)
    f, g, f_, g_ = _potentials(case)
    scale = np.abs(C).max() + 5
    P = np.exp((f_[..., :, None] + g_[..., None, :] - C) / EPS)

    soft = -EPS * logsumexp((g_[..., None, :] - C) / EPS, -1)
    assert_close(geometry.softmin(g, EPS), soft, atol=RTOL * scale, what="softmin")
    assert_close(geometry.softmin(g, torch.tensor(EPS).double(), -1), soft, atol=1e-7 * scale, what="softmin, tensor")
    back = -EPS * logsumexp((f_[..., :, None] - C) / EPS, -2)
    assert_close(geometry.softmin(f, EPS, dim=0), back, atol=RTOL * scale, what="softmin, dim 0")
    assert_close(geometry.softmin(f, EPS, dim=-2), back, atol=RTOL * scale, what="softmin, dim -2")

    for dim, h, h_ in ((1, g, g_[..., None, :]), (0, f, f_[..., :, None])):
        reduced, axis = C - h_, -1 if dim == 1 else -2
        values, index = geometry.cmin(h, dim)
        assert_close(values, reduced.min(axis), atol=RTOL * scale, what="cmin")
        at = np.take_along_axis(reduced, np.expand_dims(array(index), axis), axis).squeeze(axis)
        assert_close(at, reduced.min(axis), atol=RTOL * scale, what="argmin")

    for dim, matrix in ((1, P), (0, np.swapaxes(P, -1, -2))):
        V = rng(2).normal(size=(*batch, matrix.shape[-1], 2))
        V[..., 0, 0] = 0
        out = geometry.apply(f, g, EPS, torch.from_numpy(V), dim)
        assert_close(out, matrix @ V, 1e-9, what="apply to columns")
        out = geometry.apply(f, g, EPS, torch.from_numpy(V[..., 0]), dim)
        assert_close(out, (matrix @ V[..., :1])[..., 0], 1e-9, what="apply to a vector")

    mass, cost = geometry.moments(f, g, EPS)
    assert_close(mass, P.sum(-1), 1e-9, what="mass")
    assert_close(cost, (P * C).sum(-1), 1e-9, atol=1e-9 * P.sum(), what="cost")

    u, v = np.abs(f_), np.abs(g_)
    between = (u[..., None, :] @ C @ v[..., :, None])[..., 0, 0]
    assert_close(geometry.cost_between(torch.from_numpy(u), torch.from_numpy(v)), between, 1e-9, 1e-9 * scale)
    assert_close(geometry.mean_cost(), C.mean((-1, -2)), 1e-9, 1e-9 * scale, what="mean cost")
    spread = C.mean((-1, -2)) - C.min((-1, -2))
    assert_close(geometry.range_estimate(), spread, atol=1e-9 * scale, what="range estimate")

    assert_close(geometry.tile(), C, atol=RTOL * scale, what="tile")
    rows, cols = torch.tensor([0, n - 1]), slice(0, m, 2)
    assert_close(geometry.tile(rows, cols), C[..., [0, n - 1], :][..., ::2], atol=RTOL * scale, what="a block")
    i, j = rng(3).integers(0, n, (*batch, 4)), rng(4).integers(0, m, (*batch, 4))
    at = np.take_along_axis(C.reshape(*batch, -1), i * m + j, -1)
    assert_close(geometry.cost_at(torch.from_numpy(i), torch.from_numpy(j)), at, atol=1e-9 * scale, what="cost at")


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("name", UNBATCHED)
def test_products(name: str) -> None:
    geometry, C = CASES[name]
    if isinstance(geometry, PairGeometry):
        v = rng(5).normal(size=(C.shape[1], 3))
        assert_close(geometry.product(torch.from_numpy(v)), C @ v, atol=1e-9 * np.abs(C).sum(), what="product")


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("name", UNBATCHED)
def test_selections(name: str) -> None:
    """`support` and `smallest` find the entries of least reduced cost, in order."""
    case = CASES[name]
    f, g, f_, g_ = _potentials(case)
    reduced = case.dense - f_[:, None] - g_
    scale = np.abs(reduced).max()
    threshold = float(np.sort(reduced.ravel())[reduced.size // 2]) + 1e-6 * scale
    expected = np.argwhere(reduced <= threshold)
    found = case.geometry.support(f, g, threshold)
    assert np.array_equal(np.stack([found.rows, found.cols], -1), expected)
    assert_close(found.reduced, reduced[tuple(expected.T)], atol=1e-9 * scale)
    for per_row in (1, 2, 100):
        found = case.geometry.support(f, g, threshold, per_row)
        assert (array(found.reduced) <= threshold).all()
        for i, row in enumerate(reduced):
            best = np.sort(row[row <= threshold])[:per_row]
            assert_close(np.sort(array(found.reduced)[array(found.rows) == i]), best, atol=1e-9 * scale)
    for k in (1, 5, reduced.size):
        found = case.geometry.smallest(f, g, k)
        assert_close(found.reduced, np.sort(reduced.ravel())[:k], atol=1e-9 * scale)
        assert_close(reduced[array(found.rows), array(found.cols)], found.reduced, atol=1e-9 * scale)
        assert len({*zip(array(found.rows), array(found.cols))}) == k


@pytest.mark.parametrize("name", CASES)
def test_one_epsilon_for_each_problem(name: str) -> None:
    geometry, C = CASES[name]
    batch = C.shape[:-2] or (2,)  # a geometry without batch axes serves a batch of potentials
    g = torch.from_numpy(rng(0).normal(size=(*batch, C.shape[-1])))
    f = torch.from_numpy(rng(1).normal(size=(*batch, C.shape[-2])))
    eps = torch.linspace(0.5, 1.5, int(np.prod(batch))).double().reshape(batch)
    e = array(eps)[..., None, None]
    P = np.exp((array(f)[..., :, None] + array(g)[..., None, :] - C) / e)
    assert_close(geometry.softmin(g, eps), -e[..., 0] * logsumexp((array(g)[..., None, :] - C) / e, -1), 1e-9)
    v = torch.from_numpy(rng(2).normal(size=g.shape))
    assert_close(geometry.apply(f, g, eps, v), (P @ array(v)[..., None])[..., 0], 1e-9)
    mass, cost = geometry.moments(f, g, eps)
    assert_close(mass, P.sum(-1), 1e-9)
    assert_close(cost, (P * C).sum(-1), 1e-9, atol=1e-9 * P.sum())


@pytest.mark.parametrize("name", CASES)
def test_columns_without_mass(name: str) -> None:
    geometry, C = CASES[name]
    g = torch.from_numpy(rng(1).normal(size=(*C.shape[:-2], C.shape[-1])))
    g[..., 0] = -torch.inf
    if C.shape[-1] == 1:
        assert (geometry.softmin(g, EPS) == torch.inf).all()
        return
    rest, h = C[..., 1:], array(g)[..., None, 1:]
    assert_close(geometry.softmin(g, EPS), -EPS * logsumexp((h - rest) / EPS, -1), atol=1e-8)
    assert_close(geometry.cmin(g)[0], (rest - h).min(-1), atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_casts_views_and_copies(name: str) -> None:
    geometry, C = CASES[name]
    half = geometry.to(torch.float32)
    assert (half.dtype, half.tile().dtype) == (torch.float32, torch.float32)
    if "far away" not in name:  # float32 cannot hold those points
        assert_close(half.tile(), C, 1e-4, atol=1e-4)
    assert_close(geometry.T.tile(), np.swapaxes(C, -1, -2), 1e-9, atol=1e-9)
    assert_close(geometry.T.T.tile(), C, 1e-9, atol=1e-9)
    assert_close(geometry.T.to(torch.float64).tile(), np.swapaxes(C, -1, -2), 1e-9, atol=1e-9)
    assert not any(t.requires_grad for t in geometry.detach().tensors)
    assert type(geometry).__name__.strip("_") in ("PointCloud", "CostMatrix", "Factored", "Grid", "Transposed")
    assert "(" in repr(geometry)


def test_tiles_are_many() -> None:
    """The budgets above do cut: a block function sees no more rows than they allow."""
    seen: list[int] = []

    def cost(x: Tensor, y: Tensor) -> Tensor:
        seen.append(x.shape[-3])
        return (x - y).abs().sum(-1)

    geometry = PointCloud(cloud(10), cloud(4, seed=1), cost)
    with memory_budget(8):
        geometry.softmin(torch.zeros(4).double(), 1.0)
    assert seen == [2] * 5
    seen.clear()
    geometry.softmin(torch.zeros(4).double(), 1.0)  # the budget is gone
    assert seen == [10]


def test_far_away_float32_is_as_good_as_near() -> None:
    x, y = cloud(20).float().round(decimals=2), cloud(30, seed=1).float().round(decimals=2)
    far = PointCloud((x + 4096).float(), (y + 4096).float())
    near = PointCloud((x + 4096).double() - 4096, (y + 4096).double() - 4096)
    zero = torch.zeros(30)
    assert_close(far.softmin(zero, 0.1), near.softmin(zero.double(), 0.1), 1e-5, 1e-5)
    assert_close(far.tile(), near.tile(), 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_part_is_a_geometry_of_its_own(name: str) -> None:
    geometry, C = CASES[name]
    n, m = C.shape[-2:]
    rows, cols = torch.arange(n).flip(0)[: n - n // 3], torch.arange(m)[::2]
    for part, dense in (
        (geometry.part(rows, cols), C[..., rows.numpy()[:, None], cols.numpy()]),
        (geometry.part(cols=slice(m // 3, None)), C[..., m // 3 :]),
        (geometry.T.part(cols, rows).T, C[..., rows.numpy()[:, None], cols.numpy()]),
        (geometry.part(rows, cols).part(slice(0, 1)), C[..., rows.numpy()[:1, None], cols.numpy()]),
    ):
        scale = np.abs(C).max() + 5
        assert part.shape == dense.shape[-2:]
        assert part.batch_shape == geometry.batch_shape
        assert part.dtype == geometry.dtype
        h = rng(0).normal(size=(*dense.shape[:-2], dense.shape[-1]))
        values, index = part.cmin(torch.from_numpy(h))
        assert_close(values, (dense - h[..., None, :]).min(-1), atol=RTOL * scale, what="cmin")
        assert_close(part.tile(), dense, atol=RTOL * scale, what="tile")
        if not part.batch_shape:
            at = part.cost_at(torch.arange(part.shape[0]), index)
            assert_close(at - torch.from_numpy(h)[index], values, atol=RTOL * scale, what="cost_at")
        back, _ = part.to(torch.float64).T.cmin(torch.zeros(dense.shape[:-1]).double())
        assert_close(back, dense.min(-2), atol=RTOL * scale, what="cmin of the transpose")


@pytest.mark.parametrize("p", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("sizes", [(1,), (7,), (4, 5), (3, 1, 4)], ids=str)
def test_parts_of_a_grid(sizes: tuple[int, ...], p: float) -> None:
    """Interleaved columns, and potentials of another grid, by the axis; pooled weights."""
    grid = Grid(*(torch.from_numpy(rng(k).normal(size=size)) for k, size in enumerate(sizes)), p=p)
    n, C = grid.shape[0], grid.tile()
    h = torch.from_numpy(rng(9).normal(size=n))
    for count in (1, 3, 16):
        found = [*grid.minima(h, count)]
        for values, index in found:
            assert torch.allclose(values, C.gather(1, index.unsqueeze(1)).squeeze(1) - h[index], atol=1e-13)
        least = torch.stack([values for values, _ in found]).amin(0)
        assert torch.allclose(least, grid.cmin(h)[0], atol=1e-13)  # the parts are all columns
    coarse, (pooled, ones) = grid.coarser(h, torch.ones_like(h))
    assert coarse.shape[0] == len(pooled)
    assert torch.allclose(pooled.sum(), h.sum())
    assert torch.allclose((ones.unsqueeze(1) * coarse.points).sum(0), grid.points.sum(0), atol=1e-13)
    between = (grid.points[:, None] - coarse.points[None]).abs().pow(p).sum(-1)
    assert torch.allclose(grid.cmin_from(coarse, pooled), (between - pooled).amin(1), atol=1e-13)
