"""Attempts at a cell that died, and when there have been enough of them.

An attempt that crashes, runs out of memory or hangs says something about its cell; one that
somebody kills, or that is gone with its machine, says next to nothing, but a cell that takes its
machine with it looks the same. So both are counted, in a row without a new checkpoint, and the
second kind may be many more. A cell that has died is tried after those that have not.
"""

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

from research import command
from research.sweep.claims import LEASE_SECONDS, held, newest_claims
from research.sweep.outcome import checkpoint_step

OWN, OUTSIDE = "own", "outside"
# How many attempts in a row may die without a new checkpoint. Of those from outside more than
# anybody kills by chance, and few enough that a cell which ends its machine ends itself.
MOST = {OWN: 8, OUTSIDE: 32}
BUSY = "another process trains in"  # how research.train refuses a folder that is in use
_STOPPED = "stopped by SIG"  # its words for a signal before its first step
# What one process sends to another. All other signals are a program's own doing.
_SENT = (
    signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
    signal.SIGUSR2,
)  # fmt: skip


@dataclass(frozen=True)
class Death:
    """How an attempt died: `kind` is `OWN` or `OUTSIDE`, and `reason` says the rest of a sentence
    about it."""

    kind: str
    reason: str


def death(code: int, error: str, memory_kills: int = 0) -> Death | None:
    """How an attempt died that ended with an exit code, negative for a signal, and the last line
    `error`; None for one that has ended, well or with an error of its own, and is not to be tried
    again. `memory_kills` is how many processes the kernel has ended meanwhile for want of memory.
    """
    if code == -signal.SIGKILL and memory_kills:
        return Death(OWN, "was ended by signal 9, by the kernel for want of memory")
    if code < 0:
        return Death(OUTSIDE if -code in _SENT else OWN, f"was ended by signal {-code}")
    if BUSY in error or code == command.INTERRUPTED:
        return Death(OUTSIDE, error)
    if code == command.RETRY:
        return Death(OUTSIDE if _STOPPED in error else OWN, error)
    return None


def memory_kills() -> int:
    """How many processes the kernel of this machine has ended for want of memory; 0 where it does
    not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def deaths(cell: Path, lease_seconds: float = LEASE_SECONDS) -> list[Death]:
    """The attempts at a cell that died in a row and began at today's checkpoint, the newest first;
    none for a cell that a living process works on."""
    claims = newest_claims(cell, checkpoint_step(cell / "run"))
    if claims and "released" not in claims[0] and held(cell, lease_seconds):
        return []
    found = []
    for one in claims:
        if "released" not in one:
            found.append(Death(OUTSIDE, "was gone with its worker"))
        elif one.get("died"):
            found.append(Death(one["died"], one["released"]))
    return found


def given_up(cell: Path, lease_seconds: float = LEASE_SECONDS) -> str:
    """Why a cell is not to be tried again, "" for one that is."""
    found = deaths(cell, lease_seconds)
    for kind, how in ((OWN, "died"), (OUTSIDE, "were killed, or gone with their worker,")):
        reasons = [one.reason for one in found if one.kind == kind]
        if len(reasons) >= MOST[kind]:
            words = f"{len(reasons)} attempts in a row {how} without a new checkpoint"
            return f"{words}; the last {reasons[0]}"
    return ""
