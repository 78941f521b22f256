"""On-policy distillation: the divergence from a teacher at what the student wrote and nowhere else,
and a run that comes nearer to its teacher."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.model import Model
from research.models.spec import initialize
from research.objectives.divergence import divergence
from research.objectives.on_policy_distillation import OnPolicyConfig, OnPolicyDistillation
from research.run import loop
from research.run.loop import train
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES, VOCAB

DEEPER = replace(FAMILIES["llama2_7b"], layers=3, d_ff=48)


def setup(**settings):
    """(objective, model, params, held, batch [2, 8] of which 3 and 2 tokens were written)."""
    model = Model(FAMILIES["llama2_7b"])
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    teacher = initialize(jax.random.key(1), Model(DEEPER).specs(), jnp.float32)
    objective = OnPolicyDistillation.make(OnPolicyConfig(teacher="a", **settings), None)
    rng = np.random.default_rng(0)
    rows = []
    for start, stop in ((4, 7), (2, 4)):
        window = {"tokens": rng.integers(1, VOCAB, 9, dtype=np.int32)}
        window["segments"] = (np.arange(9) < stop).astype(np.int32)
        window["positions"] = np.arange(9, dtype=np.int32)
        window["assistant"] = ((np.arange(9) >= start) & (np.arange(9) < stop)).astype(np.int32)
        rows.append(objective.example(window, rng))
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    held = {"base": {}, "teacher": teacher}
    return replace(objective, teacher=DEEPER), model, params, held, batch


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_divergence_at_the_written_tokens(weight):
    objective, model, params, held, batch = setup(divergence=weight, temperature=2.0)
    total, count, totals = jax.jit(lambda p: objective.loss(model, p, held, batch, None))(params)
    logits = model.logits(params, model.hidden(params, batch)[0])
    other = replace(model, config=DEEPER)
    teacher = other.logits(held["teacher"], other.hidden(held["teacher"], batch)[0])
    apart = divergence(logits, teacher, weight, 2.0)
    # A token's distribution is at the place before it.
    wanted = float(apart[0, 3:6].sum() + apart[1, 1:3].sum())
    assert float(count) == 5 and float(totals["kl"][0]) == pytest.approx(wanted, rel=1e-5)
    assert float(total) == pytest.approx(4 * wanted, rel=1e-5)


def test_nothing_but_what_was_written_has_a_gradient():
    objective, model, params, held, batch = setup(divergence=1.0)
    rest = 1 - batch["weights"]

    @jax.jit
    def gradients(targets):
        changed = {**batch, "targets": targets}

        def loss(params, teacher):
            return objective.loss(model, params, {**held, "teacher": teacher}, changed, None)[0]

        return jax.grad(loss, argnums=(0, 1))(params, held["teacher"])

    targets = batch["targets"]
    others = jnp.where(rest > 0, (targets + 1) % VOCAB, targets)
    (own, teachers), (same, _) = gradients(targets), gradients(others)
    jax.tree.map(np.testing.assert_array_equal, own, same)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(own))
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(teachers))


@pytest.mark.slow
def test_a_run_comes_nearer_to_its_teacher_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    shape = replace(FAMILIES["llama3_405b"], vocab_size=320, max_length=64)
    save_checkpoint(tmp_path / "teacher", shape)
    changes = {
        "objective.teacher": str(tmp_path / "teacher"),
        **{"objective.max_tokens": 4, "objective.rewards": "length,exact_match"},
        **{"data.sequence_length": 12, "data.batch_size": 8, "optimizer.learning_rate": 1e-2},
        **{"train.steps": 12, "train.sample_tokens": 0, "optimizer.warmup_steps": 0},
        **{"model.layers": 1, "train.eval_every": 0},
    }
    e = experiment("compress", "task=on_policy,smoke", **changes)
    train(e, tmp_path / "whole", live=False)
    divergences = kl(tmp_path / "whole")
    assert len(divergences) == 12 and divergences[-1] < divergences[0] / 2
    take, calls = loop.take_step, []

    def dies(program, state, feed):
        calls.append(feed)
        if len(calls) == 6:
            raise Killed
        return take(program, state, feed)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dies)
        with pytest.raises(Killed):
            train(e, tmp_path / "cut", live=False)
    train(e, tmp_path / "cut", live=False)
    assert kl(tmp_path / "cut")[-9:] == divergences[-9:]


class Killed(BaseException):
    """A process that ends without a word."""


def kl(workdir):
    """The divergence of each step that is on record."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["kl"] for row in lines if "loss" in row]
