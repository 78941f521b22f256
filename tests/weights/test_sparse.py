"""A sparse weight keeps its zeros: under gradients, adapters, merging, quantization, in stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.compress.masks import Pruning
from research.compress.prune import prune_matrix
from research.ops.einsum import einsum
from research.weights.ia3 import Ia3Adapter
from research.weights.lora import LoraAdapter
from research.weights.quantized import quantize_array
from research.weights.rules import attach, detach, merge
from research.weights.sparse import Sparse, count_nonzero, innermost


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def sparse(format=""):
    w = prune_matrix(random(32, 16), "magnitude", Pruning(0.5), inputs=1)
    return Sparse(quantize_array(w, format, inputs=1, group=16) if format else w)


def adapter(kind, dropout=0.0):
    if kind == "ia3":
        return Ia3Adapter(1 + 0.1 * jnp.abs(random(1, 16)), False)
    magnitude = 1 + jnp.abs(random(16)) if kind == "dora" else None
    return LoraAdapter(random(32, 2), random(2, 16, seed=1), jnp.float32(0.5), magnitude, False,
                       dropout)  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("format", ["", "int4", "nf4"])
def test_an_adapter_and_its_merging_leave_the_zeros(kind, format):
    base = {"w": sparse(format)}
    zeros = np.asarray(base["w"].dense()) == 0
    adapters = {"w": adapter(kind)}
    attached = attach(base, adapters)
    merged = merge(attached)
    assert isinstance(attached["w"], Sparse) and isinstance(merged["w"], Sparse)
    assert isinstance(merged["w"].base, jax.Array)
    np.testing.assert_array_equal(np.asarray(attached["w"].dense())[zeros], 0)
    np.testing.assert_array_equal(merged["w"].dense(), attached["w"].dense())
    assert count_nonzero(merged["w"]) == (~zeros).sum() <= 32 * 16 // 2
    back, given = detach(attached)
    assert back["w"] is not base["w"] and innermost(back["w"]) is innermost(base["w"])
    assert given["w"] is adapters["w"]
    # The law of merging: the adapted weight computes what the merged one does.
    x = random(4, 32, seed=2)
    np.testing.assert_allclose(
        einsum("BD,DF->BF", x, attached["w"]), x @ merged["w"].dense(), atol=1e-4
    )


def test_gradients_reach_what_is_kept_and_nothing_else():
    w = sparse()
    zeros = np.asarray(w.base) == 0

    def loss(w):
        return jnp.sum(jnp.square(einsum("BD,DF->BF", random(8, 32), w)))

    optimizer = optax.adamw(0.1, weight_decay=0.3)
    state = optimizer.init(w)
    for _ in range(3):
        gradient = jax.grad(loss)(w)
        np.testing.assert_array_equal(np.asarray(gradient.base)[zeros], 0)
        updates, state = optimizer.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(np.asarray(w.base) == 0, zeros)


def test_codes_are_multiplied_as_they_are():
    w = sparse("nf4")
    x = random(4, 32)
    want = w.base.einsum("BD,DF->BF", x)
    np.testing.assert_array_equal(w.einsum("BD,DF->BF", x), want)
    assert w.nbits() == w.base.nbits()


def test_bits_without_the_zeros():
    w = sparse()
    assert w.packed_nbits() == 256 * 32 + 512
    assert w.nbits() == 512 * 32


def test_dropout_of_an_adapter_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="layers/up is sparse, .* config.lora.dropout=0"):
        attach({"layers": {"up": sparse()}}, {"layers": {"up": adapter("lora", 0.1)}}, key)
