"""The experts' products compile for TPUs and cards that are not here, at the sizes of Mixtral 8x7B,
and a train step runs through them.

They go through the real compiler in a process of their own, this file's, which prints what came out
as JSON.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.ops.test_attention_compile import need_compiler  # noqa: E402

M, E, D, F = 4096, 8, 4096, 14336
CASES = [
    ("v5e:2x2", "bfloat16"),
    ("v5e:2x2", "float32"),
    ("v5p:2x2x1", "bfloat16"),
    ("v6e:2x2", "bfloat16"),
]
SMALL = {
    "execution.remat": "full",
    "model.layers": 2,
    "model.d_model": 256,
    "model.d_ff": 512,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.head_size": 128,
    "model.vocab_size": 512,
    "model.max_length": 512,
    "data.sequence_length": 512,
}


def compiled(chip: str, dtype: str, implementation: str, format: str = "") -> dict:
    """Kernels and bytes of temporaries of a product with the widest matrices and both of its
    gradients; of matrices in a `format` only that of the rows."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from research.fit.hlo.kernels import kernels
    from research.fit.hlo.text import parse
    from research.fit.targets import parse_target
    from research.ops.grouped import grouped
    from research.parallel.mesh import make_mesh
    from research.weights.quantized import quantize_array

    chosen = parse_target(chip)
    mesh = make_mesh("fsdp:-1", chosen.devices()[:1])
    whole = PartitionSpec()

    def gradients(x, w, sizes, dy):
        def multiply(x, w):
            return grouped(x, w, sizes, implementation=implementation)

        if format:
            y, backward = jax.vjp(lambda x: multiply(x, w), x)
        else:
            y, backward = jax.vjp(multiply, x, w)
        return y, *backward(dy)

    def make():
        w = jnp.zeros((E, D, F), dtype)
        w = quantize_array(w, format, inputs=1, stacked=1).gathered() if format else w
        return jnp.zeros((M, D), dtype), w, jnp.zeros(E, "int32"), jnp.zeros((M, F), dtype)

    island = jax.shard_map(
        gradients, mesh=mesh, in_specs=(whole,) * 4, out_specs=whole, check_vma=False
    )
    placed = NamedSharding(mesh, whole)
    shaped = jax.tree.map(
        lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=placed),
        jax.eval_shape(make),
    )
    with jax.set_mesh(mesh):
        program = jax.jit(island).lower(*shaped).compile(chosen.compiler_options)
    text = program.as_text()
    return {
        "calls": len(re.findall('"(?:tpu_custom_call|mosaic_gpu)', text)),
        "kernels": kernels(parse(text)),
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "row_bytes": M * F * jnp.dtype(dtype).itemsize,
        "bank_bytes": E * D * F * jnp.dtype(dtype).itemsize,
    }


def step(chip: str, mesh: str) -> dict:
    """How often a train step of a small Mixtral calls each kernel and exchanges rows in a layer."""
    from configs import pretrain
    from research.fit.compile import compile_step
    from research.run.resolve import from_config

    config = pretrain.get_config("model=mixtral_8x7b")
    config.update_from_flattened_dict({**SMALL, "mesh": mesh})
    text = compile_step(from_config(config), chip).as_text()
    calls = [line for line in text.splitlines() if '"tpu_custom_call"' in line]
    counts = {
        name: sum(bool(re.match(rf"\s*(ROOT )?%{name}\b", line)) for line in calls)
        for name in ("gmm", "tgmm")
    }
    return {**counts, "exchanges": text.count(" ragged-all-to-all(")}


def in_a_process(*arguments: str) -> dict:
    need_compiler("cuda" if arguments[0].startswith("h100") else "tpu")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("chip", "dtype"), CASES)
def test_three_kernels_and_nothing_as_large_as_the_rows(chip, dtype):
    found = in_a_process(chip, dtype, "auto")
    # XLA's form of the matrices' gradient copies all rows for each expert.
    assert found["calls"] == 3 and found["temp_bytes"] < found["row_bytes"], found


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_experts_of_codes_are_dense_one_at_a_time(format):
    found = in_a_process("v5p:2x2x1", "bfloat16", "auto", format)
    # Of one expert the float32 values, the scales spread to their shape, and their product. All
    # experts in bfloat16 alone would be more.
    assert found["calls"] == 2 and found["temp_bytes"] < found["bank_bytes"], found


# What was measured is taken, what was not waits for its name; JAX's kernels have the scopes' names.
CARD = [
    ("auto", "", 2, ["grouped_rows"]),
    ("auto", "nf4", 2, ["grouped_rows"]),
    ("mosaic", "", 3, ["grouped_matrices", "grouped_rows"]),
    ("xla", "", 0, []),
]


@pytest.mark.parametrize(("implementation", "format", "calls", "kernels"), CARD)
def test_hopper_multiplies_through_mosaic(implementation, format, calls, kernels):
    found = in_a_process("h100:1", "bfloat16", implementation, format)
    assert (found["calls"], found["kernels"]) == (calls, kernels), found
    if calls == 2:
        # The matrices transposed for the gradient of the rows, or dense: one layer's at a time.
        assert found["temp_bytes"] < 2.1 * found["bank_bytes"], found


# Of two devices and two experts a token, gathering moves no more. Exchanged are rows there and
# back, there again for the backward pass, and the gradients of both.
@pytest.mark.parametrize(("mesh", "exchanges"), [("fsdp:2,expert:2", 0), ("expert:4", 5)])
def test_a_train_step_multiplies_experts_through_the_kernels(mesh, exchanges):
    # Forward three; backward two again, of gate and up, and three gradients of rows; three of
    # matrices.
    want = {"gmm": 8, "tgmm": 3, "exchanges": exchanges}
    assert in_a_process("v5p:2x2x1", mesh) == want


if __name__ == "__main__":
    print(json.dumps((step if len(sys.argv) == 3 else compiled)(*sys.argv[1:])))
