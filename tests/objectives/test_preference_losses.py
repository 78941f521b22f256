"""Losses of preference pairs against TRL 1.16's values, and against each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.files import read_json
from research.objectives.preference_losses import (
    LOSSES,
    PreferenceSettings,
    Said,
    preference_loss,
    rewards,
)
from tests.configs import ROOT

# Made with TRL 1.16.0: log-probabilities of four chosen and four rejected answers.
GOLDEN = read_json(ROOT / "tests/objectives/goldens/preference_losses.json")
SMOOTHED = {"exo_pair": 0.1, "robust": 0.1}  # as the values were made
VALUES = GOLDEN["dpo"] | {"cpo": GOLDEN["cpo_sigmoid"]}


def said() -> Said:
    policy, reference, mask = (np.array(GOLDEN[name], np.float32) for name in ("lp", "ref", "mask"))
    sums, beside, tokens = (policy * mask).sum(1), (reference * mask).sum(1), mask.sum(1)
    pairs = len(sums) // 2
    halves = (
        x[half] for x in (sums, beside, tokens) for half in (slice(pairs), slice(pairs, None))
    )
    chosen, rejected, *rest = halves
    return Said(chosen, rejected, *rest, np.ones(pairs, np.float32))


def mean(name: str, said: Said, settings: PreferenceSettings) -> float:
    return float(jnp.mean(preference_loss(name, said, settings)))


def without_reference(said: Said) -> Said:
    return said._replace(reference_chosen=0 * said.chosen, reference_rejected=0 * said.rejected)


@pytest.mark.parametrize("name", [name for name in GOLDEN["dpo"] if name != "bco_pair"])
def test_a_loss_is_that_of_trl(name):
    settings = PreferenceSettings(0.1, SMOOTHED.get(name, 0.0))
    assert mean(name, said(), settings) == pytest.approx(GOLDEN["dpo"][name], rel=1e-5)


def test_losses_without_a_reference_are_those_of_trl():
    bare, two = without_reference(said()), PreferenceSettings(2.0, gamma=1.0)
    assert mean("simpo", bare, two) == pytest.approx(GOLDEN["cpo_simpo"], rel=1e-5)
    assert mean("cpo", bare, two) == pytest.approx(GOLDEN["cpo_sigmoid"], rel=1e-5)
    assert mean("orpo", bare, PreferenceSettings(1.0)) == pytest.approx(GOLDEN["orpo_or"], rel=1e-5)
    assert not any(LOSSES[name].reference for name in ("simpo", "cpo", "orpo"))


def test_bco_measures_rewards_from_their_mean():
    one = said()
    chosen, rejected = (np.asarray(x, np.float64) for x in rewards(one, 0.1))
    level = np.mean([*chosen, *rejected])
    wanted = np.log1p(np.exp(level - chosen)) + np.log1p(np.exp(rejected - level))
    np.testing.assert_allclose(
        preference_loss("bco_pair", one, PreferenceSettings()), wanted, rtol=1e-5
    )


# A model that is its own reference gains nothing on any answer.
AT_REFERENCE = {
    **{name: math.log(2) for name in ("sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired")},
    **{"hinge": 1.0, "ipo": 25.0, "nca_pair": 2 * math.log(2), "bco_pair": 2 * math.log(2)},
    **{"apo_zero": 1.0, "apo_down": 1.0, "sppo_hard": 50.0, "discopop": math.log(2) / 2 + 0.5},
}


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_the_value_at_the_reference(name):
    one = said()
    same = one._replace(reference_chosen=one.chosen, reference_rejected=one.rejected)
    assert mean(name, same, PreferenceSettings()) == pytest.approx(AT_REFERENCE[name], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_against_the_gradient_widens_the_margin_and_a_certain_answer_has_one(name):
    one, settings = said(), PreferenceSettings()

    def loss(chosen, rejected):
        return mean_of(name, one._replace(chosen=chosen, rejected=rejected), settings)

    d_chosen, d_rejected = jax.grad(loss, (0, 1))(one.chosen, one.rejected)
    assert float(jnp.sum(d_rejected - d_chosen)) > 0
    # An answer of probability 1, as the padding of a batch has.
    certain = jax.grad(loss, (0, 1))(0 * one.chosen, 0 * one.rejected)
    assert all(np.isfinite(x).all() for x in certain)


def mean_of(name, said, settings):
    return jnp.mean(preference_loss(name, said, settings))


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].batch])
def test_rows_that_fill_up_a_batch_change_no_pair(name):
    one, settings = said(), PreferenceSettings()
    filled = Said(*(np.insert(x, (1, 3), 0) for x in one))
    kept = np.flatnonzero(filled.weights)
    np.testing.assert_allclose(
        preference_loss(name, filled, settings)[kept],
        preference_loss(name, one, settings),
        rtol=1e-6,
    )
