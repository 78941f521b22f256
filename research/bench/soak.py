"""A server under clients that do not behave: some leave in the midst of an answer or before it,
some send what is no request, and all come at once, for as long as is wanted. Then it must be as it
was: no text left, no page held, memory flat, nothing that failed on its side, and one greedy text
the same at every time.
"""

import contextlib
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from research.bench.serving import started

WITNESS = {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}
# What is no request: bodies, and what is answered.
BROKEN: tuple[bytes, ...] = (
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "max_tokens": 0}',
    b'{"prompt": {"a": 1}}',
    b'{"prompt": "a", "modle": "b"}',
    b'{"prompt": "a", "model": "no such"}',
    b'{"prompt": [999999999]}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "response_format": {"type": "xml"}}',
    b'{"prompt": "' + b"to be or not to be " * 40_000 + b'"}',
)
_SECONDS = 120.0  # for an answer


@dataclass
class Soak:
    """What clients have seen: how often each kind of request had which status, the texts of one
    greedy request, and what went wrong in a client."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Answers that say that the server failed."""
        return sum(count for (_, status), count in self.statuses.items() if status >= 500)


def run(url: str, clients: int, seconds: float, seed: int = 0) -> Soak:
    """What so many clients at once see of the server at `url` within so many seconds."""
    soak, ends = Soak(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_client, args=(url, random.Random(f"{seed} {number}"), ends, soak))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return soak


def _client(url: str, rng: random.Random, ends: float, soak: Soak) -> None:
    kinds = {_witness: 1, _whole: 2, _streamed: 2, _leaving: 3, _gone: 3, _broken: 3}
    while time.monotonic() < ends:
        [kind] = rng.choices(list(kinds), list(kinds.values()))
        try:
            status = kind(urlsplit(url).netloc, rng, soak)
            soak.statuses[kind.__name__.removeprefix("_"), status] += 1
        except (OSError, http.client.HTTPException, ValueError) as error:
            soak.errors[f"{kind.__name__.removeprefix('_')}: {type(error).__name__}: {error}"] += 1


def _random_body(rng: random.Random) -> dict[str, Any]:
    words = " ".join(rng.choices(("to", "be", "or", "not", "that", "is"), k=rng.randint(1, 12)))
    body = {"prompt": words, "max_tokens": rng.randint(1, 32), "seed": rng.randrange(2**32)}
    body |= {"temperature": rng.choice((0, 0.7, 1.5)), "n": rng.choice((1, 1, 3))}
    return body | rng.choice(({}, {"presence_penalty": 1.0}, {"logprobs": 3}, {"stop": "e"}))


def _posted(place: str, body: bytes) -> tuple[int, bytes]:
    link = http.client.HTTPConnection(place, timeout=_SECONDS)
    with contextlib.closing(link):
        link.request("POST", "/v1/completions", body)
        answer = link.getresponse()
        return answer.status, answer.read()


def _witness(place: str, rng: random.Random, soak: Soak) -> int:
    status, text = _posted(place, json.dumps(WITNESS).encode())
    if status == 200:
        soak.texts[json.loads(text)["choices"][0]["text"]] += 1
    return status


def _whole(place: str, rng: random.Random, soak: Soak) -> int:
    status, text = _posted(place, json.dumps(_random_body(rng)).encode())
    json.loads(text)
    return status


def _streamed(place: str, rng: random.Random, soak: Soak) -> int:
    status, text = _posted(place, json.dumps({**_random_body(rng), "stream": True}).encode())
    if status == 200 and not text.endswith(b"data: [DONE]\n\n"):
        raise ValueError("a stream without its end")
    return status


def _broken(place: str, rng: random.Random, soak: Soak) -> int:
    status, text = _posted(place, rng.choice(BROKEN))
    json.loads(text)["error"]["message"]
    return status


def _leaving(place: str, rng: random.Random, soak: Soak) -> int:
    """Reads a part of a stream, and goes."""
    body = {**_random_body(rng), "max_tokens": 64, "stream": True}
    link = http.client.HTTPConnection(place, timeout=_SECONDS)
    with contextlib.closing(link):
        link.request("POST", "/v1/completions", json.dumps(body))
        answer = link.getresponse()
        answer.read(rng.randint(1, 400))
        answer.close()
        return answer.status


def _gone(place: str, rng: random.Random, soak: Soak) -> int:
    """Sends a request, or half of one, and goes: sometimes by a reset of the connection."""
    body = json.dumps({**_random_body(rng), "stream": rng.random() < 0.5}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    raw = head.encode() + body
    host, port = place.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=_SECONDS) as link:
        link.sendall(raw[: rng.choice((len(raw), len(raw), len(head) + 3, 9))])
        time.sleep(rng.random() * 0.1)
        if rng.random() < 0.5:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return 0


def gauges(url: str) -> dict[str, float]:
    """What the server says of itself by name, as "graft_pages_held"."""
    link = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_SECONDS)
    with contextlib.closing(link):
        link.request("GET", "/metrics")
        lines = link.getresponse().read().decode().splitlines()
    return {n: float(v) for n, _, v in (x.partition(" ") for x in lines if x[:6] == "graft_")}


def settled(url: str, seconds: float = 60.0) -> dict[str, float]:
    """The gauges once no text is left, or after so many seconds."""
    ends = time.monotonic() + seconds
    while True:
        found = gauges(url)
        left = sum(found[f"graft_{name}"] for name in ("running", "waiting", "pages_held"))
        if not left or time.monotonic() > ends:
            return found
        time.sleep(0.1)


def resident_bytes(process: int) -> int:
    """Memory of a process (Linux)."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * 4096


def measure(command: Sequence[str], clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    """What a server is after `rounds` parts of so many seconds in all: see `table`."""
    parts, memory = list[Soak](), list[int]()
    with started("the server", command) as (process, url):
        for number in range(rounds):
            parts.append(run(url, clients, seconds / rounds, number))
            left = settled(url)
            memory.append(resident_bytes(process))
    statuses = sum((part.statuses for part in parts), Counter())
    return {
        "seconds": seconds,
        "clients": clients,
        "statuses": {f"{kind} {status}": n for (kind, status), n in sorted(statuses.items())},
        "failed": sum(part.failed for part in parts),
        "errors": dict(sum((part.errors for part in parts), Counter())),
        "texts": len(set().union(*(part.texts for part in parts))),
        "left": {name: left[f"graft_{name}"] for name in ("running", "waiting", "pages_held")},
        "resident_mib": [round(one / 2**20, 1) for one in memory],
    }


def table(row: dict[str, Any]) -> str:
    """The figures as lines for a person."""
    count = sum(row["statuses"].values())
    lines = [f"{count} requests of {row['clients']} clients in {row['seconds']:g} s"]
    lines += [f"  {name:14} {n}" for name, n in row["statuses"].items()]
    lines += [f"  {n} x {error}" for error, n in row["errors"].items()]
    left = ", ".join(f"{name} {value:g}" for name, value in row["left"].items())
    lines += [f"failed on the server's side: {row['failed']}; left: {left}"]
    lines += [f"different texts of one greedy request: {row['texts']}"]
    lines += [f"memory after each part, MiB: {', '.join(map(str, row['resident_mib']))}"]
    return "\n".join(lines)
