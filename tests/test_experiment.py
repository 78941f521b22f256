"""From configs to experiments: what is resolved, what is refused, and in which words."""

import dataclasses
import json
from pathlib import Path

import pytest

from research.experiment.config import (
    Experiment,
    base_config,
    complete,
    from_json,
    make_experiment,
    refused_changes,
)
from research.experiment.fields import may_change, parse_arg
from research.models.presets import PRESETS
from research.objectives.choose import flat_defaults
from research.run.resolve import from_config
from tests.configs import experiment, load_config


def test_a_preset_is_itself_where_nothing_is_overridden():
    for name, c in PRESETS.items():
        if c.mels:
            with pytest.raises(ValueError, match="this one is 'encoder_decoder of sound'"):
                experiment("pretrain", f"model={name}")
        else:
            assert experiment("pretrain", f"model={name}").model == c


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


@pytest.mark.parametrize(
    ("arg", "data"),
    [
        ("data=a,b,smoke", "a,b"),
        ("data=a.txt:0.7,b c.csv:0.3,rank=5", "a.txt:0.7,b c.csv:0.3"),
        ("rank=5,data={folder}/x,rank=9,y.txt", "{folder}/x,rank=9,y.txt"),
        ("data={folder}/x,rank=5,smoke", "{folder}/x"),
        ("data={folder}/z,smoke", "{folder}/z,smoke"),
    ],
    ids=["a list", "a mixture", "a file with a name in it", "a folder", "the longer path"],
)
def test_a_comma_may_stand_in_a_value(arg, data, tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("x,rank=9,y.txt", "z", "z,smoke"):
        (tmp_path / name).touch()
    args = parse_arg(arg.format(folder=tmp_path), rank=5, smoke=False, data="")
    assert (args.data, args.rank) == (data.format(folder=tmp_path), 5)


@pytest.mark.parametrize("arg", ["data=a,smok", "data=a,rnk=3", "rank=3,b", "smoke,b"])
def test_a_misspelt_name_is_no_part_of_a_value(arg):
    with pytest.raises(ValueError, match="config argument .* is unknown; the nearest is"):
        parse_arg(arg, rank=5, smoke=False, data="")


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


# Runs of older versions, whose config.json lacks fields of today.

GOLDENS = sorted((Path(__file__).parent / "experiment_goldens").glob("*.json"))


def leaves(values, prefix=()):
    """(path of names, value) of everything in nested dictionaries."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def without(values, path):
    """A copy of nested dictionaries without the value at a path."""
    name, *rest = path
    if rest:
        return values | {name: without(values[name], rest)}
    return {other: value for other, value in values.items() if other != name}


def replaced(values, path, value):
    """A copy of nested dictionaries with another value at a path."""
    name, *rest = path
    return values | {name: replaced(values[name], rest, value) if rest else value}


DEFAULTS = json.loads(json.dumps(complete({})))


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.stem)
def test_a_run_of_an_older_version_resumes(golden):
    old = json.loads(golden.read_text())
    assert refused_changes(old, from_json(old).to_json()) == []


@pytest.mark.parametrize("path", [path for path, _ in leaves(DEFAULTS)], ids=".".join)
def test_a_field_that_a_run_was_made_without_is_its_default(path):
    old = without(DEFAULTS, path)
    assert refused_changes(old, DEFAULTS) == refused_changes(DEFAULTS, old) == []
    assert from_json(old) == from_json(DEFAULTS)


def test_a_section_that_a_run_was_made_without_is_its_default():
    for section in DEFAULTS:
        assert from_json(without(DEFAULTS, [section])) == from_json(DEFAULTS)


def test_fields_say_themselves_whether_a_resumed_run_may_change_them():
    may = {path for path, _ in leaves(DEFAULTS) if may_change(Experiment, ".".join(path))}
    sections = {"execution", "checkpoint", "logging", "mesh", "axes", "evals", "watchdog"}
    assert {path[0] for path in may if path[0] not in ("train", "data", "skip")} == sections
    assert {path for path in may if path[0] == "data"} == {("data", "threads")}
    assert {path[1] for path in may if path[0] == "skip"} == {"limit", "then"}
    assert {path[1] for path, _ in leaves(DEFAULTS) if path[0] == "train"} - {
        path[1] for path in may if path[0] == "train"
    } == {"seed", "accumulate"}
    # What has no such mark is refused, whatever its section.
    for path, value in leaves(DEFAULTS):
        # Fields of the model and the objective may be of no use to those of the defaults, as a
        # chat template, its variables and names of classes are to a causal model.
        unused = path[1:] in [
            ("chat_template",),
            ("template_variables",),
            ("label_names",),
            ("prompt_tokens",),
        ]
        if path in may or path[0] in ("model", "objective") or unused:
            continue
        other = f"another than {value}"
        lines = refused_changes(DEFAULTS, replaced(DEFAULTS, path, other))
        assert lines == [f"{'.'.join(path)}: {value!r} -> {other!r}"]


@pytest.mark.parametrize(
    ("model", "path", "value"),
    [
        ({}, ["data", "chat_template"], "chat.jinja"),
        ({"experts": 4}, ["execution", "feed_tokens"], 8),
        ({}, ["model", "rope_scaling", "original_length"], 4096),
    ],
)
def test_what_an_older_run_let_stand_is_refused_in_a_new_one_alone(model, path, value):
    plain = DEFAULTS | {"model": DEFAULTS["model"] | model}
    old = replaced(plain, path, value)
    assert from_json(old) == from_json(plain) and refused_changes(old, plain) == []
    with pytest.raises(ValueError, match=path[-1]):
        make_experiment(old)


def test_a_resumed_chat_may_not_change_its_template():
    old = DEFAULTS | {"objective": DEFAULTS["objective"] | {"name": "chat"}}
    new = replaced(old, ["data", "chat_template"], "other.jinja")
    assert refused_changes(old, new) == ["data.chat_template: '' -> 'other.jinja'"]


def test_a_setting_of_another_objective_is_refused():
    for name, field, value in (
        ("causal_lm", "share", 0.3),
        ("chat", "mean_span", 2.0),
        ("translation", "whole_words", True),
        ("classification", "z_loss", 0.1),
    ):
        values = replaced(DEFAULTS, ["objective"], flat_defaults() | {"name": name, field: value})
        with pytest.raises(ValueError, match=f"objective.{field}={value} is set .* {name}"):
            make_experiment(values)
