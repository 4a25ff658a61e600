"""A static HTML site of reports: one page for each system, one index; opens from disk, needs no server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .._files import write_whole
from ..errors import need, refuse
from .report import Report, Table

__all__ = ["write_site"]

_STYLE = """
:root { color-scheme: light dark; --ok: #1a7f37; --no: #b42318; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .claims td:nth-child(2) { text-align: left; }
.ok { color: var(--ok); font-weight: 600; } .no { color: var(--no); font-weight: 600; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 4px; }
figcaption, .small { font-size: .875rem; opacity: .8; }
code { font-size: .9em; }
"""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style }}</style>
{% block body %}{% endblock %}
</html>
"""

_REPORT = """{% extends "page" %}{% block body %}
<p class="small"><a href="index.html">All reports</a></p>
<h1>{{ r.title }}</h1>
<p>System <code>{{ r.slug }}</code>, preset <b>{{ r.preset }}</b>,
{% if r.seeds %}{{ "seed" if r.seeds|length == 1 else "seeds" }} {{ r.seeds|join(", ") }},{% endif %}
{{ r.provenance.seconds }} s.</p>
{% for d in r.data %}<p class="small">Data: {{ d }}</p>{% endfor %}
{% for n in r.notes %}<p class="small">Note: {{ n }}</p>{% endfor %}
{% if r.claims %}<h2>Claims</h2><div class="scroll"><table class="claims">
<tr><th></th><th>claim</th><th>measured</th><th>threshold</th></tr>
{% for c in r.claims %}<tr><td class="{{ 'ok' if c.held else 'no' }}">{{ "held" if c.held else "not held" }}</td>
<td>{{ c.sentence }}</td><td>{{ show(c.value) }}</td><td>{{ show(c.threshold) }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% for t in r.tables %}<h2>{{ t.title }}</h2><div class="scroll"><table>
<tr><th></th>{% for c in t.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for name, cells in t.rows.items() %}<tr><td>{{ name }}</td>
{% for c in cells %}<td>{{ show(c) }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endfor %}
{% for f in r.figures %}<figure><img src="{{ f.file }}" alt="{{ f.caption }}">
<figcaption>{{ f.caption }}</figcaption></figure>{% endfor %}
<h2>Provenance</h2><div class="scroll"><table>
{% for k, v in r.provenance.items() %}<tr><td>{{ k }}</td><td><code>{{ v }}</code></td></tr>{% endfor %}
</table></div>{% endblock %}
"""

_INDEX = """{% extends "page" %}{% block body %}
<h1>brenier: reports</h1>
{% if reports %}<div class="scroll"><table>
<tr><th>system</th><th>preset</th><th>claims held</th><th>seconds</th><th>finished</th></tr>
{% for r in reports %}{% set held = r.claims|selectattr("held")|list|length %}
<tr><td><a href="{{ r.slug }}.html">{{ r.title }}</a></td><td>{{ r.preset }}</td>
<td class="{{ 'ok' if held == r.claims|length else 'no' }}">{{ held }} of {{ r.claims|length }}</td>
<td>{{ r.provenance.seconds }}</td><td>{{ r.provenance.finished }}</td></tr>
{% endfor %}</table></div>{% else %}<p>No report yet: run <code>brenier run lot</code> first.</p>{% endif %}
{% endblock %}
"""


def write_site(results: Path, out: Path) -> Path:
    """Turn the JSON reports of a folder into HTML.

    Args:
        results: folder with `<slug>.json` files and their figures.
        out: folder of the site; may be the same.

    Returns:
        The path of `index.html`.

    Raises:
        InvalidInput: a JSON file is broken; nothing is written then.
    """
    jinja2 = need("jinja2", "experiments", "Writing a report")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": _PAGE, "report": _REPORT, "index": _INDEX}), autoescape=True
    )

    def render(name: str, **values: Any) -> bytes:
        return environment.get_template(name).render(style=_STYLE, show=Table.show, **values).encode()

    reports = []
    for path in sorted(results.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "slug" not in content:
                continue  # a benchmark's table, not a report
            report = Report.from_json(content)
        except (ValueError, KeyError, TypeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            refuse(str(path), "the record of a report", why, "Run the experiment again, or remove the file.")
        reports.append(report)
    out.mkdir(parents=True, exist_ok=True)
    for report in reports:
        for figure in report.figures:
            source = results / figure["file"]
            if out.resolve() != results.resolve() and source.is_file():
                shutil.copyfile(source, out / figure["file"])
        write_whole(out / f"{report.slug}.html", render("report", r=report, title=report.title))
    write_whole(out / "index.html", render("index", reports=reports, title="brenier: reports"))
    return out / "index.html"
