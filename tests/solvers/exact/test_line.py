"""Transport on the line and on the circle: known answers, duals, gradients, and other solvers."""

from __future__ import annotations

import math

import ot
import pytest
import scipy.stats
import torch
from torch import Tensor

import brenier
from brenier.costs import Arc, CallableCost, Cost, Lp
from brenier.errors import InvalidInput
from brenier.geometry import CircleCloud, LineCloud, PointCloud
from brenier.losses import circle_cost, line_cost
from brenier.solvers import Circle


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def masses(*shape: int, seed: int, zeros: int = 0) -> Tensor:
    a = numbers(*shape, seed=seed).abs() + 0.01
    a[..., :zeros] = 0
    return a / a.sum(-1, keepdim=True)


def close(got: Tensor, expected: Tensor | float, tol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert float((got - expected).abs().max()) <= tol * max(1.0, float(expected.abs().max())), (got, expected)


# -- known answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_translates(p: float) -> None:
    x = numbers(4, 30, seed=0)
    close(line_cost(x, x - 0.75, cost=p), 0.75**p)
    close(line_cost(x, x, cost=p), 0.0)


def test_weighted_by_hand() -> None:
    """0.5 at 0 splits: 0.25 to 1 and 0.25 to 3; 0.5 at 2 goes to 3."""
    x, y = torch.tensor([0.0, 2.0]).double(), torch.tensor([3.0, 1.0]).double()
    a, b = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.75, 0.25]).double()
    close(line_cost(x, y, a, b, cost=1), 0.25 * 1 + 0.25 * 3 + 0.5 * 1)
    close(line_cost(x, y, a, b, cost=2), 0.25 * 1 + 0.25 * 9 + 0.5 * 1)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("angle", [0.3, -0.4])
def test_even_angles_turn(power: float, angle: float) -> None:
    x = 2 * math.pi * torch.arange(7, dtype=torch.float64) / 7
    close(circle_cost(x, x + angle, cost=Arc(power=power)), abs(angle) ** power)
    close(circle_cost(x, x + angle + 40 * math.pi, cost=Arc(power=power)), abs(angle) ** power)
    half = math.pi / 7  # half a step either way
    close(circle_cost(x, x + half, cost=Arc(power=power)), half**power)


def test_antipodes() -> None:
    x = torch.tensor([0.0, 0.5]).double()
    close(circle_cost(x[:1], x[1:], cost=Arc(1.0)), 0.5)
    close(circle_cost(x, x.flip(0), cost=Arc(1.0)), 0.0)


# -- other solvers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [1.0, 2.0, 2.5, Lp(2, 1.5), CallableCost(lambda x, y: (x - y).cosh().sum(-1), True)])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (12, 12), (15, 7)])
def test_line_cost_against_the_simplex(cost: float | Cost, n: int, m: int) -> None:
    ground = Lp(1, cost) if isinstance(cost, float) else cost
    x, y = numbers(3, n, seed=1), numbers(3, m, seed=2)
    for a, b in ((None, None), (masses(3, n, seed=3, zeros=n // 3), masses(3, m, seed=4, zeros=m // 4))):
        exact = brenier.solve(x.unsqueeze(-1), y.unsqueeze(-1), a=a, b=b, cost=ground, solver="network-simplex")
        close(line_cost(x, y, a, b, cost=cost), exact.value)


def test_line_cost_against_scipy_and_pot() -> None:
    x, y, a, b = numbers(50, seed=1), numbers(30, seed=2), masses(50, seed=3), masses(30, seed=4)
    close(line_cost(x, y, a, b, cost=1), scipy.stats.wasserstein_distance(x, y, a, b))
    close(line_cost(x, y, a, b, cost=2), float(ot.wasserstein_1d(x.numpy(), y.numpy(), a.numpy(), b.numpy(), p=2)))


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("kind", ["even", "weights", "zeros", "whole numbers"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (5, 1), (6, 6), (30, 20)])
def test_circle_against_the_simplex(power: float, kind: str, n: int, m: int) -> None:
    x, y, a, b = numbers(3, n, seed=1, scale=5), numbers(3, m, seed=2, scale=5), None, None
    if kind == "whole numbers":
        x, y = x.round(), y.round()
    elif kind != "even":
        zeros = kind == "zeros"
        a, b = masses(3, n, seed=3, zeros=zeros * (n // 2)), masses(3, m, seed=4, zeros=zeros * (m // 3))
    cost = Arc(4.0, power)
    found = brenier.solve(x.unsqueeze(-1), y.unsqueeze(-1), a=a, b=b, cost=cost)
    exact = brenier.solve(x.unsqueeze(-1), y.unsqueeze(-1), a=a, b=b, cost=cost, solver="network-simplex")
    assert found.stats["solver"] == "circle"
    close(found.value, exact.value)
    close(circle_cost(x, y, a, b, cost=cost), exact.value)
    certificate = found.certificate
    assert float((certificate.primal - certificate.dual).abs().max()) <= 1e-13
    assert max(float(t.max()) for t in certificate.marginal_errors) <= 1e-13
    assert int((found.plan.mass > 0).sum(-1).max()) <= n + m


def test_circle_against_pot() -> None:
    x, y = numbers(40, seed=1).remainder(1), numbers(25, seed=2).remainder(1)
    for p in (1, 2):
        expected = ot.wasserstein_circle(x.numpy()[:, None], y.numpy()[:, None], p=p)
        close(circle_cost(x, y, cost=Arc(1.0, float(p))), float(expected[0]), 1e-8)


def test_arc_serves_other_solvers() -> None:
    x, y = numbers(20, seed=1, scale=5), numbers(30, seed=2, scale=5)
    soft = brenier.solve(x, y, cost=Arc(), epsilon=0.05)
    assert float(soft.certificate.dual) <= float(circle_cost(x, y)) <= float(soft.certificate.primal)


# -- hard c-transforms and certificates --------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "dot", Lp(2, 1.5), Arc(3.0, 1.0), Arc(2.0, 1.7)])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (7, 1), (64, 33), (100, 150)])
def test_hard_transforms_of_any_potential(cost: str | Cost, n: int, m: int) -> None:
    x, y = numbers(2, n, 1, seed=1, scale=3), numbers(2, m, 1, seed=2, scale=3)
    plain = PointCloud(x, y, cost)
    fast = (CircleCloud if isinstance(cost, Arc) else LineCloud)(x, y, cost)
    g = numbers(2, m, seed=3, scale=2)
    g[0, : m // 2] = -torch.inf
    for h, dim in ((g, 1), (numbers(2, n, seed=4), 0)):
        (expected, _), (values, index) = plain.cmin(h, dim), fast.cmin(h, dim)
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
        rows = torch.arange(index.shape[-1]).expand_as(index)
        at = fast.cost_at(*((rows, index) if dim else (index, rows))) - h.gather(-1, index)
        torch.testing.assert_close(at, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cost", ["euclidean", Lp(2, 3), Arc(2.0, 2.0)])
def test_certificate_of_many_points(cost: str | Cost) -> None:
    n, m = 200_000, 150_000
    x, y = numbers(n, seed=1), numbers(m, seed=2) + 0.2
    a, b = masses(n, seed=3), masses(m, seed=4)
    solution = brenier.solve(x, y, a=a, b=b, cost=cost)
    assert float(solution.certificate.relative_gap) <= 1e-10
    assert max(map(float, solution.certificate.marginal_errors)) <= 1e-14


@pytest.mark.parametrize("cost", ["sqeuclidean", Arc(1.0, 1.0)])
def test_masses_with_many_ties_add_up(cost: str | Cost) -> None:
    solution = brenier.solve(numbers(30_000, seed=1), numbers(9_000, seed=2), cost=cost)
    rows, cols = solution.plan.row_sums(), solution.plan.col_sums()
    assert float((rows - 1 / 30_000).abs().sum() + (cols - 1 / 9_000).abs().sum()) <= 1e-14


# -- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1.5, 2.0])
@pytest.mark.parametrize("m", [5, 8])
def test_gradients(weighted: bool, p: float, m: int) -> None:
    x, y = numbers(2, 5, seed=1).requires_grad_(), numbers(2, m, seed=2).requires_grad_()
    logits = [numbers(2, k, seed=s).requires_grad_() for k, s in ((5, 3), (m, 4))] if weighted else []

    def on_line(x: Tensor, y: Tensor, *logits: Tensor) -> Tensor:
        return line_cost(x, y, *(t.softmax(-1) for t in logits), cost=p)

    def on_circle(x: Tensor, y: Tensor, *logits: Tensor) -> Tensor:
        return circle_cost(x, y, *(t.softmax(-1) for t in logits), cost=Arc(3.0, p))

    assert torch.autograd.gradcheck(on_line, (x, y, *logits))
    assert torch.autograd.gradcheck(on_circle, (x, y, *logits))


@pytest.mark.parametrize("cost", ["euclidean", Arc(1.0, 1.0), Arc(1.0, 2.0)])
def test_float32_masses_add_up(cost: str | Cost) -> None:
    x, y = numbers(3000, seed=1).float(), numbers(900, seed=2).float()
    solution = brenier.solve(x, y, cost=cost)
    assert max(map(float, solution.certificate.marginal_errors)) <= 1e-12
    assert float(solution.certificate.relative_gap) <= 1e-9


def test_results_keep_dtype() -> None:
    x = numbers(3, 10, seed=1).float()
    assert line_cost(x, x + 1).dtype == circle_cost(x, x + 1).dtype == torch.float32
    assert line_cost(x, x + 1, masses(10, seed=1).float()).dtype == torch.float32


# -- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    x = numbers(4, seed=1)
    for call, message in (
        (lambda: line_cost(x, x, cost=0.5), "cost: expected a power >= 1, got 0.5"),
        (lambda: line_cost(x, x, cost=Lp(2, 0.5)), "convex in x - y"),
        (lambda: line_cost(x, x * torch.nan), "y: expected finite positions"),
        (lambda: line_cost(x, x, a=torch.ones(4).double()), "equal total masses"),
        (lambda: circle_cost(x, x, cost=Arc(power=0.5)), "power >= 1"),
        (lambda: Arc(period=0.0), "Arc period: expected a positive finite number, got 0.0"),
        (lambda: brenier.solve(numbers(4, 2, seed=1), x[:, None].expand(4, 2), cost=Arc()), "points with Arc"),
        (lambda: brenier.solve(x, x, solver=Circle()), "circle: expected the cost Arc"),
        (lambda: brenier.solve(x, x, cost=Arc(), epsilon=0.1, solver="circle"), "circle: expected epsilon=None"),
    ):
        with pytest.raises(InvalidInput, match=message.replace("(", r"\(")):
            call()
