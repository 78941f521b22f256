"""Restarting a CPU program under an allocator that keeps its memory.

XLA's CPU client takes its large blocks from malloc and gives them back at every step, and glibc
returns them to the system: hundreds of thousands of page faults a step. The setting must be in the
environment before the process starts, so a training program starts itself anew, once.
GRAFT_ALLOCATOR=system leaves everything as it is, at less memory.
"""

import os
import sys

KEEPING = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1"
)


def restart_keeping_memory() -> None:
    """Replaces this process by itself with the setting, where it is a CPU program on glibc that has
    none.

    To be called before JAX is imported; does nothing the second time.
    """
    if "GLIBC_TUNABLES" in os.environ or os.environ.get("GRAFT_ALLOCATOR") == "system":
        return
    if not sys.platform.startswith("linux") or not hasattr(os, "confstr") or not _cpu_only():
        return
    os.environ["GLIBC_TUNABLES"] = KEEPING
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _cpu_only() -> bool:
    """Whether the program will run on the CPU: said so, or no accelerator's device file is
    there."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    return not any(
        os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0", "/dev/kfd")
    )
