"""The identity of the code that makes a cell's numbers: git's name for the tree of a folder."""

import hashlib
import os
from pathlib import Path

import research


def package_tree() -> str:
    """The 40 hexadecimal digits of `git rev-parse HEAD:research`, computed from the files that are
    there: also for uncommitted changes, and where the package is installed without git."""
    return tree_digest(Path(research.__file__).parent).hex()


def tree_digest(folder: Path) -> bytes:
    """SHA-1 of a folder as git hashes a tree. What an import leaves behind (`__pycache__`), names
    that begin with a dot and empty folders do not count."""
    entries = []
    for path in folder.iterdir():
        if path.name == "__pycache__" or path.name.startswith(".") or path.suffix == ".pyc":
            continue
        if path.is_dir() and not path.is_symlink():
            digest = tree_digest(path)
            if digest != _EMPTY:
                # Git sorts a folder as if its name ended in a slash.
                entries.append((path.name + "/", b"40000", path.name, digest))
        else:
            entries.append((path.name, _mode(path), path.name, _object("blob", _content(path))))
    lines = (
        mode + b" " + name.encode() + b"\0" + digest for _, mode, name, digest in sorted(entries)
    )
    return _object("tree", b"".join(lines))


def _content(path: Path) -> bytes:
    return os.readlink(path).encode() if path.is_symlink() else path.read_bytes()


def _mode(path: Path) -> bytes:
    if path.is_symlink():
        return b"120000"
    return b"100755" if os.access(path, os.X_OK) else b"100644"


def _object(kind: str, content: bytes) -> bytes:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).digest()


_EMPTY = _object("tree", b"")
