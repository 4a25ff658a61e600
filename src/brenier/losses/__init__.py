"""Differentiable losses and layers on the core."""

from ..solvers.exact.line import circle_cost, line_cost
from ..solvers.exact.partial import PartialPath, partial_line_cost, partial_line_path
from .alignment import Aligned, OTAttention, SoftAlignment
from .divergence import Divergence, SinkhornDivergence, Warm, sinkhorn_divergence
from .doubly_stochastic import DoublyStochastic, Scaled, doubly_stochastic, marginal_error
from .labels import Labelled, class_costs, labelled_wasserstein
from .lifted import LiftedPlan, expected_sliced_plan, min_sliced_plan
from .mmd import energy_distance, mmd
from .monge_gap import Gap, MongeGap, monge_gap
from .samples import SamplesLoss
from .sequences import Ordered, order_preserving_wasserstein
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
from .wasserstein import exact_wasserstein, gaussian_wasserstein, gromov_loss, partial_wasserstein

__all__ = [
    "Aligned",
    "Circular",
    "Divergence",
    "DoublyStochastic",
    "Gap",
    "Labelled",
    "LiftedPlan",
    "MaxSliced",
    "MongeGap",
    "OTAttention",
    "Ordered",
    "PartialPath",
    "Polynomial",
    "SamplesLoss",
    "Scaled",
    "SinkhornDivergence",
    "SlicedEstimate",
    "SoftAlignment",
    "Warm",
    "circle_cost",
    "class_costs",
    "doubly_stochastic",
    "energy_distance",
    "energy_sliced_wasserstein",
    "exact_wasserstein",
    "expected_sliced_plan",
    "gaussian_wasserstein",
    "gromov_loss",
    "labelled_wasserstein",
    "line_cost",
    "marginal_error",
    "max_sliced_wasserstein",
    "min_sliced_plan",
    "mmd",
    "monge_gap",
    "order_preserving_wasserstein",
    "partial_line_cost",
    "partial_line_path",
    "partial_wasserstein",
    "random_directions",
    "sinkhorn_divergence",
    "sliced_barycentre",
    "sliced_wasserstein",
    "spherical_sliced_wasserstein",
]
