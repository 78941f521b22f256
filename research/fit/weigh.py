"""What an estimate needs of the parameters of a run, which is the same for every batch, length and
remat policy."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType

from research import tree
from research.experiment.config import Experiment
from research.fit.objective import objective_without_data
from research.fit.targets import Target
from research.models.spec import abstract
from research.parallel.axes import MESH_AXES, STORAGE_AXES
from research.parallel.mesh import mesh_shape
from research.parallel.placement import mesh_axes
from research.run.program import Program
from research.run.teacher import with_teacher
from research.training.state import device_bytes


@dataclass(frozen=True)
class Weights:
    """Bytes of a device, and what kind of parameters they are.

    sizes        devices along each mesh axis
    batch_axes   the mesh axes that split a batch
    trained      and `frozen`: parameters as they are stored
    moments      state of the optimizer
    layer        the matrices of one layer, gathered for use
    matrix       the largest of them
    received     over the network in a step
    whole_model  whether matrices of the model are trained
    table        of the head: "trained", "frozen", or in "codes"
    """

    sizes: Mapping[str, int]
    batch_axes: tuple[str, ...]
    trained: int
    frozen: int
    moments: int
    layer: float
    matrix: float
    received: float
    whole_model: bool
    table: str


def abstract_program(experiment: Experiment, count: int) -> Program:
    """The program of a run on `count` devices that are not made, without its data: it can be asked
    for sizes, specs and shardings. ValueError for a mesh that so many devices do not make."""
    shape, types = mesh_shape(experiment.mesh, count), (AxisType.Explicit,) * len(MESH_AXES)
    mesh = AbstractMesh(shape, MESH_AXES, types)
    return Program(experiment, with_teacher(experiment, objective_without_data(experiment)), mesh)


def weigh(experiment: Experiment, target: Target) -> Weights:
    """The parameters of a run on a target. ValueError for a mesh that its devices do not make."""
    e, c = experiment, experiment.model
    program = abstract_program(e, target.count)
    mesh = program.mesh
    itemsize, layers = e.precision.compute_dtype.itemsize, c.layers + c.encoder_layers
    trainable = abstract(program.trainable_specs, e.precision.param_dtype, mesh, program.rules)
    frozen = list(program.abstract_held.values())
    matrices = [
        _matrix(path, leaf, itemsize)
        for part in (*frozen, trainable)
        for path, leaf in tree.paths(part).items()
    ]
    trained = device_bytes(trainable)
    # Forward and backward gather each weight; what is trained also scatters its gradient.
    gathers = 2 * itemsize
    scatter = e.precision.accumulate_dtype.itemsize
    # What tensor parallelism moves is not counted: activations, which depend on the batch.
    received = _received(trainable, mesh, gathers + scatter)
    received += sum(_received(part, mesh, gathers) for part in frozen)
    return Weights(
        mesh.shape,
        program.rules["batch"],
        trained,
        device_bytes(frozen),
        round(trained * _moments(program)),
        # Stacked matrices: a layer has its share of each.
        sum(matrices) / layers,
        max(matrices, default=0.0) / layers,
        received,
        whole_model=any(leaf.size >= c.d_model**2 for leaf in jax.tree.leaves(trainable)),
        table=_table(tree.paths(trainable), [path for part in frozen for path in tree.paths(part)]),
    )


def _table(trained: Collection[str], frozen: Collection[str]) -> str:
    """`Weights.table`, from the paths of trained and of frozen arrays: codes have other names."""
    if any(path.endswith("/table") for path in trained):
        return "trained"
    return "frozen" if any(path.endswith("/table") for path in frozen) else "codes"


def _matrix(path: str, leaf: jax.ShapeDtypeStruct, itemsize: int) -> float:
    """Bytes of a layer stack's matrix when gathered for use, whole stack; 0 for what is of no
    layer."""
    if not path.removeprefix("dense/").split("/")[0].endswith("layers"):
        return 0.0
    names = [name for entry in leaf.sharding.spec for name in mesh_axes(entry)]
    split = math.prod(leaf.sharding.mesh.shape[name] for name in names if name not in STORAGE_AXES)
    return itemsize * leaf.size / split


def _received(part: tree.Tree, mesh: AbstractMesh, bytes_per_element: int) -> float:
    """Bytes that a device receives of parameters that the other devices store."""
    # A device already has 1 / stored of the part that its computation needs, and receives the rest.
    stored = math.prod(size for name, size in mesh.shape.items() if name in STORAGE_AXES)
    computing = mesh.size // stored
    elements = sum(leaf.size for leaf in jax.tree.leaves(part)) / computing
    return bytes_per_element * elements * (1 - 1 / stored)


def _moments(program: Program) -> float:
    """Bytes of the optimizer's state for each byte of what is trained."""
    plain = abstract(program.trainable_specs, program.experiment.precision.param_dtype)
    # Nothing is trained, so there is nothing to divide by.
    if not jax.tree.leaves(plain):
        return 0.0
    state = jax.eval_shape(program.optimizer.init, plain)
    # A ratio suffices: moments are sharded as what they belong to.
    return tree.nbits(state) / tree.nbits(plain)
