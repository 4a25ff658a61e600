"""Which engines this installation has, and which was asked for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from ..errors import PerformanceWarning


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("brenier._native")
    except ImportError:
        return None


native = _load()
"""The compiled extension, or None where brenier was installed without a compiler."""

_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported

choice: ContextVar[str] = ContextVar("brenier_engine", default="auto")
"""The engine that was asked for."""

accuracy: ContextVar[str] = ContextVar("brenier_accuracy", default="ieee")
"""How the matrix products of Triton's kernels round float32."""

__all__ = ["chosen", "triton_runs", "warn_without_native"]

_warned = False


def chosen() -> str:
    """The engine that was asked for; in code that is being compiled, "auto"."""
    # torch.compile cannot trace a ContextVar
    return "auto" if torch.compiler.is_compiling() else choice.get()


def triton_runs(like: Tensor) -> bool:
    """Whether Triton is installed and runs where this tensor is: on a GPU, or in its interpreter."""
    return _TRITON and (like.is_cuda or (like.is_cpu and os.environ.get("TRITON_INTERPRET") == "1"))


def warn_without_native() -> None:
    """Say once in a process that the native engine is missing, and what that costs."""
    global _warned
    if native is None and not _warned:
        _warned = True
        warnings.warn(
            "brenier was installed without its native engine, as no C++ compiler was found: exact transport and the "
            "operations on pairs of points run on the reference engine, several times slower. Install a C++20 "
            "compiler and reinstall brenier.",
            PerformanceWarning,
            stacklevel=2,
        )
