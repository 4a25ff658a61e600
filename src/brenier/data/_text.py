"""Texts for language models."""

from __future__ import annotations

from ._registry import dataset


@dataset(
    "python-topics",
    source="the standard library of Python, `pydoc_data.topics`",
    licence="PSF-2.0",
    size="nothing fetched: 0.7 MB inside Python",
)
def python_topics() -> dict[str, str]:
    """The help texts of the Python language reference, one a topic.

    Some 80 texts of technical English, half a million characters in all, a little different from one version of Python
    to the next.

    Source: the standard library (`pydoc_data.topics`). Licence: PSF-2.0.

    Returns:
        the text of each topic, by name, in alphabetical order.
    """
    from pydoc_data.topics import topics

    return {name: topics[name] for name in sorted(topics)}
