"""Couplings: known pairs, the laws that they draw from, classes, masses, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from brenier import InvalidInput, NotConverged, PointCloud, Relative, solve
from brenier.flows import (
    Coupling,
    EntropicCoupling,
    ExactCoupling,
    GibbsWeights,
    IndependentCoupling,
    SemidiscreteCoupling,
    gibbs_log_weight,
)
from brenier.solvers import Hierarchical

MINIBATCH = [IndependentCoupling(), GibbsWeights(1.0), ExactCoupling(), EntropicCoupling()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(n: int, m: int, d: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeded(7)
    return (
        torch.randn(n, d, generator=generator, dtype=dtype),
        2 * torch.randn(m, d, generator=generator, dtype=dtype) + 1,
    )


def drawn(coupling: Coupling, x: Tensor, y: Tensor, times: int, **options: Tensor) -> Tensor:
    """Shares of pairs (n, m), of many copies of the source samples at a time: their plan is copies of the plan."""
    if "a" in options:
        options["a"] = options["a"].repeat(times) / times
    pairs = coupling(x.repeat(times, 1), y, generator=seeded(), **options)
    assert pairs.cols is not None
    counts = torch.zeros(len(x), len(y), dtype=torch.float64)
    counts.index_put_((pairs.rows % len(x), pairs.cols), torch.ones(len(pairs.rows)).double(), accumulate=True)
    return counts / counts.sum()


# -- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cityblock", lambda x, y: (x - y).abs().amax(-1)])
def test_exact_is_the_best_permutation(cost):
    x, y = clouds(6, 6)
    pairs = ExactCoupling(cost=cost)(x, y)
    C = PointCloud(x, y, cost).tile()
    best = min(itertools.permutations(range(6)), key=lambda p: float(C[range(6), p].sum()))
    assert pairs.cols.tolist() == list(best)
    assert torch.equal(pairs.x0, x)
    assert torch.equal(pairs.x1, y[pairs.cols])
    assert pairs.log_weight is None


def test_images_keep_their_shape_and_dtype(dtype):
    x0, x1 = torch.randn(2, 9, 1, 4, 5, generator=seeded(), dtype=dtype)
    flat = ExactCoupling()(x0.flatten(1), x1.flatten(1))
    pairs = ExactCoupling()(x0, x1)
    assert pairs.x1.shape == (9, 1, 4, 5)
    assert pairs.x1.dtype == dtype
    assert torch.equal(pairs.cols, flat.cols)


def test_large_pools_are_permutations_too():
    x, y = clouds(1500, 1500, 2)
    cols = ExactCoupling()(x, y).cols
    assert torch.equal(cols.sort().values, torch.arange(1500))
    value = float((x - y[cols]).square().sum(1).mean())
    assert value == pytest.approx(float(solve(x, y).value), rel=1e-12)
    rough = ExactCoupling(solver=Hierarchical(size=64))(x, y, generator=seeded()).cols
    assert torch.equal(rough.sort().values, torch.arange(1500))
    assert value <= float((x - y[rough]).square().sum(1).mean()) < 1.1 * value


def test_unequal_sides_draw_from_the_plan():
    x, y = clouds(4, 3, 2)
    P = solve(x, y).plan.dense()
    shares = drawn(ExactCoupling(), x, y, 2000)
    assert (shares - P).abs().max() < 0.01
    assert (shares[P == 0] == 0).all()


def test_masses():
    x, y = clouds(5, 4, 2)
    a = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.1], dtype=torch.float64)
    b = torch.tensor([0.1, 0.5, 0.0, 0.4], dtype=torch.float64)
    P = solve(x, y, a=a, b=b).plan.dense()
    shares = drawn(ExactCoupling(), x, y, 2000, a=3 * a, b=3 * b)  # totals do not count
    assert (shares - P).abs().max() < 0.012
    one = ExactCoupling()(x, y, a=a, generator=seeded())
    counts = torch.bincount(one.rows, minlength=5)
    assert ((counts - 5 * a).abs() < 1 + 1e-6).all()  # stratified
    assert torch.equal(one.rows, one.rows.sort().values)


def test_a_plan_that_is_not_sparse_is_refused():
    x, y = clouds(20, 20)
    with pytest.raises(InvalidInput, match="ExactCoupling solver: expected one whose plan is sparse"):
        ExactCoupling(solver="low-rank")(x, y)


def test_gradients_reach_the_samples():
    x, y = clouds(8, 8)
    x.requires_grad_()
    pairs = ExactCoupling()(x, y)
    (pairs.x1 - pairs.x0).square().sum().backward()
    assert torch.allclose(x.grad, 2 * (x - pairs.x1).detach())


# -- independent, weights ------------------------------------------------------------------------------------------


def test_independent():
    x, y = clouds(5, 5)
    pairs = IndependentCoupling()(x, y)
    assert torch.equal(pairs.x1, y)
    b = torch.tensor([0.7, 0.1, 0.2, 0.0, 0.0])
    shares = drawn(IndependentCoupling(), x, y, 2000, b=b)
    assert (shares - b / 5).abs().max() < 0.01
    more = IndependentCoupling()(x, torch.cat([y, y]), generator=seeded())
    assert len(more.rows) == 5


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_gibbs_weights(cost):
    x, y = clouds(7, 7)
    pairs = GibbsWeights(0.5, cost)(x, y)
    expected = -PointCloud(x, y, cost).tile().diagonal() / 0.5
    assert torch.allclose(pairs.log_weight, expected)
    images = gibbs_log_weight(x.reshape(7, 1, 3, 1), y.reshape(7, 1, 3, 1), 0.5, cost=cost)
    assert torch.allclose(images, expected)  # over all axes, not by pixel
    half = gibbs_log_weight(x.half(), y.half(), 0.5, cost=cost)
    assert half.dtype == torch.float32


# -- entropic ------------------------------------------------------------------------------------------------------


def test_entropic_draws_from_the_plan():
    x, y = clouds(5, 4, 2)
    b = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    P = solve(x, y, b=b, epsilon=1.0, tol=1e-8).plan.dense()
    shares = drawn(EntropicCoupling(1.0, tol=1e-8), x, y, 2000, b=b)
    assert (shares - P).abs().max() < 0.012


def test_barycentric_is_the_projection_of_the_plan(dtype):
    x, y = clouds(30, 20, 2, dtype)
    pairs = EntropicCoupling(0.5, barycentric=True, tol=1e-5)(x, y)
    assert pairs.cols is None
    expected = solve(x, y, epsilon=0.5, tol=1e-5).plan.barycentric()
    assert torch.allclose(pairs.x1, expected, atol=1e-3)
    assert pairs.x1.dtype == dtype


def test_anchors_extend_to_all():
    x, y = clouds(1200, 1000, 2)
    whole = EntropicCoupling(0.5, barycentric=True)(x, y, generator=seeded())
    some = EntropicCoupling(0.5, barycentric=True, anchors=400)(x, y, generator=seeded())
    error = (whole.x1 - some.x1).norm(dim=1).mean() / whole.x1.norm(dim=1).mean()
    assert float(error) < 0.15
    drawn_pairs = EntropicCoupling(0.5, anchors=400)(x, y, generator=seeded())
    assert len(drawn_pairs.rows) == 1200
    assert (torch.bincount(drawn_pairs.cols, minlength=1000) == 0).double().mean() < 0.6  # 0.30 for independent draws


def test_relative_epsilon_is_that_of_the_solve():
    x, y = clouds(40, 40)
    epsilon = 0.1 * float(PointCloud(x, y).mean_cost())
    first = EntropicCoupling(Relative(0.1), barycentric=True, tol=1e-6)(x, y)
    second = EntropicCoupling(epsilon, barycentric=True, tol=1e-6)(x, y)
    assert torch.allclose(first.x1, second.x1, atol=1e-8)


def test_entropic_says_when_it_did_not_converge():
    x, y = clouds(50, 50)
    with pytest.raises(NotConverged):
        EntropicCoupling(0.01, tol=1e-9, max_iter=2)(x, y)


# -- semi-discrete -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def semidiscrete() -> SemidiscreteCoupling:
    data = torch.randn(40, 2, generator=seeded(3)) + 2
    labels = torch.arange(40)
    return SemidiscreteCoupling(data, labels=labels, tol=0.1, generator=seeded())


def test_semidiscrete_uses_all_data_evenly(semidiscrete):
    x0 = torch.randn(40_000, 2, generator=seeded(5))
    pairs = semidiscrete(x0)
    shares = torch.bincount(pairs.cols, minlength=40) / len(x0)
    assert float((shares - 1 / 40).abs().sum()) < 0.15  # 0.1, and the noise of so many points
    assert torch.equal(pairs.x1, semidiscrete.data[pairs.cols])
    assert torch.equal(pairs.cols, semidiscrete(x0, torch.zeros(3, 2)).cols)


def test_semidiscrete_of_a_density_is_exact():
    from brenier.solvers import UniformBox

    data = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    coupling = SemidiscreteCoupling(data, UniformBox(0.0, 1.0), b=[0.25, 0.75], tol=1e-8)
    assert coupling(torch.tensor([[0.24], [0.26]], dtype=torch.float64)).cols.tolist() == [0, 1]


def test_semidiscrete_refusals(semidiscrete):
    x0 = torch.zeros(3, 2)
    with pytest.raises(InvalidInput, match=r"^labels: expected none"):
        semidiscrete(x0, labels1=torch.zeros(3))
    with pytest.raises(InvalidInput, match=r"^a and b: expected none"):
        semidiscrete(x0, a=torch.ones(3))
    with pytest.raises(InvalidInput, match=r"^x0: expected samples of shape \(2,\)"):
        semidiscrete(torch.zeros(3, 4))
    with pytest.raises(InvalidInput, match=r"^labels: expected a tensor with one entry for each of 4 samples"):
        SemidiscreteCoupling(torch.zeros(4, 2), labels=torch.zeros(3))


# -- classes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", MINIBATCH, ids=lambda c: type(c).__name__)
def test_classes_stay_apart(coupling):
    x, y = clouds(30, 30)
    labels0 = torch.arange(30) % 3
    labels1 = labels0.flip(0)
    pairs = coupling(x, y, labels0=labels0, labels1=labels1, generator=seeded())
    assert torch.equal(labels0[pairs.rows], labels1[pairs.cols])
    assert torch.equal(pairs.rows, torch.arange(30))
    assert torch.equal(pairs.x1, y[pairs.cols])
    noise = coupling(x, y, labels1=labels1, generator=seeded())  # the i-th noise is for the i-th class
    assert torch.equal(labels1[noise.rows], labels1[noise.cols])


def test_blocks_are_the_couplings_of_the_classes():
    x, y = clouds(12, 12)
    labels = torch.tensor([5, 2, 2, 5] * 3)
    cols = ExactCoupling()(x, y, labels1=labels).cols
    for label in (2, 5):
        index = (labels == label).nonzero().squeeze(1)
        own = ExactCoupling()(x[index], y[index])
        assert torch.equal(cols[index], index[own.cols])


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_a_price_of_labels_lies_between_none_and_blocks(cost):
    x, y = clouds(40, 40)
    labels = torch.arange(40) % 4
    without = ExactCoupling(cost)(x, y).cols
    apart = ExactCoupling(cost)(x, y, labels1=labels).cols
    assert torch.equal(ExactCoupling(cost, mismatch=0.0)(x, y, labels1=labels).cols, without)
    assert torch.equal(ExactCoupling(cost, mismatch=1e6)(x, y, labels1=labels).cols, apart)
    priced = ExactCoupling(cost, mismatch=1.0)(x, y, labels1=labels).cols
    wrong = [int((labels != labels[cols]).sum()) for cols in (without, priced, apart)]
    assert wrong[0] > wrong[1] > wrong[2] == 0
    total = PointCloud(x, y, cost).tile() + (labels[:, None] != labels).double()
    best = float(total[torch.arange(40), priced].sum())
    assert all(best <= float(total[torch.arange(40), cols].sum()) + 1e-9 for cols in (without, apart))


def test_a_price_of_labels_in_the_entropic_plan():
    x, y = clouds(25, 20, 2)
    labels0, labels1 = torch.arange(25) % 2, torch.arange(20) % 2
    coupling = EntropicCoupling(1.0, mismatch=2.0, barycentric=True, tol=1e-8)
    pairs = coupling(x, y, labels0=labels0, labels1=labels1)
    from brenier import CostMatrix

    C = PointCloud(x, y).tile() + 2.0 * (labels0[:, None] != labels1).double()
    P = solve(CostMatrix(C), epsilon=1.0, tol=1e-8).plan.dense()
    assert torch.allclose(pairs.x1, P @ y / P.sum(1, keepdim=True), atol=1e-6)


# -- the same for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", MINIBATCH, ids=lambda c: type(c).__name__)
def test_seeds(coupling):
    x, y = clouds(20, 15)
    first, again, other = (coupling(x, y, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.cols, again.cols)
    if not isinstance(coupling, ExactCoupling):
        assert not torch.equal(first.cols, other.cols)


@pytest.mark.parametrize("coupling", MINIBATCH, ids=lambda c: type(c).__name__)
def test_one_pair(coupling):
    pairs = coupling(torch.zeros(1, 2), torch.ones(1, 2))
    assert (pairs.rows.tolist(), pairs.cols.tolist()) == ([0], [0])


@pytest.mark.parametrize("coupling", MINIBATCH, ids=lambda c: type(c).__name__)
def test_bad_samples(coupling):
    x = torch.zeros(4, 2)
    for x0, x1, message in (
        (x, torch.zeros(4, 3), r"^x0 and x1: expected samples of one shape, got \(2,\) and \(3,\)"),
        (x, x.double(), "^x0 and x1: expected one dtype"),
        (x + float("nan"), x, "x0: expected finite samples"),
        (torch.zeros(0, 2), torch.zeros(4, 2), "x0: expected at least one sample"),
        (torch.zeros(4, 2).long(), torch.zeros(4, 2), "x0: expected a floating tensor"),
        ([1.0], torch.zeros(4, 2), "x0: expected a floating tensor"),
    ):
        with pytest.raises(InvalidInput, match=message):
            coupling(x0, x1)


@pytest.mark.parametrize("coupling", MINIBATCH, ids=lambda c: type(c).__name__)
def test_bad_labels(coupling):
    x = torch.randn(4, 2, generator=seeded())
    with pytest.raises(InvalidInput, match="labels: expected the same classes on both sides"):
        coupling(x, x, labels0=torch.tensor([0, 0, 1, 1]), labels1=torch.tensor([0, 0, 2, 2]))
    with pytest.raises(InvalidInput, match="labels1: expected labels of the data"):
        coupling(x, x, labels0=torch.zeros(4))
    with pytest.raises(InvalidInput, match=r"labels1: expected a tensor of shape \(4,\)"):
        coupling(x, x, labels1=torch.zeros(4, 1))
    with pytest.raises(InvalidInput, match="labels0: expected labels of the source"):
        coupling(x, torch.cat([x, x]), labels1=torch.zeros(8))


def test_bad_parameters():
    for make, message in (
        (lambda: GibbsWeights(0.0), "epsilon: expected a positive finite number"),
        (lambda: GibbsWeights(float("inf")), "epsilon"),
        (lambda: GibbsWeights(1.0, "manhattan"), "cost: expected one of"),
        (lambda: ExactCoupling(mismatch=-1.0), "mismatch: expected a price"),
        (lambda: ExactCoupling(mismatch=float("nan")), "mismatch: expected a price"),
        (lambda: EntropicCoupling(-1.0), "epsilon"),
        (lambda: EntropicCoupling(anchors=0), "anchors: expected a positive number"),
    ):
        with pytest.raises(InvalidInput, match=message):
            make()
