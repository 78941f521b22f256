"""A config.json that leaves a field out means the default of the model's class in transformers."""

import json
from pathlib import Path

import pytest

from research.interop.huggingface.families.table import FAMILIES
from research.ops.rope_scaling import RopeScaling

# Made by make_golden_defaults.py.
DEFAULTS = json.loads((Path(__file__).parent / "goldens/class_defaults.json").read_text())
READERS = {kind: family for family in FAMILIES.values() for kind in family.model_types}
# Their files nest those of a text model, whose kind has its row here, and of an encoder.
NESTED = {"llava", "smolvlm", "idefics3", "paligemma", "gemma3", "siglip", "clip"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


# Where the class's own values are of a model that is refused.
SUPPORTED = {
    "electra": {"embedding_size": DEFAULTS["electra"]["hidden_size"]},
    "deepseek_v2": {"num_experts_per_tok": 6},  # its class cannot be made without
}


def test_every_kind_of_model_has_its_defaults_here():
    assert READERS.keys() - NESTED == DEFAULTS.keys()


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_field_left_out_is_the_default_of_its_class(kind):
    full = {"model_type": kind, **DEFAULTS[kind], **SUPPORTED.get(kind, {})}
    whole = READERS[kind].read_config(full, set())
    required = []
    for name in DEFAULTS[kind].keys() - SUPPORTED.get(kind, {}).keys():
        without = {key: value for key, value in full.items() if key != name}
        try:
            assert READERS[kind].read_config(without, set()) == whole, name
        except ValueError as error:  # a size that no published file leaves out
            assert f"has no {name}" in str(error)
            required.append(name)
    assert len(required) <= 8 and not {"rope_theta", "sliding_window"} & set(required)


@pytest.mark.parametrize(
    ("kind", "window"), [("mistral", 0), ("mixtral", 0), ("qwen2", 0), ("gemma2", 4096)]
)
def test_a_window_of_null_is_none(kind, window):
    values = {"model_type": kind, **DEFAULTS[kind], "sliding_window": None}
    assert READERS[kind].read_config(values, set()).window == window


@pytest.mark.parametrize(
    ("values", "theta", "scaling"),
    [
        # Both spellings: all of the older one, nothing of the newer (transformers 5.24).
        (
            {
                "rope_parameters": {**LLAMA3, "rope_theta": 5e5},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
            1e4,
            RopeScaling(factor=4.0, kind="linear"),
        ),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
                "rope_scaling": {**LLAMA3, "rope_theta": 7e5},
                "rope_theta": 9e5,
            },
            7e5,
            RopeScaling(8.0, 1.0, 4.0, 64),
        ),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 9e5}, 9e5, RopeScaling()),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_scaling": None},
            5e5,
            RopeScaling(),
        ),
    ],
)
def test_two_spellings_of_the_rotary_positions_are_weighed_as_transformers_does(
    values, theta, scaling
):
    base = {"model_type": "llama", **DEFAULTS["llama"]}
    del base["rope_theta"], base["rope_parameters"]
    c = READERS["llama"].read_config(base | values, set())
    assert (c.rope_theta, c.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize("kind", ["mixtral", "gemma3_text"])
def test_a_scaling_without_a_base_has_that_of_its_class(kind):
    values = {"model_type": kind, **DEFAULTS[kind]}
    del values["rope_theta"]
    linear = {"rope_type": "linear", "factor": 8.0}
    c = READERS[kind].read_config({**values, "rope_scaling": linear}, set())
    assert (c.rope_theta, c.rope_scaling) == (1e6, RopeScaling(factor=8.0, kind="linear"))
