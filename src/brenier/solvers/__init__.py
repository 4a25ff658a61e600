"""Solvers: frozen recipes that one driver runs."""

from .base import Solver, run
from .entropic.newton import Newton, SparseNewton
from .entropic.relaxation import OverRelaxation, Plain, Relaxation
from .entropic.schedule import Fixed, Halving, Schedule
from .entropic.sinkhorn import Sinkhorn
from .exact.monotone import Monotone
from .exact.simplex import NetworkSimplex

__all__ = [
    "Fixed",
    "Halving",
    "Monotone",
    "NetworkSimplex",
    "Newton",
    "OverRelaxation",
    "Plain",
    "Relaxation",
    "Schedule",
    "Sinkhorn",
    "Solver",
    "SparseNewton",
    "run",
]
