"""Gromov-Wasserstein: known answers, bounds, limits, POT, gradients, inputs and refusals."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import networkx as nx
import numpy as np
import ot
import pytest
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from torch import Tensor

import brenier
from brenier import KL, CostMatrix, Exact, Free, InvalidInput, Partial, Relative, gromov_wasserstein
from brenier.solvers import (
    ConditionalGradient,
    GromovSolution,
    Mirror,
    MultiStart,
    NetworkSimplex,
    Proximal,
    Sinkhorn,
    run,
)
from brenier.solvers.structure import mirror
from brenier.solvers.structure.bounds import first_lower_bound, third_lower_bound
from brenier.solvers.structure.starts import random_vertex
from brenier.structure import Form, Quadratic, dense
from problems import assert_close, cloud, rng, weights


def distances(n: int, d: int = 2, seed: int = 0) -> np.ndarray:
    x = cloud(n, d, seed).numpy()
    return cdist(x, x)


def objective(P: np.ndarray, C: np.ndarray, D: np.ndarray, loss: str = "square") -> float:
    """By its definition: four indices."""
    u, v = C[:, None, :, None], D[None, :, None, :]
    each = (u - v) ** 2 if loss == "square" else u * np.log(u / v) - u + v
    return float(np.einsum("ijkl,ij,kl->", each, P, P))


def copy_of(x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same cloud, turned, moved and shuffled, and where each point went."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=x.dtype))[0]
    return (x @ turn + 3)[order], order.argsort()


# -- known answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["conditional-gradient", "proximal"])
def test_an_isometric_copy_is_found(solver: str, dtype: torch.dtype) -> None:
    x = cloud(12, 3, dtype=dtype)
    y, place = copy_of(x)
    solution = gromov_wasserstein(x, y, solver=solver)
    assert solution.plan.argmax().tolist() == place.tolist()
    assert solution.value.dtype == dtype
    assert abs(float(solution.value)) < (1e-3 if solver == "proximal" else 1e-5)
    if solver == "conditional-gradient":
        assert solution.certificate.guarantee == "global optimum" or dtype == torch.float32


def test_a_copy_in_another_dimension_by_euclidean_distances() -> None:
    x = cloud(9, 2)
    y = torch.cat([x.flip(0), torch.ones(9, 3, dtype=x.dtype)], 1)
    solution = gromov_wasserstein(x, y, cost="euclidean")
    assert solution.stats["linear_geometry"] == "dense"
    assert solution.plan.argmax().tolist() == list(range(8, -1, -1))
    assert abs(float(solution.value)) < 1e-12


@pytest.mark.parametrize("epsilon", [None, 0.01])
def test_two_points(epsilon: float | None) -> None:
    """Spaces of two points at distances s and t: matched one to one, (s - t)^2 / 2; mixed half and half is worse."""
    C, D = np.array([[0, 3.0], [3.0, 0]]), np.array([[0, 1.0], [1.0, 0]])
    start = np.diag([0.5, 0.5])
    solution = gromov_wasserstein(C, D, cost="precomputed", starts=start, epsilon=epsilon)
    assert_close(solution.structure_value, 2.0, 1e-9)
    assert_close(solution.certificate.dual, 2.0, 1e-9)  # the third lower bound is tight here


def test_one_point_against_many() -> None:
    """All pairs of y are collapsed: the mean of the squared distances."""
    y = cloud(6, 2)
    solution = gromov_wasserstein(np.zeros((1, 2)), y.numpy(), cost="euclidean")
    assert_close(solution.value, (cdist(y, y) ** 2).mean(), 1e-10)


@pytest.mark.parametrize("loss", ["square", "kl"])
def test_the_value_is_the_sum_over_four_indices(loss: str) -> None:
    C, D = (np.exp(-distances(n, 2, n)) for n in (6, 5))
    a, b = weights(6, 0).numpy(), weights(5, 1).numpy()
    solution = gromov_wasserstein(C, D, a=a, b=b, cost="precomputed", loss=loss)
    assert_close(solution.value, objective(solution.plan.dense(), C, D, loss), 1e-10)


def test_factors_and_matrices_agree() -> None:
    x, y, u, v = cloud(7, 2), cloud(6, 3, 1), cloud(7, 2, 2), cloud(6, 2, 3)
    a, b = weights(7), weights(6, 1)
    C, D, M = (torch.from_numpy(cdist(s, t, "sqeuclidean")) for s, t in ((x, x), (y, y), (u, v)))
    lazy = Quadratic.between(brenier.PointCloud(x), brenier.PointCloud(y), a, b, features=brenier.PointCloud(u, v))
    full = Quadratic.between(CostMatrix(C), CostMatrix(D), a, b, features=CostMatrix(M))
    left, right = Form(lazy), Form(full)
    assert left.factored
    assert not right.factored
    plan = random_vertex(full, torch.Generator().manual_seed(3))
    moments = left.moments(plan), right.moments(plan)
    halves = left.half(moments[0]), right.half(moments[1])
    assert_close(left.energy(moments[0], halves[0]), right.energy(moments[1], halves[1]), 1e-10)
    gradients = (form.geometry(form.gradient(half)).tile() for form, half in zip((left, right), halves))
    assert_close(*gradients, 1e-10)
    P = dense(plan).numpy()
    expected = 0.5 * objective(P, C.numpy(), D.numpy()) + 0.5 * (P * M.numpy()).sum()
    assert_close(left.energy(moments[0], halves[0]), expected, 1e-10)


# -- limits and properties ---------------------------------------------------------------------------------------


def test_alpha_zero_is_transport_between_features() -> None:
    C, D = distances(6), distances(7, 3, 1)
    M = rng(2).uniform(size=(6, 7))
    fused = gromov_wasserstein(C, D, cost="precomputed", features=M, alpha=0)
    assert_close(fused.value, brenier.solve(CostMatrix(M)).value, 1e-9)
    assert_close(fused.linear_value, fused.value, 1e-12)


def test_alpha_one_ignores_features() -> None:
    C, D = distances(6), distances(7, 3, 1)
    M = rng(2).uniform(size=(6, 7))
    fused = gromov_wasserstein(C, D, cost="precomputed", features=M, alpha=1)
    assert_close(fused.value, gromov_wasserstein(C, D, cost="precomputed").value, 1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["square", "kl"])
def test_lower_bounds_are_below(seed: int, loss: str) -> None:
    C, D = (np.exp(-distances(n, 2, seed + n)) for n in (7, 8))
    a, b = weights(7, seed), weights(8, seed + 1)
    solution = gromov_wasserstein(C, D, a=a, b=b, cost="precomputed", loss=loss)
    problem = solution.problem
    third = third_lower_bound(problem).value
    assert 0 <= third <= float(solution.value)
    if loss == "square":
        assert 0 <= first_lower_bound(problem).value <= third + 1e-3  # distributions are binned for the third
    fused = gromov_wasserstein(C, D, a=a, b=b, cost="precomputed", loss=loss, features=rng(seed).uniform(size=(7, 8)))
    assert float(fused.certificate.dual) <= float(fused.certificate.primal)


def test_the_best_permutation_is_kept_and_the_bound_is_below() -> None:
    C, D = distances(5), distances(5, 3, 4)
    best = min((np.eye(5)[list(p)] / 5 for p in permutations(range(5))), key=lambda P: objective(P, C, D))
    solution = gromov_wasserstein(C, D, cost="precomputed", starts=best)
    assert_close(solution.value, objective(best, C, D), 1e-12)  # concave along plans: no other plan is better
    assert 0 < float(solution.certificate.dual) <= objective(best, C, D)
    assert gromov_wasserstein(C, D, cost="precomputed", starts=40).value >= solution.value


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_looking_ahead_saves_steps_and_ends_at_the_same_plan(epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    C, D = distances(60), distances(60, 3, 1)
    found = []
    for near in (1e-2, 0.0):
        monkeypatch.setattr(mirror, "_NEAR", near)
        found.append(gromov_wasserstein(C, D, cost="precomputed", epsilon=Relative(epsilon), starts=1))
    ahead, plain = found
    assert ahead.status.ok
    assert plain.status.ok
    assert ahead.stats["n_iter"] < (0.8 if epsilon == 0.1 else 1.2) * plain.stats["n_iter"]
    assert_close(ahead.value, plain.value, 1e-6)


def test_products_in_single_precision_cost_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    C, D = distances(150), distances(140, 3, 1)
    epsilon, used, product = Relative(0.02), [], Form.half_after
    monkeypatch.setattr(Form, "half_after", lambda *arguments: (used.append(1), product(*arguments))[1])
    found = [gromov_wasserstein(C, D, cost="precomputed", epsilon=epsilon, starts=1, tol=1e-9)]
    assert len(used) > found[0].stats["n_iter"] / 2
    monkeypatch.setattr(Form, "narrow", lambda *arguments: False)
    found.append(gromov_wasserstein(C, D, cost="precomputed", epsilon=epsilon, starts=1, tol=1e-9))
    assert found[0].stats["n_iter"] == pytest.approx(found[1].stats["n_iter"], abs=2)
    assert_close(found[0].value, found[1].value, 1e-10)
    assert_close(found[0].plan.dense(), found[1].plan.dense(), 1e-6)


def test_structures_that_are_symmetric_but_for_rounding_are_made_so() -> None:
    C, D = distances(9), distances(8, 3, 1)
    noise = 1 + 1e-15 * rng(5).choice([-1, 0, 1], size=C.shape)
    exact, near = (gromov_wasserstein(S, D, cost="precomputed", starts=1) for S in (C, C * noise))
    assert near.problem.form.symmetric
    assert_close(near.value, exact.value, 1e-12)
    assert not gromov_wasserstein(C * (1 + 1e10 * (noise - 1)), D, cost="precomputed", starts=1).problem.form.symmetric


def test_more_starts_are_never_worse(generator: torch.Generator) -> None:
    C, D = distances(10), distances(9, 3, 1)
    values = gromov_wasserstein(C, D, cost="precomputed", starts=6, generator=generator)
    assert len(values.stats["values"]) == 6
    assert_close(values.value, min(values.stats["values"]), 1e-12)
    again = torch.Generator().manual_seed(0)
    assert gromov_wasserstein(C, D, cost="precomputed", starts=6, generator=again).value == values.value


def test_conditional_gradients_end_at_a_stationary_point() -> None:
    D = rng(0).uniform(size=(8, 8))  # neither symmetric nor a distance
    solution = gromov_wasserstein(distances(9), D, cost="precomputed", tol=1e-3)
    assert solution.status.ok
    assert float(solution.certificate.stationarity) <= 1e-3 * float(solution.certificate.scale)
    assert max(float(e) for e in solution.certificate.marginal_errors) < 1e-12


def test_mirror_descent_ends_at_a_stationary_point() -> None:
    problem = Quadratic.between(brenier.PointCloud(cloud(10)), brenier.PointCloud(cloud(8, 3, 1)), epsilon=0.5)
    found = [run(problem, Mirror(tol=tol), answer=GromovSolution) for tol in (1e-3, 1e-7)]
    rough, fine = (float(s.certificate.stationarity) for s in found)
    assert fine < 1e-5 * float(found[1].value) < rough
    assert_close(found[0].value, found[1].value, 1e-4)  # the rough plan may be below: it misses its marginals by more
    again = run(problem, Mirror(tol=1e-7, start=found[1].plan), answer=GromovSolution)
    assert again.stats["n_iter"] < found[1].stats["n_iter"]
    assert_close(again.value, found[1].value, 1e-7)


def test_zero_masses_and_duplicates() -> None:
    x = torch.cat([cloud(5, 2), cloud(5, 2)[:2], cloud(3, 2, 9)])
    a = torch.tensor([1.0] * 7 + [0.0] * 3, dtype=torch.float64) / 7
    y, _ = copy_of(x[:7])
    for epsilon in (None, Relative(1e-3)):
        solution = gromov_wasserstein(x, y, a=a, epsilon=epsilon)
        assert abs(float(solution.structure_value)) < (1e-12 if epsilon is None else 0.2)
        assert torch.isfinite(solution.certificate.stationarity)
        assert float(solution.plan.row_sums()[7:].abs().max()) == 0


def test_points_on_a_line_in_space() -> None:
    x = torch.linspace(0, 1, 8, dtype=torch.float64).unsqueeze(1) ** 2
    y = torch.cat([x, 2 * x, -x], 1).flip(0) / 6**0.5
    solution = gromov_wasserstein(x, y)
    assert abs(float(solution.value)) < 1e-12


# -- other marginals ---------------------------------------------------------------------------------------------


def test_semi_relaxed_finds_the_part() -> None:
    y = cloud(9, 2)
    x, _ = copy_of(y[:5])
    for marginals, swap in (((Exact(), Free()), False), ((Free(), Exact()), True)):
        solution = gromov_wasserstein(*((y, x) if swap else (x, y)), marginals=marginals, starts=12,
                                      generator=torch.Generator().manual_seed(1))  # fmt: skip
        assert abs(float(solution.value)) < 1e-9
        assert float(solution.certificate.dual) == 0


def test_partial_leaves_the_outlier() -> None:
    x = cloud(6, 2)
    y = torch.cat([copy_of(x)[0], torch.tensor([[40.0, 0.0]], dtype=x.dtype)])
    a, b = (torch.full((n,), 1 / 6, dtype=x.dtype) for n in (6, 7))
    solution = gromov_wasserstein(x, y, a=a, b=b, marginals=Partial(1.0), starts=6, generator=torch.Generator())
    assert abs(float(solution.value)) < 1e-9
    assert float(solution.plan.col_sums()[6]) < 1e-15
    assert_close(solution.plan.row_sums().sum(), 1.0, 1e-12)


def test_unbalanced_gives_up_the_outlier_and_nears_the_balanced_value() -> None:
    x = cloud(8, 2)
    y = torch.cat([copy_of(x)[0][:7], torch.tensor([[6.0, 0.0]], dtype=x.dtype)])
    solution = gromov_wasserstein(x, y, epsilon=0.5, marginals=KL(10.0), starts=2)
    assert solution.status.ok
    assert float(solution.plan.col_sums()[7]) < 1e-3
    assert "nan" not in solution.certificate.guarantee + str(solution.certificate)
    hard = gromov_wasserstein(x, x, epsilon=2.0, starts=1)  # at unit mass, KL(P ⊗ P | R ⊗ R) = 2 KL(P | R)
    soft = gromov_wasserstein(x, x, epsilon=1.0, marginals=KL(1e4), starts=1)
    assert_close(soft.structure_value, hard.structure_value, 1e-2)


# -- the same numbers as POT -------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> dict[str, Any]:
    C, D = distances(12), distances(10, 3, 1)
    return {"C1": C, "C2": D, "p": weights(12).numpy(), "q": weights(10, 1).numpy()}


@pytest.mark.parametrize("loss", ["square", "kl"])
def test_gromov_wasserstein(pair: dict[str, Any], loss: str) -> None:
    """POT's `gromov_wasserstein2` is our structure_value, from the same start."""
    C, D, p, q = pair.values()
    if loss == "kl":
        C, D = np.exp(-C), np.exp(-D)
    theirs = float(ot.gromov.gromov_wasserstein2(C, D, p, q, loss_fun=f"{loss}_loss"))
    solution = gromov_wasserstein(C, D, a=p, b=q, cost="precomputed", loss=loss, starts=2)
    assert_close(solution.stats["values"][0], theirs, 1e-6)
    assert float(solution.value) <= theirs + 1e-9


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_fused_gromov_wasserstein(pair: dict[str, Any], alpha: float) -> None:
    C, D, p, q = pair.values()
    M = rng(5).uniform(size=(12, 10))
    theirs = float(ot.gromov.fused_gromov_wasserstein2(M, C, D, p, q, alpha=alpha))
    solution = gromov_wasserstein(C, D, a=p, b=q, cost="precomputed", features=M, alpha=alpha, starts=1)
    assert_close(solution.value, theirs, 1e-6)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_entropic_gromov_wasserstein(pair: dict[str, Any], epsilon: float) -> None:
    """POT's plan solves the same problem; its `gw_dist` leaves the entropy out."""
    C, D, p, q = pair.values()
    plan, log = ot.gromov.entropic_gromov_wasserstein(C, D, p, q, epsilon=epsilon, tol=1e-12, max_iter=5000, log=True)
    solution = gromov_wasserstein(C, D, a=p, b=q, cost="precomputed", epsilon=epsilon, starts=1, tol=1e-8)
    assert_close(solution.structure_value, float(log["gw_dist"]), 1e-4)
    assert_close(solution.plan.dense(), plan, atol=1e-5)


def test_semirelaxed_gromov_wasserstein(pair: dict[str, Any]) -> None:
    C, D, p, _ = pair.values()
    theirs = float(ot.gromov.semirelaxed_gromov_wasserstein2(C, D, p))
    solution = gromov_wasserstein(C, D, a=p, cost="precomputed", marginals=(Exact(), Free()), starts=1)
    assert_close(solution.value, theirs, 1e-6)


def test_unbalanced_gromov_wasserstein(pair: dict[str, Any]) -> None:
    C, D, p, q = pair.values()
    plan, _ = ot.gromov.fused_unbalanced_gromov_wasserstein(
        C, D, p, q, reg_marginals=2.0, epsilon=0.5, divergence="kl", max_iter=3000, tol=1e-12, max_iter_ot=5000,
        tol_ot=1e-12,
    )  # fmt: skip
    solution = gromov_wasserstein(
        C, D, a=p, b=q, cost="precomputed", marginals=KL(2.0), epsilon=0.5, starts=1, tol=1e-8
    )
    assert_close(solution.plan.dense(), plan, atol=1e-5)


# -- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_gradients_of_the_value_in_matrices(epsilon: float | None) -> None:
    C, D = (torch.from_numpy(np.exp(-distances(n, 2, n))).requires_grad_() for n in (5, 4))
    M = torch.from_numpy(rng(0).uniform(size=(5, 4))).requires_grad_()
    check_gradient(
        lambda C, D, M: (
            gromov_wasserstein(
                CostMatrix(C), CostMatrix(D), features=CostMatrix(M), alpha=0.7, epsilon=epsilon, starts=1, tol=1e-9
            ).value
        ),
        (C, D, M),
    )


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_gradients_of_the_value_in_points_and_features(epsilon: float | None) -> None:
    x, y, u, v = (t.requires_grad_() for t in (cloud(7, 1), cloud(6, 2, 1), cloud(7, 2, 2), cloud(6, 2, 3)))

    def value(*t: Tensor) -> Tensor:
        solution = gromov_wasserstein(t[0], t[1], features=(t[2], t[3]), epsilon=epsilon, starts=1, tol=1e-9)
        assert solution._form.factored
        return solution.value

    check_gradient(value, (x, y, u, v))


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_gradients_in_masses_are_those_along_measures(epsilon: float | None) -> None:
    x, y = cloud(6, 2), cloud(5, 3, 1)
    a = weights(6).requires_grad_()

    def value(a: Tensor) -> Tensor:
        return gromov_wasserstein(x, y, a=a / a.sum(), b=weights(5, 1), epsilon=epsilon, starts=1, tol=1e-10).value

    check_gradient(value, (a,))


def check_gradient(function: Any, inputs: tuple[Tensor, ...]) -> None:
    """Along one random direction, against central differences."""
    directions = [torch.from_numpy(rng(k).normal(size=t.shape)) for k, t in enumerate(inputs)]
    gradients = torch.autograd.grad(function(*inputs), inputs)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions))
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (function(*(t + s * d for t, d in zip(inputs, directions))) for s in (step, -step))
    assert_close(slope, float(ahead - behind) / (2 * step), 2e-4)


# -- inputs ------------------------------------------------------------------------------------------------------


def test_graphs_of_networkx_and_scipy() -> None:
    graph = nx.cycle_graph(6)
    nx.set_edge_attributes(graph, {e: 1.0 + k for k, e in enumerate(graph.edges)}, "weight")
    order = [3, 1, 5, 0, 2, 4]
    shuffled = nx.to_scipy_sparse_array(graph, dtype=float)[order][:, order]
    solution = gromov_wasserstein(graph, sparse.csr_array(shuffled))
    assert abs(float(solution.value)) < 1e-12
    assert isinstance(solution.value, float)
    assert [order[j] for j in solution.plan.argmax()] == list(range(6))
    adjacency = gromov_wasserstein(graph, sparse.csr_matrix(shuffled), cost="adjacency", starts=4,
                                   generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert_close(adjacency.problem.x.tile(), nx.to_numpy_array(graph))
    mixed = gromov_wasserstein(graph, cloud(6, 2).numpy(), cost=("shortest-path", "euclidean"))
    assert mixed.status.ok


def test_anndata_and_frames() -> None:
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    x = cloud(6, 3).numpy()
    frame = pd.DataFrame(x, index=list("abcdef"))
    solution = gromov_wasserstein(frame, anndata.AnnData(x[::-1].copy()))
    assert list(solution.plan.argmax().index) == list("abcdef")
    assert solution.plan.argmax().tolist() == [5, 4, 3, 2, 1, 0]


def test_a_graph_in_two_parts_is_refused() -> None:
    graph = nx.disjoint_union(nx.path_graph(3), nx.path_graph(2))
    with pytest.raises(InvalidInput, match="Keep one connected component"):
        gromov_wasserstein(graph, nx.path_graph(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "absolute"}, "loss: expected one of"),
        ({"alpha": 0.5}, "alpha: expected 1 where there are no features"),
        ({"features": np.ones((3, 3))}, "features: expected a cost of shape"),
        ({"features": np.ones((4, 5)), "alpha": 2}, "alpha: expected a number in"),
        ({"cost": "adjacency"}, "expected a networkx graph"),
        ({"cost": "precomputed"}, "expected a square matrix"),
        ({"solver": "sinkhorn"}, "solver: expected one of 'auto'"),
        ({"solver": Sinkhorn()}, "MultiStart solver"),
        ({"solver": "mirror"}, "mirror: expected an epsilon"),
        ({"marginals": KL(1.0)}, "conditional-gradient: expected exact marginals"),
        ({"marginals": (KL(1.0), Free()), "epsilon": 1.0}, "beside KL"),
        ({"epsilon": 1.0, "solver": "proximal"}, "proximal: expected no epsilon"),
        ({"starts": 0}, "starts: expected a positive integer"),
        ({"starts": np.ones((2, 2))}, "starts: expected plans of shape"),
        ({"starts": -np.ones((4, 5))}, "nonnegative masses"),
        ({"loss": "kl"}, "with loss='kl': expected entries > 0"),
        ({"generator": 3}, "generator: expected"),
        ({"solver": "quantized", "epsilon": 1.0}, "quantized: expected exact marginals"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        gromov_wasserstein(cloud(4, 2).numpy(), cloud(5, 3).numpy(), **arguments)


def test_linear_and_quadratic_solvers_are_kept_apart() -> None:
    problem = Quadratic.between(brenier.PointCloud(cloud(3)), brenier.PointCloud(cloud(3)))
    with pytest.raises(InvalidInput, match="network-simplex: expected a linear problem"):
        run(problem, NetworkSimplex())
    with pytest.raises(InvalidInput, match="conditional-gradient: expected a Quadratic"):
        brenier.solve(cloud(3), cloud(3), solver=ConditionalGradient())
    with pytest.raises(InvalidInput, match="MultiStart solver"):
        MultiStart(solver=Sinkhorn())
    with pytest.raises(InvalidInput, match="barycentric"):
        gromov_wasserstein(cloud(3), cloud(3)).map()


def test_not_converged_says_so() -> None:
    C, D = distances(10), rng(1).uniform(size=(9, 9))
    with pytest.warns(brenier.NotConvergedWarning, match="stopped at max_iter"):
        gromov_wasserstein(C, D, cost="precomputed", max_iter=2, starts=1)
    with pytest.raises(brenier.NotConverged):
        gromov_wasserstein(C, D, cost="precomputed", max_iter=2, starts=1, throw=True)


# -- large clouds and barycentres --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["farthest", "random"])
def test_quantized_plans_meet_their_masses(sampling: str) -> None:
    x, y = cloud(300, 2), cloud(250, 3, 1)
    a, b = weights(300), weights(250, 1)
    solver = brenier.solvers.Quantized(20, sampling=sampling)
    assert solver.anchors == 20
    solution = gromov_wasserstein(x, y, a=a, b=b, solver=solver, generator=torch.Generator().manual_seed(0))
    assert_close(solution.plan.row_sums(), a, atol=1e-12)
    assert_close(solution.plan.col_sums(), b, atol=1e-12)
    assert float(first_lower_bound(solution.problem).value) <= float(solution.value)
    product = Form(solution.problem)
    moments = product.product(product.a, product.b)
    assert float(solution.value) < 0.9 * float(product.energy(moments, product.half(moments)))


def test_quantized_with_every_point_an_anchor_is_the_exact_problem() -> None:
    x = cloud(12, 2)
    y, place = copy_of(x)
    solution = gromov_wasserstein(x, y, solver=brenier.solvers.Quantized(12))
    assert abs(float(solution.value)) < 1e-9
    assert solution.plan.argmax().tolist() == place.tolist()


def grouped(n: int, k: int, d: int, seed: int) -> Tensor:
    """Points around k centres."""
    return 3 * cloud(k, d, seed)[torch.arange(n) % k] + 0.1 * cloud(n, d, seed + 1)


def test_low_rank_plans_meet_their_masses_and_fall_in_value() -> None:
    x, y, a, b = cloud(90, 2), cloud(70, 3, 1), weights(90), weights(70, 1)
    energies: list[tuple[int, float]] = []

    def look(iteration: int, state: Any) -> None:
        if state.clusters is not None:
            energies.append((len(state.values), state.energy))

    found = []
    for rank in (1, 5, 20):
        solution = gromov_wasserstein(x, y, a=a, b=b, solver=brenier.solvers.LowRankGromov(rank), callback=look)
        found.append(float(solution.value))
        assert solution.status.ok
        assert_close(solution.plan.row_sums(), a, atol=1e-12)
        assert_close(solution.plan.col_sums(), b, atol=1e-12)
        assert np.linalg.matrix_rank(solution.plan.dense().numpy(), tol=1e-12) <= rank
        certificate = solution.certificate
        assert float(certificate.primal) == pytest.approx(found[-1], rel=1e-9)
        assert float(certificate.dual) <= found[-1]
        C, D = (torch.cdist(t, t).square().numpy() for t in (x, y))
        assert objective(solution.plan.dense().numpy(), C, D) == pytest.approx(found[-1], rel=1e-9)
        for (s, before), (t, after) in pairwise(energies):
            assert s != t or after <= before + 1e-12 * abs(before)
        energies.clear()
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(objective(np.outer(a, b), C, D), rel=1e-9)


def test_low_rank_finds_the_groups_of_a_copy() -> None:
    x = grouped(120, 6, 2, 3)
    y, place = copy_of(x)
    solution = gromov_wasserstein(x, y, solver=brenier.solvers.LowRankGromov(6))
    group = torch.arange(120) % 6
    assert bool((group[place.argsort()][solution.plan.argmax()] == group).all())
    exact = gromov_wasserstein(x, y)
    product = Form(solution.problem)
    moments = product.product(product.a, product.b)
    assert float(solution.value) - float(exact.value) < 0.02 * float(product.energy(moments, product.half(moments)))


def test_low_rank_with_features() -> None:
    x = grouped(60, 4, 2, 1)
    y, place = copy_of(x)
    features = cloud(60, 2, 7), cloud(60, 2, 7)[place.argsort()]
    solver = brenier.solvers.LowRankGromov(8)
    low, exact = (gromov_wasserstein(x, y, features=features, alpha=0.5, solver=s) for s in (solver, "auto"))
    assert float(exact.value) - 1e-9 <= float(low.value)
    P, M = low.plan.dense().numpy(), cdist(*(t.numpy() for t in features)) ** 2
    C, D = (torch.cdist(t, t).square().numpy() for t in (x, y))
    assert 0.5 * (P * M).sum() + 0.5 * objective(P, C, D) == pytest.approx(float(low.value), rel=1e-9)


def test_low_rank_below_the_number_of_groups() -> None:
    """Ten groups on each side: clusters of one side alone do not tell which of them go together."""
    rng = np.random.default_rng(0)
    label = rng.integers(10, size=600)
    x, y = (3 * rng.normal(size=(10, d))[label] + 0.3 * rng.normal(size=(600, d)) for d in (3, 2))
    solvers = [brenier.solvers.LowRankGromov(5, starts=k) for k in (1, 4)]
    one, four = (gromov_wasserstein(x, y, solver=s) for s in solvers)
    assert float(four.value) < float(one.value)
    assert len(one.stats["values"]) == 1  # a solver's own starts
    assert four.stats["values"][0] == pytest.approx(float(one.value))
    assert len(gromov_wasserstein(x, y, solver=solvers[1], starts=2).stats["values"]) == 2


def test_low_rank_of_few_points_and_its_gradient() -> None:
    x = torch.zeros(5, 2, dtype=torch.float64)
    assert abs(float(gromov_wasserstein(x, x[:3], solver="low-rank").value)) < 1e-12
    y = cloud(20, 2, 1)
    x = cloud(20, 2).requires_grad_()
    solution = gromov_wasserstein(x, y, solver=brenier.solvers.LowRankGromov(4))
    (gradient,) = torch.autograd.grad(solution.value, x)
    P = torch.as_tensor(solution.plan.dense())
    held = x.detach().requires_grad_()
    C, D = torch.cdist(held, held).square(), torch.cdist(y, y).square()
    value = (C.square() @ P.sum(1) @ P.sum(1)) + (D.square() @ P.sum(0) @ P.sum(0)) - 2 * ((C @ P @ D) * P).sum()
    assert_close(gradient, torch.autograd.grad(value, held)[0], atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": "euclidean"}, "low-rank: expected clouds with an inner-product cost"),
        ({"loss": "kl", "cost": "dot"}, "entries"),
        ({"epsilon": 0.1}, "low-rank: expected exact marginals and no epsilon"),
        ({"marginals": Partial(0.5)}, "low-rank: expected exact marginals and no epsilon"),
        ({"starts": np.full((40, 40), 1 / 1600)}, "starts: expected a number for solver='low-rank'"),
    ],
)
def test_low_rank_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        gromov_wasserstein(cloud(40, 2), cloud(40, 2, 1), solver="low-rank", **arguments)


def test_proximal_points_and_conditional_gradients_meet() -> None:
    x, y = cloud(9, 2), cloud(9, 2, 1)
    values = [float(gromov_wasserstein(x, y, solver=s, starts=3, generator=torch.Generator().manual_seed(0)).value)
              for s in (Proximal(), ConditionalGradient())]  # fmt: skip
    assert values[0] <= values[1] * 1.05


@pytest.mark.parametrize("loss", ["square", "kl"])
def test_the_barycentre_of_copies_is_a_copy(loss: str) -> None:
    C = distances(6)
    C = np.exp(-C) if loss == "kl" else C
    order = rng(1).permutation(6)
    copies = [CostMatrix(C), CostMatrix(C[order][:, order])]
    found = brenier.gromov_barycentre(copies, 6, loss=loss, generator=torch.Generator().manual_seed(0))
    assert abs(float(found.value)) < 1e-12
    assert_close(np.sort(np.asarray(found.structure).ravel()), np.sort(C.ravel()), atol=1e-9)


def test_the_barycentre_falls_and_lies_between() -> None:
    structures = [CostMatrix(distances(n, 2, n)) for n in (6, 7, 8)]
    found = brenier.gromov_barycentre(structures, 5, starts=1, generator=torch.Generator().manual_seed(0))
    assert all(v <= u + 1e-12 for u, v in zip(found.values, found.values[1:]))
    assert found.structure.shape == (5, 5)
    assert len(found.solutions) == 3


def test_refusals_of_the_barycentre() -> None:
    C = CostMatrix(distances(4))
    with pytest.raises(InvalidInput, match="structures: expected at least one"):
        brenier.gromov_barycentre([], 3)
    with pytest.raises(InvalidInput, match="positive integers"):
        brenier.gromov_barycentre([C], 0)
    with pytest.raises(InvalidInput, match="init: expected a matrix"):
        brenier.gromov_barycentre([C], 3, init=np.ones((4, 4)))
    with pytest.raises(InvalidInput, match="masses: expected one for each"):
        brenier.gromov_barycentre([C], 3, masses=[])


def test_a_callback_ends_the_starts_with_the_best_so_far() -> None:
    x, y = cloud(30), cloud(30, 3, 1)
    solution = gromov_wasserstein(x, y, starts=100_000, callback=lambda start, state: start == 3)
    assert len(solution.stats["values"]) == 3
    assert_close(solution.value, min(solution.stats["values"]), 1e-12)
    assert_close(solution.plan.row_sums(), torch.full((30,), 1 / 30, dtype=torch.float64), atol=1e-12)
