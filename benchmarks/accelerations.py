"""Starts and relaxations of Sinkhorn: iterations and seconds to the default tolerance, in one run.

    python benchmarks/accelerations.py [n]

Uniform points against blobs, and two Gaussian clouds of different shape; float64, squared Euclidean cost. A star marks
what did not end within 3,000 iterations. *Symmetric* rows solve x against itself.
"""

from __future__ import annotations

import sys
import time
import warnings

import torch
from torch import Tensor

import brenier
from brenier.solvers import (
    Anderson,
    GaussianStart,
    OverRelaxation,
    Plain,
    Sinkhorn,
    SinkhornNewton,
    Solver,
    SortingStart,
    SubsampleStart,
    SymmetricSinkhorn,
)

WAYS: dict[str, Solver] = {
    "plain": Sinkhorn(relaxation=Plain()),
    "over-relaxed": Sinkhorn(relaxation=OverRelaxation()),
    "Anderson": Sinkhorn(relaxation=Anderson()),
    "Anderson, Gaussian start": Sinkhorn(start=GaussianStart()),
    "Anderson, sorting start": Sinkhorn(start=SortingStart()),
    "Anderson, subsample start": Sinkhorn(start=SubsampleStart()),
    "default": SinkhornNewton(),
    "default, Gaussian start": SinkhornNewton(sinkhorn=Sinkhorn(start=GaussianStart())),
}
SYMMETRIC: dict[str, Solver] = {"default": SinkhornNewton(), "symmetric": SymmetricSinkhorn()}


def clouds(kind: str, n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise, other = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    if kind == "gaussians":
        return noise, other * torch.linspace(0.5, 1.5, d, dtype=torch.float64) + 0.5
    x = torch.rand(n, d, generator=generator, dtype=torch.float64)
    centres = 2 * torch.rand(5, d, generator=generator, dtype=torch.float64)
    return x, centres[torch.randint(5, (n,), generator=generator)] + 0.1 * other


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    warnings.simplefilter("ignore")
    print(f"n = {n}, float64, {torch.get_num_threads()} threads\n")
    print("| clouds | d | epsilon / mean cost | way | iterations | seconds |\n|---|---|---|---|---|---|")
    for kind in ("gaussians", "blobs", "symmetric"):
        for d in (2, 3, 64):
            x, y = clouds("gaussians" if kind == "symmetric" else kind, n, d)
            for fraction in (0.05, 0.005, 0.0005):
                for name, solver in (SYMMETRIC if kind == "symmetric" else WAYS).items():
                    target = x if kind == "symmetric" else y
                    begin = time.perf_counter()
                    s = brenier.solve(
                        x, target, epsilon=brenier.Relative(fraction), solver=solver, tol=1e-6, max_iter=3000
                    )
                    seconds = time.perf_counter() - begin
                    count = f"{s.stats['n_iter']}{'' if s.status.ok else '*'}"
                    print(f"| {kind} | {d} | {fraction} | {name} | {count} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
