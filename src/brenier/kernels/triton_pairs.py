"""The operations on pairs of points on a GPU: one launch for all rows of all problems, O(n + m) memory.

Imported on the first call that needs it, as it imports Triton; the kernels are those of `triton_kernels`. The
operators, their shapes and their derivatives are those of `native`, which calls `run` for tensors on a GPU, and for
tensors on a CPU in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import refuse
from . import native, triton_tuning
from .build import accuracy
from .reference import Blocks
from .triton_kernels import KERNELS

__all__ = ["listed", "run"]

_FEW = 8  # coordinates that are taken one by one
_RESIDENT = 128  # coordinates of the rows that stay with a program


class _Schedule:
    """`Blocks` on the device, and which rows of which row block each program has."""

    def __init__(self, packed: Tensor, device: torch.device) -> None:
        self.blocks = Blocks.unpack(packed)
        self.device = device
        names = ("row_starts", "col_starts", "indptr", "cols")
        self.arrays = {name: getattr(self.blocks, name).to(device) for name in names}
        self.programs: dict[int, Tensor] = {}
        sizes = self.blocks.col_starts.diff()
        filled = sizes[sizes > 0]
        self.width = int(filled.double().mean()) if filled.numel() else 1

    def of(self, height: int) -> Tensor:
        """First row and row block of each program of `height` rows, (programs, 2)."""
        if height not in self.programs:
            starts, sizes = self.blocks.row_starts[:-1], self.blocks.row_starts.diff()
            counts = (sizes + height - 1) // height
            block = torch.arange(counts.numel()).repeat_interleave(counts)
            number = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts)[block]
            self.programs[height] = torch.stack([starts[block] + height * number, block], -1).to(self.device)
        return self.programs[height]


_schedules: Any = WeakTensorKeyDictionary()  # of the packed blocks, for each device


def _schedule(packed: Tensor, device: torch.device) -> _Schedule:
    known = _schedules.setdefault(packed, {})
    if device not in known:
        known[device] = _Schedule(packed, device)
    return known[device]


def _power(size: int, low: int, high: int) -> int:
    """The smallest power of two from `size` on, within bounds."""
    return max(low, min(high, triton.next_power_of_2(max(1, size))))


class _Task:
    """One call: points as the kernels read them, and what all kernels are told."""

    def __init__(
        self, name: str, kind: str, rows: Tensor, cols: Tensor, items: int, blocks: Tensor | None, width: int
    ) -> None:
        self.name, self.kind, self.items = name, native.KINDS.index(kind), items
        n, m, d = rows.shape[-2], cols.shape[-2], rows.shape[-1]
        if rows.dtype == torch.bfloat16 and rows.is_cpu:  # the interpreter cannot multiply it
            rows, cols = rows.float(), cols.float()
        self.shape, self.width, self.device, self.dtype = (n, m, d), width, rows.device, rows.dtype
        self.real = tl.float64 if rows.dtype == torch.float64 else tl.float32
        self.products = kind == "dot" and d > _FEW
        # Few coordinates are read one by one, each as a line of its own; many as rows of a matrix product.
        self.x, self.y = (t if self.products else t.mT.contiguous() for t in (rows, cols))
        self.lines = (d, 1, d, 1) if self.products else (1, n, 1, m)
        self.plan = None if blocks is None else _schedule(blocks, rows.device)

    def bucket(self) -> tuple[Any, ...]:
        """Calls that share a configuration: sizes up to powers of two (of four, for many points)."""
        n, m, d = self.shape
        points = tuple(_power(size, 64, 2**40).bit_length() // 2 for size in (n * self.items, m))
        column = 0 if self.plan is None else _power(self.plan.width, 16, 128)
        exact = d if d <= _FEW else _power(d, 16, 512)
        chosen = accuracy.get()
        return (self.name, self.kind, str(self.dtype), *points, exact, column, self.width, chosen, str(self.device))

    def options(self, config: triton_tuning.Config) -> dict[str, Any]:
        """The constants of a kernel."""
        d = self.shape[2]
        # On tensor cores; products of float32 and float64 would have all their coordinates in registers at once.
        swift = self.dtype == torch.bfloat16 or (self.dtype == torch.float32 and accuracy.get() != "ieee")
        resident = self.products and swift and d <= _RESIDENT
        return {
            "KIND": self.kind,
            "D": d if d <= _FEW else 0,
            "BM": config.rows,
            "BN": config.cols,
            "BK": _power(d, 16, _RESIDENT) if resident else config.depth,
            "RESIDENT": resident,
            "PRECISION": accuracy.get(),
            "BLOCKS": self.plan is not None,
            "REAL": self.real,
            "num_warps": config.warps,
            "num_stages": config.stages,
            "enable_fp_fusion": True,  # which Triton asks to be told
        }

    def launch(
        self, arguments: Callable[[tuple[Any, ...], tuple[Any, ...], dict[str, Any]], tuple[Any, ...]], parts: int = 1,
        **more: Any,
    ) -> None:  # fmt: skip
        """Run the kernel on all rows; `arguments(sizes, schedule, options)` puts its arguments in order."""
        n, m, d = self.shape
        widest = None if self.plan is None else self.plan.width
        configs = triton_tuning.candidates(self.name, self.products, self.dtype, widest)

        def once(config: triton_tuning.Config) -> None:
            options = self.options(config) | more
            if self.plan is None:
                tiles = triton.cdiv(n, config.rows)
                programs = tiles * self.items
                schedule: tuple[Any, ...] = (tiles, None, None, None, None, None)
            else:
                rows = self.plan.of(config.rows)
                at = self.plan.arrays
                programs = rows.shape[0]
                schedule = (1, rows, at["row_starts"], at["col_starts"], at["indptr"], at["cols"])
            if programs:
                given = arguments((n, m, d), schedule, options)
                KERNELS[self.name][(programs, parts)](*given, **options)

        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            once(triton_tuning.chosen(self.bucket(), configs, once, self.device))


def _weights(left: Tensor | None) -> dict[str, Any]:
    """The constants that tell of a weight <left_i, right_j>."""
    r = 0 if left is None else left.shape[-1]
    return {"WEIGHTED": left is not None, "R": r if r <= _FEW else 0, "BR": _power(r, 16, 64)}


def run(
    op: int,
    kind: str,
    arrays: list[Tensor | None],
    steps: list[int],
    items: int,
    blocks: Tensor | None,
    out: Tensor,
    second: Tensor | None,
) -> None:
    """Fill `out` and `second`; arguments are those of `native._run`, dense and in the order of its `_AXES`."""
    if out.dtype == torch.bfloat16:  # rounded once, from float32
        wide = torch.empty_like(out, dtype=torch.float32)
        other = second if second is None or second.dtype != out.dtype else torch.empty_like(second, dtype=torch.float32)
        run(op, kind, arrays, steps, items, blocks, wide, other)
        out.copy_(wide)
        if second is not None and other is not second and other is not None:
            second.copy_(other)
        return
    rows, cols, f, g, v, left, right, term, epsilon = arrays
    assert rows is not None
    assert cols is not None
    rows_step, cols_step, f_step, g_step, v_step, left_step, right_step, term_step, epsilon_step = steps
    k = 0 if v is None else v.shape[-1]
    r = 0 if left is None else left.shape[-1]
    name = {
        native._SOFTMIN: "softmin", native._CMIN: "cmin", native._APPLY: "apply", native._MOMENTS: "moments",
        native._MATVEC: "apply", native._SLOPE: "slope",
    }[op]  # fmt: skip
    task = _Task(name, kind, rows, cols, items, blocks, _power(k, 1, 128))
    x, y, points, lines = task.x, task.y, (rows_step, cols_step), task.lines
    inner: tuple[int, ...]
    if name == "softmin":
        task.launch(lambda size, plan, _: (x, y, g, epsilon, out, *size, *plan, *points, g_step, epsilon_step, *lines))
    elif name == "cmin":
        task.launch(lambda size, plan, _: (x, y, g, out, second, *size, *plan, *points, g_step, *lines))
    elif name == "moments":
        inner = (f_step, g_step, epsilon_step, term_step)
        task.launch(
            lambda size, plan, _: (x, y, f, g, epsilon, term, out, second, *size, *plan, *points, *inner, *lines)
        )
    elif name == "apply":
        width = _power(k, 16, 64)
        inner = (f_step, g_step, epsilon_step, v_step, left_step, right_step)
        task.launch(
            lambda size, plan, _: (
                x, y, f, g, epsilon, v, left, right, out, *size, k, r, *plan, *points, *inner, *lines
            ),
            parts=1 if k == 1 else triton.cdiv(k, width),
            LINEAR=op == native._MATVEC,
            ONE=k == 1,
            BV=width,
            **_weights(left),
        )  # fmt: skip
    else:
        inner = (f_step, g_step, epsilon_step, left_step, right_step)
        width = _power(task.shape[2], 4, 16)

        def slope(size: tuple[Any, ...], plan: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
            del options["RESIDENT"]
            return (x, y, f, g, epsilon, left, right, out, *size, r, *plan, *points, *inner, *lines)

        task.launch(slope, parts=triton.cdiv(task.shape[2], width), BD=width, **_weights(left))


# Lists of entries

_LANES = 64
_SLACK = 8  # a list may be this many times longer than what is wanted of it


def _bounds(task: _Task, f: Tensor, g: Tensor, lanes: int, like: torch.dtype) -> Tensor:
    """Some of the reduced costs of each row, the smallest among them: one for each of at least so many sets, (n, ·)."""
    n = task.shape[0]
    parts = triton.cdiv(lanes, _LANES)
    out = torch.empty((n, parts * _LANES), dtype=like, device=f.device)
    x, y, lines = task.x, task.y, task.lines
    task.name = "minima"
    task.launch(lambda size, plan, _: (x, y, f, g, out, *size, parts, *plan, *lines), parts=parts, BN=_LANES)
    return out


def listed(
    kind: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],  # rows, columns, f, g: contiguous
    shape: tuple[int, int],
    most: int,
    limit: float = torch.inf,
    *,
    whole: bool = False,
    blocks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `native.listed`; None where so many entries tie that they are better looked for tile by tile.

    The smallest entries of some sets of columns bound the last entry that is wanted. What passes is counted, listed
    and sorted: three passes at most, memory of a few times the result.
    """
    rows, cols, f, g = tensors
    if most < 0:
        refuse("the number of entries", "at least 0", str(most))
    n, m = shape
    wanted = min(most, n * m) if whole else min(most, m)
    task = _Task("entries", kind, rows, cols, 1, blocks, 1)
    real = torch.float64 if rows.dtype == torch.float64 else torch.float32
    limits = torch.full((n,), limit, dtype=real, device=rows.device)
    met = torch.full((n,), m, device=rows.device)
    if task.plan is not None:
        each = task.plan.blocks
        of_block = torch.zeros(each.indptr.numel() - 1, dtype=torch.int64)
        of_block.index_add_(0, each._row_of, each.col_starts.diff()[each.cols])
        met = of_block.repeat_interleave(each.row_starts.diff()).to(rows.device)
    none = torch.zeros(n, dtype=torch.int64, device=rows.device)
    if not n or not m or not wanted:
        return none[:0], none[:0], f[:0]
    if whole:
        bounds = _bounds(task, f, g, min(triton.cdiv(4 * wanted, n), m), real).flatten()
        if wanted < bounds.numel():
            limits = torch.minimum(limits, bounds.kthvalue(wanted).values)
    elif wanted < m:
        bounds = _bounds(task, f, g, 4 * wanted, real).kthvalue(wanted, dim=-1).values
        limits = torch.where(met > wanted, torch.minimum(limits, bounds), limits)
    task.name = "entries"
    x, y, lines = task.x, task.y, task.lines
    counts = none.clone()

    def visit(starts: Tensor, into: Tensor, values: Tensor, fill: int) -> None:
        task.launch(
            lambda size, plan, _: (x, y, f, g, limits, counts, starts, into, values, fill, *size, *plan, *lines)
        )

    visit(none, none, limits, 0)
    total = int(counts.sum())
    asked = wanted if whole else n * wanted
    if total > _SLACK * asked + 2**20:
        return None
    starts = counts.cumsum(0) - counts
    i = torch.arange(n, device=rows.device).repeat_interleave(counts, output_size=total)
    j = torch.empty(total, dtype=torch.int64, device=rows.device)
    values = torch.empty(total, dtype=real, device=rows.device)
    visit(starts, j, values, 1)
    if whole:
        order = values.sort(stable=True).indices[:wanted]  # what ties stays by row and column
    else:
        limited = (met > wanted)[i]
        order = torch.where(limited, values, 0).sort(stable=True).indices
        order = order[i[order].sort(stable=True).indices]
        number = torch.arange(total, device=rows.device) - starts[i[order]]
        order = order[(number < wanted) | ~limited[order]]
    return i[order], j[order], values[order].to(f.dtype)
