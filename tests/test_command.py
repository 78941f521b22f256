"""The command line as a user meets it: one clear line, the right exit code, nothing lost."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from research import command
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
        os.environ.update(word.split("=") for word in argv if word.startswith("GRAFT"))
        sys.argv = ["research.train", *(word for word in argv if not word.startswith("GRAFT"))]
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
    "missing config file": (["--config=configs/quickstrt.py"], "nearest is configs/quickstart.py"),
    "unknown shipped config": (["--config=graft:quikstart:smoke"], "graft:quickstart"),
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
    "unknown field with no near name": ([CONFIG, "--config.optimizer.lr=1"], "learning_rate"),
    "unknown field of the model": ([CONFIG, "--config.model.hidden_size=1"], "config.model has no"),
    "unknown field deep inside": ([CONFIG, "--config.model.rope_scaling.fctor=2"], "factor"),
    "field of a field": ([CONFIG, "--config.train.steps.many=2"], "config.train.steps is a value"),
    "workdir in a bucket": ([CONFIG, "--workdir=gs://bucket/run"], "path, such as /mnt/gs/run"),
    "read-only cache": ([CONFIG, "GRAFT_CACHE=/proc/cache"], "set GRAFT_CACHE"),
    "cache that is a file": ([CONFIG, "GRAFT_CACHE=/dev/null"], "set GRAFT_CACHE"),
    "steps and epochs": (
        [CONFIG, "--config.train.steps=5", "--config.train.epochs=2"],
        "choose one",
    ),
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


def full_disk() -> OSError:
    """As a checkpoint that was not saved reports it: the cause is that of another library."""
    try:
        try:
            raise RuntimeError("INTERNAL: write failed: No space left on device [OS error 28]")
        except RuntimeError as error:
            raise OSError("the checkpoint of step 3 was not saved: INTERNAL\nmore") from error
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/w/metrics.jsonl"), 42, "metrics.jsonl"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 42, "free some space"),
        (full_disk(), 42, "the checkpoint of step 3 was not saved"),
        (command.Stop(1, "the loss is nan"), 1, "the loss is nan"),
        (ValueError("set config.x"), 2, "set config.x"),
    ],
)
def test_what_a_person_can_mend_is_one_line(monkeypatch, capsys, error, code, shown):
    monkeypatch.setattr(sys, "argv", ["command"])
    assert command._guarded(lambda _: raise_it(error)) == code
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and shown in line


@pytest.mark.parametrize(
    "words",
    [
        ["--checkpoint=gs://bucket/model"],
        ["--target", "s3://b/out/"],
        ["--config.data.source=stdlib:0.5,gs://bucket/model:0.5"],
    ],
)
def test_no_path_of_a_command_is_in_an_object_store(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    assert command._guarded(lambda _: 0) == command.REFUSED
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "is an address in an object store" in line
    assert line.startswith(f"error: {words[0].partition('=')[0]}") and "/mnt/" in line
    # A text may be about one.
    command._refuse_store("--prompt", "copy gs://bucket/a to s3://b")


def test_no_path_of_a_config_is_in_an_object_store():
    flag = SimpleNamespace(value=ConfigDict({"data": {"source": "gs://bucket/text"}}))
    with pytest.raises(ValueError, match="config.data.source: gs://bucket/text is an address"):
        command.read_config(flag)


def raise_it(error: BaseException) -> None:
    raise error


def test_a_failure_in_mid_run_is_no_refusal(monkeypatch, capsys):
    from research.run.loop import _in_mid_run

    def fail(_):
        with _in_mid_run():
            raise ValueError("shapes differ\nby much")

    monkeypatch.setattr(sys, "argv", ["command"])
    assert command._guarded(fail) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith(
        "error: the run failed: ValueError: shapes differ\n"
    )


def test_a_refusal_of_one_process_does_not_wait_for_the_others(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", lambda code: ended.append(code))
    monkeypatch.setattr(command, "_guarded", lambda _: command.REFUSED)
    for several in (True, False):
        monkeypatch.setattr("jax.distributed.is_initialized", lambda several=several: several)
        with pytest.raises(SystemExit):
            command.run(lambda _: 0)
    assert ended == [command.REFUSED]


def test_scripts_add_a_config_only_where_none_is_given():
    def printed(*arguments: str) -> str:
        environment = {**os.environ, "DRY_RUN": "1", "GRAFT_VENV": "/nowhere"}
        done = subprocess.run(
            [f"{ROOT}/launch/local.sh", *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert "--config=configs/quickstart.py --workdir=runs/quickstart" in printed()
    given = printed("--config=configs/pretrain.py", "--config.train.steps=50")
    assert "quickstart.py" not in given and given.endswith("--config.train.steps=50 ")
    assert "runs/quickstart" not in printed("--workdir=elsewhere")


_WARNS = """
import logging, sys
from research import command
sys.argv = ["research.train"]
def main(_):
    import orbax.checkpoint
    logging.warning("told")
command.run(main)
"""


def test_a_warning_has_one_form_whatever_libraries_are_imported():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WARNS], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "WARNING told" in done.stderr.splitlines(), done.stderr
