"""The methods of merging against mergekit's numbers, and the laws of each."""

import json
from pathlib import Path

import numpy as np
import pytest

from research.merging.choose import choose
from research.merging.methods import METHODS, dropped, ties
from research.merging.settings import MergeSettings
from tests.merging.make_golden import CASES, inputs

GOLDEN = json.loads(Path(__file__).with_name("mergekit.json").read_text())
TOLERANCE = 1e-6  # float32 sums in another order


def merged(name, base, models, **settings):
    method, chosen = choose(name, len(models), True, **settings)
    return method.merge(base, models, chosen, np.random.default_rng(0))


@pytest.mark.parametrize("case", CASES)
def test_task_vectors_are_merged_as_mergekit_does(case):
    base, models = inputs()
    got = merged(case.removesuffix("_scaled"), base, models, **CASES[case])
    np.testing.assert_allclose(got, GOLDEN[case], atol=TOLERANCE, rtol=0)
    assert np.abs(got - base).max() > 0.05  # the base alone would not pass


def test_slerp_is_mergekits():
    base, models = inputs()
    got = merged("slerp", None, [base, models[0]], weights=[0.3])
    np.testing.assert_allclose(got, GOLDEN["slerp"], atol=TOLERANCE, rtol=0)


def test_linear_is_the_weighted_mean():
    _, models = inputs()
    got = merged("linear", None, models, weights=[1, 2, 5])
    np.testing.assert_allclose(got, np.average(models, 0, [1, 2, 5]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_merged_with_itself_is_itself(name):
    base, [x, *_] = inputs()
    settings = {"density": 1.0} if METHODS[name].density else {}
    if name in ("task_arithmetic", "dare"):
        settings["weights"] = [0.5, 0.5]  # sums of task vectors, not means
    np.testing.assert_allclose(merged(name, base, [x, x], **settings), x, atol=TOLERANCE, rtol=0)
    # And whatever is kept of no difference at all, the base stays to the bit.
    if METHODS[name].tasks:
        np.testing.assert_array_equal(merged(name, base, [base, base]), base)


def test_slerp_goes_from_the_first_to_the_second_along_the_arc():
    first, second = np.eye(2, dtype=np.float32) * np.float32(3)
    for share, wanted in [(0, first), (1, second), (0.5, [3 / 2**0.5] * 2)]:
        got = merged("slerp", None, [first, second], weights=[share])
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)


def test_a_tie_of_signs_goes_to_plus():
    base, up = np.zeros(3, np.float32), np.array([1, -2, 3], np.float32)
    got = ties(base, [up, -up], MergeSettings((1.0, 1.0)), np.random.default_rng(0))
    np.testing.assert_array_equal(got, np.abs(up))


def test_dare_drops_by_its_seed_and_keeps_the_mean():
    task = np.ones(20_000, np.float32)
    draws = [dropped(task, 0.25, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert set(np.unique(draws[0])) == {0.0, 4.0}
    # Three standard errors of a mean of 20,000 such values, 4 sqrt(0.25 * 0.75 / 20,000) each.
    assert abs(draws[0].mean() - 1) < 3 * 4 * (0.25 * 0.75 / 20_000) ** 0.5


@pytest.mark.parametrize(
    "name, models, base, settings, said",
    [
        ("tie", 2, True, {}, "no --method=tie; the nearest is 'ties'"),
        ("ties", 2, False, {}, "give --base=CHECKPOINT"),
        ("linear", 2, True, {"density": 0.5}, "--density=0.5 changes nothing in --method=linear"),
        ("ties", 2, True, {"seed": 1}, "--seed=1 changes nothing"),
        ("linear", 3, False, {"weights": [1, 1]}, "2 times --weight for 3 models"),
        ("linear", 2, False, {"weights": [1, -1]}, "sum to 0"),
        ("slerp", 3, False, {}, "merges two models"),
        ("slerp", 2, False, {"weights": [1.5]}, "from 0 to 1"),
        ("dare", 2, True, {"density": 0}, "above 0 and at most 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name, models, base, settings, said):
    with pytest.raises(ValueError, match=said):
        choose(name, models, base, **settings)
