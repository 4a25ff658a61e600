"""The network simplex in NumPy and Python: slower than the native engine, and the same in its results.

A basis is a spanning tree on rows (nodes 0..n-1) and columns (nodes n..n+m-1); the arc between a node and
its parent belongs to the node. A potential p is f on rows and -g on columns, so the nodes of a subtree move
by the same amount; the reduced cost is always computed as (cost_ij + p_j) - p_i, so that all who ask get the
same number. Every empty arc points to the root (strong feasibility), so degenerate pivots cannot cycle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["solve"]

_BLOCK = 1 << 15  # entries of cost priced at once
_WIDTH = 24  # arcs per line that the starting tree looks at
_POLL = 64  # pivots between two polls
_ROUNDING = 64 * np.finfo(np.float64).eps

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


class _Tree:
    """Parents, children, subtree sizes and flows, as Python lists for quick access to single entries."""

    def __init__(self, n: int, nodes: int) -> None:
        self.n = n
        self.parent = [-1] * nodes
        self.children: list[set[int]] = [set() for _ in range(nodes)]
        self.size = [1] * nodes
        self.flow = [0] * nodes
        self.root = -1

    def hang(self, u: int, parent: int, flow: int) -> None:
        self.parent[u] = parent
        self.children[parent].add(u)
        self.flow[u] = flow

    def subtree(self, top: int) -> list[int]:
        """The nodes below ``top`` and itself, parents first."""
        nodes = [top]
        for u in nodes:
            nodes.extend(self.children[u])
        return nodes

    def set_root(self, root: int) -> None:
        self.root = root
        for u in reversed(self.subtree(root)[1:]):
            self.size[self.parent[u]] += self.size[u]

    def pivot(self, row: int, col: int, reduced: float, p: _Float) -> None:
        """Let the arc row -> col in, and move the potentials so that its reduced cost becomes zero."""
        n, parent, size, flow = self.n, self.parent, self.size, self.flow
        # Climb to the join. Of the arcs that empty first the last goes out, counted from the join along the
        # new arc.
        row_path, col_path = [], []
        u, v = row, col
        while u != v:
            if size[u] <= size[v]:
                row_path.append(u)
                u = parent[u]
            else:
                col_path.append(v)
                v = parent[v]
        row_out = min((u for u in row_path if u < n), key=flow.__getitem__, default=-1)
        col_out = min((v for v in reversed(col_path) if v >= n), key=flow.__getitem__, default=-1)
        cut_row = col_out < 0 or (row_out >= 0 and flow[row_out] < flow[col_out])
        out, above = (row_out, col) if cut_row else (col_out, row)
        cut_path, other_path = (row_path, col_path) if cut_row else (col_path, row_path)
        moved = flow[out]
        for u in row_path:
            flow[u] += -moved if u < n else moved
        for v in col_path:
            flow[v] += moved if v < n else -moved
        cut = size[out]
        stem = cut_path[: cut_path.index(out) + 1]
        for u in cut_path[len(stem) :]:
            size[u] -= cut
        for u in other_path:
            size[u] += cut

        # Only a difference of potentials matters: move the smaller side.
        self.children[parent[out]].remove(out)
        shift = reduced if cut_row else -reduced
        if 2 * cut <= size[self.root]:
            p[self.subtree(out)] += shift
        else:
            p[self.subtree(self.root)] -= shift

        # Turn the path from the new arc up to the cut upside down.
        carried, turned = moved, 0
        for u, up in zip(stem, [*stem[1:], -1]):
            if up >= 0:
                self.children[up].remove(u)
            old_flow, old_size = flow[u], size[u]
            self.hang(u, above, carried)
            size[u] = cut - turned
            carried, turned, above = old_flow, old_size, u


def solve(
    cost: _Float,  # (n, m)
    supply: _Int,  # (n,)
    demand: _Int,  # (m,), of the same sum
    f: _Float | None,  # (n,)
    g: _Float | None,  # (m,)
    max_iter: int,
    interrupt: Callable[[], bool] | None,
) -> tuple[_Int, _Int, _Int, _Float, _Float, int, bool]:
    """Return the arcs of the last tree (rows, cols, flow), the duals, the pivots, and whether it is optimal.

    Lines without mass take no part; their duals are -inf.
    """
    n, m = cost.shape
    rows, cols = np.flatnonzero(supply), np.flatnonzero(demand)
    p = np.full(n + m, np.inf)
    _start_duals(cost, rows, cols, f, g, p)
    tree = _start_tree(cost, supply, demand, rows, cols, p)
    blocks = np.array_split(rows, -(-len(rows) * m // _BLOCK))

    n_iter, optimal, stopped = 0, False, False
    while not (optimal or stopped):
        tolerance = _refresh(tree, cost, rows, cols, p)
        pivots, stale = n_iter, n_iter + n + m
        idle = 0
        while idle < len(blocks) and not stopped:
            for block in blocks:
                idle += 1
                reduced = cost[block] + p[n:] - p[block, None]
                block_cols = reduced.argmin(axis=1)
                reduced = reduced[np.arange(len(block)), block_cols]
                arcs = reduced < -tolerance
                i, j, c = block[arcs], block_cols[arcs], cost[block[arcs], block_cols[arcs]]
                # The best arc of the block pivots until none is left.
                while len(i) and not stopped:
                    reduced = c + p[n + j] - p[i]
                    best = reduced.argmin()
                    if not reduced[best] < -tolerance:
                        break
                    stopped = n_iter >= max_iter or (
                        interrupt is not None and n_iter % _POLL == 0 and bool(interrupt())
                    )
                    if n_iter >= stale:  # potentials drift, and their rounding would outgrow the tolerance
                        tolerance, stale = _refresh(tree, cost, rows, cols, p), n_iter + n + m
                    elif not stopped:
                        tree.pivot(int(i[best]), n + int(j[best]), reduced[best], p)
                        n_iter += 1
                        idle = 0
                if stopped or idle >= len(blocks):
                    break
        optimal = not stopped and n_iter == pivots

    nodes = [u for u in (*rows, *(n + cols)) if u != tree.root]
    ends = np.array([(u, tree.parent[u]) for u in nodes], np.int64).reshape(-1, 2)
    flow = np.array([tree.flow[u] for u in nodes], np.int64)
    # Lower f by what violates: rounding when optimal, a c-transform of g when stopped before.
    for block in blocks:
        p[block] = np.minimum(p[block], (cost[block] + p[n:]).min(axis=1))
    f, g = np.full(n, -np.inf), -p[n:]
    f[rows] = p[rows]
    return ends.min(axis=1), ends.max(axis=1) - n, flow, f, g, n_iter, optimal


def _start_duals(cost: _Float, rows: _Int, cols: _Int, f: _Float | None, g: _Float | None, p: _Float) -> None:
    """Feasible duals by c-transforms, from g, else from f, else from zero: each line gets a tight arc."""
    n = len(cost)

    def transform_columns() -> None:
        p[n + cols] = -np.inf
        for i in rows:
            p[n + cols] = np.maximum(p[n + cols], p[i] - cost[i, cols])

    if f is not None and g is None:
        p[rows] = f[rows]
        transform_columns()
    else:
        p[n + cols] = 0.0 if g is None else -g[cols]
    for i in rows:
        p[i] = (cost[i] + p[n:]).min()
    transform_columns()


def _start_tree(cost: _Float, supply: _Int, demand: _Int, rows: _Int, cols: _Int, p: _Float) -> _Tree:
    """Grow a strongly feasible tree, greedy for reduced costs.

    Each step ships all that one arc can carry, and the line that this exhausts leaves the game as a child of
    the other. A row may hang on a column by an empty arc, a column may not: so on ties the column leaves, the
    empty row hangs itself later, and the last column stays as the root.
    """
    n, m = cost.shape
    tree = _Tree(n, n + m)
    left = [*supply.tolist(), *demand.tolist()]
    alive = [mass > 0 for mass in left]
    n_rows, n_cols = len(rows), len(cols)
    near: list[list[int]] = [[] for _ in left]  # neighbours by tight arcs
    degree = [0] * (n + m)
    leaves: list[int] = []

    def ship(i: int, column: int) -> None:
        nonlocal n_rows, n_cols
        flow = min(left[i], left[column])
        left[i] -= flow
        left[column] -= flow
        if left[column] == 0 and n_cols > 1:
            gone, parent = column, i
            n_cols -= 1
        else:
            gone, parent = i, column
            n_rows -= 1
        alive[gone] = False
        tree.hang(gone, parent, flow)
        for u in near[gone]:
            degree[u] -= 1
            if degree[u] == 1:
                leaves.append(u)

    # Arcs in order of reduced cost; but where a line has one live tight arc left, that one first: from
    # optimal duals this finds an optimal plan.
    width = min(m, -(-_WIDTH * max(len(rows), len(cols)) // len(rows)))
    reduced = np.empty((len(rows), width))
    columns = np.empty((len(rows), width), np.int64)
    for k, i in enumerate(rows):
        row = cost[i] + p[n:] - p[i]
        columns[k] = np.argpartition(row, width - 1)[:width]
        reduced[k] = row[columns[k]]
    order = np.argsort(reduced, axis=None)
    order = order[: np.searchsorted(reduced.ravel()[order], np.inf)]
    tight = np.count_nonzero(reduced <= _ROUNDING * np.abs(p[rows]).max())
    arcs = list(zip(rows[order // width].tolist(), (n + columns.ravel()[order]).tolist()))
    for i, column in arcs[:tight]:
        near[i].append(column)
        near[column].append(i)
    degree = [len(nodes) for nodes in near]
    leaves.extend(u for u, d in enumerate(degree) if d == 1)
    for arc in [None, *arcs]:
        if arc is not None and alive[arc[0]] and alive[arc[1]] and n_rows + n_cols > 1:
            ship(*arc)
        while leaves:
            u = leaves.pop()
            v = next((v for v in near[u] if alive[v]), None)
            if alive[u] and v is not None:
                ship(min(u, v), max(u, v))

    # What is left: row by row, the cheapest columns.
    for i in rows.tolist():
        if not alive[i] or n_rows + n_cols == 1:
            continue
        open_cols = np.array([j for j in cols if alive[n + j]])
        for j in open_cols[np.argsort(cost[i, open_cols] + p[n + open_cols])].tolist():
            if alive[i] and n_rows + n_cols > 1:
                ship(i, n + j)
    tree.set_root(next(n + int(j) for j in cols if alive[n + j]))
    return tree


def _refresh(tree: _Tree, cost: _Float, rows: _Int, cols: _Int, p: _Float) -> float:
    """Potentials afresh from the tree, free of accumulated rounding, and centred; returns their tolerance."""
    n = tree.n
    p[tree.root] = 0.0
    for u in tree.subtree(tree.root)[1:]:
        v = tree.parent[u]
        p[u] = p[v] + cost[u, v - n] if u < n else p[v] - cost[v, u - n]
    nodes = np.concatenate([rows, n + cols])
    low, high = p[nodes].min(), p[nodes].max()
    middle = low + (high - low) / 2
    p[nodes] -= middle
    return float(_ROUNDING * (high - middle))
