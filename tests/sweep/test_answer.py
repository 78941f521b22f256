"""What a sweep's records answer: main effects, combinations, runs that diverged or failed."""

import csv
import math

import pytest

from research.sweep.answer import COLUMNS, findings, results_csv
from research.sweep.grid import Grid
from research.sweep.report import summary, write_report
from tests.sweep.plans import plan, records, written

FACTORS = {"a": ["x", "y"], "b": ["u", "v"]}
GRID = [{"a": a, "b": b} for a in "xy" for b in "uv"]
NOISE = [0.01, -0.02, 0.03, 0.0, -0.01, 0.02]


def linear(levels, seed):
    """+1 of y, +2 of v, and 0.5 more of both together."""
    y, v = levels["a"] == "y", levels["b"] == "v"
    return 5 + y + 2 * v + 0.5 * y * v + NOISE[seed] * (1 + y)


def found(made, value):
    return {(one.factor, one.level): one for one in findings(Grid(made, records(made, value)))}


def test_main_effects_are_means_over_the_other_factors():
    answer = found(plan(FACTORS, 6, GRID), linear)
    noise = sum(NOISE) / 6
    assert math.isclose(answer["a", "y"].comparison.difference, 1.25 + noise)
    assert math.isclose(answer["b", "v"].comparison.difference, 2.25)
    assert math.isclose(answer["a x b", "y, v"].comparison.difference, 3.5 + noise)
    assert {one.comparison.verdict for one in answer.values()} == {"worse"}


def test_one_factor_at_a_time_has_no_combinations():
    assert set(found(plan(FACTORS, 6), linear)) == {("a", "y"), ("b", "v")}


def test_a_run_that_diverged_counts_as_the_worst():
    diverges = lambda levels, seed: None if levels["a"] == "y" and seed == 2 else 5.0
    one = found(plan({"a": ["x", "y"]}, 6), diverges)["a", "y"]
    assert one.sample.diverged == 1
    assert one.comparison.seeds == 6 and math.isclose(one.comparison.difference, 4 / 6)
    gone = found(plan({"a": ["x", "y"]}, 6), lambda levels, seed: None if levels["a"] == "y" else 5)
    assert gone["a", "y"].comparison.verdict == "worse"


def test_a_run_that_failed_takes_its_seed_out_and_is_counted():
    fails = lambda levels, seed: math.nan if levels["a"] == "y" and seed == 2 else 5.0
    one = found(plan({"a": ["x", "y"]}, 6), fails)["a", "y"]
    assert (one.sample.failed, one.comparison.seeds) == (1, 5)
    assert one.comparison.verdict == "needs 1 more seed"


def test_a_combination_that_always_fails_does_not_hide_the_others():
    fails = (
        lambda levels, seed: math.nan if levels == {"a": "y", "b": "v"} else linear(levels, seed)
    )
    answer = found(plan(FACTORS, 6, GRID), fails)
    assert answer["a", "y"].comparison.seeds == 6
    assert ("a x b", "y, v") not in answer


def test_the_files_of_a_report(tmp_path):
    made = plan(FACTORS, 6, GRID)
    bad = lambda levels, seed: None if levels["b"] == "v" and seed == 1 else linear(levels, seed)
    write_report(written(tmp_path / "s", made, records(made, bad)))
    with open(tmp_path / "s" / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3
    text = (tmp_path / "s" / "report.md").read_text()
    for words in (
        "24 cells, 22 done, 2 diverged",
        "Student's t",
        "diverged | a=y, b=v | 1 | why",
    ):
        assert words in text


def test_one_seed_has_no_interval():
    made = plan({"a": ["x", "y"]}, 1)
    [row] = csv.DictReader(
        results_csv(findings(Grid(made, records(made, lambda *_: 1.0)))).splitlines()
    )
    assert (row["low"], row["high"], row["verdict"]) == ("", "", "needs 5 more seeds")


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_sweep_that_has_not_ended_is_answered_by_what_there_is(seeds):
    made = plan({"a": ["x", "y"]}, 6)
    some = {key: one for key, one in records(made, lambda *_: 1.0).items() if one["seed"] < seeds}
    [one] = findings(Grid(made, some))
    assert one.comparison.seeds == seeds


def test_failed_cells_are_counted_where_nothing_else_can_be_said(tmp_path):
    made = plan({"a": ["x", "y"]}, 2)
    value = lambda levels, seed: float("nan") if levels["a"] == "y" else 1.0
    ledger = written(tmp_path, made, records(made, value))
    lines = summary(ledger, write_report(ledger))
    assert lines[0] == "no level can be compared yet" and "2 of 4 cells failed" in lines[1]
    whole = written(tmp_path / "whole", made, records(made, lambda levels, seed: seed + 1.0))
    assert [line[:4] for line in summary(whole, write_report(whole))] == ["a y "]
