"""Two processes on loopback train what one process trains, and resume what one process saved."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from research.training.metrics import read_rows
from tests.configs import ROOT

CONFIG = """
from configs import quickstart

def get_config(arg=""):
    config = quickstart.get_config(arg)
    config.evals = {"license": {"kind": "perplexity", "text": "LICENSE", "window": 64}}
    return config
"""


def start(workdir: Path, processes: int, steps: int) -> list[subprocess.Popen]:
    """A smoke run over four devices on so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for process in range(processes):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        if processes > 1:
            environment |= {
                "GRAFT_COORDINATOR": f"127.0.0.1:{port}",
                "GRAFT_PROCESSES": str(processes),
            }
            environment["GRAFT_PROCESS"] = str(process)
        command = [
            sys.executable,
            "-m",
            "research.train",
            f"--config={workdir.parent}/scored.py:smoke",
        ]
        command += [
            f"--workdir={workdir}",
            "--config.mesh=fsdp:2,tensor:2",
            f"--config.train.steps={steps}",
        ]
        command += ["--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=2"]
        command += ["--config.checkpoint.every=4", "--config.train.eval_every=4"]
        started.append(
            subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
        )
    return started


def finish(started: list[subprocess.Popen]) -> None:
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    (tmp_path / "scored.py").write_text(CONFIG)
    finish(start(tmp_path / "one", 1, 8))
    finish(start(tmp_path / "two", 2, 4))
    finish(start(tmp_path / "two", 2, 8))  # resumes
    one, two = (
        {row["step"]: row for row in read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row}
        for name in ("one", "two")
    )
    assert list(two) == list(one) == list(range(1, 9))
    for step in one:
        # The same devices and examples; only the order of a sum over processes may differ.
        np.testing.assert_allclose(two[step]["loss"], one[step]["loss"], rtol=2e-6)
    evaluations = [
        {
            row["step"]: row
            for row in read_rows(tmp_path / name / "metrics.jsonl")
            if "eval/loss" in row
        }
        for name in ("one", "two")
    ]
    assert all(list(rows) == [4, 8] for rows in evaluations)
    of_one, of_two = evaluations
    for step in (4, 8):
        name = "eval/license/nll_per_token"
        np.testing.assert_allclose(of_two[step][name], of_one[step][name], rtol=2e-6)
    # At step 4 one run was at its end and took all held-out data, the other was on its way.
    np.testing.assert_allclose(of_two[8]["eval/loss"], of_one[8]["eval/loss"], rtol=2e-6)
    provenance = json.loads((tmp_path / "two" / "provenance.json").read_text())
    assert provenance["devices"]["processes"] == 2 and provenance["devices"]["count"] == 4
