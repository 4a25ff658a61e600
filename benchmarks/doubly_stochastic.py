"""Many small matrices made doubly stochastic, forward and backward: ours, plain PyTorch, torch.compile and POT.

    python benchmarks/doubly_stochastic.py [--sizes 4 8 16 32] [--count 65536] [--n-iter 20] [--threads 1 2]
                                           [--rounds 5] [--no-compile] [--json results/doubly_stochastic.json]

Every candidate gets the same standard Gaussian scores in float32, epsilon = 1, and as many iterations (rows, then
columns), then the gradient of <P, G> for a Gaussian G. The rivals differentiate their iterations; ours is given both
ways, "implicit" (the default) and "unrolled" (the rivals' gradient). Rivals: log-sum-exp in the log domain; exp, then
division by sums in place of the matrix; exp, then matrix-vector products with u and v; torch.compile of all three
(compilation apart); POT's batched solver in both domains, whose gradient is that of its iterations. Times are the best
of several rounds over all candidates. The ratio is that of the best rival to ours. Errors are the largest differences
from the same iterations and their gradient in float64, on the first 256 matrices; that of "implicit" is compared with
the gradient of the fixed point. The ceiling adds up what the multiply-adds and exponentials of our forward pass
would take alone, at the best rates this machine reached on nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ot
import torch
from torch import Tensor

from brenier import _native
from brenier.losses import doubly_stochastic

Forward = Callable[[Tensor], Tensor]


def log_domain(scores: Tensor, n_iter: int) -> Tensor:
    x = scores
    for _ in range(n_iter):
        x = x - torch.logsumexp(x, -1, keepdim=True)
        x = x - torch.logsumexp(x, -2, keepdim=True)
    return x.exp()


def divisions(scores: Tensor, n_iter: int) -> Tensor:
    p = torch.exp(scores - scores.amax(-1, keepdim=True))
    for _ in range(n_iter):
        p = p / p.sum(-1, keepdim=True)
        p = p / p.sum(-2, keepdim=True)
    return p


def scaling(scores: Tensor, n_iter: int) -> Tensor:
    kernel = torch.exp(scores - scores.amax(-1, keepdim=True))
    v = torch.ones_like(kernel[..., :1, :])
    for _ in range(n_iter):
        u = 1 / (kernel @ v.mT)
        v = 1 / (u.mT @ kernel)
    return u * kernel * v


def pot(method: str) -> Callable[[Tensor, int], Tensor]:
    def solve(scores: Tensor, n_iter: int) -> Tensor:
        n = scores.shape[-1]
        mass = torch.full(scores.shape[:-1], 1 / n)  # its masses have to sum to one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it did not converge
            solved = ot.solve_batch(-scores, 1.0, mass, mass, max_iter=n_iter, tol=0.0, method=method, grad="autodiff")
        return n * solved.plan

    return solve


def candidates(n_iter: int, compiled: bool) -> dict[str, Forward]:
    out: dict[str, Forward] = {
        f"brenier, {a}": lambda s, a=a: doubly_stochastic(s, n_iter=n_iter, adjoint=a).plan  # type: ignore[misc]
        for a in ("implicit", "unrolled")
    }
    plain = {"log domain": log_domain, "divisions": divisions, "scaling": scaling}
    for name, function in plain.items():
        out[f"torch, {name}"] = lambda s, f=function: f(s, n_iter)  # type: ignore[misc]
    if compiled:
        for name, function in plain.items():
            out[f"torch.compile, {name}"] = torch.compile(lambda s, f=function: f(s, n_iter))
    for method in ("sinkhorn", "log_sinkhorn"):
        out[f"POT, {method}"] = lambda s, f=pot(method): f(s, n_iter)  # type: ignore[misc]
    return out


def both(forward: Forward, scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.detach().requires_grad_()
    plan = forward(leaf)
    return plan.detach(), torch.autograd.grad(plan, leaf, weight)[0]


def errors(name: str, forward: Forward, scores: Tensor, weight: Tensor, n_iter: int) -> tuple[float, float]:
    some = slice(256)
    plan, gradient = (t[some].double() for t in both(forward, scores, weight))
    exact, exact_gradient = both(lambda s: log_domain(s, n_iter), scores[some].double(), weight[some].double())
    if "implicit" in name:
        _, exact_gradient = both(lambda s: log_domain(s, 2000), scores[some].double(), weight[some].double())
    return float((plan - exact).abs().max()), float((gradient - exact_gradient).abs().max())


def best_seconds(call: Callable[..., Any], *arguments: Any) -> float:
    """Of calls in a row for a third of a second, one at least: what ran before has left the caches by then."""
    best, spent = float("inf"), 0.0
    while spent < 0.33:
        start = time.perf_counter()
        call(*arguments)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return best


def measure(n: int, count: int, n_iter: int, threads: list[int], rounds: int, compiled: bool) -> list[dict[str, Any]]:
    gen = torch.Generator().manual_seed(0)
    scores, weight = (torch.randn(count, n, n, generator=gen) for _ in range(2))
    rows: list[dict[str, Any]] = []
    for used in threads:
        torch.set_num_threads(used)
        torch._dynamo.reset()  # what was compiled for another number of threads
        calls = candidates(n_iter, compiled)
        times: dict[str, float] = {}
        reasons: dict[str, str] = {}
        fma = exp = 0.0
        for turn in range(rounds + 1):
            fma, exp = (max(a, b) for a, b in zip(_native.rates(False), (fma, exp)))
            for name, forward in calls.items():
                if name in reasons:
                    continue
                try:
                    seconds = best_seconds(both, forward, scores, weight)
                except Exception as error:
                    reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
                    continue
                if turn:  # the first round warms up and compiles
                    times[name] = min(seconds, times.get(name, seconds))
        with torch.no_grad():
            forward_seconds = best_seconds(calls["brenier, implicit"], scores)
        work = count * n * n
        ceiling = (2 * n_iter * work / fma + work / exp) / used
        best = min(t for name, t in times.items() if not name.startswith("brenier"))
        for name, forward in calls.items():
            row: dict[str, Any] = {"n": n, "count": count, "n_iter": n_iter, "threads": used, "name": name}
            if name in reasons:
                rows.append(row | {"failed": reasons[name]})
                print(f"n={n:<3} {used} thread(s) {name:26} failed: {reasons[name]}")
                continue
            plan_error, gradient_error = errors(name, forward, scores, weight, n_iter)
            row |= {"seconds": times[name], "plan_error": plan_error, "gradient_error": gradient_error}
            text = f"n={n:<3} {used} thread(s) {name:26} {times[name]:8.4f} s "
            text += f"{count / times[name] / 1e6:8.3f}e6 matrices/s  errors {plan_error:.0e} {gradient_error:.0e}"
            if name.startswith("brenier"):
                row["ratio"] = best / times[name]
                text += f"  {row['ratio']:6.1f} x the best rival"
            if name == "brenier, implicit":
                row |= {"forward_seconds": forward_seconds, "share_of_ceiling": ceiling / forward_seconds}
                text += f", forward {forward_seconds:.4f} s, {ceiling / forward_seconds:.0%} of the ceiling"
            rows.append(row)
            print(text, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--count", type=int, default=65536)
    parser.add_argument("--n-iter", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for n in options.sizes:
        rows += measure(n, options.count, options.n_iter, options.threads, options.rounds, not options.no_compile)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
