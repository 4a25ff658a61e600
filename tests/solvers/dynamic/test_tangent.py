"""Cells, tangent velocities and projections: transforms, closed forms, identities, derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from brenier import InvalidInput, NotConvergedWarning
from brenier.solvers import Gaussian, gaussian_cost, solenoidal_projection, tangent_velocity, transport_velocity
from brenier.solvers.dynamic.cells import Cells, _dct, _idct

F = torch.float64


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def density(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed).exp()


def bump(n: int, centre: float, width: float) -> Tensor:
    x = torch.arange(n, dtype=F)
    out = torch.exp(-(((x - centre) / width) ** 2) / 2)
    return out / out.sum()


CASES = [
    ((9,), "neumann"),
    ((8,), "periodic"),
    ((7, 10), "neumann"),
    ((6, 5), "periodic"),
    ((6, 5), ("neumann", "periodic")),
    ((4, 3, 5), "neumann"),
    ((1, 4), "neumann"),
]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_cosine_transform_as_scipy(n: int) -> None:
    t = noise(3, n, 2)
    torch.testing.assert_close(_dct(t, 1), torch.from_numpy(scipy.fft.dct(t.numpy(), axis=1, norm="ortho")))
    torch.testing.assert_close(_idct(_dct(t, 1), 1), t)
    narrow = t.float()
    torch.testing.assert_close(_idct(_dct(narrow, 1), 1), narrow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sizes", "boundary"), CASES)
def test_cells(sizes: tuple[int, ...], boundary: str | tuple[str, ...]) -> None:
    d = len(sizes)
    phi, flow = noise(2, *sizes), noise(2, d, *sizes, seed=1)
    spacing = tuple(0.5 + k for k in range(d))
    cells = Cells.of(phi, d, spacing, boundary)
    torch.testing.assert_close((cells.gradient(phi) * flow).sum(), -(phi * cells.divergence(flow)).sum())
    torch.testing.assert_close(
        (cells.to_faces(flow) * noise(2, d, *sizes)).sum(), (flow * cells.to_cells(noise(2, d, *sizes))).sum()
    )
    axes = tuple(range(-d, 0))
    rhs = phi - phi.mean(axes, keepdim=True)
    for screen, given in ((0.0, rhs), (0.7, phi)):
        found = cells.poisson(given, screen)
        back = -cells.divergence(cells.gradient(found)) + screen * found
        torch.testing.assert_close(back, given)
    assert cells.poisson(phi).mean(axes).abs().max() < 1e-12


# -- tangent velocities --------------------------------------------------------------------------------------


def test_on_the_line_the_flow_is_a_running_sum() -> None:
    rho, rate = density(3, 20), noise(3, 20, seed=1)
    rate = rate - rate.mean(-1, keepdim=True)
    found = tangent_velocity(rho, rate, d=1, spacing=0.5, tol=1e-12)
    flow = found.velocity[:, 0] * (rho + rho.roll(-1, -1)) / 2
    torch.testing.assert_close(flow[:, :-1], -0.5 * rate.cumsum(-1)[:, :-1], atol=1e-9, rtol=1e-9)
    assert not found.growth.any()


@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize(("sizes", "boundary"), CASES[:6])
def test_mass_is_balanced_and_nothing_turns(
    sizes: tuple[int, ...], boundary: str | tuple[str, ...], delta: float | None
) -> None:
    d = len(sizes)
    rho, rate = density(2, *sizes), noise(2, *sizes, seed=1)
    if delta is None:
        rate = rate - rate.mean(tuple(range(-d, 0)), keepdim=True)
    found = tangent_velocity(rho, rate, delta=delta, d=d, boundary=boundary, tol=1e-11)
    cells = Cells.of(rho, d, 1.0, boundary)
    balance = -cells.divergence(cells.spread(rho) * found.velocity) + rho * found.growth - rate
    assert balance.abs().max() < 1e-9
    assert found.residual.shape == (2,)
    assert (found.residual <= 1e-10).all()
    energy = (cells.spread(rho) * found.velocity**2).flatten(1).sum(-1)
    if delta is not None:
        energy = energy + (rho * delta**2 * found.growth**2).flatten(1).sum(-1)
    torch.testing.assert_close(found.value, energy, atol=1e-8, rtol=1e-8)
    if d == 2 and boundary == "neumann":
        v = found.velocity
        curl = (v[:, 1, 1:, :-1] - v[:, 1, :-1, :-1]) - (v[:, 0, :-1, 1:] - v[:, 0, :-1, :-1])
        assert curl.abs().max() <= 1e-12 * v.abs().max() + 1e-14


def test_as_scipy() -> None:
    rho, rate = density(9, 8), noise(9, 8, seed=1)
    cells = Cells.of(rho, 2, 1.0, "neumann")

    def multiply(t: np.ndarray) -> np.ndarray:
        phi = torch.from_numpy(t).reshape(9, 8)
        out = -cells.divergence(cells.spread(rho) * cells.gradient(phi)) + 0.3 * rho * phi
        return out.flatten().numpy()

    theirs, info = cg(LinearOperator((72, 72), multiply), rate.flatten().numpy(), rtol=1e-12, maxiter=5000)
    assert info == 0
    ours = tangent_velocity(rho, rate, delta=0.3**-0.5, tol=1e-12)
    np.testing.assert_allclose(ours.potential.flatten().numpy(), theirs, atol=1e-8)


def test_a_blob_moved_a_little() -> None:
    a = torch.outer(bump(48, 23.0, 4.0), bump(48, 24.0, 5.0))
    b = torch.outer(bump(48, 23.2, 4.0), bump(48, 23.85, 5.0))
    found = transport_velocity(a, b, floor=1e-9, tol=1e-9, max_iter=2000)
    rho = (a + b) / 2
    cells = Cells.of(rho, 2, 1.0, "neumann")
    weight = cells.spread(rho)
    error = (weight * (found.velocity - torch.tensor([0.2, -0.15], dtype=F)[:, None, None]) ** 2).sum().sqrt()
    assert error < 0.05 * 0.25
    length = float((weight * found.velocity**2).sum().sqrt())
    assert length == pytest.approx(0.25, rel=0.02)


def test_its_length_is_that_of_the_bures_distance() -> None:
    a, b = bump(40, 18.0, 4.0), bump(40, 18.3, 4.1)
    found = transport_velocity(a, b, floor=1e-12, d=1, tol=1e-10, max_iter=2000)
    p, q = (
        Gaussian(torch.tensor([m], dtype=F), torch.tensor([[s**2]], dtype=F)) for m, s in ((18.0, 4.0), (18.3, 4.1))
    )
    assert float(found.value) == pytest.approx(float(gaussian_cost(p, q)), rel=0.04)


def test_growth_takes_over() -> None:
    rho, gain = density(12, 12), 0.1
    found = tangent_velocity(rho, gain * rho, delta=1e-2, tol=1e-10)
    torch.testing.assert_close(found.growth, torch.full_like(rho, gain), atol=1e-5, rtol=0)
    assert found.velocity.abs().max() < 1e-3
    free = tangent_velocity(rho, gain * (rho - rho.mean()), tol=1e-10)
    assert free.velocity.abs().mean() > 10 * found.velocity.abs().mean()


def test_flux_mode_is_one_pair_of_transforms() -> None:
    rate = noise(2, 10, 12)
    rate = rate - rate.mean((-2, -1), keepdim=True)
    ones = torch.ones_like(rate)
    fast, slow = tangent_velocity(density(2, 10, 12), rate, mode="flux"), tangent_velocity(ones, rate, tol=1e-12)
    torch.testing.assert_close(fast.velocity, slow.velocity, atol=1e-10, rtol=0)
    assert fast.n_iter == 0
    assert slow.n_iter <= 2
    assert (fast.residual < 1e-12).all()


@pytest.mark.parametrize("delta", [None, 2.0])
def test_derivatives(delta: float | None) -> None:
    rho, raw = density(4, 5).requires_grad_(), noise(4, 5, seed=1).requires_grad_()

    def run(rho: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        rate = raw - raw.mean() if delta is None else raw
        found = tangent_velocity(rho, rate, delta=delta, tol=1e-11, max_iter=500)
        return found.velocity, found.growth

    assert torch.autograd.gradcheck(run, (rho, raw), atol=1e-6, eps=1e-5)


def test_kinds_and_items() -> None:
    rho, rate = density(3, 6, 7), noise(3, 6, 7, seed=1)
    rate = rate - rate.mean((-2, -1), keepdim=True)
    whole = tangent_velocity(rho, rate, tol=1e-10)
    one = tangent_velocity(rho[1].numpy(), rate[1].numpy(), tol=1e-10)
    assert isinstance(one.velocity, np.ndarray)
    np.testing.assert_allclose(whole.velocity[1].numpy(), one.velocity, atol=1e-8)
    narrow = tangent_velocity(rho.float(), rate.float() - rate.float().mean((-2, -1), keepdim=True), tol=1e-4)
    assert narrow.velocity.dtype == torch.float32
    torch.testing.assert_close(narrow.velocity.double(), whole.velocity, atol=1e-2, rtol=1e-2)
    still = tangent_velocity(rho, torch.zeros_like(rho))
    assert not still.velocity.any()
    assert still.n_iter == 0


def test_iterations_on_a_bright_spot() -> None:
    rho = torch.outer(bump(64, 30.0, 3.0), bump(64, 33.0, 3.0))
    rho = rho / rho.max() + 0.05
    rate = noise(64, 64)
    found = tangent_velocity(rho, rate - rate.mean())
    assert found.n_iter <= 40


def test_refusals() -> None:
    rho, rate = density(5, 5), noise(5, 5)
    with pytest.raises(InvalidInput, match="sum of zero"):
        tangent_velocity(rho, rate)
    with pytest.raises(InvalidInput, match="positive densities"):
        tangent_velocity(rho - 10, rate - rate.mean())
    with pytest.raises(InvalidInput, match="shape of rho"):
        tangent_velocity(rho, rate[:3], delta=1.0)
    with pytest.raises(InvalidInput, match="mode"):
        tangent_velocity(rho, rate, delta=1.0, mode="local")
    with pytest.raises(InvalidInput, match="boundary"):
        tangent_velocity(rho, rate, delta=1.0, boundary="open")
    with pytest.raises(InvalidInput, match="spacing"):
        tangent_velocity(rho, rate, delta=1.0, spacing=(1.0, 0.0))
    with pytest.raises(InvalidInput, match="delta"):
        tangent_velocity(rho, rate, delta=0.0)
    with pytest.raises(InvalidInput, match="d:"):
        tangent_velocity(rho, rate, delta=1.0, d=3)
    with pytest.raises(InvalidInput, match="floor"):
        transport_velocity(rho, rho, floor=-1.0)
    with pytest.raises(InvalidInput, match="flow"):
        solenoidal_projection(noise(3, 5, 5))
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        tangent_velocity(rho, rate, delta=1.0, tol=1e-12, max_iter=1)


# -- projections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "boundary"), CASES)
def test_projection(sizes: tuple[int, ...], boundary: str | tuple[str, ...]) -> None:
    d = len(sizes)
    u = noise(3, d, *sizes)
    cells = Cells.of(u, d, 1.0, boundary)
    w, gradient = solenoidal_projection(u, d=d, boundary=boundary)
    assert cells.divergence(w).abs().max() < 1e-12
    torch.testing.assert_close(w + gradient, cells.inner_faces(u))
    assert abs(float((w * gradient).sum())) < 1e-11
    again, nothing = solenoidal_projection(w, d=d, boundary=boundary)
    torch.testing.assert_close(again, w, atol=1e-12, rtol=0)
    assert nothing.abs().max() < 1e-12


def test_projection_is_differentiable() -> None:
    u = noise(2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: tuple(solenoidal_projection(t)), u)
