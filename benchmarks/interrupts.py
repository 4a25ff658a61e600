"""Stop exact solves at random moments, by timeout and by Ctrl-C, and check what comes back.

A stop by timeout must give a feasible plan with its true gap: the plan's sums and cost, and the feasibility and the
value of the potentials, are recomputed here from the dense cost in float64. A stop by Ctrl-C must raise
KeyboardInterrupt and leave nothing behind. `late` is the time between the moment of the stop and the return.

    python benchmarks/interrupts.py [--stops 50] [--n 3000] [--seed 0]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import argparse  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402

import brenier  # noqa: E402
from brenier import NotConvergedWarning, Status  # noqa: E402
from brenier.solvers import NetworkSimplex  # noqa: E402


def check(solution, C, a, b):
    """Gap of a solution, recomputed; raises where its plan, its potentials or its certificate are wrong."""
    scale = np.abs(C).max()
    rows, cols, mass = (t.numpy() for t in solution.plan.entries())
    assert (mass > 0).all()
    for index, sums in ((rows, a), (cols, b)):
        np.testing.assert_allclose(np.bincount(index, mass, len(sums)), sums, rtol=0, atol=1e-12)
    f, g = solution.f.numpy(), solution.g.numpy()
    slack = min((C[k : k + 500] - f[k : k + 500, None] - g).min() for k in range(0, len(f), 500))
    assert slack >= -1e-12 * scale, slack
    primal, dual = float(C[rows, cols] @ mass), float(f @ a + g @ b)
    certificate = solution.certificate
    assert abs(float(certificate.primal) - primal) <= 1e-10 * scale
    assert float(certificate.dual) >= dual - 1e-10 * scale  # its c-transforms may only improve
    assert float(certificate.dual) <= primal + 1e-10 * scale
    if solution.status is Status.OPTIMAL:
        assert primal - dual <= 1e-10 * scale
    return (primal - dual) / primal


def by_timeout(problem, solver, seconds):
    start = time.perf_counter()
    solution = brenier.solve(*problem[:2], a=problem[2], b=problem[3], solver=solver, timeout=max(1e-9, seconds))
    return solution, time.perf_counter() - start - seconds


def by_interrupt(problem, solver, seconds):
    """No solution where the interrupt came in time."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    start = time.perf_counter()
    timer.start()
    try:
        solution = brenier.solve(*problem[:2], a=problem[2], b=problem[3], solver=solver)
        timer.cancel()
        timer.join()  # if it is on its way, it comes here
    except KeyboardInterrupt:
        delay = time.perf_counter() - start - seconds
        timer.join()
        return None, delay
    return solution, 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=50, help="of each kind")
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NotConvergedWarning)
    random, generator = np.random.default_rng(options.seed), torch.Generator().manual_seed(options.seed)
    x, y = (torch.randn(options.n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (torch.from_numpy(random.dirichlet(np.ones(options.n))) for _ in range(2))
    problem, C = (x, y + 0.5, a, b), cdist(x, y + 0.5, "sqeuclidean")
    print(
        f"{'pairs':<6} {'by':<10} {'stops':>5} {'in time':>7} {'late, median':>12} {'late, most':>10}   gap, quartiles"
    )
    for pairs in ("dense", "lazy"):
        solver = NetworkSimplex(pairs=pairs)
        start = time.perf_counter()
        brenier.solve(*problem[:2], a=a, b=b, solver=solver)
        whole = time.perf_counter() - start
        for kind, stop in (("timeout", by_timeout), ("interrupt", by_interrupt)):
            gaps, late, ended = [], [], 0
            for _ in range(options.stops):
                solution, delay = stop(problem, solver, float(random.uniform(0, whole)))
                late.append(delay)
                if solution is None:
                    continue
                gap = check(solution, C, a.numpy(), b.numpy())
                if solution.status is Status.TIME_OUT:
                    gaps.append(gap)
                else:
                    assert solution.status is Status.OPTIMAL
                    ended += 1
            quartiles = "  ".join(f"{q:.1e}" for q in np.quantile(gaps, (0, 0.25, 0.5, 0.75, 1))) if gaps else "-"
            print(
                f"{pairs:<6} {kind:<10} {options.stops:>5} {options.stops - ended:>7} {np.median(late):>11.3f}s "
                f"{max(late):>9.3f}s   {quartiles}",
                flush=True,
            )
    assert threading.active_count() == 1, "a thread is left"


if __name__ == "__main__":
    main()
