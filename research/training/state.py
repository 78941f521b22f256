"""`TrainState`: everything that a run carries from step to step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research import tree
from research.weights.rules import attach


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trainable", "held", "optimizer", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """The state that a train step takes and returns.

    step       updates so far, int32 []
    trainable  parameters with gradients and optimizer state
    held       named trees of parameters without: "base" is what `trainable` is attached to ({}
               where everything is trained), and so are the others, those of `Objective.holds`
    optimizer  the optimizer's state
    key        the run's random key, as `jax.random.key_data`
    """

    step: jax.Array
    trainable: tree.Tree
    held: dict[str, tree.Tree]
    optimizer: tree.Tree
    key: jax.Array

    @property
    def params(self) -> tree.Tree:
        """What the model computes with: `trainable` attached to the base."""
        return attach(self.held["base"], self.trainable)

    @property
    def held_params(self) -> dict[str, tree.Tree]:
        """What the model computes with by each held tree but the base, such as "reference"."""
        base = self.held["base"]
        return {name: attach(base, one) for name, one in self.held.items() if name != "base"}


def new_state(
    trainable: tree.Tree,
    held: dict[str, tree.Tree],
    optimizer: optax.GradientTransformation,
    seed: int,
) -> TrainState:
    """The state before the first step."""
    key = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), trainable, held, optimizer.init(trainable), key)


def to_stored(state: TrainState, with_base: bool) -> dict[str, tree.Tree]:
    """The parts of a state that a checkpoint stores, arrays or shapes. The base is named "frozen"
    in checkpoints; without `with_base` it is {}, to be read again from its source. Other trees that
    are held are of the run's own making, and always stored."""
    stored = {
        "step": state.step,
        "trainable": state.trainable,
        "frozen": state.held["base"] if with_base else {},
        "optimizer": state.optimizer,
        "key": state.key,
    }
    others = {name: one for name, one in state.held.items() if name != "base"}
    return {**stored, "held": others} if others else stored


def from_stored(stored: dict[str, tree.Tree]) -> TrainState:
    """The inverse of `to_stored`; the base is {} where the checkpoint lacks it."""
    rest = {name: value for name, value in stored.items() if name not in ("frozen", "held")}
    return TrainState(held={"base": stored["frozen"], **stored.get("held", {})}, **rest)


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
