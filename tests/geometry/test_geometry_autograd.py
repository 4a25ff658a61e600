"""First and second derivatives of the operations, against finite differences, through tiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from brenier import CostMatrix, Geometry, Grid, PointCloud
from brenier.kernels.reference import memory_budget
from problems import COSTS, CostCase, cloud, rng

N, M = 3, 4


def _pair(cost: str) -> Callable[[Tensor, Tensor], Geometry]:
    given = next(c for c in COSTS if c.name == cost).given(2)
    return lambda x, y: PointCloud(x, y, given)


def _leaf(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(rng(seed).normal(size=shape)).requires_grad_()


BUILD: dict[str, tuple[Callable[..., Geometry], tuple[Tensor, ...]]] = {
    str(c): (_pair(c.name), (_leaf(N, 2, seed=1), _leaf(M, 2, seed=2))) for c in COSTS if c.name != "GraphGeodesic"
}
BUILD["20 coordinates"] = (lambda x, y: PointCloud(x, y), (_leaf(N, 20, seed=1), _leaf(M, 20, seed=2)))
BUILD["CostMatrix"] = (lambda C: CostMatrix(C), (_leaf(N, M, seed=3),))
BUILD["CostMatrix, transposed"] = (lambda C: CostMatrix(C).T, (_leaf(M, N, seed=3),))
BUILD["PointCloud, transposed"] = (lambda x, y: PointCloud(x, y).T, (_leaf(M, 2, seed=1), _leaf(N, 2, seed=2)))
BUILD["batch"] = (lambda x, y: PointCloud(x, y), (_leaf(2, N, 2, seed=1), _leaf(M, 2, seed=2)))


@pytest.mark.parametrize("budget", [2**20, 5])
@pytest.mark.parametrize("name", BUILD)
def test_softmin(name: str, budget: int) -> None:
    build, tensors = BUILD[name]
    batch = build(*tensors).batch_shape
    h, eps = _leaf(*batch, M, seed=4), torch.tensor(0.6).double().requires_grad_()

    def function(h: Tensor, eps: Tensor, *t: Tensor) -> Tensor:
        return build(*t).softmin(h, eps)

    with memory_budget(budget):
        assert gradcheck(function, (h, eps, *tensors))
        if name in ("sqeuclidean", "Lp(2, power 3)", "cosine", "CostMatrix", "batch"):
            assert gradgradcheck(function, (h, eps, *tensors))


@pytest.mark.parametrize("name", BUILD)
def test_cmin_and_apply(name: str) -> None:
    build, tensors = BUILD[name]
    batch = build(*tensors).batch_shape
    f, g, v = _leaf(*batch, N, seed=5), _leaf(*batch, M, seed=6), _leaf(*batch, M, 2, seed=7)
    with memory_budget(5):
        assert gradcheck(lambda g, *t: build(*t).cmin(g)[0], (g, *tensors))
        assert gradcheck(lambda f, g, v, *t: build(*t).apply(f, g, 0.8, v), (f, g, v, *tensors))
        assert gradcheck(lambda f, *t: build(*t).softmin(f, 0.8, dim=0), (f, *tensors))


def test_grid() -> None:
    grid = Grid([0.0, 0.5, 2.0], [0.0, 1.0])
    f, g, v = _leaf(6, seed=1), _leaf(6, seed=2), _leaf(6, seed=3)
    assert gradcheck(lambda h: grid.softmin(h, 0.5), (g,))
    assert gradgradcheck(lambda h: grid.softmin(h, 0.5), (g,))
    assert gradcheck(lambda h: grid.cmin(h)[0], (g,))
    assert gradcheck(lambda f, g, v: grid.apply(f, g, 0.5, v), (f, g, v))
    zeros = v.detach() * torch.tensor([1.0, 0, 0, 0, 1, 1]).double()  # a line of the grid is empty
    assert gradcheck(lambda f, g: grid.apply(f, g, 0.5, zeros), (f, g))

    def axes(s: Tensor, t: Tensor) -> Tensor:
        return Grid(s, t).softmin(g.detach(), 0.5)

    assert gradcheck(axes, (_leaf(3, seed=4), _leaf(2, seed=5)))


@pytest.mark.parametrize("case", [c for c in COSTS if c.name != "GraphGeodesic"], ids=str)
def test_gradients_are_finite_where_points_coincide(case: CostCase) -> None:
    """Equal points and zero vectors are no reason for NaN."""
    x = cloud(3)
    x[0] = 0
    x.requires_grad_()
    PointCloud(x, x.detach().clone(), case.given(2)).softmin(torch.zeros(3).double(), 1.0).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() < 1e3
