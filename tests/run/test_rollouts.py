"""Runs that learn from the texts they write: rollouts, rewards, and a resume at any point."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from research import command
from research.experiment.config import make_experiment
from research.run import loop
from research.run.loop import train
from tests.configs import load_config

TINY = {
    "model": {
        **{"vocab_size": 300, "layers": 1, "d_model": 16, "d_ff": 32, "heads": 2, "kv_heads": 2},
        **{"head_size": 8, "max_length": 16},
    },
    "data": {
        **{"source": "addition", "tokenizer": "bytes", "sequence_length": 12, "batch_size": 8},
    },
    "objective": {"name": "policy", "samples": 4, "max_tokens": 4, "rewards": "length"},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
    "precision": {"compute": "float32"},
    "train": {"steps": 4, "log_every": 1, "eval_batches": 2},
    "checkpoint": {"every": 1},
}


def experiment(**objective):
    values = {**TINY, "objective": {**TINY["objective"], **objective}}
    return make_experiment(values)


def rows(workdir: Path) -> list[dict]:
    """The training rows without what depends on the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    clocks = {"seconds", "tokens_per_second", "rollout_share"}
    return [{n: v for n, v in row.items() if n not in clocks} for row in lines if "loss" in row]


class Killed(BaseException):
    """A process that ends without a word."""


@pytest.mark.parametrize(
    ("loss", "staleness"),
    [
        ("dapo", 0),
        pytest.param("dapo", 1, marks=pytest.mark.slow),
        pytest.param("ppo", 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_between_sampling_and_step_resumes_to_the_same_bits(
    loss, staleness, tmp_path, monkeypatch
):
    settings = {"policy_loss": loss, "staleness": staleness}
    e = experiment(updates=2, rewards="length,exact_match", **settings)
    whole = train(e, tmp_path / "whole", live=False)
    take, calls = loop.take_step, []

    def dies(program, state, feed):
        feed.offer(state)  # the texts of step 3 are written, and lost
        calls.append(feed)
        if len(calls) == 4:
            raise Killed
        return take(program, state, feed)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dies)
        with pytest.raises(Killed):
            train(e, tmp_path / "cut", live=False)
    resumed = train(e, tmp_path / "cut", live=False)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") and len(rows(tmp_path / "cut")) == 4
    assert resumed.metrics["loss"] == whole.metrics["loss"]


def test_what_a_run_tells(tmp_path, capsys):
    result = train(experiment(policy_loss="grpo", kl_weight=0.1), tmp_path / "run", live=False)
    [first, *others] = rows(tmp_path / "run")
    names = {"loss", "reward", "kl", "entropy", "length", "clipped", "rollout_logprob_difference"}
    assert names | {"truncated", "constant_groups", "unrewarded"} <= set(first)
    # The model is its own reference before the first step.
    assert abs(first["kl"]) < 1e-9 and first["clipped"] == 0
    # float32, one token at a time against all at once: some 1e-7 of logits near 1.
    assert all(row["rollout_logprob_difference"] <= 1e-6 for row in (first, *others))
    before = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert before["step"] == 0 and "eval/reward" in before
    assert 0 < result.metrics["rollout_share"] < 1
    said = (tmp_path / "run" / "samples.txt").read_text()
    assert "[reward " in said
    assert "prompts" in capsys.readouterr().err
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f"{name} <small>" in page for name in ("reward", "kl", "entropy", "length"))


@pytest.mark.slow
def test_training_divides_by_the_temperature_of_sampling(tmp_path):
    train(experiment(temperature=0.5, kl_weight=0.1), tmp_path / "run", live=False)
    first = rows(tmp_path / "run")[0]
    # Twice the logits of a run at temperature 1; without the division they are some 0.1 apart.
    assert first["rollout_logprob_difference"] <= 2e-6 and abs(first["kl"]) < 1e-9


def test_a_difference_above_the_limit_stops_the_run(tmp_path):
    with pytest.raises(command.Stop, match="differ by .* nats, over config.objective.logprob"):
        train(experiment(logprob_limit=0.0), tmp_path / "run", live=False)


def refusing(prompt, completion, record):
    """A reward that says itself what to mend."""
    raise ValueError("the record has no grade")


def test_a_reward_that_fails_ends_the_run_in_a_line(tmp_path):
    line = r"the run failed: reward \S+refusing on record \S+ raised ValueError: the record has no"
    with pytest.raises(command.Stop, match=line) as stopped:
        train(experiment(rewards=f"{__name__}.refusing"), tmp_path / "run", live=False)
    # With a cause there would be a traceback above the line.
    assert stopped.value.code == command.BUG and stopped.value.__cause__ is None


@pytest.mark.slow
def test_a_reward_that_is_easily_had_is_had(tmp_path):
    e = experiment(rewards="length")
    e = replace(e, train=replace(e.train, steps=40), data=replace(e.data, batch_size=32))
    e = replace(e, optimizer=replace(e.optimizer, learning_rate=0.03, schedule="constant"))
    train(e, tmp_path / "run", live=False)
    lengths = [row["reward"] for row in rows(tmp_path / "run")]
    assert np.mean(lengths[-5:]) > 1.5 * np.mean(lengths[:5])


@pytest.mark.parametrize("task", ["grpo", "cispo,model=addition", "rloo,method=full"])
def test_the_recipe_is_one_for_rewards(task):
    config = load_config("posttrain", f"task={task},smoke")
    assert config.objective.policy_loss == task.partition(",")[0]
    # The prompts of a sum are seven tokens, and five may follow.
    assert config.data.sequence_length + 1 - config.objective.max_tokens >= 7


@pytest.mark.parametrize(("method", "rate", "rank"), [("lora", 5e-4, 8), ("full", 5e-5, 16)])
def test_a_pretrained_model_gets_sums_in_tags(method, rate, rank):
    config = load_config("posttrain", f"task=grpo,method={method}")
    assert config.data.source == "tagged_addition"
    # A rank that full tuning does not read has to stay as it was.
    assert (config.optimizer.learning_rate, config.lora.rank) == (pytest.approx(rate), rank)
    own = load_config("posttrain", f"task=grpo,method={method},data=tasks.jsonl")
    assert own.objective.rewards == "exact_match" and own.data.sequence_length == 256


@pytest.mark.parametrize(
    ("objective", "section", "values", "line"),
    [
        ({"samples": 3}, "data", {}, "no whole number of prompts with objective.samples=3"),
        ({"max_tokens": 9}, "data", {}, "has 7 tokens, and data.sequence_length=12 leaves 4"),
        ({}, "model", {"dropout": 0.1}, "dropout makes log-probabilities in training others"),
        ({"rewards": "exact"}, "data", {}, "no reward 'exact'; the nearest is 'exact_match'"),
        ({}, "data", {"source": "stdlib"}, "are texts, and the objective reads prompts"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    objective, section, values, line, tmp_path
):
    e = experiment(**objective)
    e = replace(e, **{section: replace(getattr(e, section), **values)})
    with pytest.raises(ValueError, match=line):
        train(e, tmp_path / "run", live=False)


@pytest.mark.slow
def test_either_engine_samples_the_same_texts(tmp_path):
    found = []
    for engine in ("batch", "pages"):
        train(experiment(engine=engine), tmp_path / engine, live=False)
        made = rows(tmp_path / engine)
        found.append([(row["reward"], row["length"], row["truncated"]) for row in made])
        # Of logits near 1 in float32.
        assert max(row["rollout_logprob_difference"] for row in made) <= 1e-5
    assert found[0] == found[1]
