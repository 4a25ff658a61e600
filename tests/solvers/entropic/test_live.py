"""Points without mass are left out of the solve, and come back with their potentials."""

from __future__ import annotations

import pytest
import torch

import brenier
from brenier import CostMatrix, Grid, Implicit, PointCloud, Problem, Relative
from brenier.solvers import NewtonPath, Sinkhorn, SinkhornNewton, Solver
from brenier.solvers.base import run
from brenier.solvers.entropic.live import live_core
from problems import cloud, weights


def problem(dtype: torch.dtype = torch.float64, kind: str = "points", epsilon: float = 0.02) -> Problem:
    x, y = cloud(50, 2, 0, dtype=dtype), cloud(60, 2, 1, dtype=dtype)
    geometry = PointCloud(x, y) if kind == "points" else CostMatrix(PointCloud(x, y).tile())
    a, b = weights(50, 2, zeros=20).to(dtype), weights(60, 3, zeros=1).to(dtype)
    return Problem.make(geometry, a, b, epsilon=Relative(epsilon))


@pytest.mark.parametrize("kind", ["points", "matrix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("solver", [Sinkhorn(), SinkhornNewton(), NewtonPath()], ids=lambda s: s.name)
def test_the_answer_is_that_of_the_whole(monkeypatch, solver: Solver, dtype: torch.dtype, kind: str) -> None:
    p = problem(dtype, kind)
    core = live_core(p)
    assert core is not None
    assert core.problem.shape == (30, 59)
    found = run(p, solver)
    monkeypatch.setattr(type(solver), "core", Solver.core)
    whole = run(p, solver)
    tight = 1e-5 if dtype == torch.float64 else 1e-3
    assert found.plan.shape == (50, 60)
    assert found.f.dtype == whole.f.dtype
    assert found.status.ok
    shift = (found.f - whole.f)[p.a > 0].mean()
    assert torch.allclose(found.f - shift, whole.f, atol=tight)
    assert torch.allclose(found.g + shift, whole.g, atol=tight)
    assert torch.allclose(found.plan.dense(), whole.plan.dense(), atol=tight)
    assert torch.allclose(found.value, whole.value, rtol=tight)
    assert max(float(e) for e in found.certificate.marginal_errors) < 1e-3
    assert (found.plan.dense()[p.a == 0] == 0).all()


def test_gradients_are_those_of_the_whole() -> None:
    x, y = cloud(30, 2, 0).requires_grad_(), cloud(20, 2, 1)
    a = weights(30, 2, zeros=10).requires_grad_()
    for adjoint in (brenier.Envelope(), Implicit()):
        solution = brenier.solve(x, y, a=a, epsilon=0.1, tol=1e-11, adjoint=adjoint)
        grads = torch.autograd.grad(solution.value, (x, a))
        with torch.no_grad():
            moved = x.clone()
            moved[a.argmax(), 0] += 1e-5
            step = brenier.solve(moved, y, a=a, epsilon=0.1, tol=1e-11).value - solution.value
        assert torch.allclose(step / 1e-5, grads[0][a.argmax(), 0], rtol=1e-3)
        assert (grads[0][a == 0] == 0).all()
        assert torch.isfinite(grads[1]).all()


def test_what_is_left_alone() -> None:
    some = torch.zeros(64, dtype=torch.float64)
    some[:20] = 1
    assert live_core(Problem.make(Grid(8, 8), some, some, epsilon=0.1)) is None  # its axes are its speed
    few = torch.ones(50, dtype=torch.float64)
    few[0] = 0
    cost = PointCloud(cloud(50, 2, 0), cloud(50, 2, 1))
    assert live_core(Problem.make(cost, few, few, epsilon=0.1)) is None
    start = Sinkhorn(f=torch.zeros(50, dtype=torch.float64))
    assert start.core(problem()) is None
