"""Permutations by `solve`, and matchings by `assign`."""

import numpy as np
import pandas as pd
import pytest
import torch

import brenier
from brenier import CostMatrix, Relative, assign, solve
from brenier.kernels.build import native
from brenier.solvers import Assignment, NetworkSimplex
from problems import cloud

ENGINES = [
    pytest.param("native", marks=pytest.mark.skipif(native is None, reason="native engine not built")),
    "reference",
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finds_the_permutation(engine, dtype):
    x = cloud(40, 2, 1).to(dtype)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    y = torch.empty_like(x)
    y[shuffled] = x + 0.01
    solution = solve(x, y, solver=Assignment(engine=engine))
    assert solution.plan.argmax().tolist() == shuffled.tolist()
    assert solution.value.dtype == dtype
    assert solution.stats["engine"] == engine
    assert abs(float(solution.certificate.relative_gap)) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_agrees_with_the_network_simplex():
    for seed, cost in enumerate(("sqeuclidean", "euclidean", "cosine", "dot")):
        x, y = cloud(60, 3, seed), cloud(60, 3, seed + 10)
        ours, simplex = (solve(x, y, cost=cost, solver=s) for s in (Assignment(), NetworkSimplex()))
        assert float(ours.value) == pytest.approx(float(simplex.value), rel=1e-12)
        certificate = ours.certificate
        assert float(certificate.gap) <= 1e-12 * max(1, abs(float(ours.value)))


def test_masses_other_than_one():
    x, y = cloud(9, 2, 1), cloud(9, 2, 2)
    solution = solve(x, y, a=torch.full((9,), 2.0), b=torch.full((9,), 2.0), solver="assignment")
    torch.testing.assert_close(solution.value, 18 * solve(x, y, solver=NetworkSimplex()).value)
    torch.testing.assert_close(solution.plan.dense().sum(0), torch.full((9,), 2.0, dtype=x.dtype))


def test_auto_takes_it_for_permutations_only():
    x, y = cloud(9, 2, 1), cloud(9, 2, 2)
    assert solve(x, y).stats["solver"] == "assignment"
    assert solve(x, y, a=[k / 45 for k in range(1, 10)]).stats["solver"] == "network-simplex"
    assert solve(x, cloud(10, 2, 2)).stats["solver"] == "network-simplex"
    assert solve(x[:, :1], y[:, :1]).stats["solver"] == "monotone"
    x, y = cloud(501, 2, 1), cloud(501, 2, 2)
    assert solve(x, y).stats["solver"] == "assignment"
    assert solve(x, y, cost="cityblock").stats["solver"] == "network-simplex"


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_is_a_loop(monkeypatch, shared):
    x, y = cloud(7, 2, 1) if shared else cloud(7, 2, 1, 5), cloud(7, 2, 2, 5)
    batch = solve(x, y, solver="assignment")
    monkeypatch.setattr("brenier.solvers.exact.assignment._BLOCK", 100)
    blocks = solve(x, y, solver="assignment")
    for k in range(5):
        one = solve(x if shared else x[k], y[k], solver="assignment")
        for many in (batch, blocks):
            assert many.plan.argmax()[k].tolist() == one.plan.argmax().tolist()
            torch.testing.assert_close(many.value[k], one.value)
            torch.testing.assert_close(many.potentials.f[k], one.potentials.f)


def test_masses_may_have_more_batch_axes_than_the_points(monkeypatch):
    x, y, a = cloud(6, 2, 1), cloud(6, 2, 2), torch.full((3, 6), 1 / 6, dtype=torch.float64)
    for block in (1 << 24, 40):
        monkeypatch.setattr("brenier.solvers.exact.assignment._BLOCK", block)
        values = solve(x, y, a=a, solver="assignment").value
        torch.testing.assert_close(values, solve(x, y, solver="assignment").value.expand(3))


def test_starts_from_the_potentials_of_an_entropic_solve():
    x, y = cloud(80, 2, 1), cloud(80, 2, 2)
    blurred = solve(x, y, epsilon=Relative(0.01), tol=1e-3)
    cold = solve(x, y, solver="assignment")
    for start in ({"g": blurred.potentials.g}, {"f": blurred.potentials.f}):
        warm = solve(x, y, solver=Assignment(**start))
        assert float(warm.value) == pytest.approx(float(cold.value), rel=1e-12)


def test_gradient_of_a_solve():
    x, y = cloud(12, 2, 1).requires_grad_(), cloud(12, 2, 2)
    solution = solve(x, y, solver="assignment")
    (gradient,) = torch.autograd.grad(solution.value, x)
    torch.testing.assert_close(gradient, 2 * (x - y[solution.plan.argmax()]).detach() / 12)


# ------------------------------------------------------------------------------------------------ assign


def test_rectangles_prices_and_parts():
    cost = torch.tensor([[1.0, 5.0, 9.0], [5.0, 2.0, 9.0]], dtype=torch.float64)
    for costs, columns in ((cost, [0, 1]), (cost.T, [0, 1, -1])):
        matching = assign(costs)
        assert matching.columns.tolist() == columns
        assert matching.matched.tolist() == [c >= 0 for c in columns]
        assert (float(matching.value), float(matching.gap)) == (3.0, 0.0)
    assert assign(cost, max_pairs=1).columns.tolist() == [0, -1]
    assert assign(cost, price=1.5).columns.tolist() == [0, -1]
    assert assign(cost, price=-1.0).columns.tolist() == [-1, -1]
    assert repr(assign(cost)) == "Matching(2 pairs, shape=(2, 3), largest gap 0)"


def test_points_and_costs_agree():
    x, y = cloud(9, 3, 1, 4), cloud(12, 3, 2, 4)
    by_points = assign(x, y, cost="euclidean", max_pairs=5)
    by_costs = assign(torch.cdist(x, y), max_pairs=5)
    by_geometry = assign(CostMatrix(torch.cdist(x, y)), max_pairs=5)
    for matching in (by_costs, by_geometry):
        assert matching.columns.tolist() == by_points.columns.tolist()
        torch.testing.assert_close(matching.value, by_points.value)
    assert by_points.columns.shape == (4, 9)
    assert by_points.g.shape == (4, 12)
    assert float(by_points.gap.abs().max()) < 1e-12


def test_forbidden_pairs():
    cost = torch.tensor([[float("inf"), 1.0], [1.0, 0.0]])
    matching = assign(cost)
    assert matching.columns.tolist() == [1, 0]
    assert float(matching.value) == 2.0


def test_gradients():
    cost = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cost[0, 0, 0] = float("inf")
    cost.requires_grad_()
    matching = assign(cost, max_pairs=3)
    (gradient,) = torch.autograd.grad(matching.value.sum(), cost)
    pairs = torch.nn.functional.one_hot(matching.columns.clamp(min=0), 5) * matching.matched.unsqueeze(-1)
    torch.testing.assert_close(gradient, pairs.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_kinds_and_dtypes(dtype):
    cost = torch.tensor([[3, 1], [1, 4], [2, 2]]).to(dtype)
    matching = assign(cost)
    assert matching.columns.tolist() == [1, 0, -1]
    assert matching.columns.dtype == torch.int64
    wide = {torch.float16: torch.float32, torch.int64: torch.float64}.get(dtype, dtype)
    assert {t.dtype for t in (matching.value, matching.f, matching.g, matching.level, matching.gap)} == {wide}


def test_numpy_and_pandas():
    cost = np.array([[3.0, 1.0], [1.0, np.inf]])
    matching = assign(cost)
    assert isinstance(matching.columns, np.ndarray)
    assert matching.columns.tolist() == [1, 0]
    frame = pd.DataFrame(cost, index=["p", "q"], columns=["u", "v"])
    matching = assign(frame)
    assert matching.columns.to_dict() == {"p": 1, "q": 0}
    assert list(matching.g.index) == ["u", "v"]
    assert "2 pairs" in repr(matching)


def test_slices_need_not_be_contiguous():
    cost = torch.randn(6, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    part = cost.mT[:, ::2]
    torch.testing.assert_close(assign(part).value, assign(part.clone()).value)


def test_is_exported():
    assert brenier.assign is assign
