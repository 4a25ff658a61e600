"""Flows between two laws: probability paths to train on, and samplers of the learned field."""

from .paths import VP, CondOT, GaussianPath, Trigonometric
from .sampling import log_likelihood, path_energy, sample_ode, straightness

__all__ = [
    "VP",
    "CondOT",
    "GaussianPath",
    "Trigonometric",
    "log_likelihood",
    "path_energy",
    "sample_ode",
    "straightness",
]
