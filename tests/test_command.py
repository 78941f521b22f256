"""The command line as a user meets it: one clear line, the right exit code, nothing lost."""

import json
import os
import subprocess
import sys

import pytest

from tests.configs import ROOT

# Imports once and forks for each command line, since the imports are most of the time of a refused
# one.
_DRIVER = """
import json, os, sys
from research import command, train
for argv in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 2)
        sys.argv = ["research.train", *argv]
        os._exit(command._guarded(train.main))
    os.close(write)
    text = b"".join(iter(lambda: os.read(read, 65536), b"")).decode()
    print(json.dumps([os.waitstatus_to_exitcode(os.wait()[1]), text]))
"""
CONFIG = f"--config={ROOT}/configs/quickstart.py:smoke"
CASES = {
    "unknown field": ([CONFIG, "--config.train.stpes=5"], "steps"),
    "unknown section": ([CONFIG, "--config.trian.steps=5"], "train"),
    "unparsable value": ([CONFIG, "--config.train.steps=many"], "config.train.steps"),
    "missing config file": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "no config": ([], "--config"),
    "override without a config": (["--config.train.steps=5"], "--config=FILE"),
    "unknown flag": ([CONFIG, "--wrokdir=x"], "wrokdir"),
    "unknown config argument": ([f"--config={ROOT}/configs/quickstart.py:smok"], "smoke"),
    "stray argument": ([CONFIG, "train"], "'train'"),
    "unknown preset": ([f"--config={ROOT}/configs/pretrain.py:model=llama3_8,smoke"], "llama3_8b"),
    "batch that does not divide": (
        [CONFIG, "--config.mesh=data:8", "--config.data.batch_size=12"],
        "config.data.batch_size",
    ),
    "mesh that does not fit": ([CONFIG, "--config.mesh=fsdp:3"], "config.mesh"),
    "missing data": ([CONFIG, "--config.data.source=/no/such/folder"], "/no/such/folder"),
    "both batch sizes": (
        [CONFIG, "--config.data.batch_size_per_device=2"],
        "batch_size_per_device",
    ),
    "unwritable workdir": ([CONFIG, "--workdir=/dev/null/run"], "/dev/null/run"),
    "bad profile": ([CONFIG, "--profile=5"], "START:STOP"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and standard error of every case."""
    workdir = tmp_path_factory.mktemp("refused") / "run"
    lines = [
        [*argv] if any("workdir" in a for a in argv) else [*argv, f"--workdir={workdir}"]
        for argv, _ in CASES.values()
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DRIVER],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert not workdir.exists() or not any(workdir.rglob("config.json"))
    return {
        name: tuple(json.loads(line))
        for name, line in zip(CASES, done.stdout.splitlines(), strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(answers, case):
    code, errors = answers[case]
    lines = [
        line for line in errors.splitlines() if line.strip() and not line.startswith("tokenizing")
    ]
    assert code == 2 and len(lines) == 1, errors
    assert lines[0].startswith("error: ") and CASES[case][1] in lines[0]


def test_scripts_add_a_config_only_where_none_is_given():
    def command(*arguments: str) -> str:
        environment = {**os.environ, "DRY_RUN": "1", "GRAFT_VENV": "/nowhere"}
        done = subprocess.run(
            [f"{ROOT}/launch/local.sh", *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert "--config=configs/quickstart.py --workdir=runs/quickstart" in command()
    given = command("--config=configs/pretrain.py", "--config.train.steps=50")
    assert "quickstart.py" not in given and given.endswith("--config.train.steps=50 ")
    assert "runs/quickstart" not in command("--workdir=elsewhere")
