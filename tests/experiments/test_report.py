"""Claims, tables, reports, and the site that shows them."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from brenier import InvalidInput, MissingExtra
from brenier.experiments import Claim, Report, Table
from brenier.experiments.report import provenance
from brenier.experiments.site import write_site

NAN = float("nan")


def example(slug: str = "example") -> Report:
    report = Report(slug, "A title", "smoke", [100, 101], data=["somewhere; CC0"], notes=["a note"])
    table = report.table("Accuracy", ("accuracy", "features", "what"))
    table.add("ours", [0.5, 0.75, 1.0], 12, "text")
    table.add("theirs", 0.25, 3, None)
    report.claims += [Claim.at_least("ours is good", 0.75, 0.5), Claim.at_most("ours is small", 0.75, 0.5)]
    report.provenance = {**provenance(), "seconds": 1.5, "finished": "2026-01-01T00:00:00+00:00"}
    figure, ax = plt.subplots()
    ax.plot([0, 1], [1, 0])
    report.figure("line", "A line.", figure)
    return report


# -- claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "threshold", "least", "most"),
    [(2, 1, True, False), (1, 2, False, True), (1, 1, True, True), (NAN, 1, False, False), (1, NAN, False, False)],
)
def test_claims_hold_or_not_and_never_at_nan(value: float, threshold: float, least: bool, most: bool) -> None:
    for make, held in ((Claim.at_least, least), (Claim.at_most, most)):
        for convert in (float, np.float32):
            claim = make("sentence", convert(value), convert(threshold))
            assert claim.held is held
            assert type(claim.value) is float
            assert type(claim.threshold) is float
            assert claim.sentence == "sentence"


# -- tables --------------------------------------------------------------------------------------------------


def test_cells_over_seeds_are_mean_and_deviation() -> None:
    table = Table("t", ("a", "b", "c", "d"))
    values = [0.1, 0.4, 0.7]
    table.add("row", values, np.array(values), (v for v in values), [0.25])
    expected = {"mean": pytest.approx(0.4), "sd": pytest.approx(statistics.stdev(values)), "n": 3}
    assert table.rows["row"] == [expected] * 3 + [{"mean": 0.25, "sd": 0.0, "n": 1}]
    assert [Table.show(c) for c in table.rows["row"]] == ["0.400 ± 0.300"] * 3 + ["0.250"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("text", "text"),
        (12, "12"),
        (123456, "123456"),
        (np.float64(0.5), "0.500"),
        (np.int64(3), "3.000"),
        (0.0, "0.000"),
        (0.00012345, "0.000123"),
        (-0.25, "-0.250"),
        (123456.7, "1.23e+05"),
        (NAN, "nan"),
        (True, "True"),
        (None, "None"),
        ([1.0, 3.0], "2.000 ± 1.414"),
    ],
)
def test_how_cells_look(cell: Any, shown: str) -> None:
    table = Table("t", ("a",))
    table.add("row", cell)
    assert Table.show(table.rows["row"][0]) == shown
    json.dumps(table.rows)


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(InvalidInput, match=r"^row 'r': expected 2 cells, got 1\.$"):
        Table("t", ("a", "b")).add("r", 1.0)
    with pytest.raises(InvalidInput, match=r"^cell: expected at least one number, got none\.$"):
        Table("t", ("a",)).add("r", [])


def test_rows_are_never_overwritten() -> None:
    table = Table("t", ("a",))
    table.add("r", 1.0)
    with pytest.raises(InvalidInput, match=r"^row 'r': expected a new name, got one that the table holds\.$"):
        table.add("r", 2.0)


# -- reports -------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    report = example()
    path = report.save(tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep" / "folder" / "example.json"
    held = json.loads(path.read_text(encoding="utf-8"))
    assert {"slug", "preset", "seeds", "tables", "claims", "provenance"} <= set(held)
    assert [set(c) for c in held["claims"]] == [{"sentence", "value", "threshold", "held"}] * 2
    assert [c["held"] for c in held["claims"]] == [True, False]
    assert {"brenier", "torch", "numpy", "scipy", "python", "machine", "threads"} <= set(held["provenance"])
    back = Report.from_json(held)
    assert back.to_json() == report.to_json() == held
    assert back.claims == report.claims
    assert back.tables == report.tables


def test_figures_are_kept_beside_the_record_and_closed(tmp_path: Path) -> None:
    before = plt.get_fignums()
    report = example()
    assert plt.get_fignums() == before
    report.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["example-line.svg", "example.json"]
    assert b"<svg" in (tmp_path / "example-line.svg").read_bytes()
    assert report.figures == [{"file": "example-line.svg", "caption": "A line."}]


def test_the_same_figure_gives_the_same_file() -> None:
    assert example().images == example().images


# -- the site ------------------------------------------------------------------------------------------------


def test_index_and_pages(tmp_path: Path) -> None:
    for slug in ("beta", "alpha"):
        example(slug).save(tmp_path)
    (tmp_path / "benchmark.json").write_text('{"rows": []}')  # not a report
    (tmp_path / "list.json").write_text("[1, 2]")
    index = write_site(tmp_path, tmp_path)
    assert index == tmp_path / "index.html"
    assert sorted(p.name for p in tmp_path.glob("*.html")) == ["alpha.html", "beta.html", "index.html"]
    text = index.read_text(encoding="utf-8")
    assert text.index('href="alpha.html"') < text.index('href="beta.html"')
    assert text.count("1 of 2") == 2
    page = " ".join((tmp_path / "alpha.html").read_text(encoding="utf-8").split())
    for expected in (
        "A title",
        "seeds 100, 101",
        "somewhere; CC0",
        "a note",
        "0.750 ± 0.250",
        '<td class="ok">held</td>',
        '<td class="no">not held</td>',
        'src="alpha-line.svg"',
        "A line.",
        "2026-01-01",
    ):
        assert expected in page, expected
    assert "http" not in page.replace("http-equiv", "")  # opens from disk


def test_site_in_another_folder_has_the_figures(tmp_path: Path) -> None:
    example().save(tmp_path / "results")
    write_site(tmp_path / "results", tmp_path / "site")
    names = sorted(p.name for p in (tmp_path / "site").iterdir())
    assert names == ["example-line.svg", "example.html", "index.html"]
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["example-line.svg", "example.json"]


def test_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & \"quotes\""
    report = Report("evil", evil, evil, [1], data=[evil], notes=[evil])
    table = report.table(evil, (evil,))
    table.add(evil, evil)
    report.claims.append(Claim.at_least(evil, 1, 0))
    report.figures.append({"file": "evil.svg", "caption": evil})
    report.provenance = {"seconds": 1, "finished": evil, "note": evil}
    report.save(tmp_path)
    write_site(tmp_path, tmp_path)
    for name in ("index.html", "evil.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert 'alt="<' not in page


def test_empty_folder_gives_an_index_that_says_what_to_do(tmp_path: Path) -> None:
    assert "brenier run lot" in write_site(tmp_path, tmp_path / "site").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"slug": ', r"Expecting value: line 1 column 10 \(char 9\)"),
        ('{"slug": "a"}', "no 'title'"),
        ('{"slug": "', "Unterminated string"),
    ],
)
def test_broken_records_are_named(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    message = rf"bad\.json: expected the record of a report, got {why}.*Run the experiment again, or remove the file\.$"
    example("a").save(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        write_site(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_numbers_that_are_none_show(tmp_path: Path) -> None:
    report = example()
    report.claims = [Claim.at_least("undefined", NAN, 0.5)]
    report.tables[0].add("broken", [NAN, 1.0], 1, NAN)
    path = report.save(tmp_path)
    write_site(tmp_path, tmp_path)
    back = Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert math.isnan(back.claims[0].value)
    assert back.claims[0].held is False
    assert "nan" in (tmp_path / "example.html").read_text(encoding="utf-8")


def test_jinja_is_asked_for_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    message = (
        r"^Writing a report needs the package 'jinja2', which is not installed\. "
        r"Install it with: pip install 'brenier\[experiments\]'$"
    )
    with pytest.raises(MissingExtra, match=message):
        write_site(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_records_are_strict_json_even_with_nan(tmp_path: Path) -> None:
    report = Report("lot", "t", "smoke", [1])
    report.claims.append(Claim.at_least("a measurement that failed", float("nan"), 0.5))
    report.table("numbers", ("x",)).add("row", [1.0, float("nan")])

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    record = json.loads(report.save(tmp_path).read_text(), parse_constant=refuse)
    assert record["claims"][0]["value"] is None
    back = Report.from_json(record)
    assert not back.claims[0].held
    assert math.isnan(back.claims[0].value)
    assert Table.show(back.tables[0].rows["row"][0]) == "nan"
