"""The judge: recomputes in dense float64 NumPy how good an answer is, and trusts no word of the method."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .problems import Array, Set


class Answer(NamedTuple):
    """A plan and, where the method has them, potentials in cost units."""

    plan: Array
    f: Array | None = None
    g: Array | None = None


def rounded(P: Array, a: Array, b: Array) -> Array:
    """A feasible plan near P (Altschuler, Weed & Rigollet 2017, algorithm 2)."""
    r = P.sum(1)
    P = P * np.minimum(1, np.divide(a, r, out=np.ones_like(a), where=r > 0))[:, None]
    c = P.sum(0)
    P = P * np.minimum(1, np.divide(b, c, out=np.ones_like(b), where=c > 0))
    left, right = (a - P.sum(1)).clip(min=0), (b - P.sum(0)).clip(min=0)
    return P + np.outer(left, right) / right.sum() if right.sum() > 0 else P


def relative_gap(problem: Set, answer: Answer) -> float:
    """(primal - dual) / primal: the cost of the rounded plan against the better of the c-transformed potentials."""
    C, a, b = problem.C, problem.a, problem.b
    if not np.isfinite(answer.plan).all() or (answer.plan < 0).any():
        return np.inf
    primal = float((rounded(answer.plan, a, b) * C).sum())
    dual = -np.inf
    if answer.f is not None and np.isfinite(answer.f).all():
        g = (C - answer.f[:, None])[a > 0].min(0)
        dual = max(dual, float(a @ (C - g)[:, b > 0].min(1) + b @ g))
    if answer.g is not None and np.isfinite(answer.g).all():
        f = (C - answer.g)[:, b > 0].min(1)
        dual = max(dual, float(a @ f + b @ (C - f[:, None])[a > 0].min(0)))
    return (primal - dual) / primal


def marginal_error(problem: Set, answer: Answer) -> float:
    """The larger of sum_i |P1 - a|_i and sum_j |P^T 1 - b|_j, over the mass."""
    if not np.isfinite(answer.plan).all():
        return np.inf
    row, column = answer.plan.sum(1) - problem.a, answer.plan.sum(0) - problem.b
    return float(max(np.abs(row).sum(), np.abs(column).sum()) / problem.a.sum())


def entropic_value(problem: Set, answer: Answer, epsilon: float) -> float:
    """<P, C> + eps KL(P | ab): what tells the plan of one epsilon from that of another."""
    P, ab = answer.plan, np.outer(problem.a, problem.b)
    on = P > 0
    return float((P * problem.C).sum() + epsilon * ((P[on] * np.log(P[on] / ab[on])).sum() - P.sum() + ab.sum()))
