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
from research.weights.rules import TEACHER, attach


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trainable", "held", "optimizer", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """The state that a train step takes and returns.

    step       number of updates so far, int32 []
    trainable  parameters that have gradients and optimizer state
    held       frozen parameters, in named trees. "base" is what `trainable` is attached to, {} if
               everything is trained. The others are those of `Objective.holds`, such as
               "reference"; each is attached to the base in place of `trainable`
    optimizer  the optimizer's state
    key        the random key of the run, as `jax.random.key_data`, uint32
    """

    step: jax.Array
    trainable: tree.Tree
    held: dict[str, tree.Tree]
    optimizer: tree.Tree
    key: jax.Array

    @property
    def params(self) -> tree.Tree:
        """The parameters of the model that is trained: `trainable` attached to the base."""
        # Without a key: no dropout outside the objective's loss.
        return attach(self.held["base"], self.trainable)

    @property
    def held_params(self) -> dict[str, tree.Tree]:
        """The parameters of each frozen model, by name: every held tree but the base, attached to
        the base."""
        base = self.held["base"]
        others = {name: one for name, one in self.held.items() if name != "base"}
        # A teacher is a whole model of its own, whatever the student's base.
        return {name: one if name == TEACHER else attach(base, one) for name, one in others.items()}


def new_state(
    trainable: tree.Tree,
    held: dict[str, tree.Tree],
    optimizer: optax.GradientTransformation,
    seed: int,
) -> TrainState:
    """The state before the first step, with a key made of `seed`."""
    # Key data and not a typed key: checkpoints hold plain arrays.
    key = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), trainable, held, optimizer.init(trainable), key)


def to_stored(state: TrainState, with_base: bool) -> dict[str, tree.Tree]:
    """The entries of a state that a checkpoint stores, by name; leaves are arrays or shapes.

    The base is named "frozen" in checkpoints; without `with_base` it is {}, to be read again from
    its source, as a teacher is. The other held trees were made by this run, so they are stored.
    """
    stored = {
        "step": state.step,
        "trainable": state.trainable,
        "frozen": state.held["base"] if with_base else {},
        "optimizer": state.optimizer,
        "key": state.key,
    }
    others = {name: one for name, one in state.held.items() if name not in ("base", TEACHER)}
    # Without others there is no entry at all, so that runs of older versions, which had none,
    # resume.
    return {**stored, "held": others} if others else stored


def from_stored(stored: dict[str, tree.Tree]) -> TrainState:
    """The inverse of `to_stored`; the base is {} if the checkpoint lacks it."""
    rest = {name: value for name, value in stored.items() if name not in ("frozen", "held")}
    return TrainState(held={"base": stored["frozen"], **stored.get("held", {})}, **rest)


def abstract_state(make: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes and shardings of the state that `make()` returns, without making it. Scalars and keys
    are on every device."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def _place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # Abstract evaluation knows axis names only; the mesh adds the devices.
        sharding = NamedSharding(mesh, x.sharding.spec) if x.sharding is not None else replicated
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    # Nothing is allocated: this is how memory is planned, and what a restore reads onto.
    return jax.tree.map(_place, jax.eval_shape(make))


def device_bytes(abstract: tree.Tree) -> int:
    """Bytes that the leaves take on one device, by their shardings."""
    leaves = jax.tree.leaves(abstract)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
