"""Log-probabilities of sampled tokens: those of sampling and of training, and float64's."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import initialize
from research.objectives.log_probabilities import token_scores
from research.objectives.next_token import batch_scores
from tests.families import FAMILIES

CONFIG = replace(FAMILIES["llama2_7b"], vocab_size=300, max_length=32, dropout=0.0)
MODEL, LENGTH = Model(CONFIG), 24
TOKENIZER = load_tokenizer("bytes")
PROMPTS = [TOKENIZER.encode(text) for text in ("47+58=", "a", "of the", "x = ")]


@cache
def params(scale: float = 1.0):
    """Fresh parameters. Times `scale` they have the large states of trained ones."""
    fresh = initialize(jax.random.key(0), MODEL.specs(), jnp.float32)
    return jax.tree.map(lambda w: w * scale, fresh)


def sampled(temperature: float, scale: float = 1.0):
    """(batch of sampled texts, their tokens' log-probabilities [B, T], where they are)."""
    config = SamplingConfig(
        temperature=temperature, max_tokens=12, seed=3, bos=False, scored="sampled"
    )
    texts = generate(MODEL, params(scale), TOKENIZER, PROMPTS, config)
    tokens, segments = np.zeros((2, len(texts), LENGTH + 1), np.int32)
    logprobs, written = np.zeros((len(texts), LENGTH + 1)), np.zeros((len(texts), LENGTH + 1), bool)
    for row, (prompt, text) in enumerate(zip(PROMPTS, texts)):
        start, stop = len(prompt), len(prompt) + len(text.token_ids)
        tokens[row, :stop], segments[row, :stop] = [*prompt, *text.token_ids], 1
        logprobs[row, start:stop], written[row, start:stop] = text.logprobs, True
    positions = np.arange(LENGTH + 1, dtype=np.int32) * segments
    fields = {"inputs": tokens, "segments": segments, "positions": positions}
    batch = {name: x[:, :-1] for name, x in fields.items()} | {"targets": tokens[:, 1:]}
    return batch, logprobs[:, 1:], written[:, 1:]


@partial(jax.jit, static_argnames="temperature")
def trained(weights, batch, temperature=1.0):
    return batch_scores(MODEL, weights, batch, temperature=temperature)[0].logp


@pytest.mark.parametrize("temperature", [0.7, pytest.param(1.5, marks=pytest.mark.slow)])
def test_a_sampled_token_has_the_log_probability_of_training_at_its_temperature(temperature):
    batch, logprobs, written = sampled(temperature)
    apart = np.abs(trained(params(), batch, temperature) - logprobs)[written]
    # One token at a time against all at once, of logits near 1 over the temperature.
    assert apart.max() <= 2e-6 and written.sum() > 30


@pytest.mark.parametrize("slots", [64, pytest.param(LENGTH, marks=pytest.mark.slow)])
def test_equal_shapes_have_equal_bits(slots):
    """Training and decoding call one forward function: a text that is read through the cache in one
    piece has the log-probabilities of training to the last bit."""
    batch, _, written = sampled(1.0)

    @jax.jit
    def cached(weights, batch):
        empty = MODEL.make_cache(len(batch["inputs"]), slots, LENGTH)
        hidden_BTD, _ = MODEL.decode(weights, batch, empty)
        return token_scores(MODEL, weights, hidden_BTD, batch["targets"]).logp

    got, wanted = cached(params(), batch), trained(params(), batch)
    np.testing.assert_array_equal(np.asarray(got)[written], np.asarray(wanted)[written])


def in_float64(weights, batch) -> tuple[np.ndarray, float]:
    """(log-probabilities [B, T] of the targets, the largest state of the residual stream)."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), weights)
    c: ModelConfig = CONFIG

    def norm(x, p):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c.norm_eps) * p["scale"]

    half = c.head_size // 2
    angles = batch["positions"][:, :, None] * c.rope_theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]

    def turn(x):
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    x, seen = p["embed"]["table"][batch["inputs"]], np.tril(np.ones((LENGTH, LENGTH), bool))
    for index in range(c.layers):
        layer = jax.tree.map(lambda w: w[index], p["layers"])
        y, of = norm(x, layer["attention_norm"]), layer["attention"]
        q, k, v = (np.einsum("btd,dnh->btnh", y, of[n]) for n in ("query", "key", "value"))
        scores = np.einsum("btnh,bsnh->bnts", turn(q), turn(k)) / np.sqrt(c.head_size)
        mixed = np.einsum("bnts,bsnh->btnh", softmax(np.where(seen, scores, -np.inf)), v)
        x = x + np.einsum("btnh,nhd->btd", mixed, of["out"])
        y, of = norm(x, layer["mlp_norm"]), layer["mlp"]
        gate = y @ of["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ of["up"])) @ of["down"]
    table = p.get("head", p["embed"])["table"]
    probability = softmax(norm(x, p["final_norm"]) @ table.T)
    of_target = np.take_along_axis(probability, batch["targets"][..., None], axis=-1)[..., 0]
    return np.log(of_target), float(np.abs(x).max())


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_what_is_left_between_them_is_the_rounding_of_float32(scale):
    batch, logprobs, written = sampled(1.0, scale)
    exact, largest = in_float64(params(scale), batch)
    one = np.asarray(trained(params(scale), batch))
    errors = [np.abs(x - exact)[written].max() for x in (one, logprobs)]
    # A state of the residual stream and a logit are kept to half an ulp, and every product and sum
    # on the way loses as much again: no order of them is nearer than some ulps of the largest.
    ulp = np.spacing(np.float32(max(largest, *-exact[written])))
    assert max(errors) <= 16 * ulp
    assert np.abs(one - logprobs)[written].max() <= sum(errors)
