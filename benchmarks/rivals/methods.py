"""The methods: brenier and its rivals, each in its own format and at settings that suit it.

A method is asked for a *gap* (a certified relative gap of the unregularised optimum) or for a *marginal* error at a
fixed epsilon. It answers with attempts, from cheap to dear: the first whose answer satisfies the judge counts, and
only that one's time. The attempts at a gap are a ladder of epsilons scaled by the optimal value, which every method
that needs it is told. A rival never sees points of zero mass, as some of them cannot have any. Imports are inside:
a worker loads one library only.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .judge import Answer
from .problems import Set

MARGINAL_TOL = 1e-6
_FOREVER = 10**7  # iterations; the clock ends what does not converge
_LADDER = (3.0, 1.0, 0.3, 0.1)  # epsilons, x gap x optimal value


@dataclass(frozen=True)
class Goal:
    """What is asked for. `level` is the relative gap, or epsilon over the mean cost."""

    task: str  # "gap" or "marginal"
    level: float
    optimum: float  # of the unregularised problem; scales ladders


class Method(ABC):
    """One library at one setting."""

    library: str
    modules: tuple[str, ...] = ()  # loaded before the clock starts
    tasks: tuple[str, ...] = ("gap", "marginal")
    levels: tuple[float, ...] | None = None  # of the gap task, where the method cannot do them all
    sees_zeros = False
    slower_when_harder = True  # a time-out at one level makes the next ones pointless

    def load(self) -> None:
        """Import the library; not timed."""
        for module in self.modules:
            importlib.import_module(module)

    def ready(self, problem: Set) -> Any:
        """The problem in the method's own format; not timed."""
        return problem

    def takes(self, problem: Set) -> bool:
        return True

    def attempts(self, problem: Set, goal: Goal) -> Iterator[dict[str, Any]]:
        """Epsilon and tolerance, an L1 marginal error, of each attempt."""
        if goal.task == "marginal":
            for slack in (1.0, 0.3):
                yield {"epsilon": goal.level * problem.mean_cost, "tol": slack * MARGINAL_TOL}
        else:
            tol = 0.3 * goal.level * goal.optimum / problem.mean_cost
            for k in _LADDER:
                yield {"epsilon": k * goal.level * goal.optimum, "tol": max(tol, 1e-12)}

    def compiled(self, given: Any, **setting: Any) -> Any:
        """What has to be done once for inputs of this shape; not timed."""
        return None

    @abstractmethod
    def run(self, given: Any, compiled: Any, **setting: Any) -> Any:
        """What is timed."""

    @abstractmethod
    def answer(self, given: Any, out: Any, **setting: Any) -> Answer:
        """The answer as arrays; not timed."""


def gibbs(problem: Set, f: np.ndarray, g: np.ndarray, epsilon: float) -> np.ndarray:
    """The plan ab exp((f + g - C) / eps) of potentials."""
    return np.outer(problem.a, problem.b) * np.exp((f[:, None] + g - problem.C) / epsilon)


class Brenier(Method):
    """The front door: the solver that `solve` chooses itself."""

    library = "brenier"
    modules = ("brenier",)
    sees_zeros = True

    def __init__(self, solver: str = "auto", tasks: tuple[str, ...] = ("gap", "marginal")) -> None:
        self.solver, self.tasks = solver, tasks
        self.slower_when_harder = solver == "sinkhorn"

    def ready(self, problem: Set) -> Any:
        import torch

        import brenier

        a, b = torch.from_numpy(problem.a), torch.from_numpy(problem.b)
        if problem.x is None:
            return {"x": brenier.CostMatrix(torch.from_numpy(problem.C)), "a": a, "b": b}
        x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
        return {"x": x, "y": y, "cost": problem.cost, "a": a, "b": b}

    def attempts(self, problem: Set, goal: Goal) -> Iterator[dict[str, Any]]:
        if goal.task == "gap" and self.solver == "auto":
            yield {"gap": goal.level}
        else:
            yield from super().attempts(problem, goal)

    def run(self, given: Any, compiled: Any, **setting: Any) -> Any:
        import brenier

        if "gap" in setting:
            return ours_gap(given, setting["gap"])
        return brenier.solve(
            **given, solver=self.solver, epsilon=setting["epsilon"], tol=setting["tol"], max_iter=_FOREVER
        )

    def answer(self, given: Any, out: Any, **setting: Any) -> Answer:
        return Answer(out.plan.dense().numpy(), out.f.numpy(), out.g.numpy())


def ours_gap(given: Any, gap: float) -> Any:
    """The one place that says how brenier is asked for a certified gap."""
    import brenier

    if "gap" in inspect.signature(brenier.solve).parameters:
        return brenier.solve(**given, gap=gap)
    return brenier.solve(**given)  # exact: certified to rounding


class POT(Method):
    library = "POT"
    modules = ("ot",)

    def __init__(self, name: str, tasks: tuple[str, ...] = ("gap", "marginal"), **options: Any) -> None:
        self.name, self.tasks, self.options = name, tasks, options

    def attempts(self, problem: Set, goal: Goal) -> Iterator[dict[str, Any]]:
        if self.name == "emd":
            yield {}
            return
        for setting in super().attempts(problem, goal):  # POT stops at an L2 error, between L1 / sqrt(n) and L1
            root = len(problem.a) ** 0.5
            for factor in (0.5, 1 / root) if goal.task == "marginal" else (1 / root,):
                yield setting | {"tol": setting["tol"] * factor}

    def run(self, given: Set, compiled: Any, **setting: Any) -> Any:
        import ot

        if self.name == "emd":
            return ot.emd(given.a, given.b, given.C, numItermax=10**9, log=True)
        solve = getattr(ot.bregman, self.name)
        return solve(
            given.a, given.b, given.C, setting["epsilon"], numItermax=_FOREVER, stopThr=setting["tol"], log=True,
            **self.options,
        )  # fmt: skip

    def answer(self, given: Set, out: Any, **setting: Any) -> Answer:
        plan, log = out
        if self.name == "emd":
            return Answer(plan, log["u"], log["v"])
        if "alpha" in log:
            return Answer(plan, log["alpha"], log["beta"])
        return Answer(plan, setting["epsilon"] * log["log_u"], setting["epsilon"] * log["log_v"])


class OTT(Method):
    """Log-domain Sinkhorn, compiled for the shape and the setting beforehand."""

    library = "OTT-JAX"
    modules = ("jax", "ott")

    def __init__(self, decay: float = 1.0, momentum: str = "", anderson: int = 0) -> None:
        self.decay, self.momentum, self.anderson = decay, momentum, anderson

    def ready(self, problem: Set) -> Any:
        import jax

        jax.config.update("jax_enable_x64", True)
        import jax.numpy as jnp

        return problem, jnp.asarray(problem.C), jnp.asarray(problem.a), jnp.asarray(problem.b)

    def compiled(self, given: Any, **setting: Any) -> Any:
        import jax
        from ott.geometry import epsilon_scheduler, geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import acceleration, sinkhorn

        _, C, a, b = given
        kinds = {
            "": None,
            "adaptive": acceleration.Momentum(start=100),
            "1.5": acceleration.Momentum(value=1.5),
        }
        more: dict[str, Any] = {"momentum": kinds[self.momentum]} if self.momentum else {}
        if self.anderson:
            more = {"anderson": acceleration.AndersonAcceleration(memory=self.anderson)}
        solver = sinkhorn.Sinkhorn(threshold=setting["tol"], max_iterations=10**6, **more)
        start = max(1.0, float(C.max()) / setting["epsilon"]) if self.decay < 1 else 1.0

        def solve(C: Any, a: Any, b: Any, epsilon: Any) -> Any:
            schedule = epsilon_scheduler.Epsilon(epsilon, init=start, decay=self.decay)
            out = solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=C, epsilon=schedule), a, b))
            return out.f, out.g, out.converged

        return jax.jit(solve).lower(C, a, b, setting["epsilon"]).compile()

    def run(self, given: Any, compiled: Any, **setting: Any) -> Any:
        import jax

        _, C, a, b = given
        return jax.block_until_ready(compiled(C, a, b, setting["epsilon"]))

    def answer(self, given: Any, out: Any, **setting: Any) -> Answer:
        f, g = np.asarray(out[0]), np.asarray(out[1])
        # OTT's potentials hold the masses: P = exp((f + g - C) / eps)
        return Answer(np.exp((f[:, None] + g - given[0].C) / setting["epsilon"]), f, g)


class GeomLoss(Method):
    """`SamplesLoss`, tensorised: annealed Sinkhorn loops of a fixed length, read through the potentials."""

    library = "GeomLoss"
    modules = ("geomloss",)
    tasks = ("gap",)
    levels = (1e-2,)

    def __init__(self, scaling: float) -> None:
        self.scaling = scaling

    def takes(self, problem: Set) -> bool:
        return problem.x is not None

    def ready(self, problem: Set) -> Any:
        import torch

        return problem, *(torch.from_numpy(t) for t in (problem.a, problem.x, problem.b, problem.y))

    def run(self, given: Any, compiled: Any, **setting: Any) -> Any:
        import geomloss
        import torch

        problem, a, x, b, y = given
        p, scale, cost = self._cost(problem.cost)
        blur = (setting["epsilon"] / scale) ** (1 / p)
        loss = geomloss.SamplesLoss(
            "sinkhorn", p=p, blur=blur, scaling=self.scaling, debias=False, potentials=True, backend="tensorized",
            cost=cost,
        )  # fmt: skip
        with torch.no_grad():
            return loss(a, x, b, y)

    @staticmethod
    def _cost(name: str) -> tuple[int, float, Callable[..., Any] | None]:
        """The exponent p, how many times GeomLoss's cost ours is, and a function where it has none of that name."""
        import torch

        if name == "sqeuclidean":
            return 2, 2.0, None
        if name == "euclidean":
            return 1, 1.0, None
        if name == "cityblock":
            return 1, 1.0, lambda x, y: torch.cdist(x, y, p=1)
        unit = torch.nn.functional.normalize
        return 1, 1.0, lambda x, y: 1 - unit(x, dim=-1) @ unit(y, dim=-1).mT

    def answer(self, given: Any, out: Any, **setting: Any) -> Answer:
        problem = given[0]
        scale = self._cost(problem.cost)[1]
        f, g = (scale * t.numpy().ravel() for t in out)
        return Answer(gibbs(problem, f, g, setting["epsilon"]), f, g)


class MDOT(Method):
    """Mirror descent with truncated Newton projections, on costs scaled to [0, 1]."""

    library = "mdot-tnt"
    modules = ("mdot_tnt.mdot",)

    def ready(self, problem: Set) -> Any:
        import torch

        top = problem.C.max()
        return problem, top, *(torch.from_numpy(t) for t in (problem.a, problem.b, problem.C / top))

    def attempts(self, problem: Set, goal: Goal) -> Iterator[dict[str, Any]]:
        top = problem.C.max()
        if goal.task == "gap":
            for k in (10.0, 3.0, 1.0, 0.3, 0.1):
                yield {"gamma": top / (k * goal.level * goal.optimum), "p": 1.5}
            return
        gamma = top / (goal.level * problem.mean_cost)
        entropy = min(-(w[w > 0] @ np.log(w[w > 0])) for w in (problem.a, problem.b))
        for slack in (1.0, 0.3):  # the marginals are met to about entropy / gamma^p, so the goal asks for a p
            yield {"gamma": gamma, "p": float(np.log(entropy / (slack * MARGINAL_TOL)) / np.log(gamma))}

    def run(self, given: Any, compiled: Any, **setting: Any) -> Any:
        from mdot_tnt.mdot import mdot

        _, _, a, b, C = given
        return mdot(a, b, C, setting["gamma"], p=setting["p"])

    def answer(self, given: Any, out: Any, **setting: Any) -> Answer:
        _, top, _, _, C = given
        u, v, gamma = out[0], out[1], out[2]
        plan = (u[:, None] + v - gamma * C).exp().numpy()
        return Answer(plan, u.numpy() * top / gamma, v.numpy() * top / gamma)


class RegOT(Method):
    """Newton-type methods for a fixed epsilon; they stop at an L2 norm of the gradient."""

    slower_when_harder = False  # a small epsilon makes the Hessian sparse
    library = "regot"
    modules = ("regot",)
    tasks = ("marginal",)

    def __init__(self, name: str) -> None:
        self.name = name

    def ready(self, problem: Set) -> Any:
        return problem, np.asfortranarray(problem.C)

    def attempts(self, problem: Set, goal: Goal) -> Iterator[dict[str, Any]]:
        for factor in (0.5, 1 / len(problem.a) ** 0.5, 0.1 / len(problem.a) ** 0.5):
            yield {"epsilon": goal.level * problem.mean_cost, "tol": factor * MARGINAL_TOL}

    def run(self, given: Any, compiled: Any, **setting: Any) -> Any:
        import regot

        problem, C = given
        return getattr(regot, self.name)(
            C, problem.a, problem.b, setting["epsilon"], tol=setting["tol"], max_iter=10**5
        )

    def answer(self, given: Any, out: Any, **setting: Any) -> Answer:
        return Answer(np.asarray(out.plan))


METHODS: dict[str, Method] = {
    "brenier": Brenier(),
    "brenier sns": Brenier("sns", ("marginal",)),
    "brenier sinkhorn": Brenier("sinkhorn", ("gap",)),
    "POT emd": POT("emd", ("gap",)),
    "POT sinkhorn_log": POT("sinkhorn_log"),
    "POT sinkhorn_stabilized": POT("sinkhorn_stabilized"),
    "OTT schedule, adaptive momentum": OTT(decay=0.9, momentum="adaptive"),
    "OTT momentum 1.5": OTT(momentum="1.5"),
    "OTT Anderson": OTT(anderson=5),
    "GeomLoss 0.9": GeomLoss(0.9),
    "GeomLoss 0.99": GeomLoss(0.99),
    "mdot-tnt": MDOT(),
    "regot SSNS": RegOT("sinkhorn_ssns"),
    "regot SPLR": RegOT("sinkhorn_splr"),
}


def quiet() -> None:
    """Whether a method converged is for the judge to say."""
    warnings.simplefilter("ignore")
