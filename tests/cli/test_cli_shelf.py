"""`brenier list | run | report | data`, and how the command line is entered."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_outcome import Ran

import brenier as library
from brenier import data
from brenier.data import DataUnavailable
from brenier.experiments import Claim, Report
from brenier.experiments.report import provenance
from brenier.systems.catalogue import CATALOGUE

Cli = Callable[..., Ran]


def toy(preset: str = "quick", seeds: tuple[int, ...] = (100,)) -> Report:
    report = Report("toy", "A [toy]", preset, list(seeds), notes=["beware"])
    report.table("Numbers", ("size",)).add("ours", [1.0, 3.0])
    report.claims += [Claim.at_least("large enough", 3, 2), Claim.at_most("small enough", 3, 2)]
    report.provenance = {**provenance(), "seconds": 0.1, "finished": "now"}
    return report


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_list_shows_the_forty(columns: str, brenier: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = brenier("list")
    assert ran.code == 0
    words = ran.out.split()
    for system in CATALOGUE:
        assert system.slug in words
    ready = sum(s.on_shelf for s in CATALOGUE)
    assert f"{ready} of 40 on the shelf; run one with: brenier run SLUG" in " ".join(words)
    assert ran.out.count("on the shelf") == ready + 1
    assert ran.out.count("planned") == 40 - ready
    assert re.search(r"\blot +on the shelf", ran.out)


def test_version_and_help(brenier: Cli) -> None:
    assert brenier("--version") == Ran(0, f"{library.__version__}\n", "")
    ran = brenier("--help")
    assert ran.code == 0
    for command in ("solve", "list", "run", "report", "demo", "decode", "data"):
        assert re.search(rf"\b{command}\b", ran.out)
    assert brenier("nonsense").code == 2


def test_python_dash_m(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "brenier"]
    ran = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{library.__version__}\n", "")
    ran = subprocess.run([*command, "solve", "a.csv", "b.csv"], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "a.csv: expected a file, got nothing there.\n")


def test_run_prints_and_writes(brenier: Cli, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def start(slug: str, preset: str, *, seed: int | None, log: Callable[[str], None]) -> Report:
        asked.update(slug=slug, preset=preset, seed=seed)
        log("working")
        return toy(preset)

    monkeypatch.setattr("brenier.experiments.start", start)
    ran = brenier("run", "toy", "--preset", "smoke", "--seed", "7", "--out", out)
    assert ran.code == 0
    assert asked == {"slug": "toy", "preset": "smoke", "seed": 7}
    assert ran.err == "toy: working\n"
    assert "2.000 ± 1.414" in ran.out
    assert "held     large enough: 3 (threshold 2)" in ran.out
    assert "not held small enough: 3 (threshold 2)" in ran.out
    assert "note: beware" in ran.out
    assert json.loads((out / "toy.json").read_text())["preset"] == "smoke"
    assert [p.name for p in out.iterdir()] == ["toy.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run lott", "SLUG: expected the slug of a system, got 'lott'. Did you mean lot or motcat?"),
        ("run lot --preset huge", "preset: expected one of smoke, quick, full, got 'huge'."),
        ("run lot --preset smoke --seed -1", "seed: expected an integer >= 0, got -1."),
        ("report --results nowhere", "nowhere: expected a folder of reports, got nothing there. Run `brenier run lot` "
         "first."),
    ],
)  # fmt: skip
def test_refusals(arguments: str, message: str, brenier: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert brenier(*arguments.split()).complaint == message
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_had_is_bad_input(brenier: Cli, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> Report:
        raise DataUnavailable("the set", ["an index: no connection"], "Connect and try again.")

    monkeypatch.setattr("brenier.experiments.start", start)
    ran = brenier("run", "lot", "--out", out / "report")
    assert ran.code == 2
    assert ran.err.startswith("could not get the set.")
    assert ran.err.rstrip().endswith("Cure: Connect and try again.")
    assert list(out.iterdir()) == []


def test_report_on_a_folder(brenier: Cli, tmp_path: Path) -> None:
    toy().save(tmp_path / "results")
    ran = brenier("report", "--results", tmp_path / "results", "--out", tmp_path / "site")
    assert ran.code == 0
    assert ran.out == f"open {tmp_path / 'site' / 'index.html'}\n"
    assert "A [toy]" in (tmp_path / "site" / "toy.html").read_text()
    assert brenier("report", "--results", tmp_path / "results").code == 0
    assert (tmp_path / "results" / "index.html").is_file()
    (tmp_path / "results" / "broken.json").write_text("{")
    complaint = brenier("report", "--results", tmp_path / "results").complaint
    assert complaint.startswith(f"{tmp_path / 'results' / 'broken.json'}: expected the record of a report, got ")


def test_data_list_and_get(brenier: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRENIER_CACHE", str(tmp_path / "cache"))
    ran = brenier("data", "list")
    assert ran.code == 0
    for entry in data.list_datasets():
        assert entry.slug in ran.out
    assert f"kept in {tmp_path / 'cache'}" in ran.out
    assert not (tmp_path / "cache").exists()  # nothing is fetched
    ran = brenier("data", "get", "digits")
    assert ran.code == 0
    assert ran.out.startswith("digits: ready in ")
    assert "licence: " in ran.out
    assert brenier("data", "get", "digit").complaint.startswith("no data set is called 'digit'; did you mean 'digits'")


@pytest.mark.skipif(os.name == "nt", reason="widths of POSIX terminals")
def test_demo_solves_three_ways_runs_lot_and_writes_a_site(
    brenier: Cli, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> Any:
        raise DataUnavailable("the cytometry set", ["no connection"], "Connect.")

    monkeypatch.setattr(data, "yeast_dose_response", unavailable)  # digits stand in, and the report says so
    monkeypatch.setattr("brenier.experiments.start", lambda *_, **__: toy())
    ran = brenier("demo", "--out", out)
    assert ran.code == 0
    assert "note: the cytometry set could not be had, so digits stand in" in ran.out
    for way in ("epsilon = 0.05 x mean cost", "epsilon = 0.01 x mean cost", "exact (network-simplex)"):
        assert way in ran.out
    assert ran.out.rstrip().endswith(f"open {out / 'index.html'}")
    assert {p.name for p in out.iterdir()} == {
        "demo.json", "demo.html", "demo-plan.svg", "toy.json", "toy.html", "index.html",
    }  # fmt: skip
