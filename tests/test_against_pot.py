"""The same numbers as POT, through explicit conversions of the two conventions.

Ours:  value = <P, C> + eps KL(P | a ⊗ b) (+ rho KL(P1 | a) + rho KL(P^T 1 | b)),  linear_value = <P, C>.
"""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from scipy.special import xlogy

import brenier
from brenier import KL, CostMatrix, Exact
from problems import assert_close, cloud, rng, weights


@pytest.fixture(params=[(5, 8), (7, 7), (1, 4)], ids=str)
def problem(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m = request.param
    return rng(n).uniform(size=(n, m)), weights(n, 1).numpy(), weights(m, 2).numpy()


def test_emd2(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Both are <P, C> at the optimum: no conversion."""
    C, a, b = problem
    solution = brenier.solve(CostMatrix(C), a=a, b=b)
    assert_close(solution.value, ot.emd2(a, b, C), 1e-12)
    assert_close(solution.plan.dense(), ot.emd(a, b, C), atol=1e-12)


def test_sinkhorn2(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """POT's `sinkhorn2` returns <P, C>, our linear_value.

    Its problem adds reg sum P (log P - 1). For a and b of unit mass that differs from ours by a constant,
    eps KL(P | a ⊗ b) = eps (sum P log P - sum a log a - sum b log b), so plan and minimiser agree.
    """
    C, a, b = problem
    eps = 0.1
    solution = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=eps, tol=1e-12)
    pot = ot.sinkhorn2(a, b, C, eps, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000)
    plan = ot.sinkhorn(a, b, C, eps, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000)
    assert_close(solution.linear_value, float(pot), 1e-9)
    assert_close(solution.plan.dense(), plan, atol=1e-10)
    entropy = xlogy(plan, plan).sum() - xlogy(a, a).sum() - xlogy(b, b).sum()
    assert_close(solution.value, float(pot) + eps * entropy, 1e-9)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_wasserstein_1d(p: int) -> None:
    """POT's `wasserstein_1d(p=p)` is the transport cost of |x - y|^p, not its root; so is our value."""
    x, y, a, b = cloud(9, 1).numpy(), cloud(6, 1, 1).numpy(), weights(9).numpy(), weights(6, 1).numpy()
    solution = brenier.solve(x, y, a=a, b=b, cost=brenier.costs.Lp(2, power=p))
    assert solution.stats["solver"] == "monotone"
    assert_close(solution.value, float(ot.wasserstein_1d(x[:, 0], y[:, 0], a, b, p=p)), 1e-10)


@pytest.mark.parametrize("rho", [0.3, 5.0])
def test_unbalanced(problem: tuple[np.ndarray, np.ndarray, np.ndarray], rho: float) -> None:
    """With reg_type="kl" POT minimises <P, C> + reg KL(P | a b^T) + reg_m KL(P1 | a) + reg_m KL(P^T 1 | b): ours."""
    C, a, b = problem
    a = 2 * a  # the masses may differ
    options = {"reg_type": "kl", "numItermax": 100_000, "stopThr": 1e-14}
    plan = ot.unbalanced.sinkhorn_unbalanced(a, b, C, 0.1, rho, **options)
    solution = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=0.1, marginals=KL(rho), tol=1e-12)
    assert_close(solution.plan.dense(), plan, atol=1e-8)
    assert_close(solution.linear_value, (plan * C).sum(), 1e-7)


def test_semi_relaxed(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """POT's reg_m=(inf, rho) is our (Exact(), KL(rho))."""
    C, a, b = problem
    options = {"reg_type": "kl", "numItermax": 100_000, "stopThr": 1e-14}
    plan = ot.unbalanced.sinkhorn_unbalanced(a, b, C, 0.1, (float("inf"), 0.7), **options)
    solution = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=0.1, marginals=(Exact(), KL(0.7)), tol=1e-12)
    assert_close(solution.plan.dense(), plan, atol=1e-8)


def test_costs_of_pot() -> None:
    """`ot.dist` with its default metric is our "sqeuclidean", without a factor one half."""
    x, y = cloud(5).numpy(), cloud(6, seed=1).numpy()
    for metric in ("sqeuclidean", "euclidean", "cityblock", "chebyshev", "cosine"):
        mine = brenier.PointCloud(x, y, metric).tile()
        assert_close(mine, ot.dist(x, y, metric=metric), atol=1e-12)
    assert torch.is_tensor(mine)
