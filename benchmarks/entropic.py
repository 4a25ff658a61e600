"""Entropic and certified transport: brenier beside POT, OTT-JAX, GeomLoss, mdot-tnt and regot, on the same inputs.

    python benchmarks/entropic.py [--quick] [--sets NAME ...] [--sizes 1024 4096] [--methods NAME ...]
                                  [--tasks gap marginal] [--threads 2] [--records FILE] [--report]

Two tasks. *gap*: seconds to a certified relative gap of 1e-2, 1e-4, 1e-6 of the unregularised optimum. *marginal*:
seconds to a relative L1 marginal error of 1e-6 of both marginals at epsilon = 0.05, 5e-3, 5e-4 x mean cost. Both are
recomputed in dense float64 NumPy by one judge (rivals/judge.py) that sees the plan and the potentials only.

Rivals are favoured where there is a choice: each runs at several settings and with several tolerances (or epsilons,
scaled by the optimal value), the fastest answer that satisfies the judge counts, the attempts before it do not, and
compilation and conversions are not timed. brenier is asked once, through its front door, unless it has a name of its
own below. Every library lives in a process of its own, with the same number of threads; a run that exceeds its limit is
killed, with its process. Of runs below 2 s, the median of three after one that warms up counts.

A rival may take 60 s for one run (120 s above 1,024 points, 4 s with --quick), or with --patience P, P times as long as
brenier took for the hardest level of the same task and set, 1 s at least: what is stopped then is a fail for the table
of success, and where all were, the ratio of the cell is that at which they were stopped. With --best K, only the K
rivals that were the fastest in the same cell at the size before take part.

Each cell is a line of the file of records as soon as it is known, and no cell that is there runs again: the grid can be
run in pieces. `--report` makes results/entropic.json of all records, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor
from rivals import problems
from rivals.methods import METHODS

from brenier.experiments.report import Report, provenance

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {"gap": (1e-2, 1e-4, 1e-6), "marginal": (0.05, 5e-3, 5e-4)}
OURS = "brenier"
QUICK_METHODS = (
    OURS, "POT emd", "POT sinkhorn_log", "OTT schedule, adaptive momentum", "OTT Anderson", "GeomLoss 0.9", "mdot-tnt",
    "regot SSNS", "regot SPLR",
)  # fmt: skip
QUICK_LIMIT = 4.0
_SHORTEST = 1.0  # seconds that every run may take
_PATIENCE = 900.0  # seconds for what is not timed: imports, compilation, the judge
Record = dict[str, Any]


class Worker:
    """A process for one library; killed when its clock runs out, started again when it is next asked."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.process: subprocess.Popen[str] | None = None

    def _start(self) -> None:
        env = dict(os.environ)
        for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
            env[f"{name}_NUM_THREADS"] = str(self.threads)
        env["OMP_WAIT_POLICY"] = "passive"
        command = [sys.executable, str(Path(__file__).parent / "rivals" / "worker.py"), str(self.threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process.stdout, self.lines), daemon=True).start()

    @staticmethod
    def _listen(stream: Any, lines: queue.Queue[str | None]) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    def ask(self, request: Record, limit: float) -> Record:
        """The answer to a request; the limit holds while the worker's clock is on."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        patience, timed = _PATIENCE, False
        while True:
            try:
                line = self.lines.get(timeout=patience)
            except queue.Empty:
                self.stop()
                return {"ok": False, "reason": "time-out" if timed else "time-out outside the timed part"}
            if line is None:
                code = self.process.wait()
                self.process = None
                reasons = {-signal.SIGKILL: "memory", -signal.SIGXCPU: "time-out"}
                return {"ok": False, "reason": reasons.get(code, f"the process ended with {code}")}
            message: Record = json.loads(line)
            if "clock" not in message:
                return message
            timed = message["clock"] == "on"
            patience = limit if timed else _PATIENCE

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def key(record: Record) -> tuple[Any, ...]:
    return tuple(record[k] for k in ("set", "n", "task", "level", "method", "threads"))


def read(path: Path) -> dict[tuple[Any, ...], Record]:
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {key(r): r for r in records}


def append(record: Record, records: dict[tuple[Any, ...], Record], path: Path) -> None:
    """Keep a record, in the file too."""
    records[key(record)] = record
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def run_cells(options: argparse.Namespace, records: dict[tuple[Any, ...], Record]) -> None:
    """Run what is not in the records yet, and append it to their file."""
    workers: dict[str, Worker] = defaultdict(lambda: Worker(options.threads))
    try:
        for n in options.sizes:
            for name in options.sets:
                wanted = [
                    w for w in requests(name, n, options) if key(w) not in records and likely(w, records, options)
                ]
                if wanted:
                    run_problem(name, n, wanted, workers, records, options)
    finally:
        for worker in workers.values():
            worker.stop()


def requests(name: str, n: int, options: argparse.Namespace) -> list[Record]:
    return [
        {"set": name, "n": n, "task": task, "level": level, "method": method, "threads": options.threads}
        for method in options.methods
        for task in options.tasks
        if task in METHODS[method].tasks
        for level in LEVELS[task]
        if task == "marginal" or METHODS[method].levels is None or level in METHODS[method].levels
    ]


def likely(request: Record, records: dict[tuple[Any, ...], Record], options: argparse.Namespace) -> bool:
    """Whether a method is ours, or one of the fastest rivals in the same cell at the largest size below."""
    below = [r["n"] for r in records.values() if r["n"] < request["n"] and r["set"] == request["set"]]
    if options.best is None or METHODS[request["method"]].library == OURS or not below:
        return True
    levels = LEVELS[request["task"]]
    easier = levels[: levels.index(request["level"]) + 1][::-1]  # ties at this level are broken at easier ones

    def times(method: str) -> list[float]:
        cells = ({**request, "n": max(below), "level": level, "method": method} for level in easier)
        return [seconds_at_least(records.get(key(cell))) for cell in cells]

    rivals = [m for m in METHODS if METHODS[m].library != OURS and times(m)[0] < math.inf]
    return request["method"] in sorted(rivals, key=times)[: options.best]


def run_problem(
    name: str,
    n: int,
    wanted: list[Record],
    workers: dict[str, Worker],
    records: dict[tuple[Any, ...], Record],
    options: argparse.Namespace,
) -> None:
    limit = options.limit or (60.0 if n <= 1024 else 120.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        problem = problems.make(name, n)
        parts = {k: v for k, v in vars(problem).items() if isinstance(v, np.ndarray)}
        np.savez(path, **parts, name=name, cost=problem.cost)
        del problem, parts
        told = workers[OURS].ask({"task": "optimum", "path": str(path)}, limit)
        if not told["ok"]:
            raise SystemExit(f"{name}, n = {n}: the optimum failed: {told['reason']}")
        late: set[tuple[str, str]] = set()
        for request in wanted:
            method, task = request["method"], request["task"]
            first = method == OURS
            patience = limit if first else min(limit, patience_for(request, records, options))
            if (method, task) in late:  # levels come from easy to hard
                answer = {"ok": False, "reason": "time-out at an easier level"}
            else:
                more = {"path": str(path), "optimum": told["optimum"]}
                answer = workers[METHODS[method].library].ask(request | more, patience)
            if answer.get("reason") == "time-out" and METHODS[method].slower_when_harder:
                late.add((method, task))
            record = request | {"library": METHODS[method].library, "limit": patience} | answer
            append(record, records, options.records)
            shown = f"{record['seconds']:9.3f} s, error {record['error']:.1e}" if record["ok"] else record["reason"]
            print(f"{n:5} {name:24} {task:9} {request['level']:<7g} {method:32} {shown}", flush=True)


def patience_for(request: Record, records: dict[tuple[Any, ...], Record], options: argparse.Namespace) -> float:
    """Seconds for one run of a rival; one for all levels of a task, so that a time-out tells of harder ones."""
    if options.patience is None:
        return float("inf")
    levels = ({**request, "level": level, "method": OURS} for level in LEVELS[request["task"]])
    ours = [records.get(key(cell), {"ok": False}) for cell in levels]
    if not all(r["ok"] for r in ours):
        return float("inf")
    return max(_SHORTEST, options.patience * max(r["seconds"] for r in ours))


# -- what the records say ------------------------------------------------------------------------------------


def summarise(records: dict[tuple[Any, ...], Record], preset: str, threads: int) -> Report:
    """The records of one number of threads as a report: a summary, success rates, and every cell."""
    cells: dict[tuple[Any, ...], dict[str, Record]] = defaultdict(dict)
    for r in records.values():
        if r["threads"] == threads:
            cells[r["task"], r["level"], r["n"], r["set"]][r["method"]] = r
    cells = {c: m for c, m in cells.items() if OURS in m and any(r["library"] != OURS for r in m.values())}
    report = Report("entropic", "Entropic and certified transport beside other libraries", preset, [100])
    seconds = round(sum(r.get("seconds", 0.0) for m in cells.values() for r in m.values()))
    report.provenance = provenance() | {"threads": threads, "seconds": seconds}
    libraries = ", ".join(f"{p} {version(p)}" for p in ("POT", "ott-jax", "jax", "geomloss", "mdot-tnt", "regot"))
    names, sizes = {c[3] for c in cells}, sorted({c[2] for c in cells})
    limits = [r["limit"] for m in cells.values() for r in m.values() if r["library"] != OURS]
    whole = len(names) == len(problems.SETS) and len(sizes) > 1
    report.notes.append(
        f"{'All' if whole else f'{len(names)} of the {len(problems.SETS)}'} sets, n = {', '.join(map(str, sizes))}. "
        f"A run of a rival was stopped after {min(limits, default=0):.3g} to {max(limits, default=0):.3g} s. Where no "
        "rival was done the ratio is that of the time they were given, which is less than the true one."
    )
    rivals = {n: max(len(m) - 1 for c, m in cells.items() if c[2] == n) for n in sizes}
    if len(set(rivals.values())) > 1:
        told = ", ".join(f"{rivals[n]} at n = {n}" for n in sizes)
        report.notes.append(
            f"Rivals and settings of ours that took part in a cell, at most: {told}. At the larger size these were the "
            "fastest of the same cell at the smaller one."
        )
    report.notes.append(f"{processor()}; {libraries}. Seconds are those of the runs that succeeded.")
    report.data = [
        "clouds and costs drawn at random; digits (scikit-learn), photographs (scikit-image), Fashion-MNIST",
    ]

    summary = report.table(
        "brenier beside the fastest rival",
        ["cells", "brenier fastest", "median ratio, rival / brenier", "worst ratio", "brenier done", "some rival done"],
    )
    for task, levels in LEVELS.items():
        for n in sorted({c[2] for c in cells}):
            for level in (*levels, None):
                some = {c: m for c, m in cells.items() if c[0] == task and c[2] == n and level in (c[1], None)}
                if some:
                    summary.add(f"{task} {'all' if level is None else f'{level:g}'}, n = {n}", *standing(some.values()))
    if cells:
        summary.add("all", *standing(cells.values()))

    rates = report.table("Success rate of each method", ["cells", "done", "why not, most often"])
    for method in METHODS:
        mine = [m[method] for m in cells.values() if method in m and m[method].get("reason") != "needs points"]
        if mine:
            reasons = [r["reason"].partition(":")[0] for r in mine if not r["ok"]]
            why = max(set(reasons), key=reasons.count) if reasons else ""
            rates.add(method, len(mine), f"{sum(r['ok'] for r in mine) / len(mine):.0%}", why)

    each = report.table("Every cell, seconds", ["brenier", "fastest rival", "seconds of it", "rival / brenier"])
    for (task, level, n, name), methods in sorted(cells.items()):
        ours, rival = methods[OURS], fastest(methods)
        bound = "" if rival else "> "
        ratio = f"{bound}{least(methods) / ours['seconds']:.2f}" if ours["ok"] else ""
        each.add(
            f"{task} {level:g}, n = {n}, {name}",
            f"{ours['seconds']:.3f}" if ours["ok"] else ours["reason"],
            rival["method"] if rival else "none",
            f"{rival['seconds']:.3f}" if rival else "",
            ratio,
        )
    report.notes += disagreements(cells)
    return report


def fastest(methods: dict[str, Record]) -> Record | None:
    done = [r for r in methods.values() if r["library"] != OURS and r["ok"]]
    return min(done, key=lambda r: r["seconds"]) if done else None


def least(methods: dict[str, Record]) -> float:
    """Seconds that every rival took at least: one that was stopped took as long as it was given."""
    return min((seconds_at_least(r) for r in methods.values() if r["library"] != OURS), default=math.inf)


def seconds_at_least(record: Record | None) -> float:
    if record is None or not (record["ok"] or record["reason"].startswith("time-out")):
        return math.inf
    return float(record["seconds"] if record["ok"] else record["limit"])


def standing(cells: Any) -> list[Any]:
    """Cells, share won, ratios, success rates."""
    cells = list(cells)
    pairs = [(m[OURS], fastest(m)) for m in cells]
    won = sum(o["ok"] and (r is None or o["seconds"] <= r["seconds"]) for o, r in pairs)
    ratios = [least(m) / m[OURS]["seconds"] for m in cells if m[OURS]["ok"]]
    return [
        len(cells),
        f"{won / len(cells):.0%}",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        f"{min(ratios):.2f}" if ratios else "",
        f"{sum(o['ok'] for o, _ in pairs) / len(cells):.0%}",
        f"{sum(r is not None for _, r in pairs) / len(cells):.0%}",
    ]


def disagreements(cells: dict[tuple[Any, ...], dict[str, Record]]) -> list[str]:
    """Methods whose entropic value is not that of brenier: they solved something else."""
    out = []
    for (task, level, n, name), methods in sorted(cells.items()):
        if task != "marginal" or not methods[OURS]["ok"]:
            continue
        value = methods[OURS]["value"]
        for method, r in methods.items():
            if r["ok"] and abs(r["value"] - value) > 1e-4 * abs(value):
                values = f"{r['value']:.8g} and {value:.8g}"
                out.append(f"{method} and brenier disagree at {name}, n = {n}, {level:g}: {values}.")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three sets of 1,024 points, under five minutes")
    parser.add_argument("--sets", nargs="+", choices=list(problems.SETS), metavar="NAME", help=f"{list(problems.SETS)}")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="NAME", help=f"{list(METHODS)}")
    parser.add_argument("--rivals", nargs="+", metavar="LIBRARY", help="only the methods of these libraries, and ours")
    parser.add_argument("--tasks", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, help=f"seconds for one run; {QUICK_LIMIT:g} with --quick")
    parser.add_argument("--patience", type=float, help="a rival may take so many times as long as brenier")
    parser.add_argument("--best", type=int, help="only so many rivals of each cell, those of the size before")
    parser.add_argument("--records", type=Path, default=ROOT / "build" / "bench" / "entropic.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--report", action="store_true", help="only write the report of the records")
    options = parser.parse_args()
    options.sets = options.sets or list(problems.QUICK if options.quick else problems.SETS)
    options.sizes = options.sizes or ([1024] if options.quick else [1024, 4096])
    options.methods = options.methods or list(QUICK_METHODS if options.quick else METHODS)
    if options.rivals:
        options.methods = [m for m in options.methods if METHODS[m].library in (OURS, *options.rivals)]
    if options.quick:
        options.limit = options.limit or QUICK_LIMIT
    records = read(options.records)
    start = time.perf_counter()
    if not options.report:
        run_cells(options, records)
    whole = {(r["set"], r["n"]) for r in records.values()} >= {(s, n) for s in problems.SETS for n in (1024, 4096)}
    report = summarise(records, "quick" if options.quick else "full" if whole else "part", options.threads)
    path = report.save(options.out)
    for table in report.tables[:2]:
        print(f"\n{table.title}\n{'':24} " + "  ".join(table.columns))
        for row, cells in table.rows.items():
            print(f"{row:32} " + "  ".join(f"{cell!s:>12}" for cell in cells))
    print(*report.notes, f"{time.perf_counter() - start:.0f} s; written to {path}", sep="\n")


if __name__ == "__main__":
    main()
