"""The list of data sets is complete and answers questions without fetching."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import brenier.data
from brenier.data import DatasetInfo, _registry, dataset, get, info, list_datasets


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, DatasetInfo]:
    """A registry of its own."""
    own: dict[str, DatasetInfo] = {}
    monkeypatch.setattr(_registry, "_REGISTRY", own)
    return own


@pytest.mark.parametrize("entry", list_datasets(), ids=lambda entry: entry.slug)
def test_every_set_tells_source_licence_size_and_shapes(entry: DatasetInfo) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.slug)
    assert entry.source
    assert entry.licence
    assert entry.size
    assert entry.summary.endswith(".")
    doc = inspect.getdoc(entry.loader) or ""
    for part in ("Source: ", "Returns:", "("):
        assert part in doc
    assert any(word in doc for word in ("BSD", "MIT", "GPL", "CC BY", "PSF", "Apache", "Artistic"))
    assert entry.loader.__name__ == entry.slug.replace("-", "_")
    assert getattr(brenier.data, entry.loader.__name__) is entry.loader


def test_every_public_loader_is_registered() -> None:
    assert [entry.slug for entry in list_datasets()] == [
        "brown-corpus",
        "colour-photographs",
        "digit-clouds",
        "digits",
        "fashion-mnist",
        "flow-cytometry-wells",
        "hsmm",
        "japanese-vowels",
        "metaworld-episodes",
        "pbmc68k-reduced",
        "photographs",
        "python-topics",
        "smollm2",
        "yeast-dose-response",
    ]


def test_public_names_exist_and_are_sorted() -> None:
    assert brenier.data.__all__ == sorted(brenier.data.__all__)
    assert all(hasattr(brenier.data, name) for name in brenier.data.__all__)


def test_get_passes_options(registry: dict[str, DatasetInfo]) -> None:
    @dataset("toy-set", source="here", licence="MIT", size="nothing")
    def toy_set(n: int = 3) -> list[int]:
        """Some numbers."""
        return list(range(n))

    assert toy_set() == [0, 1, 2]  # the decorator returns the function itself
    assert get("toy-set", n=1) == [0]
    assert info("toy-set") == DatasetInfo("toy-set", "Some numbers.", "here", "MIT", "nothing", toy_set)
    with pytest.raises(ValueError, match="already registered"):
        dataset("toy-set", source="here", licence="MIT", size="nothing")(toy_set)
    with pytest.raises(ValueError, match="no data set is called 'toyset'; did you mean 'toy-set'"):
        get("toyset")


@pytest.mark.parametrize("missing", ["source", "licence", "size", "docstring"])
def test_incomplete_entries_are_refused(missing: str, registry: dict[str, DatasetInfo]) -> None:
    def silent() -> None: ...

    def spoken() -> None:
        """Nothing."""

    fields = {"source": "here", "licence": "MIT", "size": "nothing"}
    if missing in fields:
        fields[missing] = " "
    with pytest.raises(ValueError, match=f"needs a {missing}"):
        dataset("toy-set", **fields)(silent if missing == "docstring" else spoken)
    assert not registry


def test_import_is_light() -> None:
    code = (
        "import sys, brenier.data; brenier.data.list_datasets();"
        "heavy = {'pooch', 'sklearn', 'flowio', 'pandas', 'requests', 'anndata', 'rdata'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
