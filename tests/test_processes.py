"""Processes on loopback train what one process trains, on any mesh, and resume what another number
of them saved."""

import json

import numpy as np
import pytest

from research.training.metrics import read_rows
from tests.job import finish, start

CONFIG = """
from configs import quickstart

def get_config(arg=""):
    config = quickstart.get_config(arg)
    config.evals = {"license": {"kind": "perplexity", "text": "LICENSE", "window": 64}}
    return config
"""


STEPS = ("optimizer.schedule=constant", "optimizer.warmup_steps=2", "checkpoint.every=4")


def losses(workdir, name="loss") -> dict[int, float]:
    rows = read_rows(workdir / "metrics.jsonl")
    return {row["step"]: row[name] for row in rows if name in row}


@pytest.mark.slow
def test_two_and_four_processes_are_one(tmp_path):
    (tmp_path / "scored.py").write_text(CONFIG)
    mesh = ("mesh=fsdp:2,tensor:2", "train.eval_every=4", *STEPS)
    for name, processes, steps in (("one", 1, 8), ("more", 2, 4), ("more", 4, 8)):
        job = start(
            tmp_path / name,
            processes,
            f"train.steps={steps}",
            *mesh,
            config=f"{tmp_path}/scored.py:smoke",
        )
        for code, errors in finish(job):
            assert code == 0, errors
    one, more = losses(tmp_path / "one"), losses(tmp_path / "more")
    assert list(more) == list(one) == list(range(1, 9))
    # The same devices and examples; only the order of a sum over processes may differ.
    np.testing.assert_allclose(list(more.values()), list(one.values()), rtol=1e-6)
    # At step 4 one run was at its end and took all held-out data, the other was on its way.
    for name, steps in (("eval/license/nll_per_token", (4, 8)), ("eval/loss", (8,))):
        one, more = losses(tmp_path / "one", name), losses(tmp_path / "more", name)
        assert list(one) == list(more) == [4, 8]
        np.testing.assert_allclose([more[s] for s in steps], [one[s] for s in steps], rtol=2e-6)
    provenance = json.loads((tmp_path / "more" / "provenance.json").read_text())
    assert provenance["devices"]["processes"] == 2 and provenance["devices"]["count"] == 4
