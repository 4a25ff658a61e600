"""Plans of low rank with soft marginals: known answers, oracles at full rank, properties."""

import itertools

import numpy as np
import pytest
import torch

import brenier
from brenier import KL, TV, Exact, Free, InvalidInput, Partial, Slack, solve
from brenier.solvers import LowRank
from problems import check_encloses, cloud, kl, soft_optimum, weights

LINEAR = [
    TV(0.7),
    TV(5.0),
    Partial(0.6),
    Slack(0.8),
    (Exact(), TV(0.4)),
    (TV(0.4), Exact()),
    (Exact(), Free()),
    (Free(), Exact()),
    (Exact(), Slack(0.2)),
    (TV(0.5), Slack(0.9)),
    (Partial(0.5), Free()),
]
SMOOTH = [KL(1.0), KL(0.2), (Exact(), KL(0.5)), (KL(0.5), Exact()), (KL(2.0), Free()), (Free(), KL(2.0))]


def low(rank):
    """A solver that is quicker than the default, and nearly as good."""
    return LowRank(rank=rank, starts=1, melts=1)


def unequal(n=25, m=30):
    """Two clouds of different masses."""
    return cloud(n, 2, 1), cloud(m, 2, 2) + 0.5, weights(n, 3), 1.3 * weights(m, 4)


def groups(n, seed=1):
    """Four groups a side that match one to one, with two outliers on each side."""
    centres = 4 * cloud(4, 2, 3)
    x = centres[torch.arange(n) % 4] + 0.1 * cloud(n, 2, seed)
    y = centres[torch.arange(n) % 4] + 0.1 * cloud(n, 2, seed + 1) + 0.3
    x[:2] += 50
    y[:2] -= 50
    return x, y


def optimum(x, y, a, b, marginals):
    """The least objective of all plans."""
    pair = marginals if isinstance(marginals, tuple) else (marginals, marginals)
    if any(isinstance(p, KL) for p in pair):
        cost = torch.cdist(x, y).square().numpy()
        if Free() in pair:  # each point of the other side goes to its nearest
            rows = isinstance(pair[1], Free)
            near, w, rho = (cost.min(1), a.numpy(), pair[0].rho) if rows else (cost.min(0), b.numpy(), pair[1].rho)
            mass = w * np.exp(-near / rho)
            return float((near * mass).sum() + rho * kl(mass, w))
        return soft_optimum(cost, a.numpy(), b.numpy(), tuple(None if p == Exact() else p.rho for p in pair))
    return float(solve(x, y, a=a, b=b, marginals=marginals).value)


def check(solution, least):
    """That the plan is what its value says, and the certificate holds."""
    problem, plan = solution.problem, solution._plan
    sums = plan.row_sums().double(), plan.col_sums().double()
    total = (plan.dense() * torch.cdist(problem.geometry.x, problem.geometry.y).square()).sum()
    assert float(plan.dense().min()) >= 0
    for marginal, side, r in zip(problem.marginals, problem.sides, sums):
        assert float(marginal.violation(r, side)) < 1e-9
        total = total + marginal.penalty(r, side)
    assert float(solution.value) == pytest.approx(float(total), rel=1e-9)
    check_encloses(solution.certificate, least, 1e-6, 1.0)


@pytest.mark.parametrize("marginals", LINEAR, ids=str)
def test_linear_prices(marginals):
    x, y, a, b = unequal()
    least = optimum(x, y, a, b, marginals)
    full = solve(x, y, a=a, b=b, marginals=marginals, solver=LowRank(rank=30))
    assert float(full.value) == pytest.approx(least, rel=1e-9)
    check(full, least)
    solvers = LowRank(rank=24), low(6), low(2)
    values = [solve(x, y, a=a, b=b, marginals=marginals, solver=s) for s in solvers]
    for solution in values:
        check(solution, least)
    size = max(least, 1e-3)
    assert least - 1e-9 <= float(values[0].value) <= 1.1 * size
    assert float(values[0].value) <= float(values[1].value) * 1.02 <= float(values[2].value) * 1.05


@pytest.mark.parametrize("marginals", SMOOTH, ids=str)
def test_kl(marginals):
    x, y, a, b = unequal(12, 14)
    least = optimum(x, y, a, b, marginals)
    full = solve(x, y, a=a, b=b, marginals=marginals, solver=LowRank(rank=14))
    assert least * (1 - 1e-9) <= float(full.value) <= least * (1 + 1e-3)
    check(full, least)
    solvers = low(11), low(4), low(2)
    values = [solve(x, y, a=a, b=b, marginals=marginals, solver=s) for s in solvers]
    for solution in values:
        check(solution, least)
    assert float(values[0].value) <= 1.1 * least
    assert float(values[0].value) <= float(values[1].value) * 1.02 <= float(values[2].value) * 1.05


@pytest.mark.parametrize("marginals", [TV(2.0), KL(2.0), Partial(0.8), Slack(2.0)], ids=str)
def test_groups_are_matched_and_outliers_left(marginals):
    x, y = groups(40)
    solution = solve(x, y, marginals=marginals, solver=LowRank(rank=4))
    even = torch.full((40,), 1 / 40, dtype=torch.float64)
    least = optimum(x, y, even, even, marginals)
    assert float(solution.value) <= 1.15 * least
    assert float(solution.certificate.dual) >= 0.7 * least  # at the scale of what moves, not of the outliers
    for sums in (solution.plan.row_sums(), solution.plan.col_sums()):
        assert float(sums[:2].max()) < 1e-9
        if not isinstance(marginals, Partial | KL):
            torch.testing.assert_close(sums[2:], even[2:])


@pytest.mark.parametrize("marginals", [TV(1.0), KL(1.0), (Exact(), KL(1.0)), Partial(0.7)], ids=str)
def test_the_objective_never_rises(marginals):
    values = []

    def look(iteration, state):
        if state.current is not None:
            values.append((state.descents, state.current.value))

    x, y = cloud(60, 2, 1), cloud(60, 2, 2) + 0.5
    solution = solve(x, y, marginals=marginals, solver=low(6), callback=look)
    assert len(values) > 20
    assert all(t <= s * (1 + 1e-12) for (i, s), (j, t) in itertools.pairwise(values) if i == j)
    assert float(solution.value) <= min(v for _, v in values) * (1 + 1e-9)


@pytest.mark.parametrize("marginals", [TV(50.0), KL(1e4), (Exact(), KL(1e4))], ids=str)
def test_large_rho_is_the_balanced_problem(marginals):
    x, y = cloud(40, 2, 1), cloud(40, 2, 2) + 0.5
    balanced = solve(x, y, solver=LowRank(rank=6))
    soft = solve(x, y, marginals=marginals, solver=LowRank(rank=6, melts=2))
    assert float(soft.value) == pytest.approx(float(balanced.value), rel=0.02)  # local optima differ
    assert float((soft.plan.row_sums() - 1 / 40).abs().sum()) < 2e-3


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_free_side_finds_medoids(rank):
    x, y, a = cloud(9, 2, 1), cloud(7, 2, 2), weights(9, 3)
    cost = torch.cdist(x, y).square()
    best = min(float(a @ cost[:, list(chosen)].amin(1)) for chosen in itertools.combinations(range(7), rank))
    solution = solve(x, y, a=a, marginals=(Exact(), Free()), solver=LowRank(rank=rank))
    assert best * (1 - 1e-9) <= float(solution.value) <= best * 1.05
    assert int((solution.plan.col_sums() > 0).sum()) <= rank


def test_nothing_moves_where_it_costs_too_much():
    x, y = cloud(20, 2, 1), cloud(20, 2, 2) + 100
    solution = solve(x, y, marginals=TV(1.0), solver=LowRank(rank=3))
    assert float(solution.value) == pytest.approx(2.0)
    assert float(solution.plan.row_sums().sum()) == 0


def test_points_without_mass_float32_and_other_costs():
    x, y, a, b = unequal()
    a = torch.cat([torch.zeros(3, dtype=torch.float64), a[3:]])
    for marginals in (TV(0.7), KL(0.7)):
        for cost in ("euclidean", "cosine"):
            solution = solve(x, y, a=a, b=b, cost=cost, marginals=marginals, solver=low(5))
            assert float(solution.plan.row_sums()[:3].abs().max()) < 1e-12
            assert float(solution.certificate.dual) <= float(solution.value)
        solution = solve(x.float(), y.float(), a=a.float(), b=b.float(), marginals=marginals, solver=low(5))
        assert solution.value.dtype == torch.float32


def test_gradients_hold_the_plan():
    x, y = cloud(12, 2, 1).requires_grad_(), cloud(12, 2, 2)
    solution = solve(x, y, marginals=KL(1.0), solver=LowRank(rank=3))
    (gradient,) = torch.autograd.grad(solution.value, x)
    plan = solution.plan.dense()
    expected = 2 * (plan.sum(1, keepdim=True) * x.detach() - plan @ y)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("marginals", "message"),
    [
        ((KL(1.0), TV(1.0)), "low-rank: expected KL with KL, Exact or Free"),
        ((Partial(0.5), KL(1.0)), "low-rank: expected KL with KL, Exact or Free"),
        (TV(torch.ones(6, dtype=torch.float64)), "low-rank: expected marginals with one parameter for all points"),
        (KL(torch.tensor(1.0, dtype=torch.float64, requires_grad=True)), "whose parameters need no gradient"),
    ],
    ids=str,
)
def test_refusals(marginals, message):
    with pytest.raises(InvalidInput, match=message):
        solve(cloud(6, 2, 1), cloud(6, 2, 2), marginals=marginals, solver="low-rank")


def test_hierarchical_still_needs_exact_marginals():
    with pytest.raises(InvalidInput, match="hierarchical: expected exact marginals"):
        solve(cloud(6, 2, 1), cloud(6, 2, 2), marginals=TV(1.0), solver=brenier.solvers.Hierarchical())
