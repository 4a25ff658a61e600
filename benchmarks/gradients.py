"""Ways to differentiate a plan: time, peak memory, and error of the gradient of ||P v||^2 in x.

    python benchmarks/gradients.py [n]

Two Gaussian clouds in the plane, float64, squared Euclidean cost. Each way runs in a process of its own: *solve* is
the solver, *gradient* what follows it (the output and its backward pass), *memory* the growth of the process above its
size after the import and a tiny warm-up. The dense way is plain autograd through k iterations from zero on the n x n
matrix, without a solver. Errors are relative, against `Implicit(tol=1e-12)` on a solution to 1e-12.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import brenier

WAYS: dict[str, brenier.Adjoint | int] = {
    "Implicit()": brenier.Implicit(),
    "Unrolled(20)": brenier.Unrolled(20),
    "Unrolled(100)": brenier.Unrolled(100),
    "Unrolled(1000)": brenier.Unrolled(1000),
    "dense, 20": 20,
    "dense, 100": 100,
}
EPSILONS = (0.05, 0.005)


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024


def clouds(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y, v = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (2, 2, 1))
    return x.requires_grad_(), y, v.squeeze(-1)


def dense(x: Tensor, y: Tensor, v: Tensor, epsilon: float, k: int) -> Tensor:
    C, log_mass = torch.cdist(x, y).square(), -torch.tensor(float(len(x))).log()
    g = torch.zeros_like(v)
    for _ in range(k):
        f = -epsilon * torch.logsumexp((g - C) / epsilon + log_mass, 1)
        g = -epsilon * torch.logsumexp((f[:, None] - C) / epsilon + log_mass, 0)
    return ((f[:, None] + g - C) / epsilon + 2 * log_mass).exp() @ v


def gradient(way: brenier.Adjoint | int, n: int, fraction: float, **options: Any) -> tuple[Tensor, float, float]:
    """The gradient, the seconds of the solver and those of what follows."""
    x, y, v = clouds(n)
    epsilon = fraction * float(brenier.PointCloud(x, y).mean_cost())
    begin = time.perf_counter()
    if isinstance(way, int):
        middle = begin
        out = dense(x, y, v, epsilon, way)
    else:
        s = brenier.solve(x, y, epsilon=epsilon, adjoint=way, **options)
        middle = time.perf_counter()
        out = s.plan @ v
    out.square().sum().backward()
    assert x.grad is not None
    return x.grad, middle - begin, time.perf_counter() - middle


def one(way: brenier.Adjoint | int, n: int, fraction: float) -> dict[str, float]:
    gradient(way, 8, fraction)
    before = peak_mb()
    mine, solve, after = gradient(way, n, fraction)
    memory = peak_mb() - before
    exact, *_ = gradient(brenier.Implicit(tol=1e-12), n, fraction, solver="sns", tol=1e-12)
    return {"solve": solve, "gradient": after, "memory": memory, "error": float((mine - exact).norm() / exact.norm())}


def main() -> None:
    if len(sys.argv) == 4:
        print(json.dumps(one(WAYS[sys.argv[1]], int(sys.argv[2]), float(sys.argv[3]))))
        return
    n = sys.argv[1] if len(sys.argv) > 1 else "1000"
    print(f"n = {n}, float64, {torch.get_num_threads()} threads\n")
    print("| epsilon / mean cost | way | solve | gradient | memory | error |\n|---|---|---|---|---|---|")
    for fraction in EPSILONS:
        for way in WAYS:
            out = subprocess.run(
                [sys.executable, __file__, way, n, str(fraction)], capture_output=True, text=True, check=False
            )
            if out.returncode:  # out of memory is a result
                print(f"| {fraction} | {way} | failed: {(out.stderr.strip().splitlines() or ['killed'])[-1]} | | | |")
                continue
            r = json.loads(out.stdout)
            solve = "" if way.startswith("dense") else f"{r['solve']:.2f} s"
            cells = f"{solve} | {r['gradient']:.2f} s | {r['memory']:.0f} MB | {r['error']:.1e}"
            print(f"| {fraction} | {way} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
