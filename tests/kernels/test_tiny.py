"""One battery for both engines of the small-matrix scaling: known answers, gradients, and agreement."""

import math

import pytest
import torch

from brenier.kernels import native as pairwise
from brenier.kernels import tiny
from brenier.kernels.build import chosen, native, triton_runs
from brenier.kernels.engine import use_engine

needs_native = pytest.mark.skipif(not pairwise.available(), reason="the extension was not built")
needs_triton = pytest.mark.skipif(
    not triton_runs(torch.empty(0)), reason="Triton is not installed, or not to be interpreted here"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
_moved: list[str] = []  # where the scores are taken
LEVELS = native.simd_levels() if pairwise.available() else []
SIZES = [(1, 1), (1, 4), (4, 4), (3, 5), (5, 3), (8, 8), (7, 7), (16, 16), (10, 33), (20, 20)]


@pytest.fixture(
    params=[
        "reference",
        *(pytest.param(level, marks=needs_native) for level in LEVELS),
        pytest.param("triton", marks=needs_triton),
        pytest.param("gpu", marks=[pytest.mark.gpu, needs_gpu]),
    ]
)
def engine(request):
    """The reference, the native engine with one instruction set, or Triton's kernels."""
    if request.param in ("reference", "triton"):
        with use_engine(request.param):
            yield request.param
        return
    if request.param == "gpu":
        _moved.append("cuda")
        try:
            with use_engine("triton"):
                yield request.param
        finally:
            _moved.clear()
        return
    before = native.simd()
    native.set_simd(request.param)
    try:
        with use_engine("native"):
            yield request.param
    finally:
        native.set_simd(before)


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scale(scores, epsilon=1.0, r=None, c=None, *, n_iter=20, tol=0.0, adjoint="implicit"):
    epsilon = torch.as_tensor(epsilon, dtype=scores.dtype)
    if adjoint == "unrolled" and chosen() == "triton" and scores.requires_grad:
        pytest.skip("unrolled gradients on a GPU are the reference's")
    device = _moved[0] if _moved else "cpu"
    tensors = (None if t is None else t.to(device) for t in (scores, epsilon, r, c))
    out = tiny.scale(*tensors, n_iter=n_iter, tol=tol, adjoint=adjoint)
    return tuple(t.cpu() for t in out) if _moved else out


def textbook(scores, epsilon, n_iter):
    """Rows, then columns, in float64 and in the log domain."""
    x = scores.double() / epsilon
    for _ in range(n_iter):
        x = x - x.logsumexp(-1, keepdim=True)
        x = x - x.logsumexp(-2, keepdim=True) + math.log(scores.shape[-2] / scores.shape[-1])
    return x.exp()


def fewer(engine, count):
    """As many as the interpreter passes through in time."""
    return 2 if engine == "triton" else count


def simplex_like(*shape, seed):
    return randn(*shape, seed=seed).softmax(-1) * 3


# -- forward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.002])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_iterates_are_those_of_the_textbook(engine, dtype, size, epsilon):
    scores = randn(19, *size, dtype=dtype)
    plan, error, n_iter = scale(scores, epsilon)
    exact = textbook(scores, epsilon, 20)
    assert plan.dtype == dtype
    # rounding of the exponents, which are as large as the scores / epsilon
    size_of_exponents = float(scores.abs().max()) / epsilon
    tol = torch.finfo(dtype).eps * (8 + 4 * size_of_exponents)
    torch.testing.assert_close(plan.double(), exact, rtol=0, atol=tol)
    worst = (exact.sum(-1) - 1).abs().amax(-1)
    torch.testing.assert_close(error.double(), worst, rtol=0, atol=size[0] * tol)
    assert (n_iter == 20).all()


def test_two_by_two_is_a_sigmoid(engine, dtype):
    s = randn(100, 2, 2, dtype=dtype)
    p = torch.sigmoid((s[:, 0, 0] + s[:, 1, 1] - s[:, 0, 1] - s[:, 1, 0]) / (2 * 0.7))
    plan = scale(s, 0.7, n_iter=500)[0]
    torch.testing.assert_close(plan, torch.stack([torch.stack([p, 1 - p], -1), torch.stack([1 - p, p], -1)], -2))


def test_equal_scores_are_spread_evenly(engine, dtype):
    for n, m in SIZES:
        plan = scale(torch.full((3, n, m), -7.5, dtype=dtype))[0]
        torch.testing.assert_close(plan, torch.full_like(plan, 1 / m))


def test_small_epsilon_gives_the_best_permutation(engine, dtype):
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(20)])
    best = torch.nn.functional.one_hot(order, 9).to(dtype)
    plan, error, _ = scale(best + 0.01 * randn(20, 9, 9, dtype=dtype), 1e-2, n_iter=200)
    torch.testing.assert_close(plan, best, rtol=0, atol=1e-6)
    assert (error < 1e-6).all()


@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_converged_sums_are_right_to_rounding(engine, dtype, size):
    plan, error, n_iter = scale(randn(fewer(engine, 33), size, size, dtype=dtype), 0.5, n_iter=2000, tol=3e-7)
    sums = torch.cat([plan.double().sum(-1), plan.double().sum(-2)], -1)
    assert (sums - 1).abs().max() <= 1e-6
    assert error.max() <= 1e-6
    assert n_iter.max() < 2000


def test_large_scores_do_not_overflow(engine, dtype):
    scores = 1e4 * randn(40, 8, 8, dtype=dtype)
    scores[0] += 1e6
    for epsilon in (1.0, 1e-3):
        plan, error, _ = scale(scores, epsilon, n_iter=300)
        assert torch.isfinite(plan).all()
        assert (plan >= 0).all()
        torch.testing.assert_close(plan.sum(-2), torch.ones_like(plan[..., 0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(error, (plan.sum(-1) - 1).abs().amax(-1), rtol=0, atol=1e-5)


def test_a_column_that_no_row_wants_is_filled(engine, dtype):
    scores = randn(5, 6, 6, dtype=dtype)
    scores[..., 2] -= 5e3
    plan = scale(scores, 1.0, n_iter=100)[0]
    shifted = scores.clone()
    shifted[..., 2] += 5e3
    # scores that differ by a constant along a column have the same fixed point; float32 rounds 5e3 to 5e-4
    atol = 2e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(plan, scale(shifted, 1.0, n_iter=100)[0], rtol=0, atol=atol)


@pytest.mark.parametrize("masses", ["even", "wide"])
def test_given_masses_are_met(engine, dtype, masses):
    count = fewer(engine, 30)
    r, c = simplex_like(count, 6, seed=1), simplex_like(count, 9, seed=2)
    if masses == "wide":
        r[:, 0], c[:, 3] = 1e-9, 1e-7
        c = c * (r.sum(-1, keepdim=True) / c.sum(-1, keepdim=True))
    r, c = r.to(dtype), c.to(dtype)
    plan, error, _ = scale(randn(count, 6, 9, dtype=dtype), 0.3, r, c, n_iter=500)
    tol = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(plan.sum(-1), r, rtol=2 * tol, atol=tol)
    torch.testing.assert_close(plan.sum(-2), c, rtol=2 * tol, atol=tol)
    assert (error < tol).all()


def test_shared_masses_and_epsilons_of_each_matrix(engine):
    scores, r, c = randn(2, 5, 4, 6), simplex_like(4, seed=1), simplex_like(6, seed=2)
    epsilon = torch.linspace(0.3, 2, 10, dtype=torch.float64).reshape(2, 5)
    plan = scale(scores, epsilon, r, c)[0]
    for i in range(2):
        for k in range(5):
            alone = scale(scores[i, k], epsilon[i, k], r, c)[0]
            torch.testing.assert_close(plan[i, k], alone)


def test_lines_without_mass_are_empty(engine):
    r, c = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.5, 0.0, 0.5, 1.0]).double()
    scores = randn(20, 3, 4).requires_grad_()
    plan, error, _ = scale(scores, 1.0, r.expand(20, 3), c.expand(20, 4), n_iter=300)
    assert (plan[:, 0] == 0).all()
    assert (plan[..., 1] == 0).all()
    assert (error < 1e-12).all()
    (gradient,) = torch.autograd.grad((plan * randn(20, 3, 4, seed=1)).sum(), scores)
    assert torch.isfinite(gradient).all()
    small = scale(scores[:, 1:, [0, 2, 3]], 1.0, r[1:].expand(20, 2), c[[0, 2, 3]].expand(20, 3), n_iter=300)[0]
    torch.testing.assert_close(plan[:, 1:][..., [0, 2, 3]], small)


def test_padding_changes_nothing(engine, dtype):
    scores = randn(20, 5, 7, dtype=dtype)
    padded = torch.full((20, 8, 8), -torch.inf, dtype=dtype)
    padded[:, :5, :7] = scores
    plan, error, _ = scale(padded, 0.5, n_iter=200)
    assert (plan[:, 5:] == 0).all()
    assert (plan[..., 7] == 0).all()
    torch.testing.assert_close(plan[:, :5, :7], scale(scores, 0.5, n_iter=200)[0])
    assert (error < 1e-5).all()


def test_forbidden_entries_stay_empty(engine, dtype):
    mask = torch.eye(6, dtype=torch.bool) | torch.eye(6, dtype=torch.bool).roll(1, 0) | (torch.arange(6) == 2)
    scores = torch.where(mask, randn(20, 6, 6, dtype=dtype), -torch.inf)
    for adjoint in tiny.ADJOINTS:
        leaf = scores.clone().requires_grad_()
        plan, error, _ = scale(leaf, 1.0, n_iter=300, adjoint=adjoint)
        assert (plan[:, ~mask] == 0).all()
        assert (error < 1e-5).all()
        epsilon = torch.tensor(1.0, dtype=dtype, requires_grad=True)
        plan = scale(leaf, epsilon, n_iter=300, adjoint=adjoint)[0]
        gradients = torch.autograd.grad(plan.square().sum(), (leaf, epsilon))
        assert all(torch.isfinite(g).all() for g in gradients)
        assert (gradients[0][:, ~mask] == 0).all()


def test_an_infeasible_mask_is_told_by_the_error(engine, dtype):
    scores = torch.zeros(2, 3, 3, dtype=dtype)
    scores[1, :2, :2] = -torch.inf  # two rows that want the same column
    _, error, _ = scale(scores, n_iter=100)
    assert error[0] < 1e-6
    assert error[1] > 0.4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_matrix_becomes_nan_and_no_other(engine, dtype, bad):
    scores = randn(40, 6, 6, dtype=dtype)
    good = scale(scores, 0.1)[0]
    scores[17, 2, 3] = bad
    for tol in (0.0, 1e-3):
        plan, error, _ = scale(scores, 0.1, tol=tol)
        assert plan[17].isnan().all()
        assert error[17].isnan()
        if not tol:
            keep = torch.arange(40) != 17
            torch.testing.assert_close(plan[keep], good[keep])


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3, 5)])
def test_empty_batches(engine, dtype, shape):
    scores = torch.zeros(shape, dtype=dtype, requires_grad=True)
    plan, error, n_iter = scale(scores)
    assert plan.shape == shape
    assert error.shape == n_iter.shape == shape[:-2]
    assert torch.autograd.grad(plan.sum(), scores)[0].shape == shape


def test_views_and_broadcasts_are_read_as_they_are(engine):
    base = randn(6, 8, 10)
    views = [base.mT, base[::2, 1:, ::3], base.permute(1, 2, 0), base[:1].expand(5, -1, -1)]
    for view in views:
        torch.testing.assert_close(scale(view)[0], scale(view.contiguous())[0])
        leaf = view.detach().requires_grad_()
        plan = scale(leaf)[0]
        weight = randn(*plan.mT.shape, seed=3).mT  # a gradient that is not contiguous either
        a = torch.autograd.grad((plan * weight).sum(), leaf)[0]
        leaf = view.detach().contiguous().requires_grad_()
        torch.testing.assert_close(a, torch.autograd.grad((scale(leaf)[0] * weight.contiguous()).sum(), leaf)[0])


def test_a_tolerance_stops_each_matrix_on_its_own(engine, dtype):
    scores = torch.cat([torch.zeros(3, 5, 5, dtype=dtype), randn(30, 5, 5, dtype=dtype)])
    plan, error, n_iter = scale(scores, 0.2, n_iter=5000, tol=1e-4)
    assert (n_iter[:3] == 1).all()
    assert n_iter[3:].min() > 1
    assert n_iter.unique().numel() > 5
    assert (error <= 1.01e-4).all()
    for i in (0, 5, 20):
        alone = scale(scores[i], 0.2, n_iter=5000, tol=1e-4)
        assert abs(int(alone[2]) - int(n_iter[i])) <= 1
        torch.testing.assert_close(alone[0], plan[i], rtol=0, atol=1e-4)
        fixed = scale(scores[i], 0.2, n_iter=int(n_iter[i]))[0]
        torch.testing.assert_close(fixed, plan[i], rtol=0, atol=1e-5)


# -- backward --------------------------------------------------------------------------------------------------


def central_difference(function, x, direction, step=1e-6):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 3), (6, 6), (1, 3)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_unrolled_gradients_are_those_of_the_iterations(engine, size, epsilon):
    scores = randn(3, *size).requires_grad_()
    e = torch.tensor(epsilon, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, e: scale(s, e, n_iter=4, adjoint="unrolled")[0], (scores, e), fast_mode=engine == "triton"
    )
    a, b = randn(3, size[0], seed=1).requires_grad_(), randn(3, size[1], seed=2).requires_grad_()

    def masses(s, a, b):
        return scale(s, epsilon, a.softmax(-1), b.softmax(-1), n_iter=4, adjoint="unrolled")[0]

    assert torch.autograd.gradcheck(masses, (scores, a, b), fast_mode=engine == "triton")


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 3), (6, 6), (1, 3)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_implicit_gradients_are_those_of_the_fixed_point(engine, size):
    scores = randn(2, *size).requires_grad_()
    e = torch.linspace(0.7, 1.2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, e: scale(s, e, n_iter=500, tol=1e-13)[0], (scores, e), fast_mode=engine == "triton"
    )
    a, b = randn(2, size[0], seed=1).requires_grad_(), randn(2, size[1], seed=2).requires_grad_()

    def masses(s, a, b):
        return scale(s, 1.0, a.softmax(-1), b.softmax(-1), n_iter=500, tol=1e-13)[0]

    assert torch.autograd.gradcheck(masses, (scores, a, b), fast_mode=engine == "triton")


@pytest.mark.parametrize("adjoint", tiny.ADJOINTS)
def test_second_derivatives(engine, adjoint):
    scores = randn(2, 3, 4).requires_grad_()
    e = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    n_iter, tol = (300, 1e-13) if adjoint == "implicit" else (3, 0.0)

    def plan(s, e):
        return scale(s, e, n_iter=n_iter, tol=tol, adjoint=adjoint)[0]

    assert torch.autograd.gradgradcheck(plan, (scores, e), fast_mode=engine == "triton")
    a, b = randn(2, 3, seed=1).requires_grad_(), randn(2, 4, seed=2).requires_grad_()

    def masses(s, a, b):
        return scale(s, 1.0, a.softmax(-1), b.softmax(-1), n_iter=n_iter, tol=tol, adjoint=adjoint)[0]

    assert torch.autograd.gradgradcheck(masses, (scores, a, b), fast_mode=engine == "triton")


@pytest.mark.parametrize("adjoint", tiny.ADJOINTS)
@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.002])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_gradients_at_any_temperature_follow_float64(engine, dtype, size, epsilon, adjoint):
    # Plans near permutations are where a plain factorisation of the linear system would lose all digits.
    scores = randn(19, *size, dtype=dtype)
    weight = randn(19, *size, seed=5)

    def gradient(scores):
        leaf = scores.detach().requires_grad_()
        plan = scale(leaf, epsilon, adjoint=adjoint)[0]
        return epsilon * torch.autograd.grad((plan * weight.to(plan)).sum(), leaf)[0].double()

    found = gradient(scores)
    with use_engine("reference"):
        exact = gradient(scores.double())
    exponents = float(scores.abs().max()) / epsilon
    tol = torch.finfo(dtype).eps * size[0] * (50 + 4 * exponents)
    torch.testing.assert_close(found, exact, rtol=0, atol=max(tol, 1e-12))


@pytest.mark.parametrize("adjoint", tiny.ADJOINTS)
def test_gradients_through_many_rebuilt_kernels(engine, adjoint):
    # u and v stray far: the unrolled gradient goes back through several sets of potentials
    scores = 300 * randn(17, 6, 6)
    weight = randn(17, 6, 6, seed=3)

    def gradient(s):
        leaf = s.detach().requires_grad_()
        return torch.autograd.grad((scale(leaf, 1.0, n_iter=60, adjoint=adjoint)[0] * weight).sum(), leaf)[0]

    found = gradient(scores)
    with use_engine("reference"):
        torch.testing.assert_close(found, gradient(scores), rtol=1e-6, atol=1e-9)


def test_adjoints_agree_at_convergence(engine):
    scores = randn(10, 6, 6).requires_grad_()
    weight = randn(10, 6, 6, seed=4)
    gradients = [
        torch.autograd.grad((scale(scores, 0.5, n_iter=400, adjoint=adjoint)[0] * weight).sum(), scores)[0]
        for adjoint in tiny.ADJOINTS
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_implicit_gradients_keep_the_sums(engine):
    scores = randn(10, 5, 8).requires_grad_()
    plan = scale(scores, 0.5, n_iter=400)[0]
    (gradient,) = torch.autograd.grad((plan * randn(10, 5, 8, seed=6)).sum(), scores)
    assert gradient.sum(-1).abs().max() < 1e-12  # what is added along a line changes nothing
    assert gradient.sum(-2).abs().max() < 1e-12


# -- the operators -----------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("adjoint", tiny.ADJOINTS)
def test_operators_keep_the_rules_of_torch(adjoint):
    scores, epsilon = randn(3, 4, 5).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    r, c = simplex_like(3, 4, seed=1).requires_grad_(), simplex_like(3, 5, seed=2).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for masses in ((None, None), (r, c)):
        args = (scores, epsilon, *masses, 5, 0.0, adjoint)
        torch.library.opcheck(torch.ops.brenier.tiny_sinkhorn.default, args, test_utils=tests)
        plan = torch.ops.brenier.tiny_sinkhorn(*args)[0].detach()
        args = (scores, epsilon, *masses, plan, randn(3, 4, 5, seed=3), 5, adjoint)
        torch.library.opcheck(torch.ops.brenier.tiny_sinkhorn_gradient.default, args, test_utils=tests[:3])


@needs_native
def test_compiled_code_calls_the_operators():
    scores = randn(6, 4, 4).requires_grad_()

    def loss(s):
        return (tiny.scale(s, torch.ones((), dtype=s.dtype), n_iter=10)[0] * torch.arange(4)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores), loss(scores))
    gradients = [torch.autograd.grad(f(scores), scores)[0] for f in (compiled, loss)]
    torch.testing.assert_close(*gradients)


@needs_native
def test_operators_refuse_what_does_not_fit():
    scores, one = randn(2, 3, 3), torch.ones((), dtype=torch.float64)
    operator = torch.ops.brenier.tiny_sinkhorn
    with pytest.raises(ValueError, match="expected both r and c"):
        operator(scores, one, torch.ones(2, 3).double(), None, 5, 0.0, "implicit")
    with pytest.raises(ValueError, match="lengths of rows and columns"):
        operator(scores, one, torch.ones(2, 3).double(), torch.ones(2, 4).double(), 5, 0.0, "implicit")
    with pytest.raises(ValueError, match="one epsilon"):
        operator(scores, one.expand(3), None, None, 5, 0.0, "implicit")
    with pytest.raises(TypeError, match="float64 on cpu"):
        operator(scores, one.float(), None, None, 5, 0.0, "implicit")
    with use_engine("native"), pytest.raises(RuntimeError, match="sides up to 128"):
        tiny.scale(randn(1, 129, 4), one, n_iter=3)


@needs_native
def test_results_do_not_depend_on_threads_or_neighbours():
    scores = randn(1000, 16, 16, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(scale(scores, 0.5, n_iter=40)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    torch.testing.assert_close(scale(scores[37:41], 0.5, n_iter=40)[0], found[0][37:41], rtol=0, atol=1e-6)
