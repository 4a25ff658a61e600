"""A measure against itself: one potential, and the answer of the ordinary solvers."""

from __future__ import annotations

import pytest
import torch

import brenier
from brenier import KL, TV, CostMatrix, Exact, Grid, InvalidInput, PointCloud, Ragged, Relative
from brenier.solvers import Anderson, Fixed, Halving, Plain, Sinkhorn, SymmetricSinkhorn
from problems import assert_close, cloud, weights


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "cityblock"])
@pytest.mark.parametrize("fraction", [0.5, 0.05, 0.005])
def test_the_answer_of_sparse_newton_in_a_handful_of_iterations(cost: str, fraction: float) -> None:
    x, a = cloud(60, 3, 1), weights(60, 2, zeros=3)
    ours = brenier.solve(x, x, a=a, b=a, cost=cost, epsilon=Relative(fraction), tol=1e-10)
    other = brenier.solve(x, x, a=a, b=a, cost=cost, epsilon=Relative(fraction), tol=1e-10, solver="sns")
    assert ours.stats["solver"] == "symmetric-sinkhorn"
    assert ours.stats["n_iter"] <= 20
    assert_close(ours.value, other.value, 1e-9)
    assert max(float(e) for e in ours.certificate.marginal_errors) < 2e-10
    assert float((ours.f - ours.g).abs()[a > 0].max()) < 1e-8


@pytest.mark.parametrize("marginals", [KL(0.7), TV(0.5)], ids=str)
@pytest.mark.parametrize("reference", ["product", "counting"])
def test_soft_marginals(marginals: brenier.Marginal, reference: str) -> None:
    x = cloud(30, 2, 1)
    ours, other = (
        brenier.solve(x, x, epsilon=0.2, tol=1e-8, marginals=marginals, reference=reference, solver=solver)
        for solver in ("auto", Sinkhorn())
    )
    assert ours.stats["solver"] == "symmetric-sinkhorn"
    assert_close(ours.value, other.value, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_with_an_epsilon_each(dtype: torch.dtype) -> None:
    x, epsilon = cloud(25, 2, 1, 4, dtype=dtype), torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=dtype)
    together = brenier.solve(x, x, epsilon=epsilon)
    assert together.status.ok
    assert together.f.dtype == dtype
    for k in range(4):
        alone = brenier.solve(x[k], x[k], epsilon=float(epsilon[k]), solver="sinkhorn-newton")
        assert_close(together.value[k], alone.value, 1e-3 if dtype == torch.float32 else 1e-5)


def test_other_geometries() -> None:
    a = weights(30, 1)
    x = cloud(30, 2, 1)
    for geometry, masses, name in (
        (Grid(5, 6), a, "auto"),
        (CostMatrix(torch.cdist(x, x)), a, "symmetric-sinkhorn"),
        (Ragged.from_list([x, x[:7]], [x, x[:7]]), None, "symmetric-sinkhorn"),
    ):
        ours, other = (
            brenier.solve(geometry, a=masses, b=masses, epsilon=0.5, tol=1e-9, solver=s) for s in (name, "sinkhorn")
        )
        assert ours.stats["solver"] == "symmetric-sinkhorn"
        assert_close(ours.value, other.value, 1e-7)


def test_a_cost_without_a_positive_kernel_converges_too() -> None:
    """All mass moves to the other point: the kernel has a negative eigenvalue, and the damping is what helps."""
    C = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for relaxation in (Plain(), Anderson(below=float("inf"))):
        solver = SymmetricSinkhorn(schedule=Halving(), relaxation=relaxation)
        solution = brenier.solve(CostMatrix(C), a=[0.3, 0.7], b=[0.3, 0.7], epsilon=0.3, tol=1e-9, solver=solver)
        other = brenier.solve(CostMatrix(C), a=[0.3, 0.7], b=[0.3, 0.7], epsilon=0.3, tol=1e-11, solver="sns")
        assert solution.status.ok
        assert_close(solution.value, other.value, 1e-7)


def test_starts_from_its_answer_and_stops_early() -> None:
    x = cloud(30, 2, 1)
    full = brenier.solve(x, x, epsilon=0.01, tol=1e-9)
    for start in ({"f": full.f}, {"g": full.g}, {"f": full.f, "g": full.g}):
        again = brenier.solve(x, x, epsilon=0.01, tol=1e-8, solver=SymmetricSinkhorn(**start))
        assert again.stats["n_iter"] <= 2  # the first tells its error
    with pytest.warns(brenier.NotConvergedWarning):
        stopped = brenier.solve(x, x, epsilon=0.01, tol=1e-12, max_iter=2)
    assert_close(stopped.plan.col_sums(), torch.full((30,), 1 / 30, dtype=torch.float64), 1e-12)


def test_gradients_are_those_of_the_problem() -> None:
    def gradient(solver: str) -> torch.Tensor:
        x = cloud(12, 2, 1).requires_grad_()
        value = brenier.solve(x, x, epsilon=0.3, tol=1e-12, solver=solver).value
        return torch.autograd.grad(value, x)[0]

    assert_close(gradient("auto"), gradient("sns"), 1e-9)


def test_refuses_what_is_not_symmetric() -> None:
    x, y, a = cloud(5, 2, 1), cloud(5, 2, 2), weights(5, 3)
    lopsided = brenier.costs.CallableCost(lambda u, v: (u - 2 * v).square().sum(-1))
    for bad in (
        {"x": x, "y": y},
        {"x": x, "y": x, "a": a},
        {"x": x, "y": x, "marginals": (Exact(), KL(1.0))},
        {"x": x, "y": x, "marginals": (KL(1.0), KL(2.0))},
        {"x": PointCloud(x, x, lopsided)},
        {"x": CostMatrix(torch.cdist(x, y))},
    ):
        points = [bad.pop(k) for k in ("x", "y") if k in bad]
        with pytest.raises(InvalidInput, match="symmetric-sinkhorn: expected one measure on both sides"):
            brenier.solve(*points, epsilon=0.5, solver="symmetric-sinkhorn", **bad)
    assert brenier.solve(x, x, epsilon=0.5, cost=lopsided).stats["solver"] != "symmetric-sinkhorn"
    assert SymmetricSinkhorn().schedule == Fixed()
