"""Monge gap: what the term is claimed to do, with the same steps and networks with and without it.

Parts: (A) Gaussians, whose optimal map is known, and a convex network in the same time; (B) yeast cells at the lowest
and the highest doses; (C) other costs: the Euclidean distance in the plane and the geodesic one on the sphere; (D) gaps
that are known. The paper's 4i and sci-Plex cohorts ship with no package; (B) stands in for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_moons, make_s_curve
from torch import Tensor

from .. import data
from ..api import solve
from ..costs import Geodesic
from ..losses import monge_gap
from ..maps.icnn import ICNNMap
from ..maps.neural import MongeGapEstimator
from ..solvers import Gaussian, gaussian_cost, gaussian_transport
from ..systems.cells.monge_gap import Perturbation, learn_perturbation
from .report import Claim, Report
from .runner import Config, Run

__all__ = ["PRESETS", "MongeGapConfig", "run"]

Array = NDArray[np.float64]
Log = Callable[[str], None]
Sampler = Callable[[int, torch.Generator], Tensor]

_LOW, _HIGH = ("C7", "C8", "C9"), ("B1", "B2", "B3")
_NETS = {"plain": False, "residual": True}  # whether residual
_SEGMENTS = 200  # mapped pairs whose crossings are counted


@dataclass(frozen=True)
class MongeGapConfig(Config):
    """Sizes of the parts.

    Attributes:
        max_iter: iterations of (A) and (B).
        toy_iter: iterations of (C).
        batch: points of either side in an iteration.
        n_map: fresh points on which maps of (A) are compared with the optimal one.
        n_gap: of these, those of the exact gap; and points of the assignment on the sphere.
    """

    max_iter: int = 500
    toy_iter: int = 1000
    batch: int = 256
    n_map: int = 4096
    n_gap: int = 1024


PRESETS = {
    "smoke": MongeGapConfig("smoke", (100,), max_iter=10, toy_iter=10, batch=64, n_map=512, n_gap=128),
    "quick": MongeGapConfig("quick", (100,), max_iter=250, toy_iter=300),
    "full": MongeGapConfig("full", tuple(range(100, 105))),
}


_Run = Run[MongeGapConfig]


def run(config: MongeGapConfig, log: Log = lambda line: None) -> Report:
    """Run all four parts."""
    report = Report("monge-gap", "Monge gap: optimal maps for any cost", config.preset, list(config.seeds))
    info = data.info("yeast-dose-response")
    report.data += [
        "generated: Gaussians of random covariance (A), moons, S-curve and clouds on the sphere (C)",
        f"yeast-dose-response: {info.source}; {info.licence}",
    ]
    report.notes += [
        f"Adam, step 1e-3, batches of {config.batch}; {config.max_iter} iterations in (A) and (B), {config.toy_iter} "
        "in (C). Both weights of the gap have the same steps, batches and starts.",
        "Gaps are exact ones (no entropy), on points that the maps have not seen. UVP is "
        "100 E||T - T*||^2 / tr S, the unexplained variance in per cent.",
        "Both sides of (A) are Gaussian, so that `LinearMap` has the answer by formula; networks do not know that.",
        "The paper's single-cell cohorts (4i, sci-Plex) and its benchmark in 256 dimensions ship with no package.",
    ]
    parts = _Run(config, report, log)
    _gaussians(parts)
    _yeast(parts)
    _plane(parts)
    _sphere(parts)
    _known(parts)
    return report


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _timed(estimator: Any, x: Any, y: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    estimator.fit(x, y)
    return estimator, time.perf_counter() - begin


# -- (A) Gaussians -------------------------------------------------------------------------------------------


def _pair(d: int, seed: int) -> tuple[Gaussian, Gaussian]:
    """N(0, S) and N(m, T) with random covariances."""
    rng = np.random.default_rng((seed, d))
    roots = rng.normal(size=(2, d, d))
    first, second = (torch.from_numpy(R @ R.T / d + 0.2 * np.eye(d)) for R in roots)
    mean = torch.from_numpy(rng.normal(size=d))
    return Gaussian.of(torch.zeros_like(mean), first), Gaussian.of(mean, second)


def _sampler(p: Gaussian) -> Sampler:
    root = torch.linalg.cholesky(p.covariance)
    return lambda n, generator: p.mean + torch.randn(n, p.d, generator=generator, dtype=torch.float64) @ root.mT


def _gaussians(run: _Run) -> None:
    config, report = run.config, run.report
    uvp: dict[tuple[int, str, float], list[float]] = {}
    gaps: dict[tuple[int, str, float], list[float]] = {}
    shares: dict[tuple[int, str, float], list[float]] = {}
    seconds: dict[tuple[int, str, float], list[float]] = {}
    convex: list[float] = []
    history: dict[str, dict[str, list[float]]] = {}
    for d in (2, 8):
        others: dict[str, list[float]] = {"no map": [], "shift by the mean": []}
        for seed in config.seeds:
            p, q = _pair(d, seed)
            source, target = _sampler(p), _sampler(q)
            value = float(gaussian_cost(p, q))
            x = source(config.n_map, torch.Generator().manual_seed(10_000 + seed))
            truth = q.mean + (x - p.mean) @ gaussian_transport(p, q).matrix
            scale = 100 / float(q.covariance.trace())

            def error(moved: Tensor, truth: Tensor = truth, scale: float = scale) -> float:
                return scale * float((moved - truth).square().sum(-1).mean())

            others["no map"].append(error(x))
            others["shift by the mean"].append(error(x + q.mean - p.mean))
            for net, residual in _NETS.items():
                for lam in (0.0, 1.0):
                    run.log(f"(A) d = {d}, seed {seed}, {net} net, lambda = {lam:g}")
                    estimator, spent = _timed(
                        MongeGapEstimator(
                            lam=lam, residual=residual, max_iter=config.max_iter, batch_size=config.batch, seed=seed
                        ),
                        source,
                        target,
                    )
                    moved = torch.from_numpy(estimator.transform(x.numpy()))
                    gap = float(monge_gap(x[: config.n_gap], moved[: config.n_gap], convention="exact"))
                    key = d, net, lam
                    for record, number in ((uvp, error(moved)), (gaps, gap), (shares, gap / value), (seconds, spent)):
                        record.setdefault(key, []).append(number)
                    if (d, net, seed) == (8, "plain", config.seeds[0]):
                        history[f"lambda = {lam:g}"] = estimator.history_
            if d == 8:
                run.log(f"(A) d = 8, seed {seed}, convex networks")
                baseline = ICNNMap(
                    max_iter=10**6, timeout=seconds[d, "residual", 1.0][-1], batch_size=config.batch, seed=seed
                ).fit(source, target)
                convex.append(error(torch.from_numpy(baseline.transform(x.numpy()))))
        table = report.table(
            f"(A) Gaussians in {d} dimensions", ("UVP, %", "exact gap", "exact gap / W2^2", "seconds of training")
        )
        for name, values in others.items():
            table.add(name, values, "", "", "")
        for (dim, net, lam), values in uvp.items():
            if dim == d:
                key = dim, net, lam
                table.add(f"{net} net, lambda = {lam:g}", values, gaps[key], shares[key], seconds[key])
        if d == 8:
            name = "convex networks (ICNN dual), time of the residual net"
            table.add(name, convex, "", "", seconds[8, "residual", 1.0])
    with_, without = ({d: _mean(uvp[d, "plain", lam]) for d in (2, 8)} for lam in (1.0, 0.0))
    report.claims += [
        Claim.at_most("(A) d = 2, plain net: UVP with the gap over that without", with_[2] / without[2], 0.25),
        Claim.at_most("(A) d = 8, plain net: UVP with the gap over that without", with_[8] / without[8], 0.5),
        Claim.at_most("(A) d = 2, plain net: UVP with the gap, %", with_[2], 2.0),
        *(
            Claim.at_most(f"(A) d = {d}, plain net: exact gap over W2^2", _mean(shares[d, "plain", 1.0]), 0.01)
            for d in (2, 8)
        ),
        Claim.at_most(
            "(A) d = 8, residual net: UVP over that of convex networks in the same time",
            _mean(uvp[8, "residual", 1.0]) / _mean(convex),
            1.0,
        ),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for ax, (name, numbers) in zip(axes, history.items()):
        for term, label in (("fit", "Sinkhorn divergence"), ("gap", "Monge gap (entropic)")):
            if np.isfinite(numbers[term]).any():
                ax.plot(numbers[term], label=label, lw=0.8)
        ax.set(title=name, xlabel="iteration", yscale="symlog")
        ax.legend(frameon=False)
    report.figure("training", "Both terms of the loss, d = 8, plain net, first seed.", figure)


# -- (B) yeast -----------------------------------------------------------------------------------------------


def _yeast(run: _Run) -> None:
    config, report = run.config, run.report
    yeast = data.yeast_dose_response(fit_on=[*_LOW, *_HIGH])
    cloud = dict(zip(yeast.wells, yeast.clouds))
    control, treated = (np.concatenate([cloud[w] for w in wells]) for wells in (_LOW, _HIGH))
    found: dict[tuple[str, float], list[Perturbation]] = {}
    for seed in config.seeds:
        for net, lam in (("plain", 0.0), ("plain", 0.1), ("plain", 1.0), ("residual", 0.0), ("residual", 1.0)):
            run.log(f"(B) seed {seed}, {net} net, lambda = {lam:g}")
            found.setdefault((net, lam), []).append(
                learn_perturbation(
                    control,
                    treated,
                    seed=seed,
                    residual=_NETS[net],
                    lam=lam,
                    max_iter=config.max_iter,
                    batch_size=config.batch,
                )
            )
    table = report.table(
        f"(B) Yeast, doses {', '.join(_LOW)} to {', '.join(_HIGH)}, held-out cells",
        ("exact gap", "exact gap / displacement", "MMD^2", "Sinkhorn divergence"),
    )
    first = found["plain", 1.0]
    table.add("no map", "", "", [f.identity["mmd"] for f in first], [f.identity["sinkhorn_divergence"] for f in first])
    for (net, lam), results in found.items():
        q = [f.quality for f in results]
        table.add(
            f"{net} net, lambda = {lam:g}",
            [v["exact_gap"] for v in q],
            [v["exact_gap"] / v["displacement"] for v in q],
            [v["mmd"] for v in q],
            [v["sinkhorn_divergence"] for v in q],
        )
    table.add("other cells of the treatment", "", "", [f.floor for f in first], "")
    gap, discrepancy = (
        {lam: _mean([f.quality[name] for f in found["plain", lam]]) for lam in (0.0, 0.1, 1.0)}
        for name in ("exact_gap", "mmd")
    )
    identity = _mean([f.identity["mmd"] for f in first])
    report.claims += [
        Claim.at_most("(B) plain net: exact gap with lambda = 1 over that with 0", gap[1.0] / gap[0.0], 0.05),
        Claim.at_most(
            "(B) plain net: held-out MMD^2 with lambda = 1 over that with 0", discrepancy[1.0] / discrepancy[0.0], 1.1
        ),
        Claim.at_most(
            "(B) plain net, lambda = 1: held-out MMD^2 over that without a map", discrepancy[1.0] / identity, 0.15
        ),
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    names = [f"{net}\n{lam:g}" for net, lam in found]
    for ax, key, label in ((left, "exact_gap", "exact gap"), (right, "mmd", "MMD$^2$")):
        ax.bar(names, [_mean([f.quality[key] for f in results]) for results in found.values()], color="#2b6cb0")
        ax.set(yscale="log", ylabel=label)
    right.axhline(identity, color="#dd6b20", ls="--", label="no map")
    right.axhline(_mean([f.floor for f in first]), color="#718096", ls=":", label="other cells")
    right.legend(frameon=False)
    report.figure("yeast", "Net and weight of the gap: optimality and fit on held-out cells.", figure)


# -- (C) other costs -----------------------------------------------------------------------------------------


def _turned(points: Array, angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _number(generator: torch.Generator) -> int:
    return int(torch.randint(2**31 - 1, (), generator=generator))


def moon(n: int, generator: torch.Generator) -> Tensor:
    """Points of one moon, turned and moved."""
    points, _ = make_moons((n, 0), noise=0.05, random_state=_number(generator))
    return torch.from_numpy(_turned(points, math.pi / 6) + np.array([0.0, -0.5]))


def s_curve(n: int, generator: torch.Generator) -> Tensor:
    """Points of an S, turned, moved and shrunk."""
    points, _ = make_s_curve(n, noise=0.05, random_state=_number(generator))
    return torch.from_numpy(0.6 * (_turned(points[:, [2, 0]], -math.pi / 6) + np.array([0.5, -2.0])))


def crossings(x: Array, y: Array) -> int:
    """How many pairs of the segments from x_i to y_i (n, 2) cross."""

    def side(a: Array, b: Array, c: Array) -> Array:
        """On which side of the line from a to b each c lies, (n, n)."""
        u, v = (b - a)[:, None], c[None] - a[:, None]
        out: Array = np.sign(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])
        return out

    apart = side(x, y, x) * side(x, y, y) < 0  # the ends of segment j lie on both sides of line i
    return int((apart & apart.T).sum()) // 2


def _plane(run: _Run) -> None:
    config, report = run.config, run.report
    count: dict[tuple[str, float], list[float]] = {}
    quality: dict[tuple[str, float], list[dict[str, float]]] = {}
    drawn: dict[float, tuple[Array, Array, Array]] = {}
    for seed in config.seeds:
        x, y = (f(config.n_gap, torch.Generator().manual_seed(10_000 + seed)).numpy() for f in (moon, s_curve))
        for net, residual in _NETS.items():
            for lam in (0.0, 2.0):
                run.log(f"(C) moon to S, seed {seed}, {net} net, lambda = {lam:g}")
                estimator = MongeGapEstimator(
                    "euclidean",
                    lam,
                    hidden=(32, 64, 32),
                    residual=residual,
                    max_iter=config.toy_iter,
                    batch_size=config.batch,
                    seed=seed,
                ).fit(moon, s_curve)
                moved = estimator.transform(x)
                some = np.random.default_rng(seed).permutation(len(x))[:_SEGMENTS]
                count.setdefault((net, lam), []).append(float(crossings(x[some], moved[some])))
                quality.setdefault((net, lam), []).append(estimator.evaluate(x, y))
                if (net, seed) == ("plain", config.seeds[0]):
                    drawn[lam] = x[some], moved[some], y
    table = report.table(
        f"(C) Moon to S-curve, Euclidean cost: {_SEGMENTS} mapped pairs",
        ("crossings", "exact gap", "displacement", "Sinkhorn divergence"),
    )
    for (net, lam), values in count.items():
        q = quality[net, lam]
        columns = ([v[name] for v in q] for name in ("exact_gap", "displacement", "sinkhorn_divergence"))
        table.add(f"{net} net, lambda = {lam:g}", values, *columns)
    report.claims += [
        Claim.at_most(
            f"(C) Euclidean cost, {net} net: crossings with the gap over those without",
            _mean(count[net, 2.0]) / max(_mean(count[net, 0.0]), 1.0),
            1 / 3,
        )
        for net in _NETS
    ]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True)
    for ax, (lam, (x, moved, y)) in zip(axes, drawn.items()):
        ax.plot(*np.stack([x, moved]).transpose(2, 0, 1), color="#a0aec0", lw=0.5)
        for points, colour, label in ((x, "#2b6cb0", "moon"), (y, "#dd6b20", "S-curve"), (moved, "#2f855a", "moved")):
            ax.scatter(*points.T, s=4, color=colour, label=label)
        ax.set(title=f"lambda = {lam:g}", aspect="equal")
    axes[0].legend(frameon=False)
    report.figure("crossings", "Where a plain net sends the moon, without and with the gap; first seed.", figure)


def _cap(centre: tuple[float, float, float]) -> Sampler:
    """Points of the sphere around a direction."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(torch.tensor(centre, dtype=torch.float64) + 0.5 * noise, dim=-1)

    return draw


def _sphere(run: _Run) -> None:
    config, report = run.config, run.report
    source, target = _cap((0.0, 0.0, 1.0)), _cap((math.sin(math.pi / 3), 0.0, math.cos(math.pi / 3)))
    rows: dict[float, list[tuple[float, float, float]]] = {0.0: [], 2.0: []}
    least = []
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(10_000 + seed)
        x, y = (draw(config.n_gap, generator) for draw in (source, target))
        best = float(solve(x, y, cost=Geodesic()).value)
        least.append(best)
        for lam, numbers in rows.items():
            run.log(f"(C) sphere, seed {seed}, lambda = {lam:g}")
            estimator = MongeGapEstimator(
                Geodesic(),
                lam,
                residual=False,
                sphere=True,
                max_iter=config.toy_iter,
                batch_size=config.batch,
                seed=seed,
            ).fit(source, target)
            q = estimator.evaluate(x.numpy(), y.numpy())
            numbers.append((q["displacement"] / best - 1, q["exact_gap"], q["sinkhorn_divergence"]))
    table = report.table(
        f"(C) Two clouds on the sphere, {config.n_gap} fresh points, geodesic cost",
        ("excess over the exact assignment", "exact gap", "Sinkhorn divergence"),
    )
    table.add("exact assignment, mean angle", least, "", "")
    for lam, numbers in rows.items():
        table.add(f"plain net, lambda = {lam:g}", *([n[k] for n in numbers] for k in range(3)))
    excess = {lam: _mean([n[0] for n in numbers]) for lam, numbers in rows.items()}
    report.claims += [
        Claim.at_most("(C) sphere, with the gap: mean angle apart from that of the assignment", abs(excess[2.0]), 0.05),
        Claim.at_least("(C) sphere, without: excess of the mean angle over the assignment", excess[0.0], 0.15),
    ]


# -- (D) known gaps ------------------------------------------------------------------------------------------


def _known(run: _Run) -> None:
    config, report = run.config, run.report
    found: dict[str, list[float]] = {}
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(256, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        root = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        order = torch.as_tensor(solve(x, y + 1).plan.argmax())
        images = {
            "identity": x,
            "symmetric positive definite matrix": x @ (root @ root.mT + 0.1 * torch.eye(2, dtype=torch.float64)),
            "exact assignment": (y + 1)[order],
            "rotation by a right angle": torch.stack([-x[:, 1], x[:, 0]], 1),
        }
        for name, moved in images.items():
            found.setdefault(name, []).append(float(monge_gap(x, moved, convention="exact")))
    table = report.table("(D) Exact gaps that are known, squared Euclidean cost, 256 points", ("exact gap",))
    for name, values in found.items():
        table.add(name, values)
    turned = found.pop("rotation by a right angle")
    report.claims += [
        Claim.at_most(
            "(D) largest gap of optimal maps", max(abs(v) for values in found.values() for v in values), 1e-6
        ),
        Claim.at_least("(D) least gap of a rotation by a right angle", min(turned), 1e-3),
    ]
