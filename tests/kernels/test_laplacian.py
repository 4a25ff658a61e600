"""Laplacian systems: both engines against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array, random_array

from brenier.kernels.build import native
from brenier.kernels.laplacian import Laplacian

SIZES = [(1, 1, 1.0), (3, 5, 0.5), (40, 30, 0.1), (60, 80, 1.0), (200, 150, 0.02)]
ENGINES = ["reference", pytest.param("native", marks=pytest.mark.skipif(native is None, reason="not built"))]


def graph(n, m, density, seed, spread=3.0):
    """A bipartite graph with a path through all vertices, and weights over some orders of magnitude."""
    rng = np.random.default_rng(seed)
    W = random_array((n, m), density=density, rng=rng).tolil()
    for k in range(max(n, m)):
        W[k % n, k % m] = W[(k + 1) % n, k % m] = 1.0
    W = csr_array(W)
    W.data = 10 ** rng.uniform(-spread, 0, len(W.data))
    return W


def dense(W, ground):
    W = W.toarray()
    degrees = np.concatenate([W.sum(1), W.sum(0)]) + ground
    n = W.shape[0]
    A = np.diag(degrees)
    A[:n, n:], A[n:, :n] = -W, -W.T
    return A


def laplacian(W, ground, engine, seed=0):
    return Laplacian(W.indptr.astype(np.int64), W.indices.astype(np.int32), W.data, ground, seed=seed, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("n", "m", "density"), [(1, 1, 1.0), (3, 5, 0.5), (40, 30, 0.1), (60, 80, 1.0), (200, 150, 0.02)]
)
def test_grounded_systems(n, m, density, engine):
    W, rng = graph(n, m, density, 0), np.random.default_rng(1)
    ground = rng.uniform(0.01, 1, n + m)
    rhs = rng.normal(size=n + m)
    solution = laplacian(W, ground, engine).solve(rhs, rtol=1e-12)
    np.testing.assert_allclose(solution.x, np.linalg.solve(dense(W, ground), rhs), rtol=1e-8, atol=1e-10)
    assert solution.residual <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_without_ground_up_to_a_constant(engine):
    W, rng = graph(50, 40, 0.1, 2), np.random.default_rng(3)
    x = rng.normal(size=90)
    found = laplacian(W, np.zeros(90), engine).solve(dense(W, 0) @ x, rtol=1e-12).x
    np.testing.assert_allclose(found - found.mean(), x - x.mean(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_and_vertices_without_edges(engine):
    W = csr_array(np.array([[1.0, 2.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 0]]))
    rhs = np.array([1.0, 2.0, 0.0, -0.25, -0.75, -2.0, 0.0])
    x = laplacian(W, np.zeros(7), engine).solve(rhs).x
    assert np.isfinite(x).all()
    np.testing.assert_allclose(dense(W, 0) @ x, rhs, atol=1e-10)


@pytest.mark.skipif(native is None, reason="not built")
def test_weak_links_keep_their_digits():
    """Two clusters that a link of 1e-25 joins: what flows through it decides by how much they are apart."""
    W = graph(20, 20, 0.2, 4, spread=1.0).tolil()
    block = csr_array(np.block([[W.toarray(), np.zeros((20, 20))], [np.zeros((20, 20)), W.toarray()]])).tolil()
    block[0, 20] = 1e-25
    whole = csr_array(block)
    rhs = np.zeros(80)
    rhs[0], rhs[60] = 1e-3, -1e-3  # row 0 to column 20
    x = laplacian(whole, np.zeros(80), "native").solve(rhs, rtol=1e-10).x
    assert x[0] - x[60] == pytest.approx(1e22, rel=1e-6)
    assert np.ptp(x[:20]) < 1e-6 * abs(x[0] - x[60])


@pytest.mark.skipif(native is None, reason="not built")
def test_few_iterations_whatever_the_condition():
    """A long chain of weights over twelve orders of magnitude: hopeless for a diagonal preconditioner."""
    W = graph(1500, 1500, 0.002, 5, spread=12.0)
    rhs = np.random.default_rng(6).normal(size=3000)
    solution = laplacian(W, np.full(3000, 1e-10), "native").solve(rhs - rhs.mean(), rtol=1e-8)
    assert solution.residual <= 1e-8
    assert solution.n_iter < 80


@pytest.mark.skipif(native is None, reason="not built")
def test_a_sample_of_a_dense_graph_is_good_enough():
    rng = np.random.default_rng(7)
    W = csr_array(np.exp(-20 * rng.uniform(size=(300, 300)) ** 2))
    rhs = rng.normal(size=600)
    solution = laplacian(W, np.zeros(600), "native").solve(rhs - rhs.mean(), rtol=1e-10)
    assert solution.residual <= 1e-10
    assert solution.n_iter < 60
    same = laplacian(W, np.zeros(600), "native").solve(rhs - rhs.mean(), rtol=1e-10)
    assert np.array_equal(solution.x, same.x)
