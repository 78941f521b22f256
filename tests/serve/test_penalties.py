"""Penalties on what was written, and biases of tokens, in the words of OpenAI's API."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from research.infer.sampling import SamplingConfig
from research.serve.penalties import BIASED, Penalties, blank, penalized
from research.serve.request import Request
from research.serve.runner import Draft
from tests.serve.engines import engine, model, prompt

GREEDY = SamplingConfig(temperature=0.0, max_tokens=12)


def formula(logits_V, written, p):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, of OpenAI's reference."""
    count_V = np.bincount(written, minlength=len(logits_V))
    return logits_V - count_V * p.frequency - (count_V > 0) * p.presence


@pytest.mark.parametrize("presence, frequency", [(1.5, 0.0), (0.0, 0.5), (-2.0, 2.0)])
def test_what_was_written_counts_and_the_prompt_does_not(presence, frequency):
    logits_MV = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    texts_MS = np.array([[1, 1, 2, 2, 2, -1], [6, -1, -1, -1, -1, -1], [0, 6, 6, 0, 5, 5]])
    rows, p = blank(3), Penalties(presence, frequency, ((4, -3.0), (6, 2.5)))
    rows.put(0, p, 3)
    rows.put(2, replace(p, bias=()), 1)
    got_MV = np.asarray(penalized(logits_MV, rows, texts_MS))
    first_V = formula(logits_MV[0], [2, 2], p)
    first_V[[4, 6]] += [-3, 2.5]
    want_MV = [first_V, logits_MV[1], formula(logits_MV[2], [6, 6, 0, 5, 5], p)]
    np.testing.assert_allclose(got_MV, want_MV, atol=1e-6)
    np.testing.assert_array_equal(got_MV[1], logits_MV[1])  # who wants none has the same bits


HARD = Penalties(frequency=2.0, presence=2.0, bias=((3, -100.0),))


@pytest.mark.parametrize("guessed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_penalized_text_does_not_depend_on_what_is_beside_it_or_guessed(guessed):
    own = Draft(model()[0], jax.tree.map(lambda w: w * 0.8, model()[1]))
    plain = engine()
    served = engine(drafts=3, draft=own) if guessed else plain
    asked = [
        Request(prompt(6, n), GREEDY, penalties=HARD if n % 2 else Penalties()) for n in range(4)
    ]
    got = served.generate(asked)
    for one, text in zip(asked, got):
        [want] = plain.generate([one])
        assert text.token_ids == want.token_ids
    free = plain.generate([replace(one, penalties=Penalties()) for one in asked])
    for one, text, other in zip(asked, got, free):
        if one.penalties == HARD:
            assert text.token_ids != other.token_ids and 3 not in text.token_ids


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"presence": 2.5}, "presence=2.5"),
        ({"frequency": float("nan")}, "frequency=nan"),
        ({"bias": ((1, 101.0),)}, "101.0 for token 1"),
        ({"bias": ((1, 0.0),) * (BIASED + 1)}, "over 300"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Penalties(**settings)


def test_a_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the model's vocabulary"):
        engine().submit(Request([1], GREEDY, penalties=Penalties(bias=((10**6, 1.0),))))
