"""Claims on cells: which process works on a cell now, on whatever machine.

A claim is a numbered file, `claims/0001.json`, made by exclusive creation, which is atomic on local
disks, NFS from version 3 on and mounted buckets. Its holder touches it while it works. A claim that
is released, whose process is gone, or that was not touched for the time of a lease is dead, and
whoever creates the next number has the cell. So the number of claims is that of attempts, and no
file is ever taken away from under another process.
"""

import json
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.files import read_json, write_json

LEASE_SECONDS = 120.0
FOLDER = "claims"


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds; `number` counts the attempts at its cell from 1, and `step`
    is that of the checkpoint that it began at."""

    file: Path
    number: int
    step: int

    def renew(self) -> bool:
        """Says that the holder is alive. False if another process has taken the cell over, as after
        a machine was asleep: the holder must then leave it alone."""
        if self.file.with_name(_name(self.number + 1)).exists():
            return False
        try:
            os.utime(self.file)
        except FileNotFoundError:  # the cell was set back by `retry`
            return False
        return True

    def release(self, reason: str, died: str = "") -> None:
        """Leaves the cell to the next attempt at once; `died` is the kind of a `Death`."""
        said = {"released": reason, "died": died}
        write_json(self.file, {**_owner(), "step": self.step, **said})


def claim(cell: Path, step: int, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Claims the cell in a folder; None if another process holds it.

    `step` is that of the newest checkpoint, which `research.sweep.deaths` reads.
    """
    folder = cell / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    numbers = _numbers(folder)
    last = numbers[-1] if numbers else 0
    if last and not _dead(folder / _name(last), lease_seconds):
        return None
    file = folder / _name(last + 1)
    try:
        with open(file, "x", encoding="utf-8") as new:
            json.dump({**_owner(), "step": step}, new)
    except FileExistsError:
        return None
    except OSError:
        # On a full disk nothing tells whose it is, and the cell would wait for the lease.
        file.unlink(missing_ok=True)
        raise
    return Claim(file, last + 1, step)


def attempts(cell: Path) -> int:
    """How often a cell has been claimed."""
    numbers = _numbers(cell / FOLDER)
    return numbers[-1] if numbers else 0


def held(cell: Path, lease_seconds: float = LEASE_SECONDS) -> bool:
    """True if a living process works on the cell."""
    last = attempts(cell)
    return bool(last) and not _dead(cell / FOLDER / _name(last), lease_seconds)


def newest_claims(cell: Path, step: int) -> list[dict[str, Any]]:
    """What the claims say, the newest first, that in a row began at the checkpoint `step`."""
    folder, found = cell / FOLDER, []
    for number in reversed(_numbers(folder)):
        owner = _read(folder / _name(number))
        if owner.get("step", step) != step:
            break
        found.append(owner)
    return found


def _dead(file: Path, lease_seconds: float) -> bool:
    owner = _read(file)
    if "released" in owner:
        return True
    here = _owner()
    # On this machine the process itself can be asked after, without waiting for the lease.
    if owner.get("boot") == here["boot"] and owner.get("host") == here["host"]:
        return _started(owner["process"]) != owner.get("began")
    return _now(file.parent) - file.stat().st_mtime > lease_seconds


def _owner() -> dict[str, Any]:
    """What identifies this process."""
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "process": os.getpid(),
        "began": _started(os.getpid()),
    }


def _started(process: int) -> str:
    """The kernel's start time of a process, which a later one of the same number does not share;
    "" for one that is gone, a zombie included."""
    # The name in parentheses may hold spaces, so fields are counted behind it: state is the first,
    # the start time the twentieth.
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of `folder`, which may be a server's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _read(file: Path) -> dict[str, Any]:
    try:
        owner = read_json(file)
    except (OSError, ValueError):  # created and not yet written: it counts by its time alone
        return {}
    return owner if isinstance(owner, dict) else {}


def _numbers(folder: Path) -> list[int]:
    return sorted(int(file.stem) for file in folder.glob("[0-9]*.json"))


def _name(number: int) -> str:
    return f"{number:04}.json"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
