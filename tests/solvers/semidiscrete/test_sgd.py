"""Averaged stochastic gradients: known answers, agreement with exact cells, sources, entropy, estimates, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import brenier
from brenier import InvalidInput, NotConvergedWarning, Relative, Status
from brenier.solvers import (
    AveragedSGD,
    Gaussian,
    GaussianMixture,
    SampledCertificate,
    SemidiscreteSolution,
    UniformBox,
    semidiscrete_transport,
)
from brenier.solvers.semidiscrete.sgd import _chi2
from problems import assert_close, weights

D = torch.float64
SQUARE = UniformBox([0.0, 0.0], [1.0, 1.0])
QUICK = AveragedSGD(tol=0.05, max_iter=400, batch_size=1024, held_out=16_000)


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=D)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=D)


def certificate(solution: SemidiscreteSolution) -> SampledCertificate:
    assert isinstance(solution.certificate, SampledCertificate)
    return solution.certificate


# -- known answers -----------------------------------------------------------------------------------------------


def test_two_atoms_meet_at_the_quantile(generator: torch.Generator) -> None:
    y = torch.tensor([[0.0], [1.0]], dtype=D)
    source = Normal(torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    found = semidiscrete_transport(source, y, b=[0.3, 0.7], tol=0.01, generator=generator)
    meet = (1 - float(found.g[1] - found.g[0])) / 2  # x^2 - g_0 = (x - 1)^2 - g_1
    assert meet == pytest.approx(float(source.icdf(torch.tensor(0.3))), abs=0.02)
    assert found.status is Status.CONVERGED


def test_translation_leaves_the_cells() -> None:
    y, t = normal(20, 3), torch.tensor([5.0, -3.0, 2.0], dtype=D)
    source = Gaussian(torch.zeros(3, dtype=D), torch.eye(3, dtype=D))
    here, there = (
        semidiscrete_transport(source, y + s, method=QUICK, generator=torch.Generator().manual_seed(0))
        for s in (0 * t, t)
    )
    x = normal(500, 3, 7)
    assert float((here.assign(x) == there.assign(x)).double().mean()) > 0.99


def test_one_atom() -> None:
    found = semidiscrete_transport(lambda n, generator: torch.randn(n, 2, generator=generator), [[1.0, 2.0]])
    assert found.g.tolist() == [0]
    assert found.assign([[0.0, 0.0]]).tolist() == [0]
    assert found.status is Status.CONVERGED


# -- agreement -------------------------------------------------------------------------------------------------------


def test_agrees_with_exact_cells(generator: torch.Generator) -> None:
    y, b = cloud(25, 2), weights(25)
    exact = semidiscrete_transport(SQUARE, y, b=b)
    found = semidiscrete_transport(SQUARE, y, b=b, method="sgd", tol=0.02, generator=generator)
    assert found.status is Status.CONVERGED
    proof = certificate(found)
    off = float((exact.masses - masses_of(found, b)).abs().sum())
    assert off < 0.03
    assert float(exact.value) >= proof.dual.mean - 4 * proof.dual.standard_error
    assert proof.dual.mean == pytest.approx(float(exact.value), abs=5 * proof.dual.standard_error)
    x = SQUARE.sample(2000, generator)
    assert float((exact.assign(x) == found.assign(x)).double().mean()) > 0.97


def masses_of(found: SemidiscreteSolution, b: Tensor) -> Tensor:
    """The exact masses of the cells that were found."""
    from brenier.solvers.semidiscrete.cells import PowerCells

    cells = PowerCells(SQUARE.pieces(), found.problem.y.numpy())
    return torch.from_numpy(cells(found.g.numpy()).masses)


def test_clusters_and_a_start_where_most_cells_are_empty(generator: torch.Generator) -> None:
    """Atoms in far clusters, a source off the middle, and potentials of zero to begin with."""
    centres = 4 * normal(6, 8)
    y = centres[torch.arange(60) % 6] + 0.3 * normal(60, 8, 1)
    source = UniformBox([0.0] * 8, [1.0] * 8)
    solver = AveragedSGD(tol=0.05)
    x = source.sample(20_000, generator)
    before = torch.bincount((torch.cdist(x, y).square()).argmin(1), minlength=60)
    assert int((before == 0).sum()) > 30
    for start in (None, torch.zeros(60, dtype=D)):
        found = semidiscrete_transport(source, y, method=solver, start=start, generator=generator)
        assert found.status is Status.CONVERGED
        assert int(torch.bincount(found.assign(x), minlength=60).min()) > 0.8 * 20_000 / 60


def test_any_cost(generator: torch.Generator) -> None:
    """Against the exact solver on a sample, for a cost whose cells are no polygons."""
    y, n = cloud(8, 2), 4000
    found = semidiscrete_transport(SQUARE, y, cost="euclidean", method=QUICK, generator=generator)
    x = SQUARE.sample(n, generator)
    exact = brenier.solve(x, y, cost="euclidean")
    assert float(found.value) == pytest.approx(float(exact.value), rel=0.03)
    assert float((exact.plan.argmax() == found.assign(x)).double().mean()) > 0.93


# -- entropy ---------------------------------------------------------------------------------------------------------


def test_entropic_against_sinkhorn_on_a_sample(generator: torch.Generator) -> None:
    y, b, n, epsilon = cloud(10, 2), weights(10), 4000, 0.05
    found = semidiscrete_transport(SQUARE, y, b=b, epsilon=epsilon, method=QUICK, generator=generator)
    x = SQUARE.sample(n, generator)
    sinkhorn = brenier.solve(x, y, b=b, epsilon=epsilon)
    assert float(found.value) == pytest.approx(float(sinkhorn.value), rel=0.03)
    assert float(found.linear_value) == pytest.approx(float(sinkhorn.linear_value), rel=0.03)
    assert_close(found.map(x), sinkhorn.map(x), 0, 0.03)
    f = found.potential(x)
    assert_close(f - f.mean(), sinkhorn.f - sinkhorn.f.mean(), 0, 0.02)


def test_the_entropic_limit(generator: torch.Generator) -> None:
    y = cloud(10, 2)
    exact = semidiscrete_transport(SQUARE, y)
    values = []
    for epsilon in (1e-1, 1e-2, 1e-3):
        found = semidiscrete_transport(SQUARE, y, epsilon=epsilon, method=QUICK, generator=generator)
        values.append(abs(float(found.value) - float(exact.value)))
    assert values[0] > values[1] > values[2] - 2e-3
    assert values[2] < 4e-3
    assert_close(found.g, exact.g, 0, 0.02)


def test_relative_epsilon(generator: torch.Generator) -> None:
    y = cloud(10, 2)
    found = semidiscrete_transport(SQUARE, y, epsilon=Relative(0.1), method=QUICK, generator=generator)
    mean = float(torch.cdist(SQUARE.sample(20_000, generator), y).square().mean())
    assert found.stats["epsilon"] == pytest.approx(0.1 * mean, rel=0.05)


# -- sources ---------------------------------------------------------------------------------------------------------


class Endless:
    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(3)
        while True:
            yield torch.rand(700, 2, generator=generator, dtype=D)


def sources(folder: Path) -> dict[str, Any]:
    points = cloud(50_000, 2, seed=5)
    np.save(folder / "points.npy", points.numpy())
    return {
        "function": lambda n, generator: torch.rand(n, 2, generator=generator, dtype=D),
        "array": points.numpy(),
        "tensor": points,
        "file": np.load(folder / "points.npy", mmap_mode="r"),
        "batches": list(points.split(999)),
        "loader": [(p, torch.zeros(len(p))) for p in points.split(5000)],
        "stream": Endless(),
        "density": SQUARE,
    }


def test_every_kind_of_source(tmp_path: Path, generator: torch.Generator) -> None:
    y, x = cloud(12, 2), cloud(1000, 2, seed=9)
    exact = semidiscrete_transport(SQUARE, y).assign(x)
    for name, source in sources(tmp_path).items():
        found = semidiscrete_transport(source, y, method=QUICK, generator=generator)
        assert float((found.assign(x) == exact).double().mean()) > 0.94, name


def test_gaussians_and_distributions(generator: torch.Generator) -> None:
    y = normal(15, 2)
    plain = Gaussian(torch.zeros(2, dtype=D), torch.eye(2, dtype=D))
    mixture = GaussianMixture([0.5, 0.5], Gaussian(torch.zeros(2, 2, dtype=D), torch.eye(2, dtype=D).expand(2, 2, 2)))
    found = [
        semidiscrete_transport(source, y, method=QUICK, generator=generator)
        for source in (plain, mixture, MultivariateNormal(torch.zeros(2, dtype=D), torch.eye(2, dtype=D)))
    ]
    for other in found[1:]:
        x = normal(2000, 2, 8)
        assert float((found[0].assign(x) == other.assign(x)).double().mean()) > 0.93


def test_distributions_leave_the_global_generator_alone(generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    semidiscrete_transport(Normal(torch.zeros(1), torch.ones(1)), [0.0, 1.0], method=QUICK, generator=generator)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_sources() -> None:
    y = cloud(5, 2)
    once = (t for t in cloud(100, 2).split(10))
    for source, words in (
        (lambda n, generator: torch.zeros(n, 3), "dimension 2"),
        (lambda n, generator: torch.full((n, 2), torch.nan), "NaN"),
        (np.zeros((0, 2)), "at least one point"),
        (once, "batches without end"),
    ):
        with pytest.raises(InvalidInput, match=words):
            semidiscrete_transport(source, y, method=QUICK)


# -- estimates -------------------------------------------------------------------------------------------------------


def test_chi2_has_no_bias(generator: torch.Generator) -> None:
    """Means over repeated draws, at the truth and away from it; the standard error is not below that of the draws."""
    b = weights(20)
    for m in (b, torch.softmax(b.log() + 0.2 * normal(1, 20)[0], 0)):
        draws = []
        for _ in range(300):
            index = torch.multinomial(m, 16 * 200, replacement=True, generator=generator).reshape(16, 200)
            shares = torch.stack([torch.bincount(row, minlength=20) for row in index]).double() / 200
            draws.append(_chi2(shares, b))
        means = torch.tensor([e.mean for e in draws])
        errors = torch.tensor([e.standard_error for e in draws])
        truth = float(((m - b).square() / b).sum())
        assert float(means.mean()) == pytest.approx(truth, abs=4 * float(means.std()) / 300**0.5)
        # the jackknife errs upwards, by the root of two where the masses are right
        assert 0.8 < float(errors.square().mean().sqrt() / means.std()) < 1.7


def test_the_certificate_is_a_bound_within_its_errors(generator: torch.Generator) -> None:
    y = cloud(30, 2)
    exact = semidiscrete_transport(SQUARE, y)
    with pytest.warns(NotConvergedWarning):
        early = semidiscrete_transport(
            SQUARE,
            y,
            method=AveragedSGD(tol=1e-3, max_iter=5, held_out=50_000),
            start=torch.zeros(30, dtype=D),
            generator=generator,
        )
    proof = certificate(early)
    true = float((masses_of(early, exact.masses) - exact.masses).abs().sum())
    assert true <= proof.marginal_bound
    assert proof.dual.mean <= float(exact.value) + 4 * proof.dual.standard_error
    assert early.stats["marginal_error"] == proof.marginal_error
    assert "±" in str(proof)
    assert early.status is Status.MAX_ITER


def test_the_error_falls(generator: torch.Generator) -> None:
    y = normal(100, 5)
    source = Gaussian(torch.ones(5, dtype=D), torch.eye(5, dtype=D))
    errors = []
    for steps in (10, 100, 1000):
        solver = AveragedSGD(tol=1e-4, max_iter=steps, held_out=60_000, batch_size=512)
        with pytest.warns(NotConvergedWarning):
            found = semidiscrete_transport(source, y, method=solver, generator=generator)
        errors.append(certificate(found).marginal_bound)
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


# -- gradients, resuming ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [None, 0.05])
def test_gradients_of_the_value(epsilon: float | None, generator: torch.Generator) -> None:
    y = cloud(6, 2).requires_grad_()
    b = weights(6).requires_grad_()
    found = semidiscrete_transport(SQUARE, y, b=b, epsilon=epsilon, method=QUICK, generator=generator)
    dy, db = torch.autograd.grad(found.value, (y, b))
    if epsilon is None:
        exact = torch.autograd.grad(semidiscrete_transport(SQUARE, y, b=b).value, (y, b))
    else:
        x = SQUARE.sample(4000, generator)
        exact = torch.autograd.grad(brenier.solve(x, y, b=b, epsilon=epsilon).value, (y, b))
    assert_close(dy, exact[0], 0, 0.02)
    assert_close(db - db.mean(), exact[1] - exact[1].mean(), 0, 0.02)


def test_a_resumed_solve_takes_the_same_steps(tmp_path: Path) -> None:
    y = cloud(20, 2)
    options: dict[str, Any] = {"method": AveragedSGD(tol=1e-4, batch_size=256, held_out=1000), "max_iter": 60}

    def solve(**changes: Any) -> SemidiscreteSolution:
        with pytest.warns(NotConvergedWarning):
            return semidiscrete_transport(SQUARE, y, **{**options, **changes})

    whole = solve(generator=torch.Generator().manual_seed(1))
    half = solve(generator=torch.Generator().manual_seed(1), max_iter=25)
    torch.save(half.state, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = solve(start=saved)
    assert again.stats["n_iter"] == 35
    assert torch.equal(whole.g, again.g)
    with pytest.raises(InvalidInput, match="20"):
        semidiscrete_transport(SQUARE, y[:5], **options, start=saved)


def test_starts(generator: torch.Generator) -> None:
    y = cloud(20, 2)
    exact = semidiscrete_transport(SQUARE, y)
    found = semidiscrete_transport(SQUARE, y, method="sgd", start=exact, max_iter=50, tol=0.05, generator=generator)
    assert found.status is Status.CONVERGED
    assert_close(found.g, exact.g, 0, 0.02)


def test_timeout_and_dtype(generator: torch.Generator) -> None:
    with pytest.warns(NotConvergedWarning, match="timeout"):
        found = semidiscrete_transport(SQUARE, cloud(20, 2).float(), method="sgd", timeout=1e-6, generator=generator)
    assert found.stats["n_iter"] == 1
    assert found.g.dtype == found.masses.dtype == found.value.dtype == torch.float32


def test_plot_and_parameters() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    found = semidiscrete_transport(SQUARE, cloud(10, 2), method=QUICK)
    assert len(found.plot().images) == 1
    assert found.polygons is None
    plt.close("all")
    for bad in ({"batch_size": 0}, {"held_out": 10}, {"tol": 0.0}):
        with pytest.raises(InvalidInput):
            AveragedSGD(**bad)  # type: ignore[arg-type]
