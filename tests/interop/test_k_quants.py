"""K-quants are the bytes of ggml, and mixtures of them llama.cpp's choice; tests/parity compares
with both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from research.interop.gguf.file import open_gguf
from research.interop.gguf.k_quants import quantize
from research.interop.gguf.mixtures import FILE_TYPES, MIXTURES, tensor_type
from research.interop.gguf.write import K_TYPES, write_gguf
from tests.families import FAMILIES

GOLDENS = Path(__file__).parent / "goldens" / "k_quants.json"


def row(name):
    """256 values of a kind that a quantizer meets."""
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(size=256) * 0.02,
        "positive": rng.random(256) + 0.5,
        # Groups of zeros, and a few values a thousand times the others.
        "sparse": np.where(np.arange(256) % 96 < 40, 0, rng.standard_t(1, 256)),
    }
    return values[name].astype(np.float32)


ROWS = ("normal", "positive", "sparse")


@pytest.mark.parametrize("kind", K_TYPES)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_bytes_that_ggml_gives_it(kind, name):
    assert (
        quantize(row(name), kind)[0].tobytes().hex() == json.loads(GOLDENS.read_text())[kind][name]
    )


# The largest error, of values in [-1, 1]: half a step of the codes, and what rounding the scales
# adds.
@pytest.mark.parametrize(
    ("kind", "bound"),
    [("Q2_K", 0.6), ("Q3_K", 0.3), ("Q4_K", 0.12), ("Q5_K", 0.06), ("Q6_K", 0.03)],
)
def test_values_come_back_within_a_step(kind, bound, tmp_path):
    values = np.random.default_rng(1).uniform(-1, 1, (3, 5, 512)).astype(np.float32)
    tensors = {"w": values, "zeros": np.zeros((2, 256), np.float32)}
    entries = [(name, x.shape, kind, lambda x=x: x) for name, x in tensors.items()]
    write_gguf(tmp_path / "x.gguf", {"general.architecture": "x"}, entries)
    with open_gguf(tmp_path / "x.gguf") as file:
        assert np.abs(file.read("w") - values).max() < bound and not file.read("zeros").any()
        one = dequantize(quantize(values[1, 2], kind).reshape(1, -1), GGMLQuantizationType[kind])
        np.testing.assert_array_equal(file.read("w")[1, 2], one[0])


def test_values_beyond_a_float16_scale_are_refused(tmp_path):
    entry = ("w", (1, 256), "Q4_K", lambda: np.full((1, 256), -1e9, np.float32) * np.arange(256))
    with pytest.raises(ValueError, match="'w' cannot be written.*float16 cannot reach"):
        write_gguf(tmp_path / "x.gguf", {}, [entry])


C = replace(FAMILIES["llama3_405b"], layers=16, d_model=256, heads=4, kv_heads=1)


@pytest.mark.parametrize(
    ("name", "mix", "changes", "kind"),
    [
        ("token_embd.weight", "Q4_K_M", {}, "Q4_K"),
        ("token_embd.weight", "Q4_K_M", {"tied": True}, "Q6_K"),
        ("output.weight", "Q2_K", {}, "Q6_K"),
        ("blk.0.attn_v.weight", "Q4_K_M", {}, "Q6_K"),  # the first eighth of the layers
        ("blk.2.attn_v.weight", "Q4_K_M", {}, "Q4_K"),
        ("blk.4.ffn_down.weight", "Q5_K_M", {}, "Q6_K"),  # every third after it
        ("blk.15.ffn_down.weight", "Q4_K_S", {}, "Q4_K"),
        ("blk.0.attn_v.weight", "Q2_K", {}, "Q4_K"),  # one head for four queries
        ("blk.0.attn_v.weight", "Q2_K", {"kv_heads": 4}, "Q3_K"),
        ("blk.3.attn_k.weight", "Q3_K_M", {"experts": 8}, "Q8_0"),
        ("blk.3.attn_output.weight", "Q3_K_M", {}, "Q4_K"),
        ("blk.3.ffn_gate_inp.weight", "Q6_K", {"experts": 8}, "F32"),
        ("blk.3.attn_norm.weight", "Q6_K", {}, "F32"),
    ],
)
def test_a_mixture_gives_some_tensors_more_bits(name, mix, changes, kind):
    c = replace(C, **{"experts_per_token": 2, **changes} if "experts" in changes else changes)
    shape = (256,) if "norm" in name else (8, 256)
    assert tensor_type(name, shape, mix, c, "llama") == kind


@pytest.mark.parametrize(
    ("row", "kinds"), [(96, ["Q4_0", "Q4_0", "Q5_0", "Q5_1", "Q8_0"]), (40, ["F16"] * 5)]
)
def test_rows_that_256_does_not_divide_get_types_of_smaller_blocks(row, kinds):
    mixes = ("Q2_K", "Q3_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
    assert [tensor_type("blk.0.attn_q.weight", (8, row), mix, C, "llama") for mix in mixes] == kinds


def test_every_mixture_has_a_number_of_its_own():
    assert set(MIXTURES) <= set(FILE_TYPES) and len(set(FILE_TYPES.values())) == len(FILE_TYPES)
