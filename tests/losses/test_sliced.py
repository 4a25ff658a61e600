"""Sliced transport: closed forms, honest intervals, bounds, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

import brenier
from brenier import KL, TV, Exact, Marginal, Partial, Slack
from brenier.errors import InvalidInput
from brenier.losses import (
    Circular,
    Polynomial,
    circle_cost,
    energy_sliced_wasserstein,
    expected_sliced_plan,
    max_sliced_wasserstein,
    min_sliced_plan,
    random_directions,
    sliced_barycentre,
    sliced_wasserstein,
    spherical_sliced_wasserstein,
)

SAMPLERS = ("gaussian", "orthogonal", "quasi")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def masses(n: int, seed: int) -> Tensor:
    a = torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    return a / a.sum()


# -- known answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("d", [2, 3, 5])
def test_translates(sampler: str, d: int) -> None:
    """SW2^2 of a translate by mu is |mu|^2 / d."""
    x, shift = cloud(40, d, seed=0), cloud(d, seed=1)
    estimate = sliced_wasserstein(x, x + shift, directions=2048, sampler=sampler, generator=seeded(2))
    assert abs(float(estimate.value) - float(shift.square().sum()) / d) <= 4 * float(estimate.standard_error) + 1e-12


def test_a_frame_is_exact_for_translates() -> None:
    x, shift = cloud(40, 3, seed=0), cloud(3, seed=1)
    theta, groups = random_directions(48, 3, generator=seeded(2))
    assert groups == 16
    estimate = sliced_wasserstein(x, x + shift, directions=theta)
    assert abs(float(estimate.value) - float(shift.square().sum()) / 3) <= 1e-14


def test_gaussians() -> None:
    """SW2^2 between N(0, I) and N(mu, s^2 I) is |mu|^2 / d + (1 - s)^2, up to sampling."""
    x, y, shift = cloud(20_000, 3, seed=0), cloud(20_000, 3, seed=1), torch.tensor([1.0, 2.0, 0.0]).double()
    value = float(sliced_wasserstein(x, 2 * y + shift, directions=64, generator=seeded(2)).value)
    assert abs(value - (5 / 3 + 1)) <= 0.06


def test_one_dimension_needs_no_luck() -> None:
    x, y = cloud(30, 1, seed=0), cloud(20, 1, seed=1)
    estimate = sliced_wasserstein(x, y, directions=4, generator=seeded(0))
    torch.testing.assert_close(estimate.value, brenier.solve(x, y).value)
    assert float(estimate.standard_error) <= 1e-15


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1, 2])
def test_against_pot(weighted: bool, p: int) -> None:
    x, y = cloud(30, 4, seed=0), cloud(20, 4, seed=1)
    a, b = (masses(30, 2), masses(20, 3)) if weighted else (None, None)
    theta, _ = random_directions(20, 4, generator=seeded(4))
    expected = ot.sliced_wasserstein_distance(
        *(t.numpy() for t in (x, y)),
        *(None if t is None else t.numpy() for t in (a, b)),
        projections=theta.mT.numpy(),
        p=p,
    )
    estimate = sliced_wasserstein(x, y, a, b, p=p, directions=theta)
    assert abs(float(estimate.distance) - float(expected)) <= 1e-10


def test_turned_circle() -> None:
    """On the circle itself every great circle is the same, and the mean over them is the transport cost."""
    angle = 2 * math.pi * torch.arange(9, dtype=torch.float64) / 9
    x, y = (torch.stack([t.cos(), t.sin()], -1) for t in (angle, angle + 0.2))
    estimate = spherical_sliced_wasserstein(x, y, p=2, circles=8, generator=seeded(0))
    assert abs(float(estimate.value) - 0.04) <= 1e-12
    assert float(circle_cost(angle, angle + 0.2)) == pytest.approx(0.2)


# -- the interval ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_coverage(sampler: str) -> None:
    """Of 200 intervals of 95 per cent about 190 hold the truth; fewer than 180 have a chance of 1 in 1,000."""
    x, y = cloud(20, 3, seed=0), 0.5 * cloud(20, 3, seed=1) + torch.tensor([1.0, 0.0, 0.0])
    truth = float(sliced_wasserstein(x, y, directions=200_000, sampler="quasi", generator=seeded(9)).value)
    inside = 0
    for seed in range(200):
        low, high = sliced_wasserstein(x, y, directions=96, sampler=sampler, generator=seeded(seed)).interval(0.95)
        inside += float(low) <= truth <= float(high)
    assert 180 <= inside <= 200, inside


def test_spread_directions_know_more() -> None:
    x, y = cloud(50, 3, seed=0), cloud(50, 3, seed=1) + torch.tensor([1.0, 0.0, 0.0])
    error = {s: np.mean([float(sliced_wasserstein(x, y, directions=256, sampler=s, generator=seeded(k)).standard_error)
                         for k in range(5)]) for s in SAMPLERS}  # fmt: skip
    assert error["quasi"] < error["gaussian"] / 2
    assert error["orthogonal"] < error["gaussian"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("count", "d"), [(1, 3), (7, 5), (64, 3), (40, 64)])
def test_directions(sampler: str, count: int, d: int) -> None:
    theta, groups = random_directions(count, d, sampler=sampler, generator=seeded(0))
    assert len(theta) >= count
    assert len(theta) % groups == 0
    torch.testing.assert_close(theta.norm(dim=-1), torch.ones(len(theta), dtype=torch.float64))
    again, _ = random_directions(count, d, sampler=sampler, generator=seeded(0))
    assert torch.equal(theta, again)


# -- bounds, gradients, batches ----------------------------------------------------------------------------------


def test_order_of_the_family() -> None:
    """Sliced <= energy-based <= max-sliced <= W2^2 <= least and mean lifted plan."""
    x, y = cloud(40, 3, seed=0), 0.7 * cloud(30, 3, seed=1) + torch.tensor([1.0, 0.5, 0.0])
    a, b = masses(40, 2), masses(30, 3)
    theta, _ = random_directions(64, 3, generator=seeded(4))
    sliced = float(sliced_wasserstein(x, y, a, b, directions=theta).value)
    energy = float(energy_sliced_wasserstein(x, y, a, b, directions=theta).value)
    largest = max_sliced_wasserstein(x, y, a, b, generator=seeded(5))
    exact = brenier.solve(x, y, a=a, b=b)
    least, mean = (f(x, y, a, b, directions=theta) for f in (min_sliced_plan, expected_sliced_plan))
    assert sliced <= energy <= float(largest.value) <= float(exact.value) <= float(least.value) <= float(mean.value)
    per_direction = sliced_wasserstein(x, y, a, b, directions=random_directions(2000, 3, generator=seeded(6))[0])
    assert float(largest.value) >= float(per_direction.per_direction.max())
    for lifted in (least, mean):
        certificate = lifted.certify()
        torch.testing.assert_close(lifted.plan.row_sums(), a)
        torch.testing.assert_close(lifted.plan.col_sums(), b)
        assert abs(float(certificate.primal) - float(lifted.value)) <= 1e-12
        assert float(certificate.dual) <= float(exact.value) + 1e-12


def test_max_sliced_finds_the_shift() -> None:
    x = cloud(3, 30, 4, seed=0)
    shift = torch.tensor([0.0, 0.0, 3.0, 4.0]).double()
    found = max_sliced_wasserstein(x, x + shift, generator=seeded(1))
    torch.testing.assert_close(found.value, torch.full((3,), 25.0, dtype=torch.float64))
    torch.testing.assert_close((found.direction @ shift).abs(), torch.full((3,), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(weighted: bool) -> None:
    x, y = cloud(5, 3, seed=0).requires_grad_(), cloud(4, 3, seed=1).requires_grad_()
    logits = [cloud(k, seed=k).requires_grad_() for k in (5, 4)] if weighted else []
    theta, _ = random_directions(6, 3, generator=seeded(2))

    def masses(t: tuple[Tensor, ...]) -> list[Tensor]:
        return [u.softmax(-1) for u in t]

    losses = (
        lambda x, y, *t: sliced_wasserstein(x, y, *masses(t), directions=theta).value,
        lambda x, y, *t: sliced_wasserstein(x, y, *masses(t), directions=theta.repeat(1, 1), p=1.5).distance,
        lambda x, y, *t: energy_sliced_wasserstein(x, y, *masses(t), directions=theta).value,
        lambda x, y, *t: spherical_sliced_wasserstein(x, y, *masses(t), circles=4, generator=seeded(3)).value,
    )
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (x, y, *logits))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(2, 30, 3, seed=0).requires_grad_(), cloud(20, 3, seed=1)
    theta, _ = random_directions(50, 3, generator=seeded(2))

    def both() -> tuple[Tensor, Tensor]:
        value = sliced_wasserstein(x, y, directions=theta).value
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    whole = both()
    monkeypatch.setattr("brenier.losses.sliced._ENTRIES", 700)
    for one, other in zip(whole, both()):
        torch.testing.assert_close(one, other)


def test_batches() -> None:
    x, y = cloud(3, 12, 2, seed=0), cloud(9, 2, seed=1)
    theta, _ = random_directions(10, 2, generator=seeded(2))
    batch = sliced_wasserstein(x, y, directions=theta)
    assert batch.per_direction.shape == (3, 10)
    for k in range(3):
        torch.testing.assert_close(batch.value[k], sliced_wasserstein(x[k], y, directions=theta).value)


# -- partial and unbalanced --------------------------------------------------------------------------------------


PAIRS = (Partial(11.0), Partial(7.5), TV(0.3), Slack(0.2), (Slack(0.1), Partial(9.0)))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_soft_marginals_in_each_direction(pair: Marginal | tuple[Marginal, Marginal]) -> None:
    x, y = cloud(2, 15, 3, seed=0), cloud(12, 3, seed=1) + 0.5
    a, b = (torch.ones(k, dtype=torch.float64) for k in (15, 12))
    theta, _ = random_directions(6, 3, generator=seeded(2))
    estimate = sliced_wasserstein(x, y, a, b, marginals=pair, directions=theta)
    for i, k in np.ndindex(2, 6):
        u, v = (t @ theta[k] for t in (x[i], y))
        exact = brenier.solve(u, v, a=a, b=b, marginals=pair, solver="network-simplex")
        torch.testing.assert_close(estimate.per_direction[i, k], exact.value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(estimate.value, estimate.per_direction.mean(-1))


def test_limits_of_soft_marginals() -> None:
    x, y = cloud(20, 3, seed=0), cloud(20, 3, seed=1)
    theta, _ = random_directions(8, 3, generator=seeded(2))
    balanced = sliced_wasserstein(x, y, directions=theta)
    for pair in (Partial(1.0), TV(1e3), Slack(1e3), (Exact(), Exact())):
        soft = sliced_wasserstein(x, y, marginals=pair, directions=theta)
        torch.testing.assert_close(soft.per_direction, balanced.per_direction)
    none = sliced_wasserstein(x, y, marginals=Slack(0.0), directions=theta)
    assert float(none.value) == 0.0
    paid = sliced_wasserstein(x, y, marginals=Slack(-1.0), directions=theta)  # two points each of which earns one
    assert float(paid.value) == pytest.approx(-2.0)
    assert tuple(map(float, paid.interval())) == pytest.approx((-2.0, -2.0))


def test_outliers_stay_behind() -> None:
    x = cloud(50, 3, seed=0)
    y = torch.cat([x[:40], x[40:] + 100.0])
    assert float(sliced_wasserstein(x, y, generator=seeded(1)).value) > 100
    assert float(sliced_wasserstein(x, y, marginals=Partial(0.8), generator=seeded(1)).value) <= 1e-20
    estimate = sliced_wasserstein(x, y, marginals=TV(0.5), directions=256, generator=seeded(1))
    assert abs(float(estimate.value) - 0.2) <= 0.01  # ten of fifty on either side, at 0.5 each


def test_soft_coverage() -> None:
    """The interval of the partial cost holds its mean over all directions about as often as it says."""
    x, y = cloud(12, 3, seed=0), cloud(12, 3, seed=1) + 1
    truth = sliced_wasserstein(x, y, marginals=Partial(0.75), directions=20_000, sampler="quasi", generator=seeded(9))
    generator, held = seeded(2), 0
    for _ in range(100):
        estimate = sliced_wasserstein(x, y, marginals=Partial(0.75), directions=64, generator=generator)
        low, high = estimate.interval(0.9)
        held += bool(low <= truth.value <= high)
    assert 80 <= held <= 98


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("make", [Partial, TV])
def test_soft_gradients(make: Callable[[Any], Marginal], p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(6, 3, seed=0).requires_grad_(), cloud(4, 3, seed=1).requires_grad_()
    a, b = (torch.ones(k, dtype=torch.float64) for k in (6, 4))
    theta, _ = random_directions(6, 3, generator=seeded(2))
    price = torch.tensor(2.5 if make is Partial else 0.4, dtype=torch.float64, requires_grad=make is TV)

    def loss(x: Tensor, y: Tensor, price: Tensor) -> Tensor:
        return sliced_wasserstein(x, y, a, b, p=p, marginals=make(price), directions=theta).value

    assert torch.autograd.gradcheck(loss, (x, y, price))
    monkeypatch.setattr("brenier.losses.sliced._ENTRIES", 20)  # some directions at a time
    assert torch.autograd.gradcheck(loss, (x, y, price))


# -- projections, barycentres ------------------------------------------------------------------------------------


def test_projections() -> None:
    x, y = cloud(20, 3, seed=0), cloud(25, 3, seed=1) + 1
    theta, _ = random_directions(12, 3, generator=seeded(2))
    plain = sliced_wasserstein(x, y, directions=theta)
    torch.testing.assert_close(sliced_wasserstein(x, y, directions=theta, projection=Polynomial(1)).value, plain.value)
    far = sliced_wasserstein(x, y, directions=theta, projection=Circular(1e6))  # circles so large are lines
    torch.testing.assert_close(far.value, plain.value, rtol=1e-3, atol=1e-6)
    cubic = sliced_wasserstein(x, y, projection=Polynomial(3), directions=8, generator=seeded(3))
    assert cubic.directions.shape[1] == 10
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh()).double()
    deep = sliced_wasserstein(
        x, y, projection=lambda points, weights: weights @ net(points).mT,
        directions=random_directions(5, 8, generator=seeded(4))[0],
    )  # fmt: skip
    deep.value.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_barycentre_of_translates() -> None:
    y = cloud(60, 2, seed=0)
    shift = torch.tensor([4.0, 0.0]).double()
    middle = sliced_barycentre([y, y + shift], [0.25, 0.75], start=y, generator=seeded(1))
    truth = y + 0.75 * shift
    assert float(sliced_wasserstein(middle, truth, directions=64, generator=seeded(2)).value) <= 1e-4


# -- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    x = cloud(5, 3, seed=0)
    for call, message in (
        (lambda: sliced_wasserstein(x, x, sampler="sobol"), "sampler: expected"),
        (lambda: sliced_wasserstein(x, x, directions=0), "directions: expected a positive integer"),
        (lambda: sliced_wasserstein(x, x, directions=torch.ones(2, 2)), "directions: expected"),
        (lambda: sliced_wasserstein(x, x, p=0.5), "power >= 1"),
        (lambda: sliced_wasserstein(x, x[:, :2]), "one dimension"),
        (lambda: sliced_wasserstein(x, x[:4], marginals=TV(1.0)), "points of one mass, the same on both sides"),
        (lambda: sliced_wasserstein(x, x, marginals=KL(1.0)), "expected Partial, or TV or Slack"),
        (lambda: sliced_wasserstein(x, x, marginals=(Exact(),)), "marginals: expected"),
        (lambda: sliced_wasserstein(x, x, marginals=Partial(torch.ones(3).double())), "Partial mass: expected"),
        (lambda: sliced_wasserstein(x, x).interval(2.0), "level: expected"),
        (lambda: spherical_sliced_wasserstein(x[:, :1], x[:, :1]), "points on a sphere"),
        (lambda: min_sliced_plan(x[None], x), "without batch axes"),
        (lambda: expected_sliced_plan(x, x, temperature=0.0), "temperature: expected"),
        (lambda: Polynomial(2), "odd"),
        (lambda: sliced_barycentre([]), "at least one cloud"),
        (lambda: sliced_barycentre([x], weights=[2.0]), "weights: expected"),
    ):
        with pytest.raises(InvalidInput, match=message):
            call()
