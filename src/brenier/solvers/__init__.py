"""Solvers: frozen recipes that one driver runs."""

from .barycentres.bregman import Bregman
from .barycentres.free import FreeSupport
from .barycentres.front import barycentre
from .barycentres.problem import Barycentre, BarycentreCertificate, BarycentreSolution
from .base import Solver, run
from .dynamic.geodesic import DynamicPath, dynamic_transport
from .dynamic.tangent import TransportVelocity, solenoidal_projection, tangent_velocity, transport_velocity
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
from .exact.flow import GridFlow
from .exact.monotone import Circle, Monotone
from .exact.partial import PartialMonotone
from .exact.simplex import NetworkSimplex
from .gaussian.barycentre import GaussianBarycentre, gaussian_barycentre
from .gaussian.gaussian import Gaussian
from .gaussian.mixture import (
    GaussianMixture,
    MixturePlan,
    mixture_barycentre,
    mixture_geodesic,
    mixture_transport,
)
from .gaussian.transport import GaussianPlan, gaussian_cost, gaussian_geodesic, gaussian_transport
from .hierarchical import Hierarchical
from .lowrank import LowRank
from .penalized.gradient import GeneralizedGradient
from .penalized.problem import Penalized, PenalizedSolution
from .penalized.terms import ClassNorm, ClassPower, Smoothness, Term
from .quadratic.ascent import DualAscent
from .quadratic.methods import LBFGS, Adam, Method
from .semidiscrete.densities import Density, PixelDensity, UniformBox, UniformPolygon
from .semidiscrete.front import semidiscrete_transport
from .semidiscrete.newton import DampedNewton
from .semidiscrete.sgd import AveragedSGD
from .semidiscrete.solution import Estimate, SampledCertificate, SemidiscreteSolution
from .structure.gradient import ConditionalGradient
from .structure.lowrank import LowRankGromov
from .structure.mirror import Mirror, Proximal
from .structure.quantized import Quantized
from .structure.solution import GromovSolution, StructureCertificate
from .structure.starts import MultiStart

__all__ = [
    "LBFGS",
    "Adam",
    "Anderson",
    "Annealing",
    "Assignment",
    "AveragedSGD",
    "Barycentre",
    "BarycentreCertificate",
    "BarycentreSolution",
    "Bregman",
    "Circle",
    "ClassNorm",
    "ClassPower",
    "ConditionalGradient",
    "DampedNewton",
    "Density",
    "DualAscent",
    "DynamicPath",
    "Estimate",
    "Fixed",
    "FreeSupport",
    "Gaussian",
    "GaussianBarycentre",
    "GaussianMixture",
    "GaussianPlan",
    "GaussianStart",
    "GeneralizedGradient",
    "Given",
    "GridFlow",
    "GromovSolution",
    "Halving",
    "Hierarchical",
    "LowRank",
    "LowRankGromov",
    "Matching",
    "Method",
    "Mirror",
    "MixturePlan",
    "Monotone",
    "MultiStart",
    "Multiscale",
    "NetworkSimplex",
    "Newton",
    "NewtonPath",
    "OverRelaxation",
    "PartialMonotone",
    "Penalized",
    "PenalizedSolution",
    "PixelDensity",
    "Plain",
    "Proximal",
    "Quantized",
    "Relaxation",
    "SampledCertificate",
    "Schedule",
    "SemidiscreteSolution",
    "Sinkhorn",
    "SinkhornNewton",
    "Smoothness",
    "Solver",
    "SortingStart",
    "SparseNewton",
    "Start",
    "StructureCertificate",
    "SubsampleStart",
    "SymmetricSinkhorn",
    "Term",
    "TransportVelocity",
    "UniformBox",
    "UniformPolygon",
    "Zeros",
    "barycentre",
    "dynamic_transport",
    "gaussian_barycentre",
    "gaussian_cost",
    "gaussian_geodesic",
    "gaussian_transport",
    "mixture_barycentre",
    "mixture_geodesic",
    "mixture_transport",
    "run",
    "semidiscrete_transport",
    "solenoidal_projection",
    "tangent_velocity",
    "transport_velocity",
]
