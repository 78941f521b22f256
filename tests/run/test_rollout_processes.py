"""Processes on loopback write the texts that one process writes, and learn the same from them."""

import numpy as np
import pytest

from research.training.metrics import read_rows
from tests.configs import ROOT
from tests.job import finish, start

# Two steps on each sampling: of the second one half is used at step 3.
CHANGES = ("mesh=data:2", "objective.updates=2", "objective.rewards=length,exact_match")
SMALL = ("model.layers=1", "train.eval_batches=1", "checkpoint.every=100")
# What each row says of the texts and of what was learnt from them.
VALUES = ("loss", "grad_norm", "reward", "entropy", "length", "rollout_logprob_difference")


def values(workdir) -> list[list[float]]:
    rows = read_rows(workdir / "metrics.jsonl")
    return [[row[name] for name in VALUES] for row in rows if "loss" in row]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_resume_between_sampling_and_step(tmp_path):
    for name, processes, steps in (("one", 1, 4), ("two", 2, 3), ("two", 2, 4)):
        job = start(
            *(tmp_path / name, processes, f"train.steps={steps}", *CHANGES, *SMALL),
            devices=2,
            config=f"{ROOT}/configs/posttrain.py:task=grpo,smoke",
        )
        for code, errors in finish(job):
            assert code == 0, errors
    one, two = values(tmp_path / "one"), values(tmp_path / "two")
    assert len(one) == 4 and all(row[VALUES.index("grad_norm")] for row in one)
    # To the bit: a sum over two devices has one order.
    np.testing.assert_array_equal(two, one)
