"""Exponentials and logarithms of short vectors, for what a solver does between two kernels.

`Tensor.exp` and `Tensor.log` go to a library that may start a team of threads for a thousand numbers, and then waits
for its last member: microseconds on an idle machine, many milliseconds where another process has a core. These do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["exp", "log"]


def exp(t: Tensor) -> Tensor:
    """e^t, to |t| units in the last place."""
    return torch.exp2(t * math.log2(math.e))


def log(t: Tensor) -> Tensor:
    """The natural logarithm of t."""
    return torch.xlogy(1.0, t)
