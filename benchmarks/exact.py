"""Exact transport between clouds: brenier beside POT, SciPy and lapx, from the points to a proved plan.

    python benchmarks/exact.py [--sizes 1000 4000] [--dims 2 784] [--masses uniform] [--costs euclidean]
                               [--patience 6] [--records FILE] [--report]

Every method gets the points and returns a plan; the rivals' time holds the cost matrix, formed the fast way. Seconds
are those of the processor, of one thread; of runs below 2 s, the median of three after one that warms up. The value of
each plan is recomputed pair by pair, in float64: that of brenier is compared with the dual value that its potentials
prove over all pairs, those of the rivals with brenier's, and what is not within 1e-9 is a fail.

A rival is stopped after --patience times the seconds of brenier, 1 s at least: the table then says what it exceeded. As
in benchmarks/entropic.py, every library has a process of its own, each cell is a line of the file of records, and no
cell that is there runs again. `--report` makes results/exact.json of all records, and runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from entropic import OURS, ROOT, Record, Worker, append, key, read
from machine import processor
from rivals import exact

from brenier.experiments.report import Claim, Report, provenance

SIZES = (1000, 4000, 10_000, 20_000)
_SHORTEST = 1.0  # seconds that every run may take
_LONGEST = 3600.0
_SHARED = 10.0  # a run may take so many times its seconds of the processor, where others use it too


def wanted(n: int, d: int, masses: str, cost: str) -> list[Record]:
    """The cells of one problem, ours first."""
    return [
        {"set": f"{d}-D, {masses}, {cost}", "n": n, "task": "exact", "level": 0, "method": method, "threads": 1}
        for method in exact.METHODS
        if masses == "uniform" or method not in exact.ASSIGN
    ]


def run_problem(
    column: tuple[int, str, str], n: int, records: dict[tuple[Any, ...], Record], options: argparse.Namespace
) -> None:
    """Run the cells of one problem that are not in the records yet."""
    cells = wanted(n, *column)
    if all(key(cell) in records for cell in cells):
        return
    workers: dict[str, Worker] = defaultdict(lambda: Worker(1))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "problem.npz")
            np.savez(path, **vars(exact.make(*column, n)))
            for cell in cells:
                ours = records.get(key(cells[0]), {})
                if key(cell) in records or (cell["method"] != OURS and not ours["ok"]):
                    continue
                limit = _LONGEST if cell["method"] == OURS else max(_SHORTEST, options.patience * ours["seconds"])
                request = cell | {"path": path, "limit": limit} | ({"optimum": ours["value"]} if ours else {})
                answer = workers[cell["method"]].ask(request, _SHARED * limit)
                record = cell | {"limit": limit} | answer
                append(record, records, options.records)
                shown = f"{record['seconds']:9.3f} s, error {record['error']:.1e}" if record["ok"] else record["reason"]
                print(f"{n:6} {cell['set']:28} {cell['method']:28} {shown}", flush=True)
    finally:
        for worker in workers.values():
            worker.stop()


def summarise(records: dict[tuple[Any, ...], Record]) -> Report:
    """A table of every problem, and the worst ratio of each size."""
    problems: dict[tuple[int, str], dict[str, Record]] = defaultdict(dict)
    for r in records.values():
        problems[r["n"], r["set"]][r["method"]] = r
    report = Report("exact", "Exact transport between clouds beside other libraries", "part", [200])
    report.provenance = provenance() | {"threads": 1}
    report.data = ["Gaussian clouds drawn at random; Fashion-MNIST"]
    libraries = ", ".join(f"{p} {version(p)}" for p in ("POT", "scipy", "lapx"))
    report.notes.append(
        f"{processor()}, one thread; {libraries}. Seconds of the processor, cost matrices included. A ratio with > is "
        "that at which the last rival was stopped."
    )
    each = report.table("Every problem", ["brenier", "fastest rival", "seconds of it", "rival / brenier", "gap"])
    worst: dict[int, float] = defaultdict(lambda: float("inf"))
    for (n, name), methods in sorted(problems.items()):
        ours, rivals = methods[OURS], [r for m, r in methods.items() if m != OURS]
        if not ours["ok"] or not rivals:
            continue
        done = [r for r in rivals if r["ok"]]
        best = min(done, key=lambda r: r["seconds"]) if done else None
        seconds = best["seconds"] if best else max(r["limit"] for r in rivals)
        ratio = seconds / ours["seconds"]
        worst[n] = min(worst[n], ratio)
        each.add(
            f"{n}, {name}",
            f"{ours['seconds']:.3f}",
            best["method"] if best else "none",
            f"{seconds:.3f}" if best else f"> {seconds:.3f}",
            f"{ratio:.2f}" if best else f"> {ratio:.2f}",
            f"{ours['error']:.1e}",
        )
    for n, ratio in worst.items():
        least = 1.0 if n <= 1000 else 5.0
        report.claims.append(Claim.at_least(f"n = {n}: the fastest rival takes {least:g} times as long", ratio, least))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dims", type=int, nargs="+", choices=exact.DIMS, default=list(exact.DIMS))
    parser.add_argument("--masses", nargs="+", choices=exact.MASSES, default=list(exact.MASSES))
    parser.add_argument("--costs", nargs="+", choices=exact.COSTS, default=list(exact.COSTS))
    parser.add_argument("--patience", type=float, default=6.0, help="a rival may take so many times as long as brenier")
    parser.add_argument("--records", type=Path, default=ROOT / "build" / "bench" / "exact.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--report", action="store_true", help="only write the report of the records")
    options = parser.parse_args()
    records = read(options.records)
    if not options.report:
        for n in options.sizes:
            for column in itertools.product(options.dims, options.masses, options.costs):
                run_problem(column, n, records, options)
    report = summarise(records)
    path = report.save(options.out)
    for row, cells in report.tables[0].rows.items():
        print(f"{row:40} " + "  ".join(f"{cell!s:>12}" for cell in cells))
    for claim in report.claims:
        print(f"{'held' if claim.held else 'NOT HELD'}: {claim.sentence}, {claim.value:.2f}")
    print(*report.notes, f"written to {path}", sep="\n")


if __name__ == "__main__":
    main()
