"""Atomic writes of files and folders: readers see the old content or the new, never a mixture."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace the file with `text` in UTF-8, unchanged in its line ends. As `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file opened for writing, which replaces `path` when the block ends and is deleted when it
    raises.

    The bytes reach the disk before the name does (fsync, rename, fsync of the folder), so that not
    even a power loss leaves a part. A symbolic link is followed. OSError where the folder is
    missing or refuses.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON in its own key order. Paths become strings, NumPy scalars
    numbers.

    ValueError for a value that JSON lacks, NaN and the infinities among them; nothing is written
    then.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot hold this value: {error}; "
            "use null, strings, finite numbers, lists, dicts"
        ) from None
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; ValueError that names the file where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); restore it from a copy, or start in a new folder"
        ) from None


@contextlib.contextmanager
def building(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `folder` when the block ends and deleted when
    it raises.

    ValueError if `folder` exists and is not empty, or cannot be made.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already; remove it or choose another target")
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error}; choose another target") from None
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        if target.exists():
            target.rmdir()
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _sync_folder(target.parent)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some network file systems open no folders; the rename stands all the same
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested JSON objects by dotted path. An empty object is a value.

    >>> flatten({"data": {"batch_size": 16}, "axes": {}})
    {'data.batch_size': 16, 'axes': {}}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_text(file: Path, setting: str) -> str:
    """The text of a UTF-8 file, line ends untouched. ValueError where it is missing, empty or not
    UTF-8; it names `setting`, which is what chose the file."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}={file} cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise ValueError(f"{setting}={file} is empty; give a file with text")
    return text
