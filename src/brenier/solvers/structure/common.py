"""What the solvers of quadratic problems share."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._inputs import check_finite, float_tensor
from ...errors import refuse
from ...plan import Plan, SparsePlan
from ...problem import Problem
from ...structure import Form, Linear, Moments, Quadratic, along

__all__ = ["Begin", "as_plan", "begin", "check_plan", "quadratic", "sparse", "where"]

State = TypeVar("State")


class Begin(NamedTuple):
    """Where a solver begins: a form of the problem, the moments of the first plan, and half(P)."""

    form: Form
    plan: Plan | None  # None for a ⊗ b, of which no entries are listed
    moments: Moments
    half: Linear
    scale: float  # of the objective, for tolerances: the largest of a batch


def quadratic(problem: Problem) -> Quadratic:
    """The problem, as the driver has checked that it is."""
    assert isinstance(problem, Quadratic)
    return problem


def begin(problem: Problem, start: Plan | None) -> Begin:
    """Read the problem once; without a plan start at a ⊗ b."""
    form = quadratic(problem).form
    scale = max(float(form.scale.max()), torch.finfo(torch.float64).tiny)
    if start is None:
        return Begin(form, None, *form.independent(), scale)
    moments = form.moments(start)
    return Begin(form, start, moments, form.half(moments), scale)


def where(chosen: Tensor, first: State, second: State) -> State:
    """The first state for the chosen items of a batch, (*batch,), and the second for the others.

    A state is a named tuple of tensors whose first axes are those of the batch, or of such tuples; what else there is
    comes from the second.
    """
    if bool(chosen.all()):
        return first
    mixed: State = _where(chosen, first, second) if bool(chosen.any()) else second
    return mixed


def _where(chosen: Tensor, first: Any, second: Any) -> Any:
    if first is second:
        return second
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.where(along(chosen, second), first, second)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return type(first)(*(_where(chosen, s, t) for s, t in zip(first, second)))
    return second


def check_plan(name: str, start: Plan | None, problem: Problem) -> None:
    """Refuse a plan to start from that does not fit the problem."""
    if start is None:
        return
    if not isinstance(start, Plan):
        refuse(name, "a Plan or None", type(start).__name__)
    if start.shape != problem.shape or start.batch_shape != problem.batch_shape:
        expected = (*problem.batch_shape, *problem.shape)
        refuse(name, f"a plan of shape {expected}", f"shape {(*start.batch_shape, *start.shape)}")


def as_plan(entries: object, problem: Problem, name: str = "starts") -> Plan:
    """Read a plan, or a matrix (*batch, n, m) of its masses, as a plan of this problem.

    Raises:
        InvalidInput: another shape, negative or infinite entries, or no mass.
    """
    if isinstance(entries, Plan):
        check_plan(name, entries, problem)
        return entries
    matrix = float_tensor(entries, name).detach().to(problem.geometry.device)
    expected = (*problem.batch_shape, *problem.shape)
    if matrix.shape != expected:
        refuse(name, f"plans of shape {expected}", f"shape {tuple(matrix.shape)}")
    check_finite(matrix, name, "finite masses")
    if bool((matrix < 0).any()) or not bool((matrix > 0).any(-1).any(-1).all()):
        refuse(name, "nonnegative masses, and some above zero", f"a minimum of {float(matrix.min()):g}")
    return sparse(matrix, problem)


def sparse(matrix: Tensor, problem: Problem) -> SparsePlan:
    """The entries of a matrix (*batch, n, m) that are not zero, as a plan."""
    if matrix.dim() == 2:
        rows, cols = matrix.nonzero(as_tuple=True)
        return SparsePlan(problem.geometry, rows, cols, matrix[rows, cols].double())
    batch, (n, m) = matrix.shape[:-2], problem.shape
    flat = matrix.reshape(-1, n * m)
    item, place = flat.nonzero(as_tuple=True)
    counts = item.bincount(minlength=len(flat))
    slot = torch.arange(len(item), device=item.device) - (counts.cumsum(0) - counts)[item]
    width = int(counts.max())
    index = place.new_zeros(len(flat), width).index_put((item, slot), place)
    mass = flat.new_zeros(len(flat), width, dtype=torch.float64).index_put((item, slot), flat[item, place].double())
    index, mass = index.reshape(*batch, width), mass.reshape(*batch, width)
    return SparsePlan(problem.geometry, index // m, index % m, mass)
