"""Exact transport on costs that are rounded where they do not matter.

In many dimensions most of the time of an exact solve is the cost matrix. A product in float32 takes half the time, and
there is a proved bound on what each entry is off by. The simplex solves the rounded problem; pairs whose reduced cost
is within twice the bound get their cost anew, in float64, and the simplex goes on, until all others have reduced costs
above the bound: then the duals are feasible, and the plan optimal, for the costs themselves.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...costs import Factors, Lp
from ...geometry import Geometry, PointCloud
from ...kernels import simplex
from ...kernels.build import native
from ...kernels.distances import rough_costs
from ..base import time_is_up
from .lazy import costs_of_pairs

__all__ = ["screened"]

_DIMENSIONS, _PAIRS = 256, 2**20  # from which on half the time of a product is worth two looks at the matrix
_MANY = 64  # pairs a line within the bounds, above which float32 tells too little
_BLOCK = 2**20  # entries looked at, at once: they stay in the cache

_Float = NDArray[np.float64]


def screened(
    geometry: Geometry,  # in float64, without batch axes
    a: _Float,  # (n,)
    b: _Float,  # (m,)
) -> simplex.SimplexResult | None:
    """The exact solution between clouds of many dimensions; None where float32 does not pay, or tells too little.

    O(n m) memory, that of the matrix in float64.
    """
    factors, root = _factors(geometry)
    if factors is None or (found := rough_costs(*factors, root=root)) is None:
        return None
    cost, bound = found
    n, m = cost.shape
    known = torch.empty(0, dtype=torch.long)  # pairs whose costs are in float64, i m + j
    last: tuple[Tensor, Tensor] | None = None  # the duals of the last look at all pairs
    tree, n_iter = None, 0
    while True:
        results = simplex.network_simplices(
            cost.unsqueeze(0).numpy(), a[None], b[None], tree=tree, interrupt=time_is_up, engine="native"
        )
        tree, n_iter, optimal = results.tree, n_iter + int(results.n_iter[0]), bool(results.optimal[0])
        f, g = duals = torch.from_numpy(results.f[0]), torch.from_numpy(results.g[0])
        if not optimal:
            f -= bound  # feasible for the costs themselves
            break
        if last is not None and float(sum((new - old).amax() for new, old in zip(duals, last))) <= float(bound.amin()):
            break  # what was above twice its bound then is above its bound now
        near = _near(cost, bound, f, g)
        near = near[~torch.isin(near, known)]
        i, j = near // m, near % m
        if not bool((cost[i, j] - f[i] - g[j] <= bound[i]).any()):
            break
        if len(near) > _MANY * (n + m):
            return None
        cost[i, j] = costs_of_pairs(geometry, i, j)
        known, last = torch.cat([known, near]), duals
    used = results.mass[0] > 0
    rows, cols, mass = (t[0][used] for t in (results.rows, results.cols, results.mass))
    return simplex.SimplexResult(rows, cols, mass, f.numpy(), g.numpy(), n_iter, optimal)


def _factors(geometry: Geometry) -> tuple[Factors | None, bool]:
    """The costs as h_i + k_j - <u_i, v_j>, and whether their roots are meant; None where float32 does not pay."""
    if native is None or not isinstance(geometry, PointCloud) or geometry.device.type != "cpu":
        return None, False
    n, m = geometry.shape
    if geometry.x.shape[-1] < _DIMENSIONS or n * m < _PAIRS:
        return None, False
    ground = geometry.ground
    if isinstance(ground, Lp) and ground.p == 2 and ground.power == 1:
        return PointCloud(geometry.x, geometry.y).factors(), True
    return geometry.factors(), False


def _near(cost: Tensor, bound: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Pairs i m + j with reduced costs of no more than twice the bound of their row."""
    n, m = cost.shape
    step, limits, found = max(1, _BLOCK // m), (f + 2 * bound).unsqueeze(-1), []
    room = cost.new_empty(min(step, n), m)
    for start in range(0, n, step):
        part = cost[start : start + step]
        reduced = torch.sub(part, g, out=room[: len(part)])
        near = (reduced <= limits[start : start + step]).flatten().nonzero().squeeze(-1)
        found.append(near + start * m)
    return torch.cat(found)
