"""Whole runs: what they write, and that a resumed run is the run that was never interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from research import tree
from research.experiment.config import from_json
from research.files import read_json
from research.training.metrics import read_rows
from tests.configs import ROOT, experiment

pytestmark = pytest.mark.usefixtures("small_library")

TINY = {
    "train.steps": 12,
    "train.eval_every": 6,
    "checkpoint.every": 6,
    "checkpoint.keep": 5,
    "train.sample_tokens": 4,
}


def train(workdir: Path, allow_changed: bool = False, **changes) -> int:
    """A run of a few steps of the quickstart's smoke form."""
    from research.train import train

    e = experiment("quickstart", "smoke", **{**TINY, **changes})
    return train(e, workdir, allow_changed=allow_changed, live=False).exit_code


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert train(workdir) == 0
    return workdir


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Those of the newest checkpoint."""
    from research.run.opened import open_run

    return {path: np.asarray(leaf) for path, leaf in tree.paths(open_run(workdir).params).items()}


def without_clock(rows: list[dict]) -> list[dict]:
    """Rows but for what time alone decides."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second", "mfu")}
        for row in rows
    ]


def test_a_run_directory_holds_all_that_a_person_or_a_program_needs(run):
    for name in (
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "samples.txt",
        "report.html",
        "tokenizer",
        "checkpoints",
    ):
        assert (run / name).exists(), name
    assert any((run / "tensorboard").iterdir())
    # What was left open is recorded as it was chosen.
    chosen = {"execution.remat": "none", "execution.head_tokens": 512}
    assert from_json(read_json(run / "config.json")) == experiment(
        "quickstart", "smoke", **TINY, **chosen
    )
    provenance = read_json(run / "provenance.json")
    assert provenance["dataset"]["heldout_files"] and provenance["seed"] == 0
    html = (run / "report.html").read_text()
    assert "<svg" in html and "http-equiv" in html and "<script" not in html


def test_metrics_have_the_names_that_tools_rely_on(run):
    rows = read_rows(run / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert {"step", "loss", "tokens_per_second", "learning_rate", "grad_norm"} <= steps[0].keys()
    assert all(np.float32(row["loss"]) == row["loss"] for row in steps)  # unrounded float32
    evaluations = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [6, 12]
    assert {"eval/loss", "eval/bits_per_byte", "eval/gzip_bits_per_byte"} <= evaluations[0].keys()
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_bits_per_byte_of_all_held_out_data_count_every_byte_once(run):
    from research.data.corpus import open_corpus

    e = experiment("quickstart", "smoke", **TINY)
    corpus = open_corpus(e.data, run / "tokenizer")
    size, tokens = corpus.heldout_size()
    texts = corpus.sources[0][0].heldout
    assert size == sum(len(texts[i]["text"].encode()) for i in range(len(texts)))
    windows = corpus.heldout_windows(e.data.sequence_length + 1, 1)
    weights = [windows[i]["segments"] for i in range(len(windows))]
    assert tokens == sum(int(np.sum((s[1:] == s[:-1]) & (s[1:] > 0))) for s in weights)


def test_a_run_cut_short_and_resumed_is_the_whole_run_bit_for_bit(run, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert train(workdir) == 0
    whole, resumed = parameters(run), parameters(workdir)
    for path, leaf in whole.items():
        np.testing.assert_array_equal(
            leaf.view(np.uint32), resumed[path].view(np.uint32), err_msg=path
        )
    assert without_clock(read_rows(workdir / "metrics.jsonl")) == without_clock(
        read_rows(run / "metrics.jsonl")
    )


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(run, tmp_path):
    losses = {}
    for name, seed in (("same", 0), ("other", 1)):
        train(tmp_path / name, **{"train.seed": seed})
        losses[name] = [
            row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row
        ]
    whole = [row["loss"] for row in read_rows(run / "metrics.jsonl") if "loss" in row]
    assert losses["same"] == whole and losses["other"][0] != whole[0]


def test_a_run_resumes_on_another_mesh(run, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert train(workdir, mesh="fsdp:4,tensor:2") == 0
    whole, moved = parameters(run), parameters(workdir)
    for path, leaf in whole.items():
        np.testing.assert_allclose(
            moved[path], leaf, atol=1e-5, err_msg=path
        )  # six steps of float order


def test_a_longer_run_goes_on_where_the_shorter_ended(run, tmp_path):
    workdir = tmp_path / "longer"
    shutil.copytree(run, workdir)
    assert train(workdir, **{"train.steps": 14}) == 0
    assert [row["step"] for row in read_rows(workdir / "metrics.jsonl") if "loss" in row] == list(
        range(1, 15)
    )


def test_another_config_is_refused_with_the_difference_unless_allowed(run, tmp_path):
    workdir = tmp_path / "changed"
    shutil.copytree(run, workdir)
    with pytest.raises(ValueError, match="optimizer.learning_rate: 0.01 -> 0.1"):
        train(workdir, **{"optimizer.learning_rate": 0.1})
    assert (
        train(workdir, allow_changed=True, **{"optimizer.learning_rate": 0.1, "train.steps": 13})
        == 0
    )


def test_changed_data_and_a_changed_tokenizer_are_refused(run, tmp_path):
    workdir = tmp_path / "tampered"
    shutil.copytree(run, workdir)
    model = json.loads((workdir / "tokenizer" / "tokenizer.json").read_text())
    model["model"]["merges"] = model["model"]["merges"][:-1]
    (workdir / "tokenizer" / "tokenizer.json").write_text(json.dumps(model))
    with pytest.raises(ValueError, match="fingerprint"):
        train(workdir)
    shutil.rmtree(workdir / "tokenizer")
    shutil.copytree(run / "tokenizer", workdir / "tokenizer")
    text = tmp_path / "text"
    text.mkdir()
    for name in "abcdefgh":
        (text / f"{name}.txt").write_text(f"the text of {name}\n" * 200)
    config = read_json(workdir / "config.json")
    config["data"]["source"] = str(text)
    (workdir / "config.json").write_text(json.dumps(config))
    # The file agrees with what is given, and the checkpoint does not.
    with pytest.raises(ValueError, match="data.source: 'stdlib' -> "):
        train(workdir, **{"data.source": str(text)})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "norm_eps", 0.1),
        ("model", "embedding_scale", 2.0),
        ("precision", "compute", "bfloat16"),
        ("data", "sequence_length", 32),
    ],
)
def test_a_config_edited_after_the_run_is_not_believed(run, tmp_path, section, field, value):
    from research.interop.load import load
    from research.run.opened import open_run

    workdir = tmp_path / "edited"
    shutil.copytree(run, workdir)
    config = read_json(workdir / "config.json")
    config[section][field] = value
    (workdir / "config.json").write_text(json.dumps(config))
    for reader in (open_run, load):  # as for generate and evaluate, and as for convert
        with pytest.raises(ValueError, match=rf"step 12 was saved \({section}.{field}: "):
            reader(workdir)


def test_a_chat_template_edited_after_the_run_is_said(run, tmp_path, caplog):
    from research.run.opened import open_run

    workdir = tmp_path / "edited"
    shutil.copytree(run, workdir)
    (workdir / "tokenizer" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    open_run(workdir)
    assert caplog.messages == [
        f"the chat template in {workdir}/tokenizer is not the one that the run learnt"
    ]
    with pytest.raises(ValueError, match="the chat template is not that of the run"):
        train(workdir)


def test_a_config_that_was_deleted_is_written_again_from_a_run_that_agrees(run, tmp_path):
    workdir = tmp_path / "deleted"
    shutil.copytree(run, workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(ValueError, match="data.batch_size: 8 -> 16"):
        train(workdir, **{"data.batch_size": 16})
    assert not (workdir / "config.json").exists()
    assert train(workdir) == 0
    assert read_json(workdir / "config.json") == read_json(run / "config.json")


def test_warm_start_takes_another_runs_parameters_and_nothing_else(run, tmp_path):
    train(tmp_path / "warm", **{"init": str(run), "train.steps": 1, "optimizer.learning_rate": 0.0})
    for path, leaf in parameters(run).items():
        np.testing.assert_array_equal(parameters(tmp_path / "warm")[path], leaf)
    assert read_json(tmp_path / "warm" / "provenance.json")["parent"] == str(run)
    with pytest.raises(ValueError, match="is no checkpoint"):
        train(tmp_path / "cold", **{"init": str(tmp_path / "nothing")})


@pytest.mark.parametrize("family", ["bert_base", "t5_small", "mixtral_8x7b"])
def test_other_objectives_train_end_to_end(family, tmp_path):
    from research.train import train

    changes = {
        "train.steps": 3,
        "train.eval_every": 0,
        "train.sample_tokens": 4,
        "data.source": "stdlib",
    }
    e = experiment("pretrain", f"model={family},smoke", **changes)
    assert train(e, tmp_path / family, live=False).exit_code == 0
    last = read_rows(tmp_path / family / "metrics.jsonl")[-1]
    assert np.isfinite(last["eval/loss"]) and ("eval/bits_per_byte" in last) == (
        family == "mixtral_8x7b"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_says_what_it_takes_and_a_signal_ends_it_with_a_checkpoint(number, tmp_path):
    workdir = tmp_path / "stopped"
    command = [
        sys.executable,
        "-m",
        "research.train",
        f"--config={ROOT}/configs/quickstart.py:smoke",
    ]
    command += [
        f"--workdir={workdir}",
        "--config.train.steps=1000000",
        "--config.checkpoint.every=1000000",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ)
    said = ""
    for line in process.stderr:
        if line.startswith("step"):
            break
        said += line
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 42, errors
    saved = int(errors.split("is saved in")[0].split("step ")[-1].replace(",", ""))
    assert (workdir / "checkpoints" / str(saved)).is_dir() and (workdir / "report.html").exists()
    assert "Traceback" not in errors
    assert "tokens in 1,000,000 steps of" in said and "1,000,000 steps take at least" in said
