"""CMonge: one map that is told the condition, against maps of one condition, on conditions that it has not seen.

Parts: (A) yeast at doses that are held out, and (B) held-out cells of doses that are not; (C) pairs of drugs, half of
which are held out, where the drugs are made and the cells are real; (D) myoblasts at a time that is held out. The
paper's sci-Plex 3 and 4i ship with no package; (A) and (D) stand in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from .. import data
from ..api import solve
from ..losses import mmd, monge_gap
from ..maps.training import BANDWIDTHS
from ..systems.cells.conditional_monge_gap import CMonge, dose_context
from .report import Claim, Report
from .runner import Config, Run

__all__ = ["PRESETS", "ConditionalMongeGapConfig", "run"]

Array = NDArray[np.float64]
Log = Callable[[str], None]

_CONTROL = "C9"
_HELD_OUT = ("B4", "B5", "B6", "B11", "B12", "C1")  # two blocks of three doses
_DRUGS, _DESCRIPTORS, _RANK = 12, 5, 4
_TIMES = (24, 72)  # hours, and 48 is held out
_GENES, _COMPONENTS = 500, 20


@dataclass(frozen=True)
class ConditionalMongeGapConfig(Config):
    """Sizes of the parts.

    Attributes:
        max_iter: iterations of maps of all conditions.
        single_iter: iterations of maps of one condition.
        batch: cells of either side in an iteration.
        singles: (A) and (B) compare with maps of one condition at so many held-out and so many other doses.
        pairs_iter: iterations of (C).
        n_pairs: held-out pairs on which (C) measures.
        n_gap: cells of the exact gaps.
    """

    max_iter: int = 1200
    single_iter: int = 600
    batch: int = 128
    singles: tuple[int, int] = (6, 14)
    pairs_iter: int = 2500
    n_pairs: int = 33
    n_gap: int = 1024


PRESETS = {
    "smoke": ConditionalMongeGapConfig(
        "smoke", (100,), max_iter=5, single_iter=5, batch=32, singles=(1, 1), pairs_iter=5, n_pairs=2
    ),
    "quick": ConditionalMongeGapConfig(
        "quick", (100,), max_iter=400, single_iter=300, singles=(2, 2), pairs_iter=800, n_pairs=12
    ),
    "full": ConditionalMongeGapConfig("full", tuple(range(100, 105))),
}


_Run = Run[ConditionalMongeGapConfig]
Scores = dict[str, list[float]]  # method to one number a condition


def run(config: ConditionalMongeGapConfig, log: Log = lambda line: None) -> Report:
    """Run all parts."""
    report = Report("conditional-monge-gap", "CMonge: one map for all conditions", config.preset, list(config.seeds))
    for slug in ("yeast-dose-response", "pbmc68k-reduced", "hsmm"):
        info = data.info(slug)
        report.data.append(f"{slug}: {info.source}; {info.licence}")
    report.notes += [
        f"All maps of a part have the same network, loss and optimiser, and batches of {config.batch}. Maps of all "
        f"conditions have {config.max_iter} iterations (CMonge in (C) {config.pairs_iter}), those of one condition "
        f"{config.single_iter}; the paper's have 10,000, and 1,000 to 5,000.",
        "Numbers are means over conditions of what was measured on each, then over seeds. MMD^2 is the mean over "
        "the kernels exp(-gamma ||x - y||^2), gamma in {2, 1, 0.5, 0.1, 0.01, 0.005}; W2 and gaps are exact.",
        "Scales, components and genes are fitted without held-out conditions.",
        "sci-Plex 3 and 4i ship with no package.",
    ]
    parts = _Run(config, report, log)
    _yeast(parts)
    _pairs(parts)
    _times(parts)
    return report


def w2(x: Array, y: Array, a: Array | None = None) -> float:
    """Exact Wasserstein-2 distance."""
    return float(np.sqrt(max(float(solve(x, y, a=a).value), 0.0)))


def discrepancy(x: Array, y: Array, a: Array | None = None) -> float:
    """Squared mean discrepancy, the mean over the bandwidths."""
    return float(mmd(x, y, a, bandwidth=BANDWIDTHS))


def between(x: Array, y: Array, t: float) -> tuple[Array, Array]:
    """The cloud at a share t of the way from x to y along the exact plan, and its masses."""
    plan = solve(x, y).plan.sparse()
    return (1 - t) * x[plan.row] + t * y[plan.col], plan.data


def halves(cells: Array, rng: np.random.Generator, share: float = 0.3) -> tuple[Array, Array]:
    """Training cells, and those that are held out."""
    order, count = rng.permutation(len(cells)), round(share * len(cells))
    return cells[order[count:]], cells[order[:count]]


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _map(run: _Run, seed: int, **options: Any) -> CMonge:
    sizes = {"max_iter": run.config.max_iter, "batch_size": run.config.batch, "lr": 3e-3}
    return CMonge(**{**sizes, "sizes": 16, "seed": seed, **options})


def _unconditional(estimator: CMonge, control: Array, treated: Mapping[Any, Array]) -> CMonge:
    """One map of the same kind for all conditions, which is told nothing."""
    return estimator.fit(control, treated, {key: [0.0] for key in treated})


def _relative_gap(estimator: CMonge, control: Array, context: Any, limit: int) -> float:
    """The exact gap over the mean displacement."""
    x = control[:limit]
    moved = estimator.predict(x, context)
    gap = float(monge_gap(x, moved, cost=estimator.cost, convention="exact"))
    return gap / float(np.linalg.norm(moved - x, axis=1).mean())


def _note(scores: dict[str, Scores], method: str, x: Array, y: Array, a: Array | None = None) -> None:
    for name, measure in (("MMD^2", discrepancy), ("W2", w2)):
        scores.setdefault(name, {}).setdefault(method, []).append(measure(x, y, a))


def _tabulate(run: _Run, title: str, found: list[dict[str, Scores]]) -> dict[str, dict[str, float]]:
    """A table of methods by metrics, over seeds; returns the means."""
    table = run.report.table(title, ("MMD^2", "W2"))
    means: dict[str, dict[str, float]] = {}
    for method in found[0]["MMD^2"]:
        cells = [[_mean(scores[name][method]) for scores in found] for name in table.columns]
        table.add(method, *cells)
        means[method] = {name: _mean(values) for name, values in zip(table.columns, cells)}
    return means


# -- (A), (B) yeast ------------------------------------------------------------------------------------------


def _yeast(run: _Run) -> None:
    config, report = run.config, run.report
    wells = data.yeast_dose_response(preprocess=False).wells
    yeast = data.yeast_dose_response(fit_on=[w for w in wells if w not in _HELD_OUT])
    cloud, dose = dict(zip(yeast.wells, yeast.clouds)), dict(zip(yeast.wells, map(float, yeast.doses)))
    contexts = {w: dose_context(dose[w]) for w in wells if w != _CONTROL}
    trained = [w for w in contexts if w not in _HELD_OUT]
    outside: list[dict[str, Scores]] = []
    inside: list[dict[str, Scores]] = []
    ratios: list[dict[str, float]] = []  # of one map per condition, where there are some
    gaps: dict[str, list[float]] = {}
    curves: dict[str, Array] = {}  # mean fluorescence by dose
    for seed in config.seeds:
        rng = np.random.default_rng(seed)
        split = {well: halves(cells, rng) for well, cells in cloud.items()}
        control, control_test = split[_CONTROL]
        treated = {well: split[well][0] for well in trained}
        run.log(f"(A) seed {seed}, all doses")
        one = _map(run, seed).fit(control, treated, contexts)
        run.log(f"(A) seed {seed}, one map that is told nothing")
        blind = _unconditional(_map(run, seed), control, treated)
        far, near = config.singles
        alone = {}
        for well in (*_HELD_OUT[:: max(1, 6 // far)][:far], *trained[:: max(1, 14 // near)][:near]):
            run.log(f"(A) seed {seed}, a map for {well} alone")
            alone[well] = _map(run, seed, max_iter=config.single_iter).fit(control, {well: split[well][0]}, contexts)
        gone: dict[str, Scores] = {}
        kept: dict[str, Scores] = {}
        single: dict[str, list[tuple[float, float]]] = {"out": [], "in": []}
        for well in contexts:
            others, y = split[well]
            scores = gone if well in _HELD_OUT else kept
            predicted = one.predict(control_test, contexts[well])
            _note(scores, "identity", control_test, y)
            _note(scores, "one map, told nothing", blind.predict(control_test, [0.0]), y)
            _note(scores, "CMonge", predicted, y)
            if well in _HELD_OUT:
                nearest = min(trained, key=lambda w: abs(np.log(dose[w] / dose[well])))
                _note(scores, "real cells of the nearest training dose", split[nearest][1], y)
                above, below = (
                    min((w for w in trained if sign * (dose[w] - dose[well]) > 0),
                        key=lambda w: abs(dose[w] - dose[well]))
                    for sign in (1, -1)
                )  # fmt: skip
                share = float(np.log(dose[well] / dose[below]) / np.log(dose[above] / dose[below]))
                path, masses = between(treated[below], treated[above], share)
                _note(scores, "linear interpolation along the plan", path, y, masses)
            _note(scores, "other cells of the same dose", others, y)
            gaps.setdefault(well, []).append(_relative_gap(one, control_test, contexts[well], config.n_gap))
            if well in alone:
                own = alone[well].predict(control_test, well)
                pair = discrepancy(predicted, y), discrepancy(own, y)
                single["out" if well in _HELD_OUT else "in"].append(pair)
        outside.append(gone)
        inside.append(kept)
        ratios.append({k: _mean([p[0] for p in v]) / _mean([p[1] for p in v]) for k, v in single.items()})
        table = report.table(
            f"(A), (B) MMD^2 beside maps of one dose, seed {seed}", ("CMonge", "map of one dose", "doses compared")
        )
        for key, label in (("out", "held-out doses"), ("in", "held-out cells of training doses")):
            table.add(label, _mean([p[0] for p in single[key]]), _mean([p[1] for p in single[key]]), len(single[key]))
        if seed == config.seeds[0]:
            green = yeast.channels.index("FITC-A")
            for label, values in (
                ("real, training doses", [split[w][1][:, green] for w in trained]),
                ("real, held-out doses", [split[w][1][:, green] for w in _HELD_OUT]),
                ("CMonge", [one.predict(control_test, c)[:, green] for c in contexts.values()]),
                ("one map, told nothing", [blind.predict(control_test, [0.0])[:, green] for _ in contexts]),
            ):
                curves[label] = np.array([v.mean() for v in values])
    far_means = _tabulate(run, "(A) Yeast, held-out doses", outside)
    _tabulate(run, "(B) Yeast, held-out cells of training doses", inside)
    table = report.table("(A), (B) Exact gap over mean displacement, test controls", ("largest", "mean"))
    for label, some in (("training doses", trained), ("held-out doses", list(_HELD_OUT))):
        by_seed = list(zip(*(gaps[w] for w in some)))
        table.add(label, [max(v) for v in by_seed], [_mean(list(v)) for v in by_seed])
    ours = far_means["CMonge"]["MMD^2"]
    report.claims += [
        Claim.at_most(
            "(A) held-out doses: MMD^2 over that of one map that is told nothing",
            ours / far_means["one map, told nothing"]["MMD^2"],
            0.5,
        ),
        Claim.at_most("(A) held-out doses: MMD^2 over that of no map", ours / far_means["identity"]["MMD^2"], 0.2),
        Claim.at_most(
            "(A) held-out doses: MMD^2 over that of maps of one dose, trained there",
            _mean([r["out"] for r in ratios]),
            1.6,
        ),
        Claim.at_most(
            "(B) held-out cells of training doses: MMD^2 over that of maps of one dose",
            _mean([r["in"] for r in ratios]),
            1.3,
        ),
        Claim.at_most(
            "(A), (B) largest exact gap over mean displacement, of any dose", max(max(v) for v in gaps.values()), 0.05
        ),
    ]
    figure, ax = plt.subplots(figsize=(6, 3.2))
    axis = {"real, training doses": trained, "real, held-out doses": list(_HELD_OUT)}
    for label, means in curves.items():
        style = {"ls": "", "marker": "o", "ms": 4} if label in axis else {"lw": 1.2}
        ax.plot([dose[w] for w in axis.get(label, list(contexts))], means, label=label, **style)
    ax.set(xscale="log", xlabel="dose of the inducer", ylabel="mean GFP, standardised")
    ax.legend(frameon=False)
    report.figure("yeast", "Mean fluorescence by dose, real and predicted, first seed.", figure)


# -- (C) pairs of drugs --------------------------------------------------------------------------------------


def drug_effects(d: int, rng: np.random.Generator) -> tuple[Array, Callable[[Array, tuple[int, ...]], Array]]:
    """Descriptors of drugs (12, 5), and what a set of drugs does to cells (n, d): the shifts of each, added.

    A drug shifts along a few directions, by amounts that are linear in its descriptors and change with the cell.
    """
    descriptors = rng.normal(size=(_DRUGS, _DESCRIPTORS))
    strength = rng.normal(size=(_DESCRIPTORS, _RANK)) / np.sqrt(_DESCRIPTORS)
    directions = np.linalg.qr(rng.normal(size=(d, _RANK)))[0].T
    gates = rng.normal(size=(d, _RANK)) / np.sqrt(d)

    def treat(cells: Array, drugs: tuple[int, ...]) -> Array:
        amount = 8 * (1 + 0.5 * np.tanh(cells @ gates))  # (n, rank)
        return cells + sum((amount * (descriptors[k] @ strength)) @ directions for k in drugs)

    return descriptors, treat


def _pairs(run: _Run) -> None:
    config, report = run.config, run.report
    components = data.pbmc68k_reduced().components
    found: dict[str, list[float]] = {}
    shares: list[float] = []
    gaps: list[float] = []
    swaps: list[float] = []
    wide: dict[str, Any] = {"hidden": (128, 128), "sizes": 128, "lr": 5e-3}
    for seed in config.seeds:
        rng = np.random.default_rng(seed)
        cells = components[rng.permutation(len(components))]
        cells = (cells - cells[:400].mean(0)) / np.sqrt(cells[:400].var(0).mean())
        control, base, control_test, base_test = np.split(cells, [200, 400, 550])
        descriptors, treat = drug_effects(cells.shape[1], rng)
        singles = [(k,) for k in range(_DRUGS)]
        pairs: list[tuple[int, ...]] = list(combinations(range(_DRUGS), 2))
        order = rng.permutation(len(pairs))
        seen = [pairs[k] for k in order[: len(pairs) // 2]]
        unseen = [pairs[k] for k in order[len(pairs) // 2 :]][: config.n_pairs]
        contexts = {drugs: descriptors[list(drugs)] for drugs in (*singles, *pairs)}
        treated = {drugs: treat(base, drugs) for drugs in (*singles, *seen)}
        run.log(f"(C) seed {seed}, {len(singles)} drugs and {len(seen)} pairs")
        one = _map(run, seed, mode="set", max_iter=config.pairs_iter, **wide).fit(control, treated, contexts)
        run.log(f"(C) seed {seed}, one map that is told nothing")
        blind = _unconditional(_map(run, seed, **{**wide, "sizes": 1}), control, treated)
        scores: dict[str, list[float]] = {}
        for drugs in unseen:
            y = treat(base_test, drugs)
            predicted = one.predict(control_test, contexts[drugs])
            alone = [one.predict(control_test, contexts[k,]) for k in drugs]
            real = [treat(base, (k,)) for k in drugs]
            for name, value in (
                ("identity", discrepancy(control_test, y)),
                ("one map, told nothing", discrepancy(blind.predict(control_test, [0.0]), y)),
                ("CMonge, the better of the two drugs alone", min(discrepancy(x, y) for x in alone)),
                ("real cells, the better of the two drugs alone", min(discrepancy(x, y) for x in real)),
                ("CMonge, the pair", discrepancy(predicted, y)),
                ("other cells of the same pair", discrepancy(treat(base, drugs), y)),
            ):
                scores.setdefault(name, []).append(value)
            swaps.append(float(np.abs(predicted - one.predict(control_test, contexts[drugs][::-1].copy())).max()))
            gaps.append(_relative_gap(one, control_test, contexts[drugs], config.n_gap))
        for name, values in scores.items():
            found.setdefault(name, []).append(_mean(values))
        best = min(_mean(values) for name, values in scores.items() if "alone" in name)
        shares.append(_mean(scores["CMonge, the pair"]) / best)
    table = report.table("(C) Blood cells, unseen pairs of drugs that are made", ("MMD^2",))
    for name, values in found.items():
        table.add(name, values)
    report.claims += [
        Claim.at_most("(C) unseen pairs: MMD^2 over that of the best prediction from one drug", _mean(shares), 0.6),
        Claim.at_most("(C) largest change when the drugs of a pair are swapped", max(swaps), 1e-6),
        Claim.at_most("(C) largest exact gap over mean displacement, of any unseen pair", max(gaps), 0.05),
    ]


# -- (D) time ------------------------------------------------------------------------------------------------


def _times(run: _Run) -> None:
    config, report = run.config, run.report
    course = data.hsmm()
    expression = np.log1p(course.expression)
    known = course.hours != 48
    variable = np.argsort(-expression[known].var(0), kind="stable")[:_GENES]
    components = PCA(_COMPONENTS, random_state=0).fit(expression[known][:, variable])
    cells = components.transform(expression[:, variable])
    cells = cells / np.sqrt(cells[known].var(0).mean())
    cloud = {int(h): cells[course.hours == h] for h in np.unique(course.hours)}
    contexts = {h: [h / 72] for h in _TIMES}
    control, y = cloud[0], cloud[48]
    treated = {h: cloud[h] for h in _TIMES}
    path, masses = between(cloud[24], cloud[72], 0.5)
    found: list[dict[str, Scores]] = []
    gaps: list[float] = []
    for seed in config.seeds:
        run.log(f"(D) seed {seed}")
        one = _map(run, seed).fit(control, treated, contexts)
        blind = _unconditional(_map(run, seed), control, treated)
        scores: dict[str, Scores] = {}
        _note(scores, "identity", control, y)
        _note(scores, "one map, told nothing", blind.predict(control, [0.0]), y)
        _note(scores, "CMonge", one.predict(control, [48 / 72]), y)
        _note(scores, "linear interpolation along the plan", path, y, masses)
        _note(scores, "real cells at 24 h", cloud[24], y)
        _note(scores, "real cells at 72 h", cloud[72], y)
        order = np.random.default_rng(seed).permutation(len(y))
        _note(scores, "halves of the cells at 48 h", y[order[: len(y) // 2]], y[order[len(y) // 2 :]])
        found.append(scores)
        gaps += [_relative_gap(one, control, [h / 72], config.n_gap) for h in (24, 48, 72)]
    means = _tabulate(run, f"(D) Myoblasts at 48 h, {len(y)} cells, trained on 24 and 72 h", found)
    report.notes.append(f"(D) predicts from all {len(control)} cells at 0 h, which the maps were trained on.")
    ours = means["CMonge"]["W2"]
    report.claims += [
        Claim.at_most("(D) 48 h: W2 over that of no map", ours / means["identity"]["W2"], 1.0),
        Claim.at_most(
            "(D) 48 h: W2 over that of one map that is told nothing", ours / means["one map, told nothing"]["W2"], 1.0
        ),
        Claim.at_most("(D) largest exact gap over mean displacement, of any time", max(gaps), 0.05),
    ]
