"""Pairs a second of the kernels on a CPU: ours, tiled torch (our reference) and rivals, beside the ceilings.

    python benchmarks/kernels.py [--threads 1] [--size 20000] [--dims 3 16 64 512] [--dtypes float32 float64]
                                 [--rounds 7] [--budget 2] [--json results/kernels.json]
                                 [--accuracy] [--blocks] [--lists]

Every candidate gets the same inputs: c = ||x - y||^2 of standard Gaussian clouds, epsilon = 0.05 * mean cost; errors
are those of 64 rows against float64, relative to the mean of the answer. The time is the best of several calls after
one that warms up, taken in rounds over all candidates; all but the native engine compute 2,000 rows against all
columns, and their time is scaled to all rows. The ceiling adds up the time that the multiply-adds and the exponentials
alone would take, from the best rates that this machine reached on nothing else:
pairs / s <= 1 / (d / multiply-adds + 1 / exponentials).

Rivals of softmin: dense torch and, in float32, where they can be imported (make .venv-bench/.bench), KeOps (a
LazyTensor reduced by logsumexp) and JAX, compiled, on the dense matrix and in chunks of 250 rows. Compilation is not
timed. The process is held to as many cores as it has threads. The JSON keeps one run for each number of threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from torch import Tensor

from brenier import PointCloud, _native
from brenier.experiments.report import Report, provenance
from brenier.kernels import engine as kernels
from brenier.kernels.engine import Pairs, use_engine

ROWS = 2_000  # that all but the native engine are timed on
_CHUNK = 250


def dense_softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> Tensor:
    cost = x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.T
    return -epsilon * torch.logsumexp((h - cost) / epsilon, -1)


def keops_softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> Callable[[], Tensor]:
    from pykeops.torch import LazyTensor

    rows, cols = LazyTensor(x[:, None].contiguous()), LazyTensor(y[None].contiguous())
    exponent = (LazyTensor(h[None, :, None].contiguous()) - ((rows - cols) ** 2).sum(-1)) * (1 / epsilon)
    return lambda: -epsilon * exponent.logsumexp(dim=1).squeeze(-1)


def jax_softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float, chunk: int | None) -> Callable[[], Tensor]:
    import jax
    import jax.numpy as jnp

    def rows(x: Any, y: Any, h: Any) -> Any:
        cost = (x**2).sum(-1, keepdims=True) + (y**2).sum(-1) - 2 * x @ y.T
        return -epsilon * jax.nn.logsumexp((h - cost) / epsilon, axis=-1)

    def chunked(x: Any, y: Any, h: Any) -> Any:
        return jax.lax.map(lambda part: rows(part, y, h), x.reshape(-1, chunk, x.shape[-1])).reshape(-1)

    call = jax.jit(rows if chunk is None else chunked)
    inputs = [jnp.asarray(t.numpy()) for t in (x, y, h)]
    return lambda: torch.from_numpy(np.array(call(*inputs)))


def rivals(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> dict[str, Callable[[], Tensor]]:
    """Softmin by what is installed here; compiled, as each has been called once."""
    calls: dict[str, Callable[[], Tensor]] = {}
    if importlib.util.find_spec("pykeops"):
        calls["KeOps"] = keops_softmin(x, y, h, epsilon)
    if importlib.util.find_spec("jax"):
        calls["JAX dense"] = jax_softmin(x, y, h, epsilon, None)
        if len(x) % _CHUNK == 0:
            calls["JAX chunked"] = jax_softmin(x, y, h, epsilon, _CHUNK)
    for call in calls.values():
        call()
    return calls


def measure(
    n: int, d: int, dtype: torch.dtype, rounds: int, budget: float, rates: dict[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype) for _ in range(2))
    epsilon = 0.05 * 2.0 * d
    h, v = y[:, 0].clone(), y[:, :1].expand(n, 32).contiguous()
    exact = PointCloud(x[:64].double(), y.double()).softmin(h.double(), epsilon)
    work = {  # multiply-adds and exponentials of a pair
        "softmin": (d, 1), "cmin": (d, 0), "apply": (d + 1, 1), "apply, 32 vectors": (d + 32, 1), "moments": (d + 2, 1)
    }  # fmt: skip

    def operations(x: Tensor) -> dict[str, Callable[[], Tensor]]:
        geometry, f = PointCloud(x, y), x[:, 0].clone()
        return {
            "softmin": lambda: geometry.softmin(h, epsilon),
            "cmin": lambda: geometry.cmin(h)[0],
            "apply": lambda: geometry.apply(f, h, epsilon, v[:, 0]),
            "apply, 32 vectors": lambda: geometry.apply(f, h, epsilon, v),
            "moments": lambda: geometry.moments(f, h, epsilon)[0],
        }

    few = x[:ROWS].contiguous()
    whole, cut = operations(x), operations(few)
    name = str(dtype).removeprefix("torch.")
    others = {"dense": lambda: dense_softmin(few, y, h, epsilon)}
    if dtype == torch.float32:
        others |= rivals(few, y, h, epsilon)
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], Tensor]] = []
    for operation in work:
        candidates = {"native": whole[operation], "reference": cut[operation]}
        if operation == "softmin":
            candidates |= others
        for engine, candidate in candidates.items():
            row = {"operation": operation, "engine": engine, "n": n, "d": d, "dtype": name, "work": work[operation]}
            row |= {"seconds": None, "error": None, "rows": n if engine == "native" else len(few)}
            rows.append(row)
            calls.append(candidate)
    spent = [0.0] * len(rows)
    # Round after round over all candidates: what else the machine does falls on each of them alike.
    for turn in range(rounds + 1):
        fma, exp = _native.rates(name == "float64")
        rates[name] = (max(fma, rates[name][0]), max(exp, rates[name][1]))
        for i, (row, call) in enumerate(zip(rows, calls)):
            if spent[i] > budget:
                continue
            with use_engine("reference" if row["engine"] == "reference" else "auto"):
                start = time.perf_counter()
                out = call()
                seconds = time.perf_counter() - start
            if turn == 0 and row["operation"] == "softmin":
                row["error"] = float(((out[:64].double() - exact) / exact.abs().mean()).abs().max())
            if turn > 0 or seconds > budget:  # the first round warms up
                spent[i] += seconds
                row["seconds"] = min(seconds * n / row["rows"], row["seconds"] or np.inf)
        print(".", end="", flush=True)
    return rows


def table(rows: list[dict[str, Any]], rates: dict[str, tuple[float, float]], threads: int) -> None:
    print()
    for row in rows:
        fma, exp = (threads * r for r in rates[row["dtype"]])
        a, b = row.pop("work")
        rate = row["n"] ** 2 / row["seconds"]
        row["pairs_per_second"] = rate
        row["fraction_of_ceiling"] = rate * (a / fma + b / exp)
        text = f"{row['dtype']:8} d={row['d']:<4} {row['operation']:18} {row['engine']:10}"
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


def lists(n: int, dims: list[int], dtypes: list[str], rounds: int) -> None:
    """Print how long `support` and `smallest` take beside `cmin` and, on 2,000 rows, beside the reference."""
    print("24 entries a row: all of the smallest, or those within a threshold that a tenth of the rows reach")
    for name in dtypes:
        for d in dims:
            gen = torch.Generator().manual_seed(0)
            x, y = (torch.randn(n, d, generator=gen).to(getattr(torch, name)) for _ in range(2))
            f, g = -x.square().sum(-1) / 2, -y.square().sum(-1) / 2
            one_list(f"{name:8} d={d:<3}", rounds, f, g, lambda rows, y=y: (rows, y), x)
            few = n // 4
            for kind, c in (("rows", -(x[:few] @ y[:few].T)), ("columns", -(y[:few] @ x[:few].T).T)):
                one_list(f"{name:8} matrix, {few} {kind}", rounds, f[:few], g[:few], lambda rows: (rows,), c)


def one_list(
    name: str, rounds: int, f: Tensor, g: Tensor, sides: Callable[[Tensor], tuple[Tensor, ...]], lines: Tensor
) -> None:
    def pairs(rows: int) -> Pairs:
        x, *y = sides(lines[:rows])
        shape = rows, g.numel()
        if not y:
            return Pairs((x,), (), lambda u, _: u[0], shape, "matrix")
        return Pairs((x,), (y[0],), lambda u, v: -(u[0] @ v[0].mT), shape, "dot")

    n = f.numel()
    tenth = float((kernels.cmin(pairs(n), g)[0] - f).quantile(0.1))
    calls: dict[str, Callable[[int], Any]] = {
        "cmin": lambda rows: kernels.cmin(pairs(rows), g),
        "support": lambda rows: kernels.support(pairs(rows), f[:rows], g, torch.inf, 24),
        "support, threshold": lambda rows: kernels.support(pairs(rows), f[:rows], g, tenth, 24),
        "smallest": lambda rows: kernels.smallest(pairs(rows), f[:rows], g, 10 * rows),
    }
    best = {(engine, o): np.inf for engine in ("native", "reference") for o in calls}
    for _ in range(rounds):
        for engine, o in best:
            rows = n if engine == "native" else min(ROWS, n)
            with use_engine(engine):
                start = time.perf_counter()
                calls[o](rows)
                best[engine, o] = min(best[engine, o], (time.perf_counter() - start) / rows)
    print(name)
    for o in calls:
        mine = best["native", o]
        text = f"    {o:20}{mine * n:8.3f} s {mine / best['native', 'cmin']:6.2f} of cmin"
        print(text + f", reference / native {best['reference', o] / mine:6.1f}", flush=True)


def save(path: Path, run: dict[str, Any]) -> None:
    """Keep this run beside those with other numbers of threads, under a table of softmin for the documentation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text())["runs"] if path.is_file() else {}
    runs[str(run["threads"])] = run
    report = Report("kernels", "Pairwise kernels", "full", [0])
    seconds = round(sum(one["seconds"] for one in runs.values()))
    report.provenance = provenance() | {"threads": " and ".join(sorted(runs)), "seconds": seconds}
    report.data = ["standard Gaussian clouds"]
    engines = ["native", "reference", "dense", "KeOps", "JAX dense", "JAX chunked"]
    table = report.table("softmin, float32, 1e9 pairs a second", [*engines, "native / fastest other"])
    for threads, one in sorted(runs.items()):
        cells = {
            (r["d"], r["engine"]): r for r in one["rows"] if (r["operation"], r["dtype"]) == ("softmin", "float32")
        }
        for d in sorted({d for d, _ in cells}):
            rates = {e: (cells.get((d, e)) or {}).get("pairs_per_second") for e in engines}
            best = max((r for e, r in rates.items() if r and e != "native"), default=None)
            shown = [f"{rates[e] / 1e9:.3f}" if rates[e] else "" for e in engines]
            n, plural = one["rows"][0]["n"], "s" if int(threads) > 1 else ""
            ratio = f"{rates['native'] / best:.1f}" if best else ""
            table.add(f"n = {n}, d = {d}, {threads} thread{plural}", *shown, ratio)
    report.notes.append(
        f"{run['processor']}. All but the native engine were timed on {ROWS:,} rows against all columns, and the time "
        "scaled to all rows; an empty cell is a library that is not there."
    )
    path.write_text(json.dumps(report.to_json() | {"runs": runs}, indent=1) + "\n")


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
    parser.add_argument("--lists", action="store_true", help="print what support and smallest cost instead")
    args = parser.parse_args()
    if args.accuracy:
        return accuracy()
    if hasattr(os, "sched_setaffinity"):  # before the rivals start their threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    if args.blocks:
        return blocks(args.size // 4, 20 * args.rounds)
    if args.lists:
        return lists(args.size, args.dims, args.dtypes, args.rounds)
    start = time.perf_counter()
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
        "seconds": time.perf_counter() - start, "torch": torch.__version__, "system": platform.platform(),
        "rates": rates, "rows": rows,
    }  # fmt: skip
    if args.json:
        save(args.json, report)


if __name__ == "__main__":
    main()
