"""What the server's `--kv_bits` costs and saves: perplexity and bytes of a rounded cache of keys
and values, beside one in the type of computation."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from research.compress.measure import first_ids
from research.data.sources import open_source
from research.downloads.cache import cache_directory
from research.evals.intervals import student
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.run.opened import Opened, open_model
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.step import make_pools

PAGE = 32  # tokens; also those that are read at a time, so that what is read sees rounded pages
BITS = (None, 8, 4)


def measure(checkpoint: str, data: str, texts: int, length: int) -> list[dict[str, Any]]:
    """A row for each of `BITS`: bytes of a token in the cache, perplexity of so many windows of
    `length` tokens of the held-out text of a data source, and how much more nats a token takes than
    with the exact cache, with the 95% interval over the windows. ValueError for too little text."""
    opened = open_model(None, checkpoint)
    if opened.tokenizer is None:
        raise ValueError(f"{opened.source} has no tokenizer; choose a checkpoint with one")
    heldout = open_source(data, cache_directory()).heldout
    ids = first_ids(opened.tokenizer, heldout, texts * length, f"--data={data}")
    windows = np.asarray(ids).reshape(texts, length).tolist()
    rows: list[dict[str, Any]] = []
    exact = np.zeros(texts)
    for bits in BITS:
        nats = _read(opened, windows, bits)
        exact = nats if bits is None else exact
        low, high = student((nats - exact).tolist()) if bits else (0.0, 0.0)
        rows.append(
            {
                "bits": bits or opened.model.precision.compute,
                "bytes_a_token": _bytes_a_token(opened.model, bits),
                "perplexity": float(np.exp(nats.mean())),
                "difference": float((nats - exact).mean()),
                "interval": [low, high],
                "texts": texts,
                "tokens": texts * (length - 1),
            }
        )
    return rows


def _bytes_a_token(model: Model, bits: int | None) -> float:
    """What a token of a full page takes; the last two pages of each text that runs are exact and
    not counted."""
    pools = [jax.eval_shape(lambda n=n: make_pools(model, n, PAGE, 1, bits)) for n in (1, 2)]
    one, two = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool)) for pool in pools)
    return (two - one) / PAGE


def _read(opened: Opened, windows: Sequence[list[int]], bits: int | None) -> np.ndarray:
    """Mean nats of a token of each window."""
    length = len(windows[0])
    sizes = {"page_size": PAGE, "rows": 1, "chunk": PAGE, "length": length + 1}
    sizes["pages"] = length // PAGE + 1
    engine = Engine(
        opened.model, opened.params, opened.tokenizer, share=False, bits=bits, few=True, **sizes
    )
    config = SamplingConfig(temperature=0.0, max_tokens=1)
    asked = [Request(ids, config, prompt_logprobs=True) for ids in windows]
    return np.array([-np.mean(done.prompt_logprobs) for done in engine.generate(asked)])


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
