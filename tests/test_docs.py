"""The documentation keeps up: every public name has a docstring, every page is listed, every snippet runs."""

import ast
import fnmatch
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import brenier
from brenier.experiments.report import Claim, Report
from brenier.systems.catalogue import CATALOGUE

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    p.relative_to(DOCS).with_suffix("").as_posix()
    for p in DOCS.rglob("*.md")
    if p.relative_to(DOCS).parts[0] not in ("_build", "gallery", "examples")
)
NOT_RUN = {"data", "kernels"}  # the first fetches data sets; the second belongs to the benchmarks

MODULES = ["brenier"] + [
    m.name
    for m in pkgutil.walk_packages(brenier.__path__, "brenier.")
    if not any(part.startswith("_") for part in m.name.split("."))
]


@pytest.fixture(scope="module")
def built():
    spec = importlib.util.spec_from_file_location("brenier_docs_built", DOCS / "_ext" / "built.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


# -- docstrings ----------------------------------------------------------------------------------------------


def undocumented(namespace, names):
    """Names of classes and functions without a docstring of their own; constants need none."""
    missing = []
    for name in names:
        obj = getattr(namespace, name)
        if (inspect.isclass(obj) or callable(obj)) and hasattr(obj, "__qualname__"):
            doc = obj.__dict__.get("__doc__") if inspect.isclass(obj) else obj.__doc__
            generated = inspect.isclass(obj) and (doc or "").startswith(f"{obj.__name__}(")
            if not (doc or "").strip() or generated:
                missing.append(name)
    return missing


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module):
    namespace = importlib.import_module(module)
    assert (namespace.__doc__ or "").strip()
    assert undocumented(namespace, getattr(namespace, "__all__", [])) == []


def test_the_docstring_check_can_fail():
    class Bare:
        pass

    class Holder:
        bare, documented, constant = Bare, Report, 3

    assert undocumented(Holder, ["bare", "documented", "constant"]) == ["bare"]


@pytest.mark.parametrize("name", brenier.__all__)
def test_every_top_level_name_is_in_the_api(name):
    assert re.search(rf"`brenier\.{name}`", (DOCS / "api.md").read_text(encoding="utf-8"))
    if name != "__version__":
        text = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
        assert re.search(rf"auto\w+:: {name}$", text, re.MULTILINE)


# -- pages ---------------------------------------------------------------------------------------------------


def listed():
    """Every page that some toctree names, with globs opened."""
    found = {"index"}
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        folder = Path(page).parent
        for body in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for entry in filter(None, (line.strip() for line in body.splitlines())):
                if not entry.startswith(":"):
                    beside = [p for p in PAGES if Path(p).parent == (folder / entry).parent]
                    found.update(fnmatch.filter(beside, (folder / entry).as_posix()))
    return found


def test_every_page_is_in_a_toctree():
    assert set(PAGES) - listed() == set()


def test_every_system_on_the_shelf_has_a_page():
    assert [s.slug for s in CATALOGUE if s.on_shelf and f"systems/{s.slug}" not in PAGES] == []


def snippets(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in NOT_RUN and snippets(p)])
def test_the_snippets_of_a_page_run(page):
    namespace = {"__name__": "snippet"}
    for number, code in enumerate(snippets(page), start=1):
        exec(compile(ast.parse(code), f"{page}.md, snippet {number}", "exec"), namespace)


# -- parts made at build time --------------------------------------------------------------------------------


def test_the_catalogue_holds_every_system(built):
    text = built.fill("before\n\n<!-- catalogue -->\n\nafter")
    assert text.startswith("before")
    assert text.endswith("after")
    assert all(f"`{s.slug}`" in text for s in CATALOGUE)
    assert text.count("**on the shelf**") == sum(s.on_shelf for s in CATALOGUE)
    assert text.count("| planned |") == sum(not s.on_shelf for s in CATALOGUE)


def test_results_show_what_was_measured(built, tmp_path):
    report = Report("toy", "Toy", "smoke", [100, 101], provenance={"brenier": "1", "torch": "2", "seconds": 3})
    report.table("Accuracy | test", ("SVM",)).add("ours", [0.5, 0.7])
    report.claims += [Claim.at_least("better", 0.6, 0.5), Claim.at_most("worse", 0.6, 0.5)]
    report.save(tmp_path)
    text = built.results("toy", tmp_path)
    assert "| ours | 0.600 ± 0.141 |" in text
    assert "| better | 0.600 | 0.500 | held |" in text
    assert "| worse | 0.600 | 0.500 | **not held** |" in text
    assert "seeds 100, 101" in text


def test_missing_results_are_said_to_be_missing(built, tmp_path):
    assert "results/toy.json` is missing" in built.results("toy", tmp_path)


def test_docstrings_are_escaped_for_restructuredtext(built):
    assert built.escape("x: (*batch, n), `(*batch, m)`") == r"x: (\*batch, n), `(*batch, m)`"
    assert built.escape("(*batch, d, *sizes), a, *b*") == r"(\*batch, d, \*sizes), a, *b*"
    assert built.escape("an *exact* sum_k |x_k - y_k|^p") == r"an *exact* sum_k \|x_k - y_k\|^p"
    assert built.escape("mean_, std_: kept") == r"mean\_, std\_: kept"
    entries = built.split_attributes(
        ["Attributes:", "    f, g: both", "        of them.", "    h: one.", "", "End, so: on."]
    )
    assert entries == [
        *("Attributes:", "    f: both", "        of them.", "    g: both", "        of them.", "    h: one."),
        *("", "End, so: on."),
    ]
