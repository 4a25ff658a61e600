"""What users get wrong, and the exact sentence that tells them: expected, got, cure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from brenier import (
    KL,
    TV,
    CostMatrix,
    Exact,
    Free,
    Grid,
    InvalidInput,
    MissingExtra,
    PointCloud,
    Problem,
    Ragged,
    Relative,
    assign,
    solve,
)
from brenier.costs import CallableCost, Euclidean, GraphGeodesic, Lp, Mahalanobis
from brenier.errors import need
from brenier.solvers import Assignment, Halving, Monotone, NetworkSimplex, Sinkhorn
from problems import cloud, weights

X, Y = cloud(3, 2, 1), cloud(4, 2, 2)
LINE = cloud(3, 1, 1)
NAN, INF = float("nan"), float("inf")
FRAME = pd.DataFrame(X.numpy(), columns=["u", "v"], index=["p", "q", "r"])
PATH = np.array([[0.0, 1, 0, 0], [1, 0, 2, 0], [0, 2, 0, 0], [0, 0, 0, 0]])  # node 3 is alone
GIBBS = solve(X, Y, epsilon=1.0)
SPARSE = solve(X, Y)
FRAMED = solve(FRAME, FRAME, epsilon=1.0)
MATRIX = solve(CostMatrix(torch.eye(3)))
BATCH = solve(cloud(3, 2, 1, 2), Y, epsilon=1.0)


def _frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def _cells(*genes: str) -> anndata.AnnData:
    return anndata.AnnData(np.ones((2, len(genes)), np.float32), var=pd.DataFrame(index=list(genes)))


COLUMNS = "x and y: expected frames with the same columns"
ONE_ONLY = "one of them only. Select the shared columns of both."
NUMERIC = "Select columns, e.g. frame[['u', 'v']], or convert them."
IMPUTE = "Drop or impute those rows."
DTYPE = "Cast one with .to(dtype); float64 is the safe choice."
NORMALISE = "Normalise both (a / a.sum(), b / b.sum()), or let the masses differ with marginals=KL(rho)."
SIMPLEX = "Use solver='network-simplex'."
TENSOR = "Use torch.as_tensor."
NAMES = "'sqeuclidean', 'euclidean', 'cityblock', 'chebyshev', 'cosine', 'dot'"

# (who is called wrongly, the full message)
CASES: list[tuple[Callable[[], Any], str]] = []

# -- points
CASES += [
    (
        lambda: solve(X),
        "x and y: expected two clouds of points, or one geometry, got None. For a cost matrix: solve(CostMatrix(C)).",
    ),
    (
        lambda: solve(None, Y),
        "x and y: expected two clouds of points, or one geometry, got None. For a cost matrix: solve(CostMatrix(C)).",
    ),
    (lambda: solve(X.where(X > 0, NAN), Y), f"x: expected finite coordinates, got NaN or infinity. {IMPUTE}"),
    (lambda: solve(X, Y + INF), f"y: expected finite coordinates, got NaN or infinity. {IMPUTE}"),
    (lambda: solve(X[:0], Y), "x: expected at least one point and one coordinate, got shape (0, 2)."),
    (lambda: solve(X, Y[:, :0]), "y: expected at least one point and one coordinate, got shape (4, 0)."),
    (lambda: solve([], Y), "x: expected at least one point and one coordinate, got shape (0, 1)."),
    (lambda: solve(torch.tensor(1.0), Y), "x: expected points of shape (*batch, n, d), got shape ()."),
    (
        lambda: solve(X, cloud(4, 3)),
        "x and y: expected points of one dimension, got x of shape (3, 2) and y of shape "
        "(4, 3). Give both clouds the same columns.",
    ),
    (
        lambda: solve(cloud(3, 2, 0, 2), cloud(3, 2, 0, 3)),
        "x and y: expected batch axes that broadcast, got (2,) and (3,).",
    ),
    (lambda: solve(X.float(), Y), f"x and y: expected one dtype, got torch.float32 and torch.float64. {DTYPE}"),
    (lambda: solve(X.long(), Y.float()), f"x and y: expected one dtype, got torch.float64 and torch.float32. {DTYPE}"),
    (lambda: solve(X > 0, Y), "x: expected an array of real numbers, got dtype torch.bool."),
    (lambda: solve(X, np.ones((4, 2), bool)), "y: expected an array of real numbers, got dtype bool."),
    (lambda: solve(X + 1j, Y), "x: expected an array of real numbers, got dtype torch.complex128."),
    (lambda: solve(X.numpy() * 1j, Y), "x: expected an array of real numbers, got dtype complex128."),
    (
        lambda: solve([[1.0, 2.0], [3.0]], Y),
        "x: expected a rectangular array of numbers, got rows of different lengths.",
    ),
    (lambda: solve([["a", "b"]], Y), "x: expected an array of real numbers, got dtype <U1."),
    (lambda: solve({"u": 1}, Y), "x: expected an array of real numbers, got dtype object."),
    (lambda: solve("points.csv", Y), "x: expected an array of real numbers, got dtype <U10."),
    (
        lambda: solve(X.to_sparse(), Y),
        "x: expected a dense tensor, got layout torch.sparse_coo. Call .to_dense() first.",
    ),
    (lambda: PointCloud(X, [None, 1.0]), "y: expected an array of real numbers, got dtype object."),
]

# -- frames
CASES += [
    (lambda: solve(_frame(u=["a", "b"]), _frame(u=[1.0])), f"x: expected numeric columns, got object. {NUMERIC}"),
    (lambda: solve(_frame(u=["1.5", "2"]), _frame(u=[1.0])), f"x: expected numeric columns, got object. {NUMERIC}"),
    (lambda: solve(_frame(u=[1.0]), _frame(u=[True, False])), f"y: expected numeric columns, got bool. {NUMERIC}"),
    (lambda: solve(_frame(u=pd.to_datetime(["2020-01-01"]), v=[1j]), Y),
     f"x: expected numeric columns, got complex128, datetime64[ns]. {NUMERIC}"),
    (lambda: solve(_frame(u=pd.Categorical([1, 2])), _frame(u=[1.0])),
     f"x: expected numeric columns, got category. {NUMERIC}"),
    (lambda: solve(_frame(u=pd.array([1, None], dtype="Int64")), _frame(u=[1.0])),
     f"x: expected finite coordinates, got NaN or infinity. {IMPUTE}"),
    (lambda: solve(FRAME, FRAME.rename(columns={"v": "w"})), f"{COLUMNS}, got v, w in {ONE_ONLY}"),
    (lambda: solve(FRAME, FRAME, a=pd.Series([1.0, 1, 1], index=["p", "q", "z"])),
     "a: expected a Series with the index of x, got one with other labels. Use a.to_numpy() to go by position."),
    (lambda: solve(FRAME, FRAME, b=pd.Series([0.5, 0.5])),
     "b: expected a Series with the index of y, got one with other labels. Use b.to_numpy() to go by position."),
    (lambda: solve(_cells("g", "h"), _cells("g", "k")), f"{COLUMNS}, got h, k in {ONE_ONLY}"),
]  # fmt: skip

# -- devices
CASES += [
    (
        lambda: solve(X, Y.to("meta")),
        "x and y: expected tensors on one device, got cpu and meta. Move one with .to('cpu').",
    ),
    (lambda: solve(X, Y, a=weights(3).to("meta")), "a: expected a tensor on cpu, got meta. Move it with .to('cpu')."),
    (lambda: solve(X.to("meta"), Y.to("meta")), "x: expected a tensor with values, got one on the meta device."),
    (lambda: CostMatrix(X.to("meta")), "cost matrix: expected a tensor with values, got one on the meta device."),
]

# -- weights
CASES += [
    (lambda: solve(X, Y, a=weights(4)), "a: expected 3 weights, one for each point, got shape (4,)."),
    (lambda: solve(X, Y, b=1.0), "b: expected 4 weights, one for each point, got shape ()."),
    (lambda: solve(X, Y, a=weights(3)[:, None]), "a: expected 3 weights, one for each point, got shape (3, 1)."),
    (lambda: solve(X, Y, a=[0.5, 0.7, -0.2]), "a: expected nonnegative weights, got a minimum of -0.2."),
    (lambda: solve(X, Y, a=[0.5, NAN, 0.5]), "a: expected finite weights, got NaN or infinity."),
    (lambda: solve(X, Y, b=[INF, 0, 0, 1]), "b: expected finite weights, got NaN or infinity."),
    (lambda: solve(X, Y, a=[0, 0, 0]), "a: expected positive total mass, got weights that sum to zero."),
    (
        lambda: solve(X, Y, a=[1e308] * 3),
        "a: expected a finite total mass, got NaN or infinity. Normalise: a / a.sum().",
    ),
    (lambda: solve(X, Y, a=[True] * 3), "a: expected an array of real numbers, got dtype bool."),
    (lambda: solve(X, Y, a=["x"] * 3), "a: expected an array of real numbers, got dtype <U1."),
    (
        lambda: solve(X, Y, a=[1, 1, 1]),
        f"a and b: expected equal total masses for exact marginals, got 3 and 1. {NORMALISE}",
    ),
    (
        lambda: solve(X, Y, a=weights(3, 0, 2) * torch.tensor([[1.0], [1.5]]), epsilon=1.0),
        f"a and b: expected equal total masses for exact marginals, got 1.5 and 1. {NORMALISE}",
    ),
    (
        lambda: solve(cloud(3, 2, 0, 2), Y, a=weights(3, 0, 3)),
        "a, b and the geometry: expected batch axes that broadcast, got (3,), () and (2,).",
    ),
]

# -- epsilon and marginals
CASES += [
    *((lambda e=e: solve(X, Y, epsilon=e),
       f"epsilon: expected a positive finite number in cost units, got {e:g}. Use epsilon=None for the exact problem.")
      for e in (0.0, -1, NAN, INF)),
    (lambda: solve(X, Y, epsilon="small"),
     "epsilon: expected a positive number, Relative(fraction) or None, got 'small'."),
    (lambda: solve(X, Y, epsilon=True), "epsilon: expected a positive number, Relative(fraction) or None, got True."),
    (lambda: solve(X, Y, epsilon=torch.tensor(1j)),
     "epsilon: expected an array of real numbers, got dtype torch.complex64."),
    (lambda: solve(X, Y, epsilon=torch.ones(3)), "epsilon: expected one number or shape (), got shape (3,)."),
    (lambda: solve(X.float(), Y.float(), epsilon=1e-60),
     "epsilon: expected a positive finite number in cost units, got 0. Use epsilon=None for the exact problem."),
    *((lambda r=r: Relative(r), f"Relative: expected a positive finite fraction of the mean cost, got {r!r}.")
      for r in (0, -0.1, NAN, INF, "a", True, None)),
    (lambda: solve(X[:1], X[:1], epsilon=Relative(0.1)), "epsilon=Relative(...): expected a positive finite mean cost, "
                                                         "got 0. Give epsilon as a number in cost units."),
    *((lambda r=r: KL(r), f"KL rho: expected a positive finite number in cost units, got {r!r}. Use Exact() for a hard "
                          "one.") for r in (0, -1.0, NAN, INF, "1", True)),
    (lambda: solve(X, Y, marginals=(Exact(), Exact(), Exact())),
     "marginals: expected a Marginal such as Exact() or KL(rho), or a pair of them, got (Exact(), Exact(), Exact())."),
    (lambda: solve(X, Y, marginals="exact"),
     "marginals: expected a Marginal such as Exact() or KL(rho), or a pair of them, got 'exact'."),
    (lambda: Problem.make(PointCloud(X, Y), marginals=(Exact(), 1.0)),
     "marginals: expected a Marginal such as Exact() or KL(rho), or a pair of them, got (Exact(), 1.0)."),
    (lambda: solve(X, Y, marginals=KL(1.0)),
     "epsilon: expected a value, as the penalty of KL(rho=1.0) is not piecewise linear, got None. "
     "Give epsilon=Relative(0.01), say, or use TV(rho)."),
    (lambda: solve(CostMatrix(-torch.ones(2, 2)), marginals=Free()),
     "marginals: expected costs that do not pay for more and more mass: c + rho_a + rho_b >= 0 for all pairs, got -1 "
     "for one. Raise rho, or fix a side or its mass."),
    (lambda: solve(CostMatrix(torch.ones(2, 2)), marginals=(TV(torch.tensor([1.0, torch.inf])), Exact())),
     "marginals: expected finite prices without an epsilon, got infinity. Use Exact() or a large price."),
]  # fmt: skip

# -- geometries
CASES += [
    (lambda: CostMatrix(torch.ones(3)), "cost matrix: expected shape (*batch, n, m), got shape (3,)."),
    (lambda: CostMatrix(torch.ones(0, 3)), "cost matrix: expected at least one row and one column, got shape (0, 3)."),
    (lambda: CostMatrix([[NAN]]), "cost matrix: expected finite entries, got NaN or infinity. "
                                  "Replace forbidden pairs by a large finite cost."),
    (lambda: CostMatrix("C"), "cost matrix: expected an array of real numbers, got dtype <U1."),
    (lambda: Grid(), "Grid axes: expected at least one axis, got none."),
    (lambda: Grid(4, 0), "Grid axis 1: expected at least one node, got 0."),
    (lambda: Grid(True), "Grid axis 0: expected an array of real numbers, got dtype bool."),
    (lambda: Grid(3.0), "Grid axis 0: expected a number of nodes or coordinates (N_k,), got shape ()."),
    (lambda: Grid(2, [[0.0, 1.0]]), "Grid axis 1: expected a number of nodes or coordinates (N_k,), got shape (1, 2)."),
    (lambda: Grid([0.0, NAN]), "Grid axis 0: expected finite coordinates, got NaN or infinity."),
    (lambda: Grid(2, torch.arange(3.0)),
     f"Grid axis 0 and Grid axis 1: expected one dtype, got torch.float64 and torch.float32. {DTYPE}"),
    (lambda: Grid(2, dtype=torch.int64), "Grid dtype: expected torch.float32 or torch.float64, got torch.int64."),
    *((lambda p=p: Grid(2, p=p), f"Grid p: expected a finite number >= 1, got {p!r}.") for p in (0.5, NAN, INF, "2")),
    (lambda: PointCloud(X, Y).softmin(torch.zeros(4), 1.0, 2),
     "dim: expected 1 (reduce the columns) or 0 (reduce the rows), got 2."),
    (lambda: PointCloud(X, Y).softmin(torch.zeros(3), 1.0), "h: expected last axis of length 4, got shape (3,)."),
    (lambda: PointCloud(X, Y).cmin(np.zeros(4)), f"h: expected a tensor, got ndarray. {TENSOR}"),
    (lambda: PointCloud(X, Y).softmin(torch.zeros(4), 0.0),
     "epsilon: expected a positive finite number in cost units, got 0.0."),
    (lambda: Grid(4).softmin(torch.zeros(4), -1),
     "epsilon: expected a positive finite number in cost units, got -1."),
    (lambda: PointCloud(X, Y).apply(torch.zeros(3), torch.zeros(3), 1.0, torch.zeros(4)),
     "g: expected last axis of length 4, got shape (3,)."),
    (lambda: solve(PointCloud(X, Y), Y), "y: expected None, as the geometry holds both sides, got Tensor."),
    (lambda: solve(CostMatrix(torch.eye(2)), cost="euclidean"), "cost: expected none, as the geometry holds its own, "
                                                                "got 'euclidean'. Give it to PointCloud(x, y, cost)."),
]  # fmt: skip

# -- costs
CASES += [
    (lambda: solve(X, Y, cost="manhattan"), f"cost: expected one of {NAMES}, a Cost or a function, got 'manhattan'."),
    (lambda: solve(X, Y, cost=2), "cost: expected a name, a Cost or a function of (x, y), got int."),
    (lambda: solve(X, Y, cost=Euclidean), "cost: expected a Cost, got the class Euclidean. Make one: Euclidean(...)."),
    (
        lambda: solve(X, Y, cost=lambda x, y: (x - y).abs()),
        "cost function: expected a tensor of shape (3, 4) from x (3, 1, 2) and y (1, 4, 2), got (3, 4, 2). It must "
        "broadcast over the leading axes and reduce the last one, like (x - y).abs().sum(-1).",
    ),
    (
        lambda: PointCloud(X, Y, CallableCost(lambda x, y: 1.0)).tile(),
        "cost function: expected a tensor of shape (3, 4) from x (3, 1, 2) and y (1, 4, 2), got float. It must "
        "broadcast over the leading axes and reduce the last one, like (x - y).abs().sum(-1).",
    ),
    (
        lambda: solve(X, Y, cost=lambda x, y: (x - y).sum(-1).log()),
        "cost: expected finite values between all pairs, got NaN or infinity. Rescale the points, or mend the cost.",
    ),
    (
        lambda: solve(1e200 * X, Y),
        "cost: expected finite values between all pairs, got NaN or infinity. Rescale the points, or mend the cost.",
    ),
    (
        lambda: solve(1e200 * LINE, LINE),
        "cost: expected finite values between all pairs, got NaN or infinity. Rescale the points, or mend the cost.",
    ),
    *((lambda p=p: Lp(p), f"Lp p: expected a number >= 1 or math.inf, got {p!r}.") for p in (0.5, NAN, "2")),
    *((lambda p=p: Lp(2, p), f"Lp power: expected a positive finite number, got {p!r}.") for p in (0, -1, INF, "2")),
    (
        lambda: Mahalanobis(torch.ones(2, 3)),
        "Mahalanobis precision: expected a square matrix (d, d), got shape (2, 3).",
    ),
    (
        lambda: Mahalanobis(torch.ones(0, 0)),
        "Mahalanobis precision: expected a square matrix (d, d), got shape (0, 0).",
    ),
    (
        lambda: Mahalanobis(torch.tensor([[1.0, 2.0], [0.0, 1.0]])),
        "Mahalanobis precision: expected a symmetric matrix, got an asymmetric one. Use (M + M.T) / 2.",
    ),
    (
        lambda: Mahalanobis(torch.diag(torch.tensor([1.0, -2.0]))),
        "Mahalanobis precision: expected no negative eigenvalue, got -2. Add a multiple of the identity.",
    ),
    (lambda: Mahalanobis([[NAN]]), "Mahalanobis precision: expected finite entries, got NaN or infinity."),
    (lambda: Mahalanobis("M"), "Mahalanobis precision: expected an array of real numbers, got dtype <U1."),
    (
        lambda: solve(X, Y, cost=Mahalanobis(torch.eye(3))),
        "Mahalanobis precision: expected shape (2, 2) to match the points, got (3, 3).",
    ),
    (lambda: GraphGeodesic(np.ones((2, 3))), "adjacency: expected a square matrix (V, V), got shape (2, 3)."),
    (lambda: GraphGeodesic("graph"), "adjacency: expected a square matrix (V, V), got str."),
    (lambda: GraphGeodesic(-PATH), "adjacency: expected nonnegative edge lengths, got -2.0."),
    (lambda: GraphGeodesic(PATH * 1j), "adjacency: expected real edge lengths, got dtype complex128."),
    (lambda: GraphGeodesic(PATH, power=0), "GraphGeodesic power: expected a positive finite number, got 0."),
    (
        lambda: solve([0, 1], [3], cost=GraphGeodesic(PATH)),
        "GraphGeodesic: expected every target to be reachable, got no path from node 0 to node 3. Keep one connected "
        "component, or add a long edge between components.",
    ),
    (
        lambda: solve([0, 7], [1], cost=GraphGeodesic(PATH)),
        "x with GraphGeodesic: expected node indices in 0..3, got 0..7.",
    ),
    (
        lambda: solve([0.0], [0.5], cost=GraphGeodesic(PATH)),
        "y with GraphGeodesic: expected whole numbers, the indices of nodes, got 0.5.",
    ),
    (
        lambda: solve(X, Y, cost=GraphGeodesic(PATH)),
        "x with GraphGeodesic: expected node indices of shape (n,) or (n, 1), got shape (3, 2).",
    ),
]

# -- solvers and options
CASES += [
    (
        lambda: solve(X, Y, solver="magic"),
        "solver: expected one of 'auto', 'sinkhorn', 'sinkhorn-newton', 'symmetric-sinkhorn', 'newton-path', "
        "'multiscale', 'sns', 'newton', 'network-simplex', 'monotone', 'partial-monotone', 'circle', 'flow', "
        "'dual-ascent', 'annealing', 'assignment', 'low-rank', 'hierarchical' or a Solver, got 'magic'.",
    ),
    (
        lambda: solve(X, Y, solver=3),
        "solver: expected one of 'auto', 'sinkhorn', 'sinkhorn-newton', 'symmetric-sinkhorn', 'newton-path', "
        "'multiscale', 'sns', 'newton', 'network-simplex', 'monotone', 'partial-monotone', 'circle', 'flow', "
        "'dual-ascent', 'annealing', 'assignment', 'low-rank', 'hierarchical' or a Solver, got 3.",
    ),
    (
        lambda: solve(X, Y, solver="sinkhorn"),
        "sinkhorn: expected an epsilon, got None. Give epsilon=Relative(0.05), or solver='network-simplex'.",
    ),
    (
        lambda: solve(X, Y, epsilon=0.5, solver="network-simplex"),
        "network-simplex: expected epsilon=None, got epsilon=0.5. Use solver='sinkhorn'.",
    ),
    (
        lambda: solve(X, Y, marginals=KL(1.0), solver="network-simplex"),
        "network-simplex: expected marginals with piecewise linear penalties, got KL(rho=1.0). Give an epsilon, or use "
        "TV(rho).",
    ),
    (
        lambda: solve(LINE, LINE, marginals=KL(1.0), solver="monotone"),
        "monotone: expected exact marginals, got (KL(rho=1.0), KL(rho=1.0)). Give an epsilon for soft ones.",
    ),
    (
        lambda: solve(LINE, LINE, epsilon=0.5, solver="monotone"),
        "monotone: expected epsilon=None, got epsilon=0.5. Use solver='sinkhorn'.",
    ),
    (
        lambda: solve(X, Y, solver="monotone"),
        "monotone: expected points on a line (d = 1), got PointCloud(x=(3, 2), y=(4, 2), cost=SqEuclidean(), "
        f"dtype=torch.float64). {SIMPLEX}",
    ),
    (
        lambda: solve(LINE, LINE, cost="cosine", solver="monotone"),
        "monotone: expected a cost that is convex in x - y, got Cosine(). Use solver='network-simplex', or "
        "CallableCost(function, convex_on_line=True).",
    ),
    *(
        (lambda t=t: Sinkhorn(tol=t), f"tol: expected a finite number > 0, got {t!r}.")
        for t in (0, -1e-3, NAN, True, "a")
    ),
    *(
        (lambda k=k: solve(X, Y, max_iter=k), f"max_iter: expected a positive integer, got {k!r}.")
        for k in (0, 2.5, "9")
    ),
    (lambda: solve(X, Y, tol=-1.0), "tol: expected a positive finite number, got -1.0."),
    (lambda: Sinkhorn(max_iter=2.5), "max_iter: expected a positive integer, got 2.5."),
    (lambda: Monotone(max_iter=0), "max_iter: expected a positive integer, got 0."),
    (lambda: NetworkSimplex(max_iter=True), "max_iter: expected a positive integer, got True."),
    (lambda: NetworkSimplex(max_pivots=0), "max_pivots: expected a positive integer, got 0."),
    (lambda: NetworkSimplex(engine="gpu"), "engine: expected 'auto', 'native' or 'reference', got 'gpu'."),
    (lambda: NetworkSimplex(pairs="some"), "pairs: expected 'auto', 'dense' or 'lazy', got 'some'."),
    (
        lambda: solve(X, Y, solver=NetworkSimplex(f=torch.zeros(4))),
        "network-simplex start f: expected last axis of length 3, got shape (4,).",
    ),
    (
        lambda: solve(X, Y, epsilon=1.0, solver=Sinkhorn(g=torch.zeros(3))),
        "sinkhorn start g: expected last axis of length 4, got shape (3,).",
    ),
    (
        lambda: solve(X, Y, epsilon=1.0, solver=Sinkhorn(f=np.zeros(3))),
        f"sinkhorn start f: expected a tensor, got ndarray. {TENSOR}",
    ),
    (
        lambda: Sinkhorn(schedule="halving"),
        "schedule: expected a Schedule such as Halving() or Fixed(), got 'halving'.",
    ),
    *(
        (lambda r=r: Halving(r), f"Halving factor: expected a number in (0, 1), got {r!r}.")
        for r in (0, 1, 1.5, NAN, "a")
    ),
    (lambda: solve(X, Y, adjoint="envelope"), "adjoint: expected an Adjoint such as Envelope(), got 'envelope'."),
    (lambda: solve(X, Y, generator=0), "generator: expected a torch.Generator or None, got int."),
    (lambda: solve(X, Y, callback=3), "callback: expected a function of (iteration, state) or None, got 3."),
]

# -- assignment
PARTLY = "Use assign(x, y, price=...) to leave points unmatched."
FORBIDDEN = torch.tensor([[1.0, INF], [2.0, INF]])
CASES += [
    (
        lambda: solve(X, Y, solver="assignment"),
        "assignment: expected as many sources as targets, of equal masses, got 3 and 4. Use solver='network-simplex', "
        "or assign(x, y) for pairs of unequal sides.",
    ),
    (
        lambda: solve(X, X, a=[0.2, 0.3, 0.5], solver="assignment"),
        "assignment: expected as many sources as targets, of equal masses, got unequal masses. Use "
        "solver='network-simplex', or assign(x, y) for pairs of unequal sides.",
    ),
    (
        lambda: solve(X, X, marginals=KL(1.0), solver="assignment"),
        f"assignment: expected exact marginals, got (KL(rho=1.0), KL(rho=1.0)). {PARTLY}",
    ),
    (
        lambda: solve(X, X, epsilon=0.5, solver="assignment"),
        "assignment: expected epsilon=None, got epsilon=0.5. Use solver='sinkhorn'.",
    ),
    (lambda: Assignment(engine="gpu"), "engine: expected 'auto', 'native' or 'reference', got 'gpu'."),
    (
        lambda: solve(X, X, solver=Assignment(g=torch.zeros(4))),
        "assignment start g: expected last axis of length 3, got shape (4,).",
    ),
    *((lambda k=k: assign(X, Y, max_pairs=k), f"max_pairs: expected an integer from 1 to 3, got {k!r}.")
      for k in (0, 4, 2.5, True)),
    *((lambda p=p: assign(X, Y, price=p), f"price: expected a finite number or None, got {p!r}.")
      for p in (INF, NAN, "a", True)),
    (
        lambda: assign(FORBIDDEN),
        "cost: expected finite costs for 2 pairs, got forbidden pairs (infinite costs) that leave room for fewer. Ask "
        "for fewer (max_pairs), or name the price of a pair (price=...).",
    ),
    *((lambda c=c: assign(FORBIDDEN + c), "cost matrix: expected finite entries, got NaN or infinity. Replace "
       "forbidden pairs by a large finite cost.") for c in (NAN, -INF)),
    (lambda: assign(torch.ones(3)), "cost matrix: expected shape (*batch, n, m), got shape (3,)."),
    (lambda: assign(None, Y), "x and y: expected two clouds of points, or one geometry, got None. For a cost matrix: "
     "solve(CostMatrix(C))."),
    (lambda: assign(Ragged.from_list([X], [Y])), "assign: expected problems of one size, got "
     f"{Ragged.from_list([X], [Y])!r}. Call it for each, or pad costs with infinity."),
]  # fmt: skip

# -- plans, potentials and maps
CASES += [
    *((lambda s=s: s.plan @ torch.ones(3), "plan @ v: expected v of shape (4) or (4, k), got shape (3,).")
      for s in (GIBBS, SPARSE)),
    (lambda: GIBBS.plan @ 1.0, "plan @ v: expected v of shape (4) or (4, k), got shape ()."),
    (lambda: SPARSE.plan @ torch.ones(2, 4, 1), "plan @ v: expected v of shape (4) or (4, k), got shape (2, 4, 1)."),
    (lambda: GIBBS.plan.T @ torch.ones(4), "plan @ v: expected v of shape (3) or (3, k), got shape (4,)."),
    (lambda: BATCH.plan @ torch.ones(4), "plan @ v: expected v of shape (2, 4) or (2, 4, k), got shape (4,)."),
    (lambda: GIBBS.plan @ "v", "v: expected an array of real numbers, got dtype <U1."),
    *((lambda k=k: GIBBS.plan.topk(k), f"topk k: expected a positive integer, got {k!r}.") for k in (0, -1, 2.5, True)),
    *((lambda k=k: SPARSE.plan.entries(max_per_row=k), f"max_per_row: expected a positive integer, got {k!r}.")
      for k in (0, 1.5)),
    *((lambda t=t: GIBBS.plan.sparse(threshold=t), f"threshold: expected a finite mass >= 0, got {t!r}.")
      for t in (-1, NAN, "a")),
    *((lambda m=m: getattr(BATCH.plan, m)(*([2] if m == "topk" else [])), f"plan.{m}: expected a plan without batch "
       "axes, got batch (2,). Use plan.dense().") for m in ("topk", "entries", "sparse")),
    (lambda: MATRIX.plan.barycentric(),
     "barycentric y: expected target positions (the geometry holds none), got None. Pass y=..."),
    *((lambda y=y: GIBBS.plan.barycentric(y), "barycentric y: expected shape (*batch, 4, k), one row for each target, "
       f"got shape {tuple(y.shape)}.") for y in (torch.ones(4), torch.ones(3, 2))),
    *((lambda s=s: s.map(torch.ones(5, 3)),
       "new points: expected shape (*batch, k, 2), like the solution's own, got shape (5, 3).")
      for s in (GIBBS, SPARSE)),
    (lambda: GIBBS.potentials(torch.full((1, 2), NAN)),
     f"new points: expected finite coordinates, got NaN or infinity. {IMPUTE}"),
    (lambda: SPARSE.potentials.target(["a", "b"]), "new points: expected an array of real numbers, got dtype <U1."),
    (lambda: MATRIX.map(torch.ones(5, 3)),
     "new points: expected a solution on a PointCloud, got one on a CostMatrix."),
    (lambda: FRAMED.map(FRAME.rename(columns={"u": "w"})),
     "new points: expected the columns of the solution's own points, got a frame without u."),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda k: f"{k}-{CASES[k][1].partition(', got')[0]}")
def test_message(index: int) -> None:
    call, message = CASES[index]
    with pytest.raises(InvalidInput) as caught:
        call()
    assert str(caught.value) == message
    assert re.fullmatch(r"[^:]+: expected .+, got .+\.", message), "not in the form: expected, got, cure"


def test_there_are_enough() -> None:
    assert len(CASES) >= 60
    assert issubclass(InvalidInput, ValueError)


def test_negative_mean_cost() -> None:
    with pytest.raises(InvalidInput, match=r"expected a positive finite mean cost, got -.*Give epsilon as a number"):
        solve(X, X + 10 * X.sign(), cost="dot", epsilon=Relative(0.1))


def test_unknown_words_are_refused_by_python() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'reg'"):
        solve(X, Y, reg=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        solve(X, Y, weights(3))  # type: ignore[misc]


def test_too_many_pairs_for_an_exact_solve_without_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brenier.solvers.exact.simplex.DENSE_LIMIT", 10)
    monkeypatch.setattr("brenier.solvers.exact.simplex.native", None)
    message = (
        "network-simplex without a cost matrix: expected the native engine, got an installation without it. Reinstall "
        "brenier with a C++20 compiler, ask for pairs='dense' and 0.0 GB, or give epsilon=Relative(0.01), which needs "
        "no matrix."
    )
    with pytest.raises(InvalidInput) as caught:
        solve(X, Y)
    assert str(caught.value) == message


def test_a_missing_extra_says_how_to_install_it() -> None:
    with pytest.raises(MissingExtra) as caught:
        need("no_such_module.part", "plot", "The picture")
    assert str(caught.value) == (
        "The picture needs the package 'no_such_module', which is not installed. "
        "Install it with: pip install 'brenier[plot]'"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_two_devices() -> None:
    with pytest.raises(InvalidInput, match="expected tensors on one device, got cpu and cuda:0"):
        solve(X, Y.cuda())
