"""Folders that other programs quantized: their values are exact, and their codes are kept."""

import json
import re
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from research.interop.convert import convert
from research.interop.inspection import inspect
from research.interop.load import load, open_checkpoint
from research.interop.quantized.matrix import dense
from research.interop.quantized.methods import open_method
from research.interop.storage.safetensors import open_safetensors
from tests.interop import quantized_writers as writers

GOLDENS = Path(__file__).parent / "quantized_packages.npz"


def config(method, **settings):
    return {"quantization_config": {"quant_method": method, **settings}}


def compressed(format, weights, **more):
    group = {"targets": ["Linear"], "weights": weights}
    return config("compressed-tensors", format=format, config_groups={"group_0": group}, **more)


def gptq(name, bits, group, kept, **how):
    settings = {"bits": bits, "group_size": group, "sym": how.get("sym", True)}
    settings["checkpoint_format"] = how.get("version", "gptq")
    return (
        name,
        config("gptq", **settings),
        partial(writers.gptq, bits=bits, group=group, **how),
        kept,
    )


BLOCKS = config("fp8", weight_block_size=[16, 32])
CHANNEL = {"num_bits": 8, "strategy": "channel"}
# What the folder is called, its settings, what writes a matrix, and the format of its leaves.
CASES = {
    "gptq": gptq("GPTQ, 4 bits in groups of 16", 4, 16, "int4"),
    "gptq asymmetric": gptq("GPTQ, 4 bits", 4, 16, "uint4", sym=False),
    "gptq_v2": gptq("GPTQ, 4 bits", 4, 32, "uint4", sym=False, version="gptq_v2"),
    "gptq 8 bits": gptq("GPTQ, 8 bits", 8, 16, "int8"),
    "gptq 3 bits": gptq("GPTQ, 3 bits", 3, 16, "uint3", sym=False),
    "gptq 2 bits": gptq("GPTQ, 2 bits", 2, 16, "uint2", version="gptq_v2"),
    "gptq act order": gptq("GPTQ, 4 bits in groups of 16, in act order", 4, 16, None, order=True),
    "awq": (
        "AWQ, 4 bits in groups of 16",
        config("awq", bits=4, version="gemm"),
        writers.awq,
        "uint4",
    ),
    "awq gemv": (
        "AWQ, 4 bits in groups of 16",
        config("awq", bits=4, group_size=16, version="GEMV"),
        writers.awq_gemv,
        "uint4",
    ),
    "packed int4": (
        "compressed-tensors, int4 in groups of 16",
        compressed("pack-quantized", {"num_bits": 4, "group_size": 16}),
        writers.packed,
        "int4",
    ),
    "packed int4 asymmetric": (
        "compressed-tensors, uint4 in groups of 16",
        compressed("pack-quantized", {"num_bits": 4, "group_size": 16, "symmetric": False}),
        partial(writers.packed, sym=False),
        "uint4",
    ),
    "packed int8": (
        "compressed-tensors, int8",
        compressed("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        partial(writers.packed, bits=8, group=48),
        "int8",
    ),
    "int8": (
        "compressed-tensors, int8",
        compressed("int-quantized", CHANNEL),
        partial(writers.scaled, dtype="int8", block=(1, 48)),
        "int8",
    ),
    "int8 asymmetric": (
        "compressed-tensors, uint8",
        compressed("naive-quantized", CHANNEL),
        partial(writers.scaled, dtype="int8", block=(1, 48), zero=True),
        "uint8",
    ),
    "float8": (
        "compressed-tensors, fp8_e4m3",
        compressed("float-quantized", CHANNEL | {"type": "float"}),
        partial(writers.scaled, block=(1, 48)),
        "fp8_e4m3",
    ),
    "fp8 blocks": (
        "fp8 in blocks of 16 x 32",
        BLOCKS,
        partial(writers.scaled, block=(16, 32), name="weight_scale_inv"),
        "fp8_e4m3",
    ),
    "fp8": ("fp8", config("fp8"), partial(writers.scaled, dtype="float8_e5m2"), "fp8_e5m2"),
    **{
        f"mlx {bits} bits": (
            f"MLX, {bits} bits in groups of 16",
            {"quantization": {"group_size": 16, "bits": bits}},
            partial(writers.mlx, bits=bits),
            f"offset{bits}",
        )
        for bits in (2, 3, 4, 6, 8)
    },
    "packed nvfp4": (
        "compressed-tensors, mxfp4 in groups of 16",
        compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float"}),
        writers.packed_floats,
        "mxfp4",
    ),
    "mlx nvfp4": (
        "MLX, nvfp4",
        {"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}},
        writers.mlx_floats,
        "mxfp4",
    ),
}
OURS = {"self_attn.q_proj": "attention/query", "mlp.down_proj": "mlp/down"}


def in_layers(name):
    return bool(re.search(writers.LAYERS, name))


def ours(values, wanted):
    """One of our weights, its inputs first, as the matrix [out, in] of a file."""
    return np.asarray(values).reshape(wanted.shape[1], -1).T


@pytest.mark.parametrize("case", CASES)
def test_values_are_exact_and_codes_are_kept(case, tmp_path, caplog):
    called, settings, make, kept = CASES[case]
    # Codes of 3 bits fill the words of 32 inputs and outputs, and not those of 48 and 16.
    chosen = "layers.*q_proj.weight" if "3 bits" in case else writers.LAYERS
    values = writers.write(
        tmp_path, "llama_gqa", settings, make, lambda name: re.search(chosen, name)
    )
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.quantized and checkpoint.stored_as.startswith(called)
        for theirs, path in OURS.items():
            wanted = values.get(f"model.layers.1.{theirs}.weight")
            if wanted is None:
                continue
            got = checkpoint.parameters[f"layers/{path}"].read((1,))
            np.testing.assert_array_equal(ours(got, wanted), wanted, strict=True)
            if kept:
                leaf = checkpoint.codes[f"layers/{path}"].read((1,))
                assert leaf.format == kept
                np.testing.assert_array_equal(ours(leaf.dense(), wanted), wanted)
    assert ("14 of 14 quantized matrices are read dense" in caplog.text) == (not kept)
    assert all(re.search("input_(global_)?scale", name) for name in checkpoint.unused)


@pytest.mark.parametrize(
    ("model", "chosen", "case"),
    [
        ("phi3", "qkv_proj|gate_up_proj", "awq"),
        ("gpt2", r"c_attn|mlp", "gptq"),
        ("gpt2", r"c_attn", "mlx 4 bits"),
    ],
)
def test_joined_matrices_and_turned_ones_are_cut_as_dense_ones_are(model, chosen, case, tmp_path):
    """What the codes stand for is what the parameter is read as."""
    _, settings, make, _ = CASES[case]
    writers.write(
        tmp_path,
        model,
        settings,
        turned(make) if model == "gpt2" else make,
        lambda name: bool(re.search(chosen, name)) and name.endswith(".weight"),
    )
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.codes) >= 3
        for path, codes in checkpoint.codes.items():
            wanted = checkpoint.parameters[path].read((1,))
            np.testing.assert_array_equal(codes.read((1,)).dense(), wanted)


def turned(make):
    """GPT-2's class keeps [in, out], and a quantized layer is one of [out, in] all the same."""
    return lambda rng, rows, columns: make(rng, columns, rows)


def test_a_whole_model_computes_with_the_codes_of_its_layers_and_table(tmp_path):
    _, settings, make, kept = CASES["mlx 4 bits"]
    quantized, plain = tmp_path / "a", tmp_path / "b"
    quantized.mkdir()
    writers.write(
        quantized, "llama_gqa", settings, make, lambda n: in_layers(n) or "embed_tokens" in n
    )
    certificate = convert(quantized, plain, "hf")
    assert certificate["source"]["stored_as"] == "MLX, 4 bits in groups of 16"
    assert any("MLX, 4 bits" in note and "float32" in note for note in certificate["notes"])
    trip = certificate["round_trip"]
    assert trip["bit_equal"] == trip["tensors"] and "quantization" not in json.loads(
        (plain / "config.json").read_text()
    )
    assert certificate["notes"] == inspect(quantized)["targets"]["hf"]["lost"]
    loaded, dense_model = load(quantized), load(plain)
    assert loaded.params["embed"]["table"].format == kept
    ids = np.arange(12)[None] % 90
    np.testing.assert_allclose(loaded.logits(ids), dense_model.logits(ids), atol=2e-3, rtol=1e-5)


REFUSED = {
    "the method": (config("quip"), "quant_method='quip'; supported are bitsandbytes, gptq"),
    "AWQ's gemv_fast": (
        config("awq", bits=4, version="gemv_fast"),
        "version='gemv_fast'; supported: 'gemm', 'gemv'",
    ),
    "bits": (config("gptq", bits=5), "bits=5; supported: 2, 3, 4, 8"),
    "marlin": (config("gptq", bits=4, checkpoint_format="marlin"), "checkpoint_format='marlin'"),
    "marlin 2:4": (compressed("marlin-24", {}), "format='marlin-24'"),
    "rotations": (
        compressed("dense", {}, transform_config={"config_groups": {"a": {}}}),
        "a transform_config, whose rotations",
    ),
    "MLX's mode": (
        {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp6"}},
        "mode='mxfp6'; supported: 'affine', 'mxfp4', 'nvfp4', 'mxfp8'",
    ),
    "MLX's groups": (
        {"quantization": {"group_size": 32, "bits": 4, "mode": "nvfp4"}},
        "wanted",
    ),
    "blocks": (config("fp8", weight_block_size=[0, 1]), "blocks of [0, 1]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_alike_is_refused(what, tmp_path):
    settings, says = REFUSED[what]
    writers.write(tmp_path, "llama_gqa", settings, writers.mlx, in_layers)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_zero_points_that_config_json_denies_are_refused(tmp_path):
    settings = config("gptq", bits=4, group_size=16, sym=True)
    writers.write(tmp_path, "llama_gqa", settings, partial(writers.gptq, sym=False), in_layers)
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(ValueError, match='set "sym": false in its quantization_config'):
            checkpoint.codes["layers/mlp/down"].read((0,))


PACKAGES = np.load(GOLDENS)
NAMES = sorted({name.split("/")[0] for name in PACKAGES.files})


@pytest.mark.parametrize("name", NAMES)
def test_packages_own_files_have_the_values_that_the_packages_read(name, tmp_path):
    """Tensors and values by compressed-tensors, MLX, AutoGPTQ and AutoAWQ, as
    `quantized_packages.py` made them."""
    parts = {
        key.split("/")[1]: PACKAGES[key] for key in PACKAGES.files if key.startswith(f"{name}/")
    }
    settings, wanted = json.loads(str(parts.pop("settings"))), parts.pop("values")
    if name.startswith("fp8"):
        parts["weight"] = parts["weight"].view(ml_dtypes.float8_e4m3fn)
    if name.startswith("nvfp4"):
        parts["weight_scale"] = parts["weight_scale"].view(ml_dtypes.float8_e4m3fn)
    save_file({f"a.{part}": x for part, x in parts.items()}, tmp_path / "model.safetensors")
    opened = open_method(settings, open_safetensors(tmp_path))
    np.testing.assert_array_equal(dense(opened.matrices["a.weight"]), wanted)
