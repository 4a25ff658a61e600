"""Exact transport on a dense cost matrix: brenier's network simplex against POT's, to the same optimum.

Squared Euclidean costs between Gaussian clouds, float64, one thread, one process, repeats interleaved. Both
sides get the same cost matrix and return a plan and duals: ours a sparse plan, POT the faster of `emd` (dense
plan) and `emd2`. Each repeat is another problem and times are means. The relative `difference` of the values,
recomputed in float64, and our relative duality `gap` are the largest over the repeats.

    python benchmarks/exact_simplex.py [--sizes 1000 2000 4000] [--repeats 3]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import ot  # noqa: E402
from machine import processor  # noqa: E402

from brenier.kernels.simplex import network_simplex  # noqa: E402

POT_ITERATIONS = 10**8


def problem(n, d, masses, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + 0.5
    cost = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
    if masses == "uniform":
        return cost, np.full(n, 1 / n), np.full(n, 1 / n)
    return cost, rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n))


def ours(cost, a, b):
    result = network_simplex(cost, a, b, engine="native")
    value = float(cost[result.rows, result.cols] @ result.mass)
    return value, value - float(result.f @ a + result.g @ b)


def pot_emd(cost, a, b):
    plan, log = ot.emd(a, b, cost, numItermax=POT_ITERATIONS, log=True)
    assert log["warning"] is None
    return plan


def pot_emd2(cost, a, b):
    value, log = ot.emd2(a, b, cost, numItermax=POT_ITERATIONS, log=True)
    assert log["warning"] is None
    return float(value)


def timed(solve, *arguments):
    start = time.perf_counter()
    result = solve(*arguments)
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{processor()}, one thread, float64, POT {ot.__version__}, mean of {options.repeats} problems")
    heads = f"{'n':>5} {'d':>3} {'masses':<9} {'ours':>8} {'POT':>8} {'ours/POT':>8}"
    print(heads, f"{'difference':>11} {'gap':>8}")
    for n in options.sizes:
        for d in (2, 32):
            for masses in ("uniform", "dirichlet"):
                our_times, pot_times, differences, gaps = [], [], [], []
                for repeat in range(options.repeats):
                    cost, a, b = problem(n, d, masses, seed=repeat)
                    seconds, (value, gap) = timed(ours, cost, a, b)
                    our_times.append(seconds)
                    seconds, plan = timed(pot_emd, cost, a, b)
                    other = float(np.vdot(plan, cost))
                    del plan
                    differences.append(abs(value - other) / other)
                    gaps.append(abs(gap) / value)
                    pot_times.append(min(seconds, timed(pot_emd2, cost, a, b)[0]))
                ratio = sum(our_times) / sum(pot_times)
                print(
                    f"{n:>5} {d:>3} {masses:<9} {np.mean(our_times):>7.3f}s {np.mean(pot_times):>7.3f}s"
                    f" {ratio:>8.3f} {max(differences):>11.1e} {max(gaps):>8.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
