"""The envelope gradients of `solution.value`, against finite differences of whole solves in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import brenier
from brenier import KL, CostMatrix, Exact, Grid, Marginal
from problems import COST, assert_close, cloud, rng, weights

N, M = 4, 5
X, Y = cloud(N, 2, 1), cloud(M, 2, 2)
SOFT: dict[str, Any] = {
    "Exact": (Exact(), Exact()),
    "KL": (KL(2.0), KL(3.0)),
    "KL, Exact": (KL(2.0), Exact()),
    "Exact, KL": (Exact(), KL(2.0)),
}


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def _check(function: Callable[..., Tensor], *tensors: Tensor) -> None:
    assert gradcheck(function, tuple(map(leaf, tensors)), atol=1e-6, rtol=1e-4)


def _entropic(*args: Any, epsilon: Any = 0.8, **options: Any) -> Tensor:
    value: Tensor = brenier.solve(*args, epsilon=epsilon, tol=1e-12, max_iter=20_000, **options).value
    return value


@pytest.mark.parametrize("name", [n for n, c in COST.items() if n != "GraphGeodesic"])
def test_entropic_in_the_points(name: str) -> None:
    _check(lambda x, y: _entropic(x, y, b=weights(M), cost=COST[name].given(2)), X, Y)


@pytest.mark.parametrize("marginals", SOFT)
def test_entropic_in_everything_else(marginals: str) -> None:
    """In C and epsilon, and in a and b along directions that keep the mass."""
    pair: tuple[Marginal, Marginal] = SOFT[marginals]

    def value(C: Tensor, u: Tensor, v: Tensor, eps: Tensor) -> Tensor:
        return _entropic(CostMatrix(C), a=1.5 * u.softmax(-1), b=1.5 * v.softmax(-1), epsilon=eps.exp(), marginals=pair)

    C, u, v = (torch.from_numpy(rng(k).normal(size=s)) for k, s in enumerate([(N, M), (N,), (M,)]))
    _check(value, C, u, v, torch.tensor(-0.3).double())


def test_soft_masses_are_free() -> None:
    def value(a: Tensor, b: Tensor) -> Tensor:
        return _entropic(X, Y, a=a, b=b, marginals=KL(2.0))

    _check(value, 3 * weights(N), weights(M))


def test_exact() -> None:
    def points(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        value: Tensor = brenier.solve(x, y, a=u.softmax(-1), b=v.softmax(-1)).value
        return value

    u, v = (torch.from_numpy(rng(k).normal(size=s)) for k, s in enumerate([N, M]))
    _check(points, X, Y, u, v)
    C = torch.from_numpy(rng(5).normal(size=(N, M)))
    _check(lambda C: brenier.solve(CostMatrix(C), a=weights(N), b=weights(M)).value, C)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "dot", "Lp(2, power 3)", "Mahalanobis"])
def test_on_the_line(cost: str) -> None:
    def value(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        out = brenier.solve(x, y, a=u.softmax(-1), b=v.softmax(-1), cost=COST[cost].given(1))
        assert out.stats["solver"] == "monotone"
        result: Tensor = out.value
        return result

    u, v = (torch.from_numpy(rng(k).normal(size=s)) for k, s in enumerate([N, M]))
    _check(value, cloud(N, 1, 1), cloud(M, 1, 2), u, v)


def test_batch() -> None:
    x, eps = cloud(N, 2, 3, 2), torch.tensor([0.5, 1.0]).double()
    _check(lambda x, e: _entropic(x, Y, epsilon=e), x, eps)
    _check(lambda x: brenier.solve(x, Y, b=weights(M)).value, x)


def test_grid() -> None:
    def value(u: Tensor, v: Tensor, eps: Tensor) -> Tensor:
        return _entropic(Grid([0.0, 1.0, 1.5], [0.0, 0.7]), a=u.softmax(-1), b=v.softmax(-1), epsilon=eps)

    u, v = (torch.from_numpy(rng(k).normal(size=6)) for k in (0, 1))
    _check(value, u, v, torch.tensor(0.6).double())


@pytest.mark.parametrize("geometry", ["points", "grid"])
def test_zero_weights_give_finite_gradients(geometry: str) -> None:
    """-inf log-weights times epsilon must not turn the gradients into NaN."""
    grid = geometry == "grid"
    size = 6 if grid else N
    b = weights(6 if grid else M, 1, zeros=3)  # the second row of the grid is empty
    a, b, eps = leaf(weights(size, 2, zeros=1)), leaf(b), torch.tensor(0.6).double().requires_grad_()
    inputs = (Grid(2, 3),) if grid else (leaf(X), Y)
    solution = brenier.solve(*inputs, a=a, b=b, epsilon=eps, tol=1e-12)
    solution.value.backward()
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in (a, b, eps))
    with torch.no_grad():
        up, down = (_entropic(*inputs, a=a, b=b, epsilon=float(eps) + h) for h in (1e-4, -1e-4))
    assert_close(eps.grad, (up - down) / 2e-4, 1e-5)


def test_gradient_in_the_weights_is_the_potential() -> None:
    a, b = leaf(weights(N)), leaf(weights(M, 1))
    solution = brenier.solve(X, Y, a=a, b=b)
    solution.value.backward()
    f, g = solution.potentials
    assert a.grad is not None
    assert b.grad is not None
    assert_close(a.grad - a.grad[0], f - f[0], atol=1e-9)
    assert_close(b.grad - b.grad[0], g - g[0], atol=1e-9)


def test_gradient_keeps_dtype_and_half_precision_flows_back() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = X.to(dtype).requires_grad_()
        brenier.solve(x, Y.to(dtype), epsilon=1.0).value.backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()


def test_no_history_where_none_is_asked() -> None:
    assert not brenier.solve(X, Y, epsilon=1.0).value.requires_grad
    with torch.no_grad():
        assert not brenier.solve(leaf(X), Y, epsilon=1.0).value.requires_grad
    solution = brenier.solve(leaf(X), Y, epsilon=1.0)
    assert solution.value.requires_grad
    assert not any(t.requires_grad for t in (*solution.potentials, solution.plan.dense(), solution.linear_value))


def test_a_wrong_gradient_is_caught() -> None:
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        _check(lambda x: _entropic(x, Y) + (x - x.detach()).sum(), X)
