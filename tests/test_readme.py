"""The README is true: its example runs, and its table is the catalogue."""

import re
from pathlib import Path

from brenier.systems.catalogue import CATALOGUE

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})


def test_the_table_lists_every_system_with_its_state():
    rows = re.findall(r"^\| (\S+) \| \[`(\S+)`\]\((\S+)\) \| (.+?) \| (\S.*?) \|$", README, re.MULTILINE)
    state = {True: "**on the shelf**", False: "planned"}
    expected = [(s.wing, s.slug, f"https://arxiv.org/abs/{s.arxiv}", s.summary, state[s.on_shelf]) for s in CATALOGUE]
    assert rows == expected
