"""Barycentres: brenier against POT, on the same inputs, in one process, one thread.

Fixed support: histograms on one cloud of points. Both run to the same error of the marginals. Each barycentre is then
judged by the objective of the problem, the mean entropic cost to it by float64 Sinkhorn, and by the share of its mass
that is off, against a barycentre of tolerance 1e-10. Free support: as many iterations for both from one start; judged
by the mean exact cost.

    python benchmarks/barycentres.py [--measures 20] [--points 1000] [--iterations 10] [--rounds 2]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import ot  # noqa: E402
import torch  # noqa: E402

import brenier  # noqa: E402

D = torch.float64


def timed(candidates, rounds):
    """Least seconds of processor time (one thread) and the result of each candidate; they take turns."""
    best, results = {}, {}
    for _ in range(rounds):
        for name, function in candidates.items():
            begin = time.process_time()
            results[name] = function()
            best[name] = min(best.get(name, float("inf")), time.process_time() - begin)
    return best, results


def table(title, best, values, ours, off=None):
    for name in best:
        ratio = best[name] / best[ours]
        last = "" if off is None else f"{off[name]:.1e}"
        print(f"| {title} | {name} | {best[name]:.3f} | {ratio:.2f} | {values[name]:.8g} | {last} |", flush=True)


def blobs(measures, points, generator):
    centres = 4 * torch.rand(measures, 3, 2, generator=generator, dtype=D)
    which = torch.randint(3, (measures, points), generator=generator)
    noise = torch.randn(measures, points, 2, generator=generator, dtype=D)
    return centres.gather(1, which.unsqueeze(-1).expand(-1, -1, 2)) + 0.3 * noise


def fixed(measures, points, fraction, rounds, log_domain, generator):
    x = 4 * torch.rand(points, 2, generator=generator, dtype=D)
    centres = 4 * torch.rand(measures, 1, 2, generator=generator, dtype=D)
    a = (-(x - centres).square().sum(-1) / 0.5).exp() + 1e-4
    a = a / a.sum(-1, keepdim=True)
    geometry = brenier.PointCloud(x)
    epsilon = fraction * float(geometry.mean_cost())
    M, A = geometry.tile().numpy(), a.T.contiguous().numpy()
    w = [1 / measures] * measures

    def pot(method, limit=2000):
        return lambda: torch.from_numpy(ot.barycenter(A, M, epsilon, method=method, stopThr=1e-6, numItermax=limit))

    candidates = {
        "brenier": lambda: brenier.barycentre(geometry, w, a=a, epsilon=epsilon, tol=1e-6).b,
        "POT": pot("sinkhorn"),
        "POT, stabilised": pot("sinkhorn_stabilized"),
    }
    if log_domain:
        candidates["POT, log domain"] = pot("sinkhorn_log")
    best, results = timed(candidates, rounds)

    u = torch.full_like(x[:, 0], 1 / points)

    def value(b):
        """The objective: entropy against a ⊗ u."""
        b = b / b.sum()
        if not bool(torch.isfinite(b).all()):
            return float("nan")
        b = b.clamp(min=1e-300)
        s = brenier.solve(geometry, a=a, b=b.expand(measures, -1), epsilon=epsilon, tol=1e-9)
        return float((s.value + epsilon * (torch.special.xlogy(b, b) - torch.special.xlogy(b, u)).sum()).mean())

    values = {name: value(b) for name, b in results.items()}
    exact = brenier.barycentre(geometry, w, a=a, epsilon=epsilon, tol=1e-10).b
    off = {name: float((b - exact).abs().sum()) for name, b in results.items()}
    table(f"fixed, {measures} x {points}, epsilon {fraction} x mean cost", best, values, "brenier", off)


def free(measures, points, iterations, rounds, generator):
    clouds = blobs(measures, points, generator)
    start = clouds[0] + 0.01 * torch.randn(points, 2, generator=generator, dtype=D)
    ys, masses = [c.numpy() for c in clouds], [ot.unif(points)] * measures
    best, results = timed(
        {
            "brenier": lambda: brenier.barycentre(list(clouds), start=start, max_iter=iterations, tol=1e-12).points,
            "POT": lambda: torch.from_numpy(
                ot.lp.free_support_barycenter(ys, masses, start.numpy(), numItermax=iterations, stopThr=1e-30)
            ),
        },
        rounds,
    )
    values = {name: sum(float(brenier.solve(x, y).value) for y in clouds) / measures for name, x in results.items()}
    table(f"free, {measures} x {points}, {iterations} iterations", best, values, "brenier")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measures", type=int, default=20)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.05, 0.01, 0.002])
    parser.add_argument(
        "--no-log-domain", action="store_true", help="leave out the log domain of POT, which takes minutes"
    )
    parser.add_argument("--only", choices=["fixed", "free"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    print("| problem | library | seconds | over ours | objective | off |\n|---|---|---|---|---|---|")
    if options.only != "free":
        for fraction in options.fractions:
            fixed(options.measures, options.points, fraction, options.rounds, not options.no_log_domain, generator)
    if options.only != "fixed":
        free(options.measures, options.points, options.iterations, options.rounds, generator)


if __name__ == "__main__":
    main()
