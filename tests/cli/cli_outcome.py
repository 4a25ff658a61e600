"""What the tests of the command line share: the outcome of a command, two clouds."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.out.count("\n") == 1, self.out
        found = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert isinstance(found, dict)
        return found

    @property
    def complaint(self) -> str:
        """The one line on standard error, of a refusal."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


class Clouds(NamedTuple):
    """Two clouds and masses, as arrays."""

    x: Array  # (20, 3)
    y: Array  # (16, 3)
    a: Array  # (20,)
    b: Array  # (16,)
