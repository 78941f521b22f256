"""Preference tuning: the loss of pairs, packed, alone and on a mesh."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.files import FileDocuments
from research.data.preference_windows import preference_windows
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions
from research.fit.compile import objective_without_data
from research.models.model import Model
from research.models.spec import initialize, shardings
from research.objectives.preference import Preference, PreferenceConfig
from research.objectives.preference_losses import LOSSES
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from research.run.program import make_program
from tests.configs import experiment
from tests.data.chat_templates import TEMPLATES, save_tokenizer
from tests.families import FAMILIES

LENGTH = 320


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(model, parameters, the reference's parameters, windows by (length, rows))."""
    folder = tmp_path_factory.mktemp("pairs")
    save_tokenizer(folder, TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder)
    rows = [
        {"prompt": f"is {i} even?", "chosen": "yes" * (1 + i % 3), "rejected": "no" * (1 + i % 2)}
        for i in range(6)
    ]

    def windows(chosen):
        file = folder / f"{'-'.join(map(str, chosen))}.jsonl"
        file.write_text("".join(json.dumps(rows[i]) + "\n" for i in chosen))
        documents = FileDocuments(file, "", folder / "cache", "preferences")
        return preference_windows(documents, WindowOptions(tokenizer, folder, LENGTH + 1))

    model = Model(replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size))
    params, other = (
        initialize(jax.random.key(seed), model.specs(), jnp.float32) for seed in (0, 1)
    )
    return model, params, other, windows


def batch_of(windows) -> dict[str, np.ndarray]:
    examples = [Preference().example(w, np.random.default_rng(0)) for w in windows]
    return {name: np.stack([row[name] for row in examples]) for name in examples[0]}


def loss_of(name, model, params, reference, batch):
    objective = Preference.make(PreferenceConfig(preference_loss=name), None)
    held = {"base": {}} | ({"reference": reference} if objective.holds else {})

    def total(params):
        total, count, totals = objective.loss(model, params, held, batch, None)
        return total, (count, totals)

    (value, (count, totals)), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return float(value), float(count), totals, gradients


# Those that compare pairs with each other have the same pairs packed and alone.
BATCH = [pytest.param(name, marks=pytest.mark.slow) for name, row in LOSSES.items() if row.batch]


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "orpo", *BATCH])
def test_packed_pairs_have_the_loss_and_gradient_of_each_alone(name, pairs):
    model, params, other, windows = pairs
    packed = batch_of(windows(range(6)))
    alone = [batch_of(windows([i])) for i in range(6)]
    apart = {field: np.concatenate([one[field] for one in alone]) for field in packed}
    assert len(packed["inputs"]) < len(apart["inputs"]) == 6
    got = loss_of(name, model, params, other, packed)
    want = loss_of(name, model, params, other, apart)
    assert got[1] == want[1] == 6
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for g, w in zip(jax.tree.leaves(got[3]), jax.tree.leaves(want[3])):
        np.testing.assert_allclose(g, w, atol=2e-5 * float(np.abs(w).max()) + 1e-6)


def test_a_model_that_is_its_own_reference_has_log_2_and_no_margin(pairs):
    model, params, _, windows = pairs
    value, count, totals, _ = loss_of("sigmoid", model, params, params, batch_of(windows(range(6))))
    assert value / count == pytest.approx(math.log(2), abs=1e-6)
    assert float(totals["margin"][0]) == float(totals["accuracy"][0]) == 0


@pytest.mark.parametrize("name", ["sigmoid", "aot"])
def test_a_mesh_has_the_loss_of_one_device(name, pairs):
    model, params, other, windows = pairs
    batch = batch_of(list(windows(range(6))) * 4)
    batch = {field: value[:4] for field, value in batch.items()}
    want = loss_of(name, model, params, other, batch)
    mesh = make_mesh("data:2,fsdp:2,context:2")
    with jax.set_mesh(mesh):
        places = shardings(model.specs(), mesh, RULES)
        placed = place_batch(batch, mesh, RULES, 4)
        on_mesh = [jax.device_put(one, places) for one in (params, other)]
        got = loss_of(name, model, *on_mesh, placed)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert got[1] == want[1]


@pytest.mark.parametrize(
    ("arg", "refused"),
    [("task=bco_pair", True), ("task=aot", True), ("task=kto", True)]
    + [("task=dpo", False), ("task=apo_zero_unpaired", False)],
)
def test_a_loss_that_compares_answers_refuses_micro_batches(arg, refused):
    e = experiment("posttrain", arg, **{"train.accumulate": 2, "data.batch_size": 16})
    objective = objective_without_data(e)
    if refused:
        with pytest.raises(ValueError, match="train.accumulate=2 cuts a batch whose texts"):
            make_program(e, objective)
        e = replace(e, train=replace(e.train, accumulate=1))
    make_program(e, objective)


REFUSED = {
    "unknown": ({"preference_loss": "dpo"}, "choose one of sigmoid"),
    "smoothing": ({"preference_loss": "ipo", "label_smoothing": 0.1}, "ipo does not use it"),
    "half": ({"preference_loss": "robust", "label_smoothing": 0.5}, "under 0.5"),
    "gamma": ({"gamma": 1.0}, "sigmoid does not use it"),
    "beta": ({"beta": 0.0}, "above 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_without_effect_or_out_of_range_is_refused(case):
    changed, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        PreferenceConfig(**changed)
