"""Pairs a second of the kernels on a CPU: ours, tiled torch (our reference) and dense torch, beside the ceilings.

    python benchmarks/kernels.py [--threads 1] [--size 20000] [--dims 3 16 64 512] [--dtypes float32 float64]
                                 [--rounds 7] [--budget 2] [--json results/kernels.json] [--accuracy] [--blocks]

Every candidate gets the same inputs: c = ||x - y||^2 of standard Gaussian clouds, epsilon = 0.05 * mean cost; errors
are those of 64 rows against float64, relative to the mean of the answer. The time is the best of several calls after
one that warms up, taken in rounds over all candidates. A dense matrix that would not fit half of the free memory is
reported as such. The ceiling adds up the time that the multiply-adds and the exponentials alone would take, from the
best rates that this machine reached on nothing else: pairs / s <= 1 / (d / multiply-adds + 1 / exponentials).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brenier import PointCloud, _native
from brenier.kernels import engine as kernels
from brenier.kernels.engine import Pairs, use_engine


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_bytes() -> float:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 4e9


def dense_softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> Tensor:
    cost = x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.T
    return -epsilon * torch.logsumexp((h - cost) / epsilon, -1)


def measure(
    n: int, d: int, dtype: torch.dtype, rounds: int, budget: float, rates: dict[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype) for _ in range(2))
    geometry = PointCloud(x, y)
    epsilon = 0.05 * 2.0 * d
    f, h, v = x[:, 0].clone(), y[:, 0].clone(), y[:, :1].expand(n, 32).contiguous()
    exact = PointCloud(x[:64].double(), y.double()).softmin(h.double(), epsilon)
    operations: dict[str, tuple[tuple[int, int], Callable[[], Tensor]]] = {  # multiply-adds, exponentials of a pair
        "softmin": ((d, 1), lambda: geometry.softmin(h, epsilon)),
        "cmin": ((d, 0), lambda: geometry.cmin(h)[0]),
        "apply": ((d + 1, 1), lambda: geometry.apply(f, h, epsilon, v[:, 0])),
        "apply, 32 vectors": ((d + 32, 1), lambda: geometry.apply(f, h, epsilon, v)),
        "moments": ((d + 2, 1), lambda: geometry.moments(f, h, epsilon)[0]),
    }
    name = str(dtype).removeprefix("torch.")
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], Tensor]] = []
    for operation, (work, call) in operations.items():
        for engine in ("native", "reference", "dense"):
            if engine == "dense" and operation != "softmin":
                continue
            row = {"operation": operation, "engine": engine, "n": n, "d": d, "dtype": name, "work": work}
            row |= {"seconds": None, "error": None}
            rows.append(row)
            calls.append(call if engine != "dense" else lambda: dense_softmin(x, y, h, epsilon))
    fits = 3.5 * n * n * dtype.itemsize < free_bytes() / 2
    spent = [0.0] * len(rows)
    # Round after round over all candidates: what else the machine does falls on each of them alike.
    for turn in range(rounds + 1):
        fma, exp = _native.rates(name == "float64")
        rates[name] = (max(fma, rates[name][0]), max(exp, rates[name][1]))
        for i, (row, call) in enumerate(zip(rows, calls)):
            if (row["engine"] == "dense" and not fits) or spent[i] > budget:
                continue
            with use_engine("reference" if row["engine"] == "reference" else "auto"):
                start = time.perf_counter()
                out = call()
                seconds = time.perf_counter() - start
            if turn == 0 and row["operation"] == "softmin":
                row["error"] = float(((out[:64].double() - exact) / exact.abs().mean()).abs().max())
            if turn > 0 or seconds > budget:  # the first round warms up
                spent[i] += seconds
                row["seconds"] = min(seconds, row["seconds"] or seconds)
        print(".", end="", flush=True)
    return rows


def table(rows: list[dict[str, Any]], rates: dict[str, tuple[float, float]], threads: int) -> None:
    print()
    for row in rows:
        fma, exp = (threads * r for r in rates[row["dtype"]])
        a, b = row.pop("work")
        rate = row["n"] ** 2 / row["seconds"] if row["seconds"] else None
        row["pairs_per_second"] = rate
        row["fraction_of_ceiling"] = rate * (a / fma + b / exp) if rate else None
        text = f"{row['dtype']:8} d={row['d']:<4} {row['operation']:18} {row['engine']:10}"
        if rate is None:
            print(text + "does not fit")
            continue
        text += f"{rate / 1e9:8.3f}e9 pairs/s {row['fraction_of_ceiling']:5.0%} of the ceiling"
        print(text + ("" if row["error"] is None else f", error {row['error']:.1e}"))


def accuracy() -> None:
    """Print the largest errors of 2^x, and of softmin beside the same sums in float64."""
    for level in _native.simd_levels():
        _native.set_simd(level)
        for dtype, low, high in ((torch.float32, -125.99, 127.49), (torch.float64, -1021.99, 1023.49)):
            x = torch.cat([torch.linspace(a, b, 1_000_003, dtype=dtype) for a, b in ((low, high), (-1, 0))])
            out = torch.empty_like(x)
            _native.exp2(dtype == torch.float64, x.data_ptr(), out.data_ptr(), x.numel())
            error = abs(out.numpy() / np.exp2(x.numpy().astype(np.longdouble)) - 1).max()
            print(f"2^x, {level:7} {str(dtype)[6:]}: largest relative error {float(error):.2e}")
    _native.set_simd(_native.simd_levels()[0])
    print("softmin, n = 500, m = 5000, epsilon = 0.05 mean cost: largest error / mean |softmin|, native and reference")
    gen = torch.Generator().manual_seed(0)
    for cost in ("sqeuclidean", "cosine", "cityblock", "euclidean", "chebyshev"):
        for d in (3, 64):
            x, y, h = (torch.randn(*s, generator=gen, dtype=torch.float64) for s in ((500, d), (5000, d), (5000,)))
            # what float32 can represent, so that only the computation differs
            x, y, h = x.float().double(), y.float().double(), 0.1 * h.float().double()
            epsilon = 0.05 * float(PointCloud(x, y, cost).mean_cost())
            epsilon = float(torch.tensor(epsilon, dtype=torch.float32))
            cells = []
            for dtype in (torch.float32, torch.float64):
                c = PointCloud(x, y, cost).tile().numpy().astype(np.longdouble)
                z = (h.to(dtype).numpy().astype(np.longdouble) - c) / epsilon
                top = z.max(1, keepdims=True)
                exact = -epsilon * (top[:, 0] + np.log(np.exp(z - top).sum(1)))
                for engine in ("native", "reference"):
                    with use_engine(engine):
                        out = PointCloud(x.to(dtype), y.to(dtype), cost).softmin(h.to(dtype), epsilon)
                    error = abs(out.numpy() - exact).max() / abs(exact).mean()
                    cells.append(f"{str(dtype)[6:]} {engine} {float(error):.1e}")
            print(f"{cost:12} d={d:<3} " + "   ".join(cells))


def blocks(n: int, rounds: int) -> None:
    """Print how much longer the same pairs take in blocks: all of them, and every other one as on a chessboard."""
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=gen) for _ in range(2))
    f, h = x[:, 0].clone(), y[:, 0].clone()
    operations: dict[str, Callable[[Pairs], Any]] = {
        "softmin": lambda p: kernels.softmin(p, h, 0.3),
        "cmin": lambda p: kernels.cmin(p, h),
        "moments": lambda p: kernels.row_moments(p, f, h, 0.6, h),
    }
    print(f"n = m = {n}, d = 3, float32: time of a pair in blocks over that without")
    for size, regular in ((32, True), (32, False), (64, False), (128, True), (128, False), (256, False)):
        steps = torch.full((n,), size) if regular else torch.randint(size, 2 * size, (n,), generator=gen)
        inside = steps.cumsum(0)
        starts = torch.cat([torch.tensor([0]), inside[inside < n], torch.tensor([n])])
        count = starts.numel() - 1
        every = torch.ones(count, count, dtype=torch.bool)
        patterns = {"none": None, "all": every, "half": (torch.arange(count)[:, None] + torch.arange(count)) % 2 == 0}
        candidates = {}
        for name, there in patterns.items():
            pattern = None
            if there is not None:
                indptr = torch.cat([torch.tensor([0]), there.sum(1).cumsum(0)])
                pattern = kernels.Blocks(starts, starts, indptr, there.nonzero()[:, 1])
            number = n * n if pattern is None else pattern.pairs
            candidates[name] = number, Pairs((x,), (y,), lambda u, v: -(u[0] @ v[0].mT), (n, n), "dot", pattern)
        name = str(size) if regular else f"{size} to {2 * size - 1}"
        text = f"blocks of {name:10}"
        for operation, call in operations.items():
            best = dict.fromkeys(candidates, float("inf"))
            for _ in range(rounds):
                for name, (number, pairs) in candidates.items():
                    start = time.perf_counter()
                    call(pairs)
                    best[name] = min(best[name], (time.perf_counter() - start) / number)
            text += f"   {operation}: all {best['all'] / best['none']:.2f}, half {best['half'] / best['none']:.2f}"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 16, 64, 512])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds after which a cell has no more rounds")
    parser.add_argument("--simd", choices=_native.simd_levels(), default=_native.simd_levels()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--accuracy", action="store_true", help="print errors instead of speeds")
    parser.add_argument("--blocks", action="store_true", help="print what blocks cost instead")
    args = parser.parse_args()
    if args.accuracy:
        return accuracy()
    torch.set_num_threads(args.threads)
    if args.blocks:
        return blocks(args.size // 4, 20 * args.rounds)
    _native.set_simd(args.simd)
    print(f"{processor()}, {args.threads} of {os.cpu_count()} threads, {args.simd}, torch {torch.__version__}")
    rates = {name: _native.rates(name == "float64") for name in args.dtypes}
    rows = [
        row
        for name in args.dtypes
        for d in args.dims
        for row in measure(args.size, d, getattr(torch, name), args.rounds, args.budget, rates)
    ]
    table(rows, rates, args.threads)
    for name, (fma, exp) in rates.items():
        print(f"{name}: {fma / 1e9:.1f}e9 multiply-adds/s, {exp / 1e9:.1f}e9 exponentials/s of one thread at best")
    report: dict[str, Any] = {
        "processor": processor(), "cores": os.cpu_count(), "threads": args.threads, "simd": args.simd,
        "torch": torch.__version__, "system": platform.platform(), "rates": rates, "rows": rows,
    }  # fmt: skip
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
