"""What is particular to the engine of GPUs; the battery of `test_engines` and `test_tiny` runs on it too."""

import subprocess
import sys

import pytest
import torch
from anywhere import engine
from test_engines import (
    KINDS,
    check_softmin,
    dtypes,
    kinds,
    listed_problem,
    needs_gpu,
    needs_triton,
    on_gpu,
    pairs_of,
    problem,
    size_of,
    unit,
    wide,
)

from brenier import InvalidInput, PointCloud, Ragged, solve
from brenier.kernels import native, reference, tiny, triton_tuning
from brenier.kernels.build import accuracy
from brenier.kernels.triton_tuning import Config

anywhere = pytest.mark.parametrize("name", [pytest.param("triton", marks=needs_triton), on_gpu])


@anywhere
@dtypes
@pytest.mark.parametrize("d", [9, 128, 129, 300])
def test_products_of_many_coordinates(name, dtype, d):
    """Tiled over the coordinates; on tensor cores held by the program up to 128."""
    pairs, f, g = problem("dot", 70, 90, d, dtype)
    v = g.unsqueeze(-1) * torch.arange(1, 71, dtype=dtype)
    with engine.use_engine(name):
        check_softmin(pairs, g, 3.0, engine.softmin(pairs, g, 3.0))
        with engine.use_accuracy("tf32x3"):  # no other numbers in the interpreter, but other tiles
            soft = engine.softmin(pairs, g, 3.0)
        out = engine.apply(pairs, f, g, 2.0 * d, v)
    torch.testing.assert_close(soft, engine.softmin(pairs, g, 3.0), rtol=1e-5, atol=1e-4)
    p = torch.exp((f.double().unsqueeze(-1) + g.double() - wide(pairs, "dot")) / (2.0 * d))
    assert ((out.double() - p @ v.double()).abs() <= 40 * unit(dtype) * (p @ v.double().abs())).all()


@anywhere
@kinds
@pytest.mark.parametrize("d", [3, 40])
def test_bfloat16_is_rounded_once(name, kind, d):
    """Sums and exponents are of float32: what comes is the answer for the numbers as given, rounded."""
    pairs, f, g = problem(kind, 50, 90, d, torch.bfloat16)
    epsilon = torch.tensor(2.0, dtype=torch.bfloat16)
    exact = pairs_of(kind, pairs.rows[0].double(), pairs.cols[0].double())
    scale = (d, float(unit(torch.bfloat16)))
    with engine.use_engine(name):
        soft, (least, _) = engine.softmin(pairs, g, epsilon), engine.cmin(pairs, g)
        plan = engine.apply(pairs, f / d, g / d, 2.0 * d, g.unsqueeze(-1).abs())
    assert soft.dtype == least.dtype == plan.dtype == torch.bfloat16
    for found, wanted in (
        (soft, reference.softmin(exact, g.double(), 2.0)),
        (least, reference.cmin(exact, g.double())[0]),
        (plan, reference.apply(exact, (f / d).double(), (g / d).double(), 2.0 * d, g.double().unsqueeze(-1).abs())),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=0.51 * scale[1], atol=1e-5 * size_of(pairs, f, g))


@anywhere
def test_gradients_in_bfloat16_are_the_reference_s(name):
    pairs, _, g = problem("dot", 5, 6, 3, torch.bfloat16)
    with engine.use_engine(name), pytest.raises(RuntimeError, match="with gradients"):
        engine.softmin(pairs, g.requires_grad_(), 1.0)


@anywhere
def test_many_problems_at_once(name):
    pairs, _, g = problem("dot", 5, 6, 2, torch.float32, batch=(70,))
    epsilon = torch.linspace(0.2, 3, 70)
    with engine.use_engine(name):
        out = engine.softmin(pairs, g, epsilon)
    check_softmin(pairs, g, epsilon, out)


@anywhere
def test_lists_where_all_entries_tie(name, monkeypatch):
    """So long a list is the reference's."""
    x, zero = torch.ones(40, 2), torch.zeros(40)
    pairs = pairs_of("dot", x, x)
    with engine.use_engine(name):
        few = engine.support(pairs, zero, zero, 0.0, 3)
        assert few[0].bincount().tolist() == [3] * 40
        assert few[1].tolist() == [0, 1, 2] * 40
        if name == "triton":
            from brenier.kernels import triton_pairs

            monkeypatch.setattr(triton_pairs, "_SLACK", -(2**20))
            assert engine.support(pairs, zero, zero, 0.0, 3)[0].bincount().tolist() == [3] * 40
            assert engine.smallest(pairs, zero, zero, 7)[2].tolist() == [-2.0] * 7


@anywhere
def test_lists_refuse_a_negative_number(name):
    pairs, f, g, _ = listed_problem("dot", 6, 7, 3, torch.float64)
    with engine.use_engine(name), pytest.raises(InvalidInput, match="at least 0"):
        engine.smallest(pairs, f, g, -1)


@anywhere
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_many_columns(name, kind):
    """A second derivative's kernel, weighted by a product of more than eight columns."""
    gen = torch.Generator().manual_seed(0)
    x, y, f, g, left, right, v = (
        torch.randn(*s, generator=gen, dtype=torch.float64)
        for s in ((30, 3), (41, 3), (30,), (41,), (30, 11), (41, 11), (41, 5))
    )
    epsilon = torch.tensor(6.0, dtype=torch.float64)
    p = torch.exp((f.unsqueeze(-1) + g - wide(pairs_of(kind, x, y), kind)) / 6) * (left @ right.mT)
    device = "cuda" if name == "gpu" else "cpu"
    inputs = [t.to(device) for t in (x, y, f, g, epsilon, left, right, v)]
    with engine.use_engine(name):
        out = native.weighted_apply(*inputs, kind).cpu()
    torch.testing.assert_close(out, p @ v)


@needs_triton
def test_a_solver_runs_on_it():
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 2, generator=gen, dtype=torch.float64), torch.randn(40, 2, generator=gen).double()
    many = Ragged.from_list([x[:7], x], [y, y[:9]])
    values = []
    for name in ("reference", "triton"):
        with engine.use_engine(name):
            values.append([solve(problem, epsilon=0.5).value for problem in (PointCloud(x, y), many)])
    for one, other in zip(*values):
        torch.testing.assert_close(one, other)


@needs_triton
def test_matrices_and_functions_are_refused():
    x = torch.rand(5, 2)
    cost = reference.Pairs((x,), (), lambda rows, cols: rows[0], (5, 2), "matrix")
    with engine.use_engine("triton"):
        with pytest.raises(RuntimeError, match=r"use_engine\('triton'\): expected Triton.*kind 'matrix'"):
            engine.softmin(cost, torch.zeros(2), 1.0)
        with pytest.raises(RuntimeError, match="sides up to 64"):
            tiny.scale(torch.zeros(1, 65, 3), torch.ones(()), n_iter=3)
        with pytest.raises(RuntimeError, match="unrolled gradients"):
            tiny.scale(torch.zeros(1, 3, 3, requires_grad=True), torch.ones(()), n_iter=3, adjoint="unrolled")


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_is_asked_for_by_name(monkeypatch):
    pairs, _, g = problem("dot", 5, 6, 3, torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    with engine.use_engine("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        engine.softmin(pairs, g, 1.0)
    script = (
        "import sys, torch, brenier; x = torch.rand(9, 2)\n"
        "brenier.solve(x, x + 1, epsilon=0.1).value\n"
        "brenier.losses.doubly_stochastic(torch.rand(2, 4, 4))\n"
        "print([m for m in sys.modules if 'triton' in m and m.startswith('brenier')])"
    )
    ran = subprocess.run([sys.executable, "-c", script.replace("import sys", "import brenier.losses, sys")],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert ran.stdout.strip() == "[]"


def test_accuracies():
    for name in ("ieee", "tf32x3", "tf32"):
        with engine.use_accuracy(name):
            assert accuracy.get() == name
    assert accuracy.get() == "ieee"
    with pytest.raises(ValueError, match="'tf32x3', 'tf32'"), engine.use_accuracy("fast"):
        pass


@needs_triton
def test_accuracy_reaches_the_kernel(monkeypatch):
    from brenier.kernels import triton_pairs

    seen = []
    options = triton_pairs._Task.options

    def spy(task, config):
        seen.append(options(task, config)["PRECISION"])
        return options(task, config)

    monkeypatch.setattr(triton_pairs._Task, "options", spy)
    pairs, _, g = problem("dot", 5, 6, 20, torch.float32)
    for name in ("ieee", "tf32x3", "tf32"):
        with engine.use_engine("triton"), engine.use_accuracy(name):
            engine.softmin(pairs, g, 1.0)
    assert seen == ["ieee", "tf32x3", "tf32"]


# Configurations


def test_candidates_are_few_and_fit():
    for name in ("softmin", "cmin", "apply", "moments", "slope", "minima", "entries"):
        for products in (False, True):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                for width in (None, 1, 20, 64, 5000):
                    found = triton_tuning.candidates(name, products, dtype, width)
                    assert 1 <= len(found) <= 4
                    assert len(set(found)) == len(found)
                    for c in found:
                        assert all(v & (v - 1) == 0 and v >= 16 for v in (c.rows, c.cols, c.depth))
                        assert width is None or c.cols <= max(16, 2 * width)


def test_the_fastest_is_kept_and_no_more_than_so_many(monkeypatch):
    monkeypatch.setattr(triton_tuning, "_known", {})
    monkeypatch.setattr(triton_tuning, "MOST", 3)
    configs = tuple(Config(rows, 64) for rows in (16, 32, 64))
    cpu, ran = torch.device("cpu"), []

    def once(config):
        ran.append(config)

    def clock(function):
        function()
        return -ran[-1].rows

    assert triton_tuning.chosen("a", configs, once, cpu, clock) == configs[0]  # untimed
    assert ran == []
    with triton_tuning.tuned():
        assert triton_tuning.chosen("a", configs, once, cpu) == configs[0]  # nothing to time it with
        assert triton_tuning.chosen("a", configs, once, cpu, clock) == configs[2]
        assert ran == list(configs)
        for bucket in "bcd":
            triton_tuning.chosen(bucket, configs, once, cpu, clock)
    assert list(triton_tuning._known) == ["b", "c", "d"]
    ran.clear()
    assert triton_tuning.chosen("d", configs, once, cpu, clock) == configs[2]
    assert ran == []


@pytest.mark.gpu
@needs_gpu
def test_every_candidate_gives_the_same_answer(monkeypatch):
    monkeypatch.setattr(triton_tuning, "_known", {})
    for d in (3, 64):
        pairs, f, g = problem("dot", 500, 700, d, torch.float32)
        with engine.use_engine("gpu"):
            before = engine.softmin(pairs, g, 0.5), engine.apply(pairs, f, g, 2.0 * d, g.unsqueeze(-1))
            with triton_tuning.tuned():
                after = engine.softmin(pairs, g, 0.5), engine.apply(pairs, f, g, 2.0 * d, g.unsqueeze(-1))
        for a, b in zip(before, after):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("name", "bound"), [("ieee", 1e-6), ("tf32x3", 4e-6), ("tf32", 4e-3)])
def test_accuracies_on_a_card(name, bound):
    pairs, _, g = problem("dot", 500, 700, 64, torch.float32)
    exact = reference.softmin(pairs_of("dot", pairs.rows[0].double(), pairs.cols[0].double()), g.double(), 3.0)
    with engine.use_engine("gpu"), engine.use_accuracy(name):
        out = engine.softmin(pairs, g, 3.0)
    assert float((out.double() - exact).abs().max() / exact.abs().mean()) < bound
