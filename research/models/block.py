"""One layer of a transformer: branches of attention, of cross-attention where there is a memory,
and of a feed-forward network, each added to the residual stream.

Letters: B batch, T query time, S key time, D model, L layers.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from research.models import layers
from research.models.adapters import bottleneck
from research.models.config import Execution, ModelConfig
from research.models.context import LayerContext
from research.models.initial import Initial
from research.models.kv import KVCache
from research.models.spec import stack as stack_specs
from research.parallel.placement import local_shape, merge_axes, split_axis
from research.tree import Tree


def layer_specs(c: ModelConfig, start: Initial, count: int, cross: bool) -> Tree:
    """Specs of `count` stacked layers: attention, cross-attention where asked for, feed-forward,
    and their norms."""
    branches = {"attention": layers.attention_specs(c, start)}
    if cross:
        branches["cross"] = layers.attention_specs(c, start)
    branches["mlp"] = layers.mlp_specs(c, start)
    specs = dict(branches)
    for name in branches:
        specs[f"{name}_norm"] = layers.norm_specs(c)
        if c.branch_norm:
            specs[f"{name}_out_norm"] = layers.norm_specs(c)
    return stack_specs(specs, count)


def block(
    p: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    context: LayerContext,
    *,
    kind: int = 0,
    index: jax.Array | int = 0,
    cache: KVCache | None = None,
) -> tuple[jax.Array, KVCache | None, jax.Array]:
    """(states [B, T, D] after a layer, the cache with its keys and values, load-balancing loss).

    `kind` chooses among `context.kinds`; `index` is the layer's number in cache and dropout.
    """
    attention_key, cross_key, mlp_key = context.dropout_keys(index)
    balance = jnp.zeros((), jnp.float32)

    with jax.named_scope("attention"):
        y_BTD = _branch_input(p, "attention", x_BTD, c)
        y_BTD, cache = layers.attention(
            p["attention"],
            y_BTD,
            c,
            context.kinds[kind],
            bias_BNTS=context.bias_BNTS,
            layer=index,
            cache=cache,
            implementation=execution.attention,
        )
        x_BTD = _add_branch(p, "attention", x_BTD, y_BTD, c, attention_key)

    if "cross" in p:
        with jax.named_scope("cross"):
            y_BTD = _branch_input(p, "cross", x_BTD, c)
            memory, visible = _layer_of(context.memory_LBSKH, index), context.memory_visibility
            y_BTD = layers.cross_attention(
                p["cross"], y_BTD, c, memory, visible, implementation=execution.attention
            )
            x_BTD = _add_branch(p, "cross", x_BTD, y_BTD, c, cross_key)

    with jax.named_scope("moe" if c.experts else "mlp"):
        y_BTD = _branch_input(p, "mlp", x_BTD, c)
        if c.experts:
            y_BTD, balance = layers.moe(p["mlp"], y_BTD, c, context.counted_BT)
        else:
            y_BTD = by_tokens(partial(layers.mlp, p["mlp"], c=c), y_BTD, execution.feed_tokens)
        x_BTD = _add_branch(p, "mlp", x_BTD, y_BTD, c, mlp_key)
    return x_BTD, cache, balance


def _branch_input(p: Tree, name: str, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """What a branch reads: the residual stream, normalised unless the norm comes after the sum."""
    return x_BTD if c.norm_after else layers.norm(p[f"{name}_norm"], x_BTD, c)


def _add_branch(
    p: Tree, name: str, x_BTD: jax.Array, y_BTD: jax.Array, c: ModelConfig, key: jax.Array | None
) -> jax.Array:
    """The residual stream with what a branch gives: through its adapter, its norm and dropout, as
    far as the model has them."""
    if f"{name}_adapter" in p:
        y_BTD = bottleneck(p[f"{name}_adapter"], y_BTD, layers.ACTIVATIONS[c.activation])
    if c.branch_norm:
        y_BTD = layers.norm(p[f"{name}_out_norm"], y_BTD, c)
    x_BTD = x_BTD + layers.dropout(y_BTD, c.dropout, key)
    return layers.norm(p[f"{name}_norm"], x_BTD, c) if c.norm_after else x_BTD


def _layer_of(stacked, index: jax.Array | int):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), stacked)


def by_tokens(
    function: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, tokens: int
) -> jax.Array:
    """`function`, which treats each token alone, over at most `tokens` of a device's tokens at a
    time, one part after the other (0: all at once). A part is computed again for its gradient."""
    B, T, _ = local_shape(x_BTD)
    if not tokens or B * T <= tokens or T != x_BTD.shape[1]:
        return function(x_BTD)
    size = max(1, tokens // B)
    added = -T % size
    filled_BTD = jnp.pad(x_BTD, ((0, 0), (0, added), (0, 0))) if added else x_BTD
    parts = jnp.moveaxis(split_axis(filled_BTD, 1, (T + added) // size), 1, 0)
    _, y = jax.lax.scan(jax.checkpoint(lambda _, part: (None, function(part))), None, parts)
    return merge_axes(jnp.moveaxis(y, 0, 1), 1)[:, :T]
