"""Gaussian transport: known answers, limits, numerical solves, POT and scikit-learn, ranks and dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

import brenier
from brenier import KL, InvalidInput
from brenier.solvers import Gaussian, gaussian_cost, gaussian_geodesic, gaussian_transport
from brenier.solvers.gaussian.matrices import overlap_of_factors, plan_matrix, root
from problems import assert_close

D = torch.float64


def spd(d: int, seed: int, *batch: int, rank: int | None = None) -> Tensor:
    A = torch.randn(*batch, d, rank or d, generator=torch.Generator().manual_seed(seed), dtype=D)
    return A @ A.mT / d


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def gaussian(d: int, seed: int, *batch: int, rank: int | None = None) -> Gaussian:
    return Gaussian(normal(seed + 100, *batch, d), spd(d, seed, *batch, rank=rank))


def nodes(mean: float, variance: float) -> tuple[Tensor, Tensor]:
    """A fine grid of the line and the masses of a Gaussian on it."""
    x = torch.linspace(-7, 7, 300, dtype=D)
    w = (-((x - mean) ** 2) / (2 * variance)).exp()
    return x.unsqueeze(-1), w / w.sum()


# -- known answers -----------------------------------------------------------------------------------------------


def test_on_the_line() -> None:
    p, q = Gaussian([1.0], [[4.0]]), Gaussian([3.0], [[9.0]])
    assert float(gaussian_cost(p, q)) == pytest.approx(4 + 1)
    plan = gaussian_transport(p, q)
    assert plan.map([[1.0], [3.0]]).flatten().tolist() == pytest.approx([3, 6])
    assert float(plan.cross_covariance) == pytest.approx(6)
    assert float(plan.linear_value) == pytest.approx(5)


def test_commuting_covariances() -> None:
    Q = torch.linalg.qr(normal(0, 5, 5))[0]
    s, t = normal(1, 5).square(), normal(2, 5).square()
    p, q = (Gaussian(torch.zeros(5, dtype=D), Q * v @ Q.mT) for v in (s, t))
    assert_close(gaussian_cost(p, q), (s.sqrt() - t.sqrt()).square().sum(), 1e-12)
    assert_close(gaussian_transport(p, q).matrix, Q * (t / s).sqrt() @ Q.mT, 1e-9)


def test_against_a_large_sample() -> None:
    p, q = gaussian(2, 0), gaussian(2, 1)
    generator = torch.Generator().manual_seed(0)
    x, y = p.sample(1000, generator), q.sample(1000, generator)
    assert float(brenier.solve(x, y).value) == pytest.approx(float(gaussian_cost(p, q)), rel=0.1)
    assert_close(Gaussian.fit(x).covariance, p.covariance, 0.2)


def test_the_map_pushes_forward() -> None:
    p, q = gaussian(4, 2, 3), gaussian(4, 3, 3)
    A = gaussian_transport(p, q).matrix
    assert_close(A @ p.covariance @ A, q.covariance, 1e-10)
    assert bool((torch.linalg.eigvalsh(A) > 0).all())
    assert_close(A @ gaussian_transport(q, p).matrix, torch.eye(4, dtype=D).expand(3, 4, 4), 1e-8)


def test_geodesic() -> None:
    p, q = gaussian(3, 4), gaussian(3, 5)
    whole = gaussian_cost(p, q).sqrt()
    for t in (0.0, 0.3, 1.0):
        middle = gaussian_geodesic(p, q, t)
        assert float(gaussian_cost(p, middle).sqrt()) == pytest.approx(t * float(whole), abs=1e-6)
        assert float(gaussian_cost(middle, q).sqrt()) == pytest.approx((1 - t) * float(whole), abs=1e-6)
    low = gaussian_geodesic(gaussian(3, 4, rank=1), q, 1.0)  # no map exists, but a plan does
    assert_close(low.covariance, q.covariance, 1e-12)


# -- POT, and numerical solves -----------------------------------------------------------------------------------


def test_as_pot() -> None:
    p, q = gaussian(4, 6), gaussian(4, 7)
    parts = (p.mean, q.mean, p.covariance, q.covariance)
    assert_close(gaussian_cost(p, q), ot.gaussian.bures_wasserstein_distance(*parts).squeeze() ** 2, 1e-9)
    A, shift = ot.gaussian.bures_wasserstein_mapping(*parts)
    x = normal(8, 6, 4)
    assert_close(gaussian_transport(p, q).map(x), x @ A + shift, 1e-8)
    measures = [gaussian(3, k) for k in range(4)]
    means, covariances = (torch.stack([getattr(g, name) for g in measures]) for name in ("mean", "covariance"))
    _, theirs = ot.gaussian.bures_wasserstein_barycenter(means, covariances, eps=1e-12, num_iter=500)
    found = brenier.solvers.gaussian_barycentre(measures)
    assert_close(found.gaussian.covariance, theirs, 1e-8)


@pytest.mark.parametrize("epsilon", [0.1, 2.0])
def test_entropic_against_a_solve(epsilon: float) -> None:
    (x, a), (_, b) = nodes(0.0, 1.0), nodes(1.0, 0.3)
    p, q = Gaussian([0.0], [[1.0]]), Gaussian([1.0], [[0.3]])
    solution = brenier.solve(x, x, a=a, b=b, epsilon=epsilon, tol=1e-9)
    plan = gaussian_transport(p, q, epsilon=epsilon)
    assert_close(plan.value, solution.value, 1e-6)
    assert_close(plan.linear_value, solution.linear_value, 1e-6)
    points = torch.tensor([[-0.5], [1.5]], dtype=D)
    assert_close(plan.map(points), solution.map(points), 1e-5)
    halves = [brenier.solve(x, x, a=w, b=w, epsilon=epsilon, tol=1e-9).value / 2 for w in (a, b)]
    assert_close(gaussian_cost(p, q, epsilon=epsilon, debiased=True), solution.value - sum(halves), 1e-6)


@pytest.mark.parametrize("rho", [0.3, 5.0])
def test_unbalanced_against_a_solve(rho: float) -> None:
    (x, a), (_, b) = nodes(0.0, 1.0), nodes(1.0, 0.3)
    p, q = Gaussian([0.0], [[1.0]]), Gaussian([1.0], [[0.3]])
    solution = brenier.solve(x, x, a=a, b=1.5 * b, epsilon=0.5, marginals=KL(rho), tol=1e-10)
    plan = gaussian_transport(p, q, epsilon=0.5, rho=rho, masses=(1.0, 1.5))
    r = solution.plan.row_sums()
    assert_close(plan.value, solution.value, 1e-7)
    assert_close(plan.linear_value, solution.linear_value, 1e-7)
    assert_close(plan.mass, r.sum(), 1e-7)
    mean = (r * x.squeeze(-1)).sum() / r.sum()
    assert_close(plan.source.mean.squeeze(), mean, 1e-6)
    assert_close(plan.source.covariance.squeeze(), (r * (x.squeeze(-1) - mean) ** 2).sum() / r.sum(), 1e-6)
    points = torch.tensor([[-0.5], [1.5]], dtype=D)
    assert_close(plan.map(points), solution.map(points), 1e-5)


def test_unbalanced_in_many_dimensions() -> None:
    """Independent coordinates: the plan is a product, and so is the mass."""
    p, q = Gaussian([0.0, 1.0], [[1.0, 0.0], [0.0, 2.0]]), Gaussian([1.0, 0.0], [[0.5, 0.0], [0.0, 0.3]])
    turn = torch.linalg.qr(normal(0, 2, 2))[0]
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.mT) for g in (p, q)]
    straight, other = gaussian_transport(p, q, epsilon=0.5, rho=1.0), gaussian_transport(*turned, epsilon=0.5, rho=1.0)
    assert_close(straight.value, other.value, 1e-12)
    lines = ([Gaussian(g.mean[k : k + 1], g.covariance[k : k + 1, k : k + 1]) for g in (p, q)] for k in range(2))
    parts = [gaussian_transport(*line, epsilon=0.5, rho=1.0) for line in lines]
    assert_close(straight.source.mean, torch.cat([s.source.mean for s in parts]), 1e-12)
    assert_close(straight.mass, parts[0].mass * parts[1].mass, 1e-12)


# -- limits ------------------------------------------------------------------------------------------------------


def test_small_and_large_epsilon() -> None:
    p, q = gaussian(3, 9), gaussian(3, 10)
    exact = gaussian_cost(p, q)
    assert_close(gaussian_cost(p, q, epsilon=1e-9), exact, 1e-7)
    independent = (p.mean - q.mean).square().sum() + p.trace() + q.trace()
    assert_close(gaussian_cost(p, q, epsilon=1e9), independent, 1e-7)
    assert_close(gaussian_transport(p, q, epsilon=1e-9).matrix, gaussian_transport(p, q).matrix, 1e-6)
    apart = (p.mean - q.mean).square().sum()
    assert_close(gaussian_cost(p, q, epsilon=1e9, debiased=True), apart, 1e-7)
    assert_close(gaussian_cost(p, q, epsilon=1e-9, debiased=True), exact, 1e-7)
    hard = gaussian_transport(p, q, epsilon=0.5)
    soft = gaussian_transport(p, q, epsilon=0.5, rho=1e8)
    assert_close(soft.value, hard.value, 1e-5)
    assert_close(soft.source.covariance, p.covariance, 1e-5)


# -- gradients ---------------------------------------------------------------------------------------------------


def symmetric(S: Tensor) -> Tensor:
    return (S + S.mT) / 2


@pytest.mark.parametrize("epsilon", [None, 0.7])
def test_gradients(epsilon: float | None) -> None:
    m, n = normal(0, 2, 3).unbind()
    parts = [t.requires_grad_() for t in (m, n, spd(3, 1), spd(3, 2))]

    def cost(m: Tensor, n: Tensor, S: Tensor, T: Tensor) -> Tensor:
        return gaussian_cost(Gaussian.of(m, symmetric(S)), Gaussian.of(n, symmetric(T)), epsilon=epsilon)

    assert torch.autograd.gradcheck(cost, parts)
    e = torch.tensor([0.7, 0.2], dtype=D, requires_grad=True)
    both = [torch.stack([p.detach(), 2 * p.detach()]).requires_grad_() for p in parts[2:]]
    assert torch.autograd.gradcheck(lambda S, T, e: plan_matrix(symmetric(S), symmetric(T), e), (*both, e))
    assert torch.autograd.gradcheck(lambda S: root(symmetric(S)), both[:1])


def test_gradients_of_unbalanced_transport() -> None:
    parts = [t.requires_grad_() for t in (spd(2, 1), spd(2, 2), torch.tensor(1.5, dtype=D), torch.tensor(0.4, dtype=D))]

    def value(S: Tensor, T: Tensor, rho: Tensor, epsilon: Tensor) -> Tensor:
        p, q = Gaussian.of(normal(0, 2), symmetric(S)), Gaussian.of(normal(1, 2), symmetric(T))
        return gaussian_transport(p, q, epsilon=epsilon, rho=rho).value

    assert torch.autograd.gradcheck(value, parts)


def test_gradients_of_low_rank_forms() -> None:
    d = 9
    F, G = normal(0, d, 1).requires_grad_(), normal(1, d, 1).requires_grad_()
    left, right = ((normal(k, d).square() + 0.2).requires_grad_() for k in (2, 3))
    e = torch.tensor(0.4, dtype=D, requires_grad=True)
    zero = torch.zeros(d, dtype=D)

    def cost(F: Tensor, left: Any, G: Tensor, right: Any, e: Tensor | None) -> Tensor:
        return gaussian_cost(Gaussian.low_rank(zero, F, left), Gaussian.low_rank(zero + 1, G, right), epsilon=e)

    assert torch.autograd.gradcheck(cost, (F, left, G, right, e), fast_mode=True)
    assert torch.autograd.gradcheck(lambda F, G: cost(F, 0.3, G, 0.7, None), (F, G))


@pytest.mark.parametrize("rank", [1, 3, 0])
def test_equal_arguments_and_missing_rank(rank: int) -> None:
    S = spd(3, 0, rank=rank) if rank else torch.zeros(3, 3, dtype=D)
    S.requires_grad_()
    m = torch.zeros(3, dtype=D, requires_grad=True)
    value = gaussian_cost(Gaussian.of(m, S), Gaussian.of(m.detach(), S.detach()))
    value.backward()
    assert 0 <= float(value.detach()) < 1e-13
    assert S.grad is not None
    assert bool(S.grad.isfinite().all())
    if rank == 3:
        assert float(S.grad.abs().max()) < 1e-6
    # to another Gaussian of another rank, against the formula by singular values
    T = spd(3, 1, rank=2)
    value = gaussian_cost(Gaussian.of(m, S), Gaussian.of(m.detach() + 1, T))
    (gradient,) = torch.autograd.grad(value, S)
    assert bool(gradient.isfinite().all())
    nuclear = torch.linalg.svdvals(root(S.detach()) @ root(T)).sum()
    assert_close(value, 3 + S.detach().trace() + T.trace() - 2 * nuclear, 1e-12)


# -- low rank, many dimensions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "diagonals", [(None, None), (0.0, 1.0), (0.5, 2.0), (None, "varies"), ("varies", "varies")], ids=str
)
@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_low_rank_forms_are_exact(diagonals: tuple[Any, Any], epsilon: float | None) -> None:
    d = 40
    parts = []
    for k, diagonal in enumerate(diagonals):
        D_k = normal(k, 2, d).square() + 0.01 if diagonal == "varies" else diagonal
        parts.append(Gaussian.low_rank(normal(k + 5, d), normal(k + 10, 2, d, 3 - k), D_k))
    p, q = parts
    dense = [Gaussian(g.mean, g.covariance) for g in parts]
    assert_close(gaussian_cost(p, q, epsilon=epsilon), gaussian_cost(*dense, epsilon=epsilon), 1e-10)
    v = normal(30, 2, d, 4)
    assert_close(p.apply(v), p.covariance @ v, 1e-12)
    assert_close(p.trace(), dense[0].trace(), 1e-12)
    if "varies" not in diagonals:
        plan, full = gaussian_transport(p, q, epsilon=epsilon), gaussian_transport(*dense, epsilon=epsilon)
        x = p.mean.unsqueeze(-2) + p.apply(v).mT  # in the range of the covariance
        assert_close(plan.map(x), full.map(x), 1e-6)
        assert_close(plan.linear_value, full.linear_value, 1e-9)
    if diagonals == (None, None):
        middle, other = (gaussian_geodesic(*pair, 0.3) for pair in (parts, dense))
        assert middle.factor is not None
        assert_close(middle.covariance, other.covariance, 1e-9)


def test_ten_thousand_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    d, seen = 10_000, []
    record = torch.Tensor.__matmul__

    def recorded(left: Tensor, right: Tensor) -> Tensor:
        out = record(left, right)
        seen.append(out.numel())
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", recorded)
    F, G = normal(0, d, 4), normal(1, d, 3)
    m = torch.zeros(d, dtype=D)
    for left, right in ((None, None), (1.0, 1.0), (normal(2, d).square() + 0.1, normal(3, d).square() + 0.1)):
        p, q = Gaussian.low_rank(m, F, left), Gaussian.low_rank(m, G, right)
        value = gaussian_cost(p, q)
        assert 0 < float(value) < float(p.trace() + q.trace())
        with pytest.raises(InvalidInput, match="4096"):
            _ = p.covariance
    plain = Gaussian.low_rank(m, F), Gaussian.low_rank(m, G)
    middle = gaussian_geodesic(*plain, 0.5)
    assert float(gaussian_cost(plain[0], middle)) == pytest.approx(float(gaussian_cost(*plain)) / 4)
    assert gaussian_transport(*plain).map(F.mT).shape == (4, d)
    assert brenier.solvers.gaussian_barycentre(plain).gaussian.factor.shape[0] == d
    assert max(seen) <= 40 * d  # nothing d x d


# -- fits --------------------------------------------------------------------------------------------------------


def test_fit_as_scikit_learn() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    x = normal(0, 20, 6) @ spd(6, 1) + 3
    for shrinkage, estimator in (
        (None, covariance.EmpiricalCovariance()),
        ("ledoit-wolf", covariance.LedoitWolf()),
        ("oas", covariance.OAS()),
        (0.1, covariance.ShrunkCovariance(shrinkage=0.1)),
    ):
        theirs = estimator.fit(x.numpy())
        ours = Gaussian.fit(x, shrinkage=shrinkage)
        assert_close(ours.covariance, torch.from_numpy(theirs.covariance_), 1e-12)
        assert_close(ours.mean, torch.from_numpy(theirs.location_), 1e-12)


def test_fit_with_masses() -> None:
    x, a = normal(0, 5, 3), torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0], dtype=D)
    repeated = x[[0, 1, 1, 3, 4]]
    assert_close(Gaussian.fit(x, a).covariance, Gaussian.fit(repeated).covariance, 1e-12)
    assert_close(Gaussian.fit(x, a).mean, torch.from_numpy(np.average(x.numpy(), 0, a.numpy())), 1e-12)
    many = normal(1, 3, 5000).float()
    fitted = Gaussian.fit(many, shrinkage="oas")
    assert fitted.factor is not None
    assert fitted.factor.shape == (5000, 3)
    assert fitted.dtype == torch.float32


# -- kinds and errors --------------------------------------------------------------------------------------------


def test_dtype_and_batches(dtype: torch.dtype) -> None:
    p = Gaussian(normal(0, 5, 1, 3).to(dtype), spd(3, 0, 5, 1).to(dtype))
    q = Gaussian(normal(1, 4, 3).to(dtype), spd(3, 1).to(dtype))
    value = gaussian_cost(p, q, epsilon=0.1)
    assert value.shape == (5, 4)
    assert value.dtype == dtype
    plan = gaussian_transport(p, q, epsilon=0.1, rho=2.0)
    assert plan.value.shape == (5, 4)
    one = gaussian_transport(p.item((2, 0)), q.item(3), epsilon=0.1, rho=2.0)
    assert_close(plan.value[2, 3], one.value, 1e-4)
    assert gaussian_geodesic(p, q, 0.5).covariance.dtype == dtype
    assert p.sample(7).shape == (5, 1, 7, 3)


def test_refusals() -> None:
    p = gaussian(2, 0)
    low = Gaussian.low_rank(torch.zeros(5000), torch.ones(5000, 1), torch.rand(5000).round())
    bad: list[Any] = [
        lambda: Gaussian([0.0], [[1.0, 0.0], [0.0, 1.0]]),
        lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]),
        lambda: Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]),
        lambda: Gaussian([math.nan], [[1.0]]),
        lambda: Gaussian.low_rank([0.0], [[1.0]], -1.0),
        lambda: Gaussian.fit(torch.ones(3, 2), shrinkage=2.0),
        lambda: Gaussian.fit(torch.ones(3, 2), shrinkage="ledoit"),
        lambda: gaussian_cost(p, gaussian(3, 0)),
        lambda: gaussian_cost(p, p, debiased=True),
        lambda: gaussian_cost(p, p, epsilon=-1.0),
        lambda: gaussian_transport(p, p, rho=1.0),
        lambda: gaussian_geodesic(p, p, 1.5),
        lambda: gaussian_cost(p, "q"),  # type: ignore[arg-type]
        lambda: gaussian_cost(low, low),
        lambda: gaussian_transport(p, p).map(torch.ones(1, 3)),
    ]
    for call in bad:
        with pytest.raises(InvalidInput):
            call()


def test_the_quadrature_is_exact_at_extreme_scales() -> None:
    d = 30
    F, G, left, right = normal(0, d, 2), normal(1, d, 1), normal(2, d).square() + 0.1, normal(3, d).square() + 0.1
    for scale in (1e-6, 1.0, 1e6):
        e = torch.zeros((), dtype=D)
        found = overlap_of_factors(F * scale**0.5, left * scale, G, right, e)
        base = overlap_of_factors(F, left, G, right, e)
        assert_close(found / scale**0.5, base, 1e-12)
