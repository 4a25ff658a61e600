"""Sinkhorn with sparse Newton iterations (SNS): entropic transport to machine precision at small epsilon.

Sinkhorn needs 10^3 to 10^5 sweeps when epsilon is small. SNS runs a few of them, and then Newton steps whose Hessian
keeps only the largest entries of the plan: a handful reach 1e-12. The algorithm is the core's
`brenier.solvers.SparseNewton`; this is its interface for one cost matrix, with the record that the paper reports.

Reference: Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao & Ying (2024), Accelerating Sinkhorn algorithm
with sparse Newton iterations, ICLR 2024, arXiv 2401.12253.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...api import solve
from ...errors import PerformanceWarning, refuse
from ...geometry import CostMatrix, Geometry
from ...plan import Plan
from ...problem import Relative
from ...solution import Solution
from ...solvers import Fixed, SparseNewton

__all__ = ["SNSResult", "sns"]

_LARGE = 10**8  # entries of a matrix, beyond which a warning is due


@dataclass(frozen=True)
class SNSResult:
    """What `sns` returns. Arrays are of the user's kind and dtype.

    Attributes:
        solution: the whole answer of the core: certificate, status, gradients, stats.
        n_sinkhorn, n_newton: iterations of either sort; Newton steps refused by the line search are counted.
        kernel_evaluations: passes over all n m pairs, which is what an iteration costs: 2 for a sweep, 3 or more for
            a Newton step (selection, each trial of the line search, and the gradient).
        cg_iterations, alphas, densities: for each Newton step the conjugate gradients, the step length (0 where a
            sweep replaced it) and the share of the entries that the Hessian kept.
        factorisations: how often conjugate gradients stalled and a Cholesky factorisation took over.
        errors: relative L1 error of the row marginal after the warm start of each level and each Newton step; the
            column marginal is exact throughout.
        levels: the epsilon that each of these errors belongs to.
    """

    solution: Solution
    n_sinkhorn: int
    n_newton: int
    kernel_evaluations: int
    cg_iterations: list[int]
    alphas: list[float]
    densities: list[float]
    factorisations: int
    errors: list[float]
    levels: list[float]

    @property
    def plan(self) -> Plan:
        """The plan (n, m), as an operator; `plan.dense()` is the matrix."""
        return self.solution.plan

    @property
    def f(self) -> Any:
        """Potential of the rows, (n,)."""
        return self.solution.potentials.f

    @property
    def g(self) -> Any:
        """Potential of the columns, (m,)."""
        return self.solution.potentials.g

    @property
    def linear_value(self) -> Any:
        """The transport cost <P, C>."""
        return self.solution.linear_value

    @property
    def value(self) -> Any:
        """What was minimised, <P, C> + eps KL(P | a ⊗ b); differentiable in C, a, b and epsilon."""
        return self.solution.value

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.solution.status.ok

    def __repr__(self) -> str:
        return (
            f"SNSResult(value={float(self.value):.8g}, {self.n_sinkhorn} sweeps + {self.n_newton} Newton steps, "
            f"error {self.errors[-1]:.2g}, status={self.solution.status.name})"
        )


def sns(
    C: Any,  # (n, m), or a geometry
    a: Any = None,  # (n,)
    b: Any = None,  # (m,)
    epsilon: float | Relative | Tensor = Relative(0.005),
    *,
    n_sinkhorn: int | None = None,
    max_iter: int = 500,
    density: float | None = None,
    adaptive_density: bool = True,
    tol: float = 1e-12,
    cg_max_iter: int = 500,
    cg_rtol: float | None = None,
    shift: float = 0.0,
    f: Tensor | None = None,
    g: Tensor | None = None,
    throw: bool = False,
) -> SNSResult:
    r"""Solve the entropic problem to high accuracy.

    Minimises <P, C> + eps KL(P | a ⊗ b) over P >= 0 with P1 = a and P^T 1 = b. The paper writes eps = 1/eta and
    sum P log P for the second term; its minimiser is the same, its value is this one plus
    eps (sum a log a + sum b log b) for masses of total 1, and its potentials are f + eps (log a + 1/2) and
    g + eps (log b + 1/2).

    Args:
        C: cost matrix (n, m) as tensor, array or frame; or a lazy geometry such as `PointCloud(x, y)`.
        a, b: masses (n,) and (m,), nonnegative, of equal total; uniform when None. Zeros are allowed.
        epsilon: in the unit of the cost, or `Relative(fraction of the mean cost)`.
        n_sinkhorn: sweeps before the first Newton step, all at epsilon, as in the paper (which takes 20, and 700 for
            hard costs). None follows epsilon down by halves instead, with two sweeps and, where they help, Newton
            steps at each level; this needs no tuning.
        max_iter: sweeps and Newton steps together.
        density: share of the entries that the Hessian keeps at first; 10 / max(n, m) when None.
        adaptive_density: double the density when a full step makes only linear progress.
        tol: relative L1 error of the marginals. 1e-16 max|C| / epsilon is the floor of float64.
        cg_max_iter: conjugate gradients for one step.
        cg_rtol: relative residual to solve to; follows the error when None.
        shift: Levenberg's term, min(shift, error) times the diagonal.
        f, g: potentials to start from, e.g. those of a nearby problem.
        throw: raise `NotConverged` instead of warning.

    Returns:
        An `SNSResult`.

    Raises:
        InvalidInput: a batch of matrices, masses or an epsilon that break the rules of `brenier.solve`.
        NotConverged: with `throw=True`.

    Complexity: O(n m) time for an iteration and O(density n m) for each conjugate gradient. A cost matrix is used as
    it is, with two more of its size in float64; lazy geometries take O(n + m) memory. float32 is computed in float64.

    Example:
        >>> import torch
        >>> from brenier.systems.numerics.sns import sns
        >>> C = torch.rand(50, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> result = sns(C, epsilon=1e-3)
        >>> result.converged, result.errors[-1] < 1e-12
        (True, True)
    """
    geometry = C if isinstance(C, Geometry) else CostMatrix(C)
    if geometry.batch_shape:
        refuse(
            "C",
            "one cost matrix (n, m)",
            f"batch axes {tuple(geometry.batch_shape)}",
            "Use brenier.solve(CostMatrix(C), solver='sns', epsilon=...), which takes batches.",
        )
    n, m = geometry.shape
    if isinstance(geometry, CostMatrix) and n * m > _LARGE:
        warnings.warn(
            f"sns works with three {n} x {m} matrices, {24e-9 * n * m:.1f} GB; a PointCloud needs none",
            PerformanceWarning,
            stacklevel=2,
        )
    warm = SparseNewton() if n_sinkhorn is None else SparseNewton(sweeps=n_sinkhorn, schedule=Fixed())
    solver = replace(
        warm,
        tol=tol,
        max_iter=max_iter,
        density=density,
        adaptive=adaptive_density,
        cg_max_iter=cg_max_iter,
        cg_rtol=cg_rtol,
        shift=shift,
        f=f,
        g=g,
    )
    solution = solve(geometry, a=a, b=b, epsilon=epsilon, solver=solver, throw=throw)
    if solution.problem.batch_shape:
        refuse("a, b", "one measure each, (n,) and (m,)", f"batch axes {tuple(solution.problem.batch_shape)}")
    names = ("n_sinkhorn", "n_newton", "kernel_evaluations", "cg_iterations", "alphas", "densities", "factorisations")
    return SNSResult(solution, **{name: solution.stats[name] for name in (*names, "errors", "levels")})
