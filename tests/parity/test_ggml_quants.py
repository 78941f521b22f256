"""Quantized files are llama.cpp's own: the same bytes of every K-quant, and the same type of every
tensor in its mixtures."""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from gguf import GGMLQuantizationType

from research.interop.gguf.file import open_gguf
from research.interop.gguf.k_quants import quantize
from research.interop.gguf.mixtures import FILE_TYPES, MIXTURES
from research.interop.gguf.model import write_gguf_model
from research.interop.gguf.write import K_TYPES, _encode
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

BLOCKS = 64


def values(name):
    """Values of many blocks, of a distribution that a quantizer meets."""
    rng, n = np.random.default_rng(0), BLOCKS * 256
    arrays = {
        "normal": rng.normal(size=n) * 0.02,
        "heavy_tails": rng.standard_t(2, size=n),
        "negative": -rng.random(n) - 0.5,
        "whole_numbers": rng.integers(-8, 8, n),
        "constant": np.repeat(rng.normal(size=BLOCKS), 256),
        "groups_of_zeros": np.where(rng.random(n // 32).repeat(32) < 0.3, 0, rng.normal(size=n)),
        "tiny": rng.normal(size=n) * 1e-20,
    }
    return np.ascontiguousarray(arrays[name], np.float32)


@pytest.fixture(scope="module")
def ggml():
    """ggml's function that quantizes a chunk."""
    [path] = Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so")
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    return function


@pytest.mark.parametrize("kind", K_TYPES)
@pytest.mark.parametrize(
    "name", "normal heavy_tails negative whole_numbers constant groups_of_zeros tiny".split()
)
def test_every_block_has_ggmls_bytes(kind, name, ggml):
    x = values(name)
    got = quantize(x, kind)
    want = np.zeros_like(got)
    number = GGMLQuantizationType[kind].value
    ggml(number, x.ctypes.data, want.ctypes.data, 0, BLOCKS, 256, None)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["normal", "heavy_tails", "negative", "groups_of_zeros"])
def test_mxfp4_stands_for_ggmls_numbers(name, ggml):
    x = values(name)
    got = _encode(x, "MXFP4")
    want = np.zeros_like(got)
    ggml(GGMLQuantizationType.MXFP4.value, x.ctypes.data, want.ctypes.data, 0, BLOCKS, 256, None)
    assert np.array_equal(got, want)


_SIZES = {"d_model": 256, "heads": 4, "head_size": 64, "d_ff": 256, "vocab_size": 64, "layers": 9}
MODELS = {
    "one_value_head": replace(FAMILIES["llama3_405b"], **_SIZES, kv_heads=1),
    "tied": replace(FAMILIES["qwen3_8b"], **_SIZES, kv_heads=2, tied=True),
    "short_rows": replace(FAMILIES["llama2_7b"], **{**_SIZES, "d_model": 192, "d_ff": 160}),
    "fused": replace(FAMILIES["phi4_mini"], **{**_SIZES, "rotary_size": 6}),
    "eight_experts": replace(
        FAMILIES["mixtral_8x7b"], **{**_SIZES, "layers": 2}, window=0, experts=8
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mixes"),
    [
        ("one_value_head", MIXTURES),
        *((name, ("Q3_K_M", "Q4_K_M")) for name in list(MODELS)[1:]),
        ("eight_experts", ("MXFP4",)),
    ],
    ids=[*MODELS, "experts_alone"],
)
def test_mixtures_are_llama_cpps(name, mixes, tmp_path):
    checkpoint = in_memory(MODELS[name], random_params(MODELS[name]))
    plain, ours, theirs = (tmp_path / f"{n}.gguf" for n in ("plain", "ours", "theirs"))
    write_gguf_model(checkpoint, plain, "F32")
    for mix in mixes:
        file_type = FILE_TYPES[mix]
        write_gguf_model(checkpoint, ours, mix)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = file_type, 2
        names = (str(path).encode() for path in (plain, theirs))
        assert llama_cpp.llama_model_quantize(*names, ctypes.byref(params)) == 0
        with open_gguf(ours) as a, open_gguf(theirs) as b:
            assert a.types == b.types and a.metadata["general.file_type"] == file_type
            assert all(np.array_equal(a.read(n), b.read(n)) for n in a.names), mix
