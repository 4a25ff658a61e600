"""Marginals: each is checked against a linear program without entropy, and against a dense convex solver with it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import xlogy

import brenier
from brenier import KL, TV, CostMatrix, Exact, Free, InvalidInput, Marginal, Partial, Slack
from brenier.marginals import Side
from problems import cloud, rng, weights

N, M = 6, 4
COST = torch.from_numpy(rng(1).uniform(size=(N, M)))
A, B = weights(N, 2), 1.3 * weights(M, 3)
RHO = torch.from_numpy(rng(4).uniform(0.2, 0.6, size=N))
SOME_HARD = torch.where(torch.arange(N) == 2, torch.inf, RHO)

PAIRS: list[tuple[Marginal, Marginal]] = [
    (Exact(), Free()),
    (Free(), Exact()),
    (Exact(), KL(0.3)),
    (KL(RHO), KL(0.3)),
    (KL(SOME_HARD), KL(0.5)),
    (TV(0.2), TV(0.25)),
    (TV(RHO), Exact()),
    (TV(0.4), Free()),
    (Partial(0.4), Partial(0.4)),
    (Partial(0.4), KL(0.3)),
    (Partial(0.7), Free()),
    (Partial(0.4, entropic=True), KL(0.3)),
    (Partial(0.4, entropic=True), Partial(0.4)),
    (Slack(0.2), Slack(0.3)),
    (Slack(RHO), Free()),
    (Exact(), Slack(0.3)),
    (KL(0.3), Slack(-0.1)),
]


def name(value: Any) -> str:
    if not isinstance(value, Marginal):
        return str(value)
    parameters = ", ".join("vector" if isinstance(v, torch.Tensor) else str(v) for v in vars(value).values())
    return f"{type(value).__name__}({parameters})"


def penalty(marginal: Marginal, r: np.ndarray, a: np.ndarray, epsilon: float | None, reference: np.ndarray) -> float:
    """phi(r | a), written anew."""
    if isinstance(marginal, KL):
        rho = np.broadcast_to(np.asarray(marginal.rho, dtype=float), r.shape)
        soft = np.isfinite(rho)
        return float((rho[soft] * (xlogy(r, r / a) - r + a)[soft]).sum())
    if isinstance(marginal, TV):
        return float((np.asarray(marginal.rho) * abs(r - a)).sum())
    if isinstance(marginal, Slack) or (isinstance(marginal, Partial) and marginal.entropic):
        p = (a - r).clip(1e-300)
        out = float((np.asarray(marginal.delta) * p).sum()) if isinstance(marginal, Slack) else 0.0
        return out if epsilon is None else out + epsilon * entropy(p, reference)
    return 0.0


def entropy(p: np.ndarray, reference: np.ndarray) -> float:
    """KL(p | reference), or sum p (log p - 1) for the counting measure."""
    counting = bool((reference == 1).all())
    return float((xlogy(p, p / reference) - p + (0 if counting else reference)).sum())


def objective(P: np.ndarray, pair: tuple[Marginal, Marginal], epsilon: float | None, reference: str) -> float:
    a, b = A.numpy(), B.numpy()
    ra, rb = (a, b) if reference == "product" else (np.ones(N), np.ones(M))
    value = float((P * COST.numpy()).sum())
    if epsilon is not None:
        value += epsilon * entropy(P, np.outer(ra, rb))
    return value + penalty(pair[0], P.sum(1), a, epsilon, ra) + penalty(pair[1], P.sum(0), b, epsilon, rb)


def constraints(pair: tuple[Marginal, Marginal]) -> list[optimize.LinearConstraint]:
    """What the marginals demand of P.ravel()."""
    sums = np.kron(np.eye(N), np.ones((1, M))), np.kron(np.ones((1, N)), np.eye(M))
    out = []
    for marginal, S, w in zip(pair, sums, (A.numpy(), B.numpy())):
        if isinstance(marginal, Exact):
            out.append(optimize.LinearConstraint(S, w, w))
        elif isinstance(marginal, Partial | Slack):
            out.append(optimize.LinearConstraint(S, -np.inf, w))
        elif isinstance(marginal, KL) and isinstance(marginal.rho, torch.Tensor):
            hard = np.isinf(marginal.rho.numpy())
            if hard.any():
                out.append(optimize.LinearConstraint(S[hard], w[hard], w[hard]))
        if isinstance(marginal, Partial):
            out.append(optimize.LinearConstraint(np.ones((1, N * M)), marginal.mass, marginal.mass))
    return out


def linear_optimum(pair: tuple[Marginal, Marginal]) -> float:
    """The unregularised optimum by linear programming; TV and Slack become costs of extra variables."""
    n = N * M
    cost, blocks, low, high = [COST.numpy().ravel()], [], [], []
    sums = np.kron(np.eye(N), np.ones((1, M))), np.kron(np.ones((1, N)), np.eye(M))
    width = n + 2 * (N + M)
    at = n
    for marginal, S, w in zip(pair, sums, (A.numpy(), B.numpy())):
        k = len(w)
        up, down = np.zeros(k), np.zeros(k)  # prices of mass that appears and that vanishes
        if isinstance(marginal, TV):
            up = down = np.broadcast_to(np.asarray(marginal.rho, dtype=float), (k,))
        elif isinstance(marginal, Slack):
            down, up = np.broadcast_to(np.asarray(marginal.delta, dtype=float), (k,)), np.full(k, np.inf)
        elif isinstance(marginal, Partial):
            up = np.full(k, np.inf)
            blocks.append(np.pad(np.ones((1, n)), ((0, 0), (0, width - n))))
            low.append(marginal.mass)
            high.append(marginal.mass)
        elif isinstance(marginal, Exact):
            up = down = np.full(k, np.inf)
        row = np.zeros((k, width))
        row[:, :n] = S
        row[:, at : at + k] = -np.diag(np.isfinite(up).astype(float))
        row[:, at + k : at + 2 * k] = np.diag(np.isfinite(down).astype(float))
        cost += [np.where(np.isfinite(up), up, 0), np.where(np.isfinite(down), down, 0)]
        blocks.append(row)
        low, high = [*low, *w], [*high, *w]
        at += 2 * k
    matrix, target = np.concatenate(blocks), np.array(low)
    out = optimize.linprog(np.concatenate(cost), A_eq=matrix, b_eq=target, method="highs")
    assert out.status == 0, out.message
    return float(out.fun)


@pytest.mark.parametrize("reference", ["product", "counting"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "-".join(map(name, p)))
def test_agrees_with_a_dense_convex_solver(pair: tuple[Marginal, Marginal], reference: str) -> None:
    epsilon = 0.1
    solution = brenier.solve(
        CostMatrix(COST), a=A, b=B, epsilon=epsilon, marginals=pair, reference=reference, tol=1e-11
    )
    P = solution.plan.dense().numpy()
    value = objective(P, pair, epsilon, reference)
    assert solution.status.ok
    assert float(solution.value) == pytest.approx(value, abs=1e-9)
    assert float(solution.dual_value) == pytest.approx(value, abs=1e-9)  # no gap: the plan is optimal
    for constraint in constraints(pair):
        assert (constraint.A @ P.ravel() <= constraint.ub + 1e-9).all()
        assert (constraint.A @ P.ravel() >= constraint.lb - 1e-9).all()
    # the duality above rests on formulas of ours; by convexity no feasible direction may lead down either
    limits = constraints(pair)
    for seed in range(6):
        vertex = optimize.milp(
            rng(seed).normal(size=N * M), constraints=[*limits, optimize.LinearConstraint(np.ones((1, N * M)), 0.1, 2)]
        ).x.reshape(N, M)
        for t in (1e-5, 1e-3, 0.1):
            assert objective(P + t * (vertex - P), pair, epsilon, reference) >= value - 1e-10


@pytest.mark.parametrize("reference", ["product", "counting"])
@pytest.mark.parametrize("pair", [p for p in PAIRS if not isinstance(p[0], KL) and not isinstance(p[1], KL)],
                         ids=lambda p: "-".join(map(name, p)))  # fmt: skip
def test_certificate_encloses_the_linear_optimum(pair: tuple[Marginal, Marginal], reference: str) -> None:
    optimum = linear_optimum(pair)
    wide = None
    for epsilon in (1.0, 0.1, 0.005):
        solution = brenier.solve(CostMatrix(COST), a=A, b=B, epsilon=epsilon, marginals=pair, reference=reference)
        c = solution.certificate
        assert float(c.dual) <= optimum + 1e-12
        assert float(c.primal) >= optimum - 1e-12
        assert max(float(e) for e in c.marginal_errors) < 1e-5
        wide = float(c.gap)
    assert wide is not None
    assert wide < 0.02  # closes as epsilon falls


def test_partial_meets_its_mass_exactly() -> None:
    for mass, entropic in itertools.product((0.05, 0.3, 0.9, 1.0), (False, True)):
        marginals = (Partial(mass, entropic=entropic), KL(0.5))
        solution = brenier.solve(CostMatrix(COST), a=A, b=B, epsilon=0.05, marginals=marginals, tol=1e-10)
        r = solution.plan.row_sums()
        assert float(r.sum()) == pytest.approx(mass, abs=1e-9)
        assert bool((r <= A + 1e-9).all())


def test_partial_of_everything_is_exact() -> None:
    b = B / B.sum()
    exact = brenier.solve(CostMatrix(COST), a=A, b=b, epsilon=0.05, tol=1e-10)
    for entropic in (False, True):
        partial = brenier.solve(
            CostMatrix(COST), a=A, b=b, epsilon=0.05, tol=1e-10, marginals=Partial(float(A.sum()), entropic=entropic)
        )
        assert torch.allclose(partial.plan.dense(), exact.plan.dense(), atol=1e-9)


def test_virtual_column() -> None:
    """Partial(entropic=True) is the scaling algorithm on the cost with a free column of mass sum a - mass."""
    mass, gamma, epsilon = 0.3, 1.0, 0.1
    wide = torch.cat([COST, torch.zeros(N, 1, dtype=COST.dtype)], 1)
    b = torch.cat([torch.full((M,), mass / M, dtype=COST.dtype), (A.sum() - mass).reshape(1)])
    rho = torch.cat([torch.full((M,), gamma, dtype=COST.dtype), torch.tensor([torch.inf], dtype=COST.dtype)])
    K, u, v = torch.exp(-wide / epsilon), None, torch.ones(M + 1, dtype=COST.dtype)
    for _ in range(3000):
        u = A / (K @ v)
        v = (b / (K.mT @ u)) ** (1 / (1 + epsilon / rho))
    assert u is not None
    solution = brenier.solve(
        CostMatrix(COST), a=A, b=b[:-1], epsilon=epsilon, reference="counting", tol=1e-12,
        marginals=(Partial(mass, entropic=True), KL(gamma)),
    )  # fmt: skip
    assert torch.allclose(solution.plan.dense(), (u[:, None] * K * v)[:, :-1], atol=1e-10)
    through_rho = brenier.solve(
        CostMatrix(wide), a=A, b=b, epsilon=epsilon, reference="counting", tol=1e-12, marginals=(Exact(), KL(rho))
    )
    assert torch.allclose(through_rho.plan.dense()[:, :-1], solution.plan.dense(), atol=1e-9)


def test_dustbin_identity() -> None:
    """With unit weights and the counting measure: row mass + delta u = 1, the scaling u <- 1 / (K v + delta)."""
    delta, epsilon = 1e-2, 0.5
    one_n, one_m = torch.ones(N, dtype=COST.dtype), torch.ones(M, dtype=COST.dtype)
    K, u, v = torch.exp(-COST / epsilon), one_n, one_m
    for _ in range(2000):
        u = 1 / (K @ v + delta)
        v = 1 / (K.mT @ u + delta)
    price = -epsilon * float(np.log(delta))
    solution = brenier.solve(
        CostMatrix(COST), a=one_n, b=one_m, epsilon=epsilon, marginals=Slack(price), reference="counting", tol=1e-12
    )
    assert torch.allclose(solution.plan.dense(), u[:, None] * K * v, atol=1e-9)
    f, _ = solution.potentials
    assert torch.allclose(solution.plan.row_sums() + delta * (f / epsilon).exp(), one_n, atol=1e-8)


def test_one_sided_assignment_with_an_outlier_bin() -> None:
    """Free sources and a dustbin for each target: one softmax for each column, and no iteration beyond the first."""
    outlier = torch.from_numpy(rng(7).normal(size=M))
    ones = torch.ones(M, dtype=COST.dtype)
    solution = brenier.solve(
        CostMatrix(COST), a=A, b=ones, epsilon=1.0, marginals=(Free(), Slack(outlier)), reference="counting"
    )
    scores = torch.cat([-COST, -outlier[None]], 0)
    assert torch.allclose(solution.plan.dense(), torch.softmax(scores, 0)[:-1], atol=1e-12)


def test_tv_gives_up_outliers_whole() -> None:
    x = torch.tensor([[0.0], [1.0], [50.0]], dtype=torch.float64)
    y = torch.tensor([[0.1], [1.1], [2.0]], dtype=torch.float64)
    r = brenier.solve(x, y, cost="euclidean", epsilon=0.01, marginals=TV(1.0)).plan.row_sums()
    assert torch.allclose(r[:2], torch.full((2,), 1 / 3, dtype=r.dtype), atol=1e-6)
    assert float(r[2]) < 1e-12


STIFF: list[tuple[Marginal, Marginal]] = [
    (KL(1e4), KL(1e4)),
    (Exact(), KL(1e4)),
    (Exact(), Slack(0.3)),
    (Slack(9.0), Slack(9.0)),
]


@pytest.mark.parametrize("pair", STIFF, ids=lambda p: "-".join(map(name, p)))
def test_the_translation_is_solved_for(pair: tuple[Marginal, Marginal]) -> None:
    """Alternating updates alone would need about rho / epsilon iterations, or exp(delta / epsilon)."""
    for epsilon in (0.1, 0.02):
        solution = brenier.solve(
            CostMatrix(COST), a=A, b=B, epsilon=epsilon, marginals=pair, reference="counting", tol=1e-9
        )
        assert solution.stats["n_iter"] < 300
        assert float(solution.value) == pytest.approx(float(solution.dual_value), rel=1e-8)


def test_batches_and_per_problem_masses() -> None:
    costs = torch.stack([COST, 2 * COST])
    mass = torch.tensor([0.2, 0.6], dtype=COST.dtype)
    together = brenier.solve(CostMatrix(costs), a=A, b=B, epsilon=0.1, marginals=Partial(mass), tol=1e-10)
    for k in range(2):
        alone = brenier.solve(CostMatrix(costs[k]), a=A, b=B, epsilon=0.1, marginals=Partial(float(mass[k])), tol=1e-10)
        assert float(together.value[k]) == pytest.approx(float(alone.value), abs=1e-9)


def test_zero_weights() -> None:
    a, b = A.clone(), B.clone()
    a[0] = b[1] = 0
    for pair, reference in itertools.product(PAIRS, ("product", "counting")):
        solution = brenier.solve(CostMatrix(COST), a=a, b=b, epsilon=0.2, marginals=pair, reference=reference)
        P = solution.plan.dense()
        assert bool(torch.isfinite(P).all())
        assert float(solution.dual_value) == pytest.approx(float(solution.value), abs=1e-5)
        for marginal, mass in zip(pair, (P[0], P[:, 1])):
            if marginal.dead_without_weight or reference == "product":
                assert float(mass.sum()) == 0
        assert float(solution.certificate.dual) <= float(solution.certificate.primal) + 1e-12


@pytest.mark.parametrize("counting", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "-".join(map(name, p)))
def test_proximal_step_maximises_the_dual(pair: tuple[Marginal, Marginal], counting: bool) -> None:
    s, epsilon = 0.3 * torch.from_numpy(rng(9).normal(size=N)), torch.tensor(0.2, dtype=A.dtype)
    side = Side(A, torch.ones_like(A) if counting else A, epsilon)

    def dual(f: torch.Tensor) -> float:
        return float(pair[0].dual(f, side) - (epsilon * A * ((f - s) / epsilon).exp()).sum())

    f = pair[0].prox(s, side)
    for k in range(20):
        assert dual(f + 1e-3 * torch.from_numpy(rng(k).normal(size=N))) <= dual(f) + 1e-12


PARAMETERS: list[tuple[torch.Tensor, Any]] = [
    (torch.tensor(0.3), lambda t: (KL(t), KL(0.4))),
    (RHO, lambda t: (KL(t), Exact())),
    (torch.tensor(0.25), lambda t: (TV(t), TV(0.2))),
    (RHO, lambda t: (TV(t), KL(0.4))),
    (torch.tensor(0.2), lambda t: (Slack(t), Slack(0.1))),
    (RHO, lambda t: (Slack(t), Free())),
    (torch.tensor(0.4), lambda t: (Partial(t), KL(0.4))),
    (torch.tensor(0.4), lambda t: (Partial(t, entropic=True), KL(0.4))),
]


@pytest.mark.parametrize("reference", ["product", "counting"])
@pytest.mark.parametrize(("start", "make"), PARAMETERS)
def test_gradients_in_the_parameters(start: torch.Tensor, make: Any, reference: str) -> None:
    def value(t: torch.Tensor) -> torch.Tensor:
        return brenier.solve(
            CostMatrix(COST), a=A, b=B, epsilon=0.1, marginals=make(t), reference=reference, tol=1e-12
        ).value

    t = start.double().clone().requires_grad_()
    value(t).backward()
    assert t.grad is not None
    step = 1e-5 * torch.from_numpy(np.asarray(rng(5).normal(size=tuple(start.shape))))
    numeric = float(value(start.double() + step)) - float(value(start.double() - step))
    assert 2 * float((t.grad * step).sum()) == pytest.approx(numeric, abs=2e-11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TV(0.0), "TV rho: expected a positive finite number in cost units, got 0.0."),
        (lambda: KL(torch.tensor([1.0, -1.0])), "KL rho: expected positive numbers in cost units, got a tensor of "
                                                "torch.float32 with others. Use Exact() for a hard one."),
        (lambda: Partial(-1.0), "Partial mass: expected a positive finite mass, got -1.0."),
        (lambda: Partial(1.0, entropic=2), "Partial entropic: expected True or False, got 2."),  # type: ignore[arg-type]
        (lambda: Slack(float("nan")), "Slack delta: expected a finite number in cost units, got nan."),
    ],
)  # fmt: skip
def test_bad_parameters(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (KL(RHO), "KL rho: expected a number or a tensor that broadcasts to b, shape (4,), got shape (6,)."),
        (Partial(5.0), "Partial mass: expected at most the total of a, 1, got 5."),
        ((Partial(0.5), Partial(0.4)), "marginals: expected a mass that both sides can take, got Partial(mass=0.5, "
                                       "entropic=False) with [0.5, 0.5] for a and Partial(mass=0.4, entropic=False) "
                                       "with [0.4, 0.4] for b. Change the masses, or soften a side with KL(rho)."),
        ((Slack(1.0), Exact()), "marginals: expected a mass that both sides can take, got Slack(delta=1.0) with "
                                "[0, 1] for a and Exact() with [1.3, 1.3] for b. Change the masses, or soften a side "
                                "with KL(rho)."),
    ],
)  # fmt: skip
def test_marginals_that_do_not_fit(pair: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        brenier.solve(CostMatrix(COST), a=A, b=B, epsilon=0.1, marginals=pair)
    assert str(error.value) == message


def test_bad_reference() -> None:
    with pytest.raises(InvalidInput, match="reference: expected 'product' or 'counting', got 'lebesgue'"):
        brenier.solve(CostMatrix(COST), a=A, b=B, epsilon=0.1, marginals=KL(1.0), reference="lebesgue")


@pytest.mark.parametrize(
    "marginals",
    [
        (Exact(), Free()),
        (TV(0.2), Free()),
        (TV(0.3), TV(0.2)),
        (Exact(), TV(0.1)),
    ],
    ids=str,
)
def test_a_bound_counts_points_without_weight_that_may_have_mass(marginals):
    for seed in range(10):
        x, y = cloud(6, 2, seed), cloud(5, 2, seed + 100)
        b = torch.tensor([0.0, 0.0, 0.4, 0.3, 0.3], dtype=torch.float64)
        proof = brenier.solve(x, y, b=b, marginals=marginals).certificate
        assert float(proof.dual) <= float(proof.primal) + 1e-12
        assert float(proof.gap) < 1e-9
