"""Labelled transport: label costs by hand, invariance to names, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from brenier import InvalidInput
from brenier.losses import class_costs, exact_wasserstein, labelled_wasserstein
from problems import assert_close, bures, cloud, lp_value, weights

X, Y = cloud(9, 2, 1), cloud(8, 2, 2) + 1
U, V = torch.arange(9) % 3, torch.arange(8) % 2


def groups(points: Tensor, labels: Tensor) -> list[Tensor]:
    return [points[labels == k] for k in labels.unique()]


@pytest.mark.parametrize("conditional", ["gaussian", "exact"])
def test_class_costs(conditional: str) -> None:
    found = class_costs(X, U, Y, V, conditional=conditional)
    for k, u in enumerate(groups(X, U)):
        for j, v in enumerate(groups(Y, V)):
            expected = bures(u.numpy(), v.numpy()) if conditional == "gaussian" else exact_wasserstein(u, v)
            assert_close(found[k, j], expected, rtol=1e-8)


@pytest.mark.parametrize("conditional", ["gaussian", "exact"])
def test_it_is_transport_under_both_costs(conditional: str) -> None:
    a, b = weights(9, 3), weights(8, 4)
    labels = class_costs(X, U, Y, V, a, b, conditional=conditional)
    cost = torch.cdist(X, Y).square() + 0.7 * labels[U][:, V]
    found = labelled_wasserstein(X, U, Y, V, a, b, weight=0.7, conditional=conditional)
    assert_close(found, lp_value(cost.numpy(), a.numpy(), b.numpy()), rtol=1e-7)
    assert labelled_wasserstein(X, U, Y, V, a, b, weight=0.7, conditional=conditional, epsilon=0.1) > found


def test_names_of_labels_do_not_matter() -> None:
    assert_close(labelled_wasserstein(X, U, X, 5 - U), 0.0, atol=1e-9)
    assert_close(labelled_wasserstein(X, U, Y, V), labelled_wasserstein(X, 10 - 3 * U, Y, 1 - V), rtol=1e-9)
    assert_close(labelled_wasserstein(X, U, Y, V, weight=0.0), exact_wasserstein(X, Y), rtol=1e-9)


@pytest.mark.parametrize("conditional", ["gaussian", "exact"])
def test_gradient(conditional: str) -> None:
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    for epsilon in (None, 0.5):
        assert gradcheck(
            lambda x, y, e=epsilon: labelled_wasserstein(x, U, y, V, conditional=conditional, epsilon=e),
            (x, y),
            atol=1e-4,
            rtol=1e-3,
        )


def test_gradient_in_the_masses() -> None:
    logits = weights(9, 3).log().requires_grad_()
    assert gradcheck(lambda u: labelled_wasserstein(X, U, Y, V, u.softmax(-1), epsilon=0.5), (logits,), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_costs(X, U[:3], Y, V), "labels_x: expected integers"),
        (lambda: class_costs(X, U, Y, V.double()), "labels_y: expected integers"),
        (lambda: class_costs(X, U, Y, V, conditional="mean"), "conditional: expected"),
        (lambda: class_costs(X[None], U, Y, V), "x: expected points"),
        (lambda: labelled_wasserstein(X, U, Y, V, weight=-1.0), "weight: expected"),
        (lambda: class_costs(X, U, Y, V, (U > 0).double()), "classes of x: expected some mass"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()
