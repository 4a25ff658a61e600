"""The first thing `brenier demo` shows: one real problem, at two epsilon and exactly, with certificates."""

from __future__ import annotations

import time

from .. import data
from ..api import solve
from ..problem import Relative
from .report import Report, provenance

__all__ = ["three_ways"]


def three_ways() -> Report:
    """Transport one real population of cells onto another at two epsilon and exactly."""
    begin = time.perf_counter()
    report = Report("demo", "One transport problem, three ways", preset="demo", seeds=[])
    try:
        yeast = data.yeast_dose_response()
        info = data.info("yeast-dose-response")
        x, y = yeast.clouds[-1], yeast.clouds[0]
        what = f"yeast cells at the lowest dose ({len(x)}) onto those at the highest ({len(y)}), 8 channels"
    except (data.DataUnavailable, ImportError) as error:
        report.notes.append(f"the cytometry set could not be had, so digits stand in: {str(error).splitlines()[0]}")
        digits = data.digits()
        info = data.info("digits")
        x, y = (digits.images[digits.labels == k].reshape(-1, 64) / 16 for k in (3, 8))
        what = f"handwritten threes ({len(x)}) onto eights ({len(y)}), 64 pixels"
    report.data.append(f"{info.source}; {info.licence}")
    columns = ("transport cost", "optimum at least", "relative gap", "marginal error", "iterations", "seconds")
    table = report.table(what, columns)
    for name, epsilon in (
        ("epsilon = 0.05 x mean cost", Relative(0.05)),
        ("epsilon = 0.01 x mean cost", Relative(0.01)),
        ("exact", None),
    ):
        solution = solve(x, y, epsilon=epsilon)
        c = solution.certificate
        table.add(
            f"{name} ({solution.stats['solver']})",
            float(solution.linear_value),
            float(c.dual),
            float(c.relative_gap),
            float(max(map(float, c.marginal_errors))),
            int(solution.stats["n_iter"]),
            float(solution.stats["seconds"]),
        )
    figure = solution.plot(lines=400).figure
    report.figure("plan", f"The exact plan: {what}; the 400 strongest lines.", figure)
    report.provenance = {**provenance(), "seconds": round(time.perf_counter() - begin, 2)}
    report.provenance["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return report
