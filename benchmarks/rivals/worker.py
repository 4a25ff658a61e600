"""One process, one library: reads requests, one JSON object a line, and tells when the clock runs."""

from __future__ import annotations

import os
import sys

if hasattr(os, "sched_setaffinity"):  # for pools of threads that no variable limits, such as that of XLA
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])

import json
import statistics
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rivals import exact, judge, problems
from rivals.methods import MARGINAL_TOL, METHODS, Goal, quiet

_SHORT = 2.0  # seconds; shorter runs are repeated three times


@lru_cache(maxsize=1)
def problem_at(path: str) -> problems.Set:
    with np.load(path) as parts:
        return problems.Set(**{k: str(v) if v.dtype.kind == "U" else v for k, v in parts.items()})


def optimum(problem: problems.Set) -> float:
    """The unregularised optimum, which scales the ladders."""
    import torch

    import brenier

    a, b = torch.from_numpy(problem.a), torch.from_numpy(problem.b)
    return float(brenier.solve(brenier.CostMatrix(problem.C), a=a, b=b, solver="network-simplex").value)


def solve(request: dict[str, Any], say: Any) -> dict[str, Any]:
    method = METHODS[request["method"]]
    problem = problem_at(request["path"])
    if not method.sees_zeros:
        problem = problem.where_mass()
    goal = Goal(request["task"], request["level"], request["optimum"])
    if not method.takes(problem):
        return {"ok": False, "reason": "needs points"}
    method.load()
    given = method.ready(problem)
    best = float("inf")
    for setting in method.attempts(problem, goal):
        compiled = method.compiled(given, **setting)

        def timed(setting: dict[str, Any] = setting, compiled: Any = compiled) -> tuple[float, Any]:
            say({"clock": "on"})
            start = time.perf_counter()
            out = method.run(given, compiled, **setting)
            seconds = time.perf_counter() - start
            say({"clock": "off"})
            return seconds, out

        seconds, out = timed()
        answer = method.answer(given, out, **setting)
        record: dict[str, Any] = {}
        if goal.task == "gap":
            error, wanted = judge.relative_gap(problem, answer), goal.level
        else:
            error, wanted = judge.marginal_error(problem, answer), MARGINAL_TOL
            record["value"] = judge.entropic_value(problem, answer, goal.level * problem.mean_cost)
        best = min(best, error if error == error else float("inf"))
        if error <= wanted:
            if seconds < _SHORT:  # that one warmed up
                seconds = statistics.median(timed()[0] for _ in range(3))
            return record | {"ok": True, "seconds": seconds, "error": error, "setting": setting}
    return {"ok": False, "reason": f"not reached: {best:.2g}"}


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    quiet()

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["task"] == "optimum":
                say({"ok": True, "optimum": optimum(problem_at(request["path"]))})
            elif request["task"] == "exact":
                say(exact.solve(request, say))
            else:
                say(solve(request, say))
        except MemoryError:
            say({"ok": False, "reason": "memory"})
        except Exception as error:
            say({"ok": False, "reason": f"{type(error).__name__}: {error}"[:200]})


if __name__ == "__main__":
    main()
