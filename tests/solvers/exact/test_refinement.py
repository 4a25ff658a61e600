"""Plans from coarser grids, and orders: masses are met to the unit, and nothing gets dearer."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

import brenier
from brenier import Grid, PointCloud
from brenier.solvers import NetworkSimplex
from brenier.solvers.exact import simplex
from brenier.solvers.exact.refinement import Flows, LiveGrid, distinct, mended, neighbourly, split
from problems import assert_close, check_feasible, cloud, rng, weights

needs_native = pytest.mark.skipif(simplex.native is None, reason="native engine not built")


def dense(plan: Flows, n: int, m: int) -> np.ndarray:
    out = np.zeros((n, m), np.int64)
    np.add.at(out, (plan.rows, plan.cols), plan.flow)
    return out


def masses(n: int, seed: int, total: int) -> np.ndarray:
    """Positive integers of a given sum."""
    cuts = np.sort(rng(seed).choice(np.arange(1, total), n - 1, replace=False))
    return np.diff(cuts, prepend=0, append=total)


def some_plan(a: np.ndarray, b: np.ndarray) -> Flows:
    """The north-west corner rule in a random order of the lines."""
    rows, cols = (rng(k).permutation(len(w)) for k, w in enumerate((a, b)))
    cells = np.arange(len(a)), np.arange(len(b))
    whole = Flows(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([a.sum()]))
    plan = split(whole, 0 * cells[0], a[rows], 0 * cells[1], b[cols])
    return Flows(rows[plan.rows], cols[plan.cols], plan.flow)


# ------------------------------------------------------------------------------------------------- from a coarser one


def test_the_split_of_one_arc_is_the_plan_of_running_totals() -> None:
    whole = Flows(*(np.array([k]) for k in (0, 0, 10)))
    plan = split(whole, np.zeros(2, np.int64), np.array([4, 6]), np.zeros(3, np.int64), np.array([3, 3, 4]))
    np.testing.assert_array_equal(dense(plan, 2, 3), [[3, 1, 0], [0, 2, 4]])


@pytest.mark.parametrize("seed", range(5))
def test_a_split_plan_meets_all_masses_and_adds_up_to_the_coarse_one(seed: int) -> None:
    n, m, cells = 60, 45, 9
    total = 2**61  # far more than float64 tells apart
    a, b = (masses(k, seed + s, 10**6) * (total // 10**6) for s, k in enumerate((n, m)))
    row_cells, col_cells = (rng(seed + s).permutation(np.arange(k) % cells) for s, k in ((2, n), (3, m)))
    coarse = some_plan(*(pooled(w, c, cells) for w, c in ((a, row_cells), (b, col_cells))))
    plan = split(coarse, row_cells, a, col_cells, b)
    fine = dense(plan, n, m)
    np.testing.assert_array_equal(fine.sum(1), a)
    np.testing.assert_array_equal(fine.sum(0), b)
    assert (plan.flow > 0).all()
    assert len(distinct(plan.rows * m + plan.cols)) == len(plan.flow) < n + m + 2 * len(coarse.flow)
    np.testing.assert_array_equal(
        dense(Flows(row_cells[plan.rows], col_cells[plan.cols], plan.flow), cells, cells), dense(coarse, cells, cells)
    )


def pooled(mass: np.ndarray, cell: np.ndarray, cells: int) -> np.ndarray:
    out = np.zeros(cells, np.int64)
    np.add.at(out, cell, mass)
    return out


@needs_native
def test_mended_blocks_are_optimal_and_keep_their_columns() -> None:
    x, y = cloud(60, 2, 0), cloud(50, 2, 1)
    geometry = PointCloud(x, y)
    cost = geometry.tile().numpy()
    a, b = masses(60, 2, 10**9), masses(50, 3, 10**9)
    before = some_plan(a, b)
    blocks = np.arange(60) // 12
    old, new = (dense(p, 60, 50) for p in (before, mended(geometry, before, blocks)))
    for block in range(5):
        rows = blocks == block
        np.testing.assert_array_equal(new[rows].sum(0), old[rows].sum(0))
        np.testing.assert_array_equal(new[rows].sum(1), a[rows])
        part = old[rows].sum(0).astype(float)
        optimum = ot.emd2(a[rows].astype(float), part, cost[rows], numItermax=10**6)
        assert_close((new[rows] * cost[rows]).sum(), optimum, 1e-12)
    assert (new * cost).sum() < (old * cost).sum()


@needs_native
def test_one_block_of_all_rows_is_the_problem() -> None:
    x, y = cloud(40, 2, 0), cloud(40, 2, 1)
    a, b = masses(40, 2, 10**6), masses(40, 3, 10**6)
    plan = mended(PointCloud(x, y), some_plan(a, b), np.zeros(40, np.int64))
    cost = PointCloud(x, y).tile().numpy()
    assert_close((dense(plan, 40, 40) * cost).sum(), ot.emd2(a.astype(float), b.astype(float), cost), 1e-12)


# ---------------------------------------------------------------------------------------------------- parts of a grid


@pytest.mark.parametrize("p", [1, 2, 1.5])
@pytest.mark.parametrize("sizes", [(7, 5), (11,), (3, 4, 2)], ids=str)
def test_some_nodes_of_a_grid_are_priced_like_all_their_pairs(sizes: tuple[int, ...], p: float) -> None:
    grid = Grid(*sizes, p=p)
    nodes = grid.shape[0]
    rows, cols = (torch.from_numpy(rng(k).permutation(nodes)[: nodes - 3 - k]) for k in range(2))
    live = LiveGrid(grid, rows, cols)
    h = torch.from_numpy(rng(2).normal(size=len(cols)))
    cost = grid.tile()[rows][:, cols]
    assert live.shape == tuple(cost.shape)
    reduced = cost - h
    values, index = live.cmin(h)
    assert_close(values, reduced.min(1).values, 1e-12, 1e-12)
    assert_close(reduced.gather(1, index[:, None]).squeeze(1), values, 1e-12, 1e-12)
    least = torch.full_like(values, torch.inf)
    for part, at in live.minima(h, 4):
        told = part < torch.inf
        assert_close(reduced[told.nonzero().squeeze(1), at[told]], part[told], 1e-12, 1e-12)
        least = torch.minimum(least, part)
    assert_close(least, values, 1e-12, 1e-12)
    i, j = torch.arange(5), torch.tensor([3, 0, 1, 2, 2])
    assert_close(live.cost_at(i, j), cost[i, j], 1e-12, 1e-12)
    assert_close(live.part(i, j).tile(), cost[i][:, j], 1e-12, 1e-12)
    assert_close(live.T.cmin(values)[0], (cost - values[:, None]).min(0).values, 1e-12, 1e-12)


def test_a_class_without_any_live_column_offers_none() -> None:
    live = LiveGrid(Grid(4, 4), torch.arange(16), torch.tensor([5]))
    found = [(values < torch.inf).sum() for values, _ in live.minima(torch.zeros(1, dtype=torch.float64), 4)]
    assert sorted(map(int, found)) == [0, 0, 0, 16]


@pytest.mark.parametrize(("sizes", "side", "shift"), [((5, 7), 2, 0), ((5, 7), 4, 2), ((6,), 3, 1), ((3, 4, 5), 2, 1)])
def test_the_blocks_of_a_grid(sizes: tuple[int, ...], side: int, shift: int) -> None:
    grid = Grid(*sizes)
    expected = ((grid.points + shift) // side).long()
    _, number = torch.unique(expected, dim=0, return_inverse=True)  # in row-major order of the blocks
    torch.testing.assert_close(grid.blocks(side, shift), number)
    coarse, _ = grid.coarser()
    assert int(grid.blocks(2).max()) == coarse.shape[0] - 1


# ------------------------------------------------------------------------------------------------------------- orders


def test_orders_are_permutations_in_which_near_lines_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brenier.solvers.exact.refinement._LARGE", 100)
    for geometry in (Grid(13, 22), Grid(1, 1), PointCloud(cloud(300, 2, 0), cloud(200, 2, 1))):
        orders = neighbourly(geometry)
        assert orders is not None
        for order, size in zip(orders, geometry.shape):
            np.testing.assert_array_equal(np.sort(order), np.arange(size))
    assert neighbourly(PointCloud(cloud(90, 2), cloud(200, 2))) is None
    assert neighbourly(PointCloud(cloud(300, 20), cloud(200, 20))) is None
    orders = neighbourly(Grid(16, 16))
    assert orders is not None
    points = Grid(16, 16).points[torch.from_numpy(orders[0])]
    runs = points.reshape(16, 16, 2)  # of 16 nodes each: squares of 4 x 4
    assert float((runs.amax(1) - runs.amin(1)).max()) == 3
    x = cloud(400, 2, 2)
    orders = neighbourly(PointCloud(x, x))
    assert orders is not None
    steps = [(x[i].diff(dim=0)).norm(dim=1).mean() for i in (orders[0], np.arange(400))]
    assert steps[0] < steps[1] / 4


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("given", ["", "f", "g"])
def test_a_dense_solve_in_order_answers_in_the_order_of_the_points(
    engine: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, a, b = cloud(70, 2, 0), cloud(60, 2, 1), weights(70, 2, zeros=5), weights(60, 3, zeros=5)
    cold = brenier.solve(x, y, a=a, b=b, solver=NetworkSimplex(pairs="dense", engine=engine))
    monkeypatch.setattr("brenier.solvers.exact.refinement._LARGE", 2)
    start = {given: getattr(cold, given)} if given else {}
    solution = brenier.solve(x, y, a=a, b=b, solver=NetworkSimplex(pairs="dense", engine=engine, **start))
    assert solution.status is brenier.Status.OPTIMAL
    assert_close(solution.plan.dense(), cold.plan.dense(), 1e-12, 1e-15)
    assert_close(solution.value, cold.value, 1e-12)
    assert float(solution.certificate.relative_gap) <= 1e-12
    check_feasible(solution.f, solution.g, PointCloud(x, y).tile().numpy(), 1e-12)
    if given:
        assert solution.stats["n_iter"] <= 5


def test_distinct() -> None:
    values = rng(0).integers(0, 30, 100)
    np.testing.assert_array_equal(distinct(values), np.unique(values))
    assert len(distinct(values[:0])) == 0
