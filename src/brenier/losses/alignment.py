"""Soft alignments of two sets of features, with masks and dustbins, and attention by transport."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._inputs import is_count, is_real
from ..errors import refuse
from .doubly_stochastic import DoublyStochastic

__all__ = ["Aligned", "OTAttention", "SoftAlignment"]


class Aligned(NamedTuple):
    """A soft alignment."""

    plan: Tensor  # (*batch, n, m), without the dustbins
    left_x: Tensor  # (*batch, n) what each row leaves to the dustbin; zero without one
    left_y: Tensor  # (*batch, m) what each column leaves
    error: Tensor  # (*batch,) the largest |sum - mass| over rows and columns


class SoftAlignment(nn.Module):
    r"""A layer that aligns two sets of features softly: P = diag(u) exp(S / epsilon) diag(v), S = X Y^T / sqrt(d).

    Without a dustbin each row of P sums to 1 and each column to n / m, counted without padding. With a dustbin, a row
    and a column of score z are added: rows and columns sum to 1 at most, the rest is left over, and the bins take in as
    much as there are points on the other side. The solver is that of `DoublyStochastic`.

    Args:
        epsilon: the temperature, or its start.
        learn_epsilon: make it a parameter.
        dustbin: z, the score of leaving a point without a partner, or its start; None for no dustbin.
        learn_dustbin: make it a parameter.
        n_iter, tol, adjoint: as for `doubly_stochastic`.

    Raises:
        InvalidInput: features or masks that do not fit together, an epsilon that is not positive.

    Complexity: n_iter n m multiply-adds, and the n x m matrix.

    Example:
        >>> import torch
        >>> x = 5 * torch.eye(3)
        >>> found = SoftAlignment(epsilon=0.5, dustbin=2.0, n_iter=100)(x, x[[2, 0]])  # none for the second
        >>> found.plan.argmax(0).tolist(), [round(v, 2) for v in found.left_x.tolist()]
        ([2, 0], [0.0, 1.0, 0.0])

    Source: Sarlin, DeTone, Malisiewicz & Rabinovich (2020), SuperGlue: learning feature matching with graph neural
    networks.
    """

    def __init__(
        self,
        *,
        epsilon: float = 1.0,
        learn_epsilon: bool = False,
        dustbin: float | None = None,
        learn_dustbin: bool = False,
        n_iter: int | None = None,
        tol: float | None = None,
        adjoint: str = "implicit",
    ) -> None:
        super().__init__()
        if dustbin is not None and not (is_real(dustbin) and math.isfinite(dustbin)):
            refuse("dustbin", "a finite score or None", repr(dustbin))
        if learn_dustbin and dustbin is None:
            refuse("learn_dustbin", "a dustbin to start from", "None", "Give dustbin=1.0, say.")
        self.scaling = DoublyStochastic(epsilon, learn_epsilon=learn_epsilon, n_iter=n_iter, tol=tol, adjoint=adjoint)
        self.score = nn.Parameter(torch.tensor(float(dustbin or 0))) if learn_dustbin else None
        self._dustbin = dustbin

    @property
    def dustbin(self) -> float | Tensor | None:
        """The score of the dustbin: a number, a tensor where it is learned, or None."""
        return self._dustbin if self.score is None else self.score

    def forward(
        self,
        x: Tensor,  # (*batch, n, d)
        y: Tensor,  # (*batch, m, d)
        *,
        padding_x: Tensor | None = None,  # (*batch, n)
        padding_y: Tensor | None = None,  # (*batch, m)
    ) -> Aligned:
        """The alignment of features by their products; `padding` is True where there is no point."""
        if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1]:
            refuse("x and y", "features (*batch, n, d) and (*batch, m, d)", f"{tuple(x.shape)} and {tuple(y.shape)}")
        return self.align(x @ y.mT / math.sqrt(x.shape[-1]), padding_x=padding_x, padding_y=padding_y)

    def align(
        self,
        scores: Tensor,  # (*batch, n, m)
        *,
        padding_x: Tensor | None = None,  # (*batch, n)
        padding_y: Tensor | None = None,  # (*batch, m)
    ) -> Aligned:
        """The alignment of given scores."""
        (*batch, n, m) = scores.shape
        absent_x = _padding("padding_x", padding_x, (*batch, n), scores)
        absent_y = _padding("padding_y", padding_y, (*batch, m), scores)
        absent = absent_x.unsqueeze(-1) | absent_y.unsqueeze(-2)
        if self.dustbin is None:
            plan, error, _ = self.scaling.scale(scores.masked_fill(absent, -torch.inf))
            return Aligned(plan, plan.new_zeros((*batch, n)), plan.new_zeros((*batch, m)), error)
        r, c = ((~t).float() for t in (absent_x, absent_y))
        r, c = torch.cat([r, c.sum(-1, keepdim=True)], -1), torch.cat([c, r.sum(-1, keepdim=True)], -1)
        absent = (r == 0).unsqueeze(-1) | (c == 0).unsqueeze(-2)
        score = torch.as_tensor(self.dustbin, dtype=scores.dtype, device=scores.device)
        scores = torch.cat([scores, score.expand(*batch, n, 1)], -1)
        scores = torch.cat([scores, score.expand(*batch, 1, m + 1)], -2)
        plan, error, _ = self.scaling.scale(scores.masked_fill(absent, -torch.inf), r=r, c=c)
        return Aligned(plan[..., :-1, :-1], plan[..., :-1, -1], plan[..., -1, :-1], error)

    def extra_repr(self) -> str:
        if self.dustbin is None:
            return "dustbin=None"
        learned = " (learned)" if self.score is not None else ""
        return f"dustbin={float(torch.as_tensor(self.dustbin).detach()):g}{learned}"


class OTAttention(nn.Module):
    r"""Attention whose weights are a transport plan between queries and keys, in the place of a softmax for each query.

    .. math:: \text{out} = [P_1 V_1, \dots, P_h V_h]\, W_O, \qquad
        P_k = \operatorname{diag}(u)\, e^{Q_k K_k^\top / (\varepsilon \sqrt{d_k})} \operatorname{diag}(v)

    with rows that sum to 1 and columns that sum to n / m: every key is attended to as much as any other. With a dustbin
    each row may attend to nothing in part, and no key gets more than a total of 1.

    Args:
        embed_dim: of the queries and of the output.
        num_heads: divides `embed_dim`.
        kdim, vdim: of keys and values; `embed_dim` when None.
        bias: in the projections.
        epsilon, learn_epsilon, dustbin, learn_dustbin, n_iter, tol, adjoint: as for `SoftAlignment`, for all heads.

    Raises:
        InvalidInput: heads that do not divide the dimension, tensors or masks that do not fit together.

    Complexity: that of attention, and n_iter n m multiply-adds for each head.

    Example:
        >>> import torch
        >>> layer = OTAttention(8, 2)
        >>> out, weights = layer(torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)))
        >>> out.shape, weights.shape, bool((weights.sum(-2) - 1).abs().max() < 1e-5)
        (torch.Size([4, 5, 8]), torch.Size([4, 2, 5, 5]), True)

    Source: Sander, Ablin, Blondel & Peyré (2022), Sinkformers: transformers with doubly stochastic attention.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        epsilon: float = 1.0,
        learn_epsilon: bool = False,
        dustbin: float | None = None,
        learn_dustbin: bool = False,
        n_iter: int | None = None,
        tol: float | None = None,
        adjoint: str = "implicit",
    ) -> None:
        super().__init__()
        if not (is_count(embed_dim) and is_count(num_heads) and embed_dim % num_heads == 0):
            refuse("embed_dim and num_heads", "positive integers, the first a multiple", f"{embed_dim}, {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.key = nn.Linear(embed_dim if kdim is None else kdim, embed_dim, bias=bias)
        self.value = nn.Linear(embed_dim if vdim is None else vdim, embed_dim, bias=bias)
        self.out = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.alignment = SoftAlignment(
            epsilon=epsilon,
            learn_epsilon=learn_epsilon,
            dustbin=dustbin,
            learn_dustbin=learn_dustbin,
            n_iter=n_iter,
            tol=tol,
            adjoint=adjoint,
        )

    def forward(
        self,
        query: Tensor,  # (*batch, n, embed_dim)
        key: Tensor | None = None,  # (*batch, m, kdim); the queries when None
        value: Tensor | None = None,  # (*batch, m, vdim); the keys when None
        *,
        query_padding_mask: Tensor | None = None,  # (*batch, n)
        key_padding_mask: Tensor | None = None,  # (*batch, m)
    ) -> tuple[Tensor, Tensor]:  # (*batch, n, embed_dim), (*batch, heads, n, m)
        """The output and the plans of all heads; masks are True at padding, as in torch.

        Padded queries get the bias of the last projection alone. For self-attention give both masks.
        """
        key = query if key is None else key
        value = key if value is None else value
        heads = [
            layer(t).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for layer, t in ((self.query, query), (self.key, key), (self.value, value))
        ]
        q, k, v = heads  # (*batch, heads, n, d)
        masks = (None if t is None else t.unsqueeze(-2) for t in (query_padding_mask, key_padding_mask))
        plan = self.alignment(q, k, padding_x=next(masks), padding_y=next(masks)).plan
        return self.out((plan @ v).transpose(-2, -3).flatten(-2)), plan


def _padding(name: str, mask: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if mask is None:
        return torch.zeros(shape, dtype=torch.bool, device=like.device)
    if mask.dtype != torch.bool:
        refuse(name, "a tensor of truth values, True at padding", f"dtype {mask.dtype}")
    try:
        return mask.expand(shape)
    except RuntimeError:
        refuse(name, f"a shape that broadcasts to {shape}", f"shape {tuple(mask.shape)}")
