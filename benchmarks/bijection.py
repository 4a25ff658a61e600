"""Bijections of many points: `Hierarchical` beside POT's BSP-OT, and the exact solver where it is quick.

    python benchmarks/bijection.py [--sizes 4096 16384 65536 262144] [--dims 2 64] [--kinds normal mixture]
                                   [--exact 20000] [--certify 70000] [--plans 64] [--limit 600]
                                   [--methods exact brenier BSP-OT]

float64, squared Euclidean costs, n points a side, one thread. "normal" is Gaussian onto Gaussian of other widths,
half a unit away; "mixture" is Gaussian onto twenty narrow clusters. Each run is a process of its own and prints a
line of JSON: cost, seconds of the processor, peak memory over that of the imports, and for ours the steps and, up to
--certify points, the relative gap that the certificate proves and its seconds. `over` is the cost over the optimum,
which the network simplex finds up to --exact points. BSP-OT merges --plans random matchings; its slicing by Gaussians,
which its documentation gives for fewer than 64 dimensions, is off from there on.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import brenier  # noqa: E402
from brenier.solvers import Hierarchical, NetworkSimplex  # noqa: E402


def make(kind, n, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, n, d))
    if kind == "mixture":
        return x, 2 * rng.normal(size=(20, d))[rng.integers(20, size=n)] + 0.3 * y
    return x, y * np.linspace(0.5, 1.5, d) + 0.5


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(x, y, certify):
    begin = time.process_time()
    solution = brenier.solve(x, y, solver=Hierarchical())
    record = {"cost": float(solution.value), "seconds": time.process_time() - begin, "steps": solution.stats["n_iter"]}
    record["status"] = solution.status.name
    record["gigabytes"] = peak()
    if certify:
        begin = time.process_time()
        record["gap"] = float(solution.certificate.relative_gap)
        record["seconds_certificate"] = time.process_time() - begin
    return record


def exact(x, y):
    begin = time.process_time()
    solution = brenier.solve(x, y, solver=NetworkSimplex())
    return {"cost": float(solution.value), "seconds": time.process_time() - begin, "gigabytes": peak()}


def bsp(x, y, plans):
    from ot.bsp import compute_bspot_bijection

    begin = time.process_time()
    permutation = np.asarray(compute_bspot_bijection(x, y, n_plans=plans, gaussian_slicing=x.shape[1] < 64)[1])
    seconds = time.process_time() - begin
    assert np.array_equal(np.sort(permutation), np.arange(len(x)))
    cost = float(((x - y[permutation]) ** 2).sum(1).mean())
    return {"cost": cost, "seconds": seconds, "gigabytes": peak()}


def one(method, kind, n, d, options):
    """A run in this process."""
    x, y = make(kind, 64, 2)
    brenier.solve(x, y, solver=Hierarchical(size=16))  # lazy imports
    x, y = make(kind, n, d)
    torch.set_num_threads(1)
    before = peak()
    runs = {
        "brenier": lambda: ours(x, y, n <= options.certify),
        "exact": lambda: exact(x, y),
        "BSP-OT": lambda: bsp(x, y, options.plans),
    }
    record = runs[method]()
    record["gigabytes"] -= before
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 16_384, 65_536, 262_144])
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 64])
    parser.add_argument("--kinds", nargs="*", default=["normal", "mixture"])
    parser.add_argument("--exact", type=int, default=20_000)
    parser.add_argument("--certify", type=int, default=70_000)
    parser.add_argument("--methods", nargs="*", default=["exact", "brenier", "BSP-OT"])
    parser.add_argument("--plans", type=int, default=64)
    parser.add_argument("--limit", type=float, default=600, help="seconds of wall time after which a run is stopped")
    parser.add_argument("--one", nargs=4, metavar=("METHOD", "KIND", "N", "D"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        method, kind, n, d = options.one
        print(json.dumps(one(method, kind, int(n), int(d), options)))
        return
    for n in options.sizes:
        for d in options.dims:
            for kind in options.kinds:
                optimum = None
                for method in options.methods:
                    if method == "exact" and n > options.exact:
                        continue
                    record = child(method, kind, n, d, options)
                    optimum = record.get("cost") if method == "exact" else optimum
                    if optimum is not None and "cost" in record:
                        record["over"] = record["cost"] / optimum
                    shown = {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}
                    print(json.dumps({"kind": kind, "n": n, "d": d, "method": method, **shown}), flush=True)


def child(method, kind, n, d, options):
    """A run in a process of its own."""
    command = [sys.executable, __file__, "--certify", str(options.certify), "--plans", str(options.plans)]
    command += ["--one", method, kind, str(n), str(d)]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {"seconds": options.limit, "status": "stopped"}
    if out.returncode:
        return {"status": (out.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(out.stdout.splitlines()[-1])  # libraries print as well


if __name__ == "__main__":
    main()
