"""How well an encoder-decoder predicts target texts from source texts, in nats."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from research.data.tokenizers import Tokenizer
from research.data.tokenizers.special import decoder_start
from research.evals.perplexity import Score, place_whole, whole_rows
from research.files import read_text
from research.models.model import Model, forward
from research.objectives.pairs import pair_example
from research.ops.loss import cross_entropy
from research.tree import Tree

ROWS = 16  # pairs of a batch; on a mesh as many more as its devices can split
_STEP = 16  # lengths are rounded up to a multiple, so that few programs are compiled


def score_pairs(
    model: Model, params: Tree, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> Score:
    """The nats of every token of the targets, their ends included, each given its source and the
    target before it, as in training (objectives/translation.py).

    ValueError without pairs, for a model that is no encoder-decoder, and for a text that is longer
    than its learned positions.

        score_pairs(model, params, tokenizer, [("one cat", "un chat")]).nll_per_token
    """
    c = model.config
    if c.kind != "encoder_decoder":
        raise ValueError(f"the model is no encoder-decoder but of kind {c.kind}; give it a text")
    if not pairs:
        raise ValueError('there is no pair; give lines of {"inputs": ..., "targets": ...}')
    encoders = (tokenizer, tokenizer.targets or tokenizer)
    sides = [
        [[*ids, tokenizer.eos_id] for ids in encoder.encode_batch(list(side))]
        for encoder, side in zip(encoders, zip(*pairs))
    ]
    longest = max(len(ids) for side in sides for ids in side)
    if c.position == "learned" and longest > c.max_length:
        raise ValueError(f"a text has {longest} tokens, the model {c.max_length} positions; cut it")
    total, count = 0.0, 0
    start_id = decoder_start(tokenizer, c.decoder_start)
    mesh = jax.sharding.get_mesh()
    rows = ROWS if mesh.empty else whole_rows(ROWS, mesh, model)
    for batch in _batches(list(zip(*sides)), start_id, rows):
        inputs = batch if mesh.empty else place_whole(batch, mesh, model)
        nll, tokens = jax.device_get(_nll(params, inputs, model=model))
        # Summed on the host in float64, as a text's are.
        total, count = total + float(nll), count + int(tokens)
    return Score(total, count, None)


def _batches(
    pairs: list[tuple[list[int], list[int]]], start_id: int, n_rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """The pairs, a row each, in batches of `n_rows`; rows without a pair have no weight."""
    # Pairs of similar length share a batch, which needs little padding.
    pairs = sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))
    for first in range(0, len(pairs), n_rows):
        rows = pairs[first : first + n_rows]
        widths = [-(-max(map(len, side)) // _STEP) * _STEP for side in zip(*rows)]
        examples = [
            pair_example([np.array(source)], [np.array(target)], *widths, start_id)
            for source, target in rows
        ]
        examples += [pair_example([], [], *widths, start_id)] * (n_rows - len(rows))
        yield {name: np.stack([one[name] for one in examples]) for name in examples[0]}


@partial(jax.jit, static_argnames="model")
def _nll(params: Tree, batch: dict[str, jax.Array], *, model: Model) -> tuple[jax.Array, jax.Array]:
    """(nats, number) of the tokens of a batch that have a weight."""
    fields = {name: x for name, x in batch.items() if name not in ("targets", "weights")}
    _, nll_BT = cross_entropy(forward(model, params, fields), batch["targets"])
    return (nll_BT * batch["weights"]).sum(), batch["weights"].sum()


def read_pairs(file: Path, setting: str = "--text") -> list[tuple[str, str]]:
    """The pairs of a .jsonl file, {"inputs": ..., "targets": ...} a line. ValueError with the
    number of a line that is no pair; `setting` is what named the file."""
    pairs = []
    lines = read_text(file, setting).removeprefix("\ufeff").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            pair = record["inputs"], record["targets"]
        except (ValueError, KeyError, TypeError, RecursionError):
            pair = ()
        if len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise ValueError(
                f'{setting}={file}, line {number} is no pair like {{"inputs": "one cat", '
                f'"targets": "un chat"}}, which an encoder-decoder is scored on: {line[:60]!r}'
            )
        pairs.append(pair)
    return pairs
