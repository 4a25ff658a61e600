"""How near predicted cells are to real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...._inputs import float_tensor, is_count
from ....errors import refuse
from ....losses import mmd, sinkhorn_divergence
from ....maps.training import BANDWIDTHS

__all__ = ["mmd_floor", "response_metrics"]


def response_metrics(
    moved: Any,  # (n, d)
    y: Any,  # (m, d)
    *,
    epsilon: float = 0.1,
    bandwidth: float | Sequence[float] = BANDWIDTHS,
) -> dict[str, float]:
    r"""Compare predicted with real cells.

    Args:
        moved: predicted cells.
        y: real ones, which nothing was fitted to.
        epsilon: of the first two, in units of the distance.
        bandwidth: of the Gaussian kernels, whose mean is taken; the default is exp(-gamma ||x - y||^2) with gamma 2, 1,
            0.5, 0.1, 0.01 and 0.005, for standardised features.

    Returns:
        "wasserstein", the mean distance along the entropic plan; "sinkhorn_divergence", of the distance; "mmd", the
        squared mean discrepancy; "signature", the distance between the means; "r2", the squared correlation between the
        means of the features (NaN where they do not vary).

    Raises:
        InvalidInput: clouds that do not fit together.

    Complexity: some dozen passes over the pairs.

    Example:
        >>> import numpy as np
        >>> cells = np.random.default_rng(0).normal(size=(50, 3))
        >>> found = response_metrics(cells, cells + [0, 3, 4])
        >>> round(found["signature"], 6), round(response_metrics(cells, cells)["mmd"], 6)
        (5.0, 0.0)

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025), for the choice.
    """
    with torch.no_grad():
        u, v = float_tensor(moved, "moved").double(), float_tensor(y, "y").double()
        divergence = sinkhorn_divergence(u, v, cost="euclidean", epsilon=epsilon)
        p, q = u.mean(0), v.mean(0)
        spread = float((p - p.mean()).norm() * (q - q.mean()).norm())
        correlation = float(((p - p.mean()) * (q - q.mean())).sum()) / spread if spread > 0 else math.nan
        return {
            "wasserstein": float(divergence.cross.linear_value),
            "sinkhorn_divergence": float(divergence.value),
            "mmd": float(mmd(u, v, bandwidth=bandwidth)),
            "signature": float((p - q).norm()),
            "r2": correlation**2,
        }


def mmd_floor(
    y: Any,  # (m, d)
    n: int,
    *,
    bandwidth: float | Sequence[float] = BANDWIDTHS,
    splits: int = 4,
    seed: int = 0,
) -> float:
    r"""Estimate the squared mean discrepancy that a perfect prediction of n cells would show from the cells y.

    .. math:: \mathbb E\, \mathrm{MMD}^2 = \Big(\frac1n + \frac1m\Big) \big(1 - \mathbb E\, k(Y, Y')\big)

    for two samples of one law, as the diagonals are part of the sums. The last factor comes from random halves of y.

    Args:
        y: real cells, at least four.
        n: number of predicted ones.
        bandwidth: as for `response_metrics`.
        splits: how often y is halved.
        seed: of the halves.

    Raises:
        InvalidInput: too few cells, or numbers that are not positive integers.

    Complexity: `splits` times m^2 kernels.

    Example:
        >>> import numpy as np
        >>> cells = np.random.default_rng(0).normal(size=(200, 3))
        >>> 0.004 < mmd_floor(cells, 200) < 0.01
        True

    Source: Gretton, Borgwardt, Rasch, Schölkopf & Smola (2012), A kernel two-sample test.
    """
    v = float_tensor(y, "y").double()
    if v.dim() != 2 or len(v) < 4:
        refuse("y", "at least four cells (m, d)", f"shape {tuple(v.shape)}")
    for name, value in (("n", n), ("splits", splits)):
        if not is_count(value):
            refuse(name, "a positive integer", repr(value))
    generator = torch.Generator().manual_seed(seed)
    half = len(v) // 2
    inverse = 1 / half + 1 / (len(v) - half)
    total = 0.0
    for _ in range(splits):
        order = torch.randperm(len(v), generator=generator)
        total += float(mmd(v[order[:half]], v[order[half:]], bandwidth=bandwidth))
    return (1 / n + 1 / len(v)) * total / splits / inverse
