"""Certified optimal transport for PyTorch.

>>> import torch, brenier
>>> x, y = torch.randn(50, 2), torch.randn(60, 2)
>>> solution = brenier.solve(x, y)
>>> bool(solution.certificate.relative_gap < 1e-9)
True
"""

from .adjoint import Adjoint, Envelope, Implicit, Unrolled
from .api import assign, solve
from .certificate import Certificate
from .errors import InvalidInput, MissingExtra, NotConverged, NotConvergedWarning, PerformanceWarning
from .geometry import CostMatrix, Geometry, Grid, PointCloud, Ragged
from .gromov import gromov_barycentre, gromov_wasserstein, pad_structures
from .marginals import KL, TV, Exact, Free, Marginal, Partial, Slack
from .plan import Plan
from .problem import Problem, Relative
from .regularizers import Regularizer, SquaredNorm
from .solution import Solution, Status
from .solvers import barycentre

__version__ = "0.1.0"

__all__ = [
    "KL",
    "TV",
    "Adjoint",
    "Certificate",
    "CostMatrix",
    "Envelope",
    "Exact",
    "Free",
    "Geometry",
    "Grid",
    "Implicit",
    "InvalidInput",
    "Marginal",
    "MissingExtra",
    "NotConverged",
    "NotConvergedWarning",
    "Partial",
    "PerformanceWarning",
    "Plan",
    "PointCloud",
    "Problem",
    "Ragged",
    "Regularizer",
    "Relative",
    "Slack",
    "Solution",
    "SquaredNorm",
    "Status",
    "Unrolled",
    "__version__",
    "assign",
    "barycentre",
    "gromov_barycentre",
    "gromov_wasserstein",
    "pad_structures",
    "solve",
]
