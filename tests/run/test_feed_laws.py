"""The laws of `research.run.feed.Feed`, over every feed there is."""

import importlib
import json
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import research.run
from research.objectives.causal_lm import CausalLM
from research.objectives.policy import Policy
from research.run.feed import Feed
from research.run.repeated_feed import RepeatedFeed
from research.run.rollout_feed import RolloutFeed, Sampling
from research.run.watched_feed import WatchedFeed
from research.run.window_feed import WindowFeed

LENGTH, ROWS = 8, 4


class Windows(Sequence):
    """Twelve windows of tokens that say which they are."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        tokens = np.arange(LENGTH + 1, dtype=np.int32) + 100 * index
        ones = np.ones(LENGTH + 1, np.int32)
        return {"tokens": tokens, "segments": ones, "positions": np.arange(LENGTH + 1)}


def sampled(state, number):
    """Two batches of texts that say which they are, and of which state."""
    windows = []
    for index in range(2 * ROWS):
        window = Windows()[100 * number + index]
        beside = np.full(LENGTH + 1, state.trainable["count"], np.float32)
        windows.append(window | {"assistant": window["segments"], "logprobs": beside})
    return Sampling(windows, {"reward": 0.5}, [("1+1=", "2")])


FEEDS = {
    WindowFeed: lambda: WindowFeed(Windows(), CausalLM(), seed=3, batch_size=ROWS, threads=1),
    RolloutFeed: lambda: RolloutFeed(sampled, Policy(), ROWS, updates=2, staleness=1),
    WatchedFeed: lambda: WatchedFeed(
        WindowFeed(Windows(), CausalLM(), seed=3, batch_size=ROWS, threads=1), nullcontext
    ),
    RepeatedFeed: lambda: RepeatedFeed({"inputs": np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)}),
}


def test_every_feed_of_the_package_is_listed_here():
    # Not all modules: some define flags, which another test's command may have defined already.
    for file in Path(research.run.__path__[0]).glob("*.py"):
        if "(Feed)" in file.read_text():
            importlib.import_module(f"research.run.{file.stem}")
    assert set(Feed.__subclasses__()) == set(FEEDS)


def taken(feed, count, first=0):
    """So many (step, batch) pairs, the first for the state that has counted to `first`."""
    return [offered(feed, first + number) for number in range(count)]


def offered(feed, number=0):
    """The next batch, for a state that has counted to a number."""
    feed.offer(SimpleNamespace(trainable={"count": np.float32(number)}))
    return next(feed)


@pytest.mark.parametrize("make", FEEDS.values(), ids=lambda make: type(make()).__name__)
def test_steps_count_up_from_where_it_begins_and_batches_keep_their_shapes(make):
    for first in (0, 5):
        with make() as feed:
            feed.begin(first, {})
            pairs = taken(feed, 4)
        assert [step for step, _ in pairs] == list(range(first, first + 4))
        shapes = [{name: (x.shape, x.dtype) for name, x in batch.items()} for _, batch in pairs]
        assert shapes == shapes[:1] * 4
        assert all(len(x) == ROWS for x in pairs[0][1].values())


@pytest.mark.parametrize("make", FEEDS.values(), ids=lambda make: type(make()).__name__)
def test_a_feed_goes_on_from_its_saved_state_with_the_same_bits(make):
    with make() as whole:
        whole.begin(0, {})
        taken(whole, 3)
        state = json.loads(json.dumps(whole.state()))
        rest = taken(whole, 4, first=3)
    with make() as resumed:
        resumed.begin(3, state)
        again = taken(resumed, 4, first=3)
    for (step, batch), (other_step, other) in zip(rest, again):
        assert step == other_step
        assert batch.keys() == other.keys()
        assert all(np.array_equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("make", FEEDS.values(), ids=lambda make: type(make()).__name__)
def test_closing_twice_is_nothing(make):
    feed = make()
    feed.begin(0, {})
    offered(feed)
    feed.close()
    left = set(threading.enumerate())
    feed.close()
    assert set(threading.enumerate()) <= left  # Grain's own thread may still be ending


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_feed_of_rollouts_bounds_the_age_of_its_weights(staleness):
    feed = RolloutFeed(sampled, Policy(), ROWS, updates=2, staleness=staleness)
    feed.begin(0, {})
    for step in range(8):
        batch = offered(feed, step)[1]
        # The count that the state had is what `sampled` writes: the weights' own version.
        [version] = np.unique(batch["sampled"])
        assert version == max(0, (step // 2 - staleness) * 2)
        assert feed.values()["age"] == step - version <= 2 * staleness + 1


def test_processes_have_the_rows_of_one_between_them_and_save_the_same():
    feeds = [RolloutFeed(sampled, Policy(), ROWS, 2, 0, part) for part in ((0, 1), (0, 2), (1, 2))]
    for feed in feeds:
        feed.begin(0, {})
    [(_, whole), *parts] = [offered(feed) for feed in feeds]
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for _, part in parts]), rows)
    assert all(feed.state() == feeds[0].state() for feed in feeds)


def test_saved_texts_that_are_too_old_now_are_written_anew(caplog):
    stale = RolloutFeed(sampled, Policy(), ROWS, updates=1, staleness=2)
    stale.begin(0, {})
    taken(stale, 4)
    strict = RolloutFeed(sampled, Policy(), ROWS, updates=1, staleness=1)
    strict.begin(4, json.loads(json.dumps(stale.state())))
    assert "2 saved samplings are older than objective.staleness=1" in caplog.text
    assert np.unique(offered(strict, 4)[1]["sampled"]) == 4 and strict.values()["age"] == 0


def test_a_window_feed_gives_nothing_before_it_begins():
    with pytest.raises(RuntimeError, match="begin"):
        next(FEEDS[WindowFeed]())
