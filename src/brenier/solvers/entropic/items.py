"""What the solvers share that take the problems of a batch one by one, in float64 and with exact marginals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...errors import refuse
from ...marginals import log_weights
from ...plan import GibbsPlan
from ...problem import Problem

__all__ = ["check_newton", "column", "gibbs", "item_of", "takes_newton", "unbatched"]

Record = TypeVar("Record")


def takes_newton(problem: Problem) -> bool:
    """Whether the Newton solvers can take this problem."""
    return problem.balanced and problem.reference == "product"


def check_newton(name: str, problem: Problem) -> None:
    """Refuse what the Newton solvers cannot take."""
    if problem.epsilon is None:
        refuse(name, "an epsilon", "None", "Give epsilon=Relative(0.01), or solver='network-simplex'.")
    if not takes_newton(problem):
        got = f"{problem.marginals!r} and reference={problem.reference!r}"
        refuse(name, "exact marginals and the product reference", got, "Use solver='sinkhorn'.")


def unbatched(problem: Problem) -> list[Problem]:
    """The problems of a batch, without batch axes."""
    assert problem.epsilon is not None
    batch = problem.batch_shape
    if not batch:
        return [problem]
    out = []
    for index in np.ndindex(*batch):
        out.append(
            Problem(
                problem.geometry.item(index),
                problem.a[index],
                problem.b[index],
                problem.marginals,
                problem.epsilon[index] if problem.epsilon.dim() else problem.epsilon,
            )
        )
    return out


def item_of(h: Tensor | None, index: int) -> Tensor | None:
    """The potential of one problem, (n,), of those for all or for each."""
    return h if h is None or h.dim() == 1 else h.reshape(-1, h.shape[-1])[index]


def gibbs(problem: Problem, f: Sequence[Tensor], g: Sequence[Tensor]) -> tuple[GibbsPlan, Tensor, Tensor]:
    """The plan of the potentials of all problems of a batch, and these, stacked."""
    assert problem.epsilon is not None
    double, batch = problem.double(), problem.batch_shape
    whole_f, whole_g = (torch.stack(list(h)).reshape(*batch, -1) for h in (f, g))
    eps = problem.epsilon.double()
    line = eps.unsqueeze(-1) if eps.dim() else eps
    F, G = whole_f + line * log_weights(double.a), whole_g + line * log_weights(double.b)
    return GibbsPlan(problem.geometry, F, G, eps), whole_f, whole_g


def column(problem: Problem, records: Sequence[Record], value: Callable[[Record], Any]) -> Any:
    """A statistic of each problem of a batch, or of the only one."""
    values = [value(r) for r in records]
    return values if problem.batch_shape else values[0]
