"""Sinkhorn where a look at a number would wait for a device: nothing is looked at between two tests of convergence.

On a CPU, told that it is such a device: the steps are those of a GPU, with the engines of a CPU.
"""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import brenier
from brenier import KL, TV, CostMatrix, Exact, Free, Grid, Partial, PointCloud, Problem, Ragged, Slack
from brenier.geometry import base as geometry_base
from brenier.kernels import device
from brenier.kernels.build import native
from brenier.solvers import Sinkhorn, SymmetricSinkhorn
from brenier.solvers.base import _Part
from brenier.solvers.entropic import relaxation, sinkhorn
from brenier.solvers.entropic.relaxation import Anderson, OverRelaxation, Plain

LOOKS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique_consecutive")


class Looks(TorchDispatchMode):
    """Counts the operators that hand numbers to the host, or take tensors from it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.name()).removeprefix("aten::").split(".")[0]
        if name in LOOKS or name == "lift_fresh":
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def wait(monkeypatch):
    for module in (geometry_base, relaxation, sinkhorn):
        monkeypatch.setattr(module, "waits", lambda t: True)


@pytest.fixture
def waiting(monkeypatch):
    wait(monkeypatch)


def clouds(batch=(), n=30, m=40):
    gen = torch.Generator().manual_seed(1)
    return (torch.randn(*batch, k, 2, generator=gen, dtype=torch.float64) for k in (n, m))


def ragged():
    x, y = clouds()
    return Ragged.from_list([x[:7], x], [y, y[:9]])


PROBLEMS = {
    "clouds": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2),
    "norms": lambda: Problem.make(PointCloud(*clouds(), cost="euclidean"), epsilon=0.2),
    "matrix": lambda: Problem.make(CostMatrix(PointCloud(*clouds()).tile()), epsilon=0.2),
    "batch": lambda: Problem.make(PointCloud(*clouds((3,))), epsilon=torch.tensor([0.1, 0.3, 1.0]).double()),
    "grid": lambda: Problem.make(Grid(5, 6), a=torch.arange(1, 31).double() / 465, epsilon=0.5),
    "soft": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2, marginals=(KL(1.0), KL(2.0))),
    "mixed": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2, marginals=(Exact(), KL(2.0))),
    "outliers": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2, marginals=(TV(1.0), Slack(2.0))),
    "part": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2, marginals=(Partial(0.5), Partial(0.5))),
    "free": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2, marginals=(Exact(), Free())),
    "counting": lambda: Problem.make(PointCloud(*clouds()), epsilon=0.2, reference="counting"),
}
problems = pytest.mark.parametrize("name", PROBLEMS)


def steps(problem, solver, count):
    with torch.no_grad():
        part = _Part(solver, problem.detach())
        for _ in range(count):
            part.advance(1)
        return part.state


@problems
def test_iterates_are_those_with_looks(name, monkeypatch):
    """A look only spares work: the potentials are the same, but for the rounding of other sums."""
    problem, solver = PROBLEMS[name](), Sinkhorn(tol=1e-9)
    wanted = steps(problem, solver, 60)
    wait(monkeypatch)
    found = steps(problem, solver, 60)
    for one, other in ((found.f, wanted.f), (found.g, wanted.g), (found.error, wanted.error)):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@problems
@pytest.mark.parametrize("way", [Anderson(), OverRelaxation(), Plain()], ids=["anderson", "over", "plain"])
def test_nothing_is_looked_at_between_two_tests(name, way, waiting):
    solver = Sinkhorn(relaxation=way)
    with torch.no_grad():
        part = _Part(solver, PROBLEMS[name]().detach())
        assert part.advance(10) == 10  # the first one fills caches
        with Looks() as looks:
            part._steps(30)(part.state)
    assert looks.seen == []


@pytest.mark.skipif(native is None, reason="the reference copies what tells the blocks apart")
def test_ragged_clouds_on_fused_kernels(waiting, monkeypatch):
    from brenier.geometry import ragged as module

    problem = Problem.make(ragged(), epsilon=0.3)
    assert problem.geometry.replayable == module.triton_runs(problem.a)
    monkeypatch.setattr(module, "triton_runs", lambda t: True)
    with torch.no_grad():
        part = _Part(Sinkhorn(), problem.detach())
        assert part.advance(10) == 10
        with Looks() as looks:
            part._steps(10)(part.state)
    assert looks.seen == []


def test_symmetric_steps_look_at_nothing(waiting):
    x, _ = clouds()
    with torch.no_grad():
        part = _Part(SymmetricSinkhorn(), Problem.make(PointCloud(x), epsilon=0.2).detach())
        assert part.advance(99) == 10
        with Looks() as looks:
            part._steps(10)(part.state)
    assert looks.seen == []


def test_the_count_of_looks_can_be_wrong():
    """The steps of a CPU do look."""
    with torch.no_grad():
        part = _Part(Sinkhorn(), PROBLEMS["clouds"]().detach())
        part.advance(10)
        with Looks() as looks:
            part.advance(10)
    assert "_local_scalar_dense" in looks.seen


@pytest.mark.parametrize("name", ["clouds", "batch", "soft"])
def test_whole_solves_agree(name, waiting, monkeypatch):
    problem = PROBLEMS[name]()
    found = brenier.solvers.run(problem, Sinkhorn(tol=1e-9))
    monkeypatch.undo()
    wanted = brenier.solvers.run(problem, Sinkhorn(tol=1e-9))
    assert found.status.ok
    assert found.stats["n_iter"] % 10 == 0
    torch.testing.assert_close(found.value, wanted.value, rtol=1e-9, atol=1e-12)


def test_iterations_end_at_their_number_and_callbacks_see_each(waiting):
    problem, seen = PROBLEMS["clouds"](), []
    out = brenier.solvers.run(problem, Sinkhorn(tol=1e-15, max_iter=23), warn=False)
    assert out.stats["n_iter"] == 23
    brenier.solvers.run(problem, Sinkhorn(max_iter=7), warn=False, callback=lambda k, _: seen.append(k))
    assert seen == list(range(1, 8))


def test_entropic_parts_look_at_their_level(waiting):
    part = Partial(0.5, entropic=True)
    problem = Problem.make(PointCloud(*clouds()), epsilon=0.2, marginals=(part, part))
    assert Sinkhorn().stride(problem, Sinkhorn().init(problem)) == 1


def test_functions_may_look(waiting):
    problem = Problem.make(PointCloud(*clouds(), cost=lambda x, y: (x - y).abs().sum(-1)), epsilon=0.2)
    assert Sinkhorn().stride(problem, Sinkhorn().init(problem)) == 1


def test_single_sums_end_at_a_test(waiting, monkeypatch):
    """The switch from the sums of float32 is looked for once in a stride."""
    monkeypatch.setattr(geometry_base, "LEAST", 1)
    problem = Problem.make(PointCloud(*clouds()), epsilon=0.5)
    with torch.no_grad():
        part = _Part(Sinkhorn(tol=1e-7), problem.detach())
        assert part.state.rough == 60
        with Looks() as looks:
            while part.state.rough > 0:
                part.advance(10)
        assert part.state.rough == -1
    assert len(looks.seen) <= 6
    assert brenier.solvers.run(problem, Sinkhorn(tol=1e-7)).status.ok


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_elimination_solves(shape, generator):
    root = torch.randn(*shape, 5, 9, generator=generator, dtype=torch.float64)
    matrix, right = 1e9 * root @ root.mT, torch.randn(*shape, 5, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(relaxation._eliminated(matrix, right), torch.linalg.solve(matrix, right))


def test_captured_steps_give_the_same(waiting, monkeypatch):
    """With a capture that works on a CPU: it reads and writes the same places each time."""
    made = []

    def captured(function, where):
        made.append(where)
        return function

    problem = PROBLEMS["clouds"]()
    wanted = brenier.solvers.run(problem, Sinkhorn(tol=1e-9))
    monkeypatch.setattr(device, "_captured", captured)
    monkeypatch.setattr(device, "_capturable", lambda tensors: True)
    found = brenier.solvers.run(problem, Sinkhorn(tol=1e-9))
    assert len(made) == 1
    gc.disable()  # what is left over is in no cycle, which would keep a graph and its memory
    try:
        part = _Part(Sinkhorn(tol=1e-9), problem.detach())
        with torch.no_grad():
            assert [part.advance(25), part.advance(25), part.advance(5)] == [10, 10, 5]
        left = weakref.ref(part.replayed[10])
        del part
        assert left() is None
    finally:
        gc.enable()
    assert found.stats["n_iter"] == wanted.stats["n_iter"]
    assert torch.equal(found.f, wanted.f)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["clouds", "norms", "matrix", "batch", "soft", "mixed", "outliers", "part", "free"])
def test_on_a_card(name):
    """Captured steps end where those of a CPU do."""
    problem = PROBLEMS[name]()
    there = problem.with_tensors(*(t.cuda() for t in problem.tensors))
    found, wanted = (brenier.solvers.run(p, Sinkhorn(tol=1e-9)) for p in (there, problem))
    assert found.stats["n_iter"] > 10
    torch.testing.assert_close(found.value.cpu(), wanted.value, rtol=1e-7, atol=1e-9)
