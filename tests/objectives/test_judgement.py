"""Tuning on judgements: the loss of answers, packed, alone and on a mesh."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.files import FileDocuments
from research.data.judgement_windows import judgement_windows
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions
from research.models.model import Model
from research.models.spec import initialize, shardings
from research.objectives.judgement import Judgement, JudgementConfig
from research.objectives.preference_losses import UNPAIRED
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh, place_batch
from tests.data.chat_templates import TEMPLATES, save_tokenizer
from tests.families import FAMILIES

# Of the second a window has one record alone.
PACKED, ALONE = 512, 100
WEIGHTS = {"liked": 1.0, "disliked": 1.33}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(model, parameters, the reference's parameters, windows by length)."""
    folder = tmp_path_factory.mktemp("judged")
    save_tokenizer(folder, TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder)
    rows = [
        {"prompt": f"is {i} even?", "completion": "yes" * (1 + i % 3), "label": i % 2 == 0}
        for i in range(6)
    ]
    file = folder / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = FileDocuments(file, "", folder / "cache", "judgements")

    def windows(length):
        return judgement_windows(documents, WindowOptions(tokenizer, folder, length + 1))

    model = Model(replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size))
    params, other = (
        initialize(jax.random.key(seed), model.specs(), jnp.float32) for seed in (0, 1)
    )
    return model, params, other, windows


def batch_of(windows) -> dict[str, np.ndarray]:
    examples = [Judgement().example(w, np.random.default_rng(0)) for w in windows]
    return {name: np.stack([row[name] for row in examples]) for name in examples[0]}


def loss_of(name, model, params, reference, batch):
    objective = Judgement.make(JudgementConfig(unpaired_loss=name, **WEIGHTS), None)
    held = {"base": {}, "reference": reference}

    def total(params):
        total, count, totals = objective.loss(model, params, held, batch, None)
        return total, (count, totals)

    (value, (count, totals)), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return float(value), float(count), totals, gradients


@pytest.mark.parametrize("name", UNPAIRED)
def test_packed_answers_have_the_loss_and_gradient_of_each_alone(name, judged):
    model, other, params, windows = judged
    packed, alone = (batch_of(windows(length)) for length in (PACKED, ALONE))
    assert len(packed["inputs"]) < len(alone["inputs"]) == 6
    got, want = (loss_of(name, model, params, other, batch) for batch in (packed, alone))
    assert got[1] == want[1] == 6
    assert float(got[2]["kl"][0]) > 0  # else KTO measures from 0
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for g, w in zip(jax.tree.leaves(got[3]), jax.tree.leaves(want[3])):
        np.testing.assert_allclose(g, w, atol=2e-5 * float(np.abs(w).max()) + 1e-6)


def test_a_model_that_is_its_own_reference_has_half_of_the_weights_and_no_margin(judged):
    model, params, _, windows = judged
    value, _, totals, _ = loss_of("kto", model, params, params, batch_of(windows(PACKED)))
    assert value == pytest.approx(3 * sum(WEIGHTS.values()) / 2, rel=1e-6)
    assert all(float(totals[key][0]) == 0 for key in ("margin", "accuracy", "kl"))


def test_a_step_against_the_gradient_makes_what_was_liked_likelier_and_the_rest_less(judged):
    model, params, _, windows = judged
    batch = batch_of(windows(PACKED))
    gradients = loss_of("kto", model, params, params, batch)[3]
    stepped = jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradients)
    assert float(loss_of("kto", model, stepped, params, batch)[2]["margin"][0]) > 0


@pytest.mark.slow
def test_a_mesh_has_the_loss_of_one_device(judged):
    model, params, other, windows = judged
    batch = {name: value[:4] for name, value in batch_of(windows(ALONE)).items()}
    want = loss_of("kto", model, params, other, batch)
    mesh = make_mesh("data:2,fsdp:2,context:2")
    with jax.set_mesh(mesh):
        places = shardings(model.specs(), mesh, RULES)
        placed = place_batch(batch, mesh, RULES, 4)
        got = loss_of("kto", model, *jax.device_put((params, other), (places, places)), placed)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert got[1] == want[1]


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"unpaired_loss": "dpo"}, "choose one of kto"),
        ({"beta": 0.0}, "beta=0.0 must be a number above 0"),
        ({"disliked": float("nan")}, "disliked=nan must be a number above 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        JudgementConfig(**changed)
