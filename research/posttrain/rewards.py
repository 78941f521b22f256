"""Rewards: how good a text is that the model has written, by rules that can be checked.

A reward is a function (prompt, completion, record) -> float | None. The record holds the columns
of the data: "prompt", "answer", "pattern", "tests", and "path", its place; it is a copy. True is 1,
False 0. None is "cannot say": the text is then in no mean. A row of `REWARDS`, or any function by
its dotted path:

    config.objective.rewards = "exact_match"
    config.objective.rewards = "numeric:1,format:0.2,my_package.rewards.politeness:0.1"

or a reward model, a run of `research.train` or a checkpoint, with a weight or without:

    config.objective.rewards = "model:runs/reward:0.5,format:0.2"
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from research.experiment.fields import nearest
from research.posttrain.judges import math_verify, reasoning_gym
from research.posttrain.reward_model import ModelReward
from research.posttrain.sandbox import run_code

Record = Mapping[str, Any]
Reward = Callable[[str, str, Record], float | None]
Answered = tuple[str, str, Record]  # prompt, completion and record
MODEL = "model"  # the name of a reward that a model gives

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d[\d,]*)?")
_TAGGED = re.compile(r"(?:(?!</?a>).)*<a>((?:(?!</?a>).)+)</a>\s*", re.DOTALL)
_FENCED = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)


def exact_match(prompt: str, completion: str, record: Record) -> float:
    """1 if the text is the record's answer, without space around them."""
    return float(completion.strip() == str(_needed(record, "answer")).strip())


def characters(prompt: str, completion: str, record: Record) -> float:
    """The share of the answer's characters that stand at their place in the text: a reward for
    what is nearly right, while hardly anything is right."""
    answer, text = str(_needed(record, "answer")).strip(), completion.strip()
    right = sum(wanted == got for wanted, got in zip(answer, text))
    return right / max(len(answer), len(text), 1)


def contains(prompt: str, completion: str, record: Record) -> float:
    """1 if the record's answer is in the text, as a word of its own."""
    answer = re.escape(str(_needed(record, "answer")).strip())
    return float(bool(re.search(rf"(?<!\w){answer}(?!\w)", completion)))


def pattern(prompt: str, completion: str, record: Record) -> float:
    """1 if the whole text matches the record's "pattern", a regular expression."""
    return float(bool(re.fullmatch(str(_needed(record, "pattern")), completion, re.DOTALL)))


def format(prompt: str, completion: str, record: Record) -> float:
    """1 if the text ends in its one answer, written <a>...</a>."""
    return float(bool(_TAGGED.fullmatch(completion)))


def numeric(prompt: str, completion: str, record: Record) -> float | None:
    """1 if the last number of the text, of its <a>...</a> if it has one, equals the last one of the
    record's answer to six digits. Commas group digits; "3/4" is 0.75. None for an answer without a
    number."""
    wanted = _last_number(str(_needed(record, "answer")))
    if wanted is None:
        return None
    tagged = _TAGGED.fullmatch(completion)
    got = _last_number(tagged[1] if tagged else completion)
    return float(got is not None and math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-9))


def code(prompt: str, completion: str, record: Record) -> float:
    """1 if the text's Python, the last fenced block if there is one, passes the record's "tests":
    Python that follows it and raises for what is wrong. See `research.posttrain.sandbox`."""
    blocks = _FENCED.findall(completion)
    source = blocks[-1] if blocks else completion
    return float(run_code(f"{source}\n{_needed(record, 'tests')}\n").passed)


def length(prompt: str, completion: str, record: Record) -> float:
    """The characters of the text, in hundreds, at most 10: a reward that is easily had without any
    answer, for studies of that."""
    return min(len(completion) / 100, 10.0)


REWARDS: dict[str, Reward] = {
    function.__name__: function
    for function in (
        *(exact_match, characters, contains, pattern, format, numeric, code, length),
        *(math_verify, reasoning_gym),
    )
}


# The column of a record that a reward cannot do without.
NEEDS = {
    "exact_match": "answer", "characters": "answer", "contains": "answer", "pattern": "pattern",
    "numeric": "answer", "code": "tests", "math_verify": "answer", "reasoning_gym": "entry",
}  # fmt: skip


class RewardFailed(ValueError):
    """A reward that raised, or returned something else than a finite number or None. Its cause is
    what the reward raised, unless that was a ValueError, which says itself what to mend."""


@dataclass(frozen=True)
class Rewards:
    """A weighted sum of rewards: `parts` are (name, function, weight)."""

    parts: tuple[tuple[str, Reward, float], ...]

    def __call__(self, texts: Sequence[Answered]) -> list[tuple[float, dict[str, float]]]:
        """(the sum, {name: reward}) of each text; NaN for a reward that cannot say, and for a sum
        with one.

        RewardFailed, which names reward and record.
        """
        found = {name: _rewarded(name, function, texts) for name, function, _ in self.parts}
        each = [dict(zip(found, row)) for row in zip(*found.values())]
        return [(sum(w * one[name] for name, _, w in self.parts), one) for one in each]

    def refuse_lacking(self, records: Iterable[Record]) -> None:
        """ValueError where records lack what a reward of `REWARDS` reads: how many, the first."""
        needed = {name: NEEDS[name] for name, *_ in self.parts if name in NEEDS}
        lacking: dict[str, list[str]] = {name: [] for name in needed}
        total = 0
        for total, record in enumerate(records if needed else (), 1):
            for name, column in needed.items():
                if record.get(column) is None:
                    lacking[name].append(str(record.get("path", "?")))
        for name, paths in lacking.items():
            if paths:
                raise ValueError(
                    f"reward {name} needs {needed[name]!r}, and {len(paths)} of {total} records "
                    f"have none, the first: {paths[0]}; name its column, as in "
                    f"'?prompt=QUESTION&{needed[name]}=FIELD', or leave such records out"
                )

    def open(self) -> None:
        """Opens what rewards read, such as a model. ValueError where that is missing."""
        for _, function, _ in self.parts:
            if isinstance(function, ModelReward):
                function.open()


def _rewarded(name: str, function: Reward, texts: Sequence[Answered]) -> list[float]:
    """The reward of each text, NaN for None."""
    places = [f"reward {name} on record {record.get('path', '?')}" for *_, record in texts]
    try:
        if isinstance(function, ModelReward):
            where = f"reward {name}"
            returned = function.many(texts)
        else:
            returned = []
            for where, (prompt, completion, record) in zip(places, texts):
                # A copy: the texts of a prompt share one record, and a reward may write to it.
                returned.append(function(prompt, completion, dict(record)))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        cause = None if isinstance(error, ValueError) else error
        raise RewardFailed(f"{where} raised {reason}; mend the reward or the record") from cause
    return [_number(where, value) for where, value in zip(places, returned)]


def _number(where: str, value: Any) -> float:
    """The value as a float, NaN for None. RewardFailed for any other that is no finite number."""
    try:
        # float() takes "1.0" too, and arrays of one number.
        if isinstance(value, str | bytes) or getattr(value, "shape", ()) != ():
            raise TypeError
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise RewardFailed(f"{where} returned {value!r}, wanted a number or None") from None
    if value is not None and not math.isfinite(number):
        raise RewardFailed(f"{where} returned {value!r}, wanted a finite number or None")
    return number


def make_rewards(spelling: str) -> Rewards:
    """The rewards of `config.objective.rewards`. ValueError for a name that is neither in `REWARDS`
    nor the dotted path of a function, for a name twice, and for a weight that is not finite."""
    parts: list[tuple[str, Reward, float]] = []
    for item in filter(None, (item.strip() for item in spelling.split(","))):
        name, given, weight = item.partition(":")
        function: Reward | None = REWARDS.get(name)
        if name == MODEL:
            source, given, weight = _source_and_weight(weight)
            function = ModelReward(source)
        try:
            value = float(weight) if given else 1.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"objective.rewards: {item!r} must be NAME or NAME:WEIGHT")
        if name in [known for known, _, _ in parts]:
            raise ValueError(f"objective.rewards={spelling!r} names {name} twice; add its weights")
        parts.append((name, function or _imported(name), value))
    if not parts:
        raise ValueError(f"objective.rewards is empty; choose from {', '.join(REWARDS)}")
    return Rewards(tuple(parts))


def _source_and_weight(rest: str) -> tuple[str, str, str]:
    """(source, ":" or "", weight) of what follows "model:". ValueError without a source."""
    source, given, weight = rest.rpartition(":")
    # A source may have a colon of its own, as "pypi:NAME" has.
    if not given or not re.fullmatch(r"[-+.\deE]+", weight):
        source, given, weight = rest, "", ""
    if not source:
        raise ValueError(
            "objective.rewards: 'model' wants a reward model, as in model:runs/reward or "
            "model:runs/reward:0.5"
        )
    return source, given, weight


def _imported(path: str) -> Reward:
    """The function at a dotted path such as "my_package.rewards.politeness"."""
    module, dot, name = path.rpartition(".")
    if not dot:
        raise ValueError(
            f"objective.rewards: no reward {path!r}; {nearest(path, REWARDS)}; or the dotted path "
            "of a function (prompt, completion, record) -> float | None"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    # A module of a user may raise anything, or leave.
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"objective.rewards: {path!r} cannot be imported: {reason}") from None
    if not callable(function):
        raise ValueError(f"objective.rewards: {path!r} is no function")
    if not _takes_three(function):
        raise ValueError(
            f"objective.rewards: {path!r} takes {inspect.signature(function)}, wanted a function "
            "(prompt, completion, record) -> float | None, called for one text at a time"
        )
    return function


def _takes_three(function: Callable[..., Any]) -> bool:
    """Whether it may be called as a reward is; True where its signature is not known."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of C
        return True
    try:
        signature.bind("", "", {})
    except TypeError:
        return False
    return True


def _needed(record: Record, name: str) -> Any:
    if record.get(name) is None:
        raise ValueError(
            f"the record has no {name!r}; name its column, as in '?prompt=QUESTION&{name}=FIELD'"
        )
    return record[name]


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return float(Fraction(re.sub(r"[,\s]", "", found[-1])))
    except ZeroDivisionError:
        return None
