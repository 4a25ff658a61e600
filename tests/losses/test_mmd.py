"""Kernel norms: dense sums, equality, gradients of both orders, memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from brenier import InvalidInput
from brenier.losses import energy_distance, mmd
from problems import assert_close, cloud, weights

X, Y = cloud(5, 2, 1), cloud(6, 2, 2)
A, B = weights(5, 3), weights(6, 4)
KERNELS: dict[str, Any] = {
    "gaussian": lambda x, y, s: np.exp(-cdist(x, y, "sqeuclidean") / (2 * s**2)),
    "laplacian": lambda x, y, s: np.exp(-cdist(x, y) / s),
}


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def dense(kernel: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> float:
    (x, y, a, b) = (t.numpy() for t in (x, y, a, b))
    return float(a @ kernel(x, x) @ a + b @ kernel(y, y) @ b - 2 * a @ kernel(x, y) @ b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_is_the_dense_sum(kernel: str, dtype: torch.dtype) -> None:
    parts = [t.to(dtype) for t in (X, Y, A, B)]
    found = mmd(*parts, kernel=kernel, bandwidth=0.8)
    assert found.dtype == dtype
    assert_close(found.double(), dense(lambda x, y: KERNELS[kernel](x, y, 0.8), X, Y, A, B), rtol=1e-4)
    if dtype == torch.float64:
        several = [dense(lambda x, y, s=s: KERNELS[kernel](x, y, s), X, Y, A, B) for s in (0.5, 2.0)]
        assert_close(mmd(X, Y, A, B, kernel=kernel, bandwidth=[0.5, 2.0]), np.mean(several), rtol=1e-9)


def test_energy_distance_is_the_dense_sum() -> None:
    assert_close(energy_distance(X, Y, A, B), dense(lambda x, y: -cdist(x, y), X, Y, A, B), rtol=1e-9)
    means = (A @ X - B @ Y).square().sum()
    assert_close(energy_distance(X, Y, A, B, cost="sqeuclidean"), 2 * means, rtol=1e-9)


def test_at_equality_they_are_zero() -> None:
    for loss in (energy_distance, mmd):
        x = leaf(X)
        value = loss(x, X, A, A)
        assert abs(float(value.detach())) < 1e-15
        assert torch.autograd.grad(value, x)[0].abs().max() < 1e-15


def test_batches_and_lists() -> None:
    x, y = cloud(5, 2, 1, 3), cloud(6, 2, 2)
    for loss in (energy_distance, mmd):
        assert_close(loss(x, y), [float(loss(u, y)) for u in x], rtol=1e-9)
        xs, ys = [x[0], x[1, :2]], [y, y[:3]]
        assert_close(loss(xs, ys), [float(loss(u, v)) for u, v in zip(xs, ys)], rtol=1e-9)


@pytest.mark.parametrize("loss", [
    energy_distance,
    mmd,
    lambda *t: mmd(*t, kernel="laplacian", bandwidth=[0.7, 1.5]),
], ids=["energy", "gaussian", "laplacian"])  # fmt: skip
def test_gradients_of_both_orders(loss: Any) -> None:
    inputs = tuple(map(leaf, (X[:3], Y[:4], A[:3], B[:4])))
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)  # each point at distance zero of itself


def test_large_clouds_take_no_matrix() -> None:
    x, y = (leaf(cloud(20_000, 2, k).float()) for k in (1, 2))
    assert energy_distance(x.detach(), y.detach()) >= 0  # a matrix would be 1.6 GB


@pytest.mark.parametrize("arguments", [{"kernel": "cubic"}, {"bandwidth": 0.0}, {"bandwidth": []}])
def test_bad_input(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        mmd(X, Y, **arguments)
