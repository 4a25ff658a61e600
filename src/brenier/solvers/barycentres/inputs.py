"""What every barycentre takes: measures, their weights, points to start from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._inputs import check_finite, float_tensor, same_place
from ...errors import refuse
from ...geometry.pointcloud import read_cloud

__all__ = ["barycentre_weights", "clouds_of", "drawn"]


def barycentre_weights(weights: Any, count: int, like: Tensor) -> Tensor:
    """Read the shares of measures, (count,), nonnegative and of total 1; equal when None."""
    if weights is None:
        return torch.full((count,), 1 / count, dtype=like.dtype, device=like.device)
    out = float_tensor(weights, "weights").to(like)
    total = out.detach().double().sum()
    if out.shape != (count,) or bool((out < 0).any()) or not abs(float(total) - 1) <= 1e-5:
        refuse("weights", f"{count} nonnegative numbers of total 1", out.tolist())
    return out / out.sum()


def clouds_of(measures: Any, name: str = "measures") -> list[Tensor]:
    """Read a list of clouds (n_k, d), or one tensor (K, n, d); without gradients."""
    if not isinstance(measures, Sequence) or isinstance(measures, str):
        whole = read_cloud(measures, name)
        if whole.dim() != 3:
            refuse(name, "a list of clouds (n_k, d), or (K, n, d)", f"shape {tuple(whole.shape)}")
        measures = list(whole)
    if len(measures) == 0:
        refuse(name, "at least one cloud", "none")
    out = [read_cloud(cloud, f"{name}[{k}]").detach() for k, cloud in enumerate(measures)]
    for k, cloud in enumerate(out):
        check_finite(cloud, f"{name}[{k}]", "finite coordinates", "Drop or impute those rows.")
        same_place(out[0], f"{name}[0]", cloud, f"{name}[{k}]")
        if cloud.dim() != 2 or cloud.shape[1] != out[0].shape[-1]:
            refuse(f"{name}[{k}]", f"a cloud (n, {out[0].shape[-1]})", f"shape {tuple(cloud.shape)}")
    return out


def drawn(clouds: list[Tensor], n: int, generator: torch.Generator | None) -> Tensor:
    """N points drawn from all clouds, no two of them one."""
    pool = torch.cat(clouds)
    x = pool[torch.randint(len(pool), (n,), generator=generator).to(pool.device)]
    spread = float(pool.std()) if pool.numel() > 1 else 0.0
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return x + 1e-6 * (spread if math.isfinite(spread) else 0.0) * noise
