"""SNS as its users call it: the answer, the record, the errors."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from brenier import CostMatrix, InvalidInput, NotConvergedWarning, PerformanceWarning, PointCloud, solve
from brenier.experiments import start
from brenier.systems.catalogue import find
from brenier.systems.numerics import sns as module
from brenier.systems.numerics.sns import sns


@pytest.fixture
def problem():
    rng = np.random.default_rng(5)
    a, b = rng.random(40), rng.random(30)
    a[3] = b[7] = 0
    return rng.random((40, 30)), a / a.sum(), b / b.sum()


def test_answer_and_record(problem):
    C, a, b = problem
    result = sns(C, a, b, epsilon=1 / 200)
    truth = solve(CostMatrix(C), a=a, b=b, epsilon=1 / 200, tol=1e-13, max_iter=50_000)
    assert result.converged
    assert isinstance(result.f, np.ndarray)
    assert float(result.value) == pytest.approx(float(truth.value), abs=1e-12)
    assert float(result.linear_value) == pytest.approx(float(truth.linear_value), abs=1e-11)
    P = result.plan.dense()
    np.testing.assert_allclose(P, truth.plan.dense(), atol=1e-10)
    np.testing.assert_allclose(P.sum(1), a, atol=1e-12)
    np.testing.assert_allclose(P.sum(0), b, atol=1e-12)
    assert result.errors[-1] <= 1e-12
    assert result.n_newton == len(result.alphas) == len(result.cg_iterations) == len(result.densities)
    assert "Newton steps" in repr(result)


def test_formulas_of_the_paper(problem):
    """The docstring's conversions: value with sum P log P, and the potentials of exp(eta (f + g - C) - 1)."""
    C, a, b = problem
    a, b = a + 0.01, b + 0.01
    a, b = a / a.sum(), b / b.sum()
    eps = 0.05
    result = sns(C, a, b, epsilon=eps)
    P = result.plan.dense()
    paper = (P * C).sum() + eps * (P * np.log(P)).sum()
    entropies = (a * np.log(a)).sum() + (b * np.log(b)).sum()
    assert float(result.value) + eps * entropies == pytest.approx(paper, abs=1e-12)
    f, g = result.f + eps * (np.log(a) + 0.5), result.g + eps * (np.log(b) + 0.5)
    np.testing.assert_allclose(np.exp((f[:, None] + g - C) / eps - 1), P, rtol=1e-9)


def test_warm_start_of_the_paper(problem):
    C, a, b = problem
    result = sns(C, a, b, 1 / 200, n_sinkhorn=20)
    assert result.n_sinkhorn == 20
    assert len(set(result.levels)) == 1
    assert result.converged
    cold = sns(C, a, b, 1 / 200, n_sinkhorn=0)
    assert cold.n_sinkhorn == 0
    again = sns(C, a, b, 1 / 200, f=torch.from_numpy(result.f), g=torch.from_numpy(result.g), tol=1e-10)
    assert again.n_newton == 0


def test_lazy_geometry_and_frames(problem):
    C, _, _ = problem
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sns(PointCloud(x), epsilon=0.01).converged
    frame = pd.DataFrame(C, index=[f"r{i}" for i in range(40)])
    assert list(sns(frame).f.index[:2]) == ["r0", "r1"]


def test_agrees_with_pot(problem):
    ot = pytest.importorskip("ot")
    C, a, b = problem
    a, b = a + 0.01, b + 0.01
    a, b = a / a.sum(), b / b.sum()
    theirs = ot.bregman.sinkhorn_log(a, b, C, 0.01, numItermax=20_000, stopThr=1e-13)
    assert np.abs(sns(C, a, b, 0.01).plan.dense() - theirs).sum() < 1e-8


def test_refusals(problem, monkeypatch):
    C, a, b = problem
    with pytest.raises(
        InvalidInput, match=r"C: expected one cost matrix \(n, m\), got batch axes \(1,\).*solver='sns'"
    ):
        sns(C[None], a, b)
    with pytest.raises(InvalidInput, match="a: expected nonnegative weights"):
        sns(C, -a, b)
    with pytest.raises(InvalidInput, match="equal total masses"):
        sns(C, 2 * a, b)
    with pytest.raises(InvalidInput, match="finite entries"):
        sns(np.where(C > 0.9, np.nan, C), a, b)
    with pytest.raises(InvalidInput, match="sweeps"):
        sns(C, a, b, n_sinkhorn=-3)
    with pytest.warns(NotConvergedWarning, match="sns: stopped at max_iter"):
        assert not sns(C, a, b, max_iter=2).converged
    monkeypatch.setattr(module, "_LARGE", 100)
    with pytest.warns(PerformanceWarning, match="a PointCloud needs none"):
        sns(C, a, b)


def test_on_the_shelf():
    assert find("sns").on_shelf


@pytest.mark.slow
def test_smoke_measures_every_claim():
    report = start("sns", "smoke")
    assert [c.sentence[:3] for c in report.claims[:3]] == ["(A)"] * 3
    assert len(report.claims) == 13 + (find_spec("ot") is not None)
    assert all(t.rows for t in report.tables)
    assert {f["file"] for f in report.figures} == {"sns-iterations.svg", "sns-passes.svg"}
