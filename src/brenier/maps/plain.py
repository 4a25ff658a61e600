"""The maps of plain optimal plans, exact and entropic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from .._inputs import float_tensor, is_real
from ..api import solve
from ..costs import Cost
from ..errors import refuse
from ..geometry import PointCloud
from ..marginals import KL, TV, Exact, Marginal
from ..plan import Plan
from ..problem import Relative
from ..solution import Solution
from .base import Array, PlanMap

__all__ = ["EntropicMap", "ExactMap"]

Rho = float | tuple[float | None, float | None] | None


def _marginals(rho: Any, soft: type[KL] | type[TV]) -> tuple[Marginal, Marginal]:
    """Exact marginals where rho is None, soft ones elsewhere."""
    pair = rho if isinstance(rho, tuple) else (rho, rho)
    if len(pair) != 2 or not all(r is None or is_real(r) for r in pair):
        refuse("rho", "None, a positive number, or a pair of these for source and target", repr(rho))
    left, right = (Exact() if r is None else soft(float(r)) for r in pair)
    return left, right


class ExactMap(PlanMap):
    r"""Move a cloud onto another one along the exact optimal plan, which is sparse.

    .. math:: \min_P \langle P, C\rangle, \qquad T(x_i) = \sum_j P_{ij} y_j / \sum_j P_{ij}

    New points follow the nearest training point. An exact plan fits the noise of its samples; for noisy clouds
    `EntropicMap` is often the better map.

    Args:
        cost: as for `solve`.
        rho: price of a unit of mass that stays behind or has no source, in cost units (`TV(rho)`): what is farther than
            both prices together does not move along the plan. A number, a pair for source and target, or None for
            plans that take all.

    Attributes:
        plan_, source_, target_, value_, n_iter_, n_features_in_: as for every map; the value is the exact optimum.

    Raises:
        InvalidInput: clouds, masses or parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: that of `solve` without epsilon; O(n d) for a new point.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> moved = ExactMap().fit(X, Xt=X[::-1] + 5)
        >>> moved.transform([[1.0, 0.0], [1.0, 0.5]]).tolist()
        [[6.0, 5.0], [6.0, 5.5]]

    Source: Courty, Flamary, Tuia & Rakotomamonjy (2017), Optimal transport for domain adaptation.
    """

    def __init__(self, cost: str | Cost = "sqeuclidean", rho: Rho = None) -> None:
        self.cost = cost
        self.rho = rho

    def _solve(self, x: Array, y: Array, a: Array, b: Array, ys: ArrayLike | None) -> Solution:
        return solve(x, y, a=a, b=b, cost=self.cost, marginals=_marginals(self.rho, TV))


class EntropicMap(PlanMap):
    r"""Move a cloud onto another one along the entropic plan, which is smooth.

    .. math::
        \min_P \langle P, C\rangle + \varepsilon\,\mathrm{KL}(P \,|\, a \otimes b), \qquad
        T(x) = \frac{\sum_j y_j\, w_j(x)}{\sum_j w_j(x)}, \quad
        w_j(x) = b_j\, e^{(g_j - c(x, y_j)) / \varepsilon}

    T is defined everywhere, and is the barycentric projection of the plan at the training points. Nothing n x m is
    kept.

    Args:
        epsilon: in cost units, or `Relative(0.05)` for 0.05 x mean cost, which is also that of None.
        cost: as for `solve`.
        rho: price of mass that differs from the weights, in cost units (`KL(rho)`): a number, a pair for source and
            target, or None for marginals that are met.
        extension: "entropic", the map above, or "nearest", the displacement of the nearest training point.
        tol: relative marginal error, as for `solve`.
        max_iter: of iterations; that of the solver when None.

    Attributes:
        plan_, source_, target_, value_, n_iter_, n_features_in_: as for every map; entropy and penalties
            are in the value.
        epsilon_: in cost units.

    Raises:
        InvalidInput: clouds, masses or parameters that break a rule.
        ValueError: what scikit-learn refuses.

    Complexity: that of `solve` with an epsilon; O(m d) for a new point.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> adapted = EntropicMap(epsilon=0.1).fit(X, Xt=X + 3)
        >>> bool(np.allclose(adapted.transform(X).mean(0), (X + 3).mean(0), atol=1e-5))
        True

    Source: Courty, Flamary, Tuia & Rakotomamonjy (2017), Optimal transport for domain adaptation; Seguy et al. (2018),
    Large-scale optimal transport and mapping estimation; Pooladian & Niles-Weed (2021), Entropic estimation of optimal
    transport maps (the extension).
    """

    def __init__(
        self,
        epsilon: float | Relative | None = None,
        cost: str | Cost = "sqeuclidean",
        rho: Rho = None,
        extension: str = "entropic",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.cost = cost
        self.rho = rho
        self.extension = extension
        self.tol = tol
        self.max_iter = max_iter

    def _solve(self, x: Array, y: Array, a: Array, b: Array, ys: ArrayLike | None) -> Solution:
        if self.extension not in ("entropic", "nearest"):
            refuse("extension", "'entropic' or 'nearest'", repr(self.extension))
        epsilon = Relative(0.05) if self.epsilon is None else self.epsilon
        marginals = _marginals(self.rho, KL)
        return solve(x, y, a=a, b=b, cost=self.cost, epsilon=epsilon, marginals=marginals, tol=self.tol,
                     max_iter=self.max_iter)  # fmt: skip

    def _keep(self, solution: Solution, a: Array, b: Array) -> None:
        self.epsilon_ = float(solution.stats["epsilon"])
        # those of the plan; points without mass draw nothing
        self._levels = [
            np.where(w > 0, h.double().numpy() + self.epsilon_ * np.log(np.where(w > 0, w, 1)), -np.inf)
            for h, w in ((solution.f, a), (solution.g, b))
        ]

    def _extension(self, new: Tensor, here: Tensor, there: Tensor, plan: Plan, back: bool) -> Tensor:
        if self.extension == "nearest":
            return super()._extension(new, here, there, plan, back)
        cloud = PointCloud(there, new, self.cost).T if back else PointCloud(new, there, self.cost)
        g = float_tensor(self._levels[0 if back else 1], "potentials")
        f = cloud.softmin(g, self.epsilon_)
        return cloud.apply(f, g, self.epsilon_, there)
