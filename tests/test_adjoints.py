"""Implicit and unrolled gradients, against finite differences of whole solves in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import brenier
from brenier import KL, TV, CostMatrix, Envelope, Exact, Free, Grid, Implicit, InvalidInput, Partial, Slack, Unrolled
from brenier.adjoint import gibbs_plan
from brenier.kernels import native
from brenier.kernels.engine import use_engine
from problems import COST, assert_close, cloud, rng, weights

N, M = 4, 5
A, B = weights(N, 2), 1.3 * weights(M, 3)
COSTS = torch.from_numpy(rng(1).uniform(size=(N, M)))
U, V = torch.from_numpy(rng(4).normal(size=N)), torch.from_numpy(rng(3).normal(size=M))
RHO = torch.from_numpy(rng(4).uniform(0.2, 0.6, size=N))
X, Y, NEW = cloud(N, 2, 1), cloud(M, 2, 2), cloud(3, 2, 5)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# A parameter, and the pair of marginals that is made of it. Where the masses have to fit, they are normalised.
PAIRS: dict[str, tuple[Tensor, Callable[[Tensor], Any]]] = {
    "Exact": (number(0.0), lambda t: (Exact(), Exact())),
    "Exact, Free": (number(0.0), lambda t: (Exact(), Free())),
    "Free, Exact": (number(0.0), lambda t: (Free(), Exact())),
    "Exact, KL": (number(0.3), lambda t: (Exact(), KL(t))),
    "KL": (RHO, lambda t: (KL(t), KL(0.3))),
    "KL, some hard": (RHO, lambda t: (KL(torch.where(torch.arange(N) == 2, torch.inf, t)), KL(0.5))),
    "TV": (number(0.2), lambda t: (TV(t), TV(0.25))),
    "TV, Exact": (RHO, lambda t: (TV(t), Exact())),
    "TV, Free": (number(0.4), lambda t: (TV(t), Free())),
    "Partial": (number(0.7), lambda t: (Partial(t), Partial(t))),
    "Partial, KL": (number(0.7), lambda t: (Partial(t), KL(0.3))),
    "Partial, Free": (number(0.75), lambda t: (Partial(t), Free())),
    "Partial entropic, KL": (number(0.4), lambda t: (Partial(t, entropic=True), KL(0.3))),
    "Partial entropic, Partial": (number(0.7), lambda t: (Partial(t, entropic=True), Partial(t))),
    "Slack": (number(0.2), lambda t: (Slack(t), Slack(0.3))),
    "Slack, Free": (RHO, lambda t: (Slack(t), Free())),
    "Exact, Slack": (number(0.3), lambda t: (Exact(), Slack(t))),
    "KL, Slack": (number(0.3), lambda t: (KL(t), Slack(-0.1))),
}
FLAT = ("Exact", "Partial", "Partial entropic, Partial")  # f + t, g - t is a solution, too


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def check(function: Callable[..., Tensor], *tensors: Tensor, twice: bool = False, fast: bool = True) -> None:
    test = gradgradcheck if twice else gradcheck
    assert test(function, tuple(map(leaf, tensors)), atol=1e-6, rtol=1e-4, fast_mode=fast)


def solve(*args: Any, epsilon: Any = 0.3, adjoint: Any = Implicit(), **options: Any) -> brenier.Solution:
    return brenier.solve(*args, epsilon=epsilon, adjoint=adjoint, **{"tol": 1e-13, "max_iter": 100_000, **options})


def in_gauge(s: brenier.Solution) -> Tensor:
    """F and g with equal means under a and b; points that can have no mass count for nothing."""
    f, g = (torch.where(torch.isfinite(t), t, 0) for t in (s.f, s.g))
    a, b = s.problem.a, s.problem.b
    shift = ((a * f).sum(-1, keepdim=True) / a.sum(-1, keepdim=True)
             - (b * g).sum(-1, keepdim=True) / b.sum(-1, keepdim=True)) / 2  # fmt: skip
    return torch.cat([torch.where(s.f.isfinite(), f - shift, 0), torch.where(s.g.isfinite(), g + shift, 0)], -1)


def everything(s: brenier.Solution, flat: bool) -> Tensor:
    potentials = in_gauge(s) if flat else torch.cat([torch.where(t.isfinite(), t, 0) for t in s.potentials], -1)
    plan = s.plan
    sums = (plan @ V, plan.T @ U, plan.row_sums(), plan.col_sums(), plan.dense().flatten())
    return torch.cat([s.value[None], s.linear_value[None], *sums, potentials])


# -- first derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "zeros"), [("product", False), ("counting", True)])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_output_in_every_input(pair: str, reference: str, zeros: bool) -> None:
    start, make = PAIRS[pair]
    live_a, live_b = torch.arange(N) != zeros - 1, torch.arange(M) != 2 * zeros - 1

    def outputs(C: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, parameter: Tensor) -> Tensor:
        a, b = a * live_a, b * live_b
        if pair == "Exact":
            a, b = a / a.sum(), b / b.sum()
        s = solve(CostMatrix(C), a=a, b=b, epsilon=epsilon, marginals=make(parameter), reference=reference)
        return everything(s, pair in FLAT)

    check(outputs, COSTS, A, B, number(0.2), start)


def test_zero_weights_under_the_product() -> None:
    a, b = weights(N, 2, zeros=1), weights(M, 3, zeros=2)

    def outputs(x: Tensor, epsilon: Tensor) -> Tensor:
        return everything(solve(x, Y, a=a, b=b, epsilon=epsilon), flat=True)

    check(outputs, X, number(0.5))


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "dot"])
def test_points_and_map(cost: str, engine: str) -> None:
    if engine == "native" and not native.available():
        pytest.skip("needs the compiled extension")

    def outputs(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        s = solve(x, y, b=weights(M), cost=COST[cost].given(2), epsilon=0.5)
        f_new = s.potentials(new) - s.f.mean() + in_gauge(s)[:N].mean()
        parts = (s.map(), s.map(new), f_new, s.plan @ y)
        return torch.cat([everything(s, flat=True), *(t.flatten() for t in parts)])

    with use_engine("auto" if engine == "native" else "reference"):
        check(outputs, X, Y, NEW, fast=cost != "sqeuclidean")


@pytest.mark.parametrize("relative", [0.01, 0.05])
def test_small_epsilon_where_fixed_potentials_are_wrong(relative: float) -> None:
    """The plan's derivative is mostly that of its potentials."""
    x, y, v = cloud(12, 2, 7), cloud(10, 2, 8), torch.from_numpy(rng(9).normal(size=10))
    w, direction = torch.from_numpy(rng(10).normal(size=12)), cloud(12, 2, 11)
    epsilon = relative * float(brenier.PointCloud(x, y).mean_cost())

    def output(x: Tensor) -> tuple[Tensor, brenier.Solution]:
        s = solve(x, y, epsilon=epsilon, solver="sns", tol=1e-13)
        return (s.plan @ v) @ w, s

    h = 1e-5
    numeric = float(output(x + h * direction)[0] - output(x - h * direction)[0]) / (2 * h)
    x = leaf(x)
    out, s = output(x)
    (gradient,) = torch.autograd.grad(out, x)
    fixed = gibbs_plan(s.problem, s.f.detach(), s.g.detach())
    (shortcut,) = torch.autograd.grad((fixed @ v) @ w, x)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-6)
    assert abs(float((shortcut * direction).sum()) - numeric) > 0.1 * abs(numeric)


def test_near_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conjugate gradients alone do not get there; on a factorisation of the support they end at once."""
    x, y, v = leaf(cloud(150, 2, 7)), cloud(150, 2, 8), torch.from_numpy(rng(9).normal(size=150))
    s = brenier.solve(x, y, epsilon=brenier.Relative(0.001), adjoint=Implicit(max_iter=100))
    loss = (s.plan @ v).square().sum()
    torch.autograd.grad(loss, x, retain_graph=True)  # a warning would be an error
    monkeypatch.setattr("brenier.adjoint.support_inverse", lambda *_: None)
    with pytest.warns(brenier.NotConvergedWarning, match="relative residual"):
        torch.autograd.grad(loss, x)


def test_selected_entries() -> None:
    """The search is for constants; the masses found have the gradients of the dense plan."""
    x, epsilon = leaf(X), leaf(number(0.3))
    plan = solve(x, Y, b=weights(M), epsilon=epsilon).plan
    dense = plan.dense()
    for entries in (plan.topk(6), plan.entries(max_per_row=2), plan.entries(threshold=0.01)):
        w = torch.from_numpy(rng(2).normal(size=len(entries.mass)))
        left, right = entries.mass @ w, dense[entries.rows, entries.cols] @ w
        for one, other in zip(*(torch.autograd.grad(t, (x, epsilon), retain_graph=True) for t in (left, right))):
            assert_close(one, other, 1e-9)
    (one,), (other,) = (
        torch.autograd.grad((t * t.detach()).sum(), x, retain_graph=True) for t in (plan.sparse().to_dense(), dense)
    )
    assert_close(one, other, 1e-9)
    assert not plan.argmax().requires_grad


def test_batches() -> None:
    """One call for three problems of different conditioning is three calls."""
    x, a = cloud(N, 2, 3, 3), weights(N, 4, 3)
    epsilon = torch.tensor([0.05, 0.3, 2.0]).double()

    def outputs(x: Tensor, a: Tensor, epsilon: Tensor) -> Tensor:
        s = solve(x, Y, a=a, epsilon=epsilon)
        return torch.cat([s.plan @ V.expand(3, M), s.map().flatten(-2), in_gauge(s), s.value[:, None]], -1)

    together = tuple(map(leaf, (x, a, epsilon)))
    w = torch.from_numpy(rng(6).normal(size=tuple(outputs(*together).shape)))
    gradients = torch.autograd.grad((outputs(*together) * w).sum(), together)
    for k in range(3):
        alone = leaf(x[k]), leaf(a[k]), leaf(epsilon[k])
        s = solve(alone[0], Y, a=alone[1], epsilon=alone[2])
        out = torch.cat([s.plan @ V, s.map().flatten(), in_gauge(s), s.value[None]])
        for mine, theirs in zip(gradients, torch.autograd.grad((out * w[k]).sum(), alone)):
            offset = (mine[k] - theirs).mean() if mine.dim() == 2 else 0  # in a, up to a constant
            assert_close(mine[k], theirs + offset, 1e-7)


def test_batch_in_the_parameters() -> None:
    costs = torch.stack([COSTS, 2 * COSTS])

    def outputs(C: Tensor, mass: Tensor) -> Tensor:
        return solve(CostMatrix(C), a=A, b=B, marginals=Partial(mass)).plan @ V.expand(2, M)

    check(outputs, costs, torch.tensor([0.2, 0.6]).double())


def test_grid() -> None:
    def outputs(u: Tensor, v: Tensor, epsilon: Tensor) -> Tensor:
        s = solve(Grid([0.0, 1.0, 1.5], [0.0, 0.7]), a=u.softmax(-1), b=v.softmax(-1), epsilon=epsilon)
        return torch.cat([s.plan @ cloud(6, 1, 3).flatten(), in_gauge(s)])

    check(outputs, cloud(6, 1, 1).flatten(), cloud(6, 1, 2).flatten(), number(0.6))


@pytest.mark.parametrize("solver", ["sinkhorn", "sns", "newton"])
def test_float32(solver: str) -> None:
    """Potentials of float32 or, from Newton's method, of float64; gradients like the input's."""

    def gradient(dtype: torch.dtype) -> Tensor:
        x = leaf(X.to(dtype))
        s = solve(x, Y.to(dtype), epsilon=0.2, solver=solver, tol=1e-5 if dtype == torch.float32 else 1e-12)
        (out,) = torch.autograd.grad((s.plan @ V.to(dtype)).square().sum() + s.map().sum() + s.value, x)
        assert out.dtype == dtype
        return out

    assert_close(gradient(torch.float32), gradient(torch.float64), 1e-3)


# -- second derivatives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_second_derivatives_of_the_value(pair: str) -> None:
    start, make = PAIRS[pair]

    def value(x: Tensor, a: Tensor, epsilon: Tensor, parameter: Tensor) -> Tensor:
        a, b = (a / a.sum(), B / B.sum()) if pair == "Exact" else (a, B)
        out: Tensor = solve(x, Y, a=a, b=b, epsilon=epsilon, marginals=make(parameter)).value
        return out

    check(value, X, A, number(0.8), start, twice=True)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_hessian_vector_product(cost: str) -> None:
    x, y, d = cloud(15, 2, 7), cloud(12, 2, 8), cloud(15, 2, 9)

    def gradient(x: Tensor, adjoint: brenier.Adjoint = Implicit()) -> Tensor:
        value = solve(x, y, cost=cost, epsilon=0.1, solver="sns", adjoint=adjoint).value
        (out,) = torch.autograd.grad(value, x, create_graph=True)
        return out

    h = 1e-5
    numeric = ((gradient(leaf(x + h * d)) - gradient(leaf(x - h * d))) / (2 * h)).detach()
    x = leaf(x)
    (product,) = torch.autograd.grad((gradient(x) * d).sum(), x)
    assert_close(product, numeric, 1e-6)
    with pytest.raises(InvalidInput, match="Use adjoint=Implicit"):  # the potentials do move
        torch.autograd.grad((gradient(x, Envelope()) * d).sum(), x)


def test_first_derivative_of_the_value_is_that_of_the_envelope() -> None:
    x = leaf(X)
    implicit, envelope = (solve(x, Y, adjoint=adjoint) for adjoint in (Implicit(), Envelope()))
    first, second = (torch.autograd.grad(s.value, x)[0] for s in (implicit, envelope))
    assert torch.equal(first, second)
    (implicit.plan @ V).sum().backward()  # the graph of the potentials is whole


# -- unrolled ----------------------------------------------------------------------------------------------------


def dense_loop(C: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K iterations from zero on the dense matrix; value, plan and potentials."""
    g = torch.zeros_like(b)
    for _ in range(k):
        f = -epsilon * torch.logsumexp((g - C) / epsilon + b.log(), 1)
        g = -epsilon * torch.logsumexp((f[:, None] - C) / epsilon + a.log()[:, None], 0)
    P = a[:, None] * b * ((f[:, None] + g - C) / epsilon).exp()
    product = a[:, None] * b
    return (P * C).sum() + epsilon * (P * (P / product).log() - P + product).sum(), P, f, g


@pytest.mark.parametrize("k", [1, 20])
def test_truncated_is_autograd_through_a_dense_loop(k: int) -> None:
    inputs = tuple(map(leaf, (COSTS, A, B / B.sum(), number(0.02))))
    C, a, b, epsilon = inputs
    s = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=epsilon, adjoint=Unrolled(k, from_start=True))
    w = torch.from_numpy(rng(8).normal(size=(N, M)))
    mine = (s.value, (s.plan.dense() * w).sum(), s.linear_value, s.f @ U, s.g @ V)
    value, P, f, g = dense_loop(*inputs, k)
    dense = (value, (P * w).sum(), (P * C).sum(), f @ U, g @ V)
    assert s.stats["n_iter"] <= k
    for left, right in zip(mine, dense):
        assert_close(left, right, 1e-10)
        pairs = [torch.autograd.grad(t, inputs, retain_graph=True, materialize_grads=True) for t in (left, right)]
        for one, other in zip(*pairs):
            assert_close(one, other, 1e-10, atol=1e-12)
    with torch.no_grad():  # the same numbers where no gradient is wanted
        again = brenier.solve(CostMatrix(C), a=a, b=b, epsilon=epsilon, adjoint=Unrolled(k, from_start=True))
        assert_close(again.plan.dense(), s.plan.dense(), 1e-12)  # another engine may serve


@pytest.mark.parametrize("pair", ["Exact", "KL", "TV, Exact", "Partial", "Slack"])
def test_implicit_is_the_limit_of_unrolled(pair: str) -> None:
    start, make = PAIRS[pair]
    start = number(0.85) if pair == "Partial" else start  # enough for some entries to reach their cap
    inputs = tuple(map(leaf, (COSTS, number(0.4), start)))

    def gradients(adjoint: brenier.Adjoint) -> list[Tensor]:
        C, epsilon, parameter = inputs
        a, b = (A, B / B.sum()) if pair == "Exact" else (A, B)
        s = solve(CostMatrix(C), a=a, b=b, epsilon=epsilon, marginals=make(parameter), adjoint=adjoint)
        out = everything(s, pair in FLAT)
        w = torch.from_numpy(rng(2).normal(size=tuple(out.shape)))
        return list(torch.autograd.grad((out * w).sum(), inputs, materialize_grads=True))

    right = gradients(Implicit())
    errors = []
    for k in (2, 60):
        pairs = zip(gradients(Unrolled(k)), right)
        errors.append(max(float((one - other).norm() / (1e-9 + other.norm())) for one, other in pairs))
    assert errors[1] < 1e-8
    assert errors[0] > errors[1]


def test_truncated_does_not_warn_and_tells_its_status() -> None:
    C = CostMatrix(leaf(COSTS))
    s = brenier.solve(C, epsilon=0.005, adjoint=Unrolled(3, from_start=True))
    assert s.status is brenier.Status.MAX_ITER
    assert s.stats["reason"] == "the iterations of Unrolled(k=3, from_start=True)"
    assert float(s.certificate.marginal_errors[0]) > 1e-6
    assert brenier.solve(C, epsilon=5.0, adjoint=Unrolled(50, from_start=True)).status is brenier.Status.CONVERGED


# -- the contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(3)])
def test_problems_without_epsilon_are_refused(adjoint: brenier.Adjoint) -> None:
    name = "Implicit()" if isinstance(adjoint, Implicit) else "Unrolled(k=3, from_start=False)"
    cure = "Use Envelope(), for gradients of the value, or give an epsilon."
    for options, got in (
        ({}, "none"),
        ({"regularizer": brenier.SquaredNorm(1.0)}, "SquaredNorm(gamma=1.0, k=None, axis='columns')"),
    ):
        with pytest.raises(InvalidInput) as error:
            brenier.solve(X, Y, adjoint=adjoint, **options)  # type: ignore[arg-type]
        instead = got if got == "none" else f"{got} instead"
        assert str(error.value) == f"adjoint={name}: expected an epsilon, got {instead}. {cure}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Implicit(tol=0.0), "Implicit tol: expected a positive finite number, got 0.0."),
        (lambda: Implicit(max_iter=0), "Implicit max_iter: expected a positive integer, got 0."),
        (lambda: Unrolled(0), "Unrolled k: expected a positive integer, got 0."),
        (lambda: Unrolled(3, from_start=1), "Unrolled from_start: expected True or False, got 1."),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make()
    assert str(error.value) == message


def test_a_linear_solve_that_stops_early_says_so() -> None:
    s = solve(leaf(cloud(30, 2, 1)), cloud(30, 2, 2), epsilon=0.05, solver="sns", adjoint=Implicit(max_iter=2))
    with pytest.warns(
        brenier.NotConvergedWarning, match=r"relative residual of .* after 2 iterations, above tol=1e-10"
    ):
        (s.plan @ torch.ones(30).double()[:, None].expand(30, 2).cumsum(0)).sum().backward()


def test_who_reads_first_does_not_matter() -> None:
    x = leaf(X)
    s = solve(x, Y)
    with torch.no_grad():
        s.value, s.certificate, s.linear_value, s.potentials, s.plan, repr(s)
        assert not (s.plan @ V).requires_grad
    assert all(t.requires_grad for t in (s.value, s.linear_value, *s.potentials, s.plan @ V, s.map(), s.map(NEW)))
    with torch.no_grad():
        s = solve(x, Y)
    assert not any(t.requires_grad for t in (s.linear_value, *s.potentials, s.plan @ V, s.map(NEW)))


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(2), Unrolled(2, from_start=True)])
def test_numpy_and_constants(adjoint: brenier.Adjoint) -> None:
    s = solve(X.numpy(), Y.numpy(), adjoint=adjoint)
    assert isinstance(s.value, float)
    assert s.map(NEW.numpy()).shape == (3, 2)
    s = solve(X, Y, adjoint=adjoint)
    assert not any(t.requires_grad for t in (s.value, *s.potentials, s.plan @ V, s.map()))


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(2)])
def test_values_are_those_of_the_envelope(adjoint: brenier.Adjoint) -> None:
    mine, plain = (solve(leaf(X), Y, adjoint=t) for t in (adjoint, Envelope()))
    for one, other in ((mine.value, plain.value), (mine.f, plain.f), (mine.plan.dense(), plain.plan.dense()),
                       (mine.map(NEW), plain.map(NEW)), (mine.linear_value, plain.linear_value)):  # fmt: skip
        assert_close(one, other, 1e-11)
    assert_close(mine.certificate.primal, plain.certificate.primal, 1e-11)


@pytest.mark.parametrize("adjoint", [Envelope(), Implicit()])
def test_map_and_potentials_are_differentiable_in_new_points(adjoint: brenier.Adjoint) -> None:
    s = solve(X, Y, adjoint=adjoint)
    check(lambda new: torch.cat([s.map(new).flatten(), s.potentials(new)]), NEW)


# -- memory ------------------------------------------------------------------------------------------------------

# The kernel's own high-water mark of this process image (unlike ru_maxrss, it does not start at the parent's).
_SCRIPT = """
import sys, torch, brenier
n, what = int(sys.argv[1]), sys.argv[2]
def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024
adjoint = {"implicit": brenier.Implicit(), "unrolled": brenier.Unrolled(5), "dense": brenier.Implicit()}[what]
def gradient(n):
    torch.manual_seed(0)
    x, y = torch.randn(n, 3, requires_grad=True), torch.randn(n, 3)
    s = brenier.solve(x, y, epsilon=2.0, tol=1e-2, adjoint=adjoint)
    out = s.plan.dense() if what == "dense" and n > 9 else s.plan @ y
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()
gradient(9)
before = peak_mb()
gradient(n)
print(peak_mb() - before)
"""


def _extra_mb(n: int, what: str) -> float:
    out = subprocess.run([sys.executable, "-c", _SCRIPT, str(n), what], capture_output=True, text=True, check=True)
    return float(out.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
@pytest.mark.skipif(not native.available(), reason="tiles of the reference take memory of their own")
@pytest.mark.parametrize("what", ["implicit", "unrolled"])
def test_no_n_by_m(what: str) -> None:
    n = 4_000
    whole = 4 * n * n / 2**20  # one float32 cost matrix: 61 MB
    used = _extra_mb(n, what)
    assert used < whole / 3, f"{what} of {n} points took {used:.0f} MB, one cost matrix is {whole:.0f} MB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
def test_the_measure_sees_a_matrix() -> None:
    assert _extra_mb(1_500, "dense") > 4 * 1_500**2 / 2**20
