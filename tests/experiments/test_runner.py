"""Finding and running experiments, and the shelf they stand on."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from brenier import InvalidInput, MissingExtra
from brenier.experiments import Claim, Config, Report, start
from brenier.systems.catalogue import CATALOGUE, System, find

ROOT = Path(__file__).resolve().parents[2]
ON_SHELF = [s for s in CATALOGUE if s.on_shelf]

# One line a wing, in the order of `brenier list`.
SLUGS = {
    "numerics": "sns sparsity-constrained",
    "cells": "lot monge-gap conditional-monge-gap det",
    "molecules": "orma plasma ts-gen",
    "medicine": "dementia-otda motcat otsurv",
    "shapes": "mesh-deformation shape-correspondence",
    "vision": "dot-restoration feature-optimal-alignment reynolds-flow sigma sp2ot",
    "generative": "dpm-ot kinetic-optimal-paths otip pisces w-cfm",
    "decoding": "delayed-tree-expansion optimal-mdsd spectr",
    "language": "activation-transport ctc-ot otseq2set remote transformer-fusion",
    "selection": "goracs projektor tarot",
    "control": "d2oc pearl policy-gradient-igt",
    "training": "adversarial-adaptive-sampling polystep",
}


# -- the catalogue -------------------------------------------------------------------------------------------


def test_the_catalogue_is_the_forty_systems() -> None:
    assert [(s.wing, s.slug) for s in CATALOGUE] == [(w, slug) for w, line in SLUGS.items() for slug in line.split()]
    assert len({s.slug for s in CATALOGUE}) == len(CATALOGUE) == 40


def test_entries_are_complete() -> None:
    for system in CATALOGUE:
        assert system.slug == system.slug.lower().replace("_", "-")
        assert system.title
        assert 20 < len(system.summary) < 90
        assert not system.summary.endswith(".")
        year_month, _, number = system.arxiv.partition(".")
        assert len(year_month) == 4
        assert year_month.isdecimal()
        assert len(number) == 5
        assert number.isdecimal()
    assert len({s.arxiv for s in CATALOGUE}) == 40


def test_find() -> None:
    assert find("lot").module == "brenier.systems.cells.lot"
    assert find("monge-gap").experiment == "brenier.experiments.monge_gap"
    assert find("lot").on_shelf
    with pytest.raises(InvalidInput, match=r"Did you mean monge-gap"):
        find("monge-gapp")
    message = r"^SLUG: expected the slug of a system, got 'qqqq'\. `brenier list` shows them all\.$"
    with pytest.raises(InvalidInput, match=message):
        find("qqqq")


@pytest.mark.parametrize("system", ON_SHELF, ids=lambda s: s.slug)
def test_what_is_on_the_shelf_is_whole(system: System) -> None:
    module, experiment = importlib.import_module(system.module), importlib.import_module(system.experiment)
    assert module.__all__
    assert all(hasattr(module, name) for name in module.__all__)
    assert list(experiment.PRESETS) == ["smoke", "quick", "full"]
    for name, config in experiment.PRESETS.items():
        assert is_dataclass(config)
        assert isinstance(config, Config)
        assert config.preset == name
        assert len(set(config.seeds)) == len(config.seeds) >= 1
        assert min(config.seeds) >= 100  # acceptance seeds, which no development run has seen
    assert len(experiment.PRESETS["full"].seeds) >= 5
    slug = system.slug.replace("-", "_")
    assert (ROOT / "tests" / "systems" / system.wing / f"test_{slug}.py").is_file()
    if not (ROOT / "docs" / "systems").is_dir():
        pytest.skip("the pages of the systems are not in this checkout")
    assert (ROOT / "docs" / "systems" / f"{system.slug}.md").is_file()


# -- the runner ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyConfig(Config):
    size: int = 3


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> System:
    """A system that is on the shelf for the length of a test."""

    def run(config: ToyConfig, log: Any) -> Report:
        log("working")
        report = Report("toy", "A toy", config.preset, list(config.seeds))
        report.claims.append(Claim.at_least("size", config.size, 2))
        return report

    module = ModuleType("brenier.experiments.toy")
    presets = {p: ToyConfig(p, (100, 101)) for p in ("smoke", "quick", "full")}
    module.__dict__.update(PRESETS=presets, run=run)
    monkeypatch.setitem(sys.modules, "brenier.experiments.toy", module)
    system = System("toy", "cells", "Toy", "a system made up for a test", "0000.00000")
    monkeypatch.setattr(System, "on_shelf", property(lambda self: True))
    monkeypatch.setattr("brenier.experiments.runner.find", lambda slug: system)
    return system


@pytest.mark.usefixtures("toy")
def test_start_completes_the_record() -> None:
    lines: list[str] = []
    report = start("toy", "smoke", log=lines.append)
    assert lines == ["working"]
    assert (report.preset, report.seeds) == ("smoke", [100, 101])
    assert report.provenance["config"] == {"preset": "smoke", "seeds": (100, 101), "size": 3}
    assert report.provenance["seconds"] >= 0
    assert report.provenance["finished"].endswith("+00:00")
    assert report.provenance["torch"]


@pytest.mark.usefixtures("toy")
def test_seed_moves_all_seeds() -> None:
    assert start("toy").preset == "quick"
    assert start("toy", seed=7).seeds == [7, 8]
    assert start("toy", seed=0).seeds == [0, 1]


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match=r"^SLUG: expected the slug of a system, got 'lott'\. Did you mean lot"):
        start("lott")
    planned = next(s for s in CATALOGUE if not s.on_shelf).slug
    message = rf"^SLUG: expected a system on the shelf, got '{planned}', which is planned\. `brenier list` shows what "
    with pytest.raises(InvalidInput, match=message):
        start(planned)
    with pytest.raises(InvalidInput, match=r"^preset: expected one of smoke, quick, full, got 'huge'\.$"):
        start("lot", "huge")
    with pytest.raises(InvalidInput, match=r"^seed: expected an integer >= 0, got -3\.$"):
        start("lot", "smoke", seed=-3)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        r"^The experiment of lot needs the package 'matplotlib', which is not installed\. "
        r"Install it with: pip install 'brenier\[experiments\]'$"
    )
    monkeypatch.delitem(sys.modules, "brenier.experiments.lot", raising=False)
    for name in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=message):
        start("lot", "smoke")


def test_configs_are_typed_and_frozen() -> None:
    for system in ON_SHELF:
        config = importlib.import_module(system.experiment).PRESETS["smoke"]
        assert all(f.type for f in fields(config))
        with pytest.raises(AttributeError):
            config.preset = "other"
