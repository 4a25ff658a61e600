"""Gromov-Wasserstein problems: brenier beside POT and OTT, from the same start, by the objective each reaches.

float64, one thread, one process, repeats interleaved; seconds are those of the processor, the least over the repeats.
`difference` is the rival's objective over ours, minus one, both recomputed in float64 from the plans: negative where
the rival found a better plan, or one that misses its marginals: `errors` are sum |P1 - a| + sum |P^T 1 - b|, ours
first. Compilation is not timed.

* clouds: squared Euclidean distances of two Gaussian clouds, d = 2 and 3; brenier gets the points, POT the matrices.
* distances: Euclidean distances of the same clouds, as matrices.
* graphs: shortest paths of two random geometric graphs.

Each by conditional gradients without epsilon (POT only), and with entropy at 0.05 and 0.005 x the objective of a ⊗ b:
POT stops at a change of 1e-9 of its plan, OTT, which starts each linear problem from the last one, at a relative change
of 1e-8 of its cost. Values with entropy are compared with entropy. Each rival has a process of its own, and is stopped
after --patience times our seconds, or --limit seconds if these are more; whoever takes longer than --limit runs once.

Then many small pairs at once, `--batch` of them, as milliseconds for each:

* `40 x 40`: Euclidean distances of clouds as above, all of one size.
* `20 to 50`: graphs as above, of different sizes on both sides, which brenier pads.

brenier solves all of them in one call, and for comparison the first `--some` in a loop; rivals take these only: POT in
a loop, and its proximal points, `ot.batch.solve_gromov_batch`, which have no mask for padding, beside ours at a change
of 1e-4. `better` is the share of pairs at which our objective is not above the rival's by more than 1e-6 of it;
`difference` is the mean over the pairs.

    python benchmarks/structure.py [--sizes 500 1000 2000] [--kinds clouds distances graphs] [--repeats 2] [--limit 30]
                                   [--patience 8] [--batch 1024] [--some 64]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_ENABLE_X64"] = "1"

import argparse  # noqa: E402
import functools  # noqa: E402
import multiprocessing  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import ot  # noqa: E402
import ot.batch  # noqa: E402
import torch  # noqa: E402
from machine import processor  # noqa: E402
from ott.geometry.geometry import Geometry  # noqa: E402
from ott.problems.quadratic.quadratic_problem import QuadraticProblem  # noqa: E402
from ott.solvers.linear.sinkhorn import Sinkhorn  # noqa: E402
from ott.solvers.quadratic.gromov_wasserstein import GromovWasserstein  # noqa: E402
from scipy.sparse import csr_array  # noqa: E402
from scipy.sparse.csgraph import connected_components, shortest_path  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402
from scipy.special import xlogy  # noqa: E402

import brenier  # noqa: E402


def graph(n, rng):
    while True:
        x = rng.random((n, 2))
        distance = cdist(x, x)
        edges = np.where(distance < 2.5 * np.sqrt(np.log(n) / (np.pi * n)), distance, 0)
        if connected_components(csr_array(edges))[0] == 1:
            return shortest_path(csr_array(edges), directed=False)


def make(kind, n, rng):
    """What brenier gets, and the matrices."""
    if kind == "graphs":
        pair = graph(n, rng), graph(n, rng)
    else:
        x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 3))
        metric = "sqeuclidean" if kind == "clouds" else "euclidean"
        pair = cdist(x, x, metric), cdist(y, y, metric)
    return ((x, y), None, pair) if kind == "clouds" else (pair, "precomputed", pair)


def objective(plan, C, D, epsilon):
    p, q = plan.sum(1), plan.sum(0)
    value = p @ C**2 @ p + q @ D**2 @ q - 2 * ((C @ plan @ D) * plan).sum()
    if epsilon is not None:
        value += epsilon * (xlogy(plan, plan).sum() - xlogy(p, p).sum() - xlogy(q, q).sum())
    return value


def ours(inputs, cost, epsilon):
    return brenier.gromov_wasserstein(*inputs, cost=cost, epsilon=epsilon, starts=1)


def pot(C, D, epsilon):
    mass = np.full(len(C), 1 / len(C)), np.full(len(D), 1 / len(D))
    if epsilon is None:
        return ot.gromov.gromov_wasserstein(C, D, *mass, symmetric=True)
    return ot.gromov.entropic_gromov_wasserstein(C, D, *mass, epsilon=epsilon, symmetric=True, max_iter=1000, tol=1e-9)


def ott(C, D, epsilon):
    """Compiled for these sizes before; the plan."""
    return np.asarray(compiled(C.shape, D.shape, epsilon)(C, D))


@functools.cache
def compiled(left, right, epsilon):
    # its linear cost is half the gradient, so that half the epsilon belongs to it
    def solve(C, D):
        inner = Sinkhorn(threshold=1e-7, max_iterations=5000)
        solver = GromovWasserstein(inner, epsilon=epsilon / 2, warm_start=True, threshold=1e-8, max_iterations=500)
        return solver(QuadraticProblem(Geometry(C), Geometry(D))).matrix

    return jax.jit(solve).lower(*(jax.ShapeDtypeStruct(shape, float) for shape in (left, right))).compile()


def prepare(*sizes_and_epsilon):
    compiled(*sizes_and_epsilon)


class Rival:
    """A solver in a process of its own, which is stopped where it takes too much of the processor."""

    def __init__(self, solve):
        self.solve, self.pool = solve, None

    def timed(self, C, D, epsilon, limit):
        """Seconds and plan; None for the plan where it was stopped."""
        if self.pool is None:
            self.pool = multiprocessing.get_context("spawn").Pool(1)
        if self.solve is ott:  # not timed
            self.pool.apply(prepare, (C.shape, D.shape, epsilon))
        begin = self.pool.apply(time.process_time)
        process = self.pool.apply(os.getpid)
        job = self.pool.apply_async(timed, (self.solve, C, D, epsilon))
        while not job.ready() and taken(process) - begin < limit:
            job.wait(0.2)
        if job.ready():
            return job.get()
        self.stop()
        return limit, None

    def stop(self):
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()
            self.pool = None


def taken(process):
    """Seconds of the processor that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(solve, *arguments):
    start = time.process_time()
    result = solve(*arguments)
    return time.process_time() - start, result


def proximal(C, D):
    """Our proximal points."""
    solution = brenier.gromov_wasserstein(C, D, cost="precomputed", solver=brenier.solvers.Proximal(tol=1e-4), starts=1)
    return solution.plan.dense().numpy()


def pot_batch(C, D):
    """POT's proximal points of a batch of one size, with the step of ours and its own number of steps."""
    C, D = torch.from_numpy(np.stack(C)), torch.from_numpy(np.stack(D))
    reg = 0.05 * float(np.mean([objective(product(*p), *p, None) for p in zip(C.numpy(), D.numpy())]))
    found = ot.batch.solve_gromov_batch(C, D, reg=reg, max_iter_inner=100, tol_inner=1e-7, tol=1e-9, grad="detach")
    return found.plan.numpy()


def product(C, D):
    return np.full((len(C), len(D)), 1 / (len(C) * len(D)))


def many(count, some, shares, repeats, rng):
    """Small pairs at once, beside loops over the first of them."""
    drawn = rng.integers(20, 51, (2, count))
    for epsilon in (None, 1.0):
        ours((np.eye(3), np.eye(3)), "precomputed", epsilon)  # what is imported late is not timed
    sizes = {"40 x 40": np.full((2, count), 40), "20 to 50": drawn}
    print(f"\n{count} pairs in one call, milliseconds for each; loops over the first {some}")
    print(f"{'sizes':<10} {'epsilon':>8} {'beside':<24} {'ours':>8} {'theirs':>8} {'ratio':>7} ", end="")
    print(f"{'difference':>10} {'better':>7} {'errors':>15} status")
    for title, (left, right) in sizes.items():
        if title == "40 x 40":
            C, D = ([cdist(t, t) for t in (rng.normal(size=(n, d)) for n in s)] for s, d in ((left, 2), (right, 3)))
        else:
            C, D = ([graph(n, rng) for n in s] for s in (left, right))
        (x, a), (y, b) = (brenier.pad_structures(s, cost="precomputed") for s in (C, D))
        for share in shares:
            each = np.array([share * objective(product(*p), *p, None) for p in zip(C, D)])
            epsilon = each if share else None

            def batched(x=x, y=y, a=a, b=b, epsilon=epsilon):
                return brenier.gromov_wasserstein(x, y, a=a, b=b, epsilon=epsilon, starts=1)

            def looped(C=C, D=D, each=each, share=share):
                return [ours((C[k], D[k]), "precomputed", each[k] if share else None).plan.dense() for k in range(some)]

            def rival(C=C, D=D, each=each, share=share):
                return [pot(C[k], D[k], each[k] if share else None) for k in range(some)]

            calls = {"ours": batched, "brenier, one by one": looped, "POT, one by one": rival}
            if not share and title == "40 x 40":
                calls["brenier, proximal, batch"] = lambda x=x, y=y: proximal(x.cost[:some], y.cost[:some])
                calls["POT, proximal, batch"] = lambda C=C, D=D: pot_batch(C[:some], D[:some])
            best, plans = {}, {}
            for _ in range(repeats):
                for name, call in calls.items():
                    seconds, plans[name] = timed(call)
                    best[name] = min(best.get(name, np.inf), 1e3 * seconds / (count if name == "ours" else some))
            solution = plans["ours"]
            plans["ours"] = [P[: len(c), : len(d)] for P, c, d in zip(solution.plan.dense()[:some], C, D)]
            values = {
                name: np.array([objective(P, C[k], D[k], each[k] if share else None) for k, P in enumerate(found)])
                for name, found in plans.items()
            }
            wrong = {
                name: max(abs(P.sum(1) - 1 / P.shape[0]).sum() + abs(P.sum(0) - 1 / P.shape[1]).sum() for P in found)
                for name, found in plans.items()
            }
            for name in list(calls)[1:]:
                change = values[name] / values["ours"] - 1
                print(
                    f"{title:<10} {share:>8g} {name:<24} {best['ours']:>8.2f} {best[name]:>8.2f} "
                    f"{best[name] / best['ours']:>7.2f} {change.mean():>10.1e} {(change >= -1e-6).mean():>7.0%} "
                    f"{wrong['ours']:>7.1e} {wrong[name]:>7.1e} {solution.status.name}",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[500, 1000, 2000])
    parser.add_argument("--kinds", nargs="*", default=["clouds", "distances", "graphs"])
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0, 0.05, 0.005])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=30, help="seconds above which either runs once")
    parser.add_argument("--patience", type=float, default=8, help="a rival may take so many times as long")
    parser.add_argument("--batch", type=int, default=1024, help="pairs in one call")
    parser.add_argument("--some", type=int, default=64, help="of them in a loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"{processor()}, one thread, float64, POT {ot.__version__}, best of {options.repeats}")
    print(f"{'n':>5} {'kind':<10} {'epsilon':>8} {'rival':<6} {'ours, s':>9} {'rival, s':>9} {'ratio':>9} ", end="")
    print(f"{'difference':>10} {'errors':>15} status")
    warnings.simplefilter("ignore")
    rivals = {"POT": Rival(pot), "OTT": Rival(ott)}
    for n in options.sizes:
        for kind in options.kinds:
            inputs, cost, (C, D) = make(kind, n, rng)
            for share in options.epsilons:
                epsilon = share * objective(product(C, D), C, D, None) or None
                names = ["POT"] if epsilon is None else ["POT", "OTT"]
                best, plans = {}, {}
                for _ in range(options.repeats):
                    for name in ("ours", *names):
                        if best.get(name, 0) > options.limit or plans.get(name, C) is None:
                            continue
                        if name == "ours":
                            seconds, plans[name] = timed(ours, inputs, cost, epsilon)
                        else:
                            limit = max(options.limit, options.patience * best["ours"])
                            seconds, plans[name] = rivals[name].timed(C, D, epsilon, limit)
                        best[name] = min(best.get(name, np.inf), seconds)
                solution = plans["ours"]
                plans["ours"] = solution.plan.dense()
                for name in names:
                    line = f"{n:>5} {kind:<10} {share:>8g} {name:<6} {best['ours']:>9.3f} "
                    if plans[name] is None:
                        line += f"{best[name]:>9.0f} {best[name] / best['ours']:>9.2f} or more: stopped"
                    else:
                        value, mine = (objective(plans[k], C, D, epsilon) for k in (name, "ours"))
                        wrong = [sum(abs(plans[k].sum(i) - 1 / n).sum() for i in (0, 1)) for k in ("ours", name)]
                        errors = " ".join(f"{w:.1e}" for w in wrong)
                        line += f"{best[name]:>9.3f} {best[name] / best['ours']:>9.2f} {value / mine - 1:>10.1e} "
                        line += f"{errors:>15}"
                    print(f"{line} {solution.status.name}", flush=True)
    for rival in rivals.values():
        rival.stop()
    if options.batch:
        many(options.batch, options.some, options.epsilons, options.repeats, rng)


if __name__ == "__main__":
    main()
