"""Exact transport between images: time and certified gap for each class.

Two images of each class of `brenier.data.dotmark` on a grid, float64, one thread; squared Euclidean cost on the pixels,
or with `--p 1` the city-block distance, as a flow between neighbours or (`--pairs lazy`) over all pairs. `cpu` is the
time that the process computed, `gap` the relative gap of the certificate, recomputed over all pairs. With `--gap` the
solve ends where that gap is proved.

    python benchmarks/grids.py [--sizes 32 64] [--kinds white-noise ...] [--gap 1e-3] [--timeout 60]
    python benchmarks/grids.py --p 1 [--pairs lazy]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import resource  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import brenier  # noqa: E402
from brenier.data import dotmark  # noqa: E402
from brenier.data._generated import DOTMARK  # noqa: E402
from brenier.solvers import NetworkSimplex  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--kinds", nargs="+", choices=DOTMARK, default=DOTMARK)
    parser.add_argument("--gap", type=float)
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--pairs", default="auto", choices=["auto", "dense", "lazy"])
    parser.add_argument("--p", type=int, default=2, choices=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", brenier.NotConvergedWarning)
    print(
        f"{'kind':<15} {'size':>4} {'pairs':<5} {'status':<10} {'cpu':>7} {'seconds':>8} {'pivots':>8} {'rounds':>6}",
        end="",
    )
    print(f" {'start':>6} {'pivots':>7} {'pricing':>7} {'gap':>8} {'value':>12}")
    for size in options.sizes:
        for kind in options.kinds:
            generator = np.random.default_rng(size)
            a, b = (torch.from_numpy(dotmark(kind, size, generator=generator).ravel()) for _ in range(2))
            wall, cpu = time.perf_counter(), time.process_time()
            solution = brenier.solve(
                brenier.Grid(size, size, p=options.p),
                a=a,
                b=b,
                gap=options.gap,
                timeout=options.timeout,
                solver="auto" if options.pairs == "auto" else NetworkSimplex(pairs=options.pairs),
            )
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            stats = solution.stats
            print(
                f"{kind:<15} {size:>4} {stats.get('pairs', 'flow'):<5} {solution.status.name:<10} {cpu:>6.1f}s "
                f"{wall:>7.1f}s {stats['n_iter']:>8} {stats.get('rounds', 0):>6}",
                end="",
            )
            print(*(f"{stats.get('seconds_' + part, 0):>6.1f}s" for part in ("start", "pivots", "pricing")), end=" ")
            print(f"{float(solution.certificate.relative_gap):>8.1e} {float(solution.value):>12.6g}", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
