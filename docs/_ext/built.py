"""Parts of pages that are made when the documentation is built.

A line `<!-- catalogue -->`, `<!-- results SLUG -->` or `<!-- changelog -->` in a page is replaced by Markdown.
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from brenier.experiments.report import Report, Table
from brenier.systems.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_GALLERY = (
    "plot_first_solve.py",
    "plot_one_dimension.py",
    "plot_epsilon.py",
    "plot_grid_images.py",
    "plot_gradient_flow.py",
    "plot_learn_to_sort.py",
    "plot_lot.py",
)


class GalleryOrder:
    """The gallery from easy to hard; examples that are not named come last."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> tuple[int, str]:
        return (_GALLERY.index(name) if name in _GALLERY else len(_GALLERY), name)


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; pipes inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def catalogue() -> str:
    """The forty systems by wing."""
    ready = sum(s.on_shelf for s in CATALOGUE)
    parts = [f"On the shelf in this version: {ready} of {len(CATALOGUE)}. The others are planned."]
    for wing, systems in groupby(CATALOGUE, key=lambda s: s.wing):
        rows = []
        for s in systems:
            page = f"[{s.title}]({s.slug}.md)" if (DOCS / "systems" / f"{s.slug}.md").is_file() else s.title
            paper = f"[{s.arxiv}](https://arxiv.org/abs/{s.arxiv})"
            rows.append([page, f"`{s.slug}`", s.summary, paper, "**on the shelf**" if s.on_shelf else "planned"])
        parts += [f"## {wing}", markdown_table(["system", "slug", "what for", "arXiv", "state"], rows)]
    return "\n\n".join(parts)


def results(slug: str, folder: Path = ROOT / "results") -> str:
    """The tables and claims of the last recorded run of an experiment or a benchmark."""
    path = folder / f"{slug}.json"
    if not path.is_file():
        how = f"Make one: `brenier run {slug}`." if slug in (s.slug for s in CATALOGUE) else "Run the benchmark."
        return f"No result is recorded in this version: `results/{slug}.json` is missing. {how}"
    report = Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    p = report.provenance
    parts = [
        f"Preset `{report.preset}`, seeds {', '.join(map(str, report.seeds))}, mean ± s.d. over seeds; brenier "
        f"{p.get('brenier', '?')}, torch {p.get('torch', '?')}, {p.get('seconds', '?')} s with "
        f"{p.get('threads', '?')} threads.",
    ]
    claims = [
        [c.sentence, Table.show(c.value), Table.show(c.threshold), "held" if c.held else "**not held**"]
        for c in report.claims
    ]
    if claims:
        parts.append(markdown_table(["claim", "measured", "threshold", ""], claims))
    for table in report.tables:
        body = [[name, *map(Table.show, cells)] for name, cells in table.rows.items()]
        parts += [f"**{table.title}**", markdown_table(["", *table.columns], body)]
    parts += [f"Note: {note}" for note in report.notes]
    return "\n\n".join(parts)


def changelog() -> str:
    """CHANGELOG.md without its title."""
    path = ROOT / "CHANGELOG.md"
    if not path.is_file():
        return "No change log is kept yet: this is the first version."
    return re.sub(r"\A\s*# .*\n", "", path.read_text(encoding="utf-8"))


_MAKERS = {"catalogue": catalogue, "results": results, "changelog": changelog}
_MARKER = re.compile(r"^<!-- (catalogue|results|changelog)(?: ([a-z0-9-]+))? -->$", re.MULTILINE)


def fill(text: str) -> str:
    """Replace the markers of a page."""
    return _MARKER.sub(lambda m: _MAKERS[m[1]](*([m[2]] if m[2] else [])), text)


def _source_read(app: Any, docname: str, source: list[str]) -> None:
    if _MARKER.search(source[0]):
        source[0] = fill(source[0])
        app.env.note_reread()


_CODE = re.compile(r"(``.+?``|:\w+:`[^`]+`|`[^`]+`)")


def escape(line: str) -> str:
    """Escape what reStructuredText would read as markup in a formula: (*batch, n), |x|, trailing underscores."""
    pieces = _CODE.split(line)
    for k in range(0, len(pieces), 2):
        pieces[k] = re.sub(r"(?<=\()\*(?=\w)|(?<=, )\*(?=\w+[,)])|\|(?=\S)|(?<=\w)_(?!\w)", r"\\\g<0>", pieces[k])
    return "".join(pieces)


def split_attributes(lines: list[str]) -> list[str]:
    """Make two entries of "f, g: ..." in a section of attributes, as napoleon does for arguments."""
    out: list[str] = []
    inside, k = False, 0
    while k < len(lines):
        indent = len(lines[k]) - len(lines[k].lstrip())
        if lines[k].strip() and (not inside or indent == 0):
            inside = lines[k].strip() == "Attributes:"
        several = re.match(r"(\s+)((?:\w+, )+\w+):(.*)", lines[k]) if inside else None
        end = k + 1
        if several:
            while end < len(lines) and lines[end].startswith(" " * (indent + 1)):
                end += 1
            for name in several[2].split(", "):
                out += [f"{several[1]}{name}:{several[3]}", *lines[k + 1 : end]]
        else:
            out.append(lines[k])
        k = end
    return out


_kept: dict[str, list[str]] = {}


def _before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = split_attributes(lines)
    in_example = False
    for k, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_example:
            lines[k] = escape(line)
    if what in ("property", "attribute"):
        _kept[name] = list(lines)


def _after_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon reads "What was minimised: ..." as a type; give such lines back."""
    if name in _kept:
        lines[:] = [*_kept.pop(name), ""]


def _short_names(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show the names of type aliases, such as ArrayLike, and not what they stand for."""
    shown = (t and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", t) for t in (signature, returns))
    return next(shown), next(shown)


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of tuples ("Alias for field number 0") and what scikit-learn adds to every estimator."""
    added = name.startswith("set_") and name.endswith("_request")
    return True if added or type(obj).__name__ == "_tuplegetter" else None


def setup(app: Any) -> dict[str, Any]:
    """Connect."""
    app.connect("source-read", _source_read)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
    app.connect("autodoc-process-signature", _short_names)
    app.connect("autodoc-skip-member", _skip)
    return {"version": "1", "parallel_read_safe": True}
