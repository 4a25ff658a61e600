"""The operations on pairs of points as Triton kernels, which `triton_pairs` launches.

Each program owns BM rows, passes over the columns that they meet in tiles of BN, makes a tile of the cost in registers
and consumes it there:

- inner products of few coordinates are outer products in registers, of more they are matrix products, tiled over the
  coordinates; norms are taken coordinate by coordinate;
- exponents are of base 2, in the dtype of the tensors (float32 for bfloat16); `softmin` keeps a running maximum, and
  the sums of tiles are added up in float64;
- with `Blocks` a program walks the column blocks that its row block meets; a batch is more programs.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.

import triton
import triton.language as tl

__all__ = ["KERNELS"]

_LN2 = tl.constexpr(0.6931471805599453)
_NOWHERE = tl.constexpr(2**31 - 1)


# Parts of the kernels


@triton.jit
def _place(n, tiles, schedule, row_starts, indptr, BM: tl.constexpr, BLOCKS: tl.constexpr):
    """The problem (or row block) of this program, its first row and where its rows end, and its column blocks."""
    pid = tl.program_id(0)
    if BLOCKS:
        first = tl.load(schedule + 2 * pid)
        item = tl.load(schedule + 2 * pid + 1)
        last = tl.load(row_starts + item + 1)
        start = tl.load(indptr + item)
        stop = tl.load(indptr + item + 1)
    else:
        item = (pid // tiles).to(tl.int64)
        first = ((pid % tiles) * BM).to(tl.int64)
        last = n
        start = 0
        stop = 1
    return item, first, last, start, stop


@triton.jit
def _columns(entry, m, col_starts, col_blocks, BLOCKS: tl.constexpr):
    """The range of the columns in an entry of the list of column blocks."""
    if BLOCKS:
        block = tl.load(col_blocks + entry)
        low = tl.load(col_starts + block)
        high = tl.load(col_starts + block + 1)
    else:
        low = 0
        high = m
    return low, high


@triton.jit
def _coordinates(x, i, inside, d, x_line, x_axis, BK: tl.constexpr, RESIDENT: tl.constexpr):
    """The coordinates (BM, BK) of the rows of a program, where they are few enough to stay."""
    if RESIDENT:
        k = tl.arange(0, BK)
        out = tl.load(x + i[:, None] * x_line + k[None, :] * x_axis, mask=inside[:, None] & (k < d)[None, :], other=0.0)
    else:
        out = i
    return out


@triton.jit
def _products(
    x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """<x_i, y_j>, (BM, BN)."""
    out = tl.zeros((BM, BN), REAL)
    if D > 0:
        for k in tl.static_range(D):
            u = tl.load(x + i * x_line + k * x_axis, mask=inside, other=0.0).to(REAL)
            v = tl.load(y + j * y_line + k * y_axis, mask=there, other=0.0).to(REAL)
            out += u[:, None] * v[None, :]
    elif RESIDENT:
        k = tl.arange(0, BK)
        v = tl.load(y + k[:, None] * y_axis + j[None, :] * y_line, mask=(k < d)[:, None] & there[None, :], other=0.0)
        out = tl.dot(held, v, out, input_precision=PRECISION, out_dtype=REAL)
    else:
        for first in range(0, d, BK):
            k = first + tl.arange(0, BK)
            u = tl.load(
                x + i[:, None] * x_line + k[None, :] * x_axis, mask=inside[:, None] & (k < d)[None, :], other=0.0
            )
            v = tl.load(
                y + k[:, None] * y_axis + j[None, :] * y_line, mask=(k < d)[:, None] & there[None, :], other=0.0
            )
            out = tl.dot(u, v, out, input_precision=PRECISION, out_dtype=REAL)
    return out


@triton.jit
def _root(square, REAL: tl.constexpr):
    if REAL == tl.float64:  # noqa: SIM300 - no constant, but an argument of the kernel
        out = tl.sqrt(square)
    else:
        out = tl.sqrt_rn(square)
    return out


@triton.jit
def _difference(x, y, i, j, inside, there, k, x_line, x_axis, y_line, y_axis, REAL: tl.constexpr):
    """Coordinate k of x_i - y_j, (BM, BN)."""
    u = tl.load(x + i * x_line + k * x_axis, mask=inside, other=0.0).to(REAL)
    v = tl.load(y + j * y_line + k * y_axis, mask=there, other=0.0).to(REAL)
    return u[:, None] - v[None, :]


@triton.jit
def _joined(out, delta, KIND: tl.constexpr):
    """A norm with one more coordinate."""
    if KIND == 1:
        out += tl.abs(delta)
    elif KIND == 2:
        out += delta * delta
    else:
        out = tl.maximum(out, tl.abs(delta))
    return out


@triton.jit
def _cost(
    x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
    KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """c_ij, (BM, BN)."""
    if KIND == 0:
        out = -_products(
            x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis, D, BM, BN, BK, RESIDENT, PRECISION, REAL
        )
    else:
        out = tl.zeros((BM, BN), REAL)
        if D > 0:
            for k in tl.static_range(D):
                delta = _difference(x, y, i, j, inside, there, k, x_line, x_axis, y_line, y_axis, REAL)
                out = _joined(out, delta, KIND)
        else:
            for k in range(0, d):
                delta = _difference(x, y, i, j, inside, there, k, x_line, x_axis, y_line, y_axis, REAL)
                out = _joined(out, delta, KIND)
        if KIND == 2:
            out = _root(out, REAL)
    return out


@triton.jit
def _inverse(epsilon, REAL: tl.constexpr):
    """1 / (epsilon ln 2): exponents are of base 2."""
    return (1.4426950408889634 / epsilon.to(tl.float64)).to(REAL)


# The kernels. Potentials, points and costs are those of one problem after the other, `*_step` apart (0 where shared);
# with blocks there is one problem, and epsilon may be one for each row block.


@triton.jit
def _softmin(
    x, y, h, epsilon, out, n, m, d, tiles, schedule, row_starts, col_starts, indptr, col_blocks,
    x_step, y_step, h_step, epsilon_step, x_line, x_axis, y_line, y_axis,
    KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    item, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    x += item * x_step
    y += item * y_step
    h += item * h_step
    e = tl.load(epsilon + item * epsilon_step)
    scale = _inverse(e, REAL)
    i = first + tl.arange(0, BM)
    inside = i < last
    held = _coordinates(x, i, inside, d, x_line, x_axis, BK, RESIDENT)
    top = tl.full((BM,), float("-inf"), REAL)
    total = tl.zeros((BM,), tl.float64)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low, high, BN):
            j = at + tl.arange(0, BN)
            there = j < high
            c = _cost(
                x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, RESIDENT, PRECISION, REAL,
            )  # fmt: skip
            lifted = tl.load(h + j, mask=there, other=float("-inf")).to(REAL) * scale
            z = lifted[None, :] - c * scale
            higher = tl.maximum(top, tl.max(z, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            part = tl.sum(tl.exp2(z - base[:, None]), 1)
            total = total * tl.exp2(top - base).to(tl.float64) + part.to(tl.float64)
            top = higher
    none = total == 0.0
    value = -(top.to(tl.float64) + tl.log2(tl.where(none, 1.0, total))) * (e.to(tl.float64) * _LN2)
    value = tl.where(none, float("inf"), value)
    where = i if BLOCKS else item * n + i
    tl.store(out + where, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _cmin(
    x, y, h, out, index, n, m, d, tiles, schedule, row_starts, col_starts, indptr, col_blocks,
    x_step, y_step, h_step, x_line, x_axis, y_line, y_axis,
    KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    item, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    x += item * x_step
    y += item * y_step
    h += item * h_step
    i = first + tl.arange(0, BM)
    inside = i < last
    held = _coordinates(x, i, inside, d, x_line, x_axis, BK, RESIDENT)
    best = tl.full((BM, BN), float("inf"), REAL)  # of each lane, so that nothing is shuffled before the end
    found = tl.zeros((BM, BN), tl.int32)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low, high, BN):
            j = at + tl.arange(0, BN)
            there = j < high
            c = _cost(
                x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, RESIDENT, PRECISION, REAL,
            )  # fmt: skip
            value = c - tl.load(h + j, mask=there, other=float("-inf")).to(REAL)[None, :]
            better = value < best
            best = tl.where(better, value, best)
            found = tl.where(better, j.to(tl.int32)[None, :], found)
    least = tl.min(best, 1)
    where = i if BLOCKS else item * n + i
    tl.store(out + where, least.to(out.dtype.element_ty), mask=inside)
    # the smallest index of those that tie
    chosen = tl.min(tl.where(best == least[:, None], found, _NOWHERE), 1)
    tl.store(index + where, chosen.to(tl.int64), mask=inside)


@triton.jit
def _apply(
    x, y, f, g, epsilon, v, left, right, out, n, m, d, k, r,
    tiles, schedule, row_starts, col_starts, indptr, col_blocks,
    x_step, y_step, f_step, g_step, epsilon_step, v_step, left_step, right_step, x_line, x_axis, y_line, y_axis,
    LINEAR: tl.constexpr, ONE: tl.constexpr, WEIGHTED: tl.constexpr, R: tl.constexpr, BR: tl.constexpr,
    BV: tl.constexpr, KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    item, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    x += item * x_step
    y += item * y_step
    v += item * v_step
    i = first + tl.arange(0, BM)
    inside = i < last
    if WEIGHTED:
        left += item * left_step
        right += item * right_step
    if not LINEAR:
        g += item * g_step
        scale = _inverse(tl.load(epsilon + item * epsilon_step), REAL)
        above = tl.load(f + item * f_step + i, mask=inside, other=float("-inf")).to(REAL) * scale
    held = _coordinates(x, i, inside, d, x_line, x_axis, BK, RESIDENT)
    axis = tl.program_id(1) * BV + tl.arange(0, BV)
    if ONE:
        total = tl.zeros((BM,), tl.float64)
    else:
        total = tl.zeros((BM, BV), REAL)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low, high, BN):
            j = at + tl.arange(0, BN)
            there = j < high
            c = _cost(
                x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, RESIDENT, PRECISION, REAL,
            )  # fmt: skip
            if LINEAR:
                p = tl.where(there[None, :], c, 0.0)
            else:
                lifted = tl.load(g + j, mask=there, other=float("-inf")).to(REAL) * scale
                p = tl.exp2((lifted[None, :] - c * scale) + above[:, None])
            if WEIGHTED:
                p *= _products(
                    left, right, i, i, j, inside, there, r, r, 1, r, 1, R, BM, BN, BR, False, PRECISION, REAL
                )
            if ONE:
                values = tl.load(v + j * k, mask=there, other=0.0).to(REAL)
                total += tl.sum(p * values[None, :], 1).to(tl.float64)
            else:
                values = tl.load(
                    v + j[:, None] * k + axis[None, :], mask=there[:, None] & (axis < k)[None, :], other=0.0
                ).to(REAL)
                total = tl.dot(p, values, total, input_precision=PRECISION, out_dtype=REAL)
    where = i if BLOCKS else item * n + i
    if ONE:
        tl.store(out + where * k, total.to(out.dtype.element_ty), mask=inside)
    else:
        inner = inside[:, None] & (axis < k)[None, :]
        tl.store(out + where[:, None] * k + axis[None, :], total.to(out.dtype.element_ty), mask=inner)


@triton.jit
def _moments(
    x, y, f, g, epsilon, term, mass, price, n, m, d, tiles, schedule, row_starts, col_starts, indptr, col_blocks,
    x_step, y_step, f_step, g_step, epsilon_step, term_step, x_line, x_axis, y_line, y_axis,
    KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    item, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    x += item * x_step
    y += item * y_step
    g += item * g_step
    term += item * term_step
    i = first + tl.arange(0, BM)
    inside = i < last
    scale = _inverse(tl.load(epsilon + item * epsilon_step), REAL)
    above = tl.load(f + item * f_step + i, mask=inside, other=float("-inf")).to(REAL) * scale
    held = _coordinates(x, i, inside, d, x_line, x_axis, BK, RESIDENT)
    sums = tl.zeros((BM,), tl.float64)
    costs = tl.zeros((BM,), tl.float64)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low, high, BN):
            j = at + tl.arange(0, BN)
            there = j < high
            c = _cost(
                x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, RESIDENT, PRECISION, REAL,
            )  # fmt: skip
            lifted = tl.load(g + j, mask=there, other=float("-inf")).to(REAL) * scale
            p = tl.exp2((lifted[None, :] - c * scale) + above[:, None])
            added = tl.load(term + j, mask=there, other=0.0).to(REAL)
            sums += tl.sum(p, 1).to(tl.float64)
            costs += tl.sum(p * (c + added[None, :]), 1).to(tl.float64)
    where = i if BLOCKS else item * n + i
    tl.store(mass + where, sums.to(mass.dtype.element_ty), mask=inside)
    tl.store(price + where, costs.to(price.dtype.element_ty), mask=inside)


@triton.jit
def _slope(
    x, y, f, g, epsilon, left, right, out, n, m, d, r, tiles, schedule, row_starts, col_starts, indptr, col_blocks,
    x_step, y_step, f_step, g_step, epsilon_step, left_step, right_step, x_line, x_axis, y_line, y_axis,
    WEIGHTED: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, KIND: tl.constexpr,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    item, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    x += item * x_step
    y += item * y_step
    g += item * g_step
    if WEIGHTED:
        left += item * left_step
        right += item * right_step
    i = first + tl.arange(0, BM)
    inside = i < last
    scale = _inverse(tl.load(epsilon + item * epsilon_step), REAL)
    above = tl.load(f + item * f_step + i, mask=inside, other=float("-inf")).to(REAL) * scale
    origin = tl.program_id(1) * BD  # of the coordinates of this program
    slot = tl.arange(0, BD)
    total = tl.zeros((BM, BD), REAL)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low, high, BN):
            j = at + tl.arange(0, BN)
            there = j < high
            c = _cost(
                x, y, i, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, False, PRECISION, REAL,
            )  # fmt: skip
            lifted = tl.load(g + j, mask=there, other=float("-inf")).to(REAL) * scale
            p = tl.exp2((lifted[None, :] - c * scale) + above[:, None])
            if WEIGHTED:
                p *= _products(
                    left, right, i, i, j, inside, there, r, r, 1, r, 1, R, BM, BN, BR, False, PRECISION, REAL
                )
            if KIND == 2:
                p = tl.where(c > 0.0, p / tl.where(c > 0.0, c, 1.0), 0.0)
            if KIND == 3:  # coordinates that tie for the largest share it
                ties = tl.zeros((BM, BN), REAL)
                for axis in range(0, d):
                    delta = _difference(x, y, i, j, inside, there, axis, x_line, x_axis, y_line, y_axis, REAL)
                    ties += tl.where(tl.abs(delta) == c, 1.0, 0.0)
                p = p / ties
            for axis in range(origin, tl.minimum(origin + BD, d)):
                delta = _difference(x, y, i, j, inside, there, axis, x_line, x_axis, y_line, y_axis, REAL)
                if KIND == 2:
                    each = p * delta
                else:
                    sign = tl.where(delta > 0.0, 1.0, tl.where(delta < 0.0, -1.0, 0.0))
                    if KIND == 3:
                        sign = tl.where(tl.abs(delta) == c, sign, 0.0)
                    each = p * sign
                total += tl.where((slot == axis - origin)[None, :], tl.sum(each, 1)[:, None], 0.0)
    where = i if BLOCKS else item * n + i
    inner = inside[:, None] & (origin + slot < d)[None, :]
    tl.store(out + where[:, None] * d + origin + slot[None, :], total.to(out.dtype.element_ty), mask=inner)


@triton.jit
def _minima(
    x, y, f, g, out, n, m, d, parts, tiles, schedule, row_starts, col_starts, indptr, col_blocks,
    x_line, x_axis, y_line, y_axis,
    KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The smallest c_ij - f_i - g_j of each lane of each of `parts` shares of the columns, (n, parts, BN)."""
    _, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    part = tl.program_id(1)
    i = first + tl.arange(0, BM)
    inside = i < last
    held = _coordinates(x, i, inside, d, x_line, x_axis, BK, RESIDENT)
    own = tl.load(f + i, mask=inside, other=0.0).to(REAL)
    lane = tl.arange(0, BN)
    best = tl.full((BM, BN), float("inf"), REAL)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low + part * BN, high, parts * BN):
            j = at + lane
            there = j < high
            c = _cost(
                x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, RESIDENT, PRECISION, REAL,
            )  # fmt: skip
            other = tl.load(g + j, mask=there, other=float("-inf")).to(REAL)
            best = tl.minimum(best, (c - own[:, None]) - other[None, :])
    where = (i * parts + part)[:, None] * BN + lane[None, :]
    tl.store(out + where, best, mask=inside[:, None])


@triton.jit(do_not_specialize=["fill"])
def _entries(
    x, y, f, g, limits, counts, starts, cols, values, fill,
    n, m, d, tiles, schedule, row_starts, col_starts, indptr, col_blocks, x_line, x_axis, y_line, y_axis,
    KIND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, BLOCKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Count the entries within the limit of each row; with `fill`, list them from where each row starts.

    One kernel for both, so that the two passes compute the same numbers.
    """
    _, first, last, start, stop = _place(n, tiles, schedule, row_starts, indptr, BM, BLOCKS)
    i = first + tl.arange(0, BM)
    inside = i < last
    held = _coordinates(x, i, inside, d, x_line, x_axis, BK, RESIDENT)
    own = tl.load(f + i, mask=inside, other=0.0).to(REAL)
    limit = tl.load(limits + i, mask=inside, other=0.0)
    place = tl.load(starts + i, mask=inside, other=0)
    number = tl.zeros((BM,), tl.int64)
    for entry in range(start, stop):
        low, high = _columns(entry, m, col_starts, col_blocks, BLOCKS)
        for at in range(low, high, BN):
            j = at + tl.arange(0, BN)
            there = j < high
            c = _cost(
                x, y, held, i, j, inside, there, d, x_line, x_axis, y_line, y_axis,
                KIND, D, BM, BN, BK, RESIDENT, PRECISION, REAL,
            )  # fmt: skip
            other = tl.load(g + j, mask=there, other=0.0).to(REAL)
            reduced = (c - own[:, None]) - other[None, :]
            passes = (reduced <= limit[:, None]) & there[None, :] & inside[:, None]
            one = passes.to(tl.int32)
            to = (place + number)[:, None] + (tl.cumsum(one, 1) - one)
            at_all = tl.zeros((BM, BN), tl.int64) + j[None, :]
            writes = one * fill > 0
            tl.store(cols + to, at_all, mask=writes)
            tl.store(values + to, reduced, mask=writes)
            number += tl.sum(one, 1).to(tl.int64)
    tl.store(counts + i, number, mask=inside)


KERNELS = {
    "softmin": _softmin, "cmin": _cmin, "apply": _apply, "moments": _moments, "slope": _slope, "minima": _minima,
    "entries": _entries,
}  # fmt: skip
"""All kernels by name, for `benchmarks/gpu_resources.py`."""
