"""A stack of layers with equal shapes, run by a scan over their stacked parameters.

Parameters are stacked also where the scan is unrolled, so a checkpoint never depends on how the
layers were run. Layers of different kinds, such as local and global ones, follow a repeating
pattern, and a step of the scan runs one period of it: attention kernels need the window as a
constant of the program, which rules out a scan over all layers alike.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research.devices.backend import platform
from research.models.block import block
from research.models.config import Execution, LayerLosses, ModelConfig, layer_loss_weights
from research.models.context import LayerContext
from research.models.kinds import layer_pattern
from research.models.kv import KVCache
from research.parallel.placement import split_axis
from research.scopes import scope
from research.tree import Tree


@scope("layers")
def run(
    p_layers: Tree | tuple[Tree, ...],
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    context: LayerContext,
    cache: KVCache | None = None,
    first: int = 0,
    offset: jax.Array | int = 0,
) -> tuple[jax.Array, KVCache | None, LayerLosses]:
    """(states [B, T, D] after the last layer, the cache with the new keys and values, the layers'
    losses by name, each the mean over layers).

    `p_layers` is a tree of parameters stacked over layers, or a tuple with a tree for each layer,
    which always runs unrolled. Its first layer is number `first` + `offset` of the model; `offset`,
    full periods, may be traced. The caller has entered the tokens in `cache` (`KVCache.enter`).
    """
    pattern = layer_pattern(c)
    pattern = pattern[first % len(pattern) :] + pattern[: first % len(pattern)]
    count, number = layer_count(p_layers), first + offset

    def _one_layer(kind, carry, layer):
        x_BTD, cache, losses = carry
        p, index = layer
        # Named for the policy "offload" of `_remat`.
        x_BTD = checkpoint_name(x_BTD, "residual")
        x_BTD, cache, of_layer = block(
            p, x_BTD, c, execution, context, kind=kind, index=index, cache=cache
        )
        _check_losses(of_layer, losses)
        return (x_BTD, cache, {name: losses[name] + of_layer[name] for name in losses}), None

    # Recomputed layer by layer also where a step of the scan is a period of several layers: the
    # backward pass then needs the activations of one layer at a time.
    steps = [_remat(partial(_one_layer, kind), execution.remat) for kind in pattern]
    losses = {name: jnp.zeros((), jnp.float32) for name in layer_loss_weights(c)}
    carry = (x_BTD, cache, losses)
    unroll = min(execution.unroll or count, count)
    scanned = 0
    # A scan compiles one period of layers instead of all of them. Layers in a tuple are not
    # scanned, since their leaves may differ in type and form.
    if not isinstance(p_layers, tuple) and unroll < count:
        scanned = count - count % len(pattern)
        carry = _scan(steps, carry, p_layers, scanned, max(1, unroll // len(pattern)), number)
    # The layers after the last full period, or all of them where nothing is scanned.
    for index in range(scanned, count):
        carry, _ = steps[index % len(steps)](carry, (layer_of(p_layers, index), number + index))
    x_BTD, cache, losses = carry
    return x_BTD, cache, {name: value / count for name, value in losses.items()}


def _check_losses(of_layer: LayerLosses, wanted: LayerLosses) -> None:
    # A scan's carry keeps its structure, so all layers return the same losses.
    if of_layer.keys() != wanted.keys():
        raise ValueError(
            f"a layer returns the losses {sorted(of_layer)}, and the fields of ModelConfig "
            f"weigh {sorted(wanted)}; add a field for each to Regularization"
        )


def _scan(
    steps: list[Callable],
    carry: tuple,
    p_layers: Tree,
    count: int,
    unroll: int,
    first: jax.Array | int,
) -> tuple:
    """The carry after the first `count` stacked layers, 0 for none, which are numbered from `first`
    on. `steps` has a function for each layer of a period, and `count` is a multiple of their
    number."""
    if not count:
        return carry
    # The layer's number is scanned beside its parameters: dropout and the cache need it.
    indices, period = first + jnp.arange(count), len(steps)
    if period == 1:
        return jax.lax.scan(steps[0], carry, (p_layers, indices), unroll=unroll)[0]

    def _one_period(carry, layers):
        p_period, indices = layers
        for number, step in enumerate(steps):
            carry, _ = step(carry, (layer_of(p_period, number), indices[number]))
        return carry, None

    # [L, ...] to [periods, layers of a period, ...].
    periods = jax.tree.map(lambda w: split_axis(w[:count], 0, count // period), p_layers)
    indices = indices.reshape(-1, period)
    return jax.lax.scan(_one_period, carry, (periods, indices), unroll=unroll)[0]


def layer_count(p_layers: Tree | tuple[Tree, ...]) -> int:
    """How many layers there are, stacked or in a tuple."""
    if isinstance(p_layers, tuple):
        return len(p_layers)
    return jax.tree.leaves(p_layers)[0].shape[0]


def layer_of(p_layers: Tree | tuple[Tree, ...], index: int) -> Tree:
    """The parameters of one layer, of stacked layers or of a tuple."""
    if isinstance(p_layers, tuple):
        return p_layers[index]
    return jax.tree.map(lambda w: w[index], p_layers)


def each(function: Callable[[Tree], Tree], p_layers: Tree | tuple[Tree, ...]) -> Tree:
    """`function` of every layer's parameters, of stacked layers or of a tuple; its results are
    stacked over layers."""
    if isinstance(p_layers, tuple):
        return jax.tree.map(lambda *results: jnp.stack(results), *map(function, p_layers))
    # One batched product for all layers instead of one for each.
    return jax.vmap(function)(p_layers)


def _remat(body: Callable, policy: str) -> Callable:
    """`body` that saves for its backward pass only what `policy` says, one of `Execution.remat`."""
    policies = jax.checkpoint_policies
    # XLA then keeps whatever the backward pass reads. Only a run chooses for "auto".
    if policy in ("none", "auto"):
        return body
    # prevent_cse=False: in a scan, the forward and the backward pass are two loops, and XLA does
    # not merge equal computations of two loops. "offload" needs a memory beside the device's,
    # which a CPU does not have.
    if policy == "full" or (policy == "offload" and platform() == "cpu"):
        return jax.checkpoint(body, prevent_cse=False)
    if policy == "dots":
        # The policy sees matrix products, and a kernel is none: its outputs are saved by the name
        # that it gives them.
        saved = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("attention")
        )
        return jax.checkpoint(body, prevent_cse=False, policy=saved)
    # The named residual stream alone is saved, in pinned host memory; all else is recomputed.
    offload = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["residual"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(body, prevent_cse=False, policy=offload)
