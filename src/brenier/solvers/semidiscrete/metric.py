"""How masses of cells react to potentials, estimated from points that lie near the border of two cells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .problem import SemidiscreteProblem

__all__ = ["Metric", "absorbed", "sampled_metric"]

Array = NDArray[np.float64]

_LEAST = 1.0  # of b_j / scale: the degree of a cell that hardly any point was near
_RIDGE = 0.02  # of b_j / scale, on the diagonal: how far parts that hardly hang together may move at once
_ROUGH = 0.03  # relative residual of a direction, which is random anyway
_MAX_ITER = 300  # of conjugate gradients


def absorbed(problem: SemidiscreteProblem, g: Tensor) -> Tensor:
    """Potentials with the masses of atoms absorbed, where there is an epsilon."""
    return g if problem.epsilon is None else g + problem.epsilon * problem.atoms.b.log()


class Metric:
    """A weighted graph of cells that meet, whose Laplacian stands for the dual's Hessian.

    Attributes:
        keys: of the edges (i, j), i < j, as i k + j; (e,), ascending.
        weights: (e,).
        scale: in cost units: a change of a potential after which a cell is another.
    """

    def __init__(self, b: Tensor, keys: NDArray[np.int64], weights: Array, scale: float) -> None:
        from scipy.sparse import coo_array, diags_array

        self.keys, self.weights, self.scale = keys, weights, scale
        masses = b.cpu().numpy()
        k = len(masses)
        i, j = keys // k, keys % k
        ends, twice = (np.append(i, j), np.append(j, i)), np.append(weights, weights)
        degree = np.bincount(ends[0], twice, k)
        diagonal = np.maximum(degree, _LEAST * masses / scale) + _RIDGE * masses / scale
        self._matrix: Any = (diags_array(diagonal) - coo_array((twice, ends), shape=(k, k))).tocsr()
        self._inverse: Any = diags_array(1 / diagonal)

    def direction(self, residual: Tensor) -> Tensor:
        """The change of potentials that would, to first order, bring about a change of masses (k,)."""
        from scipy.sparse.linalg import cg

        found, _ = cg(self._matrix, residual.cpu().numpy(), rtol=_ROUGH, maxiter=_MAX_ITER, M=self._inverse)
        return torch.from_numpy(found).to(residual.device)

    def blended(self, b: Tensor, other: Metric) -> Metric:
        """The mean of two."""
        keys, index = np.unique(np.append(self.keys, other.keys), return_inverse=True)
        weights = np.bincount(index, np.append(self.weights, other.weights), len(keys)) / 2
        return Metric(b, keys, weights, (self.scale + other.scale) / 2)

    def saved(self) -> dict[str, Any]:
        """Tensors and a number, for `torch.save`."""
        return {"keys": torch.from_numpy(self.keys), "weights": torch.from_numpy(self.weights), "scale": self.scale}

    @classmethod
    def loaded(cls, b: Tensor, saved: dict[str, Any]) -> Metric:
        """What `saved` gave."""
        return cls(b, saved["keys"].numpy(), saved["weights"].numpy(), saved["scale"])


def sampled_metric(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> Metric:
    """Read the graph from points x (n, d): each joins its two best atoms, the more the nearer it is to a tie.

    The derivative of m_i in g_j is minus the density, at zero, of the difference of their reduced costs. A kernel
    exp(-difference / scale) / scale estimates it, whose width is the mean difference, plus epsilon. Borders of cells
    with too little mass are taken for as long as they will be.
    """
    k = len(g)
    near = problem.cloud(x).support(x.new_zeros(len(x)), absorbed(problem, g).to(x), math.inf, 2)
    reduced, cols = near.reduced.reshape(-1, 2).double(), near.cols.reshape(-1, 2)
    apart = (reduced[:, 0] - reduced[:, 1]).abs()
    scale = float(apart.mean()) + (problem.epsilon or 0.0)
    scale = max(scale, torch.finfo(torch.float32).tiny)
    weights = torch.exp(-apart / scale) / (2 * scale * len(x))  # a border is seen from either side
    pairs = (cols.amin(1) * k + cols.amax(1)).cpu().numpy()
    best = cols.gather(1, reduced.argmin(1, keepdim=True)).squeeze(1)
    counts = torch.bincount(best, minlength=k).double()
    short = (problem.atoms.b * len(x) / counts.clamp(min=1)).clamp(min=1)
    weights *= torch.maximum(short[cols[:, 0]], short[cols[:, 1]])
    keys, index = np.unique(pairs, return_inverse=True)
    return Metric(problem.atoms.b, keys, np.bincount(index, weights.cpu().numpy(), len(keys)).astype(np.float64), scale)
