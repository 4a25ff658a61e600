from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_outcome import Clouds, Ran


@pytest.fixture
def brenier(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run the command line in this process, as the console script does."""
    from brenier.cli import app, main

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["brenier", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        return Ran(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    for console in (app._out, app._err):
        monkeypatch.setattr(console, "width", 200)  # whatever the environment was when it was made
    yield run
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def clouds() -> Clouds:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(1, 1, size=(16, 3))
    return Clouds(x, y, rng.uniform(1, 2, 20), rng.uniform(1, 2, 16))


@pytest.fixture
def pair(tmp_path: Path, clouds: Clouds) -> tuple[Path, Path]:
    """The clouds as .npy files."""
    paths = tmp_path / "x.npy", tmp_path / "y.npy"
    for path, points in zip(paths, (clouds.x, clouds.y)):
        np.save(path, points)
    return paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for results."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
