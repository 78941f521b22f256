"""The loss over a frozen table: that of its dense form, without a table, its gradient or logits in
memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import frozen_head, token_chunks
from research.ops.frozen_head import frozen_head_loss
from research.ops.plain_head import head_loss
from research.parallel.axes import RULES, constrain
from research.parallel.mesh import make_mesh
from research.weights.quantized import quantize_array


def arrays(words=384, width=64, rows=4, length=32):
    """States, a table, targets, and weights of which some are 0."""
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(rows, length, width)), rng.normal(size=(words, width))
    targets = rng.integers(0, words, (rows, length), dtype=np.int32)
    weights = (rng.random((rows, length)) > 0.2).astype(np.float32)
    return jnp.asarray(states, jnp.float32), jnp.asarray(table, jnp.float32), targets, weights


@pytest.mark.parametrize("format", ["nf4", "int8", "uint4"])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 1e-2)])
@pytest.mark.parametrize(("chunk", "block"), [(0, 1 << 14), (50, 128)])
def test_it_is_the_loss_of_the_dense_table(format, smoothing, z_loss, chunk, block, monkeypatch):
    # 50 tokens fill the last chunk up; 128 rows are three blocks.
    monkeypatch.setattr(frozen_head, "BLOCK", block)
    states, table, targets, weights = arrays()
    held = quantize_array(table, format, inputs=-1)

    def value_and_grad(head, table):
        terms = (smoothing, z_loss, 0.0, chunk)
        return jax.value_and_grad(lambda x: head(x, table, targets, weights, *terms)[0])(states)

    got, gradient = value_and_grad(frozen_head_loss, held)
    want, wanted = value_and_grad(head_loss, held.dense())
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)  # sums over the words in another order
    nll = frozen_head_loss(states, held, targets, weights, smoothing, z_loss)[1]
    np.testing.assert_allclose(
        nll, head_loss(states, held.dense(), targets, weights, smoothing, z_loss)[1], rtol=1e-6
    )


def test_a_soft_cap_is_that_of_the_dense_table(monkeypatch):
    monkeypatch.setattr(frozen_head, "BLOCK", 128)
    states, table, targets, weights = arrays()
    codes = quantize_array(table, "int8", inputs=-1)

    def value_and_grad(head, table):
        return jax.value_and_grad(lambda x: head(x, table, targets, weights, 0.1, 1e-2, 3.0)[0])(
            states
        )

    got, gradient = value_and_grad(frozen_head_loss, codes)
    want, wanted = value_and_grad(head_loss, codes.dense())
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)  # sums over the words in another order


@pytest.mark.parametrize(
    "mesh", ["data:2,fsdp:2,tensor:2", "fsdp:2,context:2,tensor:2", "expert:8"]
)
def test_split_tokens_and_a_split_vocabulary_change_nothing(mesh):
    states, table, targets, weights = arrays(rows=8)
    held = quantize_array(table, "nf4", inputs=-1)
    value_and_grad = jax.value_and_grad(lambda *of: frozen_head_loss(*of, 0.1, 1e-2)[0])
    want, wanted = value_and_grad(states, held, targets, weights)
    with jax.set_mesh(make_mesh(mesh)):
        codes = constrain(held.codes, ("vocab", "embed", "group"), RULES)
        placed = constrain(states, ("batch", "length", "vector"), RULES)
        rest = (constrain(jnp.asarray(x), ("batch", "length"), RULES) for x in (targets, weights))
        got, gradient = jax.jit(value_and_grad)(placed, replace(held, codes=codes), *rest)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    assert jax.typeof(gradient).sharding == jax.typeof(placed).sharding


def temporaries(loss, *shapes):
    """Bytes that the compiled gradient in the first argument needs beside arguments and results."""
    return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_neither_table_nor_logits_nor_the_tables_gradient_exist_whole(monkeypatch):
    monkeypatch.setattr(frozen_head, "BLOCK", 1024)
    words, width, tokens = 16384, 256, 4 * token_chunks.CHUNK
    states = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    dense = jax.ShapeDtypeStruct((words, width), jnp.float32)
    held = jax.eval_shape(lambda w: quantize_array(w, "nf4", inputs=-1), dense)
    targets, weights = jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens))
    whole, chunk = 4 * words * width, 4 * token_chunks.CHUNK * words
    frozen = temporaries(
        lambda x, table: frozen_head_loss(x, table, targets, weights)[0], states, held
    )
    assert (
        frozen < chunk + 0.5 * whole
    )  # the logits of a chunk, a block of the table, the states' gradient
    array = temporaries(lambda x, table: head_loss(x, table, targets, weights)[0], states, dense)
    trained = temporaries(lambda both: head_loss(*both, targets, weights)[0], (states, dense))
    assert array < trained - 0.5 * whole  # a dense table that is not trained has no gradient either
