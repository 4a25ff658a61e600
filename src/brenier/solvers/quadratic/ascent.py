"""Ascent on the dual or semi-dual of a problem with a regularizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...plan import SparsePlan
from ...problem import Problem
from ...regularizers import Conjugate, Regularizer
from ...solution import Status
from ..base import Outcome, Solver, check_number
from ..exact.simplex import NetworkSimplex
from .methods import LBFGS, Method, Point

__all__ = ["AscentState", "DualAscent"]

_DEFAULT_TOL = {torch.float32: 1e-5, torch.float64: 1e-9}
# Gains of the dual value, relative to it, that no longer count.
_NO_GAIN = {torch.float32: 1e-6, torch.float64: 1e-10}


class AscentState(NamedTuple):
    """Flattened over the batch: B problems with columns of length n, m of them."""

    cost: Tensor  # (B, m, n): the columns of C
    a: Tensor  # (B, n)
    b: Tensor  # (B, m)
    point: Point  # f (B, n), or f and g (B, n + m)
    best: Point
    memory: Any
    error: Tensor  # (B,) marginal error of `best`, relative to the mass
    lowest: Tensor  # (B,) the error when it last halved
    reference: Tensor  # (B,) the dual value when there last was progress
    stale: Tensor  # (B,) iterations since
    levels: tuple[Regularizer, ...]  # still to be climbed, the present one first and the problem's own last
    spent: int  # iterations on the present level
    n_evals: int


@dataclass(frozen=True)
class DualAscent(Solver[AscentState]):
    r"""Maximise the dual or the semi-dual of min <P, C> + sum_j Omega(p_j), P1 = a, P^T 1 = b.

        dual       <a, f> + <b, g> - sum_j Omega+*(f + g_j - c_j),   gradient (a - P1, b - P^T 1)
        semi-dual  <a, f> - sum_j Omega_bj*(f - c_j),                gradient a - P1

    with the conjugates of the problem's regularizer, whose maximisers are the columns of P. The plan that is returned
    is read off the semi-dual in both cases: its columns are met exactly and have at most k non-zeros. The error is
    sum_i |P1 - a|_i (and sum_j |P^T 1 - b|_j in the dual) over the mass. Holds the cost matrix once, and another of its
    size at each evaluation; one evaluation takes a partial sort of each column, O(n m log k) time.

    With a bound k on the non-zeros, columns may be tied at the optimum (see `SquaredNorm`): the error then cannot
    fall to zero whatever the solver, and the ascent ends by stagnation. `stats["n_tied_columns"]` counts them.

    The smaller k, the less smooth the dual, and the slower its ascent. With `continuation`, relaxed problems (larger k)
    are climbed first, each starting at the end of the one before: this reaches higher values in fewer iterations. For
    k = 1, where the semi-dual is that of unregularised transport, the network simplex finds its maximum instead.

    Args:
        formulation: "semidual" or "dual".
        method: how to climb: `LBFGS()` or `Adam(lr)`.
        tol: relative marginal error to stop at; 1e-9 in float64 and 1e-5 in float32 when None.
        max_iter: iterations.
        patience: stop when in so many iterations neither the dual value has risen visibly (by 1e-10 of itself in
            float64, 1e-6 in float32) nor the error has halved.
        tie_tol: gaps that count as ties, relative to the range of the costs.
        continuation: start with relaxed problems, at most `level_iter` iterations each; not from given potentials.
        level_iter: see `continuation`.
        dtype: to compute in.
        f, g: potentials to start from; zero when None.

    Reference:
        Blondel, Seguy & Rolet (2018), Smooth and sparse optimal transport; Liu, Puigcerver & Blondel (2023),
        Sparsity-constrained optimal transport.
    """

    name: ClassVar[str] = "dual-ascent"
    regularized: ClassVar[bool] = True
    formulation: str = "semidual"
    method: Method = LBFGS()
    tol: float | None = None
    max_iter: int = 1000
    patience: int = 100
    tie_tol: float = 1e-5
    continuation: bool = True
    level_iter: int = 200
    dtype: torch.dtype = torch.float64
    f: Tensor | None = None
    g: Tensor | None = None

    def __post_init__(self) -> None:
        if self.formulation not in ("semidual", "dual"):
            refuse("formulation", "'semidual' or 'dual'", repr(self.formulation))
        if not isinstance(self.method, Method):
            refuse("method", "a Method such as LBFGS() or Adam(lr)", repr(self.method))
        if self.tol is not None:
            check_number("tol", self.tol)
        if self.dtype not in _DEFAULT_TOL:
            refuse("dtype", "torch.float64 or torch.float32", str(self.dtype))
        for name in ("max_iter", "patience", "tie_tol", "level_iter"):
            check_number(name, getattr(self, name))

    def check(self, problem: Problem) -> None:
        for name, start, size in (("f", self.f, problem.shape[0]), ("g", self.g, problem.shape[1])):
            if start is not None and (start.dim() == 0 or start.shape[-1] != size):
                refuse(f"dual-ascent start {name}", f"last axis of length {size}", f"shape {tuple(start.shape)}")

    # A regularizer of the rows is one of the columns of the transposed problem.

    def _columns(self, problem: Problem) -> tuple[Problem, Regularizer, Tensor | None, Tensor | None]:
        regularizer = problem.regularizer
        assert regularizer is not None
        if regularizer.axis == "columns":
            return problem, regularizer, self.f, self.g
        return problem.T, regularizer.T, self.g, self.f

    def init(self, problem: Problem) -> AscentState:
        problem, regularizer, f, g = self._columns(problem)
        n, m = problem.shape
        batch = problem.batch_shape
        cost = problem.geometry.to(self.dtype).tile().mT.expand(*batch, m, n).reshape(-1, m, n).contiguous()
        a, b = (t.to(self.dtype).reshape(-1, t.shape[-1]) for t in (problem.a, problem.b))
        b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
        warm = self.f is not None or self.g is not None
        if regularizer.extreme and self.continuation and not warm:
            f = _exact_potential(problem)
        x = torch.zeros_like(a) if f is None else f.to(a).expand(*batch, n).reshape(-1, n)
        if self.formulation == "dual":
            if g is None:
                g = -regularizer.conjugate_on_simplex(x.unsqueeze(-2) - cost, b).level
            else:
                g = g.to(a).expand(*batch, m).reshape(-1, m)
            x = torch.cat([x, g], -1)
        relaxed = () if f is not None or warm or not self.continuation else regularizer.relaxations(n)
        zero = torch.zeros_like(a[:, 0])
        start = Point(x, zero, x)
        state = AscentState(
            cost, a, b, start, start, None, zero, zero, zero, zero.long(), (*relaxed, regularizer), 0, 0
        )
        return self._begin(state, x)

    def _begin(self, state: AscentState, x: Tensor) -> AscentState:
        """The state before the first step on a level."""
        point = Point(x, *self._evaluate(state.levels[0], state.cost, state.a, state.b, x))
        error = self._error(point.grad, state.a)
        return state._replace(
            point=point,
            best=point,
            memory=self.method.init(point),
            error=error,
            lowest=error,
            reference=point.value,
            stale=torch.zeros_like(state.stale),
            spent=0,
            n_evals=state.n_evals + 1,
        )

    def _evaluate(self, omega: Regularizer, cost: Tensor, a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        n = a.shape[-1]
        f, g = x[:, :n], x[:, n:]
        s = f.unsqueeze(-2) - cost
        if self.formulation == "semidual":
            best = omega.conjugate_on_simplex(s, b)
            return (a * f).sum(-1) - best.value.sum(-1), a - _row_sums(best, n)
        best = omega.conjugate(s + g.unsqueeze(-1))
        value = (a * f).sum(-1) + (b * g).sum(-1) - best.value.sum(-1)
        return value, torch.cat([a - _row_sums(best, n), b - best.mass.sum(-1)], -1)

    @staticmethod
    def _error(grad: Tensor, a: Tensor) -> Tensor:
        return grad.abs().sum(-1) / a.sum(-1)

    def step(self, problem: Problem, state: AscentState) -> AscentState:
        if len(state.levels) > 1 and (state.spent >= self.level_iter or bool(self._ended(state).all())):
            state = self._begin(state._replace(levels=state.levels[1:]), state.best.x)
        omega = state.levels[0]
        n_evals = 0

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal n_evals
            n_evals += 1
            return self._evaluate(omega, state.cost, state.a, state.b, x)

        active = ~self._ended(state)
        point, memory, stuck = self.method.step(function, state.point, state.memory, active)
        slack = 1e4 * torch.finfo(point.value.dtype).eps * state.best.value.abs()
        error, gain = self._error(point.grad, state.a), point.value - state.best.value
        better = (gain > slack) | ((gain >= -slack) & (error <= state.error))
        best = Point(
            *(torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old) for new, old in zip(point, state.best))
        )
        error = torch.where(better, error, state.error)
        fell = error < state.lowest / 2
        rose = (best.value - state.reference > _NO_GAIN[best.value.dtype] * best.value.abs()) | fell
        return state._replace(
            point=point,
            best=best,
            memory=memory,
            error=error,
            lowest=torch.where(fell, error, state.lowest),
            reference=torch.where(rose, best.value, state.reference),
            stale=torch.where(stuck, int(self.patience), torch.where(rose, 0, state.stale + 1)),
            spent=state.spent + 1,
            n_evals=state.n_evals + n_evals,
        )

    def _ended(self, state: AscentState) -> Tensor:
        return (state.error <= self._tol(state)) | (state.stale >= self.patience)

    def _tol(self, state: AscentState) -> float:
        return self.tol if self.tol is not None else _DEFAULT_TOL[state.a.dtype]

    def terminate(self, problem: Problem, state: AscentState) -> tuple[Status, ...] | None:
        bad = torch.isnan(state.point.value)
        if bool(bad.all()) or (len(state.levels) == 1 and bool((self._ended(state) | bad).all())):
            return self.verdict(problem, state)
        return None

    def verdict(self, problem: Problem, state: AscentState) -> tuple[Status, ...]:
        tol, last = self._tol(state), len(state.levels) == 1
        ended = zip(state.error.tolist(), state.stale.tolist(), torch.isnan(state.point.value).tolist())
        return tuple(
            Status.DIVERGED
            if nan
            else Status.CONVERGED
            if error <= tol and last
            else Status.STAGNATED
            if stale >= self.patience and last
            else Status.MAX_ITER
            for error, stale, nan in ended
        )

    def error(self, state: AscentState) -> float:
        return float(state.error.max())

    def finish(self, problem: Problem, state: AscentState) -> Outcome:
        inner, omega, _, _ = self._columns(problem)
        n, m = inner.shape
        f = state.best.x[:, :n]
        s = f.unsqueeze(-2) - state.cost
        best = omega.conjugate_on_simplex(s, state.b)
        spread = state.cost.amax((-2, -1)) - state.cost.amin((-2, -1))
        tied = torch.stack([omega.ties(s[i], state.b[i], self.tie_tol * float(spread[i])) for i in range(len(s))])
        columns = torch.arange(m, device=f.device).unsqueeze(-1).expand(m, best.mass.shape[-1])
        rows, cols, mass = _compressed(best.rows, columns.expand_as(best.rows), best.mass)
        batch = inner.batch_shape
        rows, cols, mass = (t.reshape(*batch, -1) for t in (rows, cols, mass))
        f, g = f.reshape(*batch, n), (-best.level).reshape(*batch, m)
        if omega is not problem.regularizer:  # rows: back from the transposed problem
            rows, cols, f, g = cols, rows, g, f
        counts = tied.sum(-1)
        stats: dict[str, Any] = {
            "formulation": self.formulation,
            "marginal_error": float(state.error.max()),
            "n_tied_columns": counts.reshape(batch).tolist(),
            "n_evals": state.n_evals,
        }
        return Outcome(SparsePlan(problem.geometry, rows, cols, mass), f, g, stats)


def _exact_potential(problem: Problem) -> Tensor:
    plain = replace(problem, regularizer=None)
    simplex = NetworkSimplex()
    return simplex.finish(plain, simplex.step(plain, simplex.init(plain))).f


def _row_sums(best: Conjugate, n: int) -> Tensor:
    mass = best.mass.flatten(-2)
    return mass.new_zeros((len(mass), n)).scatter_add_(-1, best.rows.flatten(-2), mass)


def _compressed(*parts: Tensor) -> list[Tensor]:
    """Entries (B, m, k) without those of zero mass (the last part), padded to one length over the batch."""
    flat = [t.flatten(-2) for t in parts]
    keep = flat[-1] > 0
    if bool(keep.all()):
        return flat
    return [torch.nn.utils.rnn.pad_sequence([t[i][keep[i]] for i in range(len(t))], batch_first=True) for t in flat]
