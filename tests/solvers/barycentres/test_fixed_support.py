"""Barycentres on a given support: known answers, bounds, the linear program, POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

import brenier
from brenier import KL, CostMatrix, Exact, Free, Grid, InvalidInput, NotConverged, PointCloud, Problem, Ragged, Solution
from brenier.errors import NotConvergedWarning
from brenier.solvers import Anderson, Bregman, Fixed, OverRelaxation, Plain, Relaxation
from brenier.solvers.barycentres.bregman import _centres, _softmins, _variation
from brenier.solvers.base import run
from problems import assert_close, cloud, weights

D = torch.float64
LINE = torch.linspace(0, 1, 60, dtype=D)


def bump(mean: float, deviation: float) -> Tensor:
    w = (-((LINE - mean) ** 2) / (2 * deviation**2)).exp()
    return w / w.sum()


def moments(b: Tensor) -> tuple[float, float]:
    mean = float((b * LINE).sum())
    return mean, float((b * (LINE - mean) ** 2).sum())


GEOMETRIES: dict[str, Any] = {
    "cloud": PointCloud(LINE.unsqueeze(-1)),
    "matrix": CostMatrix((LINE.unsqueeze(-1) - LINE).square()),
    "grid": Grid(LINE),
    "batch": PointCloud(LINE.unsqueeze(-1).expand(2, -1, 1), LINE.unsqueeze(-1).expand(2, -1, 1)),
    "ragged": Ragged.from_list([LINE.unsqueeze(-1)] * 2, [LINE.unsqueeze(-1)] * 2),
}


@pytest.mark.parametrize("name", list(GEOMETRIES))
@pytest.mark.parametrize("debiased", [False, True])
def test_two_bumps(name: str, debiased: bool) -> None:
    a = torch.stack([bump(0.25, 0.04), bump(0.65, 0.04)])
    found = brenier.barycentre(GEOMETRIES[name], a=a, epsilon=2e-3, debiased=debiased, tol=1e-5)
    mean, variance = moments(found.b)
    assert float(found.b.sum()) == pytest.approx(1, abs=1e-4)
    assert mean == pytest.approx(0.45, abs=1e-3)
    # debiased, there is no blur; otherwise it is of the order of epsilon / 2
    assert variance == pytest.approx(0.04**2 if debiased else 0.04**2 + 1e-3, rel=0.05 if debiased else 0.2)
    certificate = found.certify()
    exact = ot.emd2_1d(LINE.numpy(), LINE.numpy(), a[0].numpy(), a[1].numpy()) / 4
    assert float(certificate.dual) <= exact * (1 + 1e-9)
    assert float(certificate.primal) >= exact * (1 - 1e-9)


@pytest.mark.parametrize("options", [{"epsilon": 1e-3}, {"epsilon": 1e-3, "debiased": True}, {}], ids=str)
def test_one_weight_gives_back_that_measure(options: dict[str, Any]) -> None:
    a = torch.stack([bump(0.3, 0.05), bump(0.7, 0.1)])
    found = brenier.barycentre(PointCloud(LINE.unsqueeze(-1)), [1.0, 0.0], a=a, tol=1e-6, **options)
    mean, variance = moments(found.b)
    assert mean == pytest.approx(0.3, abs=1e-3)
    if options != {"epsilon": 1e-3}:
        assert_close(found.b, a[0], 2e-2)
        assert variance == pytest.approx(moments(a[0])[1], rel=1e-2)


def test_the_linear_program_is_the_oracle() -> None:
    x, a = cloud(12, 2, 0), torch.stack([weights(12, k) for k in range(3)])
    geometry, w = PointCloud(x), [0.5, 0.3, 0.2]
    exact = brenier.barycentre(geometry, w, a=a)
    assert exact.status.name == "OPTIMAL"
    assert float(exact.certify().relative_gap) < 1e-6
    assert_close(exact.plan.col_sums(), exact.b.expand(3, -1), 1e-7)
    assert_close(exact.plan.row_sums(), a / a.sum(-1, keepdim=True), 1e-7)
    M = geometry.tile().numpy()
    _, log = ot.lp.barycenter((a / a.sum(-1, keepdim=True)).T.numpy().copy(), M, weights=np.array(w), log=True)
    assert float(exact.value) == pytest.approx(log["fun"], rel=1e-6)
    for epsilon in (1.0, 0.1):
        soft = brenier.barycentre(geometry, w, a=a, epsilon=epsilon)
        certificate = soft.certify()
        assert float(certificate.dual) <= float(exact.value) * (1 + 1e-9)
        assert float(exact.value) <= float(certificate.primal) * (1 + 1e-9)
        assert "relative gap" in str(certificate)


def test_clouds_of_different_sizes_and_a_support() -> None:
    clouds, support = [cloud(n, 2, n) for n in (15, 20, 30)], cloud(25, 2, 9)
    exact = brenier.barycentre(clouds, support=support)
    soft = brenier.barycentre(clouds, support=support, epsilon=0.05)
    low, high = soft.certify().dual, soft.certify().primal
    assert float(low) - 1e-9 <= float(exact.value) <= float(high) + 1e-9
    assert soft.points.shape == (25, 2)
    assert float(exact.certify().relative_gap) < 1e-6


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_one_pass_serves_all_measures(dim: int, dtype: torch.dtype) -> None:
    geometry = PointCloud(cloud(30, 2, 0), cloud(40, 2, 1)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    f, g = (0.5 * torch.randn(6, size, generator=generator, dtype=D).to(dtype) for size in (30, 40))
    h = (g if dim else f) + 0.1
    h[2, :5] = -torch.inf
    h[:, 7] = -torch.inf
    h[4] -= 1e4  # a shift is nothing
    h[5, 1:] -= 1e4  # too far from the others for one sum
    epsilon = torch.tensor(0.1, dtype=dtype)
    exact = geometry.softmin(h, epsilon, dim)
    for centres in ([0] * 6, [1, 1, 2, 2, 2, 1], list(range(6))):
        found = _softmins(geometry, h, epsilon, dim, f, g, torch.tensor(centres))
        assert_close(found, exact, 1e-10 if dtype == D else 1e-6)


@pytest.mark.parametrize(("dtype", "apart", "tol"), [(torch.float32, 80.0, 1e-4), (D, 900.0, 1e-12)])
def test_one_pass_serves_what_is_far(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, apart: float, tol: float
) -> None:
    """Sums far above and far below those of the centre."""
    geometry = PointCloud(cloud(30, 2, 0), cloud(40, 2, 1)).to(dtype)
    epsilon = torch.tensor(0.1, dtype=dtype)
    slope = torch.linspace(0, 0.1 * apart, 40, dtype=dtype)
    h = torch.stack([0 * slope, slope, slope.flip(0), slope.roll(20), -slope])
    f = geometry.softmin(h, epsilon)
    with monkeypatch.context() as patch:
        patch.setattr(PointCloud, "softmin", None)  # none is taken alone
        found = _softmins(geometry, h, epsilon, 1, f, h, torch.zeros(5, dtype=torch.int64))
    assert_close(found, f, tol)


def test_the_first_digits_are_from_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x = cloud(250, 2, 0)
    a = torch.stack([(-(x - centre).square().sum(-1)).exp() for centre in cloud(20, 2, 1)])
    a = a / a.sum(-1, keepdim=True)
    geometry = PointCloud(x)
    problem = Problem.make(geometry, a, marginals=(Exact(), Free()), epsilon=0.1 * float(geometry.mean_cost()))
    solver, seen = Bregman(tol=1e-9), []

    def callback(iteration: int, state: Any) -> None:
        seen.append((state.rough, float(state.error), bool(state.closing)))

    found = run(problem, solver, callback=callback)
    rough = [left for left, _, _ in seen]
    first = rough.index(-1)
    assert first >= 3
    assert all(left > 0 for left in rough[:first])
    assert not any(rough[first + 1 :])
    assert not any(closing for _, _, closing in seen[: first + 2])
    columns = found.plan.col_sums()
    assert_close(columns, found.stats["b"].expand(20, -1), 1e-12)
    with monkeypatch.context() as patch:
        patch.setattr("brenier.solvers.barycentres.bregman.rough_steps", lambda tol: 0)
        plain = run(problem, solver)
    assert_close(found.stats["b"], plain.stats["b"], 1e-8)
    # stopped while sums were in float32, the columns still are equal
    early = run(problem, Bregman(tol=1e-9, max_iter=first), warn=False)
    assert_close(early.plan.col_sums(), early.stats["b"].expand(20, -1), 1e-12)


def test_centres_are_near() -> None:
    h = torch.randn(4, 1, 20, generator=torch.Generator().manual_seed(0), dtype=D).expand(-1, 3, -1).flatten(0, 1)
    h = (
        h
        + 1e-3 * torch.arange(12, dtype=D).unsqueeze(-1).sin() * torch.arange(20, dtype=D)
        + torch.arange(12).unsqueeze(-1)
    )
    reach, first = torch.tensor(0.1, dtype=D), torch.zeros(12, dtype=torch.int64)
    centres = _centres(h, reach, first)
    assert len(centres.unique()) == 4
    assert bool((_variation(h - h[centres]) <= reach).all())
    assert _centres(h, reach, centres) is centres
    assert _centres(h, torch.tensor(100.0), first) is first
    h[3] = torch.nan
    assert _centres(h, reach, first).shape == (12,)


# -- ways of the same iteration -----------------------------------------------------------------------------------

POINTS = PointCloud(LINE.unsqueeze(-1))


def bumps(count: int) -> Tensor:
    return torch.stack([bump(0.15 + 0.7 * k / (count - 1), 0.03 + 0.01 * (k % 3)) for k in range(count)])


def solved(monkeypatch: pytest.MonkeyPatch, way: str, a: Tensor, epsilon: float, **options: Any) -> Solution:
    """Together in passes over the costs, or apart, by kernels that are kept or in the log domain."""
    with monkeypatch.context() as patch:
        if way != "together":
            patch.setattr("brenier.solvers.barycentres.bregman._TOGETHER", 1000)
        if way == "log":
            patch.setattr("brenier.geometry.base.LIMIT", 0)
        marginals = (KL(options.pop("rho")) if "rho" in options else Exact(), Free())
        problem = Problem.make(POINTS, a, marginals=marginals, epsilon=epsilon)
        return run(problem, Bregman(**options), warn=False)


@pytest.mark.parametrize("way", ["together", "kept"])
@pytest.mark.parametrize("options", [{}, {"rho": 0.3}, {"debiased": True, "tol": 1e-4}], ids=str)
def test_passes_and_kernels_give_what_the_log_domain_gives(
    monkeypatch: pytest.MonkeyPatch, way: str, options: dict[str, Any]
) -> None:
    a = bumps(5)
    a[1, ::4] = 0
    a = a / a.sum(-1, keepdim=True)
    options = {"tol": 1e-11} | options
    found, log = (solved(monkeypatch, each, a, 5e-3, **options) for each in (way, "log"))
    assert found.status.ok
    assert log.status.ok
    assert_close(found.stats["b"], log.stats["b"], 1e-9)
    assert_close(found.stats["value"], log.stats["value"], 1e-9)


@pytest.mark.parametrize("epsilon", [1e-4, 2e-5])
def test_measures_too_far_apart_for_one_pass(monkeypatch: pytest.MonkeyPatch, epsilon: float) -> None:
    """Iterates agree, whether they have converged or not."""
    options: dict[str, Any] = {"relaxation": Plain(), "max_iter": 30}
    found, log = (solved(monkeypatch, way, bumps(6), epsilon, **options) for way in ("together", "log"))
    assert_close(found.f, log.f, 1e-9)
    assert_close(found.g, log.g, 1e-9)
    assert_close(found.stats["b"], log.stats["b"], 1e-9)


@pytest.mark.parametrize("way", ["together", "kept", "log"])
def test_translates_and_equal_measures(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    means, w = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7], dtype=D), torch.tensor([0.3, 0.1, 0.2, 0.2, 0.2], dtype=D)
    a = torch.stack([bump(float(mean), 0.04) for mean in means])
    found = solved(monkeypatch, way, a, 2e-3, weights=w).stats["b"]
    mean, variance = moments(found)
    assert mean == pytest.approx(float(w @ means), abs=1e-3)
    assert variance == pytest.approx(0.04**2 + 1e-3, rel=0.2)  # blurred by some epsilon / 2
    same = solved(monkeypatch, way, a[:1].expand(5, -1), 2e-3, debiased=True, tol=1e-5).stats["b"]
    assert_close(same, a[0], 1e-2)


def test_mixing_serves_soft_marginals(monkeypatch: pytest.MonkeyPatch) -> None:
    a = bumps(5) * torch.linspace(0.5, 2, 5, dtype=D).unsqueeze(-1)
    found = solved(monkeypatch, "together", a, 5e-3, rho=0.3)
    plain = solved(monkeypatch, "together", a, 5e-3, rho=0.3, relaxation=Plain())
    assert found.stats["n_iter"] < plain.stats["n_iter"] / 4
    assert_close(found.stats["b"], plain.stats["b"], 1e-3)
    assert_close(found.stats["value"], plain.stats["value"], 1e-9)


@pytest.mark.parametrize("relaxation", [Plain(), OverRelaxation(), Anderson(), Anderson(depth=2, below=1.0)], ids=str)
def test_each_relaxation_ends_at_one_barycentre(relaxation: Relaxation[Any]) -> None:
    a = bumps(4)
    problem = Problem.make(POINTS, a, marginals=(Exact(), Free()), epsilon=5e-3)
    found = run(problem, Bregman(relaxation=relaxation, tol=1e-9))
    plain = run(problem, Bregman(relaxation=Plain(), schedule=Fixed(), tol=1e-11))
    assert_close(found.stats["b"], plain.stats["b"], 1e-7)


def test_the_error_and_the_value_are_what_is_recomputed() -> None:
    a, epsilon, w = bumps(4), 5e-3, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=D)
    for tol in (1e-3, 1e-6):
        found = brenier.barycentre(POINTS, w, a=a, epsilon=epsilon, tol=tol)
        assert_close(found.plan.col_sums(), found.b.expand(4, -1), 1e-12)
        assert float((w @ (found.plan.row_sums() - a).abs()).sum()) <= tol
        b, u = found.b / found.b.sum(), torch.full_like(LINE, 1 / len(LINE))
        balanced = brenier.solve(POINTS, a=a, b=b.expand(4, -1), epsilon=epsilon, tol=1e-10)
        entropy = epsilon * (torch.special.xlogy(b, b) - torch.special.xlogy(b, u)).sum()
        primal = float(w @ balanced.value + entropy)
        assert float(found.value) <= primal * (1 + 1e-9)
        assert float(found.value) == pytest.approx(primal, rel=1e-3 if tol == 1e-3 else 1e-7)


# -- POT ---------------------------------------------------------------------------------------------------------


def test_as_pot() -> None:
    a = torch.stack([bump(0.2, 0.05), bump(0.5, 0.08), bump(0.8, 0.03)])
    w = torch.tensor([0.5, 0.2, 0.3], dtype=D)
    M = (LINE.unsqueeze(-1) - LINE).square()
    theirs = ot.barycenter(
        a.T.contiguous(), M, 2e-3, weights=w, method="sinkhorn_log", stopThr=1e-10, numItermax=5000, warn=False
    )
    ours = brenier.barycentre(CostMatrix(M), w, a=a, epsilon=2e-3, tol=1e-9)
    assert_close(ours.b, theirs, 1e-6)
    arrays = (a.T.contiguous().numpy(), M.numpy(), 2e-3, w.numpy())  # on torch it warns
    theirs = ot.bregman.barycenter_debiased(*arrays, method="sinkhorn", stopThr=1e-10, numItermax=5000, warn=False)
    ours = brenier.barycentre(CostMatrix(M), w, a=a, epsilon=2e-3, tol=1e-7, debiased=True)
    assert_close(ours.b, torch.from_numpy(theirs), 1e-4)


def test_images_as_pot() -> None:
    k = 12
    x = torch.linspace(0, 1, k, dtype=D)
    images = torch.zeros(2, k, k, dtype=D)
    images[0, 2:5, 2:5] = 1
    images[1, 7:11, 6:10] = 1
    images = images + 1e-3
    images = images / images.sum((-2, -1), keepdim=True)
    theirs = ot.bregman.convolutional_barycenter2d(
        images, 5e-3, method="sinkhorn_log", stopThr=1e-10, numItermax=5000, warn=False
    )
    ours = brenier.barycentre(Grid(x, x), a=images.flatten(1), epsilon=5e-3, tol=1e-9)
    assert_close(ours.b.reshape(k, k), theirs / theirs.sum(), 1e-5)


def test_unbalanced_is_near_that_of_pot_and_tends_to_balanced() -> None:
    a = torch.stack([bump(0.2, 0.05), 2 * bump(0.6, 0.05)])
    M = (LINE.unsqueeze(-1) - LINE).square()
    # its entropy is against the counting measure, ours against a ⊗ u: near each other, not equal
    theirs = ot.unbalanced.barycenter_unbalanced(a.T.contiguous(), M, 5e-3, 0.5, numItermax=5000, stopThr=1e-10)
    ours = brenier.barycentre(CostMatrix(M), a=a, epsilon=5e-3, rho=0.5, tol=1e-10)
    mine, other = (t / t.sum() for t in (ours.b, theirs))
    assert float((mine * LINE).sum()) == pytest.approx(float((other * LINE).sum()), abs=0.02)
    hard = brenier.barycentre(CostMatrix(M), a=a / a.sum(-1, keepdim=True), epsilon=5e-3, tol=1e-8)
    soft = brenier.barycentre(CostMatrix(M), a=a / a.sum(-1, keepdim=True), epsilon=5e-3, rho=1e4, tol=1e-8)
    assert_close(soft.b, hard.b, 1e-3)
    assert_close(soft.value, hard.value, 1e-3)


def test_the_unbalanced_value_is_least() -> None:
    """No other masses do better, by solving the transports to them."""
    a = torch.stack([bump(0.2, 0.05), 2 * bump(0.6, 0.05)])
    geometry = PointCloud(LINE.unsqueeze(-1))
    found = brenier.barycentre(geometry, a=a, epsilon=5e-3, rho=0.5, tol=1e-10)
    u = torch.full_like(LINE, 1 / len(LINE))

    def value(b: Tensor) -> float:
        """By Sinkhorn with the entropy against a ⊗ b, turned into that against a ⊗ u."""
        f, g = torch.zeros_like(a), torch.zeros_like(a)
        eps, rho = torch.tensor(5e-3, dtype=D), 0.5
        for _ in range(2000):
            f = geometry.softmin(g + eps * u.log(), eps) * rho / (rho + eps)
            s = geometry.softmin(f + eps * a.log(), eps, dim=0)
            g = (s + eps * (b / u).log()) * rho / (rho + eps)
        dual = (-rho * a * torch.expm1(-f / rho)).sum(-1) - (rho * b * torch.expm1(-g / rho)).sum(-1)
        plan = (u * ((g - s) / eps).exp()).sum(-1)
        return float((dual - eps * (plan - a.sum(-1))).mean())

    best = value(found.b)
    assert best == pytest.approx(float(found.value), rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        other = found.b * (0.1 * torch.randn(len(LINE), generator=generator, dtype=D)).exp()
        assert value(other) > best


# -- ends and errors ---------------------------------------------------------------------------------------------


def test_kinds_and_dtypes(dtype: torch.dtype) -> None:
    a = torch.stack([bump(0.25, 0.04), bump(0.65, 0.04)]).to(dtype)
    found = brenier.barycentre(PointCloud(LINE.unsqueeze(-1).to(dtype)), a=a, epsilon=1e-2)
    assert found.b.dtype == dtype
    array = brenier.barycentre(PointCloud(LINE.unsqueeze(-1).numpy()), a=a.double().numpy(), epsilon=1e-2)
    assert isinstance(array.b, np.ndarray)
    assert_close(torch.from_numpy(array.b), found.b.double(), 1e-3)
    clouds = [cloud(5, 2, k).numpy() for k in range(2)]
    assert isinstance(brenier.barycentre(clouds, support=clouds[0], epsilon=1.0).b, np.ndarray)


def test_zero_masses_and_relative_epsilon() -> None:
    a = torch.stack([bump(0.25, 0.04), bump(0.65, 0.04), bump(0.5, 0.1), bump(0.5, 0.01)])
    a[:, ::3] = 0
    a = a / a.sum(-1, keepdim=True)
    found = brenier.barycentre(PointCloud(LINE.unsqueeze(-1)), a=a, epsilon=brenier.Relative(0.01))
    assert found.status.ok
    assert float(found.b.sum()) == pytest.approx(1, abs=1e-6)
    assert float(found.certify().gap) >= 0


def test_what_did_not_end() -> None:
    a = torch.stack([bump(0.25, 0.04), bump(0.65, 0.04)])
    geometry = PointCloud(LINE.unsqueeze(-1))
    with pytest.warns(NotConvergedWarning, match="max_iter"):
        found = brenier.barycentre(geometry, a=a, epsilon=1e-4, max_iter=3)
    assert float(found.certify().gap) > 0
    with pytest.raises(NotConverged):
        brenier.barycentre(geometry, a=a, epsilon=1e-4, max_iter=3, throw=True)


def test_refusals() -> None:
    a = torch.stack([bump(0.25, 0.04), bump(0.65, 0.04)])
    line = LINE.unsqueeze(-1)
    geometry = PointCloud(line)
    bad: list[Any] = [
        lambda: brenier.barycentre(geometry, epsilon=0.1),
        lambda: brenier.barycentre(geometry, a=a[0], epsilon=0.1),
        lambda: brenier.barycentre(geometry, a=a * torch.tensor([[1.0], [2.0]]), epsilon=0.1),
        lambda: brenier.barycentre(geometry, [0.5, 0.6], a=a, epsilon=0.1),
        lambda: brenier.barycentre(geometry, a=a, rho=1.0),
        lambda: brenier.barycentre(geometry, a=a, debiased=True),
        lambda: brenier.barycentre(geometry, a=a, epsilon=0.1, rho=1.0, debiased=True),
        lambda: brenier.barycentre(CostMatrix(torch.rand(60, 50)), a=a.float(), epsilon=0.1, debiased=True),
        lambda: brenier.barycentre(geometry, a=a, support=line),
        lambda: brenier.barycentre(geometry, a=a, n=4),
        lambda: brenier.barycentre([line, line], debiased=True, epsilon=0.1),
        lambda: brenier.barycentre([]),
        lambda: brenier.barycentre(PointCloud(torch.rand(1000, 2)), a=torch.rand(2, 1000)),
        lambda: brenier.barycentre(geometry, a=a, epsilon=0.1, rho=1.0).certify(),
        lambda: Bregman(tol=-1.0),
    ]
    for call in bad:
        with pytest.raises(InvalidInput):
            call()
