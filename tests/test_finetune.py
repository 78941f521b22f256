"""Fine-tuning runs from checkpoint folders: what comes from the checkpoint, what is new, what is
refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from research import tree
from research.files import read_json
from research.run.start import changes, open_data
from research.training.metrics import read_rows
from research.training.samples import read_samples
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.data.chat_templates import TEMPLATES
from tests.families import FAMILIES

CHAT = TEMPLATES["chatml"]["plain"]
DECODER = replace(FAMILIES["llama2_7b"], vocab_size=320, rope_theta=500_000.0)
BERT = replace(FAMILIES["bert_base"], vocab_size=320, max_length=64, mlm_head=True, pooler=False)


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with chats, labelled texts and texts that a tiny model learns something of in ten
    steps."""
    folder = tmp_path_factory.mktemp("data")
    chats = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes yes"}]
        for i in range(60)
    ]
    write_rows(folder / "chats.jsonl", [{"messages": messages} for messages in chats])
    texts = [("good film " * 2, "pos") if i % 2 else ("zzz bad ", "neg") for i in range(60)]
    write_rows(
        folder / "labelled.jsonl",
        [{"text": f"{text}{i}", "label": label} for i, (text, label) in enumerate(texts)],
    )
    write_rows(folder / "texts.jsonl", [{"text": f"abc abc abc {i}"} for i in range(60)])
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "decoder"
    return folder, save_checkpoint(folder, DECODER, template=CHAT)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "bert"
    return folder, save_checkpoint(folder, BERT)


def finetune(workdir: Path, arg: str, init: Path, **changed) -> int:
    from research.train import train

    e = experiment("finetune", f"{arg},smoke", init=str(init), **changed)
    return train(e, workdir, live=False).exit_code


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Those of a run's newest checkpoint."""
    from research.run.opened import open_run

    return {path: np.asarray(leaf) for path, leaf in tree.paths(open_run(workdir).params).items()}


def losses(workdir: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_rows(workdir / "metrics.jsonl") if name in row]


def test_chat_starts_from_the_checkpoint_and_learns_the_assistants_part(
    decoder, data, tmp_path, capsys
):
    folder, _ = decoder
    arg, faster = f"task=chat,data={data / 'chats.jsonl'}", {"optimizer.learning_rate": 0.01}
    assert finetune(tmp_path / "run", arg, folder, **faster) == 0
    evaluations = losses(tmp_path / "run", "eval/loss")
    assert losses(tmp_path / "run")[0] > 5 and evaluations[-1] < 3.5
    assert not losses(tmp_path / "run", "eval/bits_per_byte")
    config = read_json(tmp_path / "run" / "config.json")
    assert config["model"]["rope_theta"] == 500_000.0 and config["init"] == str(folder)
    assert read_json(tmp_path / "run" / "provenance.json")["parent"] == str(folder)
    assert (tmp_path / "run" / "tokenizer" / "chat_template.jinja").read_text() == CHAT
    sample = read_samples(tmp_path / "run" / "samples.txt")[-1]
    assert (
        sample.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n") and "France" in sample.prompt
    )
    html = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in html and str(folder) in html


def test_a_resumed_fine_tuning_needs_no_step_again_and_equals_the_whole(decoder, data, tmp_path):
    arg, more = (
        f"task=chat,data={data / 'chats.jsonl'}",
        {"train.eval_every": 0, "checkpoint.keep": 5},
    )
    finetune(tmp_path / "whole", arg, decoder[0], **more)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "10")
    finetune(tmp_path / "cut", arg, decoder[0], **more)
    whole, cut = parameters(tmp_path / "whole"), parameters(tmp_path / "cut")
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, cut[path], err_msg=path)


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm"])
def test_texts_on_a_mesh_start_with_the_checkpoints_bits(task, decoder, bert, data, tmp_path):
    folder, params = decoder if task == "causal_lm" else bert
    if task == "masked_lm":  # bytes have a mask among their reserved tokens
        assert (folder / "fingerprint.json").exists()
    arg = f"task={task},data={data / 'texts.jsonl'}"
    still = {
        "optimizer.learning_rate": 0.0,
        "train.steps": 1,
        "mesh": "fsdp:4,tensor:2",
        "train.sample_tokens": 0,
    }
    assert finetune(tmp_path / "run", arg, folder, **still) == 0
    kept = parameters(tmp_path / "run")
    for path, leaf in tree.paths(params).items():
        np.testing.assert_array_equal(kept[path], leaf, err_msg=path)


def test_classification_keeps_the_encoder_and_makes_the_head_anew(bert, data, tmp_path, capsys):
    folder, params = bert
    arg = f"task=classification,data={data / 'labelled.jsonl'}"
    still = {"optimizer.learning_rate": 0.0, "train.steps": 1}
    assert finetune(tmp_path / "still", arg, folder, **still) == 0
    said = capsys.readouterr().err
    assert "the classifier is new" in said and "the pooler is new" in said
    kept = parameters(tmp_path / "still")
    for path, leaf in tree.paths({"embed": params["embed"], "layers": params["layers"]}).items():
        np.testing.assert_array_equal(kept[path], leaf, err_msg=path)
    assert kept["classifier/kernel"].shape == (32, 2) and kept[
        "classifier/kernel"
    ].std() == pytest.approx(0.02, rel=0.5)
    assert not [path for path in kept if path.startswith("head")]
    assert read_json(tmp_path / "still" / "provenance.json")["dataset"]["labels"] == ["neg", "pos"]

    assert (
        finetune(
            tmp_path / "run", arg, folder, **{"optimizer.learning_rate": 0.01, "train.steps": 20}
        )
        == 0
    )
    assert losses(tmp_path / "run", "eval/accuracy")[-1] > 0.9 and losses(
        tmp_path / "run", "accuracy"
    )
    # From a run with a classifier another one goes on with it.
    assert finetune(tmp_path / "next", arg, tmp_path / "run", **still) == 0
    kernels = [parameters(tmp_path / name)["classifier/kernel"] for name in ("run", "next")]
    np.testing.assert_array_equal(*kernels)


def test_what_a_config_sets_stays_and_the_rest_is_the_checkpoints(decoder):
    e = experiment(
        "finetune",
        "task=chat",
        init=str(decoder[0]),
        **{"model.dropout": 0.1, "data.source": "x.jsonl"},
    )
    assert e.model == replace(DECODER, dropout=0.1)
    with pytest.raises(ValueError, match="no checkpoint"):
        experiment("finetune", "task=chat", init="nowhere")
    with pytest.raises(ValueError, match="config.init"):
        open_data(experiment("finetune", "task=chat"))


def test_a_checkpoint_of_another_shape_is_refused(decoder, data, tmp_path):
    arg = f"task=chat,data={data / 'chats.jsonl'}"
    with pytest.raises(ValueError, match=r"layers/\S+ is .*the model wants") as caught:
        finetune(tmp_path / "run", arg, decoder[0], **{"model.layers": 3})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arg", "changed", "message"),
    [
        ("task=chat,data=labelled.jsonl", {}, r"\?messages=FIELD"),
        ("task=classification,data=labelled.jsonl", {}, "kind 'encoder', this one is 'decoder'"),
        (
            "task=causal_lm,data=texts.jsonl",
            {"model.labels": 2, "model.pooler": True},
            "config.model.labels",
        ),
        (
            "task=chat,data=chats.jsonl",
            {"data.max_bad_records": 0, "data.sequence_length": 8},
            "config.data.sequence_length",
        ),
        ("task=dance", {}, "objective.name='dance'"),
        ("task=chat,data=chats.jsonl", {"data.chat_template": "missing.jinja"}, "missing.jinja"),
    ],
)
def test_what_does_not_fit_gets_one_line(decoder, data, tmp_path, arg, changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        finetune(tmp_path / "run", arg.replace("data=", f"data={data}/"), decoder[0], **changed)
    assert "\n" not in str(caught.value)


def test_more_classes_than_the_head_has_are_refused(bert, data, tmp_path):
    rows = [{"text": "x", "label": str(i % 3)} for i in range(40)]
    file = write_rows(tmp_path / "three.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"3 labels \(0, 1, 2\), the model 2; set config.model.labels=3"
    ):
        finetune(tmp_path / "run", f"task=classification,data={file}", bert[0])


def test_a_checkpoint_without_a_tokenizer_or_template_says_what_to_set(decoder, data, tmp_path):
    arg = f"task=chat,data={data / 'chats.jsonl'}"
    save_checkpoint(tmp_path / "mute", DECODER)
    with pytest.raises(ValueError, match="config.data.chat_template"):
        finetune(tmp_path / "run", arg, tmp_path / "mute")
    (tmp_path / "chat.jinja").write_text(CHAT)
    own = {"data.chat_template": str(tmp_path / "chat.jinja"), "train.steps": 1}
    assert finetune(tmp_path / "run", arg, tmp_path / "mute", **own) == 0
    (tmp_path / "mute" / "fingerprint.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer; set config.data.tokenizer"):
        finetune(tmp_path / "other", arg, tmp_path / "mute")


def test_changes_of_the_computation_are_listed():
    assert changes(DECODER, DECODER) == []
    assert changes(DECODER, replace(DECODER, dropout=0.1, max_length=99)) == []
    assert changes(DECODER, replace(DECODER, rope_theta=1.0, window=8)) == [
        "rope_theta: 500000.0 -> 1.0",
        "window: 0 -> 8",
    ]


def test_a_recipe_that_cannot_know_of_experts_says_what_it_leaves_out(tmp_path, caplog):
    """QLoRA's recipe cuts dense layers by tokens; the checkpoint alone says that there are none."""
    save_checkpoint(tmp_path / "moe", replace(FAMILIES["mixtral_8x7b"], vocab_size=320))
    e = experiment("finetune", "method=qlora,task=causal_lm,smoke", init=str(tmp_path / "moe"))
    assert e.execution.feed_tokens == 0
    assert "execution.feed_tokens=8192 is for dense models" in caplog.text
