"""Geodesics on grids: moving bumps, Gaussians, growth, and the exact static solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from brenier import Grid, InvalidInput, NotConvergedWarning, Status, solve
from brenier.solvers import DynamicPath, dynamic_transport

F = torch.float64


def bump(n: int, centre: float, width: float) -> Tensor:
    x = torch.arange(n, dtype=F)
    out = torch.exp(-(((x - centre) / width) ** 2) / 2)
    return out / out.sum()


def moments(density: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation along the last axis."""
    x = torch.arange(density.shape[-1], dtype=F)
    mass = density.sum(-1)
    mean = (density * x).sum(-1) / mass
    return mean, ((density * (x - mean.unsqueeze(-1)) ** 2).sum(-1) / mass).sqrt()


def balanced(path: DynamicPath, a: Tensor) -> None:
    """Mass is balanced to rounding, at every time."""
    assert float(path.balance.max()) < 1e-10
    if not path.growth.any():
        total = path.density.flatten(-a.dim()).sum(-1)
        torch.testing.assert_close(total, a.sum().expand(total.shape), atol=0, rtol=1e-10)


def test_a_bump_is_carried_along() -> None:
    a, b = bump(48, 15.0, 3.0), bump(48, 31.0, 3.0)
    path = dynamic_transport(a, b, d=1, steps=16)
    assert path.status is Status.CONVERGED
    balanced(path, a)
    mean, width = moments(path.density)
    torch.testing.assert_close(mean, torch.linspace(15, 31, 17, dtype=F), atol=0.1, rtol=0)
    torch.testing.assert_close(width, torch.full_like(width, 3.0), atol=0.3, rtol=0)
    assert float(path.value) == pytest.approx(256, rel=0.02)
    assert float(path.dual_value) == pytest.approx(float(path.value), rel=0.01)
    # and its velocity is that of the shift, where there is mass
    faces = (path.density[:-1] + path.density[1:]) / 2
    faces = (faces + faces.roll(-1, -1)) / 2
    speed = (path.flow[:, 0].sum(-1)) / faces.sum(-1)
    torch.testing.assert_close(speed, torch.full_like(speed, 16.0), atol=0.2, rtol=0)


def test_gaussians_follow_mccann() -> None:
    a, b = bump(64, 20.0, 3.0), bump(64, 40.0, 6.0)
    path = dynamic_transport(a, b, d=1, steps=16)
    balanced(path, a)
    mean, width = moments(path.density)
    t = torch.linspace(0, 1, 17, dtype=F)
    torch.testing.assert_close(mean, 20 + 20 * t, atol=0.2, rtol=0)
    torch.testing.assert_close(width, 3 + 3 * t, atol=0.3, rtol=0)
    assert float(path.value) == pytest.approx(400 + 9, rel=0.02)


def test_value_is_that_of_the_exact_solver() -> None:
    rng = np.random.default_rng(0)
    rough = torch.from_numpy(rng.uniform(size=(2, 32)))
    smooth = torch.stack([bump(32, c, 4.0) for c in (9.0, 21.0)])
    a, b = rough * 0.01 + smooth
    a, b = a / a.sum(), b / b.sum()
    static = float(solve(Grid(32), a=a, b=b).value)
    path = dynamic_transport(a, b, d=1, steps=16)
    assert float(path.value) == pytest.approx(static, rel=0.03)


def test_a_periodic_axis_is_a_short_cut() -> None:
    a, b = bump(32, 4.0, 2.0), bump(32, 28.0, 2.0)
    path = dynamic_transport(a, b, d=1, steps=8, boundary="periodic")
    balanced(path, a)
    assert float(path.value) == pytest.approx(64, rel=0.1)


def test_two_dimensions_and_batches() -> None:
    shapes = [(6.0, 6.0), (11.0, 9.0), (6.0, 10.0)]
    images = torch.stack([torch.outer(bump(18, u, 2.0), bump(16, v, 2.0)) for u, v in shapes])
    a, b = images[[0, 0]], images[[1, 2]]
    path = dynamic_transport(a, b, steps=6, tol=1e-3)
    assert path.density.shape == (2, 7, 18, 16)
    assert path.flow.shape == (2, 6, 2, 18, 16)
    assert path.value.shape == (2,)
    assert float(path.balance.max()) < 1e-10
    torch.testing.assert_close(path.value, torch.tensor([34.0, 16.0], dtype=F), atol=0, rtol=0.06)
    centre = path.density[0, 3]
    mean = (moments(centre.sum(1))[0], moments(centre.sum(0))[0])
    assert float(mean[0]) == pytest.approx(8.5, abs=0.2)
    assert float(mean[1]) == pytest.approx(7.5, abs=0.2)


def test_three_dimensions() -> None:
    axes = [[bump(12, c, 1.8) for c in pair] for pair in ((4.0, 7.0), (5.0, 6.0), (5.0, 5.0))]
    a, b = (torch.einsum("i,j,k->ijk", *(axis[end] for axis in axes)) for end in (0, 1))
    path = dynamic_transport(a, b, d=3, steps=6, tol=1e-3)
    assert path.flow.shape == (6, 3, 12, 12, 12)
    balanced(path, a)
    # of products: the sum over the axes
    static = sum(float(solve(Grid(12), a=start, b=end).value) for start, end in axes)
    assert float(path.value) == pytest.approx(static, rel=0.05)


def test_units() -> None:
    a, b = bump(24, 8.0, 2.5), bump(24, 14.0, 2.5)
    one = dynamic_transport(a, b, d=1, steps=8)
    other = dynamic_transport(5 * a, 5 * b, d=1, steps=8, spacing=0.1)
    assert float(other.value) == pytest.approx(5 * 0.01 * float(one.value), rel=1e-6)
    torch.testing.assert_close(other.flow, 0.5 * one.flow, atol=1e-9, rtol=1e-6)
    assert isinstance(dynamic_transport(a.numpy(), b.numpy(), d=1, steps=4, tol=1e-2).density, np.ndarray)
    assert dynamic_transport(a.float(), b.float(), d=1, steps=4, tol=1e-2).value.dtype == torch.float32


# -- growth --------------------------------------------------------------------------------------------------


def test_growth_without_motion() -> None:
    a, b = torch.full((8,), 1.0, dtype=F), torch.full((8,), 4.0, dtype=F)
    path = dynamic_transport(a, b, delta=2.0, d=1, steps=32)
    assert float(path.balance.max()) < 1e-10
    assert float(path.value) == pytest.approx(4 * 2.0**2 * 8 * (2 - 1) ** 2, rel=0.01)
    middle = path.density[16]
    torch.testing.assert_close(middle, torch.full_like(middle, 1.5**2), atol=0.02, rtol=0)
    assert path.flow.abs().max() < 1e-6


def test_far_apart_nothing_moves() -> None:
    delta = 2.0  # pi delta is 6.3 cells
    a, b = bump(40, 8.0, 0.6), 0.5 * bump(40, 31.0, 0.6)
    path = dynamic_transport(a, b, delta=delta, d=1, steps=32)
    assert float(path.value) == pytest.approx(4 * delta**2 * 1.5, rel=0.05)
    middle = path.density[16]
    assert float(middle[:20].sum()) == pytest.approx(0.25, abs=0.02)  # (1 - t)^2
    assert float(middle[20:].sum()) == pytest.approx(0.125, abs=0.02)


def test_between_the_two() -> None:
    """One travelling bump: 4 delta^2 (M + N - 2 sqrt(M N) cos(r / 2 delta))."""
    delta, r = 12.0, 10.0
    a, b = bump(40, 14.0, 2.0), 2 * bump(40, 24.0, 2.0)
    path = dynamic_transport(a, b, delta=delta, d=1, steps=24)
    known = 4 * delta**2 * (3 - 2 * math.sqrt(2) * math.cos(r / (2 * delta)))
    assert float(path.value) == pytest.approx(known, rel=0.03)
    wide = dynamic_transport(a, b / 2, delta=1e3, d=1, steps=24)
    assert float(wide.value) == pytest.approx(r**2, rel=0.03)


def test_refusals() -> None:
    a = bump(8, 3.0, 1.0)
    with pytest.raises(InvalidInput, match="equal total masses"):
        dynamic_transport(a, 2 * a, d=1)
    with pytest.raises(InvalidInput, match="nonnegative"):
        dynamic_transport(-a, a, d=1)
    with pytest.raises(InvalidInput, match="positive total"):
        dynamic_transport(0 * a, a, d=1, delta=1.0)
    with pytest.raises(InvalidInput, match="shape of a"):
        dynamic_transport(a, a[:4], d=1)
    with pytest.raises(InvalidInput, match="steps"):
        dynamic_transport(a, a, d=1, steps=1)
    with pytest.warns(NotConvergedWarning, match="dynamic_transport"):
        path = dynamic_transport(a, a.flip(0), d=1, steps=4, max_iter=3)
    assert path.status is Status.MAX_ITER
