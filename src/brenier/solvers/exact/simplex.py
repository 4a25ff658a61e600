"""Exact transport by the network simplex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import refuse
from ...geometry import Geometry
from ...kernels import simplex
from ...kernels.build import native, warn_without_native
from ...plan import SparsePlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_count, check_start

__all__ = ["NetworkSimplex", "SimplexState"]


class SimplexState(NamedTuple):
    """One result per batch item, empty before the solve."""

    results: tuple[simplex.SimplexResult, ...]


@dataclass(frozen=True)
class NetworkSimplex(Solver[SimplexState]):
    """Pivot on spanning trees until the potentials prove that the plan is optimal.

    Solves min <P, C> over P >= 0 with P1 = a and P^T 1 = b, in float64, for any cost and any masses. The plan has
    at most n + m - 1 entries, and is a permutation when n = m and all masses are equal. Holds the cost matrix once:
    8 n m bytes; typically O((n + m) n m) time or better.

    Args:
        max_pivots: stop after so many pivots with the best plan so far, which is always feasible; no limit if None.
        f, g: potentials to start from; near-optimal ones save most of the pivots.
        engine: "native" (C++), "reference" (NumPy), or "auto".
    """

    name: ClassVar[str] = "network-simplex"
    max_pivots: int | None = None
    f: Tensor | None = None
    g: Tensor | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_pivots is not None:
            check_count("max_pivots", self.max_pivots)
        if self.engine not in ("auto", "native", "reference"):
            refuse("engine", "'auto', 'native' or 'reference'", repr(self.engine))

    def check(self, problem: Problem) -> None:
        if problem.epsilon is not None:
            refuse(
                "network-simplex",
                "epsilon=None",
                f"epsilon={problem.epsilon.tolist()}",
                "Use solver='sinkhorn'.",
            )
        if not problem.balanced:
            refuse("network-simplex", "exact marginals", str(problem.marginals), "Give an epsilon for soft ones.")
        check_start("network-simplex start f", self.f, problem.shape[0])
        check_start("network-simplex start g", self.g, problem.shape[1])

    def init(self, problem: Problem) -> SimplexState:
        return SimplexState(())

    def step(self, problem: Problem, state: SimplexState) -> SimplexState:
        if self.engine == "auto":
            warn_without_native()
        batch = problem.batch_shape
        geometry = problem.geometry.to(torch.float64)
        a, b = (t.double().reshape(-1, t.shape[-1]) for t in (problem.a, problem.b))
        f, g = (None if t is None else t.double().expand(*batch, -1).reshape(-1, t.shape[-1]) for t in (self.f, self.g))
        b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
        # the scale of the masses must not matter, however small; powers of two cost no rounding
        exponent = torch.frexp(a.sum(-1, keepdim=True)).exponent
        a, b = torch.ldexp(a, -exponent), torch.ldexp(b, -exponent)
        results = [
            simplex.network_simplex(
                self._cost(geometry, index),
                a[k].cpu().numpy(),
                b[k].cpu().numpy(),
                f=None if f is None else f[k].cpu().numpy(),
                g=None if g is None else g[k].cpu().numpy(),
                max_iter=self.max_pivots,
                engine=self.engine,
            )
            for k, index in enumerate(np.ndindex(*batch))
        ]
        scales = exponent.flatten().tolist()
        return SimplexState(tuple(r._replace(mass=np.ldexp(r.mass, e)) for r, e in zip(results, scales)))

    @staticmethod
    def _cost(geometry: Geometry, index: tuple[int, ...]) -> NDArray[np.float64]:
        """The cost matrix of one item of the batch."""
        cost = geometry.item(index).tile()
        if not torch.isfinite(cost).all():
            refuse(
                "cost", "finite values between all pairs", "NaN or infinity", "Rescale the points, or mend the cost."
            )
        return cost.contiguous().cpu().numpy()

    def terminate(self, problem: Problem, state: SimplexState) -> tuple[Status, ...] | None:
        return tuple(Status.OPTIMAL if r.optimal else Status.MAX_ITER for r in state.results)

    def error(self, state: SimplexState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: SimplexState) -> Outcome:
        batch, device = problem.batch_shape, problem.geometry.device

        def stack(arrays: list[Tensor]) -> Tensor:
            padded = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True)
            return padded.reshape(*batch, -1).to(device)

        r = state.results
        plan = SparsePlan(
            problem.geometry,
            stack([torch.as_tensor(k.rows, dtype=torch.long) for k in r]),
            stack([torch.as_tensor(k.cols, dtype=torch.long) for k in r]),
            stack([torch.as_tensor(k.mass) for k in r]),
        )
        f, g = stack([torch.as_tensor(k.f) for k in r]), stack([torch.as_tensor(k.g) for k in r])
        engine = "native" if self.engine != "reference" and native is not None else "reference"
        return Outcome(plan, f, g, {"n_iter": sum(k.n_iter for k in r), "engine": engine})
