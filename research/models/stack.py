"""A stack of equal layers, run by a scan over their stacked parameters.

Parameters are stacked whether the scan is unrolled or not, so a checkpoint never depends on how it
was run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research.devices.backend import platform
from research.models import layers
from research.models.adapters import bottleneck
from research.models.cache import Cache, LayerCache
from research.models.config import Execution, ModelConfig
from research.models.initial import Initial
from research.models.spec import stack as stack_specs
from research.ops.attention import Visibility
from research.parallel.placement import divide, local_shape, unite
from research.tree import Tree


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "visibility",
        "counted_BT",
        "rotation",
        "bias_BNTS",
        "memory_LBSKH",
        "memory_visibility",
        "key",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Surroundings:
    """What every layer of a stack shares: masks, rotations, biases, the encoder's memory, the
    dropout key."""

    visibility: Visibility
    counted_BT: jax.Array
    rotation: tuple[jax.Array, jax.Array] | None = None
    bias_BNTS: jax.Array | None = None
    memory_LBSKH: tuple[jax.Array, jax.Array] | None = (
        None  # cross-attention keys and values of all layers
    )
    memory_visibility: Visibility | None = None
    key: jax.Array | None = None


def layer_specs(c: ModelConfig, start: Initial, count: int, cross: bool) -> Tree:
    """Specs of `count` stacked layers: attention, cross-attention where asked for, feed-forward,
    and their norms."""
    specs = {
        "attention": layers.attention_specs(c, start),
        "attention_norm": layers.norm_specs(c),
        "mlp": layers.mlp_specs(c, start),
        "mlp_norm": layers.norm_specs(c),
    }
    if cross:
        specs["cross"] = layers.attention_specs(c, start)
        specs["cross_norm"] = layers.norm_specs(c)
    return stack_specs(specs, count)


def run(
    p_layers: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    shared: Surroundings,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None, jax.Array]:
    """The stack's output, the cache with what was written, and the load-balancing loss averaged
    over layers.

    `p_layers` is a tree of stacked layers, or a tuple with a tree for each, which is run unrolled.
    """
    apart = isinstance(p_layers, tuple)
    count = len(p_layers) if apart else jax.tree.leaves(p_layers)[0].shape[0]
    slots_BT = None
    if cache is not None:
        segments_BT = shared.visibility.q_segments_BT
        slots_BT = cache.places(shared.visibility.q_positions_BT, segments_BT)
        cache = cache.claim(shared.visibility.q_positions_BT, segments_BT)
        shared = replace(
            shared,
            visibility=replace(
                shared.visibility,
                k_positions_BS=cache.positions_BS,
                k_segments_BS=cache.segments_BS,
            ),
        )

    def body(carry, layer):
        x_BTD, cache, balance = carry
        p, index = layer
        x_BTD = checkpoint_name(x_BTD, "residual")
        view = None if cache is None else LayerCache(cache, index, slots_BT)
        x_BTD, view, layer_balance = block(p, x_BTD, c, execution, shared, index, view)
        return (x_BTD, None if view is None else view.cache, balance + layer_balance), None

    carry = (x_BTD, cache, jnp.zeros((), jnp.float32))
    body = _remat(body, execution.remat)
    unroll = min(execution.unroll or count, count)
    if apart or unroll == count:
        for index in range(count):
            p = p_layers[index] if apart else jax.tree.map(lambda w: w[index], p_layers)
            carry, _ = body(carry, (p, index))
    else:
        carry, _ = jax.lax.scan(body, carry, (p_layers, jnp.arange(count)), unroll=unroll)
    x_BTD, cache, balance = carry
    return x_BTD, cache, balance / count


def each(function: Callable[[Tree], Tree], p_layers: Tree) -> Tree:
    """`function` of every layer's parameters, results stacked; the layers as `run` takes them."""
    if isinstance(p_layers, tuple):
        return jax.tree.map(lambda *results: jnp.stack(results), *map(function, p_layers))
    return jax.vmap(function)(p_layers)


def block(
    p: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    shared: Surroundings,
    index: jax.Array | int,
    cache: LayerCache | None,
) -> tuple[jax.Array, LayerCache | None, jax.Array]:
    """One layer: attention, cross-attention where there is a memory, feed-forward; each in its
    residual branch."""
    keys = (
        [None] * 3
        if shared.key is None
        else list(jax.random.split(jax.random.fold_in(shared.key, index), 3))
    )

    def residual(x_BTD, p_norm, key, branch):
        if c.norm_after:
            return layers.norm(p_norm, x_BTD + layers.dropout(branch(x_BTD), c.dropout, key), c)
        return x_BTD + layers.dropout(branch(layers.norm(p_norm, x_BTD, c)), c.dropout, key)

    balance = jnp.zeros((), jnp.float32)

    def adapted(part, y_BTD):
        p_adapter = p.get(f"{part}_adapter")
        return (
            y_BTD
            if p_adapter is None
            else bottleneck(p_adapter, y_BTD, layers.ACTIVATIONS[c.activation])
        )

    def attend(x_BTD):
        nonlocal cache
        y_BTD, cache = layers.attention(
            p["attention"],
            x_BTD,
            c,
            shared.visibility,
            rotation=shared.rotation,
            bias_BNTS=shared.bias_BNTS,
            cache=cache,
            implementation=execution.attention,
        )
        return adapted("attention", y_BTD)

    def attend_memory(x_BTD):
        memory = jax.tree.map(
            lambda kv: jax.lax.dynamic_index_in_dim(kv, index, keepdims=False), shared.memory_LBSKH
        )
        y_BTD, _ = layers.attention(
            p["cross"],
            x_BTD,
            c,
            shared.memory_visibility,
            memory=memory,
            implementation=execution.attention,
        )
        return adapted("cross", y_BTD)

    def feed(x_BTD):
        nonlocal balance
        if c.experts:
            y_BTD, balance = layers.moe(p["mlp"], x_BTD, c, shared.counted_BT)
        else:
            y_BTD = in_parts(partial(layers.mlp, p["mlp"], c=c), x_BTD, execution.feed_tokens)
        return adapted("mlp", y_BTD)

    x_BTD = residual(x_BTD, p["attention_norm"], keys[0], attend)
    if "cross" in p:
        x_BTD = residual(x_BTD, p["cross_norm"], keys[1], attend_memory)
    x_BTD = residual(x_BTD, p["mlp_norm"], keys[2], feed)
    return x_BTD, cache, balance


def in_parts(
    function: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, tokens: int
) -> jax.Array:
    """`function` of each token's state, of at most so many of a device's tokens at a time (0: of
    all), the rest waiting."""
    B, T, _ = local_shape(x_BTD)
    if not tokens or B * T <= tokens or T != x_BTD.shape[1]:
        return function(x_BTD)
    size = max(1, tokens // B)
    added = -T % size
    filled_BTD = jnp.pad(x_BTD, ((0, 0), (0, added), (0, 0))) if added else x_BTD
    parts = jnp.moveaxis(divide(filled_BTD, 1, (T + added) // size), 1, 0)
    _, y = jax.lax.scan(jax.checkpoint(lambda _, part: (None, function(part))), None, parts)
    return unite(jnp.moveaxis(y, 0, 1), 1)[:, :T]


def _remat(body: Callable, policy: str) -> Callable:
    """`body` that keeps for its backward pass what the policy names."""
    policies = jax.checkpoint_policies
    if policy == "none":
        return body
    if policy == "full" or (policy == "offload" and platform() == "cpu"):
        return jax.checkpoint(body, prevent_cse=False)
    if policy == "dots":
        # A kernel is no matrix product to the policy, so what it saves under its name is asked for
        # by name.
        dots, kernel = (
            policies.dots_with_no_batch_dims_saveable,
            policies.save_only_these_names("attention"),
        )
        return jax.checkpoint(
            body, prevent_cse=False, policy=policies.save_from_both_policies(dots, kernel)
        )
    offload = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["residual"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(body, prevent_cse=False, policy=offload)
