"""Restarts a CPU program with malloc settings that keep freed memory in the process.

XLA's CPU client allocates its large blocks with malloc and frees them at every step. By default
glibc returns them to the system, which costs hundreds of thousands of page faults a step. The
settings must be in the environment before the process starts, so a training program restarts
itself once. GRAFT_ALLOCATOR=system turns this off, for less memory and more time.
"""

import os
import sys

from research.devices.nodes import runs_on_cpu

KEEPING = (
    # Huge pages; no block by mmap and no trimming, so freed memory stays; one arena for all
    # threads.
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1"
)


def restart_keeping_memory() -> None:
    """Restarts this process with `KEEPING`, if it is a CPU program on Linux without such settings.

    Call it before JAX is imported. It does nothing in the restarted process, on other platforms,
    and with GRAFT_ALLOCATOR=system.
    """
    wanted = keeping_memory()
    if not wanted:
        return
    # Also the mark by which the restarted process knows that it is one.
    os.environ.update(wanted)
    sys.stdout.flush()
    sys.stderr.flush()
    # The process keeps its id, so launchers do not notice. orig_argv has the interpreter's own
    # options and "-m", which argv lacks.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keeping_memory() -> dict[str, str]:
    """The environment variables with which a child process keeps its memory from the start; {}
    where `restart_keeping_memory` would do nothing."""
    if "GLIBC_TUNABLES" in os.environ or os.environ.get("GRAFT_ALLOCATOR") == "system":
        return {}
    if not sys.platform.startswith("linux") or not hasattr(os, "confstr") or not runs_on_cpu():
        return {}
    return {"GLIBC_TUNABLES": KEEPING}
