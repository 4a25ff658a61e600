"""Where entropic solvers begin: the answer is the same, and each start is what its formula says."""

from __future__ import annotations

import pytest
import torch

import brenier
from brenier import KL, CostMatrix, Exact, InvalidInput, PointCloud, Problem, Ragged
from brenier.solvers import (
    Fixed,
    GaussianStart,
    Given,
    Monotone,
    Sinkhorn,
    SinkhornNewton,
    SortingStart,
    SubsampleStart,
    Zeros,
)
from problems import assert_close, cloud, weights

STARTS = [Zeros(), GaussianStart(), SortingStart(), SubsampleStart(15)]


def problem(x: torch.Tensor, y: torch.Tensor, epsilon: float, **options: object) -> Problem:
    return Problem.make(PointCloud(x, y), epsilon=epsilon, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", STARTS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("options", [{}, {"marginals": KL(2.0)}, {"reference": "counting"}], ids=str)
def test_the_solution_does_not_depend_on_it(start: object, batch: tuple[int, ...], options: dict[str, object]) -> None:
    x, y, a = cloud(30, 2, 1, *batch), cloud(40, 2, 2, *batch), weights(30, 3, *batch, zeros=2)
    cold, warm = (
        brenier.solve(x, y, a=a, epsilon=0.2, tol=1e-9, solver=Sinkhorn(start=s), **options)  # type: ignore[arg-type]
        for s in (Zeros(), start)
    )
    assert warm.status.ok
    assert_close(warm.value, cold.value, 1e-7)


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot", brenier.costs.Mahalanobis([[2.0, 0.3], [0.3, 1.0]])], ids=str)
def test_gaussian_start_solves_gaussians(cost: object) -> None:
    """Quadrature nodes of two Gaussians: the quadratic potentials are the solution."""
    import numpy as np

    nodes, mass = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(24))
    grid, a = torch.cartesian_prod(nodes, nodes), torch.outer(mass, mass).flatten()
    a = a / a.sum()
    A, B = torch.tensor([[0.8, 0.2], [0.2, 0.5]]).double(), torch.tensor([[0.6, -0.1], [-0.1, 0.9]]).double()
    p = Problem.make(PointCloud(grid @ A + 1, grid @ B, cost), a, a, epsilon=2.0)  # type: ignore[arg-type]
    f, g = GaussianStart().potentials(p)
    assert p.epsilon is not None
    gap = f - p.geometry.softmin(g + p.epsilon * a.log(), p.epsilon)
    live = a > 1e-6
    assert float((gap - gap[live].mean())[live].abs().max()) < 1e-5


def test_gaussian_start_at_vanishing_epsilon_is_the_bures_map() -> None:
    x = cloud(40, 3, 1)
    root = cloud(3, 3, 2)
    A = root @ root.mT + 0.5 * torch.eye(3)
    y = x @ A + 2.0
    f, _ = GaussianStart().potentials(problem(x, y, 1e-12))
    # c-transforms of the optimal potentials are tight along the map: f_i - f_j as the map says
    exact = brenier.solve(x, y)
    assert_close(exact.map(), y, 1e-9)
    g = (x - y).square().sum(-1) - f
    slack = torch.cdist(x, y).square() - f[:, None] - g
    assert float(slack.min()) > -1e-8


def test_points_on_a_line_are_degenerate_gaussians() -> None:
    x = torch.stack([torch.linspace(0, 1, 20).double(), torch.zeros(20).double()], -1)
    for start in (GaussianStart(), SortingStart()):
        assert all(bool(torch.isfinite(h).all()) for h in start.potentials(problem(x, x + 1, 1e-3)))


def test_sorting_start_is_optimal_on_a_line_and_feasible_beyond() -> None:
    x, y, a = cloud(15, 1, 1), cloud(20, 1, 2), weights(15, 3)
    p = problem(x, y, 0.1, a=a)
    f, g = SortingStart().potentials(p)
    assert_close((a * f).sum() + (p.b * g).sum(), brenier.solve(x, y, a=a, solver=Monotone()).value, 1e-9)
    x, y = cloud(15, 4, 1), cloud(15, 4, 2)
    f, g = SortingStart().potentials(problem(x, y, 0.1))
    assert float((torch.cdist(x, y).square() - f[:, None] - g).min()) > -1e-9


def test_a_subsample_of_everything_is_the_solution() -> None:
    x, y = cloud(30, 2, 1), cloud(25, 2, 2)
    solver = Sinkhorn(start=SubsampleStart(100, tol=1e-9, max_iter=5000))
    assert brenier.solve(x, y, epsilon=0.3, tol=1e-7, solver=solver).stats["n_iter"] <= 3
    one, other, third = (SubsampleStart(10, seed=k).potentials(problem(x, y, 0.3))[0] for k in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_given_potentials_in_both_ways_and_behind_the_hybrid() -> None:
    x, y = cloud(30, 2, 1), cloud(25, 2, 2)
    full = brenier.solve(x, y, epsilon=0.1, tol=1e-9)
    for solver in (
        Sinkhorn(f=full.f, g=full.g),
        Sinkhorn(start=Given(full.f, full.g)),
        SinkhornNewton(sinkhorn=Sinkhorn(start=Given(g=full.g))),
    ):
        assert brenier.solve(x, y, epsilon=0.1, tol=1e-8, solver=solver).stats["n_iter"] <= 4


def test_float32_and_a_far_origin() -> None:
    x, y = cloud(50, 3, 1).float() + 1000, cloud(50, 3, 2).float() + 1000
    for start in STARTS:
        solution = brenier.solve(x, y, epsilon=0.5, solver=Sinkhorn(start=start))
        assert solution.status.ok
        assert solution.f.dtype == torch.float32


@pytest.mark.parametrize(
    ("solver", "geometry", "message"),
    [
        (
            Sinkhorn(start=GaussianStart()),
            PointCloud(cloud(4, 2, 1), cost="euclidean"),
            "GaussianStart: expected clouds",
        ),
        (Sinkhorn(start=SortingStart()), CostMatrix(torch.ones(3, 3)), "SortingStart: expected clouds of points that"),
        (
            SinkhornNewton(sinkhorn=Sinkhorn(start=GaussianStart())),
            CostMatrix(torch.ones(3, 3)),
            "GaussianStart: expected clouds",
        ),
        (
            Sinkhorn(start=SubsampleStart()),
            Ragged.from_list([cloud(3, 2, 1)], [cloud(4, 2, 1)]),
            "SubsampleStart: expected problems of one size",
        ),
    ],
)
def test_refusals(solver: Sinkhorn, geometry: brenier.Geometry, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        brenier.solve(geometry, epsilon=0.1, solver=solver)


def test_bad_starts() -> None:
    with pytest.raises(InvalidInput, match="start: expected a Start"):
        Sinkhorn(start="gaussian")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="start: expected none beside the potentials"):
        Sinkhorn(f=torch.zeros(3), start=GaussianStart())
    with pytest.raises(InvalidInput, match="SubsampleStart size: expected a positive integer, got 0"):
        SubsampleStart(0)
    soft = (KL(torch.ones(4, dtype=torch.float64)), Exact())
    with pytest.raises(InvalidInput, match="SubsampleStart: expected marginals whose parameters"):
        brenier.solve(
            cloud(4, 2, 1), cloud(4, 2, 2), epsilon=1.0, marginals=soft, solver=Sinkhorn(start=SubsampleStart())
        )


def test_the_schedule_is_for_zeros() -> None:
    p = problem(cloud(20, 2, 1), cloud(20, 2, 2), 0.01)
    cold, warm, fixed = (
        Sinkhorn(start=s, schedule=c).init(p).epsilon
        for s, c in ((Zeros(), Sinkhorn().schedule), (GaussianStart(), Sinkhorn().schedule), (Zeros(), Fixed()))
    )
    assert float(cold) > 0.01
    assert float(warm) == float(fixed) == 0.01
