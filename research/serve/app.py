"""The server's endpoints, in the form of OpenAI's API, on starlette.

Starlette is of an extra (`[serve]`), so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.serve import asked as ask
from research.serve.answers import Answers
from research.serve.asked import Asked, Served
from research.serve.attached import has_media, with_attached
from research.serve.description import description
from research.serve.embeddings import Embeddings
from research.serve.formats import grammar_of
from research.serve.http import (
    Left,
    event_text,
    json_answer,
    plain_answer,
    read_body,
    refusal_answer,
    stream_answer,
    until_left,
)
from research.serve.metrics import Metrics
from research.serve.refusal import Refused, field
from research.serve.request import Completion, Request
from research.serve.worker import Busy, Piece, Stopped, Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as Http
    from starlette.responses import Response

_PAGE = Path(__file__).with_name("page.html")
# The page has all that it needs, and shows texts that anybody may have written.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:",
    "X-Content-Type-Options": "nosniff",
}


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
            ("/tokenizer_info", "GET", self.tokenizer),
        ]
        return Starlette(
            routes=[Route(path, self._guarded(to), methods=[how]) for path, how, to in routes],
            exception_handlers={
                404: lambda http, error: refusal_answer(
                    Refused(f"nothing at {http.url.path}", 404)
                ),
                405: lambda http, error: refusal_answer(
                    Refused(f"{http.method} is not what {http.url.path} takes", 405)
                ),
            },
        )

    async def page(self, http: Http) -> Response:
        """The page to chat at, which asks for the server's token itself."""
        return plain_answer(_PAGE.read_bytes(), 200, "text/html; charset=utf-8", _PAGE_HEADERS)

    async def health(self, http: Http) -> Response:
        """200 while texts are written, 503 once the engine has stopped."""
        if self.worker.failed is not None:
            raise Stopped(str(self.worker.failed))
        return json_answer({"status": "ok"})

    async def measures(self, http: Http) -> Response:
        """Counts and times for Prometheus."""
        return plain_answer(self.metrics.page(), 200)

    async def models(self, http: Http) -> Response:
        """The model and its adapters, in a list."""
        return json_answer({"object": "list", "data": list(map(self._model, self.served.names))})

    async def model(self, http: Http) -> Response:
        """The model of that name."""
        name = http.path_params["name"]
        if name not in self.served.names:
            raise Refused(f"no model {name[:60]!r} here", 404, "model", "model_not_found")
        return json_answer(self._model(name))

    async def completions(self, http: Http) -> Response:
        """Continues prompts."""
        return await self._write(http, "completion", ask.completion)

    async def chat(self, http: Http) -> Response:
        """Answers a conversation."""
        return await self._write(http, "chat", ask.chat)

    async def embeddings(self, http: Http) -> Response:
        """Vectors of texts."""
        body = await read_body(http)
        return json_answer(await asyncio.to_thread(self._embeddings.answer, body))

    async def described(self, http: Http) -> Response:
        """What can be asked for, for programs."""
        return json_answer(description(self.served))

    async def tokenize(self, http: Http) -> Response:
        """The ids of a text."""
        body = await read_body(http)
        prompt = field(body, "prompt", "string")
        if prompt is None:
            raise Refused("prompt must be a string; give the text", param="prompt")
        ids = self.served.tokenizer.encode(prompt)
        return json_answer({"tokens": ids, "count": len(ids), "max_model_len": self.served.length})

    async def detokenize(self, http: Http) -> Response:
        """The text of ids."""
        ids = (await read_body(http)).get("tokens")
        size = self.served.tokenizer.vocab_size
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise Refused(f"tokens must be a list of ids in [0, {size})", param="tokens")
        return json_answer({"prompt": self.served.tokenizer.decode(ids)})

    async def tokenizer(self, http: Http) -> Response:
        """What clients that make prompts themselves ask, such as lm-eval: vLLM's form."""
        own = self.served.tokenizer
        marks = {"bos_token": own.bos_id, "eos_token": own.eos_id, "pad_token": own.pad_id}
        spelt = {name: None if n is None else own.decode([n]) for name, n in marks.items()}
        return json_answer({**spelt, "chat_template": own.chat_template})

    def _model(self, name: str) -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": 0, "owned_by": "graft"}
        parent = None if name == self.served.name else self.served.name
        inputs = ["text", *self.served.reads]
        more = {"max_model_len": self.served.length, "parent": parent, "input_modalities": inputs}
        return model | more

    async def _write(self, http: Http, kind: str, asks: Callable) -> Response:
        body = await read_body(http)
        if kind == "chat" and has_media(body):
            # A large picture takes seconds to decode.
            body = await asyncio.to_thread(with_attached, body, self.served)
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
            return stream_answer(events)
        done: dict[int, Completion] = {}
        async for piece in self._pieces(http, requests):
            done[piece.index] = piece.completion
        return json_answer(answers.whole([done[index] for index in range(len(requests))]))

    async def _pieces(self, http: Http, requests: Sequence[Request]) -> AsyncIterator[Piece]:
        """The pieces of the texts. Where the client leaves, or nobody reads on, they end."""
        job = self.worker.write(requests)
        leaving = asyncio.ensure_future(until_left(http))
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
                yield event_text(event)
            async for piece in pieces:
                done[piece.index] = piece.completion
                yield event_text(answers.piece(piece))
            for event in answers.closing([done[index] for index in sorted(done)]):
                yield event_text(event)
        except (Stopped, Busy, TimeoutError) as error:
            yield event_text(self._refusal(error).body())
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
                return plain_answer(b"", 499)  # which nobody reads
            except (Refused, Stopped, Busy, TimeoutError, ValueError) as error:
                return refusal_answer(self._refusal(error))

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
