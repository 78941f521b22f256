"""Every place where a model drops elements draws a mask of its own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import adapters, layers
from research.models.config import Execution
from research.models.model import Model
from research.models.spec import abstract
from tests.families import FAMILIES, random_batch

DRAWN = 64  # elements of each mask that is compared: two equal ones by chance are 1 in 2^64


def _masks(model: Model, params, keys: list[jax.Array], monkeypatch) -> np.ndarray:
    """A mask for each call of `dropout` in a forward pass with each key, bool [places, DRAWN].

    Only keys leave the program, so XLA drops the rest of the model and compiles in no time."""
    drawn = []

    def _noted(x, rate, key):
        if key is not None:
            drawn.append(jax.random.bernoulli(key, 0.5, (DRAWN,)))
        return x

    @jax.jit
    def _run(params, batch, key):
        model.hidden(params, batch, key)
        return jnp.stack(drawn)

    monkeypatch.setattr(layers, "dropout", _noted)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), params)
    batch = random_batch(2, 8)
    return np.concatenate([_run(zeros, batch, key) for key in keys])


def _model(family: str) -> tuple[Model, dict]:
    model = Model(replace(FAMILIES[family], dropout=0.1), execution=Execution(unroll=0))
    return model, abstract(model.specs(), jnp.float32)


def _distinct(masks: np.ndarray) -> int:
    return len(np.unique(masks, axis=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_of_all_places_differ(family, monkeypatch):
    model, params = _model(family)
    c = model.config
    # Each stack drops elements of its input and of every branch; T5 of its output too.
    places = 1 + c.layers * 2 + c.final_dropout
    if c.kind == "encoder_decoder":
        places += c.layers + 1 + c.encoder_layers * 2 + c.final_dropout
    masks = _masks(model, params, [jax.random.key(0)], monkeypatch)
    assert _distinct(masks) == len(masks) == places


def test_masks_of_micro_batches_and_steps_differ(monkeypatch):
    model, params = _model("t5_small")
    keys = [jax.random.fold_in(jax.random.key(0), n) for n in (0, 1, 2)]
    keys += [jax.random.fold_in(keys[1], n) for n in (0, 1)]  # step 1 in two micro-batches
    masks = _masks(model, params, keys, monkeypatch)
    assert _distinct(masks) == len(masks) == 5 * 14


def test_masks_of_a_prompt_are_its_own(monkeypatch):
    model, params = _model("llama2_7b")
    prompt = abstract(adapters.prompt_specs(model.config, 3), jnp.float32)
    masks = _masks(model, {**params, **prompt}, [jax.random.key(0)], monkeypatch)
    assert _distinct(masks) == len(masks) == 2 * 5
