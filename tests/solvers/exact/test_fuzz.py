"""Some of the random problems of benchmarks/fuzz_exact.py: every exact solver against HiGHS and its own proof."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import brenier
from brenier import PointCloud
from brenier.solvers import NetworkSimplex
from brenier.solvers.exact import lazy, simplex
from problems import array, check_encloses, cloud

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "fuzz_exact.py"
BLOCKS, EACH = 10, 30


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not in this checkout")
    spec = importlib.util.spec_from_file_location("fuzz_exact", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_exact"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_awkward_problems(block: int, fuzz: ModuleType) -> None:
    for number in range(block * EACH, (block + 1) * EACH):
        instance, wrong = fuzz.check(number, most=20)
        assert not wrong, "\n".join([f"{number}: {instance.name}", *wrong])


@pytest.mark.skipif(simplex.native is None, reason="native engine not built")
def test_an_optimum_of_zero_has_a_gap_without_overflow() -> None:
    """Equal clouds at a huge scale: duals that are off by rounding over a cost that is nearly nothing."""
    x = 1e75 * cloud(40, 2, 0)
    a = np.full(40, 1 / 40)
    item = lazy.LazyTransport(PointCloud(x, x), a, a, g=1e148 * cloud(40, 1, 1).squeeze(-1))
    while not item.optimal:
        item.round()
        assert np.isfinite(item.gap)
    C = array(PointCloud(x, x).tile())
    check_encloses(brenier.solve(x, x, solver=NetworkSimplex(pairs="lazy")).certificate, 0.0, 1e-9, C.max())
    assert torch.isfinite(torch.as_tensor(item.gap))
