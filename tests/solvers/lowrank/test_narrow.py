"""Transport between many rows and a few columns: known answers, SLSQP and HiGHS."""

import numpy as np
import pytest
import torch

from brenier import KL, TV, Exact, Free, solve
from brenier.geometry import CostMatrix
from brenier.solvers.lowrank.narrow import narrow_transport
from problems import cloud, kl, lp_value, soft_optimum, weights


def problem(n=24, r=4, seed=0):
    cost = torch.cdist(cloud(n, 2, seed), cloud(r, 2, seed + 1)).square()
    return cost, weights(n, seed + 2), 1.4 * weights(r, seed + 3)


def value(cost, plan, a, b, rho):
    out = float((cost * plan).sum())
    for price, mass, weight in zip(rho, (plan.sum(1), plan.sum(0)), (a, b)):
        out += 0.0 if price is None else price * kl(mass.numpy(), weight.numpy())
    return out


@pytest.mark.parametrize("rho", [(1.0, 1.0), (0.2, 3.0), (50.0, 50.0), (None, 0.7), (0.7, None)])
@pytest.mark.parametrize("seed", [0, 1])
def test_kl_reaches_the_optimum(rho, seed):
    cost, a, b = problem(seed=seed)
    marginals = tuple(Exact() if p is None else KL(p) for p in rho)
    plan, _ = narrow_transport(cost, a, b, marginals)
    assert float(plan.min()) >= 0
    for price, mass, weight in zip(rho, (plan.sum(1), plan.sum(0)), (a, b)):
        if price is None:
            torch.testing.assert_close(mass, weight, rtol=1e-12, atol=0)
    optimum = soft_optimum(cost.numpy(), a.numpy(), b.numpy(), rho)
    assert optimum * (1 - 1e-9) <= value(cost, plan, a, b, rho) <= optimum * (1 + 1e-4)


def test_large_rho_is_balanced_transport():
    cost, a, b = problem()
    b = b / b.sum()
    plan, _ = narrow_transport(cost, a, b, (KL(1e5), KL(1e5)))
    assert float((cost * plan).sum()) == pytest.approx(lp_value(cost.numpy(), a.numpy(), b.numpy()), rel=1e-3)
    assert float((plan.sum(1) - a).abs().max()) < 1e-5


def test_a_free_side_takes_the_nearest():
    cost, a, b = problem()
    plan, _ = narrow_transport(cost, a, b, (KL(2.0), Free()))
    expected = torch.zeros_like(cost)
    expected[torch.arange(24), cost.argmin(1)] = a * torch.exp(-cost.amin(1) / 2)
    torch.testing.assert_close(plan, expected)
    torch.testing.assert_close(narrow_transport(cost.mT, b, a, (Free(), KL(2.0)))[0], expected.mT)


def test_linear_prices_go_to_the_simplex():
    cost, a, b = problem()
    plan, _ = narrow_transport(cost, a, b, (TV(0.5), TV(0.5)))
    expected = solve(CostMatrix(cost), a=a, b=b, marginals=TV(0.5))
    torch.testing.assert_close(plan, expected.plan.dense())


def test_rows_without_mass_one_column_and_far_points():
    cost, a, b = problem()
    a[:3] = 0
    plan, _ = narrow_transport(cost, a, b, (KL(1.0), KL(1.0)))
    assert float(plan[:3].abs().max()) == 0
    one, _ = narrow_transport(cost[:, :1], a, b[:1], (KL(1.0), KL(2.0)))
    # P_i = a_i exp(-(c_i - g) / rho_a) with mass b exp(-g / rho_b) on both sides
    shape = a * torch.exp(-cost[:, 0])
    g = float(torch.log(b[0] / shape.sum())) / (1 + 1 / 2)
    torch.testing.assert_close(one[:, 0], shape * np.exp(g))
    far, _ = narrow_transport(cost + 1e5, a, b, (KL(1.0), KL(1.0)))
    assert float(far.sum()) == 0  # exp(-1e5 / 2)
