"""Find an experiment, run one of its presets, and complete the record."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from ..errors import MissingExtra, refuse
from ..systems.catalogue import find
from .report import Report, provenance

__all__ = ["Config", "Run", "start"]

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """What every experiment's configuration has.

    Attributes:
        preset: smoke (seconds), quick (minutes) or full.
        seeds: one repetition each. Acceptance runs use seeds from 100 on, which no development run has seen.
    """

    preset: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run(Generic[C]):
    """What the parts of an experiment share.

    Attributes:
        config: what to run.
        report: where tables, figures and claims go.
        log: told what is going on, a line at a time.
    """

    config: C
    report: Report
    log: Callable[[str], None]


def start(
    slug: str,
    preset: str = "quick",
    *,
    seed: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the experiment of a system.

    Args:
        slug: of the system.
        preset: "smoke", "quick" or "full".
        seed: the first seed; the others follow it.
        log: told what is going on, a line at a time.

    Raises:
        InvalidInput: no such system, not on the shelf yet, no such preset, or a negative seed.
        MissingExtra: the experiment needs a package that is not installed.
    """
    system = find(slug)
    if not system.on_shelf:
        refuse("SLUG", "a system on the shelf", f"{slug!r}, which is planned", "`brenier list` shows what is ready.")
    try:
        module: Any = importlib.import_module(system.experiment)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "brenier":
            raise
        raise MissingExtra(package, "experiments", f"The experiment of {slug}") from error
    if preset not in module.PRESETS:
        refuse("preset", "one of " + ", ".join(module.PRESETS), repr(preset))
    config = module.PRESETS[preset]
    if seed is not None:
        if seed < 0:
            refuse("seed", "an integer >= 0", seed)
        config = replace(config, seeds=tuple(range(seed, seed + len(config.seeds))))
    begin = time.perf_counter()
    report: Report = module.run(config, log)
    report.provenance = {
        **provenance(),
        "seconds": round(time.perf_counter() - begin, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
    }
    return report
