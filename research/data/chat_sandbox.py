"""Renders chat templates in a separate process, so that a hostile template cannot harm the run."""

import atexit
import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from research.data import chat_renderer

WALL_SECONDS = 20.0  # for all jobs of a request; generous, since the machine may be busy
_READ_BYTES = 1 << 20


class Rendered(NamedTuple):
    """The text that a template has written, and where its `{% generation %}` blocks are, as
    (start, stop) in characters."""

    text: str
    spans: list[tuple[int, int]]


class ChatRefused(ValueError):
    """The template rejects this conversation; it may accept others."""


class Sandbox:
    """A renderer process, started at the first request and again after it has died. Requests from
    several threads wait for each other."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def render(
        self, template: str, jobs: Sequence[Mapping[str, Any]], now: datetime
    ) -> list[Rendered]:
        """The template rendered once for each job, a dict of the template's variables (JSON).
        Templates see `now` as the current time.

        ChatRefused if the template rejects a conversation. ValueError for an invalid template, one
        that does what the sandbox forbids, and one that exceeds the limits of time, memory or
        output.
        """
        # JSON, not pickle: the template's side of the pipe must not be able to run code here.
        request = (
            json.dumps({"template": template, "jobs": list(jobs), "now": now.isoformat()}).encode()
            + b"\n"
        )
        with self._lock:
            reply = self._ask(request)
        for answer in reply:
            if "refused" in answer:
                raise ChatRefused(f"the chat template refuses it: {answer['refused']}")
            if "error" in answer:
                raise ValueError(f"the chat template cannot be used: {answer['error']}")
        return [
            Rendered(answer["text"], [tuple(span) for span in answer["spans"]]) for answer in reply
        ]

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.wait()

    def _ask(self, request: bytes) -> list[dict[str, Any]]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = _start()
        # One request and one answer a line; a process that dies or stays silent is the template's
        # doing, and the next request starts another.
        deadline, reply = time.monotonic() + WALL_SECONDS, b""
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            while not reply.endswith(b"\n"):
                reply += _read(self._process.stdout.fileno(), deadline)
            return json.loads(reply)
        except (BrokenPipeError, EOFError, TimeoutError):
            self.close()
            raise ValueError(
                f"the chat template cannot be used: it takes over {chat_renderer.CPU_SECONDS:g} s "
                f"or "
                f"{chat_renderer.MEMORY_BYTES >> 20} MiB for one conversation"
            ) from None
        except BaseException:  # after Ctrl-C the rest of this answer would be read as the next one
            self.close()
            raise


@functools.cache
def shared_sandbox() -> Sandbox:
    """The sandbox of this process."""
    return Sandbox()


def _start() -> subprocess.Popen:
    # -P keeps the script's folder out of sys.path. Of the environment, which may contain keys, only
    # what Python needs to start is passed on.
    environment = {
        name: os.environ[name]
        for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
        if name in os.environ
    }
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(chat_renderer.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
    )


def _read(file: int, deadline: float) -> bytes:
    # Not a blocking read: a template that writes nothing must not hold the run for ever.
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
    data = os.read(file, _READ_BYTES)
    if not data:
        raise EOFError
    return data
