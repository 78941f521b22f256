"""The likelihood of a text in windows."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.evals.perplexity import score_ids, score_text
from research.models.model import Model, forward
from research.models.spec import initialize
from tests.families import FAMILIES, VOCAB

MODEL = Model(FAMILIES["llama2_7b"])
IDS = np.random.default_rng(0).integers(0, VOCAB, 40)


@cache
def params():
    return jax.tree.map(lambda w: w * 4, initialize(jax.random.key(0), MODEL.specs(), jnp.float32))


@jax.jit
def logprobs(inputs, segments):
    """Of every token after each place of one row, [T, V]."""
    batch = {"inputs": inputs, "positions": jnp.arange(inputs.shape[1])[None], "segments": segments}
    return jax.nn.log_softmax(forward(MODEL, params(), batch))[0]


def expected(window, stride):
    """Nats by the definition, one window after the other, in float64."""
    total, counted = 0.0, 1
    for start in range(0, len(IDS) - 1, stride):
        part = IDS[start : start + window + 1]
        inputs, segments = np.zeros((2, 1, window), np.int32)
        inputs[0, : len(part) - 1], segments[0, : len(part) - 1] = part[:-1], 1
        rows = np.asarray(logprobs(inputs, segments), np.float64)
        for at in range(len(part) - 1):
            if start + at + 1 == counted:
                total -= rows[at, part[at + 1]]
                counted += 1
    assert counted == len(IDS)
    return total


@pytest.mark.parametrize("window, stride", [(12, 12), (12, 4), (39, 39), (64, 64), (13, 1)])
def test_every_token_counts_once_with_the_past_of_its_window(window, stride):
    score = score_ids(MODEL, params(), IDS, window, stride)
    assert score.tokens == len(IDS) - 1 and score.n_bytes is None and score.bits_per_byte is None
    # Log-probabilities are float32 of the order of 10, their sum float64.
    assert score.nll == pytest.approx(expected(window, stride), rel=2e-6)


def test_a_uniform_model_over_bytes_needs_log_of_the_vocabulary():
    tokenizer = load_tokenizer("bytes")
    model = Model(replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, layers=1))
    flat = jax.tree.map(
        lambda s: jnp.zeros(s.shape), model.specs(), is_leaf=lambda s: hasattr(s, "axes")
    )
    text = "caf\u00e9 \U0001f600\n" * 3
    score = score_text(model, flat, tokenizer, text, window=16)
    assert score.tokens == score.n_bytes == len(text.encode())
    # A float32 logarithm, to its last bit.
    assert score.bits_per_byte == pytest.approx(math.log2(tokenizer.vocab_size), rel=1e-6)
    assert score.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-5)


def test_the_first_token_follows_the_one_that_begins_a_text():
    tokenizer = load_tokenizer("bytes")
    model = Model(replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, layers=1))
    weights = initialize(jax.random.key(0), model.specs(), jnp.float32)
    for bos_id in (tokenizer.bos_id, None):
        first = tokenizer.eos_id if bos_id is None else bos_id
        by_text = score_text(model, weights, replace(tokenizer, bos_id=bos_id), "abc", window=16)
        by_ids = score_ids(model, weights, np.array([first, *b"abc"]), window=16)
        assert by_text.nll == by_ids.nll and by_text.tokens == 3


@pytest.mark.parametrize(
    "ids, window, stride, message",
    [
        ([0, VOCAB], 8, None, "ids lie in 0..96; the model's are 0..95"),
        ([0, -1], 8, None, "ids lie in -1..0"),
        ([0], 8, None, "wanted two or more integers"),
        ([0.5, 1.5], 8, None, "wanted two or more integers"),
        ([[0, 1]], 8, None, "in one dimension"),
        ([0, 1], 8, 9, "stride=9 in 1..8"),
        ([0, 1], 0, None, "window=0 must be positive"),
    ],
)
def test_what_cannot_be_scored_is_refused(ids, window, stride, message):
    with pytest.raises(ValueError, match=message):
        score_ids(MODEL, {}, np.array(ids), window, stride)


def test_a_window_beyond_learned_positions_and_another_kind_of_model_are_refused():
    with pytest.raises(ValueError, match="over the model's 32 positions"):
        score_ids(Model(FAMILIES["gpt2"]), {}, IDS, 33)
    with pytest.raises(ValueError, match="only a decoder"):
        score_ids(Model(FAMILIES["bert_base"]), {}, IDS, 8)
    with pytest.raises(ValueError, match="text is empty"):
        score_text(MODEL, {}, load_tokenizer("bytes"), "", 8)
