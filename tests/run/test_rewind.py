"""A run whose updates are bad goes back to its newest checkpoint and past their data, or stops."""

from collections import Counter
from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from research import command
from research.run.loop import train
from research.run.rewind import Rewind, rewound
from research.run.window_feed import WindowFeed
from research.training.metrics import read_rows
from tests.configs import experiment

BAD = (5, 6)  # batches whose loss is NaN
SMALL = {"train.steps": 10, "train.log_every": 1, "train.eval_every": 0, "checkpoint.every": 4}
SMALL |= {"train.sample_tokens": 0, "skip.nonfinite": True, "skip.limit": 2}


@pytest.fixture
def read(monkeypatch):
    """(step, batch) of all that is read, by the batch's place in the data."""
    taken, following = [], WindowFeed.__next__

    def poisoned(feed):
        step, batch = following(feed)
        place = step + feed._ahead
        taken.append((step, place))
        if place in BAD:
            batch["weights"] = np.full(batch["weights"].shape, np.nan, batch["weights"].dtype)
        return step, batch

    monkeypatch.setattr(WindowFeed, "__next__", poisoned)
    return taken


@pytest.mark.slow
def test_a_run_goes_back_and_past_the_bad_batches_and_then_stops_at_them(read, tmp_path):
    e = experiment("quickstart", "smoke", **SMALL, **{"skip.then": "rewind"})
    assert train(e, tmp_path / "rewind", live=False).exit_code == command.DONE
    assert read == [(s, s) for s in range(7)] + [(s, s + 3) for s in range(4, 10)]
    rows = [row for row in read_rows(tmp_path / "rewind" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in rows)

    with pytest.raises(command.Stop, match="2 updates up to step 7 were left out in a row.*rewind"):
        train(experiment("quickstart", "smoke", **SMALL), tmp_path / "stop", live=False)


def test_going_back_for_ever_is_a_failure():
    session = make_dataclass("Session", ["start_step", "feed_state", "experiment"])
    e = SimpleNamespace(
        precision=SimpleNamespace(param="float32", compute="float32"),
        optimizer=SimpleNamespace(clip_norm=None),
    )
    times = Counter()
    assert rewound("untouched", None, times) == "untouched"
    for position in (7, 9, 12):
        moved = rewound(session(4, {"ahead": 1}, e), Rewind(position), times)
        assert moved.feed_state == {"ahead": position - 4}
    with pytest.raises(command.Stop, match="went back to step 4 3 times.*clip_norm"):
        rewound(session(4, {}, e), Rewind(15), times)
