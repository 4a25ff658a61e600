"""Monge gap: how a population of cells answers a treatment, as a map that sends control cells to treated ones.

Control and treated cells are never the same cells, so that only the two clouds are known. Of all maps that send one to
the other, this one moves the cells least, for a cost of one's choice. The map, its loss and its training are the
core's `MongeGapEstimator` and `monge_gap`; this is their interface for one perturbation, which holds cells out and
measures on these.

Reference: Uscidda & Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, ICML 2023, arXiv
2302.04953.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._inputs import float_tensor, is_real
from ...errors import need, refuse
from ...losses import mmd
from ...maps.neural import MongeGapEstimator
from ...maps.training import BANDWIDTHS, map_quality

_validation = need("sklearn.utils.validation", "cells", "Learning a perturbation")

__all__ = ["Perturbation", "learn_perturbation"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Perturbation:
    """A map from control to treated cells, and how good it is on cells that were held out.

    Attributes:
        estimator: the fitted map.
        quality: of the map on held-out cells: "sinkhorn_divergence" and "mmd" to the treated ones, "exact_gap" and
            "displacement" in units of the cost.
        identity: the same for the map that leaves all cells where they are.
        floor: the squared mean discrepancy between held-out and training cells of the treatment: what a perfect map
            has left.
        control, treated: the cells that were held out, (n, d) and (m, d).
    """

    estimator: MongeGapEstimator
    quality: dict[str, float]
    identity: dict[str, float]
    floor: float
    control: Array
    treated: Array

    def predict(self, cells: ArrayLike) -> Array:
        """What becomes of cells (k, d) under the treatment."""
        return self.estimator.transform(cells)

    def __repr__(self) -> str:
        q, i = self.quality, self.identity
        return (
            f"Perturbation(mmd={q['mmd']:.3g} (untreated {i['mmd']:.3g}, floor {self.floor:.3g}), "
            f"exact_gap={q['exact_gap']:.3g} of displacement {q['displacement']:.3g})"
        )


def learn_perturbation(
    control: Any,  # (n, d)
    treated: Any,  # (m, d)
    *,
    test_fraction: float = 0.3,
    seed: int = 0,
    **parameters: Any,
) -> Perturbation:
    """Learn the map from control to treated cells, and measure it on cells that it has not seen.

    Args:
        control, treated: cells, arrays, frames or AnnData (its X), on one scale: arcsinh or log, then standardised.
        test_fraction: of both sides, held out.
        seed: of the split and of the training.
        parameters: of `MongeGapEstimator`: cost, lam, max_iter, ...

    Returns:
        A `Perturbation`.

    Raises:
        InvalidInput: a fraction outside (0, 1), too few cells, and what the estimator refuses.

    Complexity: that of the training, and an exact assignment of the held-out cells.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> control, treated = rng.normal(size=(300, 2)), rng.normal(size=(300, 2)) + [1.5, 0]
        >>> found = learn_perturbation(control, treated, hidden=(32,), max_iter=30, lr=3e-2)
        >>> found.quality["mmd"] < 0.3 * found.identity["mmd"], found.predict(control[:5]).shape
        (True, (5, 2))

    Source: Uscidda & Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, ICML 2023.
    """
    if not (is_real(test_fraction) and 0 < test_fraction < 1):
        refuse("test_fraction", "a number in (0, 1)", repr(test_fraction))
    rng = np.random.default_rng(seed)
    (x, x_test), (y, y_test) = (
        _split(cells, name, test_fraction, rng) for cells, name in ((control, "control"), (treated, "treated"))
    )
    estimator = MongeGapEstimator(**{"seed": seed, **parameters}).fit(x, y)
    floor = mmd(*(float_tensor(t, "treated").double() for t in (y_test, y)), bandwidth=BANDWIDTHS)
    return Perturbation(
        estimator,
        estimator.evaluate(x_test, y_test),
        map_quality(x_test, x_test, y_test, cost=estimator.cost),
        float(floor),
        x_test,
        y_test,
    )


def _split(cells: Any, name: str, fraction: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Training and held-out cells."""
    read = float_tensor(cells, name).numpy()
    checked: Array = _validation.check_array(read, dtype=[np.float64, np.float32], ensure_min_samples=4)
    count = round(fraction * len(checked))
    if not 2 <= count <= len(checked) - 2:
        refuse(name, "at least two cells on either side of the split", f"{count} of {len(checked)} held out")
    order = rng.permutation(len(checked))
    return checked[order[count:]], checked[order[:count]]
