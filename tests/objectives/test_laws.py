"""The laws of `research.objectives.objective.Objective`, over every objective there is."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.batch import Batch
from research.data.layouts import LAYOUTS
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.spec import initialize
from research.objectives.choose import OBJECTIVES, make_objective
from research.objectives.contrastive import Contrastive
from research.tuning.held import HELD, held_trees
from tests.families import FAMILIES

LENGTH, ROWS = 24, 4
TOKENIZER = SimpleNamespace(
    bos_id=0,
    eos_id=1,
    pad_id=2,
    mask_id=3,
    sentinel_ids=(4, 5, 6, 7),
    vocab_size=96,
    word_starts=[True] * 96,
)
MODELS = {
    "decoder": FAMILIES["llama2_7b"],
    "encoder": FAMILIES["bert_base"],
    "encoder_decoder": FAMILIES["t5_small"],
}


def window_of(objective, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two texts in a window, and whatever a layout adds to them; the end is padding."""
    length = objective.window_length(LENGTH)
    tokens = rng.integers(8, 96, length, dtype=np.int32)
    segments = np.repeat([1, 2, 0], [length // 2, length - length // 2 - 3, 3]).astype(np.int32)
    starts = np.array([0, length // 2, length - 3])
    positions = (np.arange(length) - np.repeat(starts, np.diff([*starts, length]))).astype(np.int32)
    window = {"tokens": tokens * (segments > 0), "segments": segments, "positions": positions}
    for name in LAYOUTS[objective.reads].fields:
        window |= {name: window["tokens"], f"{name}_segments": segments}
    said = (rng.random(length) < 0.5).astype(np.int32)
    window |= {"liked": np.where(segments == 1, 1, -1), "token_types": (segments == 2).astype(int)}
    if LAYOUTS[objective.reads].media:
        pixels = rng.integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
        window |= {"images": pixels, "whole": np.ones(1, np.int32)}
    window |= {"labels": window["tokens"] % 2, "labelled": said}
    window |= {"ends": np.sort(rng.integers(0, length - 3, 2, dtype=np.int32))}
    return window | {"assistant": said, "label": rng.integers(0, 3, 1, dtype=np.int32)}


@pytest.fixture(scope="module", params=[*OBJECTIVES, "policy with values"])
def setup(request):
    """(objective, model, batch, jitted loss of a batch), for every objective."""
    kind = OBJECTIVES[request.param.split()[0]]
    settings = kind.config(**{"policy_loss": "ppo"} if "values" in request.param else {})
    objective = make_objective(settings, TOKENIZER)
    config = MODELS[kind.model_kind]
    if kind.classifies:
        over = kind.labels_over
        config = replace(config, pooler=over == "text", mlm_head=False)
        config = replace(config, labels=2 if over == "spans" else 3, labels_over=over)
    if kind.scores_texts:
        config = replace(config, labels=1)
    if LAYOUTS[kind.reads].media:
        image = ImageConfig(layers=1, size=8, patch=4, d_model=8, heads=2, d_ff=16, token=95)
        config = replace(config, image=image)
    model = Model(replace(config, dropout=0.0))
    specs = {**model.specs(), **kind.own_specs(settings, model.config)}
    params = initialize(jax.random.key(0), specs, jnp.float32)
    examples = [
        objective.example(window_of(objective, rng), rng)
        for rng in map(np.random.default_rng, range(ROWS))
    ]
    batch = {name: np.stack([row[name] for row in examples]) for name in examples[0]}
    held = {"base": {}, **held_trees(objective.holds, params)}
    loss = jax.jit(lambda batch: objective.loss(model, params, held, batch, None))
    return objective, model, batch, loss


def flat(result) -> dict[str, float]:
    total, count, totals = result
    values = {"total": total, "count": count}
    for name, (value, over) in totals.items():
        values |= {name: value, f"{name} over": over}
    return {name: float(value) for name, value in values.items()}


def test_what_it_says_of_itself_is_known_elsewhere(setup):
    objective = setup[0]
    assert OBJECTIVES[objective.name] is type(objective)
    assert objective.config().name == objective.name
    assert objective.reads in LAYOUTS and objective.model_kind in MODELS
    assert not objective.bits_per_byte or objective.reads == "texts"
    assert set(objective.holds) <= HELD.keys()
    names = {field.name for field in dataclasses.fields(objective.config)}
    assert "name" in names  # so that config.json says which it is


def test_an_example_has_fields_of_a_batch_and_is_decided_by_its_generator(setup):
    objective, _, batch, _ = setup
    assert set(batch) <= set(Batch.__annotations__)
    assert {"inputs", "targets", "weights", "segments", "positions"} <= set(batch)
    again = objective.example(
        window_of(objective, np.random.default_rng(0)), np.random.default_rng(1)
    )
    once = objective.example(
        window_of(objective, np.random.default_rng(0)), np.random.default_rng(1)
    )
    for name, values in again.items():
        np.testing.assert_array_equal(values, once[name])
        assert values.shape == batch[name].shape[1:]
    predicted = objective.predicted_tokens(LENGTH)
    counted = batch["weights"].sum(1).max()
    # A class is read from the pooled text. A share of the tokens is rounded up to whole ones.
    pooled = objective.classifies or objective.scores_texts or isinstance(objective, Contrastive)
    assert predicted == 0 if pooled else counted < predicted + 1


def test_sums_of_a_batch_are_those_of_its_halves(setup):
    objective, _, batch, loss = setup
    if isinstance(objective, Contrastive):
        pytest.skip("its rows are compared with each other")
    first, second = (
        flat(loss({name: values[part] for name, values in batch.items()}))
        for part in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS))
    )
    whole = flat(loss(batch))
    assert whole["count"] == first["count"] + second["count"] > 0
    for name, value in whole.items():
        # Float32 sums of some 50 terms near 5 nats in another order.
        np.testing.assert_allclose(value, first[name] + second[name], rtol=1e-5)


def test_an_example_without_weight_adds_nothing(setup):
    _, _, batch, loss = setup
    quiet = batch["weights"].copy()
    quiet[ROWS // 2 :] = 0
    other = {name: np.concatenate([v[: ROWS // 2], v[:1], v[:1]]) for name, v in batch.items()}
    # The same counted rows beside different rows that do not count.
    one = flat(loss(batch | {"weights": quiet}))
    two = flat(loss(other | {"weights": quiet}))
    half = flat(loss({name: values[: ROWS // 2] for name, values in batch.items()}))
    for name, value in half.items():
        np.testing.assert_allclose([one[name], two[name]], value, rtol=1e-5)  # as above
    nothing = flat(loss(batch | {"weights": np.zeros_like(quiet)}))
    assert set(nothing.values()) == {0.0}
