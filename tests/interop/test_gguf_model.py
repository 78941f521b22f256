"""Models in GGUF files mean what llama.cpp computes of them; tests/parity compares with it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research import tree
from research.files import building
from research.interop.convert import convert
from research.interop.gguf import gemma, llama, rope_keys
from research.interop.gguf.architecture import Metadata, write_shape
from research.interop.gguf.tokenizer import tokenizer_files
from research.interop.gguf.tokenizer_metadata import tokenizer_metadata
from research.interop.gguf.write import write_gguf
from research.interop.huggingface import folder as hf
from research.interop.load import load, open_checkpoint
from research.interop.storage.foreign import write_tensors
from research.ops.rope_scaling import RopeScaling
from tests.data.chat_templates import tokenizer_json
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

C = FAMILIES["llama2_7b"]


def write_as(kind, c, params, file, **keys):
    """A file under an architecture's name, whatever name we would give the model, with more
    metadata."""
    checkpoint = in_memory(c, params)
    tensors = write_tensors(c, llama.rules(c, kind), checkpoint.parameters)
    metadata = write_shape(c, kind) | {f"{kind}.{key}": value for key, value in keys.items()}
    entries = [(name, tensor.shape, "F32", make) for name, (tensor, make) in tensors.items()]
    write_gguf(file, metadata, entries)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("bias", ["none", "qkv", "all"])
def test_the_architectures_name_decides_the_order_of_rotary_pairs(kind, bias, tmp_path):
    c = replace(C, attention_bias=bias)
    params = random_params(c)
    write_as(kind, c, params, tmp_path / "model.gguf")
    got = load(tmp_path / "model.gguf")
    assert got.config.attention_bias == bias
    for path, leaf in tree.paths(got.params).items():
        np.testing.assert_array_equal(leaf, tree.paths(params)[path], err_msg=path)


def test_neighbours_under_llama_are_halves_here():
    """The one case by hand, so that reading and writing cannot be wrong alike."""
    c = replace(C, heads=1, kv_heads=1, head_size=4, attention_bias="qkv")
    [rule] = [r for r in llama.rules(c, "llama") if r.name.endswith("attn_q.bias")]
    assert rule.pattern == "(N h p) -> N (p h)"  # rows x0 y0 x1 y1 become x0 x1 y0 y1


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rope.scale_linear": 4.0}, RopeScaling(factor=4.0, kind="linear")),
        ({"rope.scaling.factor": 2.5}, RopeScaling(factor=2.5, kind="linear")),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
            RopeScaling(8.0, kind="linear"),
        ),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, RopeScaling(2.0, kind="linear")),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, RopeScaling()),
        ({"rope.scale_linear": 1.0}, RopeScaling()),
        ({}, RopeScaling()),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_every_spelling_of_linear_scaling_is_read(keys, scaling, kind):
    values = write_shape(C, kind) | {f"{kind}.{key}": value for key, value in keys.items()}
    assert rope_keys.read_keys(Metadata(values, {})) == scaling


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.causal", False), ("rope.scaling.attn_factor", 1.5), ("rope.scaling.type", "su")],
)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_what_our_layers_do_not_compute_is_refused_by_its_key(key, value, kind):
    values = write_shape(C, kind) | {f"{kind}.{key}": value}
    read = gemma.read_config if kind.startswith("gemma") else llama.read_config
    metadata = Metadata(values, dict.fromkeys("abcd"))
    with pytest.raises(ValueError, match=f"{value}.*support"):
        read(metadata), rope_keys.read_keys(metadata)


def test_a_part_of_a_head_is_not_rotated_under_llama(tmp_path):
    # llama.cpp keeps rotary pairs side by side there, and refuses such files.
    values = write_shape(replace(C, rotary_size=4), "llama")
    with pytest.raises(ValueError, match="llama rotates whole heads"):
        llama.read_config(Metadata(values, dict.fromkeys("abcd")))


@pytest.mark.parametrize(("window", "lines"), [(0, 0), (5, 1)])
def test_a_window_that_llama_cpp_does_not_read_is_said(window, lines, tmp_path):
    c = replace(C, window=window)
    with building(tmp_path / "hf") as folder:
        hf.write_folder(in_memory(c, random_params(c)), folder)
    notes = convert(tmp_path / "hf", tmp_path / "gguf", "gguf")["notes"]
    assert sum(f"beyond {window} tokens" in line for line in notes) == lines == len(notes)


def test_more_blocks_than_tensors_are_refused_before_anything_is_built(tmp_path):
    write_as("llama", C, random_params(C), tmp_path / "model.gguf", block_count=10**9)
    with pytest.raises(ValueError, match=r"block_count=1,000,000,000, and the file holds \d+"):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, []),
        ({"llama.vocab_size": 9, "llama.rope.scaling.finetuned": True, "general.x": 1}, []),
        ({"llama.logit_scale": 2.0}, ["llama.logit_scale"]),
        ({"llama.attention.scale": 0.5, "llama.x": 1}, ["llama.attention.scale, llama.x"]),
        ({"tokenizer.ggml.strange": 1, "tokenizer.ggml.bos_token_id": 1}, ["ggml.strange"]),
        ({"llama.attention.sliding_window": 4}, ["no window under the architecture llama"]),
    ],
)
def test_settings_that_nobody_reads_are_told(keys, told, tmp_path, caplog):
    checkpoint = in_memory(C, random_params(C))
    tensors = write_tensors(C, llama.rules(C, "llama"), checkpoint.parameters)
    entries = [(name, tensor.shape, "F32", make) for name, (tensor, make) in tensors.items()]
    write_gguf(tmp_path / "model.gguf", write_shape(C, "llama") | keys, entries)
    open_checkpoint(tmp_path / "model.gguf").close()
    messages = [record.message for record in caplog.records]
    assert len(messages) == len(told)
    assert all(part in message for part, message in zip(told, messages))


@pytest.mark.parametrize(
    "keys", [{"tokenizer.ggml.model": "plamo2"}, {"tokenizer.ggml.pre": "tekken9"}]
)
def test_weights_are_read_beside_a_tokenizer_that_is_not_known(keys, tmp_path, caplog):
    known = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}
    known |= {"tokenizer.ggml.merges": ["a b"], **keys}
    checkpoint = in_memory(C, random_params(C))
    tensors = write_tensors(C, llama.rules(C, "llama"), checkpoint.parameters)
    entries = [(name, tensor.shape, "F32", make) for name, (tensor, make) in tensors.items()]
    write_gguf(tmp_path / "model.gguf", write_shape(C, "llama") | known, entries)
    assert load(tmp_path / "model.gguf").tokenizer is None
    [record] = caplog.records
    assert "not known" in record.message or "wanted 'gpt2'" in record.message
    assert "read without it" in record.message


def test_named_templates_go_into_a_file_and_come_back():
    spec = json.dumps(tokenizer_json())  # with GPT-2's split, for which GGUF has a name
    files = {
        "tokenizer.json": spec.replace('"use_regex": false', '"use_regex": true').encode(),
        "chat_template.jinja": b"one",
        "additional_chat_templates/tool_use.jinja": b"two",
    }
    metadata = tokenizer_metadata(files)
    assert metadata["tokenizer.chat_template"] == "one"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    again = tokenizer_files(metadata)
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        assert again[name] == files[name]
