"""Weights laid out for decoding give what the model's own give."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer import decode_layout
from research.infer.decode import generate
from research.infer.decode_layout import DecodeWeight, move, prepare
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.models.spec import initialize
from research.ops.einsum import einsum, take
from research.ops.kernels import quantized_matvec_gpu
from research.parallel.mesh import make_mesh
from research.precision import Precision
from research.weights.rules import quantize
from tests.families import DECODERS, FAMILIES, random_batch, rest_slow

CHUNK, LENGTH = 4, 12


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize(
    "eqn, shape, contracted",
    [
        ("BTD,DF->BTF", (48, 100), (0,)),
        ("BTD,DNH->BTNH", (48, 4, 32), (0,)),
        ("BTNH,NHD->BTD", (4, 12, 64), (0, 1)),
        ("BTD,VD->BTV", (130, 48), (1,)),
    ],
)
def test_a_turned_weight_multiplies_like_the_array(eqn, shape, contracted, rows):
    w = jax.random.normal(jax.random.key(0), shape)
    inner = tuple(shape[axis] for axis in contracted)
    x = jax.random.normal(jax.random.key(1), (1, rows, *inner))
    laid = decode_layout._transpose(w, jnp.float32, contracted)
    # Sums of 48 products of the order of 1 in another order.
    np.testing.assert_allclose(einsum(eqn, x, laid), einsum(eqn, x, w), atol=2e-5)


def test_a_turned_weight_refuses_a_product_over_other_axes():
    laid = decode_layout._transpose(jnp.ones((8, 8)), jnp.float32, (0,))
    with pytest.raises(ValueError, match="the weight contracts 'D'"):
        laid.einsum("BTD,DF->BFT", jnp.ones((1, 2, 8)))


def test_rows_of_a_turned_table_are_its_rows():
    table, ids = jax.random.normal(jax.random.key(0), (130, 8)), np.array([[0, 63], [64, 129]])
    laid = decode_layout._transpose(table, jnp.float32, (1,))
    np.testing.assert_array_equal(take(laid, ids, jnp.float32), table[ids])


@partial(jax.jit, static_argnums=(0, 3))
def decoded(model, params, batch, layered):
    """Logits of two chunks from a cache, its layers in one array or layered."""
    memory = model.encode(params, batch) if model.config.kind == "encoder_decoder" else None
    cache = model.make_cache(2, LENGTH, CHUNK)
    cache, logits = cache.layered() if layered else cache, []
    for first in range(0, 2 * CHUNK, CHUNK):
        part = {
            name: batch[name][:, first : first + CHUNK]
            for name in ("inputs", "segments", "positions")
        }
        hidden_BTD, cache = model.decode(params, part, cache, memory)
        logits.append(model.logits(params, hidden_BTD))
    return jnp.concatenate(logits, axis=1)


@pytest.mark.parametrize("name", rest_slow([*DECODERS, "t5_small", "transformer_base"]))
def test_prepared_parameters_give_the_models_logits(name):
    model, batch = Model(FAMILIES[name]), random_batch(2, LENGTH)
    batch["positions"] = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    batch["segments"] = np.ones_like(batch["segments"])
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    prepared = prepare(model, params)
    assert any(
        isinstance(leaf, DecodeWeight)
        for leaf in jax.tree.leaves(prepared, is_leaf=lambda x: isinstance(x, DecodeWeight))
    )
    assert prepare(model, prepared) is prepared
    want = decoded(model, params, batch, False)
    for layered in (False, True):
        # Sums of the same float32 products in another order; logits are of the order of 1.
        np.testing.assert_allclose(decoded(model, prepared, batch, layered), want, atol=1e-5)


def test_bfloat16_is_laid_out_in_the_type_of_computation():
    model = Model(FAMILIES["llama2_7b"], Precision(compute="bfloat16"))
    prepared = prepare(model, initialize(jax.random.key(0), model.specs(), jnp.float32))
    assert prepared["layers"][0]["mlp"]["up"].transposed_NK.dtype == jnp.bfloat16
    assert (
        prepared["layers"][0]["mlp_norm"]["scale"].dtype == jnp.float32
    )  # norms are computed in it


def test_a_mesh_of_one_device_is_laid_out_and_one_of_more_is_not():
    model = Model(replace(FAMILIES["llama2_7b"], layers=1))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    for text, laid_out in (("", True), ("fsdp:8", False)):
        with jax.set_mesh(make_mesh(text)):
            assert isinstance(prepare(model, params)["layers"], tuple) == laid_out


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.fixture
def on_a_gpu(monkeypatch):
    """This machine's CPU, taken for a GPU; the bytes that are live at each step of `move`."""
    seen, transposed = [], decode_layout._transposed

    def watched(*given):
        made = transposed(*given)
        seen.append(live_bytes())
        return made

    monkeypatch.setattr(decode_layout, "platform", lambda: "gpu")
    monkeypatch.setattr(decode_layout, "_transposed", watched)
    return seen


@pytest.mark.parametrize(
    ("format", "compute"), [("", "float32"), ("nf4", "float32"), ("", "bfloat16")]
)
def test_weights_move_without_a_second_copy_and_write_the_same(on_a_gpu, format, compute):
    tokenizer, prompts = load_tokenizer("bytes"), ["def f(", "x"]
    c = replace(FAMILIES["llama2_7b"], layers=4, vocab_size=tokenizer.vocab_size, d_model=64)
    model = Model(c, Precision(compute=compute))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    if format:
        params = quantize(params, model.specs(), [("layers/mlp/.*", format), (".*", None)])
    params = jax.tree.map(jnp.copy, params)  # its own buffers: `move` frees them
    write = partial(generate, tokenizer=tokenizer, prompts=prompts)
    write = partial(write, config=SamplingConfig(max_tokens=3, temperature=0.0))
    exact = compute == "float32"  # in bfloat16 two tokens may be equally likely
    want = [row.token_ids for row in write(model, params)] if exact else None
    assert prepare(model, params) is params  # a copy has no room on an accelerator
    stacked, others = params["layers"]["attention"]["query"], live_bytes()
    weights = sum(array.nbytes for array in jax.tree.leaves(params))
    others -= weights
    moved = move(model, params)
    assert stacked.is_deleted() and on_a_gpu
    assert max(on_a_gpu) - others < 1.15 * weights
    assert move(model, moved) is moved
    assert not exact or [row.token_ids for row in write(model, moved)] == want


@pytest.mark.parametrize("timed", [False, True])
def test_scales_are_plain_where_a_kernel_of_decoding_reads_them(on_a_gpu, monkeypatch, timed):
    monkeypatch.setattr(quantized_matvec_gpu, "FASTEST", {"book": (1, 8)} if timed else {})
    model = Model(replace(FAMILIES["llama2_7b"], layers=2, d_model=64))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    params = quantize(params, model.specs(), [("layers/mlp/.*", "nf4"), (".*", None)])
    params = jax.tree.map(jnp.copy, params)
    want, weights = params["layers"]["mlp"]["down"].dense(), live_bytes()
    moved = move(model, params)["layers"][1]["mlp"]["down"]
    assert moved.scales == ("float32" if timed else "double")
    assert jnp.array_equal(moved.dense(), want[1])
    assert max(on_a_gpu) < 1.15 * weights
