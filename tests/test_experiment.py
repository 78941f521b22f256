"""From configs to experiments: what is resolved, what is refused, and in which words."""

import dataclasses
import json

import pytest

from research.experiment.config import base_config, from_json, refused_changes
from research.experiment.fields import parse_arg
from research.models.presets import PRESETS
from research.run.resolve import from_config
from tests.configs import experiment, load_config


def test_a_preset_is_itself_where_nothing_is_overridden():
    for name in PRESETS:
        assert experiment("pretrain", f"model={name}").model == PRESETS[name]


def test_every_field_of_a_preset_can_be_overridden():
    config = load_config("pretrain", "model=llama3_405b")
    config.model.window = 7
    config.model.rope_scaling.factor = 4.0
    model = from_config(config).model
    assert (model.window, model.rope_scaling.factor, model.rope_scaling.original_length) == (
        7,
        4.0,
        8192,
    )
    assert (
        dataclasses.replace(model, window=0, rope_scaling=PRESETS["llama3_405b"].rope_scaling)
        == PRESETS["llama3_405b"]
    )


def test_json_is_the_same_experiment():
    for arg in ("model=llama3_8b", "model=t5_small,smoke", "model=bert_base"):
        e = experiment("pretrain", arg)
        assert from_json(json.loads(json.dumps(e.to_json()))) == e


@pytest.mark.parametrize("section", ["", "train", "model", "optimizer", "data"])
def test_a_misspelt_field_names_the_nearest(section):
    config = base_config()
    config.model.preset = "gpt2"
    values = config.to_dict()
    target = values[section] if section else values
    right = {
        "": "mesh",
        "train": "steps",
        "model": "layers",
        "optimizer": "learning_rate",
        "data": "batch_size",
    }[section]
    target[right + "s"] = 1
    with pytest.raises(ValueError, match=f"'{right}s'; the nearest is '{right}'"):
        from_config(type(config)(values))


def test_unknown_presets_and_arguments_name_the_nearest():
    with pytest.raises(ValueError, match="llama3_8b"):
        experiment("pretrain", "model=llama3_8")
    with pytest.raises(ValueError, match="'smoke'"):
        experiment("quickstart", "smok")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.batch_size_per_device", 4),  # beside the global batch of the quickstart
        ("train.steps", 0),
        ("model.kv_heads", 3),
        ("execution.remat", "some"),
        ("precision.compute", "int8"),
        ("objective.name", "masked_lm"),  # of a decoder
        ("mesh", "fsdp:0"),
        ("optimizer.name", "sgd"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(field, value):
    with pytest.raises(ValueError) as caught:
        experiment("quickstart", "smoke", **{field: value})
    assert field.rpartition(".")[2] in str(caught.value) or str(value) in str(caught.value)


def test_learned_positions_bound_the_sequence():
    with pytest.raises(ValueError, match="config.model.max_length"):
        experiment("pretrain", "model=gpt2", **{"data.sequence_length": 2048})


def test_parse_arg_types_follow_the_defaults():
    args = parse_arg(
        "rank=8,smoke,rate=0.5,name=x", rank=4, smoke=False, rate=1.0, name="", other=2
    )
    assert args.to_dict() == {"rank": 8, "smoke": True, "rate": 0.5, "name": "x", "other": 2}
    with pytest.raises(ValueError, match="rank is of type int"):
        parse_arg("rank=x", rank=4)


def test_resume_may_change_how_far_and_where_but_not_what():
    old = experiment("quickstart").to_json()
    may = experiment(
        "quickstart",
        mesh="fsdp:2",
        **{"train.steps": 7, "checkpoint.keep": 9, "train.log_every": 2},
    )
    assert refused_changes(old, may.to_json()) == []
    must_not = experiment("quickstart", **{"data.batch_size": 32, "optimizer.learning_rate": 1.0})
    lines = refused_changes(old, must_not.to_json())
    assert lines == ["data.batch_size: 16 -> 32", "optimizer.learning_rate: 0.01 -> 1.0"]
