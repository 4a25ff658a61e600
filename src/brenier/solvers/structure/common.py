"""What the solvers of quadratic problems share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._inputs import check_finite, float_tensor
from ...errors import refuse
from ...plan import Plan, SparsePlan
from ...problem import Problem
from ...structure import Form, Linear, Moments, Quadratic

__all__ = ["Begin", "as_plan", "begin", "check_plan", "quadratic"]


class Begin(NamedTuple):
    """Where a solver begins: a form of the problem, the moments of the first plan, and half(P)."""

    form: Form
    plan: Plan | None  # None for a ⊗ b, of which no entries are listed
    moments: Moments
    half: Linear
    scale: float  # of the objective, for tolerances


def quadratic(problem: Problem) -> Quadratic:
    """The problem, as the driver has checked that it is."""
    assert isinstance(problem, Quadratic)
    return problem


def begin(problem: Problem, start: Plan | None) -> Begin:
    """Read the problem once; without a plan start at a ⊗ b."""
    form = Form(quadratic(problem))
    product = form.product(form.a, form.b * (form.a.sum() / form.b.sum()))
    half = form.half(product)
    scale = max(abs(float(form.energy(product, half))), torch.finfo(torch.float64).tiny)
    if start is None:
        return Begin(form, None, product, half, scale)
    moments = form.moments(start)
    return Begin(form, start, moments, form.half(moments), scale)


def check_plan(name: str, start: Plan | None, problem: Problem) -> None:
    """Refuse a plan to start from that does not fit the problem."""
    if start is None:
        return
    if not isinstance(start, Plan):
        refuse(name, "a Plan or None", type(start).__name__)
    if start.shape != problem.shape or start.batch_shape:
        refuse(name, f"a plan of shape {problem.shape}", f"shape {(*start.batch_shape, *start.shape)}")


def as_plan(entries: object, problem: Problem, name: str = "starts") -> Plan:
    """Read a plan, or a matrix (n, m) of its masses, as a plan of this problem.

    Raises:
        InvalidInput: another shape, negative or infinite entries, or no mass.
    """
    if isinstance(entries, Plan):
        check_plan(name, entries, problem)
        return entries
    matrix = float_tensor(entries, name).detach().to(problem.geometry.device)
    if matrix.shape != problem.shape:
        refuse(name, f"plans of shape {problem.shape}", f"shape {tuple(matrix.shape)}")
    check_finite(matrix, name, "finite masses")
    if bool((matrix < 0).any()) or not bool((matrix > 0).any()):
        refuse(name, "nonnegative masses, and some above zero", f"a minimum of {float(matrix.min()):g}")
    return sparse(matrix, problem)


def sparse(matrix: Tensor, problem: Problem) -> SparsePlan:
    """The entries of a matrix (n, m) that are not zero, as a plan."""
    rows, cols = matrix.nonzero(as_tuple=True)
    return SparsePlan(problem.geometry, rows, cols, matrix[rows, cols].double())
