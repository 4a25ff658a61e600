"""The linear system of implicit gradients at near-permutations, with and without a factorisation.

    python benchmarks/implicit.py [n]

The gradient of ||P v||^2 in x for two Gaussian clouds, float64, solved by the default solver. *Residual* is computed
anew from the solution of the system, relative to its right-hand side; *plain* switches the factorisation off.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import brenier
from brenier import adjoint

CASES = [(2, 0.005), (2, 0.001), (2, 0.0005), (10, 0.001), (10, 0.0005)]


class Watched(adjoint._System):
    """The system, that counts iterations and keeps what it has solved."""

    last: Watched | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count, self.seconds, self.residual = 0, 0.0, float("nan")
        Watched.last = self

    def _gradients(self, w: Tensor, first: Tensor, count: int, inverses: Any = None) -> Any:
        spread = self._left.spread

        def counted(v: Tensor) -> Tensor:
            self.count += 1
            return spread(v)

        self._left.spread = counted  # type: ignore[method-assign]
        out = super()._gradients(w, first, count, inverses)
        self._left.spread = spread  # type: ignore[method-assign]
        return out

    def _cg(self, w: Tensor, rounding: Tensor) -> Tensor:
        begin = time.perf_counter()
        x = super()._cg(w, rounding)
        self.seconds = time.perf_counter() - begin
        w = self._projected(w)
        left = self._projected(w - (x - self._round(x)))
        self.residual = float((self._square(left) / self._square(w)).sqrt().max())
        return x


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    warnings.simplefilter("ignore")
    inverse: Callable[..., Any] = adjoint.support_inverse
    adjoint._System = Watched  # type: ignore[misc]
    print(f"n = {n}, float64, {torch.get_num_threads()} threads\n")
    print("| d | epsilon / mean cost | way | iterations | residual | seconds |\n|---|---|---|---|---|---|")
    for d, fraction in CASES:
        generator = torch.Generator().manual_seed(0)
        x, y, v = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (d, d, 1))
        x.requires_grad_()
        s = brenier.solve(x, y, epsilon=brenier.Relative(fraction), adjoint=brenier.Implicit())
        for way, use in (("plain", lambda *_: None), ("default", inverse)):
            adjoint.support_inverse = use  # type: ignore[assignment]
            loss = (s.plan @ v.squeeze(-1)).square().sum()
            torch.autograd.grad(loss, x, retain_graph=True)
            seen = Watched.last
            assert seen is not None
            print(f"| {d} | {fraction} | {way} | {seen.count} | {seen.residual:.1e} | {seen.seconds:.2f} |", flush=True)
            seen.count = 0


if __name__ == "__main__":
    main()
