"""Plans of low rank: `LowRank` beside POT's `lowrank_sinkhorn`, cost over the optimum and seconds.

    python benchmarks/lowrank.py [--points 2000] [--ranks 2 5 10 20 50] [--sizes 1000 10000 100000] [--limit 60]

float64, one thread, one process, the processor's seconds. The optimum is that of the network simplex. Squared Euclidean
costs, uniform masses, n points a side:

* plane: two Gaussian clouds in 2 dimensions, one of them sheared; ten: two in 10 dimensions of other widths;
* clusters: ten clusters a side in 2 dimensions; rings: a noisy circle onto a square.

POT runs from both of its starts ("random" and "kmeans", its defaults else, 500 iterations at most); the cheaper counts,
and the seconds of both. Costs are recomputed from the factors. `missed` is the L1 error of its marginals: ours are
exact to rounding. `lower` is the lower bound of our certificate over the optimum.

The second table is about time: rank 10 in the plane, n points a side, without the certificate.

The third is about soft marginals, which POT's solver does not take: a tenth of the points of each side lies far away,
rho is the mean cost in the plan of the clouds without outliers. Objectives over the optimum, which is that of the
network simplex; with KL that of full rank, up to the last epsilon. The fourth is about their time.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import ot  # noqa: E402
import torch  # noqa: E402
from machine import processor  # noqa: E402

import brenier  # noqa: E402
from brenier.solvers import LowRank  # noqa: E402


def make(kind, n):
    rng = np.random.default_rng(0)
    if kind == "plane":
        return rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) @ np.array([[1, 0.5], [0, 0.6]]) + 1
    if kind == "ten":
        return rng.normal(size=(n, 10)), rng.normal(size=(n, 10)) * np.linspace(0.3, 1.5, 10)
    if kind == "clusters":
        centres = 4 * rng.normal(size=(2, 10, 2))
        return tuple(c[np.arange(n) % 10] + 0.2 * rng.normal(size=(n, 2)) for c in centres)
    angle = 2 * np.pi * rng.random(n)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + 0.1 * rng.normal(size=(n, 1)))
    return ring, 2 * rng.random((n, 2)) - 1


def timed(function):
    begin = time.process_time()
    result = function()
    return result, time.process_time() - begin


def pot(x, y, rank):
    """The cheaper of POT's two starts: its cost, its marginal error, and the seconds of both."""
    a = np.full(len(x), 1 / len(x))
    best, missed, total = np.inf, np.nan, 0.0
    for start in ("random", "kmeans"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (Q, R, g), seconds = timed(
                    lambda start=start: ot.lowrank_sinkhorn(
                        x, y, a, a, rank=rank, init=start, numItermax=500, warn=False
                    )[:3]
                )
        except ValueError:  # it met a NaN
            continue
        total += seconds
        # <Q diag(1/g) R^T, C> without the matrices
        square_x, square_y = (x**2).sum(1) @ (Q / g) @ R.sum(0), (y**2).sum(1) @ (R / g) @ Q.sum(0)
        cost = square_x + square_y - 2 * ((x.T @ Q / g) * (y.T @ R)).sum()
        if cost < best:
            best, missed = cost, abs((Q / g) @ R.sum(0) - a).sum() + abs((R / g) @ Q.sum(0) - a).sum()
    return best, missed, total


def soft_marginals(points, ranks, sizes):
    """The tables about soft marginals."""
    print(f"\nn = {points}, a tenth of them outliers, objective over the optimum, (lower bound) and seconds")
    print(f"{'':<10} {'marginals':<18} {'moved':>6} " + " ".join(f"{f'rank {r}':>20}" for r in ranks))
    for kind in ("plane", "clusters"):
        x, y = make(kind, points)
        rho = float(brenier.solve(x, y).value)
        x[: points // 10] += 20
        y[: points // 10] -= 20
        cases = {
            "exact": brenier.Exact(),
            "TV": brenier.TV(rho),
            "Slack": brenier.Slack(rho),
            "Partial(0.8)": brenier.Partial(0.8),
            "exact, TV": (brenier.Exact(), brenier.TV(rho)),
            "exact, free": (brenier.Exact(), brenier.Free()),
            "KL": brenier.KL(rho),
            "exact, KL": (brenier.Exact(), brenier.KL(rho)),
        }
        for name, marginals in cases.items():
            best = LowRank(rank=points) if "KL" in name else "auto"
            optimum = brenier.solve(x, y, marginals=marginals, solver=best)
            cells = []
            for rank in ranks:
                solution, seconds = timed(
                    lambda x=x, y=y, p=marginals, rank=rank: brenier.solve(x, y, marginals=p, solver=LowRank(rank=rank))
                )
                over, lower = (float(t) / float(optimum.value) for t in (solution.value, solution.certificate.dual))
                cells.append(f"{over:>7.4f} {f'({lower:.3f})':>7} {seconds:>4.1f}")
            moved = float(optimum.plan.row_sums().sum())
            print(f"{kind:<10} {name:<18} {moved:>6.3f} " + " ".join(cells), flush=True)
    heads = " ".join(f"{name:>8} {'steps':>6}" for name in ("exact", "TV", "KL"))
    print(f"\nrank 10 in the plane, seconds\n{'n':>9} {heads}")
    for n in sizes:
        x, y = make("plane", n)
        row = f"{n:>9}"
        for marginals in (brenier.Exact(), brenier.TV(2.0), brenier.KL(2.0)):
            solution, seconds = timed(
                lambda x=x, y=y, p=marginals: brenier.solve(x, y, marginals=p, solver=LowRank(rank=10))
            )
            row += f" {seconds:>8.2f} {solution.stats['n_iter']:>6}"
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 5, 10, 20, 50])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--soft", type=int, default=300, help="points a side with soft marginals; 0 leaves them out")
    parser.add_argument("--limit", type=float, default=60, help="seconds of POT after which larger sizes are left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, one thread, float64, POT {ot.__version__}")
    print(f"\nn = {options.points}, costs over the optimum")
    print(f"{'':<10} {'rank':>5} {'ours':>8} {'seconds':>8} {'lower':>7} {'POT':>8} {'seconds':>8} {'missed':>8}")
    for kind in ("plane", "ten", "clusters", "rings") if options.ranks else ():
        x, y = make(kind, options.points)
        optimum = float(brenier.solve(x, y).value)
        for rank in options.ranks:
            solution, seconds = timed(lambda x=x, y=y, rank=rank: brenier.solve(x, y, solver=LowRank(rank=rank)))
            theirs, missed, their_seconds = pot(x, y, rank)
            print(
                f"{kind:<10} {rank:>5} {float(solution.value) / optimum:>8.4f} {seconds:>8.2f}"
                f" {float(solution.certificate.dual) / optimum:>7.4f}"
                f" {theirs / optimum:>8.4f} {their_seconds:>8.2f} {missed:>8.0e}",
                flush=True,
            )
    print(f"\nrank 10 in the plane\n{'n':>9} {'ours':>9} {'seconds':>8} {'steps':>6} {'POT':>9} {'seconds':>8}")
    late = False
    for n in options.sizes:
        x, y = make("plane", n)
        solution, seconds = timed(lambda x=x, y=y: brenier.solve(x, y, solver=LowRank(rank=10)))
        row = f"{n:>9} {float(solution.value):>9.5f} {seconds:>8.2f} {solution.stats['n_iter']:>6}"
        if not late:
            theirs, _, their_seconds = pot(x, y, 10)
            row, late = f"{row} {theirs:>9.5f} {their_seconds:>8.2f}", their_seconds > options.limit
        print(row, flush=True)
    if options.soft:
        soft_marginals(options.soft, options.ranks, options.sizes)


if __name__ == "__main__":
    main()
