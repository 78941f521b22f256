"""What a run carries from step to step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research import tree


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trainable", "frozen", "optimizer", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """Step count, parameters with and without gradients, optimizer state, and the run's random key
    (as its data)."""

    step: jax.Array
    trainable: tree.Tree
    frozen: tree.Tree
    optimizer: tree.Tree
    key: jax.Array


def new_state(
    trainable: tree.Tree, frozen: tree.Tree, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step."""
    key = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable), key)


def abstract_state(make: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes and shardings of the state that `make()` returns; scalars and keys are on every
    device."""
    whole = NamedSharding(mesh, PartitionSpec())

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, x.sharding.spec) if x.sharding is not None else whole
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, jax.eval_shape(make))


def device_bytes(abstract: tree.Tree) -> int:
    """Bytes on one device, by the shardings."""
    leaves = jax.tree.leaves(abstract)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
