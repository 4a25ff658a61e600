"""Unregularised transport to a stated gap: entropic problems at falling epsilon, each of them certified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...certificate import Certificate, certify
from ...errors import refuse
from ...plan import GibbsPlan
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver, check_count, check_number, time_is_up
from .hybrid import SinkhornNewton
from .schedule import Fixed, Halving
from .sinkhorn import Sinkhorn

__all__ = ["Annealing", "AnnealingState"]

_FIRST_CHECK = 4.0  # times the gap and the range of the costs: the epsilon of the first certificate
_SHARE = 0.3  # of the gap that missed marginals may cost
_LEAST_SHRINK, _MOST_SHRINK = 0.1, 0.5  # of epsilon from one certificate to the next
_RANGE = 2.0**-40  # of the first epsilon to the last: beyond, float64 has nothing left


class AnnealingState(NamedTuple):
    """Potentials, the epsilon they belong to, and what they prove."""

    f: Tensor  # (n,)
    g: Tensor  # (m,)
    epsilon: Tensor  # of the next step, ()
    level: Tensor  # of the last step, ()
    start: Tensor  # the first epsilon, ()
    certificate: Certificate | None
    iterations: int  # of the inner solver
    newton: int  # those of Newton's method among them


@dataclass(frozen=True)
class Annealing(Solver[AnnealingState]):
    r"""Lower epsilon until the certificate of the plan has a relative gap below `gap`.

    For the problem *without* epsilon: the plan is that of an entropic problem, potentials and bounds are those of the
    unregularised one. One iteration of Sinkhorn at each level down to an epsilon where the gap may be in reach; from
    there on each level is solved, by Sinkhorn or by sparse Newton where that forecasts too many iterations, to marginal
    errors that cost a small share of the gap, and certified. The next epsilon follows from the gap that was found.
    O(n + m) memory. The gap falls in proportion to epsilon, and the iterations grow with its inverse: where only the
    gap matters, the lazy `NetworkSimplex` is faster.

    Args:
        gap: relative gap to stop at, (primal - dual) / |primal|.
        max_iter: levels of epsilon.
        inner_max_iter: iterations at one level.

    Reference:
        Altschuler, Weed & Rigollet (2017), Near-linear time approximation algorithms for optimal transport.
    """

    name: ClassVar[str] = "annealing"
    gap: float = 1e-2
    max_iter: int = 200
    inner_max_iter: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gap", self.gap)
        check_count("inner_max_iter", self.inner_max_iter)

    def check(self, problem: Problem) -> None:
        if problem.epsilon is not None:
            refuse("annealing", "epsilon=None, as it chooses its own", f"epsilon={problem.epsilon.tolist()}")
        if not problem.balanced:
            refuse("annealing", "exact marginals", str(problem.marginals), "Give an epsilon for soft ones.")
        if problem.batch_shape:
            refuse("annealing", "one problem", f"batch {tuple(problem.batch_shape)}", "Solve them one by one.")

    def init(self, problem: Problem) -> AnnealingState:
        p = problem.double()
        start = p.geometry.range_estimate()
        start = torch.where(start > 0, start, 1)
        return AnnealingState(torch.zeros_like(p.a), torch.zeros_like(p.b), start, start, start, None, 0, 0)

    def step(self, problem: Problem, state: AnnealingState) -> AnnealingState:
        p = replace(problem.double(), epsilon=state.epsilon)
        if bool(state.epsilon > _FIRST_CHECK * self.gap * state.start):
            sinkhorn = Sinkhorn(schedule=Fixed(), f=state.f, g=state.g)
            after = sinkhorn.step(p, sinkhorn.init(p))
            lower = Halving().next(state.epsilon, torch.zeros_like(state.epsilon))
            return state._replace(
                f=after.f, g=after.g, epsilon=lower, level=state.epsilon, iterations=state.iterations + 1
            )
        outcome, iterations = self._solved(p, state)
        certificate = certify(problem, outcome.plan, outcome.f, outcome.g)
        found = certificate.relative_gap.clamp(min=1e-3 * self.gap)
        shrink = (0.7 * self.gap / found).clamp(_LEAST_SHRINK, _MOST_SHRINK)
        return AnnealingState(
            outcome.f, outcome.g, state.epsilon * shrink, state.epsilon, state.start, certificate,
            state.iterations + iterations, state.newton + outcome.stats.get("n_newton", 0),
        )  # fmt: skip

    def _solved(self, problem: Problem, state: AnnealingState) -> tuple[Outcome, int]:
        """The entropic problem at this level, from the potentials of the last."""
        # a marginal error e costs about e times the range of the costs
        value = state.start if state.certificate is None else state.certificate.primal.abs()
        tol = min(0.1, max(1e-12, _SHARE * self.gap * float(value / state.start)))
        inner = SinkhornNewton(tol=tol, sinkhorn=Sinkhorn(schedule=Fixed(), f=state.f, g=state.g))
        current = inner.init(problem)
        iterations = 0
        while iterations < self.inner_max_iter and inner.terminate(problem, current) is None:
            current, iterations = inner.step(problem, current), iterations + 1
            if time_is_up():
                break
        return inner.finish(problem, current), iterations

    def terminate(self, problem: Problem, state: AnnealingState) -> tuple[Status, ...] | None:
        if state.certificate is None:
            return None
        if bool(state.certificate.relative_gap <= self.gap):
            return (Status.CONVERGED,)
        if not bool(torch.isfinite(state.f).all()) or bool(state.epsilon < _RANGE * state.start):
            return (Status.DIVERGED,)
        return None

    def verdict(self, problem: Problem, state: AnnealingState) -> tuple[Status, ...]:
        return self.terminate(problem, state) or (Status.MAX_ITER,)

    def error(self, state: AnnealingState) -> float:
        return float("nan") if state.certificate is None else float(state.certificate.relative_gap)

    def finish(self, problem: Problem, state: AnnealingState) -> Outcome:
        level, p = state.level, problem.double()
        F, G = (h + side.absorbed() for h, side in zip((state.f, state.g), p.sides_at(level)))
        # the potentials of the problem without epsilon: feasible, and so a bound
        f = p.geometry.cmin(torch.where(p.b > 0, state.g, -torch.inf))[0]
        g = p.geometry.cmin(torch.where(p.a > 0, f, -torch.inf), dim=0)[0]
        stats: dict[str, Any] = {
            "n_iter": state.iterations,
            "n_newton": state.newton,
            "epsilon": float(level),
            "relative_gap": self.error(state),
        }
        return Outcome(GibbsPlan(problem.geometry, F, G, level), f, g, stats)
