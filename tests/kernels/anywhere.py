"""`brenier.kernels.engine` for the battery: under the name "gpu", on tensors that are moved there and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from brenier.kernels import engine as kernels
from brenier.kernels.reference import Pairs

__all__ = ["engine", "moved"]


def moved(value: Any, device: str) -> Any:
    """The same with all tensors on a device; gradients flow through."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Pairs):
        return value._replace(rows=moved(value.rows, device), cols=moved(value.cols, device))
    return tuple(moved(v, device) for v in value) if isinstance(value, tuple) else value


class _Engine:
    _away = False

    @contextlib.contextmanager
    def use_engine(self, name: str) -> Iterator[None]:
        before, self._away = self._away, name == "gpu"
        try:
            with kernels.use_engine("triton" if name == "gpu" else name):
                yield
        finally:
            self._away = before

    def __getattr__(self, name: str) -> Any:
        function = getattr(kernels, name)
        return (lambda *args: moved(function(*moved(args, "cuda")), "cpu")) if self._away else function


engine = _Engine()
