"""Exact transport on random awkward problems, every way to solve them, against HiGHS and against its own proof.

Each instance is drawn from its number alone. Every answer must be a feasible plan, with feasible potentials, whose
values agree with each other and with the optimum to 1e-9 of the scale of the costs; all is recomputed here, in
float64, from the dense cost. An instance that takes longer than the limit ends the run with its number.

    python benchmarks/fuzz_exact.py [--instances 5000] [--seed 100] [--limit 20]
    python benchmarks/fuzz_exact.py --soft                                    # the same with soft and partial marginals
    python benchmarks/fuzz_exact.py --only 1234                               # one instance, and what went wrong
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import argparse  # noqa: E402
import faulthandler  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.optimize import linprog  # noqa: E402
from scipy.sparse import coo_array  # noqa: E402

import brenier  # noqa: E402
from brenier import (  # noqa: E402
    TV,
    CostMatrix,
    Exact,
    Free,
    InvalidInput,
    Marginal,
    Partial,
    PointCloud,
    Slack,
    Solution,
    Status,
)
from brenier.kernels.build import native  # noqa: E402
from brenier.solvers import Monotone, NetworkSimplex  # noqa: E402

TOLERANCE = 1e-9  # of the scale of the costs times the mass


class Instance(NamedTuple):
    """A problem, and the solvers that take it."""

    name: str
    geometry: PointCloud | CostMatrix
    cost: np.ndarray  # (n, m)
    a: np.ndarray  # (n,)
    b: np.ndarray  # (m,)
    line: bool


# ------------------------------------------------------------------------------------------------ what is drawn

# each returns points (n, d) and (m, d)
CLOUDS: dict[str, Callable[[np.random.Generator, int, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "gaussian": lambda r, n, m, d: (r.normal(size=(n, d)), r.normal(size=(m, d)) + 0.5),
    "lattice": lambda r, n, m, d: tuple(r.integers(0, 4, size=(k, d)).astype(float) for k in (n, m)),  # type: ignore[dict-item,return-value]
    "one point": lambda r, n, m, d: (np.zeros((n, d)), np.ones((m, d))),
    "collinear": lambda r, n, m, d: (np.outer(r.normal(size=n), np.ones(d)), np.outer(r.normal(size=m), np.ones(d))),
    "duplicates": lambda r, n, m, d: (
        r.normal(size=(2, d))[r.integers(0, 2, n)],
        r.normal(size=(3, d))[r.integers(0, 3, m)],
    ),
    "equal": lambda r, n, m, d: (lambda x: (x[:n], x[:m]))(r.normal(size=(max(n, m), d))),
    "translated": lambda r, n, m, d: (lambda x: (x[:n], r.permutation(x)[:m] + 0.3))(r.normal(size=(max(n, m), d))),
    "far": lambda r, n, m, d: (r.normal(size=(n, d)), r.normal(size=(m, d)) + 1e4),
    "clusters": lambda r, n, m, d: tuple(1e3 * r.integers(0, 3, (k, 1)) + 1e-3 * r.normal(size=(k, d)) for k in (n, m)),  # type: ignore[dict-item,return-value]
    "circle": lambda r, n, m, d: tuple(
        np.stack([np.cos(2 * np.pi * np.arange(k) / k), np.sin(2 * np.pi * np.arange(k) / k)], 1) for k in (n, m)
    ),  # type: ignore[dict-item,return-value]
}

MATRICES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "uniform": lambda r, n, m: r.random((n, m)),
    "signed": lambda r, n, m: r.normal(size=(n, m)),
    "zero": lambda r, n, m: np.zeros((n, m)),
    "constant": lambda r, n, m: np.full((n, m), float(r.normal())),
    "binary": lambda r, n, m: r.integers(0, 2, (n, m)).astype(float),
    "integers": lambda r, n, m: r.integers(-5, 6, (n, m)).astype(float),
    "rank one": lambda r, n, m: np.outer(r.normal(size=n), r.normal(size=m)),
    "sum": lambda r, n, m: r.normal(size=(n, 1)) + r.normal(size=m),  # every plan is optimal
    "walls": lambda r, n, m: np.where(r.random((n, m)) < 0.3, 1e6, r.random((n, m))),
    "many scales": lambda r, n, m: 10.0 ** r.uniform(-12, 0, (n, m)),
    "columns of scales": lambda r, n, m: r.random((n, m)) * 10.0 ** r.uniform(-8, 0, m),
}

MASSES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform": lambda r, n: np.full(n, 1 / n),
    "random": lambda r, n: r.dirichlet(np.ones(n)),
    "integers": lambda r, n: r.integers(1, 4, n).astype(float),
    "zeros": lambda r, n: np.where(r.random(n) < 0.4, 0.0, r.random(n)),
    "sparse dirichlet": lambda r, n: r.dirichlet(np.full(n, 0.01)),
    "one": lambda r, n: np.eye(n)[r.integers(n)],
    "decades": lambda r, n: 10.0 ** r.uniform(-14, 0, n),
    "halves": lambda r, n: 0.5 ** r.permutation(np.arange(n) % 50),
}


def draw(number: int, most: int = 40) -> Instance:
    """The instance of a number."""
    r = np.random.default_rng(number)
    n, m = (int(k) for k in r.integers(1, most, 2))
    shape = r.choice(["any", "square", "one row", "one column", "long"], p=[0.5, 0.3, 0.05, 0.05, 0.1])
    n, m = {"any": (n, m), "square": (n, n), "one row": (1, m), "one column": (n, 1), "long": (3, 5 * m)}[str(shape)]
    names = [str(r.choice(list(MASSES))) for _ in range(2)]
    a, b = (MASSES[name](r, k) for name, k in zip(names, (n, m)))
    a, b = (w if w.sum() > 0 else np.ones(len(w)) for w in (a, b))
    scale = float(r.choice([1.0, 1.0, 1e-150, 1e150, 1e-8, 1e8]))
    mass = float(r.choice([1.0, 1.0, 1e-100, 1e100, 7.0]))
    a, b = a / a.sum() * mass, b / b.sum() * mass
    if r.random() < 0.5:
        kind = str(r.choice(list(CLOUDS)))
        d = 2 if kind == "circle" else int(r.choice([1, 1, 2, 3, 10]))
        ground = str(r.choice(["sqeuclidean", "euclidean", "cityblock"]))
        x, y = CLOUDS[kind](r, n, m, d)
        root = np.sqrt(scale)  # the square of a coordinate stays in range
        x, y = x * root, y * root
        geometry: PointCloud | CostMatrix = PointCloud(torch.from_numpy(x), torch.from_numpy(y), ground)
        difference = np.abs(x[:, None] - y)
        cost = {
            "sqeuclidean": lambda: (difference**2).sum(-1),
            "euclidean": lambda: np.sqrt((difference**2).sum(-1)),
            "cityblock": lambda: difference.sum(-1),
        }[ground]()
        name, line = f"{kind} d={d} {ground}", d == 1
    else:
        kind = str(r.choice(list(MATRICES)))
        cost = np.ascontiguousarray(MATRICES[kind](r, n, m) * scale)
        geometry, name, line = CostMatrix(torch.from_numpy(cost)), kind, False
    return Instance(
        f"{name}, {n} x {m}, {names[0]} to {names[1]}, scale {scale:g}, mass {mass:g}", geometry, cost, a, b, line
    )


def soften(instance: Instance, number: int) -> tuple[Instance, tuple[Marginal, Marginal]]:
    """Marginals of a number that the instance can meet, whose totals may differ."""
    r = np.random.default_rng([number, 1])
    scale = np.abs(instance.cost).max() or 1.0
    a, b = instance.a, instance.b * float(r.choice([1.0, 1.0, 0.5, 3.0]))
    instance = instance._replace(b=b, line=False)

    def price(size: int) -> float | torch.Tensor:
        one = scale * 10.0 ** r.uniform(-3, 0.5)
        return one if r.random() < 0.7 else one * torch.from_numpy(r.uniform(0.1, 1, size))

    mass = min(a.sum(), b.sum()) * float(r.choice([1.0, 0.5, 1e-3, r.random()]))

    def one(size: int) -> Marginal:
        kind = r.choice(["tv", "slack", "partial", "free", "exact"])
        if kind == "tv":
            return TV(price(size))
        if kind == "slack":
            return Slack(float(r.choice([1, 1, 1, 0, -0.1])) * price(size))
        return {"partial": Partial(mass), "free": Free(), "exact": Exact()}[str(kind)]

    while True:
        pair = (one(len(a)), one(len(b)))
        if isinstance(pair[0], Exact) and isinstance(pair[1], Exact):
            continue
        try:
            brenier.Problem.make(instance.geometry, torch.from_numpy(a), torch.from_numpy(b), marginals=pair)
        except InvalidInput:  # no mass that both sides can take
            continue
        return instance._replace(name=f"{instance.name}, {pair}"), pair


def solvers(instance: Instance) -> Iterator[brenier.solvers.Solver]:
    """All that can solve it."""
    if native is not None:
        yield NetworkSimplex(pairs="dense", engine="native")
        yield NetworkSimplex(pairs="lazy")
    yield NetworkSimplex(pairs="dense", engine="reference")
    if instance.line:
        yield Monotone()


# ----------------------------------------------------------------------------------------------------- checks


def optimum(instance: Instance) -> float:
    """The value by HiGHS, in units of the scale of costs and of mass 1; NaN where HiGHS fails."""
    cost, a, b = instance.cost, instance.a, instance.b
    n, m = cost.shape
    scale = np.abs(cost).max() or 1.0
    i, j, k = np.repeat(np.arange(n), m), np.tile(np.arange(m), n), np.arange(n * m)
    sums = coo_array((np.ones(2 * n * m), (np.r_[i, n + j], np.r_[k, k])), (n + m, n * m)).tocsr()
    # the costs that HiGHS sees are of size 1, and its tolerances absolute: the masses are made of size 1 as well
    total = a.sum()
    right = np.concatenate([a / total, b / b.sum()])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    answer = linprog(
        (cost / scale).ravel(), A_eq=sums[:-1], b_eq=right[:-1] * max(n, m), method="highs", options=options
    )
    return answer.fun / max(n, m) if answer.status == 0 else float("nan")


def faults(instance: Instance, solution: Solution, best: float) -> list[str]:
    """What is wrong with a solution."""
    cost, a, b = instance.cost, instance.a, instance.b
    scale, mass = np.abs(cost).max() or 1.0, a.sum()
    found = []
    if solution.status is not Status.OPTIMAL:
        found.append(f"status {solution.status.name}")
    rows, cols, moved = (t.numpy() for t in solution.plan.entries())
    if not (moved > 0).all():
        found.append(f"mass {moved.min():g}")
    for side, index, sums in (("rows", rows, a), ("columns", cols, b)):
        error = np.abs(np.bincount(index, moved, len(sums)) / mass - sums / mass).max()
        if not error <= 1e-12:
            found.append(f"{side} off by {error:.1e}")
    f, g = solution.f.numpy() / scale, solution.g.numpy() / scale
    slack = (cost / scale - f[:, None] - g).min()
    if not slack >= -1e-12:
        found.append(f"potentials infeasible by {-slack:.1e}")
    primal = float((cost / scale)[rows, cols] @ (moved / mass))
    dual = float(f @ (a / mass) + g @ (b / mass))
    if not abs(primal - dual) <= TOLERANCE:
        found.append(f"gap {primal - dual:.1e}")
    if not np.isnan(best) and not abs(primal - best) <= TOLERANCE:
        found.append(f"value off by {primal - best:.1e}")
    told = float(solution.certificate.gap) / scale / mass
    if not told <= TOLERANCE:
        found.append(f"certificate of gap {told:.1e}")
    if not abs(float(solution.value) / scale / mass - primal) <= TOLERANCE:
        found.append(f"told value off by {float(solution.value) / scale / mass - primal:.1e}")
    return found


def _bounds(marginal: Marginal, scale: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Prices of mass that is short and that is over, in units of the scale of costs; inf where it is not allowed."""
    parameter = np.asarray(getattr(marginal, "rho", getattr(marginal, "delta", 0.0)), dtype=float) / scale
    short = np.inf if isinstance(marginal, Exact) else parameter
    over = parameter if isinstance(marginal, TV | Free) else np.inf
    return np.broadcast_to(short, (size,)), np.broadcast_to(over, (size,))


def soft_optimum(instance: Instance, pair: tuple[Marginal, Marginal]) -> float:
    """The value by HiGHS, in units of the scale of costs and of the mass of a; -inf where there is none."""
    cost, a, b = instance.cost, instance.a, instance.b
    n, m = cost.shape
    scale = np.abs(cost).max() or 1.0
    i, j, k = np.repeat(np.arange(n), m), np.tile(np.arange(m), n), np.arange(n * m)
    lines = np.arange(n + m)
    prices = [_bounds(marginal, scale, size) for marginal, size in zip(pair, (n, m))]
    short, over = (np.concatenate([p[t] for p in prices]) for t in (0, 1))
    # sums of the plan + what is short - what is over = weights
    ones = np.ones(n + m)
    entries = np.r_[np.ones(2 * n * m), ones, -ones]
    rows, cols = np.r_[i, n + j, lines, lines], np.r_[k, k, n * m + lines, n * m + n + m + lines]
    right = np.concatenate([a, b]) / a.sum()
    for marginal in pair:
        if isinstance(marginal, Partial):
            entries, cols = np.r_[entries, np.ones(n * m)], np.r_[cols, k]
            rows, right = np.r_[rows, np.full(n * m, len(right))], np.r_[right, float(marginal.mass) / a.sum()]
    system = coo_array((entries, (rows, cols)), (len(right), n * m + 2 * (n + m))).tocsr()
    objective = np.concatenate([(cost / scale).ravel(), *(np.where(np.isinf(p), 0, p) for p in (short, over))])
    limits = [(0, None)] * (n * m) + [(0, 0 if np.isinf(p) else None) for p in (*short, *over)]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    size = max(n, m)
    answer = linprog(objective, A_eq=system, b_eq=right * size, bounds=limits, method="highs", options=options)
    return {0: lambda: answer.fun / size, 3: lambda: -np.inf}.get(answer.status, lambda: np.nan)()


def soft_faults(instance: Instance, pair: tuple[Marginal, Marginal], solution: Solution, best: float) -> list[str]:
    """What is wrong with a solution."""
    cost, weights = instance.cost, (instance.a, instance.b)
    scale, mass = np.abs(cost).max() or 1.0, instance.a.sum()
    found = [] if solution.status is Status.OPTIMAL else [f"status {solution.status.name}"]
    rows, cols, moved = (t.numpy() for t in solution.plan.entries())
    potentials = [t.numpy() / scale for t in (solution.f, solution.g)]
    slack = (cost / scale - potentials[0][:, None] - potentials[1]).min()
    primal, dual = float((cost / scale)[rows, cols] @ (moved / mass)), 0.0
    for marginal, index, w, f in zip(pair, (rows, cols), weights, potentials):
        w, r = w / mass, np.bincount(index, moved / mass, len(w))
        short, over = _bounds(marginal, scale, len(w))
        less, more = (w - r).clip(0), (r - w).clip(0)
        wrong = max(less[np.isinf(short)].max(initial=0), more[np.isinf(over)].max(initial=0))
        primal += less @ np.where(np.isinf(short), 0, short) + more @ np.where(np.isinf(over), 0, over)
        slack = min(slack, (f + over).min())
        if isinstance(marginal, Partial):
            share = float(marginal.mass) / mass
            wrong = max(wrong, abs(r.sum() - share))
            live = np.flatnonzero(w)
            order = live[np.argsort(f[live])]
            filled = np.diff(np.minimum(np.cumsum(w[order]), share), prepend=0)
            dual += filled @ f[order]
        else:
            dual += w @ np.minimum(f, short)
        if not wrong <= 1e-12:
            found.append(f"marginal off by {wrong:.1e}")
    if not slack >= -1e-12:
        found.append(f"potentials infeasible by {-slack:.1e}")
    size = 1 + max(np.abs(f).max() for f in potentials)
    if not abs(primal - dual) <= TOLERANCE * size:
        found.append(f"gap {primal - dual:.1e}")
    if not np.isnan(best) and not abs(primal - best) <= TOLERANCE * size:
        found.append(f"value off by {primal - best:.1e}")
    for name, told in (("value", solution.value), ("certified", solution.certificate.primal)):
        if not abs(float(told) / scale / mass - primal) <= TOLERANCE * size:
            found.append(f"{name} off by {float(told) / scale / mass - primal:.1e}")
    if not float(solution.certificate.gap) / scale / mass <= TOLERANCE * size:
        found.append(f"certificate of gap {float(solution.certificate.gap) / scale / mass:.1e}")
    return found


def check_soft(number: int, most: int = 40) -> tuple[Instance, list[str]]:
    """Solve an instance with soft or partial marginals in every way; what is wrong, a line each."""
    instance, pair = soften(draw(number, most), number)
    best, wrong = soft_optimum(instance, pair), []
    a, b = torch.from_numpy(instance.a), torch.from_numpy(instance.b)
    for solver in solvers(instance):
        try:
            warnings.simplefilter("error")
            solution = brenier.solve(instance.geometry, a=a, b=b, marginals=pair, solver=solver)
            wrong += [f"{solver!r}: {fault}" for fault in soft_faults(instance, pair, solution, best)]
        except InvalidInput as error:
            if best != -np.inf:
                wrong.append(f"{solver!r}: refused: {error}")
        except Exception as error:  # whatever it is, it is a finding
            wrong.append(f"{solver!r}: {type(error).__name__}: {error}")
    return instance, wrong


def check(number: int, most: int = 40) -> tuple[Instance, list[str]]:
    """Solve an instance in every way; what is wrong, a line each."""
    instance = draw(number, most)
    best, wrong = optimum(instance), []
    a, b = torch.from_numpy(instance.a), torch.from_numpy(instance.b)
    for solver in solvers(instance):
        try:
            warnings.simplefilter("error")
            solution = brenier.solve(instance.geometry, a=a, b=b, solver=solver)
            wrong += [f"{solver!r}: {fault}" for fault in faults(instance, solution, best)]
        except Exception as error:  # whatever it is, it is a finding
            wrong.append(f"{solver!r}: {type(error).__name__}: {error}")
    return instance, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--most", type=int, default=40, help="lines of an instance")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for an instance")
    parser.add_argument("--only", type=int)
    parser.add_argument("--soft", action="store_true", help="soft and partial marginals")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, wrong, longest = time.perf_counter(), 0, 0.0
    kinds: Counter[str] = Counter()
    numbers = range(options.seed, options.seed + options.instances) if options.only is None else [options.only]
    for number in numbers:
        faulthandler.dump_traceback_later(options.limit, exit=True)
        before = time.perf_counter()
        instance, faulty = (check_soft if options.soft else check)(number, options.most)
        longest = max(longest, time.perf_counter() - before)
        faulthandler.cancel_dump_traceback_later()
        if faulty:
            wrong += 1
            kinds.update(line.split(": ")[1].rstrip("0123456789.e+-") for line in faulty)
            if wrong <= 30:
                print(f"{number}: {instance.name}", *faulty, sep="\n    ", flush=True)
    print(
        f"{len(numbers)} instances, {wrong} wrong, longest {longest:.2f} s, {time.perf_counter() - start:.0f} s in all"
    )
    for kind, count in kinds.most_common():
        print(f"{count:>6} {kind}")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
