"""The engine as a function writes what the loop of one batch writes."""

from dataclasses import replace

import numpy as np
import pytest

from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.serve import batch
from tests.families import FAMILIES
from tests.serve.engines import Letters, model, prompt

SAMPLED = SamplingConfig(max_tokens=6, seed=3, temperature=0.8, scored="sampled")


@pytest.mark.slow
def test_it_writes_the_texts_of_the_loop():
    # Groups of equal prompts, as rollouts have them, and beginnings that prompts share.
    asked = [prompt(20)] * 3 + [[*prompt(18), 1, 2], prompt(3, 1)] + [prompt(20)]
    wants = generate(*model(), Letters(), asked, SAMPLED)
    for got, want in zip(batch.write(*model(), Letters(), asked, SAMPLED), wants):
        assert replace(got, logprobs=()) == replace(want, logprobs=())
        # Sums of the same float32 products in another order.
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    "name, tokens", [("t5_small", 4), ("phi4_mini", 9)], ids=["encoder_decoder", "long"]
)
def test_what_the_engine_does_not_run_is_left_to_the_loop(name, tokens, monkeypatch):
    monkeypatch.setattr(batch, "generate", lambda *asked: asked)
    config = replace(SAMPLED, max_tokens=tokens)
    asked = Model(FAMILIES[name]), {}, Letters(), [prompt(5)], config
    assert batch.write(*asked) == asked


def test_nothing_is_written_of_no_prompts():
    assert batch.write(*model(), Letters(), [], SAMPLED) == []
