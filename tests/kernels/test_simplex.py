"""One battery for both engines of the exact transportation solver."""

import os
import signal
import threading

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from brenier.kernels import simplex
from brenier.kernels.simplex import SimplexResult, network_simplex, network_simplices

EPS = np.finfo(np.float64).eps


@pytest.fixture(
    params=[
        pytest.param(
            "native",
            marks=pytest.mark.skipif(simplex.native is None, reason="native engine not built"),
        ),
        "reference",
    ]
)
def engine(request):
    return request.param


def dense(result, cost):
    plan = np.zeros(cost.shape)
    np.add.at(plan, (result.rows, result.cols), result.mass)
    return plan


def value(result, cost):
    return float(cost[result.rows, result.cols] @ result.mass)


def check_plan(result, cost, a, b):
    """The plan is feasible and sparse, and the duals are feasible: true of a stopped solve too."""
    plan, total, scale = dense(result, cost), a.sum(), np.abs(cost).max()
    assert (result.mass > 0).all()
    assert len(result.rows) <= max(0, np.count_nonzero(a) + np.count_nonzero(b) - 1)
    assert len(set(zip(result.rows.tolist(), result.cols.tolist()))) == len(result.rows)
    np.testing.assert_allclose(plan.sum(1), a, rtol=0, atol=32 * EPS * total)
    np.testing.assert_allclose(plan.sum(0), b, rtol=0, atol=32 * EPS * total)
    assert np.isfinite(result.f).all()
    assert np.isfinite(result.g).all()
    assert (cost - result.f[:, None] - result.g).min() >= -32 * EPS * scale


def check_optimal(result, cost, a, b):
    check_plan(result, cost, a, b)
    total, scale = a.sum(), np.abs(cost).max()
    assert result.optimal
    slack = (cost - result.f[:, None] - result.g)[result.rows, result.cols]
    assert np.abs(slack).max(initial=0) <= 1e-12 * scale
    assert value(result, cost) == pytest.approx(result.f @ a + result.g @ b, rel=0, abs=1e-12 * scale * total)


def clouds(seed, n, m, d=2, masses="random"):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    cost = ((x[:, None] - y) ** 2).sum(-1)
    if masses == "uniform":
        return cost, np.full(n, 1 / n), np.full(m, 1 / m)
    return cost, rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))


def by_linear_program(cost, a, b):
    n, m = cost.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return linprog(cost.ravel(), A_eq=sums[:-1], b_eq=np.concatenate([a, b])[:-1], method="highs").fun


# --------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (4, 7), (9, 3), (8, 8)])
@pytest.mark.parametrize("masses", ["random", "uniform"])
def test_agrees_with_a_linear_program(engine, shape, masses):
    cost, a, b = clouds(sum(shape), *shape, masses=masses)
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    assert value(result, cost) == pytest.approx(by_linear_program(cost, a, b), abs=1e-9)


@pytest.mark.parametrize("n", [2, 30, 150])
def test_uniform_masses_give_a_permutation(engine, n):
    cost, a, b = clouds(n, n, n, d=3, masses="uniform")
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    assert sorted(result.rows) == sorted(result.cols) == list(range(n))
    assert (result.mass == a[0]).all()
    rows, cols = linear_sum_assignment(cost)
    assert value(result, cost) == pytest.approx(cost[rows, cols].mean(), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (50, 20), (7, 90)])
def test_sorted_points_on_a_line_couple_monotonically(engine, n, m):
    rng = np.random.default_rng(n)
    x, y = np.sort(rng.normal(size=n)), np.sort(rng.normal(size=m))
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    cost = (x[:, None] - y) ** 2
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    order = np.argsort(result.rows + (result.cols + 1) / (m + 2))
    assert (np.diff(result.cols[order]) >= 0).all()


def test_each_point_stays_when_the_measures_agree(engine):
    cost, a, _ = clouds(0, 60, 60)
    x = np.random.default_rng(0).normal(size=(60, 2))
    cost = ((x[:, None] - x) ** 2).sum(-1)
    result = network_simplex(cost, a, a, engine=engine)
    check_optimal(result, cost, a, a)
    assert value(result, cost) == 0
    np.testing.assert_array_equal(result.rows, result.cols)
    np.testing.assert_array_equal(result.mass, a[result.rows])


# ------------------------------------------------------------------------------- awkward masses, costs


@pytest.mark.parametrize("zeros", [("a",), ("b",), ("a", "b")])
def test_lines_without_mass_get_duals_and_no_plan(engine, zeros):
    cost, a, b = clouds(1, 30, 40)
    if "a" in zeros:
        a[[0, 3, 29]] = 0
    if "b" in zeros:
        b[5:20] = 0
    a, b = a / a.sum(), b / b.sum()
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    few = network_simplex(np.ascontiguousarray(cost[a > 0][:, b > 0]), a[a > 0], b[b > 0], engine=engine)
    assert value(result, cost) == pytest.approx(few.f @ a[a > 0] + few.g @ b[b > 0], abs=1e-13)


def test_no_mass_at_all_gives_an_empty_plan(engine):
    cost, a, b = clouds(1, 3, 4)
    result = network_simplex(cost, 0 * a, 0 * b, engine=engine)
    check_optimal(result, cost, 0 * a, 0 * b)
    assert len(result.rows) == 0


@pytest.mark.parametrize("constant", [0.0, 1.0, -2.5])
@pytest.mark.parametrize("masses", ["random", "uniform"])
def test_equal_costs(engine, constant, masses):
    _, a, b = clouds(2, 20, 30, masses=masses)
    cost = np.full((20, 30), constant)
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    assert value(result, cost) == pytest.approx(constant, abs=1e-13)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (40, 60), (100, 30)])
@pytest.mark.parametrize("top", [2, 5, 1000])
def test_integer_costs_and_masses_are_heavily_degenerate(engine, n, m, top):
    rng = np.random.default_rng(top)
    cost = rng.integers(0, top, size=(n, m)).astype(float)
    a = rng.integers(1, 4, size=n) * float(m)
    b = np.full(m, a.sum() / m)
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    np.testing.assert_array_equal(dense(result, cost).sum(1), a)
    assert value(result, cost) == pytest.approx(ot.emd2(a, b, cost), rel=1e-12, abs=1e-9)


def test_duplicate_points(engine):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 2)).repeat(6, axis=0), rng.normal(size=(9, 2)).repeat(8, axis=0)
    cost = ((x[:, None] - y) ** 2).sum(-1)
    a = b = np.full(72, 1 / 72)
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    assert value(result, cost) == pytest.approx(ot.emd2(a, b, cost), rel=1e-12)


@pytest.mark.parametrize("scale", [1e8, 1e-8, 1e150, 1e-150])
@pytest.mark.parametrize("mass", [1.0, 1e8, 1e-8])
def test_scales_of_cost_and_mass(engine, scale, mass):
    cost, a, b = clouds(4, 50, 60)
    plain = network_simplex(cost, a, b, engine=engine)
    cost, a, b = cost * scale, a * mass, b * mass
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    assert value(result, cost) / scale / mass == pytest.approx(plain.mass @ (cost / scale)[plain.rows, plain.cols])


def test_costs_may_be_negative_and_shift_the_value(engine):
    cost, a, b = clouds(5, 40, 50)
    shifted = cost - 7
    result = network_simplex(shifted, a, b, engine=engine)
    check_optimal(result, shifted, a, b)
    assert value(result, shifted) == pytest.approx(ot.emd2(a, b, cost) - 7, abs=1e-12)


def test_a_prohibitive_cost_does_not_blur_the_others(engine):
    cost, a, b = clouds(6, 40, 40, masses="uniform")
    walled = cost.copy()
    walled[np.random.default_rng(6).random(cost.shape) < 0.3] = 1e12
    result = network_simplex(walled, a, b, engine=engine)
    rows, cols = linear_sum_assignment(walled)
    assert value(result, walled) == pytest.approx(walled[rows, cols].mean(), rel=1e-12)


def test_wildly_different_masses(engine):
    cost, _, _ = clouds(7, 50, 50)
    a = np.logspace(0, -12, 50)
    b = np.random.default_rng(7).permutation(a)
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    np.testing.assert_allclose(dense(result, cost).sum(1), a, rtol=1e-6)
    assert value(result, cost) == pytest.approx(ot.emd2(a, b, cost), abs=1e-9)


def test_a_mass_below_the_integer_unit_keeps_its_value(engine):
    cost, a, b = clouds(8, 6, 6)
    a[0] = 1e-30
    result = network_simplex(cost, a, b / b.sum() * a.sum(), engine=engine)
    assert result.mass[result.rows == 0].tolist() == [1e-30]


def test_rounding_between_the_sums_is_absorbed(engine):
    cost, a, b = clouds(9, 50, 70)
    b = b * (1 + 1e-14)
    result = network_simplex(cost, a, b, engine=engine)
    assert result.optimal
    np.testing.assert_allclose(dense(result, cost).sum(0), b, rtol=0, atol=2e-14)


def test_unequal_sums_are_refused(engine):
    cost, a, b = clouds(9, 5, 5)
    with pytest.raises(ValueError, match="expected equal sums"):
        network_simplex(cost, a, 2 * b, engine=engine)


# ------------------------------------------------------------------------------------------ properties


@st.composite
def problems(draw):
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 100, 0]))  # 0: continuous
    cost = rng.integers(-levels, levels + 1, (n, m)).astype(float) if levels else rng.normal(size=(n, m))
    a, b = (rng.integers(0, draw(st.sampled_from([2, 4, 1000])), k).astype(float) for k in (n, m))
    a[rng.integers(n)] += 1
    b[rng.integers(m)] += 1
    return cost, a * b.sum(), b * a.sum()  # integers of equal sums


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_every_solution_is_certified(problem):
    values = []
    for engine in ["reference"] + ["native"] * (simplex.native is not None):
        result = network_simplex(*problem, engine=engine)
        check_optimal(result, *problem)
        values.append(value(result, problem[0]))
    assert values[0] == pytest.approx(by_linear_program(*problem), rel=1e-9, abs=1e-9 * problem[1].sum())
    np.testing.assert_allclose(values, values[0], rtol=1e-12, atol=1e-12 * problem[1].sum())


# ------------------------------------------------------------------------------------------ comparison


@pytest.mark.parametrize("masses", ["random", "uniform"])
@pytest.mark.parametrize(("n", "m", "d"), [(300, 300, 2), (300, 300, 16), (400, 300, 2), (5, 700, 2), (700, 5, 2)])
def test_agrees_with_pot(engine, n, m, d, masses):
    cost, a, b = clouds(n + m + d, n, m, d, masses)
    result = network_simplex(cost, a, b, engine=engine)
    check_optimal(result, cost, a, b)
    assert value(result, cost) == pytest.approx(ot.emd2(a, b, cost, numItermax=10**7), rel=1e-9)


# ------------------------------------------------------------------------------- starting and stopping


def test_drifting_potentials_do_not_let_an_arc_in_for_ever(engine):
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=draw).double().numpy() for n in (600, 720))
    cost = ((x[:, None] - y - 1) ** 2).sum(-1)
    a, b = np.full(600, 1 / 600), np.full(720, 1 / 720)
    check_optimal(network_simplex(cost, a, b, engine=engine, max_iter=60_000), cost, a, b)


@pytest.mark.parametrize("given_duals", ["f", "g", "fg"])
def test_optimal_duals_save_the_pivots(engine, given_duals):
    cost, a, b = clouds(10, 200, 250)
    cold = network_simplex(cost, a, b, engine=engine)
    duals = {name: getattr(cold, name) for name in given_duals}
    warm = network_simplex(cost, a, b, engine=engine, **duals)
    check_optimal(warm, cost, a, b)
    assert cold.n_iter > 500
    assert warm.n_iter <= 10


def test_any_duals_will_do_for_a_start(engine):
    cost, a, b = clouds(11, 60, 50)
    rng = np.random.default_rng(11)
    result = network_simplex(cost, a, b, f=100 * rng.normal(size=60), g=100 * rng.normal(size=50), engine=engine)
    check_optimal(result, cost, a, b)


@pytest.mark.parametrize("max_iter", [0, 1, 20])
def test_max_iter_returns_a_feasible_plan(engine, max_iter):
    cost, a, b = clouds(12, 150, 150)
    best = network_simplex(cost, a, b, engine=engine)
    result = network_simplex(cost, a, b, engine=engine, max_iter=max_iter)
    check_plan(result, cost, a, b)
    assert not result.optimal
    assert result.n_iter == max_iter
    assert result.f @ a + result.g @ b <= value(best, cost) + 1e-12 <= value(result, cost) + 2e-12


def test_interrupt_returns_a_feasible_plan(engine):
    cost, a, b = clouds(13, 300, 300)
    result = network_simplex(cost, a, b, engine=engine, interrupt=lambda: True)
    check_plan(result, cost, a, b)
    assert not result.optimal


def test_interrupt_that_stays_false_changes_nothing(engine):
    cost, a, b = clouds(14, 100, 100)
    result = network_simplex(cost, a, b, engine=engine, interrupt=lambda: False)
    assert result.n_iter == network_simplex(cost, a, b, engine=engine).n_iter
    assert result.optimal


def test_errors_of_interrupt_propagate(engine):
    def interrupt():
        raise RuntimeError("enough")

    cost, a, b = clouds(15, 100, 100)
    with pytest.raises(RuntimeError, match="enough"):
        network_simplex(cost, a, b, engine=engine, interrupt=interrupt)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_keyboard_interrupt_propagates(engine):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        return False

    cost, a, b = clouds(16, 300, 300)
    with pytest.raises(KeyboardInterrupt):
        network_simplex(cost, a, b, engine=engine, interrupt=interrupt)


def test_solves_in_threads_do_not_meet(engine):
    problem = clouds(17, 150, 150)
    values = [None] * 4

    def run(k):
        values[k] = value(network_simplex(*problem, engine=engine), problem[0])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(values)) == 1


def test_bad_arguments_are_refused(engine):
    cost, a, b = clouds(0, 4, 5)
    with pytest.raises(ValueError, match="expected a cost of shape"):
        network_simplex(cost, b, a, engine=engine)
    with pytest.raises(ValueError, match="expected finite duals"):
        network_simplex(cost, a, b, g=np.full(5, np.nan), engine=engine)


def test_unknown_engine():
    with pytest.raises(ValueError, match="expected engine"):
        network_simplex(*clouds(0, 2, 2), engine="gpu")


def test_the_cost_is_left_alone(engine):
    cost, a, b = clouds(18, 300, 280)
    kept = [array.copy() for array in (cost, a, b)]
    for array in (cost, a, b):
        array.setflags(write=False)
    network_simplex(cost, a, b, engine=engine)
    for array, copy in zip((cost, a, b), kept):
        np.testing.assert_array_equal(array, copy)


# ------------------------------------------------------------------------------------------ many problems at once


def ragged(seed, count, largest, kind):
    """Padded costs and masses of problems of 1 to `largest` points a side; some points and a problem have no mass."""
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(count, largest, largest)) if kind == "random" else np.zeros((count, largest, largest))
    a, b = np.zeros((2, count, largest))
    for k in range(1, count):
        n, m = rng.integers(1, largest + 1, 2)
        if kind == "random":
            a[k, :n], b[k, :m] = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
        else:  # heavily degenerate
            cost[k, :n, :m] = rng.integers(0, 4, (n, m))
            a[k, :n], b[k, :m] = 1 / n, 1 / m
        for side, size in ((a[k], n), (b[k], m)):
            side[:size] *= rng.random(size) < 0.9
            side[rng.integers(size)] += 0.1
            side /= side.sum()
    return cost, a, b


def item(results, k):
    rows, cols, mass, f, g, _, n_iter, optimal = (t[k] for t in results)
    return SimplexResult(rows[mass > 0], cols[mass > 0], mass[mass > 0], f, g, n_iter, optimal)


def check_items(results, cost, a, b):
    """Each item is proved, and has the value that it has alone."""
    for k, problem in enumerate(zip(cost, a, b)):
        check_optimal(item(results, k), *problem)
        alone = value(network_simplex(*problem), cost[k])
        assert value(item(results, k), cost[k]) == pytest.approx(alone, rel=1e-12, abs=1e-12 * np.abs(cost[k]).max())


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_many_problems_have_the_values_they_have_alone(engine, kind):
    """Also from the trees of the costs before."""
    cost, a, b = ragged(0, 12, 40, kind)
    results = network_simplices(cost, a, b, engine=engine)
    check_items(results, cost, a, b)
    rng = np.random.default_rng(1)
    for _ in range(3):
        step = rng.normal(size=cost.shape) if kind == "random" else rng.integers(-1, 2, cost.shape)
        cost = cost + step * (a > 0)[:, :, None]
        results = network_simplices(cost, a, b, g=results.g, tree=results.tree, engine=engine)
        check_items(results, cost, a, b)


def test_uniform_and_other_masses_meet_in_a_batch(engine):
    problems = [clouds(seed, 30, 20, masses=masses) for seed, masses in enumerate(("uniform", "random", "uniform"))]
    cost, a, b = map(np.stack, zip(*problems))
    check_items(network_simplices(cost, a, b, engine=engine), cost, a, b)
    assert network_simplices(cost[:0], a[:0], b[:0], engine=engine).rows.shape == (0, 49)


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
def test_trees_save_the_pivots_or_are_left_out():
    cost, a, b = ragged(2, 12, 40, "random")
    cold = network_simplices(cost, a, b, engine="native")
    again = network_simplices(cost, a, b, tree=cold.tree, engine="native")
    check_items(again, cost, a, b)
    assert cold.n_iter.sum() > 100
    assert again.n_iter.sum() == 0
    rng = np.random.default_rng(3)
    loops = np.where(np.arange(80) < 40, 40, 0).astype(np.int32)  # of the first row and the first column
    others = network_simplices(cost, *ragged(4, 12, 40, "random")[1:], engine="native").tree
    noise = rng.integers(-3, 90, cold.tree.shape).astype(np.int32)
    for tree in (others, np.tile(loops, (12, 1)), noise, np.full_like(noise, -1)):
        check_items(network_simplices(cost, a, b, tree=tree, engine="native"), cost, a, b)


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
def test_the_number_of_threads_changes_nothing():
    cost, a, b = ragged(5, 40, 40, "random")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(network_simplices(cost, a, b, engine="native"))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)


def test_many_problems_can_be_stopped(engine):
    cost, a, b = map(np.stack, zip(*(clouds(seed, 60, 50) for seed in range(3))))
    results = network_simplices(cost, a, b, interrupt=lambda: True, engine=engine)
    for k in range(3):
        check_plan(item(results, k), cost[k], a[k], b[k])
    assert not results.optimal.all()

    def interrupt():
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        network_simplices(cost, a, b, interrupt=interrupt, engine=engine)


def test_bad_arguments_for_many_problems_are_refused(engine):
    cost, a, b = ragged(0, 3, 5, "random")
    with pytest.raises(ValueError, match="expected a, b, g and tree for costs"):
        network_simplices(cost, a[:2], b, engine=engine)
    with pytest.raises(ValueError, match="expected finite duals"):
        network_simplices(cost, a, b, g=np.full((3, 5), np.nan), engine=engine)
    with pytest.raises(ValueError, match="expected equal sums"):
        network_simplices(cost, a, 2 * b, engine=engine)
    with pytest.raises(ValueError, match="expected engine"):
        network_simplices(cost, a, b, engine="gpu")


# ------------------------------------------------------------------------------------ arcs that the caller brings


def listed(cost, a, b, first, rng):
    """The problem on a random share of the arcs, then on those that violate, until none does."""
    supply, demand, _ = simplex.integer_masses(a, b)
    problem = simplex.native.ListedTransport(supply, demand)
    f, g = cost.min(1), np.zeros(len(b))
    rows, cols = np.nonzero(rng.random(cost.shape) < first)
    while not problem.plant(rows, cols, cost[rows, cols], f, g):
        left = problem.leftovers()
        rows, cols = (t.ravel().astype(np.int64) for t in np.meshgrid(*left))
    rounds = 0
    while True:
        rounds += 1
        assert problem.pivot(2**62, None)
        *_, f, g, _ = problem.basis()
        reduced = cost - f[:, None] - g
        rows, cols = np.nonzero((reduced <= reduced.min(1, keepdims=True)) & (reduced < 0))
        if problem.add(rows, cols, cost[rows, cols]) == 0:
            return problem, rounds


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
@pytest.mark.parametrize("masses", ["random", "uniform"])
@pytest.mark.parametrize("first", [0.02, 0.3, 1.0])
@pytest.mark.parametrize(("n", "m"), [(1, 9), (9, 1), (80, 80), (60, 90)])
def test_listed_arcs_reach_the_same_optimum(n, m, first, masses):
    cost, a, b = clouds(n + m, n, m, masses=masses)
    problem, rounds = listed(cost, a, b, first, np.random.default_rng(n))
    rows, cols, flow, f, g, _ = problem.basis()
    assert len(rows) == n + m - 1
    assert (flow >= 0).all()
    assert (cost - f[:, None] - g).min() >= -2 * problem.tolerance
    np.testing.assert_allclose((cost - f[:, None] - g)[rows, cols], 0, atol=problem.tolerance)
    best = value(network_simplex(cost, a, b, engine="native"), cost)
    assert cost[rows, cols] @ flow / flow.sum() == pytest.approx(best, rel=1e-12)
    assert rounds > 1 or first == 1.0 or min(n, m) == 1
    assert problem.size >= n + m - 1


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
def test_arcs_that_do_not_violate_or_are_known_are_not_listed():
    cost, a, b = clouds(3, 30, 20)
    problem, _ = listed(cost, a, b, 1.0, np.random.default_rng(0))
    size = problem.size
    rows, cols = (t.ravel() for t in np.indices(cost.shape))
    assert problem.add(rows, cols, cost.ravel()) == 0
    assert problem.add(rows, cols, cost.ravel() - 100.0) == 0
    assert problem.size == size


@pytest.mark.parametrize("seed", range(4))
def test_few_violators_beside_many_tight_arcs(engine, seed):
    """A row of one cost for all columns has hundreds of tight arcs, and now and then a few that violate."""
    n, m = (500, 450) if engine == "native" else (60, 50)
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random((m, 2))
    cost = np.full((n + 1, m), 0.01)
    cost[:n] = ((x[:, None] - y) ** 2).sum(-1)
    a, b = np.append(rng.random(n) / n, 0.25), rng.random(m) / m
    b *= a.sum() / b.sum()
    result = network_simplex(cost, a, b, engine=engine)
    assert result.optimal
    primal, dual = (result.mass * cost[result.rows, result.cols]).sum(), result.f @ a + result.g @ b
    assert (cost - result.f[:, None] - result.g).min() > -1e-15
    assert abs(primal - dual) < 1e-14


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
@pytest.mark.parametrize("seed", range(8))
def test_a_tree_takes_a_plan_and_cancels_its_cycles(seed):
    rng = np.random.default_rng(seed)
    n, m = 30, 40
    whole = rng.integers(1, 50, (n, m)) * (rng.random((n, m)) < 0.15)  # with many cycles
    whole[np.arange(n), np.arange(n)] += 1
    whole[0] += 1
    supply, demand = whole.sum(1), whole.sum(0)
    cost = rng.random((n, m))
    rows, cols = np.nonzero(whole + (rng.random((n, m)) < 0.1))
    problem = simplex.native.ListedTransport(supply, demand)
    start = rows, cols, cost[rows, cols], cost.min(1), np.zeros(m), whole[rows, cols]
    while not problem.plant(*start):
        left = (t.ravel().astype(np.int64) for t in np.meshgrid(*problem.leftovers()))
        start = *(rows_cols := tuple(left)), cost[rows_cols], cost.min(1), np.zeros(m)
    i, j, flow, *_ = problem.basis()
    assert len(flow) == n + m - 1
    planted = np.zeros((n, m), np.int64)
    planted[i, j] = flow
    np.testing.assert_array_equal(planted.sum(1), supply)
    np.testing.assert_array_equal(planted.sum(0), demand)
    assert not (planted[whole == 0] > 0).any()  # the support of the plan, and no more
    assert (planted * cost).sum() <= (whole * cost).sum()


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
def test_a_tree_takes_a_plan_without_cycles_as_it_is():
    cost, a, b = clouds(3, 50, 60, masses="random")
    supply, demand, _ = simplex.integer_masses(a, b)
    rows, cols, flow, *_ = simplex.native.network_simplex(cost, supply, demand, None, None, 3, None)
    f, g = np.zeros(50), cost.min(0)
    problem = simplex.native.ListedTransport(supply, demand)
    assert problem.plant(*(t.astype(np.int64) for t in (rows, cols)), cost[rows, cols], f, g, flow)
    i, j, planted, *_ = problem.basis()
    whole = np.zeros((2, 50, 60), np.int64)
    whole[0, rows, cols], whole[1, i, j] = flow, planted
    np.testing.assert_array_equal(whole[0], whole[1])
