"""States with NaN or infinite numbers are found, are not saved, and are not continued from."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import command
from research.run import saving
from research.training.checkpoint import CheckpointConfig, Checkpoints, restore_params
from research.training.finite import nonfinite
from tests.configs import experiment


def stored(place: str = "", number: float = 1.0, dtype: str = "float32") -> dict:
    """A state as checkpoints store it, with `number` at one place of it."""
    arrays = {
        "trainable": {"w": np.ones((2, 3)), "scale": np.ones(3)},
        "optimizer": {"nu": np.ones((2, 3)), "count": np.int32(1)},
        "frozen": {"base": np.ones(4)},
    }
    if place:
        section, name = place.split("/")
        arrays[section][name].flat[-1] = number
    return jax.tree.map(lambda x: jnp.asarray(x, None if x.ndim == 0 else dtype), arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e5m2"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["trainable/w", "trainable/scale", "optimizer/nu"])
def test_a_number_that_is_not_finite_is_found_wherever_training_changes_it(place, number, dtype):
    assert nonfinite(stored(place, number, dtype)) == [place]


@pytest.mark.parametrize("state", [stored(), stored("frozen/base", np.nan)])
def test_finite_states_pass_and_frozen_weights_are_those_of_their_source(state):
    assert nonfinite(state) == []


def shapes(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def save(folder, *states):
    with Checkpoints(folder, CheckpointConfig(keep=9)) as checkpoints:
        for step, state in enumerate(states, 1):
            checkpoints.save(step, state, {})


def test_steps_that_an_older_version_saved_are_set_aside_and_passed_over(tmp_path, caplog):
    good, lost = stored(), stored("optimizer/nu", np.inf)
    save(tmp_path, good, lost, stored("trainable/w", np.nan))
    wanted = shapes(good)["trainable"]
    assert restore_params(tmp_path, wanted, "trainable")[0] == 2  # its parameters are finite
    assert len(caplog.messages) == 1 and "trainable/w" in caplog.text
    assert (
        restore_params(tmp_path, wanted, "trainable", step=3)[0] == 3
    )  # asked for, so with a line
    assert "step 3" in caplog.messages[1] and "not finite" in caplog.messages[1]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes(good))[0] == 1
        assert checkpoints.save(2, good, {})  # the run reaches the step again
    assert len(caplog.messages) == 4
    names = {folder.name for folder in tmp_path.iterdir()}
    assert names == {"1", "2", "nonfinite-2", "nonfinite-3"}


def test_a_run_without_a_finite_step_says_so_at_every_start(tmp_path):
    save(tmp_path, stored("trainable/w", np.nan))
    for _ in range(2):
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(ValueError, match="nonfinite-1.*delete"),
        ):
            checkpoints.restore(shapes(stored()))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "lower config.optimizer.learning_rate, which is 0.01"),
        ({"optimizer.clip_norm": None}, "config.optimizer.clip_norm=1.0"),
        ({"precision.param": "float16"}, "config.precision.param=bfloat16"),
        ({"precision.compute": "float16"}, "config.precision.compute=bfloat16"),
    ],
)
def test_a_lost_state_ends_the_run_and_leaves_the_good_ones(tmp_path, changes, remedy):
    saved = []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        session = SimpleNamespace(
            experiment=experiment("quickstart", "smoke", **changes),
            program=SimpleNamespace(to_stored=lambda state: state),
            checkpoints=checkpoints,
            workdir=tmp_path,
            save=lambda state, step, feed: saved.append(checkpoints.save(step, state, {})),
        )
        for step in (3, 6, 9):
            saving.save(session, SimpleNamespace(note=None), stored(), step, {})
        with pytest.raises(command.Stop) as stop:
            saving.save(session, SimpleNamespace(note=None), stored("optimizer/nu", np.nan), 12, {})
        assert stop.value.code == command.BUG and len(saved) == 3
        line = str(stop.value)
        assert "\n" not in line and remedy in line
        assert "step 12 is not saved" in line and "step 9 is saved" in line
        assert checkpoints.latest() == 9


def test_a_disk_that_is_nearly_full_is_said_before_the_save(tmp_path, monkeypatch):
    lines, size = [], sum(leaf.nbytes for leaf in jax.tree.leaves(stored()))
    session = SimpleNamespace(
        program=SimpleNamespace(to_stored=lambda state: state),
        workdir=tmp_path,
        save=lambda *_: lines.append("saved"),
    )
    for free in (2 * size, 2 * size - 1):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(saving.shutil, "disk_usage", lambda _, usage=usage: usage)
        saving.save(session, SimpleNamespace(note=lines.append), stored(), 1, {})
    assert lines[0] == lines[2] == "saved" and "MB left" in lines[1] and len(lines) == 3
