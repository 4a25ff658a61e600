"""Transport without entropy between many rows and a few columns, whose marginals may be soft."""

from __future__ import annotations

import torch
from torch import Tensor

from ...geometry import CostMatrix
from ...marginals import KL, Free, Marginal, Partial, Side, translation
from ...problem import Problem
from ..base import run
from ..exact.simplex import NetworkSimplex

__all__ = ["narrow_transport"]

_SHRINK = 1 / 3  # of epsilon from one level to the next
_LAST = 1e-5  # of the range of the costs: the last epsilon
_WARM = 1e-3  # and the first one where potentials are given
_LEVEL_TOL, _TOL = 1e-5, 1e-8  # marginal errors, in shares of the mass, at which a level and the last one are left
_STEPS, _TRIALS = 50, 40  # of Newton's method at a level, and of one step's length
_RISE = 1e-4  # share of the predicted rise that a step must bring
_RIDGE = 1e-10  # added to the diagonal, in shares of it
_ROUNDING = 1e-14


def narrow_transport(
    cost: Tensor,  # (n, r)
    a: Tensor,  # (n,)
    b: Tensor,  # (r,)
    marginals: tuple[Marginal, Marginal],
    g: Tensor | None = None,  # (r,)
) -> tuple[Tensor, Tensor]:
    r"""The plan (n, r) that minimises <P, C> + phi_a(P1) + phi_b(P^T 1), for r that is small, and its g.

    Where both penalties are piecewise linear it is that of the network simplex, exact. With a KL it is that of the r
    potentials of the columns which maximise the dual, smoothed by an epsilon that falls to 1e-5 of the range of the
    costs: Newton's method on

        phi_a^*(f) + phi_b^*(g),   f_i = -eps log sum_l exp((g_l - c_il) / eps).

    Args:
        cost: in float64.
        a, b: weights of rows and columns, nonnegative.
        marginals: both with piecewise linear penalties, or `KL` with `KL`, `Exact` or `Free`, one parameter for all
            lines.
        g: potentials of the columns to start from.

    Complexity: that of the network simplex; or O(n r^2 + r^3) for a step of Newton's method, of which there are some
    fifty. O(n r) memory.
    """
    left, right = marginals
    if not (isinstance(left, KL) or isinstance(right, KL)):
        if any(isinstance(p, Partial) for p in marginals):  # the potential of its mass is not among those given
            g = None
        solution = run(Problem(CostMatrix(cost), a, b, marginals), NetworkSimplex(g=g), warn=False)
        return solution.plan.dense(), solution.g
    if isinstance(left, Free):  # the columns' potentials are those at which nothing more is worth taking
        cheapest, place = cost.min(0)
        mass = _asked(right, b, cheapest)[0]
        return torch.zeros_like(cost).index_put((place, torch.arange(len(b), device=b.device)), mass), cheapest
    if isinstance(right, Free):
        cheapest, place = cost.min(1)
        plan = torch.nn.functional.one_hot(place, len(b)) * _asked(left, a, cheapest)[0].unsqueeze(-1)
        return plan, torch.zeros_like(b)
    return _scaled(cost, a, b, marginals, g)


def _scaled(
    cost: Tensor, a: Tensor, b: Tensor, marginals: tuple[Marginal, Marginal], g: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The plan at the last epsilon, by way of larger ones, and its g."""
    left, right = marginals
    scale = float(cost.mean() - cost.min())
    scale = scale if scale > 0 else 1.0
    epsilon, last = (scale if g is None else _WARM * scale), _LAST * scale
    g = torch.zeros_like(b) if g is None else g
    f, shares = _transform(cost, g, epsilon)
    while True:
        found = _risen(cost, a, b, marginals, g, epsilon, _LEVEL_TOL if epsilon > last else _TOL)
        if found is None:  # beyond what float64 tells apart: the level above serves
            break
        f, g, shares = found
        if epsilon <= last:
            break
        epsilon = max(epsilon * _SHRINK, last)
    plan = _asked(left, a, f)[0].unsqueeze(-1) * shares
    if isinstance(right, KL):
        return plan, g
    columns = plan.sum(0)  # right to the tolerance; a soft left side takes the rest
    return plan * torch.where(columns > 0, b / torch.where(columns > 0, columns, 1), 0), g


def _transform(cost: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The soft c-transform f (n,) of g, and where each row's mass then goes, (n, r)."""
    heights = (g - cost) / epsilon
    return -epsilon * torch.logsumexp(heights, 1), torch.softmax(heights, 1)


def _asked(marginal: Marginal, weights: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
    """The mass that a marginal asks for at a potential, and how fast that falls as the potential rises."""
    if not isinstance(marginal, KL):
        return weights, torch.zeros_like(weights)
    mass = weights * torch.exp(-potential / marginal.rho)
    return mass, mass / marginal.rho


def _risen(
    cost: Tensor, a: Tensor, b: Tensor, marginals: tuple[Marginal, Marginal], g: Tensor, epsilon: float, tol: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The potentials f and g that maximise the dual at an epsilon, and the shares, by damped steps of Newton's method.

    None where they were not found.
    """
    left, right = marginals
    sides = Side(a, a), Side(b, b)
    f, shares = _transform(cost, g, epsilon)
    for _ in range(_STEPS):
        shift = translation(marginals, sides, f, g)
        assert shift is not None
        f, g = f + shift, g - shift  # which leaves the shares
        (rows, slope), (cols, fall) = _asked(left, a, f), _asked(right, b, g)
        sums = (rows.unsqueeze(-1) * shares).sum(0)
        gradient = cols - sums
        error = float(gradient.abs().sum()) / max(float(cols.sum()), torch.finfo(cols.dtype).tiny)
        if error <= tol:
            return f, g, shares
        curvature = shares.mT @ ((slope - rows / epsilon).unsqueeze(-1) * shares)
        size = (sums + cols) / epsilon
        ridge = _RIDGE * size.clamp(min=_RIDGE * float(size.max()))
        direction = torch.linalg.solve(curvature + torch.diag(sums / epsilon + fall + ridge), gradient)
        value = left.dual(f, sides[0]) + right.dual(g, sides[1])
        rounding = _ROUNDING * ((cols * g).abs().sum() + (rows * f).abs().sum())
        rise, step = float(gradient @ direction), 1.0
        for _ in range(_TRIALS):
            ahead = g + step * direction
            image, parts = _transform(cost, ahead, epsilon)
            after = left.dual(image, sides[0]) + right.dual(ahead, sides[1])
            if bool(after >= value + _RISE * step * rise - rounding):
                f, g, shares = image, ahead, parts
                break
            step /= 2
        else:
            break
    return (f, g, shares) if error <= _LEVEL_TOL else None
