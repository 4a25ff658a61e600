"""Soft alignments and attention: masses, masks, dustbins, heads, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from brenier import InvalidInput
from brenier.losses import OTAttention, SoftAlignment, doubly_stochastic
from problems import cloud

X, Y = cloud(4, 3, 1, 2), cloud(5, 3, 2, 2)


def test_it_is_the_scaled_product() -> None:
    found = SoftAlignment(epsilon=0.7, n_iter=200)(X, Y)
    expected = doubly_stochastic(X @ Y.mT / 3**0.5, 0.7, n_iter=200)
    assert torch.equal(found.plan, expected.plan)
    assert torch.equal(found.error, expected.error)
    assert not found.left_x.any()


def test_padding_gets_nothing_and_changes_nothing() -> None:
    padding_x, padding_y = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    padding_x[0, 3:], padding_y[0, 2:] = True, True
    for dustbin in (None, 0.3):
        layer = SoftAlignment(dustbin=dustbin, n_iter=200)
        found = layer(X, Y, padding_x=padding_x, padding_y=padding_y)
        assert not found.plan[0, 3:].any()
        assert not found.plan[0, :, 2:].any()
        alone = layer(X[0, :3], Y[0, :2])
        torch.testing.assert_close(found.plan[0, :3, :2], alone.plan, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.left_x[0, :3], alone.left_x, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.plan[1], layer(X[1], Y[1]).plan, rtol=1e-7, atol=1e-9)


def test_dustbins_take_what_is_left() -> None:
    found = SoftAlignment(dustbin=0.5, n_iter=500)(X, Y)
    torch.testing.assert_close(found.plan.sum(-1) + found.left_x, torch.ones(2, 4).double(), rtol=1e-8, atol=0)
    torch.testing.assert_close(found.plan.sum(-2) + found.left_y, torch.ones(2, 5).double(), rtol=1e-8, atol=0)
    eager, shy = (SoftAlignment(dustbin=z, n_iter=500)(X, Y).plan.sum() for z in (-5.0, 5.0))
    assert eager > found.plan.sum() > shy


def test_gradients_reach_everything() -> None:
    layer = SoftAlignment(epsilon=0.8, learn_epsilon=True, dustbin=0.2, learn_dustbin=True, n_iter=300).double()
    x, y = X[0].clone().requires_grad_(), Y[0].clone().requires_grad_()

    def plan(x: torch.Tensor, y: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        layer.score.data.copy_(score.detach())
        return torch.func.functional_call(layer, {"score": score}, (x, y)).plan

    assert gradcheck(plan, (x, y, layer.score.detach().clone().requires_grad_()), atol=1e-6)
    layer(x, y).plan.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs() > 0) for p in layer.parameters())
    assert "dustbin=0.2 (learned)" in repr(layer)


def test_attention_is_heads_of_plans_times_values() -> None:
    layer = OTAttention(6, 2, epsilon=0.9, n_iter=100).double()
    tokens = cloud(5, 6, 3, 2)
    out, plan = layer(tokens)
    assert out.shape == (2, 5, 6)
    torch.testing.assert_close(plan.sum(-1), torch.ones(2, 2, 5).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(plan.sum(-2), torch.ones(2, 2, 5).double(), rtol=1e-6, atol=0)
    q, k, v = (f(tokens).reshape(2, 5, 2, 3).permute(0, 2, 1, 3) for f in (layer.query, layer.key, layer.value))
    expected = doubly_stochastic(q @ k.mT / 3**0.5, 0.9, n_iter=100).plan
    torch.testing.assert_close(plan, expected)
    torch.testing.assert_close(out, layer.out((expected @ v).permute(0, 2, 1, 3).reshape(2, 5, 6)))


def test_attention_does_not_see_padding() -> None:
    layer = OTAttention(6, 3, kdim=4, vdim=2, n_iter=200).double()
    query, key, value = cloud(3, 6, 1, 2), cloud(5, 4, 2, 2), cloud(5, 2, 3, 2)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    out, plan = layer(query, key, value, key_padding_mask=mask)
    alone, _ = layer(query[0], key[0, :3], value[0, :3])
    torch.testing.assert_close(out[0], alone, rtol=1e-7, atol=1e-9)
    assert not plan[0, ..., 3:].any()
    blank, _ = layer(query, key, value, query_padding_mask=torch.tensor([True, False, False]).expand(2, -1))
    torch.testing.assert_close(blank[:, 0], layer.out.bias.expand(2, -1))


# torch's own, when it traces a differentiable function of the reference
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_attention_compiles_without_a_break() -> None:
    layer = OTAttention(4, 2, learn_epsilon=True, dustbin=0.1, learn_dustbin=True)
    tokens = cloud(3, 4, 1, 2).float()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(f(tokens)[0].square().sum(), list(layer.parameters())) for f in (compiled, layer)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SoftAlignment(dustbin=float("inf")), "dustbin: expected a finite score"),
        (lambda: SoftAlignment(learn_dustbin=True), "learn_dustbin: expected a dustbin"),
        (lambda: SoftAlignment()(X, Y[..., :2]), "x and y: expected features"),
        (lambda: SoftAlignment()(X, Y, padding_x=torch.zeros(2, 4)), "padding_x: expected a tensor of truth values"),
        (lambda: SoftAlignment()(X, Y, padding_x=torch.zeros(3, 4) > 0), "padding_x: expected a shape"),
        (lambda: OTAttention(6, 4), "embed_dim and num_heads"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()
