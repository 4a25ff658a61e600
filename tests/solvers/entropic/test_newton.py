"""Newton on a sparsified Hessian: the same answer as Sinkhorn, quadratically, without an n x m allocation."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from brenier import KL, CostMatrix, Grid, NotConverged, NotConvergedWarning, PointCloud, Problem, solve
from brenier.errors import InvalidInput
from brenier.solvers import Fixed, Newton, Plain, Sinkhorn, SparseNewton, run
from brenier.solvers.entropic import newton as module

EPSILON = 0.02


def weights(n: int, generator: torch.Generator, *, zeros: bool = True) -> torch.Tensor:
    w = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    if zeros:
        w[n // 2] = 0
    return w / w.sum()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def clouds(generator):
    x = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(55, 2, generator=generator, dtype=torch.float64)
    return x, y, weights(40, generator), weights(55, generator)


@pytest.mark.parametrize("solver", ["sns", "newton"])
@pytest.mark.parametrize("lazy", [True, False])
def test_agrees_with_sinkhorn(clouds, solver, lazy):
    x, y, a, b = clouds
    geometry = PointCloud(x, y)
    if not lazy:
        geometry = CostMatrix(geometry.tile())
    found = solve(geometry, a=a, b=b, epsilon=EPSILON, solver=solver, tol=1e-13)
    truth = solve(geometry, a=a, b=b, epsilon=EPSILON, solver="sinkhorn", tol=1e-14, max_iter=20000)
    assert found.status.ok
    assert found.stats["n_newton"] <= 12
    assert abs(float(found.value - truth.value)) < 1e-12
    assert abs(float(found.dual_value - truth.value)) < 1e-12
    assert float((found.plan.dense() - truth.plan.dense()).abs().sum()) < 1e-10
    shift = (truth.f - found.f)[0]
    torch.testing.assert_close(found.f + shift, truth.f, atol=1e-10, rtol=0)  # on points without mass too
    torch.testing.assert_close(found.g - shift, truth.g, atol=1e-10, rtol=0)
    assert max(float(e) for e in found.certificate.marginal_errors) < 1e-12


def test_grid_and_transposed_problem(generator):
    a, b = weights(64, generator), weights(64, generator)
    found = solve(Grid(8, 8), a=a, b=b, epsilon=0.5, solver="sns", tol=1e-12)
    back = solve(Grid(8, 8), a=b, b=a, epsilon=0.5, solver="sns", tol=1e-12)
    truth = solve(Grid(8, 8), a=a, b=b, epsilon=0.5, tol=1e-13, max_iter=20000)
    assert abs(float(found.value - truth.value)) < 1e-10
    torch.testing.assert_close(found.plan.dense(), back.plan.dense().mT, atol=1e-10, rtol=0)


def test_small_epsilon_is_fast_where_sinkhorn_crawls():
    C = torch.from_numpy(np.random.default_rng(0).random((120, 120)))
    solver = SparseNewton(tol=1e-12)
    solution = solve(CostMatrix(C), epsilon=1 / 600, solver=solver)
    e = solution.stats["errors"]
    assert solution.status.ok
    assert solution.stats["n_newton"] <= 20
    assert e[-1] < 1e-3 * e[-2]  # a linear method would repeat one factor
    assert e[-2] < 0.1 * e[-3]
    with pytest.warns(NotConvergedWarning):
        sweeps = solve(CostMatrix(C), epsilon=1 / 600, solver="sinkhorn", max_iter=200, tol=1e-6)
    assert sweeps.stats["marginal_error"] > 1e-6


def test_tail_is_quadratic(generator):
    C = torch.rand(50, 60, generator=generator, dtype=torch.float64)
    dense, sparse = (
        solve(CostMatrix(C), epsilon=0.05, solver=SparseNewton(tol=1e-13, cg_rtol=1e-10, density=d)).stats["errors"]
        for d in (1.0, None)
    )
    tail = [e for e in dense if e < 1e-2][-3:]
    assert all(late <= 1000 * early**2 + 1e-14 for early, late in pairwise(tail))  # 1 / the smallest mass, about
    assert min(late / early for early, late in pairwise(sparse)) < 1e-3  # the density was raised on the way


def test_density_one_is_newton_and_a_poor_density_is_linear():
    C = CostMatrix(torch.from_numpy(np.random.default_rng(1).random((100, 100))))
    sparse, dense = (solve(C, epsilon=1 / 300, solver=SparseNewton(tol=1e-12, density=d)) for d in (None, 1.0))
    assert abs(sparse.stats["n_newton"] - dense.stats["n_newton"]) <= 5
    assert float(sparse.value) == pytest.approx(float(dense.value), rel=1e-10)
    poor = solve(C, epsilon=1 / 300, solver=SparseNewton(tol=1e-9, density=2 / 100, adaptive=False))
    assert poor.stats["n_newton"] > dense.stats["n_newton"] + 5
    assert set(poor.stats["densities"]) == {0.02}
    grown = solve(C, epsilon=1 / 300, solver=SparseNewton(tol=1e-9, density=2 / 100))
    assert max(grown.stats["densities"]) > 0.02
    assert grown.stats["n_newton"] < poor.stats["n_newton"]


def item_of(problem: Problem, solver: SparseNewton) -> module._Item:
    return solver.step(problem, solver.init(problem)).items[0]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 1.0])
def test_sparsified_hessian_is_psd_with_the_largest_entries(clouds, density):
    x, y, a, b = clouds
    geometry = CostMatrix(PointCloud(x, y).tile())
    problem = Problem.make(geometry, a, b, epsilon=EPSILON)
    solver = SparseNewton(density=density, sweeps=1, schedule=Fixed())
    item = item_of(problem, solver)
    diagonal = torch.where(a > 0, item.rows, 1)
    hessian = solver._hessian(item, diagonal)
    K = hessian.matrix if isinstance(hessian.matrix, np.ndarray) else hessian.matrix.toarray()
    whole = np.eye(40) - K @ K.T
    assert np.linalg.eigvalsh(whole).min() > -1e-14
    plan = (a[:, None] * b * ((item.f[:, None] + item.g - geometry.cost) / EPSILON).exp()).numpy()
    with np.errstate(invalid="ignore"):
        relative = np.nan_to_num(plan / np.sqrt(diagonal.numpy()[:, None] * b.numpy()))
    kept = K > 0
    np.testing.assert_allclose(K[kept], relative[kept], rtol=1e-11)
    assert relative[~kept].max(initial=0) <= relative[kept].min() * (1 + 1e-12)
    v = np.random.default_rng(0).standard_normal(40)
    np.testing.assert_allclose(hessian.multiply(v), whole @ v, atol=1e-13)


def test_full_density_gives_the_hessian_of_the_semidual(clouds):
    x, y, a, b = (t.clone() for t in clouds)
    a, b = a.clamp(min=1e-3) / a.clamp(min=1e-3).sum(), b.clamp(min=1e-3) / b.clamp(min=1e-3).sum()
    geometry = CostMatrix(PointCloud(x, y).tile())
    problem = Problem.make(geometry, a, b, epsilon=EPSILON)
    solver = SparseNewton(density=1.0, sweeps=1, schedule=Fixed())
    item = item_of(problem, solver)

    def semidual(f: torch.Tensor) -> torch.Tensor:
        g = geometry.softmin(f + EPSILON * a.log(), EPSILON, dim=0)
        return (a * f).sum() + (b * g).sum()

    truth = torch.autograd.functional.hessian(semidual, item.f)
    root = item.rows.sqrt()
    K = torch.from_numpy(solver._hessian(item, item.rows).matrix)
    scaled = torch.eye(40, dtype=torch.float64) - K @ K.mT
    torch.testing.assert_close(truth, -root[:, None] * scaled * root / EPSILON, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(item.rows.sum(), a.sum(), atol=1e-12, rtol=0)  # the columns are exact


def test_matrix_free_hessian_is_the_dense_one(clouds):
    x, y, a, b = clouds
    problem = Problem.make(PointCloud(x, y), a, b, epsilon=EPSILON)
    item = item_of(problem, SparseNewton(sweeps=1, schedule=Fixed()))
    diagonal = torch.where(a > 0, item.rows, 1)
    dense = SparseNewton(density=1.0, max_density=1.0)._hessian(item._replace(entries=40 * 55), diagonal)
    v = np.random.default_rng(0).standard_normal(40) * (a.numpy() > 0)
    np.testing.assert_allclose(Newton()._hessian(item, diagonal).multiply(v), dense.multiply(v), atol=1e-12)


def test_batch_is_each_problem_alone(generator):
    x = torch.rand(3, 20, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(25, 2, generator=generator, dtype=torch.float64)
    a = torch.stack([weights(20, generator) for _ in range(3)])
    epsilon = torch.tensor([0.01, 0.05, 0.2], dtype=torch.float64)
    batch = solve(x, y, a=a, epsilon=epsilon, solver="sns")
    assert batch.statuses == tuple(s for s in batch.statuses if s.ok)
    assert len(batch.stats["n_newton"]) == 3
    for i in range(3):
        one = solve(x[i], y, a=a[i], epsilon=float(epsilon[i]), solver="sns")
        torch.testing.assert_close(batch.f[i], one.f, atol=1e-9, rtol=0)
        torch.testing.assert_close(batch.value[i], one.value, atol=1e-10, rtol=0)


def test_batch_of_weights_on_one_geometry(generator):
    C = torch.rand(1, 12, 9, generator=generator, dtype=torch.float64)
    a = torch.stack([weights(12, generator) for _ in range(2)])
    batch = solve(CostMatrix(C), a=a, epsilon=0.1, solver="sns")
    for i in range(2):
        torch.testing.assert_close(batch.value[i], solve(CostMatrix(C[0]), a=a[i], epsilon=0.1, solver="sns").value)


def test_float32_is_computed_in_float64(clouds):
    x, y, a, b = (t.float() for t in clouds)
    solution = solve(x, y, a=a, b=b, epsilon=0.003, solver="sns")
    assert solution.status.ok
    assert solution.stats["marginal_error"] < 1e-10
    assert solution.value.dtype == solution.linear_value.dtype == torch.float32
    assert solution.f.dtype == solution.plan.row_sums().dtype == torch.float64
    assert solution.potentials.f.dtype == solution.plan.dense().dtype == torch.float32
    assert solution.plan.topk(3).mass.dtype == solution.plan.barycentric().dtype == torch.float32
    assert max(float(e) for e in solution.certificate.marginal_errors) < 1e-7


def test_warm_start_and_uneven_masses(clouds):
    x, y, a, b = clouds
    first = solve(x, y, a=3 * a, b=3 * b, epsilon=EPSILON, solver="sns", tol=1e-12)
    assert float(first.plan.row_sums().sum()) == pytest.approx(3)
    again = solve(x, y, a=3 * a, b=3 * b, epsilon=EPSILON, solver=SparseNewton(f=first.f, g=first.g, tol=1e-10))
    assert again.stats["n_iter"] <= 2
    torch.testing.assert_close(first.value, again.value, atol=1e-10, rtol=0)


def test_gradient_of_the_value_is_the_plan(clouds):
    x, y, a, b = clouds
    C = PointCloud(x, y).tile().requires_grad_()
    solution = solve(CostMatrix(C), a=a, b=b, epsilon=EPSILON, solver="sns", tol=1e-13)
    (gradient,) = torch.autograd.grad(solution.value, C)
    torch.testing.assert_close(gradient, solution.plan.dense().detach(), atol=1e-11, rtol=0)


def test_lazy_cloud_is_never_a_matrix(monkeypatch):
    n = 1200
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    monkeypatch.setattr(PointCloud, "tile", lambda *args: pytest.fail("the whole cost was asked for"))
    solver = SparseNewton(sweeps=1, density=1.0)
    problem = Problem.make(PointCloud(x, y), epsilon=0.1)
    item = solver.init(problem).items[0]
    assert item.entries == 100 * n  # however dense was asked for, memory stays O(n + m)
    solution = run(problem, solver)
    assert solution.status.ok
    assert max(solution.stats["densities"]) * n * n <= 100 * n + 1


def test_counts_are_honest(clouds, monkeypatch):
    x, y, a, b = clouds
    passes = 0
    for name in ("softmin", "smallest", "apply"):
        original = getattr(PointCloud, name)

        def counted(self, *args, original=original, **options):
            nonlocal passes
            if type(self) is PointCloud or original.__name__ != "softmin":
                passes += 1
            elif options.get("dim", 1) == 1:  # the transposed cloud, reached through dim=0: counted there
                pass
            return original(self, *args, **options)

        monkeypatch.setattr(PointCloud, name, counted)
    solution = solve(x, y, a=a, b=b, epsilon=EPSILON, solver="sns")
    stats = solution.stats
    assert stats["kernel_evaluations"] == passes
    assert stats["n_iter"] == stats["n_sinkhorn"] + stats["n_newton"]
    assert len(stats["alphas"]) == len(stats["cg_iterations"]) == len(stats["densities"]) == stats["n_newton"]
    assert len(stats["errors"]) == len(stats["levels"])
    assert stats["errors"][-1] == stats["marginal_error"]


def test_factorisation_finishes_what_cg_cannot():
    C = CostMatrix(torch.from_numpy(np.random.default_rng(2).random((60, 60))))
    solution = solve(C, epsilon=1 / 600, solver=SparseNewton(cg_max_iter=3, tol=1e-12))
    assert solution.status.ok
    assert solution.stats["factorisations"] > 0
    truth = solve(C, epsilon=1 / 600, solver=SparseNewton(tol=1e-12))
    torch.testing.assert_close(solution.value, truth.value, atol=1e-12, rtol=0)


def test_conjugate_gradients_stay_in_the_ball():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((8, 8))
    A, rhs = A @ A.T + np.eye(8), rng.standard_normal(8)
    x, residual, bounded, count = module._cg(lambda v: A @ v, rhs, 1e-12, 50, np.inf)
    np.testing.assert_allclose(x, np.linalg.solve(A, rhs), rtol=1e-8)
    assert not bounded
    assert residual <= 1e-12
    assert count <= 20
    radius = np.linalg.norm(x) / 2
    short, _, bounded, _ = module._cg(lambda v: A @ v, rhs, 1e-12, 50, radius)
    assert bounded
    assert np.linalg.norm(short) == pytest.approx(radius)
    assert rhs @ short > 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1)])
def test_tiny_problems(n, m):
    C = torch.arange(n * m, dtype=torch.float64).reshape(n, m)
    solution = solve(CostMatrix(C), epsilon=0.1, solver="sns")
    torch.testing.assert_close(solution.plan.dense(), torch.full((n, m), 1 / (n * m), dtype=torch.float64))


def test_no_warm_start_and_shift(clouds):
    x, y, a, b = clouds
    plain = solve(x, y, a=a, b=b, epsilon=EPSILON, solver=SparseNewton(sweeps=0, schedule=Fixed()))
    shifted = solve(x, y, a=a, b=b, epsilon=EPSILON, solver=SparseNewton(shift=0.1))
    assert plain.stats["n_sinkhorn"] == 0
    torch.testing.assert_close(plain.value, shifted.value, atol=1e-10, rtol=0)


def test_refusals(clouds):
    x, y, a, b = clouds
    with pytest.raises(InvalidInput, match=r"sns: expected exact marginals, got .*Use solver='sinkhorn'"):
        solve(x, y, a=a, b=b, epsilon=0.1, marginals=KL(1.0), solver="sns")
    with pytest.raises(InvalidInput, match="sns: expected an epsilon"):
        solve(x, y, solver="sns")
    with pytest.raises(InvalidInput, match=re.escape("density: expected a share of the entries in (0, 1]")):
        SparseNewton(density=2.0)
    for wrong in ({"tol": 0.0}, {"shift": -1.0}, {"cg_max_iter": 0}, {"sweeps": -1}, {"cg_rtol": float("nan")}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            SparseNewton(**wrong)
    with pytest.raises(InvalidInput, match="start f"):
        solve(x, y, a=a, b=b, epsilon=0.1, solver=SparseNewton(f=torch.zeros(3)))


def test_iterations_run_out(clouds):
    x, y, a, b = clouds
    with pytest.raises(NotConverged, match="sns: stopped at max_iter"):
        solve(x, y, a=a, b=b, epsilon=EPSILON, solver="sns", max_iter=3, throw=True)


@pytest.mark.parametrize("solver", ["sns", "newton"])
@pytest.mark.parametrize("max_iter", [30, 22, 21, 20, 3])
def test_a_level_does_not_vouch_for_the_next(solver, max_iter):
    """Nearly a permutation: the levels above the last converge to rounding, which proves nothing about the last."""
    cost = torch.rand(12, 12, generator=torch.Generator().manual_seed(101), dtype=torch.float64)
    options = {"epsilon": 1e-4, "solver": solver, "max_iter": max_iter}
    if max_iter < 30:
        with pytest.warns(NotConvergedWarning):
            solution = solve(CostMatrix(cost), **options)
    else:
        solution = solve(CostMatrix(cost), **options)
        assert max(float(e) for e in solution.certificate.marginal_errors) <= 1.5e-10
    # stopped anywhere: the columns are exact, and the error that is told is that of the plan
    row, column = (float(e) for e in solution.certificate.marginal_errors)
    assert column < 1e-12
    assert abs(row - solution.stats["marginal_error"]) <= 1e-10


def test_rounding_floor_ends_the_solve(generator):
    x, y = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (200, 300))
    with pytest.warns(NotConvergedWarning):
        solution = solve(x, y, epsilon=0.005, solver="sns", tol=1e-18)
    assert solution.stats["n_iter"] < 200
    assert solution.stats["marginal_error"] < 1e-12


def test_state_is_like_sinkhorns(clouds):
    """One sweep is one iteration of the core's Sinkhorn."""
    x, y, a, b = clouds
    problem = Problem.make(PointCloud(x, y), a, b, epsilon=EPSILON)
    item = item_of(problem, SparseNewton(sweeps=2, schedule=Fixed()))
    sinkhorn = Sinkhorn(schedule=Fixed(), relaxation=Plain())
    state = sinkhorn.step(problem, sinkhorn.init(problem))
    torch.testing.assert_close(item.f, state.f)
    torch.testing.assert_close(item.g, state.g)
