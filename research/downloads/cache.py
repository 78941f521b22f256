"""Cached directories: each is built once and is either complete or absent, even if processes are
killed or several build it at the same time."""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from research.files import read_json, write_json

T = TypeVar("T")


def cache_directory() -> Path:
    """The folder for downloads, data sets and tokens: $GRAFT_CACHE, by default ~/.cache/graft."""
    # Read at every call, so that it may be set after the import.
    return Path(os.environ.get("GRAFT_CACHE", "~/.cache/graft")).expanduser()


def make_folder(folder: Path) -> None:
    """Makes a folder of the cache. ValueError if that is not allowed: a read-only home, which
    another attempt would find again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions alone do not tell: the file system may be mounted read-only.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        # A full disk is no wrong setting: the user can make room, so the error itself is shown.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"the cache {folder} cannot be written: {error.strerror}; set GRAFT_CACHE to a folder "
            "that can"
        ) from None


class Damaged(ValueError):
    """A cached directory exists, but its content is not what was once written."""


def built(directory: Path, build: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """`read(directory)`. If the directory is missing or damaged, it is built first: `build(folder)`
    fills a temporary folder, which is then renamed to `directory`.

    `read` must raise FileNotFoundError for an absent directory and Damaged for a damaged one, which
    is rebuilt with a warning. Processes on one machine wait for each other and build only once.
    """
    try:
        return read(directory)
    # "Not a directory" where the cache is a file: making the folder says what to set.
    except (FileNotFoundError, NotADirectoryError, Damaged):
        make_folder(directory.parent)
    # Read again under the lock: another process may have built it while this one waited.
    with _locked(directory) as alone:
        try:
            return read(directory)
        except FileNotFoundError:
            pass
        except Damaged as error:
            logging.warning("%s; building it again", error)
        if alone:
            _clear(directory)
        # Beside the target, since a rename is atomic only within one file system.
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".part", dir=directory.parent)
        )
        try:
            build(temporary)
            # mkdtemp makes folders that only their owner may read; a cache may be shared.
            temporary.chmod(0o755)
            _move(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return read(directory)


def remembered(path: Path, compute: Callable[[], Any]) -> Any:
    """The JSON value in the file `path`; if the file is missing or damaged, `compute()` is written
    there first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return read_json(path)
    make_folder(path.parent)
    write_json(path, compute())
    # Read back, so that the first call and all later ones give the same types.
    return read_json(path)


def _clear(directory: Path) -> None:
    """Remove a damaged directory and what killed builders left beside it; only for the holder of
    the lock."""
    for path in (directory, *directory.parent.glob(f".{directory.name}.*.part")):
        shutil.rmtree(path, ignore_errors=True)


def _move(temporary: Path, directory: Path) -> None:
    try:
        os.rename(temporary, directory)
    except OSError:
        # Where locks do not work another process may have built it first. Its content is the same,
        # since directories are named after a hash of what they are built from.
        if not directory.is_dir():
            raise


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds the directory's lock, which the kernel releases if the process dies. Yields False on
    file systems without locks."""
    # The lock file stays: removing it would let two processes lock two different files of one
    # name.
    with open(directory.parent / f".{directory.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
