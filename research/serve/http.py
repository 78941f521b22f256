"""What the server reads from HTTP and writes to it, on starlette."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from research.serve.refusal import Refused

if TYPE_CHECKING:
    from starlette.requests import Request as Http
    from starlette.responses import Response

BODY_BYTES = 16 * 2**20  # largest body of a request
BODY_SECONDS = 60  # in which it must have come


class Left(Exception):
    """The client has gone away."""


async def read_body(http: Http) -> dict[str, Any]:
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


async def until_left(http: Http) -> None:
    """Returns once the client has gone away."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def json_answer(value: dict[str, Any], status: int = 200) -> Response:
    """A JSON object as answer."""
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)


def plain_answer(
    text: bytes,
    status: int,
    media_type: str = "text/plain; version=0.0.4",
    headers: dict[str, str] | None = None,
) -> Response:
    """A text as answer."""
    from starlette.responses import Response

    return Response(text, status, headers, media_type)


def stream_answer(events: AsyncIterator[str]) -> Response:
    """The events as they come."""
    from starlette.responses import StreamingResponse

    return StreamingResponse(events, media_type="text/event-stream")


def refusal_answer(error: Refused) -> Response:
    """The answer to a request that is not served."""
    return json_answer(error.body(), error.status)


def event_text(value: dict[str, Any]) -> str:
    """A server-sent event."""
    # JSON has no newline of its own, so an event is one line.
    return f"data: {json.dumps(value)}\n\n"
