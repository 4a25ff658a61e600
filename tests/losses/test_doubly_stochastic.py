"""The function and the layer: what goes in and comes out, agreement with the solver, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import brenier
from brenier.errors import InvalidInput, NotConvergedWarning
from brenier.losses import DoublyStochastic, doubly_stochastic, marginal_error


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_it_is_the_entropic_plan_of_the_solver() -> None:
    scores = randn(5, 6, 6)
    plan = doubly_stochastic(scores, 0.4, tol=1e-12).plan
    solution = brenier.solve(brenier.CostMatrix(-scores), epsilon=0.4, tol=1e-11)
    torch.testing.assert_close(plan, 6 * solution.plan.dense(), rtol=1e-8, atol=1e-10)
    a, b = randn(6, seed=1).softmax(-1), randn(6, seed=2).softmax(-1)
    plan = doubly_stochastic(scores[0], 0.4, r=a, c=b, tol=1e-12).plan
    solution = brenier.solve(brenier.CostMatrix(-scores[0]), a=a, b=b, epsilon=0.4, tol=1e-11)
    torch.testing.assert_close(plan, solution.plan.dense(), rtol=1e-8, atol=1e-10)


def test_it_maximises_score_plus_entropy() -> None:
    scores = randn(4, 5, 5)
    plan = doubly_stochastic(scores, 0.7, tol=1e-12).plan

    def objective(p: torch.Tensor) -> torch.Tensor:
        return (p * scores - 0.7 * p * p.log()).sum((-1, -2))

    for seed in range(1, 4):
        other = doubly_stochastic(randn(4, 5, 5, seed=seed), 1.0, tol=1e-12).plan
        assert (objective(plan) > objective(0.99 * plan + 0.01 * other)).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    scores = randn(50, 8, 8).to(half).requires_grad_()
    wide = scores.detach().float().requires_grad_()
    plan, error, _ = doubly_stochastic(scores, 0.5, n_iter=100)
    exact, exact_error, _ = doubly_stochastic(wide, 0.5, n_iter=100)
    assert plan.dtype == half
    assert error.dtype == torch.float32
    assert torch.equal(plan, exact.to(half))
    assert torch.equal(error, exact_error)
    weight = randn(50, 8, 8, seed=1).to(half)
    (found,) = torch.autograd.grad((plan * weight).sum(), scores)
    (expected,) = torch.autograd.grad((exact * weight).sum(), wide)
    assert found.dtype == half
    assert torch.equal(found, expected.to(half))


def test_one_mass_completes_the_other() -> None:
    r = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    scores = randn(3, 4)
    scores[:, 1] = -torch.inf
    plan = doubly_stochastic(scores, r=r, n_iter=300).plan
    torch.testing.assert_close(plan.sum(-1), r)
    torch.testing.assert_close(plan.sum(-2), torch.tensor([2.0, 0.0, 2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(doubly_stochastic(scores.mT, c=r, n_iter=300).plan.sum(-2), r)


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_gradients_reach_a_single_mass(adjoint: str) -> None:
    scores, logits = randn(2, 3, 4).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    n_iter = 300 if adjoint == "implicit" else 3

    def plan(s: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return doubly_stochastic(s, r=r.exp(), n_iter=n_iter, adjoint=adjoint).plan

    assert torch.autograd.gradcheck(plan, (scores, logits))


def test_marginal_error_says_how_good() -> None:
    scores = randn(7, 5, 5, dtype=torch.float32)
    few, many = doubly_stochastic(scores, 0.5, n_iter=2), doubly_stochastic(scores, 0.5, tol=1e-6)
    torch.testing.assert_close(marginal_error(few.plan).float(), few.error, rtol=1e-4, atol=1e-6)
    assert (many.error < 2e-6).all()
    assert (few.error > many.error).all()
    assert marginal_error(torch.full((2, 3, 4), 0.25)).max() < 1e-7
    broken = torch.eye(4)
    broken[0, 0] = 0.7
    assert float(marginal_error(broken)) == pytest.approx(0.3, abs=1e-6)
    assert float(marginal_error(broken, r=broken.sum(1), c=broken.sum(0))) == 0


def test_a_missed_tolerance_warns() -> None:
    with pytest.warns(NotConvergedWarning, match=r"of 6 matrices stopped after 3 iterations"):
        out = doubly_stochastic(randn(2, 3, 8, 8), 0.05, n_iter=3, tol=1e-6)
    assert (out.n_iter == 3).all()


def test_layer_learns_its_temperature() -> None:
    layer = DoublyStochastic(epsilon=2.0, learn_epsilon=True, n_iter=50)
    scores = randn(30, 6, 6, dtype=torch.float32)
    target = doubly_stochastic(scores, 0.5, n_iter=50).plan
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        (layer(scores) - target).square().sum().backward()
        optimizer.step()
    assert float(layer.epsilon.detach()) == pytest.approx(0.5, rel=0.02)
    assert "learned" in repr(layer)
    again = DoublyStochastic(epsilon=1.0, learn_epsilon=True)
    again.load_state_dict(layer.state_dict())
    assert float(again.epsilon.detach()) == float(layer.epsilon.detach())


def test_layer_is_the_function() -> None:
    layer = DoublyStochastic(0.3, n_iter=7, adjoint="unrolled")
    scores = randn(3, 4, 5)
    assert torch.equal(layer(scores), doubly_stochastic(scores, 0.3, n_iter=7).plan)
    assert torch.equal(layer.scale(scores).error, doubly_stochastic(scores, 0.3, n_iter=7).error)
    assert torch.equal(layer.marginal_error(layer(scores)), marginal_error(layer(scores)))
    assert list(layer.parameters()) == []
    assert repr(layer) == "DoublyStochastic(epsilon=0.3, n_iter=7, tol=None, adjoint='unrolled')"


# torch's own, when it traces a differentiable function of the reference
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_layer_compiles_without_a_break() -> None:
    layer = DoublyStochastic(0.5, learn_epsilon=True)
    scores = randn(6, 4, 4, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    weight = randn(6, 4, 4, dtype=torch.float32, seed=1)
    found = [torch.autograd.grad((f(scores) * weight).sum(), (scores, layer.log_epsilon)) for f in (compiled, layer)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), {}, "scores: expected a tensor of real numbers"),
        ([[0.0]], {}, "scores: expected a tensor"),
        (torch.zeros(3), {}, "scores: expected matrices"),
        (torch.zeros(2, 0, 3), {}, "at least one row"),
        (torch.zeros(3, 3), {"epsilon": 0.0}, "epsilon: expected positive"),
        (torch.zeros(3, 3), {"epsilon": math.nan}, "epsilon: expected positive"),
        (torch.zeros(2, 3, 3), {"epsilon": torch.ones(3)}, "epsilon: expected a shape"),
        (torch.zeros(3, 3), {"adjoint": "envelope"}, "adjoint: expected one of"),
        (torch.zeros(3, 3), {"n_iter": 0}, "n_iter: expected an integer"),
        (torch.zeros(3, 3), {"tol": -1.0}, "tol: expected a positive"),
        (torch.zeros(3, 3), {"tol": 1e-3, "adjoint": "unrolled"}, "tol: expected None"),
        (torch.zeros(3, 3), {"r": torch.ones(4)}, "r: expected a shape"),
        (torch.zeros(3, 3), {"r": torch.tensor([1.0, -1.0, 1.0])}, "r: expected nonnegative"),
        (torch.zeros(3, 3), {"r": torch.ones(3), "c": 2 * torch.ones(3)}, "equal totals"),
    ],
)
def test_bad_input_is_refused(scores: torch.Tensor, arguments: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        doubly_stochastic(scores, **arguments)


def test_a_layer_needs_a_positive_temperature() -> None:
    with pytest.raises(InvalidInput, match="epsilon: expected a positive finite number"):
        DoublyStochastic(epsilon=-1.0)
