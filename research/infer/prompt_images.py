"""Images in prompts: their places, the batch that decoding pads them to, and their soft tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from research.infer.padding import chunk_size, rowwise, text_batch
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.soft import check_images
from research.tree import Tree


def with_places(c: ModelConfig, index: int, ids: list[int], images: Any) -> list[int]:
    """The ids of a prompt with as many places as its images [M, h, w, 3] have soft tokens: a prompt
    may name the place once for each image. ValueError where the two do not fit."""
    count = 0 if images is None else len(images) // c.image.frames
    if count and ids.count(c.image.token) == count:
        ids = [i for one in ids for i in [one] * (c.image.tokens if one == c.image.token else 1)]
    try:
        rows = None if images is None else np.asarray(images)[None]
        if c.image.in_texts or images is not None:
            check_images(c, np.array([ids]), rows)
    except ValueError as error:
        raise ValueError(f"prompt {index}: {error}") from None
    return ids


def pad_images(images: Sequence[Any], rows: int) -> np.ndarray | None:
    """The images of each prompt, [rows, M, h, w, 3], behind which there are black ones that no
    place reads; None where no prompt has any."""
    given = [np.asarray(x) for x in images if x is not None]
    if not given:
        return None
    most = max(map(len, given))
    table = np.zeros((rows, most, *given[0].shape[1:]), np.result_type(*given))
    for row, one in zip(table, images):
        if one is not None:
            row[: len(one)] = one
    return table


def prompt_chunk(c: ModelConfig, longest: int, images: np.ndarray | None) -> int:
    """Tokens of prompts that are read at once. Soft tokens that see what is behind them are read
    together with that, so such prompts are read whole."""
    if images is None or c.image.attention == "causal":
        return chunk_size(longest)
    return max(16, 1 << (longest - 1).bit_length())


@partial(jax.jit, static_argnames="model")
def soften_prompts(
    params: Tree, tokens_BT: jax.Array, lengths_B: jax.Array, images: jax.Array, *, model: Model
) -> dict[str, jax.Array]:
    """What stands in the places of whole prompts, the fields of `research.models.soft`. All of a
    prompt stands before its answer."""
    batch = text_batch(tokens_BT, 0, lengths_B, model.rules)
    if model.config.image.attention == "prefix":
        batch["blocks"] = batch["segments"]
    softened = model.soften(params, {**batch, "images": rowwise(images, model.rules)})
    return {name: softened[name] for name in ("soft", "soft_at", "blocks") if name in softened}


def cut(soft: dict[str, jax.Array], first: int, chunk: int) -> dict[str, jax.Array]:
    """The fields of `chunk` tokens from `first` on; their vectors are those of the whole row."""
    return {name: x if name == "soft" else x[:, first : first + chunk] for name, x in soft.items()}
