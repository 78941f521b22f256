"""Successive halving: who goes on, who stops, and what is said of them; no run is made."""

import dataclasses
import json

import pytest

from research.files import write_json
from research.sweep.answer import STOPPED, findings, headline
from research.sweep.cells import refuse_rungs
from research.sweep.design import Halving
from research.sweep.grid import Grid
from research.sweep.halving import Rungs
from research.sweep.ledger import Ledger
from research.sweep.running import run_one
from research.sweep.text import markdown
from research.sweep.workers import Trainer, Workers
from tests.sweep.plans import plan

# A step has 10 tokens, a run ten steps, and an evaluation at 2, 4 and 10 of them.
CONFIG = {
    "data": {"batch_size": 2, "sequence_length": 5},
    "train": {"steps": 10, "eval_every": 2, "epochs": 0.0},
}
HALVING = {"rungs": [20, 40], "eta": 3}
# The loss of a level is its number, from which the bad ones are far from the start.
LEVELS = [str(number) for number in range(10)]


def ladder(folder, seeds=1, levels=LEVELS):
    made = dataclasses.replace(plan({"a": levels}, seeds), halving=HALVING)
    ledger = Ledger(folder)
    for key in made.cells:
        ledger.cell(key).mkdir(parents=True, exist_ok=True)
        write_json(ledger.cell(key) / "config.json", CONFIG)
    return ledger, made


@pytest.fixture
def trained(monkeypatch):
    """The (cell, step) to which runs were trained, one after another, without a run."""
    calls: list[tuple[str, int]] = []

    def train(trainer, cell):
        calls.append((cell.name, trainer.until))
        level = float(cell.name.split("-")[0])
        (cell / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        end = trainer.until or 10
        rows = [{"step": step, "loss": 9.0, "tokens": 10 * step} for step in range(1, end + 1)]
        rows += [{"step": step, "eval/loss": level + 1 / step} for step in (2, 4, 10)]
        rows = [row for row in rows if row["step"] <= end]
        lines = [json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])]
        (cell / "run" / "metrics.jsonl").write_text("".join(lines))
        return 0

    monkeypatch.setattr(Trainer, "train", train)
    return calls


def run(ledger, made, count=1):
    Workers(ledger, made.cells, made.metrics, count, print, rungs=Rungs(ledger, made)).run()
    return {key: record["state"] for key, record in ledger.records().items()}


def test_the_order_is_that_of_the_cells_and_not_that_of_the_levels(tmp_path):
    ledger, made = ladder(tmp_path, levels=LEVELS[::-1])
    jobs = [key for key, _ in Rungs(ledger, made).jobs()]
    assert jobs == ["9-0", *(f"{number}-0" for number in range(9))]  # the baseline is first


@pytest.mark.parametrize("workers", [1, 3])
def test_a_third_goes_on_from_each_rung_and_nothing_is_run_twice(tmp_path, trained, workers):
    ledger, made = ladder(tmp_path)
    states = run(ledger, made, workers)
    done = {key for key, state in states.items() if state == "done"}
    # The baseline always ends; of nine others at least the best does.
    assert {"0-0", "1-0"} <= done and set(states.values()) == {"done", "stopped"}
    assert len(states) == 10 and len(set(trained)) == len(trained)
    at = {step: {key for key, until in trained if until == step} for step in (2, 4, 0)}
    assert at[2] == set(made.cells) - {"0-0"} and at[4] < at[2] and at[0] - {"0-0"} < at[4]
    # Asynchronous: 1, 2 and 3 come first and are among the best third of what is there.
    assert 3 <= len(at[4]) <= 5 and all(ledger.record(key)["reason"] for key in at[2] - done)


def test_what_is_said_of_runs_that_were_stopped(tmp_path, trained):
    ledger, made = ladder(tmp_path, seeds=6, levels=LEVELS[:5])
    states = run(ledger, made)
    records = ledger.records()
    assert states["4-0"] == "stopped"
    reason = records["4-0"]["reason"]
    assert reason == "stopped at 20 tokens: eval/loss 4.5 is number 4 of 4, 1 went on"
    grid = Grid(made, records)
    assert grid.value(("4",), 0, "eval/loss") is None
    # Nor the worst value of the sweep, which is the first evaluation of a run that went on.
    assert grid.worst("eval/loss") == 1.5
    found = {(one.metric, one.level): one for one in findings(grid)}
    assert found["eval/loss", "1"].comparison.verdict == "worse"
    assert found["eval/loss", "4"].comparison.verdict == STOPPED
    equal = found["eval/loss at equal tokens", "4"].comparison
    assert (equal.seeds, equal.verdict) == (6, "worse") and abs(equal.difference - 4) < 1e-6
    lines = headline(list(found.values()), "eval/loss")
    assert any("4 has no verdict: 6 runs were stopped early" in line for line in lines)
    assert "18 stopped" in markdown("x", grid, list(found.values()))
    assert found["eval/loss", "4"].row()["difference"] == ""


def test_a_level_that_went_on_pays_for_those_that_were_tried(tmp_path, trained):
    ledger, made = ladder(tmp_path, seeds=6, levels=LEVELS[:5])
    run(ledger, made)
    [one] = [
        f
        for f in findings(Grid(made, ledger.records()))
        if (f.metric, f.level) == ("eval/loss", "1")
    ]
    assert one.comparison.corrected == pytest.approx(4 * one.comparison.p)


def test_a_person_can_let_a_stopped_run_go_on(tmp_path, trained):
    ledger, made = ladder(tmp_path)
    assert run(ledger, made)["9-0"] == "stopped"
    ledger.reopen("9-0")
    Rungs(ledger, made).let_on(["9-0"])
    trained.clear()
    assert run(ledger, made)["9-0"] == "done" and trained == [("9-0", 0)]


def test_seeds_that_are_added_may_let_a_stopped_one_go_on(tmp_path, trained):
    ledger, made = ladder(tmp_path, levels=LEVELS[:4])
    assert run(ledger, made)["2-0"] == "stopped"
    _, more = ladder(tmp_path, levels=LEVELS[:8])
    trained.clear()
    states = run(ledger, more)
    # Two of seven may leave the first rung now, and only one of three could.
    assert ("2-0", 4) in trained and ("1-0", 0) not in trained and len(states) == 8
    assert len(set(trained)) == len(trained)


def test_a_run_that_ends_badly_stops_its_combination(tmp_path, trained):
    ledger, made = ladder(tmp_path, seeds=2, levels=LEVELS[:5])
    bad = {"cell": "1-1", **made.cells["1-1"], "state": "diverged", "first": {}, "reason": "NaN"}
    ledger.finish("1-1", bad)
    states = run(ledger, made)
    assert states["1-0"] == "stopped" and states["2-0"] == states["2-1"] == "done"
    assert "another seed diverged or failed" in ledger.record("1-0")["reason"]


@pytest.mark.parametrize(
    ("change", "rungs", "words"),
    [
        ({}, [30], "every 20 tokens, of 100"),
        ({}, [20, 100], "rung of 100 tokens"),
        ({"eval_every": 0}, [20], "train.eval_every"),
        ({"epochs": 2.0}, [20], "not epochs"),
    ],
)
def test_a_rung_without_an_evaluation_is_refused(change, rungs, words):
    refuse_rungs(CONFIG, [20, 40])
    with pytest.raises(ValueError, match=words):
        refuse_rungs({**CONFIG, "train": {**CONFIG["train"], **change}}, rungs)


@pytest.mark.parametrize(("rungs", "eta"), [([], 3), ([4, 2], 3), ([0, 2], 3), ([2], 1)])
def test_rungs_rise_and_some_stop(rungs, eta):
    with pytest.raises(ValueError, match="must"):
        Halving(rungs, eta)


def test_a_cell_by_number_is_refused_where_others_decide(tmp_path):
    ledger, made = ladder(tmp_path)
    write_json(ledger.plan_file, dataclasses.asdict(made))
    with pytest.raises(ValueError, match="run on each machine"):
        run_one(ledger, 0)
