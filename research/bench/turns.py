"""Contenders in processes of their own that take turns: A B C A B C, so that what else the machine
does hits all alike."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from research.allocator import KEEPING


@dataclass
class Contender:
    """A child process that does one unit of work each time that it is asked to."""

    name: str
    process: subprocess.Popen
    seconds: list[float] = field(default_factory=list)

    def ask(self, word: str) -> dict[str, Any]:
        """The child's answer to "run" or "stop". RuntimeError, with what it printed, where it
        died."""
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        # The child has ended; reading its answer below says so, with its exit code.
        except BrokenPipeError:
            pass
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of the child."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"contender {self.name} ended with exit code {self.process.wait()}; "
                "its errors are above"
            )
        return json.loads(line)


def take_turns(
    module: str,
    names: list[str],
    rounds: int,
    allocator: str = KEEPING,
    before: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Median seconds, all seconds, peak memory and start-up of each `python -m module NAME`, which
    ran `rounds` times.

    All get the same allocator setting, as of `start`. The first turn of each is not counted: it may
    still compile or fault pages in. `before` is called in front of each turn.
    """
    contenders = []
    try:
        for name in names:  # one after the other, so that start-ups do not disturb each other
            contenders.append(start(module, name, allocator))
            # Progress goes to standard error; standard output has the result alone.
            print(f"{name} is ready", file=sys.stderr)
        for turn in range(rounds + 1):
            for contender in contenders:
                before()
                seconds = contender.ask("run")["seconds"]
                # Turn 0 warms up.
                contender.seconds += [seconds] if turn else []
            print(f"round {turn} of {rounds}", file=sys.stderr)
        return {
            c.name: {
                "seconds": statistics.median(c.seconds),
                "all_seconds": c.seconds,
                **c.ask("stop"),
            }
            for c in contenders
        }
    finally:
        for contender in contenders:
            contender.process.kill()


def take_fresh_turns(
    module: str,
    names: list[str],
    rounds: int,
    allocator: str = KEEPING,
    before: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """As `take_turns`, with a process of its own for each turn, whose first run is the one that
    counts: what a person waits for who runs a command once. The memory is the median's."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            contender = start(module, name, allocator)
            try:
                before()
                answers[name].append(contender.ask("run") | contender.ask("stop"))
            finally:
                contender.process.kill()
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return {
        name: {
            "seconds": statistics.median(one["seconds"] for one in found),
            "all_seconds": [one["seconds"] for one in found],
            "peak_bytes": statistics.median(one["peak_bytes"] for one in found),
        }
        for name, found in answers.items()
    }


def start(module: str, name: str, allocator: str = KEEPING) -> Contender:
    """A contender that has said that it is ready; `allocator` is the setting of glibc's, "" for
    none."""
    # glibc reads its tunables when a process starts, so they must be in the environment of the
    # child.
    environment = {**os.environ, "GLIBC_TUNABLES": allocator, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-m", module, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    contender = Contender(name, process)
    # Blocks until the child has compiled: starting the next one would slow it.
    contender.answer()
    return contender


def serve(run: Any) -> None:
    """The child's side: says that it is ready, then answers "run" with seconds and "stop" with its
    peak memory."""
    import resource
    import time

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            # Linux counts it in KiB.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"peak_bytes": peak}), flush=True)
            return
        # The child measures itself: the pipe is not in its seconds.
        # A monotonic clock of high resolution; the wall clock may be set in between.
        start = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
