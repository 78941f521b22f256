"""Runs side by side, and the evaluations of a run on its page."""

import json
import math

import pytest

from research.evals.comparison import compare, config_differences, open_runs, paired
from research.evals.comparison_page import comparison_page
from research.evals.results import Result, keep
from research.experiment.config import make_experiment
from research.files import write_json
from research.training.report import write_report
from research.training.report_evals import mood
from research.training.whiskers import Measured, shown, whisker_table
from tests.evals.test_results import Given, item

HOSTILE = "<script>alert(1)</script>"


def run(folder, clip_norm: float, better: float):
    """A run directory of two rows, with an evaluation of twelve items."""
    folder.mkdir(parents=True)
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "eval/loss": 1.6, "seconds": 3.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"optimizer": {"clip_norm": clip_norm}}
    write_json(folder / "config.json", make_experiment(values).to_json())
    items = tuple(item(n, float(n % 3 > 0), n / 7 + better, n + 1.0) for n in range(12))
    result = Result("quiz", Given(items), items)
    numbers = {name: one.to_json() for name, one in result.estimates().items()}
    numbers["right"]["difference"] = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 12}
    keep(folder, result, {"step": 2, "against": HOSTILE}, numbers)
    return folder


@pytest.fixture
def runs(tmp_path):
    return open_runs([str(run(tmp_path / "a/x", 1.0, 0.0)), str(run(tmp_path / "b/x", 0.5, 0.25))])


def test_runs_are_named_compared_and_paired(runs):
    found = compare(runs)
    assert list(found["runs"]) == ["a/x", "b/x"] and found["against"] == "a/x"
    assert found["runs"]["a/x"]["metrics"] == {
        **{"step": 2, "seconds": 3.0, "loss": 1.5, "eval/loss": 1.6}
    }
    assert found["config"] == {"optimizer.clip_norm": {"a/x": 1.0, "b/x": 0.5}}
    apart = found["differences"]["b/x"]["quiz"]
    # "nll" is a mean of several things an item, and perplexity no mean.
    assert list(apart) == ["right", "score"]
    assert apart["score"]["value"] == pytest.approx(0.25) and apart["score"]["n"] == 12
    assert json.loads(json.dumps(found)) == found


def test_items_of_other_data_are_not_paired(runs):
    path = runs[0].folder / "evals/quiz.jsonl"
    path.write_text(path.read_text().replace('"q3"', '"other"'))
    assert paired(runs[1], runs[0]) == {}


def test_a_page_draws_them(runs):
    page = comparison_page(runs)
    for text in ("Held-out loss", "quiz", "optimizer.clip_norm", "b/x", "95% interval"):
        assert text in page
    assert page.count("<svg") >= 5 and "<script" not in page
    assert config_differences(runs[:1] * 2) == {}


@pytest.mark.parametrize("paths", [["one"], ["one", "one"], ["one", "none"]])
def test_what_is_no_pair_of_runs_is_refused(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "one", 1.0, 0.0)
    with pytest.raises(ValueError, match="two or more directories|none is no run"):
        open_runs(paths)


def test_a_report_has_the_evaluations_of_its_run(runs, tmp_path):
    folder = runs[0].folder
    lines = (folder / "evals/quiz.jsonl").read_text().split("\n")
    (folder / "evals/quiz.jsonl").write_text("\n".join(lines).replace("4?", HOSTILE))
    (folder / "evals/broken.json").write_text("{")
    page = write_report(folder).read_text()
    assert "Evaluations" in page and "the 10 worst items" in page and "right by half" in page
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    # The items that are wrong come first.
    first = page.index("worst items")
    assert page.index("q0 · right 0", first) < page.index("q1 · right 1", first)


def test_a_difference_is_good_or_bad_where_its_interval_leaves_out_zero():
    apart = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert mood(apart, False) == "good" and mood(apart, True) == "bad"
    assert mood({**apart, "low": -0.1}, False) == "" and mood({"low": None}, True) == ""


def test_a_table_of_any_numbers_can_be_drawn():
    rows = [
        Measured(("a",), 0.5, 0.1, 0.9, 10),
        Measured(("b",), None, None, None, 0),
        Measured(("c",), 7.0, None, None, 1),
    ]
    assert whisker_table(("metric",), []) == ""
    assert whisker_table(("metric",), rows).count("<circle") == 2
    # Beyond a given scale nothing is drawn.
    assert whisker_table(("metric",), rows, scale=(0.0, 1.0)).count("<circle") == 1
    assert whisker_table(("m",), rows[:1] * 2, zero=True).count("stroke-opacity:.35") == 2
    assert [shown(x) for x in (None, math.inf, 0.12345, 123456.0)] == [
        "–",
        "–",
        "0.1235",
        "123,456",
    ]
