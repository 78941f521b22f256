"""The thread that runs an engine, for a server whose requests live in an event loop.

A request's pieces come as they are written. One that is no longer read is cancelled, and gives its
pages back before the next step.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from research.serve.encoder import Encoder
from research.serve.engine import Engine
from research.serve.request import Completion, Request
from research.serve.text import Text

_log = logging.getLogger(__name__)


class Busy(Exception):
    """So many requests wait already that another one is not taken."""


class Stopped(Exception):
    """The engine has failed or is shutting down, so no text gets to its end."""


class Ending(Stopped):
    """The server was told to stop, and the time for what it wrote is over."""


@dataclass(frozen=True)
class Piece:
    """What a text has got since its last piece: characters that are final, and tokens from number
    `since` on. `completion` is the text so far; it has a `finish` in the last piece."""

    index: int
    text: str
    since: int
    completion: Completion


class Job:
    """The texts of one HTTP request, as the worker knows them."""

    def __init__(self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop):
        self.requests, self._loop = requests, loop
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.texts: list[Text] = []
        self.began = time.monotonic()
        self.first: list[float | None] = [None] * len(requests)  # when each text had a token
        self._told = [(0, 0)] * len(requests)  # characters and tokens of each text

    async def read(self, seconds: float) -> AsyncIterator[Piece]:
        """The pieces as they come, to the end of every text. What is told instead of one is raised;
        TimeoutError once so many seconds have gone since the request. Where the server ends
        (`Ending`) in the midst of the texts, each has a last piece with the finish "abort"."""
        last: dict[int, Completion] = {}  # with the characters that were given alone
        while len(last) < len(self.requests) or not all(one.finish for one in last.values()):
            rest = self.began + seconds - time.monotonic()
            piece = await asyncio.wait_for(self.pieces.get(), rest)
            if isinstance(piece, Ending) and last:
                for cut in self._cut(last):
                    yield cut
                return
            if isinstance(piece, Exception):
                raise piece
            before = last[piece.index].text if piece.index in last else ""
            last[piece.index] = replace(piece.completion, text=before + piece.text)
            yield piece

    def _cut(self, last: Mapping[int, Completion]) -> Iterator[Piece]:
        """The last piece of each text that has not ended, of which the `last` ones were given."""
        for index, request in enumerate(self.requests):
            nothing = Completion(request.prompt, "", (), (), "", prompt_ids=tuple(request.prompt))
            done = last.get(index, nothing)
            if not done.finish:
                yield Piece(index, "", len(done.token_ids), replace(done, finish="abort"))

    def tell(self, item: Piece | Exception) -> None:
        """Hands a piece to the event loop; from the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, item)
        except RuntimeError:  # the loop is closed, so nobody reads it
            pass

    def progress(self, text: Text) -> None:
        """Tells what a text has got, if that is anything."""
        index = self.texts.index(text)
        self.first[index] = self.first[index] or time.monotonic()
        characters, tokens = self._told[index]
        certain = text.written.certain
        if certain > characters or text.finish:
            self._told[index] = certain, len(text.logprobs)
            new = text.written.text[characters:certain]
            self.tell(Piece(index, new, tokens, text.completion()))


class Worker:
    """Runs an engine in a thread of its own, from `start` to `stop`; an encoder has nothing to run.

    `waiting` is how many texts may wait at most; `observe` is told of each text's end, from the
    thread: why, and the seconds to its first token (None without one) and to its end.
    """

    def __init__(
        self,
        engine: Engine | Encoder,
        *,
        waiting: int = 256,
        observe: Callable[[str, float | None, float], None] = lambda *ended: None,
    ):
        self.engine, self._most, self.observe = engine, waiting, observe
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # of the texts that have not ended, by their numbers
        self._open: set[Job] = set()  # those that the event loop reads
        self._pending = 0  # texts on their way to the engine
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failed: Exception | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> bool:
        """Ends the thread after its step, and with it whatever is not written; whether it has ended
        within so many seconds. A step that is compiled first can take longer."""
        self._commands.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Ends the jobs that are open, from the event loop, without waiting for the thread."""
        self.failed = self.failed or Ending("the server is shutting down")
        for job in self._open:
            job.pieces.put_nowait(self.failed)

    def check(self, count: int) -> None:
        """`Busy` or `Stopped` where so many more texts would not be taken now."""
        if self.failed is not None:
            raise Stopped("the engine has stopped; start the server again") from self.failed
        waiting = self._pending + self.engine.waiting
        if waiting + count > self._most:
            raise Busy(f"{waiting} texts wait already, and {self._most} may")

    def write(self, requests: Sequence[Request]) -> Job:
        """A job for these requests, from the event loop that will read it. `Busy` and `Stopped`."""
        self.check(len(requests))
        job = Job(requests, asyncio.get_running_loop())
        self._open.add(job)
        self._pending += len(requests)
        self._commands.put(lambda: self._submit(job))
        return job

    def cancel(self, job: Job) -> None:
        """Ends what is not written of a job, which the event loop reads no more."""
        self._open.discard(job)
        self._commands.put(lambda: self._cancel(job))

    def _submit(self, job: Job) -> None:
        self._pending -= len(job.requests)
        try:
            for request in job.requests:
                text = self.engine.submit(request)
                job.texts.append(text)
                self._jobs[text.number] = job
        except Exception as error:  # the server checks requests, so this is its mistake
            self._cancel(job)
            job.tell(error)

    def _cancel(self, job: Job) -> None:
        for text in job.texts:
            if not text.finish:
                self.engine.cancel(text)
                self._ended(text)

    def _ended(self, text: Text) -> None:
        job = self._jobs.pop(text.number)
        first = job.first[job.texts.index(text)]
        seconds = None if first is None else first - job.began
        self.observe(text.finish, seconds, time.monotonic() - job.began)

    def _run(self) -> None:
        try:
            while self._obey():
                for text in self.engine.step():
                    self._jobs[text.number].progress(text)
                    if text.finish:
                        self._ended(text)
            self.failed = Ending("the server is shutting down")
        except Exception as error:
            _log.exception("the engine has failed")
            self.failed = error
        kind = Ending if isinstance(self.failed, Ending) else Stopped
        for job in set(self._jobs.values()):
            job.tell(kind(str(self.failed)))

    def _obey(self) -> bool:
        """Takes the commands that have come, and waits for one where nothing is to be written;
        False once the thread is to end."""
        while True:
            idle = not self._jobs
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
