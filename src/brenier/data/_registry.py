"""The list of data sets: what there is, from where, under which licence."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is fetched.

    Attributes:
        slug: its name in `get` and on the command line.
        summary: one sentence.
        source: the package or address it comes from.
        licence: the licence under which that source gives it.
        size: what is downloaded and what is kept.
        loader: the function that fetches and reads it.
    """

    slug: str
    summary: str
    source: str
    licence: str
    size: str
    loader: Callable[..., Any]

    def load(self, **options: Any) -> Any:
        """Fetch the set if need be, and read it; options go to the loader."""
        return self.loader(**options)


_REGISTRY: dict[str, DatasetInfo] = {}


def dataset(slug: str, *, source: str, licence: str, size: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Enter a loader in the list of data sets; the loader itself is returned unchanged.

    Args:
        slug: lower-case words joined by hyphens, unique.
        source: the package or address the set comes from.
        licence: the licence under which that source gives it.
        size: what is downloaded and what is kept.

    Raises:
        ValueError: when the slug is taken, a field is empty, or the loader has no docstring.
    """

    def enter(loader: Callable[_P, _R]) -> Callable[_P, _R]:
        if slug in _REGISTRY:
            raise ValueError(f"the data set {slug!r} is already registered by {_REGISTRY[slug].loader!r}")
        summary = (loader.__doc__ or "").strip().partition("\n")[0]
        for name, value in (("docstring", summary), ("source", source), ("licence", licence), ("size", size)):
            if not value.strip():
                raise ValueError(f"the data set {slug!r} needs a {name}")
        _REGISTRY[slug] = DatasetInfo(slug, summary, source, licence, size, loader)
        return loader

    return enter


def list_datasets() -> list[DatasetInfo]:
    """Return what is known about every data set, sorted by slug; nothing is fetched."""
    return [_REGISTRY[slug] for slug in sorted(_REGISTRY)]


def info(slug: str) -> DatasetInfo:
    """Return what is known about one data set; nothing is fetched.

    Raises:
        ValueError: when there is no such set; the message names close ones.
    """
    if slug not in _REGISTRY:
        near = difflib.get_close_matches(slug, _REGISTRY, n=3) or sorted(_REGISTRY)
        raise ValueError(f"no data set is called {slug!r}; did you mean {', '.join(map(repr, near))}?")
    return _REGISTRY[slug]


def get(slug: str, **options: Any) -> Any:
    """Fetch a data set if need be, and return what its loader returns.

    Args:
        slug: its name, as `list_datasets` gives it.
        **options: passed to the loader.

    Raises:
        ValueError: when there is no such set.
        DataUnavailable: when it cannot be had here.
    """
    return info(slug).load(**options)
