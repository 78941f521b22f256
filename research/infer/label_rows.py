"""The scores of tokens of framed rows, in batches."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np

from research.infer.text_batches import ROWS, STEP
from research.models.model import Model
from research.tree import Tree

_TASKS = {"tokens": "token_classification", "spans": "question_answering"}


def label_scores(
    model: Model, params: Tree, rows: Sequence[dict[str, np.ndarray]], over: str
) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the row, float32 scores [T, labels] of its tokens, padding at the end left out) of
    each row that `research.data.framing.Frame.row` made, in no order. ValueError for a model that
    has no labels over `over`, "tokens" or "spans"."""
    c = model.config
    if not c.labels or c.labels_over != over:
        has = f"labels of {c.labels_over}" if c.labels else "no labels"
        raise ValueError(
            f"the model has {has}; train one with --config=configs/finetune.py:task={_TASKS[over]}"
        )
    lengths = [int(row["segments"].sum()) for row in rows]
    order = sorted(range(len(rows)), key=lambda n: lengths[n])
    for first in range(0, len(order), ROWS):
        numbers = order[first : first + ROWS]
        longest = max(lengths[n] for n in numbers)
        width = min(-(-longest // STEP) * STEP, len(rows[numbers[0]]["tokens"]))
        batch = {name: np.zeros((ROWS, width), np.int32) for name in rows[numbers[0]]}
        for at, n in enumerate(numbers):
            for name, field in rows[n].items():
                batch[name][at] = field[:width]
        scores_BTV = np.asarray(_scores(params, _read(model, batch), model=model))
        for at, n in enumerate(numbers):
            yield n, scores_BTV[at, : lengths[n]]


def _read(model: Model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields that the model reads of a batch of rows."""
    fields = {"inputs": batch["tokens"], "segments": batch["segments"]}
    fields["positions"] = batch["positions"]
    if model.config.token_types > 1:
        fields["token_types"] = batch["token_types"]
    return fields


@partial(jax.jit, static_argnames="model")
def _scores(params: Tree, batch: dict[str, jax.Array], *, model: Model) -> jax.Array:
    hidden_BTD, _ = model.hidden(params, batch)
    return model.class_logits(params, hidden_BTD, segments_BT=batch["segments"])
