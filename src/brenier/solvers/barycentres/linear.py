"""Barycentres on a given support without an epsilon: one linear program, for small measures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import refuse
from ...plan import SparsePlan
from ...solution import Status
from .problem import Barycentre

__all__ = ["Program", "linear_program"]

_LIMIT = 1_000_000  # variables
_STATUS = {0: Status.OPTIMAL, 1: Status.TIME_OUT}


class Program(NamedTuple):
    """The solution of the linear program."""

    b: Tensor  # (m,)
    plan: SparsePlan
    f: Tensor
    g: Tensor
    value: Tensor
    status: Status
    n_iter: int


def linear_program(barycentre: Barycentre, *, timeout: float | None = None) -> Program:
    """Minimise sum_k w_k <P_k, C_k> over P_k >= 0 with P_k 1 = a_k and P_k^T 1 = b, with b >= 0 sought, by HiGHS.

    Holds K n m variables, a million at most. Exact to the tolerance of HiGHS, 1e-7 in the reduced costs; the
    certificate says what that comes to.
    """
    from scipy.optimize import linprog  # not with the import of brenier
    from scipy.sparse import block_diag, csr_array, eye_array, hstack, kron, vstack

    problem = barycentre.problem.detach().double()
    (n, m), count = problem.shape, len(problem.a)
    if count * n * m > _LIMIT:
        refuse(
            "linear-program",
            f"at most {_LIMIT} variables",
            f"{count} x {n} x {m}",
            "Give an epsilon, or a support of fewer points.",
        )
    w, a = barycentre.weights.double().cpu().numpy(), problem.a.cpu().numpy()
    w = np.maximum(w, 0)
    mass = float(a[0].sum())
    tiles = [problem.geometry.item((k,)).tile().cpu().numpy() for k in range(count)]
    scale = max(float(np.abs(np.stack([t.max() - t.min() for t in tiles])).max()), 1e-300)
    # a measure of no weight is still transported, at next to no cost
    cost = np.concatenate([w[k] * tiles[k].ravel() / scale for k in range(count)] + [np.zeros(m)])
    rows = block_diag([kron(eye_array(n), np.ones((1, m))) for _ in range(count)])
    cols = block_diag([kron(np.ones((1, n)), eye_array(m)) for _ in range(count)])
    matrix = vstack([
        hstack([rows, csr_array((count * n, m))]),
        hstack([cols, vstack([-eye_array(m)] * count)]),
    ]).tocsr()  # fmt: skip
    # totals are equal, so that the last column of all measures but one is met by itself
    keep = np.ones(count * (n + m), dtype=bool)
    keep[count * n + 2 * m - 1 :: m] = False
    target = np.concatenate([(a / a.sum(-1, keepdims=True)).ravel(), np.zeros(count * m)])
    options = {} if timeout is None else {"time_limit": timeout}
    found = linprog(cost, A_eq=matrix[keep], b_eq=target[keep], method="highs", options=options)
    if found.x is None:
        refuse("linear-program", "a solution by HiGHS", found.message)
    plans = torch.from_numpy(found.x[:-m].reshape(count, -1)).clamp(min=0) * mass
    longest = max(1, int((plans > 0).sum(-1).max()))
    entries = plans.topk(longest, -1)
    plan = SparsePlan(problem.geometry, entries.indices // m, entries.indices % m, entries.values)
    duals = torch.zeros(len(keep), dtype=torch.float64)
    duals[torch.from_numpy(keep)] = torch.from_numpy(found.eqlin.marginals.copy()) * scale
    safe = torch.from_numpy(np.where(w > 0, w, 1)).unsqueeze(-1)
    f, g = duals[: count * n].reshape(count, n) / safe, duals[count * n :].reshape(count, m) / safe
    b = torch.from_numpy(found.x[-m:]).clamp(min=0) * mass
    value = (barycentre.weights.double() * plan.cost()).sum()
    return Program(b, plan, f, g, value, _STATUS.get(found.status, Status.STAGNATED), int(found.nit))
