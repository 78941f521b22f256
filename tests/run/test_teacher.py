"""A teacher from another checkpoint: held beside the student, read again on resume, never saved,
and refused where its words are others."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from research.objectives.choose import make_objective
from research.run.program import make_program
from research.run.start import resumed_state
from research.run.teacher import with_teacher
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES
from tests.runs import started_run

SMALL = replace(FAMILIES["llama3_405b"], vocab_size=320, max_length=64)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(folder, parameters) of a decoder of another shape than the student."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return folder, save_checkpoint(folder, SMALL)


def student(folder, source="stdlib"):
    changes = {"objective.teacher": str(folder), "data.source": str(source)}
    return experiment("compress", "task=heal,smoke", **changes)


def test_a_teacher_is_held_and_read_again_and_never_saved(teacher, tmp_path):
    folder, params = teacher
    (tmp_path / "text.txt").write_text("\n".join(f"to be or not to be {n}" for n in range(400)))
    session = started_run(student(folder, tmp_path / "text.txt"), tmp_path / "run")
    program, state = session.program, session.state
    assert program.teacher == SMALL
    jax.tree.map(np.testing.assert_array_equal, state.held["teacher"], params)
    stored = program.to_stored(state)
    assert "held" not in stored and stored["frozen"] == {}
    again = resumed_state(program, stored)
    jax.tree.map(np.testing.assert_array_equal, again.held, state.held)
    # The student's evaluation gets the whole teacher, on no base.
    jax.tree.map(np.testing.assert_array_equal, again.held_params["teacher"], params)


def test_a_plan_counts_the_teacher(teacher):
    e = student(teacher[0])
    objective = make_objective(e.objective, None, e.model)
    held = make_program(e, objective).abstract_held
    assert jax.tree.map(lambda x: x.shape, held["teacher"]) == jax.tree.map(np.shape, teacher[1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 300}, "predicts over 300 tokens, the student over 320"),
        ({"kind": "encoder", "tied": False}, "is an encoder; give a decoder"),
        ({}, "has another tokenizer than the student"),
    ],
)
def test_a_teacher_of_other_words_is_refused(changes, says, tmp_path):
    save_checkpoint(tmp_path / "other", replace(SMALL, **changes))
    e = student(tmp_path / "other")
    objective = make_objective(e.objective, None, e.model)
    with pytest.raises(ValueError, match=says):
        with_teacher(e, objective, SimpleNamespace(fingerprint="another"))
