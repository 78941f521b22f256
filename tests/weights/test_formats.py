"""Formats that are no part of the package, each added by one row: it quantizes, stacks, trains
under LoRA, and comes back from a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models.model import Model, forward
from research.models.spec import abstract, initialize
from research.objectives.causal_lm import CausalLM
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.tuning.method import QuantizeConfig
from research.weights.formats import FORMATS, Format, decode, encode, pack, unpack
from research.weights.quantized import quantize_array, stack
from research.weights.rules import attach, quantize, quantize_specs
from tests.families import FAMILIES, random_batch

# Whole numbers, and scales that are powers of two: values up to 8 are cut to 7.
SEVENS = (0, 1, 2, 3, 4, 5, 6, 7, -0.0, -1, -2, -3, -4, -5, -6, -7)
# Bounds: half a step of int3's top 3 and of offset6's 63, which may span twice the largest value.
OUTSIDE = [
    Format("sevens", 4, "book", 32, error=0.125, scales="e8m0", entries=SEVENS),
    Format("int3", 3, "integer", 32, error=0.5 / 3),
    Format("offset6", 6, "offset", 32, error=1 / 63),
]
MODEL = Model(FAMILIES["llama2_7b"])
RULES = [(r"layers/\w+/(query|out|up|down)|embed/table", "outside"), (".*", None)]


@pytest.fixture(params=OUTSIDE, ids=lambda format: format.name)
def row(request, monkeypatch):
    """The row of the table, under the name "outside"."""
    monkeypatch.setitem(FORMATS, "outside", request.param)
    return request.param


def test_values_are_within_the_rows_bound_and_take_its_bits(row):
    w = jax.random.normal(jax.random.key(0), (4, 64, 16)) * 10.0 ** jnp.arange(-2, 2)[:, None, None]
    held = quantize_array(w, "outside", inputs=1, stacked=1)
    groups = np.abs(np.asarray(w).reshape(4, 2, 32, 16))
    largest = np.broadcast_to(groups.max(2, keepdims=True), groups.shape).reshape(w.shape)
    assert (np.abs(held.dense() - w) <= row.error * largest * (1 + 1e-5)).all()  # float32 rounding
    scales = {"float32": 32, "e8m0": 8}[row.scales] * (2 if row.has_zero else 1)
    assert held.nbits() == w.size * row.bits + w.size // 32 * scales
    assert held.group == 32 and held.shape == w.shape
    codes, *_ = encode(row, jnp.moveaxis(w.reshape(4, 2, 32, 16), 2, -1))
    np.testing.assert_array_equal(unpack(row, pack(row, codes)), codes)
    one = stack([quantize_array(layer, "outside", inputs=1) for layer in w])
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(held)))


def test_mxfp4_scales_are_the_specifications_powers_of_two():
    """MX 1.0, section 6.3: 2^(floor(log2 of the largest) - 2), with values over 6 cut to it."""
    row = FORMATS["mxfp4"]
    x = np.array([[7.9, 0.24, -1.6], [4.0, 0.3, 6.0], [0.03, -0.01, 0], [0, 0, 0]], np.float32)
    codes, scale, _ = encode(row, jnp.asarray(x))
    np.testing.assert_array_equal(scale[:3, 0], [1, 1, 2.0**-8])
    want = [[6, 0, -1.5], [4, 0.5, 6], [0.0234375, -0.01171875, 0], [0, 0, 0]]
    np.testing.assert_array_equal(decode(row, codes, scale, None), want)


def test_a_model_trains_adapters_over_it_and_comes_back_from_a_file(row, tmp_path):
    assert QuantizeConfig(format="outside").format == "outside"
    specs = MODEL.specs()
    params = initialize(jax.random.key(0), specs, np.dtype("float32"))
    frozen = quantize(params, specs, RULES, group=16)
    said = abstract(quantize_specs(specs, RULES, group=16), np.dtype("float32"))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), frozen) == jax.tree.map(
        lambda x: (x.shape, x.dtype), said
    )
    adapters = initialize(
        jax.random.key(1), lora_specs(specs, LoraConfig(rank=2)), np.dtype("float32")
    )
    batch = random_batch(2, 8)

    @jax.jit
    def loss(adapters):
        total, count, _ = CausalLM().loss(MODEL, adapters, {"base": frozen}, batch, None)
        return total / count

    before, gradient = jax.value_and_grad(loss)(adapters)
    after = loss(jax.tree.map(lambda a, g: a - 0.1 * g, adapters, gradient))
    assert after < before

    arrays = {path: np.asarray(x) for path, x in tree.paths(frozen).items()}
    np.savez(tmp_path / "frozen.npz", **arrays)
    with np.load(tmp_path / "frozen.npz") as stored:
        read = [jnp.asarray(stored[path]) for path in tree.paths(frozen)]
    again = jax.tree.unflatten(jax.tree.structure(said), read)
    np.testing.assert_array_equal(
        forward(MODEL, attach(again, adapters), batch),
        forward(MODEL, attach(frozen, adapters), batch),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codes": "log"}, "codes='log' is none of"),
        ({"scales": "e4m3"}, "scales='e4m3' is none of"),
        ({"bits": 9}, "bits=9 must be 1 to 8"),
        ({"bits": 3}, "16 entries for codes of 3 bits; give 8"),
    ],
)
def test_a_row_that_is_no_format_is_refused(change, says):
    fields = {"bits": 4, "codes": "book", "group": 32, "error": 0.2, "entries": SEVENS}
    with pytest.raises(ValueError, match=says):
        Format("outside", **(fields | change))


@pytest.mark.parametrize(("bits", "group"), [(4, 3), (3, 4), (6, 2)])
def test_groups_that_do_not_fill_bytes_are_refused(bits, group, monkeypatch):
    monkeypatch.setitem(FORMATS, "outside", Format("outside", bits, "affine", 32, error=0.2))
    with pytest.raises(ValueError, match=f"a group of {group} codes of {bits} bits does not fill"):
        quantize_array(jnp.ones((12, 16)), "outside", inputs=1, group=group)
