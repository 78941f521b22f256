"""One layer of a transformer.

Its branches (self-attention, cross-attention in the decoder of an encoder-decoder, feed-forward)
each read the residual stream and add to it.

Letters: B batch, T query time, S key time, D model, L layers.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from research.models import latent, layers, mixture
from research.models.adapters import bottleneck
from research.models.config import Execution, LayerLosses, ModelConfig
from research.models.context import LayerContext
from research.models.initial import Initial
from research.models.kv import KVCache
from research.models.spec import Spec, ones
from research.models.spec import stack as stack_specs
from research.parallel.placement import local_shape, merge_axes, split_axis
from research.scopes import scope
from research.tree import Tree


def layer_specs(c: ModelConfig, start: Initial, count: int, cross: bool) -> Tree:
    """Specs of `count` stacked layers: `attention`, `cross` if asked for, `mlp`, and the norms of
    each (`attention_norm`, with `branch_norm` also or only `attention_out_norm`, ...)."""
    # In the order in which they run, which is also that of the parameter tree.
    attention_specs = latent.latent_specs if c.kv_latent else layers.attention_specs
    branches = {"attention": attention_specs(c, start)}
    if cross:
        branches["cross"] = layers.attention_specs(c, start)
    # A mixture of experts has the same name, so that schedules and adapters find it by one path.
    feed_forward = mixture.moe_specs if c.experts else layers.mlp_specs
    branches["mlp"] = feed_forward(c, start)
    specs = dict(branches)
    for name in branches:
        if c.norm_before:
            specs[f"{name}_norm"] = layers.norm_specs(c)
        if c.branch_norm:
            specs[f"{name}_out_norm"] = layers.norm_specs(c)
        if c.layer_scale:
            specs[f"{name}_scale"] = Spec((c.d_model,), ("vector",), ones)
    return stack_specs(specs, count)


def block(
    p: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    context: LayerContext,
    *,
    kind: str,
    index: jax.Array | int = 0,
    cache: KVCache | None = None,
) -> tuple[jax.Array, KVCache | None, LayerLosses]:
    """(states [B, T, D] after the layer, the cache with its keys and values, its losses by name).

    `kind` chooses the layer's entry of `context.kinds`; `index` is its number in the stack.
    """
    attention_key, cross_key, mlp_key = context.dropout_keys(index)
    losses: LayerLosses = {}
    start_BTD = x_BTD  # what both branches of a parallel layer read
    with scope("attention"):
        y_BTD = _branch_input(p, "attention", x_BTD, c, index)
        attend = latent.latent_attention if c.kv_latent else layers.attention
        of_layer = {"layer": index, "cache": cache, "implementation": execution.attention}
        y_BTD, cache = attend(
            p["attention"], y_BTD, c, context.kinds[kind], bias=context.bias, **of_layer
        )
        x_BTD = _add_branch(p, "attention", x_BTD, y_BTD, c, attention_key)

    # Only the decoder of an encoder-decoder has the parameters of this branch.
    if "cross" in p:
        with scope("cross"):
            y_BTD = _branch_input(p, "cross", x_BTD, c)
            memory, visible = _layer_of(context.memory_LBSKH, index), context.memory_visibility
            y_BTD = layers.cross_attention(
                p["cross"], y_BTD, c, memory, visible, implementation=execution.attention
            )
            x_BTD = _add_branch(p, "cross", x_BTD, y_BTD, c, cross_key)

    with scope("moe" if c.experts else "mlp"):
        y_BTD = _branch_input(p, "mlp", start_BTD if c.parallel else x_BTD, c)
        if c.experts:
            y_BTD, losses = mixture.moe(p["mlp"], y_BTD, c, context.counted_BT, execution.experts)
        else:
            y_BTD = by_tokens(partial(layers.mlp, p["mlp"], c=c), y_BTD, execution.feed_tokens)
        x_BTD = _add_branch(p, "mlp", x_BTD, y_BTD, c, mlp_key)
    return x_BTD, cache, losses


def _branch_input(
    p: Tree, name: str, x_BTD: jax.Array, c: ModelConfig, index: jax.Array | int = 0
) -> jax.Array:
    """The input of a branch of layer `index`: the normalised residual stream (pre-norm), or the
    stream itself where the norm follows the sum (`norm_after`, post-norm as in BERT) or the branch
    (OLMo 2), and in the first attention without `first_norm`."""
    if c.norm_after or not c.norm_before:
        return x_BTD
    y_BTD = layers.norm(p[f"{name}_norm"], x_BTD, c)
    if c.first_norm or name != "attention":
        return y_BTD
    # The layers of a scan are one program, so the first is told apart by its number.
    return jnp.where(jnp.equal(index, 0), x_BTD, y_BTD)


def _add_branch(
    p: Tree, name: str, x_BTD: jax.Array, y_BTD: jax.Array, c: ModelConfig, key: jax.Array | None
) -> jax.Array:
    """The residual stream [B, T, D] plus a branch's output `y_BTD`, which first goes through the
    branch's bottleneck adapter, its output norm, its scale and dropout, where the model has
    them."""
    # The bottleneck comes first, so that the norm of a Gemma layer also bounds what it adds.
    if f"{name}_adapter" in p:
        y_BTD = bottleneck(p[f"{name}_adapter"], y_BTD, layers.ACTIVATIONS[c.activation])
    if c.branch_norm:
        y_BTD = layers.norm(p[f"{name}_out_norm"], y_BTD, c)
    if c.branch_scale != 1.0:
        y_BTD = y_BTD * jnp.asarray(c.branch_scale, y_BTD.dtype)
    if c.layer_scale:
        y_BTD = y_BTD * p[f"{name}_scale"].astype(y_BTD.dtype)[None, None]
    x_BTD = x_BTD + layers.dropout(y_BTD, c.dropout, key)
    return layers.norm(p[f"{name}_norm"], x_BTD, c) if c.norm_after else x_BTD


def _layer_of(stacked, index: jax.Array | int):
    """Layer `index` of arrays stacked over layers; `index` may be traced, as it is in a scan."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), stacked)


def by_tokens(
    function: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, tokens: int
) -> jax.Array:
    """`function(x_BTD)` in chunks of at most `tokens` tokens of a device, one after the other; all
    at once for 0.

    `function` must treat each token alone. A chunk is recomputed in the backward pass, so the
    hidden states of a wide feed-forward network exist for one chunk at a time.
    """
    B, T, _ = local_shape(x_BTD)
    # Chunks are cut along T, which a mesh with a context axis has cut already.
    if not tokens or B * T <= tokens or T != x_BTD.shape[1]:
        return function(x_BTD)
    # At least one token of each row goes at a time, also where the batch alone exceeds `tokens`.
    size = max(1, tokens // B)
    # Padding to whole chunks is safe since each token is treated alone; it is cut off at the end.
    added = -T % size
    filled_BTD = jnp.pad(x_BTD, ((0, 0), (0, added), (0, 0))) if added else x_BTD
    chunks_nBtD = jnp.moveaxis(split_axis(filled_BTD, 1, (T + added) // size), 1, 0)
    # Without the checkpoint the scan would save the hidden states of every chunk, which are the
    # memory that chunks are meant to save.
    step = jax.checkpoint(lambda _, chunk_BtD: (None, function(chunk_BtD)))
    _, y_nBtD = jax.lax.scan(step, None, chunks_nBtD)
    return merge_axes(jnp.moveaxis(y_nBtD, 0, 1), 1)[:, :T]
