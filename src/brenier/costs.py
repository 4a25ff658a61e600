"""Ground costs c(x, y), told by one definition each; geometries ask them for blocks.

A cost is either an *inner-product cost*, c(x, y) = h(x) + k(y) - <u(x), v(y)>, whose tiles are matrix products,
or a *pointwise* one. `cost(x, y)` is the definition and broadcasts over leading axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ._inputs import check_finite, float_tensor, is_real
from .errors import InvalidInput, refuse
from .kernels.distances import DIRECT, distances, squared_distances

__all__ = [
    "Arc",
    "CallableCost",
    "Cosine",
    "Cost",
    "Dot",
    "Euclidean",
    "Factors",
    "Geodesic",
    "GraphGeodesic",
    "InnerProductCost",
    "Lp",
    "Mahalanobis",
    "SqEuclidean",
    "as_cost",
]


class Factors(NamedTuple):
    """c_ij = h_i + k_j - <u_i, v_j>."""

    h: Tensor  # (*batch, n)
    k: Tensor  # (*batch, m)
    u: Tensor  # (*batch, n, r)
    v: Tensor  # (*batch, m, r)


class Cost(ABC):
    """A ground cost. Subclasses define `__call__`; override `block` where a faster way exists."""

    translation_invariant: ClassVar[bool] = False
    """c(x + t, y + t) = c(x, y): the geometry may centre the clouds first, for accuracy."""

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Cost of matching x (..., d) to y (..., d), broadcasting over the leading axes: (...)."""

    def block(
        self,
        x: Tensor,  # (*batch, n, d)
        y: Tensor,  # (*batch, m, d)
    ) -> Tensor:  # (*batch, n, m)
        """All pairs of x and y."""
        return self(x.unsqueeze(-2), y.unsqueeze(-3))

    def monotone_on_line(self) -> bool:
        """Whether sorting is optimal in one dimension (c is Monge there), as for convex costs of x - y."""
        return False

    def check(self, dim: int) -> None:  # noqa: B027 - most costs take any dimension
        """Raise `InvalidInput` if the cost cannot take points of this dimension."""

    def conjugate_gradient(self, w: Tensor) -> Tensor:
        """The gradient of the convex conjugate of h at w (..., d), for a cost c(x, y) = h(x - y), h strictly convex.

        Optimal maps of such a cost are x - grad h*(grad f(x)), with f their potential.

        Raises:
            InvalidInput: the cost is not of this form.
        """
        refuse("cost", "h(x - y) with h strictly convex, such as Lp(2, 1.5)", repr(self))


class InnerProductCost(Cost):
    """A cost of the form h(x) + k(y) - <u(x), v(y)>."""

    @abstractmethod
    def factors(
        self,
        x: Tensor,  # (*batch, n, d)
        y: Tensor,  # (*batch, m, d)
    ) -> Factors:
        """The four parts, for tiles that are matrix products."""


@dataclass(frozen=True)
class SqEuclidean(InnerProductCost):
    """c(x, y) = ||x - y||^2 (without the factor one half)."""

    translation_invariant: ClassVar[bool] = True

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(-1)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        if not _recorded(x, y):
            return squared_distances(x, y)
        if x.shape[-1] <= DIRECT:
            out: Tensor | None = None
            for k in range(x.shape[-1]):  # one n x m buffer at a time, exact zeros for equal points
                part = (x[..., :, None, k] - y[..., None, :, k]).square()
                out = part if out is None else out + part
            assert out is not None
            return out
        h, k_, u, v = self.factors(x, y)
        return (h.unsqueeze(-1) + k_.unsqueeze(-2) - u @ v.mT).clamp(min=0)

    def factors(self, x: Tensor, y: Tensor) -> Factors:
        return Factors(x.square().sum(-1), y.square().sum(-1), 2 * x, y)

    def monotone_on_line(self) -> bool:
        return True

    def conjugate_gradient(self, w: Tensor) -> Tensor:
        return w / 2


@dataclass(frozen=True)
class Dot(InnerProductCost):
    """c(x, y) = -<x, y>: least cost means most aligned."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return -(x * y).sum(-1)

    def factors(self, x: Tensor, y: Tensor) -> Factors:
        return Factors(x.new_zeros(x.shape[:-1]), y.new_zeros(y.shape[:-1]), x, y)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return -(x @ y.mT)

    def monotone_on_line(self) -> bool:
        return True


@dataclass(frozen=True)
class Cosine(InnerProductCost):
    """c(x, y) = 1 - <x, y> / (||x|| ||y||), in [0, 2]; a zero vector is orthogonal to all (cost 1)."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return 1 - (self._unit(x) * self._unit(y)).sum(-1)

    def factors(self, x: Tensor, y: Tensor) -> Factors:
        return Factors(x.new_ones(x.shape[:-1]), y.new_zeros(y.shape[:-1]), self._unit(x), self._unit(y))

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return 1 - self._unit(x) @ self._unit(y).mT

    @staticmethod
    def _unit(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.where(norm > 0, x / torch.where(norm > 0, norm, 1), 0)


@dataclass(frozen=True, eq=False)
class Mahalanobis(InnerProductCost):
    """c(x, y) = (x - y)^T M (x - y) for a symmetric positive semi-definite precision M (d, d).

    Raises:
        InvalidInput: M is not square, not symmetric or has a negative eigenvalue.
    """

    precision: Tensor
    root: Tensor = field(init=False, repr=False)  # (d, d), root^T root = M

    translation_invariant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        m = float_tensor(self.precision, "Mahalanobis precision")
        if m.dim() != 2 or m.shape[0] != m.shape[1] or not m.numel():
            refuse("Mahalanobis precision", "a square matrix (d, d)", f"shape {tuple(m.shape)}")
        check_finite(m, "Mahalanobis precision", "finite entries")
        m = m.double()
        if not torch.allclose(m, m.mT, rtol=1e-6, atol=1e-9 * float(m.abs().max())):
            refuse("Mahalanobis precision", "a symmetric matrix", "an asymmetric one", "Use (M + M.T) / 2.")
        values, vectors = torch.linalg.eigh(m)
        if float(values[0]) < -1e-9 * max(float(values[-1].abs()), 1e-300):
            refuse(
                "Mahalanobis precision",
                "no negative eigenvalue",
                f"{float(values[0]):.3g}",
                "Add a multiple of the identity.",
            )
        object.__setattr__(self, "precision", m)
        object.__setattr__(self, "root", values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT)

    def _map(self, x: Tensor) -> Tensor:
        return x @ self.root.to(x).mT

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self._map(x - y).square().sum(-1)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return SqEuclidean().block(self._map(x), self._map(y))

    def factors(self, x: Tensor, y: Tensor) -> Factors:
        return SqEuclidean().factors(self._map(x), self._map(y))

    def monotone_on_line(self) -> bool:
        return True

    def conjugate_gradient(self, w: Tensor) -> Tensor:
        values = torch.linalg.eigvalsh(self.precision)
        if not float(values[0]) > 1e-9 * float(values[-1]):
            refuse("Mahalanobis precision", "positive definite, for a strictly convex cost", "a singular matrix")
        return torch.linalg.solve(self.precision, w.double().unsqueeze(-1)).squeeze(-1).to(w) / 2

    def check(self, dim: int) -> None:
        if self.precision.shape[0] != dim:
            refuse(
                "Mahalanobis precision",
                f"shape ({dim}, {dim}) to match the points",
                tuple(self.precision.shape),
            )


def _recorded(x: Tensor, y: Tensor) -> bool:
    return (x.requires_grad or y.requires_grad) and torch.is_grad_enabled()


def _powered(length: Tensor, power: float) -> Tensor:
    """A length to a power, with the zero subgradient at zero for powers below one."""
    if power == 1:
        return length
    if power == 2:
        return length.square()
    if power > 1 or not length.requires_grad:
        return length.pow(power)
    apart = length > 0
    return torch.where(apart, torch.where(apart, length, 1).pow(power), 0)


class _EuclideanBlock(torch.autograd.Function):
    """All distances of two clouds, with derivatives of any order that hold nothing of size n x m x d."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        distance = distances(x, y, 2.0)
        ctx.save_for_backward(x, y, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, y, distance = ctx.saved_tensors
        apart = distance > 0  # the zero subgradient at x = y
        w = torch.where(apart, grad / torch.where(apart, distance, 1), 0)
        return x * w.sum(-1).unsqueeze(-1) - w @ y, y * w.sum(-2).unsqueeze(-1) - w.mT @ x


@dataclass(frozen=True)
class Lp(Cost):
    """c(x, y) = ||x - y||_p ^ power, with p >= 1 (also inf) and power > 0."""

    p: float = 2.0
    power: float = 1.0

    translation_invariant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (is_real(self.p) and self.p >= 1):
            refuse("Lp p", "a number >= 1 or math.inf", repr(self.p))
        if not (is_real(self.power) and 0 < self.power < math.inf):
            refuse("Lp power", "a positive finite number", repr(self.power))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.p == 1:  # three times as fast as a norm, and more
            return self._power((x - y).abs().sum(-1))
        # vector_norm has the zero subgradient at x = y
        return self._power(torch.linalg.vector_norm(x - y, ord=self.p, dim=-1))

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        if not _recorded(x, y):
            return self._power(distances(x, y, self.p))
        if self.p == 2:
            return self._power(_EuclideanBlock.apply(x, y))
        return super().block(x, y)  # cdist has no second derivative

    def _power(self, distance: Tensor) -> Tensor:
        return _powered(distance, self.power)

    def conjugate_gradient(self, w: Tensor) -> Tensor:
        if not (1 < self.p < math.inf and self.power > 1):
            refuse("cost", "p and power above 1, for a strictly convex cost", repr(self))
        dual = self.p / (self.p - 1)
        size = torch.linalg.vector_norm(w, ord=dual, dim=-1, keepdim=True)
        live = size > 0
        size = torch.where(live, size, 1)
        # powers of what is positive only: those of zero have infinite derivatives
        share = torch.where(live, w / size, 0)
        if dual != 2:
            share = share.sign() * torch.where(share != 0, share.abs(), 1).pow(dual - 1)
        return (size / self.power).pow(1 / (self.power - 1)) * share

    def monotone_on_line(self) -> bool:
        return self.power >= 1


@dataclass(frozen=True)
class Euclidean(Lp):
    """c(x, y) = ||x - y||."""

    p: float = field(default=2.0, init=False)
    power: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class Arc(Cost):
    r"""The arc between points of a circle, to a power.

    .. math:: c(x, y) = \min_{k \in \mathbb Z} |x - y + k \cdot \text{period}|^{\text{power}}

    Points are angles (or times of day, or phases) of shape (n, 1), in units of the period; any real number is one.
    With power >= 1 transport is exact and fast: see `Circle`.

    Raises:
        InvalidInput: a period or a power that is not positive and finite.

    Example:
        >>> import torch
        >>> float(Arc(period=24.0)(torch.tensor([23.0]), torch.tensor([1.0])))  # from 23 h to 1 h
        2.0
    """

    period: float = 2 * math.pi
    power: float = 1.0

    translation_invariant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("period", self.period), ("power", self.power)):
            if not (is_real(value) and 0 < value < math.inf):
                refuse(f"Arc {name}", "a positive finite number", repr(value))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        difference = (x - y).squeeze(-1)
        turns = (difference.detach() / self.period).round()
        return self.of_length((difference - turns * self.period).abs())

    def of_length(self, arc: Tensor) -> Tensor:
        """The cost of arcs of these lengths, without a look at the period."""
        return _powered(arc, self.power)

    def check(self, dim: int) -> None:
        if dim != 1:
            refuse("points with Arc", "angles, of shape (n,) or (n, 1)", f"points of dimension {dim}")


@dataclass(frozen=True)
class Geodesic(Cost):
    r"""The angle between directions, the shortest way on the unit sphere, to a power.

    .. math:: c(x, y) = \arccos\Big\langle \frac{x}{\lVert x\rVert}, \frac{y}{\lVert y\rVert} \Big\rangle^{\text{power}}
        = \big(2 \operatorname{atan2}(\lVert u - v\rVert, \lVert u + v\rVert)\big)^{\text{power}}

    with u and v the directions of x and y. The second form keeps its accuracy at angles near 0 and pi, where the first
    would have to be clipped; the subgradient is zero at both. A zero vector is at a right angle to all others.

    Raises:
        InvalidInput: a power that is not positive and finite.

    Example:
        >>> import torch
        >>> round(float(Geodesic()(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0]))), 6)
        1.570796

    Source: Kahan (2006), How futile are mindless assessments of roundoff (the angle).
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not (is_real(self.power) and 0 < self.power < math.inf):
            refuse("Geodesic power", "a positive finite number", repr(self.power))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        u, v = Cosine._unit(x), Cosine._unit(y)
        return self._of_chords(*(torch.linalg.vector_norm(z, dim=-1) for z in (u - v, u + v)))

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        u, v, chord = Cosine._unit(x), Cosine._unit(y), Euclidean()
        return self._of_chords(chord.block(u, v), chord.block(u, -v))

    def _of_chords(self, apart: Tensor, together: Tensor) -> Tensor:
        """The cost of directions u and v, from ||u - v|| and ||u + v||."""
        return _powered(2 * torch.atan2(apart, torch.where((apart == 0) & (together == 0), 1, together)), self.power)


@dataclass(frozen=True)
class CallableCost(Cost):
    """Any function of two broadcasting tensors, c(x (..., d), y (..., d)) -> (...).

    Args:
        function: called with x (*batch, r, 1, d) and y (*batch, 1, m, d); returns (*batch, r, m).
        convex_on_line: promise that in one dimension c(x, y) = h(x - y) with h convex, which allows sorting.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    convex_on_line: bool = False

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.function(x, y)
        expected = torch.broadcast_shapes(x.shape, y.shape)[:-1]
        if not isinstance(out, Tensor) or out.shape != expected:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            refuse(
                "cost function",
                f"a tensor of shape {tuple(expected)} from x {tuple(x.shape)} and y {tuple(y.shape)}",
                got,
                "It must broadcast over the leading axes and reduce the last one, like (x - y).abs().sum(-1).",
            )
        return out

    def monotone_on_line(self) -> bool:
        return self.convex_on_line


class GraphGeodesic(Cost):
    """Shortest-path cost between nodes of a weighted graph; points are node indices (n,) or (n, 1).

    c(i, j) = length of the shortest path from node i to node j, raised to `power`. The n x m matrix is computed
    once, by Dijkstra from each source: O(n E log V) time.

    Args:
        adjacency: square, sparse (SciPy or torch) or dense, with nonnegative edge lengths; zero means no edge.
        power: of the path length.
        directed: whether edges go one way; otherwise each edge is used both ways.

    Raises:
        InvalidInput: the matrix is not square or has negative lengths; an index is not a node; or a target cannot
            be reached from a source.
    """

    def __init__(self, adjacency: Any, *, power: float = 1.0, directed: bool = False) -> None:
        from scipy import sparse

        if isinstance(adjacency, Tensor):
            adjacency = adjacency.detach().cpu()
            if adjacency.layout != torch.strided:
                coo = adjacency.to_sparse_coo().coalesce()
                index = coo.indices().numpy()
                adjacency = sparse.coo_array((coo.values().numpy(), (index[0], index[1])), shape=tuple(coo.shape))
            else:
                adjacency = adjacency.numpy()
        try:
            graph = sparse.csr_array(adjacency)
        except (TypeError, ValueError):
            refuse("adjacency", "a square matrix (V, V)", type(adjacency).__name__)
        if graph.dtype.kind not in "fiub":
            refuse("adjacency", "real edge lengths", f"dtype {graph.dtype}")
        if not (is_real(power) and 0 < power < math.inf):
            refuse("GraphGeodesic power", "a positive finite number", repr(power))
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
            refuse("adjacency", "a square matrix (V, V)", f"shape {graph.shape}")
        if graph.nnz and not graph.data.min() >= 0:
            refuse("adjacency", "nonnegative edge lengths", float(graph.data.min()))
        self.graph, self.power, self.directed = graph, float(power), directed

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """The cost between nodes x (n,) and y (m,), a float64 tensor (n, m)."""
        from scipy.sparse.csgraph import dijkstra

        rows, cols = self._nodes(x, "x"), self._nodes(y, "y")
        length = torch.from_numpy(dijkstra(self.graph, directed=self.directed, indices=rows.numpy()))[:, cols]
        if not torch.isfinite(length).all():
            i, j = (~torch.isfinite(length)).nonzero()[0].tolist()
            raise InvalidInput(
                f"GraphGeodesic: expected every target to be reachable, got no path from node {int(rows[i])} to "
                f"node {int(cols[j])}. Keep one connected component, or add a long edge between components."
            )
        return length.pow(self.power)

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() > 2 or y.dim() > 2:
            return super().block(x, y)
        return self.matrix(x, y).to(x)

    def _nodes(self, x: Tensor, name: str) -> Tensor:
        nodes = x.detach().cpu()
        if nodes.dim() == 2 and nodes.shape[1] == 1:
            nodes = nodes[:, 0]
        if nodes.dim() != 1:
            refuse(f"{name} with GraphGeodesic", "node indices of shape (n,) or (n, 1)", f"shape {tuple(x.shape)}")
        if (broken := nodes != nodes.round()).any():
            refuse(f"{name} with GraphGeodesic", "whole numbers, the indices of nodes", f"{float(nodes[broken][0]):g}")
        nodes = nodes.long()
        if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= self.graph.shape[0]):
            refuse(f"{name} with GraphGeodesic", f"node indices in 0..{self.graph.shape[0] - 1}",
                   f"{int(nodes.min())}..{int(nodes.max())}")  # fmt: skip
        return nodes

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        pairs = self.matrix(x.reshape(-1), y.reshape(-1))
        return pairs.diagonal().reshape(x.shape[:-1]).to(x)


_NAMED: dict[str, Cost] = {
    "sqeuclidean": SqEuclidean(),
    "euclidean": Euclidean(),
    "cityblock": Lp(1),
    "chebyshev": Lp(math.inf),
    "cosine": Cosine(),
    "dot": Dot(),
}


def as_cost(cost: str | Cost | Callable[[Tensor, Tensor], Tensor]) -> Cost:
    """Turn a name, a `Cost` or a function into a `Cost`.

    Names: "sqeuclidean", "euclidean", "cityblock", "chebyshev", "cosine", "dot".

    Raises:
        InvalidInput: an unknown name or another type.
    """
    if isinstance(cost, Cost):
        return cost
    if isinstance(cost, str):
        if cost not in _NAMED:
            refuse("cost", "one of " + ", ".join(map(repr, _NAMED)) + ", a Cost or a function", repr(cost))
        return _NAMED[cost]
    given: Any = cost
    if isinstance(given, type) and issubclass(given, Cost):
        refuse("cost", "a Cost", f"the class {given.__name__}", f"Make one: {given.__name__}(...).")
    if callable(cost):
        return CallableCost(cost)
    refuse("cost", "a name, a Cost or a function of (x, y)", type(cost).__name__)
