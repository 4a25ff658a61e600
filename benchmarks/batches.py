"""Many small problems at once: brenier against POT, OTT under vmap, and batched Sinkhorn in torch, plain and compiled.

Squared Euclidean costs between Gaussian clouds in three dimensions, uniform weights, float64, epsilon = 0.05 x mean
cost of all problems; one process, --threads for all. Every candidate runs until all marginal errors sum_i |P1 - a|_i
and sum_j |P^T 1 - b|_j are below 1e-6, or to its limit of iterations; the share of problems that got there, recomputed
in float64 from the potentials or the plan, stands beside the time. Where a rival did not solve all of them, its time is
a lower bound of what the same answer would take.

* `batch`: 1,024 problems of 64 x 64.
* `ragged`: 500 clouds of 50 to 2,000 points. Rivals take every k-th problem only (`--every`), and ours takes these
  too: ratios are those of the same problems. No rival holds 500 padded matrices of 2,000 x 2,000 (16 GB), so they
  loop.

    python benchmarks/batches.py [--problems 1024] [--clouds 500] [--every 25] [--limit 2000] [--rounds 3] [--threads 1]
"""

import os
import sys

THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = THREADS
if THREADS == "1":
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_ENABLE_X64"] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import ot  # noqa: E402
import ot.batch  # noqa: E402
import torch  # noqa: E402
from ott.geometry.geometry import Geometry  # noqa: E402
from ott.problems.linear.linear_problem import LinearProblem  # noqa: E402
from ott.solvers.linear.sinkhorn import Sinkhorn  # noqa: E402

import brenier  # noqa: E402

TOL = 1e-6


def worst_errors(plan, n, m):
    """The larger marginal error of each problem of a dense plan."""
    return torch.maximum((plan.sum(-1) - 1 / n).abs().sum(-1), (plan.sum(-2) - 1 / m).abs().sum(-1))


def torch_sinkhorn(cost, epsilon, limit):
    """Log-domain Sinkhorn on (*batch, n, m) until all row errors are small; returns the errors."""
    n, m = cost.shape[-2:]
    kernel = -cost / epsilon
    v = torch.full_like(cost[..., 0, :], -torch.log(torch.tensor(float(m))))
    log_a, log_b = -torch.log(torch.tensor(float(n))), -torch.log(torch.tensor(float(m)))
    for i in range(limit):
        u = log_a - torch.logsumexp(kernel + v.unsqueeze(-2), -1)
        v = log_b - torch.logsumexp(kernel + u.unsqueeze(-1), -2)
        if i % 10 == 9:
            rows = (kernel + u.unsqueeze(-1) + v.unsqueeze(-2)).exp().sum(-1)
            if bool(((rows - 1 / n).abs().sum(-1) <= TOL).all()):
                break
    return worst_errors((kernel + u.unsqueeze(-1) + v.unsqueeze(-2)).exp(), n, m)


@torch.compile(dynamic=False)
def _ten_steps(kernel, v, log_a, log_b):
    for _ in range(10):
        u = log_a - torch.logsumexp(kernel + v.unsqueeze(-2), -1)
        v = log_b - torch.logsumexp(kernel + u.unsqueeze(-1), -2)
    rows = (kernel + u.unsqueeze(-1) + v.unsqueeze(-2)).exp().sum(-1)
    return u, v, rows


def compiled_sinkhorn(cost, epsilon, limit):
    """The same, ten iterations to a compiled function."""
    n, m = cost.shape[-2:]
    kernel = -cost / epsilon
    log_a, log_b = (-torch.log(torch.tensor(float(k), dtype=cost.dtype)) for k in (n, m))
    v = torch.full_like(cost[..., 0, :], float(log_b))
    for _ in range(limit // 10):
        u, v, rows = _ten_steps(kernel, v, log_a, log_b)
        if bool(((rows - 1 / n).abs().sum(-1) <= TOL).all()):
            break
    return worst_errors((kernel + u.unsqueeze(-1) + v.unsqueeze(-2)).exp(), n, m)


def ott_vmap(cost, epsilon, limit):
    """A compiled function of the costs, all problems at once."""
    solver = Sinkhorn(threshold=TOL, max_iterations=limit)

    def potentials(C):
        out = solver(LinearProblem(Geometry(C, epsilon=epsilon)))
        return out.f, out.g

    given = jnp.asarray(cost.numpy())
    solve = jax.jit(jax.vmap(potentials)).lower(given).compile()

    def call():
        f, g = (torch.from_numpy(np.array(t)) for t in jax.block_until_ready(solve(given)))
        plan = ((f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / epsilon).exp()
        n, m = cost.shape[-2:]
        return worst_errors(plan, n, m)

    return call


def pot_batch(cost, epsilon, limit, method):
    n, m = cost.shape[-2:]
    # its error is a Euclidean norm: the sum of absolute values may be the root of the length times larger
    tol = TOL / max(n, m) ** 0.5
    plan = ot.batch.solve_batch(cost, reg=epsilon, max_iter=limit, tol=tol, method=method, grad="detach").plan
    return worst_errors(plan, n, m)


def pot_loop(costs, epsilon, limit, method):
    errors = []
    for cost in costs:
        n, m = cost.shape
        a, b = torch.full((n,), 1 / n, dtype=cost.dtype), torch.full((m,), 1 / m, dtype=cost.dtype)
        plan = ot.sinkhorn(
            a.numpy(),
            b.numpy(),
            cost.numpy(),
            epsilon,
            method,
            numItermax=limit,
            stopThr=TOL / max(n, m) ** 0.5,
            warn=False,
        )
        errors.append(worst_errors(torch.from_numpy(plan), n, m))
    return torch.stack(errors)


def ours(geometry, epsilon):
    solution = brenier.solve(geometry, epsilon=epsilon, tol=TOL)
    a, b = geometry.masses(None, None)
    rows, cols = solution.plan.row_sums(), solution.plan.col_sums()
    return torch.maximum((rows - a).abs().sum(-1), (cols - b).abs().sum(-1))


def compare(title, candidates, rounds):
    """Print the best time of each candidate over that of the first, and how many problems it solved."""
    best, shares = {}, {}
    for turn in range(rounds):
        for name, call in candidates.items():
            if turn and best[name] > 20:
                continue
            print(f"  round {turn + 1}: {name} ...", file=sys.stderr, flush=True)
            start = time.perf_counter()
            errors = call()
            seconds = time.perf_counter() - start
            best[name] = min(seconds, best.get(name, seconds))
            shares[name] = (
                f"{float((errors <= TOL).double().mean()):.1%} of them, worst error {float(errors.max()):.1e}"
            )
    first = next(iter(best))
    print(title)
    for name, seconds in best.items():
        print(f"  {name:34} {seconds:9.3f} s   {seconds / best[first]:7.2f} x   {shares[name]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1024)
    parser.add_argument("--clouds", type=int, default=500)
    parser.add_argument("--largest", type=int, default=2000)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    gen = torch.Generator().manual_seed(0)

    if args.problems:
        x, y = (torch.randn(args.problems, 64, 3, generator=gen, dtype=torch.float64) for _ in range(2))
        cost = torch.cdist(x, y).square()
        epsilon = 0.05 * float(cost.mean())
        compare(
            f"{args.problems} problems of 64 x 64",
            {
                "brenier, points": lambda: ours(brenier.PointCloud(x, y), epsilon),
                "brenier, cost matrices": lambda: ours(brenier.CostMatrix(cost), epsilon),
                "POT ot.batch, sinkhorn": lambda: pot_batch(cost, epsilon, args.limit, "sinkhorn"),
                "POT ot.batch, log_sinkhorn": lambda: pot_batch(cost, epsilon, args.limit, "log_sinkhorn"),
                "POT loop, sinkhorn": lambda: pot_loop(cost, epsilon, args.limit, "sinkhorn"),
                "OTT, vmap": ott_vmap(cost, epsilon, args.limit),
                "torch, batched log Sinkhorn": lambda: torch_sinkhorn(cost, epsilon, args.limit),
                "torch, the same compiled": lambda: compiled_sinkhorn(cost, epsilon, args.limit),
            },
            args.rounds,
        )
    if args.clouds:
        sizes = torch.randint(50, args.largest + 1, (2, args.clouds), generator=gen).tolist()
        x, y = ([torch.randn(n, 3, generator=gen, dtype=torch.float64) for n in side] for side in sizes)
        some = range(0, args.clouds, args.every)
        costs = [torch.cdist(x[k], y[k]).square() for k in some]
        epsilon = 0.05 * sum(float(c.mean()) for c in costs) / len(costs)
        few = brenier.Ragged.from_list([x[k] for k in some], [y[k] for k in some])
        compare(
            f"{len(costs)} ragged problems of 50 to {args.largest} points",
            {
                "brenier, Ragged": lambda: ours(few, epsilon),
                "POT loop, sinkhorn": lambda: pot_loop(costs, epsilon, args.limit, "sinkhorn"),
                "POT loop, sinkhorn_log": lambda: pot_loop(costs, epsilon, args.limit, "sinkhorn_log"),
                "torch loop, log Sinkhorn": lambda: torch.stack(
                    [torch_sinkhorn(c, epsilon, args.limit) for c in costs]
                ),
            },
            args.rounds,
        )
        every = brenier.Ragged.from_list(x, y)
        compare(f"all {args.clouds} of them", {"brenier, Ragged": lambda: ours(every, epsilon)}, 1)


if __name__ == "__main__":
    main()
