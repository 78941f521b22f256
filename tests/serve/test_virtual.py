"""Models with a tuned prompt: its virtual tokens stand before every text of an engine."""

import jax
import numpy as np

from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.serve.engine import Engine
from research.serve.request import Request
from tests.serve.engines import Letters, model, prompt


def test_texts_behind_a_tuned_prompt_are_those_of_the_loop():
    made, params = model()
    table_SD = 0.4 * jax.random.normal(jax.random.key(1), (5, made.config.d_model))
    tuned = {**params, "prompt": {"table": table_SD}}
    asked, config = [prompt(6), prompt(9, 1)], SamplingConfig(temperature=0.0, max_tokens=6)
    sizes = {"pages": 8, "page_size": 4, "rows": 2, "chunk": 8, "few": True}
    served = Engine(made, tuned, Letters(), **sizes)
    wants = generate(made, tuned, Letters(), asked, config)
    for got, want in zip(served.generate([Request(ids, config) for ids in asked]), wants):
        assert got.token_ids == want.token_ids
        # Sums of the same float32 products in another order.
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
