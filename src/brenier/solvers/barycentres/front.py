"""The front door of barycentres."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._inputs import Kind, kind_of, weights_tensor
from ...costs import Cost, as_cost
from ...errors import NotConverged, NotConvergedWarning, refuse
from ...geometry import Geometry, Ragged
from ...geometry.pointcloud import read_cloud
from ...plan import Plan
from ...problem import Relative
from ..base import check_count, check_number, run
from .bregman import Bregman
from .free import FreeSupport
from .inputs import barycentre_weights, clouds_of, drawn
from .linear import linear_program
from .problem import Barycentre, BarycentreSolution, transports

__all__ = ["barycentre"]


def barycentre(
    measures: Any,
    weights: Any = None,  # (K,)
    *,
    a: Any = None,
    support: Any = None,  # (m, d)
    n: int | None = None,
    b: Any = None,  # (n,)
    start: Any = None,  # (n, d)
    cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    epsilon: float | Relative | None = None,
    rho: float | None = None,
    debiased: bool = False,
    tol: float | None = None,
    max_iter: int | None = None,
    timeout: float | None = None,
    throw: bool = False,
    generator: torch.Generator | None = None,
) -> BarycentreSolution:
    r"""The measure that is nearest to several, in the mean of transport costs.

    .. math:: \min_\nu \sum_k w_k \, T(\mu_k, \nu)

    On a given support (a geometry, or `support=`) its masses are sought: by iterative Bregman projections with an
    epsilon, by one linear program without. Otherwise its points are, for given masses: transports to all measures and
    a step of the points in turns, which ends in a local optimum.

    Args:
        measures: a list of clouds (n_k, d), or one tensor (K, n, d); or a geometry between the points of the measures
            and the support, such as `Grid(64, 64)` or `CostMatrix(C)`.
        weights: of the measures, nonnegative, of total 1; equal when None.
        a: masses of the measures: a list of (n_k,), or (K, n); uniform when None.
        support: points whose masses are sought.
        n: points of a free support; as many as the first cloud when None.
        b: masses of a free support; uniform when None, with the mean mass of the measures.
        start: where the points of a free support begin; points drawn from the measures when None.
        cost: between points; see `solve`. With a geometry, its own.
        epsilon: entropic strength in cost units or `Relative`; None is exact.
        rho: price of violated marginals KL(rho), in cost units; needs an epsilon.
        debiased: on a given support, take away the blur of the entropy.
        tol: on a given support the error of `Bregman`; for free points the residual of the fixed point, 1e-6.
        max_iter: iterations.
        timeout: seconds, after which the best so far is returned.
        throw: raise `NotConverged` when the tolerance is not met; otherwise warn and report in `status`.
        generator: of the start.

    Returns:
        A `BarycentreSolution`: points, b, value, plan, status, stats; `certify()` bounds the least value on the
        support from both sides.

    Raises:
        InvalidInput: an argument breaks a rule; the message says what was expected, what came, and the cure.
        NotConverged: with `throw=True`.

    Complexity: see `Bregman`; a linear program has K n m variables, a million at most; with free points, K exact or
    entropic problems an iteration, in one batch.

    Example:
        >>> import torch, brenier
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = brenier.barycentre([x, x + 2], start=x)
        >>> bool((found.points - (x + 1)).abs().max() < 1e-9)
        True
        >>> a = torch.zeros(2, 8, dtype=torch.float64)
        >>> a[0, 1] = a[1, 5] = 1
        >>> brenier.barycentre(brenier.Grid(8), a=a, epsilon=0.01).b.argmax().item()
        3

    Source: Agueh & Carlier (2011), Barycenters in the Wasserstein space; Cuturi & Doucet (2014), Fast computation of
    Wasserstein barycenters; Benamou et al. (2015), Iterative Bregman projections for regularized transportation
    problems; Solomon et al. (2015), Convolutional Wasserstein distances; Janati, Cuturi & Gramfort (2020), Debiased
    Sinkhorn barycenters.
    """
    begin = time.perf_counter()
    fixed = isinstance(measures, Geometry) or support is not None
    for name, value in (("n", n), ("b", b), ("start", start)):
        if fixed and value is not None:
            refuse(name, "none on a given support", type(value).__name__, "Leave support= out, for points that move.")
    if debiased and not fixed:
        refuse("debiased", "a given support", "free points", "Give support=points.")
    if debiased and epsilon is None:
        refuse("debiased", "an epsilon beside it", "none", "Without one, nothing is biased.")
    if tol is not None:
        check_number("tol", tol)
    if timeout is not None:
        check_number("timeout", timeout)
    if max_iter is not None:
        check_count("max_iter", max_iter)
    if fixed:
        found = _fixed(measures, weights, a, support, cost, epsilon, rho, debiased, tol, max_iter, timeout)
    else:
        found = _free(measures, weights, a, n, b, start, cost, epsilon, rho, tol, max_iter, timeout, generator)
    found.stats["seconds"] = time.perf_counter() - begin
    if not found.status.ok:
        message = f"barycentre: {found.status.value} (after {found.stats['n_iter']} iterations)."
        if throw:
            raise NotConverged(message, found)  # type: ignore[arg-type]
        warnings.warn(message, NotConvergedWarning, stacklevel=2)
    return found


def _fixed(
    measures: Any,
    weights: Any,
    a: Any,
    support: Any,
    cost: Any,
    epsilon: Any,
    rho: Any,
    debiased: bool,
    tol: float | None,
    max_iter: int | None,
    timeout: float | None,
) -> BarycentreSolution:
    if isinstance(measures, Geometry):
        geometry, kind = measures, measures.kind
        if support is not None:
            refuse("support", "none, as the geometry holds it", type(support).__name__)
        points = getattr(geometry, "points", None) if not hasattr(geometry, "y") else geometry.y
        kind = kind if kind.name != "torch" or a is None else kind_of(a)
    else:
        clouds, kind = clouds_of(measures), _kind(measures)
        points = read_cloud(support, "support").to(clouds[0])
        geometry = transports(clouds, points, cost)
        if isinstance(a, list | tuple) and not isinstance(geometry, Ragged):
            a = torch.stack([torch.as_tensor(t) for t in a])
    geometry = geometry.detach()
    if a is None and not geometry.batch_shape:
        refuse("a", "masses of the measures, (K, n)", "None")
    target = Barycentre.make(geometry, a, weights, epsilon=epsilon, rho=rho)
    if points is not None and points.dim() == 3:
        points = points[0]
    plan: Plan
    if epsilon is None:
        program = linear_program(target, timeout=timeout)
        stats: dict[str, Any] = {"solver": "linear-program", "n_iter": program.n_iter}
        b, value, status = program.b, program.value, program.status
        plan, f, g = program.plan, program.f, program.g
    else:
        solver = Bregman(weights=target.weights, debiased=debiased, tol=tol, max_iter=max_iter or Bregman.max_iter)
        solution = run(target.problem, solver, warn=False, timeout=timeout)
        stats = dict(solution.stats)
        b, value, status = stats.pop("b"), stats.pop("value"), solution.status
        plan, f, g = solution._plan, solution.f, solution.g
    like = target.problem.a
    return BarycentreSolution(
        None if points is None else kind.array(points),
        kind.array(b.to(like)),
        kind.array(value.to(like)),
        status,
        stats,
        plan,
        f,
        g,
        target.problem,
        target.weights,
        kind,
    )


def _free(
    measures: Any,
    weights: Any,
    a: Any,
    n: int | None,
    b: Any,
    start: Any,
    cost: Any,
    epsilon: Any,
    rho: Any,
    tol: float | None,
    max_iter: int | None,
    timeout: float | None,
    generator: torch.Generator | None,
) -> BarycentreSolution:
    clouds, kind = clouds_of(measures), _kind(measures)
    first = clouds[0]
    w = barycentre_weights(weights, len(clouds), first.double())
    masses = None
    if a is not None:
        if len(a) != len(clouds):
            refuse("a", f"{len(clouds)} lists of masses", len(a))
        masses = [weights_tensor(t, len(y), f"a[{k}]", y) for k, (t, y) in enumerate(zip(a, clouds))]
    if n is not None:
        check_count("n", n)
    if start is None:
        x = drawn(clouds, n or len(first), generator)
    else:
        x = read_cloud(start, "start").detach().to(first)
        if x.dim() != 2 or x.shape[1] != first.shape[1] or (n is not None and n != len(x)):
            refuse("start", f"points ({n or 'n'}, {first.shape[1]})", f"shape {tuple(x.shape)}")
    b = weights_tensor(b, len(x), "b", x)
    if masses is not None:
        total = float((w * torch.stack([t.double().sum() for t in masses])).sum())
        b = b * (total / float(b.double().sum()))
    ground = as_cost(cost)
    if isinstance(epsilon, Relative):
        epsilon = epsilon.fraction * float(transports(clouds, x, ground).mean_cost().mean())
    elif epsilon is not None:
        check_number("epsilon", epsilon)
    if rho is not None and epsilon is None:
        refuse("rho", "an epsilon beside it", "none", "Give epsilon=Relative(0.01), say.")
    descent = FreeSupport(
        ground,
        None if epsilon is None else torch.as_tensor(epsilon, dtype=x.dtype),
        rho,
        1e-6 if tol is None else tol,
        200 if max_iter is None else max_iter,
        timeout,
    )
    with torch.no_grad():
        found = descent(x, b, clouds, masses, w)
    stats = {
        "solver": f"free support, {found.solution.stats['solver']}",
        "n_iter": len(found.values) - 1,
        "residual": found.residual,
        "values": found.values,
    }
    solution = found.solution
    return BarycentreSolution(
        kind.array(found.x),
        kind.array(b),
        kind.array(x.new_tensor(found.values[-1])),
        found.status,
        stats,
        solution._plan,
        solution.f,
        solution.g,
        solution.problem,
        w,
        kind,
    )


def _kind(measures: Any) -> Kind:
    kind = kind_of(measures[0] if isinstance(measures, Sequence) else measures)
    return Kind("numpy") if kind.name == "pandas" else kind
