"""The kernels over a given matrix, both engines, against dense float64."""

import itertools

import pytest
import torch

from brenier import CostMatrix
from brenier.kernels import engine, native
from brenier.kernels.build import native as extension
from brenier.kernels.matrix import _laid_out

needs_native = pytest.mark.skipif(not native.available(), reason="the extension was not built")
engines = pytest.mark.parametrize("name", ["reference", pytest.param("native", marks=needs_native)])
LAYOUTS = ("rows", "columns", "strided", "shared", "batched", "batched columns")
SIZES = [(1, 1), (1, 7), (5, 1), (3, 70), (129, 33), (70, 1100), (40, 8)]


def problem(layout, n, m, dtype, seed=0):
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    batch = () if layout in ("rows", "columns", "strided") else (2, 3)
    own = batch if layout.startswith("batched") else ()
    cost = randn(*own, m, n).mT if "columns" in layout else randn(*own, n, m)
    if layout == "strided":
        cost = randn(2 * n, 3 * m)[::2, ::3]
    epsilon = 0.3 if not batch else 0.1 + torch.rand(*batch, generator=gen, dtype=torch.float64).to(dtype)
    return cost, randn(*batch, n), randn(*batch, m), randn(*batch, m, 5), epsilon


def close(out, exact, dtype, scale=1.0):
    assert out.dtype == dtype
    assert out.shape == exact.shape
    assert torch.allclose(
        out.double(), exact, rtol=60 * torch.finfo(dtype).eps, atol=60 * scale * torch.finfo(dtype).eps
    )


@engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("layout", "size"), list(itertools.product(LAYOUTS, SIZES)))
def test_operations(layout, size, dtype, name):
    cost, f, g, v, epsilon = problem(layout, *size, dtype)
    c = cost.double()
    e = epsilon.double()[..., None] if isinstance(epsilon, torch.Tensor) else epsilon
    wide = e[..., None] if isinstance(e, torch.Tensor) else e
    g = torch.where(torch.arange(size[1]) % 5 == 3, -torch.inf, g)  # columns without mass
    f, g = f - 3, g - 3  # P is not large
    P = torch.exp((f.double().unsqueeze(-1) + g.double().unsqueeze(-2) - c) / wide)
    with engine.use_engine(name):
        geometry = CostMatrix(cost)
        close(geometry.softmin(g, epsilon), -e * torch.logsumexp((g.double().unsqueeze(-2) - c) / wide, -1), dtype, 4)
        values, index = geometry.cmin(g)
        exact = (c - g.double().unsqueeze(-2)).min(-1)
        close(values, exact.values, dtype, 4)
        assert torch.equal(index, (cost - g.unsqueeze(-2)).min(-1).indices)
        for k in (1, 2, 5):
            close(geometry.apply(f, g, epsilon, v[..., :k]), P @ v[..., :k].double(), dtype, float(P.sum(-1).max()) * 4)
        mass, total = geometry.moments(f, g, epsilon)
        close(mass, P.sum(-1), dtype, float(P.sum(-1).max()) * 4)
        close(total, (P * c).sum(-1), dtype, float(P.sum(-1).max()) * 16)


@engines
def test_extremes(name):
    for dtype in (torch.float32, torch.float64):
        for cost in (torch.rand(20, 40, dtype=dtype), torch.rand(40, 20, dtype=dtype).mT):
            with engine.use_engine(name):
                geometry = CostMatrix(cost)
                nothing = torch.full((40,), -torch.inf, dtype=dtype)
                assert bool((geometry.softmin(nothing, 0.1) == torch.inf).all())
                assert bool((geometry.cmin(nothing)[0] == torch.inf).all())
                # far apart: no overflow, no underflow to nothing
                h = torch.linspace(-1e4, 1e4, 40, dtype=dtype)
                out = geometry.softmin(h, 1e-3)
                assert torch.allclose(out, cost[:, -1] - h[-1])
                # an epsilon below the rounding of the potentials: all that is left is the least of them
                for height in (1e12, -1e12, 1e30, -1e30):
                    out = geometry.softmin(torch.full((40,), height, dtype=dtype), 0.3)
                    assert torch.allclose(out, torch.full((20,), -height, dtype=dtype))
                zero = geometry.apply(torch.zeros(20, dtype=dtype), nothing, 0.1, torch.ones(40, 1, dtype=dtype))
                assert bool((zero == 0).all())


@needs_native
def test_every_instruction_set_agrees():
    cost, f, g, v, epsilon = problem("batched", 37, 61, torch.float64)
    geometry, before = CostMatrix(cost), extension.simd()
    results = []
    try:
        for level in extension.simd_levels():
            extension.set_simd(level)
            for one in (geometry, CostMatrix(cost.mT.contiguous()).T):
                results.append([one.softmin(g, epsilon), one.cmin(g)[0], one.apply(f, g, epsilon, v)])
    finally:
        extension.set_simd(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.allclose(a, b, rtol=1e-13)


@needs_native
def test_nothing_is_copied():
    cost = torch.rand(50, 60)
    for c in (cost, cost.mT, cost.expand(3, 50, 60)):
        lying, _, _ = _laid_out(c)
        assert lying.data_ptr() == cost.data_ptr()


@engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("layout", "size"), list(itertools.product(LAYOUTS, SIZES)))
def test_stored_kernels(layout, size, dtype, name):
    cost, f, g, _, epsilon = problem(layout, *size, dtype)
    epsilon = torch.as_tensor(epsilon, dtype=dtype)
    e = epsilon.double()[..., None]
    c, wide = cost.double(), e[..., None] if epsilon.dim() else e
    f = -(e * torch.logsumexp((g.double().unsqueeze(-2) - c) / wide, -1)).to(dtype)  # rows sum to one
    z = (f.double().unsqueeze(-1) + g.double().unsqueeze(-2) - c) / wide
    terms = ((f.abs().unsqueeze(-1) + g.abs().unsqueeze(-2)).double() + c.abs()) / wide
    P, rounding = z.exp(), 4 * torch.finfo(dtype).eps * (1 + float(terms.max()))  # relative, of an entry
    moved = torch.where(torch.arange(size[1]) % 5 == 3, -torch.inf, torch.linspace(-0.2, 0.1, size[1], dtype=dtype))
    with engine.use_engine(name):
        stored = engine.gibbs(cost, f, g, epsilon)
        assert stored.dtype == dtype
        assert torch.allclose(stored.double(), P, rtol=rounding, atol=torch.finfo(dtype).smallest_normal)
        assert torch.equal(engine.gibbs(cost.clone(), f, g, epsilon, over=True), stored)
        for kernel in (stored, stored.mT.contiguous().mT):
            out = engine.rescaled(kernel, f, moved.expand_as(g), epsilon)
            exact = f.double() - e * torch.log((P * torch.exp(moved.double() / wide)).sum(-1))
            assert out.dtype == dtype
            absolute = 2 * float(e.max()) * rounding
            assert torch.allclose(out.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=absolute)


@engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("across", [False, True])
def test_a_stored_kernel_says_when_it_does_not_tell(name, dtype, across):
    kernel = torch.eye(40, dtype=dtype)
    kernel = kernel.mT if across else kernel
    zero, epsilon = torch.zeros(40, dtype=dtype), torch.ones((), dtype=dtype)
    moved = zero.clone()
    moved[7] = -700 if dtype == torch.float64 else -80  # the sum of its row is too small
    with engine.use_engine(name):
        out = engine.rescaled(kernel, zero, moved, epsilon)
        assert out.isnan().nonzero().flatten().tolist() == [7]
        assert engine.rescaled(kernel, zero, -moved, epsilon).isnan().all()  # a scaling is too large


@engines
def test_a_kernel_in_the_place_of_its_costs(name):
    zero, epsilon = torch.zeros(3, 40), torch.ones(3)
    with engine.use_engine(name):
        cost = torch.rand(3, 40, 40)
        assert engine.gibbs(cost, zero, zero, epsilon, over=True).data_ptr() == cost.data_ptr()
        shared = torch.rand(40, 40)
        stored = engine.gibbs(shared, zero, zero, epsilon, over=True)  # three of them, where there is room for one
        assert stored.shape == (3, 40, 40)
        assert torch.equal(stored, engine.gibbs(shared, zero, zero, epsilon))
