"""Exact, partial, Gaussian and Gromov losses: known values, batches, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import brenier
from brenier import InvalidInput
from brenier.losses import exact_wasserstein, gaussian_wasserstein, gromov_loss, partial_wasserstein
from problems import KNOWN, Known, assert_close, bures, cloud, weights

X, Y = cloud(4, 2, 1), cloud(5, 2, 2)


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_exact_on_known_answers(known: Known) -> None:
    assert_close(exact_wasserstein(known.x, known.y), known.value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_exact_of_two_points(p: float) -> None:
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert_close(exact_wasserstein(x, y, p=p), 5**p, rtol=1e-6)
    assert_close(exact_wasserstein(torch.zeros(1, 1), torch.full((1, 1), 2.0), p=p), 2**p, rtol=1e-6)


def test_exact_of_a_batch_and_of_lists() -> None:
    x, y = cloud(4, 2, 1, 3), cloud(6, 2, 2, 3)
    expected = [float(brenier.solve(u, v).value) for u, v in zip(x, y)]
    assert_close(exact_wasserstein(x, y), expected, rtol=1e-9)
    xs, ys = [x[0], x[1, :3]], [y[0, :2], y[1]]
    assert_close(exact_wasserstein(xs, ys), [float(exact_wasserstein(u, v)) for u, v in zip(xs, ys)], rtol=1e-9)


def test_exact_gradients() -> None:
    a, b = weights(4, 3), weights(5, 4)
    points = (leaf(X), leaf(Y))
    for p in (1.0, 2.0, 2.5):
        assert gradcheck(lambda x, y, p=p: exact_wasserstein(x, y, a, b, p=p), points)
    assert gradgradcheck(lambda x, y: exact_wasserstein(x, y, a, b), points)
    assert gradcheck(lambda u: exact_wasserstein(X, Y, u.softmax(-1), b), (leaf(a.log()),))


def test_partial_leaves_outliers_behind() -> None:
    x, y = (torch.tensor(t, dtype=torch.float64).unsqueeze(-1) for t in ([0.0, 1.0, 99.0], [0.5, 1.5, -70.0]))
    assert_close(partial_wasserstein(x, y, mass=2 / 3), 1 / 6, rtol=1e-9)
    masses = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    batched = partial_wasserstein(torch.stack([x, x]), torch.stack([y, y]), mass=masses)
    assert_close(batched, [1 / 6, 1 / 12], rtol=1e-9)
    soft = partial_wasserstein(X, Y, mass=2 / 3, epsilon=0.5)
    assert_close(soft, brenier.solve(X, Y, marginals=brenier.Partial(2 / 3), epsilon=0.5).value, rtol=1e-9)


def test_partial_gradients() -> None:
    mass = leaf(torch.tensor(0.55, dtype=torch.float64))
    points = (leaf(X), leaf(Y))
    assert gradcheck(lambda x, y, m: partial_wasserstein(x, y, mass=m), (*points, mass))
    assert gradgradcheck(lambda x, y: partial_wasserstein(x, y, mass=0.55), points)


def test_gaussian_is_the_bures_formula() -> None:
    x, y = cloud(30, 3, 1), 2 * cloud(40, 3, 2) + 1
    assert_close(gaussian_wasserstein(x, y), bures(x.numpy(), y.numpy()), rtol=1e-9)
    batched = gaussian_wasserstein(torch.stack([x, x + 1]), y)
    assert_close(batched, [bures(x.numpy(), y.numpy()), bures(x.numpy() + 1, y.numpy())], rtol=1e-9)
    assert gaussian_wasserstein(x, y) <= exact_wasserstein(x, y)
    assert abs(float(gaussian_wasserstein(x, x, epsilon=0.5))) < 1e-12
    wide = gaussian_wasserstein(x, y, epsilon=1e-8)
    assert_close(wide, gaussian_wasserstein(x, y), rtol=1e-6)


def test_gaussian_gradients() -> None:
    x, y = leaf(cloud(7, 2, 1)), leaf(cloud(8, 2, 2))
    assert gradcheck(lambda x, y: gaussian_wasserstein(x, y), (x, y), atol=1e-6)
    assert gradcheck(lambda x, y: gaussian_wasserstein(x, y, epsilon=0.5, shrinkage=0.1), (x, y), atol=1e-6)


def test_gromov_does_not_see_rotations() -> None:
    x = cloud(6, 2, 1, 2)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert gromov_loss(x, x @ turn + 3).abs().max() < 1e-8
    other = cloud(5, 3, 4, 2)
    expected = [float(brenier.gromov_wasserstein(u, v).value) for u, v in zip(x, other)]
    assert_close(gromov_loss(x, other), expected, rtol=1e-9)
    a = weights(6, 2)
    assert_close(gromov_loss(x, other, a)[1], brenier.gromov_wasserstein(x[1], other[1], a=a).value, rtol=1e-9)
    matrices = torch.cdist(x, x).square()
    assert_close(gromov_loss(matrices, torch.cdist(other, other).square(), cost="precomputed"), expected, rtol=1e-7)


def test_gromov_gradient() -> None:
    x, y = leaf(cloud(4, 2, 1, 2)), leaf(cloud(4, 3, 2, 2))
    assert gradcheck(lambda x, y: gromov_loss(x, y), (x, y), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_wasserstein(X, Y, p=0.5), "p: expected a finite number >= 1"),
        (lambda: exact_wasserstein(X, Y, p=math.inf), "p: expected a finite number >= 1"),
        (lambda: partial_wasserstein(X, Y, mass=1.5), "Partial mass: expected at most"),
        (lambda: gromov_loss(X[None], Y), "x and y: expected the same batch axes"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()
