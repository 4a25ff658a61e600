"""What is to be solved: a source that can be sampled, atoms, their masses, a cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._inputs import all_finite, check_finite, float_tensor, plain, weights_tensor
from ...costs import Cost, as_cost
from ...errors import refuse
from ...geometry import PointCloud
from ...geometry.pointcloud import read_cloud
from .densities import Density, UniformBox

__all__ = ["Atoms", "SemidiscreteProblem", "Source", "centred", "read_source"]

_MASS = 1e-5  # by which the total of b may differ from one


class Source:
    """A probability law that can be sampled, and its density where it is known.

    Args:
        draw: (n, generator) -> (n, d).
        density: of bounded support.
        like: what dtype and device the points shall have, and how many columns, (m, d).
    """

    def __init__(
        self, draw: Callable[[int, torch.Generator | None], Any], density: Density | None, like: Tensor
    ) -> None:
        self._draw, self.density, self._like = draw, density, like[:0].detach()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, (n, d).

        Raises:
            InvalidInput: points of another shape, NaN or infinity.
        """
        x = float_tensor(self._draw(n, generator), "source").detach()
        d = self._like.shape[1]
        if x.dim() == 1 and d == 1:
            x = x.unsqueeze(-1)
        if tuple(x.shape) != (n, d):
            refuse("source", f"{n} points of dimension {d}, like the atoms, when asked for {n}", f"{tuple(x.shape)}")
        if not all_finite(x):
            refuse("source", "finite coordinates", "NaN or infinity")
        return x.to(self._like)


def read_source(source: Any, y: Tensor) -> Source:
    """Read a density, a distribution, a Gaussian, a function `sample(n, generator)`, an array or batches of points."""
    if isinstance(source, torch.distributions.Distribution):
        box = _box(source)
        return Source(_drawn_from(source), box if box is not None and box.d == y.shape[1] else None, y)
    if isinstance(source, Density):
        if source.d != y.shape[1]:
            refuse("source", f"a density in {y.shape[1]} dimensions, like the atoms", f"{source.d}")
        return Source(source.sample, source, y)
    if callable(getattr(source, "sample", None)) and not hasattr(source, "to_numpy"):
        return Source(source.sample, None, y)
    if callable(source):
        return Source(source, None, y)
    if isinstance(source, list | tuple) and source and np.ndim(_points_of(source[0])) == 2:
        return Source(_Batches(source), None, y)
    if isinstance(source, np.ndarray | Tensor | list | tuple) or hasattr(source, "to_numpy") or hasattr(source, "obs"):
        return Source(_rows_of(plain(source, "source")), None, y)
    if isinstance(source, Iterable):
        return Source(_Batches(source), None, y)
    refuse(
        "source",
        "a density, a distribution, a function sample(n, generator), points, or batches of points",
        type(source).__name__,
    )


def _box(source: torch.distributions.Distribution) -> UniformBox | None:
    """The box of a uniform distribution."""
    base = source.base_dist if isinstance(source, torch.distributions.Independent) else source
    if not isinstance(base, torch.distributions.Uniform) or base.low.dim() > 1:
        return None
    return UniformBox(base.low, base.high)


def _drawn_from(source: torch.distributions.Distribution) -> Callable[[int, torch.Generator | None], Tensor]:
    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return source.sample((n,))
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng():  # distributions know the global generator only
            torch.manual_seed(seed)
            return source.sample((n,))

    return draw


def _rows_of(points: Any) -> Callable[[int, torch.Generator | None], Any]:
    """Rows of points, drawn with replacement; of a file on disk only these are read."""
    if not isinstance(points, Tensor | np.ndarray):
        points = float_tensor(points, "source")
    if not len(points):
        refuse("source", "at least one point", "none")

    def draw(n: int, generator: torch.Generator | None) -> Any:
        index = torch.randint(len(points), (n,), generator=generator).sort().values
        return points[index.to(points.device)] if isinstance(points, Tensor) else np.array(points[index.numpy()])

    return draw


def _points_of(batch: Any) -> Any:
    """The points of a batch that may come with labels, as those of a loader do; None for what is no array."""
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return first if isinstance(first, Tensor | np.ndarray) else None


class _Batches:
    """Points in the order in which batches of them come; from the beginning again where these end."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._iterator: Iterator[Any] = iter(batches)
        self._left: Tensor | None = None

    def __call__(self, n: int, generator: torch.Generator | None) -> Tensor:
        parts = [] if self._left is None else [self._left]
        while sum(map(len, parts)) < n:
            parts.append(self._next())
        x = torch.cat(parts)
        self._left = x[n:]
        return x[:n]

    def _next(self) -> Tensor:
        for _ in range(2):
            for batch in self._iterator:
                return read_cloud(_points_of(batch), "source")
            self._iterator = iter(self._batches)
        refuse("source", "batches without end, or that can be gone through again", "one that ended", "Hand in a list.")


class Atoms:
    """Atoms with mass, each point once; and the way back to those that were given.

    Attributes:
        y: (k, d).
        b: (k,), of total one.
    """

    def __init__(self, y: Tensor, b: Tensor) -> None:
        live = (b > 0).nonzero().squeeze(-1)
        unique, inverse = torch.unique(y[live], dim=0, return_inverse=True)
        first = torch.full((len(unique),), len(y), device=y.device)
        first = first.scatter_reduce(0, inverse, torch.arange(len(live), device=y.device), "amin")
        order = first.argsort()
        self.size, self._live = len(y), live
        self._group = order.argsort()[inverse]
        self._first = live[first[order]]
        self._given = b
        self.y = y[self._first]
        self.b = b.double().new_zeros(len(unique)).index_add(0, self._group, b[live].double())

    def spread(self, values: Tensor, missing: float) -> Tensor:
        """What belongs to atoms (k, ...), for those that were given (m, ...); `missing` for atoms without mass."""
        out = values.new_full((self.size, *values.shape[1:]), missing)
        out[self._live] = values[self._group]
        return out

    def shared(self, totals: Tensor) -> Tensor:
        """Totals of atoms (k, ...), divided among the equal ones in proportion to their masses: (m, ...)."""
        share = self._given.double() / self.spread(self.b, torch.inf)
        return self.spread(totals, 0.0) * share.reshape(-1, *[1] * (totals.dim() - 1)).to(totals.dtype)

    def gathered(self, g: Tensor) -> Tensor:
        """Potentials of the atoms that were given (m,), at these atoms: (k,)."""
        return g[self._first]

    def given(self, index: Tensor) -> Tensor:
        """Indices among these atoms as indices among those that were given."""
        return self._first[index]


@dataclass(frozen=True)
class SemidiscreteProblem:
    r"""Minimise the mean of c(x, T(x)) over maps, or <P, C> + eps KL(P | source ⊗ b) over plans, from the source to b.

    Build it with `SemidiscreteProblem.make`, which checks.

    Attributes:
        source: the law.
        y: atoms as they were given, (m, d), with gradient history.
        b: masses, (m,), with gradient history.
        atoms: the same without equal points and atoms of no mass, detached.
        cost: ground cost.
        epsilon: in cost units, or None.
    """

    source: Source
    y: Tensor
    b: Tensor
    atoms: Atoms
    cost: Cost
    epsilon: float | None = None

    @classmethod
    def make(cls, source: Any, y: Any, b: Any = None, *, cost: Any = "sqeuclidean") -> SemidiscreteProblem:
        """Check the parts and put them together.

        Raises:
            InvalidInput: atoms that are no cloud (m, d), masses that do not sum to one, an unknown kind of source.
        """
        y = read_cloud(y, "y")
        if y.dim() != 2:
            refuse("y", "atoms of shape (m, d)", f"shape {tuple(y.shape)}")
        check_finite(y, "y", "finite coordinates", "Drop or impute those rows.")
        b = weights_tensor(b, len(y), "b", y)
        if b.dim() != 1:
            refuse("b", f"shape ({len(y)},)", f"shape {tuple(b.shape)}")
        total = float(b.detach().double().sum())
        if abs(total - 1) > _MASS:
            refuse("b", "masses of total 1, as the source has", f"a total of {total:.6g}", "Normalise: b / b.sum().")
        ground = as_cost(cost)
        ground.check(y.shape[1])
        atoms = Atoms(y.detach(), b.detach())
        atoms.b /= atoms.b.sum()
        return cls(read_source(source, y), y, b, atoms, ground)

    def cloud(self, x: Tensor, y: Tensor | None = None) -> PointCloud:
        """Points (n, d) against the atoms."""
        return PointCloud(x, self.atoms.y if y is None else y, self.cost)


def centred(g: Tensor, b: Tensor) -> Tensor:
    """Potentials shifted to sum_j b_j g_j = 0."""
    return g - (b * g).sum()
