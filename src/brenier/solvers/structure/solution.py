"""The answer to a quadratic problem: a stationary plan, and how far below the optimum may lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..._once import first_order
from ...certificate import Certificate, certify
from ...errors import refuse
from ...geometry import CostMatrix, Factored, Geometry
from ...marginals import Exact
from ...plan import GibbsPlan, Plan, SparsePlan
from ...problem import Problem
from ...solution import Solution
from ...structure import Form, Linear, Moments, Quadratic, along, inner
from .bounds import lower_bound
from .mirror import objective

__all__ = ["GromovSolution", "StructureCertificate"]


@dataclass(frozen=True)
class StructureCertificate(Certificate):
    """What is proved of a plan of a quadratic problem, in float64: bounds of the optimum, and how stationary it is.

    `dual <= optimum <= primal` for the problem without entropy, for each item of a batch. The problem is not convex, so
    the bounds of a plan that is optimal need not meet; a gap of zero proves global optimality. Where it is not zero,
    the plan is a stationary point up to `stationarity`, and nothing better is claimed.

    Attributes:
        primal: the objective without entropy of the plan, rounded onto its marginals where both are exact, (*batch,).
        dual: a lower bound, (*batch,): Mémoli's third or first, or zero where the marginals are not exact.
        bound: which one.
        scale: the objective of a ⊗ b, (*batch,).
        stationarity: the largest first-order gain of any move from the plan to another, max_V <grad, P - V>, or a bound
            of it, (*batch,): the Frank-Wolfe gap, with entropy and penalties, in units of the objective and to the
            accuracy of the marginals. NaN for quadratic penalties.
    """

    bound: str
    stationarity: Tensor

    @property
    def optimal(self) -> Tensor:
        """Where the bounds meet, which proves the plan globally optimal, (*batch,)."""
        return self.gap <= 1e-9 * self.scale

    @property
    def guarantee(self) -> str:
        """What the certificate claims, in words; of a batch, what it claims of all items together."""
        optimal = self.optimal
        if bool(optimal.all()):
            return "global optimum"
        worst = float(self.stationarity[~optimal].max())
        told = "a point that nobody has proved stationary" if math.isnan(worst) else f"stationary point to {worst:.3g}"
        point = f"{told}; {self.bound}"
        if not optimal.dim():
            return point
        return f"global optimum of {int(optimal.sum())} of {optimal.numel()}, {point}"

    def __str__(self) -> str:
        if self.primal.dim():
            return f"StructureCertificate({self.guarantee})"
        slope = float(self.stationarity)
        gap = "" if math.isnan(slope) else f"Frank-Wolfe gap {slope:.3g}, "
        return (
            f"optimum in [{float(self.dual):.10g}, {float(self.primal):.10g}] ({self.bound}), {gap}marginal errors "
            f"{float(self.marginal_errors[0]):.3g} and {float(self.marginal_errors[1]):.3g}"
        )


class GromovSolution(Solution):
    """What `gromov_wasserstein` returns: a `Solution` of a problem that is quadratic in the plan.

    `plan.cost()` is the linear cost at the plan itself, f and g are the potentials of that linear problem. There is no
    extension to new points, as the spaces share no cost; `plan.barycentric(y)` sends each point of x to the mean of
    where its mass goes. Values, plans, potentials and the certificate have the batch axes of the problem.

    Attributes:
        stats: as in `Solution`; `values` are those of all starts, and `bound` the lower bound if a start came with it.
    """

    problem: Quadratic

    @cached_property
    def _form(self) -> Form:
        with torch.no_grad():
            return self.problem.detach().form

    @cached_property
    def _state(self) -> tuple[Moments, Linear]:
        with torch.no_grad():
            moments = self._form.moments(self._solved[0])
            return moments, self._form.half(moments, exact=True)

    @cached_property
    def _value(self) -> Tensor:
        with torch.no_grad():
            moments, half = self._state
            value = objective(self.problem.detach(), self._form, moments, half, None)
            if self.problem.epsilon is not None:
                value = value + self._entropy(moments)
            return value

    def _entropy(self, moments: Moments) -> Tensor:
        """Eps KL(P | a ⊗ b), or its quadratic form, (*batch,)."""
        assert self.problem.epsilon is not None
        whole, mass = self._form.a.sum(-1) * self._form.b.sum(-1), moments.p.sum(-1)
        body = -inner_of_ratio(self._form, self._gibbs)
        entropy = 2 * mass * body - mass**2 + whole**2 if self.problem.soft else body - mass + whole
        return self.problem.epsilon.detach().double() * entropy

    @property
    def _gibbs(self) -> GibbsPlan:
        plan = self._solved[0]
        assert isinstance(plan, GibbsPlan)
        return plan

    @property
    def value(self) -> Any:
        """What was minimised, (*batch,); differentiable in structures, features and masses, at a plan held fixed.

        Exact at a stationary point, by the envelope theorem. Gradients in a and b are the potentials, up to a constant;
        for problems with `KL(rho)` marginals masses carry none.
        """
        value = self._value.to(self.problem.a.dtype)
        with torch.set_grad_enabled(self._grad):
            if self._grad and any(t.requires_grad for t in self.problem.tensors):
                surrogate = self._surrogate().to(value.dtype)
                value = value + (surrogate - surrogate.detach())
                value = first_order(value, self.problem.tensors, "a Gromov-Wasserstein value")
        return self.kind.array(value)

    def _surrogate(self) -> Tensor:
        """The objective at the plan as a constant, and the masses against their potentials."""
        form, plan = Form(self.problem), self._solved[0]
        moments = self._state[0]
        if form.phi is not None and form.psi is not None:
            right, left = plan._matmul(form.psi.detach()), plan._transpose()._matmul(form.phi.detach())
            body = form.phi.mT @ right + left.mT @ form.psi  # phi^T P psi twice, with the derivatives of one
            moments = moments._replace(body=body - moments.body)
        value = form.energy(moments, form.half(moments, exact=True))
        if not self.problem.soft:
            sides = ((self.problem.a, self._solved[1]), (self.problem.b, self._solved[2]))
            for (weights, potential), marginal in zip(sides, self.problem.marginals):
                if isinstance(marginal, Exact):
                    finite = torch.where(torch.isfinite(potential), potential, 0)
                    value = value + (weights.double() * finite).sum(-1)
        return value

    @property
    def structure_value(self) -> Any:
        """Sum L(C_ii', D_jj') P_ij P_i'j', the Gromov-Wasserstein term alone, without alpha, (*batch,)."""
        moments, half = self._state
        return self.kind.array(inner(half, moments).to(self.problem.a.dtype))

    @cached_property
    def linear_value(self) -> Any:
        """<P, M>, the transport cost between features alone, (*batch,); zero without features."""
        moments, features = self._state[0], self._form.features
        value = torch.zeros_like(moments.p[..., 0]) if features is None else inner(features, moments)
        return self.kind.array(value.to(self.problem.a.dtype))

    @property
    def dual_value(self) -> Any:
        """The lower bound of the certificate, for the problem without entropy, (*batch,)."""
        return self.kind.array(self.certificate.dual.to(self.problem.a.dtype))

    @cached_property
    def certificate(self) -> StructureCertificate:
        """Bounds on the optimum, gap, stationarity and marginal errors; computed when first asked."""
        return self.certify()

    def certify(self) -> StructureCertificate:
        """Compute the certificate anew, in float64: the lower bound takes an exact linear problem."""
        with torch.no_grad():
            problem, form, plan = self.problem.detach(), self._form, self._solved[0].to(torch.float64)
            bound = self.stats.get("bound") or lower_bound(problem)
            moments, half = self._state
            double = problem.double()
            gap = self._first_order(form, moments, form.gradient(half))
            errors = tuple(
                marginal.violation(sums, side)
                for marginal, sums, side in zip(double.marginals, moments[:2], double.sides_at(None))
            )
            if problem.balanced:
                moments = _rounded(form, plan)
                primal = form.energy(moments, form.half(moments))
            else:
                primal = objective(replace(problem, epsilon=None), form, moments, half, None)
            return StructureCertificate(primal, bound.value, (errors[0], errors[1]), form.scale, bound.name, gap)

    def _first_order(self, form: Form, moments: Moments, gradient: Linear) -> Tensor:
        """The linear cost of the plan under the gradient, over a lower bound of that of any other."""
        problem = self.problem.detach()
        if problem.soft:  # the quadratic penalties are not those of a linear problem
            return torch.full_like(form.scale, torch.nan)
        geometry, value = form.geometry(gradient), inner(gradient, moments)
        f, g = self._solved[1].double(), self._solved[2].double()
        if problem.epsilon is not None:
            geometry, f, g = _with_entropy(form, geometry, self._gibbs, problem), 0 * form.a, 0 * form.b
            value = value - problem.epsilon.double() * inner_of_ratio(form, self._gibbs)
        double = problem.double()
        linear = Problem(geometry, form.a, form.b, double.marginals)
        for marginal, sums, side in zip(double.marginals, moments[:2], linear.sides):
            value = value + marginal.penalty(sums, side)
        origin = torch.zeros((*problem.batch_shape, 1), dtype=torch.long, device=form.a.device)
        nothing = SparsePlan(geometry, origin, origin, origin.double())  # only the dual is of interest
        return (value - certify(linear, nothing, f, g).dual).clamp(min=0)

    def _new_cloud(self, points: Any, geometry: Geometry) -> NoReturn:
        refuse("new points", "a solution of a linear problem", "one between spaces without a common cost",
               "Use solution.plan.barycentric(y).")  # fmt: skip

    def map(self, x_new: Any = None) -> NoReturn:
        """Refused: where points go is asked of the plan, as `solution.plan.barycentric(y)`."""
        self._new_cloud(x_new, self.problem.geometry)

    def plot(self, ax: Any = None, *, lines: int = 200) -> NoReturn:
        """Refused: the two spaces share no axes."""
        self._new_cloud(ax, self.problem.geometry)

    def __repr__(self) -> str:
        return "Gromov" + super().__repr__()


def _rounded(form: Form, plan: Plan) -> Moments:
    """The moments of a plan rounded onto exact marginals: scaled down, and a product plan for the missing mass."""
    r = plan.row_sums().double()
    plan = plan.scaled(u=torch.where(r > 0, form.a / r, 1).clamp(max=1))
    c = plan.col_sums().double()
    plan = plan.scaled(v=torch.where(c > 0, form.b / c, 1).clamp(max=1))
    moments = form.moments(plan)
    p, q = (form.a - moments.p).clamp(min=0), (form.b - moments.q).clamp(min=0)
    missing = p.sum(-1) * q.sum(-1) > 0
    if not bool(missing.any()):
        return moments
    share = torch.where(missing.unsqueeze(-1), q, form.b)  # of the items that miss nothing, of which none is added
    return moments.plus(form.product(p, share), missing.to(p))


def _with_entropy(form: Form, gradient: Geometry, plan: GibbsPlan, problem: Quadratic) -> Geometry:
    """The gradient of the objective with eps log(P / (a ⊗ b)), for a Gibbs plan at an epsilon of its own."""
    assert problem.epsilon is not None
    f, g = _relative(plan, form)
    weight = problem.epsilon.double() / plan.epsilon.double()
    cost = plan._exact
    if isinstance(gradient, CostMatrix) and isinstance(cost, CostMatrix):
        change = f.unsqueeze(-1) + g.unsqueeze(-2) - cost.cost.double()
        return CostMatrix(gradient.cost + along(weight, change) * change)
    assert isinstance(gradient, Factored)
    assert isinstance(cost, Factored)
    h, k, u, v = (t.double() for t in cost.tensors)
    return Factored(
        gradient.h + weight * (f - h),
        gradient.k + weight * (g - k),
        torch.cat([gradient.u, -weight * u], -1),
        torch.cat([gradient.v, v], -1),
    )


def _relative(plan: GibbsPlan, form: Form) -> tuple[Tensor, Tensor]:
    """The potentials of a Gibbs plan against a ⊗ b, zero where there is no mass."""
    own = plan.epsilon.double()
    return tuple(
        torch.where((w > 0) & torch.isfinite(F), F.double() - along(own, w) * torch.where(w > 0, w, 1).log(), 0)
        for F, w in ((plan.F, form.a), (plan.G, form.b))
    )  # type: ignore[return-value]


def inner_of_ratio(form: Form, plan: GibbsPlan) -> Tensor:
    """-sum P log(P / (a ⊗ b)), (*batch,)."""
    f, g = _relative(plan, form)
    r, cost = plan.moments()
    lines = (r * f).sum(-1) + (plan.col_sums() * g).sum(-1)
    return (cost.sum(-1) - lines) / plan.epsilon
