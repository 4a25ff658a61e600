"""Transport with a term in the plan: derivatives, optimality, limits, and POT at equal settings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import ot
import pytest
import torch

import brenier
from brenier import CostMatrix, InvalidInput, NotConvergedWarning, PointCloud, Problem
from brenier.solvers import (
    ClassNorm,
    ClassPower,
    GeneralizedGradient,
    NetworkSimplex,
    Penalized,
    PenalizedSolution,
    Sinkhorn,
    Smoothness,
    Term,
    run,
)
from problems import cloud, weights

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])


def edges(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, tails = torch.triu_indices(n, n, 1)
    keep = torch.from_numpy(np.random.default_rng(seed).random(len(heads)) < 0.4)
    return heads[keep], tails[keep], torch.linspace(0.5, 1, int(keep.sum()), dtype=torch.float64)


def smoothness(displacement: bool = False, share: float = 0.3) -> Smoothness:
    x, y, a, b = cloud(8, 2, 1), cloud(7, 2, 2), weights(8, 3), weights(7, 4)
    return Smoothness(x, y, a, b, edges(8), edges(7, 1), share, displacement)


TERMS = [ClassNorm(LABELS), ClassPower(LABELS), smoothness(), smoothness(displacement=True)]


def problem(epsilon: float | None = 0.1) -> Problem:
    return Problem.make(PointCloud(cloud(8, 2, 1), cloud(7, 2, 2)), weights(8, 3), weights(7, 4), epsilon=epsilon)


def solved(given: Problem, term: Term, eta: float, **options: object) -> PenalizedSolution:
    solver = GeneralizedGradient(**options)  # type: ignore[arg-type]
    out = run(Penalized.of(given, term, eta), solver, answer=PenalizedSolution)
    assert isinstance(out, PenalizedSolution)
    return out


@pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
def test_gradients(term: Term) -> None:
    P = weights(56, 5).reshape(8, 7)
    P[0, 0] = 0
    term.check((8, 7))
    auto = torch.autograd.functional.jacobian(term.value, P)
    torch.testing.assert_close(term.gradient(P), auto, atol=1e-12, rtol=1e-10)
    assert float(term.value(P)) >= 0


def test_values_by_hand() -> None:
    P = torch.tensor([[3.0, 0.0], [4.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert float(ClassNorm(labels).value(P)) == 5 + 1 + 2
    assert float(ClassPower(labels, offset=1e-12).value(P)) == pytest.approx(7**0.5 + 1 + 2**0.5, abs=1e-5)
    # two sources sent to distance 3, masses 1/2, one edge of weight 1
    a, y = torch.full((2,), 0.5, dtype=torch.float64), torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    line = (torch.tensor([0]), torch.tensor([1]), torch.ones(1, dtype=torch.float64))
    one = Smoothness(y, y, a, a, line, None, 1.0)
    assert float(one.value(torch.diag(a))) == pytest.approx(0.25 * 9)
    assert float(Smoothness(y, y, a, a, line, None, 1.0, True).value(torch.diag(a))) == pytest.approx(0)


@pytest.mark.parametrize("epsilon", [0.1, None])
@pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
def test_no_strength_is_the_plain_problem(term: Term, epsilon: float | None) -> None:
    given = problem(epsilon)
    plain = brenier.solve(given.geometry, a=given.a, b=given.b, epsilon=epsilon, tol=None if epsilon is None else 1e-9)
    found = solved(given, term, 0.0)
    torch.testing.assert_close(found.plan.dense(), plain.plan.dense(), atol=1e-8, rtol=1e-6)
    assert float(found.value) == pytest.approx(float(plain.value), abs=1e-8)
    assert found.stats["n_iter"] == 1


@pytest.mark.parametrize("term", [TERMS[0], TERMS[2], TERMS[3]], ids=lambda t: type(t).__name__)
def test_convex_terms_reach_their_minimum(term: Term) -> None:
    found = solved(problem(), term, 0.5, tol=1e-9, max_iter=500)
    assert found.status.ok
    assert abs(float(found.value) - float(found.dual_value)) <= 1e-7
    assert max(float(e) for e in found.certificate.marginal_errors) < 1e-7
    other = solved(problem(), term, 0.5, tol=1e-9, max_iter=500, start=brenier.solve(
        problem().geometry, a=weights(8, 3), b=weights(7, 4), epsilon=3.0).plan)  # fmt: skip
    torch.testing.assert_close(other.plan.dense(), found.plan.dense(), atol=1e-4, rtol=0)


def test_concave_steps_never_raise_the_value() -> None:
    values = []
    with pytest.warns(NotConvergedWarning):
        run(
            Penalized.of(problem(), ClassPower(LABELS), 0.3),
            GeneralizedGradient(tol=1e-14, max_iter=8),
            answer=PenalizedSolution,
            callback=lambda _, state: values.append(state.value),  # type: ignore[func-returns-value]
        )
    assert all(later <= before + 1e-9 for before, later in pairwise(values))


def test_soft_marginals() -> None:
    given = Problem.make(PointCloud(cloud(8, 2, 1), cloud(7, 2, 2)), marginals=brenier.KL(0.5), epsilon=0.1)
    found = solved(given, ClassNorm(LABELS), 0.2, tol=1e-8, max_iter=500)
    assert float(found.dual_value) <= float(found.value) + 1e-9 <= float(found.dual_value) + 1e-6
    assert float(found.plan.row_sums().sum()) < 0.99


# -- POT at equal settings -----------------------------------------------------------------------------------


def clouds() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(c, 0.6, size=(10, 2)) for c in (0, 2)])
    return x, x[::-1] + rng.normal(0.5, 0.3, size=(20, 2)), np.repeat([0, 1], 10)


def test_group_lasso_as_pot() -> None:
    x, y, labels = clouds()
    a = np.full(20, 1 / 20)
    C, eps, eta = ot.dist(x, y), 0.5, 0.8
    theirs = ot.da.sinkhorn_l1l2_gl(
        a, labels, a, C, eps, eta, numItermax=300, numInnerItermax=20000, stopInnerThr=1e-12
    )
    given = Problem.make(CostMatrix(C), epsilon=eps)
    term = ClassNorm(torch.from_numpy(labels))
    ours = solved(given, term, eta, tol=1e-10, max_iter=1000)
    value = float(Penalized.of(given, term, eta).total(torch.from_numpy(theirs)))
    # theirs ends early, at a plan that is as near as its value tells
    assert float(ours.dual_value) - 1e-8 <= value <= float(ours.value) * (1 + 2e-4)
    np.testing.assert_allclose(ours.plan.dense().numpy(), theirs, atol=2e-3)


def test_powers_as_pot() -> None:
    x, y, labels = clouds()
    a = np.full(20, 1 / 20)
    C, eps, eta = ot.dist(x, y), 0.5, 0.1
    theirs = ot.da.sinkhorn_lpl1_mm(a, labels, a, C, eps, eta, numItermax=10, numInnerItermax=20000, stopInnerThr=1e-10)
    given = Problem.make(CostMatrix(C), epsilon=eps)
    with pytest.warns(NotConvergedWarning):
        ours = solved(given, ClassPower(torch.from_numpy(labels)), eta, tol=1e-16, max_iter=9)
    np.testing.assert_allclose(ours.plan.dense().numpy(), theirs, atol=1e-7)


# -- bad input -----------------------------------------------------------------------------------------------


def test_refusals() -> None:
    given = problem()
    term = TERMS[0]
    with pytest.raises(InvalidInput, match="eta"):
        Penalized.of(given, term, -1.0)
    with pytest.raises(InvalidInput, match="classes"):
        Penalized.of(given, ClassNorm(LABELS[:3]), 1.0)
    with pytest.raises(InvalidInput, match="Term"):
        Penalized.of(given, "l2", 1.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        ClassPower(LABELS, p=1.0)
    with pytest.raises(InvalidInput, match="share"):
        smoothness(share=2.0)
    with pytest.raises(InvalidInput, match="GeneralizedGradient"):
        run(Penalized.of(given, term, 1.0), Sinkhorn())
    with pytest.raises(InvalidInput, match="a Penalized"):
        run(given, GeneralizedGradient())
    with pytest.raises(InvalidInput, match="start"):
        solved(given, term, 1.0, start=brenier.solve(cloud(3), cloud(3)).plan)
    with pytest.raises(InvalidInput, match="new points"):
        solved(given, term, 0.1).map(cloud(3))
    assert run(problem(None), NetworkSimplex()).status.ok
