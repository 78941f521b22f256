"""Numbers with intervals of items, of groups and of two models, and the files they are kept in."""

import json
import math
from dataclasses import dataclass, replace

import pytest

from research.evals.estimates import by_slice, difference, estimate
from research.evals.evaluation import Evaluation, Item
from research.evals.results import Result, keep, measure, read_kept


@dataclass(frozen=True)
class Given(Evaluation):
    """Items that are given, with a number that is no mean of theirs."""

    given: tuple[Item, ...]
    config = dict
    main = "right"

    @classmethod
    def make(cls, config, data):
        return cls(())

    def items(self, opened):
        yield from self.given

    def values(self, totals):
        values = super().values(totals)
        perplexity = math.exp(values.pop("nll"))
        return {**values, "perplexity": perplexity}


def item(n: int, right: float, score: float, nats: float) -> Item:
    totals = {"right": (right, 1.0), "score": (score, 1.0), "nll": (nats, 2.0 + n % 3)}
    return Item(f"q{n}", totals, {"prompt": f"{n}?"}, {"half": "ab"[n % 2]})


ITEMS = tuple(item(n, float(n % 3 > 0), n / 7, n + 1.0) for n in range(12))
EVALUATION = Given(ITEMS)


def test_every_number_has_its_interval_and_says_which():
    found = estimate(EVALUATION, ITEMS)
    kinds = {name: one.interval for name, one in found.items()}
    assert kinds == {"right": "wilson", "score": "student", "perplexity": "bootstrap"}
    assert all(one.low < one.value < one.high and one.n == 12 for one in found.values())


def test_a_single_item_has_no_interval_but_a_share():
    found = estimate(EVALUATION, ITEMS[:1])
    assert found["right"].interval == "wilson" and found["perplexity"].interval == "none"
    assert found["score"].to_json() == {
        "value": 0.0, "low": 0.0, "high": 0.7934506882081973, "n": 1, "interval": "wilson",
    }  # fmt: skip
    assert found["perplexity"].to_json()["low"] is None


def test_two_models_are_paired_item_by_item():
    # Worse by the same on every item: no doubt about the difference, much about each value.
    worse = [
        replace(one, totals={**one.totals, "score": (one.totals["score"][0] - 0.5, 1.0)})
        for one in ITEMS
    ]
    found = difference(EVALUATION, ITEMS, worse[::-1])
    assert found["score"].value == pytest.approx(0.5)
    assert found["score"].high - found["score"].low < 1e-9 and found["score"].n == 12
    assert found["right"].value == 0 and found["right"].low < 0 < found["right"].high
    assert found["right"].interval == "newcombe"
    assert (found["perplexity"].low, found["perplexity"].high) == (0, 0)
    with pytest.raises(ValueError, match="1 items are of one model alone, such as 'q11'"):
        difference(EVALUATION, ITEMS, worse[:-1])


def test_groups_have_numbers_of_their_own():
    groups = by_slice(EVALUATION, ITEMS)["half"]
    assert list(groups) == ["a", "b"] and all(one["right"].n == 6 for one in groups.values())
    assert groups["a"]["score"].value == pytest.approx(5 / 7)


def test_items_and_numbers_are_kept(tmp_path):
    result = measure("mine", EVALUATION, None)
    path = keep(tmp_path, result, {"step": 3})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path == tmp_path / "evals/mine.jsonl" and len(lines) == 12
    assert lines[1] == {
        "id": "q1",
        "metrics": {"right": 1.0, "score": 1 / 7, "nll": 2 / 3},
        "counts": {"nll": 3.0},
        "texts": {"prompt": "1?"},
        "slices": {"half": "b"},
    }
    summary = json.loads((tmp_path / "evals/mine.json").read_text())
    assert summary["step"] == 3 and summary["main"] == "right"
    assert summary["metrics"]["right"]["n"] == 12 and set(summary["slices"]["half"]) == {"a", "b"}


def test_ids_that_repeat_and_data_without_items_are_refused():
    with pytest.raises(ValueError, match="evaluation mine has two items 'q0'"):
        measure("mine", Given((ITEMS[0], ITEMS[0])), None)
    with pytest.raises(ValueError, match="evaluation mine has no items"):
        measure("mine", Given(()), None)
    with pytest.raises(ValueError, match="evaluation mine: 11 items are of one model"):
        Result("mine", EVALUATION, ITEMS).less(Result("mine", EVALUATION, ITEMS[:1]))


def test_kept_items_are_read_back_to_the_bit(tmp_path):
    # A sum that its rounded mean does not give back, parts of a number, a line separator.
    sums = {"score": (0.1 + 0.2, 3.0), "acc": (2.0, 3.0), "bleu/matches": (0.1, 7.0)}
    odd = Item("odd", {**sums, "nll": (1.0, 49.0)}, {"written": "a\u2028b\x85c"}, {"half": "a"})
    assert 1.0 / 49.0 * 49.0 != 1.0
    facts = {"step": 3}
    keep(tmp_path, Result("given", EVALUATION, (odd, *ITEMS)), facts)
    result, summary = read_kept(tmp_path, "given", EVALUATION, facts)
    assert result.items == [odd, *ITEMS] and summary["step"] == 3
    assert read_kept(tmp_path, "given", EVALUATION, {"step": 4}) is None
    assert read_kept(tmp_path, "other", EVALUATION, facts) is None
    infinite = Item("infinite", {"score": (math.inf, 1.0)})
    keep(tmp_path, Result("given", EVALUATION, (infinite,)), facts, {})
    assert read_kept(tmp_path, "given", EVALUATION, facts) is None
