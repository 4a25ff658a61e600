"""Mixtures of Gaussians, and transport between them that keeps to mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..._inputs import float_tensor, weights_tensor
from ...certificate import Certificate
from ...errors import refuse
from ...geometry import CostMatrix
from ...problem import Problem
from ...solution import Solution
from ..barycentres.inputs import barycentre_weights
from ..base import run
from ..exact.simplex import NetworkSimplex
from .barycentre import gaussian_barycentre
from .gaussian import Gaussian
from .transport import GaussianPlan, gaussian_cost, gaussian_geodesic, gaussian_transport

__all__ = ["GaussianMixture", "MixturePlan", "mixture_barycentre", "mixture_geodesic", "mixture_transport"]


class GaussianMixture:
    """A mixture of k Gaussians: sum_i a_i N(m_i, S_i).

    Args:
        a: (k,) nonnegative masses of total 1; equal when None.
        gaussians: a batch of one axis, (k,).

    Raises:
        InvalidInput: components that are not a batch of one axis, masses that do not fit.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, GaussianMixture
        >>> mixture = GaussianMixture(None, Gaussian(torch.tensor([[0.0], [5.0]]), torch.ones(2, 1, 1)))
        >>> mixture.a.tolist(), mixture.mean.tolist()
        ([0.5, 0.5], [2.5])
    """

    def __init__(self, a: Any, gaussians: Gaussian) -> None:
        if not isinstance(gaussians, Gaussian) or len(gaussians.batch_shape) != 1:
            refuse("gaussians", "a batch of Gaussians of one axis", repr(gaussians))
        a = weights_tensor(a, gaussians.batch_shape[0], "a", gaussians.mean)
        self.a: Tensor = a / a.sum()
        self.gaussians = gaussians

    @classmethod
    def from_sklearn(cls, model: Any, *, dtype: torch.dtype = torch.float64) -> Self:
        """Read a fitted `sklearn.mixture.GaussianMixture` (or Bayesian one), of any covariance type."""
        missing = [name for name in ("weights_", "means_", "covariances_") if not hasattr(model, name)]
        if missing:
            refuse("model", "a fitted mixture of scikit-learn", f"one without {', '.join(missing)}", "Call fit first.")
        a, means, S = (float_tensor(getattr(model, name), name).to(dtype)
                       for name in ("weights_", "means_", "covariances_"))  # fmt: skip
        k, d = means.shape
        kind = model.covariance_type
        if kind == "tied":
            S = S.expand(k, d, d)
        elif kind == "diag":
            S = torch.diag_embed(S)
        elif kind == "spherical":
            S = S[:, None, None] * torch.eye(d, dtype=dtype)
        return cls(a, Gaussian(means, S))

    @property
    def mean(self) -> Tensor:
        """Of the whole, (d,)."""
        return self.a @ self.gaussians.mean

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, (n, d)."""
        which = torch.multinomial(self.a.cpu(), n, replacement=True, generator=generator)
        counts = which.bincount(minlength=len(self.a)).tolist()
        drawn = [self.gaussians.item(k).sample(count, generator) for k, count in enumerate(counts) if count]
        return torch.cat(drawn)[torch.randperm(n, generator=generator)]

    def log_responsibilities(self, x: Tensor) -> Tensor:
        """Log of the share of each component at points (n, d): (n, k); covariances of full rank."""
        S, mean = self.gaussians.covariance, self.gaussians.mean
        L, info = torch.linalg.cholesky_ex(S)
        if bool(info.any()):
            refuse("covariance", "full rank, for densities", "a singular one", "Add a little to its diagonal.")
        white = torch.linalg.solve_triangular(L, (x - mean.unsqueeze(1)).mT, upper=False)  # (k, d, n)
        log = -white.square().sum(-2) / 2 - L.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return torch.log_softmax(log.mT + self.a.log(), -1)

    def __repr__(self) -> str:
        return f"GaussianMixture(k={len(self.a)}, d={self.gaussians.d})"


@dataclass(frozen=True)
class MixturePlan:
    """The best plan between mixtures that is itself a mixture of Gaussian plans.

    Attributes:
        value: MW_2^2, an upper bound of W_2^2; differentiable in the parameters of the mixtures.
        solution: of the problem between the components, with its plan and certificate.
        source, target: the mixtures.
    """

    value: Tensor
    solution: Solution
    source: GaussianMixture
    target: GaussianMixture

    @property
    def certificate(self) -> Certificate:
        """Bounds on MW_2^2: the problem between components is solved exactly."""
        return self.solution.certificate

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and masses of the components that are coupled."""
        rows, cols, mass = self.solution.plan.entries()
        return rows, cols, mass

    def map(self, x: Any) -> Tensor:
        """Send points (n, d) to the mean of where the plan sends them: maps of the pairs, by responsibilities."""
        rows, cols, mass = self.pairs()
        points = float_tensor(x, "x").to(self.source.a)
        share = self.source.log_responsibilities(points).exp()[:, rows] * (mass / self.source.a[rows])
        moved = self._plan(rows, cols).map(points.expand(len(rows), *points.shape))
        return torch.einsum("nk,knd->nd", share, moved)

    def _plan(self, rows: Tensor, cols: Tensor) -> GaussianPlan:
        return gaussian_transport(self.source.gaussians.item(rows), self.target.gaussians.item(cols))


def mixture_transport(p: GaussianMixture, q: GaussianMixture) -> MixturePlan:
    r"""The least cost of plans between two mixtures that are mixtures of Gaussians.

    .. math:: \mathrm{MW}_2^2 = \min_{P \in U(a, b)} \sum_{ij} P_{ij} W_2^2(p_i, q_j)

    An upper bound of W_2^2, with W_2 <= MW_2 <= W_2 + (2 sum_i a_i tr S_i)^1/2 + (2 sum_j b_j tr T_j)^1/2. The plan
    couples at most k + l - 1 pairs.

    Args:
        p, q: mixtures of one dimension.

    Complexity: O(k l d^3) for the costs, and an exact problem of size k x l.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, GaussianMixture, mixture_transport
        >>> p = GaussianMixture(None, Gaussian(torch.tensor([[0.0], [5.0]]), torch.ones(2, 1, 1)))
        >>> q = GaussianMixture(None, Gaussian(torch.tensor([[6.0], [1.0]]), torch.ones(2, 1, 1)))
        >>> float(mixture_transport(p, q).value)
        1.0

    Source: Delon & Desolneux (2020), A Wasserstein-type distance in the space of Gaussian mixture models.
    """
    for mixture, name in ((p, "p"), (q, "q")):
        if not isinstance(mixture, GaussianMixture):
            refuse(name, "a GaussianMixture", type(mixture).__name__)
    costs = gaussian_cost(p.gaussians.item((slice(None), None)), q.gaussians)
    solution = run(Problem.make(CostMatrix(costs), p.a, q.a), NetworkSimplex())
    return MixturePlan(solution.value, solution, p, q)


def mixture_geodesic(p: GaussianMixture, q: GaussianMixture, t: float) -> GaussianMixture:
    """The mixture at time t between two: the geodesics of the coupled components, with the masses of the pairs.

    Args:
        p, q: mixtures of one dimension.
        t: in [0, 1].

    Source: Delon & Desolneux (2020), A Wasserstein-type distance in the space of Gaussian mixture models.
    """
    rows, cols, mass = mixture_transport(p, q).pairs()
    return GaussianMixture(mass, gaussian_geodesic(p.gaussians.item(rows), q.gaussians.item(cols), t))


def mixture_barycentre(
    mixtures: list[GaussianMixture], weights: Any = None, *, limit: int = 100_000, tol: float | None = None
) -> GaussianMixture:
    r"""The mixture that is nearest to several, in the mean of MW_2^2.

    A component for each tuple of components, one of every mixture, that the best multimarginal plan uses: their
    Gaussian barycentre, with the mass of the tuple. There are at most sum k - J + 1 of them.

    Args:
        mixtures: J of them.
        weights: nonnegative, of total 1; equal when None.
        limit: tuples at most, k_1 ... k_J: all are tried.
        tol: of the Gaussian barycentres.

    Raises:
        InvalidInput: no mixture, weights that do not fit, too many tuples.

    Complexity: a Gaussian barycentre for each tuple, in one batch, and a linear program (HiGHS).

    Source: Delon & Desolneux (2020), A Wasserstein-type distance in the space of Gaussian mixture models.
    """
    if not mixtures:
        refuse("mixtures", "at least one", "none")
    w = barycentre_weights(weights, len(mixtures), mixtures[0].a)
    sizes = [len(m.a) for m in mixtures]
    count = int(torch.Size(sizes).numel())
    if count > limit:
        refuse("mixtures", f"at most {limit} tuples of components", f"{count}", "Fit fewer components, or raise limit.")
    index = torch.cartesian_prod(*(torch.arange(k) for k in sizes)).reshape(count, len(sizes))
    found = gaussian_barycentre([m.gaussians.item(index[:, j]) for j, m in enumerate(mixtures)], w, tol=tol)

    from scipy.optimize import linprog  # not with the import of brenier
    from scipy.sparse import csr_array

    rows = torch.cat([index[:, j] + sum(sizes[:j]) for j in range(len(sizes))])
    matrix = csr_array(
        (torch.ones(len(rows)).double().numpy(), (rows.numpy(), torch.arange(count).repeat(len(sizes)).numpy()))
    )
    totals = torch.cat([m.a.detach().double() / m.a.detach().double().sum() for m in mixtures]).cpu().numpy()
    solved = linprog(found.value.double().cpu().numpy(), A_eq=matrix, b_eq=totals, method="highs-ds")
    if solved.status != 0:
        refuse("mixtures", "a linear program that HiGHS solves", solved.message)
    mass = torch.from_numpy(solved.x).to(w)
    used = (mass > 1e-12).nonzero().squeeze(-1)
    return GaussianMixture(mass[used], found.gaussian.item(used))
