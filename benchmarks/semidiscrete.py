"""Semi-discrete transport: time and error of exact cells and of averaged stochastic gradients.

    python benchmarks/semidiscrete.py [--part newton sgd dpm] [--atoms 1000 10000] [--solid 300] [--tol 0.01]

float64 for exact cells, one thread; `cpu` is the processor's seconds.

* newton: atoms in the unit square (uniform; and crowded, a tenth of the width, off the middle) under the uniform law
  and under an image of 256 x 256 pixels, and in the unit cube, to a marginal error of 1e-6. `error` is sum |m - b| of
  the exact masses, `gap` the relative gap of the certificate, `full` the number of steps of length one.
* sgd: a Gaussian source and 256 Gaussian atoms in 64 dimensions, float32, until the marginal error is below --tol.
  `fresh` is sum |m - b| of shares of 4 million other points, `floor` what such shares would show for perfect cells.
* dpm: what a fast sampler of a diffusion model asks: total variation of shares of 50,000 fresh points beyond its
  floor, empty cells, for 300 minibatches of 4,000 points: 1,000 atoms in 196 dimensions, 500 in 2 and 16, eight modes
  in low dimension. Beside it the rule of the published sampler (Adam without bias correction on the mean-centred h,
  rate 0.1), on as many points.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import math  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import torch  # noqa: E402
from machine import processor  # noqa: E402

import brenier  # noqa: E402
from brenier.solvers import AveragedSGD, PixelDensity, UniformBox, semidiscrete_transport  # noqa: E402

D = torch.float64


def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    out = function()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def newton(atoms, solid):
    print(
        f"{'source':<14} {'atoms':<9} {'n':>6} {'status':<10} {'steps':>5} {'full':>4} {'cpu':>7} {'seconds':>8}",
        end="",
    )
    print(f" {'error':>8} {'gap':>8}")
    u = torch.linspace(-1, 1, 256, dtype=D)
    image = PixelDensity(0.05 + torch.exp(-8 * (torch.hypot(u[:, None], u) - 0.6) ** 2))
    plane, space = UniformBox([0.0] * 2, [1.0] * 2), UniformBox([0.0] * 3, [1.0] * 3)
    cases = [(name, source, kind, n) for n in atoms for name, source in (("square", plane), ("image", image))
             for kind in ("uniform", "crowded")]  # fmt: skip
    cases += [("cube", space, "uniform", n) for n in solid]
    for name, source, kind, n in cases:
        y = torch.rand(n, source.d, generator=torch.Generator().manual_seed(0), dtype=D)
        y = y if kind == "uniform" else 0.1 * y + 0.3
        found, wall, cpu = timed(lambda: semidiscrete_transport(source, y, tol=1e-6))  # noqa: B023
        full = sum(t == 1 for t in found.stats["step_sizes"])
        print(
            f"{name:<14} {kind:<9} {n:>6} {found.status.name:<10} {found.stats['n_iter']:>5} {full:>4} "
            f"{cpu:>7.2f} {wall:>8.2f} {found.stats['marginal_error']:>8.1e} "
            f"{float(found.certificate.relative_gap):>8.1e}",
            flush=True,
        )


def shares(assign, source, m, n, generator, rows=50_000):
    """The share of n fresh points in each cell."""
    total = torch.zeros(m, dtype=D)
    for start in range(0, n, rows):
        total += torch.bincount(assign(source(min(rows, n - start), generator)), minlength=m)
    return total / n


def sgd(tol):
    m, d, n = 256, 64, 4_000_000
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(m, d, generator=generator)

    def source(count, generator):
        return torch.randn(count, d, generator=generator)

    solver = AveragedSGD(tol=tol, max_iter=20_000)
    found, wall, cpu = timed(lambda: semidiscrete_transport(source, y, method=solver, generator=generator))
    print(
        f"\nd = {d}, {m} atoms: {found.status.name} after {found.stats['n_iter']} minibatches, "
        f"cpu {cpu:.1f}, {wall:.1f} s"
    )
    print(found.certificate)
    off = float((shares(found.assign, source, m, n, generator) - 1 / m).abs().sum())
    print(
        f"fresh {off:.4f}, floor {math.sqrt(2 * m / (math.pi * n)):.4f}, "
        f"marginal error {found.stats['marginal_error']:.4f}"
    )


def published(source, y, steps, batch, generator, rate=0.1):
    """Adam on h, the score being <x, y> + h; returns h."""
    m = len(y)
    h, first, second = (torch.zeros(m) for _ in range(3))
    for _ in range(steps):
        index = (source(batch, generator) @ y.mT + h).argmax(1)
        slope = torch.bincount(index, minlength=m) / batch - 1 / m
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        h = h - rate * first / (second.sqrt() + 1e-8)
        h = h - h.mean()
    return h


def dpm():
    print(
        f"\n{'source':<9} {'d':>4} {'m':>5} {'method':<10} {'cpu':>7} {'beyond':>7} {'TV':>7} {'floor':>7} "
        f"{'empty':>5}",
        end="",
    )
    print(f" {'T cost':>8} {'exact':>8}")
    for d, m in ((2, 500), (16, 500), (196, 1000)):
        generator = torch.Generator().manual_seed(0)
        angle = torch.randint(8, (m,), generator=generator) * math.pi / 4
        modes = torch.zeros(m, d)
        modes[:, 0], modes[:, 1] = 4 * angle.cos(), 4 * angle.sin()
        y = modes + 0.3 * torch.randn(m, d, generator=generator)
        for name in ("gaussian", "uniform"):

            def source(count, generator, name=name, d=d):
                draw = torch.randn if name == "gaussian" else torch.rand
                return draw(count, d, generator=generator)

            x = source(1000, generator)
            exact = float(brenier.solve(x, y).value)
            for method in ("ours", "published"):
                if method == "ours":
                    solver = AveragedSGD(tol=1e-3, max_iter=300, batch_size=4000, held_out=20_000)
                    found, _, cpu = timed(
                        lambda: semidiscrete_transport(source, y, method=solver, generator=generator)  # noqa: B023
                    )
                    assign = found.assign
                else:
                    h, _, cpu = timed(lambda: published(source, y, 300, 4000, generator))  # noqa: B023

                    def assign(x, h=h, y=y):
                        return (x @ y.mT + h).argmax(1)

                n = 50_000
                found_shares = shares(assign, source, m, n, generator)
                tv, floor = float((found_shares - 1 / m).abs().sum()) / 2, math.sqrt(2 * m / (math.pi * n)) / 2
                points = source(n, generator)
                moved = float((points - y[assign(points)]).square().sum(1).mean())
                print(
                    f"{name:<9} {d:>4} {m:>5} {method:<10} {cpu:>7.1f} {tv - floor:>7.3f} {tv:>7.3f} {floor:>7.3f} "
                    f"{int((found_shares == 0).sum()):>5} {moved:>8.4g} {exact:>8.4g}",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=["newton", "sgd", "dpm"], default=["newton", "sgd", "dpm"])
    parser.add_argument("--atoms", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--solid", type=int, nargs="+", default=[300])
    parser.add_argument("--tol", type=float, default=0.01)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", brenier.NotConvergedWarning)
    print(processor())
    if "newton" in options.part:
        newton(options.atoms, options.solid)
    if "sgd" in options.part:
        sgd(options.tol)
    if "dpm" in options.part:
        dpm()


if __name__ == "__main__":
    main()
