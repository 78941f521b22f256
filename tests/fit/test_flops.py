"""FLOPs of a step: by hand, against XLA's own count of programs without loops, and kernels against
their bodies."""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from research.fit import flops
from research.fit.flops import executed
from research.ops.kernels import visible_share as share
from research.parallel.mesh import make_mesh
from tests.configs import experiment
from tests.fit.counting import SIZES, count, shape, trace
from tests.fit.test_memory import in_a_process, need_compiler


def two_layers(w, v, x):
    return jnp.sum(jnp.tanh(x @ w) @ v)


@pytest.mark.parametrize(
    ("function", "arrays", "flops"),
    [
        (lambda x, w: x @ w, (shape(3, 5), shape(5, 7)), 2 * 3 * 5 * 7),
        (partial(jnp.einsum, "bij,bjk->bik"), (shape(2, 3, 5), shape(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
        # What nobody uses, in a loop too, whose first result alone is asked for.
        (lambda x: (x @ x, x)[1], (shape(4, 4),), 0),
        (
            lambda x: jax.lax.scan(lambda c, _: ((c[0] @ x, c[1] @ x), None), (x, x), None, 9)[0][
                0
            ],
            (shape(4, 4),),
            9 * 128,
        ),
        # The dearest branch.
        (
            lambda p, x: jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x, x),
            (shape(dtype=bool), shape(4, 4)),
            2 * 128,
        ),
        # Two products forward, and one for the gradient of each weight and of what lies between.
        (jax.value_and_grad(two_layers, (0, 1)), (shape(4, 4),) * 3, (2 + 3) * 128),
        # Recomputed: the first again. The second's result the backward pass has no use for.
        (
            jax.value_and_grad(jax.checkpoint(two_layers), (0, 1)),
            (shape(4, 4),) * 3,
            (2 + 1 + 3) * 128,
        ),
        # The gradient alone asks for no second product.
        (jax.grad(two_layers, (0, 1)), (shape(4, 4),) * 3, (1 + 3) * 128),
        (lambda x: jax.lax.fori_loop(0, 6, lambda _, c: c @ x, x), (shape(4, 4),), 6 * 128),
        (jax.jit(lambda x: jax.vmap(lambda r: r @ x)(x)), (shape(4, 4),), 128),
    ],
)
def test_by_hand(function, arrays, flops):
    assert sum(count(function, *arrays).values()) == flops


def test_a_type_counts_apart():
    found = count(
        lambda x, w: (x @ x, w @ w), shape(4, 4, dtype=jnp.bfloat16), shape(4, 4, dtype=jnp.int8)
    )
    assert found == {"bfloat16": 128, "int8": 128}


def test_a_loop_that_its_data_end_is_refused():
    step = lambda n, x: jax.lax.fori_loop(0, n, lambda _, c: c @ x, x)
    with pytest.raises(ValueError, match="while loop"):
        count(step, shape(dtype=jnp.int32), shape(4, 4))
    assert (
        count(lambda n: jax.lax.fori_loop(0, n, lambda _, c: 2 * c, 1.0), shape(dtype=jnp.int32))
        == {}
    )


def test_a_convolution_is_what_xla_says():
    convolve = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "VALID", feature_group_count=2
    )
    x, w = shape(2, 6, 9, 9), shape(4, 3, 3, 3)
    found = jax.jit(convolve).lower(x, w).cost_analysis()["flops"]
    assert count(convolve, x, w) == {"float32": found}


def test_devices_that_do_the_same_work_each_count():
    mesh = make_mesh("fsdp:4,tensor:2")
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((8, 4)), jax.NamedSharding(mesh, PartitionSpec("fsdp")))
        w = jax.device_put(jnp.ones((4, 4)), jax.NamedSharding(mesh, PartitionSpec()))
        v = jax.device_put(jnp.ones((4, 4)), jax.NamedSharding(mesh, PartitionSpec(None, "tensor")))
        island = jax.shard_map(
            jnp.dot,
            in_specs=(PartitionSpec("fsdp"), PartitionSpec()),
            out_specs=PartitionSpec("fsdp"),
        )
        whole = 2 * 8 * 4 * 4
        for function, other, copies in ((jnp.dot, v, 1), (jnp.dot, w, 2), (island, w, 2)):
            assert executed(jax.make_jaxpr(function)(x, other), 8) == {"float32": copies * whole}


def test_groups_of_rows():
    x, w, sizes = shape(64, 32), shape(3, 32, 48), shape(3, dtype=jnp.int32)
    rows = 2 * 64 * 32 * 48
    # XLA's CPU compiler spells it out for each group; what picks the rows is some elementwise
    # operations of each group more.
    found = jax.jit(jax.lax.ragged_dot).lower(x, w, sizes).compile().cost_analysis()["flops"]
    assert count(jax.lax.ragged_dot, x, w, sizes) == {
        "float32": 3 * rows
    } and found == pytest.approx(3 * rows, rel=0.05)
    gradients = jax.grad(lambda x, w, sizes: jnp.sum(jax.lax.ragged_dot(x, w, sizes) ** 2), (0, 1))
    assert count(gradients, x, w, sizes) == {"float32": 9 * rows}


def test_groups_of_rows_on_tpu():
    """Its compiler has a kernel for rows times matrices, which heeds how many rows are in groups,
    and for nothing else."""
    device = jax.sharding.AbstractDevice("TPU v5", None, platform="tpu")
    mesh = jax.sharding.AbstractMesh(
        (2,), ("expert",), (jax.sharding.AxisType.Explicit,), abstract_device=device
    )
    arrays = shape(64, 32), shape(3, 32, 48), shape(3, dtype=jnp.int32)
    placed = [a.update(sharding=jax.NamedSharding(mesh, PartitionSpec())) for a in arrays]

    def function(x, w, sizes):
        with share.scope(ragged=0.5):
            return jax.value_and_grad(
                lambda x, w: jnp.sum(jax.lax.ragged_dot(x, w, sizes) ** 2), (0, 1)
            )(x, w)

    everywhere = PartitionSpec()
    with jax.sharding.use_abstract_mesh(mesh):
        island = jax.shard_map(
            function, in_specs=(everywhere,) * 3, out_specs=everywhere, check_vma=False
        )
        found = executed(jax.make_jaxpr(island)(*placed), 2)
    assert found == {"float32": 2 * (0.5 + 0.5 + 3) * 2 * 64 * 32 * 48}


@pytest.mark.parametrize(("known", "flops"), [(True, 800), (False, 200)])
def test_a_kernel_that_ends_with_the_last_group_tells_the_cost_of_all_rows(known, flops):
    def function(steps, x):
        block = pl.BlockSpec((8, 128), lambda i: (i, 0))
        with share.scope(ragged=0.25):
            return pl.pallas_call(
                lambda x_ref, y_ref: y_ref.__setitem__(..., x_ref[...]),
                grid=(4 if known else steps,),
                in_specs=[block],
                out_specs=block,
                out_shape=x,
                cost_estimate=pl.CostEstimate(800, 0, 0),
                interpret=True,
            )(x)

    assert count(function, shape(dtype=jnp.int32), shape(32, 128)) == {"float32": flops}


CASES = [
    ("pretrain", "gpt2", "full"),
    ("finetune", "llama3_8b,method=qlora", "none"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            *(
                ("pretrain", f, r)
                for f in ("llama3_8b", "t5_base", "mixtral_8x7b")
                for r in ("none", "dots", "full")
            ),
            *(("pretrain", "gpt2", r) for r in ("none", "dots")),
            *(("pretrain", "bert_base", r) for r in ("none", "dots")),
            *(("finetune", f"llama3_8b,method={method}", "none") for method in ("lora", "int8")),
        ]
    ),
]


@pytest.mark.parametrize(("config", "model", "remat"), CASES)
def test_a_train_step_is_what_xla_says(config, model, remat):
    arg = f"model={model}" + (",smoke" if config == "pretrain" else "")
    changes = {**SIZES, "execution.remat": remat, "execution.feed_tokens": 0}
    changes |= {"model.encoder_layers": 2} if "t5" in model else {}
    program, jaxpr, traced = trace(experiment(config, arg, **changes))
    with jax.set_mesh(program.mesh):
        found = traced.lower().compile().cost_analysis()["flops"]
    assert 1.0 <= found / sum(executed(jaxpr, 1).values()) < 1.036


# For hardware that is not here


@pytest.mark.parametrize(("target", "ratio"), [("v5p:4x4x4", 1.3168), ("h100:8", 1.3043)])
def test_llama_8b_pretraining_as_shipped(target, ratio):
    """The bar is 1.34: layers recomputed, all but the last product of each, attention in blocks."""
    need_compiler(target)
    done = in_a_process(__file__, target)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["ratio"] <= min(1.34, ratio + 1e-4)


@pytest.mark.slow
def test_a_train_step_is_what_libtpu_says():
    # Layers unrolled, a chunk of the head a device: no loops. At these sizes elementwise operations
    # are one in a hundred.
    need_compiler("v5e:2x2")
    done = in_a_process(__file__, "v5e:2x2", "none")
    assert done.returncode == 0, done.stderr[-3000:]
    assert 1.0 <= json.loads(done.stdout)["compiled"] < 1.02


def shipped(target: str) -> dict:
    """The recomputation ratio of the 8B's pretraining."""
    program, jaxpr, _ = trace(experiment("pretrain", "model=llama3_8b"), target)
    return {"ratio": flops.recompute_ratio(program, executed(jaxpr, program.mesh.size))}


def unrolled(target: str, remat: str) -> dict:
    """FLOPs of the compiler over ours, of a small model."""
    changes = {
        **SIZES,
        "model.d_model": 1024,
        "model.d_ff": 4096,
        "model.heads": 8,
        "model.head_size": 128,
        "model.vocab_size": 8192,
        "data.sequence_length": 512,
        "data.batch_size": 4,
        "data.batch_size_per_device": 0,
        "execution.remat": remat,
    }
    program, jaxpr, traced = trace(experiment("pretrain", "model=llama3_8b", **changes), target)
    with jax.set_mesh(program.mesh):
        found = traced.lower().compile().cost_analysis()["flops"] * program.mesh.size
    return {"compiled": found / sum(executed(jaxpr, program.mesh.size).values())}


if __name__ == "__main__":
    print(json.dumps(unrolled(*sys.argv[1:]) if sys.argv[2:] else shipped(sys.argv[1])))
