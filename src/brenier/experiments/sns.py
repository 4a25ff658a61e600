"""SNS: Newton steps on a sparse Hessian against Sinkhorn, to the same and to higher accuracy, at epsilon = 1/1200.

Parts: (A) random assignment, the paper's own generator; (B) pairs of handwritten digits, squared-Euclidean and
city-block cost between pixels; (C) two photographs. Errors are relative L1 errors of the marginals.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom

from .. import data
from ..api import solve
from ..errors import NotConvergedWarning
from ..geometry import CostMatrix, Geometry, Grid
from ..solution import Solution
from ..solvers import Fixed, Plain, Sinkhorn, Solver, SparseNewton
from .report import Claim, Report, Table
from .runner import Config

__all__ = ["PRESETS", "SNSConfig", "run"]

Array = NDArray[np.float64]
Log = Callable[[str], None]

_EPSILON = 1 / 1200
_TOL = 1e-12
_SINKHORN_TOL = 1e-6
_COLUMNS = (
    "share converged",
    "marginal error",
    "iterations",
    "Newton steps",
    "passes over all pairs",
    "conjugate gradients",
    "seconds",
)


@dataclass(frozen=True)
class SNSConfig(Config):
    """Sizes of the parts.

    Attributes:
        n: rows and columns of (A).
        side: pixels of an image of (B) and (C) along each axis.
        sinkhorn_cap: iterations at which Sinkhorn is stopped.
        city_block_cap: the same for the city-block cost of (B).
        plain: also run Sinkhorn as the paper does, without schedule and over-relaxation, on so many seeds.
        n_pot: rows and columns of the comparison with POT.
    """

    n: int = 500
    side: int = 28
    sinkhorn_cap: int = 5000
    city_block_cap: int = 5000
    plain: int = 5
    n_pot: int = 100


PRESETS = {
    "smoke": SNSConfig("smoke", (100,), n=60, side=8, sinkhorn_cap=300, city_block_cap=300, plain=1, n_pot=30),
    "quick": SNSConfig("quick", (100, 101), sinkhorn_cap=2000, city_block_cap=1000, plain=1),
    "full": SNSConfig("full", tuple(range(100, 105)), city_block_cap=3000, plain=2),
}


@dataclass
class _Trace:
    """One solve: the answer, its time, and the error as iterations and passes went by."""

    solution: Solution
    seconds: float
    passes: list[int] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def n_iter(self) -> int:
        return int(self.solution.stats["n_iter"])

    @property
    def converged(self) -> bool:
        return self.solution.status.ok

    @property
    def newton(self) -> int:
        return int(self.solution.stats.get("n_newton", 0))

    @property
    def total_passes(self) -> int:
        return int(self.solution.stats.get("kernel_evaluations", 2 * self.n_iter))

    @property
    def marginal_error(self) -> float:
        """Both marginals, measured anew."""
        return float(sum(float(e) for e in self.solution.certificate.marginal_errors))


def _trace(geometry: Geometry, a: Array, b: Array, solver: Solver[Any], epsilon: float = _EPSILON) -> _Trace:
    passes: list[int] = []
    iterations: list[int] = []
    errors: list[float] = []

    def watch(iteration: int, state: Any) -> None:
        if hasattr(state, "items"):
            item = state.items[0]
            error, count = (item.error if item.settled and not item.sweeps else math.inf), item.record.evaluations
        else:
            error, count = float(state.error.max()), 2 * iteration
        if math.isfinite(error):
            passes.append(count)
            iterations.append(iteration)
            errors.append(max(error, 1e-17))

    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # told in the table
        solution = solve(
            geometry, a=torch.from_numpy(a), b=torch.from_numpy(b), epsilon=epsilon, solver=solver, callback=watch
        )
    seconds = time.perf_counter() - begin
    trace = _Trace(solution, seconds, passes, iterations, errors)
    if not iterations or iterations[-1] < trace.n_iter:  # the driver ends before it calls back
        passes.append(trace.total_passes)
        iterations.append(trace.n_iter)
        errors.append(max(float(solution.stats["marginal_error"]), 1e-17))
    return trace


def _add(table: Table, name: str, runs: list[_Trace]) -> None:
    cg = [sum(r.solution.stats.get("cg_iterations", [])) for r in runs]
    table.add(
        name,
        float(np.mean([r.converged for r in runs])),
        [r.marginal_error for r in runs],
        [r.n_iter for r in runs],
        [r.newton for r in runs],
        [r.total_passes for r in runs],
        cg,
        [r.seconds for r in runs],
    )


_SNS = SparseNewton(tol=_TOL)


def _sinkhorns(cap: int) -> tuple[Sinkhorn, Sinkhorn]:
    ours = Sinkhorn(tol=_SINKHORN_TOL, max_iter=cap)
    return ours, replace(ours, schedule=Fixed(), relaxation=Plain())


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _steps(runs: list[_Trace]) -> float:
    """Mean Newton steps; infinite when a run did not reach its tolerance."""
    return _mean([float(r.newton) if r.converged else math.inf for r in runs])


def _share_of_iterations(fast: list[_Trace], slow: list[_Trace]) -> float:
    """Iterations over iterations. Where the slow one was stopped it would have needed more: an upper bound."""
    return _mean([float(r.n_iter) if r.converged else math.inf for r in fast]) / _mean([r.n_iter for r in slow])


def _share_of_seconds(fast: list[_Trace], slow: list[_Trace]) -> float:
    """Seconds over seconds, under the same conditions."""
    return _mean([r.seconds if r.converged else math.inf for r in fast]) / _mean([r.seconds for r in slow])


def _against(fast: list[_Trace], plain: list[_Trace], what: Callable[[list[_Trace], list[_Trace]], float]) -> float:
    """A ratio on the seeds that the paper's Sinkhorn ran on."""
    return what(fast[: len(plain)], plain)


def run(config: SNSConfig, log: Log = lambda line: None) -> Report:
    """Run all parts."""
    report = Report("sns", "SNS: Sinkhorn with sparse Newton iterations", config.preset, list(config.seeds))
    report.data.append("generated: C uniform on [0, 1], uniform masses; the paper's own generator")
    report.notes += [
        f"epsilon = 1/1200 for costs of maximum 1. SNS runs to {_TOL:g}, Sinkhorn to {_SINKHORN_TOL:g} only.",
        "There are two baselines: Sinkhorn as in the paper, on the first "
        f"{min(config.plain, len(config.seeds))} seeds, and this library's own Sinkhorn (epsilon schedule and "
        "over-relaxation), which is several times faster. Both face the same thresholds.",
        f"Sinkhorn is stopped after {config.sinkhorn_cap} iterations ({config.city_block_cap} for the city-block "
        "cost). A ratio to its iterations or seconds is then an upper bound.",
        "(B) uses scikit-learn's digits, enlarged, in place of MNIST. 0.01/pixels is added to each pixel.",
        "One pass over all pairs is the unit of work: 2 for a sweep of Sinkhorn, 3 or more for a Newton step.",
    ]
    curves: dict[str, dict[str, _Trace]] = {}
    _assignment(config, report, log, curves)
    _digits(config, report, log, curves)
    _photographs(config, report, log)
    _pot(config, report, log)
    _figures(report, curves)
    return report


# -- (A) random assignment -----------------------------------------------------------------------------------


def _assignment(config: SNSConfig, report: Report, log: Log, curves: dict[str, dict[str, _Trace]]) -> None:
    n = config.n
    ours, plain = _sinkhorns(config.sinkhorn_cap)
    options: dict[str, Solver[Any]] = {
        "SNS": _SNS,
        "SNS, the paper's warm start (20 sweeps at epsilon)": SparseNewton(tol=_TOL, sweeps=20, schedule=Fixed()),
        "SNS, no warm start": SparseNewton(tol=_TOL, sweeps=0, schedule=Fixed(), max_iter=200),
        "dense Newton": SparseNewton(tol=_TOL, density=1.0),
        "density 2/n, fixed": SparseNewton(tol=_TOL, density=2 / n, adaptive=False, max_iter=200),
        f"Sinkhorn to {_SINKHORN_TOL:g}": ours,
        f"Sinkhorn as in the paper, to {_SINKHORN_TOL:g}": plain,
    }
    runs: dict[str, list[_Trace]] = {name: [] for name in options}
    for number, seed in enumerate(config.seeds):
        log(f"(A) seed {seed}")
        C = CostMatrix(torch.from_numpy(np.random.default_rng(seed).random((n, n))))
        masses = np.full(n, 1 / n)
        for name, solver in options.items():
            if solver is not plain or number < config.plain:
                runs[name].append(_trace(C, masses, masses, solver))
    table = report.table(f"(A) Random assignment, {n} x {n}, uniform masses", _COLUMNS)
    for name, traces in runs.items():
        _add(table, name, traces)
    curves["(A) random assignment"] = {name: traces[0] for name, traces in runs.items()}
    fast, dense, poor = runs["SNS"], runs["dense Newton"], runs["density 2/n, fixed"]
    slow = runs[f"Sinkhorn to {_SINKHORN_TOL:g}"]
    paper = runs[f"Sinkhorn as in the paper, to {_SINKHORN_TOL:g}"]
    last = report.table("(A) The last errors, medians over seeds", ("fourth last", "third last", "second last", "last"))
    for name in ("SNS", "dense Newton", "density 2/n, fixed"):
        last.add(name, *(float(np.median([r.errors[-k] for r in runs[name]])) for k in (4, 3, 2, 1)))
    tails = [
        all(late <= early**1.5 for early, late in zip(r.errors[-3:], r.errors[-2:])) if r.converged else False
        for r in fast
    ]
    difference = max(abs(float(s.solution.value) / float(d.solution.value) - 1) for s, d in zip(fast, dense))
    report.claims += [
        Claim.at_most("(A) Newton steps to 1e-12, mean over seeds", _steps(fast), 20),
        Claim.at_most("(A) largest marginal error of SNS, measured anew", max(r.marginal_error for r in fast), 1e-12),
        Claim.at_most(
            "(A) all iterations of SNS to 1e-12 over those of Sinkhorn to 1e-6", _share_of_iterations(fast, slow), 0.05
        ),
        Claim.at_most(
            "(A) all iterations of SNS to 1e-12 over those of the paper's Sinkhorn to 1e-6",
            _against(fast, paper, _share_of_iterations),
            0.05,
        ),
        Claim.at_least(
            "(A) share of seeds on which the last three errors fall with order 1.5", float(np.mean(tails)), 1.0
        ),
        Claim.at_least(
            "(A) Newton steps at a fixed density of 2/n (capped at 200 iterations) over those of SNS",
            _mean([r.newton for r in poor]) / _mean([r.newton for r in fast]),
            2.0,
        ),
        Claim.at_most(
            "(A) largest difference of Newton steps between SNS and dense Newton",
            max(abs(s.newton - d.newton) for s, d in zip(fast, dense)),
            5,
        ),
        Claim.at_most("(A) largest relative difference of the value between SNS and dense Newton", difference, 1e-10),
    ]


# -- (B) digits ----------------------------------------------------------------------------------------------


def _density(image: Array, side: int) -> Array:
    """Pixels as a measure: enlarged or averaged to side x side, lifted by 0.01 of the mean."""
    if image.shape[0] <= side:
        image = zoom(image, side / image.shape[0], order=1)
    else:
        edges = [np.linspace(0, size, side + 1).astype(int)[:-1] for size in image.shape]
        sums = np.add.reduceat(np.add.reduceat(image, edges[0], 0), edges[1], 1)
        counts = [np.diff(np.append(e, size)) for e, size in zip(edges, image.shape)]
        image = sums / np.outer(*counts)
    out = np.maximum(image, 0).ravel()
    out = out / out.sum() + 0.01 / out.size
    return out / out.sum()


def _grid(side: int, p: int) -> Grid:
    """Pixels of a square image under |x - y|^p, the largest cost being 1."""
    axis = torch.arange(side, dtype=torch.float64) / ((side - 1) * 2 ** (1 / p))
    return Grid(axis, axis, p=p)


def _digits(config: SNSConfig, report: Report, log: Log, curves: dict[str, dict[str, _Trace]]) -> None:
    info = data.info("digits")
    report.data.append(f"digits: {info.source}; {info.licence}")
    images = data.digits().images
    side = config.side
    for p, name, cap in ((2, "squared Euclidean", config.sinkhorn_cap), (1, "city-block", config.city_block_cap)):
        ours, plain = _sinkhorns(cap)
        tol = _TOL if p == 2 else 1e-10
        sns = replace(_SNS, tol=tol)
        grid = _grid(side, p)
        C = CostMatrix(grid.tile())
        first: list[_Trace] = []
        second: list[_Trace] = []
        slow: list[_Trace] = []
        as_paper: list[_Trace] = []
        on_grid: list[_Trace] = []
        for number, seed in enumerate(config.seeds):
            log(f"(B) {name}, pair {seed}")
            i, k = np.random.default_rng(seed).choice(len(images), 2, replace=False)
            a, b = _density(images[i], side), _density(images[k], side)
            first.append(_trace(C, a, b, sns))
            slow.append(_trace(C, a, b, ours))
            second.append(_trace(C, a, b, sns))  # before and after: the machine may not be quiet
            on_grid.append(_trace(grid, a, b, ours))
            if number < config.plain:
                as_paper.append(_trace(C, a, b, plain))
        pixels = f"{side * side} x {side * side}"
        table = report.table(f"(B) Pairs of digits, {name} cost, {pixels}, SNS to {tol:g}", _COLUMNS)
        _add(table, "SNS", first)
        _add(table, f"Sinkhorn to {_SINKHORN_TOL:g}", slow)
        _add(table, f"Sinkhorn to {_SINKHORN_TOL:g} on the separable grid", on_grid)
        _add(table, f"Sinkhorn as in the paper, to {_SINKHORN_TOL:g}", as_paper)
        curves[f"(B) digits, {name} cost"] = {
            "SNS": first[0],
            f"Sinkhorn to {_SINKHORN_TOL:g}": slow[0],
            f"Sinkhorn as in the paper, to {_SINKHORN_TOL:g}": as_paper[0],
        }
        if p == 2:
            for one, other in zip(first, second):
                one.seconds = (one.seconds + other.seconds) / 2
            report.claims += [
                Claim.at_most("(B) squared Euclidean: Newton steps to 1e-12, mean over pairs", _steps(first), 20),
                Claim.at_most(
                    "(B) squared Euclidean: seconds of SNS to 1e-12 over Sinkhorn to 1e-6",
                    _share_of_seconds(first, slow),
                    1 / 3,
                ),
                Claim.at_most(
                    "(B) squared Euclidean: seconds of SNS to 1e-12 over the paper's Sinkhorn to 1e-6",
                    _against(first, as_paper, _share_of_seconds),
                    1 / 3,
                ),
            ]
        else:
            report.claims += [
                Claim.at_most(
                    "(B) city-block: all iterations of SNS to 1e-10 over those of Sinkhorn to 1e-6",
                    _share_of_iterations(first, slow),
                    0.5,
                ),
                Claim.at_most(
                    "(B) city-block: all iterations of SNS to 1e-10 over those of the paper's Sinkhorn to 1e-6",
                    _against(first, as_paper, _share_of_iterations),
                    0.5,
                ),
            ]


# -- (C) photographs -----------------------------------------------------------------------------------------


def _photographs(config: SNSConfig, report: Report, log: Log) -> None:
    try:
        pictures = data.photographs()
    except (data.DataUnavailable, ImportError) as error:
        report.notes.append(f"(C) is left out: {' '.join(str(error).split())}")
        return
    log("(C) camera and coins")
    info = data.info("photographs")
    report.data.append(f"photographs: {info.source}; {info.licence}")
    side = config.side
    a, b = (_density(pictures[name].astype(np.float64), side) for name in ("camera", "coins"))
    C = CostMatrix(_grid(side, 2).tile())
    ours, _ = _sinkhorns(config.sinkhorn_cap)
    table = report.table(f"(C) camera to coins, {side} x {side} pixels, squared Euclidean cost", _COLUMNS)
    result = _trace(C, a, b, _SNS)
    _add(table, "SNS", [result])
    _add(table, f"Sinkhorn to {_SINKHORN_TOL:g}", [_trace(C, a, b, ours)])
    value = float(result.solution.linear_value)
    report.notes.append(f"(C) W2 between the two photographs, largest distance 1: {math.sqrt(max(value, 0)):.4f}.")


# -- comparison with another library -------------------------------------------------------------------------


def _pot(config: SNSConfig, report: Report, log: Log) -> None:
    """Plans at an epsilon that the other library reaches too."""
    try:
        import ot
    except ImportError:
        report.notes.append("POT is not installed, so plans were not compared with it: pip install 'brenier[test]'.")
        return
    log("comparison with POT")
    n = config.n_pot
    distances = []
    for seed in config.seeds:
        C = np.random.default_rng(seed).random((n, n))
        masses = np.full(n, 1 / n)
        ours = _trace(CostMatrix(torch.from_numpy(C)), masses, masses, _SNS, epsilon=0.02)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = ot.bregman.sinkhorn_log(masses, masses, C, 0.02, numItermax=20_000, stopThr=1e-13)
        distances.append(float(np.abs(ours.solution.plan.dense().numpy() - theirs).sum()))
    table = report.table(f"Plan of SNS against that of POT's log-domain Sinkhorn, {n} x {n}, epsilon 0.02", ("L1",))
    table.add("difference", distances)
    report.claims.append(Claim.at_most("L1 distance of the plans of SNS and POT, largest", max(distances), 1e-8))


# -- figures -------------------------------------------------------------------------------------------------


def _figures(report: Report, curves: dict[str, dict[str, _Trace]]) -> None:
    styles = ("-", "--", ":", "-.", (0, (1, 1)), "-", "--")
    for name, axis, label in (
        ("iterations", "iterations", "iterations (sweeps and Newton steps)"),
        ("passes", "passes", "passes over all pairs"),
    ):
        figure, axes = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.8), sharey=True)
        for ax, (title, traces) in zip(np.atleast_1d(axes), curves.items()):
            for (which, trace), style in zip(traces.items(), styles):
                ax.loglog(getattr(trace, axis), trace.errors, linestyle=style, label=which)
            ax.set(title=title, xlabel=label)
            ax.legend(frameon=False, fontsize=6, loc="lower right")
        np.atleast_1d(axes)[0].set_ylabel("marginal error (L1, relative)")
        report.figure(name, f"Error against {label}, first seed; only iterations at the final epsilon.", figure)
