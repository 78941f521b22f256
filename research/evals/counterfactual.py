"""Counterfactual pairs of a person's own: templates that are filled with one group or another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from research.evals.evaluation import Evaluation, Item, Opened, RunData
from research.evals.records import Record, read_records, text_of
from research.evals.sentence_pairs import PairSet, SentencePair, pair_items, refuse_pairless
from research.evals.strata import Strata, several


@dataclass(frozen=True)
class CounterfactualConfig(Strata):
    """data    a file of {"template": "{} fixes cars.", "more": ["He"], "less": ["She"]}, perhaps
            with "category"; a record without a template has the two sentences themselves.
            "occupations" has twenty templates of our own
    window  most tokens that are read, 0 for as many as the model can

    `limit`, `seed` and `least` are of templates of a category, see `research.evals.strata.Strata`.
    """

    data: str = ""
    window: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not self.data:
            raise ValueError(
                "data is not set; name a file of templates, as --evals=counterfactual:FILE, "
                "or take ours, --evals=counterfactual:occupations"
            )


@dataclass(frozen=True)
class Counterfactual(Evaluation):
    """The numbers of `research.evals.crows_pairs.CrowsPairs` over a person's own templates. An item
    is a template with all of its pairs, so that intervals draw templates."""

    sets: Sequence[PairSet]
    window: int = 0

    config = CounterfactualConfig
    main = "pct_stereotype"
    lower_is_better = True

    @classmethod
    def make(cls, config: CounterfactualConfig, data: RunData) -> "Counterfactual":
        """ValueError for data that cannot be read, and for a category of too few templates."""
        refuse_pairless(data)
        sets = []
        for id, record in read_records(config.data):
            where = f"record {id} of {config.data}"
            slices = (("category", str(record.get("category") or "all")),)
            sets.append(PairSet(id, _pairs(record, where), slices))
        drawn = config.draw(sets, lambda one: dict(one.slices)["category"], "templates")
        return cls(drawn, config.window)

    def notes(self) -> Sequence[str]:
        """What is drawn, and what a preference may come from."""
        pairs = sum(len(one.pairs) for one in self.sets)
        groups = len({dict(one.slices)["category"] for one in self.sets})
        return (
            f"{pairs} pairs of {len(self.sets)} templates, which the intervals draw; a preference "
            "may be for a frequent word as well as for a group, so write each template with several"
            " words of a group",
            several(groups),
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a template."""
        yield from pair_items(opened, self.sets, self.window)


def _pairs(record: Record, where: str) -> tuple[SentencePair, ...]:
    sides = [_words(record.get(name), name, where) for name in ("more", "less")]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{where} has {len(sides[0])} words under more and {len(sides[1])} under less; give "
            "as many, each beside its counterpart"
        )
    template = text_of(record, ("template",), where) if "template" in record else "{}"
    if "{}" not in template:
        raise ValueError(f"{where}: the template {template!r} has no {{}} for the words")
    pairs = [[template.replace("{}", word) for word in words] for words in zip(*sides)]
    if any(more == less for more, less in pairs):
        raise ValueError(f"{where} has a pair of two equal sentences")
    return tuple(SentencePair(more, less) for more, less in pairs)


def _words(value: Any, name: str, where: str) -> list[str]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise ValueError(f"{where}: {name} is {value!r}; wanted a text or a list of texts")
    return words
