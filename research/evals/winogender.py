"""Winogender: whether a model resolves pronouns better where most who work in an occupation are of
their gender (arXiv:1804.09301)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research.evals.coreference import (
    PROMPT,
    Coreference,
    Mention,
    Schema,
    check_prompt,
)
from research.evals.evaluation import RunData
from research.evals.records import read_records, text_of
from research.evals.sentence_pairs import refuse_pairless
from research.evals.strata import Strata

_PRONOUN = re.compile(
    r"\b(?:he|him|his|himself|she|her|hers|herself|they|them|their|theirs|themselves)\b",
    re.IGNORECASE,
)
_GENDERS = ("male", "female", "neutral")


@dataclass(frozen=True)
class WinogenderConfig(Strata):
    """data         a file as published ("sentid", "sentence"); by default the 720 sentences
    occupations  a file of "occupation" and "bls_pct_female", the percentage of women in it
    prompt       a template with {sentence} and {pronoun}
    window       most tokens that are read, 0 for as many as the model can

    `limit`, `seed` and `least` are of occupations, each of which has four sentences with three
    pronouns.
    """

    data: str = "winogender"
    occupations: str = "winogender_occupations"
    prompt: str = PROMPT
    limit: int = 0
    window: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_prompt(self.prompt)


@dataclass(frozen=True)
class Winogender(Coreference):
    """The person that is likelier after "‘She’ refers to the" is the answer.

    gap          acc_pro less acc_anti: 0 without bias
    acc_pro      share of right answers to pronouns of the gender of most in the occupation if they
                 speak of it, and of the other gender if they speak of the other person
    acc_anti     the same of the others, the "gotcha" sentences (section 4)
    acc_neutral  the same of "they"; chance is 0.5
    """

    config = WinogenderConfig

    @classmethod
    def make(cls, config: WinogenderConfig, data: RunData) -> "Winogender":
        """ValueError for data that cannot be read, and for a model that gives a sentence no
        likelihood."""
        refuse_pairless(data)
        women = _percent_women(config.occupations)
        found: dict[str, list[Mention]] = {}
        for id, record in read_records(config.data):
            where = f"record {id} of {config.data}"
            name = text_of(record, ("sentid",), where)
            occupation, mention = _mention(
                name, text_of(record, ("sentence",), where), women, where
            )
            found.setdefault(occupation, []).append(mention)
        schemas = [
            Schema(name, tuple(mentions), (("majority", _majority(women[name])),))
            for name, mentions in found.items()
        ]
        drawn = config.draw(schemas, lambda one: "all", "occupations")
        return cls(drawn, config.prompt, config.window)

    def notes(self) -> Sequence[str]:
        """What the gap may come from."""
        return (
            f"{len(self.schemas)} occupations, which the intervals draw; percentages of women are "
            "those of the US Bureau of Labor Statistics that ship with the set",
            "the authors call it a diagnostic: a gap shows bias, no gap does not show its absence "
            "(Rudinger et al. 2018, section 5)",
        )


def _percent_women(source: str) -> dict[str, float]:
    found = {}
    for id, record in read_records(source):
        try:
            found[str(record["occupation"])] = float(record["bls_pct_female"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"record {id} of {source} has no occupation with a number bls_pct_female"
            ) from None
    return found


def _majority(percent_women: float) -> str:
    return "female" if percent_women > 50 else "male"


def _mention(
    name: str, sentence: str, women: Mapping[str, float], where: str
) -> tuple[str, Mention]:
    """(occupation, mention) of a sentence named "technician.customer.1.male.txt", where 1 says that
    the pronoun speaks of the customer."""
    parts = name.removesuffix(".txt").split(".")
    found = _PRONOUN.search(sentence)
    known = len(parts) == 4 and parts[2] in ("0", "1") and parts[3] in _GENDERS
    if not known or found is None or parts[0] not in women:
        raise ValueError(
            f"{where}: {name!r} wants the form OCCUPATION.PERSON.0.male with an occupation that "
            "has a percentage, and the sentence a pronoun"
        )
    occupation, participant, answer, gender = parts
    kind = "neutral"
    if gender != "neutral":
        agrees = (gender == _majority(women[occupation])) == (answer == "0")
        kind = "pro" if agrees else "anti"
    people = (occupation, participant)
    right, other = people if answer == "0" else people[::-1]
    return occupation, Mention(sentence, found[0], right, other, kind)
