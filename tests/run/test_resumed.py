"""A run goes on with its own config, batch and inputs, or says in one line what differs."""

import json
from types import SimpleNamespace

import jax
import pytest

from research.objectives.choose import make_objective
from research.run import resumed
from research.run.program import make_program
from tests.configs import experiment

PER_DEVICE = {"data.batch_size": 0, "data.batch_size_per_device": 4, "mesh": "fsdp:-1"}


def compare(tmp_path, before: dict, after: dict, rows: int, **meta):
    """The notes on going on from one config to another, with `rows` in a batch."""
    old, new = (experiment("quickstart", "smoke", **changes) for changes in (before, after))
    (tmp_path / "config.json").write_text(json.dumps(old.to_json()))
    program = SimpleNamespace(batch_size=rows, mesh=SimpleNamespace(size=2))
    earlier = resumed.config_before(tmp_path, meta)
    return resumed.compare_configs(new, tmp_path, program, meta, earlier)


@pytest.mark.parametrize(
    ("before", "after", "rows"),
    [
        (PER_DEVICE, PER_DEVICE, 4),  # another number of devices
        (PER_DEVICE, {"data.batch_size": 4}, 4),
        ({"data.batch_size": 8}, PER_DEVICE, 16),
        ({"data.batch_size": 8}, {"data.batch_size": 16}, 16),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_another_batch_is_refused(tmp_path, before, after, rows, recorded):
    devices = {"devices": {"count": 1}, "resumed": [{"devices": {"count": 2}}, {"step": 3}]}
    (tmp_path / "provenance.json").write_text(json.dumps(devices))
    with pytest.raises(ValueError, match="batch") as refused:
        compare(tmp_path, before, after, rows, **({"batch_size": 8} if recorded else {}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("after", [PER_DEVICE, {"data.batch_size": 8}])
def test_the_same_batch_goes_on_however_it_is_spelled(tmp_path, after):
    config = experiment("quickstart", "smoke", **PER_DEVICE).to_json()
    meta = {"batch_size": 8, "config": config}
    assert compare(tmp_path, PER_DEVICE, after, 8, **meta) == []


def test_the_remedy_for_another_batch_is_one_that_works(tmp_path):
    with pytest.raises(ValueError) as refused:
        compare(tmp_path, PER_DEVICE, PER_DEVICE, 12, batch_size=8)
    flags = [word for word in str(refused.value).split() if word.startswith("--config.")]
    fields = dict(flag.removeprefix("--config.").split("=") for flag in flags)
    after = {**PER_DEVICE, **{name: int(value) for name, value in fields.items()}}
    assert compare(tmp_path, PER_DEVICE, after, 8, batch_size=8)


def test_the_config_that_a_checkpoint_was_saved_with_counts_and_not_the_file_alone(tmp_path):
    saved = experiment("quickstart", "smoke", **{"model.norm_eps": 1e-3}).to_json()
    with pytest.raises(ValueError, match="model.norm_eps: 0.001 -> 1e-05"):
        compare(tmp_path, {}, {}, 8, config=saved, batch_size=8)


def test_a_config_that_is_missing_is_that_of_the_checkpoint_or_refused(tmp_path):
    assert resumed.config_before(tmp_path, {}) == {}  # a new run
    assert resumed.config_before(tmp_path, {"config": {"init": "x"}}) == {"init": "x"}
    with pytest.raises(ValueError, match="no config.json; restore it"):
        resumed.config_before(tmp_path, {"tokenizer": "0"})


@pytest.mark.parametrize("text", ["[]", '{"model": 3}', "{", '{"model": {}, "train": null}'])
def test_a_file_that_is_no_config_is_said_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is not") as refused:
        resumed.config_before(tmp_path, {})
    assert "\n" not in str(refused.value)


def test_a_run_of_an_older_version_goes_on_with_one_line(tmp_path):
    [line] = compare(tmp_path, {}, {}, 8, tokenizer="0")
    assert "config.json is taken for it" in line


@pytest.mark.parametrize("name", ["tokenizer", "chat_template", "data", "base"])
def test_another_input_is_refused(tmp_path, name):
    now = dict.fromkeys(["tokenizer", "chat_template", "data", "base"], "a" * 64)
    resumed.refuse_other_inputs(tmp_path, now, now)
    resumed.refuse_other_inputs(tmp_path, {"data": "a" * 64}, now)  # of an older version
    with pytest.raises(ValueError, match=f"the {name.replace('_', ' ')} is not that of the run"):
        resumed.refuse_other_inputs(tmp_path, {**now, name: "b" * 64}, now)


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "rates"),
    [
        ("cosine", 20, 40, ("stretched", "0.000106", "0.000587")),
        ("linear", 10, 40, ("stretched", "0.000579", "0.000789")),
        ("linear", 10, 15, ("shortened", "0.000579", "0.000333")),
        ("wsd", 1, 100, ("stretched", "0", "0.0002")),  # within the warm-up, which has a share too
        ("wsd", 10, 40, None),
        ("constant", 10, 40, None),
        ("cosine", 20, 20, None),
        ("cosine", 0, 40, None),
    ],
)
def test_steps_that_bend_the_schedule_are_said_with_both_rates(schedule, step, steps, rates):
    changes = {"optimizer.schedule": schedule, "optimizer.name": "adamw"}
    changes |= {"optimizer.learning_rate": 1e-3}
    old, new = (
        experiment("quickstart", "smoke", **changes, **{"train.steps": n}) for n in (20, steps)
    )
    program = make_program(new, make_objective(new.objective, None), jax.devices()[:1])
    lines = resumed.stretched(old.to_json(), program, step)
    if rates is None:
        assert lines == []
    else:
        word, before, after = rates
        [line] = lines
        assert word in line and f"from 20 to {steps} steps" in line
        assert f"was {before} at step {step} and is {after} at step {step + 1}" in line


@pytest.mark.parametrize(
    ("model", "dropout", "saved", "step", "said"),
    [
        ("t5_small", 0.1, {"tokenizer": "0"}, 3, True),
        ("t5_small", 0.1, {"config": {}}, 3, False),  # of a version with masks of their own
        ("t5_small", 0.1, {}, 0, False),  # a new run
        ("t5_small", 0.0, {"tokenizer": "0"}, 3, False),
        ("gpt2", 0.1, {"tokenizer": "0"}, 3, False),  # nothing is dropped at its end
    ],
)
def test_masks_that_are_others_from_here_on_are_said(model, dropout, saved, step, said):
    e = experiment("pretrain", f"model={model},smoke", **{"model.dropout": dropout})
    lines = resumed.other_masks(e, saved, step)
    assert len(lines) == said and all("up to step 3 an older version" in line for line in lines)
