"""Newton's method for the entropic problem: on a sparsified Hessian, or on the full one without forming it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._inputs import Kind
from ...errors import refuse
from ...geometry import CostMatrix, Geometry
from ...kernels.elementwise import exp, log
from ...marginals import Exact, log_weights
from ...problem import Problem
from ...schur import largest_entries
from ...solution import Status
from ..base import Outcome, Solver, check_count, check_number, check_start
from .items import column, gibbs, item_of, unbatched
from .relaxation import Plain
from .schedule import Fixed, Halving, Schedule
from .sinkhorn import Sinkhorn

__all__ = ["Newton", "NewtonState", "SparseNewton"]

Array = NDArray[np.float64]
_numpy = Kind.array_numpy

_DEFAULT_TOL = 1e-10
_LEVEL_TOL = 0.1  # error at which a level above the problem's epsilon is left
_LEVEL_STEPS = 10  # Newton steps after which it is left anyway
_ARMIJO = 1e-4
_SMALLEST_ALPHA = 1e-4
_LARGEST_RADIUS = 1e50  # its square is still a number
_ROUNDING = 2e-15  # of the dual value, relative to the terms that are added up
_LINEAR = 0.1  # a full step that leaves more than this share of the error e, or than 10 sqrt(e), is not quadratic
_REACH = 3.0  # potentials moved by more than this many epsilon: the curvature is to blame, not the sparsity
_PATIENCE = 3  # failed line searches in a row before the solver gives up
_MOST_PER_LINE = 100  # kept entries for each line of the longer side, where the cost is not a matrix
_DENSE_SHARE = 0.25  # a matrix with this share of kept entries is stored in full, if the cost is


class _Record(NamedTuple):
    """What happened to one problem, an entry for each Newton step."""

    sweeps: int = 0
    evaluations: int = 0  # passes over all pairs
    errors: tuple[float, ...] = ()  # after each iteration that measured one
    levels: tuple[float, ...] = ()  # the epsilon of each of these
    cg: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    factorisations: int = 0


class _Item(NamedTuple):
    """One problem of a batch. The columns of its plan are exact at all times: g is the soft c-transform of f."""

    problem: Problem  # float64, without batch axes
    epsilon: Tensor  # of the level, ()
    f: Tensor  # (n,)
    g: Tensor  # (m,)
    rows: Tensor  # P1, (n,)
    error: float  # sum_i |P1 - a|_i over the mass; inf before it is measured
    sweeps: int  # still to do at this level
    steps: int  # Newton steps at this level
    radius: float  # of the trust region, in epsilon
    entries: int  # to keep of the plan
    failures: int  # of the line search, in a row
    record: _Record

    @property
    def settled(self) -> bool:
        """Whether the level is that of the problem."""
        return bool(self.epsilon <= _target(self))


class NewtonState(NamedTuple):
    """The problems of a batch, one after the other."""

    items: tuple[_Item, ...]


class _Direction(NamedTuple):
    """Where to go from here, in the scaled variable sqrt(D) df / epsilon."""

    step: Array
    residual: float  # relative
    bounded: bool  # cut off by the trust region
    iterations: int
    factorised: bool


class _Hessian(NamedTuple):
    """I - K K^T, the scaled Hessian after elimination of g; K is P / sqrt(D b), or what was kept of it."""

    multiply: Callable[[Array], Array]
    kept: float  # share of the entries
    passes: Callable[[], int]  # over all pairs, so far
    matrix: Any = None  # K, where it exists


@dataclass(frozen=True)
class _NewtonSolver(Solver[NewtonState]):
    """What the two Newton solvers share: levels of epsilon, warm start, trust region, line search, records."""

    tol: float | None = None
    max_iter: int = 500
    sweeps: int = 2
    schedule: Schedule = Halving()
    shift: float = 0.0
    cg_max_iter: int = 500
    cg_rtol: float | None = None
    f: Tensor | None = None
    g: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tol", "cg_rtol"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        check_count("cg_max_iter", self.cg_max_iter)
        if self.sweeps != 0:
            check_count("sweeps", self.sweeps)
        if self.shift != 0:
            check_number("shift", self.shift)
        if not isinstance(self.schedule, Schedule):
            refuse("schedule", "a Schedule such as Halving() or Fixed()", repr(self.schedule))

    @abstractmethod
    def _entries(self, geometry: Geometry) -> int:
        """How many entries of the plan to keep at first."""

    @abstractmethod
    def _hessian(self, item: _Item, diagonal: Tensor) -> _Hessian:
        """The scaled Hessian at a point."""

    def _denser(self, item: _Item) -> int:
        """How many entries to keep after a full step whose progress was linear."""
        return item.entries

    # -- the contract of a solver ----------------------------------------------------------------------------

    def check(self, problem: Problem) -> None:
        if problem.epsilon is None:
            refuse(self.name, "an epsilon", "None", "Give epsilon=Relative(0.01), or solver='network-simplex'.")
        if not all(isinstance(p, Exact) for p in problem.marginals):
            refuse(self.name, "exact marginals", repr(problem.marginals), "Use solver='sinkhorn' for soft ones.")
        if problem.reference != "product":
            refuse(self.name, "the product reference", repr(problem.reference), "Use solver='sinkhorn' for another.")
        check_start(f"{self.name} start f", self.f, problem.shape[0])
        check_start(f"{self.name} start g", self.g, problem.shape[1])

    def init(self, problem: Problem) -> NewtonState:
        return NewtonState(tuple(self._start(p, i) for i, p in enumerate(unbatched(problem.double()))))

    def _start(self, problem: Problem, index: int) -> _Item:
        assert problem.epsilon is not None
        warm = self.f is not None or self.g is not None
        epsilon = problem.epsilon if warm else self.schedule.start(problem)
        given = ((item_of(h, index), w) for h, w in ((self.f, problem.a), (self.g, problem.b)))
        f, g = (torch.zeros_like(w) if h is None else h.to(w) for h, w in given)
        item = _Item(
            problem, epsilon, f, g, problem.a, torch.inf, self.sweeps, 0, 1.0, self._entries(problem.geometry), 0,
            _Record(),
        )  # fmt: skip
        return item if self.sweeps else self._refreshed(item)

    def step(self, problem: Problem, state: NewtonState) -> NewtonState:
        return NewtonState(tuple(i if self._ended(i) else self._advance(i) for i in state.items))

    def terminate(self, problem: Problem, state: NewtonState) -> tuple[Status, ...] | None:
        return self.verdict(problem, state) if all(self._ended(i) for i in state.items) else None

    def verdict(self, problem: Problem, state: NewtonState) -> tuple[Status, ...]:
        return tuple(self._status(i) for i in state.items)

    def error(self, state: NewtonState) -> float:
        return max(i.error for i in state.items)

    def finish(self, problem: Problem, state: NewtonState) -> Outcome:
        # stopped on the way down, or just arrived: the columns are owed an update at the problem's epsilon
        items = [
            i if i.settled and i.error < torch.inf else self._refreshed(i._replace(epsilon=_target(i)))
            for i in state.items
        ]
        return Outcome(*gibbs(problem, [i.f for i in items], [i.g for i in items]), _stats(problem, items))

    def _goal(self) -> float:
        return self.tol if self.tol is not None else _DEFAULT_TOL

    def _converged(self, item: _Item) -> bool:
        return item.settled and item.error <= self._goal()

    def _ended(self, item: _Item) -> bool:
        return self._converged(item) or item.failures >= _PATIENCE or item.error != item.error

    def _status(self, item: _Item) -> Status:
        # potentials that cannot be told apart at the scale of epsilon: their plan, and so the error, means nothing
        size = torch.maximum(item.f.abs().max(), item.g.abs().max())
        if item.error != item.error or bool(torch.finfo(size.dtype).eps * size > item.epsilon):
            return Status.DIVERGED
        return Status.CONVERGED if self._converged(item) else Status.MAX_ITER

    # -- one iteration ---------------------------------------------------------------------------------------

    def _advance(self, item: _Item) -> _Item:
        item = self._sweep(item) if item.sweeps else self._newton(item)
        return item if item.sweeps else self._next_level(item)

    def _sweep(self, item: _Item) -> _Item:
        """One iteration of Sinkhorn at this level; the last one measures the error."""
        problem = replace(item.problem, epsilon=item.epsilon)
        sinkhorn = Sinkhorn(schedule=Fixed(), relaxation=Plain(), f=item.f, g=item.g)
        after = sinkhorn.step(problem, sinkhorn.init(problem))
        record = item.record._replace(sweeps=item.record.sweeps + 1, evaluations=item.record.evaluations + 2)
        item = item._replace(f=after.f, g=after.g, sweeps=max(0, item.sweeps - 1), record=record)
        return item if item.sweeps else self._measured(item)

    def _refreshed(self, item: _Item) -> _Item:
        """G becomes the soft c-transform of f at this level."""
        g, _ = _columns(item, item.f)
        record = item.record._replace(evaluations=item.record.evaluations + 1)
        return self._measured(item._replace(g=g, record=record))

    def _measured(self, item: _Item) -> _Item:
        f, rows, error = _rows(item, item.f, item.g)
        record = item.record._replace(
            evaluations=item.record.evaluations + 1,
            errors=(*item.record.errors, error),
            levels=(*item.record.levels, float(item.epsilon)),
        )
        return item._replace(f=f, rows=rows, error=error, record=record)

    def _next_level(self, item: _Item) -> _Item:
        if item.settled or (item.error > _LEVEL_TOL and item.steps < _LEVEL_STEPS):
            return item
        epsilon = self.schedule.next(item.epsilon, _target(item))
        # the error of one level says nothing about the next
        item = item._replace(epsilon=epsilon, error=torch.inf, sweeps=self.sweeps, steps=0, radius=1.0, failures=0)
        return item if self.sweeps else self._refreshed(item)

    def _newton(self, item: _Item) -> _Item:
        problem, eps = item.problem, float(item.epsilon)
        a, b = problem.a, problem.b
        mass = float(a.sum())
        # the exact diagonal, and a little more while rows lack mass: it keeps a step within epsilon there, and the
        # difference vanishes as fast as the gradient
        diagonal = torch.where(a > 0, torch.maximum(item.rows, a), 1)
        scale = diagonal.sqrt()
        gradient = torch.where(a > 0, a - item.rows, 0)
        hessian = self._hessian(item, diagonal)
        direction = self._solve(item, hessian, _numpy(gradient / scale), _numpy(scale), item.radius * mass**0.5)
        d = eps * torch.from_numpy(direction.step).to(a) / scale
        d = torch.where(a > 0, d - (a * d).sum() / mass, 0)  # constants do not matter; small numbers round less
        slope = float((gradient * d).sum())
        value = float((a * item.f).sum() + (b * item.g).sum())
        noise = _ROUNDING * float((a * item.f).abs().sum() + (b * item.g).abs().sum())

        record = item.record
        evaluations = record.evaluations + hessian.passes()
        alpha, accepted = 1.0, None
        while slope > 0 and alpha >= _SMALLEST_ALPHA:
            g, trial = _columns(item, item.f + alpha * d)
            evaluations += 1
            flat = alpha * slope <= noise  # the value cannot tell: ask the slope at the far end instead
            if flat or trial >= value + _ARMIJO * alpha * slope:
                f, rows, error = _rows(item, item.f + alpha * d, g)
                evaluations += 1
                end = float(((a - rows) * d).sum())
                if not flat or (end >= (2 * _ARMIJO - 1) * slope and error <= 10 * item.error):
                    accepted = f, g, rows, error
                    break
            alpha /= 2 if alpha == 1 else 4
        record = record._replace(
            evaluations=evaluations,
            cg=(*record.cg, direction.iterations),
            densities=(*record.densities, hessian.kept),
            factorisations=record.factorisations + direction.factorised,
        )
        length = float(np.linalg.norm(direction.step)) / mass**0.5
        if accepted is None:  # a sweep of Sinkhorn never goes down
            record = record._replace(alphas=(*record.alphas, 0.0))
            item = item._replace(record=record, radius=min(item.radius, length) / 8, failures=item.failures + 1)
            return self._sweep(item)
        f, g, rows, error = accepted
        record = record._replace(
            alphas=(*record.alphas, alpha),
            errors=(*record.errors, error),
            levels=(*record.levels, eps),
        )
        entries, radius = item.entries, item.radius
        if alpha < 1:
            radius = alpha * length
        elif direction.bounded:
            radius = min(2 * radius, _LARGEST_RADIUS)
        elif float(d.abs().max()) <= _REACH * eps:
            expected = max(min(_LINEAR, 10 * item.error**0.5), direction.residual) * item.error
            entries = self._denser(item) if error > max(expected, self._goal()) else entries
        return item._replace(
            f=f, g=g, rows=rows, error=error, steps=item.steps + 1, radius=radius, entries=entries, failures=0,
            record=record,
        )  # fmt: skip

    def _solve(self, item: _Item, hessian: _Hessian, rhs: Array, scale: Array, radius: float) -> _Direction:
        """Conjugate gradients inside a ball; where they stall and memory allows, a Cholesky factorisation."""
        goal = self._goal()
        # no further than quadratic convergence, or the tolerance, asks for
        rtol = min(1e-2, max(item.error, 0.1 * goal / item.error, 1e-12)) if self.cg_rtol is None else self.cg_rtol
        shift = 1 + min(self.shift, item.error)
        n = len(rhs)
        limit = self.cg_max_iter
        direct = hessian.matrix is not None and isinstance(item.problem.geometry, CostMatrix)
        if direct:  # no longer than a factorisation takes
            limit = min(limit, max(25, int(n**3 / (20 * max(1.0, hessian.kept * n * item.problem.shape[1])))))
        step, residual, bounded, iterations = _cg(
            lambda x: hessian.multiply(x) + (shift - 1) * x, rhs, rtol, limit, radius
        )
        if not direct or bounded or residual <= rtol:
            return _Direction(step, residual, bounded, iterations, False)
        step = _factorised(hessian.matrix, rhs, scale, shift)
        length = float(np.linalg.norm(step))
        if length > radius:
            step *= radius / length
        return _Direction(step, 0.0, length > radius, iterations, True)


@dataclass(frozen=True)
class SparseNewton(_NewtonSolver):
    r"""Sinkhorn with sparse Newton iterations (SNS): high accuracy at small epsilon in a handful of steps.

    Sinkhorn comes near the optimum quickly and then crawls; Newton's method is fast there, and the plan of a small
    epsilon is nearly sparse. With P = a ⊗ b exp((f + g - C) / eps), r = P1 and c = P^T 1, the Hessian of the dual is

        -(1/eps) [[diag(r), P], [P^T, diag(c)]].

    Both diagonals stay exact, and of P only the entries with the largest P_ij / sqrt(r_i c_j) are kept: the matrix
    remains positive semidefinite. g is held at the soft c-transform of f, so that the columns are exact, no step can
    overflow, and the Newton equation is (diag(r) - P_s diag(1/b) P_s^T) df = eps (a - r). Conjugate gradients solve it
    with a Jacobi preconditioner inside a trust region, to a residual of min(0.01, error); a back-tracking line search
    on the dual (on its slope once the value is all rounding) guards the step. If a full step makes only linear
    progress, the density is doubled.

    The warm start follows a schedule: at each level of epsilon `sweeps` iterations of Sinkhorn, then Newton steps
    until the error is below 0.1. The paper's own warm start is `SparseNewton(sweeps=20, schedule=Fixed())`.

    Computes in float64 whatever the input, as float32 cannot resolve C / epsilon beyond some hundreds: the potentials
    and the plan keep that precision inside, and what they hand out has the dtype of the input. The items of a batch
    are solved one by one. Rows and columns without mass take no part. SciPy does the sparse algebra, on the CPU.

    Args:
        tol: relative marginal error to stop at; 1e-10 when None. About 1e-16 max|C| / epsilon is the floor.
        max_iter: iterations, sweeps and Newton steps together.
        sweeps: of Sinkhorn, at each level of the schedule.
        schedule: the way down to the problem's epsilon; `Fixed()` begins there.
        shift: Levenberg's term, min(shift, error) times the diagonal.
        cg_max_iter: iterations for one direction. Where the cost is a matrix, a stalled solve is finished by a
            Cholesky factorisation of the smaller matrix.
        cg_rtol: relative residual to solve to; follows the error when None.
        f, g: potentials to start from, at epsilon itself.
        density: share of the n m entries to keep at first; 10 / max(n, m) when None.
        adaptive: double the density when a full step makes linear progress.
        max_density: where it ends; 1 for a `CostMatrix` and 100 / max(n, m) for other geometries when None, so that
            memory stays O(n + m).

    O(n m d) time for an iteration and O(density n m) for each of its conjugate gradients; O(n + m) memory beside the
    cost, and n^2 for a factorisation where the cost is a matrix.

    Reference:
        Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao & Ying (2024), Accelerating Sinkhorn algorithm with
        sparse Newton iterations, arXiv 2401.12253. Elimination of g, relative selection, trust region, schedule and
        factorisation are ours.
    """

    name: ClassVar[str] = "sns"
    density: float | None = None
    adaptive: bool = True
    max_density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("density", "max_density"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value <= 1):
                refuse(name, "a share of the entries in (0, 1]", repr(value))

    def _entries(self, geometry: Geometry) -> int:
        n, m = geometry.shape
        share = 10 / max(n, m) if self.density is None else self.density
        return min(max(1, int(np.ceil(min(share, 1) * n * m))), self._most(geometry))

    def _most(self, geometry: Geometry) -> int:
        n, m = geometry.shape
        if self.max_density is not None:
            return max(1, int(np.ceil(self.max_density * n * m)))
        return n * m if isinstance(geometry, CostMatrix) else min(n * m, _MOST_PER_LINE * min(n, m))

    def _denser(self, item: _Item) -> int:
        return min(2 * item.entries, self._most(item.problem.geometry)) if self.adaptive else item.entries

    def _hessian(self, item: _Item, diagonal: Tensor) -> _Hessian:
        problem, eps = item.problem, item.epsilon
        n, m = problem.shape
        # P_ij / sqrt(D_i b_j) = exp((F_i + G_j - C_ij) / eps)
        F = torch.where(problem.a > 0, item.f + eps * (log_weights(problem.a) - log(diagonal) / 2), -torch.inf)
        G = item.g + eps / 2 * log_weights(problem.b)
        K: Any
        if isinstance(problem.geometry, CostMatrix) and item.entries >= _DENSE_SHARE * n * m:
            dense = ((F.unsqueeze(-1) + G - problem.geometry.tile()) / eps).exp()
            if item.entries < n * m:
                least = dense.flatten().topk(item.entries, sorted=False).values.min()
                dense = torch.where(dense >= least, dense, 0)
            K = _numpy(dense)
            transposed = K.T
        else:
            K = largest_entries(problem.geometry, F, G, eps, item.entries)
            transposed = K.T.tocsr()
        return _Hessian(lambda x: x - K @ (transposed @ x), item.entries / (n * m), lambda: 1, K)


@dataclass(frozen=True)
class Newton(_NewtonSolver):
    r"""Truncated Newton steps on the full Hessian, which is never formed: for lazy costs that do not become sparse.

    The steps of `SparseNewton` with density 1, at the price of two products of the plan with a vector, that is two
    passes over all pairs, for each conjugate gradient: O(n m d) time and O(n + m) memory. Fast where a pass is (small
    clouds, grids, accelerators) and epsilon is not tiny, as few conjugate gradients suffice then.

    Args:
        tol, max_iter, sweeps, schedule, shift, cg_max_iter, cg_rtol, f, g: as in `SparseNewton`.
    """

    name: ClassVar[str] = "newton"

    def _entries(self, geometry: Geometry) -> int:
        return geometry.shape[0] * geometry.shape[1]

    def _hessian(self, item: _Item, diagonal: Tensor) -> _Hessian:
        problem, eps = item.problem, item.epsilon
        F = item.f + eps * log_weights(problem.a)
        G = item.g + eps * log_weights(problem.b)
        root = diagonal.sqrt()
        inverse = torch.where(problem.b > 0, 1 / problem.b, 0)
        count = 0

        def multiply(x: Array) -> Array:
            nonlocal count
            count += 2
            u = torch.from_numpy(x).to(root) / root
            v = problem.geometry.apply(F, G, eps, u, dim=0) * inverse
            return x - _numpy(problem.geometry.apply(F, G, eps, v) / root)

        return _Hessian(multiply, 1.0, lambda: count)


# -- how it is done ------------------------------------------------------------------------------------------


def _target(item: _Item) -> Tensor:
    assert item.problem.epsilon is not None
    return item.problem.epsilon


def _columns(item: _Item, f: Tensor) -> tuple[Tensor, float]:
    """The soft c-transform of f, and the dual value of the pair up to a constant: finite for every finite f."""
    problem, eps = item.problem, item.epsilon
    g = problem.geometry.softmin(f + eps * log_weights(problem.a), eps, dim=0)
    return g, float((problem.a * f).sum() + (problem.b * g).sum())


def _rows(item: _Item, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, float]:
    """The row sums and their error; f of rows without mass becomes the soft c-transform of g."""
    problem, eps = item.problem, item.epsilon
    soft = problem.geometry.softmin(g + eps * log_weights(problem.b), eps)
    f = torch.where(problem.a > 0, f, soft)
    rows = problem.a * exp((f - soft) / eps)
    return f, rows, float((rows - problem.a).abs().sum() / problem.a.sum())


def _cg(
    multiply: Callable[[Array], Array], rhs: Array, rtol: float, max_iter: int, radius: float
) -> tuple[Array, float, bool, int]:
    """Conjugate gradients from zero until the residual, the count or the ball ends them (Steihaug).

    Returns:
        the solution, its relative residual, whether it lies on the ball, and the iterations.
    """
    x, r = np.zeros_like(rhs), rhs.copy()
    p, rr = r.copy(), float(rhs @ rhs)
    whole = rr
    iteration = 0
    while iteration < max_iter and rr > rtol**2 * whole:
        q = multiply(p)
        iteration += 1
        curvature = float(p @ q)
        t = rr / curvature if curvature > 0 else np.inf
        if not np.isfinite(t) or np.linalg.norm(x + t * p) > radius:
            xx, xp, pp = float(x @ x), float(x @ p), float(p @ p)
            t = (np.sqrt(max(xp * xp + pp * (radius**2 - xx), 0.0)) - xp) / pp
            return x + t * p, float(np.sqrt(rr / whole)), True, iteration
        x += t * p
        r -= t * q
        before, rr = rr, float(r @ r)
        p = r + (rr / before) * p
    return x, float(np.sqrt(rr / whole)) if whole else 0.0, False, iteration


def _factorised(K: Any, rhs: Array, scale: Array, shift: float) -> Array:
    """Solve (shift I - K K^T) x = rhs; the null direction, constants in f, is filled in."""
    product = K @ K.T
    matrix = torch.from_numpy(-(product if isinstance(product, np.ndarray) else product.toarray()))
    constant = torch.from_numpy(scale / np.linalg.norm(scale))
    matrix += torch.outer(constant, constant)
    jitter = 1e-15
    while True:
        factor, info = torch.linalg.cholesky_ex(matrix + (shift + jitter) * torch.eye(len(matrix), dtype=matrix.dtype))
        if not info:
            out: Array = torch.cholesky_solve(torch.from_numpy(rhs).unsqueeze(-1), factor).squeeze(-1).numpy()
            return out
        jitter *= 10


def _stats(problem: Problem, items: list[_Item]) -> dict[str, Any]:
    records = [i.record for i in items]
    parts: dict[str, Callable[[_Record], Any]] = {
        "n_sinkhorn": lambda r: r.sweeps,
        "n_newton": lambda r: len(r.cg),
        "kernel_evaluations": lambda r: r.evaluations,
        "factorisations": lambda r: r.factorisations,
        "cg_iterations": lambda r: list(r.cg),
        "alphas": lambda r: list(r.alphas),
        "densities": lambda r: list(r.densities),
        "errors": lambda r: list(r.errors),
        "levels": lambda r: list(r.levels),
    }
    return {"marginal_error": max(i.error for i in items)} | {k: column(problem, records, v) for k, v in parts.items()}
