"""The threads of the native kernels: shared by callers, and begun anew after a fork."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from brenier import PointCloud
from brenier.kernels.build import native
from problems import cloud

pytestmark = pytest.mark.skipif(native is None, reason="not built")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_callers_at_once(four_threads):
    """One of them has the threads, the others do their work alone."""
    geometry = PointCloud(cloud(700, 3, 0), cloud(900, 3, 1))
    h = torch.zeros(900, dtype=torch.float64)
    expected, found = geometry.softmin(h, 0.1), []

    def call():
        for _ in range(20):
            found.append(torch.equal(geometry.softmin(h, 0.1), expected))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 80
    assert all(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(four_threads):
    geometry = PointCloud(cloud(700, 3, 0), cloud(900, 3, 1))
    h = torch.zeros(900, dtype=torch.float64)
    expected = geometry.softmin(h, 0.1)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(geometry.softmin(h, 0.1), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
