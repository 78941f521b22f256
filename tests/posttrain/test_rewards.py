"""Rewards: what each says of a text, and what is done about one that fails."""

import math

import numpy as np
import pytest

from research.posttrain.rewards import NEEDS, REWARDS, RewardFailed, Rewards, make_rewards


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


def leaving(prompt, completion, record):
    """One that ends the program."""
    raise SystemExit(3)


def writing(prompt, completion, record):
    """One that takes what it reads out of the record."""
    return float(record.pop("answer"))


def of_batches(prompts, completions, **columns):
    """One in the form of another trainer, called for many texts at once."""
    return [1.0] * len(prompts)


class Made:
    """A class, whose instances would be called."""


def returning(value):
    """A reward that returns this."""
    return Rewards((("own", lambda prompt, completion, record: value, 1.0),))


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
        (f"{__name__}.leaving", "leaving on record a.jsonl:7 raised SystemExit: 3"),
        ("exact_match", "exact_match on record a.jsonl:7 raised .*no 'answer'; name its column"),
    ],
)
def test_a_reward_that_fails_is_named_with_its_record(spelling, line):
    with pytest.raises(RewardFailed, match=line) as failed:
        make_rewards(spelling)([("", "3", {"path": "a.jsonl:7"})])
    # Only a bug has a place in somebody's code.
    assert (failed.value.__cause__ is not None) == (("KeyError" in line) or ("SystemExit" in line))


@pytest.mark.parametrize(
    "value", [math.inf, "1.0", b"1", "good", [1.0], np.array([1.0]), 1j, {}, 10**400], ids=repr
)
def test_a_value_that_is_no_number_is_refused_with_its_record(value):
    with pytest.raises(RewardFailed, match="own on record a.jsonl:7 returned .*, wanted a"):
        returning(value)([("", "3", {"path": "a.jsonl:7"})])


@pytest.mark.parametrize("value", [True, 1, np.float32(1), np.array(1.0), np.bool_(True)], ids=repr)
def test_numbers_and_truths_are_rewards(value):
    assert returning(value)([("", "3", {})]) == [(1.0, {"own": 1.0})]


def test_a_reward_that_writes_to_its_record_changes_no_other_text():
    record = {"answer": "3"}
    scored = make_rewards(f"{__name__}.writing")([("", "3", record), ("", "4", record)])
    assert [total for total, _ in scored] == [3.0, 3.0] and record == {"answer": "3"}


def test_records_that_lack_what_a_reward_reads_are_counted_before_the_first_step():
    records = [{"answer": "3", "path": "a:0"}, {"path": "a:1"}, {"answer": None, "path": "a:2"}]
    with pytest.raises(ValueError, match="numeric needs 'answer', and 2 of 3 .* the first: a:1"):
        make_rewards("format,numeric").refuse_lacking(records)
    make_rewards(f"format,{__name__}.half").refuse_lacking(records)
    make_rewards("numeric").refuse_lacking(records[:1])


@pytest.mark.parametrize("name", NEEDS)
def test_a_reward_that_is_said_to_need_a_column_does(name):
    if name in ("math_verify", "reasoning_gym"):  # of packages that need not be there
        pytest.skip("its tests are in test_judges.py")
    with pytest.raises(ValueError, match=f"the record has no '{NEEDS[name]}'"):
        REWARDS[name]("", "3", {})


@pytest.mark.parametrize(
    ("spelling", "line"),
    [
        ("exact_mach", "nearest is 'exact_match'"),
        ("", "rewards is empty"),
        ("format:much", "must be NAME or NAME:WEIGHT"),
        ("format,format:2", "names format twice"),
        ("tests.posttrain.nowhere.f", "cannot be imported: ModuleNotFoundError"),
        (f"{__name__}.nothing", "cannot be imported: AttributeError"),
        (".f", "'.f' cannot be imported: ValueError"),
        (f"{__name__}.__name__", "is no function"),
        (f"{__name__}.of_batches", r"takes \(prompts, completions, \*\*columns\), wanted a func"),
        (f"{__name__}.Made", "wanted a function"),
        ("model", "'model' wants a reward model, as in model:runs/reward"),
    ],
)
def test_a_spelling_that_is_none_is_refused(spelling, line):
    with pytest.raises(ValueError, match=line):
        make_rewards(spelling)


@pytest.mark.parametrize("line", ["def f(:", "raise KeyError('at import')", "raise SystemExit(5)"])
def test_a_file_of_rewards_that_does_not_load_is_refused(line, tmp_path, monkeypatch):
    name = f"rewards_of_{len(line)}"
    (tmp_path / f"{name}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}.f' cannot be imported: (Syn|Key|SystemE)"):
        make_rewards(f"{name}.f")
