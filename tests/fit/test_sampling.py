"""A run that writes the texts it trains on: its reference and the keys and values of its texts
count."""

import pytest

from research.fit.compile import plan
from research.fit.decode import plan_rollouts
from research.fit.measure import measure
from research.fit.subject import TrainStep
from research.fit.targets import parse_target
from tests.configs import experiment

CPU = parse_target("cpu")


def grpo(**objective):
    changes = {f"objective.{name}": value for name, value in objective.items()}
    return experiment("posttrain", "task=grpo,smoke", **changes)


def test_the_reference_of_a_divergence_is_held():
    plain, beside = (TrainStep(grpo(kl_weight=w), CPU).device_bytes for w in (0.0, 0.1))
    assert plain["frozen"] == 0 and beside["frozen"] == plain["params"] == beside["params"]


def test_texts_of_several_steps_are_written_at_once():
    once, often = (plan_rollouts(plan(grpo(), CPU), CPU, 16 * n) for n in (1, 16))
    # 16 texts of a step; of more than 64 as many at a time.
    assert (once.tokens, often.tokens) == (16, 64)
    assert often.cache_bytes == 4 * once.cache_bytes


@pytest.mark.slow
def test_the_peak_is_that_of_sampling_where_it_is_the_higher_one():
    fit = measure(grpo(updates=4), CPU)
    [line] = fit.notes
    sampled = plan_rollouts(plan(grpo(), CPU), CPU, 64)
    held = fit.params + fit.frozen + fit.optimizer
    assert line.startswith("sampling 64 texts at once takes")
    # A CPU has the parameters a second time, laid out for decoding.
    assert fit.total >= held + sampled.params_bytes + sampled.cache_bytes
