"""Kinetic-optimal paths against the usual schedules: energies, few-step samples, trained models.

Parts: (A) known answers; (B) energies on images of four sizes; (C) few Euler steps along the exact field of a finite
data set, without a network; (D) a network trained on a checkerboard; (E) in the full preset, U-Nets on small images.
Seeds choose data, noise and initial weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .. import data
from ..flows import VP, CondOT, FlowMatching, GaussianPath, Trigonometric, sample_ode
from ..losses import energy_distance, gaussian_wasserstein
from ..systems.generative.kinetic_optimal_paths import (
    DataSeparation,
    KineticOptimalPath,
    Scaling,
    empirical_velocity,
    kinetic_energy,
    kinetic_optimal_path,
)
from .flow_models import Perceptron, seeded, trained_judge
from .report import Claim, Report, Table
from .runner import Config, Run

__all__ = ["PRESETS", "KineticConfig", "run"]

Log = Callable[[str], None]

_STEPS = (2, 4, 6, 10)
_TRAINED_STEPS = (2, 4, 6)
_IMAGE_STEPS = (8, 20)
_RIVALS = {"VP": VP(), "SI": Trigonometric(), "Cond-OT": CondOT()}


@dataclass(frozen=True)
class KineticConfig(Config):
    """Sizes of the parts.

    Attributes:
        n_data: images of (B) and (C), and points of the checkerboard of (C).
        sides: of the images of (B), in pixels.
        n_theta, n_queries: of the estimates.
        n_samples: of (C).
        train_seeds: how many of the seeds (D) runs on.
        train_steps: of Adam in (D).
        image_steps: of Adam in (E); 0 leaves it out.
        n_images: samples of (E).
    """

    n_data: int = 4000
    sides: tuple[int, ...] = (4, 7, 14, 28)
    n_theta: int = 49
    n_queries: int = 1000
    n_samples: int = 1000
    train_seeds: int = 3
    train_steps: int = 4000
    image_steps: int = 0
    n_images: int = 4000


PRESETS = {
    "smoke": KineticConfig(
        "smoke",
        (100,),
        n_data=300,
        sides=(4, 7),
        n_theta=17,
        n_queries=100,
        n_samples=200,
        train_seeds=1,
        train_steps=60,
    ),
    "quick": KineticConfig(
        "quick", (100, 101), n_data=1500, n_theta=33, n_queries=300, n_samples=500, train_seeds=1, train_steps=2000
    ),
    "full": KineticConfig("full", tuple(range(110, 115)), image_steps=1500),
}

_Run = Run[KineticConfig]


def run(config: KineticConfig, log: Log = lambda line: None) -> Report:
    """Run all parts."""
    report = Report("kinetic-optimal-paths", "Kinetic-optimal probability paths", config.preset, list(config.seeds))
    for slug in ("fashion-mnist", "digits"):
        info = data.info(slug)
        report.data.append(f"{slug}: {info.source}; {info.licence}")
    report.data.append("generated: Gaussian points; a checkerboard of 4 x 4 squares, half of them filled")
    report.notes += [
        "Energies are those of a coordinate, for data of mean 0 and mean variance 1. The paper scales data in another "
        "way, so that its energies compare in their order only.",
        "VP's energy is cut at t = 1 - 1e-5, as it grows like a logarithm without a cut.",
        "KO is sampled over its span, which begins where gamma reaches its floor, as are the others over theirs. From "
        "t = 0 itself the velocity has not begun to turn, and the first long step is lost: the rows 'KO from "
        "t = 0' of (C).",
        "Energy distances are V-statistics between samples and data: equal laws give about the mean distance of two "
        "points times (1 / samples + 1 / data), not 0.",
    ]
    parts = _Run(config, report, log)
    _known(parts)
    try:
        images = data.fashion_mnist()
    except data.DataUnavailable as failure:
        report.notes.append(
            "(B), (E) and the images of (C) were left out, with their claims: " + " ".join(str(failure).split())
        )
        images = None
    if images is not None:
        _energies(parts, images.train)
    _few_steps(parts, None if images is None else images.train)
    _trained(parts)
    if images is not None and config.image_steps:
        _images(parts, images)
    return report


def _chosen(pool: NDArray[np.uint8], n: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint draws of n images, pooled to side x side, in float32."""
    index = np.random.default_rng(seed).permutation(len(pool))[: 2 * n]
    whole = torch.from_numpy(pool[index]).unsqueeze(1).float() / 255
    small = functional.avg_pool2d(whole, whole.shape[-1] // side).squeeze(1)
    return small[:n], small[n:]


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Points (n, 2), uniform on the 8 dark squares of a board of 4 x 4."""
    column = torch.randint(0, 4, (n,), generator=generator)
    row = 2 * torch.randint(0, 2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], 1)
    return corner + torch.rand(n, 2, generator=generator, dtype=torch.float64) - 2


def _worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


# -- (A) known answers ----------------------------------------------------------------------------------------


def _known(run: _Run) -> None:
    config, report = run.config, run.report
    run.log("(A) known answers")
    seed = config.seeds[0]
    n = config.n_data

    standard = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    found = _separation(run, standard, seed + 1)
    gaussian = DataSeparation.from_callable(lambda s: s.square() / (1 + s.square()))
    ratio = kinetic_energy(kinetic_optimal_path(gaussian), gaussian) / kinetic_energy(CondOT(), gaussian)
    report.claims += [
        Claim.at_most(
            f"(A1) N(0, I), {n} points in the plane: largest error of lambda",
            _worst(found.lam, found.theta.sin().square()),
            0.02,
        ),
        Claim.at_most("(A1) N(0, I): energy of KO over that of Cond-OT", ratio, 0.02),
    ]

    eigenvalues = torch.tensor([2.4, 1.0, 0.4, 0.2], dtype=torch.float64)
    correlated = torch.randn(n, 4, generator=seeded(seed + 2), dtype=torch.float64) * eigenvalues.sqrt()
    found = _separation(run, correlated, seed + 3)
    expected = DataSeparation.gaussian(eigenvalues, n_theta=config.n_theta)
    report.claims.append(
        Claim.at_most(
            f"(A2) N(0, S), {n} points in 4 dimensions: largest error of lambda", _worst(found.lam, expected.lam), 0.02
        )
    )

    straight = kinetic_optimal_path(DataSeparation.from_callable(torch.ones_like))
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    report.claims += [
        Claim.at_most(
            "(A3) lambda = 1: largest difference to a = t, m = 1 - t",
            max(_worst(straight.a(t), t), _worst(straight.m(t), 1 - t)),
            1e-6,
        ),
        Claim.at_most("(A3) lambda = 1: difference of the energy to 2", abs(straight.energy - 2), 1e-6),
    ]

    far = torch.randn(10, 10_000, generator=seeded(seed + 4), dtype=torch.float64)
    apart = DataSeparation.estimate(far, n_theta=401, n_queries=10, generator=seeded(seed + 5))
    report.claims.append(
        Claim.at_most("(A4) 10 points in 10,000 dimensions: integral of 1 - lambda", apart.deficit(), 3 * 10 / 100)
    )

    low = DataSeparation.gaussian([4.0, 0.0, 0.0, 0.0])
    path, descent = kinetic_optimal_path(low), kinetic_optimal_path(low, solver="gradient")
    report.claims += [
        Claim.at_most(
            "(A5) a Gaussian of rank d / 4: relative difference of the numeric energy to the formula",
            abs(kinetic_energy(path, low) / path.energy - 1),
            0.01,
        ),
        Claim.at_most(
            "(A5) the same: relative difference of the energy by descent (the paper's numerics) to the formula",
            abs(descent.energy / path.energy - 1),
            0.02,
        ),
    ]
    table = report.table("(A) A Gaussian of rank d / 4", ("energy",))
    for name, rival in _RIVALS.items():
        table.add(name, kinetic_energy(rival, low))
    table.add("KO", kinetic_energy(path, low))
    table.add("KO, by its formula", path.energy)
    table.add("KO by descent", kinetic_energy(descent, low))


# -- (B) energies ---------------------------------------------------------------------------------------------


def _energies(run: _Run, pool: NDArray[np.uint8]) -> None:
    config, report = run.config, run.report
    digits = torch.from_numpy(data.digits().images).float()
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    names = (*_RIVALS, "KO")
    energies: dict[str, dict[str, list[float]]] = {}
    formula: dict[str, list[float]] = {}
    bend: dict[str, list[float]] = {}
    first: dict[str, tuple[DataSeparation, KineticOptimalPath]] = {}
    generalising: dict[str, tuple[DataSeparation, KineticOptimalPath]] = {}
    sizes = [f"Fashion-MNIST, {side} x {side}" for side in config.sides]
    for seed in config.seeds:
        for name, side in (*zip(sizes, config.sides), ("digits, 8 x 8", 0)):
            run.log(f"(B) seed {seed}: {name}")
            x, others = _chosen(pool, config.n_data, side, seed) if side else (digits, None)
            separation, path = _fitted(run, x, seed)
            schedules: dict[str, GaussianPath] = {**_RIVALS, "KO": path}
            spent = energies.setdefault(name, {key: [] for key in names})
            for key, schedule in schedules.items():
                spent[key].append(kinetic_energy(schedule, separation))
            formula.setdefault(name, []).append(path.energy)
            bend.setdefault(name, []).append(_worst(path.a(t), t))
            if name not in first:
                first[name] = separation, path
                if others is not None and side <= 14:
                    generalising[name] = _fitted(run, x, seed, held_out=others)
    table = report.table(
        f"(B) Energies on {config.n_data} images, and all digits", (*names, "KO, by its formula", "max |a - t| of KO")
    )
    for name, spent in energies.items():
        table.add(name, *(spent[key] for key in names), formula[name], bend[name])
    table = report.table(
        "(B) In sample, where the noisy image is among those compared with, and held out; first seed",
        ("Cond-OT", "KO", "Cond-OT, held out", "KO, held out", "max |a - t|", "max |a - t|, held out"),
    )
    for name, (separation, path) in generalising.items():
        inside, own = first[name]
        cells = [kinetic_energy(p, s) for s, k in ((inside, own), (separation, path)) for p in (CondOT(), k)]
        table.add(name, *cells, _worst(own.a(t), t), _worst(path.a(t), t))

    means = {name: {key: float(np.mean(spent[key])) for key in names} for name, spent in energies.items()}
    ordered = [means[s]["KO"] < means[s]["Cond-OT"] < means[s]["SI"] < means[s]["VP"] for s in sizes]
    gains = [means[s]["Cond-OT"] - means[s]["KO"] for s in sizes]
    bends = [float(np.mean(bend[s])) for s in sizes]
    apart = max(abs(e / f - 1) for s in sizes for e, f in zip(energies[s]["KO"], formula[s]))
    report.claims += [
        Claim.at_least("(B) share of sizes at which KO < Cond-OT < SI < VP in energy", float(np.mean(ordered)), 1.0),
        Claim.at_least("(B) share of steps in size at which Cond-OT - KO falls", _falling(gains), 1.0),
        Claim.at_least("(B) share of steps in size at which max |a - t| falls", _falling(bends), 1.0),
        Claim.at_most("(B) largest relative difference of numeric energy and formula", apart, 0.02),
    ]
    _schedule_figure(report, first)
    _energy_figure(report, {s: means[s] for s in sizes})


def _falling(values: list[float]) -> float:
    return float(np.mean([late < early for early, late in itertools.pairwise(values)]))


def _separation(run: _Run, x: Tensor, seed: int, held_out: Tensor | None = None) -> DataSeparation:
    config = run.config
    return DataSeparation.estimate(
        x, n_theta=config.n_theta, n_queries=config.n_queries, held_out=held_out, generator=seeded(seed)
    )


def _fitted(
    run: _Run, x: Tensor, seed: int, held_out: Tensor | None = None
) -> tuple[DataSeparation, KineticOptimalPath]:
    separation = _separation(run, x, seed, held_out)
    return separation, kinetic_optimal_path(separation)


def _schedule_figure(report: Report, fitted: dict[str, tuple[DataSeparation, KineticOptimalPath]]) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    for name, (separation, path) in fitted.items():
        left.plot(separation.theta, separation.lam, label=name)
        middle.plot(separation.theta, separation.gamma)
        right.plot(t, path.a(t))
    theta = torch.linspace(0, torch.pi / 2, 101)
    left.plot(theta, theta.sin().square(), "k:", label="standard Gaussian")
    right.plot(t, t, "k:")
    left.set(xlabel="angle, arctan(a / m)", ylabel="lambda", title="separation of the data")
    middle.set(xlabel="angle, arctan(a / m)", ylabel="gamma", title="price of a turn", ylim=(-0.05, 1.05))
    right.set(xlabel="t", ylabel="a", title="share of the data (dotted: straight)")
    left.legend(frameon=False, fontsize=7)
    caption = "Separation of each data set, the price gamma that follows, and the share of data of the best schedule."
    report.figure("schedules", caption, figure)


def _energy_figure(report: Report, means: dict[str, dict[str, float]]) -> None:
    figure, ax = plt.subplots(figsize=(6, 3.4))
    for key in (*_RIVALS, "KO"):
        ax.plot(range(len(means)), [energies[key] for energies in means.values()], "o-", label=key)
    ax.set(ylabel="energy of a coordinate", xticks=range(len(means)), xticklabels=list(means))
    ax.tick_params(axis="x", labelsize=7)
    ax.legend(frameon=False)
    report.figure("energies", "Kinetic energy of four schedules on images of growing size.", figure)


# -- (C) few steps along the exact field ----------------------------------------------------------------------


def _sampled(path: GaussianPath, points: Tensor, x0: Tensor, steps: int, begin: float | None = None) -> Tensor:
    first, last = path.span
    times = torch.linspace(first if begin is None else begin, last, steps + 1, dtype=x0.dtype)
    return sample_ode(lambda z, t: empirical_velocity(z, t, points, path), x0, times=times)


def _few_steps(run: _Run, pool: NDArray[np.uint8] | None) -> None:
    config, report = run.config, run.report
    sets = ["checkerboard"] + ([] if pool is None else ["Fashion-MNIST, 4 x 4", "Fashion-MNIST, 7 x 7"])
    names = (*_RIVALS, "KO", "KO from t = 0")
    found: dict[str, dict[tuple[str, int], list[float]]] = {
        which: {(key, steps): [] for key in names for steps in _STEPS} for which in sets
    }
    drawn: dict[tuple[str, int], Tensor] = {}
    for seed in config.seeds:
        for which in sets:
            run.log(f"(C) seed {seed}: {which}")
            if pool is None or which == "checkerboard":
                raw = _checkerboard(config.n_data, seeded(seed))
            else:
                raw = _chosen(pool, config.n_data, int(which[-1]), seed)[0].flatten(1).double()
            _, path = _fitted(run, raw, seed)
            points = path.scaling.normalize(raw)
            x0 = torch.randn(config.n_samples, points.shape[1], generator=seeded(seed + 1000), dtype=torch.float64)
            schedules: dict[str, GaussianPath] = {**_RIVALS, "KO": path}
            for key, schedule in schedules.items():
                for steps in _STEPS:
                    samples = _sampled(schedule, points, x0, steps)
                    found[which][key, steps].append(float(energy_distance(samples, points)))
                    if key == "KO":
                        samples_0 = _sampled(schedule, points, x0, steps, begin=0.0)
                        found[which]["KO from t = 0", steps].append(float(energy_distance(samples_0, points)))
                    if which == "checkerboard" and seed == config.seeds[0] and key in ("Cond-OT", "KO"):
                        drawn[key, steps] = samples
    for which in sets:
        table = report.table(
            f"(C) {which}: energy distance of {config.n_samples} samples to {config.n_data} data, exact field",
            tuple(f"{steps} steps" for steps in _STEPS),
        )
        for key in names:
            table.add(key, *(found[which][key, steps] for steps in _STEPS))
        ratios = [np.mean(found[which]["KO", s]) / np.mean(found[which]["Cond-OT", s]) for s in _STEPS]
        table.add("KO over Cond-OT", *map(float, ratios))
        if which[-1] != "7":  # reported only
            report.claims.append(
                Claim.at_most(
                    f"(C) {which}: largest ratio of energy distances, KO over Cond-OT, at 2 to 10 steps",
                    float(max(ratios)),
                    0.6,
                )
            )
    figure, axes = plt.subplots(2, len(_STEPS), figsize=(10, 5.2), layout="constrained")
    for row, key in zip(axes, ("Cond-OT", "KO")):
        for ax, steps in zip(row, _STEPS):
            ax.scatter(*drawn[key, steps].T, s=2, color="#2b6cb0")
            ax.set(title=f"{key}, {steps} steps", xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
    report.figure("samples", "A checkerboard from few Euler steps along the exact field, first seed.", figure)


# -- (D) a trained model --------------------------------------------------------------------------------------


def _train(
    model: nn.Module,
    path: GaussianPath,
    draw: Callable[[], Tensor],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Flow matching along a path by Adam at a rate of 1e-3, which falls along a cosine."""
    matching = FlowMatching(path, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x1 = draw()
        loss, _ = matching(model, torch.randn(x1.shape, generator=generator), x1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _trained(run: _Run) -> None:
    config, report = run.config, run.report
    names = ("Cond-OT", "KO")
    found: dict[tuple[str, int], list[float]] = {(key, steps): [] for key in names for steps in _TRAINED_STEPS}
    for seed in config.seeds[: config.train_seeds]:
        raw = _checkerboard(config.n_data, seeded(seed))
        _, path = _fitted(run, raw, seed)
        points = path.scaling.normalize(raw).float()
        fresh = path.scaling.normalize(_checkerboard(config.n_data, seeded(seed + 2000)))
        schedules: dict[str, GaussianPath] = {"Cond-OT": CondOT(), "KO": path}
        for key, schedule in schedules.items():
            run.log(f"(D) seed {seed}: {key}")
            generator = seeded(seed + 3000)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = Perceptron(2, 128, 4)

            def draw(points: Tensor = points, generator: torch.Generator = generator) -> Tensor:
                return points[torch.randint(len(points), (512,), generator=generator)]

            _train(model, schedule, draw, config.train_steps, generator)
            x0 = torch.randn(config.n_data, 2, generator=seeded(seed + 4000))
            with torch.no_grad():
                for steps in _TRAINED_STEPS:
                    times = torch.linspace(*schedule.span, steps + 1)
                    samples = sample_ode(model, x0, times=times).double()
                    found[key, steps].append(float(energy_distance(samples, fresh)))
    table = report.table(
        f"(D) Checkerboard, network of 4 x 128, {config.train_steps} steps of Adam: energy distance to fresh data",
        (*(f"{steps} steps" for steps in _TRAINED_STEPS), "mean"),
    )
    means = {key: np.mean([found[key, steps] for steps in _TRAINED_STEPS], axis=0) for key in names}
    for key in names:
        table.add(key, *(found[key, steps] for steps in _TRAINED_STEPS), means[key])
    report.claims.append(
        Claim.at_most(
            "(D) mean energy distance over 2, 4 and 6 steps, KO over Cond-OT",
            float(means["KO"].mean() / means["Cond-OT"].mean()),
            0.9,
        )
    )


# -- (E) small images -----------------------------------------------------------------------------------------


class _Block(nn.Module):
    """Two convolutions with a skip; the time shifts what is between them."""

    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, before), nn.GroupNorm(8, after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.time = nn.Linear(time, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv2(functional.silu(self.norm2(h)))
        return out


class _UNet(nn.Module):
    """A small U-Net for images of 14 x 14: two levels, 32 and 64 channels."""

    frequencies: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        time = 4 * width
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 5, width)))
        self.embed = nn.Sequential(nn.Linear(2 * width, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = _Block(width, width, time)
        self.inner = nn.ModuleList([_Block(width, 2 * width, time), _Block(2 * width, 2 * width, time)])
        self.up = _Block(3 * width, width, time)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        phase = t.unsqueeze(1) * self.frequencies
        time = self.embed(torch.cat([phase.sin(), phase.cos()], 1))
        high = self.down(self.first(z.unsqueeze(1)), time)
        low = functional.avg_pool2d(high, 2)
        for block in self.inner:
            low = block(low, time)
        out: Tensor = self.last(self.up(torch.cat([high, functional.interpolate(low, scale_factor=2.0)], 1), time))
        return out.squeeze(1)


def _images(run: _Run, images: data.SplitImages) -> None:
    config, report = run.config, run.report
    seed, n = config.seeds[0], config.n_images
    x, _ = _chosen(images.train, 20_000, 14, seed)
    index = np.random.default_rng(seed).permutation(len(images.train))[:20_000]
    labels = torch.from_numpy(images.train_labels[index])
    _, path = _fitted(run, x[: config.n_data], seed)
    scaling = Scaling.of(x)
    x = scaling.normalize(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = _UNet().state_dict()
    run.log("(E) the features")
    judge = trained_judge(x, labels, 14, seed)
    test = _chosen(images.test, n, 14, seed)[0]
    with torch.no_grad():
        real = judge.features(scaling.normalize(test)).double()
    table: Table = report.table(
        f"(E) Fréchet distance in features of a small CNN, {n} samples of 14 x 14, U-Nets after {config.image_steps} "
        "steps of Adam, one seed; report only",
        tuple(f"{steps} Euler steps" for steps in _IMAGE_STEPS),
    )
    schedules: dict[str, GaussianPath] = {**_RIVALS, "KO": path}
    for key, schedule in schedules.items():
        run.log(f"(E) {key}")
        model = _UNet()
        model.load_state_dict(weights)
        generator = seeded(seed + 6000)

        def draw(generator: torch.Generator = generator) -> Tensor:
            return x[torch.randint(len(x), (64,), generator=generator)]

        _train(model, schedule, draw, config.image_steps, generator)
        cells = []
        x0 = torch.randn(n, 14, 14, generator=seeded(seed + 7000))
        with torch.no_grad():
            for steps in _IMAGE_STEPS:
                times = torch.linspace(*schedule.span, steps + 1)
                samples = torch.cat([sample_ode(model, part, times=times) for part in x0.split(500)])
                cells.append(float(gaussian_wasserstein(judge.features(samples).double(), real)))
        table.add(key, *cells)
