"""Questions with their queries, made of templates over made tables; some templates are held out.

A template is what is asked and which rows count, such as ("max", "above"): "What is the highest age
with salary above 900?". Held-out templates are pairs of which both halves are learnt in others, so
that a model has to put them together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from research.tables.made import MadeTable, made_table

_WORDS = {
    "sum": ("total", "sum of"),
    "avg": ("average", "mean"),
    "max": ("highest", "largest"),
    "min": ("lowest", "smallest"),
}
SELECTS = (
    *("count", "sum", "avg", "max", "min", "different"),
    *("sum_each", "avg_each", "count_each", "top"),
)
FILTERS = ("all", "equals", "above", "below", "both")
HELD_OUT = frozenset(
    {
        *{("sum", "above"), ("max", "equals"), ("avg", "both"), ("count", "below")},
        *{("avg_each", "equals"), ("top", "above"), ("different", "below"), ("min", "both")},
    }
)
LEARNT = tuple((s, f) for s in SELECTS for f in FILTERS if (s, f) not in HELD_OUT)


@dataclass(frozen=True)
class Question:
    """A question about a table, the query that answers it, and its template."""

    table: MadeTable
    question: str
    query: str
    template: str


def made_questions(count: int, seed: int, heldout: bool = False) -> Iterator[Question]:
    """So many questions, each about a table of its own, of the templates that are learnt or of
    those that are `heldout`."""
    templates = sorted(HELD_OUT) if heldout else LEARNT
    for number in range(count):
        rng = np.random.default_rng([seed, heldout, number])
        select, rows = templates[number % len(templates)]
        yield _question(made_table(rng), select, rows, rng)


def _question(table: MadeTable, select: str, rows: str, rng: np.random.Generator) -> Question:
    text, other = map(str, rng.permutation(table.texts))
    number, second = map(str, rng.permutation(table.numbers))
    said, where = _filter(table, rows, other, second, rng)
    asked, query = _select(table.name, select, text, number, where, rng)
    return Question(table, f"{asked}{said}?", query, f"{select} {rows}")


def _filter(
    table: MadeTable, rows: str, text: str, number: str, rng: np.random.Generator
) -> tuple[str, str]:
    """(words, condition): which rows count."""
    value = str(rng.choice(table.values(text)))
    numbers = table.values(number)
    # Between two values that there are: neither all rows nor none.
    bound = int(numbers[len(numbers) // 2])
    is_value = (f" where {text} is {value}", f"{text} = '{value}'")
    above = (f" with {number} above {bound}", f"{number} > {bound}")
    below = (f" with {number} below {bound}", f"{number} < {bound}")
    if rows == "all":
        return "", ""
    if rows == "both":
        return f"{is_value[0]} and {number} above {bound}", f" WHERE {is_value[1]} AND {above[1]}"
    said, condition = {"equals": is_value, "above": above, "below": below}[rows]
    return said, f" WHERE {condition}"


def _select(
    name: str, select: str, text: str, number: str, where: str, rng: np.random.Generator
) -> tuple[str, str]:
    """(the beginning of the question, the query)."""
    start = str(rng.choice(["What is", "Tell me", "Give"]))
    if select == "count":
        asked = str(rng.choice([f"How many {name} are there", f"What is the number of {name}"]))
        return asked, f"SELECT count(*) FROM {name}{where}"
    if select == "different":
        asked = str(rng.choice([f"Which {text} are there", f"List every {text}"]))
        return asked, f"SELECT DISTINCT {text} FROM {name}{where}"
    if select == "top":
        asked = f"Which {text} has the {rng.choice(['highest', 'largest'])} total {number}"
        order = f"GROUP BY {text} ORDER BY sum({number}) DESC LIMIT 1"
        return asked, f"SELECT {text} FROM {name}{where} {order}"
    what, _, each = select.partition("_")
    if what == "count":
        asked = f"How many {name} are there for each {text}"
        return asked, f"SELECT {text}, count(*) FROM {name}{where} GROUP BY {text}"
    word = str(rng.choice(_WORDS[what]))
    if not each:
        return f"{start} the {word} {number}", f"SELECT {what}({number}) FROM {name}{where}"
    asked = f"{start} the {word} {number} for each {text}"
    return asked, f"SELECT {text}, {what}({number}) FROM {name}{where} GROUP BY {text}"
