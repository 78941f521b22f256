"""What an engine keeps of a text: rounded keys and values, and the pages of its window."""

from dataclasses import replace

import numpy as np
import pytest

from research.infer.sampling import SamplingConfig
from research.serve.request import Request
from tests.serve.engines import engine, prompt

# A fifth or so of what rounding itself does to a log-probability.
EDGE = {8: 2e-3, 4: 5e-2}
GREEDY = SamplingConfig(temperature=0.0, max_tokens=12)
SCORED = replace(GREEDY, max_tokens=8)


@pytest.mark.slow
@pytest.mark.parametrize("name, bits", [("llama3_405b", 8), ("deepseek_v3", 4)])
def test_a_text_in_rounded_pages_is_the_same_whatever_is_beside_it(name, bits):
    asked = [Request(prompt(length, length), SCORED, prompt_logprobs=True) for length in (9, 14)]
    together = engine(name, bits=bits)
    texts = together.generate(asked)
    # Pieces of a prompt that end within pages, and guesses that were wrong.
    served = engine(name, bits=bits, chunk=3, drafts=3)
    for got, want in zip(served.generate(asked), texts):
        assert (got.token_ids, got.finish) == (want.token_ids, want.finish)
        # A number between two codes may fall to either, for a difference in the last bit.
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=EDGE[bits])
    assert served.pages.held == 0
    plain = engine(name)
    wants = plain.generate(asked)
    assert together.runner.cache_bytes < 0.7 * plain.runner.cache_bytes
    # How far off, of logits of random weights, which are of the order of 1.
    apart = [
        np.max(np.abs(np.subtract(got.prompt_logprobs, want.prompt_logprobs)))
        for got, want in zip(texts, wants)
    ]
    assert 0 < max(apart) < 10 * EDGE[bits]


def test_rounded_pages_have_room_for_what_is_guessed():
    with pytest.raises(ValueError, match="drafts=4 must be less than page_size=4"):
        engine(bits=8, drafts=4)


@pytest.mark.slow
def test_a_page_that_has_left_the_window_is_free():
    # A window of 5 tokens in every layer: with pages of 2 a text of 30 holds 4 of them at most.
    served = engine("mistral_7b", page_size=2, chunk=2)
    text = served.submit(Request(prompt(20), replace(GREEDY, max_tokens=10)))
    held = []
    while not text.finish:
        served.step()
        held.append(served.pages.held)
    plain = engine("mistral_7b", page_size=2, chunk=2)
    plain._window = 0
    [want] = plain.generate([text.request])
    assert text.completion().token_ids == want.token_ids
    assert max(held) <= 4 and served.pages.held == 0
