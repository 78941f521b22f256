"""Experts in ggml's MXFP4: read as leaves, and written block for block from a folder's."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from research.interop.convert import convert
from research.interop.gguf.file import open_gguf
from research.interop.gguf.write import write_gguf
from research.interop.inspection import inspect
from research.interop.load import load, open_checkpoint
from research.weights.quantized import is_quantized
from tests.families import FAMILIES
from tests.interop.test_gguf_encoders import write
from tests.interop.test_mxfp4 import C, packed  # noqa: F401

KIND = GGMLQuantizationType.MXFP4
EXPERTS = ("gate", "up", "down")


@pytest.fixture
def folder(packed):  # noqa: F811
    """A folder of gpt-oss with every code and some large scales, as llama.cpp computes it."""
    config = packed / "config.json"
    config.write_text(config.read_text().replace('"swiglu_limit": 0.05', '"swiglu_limit": 7.0'))
    return packed


def test_codes_go_from_a_folder_to_a_file_and_back_as_they_are(folder, tmp_path):
    certificate = convert(folder, tmp_path / "gguf", "gguf")
    assert not [line for line in certificate["notes"] if "written out" in line]
    with open_gguf(tmp_path / "gguf/model.gguf") as file:
        kinds = {name: kind for name, kind in file.types.items() if name.endswith("_exps.weight")}
        assert set(kinds.values()) == {"MXFP4"} and len(kinds) == 3 * C.layers
        assert file.types["blk.0.attn_q.weight"] == "BF16"
        assert file.metadata["general.file_type"] == 38
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    before = load(folder).params["layers"]["mlp"]
    for other in (tmp_path / "gguf", tmp_path / "again"):
        after = load(other).params["layers"]["mlp"]
        for name in EXPERTS:
            assert is_quantized(after[name]) and after[name].format == "mxfp4"
            np.testing.assert_array_equal(before[name].codes, after[name].codes)
            np.testing.assert_array_equal(before[name].scale, after[name].scale)


def test_blocks_are_what_the_gguf_package_reads(folder, tmp_path):
    convert(folder, tmp_path / "gguf", "gguf", certified=False)
    [tensor] = [
        tensor
        for tensor in GGUFReader(tmp_path / "gguf/model.gguf").tensors
        if tensor.name == "blk.1.ffn_up_exps.weight"
    ]
    assert tensor.tensor_type == KIND
    theirs = dequantize(tensor.data, KIND)  # [E, F, D]
    with open_checkpoint(folder) as checkpoint:
        ours = [checkpoint.parameters["layers/mlp/up"].read((1, e)) for e in range(C.experts)]
    np.testing.assert_array_equal(theirs, np.stack(ours).astype(np.float32).swapaxes(1, 2))


def test_dense_values_get_the_packages_blocks(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_t(2, (2, 3, 64)).astype(np.float32)
    values[0, 0, :32] = 0
    write_gguf(tmp_path / "x.gguf", {}, [("w", (2, 3, 64), "MXFP4", lambda: values)])
    with open_gguf(tmp_path / "x.gguf") as file:
        got = file.read_stored("w", 1, 2)
        np.testing.assert_array_equal(got.reshape(1, 3, -1), quantize(values[1:], KIND))
        np.testing.assert_array_equal(file.read("w"), dequantize(quantize(values, KIND), KIND))


@pytest.mark.parametrize("name", ["gpt_oss_20b", "mixtral_8x7b"])
def test_experts_alone_come_into_it(name, tmp_path):
    c = replace(FAMILIES[name], d_ff=64, layers=2, window=0, global_every=0, gate_limit=0.0)
    c = replace(c, gate_limit=7.0, window=4, global_every=2) if c.attention_sinks else c
    convert(write(c, tmp_path / "hf"), tmp_path / "gguf", "gguf", "mxfp4", certified=False)
    with open_gguf(tmp_path / "gguf/model.gguf") as file:
        kinds = file.types
    of_experts = {n for n, kind in kinds.items() if kind == "MXFP4"}
    assert of_experts == {n for n in kinds if n.endswith("_exps.weight")}
    assert kinds["blk.0.attn_q.weight"] == kinds["output.weight"] == "Q8_0"
    loaded = load(tmp_path / "gguf").params["layers"]["mlp"]
    assert all(is_quantized(loaded[name]) for name in EXPERTS)
    # Of Hugging Face's classes gpt-oss alone has such experts.
    lost = inspect(tmp_path / "gguf")["targets"]["hf"]["lost"]
    assert any("written out" in line for line in lost)


@pytest.mark.parametrize("dtype", ["bfloat16", "q8_0"])
def test_another_type_is_another_type(dtype, folder, tmp_path):
    convert(folder, tmp_path / "gguf", "gguf", dtype, certified=False)
    with open_gguf(tmp_path / "gguf/model.gguf") as file:
        assert "MXFP4" not in file.types.values()


def test_a_block_that_is_nan_is_named(folder, tmp_path):
    convert(folder, tmp_path / "gguf", "gguf", certified=False)
    path = tmp_path / "gguf/model.gguf"
    with open_gguf(path) as file:
        offset = file.places["blk.0.ffn_up_exps.weight"][1]
    content = bytearray(path.read_bytes())
    content[offset] = 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="blk.0.ffn_up_exps.weight has 1 blocks that are NaN"):
        load(path)


@pytest.mark.parametrize("kind", ["F32", "MXFP4"])
def test_gates_above_ups_in_one_tensor_are_read_apart(kind, tmp_path):
    """As later files of llama.cpp have them (LLM_TENSOR_FFN_GATE_UP_EXPS)."""
    source = tmp_path / "gguf"
    c = replace(FAMILIES["mixtral_8x7b"], d_ff=64, d_model=64)
    dtype = "mxfp4" if kind == "MXFP4" else "float32"
    convert(write(c, tmp_path / "hf"), source, "gguf", dtype, certified=False)
    file, entries = source / "model.gguf", []
    with open_gguf(file) as old:
        for tensor, spec in old.names.items():
            values = old.read(tensor)
            if tensor.endswith("ffn_up_exps.weight"):
                continue
            if tensor.endswith("ffn_gate_exps.weight"):
                up = old.read(tensor.replace("gate", "up"))
                tensor, values = tensor.replace("gate", "gate_up"), np.concatenate([values, up], 1)
            stored = kind if tensor.endswith("_exps.weight") else "F32"
            entries.append((tensor, values.shape, stored, lambda values=values: values))
        write_gguf(tmp_path / "fused.gguf", old.metadata, entries)
    with open_checkpoint(file) as before, open_checkpoint(tmp_path / "fused.gguf") as after:
        assert before.config == after.config
        for path, parameter in before.parameters.items():
            for index in parameter.indices():
                np.testing.assert_array_equal(
                    after.parameters[path].read(index), parameter.read(index), err_msg=path
                )
        assert ("layers/mlp/down" in after.codes) == (kind == "MXFP4")
        assert "layers/mlp/gate" not in after.codes
