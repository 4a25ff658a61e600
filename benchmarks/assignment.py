"""Assignment problems: brenier beside SciPy, lapx, POT and brenier's own network simplex, to the same optimum.

float64, one thread, one process, repeats interleaved; seconds are those of the processor, the least over the repeats.
All get the cost matrices, and values are recomputed from the permutations: `difference` is the largest of any rival to
ours, relative to the largest cost times n, and `gap` is our own, proved by duals, likewise.

* One problem: squared Euclidean costs between Gaussian clouds in 2 and 32 dimensions, uniform costs, integers below
  100 (many ties).
* Many small ones, n = 8 to 64: uniform costs, and clouds in 2 dimensions. Rivals loop, but for lapx's own batches. POT
  and the network simplex take every 20th problem, and their time is scaled.

    python benchmarks/assignment.py [--sizes 64 250 500 1000 2000 4000] [--problems 10000] [--repeats 3] [--limit 20]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import importlib.metadata  # noqa: E402
import time  # noqa: E402

import lap  # noqa: E402
import numpy as np  # noqa: E402
import ot  # noqa: E402
import scipy  # noqa: E402
import torch  # noqa: E402
from machine import processor  # noqa: E402
from scipy.optimize import linear_sum_assignment  # noqa: E402

from brenier.kernels.assignment import assignment  # noqa: E402
from brenier.kernels.simplex import network_simplex  # noqa: E402

EVERY = 20


def make(kind, shape, rng):
    count, n = shape
    if kind == "uniform":
        return rng.random((count, n, n))
    if kind == "integers":
        return rng.integers(0, 100, (count, n, n)).astype(float)
    x, y = rng.normal(size=(2, count, n, int(kind.removeprefix("d = "))))
    inner = x @ y.swapaxes(1, 2)
    return np.maximum((x**2).sum(-1)[:, :, None] + (y**2).sum(-1)[:, None] - 2 * inner, 0)


def ours(cost):
    result = assignment(cost, engine="native")
    gap = np.take_along_axis(cost, result.cols[..., None], -1).sum((1, 2)) - result.f.sum(-1) - result.g.sum(-1)
    return result.cols, float(np.abs(gap).max())


def simplex(cost):
    mass = np.full(len(cost), 1 / len(cost))
    result = network_simplex(cost, mass, mass, engine="native")
    return result.cols[np.argsort(result.rows)]


def pot(cost):
    mass = np.full(len(cost), 1 / len(cost))
    return ot.emd(mass, mass, cost, numItermax=10**8).argmax(1)


LOOPS = {
    "scipy": lambda cost: linear_sum_assignment(cost)[1],
    "lapx lapjv": lambda cost: lap.lapjv(cost, return_cost=False)[0],
    "simplex": simplex,
    "POT emd": pot,
}


def batched(solve):
    return lambda costs: np.stack([solve(cost) for cost in costs])


def timed(solve, argument):
    start = time.process_time()
    result = solve(argument)
    return time.process_time() - start, result


def compare(title, cost, rivals, options):
    """Print our time, and those of the rivals over it."""
    best, difference, gap = {}, 0.0, 0.0
    count, n = cost.shape[:2]
    unit = n * float(cost.max())

    def value(part, cols):
        return np.take_along_axis(part, np.asarray(cols)[..., None].astype(np.int64), -1).sum((1, 2))

    for _ in range(options.repeats):
        seconds, (cols, worst) = timed(ours, cost)
        best["ours"], gap = min(best.get("ours", np.inf), seconds), max(gap, worst / unit)
        for name, (solve, every) in rivals.items():
            if best.get(name, 0) > options.limit:  # slow: once is enough
                continue
            part = cost[::every]
            seconds, theirs = timed(solve, part)
            best[name] = min(best.get(name, np.inf), seconds * count / len(part))
            apart = np.abs(value(part, theirs) - value(part, cols[::every])).max()
            difference = max(difference, float(apart) / unit)
    least = min(v for k, v in best.items() if k not in ("ours", "simplex"))
    ratios = " ".join(f"{best[name] / best['ours']:>11.2f}" for name in rivals)
    print(
        f"{title:<16} {best['ours']:>10.6f} s {ratios} {least / best['ours']:>9.2f} {difference:>9.1e} {gap:>8.1e}",
        flush=True,
    )


def heading(what, rivals):
    print(f"\n{what}\n{'':<16} {'ours':>12} {' '.join(f'{name:>11}' for name in rivals)} {'best/ours':>9}", end="")
    print(f" {'difference':>9} {'gap':>7}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 250, 500, 1000, 2000, 4000])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20, help="seconds above which a rival runs once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    versions = f"SciPy {scipy.__version__}, lapx {importlib.metadata.version('lapx')}, POT {ot.__version__}"
    print(f"{processor()}, one thread, float64, {versions}, best of {options.repeats}; rivals over ours")

    if options.sizes:
        rivals = {name: (batched(solve), 1) for name, solve in LOOPS.items()}
        heading("One problem", rivals)
        for n in options.sizes:
            for kind in ("d = 2", "d = 32", "uniform", "integers"):
                compare(f"{n:>5} {kind}", make(kind, (1, n), rng), rivals, options)
    if options.problems:
        rivals = {
            name: (batched(solve), EVERY if name in ("simplex", "POT emd") else 1) for name, solve in LOOPS.items()
        }
        rivals["lapx batch"] = (lambda costs: np.stack(lap.lapjvx_batch(costs, n_threads=1, return_cost=False)[1]), 1)
        heading(f"{options.problems} problems", rivals)
        for n in (8, 16, 32, 64):
            for kind in ("uniform", "d = 2"):
                compare(f"{n:>5} {kind}", make(kind, (options.problems, n), rng), rivals, options)


if __name__ == "__main__":
    main()
