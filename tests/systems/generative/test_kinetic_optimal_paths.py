"""Kinetic-optimal paths: the known answers of Gaussian and separated data, two points by quadrature, exact fields."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from brenier import InvalidInput
from brenier.flows import VP, CondOT, GaussianPath, Trigonometric, sample_ode
from brenier.systems.generative.kinetic_optimal_paths import (
    DataSeparation,
    KineticOptimalPath,
    Scaling,
    conditional_energy,
    empirical_velocity,
    kinetic_energy,
    kinetic_optimal_path,
)
from problems import assert_close, cloud

RIGHT = math.pi / 2
LOW = DataSeparation.gaussian([4.0, 0.0, 0.0, 0.0])


def two_points(s: Tensor) -> Tensor:
    """Lambda of x1 = -1 or 1: the mean of tanh(s^2 + s x0)^2, by quadrature."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(100)
    x0, mass = torch.from_numpy(nodes), torch.from_numpy(masses / masses.sum())
    return (s.square().unsqueeze(1) + s.unsqueeze(1) * x0).tanh().square() @ mass


PAIR = DataSeparation.from_callable(two_points)
POINTS = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(n: int = 101) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)


# -- known answers -------------------------------------------------------------------------------------------


def test_standard_gaussian_data_need_hardly_any_energy() -> None:
    gaussian = DataSeparation.from_callable(lambda s: s.square() / (1 + s.square()))
    straight = kinetic_energy(CondOT(), gaussian)
    assert straight == pytest.approx(2 - RIGHT, rel=1e-5)  # of the radius alone
    assert kinetic_energy(kinetic_optimal_path(gaussian), gaussian) < 0.02 * straight


def test_lambda_of_standard_gaussian_samples() -> None:
    x = torch.randn(3000, 2, generator=seeded(0), dtype=torch.float64)
    found = DataSeparation.estimate(x, n_theta=21, n_queries=600, generator=seeded(1))
    assert_close(found.lam, found.theta.sin().square(), atol=0.02)


def test_lambda_of_a_gaussian() -> None:
    sigma = torch.tensor([2.4, 1.0, 0.4, 0.2], dtype=torch.float64)
    exact = DataSeparation.gaussian(3 * sigma, n_theta=21)  # divided by their mean
    s = exact.theta[:-1].tan().unsqueeze(1)
    assert_close(exact.lam[:-1], (s.square() * sigma.square() / (1 + s.square() * sigma)).mean(1), atol=1e-12)
    x = torch.randn(3000, 4, generator=seeded(2), dtype=torch.float64) * sigma.sqrt()
    found = DataSeparation.estimate(x, n_theta=21, n_queries=600, generator=seeded(3))
    assert_close(found.lam, exact.lam, atol=0.03)


def test_data_told_apart_at_once_are_best_served_by_the_straight_path() -> None:
    path = kinetic_optimal_path(DataSeparation.from_callable(torch.ones_like))
    t = times(1001)
    assert_close(path.a(t), t, atol=1e-6)
    assert_close(path.m(t), 1 - t, atol=1e-6)
    assert_close(path.da(t), torch.ones(1001), atol=1e-5)
    assert path.energy == pytest.approx(2, abs=1e-6)
    assert pytest.approx(RIGHT, abs=1e-9) == path.Phi


def test_few_points_in_many_dimensions_are_told_apart() -> None:
    x = torch.randn(10, 10_000, generator=seeded(4), dtype=torch.float64)
    found = DataSeparation.estimate(x, n_theta=101, n_queries=10, generator=seeded(5))
    assert 0 < found.deficit() <= 3 * 10 / 100


def test_the_formula_of_the_energy_is_the_integral() -> None:
    path = kinetic_optimal_path(LOW)
    assert path.energy == pytest.approx(2 * (1 - math.cos(path.Phi)), rel=1e-12)
    assert kinetic_energy(path, LOW) == pytest.approx(path.energy, rel=0.01)
    fine = kinetic_optimal_path(PAIR, gamma_min=1e-6)
    assert kinetic_energy(fine, PAIR) == pytest.approx(fine.energy, rel=0.01)


def test_the_papers_descent_agrees() -> None:
    path, descent = kinetic_optimal_path(LOW), kinetic_optimal_path(LOW, solver="gradient")
    assert descent.energy == pytest.approx(path.energy, rel=0.02)
    assert descent.energy >= path.energy * (1 - 1e-4)
    assert_close(descent.a(times()), path.a(times()), atol=0.05)
    assert kinetic_energy(descent, LOW) == pytest.approx(descent.energy, rel=0.02)


# -- the path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["quadrature", "gradient"])
def test_derivatives_are_those_of_the_schedule(solver: str) -> None:
    path = kinetic_optimal_path(PAIR, solver=solver)
    t, h = torch.linspace(0.02, 0.98, 25, dtype=torch.float64), 1e-6
    assert_close(path.da(t), (path.a(t + h) - path.a(t - h)) / (2 * h), rtol=1e-4)
    assert_close(path.dm(t), (path.m(t + h) - path.m(t - h)) / (2 * h), rtol=1e-4)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(path.a(ends), ends, atol=1e-9)
    assert_close(path.m(ends), 1 - ends, atol=1e-9)
    assert float(path.m(ends)[1]) == 0.0
    ratio = path.a(times()[:-1]) / path.m(times()[:-1])
    assert (ratio.diff() > 0).all()


@pytest.mark.parametrize("solver", ["quadrature", "gradient"])
def test_the_span_begins_where_the_floor_ends(solver: str) -> None:
    path = kinetic_optimal_path(LOW, gamma_min=0.04, solver=solver)
    begin = torch.tensor(path.span[0], dtype=torch.float64)
    angle = torch.atan2(path.a(begin), path.m(begin))
    assert float(LOW.gamma_at(angle)) == pytest.approx(0.04, abs=2e-3)
    assert path.span[1] == 1.0
    for gamma in (torch.ones_like, lambda s: s.square() / (1 + s.square())):
        assert kinetic_optimal_path(DataSeparation.from_callable(gamma)).span == (0.0, 1.0)


def test_two_steps_from_the_begin_of_the_span_keep_a_long_axis() -> None:
    """Of data along one line: from t = 0 itself the first step forgets the line."""
    data = torch.zeros(400, 4, dtype=torch.float64)
    data[:, 0] = 2 * torch.randn(400, generator=seeded(18), dtype=torch.float64)
    path = kinetic_optimal_path(LOW)
    x0 = torch.randn(400, 4, generator=seeded(19), dtype=torch.float64)
    spread = {}
    for begin in (0.0, path.span[0]):
        times = torch.linspace(begin, 1.0, 3, dtype=torch.float64)
        end = sample_ode(lambda z, t: empirical_velocity(z, t, data, path), x0, times=times)
        spread[begin] = float(end[:, 0].std() / data[:, 0].std())
    assert abs(spread[path.span[0]] - 1) < 0.15
    assert spread[0.0] < 0.8


def test_no_other_path_spends_less() -> None:
    for separation in (PAIR, LOW, DataSeparation.gaussian([1.9, 0.1])):
        best = kinetic_energy(kinetic_optimal_path(separation, gamma_min=1e-4), separation)
        for rival in (CondOT(), Trigonometric(), VP()):
            assert best < kinetic_energy(rival, separation)
            assert kinetic_energy(rival, separation) < conditional_energy(rival)


def test_conditional_energies() -> None:
    assert conditional_energy(CondOT()) == pytest.approx(2, rel=1e-6)
    assert conditional_energy(Trigonometric()) == pytest.approx(math.pi**2 / 4, rel=1e-6)
    apart = DataSeparation.from_callable(torch.ones_like)
    for path in (CondOT(), Trigonometric(), VP()):
        assert kinetic_energy(path, apart) == pytest.approx(conditional_energy(path), rel=1e-6)


def test_times_of_any_shape_and_dtype() -> None:
    path = kinetic_optimal_path(PAIR)
    for t in (torch.tensor(0.5), torch.full((3,), 0.5).reshape(3, 1, 1), torch.tensor(0.5).expand(4)):
        found = path.a(t)
        assert found.shape == t.shape
        assert found.dtype == t.dtype
        assert_close(found.flatten()[0].double(), path.a(torch.tensor(0.5).double()), atol=1e-6)
    assert "KineticOptimalPath(Phi=" in repr(path)


# -- the energy, directly ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CondOT(), Trigonometric(), kinetic_optimal_path(PAIR)], ids=type)
def test_the_energy_is_that_of_the_exact_field(path: GaussianPath) -> None:
    """For two points on the line: the mean squared velocity by quadrature over x, and then over t."""
    x = torch.linspace(-7, 7, 701, dtype=torch.float64).unsqueeze(1)
    grid = times(401)[:-1] + 0.5 / 400
    powers = []
    for t in grid:
        a, m = path.a(t), path.m(t)
        density = torch.distributions.Normal(0.0, 1.0).log_prob((x - a * POINTS.T) / m).exp().mean(1) / m
        squared = empirical_velocity(x, t.expand(len(x)), POINTS, path).square().squeeze(1)
        fine = m > 0.05
        powers.append(float((density * squared).sum() * 0.02) if fine else float(path.da(t) ** 2 + path.dm(t) ** 2))
    assert float(np.mean(powers)) == pytest.approx(kinetic_energy(path, PAIR), rel=2e-3)


def test_the_estimate_meets_the_quadrature() -> None:
    """Two points are all the data there are, so that only the noise is drawn."""
    x = POINTS.repeat(2000, 1) * 3 + 5
    found = DataSeparation.estimate(x, n_theta=21, n_queries=4000, generator=seeded(6))
    assert_close(found.lam[:-1], two_points(found.theta[:-1].tan()), atol=0.02)
    assert_close(found.scaling.mean, [5.0], rtol=1e-12)
    assert found.scaling.scale == pytest.approx(3)
    assert float(found.gamma[0]) == 0
    assert float(found.gamma[-1]) == 1


def test_a_denoiser_in_the_place_of_the_data() -> None:
    x = torch.randn(500, 2, 3, generator=seeded(7), dtype=torch.float64)

    def linear(y: Tensor, s: Tensor) -> Tensor:
        assert y.shape[1:] == (2, 3)
        return (s.square() / (1 + s.square()))[:, None, None] * y

    found = DataSeparation.estimate(x, n_theta=9, denoiser=linear, generator=seeded(8))
    assert_close(found.gamma, torch.zeros(9), atol=1e-9)


def test_held_out_data_are_harder_to_denoise() -> None:
    x = torch.randn(200, 5, generator=seeded(9), dtype=torch.float64)
    others = torch.randn(200, 5, generator=seeded(10), dtype=torch.float64)
    own = DataSeparation.estimate(x, n_theta=17, generator=seeded(11))
    held = DataSeparation.estimate(x, n_theta=17, held_out=others, generator=seeded(11))
    assert (held.lam <= own.lam + 0.02).all()
    assert held.lam[12] < own.lam[12] - 0.05
    assert kinetic_energy(CondOT(), held) < kinetic_energy(CondOT(), own)


def test_an_estimate_repeats_and_keeps_low_precision_in_check() -> None:
    x = cloud(400, 30, 12)
    found = [DataSeparation.estimate(x, n_theta=17, generator=seeded(13)) for _ in range(2)]
    assert torch.equal(found[0].gamma, found[1].gamma)
    single = DataSeparation.estimate(x.float(), n_theta=17, n_queries=400, generator=seeded(13))
    assert single.gamma.dtype == torch.float64
    assert bool(((single.gamma >= 0) & (single.gamma <= 1)).all())
    assert float(single.gamma[-2]) > 0.99  # the rounding of large exponents does not show


# -- the exact field -----------------------------------------------------------------------------------------


def dense_velocity(x: Tensor, t: float, data: Tensor, path: GaussianPath) -> np.ndarray:
    a, m, da, dm = (float(part(torch.tensor(t, dtype=torch.float64))) for part in (path.a, path.m, path.da, path.dm))
    gap = x.numpy()[:, None] - a * data.numpy()
    best = softmax(-(gap**2).sum(-1) / (2 * m**2), axis=1) @ data.numpy()
    out: np.ndarray = da * best + dm * (x.numpy() - a * best) / m
    return out


@pytest.mark.parametrize("path", [CondOT(), VP(), kinetic_optimal_path(PAIR)], ids=type)
def test_the_exact_field_is_the_dense_sum(path: GaussianPath) -> None:
    data, x = cloud(40, 3, 1), cloud(6, 3, 2)
    at = torch.tensor([0.0, 0.1, 0.4, 0.7, 0.9, 0.99], dtype=torch.float64)
    found = empirical_velocity(x, at, data, path)
    for k, t in enumerate(at.tolist()):
        assert_close(found[k : k + 1], dense_velocity(x[k : k + 1], t, data, path), rtol=1e-7)
    images = empirical_velocity(x.reshape(6, 3, 1), at, data.reshape(40, 3, 1), path)
    assert_close(images.reshape(6, 3), found, rtol=1e-12)


def test_the_exact_field_ends_in_the_data(dtype: torch.dtype) -> None:
    data = cloud(5, 2, 3, dtype=dtype)
    path = kinetic_optimal_path(PAIR)
    x0 = torch.randn(50, 2, generator=seeded(14), dtype=dtype)
    end = sample_ode(lambda z, t: empirical_velocity(z, t, data, path), x0, steps=60)
    assert end.dtype == dtype
    assert torch.cdist(end, data).amin(1).max() < 1e-2


# -- scaling, files, bad input -------------------------------------------------------------------------------


def test_scaling_gives_mean_zero_and_mean_variance_one(dtype: torch.dtype) -> None:
    x = (cloud(50, 6, 15).reshape(50, 2, 3) * torch.tensor([1.0, 2.0, 5.0]) - 3).to(dtype)
    scaling = Scaling.of(x)
    y = scaling.normalize(x)
    assert y.dtype == dtype
    assert_close(y.double().mean(0), torch.zeros(2, 3), atol=1e-6)
    assert float(y.double().square().mean()) == pytest.approx(1, rel=1e-5)
    assert_close(scaling.denormalize(y), x, rtol=1e-5)
    neutral = Scaling()
    assert torch.equal(neutral.normalize(x), x)


def test_files_hold_all(tmp_path: Path) -> None:
    kept = DataSeparation.estimate(cloud(30, 2, 16) + 4, n_theta=9, generator=seeded(17))
    kept.save(tmp_path / "separation.pt")
    read = DataSeparation.load(tmp_path / "separation.pt")
    assert torch.equal(read.theta, kept.theta)
    assert torch.equal(read.gamma, kept.gamma)
    assert torch.equal(read.scaling.mean, kept.scaling.mean)
    path = kinetic_optimal_path(read)
    assert isinstance(path, KineticOptimalPath)
    assert path.scaling.scale == kept.scaling.scale


GRID = torch.linspace(0, RIGHT, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataSeparation(GRID.flip(0), torch.zeros(5)), "strictly increasing"),
        (lambda: DataSeparation(GRID[:-1], torch.zeros(4)), "from 0 to pi / 2"),
        (lambda: DataSeparation(torch.tensor([0.0, 1.0, 1.0, RIGHT]), torch.zeros(4)), "strictly increasing"),
        (lambda: DataSeparation(GRID, torch.full((5,), 1.5)), r"values in \[0, 1\]"),
        (lambda: DataSeparation(GRID, torch.zeros(4)), "as many values"),
        (lambda: DataSeparation(GRID, torch.full((5,), float("nan"))), "finite values"),
        (lambda: DataSeparation.from_callable(lambda s: 1 + s), r"values in \[0, 1\]"),
        (lambda: DataSeparation.from_callable(lambda s: torch.zeros(3)), "one for each s"),
        (lambda: DataSeparation.gaussian([-1.0, 2.0]), "nonnegative eigenvalues"),
        (lambda: DataSeparation.gaussian([0.0, 0.0]), "not all zero"),
        (lambda: DataSeparation.estimate(torch.zeros(1, 2)), "at least two data points"),
        (lambda: DataSeparation.estimate(torch.ones(4, 2)), "data that vary"),
        (lambda: DataSeparation.estimate(torch.tensor([[0.0], [float("nan")]])), "finite data"),
        (lambda: DataSeparation.estimate(torch.eye(3), n_theta=2), "at least 3 angles"),
        (lambda: DataSeparation.estimate(torch.eye(3), n_queries=1), "at least 2 queries"),
        (lambda: DataSeparation.estimate(torch.eye(3), held_out=torch.eye(2)), "held_out"),
        (lambda: kinetic_optimal_path(PAIR, gamma_min=0.0), "a floor in"),
        (lambda: kinetic_optimal_path(PAIR, solver="newton"), "'quadrature' or 'gradient'"),
        (lambda: kinetic_energy(CondOT(), PAIR, n_grid=0), "number of nodes"),
    ],
)
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


def test_bad_points_of_the_exact_field_are_refused() -> None:
    x, half = torch.zeros(2, 3), torch.full((2,), 0.5)
    with pytest.raises(InvalidInput, match="points of one shape"):
        empirical_velocity(x, half, torch.zeros(4, 2), CondOT())
    with pytest.raises(InvalidInput, match="m > 0"):
        empirical_velocity(x, torch.ones(2), torch.zeros(4, 3), CondOT())
    with pytest.raises(InvalidInput, match=r"times of shape \(2,\)"):
        empirical_velocity(x, half[:1], torch.zeros(4, 3), CondOT())
    with pytest.raises(InvalidInput, match="one dtype"):
        empirical_velocity(x, half, torch.zeros(4, 3, dtype=torch.float64), CondOT())
