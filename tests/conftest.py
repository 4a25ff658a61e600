from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "brenier",
    derandomize=True,  # the same examples on every machine
    deadline=None,  # a busy machine is no failure
    database=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("brenier")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """Every test starts from the same random state and leaves the global switches as it found them."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that draw from the global state
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before, "a test changed a global switch"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
