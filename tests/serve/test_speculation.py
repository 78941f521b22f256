"""Tokens that are guessed ahead: fewer steps, and the texts that are written without them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from research.infer.sampling import SamplingConfig
from research.serve.draw import Guess, verified
from research.serve.lookup import lookup
from research.serve.request import Request
from research.serve.runner import Draft
from tests.serve.engines import engine, model, prompt

TOLERANCE = 1e-5  # sums of the same float32 products in another order
GREEDY = SamplingConfig(temperature=0.0, max_tokens=20)


@pytest.mark.parametrize(
    "ids, most, wanted",
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], 2, [4, 9]),
        # The latest of two places, and the longer of two matches.
        ([1, 2, 5, 0, 1, 2, 6, 0, 1, 2], 1, [6]),
        ([7, 1, 2, 5, 0, 1, 2, 6, 7, 1, 2], 1, [5]),
        # What ends in a loop goes on in it.
        ([0, 5, 6, 5, 6], 5, [5, 6, 5, 6, 5]),
        ([1, 2, 3, 4, 5], 3, []),
        ([1, 2, 1], 3, []),
        ([1, 2, 1, 2, 1, 2], 0, []),
        ([], 3, []),
    ],
)
def test_lookup_finds_what_followed_before(ids, most, wanted):
    assert lookup(ids, most) == wanted


def test_texts_with_guesses_are_the_texts_without_in_fewer_steps():
    samplings = [
        GREEDY,
        replace(GREEDY, temperature=0.2, seed=1),
        replace(GREEDY, temperature=1.0, top_k=2, repetition_penalty=0.7, seed=2),
        replace(GREEDY, repetition_penalty=0.5, max_tokens=7),
    ]
    asked = [Request(prompt(6, n), samplings[n % 4], alternatives=n % 3) for n in range(12)]
    plain, served = engine(), engine(drafts=3)
    for got, want in zip(served.generate(asked), plain.generate(asked)):
        assert (got.token_ids, got.finish) == (want.token_ids, want.finish)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)
        assert [len(told) for told in got.alternatives] == [len(told) for told in want.alternatives]
    assert 0 < served.counts.kept < served.counts.guessed and served.pages.held == 0
    # Random weights write loops.
    assert served.counts.steps <= 0.8 * plain.counts.steps


def test_fewer_than_no_guesses_are_refused():
    with pytest.raises(ValueError, match="drafts=-1 must be at least 0"):
        engine(drafts=-1)


def test_a_guess_is_kept_so_that_what_comes_out_has_the_models_distribution():
    """By enumeration: the shares of the random numbers that lead to each token, on a grid that has
    the probabilities below exactly."""
    p, q = np.array([8, 1, 0, 3, 4]) / 16, np.array([2, 6, 4, 0, 4]) / 16
    grid = (np.arange(48) + 0.5) / 48
    kept_M, drawn_M = (x.reshape(-1) for x in np.meshgrid(grid, grid))
    law = np.zeros(5)
    for guess in range(5):
        ids_M = np.full(len(kept_M), guess)
        tokens_M = verified(
            np.tile(np.float32(p), (len(ids_M), 1)),
            Guess(ids_M, np.tile(np.float32(q), (len(ids_M), 1))),
            kept_M,
            drawn_M,
        )
        law += q[guess] * np.bincount(tokens_M, minlength=5) / len(ids_M)
        # Kept with the probability of the paper, and never drawn again where it is not.
        if q[guess]:
            assert np.mean(tokens_M == guess) == pytest.approx(min(1, p[guess] / q[guess]))
    np.testing.assert_allclose(law, p, atol=1e-6)


def draft(like: float) -> Draft:
    """A draft for the tests' model that writes much the same; at 1 it is the model itself."""
    return Draft(model()[0], jax.tree.map(lambda w: w * like, model()[1]))


@pytest.mark.slow
@pytest.mark.parametrize("like", [1.0, 0.8])
def test_a_draft_model_guesses_what_the_model_writes(like):
    greedy = [Request(prompt(6, n), replace(GREEDY, max_tokens=9 + n)) for n in range(3)]
    # Texts come while others are written, so some steps read beside.
    asked = [*greedy, Request(prompt(9), SamplingConfig(max_tokens=20, top_p=0.9)), *greedy]
    plain, served = engine(), engine(drafts=3, draft=draft(like))
    wants = plain.generate(asked)
    for one, got, want in zip(asked, served.generate(asked), wants):
        if one.sampling.temperature == 0:
            assert (got.token_ids, got.finish) == (want.token_ids, want.finish)
            np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)
    counts = served.counts
    assert counts.kept == counts.guessed if like == 1 else 0 < counts.kept < counts.guessed
    assert counts.steps < plain.counts.steps and served.pages.held == 0


@pytest.mark.slow
def test_texts_of_a_draft_have_the_models_distribution():
    count, sampling = 600, SamplingConfig(max_tokens=3, top_k=2, temperature=1.5)
    asked = [Request(prompt(5), replace(sampling, seed=seed)) for seed in range(count)]
    shares = []
    for settings in ({}, {"drafts": 2, "draft": draft(0.7)}):
        served = engine(**settings)
        texts = [text.token_ids for text in served.generate(asked)]
        shares.append({ids: texts.count(ids) / count for ids in set(texts)})
    assert 0 < served.counts.kept < served.counts.guessed
    plain, drafted = shares
    apart = sum(abs(plain.get(ids, 0) - drafted.get(ids, 0)) for ids in {*plain, *drafted}) / 2
    # Of two samples of one distribution over 8 texts: 0.045 on average.
    assert apart < 0.1


@pytest.mark.parametrize(
    "changes, message",
    [({"vocab_size": 7}, "vocab_size=7, and the model"), ({"kind": "encoder"}, "kind=encoder")],
)
def test_a_draft_that_does_not_fit_is_refused(changes, message):
    other = replace(model()[0], config=replace(model()[0].config, **changes))
    with pytest.raises(ValueError, match=message):
        engine(drafts=2, draft=Draft(other, {}))
