"""A client of servers in the form of OpenAI's API: when does each piece of a text come?"""

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SECONDS = 600.0  # without a piece, after which a request has failed


@dataclass
class Answer:
    """When a request was sent and each piece of its text came, in seconds of one clock; tokens of
    its prompt and of its text as the server counts them; why it failed, "" where it did not."""

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    read: int = 0
    written: int = 0
    error: str = "not sent"

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def each(self) -> float:
        """Mean seconds of each token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / (self.written - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between two pieces."""
        return [late - early for early, late in zip(self.pieces, self.pieces[1:])]


def model_name(url: str) -> str:
    """The first model that a server has."""
    link = _link(url)
    link.request("GET", "/v1/models")
    name = json.loads(link.getresponse().read())["data"][0]["id"]
    link.close()
    return name


def ask(url: str, model: str, prompt: str, tokens: int, answer: Answer) -> None:
    """Has a greedy continuation streamed, and notes in `answer` what came when."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer.sent = time.monotonic()
    try:
        link = _link(url)
        headers = {"Content-Type": "application/json"}
        link.request("POST", "/v1/completions", json.dumps(body), headers)
        response = link.getresponse()
        if response.status != 200:
            answer.error = f"{response.status}: {response.read(300)!r}"
            return
        for event in _events(response):
            choices = event.get("choices") or []
            if choices and choices[0].get("text"):
                answer.pieces.append(time.monotonic())
            if usage := event.get("usage"):
                answer.read, answer.written = usage["prompt_tokens"], usage["completion_tokens"]
        answer.written = answer.written or len(answer.pieces)
        answer.error = "" if answer.pieces else "no text"
        link.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"


def _link(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=SECONDS)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream (server-sent events) to its end."""
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith(b"data:"):
            yield json.loads(data)
