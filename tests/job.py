"""Jobs of several processes on loopback, for tests of what they do together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.compiler import older_fusions_flag
from tests.configs import ROOT

# Runs the module after the lines of `first`, which change it.
AFTER = """
import sys
{first}
sys.argv[0] = "research.train"
from research import command, train
command.run(train.main)
"""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(
    workdir: Path,
    processes: int,
    *changes: str,
    devices: int = 4,
    config: str = f"{ROOT}/configs/quickstart.py:smoke",
    first: str = "",
) -> list[subprocess.Popen]:
    """A smoke run with `changes` such as "train.steps=4" over so many devices of so many processes.
    Each runs the Python lines `first` before; PROCESS is its number there."""
    address, started = f"127.0.0.1:{free_port()}", []
    arguments = [f"--config={config}", f"--workdir={workdir}"]
    arguments += [f"--config.{change}" for change in changes]
    for process in range(processes):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes} "
            + older_fusions_flag(),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        if processes > 1:
            environment |= {
                "GRAFT_COORDINATOR": address,
                "GRAFT_PROCESSES": str(processes),
                "GRAFT_PROCESS": str(process),
            }
        code = AFTER.format(first=f"PROCESS = {process}\n{first}")
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    return started


def finish(started: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str]]:
    """(exit code, what was said) of each process."""
    ends = []
    try:
        for process in started:
            _, errors = process.communicate(timeout=timeout)
            ends.append((process.returncode, errors))
    finally:
        for process in started:
            process.kill()
    return ends


def said(process: subprocess.Popen, word: str) -> None:
    """Returns once a line of the process has the word."""
    for line in process.stderr or []:
        if word in line:
            return
    raise AssertionError(f"process {process.args[-1]} ended without {word!r}")
