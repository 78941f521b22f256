"""The loader: the step decides the bits, whatever ran before and however many processes or threads
there are."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from research.data.loader import heldout_batches, train_batches
from research.data.mixture import Mixture
from research.data.packing import PackedWindows
from research.data.tokens import TokenStore


def the_windows(documents=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, documents)
    ids = rng.integers(3, 250, lengths.sum()).astype(np.uint16)
    store = TokenStore(ids, np.concatenate([[0], np.cumsum(lengths)]), lengths, "test")
    return PackedWindows(store, 17, seed=seed, bos_id=1, eos_id=2)


def example(window, rng):
    """A causal example with noise from the generator, as a masked-LM objective would draw it."""
    tokens, segments = window["tokens"], window["segments"]
    weights = ((segments[1:] == segments[:-1]) & (segments[1:] > 0)).astype(np.float32)
    return {
        "inputs": tokens[:-1],
        "targets": tokens[1:],
        "weights": weights,
        "noise": rng.random(3),
    }


def take(count, windows=None, **options):
    options = {"seed": 7, "global_batch": 8} | options
    with train_batches(windows or the_windows(), example, **options) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(got, expected):
    assert [step for step, _ in got] == [step for step, _ in expected]
    for (_, a), (_, b) in zip(got, expected):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_is_the_examples_stacked_under_their_names():
    (step, batch), *_ = take(1)
    assert step == 0 and set(batch) == {"inputs", "targets", "weights", "noise"}
    assert batch["inputs"].shape == (8, 16) and batch["inputs"].dtype == np.int32
    assert batch["weights"].dtype == np.float32 and batch["noise"].shape == (8, 3)


@pytest.mark.parametrize("cut", [1, 5, 13])
def test_a_resumed_run_sees_the_same_bits(cut):
    whole = take(20)  # 160 rows of some 75 windows: more than two epochs
    assert_same(take(20 - cut, start_step=cut), whole[cut:])


def test_the_number_of_processes_changes_nothing():
    whole = take(6)
    for count in (2, 4):
        parts = [take(6, part=(p, count)) for p in range(count)]
        joined = [
            (
                step,
                {name: np.concatenate([part[step][1][name] for part in parts]) for name in batch},
            )
            for step, batch in whole
        ]
        assert_same(joined, whole)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_the_number_of_threads_changes_nothing(threads):
    assert_same(take(20, threads=threads), take(20))


def test_every_epoch_has_each_window_once():
    windows = the_windows()
    rows = [
        row
        for _, batch in take(len(windows), windows)
        for row in zip(batch["inputs"], batch["noise"])
    ]  # 8 epochs
    for epoch in range(8):
        seen = sorted(
            row.tobytes() for row, _ in rows[epoch * len(windows) : (epoch + 1) * len(windows)]
        )
        assert seen == sorted(windows[i]["tokens"][:-1].tobytes() for i in range(len(windows)))
    assert len({noise.tobytes() for _, noise in rows}) == len(rows)  # no generator is used twice


def test_seeds_change_order_and_noise():
    (_, a), (_, b) = take(1)[0], take(1, seed=8)[0]
    assert (a["inputs"] != b["inputs"]).any() and (a["noise"] != b["noise"]).all()


def test_a_mixture_is_read_like_anything_else():
    def mixture():
        return Mixture((the_windows(seed=0), the_windows(seed=1)), (0.75, 0.25), seed=2)

    whole = take(10, mixture())
    assert_same(take(6, mixture(), start_step=4), whole[4:])


def test_heldout_batches_are_all_windows_in_order_and_the_rest_has_no_weight():
    windows = the_windows()
    batches = list(heldout_batches(windows, example, batch=8))
    assert all(batch["inputs"].shape == (8, 16) for batch in batches)
    inputs, weights = (
        np.concatenate([batch[name] for batch in batches]) for name in ("inputs", "weights")
    )
    assert len(windows) % 8  # or there would be nothing to fill up
    for i in range(len(windows)):
        np.testing.assert_array_equal(inputs[i], windows[i]["tokens"][:-1])
    assert not weights[len(windows) :].any() and weights.sum() == sum(
        example(windows[i], np.random.default_rng(0))["weights"].sum() for i in range(len(windows))
    )
    again = list(heldout_batches(windows, example, batch=8, limit=2))
    assert len(again) == 2
    assert_same(list(enumerate(again)), list(enumerate(batches[:2])))
    halves = [list(heldout_batches(windows, example, batch=8, part=(p, 2))) for p in (0, 1)]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*halves, strict=True)
    ]
    assert_same(list(enumerate(joined)), list(enumerate(batches)))


def test_batches_are_made_while_the_step_runs():
    made = []

    def slow(window, rng):
        time.sleep(0.002)
        made.append(1)
        return {"tokens": window["tokens"]}

    with train_batches(the_windows(), slow, seed=0, global_batch=4) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < 4 * 4 and time.monotonic() < deadline:  # nobody asks for the next
            time.sleep(0.01)
    assert len(made) >= 4 * 4


def test_closing_ends_the_threads():
    def readers():
        return [thread for thread in threading.enumerate() if "grain" in thread.name]

    batches = train_batches(the_windows(), example, seed=0, global_batch=4)
    next(batches)
    assert readers()
    batches.close()
    batches.close()
    for thread in readers():
        thread.join(timeout=10)
    assert not readers()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_program_that_forgets_to_close_still_ends(tmp_path):
    code = (
        "import numpy as np\n"
        "from research.data.loader import train_batches\n"
        "batches = train_batches([{'x': np.zeros(3)}] * 9, lambda w, rng: w, seed=0, "
        "global_batch=2)\n"
        "print(next(batches)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_an_error_in_an_example_reaches_the_caller():
    def broken(window, rng):
        raise ZeroDivisionError("in the example")

    with train_batches(the_windows(), broken, seed=0, global_batch=4) as batches:
        with pytest.raises(ZeroDivisionError, match="in the example"):
            next(batches)


@pytest.mark.parametrize(("batch", "index", "count"), [(7, 0, 2), (0, 0, 1), (8, 2, 2)])
def test_a_batch_that_does_not_divide_is_refused(batch, index, count):
    with pytest.raises(ValueError, match=f"batch_size={batch} must be a multiple"):
        train_batches(
            the_windows(),
            example,
            seed=0,
            global_batch=batch,
            part=(index, count),
        )


def test_evaluation_without_weights_is_refused():
    with pytest.raises(ValueError, match="weights"):
        list(
            heldout_batches(
                the_windows(), lambda window, rng: {"tokens": window["tokens"]}, batch=2
            )
        )
