"""Differentiable losses and layers on the core."""

from ..solvers.exact.line import circle_cost, line_cost
from .doubly_stochastic import DoublyStochastic, Scaled, doubly_stochastic, marginal_error
from .lifted import LiftedPlan, expected_sliced_plan, min_sliced_plan
from .sliced import (
    Circular,
    MaxSliced,
    Polynomial,
    SlicedEstimate,
    energy_sliced_wasserstein,
    max_sliced_wasserstein,
    random_directions,
    sliced_barycentre,
    sliced_wasserstein,
    spherical_sliced_wasserstein,
)

__all__ = [
    "Circular",
    "DoublyStochastic",
    "LiftedPlan",
    "MaxSliced",
    "Polynomial",
    "Scaled",
    "SlicedEstimate",
    "circle_cost",
    "doubly_stochastic",
    "energy_sliced_wasserstein",
    "expected_sliced_plan",
    "line_cost",
    "marginal_error",
    "max_sliced_wasserstein",
    "min_sliced_plan",
    "random_directions",
    "sliced_barycentre",
    "sliced_wasserstein",
    "spherical_sliced_wasserstein",
]
