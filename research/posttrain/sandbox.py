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

SECONDS, MEMORY_BYTES, FILE_BYTES, OPEN_FILES = 5, 1 << 30, 1 << 20, 32

# The child's program. Limits come first, so that the code runs under all of them. Whether the code
# came to its end is told by a word that only this program knows: exit codes can be had early.
_CHILD = r"""
import ctypes, os, resource, sys
seconds, memory, size, files, report = map(int, sys.argv[1:])
word, _, source = sys.stdin.read().partition("\n")
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # own user and network
except Exception:
    pass
for name, limit in (
    ("CPU", seconds), ("AS", memory), ("FSIZE", size), ("NOFILE", files), ("CORE", 0)
):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
folder = os.path.realpath(os.getcwd()) + os.sep
refused = (
    "socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "os.spawn", "os.kill", "os.chmod", "os.chown", "os.link", "os.symlink", "pty.", "signal.",
)
changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "shutil.")
modules = ("ctypes", "_ctypes", "_posixsubprocess")

def hook(event, values):
    if event.startswith(refused) or event == "import" and values[0] in modules:
        raise PermissionError(event + " is refused in the sandbox")
    writes = event.startswith(changes)
    if event == "open":
        mode, flags = values[1] or "", values[2] or 0
        kinds = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        writes = any(letter in mode for letter in "wax+") if mode else bool(flags & kinds)
    paths = [one for one in values[:2] if isinstance(one, (str, bytes))] if writes else []
    for path in paths[: 1 if event == "open" else 2]:
        if not (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(folder):
            raise PermissionError(event + " outside the folder is refused in the sandbox")

def run(source):
    sys.addaudithook(hook)
    exec(compile(source, "<code>", "exec"), {"__name__": "__main__"})

try:
    run(source)
except BaseException as error:
    print(type(error).__name__ + ": " + str(error)[:200], file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
os.write(report, word.encode())
os._exit(0)
"""


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
            limits = map(str, (seconds, memory_bytes, FILE_BYTES, OPEN_FILES, writer))
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _CHILD, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={},
                pass_fds=(writer,),
                start_new_session=True,
            )
            errors, late = _finish(child, f"{word}\n{source}".encode(), 2.0 * seconds)
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


def _finish(child: subprocess.Popen, source: bytes, seconds: float) -> tuple[str, bool]:
    """(what the child wrote to standard error, whether it was ended for its time)."""
    late = False
    try:
        _, errors = child.communicate(source, timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        _, errors = child.communicate()
    return errors.decode(errors="replace"), late
