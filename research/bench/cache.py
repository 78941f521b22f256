"""What the server's `--kv_bits` costs and saves: perplexity and bytes of a rounded cache of keys
and values, beside one in the type of computation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from research.evals.intervals import student
from research.evals.records import read_records, text_of
from research.infer.sampling import SamplingConfig
from research.run.opened import Opened, open_model
from research.serve.engine import Engine
from research.serve.request import Request

PAGE = 32  # tokens; also those that are read at a time, so that what is read sees rounded pages
BITS = (None, 8, 4)
_NAMES = ("document", "text", "passage", "article")


def measure(checkpoint: str, data: str, texts: int, length: int) -> list[dict[str, Any]]:
    """A row for each of `BITS`: bytes of a token in the cache, perplexity of the first `length`
    tokens of so many texts, and the difference of the log-likelihood of a token in nats to that of
    the exact cache, with its 95% interval over the texts. ValueError where the data have fewer."""
    opened = open_model(None, checkpoint)
    prompts = _prompts(opened, data, texts, length)
    rows: list[dict[str, Any]] = []
    exact = np.zeros(texts)
    for bits in BITS:
        bytes_each, nats = _read(opened, prompts, length, bits)
        exact = nats if bits is None else exact
        low, high = student((nats - exact).tolist()) if bits else (0.0, 0.0)
        rows.append(
            {
                "bits": bits or opened.model.precision.compute,
                "bytes_a_token": bytes_each,
                "perplexity": float(np.exp(nats.mean())),
                "difference": float((nats - exact).mean()),
                "interval": [low, high],
                "texts": texts,
                "tokens": texts * (length - 1),
            }
        )
    return rows


def _prompts(opened: Opened, data: str, texts: int, length: int) -> list[list[int]]:
    found: list[list[int]] = []
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise ValueError(f"{opened.source} has no tokenizer; choose a checkpoint with one")
    for _, record in read_records(data):
        ids = tokenizer.encode(text_of(record, _NAMES, data))
        found += [ids[:length]] if len(ids) >= length else []
        if len(found) == texts:
            return found
    raise ValueError(
        f"{data} has {len(found)} texts of {length} tokens, not {texts}; ask for fewer"
    )


def _read(
    opened: Opened, prompts: Sequence[list[int]], length: int, bits: int | None
) -> tuple[float, np.ndarray]:
    """(bytes of a token in the cache, mean nats of a token of each text)."""
    pages = length // PAGE + 1
    sizes = {"pages": pages, "page_size": PAGE, "rows": 1, "chunk": PAGE, "length": length + 1}
    how = {"share": False, "prepared": False, "bits": bits}
    engine = Engine(opened.model, opened.params, opened.tokenizer, **sizes, **how)
    # One table of pages for all, which is one program.
    engine.shapes = engine.shapes.whole()
    config = SamplingConfig(temperature=0.0, max_tokens=1)
    asked = [Request(ids, config, prompt_logprobs=True) for ids in prompts]
    nats = [-np.mean(done.prompt_logprobs) for done in engine.generate(asked)]
    return engine.runner.cache_bytes / (pages * PAGE), np.array(nats)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    lines = [
        f"{'cache':>9} {'bytes a token':>13} {'perplexity':>10} {'nats a token, to exact':>34}"
    ]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"{row['bits']:>9} {row['bytes_a_token']:13,.0f} {row['perplexity']:10.3f} "
            f"{row['difference']:+10.5f} [{low:+.5f}, {high:+.5f}]"
        )
    return "\n".join([*lines, f"{rows[0]['texts']} texts, {rows[0]['tokens']:,} tokens"])
