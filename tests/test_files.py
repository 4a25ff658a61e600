"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from brenier._files import write_whole


def test_write_and_overwrite(tmp_path: Path) -> None:
    for content in (b"first", b"", b"second" * 1000):
        write_whole(tmp_path / "file.bin", content)
        assert (tmp_path / "file.bin").read_bytes() == content
        assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["pathlib.Path.write_bytes", "brenier._files.os.replace"])
def test_a_failure_leaves_what_was_there(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file.bin", b"old")

    def fail(*_: object) -> None:
        next(tmp_path.glob(".*"), tmp_path / ".file.bin.part").touch()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            write_whole(tmp_path / "file.bin", b"new")
    left = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".file.bin.part"}
    assert left == {"file.bin": b"old"}
