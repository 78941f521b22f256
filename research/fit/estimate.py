"""What a train step takes, in closed form: for looking through many settings before a few are
compiled.

Memory of a device is the sum of what is held, the gradients, what the layers keep for the backward
pass, one layer at work and the head at work. The last two are counted as the compilers lay them
out: they meet at the turn from forward to backward.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType

from research import tree
from research.experiment.config import Experiment
from research.fit.roofline import peak_flops
from research.fit.targets import Target
from research.models.config import ModelConfig
from research.models.embedding import BUCKETS
from research.models.spec import abstract
from research.ops.frozen_head import BLOCK
from research.ops.loss import CHUNK
from research.parallel.axes import AXES, COMPUTE, MESH_AXES
from research.parallel.mesh import mesh_shape
from research.run.program import Program
from research.training.flops import train_flops_per_token
from research.training.state import device_bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes of a device and of the host for each device; seconds of a step at the peaks, None where
    none are published."""

    held: int
    gradients: int
    kept: int
    layer: int
    head: int
    host_bytes: int
    tokens: int
    compute: float | None
    network: float | None

    @property
    def total(self) -> int:
        """Bytes of a device."""
        return self.held + self.gradients + self.kept + self.layer + self.head

    @property
    def tokens_per_second(self) -> float | None:
        """At most, were memory traffic free."""
        return None if self.compute is None else self.tokens / max(self.compute, self.network)


@dataclass(frozen=True)
class Weights:
    """What an estimate needs of the parameters, which is the same for every batch, length and remat
    policy.

    Bytes of a device: `trained` and `frozen` as they are held, `moments` of the optimizer, `layer`
    the matrices of one layer as gathered for use and `matrix` the largest of them, `received` by
    the network in a step. `whole_model` says whether matrices of the model are trained, `table` is
    how the head's is held: "trained", "frozen", or in "codes".
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


def weigh(experiment: Experiment, target: Target) -> Weights:
    """ValueError for a mesh that the target's devices do not make."""
    e, c = experiment, experiment.model
    mesh = AbstractMesh(
        mesh_shape(e.mesh, target.count), MESH_AXES, (AxisType.Explicit,) * len(MESH_AXES)
    )
    program = Program(e, None, mesh)
    itemsize, layers = e.precision.compute_dtype.itemsize, c.layers + c.encoder_layers
    trainable = abstract(program.specs[0], e.precision.param_dtype, mesh, program.rules)
    frozen = abstract(program.specs[1], e.precision.compute_dtype, mesh, program.rules)
    matrices = [
        _matrix(path, leaf, itemsize)
        for part in (frozen, trainable)
        for path, leaf in tree.paths(part).items()
    ]
    trained = device_bytes(trainable)
    stored = math.prod(size for name, size in mesh.shape.items() if AXES[name] != COMPUTE)
    received = 0.0
    for part, gradient in ((trainable, e.precision.accumulate_dtype.itemsize), (frozen, 0)):
        whole = (
            sum(leaf.size for leaf in jax.tree.leaves(part))
            / mesh.shape["tensor"]
            / mesh.shape["expert"]
        )
        received += (2 * itemsize + gradient) * whole * (1 - 1 / stored)
    return Weights(
        mesh.shape,
        program.rules["batch"],
        trained,
        device_bytes(frozen),
        round(trained * _moments(program)),
        sum(matrices) / layers,
        max(matrices, default=0.0) / layers,
        received,
        whole_model=any(leaf.size >= c.d_model**2 for leaf in jax.tree.leaves(trainable)),
        table=_table(tree.paths(trainable), tree.paths(frozen)),
    )


def estimate(experiment: Experiment, target: Target, weights: Weights | None = None) -> Estimate:
    """Of a train step. ValueError for a mesh or a batch that does not fit the target's devices."""
    e, c = experiment, experiment.model
    w = weigh(e, target) if weights is None else weights
    sizes, itemsize, tensor, length = (
        w.sizes,
        e.precision.compute_dtype.itemsize,
        w.sizes["tensor"],
        e.data.sequence_length,
    )
    parts = math.prod(sizes[name] for name in w.batch_axes)
    rows = e.data.global_batch(target.count)
    if rows % (parts * e.train.accumulate):
        raise ValueError(f"a batch of {rows} is no multiple of {parts} x {e.train.accumulate}")
    tokens = rows // parts // e.train.accumulate * length // sizes["context"]
    per_token = itemsize * tokens * (c.layers + c.encoder_layers)
    hidden = c.d_ff * (c.experts_per_token if c.experts else 1) / tensor
    fed = min(tokens, e.execution.feed_tokens or tokens)
    width = max(_stored(c.d_model, target), c.heads * _stored(c.head_size, target) / tensor)
    work = itemsize * (4 * fed * hidden + 5 * tokens * width)
    gradient = e.precision.accumulate_dtype.itemsize
    # Where the table is stored split, its gradient is whole for a moment, the head's and the
    # embedding's; TPU's compiler mostly has one of them gone before the other.
    stored = math.prod(size for name, size in sizes.items() if AXES[name] != COMPUTE)
    # A head with a bias takes the plain form of the loss, whose gradients are there beside the
    # logits.
    plain = (
        8 * min(CHUNK, tokens) * c.vocab_size / tensor
        + gradient * c.vocab_size * c.d_model / tensor
    )
    # Relative positions take the plain form of attention: the scores, and the buckets of every
    # pair.
    pairs = tokens * length * 4 * (BUCKETS + c.heads / tensor) if c.position == "relative" else 0
    copies = 1.5 if target.platform == "tpu" else 2
    each = 2 * itemsize + (copies * gradient if w.table == "trained" and stored > 1 else 0)
    table = (
        each
        * (min(BLOCK, c.vocab_size) if w.table == "codes" else c.vocab_size / tensor)
        * c.d_model
    )
    compute, network = _seconds(e, target, w)
    return Estimate(
        held=w.trained + w.frozen + w.moments,
        gradients=round(w.trained * gradient / e.precision.param_dtype.itemsize),
        kept=round(per_token * _kept(c, e.execution.remat, w, target)),
        layer=round(
            w.layer + (2 * gradient / itemsize * w.matrix if w.whole_model else 0) + work + pairs
        ),
        head=round(
            table
            + 8 * min(CHUNK, tokens) * c.vocab_size / tensor
            + (plain if c.head_bias or c.mlm_head else 0)
        ),
        host_bytes=round(
            per_token * c.d_model
            if e.execution.remat == "offload" and target.platform != "cpu"
            else 0
        ),
        tokens=rows * length,
        compute=compute,
        network=network,
    )


def _table(trained: Collection[str], frozen: Collection[str]) -> str:
    if any(path.endswith("/table") for path in trained):
        return "trained"
    return "frozen" if any(path.endswith("/table") for path in frozen) else "codes"


def _kept(c: ModelConfig, remat: str, w: Weights, target: Target) -> float:
    """Elements that a layer keeps for each token of a device."""
    if remat == "offload":
        return 0.0
    width = _stored(c.d_model, target)
    if remat == "full":
        return width
    heads = (
        2 * (c.heads + c.kv_heads) * _stored(c.head_size, target)
    )  # queries, keys, values and what attention gives
    hidden = c.d_ff * (c.experts_per_token if c.experts else 1)
    dots = width + (heads + (2 if c.gated else 1) * hidden) / w.sizes["tensor"]
    # Without recomputation the norms' results in float32, the activation's and the hidden states
    # are kept too. The norms' are for the gradients of frozen matrices alone, which nobody asks
    # for.
    return (
        dots
        if remat == "dots"
        else dots + (6 if w.whole_model else 2) * width + 2 * hidden / w.sizes["tensor"]
    )


def _stored(size: int, target: Target) -> int:
    """A last dimension as it is stored: a TPU fills the 128 lanes of its vector unit."""
    return -(-size // 128) * 128 if target.platform == "tpu" else size


def _matrix(path: str, leaf: jax.ShapeDtypeStruct, itemsize: int) -> float:
    """Bytes of a layer stack's matrix when gathered for use, whole stack; 0 for what is of no
    layer."""
    if not path.split("/")[0].endswith("layers"):
        return 0.0
    entries = [entry for entry in leaf.sharding.spec if entry]
    names = [name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry)]
    split = math.prod(leaf.sharding.mesh.shape[name] for name in names if AXES[name] == COMPUTE)
    return itemsize * leaf.size / split


def _moments(program: Program) -> float:
    """Bytes of the optimizer's state for each byte of what is trained."""
    plain = abstract(program.specs[0], program.experiment.precision.param_dtype)
    if not jax.tree.leaves(plain):
        return 0.0
    state = jax.eval_shape(program.optimizer.init, plain)
    return tree.nbits(state) / tree.nbits(plain)


def _seconds(e: Experiment, target: Target, w: Weights) -> tuple[float | None, float | None]:
    """(compute, network) of a step."""
    peak = peak_flops(target, e.precision.compute)
    if peak is None:
        return None, None
    length = e.data.sequence_length
    forward = (
        train_flops_per_token(e.model, length) / 3 * e.data.global_batch(target.count) * length
    )
    passes = (3 if w.whole_model else 2) + {"none": 0.0, "dots": 0.05}.get(e.execution.remat, 0.9)
    return passes * forward / peak, w.received / target.network.inside
