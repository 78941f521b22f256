"""Traced steps and functions whose FLOPs are counted, for tests."""

import jax
import jax.numpy as jnp

from research.fit.compile import abstract_batch, plan
from research.fit.flops import executed
from research.fit.targets import parse_target

# XLA's CPU compiler, layers unrolled and the head in one chunk, so that nothing is in a loop. It
# counts elementwise operations too: 1 to 3 in a hundred at these sizes, 3.5 for BERT with its erf.
# Layers recomputed in full it merges in part for BERT, whose queries are a product of the layer's
# very input.
SIZES = {
    "model.layers": 2,
    "model.d_model": 256,
    "model.d_ff": 1024,
    "model.heads": 4,
    "model.kv_heads": 4,
    "model.head_size": 64,
    "model.vocab_size": 2048,
    "model.max_length": 128,
    "data.sequence_length": 128,
    "data.batch_size": 4,
    "execution.unroll": 0,
    "execution.attention": "xla",
}


def count(function, *arrays) -> dict[str, float]:
    """Executed FLOPs of a function without a mesh."""
    return executed(jax.make_jaxpr(function)(*arrays), 1)


def shape(*sizes, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def trace(e, target="cpu"):
    """The program of an experiment, its train step's jaxpr and the traced step."""
    program = plan(e, parse_target(target))
    with jax.set_mesh(program.mesh):
        traced = program.train_step.trace(program.state, abstract_batch(program))
    return program, traced.jaxpr, traced
