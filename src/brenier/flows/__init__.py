"""Flows between two laws: probability paths and couplings to train on, the loss, and samplers of the learned field."""

from .couplings import (
    Coupled,
    Coupling,
    EntropicCoupling,
    ExactCoupling,
    GibbsWeights,
    IndependentCoupling,
    SemidiscreteCoupling,
    gibbs_log_weight,
)
from .loader import CouplingLoader, Extra, LoaderStats
from .matching import FlowMatching, effective_fraction
from .paths import VP, CondOT, GaussianPath, Trigonometric
from .sampling import log_likelihood, path_energy, sample_ode, straightness

__all__ = [
    "VP",
    "CondOT",
    "Coupled",
    "Coupling",
    "CouplingLoader",
    "EntropicCoupling",
    "ExactCoupling",
    "Extra",
    "FlowMatching",
    "GaussianPath",
    "GibbsWeights",
    "IndependentCoupling",
    "LoaderStats",
    "SemidiscreteCoupling",
    "Trigonometric",
    "effective_fraction",
    "gibbs_log_weight",
    "log_likelihood",
    "path_energy",
    "sample_ode",
    "straightness",
]
