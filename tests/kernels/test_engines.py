"""One battery for all engines, against dense float64."""

import math
import sys
import warnings

import numpy
import pytest
import torch
import torch.utils.checkpoint
from anywhere import engine

from brenier import InvalidInput, PointCloud
from brenier.kernels import native, reference
from brenier.kernels.build import triton_runs

KINDS = {"dot": None, "l1": 1.0, "l2": 2.0, "linf": math.inf}
DTYPES = (torch.float32, torch.float64)

needs_native = pytest.mark.skipif(not native.available(), reason="the extension was not built")
needs_triton = pytest.mark.skipif(
    not triton_runs(torch.empty(0)), reason="Triton is not installed, or not to be interpreted here"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
on_gpu = pytest.param("gpu", marks=[pytest.mark.gpu, needs_gpu])
by_native = pytest.param("native", marks=needs_native)
engines = pytest.mark.parametrize("name", ["reference", by_native, pytest.param("triton", marks=needs_triton), on_gpu])
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def fewer(name, size):
    """As many as the interpreter passes through in time."""
    return min(size, 200) if name == "triton" else size


def cost(kind, x, y):
    if kind == "dot":
        return -(x @ y.mT)
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), ord=KINDS[kind], dim=-1)


def pairs_of(kind, x, y):
    return reference.Pairs(
        (x,), (y,), lambda rows, cols: cost(kind, rows[0], cols[0]), (x.shape[-2], y.shape[-2]), kind
    )


def problem(kind, n, m, d, dtype, *, batch=(), scale=1.0, seed=0):
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return (scale * torch.randn(*batch, *shape, generator=gen, dtype=torch.float64)).to(dtype)

    x, y, f, g = randn(n, d), randn(m, d), randn(n), randn(m)
    return pairs_of(kind, x, y), f, g


def wide(pairs, kind):
    """The same cost in float64, and its dense matrix."""
    x, y = pairs.rows[0].double(), pairs.cols[0].double()
    return cost(kind, x, y)


def size_of(pairs, *potentials):
    """The size of the numbers that are added up: what rounding is relative to."""
    x, y = pairs.rows[0].double(), pairs.cols[0].double()
    dots = float((x.norm(dim=-1).amax() * y.norm(dim=-1).amax()).clamp(min=1))
    finite = [float(p[torch.isfinite(p)].abs().max()) if torch.isfinite(p).any() else 0.0 for p in potentials]
    return (dots if pairs.kind == "dot" else float(x.abs().sum(-1).max() + y.abs().sum(-1).max())) + sum(finite)


def unit(dtype):
    return torch.finfo(dtype).eps


def spread(epsilon, dims):
    return epsilon[(...,) + (None,) * dims] if isinstance(epsilon, torch.Tensor) and epsilon.dim() else epsilon


def check_softmin(pairs, h, epsilon, out):
    e = epsilon.double() if isinstance(epsilon, torch.Tensor) else epsilon
    c = wide(pairs, pairs.kind)
    exact = -spread(e, 1) * torch.logsumexp((h.double().unsqueeze(-2) - c) / spread(e, 2), -1)
    assert out.dtype == h.dtype
    assert out.shape == exact.shape
    assert not out.isnan().any()
    # rounding of the exponent, in cost units, and of the exponential times epsilon
    size = size_of(pairs, h) * math.sqrt(pairs.rows[0].shape[-1]) + float(torch.as_tensor(e).max())
    tol = 4 * unit(h.dtype) * size
    torch.testing.assert_close(out.double(), exact, rtol=4 * unit(h.dtype), atol=tol)


def test_check_softmin_can_fail():
    pairs, _, h = problem("dot", 5, 6, 2, torch.float32)
    out = reference.softmin(pairs, h, 0.3)
    check_softmin(pairs, h, 0.3, out)
    for wrong in (out + 1e-3, torch.full_like(out, torch.nan), out.double(), out[:-1]):
        with pytest.raises(AssertionError):
            check_softmin(pairs, h, 0.3, wrong)


@engines
@kinds
@dtypes
@pytest.mark.parametrize("d", [1, 2, 3, 5, 16, 17, 64, 130])
@pytest.mark.parametrize(("n", "m"), [(37, 61), (1, 50), (50, 1), (9, 700)])
def test_softmin(name, kind, dtype, d, n, m):
    pairs, _, h = problem(kind, n, m, d, dtype)
    with engine.use_engine(name):
        check_softmin(pairs, h, 0.3, engine.softmin(pairs, h, 0.3))


@engines
@kinds
@dtypes
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_softmin_extremes(name, kind, dtype, epsilon, scale):
    pairs, _, h = problem(kind, 40, fewer(name, 5000), 3, dtype, scale=scale)
    with engine.use_engine(name):
        check_softmin(pairs, h, epsilon, engine.softmin(pairs, h, epsilon))


@engines
@dtypes
def test_softmin_of_rising_exponents(name, dtype):
    """The largest term keeps moving to later columns, by far more than a float can hold."""
    m = fewer(name, 20_000)
    x, y = torch.ones(13, 1, dtype=dtype), torch.linspace(-3000, 3000, m, dtype=dtype).unsqueeze(-1)
    for points in (y, y.flip(0)):
        pairs, h = pairs_of("dot", x, points), torch.zeros(m, dtype=dtype)
        with engine.use_engine(name):
            check_softmin(pairs, h, 0.5, engine.softmin(pairs, h, 0.5))


@engines
@kinds
@dtypes
def test_columns_without_mass(name, kind, dtype):
    pairs, f, h = problem(kind, 20, 300, 3, dtype)
    h[::2] = -torch.inf
    h[:100] = -torch.inf
    with engine.use_engine(name):
        check_softmin(pairs, h, 0.1, engine.softmin(pairs, h, 0.1))
        v = torch.ones(300, 6, dtype=dtype)
        for k in (1, 6):
            out = engine.apply(pairs, f, h, 0.5, v[:, :k])
            kept = torch.isfinite(h)
            exact = torch.exp((f[:, None] + h[kept] - wide(pairs, kind)[:, kept]).double() / 0.5).sum(-1)
            torch.testing.assert_close(out[:, 0].double(), exact, rtol=100 * unit(dtype), atol=0)
        values, index = engine.cmin(pairs, h)
        assert torch.isfinite(values).all()
        assert torch.isfinite(h[index]).all()
        none = torch.full_like(h, -torch.inf)
        assert (engine.softmin(pairs, none, 0.1) == torch.inf).all()
        values, index = engine.cmin(pairs, none)
        assert (values == torch.inf).all()
        assert (index == 0).all()
        assert (engine.apply(pairs, f, none, 0.1, v) == 0).all()
        mass, price = engine.row_moments(pairs, f, none, 0.1, torch.zeros(300, dtype=dtype))
        assert (mass == 0).all()
        assert (price == 0).all()
        rows = engine.apply(pairs, torch.full_like(f, -torch.inf), h, 0.1, v)
        assert (rows == 0).all()


@engines
@kinds
@dtypes
@pytest.mark.parametrize("d", [1, 3, 5, 64])
def test_cmin(name, kind, dtype, d):
    pairs, _, h = problem(kind, 45, 1001, d, dtype)
    with engine.use_engine(name):
        values, index = engine.cmin(pairs, h)
    exact = wide(pairs, kind) - h.double()
    tol = 8 * unit(dtype) * size_of(pairs, h)
    torch.testing.assert_close(values.double(), exact.min(-1).values, rtol=0, atol=tol)
    chosen = exact.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(chosen, exact.min(-1).values, rtol=0, atol=tol)


@engines
@kinds
@dtypes
def test_cmin_takes_the_first_of_equals(name, kind, dtype):
    points = torch.randint(-2, 3, (400, 2), dtype=dtype, generator=torch.Generator().manual_seed(0))
    pairs, h = pairs_of(kind, points[:50], points), torch.zeros(400, dtype=dtype)
    with engine.use_engine(name):
        values, index = engine.cmin(pairs, h)
    c = wide(pairs, kind)
    first = (c == c.min(-1, keepdim=True).values).to(torch.uint8).argmax(-1)
    if kind != "l2":  # small integers: all exact; a square root is at least monotone
        assert (values.double() == c.min(-1).values).all()
    assert (index == first).all()


@engines
@kinds
@dtypes
@pytest.mark.parametrize("d", [1, 3, 16, 64])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 33, 70])
def test_apply(name, kind, dtype, d, k):
    pairs, f, g = problem(kind, 37, 613, d, dtype)
    epsilon = 2.0 * d
    v = torch.randn(613, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    with engine.use_engine(name):
        out = engine.apply(pairs, f, g, epsilon, v)
    p = torch.exp((f.double().unsqueeze(-1) + g.double() - wide(pairs, kind)) / epsilon)
    size = p @ v.double().abs()
    assert out.shape == (37, k)
    assert ((out.double() - p @ v.double()).abs() <= 40 * unit(dtype) * size).all()


@engines
@kinds
@dtypes
@pytest.mark.parametrize("d", [2, 3, 20])
def test_moments_and_matvec(name, kind, dtype, d):
    pairs, f, g = problem(kind, 37, 613, d, dtype)
    term = torch.randn(613, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    with engine.use_engine(name):
        mass, price = engine.row_moments(pairs, f, g, 2.0 * d, term)
        product = engine.matvec(pairs, g)
    c = wide(pairs, kind)
    p = torch.exp((f.double().unsqueeze(-1) + g.double() - c) / (2.0 * d))
    full = c + term.double()
    assert ((mass.double() - p.sum(-1)).abs() <= 40 * unit(dtype) * p.sum(-1)).all()
    size = (p * (c.abs() + term.double().abs())).sum(-1) * math.sqrt(d)
    assert ((price.double() - (p * full).sum(-1)).abs() <= 40 * unit(dtype) * size).all()
    size = (c.abs() @ g.double().abs()).clamp(min=1) * math.sqrt(d)
    assert ((product.double() - c @ g.double()).abs() <= 40 * unit(dtype) * size).all()


@engines
@kinds
@dtypes
@pytest.mark.parametrize("batch", [(3,), (2, 5), (40,)])
def test_batches_are_single_problems(name, kind, dtype, batch):
    pairs, f, g = problem(kind, 11, 70, 3, dtype, batch=batch)
    epsilon = torch.linspace(0.5, 2.0, math.prod(batch), dtype=dtype).reshape(batch)
    v = torch.randn(*batch, 70, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)
    term = v[..., 0]

    def all_of(pairs, f, g, epsilon, v, term):
        return (
            engine.softmin(pairs, g, epsilon),
            *engine.cmin(pairs, g),
            engine.apply(pairs, f, g, epsilon, v),
            *engine.row_moments(pairs, f, g, epsilon, term),
            engine.matvec(pairs, g),
        )

    with engine.use_engine(name):
        together = all_of(pairs, f, g, epsilon, v, term)
        every = torch.cartesian_prod(*(torch.arange(b) for b in batch)).reshape(-1, len(batch)).tolist()
        for i in every[: 3 if name == "triton" else None]:
            i = tuple(i)
            one = pairs_of(kind, pairs.rows[0][i], pairs.cols[0][i])
            apart = all_of(one, f[i], g[i], epsilon[i], v[i], term[i])
            for a, b in zip(together, apart):
                torch.testing.assert_close(a[i], b, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-5)


@engines
@dtypes
def test_strided_and_shared_inputs(name, dtype):
    big = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x, y = big[::2, ::2], big.T[:4].T.flip(0)
    h = big[:, 1].expand(3, 60)
    apart, shared = pairs_of("dot", x, y), pairs_of("dot", x.expand(3, 30, 4), y.expand(3, 60, 4))
    with engine.use_engine(name):
        out = engine.softmin(shared, h, 0.5)
        check_softmin(pairs_of("dot", x.contiguous(), y.contiguous()), h[0].contiguous(), 0.5, out[1])
        scaled = h * torch.arange(1, 4, dtype=dtype).unsqueeze(-1)  # batch axes of the potentials alone
        out = engine.softmin(apart, scaled, torch.tensor([0.5, 1.0, 2.0], dtype=dtype))
    for i in range(3):
        check_softmin(apart, scaled[i], 0.5 * 2**i, out[i])


@needs_native
@pytest.mark.parametrize("op", ["softmin", "apply", "row_moments", "cmin"])
@dtypes
def test_simd_levels_agree(op, dtype):
    """Every instruction set that this machine has passes through the same numbers."""
    from brenier import _native

    before = _native.simd()
    results = []
    try:
        for level in _native.simd_levels():
            _native.set_simd(level)
            out = []
            for kind in KINDS:
                for n, m, d in ((5, 3, 1), (70, 333, 2), (33, 2100, 3), (19, 500, 7), (19, 90, 300)):
                    pairs, f, g = problem(kind, n, m, d, dtype)
                    v = g.unsqueeze(-1) * torch.arange(1, 41, dtype=dtype)
                    with engine.use_engine("native"):
                        if op == "softmin":
                            out.append(engine.softmin(pairs, g, 0.01))
                            out.append(engine.softmin(pairs, g, 10.0))
                        elif op == "apply":
                            out += [engine.apply(pairs, f, g, 5.0 * d, v[:, :k]) for k in (1, 2, 3, 40)]
                        elif op == "row_moments":
                            out += engine.row_moments(pairs, f, g, 5.0 * d, g)
                        else:
                            out.append(engine.cmin(pairs, g)[0])
            results.append(out)
    finally:
        _native.set_simd(before)
    tol = 3e-5 if dtype == torch.float32 else 1e-12
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=tol, atol=tol * float(a.abs().max()))


@needs_native
@pytest.mark.parametrize("kind", ["dot", "l2"])
def test_threads_change_nothing(kind):
    pairs, f, g = problem(kind, 1003, 1500, 3, torch.float32)
    v = torch.randn(1500, 9, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with engine.use_engine("native"):
                results.append(
                    (
                        engine.softmin(pairs, g, 0.001),
                        *engine.cmin(pairs, g),
                        engine.apply(pairs, f, g, 1.0, v),
                        *engine.row_moments(pairs, f, g, 1.0, g),
                    )
                )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@needs_native
def test_no_row_depends_on_its_neighbours():
    pairs, _, g = problem("dot", 100, 3000, 3, torch.float32, scale=10.0)
    with engine.use_engine("native"):
        out = engine.softmin(pairs, g, 1e-3)
        for s in (slice(3, 50), slice(7, 8), slice(64, 100)):
            part = pairs_of("dot", pairs.rows[0][s], pairs.cols[0])
            assert torch.equal(engine.softmin(part, g, 1e-3), out[s])


@needs_native
def test_memory_is_linear(peak_memory):
    n = 30_000  # n x n float32 would be 3.6 GB
    pairs, f, g = problem("dot", n, n, 3, torch.float32)
    with engine.use_engine("native"):
        grown = peak_memory(lambda: (engine.softmin(pairs, g, 0.1), engine.apply(pairs, f, g, 10.0, pairs.cols[0])))
    assert grown < 32 * 2**20


@pytest.fixture
def peak_memory():
    """By how many bytes a call raises the highest resident memory of the process."""
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024

    def measure(function):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        return unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    return measure


# Derivatives


def leaves(n, m, d, k=None, batch=(), seed=0):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(n, d), (m, d), (n,), (m,)] + ([(m, k)] if k else [])
    out = [torch.randn(*batch, *s, generator=gen, dtype=torch.float64) for s in shapes]
    epsilon = torch.linspace(0.8, 1.5, max(1, math.prod(batch)), dtype=torch.float64).reshape(batch)
    return [t.requires_grad_() for t in (*out, epsilon)]


@engines
@kinds
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_softmin(name, kind, batch):
    x, y, _, h, epsilon = leaves(3, 4, 2, batch=batch)

    def function(x, y, h, epsilon):
        return engine.softmin(pairs_of(kind, x, y), h, epsilon)

    with engine.use_engine(name):
        assert torch.autograd.gradcheck(function, (x, y, h, epsilon), fast_mode=name == "triton")
        assert torch.autograd.gradgradcheck(function, (x, y, h, epsilon), fast_mode=name == "triton")


@engines
@kinds
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_apply(name, kind, batch, k):
    inputs = leaves(3, 4, 2, k, batch=batch)

    def function(x, y, f, g, v, epsilon):
        return engine.apply(pairs_of(kind, x, y), f, g, epsilon, v)

    with engine.use_engine(name):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=name == "triton")
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=name == "triton")


@engines
def test_gradients_of_moments(name):
    x, y, f, g, t, epsilon = leaves(3, 4, 2, 1)

    def moments(x, y, f, g, t, epsilon):
        return engine.row_moments(pairs_of("dot", x, y), f, g, epsilon, t.squeeze(-1))

    with engine.use_engine(name):
        assert torch.autograd.gradcheck(moments, (x, y, f, g, t, epsilon), fast_mode=name == "triton")


@engines
@kinds
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_minima(name, kind, batch):
    x, y, _, g, _ = leaves(3, 4, 2, batch=batch)

    def minimum(x, y, g):
        return engine.cmin(pairs_of(kind, x, y), g)[0]

    with engine.use_engine(name):
        assert torch.autograd.gradcheck(minimum, (x, y, g), fast_mode=name == "triton")
        assert torch.autograd.gradgradcheck(minimum, (x, y, g), fast_mode=name == "triton")


@needs_native
@pytest.mark.parametrize("kind", ["l1", "l2", "linf"])
@dtypes
@pytest.mark.parametrize("d", [1, 3, 17])
@pytest.mark.parametrize("ties", [False, True], ids=["generic", "ties"])
def test_slopes_of_norms(kind, dtype, d, ties):
    """Against the reference in float64, with points that coincide and coordinates that tie as well."""
    pairs, f, g = problem(kind, 37, 613, d, dtype)
    x, y = pairs.rows[0], pairs.cols[0]
    if ties:
        x, y = x.round(), y.round()
    f, g, v = f / 2, g / 2, g.unsqueeze(-1) * torch.arange(1, 7, dtype=dtype)
    g[::5] = -torch.inf
    results = []
    for name, to in (("native", dtype), ("reference", torch.float64)):
        u, w = x.to(to).requires_grad_(), y.to(to).requires_grad_()
        some = pairs_of(kind, u, w)
        epsilon = torch.tensor(2.0 * d, dtype=to)
        with engine.use_engine(name):
            soft = engine.softmin(some, g.to(to), epsilon)
            plan = engine.apply(some, f.to(to), g.to(to), epsilon, v.to(to))
            least = engine.cmin(some, g.to(to))[0]
        scale = torch.linspace(-1, 2, 37, dtype=to)
        results.append(
            [torch.autograd.grad((t.reshape(37, -1).sum(-1) * scale).sum(), (u, w)) for t in (soft, plan, least)]
        )
    results[0][2:], results[1][2:] = ([], []) if ties else (results[0][2:], results[1][2:])  # minima tie by rounding
    for mine, exact in zip(*results):
        for a, b in zip(mine, exact):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=100 * unit(dtype) * float(b.abs().max()))


@engines
@kinds
def test_gradients_past_columns_without_mass(name, kind):
    x, y, _, h, epsilon = leaves(5, 6, 2)
    with torch.no_grad():
        h[2] = -torch.inf
    with engine.use_engine(name):
        grads = torch.autograd.grad(engine.softmin(pairs_of(kind, x, y), h, epsilon).sum(), (x, y, h))
    kept = torch.isfinite(h)
    dense = -epsilon * torch.logsumexp((h[kept] - cost(kind, x, y[kept])) / epsilon, -1)
    exact = torch.autograd.grad(dense.sum(), (x, y, h))
    for a, b in zip(grads, exact):
        torch.testing.assert_close(a, b)


@needs_native
def test_what_has_no_native_gradient():
    pairs, f, h = problem("l2", 5, 6, 3, torch.float64)
    x = pairs.rows[0].requires_grad_()
    some = pairs_of("l2", x, pairs.cols[0])
    for call in (lambda: engine.matvec(some, h), lambda: engine.row_moments(some, f, h, 0.5, h)[1]):
        assert torch.isfinite(torch.autograd.grad(call().sum(), x)[0]).all()
        with engine.use_engine("native"), pytest.raises(RuntimeError, match="with gradients"):
            call()


@needs_native
def test_operators_are_well_registered():
    x, y, f, g, v, epsilon = leaves(3, 4, 2, 2, batch=(2,))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for op, args in (
        (native.softmin, (x, y, g, epsilon, "dot")),
        (native.cmin, (x, y, g, "dot")),
        (native.apply, (x, y, f, g, epsilon, v, "dot")),
    ):
        torch.library.opcheck(op, args, test_utils=tests)
    plain = [t.detach() for t in (x, y, f, g, epsilon, v)]
    for op, args in (
        (native.row_moments, (*plain[:5], plain[3], "dot")),
        (native.matvec, (*plain[:2], plain[3], "l1")),
        (native.weighted_apply, (*plain[:5], plain[0], plain[1], plain[5], "dot")),
        (native.slope, (*plain[:5], None, None, "l1")),
    ):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


@needs_native
def test_compiles_without_a_graph_break():
    x, y, h = torch.randn(30, 3, requires_grad=True), torch.randn(40, 3), torch.zeros(40)

    def function(x, y, h):
        return engine.softmin(pairs_of("dot", x, y), h, 0.5).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        grad = torch.autograd.grad(compiled(x, y, h), x)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(function(x, y, h), x)[0])


@needs_native
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2.0e-7), (torch.float64, 4.5e-16)])
def test_the_exponential(dtype, bound):
    """Over the whole range of exponents, by every instruction set."""
    from brenier import _native

    lowest, highest = (-125.99, 127.49) if dtype == torch.float32 else (-1021.99, 1023.49)
    x = torch.linspace(lowest, highest, 300_007, dtype=dtype)
    x = torch.cat([x, torch.linspace(-1, 1, 300_007, dtype=dtype)])
    exact = numpy.exp2(x.numpy().astype(numpy.longdouble))
    ends = torch.tensor([-torch.inf, -1e30, -2000.0, 0.0, 5000.0, torch.nan], dtype=dtype)
    before = _native.simd()
    try:
        for level in _native.simd_levels():
            _native.set_simd(level)
            out, edge = torch.empty_like(x), torch.empty_like(ends)
            _native.exp2(dtype == torch.float64, x.data_ptr(), out.data_ptr(), x.numel())
            _native.exp2(dtype == torch.float64, ends.data_ptr(), edge.data_ptr(), ends.numel())
            assert float(abs(out.numpy() / exact - 1).max()) < bound
            assert edge[:3].tolist() == [0, 0, 0]
            assert abs(float(edge[3]) - 1) < bound
            assert edge[4] == torch.inf
            assert edge[5].isnan()
    finally:
        _native.set_simd(before)


# Blocks


def blocks_of(n, m, seed=0, share=0.5):
    """A pattern with short, long and empty blocks, row blocks without columns, and columns that nobody meets."""
    gen = torch.Generator().manual_seed(seed)

    def starts(size):
        cuts = torch.randint(0, size + 1, (9,), generator=gen)
        return torch.cat([torch.tensor([0, size]), cuts, cuts[:2]]).sort().values

    row_starts, col_starts = starts(n), starts(m)
    there = torch.rand(row_starts.numel() - 1, col_starts.numel() - 1, generator=gen) < share
    there[int(row_starts.diff().argmax())] = False
    there[:, int(col_starts.diff().argmax())] &= torch.rand(there.shape[0], generator=gen) < 0.5
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), there.sum(1).cumsum(0)])
    return reference.Blocks(row_starts, col_starts, indptr, there.nonzero()[:, 1]), there


def masked(pairs, blocks, there):
    """The cost in float64, infinite where there is no pair, and the row block of each row."""
    row_of = torch.arange(there.shape[0]).repeat_interleave(blocks.row_starts.diff())
    col_of = torch.arange(there.shape[1]).repeat_interleave(blocks.col_starts.diff())
    return torch.where(there[row_of][:, col_of], wide(pairs, pairs.kind), torch.inf), row_of


@engines
@kinds
@dtypes
@pytest.mark.parametrize(("n", "m", "d", "seed"), [(83, 700, 3, 0), (130, 61, 2, 1), (300, 400, 17, 2), (5, 9, 1, 3)])
@pytest.mark.parametrize("own", [False, True], ids=["one epsilon", "epsilons"])
def test_blocks(name, kind, dtype, n, m, d, seed, own):
    pairs, f, g = problem(kind, n, m, d, dtype, seed=seed)
    blocks, there = blocks_of(n, m, seed)
    assert blocks.shape == (n, m)
    c, row_of = masked(pairs, blocks, there)
    met = torch.isfinite(c)
    assert blocks.pairs == blocks.T.pairs == int(met.sum())
    g[3::7] = -torch.inf
    pairs = pairs._replace(blocks=blocks)
    sizes = torch.linspace(0.5, 2.0, there.shape[0], dtype=dtype) if own else torch.ones(())
    epsilon = (sizes * 2 * d).to(dtype)
    e = epsilon.double()[row_of].unsqueeze(-1) if own else epsilon.double()
    z = (g.double() - c) / e
    p = torch.exp(z + f.double().unsqueeze(-1) / e)
    v = torch.randn(m, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    vd, unit_ = v.double(), unit(dtype)
    size = size_of(pairs, f, g) * math.sqrt(d) + float(epsilon.max())
    with engine.use_engine(name):
        out = engine.softmin(pairs, g, epsilon)
        values, index = engine.cmin(pairs, g)
        plans = [engine.apply(pairs, f, g, epsilon, v[:, :k]) for k in (1, 3, 5)]
        mass, price = engine.row_moments(pairs, f, g, epsilon, v[:, 0])
        product = engine.matvec(pairs, v[:, 0])
        rows, cols, reduced = engine.support(pairs, f, f.new_zeros(m), 0.5 * d, 4)
        best = engine.smallest(pairs, f, f.new_zeros(m), 11)
    exact = -e.reshape(-1) * torch.logsumexp(z, -1)
    torch.testing.assert_close(out.double(), exact, rtol=4 * unit_, atol=4 * unit_ * size)
    least = (c - g.double()).min(-1)
    torch.testing.assert_close(values.double(), least.values, rtol=0, atol=8 * unit_ * size)
    some = torch.isfinite(least.values)
    chosen = (c - g.double()).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(chosen[some], least.values[some], rtol=0, atol=8 * unit_ * size)
    assert (index[~some] == 0).all()
    for plan in plans:
        exact = p @ vd[:, : plan.shape[-1]]
        assert ((plan.double() - exact).abs() <= 60 * unit_ * (p @ vd.abs())[:, : plan.shape[-1]]).all()
    full = torch.where(met, c + vd[:, 0], 0)
    assert ((mass.double() - p.sum(-1)).abs() <= 60 * unit_ * p.sum(-1)).all()
    bound = (p * (torch.where(met, c, 0).abs() + vd[:, 0].abs())).sum(-1) * math.sqrt(d)
    assert ((price.double() - (p * full).sum(-1)).abs() <= 60 * unit_ * bound).all()
    c0 = torch.where(met, c, 0)
    bound = (c0.abs() @ vd[:, 0].abs()).clamp(min=1) * math.sqrt(d)
    assert ((product.double() - c0 @ vd[:, 0]).abs() <= 40 * unit_ * bound).all()
    left = c - f.double().unsqueeze(-1)
    assert (rows.diff() >= 0).all()
    torch.testing.assert_close(reduced.double(), left[rows, cols], rtol=0, atol=8 * unit_ * size)
    assert rows.bincount(minlength=n).tolist() == (left <= 0.5 * d).sum(-1).clamp(max=4).tolist()
    kept = min(11, int(met.sum()))
    smallest = left.flatten().sort().values[:kept]
    torch.testing.assert_close(best[2].double(), smallest, rtol=0, atol=8 * unit_ * size)
    torch.testing.assert_close(left[best[0], best[1]], smallest, rtol=0, atol=8 * unit_ * size)


@engines
@kinds
def test_all_blocks_are_no_blocks(name, kind):
    m = fewer(name, 2500)
    pairs, f, g = problem(kind, 200, m, 3, torch.float64)
    starts = torch.tensor([0, 7, 130, 200]), torch.tensor([0, 1, 33, 33, 90, m])
    every = torch.arange(5).repeat(3)
    blocks = reference.Blocks(*starts, torch.arange(4) * 5, every)
    v = torch.randn(m, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with engine.use_engine(name):
        for some in (pairs._replace(blocks=blocks), pairs._replace(blocks=blocks.T.T)):
            torch.testing.assert_close(engine.softmin(some, g, 0.01), engine.softmin(pairs, g, 0.01))
            assert torch.equal(engine.cmin(some, g)[1], engine.cmin(pairs, g)[1])
            torch.testing.assert_close(engine.apply(some, f, g, 3.0, v), engine.apply(pairs, f, g, 3.0, v))


@needs_native
@pytest.mark.parametrize("kind", ["dot", "l2"])
def test_threads_change_nothing_with_blocks(kind):
    pairs, f, g = problem(kind, 1003, 1500, 3, torch.float32)
    pairs = pairs._replace(blocks=blocks_of(1003, 1500)[0])
    v = torch.randn(1500, 9, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            with engine.use_engine("native"):
                results.append(
                    (engine.softmin(pairs, g, 0.001), *engine.cmin(pairs, g), engine.apply(pairs, f, g, 1.0, v))
                )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@engines
@kinds
@pytest.mark.parametrize("own", [False, True], ids=["one epsilon", "epsilons"])
def test_gradients_with_blocks(name, kind, own):
    x, y, f, g, v, _ = leaves(6, 7, 2, 2)
    diagonal = reference.Blocks.diagonal(torch.tensor([0, 2, 5, 6]), torch.tensor([0, 3, 4, 7]))
    banded = reference.Blocks(*(torch.tensor(t) for t in ([0, 2, 4, 6], [0, 3, 7], [0, 2, 3, 3], [0, 1, 1])))
    blocks = diagonal if own else banded
    epsilon = torch.tensor([0.8, 1.1, 1.5] if own else 1.2, dtype=torch.float64, requires_grad=True)

    def pairs(x, y):
        return pairs_of(kind, x, y)._replace(blocks=blocks)

    def softmin(x, y, g, epsilon):
        out = engine.softmin(pairs(x, y), g, epsilon)
        return out[torch.isfinite(out)]

    def apply(x, y, f, g, v, epsilon):
        return engine.apply(pairs(x, y), f, g, epsilon, v)

    def moments(x, y, f, g, v, epsilon):
        return engine.row_moments(pairs(x, y), f, g, epsilon, v[:, 0])

    def minimum(x, y, g):
        out = engine.cmin(pairs(x, y), g)[0]
        return out[torch.isfinite(out)]

    with engine.use_engine(name):
        assert torch.autograd.gradcheck(softmin, (x, y, g, epsilon), fast_mode=name == "triton")
        assert torch.autograd.gradgradcheck(softmin, (x, y, g, epsilon), fast_mode=name == "triton")
        assert torch.autograd.gradcheck(apply, (x, y, f, g, v, epsilon), fast_mode=name == "triton")
        assert torch.autograd.gradcheck(minimum, (x, y, g), fast_mode=name == "triton")
        if kind == "dot" or name == "reference":
            assert torch.autograd.gradcheck(moments, (x, y, f, g, v, epsilon), fast_mode=name == "triton")


def test_blocks_refuse_nonsense():
    good = {"row_starts": [0, 2, 4], "col_starts": [0, 3], "indptr": [0, 1, 1], "cols": [0]}
    reference.Blocks(**{k: torch.tensor(v) for k, v in good.items()})
    for field, wrong in (
        ("row_starts", [1, 2, 4]),
        ("row_starts", [0, 3, 2]),
        ("indptr", [0, 1]),
        ("indptr", [0, 1, 2]),
        ("cols", [1]),
        ("cols", [-1]),
        ("cols", [0.0]),
        ("col_starts", []),
    ):
        with pytest.raises(InvalidInput, match=f"blocks {'indptr' if field == 'indptr' else field}"):
            reference.Blocks(**{k: torch.tensor(v) for k, v in (good | {field: wrong}).items()})
    with pytest.raises(InvalidInput, match="ascending"):
        reference.Blocks(*(torch.tensor(t) for t in ([0, 4], [0, 1, 2], [0, 2], [1, 0])))
    pairs, _, h = problem("dot", 5, 6, 2, torch.float32)
    blocks = reference.Blocks.diagonal(torch.tensor([0, 4]), torch.tensor([0, 6]))
    if native.available():
        with engine.use_engine("native"), pytest.raises(ValueError, match="as many rows and columns"):
            engine.softmin(pairs._replace(blocks=blocks), h, 1.0)


# Lists of entries

LISTED = (*KINDS, "matrix", "columns")  # a matrix, row by row or column by column


def levels(name):
    """Every instruction set that this machine has, for the native engine."""
    if name != "native":
        yield
        return
    from brenier import _native

    before = _native.simd()
    try:
        for level in _native.simd_levels():
            _native.set_simd(level)
            yield
    finally:
        _native.set_simd(before)


def listed_problem(kind, n, m, d, dtype, *, whole=False, seed=0):
    """As `problem`, over a matrix too, and the reduced costs in float64; `whole` numbers have no rounding and ties."""
    pairs, f, g = problem("l1" if kind in ("matrix", "columns") else kind, n, m, d, dtype, seed=seed)
    if whole:
        pairs = pairs_of(pairs.kind, pairs.rows[0].round(), pairs.cols[0].round())
        f, g = f.round(), g.round()
    left = wide(pairs, pairs.kind)
    if kind in ("matrix", "columns"):
        given = left.to(dtype)
        given, left = given.mT.contiguous().mT if kind == "columns" else given, given.double()
        pairs = reference.Pairs((given,), (), lambda rows, cols: rows[0], (n, m), "matrix")
    return pairs, f, g, left


def only_clouds(name, kind):
    if name in ("triton", "gpu") and kind not in KINDS:
        pytest.skip("a matrix on a GPU is the reference's")


def first_entries(left, there, threshold, most):
    """Rows and columns that `support` is to give: by value and column where `most` cuts a row, else by column."""
    values, order = left.masked_fill(~there, torch.nan).sort(dim=-1, stable=True)
    number = torch.arange(left.shape[1])
    met = there.sum(-1, keepdim=True)
    cut = torch.full_like(met, left.shape[1]) if most is None else torch.full_like(met, most)
    keep = (values <= threshold) & (number < torch.minimum(cut, met))
    rows, place = keep.nonzero(as_tuple=True)
    cols = order[rows, place]
    by_column = (rows * left.shape[1] + cols).argsort()
    limited = (cut < met).squeeze(-1)[rows]
    return rows, torch.where(limited, cols, cols[by_column])


def pattern(n, m, blocks):
    """Blocks, or none, and which pairs there are."""
    if not blocks:
        return None, torch.ones(n, m, dtype=torch.bool)
    some, there = blocks_of(n, m, seed=n)
    row_of = torch.arange(there.shape[0]).repeat_interleave(some.row_starts.diff())
    col_of = torch.arange(there.shape[1]).repeat_interleave(some.col_starts.diff())
    return some, there[row_of][:, col_of]


@engines
@dtypes
@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("blocks", [False, True], ids=["all", "blocks"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 50), (50, 1), (37, 61), (140, 300), (9, 2700)])
def test_lists_of_whole_numbers(name, kind, dtype, blocks, n, m):
    """Exactly what is wanted, with ties, columns and rows without mass, at every threshold and number."""
    only_clouds(name, kind)
    pairs, f, g, c = listed_problem(kind, n, m, 2, dtype, whole=True)
    g[1::4], f[2::5] = -torch.inf, -torch.inf
    some, there = pattern(n, m, blocks)
    pairs = pairs._replace(blocks=some)
    left = c - f.double().unsqueeze(-1) - g.double()
    at = (left * (1 << 20)).round() / (1 << 20) if kind == "l2" else left  # roots that are equal but for rounding
    rounding = 8 * unit(dtype) * (10 if kind == "l2" else 0)
    for _ in levels(name):
        with engine.use_engine(name):
            for threshold in (-torch.inf, -1.2, 2.4, torch.inf):
                for most in {0, 1, 24, max(1, m - 1), m, 3 * m, None} if m < 300 else {2, 24, None}:
                    rows, cols, reduced = engine.support(pairs, f, g, threshold, most)
                    expected, order = first_entries(at, there, threshold, most)
                    assert reduced.dtype == dtype
                    assert torch.equal(rows, expected)
                    assert there[rows, cols].all()
                    assert torch.equal(at[rows, cols], at[expected, order])
                    torch.testing.assert_close(reduced.double(), left[rows, cols], rtol=0, atol=rounding)
                    assert (rows * m + cols).unique().numel() == rows.numel()
                    if kind != "l2" and (name == "native" or most is None or most >= m):
                        assert torch.equal(cols, order)
            values, order = at.masked_fill(~there, torch.nan).flatten().sort(stable=True)
            for k in {0, 1, 7, n * m // 2, n * m, 2 * n * m}:
                rows, cols, reduced = engine.smallest(pairs, f, g, k)
                number = min(k, int(there.sum()))
                assert torch.equal(at[rows, cols], values[:number])
                assert (reduced[1:] >= reduced[:-1]).all()
                torch.testing.assert_close(reduced.double(), left[rows, cols], rtol=0, atol=rounding)
                assert (rows * m + cols).unique().numel() == number
                if kind != "l2" and name == "native":
                    assert torch.equal(rows * m + cols, order[:number])


@engines
@dtypes
@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("d", [1, 3, 17])
def test_lists_of_any_numbers(name, kind, dtype, d):
    only_clouds(name, kind)
    n, m = 21, fewer(name, 5001)
    pairs, f, g, c = listed_problem(kind, n, m, d, dtype)
    left = c - f.double().unsqueeze(-1) - g.double()
    x = pairs.rows[0].double()
    size = float(c.abs().max() + f.abs().max() + g.abs().max()) if pairs.kind == "matrix" else size_of(pairs, f, g)
    tol = 8 * unit(dtype) * size * math.sqrt(x.shape[-1] if pairs.kind != "matrix" else 1)
    ordered = left.sort(-1).values
    for _ in levels(name):
        with engine.use_engine(name):
            for most in (1, 24, min(700, m - 1)):
                for threshold in (torch.inf, float(ordered[:, 40].median())):
                    rows, cols, reduced = engine.support(pairs, f, g, threshold, most)
                    torch.testing.assert_close(reduced.double(), left[rows, cols], rtol=0, atol=tol)
                    counts = rows.bincount(minlength=n)
                    for slack, bound in ((-tol, counts.__ge__), (tol, counts.__le__)):
                        assert bound((left <= threshold + slack).sum(-1).clamp(max=most)).all()
                    place = torch.arange(rows.numel()) - (counts.cumsum(0) - counts)[rows]
                    torch.testing.assert_close(reduced.double(), ordered[rows, place], rtol=0, atol=tol)
            for k in (1, 1000, min(20_000, n * m // 2)):
                rows, cols, reduced = engine.smallest(pairs, f, g, k)
                torch.testing.assert_close(reduced.double(), left[rows, cols], rtol=0, atol=tol)
                torch.testing.assert_close(reduced.double(), left.flatten().sort().values[:k], rtol=0, atol=tol)


@needs_native
@pytest.mark.parametrize("kind", ["dot", "l2", "matrix", "columns"])
@pytest.mark.parametrize("blocks", [False, True], ids=["all", "blocks"])
def test_threads_change_no_list(kind, blocks):
    pairs, f, g, _ = listed_problem(kind, 1003, 1500, 3, torch.float32, whole=True)
    pairs = pairs._replace(blocks=pattern(1003, 1500, blocks)[0])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            with engine.use_engine("native"):
                results.append((*engine.support(pairs, f, g, 2.4, 9), *engine.smallest(pairs, f, g, 20_000)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@needs_native
def test_lists_with_gradients_are_the_reference_s():
    pairs, f, g, _ = listed_problem("dot", 6, 7, 3, torch.float64)
    for reduced in (lambda: engine.support(pairs, f, g, 1.0, 3)[2], lambda: engine.smallest(pairs, f, g, 5)[2]):
        f.requires_grad_(False)
        plain = reduced()
        f.requires_grad_()
        torch.testing.assert_close(reduced(), plain)
        assert torch.autograd.grad(reduced().sum(), f)[0].sum() == -plain.numel()
        with engine.use_engine("native"), pytest.raises(RuntimeError, match="with gradients"):
            reduced()


@needs_native
def test_lists_refuse_nonsense():
    pairs, f, g, _ = listed_problem("dot", 6, 7, 3, torch.float64)
    with engine.use_engine("native"):
        with pytest.raises(InvalidInput, match="at least 0"):
            engine.smallest(pairs, f, g, -1)
        with pytest.raises(ValueError, match="expected f"):
            engine.support(pairs, g, g, 1.0, None)


# The choice


def test_use_engine_refuses_other_names():
    with pytest.raises(ValueError, match="'native', 'triton'"), engine.use_engine("cuda"):
        pass


@needs_native
def test_native_serves_the_named_costs(monkeypatch):
    calls = []
    run = native._run
    monkeypatch.setattr(native, "_run", lambda *args, **kwargs: calls.append(args[1]) or run(*args, **kwargs))
    x, y = torch.rand(6, 3), torch.rand(7, 3)
    for ground, kind in (
        ("sqeuclidean", "dot"),
        ("cosine", "dot"),
        ("euclidean", "l2"),
        ("cityblock", "l1"),
        ("chebyshev", "linf"),
        (lambda x, y: (x - y).abs().sum(-1), None),
    ):
        calls.clear()
        geometry = PointCloud(x, y, ground)
        for h, dim in ((torch.zeros(7), 1), (torch.zeros(6), 0)):
            out = geometry.softmin(h, 0.1, dim)
            with engine.use_engine("reference"):
                torch.testing.assert_close(out, geometry.softmin(h, 0.1, dim), rtol=1e-4, atol=1e-5)
        assert calls == ([kind] * 2 if kind else [])
    calls.clear()
    engine.softmin(pairs_of("dot", x.bfloat16(), y.bfloat16()), torch.zeros(7, dtype=torch.bfloat16), 0.1)
    assert calls == []


@engines
@kinds
def test_gradients_inside_a_checkpoint(kind, name):
    """A checkpoint unpacks what was saved once, and refuses a second look."""
    x, y, h = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2), (5, 2), (5,)))

    def loss(x, y, h):
        pairs = pairs_of(kind, x, y)
        soft = engine.softmin(pairs, h, 0.5)
        return engine.apply(pairs, soft, h, 0.5, h.unsqueeze(-1)).sum()

    with engine.use_engine("auto" if name == "native" else name):
        plain = torch.autograd.grad(loss(x, y, h), (x, y, h))
        again = torch.autograd.grad(torch.utils.checkpoint.checkpoint(loss, x, y, h, use_reentrant=False), (x, y, h))
    for one, other in zip(plain, again):
        assert torch.allclose(one, other)
