"""Plans of low rank: known answers, properties, and POT at equal rank."""

import itertools

import numpy as np
import ot
import pytest
import torch

import brenier
from brenier import CostMatrix, Grid, InvalidInput, Status, solve
from brenier.solvers import LowRank
from problems import check_encloses, cloud, weights


def clustered(n, k, seed, *, spread=0.05):
    """Points around k centres, as many around each, in two dimensions."""
    centres = 3 * cloud(k, 2, seed)
    return centres[torch.arange(n) % k] + spread * cloud(n, 2, seed + 50)


def test_rank_one_is_the_product():
    x, y, a, b = cloud(7, 2, 1), cloud(9, 2, 2), weights(7, 1), weights(9, 2)
    solution = solve(x, y, a=a, b=b, solver=LowRank(rank=1))
    torch.testing.assert_close(solution.plan.dense(), solution.problem.a.unsqueeze(1) * solution.problem.b)
    assert solution.status is Status.CONVERGED


@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (9, 6), (1, 5)])
def test_full_rank_reaches_the_optimum(shape):
    x, y = cloud(shape[0], 2, 1), cloud(shape[1], 2, 2)
    a, b = weights(shape[0], 3), weights(shape[1], 4)
    solution = solve(x, y, a=a, b=b, solver=LowRank(rank=9))
    assert float(solution.value) == pytest.approx(float(solve(x, y, a=a, b=b).value), rel=1e-9)


def test_clusters_are_found():
    x, y = clustered(120, 6, 1), clustered(120, 6, 2)
    optimum = float(solve(x, y).value)
    assert float(solve(x, y, solver=LowRank(rank=6)).value) <= 1.03 * optimum
    assert float(solve(x, y, solver=LowRank(rank=2)).value) > 1.1 * optimum


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "dot", "cityblock"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plan_is_feasible_and_of_its_rank(cost, dtype):
    x, y, a, b = cloud(30, 3, 1).to(dtype), cloud(40, 3, 2).to(dtype) + 1, weights(30, 3), weights(40, 4)
    solution = solve(x, y, a=a, b=b, cost=cost, solver=LowRank(rank=5))
    plan, problem = solution._plan, solution.problem
    rounding = 1e-7 if dtype == torch.float32 else 1e-14
    assert float((plan.row_sums() - problem.a.double()).abs().sum()) < rounding
    assert float((plan.col_sums() - problem.b.double()).abs().sum()) < rounding
    dense = (plan._left @ plan.R.mT).numpy()
    assert dense.min() >= 0
    assert np.linalg.matrix_rank(dense, tol=1e-12) <= 5
    assert solution.value.dtype == solution.plan.dense().dtype == dtype
    exact = solve(x, y, a=a, b=b, cost=cost)
    certificate = solution.certificate
    check_encloses(certificate, float(exact.value), 1e-6 if dtype == torch.float32 else 1e-9, 1.0)
    assert float(certificate.primal) == pytest.approx(float(solution.value), rel=1e-5)
    assert float(solution.dual_value) == pytest.approx(float(certificate.dual), rel=1e-5)


def test_a_matrix_is_as_good_as_its_cloud():
    x, y = cloud(40, 2, 1), cloud(40, 2, 2)
    matrix = torch.cdist(x, y).square()
    ours, theirs = solve(x, y, solver="low-rank"), solve(CostMatrix(matrix), solver="low-rank")
    assert float(theirs.value) == pytest.approx(float(ours.value), rel=0.1)  # another start, another local optimum
    assert float((theirs.plan.dense() * matrix).sum()) == pytest.approx(float(theirs.value), rel=1e-12)


def test_the_cost_falls_step_by_step():
    values: list[tuple[int, float]] = []

    def look(iteration, state):
        if state.current is not None:
            values.append((state.descents, state.current.value))

    solve(cloud(60, 2, 1), cloud(60, 2, 2), solver=LowRank(rank=6), callback=look)
    assert len(values) > 20
    assert all(after <= before for (s, before), (t, after) in itertools.pairwise(values) if s == t)


def test_rank_lowers_the_cost():
    x, y = cloud(80, 2, 1), cloud(80, 2, 2) + 1
    values = [float(solve(x, y, solver=LowRank(rank=r)).value) for r in (1, 2, 5, 20, 80)]
    assert values == sorted(values, reverse=True)


def test_a_generator_makes_it_repeatable():
    x, y = cloud(50, 2, 1), cloud(50, 2, 2)

    def value(generator):
        return float(solve(x, y, solver=LowRank(rank=4, starts=1, melts=0), generator=generator).value)

    assert value(None) == value(None)
    assert value(torch.Generator().manual_seed(5)) == value(torch.Generator().manual_seed(5))


def test_points_without_mass_and_equal_points():
    x = torch.zeros(5, 2, dtype=torch.float64)
    assert float(solve(x, x + 1, solver=LowRank(rank=3)).value) == pytest.approx(2)
    a = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    solution = solve(cloud(5, 2, 1), cloud(5, 2, 2), a=a, solver=LowRank(rank=5))
    assert float(solution.value) == pytest.approx(float(solve(cloud(5, 2, 1), cloud(5, 2, 2), a=a).value), rel=1e-9)


def test_gradients_are_those_of_differences():
    x, y = clustered(24, 3, 1).requires_grad_(), clustered(24, 3, 2).requires_grad_()
    solver = LowRank(rank=3)
    gradients = torch.autograd.grad(solve(x, y, solver=solver).value, (x, y))
    for points, gradient, which in ((x, gradients[0], 0), (y, gradients[1], 1)):
        direction, h = cloud(24, 2, 9), 1e-6

        def value(t, points=points, direction=direction, which=which):
            moved = points.detach() + t * direction
            clouds = (moved, y.detach()) if which == 0 else (x.detach(), moved)
            return float(solve(*clouds, solver=solver).value)

        assert (value(h) - value(-h)) / (2 * h) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_plan_operators():
    x, y = cloud(20, 2, 1), cloud(30, 2, 2)
    plan = solve(x, y, solver=LowRank(rank=4)).plan
    dense = plan.dense()
    torch.testing.assert_close(plan @ y, dense @ y)
    torch.testing.assert_close(plan.T @ x, dense.mT @ x)
    torch.testing.assert_close(plan.sparse().to_dense(), dense)
    torch.testing.assert_close(plan.barycentric(), dense @ y / dense.sum(1, keepdim=True))
    u = torch.arange(20, dtype=dense.dtype)
    torch.testing.assert_close(plan.scaled(u=u).dense(), dense * u.unsqueeze(1))
    best = plan.topk(7)
    torch.testing.assert_close(best.mass, dense.flatten().topk(7).values)
    torch.testing.assert_close(dense[best.rows, best.cols], best.mass)
    torch.testing.assert_close(dense.gather(1, plan.argmax().unsqueeze(1)).squeeze(1), dense.amax(1))
    assert len(plan.entries(max_per_row=2).mass) == 40


@pytest.mark.parametrize("case", ["two dimensions", "ten dimensions", "clusters"])
def test_cheaper_than_pot_at_equal_rank(case):
    x, y = {
        "two dimensions": (cloud(80, 2, 1), cloud(80, 2, 2) @ torch.tensor([[1, 0.5], [0, 0.6]]).double() + 1),
        "ten dimensions": (cloud(80, 10, 1), cloud(80, 10, 2) * torch.linspace(0.3, 1.5, 10).double()),
        "clusters": (clustered(80, 8, 3, spread=0.2), clustered(80, 8, 4, spread=0.2)),
    }[case]
    a, cost = np.full(80, 1 / 80), torch.cdist(x, y).square().numpy()
    Q, R, g = ot.lowrank_sinkhorn(x.numpy(), y.numpy(), a, a, rank=10, numItermax=500, warn=False)[:3]
    assert float(solve(x, y, solver=LowRank(rank=10)).value) <= float(((Q / g) @ R.T * cost).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.1}, "low-rank: expected epsilon=None"),
        ({"a": torch.full((6,), 1 / 6, dtype=torch.float64, requires_grad=True)}, "weights that need no gradient"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        solve(cloud(6, 2, 1), cloud(6, 2, 2), solver="low-rank", **arguments)


def test_refuses_batches_grids_and_odd_numbers():
    with pytest.raises(InvalidInput, match="low-rank: expected one problem"):
        solve(cloud(6, 2, 1, 3), cloud(6, 2, 2, 3), solver="low-rank")
    with pytest.raises(InvalidInput, match="low-rank: expected a PointCloud or a CostMatrix, got Grid"):
        solve(Grid(3, 3), solver="low-rank")
    with pytest.raises(InvalidInput, match="LowRank rank: expected a positive integer"):
        brenier.solvers.LowRank(rank=0)


def test_negative_costs_are_descended_as_far():
    x, y = cloud(60, 2, 1), cloud(60, 2, 2) + 0.5
    cost = torch.cdist(x, y).square()
    value = float(solve(CostMatrix(cost), solver=LowRank(rank=5)).value)
    assert float(solve(CostMatrix(cost - 100), solver=LowRank(rank=5, tol=1e-7)).value) + 100 <= 1.05 * value
