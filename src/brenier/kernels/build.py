"""Which engines this installation has."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from ..errors import PerformanceWarning


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("brenier._native")
    except ImportError:
        return None


native = _load()
"""The compiled extension, or None where brenier was installed without a compiler."""

__all__ = ["warn_without_native"]

_warned = False


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
