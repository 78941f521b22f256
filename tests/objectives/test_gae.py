"""Advantages over a value head: Stable-Baselines3's numbers, the definition, and PPO's loss."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.experiment.config import make_experiment
from research.interop.load import open_checkpoint
from research.interop.restored import restore_run
from research.interop.runs import left_out
from research.models.model import Model
from research.models.spec import initialize
from research.objectives.gae import advantages_of_values
from research.objectives.policy import VALUE, Policy
from research.objectives.policy_config import PolicyConfig
from research.parallel.mesh import make_mesh, place_batch
from research.run.loop import train
from tests.objectives.test_policy import MODEL, loss_of, packed, params, policy, text
from tests.run.test_rollouts import TINY, rows

# What RolloutBuffer of stable-baselines3 2.9.2 makes of an episode of nine steps with these values,
# whose last step alone is rewarded; by gamma and lambda, to six digits.
VALUES = [0.001, 0.299, -0.274, -0.891, -0.455, -0.992, 0.06, 1.34, -0.492]
REWARD = 0.7
THEIRS = {
    (1.0, 0.95): [
        *[0.399612, 0.10696, 0.715747, 1.402891, 1.01778, 1.636611, 0.61538, -0.6996, 1.192],
    ],
    (0.9, 0.8): [
        *[-0.067023, -0.465448, 0.111322, 0.887808, 0.564316, 1.391828, 0.480317, -0.92456, 1.192],
    ],
    (1.0, 1.0): [0.699, 0.401, 0.974, 1.591, 1.155, 1.692, 0.64, -0.64, 1.192],
    (0.97, 0.0): [
        *[0.28903, -0.56478, -0.59027, 0.44965, -0.50724, 1.0502, 1.2398, -1.81724, 1.192],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("discount", "decay"), THEIRS)
def test_advantages_are_those_of_stable_baselines(discount, decay):
    size = len(VALUES)
    # The text stands behind a prompt of two tokens, and another text and padding behind it.
    values = np.concatenate([[9.0, 9.0], VALUES, [5.0, 5.0, 7.0]])
    written = np.concatenate([[0, 0], np.ones(size), [0, 1, 0]])
    segments = np.repeat([1, 2, 0], [2 + size, 2, 1])
    rewards = np.where(segments == 1, REWARD, 4.0)
    got = advantages_of_values(
        jnp.float32(values)[None], jnp.float32(rewards)[None], jnp.float32(written)[None],
        jnp.asarray(segments)[None], discount, decay,
    )[0]  # fmt: skip
    np.testing.assert_allclose(got[2 : 2 + size], THEIRS[discount, decay], atol=2e-6)
    # A text of one token: its reward less its value. Nothing where nobody wrote.
    np.testing.assert_allclose(got[2 + size :], [0, 4.0 - 5.0, 0], atol=1e-6)
    assert not np.any(got[:2])


def test_tokens_between_those_that_are_written_are_passed_over():
    """As of a conversation, in which others speak between the model's turns."""
    rng = np.random.default_rng(0)
    written = rng.random(20) < 0.6
    values = rng.normal(size=20)
    got = advantages_of_values(
        jnp.float32(values)[None], jnp.full((1, 20), REWARD), jnp.float32(written)[None],
        jnp.ones((1, 20), int), 0.9, 0.8,
    )[0]  # fmt: skip
    own = [*values[written], 0.0]
    surprises = [0.9 * after - now for now, after in pairwise(own)]
    surprises[-1] += REWARD
    expected = [
        sum((0.9 * 0.8) ** k * later for k, later in enumerate(surprises[t:]))
        for t in range(len(surprises))
    ]
    np.testing.assert_allclose(got[written], expected, atol=1e-5)


def test_a_mesh_that_splits_rows_and_tokens_changes_nothing():
    rng = np.random.default_rng(1)
    values, rewards = rng.normal(size=(2, 4, 16)).astype(np.float32)
    weights = (rng.random((4, 16)) < 0.7).astype(np.float32)
    segments = np.sort(rng.integers(1, 4, (4, 16)), axis=1).astype(np.int32)
    batch = {"values": values, "rewards": rewards, "weights": weights, "segments": segments}
    alone = advantages_of_values(*map(jnp.asarray, batch.values()), 0.9, 0.8)
    mesh = make_mesh("data:2,context:2", jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = place_batch(batch, mesh, MODEL.rules, 4)
        several = jax.jit(lambda *of: advantages_of_values(*of, 0.9, 0.8))
        spread = several(*(placed[name] for name in batch))
    assert spread.sharding == placed["weights"].sharding
    np.testing.assert_allclose(spread, alone, atol=1e-6)


def with_head(kernel: float = 0.02):
    """The model's parameters with a value head that sees something."""
    specs = Policy.own_specs(PolicyConfig(policy_loss="ppo"), MODEL.config)
    head = initialize(jax.random.key(0), specs, "float32")
    waves = kernel * jnp.sin(jnp.arange(MODEL.config.d_model, dtype=jnp.float32))[:, None]
    return {**params(), VALUE: {**head[VALUE], "kernel": waves}}


def test_the_loss_is_the_clipped_one_with_half_the_squared_error_of_the_values():
    window = text(2)
    objective = policy(policy_loss="ppo", value_weight=0.5, gae_decay=0.9)
    total, count, totals = loss_of(objective, [window], with_head)
    row = objective.example(window, np.random.default_rng(0))
    batch = {name: jnp.asarray(values)[None] for name, values in row.items()}
    hidden = MODEL.hidden(params(), batch)[0]
    values = (hidden @ with_head()[VALUE]["kernel"])[:, :, 0]
    of = batch["advantages"], batch["weights"], batch["segments"]
    better = advantages_of_values(values, *of, 1.0, 0.9)
    missed = jnp.sum(better**2 * batch["weights"]) / 2  # V - (A + V)
    plain = loss_of(
        policy(policy_loss="bnpo"), [{**window, "advantages": np.append([0], better[0])}]
    )
    assert float(total) == pytest.approx(float(plain[0] + 0.5 * missed), rel=1e-5)
    assert [float(x) for x in totals["value_loss"]] == pytest.approx(
        [float(missed), float(count)], rel=1e-5
    )
    assert float(totals["value"][0]) == pytest.approx(
        float(jnp.sum(values * batch["weights"])), rel=1e-5
    )


def test_packed_texts_have_the_loss_of_padded_ones():
    objective, one, two = policy(policy_loss="ppo"), text(1), text(3)
    padded = jax.tree.leaves(loss_of(objective, [one, two], with_head))
    joined = jax.tree.leaves(loss_of(objective, [packed(one, two)], with_head))
    np.testing.assert_allclose(padded, joined, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gae_decay": 0.9}, "gae_decay=0.9 is of the advantage 'gae'.*'group'"),
        ({"discount": 0.9, "policy_loss": "rloo"}, "discount=0.9 is of"),
        ({"value_weight": -1.0, "policy_loss": "ppo"}, "value_weight=-1.0 must be"),
        ({"gae_decay": 1.1, "policy_loss": "ppo"}, "gae_decay=1.1 must be in 0..1"),
        ({"discount": float("nan"), "policy_loss": "ppo"}, "discount=nan must be in 0..1"),
        ({"samples": 1, "policy_loss": "grpo"}, "samples=1"),
        ({"samples": 0, "policy_loss": "ppo"}, "samples=0 must be 1"),
    ],
)
def test_settings_that_change_nothing_or_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PolicyConfig(**{"policy_loss": "grpo", **settings})


@pytest.mark.slow
@pytest.mark.parametrize("tune", [{}, {"method": "lora"}], ids=["full", "lora"])
def test_a_run_trains_its_head_and_leaves_a_model_without_one(tune, tmp_path):
    # One text a prompt, of which no other loss could learn.
    settings = {**TINY["objective"], "policy_loss": "ppo", "samples": 1}
    e = make_experiment({**TINY, "objective": settings, "tune": tune})
    train(e, tmp_path / "run", live=False)
    first, *_, last = rows(tmp_path / "run")
    assert "constant_groups" not in first  # with one text a prompt all are
    assert "advantage" not in (tmp_path / "run" / "samples.txt").read_text()
    assert first["value"] == 0 and abs(last["value"]) > 1e-4 and first["value_loss"] > 0
    run = restore_run(tmp_path / "run", open_checkpoint)
    if not tune:
        assert "value head" in left_out(open_checkpoint(tmp_path / "run"))[0]
    assert run.step == 4 and set(run.params) == set(Model(e.model).specs())
