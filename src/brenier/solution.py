"""The answer: values, plan, potentials, map and certificate, all lazy."""

from __future__ import annotations

import enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ._inputs import Kind, check_finite, float_tensor
from .adjoint import Adjoint, Envelope, absorbed, gibbs_marginals, gibbs_plan
from .certificate import Certificate, certify
from .errors import refuse
from .geometry import Geometry, PointCloud
from .marginals import Exact
from .plan import Plan, SparsePlan
from .problem import Problem

__all__ = ["Potentials", "Solution", "Status"]


class Status(enum.Enum):
    """How a solve ended; the value is the message."""

    OPTIMAL = "optimal: the potentials prove it"
    CONVERGED = "converged: the tolerance was met"
    STAGNATED = "stopped where the dual value no longer rises, before the tolerance was met"
    MAX_ITER = "stopped at max_iter before the tolerance was met; raise max_iter, tol or epsilon"
    TIME_OUT = "stopped at the timeout; the plan is the best so far"
    INTERRUPTED = "stopped by the callback; the plan is the best so far"
    DIVERGED = "stopped because values left the floating-point range; raise epsilon or use float64"

    @property
    def ok(self) -> bool:
        """Whether the answer can be taken at face value."""
        return self in (Status.OPTIMAL, Status.CONVERGED)


class Potentials:
    """Dual potentials f (*batch, n) and g (*batch, m), and their extension to new points.

    Unpacks as `f, g = solution.potentials`.
    """

    def __init__(self, solution: Solution) -> None:
        self._solution = solution
        kind, dtype = solution.kind, solution.problem.a.dtype
        self.f: Any = kind.per_row(solution.f.to(dtype))
        self.g: Any = kind.per_column(solution.g.to(dtype))

    def __iter__(self) -> Any:
        return iter((self.f, self.g))

    def __call__(self, x_new: Any) -> Any:
        """F at new source points (*batch, k, d), by the (soft or hard) c-transform of g."""
        return self._extend(x_new, source=True)

    def target(self, y_new: Any) -> Any:
        """G at new target points (*batch, k, d), by the c-transform of f."""
        return self._extend(y_new, source=False)

    def _extend(self, points: Any, *, source: bool) -> Any:
        s = self._solution
        problem, other = (s._base, s.g) if source else (s._base.T, s.f)
        cloud = s._new_cloud(points, problem.geometry)
        new, _ = s._transform(problem, other, cloud)
        marginal = problem.marginals[0]
        if not isinstance(marginal, Exact) or problem.epsilon is not None:
            if not marginal.extends or problem.reference != "product":
                refuse(
                    "potentials at new points",
                    "the product reference, and a marginal with one parameter for all points",
                    f"{marginal!r} and reference={problem.reference!r}",
                    "Use solution.map, which needs no potential there.",
                )
            ones = torch.ones_like(new)
            side = problem.sides[0]._replace(weights=ones, reference=ones)
            new = marginal.trimmed(new, side) if problem.epsilon is None else marginal.prox(new, side)
        return s.kind.array(new)

    def __repr__(self) -> str:
        return f"Potentials(f={tuple(self.f.shape)}, g={tuple(self.g.shape)})"


class Solution:
    """What `solve` returns. Nothing n x m is formed unless `plan.dense()` is called.

    Attributes:
        problem: what was solved.
        stats: how: solver, reason for choosing it, n_iter, seconds, epsilon, marginal_error.
        status: how it ended (for a batch, the worst of `statuses`).
        statuses: one status per batch item, flattened.
        adjoint: which outputs carry gradients.

    Outputs are of the user's kind: torch in, torch out; NumPy in, NumPy out; pandas in, pandas out.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        f: Tensor,
        g: Tensor,
        *,
        statuses: tuple[Status, ...],
        stats: dict[str, Any],
        adjoint: Adjoint = Envelope(),
        kind: Kind = Kind(),
        coarse: bool = False,
    ) -> None:
        self.problem, self._solved, self._coarse = problem, (plan, f, g), coarse
        self.statuses, self.stats, self.adjoint, self.kind = statuses, stats, adjoint, kind
        self._grad = torch.is_grad_enabled()

    # -- what outputs are made of ----------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> tuple[Problem, Plan, Tensor, Tensor]:
        """Problem, plan and potentials: constants, or with gradients where the adjoint gives them any."""
        plan, f, g = self._solved
        with torch.set_grad_enabled(self._grad):  # whoever asks first, and where
            moving = self.adjoint.potentials(self.problem, f, g)
            if moving is None:
                return self.problem.detach(), plan, f, g
            return self.problem, gibbs_plan(self.problem, *moving), *moving

    @property
    def _base(self) -> Problem:
        return self._parts[0]

    @property
    def _plan(self) -> Plan:
        return self._parts[1]

    @property
    def f(self) -> Tensor:
        """The potential of the sources, (*batch, n), in the precision the solver worked in."""
        return self._parts[2]

    @property
    def g(self) -> Tensor:
        """The potential of the targets, (*batch, m), in the precision the solver worked in."""
        return self._parts[3]

    # -- how it went -----------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The status; for a batch the worst one."""
        order = list(Status)
        return max(self.statuses, key=order.index)

    def certify(self) -> Certificate:
        """Compute the certificate anew, in float64, from the plan and the potentials alone."""
        return certify(self.problem, self._plan, self.f, self.g)

    @cached_property
    def certificate(self) -> Certificate:
        """Bounds on the unregularised optimum, relative gap and marginal errors; computed when first asked."""
        return self.certify()

    # -- values ----------------------------------------------------------------------------------------------

    @property
    def value(self) -> Any:
        """What was minimised, (*batch,); differentiable.

        <P, C> + eps KL(P | a ⊗ b) + marginal penalties, or <P, C> + Omega(P) with a regularizer Omega.
        """
        value = self._value.to(self.problem.a.dtype)
        return self.kind.array(self.adjoint.attach(value, self.problem, self._plan, self.f, self.g))

    @cached_property
    def _marginals(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return gibbs_marginals(self.problem.detach(), self._plan)

    @cached_property
    def _value(self) -> Tensor:
        with torch.no_grad():
            r, c = (t.double() for t in self._marginals)
            p = self._double
            if p.epsilon is not None:
                return p.objective(r, c, self.f.double(), self.g.double())
            (left, right), (side_a, side_b) = p.marginals, p.sides
            penalties = left.penalty(r, side_a) + right.penalty(c, side_b)
            return self._plan.cost().double() + penalties + self._regularization()

    @cached_property
    def _double(self) -> Problem:
        return self.problem.detach().double()

    def _regularization(self) -> Tensor:
        regularizer = self.problem.regularizer
        if regularizer is None:
            return self.problem.a.new_zeros((), dtype=torch.float64)
        assert isinstance(self._plan, SparsePlan)
        return regularizer.of_entries(self._plan.mass.double())

    @cached_property
    def linear_value(self) -> Any:
        """<P, C>, the transport cost of the plan alone, (*batch,)."""
        with torch.set_grad_enabled(self._grad):
            return self.kind.array(self._plan.cost().to(self.problem.a.dtype))

    @cached_property
    def dual_value(self) -> Any:
        """The dual function at the potentials: a lower bound of the minimum, (*batch,).

        Solvers that never look at all pairs have coarse potentials: theirs are made feasible, as by `certificate`.
        """
        with torch.no_grad():
            if self._coarse:
                return self.kind.array(self.certificate.dual.to(self.problem.a.dtype))
            p = self._double
            (left, right), (side_a, side_b) = p.marginals, p.sides
            total = left.dual(self.f.double(), side_a) + right.dual(self.g.double(), side_b)
            if p.epsilon is not None:
                total = total - p.epsilon * (self._marginals[0].double().sum(-1) - p.reference_mass)
            if p.regularizer is not None:  # P = grad Omega*(f + g - C): Omega* by Fenchel's equality
                r, c = (t.double() for t in self._marginals)
                gain = (r * self.f.double()).sum(-1) + (c * self.g.double()).sum(-1)
                total = total - (gain - self._plan.cost().double() - self._regularization())
            return self.kind.array(total.to(self.problem.a.dtype))

    # -- plan, potentials, map -------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> Plan:
        """The transport plan, as an operator."""
        self._plan.kind = self.kind
        return self._plan

    @cached_property
    def potentials(self) -> Potentials:
        """The dual potentials f and g, callable at new points."""
        with torch.set_grad_enabled(self._grad):
            return Potentials(self)

    def map(self, x_new: Any = None) -> Any:
        """Send points to the target cloud, (*batch, k, d).

        For an entropic solution the mean of y under the plan's extension to x_new; for an exact one the y_j whose
        cell x_new falls into, argmin_j c(x_new, y_j) - g_j. Without x_new, the barycentric projection of the plan.

        Args:
            x_new: (*batch, k, d) new source points.
        """
        if x_new is None:
            return self.plan.barycentric()
        problem = self._base
        cloud = self._new_cloud(x_new, problem.geometry)
        f, index = self._transform(problem, self.g, cloud)
        y = cloud.y
        if index is not None:
            moved = y[index] if y.dim() == 2 else y.gather(-2, index.unsqueeze(-1).expand(*index.shape, y.shape[-1]))
        else:
            assert problem.epsilon is not None
            moved = cloud.apply(f, self._absorbed(problem, self.g), problem.epsilon, y)
        labels = getattr(x_new, "index", None)
        return self.kind.points(moved, None if callable(labels) else labels)

    def _new_cloud(self, points: Any, geometry: Geometry) -> PointCloud:
        if not isinstance(geometry, PointCloud):
            refuse("new points", "a solution on a PointCloud", f"one on a {type(geometry).__name__}")
        names, columns = self.kind.columns, getattr(points, "columns", None)
        if names is not None and columns is not None:  # frames are matched by column name, not by position
            if not set(names) <= set(columns):
                missing = ", ".join(sorted(map(str, set(names) - set(columns))))
                refuse("new points", "the columns of the solution's own points", f"a frame without {missing}")
            points = points[list(names)]
        new = float_tensor(points, "new points").to(geometry.x)
        if new.dim() < 2:
            new = new.unsqueeze(-1)
        if new.dim() < 2 or new.shape[-1] != geometry.x.shape[-1]:
            refuse(
                "new points",
                f"shape (*batch, k, {geometry.x.shape[-1]}), like the solution's own",
                f"shape {tuple(new.shape)}",
            )
        check_finite(new, "new points", "finite coordinates", "Drop or impute those rows.")
        return geometry.extend(x=new)

    @staticmethod
    def _absorbed(problem: Problem, g: Tensor) -> Tensor:
        return absorbed(g.to(problem.b), problem.sides[1])

    @staticmethod
    def _transform(problem: Problem, g: Tensor, cloud: PointCloud) -> tuple[Tensor, Tensor | None]:
        if problem.epsilon is None:
            live = problem.b > 0 if problem.marginals[1].dead_without_weight else torch.ones_like(problem.b > 0)
            return cloud.cmin(torch.where(live, g.to(problem.b), -torch.inf))
        return cloud.softmin(Solution._absorbed(problem, g), problem.epsilon), None

    # -- for people ------------------------------------------------------------------------------------------

    def plot(self, ax: Any = None, *, lines: int = 200) -> Any:
        """Draw both clouds and the strongest transport lines (the two principal axes beyond two dimensions).

        Args:
            ax: a matplotlib axes; a new one when None.
            lines: how many entries of the plan to draw.

        Returns:
            The axes.
        """
        from ._plot import draw_solution

        return draw_solution(self, ax, lines)

    def __repr__(self) -> str:
        value = self._value
        shown = f"{float(value):.8g}" if value.dim() == 0 else f"batch {tuple(value.shape)}"
        return (
            f"Solution(value={shown}, shape={self.problem.shape}, solver={self.stats.get('solver')!r}, "
            f"status={self.status.name})"
        )
