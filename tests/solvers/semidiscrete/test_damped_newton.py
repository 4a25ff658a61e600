"""Damped Newton with exact cells: known answers, properties, the exact solver on fine samples, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import brenier
from brenier import Certificate, InvalidInput, NotConverged, NotConvergedWarning, Status
from brenier.solvers import (
    DampedNewton,
    Density,
    PixelDensity,
    SemidiscreteSolution,
    UniformBox,
    UniformPolygon,
    semidiscrete_transport,
)
from problems import assert_close, weights

D = torch.float64
SQUARE = UniformBox([0.0, 0.0], [1.0, 1.0])
CUBE = UniformBox([0.0] * 3, [1.0] * 3)
IMAGE = PixelDensity(np.random.default_rng(0).random((9, 6)), [0.0, 0.0], [1.0, 1.0])
DISC = UniformPolygon(
    torch.stack([f(torch.arange(30, dtype=D) * 2 * torch.pi / 30) for f in (torch.cos, torch.sin)], 1)
)


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=D)


def certificate(solution: SemidiscreteSolution) -> Certificate:
    assert isinstance(solution.certificate, Certificate)
    return solution.certificate


# -- known answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_square_grid_of_atoms(d: int) -> None:
    k = 4
    axis = (torch.arange(k, dtype=D) + 0.5) / k
    y = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    found = semidiscrete_transport(UniformBox([0.0] * d, [1.0] * d), y, tol=1e-12)
    assert_close(found.g, torch.zeros(k**d, dtype=D), 0, 1e-10)
    assert_close(found.masses, torch.full((k**d,), 1 / k**d, dtype=D), 1e-11)
    assert float(found.value) == pytest.approx(d / (12 * k**2), rel=1e-10)
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("left", [0.1, 0.5, 0.8])
def test_two_atoms_on_an_interval(left: float) -> None:
    """The cells meet at the quantile; the value is two integrals of squares."""
    y = torch.tensor([[0.3], [1.5]], dtype=D)
    found = semidiscrete_transport(UniformBox(0.0, 2.0), y, b=[left, 1 - left])
    meet = 2 * left

    def square(a: float, b: float, at: float) -> float:
        return ((b - at) ** 3 - (a - at) ** 3) / 3 / 2

    assert float(found.value) == pytest.approx(square(0, meet, 0.3) + square(meet, 2, 1.5))
    assert float(found.g[1] - found.g[0]) == pytest.approx((meet - 1.5) ** 2 - (meet - 0.3) ** 2)
    assert found.assign([[meet - 1e-6], [meet + 1e-6]]).tolist() == [0, 1]
    assert found.stats["n_iter"] == 0  # quantiles are the answer


def test_two_atoms_in_a_square() -> None:
    """By symmetry the cells are the two sides of a vertical line at 0.3."""
    y = torch.tensor([[0.2, 0.5], [0.9, 0.5]], dtype=D)
    found = semidiscrete_transport(SQUARE, y, b=torch.tensor([0.3, 0.7], dtype=D))
    assert found.assign([[0.299, 0.1], [0.301, 0.9]]).tolist() == [0, 1]
    x = (torch.arange(1000, dtype=D) + 0.5) / 1000
    to = torch.where(x < 0.3, 0.2, 0.9)
    assert float(found.value) == pytest.approx(float((x - to).square().mean()) + 1 / 12, rel=1e-5)


@pytest.mark.parametrize("density", [SQUARE, IMAGE, CUBE], ids=["square", "image", "cube"])
def test_translation(density: Density) -> None:
    """Moving all atoms by t moves no cell, and adds |t|^2 + 2 <t, mean of the atoms - mean of the source>."""
    y, t = cloud(20, density.d), torch.tensor([3.0, -2.0, 1.0][: density.d], dtype=D)
    here, there = (semidiscrete_transport(density, y + s) for s in (0 * t, t))
    expected = float(here.value + t @ t + 2 * t @ (y.mean(0) - density.mean))
    assert float(there.value) == pytest.approx(expected, rel=1e-9)
    x = density.sample(500)
    assert torch.equal(here.assign(x), there.assign(x))


def test_one_atom_and_equal_atoms() -> None:
    y = torch.tensor([[0.2, 0.7]], dtype=D)
    one = semidiscrete_transport(SQUARE, y)
    assert float(one.value) == pytest.approx(1 / 6 + 0.3**2 + 0.2**2)
    assert one.assign(cloud(5, 2)).tolist() == [0] * 5
    same = semidiscrete_transport(SQUARE, y.expand(3, 2), b=[0.2, 0.0, 0.8])
    assert float(same.value) == pytest.approx(float(one.value))
    assert same.masses.tolist() == pytest.approx([0.2, 0, 0.8])
    assert same.g.tolist() == [0, -torch.inf, 0]
    assert same.polygons is not None
    assert [len(p) for p in same.polygons] == [4, 0, 4]


def test_the_way_back_along_the_gradient_of_a_convex_function() -> None:
    """Atoms drawn through x -> A x from the cells' own centres: the map is near A x."""
    A = torch.tensor([[1.5, 0.3], [0.3, 0.8]], dtype=D)
    axis = (torch.arange(20, dtype=D) + 0.5) / 20
    y = torch.cartesian_prod(axis, axis) @ A
    found = semidiscrete_transport(SQUARE, y)
    x = SQUARE.sample(1000)
    assert float((found.map(x) - x @ A).norm(dim=1).max()) < 0.12
    expected = (x @ A - x).square().sum(1).mean()
    assert float(found.value) == pytest.approx(float(expected), rel=0.1)


# -- properties ----------------------------------------------------------------------------------------------------

CASES = [
    pytest.param(SQUARE, cloud(300, 2), None, id="inside"),
    pytest.param(SQUARE, 0.05 * cloud(200, 2) + 4, None, id="far and crowded"),
    pytest.param(DISC, 3 * cloud(100, 2) ** 3, weights(100), id="disc"),
    pytest.param(IMAGE, cloud(150, 2), weights(150, 1), id="image"),
    pytest.param(CUBE, 2 * cloud(120, 3) ** 2, weights(120, 2), id="cube"),
    pytest.param(UniformBox(-1.0, 1.0), cloud(500, 1), weights(500, 3), id="interval"),
    pytest.param(PixelDensity([1.0, 0.0, 0.0, 2.0]), cloud(50, 1), weights(50, 4), id="histogram with a hole"),
    pytest.param(SQUARE, torch.cat([cloud(40, 2) * torch.tensor([1.0, 0.0], dtype=D)]), None, id="on a line"),
]


@pytest.mark.parametrize(("density", "y", "b"), CASES)
def test_masses_certificate_and_a_dual_that_never_falls(density: Density, y: Tensor, b: Tensor | None) -> None:
    found = semidiscrete_transport(density, y, b=b)
    b = torch.full((len(y),), 1 / len(y), dtype=D) if b is None else b
    assert found.status is Status.CONVERGED
    assert float((found.masses - b).abs().sum()) <= 1e-8
    proof = certificate(found)
    assert float(proof.dual) <= float(proof.primal) + 1e-12
    assert float(proof.gap) <= 1e-7 * (1 + float(proof.primal))
    values = np.array(found.stats["dual_values"])
    assert (np.diff(values) >= -1e-12 * (1 + np.abs(values[1:]))).all()
    assert float(found.value) == pytest.approx(float(found.linear_value), rel=1e-6)
    assert float((b * found.g).sum()) == pytest.approx(0, abs=1e-9 * float(found.g.abs().max()) + 1e-15)


def test_bounds_hold_wherever_it_stops() -> None:
    y = 0.3 * cloud(100, 2)
    best = semidiscrete_transport(SQUARE, y)
    for steps in (1, 2, 3):
        with pytest.warns(NotConvergedWarning, match="max_iter"):
            early = semidiscrete_transport(SQUARE, y, max_iter=steps)
        proof = certificate(early)
        assert float(proof.dual) <= float(best.value) <= float(proof.primal)
        assert float(proof.gap) > float(certificate(best).gap)
    again = semidiscrete_transport(SQUARE, y, start=early)
    assert again.stats["n_iter"] < best.stats["n_iter"]
    assert_close(again.g, best.g, 1e-6)


def test_many_atoms_on_the_line() -> None:
    y = torch.randn(3000, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    found = semidiscrete_transport(PixelDensity(np.random.default_rng(0).random(100)), y, tol=1e-6)
    assert found.stats["n_iter"] == 0
    assert float((found.masses - 1 / 3000).abs().sum()) < 1e-6
    x = UniformBox(0.0, 1.0).sample(2000)
    assert float((found.map(x).flatten().diff()[x.flatten().diff() > 0]).min()) >= 0  # monotone


def test_a_source_with_holes() -> None:
    image = np.zeros((12, 12))
    image[:3, :3], image[8:, 7:] = 1, 2
    density = PixelDensity(image)
    found = semidiscrete_transport(density, cloud(60, 2), b=weights(60))
    assert found.status is Status.CONVERGED
    assert float((found.masses - weights(60)).abs().sum()) <= 1e-8


@pytest.mark.parametrize("density", [SQUARE, IMAGE, DISC, CUBE], ids=["square", "image", "disc", "cube"])
def test_against_the_exact_solver_on_a_sample(density: Density, generator: torch.Generator) -> None:
    y, b, n = cloud(12, density.d), weights(12), 10_000
    found = semidiscrete_transport(density, y, b=b)
    x = density.sample(n, generator)
    exact = brenier.solve(x, y, b=b)
    costs = (x - found.map(x)).square().sum(1)
    assert float(exact.value) == pytest.approx(float(found.value), abs=5 * float(costs.std()) / n**0.5 + 2e-3)
    agree = (exact.plan.argmax() == found.assign(x)).double().mean()
    assert float(agree) > 0.96


def test_masses_of_a_sample(generator: torch.Generator) -> None:
    y, b = cloud(15, 2), weights(15)
    found = semidiscrete_transport(IMAGE, y, b=b)
    x = IMAGE.sample(100_000, generator)
    shares = torch.bincount(found.assign(x), minlength=15) / len(x)
    assert_close(shares.double(), b, 0, 5 * (0.1 / len(x)) ** 0.5)
    f = found.potential(x)
    assert_close(f, (x - found.map(x)).square().sum(1) - found.g[found.assign(x)], 1e-9)


# -- out of sample ---------------------------------------------------------------------------------------------------


def test_assign_the_best_few() -> None:
    found = semidiscrete_transport(SQUARE, cloud(30, 2))
    x = cloud(200, 2, seed=1)
    best = found.assign(x, k=5)
    reduced = torch.cdist(x, cloud(30, 2)).square() - found.g
    assert torch.equal(best, reduced.argsort(1)[:, :5])
    assert torch.equal(best[:, 0], found.assign(x))
    assert torch.equal(found.assign(x, k=30).sort(1).values, torch.arange(30).expand(200, 30))


def test_kinds_and_dtypes() -> None:
    y = cloud(10, 2)
    found = semidiscrete_transport(SQUARE, y.numpy())
    assert isinstance(found.g, np.ndarray)
    assert isinstance(found.map(y.numpy()), np.ndarray)
    single = semidiscrete_transport(SQUARE, y.float())
    assert {t.dtype for t in (single.g, single.masses, single.value, single.map(y.float()))} == {torch.float32}
    assert float(single.value) == pytest.approx(float(found.value), rel=1e-5)
    line = semidiscrete_transport(UniformBox(0.0, 1.0), [0.1, 0.6, 0.7])
    assert line.map([0.05, 0.95]).tolist() == [[0.1], [0.7]]


def test_a_uniform_distribution_of_torch_is_a_density() -> None:
    y = cloud(10, 2)
    low, high = torch.zeros(2), torch.ones(2)
    for source in (torch.distributions.Uniform(low, high),
                   torch.distributions.Independent(torch.distributions.Uniform(low, high), 1)):  # fmt: skip
        found = semidiscrete_transport(source, y)
        assert found.stats["method"] == "damped-newton"
        assert_close(found.g, semidiscrete_transport(SQUARE, y).g)


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "density", [UniformBox(0.0, 1.0), SQUARE, IMAGE, CUBE], ids=["line", "square", "image", "cube"]
)
def test_gradients_of_the_value(density: Density) -> None:
    y, b = cloud(8, density.d).requires_grad_(), weights(8).requires_grad_()
    value = semidiscrete_transport(density, y, b=b, tol=1e-11).value
    dy, db = torch.autograd.grad(value, (y, b))
    h = 1e-5
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        sy = torch.randn(y.shape, generator=generator, dtype=D)
        sb = torch.randn(b.shape, generator=generator, dtype=D)
        sb = 0.05 * (sb - sb.mean())  # along the simplex
        ends = [
            semidiscrete_transport(density, (y + s * h * sy).detach(), b=(b + s * h * sb).detach(), tol=1e-11).value
            for s in (-1, 1)
        ]
        slope = float(ends[1] - ends[0]) / (2 * h)
        assert float((dy * sy).sum() + (db * sb).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_gradients_of_equal_atoms_and_of_atoms_without_mass() -> None:
    y = torch.tensor([[0.2, 0.2], [0.2, 0.2], [0.7, 0.6], [0.9, 0.9]], dtype=D, requires_grad=True)
    b = torch.tensor([0.1, 0.3, 0.6, 0.0], dtype=D, requires_grad=True)
    found = semidiscrete_transport(SQUARE, y, b=b)
    dy, db = torch.autograd.grad(found.value, (y, b))
    assert_close(3 * dy[0], dy[1])
    assert not dy[3].any()
    assert db.isnan().tolist() == [False, False, False, True]
    assert bool(found.value.isfinite())


# -- how it ends, bad input --------------------------------------------------------------------------------------------


def test_how_it_ends() -> None:
    y = 0.1 * cloud(50, 2)
    seen: list[int] = []

    def stop(iteration: int, state: Any) -> bool:
        seen.append(iteration)
        return iteration == 2

    with pytest.warns(NotConvergedWarning, match="callback"):
        found = semidiscrete_transport(SQUARE, y, callback=stop)
    assert seen == [1, 2]
    assert found.status is Status.INTERRUPTED
    with pytest.warns(NotConvergedWarning, match="timeout"):
        late = semidiscrete_transport(SQUARE, y, timeout=1e-9)
    assert late.status is Status.TIME_OUT
    with pytest.raises(NotConverged) as raised:
        semidiscrete_transport(SQUARE, y, max_iter=1, throw=True)
    assert isinstance(raised.value.solution, SemidiscreteSolution)
    assert "INTERRUPTED" in repr(found)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (SQUARE, {"b": torch.ones(10)}, "total 1"),
        (SQUARE, {"b": torch.ones(3) / 3}, "10 weights"),
        (CUBE, {}, "2 dimensions"),
        (SQUARE, {"method": "simplex"}, "'auto', 'newton', 'sgd'"),
        (SQUARE, {"method": "newton", "epsilon": 0.1}, "method='sgd'"),
        (SQUARE, {"method": "newton", "cost": "euclidean"}, "method='sgd'"),
        (SQUARE.sample, {"method": "newton"}, "density"),
        (SQUARE, {"tol": 0.0}, "tol"),
        (SQUARE, {"max_iter": 0}, "max_iter"),
        (SQUARE, {"timeout": -1.0}, "timeout"),
        (SQUARE, {"epsilon": -1.0}, "epsilon"),
        (SQUARE, {"start": torch.zeros(3)}, "start"),
        (SQUARE, {"start": {"g": torch.zeros(10)}}, "a state of 'sgd'"),
        (SQUARE, {"generator": 3}, "generator"),
        (3, {}, "source"),
    ],
)
def test_bad_input(source: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        semidiscrete_transport(source, cloud(10, 2), **options)


def test_bad_points() -> None:
    found = semidiscrete_transport(SQUARE, cloud(10, 2))
    for x in (torch.zeros(4, 3), torch.full((2, 2), torch.nan)):
        with pytest.raises(InvalidInput, match="x"):
            found.assign(x)
    with pytest.raises(InvalidInput, match="from 1 to 10"):
        found.assign(cloud(3, 2), k=11)
    with pytest.raises(InvalidInput, match="NaN"):
        semidiscrete_transport(SQUARE, torch.full((3, 2), torch.nan))


def test_plot() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    found = semidiscrete_transport(DISC, cloud(20, 2))
    ax = found.plot()
    assert len(ax.collections) == 2
    plt.close("all")
    with pytest.raises(InvalidInput, match="plane"):
        semidiscrete_transport(CUBE, cloud(5, 3)).plot()


def test_parameters_are_checked() -> None:
    with pytest.raises(InvalidInput, match="tol"):
        DampedNewton(tol=-1.0)
