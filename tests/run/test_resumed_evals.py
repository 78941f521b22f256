"""An ended command of evaluations goes on where it was, and takes nothing that has changed."""

import dataclasses
import json
from collections.abc import Iterator
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from research.evals.evaluation import Evaluation, Item
from research.infer.sentences import SentenceSettings
from research.run import resumed_evals
from research.run.resumed_evals import Evaluations


@dataclasses.dataclass(frozen=True)
class Counted(Evaluation):
    """Three items that a model's one parameter decides, and how often they were asked for."""

    asked: list[str]
    ends: bool = False

    config = dict
    main = "score"

    @classmethod
    def make(cls, config, data):
        return cls([])

    def items(self, opened) -> Iterator[Item]:
        self.asked.append(opened.source)
        for number in range(3):
            if self.ends and number:
                raise KeyboardInterrupt
            score = float(opened.params["w"][0]) * (number + 1) / 3
            yield Item(f"q{number}", {"score": (score, 1.0)}, {"prompt": "1\u2028?"})


def model(weight: float, source: str = "one") -> SimpleNamespace:
    return SimpleNamespace(
        params={"w": jnp.array([weight])}, held={}, model="a model", tokenizer=None, window=8,
        begins_texts=True, stop_ids=(), sentences=SentenceSettings(), experiment=None, labels=(),
        source=source, step=None,
    )  # fmt: skip


FACTS = {"model": "one", "step": None}


def evaluations(folder, second_ends=False, again=False, **fields) -> Evaluations:
    chosen = {"a": Counted([]), "b": Counted([], second_ends)}
    return Evaluations(folder, {"a": fields, "b": {}}, chosen, again)


def test_a_command_that_was_ended_goes_on_and_ends_with_the_same_numbers(tmp_path, capsys):
    ended = evaluations(tmp_path / "ended", second_ends=True)
    with pytest.raises(KeyboardInterrupt):
        ended.measure(model(0.7), FACTS)
    again = evaluations(tmp_path / "ended")
    again.measure(model(0.7), FACTS)
    assert (again.chosen["a"].asked, again.chosen["b"].asked) == ([], ["one"])
    assert "a: finished before, taken from" in capsys.readouterr().err
    whole = evaluations(tmp_path / "whole")
    whole.measure(model(0.7), FACTS)
    assert again.numbers(False) == whole.numbers(False)
    for name in ("a.json", "a.jsonl", "b.json", "b.jsonl"):
        kept = [tmp_path / folder / "evals" / name for folder in ("ended", "whole")]
        assert kept[0].read_bytes() == kept[1].read_bytes()


def test_nothing_is_taken_of_what_has_changed(tmp_path, monkeypatch):
    data = tmp_path / "data.jsonl"
    data.write_text("1")

    def measured(weight: float = 0.7, **fields) -> bool:
        """Whether the first evaluation is measured anew."""
        one = evaluations(tmp_path, **{"data": str(data), **fields})
        one.measure(model(weight), FACTS)
        return bool(one.chosen["a"].asked)

    assert measured() and not measured()
    assert measured(limit=3) and not measured(limit=3)
    assert measured(0.8, limit=3) and not measured(0.8, limit=3)
    assert measured(0.8, limit=3, again=True)
    data.write_text("2")
    assert measured() and not measured()
    # As a command leaves it that is ended between the two files of an evaluation.
    items = tmp_path / "evals/a.jsonl"
    items.write_text(items.read_text().replace("q1", "q9"))
    assert measured() and not measured()
    monkeypatch.setattr(resumed_evals, "code_digest", lambda: "other code")
    assert measured()


def test_a_comparison_goes_on_too_and_is_shown_only_where_it_is_asked_for(tmp_path):
    for asked in (["two"], []):
        one = evaluations(tmp_path)
        results = one.measure(model(0.7), FACTS)
        of_one = list(one.chosen["b"].asked)
        one.compare(results, model(0.4, "two"))
        assert one.chosen["b"].asked == [*of_one, *asked]
    difference = one.numbers(True)["b"]["score"]["difference"]
    assert difference["value"] == pytest.approx(0.3 * 2 / 3)
    assert "difference" not in one.numbers(False)["b"]["score"]
    kept = json.loads((tmp_path / "evals/b.json").read_text())
    assert kept["model"] == "one" and kept["against"] == "two"
