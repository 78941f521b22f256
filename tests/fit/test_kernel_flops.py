"""FLOPs of kernels: what they tell against what their bodies do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.fit.flops import executed
from research.ops.attention import Visibility
from research.ops.kernels import (
    flash,
    grouped_matmul_gpu,
    grouped_matmul_tpu,
    quantized_matmul_gpu,
    quantized_matmul_tpu,
    splash,
)
from research.ops.kernels import visible_share as share
from research.weights.quantized import quantize_array
from tests.fit.counting import shape


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
    if window:
        seen &= ~np.tri(T, k=-window, dtype=bool)
        seen &= causal | np.tri(T, k=window - 1, dtype=bool)  # a window reaches to both sides
    blocks = seen.reshape(T // block_q, block_q, T // block_k, block_k).any((1, 3))
    assert share.visited(T, T, block_q, block_k, causal=causal, window=window) == pytest.approx(
        blocks.mean(), rel=1e-12
    )


def attention(kernel, T, K, H, causal, dtype=jnp.float32):
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


@pytest.mark.parametrize(
    ("kernel", "transposed"),
    [(quantized_matmul_tpu, False), (quantized_matmul_tpu, True), (quantized_matmul_gpu, False)],
    ids=["tpu", "tpu transposed", "gpu"],
)
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_quantized_products_tell_what_their_bodies_do(kernel, transposed, dtype):
    N, R, O, M = 4, 64, 256, 200
    inputs = N * R * (2 if dtype == jnp.uint8 else 1)
    named = {"transposed": True} if transposed else {}
    multiply = partial(kernel.matmul, book=None, **named)
    x = shape(M, O if transposed else inputs, dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(multiply)(x, shape(N, R, O, dtype=dtype), shape(N, 1, O))
    told = executed(jaxpr, 1)
    filled = 208  # whole tiles of 16 rows
    assert told == {"bfloat16": 2 * filled * inputs * O}
    eqns = [
        e.replace(params={**e.params, "cost_estimate": None}) if "cost_estimate" in e.params else e
        for e in jaxpr.eqns
    ]
    assert told == executed(jaxpr.replace(jaxpr=jaxpr.jaxpr.replace(eqns=eqns)), 1)


def hopper():
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, platform="gpu")
    types = (jax.sharding.AxisType.Explicit,)
    return jax.sharding.AbstractMesh((1,), ("data",), types, abstract_device=device)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_grouped_product_on_a_card_counts_whole_tiles_for_each_group(transposed):
    M, E, inner, outer = 1000, 8, 128, 256
    x = shape(M, outer if transposed else inner, dtype=jnp.bfloat16)
    w, sizes = shape(E, inner, outer, dtype=jnp.bfloat16), shape(E, dtype=jnp.int32)
    jaxpr = jax.make_jaxpr(lambda *a: grouped_matmul_gpu.rows(*a, transposed))(x, w, sizes)
    # 6 tiles of 192 rows, and 7 groups that may begin within one.
    assert executed(jaxpr, 1) == {"bfloat16": pytest.approx(2 * 13 * 192 * inner * outer)}
    with jax.sharding.use_abstract_mesh(hopper()):
        jaxpr = jax.make_jaxpr(lambda *a: grouped_matmul_gpu.matrices(*a, jnp.float32))(
            shape(M, inner, dtype=jnp.bfloat16), shape(M, outer, dtype=jnp.bfloat16), sizes
        )
    # 16 tiles of 64 rows.
    assert executed(jaxpr, 1) == {"bfloat16": pytest.approx(2 * 23 * 64 * inner * outer)}


def test_experts_one_by_one_count_as_all_at_once():
    x, w = shape(256, 128, dtype=jnp.bfloat16), jnp.zeros((4, 128, 256))
    quantized = quantize_array(w, "int8", inputs=1, stacked=1)
    counts = [
        executed(
            jax.make_jaxpr(lambda x, s: multiply(x, w, s, False))(x, shape(4, dtype="int32")), 1
        )
        for multiply, w in (
            (grouped_matmul_tpu.rows_of_leaf, quantized),
            (grouped_matmul_tpu.rows, w.astype(jnp.bfloat16)),
        )
    ]
    assert counts[0] == counts[1] == {"bfloat16": 2 * 256 * 128 * 256}
