"""Epochs become steps, and steps are said in epochs before a run starts."""

from types import SimpleNamespace

import pytest

from research.run.epochs import reading, steps_of, with_steps
from tests.configs import experiment


@pytest.mark.parametrize(
    ("epochs", "windows", "batch", "steps"),
    [
        (3, 100, 8, 38),
        (3, 96, 8, 36),
        (0.1, 30, 1, 3),  # which floats make 3.0000000000000004
        (0.5, 7, 2, 2),
        (1, 2, 8, 1),
        (1e-6, 10, 8, 1),
        (2000, 2, 8, 500),
    ],
)
def test_steps_are_the_fewest_that_read_the_data_so_often(epochs, windows, batch, steps):
    assert steps_of(epochs, windows, batch) == steps


def program(**changes):
    e = experiment("quickstart", "smoke", **changes)
    objective = SimpleNamespace(
        answers_chats=True,
        writes_texts=False,
        reads="conversations",
        window_length=lambda n: n,
        overlap=0,
    )
    return SimpleNamespace(experiment=e, batch_size=8, objective=objective)


def test_a_run_by_epochs_has_its_steps_from_all_parts_of_the_data():
    corpus = SimpleNamespace(train_windows=lambda *_: SimpleNamespace(sizes=(70, 30)))
    e = with_steps(program(**{"train.epochs": 3.0, "train.steps": 500}), corpus)
    assert (e.train.steps, e.train.epochs) == (38, 3.0)


@pytest.mark.parametrize(
    ("steps", "windows", "said", "many"),
    [
        (
            500,
            2,
            "37 conversations make 2 windows of 64 tokens; 256k tokens in 500 steps of 8 are 2,000 "
            "epochs",
            True,
        ),
        (5, 100, "5 steps of 8 are 0.4 epochs", False),
        (1500, 1000, "1,500 steps of 8 are 12 epochs", False),
    ],
)
def test_a_run_says_how_often_it_reads_its_data(steps, windows, said, many):
    line = reading(program(**{"train.steps": steps}), 37, windows)
    assert said in line and ("set config.train.epochs" in line) == many


@pytest.mark.parametrize("epochs", [-1.0, float("nan"), float("inf")])
def test_epochs_out_of_range_are_refused(epochs):
    with pytest.raises(ValueError, match="train.epochs="):
        program(**{"train.epochs": epochs})
