"""Solvers: frozen recipes that one driver runs."""

from .base import Solver, run
from .entropic.annealing import Annealing
from .entropic.hybrid import SinkhornNewton
from .entropic.multiscale import Multiscale
from .entropic.newton import Newton, SparseNewton
from .entropic.path import NewtonPath
from .entropic.relaxation import Anderson, OverRelaxation, Plain, Relaxation
from .entropic.schedule import Fixed, Halving, Schedule
from .entropic.sinkhorn import Sinkhorn
from .entropic.start import GaussianStart, Given, SortingStart, Start, Zeros
from .entropic.subsample import SubsampleStart
from .entropic.symmetric import SymmetricSinkhorn
from .exact.assignment import Assignment, Matching
from .exact.monotone import Circle, Monotone
from .exact.simplex import NetworkSimplex
from .hierarchical import Hierarchical
from .lowrank import LowRank
from .quadratic.ascent import DualAscent
from .quadratic.methods import LBFGS, Adam, Method

__all__ = [
    "LBFGS",
    "Adam",
    "Anderson",
    "Annealing",
    "Assignment",
    "Circle",
    "DualAscent",
    "Fixed",
    "GaussianStart",
    "Given",
    "Halving",
    "Hierarchical",
    "LowRank",
    "Matching",
    "Method",
    "Monotone",
    "Multiscale",
    "NetworkSimplex",
    "Newton",
    "NewtonPath",
    "OverRelaxation",
    "Plain",
    "Relaxation",
    "Schedule",
    "Sinkhorn",
    "SinkhornNewton",
    "Solver",
    "SortingStart",
    "SparseNewton",
    "Start",
    "SubsampleStart",
    "SymmetricSinkhorn",
    "Zeros",
    "run",
]
