"""Runs the endpoints on uvicorn, from the first answer to the last after SIGTERM."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

from research import command
from research.serve.app import Endpoints
from research.serve.asked import Served
from research.serve.deadline import told_to_stop
from research.serve.metrics import Metrics
from research.serve.worker import Worker

if TYPE_CHECKING:
    import uvicorn

_LAST = 2.0  # seconds for answers that nothing more is written, and for the engine's last step
# Seconds before the end at which the process leaves by itself, and at which it is killed: parts of
# the time where that is short.
_LEAVE, _KILL = 0.5, 0.25


def make_server(
    worker: Worker,
    served: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str = "",
    seconds: float = 600.0,
    drain: float = 10.0,
) -> uvicorn.Server:
    """A server of these texts, which `run` runs. See `Endpoints` for `token` and `seconds`. From
    when the server is told to stop to its end it takes at most `drain` seconds, and what is being
    written has all of them but the last `_LAST`."""
    import uvicorn

    class _Server(uvicorn.Server):
        leaves, killed = max(drain - _LEAVE, drain * 3 / 4), max(drain - _KILL, drain * 7 / 8)

        def capture_signals(self) -> AbstractContextManager[None]:
            # No handler: uvicorn's own ends the process by the signal, where a server that was told
            # to stop has done nothing wrong.
            return nullcontext()

        async def startup(self, sockets=None) -> None:
            """Says where it listens."""
            await super().startup(sockets)
            if self.started:
                # The port that was asked for may be 0, any that is free.
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                print(f"listening on http://{host}:{port}", flush=True)

        async def shutdown(self, sockets=None) -> None:
            """Gives up what runs in time for an answer to each client."""
            # Before uvicorn's own limit, at which clients would get no answer in our form, and
            # which ends those that are still sending or do not read.
            asyncio.get_running_loop().call_later(max(drain - _LAST, drain / 2), worker.give_up)
            self.ends = time.monotonic() + max(drain - _LAST / 2, drain / 2)
            await super().shutdown(sockets)

    metrics = Metrics(worker.engine)
    worker.observe = metrics.observe
    config = uvicorn.Config(
        Endpoints(worker, served, metrics, token, seconds).app(),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(max(drain - _LAST / 2, drain / 2)),
    )
    return _Server(config)


def run(server: uvicorn.Server, worker: Worker) -> None:
    """Serves until SIGTERM or Ctrl-C, or, outside the main thread, until `server.should_exit`. The
    worker's thread may be in a last step behind that. Where a thread cannot be waited for, as one
    in which a program is compiled, the process ends shortly before a signal is `drain` seconds old,
    and is killed where the interpreter is not free for that (`research.serve.deadline`).
    ValueError for an address at which one cannot listen."""
    leaves, killed = getattr(server, "leaves", 0.0), getattr(server, "killed", 0.0)
    last = threading.Timer(leaves, _leave)
    last.daemon = True

    def _told() -> None:
        last.start()
        server.should_exit = True  # which the event loop looks at ten times a second

    worker.start()
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(told_to_stop(_told, killed))
        try:
            asyncio.run(server.serve())
        except SystemExit:  # uvicorn's, after a line about the address
            config = server.config
            raise ValueError(
                f"cannot listen at {config.host}:{config.port}; choose another --port, or --port=0"
            ) from None
        finally:
            ends = getattr(server, "ends", 0.0)  # never told to stop
            worker.stop(max(0.1, ends - time.monotonic()))
            last.cancel()


def _leave() -> None:
    """Ends the process, whatever its threads do."""
    print("note: left at the end of --drain, in the midst of a computation", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(command.DONE)
