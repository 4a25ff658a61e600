"""The Sinkhorn divergence and its gradient: time, memory and error, beside GeomLoss on KeOps, OTT and POT.

    python benchmarks/losses.py [--sizes 1000 10000 50000] [--dims 3 64] [--fraction 0.05] [--target 1e-3]
                                [--libraries brenier GeomLoss OTT POT] [--limit 600] [--threads 1]
                                [--json results/losses.json]

Two Gaussian clouds, half a standard deviation apart in each coordinate, uniform masses, squared Euclidean cost,
epsilon = fraction x mean cost. Each library computes value and gradient in x in a process of its own, in float32 (POT
in float64, with the cost matrix), at settings from coarse to fine; the first whose gradient has a relative error
below --target counts, the others of that library do not run. The truth is ours in float64 at a tolerance of 1e-9. A
time is the least of two runs after one on few points (OTT is compiled for the shapes beforehand), or of one run of
more than 10 s; *memory* is what the process grew by, at its peak. A run that takes longer than --limit is stopped,
and that is a result, as are out of memory and not installed. GeomLoss has the factor 1/2 in its cost: its value
counts twice.

With --agree, only checks `SamplesLoss` against GeomLoss on small clouds, for all of its losses, and prints the
differences.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

SETTINGS = {
    "brenier": (1e-2, 1e-3, 1e-4, 1e-5),  # tol
    "GeomLoss": (0.5, 0.7, 0.9, 0.95, 0.98, 0.99),  # scaling
    "OTT": (1e-2, 1e-3, 1e-4, 1e-5),  # threshold
    "POT": (1e-2, 1e-3, 1e-4, 1e-5),  # tol
}
MODULES = {"brenier": "brenier", "GeomLoss": "pykeops", "OTT": "ott", "POT": "ot"}
LONG = 10.0  # seconds of a run that need no second one
PREPARING = 600.0  # seconds to import and to compile, on top of the limit


def clouds(n, d, dtype):
    import torch

    generator = torch.Generator().manual_seed(100)
    x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.to(dtype), (y + 0.5).to(dtype)


def strength(x, y, fraction):
    import brenier

    return fraction * float(brenier.PointCloud(x.double(), y.double()).mean_cost())


def ours(x, y, epsilon, tol):
    from brenier.losses import sinkhorn_divergence

    x = x.clone().requires_grad_()
    value = sinkhorn_divergence(x, y, epsilon=epsilon, tol=tol).value
    value.backward()
    return float(value.detach()), x.grad


def geomloss(x, y, epsilon, scaling):
    import geomloss as library

    x = x.clone().requires_grad_()
    loss = library.SamplesLoss("sinkhorn", p=2, blur=(epsilon / 2) ** 0.5, scaling=scaling, backend="online")
    value = 2 * loss(x, y)
    value.backward()
    return float(value.detach()), x.grad


def pot(x, y, epsilon, tol):
    import ot
    import torch

    x = x.double().clone().requires_grad_()
    y, total = y.double(), 0
    for u, v, share in ((x, y, 1), (x, x, -0.5), (y, y, -0.5)):
        cost = torch.cdist(u, v).square()
        total = (
            total + share * ot.solve(cost, reg=epsilon, reg_type="KL", max_iter=100_000, tol=tol, grad="envelope").value
        )
    total.backward()
    return float(total.detach()), x.grad


_compiled = {}


def ott(x, y, epsilon, threshold, compiling=False):
    import jax
    import jax.numpy as jnp
    import torch
    from ott.geometry import pointcloud
    from ott.solvers import linear

    size = None if len(x) <= 5000 else 1024

    def divergence(x, y):
        def transport(u, v):
            geometry = pointcloud.PointCloud(u, v, epsilon=epsilon, batch_size=size)
            return linear.solve(geometry, threshold=threshold, max_iterations=20_000).reg_ot_cost

        return transport(x, y) - (transport(x, x) + transport(y, y)) / 2

    key, arrays = (x.shape, epsilon, threshold), [jnp.asarray(t.numpy()) for t in (x, y)]
    if key not in _compiled:
        _compiled[key] = jax.jit(jax.value_and_grad(divergence)).lower(*arrays).compile()
    if compiling:
        return None
    value, gradient = _compiled[key](*arrays)
    return float(value), torch.from_numpy(jax.device_get(gradient).copy())


RUNS = {"brenier": ours, "GeomLoss": geomloss, "OTT": ott, "POT": pot}


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(library, setting, n, d, fraction, out, limit, truth=False):
    """A run in this process, which ends with it at the limit: value, seconds, memory; the gradient goes to a file."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = torch.float64 if truth else torch.float32
    run = RUNS[library]
    x, y = clouds(n, d, dtype)
    epsilon = strength(*clouds(2000, d, dtype), fraction)
    run(*clouds(64, d, dtype), epsilon, setting)
    if library == "OTT":
        run(x, y, epsilon, setting, compiling=True)
    before, best = peak_mb(), float("inf")
    for _ in range(1 if truth else 2):
        signal.setitimer(signal.ITIMER_REAL, limit)
        start = time.perf_counter()
        value, gradient = run(x, y, epsilon, setting)
        best = min(best, time.perf_counter() - start)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if best > LONG:
            break
    torch.save(gradient.double(), out)
    return {"value": value, "seconds": best, "memory_mb": peak_mb() - before}


def child(arguments, library, setting, n, d, out, truth=False):
    """The record of a run in a process of its own, or why there is none."""
    job = [library, setting, n, d, arguments.fraction, out, 0 if truth else arguments.limit, truth]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    try:
        limit = None if truth else 2 * arguments.limit + PREPARING
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"not prepared in {PREPARING:g} s"}
    if done.returncode == -signal.SIGALRM:
        return {"failed": f"more than {arguments.limit:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"failed": "out of memory" if done.returncode == -9 or "memory" in last.lower() else last[:80]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(arguments, n, d, folder):
    import torch

    truth = child(arguments, "brenier", 1e-9, n, d, f"{folder}/truth.pt", True)
    if "failed" in truth:
        print(f"n = {n}, d = {d}: no truth, {truth['failed']}", flush=True)
        return []
    exact = torch.load(f"{folder}/truth.pt")
    rows = []
    for library in arguments.libraries:
        settings = SETTINGS[library]
        row = {"n": n, "d": d, "library": library}
        if find_spec(MODULES[library]) is None:
            rows.append(row | {"failed": "not installed"})
        for setting in settings if find_spec(MODULES[library]) else ():
            found = child(arguments, library, setting, n, d, f"{folder}/gradient.pt")
            row |= {"setting": setting, **found}
            if "failed" not in found:
                gradient = torch.load(f"{folder}/gradient.pt")
                row["gradient_error"] = float((gradient - exact).norm() / exact.norm())
                row["value_error"] = abs(found["value"] - truth["value"]) / truth["value"]
            if "failed" in found or row["gradient_error"] <= arguments.target or setting == settings[-1]:
                rows.append(row)
                break
        row = rows[-1]
        text = f"| {n:,} | {d} | {library} | "
        if "failed" in row:
            text += f"{row['failed']} |"
        else:
            own = next((r["seconds"] for r in rows if r["library"] == "brenier" and "seconds" in r), float("nan"))
            ratio = row["seconds"] / own
            text += f"{row['setting']:g} | {row['seconds']:.3f} s | {row['memory_mb']:.0f} MB | {ratio:.1f} | "
            text += f"{row['value_error']:.1e} | {row['gradient_error']:.1e} |"
        print(text, flush=True)
    return rows


def agree():
    """`SamplesLoss` and GeomLoss' on the same small clouds, in float64, for values and gradients."""
    import geomloss as library
    import torch

    from brenier.losses import SamplesLoss

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for n in (150, 120))
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (150, 120))
    a, b = a / a.sum(), b / b.sum()
    cases = [{"loss": name} for name in ("energy", "gaussian", "laplacian")]
    cases += [
        {"p": p, "reach": reach, "debias": debias} for p in (1, 2) for reach in (None, 0.5) for debias in (True, False)
    ]
    for case in cases:
        scale = 1.4 if case.get("reach") and case.get("debias") else 1.0  # of the masses of one side
        found = []
        for SamplesLossOf, extra in (
            (SamplesLoss, {}),
            (library.SamplesLoss, {"scaling": 0.999, "backend": "tensorized"}),
        ):
            points = x.clone().requires_grad_()
            value = SamplesLossOf(**{"loss": "sinkhorn", "blur": 0.2, **case, **extra})(scale * a, points, b, y)
            (gradient,) = torch.autograd.grad(value, points)
            found.append((value.detach(), gradient))
        (value, gradient), (other, slope) = found
        print(f"{case}: value {float(value):.6g}, difference {float((value - other).abs() / other.abs()):.1e}, "
              f"gradient {float((gradient - slope).norm() / slope.norm()):.1e}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 64])
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--target", type=float, default=1e-3)
    parser.add_argument("--libraries", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--agree", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*json.loads(arguments.one))))
        return
    if arguments.agree:
        agree()
        return
    print("| n | d | library | setting | time | memory | time / ours | value error | gradient error |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for d in arguments.dims:
            for n in arguments.sizes:
                rows += compare(arguments, n, d, folder)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
