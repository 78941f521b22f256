"""The entry points that use a run: generate and evaluate."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.evals.perplexity import score_text
from research.files import write_json
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.models.spec import initialize
from research.run.opened import open_run
from research.training.checkpoint import Checkpoints
from tests.configs import ROOT, experiment

pytestmark = pytest.mark.usefixtures("quick_commands")
TEXT = "def f(x):\n    return x  # caf\u00e9\n"


def use(*arguments):
    """Runs an entry point in its own process: two of them cannot define their flags in one."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of random parameters, at steps 3 and 7."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = load_tokenizer("bytes")
    e = experiment(
        "quickstart",
        "smoke",
        **{"model.vocab_size": tokenizer.vocab_size, "data.tokenizer": "bytes"},
    )
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "config.json", e.to_json())
    with Checkpoints(folder / "checkpoints", e.checkpoint) as checkpoints:
        for step in (3, 7):
            params = initialize(
                jax.random.key(step), Model(e.model, e.precision).specs(), jnp.float32
            )
            checkpoints.save(step, {"trainable": jax.tree.map(lambda w: w * 4, params)}, {})
    return folder


def test_open_run_takes_the_newest_step_or_the_one_asked_for(run):
    newest, older = open_run(run), open_run(run, step=3)
    assert (newest.step, older.step) == (7, 3)
    assert not np.array_equal(newest.params["embed"]["table"], older.params["embed"]["table"])
    assert all(leaf.sharding.num_devices == 1 for leaf in jax.tree.leaves(newest.params))
    with pytest.raises(ValueError, match="no checkpoint of step 5; there are 3, 7"):
        open_run(run, step=5)


def test_open_run_says_what_a_folder_lacks(run, tmp_path):
    with pytest.raises(ValueError, match="is no run: it has no config.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is not the config of a run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    load_tokenizer("bytes").save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        open_run(tmp_path)


def test_generate_prints_one_json_value_that_is_what_the_library_gives(run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "two\\nlines"}\n\n{"prompt": ""}\n')
    flags = ["--max_tokens=6", "--temperature=0.9", "--top_k=50", "--seed=4", "--stop=~"]
    done = use(
        "research.generate",
        f"--workdir={run}",
        "--prompt=def ",
        f"--prompt_file={prompts}",
        *flags,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout)["samples"]
    r = open_run(run)
    config = SamplingConfig(max_tokens=6, temperature=0.9, top_k=50, seed=4, stop=("~",))
    for sample, g in zip(
        samples,
        generate(r.model, r.params, r.tokenizer, ["def ", "two\nlines", ""], config),
        strict=True,
    ):
        assert sample.pop("logprobs") == pytest.approx(
            g.logprobs, abs=1e-5
        )  # float32, computed with other neighbours
        assert sample == {
            "prompt": g.prompt,
            "text": g.text,
            "token_ids": list(g.token_ids),
            "finish": g.finish,
        }


def test_generate_streams_the_text_of_one_prompt(run):
    done = use(
        "research.generate",
        f"--workdir={run}",
        "--prompt=def ",
        "--max_tokens=6",
        "--temperature=0",
        "--step=3",
    )
    r = open_run(run, step=3)
    [g] = generate(
        r.model, r.params, r.tokenizer, ["def "], SamplingConfig(max_tokens=6, temperature=0)
    )
    assert (done.returncode, done.stdout) == (0, g.text + "\n"), done.stderr


def test_evaluate_prints_one_json_value_that_is_what_the_library_gives(run, tmp_path):
    text = tmp_path / "text.py"
    text.write_bytes(TEXT.encode() * 5)
    done = use("research.evaluate", f"--workdir={run}", f"--text={text}", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    r = open_run(run)
    score = score_text(r.model, r.params, r.tokenizer, TEXT * 5, r.experiment.data.sequence_length)
    assert values["tokens"] == values["bytes"] == len(TEXT.encode()) * 5
    assert values["nll_per_token"] == pytest.approx(
        score.nll_per_token, rel=1e-6
    )  # the same float32 program
    assert values["perplexity"] == pytest.approx(np.exp(values["nll_per_token"]))
    assert values["bits_per_byte"] == pytest.approx(
        values["nll_per_token"] / np.log(2)
    )  # a byte is a token here


def test_evaluate_scores_ids_without_a_tokenizer(run, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(30))
    done = use(
        "research.evaluate",
        f"--workdir={run}",
        f"--token_ids={tmp_path / 'ids.npy'}",
        "--window=16",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["tokens"] == 29 and values["bytes"] is values["bits_per_byte"] is None


BAD = {
    "an unknown flag": (["research.generate", "--workdir=x", "--prompts=a"], "prompts"),
    "a word too many": (
        ["research.generate", "--workdir=x", "--prompt=two", "words"],
        "quote the prompt",
    ),
    "no prompt": (["research.generate", "--workdir=x"], "--prompt"),
    "a number out of range": (
        ["research.generate", "--workdir=x", "--prompt=a", "--temperature=-1"],
        "temperature",
    ),
    "no text": (["research.evaluate", "--workdir=x"], "exactly one of --text"),
    "a missing text": (["research.evaluate", "--workdir=x", "--text=no/such/file"], "no/such/file"),
    "pickled ids": (
        ["research.evaluate", "--workdir=x", "--token_ids=setup.cfg"],
        "setup.cfg cannot be read",
    ),
}


@pytest.mark.parametrize("arguments, said", BAD.values(), ids=BAD)
def test_a_wrong_flag_gets_one_line_at_once(arguments, said):
    begun = time.monotonic()
    done = use(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (
        "jax" not in done.stderr and time.monotonic() - begun < 20
    )  # a second on a machine that has nothing else to do


def test_a_wrong_workdir_gets_one_line(tmp_path):
    done = use("research.generate", f"--workdir={tmp_path}", "--prompt=a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no run" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_line_that_is_no_prompt_is_named(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    done = use("research.generate", "--workdir=x", f"--prompt_file={tmp_path / 'prompts.jsonl'}")
    assert done.returncode == 2 and "line 2 is no object like" in done.stderr
