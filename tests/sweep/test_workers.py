"""What becomes of a cell whose run ends in one way or another; no run is made."""

import contextlib
import json
import threading
from pathlib import Path

import pytest

from research import command
from research.files import read_json, write_json
from research.sweep.claims import attempts, claim
from research.sweep.deaths import MOST, OUTSIDE, OWN
from research.sweep.ledger import Ledger
from research.sweep.workers import Trainer, Workers, devices, shares
from tests.sweep.plans import plan


class Gone(Exception):
    """A worker that was killed."""


METRICS = {"eval/loss": "lower"}
GOOD = [{"step": 1, "loss": 3.0, "tokens": 64}, {"step": 9, "eval/loss": 2.5, "seconds": 4.0}]
ODD = {"step": 5, "loss": None, "nonfinite": {"loss": "nan"}, "tokens": 320}


def crew(folder: Path, count: int = 1, cells: int = 1) -> tuple[Workers, list[str]]:
    lines: list[str] = []
    made = plan({"a": ["x", "y"]}, cells, [{"a": "x"}])
    ledger = Ledger(folder)
    for key in made.cells:
        ledger.cell(key).mkdir(parents=True)
    return Workers(ledger, made.cells, METRICS, count, lines.append), lines


def acts(monkeypatch, *endings):
    """Runs end as said, one after another: (exit code, rows of the metrics, last line, the step of
    a checkpoint)."""
    left, lock = list(endings), threading.Lock()

    def train(trainer, cell):
        with lock:
            code, rows, words, step = left.pop(0) if len(left) > 1 else left[0]
        run = cell / "run"
        (run / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with open(cell / "output.log", "a") as log:
            log.write(words + "\n")
        return code

    monkeypatch.setattr(Trainer, "train", train)
    # The steps of Orbax without Orbax.
    steps = lambda root: sorted(int(entry.name) for entry in Path(root).iterdir())
    monkeypatch.setattr("research.sweep.outcome.committed_steps", steps)


CASES = {
    "well": ([(0, GOOD, "", 9)], "done", 1, ""),
    "NaN and on": ([(0, [ODD, *GOOD], "", 9)], "diverged", 1, "not finite from step 5 on"),
    "NaN at a save": (
        [(1, GOOD[:1], "error: step 9 is not saved, because it made numbers NaN or infinite", 0)],
        "diverged", 1, "step 9 is not saved",
    ),
    "refused": ([(2, [], "error: model.kv_heads=3 must divide", 0)], "failed", 1, "kv_heads=3"),
    "a bug": ([(1, GOOD[:1], "KeyError: 'x'", 0)], "failed", 1, "KeyError: 'x'"),
    "no such metric": ([(0, [{"step": 9, "eval/x": 1.0}], "", 9)], "failed", 1, "but eval/x"),
    "killed": ([(-9, [], "", 0), (-9, GOOD[:1], "", 5), (0, GOOD, "", 9)], "done", 3, ""),
    "preempted": ([(42, [], "error: lost", 0), (0, GOOD, "", 9)], "done", 2, ""),
    "killed always": ([(-9, [], "", 0)], "failed", MOST[OUTSIDE], "signal 9"),
    "crashes always": ([(-11, [], "", 0)], "failed", MOST[OWN], "died without a new checkpoint; the"
                       " last was ended by signal 11"),
    "hangs always": ([(42, [], "error: no step in 30 min", 0)], "failed", MOST[OWN], "no step in"),
    "stopped early": ([(42, [], "error: stopped by SIGTERM; the", 0)] * 9 + [(0, GOOD, "", 9)],
                      "done", 10, ""),
    "in use": ([(2, [], "error: another process trains in x", 0), (0, GOOD, "", 9)], "done", 2, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_how_a_run_ends_decides_the_state_of_its_cell(case, tmp_path, monkeypatch):
    endings, state, tries, words = CASES[case]
    acts(monkeypatch, *endings)
    workers, lines = crew(tmp_path)
    workers.run()
    [record] = workers.ledger.records().values()
    assert (record["state"], record["attempts"]) == (state, tries)
    assert words in record["reason"]
    assert len(lines) == tries and lines[-1].startswith("1/1 ")


@pytest.mark.parametrize(("kind", "code"), [(OWN, -11), (OUTSIDE, -9)])
def test_a_run_that_gets_on_may_die_any_number_of_times(kind, code, tmp_path, monkeypatch):
    most = MOST[kind]
    acts(monkeypatch, *((code, GOOD[:1], "", step) for step in range(most + 4)), (0, GOOD, "", 99))
    workers, _ = crew(tmp_path)
    workers.run()
    assert [one["attempts"] for one in workers.ledger.records().values()] == [most + 5]


def test_what_the_kernel_ends_for_want_of_memory_is_the_cells_own_doing(tmp_path, monkeypatch):
    kills = iter(range(1000))
    monkeypatch.setattr("research.sweep.workers.memory_kills", lambda: next(kills))
    acts(monkeypatch, (-9, [], "", 0))
    workers, _ = crew(tmp_path)
    workers.run()
    [record] = workers.ledger.records().values()
    assert record["attempts"] == MOST[OWN] and "want of memory" in record["reason"]


def test_a_cell_that_takes_its_worker_with_it_ends_all_the_same(tmp_path, monkeypatch):
    """Every worker that trains it is gone before it can say so."""
    workers, _ = crew(tmp_path, cells=2)
    poison, good = workers.cells
    steps = []

    def train(trainer, cell):
        steps.append(cell.name)
        if cell.name == poison:
            owner = read_json(trainer.claim.file)
            write_json(trainer.claim.file, {**owner, "began": "1"})
            raise Gone
        (cell / "run").mkdir()
        (cell / "run" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in GOOD))
        return 0

    monkeypatch.setattr(Trainer, "train", train)
    while len(workers.ledger.records()) < 2:
        with contextlib.suppress(Gone):
            Workers(workers.ledger, workers.cells, METRICS, 1, print).run()
    # Another one first, once it had died.
    assert steps == [poison, good, *[poison] * (MOST[OUTSIDE] - 1)]
    record = workers.ledger.record(poison)
    assert (record["state"], record["attempts"]) == ("failed", MOST[OUTSIDE])
    assert record["reason"].endswith("the last was gone with its worker")


def test_a_reason_is_that_of_the_last_attempt(tmp_path, monkeypatch):
    acts(monkeypatch, (42, [], "error: lost", 0), (1, [], "KeyError: 'x'", 0))
    workers, _ = crew(tmp_path)
    workers.run()
    assert [one["reason"] for one in workers.ledger.records().values()] == ["KeyError: 'x'"]


def test_a_full_disk_ends_the_sweep_and_leaves_the_cell_to_the_next(tmp_path, monkeypatch):
    acts(monkeypatch, (42, [], "error: no space left on the disk: x", 0), (0, GOOD, "", 9))
    workers, _ = crew(tmp_path)
    with pytest.raises(command.Stop, match="no space left") as caught:
        workers.run()
    assert caught.value.code == command.RETRY and not workers.ledger.records()
    again, _ = Workers(workers.ledger, workers.cells, METRICS, 1, print), None
    again.run()
    assert [one["attempts"] for one in workers.ledger.records().values()] == [2]


def test_workers_share_the_cells_and_each_is_run_once(tmp_path, monkeypatch):
    acts(monkeypatch, (0, GOOD, "", 9))
    workers, lines = crew(tmp_path, count=4, cells=12)
    workers.run()
    assert len(lines) == len(workers.ledger.records()) == 12
    assert {attempts(workers.ledger.cell(key)) for key in workers.cells} == {1}


def test_a_cell_that_another_machine_took_over_gets_no_record_here(tmp_path, monkeypatch):
    acts(monkeypatch, (0, GOOD, "", 9))
    workers, lines = crew(tmp_path)
    train = Trainer.train

    def lose(trainer, cell):
        trainer.claim.file.with_name("0002.json").write_text("{}")
        workers._renew()
        monkeypatch.setattr(Trainer, "train", train)
        workers.stop()
        return -9

    monkeypatch.setattr(Trainer, "train", lose)
    workers.run()
    assert not workers.ledger.records() and "taken over" in lines[0]


@pytest.mark.parametrize(
    ("cores", "count", "each"),
    [
        ({0, 1}, 2, [[0], [1]]),
        ({0, 1}, 1, [[0, 1]]),
        ({4, 5, 6, 7, 9}, 2, [[4, 5], [6, 7]]),
        ({3}, 2, [[3], [3]]),
    ],
)
def test_workers_divide_the_cores(cores, count, each, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cores)
    assert shares(count) == each


@pytest.mark.parametrize(
    ("kind", "visible", "count", "cards"),
    [
        (None, "", 2, [None, None]),
        ("cuda", "3,5", 2, ["3", "5"]),
        ("cuda", "3,5", 1, [None]),
        ("cuda", "0", 2, ["0", "0"]),
    ],
)
def test_workers_have_a_card_each(kind, visible, count, cards, monkeypatch):
    monkeypatch.setattr("research.sweep.workers.runs_on_cpu", lambda: kind is None)
    monkeypatch.setattr("research.sweep.workers.accelerator", lambda: kind)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = devices(count)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in found] == cards
    shared = count > len(set(cards)) and kind == "cuda"
    assert all(("XLA_PYTHON_CLIENT_PREALLOCATE" in one) == shared for one in found)


def test_a_tpu_is_held_by_one_process(monkeypatch):
    monkeypatch.setattr("research.sweep.workers.runs_on_cpu", lambda: False)
    monkeypatch.setattr("research.sweep.workers.accelerator", lambda: "tpu")
    assert devices(1) == [{}]
    with pytest.raises(ValueError, match="--workers=1"):
        devices(2)


def test_a_stopped_sweep_leaves_no_claim(tmp_path, monkeypatch):
    workers, _ = crew(tmp_path)

    def stopped(trainer, cell):
        workers.stop()
        return -15

    monkeypatch.setattr(Trainer, "train", stopped)
    workers.run()
    [key] = workers.cells
    assert not workers.ledger.records()
    assert claim(workers.ledger.cell(key), 0) is not None
