"""The hard grid: every solver on data made to break it, and nothing may go wrong in silence.

Data x dtype x epsilon (from ten times the largest cost down to a millionth of it) x solver. Numbers stay finite; the
certificate encloses the optimum whether the solver converged or not; a solver that did not converge says so in its
status and in a warning; and what calls itself converged is recomputed in dense float64 NumPy, from the potentials
alone, with sums and transforms of its own.

A tolerance is held to up to the rounding of the exponents in the dtype that the solver works in, an ulp of the largest
potential over epsilon: in float32 at a millionth of the largest cost that is a tenth.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

import brenier
from brenier import KL, CostMatrix, Exact, NotConvergedWarning, PerformanceWarning, PointCloud, Solution
from problems import array, kl, lp_value, rng

SIZES = (9, 12)
SMALL = 12  # both sides up to here: the exact optimum is computed by SciPy
EPSILONS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # x the largest cost
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TOL = {torch.float64: 1e-6, torch.float32: 1e-4}  # what Sinkhorn promises by default
NEWTON_TOL = 1e-10
MAX_ITER = {"sinkhorn": 250, "sns": 60, "newton": 60}  # enough for most; the others must say so


@dataclass(frozen=True)
class Data:
    """One problem: a cost matrix, or clouds and the name of a cost; and masses."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    matrix: np.ndarray | None = None
    x: np.ndarray | None = None
    y: np.ndarray | None = None
    cost: str = "sqeuclidean"


def _clouds(seed: int, n: int = SIZES[0], m: int = SIZES[1], d: int = 2) -> tuple[np.ndarray, np.ndarray]:
    r = rng(seed)
    return r.normal(size=(n, d)), r.normal(size=(m, d)) + 0.5


def _masses(seed: int, n: int, *, zeros: int = 0, faint: int = 0, total: float = 1.0) -> np.ndarray:
    out = rng(seed).dirichlet(np.ones(n))
    out[:zeros] = 0
    out[zeros : zeros + faint] = 1e-300
    return out / out.sum() * total


def _moved(scale: float = 1.0, origin: float = 0.0, cost: str = "sqeuclidean", n: int = 9, m: int = 12) -> Data:
    x, y = _clouds(100, n, m)
    return Data(x=scale * x + origin, y=scale * y + origin, cost=cost)


def _weighted(**kind: Any) -> Data:
    x, y = _clouds(101)
    return Data(_masses(102, 9, **kind), _masses(103, 12, **kind), x=x, y=y)


def _one_heavy() -> Data:
    x, y = _clouds(104)
    return Data(np.eye(9)[4], np.eye(12)[7], x=x, y=y)


def _spread() -> Data:
    x, y = _clouds(114)
    a, b = 10.0 ** -np.linspace(0, 30, 9), 10.0 ** -np.linspace(0, 30, 12)
    return Data(a / a.sum(), b[::-1] / b.sum(), x=x, y=y)


def _equal(n: int) -> Data:
    x, _ = _clouds(105, n, n)
    return Data(x=x, y=x.copy())


def _duplicates() -> Data:
    x, y = _clouds(106, 3, 4)
    return Data(x=np.repeat(x, 4, 0), y=np.concatenate([np.repeat(y, 2, 0), x]))


def _lonely(n: int, m: int) -> Data:
    x, y = _clouds(107, n, m)
    return Data(_masses(108, n), _masses(109, m), x=x, y=y)


def _islands() -> Data:
    """Two clusters a million cluster sizes apart, whose masses do not match: a little must cross."""
    x, y = _clouds(110, 10, 10)
    x[5:] += 1e6
    y[4:] += 1e6
    return Data(x=x, y=y)


def _matrix(make: Callable[[np.random.Generator], np.ndarray]) -> Data:
    r = rng(111)
    return Data(matrix=make(r))


DATA: dict[str, Callable[[], Data]] = {
    "plain": lambda: _moved(),
    "euclidean": lambda: _moved(cost="euclidean"),
    "cosine": lambda: _moved(cost="cosine"),
    "dot": lambda: _moved(cost="dot"),
    "on the line": lambda: Data(x=_clouds(112, d=1)[0], y=_clouds(112, d=1)[1], a=_masses(113, 9)),
    "40 x 60": lambda: _moved(n=40, m=60),
    "1e8 x data": lambda: _moved(1e8),
    "1e-8 x data": lambda: _moved(1e-8),
    "1e8 x data, euclidean": lambda: _moved(1e8, cost="euclidean"),
    "1e15 x data": lambda: _moved(1e15),
    "1e-18 x data": lambda: _moved(1e-18),
    "far origin": lambda: _moved(origin=1e6),
    "far origin, euclidean": lambda: _moved(origin=1e6, cost="euclidean"),
    "far origin, cityblock": lambda: _moved(origin=1e6, cost="cityblock"),
    "zero weights": lambda: _weighted(zeros=3),
    "weights of 1e-300": lambda: _weighted(faint=3),
    "zero and 1e-300 weights": lambda: _weighted(zeros=2, faint=2),
    "masses of 1e-6": lambda: _weighted(total=1e-6),
    "masses of 1e6": lambda: _weighted(total=1e6),
    "masses of 1e-30": lambda: _weighted(total=1e-30),
    "masses of 1e15": lambda: _weighted(total=1e15),
    "masses over 30 decades": lambda: _spread(),
    "all mass on one point": _one_heavy,
    "equal clouds": lambda: _equal(12),
    "duplicates": _duplicates,
    "all points equal": lambda: Data(x=np.ones((5, 2)), y=np.ones((7, 2))),
    "one point each": lambda: _lonely(1, 1),
    "one source": lambda: _lonely(1, 12),
    "one target": lambda: _lonely(9, 1),
    "islands": _islands,
    "assignment": lambda: _matrix(lambda r: r.uniform(size=(12, 12))),
    "huge range": lambda: _matrix(lambda r: 10.0 ** r.uniform(-8, 8, size=(9, 12))),
    "huge range, signed": lambda: _matrix(lambda r: r.choice([-1, 1], (9, 12)) * 10.0 ** r.uniform(-6, 6, (9, 12))),
    "one huge entry": lambda: _matrix(lambda r: r.uniform(size=(8, 8)) + 1e12 * np.eye(8)),
    "constant cost": lambda: _matrix(lambda r: np.full((9, 12), 3.7)),
    "zero cost": lambda: _matrix(lambda r: np.zeros((9, 12))),
    "negative cost": lambda: _matrix(lambda r: -5 - r.uniform(size=(9, 12))),
    "large offset": lambda: _matrix(lambda r: 1e6 + r.uniform(size=(9, 12))),
    "integer ties": lambda: _matrix(lambda r: r.integers(0, 3, size=(12, 12)).astype(float)),
}


@dataclass(frozen=True)
class Dense:
    """The same problem as the library must see it: the inputs rounded to their dtype, then float64 throughout."""

    cost: np.ndarray
    a: np.ndarray
    b: np.ndarray
    size: float  # the largest cost
    optimum: float | None = field(repr=False)  # of the unregularised problem, where it is small
    given: dict[str, Any] = field(repr=False)  # what goes into solve


@cache
def dense(name: str, dtype_name: str) -> Dense:
    data, dtype = DATA[name](), DTYPES[dtype_name]

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    given: dict[str, Any] = {}
    if data.matrix is not None:
        given["x"] = CostMatrix(tensor(data.matrix))
        cost = array(given["x"].cost)
    else:
        assert data.x is not None
        assert data.y is not None
        given |= {"x": tensor(data.x), "y": tensor(data.y), "cost": data.cost}
        x, y = array(given["x"]), array(given["y"])
        cost = -x @ y.T if data.cost == "dot" else cdist(x, y, data.cost)
    n, m = cost.shape
    weights = [np.full(k, 1 / k) if w is None else w for w, k in ((data.a, n), (data.b, m))]
    given |= {k: tensor(w) for k, w, w0 in zip("ab", weights, (data.a, data.b)) if w0 is not None}
    problem = brenier.Problem.make(given["x"] if data.matrix is not None else PointCloud(given["x"], given["y"]),
                                   given.get("a"), given.get("b"))  # fmt: skip
    # the masses as the library keeps them, which must be those given up to the rounding of their dtype
    a, b = array(problem.a), array(problem.b)
    for kept, asked in zip((a, b), weights):
        assert np.abs(kept - asked).sum() <= 8 * torch.finfo(dtype).eps * asked.sum()
    b = b * (a.sum() / b.sum())
    optimum = None
    if max(n, m) <= SMALL:
        optimum = lp_value(cost, a, b)
        if data.a is data.b is None and n == m:
            pairs = linear_sum_assignment(cost)
            assigned = float(cost[pairs].mean() * a.sum())
            assert abs(assigned - optimum) <= 1e-9 * max(np.abs(cost).max(), 1e-300)
            optimum = assigned
    return Dense(cost, a, b, float(np.abs(cost).max()) or 1.0, optimum, given)


@dataclass(frozen=True)
class Instance:
    data: str
    dtype: str
    solver: str
    epsilon: float | None = None  # x the largest cost
    rho: tuple[float | None, float | None] = (None, None)  # x the largest cost; None is exact

    def __str__(self) -> str:
        parts = [self.data, self.dtype, self.solver, *([f"{self.epsilon:g}"] if self.epsilon else [])]
        return "-".join(parts) + ("" if self.rho == (None, None) else f"-KL{self.rho}")


# Costs far below zero and a tiny rho: the mass that is optimal without epsilon, about exp(max|C| / 2 rho), and with it
# the bounds, are beyond the range of the dtype. They may be infinite then, never NaN.
BEYOND = ("dot", "huge range, signed", "negative cost")
BEYOND_RHO = (1e-3, 1e-3)
SOFT = [((1.0, 1.0), 1.0), (BEYOND_RHO, 1e-2), ((1e3, 1e3), 1e-1), ((1e-2, None), 1e-2), ((None, 1.0), 1e-4)]
GRID = [
    *(Instance(*c) for c in itertools.product(DATA, DTYPES, ("auto", "network-simplex"))),
    *(Instance(*c) for c in itertools.product(DATA, DTYPES, ("sinkhorn", "sns"), EPSILONS)),
    *(Instance(*c) for c in itertools.product(DATA, ["float64"], ["newton"], EPSILONS)),  # float64 inside, as sns
    *(Instance(d, t, "sinkhorn", e, r) for d, t, (r, e) in itertools.product(DATA, DTYPES, SOFT)),
]


def test_the_grid_is_large() -> None:
    assert len(GRID) >= 500
    assert len({str(i) for i in GRID}) == len(GRID)


def solved(i: Instance) -> tuple[Solution, Dense]:
    """The solution; whether a warning was given must be what its status says, and there must be no other."""
    p = dense(i.data, i.dtype)
    marginals = tuple(Exact() if r is None else KL(r * p.size) for r in i.rho)
    more: dict[str, Any] = {}
    if i.epsilon is not None:
        more = {"epsilon": i.epsilon * p.size, "max_iter": MAX_ITER[i.solver]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = brenier.solve(**p.given, solver=i.solver, marginals=marginals, **more)
    kinds = [w.category for w in caught if w.category is not PerformanceWarning]  # there may be no compiler
    expected = [] if solution.status.ok else [NotConvergedWarning]
    assert kinds == expected, f"{solution.status}, but the warnings were {[str(w.message) for w in caught]}"
    return solution, p


def _epsilon(i: Instance, p: Dense) -> float:
    """In cost units, rounded as the library rounds it."""
    assert i.epsilon is not None
    return float(torch.tensor(i.epsilon * p.size, dtype=DTYPES[i.dtype]))


def _noise(solution: Solution, p: Dense, i: Instance) -> float:
    """What rounding alone does to the entries of a plan, relatively: an ulp of the potentials over epsilon."""
    unit = float(torch.finfo(solution.f.dtype).eps)
    size = max(p.size, np.abs(array(solution.f)).max(), np.abs(array(solution.g)).max())
    logs = max(np.abs(np.log(w[w > 0])).max() for w in (p.a, p.b))  # potentials absorb epsilon times these
    return 4 * unit * (size / _epsilon(i, p) + logs)


def gibbs(p: Dense, f: np.ndarray, g: np.ndarray, epsilon: float) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(np.log(p.a)[:, None] + np.log(p.b) + (f[:, None] + g - p.cost) / epsilon)


def transforms(p: Dense, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Feasible potentials: two hard c-transforms over the points that have mass."""
    f = (p.cost - g)[:, p.b > 0].min(1)
    return f, (p.cost - f[:, None])[p.a > 0].min(0)


def rounded(P: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A feasible plan near P (Altschuler, Weed & Rigollet 2017)."""
    P = P * np.minimum(1, np.divide(a, P.sum(1), out=np.ones_like(a), where=P.sum(1) > 0))[:, None]
    P = P * np.minimum(1, np.divide(b, P.sum(0), out=np.ones_like(b), where=P.sum(0) > 0))
    left, right = (a - P.sum(1)).clip(min=0), (b - P.sum(0)).clip(min=0)
    return P + np.outer(left, right) / right.sum() if right.sum() > 0 else P


def check_finite(solution: Solution, i: Instance) -> None:
    f, g = solution.potentials
    beyond = i.rho == BEYOND_RHO and i.data in BEYOND
    finite = (lambda t: ~np.isnan(t)) if beyond else np.isfinite
    for what in ("value", "linear_value", "dual_value"):
        assert finite(array(getattr(solution, what))), f"{what} is {getattr(solution, what)}"
    for what, t in (("f", f), ("g", g), ("plan", solution.plan.dense())):
        assert np.isfinite(array(t)).all(), f"{what} is not finite"
    certificate = solution.certificate
    for what in ("primal", "dual", "gap", "relative_gap", "scale"):
        assert finite(array(getattr(certificate, what))), f"certificate.{what} is not finite"


def check_certificate(solution: Solution, p: Dense, i: Instance) -> None:
    """The optimum lies between the bounds, and the bounds are those of the potentials."""
    certificate = solution.certificate
    primal, dual = float(certificate.primal), float(certificate.dual)
    slack = 1e-9 * p.size * p.a.sum()
    assert dual <= primal + slack
    if p.optimum is not None:
        assert dual <= p.optimum + slack, f"dual {dual!r} above the optimum {p.optimum!r}"
        assert primal >= p.optimum - slack, f"primal {primal!r} below the optimum {p.optimum!r}"
    f, g = transforms(p, array(solution.g))
    own = p.a @ f + p.b @ g
    assert abs(own - dual) <= slack, f"dual {dual!r}, recomputed {own!r}"
    if i.epsilon is None:
        P, noise = array(solution.plan.dense()), float(torch.finfo(DTYPES[i.dtype]).eps)
    else:
        P, noise = gibbs(p, array(solution.f), array(solution.g), _epsilon(i, p)), _noise(solution, p, i)
    for told, got, want in zip(certificate.marginal_errors, (P.sum(1), P.sum(0)), (p.a, p.b)):
        error = np.abs(got - want).sum()
        assert abs(float(told) - error) <= (1e-9 + noise) * P.sum(), f"marginal error {told}, recomputed {error!r}"
    own = (rounded(P, p.a, p.b) * p.cost).sum()
    assert abs(own - primal) <= slack + noise * p.size * p.a.sum(), f"primal {primal!r}, recomputed {own!r}"


def check_entropic(solution: Solution, p: Dense, i: Instance) -> None:
    """What calls itself converged: marginals, values and bounds from the potentials, in float64."""
    dtype, epsilon, noise = DTYPES[i.dtype], _epsilon(i, p), _noise(solution, p, i)
    f, g, mass = array(solution.f), array(solution.g), p.a.sum()
    tol = TOL[dtype] if i.solver == "sinkhorn" else NEWTON_TOL
    rho = [None if r is None else r * p.size for r in i.rho]
    P = gibbs(p, f, g, epsilon)
    targets = [w if r is None else w * np.exp(-h / r) for w, r, h in zip((p.a, p.b), rho, (f, g))]
    for name, got, want in zip(("row", "column"), (P.sum(1), P.sum(0)), targets):
        error = np.abs(got - want).sum() / max(mass, P.sum())  # soft marginals may have more mass than the weights
        assert error <= 1.5 * tol + noise, f"{name} marginal off by {error:.3g}, promised {tol:.3g} (+ {noise:.3g})"
    shown = array(solution.plan.dense())
    assert np.abs(shown - P).sum() <= (1e-5 + noise) * max(mass, P.sum()), "the plan is not that of the potentials"
    # log(P / ab), where a quotient of small masses would underflow
    exponent = (f[:, None] + g - p.cost) / epsilon
    excess = P.sum() - p.a.sum() * p.b.sum()
    value = (P * p.cost).sum() + epsilon * ((P * exponent)[P > 0].sum() - excess)
    penalties = [0.0 if r is None else r * kl(s, w) for r, s, w in zip(rho, (P.sum(1), P.sum(0)), (p.a, p.b))]
    scale = (
        max(p.size, np.abs(f).max(), np.abs(g).max()) * mass
        + epsilon * (mass + p.a.sum() * p.b.sum() + P.sum())
        + sum(map(abs, penalties))
    )
    value += sum(penalties)
    got = float(solution.value)
    allowed = (10 * tol + noise + 10 * float(torch.finfo(dtype).eps)) * scale
    assert abs(got - value) <= allowed, f"value {got!r}, recomputed {value!r}"
    assert float(solution.dual_value) <= got + allowed, "dual value above the value"


def check_exact(solution: Solution, p: Dense, i: Instance) -> None:
    """The plan is feasible, the potentials are, and the two agree."""
    unit = float(torch.finfo(DTYPES[i.dtype]).eps)
    P, mass = array(solution.plan.dense()), p.a.sum()
    assert (P >= 0).all()
    for name, got, want in (("row", P.sum(1), p.a), ("column", P.sum(0), p.b)):
        error = np.abs(got - want).sum() / mass
        assert error <= 20 * unit, f"{name} marginal off by {error:.3g}"
    f, g = array(solution.f), array(solution.g)
    assert (f[:, None] + g - p.cost)[np.ix_(p.a > 0, p.b > 0)].max() <= 1e-12 * max(p.size, np.abs(f).max())
    scale = p.size * mass
    value = float(solution.value)
    assert abs(value - float(solution.certificate.primal)) <= 4 * unit * scale
    assert abs(value - (p.a @ f + p.b @ g)) <= (4 * unit + 1e-9) * scale
    if p.optimum is not None:
        assert abs(value - p.optimum) <= (4 * unit + 1e-9) * scale


@pytest.mark.parametrize("i", GRID, ids=str)
def test_hard(i: Instance) -> None:
    solution, p = solved(i)
    check_finite(solution, i)
    if i.rho == (None, None):
        check_certificate(solution, p, i)
    if not solution.status.ok:
        return
    if i.epsilon is None:
        check_exact(solution, p, i)
    else:
        check_entropic(solution, p, i)
