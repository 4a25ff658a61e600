"""Quadratic transport and its k-sparse version: known values, POT, and the contract of a solver."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings

import pytest
import torch
from torch import Tensor

import brenier
from brenier import CostMatrix, Problem, SquaredNorm, Status
from brenier.errors import InvalidInput, NotConvergedWarning
from brenier.solvers import LBFGS, Adam, DualAscent, NetworkSimplex, run


def toy(n: int = 12, m: int = 9, batch: tuple[int, ...] = (), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    C, a, b = (torch.rand(*batch, *s, generator=g, dtype=torch.float64) for s in ((n, m), (n,), (m,)))
    return C, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def climb(C: Tensor, a: Tensor, b: Tensor, omega: SquaredNorm, **options: object) -> brenier.Solution:
    problem = Problem.make(CostMatrix(C), a, b, regularizer=omega)
    return run(problem, DualAscent(**{"max_iter": 300, **options}), warn=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("formulation", ["semidual", "dual"])
@pytest.mark.parametrize("gamma", [0.2, 1.0, 10.0])
def test_quadratic_transport_is_optimal(formulation: str, gamma: float) -> None:
    C, a, b = toy()
    s = climb(C, a, b, SquaredNorm(gamma), formulation=formulation, max_iter=3000)
    assert s.status is Status.CONVERGED
    P, f, g = s.plan.dense(), s.f, s.g
    torch.testing.assert_close(P.sum(1), a, rtol=0, atol=1e-8)
    torch.testing.assert_close(P.sum(0), b, rtol=0, atol=1e-14)
    # optimality: P = [f + g - C]_+ / gamma
    torch.testing.assert_close(P, ((f[:, None] + g - C) / gamma).clamp(min=0), rtol=0, atol=1e-12)
    assert float(s.value) == pytest.approx(float((P * C).sum() + gamma / 2 * P.square().sum()))
    assert float(s.dual_value) == pytest.approx(float(s.value), rel=1e-7)


@pytest.mark.parametrize("batch", [(), (1, 2)])
def test_batches_dtype_and_warm_start(batch: tuple[int, ...]) -> None:
    C, a, b = toy(batch=batch)
    s = climb(C, a, b, SquaredNorm(1.0, 4))
    assert s.value.shape == batch
    assert len(s.statuses) == max(1, len(a.reshape(-1, 12)))
    P = s.plan.dense()
    assert int((P > 0).sum(-2).max()) <= 4
    torch.testing.assert_close(P.sum(-2), b, rtol=0, atol=1e-14)
    again = climb(C, a, b, SquaredNorm(1.0, 4), f=s.f)
    assert (again.dual_value >= s.dual_value - 1e-12).all()
    assert again.stats["n_iter"] <= s.stats["n_iter"]
    if not batch:
        single = climb(C.float(), a.float(), b.float(), SquaredNorm(1.0, 4))
        assert single.value.dtype == single.plan.dense().dtype == torch.float32
        assert float(single.dual_value) == pytest.approx(float(s.dual_value), rel=1e-4)
    else:
        for i in range(batch[0]):
            for j in range(batch[1]):
                one = climb(C[i, j], a[i, j], b[i, j], SquaredNorm(1.0, 4))
                assert float(one.dual_value) == pytest.approx(float(s.dual_value[i, j]), rel=1e-4)
                assert isinstance(one.stats["n_tied_columns"], int)


# POT passes an option to SciPy that SciPy no longer likes
pot = pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")


@pot
def test_quadratic_transport_against_pot() -> None:
    ot = pytest.importorskip("ot")
    C, a, b = toy(10, 10)
    theirs = ot.smooth.smooth_ot_semi_dual(
        a.numpy(), b.numpy(), C.numpy(), 0.5, reg_type="l2", numItermax=3000, stopThr=1e-11
    )
    s = climb(C, a, b, SquaredNorm(0.5))
    assert float((s.plan.dense() - torch.as_tensor(theirs)).abs().sum()) < 1e-4


@pot
def test_sparse_transport_against_pot() -> None:
    ot = pytest.importorskip("ot")
    C, a, b = toy(10, 10, seed=1)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a shape at every call
        _, log = ot.smooth.smooth_ot_semi_dual(
            a.numpy(), b.numpy(), C.numpy(), 1.0, reg_type="sparsity_constrained", max_nz=3, numItermax=5000, log=True
        )
    s = climb(C, a, b, SquaredNorm(1.0, 3))
    f = torch.as_tensor(log["alpha"])
    theirs = (a * f).sum() - SquaredNorm(1.0, 3).conjugate_on_simplex((f[:, None] - C).T, b).value.sum()
    assert float(s.dual_value) >= float(theirs) - 1e-9
    assert float(s.dual_value) == pytest.approx(float(theirs), rel=2e-3)


def test_conjugates_by_brute_force() -> None:
    s, omega = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64), SquaredNorm(0.7, 3)
    b = torch.tensor([0.0, 0.2, 1.0, 3.0], dtype=torch.float64)
    free, held = omega.conjugate(s), omega.conjugate_on_simplex(s, b)
    torch.testing.assert_close(free.value, s.clamp(min=0).topk(3).values.square().sum(-1) / 1.4)
    torch.testing.assert_close(held.mass.sum(-1), b)
    picked = s.gather(-1, held.rows)
    torch.testing.assert_close(held.value, (picked * held.mass).sum(-1) - 0.35 * held.mass.square().sum(-1))
    # the two are conjugate in b: Omega_b*(s) = min over g of Omega+*(s + g) - b g, attained at -level
    shifted = omega.conjugate(s - held.level.unsqueeze(-1))
    torch.testing.assert_close(held.value, shifted.value + b * held.level)
    # one entry a column: b max(s) - gamma b^2 / 2
    one = SquaredNorm(0.7, 1).conjugate_on_simplex(s, b)
    torch.testing.assert_close(one.value, b * s.amax(-1) - 0.35 * b**2)


def test_dual_value_falls_with_k_for_fixed_potentials() -> None:
    C, a, b = toy()
    f = torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = [
        float((a * f).sum() - SquaredNorm(1.0, k).conjugate_on_simplex((f[:, None] - C).T, b).value.sum())
        for k in range(1, 14)
    ]
    assert all(x >= y for x, y in itertools.pairwise(values))


def test_one_entry_a_column_is_exact_transport() -> None:
    C, a, b = toy()
    emd = float(brenier.solve(CostMatrix(C), a=a, b=b).value)
    s = climb(C, a, b, SquaredNorm(2.0, 1))
    assert float(s.dual_value) == pytest.approx(emd + float(b.square().sum()), rel=1e-12)
    slow = climb(C, a, b, SquaredNorm(2.0, 1), continuation=False, max_iter=3000)
    assert float(slow.dual_value) == pytest.approx(float(s.dual_value), rel=2e-2)
    assert float(slow.dual_value) <= float(s.dual_value) + 1e-12


def test_continuation_goes_down_to_k() -> None:
    assert SquaredNorm(1.0, 2).relaxations(40) == tuple(SquaredNorm(1.0, k) for k in (None, 32, 8))
    assert SquaredNorm(1.0, 40).relaxations(40) == SquaredNorm(1.0).relaxations(40) == ()
    C, a, b = toy()
    problem = Problem.make(CostMatrix(C), a, b, regularizer=SquaredNorm(1.0, 2))
    levels: list[int | None] = []
    run(problem, DualAscent(level_iter=3, max_iter=9), callback=lambda i, s: levels.append(s.levels[0].k), warn=False)
    assert levels == [None, None, None, 8, 8, 8, 2, 2, 2]
    warm = DualAscent(level_iter=3, max_iter=1, f=a)
    run(problem, warm, callback=lambda i, s: levels.append(s.levels[0].k), warn=False)
    assert levels[-1] == 2


def test_adam_finds_the_same_maximum() -> None:
    C, a, b = toy()
    adam = climb(C, a, b, SquaredNorm(1.0), method=Adam(1e-2), max_iter=2000, tol=1e-4)
    assert adam.status is Status.CONVERGED
    assert float(adam.dual_value) == pytest.approx(float(climb(C, a, b, SquaredNorm(1.0)).dual_value), rel=1e-5)


def test_certificate_bounds_exact_transport() -> None:
    C, a, b = toy()
    emd = float(brenier.solve(CostMatrix(C), a=a, b=b).value)
    for k in (None, 1, 2):
        certificate = climb(C, a, b, SquaredNorm(0.01, k)).certificate
        assert float(certificate.dual) - 1e-12 <= emd <= float(certificate.primal) + 1e-12
        assert float(certificate.marginal_errors[1]) < 1e-13


def test_rows_are_the_transposed_problem() -> None:
    C, a, b = toy()
    rows = climb(C, a, b, SquaredNorm(1.0, 6, "rows"))
    columns = climb(C.T, b, a, SquaredNorm(1.0, 6))
    assert rows.status is columns.status is Status.CONVERGED
    torch.testing.assert_close(rows.plan.dense(), columns.plan.dense().T, rtol=0, atol=1e-7)
    torch.testing.assert_close(rows.f - rows.f[0], columns.g - columns.g[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.plan.row_sums(), a, rtol=0, atol=1e-14)
    turned = Problem.make(CostMatrix(C), a, b, regularizer=SquaredNorm(1.0, 3)).T
    assert turned.regularizer == SquaredNorm(1.0, 3, "rows")


def test_zero_masses_and_lazy_geometry() -> None:
    _, a, b = toy()
    a, b = a.clone(), b.clone()
    a[3], b[[0, 5]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 2, generator=g, dtype=torch.float64) for k in (12, 9))
    s = brenier.solve(x, y, a=a, b=b, regularizer=SquaredNorm(1.0, 12), max_iter=3000)
    P = s.plan.dense()
    assert (P[:, [0, 5]] == 0).all()
    assert float(P[3].sum()) < 1e-8
    assert torch.isfinite(s.g).all()
    assert s.stats["reason"] == "a regularizer was given"
    assert float(s.certificate.relative_gap) < 1


def test_driver_counts_warns_and_calls_back() -> None:
    C, a, b = toy()
    problem = Problem.make(CostMatrix(C), a, b, regularizer=SquaredNorm(1.0, 2))
    seen: list[int] = []
    with pytest.warns(NotConvergedWarning, match="dual-ascent: stopped at max_iter"):
        s = run(problem, DualAscent(max_iter=3), callback=lambda i, state: seen.append(i))
    assert seen == [1, 2, 3]
    assert s.status is Status.MAX_ITER
    with pytest.warns(NotConvergedWarning, match="no longer rises"):
        s = run(problem, DualAscent(max_iter=2000))
    assert s.status is Status.STAGNATED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(problem, DualAscent(max_iter=3), warn=False)


def test_envelope_gradients_of_the_value() -> None:
    inputs = toy(6, 5)

    def value(*inputs: Tensor) -> Tensor:
        C, a, b = inputs
        solver = DualAscent(tol=1e-12, max_iter=3000)
        problem = Problem.make(CostMatrix(C), a, b, regularizer=SquaredNorm(0.3))
        return run(problem, solver, warn=False).value  # 1e-12 is at rounding level

    leaves = [t.clone().requires_grad_() for t in inputs]
    gradients = torch.autograd.grad(value(*leaves), leaves)
    for which, size in enumerate((30, 6, 5)):
        for i in range(4):
            v = torch.zeros(size, dtype=torch.float64)
            v[i] = 1e-5
            if which:  # masses stay equal
                v[i + 1] = -1e-5
            v = v.reshape(inputs[which].shape)
            up, down = (float(value(*(t + s * v if k == which else t for k, t in enumerate(inputs)))) for s in (1, -1))
            assert (up - down) / 2 == pytest.approx(float((gradients[which] * v).sum()), abs=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquaredNorm(0.0), "gamma: expected a positive finite number, got 0.0. For gamma = 0 leave the"),
        (lambda: SquaredNorm(1.0, 0), "k: expected an integer >= 1"),
        (lambda: SquaredNorm(1.0, axis="both"), "axis: expected 'columns' or 'rows', got 'both'."),
        (lambda: DualAscent(formulation="primal"), "formulation: expected 'semidual' or 'dual', got 'primal'."),
        (lambda: DualAscent(method="lbfgs"), "method: expected a Method such as LBFGS() or Adam(lr), got 'lbfgs'."),
        (lambda: DualAscent(tol=-1.0), "tol: expected a finite number > 0, got -1.0."),
        (lambda: DualAscent(dtype=torch.float16), "dtype: expected torch.float64 or torch.float32, got torch.float16."),
        (lambda: LBFGS(memory=0), "memory: expected a finite number > 0, got 0."),
        (lambda: Adam(betas=(0.9, 1.0)), "betas: expected two numbers in"),
        (
            lambda: Problem.make(CostMatrix(torch.ones(2, 2)), epsilon=1.0, regularizer=SquaredNorm()),
            "regularizer: expected epsilon=None, since epsilon is the strength of the entropy, got epsilon=1.0.",
        ),
        (
            lambda: Problem.make(CostMatrix(torch.ones(2, 2)), marginals=brenier.KL(1.0), regularizer=SquaredNorm()),
            "regularizer: expected exact marginals, got",
        ),
        (
            lambda: Problem.make(CostMatrix(torch.ones(2, 2)), regularizer="l2"),
            r"regularizer: expected a Regularizer such as SquaredNorm(1.0, k=4), or None, got 'l2'.",
        ),
        (
            lambda: run(Problem.make(CostMatrix(torch.ones(2, 2)), regularizer=SquaredNorm()), NetworkSimplex()),
            "network-simplex: expected a problem without a regularizer, got SquaredNorm(gamma=1.0, k=None,",
        ),
        (
            lambda: run(Problem.make(CostMatrix(torch.ones(2, 2))), DualAscent()),
            "dual-ascent: expected a problem with a regularizer, got none. Give regularizer=SquaredNorm(gamma, k).",
        ),
        (
            lambda: run(
                Problem.make(CostMatrix(torch.ones(2, 2)), regularizer=SquaredNorm()), DualAscent(f=torch.ones(3))
            ),
            "dual-ascent start f: expected last axis of length 2, got shape (3,).",
        ),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value).startswith(message)
