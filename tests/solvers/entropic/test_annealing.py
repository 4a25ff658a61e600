"""Unregularised transport to a stated gap."""

from __future__ import annotations

import pytest
import torch

import brenier
from brenier import KL, CostMatrix, InvalidInput, PointCloud, Relative, Status
from brenier.solvers import Annealing
from problems import KNOWN, Known, cloud, tiny_lp, weights


@pytest.mark.parametrize("gap", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_reaches_the_gap(d: int, gap: float) -> None:
    geometry = PointCloud(cloud(90, d, 0), cloud(70, d, 1) + 1)
    a, b = weights(90, 2, zeros=2), weights(70, 3)
    solution = brenier.solve(geometry, a=a, b=b, gap=gap, solver="annealing")
    exact = float(brenier.solve(geometry, a=a, b=b, solver="network-simplex").value)
    c = solution.certify()
    assert solution.status is Status.CONVERGED
    assert float(c.relative_gap) <= gap
    assert float(c.dual) <= exact * (1 + 1e-12)
    assert float(c.primal) >= exact * (1 - 1e-12)
    assert float(solution.dual_value) <= exact * (1 + 1e-12)  # the potentials are feasible
    assert abs(float(solution.value) - exact) <= 2 * gap * exact


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_known_answers(known: Known) -> None:
    solution = brenier.solve(known.x, known.y + 1, gap=1e-2, solver="annealing")
    exact = float(brenier.solve(known.x, known.y + 1).value)
    assert float(solution.certificate.dual) <= exact + 1e-12
    assert float(solution.certificate.primal) <= exact * 1.011


def test_costs_of_any_sign_and_mass() -> None:
    for seed in range(12):
        lp = tiny_lp(seed)
        solution = brenier.solve(
            CostMatrix(torch.from_numpy(lp.cost)), a=torch.from_numpy(lp.a), b=torch.from_numpy(lp.b), gap=1e-2,
            solver="annealing",
        )  # fmt: skip
        c = solution.certificate
        scale = abs(lp.cost).max() * lp.a.sum()
        assert float(c.dual) <= lp.value + 1e-10 * scale
        assert float(c.primal) >= lp.value - 1e-10 * scale


def test_float32_is_solved_in_float64() -> None:
    x, y = cloud(50, 2, 0, dtype=torch.float32), cloud(50, 2, 1, dtype=torch.float32)
    solution = brenier.solve(x, y, gap=1e-3, solver="annealing")
    assert solution.value.dtype == torch.float32
    assert float(solution.certificate.relative_gap) <= 1e-3


def test_newton_takes_over_at_small_gaps() -> None:
    x, y = cloud(60, 8, 0), cloud(60, 8, 1)
    solution = brenier.solve(x, y, gap=1e-5, solver="annealing")
    assert float(solution.certificate.relative_gap) <= 1e-5


def test_gradient_is_that_of_the_plan() -> None:
    x, y = cloud(30, 2, 0).requires_grad_(), cloud(30, 2, 1)
    solution = brenier.solve(x, y, gap=1e-3, solver="annealing")
    solution.value.backward()
    P = solution.plan.dense()
    expected = 2 * (P.sum(1, keepdim=True) * x - P @ y)
    assert torch.allclose(x.grad, expected.detach(), atol=1e-10)


def test_the_front_door() -> None:
    x, y = cloud(40, 2, 0), cloud(40, 2, 1)
    assert brenier.solve(x, y, gap=1e-2).stats["solver"] == "assignment"  # exact is quicker here
    assert brenier.solve(x[:, :1], y[:, :1], gap=1e-2).stats["solver"] == "monotone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gap": 0.0}, "gap: expected a positive finite number, got 0.0."),
        ({"gap": 0.1, "epsilon": 0.1}, "gap: expected no epsilon and no regularizer, as it is a gap to the problem "
                                       "without them, got 0.1."),
        ({"solver": "annealing", "epsilon": Relative(0.5)}, "annealing: expected epsilon=None, as it chooses its own"),
        ({"solver": "annealing", "marginals": KL(1.0)}, "annealing: expected exact marginals"),
    ],
)  # fmt: skip
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        brenier.solve(cloud(5, 2, 0), cloud(5, 2, 1), **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_bad_parameters() -> None:
    with pytest.raises(InvalidInput, match="gap"):
        Annealing(gap=-1.0)
