"""Transport between labelled clouds, where a label costs what its class-conditional distribution is away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import is_real, same_place, weights_tensor
from ..adjoint import Adjoint, Envelope
from ..api import solve
from ..costs import Factors, InnerProductCost, SqEuclidean
from ..errors import refuse
from ..geometry import PointCloud
from ..geometry.pointcloud import read_cloud
from ..problem import Relative
from ..solvers import Gaussian, gaussian_cost
from ..solvers.gaussian.matrices import moments
from .clouds import untraced
from .wasserstein import exact_wasserstein

__all__ = ["Labelled", "class_costs", "labelled_wasserstein"]


@dataclass(frozen=True)
class Labelled(InnerProductCost):
    """c((x, u), (y, v)) = ||x - y||^2 + <u, v>: with u the one-hot label and v the costs of all labels to that of y.

    Args:
        d: coordinates of the points; those that follow belong to the labels.
    """

    d: int

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x[..., : self.d] - y[..., : self.d]).square().sum(-1) + (x[..., self.d :] * y[..., self.d :]).sum(-1)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return SqEuclidean().block(x[..., : self.d], y[..., : self.d]) + x[..., self.d :] @ y[..., self.d :].mT

    def factors(self, x: Tensor, y: Tensor) -> Factors:
        points, others = x[..., : self.d], y[..., : self.d]
        u, v = torch.cat([2 * points, -x[..., self.d :]], -1), torch.cat([others, y[..., self.d :]], -1)
        return Factors(points.square().sum(-1), others.square().sum(-1), u, v)


def class_costs(
    x: Any,  # (n, d)
    labels_x: Tensor,  # (n,)
    y: Any,  # (m, d)
    labels_y: Tensor,  # (m,)
    a: Any = None,  # (n,)
    b: Any = None,  # (m,)
    *,
    conditional: str = "gaussian",
) -> Tensor:  # (classes of x, classes of y)
    r"""Compute W_2^2 between the points of each class of x and those of each class of y.

    Args:
        x, y: clouds.
        labels_x, labels_y: integers; classes are in ascending order of their labels.
        a, b: masses, normalised in each class; uniform when None.
        conditional: "gaussian", the formula for Gaussians with the moments of the classes, or "exact".

    Raises:
        InvalidInput: labels that are no integers or too few, another conditional, a class without mass.

    Complexity: O(k l d^3) for k and l classes, or k l exact problems.

    Example:
        >>> import torch
        >>> x, labels = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 7])
        >>> class_costs(x, labels, x, labels).tolist()
        [[0.0, 17.0], [17.0, 0.0]]

    Source: Alvarez-Melis & Fusi (2020), Geometric dataset distances via optimal transport.
    """
    return untraced(_costs)(x, labels_x, y, labels_y, a, b, conditional)


def labelled_wasserstein(
    x: Any,  # (n, d)
    labels_x: Tensor,  # (n,)
    y: Any,  # (m, d)
    labels_y: Tensor,  # (m,)
    a: Any = None,  # (n,)
    b: Any = None,  # (m,)
    *,
    weight: float = 1.0,
    conditional: str = "gaussian",
    epsilon: float | Relative | Tensor | None = None,
    adjoint: Adjoint = Envelope(),
) -> Tensor:
    r"""Compute the transport cost between labelled clouds whose labels need not be the same.

    .. math:: \min_P \sum_{ij} P_{ij} \left(\lVert x_i - y_j\rVert^2 + w\, W_2^2(\alpha_{k_i}, \beta_{l_j})\right)
        \; (+\, \varepsilon\, \mathrm{KL}(P\,|\,a \otimes b))

    where alpha_k are the points of x with the label k, and beta_l those of y with the label l. Differentiable in points
    and masses, also through the conditionals.

    Args:
        x, labels_x, y, labels_y, conditional: as for `class_costs`.
        a, b: masses of equal totals; uniform with total 1 when None.
        weight: w >= 0, of labels against points.
        epsilon: in cost units, or `Relative(0.05)`; None is exact.
        adjoint: as for `solve`; second derivatives of an entropic value need `Implicit()`.

    Raises:
        InvalidInput: what `class_costs` and `solve` refuse, a negative weight.

    Complexity: that of `class_costs`, and of a problem in d + k dimensions for k classes of x.

    Example:
        >>> import torch
        >>> x, labels = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> float(labelled_wasserstein(x, labels, x, 1 - labels))  # names of labels do not matter
        0.0

    Source: Alvarez-Melis & Fusi (2020), Geometric dataset distances via optimal transport.
    """
    return untraced(_labelled)(x, labels_x, y, labels_y, a, b, weight, conditional, epsilon, adjoint)


def _costs(x: Any, labels_x: Any, y: Any, labels_y: Any, a: Any, b: Any, conditional: str) -> Tensor:
    return _class_costs(*_read(x, labels_x, a, "x", "a"), *_read(y, labels_y, b, "y", "b"), conditional)


def _labelled(
    x: Any,
    labels_x: Any,
    y: Any,
    labels_y: Any,
    a: Any,
    b: Any,
    weight: float,
    conditional: str,
    epsilon: Any,
    adjoint: Adjoint,
) -> Tensor:
    if not (is_real(weight) and 0 <= weight < math.inf):
        refuse("weight", "a finite number >= 0", repr(weight))
    left, right = _read(x, labels_x, a, "x", "a"), _read(y, labels_y, b, "y", "b")
    (x, one_hot_x, a), (y, one_hot_y, b) = left, right
    same_place(x, "x", y, "y")
    costs = weight * _class_costs(*left, *right, conditional)
    middle = ((x.detach().mean(0) + y.detach().mean(0)) / 2) if x.shape[-1] == y.shape[-1] else 0
    first = torch.cat([x - middle, one_hot_x], -1)
    second = torch.cat([y - middle, one_hot_y @ costs.mT], -1)
    geometry = PointCloud(first, second, Labelled(x.shape[-1]))
    value: Tensor = solve(geometry, a=a, b=b, epsilon=epsilon, adjoint=adjoint).value
    return value


def _read(x: Any, labels: Any, a: Any, name: str, masses: str) -> tuple[Tensor, Tensor, Tensor]:
    """Points (n, d), their labels as vectors (n, classes), and masses (n,)."""
    x = read_cloud(x, name)
    if x.dim() != 2:
        refuse(name, "points (n, d)", f"shape {tuple(x.shape)}")
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.shape != x.shape[:1]:
        refuse(f"labels_{name}", f"integers of shape ({len(x)},)", f"{labels.dtype} of shape {tuple(labels.shape)}")
    classes, index = labels.to(x.device).unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(index, len(classes)).to(x)
    return x, one_hot, weights_tensor(a, len(x), masses, x)


def _class_costs(
    x: Tensor, one_hot_x: Tensor, a: Tensor, y: Tensor, one_hot_y: Tensor, b: Tensor, conditional: str
) -> Tensor:
    if conditional not in ("gaussian", "exact"):
        refuse("conditional", "'gaussian' or 'exact'", repr(conditional))
    shares = [one_hot.mT * masses for one_hot, masses in ((one_hot_x, a), (one_hot_y, b))]
    for share, name in zip(shares, "xy"):
        if bool((share.detach().sum(-1) <= 0).any()):
            refuse(f"classes of {name}", "some mass in each", "none in one", "Leave its points out.")
    if conditional == "gaussian":
        (m, S), (n, T) = (moments(points, w) for points, w in zip((x, y), shares))
        return gaussian_cost(Gaussian.of(m, S.unsqueeze(1)), Gaussian.of(n.squeeze(1), T))
    groups = []
    for points, weights in zip((x, y), shares):
        groups.append([(points[w.detach() > 0], w[w.detach() > 0] / w.sum()) for w in weights])
    rows = [[exact_wasserstein(u, v, r, s) for v, s in groups[1]] for u, r in groups[0]]
    return torch.stack([torch.stack(row) for row in rows])
