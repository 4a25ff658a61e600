"""Where potentials begin: those of the linear map between Gaussians with the same moments."""

from __future__ import annotations

import torch
from torch import Tensor

from ...costs import SqEuclidean
from ..gaussian.gaussian import Gaussian
from ..gaussian.transport import gaussian_transport
from .densities import Density
from .problem import SemidiscreteProblem, centred

__all__ = ["density_start", "quantile_start", "sampled_start"]

_DENSE = 1024  # dimensions up to which covariances are matched, beyond these only their traces
_ROUND = 1e-3  # of the mean variance, added to the covariance of atoms, which may lie on a line
_INSIDE = 0.98  # how far towards the faces of the domain atoms may be sent


def _linear(y: Tensor, A: Tensor, mean: Tensor, to: Tensor) -> Tensor:
    """Potentials under which each atom's cell holds A (y_j - mean) + to, for a symmetric A >= 0."""
    apart = y - mean
    return y.square().sum(1) - (apart @ A * apart).sum(1) - 2 * y @ to


def density_start(problem: SemidiscreteProblem, density: Density) -> Tensor:
    """Potentials whose cells all meet the domain: atoms are sent inside it by a linear map of gradient type."""
    y, b = problem.atoms.y.double().cpu(), problem.atoms.b.cpu()
    to, S = density.mean, density.covariance
    mean = b @ y
    apart = y - mean
    T = (b.unsqueeze(-1) * apart).mT @ apart
    eye = torch.eye(len(to), dtype=torch.float64)
    spread = float(T.trace()) / len(to)
    if not spread > 0:
        return torch.zeros_like(b)
    A = gaussian_transport(Gaussian.of(mean, T + _ROUND * spread * eye), Gaussian.of(to, S)).matrix
    normals, offsets = _faces(density)
    room = (offsets - normals @ to).clamp(min=0)
    reach = (normals @ (apart @ A).mT).amax(1)
    shrink = torch.where(reach > 0, _INSIDE * room / reach.clamp(min=1e-300), torch.inf).min().clamp(max=1)
    return centred(_linear(y, shrink * A, mean, to), b)


def _faces(density: Density) -> tuple[Tensor, Tensor]:
    """The domain as <normal, x> <= offset: (k, d) and (k,)."""
    pieces = density.pieces()
    if density.d == 2:
        corners = torch.from_numpy(pieces.corners)
        side = corners.roll(-1, 0) - corners
        normals = torch.stack([side[:, 1], -side[:, 0]], 1)
        return normals, (normals * corners).sum(1)
    eye = torch.eye(density.d, dtype=torch.float64)
    low, high = torch.from_numpy(pieces.low), torch.from_numpy(pieces.high)
    return torch.cat([eye, -eye]), torch.cat([high, -low])


def quantile_start(problem: SemidiscreteProblem, density: Density) -> Tensor:
    """The optimal potentials on the line: neighbouring cells meet at the quantiles of the source."""
    y, b = problem.atoms.y.double().cpu().squeeze(-1), problem.atoms.b.cpu()
    pieces = density.pieces()
    masses = torch.from_numpy(pieces.values.ravel())
    total = torch.cat([masses.new_zeros(1), masses.cumsum(0)])
    total = total / total[-1]
    low, high = float(pieces.low[0]), float(pieces.high[0])
    order = y.argsort()
    level = b[order].cumsum(0)[:-1].clamp(0, 1)
    pixel = (torch.searchsorted(total, level, right=True) - 1).clamp(0, len(masses) - 1)
    step = (level - total[pixel]) / (total[pixel + 1] - total[pixel]).clamp(min=1e-300)
    ends = low + (high - low) * (pixel + step.clamp(0, 1)) / len(masses)
    left, right = y[order][:-1], y[order][1:]
    rise = (ends - right).square() - (ends - left).square()
    g = torch.empty_like(y)
    g[order] = torch.cat([rise.new_zeros(1), rise.cumsum(0)])
    return centred(g, b)


def sampled_start(problem: SemidiscreteProblem, x: Tensor) -> Tensor:
    """Potentials of the linear map between moments of a sample x (n, d) and of the atoms; zero for other costs."""
    y, b = problem.atoms.y.double(), problem.atoms.b
    d = y.shape[1]
    if not isinstance(problem.cost, SqEuclidean) or len(y) < 2:
        return torch.zeros_like(b)
    x = x.double()
    if d <= _DENSE:
        p, q = Gaussian.fit(x, shrinkage="ledoit-wolf"), Gaussian.fit(y, b, shrinkage="ledoit-wolf")
        A, mean, to = gaussian_transport(q, p).matrix, q.mean, p.mean
        return centred(_linear(y, A, mean, to), b)
    mean, to = b @ y, x.mean(0)
    variance = float((b @ (y - mean).square()).sum())
    ratio = ((x - to).square().mean(0).sum() / variance).sqrt() if variance > 0 else x.new_zeros(())
    g = y.square().sum(1) - ratio * (y - mean).square().sum(1) - 2 * y @ to
    return centred(g, b)
