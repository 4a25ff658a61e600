"""Steps that are captured and replayed, with a capture that works on a CPU; and with CUDA's where there is a card."""

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from brenier.errors import PerformanceWarning
from brenier.kernels import device
from brenier.kernels.device import Replayed, products_in_full


class Inner(NamedTuple):
    total: torch.Tensor
    steps: int


class State(NamedTuple):
    x: torch.Tensor
    inner: Inner
    same: torch.Tensor


def next_state(state: State) -> State:
    x = state.x * 0.5 + 1
    return State(x, Inner(state.inner.total + x.sum(), state.inner.steps), state.same)


def first(where="cpu", steps=0) -> State:
    x = torch.arange(3.0, device=where)
    return State(x, Inner(x.sum(), steps), x[:1].expand(4))


def states(function, state, count):
    out = []
    for _ in range(count):
        state = function(state)
        out.append(state)
    return out


def check_equal(found, wanted):
    for one, other in zip(found, wanted):  # all at the end: no state may be written over by a later one
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.inner.total, other.inner.total)
        assert torch.equal(one.same, other.same)
        assert one.inner.steps == other.inner.steps


@pytest.fixture
def captures(monkeypatch):
    """Counts captures: one that, as CUDA's, reads what it was given at first, and writes always to one place."""
    made = []

    def captured(function, where):
        made.append(where)
        out = device._map(torch.clone, function())
        device._map(lambda t: t.fill_(torch.nan), out)  # a capture computes nothing

        def replay():
            for own, new in zip(device._tensors(out), device._tensors(function())):
                own.copy_(new)
            return out

        return replay

    monkeypatch.setattr(device, "_captured", captured)
    monkeypatch.setattr(device, "_capturable", lambda tensors: True)
    return made


def test_replays_are_the_function(captures):
    check_equal(states(Replayed(next_state), first(), 6), states(next_state, first(), 6))
    assert captures == [torch.device("cpu")]


def test_the_first_call_is_not_captured(captures):
    states(Replayed(next_state), first(), 1)
    assert captures == []


def test_numbers_that_change_are_not_captured(captures):
    def counting(state):
        return next_state(state)._replace(inner=Inner(state.inner.total, max(0, state.inner.steps - 1)))

    check_equal(states(Replayed(counting), first(steps=3), 8), states(counting, first(steps=3), 8))
    assert len(captures) == 1


def test_other_shapes_are_captured_anew(captures):
    replayed = Replayed(next_state)
    longer = first()._replace(x=torch.ones(5))
    for state in (first(), longer, first()):
        check_equal(states(replayed, state, 3), states(next_state, state, 3))
    assert len(captures) == 3


def test_what_cannot_be_captured_runs_and_says_so(monkeypatch, captures):
    def fails(function, where):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(device, "_captured", fails)
    replayed = Replayed(next_state)
    with pytest.warns(PerformanceWarning, match="not permitted") as seen:
        found = states(replayed, first(), 5)
    check_equal(found, states(next_state, first(), 5))
    assert len(seen) == 1


def test_nothing_is_captured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(device, "_captured", None)
    check_equal(states(Replayed(next_state), first(), 3), states(next_state, first(), 3))
    assert not device.waits(torch.zeros(1))
    assert device.waits(torch.zeros(1, device="meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_on_a_card():
    with torch.no_grad():
        found = states(Replayed(next_state), first("cuda"), 6)
        wanted = states(next_state, first("cuda"), 6)
    check_equal(found, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_look_cannot_be_captured_on_a_card():
    def looking(state):
        return next_state(state) if float(state.x[0]) < 1e9 else state

    with torch.no_grad(), pytest.warns(PerformanceWarning, match="could not be captured"):
        found = states(Replayed(looking), first("cuda"), 4)
    check_equal(found, states(next_state, first("cuda"), 4))
    assert float(torch.ones(3, device="cuda").sum()) == 3  # the device is as it was


SETTINGS = ["torch.set_float32_matmul_precision('medium')", "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_products_of_float32_that_pytorch_was_told_to_round(setting):
    """In a process of its own: the newer setting cannot be taken back, and makes a look at the older one raise."""
    assert products_in_full(torch.zeros(1))
    if "mkldnn" in setting and not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        pytest.skip("a PyTorch that knows the older setting only")
    code = f"""
import torch
{setting}
from brenier import gromov_wasserstein
from brenier.kernels.device import products_in_full
from brenier.kernels.distances import rough_costs
from brenier.structure import Form
assert not products_in_full(torch.zeros(1))
x = torch.randn(150, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
assert rough_costs(x[:, 0], x[:, 1], x, x) is None
Form.half_after = None  # a product in float32
assert gromov_wasserstein(x, x * 2, cost="euclidean", epsilon=1.0, starts=1).status.ok
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
