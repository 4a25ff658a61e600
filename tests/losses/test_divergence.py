"""The Sinkhorn divergence: known values, what it promises at equality and near it, its gradients, and POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import brenier
from brenier import KL, TV, Exact, Grid, Implicit, InvalidInput, NotConvergedWarning, Partial, Relative
from brenier.costs import Lp
from brenier.losses import SinkhornDivergence, Warm, energy_distance, sinkhorn_divergence
from problems import assert_close, cloud, entropic, weights

X, Y = cloud(6, 2, 1), cloud(7, 2, 2) + 0.3
A, B = weights(6, 3), weights(7, 4)


def divergence(*args: Any, **options: Any) -> Tensor:
    return sinkhorn_divergence(*args, **{"epsilon": 0.5, "tol": 1e-10, **options}).value


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


# -- known answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 50.0])
def test_of_a_translation_it_is_the_square_of_its_length(epsilon: float) -> None:
    t = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert_close(divergence(X, X + t, epsilon=epsilon), 5.0, rtol=1e-8)


def test_it_is_what_the_dense_oracle_says() -> None:
    def transport(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> float:
        cost = torch.cdist(x, y).square().numpy()
        return entropic(cost, a.numpy(), b.numpy(), 0.5).value

    expected = transport(X, Y, A, B) - transport(X, X, A, A) / 2 - transport(Y, Y, B, B) / 2
    assert_close(divergence(X, Y, A, B), expected, rtol=1e-9)
    assert_close(divergence(X, Y, A, B, debiased=False), transport(X, Y, A, B), rtol=1e-9)


def test_unbalanced_it_has_the_term_of_the_masses() -> None:
    a, b, eps, rho = 2 * A, 0.7 * B, 0.5, 1.5

    def transport(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> float:
        cost = torch.cdist(x, y).square().numpy()
        return entropic(cost, a.numpy(), b.numpy(), eps, (rho, rho)).value

    expected = transport(X, Y, a, b) - transport(X, X, a, a) / 2 - transport(Y, Y, b, b) / 2 + eps / 2 * 1.3**2
    assert_close(divergence(X, Y, a, b, marginals=KL(rho)), expected, rtol=1e-8)


def test_its_limits_are_transport_and_the_energy_distance() -> None:
    assert_close(divergence(X, Y, A, B, epsilon=1e-3), brenier.solve(X, Y, a=A, b=B).value, rtol=2e-2)
    far = divergence(X, Y, A, B, epsilon=1e4, cost="euclidean", tol=1e-12)
    assert_close(far, energy_distance(X, Y, A, B) / 2, rtol=1e-3)


def test_against_pot() -> None:
    found = divergence(X, Y, A, B)
    expected = ot.bregman.empirical_sinkhorn_divergence(
        X.numpy(), Y.numpy(), 0.5, a=A.numpy(), b=B.numpy(), stopThr=1e-12, numIterMax=100_000
    )
    # its values are <P, C> alone
    linear = [brenier.solve(u, v, a=p, b=q, epsilon=0.5, tol=1e-11).linear_value
              for u, v, p, q in ((X, Y, A, B), (X, X, A, A), (Y, Y, B, B))]  # fmt: skip
    assert_close(linear[0] - (linear[1] + linear[2]) / 2, max(float(np.asarray(expected).squeeze()), 0), rtol=1e-6)
    assert found > 0


# -- what it promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marginals", [Exact(), KL(1.0), TV(1.0)], ids=["exact", "KL", "TV"])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cityblock"])
def test_at_equality_value_and_gradient_are_zero_to_the_last_bit(cost: str, marginals: Any, dtype: torch.dtype) -> None:
    x, y = (leaf(X.to(dtype)) for _ in range(2))
    a, b = (leaf(A.to(dtype)) for _ in range(2))
    value = sinkhorn_divergence(x, y, a, b, epsilon=0.3, cost=cost, marginals=marginals).value
    assert float(value.detach()) == 0
    for gradient in torch.autograd.grad(value, (x, y, a, b)):
        assert not gradient.any()


def test_items_of_a_batch_that_are_equal_have_no_gradient() -> None:
    x, y = leaf(cloud(5, 2, 0, 3)), cloud(5, 2, 1, 3)
    y[1] = x[1].detach()
    value = sinkhorn_divergence(x, y, epsilon=0.5).value
    value.sum().backward()
    assert float(value[1].detach()) == 0
    assert not x.grad[1].any()
    assert x.grad[[0, 2]].abs().amax((-2, -1)).min() > 1e-3


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("marginals", [Exact(), KL(0.5)], ids=["exact", "KL"])
def test_it_is_not_negative_near_equality(epsilon: float, marginals: Any) -> None:
    for seed in range(4):
        noise = cloud(40, 2, seed + 50)
        x = cloud(40, 2, seed)
        for size in (1e-8, 1e-5, 1e-2):
            value = float(sinkhorn_divergence(x, x + size * noise, epsilon=epsilon, marginals=marginals).value)
            assert value > -1e-13
            assert value < 10 * size**2 + 1e-12


def test_in_float32_nothing_but_rounding_is_negative() -> None:
    x, noise = cloud(300, 2, 1).float(), cloud(300, 2, 2).float()
    for epsilon in (0.01, 0.3, 10.0):
        for size in (1e-6, 1e-4):
            found = sinkhorn_divergence(x, x + size * noise, epsilon=epsilon)
            assert found.ok
            assert found.value > -1e-6 * found.cross.dual_value.abs()


def test_of_the_same_measure_in_another_order_it_is_zero() -> None:
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    x = leaf(X)
    value = divergence(x, X[order], A, A[order])
    assert abs(float(value.detach())) < 1e-12
    assert torch.autograd.grad(value, x)[0].abs().max() < 1e-8


def test_it_is_symmetric_and_convex_in_the_masses() -> None:
    assert_close(divergence(X, Y, A, B), divergence(Y, X, B, A), rtol=1e-9)
    other = weights(6, 9)
    middle = divergence(X, Y, (A + other) / 2, B)
    assert middle <= (divergence(X, Y, A, B) + divergence(X, Y, other, B)) / 2


def test_unequal_masses_are_refused_when_balanced() -> None:
    with pytest.raises(InvalidInput, match="equal total masses"):
        divergence(X, Y, 2 * A, B)


# -- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", Lp(1.5)], ids=str)
def test_gradient_in_the_points(cost: Any) -> None:
    assert gradcheck(lambda x, y: divergence(x, y, A, B, cost=cost), (leaf(X), leaf(Y)), atol=1e-6)


def test_gradient_in_masses_epsilon_and_rho() -> None:
    def balanced(u: Tensor, v: Tensor, eps: Tensor) -> Tensor:
        return divergence(X, Y, u.softmax(-1), v.softmax(-1), epsilon=eps.exp())

    def unbalanced(a: Tensor, b: Tensor, eps: Tensor, rho: Tensor) -> Tensor:
        return divergence(X, Y, a, b, epsilon=eps.exp(), marginals=KL(rho.exp()))

    eps, rho = (leaf(torch.tensor(t, dtype=torch.float64)) for t in (-0.5, 0.3))
    assert gradcheck(balanced, (leaf(A.log()), leaf(B.log()), eps), atol=1e-6)
    assert gradcheck(unbalanced, (leaf(1.5 * A), leaf(B), eps, rho), atol=1e-6)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_second_derivatives_with_the_implicit_adjoint(cost: str) -> None:
    def value(x: Tensor, y: Tensor) -> Tensor:
        return divergence(x, y, A[:4] / A[:4].sum(), epsilon=0.8, cost=cost, adjoint=Implicit(), tol=1e-12)

    assert gradcheck(value, (leaf(X[:4]), leaf(Y[:3])), atol=1e-6)
    assert gradgradcheck(value, (leaf(X[:4]), leaf(Y[:3])), atol=1e-5)


def test_the_curvature_at_equality_is_positive() -> None:
    x = X[:4]

    def gradient(z: Tensor) -> Tensor:
        value = divergence(z, x, epsilon=0.5, adjoint=Implicit(), tol=1e-12)
        return torch.autograd.grad(value, z, create_graph=True)[0]

    z = leaf(x)
    first = gradient(z)
    assert first.abs().max() < 1e-9
    direction = cloud(4, 2, 8)
    (product,) = torch.autograd.grad((first * direction).sum(), z)
    assert (product * direction).sum() > 1e-3


def test_gradient_of_images() -> None:
    grid = Grid(3, 4)
    u, v = cloud(12, 1, 5).squeeze(-1), cloud(12, 1, 6).squeeze(-1)

    def value(u: Tensor, v: Tensor) -> Tensor:
        return divergence(grid, None, u.softmax(-1), v.softmax(-1), epsilon=1.0)

    assert gradcheck(value, (leaf(u), leaf(v)), atol=1e-6)
    a, b = u.softmax(-1), v.softmax(-1)
    assert_close(value(u, v), divergence(grid.points, grid.points, a, b, epsilon=1.0), rtol=1e-8)
    axis = leaf(torch.tensor([0.0, 0.8, 2.0], dtype=torch.float64))
    assert gradcheck(lambda t: divergence(Grid(t, 4), None, a, b, epsilon=1.0), (axis,), atol=1e-6)


# -- batches, lists, warm starts ---------------------------------------------------------------------------------


def test_a_batch_is_its_items() -> None:
    x, y = cloud(5, 2, 1, 3), cloud(6, 2, 2, 3)
    eps = torch.tensor([0.2, 0.5, 2.0], dtype=torch.float64)
    one_by_one = [float(divergence(u, v, epsilon=float(e))) for u, v, e in zip(x, y, eps)]
    assert_close(divergence(x, y, epsilon=eps), one_by_one, rtol=1e-7)
    shared = [float(divergence(x[0], v)) for v in y]
    assert_close(divergence(x[0], y), shared, rtol=1e-7)
    assert_close(divergence(x[0], y, epsilon=Relative(0.1)),
                 [float(divergence(x[0], v, epsilon=Relative(0.1))) for v in y], rtol=1e-7)  # fmt: skip


def test_clouds_of_different_sizes() -> None:
    xs, ys = [leaf(cloud(n, 2, n)) for n in (4, 7)], [cloud(m, 2, m + 20) for m in (7, 3)]
    a = [weights(4, 1), weights(7, 2)]
    values = divergence(xs, ys, a)
    assert_close(values.detach(), [float(divergence(*t).detach()) for t in zip(xs, ys, a)], rtol=1e-7)
    found = torch.autograd.grad(values.sum(), xs)
    for k in range(2):
        (expected,) = torch.autograd.grad(divergence(xs[k], ys[k], a[k]), xs[k])
        torch.testing.assert_close(found[k], expected, rtol=1e-6, atol=1e-9)


def test_module_and_warm_starts() -> None:
    x, y = cloud(60, 2, 1), cloud(60, 2, 2)
    cold, warm = (SinkhornDivergence(epsilon=0.5, tol=1e-8, warm_start=w) for w in (False, True))
    assert list(warm.state_dict()) == []
    for step in range(3):
        moved = x + 0.002 * step
        first, again = cold.measure(moved, y), warm.measure(moved, y)
        assert_close(again.value, first.value, rtol=1e-7)
        assert again.ok
    assert again.cross.stats["n_iter"] < first.cross.stats["n_iter"]
    assert_close(warm(x[:50], y), cold(x[:50], y), rtol=1e-7)  # of other sizes: cold
    assert "warm_start=True" in repr(warm)


def test_potentials_are_the_derivative_in_the_masses() -> None:
    a = leaf(A)
    found = sinkhorn_divergence(X, Y, a, B, epsilon=0.5, tol=1e-11)
    (gradient,) = torch.autograd.grad(found.value, a)
    f, _ = found.potentials
    assert_close((gradient - gradient.mean()).numpy(), (f - f.mean()).numpy(), rtol=1e-6, atol=1e-8)


def test_float32_is_float64_to_its_precision() -> None:
    x, y = cloud(200, 3, 1), cloud(180, 3, 2)
    exact = divergence(x, y, epsilon=0.1)
    narrow = sinkhorn_divergence(x.float(), y.float(), epsilon=0.1).value
    assert narrow.dtype == torch.float32
    assert_close(narrow.double(), exact, rtol=1e-4)


# -- what is refused, and what warns -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": None}, "epsilon: expected a positive number"),
        ({"marginals": Partial(0.5)}, r"marginals: expected Exact\(\), KL\(rho\) or TV\(rho\)"),
        ({"marginals": KL(torch.ones(6, dtype=torch.float64))}, "KL rho: expected one number"),
        ({"cost": lambda x, y: (x - 2 * y).square().sum(-1)}, "symmetric"),
        ({"start": (A, B)}, "start: expected"),
        ({"y": None}, "x and y: expected two clouds"),
        ({"x": Grid(2, 3)}, "y: expected None"),
        ({"x": [X, X]}, "x and y: expected two clouds or two lists"),
        ({"x": [X, X], "y": [Y]}, "x and y: expected as many clouds"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        sinkhorn_divergence(**{"x": X, "y": Y, "epsilon": 0.5, **arguments})


def test_a_missed_tolerance_warns_or_raises() -> None:
    with pytest.warns(NotConvergedWarning):
        found = sinkhorn_divergence(X, Y, epsilon=0.5, tol=1e-12, max_iter=1)
    assert not found.ok
    with pytest.raises(brenier.NotConverged):
        sinkhorn_divergence(X, Y, epsilon=0.5, tol=1e-12, max_iter=1, throw=True)


def test_a_start_of_another_size_is_left_out() -> None:
    start = Warm(torch.zeros(3), torch.zeros(4))
    assert_close(divergence(X, Y, start=start), divergence(X, Y), rtol=1e-9)
