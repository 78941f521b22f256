"""Trackers: TensorBoard through event files, and Weights & Biases (W&B) through its own client.

A tracker is a pair (write the values of a step, close). Neither may stop a run: `write` returns at
once, and raises if values cannot be written, after which `RunLog` leaves the tracker out.
"""

import contextlib
import errno
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.files import write_text

Tracker = tuple[Callable[[int, dict[str, float]], None], Callable[[], None]]
WAITING = 1000  # steps whose values may wait for a service that does not answer
FAREWELL = 30.0  # seconds that the end of a run waits for a service


class EventFile:
    """An event file of TensorBoard, complete after every call of `write`.

    It is written in the calling thread. tensorboardX's own writer has a thread and a queue of ten
    events; on a full disk that thread ends, and the eleventh event waits for ever.
    """

    def __init__(self, path: Path, purge_step: int):
        """Creates the file. Values that other files in its folder have for `purge_step` and later
        steps are hidden from TensorBoard."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        # Unbuffered, so that closing has nothing left to write, which could fail once more.
        self._file = open(path, "wb", buffering=0)
        # TensorBoard wants the version first; the session's start hides later values of an
        # earlier file.
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step by name. OSError if there is no space left."""
        from tensorboardX.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(self._event(wall_time=time.time(), step=step, summary=Summary(value=entries)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        # A TFRecord: length, its checksum, data, its checksum.
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        # Masked CRC-32C, as TensorFlow's record format has it.
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        record = length + next(checksums) + data + next(checksums)
        try:
            if self._file.write(record) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.close()
            raise


def open_tensorboard(folder: Path, start_step: int) -> Tracker:
    """A tracker that writes an event file for TensorBoard to `folder`. Values that an earlier
    process wrote after `start_step` are hidden from TensorBoard."""
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files whose names contain "tfevents", in the order of their names. Without
    # an ending of its own two processes that start within a second would share one file.
    own = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
    file = EventFile(folder / f"events.out.tfevents.{int(time.time())}.{own}", start_step + 1)
    return file.write, file.close


def open_wandb(workdir: Path, config: Mapping[str, Any] | None) -> Tracker:
    """A tracker that logs to a W&B run named after the folder; a resumed run goes on in the same
    W&B run. ValueError if the package is missing."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "W&B logging is on and its package is missing; pip install wandb, or turn it off"
        ) from None
    identity = workdir / "wandb" / "run_id"
    if not identity.exists():
        # The identity is kept in the run directory, since W&B would give a resumed run a new one.
        identity.parent.mkdir(exist_ok=True)
        write_text(identity, secrets.token_hex(8))
    run = wandb.init(
        dir=str(workdir),
        name=workdir.name,
        id=identity.read_text(),
        resume="allow",
        config=dict(config or {}),
    )
    return in_background((lambda step, values: run.log(values, step=step), run.finish))


def in_background(tracker: Tracker, waiting: int = WAITING, farewell: float = FAREWELL) -> Tracker:
    """The tracker, called in a thread of its own, so that a service that hangs keeps no step back.

    At most `waiting` steps wait for it, and closing at most `farewell` seconds. An error of the
    tracker, and a queue that is full, are raised by the next `write`.
    """
    write, close = tracker
    steps: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(waiting)
    errors: list[Exception] = []

    def _work() -> None:
        try:
            while (item := steps.get()) is not None:
                write(*item)
            close()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=_work, daemon=True, name="tracker")
    thread.start()

    def _write(step: int, values: dict[str, float]) -> None:
        if errors:
            raise errors[0]
        try:
            steps.put_nowait((step, values))
        except queue.Full:
            raise TimeoutError(f"it has not taken {waiting:,} steps") from None

    def _close() -> None:
        with contextlib.suppress(queue.Full):
            steps.put_nowait(None)
            # A daemon: a service that still hangs after this does not keep the process alive.
            thread.join(farewell)

    return _write, _close
