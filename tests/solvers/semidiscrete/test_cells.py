"""Power cells: areas, moments and facets against closed forms, sums, differences and samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brenier.solvers import Density, PixelDensity, UniformBox, UniformPolygon
from brenier.solvers.semidiscrete.cells import Diagram, PowerCells

POLYGON = UniformPolygon([[0.0, 0.0], [2.0, 0.0], [2.5, 1.0], [1.0, 2.0], [-0.5, 1.0]])
IMAGE = PixelDensity(np.random.default_rng(0).random((7, 5)) ** 2, [0.0, -1.0], [2.0, 1.0])
DENSITIES: list[Density] = [
    UniformBox(-1.0, 2.0),
    PixelDensity([1.0, 0.5, 2.0, 0.0, 1.0]),
    UniformBox([0.0, 0.0], [1.0, 2.0]),
    POLYGON,
    IMAGE,
    UniformBox([0.0, -1.0, 0.0], [1.0, 1.0, 3.0]),
]


def atoms(density: Density, n: int, seed: int = 0) -> tuple[PowerCells, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    y = density.sample(n, generator).numpy()
    g = 0.02 * torch.randn(n, generator=generator, dtype=torch.float64).numpy() / n ** (2 / density.d - 1)
    return PowerCells(density.pieces(), y), g


@pytest.mark.parametrize("n", [1, 2, 5, 40, 400])
@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_cells_make_up_the_source(density: Density, n: int) -> None:
    cells, g = atoms(density, n)
    diagram = cells(g)
    mean = density.mean.numpy() - cells.centre
    assert diagram.masses.sum() == pytest.approx(1, abs=1e-12)
    assert diagram.first.sum(0) == pytest.approx(mean, abs=1e-12)
    assert diagram.second.sum() == pytest.approx(float(density.covariance.trace()) + mean @ mean, abs=1e-12)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_cells_against_a_sample(density: Density, generator: torch.Generator) -> None:
    n, count = 30, 400_000
    cells, g = atoms(density, n)
    diagram = cells(g)
    x = density.sample(count, generator).numpy() - cells.centre
    index = (np.square(x[:, None] - cells.y).sum(2) - g).argmin(1)
    shares = np.bincount(index, minlength=n) / count
    assert np.abs(shares - diagram.masses).max() < 5 * (0.25 / count) ** 0.5
    first = np.stack([np.bincount(index, x[:, k], n) for k in range(cells.d)], 1) / count
    assert np.abs(first - diagram.first).max() < 5 * (0.25 / count) ** 0.5 * np.abs(x).max()
    costs = np.bincount(index, np.square(x - cells.y[index]).sum(1), n) / count
    assert costs.sum() == pytest.approx(cells.costs(diagram).sum(), rel=0.02)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_facets_are_the_derivative_of_masses(density: Density) -> None:
    n = 25
    cells, g = atoms(density, n, seed=1)
    diagram = cells(g)
    dense = np.zeros((n, n))
    np.add.at(dense, (diagram.rows, diagram.cols), diagram.weights)
    assert np.abs(dense - dense.T).max() < 1e-9 * dense.max()
    laplacian = np.diag(dense.sum(1)) - dense
    h = 1e-6
    for j in range(0, n, 6):
        step = h * np.eye(n)[j]
        difference = (cells(g + step).masses - cells(g - step).masses) / (2 * h)
        assert np.abs(difference - laplacian[j]).max() < 1e-4 * max(1, np.abs(laplacian[j]).max())


@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_square_grid_of_atoms_has_equal_cells(d: int, k: int) -> None:
    density = UniformBox([0.0] * d, [1.0] * d)
    axis = (np.arange(k) + 0.5) / k
    y = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    cells = PowerCells(density.pieces(), y)
    diagram = cells(np.zeros(len(y)))
    assert diagram.masses == pytest.approx(np.full(len(y), 1 / k**d), abs=1e-13)
    assert cells.costs(diagram).sum() == pytest.approx(d / (12 * k**2), rel=1e-10)


def ring(n: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.5


def test_atoms_on_a_circle_and_on_a_line() -> None:
    """Where the convex hull is degenerate."""
    square = UniformBox([0.0, 0.0], [1.0, 1.0]).pieces()
    masses = PowerCells(square, ring(40))(np.zeros(40)).masses
    assert masses.sum() == pytest.approx(1)
    assert np.abs(masses - np.roll(masses, 10)).max() < 1e-12  # by a quarter turn
    row = np.stack([(np.arange(40) + 0.5) / 40, np.full(40, 0.3)], 1)
    assert PowerCells(square, row)(np.zeros(40)).masses == pytest.approx(np.full(40, 1 / 40))
    cube = UniformBox([0.0] * 3, [1.0] * 3).pieces()
    for flat in (ring(40), row):
        masses = PowerCells(cube, np.column_stack([flat, np.full(40, 0.7)]))(np.zeros(40)).masses
        assert masses.sum() == pytest.approx(1)
        assert masses == pytest.approx(PowerCells(square, flat)(np.zeros(40)).masses, abs=1e-12)


def test_atoms_outside_of_the_domain_and_empty_cells() -> None:
    for d in (1, 2, 3):
        density = UniformBox([0.0] * d, [1.0] * d)
        y = np.concatenate([np.full((1, d), 0.5), np.full((1, d), 5.0), np.full((1, d), -5.0)])
        diagram = PowerCells(density.pieces(), y)(np.zeros(3))
        assert diagram.masses.tolist() == pytest.approx([1, 0, 0], abs=1e-14)
        buried = PowerCells(density.pieces(), density.sample(60).numpy())
        g = np.zeros(60)
        g[7] = -100.0
        assert buried(g).masses[7] == 0
        assert buried(g).masses.sum() == pytest.approx(1)


def test_mirrors_of_the_atoms_that_reach_a_face_are_enough() -> None:
    density = UniformBox([0.0, -1.0, 0.0], [1.0, 1.0, 3.0])
    cells, g = atoms(density, 350)  # beyond the number up to which all are mirrored
    few: Diagram = cells(g)
    assert few.masses.sum() == pytest.approx(1, abs=1e-12)
    assert few.second.sum() == pytest.approx(float(density.covariance.trace()), rel=1e-10)


def test_polygons_are_the_cells() -> None:
    cells, g = atoms(POLYGON, 50)
    diagram = cells(g)
    assert diagram.polygons is not None
    vertices, _, count = diagram.polygons
    for v, k, mass in zip(vertices, count, diagram.masses):
        x, y = v[:k].T
        area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
        assert area * cells.pieces.values[0, 0] == pytest.approx(mass, abs=1e-13)
