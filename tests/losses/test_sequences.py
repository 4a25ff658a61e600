"""Order-preserving transport: the paper's formula, what order does, batches, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from brenier import InvalidInput
from brenier.losses import Ordered, order_preserving_wasserstein
from problems import assert_close, cloud, entropic, weights

X, Y = cloud(5, 2, 1), cloud(7, 2, 2)


def formula(x: torch.Tensor, y: torch.Tensor, a: Any, b: Any, epsilon: float, order: float, width: float) -> float:
    """The minimum, from the scaling K = Q exp((order s - d) / eps) of the paper."""
    n, m = len(x), len(y)
    i, j = np.arange(1, n + 1)[:, None] / n, np.arange(1, m + 1) / m
    apart = np.abs(i - j) / np.sqrt(1 / n**2 + 1 / m**2)
    cost = torch.cdist(x, y).square().numpy() - order / ((i - j) ** 2 + 1) + epsilon * apart**2 / (2 * width**2)
    return entropic(cost, a.numpy(), b.numpy(), epsilon).value


@pytest.mark.parametrize(("order", "width"), [(0.0, 1.0), (5.0, 0.5), (50.0, 3.0)])
def test_it_is_the_minimum_of_the_paper(order: float, width: float) -> None:
    a, b = weights(5, 3), weights(7, 4)
    found = order_preserving_wasserstein(X, Y, a, b, epsilon=0.6, order=order, width=width, tol=1e-10)
    assert_close(found, formula(X, Y, a, b, 0.6, order, width), rtol=1e-8)


def test_order_matters() -> None:
    x = torch.linspace(0, 1, 8).double()[:, None]
    same, turned = (order_preserving_wasserstein(x, z, epsilon=0.05, order=1.0) for z in (x, x.flip(0)))
    assert same + 0.1 < turned
    loose = [order_preserving_wasserstein(x, z, epsilon=0.05, order=0.0, width=1e6) for z in (x, x.flip(0))]
    assert_close(*loose, rtol=1e-6)  # without a prior it does not


def test_batches_and_lists() -> None:
    x, y = cloud(5, 2, 1, 3), cloud(4, 2, 2, 3)
    options: dict[str, Any] = {"epsilon": 0.5, "order": 2.0, "tol": 1e-9}
    expected = [float(order_preserving_wasserstein(u, v, **options)) for u, v in zip(x, y)]
    assert_close(order_preserving_wasserstein(x, y, **options), expected, rtol=1e-7)
    xs, ys = [x[0], x[1, :3]], [y[0, :2], y[1]]
    expected = [float(order_preserving_wasserstein(u, v, **options)) for u, v in zip(xs, ys)]
    assert_close(order_preserving_wasserstein(xs, ys, **options), expected, rtol=1e-7)


def test_gradient() -> None:
    x, y = (t[:4].clone().requires_grad_() for t in (X, Y))
    assert gradcheck(lambda x, y: order_preserving_wasserstein(x, y, epsilon=0.5, order=2.0, tol=1e-11), (x, y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected"),
        ({"epsilon": 0.1, "width": -1.0}, "width: expected"),
        ({"epsilon": 0.1, "order": -1.0}, "order: expected"),
        ({"epsilon": 0.1, "x": [X, X]}, "x and y: expected two clouds or two lists"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        order_preserving_wasserstein(**{"x": X, "y": Y, **arguments})
    with pytest.raises(InvalidInput, match="points with Ordered"):
        Ordered("sqeuclidean", order=0.0).check(2)
