"""The decoding of one token, compiled for a target: the loop that generation jits, over a full
cache."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.experiment.config import Experiment
from research.fit.targets import Target
from research.infer.decode import ROWS
from research.infer.decode_layout import is_faster, lay_out
from research.infer.padding import bucket, chunk_size, row_count
from research.infer.sampling import SamplingConfig
from research.infer.steps import DecodeState, advance, empty
from research.models.cache import StackedCache
from research.models.config import Execution
from research.models.kv import KVCache
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.axes import merge_rules
from research.parallel.mesh import make_mesh
from research.run.program import Program
from research.training.state import device_bytes
from research.tree import Tree
from research.tuning.method import split_specs
from research.weights.rules import attach

_STOPS = 8  # ids that end a text; generation pads them to such sizes


@dataclass(frozen=True)
class Decode:
    """Everything that generation's loop is called with, as shapes and shardings.

    `length` tokens of each row are in the cache. `params` are in the compute type or as codes, with
    adapters attached, and in the layout of `research.infer.decode_layout`. On a CPU generation
    itself keeps the original layout too, to read prompts with; everywhere it rounds rows and slots
    up to `padding.bucket` sizes, and here they are taken as given.
    """

    model: Model
    mesh: Mesh
    params: Tree
    state: DecodeState
    length: int

    @property
    def cache(self) -> KVCache:
        """Keys and values of all layers, and what is in each slot."""
        return self.state.cache

    @property
    def tokens(self) -> int:
        """Tokens that one turn of the loop writes: one a row."""
        return self.state.token_B.shape[0]

    @property
    def params_bytes(self) -> int:
        """Bytes of the parameters on one device."""
        return device_bytes(self.params)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache on one device, with the encoder's keys and values of an
        encoder-decoder."""
        return device_bytes((self.state.cache, self.state.memory))

    @cached_property
    def traced(self) -> jax.stages.Traced:
        """Generation's own jitted function, traced."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        arguments = (
            jax.ShapeDtypeStruct(
                (self.tokens,), np.bool_, sharding=everywhere
            ),  # which rows are open
            jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),  # how many tokens at most
            jax.ShapeDtypeStruct((_STOPS,), np.int32, sharding=everywhere),
        )
        with jax.set_mesh(self.mesh):
            return advance.trace(
                self.params, self.state, *arguments, model=self.model, sampling=SamplingConfig()
            )

    @property
    def jaxpr(self) -> Any:
        """The closed jaxpr of one turn of the loop, which writes `tokens` tokens."""
        # Everything but the loop is preparation that a call makes once.
        loops = [eqn for eqn in self.traced.jaxpr.eqns if eqn.primitive.name == "while"]
        return loops[0].params["body_jaxpr"]

    def compile(self, target: Target) -> jax.stages.Compiled:
        """The compiled loop; its state is donated, so parameters and cache are there once."""
        with jax.set_mesh(self.mesh):
            return self.traced.lower().compile(target.compiler_options)


def plan_decode(experiment: Experiment, target: Target) -> Decode:
    """Decoding with the model that an experiment makes: rows of its whole batch, texts of its
    sequence length.

    ValueError for an encoder, which writes no text, and for a mesh that the target's devices do not
    make.
    """
    e, dtype = experiment, experiment.precision.compute_dtype
    if e.model.kind == "encoder":
        raise ValueError(
            "the model is an encoder, which fills in masks and writes no text; "
            "decoding wants a decoder"
        )
    mesh, rules = make_mesh(e.mesh, target.devices()), merge_rules(e.axes)
    # Generation unrolls and gathers as it likes, whatever trains the model.
    model = Model(e.model, e.precision, Execution(), rules)
    trainable, frozen = split_specs(model.specs(), e.model, e.tune, e.lora, e.quantize)
    # Adapters stay attached: merging would round them into a quantized base.
    params = attach(abstract(frozen, dtype, mesh, rules), abstract(trainable, dtype, mesh, rules))
    # The batch of training stands for that of serving: rows written at the same time.
    rows, length = e.data.global_batch(mesh.size), e.data.sequence_length
    return _plan(model, mesh, params, rows, length, lays_out=True)


def plan_rollouts(program: Program, target: Target, texts: int) -> Decode:
    """The decoding of the texts that a run trains on, as many at once as generation takes, with the
    parameters of its state: an accelerator has no second copy of them in another layout."""
    e, mesh = program.experiment, program.mesh
    model = Model(e.model, e.precision, Execution(), program.rules)
    rows = min(row_count(texts, model), ROWS)
    length = bucket(program.objective.window_length(e.data.sequence_length))
    on_cpu = target.platform == "cpu"
    return _plan(model, mesh, program.state.params, rows, length, lays_out=on_cpu)


def _plan(
    model: Model, mesh: Mesh, params: Tree, rows: int, length: int, *, lays_out: bool
) -> Decode:
    with jax.set_mesh(mesh):
        # Only shapes are computed: a 405B model is planned on a laptop.
        prepared = jax.eval_shape(partial(_prepared, model), params) if lays_out else params
        state = jax.eval_shape(partial(_started, model, rows, length), params)
        # Layers that are laid out one by one want a cache that is split the same way.
        if isinstance(prepared["layers"], tuple):
            state = replace(state, cache=jax.eval_shape(StackedCache.layered, state.cache))
    return Decode(model, mesh, _placed(prepared, mesh), _placed(state, mesh), length)


def _prepared(model: Model, params: Tree) -> Tree:
    """What generation makes of the parameters before its loop."""
    prompted = model.prompted(params)
    return lay_out(model, prompted) if is_faster() else prompted


def _started(model: Model, rows: int, length: int, params: Tree) -> DecodeState:
    """The state of so many texts before anything is read; an encoder's are as long."""
    # A full cache is the worst case: attention of the token reads all of it.
    lengths_B = jnp.full((rows,), length, jnp.int32)
    source_BS = (
        jnp.zeros((rows, length), jnp.int32) if model.config.kind == "encoder_decoder" else None
    )
    # Each row's own random key, as key data.
    streams_B2 = jnp.zeros((rows, 2), jnp.uint32)
    return empty(
        params,
        lengths_B,
        lengths_B,
        None,
        source_BS,
        lengths_B,
        jnp.uint32(0),
        streams_B2,
        model=model,
        length=length,
        chunk=chunk_size(length),
    )


def _placed(shapes: Tree, mesh: Mesh) -> Tree:
    """Traced shapes with their shardings on the mesh's own devices."""

    # Under a mesh eval_shape gives abstract meshes; a compile wants the devices.
    def _place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(_place, shapes)
