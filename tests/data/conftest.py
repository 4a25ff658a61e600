from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from brenier.data import DataUnavailable


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BRENIER_CACHE", str(folder))
    return folder


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Write a wheel by hand; returns its path and its hash."""

    def make(
        files: Mapping[str, bytes], project: str = "toyset", version: str = "1.0", folder: Path | None = None
    ) -> tuple[Path, str]:
        path = (folder or tmp_path) / f"{project}-{version}-py3-none-any.whl"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = f"{project}-{version}.dist-info"
        with zipfile.ZipFile(path, "w") as bundle:
            for name, content in files.items():
                bundle.writestr(name, content)
            bundle.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
            bundle.writestr(
                f"{about}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            bundle.writestr(f"{about}/RECORD", "")
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    return make


@pytest.fixture
def load_or_skip() -> Callable[..., Any]:
    """Run a loader on the user's own cache, or skip where the set cannot be had, telling why."""

    def load(loader: Callable[..., Any], **options: Any) -> Any:
        try:
            return loader(**options)
        except DataUnavailable as error:
            if any(sign in str(error) for sign in ("HASH", "sha256", "has no")):
                raise  # it was had, and is wrong: that is a failure
            pytest.skip(" ".join(str(error).split()))

    return load
