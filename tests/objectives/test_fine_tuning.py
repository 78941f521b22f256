"""What fine-tuning minimises: the assistant's tokens alone, packed or not, and classes of whole
texts."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.chat import ChatEncoder, encode_chat
from research.data.chat_windows import PackedConversations
from research.data.files import FileDocuments
from research.data.tokenizers import load_tokenizer
from research.data.tokens import tokenize_conversations
from research.models.model import Model
from research.models.spec import initialize, shardings
from research.objectives.chat import Chat
from research.objectives.choose import OBJECTIVES, flat_defaults, own_settings
from research.objectives.classification import Classification
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from tests.data.chat_templates import CONVERSATIONS, TEMPLATES, save_tokenizer
from tests.families import FAMILIES

LENGTH = 160
BERT = replace(FAMILIES["bert_base"], labels=3, mlm_head=False)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """(tokenizer, model, parameters, store) of a few conversations."""
    folder = tmp_path_factory.mktemp("chat")
    save_tokenizer(folder, TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder)
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"messages": m}) + "\n" for m in CONVERSATIONS.values())
    )
    documents = FileDocuments(folder / "x.jsonl", "", folder / "cache", "conversations")
    store = tokenize_conversations(documents, ChatEncoder(tokenizer), folder / "cache")
    model = Model(replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size))
    return tokenizer, model, initialize(jax.random.key(0), model.specs(), jnp.float32), store


def batch_of(windows):
    rows = [Chat().example(windows[i], np.random.default_rng(0)) for i in range(len(windows))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def loss_of(model, params, batch):
    def total(params):
        total, count, _ = Chat().loss(model, params, {"base": {}}, batch, None)
        return total, count

    (value, count), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return float(value), float(count), gradients


def test_the_loss_is_on_the_assistants_tokens_alone(chat):
    tokenizer, model, params, store = chat
    windows = PackedConversations(store, LENGTH + 1, seed=None)
    batch = batch_of(windows)
    asked = tokenizer.decode(batch["targets"][batch["weights"] > 0])
    # In the windows' order, conversations longest first.
    order = [c for window in windows._windows for c in window]
    said = [encode_chat(tokenizer, list(CONVERSATIONS.values())[c]) for c in order]
    assert asked == "".join(tokenizer.decode([t for t, mine in zip(*one) if mine]) for one in said)
    # Other targets have no part in it: whatever they are the loss is the same.
    changed = {**batch, "targets": np.where(batch["weights"] > 0, batch["targets"], 0)}
    assert loss_of(model, params, changed)[:2] == loss_of(model, params, batch)[:2]


def test_packed_loss_and_gradients_equal_those_of_each_conversation_alone(chat):
    tokenizer, model, params, store = chat
    packed = batch_of(PackedConversations(store, LENGTH + 1, seed=0))
    alone = []
    for a, b in zip(store.offsets, store.offsets[1:]):
        part = replace(
            store,
            ids=store.ids[a:b],
            mask=store.mask[a:b],
            offsets=np.array([0, b - a]),
            n_bytes=np.ones(1),
        )
        alone.append(batch_of(PackedConversations(part, LENGTH + 1, seed=None)))
    apart = {name: np.concatenate([row[name] for row in alone]) for name in packed}
    assert len(packed["inputs"]) < len(apart["inputs"]) == 4
    got, want = loss_of(model, params, packed), loss_of(model, params, apart)
    assert got[1] == want[1] > 0
    # The same float32 terms added in another order: 75 terms near 6 nats, each exact to 1e-7 of its
    # size.
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for g, w in zip(jax.tree.leaves(got[2]), jax.tree.leaves(want[2])):
        np.testing.assert_allclose(g, w, atol=1e-5 * float(np.abs(w).max()) + 1e-6)


def test_each_objective_says_what_it_trains_and_reads():
    assert {name: (o.model_kind, o.reads) for name, o in OBJECTIVES.items()} == {
        "causal_lm": ("decoder", "texts"),
        "distillation": ("decoder", "texts"),
        "on_policy_distillation": ("decoder", "prompts"),
        "chat": ("decoder", "conversations"),
        "media_chat": ("decoder", "media"),
        "contrastive": ("decoder", "captions"),
        "masked_lm": ("encoder", "texts"),
        "token_classification": ("encoder", "tags"),
        "question_answering": ("encoder", "questions"),
        "classification": ("encoder", "labels"),
        "span_corruption": ("encoder_decoder", "texts"),
        "translation": ("encoder_decoder", "pairs"),
        "preference": ("decoder", "preferences"),
        "judgement": ("decoder", "judgements"),
        "policy": ("decoder", "prompts"),
        "reward": ("decoder", "preferences"),
    }


def test_a_setting_of_another_objective_is_refused():
    with pytest.raises(ValueError, match="objective.z_loss"):
        own_settings(flat_defaults() | {"name": "classification", "z_loss": 0.1})


def classes_batch(rows: int = 8, length: int = 12):
    rng = np.random.default_rng(0)
    segments = (np.arange(length) < rng.integers(3, length, (rows, 1))).astype(np.int32)
    return {
        "inputs": rng.integers(0, 96, (rows, length), dtype=np.int32) * segments,
        "segments": segments,
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)) * segments,
        "targets": rng.integers(0, 3, (rows, 1), dtype=np.int32),
        "weights": np.array([[1.0]] * (rows - 1) + [[0.0]], np.float32),
    }


def test_classification_is_cross_entropy_of_a_layer_over_the_pooled_text():
    model, batch = Model(BERT), classes_batch()
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    assert params["classifier"]["kernel"].shape == (32, 3) and params["classifier"][
        "bias"
    ].shape == (3,)
    params["classifier"]["bias"] = jnp.array([0.1, -0.2, 0.3])
    total, count, totals = Classification().loss(model, params, {"base": {}}, batch, None)
    pooled = np.asarray(model.pooled(params, model.hidden(params, batch)[0]))[:, 0]
    logits = pooled @ np.asarray(params["classifier"]["kernel"]) + np.asarray(
        params["classifier"]["bias"]
    )
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, targets = np.arange(7), batch["targets"][:7, 0]  # the last row has no weight
    np.testing.assert_allclose(
        total, -logs[rows, targets].sum(), rtol=1e-5
    )  # float32 against numpy's
    assert count == 7 and totals["accuracy"] == ((logits[:7].argmax(-1) == targets).sum(), 7)
    none = batch | {"weights": np.zeros((8, 1), np.float32)}
    assert Classification().loss(model, params, {"base": {}}, none, None)[2]["accuracy"] == (0, 0)


def test_padding_and_other_texts_do_not_change_a_class():
    model, batch = Model(BERT), classes_batch()
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    logits = model.class_logits(params, model.hidden(params, batch)[0])
    noise = np.where(batch["segments"] > 0, batch["inputs"], 5)
    np.testing.assert_allclose(
        model.class_logits(params, model.hidden(params, batch | {"inputs": noise})[0]),
        logits,
        atol=1e-6,
    )
    one = {name: rows[2:3] for name, rows in batch.items()}
    np.testing.assert_allclose(
        model.class_logits(params, model.hidden(params, one)[0])[0], logits[2], atol=1e-5
    )


def test_dropout_reaches_the_pooled_text():
    model = Model(replace(BERT, dropout=0.5))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    hidden = jnp.ones((2, 4, 32))
    quiet = model.class_logits(params, hidden)
    assert not np.allclose(model.class_logits(params, hidden, jax.random.key(1)), quiet)


@pytest.mark.parametrize("mesh", ["fsdp:2,tensor:2,context:2", "data:4,tensor:2"], indirect=True)
def test_classification_is_the_same_on_a_mesh(mesh):
    model, batch = Model(BERT), classes_batch()
    with jax.set_mesh(make_mesh("")):
        params = initialize(jax.random.key(0), model.specs(), jnp.float32)
        want = [
            float(x) for x in Classification().loss(model, params, {"base": {}}, batch, None)[:2]
        ]
        held = jax.tree.map(np.asarray, params)
    placed = jax.tree.map(jax.device_put, held, shardings(model.specs(), mesh, RULES))
    got = jax.jit(lambda p, b: Classification().loss(model, p, {"base": {}}, b, None)[:2])(
        placed, place_batch(batch, mesh, RULES, 8)
    )
    np.testing.assert_allclose(
        [float(x) for x in got], want, rtol=1e-5
    )  # sums over devices in another order
