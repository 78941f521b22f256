"""Padding of texts and numbers to the sizes of a compiled batch, and their places on a mesh."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.parallel.axes import AxisRules, constrain

# Largest number of prompt tokens read at once: it bounds the memory of attention and the slots that
# a windowed cache has beside its window.
PREFILL = 512


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
        row[[i for i in ids if i < len(row)]] = True  # the place of a medium may lie behind them
    return seen_BV


def pad_texts(texts: Sequence[Sequence[int]], rows: int, width: int) -> np.ndarray:
    """The ids padded with zeros on the right and with rows of zeros, int32 [rows, width]."""
    table_BT = np.zeros((rows, width), np.int32)
    for row, ids in zip(table_BT, texts):
        row[: len(ids)] = ids
    return table_BT


def text_batch(tokens_BT, first, lengths_B, rules: AxisRules) -> dict[str, jax.Array]:
    """The fields of a model's batch for tokens at positions `first`, `first` + 1, ... of
    right-padded rows."""
    positions_BT = jnp.broadcast_to(
        first + jnp.arange(tokens_BT.shape[1])[None, :], tokens_BT.shape
    )
    fields = {
        "inputs": tokens_BT,
        "positions": positions_BT,
        "segments": positions_BT < lengths_B[:, None],
    }
    return {name: rowwise(field.astype(jnp.int32), rules) for name, field in fields.items()}


def rowwise(x: jax.Array, rules: AxisRules) -> jax.Array:
    """`x` [B, ...] with its rows split over devices as those of a batch."""
    return constrain(x, ("batch", *["position"] * (x.ndim - 1)), rules)


def everywhere(x: jax.Array) -> jax.Array:
    """`x` whole on every device, so that every process can fetch it."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.reshard(x, PartitionSpec())


def chunk_size(longest: int) -> int:
    """Tokens read at once for prompts of up to `longest` tokens: 16, 32, 64, ..., PREFILL."""
    return min(max(16, 2 ** math.ceil(math.log2(longest))), PREFILL)


def bucket(size: int) -> int:
    """`size` rounded up to one of 64, 80, 96, 112, 128, 160, ...: four sizes a doubling, so at most
    a fifth of a larger size is padding."""
    size = max(size, 64)
    # An eighth of the next power of two: four steps lead to it from the power before.
    step = 2 ** (math.ceil(math.log2(size)) - 3)
    return step * math.ceil(size / step)
