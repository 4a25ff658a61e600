"""Plans between clouds from quantile couplings on lines: feasible, and upper bounds of the optimal cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import is_real
from ..certificate import Certificate, certify
from ..costs import Cost
from ..errors import refuse
from ..geometry import PointCloud
from ..plan import SparsePlan
from ..problem import Problem
from ..solvers import Monotone
from .sliced import chosen_directions

__all__ = ["LiftedPlan", "expected_sliced_plan", "min_sliced_plan"]


@dataclass(frozen=True)
class LiftedPlan:
    """A plan between clouds that was found on lines: feasible, and so an upper bound of the optimal cost.

    Attributes:
        plan: with all its operations.
        value: its cost <P, C>.
        weights: (k,) the share of each direction in the plan.
        directions: (k, d).
    """

    plan: SparsePlan
    value: Tensor
    weights: Tensor
    directions: Tensor
    _problem: Problem
    _duals: tuple[Tensor, Tensor]

    def certify(self) -> Certificate:
        """How far the plan is from optimal: a pass over all pairs."""
        return certify(self._problem, self.plan, *self._duals)


def min_sliced_plan(
    x: Any,  # (n, d)
    y: Any,  # (m, d)
    a: Any = None,  # (n,)
    b: Any = None,  # (m,)
    *,
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    directions: int | Tensor = 128,
    sampler: str = "orthogonal",
    generator: torch.Generator | None = None,
) -> LiftedPlan:
    r"""The best of the plans that are quantile couplings in some direction.

    .. math:: \min_\theta \langle P_\theta, C\rangle, \qquad P_\theta \text{ optimal for } \theta_\#\mu, \theta_\#\nu

    Args:
        x, y: clouds, without batch axes.
        a, b: masses of equal totals; uniform with total 1 when None.
        cost: between the points, as for `solve`.
        directions, sampler, generator: as for `sliced_wasserstein`.

    Complexity: O(k (n + m) (d + log(n + m))) time, O(k (n + m)) memory; `certify` is O(n m d) time.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> found = min_sliced_plan(x, x + 1, generator=torch.Generator().manual_seed(1))
        >>> bool(found.value >= 2 - 1e-5)  # the optimum is 2
        True

    Source: Mahey et al. (2023), Fast optimal transport through sliced generalized Wasserstein geodesics; Rowland et
    al. (2019), Orthogonal estimation of Wasserstein distances (projected plans).
    """
    problem, plans, duals, theta = _plans(x, y, a, b, cost, directions, sampler, generator)
    costs = plans.cost()
    best = int(costs.argmin())
    plan = SparsePlan(problem.geometry, plans.rows[best], plans.cols[best], plans.mass[best])
    weights = torch.zeros_like(costs)
    weights[best] = 1
    return LiftedPlan(plan, costs[best].to(problem.a), weights, theta, problem, (duals[0][best], duals[1][best]))


def expected_sliced_plan(
    x: Any,  # (n, d)
    y: Any,  # (m, d)
    a: Any = None,  # (n,)
    b: Any = None,  # (m,)
    *,
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    temperature: float | None = None,
    directions: int | Tensor = 128,
    sampler: str = "orthogonal",
    generator: torch.Generator | None = None,
) -> LiftedPlan:
    r"""The mean of the plans that are quantile couplings in each direction.

    .. math:: P = \sum_k w_k P_{\theta_k}, \qquad w_k \propto \exp(-\langle P_{\theta_k}, C\rangle / \text{temperature})

    Args:
        x, y, a, b, cost: as for `min_sliced_plan`.
        temperature: in units of the cost; equal weights when None.
        directions, sampler, generator: as for `sliced_wasserstein`.

    Complexity: as `min_sliced_plan`; the plan has up to k (n + m) entries.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> mean = expected_sliced_plan(x, x + 1, directions=32, generator=torch.Generator().manual_seed(1))
        >>> bool((mean.plan.row_sums() - 0.01).abs().max() < 1e-6)
        True

    Source: Liu et al. (2025), Expected sliced transport plans.
    """
    problem, plans, duals, theta = _plans(x, y, a, b, cost, directions, sampler, generator)
    costs = plans.cost()
    if temperature is not None and not (is_real(temperature) and 0 < temperature < math.inf):
        refuse("temperature", "a positive finite number in cost units, or None", repr(temperature))
    weights = torch.softmax(torch.zeros_like(costs) if temperature is None else -costs / temperature, -1)
    mass = plans.mass * weights.unsqueeze(-1)
    plan = SparsePlan(problem.geometry, plans.rows.flatten(), plans.cols.flatten(), mass.flatten())
    f, g = (weights @ t for t in duals)
    return LiftedPlan(plan, (weights * costs).sum().to(problem.a), weights, theta, problem, (f, g))


def _plans(
    x: Any, y: Any, a: Any, b: Any, cost: Any, directions: Any, sampler: str, generator: torch.Generator | None
) -> tuple[Problem, SparsePlan, tuple[Tensor, Tensor], Tensor]:
    """The quantile couplings of all directions as one batch, and their potentials on the lines."""
    geometry = PointCloud(x, y, cost).detach()
    if geometry.batch_shape:
        refuse("x and y", "clouds without batch axes", f"batch {tuple(geometry.batch_shape)}")
    problem = Problem.make(geometry, a, b).detach()
    theta, _ = chosen_directions(directions, geometry.x.shape[-1], sampler, generator, geometry.x)
    u, v = ((theta.double() @ t.double().mT).unsqueeze(-1) for t in geometry.tensors)
    a, b = problem.a.double(), problem.b.double()
    line = Problem.make(PointCloud(u, v), a, b * (a.sum() / b.sum()))  # equal beyond the precision of the points
    state = Monotone().step(line, None)
    return problem, SparsePlan(geometry, state.rows, state.cols, state.mass), (state.f, state.g), theta
