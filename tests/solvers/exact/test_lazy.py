"""Exact transport without the cost matrix: the same optima as with it, proved over all pairs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import brenier
from brenier import CostMatrix, Grid, InvalidInput, PointCloud, Problem, Solution, Status
from brenier.data import dotmark
from brenier.errors import NotConvergedWarning
from brenier.solvers import NetworkSimplex, run
from brenier.solvers.exact import lazy, refinement, simplex
from problems import (
    COSTS,
    HARD,
    KNOWN,
    CostCase,
    Known,
    array,
    assert_close,
    check_encloses,
    check_feasible,
    check_marginals,
    cloud,
    rng,
    tiny_lp,
    weights,
)

needs_native = pytest.mark.skipif(simplex.native is None, reason="native engine not built")
LAZY = NetworkSimplex(pairs="lazy")
DENSE = NetworkSimplex(pairs="dense")


@pytest.fixture(params=["lists as they are", "tiny lists"])
def _lists(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists so short that most arcs are found by pricing, leftovers in many phases, samples solved lazily too.

    And points in the order of a tree, grids solved on coarser ones first and priced as wholes.
    """
    if request.param == "tiny lists":
        tiny = {"_FIRST": 2, "_EXTRA": 1, "_ALL": 6, "_DENSE": 500, "_PATIENCE": 1, "_BLOCK": 7}
        grids = {"_SMALL_GRID": 16, "_SEPARABLE": 0, "_BLOCK_ROWS": 9}
        for name, value in (tiny | grids).items():
            monkeypatch.setattr(lazy, name, value)
        monkeypatch.setattr(refinement, "_LARGE", 2)


def check(solution: Solution, cost: np.ndarray, a: Any, b: Any, optimum: float, tol: float = 1e-9) -> None:
    assert solution.status is Status.OPTIMAL
    assert solution.stats["pairs"] == "lazy"
    assert_close(solution.value, optimum, tol, tol * np.abs(cost).max() * array(a).sum())
    check_marginals(solution.plan.dense(), a, b, 1e-12)
    check_feasible(solution.f, solution.g, cost, 1e-12)
    check_encloses(solution.certificate, optimum, 1e-9, np.abs(cost).max() * array(a).sum())
    assert float(solution.certificate.gap) <= 1e-12 * max(np.abs(cost).max() * array(a).sum(), 1e-300)


# ---------------------------------------------------------------------------------------------- known answers


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_linear_program(seed: int) -> None:
    lp = tiny_lp(seed)
    solution = brenier.solve(CostMatrix(lp.cost), a=lp.a, b=lp.b, solver=LAZY)
    check(solution, lp.cost, lp.a, lp.b, lp.value)


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_known_values(known: Known) -> None:
    solution = brenier.solve(known.x, known.y, solver=LAZY)
    assert solution.status is Status.OPTIMAL
    assert_close(solution.value, known.value, 1e-9, 1e-12)


@needs_native
@pytest.mark.usefixtures("_lists")
def test_equal_masses_give_a_permutation() -> None:
    x, y = cloud(300, 3, 0), cloud(300, 3, 1)
    solution = brenier.solve(x, y, solver=LAZY)
    C = array(PointCloud(x, y).tile())
    rows, cols = linear_sum_assignment(C)
    check(solution, C, np.full(300, 1 / 300), np.full(300, 1 / 300), C[rows, cols].mean())
    got, to, mass = solution.plan.entries()
    assert sorted(got.tolist()) == sorted(to.tolist()) == list(range(300))
    assert (mass == mass[0]).all()


# ------------------------------------------------------------------------------------------------ every input


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_every_cost(cost: CostCase) -> None:
    x, y = cost.points(40, 2, 3), cost.points(55, 2, 4)
    a, b = weights(40, 5, zeros=4), weights(55, 6, zeros=3)
    C = cost.dense(array(x), array(y))
    optimum = ot.emd2(a.numpy(), b.numpy(), C, numItermax=10**6)
    check(brenier.solve(x, y, a=a, b=b, cost=cost.given(2), solver=LAZY), C, a, b, optimum)


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs(name: str) -> None:
    x, y, a, b = HARD[name]
    dense, solution = (brenier.solve(x, y, a=a, b=b, solver=way) for way in (DENSE, LAZY))
    assert solution.status is Status.OPTIMAL
    tol = 1e-9 if solution.value.dtype == torch.float64 else 1e-5
    assert_close(solution.value.detach(), dense.value.detach(), tol, tol)
    assert solution.value.dtype == dense.value.dtype
    assert float(solution.certificate.gap) <= 1e-12 * float(solution.certificate.scale)


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize(("n", "m"), [(60, 60), (40, 70), (90, 30)])
@pytest.mark.parametrize("top", [1, 3, 1000])
def test_integer_costs_and_masses_are_heavily_degenerate(n: int, m: int, top: int) -> None:
    random = rng(top)
    C = random.integers(0, top, size=(n, m)).astype(float)
    a = random.integers(1, 4, size=n) * float(m)
    b = np.full(m, a.sum() / m)
    solution = brenier.solve(CostMatrix(C), a=a, b=b, solver=LAZY)
    check(solution, C, a, b, ot.emd2(a, b, C))
    np.testing.assert_array_equal(solution.plan.dense().sum(1), a)


@needs_native
@pytest.mark.usefixtures("_lists")
def test_duplicates_and_ties_in_numbers() -> None:
    random = rng(0)
    x, y = (random.integers(0, 6, size=(k, 2)).astype(float) for k in (400, 600))
    C = ((x[:, None] - y) ** 2).sum(-1)
    solution = brenier.solve(x, y, solver=LAZY)
    a, b = np.full(400, 1 / 400), np.full(600, 1 / 600)
    check(solution, C, a, b, ot.emd2(a, b, C, numItermax=10**6))


@needs_native
def test_all_costs_equal_beyond_what_is_listed_at_once() -> None:
    x = torch.zeros(1500, 2, dtype=torch.float64)
    solution = brenier.solve(x, x + 1, solver=LAZY)
    assert solution.status is Status.OPTIMAL
    assert_close(solution.value, 2.0, 1e-12)


@needs_native
def test_a_grid() -> None:
    grid, a, b = Grid(9, 7), weights(63, 0), weights(63, 1)
    solution = brenier.solve(grid, a=a, b=b, solver=LAZY)
    C = array(grid.tile())
    check(solution, C, a, b, ot.emd2(a.numpy(), b.numpy(), C))


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("p", [1, 2, 1.5])
def test_a_large_enough_grid_and_pixels_without_mass(p: float) -> None:
    grid = Grid(19, 15, p=p)
    a, b = weights(285, 0, zeros=100), weights(285, 1)
    assert grid.fused == (p in (1, 2))
    C = array(grid.tile())
    check(brenier.solve(grid, a=a, b=b, solver=LAZY), C, a, b, ot.emd2(a.numpy(), b.numpy(), C, numItermax=10**6))


@needs_native
@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("sizes", [(40,), (1, 30), (12, 17), (5, 6, 7), (3, 4, 3, 5)], ids=str)
@pytest.mark.parametrize("masses", ["integer", "equal", "few"])
def test_grids_of_any_dimension(sizes: tuple[int, ...], masses: str) -> None:
    grid, random = Grid(*sizes), rng(len(sizes))
    n = grid.shape[0]
    if masses == "few":
        a, b = (weights(n, k, zeros=n - 5) for k in (0, 1))
    else:
        a, b = (torch.from_numpy(random.integers(1, 9 if masses == "integer" else 2, n).astype(float)) for _ in "ab")
        b *= a.sum() / b.sum()
    C = array(grid.tile())
    optimum = ot.emd2(a.numpy(), b.numpy(), C, numItermax=10**6)
    check(brenier.solve(grid, a=a, b=b, solver=LAZY), C, a, b, optimum)


@needs_native
@pytest.mark.parametrize("kind", ["white-noise", "cauchy-density", "shapes"])
def test_images_start_from_coarser_ones(kind: str) -> None:
    generator = np.random.default_rng(7)
    a, b = (torch.from_numpy(dotmark(kind, 96, generator=generator).ravel()) for _ in range(2))
    solution = brenier.solve(Grid(96, 96), a=a, b=b)
    assert solution.status is Status.OPTIMAL
    assert float(solution.certificate.relative_gap) <= 1e-11
    used = solution.plan.entries()[2] > 0
    assert int(used.sum()) < int((a > 0).sum() + (b > 0).sum())


@needs_native
@pytest.mark.parametrize("numbers", [True, False], ids=["integers", "reals"])
def test_trees_large_enough_to_be_cut_into_clusters(numbers: bool) -> None:
    x, y = cloud(9000, 2, 0), cloud(9100, 2, 1)
    if numbers:  # ties, and equal points
        x, y = (20 * x).round(), (20 * y).round()
    a, b = weights(9000, 2), weights(9100, 3)
    solution = brenier.solve(x, y, a=a, b=b, solver=LAZY)
    assert solution.status is Status.OPTIMAL
    scale = solution.certificate.scale
    assert float(solution.certificate.gap) <= 1e-13 * float(scale)
    rows, cols, mass = solution.plan.entries()
    assert_close(torch.zeros_like(a).index_add(0, rows, mass), a, 1e-12, 1e-15)
    assert_close(torch.zeros_like(b).index_add(0, cols, mass), b, 1e-12, 1e-15)


@needs_native
def test_images_are_solved_without_their_cost_matrix() -> None:
    grid = Grid(60, 60)
    assert NetworkSimplex().lazy(Problem.make(grid))
    assert not NetworkSimplex().lazy(Problem.make(Grid(60, 60, p=1.5)))
    a = torch.zeros(60, 60, dtype=torch.float64)
    a[:30, :30] = torch.rand(30, 30, dtype=torch.float64)
    b = a.roll((20, 10), (0, 1))  # a translation is optimal
    solution = brenier.solve(grid, a=a.flatten(), b=b.flatten())
    assert solution.stats["pairs"] == "lazy"
    assert_close(solution.value, 500 * a.sum(), 1e-12)
    assert float(solution.certificate.relative_gap) <= 1e-12


@needs_native
def test_batches_are_looped_and_broadcast() -> None:
    x, y, a = cloud(30, 2, 0, 2, 1), cloud(20, 2, 1), weights(30, 2, 3)
    both = [brenier.solve(x, y, a=a, solver=way) for way in (DENSE, LAZY)]
    assert both[1].value.shape == (2, 3)
    assert_close(both[1].value, both[0].value, 1e-12)
    assert both[1].statuses == (Status.OPTIMAL,) * 6


@needs_native
def test_float32_points_are_priced_in_float64() -> None:
    x, y = cloud(200, 3, 0).float(), cloud(150, 3, 1).float()
    solution = brenier.solve(x, y, solver=LAZY)
    assert solution.value.dtype == torch.float32
    assert float(solution.certificate.relative_gap) <= 1e-14


@needs_native
def test_gradients_are_those_of_the_plan() -> None:
    x, y = cloud(50, 2, 0).requires_grad_(), cloud(40, 2, 1)
    gradients = [torch.autograd.grad(brenier.solve(x, y, solver=way).value, x)[0] for way in (DENSE, LAZY)]
    assert_close(gradients[1], gradients[0], 1e-9, 1e-12)


# ---------------------------------------------------------------------------------------- starting and stopping


@needs_native
@pytest.mark.parametrize("given", ["f", "g", "fg"])
def test_optimal_duals_save_the_pivots(given: str) -> None:
    x, y = cloud(300, 2, 0), cloud(350, 2, 1)
    cold = brenier.solve(x, y, solver=LAZY)
    starts = {name: getattr(cold, name) for name in given}
    warm = brenier.solve(x, y, solver=NetworkSimplex(pairs="lazy", **starts))
    assert_close(warm.value, cold.value, 1e-12)
    assert cold.stats["n_iter"] > 500
    assert warm.stats["n_iter"] <= cold.stats["n_iter"] / 10


@needs_native
def test_duals_that_match_all_points_need_no_pivots() -> None:
    x = cloud(500, 2, 0)
    y = x[torch.randperm(500)] + 0.3  # a translation is optimal, and only its arcs are tight
    solution = brenier.solve(x, y, solver=NetworkSimplex(pairs="lazy", g=0.6 * y.sum(1)))
    check(solution, array(PointCloud(x, y).tile()), np.full(500, 1 / 500), np.full(500, 1 / 500), 0.18)
    assert solution.stats["n_iter"] == solution.stats["rounds"] == 0


@needs_native
def test_any_duals_will_do_for_a_start() -> None:
    x, y = cloud(60, 2, 0), cloud(50, 2, 1)
    f, g = (100 * cloud(k, 1, 2).squeeze(-1) for k in (60, 50))
    solution = brenier.solve(x, y, solver=NetworkSimplex(pairs="lazy", f=f, g=g))
    assert_close(solution.value, brenier.solve(x, y, solver=DENSE).value, 1e-12)


@needs_native
def test_a_callback_stops_between_rounds_with_a_feasible_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_FIRST", 1)
    monkeypatch.setattr(lazy, "_EXTRA", 1)
    x, y, a = cloud(300, 2, 0), cloud(300, 2, 1) + 5, weights(300)
    gaps = []

    def callback(iteration: int, state: simplex.SimplexState) -> bool:
        gaps.append(LAZY.error(state))
        return iteration == 3

    with pytest.warns(NotConvergedWarning, match="stopped by the callback"):
        solution = brenier.solve(x, y, a=a, solver=LAZY, callback=callback)
    best = float(brenier.solve(x, y, a=a, solver=DENSE).value)
    assert solution.stats["rounds"] == len(gaps) == 3
    assert 0 < gaps[2] < gaps[0]
    check_marginals(solution.plan.dense(), a, np.full(300, 1 / 300), 1e-12)
    certificate = solution.certificate
    assert float(certificate.dual) <= best + 1e-12 <= float(certificate.primal) + 2e-12
    assert float(certificate.relative_gap) <= gaps[2] * (1 + 1e-9)
    check_feasible(solution.f, solution.g, array(PointCloud(x, y).tile()), 1e-12)


@needs_native
def test_a_gap_ends_the_pivots_before_the_round_does() -> None:
    x, y, a = cloud(300, 2, 0), cloud(300, 2, 1) + 5, weights(300)
    near = brenier.solve(x, y, a=a, solver=NetworkSimplex(pairs="lazy", gap=0.01))
    exact = brenier.solve(x, y, a=a, solver=LAZY)
    assert near.status is brenier.Status.CONVERGED
    assert float(near.certificate.relative_gap) <= 0.01
    assert near.stats["n_iter"] < 0.8 * exact.stats["n_iter"]
    check_marginals(near.plan.dense(), a, np.full(300, 1 / 300), 1e-12)


@needs_native
@pytest.mark.parametrize("max_pivots", [1, 50])
def test_max_pivots(max_pivots: int) -> None:
    x, y = cloud(200, 2, 0), cloud(200, 2, 1)
    with pytest.warns(NotConvergedWarning, match="stopped at max_iter"):
        solution = brenier.solve(x, y, solver=NetworkSimplex(pairs="lazy", max_pivots=max_pivots))
    assert solution.stats["n_iter"] == max_pivots
    assert float(solution.certificate.primal) >= float(brenier.solve(x, y, solver=DENSE).value) - 1e-12


@needs_native
def test_a_cost_that_is_not_finite_is_refused() -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().sum(-1) / 0

    with pytest.raises(InvalidInput, match="finite values between all pairs"):
        brenier.solve(cloud(5), cloud(6), cost=broken, solver=LAZY)


def test_without_the_native_engine_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(5), cloud(6)
    with pytest.raises(InvalidInput, match=r"got engine='reference'. Reinstall .* pairs='dense' and 0.0 GB"):
        brenier.solve(x, y, solver=NetworkSimplex(pairs="lazy", engine="reference"))
    monkeypatch.setattr(simplex, "native", None)
    with pytest.raises(InvalidInput, match="expected the native engine, got an installation without it"):
        brenier.solve(x, y, solver=LAZY)


def test_auto_goes_by_the_number_of_pairs_and_by_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_lazy(geometry: brenier.Geometry, **options: Any) -> bool:
        return NetworkSimplex(**options).lazy(Problem.make(geometry))

    x, y = cloud(5), cloud(6)
    powers = PointCloud(x, y, lambda u, v: (u - v).abs().sum(-1) ** 1.5)
    assert not is_lazy(PointCloud(x, y))
    wide = PointCloud(cloud(5, 12), cloud(6, 12))
    monkeypatch.setattr(simplex, "_LAZY_ABOVE", ((11, 29), (64, 30)))
    assert is_lazy(PointCloud(x, y)) == (simplex.native is not None)
    assert not is_lazy(wide)
    monkeypatch.setattr(simplex, "_LAZY_ABOVE", ((11, 29), (64, 29)))
    assert is_lazy(wide) == (simplex.native is not None)
    assert not is_lazy(PointCloud(x, y), pairs="dense")
    assert not is_lazy(PointCloud(x, y), engine="reference")
    assert not is_lazy(powers)
    monkeypatch.setattr(simplex, "DENSE_LIMIT", 29)
    assert is_lazy(powers)
    assert not is_lazy(CostMatrix(torch.rand(5, 6)))


@needs_native
def test_the_numbers_of_a_solve() -> None:
    x = cloud(800, 2, 0)
    solution = run(Problem.make(PointCloud(x, cloud(700, 2, 1))), LAZY)
    stats = solution.stats
    assert stats["arcs"] >= 1499
    assert stats["n_iter"] > 0
    assert 0 < stats["seconds_start"] + stats["seconds_pivots"] + stats["seconds_pricing"] <= stats["seconds"]


# ------------------------------------------------------------------------------------------------------ memory

_SCRIPT = """
import torch, brenier
from brenier.solvers import NetworkSimplex
def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024
torch.manual_seed(0)
torch.set_num_threads(1)
n = 20_000
x = torch.randn(n, 2, dtype=torch.float64)
y = x[torch.randperm(n)] + 0.3  # almost a translation, whose potential is known
y += 5e-3 * torch.randn(n, 2, dtype=torch.float64)
lazy = NetworkSimplex(pairs="lazy", g=0.6 * y.sum(1))
brenier.solve(x[:700], y[:700], solver=NetworkSimplex(pairs="lazy")).certificate
before = peak_mb()
solution = brenier.solve(x, y, solver=lazy)
assert solution.stats["rounds"] > 0 and float(solution.certificate.relative_gap) < 1e-12
print(peak_mb() - before)
"""


@needs_native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
def test_no_n_by_m() -> None:
    out = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    used, whole = float(out.stdout), 8 * 20_000**2 / 2**20
    assert used < whole / 8, f"an exact solve took {used:.0f} MB, the cost matrix is {whole:.0f} MB"
