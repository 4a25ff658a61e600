"""Answers come back in the container that the points came in."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import brenier
from brenier import CostMatrix
from problems import array, assert_close, cloud, weights

X, Y = cloud(4, 2, 1), cloud(5, 2, 2)
A = weights(4)
FX = pd.DataFrame(X.numpy(), columns=["u", "v"], index=list("abcd"))
FY = pd.DataFrame(Y.numpy(), columns=["u", "v"], index=list("pqrst"))
EPSILONS = pytest.mark.parametrize("epsilon", [None, 0.7])


def _expected(epsilon: float | None) -> brenier.Solution:
    return brenier.solve(X, Y, a=A, epsilon=epsilon)


@EPSILONS
@pytest.mark.parametrize("read", [lambda t: t.numpy(), lambda t: t.tolist(), lambda t: sparse.csr_array(t.numpy()),
                                  lambda t: sparse.coo_matrix(t.numpy()), lambda t: anndata.AnnData(t.numpy()),
                                  lambda t: anndata.AnnData(sparse.csr_matrix(t.numpy()))],
                         ids=["NumPy", "lists", "CSR", "COO matrix", "AnnData", "sparse AnnData"])  # fmt: skip
def test_numpy(read: Any, epsilon: float | None) -> None:
    solution, expected = brenier.solve(read(X), read(Y), a=A.numpy(), epsilon=epsilon), _expected(epsilon)
    assert isinstance(solution.value, np.float64)
    assert isinstance(solution.linear_value, float)
    assert_close(solution.value, expected.value, 1e-12)
    plan, new = solution.plan, X.numpy()[:2]
    arrays = {
        "dense": plan.dense(),
        "vector": plan @ np.ones(5),
        "columns": plan.T @ np.ones((4, 2)),
        "argmax": plan.argmax(),
        "barycentric": plan.barycentric(),
        "mass": plan.topk(3).mass,
        "f": solution.potentials.f,
        "g": solution.potentials.g,
        "new f": solution.potentials(new),
        "new g": solution.potentials.target(Y.numpy()),
        "map": solution.map(),
        "new map": solution.map(new),
    }
    for name, value in arrays.items():
        assert type(value) is np.ndarray, name
    assert_close(arrays["dense"], expected.plan.dense(), 1e-12)
    assert_close(arrays["new map"], expected.map(X[:2]), 1e-12)
    assert isinstance(plan.sparse(), sparse.coo_array)
    assert_close(plan.sparse().toarray(), arrays["dense"], 1e-12)


@EPSILONS
def test_torch(epsilon: float | None) -> None:
    solution = _expected(epsilon)
    assert solution.plan.sparse().layout == torch.sparse_coo
    for value in (solution.value, solution.plan.dense(), solution.plan.argmax(), *solution.plan.entries(),
                  *solution.potentials, solution.map(X)):  # fmt: skip
        assert isinstance(value, torch.Tensor)


@EPSILONS
def test_pandas(epsilon: float | None) -> None:
    weights_ = pd.Series(A.numpy(), index=FX.index)
    solution, expected = brenier.solve(FX, FY, a=weights_, epsilon=epsilon), _expected(epsilon)
    assert_close(solution.value, expected.value, 1e-12)
    plan = solution.plan
    dense = plan.dense()
    assert isinstance(dense, pd.DataFrame)
    assert (list(dense.index), list(dense.columns)) == (list("abcd"), list("pqrst"))
    assert_close(dense, expected.plan.dense(), 1e-12)
    assert (list(plan.T.dense().index), list(plan.T.dense().columns)) == (list("pqrst"), list("abcd"))
    f, g = solution.potentials
    for series, index in ((f, FX.index), (g, FY.index), (plan.argmax(), FX.index), (plan @ np.ones(5), FX.index)):
        assert isinstance(series, pd.Series)
        assert series.index.equals(index)
    assert (plan.T @ np.ones(4)).index.equals(FY.index)
    moved = solution.map()
    assert isinstance(moved, pd.DataFrame)
    assert (list(moved.columns), list(moved.index)) == (["u", "v"], list("abcd"))
    new = FX.iloc[[2, 0]]
    assert list(solution.map(new).index) == ["c", "a"]
    assert list(solution.map(new).columns) == ["u", "v"]
    assert_close(solution.map(new), expected.map(X[[2, 0]]), 1e-12)


@EPSILONS
def test_columns_go_by_name(epsilon: float | None) -> None:
    expected = _expected(epsilon)
    solution = brenier.solve(FX, FY[["v", "u"]], a=A, epsilon=epsilon)
    assert_close(solution.value, expected.value, 1e-12)
    assert list(solution.map().columns) == ["u", "v"]
    assert_close(solution.map(FX[["v", "u"]]), expected.map(X), 1e-12)
    assert_close(solution.potentials(FX[["v", "u"]]), expected.potentials(X), 1e-12)
    extra = FX.assign(w=9.0)[["w", "v", "u"]]
    assert_close(solution.map(extra), expected.map(X), 1e-12)


def test_weights_go_by_label() -> None:
    shuffled = pd.Series(A.numpy(), index=FX.index)[["c", "a", "d", "b"]]
    assert_close(brenier.solve(FX, FY, a=shuffled).value, _expected(None).value, 1e-12)
    cells = anndata.AnnData(X.numpy(), obs=pd.DataFrame(index=FX.index))
    assert_close(brenier.solve(cells, anndata.AnnData(Y.numpy()), a=shuffled).value, _expected(None).value, 1e-12)
    assert_close(brenier.solve(X, Y, a=shuffled.to_numpy()[[1, 3, 0, 2]]).value, _expected(None).value, 1e-12)


def test_variables_of_anndata_go_by_name() -> None:
    genes = pd.DataFrame(index=["g", "h"])
    x, y = anndata.AnnData(X.numpy(), var=genes), anndata.AnnData(Y.numpy(), var=genes)[:, ["h", "g"]].copy()
    assert_close(brenier.solve(x, y, a=A).value, _expected(None).value, 1e-12)


@pytest.mark.parametrize("values", [np.float32, np.float16, np.int32, np.uint8, np.uint16, ">f8", np.longdouble])
def test_numpy_dtypes(values: Any) -> None:
    x, y = (np.abs(10 * t.numpy()).astype(values) for t in (X, Y))
    solution = brenier.solve(x, y, epsilon=50.0)
    expected = brenier.solve(x.astype(np.float64), y.astype(np.float64), epsilon=50.0)
    assert_close(solution.value, expected.value, 1e-5)
    narrow = values in (np.float32, np.float16)
    assert solution.plan.dense().dtype == (np.float32 if narrow else np.float64)


def test_views_and_read_only_arrays() -> None:
    x, y = X.numpy().copy(), Y.numpy().copy()
    x.flags.writeable = False
    assert_close(brenier.solve(x, y[::-1, ::-1][::-1, ::-1], a=A).value, _expected(None).value, 1e-12)
    assert_close(brenier.solve(np.asfortranarray(x), y, a=A).value, _expected(None).value, 1e-12)
    before = x.copy(), y.copy()
    brenier.solve(x, y, epsilon=0.5).certificate  # noqa: B018 - runs
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


@pytest.mark.parametrize("epsilon", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), 1])
def test_kinds_of_epsilon(epsilon: Any) -> None:
    assert_close(brenier.solve(X, Y, epsilon=epsilon).value, brenier.solve(X, Y, epsilon=float(epsilon)).value, 1e-12)
    assert brenier.Relative(np.float32(0.5)).fraction == 0.5
    batch = brenier.solve(np.stack([X, X]), Y.numpy(), epsilon=np.array([0.5, 1.0]))
    assert batch.stats["epsilon"] == [0.5, 1.0]
    assert type(batch.value) is np.ndarray


def test_one_column_of_a_frame_is_a_line() -> None:
    solution = brenier.solve(FX["u"], FY["u"])
    assert solution.stats["solver"] == "monotone"
    assert_close(solution.value, brenier.solve(X[:, :1], Y[:, :1]).value, 1e-12)
    assert list(solution.potentials.f.index) == list("abcd")


def test_the_kind_is_that_of_the_source() -> None:
    assert type(brenier.solve(X.numpy(), Y).plan.dense()) is np.ndarray
    assert isinstance(brenier.solve(X, Y.numpy()).plan.dense(), torch.Tensor)
    assert type(brenier.solve(CostMatrix(array(torch.cdist(X, Y)))).plan.dense()) is np.ndarray
    assert isinstance(brenier.solve(CostMatrix(torch.cdist(X, Y))).plan.dense(), torch.Tensor)
    assert type(brenier.solve(X.numpy(), FY).plan.dense()) is np.ndarray
