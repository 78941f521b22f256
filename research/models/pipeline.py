"""A stack whose layers are spread over the mesh axis of stages, run as a pipeline.

Stage s of S holds the s-th part of the layers. A batch goes through in M micro-batches: in turn t
stage s runs micro-batch t - s and hands its states to the next stage, so a batch takes M + S - 1
turns, in S - 1 of which a stage has nothing to do (GPipe, arXiv:1811.06965, section 2.3). What it
computes then, on states of another micro-batch, is dropped. The backward pass is the derivative of
that loop: the same turns in reverse, with the gradients of all micro-batches summed.

One program serves all stages: it is `stack.run` mapped over them, so that whatever splits rows,
tokens or weights works within a stage as it does without stages.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.models import stack
from research.models.config import Execution, LayerLosses, ModelConfig
from research.models.context import LayerContext
from research.models.kinds import layer_pattern
from research.models.kv import KVCache
from research.parallel.axes import as_entry
from research.parallel.placement import (
    cut_rows,
    gather_axis,
    join_rows,
    local_shape,
    mesh_axes,
    partition_spec,
    spec_entries,
    unsharded,
)
from research.tree import Tree

AXIS = "stage"
# Micro-batches for each stage where none are asked for: a fifth of the turns is then lost at most.
_FOR_EACH_STAGE = 4

# What a batch's layers need beside its states, [B, T]; None for segments of rows that are texts.
Fields = Mapping[str, jax.Array | None]


def stages(p_layers: Tree | tuple[Tree, ...]) -> int:
    """The stages that stacked layers are spread over, 1 for layers that every device has whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if isinstance(p_layers, tuple) or unsharded():
        return 1
    leaves = jax.tree.leaves(p_layers)
    return mesh.shape[AXIS] if AXIS in mesh_axes(spec_entries(leaves[0])[0]) else 1


def micro_batches(asked: int, rows: int, stages: int) -> int:
    """Into how many micro-batches a batch is cut that has so many rows on the devices of one part
    of the rows: the number asked for, or for 0 the largest divisor of the rows up to four for each
    stage. ValueError for a number that does not divide the rows."""
    if asked:
        if rows % asked:
            raise ValueError(
                f"execution.micro_batches={asked} does not divide the {rows} rows that {stages} "
                "stages run together; set a divisor, or 0 to choose one"
            )
        return asked
    return max(n for n in range(1, _FOR_EACH_STAGE * stages + 1) if rows % n == 0)


def check(c: ModelConfig, asked: int, rows: int, stages: int) -> None:
    """ValueError for what cannot run as a pipeline of so many stages, which have `rows` rows of a
    batch together: `micro_batches`' reasons, two stacks, unequal parts of the layers, and parts of
    another pattern of layers."""
    if stages == 1:
        if asked:
            raise ValueError(
                f"execution.micro_batches={asked} is for meshes with stages; set it to 0, or "
                "config.mesh to one such as stage:2"
            )
        return
    if c.kind == "encoder_decoder":
        raise ValueError(
            f"config.mesh has {stages} stages, and an encoder-decoder has two stacks of layers; "
            "leave the axis stage out"
        )
    layers, period = c.layers - c.dense_layers, len(layer_pattern(c))
    # Layers that do not divide would stay whole on every device, and no stage be one.
    if layers % stages:
        raise ValueError(
            f"{layers} layers do not divide over {stages} stages; set config.mesh to a number of "
            "stages that does, or config.model.layers"
        )
    if layers // stages % period:
        raise ValueError(
            f"{layers} layers over {stages} stages are {layers // stages} each, no whole number of "
            f"the {period} layers after which their kinds repeat; set config.mesh to other stages"
        )
    micro_batches(asked, rows, stages)


def bubble(micro_batches: int, stages: int) -> float:
    """The share of a stage's turns in which it has nothing to do."""
    return (stages - 1) / (micro_batches + stages - 1)


def run(
    p_layers: Tree | tuple[Tree, ...],
    x_BTD: jax.Array,
    c: ModelConfig,
    execution: Execution,
    context: LayerContext,
    cache: KVCache | None = None,
    first: int = 0,
    make_context: Callable[..., LayerContext] | None = None,
    fields: Fields | None = None,
) -> tuple[jax.Array, KVCache | None, LayerLosses]:
    """`stack.run`, as a pipeline where the mesh spreads the layers over stages.

    A pipeline takes the context of each micro-batch from `make_context(**fields, key=key)`. Without
    them, and with a cache, every device runs all layers, gathered from the stages: so does
    decoding. Losses of layers, such as the balance of experts, are those of the micro-batches,
    weighted by their tokens, and dropout draws for each micro-batch. Rows of the result lie as
    those of `x_BTD`.
    """
    if stages(p_layers) == 1:
        return stack.run(p_layers, x_BTD, c, execution, context, cache, first)
    if cache is not None or fields is None or make_context is None:
        p_layers = jax.tree.map(partial(gather_axis, axis=0), p_layers)
        return stack.run(p_layers, x_BTD, c, execution, context, cache, first)
    how = dict(c=c, execution=execution, make_context=make_context, first=first)
    x_BTD, losses = _run_stages(p_layers, x_BTD, fields, context.key, **how)
    return x_BTD, None, losses


def _run_stages(
    p_layers: Tree,
    x_BTD: jax.Array,
    fields: Fields,
    key: jax.Array | None,
    *,
    c: ModelConfig,
    execution: Execution,
    make_context: Callable[..., LayerContext],
    first: int,
) -> tuple[jax.Array, LayerLosses]:
    """(states, losses) of `run` for layers that lie on stages."""
    place = partition_spec(x_BTD)
    # Every stage reads every row: what splits rows over stages outside of the stack is undone.
    batch = {name: x for name, x in {"states": x_BTD, **fields}.items() if x is not None}
    batch = jax.tree.map(_over_all_stages, batch)
    rows = local_shape(batch["states"])[0]
    M = micro_batches(execution.micro_batches, rows, stages(p_layers))

    def _layers(p, held, key, offset):
        context = make_context(**{name: held.get(name) for name in fields}, key=key)
        how = (c, execution, context, None, first, offset)
        x_BTD, _, losses = stack.run(p, held["states"], *how)
        return x_BTD, losses, jnp.sum(context.counted_BT)

    everywhere = PartitionSpec()
    mapped = jax.shard_map(
        partial(_take_turns, _layers, M),
        in_specs=(PartitionSpec(AXIS), everywhere, everywhere),
        out_specs=everywhere,
        axis_names={AXIS},
        check_vma=False,
    )
    x_MBTD, means = mapped(p_layers, jax.tree.map(lambda x: cut_rows(x, M), batch), key)
    return jax.reshard(join_rows(x_MBTD), place), means


def _take_turns(
    layers: Callable, M: int, p: Tree, batch: Tree, key: jax.Array | None
) -> tuple[jax.Array, LayerLosses]:
    """What a stage does, inside `jax.shard_map`: (last states [M, B / M, T, D] of the whole stack,
    losses). `p` are its own layers, `batch` has states and fields [M, B / M, ...], and
    `layers(p, held, key, offset)` gives the states, losses and tokens of one micro-batch."""
    S, number = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)
    offset = number * stack.layer_count(p)

    def _turn(held, turn):
        # After the last micro-batch it comes again, for turns whose results are dropped.
        entering = jax.tree.map(lambda x: _row(x, jnp.minimum(turn, M - 1)), batch)
        held = jax.tree.map(partial(jnp.where, number == 0), entering, held)
        micro = jnp.clip(turn - number, 0, M - 1)
        own = None if key is None else jax.random.fold_in(key, micro)
        x_BTD, losses, tokens = layers(p, held, own, offset)
        # A stage that has nothing to do weighs nothing.
        tokens *= turn - number == micro
        held = jax.tree.map(_hand_on, {**held, "states": x_BTD})
        return held, (x_BTD, {name: loss * tokens for name, loss in losses.items()}, tokens)

    # Before its first turn a stage has the first micro-batch, whose numbers are finite.
    start = jax.tree.map(lambda x: _row(x, 0), batch)
    _, (x_MBTD, losses, tokens) = jax.lax.scan(_turn, start, jnp.arange(M + S - 1))
    # Of the last stage, which does micro-batch m in turn m + S - 1.
    x_MBTD = jax.lax.psum(jnp.where(number == S - 1, x_MBTD[S - 1 :], 0), AXIS)
    total = jnp.maximum(jax.lax.psum(jnp.sum(tokens), AXIS), 1.0)
    means = {name: jax.lax.psum(jnp.sum(loss), AXIS) / total for name, loss in losses.items()}
    return x_MBTD, means


def _over_all_stages(x: jax.Array) -> jax.Array:
    """Rows that are split over stages gathered from them."""
    entries = [tuple(n for n in mesh_axes(entry) if n != AXIS) for entry in spec_entries(x)]
    return jax.reshard(x, PartitionSpec(*map(as_entry, entries)))


def _row(x: jax.Array, index: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _hand_on(x: jax.Array) -> jax.Array:
    """What each stage has, moved to the next."""
    count = jax.lax.axis_size(AXIS)
    return jax.lax.ppermute(x, AXIS, [(s, (s + 1) % count) for s in range(count)])
