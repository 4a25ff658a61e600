"""One battery for both engines of the assignment problem."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from brenier.kernels.assignment import assignment, native

ENGINES = [
    pytest.param("native", marks=pytest.mark.skipif(native is None, reason="native engine not built")),
    "reference",
]
KINDS = ["normal", "ties", "zeros", "huge", "small", "points"]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def costs(kind, shape, rng):
    if kind == "ties":
        return rng.integers(-3, 4, shape).astype(float)
    if kind == "zeros":
        return np.zeros(shape)
    if kind == "points":
        x, y = rng.integers(0, 5, (2, shape[0], max(shape[1:]), 2))
        x, y = x[:, : shape[1]], y[:, : shape[2]]
        return ((x[:, :, None] - y[:, None]) ** 2).sum(-1).astype(float)
    return rng.normal(size=shape) * {"normal": 1, "huge": 1e200, "small": 1e-200}[kind]


def values(cost, result):
    """The cost of the pairs of each problem."""
    cols = result.cols
    picked = np.take_along_axis(cost, np.maximum(cols, 0)[..., None], -1)[..., 0]
    return np.where(cols >= 0, picked, 0).sum(-1)


def check(cost, result, *, pairs=None, price=np.inf):
    """Pairs are pairs, the duals are feasible and complementary, and both sums agree: a proof of optimality."""
    count, n, m = cost.shape
    least = min(n, m) if pairs is None else pairs
    finite = np.abs(np.where(np.isfinite(cost), cost, 0)).max(initial=0)
    atol = 1e-13 * max(finite, price if price < np.inf else 0) * (n + m)
    f, g, level = result.f, result.g, result.level[:, None]
    assert np.isfinite(f).all()
    assert np.isfinite(g).all()
    found = result.cols >= 0
    assert (found.sum(-1) == result.found).all()
    assert (result.found <= least).all()
    if price == np.inf:
        assert (result.found == least).all()
    for cols in result.cols:
        assert len(set(cols[cols >= 0])) == (cols >= 0).sum()
        assert cols.max(initial=-1) < m
    slack = cost - f[:, :, None] - g[:, None]
    assert slack.min() >= -atol
    on_pairs = np.take_along_axis(slack, np.maximum(result.cols, 0)[..., None], -1)[..., 0]
    assert np.abs(np.where(found, on_pairs, 0)).max() <= atol
    if (result.found < n).any():  # rows may stay unmatched
        assert (f <= level + atol).all()
        assert np.abs(np.where(found, 0, f - level)).max() <= atol
    if (result.found < m).any():
        open_columns = np.ones((count, m + 1), bool)
        np.put_along_axis(open_columns, np.where(found, result.cols, m), False, -1)
        assert (g <= atol).all()
        assert np.abs(np.where(open_columns[:, :m], g, 0)).max() <= atol
    dual = f.sum(-1) + g.sum(-1) - result.level * (n - result.found)
    np.testing.assert_allclose(values(cost, result), dual, rtol=0, atol=atol)


def by_linear_program(cost, pairs, price=None):
    """The least cost of exactly so many pairs, or of at most so many at a price."""
    n, m = cost.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    objective, every = (cost.ravel() if price is None else cost.ravel() - price), np.ones((1, n * m))
    if price is None:
        return linprog(objective, A_ub=sums, b_ub=np.ones(n + m), A_eq=every, b_eq=[pairs], method="highs").fun
    rows = np.vstack([sums, every])
    return linprog(objective, A_ub=rows, b_ub=np.append(np.ones(n + m), pairs), method="highs").fun


# --------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_known_answer(engine, dtype):
    cost = np.array([[[4, 1, 3], [2, 0, 5], [3, 2, 2]]], dtype)
    result = assignment(cost, engine=engine)
    assert result.cols.tolist() == [[1, 0, 2]]
    check(cost, result)
    assert values(cost, result) == 5


def test_one_pair_is_the_least_cost(engine):
    cost = np.random.default_rng(0).normal(size=(5, 6, 4))
    result = assignment(cost, pairs=1, engine=engine)
    check(cost, result, pairs=1)
    np.testing.assert_array_equal(values(cost, result), cost.min((1, 2)))


@pytest.mark.parametrize("n", range(1, 8))
def test_no_permutation_is_better(engine, n):
    rng = np.random.default_rng(n)
    cost = np.concatenate([costs(kind, (3, n, n), rng) for kind in ("normal", "ties", "points")])
    every = np.array(list(permutations(range(n))))
    best = [c[np.arange(n), every].sum(-1).min() for c in cost]
    result = assignment(cost, engine=engine)
    check(cost, result)
    np.testing.assert_allclose(values(cost, result), best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("price", [1.0, 2.0, 0.5, -1.0])
def test_a_price_leaves_dear_pairs_unmatched(engine, price):
    cost = np.array([[[1.0, 9.0], [9.0, 2.0]]])
    result = assignment(cost, price=price, engine=engine)
    check(cost, result, price=price)
    dear = [c > price for c in (1.0, 2.0)]
    assert result.cols.tolist() == [[-1 if d else i for i, d in enumerate(dear)]]


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_scipy(engine, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for n, m in [(1, 1), (1, 9), (6, 1), (5, 5), (8, 8), (9, 17), (17, 9), (16, 16), (33, 33), (31, 40)]:
        cost = costs(kind, (40, n, m), rng)  # 2,400 in all
        result = assignment(cost, engine=engine)
        check(cost, result)
        best = [c[linear_sum_assignment(c)].sum() for c in cost]
        np.testing.assert_allclose(values(cost, result), best, rtol=0, atol=1e-12 * max(np.abs(cost).max(), 1e-300))


@pytest.mark.parametrize("kind", ["normal", "ties", "points"])
@pytest.mark.parametrize("shape", [(1, 4), (4, 4), (4, 7), (9, 5), (8, 8)])
def test_parts_agree_with_a_linear_program(engine, kind, shape):
    rng = np.random.default_rng(sum(shape))
    cost = costs(kind, (2, *shape), rng)
    for pairs in range(1, min(shape) + 1):
        result = assignment(cost, pairs=pairs, engine=engine)
        check(cost, result, pairs=pairs)
        best = [by_linear_program(c, pairs) for c in cost]
        np.testing.assert_allclose(values(cost, result), best, rtol=0, atol=1e-9)
        for price in (float(np.median(cost)), float(cost.min()), float(cost.max()) + 1):
            result = assignment(cost, pairs=pairs, price=price, engine=engine)
            check(cost, result, pairs=pairs, price=price)
            best = [by_linear_program(c, pairs, price) for c in cost]
            np.testing.assert_allclose(values(cost, result) - price * result.found, best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["normal", "ties", "points"])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (6, 4), (5, 9)])
def test_parts_at_a_price_are_proved(engine, kind, shape):  # the search ends at the price, or at the number of pairs
    cost = costs(kind, (60, *shape), np.random.default_rng(9))
    for pairs in range(1, min(shape) + 1):
        for price in np.quantile(cost, [0.1, 0.3, 0.5, 0.9]) + 0.25:
            check(cost, assignment(cost, pairs=pairs, price=price, engine=engine), pairs=pairs, price=price)


def test_forbidden_pairs(engine):
    rng = np.random.default_rng(3)
    cost = rng.normal(size=(30, 8, 10))
    forbidden = rng.random(cost.shape) < 0.5
    forbidden[:, np.arange(8), np.arange(8)] = False  # some way is left
    cost[forbidden] = np.inf
    result = assignment(cost, engine=engine)
    check(cost, result)
    best = [c[linear_sum_assignment(c)].sum() for c in cost]
    np.testing.assert_allclose(values(cost, result), best, rtol=0, atol=1e-12)
    check(cost, assignment(cost, pairs=5, engine=engine), pairs=5)
    check(cost, assignment(cost, price=0.2, engine=engine), price=0.2)
    turned = np.ascontiguousarray(cost.swapaxes(1, 2))
    check(turned, assignment(turned, engine=engine))


def test_too_many_forbidden_pairs_are_told(engine):
    cost = np.ones((2, 3, 3))
    cost[0, :, 1:] = np.inf
    result = assignment(cost, engine=engine)
    assert result.found[0] < 3
    assert result.found[1] == 3
    assert assignment(cost, pairs=2, engine=engine).found[0] < 2
    assert assignment(cost, price=5.0, engine=engine).found.tolist() == [1, 3]


@pytest.mark.parametrize("options", [{}, {"pairs": 7}, {"price": 0.3}, {"pairs": 7, "price": 0.3}])
def test_a_batch_is_a_loop(engine, options):
    cost = np.random.default_rng(4).normal(size=(70, 11, 13))
    one_by_one = [assignment(c[None], engine=engine, **options) for c in cost]
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            result = assignment(cost, engine=engine, **options)
        finally:
            torch.set_num_threads(before)
        for whole, parts in zip(result, zip(*one_by_one)):
            np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("shape", [(300, 300), (251, 300), (300, 251)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_matrices(engine, shape, dtype):  # above 2^16 entries float64 is read in place, with ragged ends
    cost = np.random.default_rng(5).normal(size=(1, *shape)).astype(dtype)
    exact = cost.astype(np.float64)
    result = assignment(cost, engine=engine)
    check(exact, result)
    assert values(exact, result) == pytest.approx(exact[0][linear_sum_assignment(exact[0])].sum(), abs=1e-9)
    check(exact, assignment(cost, pairs=100, engine=engine), pairs=100)
    check(exact, assignment(cost, price=-2.0, engine=engine), price=-2.0)


def test_duals_to_start_from(engine):
    cost = np.random.default_rng(6).normal(size=(20, 12, 12))
    cold = assignment(cost, engine=engine)
    for g in (cold.g, cold.g + 3, np.random.default_rng(7).normal(size=cold.g.shape)):
        warm = assignment(cost, g=g, engine=engine)
        check(cost, warm)
        np.testing.assert_array_equal(warm.cols, cold.cols)


def test_no_problems(engine):
    assert assignment(np.empty((0, 3, 4)), engine=engine).cols.shape == (0, 3)


@pytest.mark.skipif(native is None, reason="native engine not built")
@pytest.mark.parametrize("shape", [(3, 3), (8, 8), (13, 21), (21, 13), (263, 263)])
def test_every_instruction_set(shape):
    rng = np.random.default_rng(8)
    chosen = native.simd()
    try:
        for level in native.simd_levels():
            native.set_simd(level)
            for kind in ("normal", "ties", "points"):
                cost = costs(kind, (3, *shape), rng)
                result = assignment(cost, engine="native")
                check(cost, result)
                best = [c[linear_sum_assignment(c)].sum() for c in cost]
                np.testing.assert_allclose(values(cost, result), best, rtol=0, atol=1e-10)
                for options in ({"pairs": 2}, {"price": 0.5}, {"pairs": 2, "price": 0.5}):
                    check(cost, assignment(cost, engine="native", **options), **options)
    finally:
        native.set_simd(chosen)


# -------------------------------------------------------------------------------------------- bad input


def test_bad_input(engine):
    cost = np.ones((1, 2, 3))
    for pairs in (0, 3):
        with pytest.raises(ValueError, match="expected from 1 to 2 pairs"):
            assignment(cost, pairs=pairs, engine=engine)
    with pytest.raises(ValueError, match="only for n = m"):
        assignment(cost, g=np.zeros((1, 3)), engine=engine)
    with pytest.raises(ValueError, match="expected engine"):
        assignment(cost, engine="gpu")


@pytest.mark.skipif(native is None, reason="native engine not built")
@pytest.mark.parametrize("kind", ["uniform", "integers", "clusters", "constant", "forbidden"])
def test_large_problems_start_from_a_sample(kind):
    n, rng = 520, np.random.default_rng(3)
    cost = rng.integers(0, 9, (n, n)).astype(float) if kind == "integers" else rng.random((n, n))
    if kind == "clusters":  # every other row is far away
        cost += 100 * (np.arange(n)[:, None] % 2 != np.arange(n) // (n // 2))
    if kind == "constant":
        cost[:] = 2
    if kind == "forbidden":
        cost[rng.random((n, n)) < 0.9] = np.inf
        np.fill_diagonal(cost, 1)
    result = assignment(cost[None], engine="native")
    rows, cols = linear_sum_assignment(cost)
    assert sorted(result.cols[0]) == list(range(n))
    assert cost[rows, result.cols[0]].sum() == pytest.approx(cost[rows, cols].sum(), rel=1e-12)
    assert (result.f[0][:, None] + result.g[0] <= cost + 1e-12).all()
    assert result.f.sum() + result.g.sum() == pytest.approx(cost[rows, cols].sum(), rel=1e-12)
