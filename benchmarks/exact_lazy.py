"""Exact transport without the cost matrix: `NetworkSimplex(pairs="lazy")` beside `pairs="dense"`, to the same optimum.

Squared Euclidean costs between Gaussian clouds, equal masses, float64, one thread. Each solve runs in a process of its
own, so `peak` is the memory that it added to a process which has solved a small problem. `seconds` are those of the
wall, `cpu` those that the process computed; on a quiet machine they agree. `difference` is the relative difference of
the two values, `gap` the relative gap of the certificate, recomputed by two passes over all pairs in float64.

    python benchmarks/exact_lazy.py [--sizes 5000 10000] [--dims 2 3 32] [--dense-up-to 20000]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402

import brenier  # noqa: E402
from brenier.solvers import NetworkSimplex  # noqa: E402


def peak():
    """The high-water mark of this process, in GB."""
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def clouds(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y + 0.5


def one(n, d, pairs):
    """Solve one problem here and print what it took."""
    for way in ("dense", "lazy"):
        float(brenier.solve(*clouds(600, d), solver=NetworkSimplex(pairs=way)).certificate.gap)
    x, y = clouds(n, d)
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    solution = brenier.solve(x, y, solver=NetworkSimplex(pairs=pairs))
    record = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak() - before}
    record |= {"value": float(solution.value), "gap": float(solution.certificate.relative_gap)}
    keep = ("n_iter", "rounds", "arcs", "seconds_start", "seconds_pivots", "seconds_pricing")
    print(json.dumps(record | {name: solution.stats[name] for name in keep if name in solution.stats}))


def measured(n, d, pairs):
    command = [sys.executable, __file__, "--one", str(n), str(d), pairs]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 10000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3, 32])
    parser.add_argument("--dense-up-to", type=int, default=20_000)
    parser.add_argument("--one", nargs=3, metavar=("N", "D", "PAIRS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        n, d, pairs = options.one
        return one(int(n), int(d), pairs)
    print(f"{'n':>7} {'d':>3} {'pairs':<5} {'seconds':>8} {'cpu':>8} {'peak':>8} {'pivots':>9} {'rounds':>6}", end=" ")
    print(f"{'arcs':>8} {'start':>7} {'pivots':>7} {'pricing':>7} {'gap':>8} {'difference':>10}")
    for n in options.sizes:
        for d in options.dims:
            values = []
            for pairs in ("dense", "lazy"):
                if pairs == "dense" and n > options.dense_up_to:
                    continue
                r = measured(n, d, pairs)
                values.append(r["value"])
                print(
                    f"{n:>7} {d:>3} {pairs:<5} {r['seconds']:>7.1f}s {r['cpu']:>7.1f}s {r['peak']:>5.2f} GB"
                    f" {r['n_iter']:>9}",
                    end=" ",
                )
                if pairs == "lazy":
                    print(f"{r['rounds']:>6} {r['arcs']:>8}", end=" ")
                    print(*(f"{r['seconds_' + name]:>6.1f}s" for name in ("start", "pivots", "pricing")), end=" ")
                else:
                    print(" " * 39, end=" ")
                difference = f"{abs(values[1] - values[0]) / values[0]:>10.1e}" if len(values) == 2 else ""
                print(f"{r['gap']:>8.1e} {difference}", flush=True)
    return None


if __name__ == "__main__":
    main()
