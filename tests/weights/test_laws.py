"""Laws of the tree algebra, on any family."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import tree
from research.models.model import Model, forward
from research.models.spec import abstract, initialize, shardings
from research.objectives.causal_lm import CausalLM
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.formats import FORMATS, decode, encode, pack, unpack
from research.weights.matrices import LINEAR
from research.weights.quantized import Quantized, quantize_array, stack
from research.weights.rules import (
    attach,
    detach,
    is_leaf,
    merge,
    quantize,
    quantize_specs,
)
from tests.families import FAMILIES, random_batch

MATRICES = r"(encoder/)?layers/(attention|cross)/(query|key|value|out)"


def equal(first, second):
    """Whether two trees are the same, structure and bits."""
    return jax.tree.structure(first) == jax.tree.structure(second) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second))
    )


def new_lora(specs, targets=MATRICES, **settings):
    """Fresh adapters."""
    return initialize(
        jax.random.key(1),
        lora_specs(specs, LoraConfig(targets=targets, **settings)),
        np.dtype("float32"),
    )


def model_of(name):
    """A family's small model, its specs and parameters."""
    model = Model(FAMILIES[name])
    return model, model.specs(), initialize(jax.random.key(0), model.specs(), np.dtype("float32"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_adapter_changes_nothing_and_comes_off_again(name):
    model, specs, params = model_of(name)
    adapters = new_lora(specs, rank=4)
    adapted = attach(params, adapters)
    batch = random_batch(2, 16)
    np.testing.assert_array_equal(forward(model, adapted, batch), forward(model, params, batch))
    base, off = detach(adapted)
    assert equal(base, params) and equal(off, adapters)


@pytest.mark.parametrize("name", ["llama2_7b", "gpt2", "t5_small"])
def test_merging_an_adapter_changes_nothing(name):
    model, specs, params = model_of(name)
    # Of the embedding table too, which is read by rows and, where it is tied, multiplied with.
    adapters = new_lora(
        specs, rank=4, targets=f"{MATRICES}|embed/table", rank_rules=(("embed/table", 2),)
    )
    noisy = [
        x + 0.1 * jax.random.normal(jax.random.key(n), x.shape)
        for n, x in enumerate(jax.tree.leaves(adapters))
    ]
    adapted = attach(params, jax.tree.unflatten(jax.tree.structure(adapters), noisy))
    batch = random_batch(2, 16)
    got, want = forward(model, merge(adapted), batch), forward(model, adapted, batch)
    assert float(jnp.abs(want - forward(model, params, batch)).max()) > 0.01
    np.testing.assert_allclose(
        got, want, atol=1e-4
    )  # W + ab and x W + (x a) b round apart, in logits of some tens


@given(
    format=st.sampled_from(sorted(FORMATS)),
    seed=st.integers(0, 2**16),
    group=st.sampled_from([32, 64]),
)
@settings(max_examples=40, deadline=None)
def test_a_value_is_within_half_a_step_of_what_is_kept(format, seed, group):
    x = (
        np.random.default_rng(seed).normal(size=(4, group)).astype(np.float32)
        * 10.0 ** np.arange(-2, 2)[:, None]
    )
    got = decode(FORMATS[format], *encode(FORMATS[format], jnp.asarray(x)))
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(np.asarray(got) - x) <= FORMATS[format].error * largest * (1 + 1e-5)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_quantizing_a_stack_is_stacking_what_is_quantized(format):
    w = jax.random.normal(jax.random.key(0), (3, 4, 32, 64))
    whole = quantize_array(w, format, inputs=2, stacked=1)
    assert equal(whole, stack([quantize_array(one, format, inputs=2) for one in w]))
    assert whole.shape == w.shape
    inner = whole.codes.ndim - 1 - whole.after
    assert whole.codes.shape[inner] == (FORMATS[format].group or 128) // (8 // FORMATS[format].bits)


@given(
    format=st.sampled_from([f for f in sorted(FORMATS) if FORMATS[f].bits == 4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_codes_of_four_bits_come_out_of_their_bytes(format, seed):
    low = -8 if FORMATS[format].codes == "integer" else 0
    codes = (
        np.random.default_rng(seed)
        .integers(low, low + 16, (3, 8, 2))
        .astype("int8" if low else "uint8")
    )
    packed = pack(FORMATS[format], jnp.asarray(codes), axis=1)
    assert packed.shape == (3, 4, 2) and packed.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack(FORMATS[format], packed, axis=1), codes)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["llama2_7b", "mixtral_8x7b", "t5_small"])
def test_what_specs_say_of_quantized_parameters_is_what_they_are(name, format):
    _, specs, params = model_of(name)
    rules = [(r"(encoder/)?layers/\w+/(query|out|up|down)|embed/table", format), (".*", None)]
    made, said = quantize(params, specs, rules, group=16), quantize_specs(specs, rules, group=16)
    assert jax.tree.structure(made) == jax.tree.structure(said)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda s: (s.shape, s.dtype), abstract(said, np.dtype("float32"))
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantized_model_computes_what_its_dense_form_does(format):
    model, specs, params = model_of("llama2_7b")
    quantized = quantize(params, specs, [(MATRICES, format), (".*", None)], group=32)
    dense = jax.tree.map(
        lambda leaf: jax.vmap(Quantized.dense)(leaf) if isinstance(leaf, Quantized) else leaf,
        quantized,
        is_leaf=is_leaf,
    )
    batch = random_batch(2, 16)
    np.testing.assert_allclose(
        forward(model, quantized, batch), forward(model, dense, batch), atol=1e-5
    )
    assert tree.nbits(quantized) < tree.nbits(params)


def test_rows_of_a_quantized_table_are_those_of_its_dense_form():
    w, ids = jax.random.normal(jax.random.key(0), (50, 64)), jnp.asarray([[3, 7], [0, 49]])
    for format in FORMATS:
        table = quantize_array(w, format, inputs=-1)
        np.testing.assert_array_equal(table.take(ids), table.dense()[ids])


def test_no_dense_weight_is_kept_for_the_backward_pass():
    w, x = (
        quantize_array(jax.random.normal(jax.random.key(0), (512, 512)), "nf4", inputs=1),
        jnp.ones((4, 8, 512)),
    )
    _, pull = jax.vjp(lambda x: w.einsum("BTD,DF->BTF", x), x)
    kept = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull)]
    # Codes count a byte each here, whatever the device packs.
    assert sum(kept) <= 1.1 * 512 * 512


def test_no_dense_weight_is_kept_by_a_training_step():
    """Without rematerialisation, on a batch so small that every activation is far smaller than a
    weight."""
    model = Model(
        replace(FAMILIES["llama2_7b"], d_model=128, d_ff=256, heads=8, kv_heads=8, head_size=16)
    )
    specs = model.specs()
    params = initialize(jax.random.key(0), specs, np.dtype("float32"))
    frozen = quantize(
        params, specs, [(LINEAR, "nf4"), ("embed/table|head/table", "int8"), (".*", None)]
    )
    adapters = new_lora(specs, targets="all-linear", rank=2)
    batch = random_batch(1, 4)
    _, pull = jax.vjp(
        lambda a: CausalLM().loss(model, a, {"base": frozen}, batch, None)[0], adapters
    )
    kept = [x for x in jax.tree.leaves(pull) if jnp.issubdtype(x.dtype, jnp.floating)]
    own = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((frozen, adapters))}
    largest = max(x.size for x in kept if x.unsafe_buffer_pointer() not in own)
    assert largest < 128 * 128  # the smallest dense weight, of one layer alone


@pytest.mark.parametrize("mesh", ["", "expert:4,tensor:2", "fsdp:2,expert:2,tensor:2"])
@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_experts_in_codes_with_adapters_compute_what_their_dense_form_does(format, mesh):
    model, specs, params = model_of("mixtral_8x7b")
    experts = "layers/mlp/(gate|up|down)"
    adapters = new_lora(specs, targets=experts, rank=4)
    noisy = [
        x + 0.1 * jax.random.normal(jax.random.key(n), x.shape)
        for n, x in enumerate(jax.tree.leaves(adapters))
    ]
    adapters = jax.tree.unflatten(jax.tree.structure(adapters), noisy)
    rules = [(experts, format), (".*", None)]
    frozen, batch = quantize(params, specs, rules, group=16), random_batch(4, 8)
    want = forward(model, merge(attach(frozen, adapters)), batch)
    if mesh:
        mesh = make_mesh(mesh)
        with jax.set_mesh(mesh):
            frozen = jax.device_put(
                frozen, shardings(quantize_specs(specs, rules, group=16), mesh, RULES)
            )
            adapters = jax.device_put(
                adapters,
                shardings(lora_specs(specs, LoraConfig(targets=experts, rank=4)), mesh, RULES),
            )
            got = jax.jit(lambda f, a, b: forward(model, attach(f, a), b))(
                frozen, adapters, place_batch(batch, mesh, RULES, 4)
            )
    else:
        got = forward(model, attach(frozen, adapters), batch)
    np.testing.assert_allclose(got, want, atol=1e-4)  # W + ab and x W + (x a) b round apart


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda p, s: quantize(p, s, [("layers/atention/query", "nf4"), (".*", None)]),
            "nearest are",
        ),
        (
            lambda p, s: quantize(p, s, [("final_norm/scale", "nf4"), (".*", None)]),
            "final_norm/scale is no matrix",
        ),
        (
            lambda p, s: quantize(p, s, [(MATRICES, "nf4"), (".*", None)], 64),
            "groups of 64 do not divide 32 inputs",
        ),
        (lambda p, s: new_lora(s, rank=64), "rank 64 is over the 32 of"),
        (lambda p, s: attach(p["embed"], new_lora(s, rank=4)), "another model"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(change, says):
    _, specs, params = model_of("llama2_7b")
    with pytest.raises(ValueError, match=says):
        change(params, specs)
