"""Embeddings of tokens, positions and token types."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from research.devices.backend import platform
from research.models import layers
from research.models.config import ModelConfig
from research.models.initial import Initial
from research.models.soft import placed
from research.models.spec import Spec
from research.ops import chunked
from research.ops.distance import DistanceBias
from research.ops.einsum import contract, take
from research.parallel.placement import gather, gather_axis, local_shape
from research.scopes import scope
from research.tree import Tree

# T5's relative positions (arXiv:1910.10683, section 2.1): buckets of distances, and the distance
# from which all share the last bucket.
BUCKETS = 32
FARTHEST = 128


def embed_specs(c: ModelConfig, start: Initial) -> Tree:
    """Token table [V, D]; with learned positions a table [position_offset + max_length, D]; with
    token types (BERT) their table; and a norm of the sum. What the encoder of an encoder-decoder
    has for itself is called `encoder_positions` and `encoder_norm`."""
    specs = {
        "table": Spec((c.vocab_size, c.d_model), ("vocab", "embed"), start.embedding, inputs=-1)
    }
    if c.position == "learned":
        # Rows for `max_length` positions and no more: texts beyond it are refused.
        rows = c.position_offset + c.max_length
        specs["positions"] = Spec((rows, c.d_model), ("position", "embed"), start.position)
        if c.encoder_positions:
            specs["encoder_positions"] = specs["positions"]
    if c.token_types:
        specs["types"] = Spec((c.token_types, c.d_model), ("position", "embed"), start.position)
    if c.token_types or c.embedding_norm:
        specs["norm"] = layers.norm_specs(c)
        if c.kind == "encoder_decoder":
            specs["encoder_norm"] = layers.norm_specs(c)
    return specs


def of_encoder(p: Tree) -> Tree:
    """The embeddings of an encoder-decoder as its encoder uses them: its own tables and norm under
    their plain names."""
    own = {name.removeprefix("encoder_"): w for name, w in p.items() if name.startswith("encoder_")}
    return {**p, **own}


def encoder_text(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The fields of the text that an encoder-decoder's encoder reads, under their plain names."""
    return {name: batch[f"encoder_{name}"] for name in ("inputs", "segments", "positions")}


@scope("embed")
def embed(
    p: Tree,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    c: ModelConfig,
    dtype: jnp.dtype,
    token_types_BT: jax.Array | None = None,
    key: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    soft: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Input states [B, T, D] in `dtype`: the sum of the embeddings that the model has, normalised
    where the model has a norm for it; noise and dropout with a key. Token types default to 0;
    `segments_BT` tells the noise where texts end, None is one text a row. `soft` are the vectors
    that stand in the place of words' scaled embeddings, and where (`research.models.soft`)."""
    if soft is not None:
        # The id of a place may lie outside the table.
        tokens_BT = jnp.where(soft[1] >= 0, 0, tokens_BT)
    x_BTD = take(p["table"], tokens_BT, dtype)
    if c.embedding_noise and key is not None:
        # Another key than dropout's, whose draws stay what they are without noise.
        x_BTD += noise(x_BTD, c.embedding_noise, segments_BT, jax.random.fold_in(key, 1))
    # The factor is rounded to `dtype`, as in Gemma's code: sqrt(3072) is 55.5 in bfloat16.
    if c.embedding_scale != 1.0:
        x_BTD = x_BTD * jnp.asarray(c.embedding_scale, dtype)
    if soft is not None:
        x_BTD = placed(x_BTD, *soft)
    if c.position == "learned":
        # Position 0 has row 2 in OPT's table; adding 0 would still be an operation.
        rows_BT = positions_BT + c.position_offset if c.position_offset else positions_BT
        x_BTD += take(p["positions"], rows_BT, dtype)
    if c.position == "sinusoidal":
        x_BTD += sinusoids(positions_BT, c.d_model).astype(dtype)
    if c.token_types:
        types_BT = jnp.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
        x_BTD += take(p["types"], types_BT, dtype)
    if "norm" in p:
        x_BTD = layers.norm(p["norm"], x_BTD, c)
    return layers.dropout(x_BTD, c.dropout, key)


def check_positions(c: ModelConfig, virtual: int, length: int) -> None:
    """ValueError where texts of `length` tokens may be longer than the position table, `virtual`
    tokens before them included."""
    # Rotary and relative positions have no end, though a model may know no later ones.
    if virtual and c.position == "learned" and length + virtual > c.max_length:
        raise ValueError(
            f"{virtual} virtual tokens and {length} of a text are over the {c.max_length} "
            "positions of the model; set config.data.sequence_length lower"
        )


def noise(
    x_BTD: jax.Array, alpha: float, segments_BT: jax.Array | None, key: jax.Array
) -> jax.Array:
    """Uniform noise [B, T, D] in alpha / sqrt(L D) [-1, 1], with L the tokens of a token's own text
    (NEFTune, arXiv:2310.05914, algorithm 1), whatever it shares its row with."""
    B, T, D = x_BTD.shape
    if segments_BT is None:
        lengths_BT = jnp.full((B, T), T, jnp.float32)
    else:
        # The axis T may be split over devices, and a text goes over several parts.
        lengths_BT = _text_lengths(gather_axis(segments_BT, axis=1)).astype(jnp.float32)
    sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x_BTD).sharding
    drawn_BTD = jax.random.uniform(
        key, x_BTD.shape, jnp.float32, minval=-1.0, maxval=1.0, out_sharding=sharding
    )
    return (drawn_BTD * (alpha / jnp.sqrt(lengths_BT * D))[:, :, None]).astype(x_BTD.dtype)


def _text_lengths(segments_BT: jax.Array) -> jax.Array:
    """Tokens of the text that each token is in, int32 [B, T]: the first index after the text minus
    that of its first token."""
    T = segments_BT.shape[1]
    changed_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    edge_BT = jnp.pad(changed_BT, ((0, 0), (1, 0)), constant_values=True)
    ends_BT = jnp.pad(changed_BT, ((0, 0), (0, 1)), constant_values=True)
    at_1T = jnp.arange(T, dtype=jnp.int32)[None]
    begin_BT = jax.lax.cummax(jnp.where(edge_BT, at_1T, 0), axis=1)
    stop_BT = jax.lax.cummin(jnp.where(ends_BT, at_1T, T), axis=1, reverse=True)
    return stop_BT - begin_BT + 1


def sinusoids(positions_BT: jax.Array, d_model: int) -> jax.Array:
    """Sines in the first half of D, cosines in the second, float32 [B, T, D].

    The rates are those of arXiv:1706.03762, section 3.5. The paper interleaves sines and cosines;
    its released code and Marian do not, which is the same model with D in another order.
    """
    # Powers in float64 on the host, rounded once.
    rates = jnp.asarray(10000.0 ** (-np.arange(0, d_model, 2) / d_model), jnp.float32)
    angles_BTh = positions_BT[:, :, None].astype(jnp.float32) * rates[None, None, :]
    return jnp.concatenate([jnp.sin(angles_BTh), jnp.cos(angles_BTh)], axis=-1)


def relative_specs(c: ModelConfig, start: Initial) -> Tree:
    """Score offsets [32, N] for each bucket of distances and head; all layers of a stack share
    them."""
    return {"table": Spec((BUCKETS, c.heads), ("bucket", "heads"), start.position)}


@scope("embed")
def relative_bias(
    p: Tree,
    q_positions_BT: jax.Array,
    k_positions_BS: jax.Array,
    *,
    causal: bool,
    adjacent: bool = False,
) -> jax.Array | DistanceBias:
    """Offsets added to the scores, float32 [B, N, T, S] (arXiv:1910.10683, section 2.1).

    `adjacent` says that queries and keys are the tokens of packed rows. Distances within a text are
    then those of indices, so accelerators take offsets by distance: [1, N, T, S], and in long rows
    a `DistanceBias`. Pairs of two texts, which nobody sees, have other offsets in them."""
    table_bN = gather(p["table"].astype(jnp.float32))
    T, S = q_positions_BT.shape[1], k_positions_BS.shape[1]
    split = local_shape(q_positions_BT)[1] < T
    if adjacent and not split and platform() != "cpu":
        one_hot_Wb = jax.nn.one_hot(_bucket(jnp.arange(1 - T, S), causal), BUCKETS)
        bias = DistanceBias(contract("Wb,bN->NW", one_hot_Wb, table_bN), T)
        # Of a short row the offsets are written out once, for all layers of the stack.
        return bias if chunked.serves(T, S, split) else bias.dense()
    # Queries may be split along T over devices; each query needs the distance to every key.
    distance_BTS = gather_axis(k_positions_BS, axis=1)[:, None, :] - q_positions_BT[:, :, None]
    # A product with one-hots, whose gradient is a product too, and no scatter over T * S ids.
    one_hot_BTSb = jax.nn.one_hot(_bucket(distance_BTS, causal), BUCKETS)
    return contract("BTSb,bN->BNTS", one_hot_BTSb, table_bN)


def _bucket(distance: jax.Array, causal: bool) -> jax.Array:
    """The bucket of each distance (key minus query position): half of the buckets are for one
    distance each, the others grow logarithmically up to FARTHEST. Without causality, keys before
    and after the query each have half of the buckets."""
    buckets, offset = BUCKETS, 0
    if causal:
        distance = jnp.maximum(-distance, 0)
    else:
        buckets //= 2
        offset = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    # Near distances matter one by one, far ones only by their magnitude.
    exact = buckets // 2
    # The logarithm is only used from `exact` on; the maximum keeps it finite below.
    far = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(FARTHEST / exact)
    far = jnp.minimum(exact + (far * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)
