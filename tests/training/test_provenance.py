"""Provenance: true about the code, silent about secrets, and never half written."""

import json
import math
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import files
from research.training.provenance import (
    HIDDEN,
    describe_run,
    git_state,
    hide_secrets,
    write_provenance,
)

SECRET = "hunter2-hunter2"


def describe(**more):
    more.setdefault("argv", ["train.py"])
    return describe_run(
        seed=7, dataset={"fingerprint": "ab", "heldout_files": ["x.py"]}, tokenizer="cd", **more
    )


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A repository with one tracked package in `pkg`, as a function that runs git in it."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def run(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        done = subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    run("init", "--quiet")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    run("add", "pkg")
    run("commit", "--quiet", "-m", "first")
    return run


def test_the_commit_and_whether_the_code_is_that_commit(tmp_path, git):
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path / "pkg") == {"commit": commit, "dirty": False}
    (tmp_path / "pkg" / "new.py").write_text("")
    assert git_state(tmp_path / "pkg") == {"commit": commit, "dirty": True}


def test_a_package_installed_inside_a_foreign_checkout_has_no_commit(tmp_path, git):
    installed = tmp_path / ".venv" / "pkg"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_state(installed) == {"commit": None, "dirty": None}


def test_outside_git_both_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")  # nor without git itself
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_the_record_describes_this_process(tmp_path):
    record = describe(parameters=np.int64(5), parent=Path("runs/base"))
    write_provenance(tmp_path, record)
    read = json.loads((tmp_path / "provenance.json").read_text())
    assert (
        read["seed"] == 7
        and read["dataset"]["heldout_files"] == ["x.py"]
        and read["tokenizer"] == "cd"
    )
    assert read["devices"] == {
        "platform": "cpu",
        "kind": "cpu",
        "count": jax.device_count(),
        "processes": 1,
    }
    assert read["packages"]["jax"] == jax.__version__ and read["started"].endswith("+00:00")
    assert read["parameters"] == 5 and read["parent"] == "runs/base"


def test_no_secret_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("UNRELATED_SETTING", "swordfish")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=/tmp/{SECRET}")
    argv = [
        "train.py",
        f"--note=uses {SECRET}",
        "--api_key",
        SECRET,
        f"--hub.token={SECRET}",
        f"https://me:{SECRET}@host/x",
    ]
    write_provenance(tmp_path, describe(argv=argv))
    text = (tmp_path / "provenance.json").read_text()
    assert SECRET not in text and "swordfish" not in text


@pytest.mark.parametrize(
    "word",
    [
        "--max_tokens=64",
        "--tokenizer=bytes",
        "--config.data.tokenizer=bpe:4096",
        "--monkey=x",
        "key=1",
        "runs/secret",
    ],
)
def test_what_only_resembles_a_secret_is_kept(word):
    assert hide_secrets([word, "next"]) == [word, "next"]


NAMES = st.sampled_from(["key", "api_key", "config.wandb.token", "hf-token", "PASSWORD"])


@given(NAMES, st.text(min_size=1).filter(lambda value: value[0] != "-"))
def test_a_secret_flag_hides_its_value_in_both_spellings(name, value):
    assert hide_secrets([f"--{name}={value}"]) == [f"--{name}={HIDDEN}"]
    assert hide_secrets([f"--{name}", value]) == [f"--{name}", HIDDEN]


def test_a_resumed_run_keeps_its_origin(tmp_path):
    first = {"seed": 1, "git": {"commit": "a"}, "started": "monday"}
    write_provenance(tmp_path, first)
    write_provenance(tmp_path, {**first, "git": {"commit": "b"}, "started": "tuesday"}, step=20)
    write_provenance(tmp_path, {**first, "started": "friday"}, step=30)
    record = files.read_json(tmp_path / "provenance.json")
    assert record == first | {
        "resumed": [
            {"step": 20, "git": {"commit": "b"}, "started": "tuesday"},
            {"step": 30, "started": "friday"},
        ]
    }


# Files


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_text_comes_back_byte_for_byte(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("files") / "a.txt"
    files.write_text(path, text)
    assert path.read_bytes() == text.encode()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": object()}, {"a": np.ones(2)}])
def test_what_json_lacks_is_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match="a.json cannot hold"):
        files.write_json(tmp_path / "a.json", value)
    assert not os.listdir(tmp_path)


def test_others_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="a.json is not JSON"):
        files.read_json(tmp_path / "a.json")
