"""Which answer of a pair a language model finds likelier, and by how much training has moved it."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.evals.intervals import wilson
from research.evals.pair_accuracy import pair_accuracy
from research.evals.pair_records import read_preferences
from research.models.model import Model
from research.models.spec import initialize
from tests.data.chat_templates import TEMPLATES, save_tokenizer
from tests.families import FAMILIES


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(tokenizer, file of 7 pairs, of which the last has a long prompt, folder for a cache)."""
    folder = tmp_path_factory.mktemp("pairs")
    save_tokenizer(folder, TEMPLATES["chatml"]["plain"])
    rows = [
        {"prompt": f"is {i} even?", "chosen": "yes" * (1 + i % 3), "rejected": "no" * (1 + i % 2)}
        for i in range(6)
    ]
    rows.append({"prompt": "p" * 300, "chosen": "yes", "rejected": "no"})
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_tokenizer(folder), str(file), folder / "cache"


def opened(tokenizer, seed=0, **more):
    config = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, **more)
    model = Model(config)
    params = initialize(jax.random.key(seed), model.specs(), jnp.float32)
    return SimpleNamespace(model=model, params=params, tokenizer=tokenizer, window=128)


@partial(jax.jit, static_argnames="model")
def log_softmax(params, ids, *, model):
    batch = {"inputs": ids, "segments": jnp.ones_like(ids)}
    batch["positions"] = jnp.arange(ids.shape[1])[None]
    return jax.nn.log_softmax(model.logits(params, model.hidden(params, batch)[0])[0])


def likelihoods(one, side) -> tuple[float, float]:
    """(sum, mean) of log p of the answer's tokens, from the logits of the text alone."""
    ids = np.zeros((1, 64), np.int32)
    ids[0, : len(side.ids)] = side.ids
    logp_TV = np.asarray(log_softmax(one.params, ids, model=one.model))
    found = [float(logp_TV[t - 1, side.ids[t]]) for t, said in enumerate(side.said) if said]
    return float(np.sum(found)), float(np.mean(found))


def test_the_likelier_answer_is_preferred_and_a_reference_is_taken_off(data):
    tokenizer, file, cache = data
    model, other = opened(tokenizer), opened(tokenizer, seed=1)
    pairs = read_preferences(file, tokenizer, cache)
    found = pair_accuracy(model, pairs, reference=other)
    # The last pair's answers begin behind the window's end.
    assert (found.pairs, found.left_out, found.cut) == (6, 1, 0)
    ours, theirs = (
        np.array([[likelihoods(one, side) for side in pair] for pair in pairs[:6]])
        for one in (model, other)
    )
    wanted = {
        "accuracy": ours - theirs,
        "per_token": ours - theirs,
        "reference": theirs,
        "reference_per_token": theirs,
    }
    for name, scores in wanted.items():
        kind = 1 if name.endswith("per_token") else 0
        right = float(np.sum(scores[:, 0, kind] > scores[:, 1, kind]))
        assert found.shares[name] == (right / 6, *wilson(right, 6)), name
    margin = np.mean((ours - theirs)[:, 0, 0] - (ours - theirs)[:, 1, 0])
    assert found.margin == pytest.approx(margin, rel=1e-4)  # float32 sums in another order
    values = found.values()
    best = max(values["reference"], values["reference_per_token"])
    assert values["gain"] == pytest.approx(values["accuracy"] - best)
    assert values["gain_low"] <= values["gain"] <= values["gain_high"]
    alone = pair_accuracy(model, pairs).values()
    assert "gain" not in alone and {"accuracy", "per_token", "longer"} <= set(alone)


def test_a_model_that_is_its_own_reference_has_ties_which_count_half(data):
    tokenizer, file, cache = data
    model = opened(tokenizer)
    found = pair_accuracy(model, read_preferences(file, tokenizer, cache), reference=model)
    assert found.accuracy == found.shares["per_token"][0] == 0.5 and found.margin == 0


def test_a_long_prompt_keeps_its_end(data):
    tokenizer, file, cache = data
    pairs = read_preferences(file, tokenizer, cache, prompt_tokens=20)
    assert all(len(side.ids) - side.answer <= 21 for pair in pairs for side in pair)
    model = opened(tokenizer)
    assert pair_accuracy(model, pairs).left_out == 0
    found = pair_accuracy(model, pairs, window=22)
    assert found.cut == 7
    with pytest.raises(ValueError, match="of 7 pair.s. none has both answers within 9 tokens"):
        pair_accuracy(model, pairs, window=9)


def test_what_cannot_be_compared_is_refused(data):
    tokenizer, file, cache = data
    pairs = read_preferences(file, tokenizer, cache)
    model = opened(tokenizer)
    scorer = opened(tokenizer, labels=1)
    bare = opened(replace(tokenizer, chat_template=TEMPLATES["llama3"]["plain"]))
    with pytest.raises(ValueError, match="a reward model has no reference"):
        pair_accuracy(scorer, pairs, reference=model)
    with pytest.raises(ValueError, match="another tokenizer or chat template"):
        pair_accuracy(model, pairs, reference=bare)
    with pytest.raises(ValueError, match="model.labels=3"):
        pair_accuracy(opened(tokenizer, labels=3), pairs)
