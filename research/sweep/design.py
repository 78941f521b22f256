"""What a sweep compares: factors with levels, combined by `product`, `zipped` and `chain`, over
seeds, with one combination as the baseline.

    def get_sweep(arg=""):
        rank = factor("rank", "lora.rank", [8, 2, 32])  # the first level is the baseline's
        method = choice("method", {"lora": lambda c: tune(c, "lora"), "dora": ...})
        return Sweep(chain(rank, method), seeds=seeds(6), metrics={"eval/loss": "lower"})
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from research.experiment.fields import nearest

# What a level does to a config: values by dotted path, or a function that changes it in place.
Change = Mapping[str, Any] | Callable[[ConfigDict], None]
BETTER = ("lower", "higher")


@dataclass(frozen=True)
class Design:
    """Combinations to run.

    factors   by factor, what each of its levels changes in the config
    points    each the levels of some factors; the others are then at the baseline's level
    """

    factors: Mapping[str, Mapping[str, Change]]
    points: tuple[Mapping[str, str], ...]


def factor(name: str, path: str, values: Iterable[Any]) -> Design:
    """A factor that sets one config field, `path`, to each of `values`, whose texts are the
    levels. ValueError without values, and for one that is there twice."""
    values = list(values)
    levels = {_text(value): {path: value} for value in values}
    if len(levels) < len(values):
        raise ValueError(f"factor {name!r} has a value twice in {values}; give each once")
    return choice(name, levels)


def choice(name: str, levels: Mapping[str, Change]) -> Design:
    """A factor whose named levels each change several fields: {"small": {"model.layers": 2,
    "model.d_model": 64}}, or a function of the config. ValueError without levels."""
    if not levels:
        raise ValueError(f"factor {name!r} has no levels; give at least one")
    return Design({name: dict(levels)}, tuple({name: level} for level in levels))


def product(*designs: Design) -> Design:
    """Every combination of the points of the designs, the last one varying fastest."""
    factors = _joined(designs)
    combined = itertools.product(*(design.points for design in designs))
    return Design(factors, tuple(_together(points) for points in combined))


def chain(*designs: Design) -> Design:
    """The points of all designs one after another: one factor at a time is varied."""
    factors: dict[str, dict[str, Change]] = {}
    for design in designs:
        for name, levels in design.factors.items():
            factors[name] = {**factors.get(name, {}), **levels}
    return Design(factors, tuple(point for design in designs for point in design.points))


def zipped(*designs: Design) -> Design:
    """The points of the designs side by side, as one factor: their effects cannot be told apart.

    zipped(factor("layers", "model.layers", [2, 4]), factor("width", "model.d_model", [128, 64]))
    is the factor "layers, width" with the levels "2, 128" and "4, 64". ValueError for designs of
    unequal length.
    """
    factors = _joined(designs)
    lengths = [len(design.points) for design in designs]
    if len(set(lengths)) != 1:
        raise ValueError(f"zipped designs have {lengths} points; give them equally many")
    levels: dict[str, Change] = {}
    for points in zip(*(design.points for design in designs)):
        whole = _together(points)
        changes = [factors[name][level] for name, level in whole.items()]
        levels[", ".join(whole.values())] = lambda c, changes=changes: _apply_all(c, changes)
    return choice(", ".join(factors), levels)


def seeds(count: int, first: int = 0) -> tuple[int, ...]:
    """`count` seeds from `first` on."""
    return tuple(range(first, first + count))


@dataclass(frozen=True)
class Halving:
    """Successive halving, see `research.sweep.halving`: at each of `rungs`, numbers of training
    tokens, the best 1 / `eta` of the combinations go on and the others stop. For finding good
    combinations among many; what was stopped gets no verdict at its full length. ValueError for
    rungs that do not rise and an eta below 2."""

    rungs: Sequence[int]
    eta: int = 3

    def __post_init__(self):
        rungs = list(self.rungs)
        if not rungs or rungs[0] < 1 or rungs != sorted(set(rungs)):
            raise ValueError(f"rungs={rungs} must rise from at least 1; give numbers of tokens")
        if self.eta < 2:
            raise ValueError(f"eta={self.eta} must be at least 2: one in eta goes on")


@dataclass(frozen=True)
class Sweep:
    """A design over seeds, and what is asked of it.

    design     combinations of levels; the baseline is added where it is not among them
    seeds      values of `train.seed`, from which parameters, data order and dropout are drawn.
               Differences are paired by seed
    metrics    names of metrics.jsonl by what is better, "lower" or "higher"; the first one decides
    baseline   by factor, the level to compare with; by default a factor's first level
    halving    which combinations stop early; None runs all to their end

    ValueError for a baseline that is no level, no seeds, and an unknown direction.
    """

    design: Design
    seeds: Sequence[int] = (0, 1, 2, 3, 4, 5)
    metrics: Mapping[str, str] = field(default_factory=lambda: {"eval/loss": "lower"})
    baseline: Mapping[str, Any] = field(default_factory=dict)
    halving: Halving | None = None

    def __post_init__(self):
        factors = self.design.factors
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} must be at least one, each once")
        if not self.metrics:
            raise ValueError('metrics is empty; name one, such as {"eval/loss": "lower"}')
        for name, better in self.metrics.items():
            if better not in BETTER:
                raise ValueError(f"metric {name!r} is better {better!r}; say 'lower' or 'higher'")
        for name, level in self.baseline.items():
            if name not in factors:
                raise ValueError(f"the baseline names no factor: {nearest(name, factors)}")
            if _text(level) not in factors[name]:
                raise ValueError(
                    f"the baseline has {name}={level!r}; {nearest(_text(level), factors[name])}"
                )

    @property
    def baseline_levels(self) -> dict[str, str]:
        """The level of every factor in the baseline."""
        given = {name: _text(level) for name, level in self.baseline.items()}
        return {
            name: given.get(name, next(iter(levels)))
            for name, levels in self.design.factors.items()
        }

    @property
    def points(self) -> list[dict[str, str]]:
        """All combinations, each with the level of every factor, the baseline first; none twice."""
        base = self.baseline_levels
        whole = [base, *({**base, **point} for point in self.design.points)]
        return list({tuple(point.values()): point for point in whole}.values())

    def change(self, config: ConfigDict, point: Mapping[str, str]) -> None:
        """Changes a config to a point. ValueError for a field that it does not have, or a value of
        another type."""
        _apply_all(config, [self.design.factors[name][level] for name, level in point.items()])


def _apply_all(config: ConfigDict, changes: Iterable[Change]) -> None:
    for one in changes:
        if callable(one):
            one(config)
            continue
        for path, value in one.items():
            set_field(config, path, value)


def set_field(config: ConfigDict, path: str, value: Any) -> None:
    """Sets the field at a dotted path. ValueError for one that the config does not have."""
    *sections, name = path.split(".")
    node, where = config, "config"
    for section in [*sections, name]:
        if not isinstance(node, ConfigDict) or section not in node:
            known = list(node) if isinstance(node, ConfigDict) else []
            raise ValueError(f"{where} has no field {section!r}; {nearest(section, known)}")
        if section is not name:
            node, where = node[section], f"{where}.{section}"
    # A whole number where a field is a fraction is meant as one, as in a flag.
    if isinstance(node[name], float) and type(value) is int:
        value = float(value)
    try:
        node[name] = value
    except TypeError as error:
        raise ValueError(f"config.{path}={value!r}: {error}") from None


def _joined(designs: Sequence[Design]) -> dict[str, Mapping[str, Change]]:
    factors: dict[str, Mapping[str, Change]] = {}
    for design in designs:
        twice = factors.keys() & design.factors.keys()
        if twice:
            raise ValueError(
                f"factor {min(twice)!r} is in two of the combined designs; rename one of them"
            )
        factors.update(design.factors)
    return factors


def _together(points: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {name: level for point in points for name, level in point.items()}


def _text(value: Any) -> str:
    """A value as the name of a level: "0.001", "none" for "" and None, "q, v" for a list."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value in ("", None) else f"{value}"
