"""FLOPs of a step: by hand, against XLA's own count of programs without loops, and kernels against
their bodies."""

import json
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from research.fit import flops
from research.fit.compile import abstract_batch, plan
from research.fit.flops import executed
from research.fit.targets import parse_target
from research.ops.attention import Visibility
from research.ops.kernels import (
    flash,
    quantized_matmul_gpu,
    quantized_matmul_tpu,
    splash,
)
from research.ops.kernels import visible_share as share
from research.parallel.mesh import make_mesh
from research.training.flops import (
    Texts,
    forward_flops,
    train_flops_per_token,
    visible_pairs,
)
from tests.configs import experiment
from tests.fit.test_memory import in_a_process, need_compiler

F32 = jnp.float32


def count(function, *arrays) -> dict[str, float]:
    """Executed FLOPs of a function without a mesh."""
    return executed(jax.make_jaxpr(function)(*arrays), 1)


def two_layers(w, v, x):
    return jnp.sum(jnp.tanh(x @ w) @ v)


def shape(*sizes, dtype=F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


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


def trace(e, target="cpu"):
    """The program of an experiment, its train step's jaxpr and the traced step."""
    program = plan(e, parse_target(target))
    with jax.set_mesh(program.mesh):
        traced = program.train_step.trace(program.state, abstract_batch(program))
    return program, traced.jaxpr, traced


# Attention kernels


@pytest.mark.parametrize(
    ("T", "block_q", "block_k", "window"),
    [
        (1024, 128, 128, 0),
        (1024, 256, 128, 0),
        (1024, 128, 512, 0),
        (2048, 128, 256, 300),
        (2048, 256, 128, 1),
        (512, 256, 256, 999),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_the_share_of_visited_pairs_is_the_mask_s(T, block_q, block_k, window, causal):
    seen = np.ones((T, T), bool) if not causal else np.tri(T, dtype=bool)
    seen &= ~np.tri(T, k=-window, dtype=bool) if window else True
    blocks = seen.reshape(T // block_q, block_q, T // block_k, block_k).any((1, 3))
    assert share.visited(T, T, block_q, block_k, causal=causal, window=window) == pytest.approx(
        blocks.mean(), rel=1e-12
    )


def attention(kernel, T, K, H, causal, dtype=F32):
    """The gradient of a kernel's attention of 2 rows and 4 heads, as a jaxpr."""
    numbers = jnp.broadcast_to(jnp.arange(T), (2, T))
    visibility = Visibility(
        numbers,
        numbers,
        jnp.ones((2, T), jnp.int32),
        jnp.ones((2, T), jnp.int32),
        causal,
        packed=True,
    )
    loss = lambda q, k, v: jnp.sum(kernel.attend(q, k, v, visibility, 0.1, interpret=True))
    return jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(
        shape(2, T, 4, H, dtype=dtype), *(shape(2, T, K, H, dtype=dtype),) * 2
    )


@pytest.mark.parametrize(
    "kernel", [splash, flash], ids=lambda kernel: kernel.__name__.split(".")[-1]
)
def test_attention_kernels_count_as_their_bodies_do(kernel, monkeypatch):
    # Without a mask every block is visited and every loop of Triton's has a known end, so that the
    # bodies can be counted. A head of 24 is one of 32 to Triton.
    jaxpr = attention(kernel, 256, 2, 24, causal=False)
    named = sum(executed(jaxpr, 1).values())
    monkeypatch.setattr(share, "shares", lambda scopes: {})
    assert named == sum(executed(jaxpr, 1).values())


def test_attention_kernels_under_a_mask():
    whole, masked = (
        sum(executed(attention(splash, 1024, 4, 64, causal), 1).values())
        for causal in (False, True)
    )
    di = 2 * 2 * 4 * 1024 * 64  # products beside the kernels: of the output and its gradient
    # Blocks of 512: three of four.
    assert (masked - di) / (whole - di) == 0.75
    whole, masked = (
        sum(executed(attention(flash, 512, 4, 64, causal), 1).values()) for causal in (False, True)
    )
    pair = 2 * 2 * 4 * 512 * 512 * 64
    assert whole == 9 * pair
    # Forward blocks of 128 queries and 64 keys: 2 + 4 + 6 + 8 of 4 x 8; backward 32 by 32: 16 x 17
    # / 2 of 16 x 16.
    assert masked == pytest.approx((2 * 20 / 32 + 7 * 136 / 256) * pair, rel=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [quantized_matmul_tpu, quantized_matmul_gpu], ids=["tpu", "gpu"])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_quantized_products_tell_what_their_bodies_do(kernel, transposed, dtype):
    N, R, O, M = 4, 64, 256, 200
    inputs = N * R * (2 if dtype == jnp.uint8 else 1)
    multiply = partial(kernel.matmul, book=None, transposed=transposed)
    x = shape(M, O if transposed else inputs, dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(multiply)(x, shape(N, R, O, dtype=dtype), shape(N, 1, O))
    told = executed(jaxpr, 1)
    filled = (
        256 if kernel is quantized_matmul_gpu else 208
    )  # whole tiles of 128 tokens, or of 16 rows
    assert told == {"bfloat16": 2 * filled * inputs * O}
    eqns = [
        e.replace(params={**e.params, "cost_estimate": None}) if "cost_estimate" in e.params else e
        for e in jaxpr.eqns
    ]
    assert told == executed(jaxpr.replace(jaxpr=jaxpr.jaxpr.replace(eqns=eqns)), 1)


# What a model needs


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("T", "S", "window"), [(7, 7, 0), (9, 9, 4), (5, 8, 0), (5, 8, 3), (5, 5, 9), (1, 6, 2)]
)
def test_visible_pairs_are_the_mask_s(T, S, causal, window):
    q, k = jnp.arange(S - T, S)[None], jnp.arange(S)[None]
    mask = Visibility(q, k, jnp.ones_like(q), jnp.ones_like(k), causal, window).mask_BTS()
    assert visible_pairs(T, S, causal=causal, window=window) == int(mask.sum())


@pytest.mark.parametrize(
    "model", ["llama3_8b", "gpt2", "mistral_7b", "t5_base", "transformer_base", "bert_base"]
)
def test_the_forward_is_what_evaluation_executes_but_for_what_nobody_needs(model):
    e = experiment("pretrain", f"model={model},smoke", **{"execution.attention": "xla"})
    program, c = plan(e, parse_target("cpu")), e.model
    batch = abstract_batch(program)
    with jax.set_mesh(program.mesh):
        traced = program.eval_step.trace(program.state.trainable, program.state.held, batch)
    (B, T), S = batch["inputs"].shape, batch["encoder_inputs"].shape[1] if c.encoder_layers else 0
    hidden = T * T - visible_pairs(T, T, causal=c.kind != "encoder", window=c.window)
    wasted = 4 * B * c.layers * c.heads * c.head_size * hidden
    if model == "bert_base":  # the head over the tokens that are not predicted
        wasted += 0.85 * 2 * B * T * c.d_model * (c.vocab_size + c.d_model)
    if model == "t5_base":  # distances as products with their one-hot buckets, once a stack
        wasted += 2 * B * 32 * c.heads * (T * T + S * S)
    assert sum(executed(traced.jaxpr, 1).values()) == pytest.approx(
        flops.forward(program) + wasted, rel=1e-12
    )


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "adapter", "prefix", "ia3"])
def test_what_is_frozen_has_no_gradient(method):
    sizes = {name: size for name, size in SIZES.items() if name != "execution.unroll"} | {
        "model.kv_heads": 2
    }
    changes = {"execution.remat": "none", "execution.feed_tokens": 0}
    program, jaxpr, _ = trace(
        experiment("finetune", f"model=llama3_8b,method={method}", **sizes, **changes)
    )
    c, T, n = program.experiment.model, 128, 20 if method == "prefix" else 0
    hidden = T * (T + n) - visible_pairs(T, T + n, causal=True)
    if n == 0:  # attention in four blocks of queries, each over what stands before and in it
        hidden = 0.625 * T * T - visible_pairs(T, T, causal=True)
    wasted = 3 * 4 * program.batch_size * c.layers * c.heads * c.head_size * hidden
    assert sum(executed(jaxpr, 1).values()) == pytest.approx(
        flops.model(program) + wasted, rel=1e-12
    )
    assert (method == "full") == (flops.model(program) == 3 * flops.forward(program))


def test_experts_that_a_token_visits():
    c = replace(experiment("pretrain", "model=mixtral_8x7b,smoke").model, layers=1)
    specs = {"layers": {}}
    more = replace(c, experts_per_token=2 * c.experts_per_token)
    one, two = (forward_flops(config, specs, Texts(1, 64, predicted=64)) for config in (c, more))
    assert two - one == 2 * 64 * c.experts_per_token * 3 * c.d_model * c.d_ff


def test_the_training_figure_is_the_model_s():
    e = experiment("pretrain", "model=llama3_8b,smoke")
    program = plan(e, parse_target("cpu"))
    tokens = program.batch_size * e.data.sequence_length
    assert flops.model(program) == train_flops_per_token(e.model, e.data.sequence_length) * tokens


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
