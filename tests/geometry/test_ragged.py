"""Many problems of different sizes at once are each what they are alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import brenier
from brenier import KL, InvalidInput, PointCloud, Ragged, Relative
from brenier.kernels.engine import use_engine
from problems import COSTS, cloud, weights

SIZES = ((1, 9), (30, 1), (7, 80), (41, 41), (1, 1), (130, 64))
NAMED = ["sqeuclidean", "euclidean", "cityblock", "cosine", "dot"]


def _lists(dtype: torch.dtype = torch.float64, apart: float = 5.0) -> tuple[list[Tensor], list[Tensor]]:
    """Clouds that lie far apart from problem to problem."""
    x = [(cloud(n, 3, 10 + k) + apart * k).to(dtype) for k, (n, _) in enumerate(SIZES)]
    y = [(cloud(m, 3, 50 + k) + apart * k).to(dtype) for k, (_, m) in enumerate(SIZES)]
    return x, y


def _masses() -> tuple[list[Tensor], list[Tensor]]:
    a = [weights(n, 70 + k) for k, (n, _) in enumerate(SIZES)]
    b = [weights(m, 90 + k) for k, (_, m) in enumerate(SIZES)]
    return a, b


@pytest.mark.parametrize("cost", NAMED)
@pytest.mark.parametrize("name", ["reference", "auto"])
@pytest.mark.parametrize("own", [False, True], ids=["one epsilon", "epsilons"])
def test_operations_are_those_of_each_problem(cost: str, name: str, own: bool) -> None:
    x, y = _lists(apart=0.0 if cost == "dot" else 5.0)
    geometry = Ragged.from_list(x, y, cost)
    f, g = [cloud(n, 1, 1)[:, 0] for n, _ in SIZES], [cloud(m, 1, 2)[:, 0] for _, m in SIZES]
    epsilon = (
        torch.linspace(0.5, 3.0, len(SIZES), dtype=torch.float64) if own else torch.full((len(SIZES),), 1.3).double()
    )
    v = [cloud(m, 5, 3) for _, m in SIZES]
    ones = [torch.zeros(n).double() for n, _ in SIZES]
    F, G, V, masked = (Ragged.pad(t) for t in (f, g, v, ones))
    # potentials of what is padding count for nothing
    G = torch.where(torch.arange(G.shape[1]) < geometry.sizes[1].unsqueeze(-1), G, 7.0)
    assert masked.shape == F.shape == (len(SIZES), geometry.shape[0])
    with use_engine(name):
        for k, (u, w) in enumerate(zip(x, y)):
            n, m = SIZES[k]
            one = PointCloud(u, w, cost)
            e = epsilon[k]
            eps = epsilon if own else float(epsilon[0])
            assert_close = torch.testing.assert_close
            assert_close(geometry.softmin(G, eps)[k, :n], one.softmin(g[k], e))
            assert_close(geometry.softmin(F, eps, dim=0)[k, :m], one.softmin(f[k], e, dim=0))
            values, index = geometry.cmin(G)
            assert_close(values[k, :n], one.cmin(g[k])[0])
            assert torch.equal(index[k, :n], one.cmin(g[k])[1])
            assert_close(geometry.apply(F, G, eps, V)[k, :n], one.apply(f[k], g[k], e, v[k]), rtol=1e-9, atol=1e-12)
            assert_close(
                geometry.apply(F, G, eps, F, dim=0)[k, :m], one.apply(f[k], g[k], e, f[k], dim=0), rtol=1e-9, atol=1e-12
            )
            for mine, its in zip(geometry.moments(F, G, eps), one.moments(f[k], g[k], e)):
                assert_close(mine[k, :n], its, rtol=1e-9, atol=1e-12)
                assert bool((mine[k, n:] == 0).all())
            assert_close(geometry.mean_cost()[k], one.mean_cost())
            assert_close(geometry.range_estimate()[k], one.range_estimate())
            assert_close(geometry.tile()[k, :n, :m], one.tile(), atol=1e-9, rtol=1e-9)
            assert_close(geometry.T.tile()[k, :m, :n], one.tile().T, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("marginals", [brenier.Exact(), KL(2.0)], ids=str)
def test_solutions_are_those_of_each_problem(dtype: torch.dtype, marginals: brenier.Marginal) -> None:
    x, y = _lists(dtype)
    a, b = ([t.to(dtype) for t in side] for side in _masses())
    geometry = Ragged.from_list(x, y)
    tol = 1e-4 if dtype == torch.float32 else 1e-10
    together = brenier.solve(geometry, a=a, b=b, epsilon=Relative(0.1), marginals=marginals, tol=tol)
    assert together.value.shape == (len(SIZES),)
    assert together.value.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-8}
    tight = {"rtol": 1e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for k in range(len(SIZES)):
        alone = brenier.solve(x[k], y[k], a=a[k], b=b[k], epsilon=Relative(0.1), marginals=marginals, tol=tol)
        torch.testing.assert_close(together.value[k], alone.value, **tight)
        torch.testing.assert_close(together.linear_value[k], alone.linear_value, **close)
        torch.testing.assert_close(together.dual_value[k], alone.dual_value, **tight)
        f, g = geometry.unpad(together.f)[k], geometry.unpad(together.g, 1)[k]
        shift = (f - alone.f).mean()
        torch.testing.assert_close(f - shift, alone.f, **close)
        torch.testing.assert_close(g + shift, alone.g, **close)
        for bound in ("primal", "dual"):
            mine, its = getattr(together.certificate, bound)[k], getattr(alone.certificate, bound)
            torch.testing.assert_close(mine, its, rtol=1e-4 if dtype == torch.float32 else 1e-7, atol=1e-6)


def test_equal_sizes_are_a_batch() -> None:
    x, y = cloud(20, 2, 1, 4), cloud(30, 2, 2, 4)
    ragged = brenier.solve(Ragged.from_list(list(x), list(y)), epsilon=0.3)
    batch = brenier.solve(PointCloud(x, y), epsilon=0.3)
    torch.testing.assert_close(ragged.value, batch.value)
    torch.testing.assert_close(ragged.plan @ y, batch.plan @ y, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ragged.map(), batch.map(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["network-simplex", "newton", "sns"])
def test_other_solvers(solver: str) -> None:
    x, y = _lists()
    geometry = Ragged.from_list(x, y)
    epsilon = None if solver == "network-simplex" else 2.0
    together = brenier.solve(geometry, epsilon=epsilon, solver=solver)
    for k in range(len(SIZES)):
        alone = brenier.solve(x[k], y[k], epsilon=epsilon, solver=solver)
        torch.testing.assert_close(together.value[k], alone.value)
    assert float(together.certificate.relative_gap.max()) < (1e-9 if epsilon is None else 1.0)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_gradients(cost: str) -> None:
    x, y = _lists()
    a, b = _masses()
    leaves = [t.clone().requires_grad_() for t in (torch.cat(x), torch.cat(y), *a, *b)]
    sizes = torch.tensor(SIZES).T
    offsets = [torch.cat([s.new_zeros(1), s.cumsum(0)]) for s in sizes]
    count = len(SIZES)
    geometry = Ragged(leaves[0], leaves[1], *offsets, cost)
    epsilon = torch.linspace(0.5, 2.0, count, dtype=torch.float64, requires_grad=True)
    scale = torch.arange(1.0, count + 1, dtype=torch.float64)
    a_, b_ = leaves[2 : 2 + count], leaves[2 + count :]
    value = brenier.solve(geometry, a=a_, b=b_, epsilon=epsilon, tol=1e-12).value
    grads = torch.autograd.grad((value * scale).sum(), [*leaves, epsilon])
    for k in range(count):
        own = [t.clone().requires_grad_() for t in (x[k], y[k], a[k], b[k], epsilon[k].detach())]
        alone = brenier.solve(PointCloud(own[0], own[1], cost), a=own[2], b=own[3], epsilon=own[4], tol=1e-12).value
        exact = torch.autograd.grad(alone * scale[k], own)
        mine = (
            grads[0][offsets[0][k] : offsets[0][k + 1]],
            grads[1][offsets[1][k] : offsets[1][k + 1]],
            grads[2 + k],
            grads[2 + count + k],
            grads[-1][k],
        )
        for i, (p, q) in enumerate(zip(mine, exact)):
            if i in (2, 3):  # along directions that keep the mass
                p, q = p - p.mean(), q - q.mean()
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


def test_kinds() -> None:
    x, y = _lists()
    solution = brenier.solve(Ragged.from_list([t.numpy() for t in x], [t.numpy() for t in y]), epsilon=2.0)
    assert isinstance(solution.value, np.ndarray)
    assert solution.value.shape == (len(SIZES),)


def test_pad_and_unpad() -> None:
    x, y = _lists()
    geometry = Ragged.from_list(x, y)
    assert geometry.batch_shape == (len(SIZES),)
    assert geometry.shape == (130, 80)
    assert geometry.sizes[0].tolist() == [n for n, _ in SIZES]
    for axis, parts in enumerate((x, y)):
        padded = Ragged.pad(parts)
        assert padded.shape == (len(SIZES), geometry.shape[axis], 3)
        assert all(torch.equal(p, q) for p, q in zip(geometry.unpad(padded, axis), parts))
    assert all(torch.equal(p, q) for p, q in zip(geometry.unpad(geometry.x), x))
    assert "6 problems, n=1 to 130, m=1 to 80" in repr(geometry)
    some = geometry.select(torch.tensor([4, 2]))
    assert torch.equal(some.x[1, :7], x[2])
    assert some.shape == geometry.shape
    assert torch.equal(geometry.T.select(torch.tensor([4, 2])).y, some.x)
    with pytest.raises(InvalidInput, match="padded"):
        geometry.unpad(torch.zeros(2, 3))


def test_refuses() -> None:
    x, y = torch.zeros(5, 2), torch.ones(4, 2)
    for offsets, message in (
        ([0, 5, 5], "at least one point for each problem, got 0 for problem 1"),
        ([0, 3, 2, 5], "at least one point"),
        ([0, 4], "from 0 to the 5 points"),
        ([1, 5], "from 0 to the 5 points"),
        ([0.0, 5.0], "integers"),
    ):
        with pytest.raises(InvalidInput, match=message):
            Ragged(x, y, offsets, [0, 4])
    with pytest.raises(InvalidInput, match="as many problems"):
        Ragged(x, y, [0, 2, 5], [0, 4])
    with pytest.raises(InvalidInput, match=r"x\[1\].*at least one point"):
        Ragged.from_list([x, torch.zeros(0, 2)], [y, y])
    with pytest.raises(InvalidInput, match=r"y\[1\].*as y\[0\] has"):
        Ragged.from_list([x, x], [y, torch.zeros(3, 3)])
    with pytest.raises(InvalidInput, match="list of clouds"):
        Ragged.from_list(x, y)
    geometry = Ragged(x, y, [0, 1, 5], [0, 2, 4])
    with pytest.raises(InvalidInput, match="a: expected no mass on padding"):
        brenier.solve(geometry, a=torch.full((2, 4), 0.25), epsilon=1.0)
    with pytest.raises(InvalidInput, match="as many for each problem"):
        brenier.solve(geometry, a=[torch.ones(2), torch.ones(4)], epsilon=1.0)
    with pytest.raises(InvalidInput, match="one batch axis"):
        geometry.softmin(torch.zeros(3, 2, 2), 1.0)
    with pytest.raises(InvalidInput, match="one by one"):
        geometry.smallest(torch.zeros(2, 4), torch.zeros(2, 2), 3)


@pytest.mark.parametrize("count", [40])
def test_no_padded_pairs(count: int) -> None:
    """One huge cloud among many tiny ones: padded to a batch, the cost alone would take 40 x 4000 x 4000 numbers."""
    sizes = [4000] + [3] * (count - 1)
    x = [cloud(n, 2, k) for k, n in enumerate(sizes)]
    solution = brenier.solve(Ragged.from_list(x, [t + 1 for t in x]), epsilon=1.0, tol=1e-2)
    assert solution.status.ok
    assert bool((solution.certificate.relative_gap < 1).all())


def test_items_that_are_done_are_left_out() -> None:
    """The easy items of a batch do not pay for the hard one, and their answers are those they have alone."""
    x, y = cloud(12, 2, 1, 9), cloud(12, 2, 2, 9)
    epsilon = torch.full((9,), 5.0, dtype=torch.float64)
    epsilon[4] = 0.2
    sizes: list[int] = []
    softmin = PointCloud.softmin

    class Counting(PointCloud):
        def softmin(self, h: Tensor, epsilon: float | Tensor, dim: int = 1) -> Tensor:
            sizes.append(h.shape[0])
            return softmin(self, h, epsilon, dim)

    solution = brenier.solve(Counting(x, y), epsilon=epsilon, tol=1e-9)
    assert sizes[0] == 9
    assert 1 in sizes[:-2]
    seen: list[int] = []
    again = brenier.solve(PointCloud(x, y), epsilon=epsilon, tol=1e-9, callback=lambda i, s: seen.append(len(s.f)))
    assert set(seen) == {9}
    torch.testing.assert_close(solution.f, again.f)
    for k in range(9):
        alone = brenier.solve(x[k], y[k], epsilon=float(epsilon[k]), tol=1e-9)
        torch.testing.assert_close(solution.value[k], alone.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopped = brenier.solve(PointCloud(x, y), epsilon=epsilon, tol=1e-9, max_iter=30)
    assert [s.ok for s in stopped.statuses] == [k != 4 for k in range(9)]


def test_costs_of_every_kind() -> None:
    for cost in COSTS:
        x, y = [cost.points(n, 2, 1) for n in (3, 5)], [cost.points(m, 2, 2) for m in (4, 2)]
        geometry = Ragged.from_list(x, y, cost.given(2))
        for k in range(2):
            one = PointCloud(x[k], y[k], cost.given(2))
            got = geometry.softmin(torch.zeros(2, 4, dtype=one.dtype), 1.0)[k, : len(x[k])]
            torch.testing.assert_close(got, one.softmin(torch.zeros(len(y[k]), dtype=one.dtype), 1.0))


def test_padding_has_no_counting_measure() -> None:
    geometry = brenier.Ragged.from_list([torch.zeros(2, 1), torch.zeros(3, 1)], [torch.ones(2, 1), torch.ones(1, 1)])
    with pytest.raises(brenier.InvalidInput, match="reference: expected 'product' for a Ragged geometry"):
        brenier.solve(geometry, epsilon=0.1, reference="counting")
