"""Sampling along a velocity field, and what the way costs: likelihood, energy, straightness."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._inputs import is_count, is_real
from ..errors import need, refuse

__all__ = ["log_likelihood", "path_energy", "sample_ode", "straightness"]

Field = Callable[..., Tensor]
"""A velocity field: `model(z, t, **cond)` of points z (B, *shape) and times t (B,), shaped as z."""

_Rate = Callable[[Tensor, Tensor], Tensor]  # of a time () and a state; shaped as the state
_Step = Callable[[_Rate, Tensor, Tensor, Tensor], Tensor]  # of a rate, two times and a state at the first


def _euler(rate: _Rate, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    return z + (s - t) * rate(t, z)


def _midpoint(rate: _Rate, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    half = (s - t) / 2
    return z + 2 * half * rate(t + half, z + half * rate(t, z))


def _heun(rate: _Rate, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    first = rate(t, z)
    return z + (s - t) / 2 * (first + rate(s, z + (s - t) * first))


def _rk4(rate: _Rate, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    half = (s - t) / 2
    first = rate(t, z)
    second = rate(t + half, z + half * first)
    third = rate(t + half, z + half * second)
    fourth = rate(s, z + 2 * half * third)
    return z + half / 3 * (first + 2 * second + 2 * third + fourth)


_STEPS: dict[str, _Step] = {"euler": _euler, "midpoint": _midpoint, "heun": _heun, "rk4": _rk4}


def sample_ode(
    model: Field,
    x0: Tensor,  # (B, *shape)
    *,
    steps: int = 50,
    method: str = "euler",
    times: Tensor | None = None,  # (k,)
    rtol: float = 1e-5,
    atol: float = 1e-5,
    return_trajectory: bool = False,
    **cond: Any,
) -> Tensor:  # (B, *shape) or (k, B, *shape)
    r"""Follow a velocity field from the source to the data.

    .. math:: \dot z_t = v(z_t, t), \qquad z_0 = x_0

    Gradients are recorded as everywhere in torch; wrap the call in `torch.no_grad()` to draw samples only.

    Args:
        model: the field, `model(z, t, **cond)` with z (B, *shape) and t (B,).
        x0: where to start.
        steps: steps of one length over [0, 1]; without effect beside `times`.
        method: "euler" (one evaluation a step, order 1), "midpoint" and "heun" (2, order 2), "rk4" (4, order 4), or
            "dopri5", whose steps adapt to `rtol` and `atol` (of torchdiffeq).
        times: the ends of the steps, strictly rising or falling (from data back to the source); for "dopri5" the times
            at which the trajectory is told.
        rtol, atol: relative and absolute error of a step of "dopri5".
        return_trajectory: all points on the way instead of the last ones.
        **cond: handed to the model, e.g. labels.

    Raises:
        InvalidInput: points that are no floating tensor, times that turn, another method, a model whose answer has
            another shape.
        MissingExtra: "dopri5" without torchdiffeq.

    Complexity: `steps` times the evaluations of a step; "heun" and "rk4" evaluate at the last time as well.

    Example:
        >>> import torch
        >>> end = sample_ode(lambda z, t: -z, torch.ones(1, 2, dtype=torch.float64), steps=20, method="rk4")
        >>> bool((end - math.exp(-1)).abs().max() < 1e-6)
        True

    Source: Chen, Rubanova, Bettencourt & Duvenaud (2018), Neural ordinary differential equations; Dormand & Prince
    (1980), A family of embedded Runge-Kutta formulae.
    """
    _check_points(x0, "x0")

    def rate(t: Tensor, z: Tensor) -> Tensor:
        return _velocity(model, z, t, cond)

    times = _read_times(times, steps, x0, back=False)
    return _integrate(rate, x0, times, method, rtol, atol, keep=return_trajectory)


def log_likelihood(
    model: Field,
    x1: Tensor,  # (B, *shape)
    *,
    steps: int = 50,
    method: str = "midpoint",
    times: Tensor | None = None,  # (k,)
    rtol: float = 1e-5,
    atol: float = 1e-5,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:  # (B,)
    r"""Compute the log density at data of the flow that starts from the standard Gaussian, in nats.

    .. math:: \log p_1(x_1) = \log \mathcal N(z_0; 0, I) - \int_0^1 \nabla \cdot v(z_t, t)\,dt, \qquad
        \dot z_t = v(z_t, t),\ z_1 = x_1

    Bits per coordinate are -log_likelihood / (d log 2). No gradients flow to the model.

    Args:
        model: as for `sample_ode`; the points of a batch must not depend on one another.
        x1: data.
        steps, method, rtol, atol: as for `sample_ode`.
        times: the ends of the steps, from data to source: strictly falling.
        probes: how many random signs estimate the divergence without bias (Hutchinson), the same along the whole way;
            None for the exact trace, which takes d derivatives of the model.
        generator: draws the probes.
        **cond: handed to the model.

    Raises:
        InvalidInput: as for `sample_ode`; times that do not fall; probes that are no count.
        MissingExtra: "dopri5" without torchdiffeq.

    Complexity: d, or `probes`, derivatives of the model for each evaluation of `sample_ode`.

    Example:
        >>> import torch
        >>> x1 = torch.zeros(1, 2, dtype=torch.float64)
        >>> grown = log_likelihood(lambda z, t: math.log(2) * z, x1, method="rk4")  # twice as wide in each coordinate
        >>> round(float(grown), 6) == round(-math.log(2 * math.pi) - 2 * math.log(2), 6)
        True

    Source: Chen, Rubanova, Bettencourt & Duvenaud (2018), Neural ordinary differential equations; Grathwohl, Chen,
    Bettencourt, Sutskever & Duvenaud (2019), FFJORD (the probes).
    """
    _check_points(x1, "x1")
    if probes is not None and not is_count(probes):
        refuse("probes", "a positive number of probes, or None for the exact trace", repr(probes))
    times = _read_times(times, steps, x1, back=True)
    size = math.prod(x1.shape[1:])
    signs = None
    if probes is not None:
        signs = torch.randint(0, 2, (probes, len(x1), size), generator=generator, device=_home(generator, x1))
        signs = (2 * signs - 1).to(x1)

    def divergence(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v = _velocity(model, z, t, cond)
            flat = v.reshape(len(z), size)
            if not flat.requires_grad:  # it does not look at z
                return v, z.new_zeros(len(z))
            total = z.new_zeros(len(z))
            if signs is None:
                for i in range(size):
                    total = total + _pulled(flat[:, i].sum(), z)[:, i]
            else:
                for sign in signs:
                    total = total + (_pulled((flat * sign).sum(), z) * sign).sum(1) / len(signs)
        return v.detach(), total

    with torch.no_grad():
        z0, change = _with_integral(divergence, x1, times, method, rtol, atol)
        # the integral ran from data to source
        return -(z0.square() + math.log(2 * math.pi)).reshape(len(x1), size).sum(1) / 2 + change


def path_energy(
    model: Field,
    x0: Tensor,  # (B, *shape)
    *,
    steps: int = 50,
    method: str = "euler",
    times: Tensor | None = None,  # (k,)
    rtol: float = 1e-5,
    atol: float = 1e-5,
    **cond: Any,
) -> Tensor:  # (B,)
    r"""Compute the kinetic energy of each sampled path; its mean is at least the squared W2 between the two ends.

    .. math:: \int_0^1 \lVert v(z_t, t)\rVert^2\,dt, \qquad \dot z_t = v(z_t, t),\ z_0 = x_0

    Args:
        model, x0, steps, method, times, rtol, atol, cond: as for `sample_ode`.

    Raises:
        InvalidInput, MissingExtra: as for `sample_ode`.

    Example:
        >>> import torch
        >>> round(float(path_energy(lambda z, t: torch.full_like(z, 3.0), torch.zeros(1, 2))), 3)  # 3^2 + 3^2
        18.0

    Source: Benamou & Brenier (2000), A computational fluid mechanics solution to the Monge-Kantorovich mass transfer
    problem.
    """
    return _energy(model, x0, steps, method, times, rtol, atol, cond)[1]


def straightness(
    model: Field,
    x0: Tensor,  # (B, *shape)
    *,
    steps: int = 50,
    method: str = "euler",
    times: Tensor | None = None,  # (k,)
    rtol: float = 1e-5,
    atol: float = 1e-5,
    **cond: Any,
) -> Tensor:  # (B,)
    r"""Compute how far each sampled path is from a straight line at constant speed: 0 for one.

    .. math:: \int_0^1 \lVert (z_1 - z_0) - v(z_t, t)\rVert^2\,dt = \int_0^1 \lVert v(z_t, t)\rVert^2\,dt
        - \lVert z_1 - z_0\rVert^2

    For times that span T instead of 1 the displacement is divided by T.

    Args:
        model, x0, steps, method, times, rtol, atol, cond: as for `sample_ode`.

    Raises:
        InvalidInput, MissingExtra: as for `sample_ode`.

    Example:
        >>> import torch
        >>> bool(straightness(lambda z, t: torch.full_like(z, 3.0), torch.zeros(1, 2)).abs().max() < 1e-4)
        True

    Source: Liu, Gong & Liu (2023), Flow straight and fast: learning to generate and transfer data with rectified flow.
    """
    end, energy = _energy(model, x0, steps, method, times, rtol, atol, cond)
    span = _read_times(times, steps, x0, back=False)[[0, -1]].diff().abs()
    moved = (end - x0).square().reshape(len(x0), -1).sum(1)
    return energy - moved / span


def _energy(
    model: Field,
    x0: Tensor,
    steps: int,
    method: str,
    times: Tensor | None,
    rtol: float,
    atol: float,
    cond: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The ends of the paths, and the energies on the way, (B,)."""
    _check_points(x0, "x0")

    def power(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v = _velocity(model, z, t, cond)
        return v, v.square().reshape(len(z), -1).sum(1)

    times = _read_times(times, steps, x0, back=False)
    end, energy = _with_integral(power, x0, times, method, rtol, atol)
    return end, energy if bool(times[-1] > times[0]) else -energy


def _with_integral(
    rates: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    times: Tensor,
    method: str,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor]:
    """The ends of the paths (B, *shape), and the integral over time of a second rate (B,), by the same steps."""

    def rate(t: Tensor, state: Tensor) -> Tensor:
        velocity, second = rates(state[:, :-1].reshape(x.shape), t)
        return torch.cat([velocity.reshape(len(x), -1), second.unsqueeze(1)], 1)

    state = torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), 1)], 1)
    end = _integrate(rate, state, times, method, rtol, atol, keep=False)
    return end[:, :-1].reshape(x.shape), end[:, -1]


def _integrate(rate: _Rate, z: Tensor, times: Tensor, method: str, rtol: float, atol: float, *, keep: bool) -> Tensor:
    """The state at the last time, or at all."""
    if method == "dopri5":
        for name, error in (("rtol", rtol), ("atol", atol)):
            if not is_real(error) or not 0 < error < math.inf:
                refuse(name, "a positive finite error", repr(error))
        odeint = need("torchdiffeq", "flows", "Sampling with steps that adapt (method='dopri5')").odeint
        found: Tensor = odeint(rate, z, times if keep else times[[0, -1]], rtol=rtol, atol=atol, method=method)
        return found if keep else found[-1]
    if not isinstance(method, str) or method not in _STEPS:
        refuse("method", ", ".join(map(repr, _STEPS)) + " or 'dopri5'", repr(method))
    step, states = _STEPS[method], [z]
    for t, s in itertools.pairwise(times):
        z = step(rate, t, s, z)
        if keep:
            states.append(z)
    return torch.stack(states) if keep else z


def _velocity(model: Field, z: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    v = model(z, t.expand(len(z)), **cond)
    if v.shape != z.shape:
        refuse("model", f"velocities of shape {tuple(z.shape)}, as the points", f"shape {tuple(v.shape)}")
    return v


def _pulled(value: Tensor, z: Tensor) -> Tensor:
    """The gradient of a value at points z, (B, d)."""
    (grad,) = torch.autograd.grad(value, z, retain_graph=True, materialize_grads=True, allow_unused=True)
    return grad.reshape(len(z), -1)


def _home(generator: torch.Generator | None, x: Tensor) -> torch.device:
    return x.device if generator is None else generator.device


def _check_points(x: Any, name: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        refuse(name, "a floating tensor of points (B, *shape)", getattr(x, "dtype", type(x).__name__))
    if x.dim() < 1 or not x.numel():
        refuse(name, "at least one point (B, *shape)", f"shape {tuple(x.shape)}")


def _read_times(times: Any, steps: int, like: Tensor, *, back: bool) -> Tensor:
    """The ends of the steps, (k,)."""
    if times is None:
        if not is_count(steps):
            refuse("steps", "a positive number of steps", repr(steps))
        first, last = (1.0, 0.0) if back else (0.0, 1.0)
        return torch.linspace(first, last, int(steps) + 1, dtype=like.dtype, device=like.device)
    times = torch.as_tensor(times, dtype=like.dtype, device=like.device)
    if times.dim() != 1 or len(times) < 2:
        refuse("times", "at least two times, (k,)", f"shape {tuple(times.shape)}")
    lengths = times.diff()
    rising, falling = bool((lengths > 0).all()), bool((lengths < 0).all())
    if back and not falling:
        refuse("times", "strictly falling times, from data to source", "others")
    if not (rising or falling):
        refuse("times", "strictly rising or strictly falling times", "others")
    return times
