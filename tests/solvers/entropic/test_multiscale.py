import math

import numpy as np
import pytest
import torch

import brenier
from brenier import KL, InvalidInput, PointCloud, Relative, solve
from brenier.costs import Lp, Mahalanobis
from brenier.geometry import ClusteredCloud
from brenier.geometry.clusters import Clusters
from brenier.kernels.engine import use_engine
from brenier.solvers import Multiscale, OverRelaxation, Sinkhorn

COSTS = ["sqeuclidean", "euclidean", "cityblock", "chebyshev", Mahalanobis(torch.diag(torch.tensor([4.0, 0.25])))]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds(n=2000, m=1700, d=2, dtype=torch.float64, seed=0):
    x = torch.rand(n, d, generator=generator(seed), dtype=dtype)
    y = torch.rand(m, d, generator=generator(seed + 1), dtype=dtype) ** 2 + 0.2
    return x, y


def dirichlet(n, zeros=0, seed=5):
    weights = np.random.default_rng(seed).dirichlet(np.ones(n))
    weights[:zeros] = 0
    return torch.from_numpy(weights / weights.sum())


def small(**options):
    """A solver that has several scales and sparse patterns on small clouds."""
    return Multiscale(size=16, coarsest=64, **options)


def agree(x, y, *, tol=1e-7, rel=1e-6, **options):
    """Multiscale and Sinkhorn: the same value, and the same potentials up to a constant where there is mass."""
    ours = solve(x, y, solver=small(tol=tol), **options)
    other = solve(x, y, solver=Sinkhorn(tol=tol), **options)
    assert ours.status.ok
    assert ours.stats["marginal_error"] <= tol
    scale = max(float(other.value), ours.stats["epsilon"])
    assert abs(float(ours.value) - float(other.value)) <= rel * scale
    for name, weights in (("f", ours.problem.a), ("g", ours.problem.b)):
        gap = (getattr(ours, name) - getattr(other, name))[weights > 0]
        shift = gap.mean() if ours.problem.balanced else 0
        assert float((gap - shift).abs().mean()) <= 1e-3 * ours.stats["epsilon"]
    return ours


# -- the tree -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(1, 2), (7, 1), (1000, 3), (1537, 2)])
def test_clusters_are_balanced_runs_inside_their_boxes(n, d):
    points = np.random.default_rng(0).normal(size=(n, d))
    tree = Clusters.of(points)
    assert np.array_equal(np.sort(tree.order), np.arange(n))
    assert np.array_equal(points[tree.order], tree.points)
    for depth in range(tree.deepest + 1):
        starts = tree.starts(depth)
        assert np.diff(starts).max() - np.diff(starts).min() <= 1
        if depth:
            assert np.array_equal(starts[::2], tree.starts(depth - 1))
        centre, half = (tree.spread(t, depth) for t in tree.boxes(depth))
        assert (np.abs(tree.points - centre) <= half).all()


def test_clusters_of_a_grid_are_compact():
    axis = np.arange(32.0)
    tree = Clusters.of(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    assert np.allclose(tree.boxes(6).half, 1.5)  # 64 clusters of 4 x 4


def test_slopes_are_the_least_squares_fit_at_each_depth():
    rng = np.random.default_rng(1)
    tree = Clusters.of(rng.normal(size=(500, 3)) + 40)
    h = rng.normal(size=500)
    slopes = tree.slopes(h, 3, 0)
    for depth in range(4):
        starts = tree.starts(depth)
        for k in range(2**depth):
            run = slice(starts[k], starts[k + 1])
            design = np.column_stack([np.ones(run.stop - run.start), tree.points[run]])
            fit = np.linalg.lstsq(design, h[run], rcond=None)[0][1:]
            assert slopes[depth][k] == pytest.approx(fit, abs=1e-4)


# -- the pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [*COSTS, Lp(3)], ids=repr)
@pytest.mark.parametrize("good", [True, False], ids=["optimal", "any"])
def test_the_dropped_mass_is_below_its_bound_and_the_bound_below_the_budget(cost, good):
    x, y = clouds(600, 500)
    cloud = PointCloud(x, y, cost)
    epsilon = 0.01 * float(cloud.mean_cost())
    a, b = dirichlet(600, zeros=20), dirichlet(500)
    if good:
        f, g = a * 0, b * 0
        for _ in range(20):
            f = cloud.softmin(g + epsilon * b.log(), epsilon)
            g = cloud.softmin(f + epsilon * a.log(), epsilon, dim=0)
    else:
        f, g = (-0.5 * h.cos() for h in (x[:, 0] * 9, y[:, 0] * 7))
        f = f + (cloud.tile() - f[:, None] - g).min()
    pairs = ClusteredCloud(cloud, 8).heavy(f, g, epsilon, a, b, 1e-3)
    F, G = f + epsilon * a.log(), g + epsilon * b.log()
    ones = b.new_ones(500)
    lost = float((cloud.apply(F, G, epsilon, ones) - pairs.apply(F, G, epsilon, ones)).sum())
    assert -1e-12 <= lost <= pairs.dropped <= 1e-3
    assert pairs.kept_share < 0.9 or not good
    # the bound follows potentials that move
    f_rise, g_rise = (epsilon * torch.rand(k, generator=generator(k), dtype=torch.float64) for k in (600, 500))
    F, G = F + f_rise, G + g_rise
    lost = float((cloud.apply(F, G, epsilon, ones) - pairs.apply(F, G, epsilon, ones)).sum())
    assert lost <= pairs.dropped_after(f_rise, g_rise, epsilon) <= pairs.dropped * math.exp(4)


@pytest.mark.parametrize("cost", [*COSTS, Lp(3)], ids=repr)
def test_the_pruned_hard_transform_is_exact(cost):
    x, y = clouds(700, 600)
    cloud = PointCloud(x, y, cost)
    a, b = dirichlet(700), dirichlet(600)
    pairs = ClusteredCloud(cloud, 8).heavy(a * 0, b * 0, 0.01, a, b, 1e-3)
    for h in (torch.zeros(600, dtype=torch.float64), 0.3 * y[:, 0].sin(), torch.where(y[:, 0] > 0.5, 0.0, -torch.inf)):
        values, index = pairs.cmin(h)
        expected = (cloud.tile() - h).min(1).values
        assert torch.allclose(values, expected, rtol=0, atol=1e-12)
        assert torch.allclose((cloud.tile() - h).gather(1, index[:, None])[:, 0], expected, rtol=0, atol=1e-12)
    g = torch.rand(700, generator=generator(), dtype=torch.float64)
    assert torch.allclose(pairs.cmin(g, dim=0)[0], (cloud.tile() - g[:, None]).min(0).values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_operations_are_in_the_order_of_the_cloud(engine):
    x, y = clouds(300, 260)
    cloud = PointCloud(x, y)
    a, b = dirichlet(300), dirichlet(260)
    solution = solve(cloud, a=a, b=b, epsilon=0.01)
    F, G = solution.f + 0.01 * a.log(), solution.g + 0.01 * b.log()
    pairs = ClusteredCloud(cloud, 8).heavy(solution.f, solution.g, 0.01, a, b, 1e-13)
    v = torch.rand(260, 2, generator=generator(), dtype=torch.float64)
    with use_engine(engine):
        assert pairs.kept_share < 0.9
        assert torch.allclose(pairs.softmin(G, 0.01), cloud.softmin(G, 0.01), atol=1e-9)
        assert torch.allclose(pairs.softmin(F, 0.01, dim=0), cloud.softmin(F, 0.01, dim=0), atol=1e-9)
        assert torch.allclose(pairs.apply(F, G, 0.01, v), cloud.apply(F, G, 0.01, v), atol=1e-12)
        assert torch.allclose(pairs.T.apply(G, F, 0.01, a), cloud.T.apply(G, F, 0.01, a), atol=1e-12)
        for ours, whole in zip(pairs.moments(F, G, 0.01), cloud.moments(F, G, 0.01)):
            assert torch.allclose(ours, whole, atol=1e-12)
        for ours, whole in zip(pairs.support(F, G, 0.05), cloud.support(F, G, 0.05)):
            assert torch.allclose(ours.double(), whole.double(), atol=1e-9)
        for ours, whole in zip(pairs.smallest(F, G, 9), cloud.smallest(F, G, 9)):
            assert torch.allclose(ours.double(), whole.double(), atol=1e-9)
    assert torch.equal(pairs.tile(), cloud.tile())
    assert torch.allclose(pairs.mean_cost(), cloud.mean_cost())


# -- the solver ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "dirichlet"])
def test_agrees_with_sinkhorn(d, weighted):
    x, y = clouds(d=d)
    masses = {"a": dirichlet(2000), "b": dirichlet(1700, seed=6)} if weighted else {}
    solution = agree(x, y, epsilon=Relative(0.01 if d < 3 else 0.003), tol=1e-7 if d < 3 else 1e-6, **masses)
    assert solution.stats["kept_share"] < 0.5
    assert len(solution.stats["iterations"]) == 3


@pytest.mark.parametrize("cost", COSTS[1:], ids=repr)
def test_other_costs_agree(cost):
    agree(*clouds(900, 800), cost=cost, epsilon=Relative(0.03), tol=1e-6, rel=1e-5)


@pytest.mark.parametrize(
    "case", ["zeros", "far apart", "identical", "clustered", "duplicates", "one against many", "few against many"]
)
def test_hard_clouds_agree(case):
    x, y = clouds(1200, 1000)
    a, b = dirichlet(1200), dirichlet(1000)
    if case == "zeros":
        a, b = dirichlet(1200, zeros=300), dirichlet(1000, zeros=500)
    elif case == "far apart":
        y = y + 50
    elif case == "identical":
        y, b = x, a
    elif case == "clustered":
        x = 0.02 * x + torch.randint(0, 3, (1200, 2), generator=generator())
        y = 0.02 * y + torch.randint(0, 3, (1000, 2), generator=generator(1))
    elif case == "duplicates":
        x, y = x[torch.arange(1200) % 40], y[torch.arange(1000) % 30]
    elif case == "one against many":
        y, b = y[:1], torch.ones(1, dtype=torch.float64)
    elif case == "few against many":
        y, b = y[:20], dirichlet(20)
    agree(x, y, a=a, b=b, epsilon=Relative(0.02), tol=1e-6, rel=1e-5)


def test_potentials_where_there_is_no_mass_are_right_too():
    x, y = clouds(1200, 1000)
    a = dirichlet(1200, zeros=600)
    ours = solve(x, y, a=a, epsilon=Relative(0.02), solver=small(tol=1e-7))
    other = solve(x, y, a=a, epsilon=Relative(0.02), solver=Sinkhorn(tol=1e-7))
    gap = ours.f - other.f
    assert float((gap - gap[600:].mean()).abs().max()) < 0.01 * ours.stats["epsilon"]


@pytest.mark.parametrize("marginals", [KL(0.5), (brenier.Exact(), KL(0.1))], ids=["both", "one"])
def test_soft_marginals_agree(marginals):
    x, y = clouds(1200, 1000)
    agree(x, y, a=1.5 * dirichlet(1200), b=dirichlet(1000), epsilon=Relative(0.02), marginals=marginals, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_the_error_in_stats_bounds_that_of_all_pairs(dtype, tol):
    x, y = clouds(3000, 2500, dtype=dtype)
    solution = solve(x, y, epsilon=Relative(0.002), solver=small(tol=tol))
    assert solution.status.ok
    stats = solution.stats
    assert stats["marginal_error"] <= tol
    assert 0 < stats["truncation_bound"] <= 0.02 * tol
    assert stats["kept_share"] < 0.3
    F, G = solution._plan.F.double(), solution._plan.G.double()
    whole = (F[:, None] + G - PointCloud(x.double(), y.double()).tile()).div(stats["epsilon"]).exp()
    error = sum(
        float((whole.sum(k) - w.double()).abs().sum()) for k, w in ((1, solution.problem.a), (0, solution.problem.b))
    )
    assert error <= stats["marginal_error"] + (2e-4 if dtype == torch.float32 else 1e-12)
    kept = float(solution.plan.row_sums().double().sum())
    assert float(whole.sum()) - kept <= stats["truncation_bound"] / 2 + (1e-4 if dtype == torch.float32 else 1e-12)


def test_one_scale_is_sinkhorn():
    x, y = clouds(300, 200)
    ours, other = (
        solve(x, y, epsilon=0.01, tol=1e-8, solver=s) for s in ("multiscale", Sinkhorn(relaxation=OverRelaxation()))
    )
    assert float(ours.value) == pytest.approx(float(other.value), rel=1e-12)
    assert ours.stats["kept_share"] == 1
    assert ours.stats["truncation_bound"] == 0


def test_large_epsilon_goes_over_all_pairs():
    solution = agree(*clouds(), epsilon=Relative(1.0))
    assert solution.stats["kept_share"] == 1


def test_solution_answers_as_any_other():
    x, y = clouds(dtype=torch.float32)
    ours = solve(x, y, epsilon=Relative(0.01), solver=small(tol=1e-4))
    other = solve(x.double(), y.double(), epsilon=Relative(0.01), tol=1e-8)
    assert ours.plan.geometry.kept_share < 0.5
    assert ours.f.dtype == torch.float32
    bounds, exact = ours.certificate, other.certificate
    assert float(bounds.dual) <= float(exact.primal)
    assert float(bounds.primal) >= float(exact.dual)
    assert float(bounds.relative_gap) < 1.1 * float(exact.relative_gap)
    assert sum(map(float, bounds.marginal_errors)) < 3e-4
    # the dual bound is that of hard transforms over all pairs
    problem = other.problem
    f = problem.geometry.cmin(ours.g.double())[0]
    g = problem.geometry.cmin(f, dim=0)[0]
    assert float(bounds.dual) == pytest.approx(float(problem.a @ f + problem.b @ g), rel=1e-6)
    assert float(ours.linear_value) == pytest.approx(float(other.linear_value), rel=1e-3)
    assert torch.allclose(ours.plan @ y, (other.plan @ y.double()).float(), atol=1e-6)
    assert torch.allclose(ours.plan.T @ x, (other.plan.T @ x.double()).float(), atol=1e-6)
    assert torch.allclose(ours.map(), other.map().float(), atol=2e-3)
    assert torch.allclose(ours.map(x[:5]), other.map(x[:5].double()).float(), atol=2e-3)
    assert torch.allclose(ours.potentials(x[:5]), ours.potentials.f[:5], atol=1e-4)
    assert ours.plan.entries(threshold=1e-6).mass.sum() <= 1 + 1e-4


def test_gradients_of_the_value():
    x, y = clouds(500, 400)
    gradients = []
    for solver in (small(tol=1e-8), Sinkhorn(tol=1e-8)):
        points = x.clone().requires_grad_()
        solve(points, y, epsilon=Relative(0.05), solver=solver).value.backward()
        gradients.append(points.grad)
    assert torch.allclose(*gradients, atol=1e-7)


def test_stopped_early_it_still_has_potentials_of_the_cloud():
    x, y = clouds()
    for limit in (3, 60):
        with pytest.warns(brenier.NotConvergedWarning):
            solution = solve(x, y, epsilon=Relative(0.01), solver=small(tol=1e-9), max_iter=limit)
        assert solution.status is brenier.Status.MAX_ITER
        assert solution.f.shape == (2000,)
        assert float(solution.certificate.dual) <= float(solution.certificate.primal)


def test_the_answer_does_not_depend_on_the_order_of_the_points():
    x, y = clouds(1000, 900)
    shuffle = torch.randperm(1000, generator=generator())
    one = solve(x, y, epsilon=Relative(0.01), solver=small(tol=1e-6))
    two = solve(x[shuffle], y, epsilon=Relative(0.01), solver=small(tol=1e-6))
    assert torch.allclose(one.f[shuffle], two.f, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Multiscale(size=0), "Multiscale size: expected a positive integer, got 0."),
        (lambda x: Multiscale(coarsest=1.5), "Multiscale coarsest: expected a positive integer, got 1.5."),
        (lambda x: Multiscale(tol=-1.0), "tol: expected a finite number > 0, got -1.0."),
        (lambda x: solve(x, x, solver="multiscale"), "multiscale: expected an epsilon, got None."),
        (
            lambda x: solve(x, x, solver="multiscale", epsilon=1.0, cost="cosine"),
            "multiscale: expected a cost that grows with distance",
        ),
        (lambda x: solve(x[None], x, solver="multiscale", epsilon=1.0), "multiscale: expected one problem, got batch"),
        (
            lambda x: solve(brenier.CostMatrix(torch.ones(3, 3)), solver="multiscale", epsilon=1.0),
            "multiscale: expected a PointCloud, got CostMatrix.",
        ),
        (
            lambda x: solve(x, x, solver="multiscale", epsilon=1.0, marginals=brenier.TV(1.0)),
            "multiscale: expected marginals Exact() or KL(rho)",
        ),
        (
            lambda x: solve(x, x, solver="multiscale", epsilon=1.0, reference="counting"),
            "multiscale: expected reference='product'",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InvalidInput) as error:
        make(torch.rand(8, 2, generator=generator()))
    assert str(error.value).startswith(message)
