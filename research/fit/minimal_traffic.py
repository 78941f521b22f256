"""The least communication that a sharding needs of one device in a train step, as operand bytes.

One all-gather of each sharded parameter in the compute type for the forward pass and one for the
backward pass, one reduce-scatter of the gradients of what is trained in the type they accumulate
in, and an all-reduce where copies of a parameter are trained on different data; a gather and a
scatter of the activations for each tensor-parallel block and pass; an all-to-all each way for each
layer of experts and pass; keys and values gathered over a split context, and their gradients
scattered.
"""

import math
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from research.fit.compile import abstract_batch
from research.parallel.axes import STORAGE_AXES
from research.parallel.placement import mesh_axes
from research.run.program import Program

PASSES = 2  # forward and backward


def least_bytes(program: Program) -> int:
    """Operand bytes of the collectives of a device in a step, as the module says."""
    state, e = program.state, program.experiment
    compute, accumulate = e.precision.compute_dtype.itemsize, e.precision.accumulate_dtype.itemsize
    sizes = program.mesh.shape
    # Copies of a parameter along these axes see different tokens, so their gradients must be
    # summed.
    data = [name for name in program.rules["batch"] + program.rules["length"] if sizes[name] > 1]
    total = sum(
        PASSES * _gather(leaf, sizes, compute)
        for leaf in jax.tree.leaves((state.trainable, state.held))
    )
    total += sum(
        _reduce(leaf, sizes, data, accumulate) for leaf in jax.tree.leaves(state.trainable)
    )
    return round(total + PASSES * sum(_activations(program, compute)))


def _gather(leaf: jax.ShapeDtypeStruct, sizes: Mapping[str, int], itemsize: int) -> float:
    """Bytes of the shard that goes into the all-gather of a parameter; 0 where no storage axis
    splits it."""
    names = _split(leaf)
    # Axes of computation split the product itself: nothing of such a weight is gathered.
    stored = math.prod(sizes[name] for name in names if name in STORAGE_AXES)
    if stored == 1:
        return 0
    # Floats are cast to the compute type before they are gathered, codes stay what they are.
    width = itemsize if jax.numpy.issubdtype(leaf.dtype, np.floating) else leaf.dtype.itemsize
    return width * leaf.size / math.prod(sizes[name] for name in names)


def _reduce(
    leaf: jax.ShapeDtypeStruct, sizes: Mapping[str, int], data: list[str], itemsize: int
) -> float:
    """Bytes that go into the reduce-scatter of a gradient over the axes that store its parameter,
    and then into the all-reduce of its shard over the other axes that split the batch."""
    names = _split(leaf)
    stored = [name for name in names if name in STORAGE_AXES]
    split = math.prod(sizes[name] for name in names)
    computing = math.prod(sizes[name] for name in names if name not in STORAGE_AXES)
    # A gradient is as large as the gathered weight before it is scattered.
    gathered = itemsize * leaf.size / computing
    scattered = gathered if any(sizes[name] > 1 for name in stored) else 0
    # What is scattered over an axis is already summed over it.
    copies = [name for name in data if name not in names]
    return scattered + (itemsize * leaf.size / split if copies else 0)


def _activations(program: Program, itemsize: int) -> Iterator[float]:
    """Bytes of activations in one pass through all layers, forward or backward: each term is
    one kind of collective."""
    c, sizes = program.experiment.model, program.mesh.shape
    tensor, context, expert = sizes["tensor"], sizes["context"], sizes["expert"]
    # Blocks of a layer: attention and feed-forward, and in a decoder with an encoder the attention
    # to it.
    stacks = [(c.layers, "inputs", 3 if c.kind == "encoder_decoder" else 2)]
    stacks += [(c.encoder_layers, "encoder_inputs", 2)] if c.kind == "encoder_decoder" else []
    batch = abstract_batch(program)
    for layers, name, blocks in stacks:
        tokens = math.prod(batch[name].sharding.shard_shape(batch[name].shape))
        # Of each block (attention, feed-forward, cross-attention): tokens gathered from shards,
        # then partial sums of all tokens scattered.
        if tensor > 1:
            yield layers * blocks * tokens * c.d_model * itemsize * (1 / tensor + 1)
        if context > 1:
            # Key heads that the tensor axis does not divide are whole on each of its devices.
            heads = c.kv_heads / (tensor if c.kv_heads % tensor == 0 else 1)
            keys_values = 2 * tokens * heads * c.head_size * itemsize
            # The forward pass gathers shards, the backward pass scatters gradients of all: half of
            # both is the mean of a pass.
            yield layers * keys_values * (1 + context) / 2
        # Each token goes to its experts and comes back.
        if c.experts and expert > 1:
            yield layers * 2 * tokens * c.experts_per_token * c.d_model * itemsize


def _split(leaf: jax.ShapeDtypeStruct) -> list[str]:
    """Mesh axes that an array is split over."""
    return [name for entry in leaf.sharding.spec for name in mesh_axes(entry)]
