"""Barycentres whose points move: transports to all measures, and a step of the points, in turns."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...costs import Cost, SqEuclidean
from ...geometry import Ragged
from ...marginals import KL, Exact
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Solution, Status
from ..base import Solver, run
from ..entropic.hybrid import SinkhornNewton
from ..entropic.items import takes_newton
from ..entropic.sinkhorn import Sinkhorn
from ..entropic.start import Given
from ..exact.simplex import NetworkSimplex
from .problem import transports

__all__ = ["Found", "FreeSupport"]

_NEAR = 0.1  # residual up to which the potentials of the last plans are worth starting from
_HALVINGS = 20  # of a step that did not lower the objective
_INNER = 20  # steps of the points for given plans


@dataclass(frozen=True)
class Found:
    """Where a descent has ended."""

    x: Tensor
    solution: Solution
    status: Status
    values: list[float]
    residual: float


@dataclass(frozen=True)
class FreeSupport:
    r"""Descend on the points x of a barycentre: min_x sum_k w_k T((x, b), y_k).

    The plans P_k for the points at hand bound the objective from above, by  sum_k w_k <P_k, c(x, y_k)>  and what does
    not depend on x. Its minimiser for the squared Euclidean cost is the mean of where the mass of each point goes; for
    other costs it is descended on by L-BFGS where the plans are sparse, and by gradient steps with backtracking where
    they are not. So the objective never rises. A fixed point is a local optimum, of the points for the given masses.

    Attributes:
        cost: the ground cost.
        epsilon, rho: as for `barycentre`.
        tol: of the residual: the root of the mean squared move of a step over the spread of the points.
        max_iter: steps.
        timeout: seconds.
    """

    cost: Cost
    epsilon: Tensor | None = None
    rho: Any = None
    tol: float = 1e-6
    max_iter: int = 200
    timeout: float | None = None

    def __call__(self, x: Tensor, b: Tensor, clouds: list[Tensor], a: list[Tensor] | None, w: Tensor) -> Found:
        """Descend from x (n, d) with masses b (n,)."""
        begin = time.perf_counter()
        values: list[float] = []
        status, residual, size = Status.MAX_ITER, math.inf, 1.0
        quadratic = isinstance(self.cost, SqEuclidean)
        solution = self._solved(x, b, clouds, a, None)
        values.append(self._value(solution, w))
        for _ in range(self.max_iter):
            if quadratic:
                new = self._means(solution, clouds, w, x)
            elif isinstance(solution._plan, SparsePlan):
                new = self._descended(solution, clouds, w, x)
            else:
                new, size = self._stepped(solution, x, b, clouds, a, w, values[-1], size)
            residual = self._residual(x, new, b)
            near = residual <= _NEAR or self.epsilon is not None
            after = self._solved(new, b, clouds, a, solution if near else None)
            value = self._value(after, w)
            if value <= values[-1]:  # a rise is rounding, or that of an entropic solve: the end
                x, solution = new, after
                values.append(value)
            else:
                residual = min(residual, self.tol) if value <= values[-1] + 1e-6 * abs(values[-1]) else residual
            if residual <= self.tol:
                status = Status.CONVERGED
                break
            if value > values[-1]:
                status = Status.STAGNATED
                break
            if self.timeout is not None and time.perf_counter() - begin > self.timeout:
                status = Status.TIME_OUT
                break
        return Found(x, solution, status, values, residual)

    def _solved(
        self, x: Tensor, b: Tensor, clouds: list[Tensor], a: list[Tensor] | None, last: Solution | None
    ) -> Solution:
        """The transports from the measures to points, from the potentials of the last ones on."""
        geometry = transports(clouds, x, self.cost)
        marginals = Exact() if self.rho is None else KL(self.rho)
        masses: Any = a
        if a is not None and not isinstance(geometry, Ragged):
            masses = torch.stack(a)
        problem = Problem.make(geometry, masses, b.expand(len(clouds), -1), marginals=marginals, epsilon=self.epsilon)
        start = None if last is None else last.f.detach()  # that of the measures, which have not moved
        solver: Solver[Any]
        if self.epsilon is not None:
            sinkhorn = Sinkhorn() if last is None else Sinkhorn(start=Given(g=last.g.detach().to(problem.b)))
            solver = SinkhornNewton(sinkhorn=sinkhorn) if takes_newton(problem) else sinkhorn
        else:
            solver = NetworkSimplex(f=start)
        return run(problem, solver, warn=True)

    def _value(self, solution: Solution, w: Tensor) -> float:
        return float((w * solution._value.double()).sum())

    @staticmethod
    def _means(solution: Solution, clouds: list[Tensor], w: Tensor, x: Tensor) -> Tensor:
        """Each point at the mean of where its mass goes; points without mass stay."""
        y = Ragged.pad(clouds)
        ones = y.new_ones((*y.shape[:-1], 1))
        sums = (w.to(y)[:, None, None] * solution._plan.T._matmul(torch.cat([y, ones], -1)).to(y)).sum(0)
        mass = sums[:, -1:]
        return torch.where(mass > 0, sums[:, :-1] / torch.where(mass > 0, mass, 1), x)

    def _descended(self, solution: Solution, clouds: list[Tensor], w: Tensor, x: Tensor) -> Tensor:
        """Points that lower the cost of the plans at hand."""
        plan = solution._plan
        assert isinstance(plan, SparsePlan)
        mass = w.unsqueeze(-1) * plan.mass.double()
        moving = x.double().clone().requires_grad_()
        optimizer = torch.optim.LBFGS([moving], max_iter=_INNER, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        wide = [y.double() for y in clouds]
        scale = mass.sum() / len(x)  # gradients of the size of a move

        with torch.enable_grad():

            def objective() -> Tensor:
                return (mass * transports(wide, moving, self.cost).cost_at(plan.rows, plan.cols)).sum() / scale

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = objective()
                loss.backward()
                return loss

            before = float(objective().detach())
            optimizer.step(closure)
            return moving.detach().to(x) if float(objective().detach()) <= before else x

    def _stepped(
        self,
        solution: Solution,
        x: Tensor,
        b: Tensor,
        clouds: list[Tensor],
        a: list[Tensor] | None,
        w: Tensor,
        value: float,
        size: float,
    ) -> tuple[Tensor, float]:
        """A gradient step that lowers the objective, and its size; the gradient is that of the envelope."""
        with torch.enable_grad():
            moving = x.detach().clone().requires_grad_()
            geometry = transports(clouds, moving, self.cost)
            problem = replace(solution.problem, geometry=geometry)
            again = Solution(problem, *solution._solved, statuses=solution.statuses, stats={})
            (slope,) = torch.autograd.grad((w.to(x) * again.value).sum(), moving)
        slope = slope / b.unsqueeze(-1).clamp(min=torch.finfo(x.dtype).tiny)
        for _ in range(_HALVINGS):
            new = x - size * slope
            if self._value(self._solved(new, b, clouds, a, solution), w) < value:
                return new, 2 * size
            size = size / 2
        return x, size

    @staticmethod
    def _residual(x: Tensor, new: Tensor, b: Tensor) -> float:
        share = (b / b.sum()).unsqueeze(-1)
        spread = (share * (new - (share * new).sum(0)).square()).sum()
        moved = (share * (new - x).square()).sum()
        return float((moved / spread).sqrt()) if spread > 0 else float(moved > 0)
