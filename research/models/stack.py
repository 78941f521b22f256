"""A stack of layers with equal shapes, run by a scan over their stacked parameters.

Parameters are stacked whether the scan is unrolled or not, so a checkpoint never depends on how it
was run. Layers of different kinds, such as those with and without a window, alternate in a fixed
pattern, and one step of the scan then runs one whole period of it: a kernel wants its window as a
constant of the program.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research.devices.backend import platform
from research.models.block import block
from research.models.config import Execution, ModelConfig
from research.models.context import LayerContext, layer_pattern
from research.models.kv import KVCache
from research.parallel.placement import split_axis
from research.tree import Tree


def run(
    p_layers: Tree | tuple[Tree, ...],
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    context: LayerContext,
    cache: KVCache | None = None,
) -> tuple[jax.Array, KVCache | None, jax.Array]:
    """The states after the last layer, the cache with what was written, and the load-balancing loss
    averaged over layers.

    `p_layers` is a tree of stacked layers, or a tuple with a tree for each, which is run unrolled.
    The tokens must have been entered in the cache.
    """
    pattern = layer_pattern(c)
    count = len(p_layers) if isinstance(p_layers, tuple) else layer_count(p_layers)

    def one_layer(kind, carry, layer):
        x_BTD, cache, balance = carry
        p, index = layer
        x_BTD = checkpoint_name(x_BTD, "residual")
        x_BTD, cache, layer_balance = block(
            p, x_BTD, c, execution, context, kind=kind, index=index, cache=cache
        )
        return (x_BTD, cache, balance + layer_balance), None

    # Each layer is a step of recomputation, also where the scan's step is a period of several.
    steps = [_remat(partial(one_layer, kind), execution.remat) for kind in pattern]
    carry = (x_BTD, cache, jnp.zeros((), jnp.float32))
    unroll = min(execution.unroll or count, count)
    scanned = 0
    if not isinstance(p_layers, tuple) and unroll < count:
        scanned = count - count % len(pattern)
        carry = _scan(steps, carry, p_layers, scanned, max(1, unroll // len(pattern)))
    for index in range(scanned, count):
        carry, _ = steps[index % len(steps)](carry, (layer_of(p_layers, index), index))
    x_BTD, cache, balance = carry
    return x_BTD, cache, balance / count


def _scan(steps: list[Callable], carry: tuple, p_layers: Tree, count: int, unroll: int) -> tuple:
    """The carry after the first `count` of the stacked layers, a multiple of the number of
    steps."""
    indices, period = jnp.arange(count), len(steps)
    if period == 1:
        return jax.lax.scan(steps[0], carry, (p_layers, indices), unroll=unroll)[0]

    def one_period(carry, layers):
        p_period, indices = layers
        for at, step in enumerate(steps):
            carry, _ = step(carry, (layer_of(p_period, at), indices[at]))
        return carry, None

    periods = jax.tree.map(lambda w: split_axis(w[:count], 0, count // period), p_layers)
    indices = indices.reshape(-1, period)
    return jax.lax.scan(one_period, carry, (periods, indices), unroll=unroll)[0]


def layer_count(p_layers: Tree) -> int:
    """How many layers a tree of stacked layers has."""
    return jax.tree.leaves(p_layers)[0].shape[0]


def layer_of(p_layers: Tree | tuple[Tree, ...], index: int) -> Tree:
    """The parameters of one layer, from layers as `run` takes them."""
    if isinstance(p_layers, tuple):
        return p_layers[index]
    return jax.tree.map(lambda w: w[index], p_layers)


def each(function: Callable[[Tree], Tree], p_layers: Tree | tuple[Tree, ...]) -> Tree:
    """`function` of every layer's parameters, results stacked; the layers as `run` takes them."""
    if isinstance(p_layers, tuple):
        return jax.tree.map(lambda *results: jnp.stack(results), *map(function, p_layers))
    return jax.vmap(function)(p_layers)


def _remat(body: Callable, policy: str) -> Callable:
    """`body` that keeps for its backward pass what the policy names, see `Execution`."""
    policies = jax.checkpoint_policies
    if policy == "none":
        return body
    if policy == "full" or (policy == "offload" and platform() == "cpu"):
        return jax.checkpoint(body, prevent_cse=False)
    if policy == "dots":
        # A kernel is no matrix product to the policy, so what it saves under its name is asked for
        # by name.
        kept = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("attention")
        )
        return jax.checkpoint(body, prevent_cse=False, policy=kept)
    offload = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["residual"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(body, prevent_cse=False, policy=offload)
