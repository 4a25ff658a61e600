"""Alignment of sequences, where points should also meet at like positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._inputs import is_real
from ..adjoint import Adjoint, Envelope
from ..api import solve
from ..costs import Cost, as_cost
from ..errors import refuse
from ..geometry.pointcloud import read_cloud
from .clouds import Ground, between, clouds_in, untraced

__all__ = ["Ordered", "order_preserving_wasserstein"]


class Ordered(Cost):
    r"""A cost between points at positions: that of the points, and a prior on the positions.

    .. math:: c\big((s, u, x), (t, v, y)\big) = c(x, y) - \frac{\lambda}{(s - t)^2 + 1} + (u - v)^2

    The first two coordinates are positions, each on a scale of its own; the point is the others.

    Args:
        ground: the cost between the points.
        order: lambda >= 0, in cost units.

    Raises:
        InvalidInput: a negative order.

    Example:
        >>> import torch
        >>> cost = Ordered("sqeuclidean", order=1.0)
        >>> float(cost(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 4.0])))  # (1 - 4)^2 - 1 + (0 - 2)^2
        12.0
    """

    def __init__(self, ground: Ground, *, order: float) -> None:
        self.ground = as_cost(ground)
        if not (is_real(order) and 0 <= order < math.inf):
            refuse("order", "a finite number >= 0 in cost units", repr(order))
        self.order = float(order)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.ground(x[..., 2:], y[..., 2:]) + self._prior((x[..., :2] - y[..., :2]).square())

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        apart = x[..., :, None, :2] - y[..., None, :, :2]
        return self.ground.block(x[..., 2:], y[..., 2:]) + self._prior(apart.square())

    def _prior(self, squares: Tensor) -> Tensor:
        return squares[..., 1] - self.order / (squares[..., 0] + 1)

    def check(self, dim: int) -> None:
        if dim < 3:
            refuse("points with Ordered", "two positions and at least one coordinate", f"dimension {dim}")
        self.ground.check(dim - 2)


def order_preserving_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    epsilon: float,
    order: float = 50.0,
    width: float = 1.0,
    cost: Ground = "sqeuclidean",
    tol: float | None = None,
    adjoint: Adjoint = Envelope(),
) -> Tensor:  # (*batch,)
    r"""Compute the cost of aligning two sequences, where points should meet at like positions.

    .. math:: \min_P \; \langle P, C\rangle - \lambda \sum_{ij} \frac{P_{ij}}{(i/n - j/m)^2 + 1}
        + \varepsilon \sum_{ij} P_{ij} \log \frac{P_{ij}}{Q_{ij}}, \qquad
        Q_{ij} = a_i b_j \exp\!\Big({-\frac{\ell_{ij}^2}{2 \sigma^2}}\Big), \quad
        \ell_{ij} = \frac{|i/n - j/m|}{\sqrt{1/n^2 + 1/m^2}},

    over plans with marginals a and b. Order is preferred, not enforced: local swaps are cheap. The paper reports <P, C>
    at the optimal plan; this is the whole minimum, whose gradient needs no derivative of the plan.

    Args:
        x, y: sequences, batch axes broadcast; or lists of sequences of different lengths.
        a, b: masses of total 1; uniform when None.
        epsilon: in cost units.
        order: lambda, in cost units; 50 in the paper.
        width: sigma, of the band around the diagonal, in steps.
        cost: between points, as for `solve`.
        tol, adjoint: as for `solve`; second derivatives need `Implicit()`.

    Raises:
        InvalidInput: sequences that do not fit together, numbers that are not positive.

    Complexity: that of an entropic problem, O(n m d) an iteration and O(n + m) memory.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> values = [order_preserving_wasserstein(x, z, epsilon=0.1, order=1.0) for z in (x, x.flip(0))]
        >>> bool(values[0] < values[1])
        True

    Source: Su & Hua (2017), Order-preserving Wasserstein distance for sequence matching.
    """
    return untraced(_aligned)(x, y, a, b, epsilon, width, Ordered(cost, order=order), tol, adjoint)


def _aligned(
    x: Any, y: Any, a: Any, b: Any, epsilon: Any, width: Any, ground: Ordered, tol: float | None, adjoint: Adjoint
) -> Tensor:
    for name, given in (("epsilon", epsilon), ("width", width)):
        if not (is_real(given) and 0 < given < math.inf):
            refuse(name, "a positive finite number", repr(given))
    xs, ys = clouds_in(x), clouds_in(y)
    if xs is not None and ys is not None and len(xs) == len(ys):
        pairs = [_placed(s, t, epsilon, width) for s, t in zip(xs, ys)]
        x, y = [s for s, _ in pairs], [t for _, t in pairs]
    elif xs is None and ys is None:
        x, y = _placed(read_cloud(x, "x"), read_cloud(y, "y"), epsilon, width)
    value: Tensor = solve(between(x, y, ground), a=a, b=b, epsilon=epsilon, tol=tol, adjoint=adjoint).value
    return value


def _placed(x: Tensor, y: Tensor, epsilon: float, width: float) -> tuple[Tensor, Tensor]:
    """Two sequences with their positions: i / n, and the same in units in which eps l^2 / 2 sigma^2 is a square."""
    n, m = x.shape[-2], y.shape[-2]
    unit = math.sqrt(epsilon / 2) / (width * math.hypot(1 / n, 1 / m))
    out = []
    for points, size in ((x, n), (y, m)):
        s = torch.arange(1, size + 1, dtype=points.dtype, device=points.device) / size
        places = torch.stack([s, unit * s], -1)
        out.append(torch.cat([places.expand(*points.shape[:-1], 2), points], -1))
    return out[0], out[1]
