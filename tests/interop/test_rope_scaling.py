"""Scalings of rotary positions go through config.json and GGUF unchanged, and mean there what
transformers and llama.cpp compute."""

import math
from dataclasses import replace

import pytest

from research.files import building
from research.interop.convert import convert
from research.interop.huggingface.families.rope import (
    read_rope,
    read_rotary_size,
    rotary_share,
)
from research.interop.load import open_checkpoint
from research.interop.native import write_native
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

SHORT, LONG = (1.03, 1.1, 1.7, 2.0299999713897705), (1.0, 2.5, 7.1, 30.9)
LONGROPE = {"kind": "longrope", "short_factors": SHORT, "long_factors": LONG}
# For a model of 32 positions with 4 rotary pairs a head.
SCALINGS = {
    "linear": RopeScaling(3.3, kind="linear"),
    "llama3": RopeScaling(5.0, 0.5, 7.0, 48),  # nobody's model
    "dynamic": RopeScaling(2.5, kind="dynamic", original_length=32),
    "yarn": RopeScaling(4.0, kind="yarn", original_length=8, beta_fast=31.7),
    "yarn_attention": RopeScaling(4.0, kind="yarn", original_length=8, attention_factor=1.1),
    "longrope": RopeScaling(4.0, original_length=8, **LONGROPE),
    "longrope_factor": RopeScaling(7.0, original_length=8, **LONGROPE),
    "longrope_attention": RopeScaling(original_length=8, attention_factor=1.21, **LONGROPE),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_scaling_comes_back_as_it_was(name, to, tmp_path):
    c = replace(FAMILIES["llama2_7b"], rope_scaling=SCALINGS[name])
    with building(tmp_path / "model") as folder:
        write_native(in_memory(c, random_params(c)), folder)
    if (to, name) == ("gguf", "dynamic"):
        with pytest.raises(ValueError, match="GGUF has no dynamic scaling"):
            convert(tmp_path / "model", tmp_path / to, to)
        return
    notes = convert(tmp_path / "model", tmp_path / to, to)["notes"]
    with open_checkpoint(tmp_path / to) as opened:
        assert opened.config.rope_scaling == c.rope_scaling
    # What llama.cpp computes in another way is said.
    words = {"yarn": "beta_fast=31.7"} | {n: "long factors" for n in SCALINGS if "longrope" in n}
    assert bool(notes) == (to == "gguf" and name in words)
    assert all(words[name] in line for line in notes)


@pytest.mark.parametrize(
    ("scaling", "want"),
    [
        # The field's own attention factor, the two scales of DeepSeek, the paper's.
        ({"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        (
            {"mscale": 2.0, "mscale_all_dim": 0.5},
            (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
        ),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1),
        ({}, 0.1 * math.log(4) + 1),
        # Without a factor it is the longest text over the original length.
        ({"factor": None, "original_max_position_embeddings": 8}, 0.1 * math.log(8) + 1),
    ],
)
def test_yarns_attention_factor_is_the_one_of_transformers(scaling, want):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    values = {"max_position_embeddings": 64, "rope_scaling": {**yarn, **scaling}}
    assert read_rope(values)[1].multiplier == pytest.approx(want, rel=1e-12)


def test_the_original_length_beside_the_other_fields_goes_first():
    scaling = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    values = {"max_position_embeddings": 64, "rope_scaling": scaling}
    assert read_rope(values)[1].original_length == 64
    scaling["original_max_position_embeddings"] = 32
    assert read_rope(values)[1].original_length == 32
    values["original_max_position_embeddings"] = 16
    assert read_rope(values)[1].original_length == 16


@pytest.mark.parametrize("head_size", [80, 96, 100, 128])
def test_the_rotated_part_of_a_head_comes_back(head_size):
    for size in range(2, head_size, 2):
        c = ModelConfig(head_size=head_size, rotary_size=size)
        values = {"partial_rotary_factor": rotary_share(c)}
        assert read_rotary_size(values, head_size) == size
    assert read_rotary_size({}, head_size) == 0
    assert read_rotary_size({"rope_parameters": {"partial_rotary_factor": 0.5}}, head_size) == (
        head_size // 2
    )
