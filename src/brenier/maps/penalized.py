"""The maps of plans that mind classes or neighbours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .._inputs import is_count, kind_of, weights_tensor
from ..costs import Cost
from ..errors import need, refuse
from ..geometry import PointCloud
from ..problem import Problem, Relative
from ..solution import Solution
from ..solvers import GeneralizedGradient, Penalized, PenalizedSolution, run
from ..solvers.penalized.terms import ClassNorm, ClassPower, Smoothness, Term
from .base import Array, PlanMap, read_classes

_neighbors = need("sklearn.neighbors", "learn", "A map as an estimator")

__all__ = ["ClassMap", "LaplacianMap"]


def _penalized(problem: Problem, term: Term, eta: float | Relative, tol: float, max_iter: int, x: Array) -> Solution:
    solver = GeneralizedGradient(tol=tol, max_iter=max_iter)
    return run(Penalized.of(problem, term, eta), solver, kind=kind_of(x), answer=PenalizedSolution)


class ClassMap(PlanMap):
    r"""Move a cloud onto another one along a plan that sends the classes of the source to different places.

    .. math:: \min_P \langle P, C\rangle + \varepsilon\,\mathrm{KL}(P \,|\, a \otimes b) + \eta\,\Omega(P), \qquad
        \Omega(P) = \sum_j \sum_c \lVert P_{c j}\rVert

    over the target points j and the classes c of the source: a target point that takes mass from one class only pays
    least. New points follow the nearest training point.

    Args:
        epsilon: in cost units, or `Relative(0.05)` for 0.05 x mean cost, which is also that of None.
        eta: strength of the term, in the same units; Relative(0.05) when None.
        norm: "l2", the convex group lasso, or "lp", the concave power of the mass of a class, which separates classes
            more strongly and depends on its start, the plan without the term.
        p, offset: for "lp": sum (mass + offset)^p - offset^p.
        cost: as for `solve`.
        tol: gap to the optimum for "l2", to a stationary point for "lp", relative to the value without the term.
        max_iter: linear problems after the first.

    Attributes:
        plan_, source_, target_, value_, n_iter_, n_features_in_: as for every map; entropy and term are in
            the value.
        lower_: a proved lower bound of the value.
        classes_: of the source.

    Raises:
        InvalidInput: no classes, or clouds, masses and parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: O(n m) memory; an entropic problem an iteration, usually some ten of them.

    Example:
        >>> import numpy as np
        >>> X, ys = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["low", "low", "high", "high"])
        >>> adapted = ClassMap(epsilon=1.0, eta=5.0).fit(X, ys, Xt=X + 0.5)
        >>> adapted.transform_labels(ys).argmax(1).tolist(), adapted.classes_.tolist()
        ([1, 1, 0, 0], ['high', 'low'])

    Source: Courty, Flamary & Tuia (2014), Domain adaptation with regularized optimal transport (lp); Courty, Flamary,
    Tuia & Rakotomamonjy (2017), Optimal transport for domain adaptation (l2).
    """

    def __init__(
        self,
        epsilon: float | Relative | None = None,
        eta: float | Relative | None = None,
        norm: str = "l2",
        p: float = 0.5,
        offset: float = 1e-3,
        cost: str | Cost = "sqeuclidean",
        tol: float = 1e-5,
        max_iter: int = 200,
    ) -> None:
        self.epsilon = epsilon
        self.eta = eta
        self.norm = norm
        self.p = p
        self.offset = offset
        self.cost = cost
        self.tol = tol
        self.max_iter = max_iter

    def _solve(self, x: Array, y: Array, a: Array, b: Array, ys: ArrayLike | None) -> Solution:
        self.classes_, index = read_classes(ys, "ys", len(x))
        labels = torch.from_numpy(index.astype(np.int64))
        if self.norm == "l2":
            term: Term = ClassNorm(labels)
        elif self.norm == "lp":
            term = ClassPower(labels, self.p, self.offset)
        else:
            refuse("norm", "'l2' or 'lp'", repr(self.norm))
        epsilon, eta = (Relative(0.05) if t is None else t for t in (self.epsilon, self.eta))
        problem = Problem.make(PointCloud(x, y, self.cost), a, b, epsilon=epsilon)
        return _penalized(problem, term, eta, self.tol, self.max_iter, x)

    def _keep(self, solution: Solution, a: Array, b: Array) -> None:
        self.lower_ = float(solution.dual_value)


class LaplacianMap(PlanMap):
    r"""Move a cloud onto another one along a plan that keeps neighbours together.

    .. math:: \min_P \langle P, C\rangle + \varepsilon\,\mathrm{KL}(P \,|\, a \otimes b) + \eta\,\Omega(P), \qquad
        \Omega(P) = \alpha \operatorname{mean}_{i \sim k} \lVert T(x_i) - T(x_k)\rVert^2 + (1 - \alpha)\,\Omega'

    over the edges of the graph of nearest neighbours of the source, and :math:`\Omega'` the same for the target under
    the way back. Edges weigh a_i a_k s_ik, with s = 1 where both are among each other's neighbours, 1/2 where one is.

    Args:
        eta: strength of the term; at 1 neighbours at a distance weigh like mass that moves as far.
        alpha: weight of the source, in [0, 1].
        n_neighbors: of each point; at most n - 1 of them count.
        displacement: compare displacements T(x) - x in the place of positions, so that shifts are free.
        epsilon: in cost units, or `Relative(0.05)`; None for no entropy.
        cost: as for `solve`.
        tol: gap to the optimum, relative to the value without the term; small ones want an epsilon.
        max_iter: linear problems after the first.

    Attributes:
        plan_, source_, target_, value_, n_iter_, n_features_in_: as for every map; the term is in the value.
        lower_: a proved lower bound of the value.

    Raises:
        InvalidInput: clouds, masses or parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: O(n m) memory; an exact problem an iteration, from the potentials of the last. The gap falls like one
    over their number: some dozen to a hundred for 1e-2. With an epsilon some ten entropic problems reach 1e-4.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(30, 2))
        >>> adapted = LaplacianMap(displacement=True).fit(X, Xt=X + 4)
        >>> bool(np.allclose(adapted.transform(X), X + 4))
        True

    Source: Ferradans, Papadakis, Peyré & Aujol (2014), Regularized discrete optimal transport; Courty, Flamary, Tuia &
    Rakotomamonjy (2017), Optimal transport for domain adaptation.
    """

    def __init__(
        self,
        eta: float = 1.0,
        alpha: float = 0.5,
        n_neighbors: int = 3,
        displacement: bool = False,
        epsilon: float | Relative | None = None,
        cost: str | Cost = "sqeuclidean",
        tol: float = 1e-2,
        max_iter: int = 1000,
    ) -> None:
        self.eta = eta
        self.alpha = alpha
        self.n_neighbors = n_neighbors
        self.displacement = displacement
        self.epsilon = epsilon
        self.cost = cost
        self.tol = tol
        self.max_iter = max_iter

    def _solve(self, x: Array, y: Array, a: Array, b: Array, ys: ArrayLike | None) -> Solution:
        if not is_count(self.n_neighbors):
            refuse("n_neighbors", "a positive integer", repr(self.n_neighbors))
        problem = Problem.make(PointCloud(x, y, self.cost), a, b, epsilon=self.epsilon)
        term = self.term(x, y, problem.a, problem.b)
        return _penalized(problem, term, self.eta, self.tol, self.max_iter, x)

    def term(self, x: Array, y: Array, a: Tensor | None = None, b: Tensor | None = None) -> Smoothness:
        """The term between two clouds (n, d) and (m, d) of float64, with masses; uniform when None."""
        like = torch.empty(0, dtype=torch.float64)
        masses = weights_tensor(a, len(x), "a", like), weights_tensor(b, len(y), "b", like)
        return Smoothness(
            torch.from_numpy(x),
            torch.from_numpy(y),
            *masses,
            self._edges(x, masses[0]),
            self._edges(y, masses[1]),
            share=self.alpha,
            displacement=self.displacement,
        )

    def _edges(self, X: Array, a: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Heads, tails and weights of the graph of nearest neighbours, each edge once, for a sum that is a mean."""
        k = min(self.n_neighbors, len(X) - 1)
        if k < 1:
            return None
        graph = _neighbors.kneighbors_graph(X, k)
        both = ((graph + graph.T) / 2).tocoo()
        upper = both.row < both.col
        heads, tails = (torch.from_numpy(t[upper].astype(np.int64)) for t in (both.row, both.col))
        weights = torch.from_numpy(both.data[upper].astype(np.float64))
        total = (weights * a[heads] * a[tails]).sum()
        return (heads, tails, weights / total) if float(total) > 0 else None

    def _keep(self, solution: Solution, a: Array, b: Array) -> None:
        self.lower_ = float(solution.dual_value)
