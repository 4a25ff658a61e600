"""Probability paths: derivatives, ends, and what a Gaussian's velocity, score and denoiser are in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from brenier import InvalidInput
from brenier.flows import VP, CondOT, GaussianPath, Trigonometric
from problems import assert_close, cloud

PATHS: list[GaussianPath] = [CondOT(), Trigonometric(), VP(), VP(beta0=0.5, beta1=4.0)]


def inner(n: int) -> Tensor:
    """Times inside (0, 1)."""
    return torch.linspace(0.05, 0.95, n, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_derivatives_are_those_of_the_schedule(path: GaussianPath) -> None:
    t, h = inner(19), 1e-5
    assert_close(path.da(t), (path.a(t + h) - path.a(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)
    assert_close(path.dm(t), (path.m(t + h) - path.m(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_paths_run_from_the_source_to_the_data(path: GaussianPath) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(path.a(ends)[1], 1.0, rtol=1e-12)
    assert float(path.m(ends)[1]) == 0.0
    if isinstance(path, VP):
        assert_close(path.a(ends)[0], torch.tensor(-(path.beta0 + path.beta1) / 4).double().exp(), rtol=1e-6)
        t = torch.linspace(0, 1, 11, dtype=torch.float64)
        assert_close(path.a(t).square() + path.m(t).square(), torch.ones_like(t), rtol=1e-12)
    else:
        assert float(path.a(ends)[0]) == 0.0
        assert_close(path.m(ends)[0], 1.0, rtol=1e-12)
    inside = torch.tensor(path.span, dtype=torch.float64)
    assert torch.isfinite(path.da(inside)).all()
    assert torch.isfinite(path.dm(inside)).all()


def test_ddpm_in_the_usual_direction_of_time() -> None:
    """The log of a_t is minus half the integral of the rate from the data on."""
    path, steps = VP(0.1, 20.0), torch.linspace(0, 0.7, 2001, dtype=torch.float64)
    rate = 0.1 + steps * (20.0 - 0.1)
    expected = -torch.trapezoid(rate, steps) / 2
    assert_close(path.a(torch.tensor(0.3, dtype=torch.float64)).log(), expected, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_samples_lie_on_the_path_and_move_with_it(path: GaussianPath) -> None:
    x0, x1, t = cloud(7, 6, 1).reshape(7, 2, 3), cloud(7, 6, 2).reshape(7, 2, 3), inner(7)
    x_t, u_t = path.sample(x0, x1, t)
    assert_close(x_t[3], path.a(t[3]) * x1[3] + path.m(t[3]) * x0[3], rtol=1e-12)
    h = 1e-5
    moved = path.sample(x0, x1, t + h)[0] - path.sample(x0, x1, t - h)[0]
    assert_close(u_t, moved / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_conversions_are_those_of_a_gaussian(path: GaussianPath) -> None:
    """For data N(0, sigma^2) the law at t is N(0, a^2 sigma^2 + m^2), and all three are linear."""
    variance, x, t = 2.5, cloud(9, 4, 3), inner(9)
    a, m, da, dm = (part(t).unsqueeze(1) for part in (path.a, path.m, path.da, path.dm))
    total = a.square() * variance + m.square()
    velocity = (a * da * variance + m * dm) / total * x
    score = -x / total
    denoiser = a * variance / total * x
    close = {"rtol": 1e-9, "atol": 1e-10}
    assert_close(path.velocity_to_denoiser(velocity, x, t), denoiser, **close)
    assert_close(path.denoiser_to_velocity(denoiser, x, t), velocity, **close)
    assert_close(path.velocity_to_score(velocity, x, t), score, **close)
    assert_close(path.score_to_velocity(score, x, t), velocity, **close)
    assert_close(path.score_to_denoiser(score, x, t), denoiser, **close)
    assert_close(path.denoiser_to_score(denoiser, x, t), score, **close)


def test_the_denoiser_of_a_velocity_holds_at_the_data_too() -> None:
    x = cloud(3, 2, 4)
    found = CondOT().velocity_to_denoiser(cloud(3, 2, 5), x, torch.ones(3, dtype=torch.float64))
    assert_close(found, x, rtol=1e-12)


def test_results_keep_the_dtype(dtype: torch.dtype) -> None:
    x0, x1 = cloud(4, 3, 1, dtype=dtype), cloud(4, 3, 2, dtype=dtype)
    t = torch.full((4,), 0.5, dtype=dtype)
    for path in PATHS:
        assert {part.dtype for part in path.sample(x0, x1, t)} == {dtype}


def test_bad_input_is_refused() -> None:
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    with pytest.raises(InvalidInput, match="points of one shape"):
        CondOT().sample(x, torch.zeros(3, 1), t)
    with pytest.raises(InvalidInput, match=r"times of shape \(3,\)"):
        CondOT().sample(x, x, torch.tensor(0.5))
    with pytest.raises(InvalidInput, match=r"times of shape \(3,\)"):
        CondOT().velocity_to_score(x, x, torch.zeros(2))
    for rates in ((0.0, 1.0), (0.1, float("inf")), (True, 2.0)):
        with pytest.raises(InvalidInput, match="a positive finite rate"):
            VP(*rates)
    with pytest.raises(InvalidInput, match="beta1"):
        VP(2.0, 1.0)
