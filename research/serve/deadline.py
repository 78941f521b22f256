"""The last moment of a server that was told to stop, which nothing in its process can put off.

A thread of Python cannot end the process where another one holds the interpreter, as a compiler may
for seconds. So a second process, of a few MiB, waits beside the server. The signal's handler in C
writes the signal's number into a pipe, whoever holds the interpreter; from then on the second
process counts, and kills the server if it is still there at the end.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

STOPS = signal.SIGTERM, signal.SIGINT

# Reads the numbers of signals; the end of the pipe is that of the server.
_GUARD = f"""
import os, select, sys, time
server, seconds, ends = int(sys.argv[1]), float(sys.argv[2]), None
while True:
    left = None if ends is None else max(0.0, ends - time.monotonic())
    if not select.select([0], [], [], left)[0]:
        print("note: killed at the end of --drain, the interpreter was held", file=sys.stderr)
        os.kill(server, {int(signal.SIGKILL)})
        break
    told = os.read(0, 64)
    if not told:
        break
    if ends is None and set(told) & {set(map(int, STOPS))}:
        ends = time.monotonic() + seconds
"""


@contextlib.contextmanager
def told_to_stop(tell: Callable[[], None], seconds: float) -> Iterator[None]:
    """In here `tell` is called at the first SIGTERM or Ctrl-C, as soon as the interpreter is free,
    and a process that is still in here so many seconds after the signal is killed (its exit code is
    then 137 in a shell). For the main thread alone, and without other handlers of signals that wake
    (`signal.set_wakeup_fd`)."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)  # a handler must not wait
    command = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(seconds)]
    told = False

    def _handle(number, frame):
        nonlocal told
        if not told:
            told = True
            tell()

    # A session of its own: Ctrl-C is for the server.
    with subprocess.Popen(
        command, stdin=reads, stdout=subprocess.DEVNULL, start_new_session=True
    ) as guard:
        os.close(reads)
        before = {number: signal.signal(number, _handle) for number in STOPS}
        woken = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writes)
            guard.wait()
