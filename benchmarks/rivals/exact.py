"""Exact transport: the problems, each library's way to an exact plan, and a judge of plans given by their entries."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from .problems import Array

DIMS = (2, 3, 32, 784)
MASSES = ("uniform", "Dirichlet")
COSTS = ("sqeuclidean", "euclidean", "cityblock")
TOLERANCE = 1e-9  # relative, of the value and of the marginals
_SHORT = 2.0  # seconds; shorter runs are repeated three times
_BLOCK = 1 << 24  # pairs that the judge sees at once

Entries = tuple[Array, Array, Array]  # rows, columns, masses


@dataclass(frozen=True)
class Clouds:
    """One problem."""

    cost: str
    x: Array  # (n, d)
    y: Array  # (n, d)
    a: Array  # (n,), of sum 1
    b: Array  # (n,), of sum 1


def make(d: int, masses: str, cost: str, n: int) -> Clouds:
    """Gaussian clouds half a deviation apart along every axis; in 784 dimensions pictures of Fashion-MNIST."""
    r = np.random.default_rng([200, d, n])
    if d == 784:
        from brenier import data

        images = data.fashion_mnist().train
        chosen = r.permutation(len(images))[: 2 * n]
        x, y = (images[part].reshape(n, d) / 255.0 for part in (chosen[:n], chosen[n:]))
    else:
        x, y = r.normal(size=(n, d)), r.normal(size=(n, d)) + 0.5
    a, b = (np.full(n, 1 / n) if masses == "uniform" else r.dirichlet(np.ones(n)) for _ in range(2))
    return Clouds(cost, x, y, a, b)


def matrix(x: Array, y: Array, cost: str) -> Array:
    """The cost matrix, the fast way where there is one."""
    if cost == "cityblock":
        return cdist(x, y, cost)
    C = x @ y.T
    C *= -2
    C += (x**2).sum(1)[:, None]
    C += (y**2).sum(1)
    np.maximum(C, 0, out=C)
    return np.sqrt(C, out=C) if cost == "euclidean" else C


def _brenier(problem: Clouds) -> tuple[Any, Callable[[], Entries]]:
    import torch

    import brenier

    parts = {k: torch.from_numpy(v) for k, v in vars(problem).items() if k != "cost"}
    solution = brenier.solve(**parts, cost=problem.cost)
    plan = solution.plan
    return solution, lambda: tuple(t.numpy() for t in (plan.rows, plan.cols, plan.mass))


def _pot(problem: Clouds) -> tuple[Any, Callable[[], Entries]]:
    import ot

    C = matrix(problem.x, problem.y, problem.cost)
    plan = ot.emd(problem.a, problem.b, C, numItermax=10**9)

    def entries() -> Entries:
        rows, cols = plan.nonzero()
        return rows, cols, plan[rows, cols]

    return None, entries


def _pairs(rows: Any, cols: Any) -> tuple[Any, Callable[[], Entries]]:
    return None, lambda: (np.asarray(rows), np.asarray(cols), np.full(len(cols), 1 / len(cols)))


def _scipy(problem: Clouds) -> tuple[Any, Callable[[], Entries]]:
    from scipy.optimize import linear_sum_assignment

    return _pairs(*linear_sum_assignment(matrix(problem.x, problem.y, problem.cost)))


def _lapx(problem: Clouds) -> tuple[Any, Callable[[], Entries]]:
    import lap

    cols = lap.lapjv(matrix(problem.x, problem.y, problem.cost), return_cost=False)[0]
    return _pairs(np.arange(len(cols)), cols)


METHODS = {"brenier": _brenier, "POT emd": _pot, "SciPy linear_sum_assignment": _scipy, "lapx lapjv": _lapx}
ASSIGN = ("SciPy linear_sum_assignment", "lapx lapjv")  # equal masses only


def value(problem: Clouds, entries: Entries) -> float:
    """The cost of a plan, pair by pair; infinite where its marginals are not those of the problem."""
    rows, cols, mass = entries
    for end, wanted in ((rows, problem.a), (cols, problem.b)):
        if not np.abs(np.bincount(end, mass, minlength=len(wanted)) - wanted).sum() <= TOLERANCE:
            return np.inf
    total = 0.0
    for part in np.array_split(np.arange(len(rows)), max(1, len(rows) * problem.x.shape[1] // _BLOCK)):
        apart = problem.x[rows[part]] - problem.y[cols[part]]
        lengths = np.abs(apart).sum(1) if problem.cost == "cityblock" else (apart**2).sum(1)
        total += float(mass[part] @ (np.sqrt(lengths) if problem.cost == "euclidean" else lengths))
    return total


def dual_value(problem: Clouds, g: Array) -> float:
    """What the potentials g prove: <f, a> + <g, b> with f their c-transform."""
    step = max(1, _BLOCK // len(g))
    blocks = (slice(k, k + step) for k in range(0, len(problem.a), step))
    # from differences; in many dimensions, where that takes minutes, from a product wherever there is one
    costs = cdist if problem.x.shape[1] < 100 else matrix
    f = np.concatenate([(costs(problem.x[k], problem.y, problem.cost) - g).min(1) for k in blocks])
    return float(problem.a @ f + problem.b @ g)


@lru_cache(maxsize=1)
def _problem_at(path: str) -> Clouds:
    with np.load(path) as parts:
        return Clouds(**{k: str(v) if v.dtype.kind == "U" else v for k, v in parts.items()})


def solve(request: dict[str, Any], say: Any) -> dict[str, Any]:
    """Seconds of the processor, the value, and how far it is from the optimum; for brenier, from what it proves."""
    problem, method = _problem_at(request["path"]), METHODS[request["method"]]
    method(Clouds(problem.cost, *(t[:64] for t in (problem.x, problem.y)), *2 * (np.full(64, 1 / 64),)))  # imports

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]

    def timed() -> tuple[float, Any]:
        start = time.process_time()
        # the limit is on seconds of the processor, as they are what counts: the process ends itself
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start + request["limit"]), hard))
        say({"clock": "on"})
        out = method(problem)
        seconds = time.process_time() - start
        say({"clock": "off"})
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        return seconds, out

    seconds, (solution, entries) = timed()
    found = value(problem, entries())
    optimum = request.get("optimum")
    if optimum is None:
        optimum = dual_value(problem, solution.g.numpy())
    error = abs(found - optimum) / optimum
    if not error <= TOLERANCE:
        return {"ok": False, "reason": f"not reached: {error:.2g}"}
    del solution, entries
    if seconds < _SHORT:  # that one warmed up
        seconds = statistics.median(timed()[0] for _ in range(3))
    return {"ok": True, "seconds": seconds, "error": error, "value": found}
