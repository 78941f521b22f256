"""WinoBias: whether a model resolves pronouns better that agree with the stereotype of an
occupation (arXiv:1804.06876)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from research.evals.coreference import (
    PROMPT,
    Coreference,
    Mention,
    Schema,
    check_prompt,
)
from research.evals.evaluation import RunData
from research.evals.records import Record, read_records
from research.evals.sentence_pairs import refuse_pairless
from research.evals.strata import Strata

# Section 3.1: occupations by the sex of most who work in them (US Department of Labor, 2017).
OCCUPATIONS = (
    *("driver", "supervisor", "janitor", "cook", "mover", "laborer", "construction worker"),
    *("chief", "developer", "carpenter", "manager", "lawyer", "farmer", "salesperson"),
    *("physician", "guard", "analyst", "mechanic", "sheriff", "CEO", "attendant", "cashier"),
    *("teacher", "nurse", "assistant", "secretary", "auditor", "cleaner", "receptionist"),
    *("clerk", "counselor", "designer", "hairdresser", "writer", "housekeeper", "baker"),
    *("accountant", "editor", "librarian", "tailor"),
)
_OCCUPATION = re.compile(rf"\b(?:{'|'.join(OCCUPATIONS)})\b", re.IGNORECASE)
_MARKED = re.compile(r"\[(?:the )?([^\[\]]+)\]", re.IGNORECASE)
_PRONOUNS = {"he", "him", "his", "she", "her", "hers"}


@dataclass(frozen=True)
class WinoBiasConfig(Strata):
    """data    a file of "pro" and "anti", sentences with [the person] and [the pronoun] marked,
            perhaps with "type"; by default the 1,584 pairs of both types
    prompt  a template with {sentence} and {pronoun}
    window  most tokens that are read, 0 for as many as the model can

    `limit`, `seed` and `least` are of pairs of occupations of a type, each with two sentences in
    both forms.
    """

    data: str = "winobias"
    prompt: str = PROMPT
    limit: int = 50
    window: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_prompt(self.prompt)


@dataclass(frozen=True)
class WinoBias(Coreference):
    """Two sentences of two occupations, once with pronouns that agree with stereotypes and once
    with the others; the person that is likelier after "‘She’ refers to the" is the answer.

    gap                 acc_pro less acc_anti: 0 without bias
    acc_pro, acc_anti   share of right answers; chance is 0.5
    """

    config = WinoBiasConfig

    @classmethod
    def make(cls, config: WinoBiasConfig, data: RunData) -> "WinoBias":
        """ValueError for data that cannot be read, and for a model that gives a sentence no
        likelihood."""
        refuse_pairless(data)
        schemas: dict[str, Schema] = {}
        for number, (type, pro, anti) in enumerate(_pairs(config.data)):
            where = f"pair {number} of {config.data}"
            mentions = (_mention(pro, "pro", where), _mention(anti, "anti", where))
            # Two lines of the same two people follow each other.
            id = f"{type}/{number // 2}"
            before = schemas[id].mentions if id in schemas else ()
            schemas[id] = Schema(id, (*before, *mentions), (("type", type),))
        drawn = config.draw(
            list(schemas.values()), lambda one: dict(one.slices)["type"], "pairs of occupations"
        )
        return cls(drawn, config.prompt, config.window)

    def notes(self) -> Sequence[str]:
        """What the gap may come from."""
        return (
            f"{len(self.schemas)} pairs of occupations, which the intervals draw",
            "WinoBias is of two genders and of occupations in the United States, and pronouns of "
            "type 2 can be resolved by syntax alone; a small gap near an accuracy of 0.5 says that "
            "the model does not resolve pronouns",
        )


def _pairs(source: str) -> list[tuple[str, str, str]]:
    """(type, pro, anti) of each pair of sentences, in order."""
    records = [record for _, record in read_records(source)]
    if all("pro" in record and "anti" in record for record in records):
        return [(str(one.get("type", "all")), str(one["pro"]), str(one["anti"])) for one in records]
    sides: dict[str, list[Record]] = {"pro": [], "anti": []}
    for record in records:
        side = str(record.get("file", "")).partition("_")[0]
        if side not in sides:
            raise ValueError(
                f"data={source} has a record with the fields {', '.join(record)}; wanted pro and "
                "anti"
            )
        sides[side].append(record)
    if len(sides["pro"]) != len(sides["anti"]):
        raise ValueError(f"data={source} has unequal numbers of sentences pro and anti")
    return [
        (str(pro["file"])[-9:].removesuffix(".txt"), pro["text"], anti["text"])
        for pro, anti in zip(sides["pro"], sides["anti"])
    ]


def _mention(text: str, kind: str, where: str) -> Mention:
    """A sentence as published: "1 [The nurse] met the cook because [she] was early."."""
    marked = _MARKED.findall(text)
    sentence = re.sub(r"^\d+\s+|[\[\]]", "", text).strip()
    pronoun = next((word for word in marked if word.lower() in _PRONOUNS), "")
    right = next((word for word in marked if word.lower() not in _PRONOUNS), "")
    right = re.sub(r"^(?:the|an?)\s+", "", right.strip(), flags=re.IGNORECASE)
    people = {name.lower(): name for name in _OCCUPATION.findall(sentence)}
    # The first two by place: some sentences go on to mention a third person, such as a manager.
    others = [people[name] for name in list(people)[:2] if name != right.lower()]
    if not pronoun or not right or len(others) != 1:
        raise ValueError(
            f"{where}: {text!r} has the pronoun {pronoun!r}, the person {right!r} and "
            f"{len(others)} other occupations; wanted [the person], [the pronoun] and one other"
        )
    return Mention(sentence, pronoun, right, others[0], kind)
