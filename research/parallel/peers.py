"""What the processes of a job do when one of them fails: the others end too.

JAX alone would notice late: a process that ended is missed after its heartbeat's time-out, one that
hangs never, and until then the others wait for it in a collective, on every device of the job.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import threading
import time
from typing import Any

import jax

from research import command

_FAILED = "graft/failed"  # in the key-value store of the coordinator
_EVERY = 0.5  # seconds between two looks
_ON_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os._exit(command.RETRY))
_HANGS = "hangs: "  # how the word of a process that does not get on begins


def watch_peers() -> None:
    """Starts the thread that ends this process with exit code 42 when another one of the job has
    failed. Call it once, after jax.distributed was initialized."""
    ended = threading.Event()
    _take_aborts()
    atexit.register(ended.set)

    def tell(code: int) -> None:
        ended.set()  # first: the word is for the others, and this process ends with its own code
        _say(f"{_name()} has failed with exit code {code}")

    command.AT_FAILURE.append(tell)
    threading.Thread(target=_watch, args=(ended,), daemon=True, name="peers").start()


def leave_hanging(line: str) -> None:
    """Ends this process and all others of its job with exit code 42, from whatever thread, after a
    line on standard error. The others print the stacks of their threads."""
    # Past the streams of Python, whose locks the thread that hangs may hold.
    os.write(2, f"error: {line}\n".encode())
    with contextlib.suppress(Exception):
        _say(f"{_HANGS}{_name()}: {line}")
    os._exit(command.RETRY)


def _name() -> str:
    return f"process {jax.process_index()} ({os.getpid()} on {socket.gethostname()})"


def _say(word: str) -> None:
    client = _client()
    if client is None:
        return
    # Only the first word counts; the store refuses the others.
    client.key_value_set(_FAILED, word)
    if jax.process_index() == 0:
        # The store goes with this process, so the others read it first.
        time.sleep(3 * _EVERY)


def _watch(ended: threading.Event) -> None:
    while not ended.wait(_EVERY):
        try:
            said = _client().key_value_try_get(_FAILED)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            said = f"process 0 does not answer ({str(error).splitlines()[0][:200]})"
        if ended.is_set():
            return
        if said.startswith(_HANGS):
            faulthandler.dump_traceback(2)
        line = f"{said.removeprefix(_HANGS)}; this process ends too, to be started again"
        os.write(2, f"error: {line}\n".encode())
        os._exit(command.RETRY)


def _take_aborts() -> None:
    """Makes an abort an end with exit code 42. JAX aborts a process that has missed the heartbeat
    of another one, or of process 0, from a thread of C++."""
    ctypes.CDLL(None).signal(signal.SIGABRT, _ON_ABORT)


def _client() -> Any:
    # The store has no public name; this is the only place that knows it.
    from jax._src import distributed

    return distributed.global_state.client
