"""Rewards: what each says of a text, and what is done about one that fails."""

import math

import pytest

from research.posttrain.rewards import REWARDS, RewardFailed, make_rewards


def half(prompt, completion, record):
    """A user's own reward."""
    return 0.5


def failing(prompt, completion, record):
    """One that reads what is not there."""
    return record["grade"]


def odd(prompt, completion, record):
    """One that divides nothing by nothing."""
    return math.nan


def silent(prompt, completion, record):
    """One that cannot say."""
    return None


@pytest.mark.parametrize(
    ("name", "completion", "record", "wanted"),
    [
        ("exact_match", " 501\n", {"answer": 501}, 1.0),
        ("exact_match", "5012", {"answer": "501"}, 0.0),
        ("characters", " 511", {"answer": 501}, 2 / 3),
        ("characters", "501234", {"answer": "501"}, 0.5),
        ("contains", "It is 501.", {"answer": "501"}, 1.0),
        ("contains", "It is 5012.", {"answer": "501"}, 0.0),
        ("pattern", "three words here", {"pattern": r"\w+ \w+ \w+"}, 1.0),
        ("pattern", "three words here!", {"pattern": r"\w+ \w+ \w+"}, 0.0),
        ("format", "so\n<a>3</a>", {}, 1.0),
        ("format", "<a>3</a><a>4</a>", {}, 0.0),
        ("format", "<a></a>", {}, 0.0),
        ("format", "<a>3</a> or 4", {}, 0.0),
        ("numeric", "first 7, then 1,234.50", {"answer": "#### 1234.5"}, 1.0),
        ("numeric", "3/4", {"answer": 0.75}, 1.0),
        ("numeric", "<a>3</a>", {"answer": "-3"}, 0.0),
        ("numeric", "none", {"answer": "3"}, 0.0),
        ("numeric", "1/0", {"answer": "3"}, 0.0),
        ("numeric", "3", {"answer": "three"}, None),
        ("length", "x" * 250, {}, 2.5),
    ],
)
def test_what_a_reward_says(name, completion, record, wanted):
    assert REWARDS[name]("", completion, record) == wanted


def test_rewards_are_weighted_and_one_that_cannot_say_makes_none():
    [(total, parts)] = make_rewards(f"exact_match:2,{__name__}.half")([("", "3", {"answer": 3})])
    assert total == 2.5 and parts == {"exact_match": 1.0, f"{__name__}.half": 0.5}
    silenced = make_rewards(f"exact_match,{__name__}.silent")
    assert math.isnan(silenced([("", "3", {"answer": 3})])[0][0])


@pytest.mark.parametrize(
    ("spelling", "line"),
    [
        (f"{__name__}.failing", "failing on record a.jsonl:7 raised KeyError: 'grade'"),
        (f"{__name__}.odd", "odd on record a.jsonl:7 returned nan, wanted a finite number"),
        ("exact_match", "exact_match on record a.jsonl:7 raised .*no 'answer'; name its column"),
    ],
)
def test_a_reward_that_fails_is_named_with_its_record(spelling, line):
    with pytest.raises(RewardFailed, match=line) as failed:
        make_rewards(spelling)([("", "3", {"path": "a.jsonl:7"})])
    # Only a bug has a place in somebody's code.
    assert (failed.value.__cause__ is not None) == ("KeyError" in line)


@pytest.mark.parametrize(
    ("spelling", "line"),
    [
        ("exact_mach", "nearest is 'exact_match'"),
        ("", "rewards is empty"),
        ("format:much", "must be NAME or NAME:WEIGHT"),
        ("format,format:2", "names format twice"),
        ("tests.posttrain.nowhere.f", "cannot be imported"),
        ("model", "'model' wants a reward model, as in model:runs/reward"),
    ],
)
def test_a_spelling_that_is_none_is_refused(spelling, line):
    with pytest.raises(ValueError, match=line):
        make_rewards(spelling)
