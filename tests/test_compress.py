"""The command that compresses, on a small checkpoint with text of its own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from research.interop.load import load
from tests.checkpoints import save_checkpoint
from tests.configs import load_config
from tests.families import FAMILIES


def run(*arguments, folder):
    """A command's result, run in a folder."""
    command = [sys.executable, "-m", "research.compress", *map(str, arguments)]
    quick = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=folder, env=quick
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(checkpoint, text)."""
    folder = tmp_path_factory.mktemp("compress")
    c = replace(FAMILIES["llama3_405b"], vocab_size=260, layers=3, max_length=64, tied=True)
    save_checkpoint(folder / "model", c)
    words = np.random.default_rng(0).choice(["to", "be", "or", "not", "that", "is"], 4000)
    (folder / "text.txt").write_text("\n".join(" ".join(line) for line in words.reshape(400, 10)))
    return folder / "model", folder / "text.txt"


def asked(small, recipe, *more):
    model, text = small
    return (
        f"--checkpoint={model}", f"--recipe={recipe}", f"--data={text}", "--tokens=64",
        "--calibration_tokens=128", "--window=32", "--receipt", "--json", *more,
    )  # fmt: skip


KEYS = ("perplexity", "kl_mean", "kl_p99", "same_top", "parameters", "nonzero", "bits")


@pytest.mark.slow
def test_an_export_is_sparse_and_its_receipt_is_of_the_files(small, tmp_path):
    target = tmp_path / "made"
    made = run(*asked(small, "sparsegpt:2:4", f"--target={target}"), folder=tmp_path)
    assert made.returncode == 0, made.stderr
    receipt = json.loads(made.stdout)
    assert all(key in receipt and key in receipt["original"] for key in KEYS)
    before, after = load(small[0]), load(target)
    w, old = (x.params["layers"]["mlp"]["up"] for x in (after, before))
    assert w.shape == old.shape and np.count_nonzero(w) == w.size / 2
    nonzero = sum(np.count_nonzero(x) for x in jax.tree.leaves(after.params))
    assert receipt["nonzero"] == nonzero < receipt["parameters"] == receipt["original"]["nonzero"]
    assert receipt["kl_p99"] >= receipt["kl_mean"] > 0 and 0 <= receipt["same_top"] <= 1
    assert receipt == json.loads((target / "receipt.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "to"), [("depth:1", "native"), ("width:0.5", "hf"), ("gptq:int4", "native")]
)
def test_smaller_models_are_smaller_files(small, tmp_path, recipe, to):
    target = tmp_path / "made"
    made = run(*asked(small, recipe, f"--target={target}", f"--to={to}"), folder=tmp_path)
    assert made.returncode == 0, made.stderr
    receipt, after = json.loads(made.stdout), load(target)
    if recipe == "depth:1":
        assert after.config.layers == 2
    if recipe == "width:0.5":
        assert (after.config.d_ff, after.config.kv_heads, after.config.heads) == (32, 1, 2)
    if recipe == "gptq:int4":
        assert 4 < receipt["bits"] < 5 < receipt["original"]["bits"]
    else:
        assert receipt["parameters"] < receipt["original"]["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--recipe=wanda:1.5"], "the share 1.5 does not lie in 0 to 1"),
        (["--recipe=magnitude:0.5", "--calibration=stdlib"], "looks at no text; leave"),
        (["--recipe=wanda:0.5", "--to=peft"], "--to='peft'; choose one of"),
    ],
)
def test_what_is_asked_for_in_vain_is_one_line(more, says, tmp_path):
    refused = run("--checkpoint=nowhere", "--receipt", *more, folder=tmp_path)
    assert refused.returncode == 2 and says in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("task", ["distill", "heal", "qat"])
def test_recipes_of_recovery_differ_in_what_they_say(task):
    c = load_config("compress", f"task={task}")
    assert c.objective.name == "distillation"
    assert bool(c.objective.rounding) == (task == "qat") == (not c.objective.teacher)
    assert c.optimizer.keep_zeros == (task == "heal")
    assert (c.model.layers == 4) == (task == "distill")
    assert load_config("compress", f"task={task},smoke").objective.teacher == ""


@pytest.mark.parametrize(
    ("arg", "says"),
    [
        ("task=prune", "choose one of distill, heal, qat"),
        ("task=heal,format=int4", "format=int4 is of task=qat"),
        ("task=qat,teacher=a", "task=qat learns from its start"),
        ("task=heal,model=gpt2", "the shape is that of --config.init"),
    ],
)
def test_what_changes_nothing_in_a_recipe_is_refused(arg, says):
    with pytest.raises(ValueError, match=says):
        load_config("compress", arg)
