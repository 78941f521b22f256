"""Changes of a distribution, and draws from it."""

import json
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from research.infer import sampling
from research.infer.sampling import SamplingConfig

GOLDEN = json.loads((Path(__file__).parent / "golden_samplers.json").read_text())
LOGITS = jnp.array(GOLDEN["lg"], jnp.float32)


def seen(ids, like):
    marks = np.zeros(like.shape, bool)
    np.put_along_axis(marks, np.array(ids), True, axis=1)
    return jnp.array(marks)


# transformers 5.23 on the same logits; its minus infinity was written as -1e30.
@pytest.mark.parametrize(
    "name, config",
    [
        ("temp0.7", SamplingConfig(temperature=0.7)),
        ("topk4", SamplingConfig(top_k=4)),
        ("topp.6", SamplingConfig(top_p=0.6)),
        ("minp.1", SamplingConfig(min_p=0.1)),
        ("rep1.3", SamplingConfig(repetition_penalty=1.3)),
    ],
)
def test_logits_are_those_of_transformers(name, config):
    got = np.array(sampling.process(LOGITS, config, seen(GOLDEN["ids"], LOGITS)))
    wanted = np.array(GOLDEN[name])
    wanted[wanted < -1e29] = -np.inf
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(wanted))
    kept = ~np.isneginf(wanted)
    # One rounding of a division or product of numbers below 8 in float32: 2 ** -24 * 8.
    np.testing.assert_allclose(got[kept], wanted[kept], rtol=0, atol=5e-7)


keep_top_p = jax.jit(sampling.keep_top_p)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(seed, p):
    logits = np.random.default_rng(seed).normal(0, 3, (4, 40)).astype(np.float32)
    kept = np.isfinite(np.array(keep_top_p(logits, p)))
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    for row_probs, row_kept in zip(probs, kept):
        assert row_probs[row_kept].min() >= row_probs[~row_kept].max(initial=0)
        # Sums of 40 probabilities in float32 are off by 40 roundings at most.
        assert row_probs[row_kept].sum() >= p - 40 * 2**-24
        assert row_probs[row_kept].sum() - row_probs[row_kept].min() < p + 40 * 2**-24


def test_each_row_may_have_its_own_numbers():
    p_B1 = jnp.array([[0.3], [0.6], [0.99]])
    together = sampling.keep_min_p(keep_top_p(LOGITS, p_B1), p_B1 / 10)
    for row in range(3):
        p = float(p_B1[row, 0])
        alone = sampling.keep_min_p(keep_top_p(LOGITS[row : row + 1], p), p / 10)
        np.testing.assert_array_equal(np.array(together)[row], np.array(alone)[0])


def test_equally_likely_tokens_stay_or_go_together():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    for kept in (sampling.keep_top_k(logits, 2), keep_top_p(logits, 0.7)):
        np.testing.assert_array_equal(np.isfinite(np.array(kept)), [[True, True, True, False]])


def test_temperature_0_takes_the_likeliest_token_after_the_penalty():
    logits = jnp.array([[3.0, 2.9, -1.0], [3.0, 2.9, -1.0]])
    config = SamplingConfig(temperature=0, repetition_penalty=1.5)
    ids = sampling.sample(logits, None, config, seen([[0], [1]], logits))
    assert ids.tolist() == [1, 0]


@pytest.mark.parametrize(
    "config", [SamplingConfig(), SamplingConfig(temperature=0.8, top_k=6, top_p=0.99, min_p=0.01)]
)
def test_draws_follow_the_distribution(config):
    draws = 20_000
    logits = LOGITS[:1]
    keys = jax.random.split(jax.random.key(7), draws)
    ids = jax.jit(sampling.sample, static_argnums=2)(jnp.tile(logits, (draws, 1)), keys, config)
    counts = np.bincount(np.array(ids), minlength=logits.shape[1])
    expected = np.array(jax.nn.softmax(sampling.process(logits, config)), np.float64)[0] * draws
    possible = expected > 0
    assert possible.sum() > 3 and not counts[~possible].any()
    expected *= draws / expected.sum()
    # The seed is fixed; a right sampler falls below this for one seed in 10,000.
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-4


def test_a_row_draws_with_its_own_key():
    keys = jax.random.split(jax.random.key(0), 3)
    ids = sampling.sample(LOGITS, keys, SamplingConfig())
    others = sampling.sample(LOGITS.at[1:].multiply(-1), keys, SamplingConfig())
    assert ids[0] == others[0]


def test_log_probabilities_are_the_models_own():
    got = sampling.log_probability(LOGITS, jnp.array([6, 1, 4]))
    wanted = np.log(np.exp(GOLDEN["lg"]) / np.exp(GOLDEN["lg"]).sum(axis=1, keepdims=True))[
        [0, 1, 2], [6, 1, 4]
    ]
    np.testing.assert_allclose(got, wanted, atol=2e-6)  # float32 sums of 11 numbers below 16


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
        {"seed": -1},
        {"stop": ("",)},
    ],
)
def test_a_number_out_of_range_is_refused_by_name(fields):
    with pytest.raises(ValueError, match=f"sampling.{next(iter(fields))}="):
        SamplingConfig(**fields)


def test_what_is_no_part_of_the_distribution_compiles_nothing_anew():
    one, other = (
        SamplingConfig(top_p=0.9, seed=1, max_tokens=5, stop=("x",)),
        SamplingConfig(top_p=0.9, stop_ids=(3,)),
    )
    assert one.distribution == other.distribution != SamplingConfig(top_p=0.8).distribution
