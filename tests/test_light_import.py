"""What `import brenier` brings along, and what is said when an optional package is missing."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brenier
from brenier.errors import need

OPTIONAL = [
    "aeon", "anndata", "flowio", "h5py", "jinja2", "matplotlib", "metaworld", "mujoco", "numba", "ot", "pandas",
    "pooch", "pyarrow", "rdata", "rdkit", "rich", "scipy.optimize", "scipy.sparse", "scipy.spatial", "scipy.stats",
    "sklearn", "torchdiffeq", "transformers", "typer",
]  # fmt: skip

SCRIPT = """
import sys
import torch
known = set(sys.modules)
forked = []
sys.addaudithook(lambda event, _: event in ("subprocess.Popen", "os.system", "socket.connect") and forked.append(event))
import brenier
loaded = set(sys.modules) - known
print(*[name for name in sys.argv[1].split() if name in sys.modules and name not in known])
print(*sorted({m.partition(".")[0] for m in loaded} - set(sys.stdlib_module_names)))
print(torch.cuda.is_initialized(), forked, [m for m in ("triton", "torch._dynamo", "torch._inductor") if m in loaded])
"""


def test_a_fresh_import_brings_nothing_optional_compiles_nothing_and_touches_no_device() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, " ".join(OPTIONAL)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    optional, packages, rest = ran.stdout.splitlines()
    assert optional == ""
    assert set(packages.split()) <= {"brenier", "numpy"}
    assert rest == "False [] []"
    assert ran.stderr == ""


def test_import_time_script_measures() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "import_time.py"
    if not script.is_file():
        pytest.skip("the benchmarks are not in this checkout")
    command = [sys.executable, str(script), "--runs", "1", "--limit-ms", "0"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert re.search(r"^import brenier after it: +\d+\.\d ms", ran.stdout, re.MULTILINE), ran.stderr
    assert ran.returncode == 1
    assert ran.stderr.startswith("expected at most 0 ms, got ")


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)


def plot(_: Path) -> Any:
    x = torch.zeros(2, 2)
    return brenier.solve(x, x + 1).plot()


def embed(_: Path) -> Any:
    sys.modules.pop("brenier.systems.cells.lot", None)
    return importlib.import_module("brenier.systems.cells.lot")


def site(folder: Path) -> Any:
    from brenier.experiments.site import write_site

    return write_site(folder, folder)


def simulate(_: Path) -> Any:
    from brenier.data import metaworld_episodes

    return metaworld_episodes(n=1, seed=10**9)  # in no cache


def by_triton(_: Path) -> Any:
    from brenier.kernels.engine import use_engine

    with use_engine("triton"):
        pass


def read(kind: str) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        from brenier.cli.tables import read_points

        (folder / f"x{kind}").touch()
        return read_points(folder / f"x{kind}", None, None)

    return use


@pytest.mark.parametrize(
    ("package", "extra", "purpose", "use"),
    [
        ("matplotlib", "plot", "Solution.plot", plot),
        ("sklearn", "cells", "Linearised optimal transport", embed),
        ("metaworld", "pearl", "Robot episodes", simulate),
        ("jinja2", "experiments", "Writing a report", site),
        ("pandas", "tables", "Reading .parquet", read(".parquet")),
        ("pyarrow", "tables", "Reading .parquet", read(".parquet")),
        ("anndata", "cells", "Reading .h5ad", read(".h5ad")),
        ("triton", "gpu", "The engine 'triton'", by_triton),
    ],
)
def test_missing_extras_are_named_at_use_with_the_install_line(
    package: str, extra: str, purpose: str, use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import brenier.systems.cells.lot  # put back afterwards as it was

    monkeypatch.setitem(sys.modules, "brenier.systems.cells.lot", brenier.systems.cells.lot)
    missing(monkeypatch, package)
    message = (
        f"{purpose} needs the package '{package}', which is not installed. Install it with: "
        f"pip install 'brenier[{extra}]'"
    )
    with pytest.raises(brenier.MissingExtra, match=f"^{re.escape(message)}$") as caught:
        use(tmp_path)
    assert isinstance(caught.value, ImportError)


def test_every_extra_that_is_named_exists() -> None:
    import tomllib

    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = "".join(p.read_text(encoding="utf-8") for p in (root / "src").rglob("*.py"))
    named = {extra for _, extra in re.findall(r'need\(\s*"([\w.]+)",\s*"(\w+)"', source)}
    assert named
    assert named <= set(project["optional-dependencies"])


def test_need_gives_the_module_when_it_is_there() -> None:
    assert need("numpy.linalg", "plot", "This") is np.linalg
