"""Sinkhorn on one GPU: our Triton kernels beside rivals, their errors and the ceilings of the card.

    python benchmarks/gpu.py [--json results/gpu.json] [--parts iteration steps gap gradient million tiny]
                             [--sizes 10000 50000 100000] [--dims 3 64 512] [--dtypes float32 float64 bfloat16]
                             [--rounds 7] [--limit 60] [--tune] [--dry]

Inputs are standard Gaussian clouds, c = ||x - y||^2, epsilon = 0.05 * mean cost. An iteration is one soft transform to
the rows and one to the columns, 2 n^2 pairs. Every candidate is called once before it is timed, and what that took
beyond a later call is its compile time; then come rounds over all candidates, and the least time counts. Errors are
those of 64 rows against float64, relative to the mean of the answer.

The ceilings are measured here: a matrix product of torch in the same accuracy, a kernel that does nothing but
exponentials, and a copy. A candidate's fraction is that of n^2 (d / multiply-adds + 1 / exponentials) seconds.

- iteration: ours in the accuracies "ieee", "tf32x3" and "tf32" (float32), torch compiled, KeOps, FlashSinkhorn (without
  and with TF32) and POT on the card, whose iterations are those of a call of 50 or 10
- steps: an iteration of `Sinkhorn` with all that it does, ten replayed as a CUDA graph beside a look after each
- gap: the time of `solve(x, y, gap=...)` to a certified gap of 1e-2 and 1e-4, and of POT's `ot.emd2`
- gradient: of the entropic value at 10,000 points, ours and GeomLoss (KeOps)
- million: 1,000,000 points in three dimensions, `Multiscale`
- tiny: 65,536 matrices scaled to equal sums, 20 iterations, forward and backward, as a share of the copy's bandwidth

Rivals are those that can be imported; a candidate that fails is kept with what it said. Where there is no network they
come as wheels, made elsewhere with the same Python (torch, Triton and NumPy have to be there):

    pip wheel --no-deps --wheel-dir build/wheels -r benchmarks/requirements-gpu.txt
    pip install --no-deps --no-index --find-links build/wheels -r benchmarks/requirements-gpu.txt

The clocks are read at the start and after two seconds of matrix products that still run. `--tune` times the
configurations of each kernel first. `--dry` exercises everything on a CPU, in Triton's interpreter (set
TRITON_INTERPRET=1), at sizes that say nothing about speed, and writes no file unless asked to.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

import brenier
from brenier import PointCloud, Relative
from brenier.kernels import engine as kernels
from brenier.kernels import triton_tuning
from brenier.losses import doubly_stochastic

PARTS = ("iteration", "steps", "gap", "gradient", "million", "tiny")
ROWS = 64  # whose errors are taken


class Bench:
    """What all parts share: where, how long, and what was found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dry: bool = args.dry
        self.device = torch.device("cpu" if args.dry else "cuda")
        self.rounds, self.limit = (1, 1e9) if args.dry else (args.rounds, args.limit)
        self.rows: list[dict[str, Any]] = []

    def cloud(self, n: int, d: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, d, generator=generator, dtype=torch.float64).to(self.device, dtype)

    def ours(self) -> contextlib.AbstractContextManager[None]:
        return kernels.use_engine("triton")

    def seconds(self, function: Callable[[], Any]) -> float:
        """How long a function and all that it started on the device take."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def race(self, candidates: dict[str, Callable[[], Any]], **told: Any) -> None:
        """Time candidates in rounds and keep a row for each."""
        first: dict[str, float] = {}
        best: dict[str, float] = {}
        failed: dict[str, str] = {}
        for turn in range(self.rounds + 1):
            for name, call in candidates.items():
                if name in failed or (name in first and turn > 1 and first[name] > self.limit):
                    continue
                try:
                    took = self.seconds(call)
                except Exception as error:  # a rival that does not run here is told of, and ends nothing
                    failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
                    continue
                if turn == 0:
                    first[name] = took
                else:
                    best[name] = min(took, best.get(name, math.inf))
        for name in candidates:
            row = told | {"candidate": name, "seconds": best.get(name), "failed": failed.get(name)}
            if name in best:
                row["compile_seconds"] = max(0.0, first[name] - best[name])
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if v is not None}
        print("  ".join(f"{k} {v}" for k, v in shown.items()), flush=True)


# Ceilings


@triton.jit
def spin(out, turns, SIZE: tl.constexpr, REAL: tl.constexpr):
    """Exponentials and nothing else."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = (at % 7).to(REAL)
    for _ in range(0, turns):
        value = tl.exp2(-value)
    tl.store(out + at, value)


def _exponentials(bench: Bench, dtype: torch.dtype) -> float:
    """Exponentials a second of a kernel that does nothing else."""
    programs, size, turns = (2, 64, 4) if bench.dry else (16384, 1024, 512)
    out = torch.empty(programs * size, dtype=dtype, device=bench.device)
    real = tl.float64 if dtype == torch.float64 else tl.float32
    best = min(
        bench.seconds(lambda: spin[(programs,)](out, turns, SIZE=size, REAL=real)) for _ in range(bench.rounds + 1)
    )
    return programs * size * turns / best


def _multiply_adds(bench: Bench, dtype: torch.dtype, tf32: bool) -> float:
    """Multiply-adds a second of a matrix product of torch."""
    size = 128 if bench.dry else 8192
    a = bench.cloud(size, size, dtype, 0)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        best = min(bench.seconds(lambda: a @ a) for _ in range(bench.rounds + 1))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return size**3 / best


def _bandwidth(bench: Bench) -> float:
    """Bytes a second that a copy reads and writes."""
    a = torch.ones(2**12 if bench.dry else 2**29, device=bench.device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(bench.seconds(lambda: b.copy_(a)) for _ in range(bench.rounds + 1))


def ceilings(bench: Bench, dtypes: list[torch.dtype]) -> dict[str, float]:
    found = {"bandwidth": _bandwidth(bench)}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        found[f"multiply-adds {name}"] = _multiply_adds(bench, dtype, False)
        real = torch.float32 if dtype == torch.bfloat16 else dtype
        found[f"exponentials {name}"] = _exponentials(bench, real)
        if dtype == torch.float32:
            found["multiply-adds tf32"] = _multiply_adds(bench, dtype, True)
    return found


# An iteration


def _dense_softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> Tensor:
    cost = x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.mT
    return -epsilon * torch.logsumexp((h - cost) / epsilon, -1)


def _both(softmin: Callable[..., Tensor], x: Tensor, y: Tensor, f: Tensor, g: Tensor, e: float) -> Callable[[], Any]:
    return lambda: (softmin(x, y, g, e), softmin(y, x, f, e))


def _torch_compiled(x: Tensor, y: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Callable[[], Any]:
    """Dense, in chunks of rows that fit the card."""
    compiled = torch.compile(_dense_softmin)
    rows = max(1, 2**30 // len(y))

    def softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> Tensor:
        return torch.cat([compiled(part, y, h, epsilon) for part in x.split(rows)])

    return _both(softmin, x, y, f, g, epsilon)


def _keops(x: Tensor, y: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Callable[[], Any]:
    from pykeops.torch import LazyTensor

    def softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float) -> Tensor:
        rows, cols = LazyTensor(x[:, None].contiguous()), LazyTensor(y[None].contiguous())
        exponent = (LazyTensor(h[None, :, None].contiguous()) - ((rows - cols) ** 2).sum(-1)) * (1 / epsilon)
        return -epsilon * exponent.logsumexp(dim=1).squeeze(-1)

    return _both(softmin, x, y, f, g, epsilon)


def iteration(bench: Bench, n: int, d: int, dtype: torch.dtype, found: dict[str, float]) -> None:
    x, y = bench.cloud(n, d, dtype, 0), bench.cloud(n, d, dtype, 1)
    f, g, epsilon = x[:, 0].contiguous(), y[:, 0].contiguous(), 0.1 * d
    name = str(dtype).removeprefix("torch.")
    wide = (x[:ROWS].double(), y.double(), g.double())
    with kernels.use_engine("reference"):
        exact = PointCloud(wide[0], wide[1]).softmin(wide[2], float(torch.tensor(epsilon, dtype=dtype)))
    candidates: dict[str, Callable[[], Any]] = {}

    def mine(accuracy: str) -> Callable[[], Any]:
        def call() -> Any:
            geometry = PointCloud(x, y)
            with bench.ours(), kernels.use_accuracy(accuracy):
                return geometry.softmin(g, epsilon), geometry.softmin(f, epsilon, dim=0)

        return call

    for accuracy in ("ieee", "tf32x3", "tf32") if dtype == torch.float32 else ("ieee",):
        candidates[f"brenier, {accuracy}"] = mine(accuracy)
    if not bench.dry:
        candidates["torch.compile"] = _torch_compiled(x, y, f, g, epsilon)
        if find_spec("pykeops") and dtype == torch.float32:
            candidates["KeOps"] = _keops(x, y, f, g, epsilon)
    else:
        candidates["torch"] = _both(_dense_softmin, x, y, f, g, epsilon)
    start = len(bench.rows)
    bench.race(candidates, part="iteration", n=n, d=d, dtype=name)
    for row in bench.rows[start:]:
        if row["seconds"]:  # the first call, which compiles, was one of the race
            out = candidates[row["candidate"]]()[0][:ROWS].double()
            row["error"] = float((out - exact).abs().max() / exact.abs().mean())
            _rate(row, found, 1)


def _rate(row: dict[str, Any], found: dict[str, float], turns: int) -> None:
    """What a time of so many iterations comes to."""
    seconds, name = row["seconds"] / turns, row["dtype"]
    rate = 2 * row["n"] ** 2 / seconds
    products = "tf32" if "tf32" in row["candidate"].lower() else name
    work = row["d"] / found[f"multiply-adds {products}"] + 1 / found[f"exponentials {name}"]
    row |= {"milliseconds": 1e3 * seconds, "pairs_per_second": rate, "fraction_of_ceiling": rate * work}


def whole_loops(bench: Bench, n: int, d: int, found: dict[str, float]) -> None:
    """Rivals through their front doors: a fixed number of iterations, each of two transforms.

    The error is that of the potential that was updated last, without its mean.
    """
    x, y = (bench.cloud(n, d, torch.float32, k) for k in range(2))
    epsilon = 0.1 * d
    candidates: dict[str, tuple[int, Callable[[], Any]]] = {}
    if find_spec("flash_sinkhorn") and not bench.dry:
        from flash_sinkhorn import SamplesLoss

        for name, tf32 in (("FlashSinkhorn, IEEE", False), ("FlashSinkhorn, TF32", True)):
            loss = SamplesLoss(
                loss="sinkhorn", blur=math.sqrt(epsilon), debias=False, potentials=True, backend="alternating",
                use_epsilon_scaling=False, eps=epsilon, n_iters=50, allow_tf32=tf32, truncate_tf32=tf32,
            )  # fmt: skip
            candidates[name] = 50, lambda loss=loss: loss(x, y)
    if find_spec("ot") and n <= 50_000:  # three matrices of n x n
        import ot

        a = torch.full((n,), 1 / n, device=bench.device)

        def pot() -> Any:
            log = ot.sinkhorn(
                a, a, ot.dist(x, y), epsilon, method="sinkhorn_log", numItermax=10, stopThr=0, log=True, warn=False
            )[1]
            return epsilon * log["log_u"], epsilon * log["log_v"]

        candidates["POT, sinkhorn_log"] = 10, pot
    start = len(bench.rows)
    bench.race({name: call for name, (_, call) in candidates.items()}, part="iteration", n=n, d=d, dtype="float32")
    for row in bench.rows[start:]:
        if row["seconds"]:
            turns, call = candidates[row["candidate"]]
            row["error"] = min(_missed(x, y, *pair, epsilon) for pair in (call(), call()[::-1]))
            _rate(row, found, turns)


def _missed(x: Tensor, y: Tensor, f: Tensor, g: Tensor, epsilon: float) -> float:
    """How far f is from the transform of g in float64, where one is a constant beside the other, in its first rows."""
    with kernels.use_engine("reference"):
        exact = PointCloud(x[:ROWS].double(), y.double()).softmin(g.double().flatten(), epsilon)
    off = f.double().flatten()[:ROWS] - exact
    return float((off - off.mean()).abs().max() / exact.abs().mean())


def steps(bench: Bench, n: int, d: int, found: dict[str, float]) -> None:
    from brenier.solvers import Sinkhorn

    x, y = (bench.cloud(n, d, torch.float32, k) for k in range(2))
    turns = 20 if bench.dry else 500
    solver = Sinkhorn(tol=1e-30, max_iter=turns)

    def mine(**told: Any) -> Any:
        with bench.ours(), warnings.catch_warnings():
            warnings.simplefilter("ignore", brenier.NotConvergedWarning)  # for capture that fails is told
            return brenier.solve(x, y, epsilon=Relative(0.05), solver=solver, **told)

    candidates = {
        "Sinkhorn, ten at a time": mine,
        "Sinkhorn, a look after each": lambda: mine(callback=lambda *_: None),
    }
    start = len(bench.rows)
    bench.race(candidates, part="steps", n=n, d=d, dtype="float32")
    for row in bench.rows[start:]:
        if row["seconds"]:
            _rate(row, found, turns)


# Whole problems


def gap(bench: Bench, n: int, d: int) -> None:
    x, y = (bench.cloud(n, d, torch.float32, k) for k in range(2))
    for wanted in (1e-2, 1e-4):
        proved: dict[str, float] = {}

        def mine(wanted: float = wanted, proved: dict[str, float] = proved) -> None:
            solution = brenier.solve(x, y, gap=wanted, throw=False)
            proved["gap"] = float(solution.certificate.relative_gap)

        candidates: dict[str, Callable[[], Any]] = {"brenier": mine}
        if find_spec("ot") and n <= 20_000:
            import ot

            cost = torch.cdist(x, y).square()
            a = torch.full((n,), 1 / n, device=bench.device)
            candidates["POT, emd2"] = lambda cost=cost, a=a: ot.emd2(a, a, cost)
        start = len(bench.rows)
        bench.race(candidates, part="gap", n=n, d=d, dtype="float32", wanted=wanted)
        bench.rows[start]["error"] = proved.get("gap")


def gradient(bench: Bench, n: int, d: int) -> None:
    x, y = (bench.cloud(n, d, torch.float32, k) for k in range(2))
    leaf = x.clone().requires_grad_()

    def mine() -> Any:
        solution = brenier.solve(leaf, y, epsilon=Relative(0.05), tol=1e-3, throw=False)
        return torch.autograd.grad(solution.value, leaf)

    candidates: dict[str, Callable[[], Any]] = {"brenier": mine}
    if find_spec("geomloss") and find_spec("pykeops") and not bench.dry:
        from geomloss import SamplesLoss

        loss = SamplesLoss("sinkhorn", p=2, blur=math.sqrt(0.05 * d), debias=False, backend="online")
        candidates["GeomLoss"] = lambda: torch.autograd.grad(loss(leaf, y), leaf)
    bench.race(candidates, part="gradient", n=n, d=d, dtype="float32")


def million(bench: Bench, n: int) -> None:
    from brenier.solvers import Multiscale

    x, y = (bench.cloud(n, 3, torch.float32, k) for k in range(2))
    told: dict[str, float] = {}

    def mine() -> None:
        solution = brenier.solve(x, y, epsilon=Relative(1e-3), solver=Multiscale(tol=1e-2), throw=False)
        told["error"] = float(solution.stats["marginal_error"])

    start = len(bench.rows)
    bench.race({"brenier, Multiscale": mine}, part="million", n=n, d=3, dtype="float32")
    bench.rows[start]["error"] = told.get("error")


def tiny(bench: Bench, count: int, found: dict[str, float]) -> None:
    for side in (4, 8, 16, 32, 64):
        many = max(1, count * 16 // side**2) if bench.dry else count
        scores = bench.cloud(many, side * side, torch.float32, side).reshape(many, side, side)
        leaf = scores.clone().requires_grad_()
        weight = torch.ones_like(scores)
        start = len(bench.rows)

        def forward(scores: Tensor = scores) -> Any:
            with bench.ours():
                return doubly_stochastic(scores, 1.0, n_iter=20).plan

        def both(leaf: Tensor = leaf, weight: Tensor = weight) -> Any:
            with bench.ours():
                return torch.autograd.grad(doubly_stochastic(leaf, 1.0, n_iter=20).plan, leaf, weight)

        bench.race({"forward": forward, "forward and backward": both}, part="tiny", n=many, d=side, dtype="float32")
        for row, passes in zip(bench.rows[start:], (2, 5)):  # the matrices that are read and written at least
            if row["seconds"]:
                row["fraction_of_ceiling"] = passes * scores.nbytes / row["seconds"] / found["bandwidth"]


# The report


def card() -> dict[str, Any]:
    """The card, its driver and clocks, and what was set."""
    told: dict[str, Any] = {"device": "none", "torch": torch.__version__, "cuda": torch.version.cuda}
    told |= {"system": platform.platform(), "tf32 allowed": torch.backends.cuda.matmul.allow_tf32}
    for package in ("triton", "flash-sinkhorn", "geomloss", "pykeops", "POT"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            told[package] = metadata.version(package)
    if torch.cuda.is_available():
        told["device"] = torch.cuda.get_device_name()
        told |= _smi("driver_version,clocks.max.sm,clocks.max.mem,power.limit,clocks.sm,clocks.mem")
        busy = torch.ones(8192, 8192, device="cuda")
        start = time.perf_counter()
        while time.perf_counter() - start < 2:
            busy @ busy
            torch.cuda.synchronize()
        for _ in range(200):  # which run while the clocks are read
            busy @ busy
        told |= {f"{name} at work": value for name, value in _smi("clocks.sm,clocks.mem,power.draw").items()}
        torch.cuda.synchronize()
    return told


def _smi(asked: str) -> dict[str, str]:
    """What nvidia-smi says of the card that torch counts first."""
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return dict(zip(asked.split(","), said.strip().split(", ")))
    return {"nvidia-smi": "not there"}


def table(rows: list[dict[str, Any]]) -> str:
    heads = ("part", "n", "d", "dtype", "candidate", "milliseconds", "pairs/s", "wanted", "error or gap", "of ceiling",
             "compile s")  # fmt: skip
    keys = ("part", "n", "d", "dtype", "candidate", "milliseconds", "pairs_per_second", "wanted", "error",
            "fraction_of_ceiling", "compile_seconds")  # fmt: skip
    lines = [heads]
    for row in rows:
        shown = row | (
            {"milliseconds": 1e3 * row["seconds"]} if row.get("seconds") and "milliseconds" not in row else {}
        )
        cells = [shown.get(key) for key in keys]
        if row.get("failed"):
            cells[5] = row["failed"]
        lines.append(tuple("" if c is None else f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells))
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 64, 512])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a call after which it is timed once only")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if args.dry:
        if os.environ.get("TRITON_INTERPRET") != "1":
            sys.exit("--dry: set TRITON_INTERPRET=1")
        args.sizes, args.dims = [48], [3, 20]
    elif not torch.cuda.is_available():
        sys.exit("there is no GPU here; --dry exercises the script without one")
    bench = Bench(args)
    dtypes = [getattr(torch, name) for name in args.dtypes]
    told = card()
    print("  ".join(f"{k}: {v}" for k, v in told.items()))
    found = ceilings(bench, dtypes)
    print("  ".join(f"{k}: {v:.3g}/s" for k, v in found.items()))
    with triton_tuning.tuned() if args.tune else contextlib.nullcontext():
        if "iteration" in args.parts:
            for dtype in dtypes:
                for n in args.sizes:
                    for d in args.dims:
                        iteration(bench, n, d, dtype, found)
                        if dtype == torch.float32:
                            whole_loops(bench, n, d, found)
        if "steps" in args.parts and torch.float32 in dtypes:
            for n in [40] if bench.dry else [1_000, 10_000]:
                steps(bench, n, 3, found)
        if "gap" in args.parts:
            gap(bench, 40 if bench.dry else 10_000, 3)
        if "gradient" in args.parts:
            gradient(bench, 40 if bench.dry else 10_000, 3)
        if "million" in args.parts:
            million(bench, 200 if bench.dry else 1_000_000)
        if "tiny" in args.parts:
            tiny(bench, 16 if bench.dry else 65_536, found)
    print(table(bench.rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"dry": bench.dry, "tuned": args.tune, "machine": told, "ceilings": found, "rows": bench.rows}
        kept = json.loads(args.json.read_text()) if args.json.exists() else {}  # what `gpu_resources.py` has found
        args.json.write_text(json.dumps(kept | {"times": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
