"""Distillation: divergences of the published losses, in pieces or whole, from a teacher of another
shape, and through rounded weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.model import Model
from research.models.spec import initialize
from research.objectives.distillation import Distillation, DistillationConfig
from research.objectives.divergence import divergence
from research.weights.matrices import LINEAR
from research.weights.rules import quantize
from tests.families import FAMILIES, VOCAB

# TRL's `GKDTrainer.generalized_jsd_loss` at temperature 0.9 on these logits [2, 3, 5], which sums
# over tokens and divides by the two rows.
STUDENT = [
    [
        [0.502682865, 0.989713013, -0.164294586, -1.0743649, 0.873042166],
        [-1.28039396, -0.713068068, 0.621017873, -2.25014114, 0.386369586],
        [-0.58164084, 0.1092797, -0.0757015273, 0.202114388, 0.694171965],
    ],
    [
        [-0.758369744, 1.420982, 0.726093769, 0.843732655, 1.16486394],
        [0.787588239, 0.84407866, 0.0755936131, -1.42677391, -0.135045096],
        [-0.76951462, -1.42274177, 0.258452803, -0.568549454, -1.02980447],
    ],
]
LEARNT_FROM = [
    [
        [-1.04300106, 0.26841709, 0.358671963, 1.32245743, -0.0139146689],
        [1.04183972, 1.40226483, 1.15016568, -2.36530399, 1.22868371],
        [0.339619994, 0.423771352, 0.371227413, 0.382757157, 0.319414228],
    ],
    [
        [-0.358913302, -1.90163529, -0.108914725, -0.803731859, 1.08016336],
        [-0.288766503, 0.0834753588, -0.849605978, -0.510622442, -0.011533062],
        [-1.48537517, 0.300685108, -0.106072254, -1.18571985, -2.39823294],
    ],
]
GKD = {
    0.0: 1.5365098714828491,
    0.1: 0.12803474068641663,
    0.5: 0.31584370136260986,
    0.9: 0.11645852029323578,
    1.0: 1.3545705080032349,
}


@pytest.mark.parametrize("weight", GKD)
def test_divergences_are_those_of_gkd(weight):
    got = divergence(jnp.asarray(STUDENT), jnp.asarray(LEARNT_FROM), weight, 0.9)
    assert float(got.sum()) / 2 == pytest.approx(GKD[weight], abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_student_that_is_its_teacher_is_done(weight):
    logits = 30 * jax.random.normal(jax.random.key(0), (2, 3, 50))
    apart, gradient = jax.value_and_grad(lambda x: jnp.sum(divergence(x, logits, weight, 2.0)))(
        logits
    )
    assert abs(float(apart)) < 1e-5 and float(jnp.abs(gradient).max()) < 1e-5


def setup(**settings):
    """(objective, model, params, held, batch) with a deeper teacher."""
    model = Model(FAMILIES["llama2_7b"])
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    deeper = replace(model.config, layers=3, d_ff=48)
    teacher = initialize(jax.random.key(1), Model(deeper).specs(), jnp.float32)
    objective = Distillation.make(DistillationConfig(teacher="a", **settings), None)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (2, 9))
    window = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    window["weights"] = np.ones((2, 8), np.float32)
    window["weights"][1, 5:] = 0
    window["segments"] = np.ones((2, 8), np.int32)
    window["positions"] = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    batch = {name: jnp.asarray(x) for name, x in window.items()}
    held = {"base": {}, "teacher": teacher}
    return replace(objective, teacher=deeper), model, params, held, batch


def test_the_loss_is_the_definition_and_its_pieces_add_up():
    objective, model, params, held, batch = setup(
        divergence=0.3, temperature=2.0, teacher_weight=0.6
    )
    found = jax.jit(lambda p: objective.loss(model, p, held, batch, None))
    total, count, totals = found(params)
    logits = model.logits(params, model.hidden(params, batch)[0])
    other = replace(model, config=objective.teacher)
    teacher = other.logits(held["teacher"], other.hidden(held["teacher"], batch)[0])
    weights = batch["weights"]
    apart = jnp.sum(divergence(logits, teacher, 0.3, 2.0) * weights)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
    nll = -jnp.sum(logp * weights)
    assert float(count) == 13
    assert float(total) == pytest.approx(float(0.6 * 4 * apart + 0.4 * nll), rel=1e-5)
    assert float(totals["kl"][0]) == pytest.approx(float(apart), rel=1e-5)
    # Four tokens at a time give the same sum and the same gradient.
    in_pieces = replace(model, execution=replace(model.execution, head_tokens=4))

    def loss(params, model):
        return objective.loss(model, params, held, batch, None)[0]

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    whole, pieces = (step(params, one) for one in (model, in_pieces))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, pieces)


def test_no_logits_of_all_tokens_exist_at_once():
    objective, model, params, held, batch = setup(teacher_weight=1.0)
    model = replace(model, execution=replace(model.execution, head_tokens=4))

    def loss(params):
        return objective.loss(model, params, held, batch, None)[0]

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert f"[2,2,{VOCAB}]" in jaxpr  # a piece
    assert f"[2,8,{VOCAB}]" not in jaxpr and f"[4,2,2,{VOCAB}]" not in jaxpr


@pytest.mark.parametrize(
    "format", ["int4", *(pytest.param(f, marks=pytest.mark.slow) for f in ("nf4", "fp8_e4m3"))]
)
def test_a_rounded_student_computes_what_its_codes_do_and_learns_in_floats(format):
    objective, model, params, held, batch = setup(teacher_weight=1.0, rounding=format)
    plain = replace(objective, settings=replace(objective.settings, rounding=""))
    codes = quantize(params, model.specs(), [(LINEAR, format), (".*", None)])
    step = jax.jit(jax.value_and_grad(lambda p: objective.loss(model, p, held, batch, None)[0]))
    total, gradient = step(params)
    assert float(total) == pytest.approx(
        float(plain.loss(model, codes, held, batch, None)[0]), rel=1e-5
    )
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))


def test_a_finished_run_is_measured_without_its_teacher():
    objective, model, params, _, batch = setup()
    total, count, totals = objective.loss(model, params, {"base": {}}, batch, None)
    assert float(total) == float(totals["nll"][0]) and "kl" not in totals
