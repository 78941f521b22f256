"""Reading files, and writing files and folders atomically: readers see the old content or the new,
never a mixture."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces the content of a file by `text` in UTF-8, line ends unchanged. Atomic, as
    `replacing` is."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing. It replaces `path` when the block ends, and is deleted if
    the block raises.

    The bytes reach the disk before the name does (fsync, rename, fsync of the folder), so that not
    even a power loss leaves half a file. A symbolic link is followed, not replaced. OSError if the
    folder is missing or not writable, or the disk is full.

        with replacing("data.bin") as file:
            file.write(content)
    """
    target = Path(os.path.realpath(path))
    # In the target's folder, since a rename is atomic only within one file system; the random name
    # keeps two writers apart.
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
    """Writes `value` as indented JSON, keys in the order of the dicts. Atomic, as `replacing` is.
    Paths become strings, NumPy scalars numbers.

    ValueError for a value that JSON cannot hold, such as NaN; nothing is written then.
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
    """The value in a JSON file. ValueError, which names the file, if it is no valid JSON; OSError
    if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    # Deep nesting exhausts Python's stack before it is a syntax error.
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); restore it from a copy, or start in a new folder"
        ) from None


@contextlib.contextmanager
def building(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to be filled. It is renamed to `folder` when the block ends, and deleted
    if the block raises.

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
        # Data before names: a folder that has its final name after a power loss is complete.
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
    """The values of nested dicts by dotted path. An empty dict counts as a value.

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
    """The text of a UTF-8 file, line ends unchanged. ValueError if it is missing, empty or not
    UTF-8. The message begins with `setting`, the name of the flag or field that gave the file."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}={file} cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise ValueError(f"{setting}={file} is empty; give a file with text")
    return text
