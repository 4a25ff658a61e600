"""What a barycentre is: many transports that share one side; and the answer, with what is proved of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..._inputs import Kind
from ...certificate import certify
from ...errors import refuse
from ...geometry import CostMatrix, Geometry, Grid, PointCloud, Ragged
from ...marginals import KL, Exact, Free
from ...plan import Plan
from ...problem import Problem
from ...solution import Status
from .inputs import barycentre_weights

__all__ = [
    "Barycentre",
    "BarycentreCertificate",
    "BarycentreSolution",
    "certify_barycentre",
    "self_geometry",
    "transports",
]


@dataclass(frozen=True)
class Barycentre:
    r"""Minimise sum_k w_k T(a_k, b) over the masses b of a given support, T being a transport cost.

    Build it with `Barycentre.make`, which checks.

    Attributes:
        problem: the transports as a batch (K,): rows are the points of the measures, columns the support. The side of
            the support is `Free()`, as b is what is sought.
        weights: (K,), of total 1.
    """

    problem: Problem
    weights: Tensor

    @classmethod
    def make(
        cls, geometry: Geometry, a: Any = None, weights: Any = None, *, epsilon: Any = None, rho: Any = None
    ) -> Barycentre:
        """Check the parts and put them together.

        Raises:
            InvalidInput: whatever `Problem.make` refuses; batch axes other than that of the measures; measures of
                unequal masses without a rho; a rho without epsilon; weights that do not fit.
        """
        marginals = (Exact() if rho is None else KL(rho), Free())
        problem = Problem.make(geometry, a, None, marginals=marginals, epsilon=epsilon)
        if len(problem.batch_shape) != 1:
            refuse("measures", "one batch axis, that of the measures", f"batch {tuple(problem.batch_shape)}")
        w = barycentre_weights(weights, problem.batch_shape[0], problem.a.double())
        if rho is not None and epsilon is None:
            refuse("rho", "an epsilon beside it", "none", "Give epsilon=Relative(0.01), say.")
        mass = problem.a.detach().double().sum(-1)
        if rho is None and float(mass.max() - mass.min()) > 1e-5 * float(mass.max()):
            refuse("a", "measures of one mass", f"{float(mass.min()):.6g} to {float(mass.max()):.6g}", "Give a rho.")
        if problem.epsilon is not None and problem.epsilon.dim():  # Relative: one for all measures
            problem = replace(problem, epsilon=problem.epsilon.mean())
        return cls(problem, w)


@dataclass(frozen=True)
class BarycentreCertificate:
    """Bounds on the least mean transport cost over all masses on the support, without entropy, in float64.

    Attributes:
        primal: the mean cost of feasible plans to the barycentre that was found.
        dual: sum_k w_k <f_k, a_k> of potentials with f_k + g_k <= c and sum_k w_k g_k = 0.
        marginal_errors: of the plans before rounding, (K,) for the measures and for the barycentre.
    """

    primal: Tensor
    dual: Tensor
    marginal_errors: tuple[Tensor, Tensor]

    @property
    def gap(self) -> Tensor:
        """Primal - dual, not below zero."""
        return (self.primal - self.dual).clamp(min=0)

    @property
    def relative_gap(self) -> Tensor:
        """The gap over |primal|."""
        return torch.where(self.gap == 0, 0, self.gap / self.primal.abs().clamp(min=1e-300))

    def __str__(self) -> str:
        return (
            f"least mean cost in [{float(self.dual):.10g}, {float(self.primal):.10g}], relative gap "
            f"{float(self.relative_gap):.3g}"
        )


@dataclass(frozen=True)
class BarycentreSolution:
    """A barycentre and how good it is.

    Attributes:
        points: of the support, (m, d); None where a cost matrix has none.
        b: masses, (m,).
        value: what was minimised: the weighted sum of the transport problems, entropy and penalties included; with an
            epsilon by the dual, for masses on a given support.
        status: how it ended.
        stats: solver, iterations, seconds; `residual`, the distance of the last move of a free support in units of its
            spread, and `values`, its objective at each iteration, which never rises.
        plan: the plans from the measures to the barycentre, as one batch (K,).
        f, g: potentials of the measures (K, n) and of the barycentre (K, m).
    """

    points: Any
    b: Any
    value: Any
    status: Status
    stats: dict[str, Any]
    plan: Plan
    f: Tensor
    g: Tensor
    problem: Problem = field(repr=False)
    weights: Tensor = field(repr=False)
    kind: Kind = field(default=Kind(), repr=False)

    def certify(self) -> BarycentreCertificate:
        """Bound the least value over masses on this support; for exact marginals.

        For a free support this speaks of the masses only: where the points lie is a local optimum.

        Raises:
            InvalidInput: for soft marginals.
        """
        return certify_barycentre(self.problem, self.weights, self.plan, self.f, self.g)


def certify_barycentre(problem: Problem, weights: Tensor, plan: Plan, f: Tensor, g: Tensor) -> BarycentreCertificate:
    """Round the plans onto the measures and their barycentre; make the potentials feasible, and add up to zero."""
    if not isinstance(problem.marginals[0], Exact):
        refuse("certify", "exact marginals", repr(problem.marginals[0]))
    with torch.no_grad():
        exact = problem.detach().double()
        w = weights.double()
        b = (w.unsqueeze(-1) * plan.to(torch.float64).col_sums()).sum(0)
        a = exact.a
        b = (b / b.sum()) * a.sum(-1, keepdim=True)
        balanced = replace(exact, b=b, marginals=(Exact(), Exact()), epsilon=None)
        each = certify(balanced, plan, f, g)
        h = torch.where(torch.isfinite(g), g, 0).double()
        h = h - (w.unsqueeze(-1) * h).sum(0)
        low = exact.geometry.cmin(h)[0]
        high = exact.geometry.cmin(torch.where(a > 0, low, -torch.inf), dim=0)[0]
        spare = (w.unsqueeze(-1) * high).sum(0).amin()  # the g that are best for these f, and not above zero anywhere
        dual = (w * (a * torch.where(a > 0, low, 0)).sum(-1)).sum() + spare * a.sum(-1).mean()
        return BarycentreCertificate((w * each.primal).sum(), dual, each.marginal_errors)


def self_geometry(geometry: Geometry) -> Geometry:
    """The cost between the points of the support and themselves."""
    if isinstance(geometry, Grid):
        return geometry
    if isinstance(geometry, PointCloud) and not geometry.batch_shape:
        return geometry.extend(x=geometry.y)
    if isinstance(geometry, PointCloud | Ragged):
        one = geometry.item((0,))
        assert isinstance(one, PointCloud)
        return one.extend(x=one.y)
    if isinstance(geometry, CostMatrix) and geometry.shape[0] == geometry.shape[1] and not geometry.batch_shape:
        cost = geometry.tile()
        if bool(torch.equal(cost, cost.mT)):
            return geometry
    refuse("debiased", "a cost between the points of the support", repr(geometry), "Give clouds, a Grid, or symmetric "
           "costs of one set of points.")  # fmt: skip


def transports(clouds: list[Tensor], support: Tensor, cost: Any) -> Geometry:
    """All pairs of clouds (n_k, d) and the support (m, d), as one batch of one size or of many."""
    if len({len(cloud) for cloud in clouds}) == 1:
        return PointCloud(torch.stack(clouds), support.expand(len(clouds), *support.shape), cost)
    return Ragged.from_list(clouds, [support] * len(clouds), cost)
