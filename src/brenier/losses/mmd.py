"""Distances of means in a kernel's space: maximum mean discrepancy and energy distance, without the kernel matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._inputs import is_real
from ..costs import Euclidean, SqEuclidean
from ..errors import refuse
from ..geometry import Geometry
from .clouds import Ground, between, untraced

__all__ = ["energy_distance", "mmd"]

_KERNELS: dict[str, tuple[Ground, Callable[[float], float]]] = {
    "gaussian": (SqEuclidean(), lambda sigma: 2 * sigma**2),
    "laplacian": (Euclidean(), lambda sigma: sigma),
}

Form = Callable[[Geometry, Tensor, Tensor], Tensor]


def mmd(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    kernel: str = "gaussian",
    bandwidth: float | Sequence[float] = 1.0,
) -> Tensor:  # (*batch,)
    r"""Compute the squared maximum mean discrepancy between two measures.

    .. math:: \lVert \alpha - \beta\rVert_k^2 = \sum_{ij} a_i a_j k(x_i, x_j) + \sum_{ij} b_i b_j k(y_i, y_j)
        - 2 \sum_{ij} a_i b_j k(x_i, y_j)

    Diagonals are part of it (the V-statistic), so that it is nonnegative, and zero for equal measures.

    Args:
        x, y: clouds, batch axes broadcast; or lists of clouds of different sizes.
        a, b: masses of any totals; uniform with total 1 when None.
        kernel: "gaussian", exp(-||x - y||^2 / 2 s^2), or "laplacian", exp(-||x - y|| / s).
        bandwidth: s, in units of the points; the mean over several.

    Raises:
        InvalidInput: clouds that do not fit together, another kernel, a bandwidth that is not positive.

    Complexity: O((n + m)^2 d) time, O(n + m) memory; differentiable, twice too.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 1)
        >>> round(float(mmd(x, x + 1)), 6) == round(2 - 2 * math.exp(-0.5), 6)
        True

    Source: Gretton, Borgwardt, Rasch, Schölkopf & Smola (2012), A kernel two-sample test.
    """
    if not isinstance(kernel, str) or kernel not in _KERNELS:
        refuse("kernel", "one of " + ", ".join(map(repr, _KERNELS)), repr(kernel))
    widths: list[Any] = list(bandwidth) if isinstance(bandwidth, Sequence) else [bandwidth]
    if not widths or not all(is_real(s) and 0 < s < math.inf for s in widths):
        refuse("bandwidth", "a positive finite number, or several", repr(bandwidth))
    cost, epsilon = _KERNELS[kernel]
    return untraced(_norm)(x, y, a, b, cost, _kernel_form([epsilon(float(s)) for s in widths]), 1.0)


def energy_distance(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    cost: Ground = "euclidean",
) -> Tensor:  # (*batch,)
    r"""Compute the energy distance between two measures of one mass.

    .. math:: 2 \sum_{ij} a_i b_j c(x_i, y_j) - \sum_{ij} a_i a_j c(x_i, x_j) - \sum_{ij} b_i b_j c(y_i, y_j)

    Nonnegative for costs of negative type, as powers of the Euclidean distance below 2, and zero for equal measures
    only: the limit of the Sinkhorn divergence for large epsilon, but for a factor of 2.

    Args:
        x, y: clouds, batch axes broadcast; or lists of clouds of different sizes.
        a, b: masses; uniform with total 1 when None.
        cost: as for `solve`; the squared Euclidean one compares means only.

    Raises:
        InvalidInput: clouds that do not fit together.

    Complexity: O((n + m)^2 d) time, O(n + m) memory; differentiable, twice too where the points differ.

    Example:
        >>> import torch
        >>> float(energy_distance(torch.tensor([0.0, 2.0]), torch.tensor([1.0])))  # 2 x 1 - 1
        1.0

    Source: Székely & Rizzo (2013), Energy statistics: a class of statistics based on distances.
    """
    return untraced(_norm)(x, y, a, b, cost, _cost_form, -1.0)


def _norm(x: Any, y: Any, a: Any, b: Any, cost: Ground, form: Form, sign: float) -> Tensor:
    """The form of the difference of two measures with itself, times a sign."""
    both = between(x, y, cost)
    a, b = both.masses(a, b)
    own_x, own_y = form(between(x, x, cost), a, a), form(between(y, y, cost), b, b)
    return sign * (own_x + own_y - 2 * form(both, a, b))


def _cost_form(geometry: Geometry, u: Tensor, v: Tensor) -> Tensor:
    return geometry.cost_between(u, v)


def _kernel_form(epsilons: Sequence[float]) -> Form:
    """The mean of sum_ij u_i exp(-c_ij / eps) v_j: a Gibbs plan of zero potentials."""

    def form(geometry: Geometry, u: Tensor, v: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(geometry.batch_shape, u.shape[:-1], v.shape[:-1])
        f, g = u.new_zeros((*lead, u.shape[-1])), v.new_zeros((*lead, v.shape[-1]))
        v = v.expand(*lead, -1)
        parts = [(u * geometry.apply(f, g, epsilon, v)).sum(-1) for epsilon in epsilons]
        return torch.stack(parts).mean(0)

    return form
