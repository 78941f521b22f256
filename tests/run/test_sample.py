"""A run writes a sample from what there is to read, and does not end for the lack of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from research.run import appraisal, lines
from tests.configs import experiment


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that the model is given."""
    seen = []

    def generate(model, params, tokenizer, prompts, config):
        seen.extend(prompts)
        return [SimpleNamespace(text="written")]

    monkeypatch.setattr(appraisal, "generate", generate)
    return seen


def session(kind="encoder_decoder", prompt="", begins=False, windows=1):
    e = experiment("quickstart", "smoke", **{"train.sample_prompt": prompt})
    e = SimpleNamespace(train=e.train, model=SimpleNamespace(kind=kind))
    texts = {
        "encoder_inputs": np.array([7, 8, 1, 9, 1]),
        "encoder_segments": np.array([1, 1, 1, 2, 2]),
    }
    example = texts if kind == "encoder_decoder" else {"inputs": np.arange(5)}
    objective = SimpleNamespace(
        answers_chats=False, begins_texts=begins, example=lambda window, rng: example
    )
    return SimpleNamespace(
        program=SimpleNamespace(experiment=e, objective=objective, model=None),
        corpus=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: f"text of {ids}")),
        appraisal=SimpleNamespace(heldout=SimpleNamespace(windows=[None] * windows)),
    )


class Log:
    """Takes what is written."""

    def __init__(self):
        self.samples, self.notes = [], []
        self.sample, self.note = lambda *sample: self.samples.append(sample), self.notes.append


@pytest.mark.parametrize(
    ("run", "given", "shown"),
    [
        (session(), [7, 8, 1], "text of [7, 8, 1]"),  # the first held-out source, and no other
        (session(begins=True), [7, 8, 1], "text of [7, 8, 1]"),  # span corruption
        (session(prompt="one cat"), "one cat", "one cat"),
        (session("decoder", begins=True), "", ""),  # begins with the token that begins a text
    ],
)
def test_a_sample_goes_on_from_the_prompt_or_a_heldout_source(prompts, run, given, shown):
    log = Log()
    lines.log_sample(run, log, SimpleNamespace(params=None), 5)
    assert prompts == [given] and log.samples == [(5, shown, "written")] and not log.notes


@pytest.mark.parametrize("run", [session(windows=0), session("encoder"), session("decoder")])
def test_without_anything_to_go_on_from_there_is_no_sample(prompts, run):
    log = Log()
    lines.log_sample(run, log, SimpleNamespace(params=None), 5)
    assert not prompts and not log.samples


def test_a_prompt_that_the_model_cannot_take_does_not_end_the_run(monkeypatch):
    def refuse(*_):
        raise ValueError("prompt 0 has 900 tokens, the model 64 positions; shorten it")

    monkeypatch.setattr(appraisal, "generate", refuse)
    log = Log()
    lines.log_sample(session(prompt="long"), log, SimpleNamespace(params=None), 5)
    [line] = log.notes
    assert "no sample at step 5: prompt 0 has 900" in line and not log.samples
