"""One training step with the Monge gap: time by part, beside OTT where it is installed.

    python benchmarks/monge_gap.py [--sizes 256 1024] [--dims 2 8 50] [--repeats 20] [--tol 1e-3] [--threads 1]

A perceptron (128, 64, 64) sends n points of a Gaussian to another; the loss is a Sinkhorn divergence at
0.1 x mean cost plus the gap at 0.01 x mean cost, float32, squared Euclidean cost. Each number is the median of the
repeats, with fresh batches, after three steps that do not count. *step* is everything, draw and Adam included; the
other columns are parts of it, forward and backward. OTT runs the same losses, compiled, at the same tolerance.
"""

import argparse
import itertools
import statistics
import time
import warnings
from importlib.util import find_spec


def median(function, repeats):
    seconds = []
    for k in range(3 + repeats):
        begin = time.perf_counter()
        function(k)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[3:])


def ours(n, d, repeats, tol):
    import torch

    from brenier import PointCloud
    from brenier.losses import monge_gap, sinkhorn_divergence
    from brenier.maps.neural import MongeMap
    from brenier.solvers import GaussianStart, Sinkhorn

    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=generator) / d**0.5 + 0.5 * torch.eye(d)
    batches = [(torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) @ root + 1)
               for _ in range(3 + repeats)]  # fmt: skip
    torch.manual_seed(0)
    network = MongeMap(d)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    fit_eps = 0.1 * float(PointCloud(batches[0][1], batches[0][1]).mean_cost())
    gap_eps = 0.01 * float(PointCloud(*batches[0]).mean_cost())

    solver = Sinkhorn(start=GaussianStart())  # as the estimator has it

    def fit(x, y, moved):
        return sinkhorn_divergence(moved, y, epsilon=fit_eps, tol=tol).value

    def gap(x, y, moved):
        return monge_gap(x, moved, epsilon=gap_eps, solver=solver, tol=tol)

    def step(k):
        x, y = batches[k]
        moved = network(x)
        loss = fit(x, y, moved) + gap(x, y, moved)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def part(function):
        def run(k):
            x, y = batches[k]
            function(x, y, network(x)).backward()

        return run

    return {
        "step": median(step, repeats),
        "divergence": median(part(fit), repeats),
        "gap": median(part(gap), repeats),
        "network": median(part(lambda x, y, moved: moved.square().mean()), repeats),
    }


def ott(n, d, repeats, tol):
    import jax
    import jax.numpy as jnp
    from ott.geometry import pointcloud
    from ott.solvers import linear
    from ott.tools import sinkhorn_divergence

    keys = jax.random.split(jax.random.key(0), 3 + repeats)
    root = jax.random.normal(keys[0], (d, d)) / d**0.5 + 0.5 * jnp.eye(d)
    batches = [
        (jax.random.normal(k, (n, d)), jax.random.normal(jax.random.fold_in(k, 1), (n, d)) @ root + 1) for k in keys
    ]
    sizes = (d, 128, 64, 64, d)
    weights = [(jax.random.normal(jax.random.fold_in(keys[1], k), (a, b)) / a**0.5, jnp.zeros(b))
               for k, (a, b) in enumerate(itertools.pairwise(sizes))]  # fmt: skip
    fit_eps = 0.1 * float(pointcloud.PointCloud(batches[0][1]).mean_cost_matrix)
    gap_eps = 0.01 * float(pointcloud.PointCloud(*batches[0]).mean_cost_matrix)

    def network(weights, x):
        z = x
        for k, (w, b) in enumerate(weights):
            z = (jax.nn.gelu(z) if k else z) @ w + b
        return x + z

    def fit(weights, x, y):
        return sinkhorn_divergence.sinkhorn_divergence(
            pointcloud.PointCloud,
            network(weights, x),
            y,
            epsilon=fit_eps,
            solve_kwargs={"threshold": tol},
            static_b=True,
        )[0]

    def gap(weights, x, y):
        moved = network(weights, x)  # as its `monge_gap_from_samples`, which asks for further packages
        solved = linear.solve(pointcloud.PointCloud(x, moved, epsilon=gap_eps), threshold=tol)
        return ((x - moved) ** 2).sum(-1).mean() - solved.ent_reg_cost

    out = {}
    for name, loss in (("step", lambda w, x, y: fit(w, x, y) + gap(w, x, y)), ("divergence", fit), ("gap", gap)):
        compiled = jax.jit(jax.value_and_grad(loss))
        out[name] = median(lambda k, f=compiled: jax.block_until_ready(f(weights, *batches[k])), repeats)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 50])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    libraries = {"brenier": ours, **({"OTT": ott} if find_spec("ott") else {})}
    print("| n | d | library | " + " | ".join(f"{c}, ms" for c in ("step", "divergence", "gap", "network")) + " |")
    print("|---|---|---|---|---|---|---|")
    for n in options.sizes:
        for d in options.dims:
            for name, measure in libraries.items():
                found = measure(n, d, options.repeats, options.tol)
                cells = [
                    f"{1e3 * found[c]:.1f}" if c in found else "" for c in ("step", "divergence", "gap", "network")
                ]
                print(f"| {n} | {d} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
