"""What losses read: clouds as tensors, as lists of clouds of different sizes, or the nodes of a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..costs import Cost
from ..errors import refuse
from ..geometry import Geometry, Grid, PointCloud, Ragged
from ..geometry.pointcloud import read_cloud

__all__ = ["Ground", "between", "clouds_in", "detached", "equal", "untraced"]

Ground = str | Cost | Callable[[Tensor, Tensor], Tensor]
"""A cost between points, as for `solve`."""

Function = TypeVar("Function", bound=Callable[..., Any])


def clouds_in(x: Any) -> list[Tensor] | None:
    """The clouds of a list of arrays; None for one cloud, which may be a list of numbers."""
    if isinstance(x, list | tuple) and x and all(isinstance(t, Tensor | np.ndarray) and t.ndim > 0 for t in x):
        return [read_cloud(t, "clouds") for t in x]
    return None


def between(x: Any, y: Any, cost: Ground) -> Geometry:
    """The cost between two measures, whose answers are tensors whatever came in.

    Args:
        x, y: clouds (*batch, n, d) and (*batch, m, d); or lists of clouds (n_k, d) and (m_k, d), one problem each; or a
            `Grid` and None, for masses on its nodes.
        cost: between the points; a grid has its own.

    Raises:
        InvalidInput: what `PointCloud` and `Ragged` refuse; a y beside a grid, or none beside points.
    """
    if isinstance(x, Grid):
        if y is not None:
            refuse("y", "None, as the nodes of a grid serve both sides", type(y).__name__)
        return x
    if isinstance(x, Geometry) or y is None:
        refuse("x and y", "two clouds, two lists of clouds, or a Grid", f"{type(x).__name__} and {type(y).__name__}")
    lists = clouds_in(x), clouds_in(y)
    if lists[0] is not None and lists[1] is not None:
        if len(lists[0]) != len(lists[1]):
            refuse("x and y", "as many clouds on both sides", f"{len(lists[0])} and {len(lists[1])}")
        return Ragged.from_list(lists[0], lists[1], cost)
    if lists[0] is not None or lists[1] is not None:
        refuse("x and y", "two clouds or two lists of clouds", "one of each")
    return PointCloud(read_cloud(x, "x"), read_cloud(y, "y"), cost)


def detached(x: Any) -> Any:
    """The same clouds as constants."""
    clouds = clouds_in(x)
    if clouds is not None:
        return [t.detach() for t in clouds]
    return x.detach() if isinstance(x, Tensor) else x


def equal(geometry: Geometry, a: Tensor, b: Tensor) -> Tensor:
    """Which items of a batch have the same points with the same masses on both sides, in the same order, (*batch,)."""
    if a.shape[-1] != b.shape[-1]:
        return torch.zeros(torch.broadcast_shapes(a.shape[:-1], b.shape[:-1]), dtype=torch.bool, device=a.device)
    same = (a == b).all(-1)
    if isinstance(geometry, PointCloud | Ragged):
        same = same & (geometry.x == geometry.y).flatten(-2).all(-1)
    return same


def untraced(function: Function) -> Function:
    """A function that torch.compile leaves to the interpreter: solvers look at numbers to know when to stop."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function  # type: ignore[no-any-return]
