"""The losses of the objective `policy`: TRL's values, and what cannot change a loss."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.model import Model
from research.models.spec import initialize
from research.objectives.advantages import ADVANTAGES, constant
from research.objectives.next_token import batch_scores
from research.objectives.policy import Policy
from research.objectives.policy_config import PolicyConfig
from research.objectives.policy_losses import LOSSES, Clip, k3, text_mean
from research.parallel.mesh import make_mesh, place_batch
from tests.families import FAMILIES

GOLDENS = json.loads((Path(__file__).parent / "policy_goldens.json").read_text())
MODEL = Model(replace(FAMILIES["llama2_7b"], layers=1, dropout=0.0))
LENGTH, ROWS = 24, 4


def golden_loss(loss: str, average: str, clip: Clip, kl_weight: float) -> float:
    """The loss of the goldens' four texts by the table, averaged here by hand."""
    row = LOSSES[loss]
    logp, reference, mask, sampled = (
        jnp.array(GOLDENS[name]) for name in ("logp", "reference", "mask", "sampled")
    )
    advantages = jnp.array(GOLDENS["advantages"])[:, None] * jnp.ones_like(logp)
    ratio = logp - sampled
    if row.whole_texts:
        ratio = text_mean(ratio, mask, jnp.ones_like(mask))
    costs = row.surrogate(logp, ratio, advantages, clip) + kl_weight * k3(logp, reference)
    sums, lengths = jnp.sum(costs * mask, axis=1), jnp.sum(mask, axis=1)
    means = {
        "token": jnp.sum(sums) / jnp.sum(lengths),
        "text": jnp.mean(sums / lengths),
        "constant": jnp.mean(sums / mask.shape[1]),
    }
    return float(means[average])


@pytest.mark.parametrize(
    ("golden", "loss", "average", "clip"),
    [
        ("grpo/token/0.0", "grpo", "text", Clip(0.2, 0.2)),
        ("grpo/token/0.04", "grpo", "text", Clip(0.2, 0.2)),
        ("bnpo/token/0.0", "bnpo", "token", Clip(0.2, 0.2)),
        ("dr_grpo/token/0.0", "dr_grpo", "constant", Clip(0.2, 0.2)),
        ("dapo/token/0.0", "dapo", "token", Clip(0.2, 0.2)),
        ("cispo/token/0.0", "cispo", "token", Clip(0.0, 5.0)),
        ("sapo/token/0.0", "sapo", "text", Clip(0.2, 0.2)),
        ("grpo/sequence/0.0", "gspo", "text", Clip(0.2, 0.2)),
    ],
)
def test_losses_are_those_of_trl(golden, loss, average, clip):
    value = golden_loss(loss, average, clip, float(golden.rpartition("/")[2]))
    # Both in float32; the goldens are kept to nine digits.
    assert value == pytest.approx(GOLDENS["losses"][golden], abs=1e-5)


def text(seed: int, length: int = LENGTH) -> dict[str, np.ndarray]:
    names = ("tokens", "segments", "positions")
    window = {name: np.zeros(length + 1, np.int32) for name in names}
    rng = np.random.default_rng(seed)
    size = 8 + seed
    names = ("tokens", "segments", "positions")
    window = {name: np.zeros(length + 1, np.int32) for name in names}
    window["tokens"][:size] = rng.integers(8, 96, size)
    window["segments"][:size] = 1
    window["positions"][:size] = np.arange(size)
    window["assistant"] = (np.arange(length + 1) >= 3) * window["segments"]
    # Near what a model of 96 words gives, so that ratios fall on both sides of the bounds.
    window["logprobs"] = np.float32(-4.6 + 0.3 * rng.normal(size=length + 1))
    window["advantages"] = np.full(length + 1, rng.normal(), np.float32)
    window["group_tokens"] = np.full(length + 1, 5 + seed + 7, np.int32)
    return window


def packed(first: dict, second: dict) -> dict[str, np.ndarray]:
    """Two texts in one window, one after the other."""
    size, other = int(first["segments"].sum()), int(second["segments"].sum())
    window = {}
    for name, values in first.items():
        window[name] = values.copy()
        window[name][size : size + other] = second[name][:other]
    window["segments"][size : size + other] = 2
    return window


@cache
def params():
    return jax.tree.map(lambda w: w * 3, initialize(jax.random.key(0), MODEL.specs(), jnp.float32))


def loss_of(objective: Policy, windows, weights=params):
    """(sum, count, totals) of windows as one batch."""
    rng = np.random.default_rng(0)
    rows = [objective.example(window, rng) for window in windows]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    held = {"base": {}, **{name: params() for name in objective.holds}}
    return jax.jit(lambda p, b: objective.loss(MODEL, p, held, b, None))(weights(), batch)


def policy(**settings) -> Policy:
    return Policy.make(PolicyConfig(**settings), None)


SOME = ("dapo", "gspo", "cispo")  # each surrogate and average but those of one token alone
# Those without a value head, which tests/objectives/test_gae.py has.
GROUPS = [name for name, row in LOSSES.items() if row.advantage != "gae"]


@pytest.mark.parametrize(
    "name",
    [one if one in SOME else pytest.param(one, marks=pytest.mark.slow) for one in GROUPS],
)
def test_packed_texts_have_the_loss_of_padded_ones(name):
    objective = policy(policy_loss=name, kl_weight=0.1)
    one, two = text(1), text(3)
    padded, joined = loss_of(objective, [one, two]), loss_of(objective, [packed(one, two)])
    flat = jax.tree.leaves(padded), jax.tree.leaves(joined)
    # Sums of float32 in another order.
    np.testing.assert_allclose(flat[0], flat[1], rtol=2e-5, atol=2e-5)
    assert abs(float(padded[0])) > 1e-3


def test_a_mesh_changes_no_loss():
    objective = policy(policy_loss="gspo", kl_weight=0.1)
    windows = [text(seed) for seed in range(ROWS)]
    alone = jax.tree.leaves(loss_of(objective, windows))
    mesh = make_mesh("fsdp:2,tensor:2", jax.devices()[:4])
    rng = np.random.default_rng(0)
    rows = [objective.example(window, rng) for window in windows]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    with jax.set_mesh(mesh):
        made = initialize(jax.random.key(0), MODEL.specs(), jnp.float32, mesh, MODEL.rules)
        held = {"base": {}, "reference": jax.tree.map(lambda w: w * 3, made)}
        placed = place_batch(batch, mesh, MODEL.rules, ROWS)
        spread = jax.jit(lambda p, h, b: objective.loss(MODEL, p, h, b, None))(
            held["reference"], held, placed
        )
    # Devices add float32 numbers in another order.
    np.testing.assert_allclose(jax.tree.leaves(spread), alone, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["grpo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gspo", "cispo", "rloo"))]
)
def test_on_policy_the_gradient_is_that_of_advantage_times_log_probability(name):
    objective = policy(policy_loss=name, average="token")
    windows = [text(seed) for seed in range(2)]
    batch = [objective.example(w, np.random.default_rng(0)) for w in windows]
    batch = {field: np.stack([row[field] for row in batch]) for field in batch[0]}
    logp = jax.jit(lambda p: batch_scores(MODEL, p, batch)[0].logp)
    batch["sampled"] = np.asarray(logp(params()))

    def plain(p):
        means = jnp.sum(batch["weights"], axis=1, keepdims=True)
        each = batch_scores(MODEL, p, batch)[0].logp * batch["weights"]
        # The ratio of a text is a mean over its tokens, and so is its gradient.
        each = jnp.sum(each, axis=1, keepdims=True) / means if name == "gspo" else each
        return -jnp.sum(each * batch["advantages"] * batch["weights"])

    ours = jax.grad(lambda p: objective.loss(MODEL, p, {"base": {}}, batch, None)[0])(params())
    wanted = jax.grad(plain)(params())
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted)):
        # Two orders of the same sums in float32, of gradients near 1.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_divergence_is_never_negative_and_zero_for_one_model():
    logp = jnp.array(GOLDENS["logp"])
    assert float(jnp.min(k3(logp, jnp.array(GOLDENS["reference"])))) >= 0
    assert float(jnp.max(jnp.abs(k3(logp, logp)))) == 0


REWARDS = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, np.nan, 1.0], [np.nan, np.nan, 1.0]])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("centred", [[-1, 0, 1], [0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]]),
        ("leave_one_out", [[-1.5, 0, 1.5], [0, 0, 0], [-1, 0, 1], [0, 0, 0]]),
        ("group", [[-0.9999, 0, 0.9999], [0, 0, 0], [-0.707, 0, 0.707], [0, 0, 0]]),
        # The deviation of the nine rewards that are there is 0.6009.
        ("batch", [[-1.6638, 0, 1.6638], [0, 0, 0], [-0.8319, 0, 0.8319], [0, 0, 0]]),
    ],
)
def test_a_text_without_a_reward_is_in_no_mean(name, wanted):
    np.testing.assert_allclose(ADVANTAGES[name](REWARDS), wanted, atol=2e-4)
    np.testing.assert_array_equal(constant(REWARDS), [False, True, False, True])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"samples": 1}, "samples=1"),
        ({"policy_loss": "grop"}, "grpo"),
        ({"average": "mean"}, "prompt"),
        ({"clip_low": float("nan")}, "clip_low"),
        ({"updates": 0}, "updates=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings, line):
    with pytest.raises(ValueError, match=line):
        PolicyConfig(**settings)
