"""Geodesics of measures on grids: the density and its flow at every time, by proximal splitting."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._inputs import Kind, check_finite, float_tensor, is_count, kind_of, same_place
from ...errors import NotConvergedWarning, refuse
from ...problem import equal_masses
from ...solution import Status
from ..base import check_count, check_number
from .cells import Cells

__all__ = ["DynamicPath", "dynamic_transport"]

_RELAXATION = 1.8  # of each iteration; 1 is none, 2 the limit
_ROOT_STEPS = 60  # of Newton, at most; a dozen are usual
_LOOK = 25  # iterations between two looks at the error
_DUAL_STEP = 0.5  # potentials over densities, in the units of the iteration


@dataclass(frozen=True)
class DynamicPath:
    """A geodesic between two measures on a grid, and how good it is.

    Attributes:
        density: masses in cells at the times 0, 1/T, ..., 1, (*batch, T + 1, *sizes); the ends are a and b.
        flow: mass times velocity, (*batch, T, d, *sizes), half-way between two times and on the faces of cells: entry i
            of component k lies between cell i and the next one along axis k.
        growth: mass that appears in a unit of time, (*batch, T, *sizes); zero without delta.
        value: the action, (*batch,): W2^2, or the squared Wasserstein-Fisher-Rao distance, of the grid.
        dual_value: that of the potential, a lower bound up to `residual`.
        potential: phi, (*batch, T, *sizes), the dual variable of the balance of mass; velocity is half its gradient.
        residual: of the optimality conditions, relative, (*batch,).
        balance: the largest violation of the balance of mass in a cell, over the mean mass of a cell, (*batch,).
        status: how it ended.
        n_iter: iterations.
    """

    density: Any
    flow: Any
    growth: Any
    value: Any
    dual_value: Any
    potential: Any
    residual: Any
    balance: Any
    status: Status
    n_iter: int


def dynamic_transport(
    a: Any,  # (*batch, *sizes)
    b: Any,  # (*batch, *sizes)
    *,
    delta: float | None = None,
    steps: int = 16,
    d: int = 2,
    spacing: float | Sequence[float] = 1.0,
    boundary: str | Sequence[str] = "neumann",
    tol: float = 1e-4,
    max_iter: int = 5000,
) -> DynamicPath:
    r"""The geodesic between two images, moving pictures with least action (Benamou and Brenier).

    .. math:: \min_{\rho, m, \zeta} \int_0^1\!\!\int \frac{|m|^2 + \delta^2 \zeta^2}{\rho} \quad\text{s.t.}\quad
        \partial_t \rho + \nabla\cdot m = \zeta, \qquad \rho(0) = a, \quad \rho(1) = b

    with zeta = 0 without delta. Densities live at times and in cells, flows between times and on faces, so that the
    balance of mass holds to rounding; they meet in the action at the centres of space-time cells. Primal-dual
    splitting: a projection onto the balance of mass, by fast transforms in space and time, and the proximal map of the
    action, a cubic equation in each cell.

    The value is that of the grid: it tends to W2^2 (the squared Euclidean cost without 1/2) as cells and time steps
    shrink, at first order where measures are not smooth. For static problems `solve(Grid(...))` is exact and faster;
    this is for what lies between.

    Args:
        a, b: masses in cells, nonnegative; of one total without delta.
        delta: Wasserstein-Fisher-Rao transport, where mass may grow and shrink; further than pi delta nothing moves.
            None is plain transport.
        steps: T, time steps.
        d: the last d axes are space; the axes before are a batch.
        spacing: edge lengths of a cell, one or d.
        boundary: "neumann" (nothing crosses the border) or "periodic", one or d.
        tol: relative residual to stop at.
        max_iter: iterations; a `NotConvergedWarning` says when they were not enough.

    Returns:
        A `DynamicPath` in the kind of the input; without gradients.

    Raises:
        InvalidInput: masses that are negative, not finite, without total or of two totals; shapes that do not fit.

    Complexity: O(T N log(T N)) time for an iteration on N cells, and some hundreds of them; O(T N) memory.

    Reference:
        Benamou & Brenier (2000), A computational fluid mechanics solution to the Monge-Kantorovich mass transfer
        problem; Papadakis, Peyré & Oudet (2014), Optimal transport with proximal splitting; Chambolle & Pock (2011), A
        first-order primal-dual algorithm for convex problems; Chizat, Peyré, Schmitzer & Vialard (2018), An
        interpolating distance between optimal transport and Fisher-Rao metrics.

    Example:
        >>> import torch
        >>> x = torch.arange(32.0, dtype=torch.float64)
        >>> a, b = (torch.softmax(-((x - c) / 3) ** 2 / 2, 0) for c in (11.0, 19.0))
        >>> path = dynamic_transport(a, b, d=1, steps=8)
        >>> middle = float((path.density[4] * x).sum())
        >>> round(middle, 1), bool(abs(float(path.value) / 64 - 1) < 0.05)
        (15.0, True)
    """
    kind = kind_of(a)
    a, b = (_masses(t, name) for t, name in ((a, "a"), (b, "b")))
    same_place(a, "a", b, "b")
    if a.shape != b.shape:
        refuse("b", f"the shape of a, {tuple(a.shape)}", f"shape {tuple(b.shape)}")
    if delta is not None:
        check_number("delta", delta)
    if not (is_count(steps) and steps >= 2):
        refuse("steps", "an integer >= 2", repr(steps))
    check_number("tol", tol)
    check_count("max_iter", max_iter)
    space = Cells.of(a, d, spacing, boundary)
    flat = (*a.shape[: a.dim() - d], -1)
    masses = a.reshape(flat).sum(-1), b.reshape(flat).sum(-1)
    for mass, name in zip(masses, "ab"):
        if not bool((mass > 0).all()):
            refuse(name, "positive total mass", "masses that sum to zero")
    if delta is None:
        b = equal_masses(a.reshape(flat), b.reshape(flat)).reshape(a.shape)
    with torch.no_grad():
        return _Splitting(a, b, space, int(steps), delta).run(tol, max_iter, kind)


def _masses(t: Any, name: str) -> Tensor:
    out = float_tensor(t, name).detach()
    check_finite(out, name, "finite masses")
    if not bool((out >= 0).all()):
        refuse(name, "nonnegative masses", f"a minimum of {float(out.min()):.6g}")
    return out


class _Point(NamedTuple):
    """A flow in space-time, (*batch, 1 + d, T, *sizes), density first; and growth times delta, (*batch, T, *sizes)."""

    flow: Tensor
    growth: Tensor

    def plus(self, other: _Point, t: float) -> _Point:
        return _Point(self.flow + t * other.flow, self.growth + t * other.growth)


class _Splitting:
    """min J(K x + k) over the x that balance mass, in units in which the mean density and the longest edge are one.

    x holds densities at inner times and flows on faces, K takes means onto the centres of cells, and k is what the two
    ends of time add to them.
    """

    def __init__(self, a: Tensor, b: Tensor, space: Cells, steps: int, delta: float | None) -> None:
        self.space, self.steps = space, steps
        self.length = max(h * n for h, n in zip(space.spacing, space.sizes))
        axes = tuple(range(a.dim() - space.d, a.dim()))
        self.mass = ((a + b) / 2).mean(axes, keepdim=True)
        self.a, self.b = a / self.mass, b / self.mass
        self.delta = None if delta is None else delta / self.length
        self.screen = 0.0 if self.delta is None else 1 / self.delta**2
        self.cells = Cells(
            (steps, *space.sizes),
            (1 / steps, *(h / self.length for h in space.spacing)),
            ("neumann", *space.boundaries),
        )
        self.time = a.dim() - space.d  # the axis of time
        between = self.a.new_zeros((*self.a.shape[: self.time], steps, *space.sizes))
        self.ends = between.clone()  # what enters at the first and leaves at the last time
        self.ends.select(self.time, 0).sub_(self.a * steps)
        self.ends.select(self.time, -1).add_(self.b * steps)
        self.halves = between.clone()
        self.halves.select(self.time, 0).add_(self.a / 2)
        self.halves.select(self.time, -1).add_(self.b / 2)

    # -- the parts -------------------------------------------------------------------------------------------

    def _centres(self, x: _Point) -> _Point:
        """K x."""
        return _Point(self.cells.to_cells(x.flow), x.growth)

    def _adjoint(self, y: _Point) -> _Point:
        """K^T y."""
        return _Point(self.cells.to_faces(y.flow), y.growth)

    def _with_ends(self, v: _Point, sign: float = 1.0) -> _Point:
        """V + k, for V at the centres."""
        flow = v.flow.clone()
        flow.select(self.time, 0).add_(sign * self.halves)
        return _Point(flow, v.growth)

    def _lost(self, x: _Point) -> Tensor:
        """What the balance of mass is missed by, (*batch, T, *sizes)."""
        out = self.cells.divergence(x.flow) + self.ends
        return out if self.delta is None else out - x.growth / self.delta

    def _project(self, x: _Point) -> _Point:
        """The nearest point that balances mass."""
        phi = self.cells.poisson(self._lost(x), self.screen)
        return _Point(
            x.flow + self.cells.gradient(phi), x.growth if self.delta is None else x.growth + phi / self.delta
        )

    def _potential(self, y: _Point) -> Tensor:
        """The lambda whose A^T lambda is nearest to y, for A x = div flow - growth / delta."""
        out = -self.cells.divergence(y.flow)
        if self.delta is not None:
            out = out + y.growth / self.delta
        return -self.cells.poisson(out, self.screen)

    def _prox(self, v: _Point, strength: float) -> _Point:
        """The proximal map of strength * sum (|m|^2 + z^2) / rho: a cubic equation for rho in each cell."""
        rho, m = v.flow.narrow(self.time, 0, 1), v.flow.narrow(self.time, 1, self.space.d)
        z = v.growth.unsqueeze(self.time)
        pull = strength * (m.square().sum(self.time, keepdim=True) + z.square())
        least = 2 * strength  # of w = rho + 2 strength, which solves w^2 (w - c) = pull
        c = rho + least
        ahead = torch.where(c > 0, pull / torch.where(c > 0, c, 1).square(), torch.inf)
        w = c.clamp(min=0) + torch.minimum(pull.pow(1 / 3), ahead)
        w = w.clamp(min=least)
        for _ in range(_ROOT_STEPS):  # from above Newton falls to the largest root
            fallen = (w - (w * w * (w - c) - pull) / (w * (3 * w - 2 * c))).clamp(min=least)
            done = (w - fallen).abs() <= 4 * torch.finfo(w.dtype).eps * w
            w = fallen
            if bool(done.all()):
                break
        new = w - least
        share = new / w
        return _Point(torch.cat([new, share * m], self.time), (share * z).squeeze(self.time))

    # -- the iteration ---------------------------------------------------------------------------------------

    def run(self, tol: float, max_iter: int, kind: Kind) -> DynamicPath:
        x = self._start()
        y = _Point(torch.zeros_like(x.flow), torch.zeros_like(x.growth))
        sigma = _DUAL_STEP
        tau = 0.99 / sigma  # |K| <= 1
        n_iter, status = 0, Status.MAX_ITER
        while True:
            new_x = self._project(x.plus(self._adjoint(y), -tau))
            ahead = y.plus(self._centres(new_x.plus(new_x, 1).plus(x, -1)), sigma)
            # the conjugate's proximal map, by Moreau's identity
            scaled = self._with_ends(_Point(ahead.flow / sigma, ahead.growth / sigma))
            near = self._with_ends(self._prox(scaled, 1 / sigma), -1.0)
            new_y = ahead.plus(near, -sigma)
            n_iter += 1
            if n_iter % _LOOK == 0 or n_iter == max_iter:
                residual = self._residual(x, y, new_x, new_y)
                if bool((residual <= tol).all()):
                    status = Status.CONVERGED
                if n_iter == max_iter or status.ok:
                    x, y = new_x, new_y
                    break
            x = x.plus(new_x.plus(x, -1), _RELAXATION)
            y = y.plus(new_y.plus(y, -1), _RELAXATION)
        if not status.ok:
            warnings.warn(
                f"dynamic_transport: {Status.MAX_ITER.value} (after {n_iter} iterations, residual "
                f"{float(residual.max()):.3g}).",
                NotConvergedWarning,
                stacklevel=4,
            )
        return self._path(x, y, residual, status, n_iter, kind)

    def _start(self) -> _Point:
        """The straight line between the ends, and whatever flow balances it."""
        t = torch.arange(1, self.steps + 1, dtype=self.a.dtype, device=self.a.device) / self.steps
        t = t.reshape(-1, *(1,) * self.space.d)
        line = (1 - t) * self.a.unsqueeze(self.time) + t * self.b.unsqueeze(self.time)
        flow = torch.zeros_like(line).unsqueeze(self.time).repeat_interleave(1 + self.space.d, self.time)
        flow.select(self.time, 0).copy_(line)
        return self._project(_Point(self.cells.inner_faces(flow), torch.zeros_like(line)))

    def _residual(self, x: _Point, y: _Point, new_x: _Point, new_y: _Point) -> Tensor:
        """How far one iteration moves, relative to where it is, (*batch,)."""
        return torch.maximum(*(
            self._norm(new.plus(old, -1)) / self._norm(new).clamp(min=torch.finfo(self.a.dtype).tiny)
            for old, new in ((x, new_x), (y, new_y))
        ))  # fmt: skip

    def _norm(self, x: _Point) -> Tensor:
        parts = (x.flow.square().flatten(self.time), x.growth.square().flatten(self.time))
        return (parts[0].sum(-1) + parts[1].sum(-1)).sqrt()

    # -- the answer ------------------------------------------------------------------------------------------

    def _path(self, x: _Point, y: _Point, residual: Tensor, status: Status, n_iter: int, kind: Kind) -> DynamicPath:
        d, time = self.space.d, self.time
        batch = self.a.shape[:time]
        mass = self.mass.reshape(batch)
        centres = self._with_ends(self._centres(x))
        # J is homogeneous: its value is <K x + k, y> at the optimum
        pairing = (centres.flow * y.flow).flatten(time).sum(-1) + (centres.growth * y.growth).flatten(time).sum(-1)
        potential = self._potential(self._adjoint(y))
        at_ends = (self.halves * y.flow.select(time, 0)).flatten(time).sum(-1)
        dual = -(potential * self.ends).flatten(time).sum(-1) + at_ends
        unit = mass * self.length**2 / self.steps
        density = torch.cat([
            self.a.unsqueeze(time), x.flow.select(time, 0).narrow(time, 0, self.steps - 1), self.b.unsqueeze(time)
        ], time)  # fmt: skip
        scale = self.mass.unsqueeze(time)
        flow = x.flow.narrow(time, 1, d).movedim(time, time + 1) * scale.unsqueeze(time) * self.length
        growth = torch.zeros_like(x.growth) if self.delta is None else x.growth * scale / self.delta
        balance = self._lost(x).abs().flatten(time).amax(-1)
        return DynamicPath(
            density=kind.array(density * scale),
            flow=kind.array(flow),
            growth=kind.array(growth),
            value=kind.array(unit * pairing),
            dual_value=kind.array(unit * dual),
            potential=kind.array(-potential * self.length**2),
            residual=kind.array(residual),
            balance=kind.array(balance),
            status=status,
            n_iter=n_iter,
        )
