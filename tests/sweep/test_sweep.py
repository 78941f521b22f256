"""Whole sweeps of tiny runs, through the command."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.sweep import running
from research.sweep.forecast import Forecast, dry_run
from research.sweep.outcome import checkpoint_step, outcome
from research.sweep.plan import write_plan
from research.sweep.workers import Trainer
from tests.configs import ROOT

CONFIG = """
from research.experiment import base_config
from research.sweep import Sweep, chain, factor, seeds

def get_config(arg=""):
    c = base_config()
    c.data.source, c.data.tokenizer = {texts!r}, "bytes"
    c.data.sequence_length, c.data.batch_size, c.data.threads = 16, 4, 0
    m = c.model
    m.vocab_size, m.layers, m.d_model, m.d_ff, m.heads, m.kv_heads = 512, 1, 16, 16, 2, 2
    m.head_size, m.max_length = 8, 16
    c.train.steps, c.train.log_every, c.train.eval_every = 12, 3, 6
    c.train.sample_tokens, c.train.eval_batches = 0, 1
    c.checkpoint.every = 3
    c.precision.compute = "float32"
    c.optimizer.warmup_steps = 0
    return c

def get_sweep():
    rate = factor("rate", "optimizer.learning_rate", [1e-3, {rate}])
    heads = factor("heads", "model.kv_heads", [2, 3])  # of which two heads cannot make three
    return Sweep(chain(rate, heads), seeds=seeds(1, first=1))
"""


# As in this process, see conftest.py: whole cells compile for seconds.
ENVIRONMENT = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "research.sweep", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip


def numbers(folder: Path) -> dict[str, dict]:
    """What the cells of a sweep measured, to the bit."""
    records = [json.loads(file.read_text()) for file in folder.glob("cells/*/cell.json")]
    return {one["cell"]: {n: one[n] for n in ("state", "metrics", "curves")} for one in records}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    """The config file of a sweep with two cells that can be run, and one that cannot."""
    folder = tmp_path_factory.mktemp("config")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(6):
        (texts / f"{number}.txt").write_text(f"the {number} quick brown foxes jump. " * 40)
    file = folder / "tiny.py"
    file.write_text(CONFIG.format(texts=str(texts), rate=1e-2))
    return str(file)


@pytest.fixture(scope="module")
def calm(config, tmp_path_factory) -> Path:
    """The folder of the sweep, run undisturbed by one worker, on one core as each of two has."""
    folder = tmp_path_factory.mktemp("calm") / "sweep"
    process = command("run", f"--config={config}", f"--workdir={folder}")
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "rate 0.01 needs 5 more seeds" in text, text
    return folder


def trainers(parent: int) -> list[int]:
    """The processes that train for a sweep's."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and int(fields[1]) == parent:
            found.append(int(entry.name))
    return found


def disturbed(config: str, folder: Path, events: list[str], workers: int = 2) -> list[int]:
    """Runs the sweep to its end through events: "trainer" and "parent" are killed, and "stop" asks
    to save and end. The exit codes of the parents."""
    arguments = ("run", f"--config={config}", f"--workdir={folder}", f"--workers={workers}")
    chance, codes, left = random.Random(0), [], list(events)
    while not codes or codes[-1] not in (0, 2):
        process = command(*arguments)
        while process.poll() is None:
            time.sleep(chance.uniform(0.1, 0.6))
            at_work = trainers(process.pid)
            if left and any(is_training(one) for one in at_work):
                event = left.pop(0)
                victim = chance.choice(at_work) if event == "trainer" else process.pid
                os.kill(victim, signal.SIGTERM if event == "stop" else signal.SIGKILL)
                if event == "stop":  # what was asked to end is let end before the next event
                    break
        process.communicate()
        codes.append(process.returncode)
    assert not left
    return codes


def is_training(process: int) -> bool:
    """True once a process has a run's log as its output."""
    try:
        return os.readlink(f"/proc/{process}/fd/1").endswith("output.log")
    except OSError:
        return False


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_in_the_same_bits(config, calm, tmp_path):
    folder, events = tmp_path / "killed", ["trainer", "stop", "parent"]
    assert disturbed(config, folder, events) == [42, -signal.SIGKILL, 0]
    assert numbers(folder) == numbers(calm)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["cell"] for line in lines) == sorted(numbers(calm))
    assert sum(line["attempts"] for line in lines) > len(lines)


@pytest.mark.slow
def test_what_is_said_of_cells_that_ended(calm, capsys):
    assert sorted(one["state"] for one in numbers(calm).values()) == ["done"] * 2 + ["failed"]
    running.status(running.open_ledger(str(calm)))
    text = capsys.readouterr().out
    assert "3 cells: 2 done, 1 failed, 0 diverged, 0 running, 0 to run" in text
    assert "kv_heads=3" in text


def test_a_dry_run_names_the_commands_and_writes_nothing(config, tmp_path, capsys):
    ledger = running.open_ledger(str(tmp_path / "sweep"))
    planned = running.plan_sweep(ledger, config, running.load_config(config))
    dry_run(ledger, *planned, Forecast())
    text = capsys.readouterr().out
    assert "3 cells of 3 runs" in text and not ledger.folder.exists()
    assert "--config.optimizer.learning_rate=0.01 --config.train.seed=1" in text


@pytest.mark.slow
def test_a_sweep_with_another_config_is_refused(config, calm):
    ledger = running.open_ledger(str(calm))
    changed = running.load_config(config)
    changed.train.accumulate = 2
    with pytest.raises(ValueError, match="train.accumulate: 1 -> 2.*--changed=rerun"):
        running.plan_sweep(ledger, config, changed)


@pytest.mark.slow
def test_added_seeds_leave_what_has_ended_alone(config, calm, tmp_path, monkeypatch):
    shutil.copytree(calm, tmp_path / "more")
    ledger = running.open_ledger(str(tmp_path / "more"))
    times = {file: file.stat().st_mtime_ns for file in ledger.folder.glob("cells/*/cell.json")}
    plan, cells = running.plan_sweep(ledger, config, running.load_config(config), more=1)
    write_plan(ledger, plan, cells)
    [some, *_] = (file.parent for file in times if (file.parent / "run").exists())

    def train(_, cell: Path) -> int:  # what a run leaves behind, without one
        shutil.copytree(some / "run", cell / "run")
        return 0

    monkeypatch.setattr(Trainer, "train", train)
    assert running.run_cells(ledger, plan, 1) == 0
    after = {file: file.stat().st_mtime_ns for file in ledger.folder.glob("cells/*/cell.json")}
    assert times.items() <= after.items() and len(after) == 6


@pytest.mark.slow
def test_a_run_that_left_off_at_a_rung_ends_in_the_same_bits(calm, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    [key, *_] = (key for key, one in numbers(calm).items() if one["state"] == "done")
    cell = tmp_path / key
    cell.mkdir()
    shutil.copy(calm / "cells" / key / "config.json", cell)
    trainer = Trainer([min(os.sched_getaffinity(0))], until=6)
    assert trainer.train(cell) == 0 and checkpoint_step(cell / "run") == 6
    trainer.until = 0
    assert trainer.train(cell) == 0
    trainer.close()
    ended = outcome(cell / "run", {"eval/loss": "lower"}, 0, "")
    assert {name: ended[name] for name in ("state", "metrics", "curves")} == numbers(calm)[key]
