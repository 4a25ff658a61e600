"""Pictures of solutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .errors import need, refuse
from .geometry import PointCloud

if TYPE_CHECKING:
    from .solution import Solution

__all__ = ["draw_solution"]

_SOURCE, _TARGET, _LINE = "#2b6cb0", "#dd6b20", "#718096"


def draw_solution(solution: Solution, ax: Any, lines: int) -> Any:
    """Draw both clouds and the strongest transport lines; see `Solution.plot`."""
    plt = need("matplotlib.pyplot", "plot", "Solution.plot")
    collections = need("matplotlib.collections", "plot", "Solution.plot")
    geometry = solution.problem.geometry
    if not isinstance(geometry, PointCloud) or solution.problem.batch_shape:
        refuse("plot", "one solution on two point clouds", repr(geometry))
    if ax is None:
        ax = plt.subplots(figsize=(6, 6))[1]
    x, y = geometry.x.detach().double().cpu(), geometry.y.detach().double().cpu()
    x, y, labels = _plane(x, y)
    rows, cols, mass = solution._plan._topk(min(lines, geometry.shape[0] * geometry.shape[1]))
    segments = torch.stack([x[rows.cpu()], y[cols.cpu()]], 1).numpy()
    strength = (mass / mass.max()).cpu().numpy() if len(mass) else []
    ax.add_collection(collections.LineCollection(segments, colors=_LINE, linewidths=0.8, alpha=strength, zorder=1))
    for points, color, name in ((x, _SOURCE, "source"), (y, _TARGET, "target")):
        size = max(4.0, min(30.0, 4000 / len(points)))
        ax.scatter(points[:, 0], points[:, 1], s=size, c=color, label=name, alpha=0.8, linewidths=0, zorder=2)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(frameon=False)
    return ax


def _plane(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[str, str]]:
    """Coordinates to draw in: the plane itself, a line with a second axis of zeros and ones, or two components."""
    d = x.shape[-1]
    if d == 2:
        return x, y, ("coordinate 1", "coordinate 2")
    if d == 1:
        return torch.cat([x, torch.ones_like(x)], 1), torch.cat([y, torch.zeros_like(y)], 1), ("coordinate", "")
    both = torch.cat([x, y])
    centre = both.mean(0)
    axes = torch.linalg.svd(both - centre, full_matrices=False).Vh[:2].mT
    return (x - centre) @ axes, (y - centre) @ axes, ("principal axis 1", "principal axis 2")
