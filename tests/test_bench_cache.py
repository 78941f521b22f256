"""The benchmark of rounded caches: the exact one has the model's perplexity, others less memory."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.bench import cache
from tests.serve.engines import Letters, model, prompt

TEXTS, LENGTH = 3, 24


@pytest.fixture
def rows(monkeypatch):
    made, params = model()
    opened = SimpleNamespace(model=made, params=params, tokenizer=Letters(), source="a model")
    source = SimpleNamespace(heldout=[])
    monkeypatch.setattr(cache, "open_model", lambda workdir, checkpoint: opened)
    monkeypatch.setattr(cache, "open_source", lambda name, folder: source)
    monkeypatch.setattr(cache, "first_ids", lambda tokenizer, documents, count, where: ids())
    monkeypatch.setattr(cache, "PAGE", 4)
    return cache.measure("a model", "a source", TEXTS, LENGTH)


def ids() -> np.ndarray:
    return np.array(prompt(TEXTS * LENGTH))


def test_the_exact_cache_has_the_perplexity_of_the_model(rows):
    made, params = model()
    ids_BT = ids().reshape(TEXTS, LENGTH)
    batch = {"inputs": ids_BT, "segments": np.ones_like(ids_BT)}
    batch["positions"] = np.broadcast_to(np.arange(LENGTH), ids_BT.shape)
    logprobs_BTV = jax.nn.log_softmax(made.logits(params, made.hidden(params, batch)[0]))
    nats_BT = -jnp.take_along_axis(logprobs_BTV[:, :-1], ids_BT[:, 1:, None], -1)
    assert rows[0]["perplexity"] == pytest.approx(np.exp(nats_BT.mean()), rel=1e-5)
    assert rows[0]["bits"] == "float32" and rows[0]["tokens"] == TEXTS * (LENGTH - 1)


def test_rounded_caches_take_less_and_differ_by_what_the_rows_say(rows):
    c = model()[0].config
    exact, eight, four = rows
    assert exact["bytes_a_token"] == 4 * 2 * c.layers * c.kv_heads * c.head_size
    assert exact["bytes_a_token"] > 1.5 * eight["bytes_a_token"] > 1.5 * four["bytes_a_token"]
    for row in (eight, four):
        nats = np.log(row["perplexity"] / exact["perplexity"])
        assert row["difference"] == pytest.approx(nats, abs=1e-9)
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert abs(four["difference"]) > abs(eight["difference"]) > 0
    assert f"{TEXTS} texts" in cache.table(rows)
