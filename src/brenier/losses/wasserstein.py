"""Transport costs as losses: exact, partial, between Gaussians, and between spaces without common coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._inputs import float_tensor, is_real
from ..adjoint import Adjoint, Envelope
from ..api import solve
from ..costs import Cost, Euclidean, Lp, SqEuclidean
from ..errors import refuse
from ..geometry.pointcloud import read_cloud
from ..gromov import gromov_wasserstein
from ..marginals import Exact, Marginal, Partial
from ..problem import Relative
from ..solvers import Gaussian, gaussian_cost
from .clouds import Ground, between, untraced

__all__ = ["exact_wasserstein", "gaussian_wasserstein", "gromov_loss", "partial_wasserstein"]


def exact_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    p: float = 2.0,
    cost: Ground | None = None,
) -> Tensor:  # (*batch,)
    r"""Compute the exact transport cost between two measures.

    .. math:: W_p^p = \min_{P \mathbf 1 = a,\, P^\top \mathbf 1 = b} \sum_{ij} P_{ij} \lVert x_i - y_j\rVert^p

    Differentiable in points and masses at the optimal plan, held fixed; where several plans are optimal, that of one.
    Second derivatives in the points are those of this plan as well; those in points and masses at once are refused. The
    p-th root is the distance.

    Args:
        x, y: clouds, batch axes broadcast; or lists of clouds of different sizes.
        a, b: masses of equal totals; uniform with total 1 when None.
        p: at least 1.
        cost: another one, as for `solve`, in the place of the power of a distance.

    Raises:
        InvalidInput: clouds that do not fit together, p < 1, unequal totals.

    Complexity: that of `solve`: O((n + m) log(n + m)) in one dimension; a little more than n m d time otherwise.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> float(exact_wasserstein(x, x + 3)), float(exact_wasserstein(x, x + torch.tensor([3.0, 4.0]), p=1))
        (18.0, 5.0)

    Source: Peyré & Cuturi (2019), Computational optimal transport.
    """
    return untraced(_transport)(x, y, a, b, _power(p, cost), {})


def partial_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    mass: float | Tensor,
    p: float = 2.0,
    cost: Ground | None = None,
    epsilon: float | Relative | Tensor | None = None,
    adjoint: Adjoint = Envelope(),
) -> Tensor:  # (*batch,)
    r"""Compute the least cost of moving a part of the mass, which part is for the plan to choose.

    .. math:: \min_{P \mathbf 1 \le a,\, P^\top \mathbf 1 \le b,\, \mathbf 1^\top P \mathbf 1 = \text{mass}}
        \sum_{ij} P_{ij} \lVert x_i - y_j\rVert^p \; (+\, \varepsilon\, \mathrm{KL}(P\,|\,a \otimes b))

    Outliers stay behind. Differentiable in points, masses and `mass`.

    Args:
        x, y, a, b: as for `exact_wasserstein`; totals may differ.
        mass: how much is moved, a number or (*batch,), at most either total.
        p, cost: as for `exact_wasserstein`.
        epsilon: in cost units; None is exact.
        adjoint: as for `solve`; second derivatives of an entropic value need `Implicit()`.

    Raises:
        InvalidInput: clouds that do not fit together, p < 1, a mass that is not there.

    Complexity: that of `solve`, with one virtual point on each side.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0], [99.0]]), torch.tensor([[0.5], [1.5], [-70.0]])
        >>> round(float(partial_wasserstein(x, y, mass=2 / 3)), 4)  # two pairs at a cost of 1/4
        0.1667

    Source: Caffarelli & McCann (2010), Free boundaries in optimal transport; Chapel, Alaya & Gasso (2020), Partial
    optimal transport with applications on positive-unlabeled learning.
    """
    options = {"marginals": Partial(mass), "epsilon": epsilon, "adjoint": adjoint}
    return untraced(_transport)(x, y, a, b, _power(p, cost), options)


def gaussian_wasserstein(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, d)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    epsilon: float | Tensor | None = None,
    shrinkage: float | str | None = None,
) -> Tensor:  # (*batch,)
    r"""Compute the transport cost between the Gaussians with the moments of two clouds.

    .. math:: \lVert m - n\rVert^2 + \operatorname{tr} S + \operatorname{tr} T
        - 2 \operatorname{tr}(S^{1/2} T S^{1/2})^{1/2}

    A lower bound of the squared Wasserstein cost between the clouds, and a loss on features in many dimensions (the
    Fréchet distance). With an epsilon it is the Sinkhorn divergence of the Gaussians. Twice differentiable, in
    epsilon once.

    Args:
        x, y: clouds, batch axes broadcast.
        a, b: masses, normalised here; uniform when None.
        epsilon: in cost units, as for `gaussian_cost`; None is exact.
        shrinkage: of the covariances, as for `Gaussian.fit`.

    Raises:
        InvalidInput: points, masses, an epsilon or a shrinkage that break a rule.

    Complexity: O((n + m) d^2 + d^3) time.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> round(float(gaussian_wasserstein(x, 3 * x)), 4)  # the means (1, 1) and (3, 3), deviations 1 and 3
        16.0

    Source: Dowson & Landau (1982), The Fréchet distance between multivariate normal distributions; Heusel et al.
    (2017), GANs trained by a two time-scale update rule converge to a local Nash equilibrium.
    """
    return untraced(_gaussian)(x, y, a, b, epsilon, shrinkage)


def gromov_loss(
    x: Any,  # (*batch, n, d)
    y: Any,  # (*batch, m, e)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    cost: Any = None,
    loss: str = "square",
    epsilon: float | Relative | None = None,
    marginals: Marginal | tuple[Marginal, Marginal] = (Exact(), Exact()),
    starts: int = 2,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (*batch,)
    r"""Compute the Gromov-Wasserstein cost between spaces that share no coordinates, for each item of a batch.

    .. math:: \min_P \sum_{ii'jj'} L(C_{ii'}, D_{jj'})\, P_{ij} P_{i'j'}

    The value of `gromov_wasserstein`, which also gives the plan and its lower bounds. Differentiable in points,
    matrices and masses at the plan that was found, held fixed; second derivatives are refused.

    Args:
        x, y: clouds, in spaces of any dimension; or matrices (*batch, n, n) and (*batch, m, m) with
            cost="precomputed". Batch axes are the same on both sides.
        a, b: masses; uniform with total 1 when None.
        cost, loss, epsilon, marginals, starts, tol, generator: as for `gromov_wasserstein`.

    Raises:
        InvalidInput: batch axes that differ, and what `gromov_wasserstein` refuses.

    Complexity: that of `gromov_wasserstein`, for each item in turn.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [2.0, 5.0]])
        >>> turned = torch.stack([-x[:, 1], x[:, 0]], 1) + 7
        >>> abs(float(gromov_loss(x, turned))) < 1e-5
        True

    Source: Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching.
    """
    options = {
        "cost": cost,
        "loss": loss,
        "epsilon": epsilon,
        "marginals": marginals,
        "starts": starts,
        "tol": tol,
        "generator": generator,
    }
    return untraced(_gromov)(x, y, a, b, options)


def _power(p: float, cost: Ground | None) -> Ground:
    if cost is not None:
        return cost
    if not (is_real(p) and 1 <= p < math.inf):
        refuse("p", "a finite number >= 1", repr(p))
    known: dict[float, Cost] = {1.0: Euclidean(), 2.0: SqEuclidean()}
    return known.get(float(p), Lp(2.0, float(p)))


def _transport(x: Any, y: Any, a: Any, b: Any, cost: Ground, options: dict[str, Any]) -> Tensor:
    value: Tensor = solve(between(x, y, cost), a=a, b=b, **options).value
    return value


def _gaussian(x: Any, y: Any, a: Any, b: Any, epsilon: Any, shrinkage: Any) -> Tensor:
    p, q = (Gaussian.fit(points, masses, shrinkage=shrinkage) for points, masses in ((x, a), (y, b)))
    return gaussian_cost(p, q, epsilon=epsilon, debiased=epsilon is not None)


def _gromov(x: Any, y: Any, a: Any, b: Any, options: dict[str, Any]) -> Tensor:
    x, y = read_cloud(x, "x"), read_cloud(y, "y")
    batch = x.shape[:-2]
    if y.shape[:-2] != batch:
        refuse("x and y", "the same batch axes", f"{tuple(batch)} and {tuple(y.shape[:-2])}")
    masses = [_masses(w, (*batch, t.shape[-2]), name) for w, t, name in ((a, x, "a"), (b, y, "b"))]
    values: Sequence[Tensor] = [
        gromov_wasserstein(x[k], y[k], a=None if a is None else masses[0][k], b=None if b is None else masses[1][k],
                           **options).value
        for k in itertools.product(*map(range, batch))
    ]  # fmt: skip
    return torch.stack(list(values)).reshape(batch)


def _masses(weights: Any, shape: tuple[int, ...], name: str) -> Any:
    return weights if weights is None else float_tensor(weights, name).expand(shape)
