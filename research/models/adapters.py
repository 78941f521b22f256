"""Adapters that add parameters to a model: bottlenecks, a prefix, or a prompt.

    bottleneck   y + activation(y down) up, where y is what a layer's attention or feed-forward
                 adds to the residual stream (arXiv:1902.00751)
    prefix       trained keys and values before those of the tokens, in every layer
                 (arXiv:2101.00190)
    prompt       trained embeddings before those of the tokens (arXiv:2104.08691)

A prefix or prompt of n virtual tokens takes the positions 0 to n - 1 before every document, also
before each document of a packed row; the tokens' positions start at n. In a layer with a window,
virtual tokens go out of sight like any others.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from research.models.config import ModelConfig
from research.models.initial import initial
from research.models.kv import Prefix
from research.models.spec import Spec, normal, zeros
from research.models.spec import stack as stack_specs
from research.ops.attention import EVERYONE, Visibility
from research.ops.einsum import add_bias, einsum
from research.parallel.placement import gather_axis, partition_spec, reshard_to
from research.scopes import scope
from research.tree import Tree

# The branches of a layer that a bottleneck follows: arXiv:1902.00751, figure 2; arXiv:2005.00247,
# section 3.
PLACEMENTS = {"houlsby": ("attention", "cross", "mlp"), "pfeiffer": ("mlp",)}


def bottleneck_specs(c: ModelConfig, size: int, placement: str = "pfeiffer") -> Tree:
    """Specs of bottlenecks of `size` M in every layer: `layers/mlp_adapter/down` [L, D, M], `up`
    [L, M, D] and their biases. `up` starts at zero, so an untrained bottleneck is the identity.
    ValueError for an unknown placement and a size outside 1..D."""
    if placement not in PLACEMENTS:
        raise ValueError(f"placement={placement!r}; choose one of {', '.join(PLACEMENTS)}")
    if not 1 <= size <= c.d_model:
        raise ValueError(
            f"bottlenecks of {size} must lie in 1..{c.d_model}, the width of the model; "
            "set a lower size"
        )
    # "vector" axes are never split: M is small, and a device needs all of it.
    D, M = c.d_model, size
    one = {
        "down": Spec((D, M), ("embed", "vector"), normal(0.01)),  # arXiv:1902.00751, section 3.6
        "down_bias": Spec((M,), ("vector",), zeros),
        "up": Spec((M, D), ("vector", "embed"), zeros),
        "up_bias": Spec((D,), ("vector",), zeros),
    }

    def _layers(count: int, cross: bool) -> Tree:
        branches = [name for name in PLACEMENTS[placement] if name != "cross" or cross]
        return {"layers": stack_specs({f"{name}_adapter": dict(one) for name in branches}, count)}

    # Only the decoder of an encoder-decoder has cross-attention.
    if c.kind == "encoder_decoder":
        return {**_layers(c.layers, True), "encoder": _layers(c.encoder_layers, False)}
    behind = _layers(c.layers - c.dense_layers, False)
    return {**behind, "dense": _layers(c.dense_layers, False)} if c.dense_layers else behind


@scope("adapter")
def bottleneck(
    p: Tree, y_BTD: jax.Array, activation: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """`y_BTD` plus its correction, activation(y down + b) up + b', [B, T, D]."""
    # arXiv:1902.00751, figure 2: project down, activate, project up, and add to the input.
    hidden_BTM = activation(add_bias(einsum("BTD,DM->BTM", y_BTD, p["down"]), p["down_bias"]))
    return y_BTD + add_bias(einsum("BTM,MD->BTD", hidden_BTM, p["up"]), p["up_bias"])


def prefix_specs(c: ModelConfig, tokens: int) -> Tree:
    """Specs of `layers/attention/prefix_key` and `prefix_value` [L, n, K, H] for n = `tokens`; in
    an encoder-decoder also those of the encoder. The keys are used without rotation. ValueError
    unless n is positive."""
    _positive(tokens)
    check_heads(c)
    # Without rotation because a virtual token never moves: its key turned by the angle of its
    # position is only another trained key.
    axes = ("virtual", "kv_heads", "head")
    one = Spec((tokens, c.kv_heads, c.head_size), axes, normal(c.init_std), kind="table")

    def _layers(count: int) -> Tree:
        return {
            "layers": {"attention": stack_specs({"prefix_key": one, "prefix_value": one}, count)}
        }

    if c.kind != "encoder_decoder":
        return _layers(c.layers)
    return {**_layers(c.layers), "encoder": _layers(c.encoder_layers)}


def prompt_specs(c: ModelConfig, tokens: int) -> Tree:
    """Specs of `prompt/table` [n, D] for n = `tokens`: the embeddings of the virtual tokens.
    ValueError unless n is positive and the model a decoder."""
    _positive(tokens)
    _decoder(c)
    check_heads(c)
    table = Spec((tokens, c.d_model), ("virtual", "embed"), initial(c).embedding, kind="table")
    return {"prompt": {"table": table}}


def virtual_tokens(params: Tree) -> int:
    """Number of virtual tokens before every text: rows of the prompt table or, without one, keys of
    a layer's prefix; 0 without either."""
    # Decided by the tree and not by a config: adapters may be attached to any model.
    if "prompt" in params:
        return params["prompt"]["table"].shape[0]
    layers = params.get("layers", {})
    # Layers are one stacked tree in training and a tuple of trees in decoding. All have prefixes
    # of the same length, so the first layer is enough.
    prefix = (
        (layers[0] if isinstance(layers, tuple) else layers).get("attention", {}).get("prefix_key")
    )
    # [L, n, K, H] stacked, [n, K, H] in a tuple: n is the third axis from the end.
    return 0 if prefix is None else prefix.shape[-3]


def check_prompt(c: ModelConfig, params: Tree) -> None:
    """ValueError for a prompt whose width is not the model's, in a model that is no decoder, or
    together with a prefix."""
    _decoder(c)
    table_SD = params["prompt"]["table"]
    if table_SD.ndim != 2 or table_SD.shape[1] != c.d_model:
        raise ValueError(
            f"prompt/table {table_SD.shape} wants rows of {c.d_model}; "
            "it was made for another model"
        )
    # `Model.prompted` turns the prompt into a prefix, which would overwrite this one.
    if virtual_tokens({"layers": params["layers"]}):
        raise ValueError(
            "prompt/table stands beside layers/attention/prefix_key; take one of the two"
        )


def add_prefix(params: Tree, key_LSKH: jax.Array, value_LSKH: jax.Array) -> Tree:
    """`params`, whose layers are stacked or a tuple, with these keys and values as the prefix of
    each layer."""

    # New dicts around the same arrays: the caller's tree stays as it is.
    def _added(p: Tree, key, value) -> Tree:
        return {**p, "attention": {**p["attention"], "prefix_key": key, "prefix_value": value}}

    layers = params["layers"]
    # A stack takes the arrays whole; a tuple takes a layer's slice each.
    stacked = not isinstance(layers, tuple)
    layers = (
        _added(layers, key_LSKH, value_LSKH)
        if stacked
        else tuple(map(_added, layers, key_LSKH, value_LSKH))
    )
    return {**params, "layers": layers}


def prefix_of(p: Tree, c: ModelConfig) -> Prefix | None:
    """The keys and values [n, K, H] of a layer's prefix; None without one. ValueError for a prefix
    that was made for another model."""
    if "prefix_key" not in p:
        return None
    # Inside a layer the stacked axis is gone, so a layer's own shape is compared.
    for name in ("prefix_key", "prefix_value"):
        if p[name].ndim != 3 or p[name].shape[1:] != (c.kv_heads, c.head_size):
            raise ValueError(
                f"layers/attention/{name} {p[name].shape} wants (n, {c.kv_heads}, {c.head_size}) "
                "a layer; it was made for another model"
            )
    return p["prefix_key"], p["prefix_value"]


def with_prefix(
    prefix: Prefix | None, k_BSKH: jax.Array, v_BSKH: jax.Array, visibility: Visibility
) -> tuple[jax.Array, jax.Array, Visibility]:
    """(keys [B, n + S, K, H], values, visibility) with the prefix's n tokens in front of every row;
    the arguments unchanged where `prefix` is None.

    Every document of a row sees the prefix. Kernels and the blocked form know documents that see
    only themselves, so attention takes the plain XLA form here.
    """
    if prefix is None:
        return k_BSKH, v_BSKH, visibility
    key_nKH, value_nKH = prefix
    length = key_nKH.shape[0]
    # The tokens' own positions start at n, so positions 0..n-1 make the prefix the past of every
    # query under a causal mask, and let a window pass over it as over any tokens.
    positions_BS = in_front(jnp.arange(length, dtype=jnp.int32), visibility.k_positions_BS)
    segments_BS = in_front(jnp.full(length, EVERYONE, jnp.int32), visibility.k_segments_BS)
    seen = replace(
        visibility,
        k_positions_BS=positions_BS,
        k_segments_BS=segments_BS,
        packed=False,
        shared=True,
    )
    return in_front(key_nKH, k_BSKH), in_front(value_nKH, v_BSKH), seen


def in_front(first: jax.Array, rows: jax.Array) -> jax.Array:
    """`rows` [B, S, ...] with `first` [n, ...] in front of every row, [B, n + S, ...], placed and
    typed as the rows."""
    # A mesh may split S, into which the first tokens are inserted.
    rows = gather_axis(jnp.asarray(rows), axis=1)
    copies = jnp.broadcast_to(first.astype(rows.dtype)[None], (rows.shape[0], *first.shape))
    return jnp.concatenate([reshard_to(copies, partition_spec(rows)), rows], axis=1)


def _decoder(c: ModelConfig) -> None:
    if c.kind != "decoder":
        raise ValueError(
            f"a prompt is for decoders and the model is an {c.kind}, where virtual tokens see the "
            "text, so that the documents of a packed row could not share them; take a prefix"
        )


def check_heads(c: ModelConfig) -> None:
    """ValueError for a model whose layers cannot all have virtual tokens' keys and values."""
    if c.kv_latent or c.dense_layers:
        raise ValueError(
            "virtual tokens are keys and values of the heads of one stack of layers, which a model "
            "with model.kv_latent or model.dense_layers does not have; take lora or a bottleneck"
        )


def _positive(tokens: int) -> None:
    if tokens < 1:
        raise ValueError(f"tokens={tokens} must be positive; set the number of virtual tokens")
