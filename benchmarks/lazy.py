"""The lazy path: a large entropic problem, its time, its certificate, and its peak memory above the import.

    python benchmarks/lazy.py [n] [d] [relative epsilon]

Prints one JSON object. Data: two Gaussian clouds, float32, squared Euclidean cost; one process, no warm-up.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch

import brenier


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    n, d = (int(a) for a in (sys.argv[1:3] + ["40000", "3"][len(sys.argv) - 1 :]))
    fraction = float(sys.argv[3]) if len(sys.argv) > 3 else 0.05
    brenier.solve(torch.rand(8, 2), torch.rand(8, 2), epsilon=0.1).certify()  # lazy imports of torch
    before = peak_mb()
    generator = torch.Generator().manual_seed(100)
    x = torch.randn(n, d, generator=generator)
    y = torch.randn(n, d, generator=generator) + 0.5
    begin = time.perf_counter()
    solution = brenier.solve(x, y, epsilon=brenier.Relative(fraction))
    solved = time.perf_counter() - begin
    certificate = solution.certificate
    record = {
        "n": n,
        "d": d,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "epsilon": solution.stats["epsilon"],
        "iterations": solution.stats["n_iter"],
        "status": solution.status.name,
        "value": float(solution.value),
        "relative_gap": float(certificate.relative_gap),
        "marginal_errors": [float(e) for e in certificate.marginal_errors],
        "solve_seconds": round(solved, 2),
        "certify_seconds": round(time.perf_counter() - begin - solved, 2),
        "peak_mb_above_import": round(peak_mb() - before, 1),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
