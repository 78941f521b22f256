"""A conversation on an engine has the texts of the loop, and reads each turn once."""

from dataclasses import replace

import pytest

from research.infer.decode import stream
from research.infer.sampling import SamplingConfig
from research.serve import dialogue
from research.serve.dialogue import Dialogue
from tests.serve.engines import Letters, model, prompt

DRAWN = SamplingConfig(max_tokens=4, seed=3, temperature=0.8)


def loop(ids: list[int], config: SamplingConfig) -> str:
    return "".join(piece for _, piece in stream(*model(), Letters(), [ids], config))


@pytest.mark.slow
def test_turns_have_the_texts_of_the_loop_and_are_read_once():
    talk, said = Dialogue(*model(), Letters()), prompt(6)
    for turn in range(3):
        answer = "".join(talk.answer(said, DRAWN))
        assert answer == loop(said, DRAWN)
        said = [*said, *Letters().encode(answer), *prompt(3, turn + 1)]
    engine = talk._engine
    assert engine.pages.held == 0
    # A page of the two that were there.
    assert engine.counts.found > 0


def test_what_was_interrupted_is_forgotten_and_the_next_turn_is_answered():
    talk = Dialogue(*model(), Letters())
    pieces = talk.answer(prompt(6), DRAWN)
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)
    assert talk._engine is None
    assert "".join(talk.answer(prompt(6), DRAWN)) == loop(prompt(6), DRAWN)


def test_what_no_engine_runs_is_answered_by_the_loop(monkeypatch):
    monkeypatch.setattr(dialogue, "stream", lambda *asked: [(0, "loop")])
    talk = Dialogue(*model(), Letters())
    longer = replace(DRAWN, max_tokens=10_000)
    assert list(talk.answer(prompt(6), longer)) == ["loop"]
