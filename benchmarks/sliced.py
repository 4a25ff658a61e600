"""Transport on the line and sliced transport: brenier against POT and SciPy.

Partial transport: all numbers of pairs on the line, beside POT's own path and its network simplex for one number.

Same inputs, same directions, one process, one thread. Each line tells the time of each candidate (the least of several
rounds, which take turns), the ratio, and the largest relative difference of the values. POT runs on its NumPy backend
for values and on its torch backend for values with gradients. SciPy takes one pair at a time, and p = 1 only.

    python benchmarks/sliced.py [--rounds 5] [--quick]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402

import ot  # noqa: E402
import scipy.stats  # noqa: E402
import torch  # noqa: E402

from brenier import Partial  # noqa: E402
from brenier.costs import Arc  # noqa: E402
from brenier.losses import (  # noqa: E402
    circle_cost,
    line_cost,
    partial_line_path,
    random_directions,
    sliced_wasserstein,
)


def compare(label, candidates, rounds):
    """Time candidates in turns; the first is ours."""
    best, values = {}, {}
    for _ in range(rounds):
        for name, function in candidates.items():
            start = time.perf_counter()
            values[name] = torch.as_tensor(function(), dtype=torch.float64).flatten()
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    ours = next(iter(candidates))
    for name in candidates:
        if name != ours:
            difference = float(((values[name] - values[ours]).abs() / values[ours].abs().clamp(min=1e-300)).max())
            print(
                f"| {label} | {name} | {1e3 * best[ours]:.2f} | {1e3 * best[name]:.2f} | {best[name] / best[ours]:.1f} "
                f"| {difference:.1e} |",
                flush=True,
            )


def with_gradient(function, *leaves):
    """The value of a function of leaves, after its backward pass."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    value = function(*leaves)
    value.sum().backward()
    return value.detach()


def line(batch, n, m, weighted, p, dtype, rounds, generator):
    x = torch.randn(batch, n, generator=generator, dtype=dtype)
    y = torch.randn(batch, m, generator=generator, dtype=dtype) + 1
    a = b = None
    if weighted:
        a, b = (
            torch.rand(batch, n, generator=generator, dtype=dtype),
            torch.rand(batch, m, generator=generator, dtype=dtype),
        )
        a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    columns = [t if t is None else t.mT.contiguous().numpy() for t in (x, y, a, b)]  # POT takes samples in columns
    tensors = [t if t is None else t.mT.contiguous() for t in (x, y, a, b)]
    label = f"line, {batch} x ({n}, {m}), {'weights, ' if weighted else ''}p = {p}, {str(dtype)[6:]}"
    rivals = {
        "brenier": lambda: line_cost(x, y, a, b, cost=p),
        "POT": lambda: ot.wasserstein_1d(*columns, p=p),
    }
    if p == 1:
        rows = [None if t is None else t.numpy() for t in (x, y, a, b)]
        rivals["SciPy"] = lambda: [
            scipy.stats.wasserstein_distance(*(None if t is None else t[k] for t in rows)) for k in range(batch)
        ]
    compare(label, rivals, rounds)
    u, v = tensors[2:]
    compare(
        label + ", gradient",
        {
            "brenier": lambda: with_gradient(lambda s, t: line_cost(s, t, a, b, cost=p), x, y),
            "POT": lambda: with_gradient(lambda s, t: ot.wasserstein_1d(s, t, u, v, p=p), *tensors[:2]),
        },
        rounds,
    )


def sliced(n, m, d, count, dtype, rounds, generator):
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    y = torch.randn(m, d, generator=generator, dtype=dtype) + 0.5
    theta, _ = random_directions(count, d, generator=generator, dtype=dtype, sampler="gaussian")
    label = f"sliced, ({n}, {m}) in {d}, {count} directions, {str(dtype)[6:]}"
    projections = theta.mT.contiguous()

    def pot(s, t, projections):
        return ot.sliced_wasserstein_distance(s, t, projections=projections) ** 2

    compare(
        label,
        {
            "brenier": lambda: sliced_wasserstein(x, y, directions=theta).value,
            "POT": lambda: pot(x.numpy(), y.numpy(), projections.numpy()),
        },
        rounds,
    )
    compare(
        label + ", gradient",
        {
            "brenier": lambda: with_gradient(lambda s, t: sliced_wasserstein(s, t, directions=theta).value, x, y),
            "POT": lambda: with_gradient(lambda s, t: pot(s, t, projections), x, y),
        },
        rounds,
    )


def circle(batch, n, rounds, generator):
    x, y = (torch.rand(batch, n, generator=generator, dtype=torch.float64) for _ in range(2))
    y = y.square()
    for p, rival in ((1, ot.wasserstein_circle), (2, ot.wasserstein_circle)):
        compare(
            f"circle, {batch} x ({n}, {n}), p = {p}, float64",
            {
                "brenier": lambda p=p: circle_cost(x, y, cost=Arc(1.0, float(p))),
                "POT": lambda p=p, rival=rival: rival(x.mT.contiguous().numpy(), y.mT.contiguous().numpy(), p=p),
            },
            rounds,
        )


def partial(n, m, p, shift, rounds, generator):
    """The least costs of all numbers of pairs; of one number by the simplex, where the matrix is small."""
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    y = torch.randn(m, generator=generator, dtype=torch.float64) + shift
    label = f"partial path, ({n}, {m}) {shift} apart, p = {p}, float64"
    compare(
        label,
        {
            "brenier": lambda: partial_line_path(x, y, cost=p).costs,
            "POT": lambda: torch.as_tensor(ot.partial.partial_wasserstein_1d(x.numpy(), y.numpy(), p=p)[2]).cumsum(0),
        },
        rounds,
    )
    if n * m > 1_000_000:
        return
    one, other = torch.ones(n).double().numpy(), torch.ones(m).double().numpy()
    cost, k = ((x[:, None] - y).abs() ** p).numpy(), min(n, m) // 2
    compare(
        f"{label}, {k} pairs",
        {
            "brenier": lambda: partial_line_path(x, y, cost=p).costs[k - 1],
            "POT, simplex": lambda: ot.partial.partial_wasserstein2(one, other, cost, m=k),
        },
        rounds,
    )


def sliced_partial(n, d, count, rounds, generator):
    """The mean over directions of what half of the points cost."""
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5
    theta, _ = random_directions(count, d, generator=generator, sampler="gaussian")

    def pot():
        on_line = ((x @ t).numpy() for t in theta), ((y @ t).numpy() for t in theta)
        costs = [sum(ot.partial.partial_wasserstein_1d(u, v, n // 2, p=2)[2]) for u, v in zip(*on_line)]
        return sum(costs) / n / count

    label = f"sliced, half of ({n}, {n}) in {d}, {count} directions, float64"
    ours = {"brenier": lambda: sliced_wasserstein(x, y, marginals=Partial(0.5), directions=theta).value}
    compare(label, {**ours, "POT, a loop": pot}, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--partial", action="store_true", help="partial transport only")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    cut = 10 if args.quick else 1
    print("| problem | rival | brenier, ms | rival, ms | ratio | relative difference |")
    print("|---|---|---|---|---|---|")
    for dtype in () if args.partial else (torch.float32, torch.float64):
        for p in (1, 2):
            line(256, 2000 // cut, 2000 // cut, False, p, dtype, args.rounds, generator)
            line(256, 2000 // cut, 1500 // cut, False, p, dtype, args.rounds, generator)
            line(256, 2000 // cut, 1500 // cut, True, p, dtype, args.rounds, generator)
        line(1, 1_000_000 // cut, 1_000_000 // cut, False, 1, dtype, args.rounds, generator)
        sliced(5000 // cut, 5000 // cut, 3, 128, dtype, args.rounds, generator)
        sliced(5000 // cut, 4000 // cut, 64, 128, dtype, args.rounds, generator)
    if not args.partial:
        circle(64, 1000 // cut, args.rounds, generator)
    for p in (1, 2):
        partial(500, 400, p, 0, args.rounds, generator)
        for shift in (0, 10):
            partial(20_000 // cut, 20_000 // cut, p, shift, args.rounds, generator)
    sliced_partial(2000 // cut, 3, 64, args.rounds, generator)


if __name__ == "__main__":
    main()
