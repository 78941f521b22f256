"""Runs the endpoints on uvicorn, from the first answer to the last after SIGTERM."""

import asyncio
import signal
from contextlib import AbstractContextManager, nullcontext

import uvicorn

from research.serve.app import Endpoints
from research.serve.asked import Served
from research.serve.metrics import Metrics
from research.serve.worker import Worker


class _Server(uvicorn.Server):
    """Says when it answers, and leaves signals to `serve`: uvicorn's own handler ends the process
    by the signal, where a server that was told to stop has done nothing wrong."""

    def capture_signals(self) -> AbstractContextManager[None]:
        """No handler."""
        return nullcontext()

    async def startup(self, sockets=None) -> None:
        """As uvicorn's, with a line at its end."""
        await super().startup(sockets)
        if self.started:
            # The port that was asked for may be 0, any that is free.
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"listening on http://{host}:{port}", flush=True)


def serve(
    worker: Worker,
    served: Served,
    *,
    host: str,
    port: int,
    token: str = "",
    seconds: float = 600.0,
    drain: float = 10.0,
) -> None:
    """Serves until SIGTERM or Ctrl-C. What is being written then has `drain` seconds. ValueError
    for an address at which one cannot listen."""
    metrics = Metrics(worker.engine)
    worker.observe = metrics.observe
    endpoints = Endpoints(worker, served, metrics, token, seconds)
    config = uvicorn.Config(
        endpoints.app(),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=max(1, int(drain)),
    )
    server = _Server(config)

    async def _until_told() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
        await server.serve()

    worker.start()
    try:
        asyncio.run(_until_told())
    except SystemExit:  # uvicorn's, after a line about the address
        raise ValueError(
            f"cannot listen at {host}:{port}; choose another --port, or --port=0"
        ) from None
    finally:
        worker.stop()
