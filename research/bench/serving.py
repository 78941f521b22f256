"""Servers under load: requests that come at random times, to each server in turn.

The figures are those of `vllm bench serve`: requests and tokens a second; TTFT, the time to a
request's first token; TPOT, the mean time of each token after it; ITL, the time between two pieces
of a stream. Each in milliseconds at the 50th, 95th and 99th percentile.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.bench.serving_client import Answer, ask, model_name

PERCENTILES = (50, 95, 99)
_WORDS = (
    "the of and to in is it that was for on are as with they be at one have this from by had not "
    "but what all were when we there can an your which their said if do will each about how up "
    "out them then she many some so these would other into has more her two like him see time"
).split()


@dataclass(frozen=True)
class Load:
    """How many requests come and at which mean rate a second; the mean number of words of a prompt
    and of tokens that are asked for. The gaps between requests are exponential (Poisson arrivals),
    the two lengths uniform between half and one and a half of the mean."""

    requests: int = 64
    rate: float = 4.0
    prompt: int = 64
    written: int = 64

    def drawn(self, seed: int) -> Iterator[tuple[float, str, int]]:
        """(seconds after the start, prompt, tokens to write) of each request."""
        rng = np.random.default_rng(seed)
        at = 0.0
        for _ in range(self.requests):
            at += rng.exponential(1 / self.rate)
            words = rng.choice(_WORDS, _between(rng, self.prompt))
            yield at, " ".join(words), _between(rng, self.written)


def _between(rng: np.random.Generator, mean: int) -> int:
    return int(rng.integers(max(1, mean // 2), mean + mean // 2 + 1))


def compare(
    commands: Mapping[str, Sequence[str]], urls: Mapping[str, str], load: Load, rounds: int
) -> list[dict[str, Any]]:
    """A row for each server, see `row`: those that `commands` start, each of which prints
    "listening on" and its address, and those that answer at `urls`. They take turns at the same
    requests, a new draw each round; the round before the first is not counted."""
    with contextlib.ExitStack() as stack:
        servers = dict(urls)
        for name, command in commands.items():
            _, servers[name] = stack.enter_context(started(name, command))
            print(f"{name} is ready", file=sys.stderr)
        answers: dict[str, list[Answer]] = {name: [] for name in servers}
        seconds = dict.fromkeys(servers, 0.0)
        for turn in range(rounds + 1):
            for name, url in servers.items():
                got, spent = run(url, load, turn)
                answers[name] += got if turn else []
                seconds[name] += spent if turn else 0.0
            print(f"round {turn} of {rounds}", file=sys.stderr)
    return [row(name, answers[name], seconds[name]) for name in servers]


def run(url: str, load: Load, seed: int) -> tuple[list[Answer], float]:
    """(the answers, the seconds to the last one) of a server to a drawn load."""
    model, drawn = model_name(url), list(load.drawn(seed))
    answers: list[Answer] = [Answer() for _ in drawn]
    threads = [
        threading.Thread(target=ask, args=(url, model, prompt, tokens, answer))
        for (_, prompt, tokens), answer in zip(drawn, answers)
    ]
    began = time.monotonic()
    for (at, _, _), thread in zip(drawn, threads):
        # The schedule does not wait for answers: a server that is too slow has a queue.
        time.sleep(max(0.0, began + at - time.monotonic()))
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.monotonic() - began


def row(name: str, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """What a server did: requests, those that failed, the first error, seconds, requests and tokens
    in and out a second, and `ttft_ms`, `tpot_ms`, `itl_ms` by percentile."""
    good = [answer for answer in answers if not answer.error]
    failed = [answer.error for answer in answers if answer.error]
    itl = [gap for answer in good for gap in answer.gaps]
    return {
        "contender": name,
        "requests": len(answers),
        "failed": len(failed),
        "error": failed[0] if failed else "",
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "input_tokens_per_second": sum(a.read for a in good) / seconds,
        "output_tokens_per_second": sum(a.written for a in good) / seconds,
        "ttft_ms": _percentiles([a.first for a in good]),
        "tpot_ms": _percentiles([a.each for a in good if a.written > 1]),
        "itl_ms": _percentiles(itl),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """By name, in milliseconds; None where nothing was measured."""
    values = np.percentile(seconds, PERCENTILES) * 1e3 if len(seconds) else [None] * 3
    return {f"p{p}": None if v is None else float(v) for p, v in zip(PERCENTILES, values)}


@contextlib.contextmanager
def started(name: str, command: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(the process, the address) of a server. RuntimeError where it does not listen."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()  # type: ignore[union-attr]
            if not line.startswith("listening on "):
                raise RuntimeError(f"{name} does not listen; its errors are above")
            yield process.pid, line.removeprefix("listening on ").strip()
        finally:
            process.kill()


def table(results: Sequence[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    heads = [f"{name} {p}" for name in ("ttft", "tpot", "itl") for p in ("p50", "p95", "p99")]
    lines = [
        f"{'contender':14} {'done':>5} {'failed':>6} {'req/s':>6} {'in/s':>7} {'out/s':>7} "
        + " ".join(f"{head:>8}" for head in heads)
    ]
    for r in results:
        times = [ms for name in ("ttft_ms", "tpot_ms", "itl_ms") for ms in r[name].values()]
        lines.append(
            f"{r['contender']:14} {r['requests'] - r['failed']:5} {r['failed']:6} "
            f"{r['requests_per_second']:6.2f} {r['input_tokens_per_second']:7.1f} "
            f"{r['output_tokens_per_second']:7.1f} "
            + " ".join(f"{'-' if ms is None else format(ms, '.1f'):>8}" for ms in times)
        )
    lines.append("in/s, out/s: tokens a second; ttft, tpot and itl in milliseconds")
    return "\n".join(lines)
