"""The front door of semi-discrete transport."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..._inputs import is_real, kind_of
from ...costs import Cost
from ...errors import NotConverged, NotConvergedWarning, refuse
from ...problem import Relative
from ...solution import Status
from ..base import _limited, _progress, check_count, check_number, time_is_up
from .newton import DampedNewton
from .problem import SemidiscreteProblem, centred
from .sgd import AveragedSGD
from .solution import SemidiscreteSolution

__all__ = ["semidiscrete_transport"]

_METHODS: dict[str, type[DampedNewton] | type[AveragedSGD]] = {"newton": DampedNewton, "sgd": AveragedSGD}
_SCALE_POINTS = 4096  # of the source, for the mean cost that `Relative` multiplies


def semidiscrete_transport(
    source: Any,
    y: Any,  # (m, d)
    *,
    b: Any = None,  # (m,)
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    epsilon: float | Relative | None = None,
    method: str | DampedNewton | AveragedSGD = "auto",
    start: SemidiscreteSolution | dict[str, Any] | Tensor | None = None,
    tol: float | None = None,
    max_iter: int | None = None,
    throw: bool = False,
    progress: bool = False,
    callback: Callable[[int, Any], bool | None] | None = None,
    timeout: float | None = None,
    generator: torch.Generator | None = None,
) -> SemidiscreteSolution:
    r"""Move a law that can be sampled, or has a density, onto atoms at least cost.

    .. math::
        \max_g \sum_j b_j g_j + \mathbb E_x \min_j \bigl(c(x, y_j) - g_j\bigr)

    The cell of y_j is where it attains the minimum; under the best g it has the mass b_j, and the map that sends each
    cell to its atom is optimal. With an epsilon the minimum is soft, -eps log sum_j b_j exp((g_j - c(x, y_j)) / eps),
    and points are shared out among the atoms.

    Args:
        source: a density (`UniformBox`, `UniformPolygon`, `PixelDensity`); a `Gaussian`, or anything else with
            `sample(n, generator)`; such a function itself; a torch distribution; points, in memory or in a file
            (`numpy.memmap`), whose rows are drawn with replacement; or batches of points, taken as they come.
        y: atoms; (m,) is (m, 1). Equal ones are merged inside, those without mass left out.
        b: masses of total 1; uniform when None.
        cost: as for `solve`.
        epsilon: entropic strength in cost units, or `Relative` to the mean cost, which a sample of the source
            estimates.
        method: "newton", exact cells under the squared Euclidean cost for densities with d <= 2 and for `UniformBox`
            with d = 3; "sgd", any source and cost; "auto", the first where it can be had; or `DampedNewton(...)`,
            `AveragedSGD(...)`.
        start: potentials (m,); a solution to go on from, or its `state`, which "sgd" resumes, with the same random
            numbers where the generator was given and now is not.
        tol: marginal error sum_j |m_j - b_j| to stop at; 1e-8 for "newton", 0.02 for "sgd".
        max_iter: steps of Newton's method, or minibatches.
        throw: raise `NotConverged` when the tolerance is not met; otherwise warn and report in `status`.
        progress: show a progress bar.
        callback: `callback(iteration, state)` after each step; a true answer ends the solve with the best so far.
        timeout: seconds of wall time after which the solve ends with the best so far.
        generator: of random points, on the CPU.

    Returns:
        A `SemidiscreteSolution`: g, masses, value, linear_value, certificate, status, stats, and out of sample
        assign(x), map(x), potential(x).

    Raises:
        InvalidInput: an argument breaks a rule; the message says what was expected, what came, and the cure.
        NotConverged: with `throw=True`.

    Complexity: see `DampedNewton` and `AveragedSGD`; nothing of size n x m is formed.

    Source: Aurenhammer, Hoffmann & Aronov (1998), Minkowski-type theorems and least-squares clustering; Kitagawa,
    Mérigot & Thibert (2019), Convergence of a Newton algorithm for semi-discrete optimal transport; Genevay, Cuturi,
    Peyré & Bach (2016), Stochastic optimization for large-scale optimal transport.

    Example:
        >>> import torch
        >>> from brenier.solvers import UniformBox, semidiscrete_transport
        >>> y = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> found = semidiscrete_transport(UniformBox(0.0, 1.0), y, b=[0.25, 0.75])
        >>> found.assign(torch.tensor([[0.2], [0.3]])).tolist()  # the cells meet at 0.25
        [0, 1]
        >>> round(float(found.value), 6)  # the integrals of x^2 up to 1/4 and of (1 - x)^2 from there
        0.145833
    """
    begin = time.perf_counter()
    if timeout is not None:
        check_number("timeout", timeout)
    if generator is not None and not isinstance(generator, torch.Generator):
        refuse("generator", "a torch.Generator or None", type(generator).__name__)
    if epsilon is not None and not isinstance(epsilon, Relative):
        if not is_real(epsilon):
            refuse("epsilon", "a number in cost units, Relative(...) or None", repr(epsilon))
        check_number("epsilon", epsilon)
    problem = SemidiscreteProblem.make(source, y, b, cost=cost)
    if epsilon is not None:
        problem = replace(problem, epsilon=_in_cost_units(epsilon, problem, generator))
    chosen, reason = _choose(method, problem, tol, max_iter)
    chosen.check(problem)
    saved, g = _read_start(start, len(problem.y))
    if saved is not None and g is None and isinstance(chosen, DampedNewton):
        refuse("start", "potentials or a solution for method='newton'", "a state of 'sgd'")
    iteration = 0
    with torch.no_grad(), _limited(timeout), _progress(chosen, progress) as report:  # type: ignore[arg-type]
        state: Any
        if isinstance(chosen, AveragedSGD):
            if saved is not None:
                state, generator = chosen.resumed(problem, saved), _continued(saved, generator)
            elif g is not None:
                state = chosen.at(centred(problem.atoms.gathered(g).double(), problem.atoms.b))
            else:
                state = chosen.init(problem, generator)
        else:
            state = (chosen if g is None else replace(chosen, g=g)).init(problem, generator)
        status = chosen.terminate(problem, state)
        while status is None:
            state = chosen.step(problem, state, generator)
            iteration += 1
            report(iteration, state)
            status = chosen.terminate(problem, state)
            if status is not None and status.ok:
                break
            if callback is not None and callback(iteration, state):
                status = Status.INTERRUPTED
            elif time_is_up():
                status = Status.TIME_OUT
            elif iteration >= chosen.max_iter:
                status = status or Status.MAX_ITER
        outcome = chosen.finish(problem, state, generator)
    stats = {
        "method": chosen.name,
        "reason": reason,
        "n_iter": iteration,
        "seconds": time.perf_counter() - begin,
        "epsilon": problem.epsilon,
        **outcome.stats,
    }
    solution = SemidiscreteSolution(problem, outcome, status, stats, kind_of(y))
    if not status.ok:
        message = f"{chosen.name}: {status.value} (after {iteration} iterations, error {stats['marginal_error']:.3g})."
        if throw:
            raise NotConverged(message, solution)  # type: ignore[arg-type]
        warnings.warn(message, NotConvergedWarning, stacklevel=2)
    return solution


def _choose(
    method: str | DampedNewton | AveragedSGD, problem: SemidiscreteProblem, tol: float | None, max_iter: int | None
) -> tuple[DampedNewton | AveragedSGD, str]:
    changes: dict[str, Any] = {}
    if tol is not None:
        check_number("tol", tol)
        changes["tol"] = tol
    if max_iter is not None:
        check_count("max_iter", max_iter)
        changes["max_iter"] = max_iter
    if isinstance(method, DampedNewton | AveragedSGD):
        return replace(method, **changes), "asked for"
    if not isinstance(method, str) or method not in ("auto", *_METHODS):
        refuse("method", "'auto', 'newton', 'sgd', DampedNewton(...) or AveragedSGD(...)", repr(method))
    if method != "auto":
        return _METHODS[method](**changes), "asked for"
    if DampedNewton.takes(problem):
        return DampedNewton(**changes), "the cells are known exactly"
    return AveragedSGD(**changes), "the source can be sampled"


def _in_cost_units(epsilon: float | Relative, problem: SemidiscreteProblem, generator: torch.Generator | None) -> float:
    if not isinstance(epsilon, Relative):
        return float(epsilon)
    cloud = problem.cloud(problem.source.sample(_SCALE_POINTS, generator))
    return float(epsilon.fraction) * float(cloud.mean_cost(None, problem.atoms.b.to(cloud.dtype)))


def _read_start(start: Any, m: int) -> tuple[dict[str, Any] | None, Tensor | None]:
    """The state to resume from, and potentials to start from."""
    if start is None:
        return None, None
    if isinstance(start, SemidiscreteSolution):
        return start.state, start._g
    if isinstance(start, dict):
        return start, None
    if not isinstance(start, Tensor) or tuple(start.shape) != (m,):
        refuse("start", f"potentials of shape ({m},), a solution or its state", repr(type(start).__name__))
    return None, start.detach()


def _continued(saved: dict[str, Any], generator: torch.Generator | None) -> torch.Generator | None:
    """The given generator, or the saved one where it was left."""
    if generator is not None or saved["generator"] is None:
        return generator
    out = torch.Generator()
    out.set_state(saved["generator"])
    return out
