"""Problems whose answer is known in closed form, and hard inputs that must be ordinary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import brenier
from brenier import CostMatrix, InvalidInput, Relative, Status
from problems import (
    HARD,
    KNOWN,
    Known,
    array,
    assert_close,
    check_encloses,
    check_marginals,
    check_plan_operators,
    entropic,
    lp_value,
    tiny_lp,
    weights,
)


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_exact(known: Known) -> None:
    solution = brenier.solve(known.x, known.y)
    assert solution.status is Status.OPTIMAL
    assert_close(solution.value, known.value, atol=1e-10)
    check_encloses(solution.certificate, known.value, 1e-9, 1.0)
    plan = solution.plan.dense() * len(known.x)
    assert_close(plan.sum(0), torch.ones(len(plan)), 1e-12)
    assert set(array(plan).round(12).ravel()) <= {0.0, 1.0}, "not a permutation"
    assert_close(solution.map(), known.moved, atol=1e-9)
    # out of sample the map is argmin_j c(x, y_j) - g_j; on the sample itself several j may be tight, so compare values
    f, g = solution.potentials
    y = solution.map(known.x)
    j = torch.cdist(y, known.y).argmin(-1)
    assert_close((known.x - y).square().sum(-1) - g[j], f, atol=1e-9)


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_small_epsilon_comes_near(known: Known) -> None:
    solution = brenier.solve(known.x, known.y, epsilon=5e-3, tol=1e-4, max_iter=50_000)
    n = len(known.x)
    # the linear value is above the optimum, by at most eps log n (and the tolerance)
    excess = float(solution.linear_value) - known.value
    slack = 1e-4 * float(torch.cdist(known.x, known.y).square().max())
    assert -slack <= excess <= 5e-3 * np.log(n) + slack
    check_encloses(solution.certificate, known.value, 1e-9, 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_tiny_linear_programs(seed: int) -> None:
    lp = tiny_lp(seed)
    solution = brenier.solve(CostMatrix(lp.cost), a=lp.a, b=lp.b)
    scale = abs(lp.cost).max() * lp.a.sum()
    assert_close(solution.value, lp.value, atol=1e-11 * scale)
    check_encloses(solution.certificate, lp.value, 1e-11, scale)
    assert float(solution.certificate.gap) <= 1e-12 * scale
    check_marginals(solution.plan.dense(), lp.a, lp.b, 1e-12)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("epsilon", [None, 0.5, Relative(0.2)], ids=str)
def test_hard_inputs(name: str, epsilon: float | Relative | None) -> None:
    x, y, a, b = HARD[name]
    if name == "integers" and epsilon == 0.5:
        epsilon = 20.0
    if name == "all points equal" and isinstance(epsilon, Relative):
        with pytest.raises(InvalidInput, match="expected a positive finite mean cost, got 0"):
            brenier.solve(x, y, epsilon=epsilon)
        return
    points = [array(t.double().reshape(len(t), -1)) for t in (x, y)]
    C = cdist(*points, "sqeuclidean")
    mass_a, mass_b = (np.full(k, 1 / k) if w is None else array(w.double()) for w, k in ((a, len(x)), (b, len(y))))
    double = x.dtype in (torch.float64, torch.int64)
    options = {} if epsilon is None else {"tol": 1e-10 if double else 1e-5, "max_iter": 20_000}
    solution = brenier.solve(x, y, a=a, b=b, epsilon=epsilon, **options)
    assert solution.status.ok
    dtype = torch.float64 if double else torch.float32  # half precision is computed and returned in float32
    assert solution.value.dtype == solution.plan.dense().dtype == solution.potentials.f.dtype == dtype
    tol, scale = (1e-9, C.max() * mass_a.sum()) if double else (1e-4, C.max())
    check_encloses(solution.certificate, lp_value(C, mass_a, mass_b), tol, scale)
    check_marginals(solution.plan.dense(), mass_a, mass_b, 1e-8 if double else 1e-4)
    assert torch.isfinite(torch.cat([t.reshape(-1) for t in solution.potentials])).all()
    if epsilon is None:
        assert_close(solution.value, lp_value(C, mass_a, mass_b), tol, tol * scale)
    else:
        used = solution.stats["epsilon"]
        if isinstance(epsilon, Relative):
            assert_close(used, 0.2 * (mass_a @ C @ mass_b) / (mass_a.sum() * mass_b.sum()), tol)
        assert_close(solution.value, entropic(C, mass_a, mass_b, used).value, 10 * tol, tol * scale + 1e-15)
    check_plan_operators(solution, 1e-10 if double else 1e-4)


@pytest.mark.parametrize("solver", ["sinkhorn", "monotone"])
def test_all_weights_of_1e_300(solver: str) -> None:
    """Masses near the end of the floating-point range keep their relative accuracy."""
    x, y = torch.randn(5, 1).double(), torch.randn(5, 1).double()
    epsilon = 0.5 if solver == "sinkhorn" else None
    one = brenier.solve(x, y, epsilon=epsilon, solver=solver)
    tiny = brenier.solve(x, y, a=[1e-300] * 5, b=[1e-300] * 5, epsilon=epsilon, solver=solver)
    assert tiny.status.ok
    assert_close(1e300 * tiny.linear_value, 5 * one.linear_value, 1e-5)
    assert float(tiny.certificate.relative_gap) <= float(one.certificate.relative_gap) + 1e-6


def test_batch_items_do_not_see_each_other() -> None:
    x, y = torch.randn(3, 6, 2).double(), torch.randn(7, 2).double()
    a = weights(6, 1, 3, zeros=1)
    for epsilon in (None, 0.7, Relative(0.3)):
        options = {} if epsilon is None else {"tol": 1e-10}
        batch = brenier.solve(x, y, a=a, epsilon=epsilon, **options)
        assert batch.value.shape == (3,)
        assert len(batch.statuses) == 3
        for k in range(3):
            one = brenier.solve(x[k], y, a=a[k], epsilon=epsilon, **options)
            assert_close(batch.value[k], one.value, 1e-8)
            assert_close(batch.certificate.dual[k], one.certificate.dual, 1e-6, 1e-6)
            assert_close(batch.plan.dense()[k], one.plan.dense(), atol=1e-8)
            assert_close(batch.map()[k][a[k] > 0], one.map()[a[k] > 0], 1e-7)


def test_a_batch_of_images_with_relative_epsilon() -> None:
    """Each image has its own epsilon, in every operation that the answer offers."""
    grid, a, b = brenier.Grid(3, 4), weights(12, 0, 2, zeros=5), weights(12, 1, 2)
    batch = brenier.solve(grid, a=a, b=b, epsilon=Relative(0.2), tol=1e-10)
    for k in range(2):
        one = brenier.solve(grid, a=a[k], b=b[k], epsilon=Relative(0.2), tol=1e-10)
        for name in ("value", "linear_value", "dual_value"):
            assert_close(getattr(batch, name)[k], getattr(one, name), 1e-8)
        assert_close(batch.certificate.primal[k], one.certificate.primal, 1e-8)
        assert_close(batch.certificate.dual[k], one.certificate.dual, 1e-6)
