"""A compile in a process of its own: when a compiler crashes, hangs or takes all memory, only that
process is lost.

The parent writes the question as one JSON line on the child's standard input and leaves it open:
when it closes, for whatever reason, the child ends. The child answers in JSON lines on its standard
output: {"stage": ...} as each stage begins, and last {"program": KEY, "fit": {...}} or {"refused":
WORDS} for a ValueError.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import research
from research.command import BUG, Stop
from research.experiment.config import from_json
from research.files import write_text
from research.fit import cache
from research.fit.measure import measure
from research.fit.report import Fit
from research.fit.targets import parse_target
from research.training.progress import clock_time, printable

TICK = 0.5  # seconds between two looks at the clock
# seconds between lines of a stage that lasts, where a line cannot be rewritten
PLAIN_INTERVAL = 60.0
# -P: the folder where the command runs must not shadow a package with a file of its own.
COMMAND = (sys.executable, "-P", "-m", "research.fit.child")
# The compiler's last words, among much that is not: a fatal line of absl's log, or the C++
# runtime's.
_FATAL = re.compile(r"^F\d{4} |^terminate called|^Fatal |^\w*(Error|Exception): ")


class CompilerFailed(Stop):
    """The compiler's process ended without an answer: it crashed, or was killed."""


class TookTooLong(ValueError):
    """The compiler's process was ended at the time limit."""


class Progress:
    """The stage that a compile is in and its seconds: one line that is rewritten on a terminal,
    plain lines elsewhere."""

    def __init__(self, target: str, stream: TextIO | None = None):
        self._target, self._stream = target, stream or sys.stderr
        # A dumb terminal is one that cannot return to the start of a line.
        named = os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self._live = self._stream.isatty() and named
        self._began = self._printed = time.monotonic()
        self._stage = ""

    def show(self, stage: str) -> None:
        """Shows the stage, or that it still lasts; to be called every few seconds."""
        now = time.monotonic()
        # A log file must not gain a line every half second.
        if not self._live and stage == self._stage and now - self._printed < PLAIN_INTERVAL:
            return
        self._stage, self._printed = stage, now
        line = f"{self._target}: {stage}, {clock_time(now - self._began)}"
        print(
            f"\r{line}\033[K" if self._live else line,
            end="" if self._live else "\n",
            file=self._stream,
            flush=True,
        )

    def close(self) -> None:
        """Clears the line of a terminal."""
        if self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)


def measure_in_a_child(question: dict[str, Any], time_limit: float) -> tuple[Fit, str]:
    """Asks a new process; (its Fit, the cache's key of the program).

    `question` has "experiment" (as `Experiment.to_json`), "target" and "step".

    ValueError for what the child refuses and at the time limit (seconds); `CompilerFailed` for any
    other end.
    """
    target = question["target"]
    # A file and not a pipe: nobody reads while the compiler writes, and a full pipe would stop
    # it.
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
            start_new_session=True,  # a group that can be killed with all its children
        )
        try:
            # Standard input stays open: the child watches it, and ends when this process does.
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
            message = _listen(child, target, time_limit)
        except BrokenPipeError:  # it ended before it read the question; its log says why
            message = _nothing(child)
        finally:
            _end(child)
        # A refusal is a user's error and is raised as one; every other end is the compiler's.
        if "refused" in message:
            raise ValueError(message["refused"])
        if "fit" not in message:
            raise _failure(target, child.returncode, log)
        return Fit.from_json(message["fit"]), message["program"]


def _listen(child: subprocess.Popen, target: str, time_limit: float) -> dict[str, Any]:
    """The child's answer, {} where it ends without one; shows the stages on the way."""
    progress, stage, ends = Progress(target), "starting", time.monotonic() + time_limit
    try:
        for line in _lines(child.stdout, ends):
            if line is not None:
                message = json.loads(line)
                if "stage" not in message:
                    return message
                stage = message["stage"]
            progress.show(stage)
    except TimeoutError:
        raise TookTooLong(
            f"{target}: no answer in {time_limit:g} s, the last stage was {stage}; "
            "set --time_limit=SECONDS to wait longer"
        ) from None
    finally:
        progress.close()
    return _nothing(child)


def _nothing(child: subprocess.Popen) -> dict[str, Any]:
    """The answer of a child that closed its output without one: {}. Waits a moment for it to end,
    so that it has an exit code of its own and not that of being killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    return {}


def _lines(stream: BinaryIO, ends: float) -> Iterator[bytes | None]:
    """The lines of a pipe, and None at every tick without one; TimeoutError at the time `ends`."""
    pending = b""
    while True:
        # The wait is cut to what is left, so that the limit holds to the second and not to the
        # tick.
        wait = min(TICK, ends - time.monotonic())
        if wait <= 0:
            raise TimeoutError
        if not select.select([stream], [], [], wait)[0]:
            yield None
            continue
        more = os.read(stream.fileno(), 65536)
        if not more:
            return
        # A read may end in the middle of a line; what is behind the last newline waits for the
        # rest.
        *complete, pending = (pending + more).split(b"\n")
        yield from complete


def _end(child: subprocess.Popen) -> None:
    """Kills the child and its own children where they run; `child.returncode` is set after."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            # The whole group: a compiler may have started processes of its own.
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()


def _failure(target: str, code: int, log: BinaryIO) -> CompilerFailed:
    """The error of a child that gave no answer, in one line. Its log is kept in a file that the
    line names."""
    log.seek(0)
    # C++ code may print bytes that are no UTF-8.
    text = log.read().decode(errors="replace")
    # At the time limit an exception is raised before this is reached, so the signal is most likely
    # the kernel's, which ends a process where memory runs out.
    if code == -signal.SIGKILL:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return CompilerFailed(
            BUG,
            f"{target}: the compiler was killed, most likely for want of memory "
            f"(this machine has {memory:.1f} GiB); close other programs, "
            "compile fewer layers, or take a larger machine",
        )
    ended = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"failed (exit code {code})"
    return CompilerFailed(
        BUG, f"{target}: the compile {ended}: {_last_words(text)}{_kept(target, text)}"
    )


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The last line alone may be a frame of a stack trace.
    fatal = [line for line in lines if _FATAL.match(line)]
    return printable((fatal or lines or ["it said nothing"])[-1])[:500]


def _kept(target: str, text: str) -> str:
    """Writes a log beside the cache; where it is, in words, "" where it cannot be written."""
    file = cache.folder() / f"failed-{target.replace(':', '-')}.log"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError:
        return ""
    return f"; all of its log is in {file}"


def _environment() -> dict[str, str]:
    """The child's environment: on the CPU, for nothing is run there, and with this very package
    first on its path."""
    root = str(Path(research.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # A program that comes from JAX's own cache has no memory analysis.
    mine = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": path}
    # Exactly the settings that the cache's key has, so that an answer belongs to its key.
    inherited = {name: value for name, value in os.environ.items() if name not in cache.SETTINGS}
    return {**inherited, **cache.settings(), **mine}


def main() -> None:
    """The child: answers the question on its standard input."""
    # Libraries may print what they like: what is on standard output is standard error from here on.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # where memory runs out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    question = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    def _say(**words: Any) -> None:
        print(json.dumps(words), file=out, flush=True)

    try:
        fit, key = _measure(question, lambda stage: _say(stage=stage))
        _say(fit=fit.to_json(), program=key)
    except ValueError as error:
        _say(refused=" ".join(str(error).split()))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # No cleanup: a compiler that has crashed may hang in its own destructors.
        os._exit(1)
    os._exit(0)  # the compilers' own threads and destructors have no more to say


def _measure(question: dict[str, Any], tell: Callable[[str], None]) -> tuple[Fit, str]:
    """(the Fit, the key of its program), compiled unless the cache has a program of the same
    text."""
    target, step, keys = question["target"], question["step"], []

    def _recall(text: str) -> Fit | None:
        keys.append(cache.program(text, target, step))
        return cache.recall(keys[0])

    fit = measure(
        from_json(question["experiment"]),
        parse_target(target),
        step=step,
        tell=tell,
        recall=_recall,
    )
    return fit, keys[0]


def _end_with_the_parent() -> None:
    """Ends the process when its standard input closes, however the parent ended."""
    # Reading blocks until the pipe closes, which also happens when the parent is killed.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
