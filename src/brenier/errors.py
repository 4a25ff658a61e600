"""The errors and warnings of brenier, so that users can catch and filter them."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .solution import Solution

__all__ = [
    "InfeasibleWarning",
    "InvalidInput",
    "MissingExtra",
    "NotConverged",
    "NotConvergedWarning",
    "PerformanceWarning",
    "need",
    "refuse",
]


class InvalidInput(ValueError):
    """An argument breaks a rule; the message says what was expected, what came, and the cure."""


class MissingExtra(ImportError):
    """An optional dependency is needed for what was asked; the message holds the install line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'brenier[{extra}]'"
        )


class NotConverged(RuntimeError):
    """A solver stopped before its tolerance was met; `solution` holds the best so far, with certificate."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


class NotConvergedWarning(UserWarning):
    """A solver stopped before its tolerance was met and `throw=False`."""


class InfeasibleWarning(UserWarning):
    """No plan can meet what was asked; the answer violates a constraint, and says which and by how much."""


class PerformanceWarning(UserWarning):
    """The answer is right but a faster way exists on another installation or with other arguments."""


def refuse(name: str, expected: str, got: object, cure: str = "") -> NoReturn:
    """Raise `InvalidInput` in the house's form: expected, got, cure."""
    raise InvalidInput(f"{name}: expected {expected}, got {got}." + (f" {cure}" if cure else ""))


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise `MissingExtra` with the install line.

    Args:
        module: dotted name, e.g. "matplotlib.pyplot".
        extra: the extra of brenier that installs it.
        purpose: what it is needed for, as the beginning of a sentence.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(module.partition(".")[0], extra, purpose) from error
