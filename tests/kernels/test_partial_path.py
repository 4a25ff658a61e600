"""One battery for both engines of partial transport on the line: every number of pairs against the assignment."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from brenier.kernels.partial_path import native, partial_paths

ENGINES = [
    pytest.param("native", marks=pytest.mark.skipif(native is None, reason="native engine not built")),
    "reference",
]
KINDS = ["normal", "ties", "equal", "apart", "clusters", "nested", "huge"]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def points(kind, n, m, rng):
    """Sorted points of many instances in one: (count, n) and (count, m)."""
    x, y = rng.normal(size=(25, n)), rng.normal(size=(25, m))
    if kind == "ties":
        x, y = rng.integers(0, 4, (25, n)).astype(float), rng.integers(0, 4, (25, m)).astype(float)
    elif kind == "equal":
        x, y = 0 * x, 0 * y
    elif kind == "apart":
        y = y + 8
    elif kind == "clusters":
        x, y = x + 100 * rng.integers(-1, 2, (25, n)), y + 100 * rng.integers(-1, 2, (25, m))
    elif kind == "nested":
        y = 5 * y
    elif kind == "huge":
        x, y = 1e60 * x, 1e60 * y
    return np.sort(x), np.sort(y)


def run(x, y, p, engine, pairs=None, price=np.inf):
    count, most = len(x), min(x.shape[1], y.shape[1])
    pairs = np.full(count, most if pairs is None else pairs)
    return partial_paths(x, y, p, pairs=pairs, price=np.full(count, float(price)), engine=engine)


def best(cost, k):
    """The least cost of k pairs: spare columns take the rows without a pair, spare rows the columns without one."""
    n, m = cost.shape
    wide = np.full((n + m - k, n + m - k), np.inf)
    wide[:n, :m], wide[:n, m:], wide[n:, :m] = cost, 0, 0
    rows, cols = linear_sum_assignment(wide)
    return wide[rows, cols].sum()


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_pairs_is_optimal(engine, kind, p):
    rng = np.random.default_rng(KINDS.index(kind))
    for n, m in ((1, 1), (1, 5), (6, 6), (7, 4)):
        x, y = points(kind, n, m, rng)
        step_x, step_y, prices = run(x, y, p, engine)
        cost = np.abs(x[:, :, None] - y[:, None]) ** p
        atol = 1e-13 * (1 + cost.max())
        for k in range(1, min(n, m) + 1):
            of_x, of_y = (np.stack([z[s <= k] for z, s in zip(*pair)]) for pair in ((x, step_x), (y, step_y)))
            assert of_x.shape == of_y.shape == (25, k)
            matched = (np.abs(of_x - of_y) ** p).sum(-1)
            expected = [best(c, k) for c in cost]
            np.testing.assert_allclose(matched, expected, rtol=1e-12, atol=atol)
            np.testing.assert_allclose(prices[:, :k].sum(-1), expected, rtol=1e-12, atol=atol)
        assert (np.diff(prices) >= -atol).all()


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_engines_agree_on_many_points(p):
    if native is None:
        pytest.skip("native engine not built")
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(3, 400))), np.sort(rng.normal(size=(3, 300)) + 0.5)
    ours, reference = run(x, y, p, "native"), run(x, y, p, "reference")
    np.testing.assert_allclose(ours.prices, reference.prices, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(ours.step_x, reference.step_x)
    np.testing.assert_array_equal(ours.step_y, reference.step_y)


def test_a_path_may_end_early(engine):
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(4, 30))), np.sort(rng.normal(size=(4, 20)))
    whole = run(x, y, 2.0, engine)
    some = run(x, y, 2.0, engine, pairs=7)
    assert (some.prices[:, :7] == whole.prices[:, :7]).all()
    assert np.isinf(some.prices[:, 7:]).all()
    assert (np.where(whole.step_x <= 7, whole.step_x, 21) == some.step_x).all()
    assert (np.where(whole.step_y <= 7, whole.step_y, 21) == some.step_y).all()
    price = whole.prices[0, 9]
    cheap = run(x, y, 2.0, engine, price=price)
    assert np.isfinite(cheap.prices[0]).sum() == 9  # the next one would cost as much
    assert (np.isfinite(cheap.prices) == (whole.prices < price)).all()
    assert np.isinf(run(x, y, 2.0, engine, pairs=0).prices).all()


def test_by_hand(engine):
    """0 meets 0, then 1 meets 1.5; for 9 and -4 all of them move on."""
    result = run(np.array([[0.0, 1.0, 9.0]]), np.array([[-4.0, 0.0, 1.5]]), 1.0, engine)
    assert result.prices.tolist() == [[0.0, 0.5, 12.0]]
    assert result.step_x.tolist() == [[1, 2, 3]]
    assert result.step_y.tolist() == [[3, 1, 2]]


def test_bad_input():
    x = np.zeros((1, 2))
    with pytest.raises(ValueError, match="expected engine"):
        run(x, x, 2.0, "gpu")
