"""City-block transport on grids as a flow: by hand, against the simplex on all pairs, and by its own proof."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import brenier
from brenier import KL, CostMatrix, Grid, InvalidInput, Status
from brenier.data import dotmark
from brenier.kernels.build import native
from brenier.solvers import GridFlow, NetworkSimplex
from brenier.solvers.exact.flow import _Level
from problems import array, assert_close, check_encloses, check_feasible, check_marginals, rng, weights

pytestmark = pytest.mark.skipif(native is None, reason="native engine not built")

DENSE = NetworkSimplex(pairs="dense")
SIZES = [(1,), (2,), (7,), (1, 5), (2, 1, 3), (3, 4), (9, 11), (4, 3, 5), (16, 17)]


def images(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = (torch.from_numpy(rng(seed + k).uniform(size=size) ** 3 + 1e-6) for k in range(2))
    return a / a.sum(), b / b.sum()


def axes(sizes: tuple[int, ...], kind: str) -> list[int | Tensor]:
    """Unit steps, random coordinates in any order, or coordinates with ties."""
    if kind == "unit":
        return list(sizes)
    drawn = [rng(k).normal(size=size) for k, size in enumerate(sizes)]
    return [torch.from_numpy(t if kind == "random" else t.round()) for t in drawn]


# -- by hand


def test_one_pixel_moves_to_another() -> None:
    a, b = torch.zeros(2, 8, 9, dtype=torch.float64)
    a[1, 2], b[6, 3] = 2.0, 2.0
    solution = brenier.solve(Grid(8, 9, p=1), a=a.flatten(), b=b.flatten())
    assert solution.stats["solver"] == "flow"
    assert solution.status is Status.OPTIMAL
    assert float(solution.value) == float(solution.dual_value) == 2.0 * 6
    rows, cols, mass = solution.plan.entries()
    assert (rows.tolist(), cols.tolist(), mass.tolist()) == ([1 * 9 + 2], [6 * 9 + 3], [2.0])


def test_an_image_and_itself() -> None:
    a, _ = images(30)
    solution = brenier.solve(Grid(5, 6, p=1), a=a, b=a)
    assert float(solution.value) == 0
    assert float(solution.certificate.relative_gap) == 0
    assert torch.equal(solution.plan.dense(), torch.diag(a))


def test_on_a_line_it_is_the_area_between_the_distribution_functions() -> None:
    a, b = images(40)
    x = torch.from_numpy(rng(3).normal(size=40)).sort().values
    area = ((a - b).cumsum(0)[:-1].abs() * x.diff()).sum()
    assert_close(brenier.solve(Grid(x, p=1), a=a, b=b, solver="flow").value, area, 1e-13)


def test_translation() -> None:
    a, b = torch.zeros(2, 20, 20, dtype=torch.float64)
    a[2:7, 3:9] = torch.from_numpy(rng(0).uniform(size=(5, 6)))
    b[9:14, 10:16] = a[2:7, 3:9]
    value = brenier.solve(Grid(20, 20, p=1), a=a.flatten(), b=b.flatten()).value
    assert_close(value, 14 * a.sum(), 1e-13)


# -- against the simplex on all pairs


@pytest.mark.parametrize("kind", ["unit", "random", "ties"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_the_simplex_on_all_pairs(sizes: tuple[int, ...], kind: str) -> None:
    grid = Grid(*axes(sizes, kind), p=1)
    a, b = images(grid.shape[0], 7)
    a[rng(1).uniform(size=len(a)) < 0.3] = 0
    a[0] = 1e-3
    a = a / a.sum()
    cost = array(grid.tile())
    optimum = float(brenier.solve(CostMatrix(grid.tile()), a=a, b=b, solver=DENSE).value)
    solution = brenier.solve(grid, a=a, b=b, solver="flow")
    scale = max(cost.max(), 1e-300)
    assert solution.status is Status.OPTIMAL
    assert_close(solution.value, optimum, 1e-12, 1e-13 * scale)
    assert_close(solution.dual_value, optimum, 1e-12, 1e-13 * scale)
    check_marginals(solution.plan.dense(), a, b, 1e-14)
    check_feasible(solution.f, solution.g, cost, 1e-13)
    check_encloses(solution.certificate, optimum, 1e-12, scale)
    assert float(solution.certificate.gap) <= 1e-12 * scale
    assert torch.equal(solution.f, -solution.g)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scales(scale: float) -> None:
    x, y = (scale * torch.from_numpy(rng(k).normal(size=6)) for k in range(2))
    a, b = images(36)
    unit = brenier.solve(Grid(x / scale, y / scale, p=1), a=a, b=b).value
    assert_close(brenier.solve(Grid(x, y, p=1), a=a, b=b).value, scale * float(unit), 1e-12)
    assert_close(brenier.solve(Grid(x, y, p=1), a=scale * a, b=scale * b).value / scale / scale, unit, 1e-12)


def test_images_are_certified() -> None:
    generator = np.random.default_rng(0)
    for kind in ("white-noise", "shapes"):
        a, b = (torch.from_numpy(dotmark(kind, 64, generator=generator).ravel()) for _ in range(2))
        solution = brenier.solve(Grid(64, 64, p=1), a=a, b=b)
        assert solution.stats["solver"] == "flow"
        assert float(solution.certificate.relative_gap) <= 1e-12
        assert max(float(e) for e in solution.certificate.marginal_errors) <= 1e-12
        assert len(solution.plan.entries().mass) <= 3 * 64**2


# -- what else comes back


def test_batches_and_dtypes() -> None:
    grid = Grid(5, 6, p=1)
    a, b = weights(30, 0, 2, 3), weights(30, 1, 3)
    together = brenier.solve(grid, a=a, b=b, solver="flow")
    assert together.value.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert_close(together.value[i], brenier.solve(grid, a=a[i], b=b[i[1]]).value, 1e-13)
    single = brenier.solve(Grid(5, 6, p=1, dtype=torch.float32), a=a.float(), b=b.float())
    assert single.value.dtype == torch.float32
    assert_close(single.value, together.value, 1e-5)


def test_gradients() -> None:
    a, b = images(20)
    x, y = (torch.from_numpy(rng(k).normal(size=s)).requires_grad_() for k, s in ((0, 4), (1, 5)))
    a = a.requires_grad_()

    def value(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return brenier.solve(Grid(x, y, p=1), a=a / a.sum(), b=b).value

    gradients = torch.autograd.grad(value(x, y, a), (x, y, a))
    for k, gradient in enumerate(gradients):
        leaves = [t.detach().clone() for t in (x, y, a)]
        step = 1e-7 * torch.from_numpy(rng(k + 5).normal(size=gradient.shape))
        ends = []
        for sign in (1, -1):
            moved = [*leaves]
            moved[k] = moved[k] + sign * step
            ends.append(float(value(*moved)))
        assert float((gradient * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, abs=1e-13)


def test_a_stopped_flow_is_feasible() -> None:
    a, b = images(1024)
    best = float(brenier.solve(Grid(32, 32, p=1), a=a, b=b).value)
    for stop in ({"max_iter": 3}, {"timeout": 1e-9}):
        with pytest.warns(brenier.NotConvergedWarning):
            solution = brenier.solve(Grid(32, 32, p=1), a=a, b=b, **stop)  # type: ignore[arg-type]
        check_marginals(solution.plan.dense(), a, b, 1e-13)
        check_feasible(solution.f, solution.g, array(Grid(32, 32, p=1).tile()), 1e-12)
        assert float(solution.value) >= best - 1e-12
        check_encloses(solution.certificate, best, 1e-12)


def test_refusals() -> None:
    a = torch.full((9,), 1 / 9, dtype=torch.float64)
    for grid, more, message in [
        (Grid(3, 3), {}, r"flow: expected a Grid with p=1, got Grid\(3, 3, p=2\)"),
        (Grid(3, 3, p=1), {"epsilon": 1.0}, "flow: expected epsilon=None"),
        (Grid(3, 3, p=1), {"marginals": KL(1.0)}, "flow: expected exact marginals"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            brenier.solve(grid, a=a, b=a, solver="flow", **more)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="max_pivots"):
        GridFlow(max_pivots=0)


# -- trees of coarser grids


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_lifted_trees_span(sizes: tuple[int, ...]) -> None:
    level = _Level(tuple(np.arange(k, dtype=float) for k in sizes), np.zeros(int(np.prod(sizes)), np.int64))
    coarse = level.coarser()

    def spans(level: _Level, tree: np.ndarray) -> bool:
        parts = np.arange(level.nodes)
        for u, v in zip(level.edges[0][tree], level.edges[1][tree]):
            if parts[u] == parts[v]:
                return False
            parts[parts == parts[u]] = parts[v]
        return len(tree) == level.nodes - 1

    assert spans(level, level.comb())
    assert spans(level, level.lifted(coarse, coarse.comb()))
