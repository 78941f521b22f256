"""Numbers with their intervals: of the items of an evaluation, of groups of them, and of two models
on the same items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from research.evals.evaluation import Evaluation, Item, Totals, add_up
from research.evals.intervals import bootstrap, newcombe, newcombe_apart, student, wilson


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval from `low` to `high` over `n` items; NaN for no interval,
    which a single item has.

    interval  how it was computed: "wilson" of a share, "student" of a mean, "newcombe" of the
              difference of two shares, "newcombe_apart" of those of other items each,
              "bootstrap" of any other function of sums, "none" of one
              item
    """

    value: float
    low: float
    high: float
    n: int
    interval: str

    def to_json(self) -> dict[str, Any]:
        """By name; null for what is not finite, which JSON does not have."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def estimate(evaluation: Evaluation, items: Sequence[Item]) -> dict[str, Estimate]:
    """The values of an evaluation over `items` by name, with their intervals."""
    values = evaluation.values(add_up(item.totals for item in items))
    found, others = {}, []
    for name, value in values.items():
        if (interval := _of_shares(evaluation, items, name)) is not None:
            found[name] = Estimate(value, *interval, len(items), "newcombe_apart")
        elif (each := _each(items, name, value)) is None:
            others.append(name)
        else:
            found[name] = _of_mean(value, list(each.values()))
    if others:
        lows, highs = _bootstrap(evaluation, [items], others)
        for name, low, high in zip(others, lows, highs):
            method = "none" if len(items) < 2 else "bootstrap"
            found[name] = Estimate(values[name], float(low), float(high), len(items), method)
    return {name: found[name] for name in values}


def difference(
    evaluation: Evaluation, items: Sequence[Item], others: Sequence[Item]
) -> dict[str, Estimate]:
    """The values over `items` less those over `others`, of another model: by name and paired by
    the id of the items. ValueError unless both have the same ids."""
    by_id = {item.id: item for item in others}
    alone = by_id.keys() ^ {item.id for item in items}
    if alone:
        raise ValueError(
            f"{len(alone)} items are of one model alone, such as {sorted(alone)[0]!r}, so the two "
            "cannot be compared; measure both on the same data"
        )
    others = [by_id[item.id] for item in items]
    values, before = (evaluation.values(add_up(i.totals for i in x)) for x in (items, others))
    found, rest = {}, []
    for name in [name for name in values if name in before]:
        each, other = _each(items, name, values[name]), _each(others, name, before[name])
        if each is None or other is None or each.keys() != other.keys():
            rest.append(name)
        else:
            found[name] = difference_of_means(list(each.values()), list(other.values()))
    if rest:
        lows, highs = _bootstrap(evaluation, [items, others], rest)
        for name, low, high in zip(rest, lows, highs):
            method = "none" if len(items) < 2 else "bootstrap"
            gained = values[name] - before[name]
            found[name] = Estimate(gained, float(low), float(high), len(items), method)
    return {name: found[name] for name in values if name in found}


def difference_of_means(each: Sequence[float], other: Sequence[float]) -> Estimate:
    """The mean of one model's numbers less that of another's, on the same items in one order."""
    apart = [one - another for one, another in zip(each, other)]
    value, count = sum(apart) / len(apart), len(apart)
    if {*each, *other} <= {0.0, 1.0}:
        return Estimate(value, *newcombe(each, other), count, "newcombe")
    if count < 2:
        return Estimate(value, math.nan, math.nan, count, "none")
    return Estimate(value, *student(apart), count, "student")


def by_slice(
    evaluation: Evaluation, items: Sequence[Item]
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """{slice: {group: {name: estimate}}}, such as {"subject": {"history": {"acc": ...}}}."""
    groups: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        for name, group in item.slices.items():
            groups.setdefault(name, {}).setdefault(group, []).append(item)
    return {
        name: {group: estimate(evaluation, of_it) for group, of_it in sorted(parts.items())}
        for name, parts in groups.items()
    }


def _each(items: Sequence[Item], name: str, value: float) -> dict[str, float] | None:
    """The number of each item that has it, by id, if `value` is their mean; else None."""
    having = [item for item in items if name in item.totals]
    if not having or any(item.totals[name][1] != 1 for item in having):
        return None
    each = {item.id: float(item.totals[name][0]) for item in having}
    # The same sum in another order; a value that is no mean is off by more.
    return each if math.isclose(sum(each.values()) / len(each), value, rel_tol=1e-9) else None


def _of_shares(
    evaluation: Evaluation, items: Sequence[Item], name: str
) -> tuple[float, float] | None:
    """The interval of a value that is one share less another of other items, else None."""
    sides = []
    for share in evaluation.apart.get(name, ()):
        found = {one.id: one.totals[share] for one in items if share in one.totals}
        if not found or not set(found.values()) <= {(0.0, 1.0), (1.0, 1.0)}:
            return None
        sides.append(found)
    if not sides or sides[0].keys() & sides[1].keys():
        return None
    first, second = sides
    return newcombe_apart(_hits(first), len(first), _hits(second), len(second))


def _hits(side: Mapping[str, tuple[float, float]]) -> float:
    return sum(total for total, _ in side.values())


def _of_mean(value: float, each: list[float]) -> Estimate:
    if set(each) <= {0.0, 1.0}:
        return Estimate(value, *wilson(sum(each), len(each)), len(each), "wilson")
    if len(each) < 2:
        return Estimate(value, math.nan, math.nan, len(each), "none")
    return Estimate(value, *student(each), len(each), "student")


def _bootstrap(
    evaluation: Evaluation, sides: Sequence[Sequence[Item]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of the values with these names; of two `sides`, whose items are in one order, of
    their differences."""
    if len(sides[0]) < 2:
        return np.full(len(names), math.nan), np.full(len(names), math.nan)
    tables = [_table(items) for items in sides]

    def _values(known: list[str], sums_NK: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
        sums_K = weights_N @ sums_NK
        pairs = dict(zip(known, zip(sums_K[::2].tolist(), sums_K[1::2].tolist())))
        # Totals that no drawn item has are absent, as they would be if these were all.
        drawn: Totals = {name: pair for name, pair in pairs.items() if pair[1] > 0}
        try:
            found: Mapping[str, float] = evaluation.values(drawn)
        except (KeyError, ZeroDivisionError):
            found = {}
        return np.array([found.get(name, math.nan) for name in names])

    def statistic(weights_N: np.ndarray) -> np.ndarray:
        parts = [_values(*table, weights_N) for table in tables]
        return parts[0] if len(parts) == 1 else parts[0] - parts[1]

    with np.errstate(invalid="ignore"):
        return bootstrap(len(sides[0]), statistic)


def _table(items: Sequence[Item]) -> tuple[list[str], np.ndarray]:
    """(names of totals, their sums and counts side by side float64 [N, 2 names], 0 where an item
    has none)."""
    known = list(dict.fromkeys(name for item in items for name in item.totals))
    rows = [
        [number for name in known for number in item.totals.get(name, (0.0, 0.0))] for item in items
    ]
    return known, np.array(rows, np.float64)
