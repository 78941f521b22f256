"""Labels of texts: the model's own probabilities, whatever else is in a batch; and the command."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.files import write_json
from research.infer.classes import classify
from research.infer.text_batches import text_batches
from research.interop.huggingface.folder import write_folder
from research.interop.load import open_checkpoint
from research.interop.storage.label_names import read_label_names
from research.models.model import Model
from research.models.spec import initialize
from research.training.checkpoint import Checkpoints
from tests.configs import ROOT, experiment
from tests.families import FAMILIES

SIZE = dict(layers=1, d_model=16, heads=2, kv_heads=2, head_size=8, d_ff=16, max_length=32)
TEXTS = ["fine", "a much longer text than the window", "no", "x" * 31]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of a tiny classifier with random parameters, and its model."""
    folder = tmp_path_factory.mktemp("runs") / "labels"
    tokenizer = load_tokenizer("bytes")
    sizes = {f"model.{name}": value for name, value in SIZE.items()}
    e = experiment(
        "finetune",
        "model=bert_base,task=classification,labels=3,smoke",
        **{"model.vocab_size": tokenizer.vocab_size, "data.tokenizer": "bytes"},
        **{**sizes, "data.sequence_length": 24},
    )
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "config.json", e.to_json())
    write_json(folder / "provenance.json", {"dataset": {"labels": ["bad", "good"]}})
    model = Model(e.model)
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    params = jax.tree.map(lambda w: w * 8, params)  # far from even odds
    with Checkpoints(folder / "checkpoints", e.checkpoint) as checkpoints:
        checkpoints.save(1, {"trainable": params}, {})
    return folder, model, params, tokenizer


def test_probabilities_are_those_of_each_text_alone(run):
    _, model, params, tokenizer = run
    got = classify(model, params, tokenizer, TEXTS, 24)
    around = [tokenizer.bos_id, tokenizer.eos_id]
    for text, probs in list(zip(TEXTS, got))[:2]:
        # Framed and cut as objectives/classification.py's windows are.
        ids = np.array([[around[0], *tokenizer.encode(text)[:22], around[1]]])
        batch = {
            "inputs": ids,
            "segments": np.ones_like(ids),
            "positions": np.arange(ids.size)[None],
        }
        logits = model.class_logits(params, model.hidden(params, batch)[0])[0, 0]
        np.testing.assert_allclose(probs, jax.nn.softmax(logits), atol=1e-5)
    assert np.ptp(got[:, 0]) > 0.01


def test_a_model_without_a_classifier_is_refused():
    model = Model(FAMILIES["gpt2"])
    with pytest.raises(ValueError, match="a decoder without a classifier; train one"):
        classify(model, {}, None, ["a"], 8)


def test_names_come_from_the_data_or_from_the_config(run, tmp_path):
    assert read_label_names(run[0], 3) == ["bad", "good", "2"]
    write_json(tmp_path / "config.json", {"id2label": {"1": "yes", "0": "no"}})
    assert read_label_names(tmp_path, 2) == ["no", "yes"]
    assert read_label_names("pypi:some-model==1", 2) == ["0", "1"]


def test_names_go_with_an_exported_folder(run, tmp_path):
    with open_checkpoint(run[0]) as checkpoint:
        write_folder(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # The class that the data do not name keeps transformers' name.
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "LABEL_2"}
    assert config["label2id"] == {"bad": 0, "good": 1, "LABEL_2": 2}
    assert read_label_names(tmp_path, 3) == ["bad", "good", "LABEL_2"]


def test_the_command_prints_labels_and_their_accuracy(run, tmp_path):
    folder, model, params, tokenizer = run
    probs_NC = classify(model, params, tokenizer, TEXTS, 24)
    names = np.array(["bad", "good", "2"])[probs_NC.argmax(axis=-1)]
    expected = [names[0], names[1], "bad", "good"]
    # The third class is named by its number, which data may write as 2 or 2.0.
    labels = [float(name) if name == "2" else str(name) for name in expected]
    rows = [json.dumps({"text": t, "label": label}) for t, label in zip(TEXTS, labels)]
    (tmp_path / "texts.jsonl").write_text("\ufeff" + "\r\n\r\n".join(rows))
    command = [sys.executable, "-m", "research.classify", f"--workdir={folder}", "--json"]
    done = subprocess.run(
        [*command, f"--prompt_file={tmp_path / 'texts.jsonl'}"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["labels"] == ["bad", "good", "2"]
    assert values["accuracy"] == np.mean(names == np.array(expected))
    assert [row["label"] for row in values["texts"]] == list(names)
    shown = [list(row["probabilities"].values()) for row in values["texts"]]
    np.testing.assert_allclose(shown, probs_NC, atol=1e-5)


def test_texts_that_are_cut_are_said_in_one_line(caplog):
    tokenizer = load_tokenizer("bytes")  # a token a letter, and two around each text
    assert len(list(text_batches(tokenizer, ["a" * 22, "b" * 23, "c" * 90], 24))) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "cut 2 of 3 texts, of up to 92 tokens, at 24: the rest is not read"
    ]
    assert len(list(text_batches(tokenizer, ["a" * 22], 24))) == len(caplog.records) == 1
