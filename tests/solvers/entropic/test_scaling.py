"""Scaling of sparse matrices by Newton's method."""

from __future__ import annotations

import numpy as np
import pytest

from brenier.solvers.entropic.scaling import SparseScaling


def problem(n, m, keep, seed, spread=8.0):
    """A positive matrix, the entries above a threshold, and sums to reach."""
    rng = np.random.default_rng(seed)
    P = np.exp(-spread * rng.uniform(size=(n, m)))
    P /= P.sum()
    rows, cols = np.nonzero(np.quantile(P, 1 - keep) <= P)
    left = P.copy()
    left[rows, cols] = 0
    return P, rows, cols, P[rows, cols], rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)), left.sum(1), left.sum(0)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 7), (60, 40)])
def test_all_entries_reach_the_sums(n, m):
    P, rows, cols, values, a, b, *others = problem(n, m, 1.0, 0)
    scaling = SparseScaling(rows, cols, values, a, b, *others)
    steps = scaling.solve(1e-11)
    scaled = P * np.exp(scaling.u[:, None] + scaling.v)
    np.testing.assert_allclose(scaled.sum(1), a, rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(scaled.sum(0), b, rtol=1e-7)
    assert steps.newton < 30


def test_the_others_grow_with_their_row_and_column():
    _, rows, cols, values, a, b, R, Q = problem(50, 50, 0.3, 1)
    scaling = SparseScaling(rows, cols, values, a, b, R, Q)
    scaling.solve(1e-11)
    scaled = values * np.exp(scaling.u[rows] + scaling.v[cols])
    np.testing.assert_allclose(np.bincount(rows, scaled, 50) + R * np.exp(scaling.u), a, rtol=1e-7)
    np.testing.assert_allclose(np.bincount(cols, scaled, 50) + Q * np.exp(scaling.v), b, rtol=1e-7)


def test_a_link_that_has_to_grow_by_many_orders():
    """Two blocks, of which one has mass that the other needs, and a link of 1e-6."""
    n = 10
    rng = np.random.default_rng(2)
    block = rng.uniform(0.5, 1, (n, n))
    P = np.block([[block, np.full((n, n), 1e-6)], [np.full((n, n), 1e-6), block]]) / (2 * n * n)
    a, b = np.full(2 * n, 0.05), np.full(2 * n, 0.05)
    a[:n], a[n:] = 0.06, 0.04
    rows, cols = (t.ravel() for t in np.indices(P.shape))
    scaling = SparseScaling(rows, cols, P.ravel(), a, b, np.zeros(2 * n), np.zeros(2 * n))
    steps = scaling.solve(1e-10)
    scaled = P * np.exp(scaling.u[:, None] + scaling.v)
    np.testing.assert_allclose(scaled.sum(1), a, rtol=1e-5)  # what is taken to lie elsewhere has grown as well
    assert scaling.u[:n].mean() - scaling.u[n:].mean() > 9
    assert steps.newton < 20


def test_lines_without_mass_take_no_part():
    P, rows, cols, values, a, b, *others = problem(20, 20, 1.0, 3)
    a[3], b[5] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    keep = (rows != 3) & (cols != 5)
    P[3], P[:, 5] = 0, 0
    scaling = SparseScaling(rows[keep], cols[keep], values[keep], a, b, *others)
    scaling.solve(1e-11)
    assert scaling.u[3] == 0
    assert np.isfinite(scaling.v).all()
    np.testing.assert_allclose((P * np.exp(scaling.u[:, None] + scaling.v)).sum(1), a, rtol=1e-7, atol=1e-12)


def test_the_tangent_is_the_derivative_in_epsilon():
    """Against finite differences of potentials that were solved for."""
    rng = np.random.default_rng(4)
    n, m = 12, 9
    C, a, b = rng.uniform(size=(n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    rows, cols = (t.ravel() for t in np.indices(C.shape))

    def solved(eps):
        P = np.outer(a, b) * np.exp(-C / eps)
        scaling = SparseScaling(rows, cols, P.ravel(), a, b, np.zeros(n), np.zeros(m))
        scaling.solve(1e-14)
        return scaling, eps * scaling.u

    scaling, _ = solved(0.1)
    (_, before), (_, after) = solved(0.1 - 1e-5), solved(0.1 + 1e-5)
    slope = (after - before) / 2e-5
    found, _ = scaling.tangent(a, b)
    centred = [t - a @ t for t in (found, slope)]
    np.testing.assert_allclose(*centred, rtol=1e-2, atol=1e-2 * np.abs(centred[1]).max())
