"""The reference engine: the five operations in plain torch, tiled over rows to a memory budget.

It runs on any device and dtype, differentiates (each tile is recomputed in the backward pass, so memory
stays at one tile), and is the truth that the other engines are tested against.

All functions see the cost as `Pairs`: tensors that belong to the rows, tensors that belong to the columns,
and a function that turns a block of rows and all columns into a block of the cost. Everything reduces over
the columns; the other direction is the same function on `pairs.T`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import refuse

__all__ = [
    "Blocks",
    "Pairs",
    "apply",
    "cmin",
    "gibbs",
    "matvec",
    "memory_budget",
    "rescaled",
    "row_moments",
    "smallest",
    "softmin",
    "support",
]

# Entries of one tile. On a CPU a tile should stay in cache; on a GPU it should fill the card.
_CPU_TILE = 2**20
_GPU_TILE = 2**26
_budget: ContextVar[int | None] = ContextVar("brenier_tile_entries", default=None)


@contextlib.contextmanager
def memory_budget(entries: int) -> Iterator[None]:
    """Bound the number of cost entries that one tile may hold, inside a `with` block.

    Args:
        entries: at least 1; a tile never has less than one row of the cost.
    """
    token = _budget.set(max(1, int(entries)))
    try:
        yield
    finally:
        _budget.reset(token)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which pairs there are: row block r meets the column blocks cols[indptr[r]:indptr[r + 1]], and no other column.

    Row block r is rows row_starts[r]:row_starts[r + 1], likewise for columns. A pair that is not there has infinite
    cost. Blocks may be empty, and so may the list of a row block: softmin and cmin give +inf there, sums 0, indices 0.
    All are int64 tensors on the CPU.

    Args:
        row_starts: (R + 1,), from 0 to n, ascending.
        col_starts: (C + 1,), from 0 to m, ascending.
        indptr: (R + 1,), from 0 to the length of `cols`, ascending.
        cols: column blocks, strictly ascending within each row block.

    Raises:
        InvalidInput: tensors that break these rules.
    """

    row_starts: Tensor
    col_starts: Tensor
    indptr: Tensor
    cols: Tensor

    def __post_init__(self) -> None:
        for name in ("row_starts", "col_starts", "indptr", "cols"):
            t = getattr(self, name)
            if t.dtype != torch.int64 or not t.is_cpu or t.dim() != 1:
                refuse(f"blocks {name}", "an int64 tensor of one axis on the CPU", f"{t.dtype}, {t.dim()} axes")
            if name != "cols" and not (t.numel() and int(t[0]) == 0 and bool((t.diff() >= 0).all())):
                refuse(f"blocks {name}", "offsets that start at 0 and ascend", str(t.tolist()[:8]))
        n_cols, stored = self.col_starts.numel() - 1, self.cols.numel()
        if self.indptr.numel() != self.row_starts.numel() or int(self.indptr[-1]) != stored:
            refuse("blocks indptr", f"{self.row_starts.numel()} offsets up to {stored}", str(self.indptr.tolist()[-8:]))
        if stored and not 0 <= int(self.cols.min()) <= int(self.cols.max()) < n_cols:
            refuse("blocks cols", f"indices below {n_cols}", f"{int(self.cols.min())} to {int(self.cols.max())}")
        # across the start of a row block anything goes
        if bool(((self.cols.diff() <= 0) & (self._row_of[1:] == self._row_of[:-1])).any()):
            refuse("blocks cols", "strictly ascending indices in each row block", str(self.cols.tolist()[:8]))

    @classmethod
    def diagonal(cls, row_starts: Tensor, col_starts: Tensor) -> Blocks:
        """Row block r meets column block r: many problems at once."""
        each = torch.arange(row_starts.numel())
        return cls(row_starts, col_starts, each, each[:-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return int(self.row_starts[-1]), int(self.col_starts[-1])

    @cached_property
    def is_diagonal(self) -> bool:
        """Whether row block r meets column block r and no other."""
        each = torch.arange(self.indptr.numel())
        return torch.equal(self.indptr, each) and torch.equal(self.cols, each[:-1])

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return int((self.row_starts.diff()[self._row_of] * self.col_starts.diff()[self.cols]).sum())

    @cached_property
    def T(self) -> Blocks:
        """The same pairs, seen from the columns."""
        order = self.cols.argsort(stable=True)
        counts = self.cols.bincount(minlength=self.col_starts.numel() - 1)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        out = Blocks(self.col_starts, self.row_starts, indptr, self._row_of[order])
        out.__dict__["T"] = self
        return out

    @cached_property
    def _row_of(self) -> Tensor:
        """The row block of each entry of `cols`."""
        return torch.arange(self.indptr.numel() - 1).repeat_interleave(self.indptr.diff())

    @cached_property
    def packed(self) -> Tensor:
        """All in one tensor, as the native engine reads it: R, C, the length of `cols`, and the four."""
        parts = (self.row_starts, self.col_starts, self.indptr, self.cols)
        sizes = (self.row_starts.numel() - 1, self.col_starts.numel() - 1, self.cols.numel())
        return torch.cat([torch.tensor(sizes), *parts])

    @classmethod
    def unpack(cls, packed: Tensor) -> Blocks:
        """The blocks that were `packed`."""
        rows, cols, stored = packed[:3].tolist()
        return cls(*packed[3:].split([rows + 1, cols + 1, rows + 1, stored]))

    def columns(self, r: int) -> Tensor:
        """The columns that row block r meets, ascending."""
        listed = self.cols[self.indptr[r] : self.indptr[r + 1]]
        starts, sizes = self.col_starts[listed], self.col_starts.diff()[listed]
        ends = sizes.cumsum(0)
        return torch.arange(int(sizes.sum())) + (starts - (ends - sizes)).repeat_interleave(sizes)


class Pairs(NamedTuple):
    """A cost told by blocks: `block(rows, cols)` is (*batch, r, m) for r rows and all m columns."""

    rows: tuple[Tensor, ...]  # each (*batch, n, ·)
    cols: tuple[Tensor, ...]  # each (*batch, m, ·)
    block: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
    shape: tuple[int, int]  # (n, m)
    kind: str = ""  # "dot", "l1", "l2", "linf": what other engines know as -<u, v> or a norm of u - v
    blocks: Blocks | None = None  # the pairs that there are, all when None; without batch axes


class _Part(NamedTuple):
    """A row block with the columns that it meets, a dense problem of its own."""

    pairs: Pairs
    rows: slice
    cols: Tensor  # index
    epsilon: Tensor


def _parts(pairs: Pairs, epsilon: float | Tensor = 1.0) -> list[_Part]:
    """The dense problems that `pairs.blocks` describes, but those without rows; `epsilon` is one or one for each."""
    blocks = pairs.blocks
    assert blocks is not None
    device = (pairs.rows or pairs.cols)[0].device
    epsilon = torch.as_tensor(epsilon, device=device)
    starts = blocks.row_starts.tolist()
    out = []
    for r, (first, last) in enumerate(pairwise(starts)):
        if first == last:
            continue
        index = blocks.columns(r).to(device)
        rows = tuple(t[first:last] for t in pairs.rows)
        cols = tuple(t[index] for t in pairs.cols)
        block = pairs.block if cols else _columns_of(pairs.block, index)
        part = Pairs(rows, cols, block, (last - first, index.numel()), pairs.kind)
        out.append(_Part(part, slice(first, last), index, epsilon[r] if epsilon.dim() else epsilon))
    return out


def _none(part: _Part, like: Tensor) -> Tensor:
    """The minimum over no columns, which depends on nothing."""
    return like.new_full((part.pairs.shape[0],), torch.inf)


_Block = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


def _columns_of(block: _Block, index: Tensor) -> _Block:
    """Some columns of a cost whose tensors all belong to the rows."""
    return lambda rows, cols: block(rows, cols)[..., index]


def _row_slices(pairs: Pairs, batch: int) -> list[slice]:
    n, m = pairs.shape
    device = (pairs.rows or pairs.cols)[0].device
    entries = _budget.get() or (_CPU_TILE if device.type == "cpu" else _GPU_TILE)
    step = max(1, entries // max(1, m * batch))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _batch_size(tensor: Tensor, event_dims: int) -> int:
    return int(torch.Size(tensor.shape[: tensor.dim() - event_dims]).numel())


def _spread(epsilon: float | Tensor, dims: int) -> float | Tensor:
    """Give a per-problem epsilon (*batch,) trailing axes to broadcast over."""
    if isinstance(epsilon, Tensor) and epsilon.dim() > 0:
        return epsilon[(...,) + (None,) * dims]
    return epsilon


def _tiled(
    pairs: Pairs,
    batch: int,
    one: Callable[..., tuple[Tensor, ...]],
    row_args: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    dim: int = -1,
) -> list[tuple[Tensor, ...]]:
    """Call `one(c, *row_args, *shared)` on each tile, whose rows are axis `dim` of the results.

    Under autograd each tile is checkpointed. Otherwise the results go into one place at once: small tensors that
    survive between tiles would pin freed memory, and the heap could grow to the size of the whole cost.
    """
    k_rows, k_cols = len(pairs.rows), len(pairs.cols)

    def tile(*tensors: Tensor) -> tuple[Tensor, ...]:
        rows, cols = tensors[:k_rows], tensors[k_rows : k_rows + k_cols]
        return one(pairs.block(rows, cols), *tensors[k_rows + k_cols :])

    everything = (*pairs.rows, *pairs.cols, *row_args, *shared)
    record = torch.is_grad_enabled() and any(t.requires_grad for t in everything)
    out: list[tuple[Tensor, ...]] = []
    slices = _row_slices(pairs, batch)
    for s in slices:
        args = (
            *(r[..., s, :] for r in pairs.rows),
            *pairs.cols,
            *(r[..., s] for r in row_args),
            *shared,
        )
        if record:
            out.append(checkpoint(tile, *args, use_reentrant=False, preserve_rng_state=False))
            continue
        parts = tile(*args)
        if len(slices) == 1:
            return [parts]
        if not out:
            out.append(tuple(_tall(p, dim, pairs.shape[0]) for p in parts))
        for whole, part in zip(out[0], parts):
            whole.narrow(dim, s.start, part.shape[dim]).copy_(part)
        del args, parts, whole, part
    return out


def _tall(part: Tensor, dim: int, n: int) -> Tensor:
    """An empty tensor like a tile's result, with n rows on axis `dim`."""
    shape = list(part.shape)
    shape[dim] = n
    return part.new_empty(shape)


def _join(parts: list[tuple[Tensor, ...]], which: int = 0, dim: int = -1) -> Tensor:
    return parts[0][which] if len(parts) == 1 else torch.cat([p[which] for p in parts], dim)


def softmin(pairs: Pairs, h: Tensor, epsilon: float | Tensor) -> Tensor:
    r"""Return out_i = -eps log sum_j exp((h_j - c_ij) / eps).

    Args:
        pairs: the cost, n x m.
        h: (*batch, m); -inf entries are columns without mass.
        epsilon: in cost units, a number or (*batch,); with blocks, a number or one for each row block.

    Returns:
        (*batch, n). O(n m d) time, O(n + m + tile) memory.
    """
    if pairs.blocks is not None:
        parts = _parts(pairs, epsilon)
        return torch.cat([softmin(p.pairs, h[p.cols], p.epsilon) if p.cols.numel() else _none(p, h) for p in parts])
    eps = torch.as_tensor(epsilon, dtype=h.dtype, device=h.device)

    def one(c: Tensor, h: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        e = _spread(eps, 2)
        return (-_spread(eps, 1) * torch.logsumexp((h.unsqueeze(-2) - c) / e, -1),)

    return _join(_tiled(pairs, _batch_size(h, 1), one, (), (h, eps)))


def cmin(pairs: Pairs, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return min_j (c_ij - h_j) and the smallest minimising j, each (*batch, n)."""
    if pairs.blocks is not None:
        found = []
        for p in _parts(pairs):
            if p.cols.numel():
                values, index = cmin(p.pairs, h[p.cols])
                found.append((values, p.cols[index]))
            else:
                none = _none(p, h)
                found.append((none, torch.zeros_like(none, dtype=torch.int64)))
        return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])

    def one(c: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        best = (c - h.unsqueeze(-2)).min(-1)
        return best.values, best.indices

    parts = _tiled(pairs, _batch_size(h, 1), one, (), (h,))
    return _join(parts, 0), _join(parts, 1)


def apply(pairs: Pairs, f: Tensor, g: Tensor, epsilon: float | Tensor, v: Tensor) -> Tensor:
    """Return sum_j exp((f_i + g_j - c_ij) / eps) v_j for v (*batch, m, k): (*batch, n, k)."""
    if pairs.blocks is not None:
        parts = _parts(pairs, epsilon)
        return torch.cat([apply(p.pairs, f[p.rows], g[p.cols], p.epsilon, v[p.cols]) for p in parts])
    eps = torch.as_tensor(epsilon, dtype=f.dtype, device=f.device)

    def one(c: Tensor, f: Tensor, g: Tensor, v: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        e = _spread(eps, 2)
        return (torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - c) / e) @ v,)

    return _join(_tiled(pairs, _batch_size(f, 1), one, (f,), (g, v, eps), dim=-2), dim=-2)


def row_moments(pairs: Pairs, f: Tensor, g: Tensor, epsilon: float | Tensor, col_term: Tensor) -> tuple[Tensor, Tensor]:
    """Return per row the mass and the cost sum_j P_ij (c_ij + col_term_j), P = exp((f + g - c) / eps)."""
    if pairs.blocks is not None:
        sums = [row_moments(p.pairs, f[p.rows], g[p.cols], p.epsilon, col_term[p.cols]) for p in _parts(pairs, epsilon)]
        return torch.cat([mass for mass, _ in sums]), torch.cat([cost for _, cost in sums])
    eps = torch.as_tensor(epsilon, dtype=f.dtype, device=f.device)

    def one(c: Tensor, f: Tensor, g: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        e = _spread(eps, 2)
        p = torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - c) / e)
        return p.sum(-1), (p * (c + t.unsqueeze(-2))).sum(-1)

    parts = _tiled(pairs, _batch_size(f, 1), one, (f,), (g, col_term, eps))
    return _join(parts, 0), _join(parts, 1)


def matvec(pairs: Pairs, v: Tensor) -> Tensor:
    """Return sum_j c_ij v_j, (*batch, n), over the pairs that there are."""
    if pairs.blocks is not None:
        return torch.cat([matvec(p.pairs, v[p.cols]) for p in _parts(pairs)])

    def one(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return ((c @ v.unsqueeze(-1)).squeeze(-1),)

    return _join(_tiled(pairs, _batch_size(v, 1), one, (), (v,)))


def _cat(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols, values = (torch.cat(parts) for parts in zip(*found))
    return rows, cols, values


def support(
    pairs: Pairs, f: Tensor, g: Tensor, threshold: float, max_per_row: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and values of the entries with c_ij - f_i - g_j <= threshold (no batch).

    With `max_per_row`, only the smallest so many of each row, any of those that tie. Sorted by row; a row ascends in
    its values where `max_per_row` is less than the columns that it meets, else in its columns.
    """
    if pairs.blocks is not None:
        found = []
        for p in _parts(pairs):
            i, j, reduced = support(p.pairs, f[p.rows], g[p.cols], threshold, max_per_row)
            found.append((i + p.rows.start, p.cols[j], reduced))
        return _cat(found)
    rows, cols, values = [], [], []
    m = pairs.shape[1]
    for s in _row_slices(pairs, 1):
        c = pairs.block(tuple(r[s] for r in pairs.rows), pairs.cols)
        reduced = c - f[s, None] - g
        if max_per_row is not None and max_per_row < m:
            best = reduced.topk(max_per_row, -1, largest=False)
            keep = best.values <= threshold
            i, k = keep.nonzero(as_tuple=True)
            rows.append(i + s.start)
            cols.append(best.indices[i, k])
            values.append(best.values[i, k])
        else:
            i, j = (reduced <= threshold).nonzero(as_tuple=True)
            rows.append(i + s.start)
            cols.append(j)
            values.append(reduced[i, j])
    return _cat(list(zip(rows, cols, values)))


def smallest(pairs: Pairs, f: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and values of the k smallest c_ij - f_i - g_j overall, ascending (no batch)."""
    if pairs.blocks is not None:
        found = []
        for p in _parts(pairs):
            i, j, reduced = smallest(p.pairs, f[p.rows], g[p.cols], k)
            found.append((i + p.rows.start, p.cols[j], reduced))
        rows, cols, values = _cat(found)
        values, order = values.topk(min(k, values.numel()), largest=False)
        return rows[order], cols[order], values
    m = pairs.shape[1]
    values, flat = f.new_empty(0), torch.empty(0, dtype=torch.long, device=f.device)
    for s in _row_slices(pairs, 1):
        c = pairs.block(tuple(r[s] for r in pairs.rows), pairs.cols)
        reduced = (c - f[s, None] - g).flatten()
        best = reduced.topk(min(k, reduced.numel()), largest=False, sorted=False)
        values = torch.cat([values, best.values])
        flat = torch.cat([flat, best.indices + s.start * m])
        if values.numel() > k:
            values, keep = values.topk(k, largest=False)
            flat = flat[keep]
    values, order = values.sort()
    flat = flat[order]
    return flat // m, flat % m, values


def gibbs(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor, narrow: bool = False, over: bool = False) -> Tensor:
    """Return exp((f_i + g_j - c_ij) / eps) for a cost (*batch, n, m) and eps (*batch,) or (); narrow is float32.

    `over`: it may be written over the cost, which the caller does not need any more.
    """
    over = over and cost.shape[:-2] == torch.broadcast_shapes(cost.shape[:-2], f.shape[:-1], g.shape[:-1])
    out = torch.sub(g.unsqueeze(-2), cost, out=cost if over else None).add_(f.unsqueeze(-1))
    out = out.div_(_spread(epsilon, 2)).exp_()
    return out.float() if narrow else out


def rescaled(kernel: Tensor, f: Tensor, g: Tensor, epsilon: Tensor) -> Tensor:
    """Return f_i - eps log sum_j P_ij exp(g_j / eps) for a stored `gibbs` P, whose small entries may be lost.

    P may be narrow beside f and g, whose dtype the answer has. NaN where what was lost might count: a sum is below
    `safe`, the fourth root of the smallest normal number, or a scaling exp(g_j / eps) above 1 / safe.
    """
    line = _spread(epsilon, 1)
    safe = torch.finfo(kernel.dtype).smallest_normal ** 0.25
    scaling = (g / line).exp()
    sums = (kernel @ scaling.to(kernel.dtype).unsqueeze(-1)).squeeze(-1).to(g.dtype)
    sound = (sums >= safe) & (scaling.amax(-1, keepdim=True) <= 1 / safe)
    return f - line * torch.where(sound, sums, torch.nan).log()
