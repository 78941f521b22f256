"""The folder of a run: any name may be written and read, one process trains in it, and a run whose
checkpoints are gone is not begun anew over its metrics."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from research.run import workdir
from research.training.checkpoint import Checkpoints, restore_params
from research.training.metrics import read_rows
from tests.configs import experiment


@pytest.mark.parametrize("name", ["run[1]", "[!a]*?", "{x} 50% two words", "tail\n"])
def test_checkpoints_in_a_folder_of_any_name_are_readable(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    state = {"trainable": {"w": jnp.arange(6.0).reshape(2, 3)}, "optimizer": {"m": jnp.ones(3)}}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, state, {"kept": 1})
        checkpoints.wait()
        assert checkpoints.meta() == {"kept": 1}
    step, params, _ = restore_params(folder, shapes["trainable"], "trainable")
    assert step == 2 and bool(jnp.all(params["w"] == state["trainable"]["w"]))


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://b/deep/run", "memory://run"])
def test_an_address_is_refused_and_a_folder_is_not(address):
    with pytest.raises(ValueError, match=r"--workdir=\S+ is an address.* --workdir=/mnt/\w+/run"):
        workdir.refuse_addresses(address)
    workdir.refuse_addresses(address.replace("://", ":/"))


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    with workdir.locked(tmp_path / "new"):
        with pytest.raises(ValueError, match=rf"^process {os.getpid()} on .+ trains in"):
            with workdir.locked(tmp_path / "new"):
                pass
        with workdir.locked(tmp_path / "new", enabled=False), workdir.locked(tmp_path / "other"):
            pass  # of the same job, and of another
    with workdir.locked(tmp_path / "new"):
        pass


def run_folder(folder, steps=(), checkpoints=None, last=None):
    """A workdir with a config, rows of `steps`, and the entries `checkpoints` of that folder."""
    e = experiment("quickstart", "smoke", **{"train.steps": 30, "checkpoint.every": 10})
    (folder / "config.json").write_text(json.dumps(e.to_json()))
    rows = [{"step": step, "loss": 1.0} for step in steps] + ([last] if last else [])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in checkpoints or ():
        (folder / "checkpoints" / name).mkdir(parents=True)
    if checkpoints is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "lost",
    [
        {"steps": range(1, 12)},  # the folder is missing
        {"steps": range(1, 22), "checkpoints": ()},  # an empty mount point, two saves ago
        {"steps": (30,), "checkpoints": (), "last": {"step": 30, "eval/loss": 1.0}},
    ],
)
def test_a_run_whose_checkpoints_are_gone_is_left_as_it_is(tmp_path, lost):
    run_folder(tmp_path, **lost)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="checkpoints are gone; put .*begin anew"):
        workdir.refuse_lost_checkpoints(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "going_on",
    [
        {"steps": range(1, 9), "checkpoints": ()},  # killed before its first save
        {"steps": range(1, 15), "checkpoints": ("10.orbax-checkpoint-tmp-1",)},  # while saving
        {"steps": range(1, 30), "checkpoints": ("10", "20")},
        {"steps": range(1, 30), "checkpoints": ("damaged-20",)},  # refused later, by its name
    ],
)
def test_a_run_that_was_killed_goes_on(tmp_path, going_on):
    run_folder(tmp_path, **going_on)
    workdir.refuse_lost_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        '{"step": "7", "loss": 1.0}',
        '{"step": null}',
        '{"step": true}',
        '{"step": 7, "seconds": "long"}',
        '{"step": 7, "loss": [1.0]}',
        "7",
        "[" * 100_000,
    ],
)
def test_a_row_that_is_none_is_named_by_its_line(tmp_path, row):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": null, "nonfinite": {"loss": "nan"}}\n' + row + "\n")
    with pytest.raises(ValueError, match="metrics.jsonl line 2 is not a row") as refused:
        read_rows(file)
    assert "\n" not in str(refused.value)
