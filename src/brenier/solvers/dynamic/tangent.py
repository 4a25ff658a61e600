"""Velocities that explain a change of density with least energy, and the parts of a flow."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._inputs import Kind, check_finite, float_tensor, is_real, kind_of, same_place
from ..._once import walled
from ...errors import NotConvergedWarning, refuse
from ...marginals import ROUNDING
from ..base import check_count, check_number
from .cells import Cells

__all__ = ["Parts", "TransportVelocity", "solenoidal_projection", "tangent_velocity", "transport_velocity"]

MODES = ("weighted", "flux")


class TransportVelocity(NamedTuple):
    """A tangent vector of transport.

    Attributes:
        velocity: v = grad phi, (*batch, d, *sizes), on the faces of cells: entry i of component k lies between cell i
            and the next one along axis k. With closed borders the last entry is zero.
        growth: the rate alpha = phi / delta^2 at which density grows by itself, (*batch, *sizes); zero without delta.
        potential: phi, (*batch, *sizes), of mean zero without delta.
        value: sum rho (|v|^2 + delta^2 alpha^2), (*batch,): to first order W2^2 over a unit of time, or the squared
            Wasserstein-Fisher-Rao distance, in units of rho.
        residual: of the balance of mass, relative, (*batch,).
        n_iter: conjugate gradients.
    """

    velocity: Any
    growth: Any
    potential: Any
    value: Any
    residual: Any
    n_iter: int


class Parts(NamedTuple):
    """The parts of a flow: one without divergence, and a gradient."""

    solenoidal: Any
    gradient: Any


def tangent_velocity(
    rho: Any,  # (*batch, *sizes)
    rate: Any,  # (*batch, *sizes)
    *,
    delta: float | None = None,
    mode: str = "weighted",
    d: int = 2,
    spacing: float | Sequence[float] = 1.0,
    boundary: str | Sequence[str] = "neumann",
    tol: float = 1e-5,
    max_iter: int = 200,
) -> TransportVelocity:
    r"""The velocity and growth of least energy under which a density changes at a given rate.

    .. math:: \min_{v, \alpha} \int \rho\,(|v|^2 + \delta^2 \alpha^2) \quad\text{s.t.}\quad
        \dot\rho + \nabla\cdot(\rho v) = \rho\,\alpha

    whose solution is v = grad phi, alpha = phi / delta^2 with the screened Poisson equation

    .. math:: -\nabla\cdot(\rho\nabla\varphi) + \delta^{-2} \rho\,\varphi = \dot\rho

    the tangent vector of Wasserstein-2 transport without delta, and of Wasserstein-Fisher-Rao transport with it. Finite
    differences on faces: the curl of v is zero and mass is balanced to the residual, in the discrete sense.

    Args:
        rho: positive density (or masses, one unit for both arguments).
        rate: its change in a unit of time; of sum zero without delta.
        delta: length beyond which growth is cheaper than motion; kappa = 1 / delta^2. None allows no growth.
        mode: "weighted", the equation above by conjugate gradients; or "flux", which puts rho = 1 in it, for the cost
            of one pair of fast transforms: then v stands for the flux rho v.
        d: the last d axes are space.
        spacing: edge lengths of a cell, one or d.
        boundary: "neumann" (nothing crosses the border) or "periodic", one or d.
        tol: residual to stop at, relative.
        max_iter: conjugate gradients; a `NotConvergedWarning` says when they were not enough.

    Returns:
        A `TransportVelocity` in the kind of the input, differentiable once in rho and rate by the implicit function
        theorem.

    Raises:
        InvalidInput: densities that are not positive and finite, shapes that do not fit, a rate with a sum other than
            zero without delta, unknown names.

    Complexity: O(N log N) time for an iteration on N cells, and some ten to thirty of them where densities vary by a
    factor of a hundred; O(N) memory.

    Reference:
        Benamou & Brenier (2000), A computational fluid mechanics solution to the Monge-Kantorovich mass transfer
        problem; Chizat, Peyré, Schmitzer & Vialard (2018), An interpolating distance between optimal transport and
        Fisher-Rao metrics; Concus & Golub (1973), Use of fast direct methods for the efficient numerical solution of
        nonseparable elliptic equations (the preconditioner).

    Example:
        >>> import torch
        >>> x = torch.arange(64.0, dtype=torch.float64)
        >>> rho = torch.exp(-((x - 32) / 6) ** 2 / 2) + 1e-3
        >>> rate = -0.5 * (rho.roll(-1) - rho.roll(1)) / 2  # it moves at a speed of one half
        >>> found = tangent_velocity(rho, rate - rate.mean(), d=1)
        >>> round(float(found.velocity[0, 32]), 2)
        0.5
    """
    kind = kind_of(rho)
    rho, rate = _density(rho, "rho"), float_tensor(rate, "rate")
    check_finite(rate, "rate", "finite rates")
    same_place(rho, "rho", rate, "rate")
    if rho.shape != rate.shape:
        refuse("rate", f"the shape of rho, {tuple(rho.shape)}", f"shape {tuple(rate.shape)}")
    if delta is not None:
        check_number("delta", delta)
    if mode not in MODES:
        refuse("mode", "'weighted' or 'flux'", repr(mode))
    check_number("tol", tol)
    check_count("max_iter", max_iter)
    cells = Cells.of(rho, d, spacing, boundary)
    kappa = 0.0 if delta is None else 1 / delta**2
    if delta is None:
        rate = _balanced(rate, cells)
    out = _flux(cells, rate, kappa) if mode == "flux" else _weighted(cells, rho, rate, kappa, tol, max_iter)
    return _in_kind(out, kind)


def transport_velocity(
    rho0: Any,  # (*batch, *sizes)
    rho1: Any,  # (*batch, *sizes)
    *,
    floor: float = 0.0,
    delta: float | None = None,
    mode: str = "weighted",
    d: int = 2,
    spacing: float | Sequence[float] = 1.0,
    boundary: str | Sequence[str] = "neumann",
    tol: float = 1e-5,
    max_iter: int = 200,
) -> TransportVelocity:
    r"""The velocity and growth between two densities that are near each other, one unit of time apart.

    `tangent_velocity` at the mean density, plus a floor, and the difference as its rate. The value is W2^2 (without
    delta), or the squared Wasserstein-Fisher-Rao distance, to first order in their distance.

    Args:
        rho0, rho1: densities, nonnegative; of one total without delta.
        floor: added to the mean density, which has to be positive.
        delta, mode, d, spacing, boundary, tol, max_iter: as for `tangent_velocity`.

    Returns:
        As `tangent_velocity`.

    Raises:
        InvalidInput: as for `tangent_velocity`; a floor below zero.

    Complexity: that of `tangent_velocity`.

    Reference:
        See `tangent_velocity`.

    Example:
        >>> import torch
        >>> x = torch.arange(64.0, dtype=torch.float64)
        >>> rho0, rho1 = (torch.exp(-((x - c) / 6) ** 2 / 2) for c in (32.0, 32.2))
        >>> found = transport_velocity(rho0, rho1 * (rho0.sum() / rho1.sum()), floor=1e-6, d=1)
        >>> round(float(found.velocity[0, 32]), 2)
        0.2
    """
    kind = kind_of(rho0)
    rho0, rho1 = float_tensor(rho0, "rho0"), float_tensor(rho1, "rho1")
    same_place(rho0, "rho0", rho1, "rho1")
    if rho0.shape != rho1.shape:
        refuse("rho1", f"the shape of rho0, {tuple(rho0.shape)}", f"shape {tuple(rho1.shape)}")
    if not (is_real(floor) and 0 <= floor < float("inf")):
        refuse("floor", "a finite density >= 0", repr(floor))
    mean = (rho0 + rho1) / 2 + floor
    out = tangent_velocity(mean, rho1 - rho0, delta=delta, mode=mode, d=d, spacing=spacing, boundary=boundary, tol=tol,
                           max_iter=max_iter)  # fmt: skip
    return _in_kind(out, kind)


def solenoidal_projection(
    flow: Any,  # (*batch, d, *sizes)
    *,
    d: int = 2,
    spacing: float | Sequence[float] = 1.0,
    boundary: str | Sequence[str] = "neumann",
) -> Parts:
    r"""The Helmholtz-Hodge decomposition: the nearest flow without divergence, and the gradient that is left.

    .. math:: u = w + \nabla p, \qquad \nabla\cdot w = 0, \qquad \Delta p = \nabla\cdot u

    on faces as in `TransportVelocity`; orthogonal. Nothing crosses a closed border: entries of u that belong to no
    inner face, the last ones along their axis, are taken as zero.

    Args:
        flow: u.
        d: the last d axes are space.
        spacing, boundary: as for `tangent_velocity`.

    Returns:
        `Parts(solenoidal, gradient)` in the kind of the input; differentiable.

    Raises:
        InvalidInput: an axis d that does not fit, NaN or infinity, unknown names.

    Complexity: O(N log N) on N cells.

    Reference:
        Chorin & Marsden (1993), A mathematical introduction to fluid mechanics.

    Example:
        >>> import torch
        >>> flow = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> w, gradient = solenoidal_projection(flow, boundary="periodic")
        >>> bool((w * gradient).sum().abs() < 1e-12), bool(torch.allclose(w + gradient, flow))
        (True, True)
    """
    kind = kind_of(flow)
    u = float_tensor(flow, "flow")
    check_finite(u, "flow", "finite flows")
    cells = Cells.of(u, d, spacing, boundary)
    if u.dim() == d or u.shape[u.dim() - d - 1] != d:
        refuse("flow", f"shape (*batch, {d}, *sizes) with {d} axes of space", f"shape {tuple(u.shape)}")
    u = cells.inner_faces(u)
    gradient = cells.gradient(cells.poisson(-cells.divergence(u)))
    return Parts(kind.array(u - gradient), kind.array(gradient))


# -- how it is done ------------------------------------------------------------------------------------------


def _in_kind(out: TransportVelocity, kind: Kind) -> TransportVelocity:
    velocity, growth, potential, value, residual = (kind.array(t) for t in out[:5])
    return TransportVelocity(velocity, growth, potential, value, residual, out.n_iter)


def _density(rho: Any, name: str) -> Tensor:
    out = float_tensor(rho, name)
    check_finite(out, name, "finite densities")
    if not bool((out > 0).all()):
        refuse(name, "positive densities", f"a minimum of {float(out.min()):.6g}", "Add a floor.")
    return out


def _space(cells: Cells) -> tuple[int, ...]:
    return tuple(range(-cells.d, 0))


def _balanced(rate: Tensor, cells: Cells) -> Tensor:
    """The rate without its mean, which is rounding, or there is no solution."""
    with torch.no_grad():
        net, size = rate.double().sum(_space(cells)), rate.double().abs().sum(_space(cells))
        if bool((net.abs() > ROUNDING[rate.dtype] * size).any()):
            worst = float((net.abs() / size.clamp(min=1e-300)).max())
            refuse("rate", "a sum of zero, as mass does not grow without delta", f"{worst:.3g} of its size",
                   "Subtract the mean, or give a delta.")  # fmt: skip
    return rate - rate.mean(_space(cells), keepdim=True)


def _flux(cells: Cells, rate: Tensor, kappa: float) -> TransportVelocity:
    phi = cells.poisson(rate, kappa)
    velocity, growth = cells.gradient(phi), kappa * phi
    with torch.no_grad():
        lost = -cells.divergence(velocity) + growth - rate
        residual = _norm(lost, cells) / _norm(rate, cells).clamp(min=torch.finfo(rate.dtype).tiny)
    return TransportVelocity(velocity, growth, phi, (rate * phi).sum(_space(cells)), residual, 0)


def _weighted(cells: Cells, rho: Tensor, rate: Tensor, kappa: float, tol: float, max_iter: int) -> TransportVelocity:
    fixed = rho.detach()
    on_faces, root = cells.spread(fixed), fixed.rsqrt()

    def solved(rhs: Tensor) -> _Solved:
        return _conjugate_gradients(
            lambda t: _operator(cells, fixed, on_faces, kappa, t),
            lambda t: root * cells.poisson(root * t, kappa),
            rhs,
            cells,
            tol,
            max_iter,
        )

    with torch.no_grad():
        phi, residual, n_iter = solved(rate.detach())
    if n_iter == max_iter and bool((residual > tol).any()):
        warnings.warn(
            f"tangent_velocity: stopped at max_iter={max_iter} with a relative residual of {float(residual.max()):.3g} "
            f"above tol={tol:g}; raise max_iter, the floor of the density, or tol.",
            NotConvergedWarning,
            stacklevel=3,
        )
    if torch.is_grad_enabled() and (rho.requires_grad or rate.requires_grad):
        # of A(rho) phi = rate: d phi = A^-1 (d rate - dA phi)
        balance = rate - _operator(cells, rho, cells.spread(rho), kappa, phi)
        phi = phi + _Implicit.apply(balance, lambda g: solved(_centred(g, cells) if not kappa else g).x)
    if not kappa:
        phi = _centred(phi, cells)
    value = (rate * phi).sum(_space(cells))  # by the balance of mass
    return TransportVelocity(cells.gradient(phi), kappa * phi, phi, value, residual, n_iter)


def _operator(cells: Cells, rho: Tensor, on_faces: Tensor, kappa: float, phi: Tensor) -> Tensor:
    """-div(rho grad phi) + kappa rho phi."""
    out = -cells.divergence(on_faces * cells.gradient(phi))
    return out + kappa * rho * phi if kappa else out


def _centred(t: Tensor, cells: Cells) -> Tensor:
    return t - t.mean(_space(cells), keepdim=True)


def _norm(t: Tensor, cells: Cells) -> Tensor:
    return t.square().sum(_space(cells)).sqrt()


class _Implicit(torch.autograd.Function):
    """Zero, with the derivative of the solution of a symmetric system in its right-hand side."""

    @staticmethod
    def forward(ctx: Any, rhs: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        ctx.save_for_backward(rhs)
        return torch.zeros_like(rhs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = ctx.solve(grad)
        return *walled((found,), (grad, *ctx.saved_tensors), "a tangent vector"), None


class _Solved(NamedTuple):
    x: Tensor
    residual: Tensor  # (*batch,), relative
    n_iter: int


def _conjugate_gradients(
    multiply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    rhs: Tensor,
    cells: Cells,
    tol: float,
    max_iter: int,
) -> _Solved:
    """Preconditioned conjugate gradients from zero, each item of the batch with its own steps."""
    space = _space(cells)

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(space, keepdim=True)

    def ratio(u: Tensor, v: Tensor) -> Tensor:
        return torch.where(v > 0, u / torch.where(v > 0, v, 1), 0)

    x, r = torch.zeros_like(rhs), rhs
    whole = dot(rhs, rhs)
    z = precondition(r)
    p, rz = z, dot(r, z)
    n_iter = 0
    while n_iter < max_iter and bool((dot(r, r) > tol**2 * whole).any()):
        q = multiply(p)
        step = ratio(rz, dot(p, q))
        x, r = x + step * p, r - step * q
        z = precondition(r)
        before, rz = rz, dot(r, z)
        p = z + ratio(rz, before) * p
        n_iter += 1
    lost = rhs - multiply(x)  # what is left in truth
    return _Solved(x, ratio(dot(lost, lost), whole).sqrt().reshape(rhs.shape[: rhs.dim() - cells.d]), n_iter)
