"""Images and sounds in prompts: their places, the batch that decoding pads them to, and their soft
tokens."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.infer.padding import chunk_size, rowwise, text_batch
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.soft import check_images, check_sounds
from research.tree import Tree


def media_of(count: int, images: Sequence[Any], sounds: Sequence[Any]) -> list[dict[str, Any]]:
    """What each of so many prompts has of "images" [M, h, w, 3] and "sounds" [M, frames, mels].
    ValueError for media of another number of prompts."""
    media: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, of_prompts in (("images", images), ("sounds", sounds)):
        if len(of_prompts) not in (0, count):
            raise ValueError(
                f"{name} of {len(of_prompts)} prompts and {count} prompts; give None for one "
                "without"
            )
        for one, given in zip(media, of_prompts):
            if given is not None:
                one[name] = given
    return media


def with_places(
    c: ModelConfig, index: int, ids: list[int], images: Any, sounds: Any = None
) -> list[int]:
    """The ids of a prompt with as many places as its images [M, h, w, 3] and sounds [M, F, m] have
    soft tokens: a prompt may name the place once for each. ValueError where they do not fit."""
    blocks = 0 if images is None else len(images) // c.image.frames
    ids = _spread(ids, c.image.token, c.image.tokens, blocks)
    ids = _spread(ids, c.sound.token, c.sound.tokens, 0 if sounds is None else len(sounds))
    try:
        if c.image.in_texts or images is not None:
            check_images(c, np.array([ids]), None if images is None else np.asarray(images)[None])
        if c.sound.layers or sounds is not None:
            check_sounds(c, np.array([ids]), None if sounds is None else np.asarray(sounds)[None])
    except ValueError as error:
        raise ValueError(f"prompt {index}: {error}") from None
    return ids


def _spread(ids: list[int], token: int, places: int, media: int) -> list[int]:
    """The ids with `places` of a token for each one, where it stands once for each medium."""
    if not media or ids.count(token) != media:
        return ids
    return [i for one in ids for i in [one] * (places if one == token else 1)]


def pad_media(media: Sequence[Mapping[str, Any]], rows: int) -> dict[str, np.ndarray] | None:
    """The "images" and "sounds" of each prompt, [rows, M, ...], behind which there are zeros that
    no place reads; None where no prompt has any."""
    tables = {}
    for name in ("images", "sounds"):
        given = [np.asarray(one[name]) for one in media if name in one]
        if not given:
            continue
        shape = (rows, max(map(len, given)), *given[0].shape[1:])
        tables[name] = np.zeros(shape, np.result_type(*given))
        for row, one in zip(tables[name], media):
            if name in one:
                row[: len(one[name])] = one[name]
    return tables or None


def prompt_chunk(c: ModelConfig, longest: int, media: Mapping[str, np.ndarray] | None) -> int:
    """Tokens of prompts that are read at once. Soft tokens that see what is behind them are read
    together with that, so such prompts are read whole."""
    if media is None or "images" not in media or c.image.attention == "causal":
        return chunk_size(longest)
    return max(16, 1 << (longest - 1).bit_length())


@partial(jax.jit, static_argnames="model")
def soften_prompts(
    params: Tree,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    media: dict[str, jax.Array],
    *,
    model: Model,
) -> dict[str, jax.Array]:
    """What stands in the places of whole prompts, the fields of `research.models.soft`. All of a
    prompt stands before its answer."""
    batch = text_batch(tokens_BT, 0, lengths_B, model.rules)
    if model.config.image.attention == "prefix" and "images" in media:
        # A text without an image is what it is without the others of its batch.
        seeing_B1 = jnp.any(batch["inputs"] == model.config.image.token, axis=1, keepdims=True)
        batch["blocks"] = jnp.where(seeing_B1, batch["segments"], 0)
    placed = {name: rowwise(rows, model.rules) for name, rows in media.items()}
    softened = model.soften(params, {**batch, **placed})
    return {name: softened[name] for name in ("soft", "soft_at", "blocks") if name in softened}


def cut(soft: dict[str, jax.Array], first: int, chunk: int) -> dict[str, jax.Array]:
    """The fields of `chunk` tokens from `first` on; their vectors are those of the whole row."""
    return {name: x if name == "soft" else x[:, first : first + chunk] for name, x in soft.items()}
