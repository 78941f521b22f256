"""What the commands say to `--help`, asked in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable

# Flags of two commands may have one name, so each command has a process. They are forked from one
# that has imported what they share, which takes most of the time.
_DRIVER = """
import json, os, runpy, sys
import research.run.resolve
for module in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 1)
        sys.argv = [module, "--help"]
        try:
            runpy.run_module(module, run_name="__main__")
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(write)
    print(json.dumps(b"".join(iter(lambda: os.read(read, 65536), b"")).decode()), flush=True)
    os.wait()
"""


def help_texts(commands: Iterable[str]) -> dict[str, str]:
    """The text of `python -m research.NAME --help` for each name. RuntimeError without one."""
    names = list(commands)
    # Help needs no device, a fork none that is in use, and no command may begin anew in its fork.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DRIVER],
        input=json.dumps([f"research.{name}" for name in names]),
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "GRAFT_ALLOCATOR": "system"},
    )
    texts = dict(zip(names, map(json.loads, done.stdout.splitlines())))
    if silent := [name for name in names if not texts.get(name)]:
        raise RuntimeError(f"no help of {', '.join(silent)}: {done.stderr[-2000:]}")
    return texts
