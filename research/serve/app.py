"""The server's endpoints, in the form of OpenAI's API, on starlette.

Starlette is of an extra (`[serve]`), so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.serve import asked as ask
from research.serve.answers import Answers
from research.serve.asked import Asked, Served
from research.serve.description import description
from research.serve.embeddings import Embeddings
from research.serve.formats import grammar_of
from research.serve.metrics import Metrics
from research.serve.refusal import Refused, field
from research.serve.request import Completion, Request
from research.serve.worker import Busy, Piece, Stopped, Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as Http
    from starlette.responses import Response

BODY_BYTES = 16 * 2**20  # largest body of a request
BODY_SECONDS = 60  # in which it must have come
_PAGE = Path(__file__).with_name("page.html")
# The page has all that it needs, and shows texts that anybody may have written.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class Left(Exception):
    """The client has gone away."""


class Endpoints:
    """What a server answers. A `token` is wanted as "Authorization: Bearer ..." by all but / and
    /health; a request ends after `seconds`."""

    def __init__(
        self, worker: Worker, served: Served, metrics: Metrics, token: str, seconds: float
    ):
        self.worker, self.served, self.metrics = worker, served, metrics
        self._token, self._seconds = token, seconds
        self._embeddings = Embeddings(worker.engine, served)

    def app(self) -> Starlette:
        """The application that a server of ASGI runs."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes: list[tuple[str, str, Callable]] = [
            ("/", "GET", self.page),
            ("/health", "GET", self.health),
            ("/metrics", "GET", self.measures),
            ("/v1/models", "GET", self.models),
            ("/v1/models/{name:path}", "GET", self.model),
            ("/v1/completions", "POST", self.completions),
            ("/v1/chat/completions", "POST", self.chat),
            ("/v1/embeddings", "POST", self.embeddings),
            ("/openapi.json", "GET", self.described),
            ("/tokenize", "POST", self.tokenize),
            ("/detokenize", "POST", self.detokenize),
        ]
        return Starlette(
            routes=[Route(path, self._guarded(to), methods=[how]) for path, how, to in routes],
            exception_handlers={
                404: lambda http, error: _refuse(Refused(f"nothing at {http.url.path}", 404)),
                405: lambda http, error: _refuse(
                    Refused(f"{http.method} is not what {http.url.path} takes", 405)
                ),
            },
        )

    async def page(self, http: Http) -> Response:
        """The page to chat at, which asks for the server's token itself."""
        return _plain(_PAGE.read_bytes(), 200, "text/html; charset=utf-8", _PAGE_HEADERS)

    async def health(self, http: Http) -> Response:
        """200 while texts are written, 503 once the engine has stopped."""
        if self.worker.failed is not None:
            raise Stopped(str(self.worker.failed))
        return _json({"status": "ok"})

    async def measures(self, http: Http) -> Response:
        """Counts and times for Prometheus."""
        return _plain(self.metrics.page(), 200)

    async def models(self, http: Http) -> Response:
        """The model and its adapters, in a list."""
        return _json({"object": "list", "data": list(map(self._model, self.served.names))})

    async def model(self, http: Http) -> Response:
        """The model of that name."""
        name = http.path_params["name"]
        if name not in self.served.names:
            raise Refused(f"no model {name[:60]!r} here", 404, "model", "model_not_found")
        return _json(self._model(name))

    async def completions(self, http: Http) -> Response:
        """Continues prompts."""
        return await self._write(http, "completion", ask.completion)

    async def chat(self, http: Http) -> Response:
        """Answers a conversation."""
        return await self._write(http, "chat", ask.chat)

    async def embeddings(self, http: Http) -> Response:
        """Vectors of texts."""
        body = await _body(http)
        return _json(await asyncio.to_thread(self._embeddings.answer, body))

    async def described(self, http: Http) -> Response:
        """What can be asked for, for programs."""
        return _json(description(self.served))

    async def tokenize(self, http: Http) -> Response:
        """The ids of a text."""
        body = await _body(http)
        prompt = field(body, "prompt", "string")
        if prompt is None:
            raise Refused("prompt must be a string; give the text", param="prompt")
        ids = self.served.tokenizer.encode(prompt)
        return _json({"tokens": ids, "count": len(ids), "max_model_len": self.served.length})

    async def detokenize(self, http: Http) -> Response:
        """The text of ids."""
        ids = (await _body(http)).get("tokens")
        size = self.served.tokenizer.vocab_size
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise Refused(f"tokens must be a list of ids in [0, {size})", param="tokens")
        return _json({"prompt": self.served.tokenizer.decode(ids)})

    def _model(self, name: str) -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": 0, "owned_by": "graft"}
        parent = None if name == self.served.name else self.served.name
        return {**model, "max_model_len": self.served.length, "parent": parent}

    async def _write(self, http: Http, kind: str, asks: Callable) -> Response:
        body = await _body(http)
        asked: Asked = asks(body, self.served)
        # A large schema takes a second to read, in which others are answered.
        grammar = await asyncio.to_thread(grammar_of, body, self.served.grammars, asked.tools)
        answers = Answers(kind, asked, asked.model, self.served.tokenizer)
        # A ValueError says here what is wrong with a prompt, and not in the worker's thread.
        ids = [self.worker.engine.prompt_ids(one) for one in asked.requests[:: asked.copies]]
        requests = [
            replace(request, prompt=ids[index // asked.copies], grammar=grammar)
            for index, request in enumerate(asked.requests)
        ]
        if asked.stream:
            self.worker.check(len(requests))  # before the status is sent
            events = self._events(answers, self._pieces(http, requests))
            return _stream(events)
        done: dict[int, Completion] = {}
        async for piece in self._pieces(http, requests):
            done[piece.index] = piece.completion
        return _json(answers.whole([done[index] for index in range(len(requests))]))

    async def _pieces(self, http: Http, requests: Sequence[Request]) -> AsyncIterator[Piece]:
        """The pieces of the texts. Where the client leaves, or nobody reads on, they end."""
        job = self.worker.write(requests)
        leaving = asyncio.ensure_future(_left(http))
        leaving.add_done_callback(lambda _: job.pieces.put_nowait(Left()))
        try:
            async for piece in job.read(self._seconds):
                yield piece
        finally:
            leaving.cancel()
            self.worker.cancel(job)

    async def _events(self, answers: Answers, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
        """A stream of server-sent events. An error in the midst of it is its last event."""
        done: dict[int, Completion] = {}
        try:
            for event in answers.opening():
                yield _event(event)
            async for piece in pieces:
                done[piece.index] = piece.completion
                yield _event(answers.piece(piece))
            for event in answers.closing([done[index] for index in sorted(done)]):
                yield _event(event)
        except (Stopped, Busy, TimeoutError) as error:
            yield _event(self._refusal(error).body())
        except Left:
            return
        yield "data: [DONE]\n\n"

    def _guarded(self, endpoint: Callable) -> Callable:
        """The endpoint, whose errors become answers."""

        async def _answer(http: Http) -> Response:
            try:
                if endpoint not in (self.health, self.page):
                    self._check_token(http)
                return await endpoint(http)
            except Left:
                return _plain(b"", 499)  # which nobody reads
            except (Refused, Stopped, Busy, TimeoutError, ValueError) as error:
                return _refuse(self._refusal(error))

        return _answer

    def _refusal(self, error: Exception) -> Refused:
        if isinstance(error, Refused):
            return error
        if isinstance(error, Busy):
            return Refused(f"{error}; try again later", 429, code="busy")
        if isinstance(error, TimeoutError):
            return Refused(
                f"not finished within {self._seconds:g} seconds; ask for fewer tokens", 504
            )
        return Refused(str(error), 503 if isinstance(error, Stopped) else 400)

    def _check_token(self, http: Http) -> None:
        given = http.headers.get("authorization", "")
        if self._token and not hmac.compare_digest(
            given.encode(), f"Bearer {self._token}".encode()
        ):
            raise Refused("wrong or no bearer token in the header Authorization", 401)


async def _body(http: Http) -> dict[str, Any]:
    """The JSON object that a request holds. `Refused` for anything else, and for too much."""
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise Refused(f"the body is over {BODY_BYTES:,} bytes; send less", 413)
    except TimeoutError:
        raise Refused(f"the body has not come within {BODY_SECONDS} seconds", 408) from None
    except ClientDisconnect:
        raise Left from None
    try:
        value = json.loads(body)
        # Halves of a character can be written in JSON's escapes, and not in UTF-8.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(
            "the body has a lone surrogate, which is no character; leave it out"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise Refused('the body must be a JSON object, such as {"prompt": "Hi"}')
    return value


async def _left(http: Http) -> None:
    """Returns once the client has gone away."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _json(value: dict[str, Any], status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)


def _plain(
    text: bytes,
    status: int,
    media_type: str = "text/plain; version=0.0.4",
    headers: dict[str, str] | None = None,
) -> Response:
    from starlette.responses import Response

    return Response(text, status, headers, media_type)


def _stream(events: AsyncIterator[str]) -> Response:
    from starlette.responses import StreamingResponse

    return StreamingResponse(events, media_type="text/event-stream")


def _refuse(error: Refused) -> Response:
    return _json(error.body(), error.status)


def _event(value: dict[str, Any]) -> str:
    # JSON has no newline of its own, so an event is one line.
    return f"data: {json.dumps(value)}\n\n"
