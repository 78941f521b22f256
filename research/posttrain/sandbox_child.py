"""The child process of `research.posttrain.sandbox`: sets limits on itself, then runs code.py of
its folder. It is started by its path and imports nothing but Python's library.

    python -I -S sandbox_child.py SECONDS MEMORY_BYTES FILE_BYTES OPEN_FILES REPORT

REPORT is a file descriptor. Whether the code came to its end is told there, by a word from standard
input that the code does not know: an exit code of 0 can be had early.
"""

import ctypes
import os
import resource
import runpy
import sys
from typing import Any

# Events of Python's audit hooks (docs.python.org/3/library/audit_events.html), by their beginnings.
REFUSED = (
    "socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "os.spawn", "os.kill", "os.chmod", "os.chown", "os.link", "os.symlink", "pty.", "signal.",
)  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "shutil.")
# A user and a network of its own, of linux/sched.h.
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def limit(seconds: int, memory_bytes: int, file_bytes: int, open_files: int) -> None:
    """Sets the limits of this process. The network is left where the kernel does not allow it."""
    try:
        ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    except (OSError, AttributeError):  # no Linux; the hook refuses sockets all the same
        pass
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def guard(folder: str) -> None:
    """Refuses sockets, processes, foreign functions, and changes to files outside the folder, from
    here to the end of the process."""
    inside = os.path.realpath(folder) + os.sep

    def _hook(event: str, values: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is refused in the sandbox")
        changed: tuple[Any, ...] = ()
        if event == "open":
            changed = values[:1] if _writes(values[1], values[2]) else ()
        elif event.startswith(CHANGES):
            changed = values[:2]
        for path in changed:
            if isinstance(path, str | bytes):
                if not (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(inside):
                    raise PermissionError(f"{event} outside the folder is refused in the sandbox")

    sys.addaudithook(_hook)


def _writes(mode: str | None, flags: int | None) -> bool:
    if mode:
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def main() -> None:
    """Runs code.py and tells the word if it comes to its end."""
    *limits, report = map(int, sys.argv[1:])
    word = sys.stdin.read()
    limit(*limits)
    guard(os.getcwd())
    try:
        runpy.run_path("code.py", run_name="__main__")
    # Whatever the code raises, an exit too: it has not come to its end.
    except BaseException as error:
        print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        os._exit(1)
    os.write(report, word.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
