"""More tokens, or more learned positions, than a checkpoint has: its tables with rows added."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from research.interop.storage.checkpoint import Checkpoint, specs_by_path
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig

Fill = Callable[[np.ndarray, int], np.ndarray]


def mean_rows(table: np.ndarray, count: int) -> np.ndarray:
    """The table [V, ...] with `count` rows added, each the mean of its rows.

    With the mean, the new tokens take almost nothing from the old ones' probabilities, whereas
    small random rows may take nearly all (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models"). transformers' resize_token_embeddings does the same.
    """
    mean = table.mean(axis=0, dtype=np.float64).astype(table.dtype)
    return np.concatenate([table, np.broadcast_to(mean, (count, *mean.shape))])


def repeated_rows(table: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """The table [P, D] with `count` rows added, which repeat it from row `first` on.

    Attention to near tokens then works from the first step, except where a copy ends and the next
    begins (arXiv:2004.05150, section 5, which makes 4,096 positions of RoBERTa's 512 so).
    """
    size = len(table) - first
    repeated = table[first + np.arange(size + count) % size]
    return np.concatenate([table[:first], repeated]) if first else repeated


# By the logical axis that grows: field of the config, rows, and how a line describes these.
_GROWS: dict[str, tuple[str, Fill, str]] = {
    "vocab": ("vocab_size", mean_rows, "the mean of the {before:,} rows before"),
    "position": ("max_length", repeated_rows, "the {before:,} rows before, repeated"),
}


def grow(checkpoint: Checkpoint, c: ModelConfig) -> tuple[Checkpoint, list[str]]:
    """(the checkpoint with tables for as many tokens and learned positions as `c` has, a line for
    the user on each kind of row that is new).

    New rows are made as they are read and depend on the old ones alone, so reading twice gives the
    same bits. ValueError for fewer tokens or learned positions than the checkpoint has.
    """
    lines = []
    for axis, (before, after) in _sizes(checkpoint.config, c).items():
        field, _, what = _GROWS[axis]
        if after < before:
            raise ValueError(
                f"config.model.{field}={after} is below the {before} of {checkpoint.source}, whose "
                f"table cannot shrink; set it to at least {before}"
            )
        tables = " and ".join(path for path, _ in _tables(checkpoint, axis))
        lines += [f"{after - before:,} new rows in {tables}: {what.format(before=before)}"]
    return fit_rows(checkpoint, c), lines


def fit_rows(checkpoint: Checkpoint, c: ModelConfig) -> Checkpoint:
    """The checkpoint with as many rows in its tables as `c` has: new ones as `grow` makes them, and
    the last ones cut off where `c` has fewer."""
    sizes = _sizes(checkpoint.config, c)
    parameters, codes = dict(checkpoint.parameters), dict(checkpoint.codes)
    for axis, (_, after) in sizes.items():
        fill, first = _GROWS[axis][1], 0
        if axis == "position" and c.position_offset:
            # The rows before that of the first position stay where they are.
            first, fill = c.position_offset, partial(repeated_rows, first=c.position_offset)
        for path, parameter in _tables(checkpoint, axis):
            parameters[path] = _with_rows(parameter, first + after, fill)
            codes.pop(path, None)
    if not sizes:
        return checkpoint
    fields: dict[str, Any] = {_GROWS[axis][0]: after for axis, (_, after) in sizes.items()}
    config = replace(checkpoint.config, **fields)
    # The way back to the source's own tensors would be to tables of another size.
    return replace(checkpoint, config=config, parameters=parameters, codes=codes, original=None)


def _sizes(was: ModelConfig, c: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows of a checkpoint's tables, rows wanted) by axis, where these differ."""
    sizes = {axis: (getattr(was, field), getattr(c, field)) for axis, (field, *_) in _GROWS.items()}
    if was.position != "learned":
        del sizes["position"]  # `max_length` is the size of no table then
    return {axis: (before, after) for axis, (before, after) in sizes.items() if before != after}


def _tables(checkpoint: Checkpoint, axis: str) -> list[tuple[str, Parameter]]:
    """The parameters whose rows are numbered by an axis: for tokens, also a bias of the logits."""
    # Token types are numbered along a "position" axis too.
    paths = [
        path
        for path, spec in specs_by_path(checkpoint.config).items()
        if spec.axes[0] == axis and path != "embed/types"
    ]
    return [(path, checkpoint.parameters[path]) for path in paths if path in checkpoint.parameters]


def _with_rows(parameter: Parameter, rows: int, fill: Fill) -> Parameter:
    before = parameter.shape[0]

    def _read(index: tuple[int, ...]) -> np.ndarray:
        table = parameter.read(index)
        return table[:rows] if rows < before else fill(table, rows - before)

    return replace(parameter, shape=(rows, *parameter.shape[1:]), read=_read)
