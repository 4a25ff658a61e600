"""The networks: what a condition is to the map, and the map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...._inputs import is_count
from ....errors import refuse
from ....maps.neural import mlp

__all__ = ["ConditionEncoder", "ConditionalMongeMap"]


class ConditionEncoder(nn.Module):
    r"""What a context means to a map: its slices through one layer each, or the mean over a set of drugs.

    .. math:: e(c) = \big[\mathrm{GELU}(W_k\, c_{\text{slice } k} + b_k)\big]_k, \qquad
        e(\{c_1, \dots, c_r\}) = \frac1r \sum_i e(c_i)

    The second does not depend on the order of the drugs, and takes any number of them.

    Args:
        dim: length of a context.
        slices: pairs (start, stop) of entries that belong together, such as those of a drug and that of its dose; one
            slice of all when None.
        sizes: how many numbers each slice becomes; one number is for all.
        mode: "slices", or "set" for contexts that are sets.

    Attributes:
        width: length of what comes out.

    Raises:
        InvalidInput: slices outside the context, sizes that are not one for each, or another mode.

    Example:
        >>> import torch
        >>> encoder = ConditionEncoder(195, [(0, 194), (194, 195)], (50, 1))
        >>> encoder(torch.zeros(195)).shape, encoder(torch.zeros(8, 195)).shape
        (torch.Size([51]), torch.Size([8, 51]))
        >>> ConditionEncoder(5, mode="set")(torch.zeros(3, 5)).shape  # three drugs at once
        torch.Size([50])

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025); Zaheer et al. (2017), Deep sets.
    """

    def __init__(
        self,
        dim: int,
        slices: Sequence[Sequence[int]] | None = None,
        sizes: int | Sequence[int] = 50,
        *,
        mode: str = "slices",
    ) -> None:
        super().__init__()
        if not is_count(dim):
            refuse("dim", "a positive integer", repr(dim))
        if mode not in ("slices", "set"):
            refuse("mode", "'slices' or 'set'", repr(mode))
        pairs = [(0, dim)] if slices is None else [tuple(map(int, pair)) for pair in slices]
        if not pairs or not all(len(pair) == 2 and 0 <= pair[0] < pair[1] <= dim for pair in pairs):
            refuse("slices", f"pairs (start, stop) within a context of {dim}", repr(slices))
        widths = [sizes] * len(pairs) if isinstance(sizes, int) else list(sizes)
        if len(widths) != len(pairs) or not all(map(is_count, widths)):
            refuse("sizes", f"a positive integer for each of {len(pairs)} slices", repr(sizes))
        self.dim, self.mode, self.width = dim, mode, sum(widths)
        self.slices = [(pair[0], pair[1]) for pair in pairs]
        self.layers = nn.ModuleList(nn.Linear(stop - start, size) for (start, stop), size in zip(self.slices, widths))

    def forward(self, context: Tensor) -> Tensor:
        """Contexts (..., dim), or sets of them (..., r, dim), to (..., width); one context alone is a set of one."""
        if context.shape[-1:] != (self.dim,):
            refuse("context", f"{self.dim} numbers", f"shape {tuple(context.shape)}")
        parts = [layer(context[..., i:j]) for layer, (i, j) in zip(self.layers, self.slices)]
        out = nn.functional.gelu(torch.cat(parts, -1))
        return out.mean(-2) if self.mode == "set" and out.dim() > 1 else out


class ConditionalMongeMap(nn.Module):
    r"""A map from R^d to R^d that is told a condition.

    .. math:: T(x, c) = x + F\big([x, e(c)]\big)

    with a perceptron F and an encoder e, or without the first x.

    Args:
        dim: d.
        encoder: of the contexts.
        hidden: sizes of the hidden layers.
        residual: with the first x.
        layer_norm: normalise what goes into F, each point by itself.

    Raises:
        InvalidInput: sizes that are not positive integers.

    Example:
        >>> import torch
        >>> T = ConditionalMongeMap(3, ConditionEncoder(2))
        >>> T(torch.zeros(5, 3), torch.ones(2)).shape
        torch.Size([5, 3])

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025).
    """

    def __init__(
        self,
        dim: int,
        encoder: ConditionEncoder,
        hidden: Sequence[int] = (64, 64, 64, 64),
        *,
        residual: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        for size in (dim, *hidden):
            if not is_count(size):
                refuse("dim and hidden", "positive integers", repr(size))
        self.encoder, self.residual = encoder, residual
        self.norm = nn.LayerNorm(dim + encoder.width) if layer_norm else nn.Identity()
        self.layers = mlp((dim + encoder.width, *hidden, dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Where points (n, d) go under one context, or under one for each point (n, ...)."""
        told = self.encoder(context)
        z = torch.cat([x, told.expand(*x.shape[:-1], -1)], -1)
        moved: Tensor = self.layers(self.norm(z))
        return x + moved if self.residual else moved
