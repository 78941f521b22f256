"""Padding of texts and numbers to the sizes of a compiled batch, on the host."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from research.infer.sampling import SamplingConfig
from research.models.model import Model


def row_count(prompts: int, model: Model) -> int:
    """Rows of a batch for this number of prompts: the next power of two, so that few sizes are
    compiled; at least two in bfloat16 on a CPU, where a product of one row takes 25 times as
    long."""
    slow = model.precision.compute != "float32" and jax.default_backend() == "cpu"
    return max(2 ** math.ceil(math.log2(prompts)), 2 if slow else 1)


def pad_numbers(numbers: Sequence[int], rows: int) -> np.ndarray:
    """The numbers padded with zeros, int32 [rows]."""
    return np.array([*numbers, *[0] * (rows - len(numbers))], np.int32)


def mark_seen(
    prompts: Sequence[Sequence[int]], rows: int, model: Model, sampling: SamplingConfig
) -> np.ndarray | None:
    """True for the tokens of each prompt, bool [B, V]; None without a repetition penalty."""
    if sampling.repetition_penalty == 1:
        return None
    seen_BV = np.zeros((rows, model.config.vocab_size), bool)
    for row, ids in zip(seen_BV, prompts):
        row[list(ids)] = True
    return seen_BV


def pad_texts(texts: Sequence[Sequence[int]], rows: int, width: int) -> np.ndarray:
    """The ids padded with zeros on the right and with rows of zeros, int32 [rows, width]."""
    table_BT = np.zeros((rows, width), np.int32)
    for row, ids in zip(table_BT, texts):
        row[: len(ids)] = ids
    return table_BT
