"""Many pairs of clouds of different sizes, as one batch without wasted pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from .._inputs import float_tensor, kind_of, same_place, weights_tensor
from ..costs import Cost
from ..errors import refuse
from ..kernels import engine as kernels
from ..kernels.build import chosen, triton_runs
from ..kernels.reference import Blocks, Pairs
from .base import Geometry, Lines, Support
from .pointcloud import PointCloud, read_cloud
from .single import LEAST, SingleSums

__all__ = ["Ragged"]


def _offsets(offsets: Any, total: int, name: str) -> Tensor:
    """Read offsets as an int64 tensor on the CPU."""
    out = torch.as_tensor(offsets).cpu()
    if out.dtype.is_floating_point or out.dtype.is_complex or out.dtype == torch.bool or out.dim() != 1:
        refuse(f"offsets_{name}", "integers (problems + 1,)", f"shape {tuple(out.shape)} of {out.dtype}")
    if out.numel() < 2 or int(out[0]) != 0 or int(out[-1]) != total:
        refuse(f"offsets_{name}", f"offsets from 0 to the {total} points of {name}", str(out.tolist()[:8]))
    sizes = out.diff()
    if bool((sizes < 1).any()):
        k = int((sizes < 1).nonzero()[0])
        refuse(
            f"offsets_{name}",
            "at least one point for each problem",
            f"{int(sizes[k])} for problem {k}",
            "Leave problems without points out.",
        )
    return out.to(torch.int64)


class _Side:
    """Where the points of each problem lie, packed one problem after the other and padded to the largest."""

    def __init__(self, starts: Tensor, device: torch.device, longest: int | None = None) -> None:
        sizes, first = starts.diff().unsqueeze(-1), starts[:-1].unsqueeze(-1)
        self.starts = starts
        self.count, self.longest = len(sizes), int(sizes.max()) if longest is None else longest
        slot = torch.arange(self.longest)
        real = slot < sizes
        self.full = bool(real.all())
        self.real = real.to(device)
        self.index = torch.where(real, first + slot, first).to(device)  # of padding: the first point
        self.slots = real.flatten().nonzero().squeeze(-1).to(device)

    def select(self, index: Tensor) -> _Side:
        """The problems (k,), padded as before."""
        sizes = self.starts.diff()[index.cpu()]
        return _Side(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), self.index.device, self.longest)

    def pack(self, t: Tensor, trailing: int = 0) -> Tensor:
        """(problems, longest, ...) to (points, ...), where `trailing` axes follow."""
        lead = t.dim() - trailing
        if lead > 2:
            refuse("a Ragged geometry", f"one batch axis, that of its {self.count} problems", f"shape {tuple(t.shape)}")
        rest = t.shape[lead:]
        flat = t.expand(self.count, self.longest, *rest).reshape(-1, *rest)
        return flat if self.full else flat[self.slots]

    def repeat(self, packed: Tensor) -> Tensor:
        """(points, ...) to (problems, longest, ...), the first point's again beyond the end of each."""
        return packed.reshape(self.count, self.longest, *packed.shape[1:]) if self.full else packed[self.index]

    def unpack(self, packed: Tensor) -> Tensor:
        """(points, ...) to (problems, longest, ...), zero beyond the end of each."""
        out = self.repeat(packed)
        return out if self.full else out.masked_fill(~self.real.reshape(*self.real.shape, *[1] * (out.dim() - 2)), 0)


class _Diagonal(PointCloud):
    """The points of all problems as one cloud, of which only those of one problem meet."""

    def __init__(self, x: Tensor, y: Tensor, cost: Any, blocks: Blocks) -> None:
        super().__init__(x, y, cost)
        self._blocks = blocks

    def with_tensors(self, *tensors: Tensor) -> Self:
        out = super().with_tensors(*tensors)
        out._blocks = self._blocks
        return out

    def _centred(self) -> tuple[Tensor, Tensor]:
        if not self.ground.translation_invariant:
            return self.x, self.y
        x_mean, y_mean = _means(self.x, self._blocks.row_starts), _means(self.y, self._blocks.col_starts)
        mean = ((x_mean + y_mean) / 2).to(self.dtype)
        sizes = (starts.diff().to(mean.device) for starts in (self._blocks.row_starts, self._blocks.col_starts))
        return self.x - mean.repeat_interleave(next(sizes), 0), self.y - mean.repeat_interleave(next(sizes), 0)

    def _pairs(self) -> tuple[Pairs, Tensor, Tensor]:
        pairs, r, c = super()._pairs()
        return pairs._replace(blocks=self._blocks), r, c


def _means(points: Tensor, starts: Tensor) -> Tensor:
    """The mean of the points of each problem, (problems, d), in float64 and without a gradient."""
    with torch.no_grad():
        return torch.segment_reduce(points.double(), "mean", offsets=starts.to(points.device), axis=0)


class _PackedSums(SingleSums):
    """Those of the packed points, for padded potentials."""

    def __init__(self, cloud: PointCloud, rows: _Side, cols: _Side) -> None:
        super().__init__(cloud)
        self._lines = rows, cols

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        rows, cols = self._lines if dim % 2 else self._lines[::-1]
        return rows.repeat(super().softmin(cols.pack(h), epsilon, dim))


class Ragged(Geometry):
    r"""The costs c(x_i, y_j) within each of many pairs of clouds of different sizes, never formed.

    Problem k has the points x[offsets_x[k]:offsets_x[k + 1]] and y[offsets_y[k]:offsets_y[k + 1]]. To a solver it is
    item k of a batch whose clouds are padded to the largest with points that have no mass: n and m are the largest
    sizes, potentials and weights are (problems, n) and (problems, m), values (problems,). The operations run over the
    sum_k n_k m_k real pairs only, all problems in one call, each with its own epsilon where epsilon is (problems,).

    Padding has weight zero and repeats the first point of its cloud. `pad` and `unpad` go from lists to padded tensors
    and back. Weights of a `Problem` may be lists; the default is uniform over the real points.

    Entropic solvers need O(N + M) memory beside the padded potentials, `solver="network-simplex"` one padded cost
    matrix at a time.

    Args:
        x: (N, d) source points of all problems, one problem after the other.
        y: (M, d) target points of all problems.
        offsets_x: (problems + 1,) integers from 0 to N, strictly ascending.
        offsets_y: (problems + 1,) integers from 0 to M, strictly ascending.
        cost: as in `PointCloud`.

    Raises:
        InvalidInput: an empty cloud, offsets that do not fit the points, and whatever `PointCloud` refuses.

    Example:
        >>> import torch, brenier
        >>> x = [torch.zeros(3, 2), torch.zeros(50, 2)]
        >>> y = [torch.ones(7, 2), 2 * torch.ones(1, 2)]
        >>> geometry = brenier.Ragged.from_list(x, y)
        >>> solution = brenier.solve(geometry, epsilon=0.1)
        >>> [round(v, 4) for v in solution.linear_value.tolist()]
        [2.0, 8.0]
        >>> [tuple(f.shape) for f in geometry.unpad(solution.f)]
        [(3,), (50,)]
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        offsets_x: Any,
        offsets_y: Any,
        cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    ) -> None:
        self.kind = kind_of(x)
        x, y = read_cloud(x, "x"), read_cloud(y, "y")
        for points, name in ((x, "x"), (y, "y")):
            if points.dim() != 2:
                refuse(name, "the points of all problems, (N, d)", f"shape {tuple(points.shape)}")
        rows, cols = (
            _Side(_offsets(offsets, len(points), name), points.device)
            for offsets, points, name in ((offsets_x, x, "x"), (offsets_y, y, "y"))
        )
        if rows.count != cols.count:
            refuse("offsets_x and offsets_y", "as many problems on both sides", f"{rows.count} and {cols.count}")
        self._set(_Diagonal(x, y, cost, Blocks.diagonal(rows.starts, cols.starts)), rows, cols)

    @classmethod
    def from_list(
        cls,
        x: Sequence[Any],
        y: Sequence[Any],
        cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    ) -> Ragged:
        """Make a `Ragged` of the clouds x[k] (n_k, d) and y[k] (m_k, d), problem by problem."""
        clouds, offsets = [], []
        for parts, name in ((x, "x"), (y, "y")):
            if not isinstance(parts, list | tuple) or not parts:
                refuse(name, "a list of clouds, one for each problem", type(parts).__name__)
            read = [read_cloud(part, f"{name}[{k}]") for k, part in enumerate(parts)]
            for k, part in enumerate(read):
                same_place(read[0], f"{name}[0]", part, f"{name}[{k}]")
                if part.dim() != 2 or part.shape[1] != read[0].shape[1]:
                    refuse(
                        f"{name}[{k}]",
                        f"points of shape (n, {read[0].shape[-1]}), as {name}[0] has",
                        f"shape {tuple(part.shape)}",
                    )
            clouds.append(torch.cat(read))
            offsets.append([0, *torch.tensor([len(part) for part in read]).cumsum(0).tolist()])
        out = cls(clouds[0], clouds[1], offsets[0], offsets[1], cost)
        out.kind = kind_of(x[0])
        return out

    def _set(self, cloud: PointCloud, rows: _Side, cols: _Side) -> None:
        self._cloud, self._rows, self._cols = cloud, rows, cols
        self.shape = (rows.longest, cols.longest)
        self.batch_shape = torch.Size([rows.count])

    @property
    def sizes(self) -> tuple[Tensor, Tensor]:
        """How many points the clouds have, (problems,) for x and for y."""
        return self._rows.starts.diff(), self._cols.starts.diff()

    @property
    def x(self) -> Tensor:
        """The source points, padded, (problems, n, d)."""
        return self._rows.repeat(self._cloud.x)

    @property
    def y(self) -> Tensor:
        """The target points, padded, (problems, m, d)."""
        return self._cols.repeat(self._cloud.y)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._cloud.tensors

    def with_tensors(self, *tensors: Tensor) -> Self:
        out = object.__new__(type(self))
        out._set(self._cloud.with_tensors(*tensors), self._rows, self._cols)
        return out

    @cached_property
    def T(self) -> Ragged:
        out = object.__new__(type(self))
        out._set(self._cloud.T, self._cols, self._rows)
        return out

    @staticmethod
    def pad(parts: Sequence[Any]) -> Tensor:
        """Put tensors (n_k, ...) into one, (problems, longest, ...), zero beyond the end of each."""
        return torch.nn.utils.rnn.pad_sequence([float_tensor(t, "parts") for t in parts], batch_first=True)

    def unpad(self, padded: Tensor, axis: int = 0) -> list[Tensor]:
        """Cut something padded back into what belongs to each problem.

        Args:
            padded: (problems, n, ...) for axis 0, (problems, m, ...) for axis 1.
            axis: 0 for what belongs to the rows (x, a, f), 1 for the columns (y, b, g).
        """
        side = (self._rows, self._cols)[self._along(axis)]
        if padded.shape[:2] != (side.count, side.longest):
            refuse("padded", f"shape ({side.count}, {side.longest}, ...)", f"shape {tuple(padded.shape)}")
        return [t[:size] for t, size in zip(padded, side.starts.diff().tolist())]

    def item(self, index: tuple[int, ...]) -> PointCloud:
        """One problem with its padding, the first points again; `sizes` tells how many are real."""
        x, y = self._cloud.tensors
        return self._cloud.extend(x[self._rows.index[index[-1]]], y[self._cols.index[index[-1]]])

    def select(self, index: Tensor) -> Ragged:
        if not isinstance(self._cloud, _Diagonal):
            return self.T.select(index).T
        rows, cols = self._rows.select(index), self._cols.select(index)
        x = rows.pack(self._cloud.x[self._rows.index[index]], 1)
        y = cols.pack(self._cloud.y[self._cols.index[index]], 1)
        out = object.__new__(type(self))
        out._set(_Diagonal(x, y, self._cloud.ground, Blocks.diagonal(rows.starts, cols.starts)), rows, cols)
        return out

    def masses(self, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        return self._masses(a, self._rows, "a"), self._masses(b, self._cols, "b")

    def _masses(self, weights: Any, side: _Side, name: str) -> Tensor:
        if weights is None:
            real = side.real.to(self.dtype)
            return real / real.sum(-1, keepdim=True)
        if isinstance(weights, list | tuple):
            sizes = [len(t) for t in weights]
            if sizes != side.starts.diff().tolist():
                refuse(name, "a list of weights, as many for each problem as it has points", f"lengths {sizes[:8]}")
            weights = self.pad(weights)
        out = weights_tensor(weights, side.longest, name, self.tensors[0])
        if bool((out.detach() > 0).expand_as(side.real)[~side.real].any()):
            refuse(name, "no mass on padding", "some", "Give a list of weights, or zeros beyond each cloud's end.")
        return out

    @property
    def replayable(self) -> bool:
        # the reference copies what tells the blocks apart
        return self._cloud.fused and chosen() != "reference" and triton_runs(self.tensors[0])

    def remembering(self, epsilon: Tensor, accuracy: float = 0.0) -> Geometry:
        pairs = int((self._rows.starts.diff() * self._cols.starts.diff()).sum())
        if self.dtype != torch.float64 or pairs < LEAST or not self._cloud.fused:
            return self
        out = self.detach()
        single = _PackedSums(out._cloud, self._rows, self._cols)
        out.single = single if single.finite else None
        return out

    def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
        if self._along(dim) == 0:
            return self.T.softmin(h, epsilon)
        self._check_potential(h, self.shape[1])
        return self._rows.repeat(self._cloud.softmin(self._cols.pack(h), epsilon))

    def cmin(self, h: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        if self._along(dim) == 0:
            return self.T.cmin(h)
        self._check_potential(h, self.shape[1])
        values, index = self._cloud.cmin(self._cols.pack(h))
        first = self._cols.starts[:-1].to(index.device).unsqueeze(-1)
        return self._rows.repeat(values), self._rows.repeat(index) - first

    def apply(self, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor, dim: int = 1) -> Tensor:
        if self._along(dim) == 0:
            return self.T.apply(g, f, epsilon, v)
        self._check_potential(f, self.shape[0], "f")
        self._check_potential(g, self.shape[1], "g")
        trailing = v.dim() - f.dim()
        out = self._cloud.apply(self._rows.pack(f), self._cols.pack(g), epsilon, self._cols.pack(v, trailing))
        return self._rows.unpack(out)

    def moments(self, f: Tensor, g: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
        mass, cost = self._cloud.moments(self._rows.pack(f), self._cols.pack(g), epsilon)
        return self._rows.unpack(mass), self._rows.unpack(cost)

    def cost_between(self, u: Tensor, v: Tensor) -> Tensor:
        pairs, r, c = self._cloud._pairs()
        product = self._rows.unpack(kernels.matvec(pairs, self._cols.pack(v)))
        r, c = self._rows.unpack(r), self._cols.unpack(c)
        return (u * product).sum(-1) + (r * u).sum(-1) * v.sum(-1) + (c * v).sum(-1) * u.sum(-1)

    def mean_cost(self, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        default = self.masses(None, None)
        return super().mean_cost(default[0] if a is None else a, default[1] if b is None else b)

    def cost_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        return self._cloud.cost_at(self._rows.index.gather(-1, rows), self._cols.index.gather(-1, cols))

    def tile(self, rows: Lines = slice(None), cols: Lines = slice(None)) -> Tensor:
        return self._cloud.extend(self.x, self.y).tile(rows, cols)

    def support(self, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None = None) -> Support:
        self._one_by_one("support")

    def smallest(self, f: Tensor, g: Tensor, k: int) -> Support:
        self._one_by_one("smallest")

    @staticmethod
    def _one_by_one(what: str) -> NoReturn:
        refuse(what, "a geometry without batch axes", "a Ragged", "Take the problems one by one, with item((k,)).")

    def __repr__(self) -> str:
        sizes = (f"{int(s.min())} to {int(s.max())}" for s in self.sizes)
        return f"Ragged({self._rows.count} problems, n={next(sizes)}, m={next(sizes)}, cost={self._cloud.ground!r})"
