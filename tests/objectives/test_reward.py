"""Reward models: the loss by its formula, packed, on a mesh; trained, resumed, exported."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.files import FileDocuments
from research.data.preference_windows import preference_windows
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions
from research.evals.pair_accuracy import pair_accuracy
from research.evals.pair_records import read_preferences
from research.files import read_json
from research.interop.convert import convert, export_adapter
from research.interop.load import load
from research.models.model import Model
from research.models.spec import initialize, shardings
from research.objectives.reward import Reward, RewardConfig, pairs
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from research.run.opened import open_model
from research.training.metrics import read_rows
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.data.chat_templates import TEMPLATES, save_tokenizer
from tests.families import FAMILIES

LENGTH = 320


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """(model, parameters, batch of the windows of some of six pairs)."""
    folder = tmp_path_factory.mktemp("pairs")
    save_tokenizer(folder, TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder)

    def batch(chosen):
        rows = [
            {"prompt": f"is {i} even?", "chosen": "yes" * (1 + i % 3), "rejected": "no" * (i + 1)}
            for i in chosen
        ]
        file = folder / f"{'-'.join(map(str, chosen))}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents = FileDocuments(file, "", folder / "cache", "preferences")
        windows = preference_windows(documents, WindowOptions(tokenizer, folder, LENGTH))
        examples = [Reward().example(w, np.random.default_rng(0)) for w in windows]
        return {name: np.stack([row[name] for row in examples]) for name in examples[0]}

    model = Model(replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, labels=1))
    return model, initialize(jax.random.key(0), model.specs(), jnp.float32), batch


def loss_of(model, params, batch, **settings):
    objective = Reward.make(RewardConfig(**settings), None)

    def total(params):
        total, count, totals = objective.loss(model, params, {"base": {}}, batch, None)
        return total, (count, totals)

    (value, (count, totals)), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return float(value), float(count), totals, gradients


def test_the_loss_is_trls(scorer):
    model, params, batch = scorer
    row = batch([3])

    # Of the whole text of each side, as transformers computes it: padding behind, one text a row.
    @jax.jit
    def scored(params, ids, places):
        hidden_BTD = model.hidden(params, {"inputs": ids, **places})[0]
        return model.class_logits(params, hidden_BTD, segments_BT=places["segments"])[0, 0, 0]

    def score(segment):
        ids = row["inputs"][row["segments"] == segment][None]
        places = {"segments": np.ones_like(ids), "positions": np.arange(ids.shape[1])[None]}
        return float(scored(params, ids, places))

    chosen, rejected = score(1), score(2)
    margin, centring = 0.3, 0.2
    # trl/trainer/reward_trainer.py: -logsigmoid(r+ - r- - m) + c (r+ + r-)^2.
    wanted = np.log1p(np.exp(-(chosen - rejected - margin))) + centring * (chosen + rejected) ** 2
    got = loss_of(model, params, row, reward_margin=margin, centring=centring)
    assert got[0] == pytest.approx(wanted, rel=1e-5) and got[1] == 1
    assert float(got[2]["margin"][0]) == pytest.approx(chosen - rejected, abs=1e-5)
    assert abs(chosen - rejected) > 1e-3


def test_packed_pairs_have_the_loss_and_gradient_of_each_alone(scorer):
    model, params, batch = scorer
    packed, alone = batch(range(6)), [batch([i]) for i in range(6)]
    apart = {field: np.concatenate([one[field] for one in alone]) for field in packed}
    assert len(packed["inputs"]) < len(apart["inputs"]) == 6
    got, want = (loss_of(model, params, one, centring=0.1) for one in (packed, apart))
    assert got[1] == want[1] == 6
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for g, w in zip(jax.tree.leaves(got[3]), jax.tree.leaves(want[3])):
        np.testing.assert_allclose(g, w, atol=2e-5 * float(np.abs(w).max()) + 1e-6)


def test_a_pair_with_a_margin_of_its_own_is_to_be_further_apart(scorer):
    model, params, batch = scorer
    plain = batch(range(6))
    assert "margins" not in plain
    margins = {**plain, "margins": np.full(plain["inputs"].shape, 0.75, np.float32)}
    got = loss_of(model, params, margins, reward_margin=0.25)
    want = loss_of(model, params, plain, reward_margin=1.0)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)  # float32


@pytest.mark.slow  # preferences have the same path over devices
def test_a_mesh_has_the_loss_of_one_device(scorer):
    model, params, batch = scorer
    one = batch(range(6))
    four = {field: np.concatenate([value] * 4)[:4] for field, value in one.items()}
    want = loss_of(model, params, four)
    mesh = make_mesh("data:2,fsdp:2,context:2")
    with jax.set_mesh(mesh):
        placed = place_batch(four, mesh, RULES, 4)
        on_mesh = jax.device_put(params, shardings(model.specs(), mesh, RULES))
        got = loss_of(model, on_mesh, placed)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert got[1] == want[1]


def test_a_text_without_its_partner_is_no_pair():
    segments = np.array([[1, 1, 2, 3, 3, 0]] * 2)
    weights = np.array([[0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0]], np.float32)
    rewards_BT = jnp.arange(12.0).reshape(2, 6)
    # 64 tokens have room for two pairs.
    wide = {
        "segments": np.pad(segments, ((0, 0), (0, 58))),
        "weights": np.pad(weights, ((0, 0), (0, 58))),
    }
    chosen_BP, rejected_BP, real_BP = pairs(jnp.pad(rewards_BT, ((0, 0), (0, 58))), wide)
    np.testing.assert_array_equal(real_BP, [[1, 0], [0, 0]])
    assert (float(chosen_BP[0, 0]), float(rejected_BP[0, 0])) == (1, 2)


@pytest.mark.parametrize("name", ["reward_margin", "centring"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"objective.{name}"):
        RewardConfig(**{name: value})


def test_a_model_without_one_label_is_refused():
    with pytest.raises(ValueError, match="labels=0 under objective reward.*to 1 for reward"):
        experiment("posttrain", "task=reward,smoke", **{"model.labels": 0})


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with a checkpoint and separable pairs: the answer of fewer letters is preferred."""
    folder = tmp_path_factory.mktemp("task")
    save_tokenizer(folder / "tokenizer", TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder / "tokenizer")
    config = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=256)
    save_checkpoint(folder / "base", config)
    tokenizer.save(folder / "base")
    for name, numbers in (("train", range(60)), ("heldout", range(60, 80))):
        rows = [
            {
                "prompt": f"say {i}",
                "chosen": "good " * (1 + i % 3),
                "rejected": "bad " * (1 + (i + 1) % 3),
            }
            for i in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder, method, steps=4):
    more = {"train.steps": steps, "train.eval_every": steps, "checkpoint.every": steps // 2}
    arg = f"task=reward,method={method},data={folder / 'train.jsonl'},smoke"
    more |= {"model.preset": "", "checkpoint.keep": 4, "optimizer.learning_rate": 1e-2}
    return experiment("posttrain", arg, init=str(folder / "base"), **more)


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_reward_run_learns_resumes_bit_for_bit_and_is_exported(task, method, tmp_path):
    from research.train import train

    e, run, again = settings(task, method, steps=12), tmp_path / "run", tmp_path / "again"
    assert train(e, run, live=False).exit_code == 0
    rows = [row for row in read_rows(run / "metrics.jsonl") if "margin" in row]
    assert rows[-1]["loss"] < 0.1 < rows[0]["loss"] and rows[-1]["accuracy"] == 1

    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/12")
    assert train(e, again, live=False).exit_code == 0
    whole, resumed = (
        read_json(one / "checkpoints/12/record/metadata")["arrays"] for one in (run, again)
    )
    assert whole == resumed  # with the fingerprint of every array

    opened = open_model(run, None)
    heldout = read_preferences(str(task / "heldout.jsonl"), opened.tokenizer, tmp_path / "cache")
    found = pair_accuracy(opened, heldout)
    assert found.pairs == 20 and found.accuracy == 1 and found.shares["accuracy"][1] > 0.8
    assert 0.2 < found.shares["longer"][0] < 0.8 and found.cut == 0
    # The same numbers through Hugging Face's folder.
    convert(run, tmp_path / "hf", "hf")
    exported = pair_accuracy(load(tmp_path / "hf"), heldout, 256)
    assert exported.margin == pytest.approx(found.margin, rel=1e-4)
    if method == "lora":
        adapter = export_adapter(run, tmp_path / "peft")
        assert adapter["bit_equal"] == adapter["values"] and adapter["logit_difference"] == 0
        assert read_json(tmp_path / "peft/adapter_config.json")["task_type"] == "SEQ_CLS"
        assert any("num_labels=1" in note for note in adapter["notes"])


def test_a_record_that_is_no_pair_is_named(task, tmp_path):
    loaded = load(task / "base")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(ValueError, match="record 0.*same"):
        read_preferences(str(bad), loaded.tokenizer, tmp_path / "cache")
