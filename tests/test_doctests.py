"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import brenier

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = ["brenier", *(info.name for info in pkgutil.walk_packages(brenier.__path__, "brenier."))]
WITH_EXAMPLES = {"brenier", "brenier.api", "brenier.geometry.grid", "brenier.geometry.matrix"}


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith("brenier.data")])  # data sets are fetched
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # an engine that was not built
        pytest.skip(str(error))
    failed, attempted = doctest.testmod(module, optionflags=FLAGS)
    assert failed == 0
    assert attempted > 0 or name not in WITH_EXAMPLES
