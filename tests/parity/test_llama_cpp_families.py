"""llama.cpp computes what we compute of every family that it knows, from the file that we write;
and the file converts back without a difference."""

from dataclasses import fields, replace

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")

from research import tree
from research.interop.convert import convert
from research.interop.load import load
from research.models.config import Shape
from research.models.layers import ACTIVATIONS
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES
from tests.parity import ggml
from tests.parity.test_llama_cpp import both, greedy, write_tiny

_SIZES = {"vocab_size": 296, "d_model": 64, "head_size": 16, "max_length": 64}
_YARN = RopeScaling(4.0, original_length=16, kind="yarn")
# A factor that is not the paper's: Ministral 3 has 1.
_UNSCALED = replace(_YARN, attention_factor=1.0)
_LATENT = RopeScaling(4.0, original_length=16, attention_factor=1.0, score_scale=0.707, kind="yarn")
_LONG = [1.0, 1.3, 2.0, 4.0, 7.0, 9.0]


def _tiny(name, **changes):
    return replace(FAMILIES[name], **{**_SIZES, **changes})


MODELS = {
    "gpt2": _tiny("gpt2"),
    "gptneox": _tiny("pythia_70m", rotary_size=4),
    "gptneox_in_a_row": _tiny("pythia_70m", rotary_size=4, parallel=False),
    "llama_biases": _tiny("llama2_7b", attention_bias="all", mlp_bias=True),
    "llama_wide_heads": _tiny("llama3_405b", head_size=32),
    "qwen2": _tiny("qwen2.5_7b"),
    "qwen3": _tiny("qwen3_8b", rope_scaling=_YARN),
    "phi3": _tiny("phi4_mini", rotary_size=12, rope_scaling=RopeScaling()),
    "phi3_longrope": _tiny(
        "phi4_mini",
        rotary_size=12,
        rope_scaling=RopeScaling(
            4.0, original_length=16, short_factors=[1.0] * 6, long_factors=_LONG, kind="longrope"
        ),
    ),
    "olmo2": _tiny("olmo3_7b", window=0, global_every=0, rope_scaling=RopeScaling(),
                   local_rope_theta=0.0),
    "olmo3": _tiny("olmo3_7b", window=5, global_every=2, layers=4, rope_scaling=_YARN,
                   local_rope_theta=FAMILIES["olmo3_7b"].rope_theta),
    "smollm3": _tiny("smollm3_3b", layers=5, unrotated_every=4),
    "granite": _tiny("granite3_2b", mlp_bias=True, attention_bias="all"),
    "mistral3": _tiny("llama2_7b", query_growth=0.1, rope_scaling=_UNSCALED),
    "mixtral": _tiny("mixtral_8x7b"),
    "qwen2moe": _tiny("qwen1.5_moe_a2.7b"),
    "qwen3moe": _tiny("qwen3_8b", experts=4, experts_per_token=2),
    "gpt_oss": _tiny("gpt_oss_20b", window=5, layers=4, rope_scaling=_YARN,
                     gate_limit=7.0),
    "olmoe": _tiny("qwen3_8b", experts=4, experts_per_token=2, query_norm_over="heads",
                   normalized_routes=False, heads=4, kv_heads=4),
    "deepseek_v3": _tiny("deepseek_v3", head_size=24, rotary_size=8, value_size=16, kv_latent=32,
                         norm_eps=1e-6, rope_scaling=replace(_LATENT, score_scale=1.0)),
    "deepseek_v3_of_one_kind": _tiny("deepseek_v3", head_size=24, rotary_size=8, value_size=0,
                                     kv_latent=32, norm_eps=1e-6, rope_scaling=RopeScaling(),
                                     dense_layers=0, dense_d_ff=0, query_latent=0,
                                     route_groups=1, groups_per_token=1),
    "deepseek_v2": _tiny("deepseek_v3", head_size=24, rotary_size=8, value_size=16, kv_latent=32,
                         norm_eps=1e-6, rope_scaling=_LATENT, router="softmax",
                         route_groups=1, groups_per_token=1, normalized_routes=False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_family_computes_the_same_in_llama_cpp_and_comes_back(name, tmp_path, monkeypatch):
    # Exact or not, GELU is a table of its own there; with it our sums are llama.cpp's.
    for kind in ("gelu", "gelu_tanh"):
        monkeypatch.setitem(ACTIVATIONS, kind, ggml.gelu)
    folder = write_tiny(MODELS[name], tmp_path / "hf")
    theirs, ours = both(folder, "float32", tmp_path)
    # The text is longer than windows and original lengths.
    ids = np.random.default_rng(0).integers(0, 296, 40).tolist()
    written, _, margin = greedy(theirs, ids, 12)
    assert margin > 1e-4, "a near-tie; choose another text"
    text = np.array([*ids, *written[:-1]])
    logits = np.asarray(ours.logits(text[None]))[0]
    apart, spread = logits - theirs.scores[: len(text)], np.std(theirs.scores[: len(text)])
    print(f"{name}: {np.sqrt(np.mean(apart**2)):.1e} of {spread:.2f}")
    # In another order of sums, whose last bit may take GELU's table to the next entry.
    loose = ours.config.activation.startswith("gelu")
    assert np.sqrt(np.mean(apart**2)) < (1e-4 if loose else 1e-5) * max(spread, 1)
    # Greedy text is the likeliest token after each of its own.
    assert logits[len(ids) - 1 :].argmax(-1).tolist() == written
    convert(tmp_path / "gguf", tmp_path / "again", "hf", certified=False)
    before, after = load(folder), load(tmp_path / "again")
    for field in fields(Shape):
        assert getattr(after.config, field.name) == getattr(before.config, field.name), field.name
    for path, leaf in tree.paths(after.params).items():
        np.testing.assert_array_equal(leaf, tree.paths(before.params)[path], err_msg=path)
