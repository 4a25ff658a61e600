"""First derivatives that refuse to be differentiated again, where autograd would return a part of the second ones.

What a solver holds fixed moves with the inputs. A first derivative need not know, by the envelope theorem; a second one
that leaves it out is wrong. `torch.autograd.function.once_differentiable` does not help: it lets a second backward pass
through where the gradient that comes in is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import refuse

__all__ = ["first_order", "walled"]


class _Wall(torch.autograd.Function):
    """A gradient; an error where its own gradient in the tensors is asked for."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, what: tuple[str, str], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.what = what
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        got, cure = ctx.what
        refuse("derivative", "first derivatives only", f"a second one of {got}", cure)


def walled(
    gradients: Sequence[Tensor | None], tensors: Sequence[Tensor], what: str, cure: str = ""
) -> tuple[Tensor | None, ...]:
    """The gradients of a backward pass; where a graph is made of it, with an error in the place of their derivatives.

    Args:
        gradients: computed without a graph.
        tensors: that they depend on, as they came into the forward pass, so that a way leads back to each.
        what, cure: for the error: of what no second derivative is known, and what to do instead.
    """
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return tuple(gradients)
    return tuple(None if g is None else _Wall.apply(g.detach(), (what, cure), *tensors) for g in gradients)


class _FirstOrder(torch.autograd.Function):
    """Zero, with zero gradients that refuse to be differentiated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, what: tuple[str, str], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.what = what
        ctx.save_for_backward(*tensors)
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled():
            return None, None, *(None for _ in wanted)
        zeros = [torch.zeros_like(t) if need else None for t, need in zip(tensors, wanted)]
        return None, None, *walled(zeros, tensors, *ctx.what)


def first_order(value: Tensor, tensors: Sequence[Tensor], what: str, cure: str = "") -> Tensor:
    """The value with its gradients in the tensors, and an error in the place of second derivatives; see `walled`."""
    moving = [t for t in tensors if t.requires_grad]
    if not (moving and torch.is_grad_enabled()):
        return value
    zero: Tensor = _FirstOrder.apply(value.detach(), (what, cure), *moving)
    return value + zero
