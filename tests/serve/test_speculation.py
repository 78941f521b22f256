"""Tokens that are guessed ahead: fewer steps, and the texts that are written without them."""

from dataclasses import replace

import numpy as np
import pytest

from research.infer.sampling import SamplingConfig
from research.serve.lookup import lookup
from research.serve.request import Request
from tests.serve.engines import engine, prompt

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
