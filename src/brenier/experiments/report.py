"""What an experiment returns: tables over seeds, figures, and claims that held or did not."""

from __future__ import annotations

import io
import json
import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._files import write_whole
from ..errors import refuse

__all__ = ["Claim", "Report", "Table", "provenance"]


@dataclass(frozen=True)
class Claim:
    """A sentence, the number that was measured, the threshold, and whether it held."""

    sentence: str
    value: float
    threshold: float
    held: bool

    @classmethod
    def at_least(cls, sentence: str, value: float, threshold: float) -> Claim:
        """A claim that holds when value >= threshold (and not when value is NaN)."""
        return cls(sentence, float(value), float(threshold), bool(value >= threshold))

    @classmethod
    def at_most(cls, sentence: str, value: float, threshold: float) -> Claim:
        """A claim that holds when value <= threshold (and not when value is NaN)."""
        return cls(sentence, float(value), float(threshold), bool(value <= threshold))


@dataclass(frozen=True)
class Table:
    """Rows by columns; a cell is a text, a number, or the numbers over seeds (shown as mean ± s.d.)."""

    title: str
    columns: tuple[str, ...]  # without the row names
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, row: str, *cells: Any) -> None:
        """Append a row; a sequence of numbers is one measurement a seed."""
        if len(cells) != len(self.columns):
            refuse(f"row {row!r}", f"{len(self.columns)} cells", len(cells))
        if row in self.rows:
            refuse(f"row {row!r}", "a new name", "one that the table holds")
        self.rows[row] = [_cell(c) for c in cells]

    @staticmethod
    def show(cell: Any) -> str:
        """A cell as text."""
        if isinstance(cell, Mapping):
            mean = "nan" if cell["mean"] is None else _number(cell["mean"])
            return mean if cell["n"] == 1 or cell["mean"] is None else f"{mean} ± {_number(cell['sd'])}"
        return _number(cell) if isinstance(cell, float) else str(cell)


def _cell(value: Any) -> Any:
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, Iterable):
        numbers = [float(v) for v in value]
        if not numbers:
            refuse("cell", "at least one number", "none")
        if not all(map(math.isfinite, numbers)):  # statistics would raise
            return {"mean": math.nan, "sd": math.nan, "n": len(numbers)}
        sd = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        return {"mean": statistics.fmean(numbers), "sd": sd, "n": len(numbers)}
    return float(value)


def _number(x: float) -> str:
    return f"{x:.3f}" if 1e-3 <= abs(x) < 1e3 or x == 0 else f"{x:.3g}"


@dataclass
class Report:
    """The record of one run.

    Attributes:
        slug: of the system.
        title: of the report.
        preset: which configuration ran.
        seeds: the seeds of the runs.
        data: for each data set, its source and licence in one line.
        tables, claims: the results.
        figures: name and caption of each; the images are beside the JSON file.
        notes: what a reader must know, e.g. what fell back to what.
        provenance: versions, machine, seconds, configuration.
    """

    slug: str
    title: str
    preset: str
    seeds: list[int]
    data: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict, repr=False)

    def table(self, title: str, columns: Sequence[str]) -> Table:
        """Start a table."""
        self.tables.append(Table(title, tuple(columns)))
        return self.tables[-1]

    def figure(self, name: str, caption: str, figure: Any) -> None:
        """Keep a matplotlib figure, as SVG, and close it."""
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        with plt.rc_context({"svg.hashsalt": name}):  # the same figure gives the same file
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
        file = f"{self.slug}-{name}.svg"
        self.images[file] = buffer.getvalue()
        self.figures.append({"file": file, "caption": caption})

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "slug": self.slug,
            "title": self.title,
            "preset": self.preset,
            "seeds": self.seeds,
            "data": self.data,
            "tables": [{"title": t.title, "columns": list(t.columns), "rows": t.rows} for t in self.tables],
            "claims": [vars(c) for c in self.claims],
            "figures": self.figures,
            "notes": self.notes,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Read what `to_json` wrote; images stay where they are."""
        known = {k: data[k] for k in ("slug", "title", "preset", "seeds", "data", "figures", "notes", "provenance")}
        return cls(
            **known,
            tables=[Table(t["title"], tuple(t["columns"]), dict(t["rows"])) for t in data["tables"]],
            claims=[Claim(**{**c, "value": math.nan if c["value"] is None else c["value"]}) for c in data["claims"]],
        )

    def save(self, folder: Path) -> Path:
        """Write `<slug>.json` and the figures into a folder; each file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in self.images.items():
            write_whole(folder / name, image)
        path = folder / f"{self.slug}.json"
        content = json.dumps(_strict(self.to_json()), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(path, (content + "\n").encode())
        return path


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list | tuple) else value


def provenance() -> dict[str, Any]:
    """Versions and machine."""
    import numpy
    import scipy
    import torch

    from .. import __version__

    return {
        "brenier": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
