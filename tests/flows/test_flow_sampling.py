"""Samplers: orders of convergence, likelihoods of Gaussians, energies of rotations."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from brenier import InvalidInput, MissingExtra
from brenier.flows import log_likelihood, path_energy, sample_ode, straightness
from problems import assert_close, cloud

FIXED = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def growth(z: Tensor, t: Tensor) -> Tensor:
    """Logistic growth, faster and faster."""
    return z * (1 - z) * (1 + t).unsqueeze(1)


def grown(z: Tensor, t: Tensor | float = 1.0) -> Tensor:
    """What it makes of z at time t."""
    rate = torch.as_tensor(t + t**2 / 2, dtype=z.dtype)
    return z / (z + (1 - z) * torch.exp(-rate))


START = torch.tensor([[0.3, 1.2], [0.9, 0.5]], dtype=torch.float64)


def quarter(z: Tensor, t: Tensor) -> Tensor:
    """A quarter of a turn."""
    return math.pi / 2 * torch.stack([-z[:, 1], z[:, 0]], 1)


MEAN, SPREAD = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.5, 2.0, 1.0]).double()


def to_gaussian(z: Tensor, t: Tensor) -> Tensor:
    """The field of the straight path from N(0, I) to N(MEAN, diag SPREAD^2)."""
    t = t.unsqueeze(1)
    variance = (t * SPREAD).square() + (1 - t).square()
    return MEAN + (t * SPREAD.square() - (1 - t)) / variance * (z - t * MEAN)


# -- samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "order"), FIXED.items())
def test_orders_of_convergence(method: str, order: int) -> None:
    x0 = START
    exact = grown(x0)
    errors = [float((sample_ode(growth, x0, steps=steps, method=method) - exact).abs().max()) for steps in (20, 40, 80)]
    for rough, fine in itertools.pairwise(errors):
        assert math.log2(rough / fine) == pytest.approx(order, abs=0.1)


def test_adaptive_steps_reach_their_tolerance() -> None:
    pytest.importorskip("torchdiffeq")
    x0 = START
    found = sample_ode(growth, x0, method="dopri5", rtol=1e-9, atol=1e-9)
    assert_close(found, grown(x0), rtol=1e-7)
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    whole = sample_ode(growth, x0, method="dopri5", rtol=1e-9, atol=1e-9, times=times, return_trajectory=True)
    expected = grown(x0, times[:, None, None])
    assert_close(whole, expected, rtol=1e-6, atol=1e-9)


def test_adaptive_steps_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"brenier\[flows\]"):
        sample_ode(growth, cloud(2, 2), method="dopri5")


def test_back_and_forth_ends_at_the_start() -> None:
    x0 = START
    there = sample_ode(growth, x0, steps=40, method="rk4")
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    assert_close(sample_ode(growth, there, times=times, method="rk4"), x0, rtol=1e-6)


def test_trajectories_hold_every_time() -> None:
    x0 = cloud(4, 6, 2).reshape(4, 2, 3)
    whole = sample_ode(lambda z, t: torch.ones_like(z), x0, steps=4, return_trajectory=True)
    assert whole.shape == (5, 4, 2, 3)
    assert_close(whole, x0 + torch.linspace(0, 1, 5, dtype=torch.float64)[:, None, None, None], rtol=1e-12)
    assert_close(whole[-1], sample_ode(lambda z, t: torch.ones_like(z), x0, steps=4), rtol=1e-12)


@pytest.mark.parametrize("method", FIXED)
def test_the_model_sees_times_in_the_unit_interval_and_its_conditions(method: str) -> None:
    seen: list[Tensor] = []

    def model(z: Tensor, t: Tensor, label: Tensor, scale: float = 1.0) -> Tensor:
        assert t.shape == (len(z),)
        assert t.dtype == z.dtype
        seen.append(t)
        return scale * label.to(z).unsqueeze(1).expand_as(z)

    x0, label = cloud(3, 2, dtype=torch.float32), torch.tensor([0, 1, 2])
    end = sample_ode(model, x0, steps=7, method=method, label=label, scale=2.0)
    assert end.dtype == torch.float32
    assert_close(end - x0, 2.0 * label.float().unsqueeze(1).expand(3, 2), rtol=1e-5, atol=1e-5)
    times = torch.stack(seen)
    assert float(times.min()) == 0.0
    assert float(times.max()) <= 1.0


def test_gradients_flow_through_the_steps() -> None:
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    end = sample_ode(lambda z, t: rate * z, torch.ones(1, 1, dtype=torch.float64), steps=30, method="rk4")
    assert_close(torch.autograd.grad(end.sum(), rate)[0], math.exp(0.7), rtol=1e-6)


# -- likelihoods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [None, 2])
def test_likelihood_of_a_gaussian_is_exact(probes: int | None) -> None:
    """The Jacobian of this field is diagonal, so that random signs give its trace exactly too."""
    x1 = MEAN + SPREAD * cloud(8, 3)
    found = log_likelihood(to_gaussian, x1, steps=200, method="rk4", probes=probes)
    expected = torch.distributions.Normal(MEAN, SPREAD).log_prob(x1).sum(1)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


def test_probes_estimate_the_divergence_without_bias(generator: torch.Generator) -> None:
    matrix = torch.tensor([[0.3, 0.5], [-0.2, 0.1]], dtype=torch.float64)

    def model(z: Tensor, t: Tensor) -> Tensor:
        return z @ matrix.T

    x1 = cloud(1, 2).expand(4000, 2)
    exact = log_likelihood(model, x1[:1], method="rk4")
    start = torch.linalg.matrix_exp(-matrix) @ x1[0]
    assert_close(exact[0], -(start @ start) / 2 - math.log(2 * math.pi) - matrix.trace(), rtol=1e-8)
    rough = log_likelihood(model, x1, steps=5, method="rk4", probes=1, generator=generator)
    assert rough.std() > 0.1
    assert abs(float(rough.mean() - exact)) < 4 * float(rough.std()) / math.sqrt(4000)


def test_likelihood_of_a_shift_needs_no_gradient() -> None:
    x1 = cloud(3, 2)
    found = log_likelihood(lambda z, t: torch.ones_like(z), x1, steps=3)
    assert_close(found, torch.distributions.Normal(1.0, 1.0).log_prob(x1).sum(1), rtol=1e-9)


def test_likelihood_of_a_network_with_parameters() -> None:
    layer = torch.nn.Linear(2, 2).double()
    found = log_likelihood(lambda z, t, shift: layer(z) + shift, cloud(3, 2), method="rk4", shift=0.1)
    expected = layer.weight.detach().trace()
    back = sample_ode(
        lambda z, t: layer(z) + 0.1,
        cloud(3, 2),
        method="rk4",
        times=torch.linspace(1, 0, 51, dtype=torch.float64),
    ).detach()
    base = torch.distributions.Normal(0.0, 1.0).log_prob(back).sum(1)
    assert_close(found, base - expected, rtol=1e-6, atol=1e-6)
    assert all(p.grad is None for p in layer.parameters())


# -- energies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [False, True])
def test_energy_and_straightness_of_a_rotation(back: bool) -> None:
    x0 = cloud(5, 2)
    options: dict[str, Any] = {"method": "rk4"}
    if back:
        options["times"] = torch.linspace(1, 0, 31, dtype=torch.float64)
    radius = x0.square().sum(1)
    assert_close(path_energy(quarter, x0, **options), math.pi**2 / 4 * radius, rtol=1e-6)
    assert_close(straightness(quarter, x0, **options), (math.pi**2 / 4 - 2) * radius, rtol=1e-5)


def test_a_straight_line_is_straight_over_any_span() -> None:
    x0, times = cloud(5, 2), torch.linspace(0, 0.5, 6, dtype=torch.float64)
    found = straightness(lambda z, t: torch.full_like(z, 3.0), x0, times=times)
    assert_close(found, torch.zeros(5), atol=1e-10)
    bent = straightness(quarter, x0, times=times, method="rk4")
    expected = math.pi**2 / 8 - 2 * (2 - math.sqrt(2))  # half the turn, in half the time
    assert_close(bent, expected * x0.square().sum(1), rtol=1e-4)


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": torch.zeros(2, 2, dtype=torch.int64)}, "a floating tensor"),
        ({"x0": [0.0]}, "a floating tensor"),
        ({"x0": torch.zeros(0, 2)}, "at least one point"),
        ({"steps": 0}, "a positive number of steps"),
        ({"method": "rk5"}, "'dopri5'"),
        ({"times": torch.tensor([0.0])}, "at least two times"),
        ({"times": torch.tensor([0.0, 1.0, 0.5])}, "strictly rising or strictly falling"),
        ({"times": torch.tensor([0.0, float("nan")])}, "strictly rising or strictly falling"),
        ({"model": lambda z, t: z[:, :1]}, "velocities of shape"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": growth, "x0": torch.zeros(2, 2), **change}
    with pytest.raises(InvalidInput, match=message):
        sample_ode(arguments.pop("model"), arguments.pop("x0"), **arguments)


def test_bad_likelihoods_are_refused() -> None:
    with pytest.raises(InvalidInput, match="strictly falling"):
        log_likelihood(growth, torch.zeros(2, 2), times=torch.tensor([0.0, 1.0]))
    with pytest.raises(InvalidInput, match="probes"):
        log_likelihood(growth, torch.zeros(2, 2), probes=0)
    pytest.importorskip("torchdiffeq")
    with pytest.raises(InvalidInput, match="rtol"):
        sample_ode(growth, torch.zeros(2, 2), method="dopri5", rtol=0.0)
