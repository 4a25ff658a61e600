"""Gromov-Wasserstein between 20,000 points in linear time: brenier beside POT and OTT, each in a process of its own.

Two clouds, d = 3 and 2, ten groups each, squared Euclidean distances, float64, one thread. Plans of low rank by brenier
(`LowRankGromov`), POT (`lowrank_gromov_wasserstein_samples`) and OTT (`LRGromovWasserstein`); quantised by brenier
(`Quantized`), and sampled by POT (`sampled_gromov_wasserstein`, which needs both matrices). A rival is stopped after
--limit seconds. The objective of every plan is recomputed in float64 from products of the plan with thin matrices,
after masses of the rows were met by scaling; `errors` are sum |P1 - a| + sum |P^T 1 - b| before.

    python benchmarks/structure_large.py [--points 20000] [--rank 20] [--limit 600]
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_ENABLE_X64"] = "1"

import argparse  # noqa: E402
import multiprocessing  # noqa: E402
import resource  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from queue import Empty  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from machine import processor  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

Array = NDArray[np.float64]
Product = Callable[[Array], Array]


def clouds(n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(100)
    label = rng.integers(10, size=n)
    return tuple(3 * rng.normal(size=(10, d))[label] + 0.3 * rng.normal(size=(n, d)) for d in (3, 2))


def objective(x: Array, y: Array, forward: Product, backward: Product) -> tuple[float, float]:
    """The objective of a plan, scaled to its row masses, and its marginal errors; by products with P and with P^T."""
    n, m = len(x), len(y)
    p = forward(np.ones((m, 1)))[:, 0]
    errors = np.abs(p - 1 / n).sum() + np.abs(backward(np.ones((n, 1)))[:, 0] - 1 / m).sum()
    scale = (1 / n / p)[:, None]
    q = backward(scale)[:, 0]

    def factors(t: Array) -> tuple[Array, Array]:
        square, one = np.square(t).sum(1, keepdims=True), np.ones((len(t), 1))
        return np.hstack([square, one, -2 * t]), np.hstack([one, square, t])

    def squares(t: Array, w: Array) -> float:
        """w^T (C * C) w for squared distances C."""
        left, right = factors(t)
        pairs = (right[:, :, None] * right[:, None, :]).reshape(len(t), -1)
        others = (left[:, :, None] * left[:, None, :]).reshape(len(t), -1)
        return float((w @ others) @ (w @ pairs))

    (U, V), (W, Z) = factors(x), factors(y)
    cross = (V.T @ (scale * forward(W))) @ (Z.T @ backward(scale * U))
    rows = np.full(n, 1 / n)
    return squares(x, rows) + squares(y, q) - 2 * float(np.trace(cross)), float(errors)


def low_rank(x: Array, y: Array, rank: int) -> tuple[Product, Product, str]:
    import brenier

    found = brenier.gromov_wasserstein(x, y, solver=brenier.solvers.LowRankGromov(rank))
    return found.plan.__matmul__, found.plan.T.__matmul__, str(found.status.name)


def quantized(x: Array, y: Array, rank: int) -> tuple[Product, Product, str]:
    import brenier

    found = brenier.gromov_wasserstein(x, y, solver=brenier.solvers.Quantized(500))
    return found.plan.__matmul__, found.plan.T.__matmul__, str(found.status.name)


def pot_low_rank(x: Array, y: Array, rank: int) -> tuple[Product, Product, str]:
    import ot

    Q, R, g = ot.gromov.lowrank_gromov_wasserstein_samples(x, y, rank=rank, warn=False)[:3]
    return (lambda v: Q @ ((R.T @ v) / g[:, None])), (lambda u: R @ ((Q.T @ u) / g[:, None])), "returned"


def pot_sampled(x: Array, y: Array, rank: int) -> tuple[Product, Product, str]:
    import ot

    C, D = ot.dist(x, x), ot.dist(y, y)
    a, b = (np.full(len(t), 1 / len(t)) for t in (x, y))
    P = ot.gromov.sampled_gromov_wasserstein(C, D, a, b, lambda u, v: (u - v) ** 2, nb_samples_grad=100, random_state=0)
    return (lambda v: P @ v), (lambda u: P.T @ u), "returned"


def ott_low_rank(x: Array, y: Array, rank: int) -> tuple[Product, Product, str]:
    import jax
    import jax.numpy as jnp
    from ott.geometry import pointcloud
    from ott.problems.quadratic import quadratic_problem
    from ott.solvers.quadratic import gromov_wasserstein_lr

    problem = quadratic_problem.QuadraticProblem(*(pointcloud.PointCloud(jnp.asarray(t)) for t in (x, y)))
    out = jax.block_until_ready(gromov_wasserstein_lr.LRGromovWasserstein(rank=rank)(problem))
    Q, R, g = (np.asarray(t) for t in (out.q, out.r, out.g))
    status = "CONVERGED" if bool(out.converged) else "not converged"
    return (lambda v: Q @ ((R.T @ v) / g[:, None])), (lambda u: R @ ((Q.T @ u) / g[:, None])), status


METHODS = {
    "brenier LowRankGromov": low_rank,
    "brenier Quantized(500)": quantized,
    "POT low rank": pot_low_rank,
    "POT sampled": pot_sampled,
    "OTT low rank": ott_low_rank,
}


def measured(name: str, n: int, rank: int, answers: Any) -> None:
    warnings.simplefilter("ignore")
    x, y = clouds(n)
    METHODS[name](x[:500], y[:500], rank)  # imports and compilation
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    forward, backward, status = METHODS[name](x, y, rank)
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    answers.put((seconds, *objective(x, y, forward, backward), memory / 1e6, status))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    print(f"{processor()}, one thread, float64, n = {options.points:,}, rank {options.rank}")
    print(f"{'method':<24} {'seconds':>9} {'objective':>12} {'errors':>9} {'GB':>6} status")
    context = multiprocessing.get_context("spawn")
    for name in options.methods:
        answers = context.Queue()
        process = context.Process(target=measured, args=(name, options.points, options.rank, answers))
        process.start()
        try:
            seconds, value, errors, memory, status = answers.get(timeout=options.limit)
            print(f"{name:<24} {seconds:>9.2f} {value:>12.6g} {errors:>9.1e} {memory:>6.2f} {status}", flush=True)
        except Empty:
            why = "stopped" if process.is_alive() else f"ended with {process.exitcode}"
            print(f"{name:<24} {'':>9} {'':>12} {'':>9} {'':>6} {why}", flush=True)
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
