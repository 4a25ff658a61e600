"""What tests share: problems with known answers, hard inputs, dense float64 oracles, and comparisons.

Nothing here calls a kernel of brenier: the oracles are SciPy and plain NumPy, the known values closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import optimize, sparse
from scipy.sparse.csgraph import floyd_warshall
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, xlogy
from torch import Tensor

from brenier import Solution
from brenier.costs import Cost, GraphGeodesic, Lp, Mahalanobis

# ---------------------------------------------------------------------------------------------------------------
# Random parts


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cloud(n: int, d: int = 2, seed: int = 0, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(rng(seed).normal(size=(*batch, n, d))).to(dtype)


def weights(n: int, seed: int = 0, *batch: int, zeros: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Masses that add up to one; the last `zeros` of them are zero."""
    out = rng(seed).uniform(0.2, 1.0, size=(*batch, n))
    if zeros:
        out[..., -zeros:] = 0
    return torch.from_numpy(out / out.sum(-1, keepdims=True)).to(dtype)


# ---------------------------------------------------------------------------------------------------------------
# Known answers


@dataclass(frozen=True)
class Known:
    """Two clouds of n points with unit mass whose optimal cost (and map) for "sqeuclidean" is known."""

    name: str
    x: Tensor  # (n, d)
    y: Tensor  # (n, d), shuffled
    value: float
    moved: Tensor  # (n, d), where each x goes

    def __str__(self) -> str:
        return self.name


def _known(name: str, x: Tensor, moved: Tensor, seed: int, value: float | None = None) -> Known:
    y = moved[torch.from_numpy(rng(seed).permutation(len(x)))]
    value = float((x - moved).square().sum(-1).mean()) if value is None else value
    return Known(name, x, y, value, moved)


def equal_clouds(n: int = 12, d: int = 2, seed: int = 0) -> Known:
    x = cloud(n, d, seed)
    return _known("permutation", x, x, seed + 1, 0.0)


def translation(n: int = 12, d: int = 2, seed: int = 0) -> Known:
    """y = x + t: the value is ||t||^2, in any dimension."""
    x, t = cloud(n, d, seed), cloud(1, d, seed + 1)
    return _known("translation", x, x + 3 * t, seed + 2, 9 * float(t.square().sum()))


def gaussians(n: int = 15, d: int = 3, seed: int = 0) -> Known:
    """y = A x + t with A symmetric positive: the Bures formula, on the clouds' own means and covariances."""
    x = cloud(n, d, seed)
    root = rng(seed + 1).normal(size=(d, d))
    A = torch.from_numpy(root @ root.T / d + 0.3 * np.eye(d))
    moved = x @ A + cloud(1, d, seed + 2)
    return _known("gaussians", x, moved, seed + 3, bures(x.numpy(), moved.numpy()))


def bures(x: np.ndarray, y: np.ndarray) -> float:
    """||m_x - m_y||^2 + tr(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2)."""
    sx, sy = (np.atleast_2d(np.cov(z.T, bias=True)) for z in (x, y))
    values, vectors = np.linalg.eigh(sx)
    half = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(half @ sy @ half).clip(min=0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx) + np.trace(sy) - 2 * cross)


def convex_gradient(n: int = 14, d: int = 2, seed: int = 0) -> Known:
    """y = grad phi(x) with phi(x) = logsumexp(W x + s) + 0.1 ||x||^2, convex: the gradient map is optimal."""
    x, W, s = cloud(n, d, seed), 2 * cloud(6, d, seed + 1), cloud(6, 1, seed + 2).squeeze(-1)
    moved = torch.softmax(x @ W.T + s, -1) @ W + 0.2 * x
    return _known("convex gradient", x, moved, seed + 3)


KNOWN = [
    equal_clouds(),
    translation(),
    translation(20, 1, 3),
    gaussians(),
    gaussians(20, 1, 4),
    convex_gradient(),
    convex_gradient(18, 5, 7),
]


@dataclass(frozen=True)
class LP:
    """A tiny linear program: costs of any sign, masses with zeros, and its optimum."""

    cost: np.ndarray
    a: np.ndarray
    b: np.ndarray
    value: float


def tiny_lp(seed: int, n: int | None = None, m: int | None = None) -> LP:
    r = rng(seed)
    n, m = n or int(r.integers(1, 8)), m or int(r.integers(1, 8))
    cost = r.normal(size=(n, m)) * 10.0 ** r.integers(-2, 3)
    mass = 10.0 ** r.integers(-2, 3)
    a = weights(n, seed, zeros=int(n > 2)).numpy() * mass
    b = weights(m, seed + 1, zeros=int(m > 2)).numpy() * mass
    return LP(cost, a, b, lp_value(cost, a, b))


# ---------------------------------------------------------------------------------------------------------------
# Oracles, in dense float64


def lp_value(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The optimum of min <P, C>, P1 = a, P^T 1 = b, P >= 0, by SciPy's HiGHS."""
    n, m = cost.shape
    rows = sparse.kron(sparse.eye_array(n), np.ones((1, m)))
    cols = sparse.kron(np.ones((1, n)), sparse.eye_array(m))
    mass = a.sum()  # scaled to unit mass and cost, as the solver's tolerances are absolute
    size = np.abs(cost).max() or 1.0
    right = np.concatenate([a / mass, b / b.sum()])
    out = optimize.linprog(
        cost.ravel() / size,
        A_eq=sparse.vstack([rows, cols]).tocsr()[:-1],
        b_eq=right[:-1],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert out.status == 0, out.message
    return float(out.fun * mass * size)


def soft_optimum(cost: np.ndarray, a: np.ndarray, b: np.ndarray, rho: tuple[float | None, float | None]) -> float:
    """The optimum of min <P, C> + rho_a KL(P1 | a) + rho_b KL(P^T 1 | b), by SLSQP on the dual.

    A rho of None is a hard marginal. The dual has n + m variables and the constraints f_i + g_j <= c_ij.
    """
    total = sum(r * w[w == 0].sum() for r, w in zip((1.0, 1.0), (a, b)))
    cost, a, b = cost[np.ix_(a > 0, b > 0)], a[a > 0], b[b > 0]  # without mass there is no plan, and no penalty
    n, m = cost.shape
    size = np.abs(cost).max()
    w, scaled = np.concatenate([a, b]), cost / size
    r = np.concatenate([np.full(k, np.inf if s is None else s / size) for k, s in zip((n, m), rho)])

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        soft = np.isfinite(r)
        power = np.where(soft, -z / r, 0).clip(max=500)
        terms = np.where(soft, -np.where(soft, r, 1) * np.expm1(power), z)
        return -float(w @ terms), -w * np.where(soft, np.exp(power), 1)

    G = np.zeros((n * m, n + m))
    i, j = np.divmod(np.arange(n * m), m)
    G[np.arange(n * m), i] = G[np.arange(n * m), n + j] = 1
    start = np.concatenate([scaled.min(1), np.zeros(m)])
    start[n:] = (scaled - start[:n, None]).min(0)
    out = optimize.minimize(
        loss,
        start,
        jac=True,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda z: scaled.ravel() - G @ z, "jac": lambda z: -G},
        options={"maxiter": 500, "ftol": 1e-14},
    )
    f, g = out.x[:n], out.x[n:]
    f = (scaled - g).min(1)  # feasible to the last bit
    return total - size * loss(np.concatenate([f, g]))[0]


@dataclass(frozen=True)
class Entropic:
    """The answer of the dense oracle."""

    value: float
    linear_value: float
    plan: np.ndarray


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """sum p log(p / q) - p + q, with 0 log 0 = 0."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return float((xlogy(p, ratio) - p + q).sum())


def entropic(
    cost: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    epsilon: float,
    rho: tuple[float | None, float | None] = (None, None),
) -> Entropic:
    """min <P, C> + eps KL(P | ab) + penalties, by plain log-domain Sinkhorn in float64, iterated to rounding."""
    if rho == (None, None):
        b = b * (a.sum() / b.sum())  # float32 masses differ by rounding, and the iteration would drift for ever
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    damp = [1.0 if r is None else r / (r + epsilon) for r in rho]
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(20_000):
        before = f
        f = -damp[0] * epsilon * logsumexp((g - cost) / epsilon + log_b, axis=1)
        g = -damp[1] * epsilon * logsumexp((f[:, None] - cost) / epsilon + log_a[:, None], axis=0)
        if np.abs(f - before).max() < 1e-13 * max(1.0, np.abs(cost).max()):
            break
    else:
        raise AssertionError("the oracle did not converge: choose a larger epsilon")
    product = np.outer(a, b)
    plan = product * np.exp((f[:, None] + g - cost) / epsilon)
    value = entropic_value(cost, plan, a, b, epsilon, rho)
    return Entropic(value, float((plan * cost).sum()), plan)


def entropic_value(
    cost: np.ndarray,
    plan: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    epsilon: float,
    rho: tuple[float | None, float | None] = (None, None),
) -> float:
    """The formula of `solution.value`, for any plan: <P, C> + eps KL(P | ab) + rho KL(P1 | a) + rho KL(P^T 1 | b)."""
    value = float((plan * cost).sum()) + epsilon * kl(plan, np.outer(a, b))
    for r, mass, weight in zip(rho, (plan.sum(1), plan.sum(0)), (a, b)):
        value += 0.0 if r is None else r * kl(mass, weight)
    return value


# ---------------------------------------------------------------------------------------------------------------
# Costs: what users pass, and the same matrix by SciPy


def _ring(nodes: int = 9) -> np.ndarray:
    """A ring of nodes with edges of different lengths and one chord."""
    out = np.zeros((nodes, nodes))
    for i in range(nodes):
        out[i, (i + 1) % nodes] = 1 + 0.3 * i
    out[0, nodes // 2] = 0.8
    return out


RING = _ring()
PRECISION = np.array([[2.0, 0.6], [0.6, 0.5]])


def _graph_nodes(n: int, d: int, seed: int, *batch: int) -> Tensor:
    return torch.from_numpy(rng(seed).integers(0, len(RING), size=(*batch, n, 1)).astype(float))


def _power(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().pow(1.5).sum(-1)


@dataclass(frozen=True)
class CostCase:
    """A cost as users give it, and the same matrix in float64 without brenier."""

    name: str
    given: Callable[[int], str | Cost | Callable[..., Tensor]]  # in d dimensions
    dense: Callable[[np.ndarray, np.ndarray], np.ndarray]
    on_line: bool = True  # convex on the line, so that sorting is exact
    smooth: bool = True
    points: Callable[..., Tensor] = field(default=lambda n, d, seed, *batch: cloud(n, d, seed, *batch))

    def __str__(self) -> str:
        return self.name


def _mahalanobis(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    d = x.shape[-1]
    return cdist(x, y, "mahalanobis", VI=PRECISION[:d, :d]) ** 2


def _geodesic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    both = np.where((RING > 0) & ((RING.T == 0) | (RING < RING.T)), RING, RING.T)
    return floyd_warshall(both, directed=False)[np.ix_(x[:, 0].astype(int), y[:, 0].astype(int))]


COSTS = [
    CostCase("sqeuclidean", lambda d: "sqeuclidean", lambda x, y: cdist(x, y, "sqeuclidean")),
    CostCase("euclidean", lambda d: "euclidean", lambda x, y: cdist(x, y)),
    CostCase("cityblock", lambda d: "cityblock", lambda x, y: cdist(x, y, "cityblock"), smooth=False),
    CostCase("chebyshev", lambda d: "chebyshev", lambda x, y: cdist(x, y, "chebyshev"), smooth=False),
    CostCase("Lp(1.5)", lambda d: Lp(1.5), lambda x, y: cdist(x, y, "minkowski", p=1.5)),
    CostCase("Lp(2, power 3)", lambda d: Lp(2, power=3), lambda x, y: cdist(x, y) ** 3),
    CostCase("cosine", lambda d: "cosine", lambda x, y: cdist(x, y, "cosine"), on_line=False),
    CostCase("dot", lambda d: "dot", lambda x, y: -x @ y.T),
    CostCase("Mahalanobis", lambda d: Mahalanobis(torch.from_numpy(PRECISION[:d, :d])), _mahalanobis),
    CostCase("GraphGeodesic", lambda d: GraphGeodesic(RING), _geodesic, on_line=False, points=_graph_nodes),
    CostCase("callable", lambda d: _power, lambda x, y: (abs(x[:, None] - y) ** 1.5).sum(-1), on_line=False),
]
COST = {case.name: case for case in COSTS}


# ---------------------------------------------------------------------------------------------------------------
# Hard inputs: what must work as if it were ordinary. Each is (x, y, a, b), to be solved with "sqeuclidean"


def _faint(a: Tensor) -> Tensor:
    a[:2] = 1e-300
    return a / a.sum()


def hard_inputs() -> dict[str, tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    x, y = cloud(6, 2, 0), cloud(8, 2, 1)
    far = torch.tensor([1e6, -1e6])
    wide = cloud(12, 4, 2)
    return {
        "zero weights": (x, y, weights(6, 0, zeros=3), weights(8, 1, zeros=2)),
        "all mass on one point": (x, y, torch.eye(6).double()[2], torch.eye(8).double()[5]),
        "one point each": (x[:1], y[:1], None, None),
        "one source": (x[:1], y, None, weights(8)),
        "one target": (x, y[:1], weights(6), None),
        "equal clouds": (x, x.clone(), None, None),
        "the same tensor": (x, x, None, None),
        "duplicates": (x[[0, 0, 0, 1, 1, 2]], y[[0, 0, 1, 1, 1, 1, 2, 2]], None, None),
        "all points equal": (x[[0, 0, 0]], x[[0, 0]], None, None),
        "far-away origin": ((x.float() + far).round(decimals=1), (y.float() + far).round(decimals=1), None, None),
        "integers": ((10 * x).long(), (10 * y).int(), None, None),
        "integer weights": (x, y, torch.tensor([1, 2, 3, 4, 5, 9]), torch.tensor([3] * 8)),
        "not contiguous": (wide[::2, ::2], wide.T[:2].T[::3], None, None),
        "requires_grad": (x.clone().requires_grad_(), y.clone().requires_grad_(), None, None),
        "float16": (x.half(), y.half(), None, None),
        "bfloat16": (x.bfloat16(), y.bfloat16(), None, None),
        "some weights of 1e-300": (x, y, _faint(weights(6)), _faint(weights(8))),
        "masses of a thousand": (x, y, 1000 * weights(6), 1000 * weights(8)),
        "one dimension": (x[:, 0], y[:, 0], None, None),
    }


HARD = hard_inputs()


# ---------------------------------------------------------------------------------------------------------------
# Comparisons: each asserts, and each has a test that it fails when it should (test_problems.py)


def array(value: Any) -> np.ndarray:
    """A tensor, frame or number as a float64 (or integer) array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    out = np.asarray(value)
    return out.astype(np.float64) if out.dtype.kind == "f" else out


def assert_close(actual: Any, expected: Any, rtol: float = 1e-9, atol: float = 0.0, what: str = "") -> None:
    """Same shape, and |actual - expected| <= atol + rtol max|expected|; NaN is never close."""
    left, right = array(actual), array(expected)
    assert left.shape == right.shape, f"{what}: shape {left.shape}, expected {right.shape}"
    if not right.size:
        return
    finite = np.isfinite(right)
    assert np.array_equal(left[~finite], right[~finite]), f"{what}: infinities differ"
    assert not np.isnan(left).any(), f"{what}: NaN"
    scale = np.abs(right[finite]).max() if finite.any() else 0.0
    worst = np.abs(left[finite] - right[finite]).max() if finite.any() else 0.0
    assert worst <= atol + rtol * scale, f"{what}: off by {worst:.3g} where {atol + rtol * scale:.3g} is allowed"


def check_marginals(plan: Any, a: Any, b: Any, tol: float) -> None:
    """A dense plan is nonnegative and has the marginals a and b, in the sum of absolute errors over the mass."""
    p, a, b = array(plan), array(a), array(b)
    assert (p >= 0).all(), f"negative mass {p.min():.3g}"
    for name, got, want in (("row", p.sum(-1), a), ("column", p.sum(-2), b)):
        assert got.shape == want.shape, f"{name} sums of shape {got.shape}, expected {want.shape}"
        error = (np.abs(got - want).sum(-1) / want.sum(-1)).max()
        assert error <= tol, f"{name} marginal off by {error:.3g} where {tol:.3g} is allowed"


def check_encloses(certificate: Any, optimum: float | np.ndarray, tol: float, scale: float | None = None) -> None:
    """dual <= optimum <= primal up to tol x scale, and gap and relative gap follow from the bounds."""
    dual, primal = array(certificate.dual), array(certificate.primal)
    slack = tol * max(float(np.abs(optimum).max()), scale or 0.0, 1e-300)
    assert (dual <= optimum + slack).all(), f"dual {dual} above the optimum {optimum} by more than {slack:.3g}"
    assert (primal >= optimum - slack).all(), f"primal {primal} below the optimum {optimum} by more than {slack:.3g}"
    gap = array(certificate.gap)
    assert_close(gap, (primal - dual).clip(min=0), what="gap")
    assert (gap >= 0).all()
    assert (array(certificate.relative_gap) >= 0).all()


def check_feasible(f: Any, g: Any, cost: np.ndarray, tol: float) -> None:
    """f_i + g_j <= c_ij everywhere, up to tol times the largest cost."""
    worst = (array(f)[..., :, None] + array(g)[..., None, :] - cost).max()
    assert worst <= tol * max(np.abs(cost).max(), 1e-300), f"potentials violate a constraint by {worst:.3g}"


def check_plan_operators(solution: Solution, tol: float) -> None:
    """Everything a plan can do says the same as its dense matrix."""
    plan, dtype = solution.plan, solution.problem.a.dtype
    P = array(plan.dense())
    n, m = plan.shape
    batch = tuple(plan.batch_shape)
    assert P.shape == (*batch, n, m)
    r = rng(5)
    total = float(np.abs(P).sum())
    for mine, dense in ((plan, P), (plan.T, np.swapaxes(P, -1, -2))):
        v, V = r.normal(size=(*batch, dense.shape[-1])), r.normal(size=(*batch, dense.shape[-1], 3))
        for vector, expected in ((v, (dense @ v[..., None])[..., 0]), (V, dense @ V)):
            out = mine @ torch.from_numpy(vector)
            assert out.dtype == dtype, f"plan @ v is {out.dtype}, expected {dtype}"
            assert_close(out, expected, atol=tol * total, what="plan @ v")
        assert_close(mine.dense(), dense, tol, what="dense of the transpose")
        assert_close(mine.row_sums(), dense.sum(-1), atol=tol * total, what="row sums")
        assert_close(mine.col_sums(), dense.sum(-2), atol=tol * total, what="column sums")
    y = r.normal(size=(*batch, m, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (P @ y) / P.sum(-1, keepdims=True)
    some = P.sum(-1) > 1e-6 * total
    assert_close(array(plan.barycentric(torch.from_numpy(y)))[some], mean[some], rtol=10 * tol, what="barycentric")
    best = array(plan.argmax())
    chosen = np.take_along_axis(P, best[..., None], -1)[..., 0]
    assert_close(chosen[some], P.max(-1)[some], rtol=10 * tol, what="argmax")
    if batch:
        return
    again = np.zeros((n, m))
    rows, cols, mass = (array(t) for t in plan.entries())
    np.add.at(again, (rows, cols), mass)
    assert (mass > 0).all(), "an entry without mass"
    assert_close(again, P, atol=tol * total, what="entries")
    assert_close(plan.sparse().to_dense(), P, atol=tol * total, what="sparse")
    k = min(4, n * m)
    heaviest = array(plan.topk(k).mass)
    assert (np.diff(heaviest) <= 0).all(), "topk is not in decreasing order"
    assert_close(heaviest, np.sort(P.ravel())[::-1][: len(heaviest)], atol=tol * total, what="topk")
    assert len(heaviest) == min(k, (P > 0).sum()) or math.isclose(heaviest.sum(), P.sum()), "topk is short"
    one = plan.entries(max_per_row=1)
    assert len(set(array(one.rows))) == len(one.rows), "max_per_row=1 gave a row twice"
    assert_close(one.mass, P.max(-1)[array(one.rows)], atol=tol * total, what="heaviest of each row")
    ascending = np.unique(P[P > 0])
    if len(ascending) > 1:  # halfway between two masses that differ, so that rounding decides nothing
        at = int(np.diff(ascending).argmax())
        threshold = float(ascending[at] + ascending[at + 1]) / 2
        few = plan.entries(threshold=threshold)
        assert (array(few.mass) > threshold).all(), "an entry below the threshold"
        assert len(few.mass) == (threshold < P).sum(), "entries above the threshold are missing"
