"""DeepSeek in GGUF files: older files, what other programs write, and what llama.cpp does not
compute; tests/parity compares with it."""

from dataclasses import replace

import numpy as np
import pytest

from research import tree
from research.interop.gguf import deepseek, rope_keys
from research.interop.gguf.architecture import Metadata
from research.interop.gguf.model import plan_gguf_model
from research.interop.gguf.write import write_gguf
from research.interop.load import load
from research.interop.storage.foreign import write_tensors
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

YARN = RopeScaling(4.0, original_length=16, attention_factor=1.0, score_scale=0.707, kind="yarn")
C = replace(FAMILIES["deepseek_v3"], norm_eps=1e-6, rope_scaling=YARN)
_PLAIN = {"route_groups": 1, "groups_per_token": 1}


def older(c, checkpoint, file):
    """A file as it was before keys and values of latents lay apart: sizes under the plain keys, and
    as many key heads as heads."""
    rules = deepseek.layout(deepseek.rules(c, "deepseek2"), ["blk.0.attn_kv_b.weight"])
    tensors = write_tensors(c, rules, checkpoint.parameters)
    values = deepseek.write_config(c) | rope_keys.write_keys(c, "deepseek2")
    values = {key: value for key, value in values.items() if not key.endswith("_mla")}
    attention = {
        "head_count_kv": c.heads,
        "key_length": c.head_size,
        "value_length": c.value_size,
    }
    values |= {f"deepseek2.attention.{key}": value for key, value in attention.items()}
    entries = [(name, tensor.shape, "F32", make) for name, (tensor, make) in tensors.items()]
    write_gguf(file, values, entries)
    return tensors


def test_an_older_file_is_the_same_model(tmp_path):
    params = random_params(C)
    names = older(C, in_memory(C, params), tmp_path / "model.gguf")
    assert "blk.2.attn_kv_b.weight" in names and "blk.2.attn_k_b.weight" not in names
    got = load(tmp_path / "model.gguf")
    assert got.config == C
    for path, leaf in tree.paths(got.params).items():
        np.testing.assert_array_equal(leaf, tree.paths(params)[path], err_msg=path)


def test_the_tensors_and_keys_are_those_of_llama_cpps_script():
    metadata, entries, _ = plan_gguf_model(in_memory(C, random_params(C)), "F32")
    shapes = {name: tuple(shape) for name, shape, _, _ in entries}
    # [heads, latent, others] and [heads, values, latent]: one matrix a head, the inputs last.
    assert shapes["blk.0.attn_k_b.weight"] == (4, 16, 8)
    assert shapes["blk.0.attn_v_b.weight"] == (4, 8, 16)
    assert shapes["blk.0.attn_kv_a_mqa.weight"] == (20, 32)
    assert shapes["blk.0.ffn_up.weight"] == (48, 32)
    assert shapes["blk.1.ffn_up_exps.weight"] == (8, 64, 32)
    assert shapes["blk.2.exp_probs_b.bias"] == (8,) and "blk.0.exp_probs_b.bias" not in shapes
    wanted = {
        "attention.head_count_kv": 1, "attention.key_length": 20, "attention.value_length": 16,
        "attention.key_length_mla": 12, "attention.value_length_mla": 8,
        "attention.kv_lora_rank": 16, "attention.q_lora_rank": 12, "rope.dimension_count": 4,
        "leading_dense_block_count": 1, "feed_forward_length": 48,
        "expert_feed_forward_length": 64, "expert_shared_count": 1, "expert_gating_func": 2,
        "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_norm": True,
    }  # fmt: skip
    assert {key: metadata[f"deepseek2.{key}"] for key in wanted} == wanted
    # A tenth of DeepSeek's number, as llama.cpp's script writes it under this name alone.
    assert metadata["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)


def test_another_programs_file_has_the_factor_of_scores_too():
    values = deepseek.write_config(C) | rope_keys.write_keys(C, "deepseek2")
    del values[rope_keys.RECORD]
    assert rope_keys.read_keys(Metadata(values, {})) == YARN
    del values["deepseek2.rope.scaling.yarn_log_multiplier"]
    with pytest.raises(ValueError, match="yarn_log_multiplier=0.0 .*only a positive one"):
        rope_keys.read_keys(Metadata(values, {}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shared_d_ff": 48}, "whole shared experts, and this model has shared_d_ff=48"),
        ({"shared_d_ff": 0, "shared_gate": True}, "has shared_d_ff=0 beside d_ff=64"),
        ({"layers": 27}, "27 layers for one without latents of queries"),
        ({"attention_bias": "all"}, "has no attention_bias='all'"),
        ({"rope_scaling": replace(YARN, attention_factor=0.0)}, "equal mscale and mscale_all_dim"),
        ({"rope_scaling": replace(YARN, score_scale=0.0)}, "with mscale_all_dim=0.0"),
        ({"activation": "gelu_tanh"}, "has no activation='gelu_tanh'"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(changes, says):
    c = replace(C, **changes)
    with pytest.raises(ValueError, match=f"{says}.*; use --to=hf"):
        plan_gguf_model(in_memory(c, random_params(c)), "F32")


def test_a_factor_of_scores_is_refused_under_other_names():
    c = replace(FAMILIES["llama2_7b"], rope_scaling=YARN)
    with pytest.raises(ValueError, match="llama architecture has no .*score_scale=0.707; use"):
        plan_gguf_model(in_memory(c, random_params(c)), "F32")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"router": "softmax"}, ["groups by their two best experts"]),
        ({"router": "softmax", **_PLAIN}, []),
        ({"norm_eps": 1e-4}, ["norm_eps=0.0001 in the norms of latents"]),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_told(changes, says):
    lines = deepseek.notes(replace(C, **changes))
    assert len(lines) == len(says) and all(a in b for a, b in zip(says, lines))
