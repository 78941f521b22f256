"""How well an encoder-decoder predicts target texts from source texts, in nats."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

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
    total, count = 0.0, 0
    for sums, _, _ in _scored(model, params, tokenizer, pairs):
        # Summed on the host in float64, as a text's are.
        total, count = total + float(sums[0]), count + int(sums[1])
    return Score(total, count, None)


def score_each_pair(
    model: Model, params: Tree, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[Score]:
    """The same as `score_pairs`, of each pair in order."""
    scores: dict[int, Score] = {}
    for _, (nll_B, tokens_B), numbers in _scored(model, params, tokenizer, pairs):
        for row, number in enumerate(numbers):
            scores[number] = Score(float(nll_B[row]), int(tokens_B[row]), None)
    return [scores[number] for number in range(len(pairs))]


def _scored(
    model: Model, params: Tree, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[Any, Any, list[int]]]:
    """((nats, tokens), (nats, tokens) of each row [B], numbers of the pairs) of batches; rows
    beyond the pairs are 0."""
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
    start_id = decoder_start(tokenizer, c.decoder_start)
    mesh = jax.sharding.get_mesh()
    rows = ROWS if mesh.empty else whole_rows(ROWS, mesh, model)
    for batch, numbers in _batches(list(zip(*sides)), start_id, rows):
        inputs = batch if mesh.empty else place_whole(batch, mesh, model)
        yield *jax.device_get(_nll(params, inputs, model=model)), numbers


def _batches(
    pairs: list[tuple[list[int], list[int]]], start_id: int, n_rows: int
) -> Iterator[tuple[dict[str, np.ndarray], list[int]]]:
    """(batch, numbers of its pairs): the pairs, a row each, in batches of `n_rows`; rows without a
    pair have no weight."""
    # Pairs of similar length share a batch, which needs little padding.
    order = sorted(range(len(pairs)), key=lambda n: (len(pairs[n][0]), len(pairs[n][1])))
    for first in range(0, len(order), n_rows):
        numbers = order[first : first + n_rows]
        rows = [pairs[number] for number in numbers]
        widths = [-(-max(map(len, side)) // _STEP) * _STEP for side in zip(*rows)]
        examples = [
            pair_example([np.array(source)], [np.array(target)], *widths, start_id)
            for source, target in rows
        ]
        examples += [pair_example([], [], *widths, start_id)] * (n_rows - len(rows))
        batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
        yield batch, numbers


@partial(jax.jit, static_argnames="model")
def _nll(params: Tree, batch: dict[str, jax.Array], *, model: Model) -> Any:
    """(nats, number) of the tokens of a batch that have a weight, and the same of each row [B]."""
    fields = {name: x for name, x in batch.items() if name not in ("targets", "weights")}
    _, nll_BT = cross_entropy(forward(model, params, fields), batch["targets"])
    nll_BT, weights_BT = nll_BT * batch["weights"], batch["weights"]
    rows = nll_BT.sum(axis=1), weights_BT.sum(axis=1)
    # Whole on every device, so that every process can read all of it.
    mesh = jax.sharding.get_abstract_mesh()
    rows = rows if mesh.empty else jax.reshard(rows, PartitionSpec())
    return (nll_BT.sum(), weights_BT.sum()), rows


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
