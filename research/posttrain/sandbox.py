"""Runs Python that a model has written: in a child process with limits, without network.

The child has an empty environment and a folder of its own as the place to write; limits on
processor time, memory, open files and sizes of files; a network of its own without a device, where
the kernel allows that; and a hook that refuses sockets, processes, foreign functions and changes
to files elsewhere. A hook in Python stops what a model writes by chance or to please a reward. It
is no wall against an attacker: run code that may be hostile in a virtual machine.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SECONDS, MEMORY_BYTES, FILE_BYTES, OPEN_FILES = 5, 1 << 30, 1 << 20, 32
_CHILD = Path(__file__).parent / "sandbox_child.py"


@dataclass(frozen=True)
class Outcome:
    """What became of some code: whether it came to its end without an error, else why not."""

    passed: bool
    reason: str = ""


def run_code(source: str, seconds: int = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """Runs Python code, with at most so many seconds of processor time and twice that in all."""
    word = secrets.token_hex(16)
    reader, writer = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
            Path(folder, "code.py").write_text(source, "utf-8", "replace")
            limits = map(str, (seconds, memory_bytes, FILE_BYTES, OPEN_FILES, writer))
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD), *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={},
                pass_fds=(writer,),
                start_new_session=True,
            )
            errors, late = _finish(child, word.encode(), 2.0 * seconds)
        os.close(writer)
        writer = -1
        told = os.read(reader, 64).decode(errors="replace")
    finally:
        for end in (reader, writer):
            if end >= 0:
                os.close(end)
    if told == word:
        return Outcome(True)
    if late or child.returncode == -signal.SIGXCPU or child.returncode == -signal.SIGKILL:
        return Outcome(False, f"it took more than {seconds} s")
    return Outcome(False, errors.splitlines()[-1] if errors.strip() else "it ended early")


def _finish(child: subprocess.Popen, word: bytes, seconds: float) -> tuple[str, bool]:
    """(what the child wrote to standard error, whether it was ended for its time)."""
    late = False
    try:
        _, errors = child.communicate(word, timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        _, errors = child.communicate()
    return errors.decode(errors="replace"), late
