"""The front door of quadratic problems: `gromov_wasserstein` matches spaces that share no coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._inputs import Kind, is_count, kind_of, matrix_kind, same_columns, same_rows, weights_tensor
from .costs import Cost, GraphGeodesic, as_cost
from .errors import refuse
from .geometry import CostMatrix, Geometry, PointCloud, Ragged
from .marginals import Exact, Marginal
from .plan import Plan
from .problem import Relative
from .solvers import Solver, run
from .solvers.base import tuned
from .solvers.structure.common import as_plan
from .solvers.structure.gradient import ConditionalGradient
from .solvers.structure.lowrank import LowRankGromov
from .solvers.structure.mirror import Mirror, Proximal
from .solvers.structure.quantized import Quantized
from .solvers.structure.solution import GromovSolution
from .solvers.structure.starts import MultiStart
from .structure import Quadratic, dense

__all__ = ["GromovBarycentre", "gromov_barycentre", "gromov_wasserstein", "pad_structures", "read_structure"]

Inner = str | Cost | Callable[[Tensor, Tensor], Tensor]
_STARTS = 2
_SOLVERS: dict[str, Callable[[], Solver[Any]]] = {
    "conditional-gradient": ConditionalGradient,
    "proximal": Proximal,
    "mirror": Mirror,
    "quantized": Quantized,
    "low-rank": LowRankGromov,
}


def gromov_wasserstein(
    x: Any,
    y: Any,
    *,
    a: Any = None,
    b: Any = None,
    cost: Inner | tuple[Inner, Inner] | None = None,
    features: Any = None,
    feature_cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    alpha: float | None = None,
    loss: str = "square",
    epsilon: float | Relative | Tensor | None = None,
    marginals: Marginal | tuple[Marginal, Marginal] = (Exact(), Exact()),
    solver: str | Solver[Any] = "auto",
    starts: int | Sequence[Any] | Plan | None = None,
    tol: float | None = None,
    max_iter: int | None = None,
    throw: bool = False,
    progress: bool = False,
    callback: Callable[[int, Any], bool | None] | None = None,
    timeout: float | None = None,
    generator: torch.Generator | None = None,
) -> GromovSolution:
    r"""Match two spaces by what is inside each: distances among the points of x against distances among those of y.

    Minimises, over plans P >= 0 with P1 = a and P^T 1 = b,

        (1 - alpha) <P, M> + alpha sum_ii'jj' L(C_ii', D_jj') P_ij P_i'j' + eps KL(P | a ⊗ b)

    which is not convex: the answer is the best stationary point of several starts, with a lower bound that says how
    much better any plan could be. The value is a cost, the square of the Gromov-Wasserstein distance for the square
    loss between distances. Leading axes are a batch of problems, solved together, each with a value, plan, certificate
    and status of its own; they broadcast, as for one space against many.

    Args:
        x, y: two spaces, each in one of these forms. Points (*batch, n, d) in any dimension, also AnnData (its X); a
            graph, as a networkx graph or a SciPy sparse adjacency matrix; square matrices (*batch, n, n) with
            cost="precomputed"; or a geometry of the points among themselves, `CostMatrix(C)` or `PointCloud(x)`. Spaces
            of different sizes are made one batch by `pad_structures`, clouds also by `Ragged.from_list(x, x)`.
        a, b: masses (*batch, n) and (*batch, m); uniform with total 1 when None. Points without mass are no part of the
            problem, whatever their distances; but without epsilon a side that is `Free()` takes mass at all its points.
        cost: the structure: between points as for `solve`, "sqeuclidean" when None; of a graph "shortest-path" when
            None, or "adjacency"; "precomputed" for a matrix. A pair if they differ.
        features: a cost M (*batch, n, m), a geometry, or a pair of clouds (*batch, n, d) and (*batch, m, d), for fused
            problems.
        feature_cost: between the clouds of that pair.
        alpha: weight of structure against features, in [0, 1]: 0 is transport between features, 1 ignores them. 1/2
            when None.
        loss: "square", (u - v)^2, or "kl", u log(u / v) - u + v, for positive entries.
        epsilon: entropic strength in units of the objective, a number or one for each item; `Relative(0.01)` is 0.01 x
            the objective of a ⊗ b.
        marginals: as for `solve`. Without epsilon: exact ones, (Exact(), Free()), which is semi-relaxed, or
            `Partial(mass)` on both sides. `KL(rho)` is quadratic here, see `Quadratic`.
        solver: "auto", "conditional-gradient", "proximal", "mirror", "quantized", "low-rank", or one of these as an
            object. "auto" is "mirror" with an epsilon, "conditional-gradient" without. `Quantized(anchors)` and
            `LowRankGromov(rank)` are for large clouds, one problem at a time.
        starts: how many: a ⊗ b, then the plan of the third lower bound, then random vertices. Or a plan, a matrix
            (*batch, n, m) or a sequence of these, which are then all there are. Two when None, or what
            the solver has.
        tol: of the local solver.
        max_iter: linear problems for each start.
        throw: raise `NotConverged` when the tolerance is not met; otherwise warn and report in `solution.status`.
        progress: show a progress bar over the starts.
        callback: `callback(start, state)` after each start; a true answer ends the solve with the best so far.
        timeout: seconds of wall time after which the solve ends with the best so far.
        generator: of random starts, on the CPU.

    Returns:
        A `GromovSolution`: value, structure_value, linear_value (*batch,), plan, potentials, certificate, statuses,
        stats.

    Raises:
        InvalidInput: an argument breaks a rule; the message says what was expected, what came, and the cure.
        NotConverged: with `throw=True`.

    Complexity: computed in float64. For points with an inner-product cost (squared Euclidean, dot, cosine) and the
    square loss, O(n + m) memory and O((n + m) d^2) time for each linear problem, which itself takes O(n m d) or more;
    in all other cases, and for batches, the matrices are formed, and each costs O(n m (n + m)), for each item until it
    has converged. A batch takes its linear problems together, but for exact ones that are no permutations, which are
    solved one after the other.

    Source: Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching; Peyré, Cuturi &
    Solomon (2016), Gromov-Wasserstein averaging of kernel and distance matrices; Vayer et al. (2019), Optimal
    transport for structured data.

    Example:
        >>> import torch, brenier
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [2.0, 5.0]])
        >>> order = torch.tensor([2, 0, 3, 1])
        >>> turned = torch.stack([-x[order, 1], x[order, 0]], 1) + 7
        >>> solution = brenier.gromov_wasserstein(x, turned)
        >>> solution.plan.argmax().tolist(), abs(float(solution.value)) < 1e-6
        ([1, 3, 0, 2], True)
        >>> brenier.gromov_wasserstein(torch.stack([x, 2 * x]), turned).value.shape  # two problems
        torch.Size([2])
    """
    costs = cost if isinstance(cost, tuple) else (cost, cost)
    if len(costs) != 2:
        refuse("cost", "one cost or a pair of them", repr(cost))
    (kind_x, left), (kind_y, right) = read_structure(x, costs[0], "x"), read_structure(y, costs[1], "y")
    if left.dtype != right.dtype and kind_x.name == kind_y.name == "torch":
        refuse("x and y", "one dtype", f"{left.dtype} and {right.dtype}", "Cast one with .to(dtype).")
    right = right.to(left.dtype)
    kind = replace(kind_x, rows_y=kind_y.rows_x, columns=kind_y.columns)
    problem = Quadratic.between(
        left,
        right,
        same_rows(a, x, "a", "x"),
        same_rows(b, y, "b", "y"),
        features=_read_features(features, feature_cost, left),
        alpha=alpha,
        loss=loss,
        marginals=marginals,
        epsilon=epsilon,
    )
    if generator is not None and not isinstance(generator, torch.Generator):
        refuse("generator", "a torch.Generator or None", type(generator).__name__)
    chosen, reason = _choose(solver, problem)
    local = tuned(chosen, tol, max_iter, None, generator)
    plans: tuple[Plan, ...] = ()
    count = local.starts if isinstance(local, Quantized | LowRankGromov) else _STARTS
    if isinstance(starts, int) and is_count(starts):
        count = starts
    elif starts is not None:
        given = [starts] if isinstance(starts, Plan | Tensor | np.ndarray) else starts
        if not isinstance(given, Sequence) or isinstance(given, str) or not len(given):
            refuse("starts", "a positive integer, or plans to start from", repr(starts))
        plans = tuple(as_plan(s, problem) for s in given)
        count = len(plans)
    if isinstance(local, Quantized | LowRankGromov):  # its starts are between anchors or clusters
        if problem.batch_shape:
            got = f"batch {tuple(problem.batch_shape)}"
            refuse(local.name, "one problem", got, "Loop over them, or use ConditionalGradient() or Mirror().")
        if plans:
            refuse(
                "starts", f"a number for solver={local.name!r}", "plans", "They would be between anchors or clusters."
            )
        top: Solver[Any] = replace(local, starts=count)
    else:
        top = MultiStart(max_iter=count, solver=local, plans=plans, generator=generator)
    solution = run(
        problem,
        top,
        kind=kind,
        reason=reason,
        throw=throw,
        progress=progress,
        callback=callback,
        timeout=timeout,
        answer=GromovSolution,
    )
    assert isinstance(solution, GromovSolution)
    return solution


def pad_structures(
    spaces: Sequence[Any], masses: Sequence[Any] | None = None, *, cost: Inner | None = None
) -> tuple[Geometry, Any]:
    """Make spaces of different sizes one batch: a geometry for all, and masses that are zero beyond the end of each.

    Clouds stay clouds, padded with their first points; everything else becomes matrices padded with zeros. Points
    without mass are no part of a problem, so that each item has the value it has alone.

    Args:
        spaces: each as for `gromov_wasserstein`, without batch axes: clouds (n_k, d), graphs, matrices, geometries.
        masses: (n_k,) of each; uniform with total 1 when None.
        cost: the structure of all, as for `gromov_wasserstein`.

    Returns:
        The geometry, (problems, n, n) for the largest n, and the masses (problems, n).

    Raises:
        InvalidInput: no spaces, batch axes, masses that do not fit, and what `gromov_wasserstein` refuses.

    Complexity: O(problems n d) memory for clouds, O(problems n^2) for others.

    Example:
        >>> import networkx as nx, brenier
        >>> x, a = brenier.pad_structures([nx.path_graph(n) for n in (4, 5, 6)])
        >>> y, b = brenier.pad_structures([nx.cycle_graph(n) for n in (6, 5, 4)])
        >>> solution = brenier.gromov_wasserstein(x, y, a=a, b=b)
        >>> solution.value.shape, solution.plan.dense().shape
        ((3,), (3, 6, 6))
    """
    if not isinstance(spaces, list | tuple) or not spaces:
        refuse("spaces", "a list of spaces", f"{type(spaces).__name__}, or an empty one")
    read = [read_structure(x, cost, f"spaces[{k}]") for k, x in enumerate(spaces)]
    kind, like = read[0][0], read[0][1].tensors[0]
    sides = [side.to(like.dtype) for _, side in read]
    for k, side in enumerate(sides):
        if side.batch_shape or side.shape[0] != side.shape[1]:
            refuse(f"spaces[{k}]", "one space, without batch axes", f"shape {(*side.batch_shape, *side.shape)}")
    given = [None] * len(sides) if masses is None else list(masses)
    if len(given) != len(sides):
        refuse("masses", f"one for each of the {len(sides)} spaces", f"{len(given)}")
    sizes = [side.shape[0] for side in sides]
    weights = [weights_tensor(w, n, f"masses[{k}]", like) for k, (w, n) in enumerate(zip(given, sizes))]
    longest = max(sizes)
    clouds = [side for side in sides if isinstance(side, PointCloud) and torch.equal(side.x, side.y)]
    first = clouds[0] if clouds else None
    if first is not None and len(clouds) == len(sides) and all(_alike(cloud, first) for cloud in clouds):
        points = [torch.cat([c.x, c.x[:1].expand(longest - len(c.x), -1)]) for c in clouds]
        out: Geometry = PointCloud(torch.stack(points), None, first.ground)
    else:
        tiles = [torch.nn.functional.pad(side.tile(), (0, longest - n) * 2) for side, n in zip(sides, sizes)]
        out = CostMatrix(torch.stack(tiles))
    out.kind = replace(kind, rows_x=None, rows_y=None)
    return out, kind.array(Ragged.pad(weights))


def _alike(cloud: PointCloud, other: PointCloud) -> bool:
    """Whether two clouds are of one dimension and one cost."""
    return cloud.x.shape[-1] == other.x.shape[-1] and (cloud.ground is other.ground or cloud.ground == other.ground)


def read_structure(x: Any, cost: Any, name: str) -> tuple[Kind, Geometry]:
    """Read one space as a geometry of its points among themselves, and the container it came in.

    Args:
        x: points, a graph, a matrix or a geometry.
        cost: as for `gromov_wasserstein`.
        name: "x" or "y", for messages.

    Raises:
        InvalidInput: not square where a matrix is meant, graphs whose nodes cannot all be reached, infinite entries.
    """
    if isinstance(x, Geometry):
        if cost is not None:
            refuse("cost", f"none, as the geometry {name} holds its own", repr(cost))
        return x.kind, x
    if x is None:
        refuse(name, "points, a graph, a matrix or a geometry", "None")
    graph = _graph(x)
    if graph is not None:
        if cost is None or cost == "shortest-path":
            nodes = torch.arange(graph.shape[0])
            return Kind("numpy"), CostMatrix(GraphGeodesic(graph, directed=_directed(x)).matrix(nodes, nodes))
        if cost != "adjacency":
            refuse(f"cost of the graph {name}", "'shortest-path' or 'adjacency'", repr(cost))
        return Kind("numpy"), CostMatrix(torch.from_numpy(np.asarray(graph.toarray(), dtype=np.float64)))
    if isinstance(cost, str) and cost == "precomputed":
        matrix = CostMatrix(x)
        return matrix_kind(x), matrix
    if isinstance(cost, str) and cost in ("shortest-path", "adjacency"):
        refuse(name, f"a networkx graph or a SciPy sparse matrix for cost={cost!r}", type(x).__name__)
    cloud = PointCloud(x, None, as_cost("sqeuclidean" if cost is None else cost))
    return kind_of(x), cloud


def _graph(x: Any) -> Any:
    """The adjacency matrix of a graph, as a SciPy sparse array; None for what is not a graph."""
    if type(x).__module__.partition(".")[0] == "networkx":
        import networkx

        if not len(x):
            refuse("graph", "at least one node", "none")
        return networkx.to_scipy_sparse_array(x, dtype=float)
    if hasattr(x, "toarray") and hasattr(x, "tocsr"):
        return x.tocsr()
    return None


def _directed(x: Any) -> bool:
    """Whether edges go one way: as networkx says, or where a matrix is not symmetric."""
    if hasattr(x, "is_directed"):
        return bool(x.is_directed())
    return bool(abs(x - x.T).max() > 0)


def _read_features(features: Any, cost: Any, like: Geometry) -> Geometry | None:
    if features is None:
        return None
    if isinstance(features, Geometry):
        return features.to(like.dtype)
    if isinstance(features, tuple | list) and len(features) == 2:
        return PointCloud(*same_columns(*features), cost).to(like.dtype)
    return CostMatrix(features).to(like.dtype)


def _choose(solver: str | Solver[Any], problem: Quadratic) -> tuple[Solver[Any], str]:
    if isinstance(solver, Solver):
        return solver, "asked for"
    if not isinstance(solver, str) or solver not in ("auto", *_SOLVERS):
        refuse("solver", "one of 'auto', " + ", ".join(map(repr, _SOLVERS)) + " or a Solver", repr(solver))
    if solver != "auto":
        return _SOLVERS[solver](), "asked for"
    if problem.epsilon is not None:
        return Mirror(), "an epsilon was given"
    return ConditionalGradient(), "no epsilon was given"


class GromovBarycentre(NamedTuple):
    """A structure between others, and how it got there."""

    structure: Any  # (n, n)
    value: Any  # sum_s weights_s GW(structure, C_s)
    values: tuple[float, ...]  # after each iteration
    solutions: tuple[GromovSolution, ...]  # from the barycentre to each


def gromov_barycentre(
    structures: Sequence[Any],
    size: int,
    *,
    weights: Any = None,
    cost: Inner | None = None,
    masses: Sequence[Any] | None = None,
    a: Any = None,
    loss: str = "square",
    epsilon: float | Relative | None = None,
    solver: str | Solver[Any] = "auto",
    starts: int = 2,
    tol: float = 1e-6,
    max_iter: int = 50,
    init: Any = None,
    generator: torch.Generator | None = None,
) -> GromovBarycentre:
    r"""The structure of a given size nearest to several others, (a local minimum of) the mean of their values.

    .. math:: \min_C \sum_s w_s\, \mathrm{GW}(C, C_s)

    alternates between plans P_s and the best structure for these, C = sum_s w_s P_s C_s P_s^T / (a a^T), or the
    exponential of that of the logarithms for the loss "kl". Plans start from those of the iteration before.

    Args:
        structures: spaces, each as for `gromov_wasserstein`.
        size: n, the number of points of the barycentre.
        weights: (S,) nonnegative, uniform when None; normalised.
        cost: of the structures.
        masses: of each space; uniform when None.
        a: (n,) masses of the barycentre, positive; uniform when None.
        loss, epsilon, solver: as for `gromov_wasserstein`.
        starts: of each first problem.
        tol: relative decrease of the value to stop at.
        max_iter: iterations.
        init: (n, n) structure to begin with; that of a random n points of the first space when None.
        generator: of that choice and of random starts, on the CPU.

    Raises:
        InvalidInput: no structures, weights of another length or not of a measure, a size that is no count.

    Complexity: that of a solve for each structure and iteration, and O(n m (n + m)).

    Source: Peyré, Cuturi & Solomon (2016), Gromov-Wasserstein averaging of kernel and distance matrices.

    Example:
        >>> import torch
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
        >>> found = gromov_barycentre([square, square + 3], 4, generator=torch.Generator().manual_seed(0))
        >>> abs(float(found.value)) < 1e-9
        True
    """
    if not structures:
        refuse("structures", "at least one space", "none")
    if not is_count(size) or not is_count(max_iter):
        refuse("size and max_iter", "positive integers", f"{size!r} and {max_iter!r}")
    read = [read_structure(x, cost, f"structures[{s}]") for s, x in enumerate(structures)]
    for s, (_, geometry) in enumerate(read):
        if geometry.batch_shape:
            got = f"batch {tuple(geometry.batch_shape)}"
            refuse(f"structures[{s}]", "one space", got, "Give a list of them, structures=[*batch].")
    kind, spaces = read[0][0], [CostMatrix(g.detach().to(torch.float64).tile()) for _, g in read]
    share = weights_tensor(weights, len(spaces), "weights", spaces[0].cost)
    share = share / share.sum()
    shares = share.tolist()
    given = [None] * len(spaces) if masses is None else list(masses)
    if len(given) != len(spaces):
        refuse("masses", f"one for each of the {len(spaces)} structures", f"{len(given)}")
    own = weights_tensor(a, size, "a", spaces[0].cost)
    if bool((own == 0).any()):
        refuse("a", "positive masses", "a zero", "Ask for a smaller size.")
    matrix = _first_structure(spaces[0].cost, size, generator) if init is None else CostMatrix(init).cost.double()
    if matrix.shape != (size, size):
        refuse("init", f"a matrix of shape {(size, size)}", f"shape {tuple(matrix.shape)}")
    values: list[float] = []
    solutions: list[GromovSolution] = []
    for _ in range(max_iter):
        solutions = [
            gromov_wasserstein(
                CostMatrix(matrix),
                space,
                a=own,
                b=b,
                loss=loss,
                epsilon=epsilon,
                solver=solver,
                starts=solutions[s].plan if solutions else starts,
                generator=generator,
            )
            for s, (space, b) in enumerate(zip(spaces, given))
        ]
        values.append(sum(w * float(solution.value) for w, solution in zip(shares, solutions)))
        total = torch.zeros_like(matrix)
        for w, space, solution in zip(shares, spaces, solutions):
            P = dense(solution.plan)
            total = total + w * (P @ (space.cost if loss == "square" else space.cost.log()) @ P.mT)
        total = total / torch.outer(own, own)
        if (len(values) > 1 and values[-2] - values[-1] <= tol * abs(values[-1])) or values[-1] == 0:
            break
        matrix = total if loss == "square" else total.exp()
    return GromovBarycentre(kind.array(matrix), kind.array(own.new_tensor(values[-1])), tuple(values), tuple(solutions))


def _first_structure(matrix: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """That of some of the points of a space, each as often as needed."""
    index = torch.cat([torch.randperm(len(matrix), generator=generator) for _ in range(-(-size // len(matrix)))])[:size]
    index = index.to(matrix.device)
    return matrix[index][:, index]
