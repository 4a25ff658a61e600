"""Bijections by matched splits and sweeps: known answers, properties, exact optima."""

import itertools

import numpy as np
import pytest
import torch

from brenier import KL, CostMatrix, InvalidInput, NotConvergedWarning, Status, solve
from brenier.solvers import Hierarchical, NetworkSimplex
from brenier.solvers.hierarchical import _cut, _refined, _split, _starts
from problems import check_encloses, cloud


def permutation(solution):
    cols = solution.plan.argmax()
    assert sorted(cols.tolist()) == list(range(len(cols)))
    return cols


@pytest.mark.parametrize("n", [1, 2, 7, 100, 256])
def test_one_block_is_exact(n):
    x, y = cloud(n, 3, 1), cloud(n, 3, 2)
    solution = solve(x, y, solver="hierarchical")
    permutation(solution)
    assert float(solution.value) == pytest.approx(float(solve(x, y, solver=NetworkSimplex()).value), rel=1e-12)
    assert solution.stats["n_iter"] == 1


@pytest.mark.parametrize("n", [1000, 1024, 777])
@pytest.mark.parametrize("d", [2, 16])
def test_near_the_optimum(n, d):
    x, y = cloud(n, d, 1), cloud(n, d, 2) * torch.linspace(0.5, 1.5, d).double() + 1
    solution = solve(x, y, solver=Hierarchical(size=128))
    permutation(solution)
    optimum = float(solve(x, y).value)
    assert optimum * (1 - 1e-12) <= float(solution.value) <= 1.01 * optimum
    check_encloses(solution.certificate, optimum, 1e-9, 1.0)
    assert float(solution.certificate.relative_gap) < 0.05
    assert float(solution.dual_value) == pytest.approx(float(solution.certificate.dual), rel=1e-12)


def test_nearly_finds_a_shuffled_translation():
    x = cloud(900, 2, 1)
    y = (x + 3)[torch.randperm(900, generator=torch.Generator().manual_seed(0))]
    solution = solve(x, y, solver=Hierarchical(size=64))
    permutation(solution)
    assert 18 * (1 - 1e-12) <= float(solution.value) <= 18.01


@pytest.mark.parametrize(
    "cost", ["euclidean", "cityblock", "cosine", "dot", lambda x, y: (x - y).abs().pow(1.5).sum(-1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_cost_between_points(cost, dtype):
    x, y = cloud(400, 3, 1).to(dtype), cloud(400, 3, 2).to(dtype) + 1
    solution = solve(x, y, cost=cost, solver=Hierarchical(size=64))
    permutation(solution)
    exact = float(solve(x, y, cost=cost).value)
    assert exact - 1e-6 * abs(exact) <= float(solution.value) <= exact + 0.03 * abs(exact)
    assert solution.value.dtype == dtype


def test_no_sweep_raises_the_cost():
    values = []
    solve(
        cloud(600, 8, 1), cloud(600, 8, 2), solver=Hierarchical(size=32), callback=lambda _, s: values.append(s.value)
    )
    assert len(values) > 5
    assert all(after <= before for before, after in itertools.pairwise(values))
    assert values[-1] < 0.99 * values[0]


def test_splits_are_exact_halves():
    u, v = cloud(103, 2, 1).numpy(), cloud(103, 2, 2).numpy()
    rows, cols, starts = _refined(u, v, 10, torch.Generator().manual_seed(0))
    assert np.array_equal(np.sort(rows), np.arange(103))
    assert np.array_equal(np.sort(cols), np.arange(103))
    assert set(np.diff(starts)) <= {6, 7}
    order, starts = _cut(u, 10, torch.Generator().manual_seed(0))
    assert np.array_equal(np.sort(order), np.arange(103))
    assert np.diff(starts).max() <= 10


def test_a_split_is_the_best_of_rank_two():
    x, y = cloud(8, 2, 1).numpy(), cloud(8, 2, 2).numpy()

    def gain(rows, cols):
        u, v = (p[list(half)].mean(0) - np.delete(p, list(half), 0).mean(0) for p, half in ((x, rows), (y, cols)))
        return float(u @ v)

    halves = list(itertools.combinations(range(8), 4))
    best = max(gain(rows, cols) for rows in halves for cols in halves)
    found = 0.0
    for seed in range(5):
        first, second = _split(x, y, _starts(8, 0), _starts(8, 1)[1::2], torch.Generator().manual_seed(seed))
        found = max(found, gain(first[:4], second[:4]))
    assert found == pytest.approx(best)


def test_a_generator_makes_it_repeatable():
    x, y = cloud(500, 4, 1), cloud(500, 4, 2)

    def found(generator):
        return solve(x, y, solver=Hierarchical(size=32), generator=generator).plan.argmax().tolist()

    assert found(None) == found(None)
    assert found(torch.Generator().manual_seed(3)) == found(torch.Generator().manual_seed(3))


def test_equal_points_and_masses_other_than_one():
    x = torch.zeros(70, 2, dtype=torch.float64)
    solution = solve(x, x + 1, solver=Hierarchical(size=16))
    permutation(solution)
    assert float(solution.value) == pytest.approx(2)
    solution = solve(x, x, a=torch.full((70,), 2.0), b=torch.full((70,), 2.0), solver=Hierarchical(size=16))
    assert float(solution.value) == 0
    torch.testing.assert_close(solution.plan.row_sums(), torch.full((70,), 2.0, dtype=torch.float64))


def test_stopped_by_max_iter():
    with pytest.warns(NotConvergedWarning, match="hierarchical: stopped at max_iter"):
        solution = solve(cloud(400, 8, 1), cloud(400, 8, 2), solver=Hierarchical(size=16), max_iter=2)
    assert solution.status is Status.MAX_ITER
    permutation(solution)


def test_gradients_are_those_of_the_matching():
    x, y = cloud(60, 2, 1).requires_grad_(), cloud(60, 2, 2).requires_grad_()
    solution = solve(x, y, solver=Hierarchical(size=16))
    gradients = torch.autograd.grad(solution.value, (x, y))
    pairs = y[solution.plan.argmax()]
    torch.testing.assert_close(gradients[0], 2 * (x - pairs) / 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.1}, "hierarchical: expected epsilon=None"),
        ({"marginals": KL(1.0)}, "hierarchical: expected exact marginals"),
        ({"a": [0.3, 0.2, 0.5]}, "as many sources as targets, of equal masses, got unequal masses"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        solve(cloud(3, 2, 1), cloud(3, 2, 2), solver="hierarchical", **arguments)


def test_refuses_other_shapes():
    with pytest.raises(InvalidInput, match="equal masses, got 3 and 4"):
        solve(cloud(3, 2, 1), cloud(4, 2, 2), solver="hierarchical")
    with pytest.raises(InvalidInput, match="hierarchical: expected a PointCloud, got CostMatrix"):
        solve(CostMatrix(torch.eye(3)), solver="hierarchical")
    with pytest.raises(InvalidInput, match="hierarchical: expected one problem"):
        solve(cloud(6, 2, 1, 3), cloud(6, 2, 2, 3), solver="hierarchical")
    with pytest.raises(InvalidInput, match="Hierarchical size: expected a positive integer"):
        Hierarchical(size=0)
