"""Beam search: against every text there is, against greedy, and its score."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer.beam import BeamConfig, beam_search
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.models.spec import initialize
from tests.families import FAMILIES

TOKENIZER = load_tokenizer("bytes")
END = 2


def small(name: str, vocab: int, scale: float = 3.0, seed: int = 3):
    """A model whose next tokens are far from equally likely."""
    model = Model(replace(FAMILIES[name], vocab_size=vocab))
    params = initialize(jax.random.key(seed), model.specs(), jnp.float32)
    return model, jax.tree.map(lambda w: w * scale, params)


def every_text(model, params, prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """The log-probability of each text of `length` tokens, or of fewer with an end."""
    texts = np.array(list(itertools.product(range(model.config.vocab_size), repeat=length)))
    ids_BT = jnp.array(np.concatenate([np.tile(prompt, (len(texts), 1)), texts], 1))
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
    batch = {"inputs": ids_BT, "positions": positions_BT, "segments": jnp.ones_like(ids_BT)}
    hidden_BTD, _ = model.hidden(params, batch)
    logprobs_BTV = np.asarray(jax.nn.log_softmax(model.logits(params, hidden_BTD), axis=-1))
    found = {}
    for row, ids in enumerate(texts.tolist()):
        ids = ids[: ids.index(END) + 1] if END in ids else ids
        places = range(len(prompt) - 1, len(prompt) - 1 + len(ids))
        found[tuple(ids)] = float(sum(logprobs_BTV[row, at, n] for at, n in zip(places, ids)))
    return found


def test_as_many_beams_as_texts_find_the_best_of_all():
    model, params = small("llama2_7b", vocab=4, scale=1.5, seed=0)
    prompt = [1, 3, 0]
    every = every_text(model, params, prompt, 3)
    tokenizer = replace(TOKENIZER, eos_id=END)
    chosen = set()
    for alpha in (0.0, 0.6, 5.0):
        config = BeamConfig(beams=64, length_penalty=alpha)
        [found] = beam_search(
            model, params, tokenizer, [prompt], SamplingConfig(max_tokens=3), config
        )
        wanted = max(every, key=lambda ids: config.score(every[ids], len(ids)))
        assert found.token_ids == wanted
        # Of the cache and of the whole text: other orders of float32 sums.
        assert found.logprobs[0] == pytest.approx(every[wanted], abs=1e-4)
        assert found.finish == ("eos" if END in wanted else "length")
        chosen.add(wanted)
    assert len(chosen) > 1  # the penalty decides


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5_small"])
def test_one_beam_is_the_likeliest_token_and_rows_do_not_meet(name):
    model, params = small(name, vocab=320)
    prompts = ["a cat", "dogs and more", "x"]
    sampling = SamplingConfig(temperature=0.0, max_tokens=9)
    greedy = generate(model, params, TOKENIZER, prompts, sampling)
    one = beam_search(model, params, TOKENIZER, prompts, sampling, BeamConfig(1))
    assert [g.text for g in greedy] == [b.text for b in one]
    assert [g.finish for g in greedy] == [b.finish for b in one]
    config = BeamConfig(3, 0.0)
    together = beam_search(model, params, TOKENIZER, prompts, sampling, config)
    alone = [beam_search(model, params, TOKENIZER, [p], sampling, config)[0] for p in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    # More is found than by greedy steps, or as much.
    for found, step in zip(together, greedy):
        assert found.logprobs[0] >= sum(step.logprobs) - 1e-3


def test_long_texts_win_with_a_penalty():
    config = BeamConfig(4, 1.0)
    assert config.score(-6.0, 1) == -6.0 and config.score(-6.0, 7) == -3.0
    assert BeamConfig(4, 0.0).score(-6.0, 7) == -6.0
    for wrong, message in (({"beams": 0}, "beams=0"), ({"length_penalty": -1.0}, "penalty=-1")):
        with pytest.raises(ValueError, match=message):
            BeamConfig(**wrong)
