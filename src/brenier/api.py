"""The front door: `solve` picks the geometry, the problem and the solver; `assign` matches one to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._inputs import Kind, all_finite, float_tensor, is_count, is_real, matrix_kind, same_columns, same_rows
from .adjoint import Adjoint, Envelope, Unrolled
from .costs import Arc, Cost, GraphGeodesic, Lp, as_cost
from .errors import InvalidInput, refuse
from .geometry import CostMatrix, Geometry, PointCloud, Ragged
from .kernels.build import native
from .marginals import Exact, Marginal
from .problem import Problem, Relative
from .regularizers import Regularizer
from .solution import Solution
from .solvers import (
    Annealing,
    Assignment,
    Circle,
    DualAscent,
    Fixed,
    GridFlow,
    Hierarchical,
    LowRank,
    Matching,
    Monotone,
    Multiscale,
    NetworkSimplex,
    Newton,
    NewtonPath,
    PartialMonotone,
    Plain,
    Sinkhorn,
    SinkhornNewton,
    Solver,
    SparseNewton,
    SymmetricSinkhorn,
    run,
)
from .solvers.base import tuned
from .solvers.entropic.items import takes_newton
from .solvers.entropic.symmetric import is_positive, is_symmetric
from .solvers.exact.assignment import match, permutes
from .solvers.exact.flow import flows_on
from .solvers.exact.partial import takes_part

__all__ = ["assign", "solve"]

# Pairs up to which sparse Newton may take over from Sinkhorn, and beyond which clusters of points pay off.
_NEWTON_LIMIT = 10_000**2
_SMALL = 0.01  # epsilon over the mean cost up to which they do
# Points up to which a permutation is found faster by augmenting paths than by the network simplex: the second number
# for the city-block distance in few dimensions, where pairs of equal reduced cost make the paths long.
_PATHS = 1_400, 500
_SOLVERS: dict[str, Callable[[], Solver[Any]]] = {
    "sinkhorn": Sinkhorn,
    "sinkhorn-newton": SinkhornNewton,
    "symmetric-sinkhorn": SymmetricSinkhorn,
    "newton-path": NewtonPath,
    "multiscale": Multiscale,
    "sns": SparseNewton,
    "newton": Newton,
    "network-simplex": NetworkSimplex,
    "monotone": Monotone,
    "partial-monotone": PartialMonotone,
    "circle": Circle,
    "flow": GridFlow,
    "dual-ascent": DualAscent,
    "annealing": Annealing,
    "assignment": Assignment,
    "low-rank": LowRank,
    "hierarchical": Hierarchical,
}


def solve(
    x: Any,
    y: Any = None,
    *,
    a: Any = None,
    b: Any = None,
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    epsilon: float | Relative | Tensor | None = None,
    regularizer: Regularizer | None = None,
    marginals: Marginal | tuple[Marginal, Marginal] = (Exact(), Exact()),
    reference: str = "product",
    solver: str | Solver[Any] = "auto",
    tol: float | None = None,
    gap: float | None = None,
    max_iter: int | None = None,
    adjoint: Adjoint = Envelope(),
    throw: bool = False,
    progress: bool = False,
    callback: Callable[[int, Any], bool | None] | None = None,
    timeout: float | None = None,
    generator: torch.Generator | None = None,
) -> Solution:
    r"""Solve an optimal transport problem and say how good the answer is.

    Minimises  <P, C> + eps KL(P | a ⊗ b)  over plans P >= 0 with P1 = a and P^T 1 = b; without epsilon the term
    is absent and the answer is exact.

    Args:
        x: source points (*batch, n, d), or a geometry (`CostMatrix(C)`, `PointCloud`, `Grid`) that holds both sides.
            Tensors, NumPy arrays, pandas frames and AnnData (its X) go in, and the answer comes back in kind.
            Integers are read as float64; float16 and bfloat16 are computed and returned in float32.
        y: target points (*batch, m, d).
        a, b: masses (*batch, n) and (*batch, m), nonnegative, of equal total; uniform with total 1 when None.
        cost: a name, a `Cost` or a function of two broadcasting tensors; "sqeuclidean" is ||x - y||^2, without 1/2.
        epsilon: entropic strength in cost units, or `Relative(0.05)` for 0.05 x mean cost; None is exact.
        regularizer: instead of an epsilon: `SquaredNorm(gamma)`, or `SquaredNorm(gamma, k)` for plans with at most k
            non-zeros in each column.
        marginals: what each side must do: `Exact()` (default), `KL(rho)`, `TV(rho)`, `Partial(mass)`, `Free()`,
            `Slack(delta)`, or a pair of them; KL needs an epsilon.
        reference: what the entropy is measured against: "product" is a ⊗ b, "counting" is all ones, where the term
            reads eps sum P (log P - 1).
        solver: "auto", "sinkhorn", "sinkhorn-newton", "symmetric-sinkhorn", "newton-path", "multiscale", "sns",
            "newton", "network-simplex", "monotone", "partial-monotone", "circle", "flow", "dual-ascent", "annealing",
            "assignment", "low-rank", "hierarchical", or a `Solver`. With an epsilon, "auto" is Sinkhorn until it
            forecasts too many iterations, and "newton-path" from there on; beyond 10,000 x 10,000 points in up to three
            dimensions, at an epsilon up to a hundredth of the mean cost, it is "multiscale". A measure against itself,
            with a usual cost, is for "symmetric-sinkhorn".
        tol: marginal error relative to the mass, for solvers of regularised problems; relative gain of a step, for
            "low-rank" and "hierarchical".
        gap: certified relative gap to the unregularised optimum to stop at, without epsilon: exact solves of large
            clouds may end early then, and solver="annealing" returns an entropic plan that is good enough.
        max_iter: iteration limit (pivots for the network simplex).
        adjoint: which gradients the solution carries: `Envelope()` those of the value, `Implicit()` those of plan,
            potentials and map as well, `Unrolled(k)` those of k iterations of Sinkhorn.
        throw: raise `NotConverged` when the tolerance is not met; otherwise warn and report in `solution.status`.
        progress: show a progress bar; for an exact solve it says about how much time and memory that takes.
        callback: `callback(iteration, state)` after each step; a true answer stops the solve.
        timeout: seconds of wall time after which the solve ends with the best plan so far, and its certificate.
        generator: for solvers that draw random numbers, "low-rank" and "hierarchical"; seed 0 without one.

    Returns:
        A `Solution`: value, linear_value, dual_value, plan, potentials, map, certificate, status, stats.

    Raises:
        InvalidInput: an argument breaks a rule; the message says what was expected, what came, and the cure.
        NotConverged: with `throw=True`.
        KeyboardInterrupt: Ctrl-C ends a solve at once, without an answer; give a timeout or a callback to keep one.

    Complexity: Sinkhorn O(n m d) time for an iteration and O(n + m) memory; the network simplex holds the n x m
    cost of small problems and O(n + m) numbers for large ones; on the line O((n + m) log(n + m)).

    Example:
        >>> import torch, brenier
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> solution = brenier.solve(x, x + 5)
        >>> float(solution.value), float(solution.certificate.relative_gap)
        (25.0, 0.0)
        >>> y = torch.tensor([[0.4], [1.6], [40.0]])
        >>> solution = brenier.solve(x, y, cost="euclidean", marginals=brenier.TV(2.0))  # what is far may stay
        >>> solution.plan.row_sums().tolist(), round(float(solution.value), 6)
        ([0.3333333432674408, 0.0, 0.3333333432674408], 1.6)
    """
    kind, geometry = _geometry(x, y, cost)
    a, b = same_rows(a, x, "a", "x"), same_rows(b, y, "b", "y")
    if not isinstance(adjoint, Adjoint):
        refuse("adjoint", "an Adjoint such as Envelope()", repr(adjoint))
    if generator is not None and not isinstance(generator, torch.Generator):
        refuse("generator", "a torch.Generator or None", type(generator).__name__)
    if callback is not None and not callable(callback):
        refuse("callback", "a function of (iteration, state) or None", repr(callback))
    problem = Problem.make(
        geometry, a, b, marginals=marginals, epsilon=epsilon, regularizer=regularizer, reference=reference
    )
    truncated = isinstance(adjoint, Unrolled) and adjoint.from_start and solver == "auto"
    chosen, reason = _unrolled(adjoint) if truncated else _choose(solver, problem, gap)
    chosen = tuned(chosen, tol, max_iter, gap, generator)
    return run(
        problem,
        chosen,
        adjoint=adjoint,
        kind=kind,
        reason=reason,
        throw=throw,
        warn=not truncated,  # that many iterations were asked for
        progress=progress,
        callback=callback,
        timeout=timeout,
    )


def assign(
    x: Any,
    y: Any = None,
    *,
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    max_pairs: int | None = None,
    price: float | None = None,
) -> Matching:
    r"""Match rows and columns one to one at least cost: all of the shorter side, or a part; many problems at once.

    Minimises  sum of c_ij over the pairs,  no row and no column in two; with a price, sum of c_ij - price. The proof is
    dual: f_i + g_j <= c_ij, f <= level, g <= 0 (no bound on a side that is matched in full), and the value is
    sum f + sum g - level * (rows without a pair).

    Args:
        x: costs (*batch, n, m) of either sign, where infinity forbids a pair; or a geometry; or points (*batch, n, d).
        y: points (*batch, m, d), if x are points.
        cost: between points; see `solve`.
        max_pairs: make so many pairs, those of least total cost; min(n, m) if None. With a price, at most so many.
        price: leave pairs unmatched that cost more than this.

    Returns:
        A `Matching`: columns and matched (*batch, n), value, f, g, level and gap, in the kind of the input. The value
        is differentiable in the costs or the points.

    Raises:
        InvalidInput: NaN, costs of minus infinity, max_pairs out of range, a price that is not finite, or too many
            forbidden pairs.

    Complexity: O(min(n, m)^2 max(n, m)) time at worst, usually some dozen passes over the costs; the n x m costs of
    points are formed, in blocks of problems. Problems are spread over the threads of torch.

    Reference: Jonker & Volgenant (1987), A shortest augmenting path algorithm for dense and sparse linear assignment
    problems; Crouse (2016), On implementing 2D rectangular assignment algorithms.

    Example:
        >>> import torch, brenier
        >>> matching = brenier.assign(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]]))
        >>> matching.columns.tolist(), float(matching.value), float(matching.gap)
        ([1, 0], 3.0, 0.0)
        >>> x, y = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[1.2], [0.1]])
        >>> brenier.assign(x, y, price=0.5).columns.tolist()
        [1, 0, -1]
    """
    geometry = _costs(x) if y is None and x is not None and not isinstance(x, Geometry) else _geometry(x, y, cost)[1]
    if isinstance(geometry, Ragged):
        refuse("assign", "problems of one size", repr(geometry), "Call it for each, or pad costs with infinity.")
    shorter = min(geometry.shape)
    if max_pairs is not None and not (is_count(max_pairs) and max_pairs <= shorter):
        refuse("max_pairs", f"an integer from 1 to {shorter}", repr(max_pairs))
    if price is not None and not (is_real(price) and abs(price) < float("inf")):
        refuse("price", "a finite number or None", repr(price))
    return match(geometry, max_pairs=max_pairs, price=None if price is None else float(price))


def _costs(costs: Any) -> CostMatrix:
    """A matrix of costs in which infinity forbids a pair; other geometries are finite."""
    tensor = float_tensor(costs, "cost matrix")
    values = tensor.detach()
    sound = values.dim() >= 2 and values.numel() and all_finite(values)  # so as to spare copies of many problems
    allowed = values.new_zeros(1, 1) if sound else values.masked_fill(values == float("inf"), 0)
    matrix = CostMatrix(allowed).with_tensors(tensor)
    matrix.kind = matrix_kind(costs)
    return matrix


def _geometry(x: Any, y: Any, cost: Any) -> tuple[Kind, Geometry]:
    if isinstance(x, Geometry):
        if y is not None:
            refuse("y", "None, as the geometry holds both sides", type(y).__name__)
        if not (isinstance(cost, str) and cost == "sqeuclidean"):
            refuse("cost", "none, as the geometry holds its own", repr(cost), "Give it to PointCloud(x, y, cost).")
        return x.kind, x
    if x is None or y is None:
        refuse(
            "x and y",
            "two clouds of points, or one geometry",
            "None",
            "For a cost matrix: solve(CostMatrix(C)).",
        )
    ground = as_cost(cost)
    x, y = same_columns(x, y)
    if isinstance(ground, GraphGeodesic):
        clouds = PointCloud(x, y)  # reads and checks; its own cost is never evaluated
        return clouds.kind, CostMatrix(ground.matrix(clouds.x, clouds.y).to(clouds.x.device))
    cloud = PointCloud(x, y, ground)
    return cloud.kind, cloud


def _choose(solver: str | Solver[Any], problem: Problem, gap: float | None) -> tuple[Solver[Any], str]:
    if gap is not None and (problem.epsilon is not None or problem.regularizer is not None):
        refuse("gap", "no epsilon and no regularizer, as it is a gap to the problem without them", repr(gap))
    if isinstance(solver, Solver):
        return solver, "asked for"
    if not isinstance(solver, str) or solver not in ("auto", *_SOLVERS):
        refuse("solver", "one of 'auto', " + ", ".join(map(repr, _SOLVERS)) + " or a Solver", repr(solver))
    if solver != "auto":
        return _SOLVERS[solver](), "asked for"
    if problem.regularizer is not None:
        return DualAscent(), "a regularizer was given"
    n, m = problem.shape
    if problem.epsilon is not None:
        if is_positive(problem.geometry) and is_symmetric(problem):
            return SymmetricSinkhorn(), "an epsilon was given, and both sides are one measure"
        if takes_newton(problem) and n * m <= _NEWTON_LIMIT:
            return SinkhornNewton(), "an epsilon was given"
        if n * m > _NEWTON_LIMIT and _clusters(problem):
            return Multiscale(), f"an epsilon was given, and {n} x {m} pairs of points in few dimensions"
        return Sinkhorn(), "an epsilon was given"
    exact = NetworkSimplex()
    if not problem.balanced:
        for marginal, side in zip(problem.marginals, problem.sides):
            if marginal.prices(side) is None:
                refuse(
                    "epsilon",
                    f"a value, as the penalty of {marginal!r} is not piecewise linear",
                    "None",
                    "Give epsilon=Relative(0.01), say, or use TV(rho).",
                )
        if takes_part(problem):
            return PartialMonotone(), "points of one mass on a line: the best matching grows pair by pair"
        return exact, "exact, with virtual rows and columns for mass that stays behind or has no source"
    geometry = problem.geometry
    if isinstance(geometry, PointCloud) and geometry.x.shape[-1] == 1 and geometry.ground.monotone_on_line():
        return Monotone(), "points on a line and a convex cost: sorting is exact"
    if isinstance(geometry, PointCloud) and isinstance(geometry.ground, Arc) and geometry.ground.power >= 1:
        return (
            Circle(),
            "points on a circle and a convex cost: sorting is exact, cut open at the right place",
        )
    if flows_on(geometry) and native is not None:
        return GridFlow(), "exact, and the city-block cost of a grid is the length of paths between neighbours"
    tied = isinstance(geometry, PointCloud) and geometry.ground == Lp(1) and geometry.x.shape[-1] <= 3
    if n <= _PATHS[tied] and permutes(problem):
        return Assignment(), f"exact, and a permutation of {n} points of equal masses"
    if exact.lazy(problem):
        return exact, f"exact, and {n} x {m} pairs are priced without their cost matrix"
    return exact, f"exact, and the {n} x {m} cost matrix fits in memory"


def _clusters(problem: Problem) -> bool:
    """Whether the multiscale solver takes this problem, and its list of pairs of clusters will be short."""
    geometry = problem.geometry
    if not isinstance(geometry, PointCloud) or geometry.x.shape[-1] > 3:
        return False
    try:
        Multiscale().check(problem)
    except InvalidInput:
        return False
    some = (torch.arange(0, size, -(-size // 1000), device=geometry.device) for size in problem.shape)
    assert problem.epsilon is not None
    return bool(problem.epsilon <= _SMALL * geometry.detach().part(*some).mean_cost())


def _unrolled(adjoint: Adjoint) -> tuple[Solver[Any], str]:
    assert isinstance(adjoint, Unrolled)
    return Sinkhorn(max_iter=adjoint.k, schedule=Fixed(), relaxation=Plain()), f"the iterations of {adjoint}"
