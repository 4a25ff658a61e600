"""Newton's method along the path of epsilon."""

from __future__ import annotations

import pytest
import torch

import brenier
from brenier import KL, CostMatrix, InvalidInput, PointCloud, Relative
from brenier.solvers import Fixed, NewtonPath, Sinkhorn
from problems import cloud, weights


def errors(solution: brenier.Solution) -> float:
    return max(float(e) for e in solution.certificate.marginal_errors)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("epsilon", [0.05, 5e-3, 5e-4])
def test_same_plan_as_sparse_newton(cost: str, epsilon: float) -> None:
    x, y = cloud(60, 3, 0), cloud(50, 3, 1)
    a, b = weights(60, 2, zeros=4), weights(50, 3, zeros=2)
    given = {"a": a, "b": b, "cost": cost, "epsilon": Relative(epsilon)}
    path = brenier.solve(x, y, **given, solver=NewtonPath(tol=1e-10))
    other = brenier.solve(x, y, **given, solver="sns")
    assert path.status.ok
    assert errors(path) < 1e-9
    assert float(path.value) == pytest.approx(float(other.value), rel=1e-8)
    assert torch.allclose(path.plan.dense(), other.plan.dense(), atol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-4, 1e-5])
def test_few_steps_at_any_epsilon(epsilon: float) -> None:
    """Uniform masses, where plans become permutations and potentials of their pairs nearly free."""
    x, y = cloud(150, 2, 0), cloud(150, 2, 1)
    solution = brenier.solve(x, y, cost="euclidean", epsilon=Relative(epsilon), solver="newton-path")
    assert solution.status.ok
    assert errors(solution) < 2e-6
    assert solution.stats["n_iter"] < 60
    exact = brenier.solve(x, y, cost="euclidean")
    assert float(solution.linear_value) <= float(exact.value) + 10 * float(solution.stats["epsilon"])


def test_ties_everywhere() -> None:
    """The cost of a grid with L1 distances: many optimal plans, of which entropy wants the one in their middle."""
    side = torch.arange(7, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    a, b = weights(49, 0), weights(49, 1)
    solution = brenier.solve(
        points, points + 0.0, a=a, b=b, cost="cityblock", epsilon=Relative(1e-4), solver="newton-path"
    )
    assert solution.status.ok
    assert errors(solution) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_are_solved_one_by_one(dtype: torch.dtype) -> None:
    C = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0), dtype=dtype)
    epsilon = torch.tensor([0.01, 0.001, 0.1], dtype=dtype)
    together = brenier.solve(CostMatrix(C), epsilon=epsilon, solver="newton-path")
    assert together.value.dtype == dtype
    assert together.status.ok
    for k in range(3):
        alone = brenier.solve(CostMatrix(C[k]), epsilon=float(epsilon[k]), solver="newton-path")
        assert torch.equal(together.f[k], alone.f)


def test_starts_from_given_potentials() -> None:
    geometry = PointCloud(cloud(80, 2, 0), cloud(80, 2, 1))
    full = brenier.solve(geometry, epsilon=Relative(1e-3), solver=NewtonPath(tol=1e-10))
    warm = brenier.solve(geometry, epsilon=Relative(1e-3), solver=NewtonPath(tol=1e-8, f=full.f, g=full.g))
    assert warm.stats["n_iter"] == 1
    assert warm.stats["n_sinkhorn"] == 0
    wrong = brenier.solve(geometry, epsilon=Relative(1e-3), solver=NewtonPath(f=-5 * full.f))
    assert wrong.status.ok  # it begins the path instead
    assert wrong.stats["n_sinkhorn"] > 0
    assert float(wrong.value) == pytest.approx(float(full.value), rel=1e-5)


def test_takes_smaller_steps_where_the_tangent_fails() -> None:
    """From the beginning of the path to its end in one prediction."""
    geometry = PointCloud(cloud(100, 2, 0), cloud(100, 2, 1), "euclidean")
    solution = brenier.solve(geometry, epsilon=Relative(1e-4), solver=NewtonPath(schedule=Fixed()))
    assert solution.status.ok
    assert len(set(solution.stats["levels"])) > 3


def test_stops_like_any_solver() -> None:
    geometry = PointCloud(cloud(60, 2, 0), cloud(60, 2, 1))
    with pytest.warns(brenier.NotConvergedWarning, match="newton-path"):
        short = brenier.solve(geometry, epsilon=Relative(1e-4), solver=NewtonPath(max_iter=2))
    assert errors(short) < 1
    assert float(short.stats["marginal_error"]) == pytest.approx(errors(short), rel=1e-6)


def test_one_point_and_equal_clouds() -> None:
    one = brenier.solve(cloud(1, 2, 0), cloud(5, 2, 1), epsilon=1e-3, solver="newton-path")
    assert one.status.ok
    x = cloud(30, 2, 0)
    same = brenier.solve(x, x.clone(), epsilon=1e-3, solver="newton-path")
    assert same.status.ok
    assert errors(same) < 2e-6


def test_refuses_what_it_cannot_take() -> None:
    x, y = cloud(5, 2, 0), cloud(5, 2, 1)
    with pytest.raises(InvalidInput, match="expected an epsilon"):
        brenier.solve(x, y, solver="newton-path")
    with pytest.raises(InvalidInput, match="exact marginals and the product reference"):
        brenier.solve(x, y, epsilon=0.1, marginals=KL(1.0), solver="newton-path")
    with pytest.raises(InvalidInput, match="schedule"):
        NewtonPath(schedule="slow")  # type: ignore[arg-type]


def test_beats_sinkhorn_to_the_same_tolerance() -> None:
    x, y = cloud(200, 3, 0), cloud(200, 3, 1)
    path = brenier.solve(x, y, epsilon=Relative(1e-3), solver="newton-path")
    with pytest.warns(brenier.NotConvergedWarning):
        sinkhorn = brenier.solve(x, y, epsilon=Relative(1e-3), solver=Sinkhorn(max_iter=200))
    assert path.stats["kernel_evaluations"] < 200
    assert errors(path) < errors(sinkhorn)
