"""W-CFM: Gibbs weights in the place of minibatch transport, against plain flow matching and minibatch transport.

Parts: (A) the weights are an entropic plan where the tilts are flat; (B) flows in the plane, 8 Gaussians to two moons
and a normal law to 8 Gaussians; (C) Fashion-MNIST at 14 x 14 pixels; (D) the choice of epsilon. The paper's CIFAR-10,
CelebA and ImageNet runs need Inception features and days of a GPU, and are out of reach.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import data
from ..api import assign, solve
from ..costs import Lp
from ..flows import (
    Coupled,
    Coupling,
    CouplingLoader,
    EntropicCoupling,
    ExactCoupling,
    FlowMatching,
    path_energy,
    sample_ode,
)
from ..losses import gaussian_wasserstein
from ..problem import Relative
from ..systems.generative.w_cfm import Calibration, WeightedCFM, marginal_tilt
from .flow_models import Judge, Perceptron, seeded, trained_judge
from .report import Claim, Report
from .runner import Config, Run

__all__ = ["PRESETS", "WCFMConfig", "run"]

Log = Callable[[str], None]
Law = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class WCFMConfig(Config):
    """Sizes of the parts.

    Attributes:
        circle: points of each side in (A).
        steps: of training a flow in (B).
        points: of each side, for W2 in (B).
        reference: points of each side, for the W2 between the two laws in (B).
        second_task: whether (B) also moves a normal law to 8 Gaussians.
        epsilons: of W-CFM in (B), the last but one being 2.
        image_seeds: how many of the seeds (C) runs on.
        image_steps: of training a flow in (C) and (D).
        image_batch: pairs of a step there.
        pool: pairs that are coupled at a time by the global coupling of (B) and (C).
        width: of the network of (C) and (D).
        generated: images a flow is judged by.
        samples: of each side, for calibration.
        kappas: grid of (D).
        kappa_seeds: how many of the seeds (D) runs on.
        digits: 8 x 8 digits in the place of Fashion-MNIST.
    """

    circle: int = 400
    steps: int = 4000
    points: int = 1500
    reference: int = 4000
    second_task: bool = True
    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    image_seeds: int = 5
    image_steps: int = 3000
    image_batch: int = 128
    pool: int = 4096
    width: int = 384
    generated: int = 5000
    samples: int = 2000
    kappas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 3.0)
    kappa_seeds: int = 2
    digits: bool = False


PRESETS = {
    "smoke": WCFMConfig(
        "smoke",
        (100,),
        circle=100,
        steps=30,
        points=200,
        reference=300,
        second_task=False,
        epsilons=(0.5, 2.0, 4.0),
        image_seeds=1,
        image_steps=10,
        image_batch=64,
        pool=512,
        width=64,
        generated=200,
        samples=200,
        kappas=(0.1, 1.0),
        kappa_seeds=1,
        digits=True,
    ),
    "quick": WCFMConfig(
        "quick",
        (100,),
        steps=2000,
        reference=2500,
        second_task=False,
        image_seeds=1,
        image_steps=800,
        generated=2000,
        samples=1000,
        kappas=(0.1, 0.5, 2.0),
        kappa_seeds=1,
    ),
    "full": WCFMConfig("full", tuple(range(100, 105))),
}

_Run = Run[WCFMConfig]


def run(config: WCFMConfig, log: Log = lambda line: None) -> Report:
    """Run all parts."""
    title = "W-CFM: flow matching with Gibbs weights"
    report = Report("w-cfm", title, config.preset, list(config.seeds))
    report.data.append("generated: points of a circle, 8 Gaussians, two moons, normal laws")
    report.notes += [
        "Every method sees the same batches in the same order, and starts from the same network, for a seed.",
        "(B) OT-CFM, batch 16 trains on batches of 16; the row with 16 x 16 trains on batches of 256, coupled in parts "
        "of 16, which separates the bias of small couplings from the noise of small batches.",
        "(B) The W2 between the two laws is that of samples, for normalised path energy (NPE).",
        f"The pool couples {config.pool} pairs at a time in the background of the loader.",
        "Seconds are of one run beside whatever else the machine did: read them as ratios.",
    ]
    parts = _Run(config, report, log)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Weights have collapsed")  # told in the tables
        _circle(parts)
        _plane(parts)
        _images(parts)
    return report


# -- (A) exactness ---------------------------------------------------------------------------------------------------


def _circle(parts: _Run) -> None:
    config, report = parts.config, parts.report
    parts.log("(A) circle")
    angle = 2 * math.pi * torch.arange(config.circle, dtype=torch.float64) / config.circle
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    turned = torch.stack([(angle + 0.3).cos(), (angle + 0.3).sin()], 1)
    generator = seeded(config.seeds[0])
    x, y = torch.randn(2, config.circle, 2, generator=generator, dtype=torch.float64)
    epsilons = (0.1, 0.5, 2.0)
    columns = tuple(f"epsilon {epsilon:g}" for epsilon in epsilons)
    table = report.table("(A) Normalised weights against the entropic plan: largest relative difference", columns)
    worst = 0.0
    for p in (1, 2):
        found = []
        for epsilon in epsilons:
            weights, plan = _weights_and_plan(circle, turned, p, epsilon)
            found.append(float((weights / plan - 1).abs().max()))
        worst = max(worst, *found)
        table.add(f"a circle, p = {p}", *found)
    table = report.table("(A) The same: total variation", columns)
    least = math.inf
    for p in (1, 2):
        found = []
        for epsilon in epsilons:
            weights, plan = _weights_and_plan(x, 2 * y + 1, p, epsilon)
            found.append(float((weights - plan).abs().sum() / 2))
        least = min(least, *found)
        table.add(f"two unequal Gaussians, p = {p}", *found)
    report.claims += [
        Claim.at_most("(A) a circle: largest relative difference between weights and the entropic plan", worst, 1e-6),
        Claim.at_least("(A) two unequal Gaussians: least total variation between the two", least, 0.05),
    ]


def _weights_and_plan(x: Tensor, y: Tensor, p: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """The weights of all pairs, normalised, and the plan."""
    cost = Lp(2, p)
    weights = (-cost.block(x, y) / epsilon).flatten().softmax(0).reshape(len(x), len(y))
    return weights, solve(x, y, cost=cost, epsilon=epsilon, tol=1e-11).plan.dense()


# -- (B) the plane ---------------------------------------------------------------------------------------------------


def _eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians of variance 0.1 on a circle of radius 5."""
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + math.sqrt(0.1) * torch.randn(n, 2, generator=generator)


def _moons(n: int, generator: torch.Generator) -> Tensor:
    """Two moons with noise 0.2, three times as large, shifted by -1."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    first = torch.where(upper, angle.cos(), 1 - angle.cos())
    second = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return 3 * (torch.stack([first, second], 1) + 0.2 * torch.randn(n, 2, generator=generator)) - 1


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator)


def _plane_network() -> nn.Module:
    return Perceptron(2, 64, 3, nn.SELU)


class _InParts(Coupling):
    """Exact couplings of parts of a batch, all in one call."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x0: Tensor, x1: Tensor, **options: Any) -> Coupled:
        parts = (t.reshape(-1, self.size, t.shape[-1]) for t in (x0, x1))
        columns = assign(*parts).columns
        cols = (columns + self.size * torch.arange(len(columns)).unsqueeze(1)).flatten()
        return Coupled(x0, x1[cols], torch.arange(len(x0)), cols)


@dataclass(frozen=True)
class _Method:
    """How pairs are made and weighed, and how many to a step."""

    name: str
    coupling: Coupling | None = None
    batch: int = 256
    epsilon: float | None = None  # of W-CFM
    pool: int | None = None  # pairs that a loader couples at a time

    def loss(self, generator: torch.Generator) -> FlowMatching:
        if self.epsilon is not None:
            return WeightedCFM(self.epsilon, generator=generator)
        return FlowMatching(coupling=None if self.pool else self.coupling, generator=generator)


_PLAIN, _OT, _SMALL = "I-CFM", "OT-CFM, batch 256", "OT-CFM, batch 16"


def _plane_methods(config: WCFMConfig) -> list[_Method]:
    return [
        _Method(_PLAIN),
        _Method(_OT, ExactCoupling()),
        _Method(_SMALL, ExactCoupling(), batch=16),
        _Method("OT-CFM, 16 x 16", _InParts(16)),
        _Method("EOT-CFM, batch 256", EntropicCoupling(Relative(0.05), tol=1e-2)),
        _Method("OT-CFM, pool", ExactCoupling(), pool=config.pool),
        *(_Method(_weighted(epsilon), epsilon=epsilon) for epsilon in config.epsilons),
    ]


def _weighted(epsilon: float) -> str:
    return f"W-CFM, epsilon {epsilon:g}"


@dataclass
class _Flow:
    """A trained flow, and what training told."""

    model: nn.Module
    seconds: float
    ess: float  # mean over the last steps


class _Fresh:
    """Batches of a law, a given number of them."""

    def __init__(self, law: Law, batch: int, steps: int, generator: torch.Generator) -> None:
        self.law, self.batch, self.steps, self.generator = law, batch, steps, generator

    def __iter__(self) -> Iterator[Tensor]:
        return (self.law(self.batch, self.generator) for _ in range(self.steps))


def _pairs(method: _Method, source: Law, target: Law, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Source samples and data for each step."""
    first, second = (seeded(10 * seed + k) for k in (0, 1))
    if method.pool is None or method.coupling is None:
        for _ in range(steps):
            yield source(method.batch, first), target(method.batch, second)
        return
    fresh = _Fresh(target, method.batch, steps, second)
    pool = max(1, method.pool // method.batch)
    for x0, x1, _ in CouplingLoader(fresh, method.coupling, source=source, pool=pool, generator=first):
        yield x0, x1


def _trained(
    method: _Method,
    network: Callable[[], nn.Module],
    source: Law,
    target: Law,
    steps: int,
    seed: int,
    decay: bool = False,
) -> _Flow:
    """Train a flow with Adam at a rate of 1e-3, constant or falling to zero along a cosine."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network()
    loss = method.loss(seeded(10 * seed + 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    ess: list[float] = []
    begin = time.perf_counter()
    for x0, x1 in _pairs(method, source, target, steps, seed):
        value, info = loss(model, x0, x1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        ess.append(float(info["ess"]))
    seconds = time.perf_counter() - begin
    return _Flow(model.eval(), seconds, float(np.mean(ess[-100:])))


def _w2(x: Tensor, y: Tensor) -> float:
    return math.sqrt(max(float(solve(x.double(), y.double()).value), 0.0))


@dataclass
class _Judged:
    """One flow in the plane."""

    far: float  # W2 after 100 steps
    near: float  # after 4
    npe: float
    seconds: float
    ess: float


def _judged(flow: _Flow, source: Law, target: Law, config: WCFMConfig, seed: int, squared: float) -> _Judged:
    generator = seeded(10 * seed + 3)
    x0, fresh = source(config.points, generator), target(config.points, generator)
    with torch.no_grad():
        far, near = (_w2(sample_ode(flow.model, x0, steps=steps), fresh) for steps in (100, 4))
        energy = float(path_energy(flow.model, x0, steps=100).mean())
    return _Judged(far, near, abs(energy - squared) / squared, flow.seconds, flow.ess)


def _plane(parts: _Run) -> None:
    config, report = parts.config, parts.report
    tasks: dict[str, tuple[Law, Law]] = {"8 Gaussians to two moons": (_eight_gaussians, _moons)}
    if config.second_task:
        tasks["normal to 8 Gaussians"] = (_normal, _eight_gaussians)
    methods = _plane_methods(config)
    for number, (task, (source, target)) in enumerate(tasks.items()):
        found: dict[str, list[_Judged]] = {method.name: [] for method in methods}
        first: dict[str, nn.Module] = {}
        for seed in config.seeds:
            generator = seeded(10 * seed + 4)
            squared = _w2(source(config.reference, generator), target(config.reference, generator)) ** 2
            for method in methods:
                parts.log(f"(B) {task}, seed {seed}, {method.name}")
                flow = _trained(method, _plane_network, source, target, config.steps, seed)
                found[method.name].append(_judged(flow, source, target, config, seed, squared))
                first.setdefault(method.name, flow.model)
        columns = ("W2, 100 steps", "W2, 4 steps", "NPE", "seconds of training", "share of pairs that counts")
        table = report.table(f"(B) {task}, {config.steps} steps", columns)
        for name, rows in found.items():
            table.add(name, *([getattr(r, k) for r in rows] for k in ("far", "near", "npe", "seconds", "ess")))
        if number == 0:
            _plane_claims(report, found)
            _plane_figures(parts, found, first, source)


def _plane_claims(report: Report, found: dict[str, list[_Judged]]) -> None:
    def mean(name: str, what: str) -> float:
        return float(np.mean([getattr(r, what) for r in found[name]]))

    ours, where = _weighted(2.0), "(B) 8 Gaussians to two moons, epsilon 2: "
    for sentence, what, other, threshold in (
        ("NPE over that of I-CFM", "npe", _PLAIN, 0.25),
        ("W2 after 4 steps over that of I-CFM", "near", _PLAIN, 0.6),
        ("W2 after 100 steps over that of I-CFM", "far", _PLAIN, 1.25),
        ("W2 after 4 steps over that of OT-CFM with batch 16", "near", _SMALL, 0.8),
        ("seconds of training over those of I-CFM", "seconds", _PLAIN, 1.3),
    ):
        report.claims.append(Claim.at_most(where + sentence, mean(ours, what) / mean(other, what), threshold))
    ratio = mean(_weighted(0.5), "far") / mean(ours, "far")
    report.claims.append(Claim.at_least("(B) W2 after 100 steps with epsilon 0.5 over that with epsilon 2", ratio, 1.0))


def _plane_figures(parts: _Run, found: dict[str, list[_Judged]], models: dict[str, nn.Module], source: Law) -> None:
    config, report = parts.config, parts.report
    shown = (_PLAIN, _OT, _weighted(2.0), _weighted(0.5))
    x0 = source(200, seeded(1))
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.2), sharex=True, sharey=True)
    for ax, name in zip(axes, shown):
        with torch.no_grad():
            way = sample_ode(models[name], x0, steps=50, return_trajectory=True).numpy()
        ax.plot(way[:, :, 0], way[:, :, 1], color="0.6", linewidth=0.3, zorder=1)
        for points, colour in ((way[0], "#2b6cb0"), (way[-1], "#dd6b20")):
            ax.scatter(points[:, 0], points[:, 1], s=4, color=colour, linewidths=0, zorder=2)
        ax.set(title=name, aspect="equal")
    report.figure("paths", "(B) Paths from 8 Gaussians to two moons, first seed.", figure)
    figure, ax = plt.subplots(figsize=(4.5, 3.2))
    for what, label, style in (("far", "100 steps", "-o"), ("near", "4 steps", "--s")):
        means = [float(np.mean([getattr(r, what) for r in found[_weighted(e)]])) for e in config.epsilons]
        (line,) = ax.plot(config.epsilons, means, style, label=f"W-CFM, {label}")
        level = float(np.mean([getattr(r, what) for r in found[_PLAIN]]))
        ax.axhline(level, color=line.get_color(), linestyle=":", label=f"I-CFM, {label}")
    ax.set(xscale="log", xlabel="epsilon", ylabel="W2 to the data")
    ax.legend(frameon=False, fontsize=7)
    report.figure("epsilon", "(B) W2 against epsilon, mean over seeds.", figure)


# -- (C) and (D) images ----------------------------------------------------------------------------------------------


@dataclass
class _Pictures:
    """Images in [-1, 1] with their classes, and a network that tells the classes."""

    train: Tensor  # (n, d)
    train_labels: Tensor
    test: Tensor  # (m, d)
    side: int
    judge: Judge
    features: Tensor  # (m, 64) of the test images


class _ImageNetwork(nn.Module):
    """A residual network of dense layers on the pixels and the time; 0.75 million parameters at a width of 384."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.rates: Tensor
        self.register_buffer("rates", math.pi * torch.arange(1, 9))
        self.enter = nn.Linear(d + 16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.leave = nn.Linear(width, d)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        angle = t.unsqueeze(1) * self.rates
        h = self.enter(torch.cat([z, angle.sin(), angle.cos()], 1))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.leave(functional.silu(h))
        return out


def _loaded(parts: _Run) -> _Pictures:
    config, report = parts.config, parts.report
    if not config.digits:
        try:
            found = data.fashion_mnist()
        except data.DataUnavailable as failure:
            report.notes.append(f"(C) and (D) use digits: {' '.join(str(failure).split())}")
        else:
            info = data.info("fashion-mnist")
            report.data.append(f"fashion-mnist, averaged to 14 x 14: {info.source}; {info.licence}")
            train, test = (
                functional.avg_pool2d(torch.from_numpy(t).float().unsqueeze(1), 2).flatten(1) / 127.5 - 1
                for t in (found.train, found.test)
            )
            return _with_judge(parts, train, torch.from_numpy(found.train_labels), test,
                               torch.from_numpy(found.test_labels), 14)  # fmt: skip
    info = data.info("digits")
    report.data.append(f"digits: {info.source}; {info.licence}")
    images, labels = (torch.from_numpy(t) for t in data.digits())
    pixels = images.float().flatten(1) / 8 - 1
    cut = len(pixels) * 2 // 3
    return _with_judge(parts, pixels[:cut], labels[:cut], pixels[cut:], labels[cut:], 8)


def _with_judge(
    parts: _Run, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, side: int
) -> _Pictures:
    parts.log("(C) the network that judges")
    judge = trained_judge(train, train_labels, side, parts.config.seeds[0])
    with torch.no_grad():
        accuracy = float((judge(test).argmax(1) == test_labels).double().mean())
        features = judge.features(test)
    parts.report.notes.append(f"(C) The network that judges has {accuracy:.1%} accuracy on test images.")
    return _Pictures(train, train_labels, test, side, judge, features)


_STEPS = (4, 8, 50)
_IMAGE_COLUMNS = (
    *(f"Fréchet, {steps} steps" for steps in _STEPS),
    "path energy a pixel",
    "classes, total variation",
    "seconds of training",
    "share of pairs that counts",
)


@dataclass
class _Image:
    """One flow of images."""

    frechet: dict[int, float]  # by steps
    energy: float  # of the paths, a pixel
    classes: float  # total variation of the classes of what it makes, to equal shares
    seconds: float
    ess: float
    samples: Tensor  # a few, after 8 steps


def _image_flow(parts: _Run, pictures: _Pictures, method: _Method, seed: int) -> _Image:
    config = parts.config
    d = pictures.train.shape[1]

    def target(n: int, generator: torch.Generator) -> Tensor:
        return pictures.train[torch.randint(len(pictures.train), (n,), generator=generator)]

    def source(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, d, generator=generator)

    network = lambda: _ImageNetwork(d, config.width)  # noqa: E731
    flow = _trained(method, network, source, target, config.image_steps, seed, decay=True)
    x0 = source(config.generated, seeded(10 * seed + 3))
    frechet = {}
    with torch.no_grad():
        for steps in _STEPS:
            made = sample_ode(flow.model, x0, steps=steps)
            features = pictures.judge.features(made)
            frechet[steps] = float(gaussian_wasserstein(features.double(), pictures.features.double()))
            if steps == 8:
                some = made[:8]
        shares = torch.bincount(pictures.judge(made).argmax(1), minlength=10) / len(made)  # after most steps
        energy = float(path_energy(flow.model, x0[:1000], steps=50).mean()) / d
    return _Image(frechet, energy, float((shares - 0.1).abs().sum() / 2), flow.seconds, flow.ess, some)


def _images(parts: _Run) -> None:
    config, report = parts.config, parts.report
    pictures = _loaded(parts)
    d = pictures.train.shape[1]
    generator = seeded(config.seeds[0])
    some = pictures.train[torch.randperm(len(pictures.train), generator=generator)[: config.samples]]
    parts.log("(D) calibration")
    begin = time.perf_counter()
    calibration = WeightedCFM().calibrate(torch.randn(len(some), d, generator=generator), some)
    report.notes.append(f"(D) {calibration!r}, in {time.perf_counter() - begin:.1f} s on {len(some)} samples a side.")
    batch = config.image_batch
    weighted = f"W-CFM, kappa {calibration.kappa:.2g} by calibration"
    methods = [
        _Method(_PLAIN, batch=batch),
        _Method(f"OT-CFM, batch {batch}", ExactCoupling(), batch=batch),
        _Method("OT-CFM, pool", ExactCoupling(), batch=batch, pool=config.pool),
        _Method(weighted, batch=batch, epsilon=calibration.epsilon),
    ]
    found: dict[str, list[_Image]] = {method.name: [] for method in methods}
    seeds = config.seeds[: config.image_seeds]
    for seed in seeds:
        for method in methods:
            parts.log(f"(C) seed {seed}, {method.name}")
            found[method.name].append(_image_flow(parts, pictures, method, seed))
    name = "digits, 8 x 8" if pictures.side == 8 else "Fashion-MNIST, 14 x 14"
    table = report.table(f"(C) {name}, {config.image_steps} steps of training", _IMAGE_COLUMNS)
    for label, rows in found.items():
        _add_images(table, label, rows)
    with torch.no_grad():
        floor = float(gaussian_wasserstein(
            pictures.judge.features(pictures.train[: config.generated]).double(), pictures.features.double()
        ))  # fmt: skip
    report.notes.append(f"(C) Fréchet distance between training and test images: {floor:.3f}.")
    plain, ours = found[_PLAIN], found[weighted]
    ratio = _mean_frechet(ours) / _mean_frechet(plain)
    energies = [float(np.mean([r.energy for r in rows])) for rows in (ours, plain)]
    report.claims += [
        Claim.at_most("(C) Fréchet distance after 8 steps over that of I-CFM", ratio, 1.05),
        Claim.at_most("(C) path energy over that of I-CFM", energies[0] / energies[1], 1.0),
    ]
    _picture(report, {label: rows[0].samples for label, rows in found.items()}, pictures.side)
    _grid(parts, pictures, calibration, found[weighted])


def _mean_frechet(rows: list[_Image]) -> float:
    return float(np.mean([r.frechet[8] for r in rows]))


def _add_images(table: Any, label: str, rows: list[_Image]) -> None:
    frechet = ([r.frechet[steps] for r in rows] for steps in _STEPS)
    table.add(label, *frechet, *([getattr(r, k) for r in rows] for k in ("energy", "classes", "seconds", "ess")))


def _grid(parts: _Run, pictures: _Pictures, calibration: Calibration, calibrated: list[_Image]) -> None:
    """(D) the choice of kappa against a grid."""
    config, report = parts.config, parts.report
    root = math.sqrt(pictures.train.shape[1])
    seeds = config.seeds[: config.kappa_seeds]
    table = report.table("(D) W-CFM along kappa", _IMAGE_COLUMNS)
    found: dict[float, list[_Image]] = {}
    for kappa in config.kappas:
        method = _Method(f"kappa {kappa:g}", batch=config.image_batch, epsilon=kappa * root)
        rows = []
        for seed in seeds:
            parts.log(f"(D) seed {seed}, kappa {kappa:g}")
            rows.append(_image_flow(parts, pictures, method, seed))
        found[kappa] = rows
        _add_images(table, method.name, rows)
    alone = report.table("(D) Training images, weighted by their tilt, against test images", ("Fréchet",))
    for kappa in (*config.kappas, calibration.kappa):
        name = f"kappa {kappa:g}" if kappa in config.kappas else f"kappa {kappa:.3g}, by calibration"
        alone.add(name, _tilted(parts, pictures, kappa * root))
    chosen = calibrated[: len(seeds)]
    _add_images(table, f"kappa {calibration.kappa:.3g}, by calibration", chosen)
    best = min(_mean_frechet(rows) for rows in found.values())
    sentence = "(D) Fréchet distance after 8 steps with the calibrated kappa over the best of the grid"
    report.claims.append(Claim.at_most(sentence, _mean_frechet(chosen) / best, 1.05))
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    axes[0].plot(list(found), [_mean_frechet(rows) for rows in found.values()], "-o")
    axes[0].set(xscale="log", xlabel="kappa", ylabel="Fréchet distance, 8 steps")
    axes[1].loglog(calibration.kappas, calibration.relative_variance[:, 0], label="source")
    axes[1].loglog(calibration.kappas, calibration.relative_variance[:, 1], "--", label="data")
    axes[1].loglog(calibration.kappas, calibration.ess, ":", label="share of pairs that counts")
    axes[1].set(xlabel="kappa", ylabel="relative variance of the tilt")
    for ax in axes:
        ax.axvline(calibration.kappa, color="0.5", linewidth=0.8)
    axes[1].legend(frameon=False, fontsize=7)
    report.figure("kappa", "(D) Fréchet distance and tilts along kappa; the line is the calibrated one.", figure)


def _tilted(parts: _Run, pictures: _Pictures, epsilon: float) -> float:
    """The Fréchet distance that weights cause by what they do to the data, whatever is trained."""
    config = parts.config
    some = pictures.train[: config.generated]
    noise = torch.randn(config.samples, some.shape[1], generator=seeded(config.seeds[0]))
    mass = marginal_tilt(some, noise, epsilon, log=True).double().softmax(0)
    with torch.no_grad():
        features = pictures.judge.features(some).double()
    return float(gaussian_wasserstein(features, pictures.features.double(), mass))


def _picture(report: Report, samples: dict[str, Tensor], side: int) -> None:
    figure, axes = plt.subplots(len(samples), 1, figsize=(8, 1.3 * len(samples)))
    for ax, (name, images) in zip(axes, samples.items()):
        ax.imshow(torch.cat(list(images.reshape(-1, side, side)), 1).numpy(), cmap="gray", vmin=-1, vmax=1)
        ax.set_title(name, fontsize=8)
        ax.axis("off")
    report.figure("samples", "(C) The same noise after 8 Euler steps, first seed.", figure)
