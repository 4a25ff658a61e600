"""Solvers: frozen recipes that one driver runs."""

from .base import Solver, run
from .entropic.annealing import Annealing
from .entropic.hybrid import SinkhornNewton
from .entropic.multiscale import Multiscale
from .entropic.newton import Newton, SparseNewton
from .entropic.relaxation import OverRelaxation, Plain, Relaxation
from .entropic.schedule import Fixed, Halving, Schedule
from .entropic.sinkhorn import Sinkhorn
from .exact.assignment import Assignment, Matching
from .exact.monotone import Monotone
from .exact.simplex import NetworkSimplex
from .quadratic.ascent import DualAscent
from .quadratic.methods import LBFGS, Adam, Method

__all__ = [
    "LBFGS",
    "Adam",
    "Annealing",
    "Assignment",
    "DualAscent",
    "Fixed",
    "Halving",
    "Matching",
    "Method",
    "Monotone",
    "Multiscale",
    "NetworkSimplex",
    "Newton",
    "OverRelaxation",
    "Plain",
    "Relaxation",
    "Schedule",
    "Sinkhorn",
    "SinkhornNewton",
    "Solver",
    "SparseNewton",
    "run",
]
