"""Fine-tuning by adapters: what is trained, what is held, what a checkpoint has, on one device and
on a mesh."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from research import tree
from research.interop.convert import convert, export_adapter
from research.interop.load import load
from research.models.model import Model, forward
from research.training.metrics import read_rows
from research.weights.lora import Lora
from research.weights.quantized import Quantized
from research.weights.rules import is_leaf
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES
from tests.test_finetune import CHAT, losses, write_rows

DECODER = replace(
    FAMILIES["llama2_7b"], vocab_size=320, d_model=64, d_ff=128, heads=4, kv_heads=4, head_size=16
)
FASTER = {"optimizer.learning_rate": 0.02, "lora.rank": 4}
# What each method differs in beside its name, so that ten steps of it show.
METHODS = {
    "lora": FASTER, "dora": FASTER, "qlora": FASTER, "int8": FASTER,
    "adapter": {"optimizer.learning_rate": 0.02, "tune.bottleneck": 8},
    "prompt": {"optimizer.learning_rate": 0.3, "tune.virtual_tokens": 4},
    "prefix": {"optimizer.learning_rate": 0.3, "tune.virtual_tokens": 4},
    "ia3": {"optimizer.learning_rate": 0.3},
}  # fmt: skip


# These train and save as the others do.
RESTS = ("dora", "int8", "adapter", "prompt")


def slow(*value):
    return pytest.param(*value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint `decoder` and conversations `chats.jsonl`."""
    folder = tmp_path_factory.mktemp("tuning")
    save_checkpoint(folder / "decoder", DECODER, template=CHAT)
    chats = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes yes"}]
        for i in range(60)
    ]
    write_rows(folder / "chats.jsonl", [{"messages": messages} for messages in chats])
    return folder


def tune(folder: Path, workdir: Path, method: str, **changed) -> int:
    from research.train import train

    arg = f"task=chat,method={method},data={folder / 'chats.jsonl'},smoke"
    settings = {
        "init": str(folder / "decoder"),
        "train.sample_tokens": 0,
        **METHODS[method],
        **changed,
    }
    return train(experiment("finetune", arg, **settings), workdir, live=False).exit_code


def opened(workdir: Path):
    from research.run.opened import open_run

    return open_run(workdir)


@pytest.mark.parametrize("method", [slow(m) if m in RESTS else m for m in METHODS])
def test_each_method_lowers_the_held_out_loss_and_saves_what_it_trained_alone(
    method, folder, tmp_path
):
    assert tune(folder, tmp_path / "run", method, **{"train.sample_tokens": 4}) == 0
    evaluations = losses(tmp_path / "run", "eval/loss")
    first = losses(tmp_path / "run")[0]
    assert evaluations[-1] < evaluations[0] < first
    run = opened(tmp_path / "run")
    base = tree.count(Model(DECODER).specs())
    saved = sum(
        file.stat().st_size
        for file in (tmp_path / "run/checkpoints/10").rglob("*")
        if file.is_file()
    )
    # Adapter, two moments and the record; the model itself would take four bytes for each of its
    # parameters.
    assert saved < 4 * base / 2 or method in ("lora", "dora", "qlora", "int8")
    leaves = jax.tree.leaves(run.params, is_leaf=is_leaf)
    assert (method in ("qlora", "int8")) == any(
        isinstance(getattr(x, "base", x), Quantized) for x in leaves
    )
    assert (method in ("lora", "dora", "qlora", "int8")) == any(
        isinstance(leaf, Lora) for leaf in leaves
    )


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("qlora", {"lora.dropout": 0.1}),
        ("lora", {"lora.start": "pissa"}),
        slow("dora", {"mesh": "fsdp:4,tensor:2"}),
    ],
)
def test_a_resumed_run_equals_the_whole(method, changed, folder, tmp_path):
    more = {"train.eval_every": 0, "checkpoint.keep": 5, **changed}
    tune(folder, tmp_path / "whole", method, **more)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/10")
    tune(folder, tmp_path / "cut", method, **more)
    whole, cut = (tree.paths(opened(tmp_path / name).params) for name in ("whole", "cut"))
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, cut[path], err_msg=path)


@pytest.mark.parametrize("method", ["qlora", "prefix", "ia3"])
def test_a_mesh_trains_as_one_device(method, folder, tmp_path):
    more = (
        {"train.steps": 5, "train.eval_every": 0, "optimizer.name": "adamw", "quantize.group": 32}
        if method == "qlora"
        else {}
    )
    more = {"train.steps": 5, "train.eval_every": 0, **more}
    for name, mesh in (("one", ""), ("mesh", "fsdp:4,tensor:2")):
        tune(folder, tmp_path / name, method, mesh=mesh, **more)
    one, mesh = (losses(tmp_path / name) for name in ("one", "mesh"))
    # Sums in another order, and five steps that follow from each other.
    np.testing.assert_allclose(one, mesh, rtol=1e-4)


def test_a_base_that_changed_since_is_refused(folder, tmp_path):
    shutil.copytree(folder / "decoder", tmp_path / "decoder")
    tune(folder, tmp_path / "run", "lora", init=str(tmp_path / "decoder"), **{"train.steps": 5})
    shutil.rmtree(tmp_path / "decoder")
    save_checkpoint(tmp_path / "decoder", DECODER, template=CHAT, seed=1)
    with pytest.raises(ValueError, match="the base is not that of the run"):
        tune(folder, tmp_path / "run", "lora", init=str(tmp_path / "decoder"))


def test_b_alone_learns_faster_by_its_ratio(folder, tmp_path):
    """LoRA+: after one step of Adam a step is its learning rate, wherever a gradient is; a's is 0
    beside a zero b."""
    for name, ratio in (("plain", 1.0), ("plus", 4.0)):
        one = {
            "train.steps": 1,
            "optimizer.schedule": "constant",
            "lora.learning_rate_ratio": ratio,
        }
        tune(folder, tmp_path / name, "lora", **one, **{"optimizer.warmup_steps": 0})
    plain, plus = (tree.paths(opened(tmp_path / name).params) for name in ("plain", "plus"))
    moved = plain["layers/attention/query/adapter/b"]
    assert float(np.abs(moved).max()) > 0
    np.testing.assert_allclose(plus["layers/attention/query/adapter/b"], 4 * moved, rtol=1e-5)


@pytest.mark.parametrize("method", [slow("dora"), "qlora"])
def test_a_runs_adapters_lie_on_their_base_or_are_merged_or_go_to_peft(method, folder, tmp_path):
    tune(folder, tmp_path / "run", method)
    ids = np.arange(24, dtype=np.int32).reshape(2, 12)
    base = load(folder / "decoder", quantize="nf4" if method == "qlora" else "")
    apart = load(
        folder / "decoder", quantize="nf4" if method == "qlora" else "", adapter=tmp_path / "run"
    )
    want = apart.logits(ids)
    assert float(np.abs(want - base.logits(ids)).max()) > 0.1
    made = export_adapter(tmp_path / "run", tmp_path / "peft")
    assert made["bit_equal"] == made["values"] and made["base"] == str(folder / "decoder")
    again = load(
        folder / "decoder", quantize="nf4" if method == "qlora" else "", adapter=tmp_path / "peft"
    )
    np.testing.assert_allclose(again.logits(ids), want, atol=1e-6)
    merged = load(tmp_path / "run")
    assert not any(map(is_leaf, jax.tree.leaves(merged.params, is_leaf=is_leaf)))
    run = opened(
        tmp_path / "run"
    )  # whose embeddings are of 8 bits under qlora, other than those of `apart`
    batch = {
        "inputs": ids,
        "segments": np.ones_like(ids),
        "positions": np.tile(np.arange(12, dtype=np.int32), (2, 1)),
    }
    np.testing.assert_allclose(
        merged.logits(ids), forward(run.model, run.params, batch), atol=1e-4
    )  # sums in another order
    convert(tmp_path / "run", tmp_path / "hf", "hf")
    np.testing.assert_allclose(load(tmp_path / "hf").logits(ids), merged.logits(ids), atol=1e-5)


def test_a_prefix_is_no_checkpoint_of_its_own(folder, tmp_path):
    tune(folder, tmp_path / "run", "prefix", **{"train.steps": 1})
    with pytest.raises(
        ValueError, match="layers/attention/prefix_key, which no checkpoint .* adapter="
    ):
        load(tmp_path / "run")
    assert load(folder / "decoder", adapter=tmp_path / "run").logits(
        np.zeros((1, 3), np.int32)
    ).shape == (1, 3, 320)


REFUSED = [
    ({"quantize.format": "nf4", "tune.method": "full"}, "codes have no gradient"),
    ({"quantize.format": "nf5"}, "quantize.format='nf5'; choose one of"),
    (
        {"lora.rank": 4, "tune.method": "ia3"},
        "config.lora is set and tune.method='ia3' does not use it",
    ),
    (
        {"tune.virtual_tokens": 7},
        "tune.virtual_tokens is set and tune.method='lora' does not use it",
    ),
    ({"lora.rank": 65}, "rank 65 is over the 64 of layers/attention/"),
    ({"lora.targets": "q_proj"}, "'q_proj' matches no parameter; the nearest are"),
    ({"lora.targets": "("}, "no regular expression"),
    (
        {"quantize.format": "nf4", "quantize.group": 48},
        "layers/attention/key: groups of 48 do not divide 64 inputs",
    ),
    (
        {
            "quantize.format": "int8",
            "quantize.group": 128,
            "quantize.targets": "down",
            "mesh": "tensor:2,fsdp:-1",
        },
        "layers/mlp/down: groups of 128 do not divide the 64 inputs that each of tensor:2 holds",
    ),
    ({"lora.start": "loftq"}, "loftq wants .* quantized"),
    (
        {"lora.decompose": True, "lora.targets": "query|embed/table"},
        "DoRA is not for tables or experts; leave embed/table",
    ),
]


@pytest.mark.parametrize(("changed", "says"), REFUSED)
def test_what_does_not_fit_is_one_line_before_the_first_step(changed, says, folder, tmp_path):
    with pytest.raises(ValueError, match=says):
        tune(folder, tmp_path / "run", "lora", **{"lora.rank": 16, **changed})
    assert not (tmp_path / "run/metrics.jsonl").exists() or not read_rows(
        tmp_path / "run/metrics.jsonl"
    )


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method='lorra' is unknown; choose one of full, lora"):
        experiment("finetune", "method=lorra")


def test_a_classifier_is_trained_whole_beside_adapters_of_the_encoder(tmp_path):
    from research.train import train

    bert = replace(
        FAMILIES["bert_base"], vocab_size=320, max_length=64, mlm_head=True, pooler=False
    )
    save_checkpoint(tmp_path / "bert", bert)
    texts = [("good film " * 2, "pos") if i % 2 else ("zzz bad ", "neg") for i in range(60)]
    data = write_rows(
        tmp_path / "rows.jsonl",
        [{"text": f"{text}{i}", "label": label} for i, (text, label) in enumerate(texts)],
    )
    faster = {
        "optimizer.learning_rate": 0.005,
        "train.steps": 40,
        "lora.rank": 4,
        "init": str(tmp_path / "bert"),
    }
    e = experiment("finetune", f"task=classification,method=lora,data={data},smoke", **faster)
    assert train(e, tmp_path / "run", live=False).exit_code == 0
    assert losses(tmp_path / "run", "eval/accuracy")[-1] > 0.9
    params = opened(tmp_path / "run").params
    assert isinstance(params["layers"]["attention"]["query"], Lora)
    assert float(np.abs(params["classifier"]["kernel"]).max()) > 0
