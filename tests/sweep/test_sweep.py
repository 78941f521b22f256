"""Whole sweeps of tiny runs, through the command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    return Sweep(chain(rate, heads), seeds=seeds(2))
"""


def command(*arguments: str, **more) -> subprocess.Popen:
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "research.sweep", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
        **more,
    )  # fmt: skip


def finished(*arguments: str) -> tuple[int, str]:
    process = command(*arguments)
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def numbers(folder: Path) -> dict[str, dict]:
    """What the cells of a sweep measured, to the bit."""
    records = [json.loads(file.read_text()) for file in folder.glob("cells/*/cell.json")]
    return {one["cell"]: {n: one[n] for n in ("state", "metrics", "curves")} for one in records}


@pytest.fixture
def config(tmp_path) -> str:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(6):
        (texts / f"{number}.txt").write_text(f"the {number} quick brown foxes jump. " * 40)
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG.format(texts=str(texts), rate=1e-2))
    return f"--config={file}"


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


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_in_the_same_bits(config, tmp_path):
    code, text = finished("run", config, f"--workdir={tmp_path / 'calm'}", "--workers=2")
    assert code == 0, text
    calm = numbers(tmp_path / "calm")
    assert sorted(one["state"] for one in calm.values()) == ["done"] * 4 + ["failed"] * 2

    chance, kills, folder = random.Random(0), 0, tmp_path / "killed"
    process = command("run", config, f"--workdir={folder}", "--workers=2")
    while process.poll() is None:
        time.sleep(chance.uniform(0.5, 3))
        # One in five times it is the process that gives out the cells.
        victims = [process.pid] if chance.random() < 0.2 else trainers(process.pid)
        if kills < 5 and victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
            kills += 1
        if process.poll() == -signal.SIGKILL:
            process.communicate()
            process = command("run", config, f"--workdir={folder}", "--workers=2")
    text, _ = process.communicate()
    assert process.returncode == 0 and kills, text
    assert numbers(folder) == calm
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["cell"] for line in lines) == sorted(calm)


@pytest.mark.slow
def test_a_sweep_from_its_plan_to_its_answer(config, tmp_path):
    folder = tmp_path / "sweep"
    where = f"--workdir={folder}"
    code, text = finished("run", config, where, "--dry_run")
    assert code == 0 and "6 cells of 6 runs" in text and not folder.exists()
    assert "--config.optimizer.learning_rate=0.01 --config.train.seed=1" in text

    process = command("run", config, where)
    while not (folder / "ledger.jsonl").exists() or not any(folder.glob("cells/*/run")):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 42 and "the same command goes on" in text
    code, text = finished("run", config, where, "--workers=2")
    assert code == 0 and "rate 0.01 needs 4 more seeds" in text
    code, text = finished("status", where)
    assert "6 cells: 4 done, 2 failed, 0 diverged, 0 running, 0 to run" in text
    assert "kv_heads=3" in text

    times = {file: file.stat().st_mtime_ns for file in folder.glob("cells/*/cell.json")}
    code, text = finished("add", config, where, "--seeds=1", "--workers=2")
    assert code == 0 and "needs 3 more seeds" in text
    assert times.items() <= {f: f.stat().st_mtime_ns for f in folder.glob("cells/*/*.json")}.items()
    assert len(list(folder.glob("cells/*/cell.json"))) == 9

    file = Path(config.partition("=")[2])
    file.write_text(file.read_text().replace("c.checkpoint.every = 3", "c.train.accumulate = 2"))
    code, text = finished("run", config, where)
    assert code == 2 and "train.accumulate: 1 -> 2" in text and "--changed=rerun" in text
