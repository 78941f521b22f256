"""The benchmark of prompt lookup: what it counts is what the engine did, and texts are equal."""

from types import SimpleNamespace

import pytest

from research.bench import lookup
from tests.serve.engines import Letters, model, prompt


@pytest.mark.slow
def test_answers_are_equal_and_the_saved_calls_are_the_guesses_that_were_kept(monkeypatch):
    made, params = model()
    opened = SimpleNamespace(
        model=made, params=params, tokenizer=Letters(), source="a model", stop_ids=()
    )
    monkeypatch.setattr(lookup, "open_model", lambda workdir, checkpoint: opened)
    monkeypatch.setattr(Letters, "encode", lambda self, text: prompt(8, len(text)))
    monkeypatch.setattr(lookup, "TOKENS", 24)
    row = lookup.measure("a model", drafts=3, texts=3, rounds=1)
    assert row["equal"] and row["written"] == 3 * 24 and row["reading"] == 3
    # Without guesses a call is a token; the first of an answer comes as its prompt is read.
    assert row["calls_without"] == row["written"]
    # Random weights write loops, which guesses find.
    assert 0 < row["kept"] == row["calls_without"] - row["calls_with"]
    assert row["tokens_per_call"] > 1 and f"{row['tokens_per_call']:.2f}" in lookup.table(row)
    assert len(row["seconds_with"]) == len(row["seconds_without"]) == 1


def test_the_records_that_are_asked_for_are_there():
    for one in lookup.prompts(20):
        *_, example, shown, wanted, begun = one.split("\n\n")
        city, other = (heading.rsplit(" in ", 1)[1] for heading in (wanted, example))
        assert f"city: {city};" in one and begun == "name:" and city != other
        assert shown.count(f"city: {other};") == len(shown.splitlines()) == 3
    assert lookup.prompts(3) == lookup.prompts(3) != lookup.prompts(3, seed=1)
