"""Large clouds at small epsilon: `Multiscale`, its time, peak memory and marginal error, beside GeomLoss on KeOps.

    python benchmarks/large.py [--sizes 100000 1000000] [--clouds cube normal] [--epsilon 1e-3] [--tol 1e-3]
                               [--dense] [--rival] [--limit 600] [--threads 2]

Two float32 clouds of n points in three dimensions, squared Euclidean cost, epsilon relative to the mean cost. The
clouds are "cube" (both uniform) or "normal" (both Gaussian, half a standard deviation apart). The tolerance is for the
sum of both marginal errors, relative to the mass; 1e-2 above 500,000 points unless --tol is given.

Each run is a process of its own and prints one line of JSON. `error` is what the solver proves; `dense_error`, with
--dense, is recomputed over all n^2 pairs in float64 from the potentials alone. `cpu` counts all threads.

With --rival, GeomLoss on KeOps (its backends "online" and "multiscale") solves the same problem, if both are installed.
Its schedule has a fixed length, set by `scaling`: we run 0.5, 0.7, 0.9, 0.95 and 0.98, and the first that meets the
tolerance counts alone. KeOps compiles in a first run on few points. All runs of a backend together end after --limit
seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import brenier
from brenier import PointCloud, Problem, Relative
from brenier.solvers import Multiscale, run

BACKENDS = ("online", "multiscale")
SCALINGS = (0.5, 0.7, 0.9, 0.95, 0.98)


def clouds(name: str, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100)
    draw = torch.rand if name == "cube" else torch.randn
    x, y = (draw(n, 3, generator=generator) for _ in range(2))
    return x, y if name == "cube" else y + 0.5


def dense_error(problem: Problem, f: Tensor, g: Tensor) -> float:
    """|P1 - a| + |P^T 1 - b| over all pairs, in float64."""
    problem = problem.double()
    assert problem.epsilon is not None
    a, b, eps = problem.a, problem.b, problem.epsilon
    F, G = f.double() + eps * a.log(), g.double() + eps * b.log()
    rows = ((F - problem.geometry.softmin(G, eps)) / eps).exp()
    cols = ((G - problem.geometry.softmin(F, eps, dim=0)) / eps).exp()
    return float(((rows - a).abs().sum() + (cols - b).abs().sum()) / a.sum())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(problem: Problem, tol: float) -> tuple[dict[str, Any], Tensor, Tensor]:
    run(Problem.make(PointCloud(torch.rand(99, 2)), epsilon=0.1), Multiscale(coarsest=9))  # lazy imports
    begin, cpu = time.perf_counter(), time.process_time()
    solution = run(problem, Multiscale(tol=tol))
    stats = solution.stats
    record = {
        "method": "brenier",
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu": round(time.process_time() - cpu, 2),
        "status": solution.status.name,
        "error": stats["marginal_error"],
        "truncation_bound": stats["truncation_bound"],
        "kept_share": stats["kept_share"],
        "iterations": stats["iterations"],
        "searches": stats["searches"],
    }
    return record, solution.f, solution.g


def geomloss(problem: Problem, scaling: float, backend: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    from geomloss import SamplesLoss

    assert problem.epsilon is not None
    cloud = problem.geometry
    assert isinstance(cloud, PointCloud)
    blur = float(problem.epsilon / 2) ** 0.5  # its cost is half of ours
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, debias=False, potentials=True, backend=backend)
    with torch.no_grad():
        few = [t[:500].contiguous() for t in (problem.a, cloud.x, problem.b, cloud.y)]
        loss(*few)  # compiles
        begin, cpu = time.perf_counter(), time.process_time()
        f, g = (2 * t.ravel() for t in loss(problem.a.contiguous(), cloud.x, problem.b.contiguous(), cloud.y))
    record = {
        "method": f"GeomLoss {backend}, scaling {scaling}",
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu": round(time.process_time() - cpu, 2),
    }
    return record, f, g


def worker(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    n, name = options.sizes[0], options.clouds[0]
    problem = Problem.make(PointCloud(*clouds(name, n)), epsilon=Relative(options.epsilon))
    before = peak_mb()
    scaling = options.scaling
    record, f, g = ours(problem, options.tol) if scaling is None else geomloss(problem, scaling, options.backend)
    record["peak_mb_above_inputs"] = round(peak_mb() - before, 1)
    if options.dense or options.scaling is not None:
        record["dense_error"] = dense_error(problem, f, g)
    about = {"n": n, "clouds": name, "epsilon": options.epsilon, "tol": options.tol, "threads": options.threads}
    print(json.dumps(about | record), flush=True)


def attempt(name: str, n: int, tol: float, options: argparse.Namespace, limit: float, *more: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", "--sizes", str(n), "--clouds", name, "--tol", str(tol)]
    command += ["--epsilon", str(options.epsilon), "--threads", str(options.threads), *more]
    command += ["--dense"] if options.dense else []
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"n": n, "clouds": name, "method": " ".join(more) or "brenier", "status": f"over {limit:.0f} s"}
    if out.returncode:
        return {"n": n, "clouds": name, "method": " ".join(more) or "brenier", "status": out.stderr.strip()[-300:]}
    record: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return record


def rival(name: str, n: int, tol: float, backend: str, options: argparse.Namespace) -> None:
    if find_spec("geomloss") is None or find_spec("pykeops") is None:
        print(json.dumps({"method": "GeomLoss", "status": "needs geomloss and pykeops"}), flush=True)
        return
    end = time.monotonic() + options.limit
    for scaling in SCALINGS:
        left = end - time.monotonic()
        if left <= 0:
            return
        record = attempt(name, n, tol, options, left, "--scaling", str(scaling), "--backend", backend)
        print(json.dumps(record), flush=True)
        if record.get("dense_error", tol + 1) <= tol:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--clouds", nargs="+", default=["cube", "normal"], choices=["cube", "normal"])
    parser.add_argument("--epsilon", type=float, default=1e-3)
    parser.add_argument("--tol", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--rival", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--scaling", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--backend", choices=BACKENDS, help="of GeomLoss; both when not given")
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    print(json.dumps({"brenier": brenier.__version__, "torch": torch.__version__}), flush=True)
    for n in options.sizes:
        tol = options.tol or (1e-2 if n > 500_000 else 1e-3)
        for name in options.clouds:
            print(json.dumps(attempt(name, n, tol, options, 3600.0)), flush=True)
            if options.rival:
                for backend in BACKENDS if options.backend is None else (options.backend,):
                    rival(name, n, tol, backend, options)


if __name__ == "__main__":
    main()
