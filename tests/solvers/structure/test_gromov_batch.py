"""Batches of Gromov-Wasserstein problems: the loop over items, known answers, padding, certificates, gradients."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

import brenier
from brenier import (
    KL,
    CostMatrix,
    Exact,
    Free,
    InvalidInput,
    Partial,
    PointCloud,
    Relative,
    Status,
    gromov_wasserstein,
    pad_structures,
)
from brenier.solvers import ConditionalGradient, Mirror, Proximal, run
from brenier.solvers.structure.bounds import first_lower_bound, lower_bound, third_lower_bound
from brenier.solvers.structure.starts import random_vertex
from brenier.structure import Form, Quadratic, dense
from problems import assert_close, cloud, rng, weights

COUNT = 5


def distances(x: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([cdist(t, t) for t in x.numpy()]))


def pairs(n: int = 9, m: int = 8, count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Distance matrices between points in two and in three dimensions."""
    return distances(cloud(n, 2, 0, count)), distances(cloud(m, 3, 1, count))


def copies(n: int = 12, count: int = COUNT, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Clouds, each turned, moved and shuffled in its own way, and where each point went."""
    generator = torch.Generator().manual_seed(0)
    x = cloud(n, 3, 0, count, dtype=dtype)
    turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0].to(dtype)
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])
    y = (x @ turn + 3).gather(1, order.unsqueeze(-1).expand(-1, -1, 3))
    return x, y, order.argsort(-1)


def check_items(batch: Any, items: list[Any], tolerance: float) -> None:
    """A batch against its items, each solved alone."""
    for name in ("value", "structure_value", "linear_value"):
        assert_close(getattr(batch, name), torch.stack([getattr(s, name) for s in items]), tolerance)
    assert_close(batch.plan.dense(), torch.stack([s.plan.dense() for s in items]), atol=tolerance)
    assert batch.statuses == tuple(s.status for s in items)
    certificates = [s.certificate for s in items]
    for name in ("primal", "dual", "scale"):
        assert_close(getattr(batch.certificate, name), torch.stack([getattr(c, name) for c in certificates]), tolerance)
    found = batch.certificate.stationarity, torch.stack([c.stationarity for c in certificates])
    assert_close(*((gap / batch.certificate.scale).nan_to_num(-1) for gap in found), atol=10 * tolerance)


# -- the loop over the items -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["square", "kl"])
@pytest.mark.parametrize("sizes", [(9, 9), (9, 8)])
def test_conditional_gradients_are_the_loop_over_the_items(loss: str, sizes: tuple[int, int]) -> None:
    """Permutations in one call, and other masses by the simplex: the same numbers to rounding."""
    C, D = pairs(*sizes)
    if loss == "kl":
        C, D = torch.exp(-C), torch.exp(-D)
    batch = gromov_wasserstein(C, D, cost="precomputed", loss=loss)
    items = [gromov_wasserstein(c, d, cost="precomputed", loss=loss) for c, d in zip(C, D)]
    check_items(batch, items, 1e-10)
    assert_close(torch.tensor(batch.stats["values"]).T, torch.tensor([s.stats["values"] for s in items]), 1e-10)


@pytest.mark.parametrize("loss", ["square", "kl"])
def test_mirror_descent_is_the_loop_over_the_items(loss: str) -> None:
    """To the tolerance: the linear problems of a batch are solved as well as the one that asks for most."""
    C, D = (torch.exp(-t) for t in pairs(count=3))
    a, b = weights(9, 0, 3), weights(8, 1, 3)
    options: dict[str, Any] = {"cost": "precomputed", "loss": loss, "epsilon": Relative(0.1), "tol": 1e-9, "starts": 1}
    batch = gromov_wasserstein(C, D, a=a, b=b, **options)
    items = [gromov_wasserstein(C[k], D[k], a=a[k], b=b[k], **options) for k in range(3)]
    check_items(batch, items, 1e-7)


def test_proximal_points_are_the_loop_over_the_items() -> None:
    x, y, place = copies(8, 3)
    batch = gromov_wasserstein(x, y, solver=Proximal(), starts=1)
    items = [gromov_wasserstein(s, t, solver=Proximal(), starts=1) for s, t in zip(x, y)]
    assert batch.plan.argmax().equal(place)
    assert batch.statuses == tuple(s.status for s in items)
    # they near the vertex slowly, and stop on the way
    assert_close(batch.plan.dense(), torch.stack([s.plan.dense() for s in items]), atol=1e-4)


@pytest.mark.parametrize("epsilon", [None, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_fused_problems(epsilon: float | None, alpha: float) -> None:
    C, D = pairs()
    u, v = cloud(9, 2, 2, COUNT), cloud(8, 2, 3, COUNT)
    options: dict[str, Any] = {"cost": "precomputed", "alpha": alpha, "epsilon": epsilon}
    options |= {} if epsilon is None else {"tol": 1e-8, "starts": 1}
    batch = gromov_wasserstein(C, D, features=(u, v), **options)
    items = [gromov_wasserstein(C[k], D[k], features=(u[k], v[k]), **options) for k in range(COUNT)]
    check_items(batch, items, 1e-10 if epsilon is None else 1e-6)


@pytest.mark.parametrize(
    ("marginals", "epsilon"),
    [
        ((Exact(), Free()), None),
        ((Free(), Exact()), None),
        (Partial(0.7), None),
        (KL(2.0), 0.5),
        ((KL(2.0), Exact()), 0.5),
        (Partial(0.7), 0.5),
        ((Exact(), Free()), 0.5),
    ],
)
def test_other_marginals(marginals: Any, epsilon: float | None) -> None:
    C, D = pairs(count=3)
    options: dict[str, Any] = {"cost": "precomputed", "marginals": marginals, "epsilon": epsilon, "starts": 1}
    options |= {} if epsilon is None else {"tol": 1e-8}
    batch = gromov_wasserstein(C, D, **options)
    items = [gromov_wasserstein(c, d, **options) for c, d in zip(C, D)]
    check_items(batch, items, 1e-9 if epsilon is None else 1e-5)


def test_axes_broadcast() -> None:
    """One space against many; many masses on one pair; an epsilon for each item."""
    C, D = pairs()
    batch = gromov_wasserstein(C[0], D, cost="precomputed")
    assert_close(batch.value, gromov_wasserstein(C[0].expand(COUNT, -1, -1), D, cost="precomputed").value, 1e-12)
    a = weights(9, 0, COUNT)
    batch = gromov_wasserstein(C[0], D[0], a=a, cost="precomputed")
    assert_close(batch.value, torch.stack([gromov_wasserstein(C[0], D[0], a=w, cost="precomputed").value for w in a]))
    options: dict[str, Any] = {"cost": "precomputed", "tol": 1e-8, "starts": 1}
    epsilon = torch.linspace(0.5, 2, COUNT, dtype=torch.float64)
    batch = gromov_wasserstein(C, D, epsilon=epsilon, **options)
    items = [gromov_wasserstein(*t, epsilon=e, **options) for *t, e in zip(C, D, epsilon)]
    check_items(batch, items, 1e-6)


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_more_axes_than_one(epsilon: float | None) -> None:
    C, D = pairs(count=6)
    options: dict[str, Any] = {"cost": "precomputed", "epsilon": epsilon, "starts": 1 if epsilon else 2}
    flat = gromov_wasserstein(C, D, **options)
    grid = gromov_wasserstein(C.reshape(2, 3, 9, 9), D.reshape(2, 3, 8, 8), **options)
    assert grid.value.shape == (2, 3)
    assert grid.plan.dense().shape == (2, 3, 9, 8)
    assert len(grid.statuses) == 6
    assert_close(grid.value.reshape(-1), flat.value, 1e-10 if epsilon is None else 1e-6)
    assert_close(grid.certificate.dual.reshape(-1), flat.certificate.dual, 1e-10)
    alone = gromov_wasserstein(C[:1], D[:1], **options)
    assert alone.value.shape == (1,)


# -- known answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_isometric_copies_are_found(cost: str, dtype: torch.dtype) -> None:
    x, y, place = copies(dtype=dtype)
    solution = gromov_wasserstein(x, y, cost=cost)
    assert solution.value.dtype == dtype
    assert solution.plan.dense().dtype == dtype
    assert solution.plan.argmax().equal(place)
    assert float(solution.value.abs().max()) < 1e-4
    assert all(s is Status.CONVERGED for s in solution.statuses)
    if dtype == torch.float64:
        assert bool(solution.certificate.optimal.all())
        assert solution.certificate.guarantee == "global optimum"


def test_a_copy_among_others_is_the_one_that_is_proved() -> None:
    x, y, _ = copies(8, 4)
    y[1:] = cloud(8, 3, 7, 3)
    certificate = gromov_wasserstein(x, y).certificate
    assert certificate.optimal.tolist() == [True, False, False, False]
    assert "global optimum of 1 of 4, stationary point to" in certificate.guarantee
    assert certificate.guarantee in str(certificate)
    assert bool((certificate.dual <= certificate.primal + 1e-12).all())


# -- padding -----------------------------------------------------------------------------------------------------


def weighted(graph: Any) -> Any:
    """Edges of different lengths, so that no two matchings are the same."""
    lengths = rng(len(graph)).uniform(1, 2, size=graph.number_of_edges()).tolist()
    nx.set_edge_attributes(graph, dict(zip(graph.edges, lengths)), "weight")
    return graph


def ragged(kind: str) -> tuple[list[Any], list[Any]]:
    """Spaces of different sizes, and as many others."""
    sizes = ((5, 9, 7, 8), (8, 6, 7, 9))
    if kind == "clouds":
        return [cloud(n, 2, n) for n in sizes[0]], [cloud(n, 3, n) for n in sizes[1]]
    if kind == "graphs":
        return [weighted(nx.cycle_graph(n)) for n in sizes[0]], [weighted(nx.path_graph(n)) for n in sizes[1]]
    left, right = (
        [torch.exp(-distances(cloud(n, 2 + side, n, 1))[0]) for n in some] for side, some in enumerate(sizes)
    )
    return left, right


@pytest.mark.parametrize("kind", ["clouds", "graphs", "matrices"])
def test_padded_problems_have_the_values_they_have_alone(kind: str) -> None:
    left, right = ragged(kind)
    cost = "precomputed" if kind == "matrices" else None
    (x, a), (y, b) = (pad_structures(side, cost=cost) for side in (left, right))
    assert isinstance(x, PointCloud if kind == "clouds" else CostMatrix)
    batch = gromov_wasserstein(x, y, a=a, b=b)
    for k, (s, t) in enumerate(zip(left, right)):
        alone = gromov_wasserstein(s, t, cost=cost)
        n, m = alone.problem.shape
        assert_close(batch.value[k], alone.value, 1e-9)
        plan = torch.as_tensor(batch.plan.dense()[k])
        assert_close(plan[:n, :m], alone.plan.dense(), atol=1e-12)
        assert float(plan[n:].sum() + plan[:, m:].sum()) == 0
        for name in ("primal", "dual", "scale"):
            assert_close(getattr(batch.certificate, name)[k], getattr(alone.certificate, name), 1e-9)
        assert float(batch.certificate.stationarity[k]) < 1e-6 * float(batch.certificate.scale[k])


@pytest.mark.parametrize("loss", ["square", "kl"])
@pytest.mark.parametrize("masses", ["uniform", "given"])
def test_padding_with_entropy_and_other_masses(loss: str, masses: str) -> None:
    left, right = ragged("matrices")
    given = [[weights(len(s), k) for k, s in enumerate(side)] if masses == "given" else None for side in (left, right)]
    (x, a), (y, b) = (pad_structures(s, w, cost="precomputed") for s, w in zip((left, right), given))
    options: dict[str, Any] = {"loss": loss, "epsilon": Relative(0.1), "tol": 1e-8, "starts": 1}
    batch, exact = gromov_wasserstein(x, y, a=a, b=b, **options), gromov_wasserstein(x, y, a=a, b=b, loss=loss)
    for k, (s, t) in enumerate(zip(left, right)):
        own = {} if given[0] is None else {"a": given[0][k], "b": given[1][k]}  # type: ignore[index]
        alone = gromov_wasserstein(s, t, cost="precomputed", **own, **options)
        n, m = alone.problem.shape
        assert_close(batch.problem.epsilon[k], alone.problem.epsilon, 1e-10)
        assert_close(batch.value[k], alone.value, 1e-6)
        assert_close(batch.plan.dense()[k, :n, :m], alone.plan.dense(), atol=1e-6)
        assert float(batch.plan.dense()[k, n:].sum() + batch.plan.dense()[k, :, m:].sum()) == 0
        alone = gromov_wasserstein(s, t, cost="precomputed", loss=loss, **own)
        assert_close(exact.value[k], alone.value, 1e-9)
        assert_close(exact.certificate.dual[k], alone.certificate.dual, 1e-9)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_masses_of_all_kinds_meet_in_a_batch(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1 to 40 points, equal masses and others, some of them zero: each step is exact, with a tree or without."""
    if engine == "reference":
        monkeypatch.setattr("brenier.kernels.simplex.native", None)
    sizes = ((1, 7, 12, 40, 33), (5, 1, 12, 21, 38))
    left, right = ([distances(cloud(n, 2 + side, n, 1))[0] for n in some] for side, some in enumerate(sizes))
    given = [[weights(n, k) if k % 2 else torch.ones(n).double() / n for k, n in enumerate(some)] for some in sizes]
    for masses in (given[0][3], given[1][4]):
        masses[[2, 11, -1]] = 0
        masses /= masses.sum()
    (x, a), (y, b) = (pad_structures(s, w, cost="precomputed") for s, w in zip((left, right), given))
    batch = gromov_wasserstein(x, y, a=a, b=b, starts=1)
    assert_close(batch.plan.dense().sum(-1), a, atol=1e-14)
    assert_close(batch.plan.dense().sum(-2), b, atol=1e-14)
    for k, (s, t) in enumerate(zip(left, right)):
        alone = gromov_wasserstein(s, t, a=given[0][k], b=given[1][k], cost="precomputed", starts=1)
        assert_close(batch.value[k], alone.value, 1e-10)
    f, g = batch.potentials
    assert float((batch.plan.geometry.tile() - f.unsqueeze(-1) - g.unsqueeze(-2)).min()) > -1e-10


def test_ragged_clouds_are_structures() -> None:
    left, right = ragged("clouds")
    given = [weights(len(t), k) for k, t in enumerate(left)]
    (x, a), (y, b) = pad_structures(left, given), pad_structures(right)
    x_all, y_all = (brenier.Ragged.from_list(t, t) for t in (left, right))
    for epsilon in (None, Relative(0.1)):
        padded = gromov_wasserstein(x, y, a=a, b=b, epsilon=epsilon)
        batch = gromov_wasserstein(x_all, y_all, a=given, epsilon=epsilon)
        assert_close(batch.problem.b, b)
        assert_close(batch.value, padded.value, 1e-9 if epsilon is None else 1e-5)


def test_what_stands_beyond_the_end_does_not_count() -> None:
    C, D = pairs(6, 6)
    a = torch.cat([torch.full((COUNT, 4), 0.25), torch.zeros(COUNT, 2)], 1).double()
    expected = gromov_wasserstein(C, D, a=a, b=a, cost="precomputed").value
    for M in (C, D):
        M[:, 4:] = M[:, :, 4:] = -7.0
    assert_close(gromov_wasserstein(C, D, a=a, b=a, cost="precomputed").value, expected, 1e-12)
    for M in (C, D):
        M[:, 4:] = M[:, :, 4:] = 0.0
        M[:, :4, :4] = torch.exp(-M[:, :4, :4])
    kl = gromov_wasserstein(C, D, a=a, b=a, cost="precomputed", loss="kl")
    alone = gromov_wasserstein(C[:, :4, :4], D[:, :4, :4], cost="precomputed", loss="kl")
    assert_close(kl.value, alone.value, 1e-10)
    assert_close(kl.certificate.dual, alone.certificate.dual, 1e-10)


def test_padded_containers_and_refusals() -> None:
    geometry, masses = pad_structures([np.zeros((2, 3)), np.ones((4, 3))])
    assert isinstance(masses, np.ndarray)
    assert masses.tolist() == [[0.5, 0.5, 0, 0], [0.25] * 4]
    assert isinstance(geometry, PointCloud)
    assert isinstance(gromov_wasserstein(geometry, geometry, a=masses, b=masses).value, np.ndarray)
    mixed, _ = pad_structures([torch.zeros(2, 3), torch.ones(4, 2)])  # of different dimensions
    assert isinstance(mixed, CostMatrix)
    for arguments, message in (
        (([],), "spaces: expected a list"),
        ((torch.zeros(2, 3, 3),), "spaces: expected a list"),
        (([torch.zeros(2, 3, 3)],), "without batch axes"),
        (([torch.zeros(3, 2)], []), "masses: expected one for each"),
        (([torch.zeros(3, 2)], [torch.ones(2)]), "3 weights"),
    ):
        with pytest.raises(InvalidInput, match=message):
            pad_structures(*arguments)  # type: ignore[arg-type]


# -- convergence, starts and bounds ------------------------------------------------------------------------------


def test_items_end_on_their_own() -> None:
    """A copy ends at once, an asymmetric matrix runs to the limit; the copy is not touched by the others' steps."""
    C, D = pairs(9, 9, 3)
    D[0] = C[0]
    D[1] = torch.from_numpy(rng(0).uniform(size=(9, 9)))
    start = dense(random_vertex(Quadratic.between(CostMatrix(C), CostMatrix(D)), torch.Generator().manual_seed(1)))
    start[0] = torch.eye(9, dtype=torch.float64) / 9
    with pytest.warns(brenier.NotConvergedWarning, match="1 of 3 problems"):
        solution = gromov_wasserstein(C, D, cost="precomputed", starts=start, max_iter=10, tol=1e-12)
    assert solution.statuses == (Status.CONVERGED, Status.MAX_ITER, Status.CONVERGED)
    assert solution.status is Status.MAX_ITER
    assert solution.plan.dense()[0].equal(start[0])
    with pytest.raises(brenier.NotConverged):
        gromov_wasserstein(C, D, cost="precomputed", starts=start, max_iter=10, tol=1e-12, throw=True)


def test_steps_of_mirror_descent_leave_ended_items_alone() -> None:
    C, D = pairs(count=2)
    problem = Quadratic.between(CostMatrix(C), CostMatrix(D), epsilon=torch.tensor([5.0, 0.2], dtype=torch.float64))
    seen: list[Tensor] = []
    counts: list[int] = []

    def look(iteration: int, state: Any) -> None:
        if bool(Mirror()._met(state)[0]):
            seen.append(state.F[0])
        counts.append(iteration)

    solution = run(problem, Mirror(), callback=look)
    assert solution.status.ok
    assert len(seen) > 1
    assert all(F.equal(seen[0]) for F in seen)


def test_each_item_keeps_its_best_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the batch is solved in parts."""
    for entries, epsilon, (n, m) in ((2**20, None, (7, 7)), (150, None, (7, 8)), (150, Relative(0.1), (7, 7))):
        monkeypatch.setattr("brenier.solvers.structure.starts._ENTRIES", entries)
        C, D = pairs(n, m, 12)
        options = {} if epsilon is None else {"epsilon": epsilon, "tol": 1e-4}
        generator = torch.Generator().manual_seed(0)
        solution = gromov_wasserstein(C, D, cost="precomputed", starts=4, generator=generator, **options)
        values = torch.tensor(solution.stats["values"], dtype=torch.float64)
        assert values.shape == (4, 12)
        assert len(set(values.argmin(0).tolist())) > 1
        assert_close(solution.value, values.amin(0), 1e-9)
        P, (a, b) = solution.plan.dense(), (solution.problem.a, solution.problem.b)
        assert_close(P.sum(-1), a, atol=1e-5)
        assert_close(P.sum(-2), b, atol=1e-5)


def test_lower_bounds_of_a_batch() -> None:
    C, D = pairs()
    M = torch.from_numpy(rng(3).uniform(size=(COUNT, 9, 8)))
    problem = Quadratic.between(CostMatrix(C), CostMatrix(D), weights(9, 0, COUNT), features=CostMatrix(M))
    solution = run(problem, ConditionalGradient())
    for bound in (first_lower_bound, third_lower_bound, lower_bound):
        value = bound(problem).value
        assert_close(value, torch.stack([bound(problem.select(torch.tensor([k]))).value[0] for k in range(COUNT)]))
        assert bool((value <= Form(problem).energy(*moments(problem, solution)) + 1e-12).all())
    free = Quadratic.between(CostMatrix(C), CostMatrix(D), features=CostMatrix(-M), marginals=(Exact(), Free()))
    assert_close(lower_bound(free).value, -0.5 * M.amax((-1, -2)), 1e-12)


def moments(problem: Quadratic, solution: Any) -> tuple[Any, Any]:
    found = problem.form.moments(solution.plan)
    return found, problem.form.half(found)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 9), (12, 5)])
def test_the_third_lower_bound_by_its_definition(n: int, m: int) -> None:
    """Transport on the line between the distances from each point, then between the points."""
    C, D = pairs(n, m, 2)
    cost = torch.stack(
        [
            torch.stack([torch.stack([brenier.solve(r.sort().values, s).value for s in d]) for r in c])
            for c, d in zip(C, D)
        ]
    )
    expected = brenier.solve(CostMatrix(cost)).value
    assert_close(third_lower_bound(Quadratic.between(CostMatrix(C), CostMatrix(D))).value, expected, 1e-10)


# -- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_gradients_are_those_of_the_items(epsilon: float | None, dtype: torch.dtype) -> None:
    x, y, u, v = (cloud(n, 2, k, 3, dtype=dtype).requires_grad_() for k, n in enumerate((7, 6, 7, 6)))
    a = weights(7, 5, 3, dtype=dtype).requires_grad_()
    inputs = (x, y, u, v, a)
    options: dict[str, Any] = {"epsilon": epsilon, "starts": 1, "tol": 1e-9, "alpha": 0.6}

    def value(*t: Tensor) -> Tensor:
        return gromov_wasserstein(t[0], t[1], a=t[4], features=(t[2], t[3]), **options).value

    batch = torch.autograd.grad(value(*inputs).sum(), inputs)
    for k in range(3):
        alone = torch.autograd.grad(value(*(t[k] for t in inputs)), inputs)
        for g, h in zip(batch[:4], alone[:4]):
            assert_close(g[k], h[k], atol=1e-5 if dtype == torch.float64 else 1e-3)
        # potentials are told up to a constant
        assert_close(*(t - t.mean() for t in (batch[4][k], alone[4][k])), atol=1e-5 if dtype == torch.float64 else 1e-3)
    assert all(g.dtype == dtype for g in batch)


def test_gradients_of_a_space_that_all_share() -> None:
    C, D = pairs(6, 5)
    C = C[0].requires_grad_()
    (gradient,) = torch.autograd.grad(gromov_wasserstein(C, D, cost="precomputed", starts=1).value.sum(), C)
    parts = [torch.autograd.grad(gromov_wasserstein(C, d, cost="precomputed", starts=1).value, C)[0] for d in D]
    assert_close(gradient, sum(parts), 1e-9)


# -- inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.ones((3, 5, 5))}, "batch axes that broadcast"),
        ({"a": np.ones((3, 4)) / 4}, "batch axes that broadcast"),
        ({"features": np.ones((2, 3, 3))}, "features: expected a cost of shape"),
        ({"features": np.ones((7, 4, 5))}, "batch axes that broadcast"),
        ({"y": np.ones((2, 5, 4))}, "y: expected a square matrix"),
        ({"solver": "quantized"}, "quantized: expected one problem"),
        ({"solver": "low-rank"}, "low-rank: expected one problem"),
        ({"starts": np.ones((4, 5))}, "starts: expected plans of shape"),
        ({"starts": np.stack([np.ones((4, 5)), np.zeros((4, 5))])}, "nonnegative masses"),
        ({"epsilon": np.ones(3)}, "epsilon: expected one number or shape"),
        ({"epsilon": Relative(0.1), "x": np.zeros((2, 4, 4)), "y": np.zeros((2, 5, 5))}, "positive finite objective"),
        ({"loss": "kl", "y": np.stack([np.ones((5, 5)), np.zeros((5, 5))])}, "with loss='kl': expected entries > 0"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    C, D = (t.numpy() for t in pairs(4, 5, 2))
    given: dict[str, Any] = {"x": C, "y": D, "cost": "precomputed", **arguments}
    with pytest.raises(InvalidInput, match=message):
        gromov_wasserstein(given.pop("x"), given.pop("y"), **given)


def test_a_batch_is_no_structure_of_a_barycentre() -> None:
    with pytest.raises(InvalidInput, match=r"structures\[0\]: expected one space"):
        brenier.gromov_barycentre([CostMatrix(pairs()[0])], 3)


def test_containers_come_back() -> None:
    C, D = (t.numpy() for t in pairs())
    solution = gromov_wasserstein(C, D, cost="precomputed", epsilon=0.5)
    assert isinstance(solution.value, np.ndarray)
    f, g = solution.potentials
    assert f.shape == (COUNT, 9)
    assert g.shape == (COUNT, 8)
    assert "batch (5,)" in repr(solution)
