r"""Sparsity-constrained optimal transport: plans with at most k non-zeros in each column (or row).

    min <T, C> + gamma/2 ||T||^2   over T >= 0 with T1 = a, T^T 1 = b and at most k non-zeros in each column

k goes from unregularised transport (k = 1: its value is that of exact transport plus gamma/2 ||b||^2) to quadratically
regularised transport (k = number of rows). The dual is concave for every k and is what is solved. Columns and the
bound k then hold exactly. Rows hold where no column is tied at the optimum, that is where its k-th and (k+1)-th best
rows differ; with ties, which are the rule when k is small and masses are generic, rows are violated by an amount that
no solver can remove, and `row_err` and `n_tied_columns` say so.

Where the published code of the router prepares the k entries of a column, its maximum is <p, p - 1> and that of the
colour transfer <p, p>: a constant shift, since p sums to one. We follow the paper.

Reference: Liu, Puigcerver & Blondel (2023), Sparsity-constrained optimal transport, arXiv 2209.15466.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..._inputs import float_tensor, kind_of, weights_tensor
from ...errors import InfeasibleWarning, NotConvergedWarning, refuse
from ...geometry import CostMatrix
from ...plan import Plan, SparsePlan
from ...problem import Problem
from ...projections import check_k, topk_simplex_projection
from ...regularizers import SquaredNorm
from ...solution import Solution, Status
from ...solvers import LBFGS, Adam, DualAscent, Method, NetworkSimplex, run

__all__ = ["SparseOTResult", "SparseOTRouter", "sparsity_constrained_ot", "topk_simplex_projection"]

_SAME_MASS = 1e-6  # relative
_METHODS = {"lbfgs": LBFGS(), "adam": Adam()}


@dataclass(frozen=True, repr=False)
class SparseOTResult:
    """A sparse plan and how good it is; batches have leading axes.

    Attributes:
        plan: (*batch, m, n), an operator; `plan.dense()` is the matrix, `plan.sparse()` its entries.
        f, g: (*batch, m) and (*batch, n), the dual potentials.
        value: <T, C> + gamma/2 ||T||^2 of the plan; differentiable in C, a and b (with gradients T, f and g).
        linear_value: <T, C>. With violated rows it may lie below the cost of exact transport.
        dual_value: of the potentials: a lower bound of the optimum with at most k non-zeros. Without ties the two are
            equal; after a repair [dual_value, value] holds that optimum.
        row_err, col_err: sum of the absolute errors of the row sums and of the column sums.
        worst_row_err, worst_col_err: their largest absolute errors.
        max_nnz: the most non-zeros in a column (row, for axis="rows").
        n_tied_columns: columns (rows) of which the k-th and (k+1)-th best entries are equal.
        n_iter: iterations.
        repaired: None if no repair was asked for, else whether there was a feasible plan on the support.
        solution: the answer in full, with status, statistics and the certificate of the unregularised problem.
    """

    plan: Plan
    f: Any
    g: Any
    value: Any
    linear_value: Any
    dual_value: Any
    row_err: Any
    col_err: Any
    worst_row_err: Any
    worst_col_err: Any
    max_nnz: int
    n_tied_columns: int | list[Any]
    n_iter: int
    repaired: bool | None
    solution: Solution

    @property
    def status(self) -> Status:
        """How the ascent ended; for a batch the worst one."""
        return self.solution.status

    def __repr__(self) -> str:
        def show(value: Any) -> str:
            return f"{float(value):.6g}" if value.ndim == 0 else f"batch {tuple(value.shape)}"

        return (
            f"SparseOTResult(value={show(self.value)}, dual_value={show(self.dual_value)}, max_nnz={self.max_nnz}, "
            f"row_err={show(self.row_err)}, status={self.status.name})"
        )


def sparsity_constrained_ot(
    C: Any,  # (*batch, m, n)
    a: Any,  # (*batch, m)
    b: Any,  # (*batch, n)
    k: int,
    gamma: float = 1.0,
    *,
    axis: str = "columns",
    formulation: str = "semidual",
    solver: str | Method = "lbfgs",
    max_iter: int = 1000,
    tol: float = 1e-9,
    f0: Any = None,
    repair: str | None = None,
) -> SparseOTResult:
    r"""Transport with at most k non-zeros in each column (or row) of the plan.

    Climbs the dual or the semi-dual

        <a, f> + <b, g> - sum_j Omega+*(f + g_j - c_j),        <a, f> - sum_j Omega_bj*(f - c_j)

    and reads the plan off it: t_j is the projection of the k largest (f - c_j) / gamma onto the simplex of mass b_j.
    Columns are met exactly and have at most k non-zeros, always; see the module for what the rows do.

    Args:
        C: costs, finite. Tensors, NumPy arrays and pandas frames go in, and the answer comes back in kind.
        a, b: masses of equal total (to 1e-6), nonnegative; uniform when None. Columns without mass stay empty.
        k: non-zeros allowed, an integer >= 1. From m on this is quadratically regularised transport.
        gamma: strength, in cost units per unit of mass. Entries are projected after division by gamma b_j: large
            gamma b_j makes the k weights of a column nearly equal.
        axis: what k counts along; "rows" solves the transposed problem: rows are then exact, columns are not.
        formulation: "semidual" or "dual".
        solver: "lbfgs", "adam" (rate 1e-2), or a `Method`.
        max_iter: iterations.
        tol: marginal error relative to the mass; ends also when the dual value stagnates.
        f0: (*batch, m) potential to start from ((*batch, n), the other one, for axis="rows"); when None, larger k are
            solved first, which are smoother.
        repair: "restricted" keeps the support found, and solves quadratic transport on it if a feasible plan is there.

    Returns:
        A `SparseOTResult`.

    Raises:
        InvalidInput: k < 1 or no integer, NaN or infinite costs, negative, NaN or unequal masses, an unknown option.

    Warns:
        InfeasibleWarning: k is so small that no plan has these marginals.
        NotConvergedWarning: the tolerance was not met (ties, or max_iter).

    Complexity: O(m n log k) time for an iteration, a few cost matrices of memory, float64 throughout.

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 0.2, 1.0], [1.0, 0.3, 0.0]])
        >>> result = sparsity_constrained_ot(C, torch.tensor([0.5, 0.5]), torch.tensor([0.4, 0.2, 0.4]), k=2)
        >>> result.max_nnz, result.status.name
        (2, 'CONVERGED')
        >>> result.plan.dense()
        tensor([[0.4000, 0.1000, 0.0000],
                [0.0000, 0.1000, 0.4000]])
    """
    check_k(k)
    if axis not in ("columns", "rows"):
        refuse("axis", "'columns' or 'rows'", repr(axis))
    if repair not in (None, "restricted"):
        refuse("repair", "None or 'restricted'", repr(repair))
    if isinstance(solver, str) and solver not in _METHODS:
        refuse("solver", "'lbfgs', 'adam' or a Method", repr(solver))
    geometry = CostMatrix(C)
    kind = kind_of(C)
    a, b = _masses(a, b, geometry)
    problem = Problem.make(geometry, a, b, regularizer=SquaredNorm(gamma, k, axis))
    if repair and problem.batch_shape:
        refuse("repair", "one problem", f"batch {tuple(problem.batch_shape)}", "Repair the problems one by one.")
    _check_cover(problem, k, axis)
    start = None if f0 is None else float_tensor(f0, "f0").to(geometry.device)
    ascent = DualAscent(
        formulation=formulation,
        method=_METHODS[solver] if isinstance(solver, str) else solver,
        max_iter=max_iter,
        tol=tol,
        f=start if axis == "columns" else None,
        g=start if axis == "rows" else None,
    )
    solution = run(problem, ascent, kind=kind, warn=False)
    dual_value = solution.dual_value
    repaired = None
    if repair:
        restricted = _restricted(solution, ascent)
        repaired = restricted is not None
        solution = restricted or solution
    result = _result(solution, dual_value, repaired)
    _warn(result, axis)
    return result


def _masses(a: Any, b: Any, geometry: CostMatrix) -> tuple[Tensor, Tensor]:
    """Masses that differ by no more than 1e-6 are made equal."""
    m, n = geometry.shape
    a, b = weights_tensor(a, m, "a", geometry.cost), weights_tensor(b, n, "b", geometry.cost)
    mass_a, mass_b = (t.detach().double().sum(-1) for t in (a, b))
    mass_a, mass_b = torch.broadcast_tensors(mass_a, mass_b)
    off = (mass_a - mass_b).abs() / mass_a
    if bool((off > _SAME_MASS).any()):
        worst = int(off.argmax())
        refuse(
            "a and b",
            "equal total masses (to 1e-6)",
            f"{float(mass_a.flatten()[worst]):.9g} and {float(mass_b.flatten()[worst]):.9g}",
            "Normalise both: a / a.sum(), b / b.sum().",
        )
    return a, b * (mass_a / mass_b).to(b.dtype).unsqueeze(-1)


def _check_cover(problem: Problem, k: int, axis: str) -> None:
    """Each row with mass needs an entry; the columns with mass have k entries each."""
    lines, other = (problem.b, problem.a) if axis == "columns" else (problem.a, problem.b)
    have, need = (lines > 0).sum(-1), (other > 0).sum(-1)
    if bool((k * have < need).any()):
        worst = int((need - k * have).argmax())
        have_, need_ = int(have.flatten()[worst]), int(need.flatten()[worst])
        names = ("columns", "rows") if axis == "columns" else ("rows", "columns")
        warnings.warn(
            f"k = {k}: {have_} {names[0]} with mass have at most {k * have_} non-zeros, too few for {need_} {names[1]} "
            f"with mass: no plan has these marginals. Raise k to at least {math.ceil(need_ / have_)}.",
            InfeasibleWarning,
            stacklevel=3,
        )


def _restricted(solution: Solution, ascent: DualAscent) -> Solution | None:
    """Quadratic transport on the support of a plan, or None where no feasible plan lives on it."""
    problem, plan = solution.problem, solution.plan
    assert isinstance(plan, SparsePlan)
    assert isinstance(problem.regularizer, SquaredNorm)
    kept = plan.mass > 0
    rows, cols = plan.rows[kept], plan.cols[kept]
    with torch.no_grad():
        cost = problem.geometry.tile().double()
        off = torch.ones_like(cost, dtype=torch.bool)
        off[rows, cols] = False
        mass = problem.a.double().sum()
        feasible = run(Problem.make(CostMatrix(off.double()), *_doubled(problem)), NetworkSimplex(), warn=False)
        if not float(feasible.value) <= 1e-12 * float(mass):
            return None
        # off the support a cost above anything that potentials can gain along a path: an exact penalty
        gamma = problem.regularizer.gamma
        step = cost.max() - cost.min() + gamma * max(float(problem.a.max()), float(problem.b.max()))
        barrier = cost.max() + sum(cost.shape) * step
        walls = CostMatrix(torch.where(off, barrier, cost))
        inner = Problem.make(walls, *_doubled(problem), regularizer=replace(problem.regularizer, k=None))
        again = run(inner, replace(ascent, f=solution.f, g=solution.g, continuation=False), warn=False)
        entries = again.plan
        assert isinstance(entries, SparsePlan)
        if bool(off[entries.rows, entries.cols].any()):
            return None  # not converged: mass is still off the support
    repaired = SparsePlan(problem.geometry, entries.rows, entries.cols, entries.mass)
    stats = {
        **solution.stats,
        "n_iter": solution.stats["n_iter"] + again.stats["n_iter"],
        "seconds": solution.stats["seconds"] + again.stats["seconds"],
        "marginal_error": again.stats["marginal_error"],
    }
    return Solution(problem, repaired, again.f, again.g, statuses=again.statuses, stats=stats, kind=solution.kind)


def _doubled(problem: Problem) -> tuple[Tensor, Tensor]:
    a, b = problem.a.double(), problem.b.double()
    return a, b * (a.sum() / b.sum())


def _result(solution: Solution, dual_value: Any, repaired: bool | None) -> SparseOTResult:
    plan, problem, kind = solution.plan, solution.problem.detach(), solution.kind
    assert isinstance(plan, SparsePlan)
    assert isinstance(problem.regularizer, SquaredNorm)
    r, c = ((s - t.double()).abs() for s, t in ((plan.row_sums(), problem.a), (plan.col_sums(), problem.b)))
    by_column = problem.regularizer.axis == "columns"
    lines, size = (plan.cols, problem.shape[1]) if by_column else (plan.rows, problem.shape[0])
    counts = torch.zeros((*plan.batch_shape, size), dtype=torch.long, device=lines.device)
    counts.scatter_add_(-1, lines, (plan.mass > 0).long())

    def out(t: Tensor) -> Any:
        return kind.array(t.to(problem.a.dtype))

    return SparseOTResult(
        plan=plan,
        f=solution.potentials.f,
        g=solution.potentials.g,
        value=solution.value,
        linear_value=solution.linear_value,
        dual_value=dual_value,
        row_err=out(r.sum(-1)),
        col_err=out(c.sum(-1)),
        worst_row_err=out(r.amax(-1)),
        worst_col_err=out(c.amax(-1)),
        max_nnz=int(counts.max()),
        n_tied_columns=solution.stats["n_tied_columns"],
        n_iter=solution.stats["n_iter"],
        repaired=repaired,
        solution=solution,
    )


def _warn(result: SparseOTResult, axis: str) -> None:
    if result.status.ok and result.repaired is not False:
        return
    error, lines = (result.row_err, "columns") if axis == "columns" else (result.col_err, "rows")
    tied = torch.as_tensor(result.n_tied_columns)
    ascent = result.solution
    other = "rows" if lines == "columns" else "columns"
    text = (
        f"sparsity_constrained_ot: {other} are violated by {float(torch.as_tensor(error).max()):.3g} in all, after "
        f"{result.n_iter} iterations; {ascent.status.value}."
    )
    if int(tied.max()):
        text += f" {int(tied.max())} of the {lines} are tied: part of the error belongs to k, not to the solver."
    if result.repaired is False:
        text += " The support holds no feasible plan to repair it with."
    else:
        text += " Raise k, or use exact or quadratically regularised transport."
    warnings.warn(text, NotConvergedWarning, stacklevel=3)


class SparseOTRouter(nn.Module):
    r"""Route tokens to experts by sparsity-constrained transport: balanced, with a hard bound on every expert's load.

    Gates S = softmax(x W) over the experts; for each group of tokens a few Adam steps on the semi-dual with cost -S,
    mass 1 for each token and N/E for each expert. With "expert_choice" the columns are experts and k is their
    capacity; with "token_choice" tokens spread over `n_selected` experts, which keep the `capacity` heaviest.
    Where the plan has mass, tokens are dispatched, and combined with weights S: gradients flow through the gates,
    never through the solver. No auxiliary loss.

    Args:
        dim: features D of a token.
        n_experts: E.
        capacity_factor: the capacity of an expert is ceil(capacity_factor N / E), times `n_selected`.
        variant: "expert_choice" or "token_choice".
        inner_steps: Adam steps of the solver, each O(N E log k).
        inner_lr: their rate, in units of the gates.
        gamma: of the transport. Entries are divided by gamma N/E before the projection, which makes plans nearly
            uniform on their support; this does not touch the weights.
        n_selected: experts a token may go to, for "token_choice".
        multiple: capacities are rounded up to a multiple of this.

    Attributes:
        gate: the linear map W, without bias.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> mask, combine, metrics = SparseOTRouter(16, 4)(torch.randn(2, 32, 16))
        >>> mask.shape, int(mask.sum(1).max())
        (torch.Size([2, 32, 4]), 8)
    """

    def __init__(
        self,
        dim: int,
        n_experts: int,
        capacity_factor: float = 1.0,
        variant: str = "expert_choice",
        inner_steps: int = 20,
        inner_lr: float = 1e-2,
        gamma: float = 1.0,
        *,
        n_selected: int = 1,
        multiple: int = 4,
    ) -> None:
        super().__init__()
        counts = {"dim": dim, "n_experts": n_experts, "inner_steps": inner_steps, "multiple": multiple}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                refuse(name, "a positive integer", repr(count))
        if not (isinstance(capacity_factor, int | float) and 0 < capacity_factor < math.inf):
            refuse("capacity_factor", "a positive finite number", repr(capacity_factor))
        if variant not in ("expert_choice", "token_choice"):
            refuse("variant", "'expert_choice' or 'token_choice'", repr(variant))
        if not (isinstance(n_selected, int) and 1 <= n_selected <= n_experts):
            refuse("n_selected", f"an integer from 1 to n_experts = {n_experts}", repr(n_selected))
        self.gate = nn.Linear(dim, n_experts, bias=False)
        self.n_experts, self.capacity_factor, self.variant = n_experts, capacity_factor, variant
        self.n_selected = n_selected if variant == "token_choice" else 1
        self.gamma, self.multiple = gamma, multiple
        self.solver = DualAscent(
            method=Adam(inner_lr), max_iter=inner_steps, continuation=False, tol=1e-6, dtype=torch.float32
        )
        SquaredNorm(gamma)  # refuses a bad gamma here and not in the first batch

    def capacity(self, n_tokens: int) -> int:
        """The most tokens of a group of `n_tokens` that one expert takes."""
        exact = self.capacity_factor * n_tokens * self.n_selected / self.n_experts
        rounded = math.ceil(exact / self.multiple - 1e-9) * self.multiple
        return max(1, min(rounded, n_tokens))

    def plan(
        self,
        gates: Tensor,  # (G, N, E)
    ) -> Tensor:  # (G, N, E)
        """The transport plan of the gates, with at most `capacity` tokens an expert; carries no gradient."""
        groups, n, e = gates.shape
        by_expert = self.variant == "expert_choice"
        omega = SquaredNorm(self.gamma, self.capacity(n) if by_expert else self.n_selected, "columns")
        cost = -gates.detach().to(self.solver.dtype)
        if not by_expert:
            omega = omega.T
        ones = cost.new_ones
        problem = Problem.make(CostMatrix(cost), ones(groups, n), ones(groups, e) * (n / e), regularizer=omega)
        with torch.no_grad():
            state = self.solver.init(problem)
            for _ in range(self.solver.max_iter):
                state = self.solver.step(problem, state)
                if self.solver.terminate(problem, state) is not None:
                    break
            plan = self.solver.finish(problem, state).plan.dense()
            if by_expert:
                return plan
            kept, tokens = plan.topk(self.capacity(n), 1)
            return torch.zeros_like(plan).scatter(1, tokens, kept)

    def forward(
        self,
        x: Tensor,  # (G, N, D)
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Route groups of tokens.

        Returns:
            the dispatch mask (G, N, E), the combine weights (G, N, E), and metrics: "load" (G, E), tokens an expert
            gets; "uncovered" (G,), the share of tokens that no expert takes; "row_error" and "worst_row_error" (G,),
            mean and largest violation of the tokens' masses by the plan.
        """
        if x.dim() != 3 or x.shape[-1] != self.gate.in_features or 0 in x.shape:
            refuse("x", f"shape (G, N, {self.gate.in_features}), nothing empty", f"shape {tuple(x.shape)}")
        gates = self.gate(x).softmax(-1)
        plan = self.plan(gates)
        mask = plan > 0
        violation = (plan.sum(-1) - 1).abs()
        metrics = {
            "load": mask.sum(1),
            "uncovered": (~mask.any(-1)).to(plan.dtype).mean(-1),
            "row_error": violation.mean(-1),
            "worst_row_error": violation.amax(-1),
        }
        return mask, gates * mask, metrics

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.variant}, capacity_factor={self.capacity_factor}, inner_steps={self.solver.max_iter}"
