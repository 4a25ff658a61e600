"""Sparsity-constrained transport and its router: the statements of the paper, the repair, and bad input."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import brenier
from brenier import CostMatrix, Status
from brenier.errors import InfeasibleWarning, InvalidInput, NotConvergedWarning
from brenier.projections import topk_simplex_projection as projection
from brenier.systems.numerics.sparsity_constrained import (
    SparseOTResult,
    SparseOTRouter,
    sparsity_constrained_ot,
    topk_simplex_projection,
)


def toy(m: int = 12, n: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    C, a, b = (torch.rand(*s, generator=g, dtype=torch.float64) for s in ((m, n), (m,), (n,)))
    return C, a / a.sum(), b / b.sum()


def quiet(*arguments: object, **options: object) -> SparseOTResult:
    """Without the warnings that ties bring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        warnings.simplefilter("ignore", InfeasibleWarning)
        return sparsity_constrained_ot(*arguments, **{"max_iter": 300, **options})  # type: ignore[arg-type]


def test_the_projection_is_that_of_the_core() -> None:
    assert topk_simplex_projection is projection


# -- what the paper states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["semidual", "dual"])
def test_one_entry_a_column_costs_exact_transport(formulation: str) -> None:
    C, a, b = toy()
    emd = float(brenier.solve(CostMatrix(C), a=a, b=b).value)
    result = quiet(C, a, b, 1, 2.0, formulation=formulation)
    assert float(result.dual_value) == pytest.approx(emd + float(b.square().sum()), rel=1e-10)
    assert result.max_nnz == 1
    assert result.n_tied_columns > 0


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")
@pytest.mark.parametrize("k", [9, 30])
def test_from_the_number_of_rows_on_it_is_quadratic_transport(k: int) -> None:
    ot = pytest.importorskip("ot")
    C, a, b = toy(9, 9)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = ot.smooth.smooth_ot_semi_dual(
            a.numpy(), b.numpy(), C.numpy(), 1.0, reg_type="l2", numItermax=3000, stopThr=1e-11
        )
    result = sparsity_constrained_ot(C, a, b, k)
    assert float((result.plan.dense() - torch.as_tensor(theirs)).abs().sum()) < 1e-4
    assert float(result.value) == pytest.approx(float(result.dual_value), rel=1e-8)
    assert float(result.row_err) < 1e-8
    assert result.n_tied_columns == 0
    assert result.status is Status.CONVERGED


def test_values_fall_with_k_and_counts_are_exact() -> None:
    C, a, b = toy()
    results = [quiet(C, a, b, k) for k in (1, 2, 3, 5, 12)]
    values = [float(r.dual_value) for r in results]
    assert all(values[i] >= values[i + 1] - 1e-6 for i in range(4))
    for k, r in zip((1, 2, 3, 5, 12), results):
        P = r.plan.dense()
        assert int((P > 0).sum(0).max()) == r.max_nnz <= k
        assert float(r.col_err) < 1e-14
        assert float(r.row_err) == pytest.approx(float((P.sum(1) - a).abs().sum()))
        assert float(r.worst_row_err) == pytest.approx(float((P.sum(1) - a).abs().max()))
        assert float(r.value) == pytest.approx(float((P * C).sum() + P.square().sum() / 2))
        assert float(r.linear_value) == pytest.approx(float((P * C).sum()))


def test_without_ties_the_plan_is_feasible_and_the_gap_is_zero() -> None:
    C, a, b = toy()
    result = sparsity_constrained_ot(C, a, b, 6)
    assert result.n_tied_columns == 0
    assert float(result.row_err) < 1e-8
    assert float(result.value) == pytest.approx(float(result.dual_value), rel=1e-8)
    assert result.repaired is None


def test_ties_by_symmetry() -> None:
    # two columns, each equally near to both rows: with one entry a column every choice is optimal
    C, half = torch.zeros(2, 2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.warns(NotConvergedWarning, match=r"rows are violated by 1 in all.*2 of the columns are tied"):
        result = sparsity_constrained_ot(C, half, half, 1)
    assert result.n_tied_columns == 2
    assert float(result.dual_value) == pytest.approx(0.25)  # gamma / 2 sum b^2: the feasible optimum is the identity
    assert float(result.col_err) == 0


def test_row_variant_is_the_transposed_problem() -> None:
    C, a, b = toy()
    rows, columns = quiet(C, a, b, 6, axis="rows"), quiet(C.T, b, a, 6)
    torch.testing.assert_close(rows.plan.dense(), columns.plan.dense().T, rtol=0, atol=1e-7)
    assert float(rows.row_err) < 1e-14
    assert float(rows.dual_value) == pytest.approx(float(columns.dual_value), rel=1e-9)
    assert rows.max_nnz == columns.max_nnz


def test_gradients_are_plan_and_potentials() -> None:
    C, a, b = (t.requires_grad_() for t in toy(6, 5))
    result = sparsity_constrained_ot(C, a, b, 4, 0.3)
    dC, da, db = torch.autograd.grad(result.value, (C, a, b))
    torch.testing.assert_close(dC, result.plan.dense())
    torch.testing.assert_close(da, result.f)
    torch.testing.assert_close(db, result.g)
    fixed = [t.detach() for t in (C, a, b)]
    for which in (0, 1, 2):
        step = torch.zeros_like(fixed[which])
        step.view(-1)[0], step.view(-1)[1] = 1e-4, -1e-4
        up, down = (
            float(quiet(*(t + s * step if i == which else t for i, t in enumerate(fixed)), 4, 0.3).value)
            for s in (1, -1)
        )
        slope = float(((dC, da, db)[which] * step).sum())
        assert (up - down) / 2 == pytest.approx(slope, abs=1e-9)


def test_potential_of_a_column_is_minus_gamma_times_its_threshold() -> None:
    C, a, b = toy()
    r = sparsity_constrained_ot(C, a, b, 6, 0.5)
    s = r.f[:, None] - C
    t = topk_simplex_projection(s / 0.5, 6, b, dim=0)
    torch.testing.assert_close(t, r.plan.dense(), rtol=0, atol=1e-12)
    entry = t > 0
    torch.testing.assert_close((s + r.g - 0.5 * t)[entry], torch.zeros_like(t)[entry], rtol=0, atol=1e-12)


# -- options --------------------------------------------------------------------------------------------------


def test_repair_gives_a_feasible_plan_that_brackets_the_optimum() -> None:
    g = torch.Generator().manual_seed(1)
    n = 6
    C = torch.rand(n, n, generator=g, dtype=torch.float64)
    u = torch.full((n,), 1 / n, dtype=torch.float64)
    for k in (2, 3):
        result = quiet(C, u, u, k, 0.05, repair="restricted", max_iter=2000)
        assert isinstance(result.repaired, bool)
        if result.repaired:
            assert max(float(result.row_err), float(result.col_err)) < 1e-7
            assert result.max_nnz <= k
            assert float(result.value) >= float(result.dual_value) - 1e-9
    assert result.repaired


def test_repair_reports_what_it_cannot_mend() -> None:
    C, half = torch.zeros(2, 2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.warns(NotConvergedWarning, match="The support holds no feasible plan to repair it with"):
        result = sparsity_constrained_ot(C, half, half, 1, repair="restricted")
    assert result.repaired is False
    assert result.max_nnz == 1


def test_a_constraint_set_that_is_empty() -> None:
    with (
        pytest.warns(
            InfeasibleWarning,
            match=r"k = 1: 2 columns with mass have at most 2 non-zeros, too few for 4 rows with mass: no plan has "
            r"these marginals\. Raise k to at least 2\.",
        ),
        pytest.warns(NotConvergedWarning),
    ):
        sparsity_constrained_ot(torch.rand(4, 2), None, None, 1)
    with (
        pytest.warns(InfeasibleWarning, match=r"2 rows with mass have at most 2 non-zeros, too few for 4 columns"),
        pytest.warns(NotConvergedWarning, match="columns are violated"),
    ):
        sparsity_constrained_ot(torch.rand(2, 4), None, None, 1, axis="rows")


def test_zero_masses_warm_starts_and_kinds() -> None:
    C, a, b = toy()
    a[2], b[4] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    first = sparsity_constrained_ot(C, a, b, 6)
    P = first.plan.dense()
    assert (P[:, 4] == 0).all()
    assert float(P[2].sum()) < 1e-8
    assert torch.isfinite(first.g).all()
    again = sparsity_constrained_ot(C, a, b, 6, f0=first.f)
    assert again.n_iter < first.n_iter
    single = quiet(C.float(), a.float(), b.float(), 6)
    assert single.value.dtype == single.f.dtype == single.plan.dense().dtype == torch.float32
    array = sparsity_constrained_ot(C.numpy(), a.numpy(), b.numpy(), 6)
    assert isinstance(array.f, np.ndarray)
    np.testing.assert_allclose(array.plan.dense(), P, atol=1e-7)
    assert "max_nnz=" in repr(array)
    batch = quiet(torch.stack([C, C]), a, b, 6)
    assert batch.value.shape == (2,)
    assert batch.n_tied_columns == [0, 0]
    assert "batch (2,)" in repr(batch)


def test_adam() -> None:
    C, a, b = toy()
    adam = quiet(C, a, b, 12, solver="adam", max_iter=1500)
    assert float(adam.dual_value) == pytest.approx(float(quiet(C, a, b, 12).dual_value), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: expected an integer >= 1, the non-zeros allowed in each vector, got 0."),
        ({"k": 2.0}, "k: expected an integer >= 1, the non-zeros allowed in each vector, got 2.0."),
        ({"a": torch.tensor([-0.5, 1.5])}, "a: expected nonnegative weights, got a minimum of -0.5."),
        ({"b": torch.tensor([torch.nan, 1.0])}, "b: expected finite weights, got NaN or infinity."),
        (
            {"b": torch.tensor([1.0, 1.0])},
            "a and b: expected equal total masses (to 1e-6), got 1 and 2. Normalise both: a / a.sum(), b / b.sum().",
        ),
        (
            {"C": torch.tensor([[torch.nan, 1.0], [1.0, 1.0]])},
            "cost matrix: expected finite entries, got NaN or infinity. "
            "Replace forbidden pairs by a large finite cost.",
        ),
        (
            {"gamma": 0.0},
            "gamma: expected a positive finite number, got 0.0. For gamma = 0 leave the regularizer out.",
        ),
        ({"axis": "both"}, "axis: expected 'columns' or 'rows', got 'both'."),
        ({"formulation": "primal"}, "formulation: expected 'semidual' or 'dual', got 'primal'."),
        ({"solver": "sgd"}, "solver: expected 'lbfgs', 'adam' or a Method, got 'sgd'."),
        ({"repair": "dense"}, "repair: expected None or 'restricted', got 'dense'."),
        ({"f0": torch.ones(3)}, "dual-ascent start f: expected last axis of length 2, got shape (3,)."),
        ({"tol": 0.0}, "tol: expected a finite number > 0, got 0.0."),
        (
            {"C": torch.ones(2, 2, 2), "repair": "restricted"},
            "repair: expected one problem, got batch (2,). Repair the problems one by one.",
        ),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    half = torch.tensor([0.5, 0.5])
    arguments = {"C": torch.eye(2), "a": half, "b": half, "k": 2, **change}
    with pytest.raises(InvalidInput) as caught:
        sparsity_constrained_ot(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_masses_that_differ_by_rounding_are_made_equal() -> None:
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    result = sparsity_constrained_ot(torch.eye(2, dtype=torch.float64), half, half * (1 + 5e-7), 2)
    assert float(result.col_err) < 1e-15


# -- the router -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["expert_choice", "token_choice"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_router_shapes_bounds_and_metrics(variant: str, factor: float) -> None:
    torch.manual_seed(0)
    router = SparseOTRouter(8, 4, factor, variant)
    x = torch.randn(3, 30, 8)
    mask, combine, metrics = router(x)
    assert mask.shape == combine.shape == (3, 30, 4)
    assert mask.dtype == torch.bool
    assert combine.dtype == torch.float32
    gates = router.gate(x).softmax(-1)
    torch.testing.assert_close(combine, gates * mask)
    capacity = router.capacity(30)
    assert capacity == {0.5: 4, 1.0: 8, 1.25: 12}[factor]
    torch.testing.assert_close(metrics["load"], mask.sum(1))
    assert int(metrics["load"].max()) <= capacity
    torch.testing.assert_close(metrics["uncovered"], (mask.sum(-1) == 0).float().mean(-1))
    assert metrics["row_error"].shape == metrics["worst_row_error"].shape == (3,)
    assert (metrics["worst_row_error"] >= metrics["row_error"]).all()
    if variant == "token_choice":
        assert int(mask.sum(-1).max()) <= 1


def test_router_gradients_flow_through_the_gates_only() -> None:
    torch.manual_seed(0)
    router = SparseOTRouter(8, 4).double()
    x = torch.randn(1, 16, 8, dtype=torch.float64, requires_grad=True)
    mask, combine, metrics = router(x)
    weights = torch.randn_like(combine)
    (gradient,) = torch.autograd.grad((combine * weights).sum(), router.gate.weight)
    expected = torch.autograd.grad((router.gate(x).softmax(-1) * mask * weights).sum(), router.gate.weight)[0]
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().sum() > 0
    assert not router.plan(router.gate(x).softmax(-1)).requires_grad
    assert not any(m.requires_grad for m in metrics.values() if m.is_floating_point())


def test_more_inner_steps_cover_more_tokens() -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(4, 64, 16), dim=-1)
    few, many = (SparseOTRouter(16, 8, inner_steps=s) for s in (1, 100))
    with torch.no_grad():
        few.gate.weight.normal_()
        many.gate.weight.copy_(few.gate.weight)
    assert float(many(x)[2]["uncovered"].mean()) <= float(few(x)[2]["uncovered"].mean())
    assert float(many(x)[2]["row_error"].mean()) < float(few(x)[2]["row_error"].mean())


def test_router_capacity_and_selection() -> None:
    router = SparseOTRouter(4, 8, 1.25, "token_choice", n_selected=2, multiple=1)
    assert router.capacity(64) == 20
    assert router.capacity(1) == 1
    mask, _, _ = router(torch.randn(1, 64, 4))
    assert int(mask.sum(-1).max()) <= 2
    assert "token_choice, capacity_factor=1.25" in repr(router)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim: expected a positive integer, got 0."),
        ({"n_experts": 2.5}, "n_experts: expected a positive integer, got 2.5."),
        ({"capacity_factor": 0.0}, "capacity_factor: expected a positive finite number, got 0.0."),
        ({"variant": "both"}, "variant: expected 'expert_choice' or 'token_choice', got 'both'."),
        ({"inner_steps": 0}, "inner_steps: expected a positive integer, got 0."),
        ({"inner_lr": 0.0}, "lr: expected a finite number > 0, got 0.0."),
        (
            {"gamma": -1.0},
            "gamma: expected a positive finite number, got -1.0. For gamma = 0 leave the regularizer out.",
        ),
        ({"n_selected": 5}, "n_selected: expected an integer from 1 to n_experts = 4, got 5."),
    ],
)
def test_bad_router(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        SparseOTRouter(**{"dim": 8, "n_experts": 4, **arguments})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_bad_tokens() -> None:
    with pytest.raises(InvalidInput, match=r"x: expected shape \(G, N, 8\), nothing empty, got shape \(16, 8\)"):
        SparseOTRouter(8, 4)(torch.randn(16, 8))
