"""What the first Ctrl-C or SIGTERM does to a program, and what the second one does."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Raised by a signal that ends the program at once; the text names the signal."""


class StopRequest:
    """A context manager for Ctrl-C and SIGTERM. The first one ends the program at once
    (`Interrupted`), but inside `polled` it is only noted in `received`, for a loop that stops where
    its work can be saved. A second one ends the program at once in any case, because a loop that
    hangs would never read the request.

        with StopRequest() as request:
            prepare()
            with request.polled():
                while request.received is None: ...

    With `distributed` SIGTERM is left to jax.distributed, whose notifier makes all processes stop
    at the same step, and a Ctrl-C that is noted is passed on to it as a SIGTERM. Outside the main
    thread no signal is handled.
    """

    def __init__(self, distributed: bool = False):
        # In one of several processes its loop sets this, once all have agreed to stop.
        self.received: int | None = None
        self._distributed, self._noting, self._signals_seen = distributed, False, 0
        self._signals = [signal.SIGINT] if distributed else [signal.SIGINT, signal.SIGTERM]
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python sets signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def polled(self) -> Iterator[None]:
        """A context in which the first signal is noted only."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    @contextmanager
    def abandoned(self) -> Iterator[None]:
        """A context that the first signal leaves at once, without an error: for work that can be
        done again. Several processes must leave together, so there the signal is noted only."""
        noting, self._noting = self._noting, self._distributed
        try:
            yield
        except Interrupted:
            if self._signals_seen > 1:
                raise
        finally:
            self._noting = noting

    def _note(self, number: int, frame: Any) -> None:
        self._signals_seen += 1
        if not self._distributed:
            self.received = self.received or number
        if self._signals_seen > 1 or not self._noting:
            raise Interrupted(f"stopped by {signal.Signals(number).name}")
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)
