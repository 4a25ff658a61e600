"""Plans from quantile couplings on lines."""

from __future__ import annotations

import pytest
import torch

from brenier.losses import expected_sliced_plan, min_sliced_plan
from problems import cloud


def test_plans_in_float32() -> None:
    x, y = cloud(100, 3, 0).float(), cloud(77, 3, 1).float()
    for lifted in (min_sliced_plan(x, y, directions=8), expected_sliced_plan(x, y, directions=8, temperature=1.0)):
        assert lifted.value.dtype == torch.float32
        assert float(lifted.certify().primal) == pytest.approx(float(lifted.value), rel=1e-5)
